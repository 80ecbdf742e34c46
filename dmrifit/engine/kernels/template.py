"""
Template of a kernel: the parts of a fit and of its intervals that depend on the signal model.

This file is not imported. `formula.source` copies it, with the constants below set for the model
and its formula written out, to a module of its own. Everything else about a fit is in `shared`,
which calls `advance` and `variances` by their addresses.
"""

import math
from functools import cache

import numpy as np
from numba import types

from dmrifit.engine.kernels.lanes import block, choose, exp, log, njit, sqrt  # noqa: F401
from dmrifit.engine.kernels.layout import FEW_DEGREES, LANES, UNROLL
from dmrifit.engine.kernels.steps import COLUMN, PARAMETER, SIDE, FitSteps, IntervalSteps, Signal

# CONSTANTS
N = 1  # parameters
FORMS = ("plain",)  # how each parameter relates to its inner coordinate
KINDS = ("plain",)  # and to that in its intervals
AMPLITUDE = -1  # the parameter that scales the signal, or -1
MIXTURE = -1  # the fraction f of f·g₁ + (1 − f)·g₀, or -1
FIRST = ()  # the parameters of g₁
CALLED = False  # whether the signal is a user's function, not lines of arithmetic
N_BY_B = 0  # exponentials of b alone, and of te alone, that are tabulated
N_BY_TE = 0
KURTOSIS = -1  # K and D of a cumulant −bD + K(bD)²/6, or -1
DIFFUSIVITY = -1
# END OF CONSTANTS


# FORMULA
def evaluate_signal(x, b, te, eb, ete):
    """Compute the signal and its derivatives by the coordinates `x` of the formula."""
    return [0.0] * (N + 1)


def exponents_of_b(x, b):
    """Compute the exponents of b alone that are tabulated."""
    return []


def exponents_of_te(x, te):
    """Compute the exponents of te alone."""
    return []


# END OF FORMULA


# FUNCTION
@njit
def function(b, te, x):
    """Compute the signal of one measurement, where it is a function of the user's."""
    return 0.0


# END OF FUNCTION

SIGNAL = Signal(
    FORMS,
    KURTOSIS,
    DIFFUSIVITY,
    None if CALLED else evaluate_signal,
    exponents_of_b,
    exponents_of_te,
)
STEPS, INTERVALS = FitSteps(SIGNAL), IntervalSteps(SIGNAL, KINDS)

helper = njit(nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)


@helper
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


def evaluation(steps, is_bounded):
    """Make the function that evaluates all measurements by the steps of a fit or its intervals."""
    layout = steps.layout
    x_row, low_row, high_row = (layout.offset[name] for name in ("X", "LO", "HI"))
    begin = block(steps.begin, layout)
    tabulate_b = block(steps.tabulate_b, layout)
    tabulate_te = block(steps.tabulate_te, layout)
    accumulate = block(steps.accumulate, layout)
    accumulate_floored = block(steps.accumulate_floored, layout)
    regularize = block(steps.regularize, layout)
    chain = block(steps.chain, layout)

    @helper
    def differentiate(w, t, at, b, te):
        """Write the user's function of all lanes, and its finite differences, to the table `t`."""
        x = np.empty(N)
        for lane in range(LANES):
            for j in range(N):
                x[j] = outer_of(w[(x_row + j) * LANES + lane], j)
            t[at + lane] = function(b, te, x)
            for j in range(N):
                here = w[(x_row + j) * LANES + lane]
                reach = 6e-6 * max(abs(here), 1e-4)
                up, down = here + reach, here - reach
                if is_bounded and FORMS[j] == "plain":
                    up = min(up, w[(high_row + j) * LANES + lane])
                    down = max(down, w[(low_row + j) * LANES + lane])
                slope = 0.0
                if up > down:
                    x[j] = outer_of(up, j)
                    above = function(b, te, x)
                    x[j] = outer_of(down, j)
                    slope = (above - function(b, te, x)) / (up - down)
                    x[j] = outer_of(here, j)
                t[at + (1 + j) * LANES + lane] = slope

    @njit(nogil=True, error_model="numpy", no_cpython_wrapper=True)
    def evaluate(w, s, y, v, t, o, contrasts, rows, b, te, n, n_b, n_te, floored, regularized):
        """
        Compute r'r, J'r and J'J of all lanes at their points, in the coordinates of the steps.

        `s` holds what is the same for all lanes: b and te of the measurements at hand, then what
        the steps say. Exponentials of b alone and of te alone stand in the table `t`, one row for
        each of the values `b` and `te`; `rows` says which two rows a measurement needs.
        """
        begin(w, s, y, v, t, o)
        after_b = N_BY_B * n_b * LANES
        if N_BY_B > 0:
            for i in range(n_b):
                s[0] = b[i]
                o[1] = N_BY_B * i * LANES
                tabulate_b(w, s, y, v, t, o)
        if N_BY_TE > 0:
            for i in range(n_te):
                s[0] = te[i]
                o[1] = after_b + N_BY_TE * i * LANES
                tabulate_te(w, s, y, v, t, o)
        for k in range(0, n, UNROLL):
            o[0] = k * LANES
            for u in range(UNROLL):
                at = 2 * (k + u)
                s[2 * u] = contrasts[at]
                s[2 * u + 1] = contrasts[at + 1]
                if CALLED:
                    o[1 + 2 * u] = (N + 1) * u * LANES
                    differentiate(w, t, (N + 1) * u * LANES, contrasts[at], contrasts[at + 1])
                else:
                    o[1 + 2 * u] = N_BY_B * rows[at] * LANES
                    o[2 + 2 * u] = after_b + N_BY_TE * rows[at + 1] * LANES
            if floored:
                accumulate_floored(w, s, y, v, t, o)
            else:
                accumulate(w, s, y, v, t, o)
        if regularized:
            regularize(w, s, y, v, t, o)
        chain(w, s, y, v, t, o)

    return evaluate


