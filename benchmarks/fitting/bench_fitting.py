"""
How fast are voxelwise fits, how often do they find the best fit, and how do others compare?

    .venv/bin/python -m benchmarks.fitting.bench_fitting [--quick] [--published-script PATH] [--out FILE]

Times are processor time of one thread, initialization included; both sides of a ratio are timed in
turn in the same run, and the best repeats are compared, because other work on the machine only
ever adds time. The share of voxels beside a time is that of voxels whose sum of squares exceeds
the best known one by less than 1e-3 or 1e-6 of it. The best known one is the least of all fits
made here, among them 16 starts and a search of each of eight parts of the box; how far it agrees
with the best of 24 random starts of scipy is measured as well. All data are synthetic.

The published script (fragrussu/bodymritools, mrifittools/getT2ivimkurtReg.py) is run as it is from
the path given; without one, its rows say "not measured here".
"""

import argparse
import csv
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks import _measure as measure
from benchmarks import _runs as runs
from benchmarks.fitting import _fitting_comparisons as comparisons
from benchmarks.fitting import _fitting_processes as processes
from benchmarks.fitting._fitting_data import (
    HARD,
    PARTS,
    RELAXATION,
    SEED,
    SNR,
    T2IK,
    TISSUE,
    Data,
    draw,
    shares,
)
from benchmarks.fitting._fitting_peers import Scipy, agreement
from dmrifit import FitResult, SignalModel, fit_voxels
from dmrifit.engine.kernels import compiler

RESULT = measure.RESULTS / "fitting.json"
#: What figures of rows should reach, and what further on.
GOALS = list(csv.DictReader(Path(__file__).with_name("goals.csv").open(encoding="utf-8")))


