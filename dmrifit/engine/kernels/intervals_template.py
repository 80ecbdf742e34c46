"""
Template of the intervals of one signal model.

This file is not imported. `interval_formula.source` copies it, with the constants and the formula
of the model, to a module of its own.
"""

import math
from math import exp, log, sqrt  # noqa: F401

import numpy as np
from numba import njit

# CONSTANTS
N = 1  # parameters
COORDINATES = (0,)  # of each parameter: PLAIN, SHARE, INVERSE or AMPLITUDE
STEPS = (1e-6,)  # for differences by a parameter that is zero
# END OF CONSTANTS

PLAIN, SHARE, INVERSE, AMPLITUDE = 0, 1, 2, 3
KINDS = np.array(COORDINATES)
SMALLEST_STEPS = np.array(STEPS)

# Of about forty variants, those with the best coverage on simulated tissue at SNR 30 and 60.
SHARE_SHIFT = 0.02  # sqrt(f + .02) is close to linear in the signal, down to f = 0
WIDEST = 2.0  # a side is at most this many times as long as the linear one
LARGEST_CURVATURE = 50.0
NEAREST = 0.1  # a bound that is nearer than so many SD still leaves a step to probe
UNDETERMINED_SHARE = 0.75  # of the box
RIDGE = 1e-14  # keeps what neither signal nor box determines from dividing by zero
STEP = 6e-6  # the root of rounding, for central differences
ROUNDING = 1e-9  # of the largest signal; signals without noise have no other residuals


# FUNCTION
@njit
def differentiate(p, b, te, slopes):
    """Compute the signal of one measurement and its derivatives by the parameters."""
    return 0.0


# END OF FUNCTION


@njit(nogil=True, error_model="numpy")
def into(value, kind):
    """Turn a value of a parameter into its coordinate."""
    if kind == INVERSE:
        return 1.0 / value
    if kind == SHARE:
        return sqrt(value + SHARE_SHIFT)
    return value


@njit(nogil=True, error_model="numpy")
def out_of(coordinate, kind):
    """Turn a coordinate into a value of the parameter."""
    if kind == INVERSE:
        return 1.0 / coordinate
    if kind == SHARE:
        return coordinate * coordinate - SHARE_SHIFT
    return coordinate


@njit(nogil=True, error_model="numpy")
def chain(coordinate, kind):
    """Differentiate a parameter by its coordinate."""
    if kind == INVERSE:
        return -1.0 / (coordinate * coordinate)
    if kind == SHARE:
        return 2.0 * coordinate
    return 1.0


@njit(nogil=True, error_model="numpy")
def sum_up(u, signal, contrasts, floor2, is_free, work, normal, gradient):
    """Compute J'J, J'r and r'r at a point; derivatives by the coordinates."""
    p, factors, slopes = work[0], work[1], work[2]
    for j in range(N):
        p[j] = out_of(u[j], KINDS[j])
        factors[j] = chain(u[j], KINDS[j]) if is_free[j] else 0.0
        gradient[j] = 0.0
        for k in range(N):
            normal[j, k] = 0.0
    rss = 0.0
    for m in range(len(signal)):
        if not math.isfinite(signal[m]):
            continue
        predicted = differentiate(p, contrasts[m, 0], contrasts[m, 1], slopes)
        share = 1.0
        if floor2 > 0.0:
            magnitude = sqrt(predicted * predicted + floor2)
            share = predicted / magnitude
            predicted = magnitude
        residual = signal[m] - predicted
        rss += residual * residual
        for j in range(N):
            slopes[j] *= factors[j] * share
        for j in range(N):
            gradient[j] += slopes[j] * residual
            for k in range(j + 1):
                normal[j, k] += slopes[j] * slopes[k]
    return rss


@njit(nogil=True, error_model="numpy")
def factor(normal, variance, weight, is_kept, scale, lower):
    """Factor the precision of the kept coordinates, scaled to a diagonal of one, as L L'."""
    for j in range(N):
        diagonal = normal[j, j] / variance + weight[j]
        scale[j] = sqrt(diagonal) if diagonal > 0.0 and is_kept[j] else 1.0
    for j in range(N):
        for k in range(j + 1):
            entry = 0.0
            if is_kept[j] and is_kept[k]:
                entry = normal[j, k] / variance
            if j == k:
                entry += weight[j]
            entry /= scale[j] * scale[k]
            if j == k:
                entry = entry + RIDGE if is_kept[j] else 1.0
            for i in range(k):
                entry -= lower[j, i] * lower[k, i]
            if j == k:
                lower[j, j] = sqrt(max(entry, RIDGE))
            else:
                lower[j, k] = entry / lower[k, k]


@njit(nogil=True, error_model="numpy")
def solve(lower, scale, is_kept, right, solution):
    """Solve the factored equations for the kept coordinates; the others get 0."""
    for j in range(N):
        entry = right[j] / scale[j] if is_kept[j] else 0.0
        for i in range(j):
            entry -= lower[j, i] * solution[i]
        solution[j] = entry / lower[j, j]
    for j in range(N - 1, -1, -1):
        entry = solution[j]
        for i in range(j + 1, N):
            entry -= lower[i, j] * solution[i]
        solution[j] = entry / lower[j, j]
    for j in range(N):
        solution[j] = solution[j] / scale[j] if is_kept[j] else 0.0