evaluate = evaluation(STEPS, True)
accept = block(STEPS.accept, STEPS.layout)
choose_step = block(STEPS.step, STEPS.layout)
leave_limit = block(STEPS.leave_limit, STEPS.layout)
find_variances = block(STEPS.variances, STEPS.layout)

_NUMBERS = types.CPointer(types.double)
_PLACES = types.CPointer(types.int64)
_DATA = (*[_NUMBERS] * 5, _PLACES, _NUMBERS, _PLACES, _NUMBERS, _NUMBERS)
ADVANCE = types.void(*_DATA, *[types.int64] * 5)
VARIANCES_OF = types.void(_NUMBERS, _NUMBERS, _PLACES)


@njit(nogil=True, cache=True, error_model="numpy", no_cpython_wrapper=True)
def advance(w, s, y, v, t, o, contrasts, rows, b, te, n, n_b, n_te, floored, regularized):
    """Evaluate the trials of all lanes, accept the better ones, and choose the next."""
    evaluate(w, s, y, v, t, o, contrasts, rows, b, te, n, n_b, n_te, floored, regularized)
    accept(w, s, y, v, t, o)
    choose_step(w, s, y, v, t, o)


@njit(nogil=True, cache=True, error_model="numpy", no_cpython_wrapper=True)
def variances(w, s, o):
    """Compute the diagonal of the inverse of J'J in all lanes, and in `CT` K over inner K."""
    leave_limit(w, s, w, w, w, o)
    find_variances(w, s, w, w, w, o)


def address_of(function, signature):
    """Compile a function, or load it, and find the address of its code for C."""
    function.compile(signature)
    compiled = function.overloads[signature.args]
    return compiled.library.get_pointer_to_function(compiled.fndesc.llvm_cfunc_wrapper_name)


@cache
def addresses():
    """Find the two functions that `shared` calls."""
    return address_of(advance, ADVANCE), address_of(variances, VARIANCES_OF)


evaluate_interval = evaluation(INTERVALS, False)
place = block(INTERVALS.place, INTERVALS.layout)
count_undetermined = block(INTERVALS.count_undetermined, INTERVALS.layout)
center = block(INTERVALS.center, INTERVALS.layout)
probe = block(INTERVALS.probe, INTERVALS.layout)
bend = block(INTERVALS.bend, INTERVALS.layout)
finish = block(INTERVALS.finish, INTERVALS.layout)

_AT = INTERVALS.layout.offset
P, SPAN, QUANTILE, END = _AT["P"], _AT["SPAN"], _AT["QUANTILE"], _AT["END"]
TOP, LARGEST, NF2, DOF, COUNT = (_AT[name] for name in ("TOP", "LARGEST", "NF2", "DOF", "COUNT"))
# Factor of `LARGEST` where nothing tells the noise: so large that intervals fill the box.
UNKNOWN = 1e12
PROBED, FREE, KEPT, SIGN = INTERVALS.probed, INTERVALS.free, INTERVALS.kept, INTERVALS.sign


