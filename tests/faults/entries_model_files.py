"""Entries of the corpus for contents of model files, in Python: each is refused before a library reads it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
from driver import expressions
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor
from sklearn.linear_model import LinearRegression
from sklearn.neural_network import MLPRegressor
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeRegressor

from dmrifit.io.parameter_json import RefusedError
from dmrifit.model_files.regressor_file import checked_trees

#: One split of feature 1 at 0.5 with a leaf on either side, written by hand, as xgboost stores it.
DOCUMENT = (Path(__file__).parents[1] / "dmrifit" / "model_files" / "data" / "stump.json").read_text(encoding="utf-8")
BOOSTER = json.loads(DOCUMENT)["learner"]["gradient_booster"]
STUMP = BOOSTER["model"]["trees"][0]
SIZES = STUMP["tree_param"]
NO_NODES = {name: [] for name, values in STUMP.items() if isinstance(values, list)} | {
    "tree_param": SIZES | {"num_nodes": "0"}
}
VECTORS = {"tree_param": SIZES | {"size_leaf_vector": "2"}, "base_weights": [0.0] * 6, "leaf_weights": [0.0] * 4}


def boosted(part: str, **changes: Any) -> None:
    """Check trees of which a part is changed."""
    document = json.loads(DOCUMENT)
    learner = document["learner"]
    model, parameters = learner["gradient_booster"]["model"], learner["learner_model_param"]
    parts = {"learner": learner, "model": model, "tree": model["trees"][0], "parameters": parameters}
    parts[part].update(changes)
    checked_trees(json.dumps(document).encode())


def dart(weights: list[float]) -> dict[str, Any]:
    return {"name": "dart", "gbtree": BOOSTER, "weight_drop": weights}


X = np.random.default_rng(0).normal(size=(60, 4))
Y = X[:, :2] ** 2 + X[:, 2:]
LINEAR = LinearRegression().fit(X, Y)
SCALER = StandardScaler().fit(X)
LAYERS = MLPRegressor(hidden_layer_sizes=(3,), max_iter=200, tol=1.0).fit(X, Y)
TREE = DecisionTreeRegressor(random_state=0).fit(X, Y)


def spoiled(estimator: Any, **attributes: Any) -> Any:
    estimator = copy.deepcopy(estimator)
    vars(estimator).update(attributes)
    return estimator


def with_state(**changes: Any) -> DecisionTreeRegressor:
    """Change the state of a tree as a file would: scikit-learn compares only some of it."""
    estimator = copy.deepcopy(TREE)
    estimator.tree_.__setstate__(estimator.tree_.__getstate__() | changes)
    return estimator


def tree_with(field: str, node: int, value: int) -> DecisionTreeRegressor:
    nodes = TREE.tree_.__getstate__()["nodes"].copy()
    nodes[field][node] = value
    return with_state(nodes=nodes)


def forest_with(place: int, member: Any, kind: Any = RandomForestRegressor, columns: int = 4) -> Any:
    """Put something else, or the first tree of another forest, in the place of a tree."""
    forest = kind(n_estimators=3, random_state=0).fit(X[:, :columns], Y)
    forest.estimators_[place] = member
    return forest


def boosting_with(field: str = "", value: float = 0) -> HistGradientBoostingRegressor:
    """Change a field of the first node, or leave out all nodes."""
    boosting = HistGradientBoostingRegressor(max_iter=3).fit(X, Y[:, 0])
    predictor = boosting._predictors[1][0]
    if field:
        predictor.nodes[field][0] = value
    else:
        predictor.nodes = predictor.nodes[:0]
    return boosting


def leaf(**changes: Any) -> dict[str, Any]:
    return {"class": "xgboost.XGBRegressor", "parameters": {}, "fitted": {}, "weights": "leaf0.json"} | changes


OF_FILES = ("dmrifit.io.parameter_json", "dmrifit.model_files.learned_arrays", "dmrifit.model_files.regressor_file")
OF_SKLEARN = ("decomposition", "dummy", "ensemble", "pipeline")
modules = [*OF_FILES, *(f"sklearn.{module}" for module in OF_SKLEARN)]
expressions("contents of model files", globals(), modules, error=RefusedError)
