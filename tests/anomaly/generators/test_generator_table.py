"""Each of the five generators: what it changes is its label, from its seed alone."""

import numpy as np
import pytest

from anomaly import GENERATORS

SHAPE = (22, 24, 20)


def person(seed, level=0.5, spread=0.06):
    """Give a healthy scan of tissue without noise, and its brain."""
    rng = np.random.default_rng(seed)
    places = np.indices(SHAPE) - np.reshape(SHAPE, (3, 1, 1, 1)) / 2 + 0.5
    mask = (np.square(places) / np.reshape((81, 100, 64), (3, 1, 1, 1))).sum(axis=0) <= 1
    directions = level + spread * rng.standard_normal(6)
    volume = np.where(mask[..., None], directions, 0).astype(np.float32)
    # White matter: half of the brain is more anisotropic.
    volume[: SHAPE[0] // 2] += np.where(mask[: SHAPE[0] // 2, ..., None], [0.1, -0.1] * 3, 0)
    return volume, mask


@pytest.fixture
def scan():
    return person(0)


@pytest.fixture(scope="module")
def other():
    return person(1, level=0.3)[0]


def put(name, scan, other, seed, **options):
    source = other if GENERATORS[name].needs_source else None
    return GENERATORS[name](*scan, source=source, random_state=seed, **options)


@pytest.mark.parametrize("name", GENERATORS)
def test_each_generator_changes_what_its_label_says_by_seed_with_noise_put_back(name, scan, other):
    volume, mask = scan
    for seed in range(4):
        changed, label = put(name, scan, other, seed)
        difference = np.abs(changed - volume).mean(axis=-1)
        assert label.any()
        assert not (label & ~mask).any()
        assert not difference[~mask].any()
        assert (difference[label] > 1e-5).all()
        # Beyond the label there are only fading edges.
        assert difference[mask & ~label].mean() < 0.1 * difference[label].mean()
        if name == "ellipsoids":
            np.testing.assert_array_equal(difference > 0, label)
    np.testing.assert_array_equal(volume, person(0)[0])
    first, again, another = (put(name, scan, other, seed, noise=0.02) for seed in (5, 5, 6))
    for one, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, same)
    assert (first[0] != another[0]).any()
    clipped = np.clip(volume + 0.45 * mask[..., None], 0, 1)
    for signals in (clipped, np.clip(volume - 0.2 * mask[..., None], 0, 1)):
        changed, _ = put(name, (signals, mask), other, 4, noise=0.3)
        assert changed.min() >= 0
        assert changed.max() <= 1


@pytest.mark.parametrize("name", ["patches", "infiltration", "hypercellular"])
def test_the_label_of_a_soft_edge_is_where_half_of_the_effect_is(name, scan, other):
    volume, mask = person(0, spread=0)
    volume = np.where(mask[..., None], np.float32(0.5), np.float32(0))
    source = np.where(mask[..., None], np.float32(0.3), np.float32(0))
    changed, label = put(name, (volume, mask), source, 3)
    effect = np.abs(np.log(changed[..., 0] / 0.5, where=mask, out=np.zeros(SHAPE)))
    if name == "patches":
        effect = np.abs(changed[..., 0] - volume[..., 0])
    # Patches end where the other person has no brain.
    near = np.isclose(effect, 0.5 * effect.max(), rtol=0.02)
    np.testing.assert_array_equal(label[~near], (effect >= 0.5 * effect.max())[~near])


def test_fluid_is_not_changed_by_diffusivity(other):
    volume, mask = person(0)
    fluid = mask & (np.indices(SHAPE)[2] > 10)
    volume[fluid] = 0.05
    for name in ("infiltration", "hypercellular"):
        changed, label = put(name, (volume, mask), other, 1)
        np.testing.assert_array_equal(changed[fluid], volume[fluid])
        assert not label[fluid].any()
    volume = np.full((*SHAPE, 3), 0.05, dtype=np.float32)
    for name in ("gliomas", "infiltration", "hypercellular"):
        with np.errstate(all="raise"):
            changed, label = GENERATORS[name](volume, np.ones(SHAPE, dtype=bool), random_state=0)
        np.testing.assert_array_equal(changed, volume)
        assert not label.any()


def test_noise_that_mixing_averaged_out_is_put_back(scan, other):
    volume, mask = scan
    rng = np.random.default_rng(0)
    noise_volumes = 0.03 * rng.standard_normal((2, *SHAPE, 6), dtype=np.float32) * mask[..., None]
    noisy, foreign = volume + noise_volumes[0], other + noise_volumes[1]
    spreads = []
    for noise in (0.0, 0.03):
        errors = []
        for seed in range(12):
            clean, label = put("patches", (volume, mask), other, seed)
            changed, _ = put("patches", (noisy, mask), foreign, seed, noise=noise)
            errors.append((changed - clean)[label].ravel())
        spreads.append(np.concatenate(errors).std())
    # The same place is drawn with and without noise.
    assert spreads[0] < 0.93 * 0.03
    assert spreads[1] == pytest.approx(0.03, rel=0.06)


CUBE = (24, 24, 24)
BALL = np.linalg.norm(np.indices(CUBE) - 11.5, axis=0) <= 11
TISSUE = np.exp(-np.array([0.6, 0.8, 1.0], dtype=np.float32))  # b·D


@pytest.mark.parametrize(("name", "low", "high"), [("infiltration", 1.05, 1.4), ("hypercellular", 0.6, 0.93)])
def test_diffusivity_changes_by_the_stated_range_in_all_directions(name, low, high):
    volume = np.where(BALL[..., None], TISSUE, 0).astype(np.float32)
    for seed in range(6):
        changed, _, label = GENERATORS[name].add(volume, BALL, np.random.default_rng(seed))
        ratios = np.log(changed[label]) / np.log(volume[label])
        assert ratios.min() >= low - 1e-3
        assert ratios.max() <= high + 1e-3
        np.testing.assert_allclose(ratios, ratios[:, :1].repeat(3, axis=1), rtol=1e-3)


def test_infiltration_has_no_edge():
    volume = np.where(BALL[..., None], TISSUE, 0).astype(np.float32)
    changed, _, _ = GENERATORS["infiltration"].add(volume, BALL, np.random.default_rng(1))
    effect = np.where(BALL, np.log(np.where(BALL, changed[..., 0], 1)) / np.log(TISSUE[0]) - 1, 0)
    steps = np.abs(np.diff(effect, axis=0))[BALL[1:] & BALL[:-1]]
    assert steps.max() < 0.5 * effect.max()
