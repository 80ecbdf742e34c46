"""Learned arrays of estimators in model files, checked before compiled code indexes with them."""

import copy

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingRegressor, IsolationForest, RandomForestRegressor
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, RobustScaler
from sklearn.tree import DecisionTreeRegressor

from dmrifit.io.parameter_json import RefusedError
from dmrifit.model_files.learned_arrays import check_arrays
from dmrifit.predict.algorithms import make_regressor

X = np.random.default_rng(0).normal(size=(60, 4))
Y = X[:, :2] ** 2 + X[:, 2:]

SOUND = {
    "LR": make_regressor("LR"),
    "medians": make_regressor("LR", loss="median"),
    "RFR": make_regressor("RFR", n_estimators=3),
    "ETR": make_regressor("ETR", n_estimators=3),
    "slNN": make_regressor("slNN"),
    "constant": make_regressor("constant"),
    "without intercept": LinearRegression(fit_intercept=False),
    "components": make_pipeline(
        MinMaxScaler(), PCA(n_components=2, whiten=True), RandomForestRegressor(n_estimators=2)
    ),
    "robust": make_pipeline(RobustScaler(), Ridge()),
    "isolation": IsolationForest(n_estimators=3),
}


@pytest.mark.parametrize("name", SOUND)
def test_what_scikit_learn_has_fitted_is_sound(name):
    check_arrays(SOUND[name].fit(X, Y))


def test_boosted_trees_of_scikit_learn_are_sound():
    check_arrays(HistGradientBoostingRegressor(max_iter=3).fit(X, Y[:, 0]))


LAYERS = MLPRegressor(hidden_layer_sizes=(3,), max_iter=200, tol=1.0).fit(X, Y)


def test_a_compiled_tree_has_the_columns_of_its_estimator():
    """scikit-learn compares the columns of its input with those of the estimator only."""
    tree = DecisionTreeRegressor(random_state=0).fit(X, Y)
    with_columns = DecisionTreeRegressor(random_state=0).fit(np.hstack([X, X]), Y).tree_
    # No node may read a column that is missing: this is not what refuses the tree.
    nodes = with_columns.__getstate__()["nodes"].copy()
    nodes["feature"] = np.minimum(nodes["feature"], 3)
    with_columns.__setstate__(with_columns.__getstate__() | {"nodes": nodes})
    tree.tree_ = with_columns
    assert (tree.tree_.n_features, tree.n_features_in_) == (8, 4)
    with pytest.raises(RefusedError, match="nodes and columns of DecisionTreeRegressor"):
        check_arrays(tree)


def test_a_generator_draws_from_its_own_state():
    perceptron = copy.deepcopy(LAYERS)
    state = perceptron._random_state.get_state(legacy=False)
    state["state"]["pos"] = 10**6
    perceptron._random_state.set_state(state)
    with pytest.raises(RefusedError, match="random generator"):
        check_arrays(perceptron)
