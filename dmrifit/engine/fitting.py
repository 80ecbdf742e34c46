"""Voxelwise fits of signal models: bounded nonlinear least squares."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from types import ModuleType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit.engine.kernels import compiler
from dmrifit.engine.kernels.layout import LANES, UNROLL, form
from dmrifit.engine.models import MODELS, SignalModel
from dmrifit.engine.protocol import Protocol
from dmrifit.engine.results import FitResult, FitStatus
from dmrifit.engine.starting_points import Dictionary, to_inner

__all__ = ["FitResult", "FitStatus", "fit_voxels"]

_CHUNK = (
    4096  # voxels that go through the kernel together: their signals stay in the processor's cache
)
_TOLERANCE = 1e-9
_MAX_ITER = 200
_SEGMENT_B = 150.0  # s/mm²; of 150, 200, 250, the one with the smallest errors on OSIPI's tissues at SNR 30–100

_logger = logging.getLogger("dmrifit")


def fit_voxels(
    signals: ArrayLike,
    protocol: Protocol,
    model: str | SignalModel,
    *,
    method: str = "nlls",
    bounds: Mapping[str, tuple[float, float | str]] | str | None = None,
    fixed: Mapping[str, ArrayLike] | None = None,
    sigma: ArrayLike | None = None,
    regularization: float | None = None,
    n_starts: int | str = "auto",
    n_threads: int | None = None,
) -> FitResult:
    """
    Fit a signal model to every voxel by bounded nonlinear least squares.

    Each voxel is fitted by Levenberg–Marquardt steps with analytic derivatives and an active set of bounds,
    from the best entries of a dictionary of signals. The result does not depend on which voxels are fitted
    together, nor on the number of threads.

    Parameters
    ----------
    signals : array_like of shape (n_voxels, n_measurements)
        Magnitudes on any scale. A NaN or infinite one is left out (weight 0); a zero is data. A voxel with
        no positive value, any negative value, all values equal, or fewer usable measurements than free
        parameters is not fitted.
    protocol : Protocol
        The measurements.
    model : str or SignalModel
        A name in `MODELS`, or a model.
    method : {"nlls", "segmented"}, default="nlls"
        ``"nlls"`` fits all parameters at once. ``"segmented"``, for the model "ivim", first fits Dt by
        S0'·exp(−b·Dt) to b ≥ 150 s/mm², where perfusion has died out, then S0, f and Dv with that Dt fixed;
        it is more precise at low SNR, and biased where Dv is slow.
    bounds : mapping of str to (float, float) or "published", optional
        Bounds to use instead of the model's own, by parameter name; ``"published"`` takes those of the
        study's fitting tool. Those of an amplitude (unit "signal") are multiples of the voxel's largest
        signal. The cumulant −bD + K(bD)²/6 of kurtosis models turns up beyond b·D = 3/K, so that a large K
        makes the signal rise again inside the protocol; as in the published tool this is not prevented
        unless the upper bound is ``"monotonic"``, which also keeps K ≤ 3/(b_max·D).
    fixed : mapping of str to float or array_like of shape (n_voxels,), optional
        Parameters that are not fitted, with their values in the model's units (an amplitude in the
        signals' units).
    sigma : float or array_like of shape (n_voxels,), optional
        Standard deviation of the noise, in the signals' units. The model is then compared with its Rician
        floor, √(model² + π/2·sigma²).
    regularization : float, optional
        Weight λ of the Tikhonov term λ·Σ((p − low)/(high − low))² over the parameters with finite bounds,
        added to the sum of squares of signals divided by the voxel's largest.
    n_starts : int or "auto", default="auto"
        Starting points per voxel; the best end counts.
    n_threads : int, optional
        Threads; by default the number in the environment variable ``NUMBA_NUM_THREADS``, which joblib sets in
        its workers, or else one for each processor this process may use.

    Returns
    -------
    FitResult
        Parameters, standard errors, cost, status, number of iterations.

    Raises
    ------
    ValueError
        If shapes, names, bounds or units do not fit together, if there are fewer measurements than free
        parameters, or if the model and the protocol disagree about echo times.

    References
    ----------
    Macarro et al., J Magn Reson Imaging 61(2):1018–1021, 2025 (model, bounds and noise floor); Marquardt,
    J SIAM 11:431–441, 1963; Le Bihan et al., Radiology 168:497–505, 1988 (segmented fit).
    """
    if isinstance(model, str):
        if model not in MODELS:
            raise ValueError(
                f"no model {model!r}; choose one of {', '.join(MODELS)} or make a SignalModel"
            )
        model = MODELS[model]
    signals = np.asarray(signals)
    _check_measurements(signals, protocol, model)
    whole = isinstance(n_threads, int | np.integer) and not isinstance(n_threads, bool)
    if n_threads is not None and (not whole or n_threads < 1):
        raise ValueError(
            f"n_threads must be a whole number of at least 1, or None for one on each core, not {n_threads!r}"
        )
    if method == "segmented":
        return _fit_segmented(
            signals, protocol, model, bounds, fixed, sigma, regularization, n_starts, n_threads
        )
    if method != "nlls":
        raise ValueError(f"method must be 'nlls' or 'segmented', not {method!r}")
    n = len(signals)
    box = _box(model, bounds)
    values = _fixed_values(model, fixed, n, box)
    n_free = len(model.names) - len(values)
    if len(protocol) < n_free:
        raise ValueError(
            f"{len(protocol)} measurements cannot determine {n_free} free parameters of {model.name}; "
            "fix some, or measure more"
        )
    problem = _Problem(model, protocol, box, values, n_free, regularization, n_starts)
    noise = _noise(sigma, n)
    out = _empty_result(problem, n, tuple(values))
    _run(signals, problem, noise, out, n_threads)
    return out


def _fit_segmented(
    signals: NDArray,
    protocol: Protocol,
    model: SignalModel,
    bounds: Mapping | str | None,
    fixed: Mapping[str, ArrayLike] | None,
    sigma: ArrayLike | None,
    regularization: float | None,
    n_starts: int | str,
    n_threads: int | None,
) -> FitResult:
    """Fit Dt where perfusion has died out, and the rest with it fixed."""
    if model != MODELS["ivim"]:
        raise ValueError(
            f"the segmented fit is for the model 'ivim', not {model.name!r}; use method='nlls'"
        )
    if "Dt" in (fixed or {}):
        raise ValueError(
            "Dt cannot be fixed in a segmented fit, which determines it first; use method='nlls'"
        )
    slow = protocol.b >= _SEGMENT_B
    if len(np.unique(protocol.b[slow])) < 2:
        raise ValueError(
            f"a segmented fit needs two b-values of {_SEGMENT_B:g} s/mm² or more; there are {protocol.b[slow].tolist()}"
        )
    box = _box(model, bounds)
    tissue = fit_voxels(
        signals[:, slow],
        protocol.take(np.flatnonzero(slow)),
        "adc",
        bounds={"ADC": box["Dt"]},
        sigma=sigma,
        n_threads=n_threads,
    )
    found = tissue.status != FitStatus.NOT_FITTED
    rest = fit_voxels(
        np.where(found[:, None], signals, np.nan),
        protocol,
        model,
        bounds=box,
        fixed={**(fixed or {}), "Dt": np.where(found, tissue["ADC"], 1.0)},
        sigma=sigma,
        regularization=regularization,
        n_starts=n_starts,
        n_threads=n_threads,
    )
    at = model.names.index("Dt")
    rest.standard_errors[:, at] = np.where(
        rest.status == FitStatus.NOT_FITTED, np.nan, tissue.standard_errors[:, 1]
    )
    rest.at_low[:, at], rest.at_high[:, at] = tissue.at_low[:, 1], tissue.at_high[:, 1]
    touching = (rest.status == FitStatus.CONVERGED) & (tissue.status == FitStatus.AT_BOUND)
    rest.status[touching] = FitStatus.AT_BOUND
    rest.status[
        (rest.status < FitStatus.NOT_CONVERGED) & (tissue.status == FitStatus.NOT_CONVERGED)
    ] = 2
    rest.n_iter[:] += np.where(rest.status == FitStatus.NOT_FITTED, 0, tissue.n_iter)
    return replace(rest, fixed=tuple(fixed or {}))


def _check_measurements(signals: NDArray, protocol: Protocol, model: SignalModel) -> None:
    if signals.ndim != 2 or signals.shape[1] != len(protocol):
        raise ValueError(
            f"signals must have shape (n_voxels, {len(protocol)}), one column for each measurement; got {signals.shape}"
        )
    if not (np.issubdtype(signals.dtype, np.floating) or np.issubdtype(signals.dtype, np.integer)):
        raise ValueError(f"signals must be real numbers (magnitudes), not {signals.dtype}")
    check_echo_times(protocol, model)


def check_echo_times(protocol: Protocol, model: SignalModel) -> None:
    """Refuse a protocol whose echo times a model cannot explain."""
    if model.needs_te and protocol.te is None:
        raise ValueError(
            f"model {model.name} needs echo times, and the protocol has none; give te in ms"
        )
    if not model.needs_te and protocol.te is not None and np.ptp(protocol.te) > 0:
        times = ", ".join(f"{te:g}" for te in np.unique(protocol.te))
        raise ValueError(
            f"model {model.name} knows no relaxation, but the protocol has echo times {times} ms; "
            "take the measurements of one echo time (protocol.take), or use a model with T2"
        )


def _box(model: SignalModel, bounds: Mapping | str | None) -> dict[str, tuple[float, float | str]]:
    box: dict[str, tuple[float, float | str]] = dict(zip(model.names, model.bounds, strict=True))
    if bounds is None:
        return box
    if isinstance(bounds, str):
        if bounds != "published":
            raise ValueError(
                f"bounds must be a dict by parameter name or 'published', not {bounds!r}"
            )
        if model.published_bounds is None:
            raise ValueError(
                f"there are no published bounds for model {model.name}; give a dict by parameter name"
            )
        bounds = model.published_bounds
    for name, pair in bounds.items():
        _check_name(model, name, "bounds")
        try:
            low, high = pair
        except (TypeError, ValueError):
            raise ValueError(f"bounds of {name} must be (low, high), not {pair!r}") from None
        parameter = model.parameters[model.names.index(name)]
        if high == "monotonic":
            if low != 0:
                raise ValueError(
                    f"the lower bound of {name} must be 0 where the upper one is 'monotonic', not {low!r}"
                )
            if model.cumulant is None or name != model.cumulant[0]:
                raise ValueError(
                    f"only the kurtosis of a model with a cumulant has a 'monotonic' bound, not {name} of {model.name}"
                )
            low = float(low)
        else:
            low, high = float(low), float(high)
            if not low <= high:
                raise ValueError(
                    f"bounds of {name} are empty: ({low:g}, {high:g}); the lower one comes first"
                )
            if form(parameter) != "plain" and high <= 0:
                raise ValueError(f"{name} is positive, but its upper bound is {high:g}")
        box[name] = (low, high)
    return box


def _check_name(model: SignalModel, name: str, what: str) -> None:
    if name not in model.names:
        known = ", ".join(model.names)
        raise ValueError(
            f"{what} name the parameter {name!r}, which model {model.name} does not have; it has {known}"
        )


def _fixed_values(
    model: SignalModel,
    fixed: Mapping[str, ArrayLike] | None,
    n: int,
    box: Mapping[str, tuple[float, float | str]],
) -> dict[str, NDArray]:
    values = {}
    for name, value in (fixed or {}).items():
        _check_name(model, name, "fixed values")
        array = np.asarray(value, dtype=float)
        if array.shape not in ((), (1,), (n,)) or not np.isfinite(array).all():
            raise ValueError(
                f"fixed {name} must be a finite number or {n} of them, one for each voxel; got {value!r}"
            )
        parameter = model.parameters[model.names.index(name)]
        if form(parameter) != "plain" and not (array > 0).all():
            raise ValueError(f"fixed {name} must be positive; got {array.min():g}")
        values[name] = array
    for name in values:
        if box[name][1] == "monotonic":
            raise ValueError(
                f"{name} is fixed, so it cannot have a 'monotonic' bound; give one or the other"
            )
    if len(values) == len(model.names):
        raise ValueError(f"all parameters of {model.name} are fixed: there is nothing to fit")
    return values


def _noise(sigma: ArrayLike | None, n: int) -> NDArray[np.float64] | None:
    if sigma is None:
        return None
    noise = np.asarray(sigma, dtype=float)
    if noise.shape not in ((), (1,), (n,)):
        raise ValueError(
            f"sigma must be a number or {n} of them, one for each voxel; got shape {noise.shape}"
        )
    if not (np.isfinite(noise).all() and (noise >= 0).all()):
        raise ValueError(
            "sigma must be finite and not negative (it is the standard deviation of the noise, in the signals' units)"
        )
    return np.ascontiguousarray(noise.reshape(-1))


class _Problem:
    """What is the same for all voxels, in the form the kernel takes."""

    def __init__(
        self,
        model: SignalModel,
        protocol: Protocol,
        box: dict[str, tuple[float, float | str]],
        fixed: dict[str, NDArray],
        n_free: int,
        regularization: float | None,
        n_starts: int | str,
    ) -> None:
        self.kernel = compiler.load(model)
        self.model, self.n_free = model, n_free
        self.forms = self.kernel.FORMS
        n = len(model.names)
        b_max = float(protocol.b_ms_per_um2.max())
        self.turn_up = np.inf
        low, high = np.empty(n), np.empty(n)
        for j, (parameter, (lower, upper)) in enumerate(
            zip(model.parameters, box.values(), strict=True)
        ):
            if upper == "monotonic":
                upper = parameter.high if np.isfinite(parameter.high) else 1e3
                self.turn_up = 3.0 / b_max if b_max > 0 else np.inf
            low[j], high[j] = lower, upper
        self.low, self.high = low, high
        inner = np.sort(np.stack([to_inner(low, self.forms), to_inner(high, self.forms)]), axis=0)
        self.inner_low, self.inner_high = inner
        self.scaled = np.array([parameter.is_amplitude for parameter in model.parameters])
        self.pinned = _pinned(model, fixed, self.forms)
        self.penalty = np.zeros(n)
        self.regularized = bool(regularization)
        if regularization is not None:
            if not (np.isfinite(regularization) and regularization >= 0):
                raise ValueError(
                    f"regularization must be a finite number, 0 or more; got {regularization!r}"
                )
            width = high - low
            bounded = np.isfinite(width) & (width > 0)
            self.penalty[bounded] = regularization / width[bounded] ** 2
        b = _padded(protocol.b_ms_per_um2)
        te = _padded(np.zeros(len(protocol)) if protocol.te is None else protocol.te)
        self.contrasts = np.stack([b, te], axis=1)
        self.b, row_of_b = np.unique(b, return_inverse=True)
        self.te, row_of_te = np.unique(te, return_inverse=True)
        self.rows = np.stack([row_of_b, row_of_te], axis=1)
        if n_starts == "auto":
            n_starts = 1 if n_free <= 2 else 3
        if (
            isinstance(n_starts, bool)
            or not isinstance(n_starts, (int, np.integer))
            or n_starts < 1
        ):
            raise ValueError(f"n_starts must be 'auto' or a whole number from 1, not {n_starts!r}")
        own = self.kernel, model, protocol
        if all(np.ndim(value) == 0 for value in fixed.values()):
            single = tuple(sorted((name, float(value)) for name, value in fixed.items()))
            self.dictionary = _kept(
                *own, tuple(low), tuple(high), single, float(self.turn_up), int(n_starts)
            )
        else:
            self.dictionary = Dictionary(*own, low, high, fixed, self.turn_up, int(n_starts))
        self.n_starts = min(int(n_starts), self.dictionary.n_strata)


@lru_cache(maxsize=32)
def _kept(
    kernel: ModuleType,
    model: SignalModel,
    protocol: Protocol,
    low: tuple[float, ...],
    high: tuple[float, ...],
    fixed: tuple[tuple[str, float], ...],
    turn_up: float,
    n_starts: int,
) -> Dictionary:
    """Make the dictionary, which costs more than the fits where there are few voxels; nothing changes one later."""
    values = {name: np.array(value) for name, value in fixed}
    return Dictionary(
        kernel, model, protocol, np.array(low), np.array(high), values, turn_up, n_starts
    )


def _pinned(model: SignalModel, fixed: dict[str, NDArray], forms: tuple[str, ...]) -> NDArray:
    rows = max([1, *(value.size for value in fixed.values())])
    outer = np.ones((rows, len(model.names)))
    for name, value in fixed.items():
        if value.size:
            outer[:, model.names.index(name)] = value
    inner = to_inner(outer, forms)
    inner[:, [name not in fixed for name in model.names]] = np.nan
    return np.ascontiguousarray(inner)


def _padded(values: NDArray) -> NDArray:
    size = -(-len(values) // UNROLL) * UNROLL
    padded = np.full(size, values[-1], dtype=float)
    padded[: len(values)] = values
    return padded


def _empty_result(problem: _Problem, n: int, fixed: tuple[str, ...]) -> FitResult:
    p = len(problem.model.names)
    return FitResult(
        problem.model,
        parameters=np.empty((n, p)),
        standard_errors=np.empty((n, p)),
        cost=np.empty(n),
        status=np.empty(n, np.uint8),
        n_iter=np.empty(n, np.int32),
        at_low=np.empty((n, p), bool),
        at_high=np.empty((n, p), bool),
        starts_disagree=np.empty(n, bool),
        ill_conditioned=np.empty(n, bool),
        bounds=tuple(zip(problem.low.tolist(), problem.high.tolist(), strict=True)),
        fixed=fixed,
    )


def _default_threads() -> int:
    given = os.environ.get("NUMBA_NUM_THREADS", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    return (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )


def _run(
    signals: NDArray,
    problem: _Problem,
    noise: NDArray | None,
    out: FitResult,
    n_threads: int | None,
) -> None:
    n = len(signals)
    if n_threads is None:
        n_threads = _default_threads()
    if not compiler.is_compiled(problem.kernel):
        _logger.warning(
            "compiling the fit of model %s (once on this machine, about 10 s)", problem.model.name
        )
    kernel, dictionary = problem.kernel, problem.dictionary

    def fit(start: int) -> None:
        part = slice(start, min(start + _CHUNK, n))
        size = part.stop - part.start
        chunk = np.ascontiguousarray(signals[part], dtype=np.float64)
        pinned = problem.pinned if len(problem.pinned) == 1 else problem.pinned[part]
        box = problem.inner_low, problem.inner_high
        scales, usable, n_known = (
            np.empty(size),
            np.empty(size, np.int64),
            np.empty(size, np.int64),
        )
        points = np.empty((size, problem.n_starts, kernel.N))
        n_slots = kernel.prepare(
            chunk,
            problem.n_free,
            problem.scaled,
            *box,
            dictionary.atoms,
            dictionary.n_first,
            dictionary.atoms_q,
            dictionary.gram,
            dictionary.constants,
            np.empty((dictionary.n_strata, 2 * LANES)),
            scales,
            usable,
            n_known,
            points,
        )
        ends = (
            np.empty((n_slots, kernel.N)),
            np.empty((n_slots, kernel.N_PAIRS)),
            np.full(n_slots, np.nan),
        )
        converged, disagree = np.zeros((2, n_slots), bool)
        steps = np.zeros(n_slots, np.int64)
        kernel.search(
            n_slots,
            chunk,
            scales,
            usable,
            points,
            np.zeros(1) if noise is None else (noise if len(noise) == 1 else noise[part]),
            noise is not None,
            *box,
            pinned,
            problem.scaled,
            problem.turn_up,
            problem.regularized,
            problem.penalty,
            problem.low,
            problem.contrasts,
            problem.rows,
            problem.b,
            problem.te,
            _TOLERANCE,
            _MAX_ITER,
            *ends,
            converged,
            steps,
            disagree,
        )
        kernel.finish(
            n_slots,
            scales,
            usable,
            n_known,
            *box,
            problem.low,
            problem.high,
            pinned,
            problem.scaled,
            problem.turn_up,
            *ends,
            converged,
            steps,
            disagree,
            out.parameters[part],
            out.standard_errors[part],
            out.cost[part],
            out.status[part],
            out.n_iter[part],
            out.at_low[part],
            out.at_high[part],
            out.starts_disagree[part],
            out.ill_conditioned[part],
        )

    starts = range(0, n, _CHUNK)
    if n_threads == 1 or len(starts) < 2:
        for start in starts:
            fit(start)
        return
    with ThreadPoolExecutor(n_threads) as pool:
        try:
            for _ in pool.map(fit, starts):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
