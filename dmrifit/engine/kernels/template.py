"""
Template of a kernel, the fit of one signal model to many voxels.

This file is not imported. `formula.source` copies it, with the constants below set for the model
and the lines of lane arithmetic written out, to a module of its own.
"""

import math

import numpy as np
from numba import njit

from dmrifit.engine.kernels.lanes import block, dot

# CONSTANTS
N = 1  # parameters
N_PAIRS = 1
LANES = 16
UNROLL = 2  # measurements taken together
SIZE = 16  # of the work array
FORMS = ("plain",)  # how each parameter relates to its inner coordinate
AMPLITUDE = -1  # the parameter that scales the signal, or -1
MIXTURE = -1  # the fraction f of f·g₁ + (1 − f)·g₀, or -1
FIRST = ()  # the parameters of g₁
CALLED = False  # whether the signal is a user's function, not lines of arithmetic
N_BY_B = 0  # exponentials of b alone, and of te alone, that are tabulated
N_BY_TE = 0
KURTOSIS = -1  # K and D of a cumulant −bD + K(bD)²/6, or -1
DIFFUSIVITY = -1
AT: dict = {}
# END OF CONSTANTS

AT_X = AT["X"]
AT_Q, AT_T, AT_M, AT_LO, AT_HI, AT_D = AT["Q"], AT["T"], AT["M"], AT["LO"], AT["HI"], AT["D"]
AT_C, AT_BC, AT_SQ, AT_LAM, AT_IT = AT["C"], AT["BC"], AT["SQ"], AT["LAM"], AT["IT"]
AT_P1, AT_END, AT_NF2, AT_GB = AT["P1"], AT["END"], AT["NF2"], AT["GB"]

# CODE
BEGIN: list = []
TABLE_B: list = []
TABLE_TE: list = []
ACCUMULATE: list = []
ACCUMULATE_FLOORED: list = []
REGULARIZE: list = []
CHAIN: list = []
ACCEPT: list = []
STEP: list = []
VARIANCES: list = []
RATE_PAIR: list = []
RATE_ONE: list = []
# END OF CODE


# FUNCTION
@njit
def function(b, te, x):
    """Compute the signal of one measurement, where it is a function of the user's."""
    return 0.0


# END OF FUNCTION

begin_sums = block(BEGIN, LANES)
tabulate_b = block(TABLE_B, LANES)
tabulate_te = block(TABLE_TE, LANES)
accumulate = block(ACCUMULATE, LANES)
accumulate_floored = block(ACCUMULATE_FLOORED, LANES)
regularize = block(REGULARIZE, LANES)
chain = block(CHAIN, LANES)
accept = block(ACCEPT, LANES)
choose_step = block(STEP, LANES)
find_variances = block(VARIANCES, LANES)
rate_pair = block(RATE_PAIR, LANES)
rate_one = block(RATE_ONE, LANES)
project = dot(LANES)

# Two starts disagree that fit equally well, with a ridge between them; both are relative.
SAME_COST, RIDGE = 1e-2, 5e-2
ILL_CONDITIONED = 1e8  # variance inflation beyond which parameters cannot be told apart


@njit(nogil=True, cache=True, error_model="numpy")
def differentiate(w, out, b, te):
    """Call the user's function for all lanes, and differentiate it inside the bounds."""
    x = np.empty(N)
    for lane in range(LANES):
        for j in range(N):
            x[j] = outer_of(w[AT_X + j * LANES + lane], j)
        out[lane] = function(b, te, x)
        for j in range(N):
            here = w[AT_X + j * LANES + lane]
            reach = 6e-6 * max(abs(here), 1e-4)
            up, down = here + reach, here - reach
            if FORMS[j] == "plain":
                up = min(up, w[AT_HI + j * LANES + lane])
                down = max(down, w[AT_LO + j * LANES + lane])
            slope = 0.0
            if up > down:
                x[j] = outer_of(up, j)
                above = function(b, te, x)
                x[j] = outer_of(down, j)
                slope = (above - function(b, te, x)) / (up - down)
                x[j] = outer_of(here, j)
            out[(1 + j) * LANES + lane] = slope


