"""What a network sees of a scene, and how views and boxes are turned and mirrored together."""

import numpy as np
import pytest

from placement.box.voxel import Voxel, rotation_of
from placement.learned.views import (
    CHANNELS,
    DISTANCE_MM,
    FLIPS,
    _block_means,
    turned_pose,
    turned_view,
    view_of,
)
from placement.search.scene import Scene


def world_scene(affine, shape, **options):
    """A lesion that is the same in the world, on any grid: an ellipsoid with a smooth border."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    points = index @ affine[:3, :3].T + affine[:3, 3]
    radius = np.linalg.norm((points - [10.0, -5.0, 20.0]) / [24.0, 18.0, 15.0], axis=-1)
    return Scene(np.clip((1 - radius) * 8 + 0.5, 0, 1), affine, **options)


def affine_of(axes, middle, shape):
    matrix = np.eye(4)
    matrix[:3, :3] = axes
    matrix[:3, 3] = np.array(middle) - axes @ ((np.array(shape) - 1) / 2)
    return matrix


AXES = {
    "fine": np.diag([1.0, 1.0, 1.0]),
    "anisotropic": np.diag([1.0, 1.0, 3.0]),
    "flipped": np.diag([-2.0, -2.0, 2.0]),
    "permuted": np.array([[0, 2.0, 0], [0, 0, 2.0], [2.0, 0, 0]]),
    "oblique": rotation_of([20, -15, 30]) * 1.5,
    "sheared": np.array([[2.0, 0, 0], [0, 2.0, 0.6], [0, 0, 2.0]]),
}


@pytest.mark.parametrize("name", AXES)
def test_the_same_lesion_on_another_grid_looks_the_same(name):
    axes = AXES[name]
    shape = tuple(np.ceil(90 / np.linalg.norm(axes, axis=0)).astype(int))
    plain = world_scene(affine_of(np.eye(3) * 2, (10, -5, 20), (45, 45, 45)), (45, 45, 45))
    other = world_scene(affine_of(axes, (10, -5, 20), shape), shape)
    (one, frame), (two, frame_two) = (view_of(scene, ("tumor", "distance"), 32, 3.0) for scene in (plain, other))
    np.testing.assert_allclose(frame_two, frame, atol=0.25)
    assert np.abs(one[0] - two[0]).mean() < 0.004
    assert np.abs(one[1] - two[1]).max() * DISTANCE_MM < 4.0
    np.testing.assert_allclose(one[0].sum() * 0.027, plain.tumor_volume, rtol=0.02)


def test_a_lesion_that_is_too_large_is_seen_on_a_coarser_grid():
    tumor = np.zeros((90, 40, 40), bool)
    tumor[5:85, 5:35, 5:35] = True
    volume, frame = view_of(Scene(tumor, np.diag([2.0, 2, 2, 1])), ("tumor",), 32, 3.0)
    assert frame[3] > 5
    assert volume[0].sum() * frame[3] ** 3 / 1000 == pytest.approx(tumor.sum() * 0.008, rel=0.15)
    assert volume[0][[0, -1]].max() == 0


def test_excluded_parts_and_images_are_channels():
    tumor, necrosis = np.zeros((2, 50, 50, 50), bool)
    tumor[10:40, 10:40, 10:40] = True
    necrosis[10:22, 10:40, 10:40] = True
    image = np.where(necrosis, 1.0, np.where(tumor, 5.0, 3.0))
    affine = np.diag([2.0, 2, 2, 1])
    with_both = Scene(tumor, affine, exclude={"necrosis": necrosis}, image=image)
    volume, _ = view_of(with_both, CHANNELS, 32, 3.0)
    plain, _ = view_of(Scene(tumor, affine), ("tumor", "distance", "exclude"), 32, 3.0)
    np.testing.assert_array_equal(volume[0], plain[0])
    assert plain[2].max() == 0
    assert volume[2].sum() * 0.027 == pytest.approx(necrosis.sum() * 0.008, rel=0.02)
    # In the middle of the necrosis it is outside, in that of what is left deep inside.
    assert plain[1][6 + 3, 16, 16] > 0 > volume[1][6 + 3, 16, 16]
    dead, solid = volume[2] > 0.9, (volume[0] > 0.9) & (volume[2] < 0.1)
    assert volume[3][dead].max() < -0.5 < 0.5 < volume[3][solid].min()
    seen = volume[3][volume[3] != 0]
    assert abs(seen.mean()) < 0.1
    assert 0.5 < seen.std() < 1.5


def test_boxes_move_with_what_is_seen():
    rng = np.random.default_rng(3)
    n, step = 32, 3.0
    box = Voxel((6, -4, 9), (18, 30, 24), (12, -20, 8))
    line = np.diag([step, step, step, 1])
    line[:3, 3] = -0.5 * (n - 1) * step
    drawn = box.mask((n, n, n), line, partial=True)[None]
    for flip in FLIPS[rng.permutation(48)[:12]]:
        center, size, rotation = turned_pose(box.center, box.size, box.rotation, flip)
        moved = Voxel.from_rotation(center, size, rotation)
        np.testing.assert_allclose(moved.mask((n, n, n), line, partial=True), turned_view(drawn, flip)[0], atol=0.02)
        assert moved.canonical().dice(moved) == pytest.approx(1)
        np.testing.assert_allclose(moved.canonical().size, moved.size)
        back = turned_pose(center, size, rotation, flip.T)
        np.testing.assert_allclose(back[0], box.center, atol=1e-12)
    assert len({flip.tobytes() for flip in FLIPS}) == 48


def test_contrasts_are_deviations_cut_at_four_and_the_border_of_an_image_is_not_darker():
    rng = np.random.default_rng(0)
    tumor = np.zeros((24, 24, 24), bool)
    tumor[8:16, 8:16, 8:16] = True
    image = rng.normal(100, 10, tumor.shape)
    image[2, 3, 4], image[5, 6, 7] = 900, -700
    scene = Scene(tumor, np.diag([4.0, 4, 4, 1]), image=image)
    # The grid of the view is that of the image.
    volume, frame = view_of(scene, ("tumor", "image"), 24, 4.0)
    np.testing.assert_allclose(frame, [46, 46, 46, 4])
    np.testing.assert_allclose(volume[0], tumor, atol=1e-6)
    scores = (image - image.mean()) / image.std()
    assert np.abs(scores).max() > 20
    np.testing.assert_allclose(volume[1], np.clip(scores, -4, 4), atol=1e-3)
    tumor = np.zeros((12, 30, 30), bool)
    tumor[2:10, 10:20, 10:20] = True
    ramp = np.broadcast_to(np.arange(30.0), tumor.shape) + 100
    scene = Scene(tumor, np.diag([2.0, 2, 2, 1]), image=ramp)
    volume, frame = view_of(scene, ("tumor", "image"), 24, 3.4)
    inside = volume[1] != 0
    assert inside.any(axis=(1, 2)).sum() < 24
    # Along x the image is constant, up to its faces, near which the outermost points lie.
    z = (np.arange(24) - 11.5) * 3.4 + frame[2]
    line = np.polyfit(z[3:21], volume[1][12, 12, 3:21], 1)
    expected = np.broadcast_to(np.polyval(line, z), volume[1].shape)
    middle = inside & (z > 4) & (z < 54)
    np.testing.assert_allclose(volume[1][middle], expected[middle], atol=0.05)


def test_distances_are_in_units_of_twelve_millimeters_on_every_grid():
    tumor = np.zeros((40, 40, 40), bool)
    tumor[10:30, 10:30, 10:30] = True
    scene = Scene(tumor, np.diag([2.0, 2, 2, 1]))
    for n, step in ((24, 4.0), (32, 3.0), (49, 2.0)):
        volume, _ = view_of(scene, ("tumor", "distance"), n, step)
        # The faces of a cube of 40 mm lie 20 mm from its middle.
        assert volume[1].max() * 12 == pytest.approx(20, abs=step)
        farthest = 20 - 0.5 * (n - 1) * step
        assert volume[1][n // 2, n // 2, 0] * 12 == pytest.approx(farthest, abs=step)


@pytest.mark.parametrize("block", [(3, 2, 4), (2, 2, 1), (1, 1, 1), (7, 5, 9)])
@pytest.mark.parametrize("is_mask", [False, True])
def test_block_means_are_those_of_blocks_filled_up_with_zeros(block, is_mask):
    volume = np.random.default_rng(1).random((7, 5, 9)).astype(np.float32)
    volume = volume > 0.5 if is_mask else volume
    counts = -(-np.array(volume.shape) // block)
    padded = np.pad(volume.astype(float), [(0, n) for n in counts * block - volume.shape])
    expected = padded.reshape(np.stack([counts, block], axis=1).ravel()).mean(axis=(1, 3, 5))
    means = _block_means(volume, np.array(block))
    assert means.dtype == np.float32
    np.testing.assert_allclose(means, expected, rtol=1e-5)
