"""Depths of a tumor, candidate boxes, and features of boxes, against what geometry says."""

import numpy as np
import pytest

from placement import PlacementObjective, Scene, Voxel, VoxelOptimizer, tumor_fraction
from placement.box import overlap
from placement.learned.features import (
    FEATURES,
    FreeTumorSearch,
    Surroundings,
    _sides,
    candidate_boxes,
    describe_boxes,
    moved_off,
)


def free_search(scene, **options):
    return FreeTumorSearch(VoxelOptimizer(random_state=0, **options)._wishes(), scene)


def as_boxes(*voxels):
    return np.array([[voxel.center, voxel.size, *voxel.rotation] for voxel in voxels])


def described(scene, voxels, n_compared=None):
    table = describe_boxes(Surroundings(scene), as_boxes(*voxels), free_search(scene), n_compared)
    return dict(zip(FEATURES, table.T, strict=True))


def test_depths_of_a_ball_are_those_of_the_ball_on_any_grid():
    radius = 20.0
    for affine in (np.diag([2.0, 2.0, 2.0, 1.0]), np.diag([-1.0, 1.5, 4.0, 1.0])):
        sheared = affine.copy()
        sheared[0, 2] = 0.5
        sheared[:3, 3] = (5, -7, 11)
        shape = np.ceil(90 / np.abs(np.diag(affine)[:3])).astype(int)
        middle = sheared[:3, :3] @ (shape / 2) + sheared[:3, 3]
        places = np.moveaxis(np.indices(shape), 0, -1) @ sheared[:3, :3].T + sheared[:3, 3]
        scene = Scene(np.linalg.norm(places - middle, axis=-1) < radius, sheared)
        found = Surroundings(scene)
        assert np.linalg.norm(found.thickest - middle) < 3
        assert abs(found.depth.max() - radius) < 3
        points = middle + np.array([[0, 0, 0], [10, 0, 0], [0, 14, 0], [0, 0, 30], [500, 0, 0]])
        np.testing.assert_allclose(found.at(points), [20, 10, 6, 0, 0], atol=3.5)
        np.testing.assert_array_equal(found.at(points[3:]), 0)


def test_middles_and_distances_are_those_to_the_thickest_place():
    x, y, z = np.indices((64, 36, 36)) * 2.0
    along = (x - 28) / 70
    cone = (along > 0) & (along < 1) & ((y - 36) ** 2 + (z - 36) ** 2 < (12 + 6 * along) ** 2)
    scene = Scene(cone, np.diag([2.0, 2.0, 2.0, 1.0]))
    middles = Surroundings(scene).middles()
    np.testing.assert_allclose(middles[0], scene.centroid, atol=1)
    assert (np.diff(middles[:, 0]) > 0).all()
    np.testing.assert_allclose(middles[:, 1:], 36, atol=1)
    tumor = np.zeros((60, 40, 40), bool)
    tumor[5:55, 16:24, 16:24] = True
    tumor[36:52, 12:28, 12:28] = True
    scene = Scene(tumor, np.diag([2.0, 2.0, 2.0, 1.0]))
    features = described(scene, [Voxel((87, 39, 39), (22, 22, 22)), Voxel((20, 39, 39), (20, 16, 16))])
    np.testing.assert_allclose(features["to_thickest"], [0, 67], atol=2)
    assert abs(features["to_centroid"][0] - features["to_thickest"][0]) > 5


