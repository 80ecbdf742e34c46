"""
Which hyper-parameters should the algorithms have by default, at what cost?

Nested cross-validation by patient on synthetic cohorts whose seed no board uses: the inner folds
choose, the outer folds score the choice. The defaults are then chosen on the outer folds with all
patients. Run from the project's root:

    .venv/bin/python -m benchmarks.prediction.tune_algorithms
"""

import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from itertools import product

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold
from threadpoolctl import threadpool_limits

from benchmarks import _measure as measure
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


def markdown(result: dict) -> str:
    """Write the table of the choice."""
    rows = []
    for name, found in result["algorithms"].items():
        params = ", ".join(f"{key} {value}" for key, value in found["chosen"].items()) or "–"
        cells = []
        for strategy in STRATEGIES:
            s = found["nested"][strategy]
            cells.append(f"{s['abs_bias']:.3f} / {s['dispersion']:.3f} / {s['pearson']:.2f}")
        times = [found["cost"][s]["train_cpu_s"] for s in STRATEGIES]
        asked = [1000 * found["cost"][s]["predict_400_cpu_s"] for s in STRATEGIES]
        rows.append([
            name, params, str(len(found["candidates"])), *cells,
            " / ".join(f"{t:.2f}" for t in times), " / ".join(f"{t:.1f}" for t in asked),
        ])  # fmt: skip
    header = [
        "algorithm", "default", "candidates", "s2s: \\|BI\\| / DI / r", "m2m: \\|BI\\| / DI / r",
        "training s2s / m2m, s", "400 voxels s2s / m2m, ms",
    ]  # fmt: skip
    seeds = ", ".join(f"{seed} ({preset})" for preset, seed in result["seeds"].items())
    made = result["times"]
    note = (
        f"Synthetic cohorts of {result['n_patients']} patients, seeds {seeds}; "
        f"{result['machine']['processor']}, "
        f"one thread, processor time; {made['date']}, commit {str(made['commit']['commit'])[:10]}."
    )
    text = f"{note}\n\n{measure.table(header, rows)}"
    if "tree_sizes" in result:
        text += f"\n\n{_size_table(result['tree_sizes'])}"
    return text


def _size_table(sizes: dict) -> str:
    """Write what small forests lose, and what large ones cost."""
    rows = []
    for name, candidates in sizes["algorithms"].items():
        default = candidates[0]
        for found in candidates:
            gains = [
                100 * (1 - error / least)
                for error, least in zip(found["by_fold"], default["by_fold"], strict=True)
            ]
            rows.append([
                name, ", ".join(f"{key} {value}" for key, value in found["parameters"].items()),
                *(
                    f"{s['abs_bias']:.3f} / {s['dispersion']:.3f} / {s['pearson']:.2f}"
                    for s in (found[strategy] for strategy in STRATEGIES)
                ),
                f"{found['error']:.3f}", f"{np.mean(gains):+.1f} ({min(gains):+.1f} to {max(gains):+.1f})",
                f"{found['train_cpu_s']:.2f}", f"{found['train_cpu_s'] / default['train_cpu_s']:.1f} ×",
            ])  # fmt: skip
    header = [
        "algorithm", "size", "s2s: \\|BI\\| / DI / r", "m2m: \\|BI\\| / DI / r", "error",
        "less error than the default, % (over folds)", "training, s", "time",
    ]  # fmt: skip
    made = sizes["times"]
    note = (
        "Forests and boosting by size, the first row the default; error is the mean of "
        "\\|BI\\| + DI + 1 − r in four folds of patients; "
        f"{made['date']}, commit {str(made['commit']['commit'])[:10]}."
    )
    return f"{note}\n\n{measure.table(header, rows)}"


def main() -> None:
    parser = measure.options(__doc__.strip().splitlines()[0], RESULT)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(GRIDS),
        help="these algorithms; the others keep their result",
    )
    parser.add_argument(
        "--cost-only", action="store_true", help="time the shipped defaults again, choose nothing"
    )
    parser.add_argument(
        "--sizes-only",
        action="store_true",
        help="score forests and boosting by size again, choose nothing",
    )
    options = measure.chosen(parser, None, RESULT)
    warnings.simplefilter("error")
    n_patients = 12 if options.quick else 16
    names = options.only or list(GRIDS)
    kept = (options.only or options.cost_only or options.sizes_only) and options.out.exists()
    before = measure.stored(options.out) if kept else {"algorithms": {}}
    found = before["algorithms"]
    start = time.process_time()
    with threadpool_limits(1):
        cohorts = {preset: Patients(preset, seed, n_patients) for preset, seed in SEEDS.items()}
        for name in () if options.sizes_only else names:
            grid = GRIDS[name][:2] if options.quick else GRIDS[name]
            found[name] = (found[name] if options.cost_only else tune(name, grid, cohorts)) | {
                "cost": cost(name, cohorts["cohort1"], 2 if options.quick else 5)
            }
            print(
                f"{time.process_time() - start:7.1f} s  {name}: {found[name]['chosen']}",
                flush=True,
            )
        sizes = before.get("tree_sizes")
        if options.sizes_only or not kept:
            grown = {}
            for name, grid in TREE_SIZES.items():
                grown[name] = grow(name, grid[:2] if options.quick else grid, cohorts)
            sizes = {"algorithms": grown}
    packages = ("numpy", "scikit-learn", "xgboost-cpu", "torch", "skorch")
    origin = measure.provenance(__file__, "dmrifit", words=sys.argv[1:], packages=packages)
    run = {
        "command": origin["command"],
        "cpu_s": round(time.process_time() - start, 1),
        "commit": {key: origin[key] for key in ("commit", "changed")},
        "date": origin["date"],
    }
    result = {
        "question": "default hyper-parameters of the algorithms, and their cost",
        "synthetic": True,
        "choice": before["choice"] if options.cost_only or options.sizes_only else run,
        "times": before["times"] if options.sizes_only else run,
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
                found[n]["cost"][s]["train_cpu_s"]
                for n in ALGORITHMS[1:]
                if n in found
                for s in STRATEGIES
            ),
            3,
        ),
        "machine": before["machine"] if options.sizes_only else origin["machine"],
        "versions": origin["versions"],
    }
    if sizes is not None:
        # What was kept has its own times.
        result["tree_sizes"] = {"times": run, "machine": origin["machine"], **sizes}
    measure.write(result, options.out)


if __name__ == "__main__":
    main()
