"""The study's regressors by their names."""

import subprocess
import sys

import numpy as np
import pytest
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures
from sklearn.svm import SVR
from sklearn.utils.estimator_checks import parametrize_with_checks

from dmrifit.predict.algorithms import (
    CONSTANT,
    PATCHWISE,
    VOXELWISE,
    TargetWise,
    build_regressor,
    default_patch_shape,
    make_regressor,
)


@parametrize_with_checks([TargetWise(Ridge())])
def test_one_regressor_per_target_keeps_the_rules_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.fixture
def world():
    """A mildly curved map of 4 inputs to 3 targets whose units differ by orders of magnitude."""
    rng = np.random.default_rng(0)
    X = rng.uniform(0, 1, (300, 4))
    Y = X @ rng.normal(size=(4, 3)) + 0.3 * X[:, :1] ** 2
    return X, Y * [1.0, 1e3, 1e-3]


@pytest.fixture(params=[*VOXELWISE, *(pytest.param(one, marks=pytest.mark.deep) for one in PATCHWISE)])
def name(request):
    return request.param


MEDIAN = ["LR", "RFR", "ETR", "GBR", *(pytest.param(one, marks=pytest.mark.deep) for one in PATCHWISE), CONSTANT]


def test_every_algorithm_learns_targets_of_any_unit_with_the_same_bits_for_a_seed(name, world):
    X, Y = world
    prediction = make_regressor(name, random_state=0).fit(X, Y).predict(X)
    residual = ((prediction - Y) ** 2).sum(axis=0) / ((Y - Y.mean(axis=0)) ** 2).sum(axis=0)
    assert residual.max() < 0.25
    assert make_regressor(name, random_state=0).fit(X, Y[:, 0]).predict(X[:5]).shape == (5,)
    unit = 2.0**14  # exact, because a tie between two splits would be decided by rounding
    other = make_regressor(name, random_state=0).fit(unit * X, unit * Y).predict(unit * X)
    np.testing.assert_allclose(other, unit * prediction, rtol=1e-9)
    first, second = (make_regressor(name, random_state=3).fit(X, Y).predict(X) for _ in range(2))
    assert first.tobytes() == second.tobytes()
    other = make_regressor(name, random_state=4).fit(X, Y).predict(X)
    draws = name not in ("LR", "GBR")
    assert (first.tobytes() != other.tobytes()) == draws


def test_parameters_reach_the_class_behind_the_name():
    assert make_regressor("RFR", n_estimators=7, n_jobs=2).regressor[-1].n_estimators == 7
    assert make_regressor("RFR", n_jobs=2).regressor[-1].n_jobs == 2
    assert make_regressor("GBR", max_depth=2).regressor[-1].max_depth == 2
    assert make_regressor("mlNN", hidden_layer_sizes=(4, 4)).regressor[-1].hidden_layer_sizes == (4, 4)
    for name in ("RFR", "GBR", "slNN"):
        with pytest.raises(TypeError, match="n_trees"):
            make_regressor(name, n_trees=7)
    with pytest.raises(ValueError, match="slNN cannot learn the median"):
        make_regressor("slNN", loss="median")


@pytest.mark.parametrize("epochs", [3, 12])
def test_perceptrons_stop_after_their_epochs_without_a_warning(epochs, world):
    fitted = make_regressor("slNN", epochs=epochs, random_state=0).fit(*world)
    assert fitted.regressor_[-1].n_iter_ == epochs
    # A stopping rule of scikit-learn replaces the epochs.
    stopped = make_regressor("slNN", tol=0.05, n_iter_no_change=2, random_state=0).fit(*world).regressor_[-1]
    assert stopped.max_iter == 200
    assert 2 < stopped.n_iter_ < 100


@pytest.mark.parametrize("name", MEDIAN)
def test_the_median_is_learned_where_it_can_be(name):
    """Skewed noise that the inputs do not explain: mean 3.1, median 1."""
    rng = np.random.default_rng(2)
    X = rng.normal(size=(1500, 2))
    Y = np.exp(1.5 * rng.normal(size=(1500, 2))) * [1.0, 100.0]
    params = {"min_samples_leaf": 300} if name in ("RFR", "ETR") else {}
    prediction = make_regressor(name, loss="median", random_state=0, **params).fit(X, Y).predict(X)
    np.testing.assert_allclose(np.median(prediction, axis=0), [1, 100], rtol=0.25)
    built = build_regressor(name, n_targets=2, loss="median", random_state=0)
    assert built.fit(X, Y).predict(X).shape == Y.shape


@pytest.mark.deep
def test_a_given_network_is_told_its_neighborhood_unless_it_has_one():
    from dmrifit.predict.patch_networks import PatchCNN

    for given in (PatchCNN(), make_pipeline(PolynomialFeatures(1), PatchCNN()), make_regressor("CNN")):
        assert default_patch_shape(given) == (3, 3, 1)
        built = build_regressor(given, n_targets=2, patch_shape=(5, 3, 1))
        assert default_patch_shape(built) == (5, 3, 1)
    own = PatchCNN((3, 3, 3))
    assert default_patch_shape(own) == (3, 3, 3)
    assert build_regressor(own, n_targets=2, patch_shape=(5, 3, 1)).regressor.patch_shape == (3, 3, 3)


