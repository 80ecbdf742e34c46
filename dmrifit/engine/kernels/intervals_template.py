"""
Template of the intervals of one signal model.

This file is not imported. `interval_formula.source` copies it, with the constants of the model and
the lines of lane arithmetic, to a module of its own.
"""

import math

import numpy as np

from dmrifit.engine.kernels.lanes import block, njit

# CONSTANTS
N = 1  # parameters
LANES = 16
UNROLL = 2  # measurements taken together
N_ROWS = 16  # of the work array
FORMS = ("plain",)  # how each parameter relates to its coordinate in the formula
PROBED = (True,)  # parameters whose sides are probed for curvature
STEPS = (1e-6,)  # for differences by a parameter that is zero
CALLED = False  # whether the signal is a user's function, not lines of arithmetic
N_BY_B = 0  # exponentials of b alone, and of te alone, that are tabulated
N_BY_TE = 0
AT: dict = {}  # rows of the work array
FREE = 0  # places of what is the same for all lanes
KEPT = 0
BOUNDS = 0
SIGN = 0
TURN_UP = 0
N_COMMON = 0
PROBED_ROWS = 0  # places of where to find the numbers of the parameter that is probed
N_PLACES = 0
# END OF CONSTANTS

X, P, SPAN, QUANTILE, END = AT["X"], AT["P"], AT["SPAN"], AT["QUANTILE"], AT["END"]
TOP, LARGEST, NF2, DOF, COUNT = AT["TOP"], AT["LARGEST"], AT["NF2"], AT["DOF"], AT["COUNT"]
STEP = 6e-6  # the root of rounding, for central differences

# CODE
PLACE: list = []
BEGIN: list = []
TABLE_B: list = []
TABLE_TE: list = []
ACCUMULATE: list = []
ACCUMULATE_FLOORED: list = []
CHAIN: list = []
COUNT_UNDETERMINED: list = []
CENTER: list = []
PROBE: list = []
BEND: list = []
FINISH: list = []
# END OF CODE


# FUNCTION
@njit
def function(b, te, x):
    """Compute the signal of one measurement, where it is a function of the user's."""
    return 0.0


# END OF FUNCTION

place = block(PLACE, LANES)
begin = block(BEGIN, LANES)
tabulate_b = block(TABLE_B, LANES)
tabulate_te = block(TABLE_TE, LANES)
accumulate = block(ACCUMULATE, LANES)
accumulate_floored = block(ACCUMULATE_FLOORED, LANES)
chain = block(CHAIN, LANES)
count_undetermined = block(COUNT_UNDETERMINED, LANES)
center = block(CENTER, LANES)
probe = block(PROBE, LANES)
bend = block(BEND, LANES)
finish = block(FINISH, LANES)

helper = njit(nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)


@helper
def differentiate(w, t, at, b, te):
    """Call the user's function for all lanes, and differentiate it by central differences."""
    p = np.empty(N)
    for lane in range(LANES):
        for j in range(N):
            p[j] = 1.0 / w[X + j, lane] if FORMS[j] == "inverse" else w[X + j, lane]
        t[at + lane] = function(b, te, p)
        for j in range(N):
            value = p[j]
            step = STEP * max(abs(value), STEPS[j])
            p[j] = value + step
            above = function(b, te, p)
            p[j] = value - step
            slope = (above - function(b, te, p)) / (2.0 * step)
            p[j] = value
            if FORMS[j] == "inverse":
                slope *= -value * value
            t[at + (1 + j) * LANES + lane] = slope


@helper
def sum_up(w, s, y, v, t, o, contrasts, floored):
    """Compute r'r, J'r and J'J of all lanes at their points; derivatives by the coordinates."""
    begin(w, s, y, v, t, o)
    pairs, rows, b, te = contrasts
    te_at = N_BY_B * len(b) * LANES
    if N_BY_B > 0:
        for i in range(len(b)):
            s[0], o[1] = b[i], N_BY_B * i * LANES
            tabulate_b(w, s, y, v, t, o)
    if N_BY_TE > 0:
        for i in range(len(te)):
            s[0], o[1] = te[i], te_at + N_BY_TE * i * LANES
            tabulate_te(w, s, y, v, t, o)
    for k in range(0, len(pairs), UNROLL):
        o[0] = k * LANES
        for u in range(UNROLL):
            s[2 * u], s[2 * u + 1] = pairs[k + u, 0], pairs[k + u, 1]
            o[1 + 2 * u] = N_BY_B * rows[k + u, 0] * LANES
            o[2 + 2 * u] = te_at + N_BY_TE * rows[k + u, 1] * LANES
            if CALLED:
                o[1 + 2 * u] = (N + 1) * u * LANES
                differentiate(w, t, (N + 1) * u * LANES, s[2 * u], s[2 * u + 1])
        if floored:
            accumulate_floored(w, s, y, v, t, o)
        else:
            accumulate(w, s, y, v, t, o)
    chain(w, s, y, v, t, o)


