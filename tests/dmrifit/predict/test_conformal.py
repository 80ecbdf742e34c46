"""Intervals that are calibrated patient by patient."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from sklearn import config_context
from sklearn.base import clone
from sklearn.dummy import DummyRegressor
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold, LeaveOneGroupOut, cross_validate
from sklearn.utils.estimator_checks import parametrize_with_checks

from dmrifit.engine.fitting import fit_voxels
from dmrifit.engine.models import MODELS
from dmrifit.predict.base import resolve_patch_shape
from dmrifit.predict.conformal import ConformalIntervals, predictor_lines, strategy_of
from dmrifit.predict.intervals import coverage_table
from dmrifit.predict.strategies import MapsToMaps, SignalToSignal, reference_parameters
from dmrifit.simulate.body_phantoms import simulate_cohort

MODEL = MODELS["t2-ivim-kurtosis"]
NAMES = MODEL.names


@parametrize_with_checks([ConformalIntervals(SignalToSignal("LR"), random_state=0)])
def test_intervals_keep_the_rules_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks([ConformalIntervals(one, random_state=0) for one in (Ridge(), MapsToMaps("LR"))])
def test_intervals_of_others_keep_the_rules_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def world():
    """Twenty patients with an offset each; the noise grows with the first input."""
    rng = np.random.default_rng(0)
    patients = np.repeat([f"p{i:02d}" for i in range(20)], rng.integers(20, 120, 20))
    X = rng.uniform(0, 1, (len(patients), 2))
    offset = dict(zip(np.unique(patients), rng.normal(scale=0.3, size=20), strict=True))
    noise = rng.normal(size=len(X)) * (0.1 + 2 * X[:, 0])
    y = 3 * X[:, 1] + noise + np.array([offset[p] for p in patients])
    return X, y, patients


def test_new_patients_are_covered_and_intervals_are_wide_where_errors_are_large(world):
    X, y, patients = world
    covered = []
    for train, test in GroupKFold(7).split(X, groups=patients):
        fitted = ConformalIntervals(Ridge(), random_state=0).fit(X[train], y[train], patients[train])
        low, high = fitted.predict_interval(X[test])[:, 0].T
        covered += [np.mean(((low <= y[test]) & (y[test] <= high))[patients[test] == p]) for p in set(patients[test])]
        if len(covered) <= 3:
            noisy = X[test][:, 0] > 0.8
            calm = X[test][:, 0] < 0.2
            assert (high - low)[noisy].mean() > 2 * (high - low)[calm].mean()
    assert len(covered) == 20
    assert abs(np.mean(covered) - 0.9) < 0.03


def test_the_share_asked_for_is_covered_by_narrow_and_wide_intervals_which_rank_errors(world):
    X, y, patients = world
    widths = []
    for coverage in (0.5, 0.8, 0.95):
        table = ConformalIntervals(Ridge(), coverage=coverage, random_state=0).fit(X, y, patients).calibration_
        assert abs(table["coverage"].mean() - coverage) < 0.04
        widths.append(table["width"].mean())
    assert widths == sorted(widths)
    fitted = ConformalIntervals(LinearRegression(), random_state=0).fit(X, y, patients)
    assert fitted.widths_["quintile"].tolist() == [1, 2, 3, 4, 5]
    assert np.all(np.abs(fitted.widths_["coverage"] - 0.9) < 0.05)
    assert fitted.ranking_["ratio"].item() > 0.8


def test_quantiles_are_those_of_patients_that_were_not_trained_on(world):
    """Recomputed by plain numpy for a constant prediction, whose errors are the targets themselves."""
    X, y, patients = world
    fitted = ConformalIntervals(DummyRegressor(), random_state=3).fit(X, y, patients)
    predicted = np.empty(len(y))
    for train, test in GroupKFold(5, shuffle=True, random_state=3).split(X, groups=patients):
        assert not set(patients[train]) & set(patients[test])
        predicted[test] = y[train].mean()
    errors = y - predicted
    spread = np.empty(len(y))
    unit = np.sqrt((errors**2).mean())
    for train, test in GroupKFold(5, shuffle=True, random_state=4).split(X, groups=patients):
        weight = np.array([1 / np.sum(patients[train] == p) for p in patients[train]])
        forest = clone(fitted._forest).fit(
            np.column_stack([X, predicted])[train], np.abs(errors[train]) / unit, sample_weight=weight
        )
        spread[test] = forest.predict(np.column_stack([X, predicted])[test])
    smallest = 0.05 * np.mean(np.abs(errors) / unit)
    relative = errors / (np.maximum(spread, smallest) * unit)
    order = np.argsort(relative)
    below = np.cumsum(np.array([1 / np.sum(patients == p) for p in patients])[order]) / 20
    expected = [relative[order][np.searchsorted(below, q)] for q in (0.05, 0.95)]
    np.testing.assert_allclose(fitted.quantiles_[0], expected, rtol=1e-8)


def test_a_sentence_says_what_so_many_patients_let_expect(world):
    X, y, patients = world
    few = np.isin(patients, np.unique(patients)[:8])
    fitted = ConformalIntervals(Ridge(), random_state=0).fit(X[few], y[few], patients[few])
    assert "90 % cannot be promised with 8 patients (9 are needed); at least 80 % (90 % × 8/9, " in fitted.guarantee()
    all_of_them = ConformalIntervals(Ridge(), coverage=0.95, random_state=0).fit(X, y, patients)
    assert "calibrated to 95 % of the voxels on 20 patients; at least 90.5 % (95 % × 20/21, " in all_of_them.guarantee()
    all_of_them.estimator_.training_ = {"unit": "region"}
    assert "calibrated to 95 % of the regions on 20 patients" in all_of_them.guarantee()
    # Rows in random groups are not called patients.
    fitted = ConformalIntervals(Ridge(), random_state=0).fit(X, y)
    assert fitted.has_random_groups_
    assert "nothing is known about new patients" in fitted.guarantee()


def test_a_patient_with_many_voxels_counts_as_one(world):
    X, y, patients = world
    loud = patients == "p03"
    shifted = np.where(loud, y + 50, y)
    many = np.concatenate([np.arange(len(y)), *[np.flatnonzero(loud)] * 20])
    few, more = (
        ConformalIntervals(DummyRegressor(strategy="median"), random_state=0)
        .fit(X[rows], shifted[rows], patients[rows]).calibration_
        for rows in (np.arange(len(y)), many)
    )  # fmt: skip
    assert more["width"].median() < 2 * few["width"].median()
    assert more.loc[more["patient"] == "p03", "coverage"].item() < 0.1


def test_voxels_that_do_not_calibrate_are_trained_on(world):
    """Errors count where they are asked for: among the voxels of large noise."""
    X, y, patients = world
    noisy = X[:, 0] > 0.6
    fitted = ConformalIntervals(LinearRegression(), random_state=0).fit(X, y, patients, calibrate=noisy)
    assert fitted.calibration_["n_voxels"].sum() == noisy.sum()
    np.testing.assert_array_equal(fitted.predict(X), LinearRegression().fit(X, y).predict(X))
    everywhere = ConformalIntervals(LinearRegression(), random_state=0).fit(X, y, patients)
    wide, narrow = (np.ptp(one.predict_interval(X[X[:, 0] < 0.2]), axis=2).mean() for one in (fitted, everywhere))
    assert wide > narrow


def test_the_same_seed_gives_the_same_bits_and_copies_keep_them(world):
    X, y, patients = world
    fitted = ConformalIntervals(Ridge(), random_state=5).fit(X, y, patients)
    expected = fitted.predict_interval(X[:50])
    again = clone(fitted).fit(X, y, patients)
    np.testing.assert_array_equal(again.predict_interval(X[:50]), expected)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted)).predict_interval(X[:50]), expected)
    assert fitted.get_params()["estimator__alpha"] == 1.0


def test_groups_are_routed_by_scikit_learn(world):
    X, y, patients = world
    with config_context(enable_metadata_routing=True):
        intervals = ConformalIntervals(Ridge(), random_state=0).set_fit_request(groups=True)
        done = cross_validate(intervals, X, y, cv=GroupKFold(4), params={"groups": patients}, return_estimator=True)
    for one, (train, _) in zip(done["estimator"], GroupKFold(4).split(X, groups=patients), strict=True):
        assert set(one.calibration_["patient"]) == set(patients[train])


@pytest.fixture(scope="module")
def table():
    """Six synthetic patients with the maps that were fitted to their signals."""
    voxels = simulate_cohort("cohort1", 6, shape=(16, 16, 4), random_state=2).arrays(
        mask="body", max_voxels=80, random_state=0
    )
    return voxels, reference_parameters(voxels.Y, voxels.target, MODEL)


@pytest.mark.parametrize("strategy", [SignalToSignal, MapsToMaps])
def test_intervals_of_a_strategy_are_those_of_the_maps(strategy, table):
    voxels, maps = table
    estimator = strategy("LR", source=voxels.source, target=voxels.target)
    fitted = ConformalIntervals(estimator, random_state=0).fit(voxels.X, voxels.Y, voxels.groups)
    known = clone(fitted).fit(voxels.X, voxels.Y, voxels.groups, reference_maps=maps)
    intervals = fitted.predict_interval(voxels.X)
    np.testing.assert_array_equal(known.predict_interval(voxels.X), intervals)
    assert intervals.shape == (len(voxels), 7, 2)
    assert fitted.names_ == NAMES
    assert set(fitted.calibration_["patient"]) == set(voxels.groups)
    low, high = np.array(MODEL.bounds).T
    assert np.all((intervals[:, 1:, 0] >= low[1:]) & (intervals[:, 1:, 1] <= high[1:]))
    assert np.all(intervals[..., 0] <= intervals[..., 1])
    np.testing.assert_array_equal(fitted.predict_maps(voxels.X), clone(estimator).fit(voxels.X, voxels.Y).predict_maps(
        voxels.X))  # fmt: skip
    assert strategy_of(fitted) is fitted.estimator_
    assert strategy_of(fitted.estimator_) is fitted.estimator_
    assert "trained on data that are not recorded: old" in predictor_lines(fitted, Path("old"))[0]
    gap = voxels.X[:3].copy()
    gap[1] = np.nan
    assert np.isnan(fitted.typicality(gap)).tolist() == [False, True, False]
    assert np.isnan(fitted.predict_interval(gap)).all(axis=(1, 2)).tolist() == [False, True, False]


def test_a_tuned_regressor_leaves_patients_out(table):
    voxels, maps = table
    search = GridSearchCV(Ridge(), {"alpha": [1e-3, 1.0]}, cv=GroupKFold(3))
    estimator = SignalToSignal(search, source=voxels.source, target=voxels.target)
    fitted = ConformalIntervals(estimator, random_state=0)
    fitted.fit(voxels.X, voxels.Y, voxels.groups, reference_maps=maps)
    alone = clone(estimator).fit(voxels.X, voxels.Y, groups=voxels.groups)
    np.testing.assert_array_equal(fitted.predict(voxels.X), alone.predict(voxels.X))


def test_intervals_go_around_neighborhoods_and_signals_too(table):
    voxels, _ = table
    rows = np.tile(voxels.X, 3)
    estimator = SignalToSignal("LR", source=voxels.source, target=voxels.target, model=None, patch_shape=(3, 1, 1))
    fitted = ConformalIntervals(estimator, random_state=0)
    assert resolve_patch_shape(fitted) == (3, 1, 1)
    assert fitted.fit(rows, voxels.Y, voxels.groups).predict_interval(rows[:5]).shape == (5, 21, 2)
    assert fitted.names_ == voxels.target.labels
    # Only the voxel itself is compared with those of the training, not its neighbors.
    assert fitted.novelty_.center.shape == (5,)
    np.testing.assert_array_equal(fitted.typicality(np.hstack([9 * rows[:5, :5], rows[:5, 5:]])), fitted.typicality(rows[:5]))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [SignalToSignal, MapsToMaps])
@pytest.mark.parametrize("seed", [7101, 7102, 7103])
def test_held_out_patients_of_a_mixed_cohort_are_covered(strategy, seed):
    """Coverage and width by plain numpy; tumors, patient by patient held out, references from the fit."""
    cohort = simulate_cohort("cohort1", 16, shape=(32, 32, 6), random_state=seed)
    voxels = cohort.arrays(mask="lesion", max_voxels=150, random_state=0)
    maps = fit_voxels(voxels.Y, voxels.target, MODEL).parameters
    covered, width, constant = [], [], []
    for train, test in LeaveOneGroupOut().split(voxels.X, groups=voxels.groups):
        estimator = strategy("LR", source=voxels.source, target=voxels.target)
        fitted = ConformalIntervals(estimator, random_state=0)
        fitted.fit(voxels.X[train], voxels.Y[train], voxels.groups[train], reference_maps=maps[train])
        intervals = fitted.predict_interval(voxels.X[test])
        low, high = np.moveaxis(intervals, 2, 0)
        covered.append(np.mean((low <= maps[test]) & (maps[test] <= high), axis=0))
        found = coverage_table(intervals, maps[test], voxels.groups[test], names=NAMES)
        np.testing.assert_allclose(found["coverage"], covered[-1])
        width.append(np.mean(high - low, axis=0))
        _, member, count = np.unique(voxels.groups[train], return_inverse=True, return_counts=True)
        ends = np.quantile(
            maps[train], [0.05, 0.95], axis=0, weights=np.tile(1 / count[member], (7, 1)).T, method="inverted_cdf"
        )
        constant.append(np.ptp(ends, axis=0))
    by_parameter = dict(zip(NAMES, np.mean(covered, axis=0), strict=True))
    # Most references of T2v lie at one of its bounds, so the interval that holds 90 % is the whole box.
    assert by_parameter.pop("T2v") == 1
    assert max(abs(coverage - 0.9) for coverage in by_parameter.values()) < 0.05
    ratio = np.mean(width, axis=0) / np.mean(constant, axis=0)
    assert ratio.mean() < 0.9


ROWS = np.random.default_rng(0).normal(size=(60, 2))
TARGETS = ROWS @ np.ones((2, 1))
SIX = np.repeat(np.arange(6), 10)


def test_intervals_need_a_fit_and_as_many_outputs_as_were_learned():
    for method in ("predict", "predict_interval", "predict_maps"):
        with pytest.raises(NotFittedError):
            getattr(ConformalIntervals(SignalToSignal()), method)(ROWS)
    fitted = ConformalIntervals(Ridge(), random_state=0).fit(ROWS, TARGETS, SIX)
    for shape in ((60,), (60, 2), (59, 1)):
        with pytest.raises(ValueError, match=r"predicted must have the shape \(60, 1\)"):
            fitted.intervals_of(ROWS, np.zeros(shape))
