"""Where the numbers of a lane lie in the work array."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from dmrifit.engine.formulas.model_formula import Parameter

LANES = 16  # voxels side by side; the work array then stays in the first cache
UNROLL = 3  # measurements taken together, so that the sums are loaded and stored less often

#: Share of the box from which on an interval says nothing that the box did not.
UNDETERMINED_SHARE = 0.75

#: Noise of signals without noise, of the largest one; they have no other residuals.
ROUNDING = 1e-9

_CACHE_LINE = 64  # bytes

# Fields of a lane that hold one number; they come first, at the same places for all models.
SINGLE = (
    "C",  # objective where it stands, at the trial, at the best end of starts so far
    "CT",
    "BC",
    "GB",  # the objective below which a start must promise to end, or be given up
    "SQ",  # the objective without regularization, where it stands and at the trial
    "SQT",
    "LAM",  # damping
    "P1",  # what the trial promises to take off the objective
    "IT",
    "END",  # 0 on the way, 1 converged, 2 stuck, 3 and 4 given up
    "NF2",  # square of the noise floor
)


class Contrasts(NamedTuple):
    """
    The measurements as a kernel takes them, the last one repeated to a multiple of `UNROLL`.

    Exponentials of b alone and of te alone are computed once for each distinct value; `rows` says
    which two values a measurement has. Both numbers of a measurement follow each other.
    """

    pairs: NDArray[np.float64]
    rows: NDArray[np.int64]
    b: NDArray[np.float64]
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
    """What is the same for all voxels of a fit."""

    numbers: NDArray[np.int64]  # parameters, S0 or −1, the fraction of a mixture or −1, K, its D
    forms: NDArray[np.int64]  # "plain", "log" or "inverse", as 0, 1 or 2
    low: NDArray[np.float64]  # in inner coordinates, as is `middle`
    high: NDArray[np.float64]
    outer_low: NDArray[np.float64]
    outer_high: NDArray[np.float64]
    scaled: NDArray[np.bool_]  # amplitudes
    n_free: int
    regularized: bool
    turn_up: float  # largest K·D at which the signal still falls
    first: int  # the stratum of atoms that a search begins with, or −1
    middle: NDArray[np.float64]


class Atoms(NamedTuple):
    """The signals of a dictionary, their inner coordinates, and what they are rated by."""

    signals: NDArray[np.float64]
    points: NDArray[np.float64]
    gram: NDArray[np.float64]
    constants: NDArray[np.float64]
    n_first: int  # those of the first component come first


class Starts(NamedTuple):
    """The voxels of a chunk, then those that can be fitted, and their starting points."""

    signals: NDArray[np.float64]
    scales: NDArray[np.float64]
    usable: NDArray[np.int64]  # places in `signals`
    n_measured: NDArray[np.int64]
    points: NDArray[np.float64]
    ratings: NDArray[np.float64]  # sums of squares of the best atoms of each stratum


class Ends(NamedTuple):
    """Where the searches of the voxels ended, in the order of `Starts`."""

    points: NDArray[np.float64]
    sums: NDArray[np.float64]
    squares: NDArray[np.float64]
    converged: NDArray[np.bool_]
    steps: NDArray[np.int64]
    disagree: NDArray[np.bool_]


def zeros_of_lanes(*shape: int) -> NDArray[np.float64]:
    """Make an array of zeros for vector code, which is slower where vectors cross cache lines."""
    size = 8 * math.prod(shape)
    raw = np.zeros(size + _CACHE_LINE, np.uint8)
    start = -raw.ctypes.data % _CACHE_LINE
    return raw[start : start + size].view(np.float64).reshape(shape)


#: Fields of the work array of a fit after `SINGLE`, by their shapes.
FIT_FIELDS = dict.fromkeys(SINGLE, "one") | {
    "Q": "vector",  # where the lane stands, in inner coordinates
    "T": "vector",  # where it tries to go
    "X": "vector",  # the trial in the coordinates of the formula
    "G": "vector",  # J'r where it stands and at the trial
    "GT": "vector",
    "LO": "vector",
    "HI": "vector",
    "D": "vector",  # diagonal of the inverse of J'J
    "M": "matrix",  # J'J where it stands and at the trial
    "MT": "matrix",
}

#: Fields of the work array of intervals.
INTERVAL_FIELDS = {
    "TOP": "one",  # largest signal, and largest magnitude
    "LARGEST": "one",
    "NF2": "one",  # square of the noise floor
    "DOF": "one",
    "SPAN": "one",  # standard deviations from the middle to a probe
    "COUNT": "one",  # parameters that the box alone determines
    "QUANTILE": "one",
    "VARIANCE": "one",  # of the noise
    "LEAST": "one",  # the minimum of the quadratic form
    "SQT": "one",  # r'r, J'r and J'J at the point
    "GT": "vector",
    "MT": "matrix",
    "P": "vector",  # the estimate, and its coordinates
    "U": "vector",
    "LO": "vector",
    "HI": "vector",
    "WEIGHT": "vector",  # precision and mean of the prior
    "MID": "vector",
    "T": "vector",  # the point, and the same in the coordinates of the formula
    "X": "vector",
    "SD": "vector",
    "MIDDLE": "vector",  # the minimum of the quadratic form
    "COV": "square",
    "DISTANCE": "sides",  # of the probe of each side, and the curvature found
    "BEND": "sides",
    "END": "sides",
}


class Layout:
    """Rows of a work array, by the names of its fields."""

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
    """The numbers of a lane by name: ``w.C``, ``w.X[i]``, and of symmetric ``w.M[i, j]``."""

    def __init__(self, layout: Layout, rows: Any) -> None:
        vars(self).update(_layout=layout, _rows=rows)

    def __getattr__(self, name: str) -> Any:
        field = _Field(self._rows, self._layout.offset[name])
        return field[0] if self._layout.shapes[name] == "one" else field

    def __setattr__(self, name: str, value: Any) -> None:
        self._rows[self._layout.offset[name]] = value


class _Field:
    """The rows of one field."""

    def __init__(self, rows: Any, first: int) -> None:
        self._rows, self._first = rows, first

    def _row(self, place: int | tuple[int, int]) -> int:
        if isinstance(place, tuple):
            i, j = max(place), min(place)
            place = i * (i + 1) // 2 + j
        return self._first + place

    def __getitem__(self, place: int | tuple[int, int]) -> Any:
        return self._rows[self._row(place)]

    def __setitem__(self, place: int | tuple[int, int], value: Any) -> None:
        self._rows[self._row(place)] = value


def is_share(parameter: Parameter) -> bool:
    """Whether a parameter is a share of the signal, from 0 to 1."""
    return parameter.unit == "" and (parameter.low, parameter.high) == (0.0, 1.0)


def form(parameter: Parameter) -> str:
    """
    Choose the inner coordinate of a parameter.

    Relaxation times act through their inverse; a positive parameter known only to an order of
    magnitude is searched by its logarithm.
    """
    low, high, unit = parameter.low, parameter.high, parameter.unit
    if unit == "ms" and low > 0:
        return "inverse"
    if unit != "signal" and low > 0 and high / low >= 20:
        return "log"
    return "plain"