class Bench:
    """One run: its sizes, its data and its rows."""

    def __init__(self, *, quick: bool, script: str | None) -> None:
        self.quick, self.script = quick, script
        self.repeats = 2 if quick else 7
        self.rows: list[dict[str, object]] = []
        self.reference: dict[str, object] = {}
        n_tissue, n_hard = (300, 200) if quick else (50_000, 20_000)
        self.tissue = Data(T2IK, RELAXATION, draw("tissue", n_tissue, SEED), SNR["tissue"], SEED)
        self.hard = Data(T2IK, RELAXATION, draw("hard", n_hard, SEED + 1), SNR["hard"], SEED + 1)
        truth = draw("tissue", n_tissue // 5, SEED + 2)
        truth[:, 5] = np.minimum(truth[:, 5], 3 / (1.6 * truth[:, 4]))
        self.capped = Data(T2IK, RELAXATION, truth, SNR["tissue"], SEED + 2)
        self.wide = measure.machine()["avx512f"]

    def add(
        self, name: str, what: str, figures: Mapping[str, float] | None = None, **content: object
    ) -> None:
        """Add a row, and say whether its figures reach the goals of its name."""
        print(f"{name}: " + json.dumps(content), flush=True)
        goals: dict[str, list[dict[str, object]]] = {"reach": [], "aim": []}
        for row in GOALS:
            if row["row"] != name or row["figure"] not in (figures or {}):
                continue
            limits = {"reach": row["reach"], "aim": row["aim"]}
            if not self.wide:
                limits["reach"] = row["without AVX-512"] or row["reach"]
            for kind, limit in limits.items():
                if limit:
                    value, at_least = figures[row["figure"]], row["at least"] == "yes"
                    goals[kind].append(
                        measure.goal(float(limit), value, row["figure"], at_least=at_least)
                    )
        self.rows.append({"name": name, "what": what, **content, **goals})

    def options(self) -> None:
        """Time our own fit with its options, on both sets."""
        sets = {"tissue": self.tissue, "hard": self.hard, "tissue, K capped": self.capped}
        cases: dict[str, tuple[Data, dict[str, object]]] = {
            "tissue": (self.tissue, {}),
            "hard": (self.hard, {}),
            "tissue, noise floor": (self.tissue, {"floor": True}),
            "hard, noise floor": (self.hard, {"floor": True}),
            "tissue, one start": (self.tissue, {"n_starts": 1}),
            "hard, one start": (self.hard, {"n_starts": 1}),
            "tissue, regularized": (self.tissue, {"regularization": 1e-3}),
            "tissue, K capped": (self.capped, {}),
            "tissue, published bounds": (self.tissue, {"bounds": "published"}),
        }
        for n_starts in (2, 6, 12):
            cases[f"hard, noise floor, {n_starts} starts"] = (
                self.hard,
                {"floor": True, "n_starts": n_starts},
            )
        for data, options in cases.values():
            data.fit(n=64, **options)
        found = {}

        def run(name: str) -> Callable[[], None]:
            data, options = cases[name]

            def call() -> None:
                found[name] = data.fit(**options)

            return call

        seconds = measure.processor_times({name: run(name) for name in cases}, self.repeats)
        for name, (data, options) in cases.items():
            if not {"regularization", "bounds"} & options.keys():
                data.know(found[name].cost, floor=bool(options.get("floor")))
        for data in sets.values():
            data.search(parts=PARTS)
        for data in (self.tissue, self.hard):
            data.search(floor=True, parts=PARTS)
        published = self.published_reference(found.get("tissue, published bounds"))
        self.validate()
        self.times = {name: measure.summary(seconds[name], len(cases[name][0])) for name in cases}
        for name, (data, options) in cases.items():
            if "regularization" in options:
                continue
            if "bounds" in options:
                share = published(found[name].cost)
            else:
                share = data.share(found[name].cost, floor=bool(options.get("floor")))
            kind, _, more = name.partition(", ")
            what = f"t2-ivim-kurtosis, {kind} set" + (f", {more}" if more else "")
            figures = {
                "µs": self.times[name]["best_us"],
                "within 1e-3": share["within_1e-3"],
                "within 1e-6": share["within_1e-6"],
            }
            self.add(name, what, figures, ours=self.times[name], accuracy=share)
        self.found = found

    def published_reference(
        self, result: FitResult | None
    ) -> Callable[[NDArray], dict[str, object]]:
        """Find the best known costs in the published bounds, and give the shares close to them."""
        self.published_best = self.tissue.fit(bounds="published", n_starts=16).cost
        if result is not None:
            self.published_best = np.fmin(self.published_best, result.cost)

        return lambda cost: shares(cost, self.published_best)

    def validate(self) -> None:
        """Compare the best known fits with the best of random starts of scipy."""
        n, n_starts = (3, 2) if self.quick else (200, 24)
        for name, data in (("tissue", self.tissue), ("hard", self.hard)):
            for floor in (False, True):
                theirs = Scipy(data, floor=floor).best(
                    n, n_starts, SEED + 10 + 2 * (name == "hard") + floor
                )
                label = f"{name}, noise floor" if floor else name
                self.reference[label] = agreement(data.best[floor][:n], theirs) | {
                    "scipy_starts": n_starts
                }
                data.know(theirs, floor=floor)
                print(f"reference, {label}: {json.dumps(self.reference[label])}", flush=True)

    def extras(self) -> None:
        """Time what comes on top of the bare fit: standard errors and status, and the Tikhonov term."""
        kernel = compiler.load(None)
        spent = [0.0]
        plain = kernel.finish

        def finish(*arguments: object) -> None:
            start = time.thread_time()
            plain(*arguments)
            spent[0] += time.thread_time() - start

        kernel.finish = finish
        shares, added = [], []
        try:
            for _ in range(self.repeats):
                seconds = []
                for options in ({}, {"regularization": 1e-3}):
                    spent[0], start = 0.0, time.process_time()
                    self.tissue.fit(**options)
                    seconds.append((time.process_time() - start, spent[0]))
                (all_plain, end_plain), (all_regular, _) = seconds
                shares.append(end_plain / (all_plain - end_plain))
                added.append(all_regular / (all_plain - end_plain) - 1)
        finally:
            kernel.finish = plain
        # Without regularization the minimum is another one: the ratio of times per iteration tells
        # the pure cost.
        iterations = [
            float(self.found[name].n_iter.mean()) for name in ("tissue", "tissue, regularized")
        ]
        value = min(added)
        self.add(
            "extras",
            "standard errors, status and Tikhonov term on top of the bare fit",
            {"added": value},
            ours={
                "added": round(value, 4),
                "added_median": round(float(np.median(added)), 4),
                "results_and_errors_alone": round(min(shares), 4),
                "iterations_plain": round(iterations[0], 2),
                "iterations_regularized": round(iterations[1], 2),
                "regularized": self.times["tissue, regularized"],
            },
        )

    def intervals(self) -> None:
        """Time intervals of all parameters on top of the fit, in turn with it."""
        result = self.tissue.fit()
        result.intervals()
        seconds = measure.processor_times(
            {"fit": self.tissue.fit, "intervals": result.intervals}, self.repeats
        )
        times = {name: measure.summary(values, len(result)) for name, values in seconds.items()}
        value = times["intervals"]["best_us"] / times["fit"]["best_us"]
        self.add(
            "intervals",
            "intervals of all parameters on top of the fit, tissue set",
            {"added": value},
            ours={"added": round(value, 4)} | times,
        )

    def own_model(self) -> None:
        """Time a user's own model of the same form as the built-in one."""
        data = self.tissue
        if self.quick:  # what is compiled already
            models = {
                "an expression": SignalModel(
                    T2IK.name, T2IK.parameters, T2IK.expression, cumulant=T2IK.cumulant
                )
            }
        else:
            models = {
                "an expression": SignalModel.from_expression(
                    "S0*f*exp(-te/T2v)*exp(-Dv*b) + S0*(1 - f)*exp(-te/T2t - b*Dt + "
                    "(K/6)*b**2*Dt**2)",
                    T2IK.parameters,
                    name="mine",
                ),
                "a function": SignalModel.from_function(
                    plain_signal, T2IK.parameters, name="plain"
                ),
                "a function with a branch": SignalModel.from_function(
                    switched, T2IK.parameters, name="branching"
                ),
            }
        for name, model in models.items():
            n = len(data) // 10 if "branch" in name else len(data)
            signals = data.signals[:n]
            kept = {}

            def own(
                model: SignalModel = model, signals: NDArray = signals, kept: dict = kept
            ) -> None:
                kept["cost"] = fit_voxels(signals, RELAXATION, model, n_threads=1).cost

            own()  # compiles
            fits = {"own": own, "built-in": lambda n=n: data.fit(n=n)}
            seconds = measure.processor_times(fits, self.repeats)
            times = {which: measure.summary(values, n) for which, values in seconds.items()}
            ratio = times["own"]["best_us"] / times["built-in"]["best_us"]
            self.add(
                f"own model: {name}",
                f"a model of one's own, given as {name}, against the built-in one",
                {"× the built-in": ratio},
                ours=times,
                ratio={"time": round(ratio, 3)},
                accuracy=data.share(kept["cost"]),
            )

    def threads(self) -> None:
        """Measure wall times of one and two threads."""
        repeats = np.concatenate([self.tissue.signals] * (1 if self.quick else 4))
        wall: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(self.repeats):
            for n_threads, values in wall.items():
                start = time.perf_counter()
                fit_voxels(repeats, RELAXATION, T2IK, n_threads=n_threads)
                values.append(time.perf_counter() - start)
        ratio = min(wall[2]) / min(wall[1])
        self.add(
            "threads",
            "wall time of two threads to that of one (best of repeats)",
            {"× the wall time": ratio},
            ours={
                "ratio": round(ratio, 3),
                "processors": os.cpu_count(),
                "load": [round(x, 2) for x in os.getloadavg()],
            },
        )


def plain_signal(b, te, S0, f, Dv, T2v, Dt, K, T2t):
    x = b * Dt
    return S0 * (
        f * math.exp(-b * Dv - te / T2v) + (1 - f) * math.exp(-x + K * x**2 / 6 - te / T2t)
    )


def switched(b, te, S0, f, Dv, T2v, Dt, K, T2t):
    x = b * Dt
    fast = 0.0
    if f > 0:
        fast = f * math.exp(-b * Dv - te / T2v)
    return S0 * (fast + (1 - f) * math.exp(-x + K * x**2 / 6 - te / T2t))


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Measure everything."""
    begin = time.perf_counter()
    with threadpool_limits(1):
        bench = Bench(quick=chosen.quick, script=chosen.published_script)
        bench.options()
        for part in (
            bench.extras,
            bench.intervals,
            partial(comparisons.peers, bench),
            partial(comparisons.strong_peers, bench),
            partial(comparisons.published, bench),
            partial(comparisons.ivim, bench),
            partial(comparisons.single, bench),
            bench.own_model,
            partial(processes.start, bench),
            bench.threads,
            partial(processes.memory, bench),
            partial(processes.narrow, bench),
        ):
            part()
    return {
        "seeds": [SEED, SEED + 13],
        "data": {
            "tissue": {
                "n": len(bench.tissue),
                "ranges": TISSUE,
                "snr": SNR["tissue"],
                "noise": "Rician",
            },
            "hard": {"n": len(bench.hard), "ranges": HARD, "snr": SNR["hard"], "noise": "Rician"},
            "b": RELAXATION.b.tolist(),
            "te": RELAXATION.te.tolist(),
        },
        "minutes": round((time.perf_counter() - begin) / 60, 1),
        "reference": bench.reference,
        "rows": bench.rows,
    }


def script_path(text: str) -> str:
    """Read the path of a script."""
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text}")
    return text


if __name__ == "__main__":
    script = {"metavar": "PATH", "type": script_path, "help": "the published script of t2-ivim-kurtosis"}
    runs.main(
        run,
        RESULT,
        packages=("numpy", "numba", "llvmlite", "scipy", "lmfit", "dipy"),
        options={"--published-script": script},
    )
