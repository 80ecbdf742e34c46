"""Rules for thresholds find what brute force finds, and leave healthy scans empty where they may."""

import json

import numpy as np
import pytest
from scipy import ndimage
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from anomaly.detectors import thresholds
from anomaly.detectors.thresholds import (
    RULES,
    BestDiceThreshold,
    FixedThreshold,
    HealthyRateThreshold,
    HealthyScanThreshold,
    MeanPoolThreshold,
    OtsuThreshold,
    YoudenThreshold,
    decoded_rule,
    encoded_rule,
    limit_spread,
    open_map,
    opening_of,
    rate_limits,
    scored_scans,
    smallest_ball,
)
from dmrifit.io.parameter_json import decoded, encoded

SHAPE = (9, 8, 7)


def draw(seed, n=4, *, tied=False):
    """Give maps, masks and lesions that the maps know something about."""
    rng = np.random.default_rng(seed)
    masks = rng.random((n, *SHAPE)) < rng.uniform(0.4, 0.9)
    truths = rng.random((n, *SHAPE)) < 0.15
    maps = rng.gamma(2, 1, (n, *SHAPE)) + rng.uniform(0.5, 2) * truths
    maps = np.round(maps) if tied else maps
    return maps.astype(np.float32), masks, truths


def dice(above, lesion):
    return 2 * (above & lesion).sum() / (above.sum() + lesion.sum())


def youden(above, lesion):
    return above[lesion].mean() - above[~lesion].mean()


def mean_quality(quality, threshold, *scans):
    """Give the mean over scans, each of a map, a mask and a lesion, of a measure of quality."""
    return np.mean([quality(one[mask] > threshold, truth[mask]) for one, mask, truth in zip(*scans, strict=True)])


def candidates(maps, masks):
    """All thresholds that make a difference: every score, and one below all."""
    values = np.unique(maps[masks])
    return [np.nextafter(values[0], np.float32(-np.inf)), *values]


@pytest.mark.parametrize("seed", [7, 8, 20])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("rule", "quality"), [(BestDiceThreshold, dice), (YoudenThreshold, youden)])
def test_rules_that_know_the_truth_find_the_best_of_all_thresholds(rule, quality, seed, tied):
    scans = draw(seed, tied=tied)
    qualities = [mean_quality(quality, t, *scans) for t in candidates(*scans[:2])]
    common, own = (rule(scope=scope).fit(*scans) for scope in ("dataset", "image"))
    assert mean_quality(quality, common.threshold_, *scans) == pytest.approx(max(qualities), abs=1e-12)
    assert max(qualities) > np.median(qualities) + 0.01
    assert common.limits(*scans[:2]) == [common.threshold_] * 4
    for i, limit in enumerate(own.limits(*scans[:2])):
        one = [volumes[i : i + 1] for volumes in scans]
        best = max(mean_quality(quality, t, *one) for t in candidates(*one[:2]))
        assert mean_quality(quality, limit, *one) == pytest.approx(best, abs=1e-12)
    assert np.isnan(own.threshold_)
    with pytest.raises(ValueError, match="fitted on 4 map"):
        own.apply(*(volumes[:2] for volumes in scans[:2]))


@pytest.mark.parametrize("seed", [3, 14, 15])
def test_otsu_is_the_best_split_of_the_scores_in_two_groups(seed):
    maps, masks, _ = draw(seed)
    threshold = OtsuThreshold().fit(maps, masks).threshold_
    values = maps[masks].astype(np.float64)

    def within(t):
        low, high = values[values <= t], values[values > t]
        return len(low) * low.var() + len(high) * high.var()

    found = within(threshold)
    assert found == pytest.approx(min(within(t) for t in np.unique(values)[:-1]), rel=1e-10)
    # What is outside the masks, and the order of scans, make no difference.
    assert OtsuThreshold().fit(np.where(masks, maps, 99)[::-1], masks[::-1]).threshold_ == threshold


