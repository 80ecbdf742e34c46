"""A BIDS folder of synthetic scans, with masks, as a user has them."""

import json

import nibabel as nib
import numpy as np
import pytest

from dmrifit.engine.models import MODELS
from dmrifit.engine.protocol import Protocol

GRID = (6, 5, 4)
AFFINE = np.diag([2.0, 2, 3, 1])


def _write_scan(folder, name, protocol, *, model="adc", seed=0, sidecar=True):
    """Write a synthetic scan of tissue with little noise, as files that lie beside each other."""
    rng = np.random.default_rng(seed)
    tissue = {"S0": 1000.0, "ADC": 1.2, "D": 1.2, "K": 0.8, "f": 0.15, "Dv": 20.0, "Dt": 1.2, "T2v": 150.0, "T2t": 80.0}
    truth = np.array([tissue[name] for name in MODELS[model].names])
    signals = MODELS[model].signal(np.tile(truth, (np.prod(GRID), 1)), protocol)
    signals += rng.normal(0, 2, signals.shape)
    folder.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(signals.reshape(*GRID, -1).astype(np.float32), AFFINE)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, folder / f"{name}.nii.gz")
    np.savetxt(folder / f"{name}.bval", protocol.b[None], fmt="%g")
    if protocol.directions is not None:
        np.savetxt(folder / f"{name}.bvec", protocol.directions.T, fmt="%.6f")
    if protocol.te is not None and sidecar:
        (folder / f"{name}.json").write_text(json.dumps({"EchoTime": protocol.te[0] / 1000}))
    return dict(zip(MODELS[model].names, truth, strict=True))


def _write_mask(path, first=1):
    """Write a mask without the first slices along x."""
    path.parent.mkdir(parents=True, exist_ok=True)
    inside = np.ones(GRID, np.uint8)
    inside[:first] = 0
    nib.save(nib.Nifti1Image(inside, AFFINE), path)


@pytest.fixture(scope="session")
def write_scan():
    """Give the function that writes a synthetic scan."""
    return _write_scan


@pytest.fixture
def bids(tmp_path):
    """Four subjects: two plain, one with a session, one with three echo times."""
    root = tmp_path / "bids"
    protocol = Protocol([0, 500, 1000])
    _write_scan(root / "sub-01" / "dwi", "sub-01_dwi", protocol)
    _write_scan(root / "sub-02" / "dwi", "sub-02_dwi", Protocol([0, 700, 1400, 2800]), model="kurtosis")
    _write_scan(root / "sub-03" / "ses-a" / "dwi", "sub-03_ses-a_dwi", protocol, seed=1)
    for echo, te in enumerate((60, 90, 120), start=1):
        name = f"sub-04_echo-{echo}_dwi"
        echo_protocol = Protocol([0, 50, 100, 400, 900, 1200, 1600], te)
        _write_scan(root / "sub-04" / "dwi", name, echo_protocol, model="t2-ivim-kurtosis", seed=echo)
    for name in ("sub-01", "sub-02", "sub-03_ses-a", "sub-04"):
        subject = name.partition("_")[0]
        for kind, first in (("body", 1), ("lesion", 4)):
            _write_mask(root / "derivatives" / "masks" / subject / f"{name}_desc-{kind}_mask.nii.gz", first)
    (root / "dataset_description.json").write_text('{"Name": "synthetic", "BIDSVersion": "1.10.0"}')
    return root
