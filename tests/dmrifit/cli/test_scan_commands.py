"""The commands before a fit: what a scan is, and tables of scans."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from dmrifit.cohort.cohort import Cohort
from dmrifit.engine.protocol import Protocol

BODY = "derivatives/masks/sub-*/*_desc-body_mask.nii.gz"
LESION = "derivatives/masks/sub-*/*_desc-lesion_mask.nii.gz"


def test_the_table_of_a_folder_is_one_that_is_read_as_cohorts(bids, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (bids / "derivatives" / "masks" / "sub-02" / "sub-02_desc-body_mask.nii.gz").unlink()
    code, printed, err = run("table", "bids", "--mask", BODY, "--lesion", LESION, "--cohort", "A")
    assert code == 0, err
    assert "sub-02 is left out" in err
    (tmp_path / "participants.tsv").write_text(printed)
    scans = Cohort.read("participants.tsv")["A"].scans
    assert [scan.patient for scan in scans] == ["01", "03", "04"]
    several = scans[2]
    assert len(several.protocol) == 21
    assert sorted(set(several.protocol.te)) == [60, 90, 120]
    echo = nib.load(bids / "sub-04" / "dwi" / "sub-04_echo-2_dwi.nii.gz")
    np.testing.assert_array_equal(several.signal[..., 7:14], np.asarray(echo.dataobj))
    assert several.lesion.sum() < several.mask.sum()


def test_a_folder_without_subjects_is_named(error_of, write_scan, tmp_path):
    assert "no BIDS folder" in error_of("table", tmp_path, "--mask", "*")
    write_scan(tmp_path, "a", Protocol([0, 500, 1000]))
    error = error_of("fit", tmp_path, "--model", "adc", "--out", tmp_path / "maps")
    assert f"a glob in quotes ('{tmp_path}/*.nii.gz')" in error


def test_a_scan_is_described_with_the_models_it_carries(bids, output_of):
    printed = output_of("info", bids / "sub-02" / "dwi" / "sub-02_dwi.nii.gz")
    assert "grid: 6 × 5 × 4 voxels of 2 × 2 × 3 mm, 4 volumes" in printed
    assert "axes: RAS" in printed
    assert "protocol: echo time unknown: b = 0, 700, 1400, 2800 s/mm²" in printed
    assert "model: kurtosis: yes; SD of a voxel at least D 1 ± " in printed
    assert "model: ivim: no, it needs" in printed
    assert "looks wrong: nothing" in printed


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda b, image: (b / 1000, image), "these look like ms/µm²"),
        (lambda b, image: (b[:-1], image), "4 volumes, but 3 b-values"),
        (lambda b, image: (b[::-1], image), "the order of the b-values does not fit"),
        (lambda b, image: (b, -image), "are negative"),
        (lambda b, image: (b, np.minimum(image, 100)), "clipped"),
        (lambda b, image: (b, image * [1, 1, 3, 3]), "times the gain"),
    ],
)
def test_what_looks_wrong_is_said(bids, output_of, spoil, message):
    folder = bids / "sub-02" / "dwi"
    image = nib.load(folder / "sub-02_dwi.nii.gz")
    b, values = spoil(np.loadtxt(folder / "sub-02_dwi.bval"), np.asarray(image.dataobj))
    np.savetxt(folder / "sub-02_dwi.bval", b[None], fmt="%g")
    nib.save(nib.Nifti1Image(values.astype(np.float32), image.affine), folder / "sub-02_dwi.nii.gz")
    printed = output_of("info", folder / "sub-02_dwi.nii.gz")
    doubts = [line for line in printed.splitlines() if line.startswith("looks wrong")]
    assert any(message in line for line in doubts), printed
    assert pd.Series(doubts).str.contains("nothing").sum() == 0