@helper
def sum_up(work, contrasts, floored):
    """Compute r'r, J'r and J'J of all lanes at their points; derivatives by the coordinates."""
    w, s, y, v, t, o = work
    pairs, rows, b, te = contrasts
    n = len(pairs) // 2
    flat = w.reshape(w.size)
    evaluate_interval(flat, s, y, v, t, o, pairs, rows, b, te, n, len(b), len(te), floored, False)


@helper
def load(w, y, v, lane, signal, roots, parameters, n_free, floor2, least, denoised, probes):
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
    dof, last, known = n_usable - n_free, len(probes) - 1, math.isfinite(least)
    # The most degrees of freedom that are left where the bounds alone determine parameters.
    w[QUANTILE, lane] = max(n_usable - 1, 1)
    if dof < 1:
        # There are no residuals; what was measured of the noise before is certain.
        dof = w[QUANTILE, lane] = last
        largest = max(largest, least) if known else UNKNOWN * largest
    elif known and (denoised or dof <= FEW_DEGREES):
        largest = max(largest, least)
        if dof <= FEW_DEGREES:
            # Student's t of few residuals would be wider by far than the noise of the image.
            w[QUANTILE, lane] = last
    w[TOP, lane], w[LARGEST, lane], w[NF2, lane] = top, largest, floor2
    w[DOF, lane], w[SPAN, lane] = dof, probes[last if w[QUANTILE, lane] == last else dof]


@njit(nogil=True, cache=True, error_model="numpy", no_cfunc_wrapper=True)
def fill_intervals(
    signals, first, roots, contrasts, parameters, floor2, floored, least, denoised, n_free,
    quantiles, probes, work, voxels, ends,
):  # fmt: skip
    """
    Fill in the ends of the intervals of the voxels from `first` on.

    Shapes: `signals` and `voxels` (n_chunk, n_measurements) and (n_chunk,), `floor2` (1 or
    n_voxels,), `least` the same, the signal that rounds by as much as the noise, NaN where that is
    unknown (the least noise also of signals that are `denoised`), `quantiles` (n_levels,
    n_measurements + 2) and `probes` (n_measurements + 2,) by degrees of freedom, the last ones of
    a known noise, `roots` (n_measurements,) of the weights, `ends` (n_levels, n_voxels, N, 2).
    """
    w, s, y, v, _, o = work
    n_fitted = 0
    for i in range(len(signals)):
        fitted = True
        for j in range(N):
            fitted = fitted and math.isfinite(parameters[first + i, j])
        if fitted:
            voxels[n_fitted] = first + i
            n_fitted += 1
        else:
            ends[:, first + i] = math.nan
    for start in range(0, n_fitted, LANES):
        n_lanes = min(LANES, n_fitted - start)
        for lane in range(LANES):
            # Idle lanes work on a voxel once more; their numbers go nowhere.
            i = voxels[start + min(lane, n_lanes - 1)]
            noise2 = floor2[i if len(floor2) > 1 else 0]
            known = least[i if len(least) > 1 else 0]
            signal, estimates = signals[i - first], parameters[i]
            load(w, y, v, lane, signal, roots, estimates, n_free, noise2, known, denoised, probes)
        place(w, s, y, v, w, o)
        sum_up(work, contrasts, floored)
        count_undetermined(w, s, y, v, w, o)
        for lane in range(LANES):
            w[DOF, lane] = min(w[DOF, lane] + w[COUNT, lane], w[QUANTILE, lane])
        center(w, s, y, v, w, o)
        for lane in range(LANES):
            if w[QUANTILE, lane] == len(probes) - 1:
                w[DOF, lane] = len(probes) - 1
            w[SPAN, lane] = probes[int(w[DOF, lane])]
        for j in range(N):
            s[KEPT + j] = s[FREE + j]
        for j in range(N):
            if not PROBED[j] or s[FREE + j] == 0.0:
                continue
            s[KEPT + j] = 0.0
            for side in range(2):
                s[SIGN] = 2.0 * side - 1.0
                o[PARAMETER] = j * LANES
                o[COLUMN] = j * N * LANES
                o[SIDE] = (side * N + j) * LANES
                probe(w, s, y, v, w, o)
                sum_up(work, contrasts, floored)
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
