"""Where the numbers of a lane lie in the work array."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from dmrifit.engine.formulas.model_formula import Parameter

LANES = 16  # voxels side by side; the work array then stays in the first cache
UNROLL = 3  # measurements taken together, so that the sums are loaded and stored less often

#: Share of the box from which on an interval says nothing that the box did not.
UNDETERMINED_SHARE = 0.75

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
    which two values a measurement has.
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
            np.stack([padded_b, padded_te], axis=1),
            np.stack([row_of_b, row_of_te], axis=1),
            distinct_b,
            distinct_te,
        )


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


class Layout:
    """Places of the work array for a model."""

    def __init__(self, n_parameters: int) -> None:
        self.n = n_parameters
        self.pairs = [(i, j) for i in range(n_parameters) for j in range(i + 1)]
        self.offset: dict[str, int] = {}
        self.n_rows = 0
        for name, size in self._sizes().items():
            self.offset[name] = self.n_rows
            self.n_rows += size
        self.size = self.n_rows * LANES

    def _sizes(self) -> dict[str, int]:
        """Rows of each field, in their order."""
        return dict.fromkeys(SINGLE, 1) | {
            "Q": self.n,  # where the lane stands, in inner coordinates
            "T": self.n,  # where it tries to go
            "X": self.n,  # the trial in the coordinates of the formula
            "G": self.n,  # J'r where it stands and at the trial
            "GT": self.n,
            "LO": self.n,
            "HI": self.n,
            "D": self.n,  # diagonal of the inverse of J'J
            "M": len(self.pairs),  # J'J where it stands and at the trial
            "MT": len(self.pairs),
        }

    def __call__(self, name: str, i: int = 0) -> str:
        """Write the place of a field's number `i` as code."""
        return f"w[{(self.offset[name] + i) * LANES} + l]"

    def pair(self, name: str, i: int, j: int) -> str:
        """Write the place of entry (i, j) of a symmetric matrix as code."""
        i, j = max(i, j), min(i, j)
        return self(name, i * (i + 1) // 2 + j)


class IntervalLayout(Layout):
    """Places of the work array for the intervals of a model."""

    def _sizes(self) -> dict[str, int]:
        return {
            "TOP": 1,  # largest signal, and largest magnitude
            "LARGEST": 1,
            "NF2": 1,  # square of the noise floor
            "DOF": 1,
            "SPAN": 1,  # standard deviations from the middle to a probe
            "COUNT": 1,  # parameters that the box alone determines
            "QUANTILE": 1,
            "VARIANCE": 1,  # of the noise
            "LEAST": 1,  # the minimum of the quadratic form
            "SQ": 1,  # r'r, J'r and J'J at the point
            "G": self.n,
            "M": len(self.pairs),
            "P": self.n,  # the estimate, and its coordinates
            "U": self.n,
            "LO": self.n,
            "HI": self.n,
            "WEIGHT": self.n,  # precision and mean of the prior
            "MID": self.n,
            "T": self.n,  # the point, and the same in the coordinates of the formula
            "X": self.n,
            "SD": self.n,
            "MIDDLE": self.n,  # the minimum of the quadratic form
            "COV": self.n * self.n,
            "DISTANCE": 2 * self.n,  # of the probe of each side, and the curvature found
            "BEND": 2 * self.n,
            "END": 2 * self.n,
        }


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
