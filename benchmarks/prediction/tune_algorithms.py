"""
Which hyper-parameters should the algorithms have by default, at what cost?

Nested cross-validation by patient on synthetic cohorts whose seed no board uses: the inner folds
choose, the outer folds score the choice. The defaults are then chosen on the outer folds with all
patients. Run from the project's root:

    .venv/bin/python -m benchmarks.prediction.tune_algorithms
"""

import argparse
import time
import warnings
from collections.abc import Iterator, Mapping
from datetime import date
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold
from threadpoolctl import threadpool_limits

from benchmarks import _measure as measure
from benchmarks import _runs as runs
from dmrifit import (
    MODELS,
    MapsToMaps,
    SignalToSignal,
    bias_index,
    dispersion_index,
    fit_voxels,
    simulate_cohort,
)
from dmrifit.cohort.patches import center_of
from dmrifit.predict.algorithms import (
    ALGORITHMS,
    CONSTANT,
    PATCHWISE,
    default_patch_shape,
    make_regressor,
)

RESULT = measure.RESULTS / "algorithms.json"
SEEDS = {"cohort1": 7001, "cohort2": 7002}
STRATEGIES = {"s2s": SignalToSignal, "m2m": MapsToMaps}
MODEL = "t2-ivim-kurtosis"
NEIGHBORHOOD = (3, 3, 1)
VOXELS = {"body": 250, "lesion": 200}
FOLDS = {"outer": 4, "inner": 3}
# T2v is left out: its fit sits at a bound in most voxels, so that its error measures the bounds.
METRICS = ("S0", "f", "Dv", "Dt", "K", "T2t")
NEAR = 0.02

TREES = ("one_output_per_tree", "multi_output_tree")
GRIDS: dict[str, list[dict]] = {
    "LR": [{}],
    "RFR": [
        {"n_estimators": 20, "min_samples_leaf": leaf, "max_features": share}
        for leaf, share in ((2, 1.0), (3, 1.0), (5, 1.0), (10, 1.0), (3, 0.6))
    ]
    + [{"n_estimators": 40, "min_samples_leaf": 3, "max_features": 1.0}],
    "ETR": [
        {"n_estimators": 20, "min_samples_leaf": leaf, "max_features": share}
        for leaf, share in ((2, 1.0), (3, 1.0), (5, 1.0), (10, 1.0), (3, 0.6))
    ]
    + [{"n_estimators": 40, "min_samples_leaf": 3, "max_features": 1.0}],
    "GBR": [
        {"n_estimators": n, "max_depth": depth, "learning_rate": rate, "multi_strategy": TREES[0]}
        for n, depth, rate in ((40, 3, 0.25), (60, 2, 0.3), (70, 3, 0.15), (100, 3, 0.1), (70, 4, 0.15))
    ]
    + [{"n_estimators": 70, "max_depth": 4, "learning_rate": 0.15, "multi_strategy": TREES[1]}],
    "slNN": [
        {"hidden_layer_sizes": [width], "batch_size": size, "epochs": 30}
        for width, size in ((32, 200), (64, 200), (128, 200), (64, 100), (128, 100))
    ],
    "mlNN": [
        {"hidden_layer_sizes": layers, "batch_size": size, "epochs": 30}
        for layers, size in (([32, 32], 200), ([48, 48], 200), ([48, 48, 24], 200), ([64, 64], 200), ([48, 48], 100))
    ],
    "CNN": [
        {"width": width, "depth": depth, "epochs": epochs, "batch_size": size}
        for width, depth, epochs, size in (
            (32, 0, 10, 256), (32, 1, 10, 256), (64, 0, 10, 256), (64, 1, 10, 256), (64, 1, 5, 256), (64, 1, 10, 128),
        )
    ],
    "ViT": [
        {"width": width, "epochs": epochs, "batch_size": 256}
        for width, epochs in ((16, 4), (32, 4))
    ],
    CONSTANT: [{}],
}  # fmt: skip

#: Forests and boosting from small to large; all but the size, and the rate that goes with it, are
#: the defaults.
TREE_SIZES: dict[str, list[dict]] = {
    "RFR": [{"n_estimators": n} for n in (20, 100, 300)],
    "ETR": [{"n_estimators": n} for n in (20, 100, 300)],
    "GBR": [
        {"n_estimators": n, "learning_rate": rate}
        for n, rate in ((40, 0.25), (100, 0.1), (300, 0.04), (300, 0.25))
    ],
}


