"""Brains have the tissues, ventricles and fibers of the maps that they are made from, and differ as stated."""

import numpy as np
import pytest
from scipy import ndimage

from anomaly.simulate.anatomy import Brain, draw_brain, standard_brain
from dmrifit.simulate.heads import TissueMaps, made_tissues

#: Maps of a standard brain, in their order.
WHITE, GRAY, DEEP, APART = 0, 1, 2, 4


def ball_tissues(spacing=2.0):
    """Make a ball of 50 mm with a cortex, a ventricle of 10 mm in its middle, and gray matter beside it."""
    n = int(120 / spacing)
    line = spacing * (np.arange(n) - (n - 1) / 2)
    x, y, z = np.meshgrid(line, line, line, indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2)
    brain = radius < 50
    gray = brain & (radius > 46)
    gray |= (x - 17) ** 2 + y**2 + z**2 < 4.5**2
    gray |= x**2 + (y - 31) ** 2 + z**2 < 4.5**2
    ventricle = radius < 10
    white = brain & ~gray & ~ventricle
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = line[0]
    return TissueMaps(
        *(share.astype(np.float32) for share in (gray, white, brain)), affine, np.full(3, 50.0)
    )


@pytest.fixture(scope="module")
def ball_standard():
    return standard_brain((2.0,) * 3, ball_tissues())


def at(standard, name, x, y, z):
    """Read a map at a place in mm."""
    index = np.linalg.inv(standard.affine) @ [x, y, z, 1]
    return standard.maps[name][tuple(np.rint(index[:3]).astype(int))]


# The standard brain -------------------------------------------------------------------------------


def test_the_distance_to_ventricles_is_negative_inside(ball_standard):
    # Centers of voxels lie at odd numbers of mm.
    assert at(ball_standard, APART, 1, 1, 1) == pytest.approx(-10, abs=1.5)
    for height in (21, 31, 41):
        assert at(ball_standard, APART, 1, 1, height) == pytest.approx(height - 10, abs=1.5)


def test_white_matter_stands_where_a_person_may_have_no_ventricle(ball_standard):
    assert at(ball_standard, WHITE, 1, 1, 1) == pytest.approx(1, abs=1e-3)
    assert at(ball_standard, WHITE, 1, 1, 31) == pytest.approx(1, abs=1e-3)
    assert at(ball_standard, WHITE, 1, 1, 49) == pytest.approx(0, abs=0.1)


def test_gray_matter_is_that_of_nuclei_deep_in_the_middle_alone(ball_standard):
    # 33 mm below the surface, within 0.45 of the half axes; 19 mm below it; the cortex.
    shares = [
        [at(ball_standard, name, *point) for name in (GRAY, DEEP)]
        for point in ((17, 1, 1), (1, 31, 1), (1, 1, 47))
    ]
    np.testing.assert_allclose(shares, [[0, 1], [1, 0], [1, 0]], atol=0.12)


def test_the_standard_brain_is_the_same_each_time_and_of_a_persons_size():
    first, second = (standard_brain((8.0,) * 3) for _ in range(2))
    assert first is second
    np.testing.assert_array_equal(first.half_axes, [68, 85, 64])
    np.testing.assert_allclose(np.linalg.norm(first.affine[:3, :3], axis=0), 2)
    center = (
        first.affine[:3, :3] @ ((np.array(first.maps.shape[1:]) - 1) / 2) + first.affine[:3, 3]
    )
    np.testing.assert_allclose(center, 0, atol=1e-9)


def test_fine_maps_make_the_same_standard_brain_as_coarse_ones():
    coarse = made_tissues(2.0)
    fine = TissueMaps(
        *(
            np.repeat(np.repeat(np.repeat(part, 2, 0), 2, 1), 2, 2)
            for part in (coarse.gray, coarse.white, coarse.brain)
        ),
        coarse.affine @ np.diag([0.5, 0.5, 0.5, 1]),
        coarse.half_axes,
    )
    fine.affine[:3, 3] -= 0.5
    one, other = (standard_brain((4.0,) * 3, maps) for maps in (coarse, fine))
    np.testing.assert_allclose(one.affine, other.affine)
    np.testing.assert_allclose(one.maps, other.maps, atol=1e-5)


# A person's brain ---------------------------------------------------------------------------------


def test_shares_add_up_to_one_and_fibers_are_unit_vectors(brain):
    shares = np.stack([brain.white, brain.gray, brain.deep, brain.fluid])
    assert shares.min() >= 0
    np.testing.assert_allclose(shares.sum(axis=0), 1, atol=1e-5)
    assert brain.fibers.shape == (2, brain.brain.sum(), 3)
    lengths = np.linalg.norm(brain.fibers, axis=-1)
    np.testing.assert_allclose(lengths[:, brain.white > 0.5], 1, atol=1e-5)
    assert 0 <= brain.crossing.min() <= brain.crossing.max() <= 0.5
    assert 0.4 - 1e-6 <= brain.order[brain.white > 0.5].min() <= brain.order.max() <= 1


def test_fibers_are_not_along_each_other_where_they_cross(brain):
    crossed = (brain.crossing > 0.2) & (brain.white > 0.9)
    assert crossed.sum() > 50
    along = np.abs((brain.fibers[0] * brain.fibers[1]).sum(axis=1))[crossed]
    assert np.median(along) < 0.2


