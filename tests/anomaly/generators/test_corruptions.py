"""Ellipsoids of noise: where they lie, what fills them, and that the mask says both."""


import numpy as np
import pytest

from anomaly import corrupt
from anomaly.generators.corruptions import (
    COUNTS,
    MEANS,
    NOISES,
    PUBLISHED,
    RADII,
    SHORTEST,
    TissueMoments,
)

SHAPE = (24, 26, 20)
ONE = (0, 1, 0)
LARGE = {"radii": (0.9, 0.9), "random_state": 3}


def brain(n_channels=8, seed=0, low=0.2, high=0.8):
    rng = np.random.default_rng(seed)
    grid = np.indices(SHAPE) - np.array(SHAPE)[:, None, None, None] / 2 + 0.5
    mask = (np.square(grid / np.array([10, 11, 8])[:, None, None, None])).sum(axis=0) <= 1
    volume = rng.uniform(low, high, (*SHAPE, n_channels)).astype(np.float32) * mask[..., None]
    return volume, mask


def oracle(volume, mask, center, axes, orientation, values):
    """Put one ellipsoid into a brain, one voxel after the other."""
    changed, anomaly = volume.copy(), np.zeros(mask.shape, dtype=bool)
    for voxel in np.argwhere(mask):
        along = orientation.T @ (voxel - center)
        if ((along / axes) ** 2).sum() <= 1:
            changed[tuple(voxel)] = values[int(anomaly.sum())]
            anomaly[tuple(voxel)] = True
    return changed, anomaly


@pytest.mark.parametrize("noise", [*NOISES, "mix"])
@pytest.mark.parametrize("mean", MEANS)
def test_the_mask_is_what_was_changed(noise, mean):
    volume, mask = brain()
    before, state = volume.copy(), repr(np.random.get_state())  # noqa: NPY002
    for seed in range(12):
        changed, anomaly = corrupt(volume, mask, noise=noise, mean=mean, random_state=seed)
        np.testing.assert_array_equal((changed != volume).any(axis=-1), anomaly)
        assert not anomaly[~mask].any()
        assert changed.min() >= 0
        assert changed.max() <= 1
        assert changed.dtype == np.float32
    np.testing.assert_array_equal(volume, before)
    assert repr(np.random.get_state()) == state  # noqa: NPY002
    streams = (np.random.RandomState(2), np.random.RandomState(2))
    np.testing.assert_array_equal(*(corrupt(volume, mask, noise=noise, mean=mean, random_state=one)[0] for one in streams))


def test_voxels_whose_noise_is_not_above_zero_are_anomalies_too():
    volume, mask = brain()
    dark = TissueMoments(0.05, 0.3)
    options = {"noise": "normal-isotropic", "mean": "half", "moments": dark, "counts": ONE}
    changed, anomaly = corrupt(volume, mask, **options, random_state=0)
    black = (changed == 0).all(axis=-1) & mask
    # About half of such noise would be below zero.
    assert 0.3 < black.sum() / anomaly.sum() < 0.6
    assert anomaly[black].all()
    np.testing.assert_array_equal((changed != volume).any(axis=-1), anomaly)


def test_one_ellipsoid_is_that_of_a_loop_over_voxels(monkeypatch):
    from anomaly.generators import corruptions

    volume, mask = brain(3)
    known = {}
    whole = corruptions._ellipsoid
    values_of = corruptions.Ellipsoids._values
    monkeypatch.setattr(corruptions, "_ellipsoid", lambda *given: known.update(ellipsoid=given[1:]) or whole(*given))

    def drawn(*given):
        known["values"] = np.clip(np.broadcast_to(values_of(*given), given[3:5]), 0, 1)
        return known["values"]

    monkeypatch.setattr(corruptions.Ellipsoids, "_values", drawn)
    for seed in range(3):
        changed, anomaly = corrupt(volume, mask, counts=(0, 1), random_state=seed)
        expected = oracle(volume, mask, *known["ellipsoid"], known["values"])
        np.testing.assert_array_equal(anomaly, expected[1])
        np.testing.assert_array_equal(changed, expected[0])


