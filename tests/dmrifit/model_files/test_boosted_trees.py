"""Boosted trees as JSON, checked before xgboost reads them."""

import json
from pathlib import Path

import numpy as np
import pytest

from dmrifit.io.parameter_json import RefusedError
from dmrifit.model_files.regressor_file import checked_trees

ROOT = 2147483647
#: One split of feature 1 at 0.5 with a leaf on either side, written by hand.
DOCUMENT = (Path(__file__).parent / "data" / "stump.json").read_text(encoding="utf-8")


def stump():
    return json.loads(DOCUMENT)["learner"]["gradient_booster"]["model"]["trees"][0]


def document_of(*trees):
    document = json.loads(DOCUMENT)
    model = document["learner"]["gradient_booster"]["model"]
    model["gbtree_model_param"]["num_trees"] = str(len(trees))
    model |= {"iteration_indptr": list(range(len(trees) + 1)), "tree_info": [0] * len(trees), "trees": list(trees)}
    return document


def encoded(document):
    return json.dumps(document).encode()


def predicted(content, X):
    xgboost = pytest.importorskip("xgboost")
    regressor = xgboost.XGBRegressor(n_jobs=1)
    regressor.load_model(bytearray(content))
    return regressor.predict(X)


def test_a_tree_written_by_hand_answers_with_its_leaves():
    content = checked_trees(encoded(document_of(stump())))
    X = np.array([[9, 0.25], [-9, 0.75]])
    np.testing.assert_array_equal(predicted(content, X), [10 - 1.5, 10 + 2.25])


@pytest.mark.parametrize("parents", [[0, 10**8, 0], [10**8] * 3, [-1, -5, 7], [], None])
def test_parents_are_rebuilt_from_the_children(parents):
    content = checked_trees(encoded(document_of(stump() | {"parents": parents})))
    tree = json.loads(content)["learner"]["gradient_booster"]["model"]["trees"][0]
    assert tree["parents"] == [ROOT, 0, 0]
    assert predicted(content, np.ones((1, 2))) == 10 + 2.25


def test_extreme_numbers_of_single_precision_are_the_same_bits_in_xgboost():
    values = np.array([1e-45, -3.4028235e38, 0.1, -0.0, 16777217, 1 / 3], dtype=np.float32)
    trees = []
    for number, value in enumerate(values):
        leaf = float(str(value))
        trees.append(stump() | {"id": number, "split_conditions": [0.5, leaf, leaf]})
    content = checked_trees(encoded(document_of(*trees)))
    xgboost = pytest.importorskip("xgboost")
    booster = xgboost.Booster(model_file=bytearray(content))
    stored = json.loads(bytes(booster.save_raw("json")))
    leaves = [tree["split_conditions"][1] for tree in stored["learner"]["gradient_booster"]["model"]["trees"]]
    assert np.array(leaves, np.float32).tobytes() == values.tobytes()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"multi_strategy": "multi_output_tree"},
        {"booster": "dart", "rate_drop": 0.5},
        {"num_parallel_tree": 3, "subsample": 0.5},
        {"n_estimators": 0},
    ],
    ids=["trees", "vector leaves", "dart", "forests", "no tree"],
)
def test_models_of_xgboost_come_through_unchanged(settings):
    xgboost = pytest.importorskip("xgboost")
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(80, 4)), rng.normal(size=(80, 3))
    regressor = xgboost.XGBRegressor(**({"n_estimators": 3, "n_jobs": 1} | settings)).fit(X, Y)
    content = bytes(regressor.get_booster().save_raw("json"))
    assert json.loads(checked_trees(content)) == json.loads(content)
    assert predicted(checked_trees(content), X).tobytes() == regressor.predict(X).tobytes()


@pytest.mark.parametrize("name", ["loss_changes", "split_conditions", "sum_hessian", "categories"])
def test_a_tree_that_lacks_an_array(name):
    """Only the arrays of categories may be missing, which older versions do not write."""
    tree = stump()
    del tree[name]
    content = encoded(document_of(tree))
    if name == "categories":
        checked_trees(content)
    else:
        with pytest.raises(KeyError, match=name):
            checked_trees(content)


@pytest.mark.parametrize("numbers", [(0, 0), (1, 0), (0, 2)])
def test_numbers_of_trees_count_them(numbers):
    """xgboost crashes where one number stands twice, because it then lacks a tree."""
    trees = [stump() | {"id": number} for number in numbers]
    with pytest.raises(RefusedError, match="not in order"):
        checked_trees(encoded(document_of(*trees)))
