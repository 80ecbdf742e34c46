"""The aligned Mahalanobis distance finds what differs in both directions, and needs no lesion."""

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load, save

from anomaly import AlignedMahalanobis
from anomaly.detectors.aligned import AlignedScans, Deviations, template_at, template_of
from anomaly.detectors.features import look_of, masked_smoothing
from anomaly.generators.implants import Look

SHAPE = (12, 13, 11)
MASK = np.linalg.norm(np.indices(SHAPE) - np.reshape(SHAPE, (3, 1, 1, 1)) / 2, axis=0) < 5.4
CUBE = (slice(4, 8), slice(4, 8), slice(4, 8))


def people(n, seed):
    rng = np.random.default_rng(seed)
    pattern = 0.4 + 0.1 * np.sin(0.8 * np.indices(SHAPE).sum(axis=0))[..., None]
    signals = pattern + 0.03 * rng.standard_normal((n, *SHAPE, 6))
    return (signals * MASK[..., None]).astype(np.float32)


@pytest.fixture(scope="module")
def fitted():
    return AlignedMahalanobis(calibration=0.25).fit(people(8, 0), [MASK] * 8)


@pytest.mark.parametrize("change", [-0.12, 0.12, np.array([0.15, -0.15] * 3, dtype=np.float32)], ids=str)
def test_lesions_of_both_directions_and_of_the_spread_alone_are_found(fitted, change):
    (scan,) = people(1, 5)
    scan[CUBE] += change
    scores = fitted.anomaly_map([scan], [MASK])[0]
    assert scores[5:7, 5:7, 5:7].min() > np.quantile(scores[MASK], 0.9)
    assert not scores[~MASK].any()


@pytest.mark.parametrize("share", [0, 0.5])
def test_scores_are_mahalanobis_distances_of_smoothed_deviations(fitted, share):
    (scan,) = people(1, 7)
    # No lesion lowers scores by more than levels of healthy scans differ.
    scan[MASK & (np.cumsum(MASK).reshape(SHAPE) < share * MASK.sum())] += 0.3
    look = look_of(scan, MASK)
    expected = template_at(fitted.template_, fitted._aligned(look))
    deviations = Deviations.of(look, expected)
    z = np.stack([masked_smoothing(d, MASK, 1.0)[MASK] for d in (deviations.z_mean, deviations.z_spread)])
    distances = np.zeros(SHAPE)
    distances[MASK] = [np.sqrt(row @ np.linalg.solve(fitted.covariance_, row) / 2) for row in z.T.astype(float)]
    expected = masked_smoothing(distances, MASK, 1.5)[MASK]
    level = np.log(np.quantile(expected, 0.95)) - fitted.levels_[0]
    reach = 3 * fitted.levels_[1]
    assert (level > reach) == (share > 0)
    np.testing.assert_allclose(
        fitted.anomaly_map([scan], [MASK])[0][MASK],
        expected / np.exp(np.clip(level, -reach, reach)),
        rtol=1e-3,
        atol=1e-5,
    )


def test_scores_of_healthy_scans_have_one_level():
    """Learn from persons who differ from the others by more or less everywhere."""
    pattern = people(40, 99).mean(axis=0)
    factors = np.random.default_rng(3).uniform(0.8, 1.25, (28, 1, 1, 1, 1))
    scans = np.float32(pattern + factors * (people(28, 3) - pattern))
    leveled = AlignedMahalanobis(calibration=None, smoothness=None).fit(scans[:16], [MASK] * 16)
    maps = leveled.anomaly_map(scans[16:], [MASK] * 12)
    assert leveled.levels_[1] > 0.05
    assert np.log(np.quantile(maps[:, MASK], 0.95, axis=1)).std() < 0.2 * leveled.levels_[1]