def test_ellipsoids_are_turned_and_their_axes_differ():
    volume, mask = brain(1)
    mask = np.ones_like(mask)
    tilted, ratios = 0, []
    for seed in range(40):
        _, anomaly = corrupt(volume, mask, counts=(0, 1), radii=(0.35, 0.35), random_state=seed)
        if anomaly.sum() != anomaly[1:-1, 1:-1, 1:-1].sum():
            continue
        covariance = np.cov(np.argwhere(anomaly).T)
        values = np.linalg.eigvalsh(covariance)
        ratios.append(np.sqrt(values[0] / values[-1]))
        off = np.abs(covariance[np.triu_indices(3, 1)]).max()
        tilted += off > 0.05 * values[-1]
    assert len(ratios) > 10
    assert tilted > 0.7 * len(ratios)
    assert SHORTEST * 0.85 < min(ratios) < 0.8
    assert max(ratios) > 0.75


def test_none_one_and_two_come_by_twenty_sixty_and_twenty(monkeypatch):
    from anomaly.generators import corruptions

    volume, mask = brain(1)
    rng = np.random.default_rng(0)
    ellipsoid, seen = corruptions._ellipsoid, []
    monkeypatch.setattr(corruptions, "_ellipsoid", lambda *given: seen.append(1) or ellipsoid(*given))
    counts = np.zeros(3)
    for _ in range(600):
        before = len(seen)
        corruptions.Ellipsoids().put_into(volume.copy(), mask, rng, TissueMoments(0.5, 0.1))
        counts[len(seen) - before] += 1
    # Five standard deviations of a binomial number.
    assert (np.abs(counts / 600 - COUNTS) < 5 * np.sqrt(0.24 / 600)).all()


def test_moments_are_measured_in_the_tissue_and_give_those_of_the_noise():
    volume, mask = brain(32)
    moments = TissueMoments.measured([volume], [mask])
    assert moments.mean == pytest.approx(volume[mask].mean(), rel=1e-5)
    assert moments.sd == pytest.approx(volume[mask].std(), rel=1e-4)
    with pytest.raises(ValueError, match="no voxel of brain"):
        TissueMoments.measured([volume], [np.zeros_like(mask)])
    narrow = TissueMoments(0.6, 0.05)
    for noise in ("normal-random", "uniform-random"):
        for mean, factor in MEANS.items():
            changed, anomaly = corrupt(volume, mask, noise=noise, mean=mean, moments=narrow, counts=ONE, random_state=3)
            # Within five standard errors.
            error = 5 * 0.05 / np.sqrt(changed[anomaly].size)
            assert changed[anomaly].mean() == pytest.approx(factor * 0.6, abs=error)
            assert changed[anomaly].std() == pytest.approx(0.05, rel=0.05)
    # Other tissue, other noise: nothing is a constant.
    for values in (volume, brain(32, low=0.5, high=0.9)[0]):
        changed, anomaly = corrupt(values, mask, noise="uniform-random", mean="full", counts=ONE, random_state=3)
        assert changed[anomaly].mean() == pytest.approx(values[mask].mean(), abs=0.02)


def test_the_range_of_uniform_noise_is_the_sd_of_tissue_as_published():
    volume, mask = brain(32)
    tissue = TissueMoments(0.5, 0.1)
    options = {"noise": "uniform-random", "mean": "full", "moments": tissue, "counts": ONE, **LARGE}
    changed, anomaly = corrupt(volume, mask, **options, **PUBLISHED)
    values = changed[anomaly]
    assert values.size > 1000
    assert np.ptp(values) == pytest.approx(0.1, rel=0.02)
    assert values.mean() == pytest.approx(0.5, abs=5 * 0.03 / np.sqrt(values.size))
    assert values.std() == pytest.approx(0.1 / np.sqrt(12), rel=0.05)
    ours, same = corrupt(volume, mask, **options)
    assert np.ptp(ours[same]) == pytest.approx(np.sqrt(12) * 0.1, rel=0.02)
    # Normal noise has the SD of tissue in both.
    normal, where = corrupt(volume, mask, **options | {"noise": "normal-random"}, **PUBLISHED)
    assert normal[where].std() == pytest.approx(0.1, rel=0.05)