def test_features_of_known_boxes_are_right():
    tumor = np.zeros((40, 40, 40), bool)
    tumor[5:25, 5:25, 5:25] = True
    far = np.zeros_like(tumor)
    far[:, :, :10] = True
    scene = Scene(tumor, np.diag([2.0, 2.0, 2.0, 1.0]), exclude={"floor": far})
    boxes = [Voxel((29, 29, 29), (20, 20, 20)), Voxel((29, 29, 24), (10, 20, 40), (0, 0, 30))]
    found = described(scene, boxes)
    # What is excluded is no tumor.
    np.testing.assert_allclose(found["fraction"], [1, 25 / 40], atol=1e-6)
    np.testing.assert_allclose(found["volume"], [8, 8])
    np.testing.assert_allclose(found["fraction, relative"], [15 / 80, -15 / 80], atol=1e-6)
    of_first = described(scene, boxes, n_compared=1)["fraction, relative"]
    np.testing.assert_allclose(of_first, [0, -30 / 80], atol=1e-6)
    np.testing.assert_allclose(found["volume_share"], 8 / scene.tumor_volume)
    np.testing.assert_allclose(found["elongation"], [0, np.log(4)], atol=1e-12)
    np.testing.assert_array_equal(found["rotated_axes"], [0, 1])
    cost = PlacementObjective().value
    values = [cost(share, share * 8) for share in found["fraction"]]
    np.testing.assert_allclose(found["objective"], values)
    assert found["grown_4"][0] == pytest.approx(24 / 28)


def test_thick_places_lie_apart_the_thickest_first_and_a_thin_tumor_has_one():
    thin = np.zeros((40, 40, 40))
    thin[20, 20, 20] = 0.3
    broken = np.zeros((40, 40, 40))
    broken[[19, 20], [19, 20], [20, 19]] = 1
    for tumor in (thin, broken):
        found = Surroundings(Scene(tumor, np.diag([0.4, 0.4, 0.4, 1.0])))
        assert np.linalg.norm(found.thickest - found.scene.centroid) < 2
    grid = np.moveaxis(np.indices((70, 40, 40)), 0, -1)
    tumor = np.linalg.norm(grid - (15, 20, 20), axis=-1) < 9
    tumor |= np.linalg.norm(grid - (50, 20, 20), axis=-1) < 14
    surroundings = Surroundings(Scene(tumor, np.eye(4)))
    places = surroundings.thick_places(2, 25.0)
    np.testing.assert_allclose(places, [[50, 20, 20], [15, 20, 20]], atol=2)
    np.testing.assert_array_equal(surroundings.thickest, places[0])
    several = surroundings.thick_places(10, 6.0)
    gaps = np.linalg.norm(several[:, None] - several[None], axis=-1)[np.triu_indices(len(several), 1)]
    assert len(several) == 10
    assert gaps.min() > 6
    assert (np.diff(surroundings.at(several)) <= 1.5).all()


def test_depths_and_distances_of_boxes_in_a_cube_are_those_of_its_faces():
    tumor = np.zeros((40, 40, 40), bool)
    tumor[12:28, 12:28, 12:28] = True
    scene = Scene(tumor, np.diag([2.0, 2.0, 2.0, 1.0]))
    middle, volume = np.full(3, 39.0), 32**3 / 1000
    voxels = [
        Voxel(middle, (10, 10, 10)), Voxel((47, 39, 39), (24, 10, 15), (0, 0, 90)), Voxel((39, 39, 53), (10, 10, 40)),
    ]
    features = described(scene, voxels)
    np.testing.assert_allclose(features["tumor_volume"], volume)
    np.testing.assert_allclose(features["depth_center"], [16, 8, 2], atol=2)
    np.testing.assert_allclose(features["to_centroid"], [0, 8, 14], atol=1e-9)
    np.testing.assert_allclose(features["to_thickest"], [0, 8, 14], atol=1.8)
    np.testing.assert_allclose([features[f"side_{name}"][1] for name in ("min", "mid", "max")], [10, 15, 24])
    # Points of the first box lie at 0, 2 and 4 mm from its middle along each side.
    line = np.array([-4, -2, 0, 2, 4])
    off = np.abs(np.stack(np.meshgrid(line, line, line), axis=-1)).max(axis=-1).ravel()
    assert features["depth_mean"][0] == pytest.approx((16 - off).mean(), abs=1)
    assert features["depth_low"][0] == pytest.approx(np.quantile(16 - off, 0.1), abs=1)
    # Of the third box, the upper half lies beside the cube.
    assert features["depth_low"][2] == 0
    assert features["grown_4"][0] == features["grown_8"][0] == pytest.approx(1)
    # The third box ends 6 mm below the middle of the cube, and 10 or 14 mm below it when it is grown.
    assert features["grown_4"][2] == pytest.approx((16 + 10) / 48, abs=1e-6)
    assert features["grown_8"][2] == pytest.approx((16 + 14) / 56, abs=1e-6)


