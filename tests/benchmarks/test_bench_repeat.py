"""The benchmark of repeated boxes: its simulated scans, and its table."""

import nibabel as nib
import numpy as np
from moved_heads import AFFINE, head_signals

from benchmarks.placement._repeat_scans import Head, draw_box, visit, with_cavity, with_shift


def a_head():
    return Head("synthetic", head_signals(0), AFFINE)


def test_scans_of_a_moved_head_show_the_moved_box():
    rng = np.random.default_rng(0)
    head = a_head()
    later = visit(head, rng, noise=0.0, cut=None)
    voxel = draw_box(head, rng, later)
    assert later.shows(voxel)
    center = np.linalg.inv(later.image.affine) @ np.append(voxel.transform(later.motion).center, 1)
    before = np.linalg.inv(AFFINE) @ np.append(voxel.center, 1)
    window = tuple(slice(int(n) - 1, int(n) + 2) for n in np.rint(center[:3]))
    old_window = tuple(slice(int(n), int(n) + 1) for n in np.rint(before[:3]))
    moved = later.image.get_fdata()[window].mean()
    assert abs(moved / head.values[old_window].mean() - 1) < 0.5
    assert isinstance(later.image, nib.Nifti1Image)


def test_cavities_have_their_volume_and_shifts_their_length():
    head, rng = a_head(), np.random.default_rng(1)
    hollow = with_cavity(head, np.zeros(3), 30.0, rng)
    darker = head.values - hollow.values > 0.2 * head.bright
    assert 25 < darker.sum() * 8e-3 < 38
    _, pushed = with_shift(head, np.array([20.0, 0, 0]), 5.0)
    assert 4.5 < pushed.max() <= 5.0
