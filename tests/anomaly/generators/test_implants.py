"""Lesions put into healthy scans have the signal of their diffusivity, lie in the brain, and repeat."""

import numpy as np
import pytest
from scipy import ndimage

from anomaly.generators import implants
from anomaly.generators.implants import (
    Look,
    add_patch,
    ball_radius,
    implant,
    implant_patch,
    lesion_center,
    noise_floor,
    patch_weight,
    rough_ellipsoid,
    tissue_share,
)

#: Diffusion weighting in ms/µm².
B = 1.0


SHAPE = (20, 20, 20)
MASK = np.linalg.norm(np.indices(SHAPE) - 9.5, axis=0) <= 9


def uniform_look(mean=0.42, spread=0.1, mask=None):
    mask = np.ones((24, 24, 24), dtype=bool) if mask is None else mask
    return Look(*(np.where(mask, np.float32(value), np.float32(0)) for value in (mean, spread)), mask)


def fiber_signals(n_directions=30):
    """Compute the signal of fibers along x (1.7 and 0.3 µm²/ms) in directions over the sphere."""
    directions = np.random.default_rng(0).standard_normal((n_directions, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return np.exp(-B * (0.3 + 1.4 * directions[:, 0] ** 2))


@pytest.fixture
def set_lesion(monkeypatch):
    """Set the diffusivity in µm²/ms and the share of the parts of all lesions; a part without them is left out."""

    def choose(*, body, core=None, halo=None):
        settings = {"_CORE_ODDS": 0.0, "_DEAD_ODDS": 0.0, "_HALO_ODDS": 0.0}
        settings |= {"_FAST": (B * body[0],) * 2, "_BODY_SHARE": (body[1],) * 2, "_BODY_EDGE": (0.2, 0.2)}
        if core is not None:
            settings |= {"_CORE_ODDS": 1.0, "_CORE": ((0.8, 0.8), (B * core[0],) * 2, (core[1],) * 2, 0.15)}
        if halo is not None:
            settings |= {"_HALO_ODDS": 1.0, "_HALO": ((1.8, 1.8), (B * body[0],) * 2, (halo,) * 2, 0.2)}
        for name, value in settings.items():
            monkeypatch.setattr(implants, name, value)

    return choose


def mixture(tissue, *parts):
    """Mix signals direction by direction: of tissue, and of parts with a diffusivity and a share."""
    tissue_share = 1 - sum(share for _, share in parts)
    return tissue_share * tissue + sum(share * np.exp(-B * diffusivity) for diffusivity, share in parts)


@pytest.mark.parametrize(
    ("lesion", "parts"),
    [
        ({"body": (1.0, 0.6)}, [(1.0, 0.6)]),
        ({"body": (1.8, 0.9)}, [(1.8, 0.9)]),
        ({"body": (1.4, 0.5), "core": (0.5, 1.0)}, [(0.5, 1.0)]),
        # Of the fifth that the core leaves, the body takes the half.
        ({"body": (1.4, 0.5), "core": (0.5, 0.8)}, [(0.5, 0.8), (1.4, 0.1)]),
        # Of the half that the body leaves, the halo takes two fifths.
        ({"body": (1.4, 0.5), "halo": 0.4}, [(1.4, 0.7)]),
    ],
    ids=str,
)
def test_an_implanted_voxel_is_the_mixture_of_tissue_and_isotropic_diffusion(set_lesion, lesion, parts):
    set_lesion(**lesion)
    tissue = fiber_signals()
    expected = mixture(tissue, *parts)
    look = uniform_look(tissue.mean(), tissue.std())
    for seed in range(4):
        changed, truth = implant(look, 0.0, np.random.default_rng(seed))
        # In the middle no edge is soft.
        inner = np.isclose(changed.spread, changed.spread.min(), atol=1e-6)
        assert inner.any()
        assert (inner & truth).any()
        np.testing.assert_allclose(changed.mean[inner], expected.mean(), rtol=1e-5)
        np.testing.assert_allclose(changed.spread[inner], expected.std(), rtol=1e-4, atol=1e-6)


def test_the_spread_in_a_lesion_is_that_of_the_tissue_left_and_of_the_noise(set_lesion):
    set_lesion(body=(1.4, 0.6))
    tissue, noise = fiber_signals(), 0.03
    # Noise is independent of the directions: variances add up.
    look = uniform_look(tissue.mean(), np.hypot(tissue.std(), noise))
    changed, _ = implant(look, noise, np.random.default_rng(1))
    expected = np.hypot(mixture(tissue, (1.4, 0.6)).std(), noise)
    assert changed.spread.min() == pytest.approx(expected, rel=1e-5)


def test_diffusivities_and_sizes_lie_within_the_stated_ranges():
    """Without noise, the spread tells the tissue that is left, and the mean then the diffusion of what replaced it."""
    look = uniform_look(0.42, 0.1)
    ball = 24 * (3 / (4 * np.pi)) ** (1 / 3)
    single, lowest, highest, radii = [], [], [], []
    for seed in range(80):
        changed, _ = implant(look, 0.0, np.random.default_rng(seed))
        tissue_share = changed.spread.astype(np.float64) / 0.1
        replaced = tissue_share < 0.8
        diffusion = -np.log((changed.mean[replaced] - tissue_share[replaced] * 0.42) / (1 - tissue_share[replaced]))
        if np.ptp(diffusion) < 1e-3:
            single.append(diffusion.mean())
        lowest.append(diffusion.min())
        highest.append(diffusion.max())
        radii.append((np.count_nonzero(tissue_share < 0.99) * 3 / (4 * np.pi)) ** (1 / 3) / ball)
    assert len(single) > 15
    assert 1.0 <= min(single) < 1.15
    assert 1.65 < max(single) <= 1.8
    assert 0.38 <= min(lowest) < 0.62
    assert 1.8 < max(highest) <= 2.8
    # From a tenth to a third of the brain; axes differ by factors of 0.6 to 1.25, edges and halos reach beyond.
    assert 0.05 < min(radii) < 0.16
    assert 0.3 < max(radii) < 0.36 * 1.25 * 2


def test_fluid_stays_and_a_halo_belongs_to_the_lesion_where_it_replaces_three_tenths_of_the_tissue(set_lesion):
    set_lesion(body=(1.4, 0.9))
    look = uniform_look()
    look.mean[12] = 0.05
    for seed in range(40):
        changed, lesion = implant(look, 0.0, np.random.default_rng(seed))
        np.testing.assert_array_equal(changed.mean[12], look.mean[12])
        if lesion[11].any() and lesion[13].any():
            assert lesion[12].any()
            break
    else:
        pytest.fail("no lesion crosses the fluid")
    look = uniform_look()
    lesions, tissue_shares = {}, {}
    for share in (None, 0.25, 0.6):
        set_lesion(body=(1.4, 0.9), halo=share)
        changed, lesions[share] = implant(look, 0.0, np.random.default_rng(2))
        tissue_shares[share] = changed.spread / 0.1
    np.testing.assert_array_equal(lesions[0.25], lesions[None])
    assert (tissue_shares[0.25] < 0.99).sum() > (tissue_shares[None] < 0.99).sum()
    assert lesions[0.6].sum() > lesions[None].sum()
    # Outside of the body nothing but the halo is there.
    outside = tissue_shares[None] > 0.999
    assert lesions[0.6][outside & (tissue_shares[0.6] < 0.69)].all()
    assert not lesions[0.6][outside & (tissue_shares[0.6] > 0.71)].any()


def test_an_implant_changes_its_place_and_nothing_outside_its_reach():
    look = uniform_look(mask=MASK)
    floor = noise_floor(look)
    for seed in range(12):
        changed, lesion = implant(look, floor, np.random.default_rng(seed))
        assert not lesion[~look.mask].any()
        assert not changed.mean[~look.mask].any()
        np.testing.assert_array_equal(changed.mask, look.mask)
        moved = np.abs(changed.mean - look.mean) > 1e-6
        far = ~ndimage.binary_dilation(lesion, iterations=10)
        assert not (moved & far).any() or not lesion.any()


def test_noise_that_mixing_takes_away_is_given_back_down_to_the_floor_of_bright_tissue():
    look = uniform_look()
    ratios = []
    for seed in range(4):
        noisy, quiet = (implant(look, floor, np.random.default_rng(seed))[0] for floor in (0.04, 0.0))
        left = quiet.spread / 0.1
        changed = left < 0.8
        ratios.append((noisy.mean - quiet.mean)[changed] / (0.4 * 0.04 * np.sqrt(1 - left[changed] ** 2)))
    np.testing.assert_allclose(np.concatenate(ratios).std(), 1, atol=0.05)
    look = uniform_look(mask=np.ones((10, 10, 11), dtype=bool))
    # Dark voxels, which are no tissue, and one plane outside the mask have hardly any spread.
    look.mean[:5] = 0.1
    look.spread[:5] = 0.001
    look.mask[:, :, 10] = False
    look.spread[:, :, 10] = 0.0
    look.spread[5:, :, :10] = 0.02 + 0.0001 * np.arange(500).reshape(5, 10, 10)
    assert noise_floor(look) == pytest.approx(0.02 + 0.0001 * 49.9, rel=1e-5)


def test_foreign_patches_change_the_look_where_their_label_is_and_take_nothing_from_outside_a_brain():
    look, source = uniform_look(0.5, 0.1, MASK), uniform_look(0.3, 0.2, MASK)
    for seed in range(4):
        changed, label = implant_patch(look, source, 0.0, np.random.default_rng(seed))
        assert label.any()
        assert (changed.mean[label] < 0.45).all()
        assert (changed.mean[label] >= 0.3 - 1e-6).all()
        far = MASK & (changed.mean == look.mean)
        np.testing.assert_array_equal(changed.spread[far], look.spread[far])
    half = MASK & (np.indices(SHAPE)[0] < 10)
    for seed in range(8):
        weight, _, offset = patch_weight(
            np.where(MASK, 1, 0).astype(np.float32), MASK, half, np.random.default_rng(seed)
        )
        sources = np.argwhere(weight > 0) + offset
        assert half[tuple(sources.T)].all()


def test_patches_come_from_another_person_at_another_place():
    # The other person's voxels hold their own positions.
    places = np.moveaxis(np.indices(SHAPE), 0, -1).astype(np.float32) + 100
    source = np.where(MASK[..., None], places, 0)
    volume = np.where(MASK[..., None], np.float32(0.5), np.float32(0)).repeat(3, axis=-1)
    for seed in range(5):
        changed, _, label = add_patch(volume, MASK, np.random.default_rng(seed), source)
        weight, same_label, offset = patch_weight(
            np.where(MASK, 1, 0).astype(np.float32), MASK, MASK, np.random.default_rng(seed)
        )
        np.testing.assert_array_equal(label, same_label)
        inside = weight > 0
        foreign = (changed - (1 - weight[..., None]) * volume)[inside] / weight[inside][:, None]
        np.testing.assert_allclose(foreign, places[inside] + offset, rtol=1e-3)
        assert np.any(offset != 0)
        np.testing.assert_array_equal(changed[~inside], volume[~inside])
        assert (weight[label] >= 0.3).all()


def test_fluid_has_no_tissue_and_lesions_begin_in_tissue_and_have_about_their_radius():
    rngs = map(np.random.default_rng, range(20))
    ellipsoids = [rough_ellipsoid((30, 30, 30), np.array([15, 15, 15]), 8.0, rng) < 1 for rng in rngs]
    assert np.mean([one.sum() for one in ellipsoids]) == pytest.approx(4 / 3 * np.pi * 8**3 * 0.8, rel=0.3)
    assert ball_radius(MASK) == pytest.approx(9, rel=0.02)
    volume = np.where(np.indices(SHAPE)[0] < 10, 0.05, 0.5)[..., None] * MASK[..., None]
    share = tissue_share(volume, MASK)
    np.testing.assert_array_equal(share == 1, MASK & (np.indices(SHAPE)[0] >= 10))
    rng = np.random.default_rng(0)
    assert all(share[tuple(lesion_center(share, rng))] == 1 for _ in range(20))
