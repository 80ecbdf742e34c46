"""
Template of a kernel: the part of a fit that depends on the signal model.

This file is not imported. `formula.source` copies it, with the constants below set for the model
and the lines of lane arithmetic written out, to a module of its own. Everything else about a fit
is in `shared`, which calls `advance` and `variances` by their addresses.
"""

import math  # noqa: F401  (functions of users call it)
from functools import cache

import numpy as np
from numba import types

from dmrifit.engine.kernels.lanes import block, njit

# CONSTANTS
N = 1  # parameters
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

AT_X, AT_LO, AT_HI = AT["X"], AT["LO"], AT["HI"]

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

_NUMBERS = types.CPointer(types.double)
_PLACES = types.CPointer(types.int64)
_DATA = (*[_NUMBERS] * 5, _PLACES, _NUMBERS, _PLACES, _NUMBERS, _NUMBERS)
ADVANCE = types.void(*_DATA, *[types.int64] * 5)
VARIANCES_OF = types.void(_NUMBERS, _PLACES)


@njit(nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def differentiate(w, t, at, b, te):
    """Call the user's function for all lanes, and differentiate it inside the bounds."""
    x = np.empty(N)
    for lane in range(LANES):
        for j in range(N):
            x[j] = outer_of(w[AT_X + j * LANES + lane], j)
        t[at + lane] = function(b, te, x)
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
            t[at + (1 + j) * LANES + lane] = slope


@njit(nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
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


@njit(nogil=True, error_model="numpy", no_cpython_wrapper=True)
def evaluate(w, s, y, v, t, o, contrasts, rows, b, te, n, n_b, n_te, floored, regularized):
    """
    Compute residuals, J'r and J'J of all lanes at their trials, in inner coordinates.

    `s` holds what is the same for all lanes: b and te of the measurements at hand, 3/b_max where
    the signal must not turn up (else infinity), the tolerance, then penalties and origins of the
    regularization. Exponentials of b alone and of te alone stand in the table `t`, one row for
    each of the values `b` and `te`; `rows` says which two rows a measurement needs.
    """
    begin_sums(w, s, y, v, t, o)
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


@njit(nogil=True, cache=True, error_model="numpy", no_cpython_wrapper=True)
def advance(w, s, y, v, t, o, contrasts, rows, b, te, n, n_b, n_te, floored, regularized):
    """Evaluate the trials of all lanes, accept the better ones, and choose the next."""
    evaluate(w, s, y, v, t, o, contrasts, rows, b, te, n, n_b, n_te, floored, regularized)
    accept(w, s, y, v, t, o)
    choose_step(w, s, y, v, t, o)


@njit(nogil=True, cache=True, error_model="numpy", no_cpython_wrapper=True)
def variances(w, o):
    """Compute the diagonal of the inverse of J'J in all lanes."""
    find_variances(w, w, w, w, w, o)


def address_of(function, signature):
    """Compile a function, or load it, and find the address of its code for C."""
    function.compile(signature)
    compiled = function.overloads[signature.args]
    return compiled.library.get_pointer_to_function(compiled.fndesc.llvm_cfunc_wrapper_name)


@cache
def addresses():
    """Find the two functions that `shared` calls."""
    return address_of(advance, ADVANCE), address_of(variances, VARIANCES_OF)
