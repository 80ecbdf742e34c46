"""Implants change only what their label says, by as much as they say, in any unit."""

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from metastasis import implant_lesions
from metastasis.simulate.enhancement import MASS
from metastasis.simulate.implants import (
    CORE,
    ENHANCING,
    SURROUNDINGS,
    draw_implants,
    implanted_copies,
    phantom_scans,
    read_negative,
)


def brain_scan(shape=(64, 60, 56), unit=100.0, seed=0):
    """Make a ball of even tissue with noise, in a field that is brighter on one side."""
    grid = np.stack(np.indices(shape), axis=-1)
    brain = np.linalg.norm(grid - np.array(shape) / 2, axis=-1) < 26
    noise = np.random.default_rng(seed).normal(1, 0.02, shape)
    field = np.linspace(0.7, 1.3, shape[0])[:, None, None]
    return (unit * field * noise * brain).astype(np.float32), brain


@pytest.fixture(scope="module")
def scan():
    return brain_scan()


def test_implants_change_only_what_is_labeled_with_brighter_walls_and_a_number_each(scan):
    implants = draw_implants(*scan, 6, small=0.4, random_state=3)
    volume, brain = scan
    is_same = implants.volume == volume
    assert is_same[implants.label == 0].all()
    assert not is_same[implants.label == ENHANCING].any()
    assert (implants.label[~brain] == 0).all()
    assert {ENHANCING, CORE, SURROUNDINGS} <= set(np.unique(implants.label))
    volume, _ = scan
    assert ((implants.numbers > 0) == (implants.label == ENHANCING)).all()
    for number, nodule in enumerate(implants.nodules, start=1):
        own = implants.numbers == number
        gain = np.median(implants.volume[own] / volume[own])
        # White matter is a tenth above the level of this tissue; blurred edges are less bright.
        assert 1.02 < gain < 1.1 * (1 + nodule.contrast) + 0.1, (number, nodule.kind)


def test_masses_are_solid_and_patchy_and_bright_ones_beyond_what_is_evaluated(scan):
    volume, _ = scan
    implants = draw_implants(*scan, 12, small=0.0, masses=1.0, bright=1.0, random_state=3)
    assert {nodule.kind for nodule in implants.nodules} == {MASS}
    assert min(nodule.contrast for nodule in implants.nodules) > 0.9
    assert (implants.volume == volume)[implants.label == 0].all()
    largest = int(np.argmax([nodule.radius for nodule in implants.nodules])) + 1
    own = (implants.numbers == largest) & (implants.label == ENHANCING)
    gains = implants.volume[own] / volume[own]
    assert np.median(gains) > 1.8
    assert gains.std() > 0.1


def test_unit_and_seed(scan):
    volume, brain = scan
    implanted, label = implant_lesions(volume, brain, 3, random_state=5)
    scaled, same_label = implant_lesions(volume * 7, brain, 3, random_state=5)
    assert (label == same_label).all()
    np.testing.assert_allclose(scaled, implanted * 7, rtol=1e-4)
    _, other = implant_lesions(volume, brain, 3, random_state=6)
    assert (label != other).any()
    nothing, empty = implant_lesions(volume, brain, 0, random_state=5)
    assert (nothing == volume).all()
    assert not empty.any()


def test_contrast_follows_the_local_level(scan):
    volume, brain = scan
    doubled = draw_implants(volume, brain, 6, small=0.4, random_state=3)
    wall = doubled.label == ENHANCING
    sides = [wall & (np.indices(wall.shape)[0] < 32), wall & (np.indices(wall.shape)[0] >= 32)]
    dark, bright = (doubled.volume[side].mean() for side in sides if side.any())
    assert bright > dark


@pytest.mark.parametrize("seed", [1, 3])
def test_implants_do_not_touch(seed):
    # Placed by their mean radii, 4 and 2 of them touched another one.
    implants = draw_implants(*brain_scan((56, 56, 56)), 12, small=0.3, random_state=seed)
    assert len(implants.nodules) >= 8
    for number in range(1, len(implants.nodules) + 1):
        own = implants.numbers == number
        assert own.any()
        around = binary_dilation(own, np.ones((3, 3, 3)))
        assert set(np.unique(implants.numbers[around])) == {0, number}


def test_negative_is_read_in_ras_order_and_cut_to_its_brain(tmp_path):
    values = np.zeros((50, 50, 50), np.float32)
    values[5:20, 14:26, 20:30] = 100
    values[5] = values[5] * 2
    nib.save(nib.Nifti1Image(values, np.diag([-1.0, 1, 1, 1])), tmp_path / "t1.nii.gz")
    volume, brain = read_negative(tmp_path / "t1.nii.gz")
    assert brain.sum() == 15 * 12 * 10
    assert volume.shape == (15 + 12 + 5, 12 + 24, 10 + 24)
    # The first plane of a file from right to left is the last one in RAS order.
    assert (volume[brain.any(axis=(1, 2))][-1].max(), volume.min()) == (200, 0)
    nib.save(nib.Nifti1Image(0 * values, np.eye(4)), tmp_path / "empty.nii.gz")
    with pytest.raises(ValueError, match=r"empty\.nii\.gz holds zeros alone"):
        read_negative(tmp_path / "empty.nii.gz")


def test_copies_differ_and_hold_implants():
    grid = np.stack(np.indices((48, 48, 44)), axis=-1)
    brain = np.linalg.norm(grid - 23, axis=-1) < 19
    volume = (np.random.default_rng(0).normal(100, 2, brain.shape) * brain).astype(np.float32)
    first, second = implanted_copies("one", volume, brain, 2, n_lesions=3, random_state=0)
    assert (first.volume != second.volume).any()
    for scan in (first, second):
        assert (scan.label == 1).any()
        assert (scan.label[~scan.brain] == 0).all()
        assert scan.implants.numbers.max() <= 3


@pytest.mark.slow
def test_phantoms_mark_cores():
    (scan,) = phantom_scans(1, random_state=4, shape=(80, 88, 80))
    assert set(np.unique(scan.label)) <= {0, 1, 2}
    assert (scan.label == 1).any()
    assert (scan.volume[~scan.brain] == 0).all()
