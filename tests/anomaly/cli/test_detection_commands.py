"""The command detect: what it writes and says, how its options act, and what it refuses."""

import html
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from anomaly.cli.case_runs import RUN, scan_sentences
from anomaly.cli.detection_commands import detect, series_of
from anomaly.cli.study_commands import PersonOptions, ScanOptions, simulate, train
from anomaly.detectors.gaussian import OneMinusMean
from anomaly.detectors.thresholds import opening_of
from anomaly.scans.detection import DIFFERENT
from anomaly.scans.series import SeriesDetector
from dmrifit._utils.text_files import read_sealed
from dmrifit.cli.case_runs import CaseRun, RunOptions, SimulationRun
from dmrifit.cli.training_files import TrainingFiles
from dmrifit.model_files.model_file import load_model, save_model


def volume(path):
    return np.asarray(nib.load(path).dataobj)


@pytest.fixture
def series(cases):
    """Give the options of a single series that detect needs no search for."""
    stem = cases / "synthetic-glioma-001" / "synthetic-glioma-001"
    return f"{stem}_dwi.nii.gz", "--mask", f"{stem}_brain.nii.gz"


@pytest.fixture
def detect_calls(cases, model, tmp_path, monkeypatch):
    """Start a detection that ends before the first scan, and give what it would do."""
    calls = []

    def stop(self, scans, *_, work, **__):
        options = {key: value for key, value in work.keywords.items() if key != "model"}
        calls.append((options.pop("detector"), list(scans), options))
        raise StopIteration

    def start(*, figure=True, **options):
        run = RunOptions(tmp_path / "found", overwrite=True, figure=figure)
        with pytest.raises(StopIteration):
            detect(model, [cases / "gliomas.tsv"], run=run, **options)
        return calls[-1]

    monkeypatch.setattr(CaseRun, "run", stop)
    return start


def test_a_detection_does_not_go_on_with_other_options(run, error_of, cases, model, tmp_path):
    words = ("detect", model, cases / "gliomas.tsv", "--out", tmp_path / "found", "--no-figure")
    assert run(*words)[0] == 0
    for option, name in ((("--opening", 1), "opening"), (("--all-voxels",), "mask"), (("--estimate-tissue",), "tissue")):
        error = error_of(*words, *option)
        assert f"other options ({name} was " in error


def test_a_scan_that_fails_leaves_the_others(run, output_of, error_of, cases, model, tmp_path):
    table = rows_of(cases / "gliomas.tsv")
    few = tmp_path / "few.bval"
    few.write_text("1000 " * 9)
    good = (cases / "synthetic-glioma-001" / "synthetic-glioma-001_dwi.bval").read_text()
    table.loc[0, "bval"] = str(few)
    table.to_csv(tmp_path / "cases.tsv", sep="\t", index=False)
    words = ("detect", model, tmp_path / "cases.tsv", "--out", tmp_path / "found")
    said = output_of(*words)
    assert said.index("failed: synthetic-glioma-001: ") < said.index(" in 1 scan (")
    (row,) = pd.read_csv(tmp_path / "found" / "failed.tsv", sep="\t").itertuples()
    assert row.name == "synthetic-glioma-001"
    assert "no volume at b = 0" in row.problem
    assert row.problem in html.unescape((tmp_path / "found" / "index.html").read_text())
    (row,) = pd.read_csv(tmp_path / "found" / "detections.tsv", sep="\t").itertuples()
    assert row.name == "synthetic-glioma-002"
    assert run(*words, "--fail-on-flag")[0] == 3
    # The scan is tried again, and the table of the first run goes.
    few.write_text(good)
    table.loc[0, "name"] = "first glioma"
    table.to_csv(tmp_path / "cases.tsv", sep="\t", index=False)
    assert " in 2 scans (" in run(*words)[1]
    assert not (tmp_path / "found" / "failed.tsv").exists()
    # Where its file is missing, it keeps no result of an earlier run.
    assert (tmp_path / "found" / "first-glioma" / "detection.json").exists()
    few.unlink()
    assert " in 1 scan (" in run(*words)[1]
    assert list((tmp_path / "found" / "first-glioma").iterdir()) == []
    table[:1].to_csv(tmp_path / "cases.tsv", sep="\t", index=False)
    error = error_of(*words)
    assert f"error: {tmp_path / 'cases.tsv'}, row 2" in error
    # With no scan left, nothing of the earlier run is touched.
    assert (tmp_path / "found" / "detections.tsv").exists()
    assert (tmp_path / "found" / "synthetic-glioma-002" / "detection.json").exists()


