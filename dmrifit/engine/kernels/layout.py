"""
Memory of the compiled fits: data of the measurements, and fields of the work array.

Compiled code fits `LANES` voxels side by side; one of them is a lane. The work array has a column
for each lane, and rows for the numbers of its fit, which `Layout` finds by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from dmrifit.engine.formulas.model_formula import Parameter

LANES = 16  # few enough that the work array stays in the first-level cache
UNROLL = 3  # measurements summed at once, so that sums are loaded and stored less often

#: Share of the range between the bounds that intervals of undetermined parameters span at least.
UNDETERMINED_SHARE = 0.75

#: Noise of signals without noise, as a share of the largest one; they have no other residuals.
ROUNDING = 1e-9
#: Degrees of freedom up to which residuals tell less of the noise than all voxels together.
FEW_DEGREES = 3

_CACHE_LINE = 64  # bytes

#: How a fit has ended; one that is lost was abandoned, near its minimum or far from it.
RUNNING, CONVERGED, STUCK, LOST_NEAR, LOST_FAR = 0.0, 1.0, 2.0, 3.0, 4.0

#: What a lane has in place of the index of a voxel: none before its first one, and after its last.
NO_VOXEL_YET, NO_MORE_VOXELS = -2, -1

# Fields with one number a lane. They come first, in the same rows for all models. The fit is at
# its current point and tries a trial point.
SINGLE = (
    "C",  # objective at the current point
    "CT",  # objective at the trial point; after `variances` the factor that limits K
    "BC",  # lowest objective of the starting points fitted so far
    "GB",  # objective that a fit must be expected to fall below; otherwise it is abandoned
    "SQ",  # objective without regularization at the current point
    "SQT",  # the same at the trial point
    "LAM",  # damping
    "P1",  # decrease of the objective that the linearized model predicts for the trial point
    "IT",  # steps so far
    "END",  # whether and how the fit has ended, see `RUNNING`
    "NF2",  # square of the noise floor
)


class Contrasts(NamedTuple):
    """
    The measurements for compiled code, the last one repeated to a multiple of `UNROLL`.

    Exponentials of b alone and of te alone are computed once for each distinct value.
    """

    pairs: NDArray[np.float64]  # b and te of each measurement in turn
    rows: NDArray[np.int64]  # indices of both in `b` and `te`, likewise
    b: NDArray[np.float64]  # distinct values
    te: NDArray[np.float64]

    @classmethod
    def of(cls, b: NDArray, te: NDArray | None) -> Contrasts:
        """Pad b-values in ms/µm² and echo times."""
        missing = -len(b) % UNROLL
        padded_b = np.pad(b, (0, missing), mode="edge")
        padded_te = np.pad(np.zeros(len(b)) if te is None else te, (0, missing), mode="edge")
        distinct_b, row_of_b = np.unique(padded_b, return_inverse=True)
        distinct_te, row_of_te = np.unique(padded_te, return_inverse=True)
        return cls(
            np.stack([padded_b, padded_te], axis=1).ravel(),
            np.stack([row_of_b, row_of_te], axis=1).ravel(),
            distinct_b,
            distinct_te,
        )


class Common(NamedTuple):
    """
    What all voxels of a fit have in common.

    The fit searches in inner coordinates: parameters, their logarithms or inverses, see `form`.
    """

    # The number of parameters; then indices: of S0 and of the fraction of a mixture (−1 without
    # one), and of K and its D.
    numbers: NDArray[np.int64]
    forms: NDArray[np.int64]  # "plain", "log" or "inverse", as 0, 1 or 2
    low: NDArray[np.float64]  # bounds in inner coordinates
    high: NDArray[np.float64]
    outer_low: NDArray[np.float64]  # bounds of the parameters
    outer_high: NDArray[np.float64]
    scaled: NDArray[np.bool_]  # whether a parameter is an amplitude
    n_free: int
    regularized: bool
    turn_up: float  # largest K·D at which the signal still falls with b
    first: int  # stratum of the dictionary that a search begins with, or −1
    middle: NDArray[np.float64]  # of the box in inner coordinates; NaN for parameters that stay
    roots: NDArray[np.float64]  # of the weights of the measurements


class Atoms(NamedTuple):
    """A dictionary of signals (atoms), to find starting points of fits."""

    signals: NDArray[np.float64]
    points: NDArray[np.float64]  # inner coordinates
    gram: NDArray[np.float64]  # products of signals
    constants: NDArray[np.float64]
    n_first: int  # atoms of the first component, which come first


class Starts(NamedTuple):
    """Signals of all voxels of a chunk, and scales and starting points of the usable ones."""

    signals: NDArray[np.float64]
    scales: NDArray[np.float64]
    usable: NDArray[np.int64]  # indices of voxels that can be fitted; all but signals are of these
    n_measured: NDArray[np.int64]
    points: NDArray[np.float64]
    residual_squares: NDArray[np.float64]  # that the best atom of each stratum leaves


class Ends(NamedTuple):
    """Results of the fits of a chunk, in the order of `Starts.usable`."""

    points: NDArray[np.float64]
    sums: NDArray[np.float64]
    squares: NDArray[np.float64]
    converged: NDArray[np.bool_]
    steps: NDArray[np.int64]
    disagree: NDArray[np.bool_]


def zeros_of_lanes(*shape: int) -> NDArray[np.float64]:
    """Make an array of zeros that begins at a cache line, where vector code is fastest."""
    size = 8 * math.prod(shape)
    raw = np.zeros(size + _CACHE_LINE, np.uint8)
    start = -raw.ctypes.data % _CACHE_LINE
    return raw[start : start + size].view(np.float64).reshape(shape)


#: Fields of the work array of a fit, those of `SINGLE` first, with their shapes.
FIT_FIELDS = dict.fromkeys(SINGLE, "one") | {
    "Q": "vector",  # current point, in inner coordinates
    "T": "vector",  # trial point, in inner coordinates
    "X": "vector",  # trial point, in the parameters of the formula
    "G": "vector",  # J'r at the current point, of residuals r and the Jacobian J of the signal
    "GT": "vector",  # J'r at the trial point
    "LO": "vector",  # bounds, in inner coordinates
    "HI": "vector",
    "D": "vector",  # diagonal of the inverse of J'J
    "M": "matrix",  # J'J at the current point
    "MT": "matrix",  # J'J at the trial point
}

#: Fields of the work array of intervals. The bounds count as a weak prior; the quadratic form is
#: the objective with it, to second order at the estimate.
INTERVAL_FIELDS = {
    "TOP": "one",  # largest signal
    "LARGEST": "one",  # largest magnitude of a signal
    "NF2": "one",  # square of the noise floor
    "DOF": "one",  # degrees of freedom
    "SPAN": "one",  # distance of a probe from the minimum, in SD
    "COUNT": "one",  # parameters that the bounds alone determine
    "QUANTILE": "one",
    "VARIANCE": "one",  # of the noise
    "LEAST": "one",  # smallest value of the quadratic form
    "SQT": "one",  # r'r at the point T, of residuals r and the Jacobian J of the signal
    "GT": "vector",  # J'r there
    "MT": "matrix",  # J'J there
    "P": "vector",  # estimate, in the units of the parameters
    "U": "vector",  # estimate, in coordinates
    "LO": "vector",  # bounds, in coordinates
    "HI": "vector",
    "WEIGHT": "vector",  # precision of the prior
    "MID": "vector",  # mean of the prior
    "T": "vector",  # point at which signals are computed, in coordinates
    "X": "vector",  # the same, in the parameters of the formula
    "SD": "vector",
    "MIDDLE": "vector",  # minimum of the quadratic form
    "COV": "square",  # covariances
    "DISTANCE": "sides",  # of the probe of each side from the minimum
    "BEND": "sides",  # curvature of the objective on each side
    "END": "sides",  # ends of the intervals
}


class Layout:
    """
    Rows of the fields of a work array, for models of some number of parameters.

    A field of the shape "one" has one row, "vector" one a parameter, "matrix" one an entry of the
    lower triangle, "square" one an entry, and "sides" one an end of each interval.
    """

    def __init__(self, n_parameters: int, fields: Mapping[str, str] = FIT_FIELDS) -> None:
        n = n_parameters
        self.n = n
        self.pairs = [(i, j) for i in range(n) for j in range(i + 1)]
        sizes = {"one": 1, "vector": n, "matrix": len(self.pairs), "square": n * n, "sides": 2 * n}
        self.shapes = fields
        self.offset: dict[str, int] = {}
        self.n_rows = 0
        for name, shape in fields.items():
            self.offset[name] = self.n_rows
            self.n_rows += sizes[shape]


class Fields:
    """Fields of a work array as attributes: ``w.C``, ``w.X[i]``, and ``w.M[i, j] = w.M[j, i]``."""

    def __init__(self, layout: Layout, rows: Any) -> None:
        vars(self).update(_layout=layout, _rows=rows)

    def __getattr__(self, name: str) -> Any:
        field = _Field(self._rows, self._layout.offset[name])
        return field[0] if self._layout.shapes[name] == "one" else field

    def __setattr__(self, name: str, value: Any) -> None:
        self._rows[self._layout.offset[name]] = value


class _Field:
    """Rows of one field, by the index of a parameter or of two."""

    def __init__(self, rows: Any, first: int) -> None:
        self._rows, self._first = rows, first

    def _row(self, index: int | tuple[int, int]) -> int:
        if isinstance(index, tuple):
            i, j = max(index), min(index)
            index = i * (i + 1) // 2 + j
        return self._first + index

    def __getitem__(self, index: int | tuple[int, int]) -> Any:
        return self._rows[self._row(index)]

    def __setitem__(self, index: int | tuple[int, int], value: Any) -> None:
        self._rows[self._row(index)] = value


def is_share(parameter: Parameter) -> bool:
    """Tell whether a parameter is a share of the signal, from 0 to 1."""
    return parameter.unit == "" and (parameter.low, parameter.high) == (0.0, 1.0)


def form(parameter: Parameter) -> str:
    """
    Choose the inner coordinate of a parameter: "plain", "log" or "inverse".

    Relaxation times act through their inverse; a positive parameter known only to an order of
    magnitude is searched by its logarithm.
    """
    low, high, unit = parameter.low, parameter.high, parameter.unit
    if unit == "ms" and low > 0:
        return "inverse"
    if unit != "signal" and low > 0 and high / low >= 20:
        return "log"
    return "plain"
