"""Precision that a protocol allows: Cramér–Rao bounds, and a ranking of contrasts by them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit._utils.checks import check_word
from dmrifit.engine.fit_settings import check_values
from dmrifit.engine.kernels.layout import UNDETERMINED_SHARE, is_share
from dmrifit.engine.models import (
    Parameter,
    SignalModel,
    check_echo_times,
    python_words,
    read_table,
    resolve_model,
)
from dmrifit.engine.protocol import Protocol

if TYPE_CHECKING:
    import pandas as pd


__all__ = ["protocol_precision", "rank_contrasts"]

#: Largest variance inflation at which a parameter counts as determined.
_LARGEST_INFLATION = 1e8

_STEP = np.finfo(float).eps ** (1 / 3)  # balances truncation and rounding of central differences
_SMALLEST = np.finfo(float).tiny

CRITERIA = ("A", "D")
NOISES = ("gaussian", "rician")

_LARGEST_SNR = 12.0  # from here on, the information in a magnitude is that of its leading terms


def signal_jacobian(
    model: str | SignalModel, parameters: ArrayLike, protocol: Protocol
) -> NDArray[np.float64]:
    """
    Differentiate the signal of a model by its parameters.

    Shapes: `parameters` (n_sets, n_parameters); returns (n_sets, n_measurements, n_parameters).
    """
    model = resolve_model(model)
    values = np.atleast_2d(np.asarray(parameters, dtype=float))
    widths = np.array([parameter.high - parameter.low for parameter in model.parameters])
    size_at_zero = np.where(np.isfinite(widths) & (widths > 0), widths, 1.0)
    sizes = np.abs(values)
    return central_differences(model, values, protocol, np.where(sizes > 0, sizes, size_at_zero))


def central_differences(
    model: SignalModel, values: NDArray, protocol: Protocol, sizes: NDArray
) -> NDArray[np.float64]:
    """
    Differentiate a signal at parameters, by steps in proportion to their sizes.

    Shapes: `values`, `sizes` (n_sets, n_parameters); returns (n_sets, n_measurements,
    n_parameters).
    """
    jacobian = np.empty((len(values), len(protocol), len(model.names)))
    for i in range(len(model.names)):
        above, below = values.copy(), values.copy()
        above[:, i] += _STEP * sizes[:, i]
        below[:, i] -= _STEP * sizes[:, i]
        # Not twice the step, which rounding changes when it is added to a value.
        span = (above[:, i] - below[:, i])[:, None]
        jacobian[:, :, i] = (model.signal(above, protocol) - model.signal(below, protocol)) / span
    return jacobian


def protocol_precision(
    protocol: Protocol,
    model: str | SignalModel,
    parameters: ArrayLike | Mapping[str, ArrayLike],
    sigma: ArrayLike,
    *,
    fixed: Sequence[str] = (),
    prior: Mapping[str, float] | ArrayLike | None = None,
    noise: str = "gaussian",
) -> pd.DataFrame:
    """
    Compute how precisely a protocol can measure the parameters of a model: the Cramér–Rao bound.

    No unbiased fit has a smaller standard deviation than these. Bounds, a prior or a noise floor
    bias a fit, and can make its spread smaller.

    Parameters
    ----------
    protocol : Protocol
        The measurements.
    model : str or SignalModel
        A name in `MODELS`, or a model.
    parameters : array_like of shape (n_parameters,) or (n_sets, n_parameters), or mapping
        The tissue, or several, in the order and units of the model; or arrays by parameter name.
    sigma : float or array_like of shape (n_sets,)
        Standard deviation of the noise of one measurement, in the unit of the model's amplitude:
        with an amplitude of 1, one over the signal-to-noise ratio of a measurement without any
        weighting.
    fixed : sequence of str, default=()
        Parameters that are known and not estimated.
    prior : mapping of str to float or array_like of shape (n_parameters,), optional
        Standard deviation of what is known of parameters before the measurement, in their units;
        infinite, or left out of the mapping, where nothing is known.
    noise : {"gaussian", "rician"}, default="gaussian"
        ``"rician"``: of magnitudes, which hold less information than Gaussian signals: 94 % where
        the signal is three times sigma, 52 % where it equals sigma, 8 % at 0.3 times sigma.

    Returns
    -------
    DataFrame
        One row for each set and parameter: ``set`` (position, from 0), ``parameter``, ``unit``,
        ``value``, ``sd`` (in that unit), ``cv`` (sd over the absolute value; infinite for a
        value of 0) and ``advice``: a sentence where the protocol will not tell the parameter, with
        the reason and a remedy, by the limits of `FitResult.doubt`; else empty. A parameter that
        the measurements do not determine has an infinite sd: the signal does not depend on it, or
        the others inflate its variance more than 1e8 times. A fixed one has 0.

    Raises
    ------
    ValueError
        If shapes, names or units do not fit together, sigma is not positive, the echo times are
        not such that the model can be fitted, or its signal has no finite derivative.

    Notes
    -----
    With J the derivatives of the signal, the Fisher information is J'J/σ² (plus one over the
    prior's variance), and the bound is the diagonal of its inverse. Rician noise multiplies the
    rows of J by the root of the share of information that magnitudes keep at their
    signal-to-noise ratio.

    References
    ----------
    Kay, Fundamentals of Statistical Signal Processing: Estimation Theory, chapter 3, 1993;
    Karlsen, Verhagen, Bovée, Magn Reson Med 41:614–623, 1999 (Rician noise).

    Examples
    --------
    >>> table = protocol_precision(Protocol([0, 1000]), "adc", [1.0, 1.0], sigma=0.02)
    >>> table[["parameter", "cv"]].round(3).values.tolist()
    [['S0', 0.02], ['ADC', 0.058]]
    """
    import pandas as pd

    model = resolve_model(model)
    values = _parameter_sets(model, parameters)
    free = _free(model, fixed)
    rows = _information_rows(model, values, protocol, sigma, noise)[:, :, free]
    weights = _prior_rows(model, values, prior, weak=None)[:, free]
    sd = np.zeros_like(values)
    sd[:, free] = standard_deviations(rows, weights)
    n, p = values.shape
    with np.errstate(divide="ignore", invalid="ignore"):
        cv = np.where(sd == 0, 0.0, sd / np.abs(values))
    return pd.DataFrame(
        {
            "set": np.repeat(np.arange(n), p),
            "parameter": np.tile(model.names, n),
            "unit": np.tile(model.units, n),
            "value": values.ravel(),
            "sd": sd.ravel(),
            "cv": cv.ravel(),
            "advice": [
                python_words(sentence)
                for value, deviation in zip(values, sd, strict=True)
                for sentence in planned_advice(model, value, deviation, protocol)
            ],
        }
    )


def rank_contrasts(
    protocol: Protocol,
    model: str | SignalModel,
    parameters: ArrayLike | Mapping[str, ArrayLike],
    sigma: ArrayLike,
    *,
    start: Protocol | ArrayLike | None = None,
    criterion: str = "A",
    n: int | None = None,
    prior: float | Mapping[str, float] | ArrayLike | None = None,
    fixed: Sequence[str] = (),
    noise: str = "gaussian",
) -> pd.DataFrame:
    """
    Order the contrasts of a protocol by what they add to the precision of a model's parameters.

    One contrast after another is taken, each time the one that makes the criterion smallest
    together with those taken before: to plan a shorter scan, or to find the one image worth adding
    to a scan (`start`).

    Parameters
    ----------
    protocol : Protocol
        The contrasts that can be measured, each once.
    model : str or SignalModel
        A name in `MODELS`, or a model.
    parameters : array_like of shape (n_parameters,) or (n_sets, n_parameters), or mapping
        The tissues that matter, as for `protocol_precision`; the criterion is averaged over them.
    sigma : float or array_like of shape (n_sets,)
        Standard deviation of the noise of one measurement, in the unit of the model's amplitude.
    start : Protocol or indices, optional
        Contrasts that are measured anyway, such as ``protocol.clinical()``; none by default.
    criterion : {"A", "D"}, default="A"
        ``"A"``: the mean, over parameters, of the squared coefficient of variation. ``"D"``: the
        logarithm of the determinant of the covariance of the relative errors, over the number of
        parameters.
    n : int, optional
        How many contrasts to take; all by default.
    prior : float, mapping of str to float or array_like of shape (n_parameters,), optional
        What is known before: one number, as a share of each parameter's value, or standard
        deviations in their units. By default 1: weak, and enough to rank contrasts while
        there are fewer than parameters. With a much weaker one (a hundred times), `start` has to
        determine the parameters.
    fixed : sequence of str, default=()
        Parameters that are known and not estimated.
    noise : {"gaussian", "rician"}, default="gaussian"
        As for `protocol_precision`.

    Returns
    -------
    DataFrame
        One row for each contrast in the order taken: ``step`` (from 1), ``index`` (in the
        protocol), ``contrast`` (its label), ``b`` (s/mm²), ``te`` (ms, NaN without), ``score``
        (the criterion with all contrasts so far), ``gain`` (by how much it fell) and ``cv_…``, the
        coefficient of variation of each parameter with the prior's help (root mean square over the
        sets). Before them stands step 0: what is known from `start` and the prior.

    Raises
    ------
    ValueError
        If shapes, names or units do not fit together, the criterion is unknown, nothing is left to
        take, the echo times are not such that the model can be fitted, its signal has no finite
        derivative, or the prior is so weak that some choice of contrasts does not determine the
        parameters.

    References
    ----------
    Atkinson, Donev, Tobias, Optimum Experimental Designs, with SAS, chapters 10–12, 2007.
    """
    model = resolve_model(model)
    if criterion not in CRITERIA:
        raise ValueError(
            f"criterion must be 'A' or 'D', not {criterion!r}; for predicted signals see "
            "rank_contrasts_by_prediction"
        )
    values = _parameter_sets(model, parameters)
    is_zero = (values == 0).any(axis=0)
    if is_zero.any():
        raise ValueError(
            "relative errors have no meaning for a parameter that is 0: "
            f"{', '.join(np.array(model.names)[is_zero])}; give a small value"
        )
    free = _free(model, fixed)
    names = [name for name, is_free in zip(model.names, free, strict=True) if is_free]
    # By the logarithm of parameters: variances are then squared coefficients of variation.
    rows = _information_rows(model, values, protocol, sigma, noise) * values[:, None, :]
    rows = rows[:, :, free]
    weights = (_prior_rows(model, values, prior, weak=1.0) * np.abs(values))[:, free]
    measured, candidates = start_of(protocol, start, n)
    n_start = len(measured)
    steps = [_scored(rows[:, measured], weights, criterion, names)]
    for _ in range(n or len(candidates)):
        options = [
            _scored(rows[:, [*measured, index]], weights, criterion, names) for index in candidates
        ]
        best = int(np.argmin([option["score"] for option in options]))
        gain = steps[-1]["score"] - options[best]["score"]
        measured.append(candidates.pop(best))
        steps.append(options[best] | {"index": measured[-1], "gain": gain})
    return order_table(protocol, steps, n_start)


def start_of(
    protocol: Protocol, start: Protocol | ArrayLike | None, n: int | None
) -> tuple[list[int], list[int]]:
    """Split the contrasts into those that are measured anyway and the candidates to add."""
    measured: list[int] = []
    if isinstance(start, Protocol):
        measured = start.indices_in(protocol).tolist()
    elif start is not None and np.size(start):
        measured = np.atleast_1d(np.asarray(start, dtype=np.intp)).tolist()
    outside = [index for index in measured if not 0 <= index < len(protocol)]
    if outside or len(set(measured)) != len(measured):
        raise ValueError(
            f"start must name contrasts of the protocol, 0 to {len(protocol) - 1}, each once, not "
            f"{measured}"
        )
    candidates = [index for index in range(len(protocol)) if index not in measured]
    if not candidates or (n is not None and not 1 <= n <= len(candidates)):
        raise ValueError(
            f"n must be between 1 and {len(candidates)}, the contrasts that are not in start, "
            f"not {n}"
        )
    return measured, candidates


def order_table(
    protocol: Protocol, steps: Sequence[Mapping[str, Any]], n_start: int
) -> pd.DataFrame:
    """Put the steps of an order in a table; the `index` before the first contrast is -1."""
    import pandas as pd

    table = pd.DataFrame(steps)
    taken = table["index"].to_numpy()[1:]
    te = np.full(len(protocol), np.nan) if protocol.te is None else protocol.te
    table.insert(0, "step", np.arange(len(steps)))
    table.insert(2, "contrast", [f"start ({n_start})", *np.array(protocol.labels)[taken]])
    table.insert(3, "b", [np.nan, *protocol.b[taken]])
    table.insert(4, "te", [np.nan, *te[taken]])
    return table


def _information_rows(
    model: SignalModel, values: NDArray, protocol: Protocol, sigma: ArrayLike, noise: str
) -> NDArray[np.float64]:
    """
    Compute rows R such that R'R is the Fisher information.

    Shapes: `values` (n_sets, n_parameters); returns (n_sets, n_measurements, n_parameters).
    """
    check_word("noise", noise, NOISES)
    check_echo_times(protocol, model)
    level = np.asarray(sigma, dtype=float)
    if level.shape not in ((), (1,), (len(values),)) or not (
        np.isfinite(level).all() and (level > 0).all()
    ):
        raise ValueError(
            f"sigma must be a positive, finite number, or {len(values)} of them, one for each set "
            f"of parameters (the standard deviation of the noise); got {sigma!r}"
        )
    level = np.broadcast_to(level, (len(values),))[:, None]
    with np.errstate(all="ignore"):
        rows = signal_jacobian(model, values, protocol) / level[:, :, None]
    if not np.isfinite(rows).all():
        row, _, column = np.argwhere(~np.isfinite(rows))[0]
        raise ValueError(
            f"the signal of model {model.name} has no finite derivative with respect to "
            f"{model.names[column]} in set {row}, where it is "
            f"{values[row, column]:g}; give a value inside its bounds, away from 0"
        )
    if noise == "rician":
        snr = np.abs(model.signal(values, protocol)) / level
        rows *= np.sqrt(information_share(snr))[:, :, None]
    return rows


def information_share(snr: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the share of information that magnitudes keep: 0 without signal, 1 at high SNR."""
    grid, share = _information_on_grid()
    high_snr = np.maximum(snr, _LARGEST_SNR)
    return np.where(snr < _LARGEST_SNR, np.interp(snr, grid, share), 1 - 0.5 / high_snr**2)


