"""Learned arrays of estimators in model files, checked before compiled code indexes with them."""

import copy

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.dummy import DummyRegressor
from sklearn.ensemble import (
    ExtraTreesRegressor,
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestRegressor,
)
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, RobustScaler, StandardScaler
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
    "components": make_pipeline(MinMaxScaler(), PCA(n_components=2, whiten=True), RandomForestRegressor(n_estimators=2)),
    "robust": make_pipeline(RobustScaler(), Ridge()),
    "isolation": IsolationForest(n_estimators=3),
}


@pytest.mark.parametrize("name", SOUND)
def test_what_scikit_learn_has_fitted_is_sound(name):
    check_arrays(SOUND[name].fit(X, Y))


def test_boosted_trees_of_scikit_learn_are_sound():
    check_arrays(HistGradientBoostingRegressor(max_iter=3).fit(X, Y[:, 0]))


def spoiled(estimator, **attributes):
    for name, value in attributes.items():
        setattr(estimator, name, value)
    return estimator


LINEAR = LinearRegression().fit(X, Y)
SCALER = StandardScaler().fit(X)
LAYERS = MLPRegressor(hidden_layer_sizes=(3,), max_iter=200, tol=1.0).fit(X, Y)


@pytest.mark.parametrize(
    ("estimator", "attributes", "message"),
    [
        (LINEAR, {"intercept_": np.zeros((10, 1))}, "rows of LinearRegression"),
        (LINEAR, {"coef_": LINEAR.coef_ * np.nan}, "non-finite"),
        (SCALER, {"scale_": np.ones((10, 1))}, "rows of StandardScaler"),
        (SCALER, {"mean_": SCALER.mean_ + np.inf}, "non-finite"),
        (SCALER, {"mean_": SCALER.mean_[:1]}, "rows of StandardScaler"),
        (SCALER, {"scale_": np.float64(3.0)}, "rows of StandardScaler"),
        (LAYERS, {"intercepts_": [np.zeros((10, 1)), np.zeros(2)]}, "rows of MLPRegressor"),
        (PCA(n_components=2).fit(X), {"mean_": np.zeros((10, 1))}, "rows of PCA"),
        (DummyRegressor().fit(X, Y), {"constant_": np.ones((1, 1))}, "constants and targets"),
    ],
)
def test_columns_that_numpy_would_repeat_and_numbers_that_are_not_finite(estimator, attributes, message):
    with pytest.raises(RefusedError, match=message):
        check_arrays(spoiled(copy.deepcopy(estimator), **attributes))


def with_state(estimator, **changes):
    """Change the state of a tree as a file would: scikit-learn compares only some of it."""
    tree = estimator.tree_
    tree.__setstate__(tree.__getstate__() | changes)
    return estimator


def forest_with(place, member, kind=RandomForestRegressor, columns=4):
    """Put something else, or the first tree of another forest, in the place of a tree."""
    forest = kind(n_estimators=3, random_state=0).fit(X[:, :columns], Y)
    forest.estimators_[place] = member
    return forest


def tree_with(field, node, value):
    tree = DecisionTreeRegressor(random_state=0).fit(X, Y)
    nodes = tree.tree_.__getstate__()["nodes"].copy()
    nodes[field][node] = value
    return with_state(tree, nodes=nodes)


TREE = DecisionTreeRegressor().fit(X, Y)


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        *((with_state(DecisionTreeRegressor().fit(X, Y), node_count=n), "nodes of DecisionTreeRegressor") for n in (10**8, 1, -1, 0)),
        *(
            (forest_with(1, tree_with(field, 0, value)), "branches that lead nowhere")
            for field in ("left_child", "right_child", "feature")
            for value in (-1, 10**8, 2**31, -(2**40))
        ),
        (tree_with("left_child", 1, 0), "branches that lead nowhere"),  # a circle
        # scikit-learn compares the columns with those of the first tree only.
        (forest_with(2, ExtraTreesRegressor(1).fit(X, Y).estimators_[0], ExtraTreesRegressor, 2), "trees and columns"),
        (forest_with(1, SCALER), "trees of RandomForestRegressor"),
        (forest_with(1, make_pipeline(TREE)), "trees of RandomForestRegressor"),
        (make_pipeline(SCALER, TREE.tree_), "stands where scikit-learn has none"),
        (spoiled(LinearRegression().fit(X, Y), tree_=TREE.tree_), "stands where scikit-learn has none"),
        (spoiled(copy.copy(TREE), n_features_in_=None), "features of DecisionTreeRegressor"),
        (spoiled(IsolationForest(n_estimators=2).fit(X), estimators_features_=[np.arange(4), np.arange(2)]), "trees and columns"),
    ],
)  # fmt: skip
def test_trees_are_followed_before_scikit_learn_does(estimator, message):
    with pytest.raises(RefusedError, match=message):
        check_arrays(estimator)


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


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("is_categorical", 1, "branch on categories"),
        ("is_leaf", 255, "nodes"),
        ("missing_go_to_left", 2, "nodes"),
        ("left", 10**6, "branches that lead nowhere"),
        ("feature_idx", 77, "branches that lead nowhere"),
        ("value", np.nan, "nodes"),
    ],
)
def test_nodes_of_boosted_trees_are_followed(field, value, message):
    boosting = HistGradientBoostingRegressor(max_iter=3).fit(X, Y[:, 0])
    boosting._predictors[1][0].nodes[field][0] = value
    with pytest.raises(RefusedError, match=message):
        check_arrays(boosting)
    boosting._predictors[1][0].nodes = boosting._predictors[1][0].nodes[:0]
    with pytest.raises(RefusedError, match="nodes"):
        check_arrays(boosting)


def test_a_generator_draws_from_its_own_state():
    perceptron = copy.deepcopy(LAYERS)
    state = perceptron._random_state.get_state(legacy=False)
    state["state"]["pos"] = 10**6
    perceptron._random_state.set_state(state)
    with pytest.raises(RefusedError, match="random generator"):
        check_arrays(perceptron)
