"""Times of other programs' fits beside ours, in turn with them."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import _measure as measure
from benchmarks.fitting._fitting_data import DIFFUSION, RELAXATION, SEED, Data, shares
from benchmarks.fitting._fitting_numpy import BatchedNumpy
from benchmarks.fitting._fitting_peers import Scipy, lmfit_costs, run_script
from dmrifit import MODELS, FitResult, Protocol, fit_voxels


def peer(
    bench: Any,
    name: str,
    what: str,
    ours: dict[str, tuple[Callable[[], FitResult], int]],
    theirs: Callable[[], NDArray],
    n: int,
    share: Callable[[NDArray], dict[str, object]],
    **content: Any,
) -> None:
    """Time another's fit in turn with ours, by which factor it is faster."""
    kept: dict[str, NDArray] = {}

    def keep() -> None:
        kept["theirs"] = theirs()

    functions = {label: function for label, (function, _) in ours.items()} | {"theirs": keep}
    seconds = measure.processor_times(functions, 1 if bench.quick else 3)
    times = {label: measure.summary(seconds[label], size) for label, (_, size) in ours.items()}
    them = measure.summary(seconds["theirs"], n)
    ratios = {label: float(f"{them['best_us'] / times[label]['best_us']:.4g}") for label in ours}
    figures = {f"× {label}": ratio for label, ratio in ratios.items()}
    figures |= content.pop("figures", {})
    accuracy = share(kept["theirs"])
    content |= {"ours": times, "theirs": them, "ratio": ratios, "their_accuracy": accuracy}
    bench.add(name, what, figures, **content)


def own_fits(data: Data) -> dict[str, tuple[Callable[[], FitResult], int]]:
    """Name our fits that others are compared with."""
    n = len(data)
    return {"default": (data.fit, n), "one start": (lambda: data.fit(n_starts=1), n)}


def peers(bench: Any) -> None:
    """Time scipy and lmfit on the tissue set."""
    data = bench.tissue
    n = 3 if bench.quick else 500
    reference = Scipy(data)
    peer(
        bench,
        "scipy",
        "scipy least_squares (trf), analytic Jacobian, one start",
        own_fits(data),
        lambda: reference.typical(n),
        n,
        data.share,
    )
    n = 2 if bench.quick else 60
    lmfit_costs(data, 1, "leastsq")  # imports
    for method in ("leastsq", "least_squares"):
        peer(
            bench,
            f"lmfit {method}",
            f"lmfit Model.fit, {method}",
            {"default": (data.fit, len(data))},
            lambda method=method: lmfit_costs(data, n, method),
            n,
            data.share,
        )


def strong_peers(bench: Any) -> None:
    """Time batched numpy on the tissue set."""
    data = bench.tissue
    n = 100 if bench.quick else 4000
    batched = BatchedNumpy(data, n)
    fits: dict[str, Callable[[], NDArray]] = {
        "one typical start": batched.one_start,
        "best of a dictionary of 3,000": lambda: batched.best_of_dictionary(1, SEED + 6),
        "four best of a dictionary of 3,000": lambda: batched.best_of_dictionary(4, SEED + 6),
    }
    for name, fit in fits.items():
        peer(
            bench,
            f"batched numpy, {name}",
            f"batched numpy Levenberg–Marquardt, analytic Jacobian, {name}",
            own_fits(data),
            fit,
            n,
            data.share,
        )


