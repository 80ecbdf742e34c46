"""Persons have the fibers of the standard brain, and differ from it as stated."""

import numpy as np
import pytest

from anomaly.simulate.anatomy import draw_brain, standard_brain
from dmrifit.simulate.tissue_maps import TissueMaps


def maps_of(standard, repeats=1):
    """Make maps of tissue from a standard head, of voxels that are so many times finer."""
    matter = standard.head.matter
    shares = (matter.gray + matter.deep, matter.white, (matter.brain > 0.5).astype(np.float32))
    fine = [share.repeat(repeats, 0).repeat(repeats, 1).repeat(repeats, 2) for share in shares]
    affine = standard.head.affine @ np.diag([*np.full(3, 1 / repeats), 1])
    affine[:3, 3] -= (1 - 1 / repeats) * np.diag(standard.head.affine)[:3] / 2
    return TissueMaps(*fine, affine, standard.head.half_axes)


def test_fine_maps_make_the_same_standard_brain_as_coarse_ones():
    maps = (maps_of(standard_brain((4.0,) * 3), repeats) for repeats in (1, 2))
    coarse, fine = (standard_brain((4.0,) * 3, tissues) for tissues in maps)
    np.testing.assert_allclose(coarse.head.affine, fine.head.affine)
    for coarse_map, fine_map in zip(coarse.head.matter, fine.head.matter, strict=True):
        np.testing.assert_allclose(coarse_map, fine_map, atol=1e-5)
    np.testing.assert_allclose(coarse.fibers, fine.fibers, atol=1e-5)


def test_the_standard_brain_is_the_same_each_time():
    assert standard_brain((8.0,) * 3) is standard_brain((8.0,) * 3)


# A person's brain ---------------------------------------------------------------------------------


def test_shares_add_up_to_one_and_fibers_are_unit_vectors(brain):
    shares = np.stack(list(brain.shares.values()))
    assert shares.min() >= 0
    np.testing.assert_allclose(shares.sum(axis=0), 1, atol=1e-5)
    assert brain.fibers.shape == (2, brain.head.brain.sum(), 3)
    lengths = np.linalg.norm(brain.fibers, axis=-1)
    np.testing.assert_allclose(lengths[:, brain.shares["white"] > 0.5], 1, atol=1e-5)
    assert 0 <= brain.crossing.min() <= brain.crossing.max() <= 0.5
    assert 0.4 - 1e-6 <= brain.order[brain.shares["white"] > 0.5].min() <= brain.order.max() <= 1


def test_fibers_are_not_along_each_other_where_they_cross(brain):
    crossed = (brain.crossing > 0.2) & (brain.shares["white"] > 0.9)
    assert crossed.sum() > 50
    along = np.abs((brain.fibers[0] * brain.fibers[1]).sum(axis=1))[crossed]
    assert np.median(along) < 0.2


def test_a_brain_fills_a_small_field_of_view_but_for_its_rim():
    standard = standard_brain((8.0,) * 3)
    small = draw_brain(standard, (20, 24, 16), (4.0,) * 3, np.random.default_rng(0))
    # Half of 80, 96 and 64 mm less 4 mm; no axis may exceed the smallest scale, 28 / 64, by more than a quarter.
    np.testing.assert_allclose(small.head.half_axes, [36, 44, 28])
    assert small.head.size == pytest.approx((36 / 68 + 44 / 85 + 28 / 64) / 3)
    flat = draw_brain(standard, (40, 48, 14), (4.0,) * 3, np.random.default_rng(0))
    scale = 1.25 * 24 / 64
    np.testing.assert_allclose(flat.head.half_axes, [68 * scale, 85 * scale, 24])


def test_poor_registration_leaves_a_change_of_size_of_up_to_5_percent():
    standard, where = standard_brain((8.0,) * 3), ((30, 35, 28), (8.0,) * 3)
    sizes = []
    for seed in range(8):
        good, shifted = (
            draw_brain(standard, *where, np.random.default_rng(seed), shifted=way).head.brain.sum()
            for way in (False, True)
        )
        sizes.append((shifted / good) ** (1 / 3))
    assert 0.94 < min(sizes) < 0.97
    assert 1.03 < max(sizes) < 1.06


def test_older_persons_have_larger_ventricles():
    standard, shape, spacing = standard_brain((4.0,) * 3), (40, 48, 32), (4.0,) * 3
    volumes = []
    for growth in (-2, 0, 3):
        person = draw_brain(standard, shape, spacing, np.random.default_rng(0), growth=growth)
        volumes.append(person.head.ventricles.sum())
    assert volumes == sorted(volumes)
    assert volumes[2] > 2 * volumes[0]


def test_values_of_voxels_are_put_into_volumes(brain):
    values = np.arange(1, 2 * len(brain.shares["white"]) + 1, dtype=np.int32).reshape(-1, 2)
    volume = brain.volume(values)
    assert volume.shape == (40, 48, 32, 2)
    assert volume.dtype == np.int32
    np.testing.assert_array_equal(volume[brain.head.brain], values)
    assert not volume[~brain.head.brain].any()


def test_tissues_are_those_with_the_largest_shares(brain):
    shares = dict(zip((1, 2, 3, 4), map(brain.shares.get, ("white", "gray", "fluid", "deep")), strict=True))
    tissue = brain.tissue[brain.head.brain]
    for number, share in shares.items():
        largest = tissue == number
        assert largest.any()
        assert all((share >= other - 1e-6)[largest].all() for other in shares.values())
    assert not brain.tissue[~brain.head.brain].any()
