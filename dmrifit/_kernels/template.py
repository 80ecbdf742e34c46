"""
Fit of one signal model to many voxels: the part of a generated kernel that is the same for every model.

This file is not imported. `dmrifit._kernels` copies it, with the constants below set for the model and the
lines of column arithmetic written out, to a module of its own.
"""

import math

import numpy as np
from numba import njit

from dmrifit._kernels.lanes import block

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
KURTOSIS = -1  # K and D of a cumulant −bD + K(bD)²/6, or -1
DIFFUSIVITY = -1
AT: dict = {}
# END OF CONSTANTS

AT_Q, AT_T, AT_M, AT_LO, AT_HI, AT_D = AT["Q"], AT["T"], AT["M"], AT["LO"], AT["HI"], AT["D"]
AT_C, AT_BC, AT_SQ, AT_LAM, AT_IT = AT["C"], AT["BC"], AT["SQ"], AT["LAM"], AT["IT"]
AT_P1, AT_END, AT_NF2 = AT["P1"], AT["END"], AT["NF2"]

# CODE
BEGIN: list = []
ACCUMULATE: list = []
ACCUMULATE_FLOORED: list = []
REGULARIZE: list = []
CHAIN: list = []
ACCEPT: list = []
STEP: list = []
VARIANCES: list = []
# END OF CODE

begin_sums = block(BEGIN, LANES)
accumulate = block(ACCUMULATE, LANES)
accumulate_floored = block(ACCUMULATE_FLOORED, LANES)
regularize = block(REGULARIZE, LANES)
chain = block(CHAIN, LANES)
accept = block(ACCEPT, LANES)
choose_step = block(STEP, LANES)
find_variances = block(VARIANCES, LANES)

# No reassociation, so that a lane's bits do not depend on how wide the processor's vectors are.
FAST = {"contract", "nsz"}


@njit(nogil=True, cache=True, error_model="numpy")
def evaluate(w, s, y, v, b, te, floored, regularized):
    """
    Compute residuals, J'r and J'J of all lanes at their trials, in inner coordinates.

    `s` holds what is the same for all lanes: b and te of the measurements at hand, 3/b_max where the signal
    must not turn up (else infinity), the tolerance, then penalties and origins of the regularization.
    """
    begin_sums(w, s, y, v, 0)
    for k in range(0, b.shape[0], UNROLL):
        for u in range(UNROLL):
            s[2 * u], s[2 * u + 1] = b[k + u], te[k + u]
        if floored:
            accumulate_floored(w, s, y, v, k * LANES)
        else:
            accumulate(w, s, y, v, k * LANES)
    if regularized:
        regularize(w, s, y, v, 0)
    chain(w, s, y, v, 0)


@njit(nogil=True, cache=True, error_model="numpy")
def screen(signals, n_free, normalize, values, weights, tops, usable):
    """Copy usable voxels, one block of lanes after another, on the scale of their largest signal."""
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
        if count < n_free or top <= 0.0 or bottom < 0.0 or top == bottom:
            continue
        scale = top if normalize else 1.0
        group, column = n_slots // LANES, n_slots % LANES
        for k in range(m):
            value = signals[i, k]
            known = math.isfinite(value)
            values[group, k, column] = value / scale if known else 0.0
            weights[group, k, column] = 1.0 if known else 0.0
        tops[n_slots] = scale
        usable[n_slots] = i
        n_slots += 1
    return n_slots