@pytest.mark.parametrize(
    ("name", "library", "extra"), [("GBR", "xgboost", "boost"), ("CNN", "torch", "deep"), ("ViT", "torch", "deep")]
)
def test_a_missing_library_is_named_with_the_command(name, library, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", sys.modules.get("torch", sys))
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf'{library} is not installed; .*pip install "dmrifit\[{extra}\]"'):
        build_regressor(name, n_targets=2)


def test_the_module_loads_no_library_of_an_extra():
    code = (
        "import sys, dmrifit.predict.algorithms as a; a.default_patch_shape('CNN'); a.make_regressor('LR'); "
        "assert not {'torch', 'skorch', 'xgboost'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def decaying(rng, n):
    """Signals like those of a voxel: features that differ little from each other."""
    first = rng.uniform(0.2, 1.5, (n, 1))
    X = first * np.exp(-rng.uniform(0.5, 2.5, (n, 1)) * [0, 0.05, 0.1, 0.4, 0.9]) + rng.normal(0, 0.02, (n, 5))
    return X, X @ rng.normal(size=(5, 21)) + 0.3 + rng.normal(0, 0.05, (n, 21))


def test_linear_regression_is_least_squares_and_recovers_a_linear_world_on_any_scale():
    rng = np.random.default_rng(8)
    X, Y = decaying(rng, 500)
    plain = make_regressor("LR").fit(X, Y).predict(X)
    np.testing.assert_allclose(plain, LinearRegression().fit(X, Y).predict(X), rtol=1e-9, atol=1e-12)
    doubled = np.column_stack([X, X[:, 0], X[:, 1] + X[:, 2], np.ones(500)])
    np.testing.assert_allclose(make_regressor("LR").fit(doubled, Y).predict(doubled), plain, atol=1e-9)
    X *= [1e6, 1, 1e-6, 1, 1]
    slopes = rng.normal(size=(5, 3)) / np.array([1e6, 1, 1e-6, 1, 1])[:, None]
    fitted = make_regressor("LR").fit(X, X @ slopes - 4)
    np.testing.assert_allclose(fitted.predict(X), X @ slopes - 4, rtol=1e-8)


@pytest.mark.parametrize("constant", [0.093, 0.1, 93.0, 300.7, 0.0])
def test_a_constant_feature_gets_no_coefficient(constant):
    rng = np.random.default_rng(11)
    X = rng.uniform(50, 100, (777, 4))
    X[:, 2] = constant
    Y = 2 * X[:, [0]] + rng.normal(0, 1, (777, 1))
    elsewhere = X[:5].copy()
    elsewhere[:, 2] += 0.3
    fitted = make_regressor("LR").fit(X, Y)
    np.testing.assert_allclose(fitted.predict(elsewhere), fitted.predict(X[:5]), rtol=1e-10)


def test_the_constant_is_the_median_of_the_training_targets(world):
    X, Y = world
    prediction = make_regressor(CONSTANT).fit(X, Y).predict(X[:2])
    np.testing.assert_array_equal(prediction, np.tile(np.median(Y, axis=0), (2, 1)))


def test_a_given_regressor_is_copied_seeded_and_scaled(world):
    X, Y = world
    given = RandomForestRegressor(5)
    built = build_regressor(given, n_targets=3, random_state=0)
    assert isinstance(built, TransformedTargetRegressor)
    assert built.regressor is not given
    assert given.random_state is None
    first = built.fit(X, Y).predict(X)
    assert first.tobytes() == build_regressor(given, n_targets=3, random_state=0).fit(X, Y).predict(X).tobytes()
    seeded = build_regressor(RandomForestRegressor(5, random_state=7), n_targets=3, random_state=0)
    assert seeded.regressor.random_state == 7
    for single in (SVR(), HistGradientBoostingRegressor(max_iter=5)):
        assert build_regressor(single, n_targets=3).fit(X, Y).predict(X).shape == (300, 3)
        assert not isinstance(build_regressor(single, n_targets=1).regressor, TargetWise)
    for name in ("LR", "slNN"):
        assert not isinstance(build_regressor(make_regressor(name), n_targets=3).regressor, TargetWise)
    # One that minds the scale of its targets.
    predicted, large = (build_regressor(SVR(), n_targets=3).fit(X, unit * Y).predict(X) for unit in (1, 1000))
    np.testing.assert_allclose(large / 1000, predicted, atol=0.01 * Y.std())
    generator = np.random.RandomState(0)
    first, second = (build_regressor("RFR", n_targets=3, random_state=generator).fit(X, Y).predict(X) for _ in range(2))
    assert not np.array_equal(first, second), "a generator moves on between two regressors"