@njit(nogil=True, cache=True, error_model="numpy")
def outer_of(value, j):
    """Turn a coordinate of the formula into the parameter itself."""
    return 1.0 / value if FORMS[j] == "inverse" else value


@njit(nogil=True, cache=True, error_model="numpy")
def signals_of(parameters, contrasts):
    """Call the user's function for every voxel and measurement."""
    out = np.empty((len(parameters), len(contrasts)))
    for i in range(len(parameters)):
        for k in range(len(contrasts)):
            out[i, k] = function(contrasts[k, 0], contrasts[k, 1], parameters[i])
    return out


@njit(nogil=True, cache=True, error_model="numpy")
def evaluate(w, s, y, v, t, o, contrasts, rows, b, te, floored, regularized):
    """
    Compute residuals, J'r and J'J of all lanes at their trials, in inner coordinates.

    `s` holds what is the same for all lanes: b and te of the measurements at hand, 3/b_max where
    the signal must not turn up (else infinity), the tolerance, then penalties and origins of the
    regularization. Exponentials of b alone and of te alone stand in the table `t`, one row for
    each of the values `b` and `te`; `rows` says which two rows a measurement needs.
    """
    begin_sums(w, s, y, v, t, o)
    after_b = N_BY_B * len(b) * LANES
    if N_BY_B > 0:
        for i in range(len(b)):
            s[0], o[1] = b[i], N_BY_B * i * LANES
            tabulate_b(w, s, y, v, t, o)
    if N_BY_TE > 0:
        for i in range(len(te)):
            s[0], o[1] = te[i], after_b + N_BY_TE * i * LANES
            tabulate_te(w, s, y, v, t, o)
    for k in range(0, contrasts.shape[0], UNROLL):
        o[0] = k * LANES
        for u in range(UNROLL):
            s[2 * u], s[2 * u + 1] = contrasts[k + u, 0], contrasts[k + u, 1]
            o[1 + 2 * u] = N_BY_B * rows[k + u, 0] * LANES
            o[2 + 2 * u] = after_b + N_BY_TE * rows[k + u, 1] * LANES
        if CALLED:
            for u in range(UNROLL):
                o[1 + 2 * u] = (N + 1) * u * LANES
                differentiate(w, t[o[1 + 2 * u] :], contrasts[k + u, 0], contrasts[k + u, 1])
        if floored:
            accumulate_floored(w, s, y, v, t, o)
        else:
            accumulate(w, s, y, v, t, o)
    if regularized:
        regularize(w, s, y, v, t, o)
    chain(w, s, y, v, t, o)


@njit(nogil=True, cache=True, error_model="numpy")
def screen(signals, n_free, normalize, scales, usable, n_known):
    """Find the voxels that can be fitted, their numbers of measurements, and their scales."""
    n, m = signals.shape
    n_slots = 0
    for i in range(n):
        top, bottom, count = -math.inf, math.inf, 0
        for k in range(m):
            value = signals[i, k]
            if math.isfinite(value):
                count += 1
                top = max(top, value)
                bottom = min(bottom, value)
        # Beyond these limits, amplitudes or their inverses are no numbers any more.
        if count < n_free or top < 1e-300 or top > 1e290 or bottom < 0.0 or top == bottom:
            continue
        scales[n_slots] = 1.0 / top if normalize else 1.0
        usable[n_slots] = i
        n_known[n_slots] = count
        n_slots += 1
    return n_slots


