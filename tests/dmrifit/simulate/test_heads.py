"""Heads have the tissues, ventricles and sizes of what they are made from, wherever they lie."""

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt, gaussian_filter

from dmrifit.simulate.heads import Head, StandardHead, TissueMaps, coarser_maps, read_tissues

SHAPE, SPACING = (36, 44, 34), (4.0, 4.0, 4.0)


@pytest.fixture(scope="module")
def head():
    return Head.draw(SHAPE, SPACING, np.random.default_rng(0))


def ball_tissues(spacing=2.0):
    """Make a ball of 50 mm with a cortex, a ventricle of 10 mm, and gray matter beside it."""
    n = int(120 / spacing)
    line = spacing * (np.arange(n) - (n - 1) / 2)
    x, y, z = np.meshgrid(line, line, line, indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2)
    brain = radius < 50
    gray = brain & (radius > 46)
    gray |= (x - 17) ** 2 + y**2 + z**2 < 4.5**2
    gray |= x**2 + (y - 31) ** 2 + z**2 < 4.5**2
    white = brain & ~gray & (radius >= 10)
    shares = (share.astype(np.float32) for share in (gray, white, brain))
    return TissueMaps(*shares, Head.grid((n, n, n), (spacing,) * 3)[0], np.full(3, 50.0))


@pytest.fixture(scope="module")
def ball_standard():
    return StandardHead.of((2.0,) * 3, ball_tissues())


def at(standard, name, x, y, z):
    """Read a map at a place in mm."""
    place = np.array([[x, y, z]], dtype=np.float32) / standard.half_axes.astype(np.float32)
    return standard.sampled([getattr(standard.matter, name)], place)[0][0]


def test_the_middle_of_a_centered_grid_is_at_zero():
    affine, _ = Head.grid((5, 8, 3), (2.0, 1.5, 4.0))
    np.testing.assert_array_equal(affine @ [2, 3.5, 1, 1], [0, 0, 0, 1])
    np.testing.assert_array_equal(affine @ [0, 0, 0, 1], [-4, -5.25, -4, 1])


def test_shares_of_tissues_fill_the_brain_and_nothing_else(head):
    total = head.gray + head.deep + head.white + head.fluid
    np.testing.assert_allclose(total[head.brain], 1, atol=1e-5)
    np.testing.assert_array_equal(total[~head.brain], 0)
    assert min(head.gray.min(), head.white.min(), head.fluid.min()) > -1e-6
    for share in (head.gray, head.white, head.fluid):
        assert 0.05 < share[head.brain].mean() < 0.75
    assert (head.ventricles <= head.fluid + 1e-5).all()
    np.testing.assert_allclose(head.matter, head.white + head.gray + head.deep)


def test_depth_and_places_of_a_head_are_in_mm(head):
    np.testing.assert_allclose(
        head.depth, distance_transform_edt(np.pad(head.brain, 1), sampling=4.0)[1:-1, 1:-1, 1:-1]
    )
    np.testing.assert_allclose(head.places[0, 0, 0], [-70, -86, -66])
    np.testing.assert_allclose(head.places[35, 43, 33], [70, 86, 66])
    np.testing.assert_allclose(head.affine @ [35, 43, 33, 1], [70, 86, 66, 1])
    # The same places in the standard head differ by warps of a few mm.
    displacement = head.local * head.half_axes - head.places
    assert 1 < displacement.std() < 5


def test_a_brain_fills_the_field_of_view_up_to_the_size_of_a_person():
    for shape, spacing in ((SHAPE, 4.0), (SHAPE, 2.0), ((60, 60, 60), 4.0)):
        brain = Head.draw(shape, (spacing,) * 3, np.random.default_rng(1)).brain
        extent = (np.ptp(np.argwhere(brain), axis=0) + 1) * spacing
        room = np.array(shape) * spacing
        assert (extent < room - 1).all()
        assert (extent < 1.15 * 2 * np.array([68, 85, 64])).all()
        assert (extent > 0.75 * np.minimum(room - 8, 2 * np.array([68, 85, 64]))).all()


def test_white_matter_lies_inside_and_ventricles_in_the_middle(head):
    deep, outer = head.depth > 30, head.brain & (head.depth < 10)
    assert head.white[deep].mean() > head.white[outer].mean() + 0.1
    assert head.fluid[14:22, 18:26, 15:21].max() > 0.9
    assert head.deep[head.depth > 25].mean() > 10 * head.deep[outer].mean()


