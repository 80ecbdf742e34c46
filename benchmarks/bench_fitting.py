"""
How fast are voxelwise fits, how often do they find the best fit, and how do others compare?

    .venv/bin/python benchmarks/bench_fitting.py [--quick] [--published-script PATH] [--out FILE]

Times are processor time of one thread, initialization included; both sides of a ratio are timed in turn in
the same run, and the best repeats are compared, because other work on the machine only ever adds time. The
share of voxels beside a time is that of voxels whose sum of squares exceeds the best known one by less
than 1e-3 or 1e-6 of it. The best known one is the least of all fits made here, among them 16 starts and a
search of each of eight parts of the box; how far it agrees with the best of 24 random starts of scipy is
measured as well. All data are synthetic.

The published script (fragrussu/bodymritools, mrifittools/getT2ivimkurtReg.py) is run as it is from the path
given; without one, its rows say "not measured here".
"""

import json
import math
import os
import shlex
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import date
from pathlib import Path

import _measure as measure
import numpy as np
from _fitting_data import DIFFUSION, HARD, PARTS, RELAXATION, SEED, SNR, T2IK, TISSUE, Data, draw, shares
from _fitting_peers import Scipy, agreement, lmfit_costs, run_script
from _fitting_table import markdown
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from dmrifit import MODELS, FitResult, SignalModel, _kernels, fit_voxels

RESULT = Path(__file__).parent / "results" / "fitting.json"


