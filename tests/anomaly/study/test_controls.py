"""Control maps: all voxels, none, the brain, lesions of other patients, and brightness."""

import numpy as np
import pytest

from anomaly.scans.cases import Case
from anomaly.study.controls import BRIGHTNESS, CONTROLS, control_maps

SHAPE = (2, 3, 2)
BORROWED = "another patient's lesion"


def scan(patient, voxel=None, *, shape=SHAPE, fluid=()):
    """Give a brain but for its first voxel; a lesion is one voxel, by its number."""
    brain = np.ones(shape, dtype=bool)
    brain.flat[0] = False
    lesion = None
    if voxel is not None:
        lesion = np.zeros(shape, dtype=bool)
        lesion.flat[voxel] = True
    tissue = np.where(brain, 1, 0).astype(np.uint8)
    tissue.flat[list(fluid)] = 3
    signal = np.linspace(0, 1, 2 * brain.size, dtype=np.float32).reshape(*shape, 2)
    return Case(patient, signal, brain, tissue=tissue, lesion=lesion)


def voxel_numbers(masks):
    return [np.flatnonzero(mask).tolist() for mask in masks]


def test_every_control_has_a_volume_for_each_scan_on_its_grid():
    cases = [scan("a", 3), scan("b", shape=(3, 3, 2))]
    maps = control_maps(cases)
    assert tuple(maps) == CONTROLS
    for name, volumes in maps.items():
        assert [volume.shape for volume in volumes] == [SHAPE, (3, 3, 2)]
        kind = np.float32 if name == BRIGHTNESS else np.bool_
        assert all(volume.dtype == kind for volume in volumes), name


def test_the_masks_of_a_scan_with_fluid_by_hand():
    maps = control_maps([scan("a", 3, fluid=[4, 5])])
    # Fluid is brain, but is not scored.
    assert voxel_numbers(maps["all positive"]) == [[1, 2, 3, 6, 7, 8, 9, 10, 11]]
    assert voxel_numbers(maps["brain mask"]) == [list(range(1, 12))]
    assert voxel_numbers(maps["empty"]) == [[]]


def test_brightness_is_one_minus_the_mean_over_directions_in_the_brain():
    (brightness,) = control_maps([scan("a")])[BRIGHTNESS]
    # Directions of voxel i have the signals 2 i / 23 and (2 i + 1) / 23.
    expected = 1 - (2 * np.arange(12) + 0.5) / 23
    expected[0] = 0
    np.testing.assert_allclose(brightness.ravel(), expected, atol=1e-6)


def test_each_scan_is_given_the_next_lesion_of_another_patient():
    cases = [scan("a", 1), scan("a", 2), scan("b"), scan("b", 4), scan("c", 5)]
    # The first skips its own second scan and the healthy one; the last goes on at the front.
    assert voxel_numbers(control_maps(cases)[BORROWED]) == [[4], [4], [5], [5], [1]]


def test_lesions_on_another_grid_are_passed_over():
    large = (3, 3, 2)
    cases = [scan("a", 1), scan("b", 7, shape=large), scan("c", 3), scan("d", shape=large)]
    assert voxel_numbers(control_maps(cases)[BORROWED]) == [[3], [], [1], [7]]


def test_healthy_scans_are_given_lesions_of_the_cases_that_are_named():
    healthy = [scan("h"), scan("a"), scan("i")]
    cases = [scan("a", 1), scan("b", 2)]
    # The first begins after the first case, the second has the same patient as it.
    assert voxel_numbers(control_maps(healthy, lesions_of=cases)[BORROWED]) == [[2], [2], [2]]
    cases.append(scan("c", 3))
    assert voxel_numbers(control_maps(healthy, lesions_of=cases)[BORROWED]) == [[2], [3], [1]]


@pytest.mark.parametrize(
    "cases", [[scan("a", 1)], [scan("a", 1), scan("a", 2)], [scan("a"), scan("b")]]
)
def test_without_lesions_of_other_patients_nothing_is_borrowed(cases):
    assert not np.any(control_maps(cases)[BORROWED])
    assert not np.any(control_maps(cases[:1], lesions_of=[])[BORROWED])