def test_a_seed_makes_a_head_and_another_one_another_head(head):
    again, different = (Head.draw(SHAPE, SPACING, np.random.default_rng(seed)) for seed in (0, 1))
    np.testing.assert_array_equal(again.gray, head.gray)
    assert not np.array_equal(different.brain, head.brain)


def test_a_head_can_be_scaled_and_shifted():
    standard = StandardHead.of(SPACING)
    plain, scaled, shifted = (
        Head.draw(SHAPE, SPACING, np.random.default_rng(0), standard=standard, **options)
        for options in ({}, {"scale": np.array([0.9, 1, 0.8])}, {"shift": np.array([8.0, 0, -4])})
    )
    assert scaled.brain.sum() / plain.brain.sum() == pytest.approx(0.72, abs=0.03)
    center, moved = (np.argwhere(head.brain).mean(axis=0) * 4 for head in (plain, shifted))
    np.testing.assert_allclose(moved - center, [8, 0, -4], atol=1.5)


def test_ventricles_have_distances_to_their_wall_and_white_and_gray_matter_where_they_may_be(ball_standard):
    assert at(ball_standard, "to_ventricles", 1, 1, 1) == pytest.approx(-8.5, abs=1.2)
    for height in (21, 31, 41):
        distance = at(ball_standard, "to_ventricles", 1, 1, height)
        assert distance == pytest.approx(height - 10, abs=0.7)
    heights = np.arange(2.0, 25.0)
    values = [at(ball_standard, "to_ventricles", 0, 0, height) for height in heights]
    # From the wall of voxels to the next one distances rise by one edge, not by two.
    np.testing.assert_allclose(np.diff(values), 1, atol=0.35)
    assert at(ball_standard, "white", 1, 1, 1) == pytest.approx(1, abs=1e-3)
    assert at(ball_standard, "white", 1, 1, 31) == pytest.approx(1, abs=1e-3)
    assert at(ball_standard, "white", 1, 1, 49) == pytest.approx(0, abs=0.1)
    # 33 mm below the surface, within 0.45 of the half axes; 19 mm below it; the cortex.
    shares = [
        [at(ball_standard, name, *point) for name in ("gray", "deep")] for point in ((17, 1, 1), (1, 31, 1), (1, 1, 47))
    ]
    np.testing.assert_allclose(shares, [[0, 1], [1, 0], [1, 0]], atol=0.12)


def test_the_standard_head_is_the_same_each_time_and_of_a_persons_size():
    first, second = (StandardHead.of((8.0,) * 3) for _ in range(2))
    assert first is second
    np.testing.assert_array_equal(first.half_axes, [68, 85, 64])
    np.testing.assert_allclose(np.diag(first.affine), [2, 2, 2, 1])
    np.testing.assert_allclose(first.local.mean(axis=(0, 1, 2)), 0, atol=1e-9)
    volume = 8e-3 * first.matter.brain.sum()
    assert 1300 < volume < 1700


def test_voxels_see_their_surroundings_as_large_ones_do():
    coarse, fine = (StandardHead.of((edge,) * 3, ball_tissues()) for edge in (8.0, 2.0))
    blurred = gaussian_filter(ball_tissues().white, 0.3 * 8.0 / 2.0)
    outer = np.s_[30, 30, 45:]
    np.testing.assert_allclose(coarse.matter.white[outer], blurred[outer], atol=1e-4)
    assert np.abs(fine.matter.white - coarse.matter.white).max() > 0.2


def test_growth_moves_the_walls_of_ventricles_by_so_many_mm(ball_standard):
    radii = []
    for growth in (0.0, 3.0, 6.0):
        head = Head.draw((60,) * 3, (2.0,) * 3, np.random.default_rng(1), standard=ball_standard, growth=growth)
        volume = 8.0 * head.ventricles.sum()
        radii.append((3 * volume / (4 * np.pi)) ** (1 / 3))
    # A warp makes the ventricle of a person larger or smaller as a whole.
    assert radii[0] == pytest.approx(10, abs=2)
    np.testing.assert_allclose(np.diff(radii) / radii[0], 0.3, atol=0.04)
    own, wide = (
        Head.draw(SHAPE, SPACING, np.random.default_rng(0), growth=growth).ventricles.sum() for growth in (0.0, 3.0)
    )
    assert wide > 1.4 * own > 0


