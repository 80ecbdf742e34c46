"""Least squares from moments: equal to regression of the data themselves, however they are divided."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression
from sklearn.utils.estimator_checks import parametrize_with_checks

from dmrifit.predict.least_squares import LeastSquares


@parametrize_with_checks([LeastSquares()])
def test_least_squares_follow_the_rules_of_scikit_learn(estimator, check):
    check(estimator)


def decaying(rng, n):
    """Signals like those of a voxel: features that differ little from each other."""
    first = rng.uniform(0.2, 1.5, (n, 1))
    X = first * np.exp(-rng.uniform(0.5, 2.5, (n, 1)) * [0, 0.05, 0.1, 0.4, 0.9]) + rng.normal(0, 0.02, (n, 5))
    return X, X @ rng.normal(size=(5, 21)) + 0.3 + rng.normal(0, 0.05, (n, 21))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6))
def test_signals_that_resemble_each_other_have_the_regression_of_scikit_learn(seed):
    X, Y = decaying(np.random.default_rng(seed), 300)
    ours, reference = LeastSquares().fit(X, Y), LinearRegression().fit(X, Y)
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


@pytest.mark.parametrize("constant", [0.093, 0.1, 93.0, 300.7, 0.0])
def test_a_constant_feature_gets_no_coefficient(constant):
    rng = np.random.default_rng(11)
    X = rng.uniform(50, 100, (777, 4))
    X[:, 2] = constant
    Y = 2 * X[:, [0]] + rng.normal(0, 1, (777, 1))
    elsewhere = X[:5].copy()
    elsewhere[:, 2] += 0.3
    reference = LinearRegression().fit(X, Y)
    np.testing.assert_allclose(LeastSquares().fit(X, Y).predict(elsewhere), reference.predict(elsewhere), rtol=1e-10)
    assert abs(LeastSquares().fit(X, Y).coef_[0, 2]) == 0


def test_features_that_depend_on_each_other_share_their_coefficient():
    rng = np.random.default_rng(12)
    X = rng.uniform(50, 100, (777, 3))
    Y = 2 * X[:, [0]] + rng.normal(0, 1, (777, 1))
    dependent = np.column_stack([X, X[:, 0] + X[:, 1], X[:, 2]])
    fitted, reference = LeastSquares().fit(dependent, Y), LinearRegression().fit(X, Y)
    np.testing.assert_allclose(fitted.predict(dependent), reference.predict(X), rtol=1e-9)
    np.testing.assert_allclose(fitted.coef_[0, 2], fitted.coef_[0, 4], rtol=1e-6)
    assert np.abs(fitted.coef_).max() < 3


def test_features_that_differ_by_little_are_told_apart():
    rng = np.random.default_rng(13)
    first = rng.uniform(50, 100, (777, 1))
    X = np.column_stack([first, first + 1e-3 * rng.normal(size=first.shape)])
    np.testing.assert_allclose(LeastSquares().fit(X, 3 * X[:, [0]] - X[:, [1]]).coef_, [[3, -1]], rtol=1e-4)


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_features_whose_squares_no_number_holds_are_refused(scale):
    X = np.random.default_rng(0).normal(size=(20, 2))
    with pytest.raises(ValueError, match="squares beyond double precision; scale them"):
        LeastSquares().fit(X * scale, X)
