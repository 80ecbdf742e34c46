"""Ends of intervals, calibrated by class of width."""

import numpy as np
import pytest

from dmrifit.predict.interval_ends import IntervalEnds, patient_weights, weighted_quantiles

RNG = np.random.default_rng(0)
NO_BOX = np.array([[-np.inf, np.inf]])


def covered(ends, center, spread, targets):
    low, high = np.moveaxis(ends.around(center, spread), 2, 0)
    return (low <= targets) & (targets <= high)


def test_weighted_quantiles_are_those_of_repeated_values():
    values = RNG.normal(size=(50, 2))
    repeats = RNG.integers(1, 5, 50)
    quantiles = weighted_quantiles(values, repeats.astype(float), (0.05, 0.5))
    expected = np.quantile(np.repeat(values, repeats, axis=0), [0.05, 0.5], axis=0, method="inverted_cdf")
    np.testing.assert_array_equal(quantiles, expected.T)


def test_every_patient_has_the_same_weight():
    weight = patient_weights(np.array(["a", "b", "b", "b"]))
    np.testing.assert_allclose(weight, [1 / 2, 1 / 6, 1 / 6, 1 / 6])


def test_few_voxels_have_one_class_and_hold_their_share():
    targets = RNG.normal(size=(50, 1))
    ones = np.ones((50, 1))
    ends = IntervalEnds.learn(0 * ones, ones, targets, ones[:, 0], coverage=0.8, bounds=NO_BOX)
    assert len(ends.factors[0]) == 1
    # Both ends of the first interval are errors of the sample, so one more of the 50 may be inside.
    assert 0.8 <= covered(ends, 0 * ones, ones, targets).mean() <= 0.82


def test_wide_intervals_hold_as_many_as_narrow_ones_where_expected_errors_are_wrong():
    """Errors grow with the square of what is expected."""
    spread = np.exp(RNG.normal(scale=0.5, size=(20_000, 1)))
    targets = spread**2 * RNG.normal(size=spread.shape)
    half = len(spread) // 2
    weight = np.ones(half)
    zeros = np.zeros((half, 1))
    ends = IntervalEnds.learn(zeros, spread[:half], targets[:half], weight, coverage=0.9, bounds=NO_BOX)
    inside = covered(ends, np.zeros((half, 1)), spread[half:], targets[half:])[:, 0]
    order = np.argsort(spread[half:, 0])
    by_quintile = inside[order].reshape(5, -1).mean(axis=1)
    assert np.all(np.abs(by_quintile - 0.9) < 0.03)
    plain = np.abs(targets[half:] / spread[half:])[:, 0] <= np.quantile(np.abs(targets[:half] / spread[:half]), 0.9)
    assert np.ptp(plain[order].reshape(5, -1).mean(axis=1)) > 0.1


def test_an_output_that_sits_at_its_bounds_gets_the_whole_box():
    targets = RNG.choice([150.0, 250.0], size=(1000, 1))
    center = np.full((1000, 1), 200.0)
    box = np.array([[150.0, 250.0]])
    ends = IntervalEnds.learn(center, 30 + center / 10, targets, np.ones(1000), coverage=0.9, bounds=box)
    assert ends.is_whole.all()
    assert ends.around(np.array([[200.0]]), np.array([[1e-3]])).tolist() == [[[150, 250]]]


def test_numbers_come_back_from_a_file_and_others_are_refused():
    targets = RNG.normal(size=(300, 2))
    ones = np.ones((300, 2))
    box = np.tile(NO_BOX, (2, 1))
    ends = IntervalEnds.learn(0 * ones, ones, targets, ones[:, 0], coverage=0.9, bounds=box)
    again = IntervalEnds.from_dict(ends.to_dict(), box)
    np.testing.assert_array_equal(again.around(0 * ones, ones), ends.around(0 * ones, ones))
    changes = {"quantiles": [[0, 1]]}, {"is_whole": [1, 0]}, {"is_whole": [True, False]}, {"factors": [[1.0], [1.0, 1.0, 1.0, 1.0]]}
    for change in changes:
        with pytest.raises(ValueError, match="quantiles of"):
            IntervalEnds.from_dict(ends.to_dict() | change, box)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"factors": [[1.0, -1e-9]]}, "a factor is negative"),
        ({"factors": [[1.0, np.nan]]}, "factors: there is something other than finite numbers"),
        ({"factors": [["1", "2"]]}, "factors: there is something other than finite numbers"),
        ({"factors": [[[1.0], 2.0]]}, "factors: the lists differ in length"),
        ({"log_widths": [[0.0, np.inf]]}, "log_widths: there is something other"),
        ({"log_widths": [[1.0, 0.0]]}, "not in ascending order"),
        ({"log_widths": [[1.0, 1.0]]}, "not in ascending order"),
        ({"quantiles": [[1.0, -1.0]]}, "not in ascending order"),
        ({"quantiles": [["-1", "1"]]}, "quantiles: there is something other"),
        ({"more": 1}, "ends with factors, is_whole, log_widths, more, quantiles"),
    ],
)
def test_numbers_that_are_never_learned_are_refused(change, message):
    state = {
        "quantiles": [[-1.0, 1.0]], "log_widths": [[0.0, 1.0]], "factors": [[1.0, 2.0]], "is_whole": [False]
    }  # fmt: skip
    assert IntervalEnds.from_dict(state, NO_BOX).to_dict() == state
    with pytest.raises(ValueError, match=message):
        IntervalEnds.from_dict(state | change, NO_BOX)
