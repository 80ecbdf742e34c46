"""The scan that comes with the examples is the part of the published one that its README says."""

from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from dmrifit import Protocol, average_directions

LEGS = Path(__file__).parents[2] / "examples" / "data" / "legs"
PART = (slice(28, 132), slice(46, 102), slice(6, 18))


def test_the_legs_are_a_part_of_the_published_scan(data_dir):
    original = nib.load(data_dir / "leg_ivim" / "dwi.nii.gz").slicer[PART]
    signals = np.asarray(original.dataobj)
    protocol = Protocol.read(data_dir / "leg_ivim" / "dwi.bval", bvec=data_dir / "leg_ivim" / "dwi.bvec")
    bright = signals[..., 0] > 0.15 * np.percentile(signals[..., 0], 99)
    slices = [ndimage.binary_fill_holes(ndimage.binary_opening(bright[..., k])) for k in range(bright.shape[2])]
    legs = np.stack(slices, axis=-1)
    averaged, contrasts = average_directions(signals[legs], protocol, tolerance=0.5)
    image = nib.load(LEGS / "dwi.nii.gz")
    np.testing.assert_allclose(image.affine, original.affine)
    np.testing.assert_array_equal(Protocol.read(LEGS / "dwi.bval").b, contrasts.b)
    stored = np.asarray(image.dataobj)
    assert not stored[~legs].any()
    np.testing.assert_allclose(stored[legs], np.maximum(averaged / 500, 1), atol=0.51)


def test_the_license_and_the_origin_stand_beside_the_scan():
    assert "Martijn Froeling" in (LEGS / "LICENSE.txt").read_text(encoding="utf-8")
    assert "QMRITools" in (LEGS / "README.md").read_text(encoding="utf-8")
