"""
How long does the study's board take, and how long would it take when written plainly?

    .venv/bin/python -m benchmarks.prediction.bench_prediction [--quick --out FILE]

The board is `learning_curve` with its defaults on two synthetic cohorts of 16 patients: two
strategies, seven algorithms, 1 to 15 training patients with 250 voxels each, all tumor voxels
scored, controls included, on two processors. The same written plainly trains the same regressors
fold by fold, and fits by scipy, voxel by voxel from one start; it is run for one patient of each
cohort with a few voxels of each fit, and scaled to all patients, folds and voxels. Both are
compared by processor time. What needs to be fitted only once for a patient is counted once for
both.
"""

import argparse
import resource
import time
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import curve_fit, least_squares
from threadpoolctl import threadpool_limits

from benchmarks import _measure as measure
from benchmarks import _runs as runs
from dmrifit import ALGORITHMS, MODELS, Cohort, learning_curve, make_regressor, simulate_cohort
from dmrifit.predict.algorithms import default_patch_shape
from dmrifit.stats.metrics import AT_BOUND, NO_TISSUE
from dmrifit.study.comparison import SIZES

RESULT = measure.RESULTS / "prediction.json"
SEED = 20261121
MODEL = MODELS["t2-ivim-kurtosis"]
#: Parameters that no mean over parameters includes.
APART = (*NO_TISSUE, AT_BOUND)
LOW, HIGH = np.array([0.0, 0, 4, 150, 0.2, 0, 20]), np.array([12.0, 1, 100, 250, 3, 5, 140])
START = np.array([1.5, 0.15, 25, 200, 1.0, 0.7, 70])


def used() -> float:
    """Return processor seconds of this process and of those it has waited for."""
    kinds = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, kinds))


def fit_plainly(signals: np.ndarray, protocol: object) -> np.ndarray:
    """Fit voxel by voxel."""
    b, te = protocol.b / 1000, protocol.te

    def residuals(p: np.ndarray, y: np.ndarray) -> np.ndarray:
        s0, f, dv, t2v, dt, k, t2t = p
        tissue = np.exp(-b * dt + k * (b * dt) ** 2 / 6 - te / t2t)
        return s0 * (f * np.exp(-b * dv - te / t2v) + (1 - f) * tissue) - y

    out = []
    for y in np.maximum(signals, 0):
        top = max(y.max(), 1e-6)
        unit = np.array([top, 1, 1, 1, 1, 1, 1])
        out.append(
            least_squares(
                residuals,
                START * unit,
                bounds=(LOW * unit, HIGH * unit),
                args=(y,),
                x_scale=HIGH * unit,
            ).x
        )
    return np.array(out)