@lru_cache(maxsize=1)
def _information_on_grid() -> tuple[NDArray, NDArray]:
    """Integrate the squared score over the Rician density, on a grid of SNR."""
    from scipy.special import i0e, i1e

    grid = np.linspace(0, _LARGEST_SNR, 481)[:, None]
    magnitude = np.maximum(grid + np.linspace(-9, 9, 721), 0.0)
    density = magnitude * np.exp(-0.5 * (magnitude - grid) ** 2) * i0e(magnitude * grid)
    score = magnitude * i1e(magnitude * grid) / i0e(magnitude * grid) - grid
    return grid[:, 0], np.trapezoid(density * score**2, magnitude, axis=1)


def _scored(
    rows: NDArray[np.float64], weights: NDArray[np.float64], criterion: str, names: Sequence[str]
) -> dict[str, float]:
    """
    Score a choice of contrasts: the criterion, and root mean squares of coefficients of variation.

    Shapes: `rows` (n_sets, n_measurements, n_parameters), `weights` of the prior (n_sets,
    n_parameters).
    """
    sd = standard_deviations(rows, weights)
    is_undetermined = np.isinf(sd).any(axis=0)
    if is_undetermined.any():
        raise ValueError(
            "some choice of contrasts does not determine "
            f"{', '.join(np.array(names)[is_undetermined])} with such a weak prior; give a "
            "stronger one (prior=1, the default, is the size of each parameter), contrasts that "
            "determine these parameters (start=), or values that are known (fixed=)"
        )
    score = (sd**2).mean()
    if criterion == "D":
        information = np.einsum("smi,smj->sij", rows, rows)
        information += weights[:, :, None] ** 2 * np.eye(len(names))
        score = -np.linalg.slogdet(information)[1].mean() / len(names)
    columns = [f"cv_{name}" for name in names]
    cv = np.sqrt((sd**2).mean(axis=0))
    return {"index": -1, "score": score, "gain": np.nan, **dict(zip(columns, cv, strict=True))}