@njit(nogil=True, cache=True, error_model="numpy", fastmath=FAST)
def score_block(y, first, second, gram, scores, choices, dots):
    """
    Rate the atoms of the dictionary for one block of lanes, and keep the best of each stratum.

    With two components every pair is rated by its least squares of two non-negative amplitudes; with one,
    every atom by that of one amplitude; without an amplitude, by the distance itself.
    """
    n_first, n_second, m = first.shape[0], second.shape[0], second.shape[1]
    for a in range(n_first + n_second):
        for lane in range(LANES):
            dots[a, lane] = 0.0
        for k in range(m):
            value = first[a, k] if a < n_first else second[a - n_first, k]
            for lane in range(LANES):
                dots[a, lane] += value * y[k, lane]
    n_strata = scores.shape[0]
    for s in range(n_strata):
        for lane in range(LANES):
            scores[s, lane] = -math.inf
            choices[s, lane] = 0.0
    for t in range(n_second):
        tt = gram[n_first + t, n_first + t]
        if n_first == 0:
            s = t * n_strata // n_second
            for lane in range(LANES):
                d = dots[t, lane]
                gain = (d * d / tt if d > 0.0 else 0.0) if AMPLITUDE >= 0 else 2.0 * d - tt
                better = gain > scores[s, lane]
                scores[s, lane] = gain if better else scores[s, lane]
                choices[s, lane] = t if better else choices[s, lane]
        for s in range(n_first):
            vv, vt = gram[s, s], gram[s, n_first + t]
            det = vv * tt - vt * vt
            scale = 1.0 / det if det > 1e-9 * vv * tt else 0.0
            c1, c2, c3, c4, c5 = tt * scale, vt * scale, vv * scale, 1.0 / tt, 1.0 / vv
            for lane in range(LANES):
                v, d = dots[s, lane], dots[n_first + t, lane]
                a1 = v * c1 - d * c2
                a0 = d * c3 - v * c2
                gain = a1 * v + a0 * d
                gain = gain if a1 > 0.0 else d * d * c4
                gain = gain if a0 > 0.0 else v * v * c5
                better = gain > scores[s, lane]
                scores[s, lane] = gain if better else scores[s, lane]
                choices[s, lane] = t if better else choices[s, lane]


@njit(nogil=True, cache=True, error_model="numpy")
def starting_points(y, weight, column, first, second, first_q, second_q, gram, scores, choices, dots, lo, hi, points):
    """Turn the best strata of one lane into starting points in inner coordinates."""
    n_first, n_second, m = first.shape[0], second.shape[0], second.shape[1]
    n_strata = scores.shape[0]
    complete = True
    for k in range(m):
        complete = complete and weight[k, column] != 0.0
    own = gram
    if not complete:
        # A voxel with missing measurements has a Gram matrix of its own; its choice of pairs is kept.
        own = np.zeros_like(gram)
        for i in range(n_first + n_second):
            one = first[i] if i < n_first else second[i - n_first]
            for j in range(n_first + n_second):
                if i < n_first or i == j:
                    two = first[j] if j < n_first else second[j - n_first]
                    total = 0.0
                    for k in range(m):
                        total += weight[k, column] * one[k] * two[k]
                    own[i, j] = total
        for s in range(n_strata):
            scores[s, column] = -math.inf
        for t in range(n_second):
            d, tt = dots[n_first + t, column], own[n_first + t, n_first + t]
            if n_first == 0:
                s = t * n_strata // n_second
                gain = (d * d / tt if d > 0.0 and tt > 0.0 else 0.0) if AMPLITUDE >= 0 else 2.0 * d - tt
                if gain > scores[s, column]:
                    scores[s, column] = gain
                    choices[s, column] = t
            for s in range(n_first):
                a1, a0 = amplitudes(dots[s, column], d, own[s, s], own[s, n_first + t], tt)
                gain = a1 * dots[s, column] + a0 * d
                if gain > scores[s, column]:
                    scores[s, column] = gain
                    choices[s, column] = t
    for p in range(points.shape[0]):
        s = 0
        for other in range(1, n_strata):
            if scores[other, column] > scores[s, column]:
                s = other
        t = int(choices[s, column])
        scores[s, column] = -math.inf
        for i in range(N):
            points[p, i] = second_q[t, i]
            if n_first > 0 and not math.isnan(first_q[s, i]):
                points[p, i] = first_q[s, i]
        d, tt = dots[n_first + t, column], own[n_first + t, n_first + t]
        if n_first > 0:
            a1, a0 = amplitudes(dots[s, column], d, own[s, s], own[s, n_first + t], tt)
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
def place(w, y, v, lane, values, weights, slot, lo, hi, pinned, usable, tops, scaled, sigma):
    """Put the data, bounds and noise floor of a voxel into a lane."""
    group, column = slot // LANES, slot % LANES
    for k in range(values.shape[1]):
        y[k * LANES + lane] = values[group, k, column]
        v[k * LANES + lane] = weights[group, k, column]
    place_bounds(w, lane, slot, lo, hi, pinned, usable, tops, scaled)
    floor = sigma[usable[slot] if sigma.shape[0] > 1 else 0] / tops[slot]
    w[AT_NF2 + lane] = 0.5 * math.pi * floor * floor


