import itertools
import json
import pickle

import numpy as np
import pytest
from scipy.linalg import polar

from placement import Scene, Voxel
from placement.box.voxel import TURNS, allowed_sides, angles_of, expert_voxels, rotation_of


def random_rotation(rng):
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    q[:, 0] *= np.linalg.det(q)
    return q


def test_angles_are_those_of_scipy_about_ras_axes_and_the_nearest_rotation_of_a_rounded_matrix_is_taken():
    transform = pytest.importorskip("scipy.spatial.transform")
    rng = np.random.default_rng(0)
    for _ in range(20):
        angles = rng.uniform(-80, 80, 3)
        np.testing.assert_allclose(
            rotation_of(angles), transform.Rotation.from_euler("XYZ", angles, degrees=True).as_matrix(), atol=1e-12
        )
        np.testing.assert_allclose(angles_of(rotation_of(angles)), angles, atol=1e-9)
    rng = np.random.default_rng(8)
    for _ in range(20):
        rounded = rotation_of(rng.uniform(-80, 80, 3)).round(4)
        nearest, _ = polar(rounded)
        voxel = Voxel.from_rotation((0, 0, 0), (20, 21, 22), rounded)
        np.testing.assert_allclose(voxel.rotation, nearest, atol=1e-9)


@pytest.mark.parametrize("b", [90.0, -90.0])
def test_angles_of_a_gimbal_lock_give_the_same_rotation(b):
    rotation = rotation_of([20.0, b, 35.0])
    np.testing.assert_allclose(rotation_of(angles_of(rotation)), rotation, atol=1e-9)


def test_equivalent_poses_have_one_canonical_form_and_one_count_of_rotated_axes():
    rng = np.random.default_rng(1)
    for _ in range(60):
        center, size, rotation = rng.normal(size=3) * 30, rng.uniform(10, 40, 3), random_rotation(rng)
        first = Voxel.from_rotation(center, size, rotation).canonical()
        for turn in TURNS:
            pose = Voxel.from_rotation(center, size @ np.abs(turn), rotation @ turn)
            np.testing.assert_allclose(pose.canonical().as_array(), first.as_array(), atol=1e-9)
            assert pose.rotated_axes == first.rotated_axes
            assert pose.rotated_angles == first.rotated_angles or (np.abs(turn) != np.eye(3)).any()
            assert pose.dice(first) == pytest.approx(1, abs=1e-7)
    assert len(TURNS) == 24


def test_ties_between_poses_are_broken_the_same_way_with_sides_named_by_the_nearest_scanner_axes():
    rotation = rotation_of((45.0, 0, 0))
    poses = [Voxel.from_rotation((0, 0, 0), np.array([10, 20, 30]) @ np.abs(t), rotation @ t) for t in TURNS]
    arrays = [pose.canonical().as_array() for pose in poses]
    np.testing.assert_allclose(arrays, np.broadcast_to(arrays[0], (24, 9)), atol=1e-9)
    voxel = Voxel((0, 0, 0), (10, 20, 30), (0, 0, 95)).canonical()
    np.testing.assert_allclose(voxel.size, [20, 10, 30])
    np.testing.assert_allclose(voxel.angles, [0, 0, 5], atol=1e-9)


@pytest.mark.parametrize(
    ("angles", "n_axes", "n_angles"),
    [
        ((0.45, 0, 0), 0, 0),
        ((0.55, 0, 0), 1, 1),
        ((20, 0.45, 0), 1, 1),
        ((20, 0.55, 0), 2, 2),
        # One entry of the rotation is −cos 30° sin c.
        ((20, 30, 0.55), 2, 3),
        ((20, 30, 0.62), 3, 3),
        # The study's count depends on the order of angles.
        ((17, 0, 31), 2, 2),
        ((0, 60, 20), 2, 2),
        (angles_of(rotation_of((0, 0, 31)) @ rotation_of((17, 0, 0))), 2, 3),
    ],
)
def test_turns_below_half_a_degree_do_not_count(angles, n_axes, n_angles):
    voxel = Voxel((0, 0, 0), (20, 21, 22), angles)
    assert (voxel.rotated_axes, voxel.rotated_angles) == (n_axes, n_angles)