def test_rows_that_lack_a_file_are_listed_before_scans_are_prepared(cases, model, tmp_path, monkeypatch, capsys):
    table = rows_of(cases / "gliomas.tsv")
    table = pd.concat([table, table.assign(name=[f"no{i}" for i in range(len(table))], brain="no.nii.gz")])
    table.to_csv(tmp_path / "cases.tsv", sep="\t", index=False)
    monkeypatch.setattr(SeriesDetector, "detect", lambda *_, **__: pytest.fail(capsys.readouterr().out))
    with pytest.raises(pytest.fail.Exception) as stopped:
        detect(model, [tmp_path / "cases.tsv"], run=RunOptions(tmp_path / "found"))
    lines = str(stopped.value).splitlines()
    assert len(lines) == len(table) // 2
    place = f"{tmp_path / 'cases.tsv'}, row {len(table) // 2 + 2} (patient {table['patient'].iloc[0]})"
    assert lines[0].startswith(f"failed: no0: {place}: brain 'no.nii.gz' does not exist; paths are relative to")


def test_one_series_is_given_by_options(output_of, cases, model, series, tmp_path):
    words = ("detect", model, *series, "--no-figure")
    tissue = series[0].replace("_dwi", "_tissue")
    output_of(*words, "--tissue", tissue, "--out", tmp_path / "single")
    detection = load_model(model).detect(series_of([cases / "gliomas.tsv"])[0])
    np.testing.assert_array_equal(volume(tmp_path / "single" / "synthetic-glioma-001_dwi" / "map.nii.gz"), detection.map)
    said = output_of(*words, "--out", tmp_path / "none", "--threshold", 1e6, "--estimate-tissue")
    assert [said[:33], said.split("); ")[1][:25]] == ["0 anomalies in 1 scan (0.00 per s", "in 1 scan nothing is left"]


