"""
Exponential, logarithm and powers with the same bits on every processor.

Those of NumPy come in several versions, one for each set of vector instructions, which differ in
the last bit. That is enough to start a fit at another point and to end it at other bits. Here they
are made of the four operations and of moving exponents, which are rounded in one way only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

_LOG2_E = 1.4426950408889634
# ln(2) in two parts; the product of the first with a small whole number is exact.
_LN2 = (0.693147180369123816490, 1.90821492927058770002e-10)
_SQRT_HALF = 0.7071067811865476
_WHOLE = 64  # powers up to this one are products
# The product of 8 numbers below 2**100 neither overflows nor vanishes.
_TAME = 100
_AT_ONCE = 8

_EXP = [1.0]
for _i in range(1, 15):
    _EXP.append(_EXP[-1] / _i)
_LOG = [2.0 / (2 * _i + 1) for _i in range(12)]


def exp(x: ArrayLike) -> NDArray[np.float64]:
    """Compute the exponential: 2ⁿ·exp(r) with abs(r) ≤ ln(2)/2, and that by its power series."""
    x = np.clip(np.asarray(x, dtype=np.float64), -800.0, 800.0)
    n = np.floor(x * _LOG2_E + 0.5)
    r = (x - n * _LN2[0]) - n * _LN2[1]
    with np.errstate(over="ignore", under="ignore"):
        return np.ldexp(_polynomial(r, _EXP), np.where(np.isnan(n), 0.0, n).astype(np.int64))


def log(x: ArrayLike) -> NDArray[np.float64]:
    """
    Compute the natural logarithm as that of the exponent plus that of the mantissa.

    The logarithm of a mantissa m is 2·artanh((m − 1)/(m + 1)).
    """
    x = np.asarray(x, dtype=np.float64)
    positive = (x > 0) & (x < np.inf)
    result = _log_of(*np.frexp(np.where(positive, x, 1.0)))
    return np.select([positive, x == 0, x == np.inf], [result, -np.inf, np.inf], np.nan)


def power(x: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
    """Raise to a power."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if y.ndim == 0 and float(y).is_integer() and abs(y) <= _WHOLE:
        # Square and multiply, by the binary digits of the power.
        result = np.ones_like(x)
        square = x
        digits = int(abs(y))
        while digits:
            if digits % 2:
                result = result * square
            square = square * square
            digits //= 2
        return 1.0 / result if y < 0 else result
    result = exp(y * log(x))
    return np.where(y == 0, 1.0, result)


def geometric_mean(values: ArrayLike, used: NDArray[np.bool_]) -> NDArray[np.float64]:
    """
    Compute the geometric mean along the last axis: the root of the product.

    Shapes: `values` (..., n), `used` (..., n); returns (...).
    """
    factors = np.where(used, np.asarray(values, dtype=np.float64), 1.0)
    exponent = np.zeros(factors.shape[:-1], np.int64)
    size = np.abs(factors)
    if not ((size > 2.0**-_TAME) & (size < 2.0**_TAME)).all():
        # Splitting off exponents is exact: the mean has the same bits with and without it.
        factors, moved = np.frexp(factors)
        exponent += moved.sum(axis=-1)
    product = np.ones(factors.shape[:-1])
    # One after the other, because the order in which a library multiplies may change.
    for k in range(factors.shape[-1]):
        product = product * factors[..., k]
        if k % _AT_ONCE == _AT_ONCE - 1:
            product, moved = np.frexp(product)
            exponent += moved
    product, moved = np.frexp(product)
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithm = _log_of(np.where(product > 0, product, 0.5), exponent + moved)
        mean = exp(logarithm / used.sum(axis=-1))
    mean = np.where(product == 0, 0.0, mean)
    return np.where((factors < 0).any(axis=-1), np.nan, mean)


def mean_of_finite(values: NDArray) -> NDArray[np.float64]:
    """
    Compute the arithmetic mean of the finite values along the last axis; NaN without any.

    Shapes: `values` (..., n); returns (...).
    """
    usable = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(usable, values, 0.0).sum(axis=-1) / usable.sum(axis=-1)


def _log_of(mantissa: NDArray, exponent: NDArray) -> NDArray[np.float64]:
    """Compute the logarithm of a number by its mantissa in [½, 1) and exponent."""
    low = mantissa < _SQRT_HALF
    # Between √½ and √2 the series converges fastest.
    m = np.where(low, 2.0 * mantissa, mantissa)
    e = np.where(low, exponent - 1, exponent).astype(np.float64)
    s = (m - 1.0) / (m + 1.0)
    return e * _LN2[0] + (s * _polynomial(s * s, _LOG) + e * _LN2[1])


def _polynomial(x: NDArray, coefficients: list[float]) -> NDArray[np.float64]:
    """Compute a polynomial by Horner's rule."""
    result = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result *= x
        result += coefficient
    return result