@helper
def load(w, y, v, lane, signal, roots, parameters, n_free, floor2, probes):
    """Put a voxel into a lane."""
    top, largest, n_usable = -math.inf, 0.0, 0
    for k in range(len(signal)):
        value = signal[k]
        measured = math.isfinite(value)
        y[k * LANES + lane] = value if measured else 0.0
        v[k * LANES + lane] = roots[k] if measured else 0.0
        if measured:
            top = max(top, value)
            largest = max(largest, abs(value))
            n_usable += 1
    for j in range(N):
        w[P + j, lane] = parameters[j]
    w[TOP, lane], w[LARGEST, lane], w[NF2, lane] = top, largest, floor2
    dof = max(n_usable - n_free, 1)
    w[DOF, lane], w[SPAN, lane] = dof, probes[dof]
    # The most that are left when the box determines parameters alone.
    w[QUANTILE, lane] = max(n_usable - 1, 1)


@njit(nogil=True, cache=True, error_model="numpy", no_cfunc_wrapper=True)
def fill_intervals(
    signals,
    first,
    roots,
    contrasts,
    parameters,
    floor2,
    floored,
    n_free,
    quantiles,
    probes,
    w,
    s,
    y,
    v,
    t,
    o,
    voxels,
    ends,
):
    """
    Fill in the ends of the intervals of the voxels from `first` on.

    Shapes: `signals` and `voxels` (n_chunk, n_measurements) and (n_chunk,), `floor2` (1 or
    n_voxels,), `quantiles` (n_levels, n_measurements + 1) and `probes` (n_measurements + 1,) by
    degrees of freedom, `roots` (n_measurements,) of the weights, `ends` (n_levels, n_voxels, N,
    2).
    """
    n_fitted = 0
    for i in range(len(signals)):
        fitted = True
        for j in range(N):
            fitted = fitted and math.isfinite(parameters[first + i, j])
        if fitted:
            voxels[n_fitted] = first + i
            n_fitted += 1
            continue
        for level in range(len(quantiles)):
            for j in range(N):
                ends[level, first + i, j, 0] = math.nan
                ends[level, first + i, j, 1] = math.nan
    for start in range(0, n_fitted, LANES):
        n_lanes = min(LANES, n_fitted - start)
        for lane in range(LANES):
            # Idle lanes work on a voxel once more; their numbers go nowhere.
            i = voxels[start + min(lane, n_lanes - 1)]
            noise2 = floor2[i if len(floor2) > 1 else 0]
            signal, estimates = signals[i - first], parameters[i]
            load(w, y, v, lane, signal, roots, estimates, n_free, noise2, probes)
        place(w, s, y, v, w, o)
        sum_up(w, s, y, v, t, o, contrasts, floored)
        count_undetermined(w, s, y, v, w, o)
        for lane in range(LANES):
            dof = min(w[DOF, lane] + w[COUNT, lane], w[QUANTILE, lane])
            w[DOF, lane], w[SPAN, lane] = dof, probes[int(dof)]
        center(w, s, y, v, w, o)
        for j in range(N):
            s[KEPT + j] = s[FREE + j]
        for j in range(N):
            if not PROBED[j] or s[FREE + j] == 0.0:
                continue
            s[KEPT + j] = 0.0
            for side in range(2):
                s[SIGN] = 2.0 * side - 1.0
                o[PROBED_ROWS] = j * LANES
                o[PROBED_ROWS + 1] = j * N * LANES
                o[PROBED_ROWS + 2] = (side * N + j) * LANES
                probe(w, s, y, v, w, o)
                sum_up(w, s, y, v, t, o, contrasts, floored)
                bend(w, s, y, v, w, o)
            s[KEPT + j] = 1.0
        for level in range(len(quantiles)):
            for lane in range(LANES):
                w[QUANTILE, lane] = quantiles[level, int(w[DOF, lane])]
            finish(w, s, y, v, w, o)
            for lane in range(n_lanes):
                i = voxels[start + lane]
                for j in range(N):
                    for side in range(2):
                        free = s[FREE + j] != 0.0
                        ends[level, i, j, side] = w[END + 2 * j + side, lane] if free else math.nan