def published(bench: Any) -> None:
    """Time the published script of the model, run as it is."""
    data = bench.tissue
    for name, scale in (("published script", 500.0), ("published script, largest signal 1", None)):
        what = f"published script of the model, signals {'about 500' if scale else 'divided by their largest'}"
        if bench.script is None:
            bench.add(name, what, not_measured="not measured here")
            continue
        n = 4 if bench.quick else 100
        one = (
            data.signals[:n].max(axis=1, keepdims=True)
            if scale is None
            else data.signals.max() / scale
        )
        start_up = min(
            run_script(bench.script, data.signals[:1] / data.signals.max(), RELAXATION)[1]
            for _ in "ab"
        )
        runs = [
            run_script(bench.script, data.signals[:n] / one, RELAXATION)
            for _ in range(1 if bench.quick else 2)
        ]
        seconds = [spent - start_up for _, spent in runs]
        parameters = runs[0][0] * np.concatenate([one * np.ones((n, 1)), np.ones((n, 6))], axis=1)
        ours = {
            label: measure.summary(times, len(data))
            for label, times in measure.processor_times(
                {
                    "default": lambda: data.fit(bounds="published"),
                    "one start": lambda: data.fit(bounds="published", n_starts=1),
                },
                bench.repeats,
            ).items()
        }
        them = measure.summary(seconds, n - 1)  # the time of one voxel went with the start
        accuracy = shares(data.cost(parameters), bench.published_best)
        ratio = {label: float(f"{them['best_us'] / ours[label]['best_us']:.4g}") for label in ours}
        figures = {f"× {label}": value for label, value in ratio.items()}
        content = {"ours": ours, "theirs": them, "ratio": ratio, "their_accuracy": accuracy}
        bench.add(name, what, figures, **content)


def ivim(bench: Any) -> None:
    """Time ivim against dipy on biexponential data, in the same box."""
    from dipy.core.gradients import gradient_table
    from dipy.reconst.ivim import IvimModel

    n, n_dipy = (50, 3) if bench.quick else (20_000, 300)
    rng = np.random.default_rng([SEED + 3, 1])
    low, high = [0.02, np.log(8), 0.5], [0.35, np.log(60), 1.8]
    f, dv, dt = rng.uniform(low, high, (n, 3)).T
    truth = np.column_stack([np.full(n, 1000.0), f, np.exp(dv), dt])
    data = Data(MODELS["ivim"], DIFFUSION, truth, (30, 60), SEED + 3)
    data.search(parts={"Dv": 15.0, "Dt": 1.0, "f": 0.3})
    result = data.fit()
    data.know(result.cost)
    table = gradient_table(
        DIFFUSION.b, bvecs=np.tile([1.0, 0, 0], (len(DIFFUSION), 1)), b0_threshold=0
    )
    theirs = IvimModel(
        table, fit_method="trr", bounds=([0, 0, 4e-3, 0.2e-3], [np.inf, 1, 0.1, 3e-3])
    )
    inside = np.array(MODELS["ivim"].bounds).T

    def dipy() -> NDArray:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            found = theirs.fit(data.signals[:n_dipy]).model_params * [1, 1, 1e3, 1e3]
        return data.cost(np.clip(found, *inside))

    ours = data.share(result.cost)
    peer(
        bench,
        "dipy ivim",
        "ivim against dipy trr, biexponential signals",
        own_fits(data),
        dipy,
        n_dipy,
        data.share,
        accuracy=ours,
        figures={"within 1e-3": ours["within_1e-3"]},
    )


def single(bench: Any) -> None:
    """Time adc against scipy's curve_fit and a batched log-linear fit, and kurtosis against curve_fit."""
    from scipy.optimize import curve_fit

    n, n_peer = (200, 5) if bench.quick else (50_000, 1000)
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
            curve_fit(model, b, y, p0=(y[0], 1.0), jac=derivatives, **options)[0]
            for y in data.signals[:n_peer]
        ]
        return data.cost(np.array(found))

    design = np.linalg.pinv(np.stack([np.ones_like(b), -b], axis=1)).T
    seconds = measure.processor_times(
        {"ours": data.fit, "numpy": lambda: np.log(data.signals) @ design}, bench.repeats
    )
    ours, loglinear = (measure.summary(seconds[name], n) for name in ("ours", "numpy"))
    times = ours["best_us"] / loglinear["best_us"]
    more = {
        "loglinear": loglinear | {"ours_to_it": round(times, 2)},
        "figures": {"× a batched numpy log-linear fit": times},
    }
    bounds = {"bounds": ([0, 0], [np.inf, 100])}
    for ending, options, content in (("", {}, more), (" with bounds", bounds, {})):
        peer(
            bench,
            f"adc, curve_fit{ending}" if ending else "adc",
            f"adc, bounded nonlinear, against scipy curve_fit{ending}",
            {"default": (data.fit, n)},
            lambda options=options: curve(**options),
            n_peer,
            data.share,
            accuracy=data.share(result.cost),
            **content,
        )

    _log_linear(bench)
    truth = np.column_stack([np.full(n, 1000.0), rng.uniform(0.5, 2, n), rng.uniform(0.2, 0.9, n)])
    bent = Data(MODELS["kurtosis"], DIFFUSION, truth, (30, 60), SEED + 5)
    # Equal bounds for all: the default ones also keep the signal falling.
    bent.bounds = {"K": (0.0, 5.0)}
    bent.know(bent.fit(n_starts=12).cost)
    found = bent.fit()
    bent.know(found.cost)

    def cumulant(b: NDArray, s0: float, d: float, k: float) -> NDArray:
        return s0 * np.exp(-b * d + k * (b * d) ** 2 / 6)

    def slopes(b: NDArray, s0: float, d: float, k: float) -> NDArray:
        e = np.exp(-b * d + k * (b * d) ** 2 / 6)
        return np.stack([e, s0 * e * (k * b**2 * d / 3 - b), s0 * e * (b * d) ** 2 / 6], axis=1)

    box = ([0, 0, 0], [np.inf, 10, 5])
    peer(
        bench,
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
        accuracy=bent.share(found.cost),
    )
    _mean_signal_kurtosis(bench, bent, found.cost)


