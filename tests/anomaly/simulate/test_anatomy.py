"""Persons have the fibers of the standard brain, and differ from it as stated."""

import numpy as np
import pytest

from anomaly.generators.gliomas import Component
from anomaly.simulate.persons import (
    Brain,
    add_noise,
    brain_signals,
    draw_brain,
    spread_directions,
    standard_brain,
    tensor_signals,
)
from dmrifit.simulate.heads import TissueMaps


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


# Signals

ALONG_X, ALONG_Y = np.eye(3)[:2]


def uniform_brain(n=1, *, white=0.0, gray=0.0, deep=0.0, fluid=0.0, crossing=0.0, order=1.0):
    """Make a brain of n equal voxels whose fibers go along x, and along y where they cross."""
    shares = {"white": white, "gray": gray, "fluid": fluid, "deep": deep}
    shares = {name: np.full(n, share, dtype=np.float32) for name, share in shares.items()}
    fibers = np.stack([np.tile(ALONG_X, (n, 1)), np.tile(ALONG_Y, (n, 1))])
    properties = (np.full(n, value, dtype=np.float32) for value in (crossing, order))
    return Brain(None, shares, fibers, *properties)


def signals_of(brain, b=1000.0, factor=1.0, lesion=()):
    signals, b0 = brain_signals(brain, np.eye(3), b, np.full(len(brain.shares["white"]), factor), lesion)
    return signals[0], b0[0]


def test_signals_are_tensors_of_dipy():
    from dipy.core.gradients import gradient_table
    from dipy.sims.voxel import multi_tensor

    directions = spread_directions(20)
    rng = np.random.default_rng(0)
    fibers = rng.standard_normal((2, 5, 3))
    fibers /= np.linalg.norm(fibers, axis=-1, keepdims=True)
    share, b = 0.3, 1000.0
    table = gradient_table(np.full(20, b), bvecs=directions, b0_threshold=0)
    ours = sum(
        part * tensor_signals(one, 1.6, 0.35, np.full(5, 1.0), directions)
        for part, one in zip((1 - share, share), fibers, strict=True)
    )
    for i in range(5):
        expected, _ = multi_tensor(
            table,
            np.array([[1.6e-3, 0.35e-3, 0.35e-3]] * 2),
            S0=1.0,
            angles=[tuple(fiber[i]) for fiber in fibers],
            fractions=[100 * (1 - share), 100 * share],
            snr=None,
        )
        np.testing.assert_allclose(ours[i], expected, rtol=1e-5)


def test_a_tensor_has_its_diffusivities_along_and_across_its_fiber():
    diagonal = np.array([1, 1, 0]) / 2**0.5
    signals = tensor_signals(np.array([ALONG_X, diagonal]), 1.6, 0.35, [1.0, 2.0], np.eye(3))
    # Halfway between two axes the diffusivity is their mean.
    expected = np.exp([[-1.6, -0.35, -0.35], [-1.95, -1.95, -0.7]])
    np.testing.assert_allclose(signals, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("brain", "expected", "b0"),
    [
        ({"white": 1}, np.exp([-1.6, -0.35, -0.35]), 1),
        ({"white": 1, "crossing": 0.3}, np.array([[0.7, 0.3], [0.3, 0.7], [0.5, 0.5]]) @ np.exp([-1.6, -0.35]), 1),
        ({"white": 1, "order": 0}, np.exp([-0.77] * 3), 1),
        ({"white": 1, "order": 0.5}, 0.5 * np.exp([-1.6, -0.35, -0.35]) + 0.5 * np.exp(-0.77), 1),
        ({"gray": 1}, 1.15 * np.exp([-0.82] * 3), 1.15),
        ({"deep": 1}, 0.95 * np.exp([-0.74] * 3), 0.95),
        ({"fluid": 1}, 2.8 * np.exp([-3.0] * 3), 2.8),
        ({"gray": 0.5, "fluid": 0.5}, 0.575 * np.exp([-0.82] * 3) + 1.4 * np.exp(-3.0), 1.975),
    ],
    ids=str,
)
def test_voxels_of_known_tissue_have_the_signals_written_out(brain, expected, b0):
    if brain.get("crossing"):
        # In the third direction both fibers are seen across.
        expected = np.array([expected[0], expected[1], np.exp(-0.35)])
    signals, without = signals_of(uniform_brain(**brain))
    np.testing.assert_allclose(signals, expected, rtol=1e-5)
    assert without == pytest.approx(b0, rel=1e-6)