class Patients:
    """One synthetic cohort: training voxels of the body, scored voxels of the lesion, reference fits."""

    def __init__(self, preset: str, seed: int, n_patients: int) -> None:
        cohort = simulate_cohort(preset, n_patients, random_state=seed)
        draw = {"patch_shape": NEIGHBORHOOD, "random_state": seed}
        self.train, self.test = (
            cohort.arrays(mask=m, max_voxels=n, **draw) for m, n in VOXELS.items()
        )
        self.references = [
            fit_voxels(t.Y, t.target, MODEL).parameters for t in (self.train, self.test)
        ]

    def run(
        self, strategy: str, name: str, params: Mapping, train: NDArray, test: NDArray
    ) -> tuple[list[float], float]:
        """Train on some patients; mean |BI|, DI and correlation in the lesions of others, and seconds of training."""
        rows, held = (np.isin(t.groups, p) for t, p in ((self.train, train), (self.test, test)))
        x, x_held = self.train.X[rows], self.test.X[held]
        if default_patch_shape(name) is None:
            x, x_held = center_of(x, NEIGHBORHOOD), center_of(x_held, NEIGHBORHOOD)
        regressor = make_regressor(name, **params)
        estimator = STRATEGIES[strategy](
            regressor,
            source=self.train.source,
            target=self.train.target,
            model=MODEL,
            random_state=0,
        )
        known = {"reference_maps": self.references[0][rows]} if strategy == "m2m" else {}
        start = time.process_time()
        estimator.fit(x, self.train.Y[rows], **known)
        seconds = time.process_time() - start
        return scores(
            estimator.predict_maps(x_held), self.references[1][held], self.test.groups[held]
        ), seconds


def scores(maps: NDArray, reference: NDArray, groups: NDArray) -> list[float]:
    """Mean over patients and metrics of |BI|, DI and Pearson's correlation."""
    rows = []
    names = MODELS[MODEL].names
    for patient, metric in product(np.unique(groups), METRICS):
        where = groups == patient
        predicted, expected = (values[where, names.index(metric)] for values in (maps, reference))
        usable = np.isfinite(predicted) & np.isfinite(expected) & (expected != 0)
        predicted, expected = predicted[usable], expected[usable]
        flat = predicted.std() == 0 or expected.std() == 0
        r = 0.0 if flat else np.corrcoef(predicted, expected)[0, 1]
        rows.append(
            (abs(bias_index(predicted, expected)), dispersion_index(predicted, expected), r)
        )
    return np.mean(rows, axis=0).tolist()


def folds(patients: NDArray, n: int) -> Iterator[tuple[NDArray, NDArray]]:
    """Split patients."""
    for train, test in GroupKFold(n).split(patients, groups=patients):
        yield patients[train], patients[test]


def total(cells: list[tuple[list[float], float]]) -> tuple[float, float]:
    """Sum up cells: |BI| + DI + 1 − r, and seconds; both as means."""
    marks = np.array([mark for mark, _ in cells])
    return float((marks[:, 0] + marks[:, 1] + 1 - marks[:, 2]).mean()), float(
        np.mean([s for _, s in cells])
    )


def choose(by_candidate: list[list[tuple[list[float], float]]]) -> int:
    """Take the quickest of those whose error is within 2 % of the least."""
    errors, seconds = zip(*(total(cells) for cells in by_candidate), strict=True)
    near = [i for i, error in enumerate(errors) if error <= min(errors) * (1 + NEAR)]
    return min(near, key=lambda i: seconds[i])


def tune(name: str, grid: list[dict], cohorts: Mapping[str, Patients]) -> dict:
    """Choose by nested cross-validation, over both strategies and all cohorts together."""
    outer: list[list[tuple]] = [[] for _ in grid]
    honest, chosen_outside = [], []
    for fold in range(FOLDS["outer"]):
        cells: list[list[tuple]] = [[] for _ in grid]
        here: list[list[tuple]] = [[] for _ in grid]
        for patients, strategy in product(cohorts.values(), STRATEGIES):
            everyone = np.unique(patients.train.groups)
            train, test = list(folds(everyone, FOLDS["outer"]))[fold]
            for i, params in enumerate(grid):
                here[i].append((strategy, *patients.run(strategy, name, params, train, test)))
                if len(grid) > 1:
                    for inner_train, inner_test in folds(train, FOLDS["inner"]):
                        cells[i].append(
                            patients.run(strategy, name, params, inner_train, inner_test)
                        )
        best = choose(cells) if len(grid) > 1 else 0
        chosen_outside.append(best)
        honest += here[best]
        for i, more in enumerate(here):
            outer[i] += more
    final = choose([[cell[1:] for cell in cells] for cells in outer])
    return {
        "chosen": grid[final],
        "chosen_in_outer_folds": [grid[i] for i in chosen_outside],
        "nested": summary(honest),
        "candidates": [
            {"parameters": params, **summary(cells)}
            for params, cells in zip(grid, outer, strict=True)
        ],
    }


def grow(name: str, sizes: list[dict], cohorts: Mapping[str, Patients]) -> list[dict]:
    """Score and time an algorithm of trees by its size, in the outer folds."""
    rows = []
    for params in sizes:
        cells, errors = [], []
        for fold in range(FOLDS["outer"]):
            for patients, strategy in product(cohorts.values(), STRATEGIES):
                train, test = list(folds(np.unique(patients.train.groups), FOLDS["outer"]))[fold]
                cells.append((strategy, *patients.run(strategy, name, params, train, test)))
            errors.append(total([cell[1:] for cell in cells[-len(cohorts) * len(STRATEGIES) :]])[0])
        rows.append({"parameters": params, **summary(cells), "by_fold": np.round(errors, 4).tolist()})
        print(name, params, rows[-1]["error"], rows[-1]["train_cpu_s"], flush=True)
    return rows


