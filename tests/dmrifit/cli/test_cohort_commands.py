"""Commands on cohorts: what their options ask of the library, and what they tell the user."""

import json
import shutil
from collections import namedtuple

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from dmrifit import _optional
from dmrifit.cohort.cohort import Cohort
from dmrifit.engine.protocol import Protocol
from dmrifit.imaging.fit_predict import predict_image
from dmrifit.model_files.model_file import load_model
from dmrifit.predict.strategies import MapsToMaps, SignalToSignal
from dmrifit.simulate.body_phantoms import simulate_cohort
from dmrifit.study.report.reporting import Report


@pytest.fixture(scope="module")
def cohorts():
    """Two small cohorts measured with one protocol."""
    protocol = Protocol.preset("cohort1")
    return [simulate_cohort(protocol, 2, name=name, shape=(12, 12, 2), random_state=1) for name in "AB"]


@pytest.fixture(scope="module")
def table(cohorts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return [cohort.write(folder) for cohort in cohorts][-1]


# Simulation --------------------------------------------------------------------------------------


@pytest.fixture
def simulations(monkeypatch, cohorts):
    """What is asked of the simulation, in the place of patients made."""
    calls = []

    def record(protocol, n, **options):
        calls.append((protocol, n, options))
        return cohorts[0]

    monkeypatch.setattr("dmrifit.simulate.body_phantoms.simulate_cohort", record)
    monkeypatch.setattr(Cohort, "write", lambda self, folder: folder / "participants.tsv")
    return calls


def test_a_disk_without_room_for_all_patients_is_told_first(simulations, error_of, tmp_path, monkeypatch):
    disk = namedtuple("disk", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk(0, 0, 100 * 2**20))
    assert "no room to write" in error_of("simulate", "--out", tmp_path / "new", "--patients", "9000")
    assert simulations == []
    assert not (tmp_path / "new").exists()


def test_both_cohorts_of_the_study_are_simulated_by_default(simulations, output_of, tmp_path):
    out = output_of("simulate", "--out", tmp_path)
    assert out == f"4 synthetic patients: {tmp_path / 'participants.tsv'}\n"
    (first, n, options), (second, _, others) = simulations
    assert (first, second) == (Protocol.preset("cohort1"), Protocol.preset("cohort2"))
    names_and_fields = (options["name"], options["field"], others["name"], others["field"])
    assert (n, *names_and_fields) == (16, "cohort1", 1.5, "cohort2", 3.0)
    assert (options["shape"], options["difficulty"], options["template"]) == ((48, 48, 8), "mixed", "both")
    assert (options["snr"], options["artifacts"], options["random_state"]) == (None, None, 0)
    assert options["truth"] == "formula"


def test_signals_come_from_walks_where_asked(simulations, output_of, tmp_path):
    output_of("simulate", "--out", tmp_path, "--truth", "walk")
    assert {options["truth"] for _, _, options in simulations} == {"walk"}


def test_cohorts_can_share_the_protocol_of_the_first(simulations, run, tmp_path):
    run("simulate", "--out", tmp_path, "--same-protocol", "--preset", "cohort2,cohort1,cohort2")
    assert [options["name"] for _, _, options in simulations] == ["cohort2", "cohort1"]
    assert {protocol for protocol, _, _ in simulations} == {Protocol.preset("cohort2")}


@pytest.mark.parametrize(
    ("text", "artifacts"),
    [("gibbs, shift", ["gibbs", "shift"]), ("gibbs=0.3,shift=0.5", {"gibbs": 0.3, "shift": 0.5}), ("", None)],
)
def test_artifacts_are_named_with_or_without_strengths(simulations, output_of, tmp_path, text, artifacts):
    output_of("simulate", "--out", tmp_path, "--artifacts", text)
    assert simulations[0][2]["artifacts"] == artifacts


# Training ----------------------------------------------------------------------------------------


def test_the_trained_model_is_least_squares_of_the_drawn_voxels(table, output_of, tmp_path):
    model = tmp_path / "model.dmrifit"
    options = ("--cohorts", "A", "--max-voxels", 0, "--train-mask", "lesion", "--n-b", 3)
    out = output_of("train", table, "--out", model, *options)
    estimator = load_model(model)
    assert isinstance(estimator, SignalToSignal)
    assert len(estimator.source) == 3
    signals = []
    for scan in Cohort.read(table)["A"]:
        unit = np.percentile(scan.signal[scan.mask][:, 0].astype(float), 95)
        signals.append(scan.signal[scan.lesion].astype(float) / unit)
    Y = np.concatenate(signals)
    design = np.column_stack([np.ones(len(Y)), Y[:, :3]])
    weights = np.linalg.lstsq(design, Y, rcond=None)[0]
    np.testing.assert_allclose(estimator.predict(Y[:9, :3]), design[:9] @ weights, rtol=1e-6)
    assert f"LR s2s: trained on {len(Y)} lesion voxels of 2 patients (A): {model}\n" in out
    assert output_of("info", model) == out.partition("no intervals: train on 5 patients or more, not 2\n")[2]
    assert "it predicts 21 signals from S_b0_TE93, S_b50_TE93, S_b100_TE93" in out
    assert "trained on synthetic data: not for clinical use" in out


def test_models_of_five_patients_have_intervals_that_a_prediction_writes(run, output_of, tmp_path):
    table = simulate_cohort("cohort1", 5, shape=(12, 12, 2), random_state=1).write(tmp_path / "data")
    model = tmp_path / "model.dmrifit"
    rows = pd.read_csv(table, sep="\t")
    # Only patients with voxels in the mask count.
    rows.loc[4:, "lesion"] = None
    rows.to_csv(table.with_name("four.tsv"), sep="\t", index=False)
    out = output_of("train", table.with_name("four.tsv"), "--out", model, "--train-mask", "lesion")
    assert "no intervals: train on 5 patients or more, not 4" in out
    assert "voxels of 4 patients" in out
    out = output_of("train", table, "--out", model, "--coverage", 0.8, "--overwrite")
    assert load_model(model).coverage == 0.8
    assert "intervals: calibrated to 80 % of the voxels on 5 patients" in out
    [scan] = Cohort.read(table)["cohort1"].scans[:1]
    image = tmp_path / "data" / f"sub-{scan.patient}" / "dwi" / f"sub-{scan.patient}_dwi.nii.gz"
    te = image.with_name(image.name.replace(".nii.gz", ".te"))
    out = output_of("predict", model, image, "--te", te, "--out", tmp_path / "out")
    assert "Intervals: calibrated to 80 % of the voxels on 5 patients" in out
    assert "of the voxels are unlike the training voxels" in out
    # Also of a real person's image: what stands in the files must say what the model has learned from.
    written = [next((tmp_path / "out").glob(f"*.{ending}")).read_text() for ending in ("json", "html")]
    assert all("trained on synthetic data: its accuracy in people is unknown" in text for text in [out, *written])
    assert all("model.dmrifit" in text for text in written)
    n = Cohort.read(table)["cohort1"].count("body")
    assert [*json.loads(written[0])["Estimator"]["TrainedOn"].values()] == [["cohort1"], 5, n, "body voxel"]
    assert all(f"{n} body voxels of 5 patients (cohort1)" in text for text in (output_of("info", model), written[1]))
    assert len(list((tmp_path / "out").glob("*high*.nii.gz"))) == 7
    output_of("train", table, "--out", model, "--coverage", 0, "--overwrite")
    assert isinstance(load_model(model), SignalToSignal)
    assert "Invalid value for '--coverage'" in run("train", table, "--out", model, "--coverage", 90, "--overwrite")[2]


def test_a_file_of_that_name_is_replaced_on_request_only(table, error_of, output_of, tmp_path):
    model = tmp_path / "model.dmrifit"
    model.write_text("mine")
    arguments = ("train", table, "--out", model, "--max-voxels", 20, "--strategy", "m2m")
    assert "already exists; choose another name, or --overwrite" in error_of(*arguments)
    assert model.read_text() == "mine"
    out = output_of(*arguments, "--overwrite", "--loss", "median", "--algorithm", "LR")
    assert "the maps of 7 parameters (S0, f, Dv, T2v, Dt, K, T2t) from the maps ADC_fast, ADC_slow, F of S_b0_TE93" in out
    estimator = load_model(model)
    assert isinstance(estimator, MapsToMaps)
    assert estimator.loss == "median"


def test_a_model_without_relaxation_is_refused_for_scans_of_several_echo_times(table, error_of, tmp_path):
    model = tmp_path / "model.dmrifit"
    for command in ("train", "benchmark"):
        err = error_of(command, table, "--out", model, "--model", "kurtosis")
        assert "kurtosis does not include relaxation, but the protocol has echo times 93, 105, 120 ms" in err
        assert err.endswith("; name a model that the scans support, such as --model t2-ivim-kurtosis\n")
    assert not model.exists()


def test_a_model_that_needs_echo_times_is_refused_for_scans_without_them(write_scan, error_of, output_of, tmp_path):
    protocol = Protocol([0, 500, 1000])
    rows = ["patient\tcohort\timage\tbval\tmask"]
    for name in ("a", "b"):
        write_scan(tmp_path, name, protocol, seed=ord(name))
        inside = nib.load(tmp_path / f"{name}.nii.gz")
        mask = np.ones(inside.shape[:3], np.uint8)
        nib.save(nib.Nifti1Image(mask, inside.affine), tmp_path / f"{name}_mask.nii.gz")
        rows.append(f"{name}\tA\t{name}.nii.gz\t{name}.bval\t{name}_mask.nii.gz")
    table = tmp_path / "participants.tsv"
    table.write_text("\n".join(rows))
    arguments = ("train", table, "--n-b", 2, "--out", tmp_path / "model.dmrifit")
    err = error_of(*arguments)
    assert "t2-ivim-kurtosis needs echo times" in err
    assert "--model adc" in err
    assert not (tmp_path / "model.dmrifit").exists()
    output_of(*arguments, "--model", "adc")


# Comparison --------------------------------------------------------------------------------------


@pytest.fixture
def comparisons(monkeypatch, make_evaluation):
    """What is asked of the comparison, in the place of trainings; no report is written."""
    calls = []

    def record(estimators, cohorts, **options):
        calls.append((estimators, cohorts, options))
        study = {"cohorts": {name: {"synthetic": False, "skipped": {"p9": "not scored: no lesion voxel"}} for name in cohorts}}
        return make_evaluation([{}, {"algorithm": "RFR", "dispersion": 0.4}], study=study)

    def page(studies, folder):
        return Report.of(folder / "report.html", "", ["", "Best predictor: LR."], {})

    monkeypatch.setattr("dmrifit.study.comparison.compare", record)
    monkeypatch.setattr("dmrifit.study.report.reporting.write_report", page)
    return calls


def test_options_of_a_comparison_reach_it(table, comparisons, output_of, tmp_path):
    line = (
        "--algorithms LR,ETR --strategies m2m --sizes 1 --model t2-adc --train-mask lesion --score-mask body "
        "--max-voxels 0 --repeats 2 --no-controls --resynthesize --seed 9 --jobs 2 --train-on pooled"
    )
    output_of("benchmark", table, "--out", tmp_path, *line.split())
    ((estimators, cohorts, settings),) = comparisons
    assert list(estimators) == ["LR m2m", "ETR m2m"]
    assert {(type(one), one.model) for one in estimators.values()} == {(MapsToMaps, "t2-adc")}
    assert list(cohorts) == ["A", "B"]
    assert settings.pop("out").path == tmp_path
    sampling = {"train_mask": "lesion", "score_mask": "body", "max_voxels": None, "resynthesize": True}
    training = {"train_on": ["pooled"], "n_train": (1,), "n_repeats": 2, "n_jobs": 2, "random_state": 9}
    assert settings == {"controls": False} | sampling | training


def test_cohorts_of_one_protocol_train_for_each_other(table, comparisons, cohorts, run, tmp_path, monkeypatch):
    arguments = ("--out", tmp_path, "--algorithms", "LR")
    run("benchmark", table, *arguments)
    monkeypatch.setattr(Cohort, "read", lambda table: {"A": cohorts[0]})
    run("benchmark", "x.tsv", *arguments)
    settings = comparisons[0][2]
    assert settings["train_on"] == ["same", "other"]
    assert (settings["max_voxels"], settings["n_train"], settings["controls"]) == (250, None, True)
    assert comparisons[1][2]["train_on"] == ["same"]


@pytest.mark.parametrize(("option", "ways"), [((), ["same"]), (("--resynthesize",), ["same", "other"])])
def test_cohorts_whose_protocols_differ_do_so_on_request(comparisons, run, tmp_path, monkeypatch, option, ways):
    two = {name: simulate_cohort(name, 1, shape=(12, 12, 2)) for name in ("cohort1", "cohort2")}
    monkeypatch.setattr(Cohort, "read", lambda table: two)
    code, _, err = run("benchmark", "x.tsv", "--out", tmp_path, "--algorithms", "LR", *option)
    assert code == 0, err
    assert comparisons[0][2]["train_on"] == ways
    assert "cohort1: p9: not scored: no lesion voxel" in err
    assert ("protocols differ (cohort1 lacks 15 of the 21 contrasts of cohort2" in err) == (ways == ["same"])


def test_the_inputs_of_a_comparison_are_chosen_by_their_b_values(table, comparisons, error_of, output_of, tmp_path):
    options = ("--out", tmp_path, "--algorithms", "LR", "--strategies", "s2s", "--source-b")
    output_of("benchmark", table, *options, "100,0")
    ((estimators, cohorts, _),) = comparisons
    estimator = estimators["LR s2s"]
    assert estimator.source.b.tolist() == [100, 0]
    assert set(estimator.source.te) == {next(iter(cohorts.values())).scans[0].protocol.te.min()}
    assert "--source-b 0,51: choose from 0, 50, 100" in error_of("benchmark", table, *options, "0,51")


def regions_of(folder, b):
    """Write the noiseless mean signals of six regions, of two patients each."""
    lines = ["patient,region,b,signal"]
    for i in range(6):
        adc = 0.5 + 0.3 * i
        lines += [f"p{i // 2},r{i % 2},{value},{300 * np.exp(-1e-3 * adc * value):.6g}" for value in b]
    table = folder / "regions.csv"
    table.write_text("\n".join(lines))
    return table


def test_inputs_that_leave_nothing_to_predict_are_refused_before_training(run, output_of, tmp_path):
    table = regions_of(tmp_path, (0, 50, 400, 800, 1000))
    options = ("--model", "adc", "--algorithms", "LR")
    for command, out in (("benchmark", "study"), ("train", "model.dmrifit")):
        arguments = options[:2] if command == "train" else options
        code, _, err = run(command, table, "--out", tmp_path / out, *arguments)
        assert code == 2
        assert "nothing is left to predict; leave out the highest b-value: --source-b 0,50,400,800" in err
        assert not (tmp_path / out).exists()
    named = ("--source-b", "0,50,400,800", "--out", tmp_path / "study")
    output_of("benchmark", table, *options, *named)
    # Of the signals, those alone are scored that are no inputs.
    assert {*pd.read_csv(tmp_path / "study" / "signals.csv")["contrast"]} == {"S_b1000", "all unseen"}
    output_of("train", table, *options[:2], *named[:3], tmp_path / "regions.dmrifit")
    predicted = predict_image(load_model(tmp_path / "regions.dmrifit"), np.full((2, 2, 2, 4), 9.0), affine=np.eye(4))
    assert "means over regions, which have less noise than voxels" in predicted.advice()[-1]


def test_strategies_are_those_that_the_inputs_suffice_for(comparisons, run, tmp_path):
    options = ("--out", tmp_path / "study", "--model", "adc", "--algorithms", "LR")
    table = regions_of(tmp_path, (0, 10, 30, 50, 100, 200, 400, 900))
    code, _, err = run("benchmark", table, *options)
    assert code == 0, err
    assert "m2m) is left out" in err
    assert "the scans have them: --source-b 0,50,100,400,900" in err
    code, _, err = run("benchmark", table, *options, "--source-b", "0,50,100,400,900")
    assert code == 0, err
    assert "(m2m) is left out" not in err
    code, _, err = run("benchmark", regions_of(tmp_path, (0, 10, 30, 100, 200, 800)), *options)
    assert code == 0, err
    assert "--source-b" not in err
    assert [list(estimators) for estimators, *_ in comparisons] == [["LR s2s"], ["LR s2s", "LR m2m"], ["LR s2s"]]


def test_a_comparison_of_relaxation_times_needs_echo_times(comparisons, error_of, tmp_path):
    table = regions_of(tmp_path, (0, 10, 30, 100, 200, 800))
    err = error_of("benchmark", table, "--out", tmp_path / "study", "--algorithms", "LR")
    assert "t2-ivim-kurtosis needs echo times" in err
    assert not comparisons


def test_the_summary_is_printed_in_percent(table, comparisons, output_of, tmp_path):
    out = output_of("benchmark", table, "--out", tmp_path, "--algorithms", "LR")
    lines = [line.split() for line in out.splitlines()]
    header = "trained on N cohort strategy algorithm signal skill map skill |BI| (%) DI (%) r"
    assert lines[0] == header.split()
    assert lines[1] == ["same", "3", "A", "s2s", "LR", "–", "–", "10.0", "20.0", "0.50"]
    assert lines[2] == ["same", "3", "A", "s2s", "RFR", "–", "–", "10.0", "40.0", "0.50"]
    assert lines[3] == ["Best", "predictor:", "LR."]
    assert lines[-1] == ["report:", str(tmp_path / "report.html")]


def test_a_failure_says_where_finished_work_is(table, error_of, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        msg = "estimator 'LR s2s' failed for p1"
        raise RuntimeError(msg)

    monkeypatch.setattr("dmrifit.study.comparison.compare", fail)
    err = error_of("benchmark", table, "--out", tmp_path, "--algorithms", "LR")
    assert f"failed for p1; finished work is kept in {tmp_path}" in err


@pytest.mark.parametrize("started", [True, False])
def test_an_interrupted_comparison_says_how_to_go_on_if_it_had_begun(table, run, tmp_path, monkeypatch, started):
    out = tmp_path / "study"

    def interrupt(*arguments, **options):
        if started:
            (out / "cells").mkdir(parents=True)
            (out / "cells" / "1.json").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("dmrifit.study.comparison.compare", interrupt)
    code, _, err = run("benchmark", table, "--out", out, "--algorithms", "LR")
    assert code == 130
    assert ("the same command resumes there" in err) == started


def test_a_report_needs_its_libraries_before_any_work(table, comparisons, error_of, tmp_path, monkeypatch):
    find = _optional.import_module

    def absent(name):
        if name == "jinja2":
            raise ModuleNotFoundError(name=name)
        return find(name)

    monkeypatch.setattr(_optional, "import_module", absent)
    assert 'pip install "dmrifit[report]"' in error_of("benchmark", table, "--out", tmp_path, "--algorithms", "LR")
    assert not comparisons


# Report ------------------------------------------------------------------------------------------