def test_diffusivities_differ_by_a_factor_as_weighting_does():
    brain = uniform_brain(white=0.6, gray=0.3, fluid=0.1, crossing=0.2, order=0.8)
    faster, stronger = signals_of(brain, factor=1.2), signals_of(brain, b=1200.0)
    np.testing.assert_allclose(faster[0], stronger[0], rtol=1e-5)
    assert faster[1] == stronger[1]


def test_a_component_takes_the_place_of_its_share_of_everything_else():
    brain = uniform_brain(white=0.5, gray=0.5)
    (before, b0), share = signals_of(brain), np.full(1, 0.25, dtype=np.float32)
    after, after_b0 = signals_of(brain, lesion=[Component(share, 0.5, 1.1), Component(share, 2.0, 2.2)])
    expected = 0.5 * before + 0.25 * 1.1 * np.exp(-0.5) + 0.25 * 2.2 * np.exp(-2.0)
    np.testing.assert_allclose(after, expected, rtol=1e-5)
    assert after_b0 == pytest.approx(0.5 * b0 + 0.25 * 1.1 + 0.25 * 2.2, rel=1e-6)


def test_tissues_count_by_their_brightness(brain):
    directions = spread_directions(16)
    signals, b0 = brain_signals(brain, directions, 1000.0, np.ones(len(brain.shares["white"])))
    fluid = brain.shares["fluid"] > 0.99
    np.testing.assert_allclose(signals[fluid] / b0[fluid, None], np.exp(-3.0), rtol=0.2)
    np.testing.assert_allclose(
        b0, brain.shares["white"] + 1.15 * brain.shares["gray"] + 0.95 * brain.shares["deep"] + 2.8 * brain.shares["fluid"], rtol=1e-5
    )
    expected = (
        1.15 * brain.shares["gray"] * np.exp(-0.82)
        + 2.8 * brain.shares["fluid"] * np.exp(-3.0)
        + 0.95 * brain.shares["deep"] * np.exp(-0.74)
    )
    gray = brain.shares["white"] < 0.01
    assert gray.sum() > 100
    np.testing.assert_allclose(signals[gray].mean(axis=1), expected[gray], atol=0.01)
    half, half_b0 = brain_signals(brain, directions, 0.0, np.ones(len(brain.shares["white"])))
    np.testing.assert_allclose(half, np.repeat(half_b0[:, None], 16, axis=1), rtol=1e-5)


def test_noise_is_rician():
    rng = np.random.default_rng(0)
    np.testing.assert_allclose(
        add_noise(np.zeros(100_000, np.float32), 0.5, rng).mean(),
        0.5 * (np.pi / 2) ** 0.5,
        rtol=0.01,
    )
    bright = add_noise(np.full(100_000, 50.0, np.float32), 0.5, rng)
    np.testing.assert_allclose((bright.mean(), bright.std()), (50.0025, 0.5), rtol=0.01)
    values = np.ones(4, np.float32)
    np.testing.assert_array_equal(add_noise(values, 0.0, rng), values)


def test_directions_cover_half_a_sphere():
    directions = spread_directions(64)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1)
    np.testing.assert_allclose(directions.T @ directions / 64, np.eye(3) / 3, atol=0.02)
    apart = np.abs(directions @ directions.T) - np.eye(64)
    assert np.degrees(np.arccos(apart.max())) > 6