@pytest.mark.parametrize("shape", [(12, 11, 10), (4, 11, 20), (20, 18, 17)])
@pytest.mark.parametrize(
    ("size", "spacing", "edges"), [(38.4, None, (16,) * 3), (9.6, 2.4, (4,) * 3), (6.0, (2.0, 1.0, 3.0), (3, 6, 2))]
)
def test_the_mean_pool_is_the_largest_mean_over_all_windows(shape, size, spacing, edges):
    rng = np.random.default_rng(5)
    volume, mask = rng.normal(size=shape), rng.random(shape) < 0.8
    edges = np.minimum(edges, shape)
    inside = np.where(mask, volume, 0)
    windows = np.lib.stride_tricks.sliding_window_view(inside, tuple(edges))
    rule = MeanPoolThreshold(size, spacing=spacing).fit([volume], [mask])
    assert rule.threshold_ == pytest.approx(windows.mean(axis=(3, 4, 5)).max(), rel=1e-12)
    assert rule.window_in_words(shape).startswith(" × ".join(map(str, edges)) + " voxels (")


def test_limits_of_each_scan_are_those_of_its_map_alone_and_mean_pools_are_averaged():
    maps, masks, _ = draw(2)
    for rule in (OtsuThreshold, MeanPoolThreshold):
        limits = rule(scope="image").fit(maps, masks).limits(maps, masks)
        alone = [rule().fit([one], [mask]).threshold_ for one, mask in zip(maps, masks, strict=True)]
        np.testing.assert_allclose(limits, alone, rtol=1e-12)
        assert len(set(limits)) == 4
    assert MeanPoolThreshold().fit(maps, masks).threshold_ == pytest.approx(np.mean(limits))


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.1, 0.5])
@pytest.mark.parametrize("tied", [False, True])
def test_a_rate_of_false_positives_is_kept_as_closely_as_scores_allow(rate, tied):
    maps, masks, _ = draw(21, tied=tied)

    def rate_at(threshold):
        return np.mean([(one[mask] > threshold).mean() for one, mask in zip(maps, masks, strict=True)])

    threshold = HealthyRateThreshold(rate).fit(maps, masks).threshold_
    assert rate_at(threshold) <= rate + 1e-12
    lower = [t for t in candidates(maps, masks) if t < threshold]
    assert rate_at(max(lower)) > rate


def test_scans_of_all_sizes_count_alike_for_the_rate_however_scores_are_stored():
    scores = [np.random.default_rng(seed).integers(0, 200, 300) for seed in range(3)]
    expected = rate_limits([one.astype(np.float64) for one in scores], [0.0, 0.01, 0.1, 0.5])
    for kind in (np.uint8, np.uint16, np.int16, np.float32):
        np.testing.assert_array_equal(rate_limits([one.astype(kind) for one in scores], [0.0, 0.01, 0.1, 0.5]), expected)
    large, small = np.linspace(0, 1, 8000).reshape(20, 20, 20), np.linspace(2, 3, 8).reshape(2, 2, 2)
    limits, realized = rate_limits([large.ravel(), small.ravel()], [0.25, 0.5, 0.75])
    assert limits[0] == pytest.approx(2 + 3 / 7)
    assert limits[2] == pytest.approx(0.5, abs=1e-3)
    np.testing.assert_allclose(realized, [0.25, 0.5, 0.75], atol=1e-9)


