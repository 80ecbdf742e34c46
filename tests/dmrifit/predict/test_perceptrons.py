"""Perceptrons with quick steps: the weights of scikit-learn's, bit for bit."""

import warnings

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPRegressor
from sklearn.utils.estimator_checks import parametrize_with_checks

from dmrifit.predict.algorithms import make_regressor
from dmrifit.predict.perceptrons import Perceptron

RNG = np.random.default_rng(0)
X = RNG.normal(size=(330, 5))
Y = np.tanh(X @ RNG.normal(size=(5, 7))) + 0.3 * RNG.normal(size=(330, 7))
EPOCHS = {"max_iter": 9, "tol": 1e12, "n_iter_no_change": 6, "learning_rate_init": 0.01}
QUICK = {"hidden_layer_sizes": (12,), "random_state": 3, **EPOCHS}


def state(network):
    """What training has left: weights, losses, moments of the optimizer and the next random number."""
    optimizer = getattr(network, "_optimizer", None)
    moments = [] if optimizer is None else [optimizer.t, optimizer.learning_rate, *optimizer.ms, *optimizer.vs]
    arrays = [*network.coefs_, *network.intercepts_, *network._best_coefs, *moments]
    numbers = [network.n_iter_, network.t_, network.loss_, network.best_loss_, network.loss_curve_]
    return [array.tobytes() if hasattr(array, "tobytes") else array for array in arrays], numbers


def assert_same(options, x=X, y=Y, **fit):
    theirs, ours = MLPRegressor(**options).fit(x, y, **fit), Perceptron(**options).fit(x, y, **fit)
    assert state(ours) == state(theirs)
    np.testing.assert_array_equal(ours.predict(x), theirs.predict(x))
    assert ours._random_state.random_sample() == theirs._random_state.random_sample()
    return ours


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"hidden_layer_sizes": (48, 48)},
        {"hidden_layer_sizes": 7},
        {"batch_size": 64},
        {"batch_size": 330, "shuffle": False},
        {"alpha": 0.0, "beta_1": 0.5, "beta_2": 0.9, "epsilon": 1e-3},
        {"alpha": 10.0},
    ],
)
def test_weights_losses_and_moments_have_the_bits_of_scikit_learn(options):
    assert_same({**QUICK, **options})


@pytest.mark.parametrize("n", [1, 2, 199, 200, 201])
def test_batches_of_any_length_have_the_bits_of_scikit_learn(n):
    assert_same(QUICK, X[:n], Y[:n])


def test_a_single_target_has_the_bits_of_scikit_learn():
    assert assert_same(QUICK, X, Y[:, 0]).predict(X).shape == (330,)


def test_the_layout_of_the_training_data_changes_no_bit():
    columns = Perceptron(**QUICK).fit(np.asfortranarray(X), np.asfortranarray(Y))
    assert state(columns) == state(Perceptron(**QUICK).fit(X, Y))


def test_training_stops_by_tolerance_at_the_epoch_of_scikit_learn():
    stopping = {**QUICK, "tol": 0.01, "n_iter_no_change": 2, "max_iter": 200}
    n_epochs = {seed: assert_same({**stopping, "random_state": seed}).n_iter_ for seed in range(4)}
    assert len(set(n_epochs.values())) > 1
    assert max(n_epochs.values()) < 200


def test_the_last_epoch_without_convergence_is_warned_about():
    with pytest.warns(ConvergenceWarning, match=r"Maximum iterations \(3\) reached"):
        ours = Perceptron(max_iter=3, random_state=0).fit(X, Y)
    with pytest.warns(ConvergenceWarning):
        assert state(ours) == state(MLPRegressor(max_iter=3, random_state=0).fit(X, Y))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_regressor("slNN", random_state=0).fit(X, Y)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_weights_that_overflow_are_an_error():
    with pytest.raises(ValueError, match="non-finite parameter weights"), np.errstate(all="ignore"):
        Perceptron(**QUICK | {"alpha": 1e300, "learning_rate_init": 1e300}).fit(X, Y)


@pytest.mark.parametrize(
    "options",
    [
        {"activation": "tanh"},
        {"solver": "sgd"},
        {"solver": "lbfgs", "max_iter": 400},
        {"early_stopping": True, "tol": 1e-4, "max_iter": 400},
        {"batch_size": 400},
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_other_settings_are_trained_by_scikit_learn_itself(options):
    theirs, ours = MLPRegressor(**QUICK | options), Perceptron(**QUICK | options)
    np.testing.assert_array_equal(ours.fit(X, Y).predict(X), theirs.fit(X, Y).predict(X))


def test_sparse_inputs_and_weighted_samples_are_trained_by_scikit_learn_itself():
    assert_same(QUICK, csr_array(np.maximum(X, 0)))
    assert_same(QUICK, sample_weight=np.linspace(0, 2, len(X)))


def test_a_fitted_network_goes_on_like_that_of_scikit_learn():
    ours = Perceptron(**QUICK).fit(X, Y).partial_fit(X, Y)
    theirs = MLPRegressor(**QUICK).fit(X, Y).partial_fit(X, Y)
    assert state(ours) == state(theirs)
    warm = QUICK | {"warm_start": True}
    ours, theirs = Perceptron(**warm).fit(X, Y).fit(X, Y), MLPRegressor(**warm).fit(X, Y).fit(X, Y)
    np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))


def test_single_precision_predicts_alike():
    single = Perceptron(**QUICK, dtype="float32").fit(X, Y)
    assert {layer.dtype for layer in (*single.coefs_, *single.intercepts_)} == {np.dtype("float32")}
    np.testing.assert_allclose(single.predict(X), Perceptron(**QUICK).fit(X, Y).predict(X), atol=1e-4)
    regressor = make_regressor("mlNN", dtype="float32", random_state=0)
    double = make_regressor("mlNN", random_state=0).fit(X, Y).predict(X)
    assert np.corrcoef(regressor.fit(X, Y).predict(X).ravel(), double.ravel())[0, 1] > 0.999


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match=r"'dtype' parameter of Perceptron.*float16"):
        Perceptron(dtype="float16").fit(X, Y)


def test_parameters_are_those_of_scikit_learn_and_the_precision():
    network = Perceptron(alpha=0.5, dtype="float32")
    assert clone(network).get_params() == {**MLPRegressor(alpha=0.5).get_params(), "dtype": "float32"}
    with pytest.raises(TypeError, match="width"):
        Perceptron(width=3)


@parametrize_with_checks([Perceptron(max_iter=100)])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_scikit_learn_accepts_the_estimator(estimator, check):
    check(estimator)