def test_what_is_excluded_counts_as_outside():
    tumor = np.zeros((40, 40, 40), bool)
    tumor[8:32, 8:32, 8:32] = True
    core = np.zeros_like(tumor)
    core[18:22, 18:22, 18:22] = True
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    middle = np.full(3, 39.0)
    free, walled = (Surroundings(Scene(tumor, affine)), Surroundings(Scene(tumor, affine, exclude={"core": core})))
    assert free.at(middle) > 20
    assert walled.at(middle) == 0
    assert walled.at(np.array([45, 39, 39])) == pytest.approx(2, abs=2)
    assert np.abs(walled.thickest - middle).max() > 8


AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
VOLUMES = np.array([8.0, 11.0, 14.0, 20.0])


def cored(tolerance=0.0):
    """Make a cube of 48 mm with a core of 16 mm that is excluded."""
    tumor = np.zeros((44, 44, 44), bool)
    tumor[10:34, 10:34, 10:34] = True
    core = np.zeros_like(tumor)
    core[18:26, 18:26, 18:26] = True
    return Scene(tumor, AFFINE, exclude={"core": core}, exclude_tolerance=tolerance)


def found(scene):
    return candidate_boxes(free_search(scene), Surroundings(scene), VOLUMES, 15, 1)


@pytest.mark.parametrize("tolerance", [0.0, 0.3])
def test_what_is_excluded_is_no_tumor_of_the_search(tolerance):
    search = free_search(cored(tolerance))
    middle = Voxel((43, 43, 43), (16, 16, 16))
    box = as_boxes(middle)
    # The core ends at the borders of image voxels.
    assert overlap.fractions(box, search.whole, 0.0, 1)[0] == pytest.approx(0, abs=1e-6)
    assert tumor_fraction(middle, search.scene) == pytest.approx(1)
    assert overlap.fractions(box, search.whole, 8.0, 1)[0] == pytest.approx(7 / 8, abs=1e-6)


def test_boxes_of_the_objective_come_first_then_cubes_then_adapted_ones():
    solid = np.pad(np.ones((24, 24, 24)), 10)
    boxes = found(Scene(solid, AFFINE))
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


def test_boxes_of_a_volume_are_stretched_to_the_tumor_and_sides_of_cubes_keep_the_constraints():
    tumor = np.zeros((50, 40, 40), bool)
    tumor[5:45, 15:24, 15:24] = True
    boxes = found(Scene(tumor, AFFINE))
    adapted = boxes[-15:]
    assert (adapted[:, 1, 0] > 1.15 * adapted[:, 1, 1:].max(axis=1)).all()
    assert (adapted[:, 1, 1:] < 20).all()
    wishes = VoxelOptimizer(min_volume=8.0)._wishes()
    np.testing.assert_allclose(_sides(27.0, wishes), 30)
    np.testing.assert_allclose(_sides(1.0, wishes), 20)
    flat = VoxelOptimizer(size_range=((10, 60), (10, 60), (10, 15)))._wishes()
    np.testing.assert_allclose(_sides(15.0, flat), [np.sqrt(1000), np.sqrt(1000), 15])


@pytest.mark.parametrize("max_rotations", [0, 3])
def test_boxes_that_are_moved_touch_nothing_excluded(max_rotations):
    search = free_search(cored(), max_rotations=max_rotations)
    touching = Voxel((36, 43, 43), (20, 20, 20))
    free = Voxel((27, 43, 43), (14, 22, 22))
    assert search.touched(touching)
    assert not search.touched(free)
    boxes = as_boxes(touching, free)
    moved = moved_off(boxes, search, VOLUMES)
    assert len(moved) == 1
    voxel = search.voxel(moved[0])
    assert not search.touched(voxel)
    assert 6 <= voxel.volume < 20
    assert tumor_fraction(voxel, search.scene) > 0.9
    assert len(moved_off(boxes[1:], search, VOLUMES)) == 0