def test_maps_without_differences_and_scans_without_a_lesion_stay_empty_and_enter_no_choice():
    maps, masks, truths = np.full((3, *SHAPE), 0.25), draw(1, 3)[1], draw(1, 3)[2]
    for rule in (OtsuThreshold(), OtsuThreshold(scope="image"), HealthyRateThreshold()):
        assert not rule.fit(maps, masks).apply(maps, masks).any()
    for name, rule in RULES.items():
        if not rule.needs_truth:
            assert not clone(rule).fit(0 * maps, masks).apply(0 * maps, masks).any(), name
    # With the truth known, all or nothing is the choice, and everything has the better Dice.
    assert BestDiceThreshold().fit(maps, masks, truths).apply(maps, masks).sum() == masks.sum()
    maps, masks, truths = draw(12)
    truths[2] = False
    for rule in (YoudenThreshold, BestDiceThreshold):
        some = np.array([0, 1, 3])
        common = rule().fit(maps, masks, truths)
        assert common.threshold_ == rule().fit(maps[some], masks[some], truths[some]).threshold_
        assert not rule(scope="image").fit(maps, masks, truths).apply(maps, masks)[2].any()
        with pytest.raises(ValueError, match="needs lesions inside the masks"):
            rule().fit(maps, masks, np.zeros_like(truths))
        with pytest.raises(ValueError, match="fit\\(maps, masks, truths\\)"):
            rule().fit(maps, masks)
        with pytest.raises(NotFittedError):
            rule().apply(maps)


def test_thresholds_are_exact_in_single_precision():
    value = np.float32(0.1)
    maps = np.full((1, 2, 2, 2), value)
    maps[0, 0, 0, 0] = np.nextafter(value, np.float32(1))
    rule = HealthyRateThreshold(0.5).fit(maps)
    assert rule.apply(maps).sum() == 1
    # Between two neighbors of single precision there are numbers of double precision.
    between = FixedThreshold((float(value) + float(np.nextafter(value, np.float32(1)))) / 2)
    assert between.fit(maps).apply(maps).sum() == 1


def test_masks_and_kinds_of_input_are_kept():
    maps, masks, truths = draw(6)
    for name, rule in RULES.items():
        stacked = clone(rule).fit(maps, masks, truths).apply(maps, masks)
        listed = clone(rule).fit(list(maps), list(masks), list(truths)).apply(list(maps), list(masks.astype(int)))
        assert stacked.dtype == bool, name
        assert isinstance(listed, list)
        np.testing.assert_array_equal(stacked, listed, err_msg=name)
        assert not stacked[~masks].any()
        # What lies outside the masks is not looked at.
        other = clone(rule).fit(np.where(masks, maps, 5), masks, truths).apply(np.where(masks, maps, -5), masks)
        np.testing.assert_array_equal(stacked, other, err_msg=name)


def maps_of(rng, n, shape=(9, 9, 9)):
    """Draw maps of healthy scans, which differ from scan to scan as a whole."""
    level = rng.normal(size=(n, 1, 1, 1)) * 0.4
    return (rng.normal(size=(n, *shape)) + level).astype(np.float32)


@pytest.mark.parametrize("counted", ["components", "voxels"])
def test_a_guarantee_holds_over_draws_of_scans(counted):
    rng = np.random.default_rng(3)
    rule = HealthyScanThreshold(0.8, counted=counted, rate=0.05, opening=2)
    n_draws, n_kept = 300, 0
    for _ in range(n_draws):
        maps = maps_of(rng, 10, (6, 6, 6))
        marked = rule.fit(maps[:9]).apply(maps[9:])[0]
        if counted == "components":
            n_kept += not open_map(marked, 2).any()
        else:
            n_kept += marked.mean() <= 0.05
    # Nine scans guarantee 8/10; exchangeable scans without ties reach that probability exactly.
    error = np.sqrt(0.8 * 0.2 / n_draws)
    assert abs(n_kept / n_draws - 0.8) < 3 * error