def test_a_folder_of_series_is_as_good_as_a_table(run, error_of, cases, model, tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    for i in (1, 2):
        for path in (cases / f"synthetic-glioma-00{i}").glob("*_*"):
            (folder / path.name.replace("synthetic-glioma-00", "p")).symlink_to(path)
    error = run("detect", model, folder, "--no-figure", "--out", tmp_path / "found")[2]
    assert f"2 cases in {folder}: p1, p2; with brain 2, tissue 2, lesion 2, followup 2" in error
    table = ("detect", model, cases / "gliomas.tsv", "--no-figure", "--out", tmp_path / "all")
    assert run(*table)[0] == 0
    for i in (1, 2):
        found, listed = (tmp_path / name / "map.nii.gz" for name in (f"found/p{i}", f"all/synthetic-glioma-00{i}"))
        np.testing.assert_array_equal(volume(found), volume(listed))
    files = sorted(folder.glob("p?*.nii.gz"))
    assert run("detect", model, *files, "--no-figure", "--jobs", 2, "--out", tmp_path / "files")[0] == 0
    for name in ("p1/map.nii.gz", "p2/opened.nii.gz"):
        np.testing.assert_array_equal(volume(tmp_path / "files" / name), volume(tmp_path / "found" / name))
    error = error_of("detect", model, folder, "--mask", "brain.nii.gz", "--out", tmp_path / "x")
    assert "files of several images lie beside them, or are named in the columns of their table; leave out --mask" in error


def test_anomalies_are_counted_beside_those_of_healthy_scans(run, cases, model, noisy, tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    detector = load_model(model)
    counts = [scan.n_components for scan in detector.healthy_.scans]
    per_scan = float(np.mean(counts))
    out = tmp_path / "found"
    words = ("detect", model, cases / "gliomas.tsv", "--out", out)
    reference = f"{per_scan:.2f} per scan in {len(counts)} healthy scans held out in the training)"
    assert reference in run(*words)[1].splitlines()[0]
    table = pd.read_csv(out / "detections.tsv", sep="\t")
    assert table["n_lesions_healthy"].tolist() == pytest.approx([per_scan] * len(table))
    for page in (out / "index.html", *(out / name / "view.html" for name in table["name"])):
        assert reference in page.read_text(encoding="utf-8")
    # At another opening healthy scans were not counted.
    words = (*words, "--opening", 2, "--overwrite", "--no-figure")
    assert "unknown in healthy scans by this model, threshold and opening" in run(*words)[1]
    assert pd.read_csv(out / "detections.tsv", sep="\t")["n_lesions_healthy"].isna().all()
    said = run(*words[:-4], "--calibrate", noisy, "--overwrite", "--no-figure")[1]
    assert "per scan in 5 healthy scans of the calibration, each above a threshold fitted to the other" in said


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """Healthy scans with four times the noise."""
    folder = tmp_path_factory.mktemp("noisy")
    simulate(5, 0, PersonOptions(8, (24, 28, 20), spacing=6.5, snr=22 / 4), SimulationRun(folder, skip=8))
    return folder / "healthy.tsv"


@pytest.fixture(scope="module")
def two_sided(cases, tmp_path_factory):
    path = tmp_path_factory.mktemp("two-sided") / "model.dmrifit"
    train(cases / "healthy.tsv", files=TrainingFiles(path), scans=ScanOptions(), calibration="4")
    return path


def rows_of(table):
    """Read a table with the whole paths of its files."""
    rows = pd.read_csv(table, sep="\t", dtype=str, keep_default_na=False)
    return rows.replace(r"^(\S+/)", rf"{table.parent}/\1", regex=True)


def test_a_scan_that_differs_as_a_whole_is_told_everywhere(run, output_of, cases, two_sided, noisy, tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    table = pd.concat([rows_of(noisy)[:1], rows_of(cases / "gliomas.tsv")[:1]]).fillna("n/a")
    table.to_csv(tmp_path / "both.tsv", sep="\t", index=False)
    out = tmp_path / "found"
    words = ("detect", two_sided, tmp_path / "both.tsv", "--out", out)
    said = output_of(*words)
    assert "flagged: 1 of 2" in said
    assert run(*words, "--fail-on-flag")[0] == 3
    names = ["synthetic-healthy-009", "synthetic-glioma-001"]
    assert f"{names[0]}: {DIFFERENT}" in said
    assert f"{names[1]}: {DIFFERENT}" not in said
    rows = pd.read_csv(out / "detections.tsv", sep="\t")
    assert rows["differs"].tolist() == [True, False]
    for name, differs in zip(names, (True, False), strict=True):
        assert (DIFFERENT[1:] in (out / name / "view.html").read_text(encoding="utf-8")) is differs
    assert (out / "index.html").read_text(encoding="utf-8").count(DIFFERENT[1:]) == 1


def test_a_calibration_makes_scans_of_its_site_healthy(run, output_of, two_sided, noisy, tmp_path):
    rows = rows_of(noisy)
    rows[:4].to_csv(tmp_path / "calibration.tsv", sep="\t", index=False)
    rows[4:].to_csv(tmp_path / "new.tsv", sep="\t", index=False)
    words = ("detect", two_sided, tmp_path / "new.tsv", "--no-figure", "--out", tmp_path / "found")
    said = output_of(*words, "--calibrate", tmp_path / "calibration.tsv")
    assert said.index("by 4 healthy scans of") < said.index("an adjustment, not a guarantee")
    assert DIFFERENT not in said
    (row,) = pd.read_csv(tmp_path / "found" / "detections.tsv", sep="\t").itertuples()
    # One scan varies around the rate; without the calibration a tenth of it is marked.
    assert row.share_above < 0.04
    assert "other options (calibrated was " in run(*words)[2]
    model = read_sealed(tmp_path / "found" / row.name / "detection.json")["model"]
    assert ", adjusted to healthy scans without a guarantee" in model
    assert "share synthetic-healthy-013; " in run(*words, "--overwrite", "--calibrate", tmp_path / "new.tsv")[2]


def test_a_scan_of_few_voxels_is_written_and_not_judged_as_a_whole(output_of, cases, two_sided, tmp_path):
    table = rows_of(cases / "gliomas.tsv").drop(columns="tissue")
    brain = nib.load(table["brain"][0])
    x, y, z = np.argwhere(np.asarray(brain.dataobj)).mean(0).astype(int)
    few = np.zeros(brain.shape, np.uint8)
    few[x - 1 : x + 2, y - 1 : y + 2, z] = 1
    nib.save(nib.Nifti1Image(few, brain.affine), tmp_path / "few.nii.gz")
    table.loc[0, "brain"] = str(tmp_path / "few.nii.gz")
    table.to_csv(tmp_path / "cases.tsv", sep="\t", index=False)
    words = ("detect", two_sided, tmp_path / "cases.tsv", "--out", tmp_path / "found")
    marked = "most of its voxels lie above the threshold"
    small = "too small to be judged, healthy or not: a hemisphere has fewer than 20 scored voxels"
    for _ in range(2):  # the second run reads the records, and makes one of an earlier version anew
        lines = output_of(*words).splitlines()
        # A scan in which nothing can be found is no scan without anomalies.
        assert f"fluid counts here: give --estimate-tissue or tissue maps); 1 too small to be judged: {tmp_path / 'found'}" in lines[0]
        assert {f"synthetic-glioma-001: {marked}", f"synthetic-glioma-001: {small}", "flagged: 1 of 2"} <= {*lines}
        record = read_sealed(tmp_path / "found" / "synthetic-glioma-002" / "detection.json")
        RUN.keep(tmp_path / "found", "synthetic-glioma-002", {"cube": record.pop("opening"), **record})
    rows = pd.read_csv(tmp_path / "found" / "detections.tsv", sep="\t")
    assert rows[["differs", "n_lesions", "volume_mL"]].isna().all(axis=1).tolist() == [True, False]
    assert [rows["flags"][0], rows["notes"][1][:29]] == [f"{marked}; {small}", "the opening by a cube of 3 vo"]
    assert rows["notes"].str.contains("fluid counts here.*the column tissue").all()
    assert rows["n_lesions_healthy"].isna().all()
    view = (tmp_path / "found" / "synthetic-glioma-001" / "view.html").read_text(encoding="utf-8")
    for text in (small[1:], "arked by the model model.dmrifit (aligned, trained on 8 synthetic scans: its accuracy in"):
        assert text in view
    # Notes on scans are told once with their number.
    content = {"name": "a", "n_lesions": 0, "share_above": 0.01, "differs": None, "notes": ["not judged", "lost"]}
    assert scan_sentences([content, content | {"notes": ["lost"]}])[1:] == ["1 scan: not judged", "2 scans: lost"]


def test_options_reach_the_detector(detect_calls):
    _, series, options = detect_calls()
    assert [scan.name for scan in series] == ["synthetic-glioma-001", "synthetic-glioma-002"]
    assert options == {"opening": 3, "tissue": False, "mask": True, "figure": True}
    words = {"opening": 5, "estimate_tissue": True, "all_voxels": True, "resample_directions": True, "figure": False}
    _, _, options = detect_calls(**words, threshold=0.0, device="cuda:63")
    changed = {"opening": 5, "tissue": True, "mask": False, "directions": "resampled", "threshold": 0.0}
    assert options == changed | {"figure": False}
    # A smallest lesion chooses the opening.
    detector, _, options = detect_calls(smallest_lesion=2.0)
    assert options["opening"] == opening_of(2.0, detector.edges_)
    with pytest.raises(ValueError, match="either --opening or --smallest-lesion, not both"):
        detect_calls(smallest_lesion=2.0, opening=2)
    with pytest.raises(ValueError, match="the threshold must be a finite number, not nan"):
        detect_calls(threshold=float("nan"))


def test_a_threshold_and_an_opening_shape_the_masks(output_of, model, series, tmp_path):
    words = ("detect", model, *series, "--no-figure", "--threshold", 1.0)
    name = "synthetic-glioma-001_dwi"
    for opening in (1, 3):
        out = tmp_path / str(opening)
        output_of(*words, "--opening", opening, "--out", out)
        brain = volume(series[2]) > 0
        binary = volume(out / name / "binary.nii.gz") > 0
        np.testing.assert_array_equal(binary, (volume(out / name / "map.nii.gz") > 1) & brain)
        expected = ndimage.binary_opening(binary, np.ones((opening,) * 3))
        np.testing.assert_array_equal(volume(out / name / "opened.nii.gz") > 0, expected)
        assert "above 1, given in place of" in read_sealed(out / name / "detection.json")["model"]
        (row,) = pd.read_csv(out / "detections.tsv", sep="\t").itertuples()
        assert row.threshold == 1
        assert row.n_lesions == ndimage.label(expected, np.ones((3, 3, 3)))[1] > 0
        assert len(pd.read_csv(out / "lesions.csv")) == row.n_lesions


@pytest.mark.deep
def test_a_network_is_put_on_the_device_that_is_named(detect_calls, monkeypatch):
    pytest.importorskip("torch")
    moves = []
    module = SimpleNamespace(to=lambda device: moves.append(str(device)))
    plain = load_model

    def load_with_network(path):
        loaded = plain(path)
        loaded.detector_.net_ = SimpleNamespace(module_=module)
        loaded.detector_.set_params = lambda **parameters: moves.append(parameters)
        return loaded

    monkeypatch.setattr("dmrifit.model_files.model_file.load_model", load_with_network)
    detect_calls()
    assert moves == []
    detect_calls(device="cpu")
    assert moves == ["cpu", {"device": "cpu"}]


def test_models_and_tables_of_another_kind_are_named(error_of, cases, model, tmp_path):
    out = tmp_path / "found"
    # A folder of folders: the tables in it are named.
    assert "name a table in it: gliomas.tsv, healthy.tsv" in error_of("detect", model, cases, "--out", out)
    bare = tmp_path / "bare.dmrifit"
    save_model(OneMinusMean().fit(np.full((4, 6, 6, 6, 3), 0.5)), bare)
    error = error_of("detect", bare, cases / "gliomas.tsv", "--out", out)
    assert "holds a OneMinusMean, which is no anomaly model" in error
    assert not out.exists()


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4, 3), np.float32), np.eye(4)), path)
    (tmp_path / "scan.bval").write_text("0 1000 1000")
    (tmp_path / "scan.bvec").write_text("0 1 0\n0 0 1\n0 0 0")
    return path


def test_series_are_an_image_with_the_files_named_or_those_of_a_table_or_a_folder(image, tmp_path):
    assert [scan.image for scan in series_of([tmp_path])] == [image]
    mask, tissue = tmp_path / "mask.nii", tmp_path / "tissue.nii"
    for path in (mask, tissue):
        nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4)), path)
    (plain,) = series_of([image])
    assert (plain.image, plain.brain, plain.tissue) == (image, None, None)
    bval = tmp_path / "other.bval"
    bval.write_text("0 700 700")
    (series,) = series_of([image], bval=bval, bvec=tmp_path / "scan.bvec", mask=mask, tissue=tissue)
    assert (series.bval, series.bvec, series.brain, series.tissue) == (bval, tmp_path / "scan.bvec", mask, tissue)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="is a folder without images"):
        series_of([tmp_path / "empty"])
    table = tmp_path / "cases.tsv"
    table.write_text("patient\timage\np1\tscan.nii.gz\n")
    (series,) = series_of([table])
    assert series.image == image
    with pytest.raises(ValueError, match="named in the columns of their table; leave out --mask"):
        series_of([table], mask=image)