def test_a_head_of_maps_has_their_tissues_where_they_lie():
    maps = ball_tissues(4.0)
    maps = TissueMaps(0.8 * maps.gray, maps.white, maps.brain, maps.affine, maps.half_axes)
    head = Head.draw((30,) * 3, SPACING, np.random.default_rng(2), standard=StandardHead.of(SPACING, maps))
    between = (head.depth > 12) & (head.depth < 18)
    assert np.median(head.white[between]) > 0.95
    shell = head.brain & (head.depth < 5)
    np.testing.assert_allclose(np.median(head.gray[shell]), 0.7, atol=0.15)
    total = head.gray + head.deep + head.white + head.fluid
    np.testing.assert_allclose(total[head.brain], 1, atol=1e-5)


def shells(affine, shape=(40, 48, 36)):
    """Make a ball of white matter in a shell of gray, in the middle of the grid."""
    middle = affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3]
    places = np.stack(np.indices(shape), axis=-1) @ affine[:3, :3].T + affine[:3, 3] - middle
    radius = np.sqrt(((places / [64, 80, 56]) ** 2).sum(axis=-1))
    return ((radius >= 0.7) & (radius < 1)).astype(np.float32), (radius < 0.7).astype(np.float32)


@pytest.mark.parametrize("kind", [np.float32, np.uint8])
def test_maps_in_files_are_shares_or_bytes_that_stand_for_them(kind, tmp_path):
    affine, _ = Head.grid((40, 48, 36), SPACING)
    affine[:3, 3] += [7.0, -11.0, 30.0]
    gray, white = shells(affine)
    scale = 255 if kind is np.uint8 else 1
    for name, values in (("gray", gray), ("white", white)):
        nib.save(nib.Nifti1Image((scale * values).astype(kind), affine), tmp_path / f"{name}.nii")
    maps = read_tissues(tmp_path / "gray.nii", tmp_path / "white.nii")
    np.testing.assert_allclose(maps.gray, gray, atol=1e-6)
    np.testing.assert_allclose(maps.white, white, atol=1e-6)
    np.testing.assert_array_equal(maps.brain > 0, gray + white > 0.2)
    # The middle of the brain is at 0, wherever it lay; half axes end at centers of voxels.
    corners = np.argwhere(maps.brain > 0) @ maps.affine[:3, :3].T + maps.affine[:3, 3]
    np.testing.assert_allclose(corners.min(axis=0), -corners.max(axis=0), atol=1e-9)
    np.testing.assert_allclose(maps.half_axes, corners.max(axis=0))
    np.testing.assert_allclose(maps.half_axes, [64, 80, 56], atol=4)


def test_maps_are_the_same_however_stored():
    affine, _ = Head.grid((40, 48, 36), SPACING)
    images = [nib.Nifti1Image(values, affine) for values in shells(affine)]
    images[0].dataobj[10, 20, 30] = 0.5
    turn = nib.orientations.ornt_transform(*(nib.orientations.axcodes2ornt(codes) for codes in ("RAS", "PIL")))
    plain, turned = (read_tissues(*pair) for pair in (images, [image.as_reoriented(turn) for image in images]))
    for name in ("gray", "white", "brain", "affine", "half_axes"):
        np.testing.assert_allclose(getattr(turned, name), getattr(plain, name), atol=1e-9)


def test_blocks_of_fine_voxels_are_averaged_in_place():
    affine, _ = Head.grid((40, 48, 36), SPACING)
    gray, white = shells(affine)
    maps = read_tissues(*(nib.Nifti1Image(values, affine) for values in (gray, white)))
    coarse = coarser_maps(maps, 8.0)
    np.testing.assert_allclose(coarse.white[5, 6, 4], maps.white[10:12, 12:14, 8:10].mean())
    first = maps.affine @ [0.5, 0.5, 0.5, 1]
    np.testing.assert_allclose(coarse.affine @ [0, 0, 0, 1], first)
    np.testing.assert_allclose(np.diag(coarse.affine), [8, 8, 8, 1])
    same = coarser_maps(maps, 4.0)
    np.testing.assert_array_equal(same.gray, maps.gray)
    np.testing.assert_array_equal(same.affine, maps.affine)
