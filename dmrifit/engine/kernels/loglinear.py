"""
Jitted least squares of logarithms: one straight fit of many voxels.

Nothing of other modules is compiled into these functions, so that the compiled cache, which knows
this file alone, is never stale.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dmrifit._utils.compiled import njit

__all__ = ["fit_complete", "fit_each"]

# Products and sums may become one instruction; nothing else may be reordered.
_JIT: dict[str, Any] = {
    "nogil": True,
    "cache": True,
    "error_model": "numpy",
    "fastmath": {"contract"},
}

_LANES = 64  # voxels side by side, so that loops over them become vector instructions
_NEAR = 0.34  # below ln(2)/2, where `_exp` takes no power of two off
_SINGULAR = 1e-13  # of a diagonal entry that is 1 before elimination


@njit(**_JIT)
def _log(value):
    """Compute ln of a positive normal number: of its exponent, and 2·artanh of the mantissa."""
    bits = np.float64(value).view(np.int64)
    mantissa = np.int64((bits & 0x000FFFFFFFFFFFFF) | 0x3FE0000000000000).view(np.float64)
    exponent = np.float64((bits >> 52) - 1022)
    is_low = mantissa < 0.7071067811865476
    mantissa = 2.0 * mantissa if is_low else mantissa
    exponent = exponent - 1.0 if is_low else exponent
    s = (mantissa - 1.0) / (mantissa + 1.0)
    q = s * s
    # |s| is at most 0.172, so that the next term is below 1.2e-14.
    total = 2.0 / 15.0
    total = total * q + 2.0 / 13.0
    total = total * q + 2.0 / 11.0
    total = total * q + 2.0 / 9.0
    total = total * q + 2.0 / 7.0
    total = total * q + 2.0 / 5.0
    total = total * q + 2.0 / 3.0
    total = total * q + 2.0
    return exponent * 0.6931471805599453 + s * total


@njit(**_JIT)
def _exp(value):
    """Compute exp, to 2e-10: a power series within ±ln(2)/2, and bits of the exponent."""
    value = min(max(value, -700.0), 700.0)
    whole = np.floor(value * 1.4426950408889634 + 0.5)
    x = (value - whole * 0.693147180369123816490) - whole * 1.90821492927058770002e-10
    return _exp_near(x) * np.int64((np.int64(whole) + 1023) << 52).view(np.float64)


@njit(**_JIT)
def _exp_near(value):
    """Compute exp within ±ln(2)/2, with the very bits of `_exp`."""
    total = 1.0 / 40320.0
    total = total * value + 1.0 / 5040.0
    total = total * value + 1.0 / 720.0
    total = total * value + 1.0 / 120.0
    total = total * value + 1.0 / 24.0
    total = total * value + 1.0 / 6.0
    total = total * value + 0.5
    total = total * value + 1.0
    return total * value + 1.0


@njit(**_JIT)
def fit_complete(signals, design, projection, coefficients, variances, cost, incomplete):
    """
    Fit ln S = design·coefficients with the same weight for every measurement (OLS).

    Shapes: `signals` (n_voxels, n_measurements) of any floating type, `design` (n_measurements,
    p), `projection` (p, n_measurements), its pseudoinverse; fills `coefficients` (p, n_voxels),
    the residual variances `variances` (n_voxels,) and `cost` (n_voxels,) in squared units of the
    signals. A voxel with a value that has no logarithm, or of equal values, is left to `fit_each`:
    their positions are put into `incomplete` (n_voxels,), and their number is returned.
    """
    n, m = signals.shape
    p = design.shape[1]
    logs = np.empty((m, _LANES))
    values = np.empty((m, _LANES))
    sums = np.empty((p, _LANES))
    squares, misfit, fitted_log, largest = np.empty((4, _LANES))
    low, high, usable = np.empty((3, _LANES))
    per_degree = 1.0 / (m - p) if m > p else np.nan
    n_incomplete = 0
    for first in range(0, n, _LANES):
        size = min(_LANES, n - first)
        for lane in range(size):
            for k in range(m):
                values[k, lane] = signals[first + lane, k]
        for lane in range(size, _LANES):
            for k in range(m):
                values[k, lane] = 1.0
        usable[:] = 1.0
        low[:] = np.inf
        high[:] = 0.0
        squares[:] = 0.0
        misfit[:] = 0.0
        largest[:] = 0.0
        sums[:] = 0.0
        for k in range(m):
            for lane in range(_LANES):
                value = values[k, lane]
                # Subnormal numbers have no leading digit, which _log relies on.
                has_logarithm = (value > 1e-300) & (value < 1e300)
                value = value if has_logarithm else 1.0
                usable[lane] = usable[lane] if has_logarithm else 0.0
                low[lane] = value if value < low[lane] else low[lane]
                high[lane] = value if value > high[lane] else high[lane]
                values[k, lane] = value
                logs[k, lane] = _log(value)
            for j in range(p):
                factor = projection[j, k]
                for lane in range(_LANES):
                    sums[j, lane] += factor * logs[k, lane]
        for k in range(m):
            for lane in range(_LANES):
                fitted_log[lane] = design[k, 0] * sums[0, lane]
            for j in range(1, p):
                factor = design[k, j]
                for lane in range(_LANES):
                    fitted_log[lane] += factor * sums[j, lane]
            for lane in range(_LANES):
                residual = logs[k, lane] - fitted_log[lane]
                squares[lane] += residual * residual
                size_of_residual = abs(residual)
                if size_of_residual > largest[lane]:
                    largest[lane] = size_of_residual
                logs[k, lane] = -residual
        are_near = True
        for lane in range(_LANES):
            are_near &= largest[lane] < _NEAR
        for k in range(m):
            if are_near:
                for lane in range(_LANES):
                    difference = values[k, lane] * (1.0 - _exp_near(logs[k, lane]))
                    misfit[lane] += difference * difference
            else:
                for lane in range(_LANES):
                    difference = values[k, lane] * (1.0 - _exp(logs[k, lane]))
                    misfit[lane] += difference * difference
        for j in range(p):
            for lane in range(size):
                coefficients[j, first + lane] = sums[j, lane]
        for lane in range(size):
            variances[first + lane] = squares[lane] * per_degree
            cost[first + lane] = misfit[lane]
        for lane in range(size):
            # A voxel of equal values is background, which the other function refuses.
            if usable[lane] == 0.0 or low[lane] == high[lane]:
                incomplete[n_incomplete] = first + lane
                n_incomplete += 1
    return n_incomplete


@njit(**_JIT)
def fit_each(signals, design, weights, n_iterations, by_signal, ends):
    """
    Fit ln S = design·coefficients voxel by voxel, with equal weights or with S² (WLS).

    Shapes: as `fit_complete`, `weights` (n_measurements,) relative to 1 or S²; iterations are
    those with the weights of the fitted signals. `ends` are the coefficients (p, n_voxels), their
    covariances (p, p, n_voxels), the cost and the number of measurements used (n_voxels,).
    """
    coefficients, covariances, cost, n_used = ends
    n, m = signals.shape
    p = design.shape[1]
    work = np.empty((3, max(m, p)))
    for voxel in range(n):
        _fit_voxel(
            signals[voxel],
            design,
            weights,
            n_iterations,
            by_signal,
            coefficients[:, voxel],
            covariances[:, :, voxel],
            cost[voxel : voxel + 1],
            n_used[voxel : voxel + 1],
            work,
        )


@njit(**_JIT)
def _fit_voxel(
    signal,
    design,
    weights,
    n_iterations,
    by_signal,
    coefficients,
    covariance,
    cost,
    n_used,
    work,
):
    """Fit one voxel to those of its values that have a logarithm; NaN where they are too few."""
    m, p = design.shape
    logs, weight = work[0], work[1]
    top, lowest = 0.0, np.inf
    count = 0
    for k in range(m):
        if signal[k] > 1e-300 and signal[k] < 1e300:
            count += 1
            top = max(top, signal[k])
            lowest = min(lowest, signal[k])
    n_used[0] = count
    coefficients[:] = np.nan
    covariance[:] = np.nan
    cost[0] = np.nan
    if count < p or lowest == top:
        return
    for k in range(m):
        weight[k] = 0.0
        logs[k] = 0.0
        if signal[k] > 1e-300 and signal[k] < 1e300:
            logs[k] = _log(signal[k] / top)
            weight[k] = weights[k] * ((signal[k] / top) ** 2 if by_signal else 1.0)
    if not _solve(design, logs, weight, coefficients, covariance, work):
        coefficients[:] = np.nan
        covariance[:] = np.nan
        return
    for _ in range(n_iterations):
        for k in range(m):
            if weight[k] > 0.0:
                # Far from zero, so that a poor first fit cannot switch all measurements off.
                power = min(max(2.0 * _predict(design[k], coefficients), -60.0), 60.0)
                weight[k] = weights[k] * _exp(power)
        if not _solve(design, logs, weight, coefficients, covariance, work):
            coefficients[:] = np.nan
            covariance[:] = np.nan
            return
    squares, misfit = 0.0, 0.0
    for k in range(m):
        if weight[k] > 0.0:
            residual = logs[k] - _predict(design[k], coefficients)
            squares += weight[k] * residual**2
            misfit += weights[k] * (signal[k] * (1.0 - _exp(-residual))) ** 2
    covariance *= squares / (count - p) if count > p else np.nan
    cost[0] = misfit
    coefficients[0] += _log(top)


@njit(**_JIT)
def _predict(row, coefficients):
    total = 0.0
    for j in range(len(row)):
        total += row[j] * coefficients[j]
    return total


@njit(**_JIT)
def _solve(design, logs, weight, coefficients, covariance, work):
    """Solve the normal equations by elimination of a matrix with ones on its diagonal."""
    m, p = design.shape
    scale = work[2]
    for j in range(p):
        total = 0.0
        for k in range(m):
            total += weight[k] * design[k, j] ** 2
        scale[j] = np.sqrt(total)
        if not scale[j] > 0.0:
            return False
    for j in range(p):
        for i in range(p):
            total = 0.0
            for k in range(m):
                total += weight[k] * design[k, j] * design[k, i]
            covariance[j, i] = total / (scale[j] * scale[i])
        total = 0.0
        for k in range(m):
            total += weight[k] * design[k, j] * logs[k]
        coefficients[j] = total / scale[j]
    # Gauss-Jordan in place; the matrix is symmetric and positive, so no pivots are searched for.
    for j in range(p):
        pivot = covariance[j, j]
        if not pivot > _SINGULAR:
            return False
        covariance[j, j] = 1.0
        for i in range(p):
            covariance[j, i] /= pivot
        coefficients[j] /= pivot
        for row in range(p):
            if row != j:
                factor = covariance[row, j]
                covariance[row, j] = 0.0
                for i in range(p):
                    covariance[row, i] -= factor * covariance[j, i]
                coefficients[row] -= factor * coefficients[j]
    for j in range(p):
        coefficients[j] /= scale[j]
        for i in range(p):
            covariance[j, i] /= scale[j] * scale[i]
    return True
