"""Depths of a tumor and features of boxes in it, against what geometry says."""

import numpy as np
import pytest

from placement import Scene, Voxel
from placement.features import FEATURES, Surroundings, describe_boxes


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
        np.testing.assert_allclose(found.at(points), [20, 10, 6, 0, 0], atol=3)
        np.testing.assert_array_equal(found.at(points[3:]), 0)


def test_middles_go_from_the_center_of_mass_to_the_thickest_place():
    x, y, z = np.indices((64, 36, 36)) * 2.0
    along = (x - 28) / 70
    cone = (along > 0) & (along < 1) & ((y - 36) ** 2 + (z - 36) ** 2 < (12 + 6 * along) ** 2)
    scene = Scene(cone, np.diag([2.0, 2.0, 2.0, 1.0]))
    middles = Surroundings(scene).middles()
    np.testing.assert_allclose(middles[0], scene.centroid, atol=1)
    assert (np.diff(middles[:, 0]) > 0).all()
    np.testing.assert_allclose(middles[:, 1:], 36, atol=1)


def test_features_of_known_boxes_are_right():
    tumor = np.zeros((40, 40, 40), bool)
    tumor[5:25, 5:25, 5:25] = True
    tumor[32:36, 32:36, 32:36] = True
    far = np.zeros_like(tumor)
    far[:, :, :10] = True
    scene = Scene(tumor, np.diag([2.0, 2.0, 2.0, 1.0]), exclude={"floor": far})
    boxes = [Voxel((29, 29, 29), (20, 20, 20)), Voxel((29, 29, 24), (10, 20, 40), (0, 0, 30))]
    table = describe_boxes(Surroundings(scene), boxes, np.array([0.5, 0.25]), np.array([1.0, 0.9]), boxes[:1])
    found = dict(zip(FEATURES, table.T, strict=True))
    np.testing.assert_allclose(found["volume"], [8, 8])
    np.testing.assert_allclose(found["volume_share"], 8 / scene.tumor_volume)
    np.testing.assert_allclose(found["elongation"], [0, np.log(4)], atol=1e-12)
    np.testing.assert_array_equal(found["rotated_axes"], [0, 1])
    np.testing.assert_allclose(found["tilt"], [0, 30], atol=1e-9)
    np.testing.assert_allclose(found["objective_share"], [1, 0.5])
    np.testing.assert_allclose(found["rank"], [0, 0.5])
    np.testing.assert_array_equal(found["n_parts"], 2)
    np.testing.assert_allclose(found["dice_others"], [1, boxes[0].dice(boxes[1])])
    shared = boxes[0].dice(boxes[1])
    np.testing.assert_allclose(found["dice_pure"], [(1 + shared * 0.9**4) / 2, (shared + 0.9**4) / 2])
    np.testing.assert_allclose(found["excluded"], [0, 15 / 40], atol=1e-6)
    np.testing.assert_allclose(found["excluded_grown"][0], 8 / 36, atol=1e-6)
    assert (found["part_share"] > 0.9).all()
    assert found["grown_4"][0] == pytest.approx(1.0)


def test_a_tumor_thinner_than_the_grid_has_a_place():
    thin = np.zeros((40, 40, 40))
    thin[20, 20, 20] = 0.3
    found = Surroundings(Scene(thin, np.diag([0.4, 0.4, 0.4, 1.0])))
    assert np.linalg.norm(found.thickest - found.scene.centroid) < 1
