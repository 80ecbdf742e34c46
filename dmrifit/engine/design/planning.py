"""Limits of errors, and what a protocol will not tell: sentences before a scan is made."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit.engine.kernels.layout import UNDETERMINED_SHARE, is_share
from dmrifit.engine.models import Parameter, SignalModel, read_table
from dmrifit.engine.protocol import Protocol

_SENTENCES = read_table("sentences")["protocol"]

#: b·D beyond which less than 1 % of the signal of a fluid is left: its curve is bent by the noise
#: floor, pulsation and partial volume rather than by kurtosis.
DECAYED = 5.0

_LARGEST_ERROR_OF_SHARE = 0.05
_LARGEST_ERROR_OF_KURTOSIS = 0.3
_LARGEST_RELATIVE_ERROR = 0.5
_LARGEST_ERROR_OF_BOX = 0.025  # where 0 lies within
# µm²/ms: a smaller error leaves no doubt that nothing moves, though it exceeds the value.
_SMALLEST_DIFFUSIVITY = 0.02
_NORMAL_95 = 1.96
#: Coefficient of variation beyond which a rate or time is not determined.
UNDETERMINED_CV = 0.75


def largest_error(parameter: Parameter, values: ArrayLike) -> NDArray[np.float64]:
    """
    Give the standard error beyond which a parameter is uncertain.

    It is .05 for a share, .3 for a kurtosis, and half the value for others, or a fortieth of a box
    that 0 lies within. Shapes: returns that of `values`.
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
    model: SignalModel,
    values: NDArray[np.float64],
    sd: NDArray[np.float64],
    protocol: Protocol,
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
    """Say where b·D of a protocol goes too far for a kurtosis."""
    highest = float(protocol.b_ms_per_um2.max()) * diffusivity
    if kurtosis * highest > 3:
        turn = 1e3 * 3 / (kurtosis * diffusivity)
        return _SENTENCES["at_cap"].format(name=name, turn=turn)
    if highest > DECAYED:
        limit = 1e3 * DECAYED / diffusivity
        return _SENTENCES["decayed"].format(name=name, highest=highest, limit=limit)
    return ""


def _uncertainty(parameter: Parameter, value: float, sd: float) -> str:
    """Say that the standard deviation of a parameter is too large, if it is."""
    name = parameter.name
    unit = f" {parameter.unit}" if parameter.unit and not parameter.is_amplitude else ""
    remedy = f"fix it, or measure contrasts that show {name}"
    if math.isinf(sd):
        return _SENTENCES["no_effect"].format(name=name, remedy=remedy)
    width = parameter.high - parameter.low
    has_box = math.isfinite(width) and not parameter.is_amplitude
    fills_box = has_box and 2 * _NORMAL_95 * sd >= UNDETERMINED_SHARE * width
    is_relative = parameter.unit != "" and not _has_sign(parameter)
    is_unknown = is_relative and sd > UNDETERMINED_CV * abs(value)
    limit = float(largest_error(parameter, value))
    known = {"name": name, "sd": rounded(sd, 2), "value": value, "unit": unit}
    if fills_box or (is_unknown and sd > limit):
        text = _SENTENCES["undetermined"].format(**known)
        if has_box:
            text += f" ({parameter.low:g}–{parameter.high:g}{unit} searched)"
        return f"{text}; {remedy}."
    if sd > limit:
        n_averages = math.ceil((sd / limit) ** 2)
        return _SENTENCES["uncertain"].format(**known, n_averages=n_averages)
    return ""


def rounded(value: float, n_digits: int) -> str:
    """Write the first digits of a number, also of a large one without an exponent."""
    return f"{float(f'{value:.{n_digits}g}'):g}"
