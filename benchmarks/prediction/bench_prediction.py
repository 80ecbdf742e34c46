"""
How long does the study's board take, and how long would it take when written plainly?

    .venv/bin/python -m benchmarks.prediction.bench_prediction [--before FOLDER] [--quick --out FILE]

The board is `learning_curve` with its defaults on two synthetic cohorts of 16 patients: two
strategies, seven algorithms, 1 to 15 training patients with 250 voxels each, all tumor voxels
scored, controls included, on two processors. The same written plainly trains the same regressors
fold by fold, and fits by scipy, voxel by voxel from one start; it is run for one patient of each
cohort with a few voxels of each fit, and scaled to all patients, folds and voxels. Both are
compared by processor time. What needs to be fitted only once for a patient is counted once for
both.

With `--before`, the worktree of an earlier commit, the board of that commit is compared with this
one and with this one in single precision of the networks; the rest of the result is kept. Each
side has a process of its own for each cohort, in turn, so that all meet the same machine.
"""

import argparse
import json
import resource
import subprocess
import tempfile
import time
from pathlib import Path
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

NETWORKS = ("slNN", "mlNN", "CNN")
#: Of the networks on the sides that are compared; the earlier commit knows no other.
PRECISIONS = {"before": None, "now": "float64", "single": "float32"}
#: Largest ratio of processor time to the earlier commit's.
LIMITS = {"now": 0.77, "single": 0.6}
SCORES = ("bias", "dispersion", "pearson", "spearman")
KEYS = ["cohort", "patient", "strategy", "algorithm", "n_train", "metric"]

# The process of a side: one board, of which it answers the processor seconds.
BOARD = """
import json, os, time
from dmrifit import MapsToMaps, SignalToSignal, compare, learning_curve, make_regressor, simulate_cohort
task = json.loads(os.environ["BOARD"])
def estimators():
    found = {}
    for strategy, cls in (("s2s", SignalToSignal), ("m2m", MapsToMaps)):
        for name in task["algorithms"]:
            regressor = name
            if name in task["networks"]:
                regressor = make_regressor(name, dtype=task["dtype"])
            found[f"{name} {strategy}"] = cls(regressor)
    return found
def board(cohort, sizes):
    options = {"n_jobs": 1, "random_state": task["seed"]}
    # Networks that are passed have other seeds than those by name, but the same in both precisions.
    if task["dtype"]:
        return compare(estimators(), [cohort], n_train=sizes, max_voxels=250, **options)
    return learning_curve([cohort], sizes=sizes, algorithms=task["algorithms"], **options)
# Compiles and loads what is needed.
board(simulate_cohort(task["cohort"], 2, shape=(16, 16, 3), random_state=1), (1,))
cohort = simulate_cohort(task["cohort"], task["n"], shape=task["shape"], random_state=task["seed"])
start = time.process_time()
scores = board(cohort, tuple(task["sizes"])).scores
print(time.process_time() - start)
scores.to_pickle(task["file"])
"""


def against(before: Path, *, quick: bool) -> dict[str, object]:
    """Compare the board with that of an earlier commit, and with single precision."""
    task = {
        "n": 4 if quick else 16,
        "shape": (24, 24, 6) if quick else (48, 48, 8),
        "sizes": (1, 3) if quick else SIZES,
        "algorithms": ("LR", *NETWORKS) if quick else ALGORITHMS,
        "networks": NETWORKS,
        "seed": SEED,
    }
    roots = {"before": before, "now": measure.ROOT, "single": measure.ROOT}
    seconds = dict.fromkeys(roots, 0.0)
    tables: dict[str, list[pd.DataFrame]] = {side: [] for side in roots}
    for cohort in ("cohort1", "cohort2"):
        for side, root in roots.items():
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "scores.pickle"
                content = task | {"cohort": cohort, "dtype": PRECISIONS[side], "file": str(file)}
                settings = {"BOARD": json.dumps(content), "PYTHONPATH": str(root)}
                done = measure.run_child(BOARD, settings, root)
                seconds[side] += float(str(done["out"]).split()[-1])
                tables[side].append(pd.read_pickle(file))
            print(cohort, side, round(seconds[side], 1), flush=True)
    scores = {side: pd.concat(parts).set_index(KEYS) for side, parts in tables.items()}
    ratios = {side: seconds[side] / seconds["before"] for side in LIMITS}
    shifts = {
        "now": _shift(scores["before"], scores["now"]),
        "single": _shift(scores["now"], scores["single"]),
    }
    head = ["git", "-C", str(before), "rev-parse", "HEAD"]
    return {
        "before": subprocess.run(head, capture_output=True, text=True, check=True).stdout.strip(),
        **measure.provenance(__file__, "dmrifit", words=("--before", "FOLDER"), quick=quick),
        "cpu_s": {side: round(value, 1) for side, value in seconds.items()},
        "ratio": {side: round(value, 3) for side, value in ratios.items()},
        "shifts": shifts,
        "goals": [
            measure.goal(LIMITS[side], value, f"of the time before, {side}")
            for side, value in ratios.items()
        ]
        + [
            measure.goal(1.0, shift["largest"], f"standard deviations over folds, {side}")
            for side, shift in shifts.items()
        ],
    }


def _shift(earlier: pd.DataFrame, later: pd.DataFrame) -> dict[str, object]:
    """Compare means over folds of algorithms, in standard deviations over folds."""
    keys = [key for key in KEYS if key != "patient"]
    rows = {}
    for score in SCORES:
        # T2v mostly sits at a bound, where means over folds jump.
        is_scored = earlier.index.get_level_values("algorithm").isin(ALGORITHMS)
        is_scored &= earlier.index.get_level_values("metric") != AT_BOUND
        folds = earlier.loc[is_scored, score].groupby(level=keys)
        change = later[score].groupby(level=keys).mean().reindex(folds.mean().index) - folds.mean()
        rows[score] = (change.abs() / folds.std()).replace(np.inf, np.nan)
    shifts = pd.DataFrame(rows)
    return {
        "largest": round(float(shifts.max().max()), 3),
        "median": round(float(np.nanmedian(shifts)), 3),
        "where": [*map(str, shifts.max(axis=1).idxmax())],
    }


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
    """Measure both, or compare with an earlier commit and keep the rest of the result."""
    kept = measure.stored(RESULT)
    if chosen.before is not None:
        return kept | {"against": against(chosen.before.resolve(), quick=chosen.quick)}
    return timed(quick=chosen.quick) | {key: kept[key] for key in ("against",) if key in kept}


def markdown(result: dict[str, Any]) -> str:
    """Write the result as tables."""
    return runs.page("prediction", result, limits=LIMITS)


if __name__ == "__main__":
    runs.main(
        run,
        RESULT,
        markdown=markdown,
        packages=("numpy", "numba", "scipy", "scikit-learn", "torch", "skorch"),
        options={"--before": {"type": Path, "help": "worktree of an earlier commit"}},
    )