def clinical_plainly(signals: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Fit the mono-exponential decays of the clinical metrics voxel by voxel."""

    def decay(x: np.ndarray, s0: float, adc: float) -> np.ndarray:
        return s0 * np.exp(-x * adc)

    rows = []
    for y in signals:
        fits = [
            curve_fit(decay, b[part] / 1000, y[part], p0=(y[0], 1.0), maxfev=5000)[0]
            for part in (slice(0, 3), slice(2, 5), slice(0, 5))
        ]
        rows.append([fits[0][1], fits[1][1], 1 - fits[1][0] / fits[2][0]])
    return np.array(rows)


def per_voxel(function: object, signals: np.ndarray, *arguments: object) -> float:
    start = time.process_time()
    function(signals, *arguments)
    return (time.process_time() - start) / len(signals)


def regress_plainly(
    cohort: Cohort, sizes: tuple[int, ...], algorithms: tuple[str, ...], seed: int
) -> dict[str, float]:
    """Train and predict for the cohort's first patient; seconds by algorithm, both strategies together."""
    held_out, *others = cohort.patients
    seconds = {}
    for algorithm in algorithms:
        patch = default_patch_shape(algorithm)
        table = cohort.arrays(mask="body", max_voxels=250, patch_shape=patch, random_state=seed)
        test = cohort.arrays(mask="lesion", patch_shape=patch).X[
            cohort.arrays(mask="lesion").groups == held_out
        ]
        rng = np.random.default_rng(seed)
        # Numbers like those of clinical metrics and fitted maps; training takes as long on them.
        X3, Y7 = (
            rng.normal(size=(len(table.X), n)) + table.X[:, :1]
            for n in (3 * (9 if patch else 1), 7)
        )
        start = time.process_time()
        for size in sizes:
            rows = np.isin(table.groups, others[:size])
            make_regressor(algorithm, patch_shape=patch, random_state=0).fit(
                table.X[rows], table.Y[rows]
            ).predict(test)
            make_regressor(algorithm, patch_shape=patch, random_state=0).fit(
                X3[rows], Y7[rows]
            ).predict(X3[: len(test)])
        seconds[algorithm] = time.process_time() - start
    return seconds


def timed(*, quick: bool) -> dict[str, object]:
    """Measure both."""
    n_patients, sizes = (4, (1, 3)) if quick else (16, SIZES)
    algorithms = ("LR", "ETR") if quick else ALGORITHMS
    shape = (24, 24, 6) if quick else (48, 48, 8)
    names = ("cohort1", "cohort2")
    cohorts = {
        name: simulate_cohort(name, n_patients, shape=shape, random_state=SEED) for name in names
    }
    learning_curve(  # compiles the fits, so that only the board is timed
        [simulate_cohort("cohort1", 2, shape=(16, 16, 3), random_state=1)],
        sizes=(1,),
        algorithms=("LR",),
        random_state=0,
    )
    before, start = used(), time.perf_counter()
    board = learning_curve(
        cohorts, sizes=sizes, algorithms=algorithms, n_jobs=2, random_state=SEED
    )
    wall = time.perf_counter() - start
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor().shutdown(
        wait=True
    )  # processor time of workers counts once they have ended
    ours = used() - before

    trained = board.scores[board.scores["metric"] == "Dt"]
    by_algorithm = trained.groupby(["algorithm", "strategy"])["seconds"].sum()
    cells = trained[trained["algorithm"].isin(algorithms)]
    fitted = cells.loc[cells["strategy"] == "s2s", "n_voxels"].sum()
    once = trained.drop_duplicates("patient")["n_voxels"].sum() + 250 * len(
        trained["patient"].unique()
    )

    with threadpool_limits(1):
        times, regress = [], pd.Series(0.0, index=list(algorithms))
        for cohort in cohorts.values():
            table = cohort.arrays(mask="lesion", scale="patient")
            rng = np.random.default_rng(SEED)
            chosen = rng.choice(len(table.Y), 10 if quick else 100, replace=False)
            protocol = cohort.scans[0].protocol
            times.append(
                (
                    per_voxel(fit_plainly, table.Y[chosen], protocol),
                    per_voxel(clinical_plainly, table.X[chosen], table.source.b),
                )
            )
            regress += n_patients * pd.Series(regress_plainly(cohort, sizes, algorithms, SEED))
    fit_s, clinical_s = np.mean(times, axis=0)
    plain = {
        "regression": float(regress.sum()),
        "maps of predicted signals": float(fitted * fit_s),
        "reference maps, once": float(once * fit_s),
        "clinical metrics, once": float(once * clinical_s),
    }
    tumor = board.scores[
        ~board.scores["metric"].isin(APART) & (board.scores["n_train"] == max(sizes))
    ]
    quality = tumor.assign(abs_bias=tumor["bias"].abs()).groupby(
        ["cohort", "strategy", "algorithm"]
    )
    return {
        "seed": SEED,
        "synthetic": True,
        "board": {
            "patients": n_patients * len(names),
            "sizes": list(sizes),
            "algorithms": list(algorithms),
            "models": board.study["models"]["trained"],
            "tumor_voxels": int(trained.drop_duplicates("patient")["n_voxels"].sum()),
            "wall_s": round(wall, 1),
            "cpu_s": round(ours, 1),
            "training_and_prediction_s": {
                f"{a} {s}": round(float(v), 1) for (a, s), v in by_algorithm.items()
            },
        },
        "plain": {
            "ms_per_fit": round(1e3 * fit_s, 2),
            "ms_per_clinical_metrics": round(1e3 * clinical_s, 2),
            "fits": int(fitted),
            "cpu_s": {key: round(value, 1) for key, value in plain.items()},
            "regression_s": {key: round(float(value), 1) for key, value in regress.items()},
        },
        "ratio": round(sum(plain.values()) / ours, 1),
        "goals": [
            {"what": "board on two processors", **measure.goal(360, wall, "s")},
            {
                "what": "times faster than plainly written",
                **measure.goal(10, sum(plain.values()) / ours, "×", at_least=True),
            },
        ],
        "score_parameters": list(dict.fromkeys(tumor["metric"])),
        "scores": [
            {"cohort": c, "strategy": s, "algorithm": a}
            | {k: round(float(v), 4) for k, v in row.items()}
            for (c, s, a), row in quality[["abs_bias", "dispersion", "pearson"]].mean().iterrows()
        ],
    }


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Measure both."""
    return timed(quick=chosen.quick)


if __name__ == "__main__":
    runs.main(
        run, RESULT, packages=("numpy", "numba", "scipy", "scikit-learn", "torch", "skorch")
    )