def goal(limit: float, value: float, unit: str, *, at_least: bool = False) -> dict[str, object]:
    return {
        "limit": limit,
        "value": float(f"{value:.5g}"),
        "unit": unit,
        "at_least": at_least,
        "met": bool(value >= limit if at_least else value <= limit),
    }


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

    def add(self, name: str, what: str, *, reach: tuple = (), aim: tuple = (), **content: object) -> None:
        print(f"{name}: " + json.dumps(content), flush=True)
        self.rows.append({"name": name, "what": what, **content, "reach": list(reach), "aim": list(aim)})

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
            cases[f"hard, noise floor, {n_starts} starts"] = (self.hard, {"floor": True, "n_starts": n_starts})
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
        narrow = "" if self.wide else " (AVX2)"
        for name, (data, options) in cases.items():
            time_us = self.times[name]["best_us"]
            if "regularization" in options:
                continue
            if "bounds" in options:
                share = published(found[name].cost)
            else:
                share = data.share(found[name].cost, floor=bool(options.get("floor")))
            near, nearer = share["within_1e-3"], share["within_1e-6"]
            us, part = "µs" + narrow, "within 1e-6"
            reach, aim = {
                "tissue": (
                    [goal(4 if self.wide else 7, time_us, us), goal(0.999, nearer, part, at_least=True)],
                    [goal(2, time_us, us), goal(0.999, nearer, part, at_least=True)],
                ),
                "hard": (
                    [goal(7, time_us, us), goal(0.99, near, "within 1e-3", at_least=True)],
                    [goal(5, time_us, us), goal(0.998, near, "within 1e-3", at_least=True)],
                ),
                "hard, noise floor": (
                    [goal(20, time_us, us), goal(0.97, near, "within 1e-3", at_least=True)],
                    [goal(10, time_us, us), goal(0.995, near, "within 1e-3", at_least=True)],
                ),
                "tissue, one start": (
                    [goal(1.2, time_us, us), goal(0.995, nearer, part, at_least=True)],
                    [goal(0.7, time_us, us), goal(0.995, nearer, part, at_least=True)],
                ),
            }.get(name, ([], []))
            kind, _, more = name.partition(", ")
            what = f"t2-ivim-kurtosis, {kind} set" + (f", {more}" if more else "")
            self.add(name, what, ours=self.times[name], accuracy=share, reach=reach, aim=aim)
        self.found = found

    def published_reference(self, result: FitResult | None) -> Callable[[NDArray], dict[str, object]]:
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
                theirs = Scipy(data, floor=floor).best(n, n_starts, SEED + 10 + 2 * (name == "hard") + floor)
                label = f"{name}, noise floor" if floor else name
                self.reference[label] = agreement(data.best[floor][:n], theirs) | {"scipy_starts": n_starts}
                data.know(theirs, floor=floor)
                print(f"reference, {label}: {json.dumps(self.reference[label])}", flush=True)

    def extras(self) -> None:
        """Time what comes on top of the bare fit: standard errors and status, and the Tikhonov term."""
        kernel = _kernels.load(T2IK)
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
        # Without regularization the minimum is another one: the ratio of times per iteration tells the pure cost.
        iterations = [float(self.found[name].n_iter.mean()) for name in ("tissue", "tissue, regularized")]
        value = min(added)
        self.add(
            "extras",
            "standard errors, status and Tikhonov term on top of the bare fit",
            ours={
                "added": round(value, 4),
                "added_median": round(float(np.median(added)), 4),
                "results_and_errors_alone": round(min(shares), 4),
                "iterations_plain": round(iterations[0], 2),
                "iterations_regularized": round(iterations[1], 2),
                "regularized": self.times["tissue, regularized"],
            },
            reach=[goal(0.4, value, "added")],
            aim=[goal(0.2, value, "added")],
        )

    def peer(
        self,
        name: str,
        what: str,
        ours: dict[str, tuple[Callable[[], FitResult], int]],
        theirs: Callable[[], NDArray],
        n: int,
        share: Callable[[NDArray], dict[str, object]],
        goals: Callable[[dict[str, float]], tuple[list, list]],
        repeats: int = 3,
    ) -> None:
        """Time another's fit in turn with ours."""
        kept: dict[str, NDArray] = {}

        def keep() -> None:
            kept["theirs"] = theirs()

        functions = {label: function for label, (function, _) in ours.items()} | {"theirs": keep}
        seconds = measure.processor_times(functions, 1 if self.quick else repeats)
        times = {label: measure.summary(seconds[label], size) for label, (_, size) in ours.items()}
        them = measure.summary(seconds["theirs"], n)
        ratios = {label: float(f"{them['best_us'] / times[label]['best_us']:.4g}") for label in ours}
        reach, aim = goals(ratios)
        self.add(
            name,
            what,
            ours=times,
            theirs=them,
            ratio=ratios,
            their_accuracy=share(kept["theirs"]),
            reach=reach,
            aim=aim,
        )

    def peers(self) -> None:
        """Time scipy and lmfit on the tissue set."""
        data = self.tissue
        both = {
            "default": (data.fit, len(data)),
            "one start": (lambda: data.fit(n_starts=1), len(data)),
        }
        n = 3 if self.quick else 500
        reference = Scipy(data)
        self.peer(
            "scipy",
            "scipy least_squares (trf), analytic Jacobian, one start",
            both,
            lambda: reference.typical(n),
            n,
            data.share,
            lambda ratio: (
                [
                    goal(500 if self.wide else 300, ratio["default"], "× default", at_least=True),
                    goal(1800, ratio["one start"], "× one start", at_least=True),
                ],
                [goal(1000, ratio["default"], "× default", at_least=True)],
            ),
        )
        n = 2 if self.quick else 60
        lmfit_costs(data, 1, "leastsq")  # imports
        for method, reach, narrow, aim in (("leastsq", 2500, 1500, 5000), ("least_squares", 1800, 1000, 3500)):
            self.peer(
                f"lmfit {method}",
                f"lmfit Model.fit, {method}",
                {"default": both["default"]},
                lambda method=method: lmfit_costs(data, n, method),
                n,
                data.share,
                lambda ratio, reach=reach, narrow=narrow, aim=aim: (
                    [goal(reach if self.wide else narrow, ratio["default"], "× default", at_least=True)],
                    [goal(aim, ratio["default"], "× default", at_least=True)],
                ),
            )

    def published(self) -> None:
        """Time the published script of the model, run as it is."""
        data = self.tissue
        for name, scale in (("published script", 500.0), ("published script, largest signal 1", None)):
            what = f"published script of the model, signals {'about 500' if scale else 'divided by their largest'}"
            if self.script is None:
                self.add(name, what, not_measured="not measured here")
                continue
            n = 4 if self.quick else 100
            one = data.signals[:n].max(axis=1, keepdims=True) if scale is None else data.signals.max() / scale
            start_up = min(run_script(self.script, data.signals[:1] / data.signals.max(), RELAXATION)[1] for _ in "ab")
            runs = [run_script(self.script, data.signals[:n] / one, RELAXATION) for _ in range(1 if self.quick else 2)]
            seconds = [spent - start_up for _, spent in runs]
            parameters = runs[0][0] * np.concatenate([one * np.ones((n, 1)), np.ones((n, 6))], axis=1)
            ours = {
                label: measure.summary(times, len(data))
                for label, times in measure.processor_times(
                    {
                        "default": lambda: data.fit(bounds="published"),
                        "one start": lambda: data.fit(bounds="published", n_starts=1),
                    },
                    self.repeats,
                ).items()
            }
            them = measure.summary(seconds, n - 1)  # the time of one voxel went with the start
            accuracy = shares(data.cost(parameters), self.published_best)
            ratio = {label: float(f"{them['best_us'] / ours[label]['best_us']:.4g}") for label in ours}
            goals: dict[str, list] = {"reach": [], "aim": []}
            if scale is not None:
                goals = {
                    "reach": [goal(10_000 if self.wide else 5500, ratio["default"], "× default", at_least=True)],
                    "aim": [
                        goal(20_000, ratio["default"], "× default", at_least=True),
                        goal(35_000, ratio["one start"], "× one start", at_least=True),
                    ],
                }
            self.add(name, what, ours=ours, theirs=them, ratio=ratio, their_accuracy=accuracy, **goals)

    def ivim(self) -> None:
        """Time ivim against dipy on biexponential data, in the same box."""
        from dipy.core.gradients import gradient_table
        from dipy.reconst.ivim import IvimModel

        n, n_dipy = (50, 3) if self.quick else (20_000, 300)
        rng = np.random.default_rng([SEED + 3, 1])
        low, high = [0.02, np.log(8), 0.5], [0.35, np.log(60), 1.8]
        f, dv, dt = rng.uniform(low, high, (n, 3)).T
        truth = np.column_stack([np.full(n, 1000.0), f, np.exp(dv), dt])
        data = Data(MODELS["ivim"], DIFFUSION, truth, (30, 60), SEED + 3)
        data.search(parts={"Dv": 15.0, "Dt": 1.0, "f": 0.3})
        result = data.fit()
        data.know(result.cost)
        table = gradient_table(DIFFUSION.b, bvecs=np.tile([1.0, 0, 0], (len(DIFFUSION), 1)), b0_threshold=0)
        theirs = IvimModel(table, fit_method="trr", bounds=([0, 0, 4e-3, 0.2e-3], [np.inf, 1, 0.1, 3e-3]))
        inside = np.array(MODELS["ivim"].bounds).T

        def dipy() -> NDArray:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                found = theirs.fit(data.signals[:n_dipy]).model_params * [1, 1, 1e3, 1e3]
            return data.cost(np.clip(found, *inside))

        ours = data.share(result.cost)
        self.peer(
            "dipy ivim",
            "ivim against dipy trr, biexponential signals",
            {"default": (data.fit, n), "one start": (lambda: data.fit(n_starts=1), n)},
            dipy,
            n_dipy,
            data.share,
            lambda ratio: (
                [
                    goal(3000, ratio["default"], "× default", at_least=True),
                    goal(0.97, ours["within_1e-3"], "within 1e-3", at_least=True),
                ],
                [goal(10_000, ratio["default"], "× default", at_least=True)],
            ),
        )
        self.rows[-1]["accuracy"] = ours

    def single(self) -> None:
        """Time adc against scipy's curve_fit and a batched log-linear fit, and kurtosis against curve_fit."""
        from scipy.optimize import curve_fit

        n, n_peer = (200, 5) if self.quick else (50_000, 1000)
        b = DIFFUSION.b_ms_per_um2
        rng = np.random.default_rng([SEED + 4, 1])
        data = Data(
            MODELS["adc"],
            DIFFUSION,
            np.column_stack([np.full(n, 1000.0), rng.uniform(0.3, 2.5, n)]),
            (30, 60),
            SEED + 4,
        )
        data.know(data.fit(n_starts=12).cost)
        result = data.fit()
        data.know(result.cost)

        def model(b: NDArray, s0: float, d: float) -> NDArray:
            return s0 * np.exp(-b * d)

        def derivatives(b: NDArray, s0: float, d: float) -> NDArray:
            e = np.exp(-b * d)
            return np.stack([e, -s0 * b * e], axis=1)

        def curve(**options: object) -> NDArray:
            found = [
                curve_fit(model, b, y, p0=(y[0], 1.0), jac=derivatives, **options)[0] for y in data.signals[:n_peer]
            ]
            return data.cost(np.array(found))

        design = np.linalg.pinv(np.stack([np.ones_like(b), -b], axis=1)).T
        loglinear = measure.processor_times({"": lambda: np.log(data.signals) @ design}, self.repeats)[""]
        numpy_us = measure.summary(loglinear, n)
        for name, options in (("adc", {}), ("adc, curve_fit with bounds", {"bounds": ([0, 0], [np.inf, 100])})):
            what = f"adc, bounded nonlinear, against scipy curve_fit{' with bounds' if options else ''}"
            self.peer(
                name,
                what,
                {"default": (data.fit, n)},
                lambda options=options: curve(**options),
                n_peer,
                data.share,
                lambda ratio, options=options: (
                    ([], [])
                    if options
                    else (
                        [goal(1000, ratio["default"], "×", at_least=True)],
                        [goal(2500, ratio["default"], "×", at_least=True)],
                    )
                ),
            )
            self.rows[-1]["accuracy"] = data.share(result.cost)
        row = self.rows[-2]
        times = row["ours"]["default"]["best_us"] / numpy_us["best_us"]
        row["loglinear"] = numpy_us | {"ours_to_it": round(times, 2)}
        row["aim"].append(goal(3, times, "× a batched numpy log-linear fit"))

        truth = np.column_stack([np.full(n, 1000.0), rng.uniform(0.5, 2, n), rng.uniform(0.2, 0.9, n)])
        bent = Data(MODELS["kurtosis"], DIFFUSION, truth, (30, 60), SEED + 5)
        bent.know(bent.fit(n_starts=12).cost)
        found = bent.fit()
        bent.know(found.cost)

        def cumulant(b: NDArray, s0: float, d: float, k: float) -> NDArray:
            return s0 * np.exp(-b * d + k * (b * d) ** 2 / 6)

        def slopes(b: NDArray, s0: float, d: float, k: float) -> NDArray:
            e = np.exp(-b * d + k * (b * d) ** 2 / 6)
            return np.stack([e, s0 * e * (k * b**2 * d / 3 - b), s0 * e * (b * d) ** 2 / 6], axis=1)

        box = ([0, 0, 0], [np.inf, 10, 5])
        self.peer(
            "kurtosis",
            "kurtosis against scipy curve_fit with bounds",
            {"default": (bent.fit, n)},
            lambda: bent.cost(
                np.array(
                    [
                        curve_fit(cumulant, b, y, p0=(y[0], 1.0, 0.5), jac=slopes, bounds=box)[0]
                        for y in bent.signals[: n_peer // 4 + 1]
                    ]
                )
            ),
            n_peer // 4 + 1,
            bent.share,
            lambda _: ([], []),
        )
        self.rows[-1]["accuracy"] = bent.share(found.cost)

    def own_model(self) -> None:
        """Time a user's own model of the same form as the built-in one."""
        data = self.tissue
        if self.quick:  # what is compiled already
            models = {"an expression": SignalModel(T2IK.name, T2IK.parameters, T2IK.expression, cumulant=T2IK.cumulant)}
        else:
            models = {
                "an expression": SignalModel.from_expression(
                    "S0*f*exp(-te/T2v)*exp(-Dv*b) + S0*(1 - f)*exp(-te/T2t - b*Dt + (K/6)*b**2*Dt**2)",
                    T2IK.parameters,
                    name="mine",
                ),
                "a function": SignalModel.from_function(plain_signal, T2IK.parameters, name="plain"),
                "a function with a branch": SignalModel.from_function(
                    branching_signal, T2IK.parameters, name="branching"
                ),
            }
        for name, model in models.items():
            n = len(data) // 10 if "branch" in name else len(data)
            signals = data.signals[:n]
            kept = {}

            def own(model: SignalModel = model, signals: NDArray = signals, kept: dict = kept) -> None:
                kept["cost"] = fit_voxels(signals, RELAXATION, model, n_threads=1).cost

            own()  # compiles
            fits = {"own": own, "built-in": lambda n=n: data.fit(n=n)}
            seconds = measure.processor_times(fits, self.repeats)
            times = {which: measure.summary(values, n) for which, values in seconds.items()}
            ratio = times["own"]["best_us"] / times["built-in"]["best_us"]
            self.add(
                f"own model: {name}",
                f"a model of one's own, given as {name}, against the built-in one",
                ours=times,
                ratio={"time": round(ratio, 3)},
                accuracy=data.share(kept["cost"]),
                reach=[goal(2, ratio, "× the built-in")],
                aim=[goal(1.05, ratio, "× the built-in")],
            )

    def start(self) -> None:
        """Time a new process to its first fits, and the first compilation of each model."""
        with tempfile.TemporaryDirectory() as folder:
            cold = {}
            for name in () if self.quick else MODELS:
                environment = {"DMRIFIT_CACHE": str(Path(folder) / name)}
                child = measure.run_child(START.format(model=name), environment)
                spent = json.loads(child["out"])
                cold[name] = {"cpu_s": round(spent["cpu_s"], 2), "said_so": "compiling" in child["err"]}
            name = T2IK.name
            environment = {} if self.quick else {"DMRIFIT_CACHE": str(Path(folder) / name)}
            runs = [measure.run_child(START.format(model=name), environment) for _ in range(2 if self.quick else 7)]
        warm, cpu = min(run["wall_s"] for run in runs), min(run["cpu_s"] for run in runs)
        self.add(
            "start",
            f"start of Python to the first 1,000 voxels fitted ({name}, compiled before)",
            ours={
                "wall_s": round(warm, 3),
                "cpu_s": round(cpu, 3),
                "median_wall_s": round(float(np.median([r["wall_s"] for r in runs])), 3),
            },
            reach=[goal(1.5, warm, "s")],
            aim=[goal(1.0, warm, "s")],
        )
        if not cold:
            return
        longest = max(entry["cpu_s"] for entry in cold.values())
        self.add(
            "compile",
            "first fit of a model on a machine (compilation, longest of the models)",
            ours=cold,
            reach=[goal(20, longest, "s")],
            aim=[goal(5, longest, "s")],
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
            ours={
                "ratio": round(ratio, 3),
                "processors": os.cpu_count(),
                "load": [round(x, 2) for x in os.getloadavg()],
            },
            reach=[goal(0.6, ratio, "× the wall time")],
            aim=[goal(0.52, ratio, "× the wall time")],
        )

    def memory(self) -> None:
        """Measure the peak memory of a whole scan in a process of its own."""
        shape = (16, 16, 4) if self.quick else (256, 256, 64)
        child = measure.run_child(MEMORY.format(n=int(np.prod(shape)), seed=SEED + 6))
        found = json.loads(child["out"])
        over = found["peak_mb"] - found["input_mb"] - found["output_mb"]
        self.add(
            "memory",
            f"peak memory of {'×'.join(map(str, shape))}×21 float32 above input and output",
            ours={key: round(value, 1) for key, value in found.items()} | {"above_mb": round(over, 1)},
            reach=[goal(300, over, "MB")],
            aim=[goal(300, over, "MB")],
        )

    def narrow(self) -> None:
        """Time code for AVX2 on this machine, and compare its bits."""
        if not self.wide or self.quick:
            return
        with tempfile.TemporaryDirectory() as folder:
            environment = {
                "NUMBA_CPU_NAME": "haswell",
                "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+bmi,+bmi2,+sse4.2,+ssse3,+popcnt,+cmov,+lzcnt,+f16c",
                "DMRIFIT_CACHE": folder,
            }
            where = Path(folder) / "cost.npy"
            child = measure.run_child(
                NARROW.format(root=str(Path(__file__).parent), repeats=self.repeats, where=str(where)), environment
            )
            found = json.loads(child["out"])
            cost = np.load(where)
        times = {name: measure.summary(values, len(self.tissue)) for name, values in found.items()}
        self.add(
            "avx2",
            "t2-ivim-kurtosis, tissue set, code for AVX2",
            ours=times,
            accuracy=self.tissue.share(cost) | {"same_bits": bool((cost == self.found["tissue"].cost).all())},
            reach=[goal(7, times["default"]["best_us"], "µs (AVX2)")],
        )


def plain_signal(b, te, S0, f, Dv, T2v, Dt, K, T2t):
    x = b * Dt
    return S0 * (f * math.exp(-b * Dv - te / T2v) + (1 - f) * math.exp(-x + K * x**2 / 6 - te / T2t))


def branching_signal(b, te, S0, f, Dv, T2v, Dt, K, T2t):
    x = b * Dt
    fast = 0.0
    if f > 0:
        fast = f * math.exp(-b * Dv - te / T2v)
    return S0 * (fast + (1 - f) * math.exp(-x + K * x**2 / 6 - te / T2t))


START = """
import json, time
begin = time.process_time()
import numpy as np
from dmrifit import MODELS, Protocol, fit_voxels
model = MODELS["{model}"]
b = np.array([0, 50, 100, 400, 900, 1200, 1600.0])
protocol = Protocol(np.tile(b, 3), np.repeat([93, 105, 120], 7)) if model.needs_te else Protocol(b)
truth = {{"S0": 500.0, "f": 0.2, "Dv": 20.0, "T2v": 200.0, "Dt": 1.0, "K": 0.8, "T2t": 70.0, "D": 1.0, "ADC": 1.0}}
clean = model.signal([[truth[name] for name in model.names]], protocol)
signals = clean + np.random.default_rng(1).normal(size=(1000, len(protocol)))
start = time.process_time()
fit_voxels(signals, protocol, model)
print(json.dumps({{"cpu_s": time.process_time() - start}}))
"""

MEMORY = """
import json, resource
from pathlib import Path
import numpy as np
from dmrifit import MODELS, Protocol, fit_voxels
protocol = Protocol(np.tile([0, 50, 100, 400, 900, 1200, 1600], 3), np.repeat([93, 105, 120], 7))
model = MODELS["t2-ivim-kurtosis"]
signals = np.empty(({n}, 21), np.float32)
rng = np.random.default_rng({seed})
clean = model.signal([[500.0, 0.2, 20.0, 200.0, 1.0, 0.8, 70.0]], protocol).astype(np.float32)
for start in range(0, {n}, 65536):
    part = signals[start : start + 65536]
    part[:] = np.abs(clean + 3 * rng.standard_normal(part.shape, dtype=np.float32))
result = fit_voxels(signals, protocol, model)
output = sum(value.nbytes for value in vars(result).values() if isinstance(value, np.ndarray))
status = Path("/proc/self/status")
if status.exists():  # a child's ru_maxrss begins with its parent's size
    peak = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * 1024
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({{"input_mb": signals.nbytes / 1e6, "output_mb": output / 1e6, "peak_mb": peak / 1e6}}))
"""

NARROW = """
import json, sys
sys.path.insert(0, {root!r})
import numpy as np
import _measure as measure
from _fitting_data import RELAXATION, SEED, SNR, T2IK, Data, draw
data = Data(T2IK, RELAXATION, draw("tissue", 50_000, SEED), SNR["tissue"], SEED)
np.save({where!r}, data.fit().cost)
times = measure.processor_times({{"default": data.fit, "one start": lambda: data.fit(n_starts=1)}}, {repeats})
print(json.dumps(times))
"""


def run(*, quick: bool, script: str | None) -> dict[str, object]:
    """Measure everything."""
    begin, machine = time.perf_counter(), measure.machine()
    with threadpool_limits(1):
        bench = Bench(quick=quick, script=script)
        bench.options()
        for part in (
            bench.extras,
            bench.peers,
            bench.published,
            bench.ivim,
            bench.single,
            bench.own_model,
            bench.start,
            bench.threads,
            bench.memory,
            bench.narrow,
        ):
            part()
    command = shlex.join(["python", "benchmarks/bench_fitting.py", *(["--quick"] if quick else [])])
    if script is not None:
        command += f" --published-script {Path(script).name}"
    return {
        "question": "microseconds per voxel, and how often the fit is the best one",
        **measure.commit("dmrifit"),
        "command": command,
        "quick": quick,
        "date": date.today().isoformat(),
        "machine": machine,
        "versions": measure.versions("numpy", "numba", "llvmlite", "scipy", "lmfit", "dipy"),
        "seeds": [SEED, SEED + 13],
        "data": {
            "tissue": {"n": len(bench.tissue), "ranges": TISSUE, "snr": SNR["tissue"], "noise": "Rician"},
            "hard": {"n": len(bench.hard), "ranges": HARD, "snr": SNR["hard"], "noise": "Rician"},
            "b": RELAXATION.b.tolist(),
            "te": RELAXATION.te.tolist(),
        },
        "minutes": round((time.perf_counter() - begin) / 60, 1),
        "reference": bench.reference,
        "rows": bench.rows,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = measure.options("Measure speed and reliability of voxelwise fits.", RESULT)
    parser.add_argument("--published-script", metavar="PATH", help="the published script of t2-ivim-kurtosis")
    chosen = measure.chosen(parser, arguments, RESULT)
    if chosen.published_script is not None and not Path(chosen.published_script).is_file():
        parser.error(f"there is no file {chosen.published_script}")
    result = run(quick=chosen.quick, script=chosen.published_script)
    measure.write(result, chosen.out)
    print(markdown(result))


if __name__ == "__main__":
    main()
