"""Runs over many scans: what is done again, and what of an earlier run never is taken for this one's."""

import base64
import gzip
import json
import re
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from anomaly.cli.case_runs import prepared_cases
from anomaly.cli.detection_commands import detect
from anomaly.cli.study_commands import PersonOptions, evaluate, simulate
from anomaly.detectors.gaussian import VoxelwiseGaussian
from anomaly.scans.cases import write_cases
from anomaly.scans.series import SeriesDetector, read_series
from anomaly.simulate.persons import simulate_dmri
from dmrifit.cli.case_runs import RunOptions, SimulationRun
from dmrifit.io.tables import TABLE
from dmrifit.model_files.model_file import save_model


def tables(out, **options):
    """Options of a run without figures."""
    return RunOptions(out, figure=False, **options)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Synthetic series, and two models of which one knows about age."""
    folder = tmp_path_factory.mktemp("batches")
    healthy, lesions = simulate_dmri(6, 2, n_directions=6, shape=(20, 24, 16), spacing=8.0, random_state=4)
    write_cases(healthy, folder / "healthy")
    write_cases(lesions, folder / "lesions")
    series = read_series(folder / "healthy" / TABLE)
    aging = SeriesDetector(VoxelwiseGaussian(calibration=2), covariates=("age",)).fit(series)
    save_model(aging, folder / "aging.dmrifit")
    save_model(SeriesDetector(VoxelwiseGaussian(side="low", calibration=2)).fit(series), folder / "low.dmrifit")
    return folder


def _map(folder, number=1):
    return nib.load(folder / f"synthetic-glioma-00{number}" / "map.nii.gz").get_fdata()


def test_a_scan_is_looked_at_anew_when_its_file_or_what_is_known_of_the_patient_has_changed(made, tmp_path):
    cases = tmp_path / "cases"
    shutil.copytree(made / "lesions", cases)
    detect(made / "aging.dmrifit", [cases / TABLE], run=tables(tmp_path / "found"))
    first = _map(tmp_path / "found")
    table = pd.read_csv(cases / TABLE, sep="\t", dtype=str, keep_default_na=False)
    table["age"], table["patient"] = ["95", table["age"][1]], ["somebody", table["patient"][1]]
    table.to_csv(cases / TABLE, sep="\t", index=False)
    stamp = (tmp_path / "found" / "synthetic-glioma-002" / "map.nii.gz").stat().st_mtime_ns
    detect(made / "aging.dmrifit", [cases / TABLE], run=tables(tmp_path / "found"))
    assert not np.array_equal(_map(tmp_path / "found"), first)
    rows = pd.read_csv(tmp_path / "found" / "detections.tsv", sep="\t")
    assert rows["patient"][0] == "somebody"
    # Of the two, one is older than all healthy persons.
    assert rows["notes"].str.contains(r"age 95 is outside the range of the training scans \(\d").tolist() == [True, False]
    assert (tmp_path / "found" / "synthetic-glioma-002" / "map.nii.gz").stat().st_mtime_ns == stamp
    second, path = _map(tmp_path / "found"), read_series(cases / TABLE)[0].image
    image = nib.load(path)
    values = image.get_fdata(dtype=np.float32)
    values[..., 1:] *= 0.8
    nib.save(nib.Nifti1Image(values, image.affine), path)
    detect(made / "aging.dmrifit", [cases / TABLE], run=tables(tmp_path / "found"))
    assert not np.array_equal(_map(tmp_path / "found"), second)


def test_each_scan_has_a_page_to_move_through_that_starts_at_the_threshold(made, tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    detect(made / "low.dmrifit", [made / "lesions" / TABLE], run=RunOptions(tmp_path))
    table = pd.read_csv(tmp_path / "detections.tsv", sep="\t")
    lesions = pd.read_csv(tmp_path / "lesions.csv")
    assert len(lesions)
    files = pd.read_csv(made / "lesions" / TABLE, sep="\t").set_index("name")
    assert "all scans were simulated" in (tmp_path / "index.html").read_text(encoding="utf-8")
    for _, row in table.iterrows():
        view = (tmp_path / row["name"] / "view.html").read_text(encoding="utf-8")
        stored = json.loads(re.search(r'<script type="application/json">(.*?)</script>', view, re.DOTALL).group(1))
        assert stored["layers"][1]["threshold"] == pytest.approx(row["threshold"])
        assert len(stored["points"]) == (lesions["name"] == row["name"]).sum() == row["n_lesions"]
        assert "this scan was simulated; no person was scanned" in view
        known = {one["name"]: one for one in stored["layers"]}["known lesion"]
        lesion = nib.load(made / "lesions" / files.loc[row["name"], "lesion"]).get_fdata() > 0
        codes = np.frombuffer(gzip.decompress(base64.b64decode(known["data"])), np.uint8)
        assert (codes > 0).sum() == lesion.sum() > 0


def test_a_replaced_run_that_was_interrupted_takes_nothing_of_the_one_before(made, tmp_path, monkeypatch):
    pytest.importorskip("jinja2")
    out, table = tmp_path / "found", [made / "lesions" / TABLE]
    detect(made / "aging.dmrifit", table, run=tables(out))
    before = _map(out, 2)
    (out / "index.html").write_text("of the run before")
    own = SeriesDetector.detect

    def stops(self, series, **options):
        if series.name == "synthetic-glioma-002":
            raise KeyboardInterrupt
        return own(self, series, **options)

    monkeypatch.setattr(SeriesDetector, "detect", stops)
    for figure in (True, False):
        with pytest.raises(KeyboardInterrupt):
            detect(made / "low.dmrifit", table, run=RunOptions(out, figure=figure, overwrite=True))
        # What was finished can be looked at, and nothing of the run before is beside it.
        assert len(pd.read_csv(out / "detections.tsv", sep="\t")) == 1
        pages = [path.read_text(encoding="utf-8") for path in out.glob("index.html")]
        assert ["The run ended early: 1 scan not finished." in page for page in pages] == [True] * figure
    monkeypatch.undo()
    detect(made / "low.dmrifit", table, run=tables(out))
    assert not np.array_equal(_map(out, 2), before)
    limits = pd.read_csv(out / "detections.tsv", sep="\t")["threshold"]
    assert limits[0] == limits[1]
    assert not (out / "index.html").exists()


def test_persons_of_another_seed_are_never_taken_for_those_that_are_wanted(tmp_path):
    persons = PersonOptions(directions=1, shape=(12, 12, 12), spacing=12.0)
    simulate(2, 0, persons, SimulationRun(tmp_path / "mixed", seed=1))
    simulate(1, 0, persons, SimulationRun(tmp_path / "mixed", seed=2, overwrite=True))
    simulate(2, 0, persons, SimulationRun(tmp_path / "mixed", seed=2))
    simulate(2, 0, persons, SimulationRun(tmp_path / "whole", seed=2))
    one, other = (
        nib.load(tmp_path / name / "synthetic-healthy-002" / "synthetic-healthy-002_dwi.nii.gz").get_fdata()
        for name in ("mixed", "whole")
    )
    np.testing.assert_array_equal(one, other)


def test_scans_of_several_shells_are_compared_on_the_one_that_is_named(made, tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    cases = tmp_path / "cases"
    shutil.copytree(made / "lesions", cases)
    for one in read_series(cases / TABLE):
        image = nib.load(one.image)
        values, b, along = np.asarray(image.dataobj), np.loadtxt(one.bval), np.loadtxt(one.bvec)
        nib.save(nib.Nifti1Image(np.concatenate([values, values[..., 1:] / 2], -1), image.affine), one.image)
        np.savetxt(one.bval, np.append(b, 2 * b[1:])[None])
        np.savetxt(one.bvec, np.hstack([along, along[:, 1:]]))
    detect(made / "low.dmrifit", [cases / TABLE], opening=1, run=tables(tmp_path / "found"))
    words = (cases / TABLE, {"z": tmp_path / "found"}, tmp_path / "compared")
    with pytest.raises(ValueError, match=r"several shells.*--b"):
        evaluate(*words, figures=0)
    evaluate(*words, figures=0, b=1000.0)
    rows = pd.read_csv(tmp_path / "compared" / "scans.csv").query("method == 'z, stored'")
    # Opened as detect did.
    assert rows["n_found_opened"].tolist() == rows["n_found"].tolist() != []
    low, high = (prepared_cases(read_series(cases / TABLE)[:1], tissue=False, mask=True, b=b)[0] for b in (1000, 2000))
    assert (low.case.b, high.case.b) == (1000, 2000)
    assert low.case.signal.max() > high.case.signal.max()