def test_volume_and_corners():
    voxel = Voxel((5, -3, 8), (10, 20, 30), (12, 34, -56))
    assert voxel.volume == 6.0
    corners = voxel.corners
    assert corners.shape == (8, 3)
    np.testing.assert_allclose(corners.mean(axis=0), voxel.center)
    np.testing.assert_allclose(np.linalg.norm(corners - voxel.center, axis=1), np.sqrt(10**2 + 20**2 + 30**2) / 2)
    np.testing.assert_allclose(corners[4] - corners[0], voxel.rotation[:, 0] * 10, atol=1e-12)
    assert voxel.contains(corners * 0.999 + voxel.center * 0.001).all()
    assert not voxel.contains(corners * 1.001 - voxel.center * 0.001).any()
    ends = np.array(list(itertools.product((-0.5, 0.5), repeat=3)))
    np.testing.assert_allclose(ends @ voxel.affine[:3, :3].T + voxel.affine[:3, 3], corners)


AFFINES = {
    "plain": np.diag([1.0, 1, 1, 1]),
    "flipped": np.array([[-1.0, 0, 0, 40], [0, -1, 0, 40], [0, 0, 1, -20], [0, 0, 0, 1]]),
    "thick": np.array([[0.9, 0, 0, -18], [0, 0.9, 0, -18], [0, 0, 5.0, -60], [0, 0, 0, 1]]),
    "sheared": np.array([[1.0, 0, 0, -20], [0, 1, 0.9, -34], [0, 0, 3.0, -40], [0, 0, 0, 1]]),
}


@pytest.mark.parametrize("name", AFFINES)
def test_mask_is_what_contains_says_and_its_parts_keep_the_volume(name):
    affine, shape = AFFINES[name], (50, 52, 40)
    voxel = Voxel(affine[:3, :3] @ (24, 25, 19.4) + affine[:3, 3], (15, 18, 14), (20, -10, 30))
    grid = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    np.testing.assert_array_equal(voxel.mask(shape, affine), voxel.contains(grid))
    parts = voxel.mask(shape, affine, partial=True)
    assert parts.sum() * abs(np.linalg.det(affine)) / 1000 == pytest.approx(voxel.volume, rel=5e-3)
    assert parts.min() == 0
    assert parts.max() <= 1 + 1e-6
    assert ((parts > 0.999) <= voxel.mask(shape, affine)).all()


def test_parts_of_a_box_along_the_grid_are_exact_and_one_outside_the_image_leaves_no_mask():
    voxel = Voxel((5.25, 5, 5), (2.5, 3, 3))
    parts = voxel.mask((11, 11, 11), np.eye(4), partial=True)
    np.testing.assert_allclose(parts[3:8, 5, 5], [0, 0.5, 1, 1, 0], atol=1e-6)
    thick = Voxel((5, 5, 30), (8, 8, 19)).mask((11, 11, 10), np.diag([1, 1, 6.5, 1]), partial=True)
    assert 6.5 * thick.sum() == pytest.approx(8 * 8 * 19, rel=5e-3)
    double = Voxel((5, 5, 10), (8, 8, 4 + 1 / 3)).mask((11, 11, 10), np.diag([1, 1, 2, 1]), partial=True)
    np.testing.assert_allclose(double[5, 5, 3:8], [0, 7 / 12, 1, 7 / 12, 0], atol=1e-6)
    assert not Voxel((500, 0, 0), (10, 10, 10)).mask((20, 20, 20), np.eye(4)).any()


@pytest.mark.parametrize("angles", [(0, 0, 0), (10, 20, 30)])
def test_dice_of_shifted_boxes(angles):
    voxel = Voxel((1, 2, 3), (10, 20, 30), angles)
    assert voxel.dice(voxel) == pytest.approx(1, abs=1e-12)
    shifted = Voxel(voxel.center + voxel.rotation[:, 1] * 10, voxel.size, angles)
    assert voxel.dice(shifted) == pytest.approx(0.5, abs=1e-7)
    touching = Voxel(voxel.center + voxel.rotation[:, 1] * 20, voxel.size, angles)
    assert voxel.dice(touching) == pytest.approx(0, abs=1e-7)
    assert voxel.dice(Voxel((200, 0, 0), voxel.size)) == 0


