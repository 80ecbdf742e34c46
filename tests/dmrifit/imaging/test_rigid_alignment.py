"""Rigid alignment of two scans of a head."""

import nibabel as nib
import numpy as np
import pytest
from moved_heads import AFFINE, SHAPE, head_signals, moved

from dmrifit.imaging.rigid_alignment import SAME_HEAD, HeadAlignment

pytest.importorskip("SimpleITK")

def farthest(matrix, truth):
    """How far the corners of a cube of 80 mm are from where they belong."""
    corners = np.array(np.meshgrid(*[(-40.0, 40.0)] * 3)).reshape(3, -1).T
    return np.linalg.norm(corners @ (matrix - truth)[:3, :3].T + (matrix - truth)[:3, 3], axis=1).max()


def test_rigid_alignment_finds_motion_to_a_tenth_of_a_millimeter():
    signals = head_signals(0)
    later, truth = moved(signals, (12, -9, 15), (14, -11, 8))
    alignment = HeadAlignment.of(nib.Nifti1Image(signals, AFFINE), later)
    assert farthest(alignment.matrix, truth) < 0.1
    assert alignment.likeness > 0.9
    assert alignment.disagreement([[-40.0, -40, -40], [40, 40, 40]]) < 0.1
    assert set(alignment.others) == {"backward", "first half", "second half"}


@pytest.mark.slow
def test_large_turns_are_found_from_other_starts_and_other_heads_are_not_alike():
    signals = head_signals(1)
    later, truth = moved(signals, (38, 5, -42), (5, 0, -5))
    alignment = HeadAlignment.of(nib.Nifti1Image(signals, AFFINE), later)
    assert farthest(alignment.matrix, truth) < 0.1
    later, _ = moved(head_signals(3), (4, 2, -3), (3, 1, -2))
    alignment = HeadAlignment.of(nib.Nifti1Image(head_signals(2), AFFINE), later)
    assert alignment.likeness < SAME_HEAD - 0.2


def test_concordance_is_lowered_by_brighter_tissue_and_missing_where_the_second_scan_is():
    signals = head_signals(4)
    later = signals.copy()
    places = (np.indices(SHAPE) - 40) * 2.0
    lesion = np.linalg.norm(places, axis=0) < 14
    later[lesion] *= 1.6
    alignment = HeadAlignment.of(nib.Nifti1Image(signals, AFFINE), nib.Nifti1Image(later, AFFINE))
    assert farthest(alignment.matrix, np.eye(4)) < 0.1
    at = np.linalg.inv(alignment.affine) @ np.append(AFFINE[:3, :3] @ [40, 40, 40] + AFFINE[:3, 3], 1)
    window = tuple(slice(int(n) - 4, int(n) + 5) for n in np.rint(at[:3]))
    assert np.nanmedian(alignment.concordance[window]) < 0.8 < np.nanmedian(alignment.concordance)
    signals = head_signals(5)
    shifted = AFFINE.copy()
    shifted[2, 3] += 24 * 2
    cut = nib.Nifti1Image(signals[:, :, 24:], shifted)
    alignment = HeadAlignment.of(nib.Nifti1Image(signals, AFFINE), cut)
    assert farthest(alignment.matrix, np.eye(4)) < 0.1
    below = alignment.head[:, :, :20]
    assert np.isnan(alignment.concordance[:, :, :20][below]).all()
    assert np.isfinite(alignment.concordance[:, :, 40]).any()


def test_scans_without_a_head_are_refused(tmp_path):
    signals = head_signals(6)
    flat = nib.Nifti1Image(np.ones(SHAPE, np.float32), AFFINE)
    with pytest.raises(ValueError, match="shows no head: its signals are all alike"):
        HeadAlignment.of(nib.Nifti1Image(signals, AFFINE), flat)
    image = nib.Nifti1Image(signals, None)
    path = tmp_path / "nowhere.nii.gz"
    nib.save(image, path)
    with pytest.raises(ValueError, match=r"nowhere.nii.gz has neither an sform nor a qform"):
        HeadAlignment.of(nib.Nifti1Image(signals, AFFINE), path)