def test_places_and_depths_are_those_of_the_mask(brain):
    voxels = np.argwhere(brain.brain)
    np.testing.assert_allclose(
        brain.places, 4.0 * (voxels - np.array([19.5, 23.5, 15.5])), atol=1e-4
    )
    outside = np.argwhere(~np.pad(brain.brain, 1)) - 1
    for i in range(0, len(voxels), 997):
        distance = 4.0 * np.sqrt(((outside - voxels[i]) ** 2).sum(axis=1)).min()
        assert brain.depth[i] == pytest.approx(distance, rel=1e-5)


def test_a_brain_fills_a_small_field_of_view_but_for_its_rim():
    standard = standard_brain((8.0,) * 3)
    small = draw_brain(standard, (20, 24, 16), (4.0,) * 3, np.random.default_rng(0))
    # Half of 80, 96 and 64 mm less 4 mm; no axis may exceed the smallest scale, 28 / 64, by more than a quarter.
    np.testing.assert_allclose(small.half_axes, [36, 44, 28])
    assert small.size == pytest.approx((36 / 68 + 44 / 85 + 28 / 64) / 3)
    flat = draw_brain(standard, (40, 48, 14), (4.0,) * 3, np.random.default_rng(0))
    scale = 1.25 * 24 / 64
    np.testing.assert_allclose(flat.half_axes, [68 * scale, 85 * scale, 24])


def test_growth_moves_the_walls_of_ventricles_by_so_many_mm(ball_standard):
    radii = []
    for growth in (0.0, 3.0, 6.0):
        person = draw_brain(
            ball_standard, (60,) * 3, (2.0,) * 3, np.random.default_rng(1), growth=growth
        )
        middle = np.linalg.norm(person.places, axis=1) < 25
        volume = 8.0 * person.fluid[middle].sum()
        radii.append((3 * volume / (4 * np.pi)) ** (1 / 3))
    # A person's ventricle is larger or smaller as a whole, and so is what it grows by.
    assert radii[0] == pytest.approx(10, abs=2)
    assert (radii[2] - radii[1]) / radii[0] == pytest.approx(3 / 10, abs=0.04)
    # Next to the wall distances are those between voxels of 2 mm.
    assert (radii[1] - radii[0]) / radii[0] == pytest.approx(3 / 10, abs=1 / 10)


def test_a_persons_brain_is_that_of_the_stream():
    standard = standard_brain((8.0,) * 3)
    first, again, different = (
        draw_brain(standard, (20, 24, 16), (8.0,) * 3, np.random.default_rng(seed))
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first.white, again.white)
    assert not np.array_equal(first.brain, different.brain)


def test_poor_registration_leaves_a_change_of_size_of_up_to_5_percent():
    standard, where = standard_brain((8.0,) * 3), ((30, 35, 28), (8.0,) * 3)
    sizes = []
    for seed in range(8):
        good, shifted = (
            draw_brain(standard, *where, np.random.default_rng(seed), shifted=way).brain.sum()
            for way in (False, True)
        )
        sizes.append((shifted / good) ** (1 / 3))
    assert 0.94 < min(sizes) < 0.97
    assert 1.03 < max(sizes) < 1.06


def test_older_persons_have_larger_ventricles():
    standard, shape, spacing = standard_brain((4.0,) * 3), (40, 48, 32), (4.0,) * 3
    fluid = [
        draw_brain(standard, shape, spacing, np.random.default_rng(0), growth=growth).fluid.sum()
        for growth in (-2, 0, 3)
    ]
    assert fluid == sorted(fluid)
    assert fluid[2] > 1.15 * fluid[0]


def test_values_of_voxels_are_put_into_volumes_and_tissues_are_the_largest_shares():
    mask = np.zeros((2, 3, 2), dtype=bool)
    mask[0, 1, 1] = mask[1, 0, 0] = mask[1, 2, 0] = mask[1, 2, 1] = True
    shares = np.array(
        [[0.7, 0.1, 0.2, 0.0], [0.1, 0.6, 0.1, 0.3], [0.1, 0.2, 0.0, 0.5], [0.1, 0.1, 0.7, 0.2]]
    )
    nothing = np.zeros(4)
    person = Brain(
        mask, shares[0], shares[1], shares[2], shares[3], np.zeros((2, 4, 3)), nothing, nothing, nothing,
        np.zeros((4, 3)), np.ones(3), np.ones(3), 1.0,
    )  # fmt: skip
    # White, gray, deep gray and fluid lead one after the other; their numbers are 1, 2, 4 and 3.
    tissue = person.tissue
    assert [tissue[0, 1, 1], tissue[1, 0, 0], tissue[1, 2, 0], tissue[1, 2, 1]] == [1, 2, 3, 4]
    assert np.count_nonzero(tissue) == 4
    volume = person.volume(np.array([[1, 2], [3, 4], [5, 6], [7, 8]], dtype=np.int16))
    assert volume.shape == (2, 3, 2, 2)
    assert volume.dtype == np.int16
    assert volume[1, 2, 0].tolist() == [5, 6]
    assert volume.sum() == 36


def test_voxels_see_their_surroundings_as_large_ones_do():
    coarse, fine = (standard_brain((edge,) * 3, ball_tissues()) for edge in (8.0, 2.0))
    blurred = ndimage.gaussian_filter(ball_tissues().white, 0.3 * 8.0 / 2.0)
    outer = np.s_[30, 30, 45:]
    np.testing.assert_allclose(coarse.maps[WHITE][outer], blurred[outer], atol=1e-4)
    assert np.abs(fine.maps[WHITE] - coarse.maps[WHITE]).max() > 0.2