def test_lengths_are_in_mm_and_smoothing_is_round_where_the_edges_of_voxels_differ():
    maps = []
    for k in (1, 2):
        detector = AlignedMahalanobis(feature_mm=k * 4.0, smooth_mm=k * 6.0, spacing=k * 4.0, calibration=None)
        maps.append(detector.fit(people(5, 1), [MASK] * 5).anomaly_map(people(1, 8), [MASK]))
    np.testing.assert_array_equal(*maps)
    healthy = people(5, 1)
    look = look_of(people(1, 8)[0], MASK)
    detector = AlignedMahalanobis(calibration=None, smoothness=None, spacing=(2.0, 4.0, 8.0))
    detector.fit(healthy, [MASK] * 5)
    positions = detector._aligned(look)
    expected = template_at(detector.template_, positions)
    deviations = Deviations.of(look, expected)
    z = detector._smoothed(look, expected)
    rounded = masked_smoothing(deviations.z_mean, MASK, (2.0, 1.0, 0.5))[MASK]
    np.testing.assert_allclose(z[0], rounded, rtol=1e-4, atol=1e-5)
    # Equal edges are one edge.
    maps = [detector.set_params(spacing=edges)._score(look, positions) for edges in (4.0, (4.0, 4.0, 4.0))]
    np.testing.assert_array_equal(*maps)


def test_models_stored_without_levels_score_undivided_distances(fitted):
    parameters, facts, files = fitted.stored()
    arrays = load(files["arrays.safetensors"])
    del arrays["levels_"]
    loaded = AlignedMahalanobis(**parameters)
    loaded.restore(facts, {"arrays.safetensors": save(arrays)})
    (scan,) = people(1, 10)
    look = look_of(scan, MASK)
    z = fitted._smoothed(look, template_at(fitted.template_, fitted._aligned(look)))
    np.testing.assert_array_equal(loaded.anomaly_map([scan], [MASK])[0], fitted._distance(look, z))
    assert not np.array_equal(loaded.anomaly_map([scan], [MASK]), fitted.anomaly_map([scan], [MASK]))
    wrong = {"arrays.safetensors": save(arrays | {"levels_": np.array([0.0, -0.1])})}
    with pytest.raises(ValueError, match=r"standard deviation of its levels_ is -0\.1"):
        loaded.restore(facts, wrong)


def test_a_look_is_the_same_bits_in_every_layout():
    signal = np.random.default_rng(2).uniform(size=(*MASK.shape, 150)).astype(np.float32)
    channels_first = np.moveaxis(np.ascontiguousarray(np.moveaxis(signal, -1, 0)), 0, -1)
    expected = look_of(signal, MASK)
    for stored in (np.asfortranarray(signal), channels_first):
        look = look_of(stored, MASK)
        np.testing.assert_array_equal(look.mean, expected.mean)
        np.testing.assert_array_equal(look.spread, expected.spread)


def test_templates_are_mean_and_sd_without_scans_of_the_same_subject_and_deviations_have_no_level():
    aligned = AlignedScans.learn([look_of(scan, MASK) for scan in people(5, 0)], 2.0, np.arange(5))
    stacks = aligned.stacks.copy()
    stacks[3, 0] += 100
    subjects = np.array([0, 1, 2, 2, 3])
    same, changed = (replace(aligned, stacks=s, subjects=subjects) for s in (aligned.stacks, stacks))
    np.testing.assert_array_equal(changed.left_out(2), same.left_out(2))
    assert (changed.left_out(1)[0] > same.left_out(1)[0] + 10).any()
    assert same.others(2).tolist() == [0, 1, 4]
    template = template_of(aligned.stacks)
    inner = np.linalg.norm(np.indices(SHAPE) - np.reshape(SHAPE, (3, 1, 1, 1)) / 2, axis=0) < 4
    for number, k in ((0, 0), (2, 1)):
        np.testing.assert_allclose(template[number][inner], aligned.stacks[:, k].mean(axis=0)[inner], rtol=1e-4)
    np.testing.assert_allclose(template[6], aligned.stacks[:, 2].mean(axis=0), atol=1e-6)
    assert (template[[1, 3]] > 0).all()
    look, expected = aligned.looks[0], aligned.left_out(0)
    brighter = Look(np.where(MASK, look.mean + 0.1, 0).astype(np.float32), look.spread, MASK)
    first, second = (Deviations.of(one, expected) for one in (look, brighter))
    np.testing.assert_allclose(first.z_mean, second.z_mean, atol=1e-3)
    np.testing.assert_array_equal(first.z_spread, second.z_spread)