@njit(nogil=True, cache=True, error_model="numpy")
def rate(y, atoms, n_first, constants, dots, best):
    """
    Rate the atoms of the dictionary for one group of lanes, and keep the best of each stratum.

    With two components every pair is rated by its least squares of two non-negative amplitudes;
    with one, every atom by that of one amplitude; without an amplitude, by the distance itself.
    `best` holds a rating and the index of an atom for each stratum and lane.
    """
    n_second = atoms.shape[0] - n_first
    none = np.zeros(1, np.int64)
    for a in range(atoms.shape[0]):
        project(dots[a], atoms[a], y)
    for s in range(best.shape[0]):
        for lane in range(LANES):
            best[s, lane] = -math.inf
            best[s, LANES + lane] = 0.0
    for t in range(n_second):
        if n_first == 0:
            rate_one(
                best[t * best.shape[0] // n_second], constants[0, t], dots[t], dots[t], y, none
            )
        for s in range(n_first):
            rate_pair(best[s], constants[s, t], dots[n_first + t], dots[s], y, none)


@njit(nogil=True, cache=True, error_model="numpy")
def rate_incomplete(signal, lane, atoms, n_first, best, dots):
    """Rate the atoms for a voxel with missing measurements; return its Gram matrix."""
    n_atoms, m = atoms.shape
    n_strata = best.shape[0]
    gram = np.zeros((n_atoms, n_atoms))
    for i in range(n_atoms):
        for j in range(n_atoms):
            if i < n_first or i == j:
                for k in range(m):
                    if math.isfinite(signal[k]):
                        gram[i, j] += atoms[i, k] * atoms[j, k]
    for s in range(n_strata):
        best[s, lane] = -math.inf
    for t in range(n_atoms - n_first):
        d, tt = dots[n_first + t, lane], gram[n_first + t, n_first + t]
        if n_first == 0:
            s = t * n_strata // (n_atoms - n_first)
            gain = (
                (d * d / tt if d > 0.0 and tt > 0.0 else 0.0) if AMPLITUDE >= 0 else 2.0 * d - tt
            )
            if gain > best[s, lane]:
                best[s, lane] = gain
                best[s, LANES + lane] = t
        for s in range(n_first):
            a1, a0 = amplitudes(dots[s, lane], d, gram[s, s], gram[s, n_first + t], tt)
            gain = a1 * dots[s, lane] + a0 * d
            if gain > best[s, lane]:
                best[s, lane] = gain
                best[s, LANES + lane] = t
    return gram


@njit(nogil=True, cache=True, error_model="numpy")
def starting_points(lane, n_first, atoms_q, gram, best, dots, lo, hi, points):
    """Turn the best strata of one lane into starting points in inner coordinates."""
    n_strata = best.shape[0]
    for p in range(points.shape[0]):
        s = 0
        for stratum in range(1, n_strata):
            if best[stratum, lane] > best[s, lane]:
                s = stratum
        t = int(best[s, LANES + lane])
        best[s, lane] = -math.inf
        for i in range(N):
            points[p, i] = atoms_q[n_first + t, i]
            if n_first > 0 and not math.isnan(atoms_q[s, i]):
                points[p, i] = atoms_q[s, i]
        d, tt = dots[n_first + t, lane], gram[n_first + t, n_first + t]
        if n_first > 0:
            a1, a0 = amplitudes(dots[s, lane], d, gram[s, s], gram[s, n_first + t], tt)
            total = a1 + a0
            points[p, AMPLITUDE] = total
            share = a1 / total if total > 0.0 else 0.5
            points[p, MIXTURE] = min(max(share, 0.02), 0.98)
        elif AMPLITUDE >= 0:
            points[p, AMPLITUDE] = d / tt if tt > 0.0 else 1.0
        for i in range(N):
            points[p, i] = min(max(points[p, i], lo[i]), hi[i])


@njit(nogil=True, cache=True, error_model="numpy")
def amplitudes(v, d, vv, vt, tt):
    """Least squares of two non-negative amplitudes."""
    det = vv * tt - vt * vt
    if det > 1e-9 * vv * tt:
        a1, a0 = (v * tt - d * vt) / det, (d * vv - v * vt) / det
        if a1 > 0.0 and a0 > 0.0:
            return a1, a0
    if tt > 0.0 and (vv <= 0.0 or d * d * vv >= v * v * tt):
        return 0.0, max(d, 0.0) / tt
    return (max(v, 0.0) / vv if vv > 0.0 else 0.0), 0.0


@njit(nogil=True, cache=True, error_model="numpy")
def place(w, y, v, lane, signals, i, scale, lo, hi, pinned, scaled, sigma):
    """Put the data, bounds and noise floor of a voxel into a lane."""
    for k in range(signals.shape[1]):
        value = signals[i, k]
        measured = math.isfinite(value)
        y[k * LANES + lane] = value * scale if measured else 0.0
        v[k * LANES + lane] = 1.0 if measured else 0.0
    place_bounds(w, lane, i, scale, lo, hi, pinned, scaled)
    floor = sigma[i if sigma.shape[0] > 1 else 0] * scale
    w[AT_NF2 + lane] = 0.5 * math.pi * floor * floor


@njit(nogil=True, cache=True, error_model="numpy")
def place_bounds(w, lane, i, scale, lo, hi, pinned, scaled):
    """Put the bounds of a voxel into a lane; a fixed parameter has both at its value."""
    row = i if pinned.shape[0] > 1 else 0
    for j in range(N):
        value = pinned[row, j]
        if math.isnan(value):
            w[AT_LO + j * LANES + lane], w[AT_HI + j * LANES + lane] = lo[j], hi[j]
        else:
            value = value * scale if scaled[j] else value
            w[AT_LO + j * LANES + lane] = value
            w[AT_HI + j * LANES + lane] = value


@njit(nogil=True, cache=True, error_model="numpy")
def begin(w, lane, point):
    """Start a lane at a point."""
    for j in range(N):
        value = min(max(point[j], w[AT_LO + j * LANES + lane]), w[AT_HI + j * LANES + lane])
        w[AT_T + j * LANES + lane] = value
        w[AT_Q + j * LANES + lane] = value
    w[AT_C + lane] = math.inf
    w[AT_GB + lane] = w[AT_BC + lane]
    w[AT_P1 + lane] = 1.0
    # The first trial is the start itself, which is better than infinity.
    w[AT_LAM + lane] = 0.1
    w[AT_IT + lane] = -1.0
    w[AT_END + lane] = 0.0


@njit(nogil=True, cache=True, error_model="numpy")
def prepare(
    signals,
    n_free,
    scaled,
    lo,
    hi,
    atoms,
    n_first,
    atoms_q,
    gram,
    constants,
    best,
    scales,
    usable,
    n_known,
    points,
):
    """Screen the voxels and find starting points; returns how many can be fitted."""
    m = signals.shape[1]
    n_slots = screen(signals, n_free, scaled.any(), scales, usable, n_known)
    dots = np.empty((atoms.shape[0], LANES))
    y = np.zeros((m, LANES))
    flat = y.reshape(m * LANES)
    for first in range(0, n_slots, LANES):
        n_lanes = min(LANES, n_slots - first)
        for lane in range(n_lanes):
            for k in range(m):
                value = signals[usable[first + lane], k]
                y[k, lane] = value * scales[first + lane] if math.isfinite(value) else 0.0
        rate(flat, atoms, n_first, constants, dots, best)
        for lane in range(n_lanes):
            slot = first + lane
            voxel_gram = gram
            if n_known[slot] < m:
                voxel_gram = rate_incomplete(
                    signals[usable[slot]], lane, atoms, n_first, best, dots
                )
            starting_points(lane, n_first, atoms_q, voxel_gram, best, dots, lo, hi, points[slot])
    return n_slots


@njit(nogil=True, cache=True, error_model="numpy")
def ends_elsewhere(w, lane, end):
    """Tell whether a start fits as well as the best so far, with a ridge between the two."""
    best = w[AT_BC + lane]
    here = w[AT_C + lane] - (w[AT_P1 + lane] if w[AT_END + lane] == 3.0 else 0.0)
    if best == math.inf or abs(here - best) > SAME_COST * min(here, best):
        return False
    # Within one valley the sum of squares rises as its quadratic form says, hence little.
    rise = 0.0
    at = 0
    for j in range(N):
        step_j = w[AT_Q + j * LANES + lane] - end[j]
        for k in range(j + 1):
            step_k = w[AT_Q + k * LANES + lane] - end[k]
            rise += (1.0 if j == k else 2.0) * step_j * step_k * w[AT_M + at * LANES + lane]
            at += 1
    return rise > RIDGE * best


@njit(nogil=True, cache=True, error_model="numpy")
def search(
    n_slots,
    signals,
    scales,
    usable,
    points,
    sigma,
    floored,
    lo,
    hi,
    pinned,
    scaled,
    turn_up,
    regularized,
    penalty,
    origin,
    contrasts,
    rows,
    b,
    te,
    tolerance,
    max_iter,
    ends,
    sums,
    squares,
    converged,
    steps,
    disagree,
):
    """
    Minimize from every starting point of every voxel, and keep the best end of each.

    A lane never meets another one, so results do not depend on which voxels are fitted together.
    """
    n_starts = points.shape[1]
    w = np.zeros(SIZE)
    y = np.zeros(len(contrasts) * LANES)
    v = np.zeros(len(contrasts) * LANES)
    t = np.zeros(max(N_BY_B * len(b) + N_BY_TE * len(te), (N + 1) * UNROLL) * LANES)
    o = np.zeros(1 + 2 * UNROLL, np.int64)
    s = np.empty(2 * UNROLL + 2 + 2 * N)
    s[2 * UNROLL] = turn_up
    s[2 * UNROLL + 1] = tolerance
    for j in range(N):
        s[2 * UNROLL + 2 + j] = penalty[j]
        s[2 * UNROLL + 2 + N + j] = origin[j]
    slot_of = np.full(LANES, -1, np.int64)
    start_of = np.zeros(LANES, np.int64)
    n_placed = 0
    active = 0
    for lane in range(LANES):
        for j in range(N):  # an idle lane works on ones; its numbers go nowhere
            w[AT_LO + j * LANES + lane], w[AT_HI + j * LANES + lane] = 1.0, 1.0
            w[AT_T + j * LANES + lane], w[AT_Q + j * LANES + lane] = 1.0, 1.0
        slot_of[lane] = -2
    # The first round only hands out voxels: every lane looks as if its last start had ended.
    while True:
        for lane in range(LANES):
            slot = slot_of[lane]
            # A start without a finite signal ends at once: its lane still holds the voxel before.
            begun = w[AT_C + lane] < math.inf
            if slot == -1 or (
                slot >= 0 and begun and w[AT_END + lane] == 0.0 and w[AT_IT + lane] < max_iter
            ):
                continue
            if slot >= 0:
                elsewhere = (
                    begun and w[AT_END + lane] != 4.0 and ends_elsewhere(w, lane, ends[slot])
                )
                if elsewhere and w[AT_END + lane] == 3.0:
                    w[AT_GB + lane] = math.inf  # it is worth knowing where this start really ends
                    continue
                steps[slot] += int(w[AT_IT + lane])
                if elsewhere:
                    disagree[slot] = True
                elif w[AT_C + lane] < (1.0 - SAME_COST) * w[AT_BC + lane]:
                    disagree[slot] = False
                if w[AT_C + lane] < w[AT_BC + lane]:
                    w[AT_BC + lane] = w[AT_C + lane]
                    # In a narrow bent valley steps stay short, but promise little near the end.
                    near = w[AT_LAM + lane] < 0.5 and w[AT_P1 + lane] <= 1e-7 * w[AT_C + lane]
                    converged[slot] = w[AT_END + lane] == 1.0 or near
                    squares[slot] = w[AT_SQ + lane]
                    for j in range(N):
                        ends[slot, j] = w[AT_Q + j * LANES + lane]
                    for j in range(N_PAIRS):
                        sums[slot, j] = w[AT_M + j * LANES + lane]
                start_of[lane] += 1
                active -= 1
            if slot < 0 or start_of[lane] == n_starts:
                start_of[lane] = 0
                slot = -1
                if n_placed < n_slots:
                    slot = n_placed
                    place(
                        w,
                        y,
                        v,
                        lane,
                        signals,
                        usable[slot],
                        scales[slot],
                        lo,
                        hi,
                        pinned,
                        scaled,
                        sigma,
                    )
                    w[AT_BC + lane] = math.inf
                    n_placed += 1
                slot_of[lane] = slot
            if slot >= 0:
                begin(w, lane, points[slot, start_of[lane]])
                active += 1
        if active == 0:
            break
        evaluate(w, s, y, v, t, o, contrasts, rows, b, te, floored, regularized)
        accept(w, s, y, v, t, o)
        choose_step(w, s, y, v, t, o)


@njit(nogil=True, cache=True, error_model="numpy")
def finish(
    n_slots,
    scales,
    usable,
    n_known,
    lo,
    hi,
    outer_lo,
    outer_hi,
    pinned,
    scaled,
    turn_up,
    ends,
    sums,
    squares,
    converged,
    steps,
    disagree,
    parameters,
    errors,
    cost,
    status,
    n_iter,
    at_low,
    at_high,
    doubt,
    ill,
):
    """Write the results in the units of the model, and NaN for the voxels that were not fitted."""
    w = np.zeros(SIZE)
    none = np.zeros(1, np.int64)
    limits = np.ones(LANES)
    blank = 0
    for first in range(0, n_slots, LANES):
        n_lanes = min(LANES, n_slots - first)
        for lane in range(n_lanes):
            slot = first + lane
            place_bounds(w, lane, usable[slot], scales[slot], lo, hi, pinned, scaled)
            for j in range(N):
                w[AT_Q + j * LANES + lane] = ends[slot, j]
            for j in range(N_PAIRS):
                w[AT_M + j * LANES + lane] = sums[slot, j]
            limits[lane] = limit(w, lane, turn_up)
            if (
                limits[lane] < 1.0
                and w[AT_Q + KURTOSIS * LANES + lane] < w[AT_HI + KURTOSIS * LANES + lane]
            ):
                leave_limit(w, lane, limits[lane])
        find_variances(w, w, w, w, w, none)
        for lane in range(n_lanes):
            slot = first + lane
            i = usable[slot]
            if math.isnan(squares[slot]):
                continue  # no start has a finite signal
            while blank < i:
                leave_out(
                    blank, parameters, errors, cost, status, n_iter, at_low, at_high, doubt, ill
                )
                blank += 1
            blank = i + 1
            row = i if pinned.shape[0] > 1 else 0
            limited = limits[lane]
            touched = False
            n_spare = n_known[slot]
            for j in range(N):
                q = w[AT_Q + j * LANES + lane]
                low, high = q <= w[AT_LO + j * LANES + lane], q >= w[AT_HI + j * LANES + lane]
                value, slope = q, 1.0
                if FORMS[j] == "log":
                    value = math.exp(q)
                    slope = value
                elif FORMS[j] == "inverse":
                    value = 1.0 / q
                    slope = value * value
                    low, high = high, low
                if j == KURTOSIS:
                    value *= limited
                free = math.isnan(pinned[row, j])
                low, high = low and free, high and free
                if low or high:
                    touched = True
                    if j != KURTOSIS or limited == 1.0:
                        value = outer_lo[j] if low else outer_hi[j]
                elif free:
                    n_spare -= 1
                at_low[i, j], at_high[i, j] = low, high
                unit = 1.0 / scales[slot] if scaled[j] else 1.0
                parameters[i, j] = value * unit
                errors[i, j] = slope * unit if free and not (low or high) else math.nan
            variance = squares[slot] / n_spare if n_spare > 0 else math.nan
            for j in range(N):
                d = w[AT_D + j * LANES + lane]
                # Beyond 1e290 the signal does not depend on the parameter at all.
                errors[i, j] *= math.sqrt(d * variance) if d < 1e290 else math.inf
            cost[i] = squares[slot] / scales[slot] / scales[slot]
            status[i] = 2 if not converged[slot] else (1 if touched else 0)
            n_iter[i] = steps[slot]
            doubt[i] = disagree[slot]
            ill[i] = w[AT_P1 + lane] > ILL_CONDITIONED
    while blank < len(cost):
        leave_out(blank, parameters, errors, cost, status, n_iter, at_low, at_high, doubt, ill)
        blank += 1


@njit(nogil=True, cache=True, error_model="numpy")
def leave_limit(w, lane, limited):
    """Turn the sums of the inner K, a share of a limit that moves with D, into those of K."""
    k, d = KURTOSIS, DIFFUSIVITY
    q = w[AT_Q + d * LANES + lane]
    # (dK/dq)/ratio, with K = inner K·ratio and the ratio going as 1/D.
    bend = w[AT_Q + k * LANES + lane]
    if FORMS[d] == "plain":
        bend = -bend / q
    elif FORMS[d] == "log":
        bend = -bend
    else:
        bend = bend / q
    kk, dk = entry(w, lane, k, k), entry(w, lane, d, k)
    for j in range(N):
        if j not in (d, k):
            jk = entry(w, lane, j, k)
            put(w, lane, d, j, entry(w, lane, d, j) - bend * jk)
            put(w, lane, j, k, jk / limited)
    put(w, lane, d, d, entry(w, lane, d, d) - 2.0 * bend * dk + bend * bend * kk)
    put(w, lane, d, k, (dk - bend * kk) / limited)
    put(w, lane, k, k, kk / (limited * limited))


@njit(nogil=True, cache=True, error_model="numpy")
def entry(w, lane, i, j):
    """Read an entry of J'J."""
    i, j = max(i, j), min(i, j)
    return w[AT_M + (i * (i + 1) // 2 + j) * LANES + lane]


@njit(nogil=True, cache=True, error_model="numpy")
def put(w, lane, i, j, value):
    """Write an entry of J'J."""
    i, j = max(i, j), min(i, j)
    w[AT_M + (i * (i + 1) // 2 + j) * LANES + lane] = value


@njit(nogil=True, cache=True, error_model="numpy")
def leave_out(i, parameters, errors, cost, status, n_iter, at_low, at_high, doubt, ill):
    """Write the result of a voxel that was not fitted."""
    for j in range(N):
        parameters[i, j] = math.nan
        errors[i, j] = math.nan
        at_low[i, j] = False
        at_high[i, j] = False
    cost[i] = math.nan
    status[i] = 3
    n_iter[i] = 0
    doubt[i] = False
    ill[i] = False


@njit(nogil=True, cache=True, error_model="numpy")
def limit(w, lane, turn_up):
    """Share of K's upper bound that keeps the signal falling; it turns the inner K into K."""
    if KURTOSIS < 0:
        return 1.0
    d = w[AT_Q + DIFFUSIVITY * LANES + lane]
    if FORMS[DIFFUSIVITY] == "log":
        d = math.exp(d)
    elif FORMS[DIFFUSIVITY] == "inverse":
        d = 1.0 / d
    room = turn_up / (d * w[AT_HI + KURTOSIS * LANES + lane])
    return room if 0.0 < room < 1.0 else 1.0