def summary(cells: list[tuple]) -> dict:
    """Means by strategy."""
    rows = {}
    for strategy in STRATEGIES:
        marks = np.mean([mark for s, mark, _ in cells if s == strategy], axis=0)
        seconds = np.mean([t for s, _, t in cells if s == strategy])
        rows[strategy] = {
            "abs_bias": round(marks[0], 4),
            "dispersion": round(marks[1], 4),
            "pearson": round(marks[2], 4),
            "train_cpu_s": round(float(seconds), 4),
        }
    error, seconds = total([cell[1:] for cell in cells])
    return {"error": round(error, 4), "train_cpu_s": round(seconds, 4), **rows}


def cost(name: str, patients: Patients, repeats: int) -> dict:
    """Time the shipped defaults on 15 patients: training, and prediction of 400 voxels, best of repeats."""
    rows = np.isin(patients.train.groups, np.unique(patients.train.groups)[:15])
    x = patients.train.X[rows]
    if name not in PATCHWISE:
        x = center_of(x, NEIGHBORHOOD)
    seconds = {}
    for strategy, cls in STRATEGIES.items():
        estimator = cls(
            name,
            source=patients.train.source,
            target=patients.train.target,
            model=MODEL,
            random_state=0,
        )
        known = {"reference_maps": patients.references[0][rows]} if strategy == "m2m" else {}
        fits, answers = [], []
        for _ in range(repeats):
            start = time.process_time()
            estimator.fit(x, patients.train.Y[rows], **known)
            fits.append(time.process_time() - start)
            # Features and maps are computed outside: this is the regressor alone.
            asked = (
                x[:400]
                if strategy == "s2s"
                else np.resize(x, (400, estimator.regressor_.n_features_in_))
            )
            start = time.process_time()
            estimator.regressor_.predict(asked)
            answers.append(time.process_time() - start)
        train, predict = round(min(fits), 4), round(min(answers), 5)
        seconds[strategy] = {"rows": len(x), "train_cpu_s": train, "predict_400_cpu_s": predict}
    return seconds


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Choose defaults, time them, and score forests by size; what is not asked for is kept."""
    warnings.simplefilter("error")
    n_patients = 12 if chosen.quick else 16
    is_partial = chosen.only or chosen.cost_only or chosen.sizes_only
    before = measure.stored(chosen.out) if is_partial else {}
    found = before.get("algorithms", {})
    start = time.process_time()
    origin = measure.commit("dmrifit")
    with threadpool_limits(1):
        cohorts = {preset: Patients(preset, seed, n_patients) for preset, seed in SEEDS.items()}
        for name in () if chosen.sizes_only else chosen.only or GRIDS:
            grid = GRIDS[name][:2] if chosen.quick else GRIDS[name]
            choice = found[name] if chosen.cost_only else tune(name, grid, cohorts)
            found[name] = choice | {"cost": cost(name, cohorts["cohort1"], 2 if chosen.quick else 5)}
            print(f"{time.process_time() - start:7.1f} s  {name}: {choice['chosen']}", flush=True)
        sizes = before.get("tree_sizes")
        if chosen.sizes_only or not before:
            grown = {
                name: grow(name, grid[:2] if chosen.quick else grid, cohorts)
                for name, grid in TREE_SIZES.items()
            }
            sizes = {"algorithms": grown}
    seconds = round(time.process_time() - start, 1)
    times = {"cpu_s": seconds, "commit": origin, "date": date.today().isoformat()}
    result = {
        "synthetic": True,
        "choice": before["choice"] if chosen.cost_only or chosen.sizes_only else times,
        "times": before["times"] if chosen.sizes_only else times,
        "seeds": SEEDS,
        "n_patients": n_patients,
        "voxels_per_patient": VOXELS,
        "patch_shape_of_patchwise": NEIGHBORHOOD,
        "folds": FOLDS,
        "metrics": METRICS,
        "error": "mean over strategies, cohorts, folds, patients and metrics of |BI| + DI + 1 - r",
        "rule": f"the quickest of those whose error is within {NEAR:.0%} of the least",
        "grids": GRIDS,
        "algorithms": {name: found[name] for name in GRIDS if name in found},
        "training_cpu_s_of_six_both_strategies": round(
            sum(
                found[name]["cost"][strategy]["train_cpu_s"]
                for name in ALGORITHMS[1:]
                if name in found
                for strategy in STRATEGIES
            ),
            3,
        ),
        "machine": before["machine"] if chosen.sizes_only else measure.machine(),
    }
    # What was kept has its own times.
    return result | {"tree_sizes": {"times": times, "machine": measure.machine(), **sizes}}


if __name__ == "__main__":
    runs.main(
        run,
        RESULT,
        packages=("numpy", "scikit-learn", "xgboost-cpu", "torch", "skorch"),
        options={
            "--only": {"nargs": "+", "choices": list(GRIDS), "help": "these algorithms; the others keep their result"},
            "--cost-only": {"action": "store_true", "help": "time the shipped defaults again, choose nothing"},
            "--sizes-only": {"action": "store_true", "help": "score forests and boosting by size again, choose nothing"},
        },
    )