def test_the_guaranteed_threshold_is_the_largest_scan_at_the_best_level_and_too_few_scans_give_none():
    maps = maps_of(np.random.default_rng(0), 9)
    assert np.isfinite(HealthyScanThreshold(0.9).fit(maps).threshold_)
    few = HealthyScanThreshold(0.9)
    with pytest.raises(ValueError, match=r"no guarantee at this level with 8 scans: 0.9 needs 9 .* at best 8/9"):
        few.fit(maps[:8])
    assert not hasattr(few, "threshold_")
    with pytest.raises(ValueError, match=r"0.95 needs 19 calibration scans or more"):
        HealthyScanThreshold(0.95).fit(maps)
    maps = maps_of(np.random.default_rng(1), 4)
    masks = np.ones(maps.shape, bool)
    masks[:, 0] = False
    rule = HealthyScanThreshold(0.8, opening=2).fit(maps, masks)
    left = [open_map(marked, 2).any() for marked in rule.apply(maps, masks)]
    assert not any(left)
    lower = FixedThreshold(np.nextafter(np.float32(rule.threshold_), np.float32(-np.inf))).fit(maps)
    assert sum(open_map(marked, 2).any() for marked in lower.apply(maps, masks)) == 1
    # Half of the scans are allowed to have a component at the level .5.
    assert HealthyScanThreshold(0.5, opening=2).fit(maps, masks).threshold_ < rule.threshold_


def test_the_spread_of_a_threshold_is_that_over_draws_of_scans():
    maps = maps_of(np.random.default_rng(5), 8)
    rule = HealthyRateThreshold(0.02).fit(maps)
    low, high = limit_spread(rule, maps)
    assert low < rule.threshold_ < high
    # As of refits to drawn scans, but without ranking all scores for each.
    draws = np.random.default_rng(7).integers(8, size=(200, 8))
    refits = [HealthyRateThreshold(0.02).fit(maps[draw]).threshold_ for draw in draws]
    np.testing.assert_allclose((low, high), np.quantile(refits, (0.025, 0.975)), rtol=0.1)
    same = np.repeat(maps[:1], 5, axis=0)
    assert limit_spread(rule, same) == pytest.approx((rule.fit(same).threshold_,) * 2)
    guaranteed = HealthyScanThreshold(0.8).fit(maps)
    low, high = limit_spread(guaranteed, maps)
    assert low < high <= guaranteed.threshold_
    assert limit_spread(FixedThreshold(1.0).fit(maps), maps) is None


GRID = (3, 4, 2)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_opening_keeps_what_cubes_fill(size):
    binary = np.random.default_rng(size).random((3, 14, 12, 13)) < 0.98
    found = open_map(binary, size)
    for one, opened in zip(binary, found, strict=True):
        np.testing.assert_array_equal(opened, ndimage.binary_opening(one, np.ones((size,) * 3)))
        np.testing.assert_array_equal(open_map(opened, size), opened)
    assert found.any()
    np.testing.assert_array_equal(open_map(binary.astype(np.uint8), size), found)