@njit(nogil=True, cache=True, error_model="numpy")
def place_bounds(w, lane, slot, lo, hi, pinned, usable, tops, scaled):
    """Put the bounds of a voxel into a lane; a fixed parameter has both at its value."""
    row = usable[slot] if pinned.shape[0] > 1 else 0
    for j in range(N):
        value = pinned[row, j]
        if math.isnan(value):
            w[AT_LO + j * LANES + lane], w[AT_HI + j * LANES + lane] = lo[j], hi[j]
        else:
            value = value / tops[slot] if scaled[j] else value
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
    w[AT_P1 + lane] = 1.0
    w[AT_LAM + lane] = 5e-2  # the first trial is the start itself, which always is better than infinity
    w[AT_IT + lane] = -1.0
    w[AT_END + lane] = 0.0


@njit(nogil=True, cache=True, error_model="numpy", fastmath=FAST)
def prepare(
    signals,
    n_free,
    scaled,
    lo,
    hi,
    first,
    second,
    first_q,
    second_q,
    gram,
    scores,
    values,
    weights,
    tops,
    usable,
    points,
):
    """Screen the voxels and find starting points; returns how many can be fitted."""
    m = signals.shape[1]
    normalize = False
    for j in range(N):
        normalize = normalize or scaled[j]
    n_slots = screen(signals, n_free, normalize, values, weights, tops, usable)
    choices = np.empty(scores.shape)
    dots = np.empty((first.shape[0] + second.shape[0], LANES))
    for group in range((n_slots + LANES - 1) // LANES):
        score_block(values[group, :m], first, second, gram, scores, choices, dots)
        for column in range(min(LANES, n_slots - group * LANES)):
            starting_points(
                values[group, :m],
                weights[group, :m],
                column,
                first,
                second,
                first_q,
                second_q,
                gram,
                scores,
                choices,
                dots,
                lo,
                hi,
                points[group * LANES + column],
            )
    return n_slots


@njit(nogil=True, cache=True, error_model="numpy", fastmath=FAST)
def search(
    n_slots,
    values,
    weights,
    tops,
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
    b,
    te,
    tolerance,
    max_iter,
    ends,
    sums,
    squares,
    converged,
    steps,
):
    """
    Minimize from every starting point of every voxel, and keep the best end of each.

    A column never meets another one, so results do not depend on which voxels are fitted together.
    """
    n_starts = points.shape[1]
    w = np.zeros(SIZE)
    y = np.zeros(b.shape[0] * LANES)
    v = np.zeros(b.shape[0] * LANES)
    s = np.empty(2 * UNROLL + 2 + 2 * N)
    s[2 * UNROLL] = turn_up
    s[2 * UNROLL + 1] = tolerance
    for j in range(N):
        s[2 * UNROLL + 2 + j] = penalty[j]
        s[2 * UNROLL + 2 + N + j] = origin[j]
    slot_of = np.full(LANES, -1, np.int64)
    start_of = np.zeros(LANES, np.int64)
    taken = 0
    active = 0
    for lane in range(LANES):
        for j in range(N):  # an idle lane works on ones; its numbers go nowhere
            w[AT_LO + j * LANES + lane], w[AT_HI + j * LANES + lane] = 1.0, 1.0
            w[AT_T + j * LANES + lane], w[AT_Q + j * LANES + lane] = 1.0, 1.0
        slot_of[lane] = -2
    # The first round only hands out voxels: every lane looks as if it had just ended its last start.
    while True:
        for lane in range(LANES):
            slot = slot_of[lane]
            if slot == -1 or (slot >= 0 and w[AT_END + lane] == 0.0 and w[AT_IT + lane] < max_iter):
                continue
            if slot >= 0:
                steps[slot] += int(w[AT_IT + lane])
                if w[AT_C + lane] < w[AT_BC + lane]:
                    w[AT_BC + lane] = w[AT_C + lane]
                    converged[slot] = w[AT_END + lane] == 1.0
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
                if taken < n_slots:
                    slot = taken
                    place(w, y, v, lane, values, weights, slot, lo, hi, pinned, usable, tops, scaled, sigma)
                    w[AT_BC + lane] = math.inf
                    taken += 1
                slot_of[lane] = slot
            if slot >= 0:
                begin(w, lane, points[slot, start_of[lane]])
                active += 1
        if active == 0:
            break
        evaluate(w, s, y, v, b, te, floored, regularized)
        accept(w, s, y, v, 0)
        choose_step(w, s, y, v, 0)


@njit(nogil=True, cache=True, error_model="numpy")
def finish(
    n_slots,
    m,
    weights,
    tops,
    usable,
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
    parameters,
    errors,
    cost,
    status,
    n_iter,
    bounds_hit,
):
    """Write the results in the units of the model: parameters, standard errors, cost, status, bounds touched."""
    for i in range(len(cost)):
        for j in range(N):
            parameters[i, j] = math.nan
            errors[i, j] = math.nan
        cost[i] = math.nan
        status[i] = 3
        n_iter[i] = 0
        bounds_hit[i] = 0
    w = np.zeros(SIZE)
    for group in range((n_slots + LANES - 1) // LANES):
        n_lanes = min(LANES, n_slots - group * LANES)
        for lane in range(n_lanes):
            slot = group * LANES + lane
            place_bounds(w, lane, slot, lo, hi, pinned, usable, tops, scaled)
            for j in range(N):
                w[AT_Q + j * LANES + lane] = ends[slot, j]
            for j in range(N_PAIRS):
                w[AT_M + j * LANES + lane] = sums[slot, j]
        find_variances(w, w, w, w, 0)
        for lane in range(n_lanes):
            slot = group * LANES + lane
            i = usable[slot]
            row = i if pinned.shape[0] > 1 else 0
            n_spare = 0
            for k in range(m):
                n_spare += int(weights[group, k, lane])
            limited = limit(w, lane, turn_up)
            for j in range(N):
                q = w[AT_Q + j * LANES + lane]
                low, high = w[AT_LO + j * LANES + lane], w[AT_HI + j * LANES + lane]
                value, slope = q, 1.0
                if FORMS[j] == "log":
                    value = math.exp(q)
                    slope = value
                elif FORMS[j] == "inverse":
                    value = 1.0 / q
                    slope = value * value
                if j == KURTOSIS:
                    value *= limited
                    slope *= limited
                free = math.isnan(pinned[row, j])
                if free and (q <= low or q >= high):
                    at_low, at_high = q <= low, q >= high
                    if FORMS[j] == "inverse":
                        at_low, at_high = at_high, at_low
                    if j != KURTOSIS or limited == 1.0:
                        value = outer_lo[j] if at_low else outer_hi[j]
                    bounds_hit[i] |= (1 if at_low else 0) << j | (1 if at_high else 0) << (16 + j)
                    slope = math.nan
                elif free:
                    n_spare -= 1
                else:
                    slope = math.nan
                unit = tops[slot] if scaled[j] else 1.0
                parameters[i, j] = value * unit
                errors[i, j] = slope * unit * math.sqrt(w[AT_D + j * LANES + lane] * squares[slot])
            for j in range(N):
                errors[i, j] = errors[i, j] / math.sqrt(n_spare) if n_spare > 0 else math.nan
            cost[i] = squares[slot] * tops[slot] * tops[slot]
            status[i] = 2 if not converged[slot] else (1 if bounds_hit[i] != 0 else 0)
            n_iter[i] = steps[slot]


@njit(nogil=True, cache=True, error_model="numpy")
def limit(w, lane, turn_up):
    """Share of K's upper bound that keeps the signal falling: it turns the inner K into K itself."""
    if KURTOSIS < 0:
        return 1.0
    d = w[AT_Q + DIFFUSIVITY * LANES + lane]
    if FORMS[DIFFUSIVITY] == "log":
        d = math.exp(d)
    elif FORMS[DIFFUSIVITY] == "inverse":
        d = 1.0 / d
    room = turn_up / (d * w[AT_HI + KURTOSIS * LANES + lane])
    return room if room < 1.0 else 1.0
