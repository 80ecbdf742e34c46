"""The null test of verdicts: what is counted of boards with a known difference."""

import numpy as np

from benchmarks.prediction import bench_verdicts


def boards(shift, n=40, spread=0.05):
    return list(shift + spread * np.random.default_rng(1).standard_normal((n, 10)))


def test_differences_of_one_method_are_rarely_verdicts_and_planted_ones_are():
    null = bench_verdicts.rates(boards(0.0), 1.0)
    assert null["margin"] == "±5 %"
    assert null["n_apart"] == 0
    assert 0.05 < null["upper_limit"] < 0.12
    assert null["n_equivalent"] == null["verdicts"]["practically equal"] > 20
    planted = bench_verdicts.rates(boards(-0.3), 1.0)
    assert planted["verdicts"]["holds"] == planted["n_apart"] == 40
    assert bench_verdicts.rates(boards(0.3), 1.0)["verdicts"]["does not hold"] == 40


def test_a_forest_differs_from_itself_and_more_from_one_tree():
    table = bench_verdicts.dispersions(group=0, seed=0, n_boards=1)
    assert set(table) == {"forest 0", "same 0", "tree 0"}
    assert 0 < abs(table["forest 0"] - table["same 0"]) < abs(table["forest 0"] - table["tree 0"])
