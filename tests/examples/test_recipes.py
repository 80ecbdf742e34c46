"""The recipes of the documentation run as they are written, in their order, in one folder."""

import json
import shutil
from importlib.resources import files
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from worked_pages import blocks, run_blocks

from dmrifit import simulate_cohort

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "examples" / "docs" / "recipes.rst"
LEGS = ROOT / "examples" / "data" / "legs"


def write_legs(folder):
    """Write scans of the legs: all b-values, two of them, regions, and a map that another program could have made."""
    scan = nib.load(LEGS / "dwi.nii.gz").slicer[::2, ::2, 5:7]
    signals, b = np.asarray(scan.dataobj), np.loadtxt(LEGS / "dwi.bval")
    for name, chosen in (("ivim", slice(None)), ("two", [0, -1])):
        nib.save(nib.Nifti1Image(signals[..., chosen], scan.affine), folder / f"{name}_dwi.nii.gz")
        np.savetxt(folder / f"{name}_dwi.bval", b[chosen][None], fmt="%g")
    bright = signals[..., 0] > 200
    sides = np.where(np.arange(signals.shape[0]) < signals.shape[0] // 2, 1, 2)[:, None, None]
    nib.save(nib.Nifti1Image((bright * sides).astype(np.uint8), scan.affine), folder / "labels.nii.gz")
    adc = 1e-3 * bright * 1.5
    nib.save(nib.Nifti1Image(adc.astype(np.float32), scan.affine), folder / "their_adc.nii.gz")


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


@pytest.mark.slow
def test_recipes_run_and_leave_what_they_say(tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    write_legs(folder)
    write_shells(folder)
    write_echoes(folder)
    found = blocks(PAGE.read_text(encoding="utf-8"))
    table = next(code for language, code in found if language == "text" and code.startswith("image"))
    rows = ["\t".join(line.split()) for line in table.splitlines()]
    (folder / "echoes.tsv").write_text("\n".join(rows) + "\n")
    run = [(language, code) for language, code in found if language != "text"]
    printed = run_blocks(run, folder, tmp_path / "bin")
    assert len(printed) == 7
    models = {}
    for description in folder.glob("*/*_dwimap.json"):
        models.setdefault(description.parent.name, json.loads(description.read_text())["Model"]["Name"])
    assert models == {
        "adc": "adc", "adc_as_scanners_do": "adc", "kurtosis": "kurtosis", "ivim": "ivim", "ivim_in_two_steps": "ivim",
        "multi": "t2-ivim-kurtosis", "multi_of_files": "t2-ivim-kurtosis", "corrected": "kurtosis",
    }  # fmt: skip
    assert len(list(folder.glob("*/*_quicklook.html"))) == len(models)
    regions = pd.read_csv(folder / "regions.csv").set_index(["label", "map"])
    assert regions.loc[(1, "Dt"), "median"] == pytest.approx(1.5, abs=0.15)
    assert regions.loc[(2, "Dt"), "median"] == pytest.approx(1.5, abs=0.15)
    assert regions.loc[(1, "f"), "doubtful"] > 0.3
    assert "mm²/s" in printed[4]
    assert "0.0015" in printed[4]