def test_published_ellipsoids_have_its_radii_and_may_reach_the_background():
    # 1.4 liters of voxels of 2.4 mm: 5 to 11 voxels.
    size = (3 * 1.4e6 / 2.4**3 / (4 * np.pi)) ** (1 / 3)
    np.testing.assert_allclose(size * np.array(RADII), [5, 11], rtol=0.01)
    volume, mask = brain(2)
    tissue = TissueMoments(0.5, 0.1)
    n_beyond = 0
    for seed in range(20):
        options = {"moments": tissue, "counts": (0, 1), "random_state": seed}
        _, inner = corrupt(volume, mask, **options)
        assert not (inner & ~mask).any()
        changed, whole = corrupt(volume, mask, **options, background=True)
        # The same ellipsoid, which is labeled and filled beyond the brain, too.
        np.testing.assert_array_equal(whole & mask, inner)
        np.testing.assert_array_equal((changed != volume).any(axis=-1), whole)
        n_beyond += (whole & ~mask).any()
    assert n_beyond > 5


def test_noise_is_drawn_for_what_its_name_says_and_clipping_raises_its_mean_unless_left_out():
    volume, mask = brain(16)
    tissue = TissueMoments(0.4, 0.3)
    options = {"noise": "normal-random", "mean": "half", "moments": tissue, "counts": ONE, **LARGE}
    clipped, anomaly = corrupt(volume, mask, **options)
    free, same = corrupt(volume, mask, **options, clip=False)
    np.testing.assert_array_equal(anomaly, same)
    np.testing.assert_array_equal(clipped[anomaly], np.clip(free[anomaly], 0, 1))
    error = 5 * 0.3 / np.sqrt(free[anomaly].size)
    assert free[anomaly].mean() == pytest.approx(0.2, abs=error)
    # The mean of max(x, 0) for a normal x of mean .2 and SD .3.
    assert clipped[anomaly].mean() == pytest.approx(0.2453, abs=error)
    assert error < 0.04
    for noise in NOISES:
        changed, anomaly = corrupt(volume, mask, noise=noise, counts=ONE, random_state=4)
        values = changed[anomaly]
        assert kind_of(values) == noise.partition("-")[2]
        n_values = {"isotropic": len(values), "directional": 16, "random": values.size}[kind_of(values)]
        assert len(np.unique(values)) > 0.5 * n_values
    mixed = (corrupt(volume, mask, counts=(0, 1), random_state=seed) for seed in range(60))
    kinds = {kind_of(changed[anomaly]) for changed, anomaly in mixed if anomaly.sum() > 2}
    assert kinds == {"isotropic", "directional", "random"}


def kind_of(values):
    """Tell what noise was drawn for, from the values of voxels and channels."""
    if np.ptp(values, axis=1).max() == 0:
        return "isotropic"
    return "directional" if np.ptp(values, axis=0).max() == 0 else "random"


def test_patches_come_from_another_person_and_a_brain_of_one_voxel_ends():
    volume, mask = brain()
    options = {"shape": "patch", "source": brain(seed=1, low=0.1, high=0.2)[0], "random_state": 3}
    (changed, anomaly), (again, _) = (corrupt(volume, mask, **options) for _ in range(2))
    np.testing.assert_array_equal(changed, again)
    assert (changed[anomaly] < volume[anomaly]).mean() > 0.95
    mask = np.zeros(SHAPE, dtype=bool)
    mask[3, 4, 5] = True
    volume = np.full((*SHAPE, 2), 0.9, dtype=np.float32)
    moments = TissueMoments(0.4, 0.1)
    changed, anomaly = corrupt(volume, mask, moments=moments, counts=(0, 0, 1), random_state=0)
    np.testing.assert_array_equal(anomaly, mask)
    assert (changed[~mask] == np.float32(0.9)).all()
