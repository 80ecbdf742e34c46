"""Voxelwise fits of signal models: bounded nonlinear least squares."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit._utils.checks import filled
from dmrifit._utils.counts import counted
from dmrifit._utils.threads import run_in_chunks
from dmrifit.engine.fit_problem import COLUMNS, Problem, routing_weights
from dmrifit.engine.fit_settings import (
    DEFAULT_THRESHOLD,
    MEASURED,
    ROUTED_STARTS,
    FitSettings,
    can_segment,
)
from dmrifit.engine.intervals import FitInputs
from dmrifit.engine.kernels import compiler
from dmrifit.engine.means import mean_of_finite, rounded
from dmrifit.engine.methods.loglinear import fit_log_linear
from dmrifit.engine.methods.prior import Prior, prior_of
from dmrifit.engine.methods.refinement import (
    LINE,
    Coordinates,
    Refinement,
    Search,
    inverse_of_free,
)
from dmrifit.engine.methods.rician import make_likelihood
from dmrifit.engine.models import MODELS, SignalModel, check_echo_times, resolve_model
from dmrifit.engine.noise_choice import (
    NOISE_OF_AIR,
    NoiseLevel,
    above_air,
    directions_vary,
    lowest_signals,
    needs_floor,
    noise_of_repeats,
    noise_of_residuals,
    segmented_threshold,
    spread_rows,
    typical_snr,
)
from dmrifit.engine.protocol import ZERO_B, Protocol, check_columns, check_protocol
from dmrifit.engine.results import FitResult, FitStatus, mark_not_fitted, unfilled_result
from dmrifit.engine.screening import Screen

__all__ = ["fit_voxels"]

# Voxels that go through the kernel together. At the end of a chunk lanes wait for the slowest
# voxel, which costs 4 % with half as many; their signals stay in the second cache.
_CHUNK = 8192
_REFINED_CHUNK = 1024  # the derivatives of so many voxels stay in the processor's cache

_logger = logging.getLogger("dmrifit")


def fit_voxels(
    signals: ArrayLike,
    protocol: Protocol,
    model: str | SignalModel,
    *,
    method: str | None = None,
    bounds: Mapping[str, tuple[float, float | str]] | str | None = None,
    fixed: Mapping[str, ArrayLike | str] | None = None,
    sigma: ArrayLike | None = None,
    likelihood: str = "gaussian",
    threshold: float | None = None,
    weights: ArrayLike | None = None,
    prior: Prior | None = None,
    regularization: float | None = None,
    n_starts: int | str = "auto",
    n_threads: int | None = None,
) -> FitResult:
    """
    Fit a signal model to every voxel, by default by bounded nonlinear least squares.

    Each voxel is fitted by Levenberg–Marquardt steps with analytic derivatives and an active set
    of bounds, from the best entries of a dictionary of signals. Unless `method`, `threshold` or
    `likelihood` is given, the noise is measured first, by repeats at b = 0 or by residuals, and
    chooses the steps of IVIM, and in models with a kurtosis a noise floor for voxels of fluid near
    the noise; `FitResult.noise` holds it. But for that noise, which is that of all voxels in any
    order, the result does not depend on which voxels are fitted together, nor on threads.

    Parameters
    ----------
    signals : array_like of shape (n_voxels, n_measurements)
        Signals on any scale. Negative values are data, as real-valued and interpolated scans have
        them. Values that are not finite or masked (`numpy.ma`), and zeros outside the field of
        view of their volume (see `FitResult.screening`), are left out up to a fifth of the
        voxel's values; other zeros are data. A voxel is not fitted with more values left out, no
        positive value, all values equal, or fewer usable measurements than free parameters.
    protocol : Protocol
        The measurements.
    model : str or SignalModel
        A name in `MODELS`, or a model.
    method : {"nlls", "ols", "wls", "segmented", "map"}, optional
        By default chosen by the noise, which the result names: "nlls", but for the model "ivim",
        where the SNR of the least weighted signals is below 90 (for 12 measurements),
        "segmented".

        * ``"nlls"`` fits all parameters at once by bounded nonlinear least squares.
        * ``"ols"`` fits the logarithm of the signal by ordinary least squares, as scanners and
          MRtrix compute an ADC; for the models "adc", "kurtosis" and others that are linear in the
          logarithm. Nothing is bounded: a signal that rises with b has a negative ADC, and K may
          exceed 3/(b_max·D).
        * ``"wls"`` does so with weights S², and twice more with those of the fitted signals, as
          MRtrix's dwi2tensor; it is less biased at low SNR. Both leave out values ≤ 0, which
          have no logarithm.
        * ``"segmented"``, for the model "ivim", first fits Dt by S0'·exp(−b·Dt) to
          b ≥ `threshold`, where perfusion has died out, then S0, f and Dv with that Dt fixed; it
          is more precise at low SNR, and biased where Dv is slow. Where the protocol lacks those
          b-values, Dt is fixed or the noise cannot be measured, the default is ``"nlls"``.
        * ``"map"`` takes the parameters of all voxels as draws of one normal distribution, learned
          from them (see `Prior`), and pulls each voxel toward its mean, the more the less its
          signals say. A lesion that differs from the region loses contrast: not for its tables.
    bounds : mapping of str to (float, float) or "published", optional
        Bounds to use instead of the model's own, by parameter name; ``"published"`` takes those of
        the study's fitting tool. Those of an amplitude (unit "signal") are multiples of the
        voxel's largest signal. The cumulant −bD + K(bD)²/6 of kurtosis models turns up beyond b·D
        = 3/K, so that a large K makes the signal rise again inside the protocol. The upper bound
        ``"monotonic"`` also keeps K ≤ 3/(b_max·D), and a K there is at its upper bound. It is the
        default of the model "kurtosis" (a number in its place lifts it); with
        "t2-ivim-kurtosis", as in the published tool, a rise is not prevented unless asked.
        Methods "ols" and "wls" have no bounds; "map" has no ``"monotonic"`` ones.
    fixed : mapping of str to float, array_like of shape (n_voxels,) or "measured", optional
        Parameters that are not fitted, with their values in the model's units (an amplitude in the
        signals' units). ``{"S0": "measured"}`` takes the mean of the signals at b < 10 s/mm² as
        exact: its noise is in no error or interval.
    sigma : float or array_like of shape (n_voxels,), optional
        Standard deviation of the noise, in the signals' units. The model is then compared with its
        Rician floor, √(model² + π/2·sigma²), as published; it overstates the excess of a
        magnitude over the signal, most where they are equal to sigma.
    likelihood : {"gaussian", "rician", "rician-mean"}, default="gaussian"
        Distribution of the noise, the last two with `sigma`. ``"rician"`` is that of single
        magnitudes of one receiver channel; averaged, denoised or sum-of-squares magnitudes do not
        have it, and a voxel with a negative value is not fitted. ``"rician-mean"`` is for averages
        of many magnitudes, such as over directions: Gaussian about their expectation,
        σ√(π/2)·₁F₁(−½; 1; −S²/2σ²), `sigma` still being that of a single magnitude. With "rician"
        the standard errors come from the Fisher information.
    threshold : float, optional
        Lowest b-value in s/mm² of the first step of a segmented fit; by default the first one from
        20 plus 1.5 times the SNR on (for 12 measurements; other numbers count by their root) where
        the noise is measured, or else 150.
    weights : array_like of shape (n_measurements,), optional
        Weights of the measurements in the sum of squares, such as numbers of averages.
    prior : Prior, optional
        For ``method="map"``, one that was learned before; by default it is learned from `signals`.
    regularization : float, optional
        Weight λ of the Tikhonov term λ·Σ((p − low)/(high − low))² over the parameters with finite
        bounds, added to the sum of squares of signals divided by the voxel's largest.
    n_starts : int, "auto" or "thorough", default="auto"
        Starting points per voxel; the best end counts. With ``"auto"`` every voxel is fitted from
        one, and those whose first fit looks as if another start would end better get two more;
        with ``"thorough"`` they get five. A score tells: it was learned from simulated voxels of
        the model, the protocol and the bounds, takes about half a second the first time, and is
        kept beside the compiled fit. A number gives every voxel that many, as do values of
        ``fixed`` for each voxel and a model that calls a function.
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
    (segmented fit); Gudbjartsson and Patz, Magn Reson Med 34:910–914, 1995 (Rician noise); Veraart
    et al., NeuroImage 81:335–346, 2013 (iterated weights); Orton et al., Magn Reson Med
    71:411–420, 2014 (learned prior).

    Examples
    --------
    >>> result = fit_voxels([[1000.0, 818.7, 449.3]], Protocol([0, 200, 800]), "adc")
    >>> result["ADC"].round(2).tolist()
    [1.0]
    """
    settings = FitSettings(
        method=method,
        bounds=bounds,
        fixed=fixed,
        sigma=sigma,
        likelihood=likelihood,
        threshold=threshold,
        weights=weights,
        prior=prior,
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
    check_protocol(protocol)
    model = resolve_model(model)
    measured = np.asarray(filled(signals))
    if measured.dtype.kind == "f" and measured.dtype.itemsize > 8:
        with np.errstate(over="ignore"):
            measured = measured.astype(np.float64)
    check_columns(measured, protocol, "signals")
    if measured.dtype.kind not in "fiu":
        raise ValueError(f"signals must be real numbers (magnitudes), not {measured.dtype}")
    check_echo_times(protocol, model)
    settings.check()
    method = settings.method_for(model, protocol)
    is_log_linear = method in ("ols", "wls")
    fixed = settings.fixed or {}
    screen = Screen(
        protocol,
        len(model.names) - len(fixed),
        is_rician=settings.likelihood == "rician",
        needs_logarithms=is_log_linear,
        needs_amplitude=any(isinstance(v, str) and v == MEASURED for v in fixed.values()),
    )
    usable, screening = screen.apply(measured, settings.n_threads)
    if is_log_linear:
        weights = settings.measurement_weights(len(protocol))
        result = fit_log_linear(usable, protocol, model, method, weights, settings.n_threads)
    else:
        noise, snr = noise_and_snr(usable, protocol, model, settings)
        if settings.is_automatic and settings.sigma is None:
            settings = replace(settings, noise=noise)
        settings = by_snr(settings, model, protocol, snr)
        result = _fit_screened(usable, protocol, model, settings)
        if settings.noise is not None:
            result = _with_floor(result, settings)
        if settings.is_denoised:
            result = _with_noise_before(result, settings)
    return replace(result, screening=screening, threshold=settings.threshold)


def noise_and_snr(
    signals: NDArray, protocol: Protocol, model: SignalModel, settings: FitSettings
) -> tuple[float | None, float | None]:
    """
    Measure the noise and the SNR that choose the fit; None where unknown, or nothing is chosen.

    Shapes: `signals` (n_voxels, n_measurements).
    """
    has_choice = model == MODELS["ivim"] or model.cumulant is not None
    if not (settings.is_automatic and has_choice):
        return None, None
    # Values for each voxel are checked before some of them are taken.
    levels = settings.noise_levels(len(signals))
    numbers = {k: v for k, v in (settings.fixed or {}).items() if not isinstance(v, str)}
    replace(settings, fixed=numbers).fixed_values(model, len(signals), settings.box(model))
    rows = spread_rows(signals)
    if levels is None:
        level = measured_noise(signals[rows], protocol, model, _of_rows(settings, rows))
        noise = None if level is None else float(level.sigma)
    else:
        noise = float(np.median(levels))
    snr = typical_snr(lowest_signals(signals[rows], protocol), noise) if noise else None
    return noise, snr


def by_snr(
    settings: FitSettings, model: SignalModel, protocol: Protocol, snr: float | None
) -> FitSettings:
    """Fill in the method that settings leave open, by the SNR of single signals if it is known."""
    if not settings.is_automatic:
        if settings.method == "segmented" and settings.threshold is None:
            return replace(settings, threshold=DEFAULT_THRESHOLD)
        return settings
    threshold = None
    if snr is not None and model == MODELS["ivim"] and "Dt" not in (settings.fixed or {}):
        threshold = segmented_threshold(snr, len(protocol) * settings.n_averaged, protocol)
    if threshold is not None:
        return replace(settings, method="segmented", threshold=threshold)
    return replace(settings, method=settings.method_for(model, protocol))


def measured_noise(
    signals: NDArray, protocol: Protocol, model: SignalModel, settings: FitSettings
) -> NoiseLevel | None:
    """
    Measure the noise of tissue by repeats or, without them, residuals; None if neither tells it.

    Residuals hold less than the noise where signals are near it.
    """
    lowest = lowest_signals(signals, protocol)
    bright = above_air(lowest)
    level = _noise_of_all(signals[bright], protocol, model, _of_rows(settings, bright))
    # Air that is not much darker than the tissue makes the noise of all seem smaller.
    brightest = above_air(lowest, 0.0 if level is None else float(level.sigma) / NOISE_OF_AIR)
    if level is None or (brightest == bright).all():
        return level
    settings = _of_rows(settings, brightest)
    of_tissue = _noise_of_all(signals[brightest], protocol, model, settings) or level
    return level if above_air(lowest, float(of_tissue.sigma)).all() else of_tissue


def _noise_of_all(
    signals: NDArray, protocol: Protocol, model: SignalModel, settings: FitSettings
) -> NoiseLevel | None:
    levels = [noise_of_repeats(signals, protocol)]
    if not directions_vary(protocol) and settings.n_averaged == 1:
        plain = replace(settings, method="nlls", sigma=None, noise=None)
        residuals = noise_of_residuals(_fit_screened(signals, protocol, model, plain))
        levels.append(NoiseLevel(residuals, "residuals of the fit"))
    return next((level for level in levels if level.sigma > 0), None)


def _with_floor(result: FitResult, settings: FitSettings) -> FitResult:
    """Fit the voxels again whose kurtosis may come from the noise floor, with that floor."""
    assert settings.noise is not None
    assert result.inputs is not None
    signals, protocol = result.inputs.signals, result.inputs.protocol
    noise = settings.noise
    near = needs_floor(result, noise)
    inputs = replace(result.inputs, noise=noise / np.sqrt(settings.n_averaged))
    result = replace(result, noise=noise, inputs=inputs)
    rows = np.flatnonzero(near)
    if not rows.size:
        return result
    settings = _of_rows(settings, rows)
    if isinstance(settings.n_starts, str):
        # To learn which voxels need other starts takes longer than all starts of these few.
        settings = replace(settings, n_starts=ROUTED_STARTS[settings.n_starts])
    settings = replace(settings, sigma=noise, noise=None)
    floored = _fit_screened(signals[rows], protocol, result.model, settings)
    for name in COLUMNS:
        getattr(result, name)[rows] = getattr(floored, name)
    return replace(result, inputs=replace(inputs, sigma=np.where(near, noise, 0.0)))


def _with_noise_before(result: FitResult, settings: FitSettings) -> FitResult:
    """
    Take errors and intervals from the noise before denoising, where residuals are smaller.

    Denoising keeps the noise of the components that it keeps, in which the parameters lie.
    """
    inputs = result.inputs
    if inputs is None or inputs.sigma is None:
        return result
    # With a prior, errors come from sigma already.
    if settings.method != "map":
        share = np.sqrt(result.reduced_chi2)
        share = np.where(np.isfinite(share), np.clip(share, 1e-9, 1), 1)
        result.standard_errors[:] /= share[:, None]
    known = inputs.sigma / np.sqrt(settings.n_averaged)
    return replace(result, inputs=replace(inputs, noise=known, is_denoised=True))


def _of_rows(settings: FitSettings, rows: NDArray) -> FitSettings:
    """Restrict fixed values that differ between voxels to some of the voxels."""
    fixed = {
        name: value if isinstance(value, str) or np.size(value) < 2 else np.asarray(value)[rows]
        for name, value in (settings.fixed or {}).items()
    }
    return replace(settings, fixed=fixed)


def _fit_screened(
    signals: NDArray, protocol: Protocol, model: str | SignalModel, settings: FitSettings
) -> FitResult:
    """Fit all finite values by nonlinear least squares, or by a method that starts from there."""
    model = resolve_model(model)
    method = settings.method_for(model, protocol)
    weights = settings.measurement_weights(len(protocol))
    sigma, n_threads = settings.noise_levels(len(signals)), settings.n_threads
    # Averages have less noise than the volumes, of which sigma is.
    known = None if sigma is None else sigma / np.sqrt(settings.n_averaged)
    inputs = FitInputs(signals, protocol, sigma, weights=weights, n_threads=n_threads, noise=known)
    settings = _with_measured_amplitude(signals, protocol, model, replace(settings, method=method))
    if method == "segmented":
        result = _fit_segmented(signals, protocol, model, settings)
        return replace(result, inputs=inputs)
    if method == "map" or settings.likelihood != "gaussian":
        start = _fit_screened(signals, protocol, model, _least_squares_of(settings, model))
        return _refine_fit(start, settings)
    n_voxels = len(signals)
    box = settings.box(model)
    fixed = settings.fixed_values(model, n_voxels, box)
    n_free = len(model.names) - len(fixed)
    if len(protocol) < n_free:
        raise ValueError(
            f"{counted(len(protocol), 'measurement')} cannot determine "
            f"{counted(n_free, 'free parameter')} of {model.name}; fix some, or measure more"
        )
    problem = Problem(model, protocol, settings, box, fixed)
    bounds = tuple(zip(problem.low.tolist(), problem.high.tolist(), strict=True))
    result = unfilled_result(model, n_voxels, bounds=bounds, fixed=tuple(fixed))
    mark_not_fitted(result, slice(None))
    _run(signals, problem, inputs.sigma, result, settings.n_threads)
    return replace(result, inputs=replace(inputs, turn_up=problem.turn_up))


def _fit_segmented(
    signals: NDArray, protocol: Protocol, model: SignalModel, settings: FitSettings
) -> FitResult:
    """Fit Dt to the b-values from the threshold on, then the others with that Dt fixed."""
    fixed = settings.fixed or {}
    if model != MODELS["ivim"]:
        raise ValueError(
            f"the segmented fit is for the model 'ivim', not {model.name!r}; leave out threshold "
            "(--threshold) or method 'segmented' (--method)"
        )
    if "Dt" in fixed:
        raise ValueError(
            "Dt cannot be fixed in a segmented fit, which determines it first; use method 'nlls'"
        )
    threshold = settings.threshold or DEFAULT_THRESHOLD
    high_b = np.flatnonzero(protocol.b >= threshold)
    if not can_segment(protocol, threshold):
        raise ValueError(
            f"a segmented fit needs two b-values of {threshold:g} s/mm² or more, and the protocol "
            f"has {len(np.unique(protocol.b[high_b]))}; choose another threshold, or use "
            "method 'nlls'"
        )
    box = settings.box(model)
    weights = settings.measurement_weights(len(protocol))
    tissue = _fit_screened(
        signals[:, high_b],
        protocol.take(high_b),
        "adc",
        FitSettings(
            method="nlls",
            bounds={"ADC": box["Dt"]},
            sigma=settings.sigma,
            weights=None if weights is None else weights[high_b],
            n_threads=settings.n_threads,
        ),
    )
    is_measured = np.isfinite(signals[:, high_b])
    high = protocol.b[high_b]
    n_levels = sum(is_measured[:, high == b].any(axis=1) for b in np.unique(high))
    # Dt cannot be told from S0 by one b-value, where the others were left out.
    has_dt = (tissue.status != FitStatus.NOT_FITTED) & (n_levels >= 2)
    # A fixed value must be finite; voxels without Dt have no signal, so theirs is never used.
    dt = np.where(has_dt, tissue["ADC"], 1.0)
    result = _fit_screened(
        np.where(has_dt[:, None], signals, np.nan),
        protocol,
        model,
        replace(settings, method="nlls", threshold=None, bounds=box, fixed={**fixed, "Dt": dt}),
    )
    # How the first fit determined Dt.
    failed = result.status == FitStatus.NOT_FITTED
    carry = partial(_carry_error, result, tissue, protocol.b >= threshold)
    run_in_chunks(carry, len(signals), _REFINED_CHUNK, settings.n_threads)
    result.at_low[:, 3], result.at_high[:, 3] = tissue.at_low[:, 1], tissue.at_high[:, 1]
    # The worse status of the two fits counts.
    at_bound = (result.status == FitStatus.CONVERGED) & (tissue.status == FitStatus.AT_BOUND)
    result.status[at_bound] = FitStatus.AT_BOUND
    is_stuck = ~failed & (tissue.status == FitStatus.NOT_CONVERGED)
    result.status[is_stuck] = FitStatus.NOT_CONVERGED
    result.n_iter[:] += np.where(failed, 0, tissue.n_iter)
    return replace(result, fixed=tuple(fixed), method="segmented")


def _carry_error(result: Any, tissue: FitResult, is_high: NDArray, rows: slice) -> None:
    """
    Set the standard error of Dt in some rows, and add it to those of the second step.

    Both steps are taken as one set of equations, of which those of the second contain Dt of the
    first: the errors are those of its sandwich estimator. Shapes: `is_high` (n_measurements,), the
    measurements of the first step.
    """
    inputs, b = result.inputs, result.inputs.protocol.b_ms_per_um2
    used = np.isfinite(inputs.signals[rows]) * (1.0 if inputs.weights is None else inputs.weights)
    s0, f, dv, dt = (column[:, None] for column in result.parameters[rows].T)
    fast, slow = np.exp(-b * dv), np.exp(-b * dt)
    # Derivatives by S0, f and Dv, those of the first step, and of the second by Dt.
    slopes = [f * fast + (1 - f) * slow, s0 * (fast - slow), -b * s0 * f * fast, is_high * slow]
    slopes += [-b * tissue.parameters[rows, :1] * slopes[3], -b * s0 * (1 - f) * slow]
    jacobian = np.stack(slopes, axis=-1)
    products = np.swapaxes(jacobian * used[..., None], 1, 2) @ jacobian
    equations = products[:, :5, :5].copy()
    equations[:, 3:, :3] = equations[:, :3, 3] = 0
    equations[:, :3, 4] = products[:, :3, 5]
    known = (result.at_low | result.at_high)[rows] | result.is_known
    held = (tissue.at_low | tissue.at_high)[rows]
    inverse = inverse_of_free(equations, np.hstack([known[:, :3], held]))
    variance = np.einsum("nij,nij->ni", inverse @ products[:, :5, :5], inverse)
    spare = (used > 0).sum(axis=1) - (~known[:, :3]).sum(axis=1) - 1
    errors, is_open = result.standard_errors[rows], (spare > 0) & ~held[:, 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        # Other processors add in another order.
        factors = rounded(np.sqrt(variance / np.einsum("nii->ni", inverse)))[:, :3]
        errors[:, :3] *= np.where(factors > 0, factors, 1)
        squares = variance[:, 4] * result.cost[rows] / spare
        errors[:, 3] = np.where(is_open, rounded(np.sqrt(squares)), np.nan)


def _with_measured_amplitude(
    signals: NDArray, protocol: Protocol, model: SignalModel, settings: FitSettings
) -> FitSettings:
    """Put the mean of the signals without diffusion weighting in the place of "measured"."""
    fixed: Mapping = settings.fixed or {}
    names = [
        parameter.name
        for parameter in model.parameters
        if parameter.is_amplitude and str(fixed.get(parameter.name)) == MEASURED
    ]
    if not names:
        return settings
    unweighted = protocol.b < ZERO_B
    if not unweighted.any():
        raise ValueError(
            f"{names[0]} cannot be fixed at the measured signal: no b-value is below "
            f"{ZERO_B:g} s/mm²; give a number, or leave it free"
        )
    if model.needs_te:
        raise ValueError(
            f"{names[0]} of {model.name} is the signal at echo time 0, which is not measured; "
            "give a number, or leave it free"
        )
    mean = mean_of_finite(np.asarray(signals[:, unweighted], dtype=float))
    # Voxels without such a signal are not fitted by their status; the number is not used.
    measured = np.where(mean > 0, mean, 1.0)
    return replace(settings, fixed={**fixed, **dict.fromkeys(names, measured)})


def learn_prior(
    signals: ArrayLike, protocol: Protocol, model: str | SignalModel, settings: FitSettings
) -> Prior:
    """
    Learn the prior of `fit_voxels(..., method="map")` from voxels, for fits of others with it.

    Shapes: `signals` (n_voxels, n_measurements).
    """
    model = resolve_model(model)
    start = fit_with(signals, protocol, model, _least_squares_of(settings, model))
    return prior_of(start, settings.n_averaged)


def _run(
    signals: NDArray,
    problem: Problem,
    noise: NDArray | None,
    result: FitResult,
    n_threads: int | None,
) -> None:
    """Fit the voxels chunk by chunk, several chunks at a time, into the arrays of the result."""
    if not compiler.is_compiled(problem.kernel):
        _logger.warning(
            "compiling the fit of model %s, once on this machine: about 7 s for the first model, "
            "1 s for others",
            problem.model.name,
        )
    weights = routing_weights(problem, floored=noise is not None)

    def fit_chunk(chunk: slice) -> None:
        pinned = _rows_of(problem.pinned, chunk)
        sigma = None if noise is None else _rows_of(noise, chunk)
        starts = problem.prepare(signals[chunk])
        ends = problem.search(starts, pinned, sigma, weights)
        problem.finish(starts, ends, pinned, chunk, result)

    run_in_chunks(fit_chunk, len(signals), _CHUNK, n_threads)


def _rows_of(values: NDArray, chunk: slice) -> NDArray:
    """Cut the rows of a chunk, unless one row holds for all voxels."""
    return values if len(values) == 1 else values[chunk]


def _least_squares_of(settings: FitSettings, model: SignalModel) -> FitSettings:
    """Give the settings of the fit by least squares that a refinement starts from."""
    # Both fits have the same bounds, and the default ones depend on the method.
    bounds = settings.box(model)
    return replace(settings, method="nlls", bounds=bounds, likelihood="gaussian", prior=None)


def _refine_fit(start: FitResult, settings: FitSettings) -> FitResult:
    """Go on from a fit by least squares to the best parameters under the settings."""
    assert start.inputs is not None
    model, signals, noise = start.model, start.inputs.signals, start.inputs.sigma
    is_free = np.array([name not in start.fixed for name in model.names])
    likelihood = make_likelihood(settings.likelihood, has_floor=noise is not None)
    # The residuals of least squares tell their own noise; a prior and a density need it.
    knows_noise = settings.method == "map" or settings.likelihood == "rician"
    prior = expanded = None
    if settings.method == "map":
        prior = settings.prior or prior_of(start, settings.n_averaged)
        expanded = prior.expanded(model)
    problem = Refinement(
        model,
        start.inputs.protocol,
        likelihood,
        is_free,
        start.inputs.weights,
        expanded,
        knows_noise,
        1.0 if noise is None or not knows_noise else settings.n_averaged,
    )
    result = replace(
        start, method=str(settings.method), likelihood=settings.likelihood, prior=prior
    )

    def fit_chunk(chunk: slice) -> None:
        fitted = np.flatnonzero(start.status[chunk] != FitStatus.NOT_FITTED) + chunk.start
        if fitted.size == 0:
            return
        values = np.asarray(signals[fitted], dtype=float)
        if noise is not None:
            sigma = np.broadcast_to(noise, len(signals))[fitted]
        else:
            assert prior is not None
            sigma = np.full(fitted.size, prior.sigma)
        points = [start.parameters[fitted]]
        if expanded is not None:
            # Every voxel at the mean of the prior, but for its amplitude and fixed parameters.
            mean, precision = expanded
            typical = Coordinates(LINE, *np.array(start.bounds).T).out_of(mean[None, :])
            points.append(np.where(np.diag(precision) > 0, typical, points[0]))
        Search(problem, values, sigma, start, points).write(result, fitted)

    run_in_chunks(fit_chunk, len(signals), _REFINED_CHUNK, settings.n_threads)
    return result
