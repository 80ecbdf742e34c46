"""Refusal of fixed values and bounds that are impossible, or plausible only in another unit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dmrifit.engine.kernels.layout import is_share

if TYPE_CHECKING:
    from dmrifit.engine.formulas.model_formula import Parameter

__all__ = ["check_bounds", "check_fixed"]

# Factors from other units, in which numbers are too small or too large, to that of a parameter.
_LARGER_UNITS = {
    "µm²/ms": {"mm²/s": 1e3, "cm²/s": 1e5, "m²/s": 1e9},
    "ms": {"seconds": 1e3},
}
_SMALLER_UNITS = {"µm²/ms": ("µm²/s", 1e-3), "ms": ("µs", 1e-3), "1/ms": ("1/s", 1e-3)}

#: µm²/ms: where a box starts at 0, it does not tell how slow water diffuses in tissue.
_SLOWEST = 0.1

#: Values may lie so many times below or above the model's own box: their user knows why.
_FAR_BELOW, _FAR_ABOVE = 10.0, 5.0

#: Bounds of a share may reach beyond 0 to 1, for fits without bias; from here on they are percent.
_PERCENT_BOUND = 2.0


def check_fixed(parameter: Parameter, values: NDArray[np.float64]) -> None:
    """Refuse fixed values, one or one for each voxel, that are impossible or in another unit."""
    name, text = parameter.name, f"fixed {parameter.name}"
    if is_share(parameter):
        outside = values[(values < 0) | (values > 1)]
        if outside.size:
            raise ValueError(_share_message(name, text, float(outside[0])))
    if values.size:
        # Of a map, single voxels may lie near zero.
        typical = float(np.median(values))
        _check_not_tiny(parameter, text, typical)
        _check_not_huge(parameter, text, typical)


def check_bounds(parameter: Parameter, low: float, high: float) -> None:
    """Refuse bounds between which no value is plausible in the unit of the parameter."""
    name = parameter.name
    if is_share(parameter) and _PERCENT_BOUND <= high < np.inf:
        raise ValueError(_share_message(name, f"the upper bound of {name}", high))
    _check_not_tiny(parameter, f"the upper bound of {name}", high)
    _check_not_huge(parameter, f"the lower bound of {name}", low)


def _share_message(name: str, text: str, value: float) -> str:
    message = f"{text} is {value:g}: {name} is a share of the signal, from 0 to 1"
    if 1 < value <= 100:
        message += f", this looks like percent; did you mean {value / 100:g}?"
    return message


def _check_not_tiny(parameter: Parameter, text: str, value: float) -> None:
    low = parameter.low
    if parameter.unit == "µm²/ms" and low == 0:
        low = min(_SLOWEST, parameter.high / _FAR_BELOW)
    if not 0 < value < low / _FAR_BELOW:
        return
    for unit, factor in _LARGER_UNITS.get(parameter.unit, {}).items():
        # Half of the slowest is nearer to it than what the next unit would make of the value.
        if low / 2 <= value * factor <= _FAR_BELOW * parameter.high:
            raise ValueError(_unit_message(parameter, text, value, unit, factor))


def _check_not_huge(parameter: Parameter, text: str, value: float) -> None:
    if parameter.unit not in _SMALLER_UNITS:
        return
    unit, factor = _SMALLER_UNITS[parameter.unit]
    is_inside = parameter.low <= value * factor <= parameter.high
    if abs(value) > _FAR_ABOVE * parameter.high and is_inside:
        raise ValueError(_unit_message(parameter, text, value, unit, factor))


def _unit_message(parameter: Parameter, text: str, value: float, unit: str, factor: float) -> str:
    return (
        f"{text} is {value:g}: {parameter.name} must be in {parameter.unit} ({parameter.low:g} to "
        f"{parameter.high:g} by default), this looks like {unit}; did you mean "
        f"{value * factor:g} {parameter.unit}?"
    )
