"""What the demo leaves behind."""

import nibabel as nib
import numpy as np

import dmrifit


def check_demo(folder):
    """Look at the report, the model and the maps below build/demo of a folder."""
    demo = folder / "build" / "demo"
    assert "Synthetic data" in (demo / "study" / "report.html").read_text(encoding="utf-8")
    maps = {path.name.split("param-")[1].partition("_")[0]: path for path in (demo / "maps").glob("*param-*.nii.gz")}
    assert set(maps) == {"S0", "f", "Dv", "T2v", "Dt", "K", "T2t"}
    new = demo / "new" / "sub-newp01" / "dwi"
    mask = nib.load(new / "sub-newp01_desc-body_mask.nii.gz").get_fdata() > 0
    truth = nib.load(new / "sub-newp01_desc-truth_dwimap.nii.gz").get_fdata()[..., 4]
    predicted = nib.load(maps["Dt"]).get_fdata()
    assert np.isfinite(predicted[mask]).all()
    assert np.corrcoef(predicted[mask], truth[mask])[0, 1] > 0.5
    loaded = dmrifit.load_model(demo / "LR.dmrifit")
    assert loaded.target == dmrifit.Protocol.preset("cohort1")
