"""
Means of signals, and numbers with the same bits on every processor.

The exponential and logarithm of NumPy come in several versions, one for each set of vector
instructions, which differ in the last bit. That is enough to start a fit at another point and to
end it at other bits, so what is computed by them is rounded.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Binary digits that are kept. More change the ends of fits less; fewer agree more surely.
_OF_STARTS = 36
_OF_MEANS = 32


def rounded(values: NDArray, n_digits: int = _OF_STARTS) -> NDArray[np.float64]:
    """Round numbers to so many binary digits that those of all processors agree."""
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.round(mantissa * 2.0**n_digits), exponent - n_digits)


def geometric_mean(values: NDArray, used: NDArray[np.bool_]) -> NDArray[np.float64]:
    """
    Compute the geometric mean along the last axis, rounded; NaN without any value.

    Shapes: `values` (..., n), `used` (..., n); returns (...).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithms = np.log(np.where(used, values, 1.0))
        return rounded(np.exp(logarithms.sum(axis=-1) / used.sum(axis=-1)), _OF_MEANS)


def mean_of_finite(values: NDArray) -> NDArray[np.float64]:
    """
    Compute the arithmetic mean of the finite values along the last axis; NaN without any.

    Shapes: `values` (..., n); returns (...).
    """
    usable = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(usable, values, 0.0).sum(axis=-1) / usable.sum(axis=-1)
