"""Perceptrons of scikit-learn, trained in double or single precision."""

import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.neural_network import MLPRegressor
from sklearn.utils.estimator_checks import parametrize_with_checks

from dmrifit.predict.algorithms import make_regressor
from dmrifit.predict.perceptrons import Perceptron

RNG = np.random.default_rng(0)
X = RNG.normal(size=(330, 5))
Y = np.tanh(X @ RNG.normal(size=(5, 7))) + 0.3 * RNG.normal(size=(330, 7))
EPOCHS = {"max_iter": 9, "tol": 1e12, "n_iter_no_change": 6, "learning_rate_init": 0.01}
QUICK = {"hidden_layer_sizes": (12,), "random_state": 3, **EPOCHS}


@pytest.mark.parametrize("options", [{}, {"hidden_layer_sizes": (48, 48)}, {"solver": "sgd"}, {"batch_size": 64}])
def test_in_double_precision_predictions_have_the_bits_of_scikit_learn(options):
    theirs, ours = MLPRegressor(**QUICK | options), Perceptron(**QUICK | options)
    np.testing.assert_array_equal(ours.fit(X, Y).predict(X), theirs.fit(X, Y).predict(X))


def test_single_precision_predicts_alike():
    single = Perceptron(**QUICK, dtype="float32").fit(X, Y)
    assert {layer.dtype for layer in (*single.coefs_, *single.intercepts_)} == {np.dtype("float32")}
    np.testing.assert_allclose(single.predict(X), Perceptron(**QUICK).fit(X, Y).predict(X), atol=1e-4)
    regressor = make_regressor("mlNN", dtype="float32", random_state=0)
    double = make_regressor("mlNN", random_state=0).fit(X, Y).predict(X)
    assert np.corrcoef(regressor.fit(X, Y).predict(X).ravel(), double.ravel())[0, 1] > 0.999


def test_the_fixed_number_of_epochs_ends_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_regressor("slNN", random_state=0).fit(X, Y)


def test_parameters_are_those_of_scikit_learn_and_the_precision():
    network = Perceptron(alpha=0.5, dtype="float32")
    assert clone(network).get_params() == {**MLPRegressor(alpha=0.5).get_params(), "dtype": "float32"}
    with pytest.raises(TypeError, match="width"):
        Perceptron(width=3)
    with pytest.raises(ValueError, match=r"'dtype' parameter of Perceptron.*float16"):
        Perceptron(dtype="float16").fit(X, Y)


@parametrize_with_checks([Perceptron(max_iter=100)])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_scikit_learn_accepts_the_estimator(estimator, check):
    check(estimator)
