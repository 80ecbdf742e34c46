"""The recipes of the documentation run as they are written, in their order, in one folder."""

import json
import runpy
import shutil
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from worked_pages import blocks, run_blocks

from dmrifit import MODELS, Protocol, simulate_cohort

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "examples" / "docs" / "recipes.rst"
B_VALUES = np.array([0, 10, 25, 50, 100, 200, 400, 600])


def write_tissue(folder):
    """Write synthetic scans: all b-values, two of them, regions, and a map that another program could have made."""
    rng, grid, affine = np.random.default_rng(0), (16, 12, 2), np.diag([3.0, 3, 6, 1])
    truth = np.tile([300.0, 0.04, 30.0, 1.5], (np.prod(grid), 1))
    clean = MODELS["ivim"].signal(truth, Protocol(B_VALUES))
    signals = np.hypot(clean + rng.normal(0, 8, clean.shape), rng.normal(0, 8, clean.shape)).reshape(*grid, -1)
    for name, chosen in (("ivim", slice(None)), ("two", [0, -1])):
        image = nib.Nifti1Image(signals[..., chosen].astype(np.float32), affine)
        nib.save(image, folder / f"{name}_dwi.nii.gz")
        np.savetxt(folder / f"{name}_dwi.bval", B_VALUES[chosen][None], fmt="%g")
    sides = np.where(np.arange(grid[0]) < grid[0] // 2, 1, 2)[:, None, None] * np.ones(grid)
    nib.save(nib.Nifti1Image(sides.astype(np.uint8), affine), folder / "labels.nii.gz")
    nib.save(nib.Nifti1Image(np.full(grid, 1.5e-3, np.float32), affine), folder / "their_adc.nii.gz")


def write_shells(folder):
    """Write the scan with directions that dipy carries, three times: as measured, and as another program left it."""
    packaged = files("dipy") / "data" / "files"
    for name in ("shells", "sub-01", "corrected"):
        for ending in ("nii.gz", "bval", "bvec"):
            shutil.copy(packaged / f"small_101D.{ending}", folder / f"{name}_dwi.{ending}")


def write_echoes(folder):
    """Write a synthetic scan with several echo times, whole and as one image for each of two of them."""
    cohort = simulate_cohort("cohort1", 1, shape=(16, 16, 3), random_state=0)
    (scan,) = cohort.scans
    signals, protocol = scan.signal, scan.protocol
    nib.save(nib.Nifti1Image(signals, scan.affine), folder / "multi_dwi.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(scan.mask).astype(np.uint8), scan.affine), folder / "mask.nii.gz")
    np.savetxt(folder / "multi_dwi.bval", protocol.b[None], fmt="%g")
    np.savetxt(folder / "multi_dwi.te", protocol.te[None], fmt="%g")
    for number, te in enumerate(np.unique(protocol.te)[:2], 1):
        rows = protocol.te == te
        nib.save(nib.Nifti1Image(signals[..., rows], scan.affine), folder / f"te{number}_dwi.nii.gz")
        np.savetxt(folder / f"te{number}_dwi.bval", protocol.b[rows][None], fmt="%g")


def write_bids(folder):
    """Write two subjects of a BIDS folder, the second one with a mask."""
    for subject, scan in (("sub-01", "ivim"), ("sub-02", "two")):
        dwi = folder / "bids" / subject / "dwi"
        dwi.mkdir(parents=True)
        for ending in ("nii.gz", "bval"):
            shutil.copy(folder / f"{scan}_dwi.{ending}", dwi / f"{subject}_dwi.{ending}")
    masks = folder / "bids" / "masks" / "sub-02"
    masks.mkdir(parents=True)
    labels = nib.load(folder / "labels.nii.gz")
    body = (np.asarray(labels.dataobj) > 0).astype(np.uint8)
    nib.save(nib.Nifti1Image(body, labels.affine), masks / "sub-02_mask.nii.gz")


def write_dicom(folder):
    """Write a synthetic series of a Siemens scanner, where there is dcm2niix; say whether."""
    if find_spec("dcm2niix") is None:
        return False
    writer = runpy.run_path(str(ROOT / "tests" / "dmrifit" / "io" / "test_dicom_import.py"))
    writer["write_series"](folder / "dicom" / "series", writer["SIEMENS"], [0, 500, 1000])
    return True


@pytest.mark.slow
def test_recipes_run_and_leave_what_they_say(tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    write_tissue(folder)
    write_shells(folder)
    write_echoes(folder)
    write_bids(folder)
    has_dicom = write_dicom(folder)
    found = blocks(PAGE.read_text(encoding="utf-8"))
    table = next(code for language, code in found if language == "text" and code.startswith("image"))
    rows = ["\t".join(line.split()) for line in table.splitlines()]
    (folder / "echoes.tsv").write_text("\n".join(rows) + "\n")
    run = [
        (language, code)
        for language, code in found
        if language != "text" and (has_dicom or not code.startswith("dmrifit import"))
    ]
    printed = run_blocks(run, folder, tmp_path / "bin")
    assert len(printed) == 8 + has_dicom
    models = {}
    for description in folder.glob("*/*_dwimap.json"):
        models.setdefault(description.parent.name, json.loads(description.read_text())["Model"]["Name"])
    assert models == {
        "adc": "adc", "adc_as_scanners_do": "adc", "kurtosis": "kurtosis", "ivim": "ivim", "relaxation": "t2",
        "multi": "t2-ivim-kurtosis", "multi_of_files": "t2-ivim-kurtosis", "corrected": "kurtosis",
        "by_te": "ivim-by-te",
    }  # fmt: skip
    assert len(list(folder.glob("*/*_quicklook.html"))) == len(models)
    assert (folder / "derivatives" / "index.html").is_file()
    assert len(list(folder.glob("derivatives/sub-*/dwi/*_param-S0_dwimap.nii.gz"))) == 2
    assert (folder / "imported_maps" / "index.html").is_file() == has_dicom
    assert pd.read_csv(folder / "participants.tsv", sep="\t", dtype=str)["patient"].tolist() == ["02"]
    regions = pd.read_csv(folder / "regions.csv").set_index(["label", "map"])
    assert regions.loc[(1, "Dt"), "median"] == pytest.approx(1.5, abs=0.15)
    assert regions.loc[(2, "Dt"), "median"] == pytest.approx(1.5, abs=0.15)
    assert regions.loc[(1, "f"), "doubtful"] > 0.3
    theirs = pd.read_csv(folder / "theirs.csv").set_index("label")
    assert theirs.loc[1, "unit"] == "mm²/s"
    assert theirs.loc[1, "median"] == pytest.approx(0.0015, abs=0.00015)
    assert (folder / "theirs.html").is_file()