def standard_deviations(
    jacobian: NDArray[np.float64], prior_weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """
    Compute the Cramér–Rao bounds of each set; infinite where a parameter is not determined.

    Shapes: `jacobian` (n_sets, n_measurements, n_parameters), derivatives of the signals over the
    SD of the noise (see `_information_rows`); `prior_weights`, one over the SD of the prior, and
    the result (n_sets, n_parameters).
    """
    # The prior of a parameter acts as one more measurement, of that parameter alone.
    prior_rows = prior_weights[:, :, None] * np.eye(jacobian.shape[-1])
    jacobian = np.concatenate([jacobian, prior_rows], axis=1)
    # The norm of a column is one over the SD of its parameter where all others are known.
    norms = np.linalg.norm(jacobian, axis=1)
    has_effect = norms > _SMALLEST
    norms = np.where(has_effect, norms, 1.0)
    # Singular values of the derivatives, not of the information, which would square their ratio.
    _, values, axes = np.linalg.svd(jacobian / norms[:, None, :], full_matrices=False)
    values = np.maximum(values, np.finfo(float).eps)
    # Variance inflation: how much larger variances are as the other parameters are not known.
    inflation = ((axes / values[:, :, None]) ** 2).sum(axis=1)
    is_determined = has_effect & (inflation <= _LARGEST_INFLATION)
    return np.where(is_determined, np.sqrt(inflation) / norms, np.inf)


def _parameter_sets(
    model: SignalModel, parameters: ArrayLike | Mapping[str, ArrayLike]
) -> NDArray[np.float64]:
    """
    Check the tissues that a precision is computed for.

    Shapes: returns (n_sets, n_parameters).
    """
    if isinstance(parameters, Mapping):
        if set(parameters) != set(model.names):
            raise ValueError(
                f"parameters of model {model.name} are {', '.join(model.names)}, not "
                f"{', '.join(parameters)}"
            )
        columns = [np.asarray(parameters[name], dtype=float) for name in model.names]
        parameters = np.stack(np.broadcast_arrays(*map(np.ravel, columns)), axis=1)
    values = np.atleast_2d(np.asarray(parameters, dtype=float))
    if values.ndim != 2 or values.shape[1] != len(model.names) or not len(values):
        raise ValueError(
            f"parameters must have shape (n_sets, {len(model.names)}), columns "
            f"{', '.join(model.names)}; "
            f"not {values.shape}"
        )
    if not np.isfinite(values).all():
        row, column = np.argwhere(~np.isfinite(values))[0]
        raise ValueError(
            f"parameters must be finite; {model.names[column]} of set {row} is "
            f"{values[row, column]}"
        )
    for parameter, column in zip(model.parameters, values.T, strict=True):
        check_values(parameter, f"the value of {parameter.name}", column)
    return values


def _free(model: SignalModel, fixed: Sequence[str]) -> NDArray[np.bool_]:
    fixed = (fixed,) if isinstance(fixed, str) else tuple(fixed)
    unknown = sorted(set(fixed) - set(model.names))
    if unknown or set(fixed) == set(model.names):
        problem = f"unknown {', '.join(unknown)}" if unknown else "leave one free"
        raise ValueError(
            f"fixed parameters of model {model.name}: {problem}; it has {', '.join(model.names)}"
        )
    return np.array([name not in fixed for name in model.names])


def _prior_rows(
    model: SignalModel,
    values: NDArray,
    prior: float | Mapping[str, float] | ArrayLike | None,
    *,
    weak: float | None,
) -> NDArray[np.float64]:
    """
    Compute one over the prior's standard deviation; 0 where nothing is known.

    Shapes: `values` and result (n_sets, n_parameters).
    """
    if prior is not None and not isinstance(prior, Mapping) and np.ndim(prior) == 0:
        # One number is a share of each parameter's value.
        weak = float(prior)  # type: ignore[arg-type]
        prior = None
    sd = np.full(values.shape, np.inf) if weak is None else weak * np.abs(values)
    if isinstance(prior, Mapping):
        unknown = sorted(set(prior) - set(model.names))
        if unknown:
            raise ValueError(
                f"the prior knows {', '.join(unknown)}, which model {model.name} does not have; "
                f"it has {model.names}"
            )
        for name, value in prior.items():
            sd[:, model.names.index(name)] = value
    elif prior is not None:
        prior_sd = np.asarray(prior, dtype=float)
        if prior_sd.shape != (len(model.names),):
            raise ValueError(
                f"the prior must be a mapping by name or {len(model.names)} standard deviations, "
                f"not {prior!r}"
            )
        sd[:] = prior_sd
    if not (sd > 0).all():
        raise ValueError(
            "standard deviations of the prior must be positive; name parameters that are known in "
            "fixed="
        )
    return 1 / sd


_SENTENCES = read_table("sentences")["protocol"]

#: b·D beyond which less than 1 % of the signal of a fluid is left: its curve is bent by the noise
#: floor, pulsation and partial volume rather than by kurtosis.
DECAYED = 5.0

_LARGEST_ERROR_OF_SHARE = 0.05
_LARGEST_ERROR_OF_KURTOSIS = 0.3
_LARGEST_RELATIVE_ERROR = 0.5
_LARGEST_ERROR_OF_BOX = 0.025  # where 0 lies within
# µm²/ms: with a smaller error a diffusivity near 0 is well measured, even if the error exceeds it.
_SMALLEST_DIFFUSIVITY = 0.02
_NORMAL_95 = 1.96
# Coefficient of variation beyond which a rate or time is not determined.
_UNDETERMINED_CV = 0.75


def largest_error(parameter: Parameter, values: ArrayLike) -> NDArray[np.float64]:
    """
    Give the standard error beyond which a parameter is uncertain.

    It is .05 for a share, .3 for a kurtosis, and half the value for others, but at least .02
    µm²/ms for a diffusivity and a fortieth of a box that 0 lies within. Shapes: returns that of
    `values`.
    """
    values = np.asarray(values, dtype=float)
    if is_share(parameter):
        return np.full(values.shape, _LARGEST_ERROR_OF_SHARE)
    if parameter.unit == "":
        return np.full(values.shape, _LARGEST_ERROR_OF_KURTOSIS)
    limit = _LARGEST_RELATIVE_ERROR * np.abs(values)
    if parameter.unit == "µm²/ms":
        limit = np.maximum(limit, _SMALLEST_DIFFUSIVITY)
    if _has_sign(parameter):
        limit = np.maximum(limit, _LARGEST_ERROR_OF_BOX * (parameter.high - parameter.low))
    return limit


def _has_sign(parameter: Parameter) -> bool:
    """Tell whether 0 lies within the box, so that no error can be judged by the value."""
    return parameter.low < 0 < parameter.high and math.isfinite(parameter.high - parameter.low)


def planned_advice(
    model: SignalModel, values: NDArray[np.float64], sd: NDArray[np.float64], protocol: Protocol
) -> list[str]:
    """
    Say which parameters of one tissue a protocol will not tell, why, and what helps.

    Shapes: `values`, `sd` (n_parameters,), with 0 for a parameter that is known; returns as many
    sentences, empty for a parameter that is determined.
    """
    sentences = []
    for j, parameter in enumerate(model.parameters):
        sentence = ""
        if sd[j] > 0 and model.cumulant and parameter.name == model.cumulant[0]:
            diffusivity = float(values[model.names.index(model.cumulant[1])])
            sentence = _turning_point(parameter.name, float(values[j]), diffusivity, protocol)
        if sd[j] > 0 and not sentence:
            sentence = _uncertainty(parameter, float(values[j]), float(sd[j]))
        sentences.append(sentence)
    return sentences


def _turning_point(name: str, kurtosis: float, diffusivity: float, protocol: Protocol) -> str:
    """Say that b·D of a protocol is too high for a kurtosis; an empty text if it is not."""
    highest = float(protocol.b_ms_per_um2.max()) * diffusivity
    if kurtosis * highest > 3:
        turn = 1e3 * 3 / (kurtosis * diffusivity)
        return _SENTENCES["at_cap"].format(name=name, turn=turn)
    if highest > DECAYED:
        limit = 1e3 * DECAYED / diffusivity
        return _SENTENCES["decayed"].format(name=name, highest=highest, limit=limit)
    return ""


def _uncertainty(parameter: Parameter, value: float, sd: float) -> str:
    """Say that the standard deviation of a parameter is too large; an empty text if it is not."""
    name = parameter.name
    unit = f" {parameter.unit}" if parameter.unit and not parameter.is_amplitude else ""
    remedy = read_table("sentences")["doubts"]["NOT_DETERMINED"][1].format(name=name)
    if math.isinf(sd):
        return _SENTENCES["no_effect"].format(name=name, remedy=remedy)
    limit = float(largest_error(parameter, value))
    known = {"name": name, "sd": rounded(sd, 2), "value": value, "unit": unit}
    if is_undetermined(parameter, value, sd):
        text = _SENTENCES["undetermined"].format(**known)
        if math.isfinite(parameter.high - parameter.low) and not parameter.is_amplitude:
            text += f" ({parameter.low:g} to {parameter.high:g}{unit} searched)".replace("-", "−")
        return f"{text}; {remedy}."
    if sd > limit:
        n_averages = math.ceil((sd / limit) ** 2)
        return _SENTENCES["uncertain"].format(**known, n_averages=n_averages)
    return ""


def is_undetermined(parameter: Parameter, value: float, sd: float) -> bool:
    """Tell whether an interval at 95 % fills most of the box, or the error nearly the value."""
    width = parameter.high - parameter.low
    if not parameter.is_amplitude and 2 * _NORMAL_95 * sd >= UNDETERMINED_SHARE * width:
        return True
    is_relative = parameter.unit != "" and not _has_sign(parameter)
    limit = max(_UNDETERMINED_CV * abs(value), float(largest_error(parameter, value)))
    return is_relative and sd > limit


def rounded(value: float, n_digits: int) -> str:
    """Write a number with so many digits, without an exponent from 0.0001 to 999000."""
    return f"{float(f'{value:.{n_digits}g}'):g}".replace("-", "−")