@pytest.mark.parametrize("spacing", [(4.0, 4.0, 4.0), (2.4, 2.4, 2.4), (1.0, 2.0, 3.5)])
@pytest.mark.parametrize("volume", [0.5, 2.0, 9.0])
def test_an_opening_for_a_lesion_leaves_a_ball_of_its_volume_wherever_it_lies(spacing, volume):
    size = opening_of(volume, spacing)
    # The volume of a ball is that of its diameter cubed times pi / 6.
    radius = (volume * 1000 * 6 / np.pi) ** (1 / 3) / 2
    grid = np.moveaxis(np.indices(np.ceil(2 * radius / np.array(spacing)).astype(int) + 4), 0, -1) * spacing
    rng = np.random.default_rng(0)
    for _ in range(40):
        middle = np.array(spacing) * (np.array(grid.shape[:3]) // 2 + rng.uniform(-0.5, 0.5, 3))
        ball = ((grid - middle) ** 2).sum(axis=-1) <= radius**2
        assert size == 1 or ball[open_map(ball, size)].any()
    assert smallest_ball(size, spacing) <= volume or size == 1
    assert smallest_ball(size + 1, spacing) > volume


def test_the_study_s_opening_removes_two_milliliters_in_voxels_of_four_millimeters():
    assert smallest_ball(3, (4, 4, 4)) == pytest.approx(np.pi / 6 * (12 * 3**0.5) ** 3 / 1000)
    assert smallest_ball(3, (4, 4, 4)) > 4.5
    assert opening_of(2, (4, 4, 4)) == 2


@pytest.mark.parametrize(("dtype", "expected"), [(np.uint8, np.float32), (bool, np.float32), (np.float32,) * 2, (float,) * 2])
def test_scores_become_floating_point_and_keep_their_precision(dtype, expected):
    values = np.arange(24).reshape(GRID).astype(dtype)
    (scan,) = scored_scans([values])
    assert scan.map.dtype == expected
    np.testing.assert_array_equal(scan.map, values)


SMALL = (4, 5, 3)
MAPS = [np.random.default_rng(seed).normal(size=SMALL) for seed in (0, 1)]

FIXED = {"rule": "FixedThreshold", "parameters": {"value": 2.5}, "fitted": {"threshold_": 2.5}}


def through_json(rule):
    return decoded_rule(decoded(json.loads(json.dumps(encoded(encoded_rule(rule), "rule"), allow_nan=False))))


def test_a_fitted_rule_is_stored_as_class_parameters_and_threshold_and_rules_of_the_module_alone():
    # The highest of 60 scores is the only one above the second highest.
    ranks = np.arange(60.0).reshape(SMALL)
    rule = HealthyRateThreshold(1 / 60).fit([ranks])
    assert encoded_rule(rule) == altered("HealthyRateThreshold", {"rate": 1 / 60}, threshold_=58.0)
    assert encoded_rule(FixedThreshold(2.5).fit(MAPS)) == FIXED
    own_classes = [type(name, (FixedThreshold,), {"__repr__": lambda _: "Own()"}) for name in ("Other", "FixedThreshold")]
    names = {name for name in vars(thresholds) if name.endswith("Threshold") and not name.startswith("_")}
    assert names == {type(rule).__name__ for rule in STORED}
    for own_class in own_classes:
        with pytest.raises(TypeError, match=r"Own\(\) cannot be stored in a model file; BestDice"):
            encoded_rule(own_class(3.0))


STORED = (
    FixedThreshold(-0.25), HealthyRateThreshold(0.1), HealthyScanThreshold(0.6, counted="voxels", rate=0.1), OtsuThreshold(),
    OtsuThreshold(scope="image"), MeanPoolThreshold(6.0, spacing=(2.0, 1.0, 3.0)), YoudenThreshold(), BestDiceThreshold(),
)  # fmt: skip


@pytest.mark.parametrize("rule", STORED, ids=repr)
def test_a_rule_from_json_marks_the_voxels_of_the_rule_that_was_stored(rule):
    truths = [scores > 1 for scores in MAPS]
    unfitted = through_json(rule)
    assert type(unfitted) is type(rule)
    assert not hasattr(unfitted, "threshold_")
    if rule.needs_truth:
        # A fit with limits of single scans leaves nothing behind.
        rule.set_params(scope="image").fit(MAPS, truths=truths)
        with pytest.raises(TypeError, match=r"Threshold.* a limit for each scan"):
            encoded_rule(rule)
        rule.set_params(scope="dataset")
    rule.fit(MAPS, truths=truths)
    loaded = through_json(rule)
    assert loaded.get_params() == rule.get_params()
    np.testing.assert_equal(loaded.threshold_, rule.threshold_)
    unseen = [np.random.default_rng(seed).normal(size=SMALL) for seed in (7, 8, 9)]
    marked = np.array(rule.apply(unseen))
    np.testing.assert_array_equal(loaded.apply(unseen), marked)
    # Neither all nor nothing, so that another threshold would show.
    assert 0 < marked.sum() < marked.size
    rule.threshold_ = -np.inf
    assert through_json(rule).threshold_ == -np.inf


def altered(rule, parameters, **fitted):
    return {"rule": rule, "parameters": parameters, "fitted": fitted}
