"""Where the numbers of a lane lie in the work array."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dmrifit.engine.models import Parameter

__all__ = ["LANES", "SINGLE", "UNROLL", "Layout", "form"]

LANES = 16  # voxels side by side; the work array then stays in the first cache
UNROLL = 3  # measurements taken together, so that the sums are loaded and stored less often

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


class Layout:
    """
    Places of the work array for a model.

    Parameters
    ----------
    n_parameters : int
        Of the model.
    """

    def __init__(self, n_parameters: int) -> None:
        self.n = n_parameters
        self.pairs = [(i, j) for i in range(n_parameters) for j in range(i + 1)]
        sizes = dict.fromkeys(SINGLE, 1) | {
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
        self.offset: dict[str, int] = {}
        total = 0
        for name, size in sizes.items():
            self.offset[name] = total
            total += size
        self.n_rows = total
        self.size = total * LANES

    def __call__(self, name: str, i: int = 0) -> str:
        """Write the place of a field's number `i` as code."""
        return f"w[{(self.offset[name] + i) * LANES} + l]"

    def pair(self, name: str, i: int, j: int) -> str:
        """Write the place of entry (i, j) of a symmetric matrix as code."""
        i, j = max(i, j), min(i, j)
        return self(name, i * (i + 1) // 2 + j)


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
