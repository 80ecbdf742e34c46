"""Fitted regressors as bytes and back, without a pickle."""

import numpy as np
import pytest
import scipy.sparse
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dmrifit.io.parameter_json import RefusedError
from dmrifit.model_files.regressor_file import (
    Leaf,
    _with_modules,
    _with_schema,
    dumped,
    loaded,
    versions_of,
)
from dmrifit.predict.algorithms import make_regressor

X = np.random.default_rng(0).normal(size=(60, 4))
Y = X[:, :2] ** 2 + X[:, 2:]
XGBOOST = "xgboost.XGBRegressor"


def stored(regressor):
    parts, leaves = {}, []
    return dumped(regressor, parts, leaves), leaves, parts


@pytest.mark.parametrize("name", ["LR", "RFR", "ETR", "slNN"])
def test_regressors_of_scikit_learn_come_back_whole(name):
    regressor = make_regressor(name, random_state=0).fit(X, Y)
    data, leaves, parts = stored(regressor)
    assert (leaves, parts) == ([], {})
    assert loaded(data, leaves, parts).predict(X).tobytes() == regressor.predict(X).tobytes()


def test_boosted_trees_lie_beside_the_regressor_and_parts_of_a_second_are_numbered_after():
    regressor = make_regressor("GBR", random_state=0).fit(X, Y)
    before = regressor.predict(X).tobytes()
    data, leaves, parts = stored(regressor)
    fitted = [leaf for leaf in leaves if leaf["weights"]]
    assert {leaf["class"] for leaf in leaves} == {XGBOOST}
    assert set(parts) == {leaf["weights"] for leaf in fitted}
    assert all(name.endswith(".json") for name in parts)
    assert loaded(data, leaves, parts).predict(X).tobytes() == before
    # What was stored is as it was before.
    assert regressor.predict(X).tobytes() == before
    assert set(versions_of(leaves)) == {"xgboost"}
    assert versions_of([]) == {}
    parts, leaves, files = {}, [], []
    regressors = [make_regressor("GBR", random_state=0).fit(X, sign * Y) for sign in (1, -1)]
    for regressor in regressors:
        files.append(dumped(regressor, parts, leaves))
    for data, regressor in zip(files, regressors, strict=True):
        assert (loaded(data, leaves, parts).predict(X).tobytes() == regressor.predict(X).tobytes())


NEIGHBORS = "sklearn.neighbors._regression.KNeighborsRegressor"


def test_only_estimators_of_scikit_learn_are_read_where_they_are_trusted():
    regressor = KNeighborsRegressor(algorithm="brute").fit(X, Y)
    data, leaves, parts = stored(regressor)
    again = loaded(data, leaves, parts, trusted=[NEIGHBORS])
    assert again.predict(X).tobytes() == regressor.predict(X).tobytes()
    for trusted in ((), ["sklearn.svm._classes.SVR", "os.system"]):
        with pytest.raises(RefusedError, match=rf'trusted=\["{NEIGHBORS}"\]'):
            loaded(data, leaves, parts, trusted=trusted)
    from skops.io import dumps

    data = dumps(Mine().fit(X, Y))
    with pytest.raises(RefusedError, match="Mine, which no regressor here is made of"):
        loaded(data, [], {}, trusted=[f"{Mine.__module__}.Mine"])


def seed_of_five(node):
    node["pool_size"]["content"] = "5"


def seed_of_another_node(node):
    """Five has the identity that the size refers to."""
    node["n_children_spawned"] |= {"content": "5", "__id__": 1}
    node["pool_size"] = node["pool_size"] | {"__loader__": "CachedNode", "__id__": 1}


def seed_of_an_earlier_node(node):
    node["n_children_spawned"] |= {"content": "5", "__id__": 1}
    node["pool_size"]["__id__"] = 1


def seed_of_no_node(node):
    node["pool_size"] |= {"__loader__": "CachedNode", "__id__": 1}


@pytest.mark.parametrize("spoil", [seed_of_five, seed_of_another_node, seed_of_an_earlier_node, seed_of_no_node])
def test_seeds_of_another_size_are_refused_before_numpy_mixes_them(spoil):
    """A size of a billion takes hours, so that a small one stands for it here."""
    regressor = HistGradientBoostingRegressor(max_iter=2, random_state=0).fit(X, Y[:, 0])
    data, leaves, parts = stored(regressor)

    def change(node):
        if "pool_size" in node:
            spoil(node)

    loaded(data, leaves, parts)
    with pytest.raises(RefusedError, match="random generator of its regressor has no valid state"):
        loaded(_with_schema(data, change), leaves, parts)


class Mine(LinearRegression):
    """A class that no reader knows."""


def with_attribute(regressor, **attributes):
    vars(regressor.fit(X, Y)).update(attributes)
    return regressor


@pytest.mark.parametrize(
    ("regressor", "words"),
    [
        (Mine().fit(X, Y), "cannot be stored, because a model file does not carry .*Mine"),
        (with_attribute(Ridge(), sparse_=scipy.sparse.csr_matrix([[1.0]])), r"does not carry .*SparseMatrixNode"),
        (with_attribute(Ridge(), coef_=np.full((2, 4), np.nan)), r"cannot be stored: an array .* non-finite"),
        (Ridge(random_state=np.random.default_rng(np.random.SeedSequence(0, pool_size=8))), "cannot be stored: a random generator"),
        (make_regressor("GBR").regressor[-1].set_params(max_depht=2), r"XGBRegressor has no parameter max_depht; leave it out"),
    ],
)  # fmt: skip
def test_what_would_not_be_read_is_not_written(regressor, words):
    with pytest.raises(ValueError, match=words):
        stored(regressor)


@pytest.mark.parametrize("number", [-1, 1, 10, 1.0, True, None, "0"])
def test_a_place_in_the_list_of_parts_that_there_is_not_is_refused(number):
    from skops.io import dumps

    leaf = {"class": XGBOOST, "parameters": {}, "fitted": {}, "weights": None}
    data = _with_modules(dumps(make_pipeline(StandardScaler(), Leaf(number))), short=True)
    with pytest.raises(RefusedError, match=r"it has no part .* beside the regressor"):
        loaded(data, [leaf], {})


def leaf(**changes):
    return {"class": XGBOOST, "parameters": {}, "fitted": {}, "weights": "leaf0.json"} | changes
