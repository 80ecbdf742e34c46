"""Segmented fits of IVIM: Dt where perfusion has died out, then the other parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dmrifit.engine.exact_math import mean_of_finite
from dmrifit.engine.fit_settings import DEFAULT_THRESHOLD, MEASURED, FitSettings, can_segment
from dmrifit.engine.models import MODELS, SignalModel
from dmrifit.engine.protocol import Protocol
from dmrifit.engine.results import FitResult, FitStatus

_ZERO_B = 10.0  # s/mm², below it nothing has decayed


def fit_segmented(
    signals: NDArray,
    protocol: Protocol,
    model: SignalModel,
    settings: FitSettings,
    fit: Callable[[NDArray, Protocol, str | SignalModel, FitSettings], FitResult],
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
    threshold = DEFAULT_THRESHOLD if settings.threshold is None else settings.threshold
    high_b = np.flatnonzero(protocol.b >= threshold)
    if not can_segment(protocol, threshold):
        raise ValueError(
            f"a segmented fit needs two b-values of {threshold:g} s/mm² or more; there are "
            f"{protocol.b[high_b].tolist()}; choose another threshold, or use method='nlls'"
        )
    box = settings.box(model)
    weights = settings.measurement_weights(len(protocol))
    tissue = fit(
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
    result = fit(
        np.where(has_dt[:, None], signals, np.nan),
        protocol,
        model,
        replace(settings, method="nlls", threshold=None, bounds=box, fixed={**fixed, "Dt": dt}),
    )
    _add_tissue_fit(result, tissue)
    return replace(result, fixed=tuple(fixed), method="segmented")


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


def measured_amplitude(
    signals: NDArray, protocol: Protocol, model: SignalModel, settings: FitSettings
) -> FitSettings:
    """Put the mean of the signals without diffusion weighting in the place of "measured"."""
    fixed: Mapping = settings.fixed or {}
    amplitudes = {parameter.name for parameter in model.parameters if parameter.is_amplitude}
    texts = [name for name, value in fixed.items() if isinstance(value, str)]
    names = [name for name in texts if name in amplitudes and fixed[name] == MEASURED]
    if not names:
        return settings
    unweighted = protocol.b < _ZERO_B
    if not unweighted.any():
        raise ValueError(
            f"{names[0]} cannot be fixed at the measured signal: no b-value is below "
            f"{_ZERO_B:g} s/mm²; give a number, or leave it free"
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
