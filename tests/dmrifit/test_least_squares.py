"""Least squares from moments: equal to regression of the data themselves, however they are divided."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression
from sklearn.utils.estimator_checks import parametrize_with_checks

from dmrifit.least_squares import LeastSquares, Moments


@parametrize_with_checks([LeastSquares()])
def test_least_squares_follow_the_rules_of_scikit_learn(estimator, check):
    check(estimator)


def decaying(rng, n):
    """Signals like those of a voxel: features that differ little from each other."""
    first = rng.uniform(0.2, 1.5, (n, 1))
    X = first * np.exp(-rng.uniform(0.5, 2.5, (n, 1)) * [0, 0.05, 0.1, 0.4, 0.9]) + rng.normal(0, 0.02, (n, 5))
    return X, X @ rng.normal(size=(5, 21)) + 0.3 + rng.normal(0, 0.05, (n, 21))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), cuts=st.lists(st.integers(1, 299), min_size=1, max_size=6, unique=True))
def test_any_division_into_patients_gives_the_regression_of_all(seed, cuts):
    X, Y = decaying(np.random.default_rng(seed), 300)
    parts = [Moments.of(x, y) for x, y in zip(np.split(X, sorted(cuts)), np.split(Y, sorted(cuts)), strict=True)]
    ours, reference = LeastSquares().fit_moments(Moments.total(parts)), LinearRegression().fit(X, Y)
    np.testing.assert_allclose(ours.coef_, reference.coef_, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(ours.predict(X), reference.predict(X), rtol=1e-9, atol=1e-10)


def test_a_linear_world_is_recovered_on_any_scale():
    rng = np.random.default_rng(8)
    X, _ = decaying(rng, 500)
    X *= [1e6, 1, 1e-6, 1, 1]
    slopes = rng.normal(size=(5, 3)) / np.array([1e6, 1, 1e-6, 1, 1])[:, None]
    fitted = LeastSquares().fit(X, X @ slopes - 4)
    np.testing.assert_allclose(fitted.predict(X), X @ slopes - 4, rtol=1e-8)


def test_features_without_news_change_no_prediction():
    X, Y = decaying(np.random.default_rng(9), 200)
    doubled = np.column_stack([X, X[:, 0], np.ones(200)])
    np.testing.assert_allclose(
        LeastSquares().fit(doubled, Y).predict(doubled), LeastSquares().fit(X, Y).predict(X), atol=1e-9
    )


def test_one_target_may_be_a_vector():
    X, Y = decaying(np.random.default_rng(10), 50)
    flat = LeastSquares().fit(X, Y[:, 0])
    assert flat.predict(X).shape == (50,)
    np.testing.assert_array_equal(flat.predict(X), LeastSquares().fit(X, Y[:, :1]).predict(X)[:, 0])
    assert flat.intercept_ == pytest.approx(LinearRegression().fit(X, Y[:, 0]).intercept_)
