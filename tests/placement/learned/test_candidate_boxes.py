"""Candidate boxes: what is excluded is no tumor, cubes keep constraints, moved boxes touch nothing."""

import numpy as np
import pytest

from placement import Scene, Voxel, VoxelOptimizer, tumor_fraction
from placement.box import overlap
from placement.learned.features import (
    FreeTumorSearch,
    Surroundings,
    _sides,
    candidate_boxes,
    moved_off,
)

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
VOLUMES = np.array([8.0, 11.0, 14.0, 20.0])


def cored(tolerance=0.0):
    """Make a cube of 48 mm with a core of 16 mm that is excluded."""
    tumor = np.zeros((44, 44, 44), bool)
    tumor[10:34, 10:34, 10:34] = True
    core = np.zeros_like(tumor)
    core[18:26, 18:26, 18:26] = True
    return Scene(tumor, AFFINE, exclude={"core": core}, exclude_tolerance=tolerance)


def found(scene, **options):
    search = FreeTumorSearch(VoxelOptimizer(random_state=0, **options)._wishes(), scene)
    return search, candidate_boxes(search, Surroundings(scene), VOLUMES, 15, 1)


@pytest.mark.parametrize("tolerance", [0.0, 0.3])
def test_what_is_excluded_is_no_tumor_of_the_search(tolerance):
    search = FreeTumorSearch(VoxelOptimizer(random_state=0)._wishes(), cored(tolerance))
    middle = Voxel((43, 43, 43), (16, 16, 16))
    box = np.array([[middle.center, middle.size, *middle.rotation]])
    # The core ends at the borders of image voxels.
    assert overlap.fractions(box, search.whole, 0.0, 1)[0] == pytest.approx(0, abs=1e-6)
    assert tumor_fraction(middle, search.scene) == pytest.approx(1)
    assert overlap.fractions(box, search.whole, 8.0, 1)[0] == pytest.approx(7 / 8, abs=1e-6)


def test_boxes_of_the_objective_come_first_then_cubes_then_adapted_ones():
    solid = np.pad(np.ones((24, 24, 24)), 10)
    _, boxes = found(Scene(solid, AFFINE))
    n_places = 4 + 1
    n_found = len(boxes) - n_places * (4 + 3)
    assert 1 < n_found <= 15
    cubes, adapted = np.split(boxes[n_found:], [n_places * 4])
    volumes = cubes[:, 1].prod(axis=1) / 1e3
    np.testing.assert_allclose(volumes, np.tile(VOLUMES, n_places))
    np.testing.assert_array_equal(np.ptp(cubes[:, 1], axis=1), 0)
    np.testing.assert_allclose(adapted[:, 2:], np.broadcast_to(np.eye(3), (len(adapted), 3, 3)))
    sought = np.repeat(VOLUMES[:3], n_places)
    assert np.abs(adapted[:, 1].prod(axis=1) / 1e3 / sought - 1).max() < 0.1


def test_boxes_of_a_volume_are_stretched_to_the_tumor():
    tumor = np.zeros((50, 40, 40), bool)
    tumor[5:45, 15:24, 15:24] = True
    _, boxes = found(Scene(tumor, AFFINE))
    adapted = boxes[-15:]
    assert (adapted[:, 1, 0] > 1.15 * adapted[:, 1, 1:].max(axis=1)).all()
    assert (adapted[:, 1, 1:] < 20).all()


@pytest.mark.parametrize("max_rotations", [0, 3])
def test_boxes_that_are_moved_touch_nothing_excluded(max_rotations):
    search, _ = found(cored(), max_rotations=max_rotations)
    touching = Voxel((36, 43, 43), (20, 20, 20))
    free = Voxel((27, 43, 43), (14, 22, 22))
    assert search.touched(touching)
    assert not search.touched(free)
    boxes = np.array([[box.center, box.size, *box.rotation] for box in (touching, free)])
    moved = moved_off(boxes, search, VOLUMES)
    assert len(moved) == 1
    voxel = search.voxel(moved[0])
    assert not search.touched(voxel)
    assert 6 <= voxel.volume < 20
    assert tumor_fraction(voxel, search.scene) > 0.9
    assert len(moved_off(boxes[1:], search, VOLUMES)) == 0


def test_sides_of_cubes_keep_the_constraints():
    wishes = VoxelOptimizer(min_volume=8.0)._wishes()
    np.testing.assert_allclose(_sides(27.0, wishes), 30)
    np.testing.assert_allclose(_sides(1.0, wishes), 20)
    flat = VoxelOptimizer(size_range=((10, 60), (10, 60), (10, 15)))._wishes()
    np.testing.assert_allclose(_sides(15.0, flat), [np.sqrt(1000), np.sqrt(1000), 15])
