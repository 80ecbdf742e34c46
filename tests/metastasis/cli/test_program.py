"""The commands run after each other, go on where they stopped, and name what is wrong in one line."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from dmrifit import load_model
from metastasis import write_cases

TINY = ("--widths", "2,2", "--epochs", 1, "--segments-per-epoch", 4, "--batch-size", 2, "--device", "cpu")


@pytest.mark.deep
def test_models_are_trained_and_segment_and_are_compared(
    run, error_of, output_of, table, synthetic_cases, tmp_path, monkeypatch
):
    pytest.importorskip("torch")

    def too_many(*_, **__):
        msg = "7 false positives per scan"
        raise ValueError(msg)

    others = [replace(case, patient=f"other {case.patient}") for case in synthetic_cases]
    validation = write_cases(others, tmp_path / "validation")
    models = [tmp_path / "sensitive.dmrifit", tmp_path / "specific.dmrifit"]
    code, out, error = run("train", table, "--out", models[0], *TINY, "--epochs", 2)
    assert code == 0, error
    assert "epoch 1/2 (about" in error
    assert "\r" not in error
    assert (tmp_path / "sensitive.curve.png").is_file()
    assert "trained on 3 scans" in out
    assert "synthetic" in out
    words = ("train", table, "--out", models[1], "--alpha", 0.5, *TINY, "--warm-start", models[0])
    words = (*words, "--validation", validation, "--false-positives")
    monkeypatch.setattr("metastasis.segmentation.operating_points.operating_point", too_many)
    code, _, error = run(*words, 0)
    assert code == 2
    assert "keeps the threshold 0.5" in error
    before = load_model(models[1])
    monkeypatch.undo()
    assert "--overwrite" in run(*words, 1000)[2]
    # Nothing is trained again.
    monkeypatch.setattr("metastasis.segmentation.segmenter.DeepMedicSegmenter._stream", too_many)
    code, out, error = run(*words, 1000, "--overwrite")
    monkeypatch.undo()
    assert code == 0, error
    assert "for 1000 false positives per scan, chosen on 3 scans of other patients" in out
    assert load_model(models[1]).false_positives_ == 1000
    assert load_model(models[1]).synthetic_
    assert before.false_positives_ is None
    assert not list(tmp_path.glob(".*training"))

    segmented, joined, compared = (tmp_path / name for name in ("segmented", "joined", "compared"))
    output_of("segment", models[1], table, "--out", segmented, "--no-figure")
    written = segmented / synthetic_cases[0].name / "label.nii.gz"
    before = written.stat().st_mtime_ns
    assert run("segment", models[1], table, "--out", segmented, "--no-figure")[0] == 0
    assert written.stat().st_mtime_ns == before
    error = error_of("segment", models[1], table, "--out", segmented, "--threshold", 0.4)
    assert "other options (figure was False, now True; threshold was " in error
    model, case = load_model(models[1]), synthetic_cases[0]
    expected = model.predict_proba([case.image], priors=[case.prior], masks=[case.brain])[0]
    probability = nib.load(segmented / case.name / "probability.nii.gz")
    np.testing.assert_allclose(np.asarray(probability.dataobj), expected, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(nib.load(written).dataobj), expected >= model.threshold_)

    code, out, error = run("ensemble", *models, table, "--out", joined, "--thresholds", "0.4,0.6", "--no-figure")
    assert code == 0, error
    assert "marked by both models" in out
    # One bar for all scans and models, which is too short-lived here to say anything.
    assert error == ""
    assert "synthetic scans: no clinical result" in out
    pytest.importorskip("matplotlib")
    names = [f"one={segmented / 'segmentations.tsv'}", f"both={joined / 'segmentations.tsv'}"]
    words = ("--segmentations", names[0], "--segmentations", names[1], "--out", compared, "--figures", 1)
    out = output_of("evaluate", table, *words)
    assert "all positive" in out
    assert "too few to estimate performance" in out
    assert (compared / "report.html").is_file()
    assert set(pd.read_csv(compared / "summary.csv")["method"]) > {"one", "both", "empty"}
    assert "--overwrite" in error_of("evaluate", table, *words)


@pytest.mark.deep
@pytest.mark.slow
def test_real_scans_go_through_all_commands(run, output_of, data_dir, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("matplotlib")
    folder = data_dir / "brats2013_deepmedic"
    rows = [
        [name[-6:-2], f"{folder / name}/T1c_subtrMeanDivStd.nii.gz", f"{folder / name}/OTMultiClass.nii.gz", "1,3,4",
         f"{folder / name}/brainmask.nii.gz"]
        for name in sorted(path.name for path in folder.iterdir() if path.is_dir())
    ]  # fmt: skip
    for file, some in (("learned.tsv", rows[:2]), ("new.tsv", rows[2:])):
        lines = ["\t".join(line) for line in (["patient", "image", "label", "classes", "brain"], *some)]
        (tmp_path / file).write_text("\n".join(lines) + "\n")
    model, out, compared = tmp_path / "model.dmrifit", tmp_path / "out", tmp_path / "compared"
    said = output_of("train", tmp_path / "learned.tsv", "--out", model, *TINY, "--spacing", 4)
    assert "synthetic" not in said
    assert run("segment", model, tmp_path / "new.tsv", "--out", out)[0] == 0
    scan = nib.load(rows[2][1])
    for name in ("probability", "label"):
        image = nib.load(out / rows[2][0] / f"{name}.nii.gz")
        assert image.shape == scan.shape
        np.testing.assert_allclose(image.affine, scan.affine)
    words = ("--segmentations", f"tiny={out / 'segmentations.tsv'}", "--out", compared)
    said = output_of("evaluate", tmp_path / "new.tsv", *words)
    assert "1 patient: too few to estimate performance" in said
    page = (compared / "report.html").read_text(encoding="utf-8")
    assert "they are no performance" in page
    assert "ynthetic" not in page


SHAPE = (40, 40, 20)


@pytest.fixture
def files(tmp_path):
    """Write a synthetic scan of 2 × 2 × 4 mm with a bright vessel, and its brain."""
    places = np.indices(SHAPE) - np.array(SHAPE)[:, None, None, None] / 2
    brain = np.linalg.norm(places / np.array(SHAPE)[:, None, None, None], axis=0) < 0.4
    noise = np.random.default_rng(0).normal(0, 10, SHAPE)
    values = np.where(brain, 300 + noise, 0)
    values[18:21, 8:32, 9:11] = 700
    affine = np.diag([2.0, 2, 4, 1])
    for name, array in (("scan", values), ("mask", brain), ("short", brain[:-1])):
        nib.save(nib.Nifti1Image(array.astype(np.float32), affine), tmp_path / f"{name}.nii.gz")
    return tmp_path


def test_scans_are_prepared_with_their_brains_and_many_like_one(run, files):
    scan, mask, out, many = (files / name for name in ("scan.nii.gz", "mask.nii.gz", "prepared", "many"))
    code, said, error = run("prepare", scan, "--brain", mask, "--spacing", 2, "--out", out)
    assert code == 0, error
    assert "40 × 40 × 40 voxels of 2 mm" in said
    assert "4 mm" in error
    image, brain = (nib.load(out / f"scan{end}.nii.gz") for end in ("", "_brain"))
    assert image.header.get_zooms() == (2, 2, 2)
    assert np.median(image.get_fdata()[brain.get_fdata() > 0]) == pytest.approx(1, abs=0.01)
    (files / "scans.tsv").write_text("patient\timage\tbrain\n1\tscan.nii.gz\tmask.nii.gz\n2\tscan.nii.gz\tshort.nii.gz")
    words = ("prepare", files / "scans.tsv", "--spacing", 2, "--out", many)
    _, said, error = run(*words)
    assert "flagged: 1 of 1; failed: 1" in said
    assert "scan.nii.gz has slices of 4 mm" in error
    assert "39 × 40 × 20" in (many / "failed.tsv").read_text(encoding="utf-8")
    row = pd.read_csv(many / "cases.tsv", sep="\t").iloc[0]
    assert "4 mm" in row["notes"]
    assert ">patient<" not in (many / "index.html").read_text(encoding="utf-8")  # it would repeat the names
    assert f"1 scan failed when the folder was written: {many / 'failed.tsv'}" in run("prepare", many, "--out", files / "again")[2]
    (many / row["image"]).unlink()  # A missing file is made again.
    assert run(*words)[0] == 0
    for column, single in (("image", image), ("brain", brain)):
        np.testing.assert_array_equal(nib.load(many / row[column]).get_fdata(), single.get_fdata())


def test_a_brain_on_another_grid_is_refused_before_anything_is_written(error_of, files):
    words = ("prepare", files / "scan.nii.gz", "--brain", files / "short.nii.gz")
    assert "39 × 40 × 20" in error_of(*words, "--out", files / "prepared")
    assert not (files / "prepared").exists()
