"""Implants change only what their label says, by as much as they say, in any unit."""

import numpy as np
import pytest

from metastasis import implant_lesions
from metastasis.simulate.implants import CORE, ENHANCING, SURROUNDINGS, draw_implants


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


@pytest.fixture(scope="module")
def implants(scan):
    return draw_implants(*scan, 6, small=0.4, random_state=3)


def test_implants_change_only_what_is_labelled(scan, implants):
    volume, brain = scan
    is_same = implants.volume == volume
    assert is_same[implants.label == 0].all()
    assert not is_same[implants.label == ENHANCING].any()
    assert (implants.label[~brain] == 0).all()
    assert {ENHANCING, CORE, SURROUNDINGS} <= set(np.unique(implants.label))


def test_walls_are_brighter_and_each_implant_has_its_number(scan, implants):
    volume, _ = scan
    assert ((implants.numbers > 0) == (implants.label == ENHANCING)).all()
    for number, nodule in enumerate(implants.nodules, start=1):
        own = implants.numbers == number
        gain = np.median(implants.volume[own] / volume[own])
        # White matter is a tenth above the level of this tissue; blurred edges are less bright.
        assert 1.02 < gain < 1.1 * (1 + nodule.contrast) + 0.1, (number, nodule.kind)


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v, b: (v, b[:-1]), "a volume of shape"),
        (lambda v, b: (np.where(b, np.nan, v), b), "non-finite"),
        (lambda v, b: (v, np.zeros_like(b)), "no voxel is inside the mask"),
    ],
)
def test_impossible_scans_are_refused(scan, change, message):
    with pytest.raises(ValueError, match=message):
        implant_lesions(*change(*scan), 2, random_state=0)