def _log_linear(bench: Any) -> None:
    """Time the whole log-linear fit of many voxels, and what writing its results costs alone."""
    n = 2000 if bench.quick else 1 << 20
    protocol = Protocol([0, 50, 200, 400, 600, 800])
    rng = np.random.default_rng([SEED + 6, 1])
    truth = np.column_stack([np.full(n, 1000.0), rng.uniform(0.3, 2.5, n)])
    data = Data(MODELS["adc"], protocol, truth, (30, 60), SEED + 6)
    signals = data.signals.astype(np.float32)
    design = np.linalg.pinv(np.stack([np.ones(6), -protocol.b_ms_per_um2], axis=1)).T
    result = fit_voxels(signals, protocol, "adc", method="ols", n_threads=1)
    fields = (result.parameters, result.standard_errors, result.cost, result.n_iter)
    functions = {
        "default": lambda: fit_voxels(signals, protocol, "adc", method="ols", n_threads=1),
        "writing as many results": lambda: [np.full(x.shape, 1, x.dtype) for x in fields],
        "batched numpy, coefficients alone": lambda: np.log(data.signals) @ design,
    }
    seconds = measure.processor_times(functions, bench.repeats)
    times = {name: measure.summary(values, n) for name, values in seconds.items()}
    bench.add(
        "adc, log-linear",
        "adc by method ols, float32, six b-values: all results",
        {"ns": 1e3 * times["default"]["best_us"]},
        ours=times,
    )


def _mean_signal_kurtosis(bench: Any, data: Data, ours: NDArray) -> None:
    """Time dipy's kurtosis of the mean over directions, which is weighted and log-linear."""
    from dipy.core.gradients import gradient_table
    from dipy.reconst.msdki import MeanDiffusionKurtosisModel

    n = 5 if bench.quick else 2000
    b = np.tile(DIFFUSION.b, 3)
    directions = np.repeat(np.eye(3), len(DIFFUSION.b), axis=0)
    theirs = MeanDiffusionKurtosisModel(gradient_table(b, bvecs=directions, b0_threshold=0))
    inside = np.array(data.model.bounds).T

    def dipy() -> NDArray:
        fit = theirs.fit(np.tile(data.signals[:n], 3))
        parameters = np.column_stack([np.ones(n), fit.msd * 1e3, fit.msk])
        parameters = np.clip(parameters, *inside)
        # It gives no S0: the best one to its shape is the most favorable.
        shape = data.model.signal(parameters, data.protocol)
        parameters[:, 0] = (shape * data.signals[:n]).sum(axis=1) / (shape**2).sum(axis=1)
        return data.cost(parameters)

    peer(
        bench,
        "dipy msdki",
        "kurtosis against dipy MeanDiffusionKurtosisModel (weighted log-linear)",
        {"default": (data.fit, len(data))},
        dipy,
        n,
        data.share,
        accuracy=data.share(ours),
    )
