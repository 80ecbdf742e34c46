"""The commands run after each other, go on where they stopped, and name what is wrong in one line."""

import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from anomaly.scans.cases import read_cases
from dmrifit.model_files.model_file import load_model
from dmrifit.predict.conformal import predictor_lines


def test_series_are_looked_at_and_compared(run, output_of, cases, model, tmp_path):
    stored = load_model(model)
    assert predictor_lines(stored, model)[-1] == "trained on synthetic data: not for clinical use"
    found, well, compared = (tmp_path / name for name in ("found", "well", "compared"))
    out = output_of("detect", model, cases / "gliomas.tsv", "--out", found, "--no-figure")
    assert out.index("2 scans") < out.index("synthetic scans: no clinical result")
    table = pd.read_csv(found / "detections.tsv", sep="\t")
    lesions = pd.read_csv(found / "lesions.csv")
    assert table["n_lesions"].sum() == len(lesions)
    for row in table.itertuples():
        content = json.loads((found / row.name / "detection.json").read_text())
        score, binary, opened = (nib.load(found / getattr(row, key)) for key in ("map", "binary", "opened"))
        grid = nib.load(cases / row.name / f"{row.name}_dwi.nii.gz")
        tissue = nib.load(cases / row.name / f"{row.name}_tissue.nii.gz").get_fdata()
        for image in (score, binary, opened):
            assert image.shape == grid.shape[:3]
            np.testing.assert_allclose(image.affine, grid.affine)
        above = (score.get_fdata() > stored.detector_.threshold_.threshold_) & (tissue > 0) & (tissue != 3)
        np.testing.assert_array_equal(binary.get_fdata() > 0, above)
        assert row.threshold == pytest.approx(stored.detector_.threshold_.threshold_)
        assert len(content["lesions"]) == content["n_lesions"] == row.n_lesions
        assert content["whole_scan"]["bulk"].keys() >= {"left_median", "right_quantile_75"}
        listed = pd.read_csv(found / row.name / "lesions.csv")
        assert listed["n_voxels"].sum() == opened.get_fdata().sum()

    output_of("detect", model, cases / "healthy.tsv", "--out", well, "--no-figure")
    pytest.importorskip("matplotlib")
    words = ("evaluate", cases / "gliomas.tsv", "--detections", f"z={found / 'detections.tsv'}", "--out", compared)
    out = output_of(*words, "--figures", 1)
    assert "synthetic scans: no clinical result" in out
    assert (max(map(len, out[:out.index("means and SD")].splitlines())) <= 100, "healthy:" in out) == (True, False)
    assert out.index("z, stored") < out.index('(such as "stored") scores are 0 or 1, and the AUC')
    assert f"by all rules: {compared / 'summary.csv'}" in out
    # Rules that know the lesions are in the table, not among what is printed.
    assert "Youden" not in out
    rules = pd.read_csv(compared / "thresholds.csv").groupby("method")["rule"].unique().map(set)
    assert rules["z, stored"] == {"as given"}
    assert {"Otsu", "best Dice"} <= rules["z"]
    scans = pd.read_csv(compared / "scans.csv").query("method == 'z, stored'").set_index("name")
    for case in read_cases(cases / "gliomas.tsv"):
        binary = nib.load(found / case.name / "binary.nii.gz").get_fdata() > 0
        lesion = case.lesion & case.scored
        dice = 2 * (binary & lesion).sum() / (binary.sum() + lesion.sum())
        assert scans.loc[case.name, "dice"] == pytest.approx(dice)
    assert run(*words)[0] == 2
    more = ("--healthy", cases / "healthy.tsv", "--healthy-detections", f"z={well}", "--overwrite")
    assert "healthy: nothing marked, opened, %" in output_of(*words, *more)
    assert len(pd.read_csv(compared / "healthy.csv"))
    assert "--healthy needs --healthy-detections of each method, no other: z" in run(*words, *more[:2])[2]
    assert "has no synthetic-glioma-001" in run(*words[:3], f"z={well / 'detections.tsv'}", *words[4:])[2]
    # Lesions are none to learn from.
    assert "scans with a lesion: " in run("train", cases / "gliomas.tsv", "--out", tmp_path / "x.dmrifit")[2]
    assert not (tmp_path / "x.dmrifit").exists()
