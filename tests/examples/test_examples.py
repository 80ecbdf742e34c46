"""Examples run from any folder; the long ones in a small version."""

import functools
import re
import runpy
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from demo_files import check_demo
from PIL import Image

import dmrifit

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def run_example(tmp_path, monkeypatch, capsys):
    """Give a function that runs an example in an empty folder; it returns names and standard output."""

    def call(name, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["plot", *map(str, arguments)])
        names = runpy.run_path(str(EXAMPLES / f"plot_{name}.py"))
        assert (tmp_path / "build" / "examples" / f"{name}.png").stat().st_size > 10_000
        return names, capsys.readouterr().out

    return call


@pytest.mark.slow
def test_the_main_job_runs_on_small_cohorts(run_example, tmp_path, monkeypatch):
    simulate, learning_curve = dmrifit.simulate_cohort, dmrifit.learning_curve

    def small(protocol, n_patients, **arguments):
        return simulate(protocol, min(n_patients, 2), shape=(16, 16, 3), **{**arguments, "n_jobs": None})

    monkeypatch.setattr(dmrifit, "ALGORITHMS", ("LR", "RFR", "CNN"))
    monkeypatch.setattr(dmrifit, "learning_curve", lambda cohorts, **options: learning_curve(
        cohorts, **{**options, "sizes": (1,), "n_jobs": None}
    ))  # fmt: skip
    monkeypatch.setattr(dmrifit, "simulate_cohort", functools.wraps(simulate)(small))
    _, printed = run_example("compare_algorithms")
    check_demo(tmp_path)
    assert "synthetic data: no clinical result" in printed
    assert "left out: CNN" in printed
    assert not re.search(r"\bCNN\b.*\d\.\d\d", printed)


def test_the_scan_of_a_package_is_fitted_and_drawn_in_a_notebook(run_example, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    _, printed = run_example("own_scan", "-f", "kernel.json")
    doubts = dict(re.findall(r"^(\w+): in doubt in (\d+) %", printed, re.MULTILINE))
    assert int(doubts["D"]) == 0 < int(doubts["K"]) < 30


def test_the_picture_of_the_readme_is_drawn_from_a_scan_of_legs(run_example, data_dir, tmp_path):
    scan = tmp_path / "legs.nii"
    nib.save(nib.load(data_dir / "leg_ivim" / "dwi.nii.gz"), scan)
    shutil.copyfile(data_dir / "leg_ivim" / "dwi.bval", scan.with_suffix(".bval"))
    _, printed = run_example("own_scan", scan)
    doubts = dict(re.findall(r"^(\w+): in doubt in (\d+) %", printed, re.MULTILINE))
    assert int(doubts["Dt"]) < 30 < 60 < int(doubts["f"])
    drawn, committed = (
        np.asarray(Image.open(path).convert("L").resize((126, 25)), dtype=float)
        for path in (tmp_path / "build" / "examples" / "own_scan.png", EXAMPLES / "docs" / "own_scan.png")
    )
    # The picture of the README is this one; fonts and colors of other versions may differ a little.
    assert np.abs(drawn - committed).mean() < 3


def test_maps_are_fitted_saved_and_predicted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path(str(EXAMPLES / "plot_first_maps.py"))
    assert "20 b-values (nearly equal ones count as one) support kurtosis" in capsys.readouterr().out
    assert names["maps"]["D"].shape == (6, 10, 10)
    assert len(list((tmp_path / "build" / "examples" / "first_maps").glob("*.nii.gz"))) == len(names["maps"])


def test_a_model_of_ones_own_is_fitted_and_drawn(run_example):
    names, printed = run_example("own_model")
    assert "of 2000 voxels fitted" in printed
    error = np.abs(names["result"].parameters / names["truth"] - 1)
    assert (np.median(error, axis=0) < [0.02, 0.06, 0.06]).all()


def test_a_scan_is_planned_and_drawn(run_example):
    names, printed = run_example("plan_scan")
    first, second = printed.splitlines()
    assert first.startswith("by precision: S_b")
    assert second.startswith("by prediction: S_b")
    assert (np.diff(names["by_precision"]["score"]) < 0).all()
    assert names["by_prediction"]["gain"].iloc[1] > 0


def test_two_shells_predict_the_others_as_well_as_a_measurement(run_example):
    names, printed = run_example("predict_shells")
    assert "b = 500, 1500, 2500, 3000" in printed
    regression, kurtosis, measured = names["error"].values()
    assert (regression < 1.1 * measured).all()
    assert (regression[2:] < 0.7 * kurtosis[2:]).all()


def test_real_voxels_go_through_the_comparison(run_example, data_dir):
    with pytest.raises(SystemExit, match=r"name the table: python examples/plot_real_voxels.py genu_table.csv"):
        run_example("real_voxels")
    names, printed = run_example("real_voxels", data_dir / "isbi2015_wm_genu" / "genu_table.csv")
    assert "no clinical result" in printed
    assert len(names["error"]) == 31
    assert (names["error"] < 0.2).all(axis=None)
    assert set(names["result"].scores["patient"]) == {f"voxel {i}" for i in range(1, 7)}
    assert not names["result"].study["cohorts"]["six voxels"]["synthetic"]


def test_a_voxel_is_placed_compared_and_prescribed(run_example, tmp_path):
    names, printed = run_example("place_voxel")
    assert "simulated" in names["__doc__"]
    cases = names["tables"]["cases"].groupby("method")[["f_tumor", "dice_closest"]].mean()
    assert cases.loc["optimizer", "f_tumor"] == pytest.approx(0.95, abs=0.01)
    assert (cases["dice_closest"] > cases.loc["random box", "dice_closest"]).drop("random box").all()
    core = names["told"][names["case"]].forbidden_rows["necrosis"]
    inside = {name: core.fraction(box, row_mm=1.0) for name, box in names["boxes"].items()}
    assert inside["out of the core"] < 0.01 < 0.1 < inside["optimizer"]
    folder = tmp_path / "build" / "examples"
    assert (folder / "place_voxel.png").stat().st_size > 10_000
    assert (folder / "voxel" / "voxel_geometry.nii.gz").is_file()
    assert "under chemical-shift displacement" in printed


@pytest.mark.deep
def test_anomalies_are_found_in_patients_and_not_in_healthy_persons(run_example):
    pytest.importorskip("torch")
    names, printed = run_example("find_anomalies")
    assert "synthetic scans: no clinical result" in printed
    summary = names["tables"]["summary"].query("part == 'all' and rule == 'stored'").set_index("method")
    assert summary.loc["z", "auc"] > 0.7
    assert names["empty"] >= 2


@pytest.mark.slow
@pytest.mark.deep
def test_metastases_are_found_by_both_models_and_followed(run_example):
    pytest.importorskip("torch")
    names, printed = run_example("find_metastases")
    assert "synthetic" in names["__doc__"]
    summary = names["tables"]["summary"].query("part == 'all'").set_index("method")
    assert summary.loc["sensitive", "sensitivity"] >= summary.loc["specific", "sensitivity"]
    assert summary.loc["specific", "strict_precision"] > summary.loc["sensitive", "strict_precision"]
    assert summary.loc["both", "sensitivity"] >= summary.loc["sensitive", "sensitivity"]
    assert (summary["lesion_dice"][:5] > summary["lesion_dice"][5:].max()).sum() >= 4
    assert set(names["reader"]["finding"]) >= {"marked by both", "candidate"}
    assert "marked by both of" in printed
