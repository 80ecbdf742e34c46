"""
How often is a verdict false where two methods are one, and how often is a planted difference found?

    .venv/bin/python -m benchmarks.prediction.bench_verdicts [--quick --out FILE]

Small boards of synthetic patients compare a forest with itself under another random state, and a
forest with a single tree: the mean DI over patients and tissue parameters of ten seeds, decided as
in claims/macarro, with margins of that file and others. Every seed has two patients of its own,
which ten boards share; a tree takes part in two of the ten. It takes four minutes of one processor.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest
from sklearn.ensemble import ExtraTreesRegressor

from benchmarks import _measure as measure
from benchmarks import _runs as runs
from benchmarks.claims.claim_board import EQUAL, FAILS, HOLDS, LEAST_SEEDS, OPEN, decide
from benchmarks.claims.macarro.board import MARGINS
from dmrifit import MapsToMaps, compare, simulate_cohort
from dmrifit.stats.metrics import AT_BOUND, NO_TISSUE

RESULT = measure.RESULTS / "verdicts.json"
MARGIN = MARGINS["index"]
#: How much wider than the margin; none at all is the severest test of the null.
FACTORS = (0.0, 0.5, 1.0, 2.0)
N_TREES = 5
#: Groups of boards that share patients, and boards in a group.
FULL, QUICK = (20, 10), (2, 2)
#: Boards of a group in which a difference is planted.
N_PLANTED = 2


def forest(n_trees: int, seed: int) -> MapsToMaps:
    """Make a forest of maps."""
    return MapsToMaps(ExtraTreesRegressor(n_trees, random_state=seed))


def dispersions(group: int, seed: int, n_boards: int) -> dict[str, float]:
    """Train all methods of a group of boards on the patients of a seed; mean DI by method."""
    cohort = simulate_cohort(
        "cohort1", 2, shape=(16, 16, 4), random_state=1000 * group + seed, name="tiny"
    )
    estimators = {}
    for board in range(n_boards):
        # Random states that no other board, seed or method has.
        first = 3 * ((group * LEAST_SEEDS + seed) * n_boards + board)
        estimators[f"forest {board}"] = forest(N_TREES, first)
        estimators[f"same {board}"] = forest(N_TREES, first + 1)
        if board < N_PLANTED:
            estimators[f"tree {board}"] = forest(1, first + 2)
    scores = compare(
        estimators,
        cohort,
        max_voxels=100,
        controls=False,
        keep_predictions=False,
        n_jobs=1,
        random_state=seed,
    ).scores
    scores = scores[~scores["metric"].isin((*NO_TISSUE, AT_BOUND))]
    means = scores.groupby(["estimator", "patient"])["dispersion"].mean()
    return means.groupby("estimator").mean().to_dict()


def differences(n_groups: int, n_boards: int) -> dict[str, list[np.ndarray]]:
    """Compute differences of DI, as the margin counts them: by comparison, one row a board."""
    rows: dict[str, list[np.ndarray]] = {"same": [], "tree": []}
    for group in range(n_groups):
        seeds = [dispersions(group, seed, n_boards) for seed in range(LEAST_SEEDS)]
        for name, boards in rows.items():
            for board in range(N_PLANTED if name == "tree" else n_boards):
                forests = [means[f"forest {board}"] for means in seeds]
                others = [means[f"{name} {board}"] for means in seeds]
                boards.append(MARGIN.differences(forests, others))
        print(f"{group + 1} of {n_groups} groups of boards", flush=True)
    return rows


def rates(boards: Sequence[np.ndarray], factor: float) -> dict[str, object]:
    """
    Count verdicts on the claim that the forest is better, and on that both are equal.

    The limit takes boards as independent. Ten of them share patients, so that it is too low where
    boards of a group agree more than chance lets them.
    """
    bound = MARGIN.scaled(factor).bound
    verdicts = Counter(decide(row, bound, "<") for row in boards)
    equal = Counter(decide(row, bound, "=") for row in boards)
    n_apart = verdicts[HOLDS] + verdicts[FAILS]
    interval = binomtest(n_apart, len(boards)).proportion_ci(0.95)
    return {
        "margin": MARGIN.scaled(factor).words,
        "n_boards": len(boards),
        "verdicts": {name: verdicts[name] for name in (HOLDS, EQUAL, FAILS, OPEN)},
        "n_apart": n_apart,
        "upper_limit": round(float(interval.high), 4),
        "n_equivalent": equal[HOLDS],
    }


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Make the boards and decide them."""
    boards = differences(*(QUICK if chosen.quick else FULL))
    truth = {name: float(np.median(np.concatenate(rows))) for name, rows in boards.items()}
    return {
        "synthetic": True,
        "n_seeds": LEAST_SEEDS,
        "median_difference": {name: MARGIN.text(value) for name, value in truth.items()},
        "null": [rates(boards["same"], factor) for factor in FACTORS],
        "planted": [rates(boards["tree"], factor) for factor in FACTORS],
    }


if __name__ == "__main__":
    runs.main(run, RESULT, code=("dmrifit", "benchmarks/claims/macarro"))
