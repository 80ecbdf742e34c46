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

from dmrifit.engine.fit_settings import Box, FitSettings
from dmrifit.engine.kernels import compiler
from dmrifit.engine.kernels.layout import LANES, UNROLL
from dmrifit.engine.models import MODELS, SignalModel, resolve_model
from dmrifit.engine.protocol import Protocol
from dmrifit.engine.results import FitResult, FitStatus
from dmrifit.engine.starting_points import Dictionary, to_inner

__all__ = ["FitResult", "FitStatus", "fit_voxels", "fit_with"]

# Voxels that go through the kernel together: their signals stay in the processor's cache.
_CHUNK = 4096
_TOLERANCE = 1e-9
_MAX_ITER = 200
# s/mm²; of 150, 200 and 250 the one with the smallest errors on OSIPI's tissues at SNR 30–100.
_SEGMENT_B = 150.0

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

    Each voxel is fitted by Levenberg–Marquardt steps with analytic derivatives and an active set
    of bounds, from the best entries of a dictionary of signals. The result does not depend on
    which voxels are fitted together, nor on the number of threads.

    Parameters
    ----------
    signals : array_like of shape (n_voxels, n_measurements)
        Magnitudes on any scale. A NaN or infinite one is left out (weight 0); a zero is data. A
        voxel with no positive value, any negative value, all values equal, or fewer usable
        measurements than free parameters is not fitted.
    protocol : Protocol
        The measurements.
    model : str or SignalModel
        A name in `MODELS`, or a model.
    method : {"nlls", "segmented"}, default="nlls"
        ``"nlls"`` fits all parameters at once. ``"segmented"``, for the model "ivim", first fits
        Dt by S0'·exp(−b·Dt) to b ≥ 150 s/mm², where perfusion has died out, then S0, f and Dv with
        that Dt fixed; it is more precise at low SNR, and biased where Dv is slow.
    bounds : mapping of str to (float, float) or "published", optional
        Bounds to use instead of the model's own, by parameter name; ``"published"`` takes those of
        the study's fitting tool. Those of an amplitude (unit "signal") are multiples of the
        voxel's largest signal. The cumulant −bD + K(bD)²/6 of kurtosis models turns up beyond b·D
        = 3/K, so that a large K makes the signal rise again inside the protocol; as in the
        published tool this is not prevented unless the upper bound is ``"monotonic"``, which also
        keeps K ≤ 3/(b_max·D).
    fixed : mapping of str to float or array_like of shape (n_voxels,), optional
        Parameters that are not fitted, with their values in the model's units (an amplitude in the
        signals' units).
    sigma : float or array_like of shape (n_voxels,), optional
        Standard deviation of the noise, in the signals' units. The model is then compared with its
        Rician floor, √(model² + π/2·sigma²).
    regularization : float, optional
        Weight λ of the Tikhonov term λ·Σ((p − low)/(high − low))² over the parameters with finite
        bounds, added to the sum of squares of signals divided by the voxel's largest.
    n_starts : int or "auto", default="auto"
        Starting points per voxel; the best end counts.
    n_threads : int, optional
        Threads; by default the number in the environment variable ``NUMBA_NUM_THREADS``, which
        joblib sets in its workers, or else one for each processor this process may use.

    Returns
    -------
    FitResult
        Parameters, standard errors, cost, status, number of iterations.

    Raises
    ------
    ValueError
        If shapes, names, bounds or units do not fit together, if there are fewer measurements than
        free parameters, or if the model and the protocol disagree about echo times.

    References
    ----------
    Macarro et al., J Magn Reson Imaging 61(2):1018–1021, 2025 (model, bounds and noise floor);
    Marquardt, J SIAM 11:431–441, 1963; Le Bihan et al., Radiology 168:497–505, 1988
    (segmented fit).
    """
    settings = FitSettings(
        method=method,
        bounds=bounds,
        fixed=fixed,
        sigma=sigma,
        regularization=regularization,
        n_starts=n_starts,
        n_threads=n_threads,
    )
    return fit_with(signals, protocol, model, settings)


def fit_with(
    signals: ArrayLike, protocol: Protocol, model: str | SignalModel, settings: FitSettings
) -> FitResult:
    """
    Fit a signal model to every voxel with the settings of `fit_voxels` as one object.

    Shapes: `signals` (n_voxels, n_measurements).
    """
    model = resolve_model(model)
    signals = np.asarray(signals)
    _check_measurements(signals, protocol, model)
    settings.check()
    if settings.method == "segmented":
        return _fit_segmented(signals, protocol, model, settings)
    n_voxels = len(signals)
    box = settings.box(model)
    fixed = settings.fixed_values(model, n_voxels, box)
    n_free = len(model.names) - len(fixed)
    if len(protocol) < n_free:
        raise ValueError(
            f"{len(protocol)} measurements cannot determine {n_free} free parameters of "
            f"{model.name}; fix some, or measure more"
        )
    problem = _Problem(model, protocol, settings, box, fixed)
    noise = settings.noise_levels(n_voxels)
    result = _empty_result(problem, n_voxels, tuple(fixed))
    _run(signals, problem, noise, result, settings.n_threads)
    return result


def _fit_segmented(
    signals: NDArray, protocol: Protocol, model: SignalModel, settings: FitSettings
) -> FitResult:
    """Fit Dt where perfusion has died out, and the other parameters with that Dt fixed."""
    fixed = settings.fixed or {}
    if model != MODELS["ivim"]:
        raise ValueError(
            f"the segmented fit is for the model 'ivim', not {model.name!r}; use method='nlls'"
        )
    if "Dt" in fixed:
        raise ValueError(
            "Dt cannot be fixed in a segmented fit, which determines it first; use method='nlls'"
        )
    high_b = protocol.b >= _SEGMENT_B
    if len(np.unique(protocol.b[high_b])) < 2:
        raise ValueError(
            f"a segmented fit needs two b-values of {_SEGMENT_B:g} s/mm² or more; "
            f"there are {protocol.b[high_b].tolist()}"
        )
    box = settings.box(model)
    tissue = fit_with(
        signals[:, high_b],
        protocol.take(np.flatnonzero(high_b)),
        "adc",
        FitSettings(bounds={"ADC": box["Dt"]}, sigma=settings.sigma, n_threads=settings.n_threads),
    )
    has_dt = tissue.status != FitStatus.NOT_FITTED
    # A fixed value must be finite; voxels without Dt have no signal, so theirs is never used.
    dt = np.where(has_dt, tissue["ADC"], 1.0)
    result = fit_with(
        np.where(has_dt[:, None], signals, np.nan),
        protocol,
        model,
        replace(settings, method="nlls", bounds=box, fixed={**fixed, "Dt": dt}),
    )
    _add_tissue_fit(result, tissue)
    return replace(result, fixed=tuple(fixed))


def _add_tissue_fit(result: FitResult, tissue: FitResult) -> None:
    """Write into a fit with Dt fixed how the first fit determined that Dt."""
    dt = result.names.index("Dt")
    adc = tissue.names.index("ADC")
    failed = result.status == FitStatus.NOT_FITTED
    result.standard_errors[:, dt] = np.where(failed, np.nan, tissue.standard_errors[:, adc])
    result.at_low[:, dt] = tissue.at_low[:, adc]
    result.at_high[:, dt] = tissue.at_high[:, adc]
    # The worse status of the two fits counts.
    at_bound = (result.status == FitStatus.CONVERGED) & (tissue.status == FitStatus.AT_BOUND)
    result.status[at_bound] = FitStatus.AT_BOUND
    solved = (result.status == FitStatus.CONVERGED) | (result.status == FitStatus.AT_BOUND)
    result.status[solved & (tissue.status == FitStatus.NOT_CONVERGED)] = FitStatus.NOT_CONVERGED
    result.n_iter[:] += np.where(failed, 0, tissue.n_iter)


def _check_measurements(signals: NDArray, protocol: Protocol, model: SignalModel) -> None:
    if signals.ndim != 2 or signals.shape[1] != len(protocol):
        raise ValueError(
            f"signals must have shape (n_voxels, {len(protocol)}), one column for each "
            f"measurement; got {signals.shape}"
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


class _Problem:
    """A fit without its signals: the values common to all voxels, as the kernel takes them."""

    def __init__(
        self,
        model: SignalModel,
        protocol: Protocol,
        settings: FitSettings,
        box: Box,
        fixed: dict[str, NDArray],
    ) -> None:
        self.model = model
        self.kernel = compiler.load(model)
        self.n_free = len(model.names) - len(fixed)
        self._set_bounds(protocol, box)
        self.scaled = np.array([parameter.is_amplitude for parameter in model.parameters])
        self.pinned = _pinned(model, fixed, self.kernel.FORMS)
        self.regularized = bool(settings.regularization)
        self.penalty = settings.penalty(self.low, self.high)
        self._set_contrasts(protocol)
        self._set_dictionary(protocol, fixed, settings.starts(self.n_free))

    def _set_bounds(self, protocol: Protocol, box: Box) -> None:
        n_parameters = len(self.model.names)
        self.low = np.empty(n_parameters)
        self.high = np.empty(n_parameters)
        self.turn_up = np.inf
        b_max = float(protocol.b_ms_per_um2.max())
        for j, parameter in enumerate(self.model.parameters):
            lower, upper = box[parameter.name]
            if upper == "monotonic":
                # The limit 3/(b·D) moves with D; the search needs a fixed bound beside it.
                upper = parameter.high if np.isfinite(parameter.high) else 1e3
                if b_max > 0:
                    self.turn_up = 3.0 / b_max
            self.low[j] = lower
            self.high[j] = upper
        ends = np.stack([self.low, self.high])
        # The inverse of a relaxation time swaps its bounds.
        self.inner_low, self.inner_high = np.sort(to_inner(ends, self.kernel.FORMS), axis=0)

    def _set_contrasts(self, protocol: Protocol) -> None:
        b = _padded(protocol.b_ms_per_um2)
        te = _padded(np.zeros(len(protocol)) if protocol.te is None else protocol.te)
        self.contrasts = np.stack([b, te], axis=1)
        # Exponentials of b alone and of TE alone are computed once for each distinct value.
        self.b, row_of_b = np.unique(b, return_inverse=True)
        self.te, row_of_te = np.unique(te, return_inverse=True)
        self.rows = np.stack([row_of_b, row_of_te], axis=1)

    def _set_dictionary(
        self, protocol: Protocol, fixed: dict[str, NDArray], n_starts: int
    ) -> None:
        if all(value.ndim == 0 for value in fixed.values()):
            self.dictionary = _cached_dictionary(
                self.kernel,
                self.model,
                protocol,
                tuple(self.low),
                tuple(self.high),
                tuple(sorted((name, float(value)) for name, value in fixed.items())),
                self.turn_up,
                n_starts,
            )
        else:
            self.dictionary = Dictionary(
                self.kernel,
                self.model,
                protocol,
                self.low,
                self.high,
                fixed,
                self.turn_up,
                n_starts,
            )
        self.n_starts = min(n_starts, self.dictionary.n_strata)


# A dictionary costs more than the fits where there are few voxels, and nothing changes one later.
@lru_cache(maxsize=32)
def _cached_dictionary(
    kernel: ModuleType,
    model: SignalModel,
    protocol: Protocol,
    low: tuple[float, ...],
    high: tuple[float, ...],
    fixed: tuple[tuple[str, float], ...],
    turn_up: float,
    n_starts: int,
) -> Dictionary:
    """Make the dictionary of a fit whose fixed values are the same for all voxels."""
    values = {name: np.array(value) for name, value in fixed}
    return Dictionary(
        kernel, model, protocol, np.array(low), np.array(high), values, turn_up, n_starts
    )


def _pinned(model: SignalModel, fixed: dict[str, NDArray], forms: tuple[str, ...]) -> NDArray:
    """
    Turn fixed values into inner coordinates; NaN marks a parameter that is fitted.

    Shapes: returns (1 or n_voxels, n_parameters).
    """
    n_rows = max([1, *(value.size for value in fixed.values())])
    outer = np.ones((n_rows, len(model.names)))
    for name, value in fixed.items():
        if value.size:
            outer[:, model.names.index(name)] = value
    pinned = to_inner(outer, forms)
    pinned[:, [name not in fixed for name in model.names]] = np.nan
    return np.ascontiguousarray(pinned)


def _padded(values: NDArray) -> NDArray:
    """Repeat the last value up to a multiple of the measurements that the kernel unrolls."""
    size = -(-len(values) // UNROLL) * UNROLL
    padded = np.full(size, values[-1], dtype=float)
    padded[: len(values)] = values
    return padded


def _empty_result(problem: _Problem, n_voxels: int, fixed: tuple[str, ...]) -> FitResult:
    shape = (n_voxels, len(problem.model.names))
    return FitResult(
        problem.model,
        parameters=np.empty(shape),
        standard_errors=np.empty(shape),
        cost=np.empty(n_voxels),
        status=np.empty(n_voxels, np.uint8),
        n_iter=np.empty(n_voxels, np.int32),
        at_low=np.empty(shape, bool),
        at_high=np.empty(shape, bool),
        starts_disagree=np.empty(n_voxels, bool),
        ill_conditioned=np.empty(n_voxels, bool),
        bounds=tuple(zip(problem.low.tolist(), problem.high.tolist(), strict=True)),
        fixed=fixed,
    )


def _default_threads() -> int:
    setting = os.environ.get("NUMBA_NUM_THREADS", "")
    if setting.isdecimal() and int(setting) > 0:
        return int(setting)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _run(
    signals: NDArray,
    problem: _Problem,
    noise: NDArray | None,
    result: FitResult,
    n_threads: int | None,
) -> None:
    """Fit the voxels chunk by chunk, several chunks at a time, into the arrays of the result."""
    if n_threads is None:
        n_threads = _default_threads()
    if not compiler.is_compiled(problem.kernel):
        _logger.warning(
            "compiling the fit of model %s (once on this machine, about 10 s)", problem.model.name
        )

    def fit_chunk(start: int) -> None:
        chunk = slice(start, min(start + _CHUNK, len(signals)))
        _fit_chunk(chunk, signals, problem, noise, result)

    starts = range(0, len(signals), _CHUNK)
    if n_threads == 1 or len(starts) < 2:
        for start in starts:
            fit_chunk(start)
        return
    with ThreadPoolExecutor(n_threads) as pool:
        try:
            for _ in pool.map(fit_chunk, starts):
                pass
        except BaseException:
            # Without this an interrupted fit would first work through all chunks that wait.
            pool.shutdown(cancel_futures=True)
            raise


def _fit_chunk(
    chunk: slice, signals: NDArray, problem: _Problem, noise: NDArray | None, result: FitResult
) -> None:
    """Take a chunk of voxels through the three steps of the kernel."""
    kernel, dictionary = problem.kernel, problem.dictionary
    n_voxels = chunk.stop - chunk.start
    values = np.ascontiguousarray(signals[chunk], dtype=np.float64)
    pinned = _rows_of(problem.pinned, chunk)
    sigma = np.zeros(1) if noise is None else _rows_of(noise, chunk)
    box = problem.inner_low, problem.inner_high
    scales = np.empty(n_voxels)
    usable = np.empty(n_voxels, np.int64)
    n_measured = np.empty(n_voxels, np.int64)
    points = np.empty((n_voxels, problem.n_starts, kernel.N))
    n_slots = kernel.prepare(
        values,
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
        n_measured,
        points,
    )
    ends = np.empty((n_slots, kernel.N))
    sums = np.empty((n_slots, kernel.N_PAIRS))
    # Stays NaN where no start has a finite signal.
    squares = np.full(n_slots, np.nan)
    converged, disagree = np.zeros((2, n_slots), bool)
    steps = np.zeros(n_slots, np.int64)
    kernel.search(
        n_slots,
        values,
        scales,
        usable,
        points,
        sigma,
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
        ends,
        sums,
        squares,
        converged,
        steps,
        disagree,
    )
    kernel.finish(
        n_slots,
        scales,
        usable,
        n_measured,
        *box,
        problem.low,
        problem.high,
        pinned,
        problem.scaled,
        problem.turn_up,
        ends,
        sums,
        squares,
        converged,
        steps,
        disagree,
        result.parameters[chunk],
        result.standard_errors[chunk],
        result.cost[chunk],
        result.status[chunk],
        result.n_iter[chunk],
        result.at_low[chunk],
        result.at_high[chunk],
        result.starts_disagree[chunk],
        result.ill_conditioned[chunk],
    )


def _rows_of(values: NDArray, chunk: slice) -> NDArray:
    """Cut the rows of a chunk, unless one row holds for all voxels."""
    return values if len(values) == 1 else values[chunk]