def test_common_volume_agrees_with_sampling_in_any_order_and_dice_with_that_of_an_octagon():
    dice = Voxel((0, 0, 0), (10, 10, 10)).dice(Voxel((0, 0, 0), (10, 10, 10), (0, 0, 45)))
    assert dice == pytest.approx(2 * (np.sqrt(2) - 1), abs=1e-8)
    rng = np.random.default_rng(3)
    for _ in range(12):
        one = Voxel(rng.uniform(-4, 4, 3), rng.uniform(10, 25, 3), rng.uniform(-90, 90, 3))
        two = Voxel(rng.uniform(-4, 4, 3), rng.uniform(10, 25, 3), rng.uniform(-90, 90, 3))
        points = (rng.random((60_000, 3)) - 0.5) * one.size @ one.rotation.T + one.center
        assert one.intersection(two) == pytest.approx(two.intersection(one), rel=1e-7)
        assert one.intersection(two) == pytest.approx(one.volume * two.contains(points).mean(), abs=0.012 * one.volume)


def test_moving_a_box_moves_its_corners():
    transform = np.eye(4)
    transform[:3, :3] = rotation_of((10, 50, -70))
    transform[:3, 3] = (5, -8, 12)
    voxel = Voxel((1, 2, 3), (10, 20, 30), (30, -40, 50))
    expected = voxel.corners @ transform[:3, :3].T + transform[:3, 3]
    np.testing.assert_allclose(voxel.transform(transform).corners, expected, atol=1e-9)


@pytest.mark.parametrize("digits", [4, 6])
def test_a_rigid_matrix_from_a_text_file_is_as_good_as_its_digits(digits):
    voxel = Voxel((10, 20, 30), (15, 20, 40), (10, 20, 30))
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation_of((-40, 15, 5)), (5, 6, 7)
    moved = voxel.transform(np.round(matrix, digits))
    np.testing.assert_allclose(moved.corners, voxel.transform(matrix).corners, atol=200 * 10.0**-digits)
    np.testing.assert_allclose(moved.rotation.T @ moved.rotation, np.eye(3), atol=1e-12)
    matrix[:3, :3] *= 1.001
    with pytest.raises(ValueError, match="must be a rotation"):
        voxel.transform(matrix)


def test_numbers_json_and_pickle_give_the_same_voxel():
    voxel = Voxel((0.1, 2, 3), (10, 20, 30), (1 / 3, -4, 5))
    for again in (
        Voxel.from_array(voxel.as_array()), Voxel.from_json(voxel.to_json()), pickle.loads(pickle.dumps(voxel)),
    ):
        assert again == voxel
        assert hash(again) == hash(voxel)
    assert Voxel.from_json(json.loads(voxel.to_json())) == voxel
    assert voxel != Voxel((0, 2, 3), (10, 20, 30))
    assert "size=(10.0, 20.0, 30.0)" in repr(voxel)


def test_a_voxel_does_not_change():
    voxel = Voxel((0, 0, 0), (1, 1, 1))
    with pytest.raises(AttributeError, match="does not change"):
        voxel.size = (1, 2, 3)
    with pytest.raises(ValueError, match="read-only"):
        voxel.center[0] = 1


SCENE = Scene(((np.indices((12, 12, 12)) - 6) ** 2).sum(axis=0) < 16, np.diag([2.0, 2, 2, 1]))


def test_boxes_of_one_expert_or_several_are_copied_into_one_form():
    scenes, box = [SCENE] * 2, [0, 0, 0, 20, 20, 20, 0, 0, 0]
    assert expert_voxels([box, box], scenes).shape == (2, 1, 9)
    given = np.array([[box, [np.nan] * 9], [box, box]], dtype=np.float32)
    found = expert_voxels(given, scenes)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, given)
    found[:] = 0
    assert given[0, 0, 3] == 20


def test_sides_are_brought_into_their_range_and_up_to_a_volume():
    np.testing.assert_allclose(allowed_sides((10, 10, 10), (10, 60), 8), (20, 20, 20))
    np.testing.assert_allclose(allowed_sides((5, 18, 70), (10, 60), 0), (10, 18, 60))
    np.testing.assert_allclose(allowed_sides((10, 10, 10), ((10, 12), (10, 60), (10, 60)), 12), (12, 10**1.5, 10**1.5))
    np.testing.assert_allclose(allowed_sides((10, 10, 10), (10, 20), 12), (20, 20, 20))