@njit(nogil=True, error_model="numpy")
def bent(linear, distance, curvature):
    """Find the length x of a side on which the root of the objective's rise is x(1 + c x)."""
    curvature = max(curvature, -(1.0 - 1.0 / WIDEST) / distance)
    curvature = min(curvature, LARGEST_CURVATURE / distance)
    if abs(curvature) * linear < 1e-9:
        return linear
    root = 1.0 + 4.0 * curvature * linear
    if root < 0.0:
        return WIDEST * linear
    return min((sqrt(root) - 1.0) / (2.0 * curvature), WIDEST * linear)


@njit(nogil=True, cache=True, error_model="numpy")
def fill_intervals(
    signals, contrasts, parameters, low, high, floor2, is_free, quantiles, probes, n_free, ends
):
    """
    Fill in the ends of the intervals.

    Shapes: `low`, `high` (n_voxels, N) in the units of the parameters, `floor2` (1 or n_voxels,),
    `quantiles` (n_levels, n_measurements + 1) and `probes` (n_measurements + 1,) by degrees of
    freedom, `ends` (n_levels, n_voxels, N, 2).
    """
    u, center, weight, below, above = np.empty((5, N))
    middle, sd, slope, shift, point = np.empty((5, N))
    gradient, right, solution, scale = np.empty((4, N))
    normal, covariance, lower, other = np.empty((4, N, N))
    work = np.empty((3, N))
    is_kept = np.empty(N, np.bool_)
    for voxel in range(len(signals)):
        signal = signals[voxel]
        largest = 0.0
        n_usable = 0
        for m in range(len(signal)):
            if math.isfinite(signal[m]):
                largest = max(largest, abs(signal[m]))
                n_usable += 1
        smallest_variance = (ROUNDING * largest) ** 2
        noise2 = floor2[voxel if len(floor2) > 1 else 0]
        for j in range(N):
            u[j] = into(parameters[voxel, j], KINDS[j])
            below[j] = into(low[voxel, j], KINDS[j])
            above[j] = into(high[voxel, j], KINDS[j])
            if below[j] > above[j]:
                below[j], above[j] = above[j], below[j]
            width = above[j] - below[j]
            weight[j] = 0.0
            center[j] = 0.0
            if KINDS[j] != AMPLITUDE and math.isfinite(width) and width > 0.0:
                # The precision of an even distribution over the box.
                weight[j] = 12.0 / (width * width)
                center[j] = 0.5 * (below[j] + above[j])
            if not is_free[j]:
                weight[j] = 0.0
        rss = sum_up(u, signal, contrasts, noise2, is_free, work, normal, gradient)
        dof = max(n_usable - n_free, 1)
        for round_of_dof in range(2):
            variance = max(rss / dof, smallest_variance)
            factor(normal, variance, weight, is_free, scale, lower)
            for k in range(N):
                for j in range(N):
                    right[j] = 1.0 if j == k else 0.0
                solve(lower, scale, is_free, right, solution)
                for j in range(N):
                    covariance[j, k] = solution[j]
            for j in range(N):
                sd[j] = sqrt(max(covariance[j, j], 0.0))
            if round_of_dof == 0:
                # A parameter that the box alone determines costs no degree of freedom.
                added = 0
                for j in range(N):
                    wide = 2.0 * probes[dof] * sd[j] >= UNDETERMINED_SHARE * (above[j] - below[j])
                    if is_free[j] and wide:
                        added += 1
                dof = min(dof + added, max(n_usable - 1, 1))
        least = rss / variance
        for j in range(N):
            distance = u[j] - center[j]
            slope[j] = gradient[j] / variance - weight[j] * distance
            least += weight[j] * distance * distance
        for j in range(N):
            shift[j] = 0.0
            for k in range(N):
                shift[j] += covariance[j, k] * slope[k]
            middle[j] = u[j] + shift[j]
            least -= slope[j] * shift[j]
        for j in range(N):
            if not is_free[j]:
                continue
            for side in range(2):
                sign = 2.0 * side - 1.0
                distance = 0.0
                curvature = 0.0
                if KINDS[j] == PLAIN or KINDS[j] == SHARE:
                    bound = above[j] if side else below[j]
                    room = max(sign * (bound - middle[j]), NEAREST * sd[j])
                    distance = min(probes[dof] * sd[j], room)
                    for k in range(N):
                        point[k] = (
                            middle[k] + sign * distance * covariance[k, j] / covariance[j, j]
                        )
                        if k != j:
                            point[k] = min(max(point[k], below[k]), above[k])
                        if not is_free[k]:
                            point[k] = u[k]
                        is_kept[k] = is_free[k] and k != j
                    rise = sum_up(point, signal, contrasts, noise2, is_free, work, other, gradient)
                    rise = rise / variance - least
                    for k in range(N):
                        offset = point[k] - center[k]
                        right[k] = gradient[k] / variance - weight[k] * offset
                        rise += weight[k] * offset * offset
                    factor(other, variance, weight, is_kept, scale, lower)
                    solve(lower, scale, is_kept, right, solution)
                    for k in range(N):
                        if is_kept[k]:
                            rise -= right[k] * solution[k]
                    curvature = (sqrt(max(rise, 0.0)) * sd[j] / distance - 1.0) / distance
                for level in range(len(quantiles)):
                    length = quantiles[level, dof] * sd[j]
                    if distance > 0.0:
                        length = bent(length, distance, curvature)
                    end = min(max(middle[j] + sign * length, below[j]), above[j])
                    end = out_of(end, KINDS[j])
                    # An inverse swaps its ends.
                    place = 1 - side if KINDS[j] == INVERSE else side
                    # The estimate of a parameter at a bound may lie outside; it belongs inside.
                    estimate = parameters[voxel, j]
                    end = max(end, estimate) if place else min(end, estimate)
                    ends[level, voxel, j, place] = end
