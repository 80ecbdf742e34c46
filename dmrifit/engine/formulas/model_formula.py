"""Formulas of signal models: parameters with units and bounds, and the expression."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from dmrifit.engine.formulas.expressions import FUNCTIONS, names_in

#: The unit of an amplitude. Its bounds are multiples of the voxel's largest signal.
SIGNAL_UNIT = "signal"

_REFUSED_UNITS = {"mm²/s": 1e3, "m²/s": 1e9}
_PROTOCOL_NAMES = ("b", "te")


@dataclass(frozen=True)
class Parameter:
    """
    A parameter of a signal model.

    Parameters
    ----------
    name : str
        A Python identifier, used in expressions, column names and file names.
    unit : str
        ``"signal"`` for an amplitude, else the unit as printed, such as ``"µm²/ms"``, ``"ms"``,
        ``""``.
    low, high : float
        The box the parameter is searched in; infinite ends are allowed. For an amplitude these are
        multiples of the voxel's largest signal, because magnitudes have no absolute scale.

    Raises
    ------
    ValueError
        If the name is no identifier, the box is empty, or the unit is one in which b·D is not
        dimensionless (mm²/s).
    """

    name: str
    unit: str
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or self.name in (*_PROTOCOL_NAMES, *FUNCTIONS):
            raise ValueError(
                f"a parameter cannot be named {self.name!r}: use an identifier other than b, te, "
                "exp, log, sqrt"
            )
        unit = re.sub(r"m\^?2", "m²", self.unit)
        if unit in _REFUSED_UNITS:
            raise ValueError(
                f"parameter {self.name} is in {self.unit}, but b is in ms/µm² inside a model: "
                "give it in µm²/ms "
                f"and multiply its bounds by {_REFUSED_UNITS[unit]:g}"
            )
        if not self.low <= self.high:
            raise ValueError(
                f"parameter {self.name} has the empty bounds ({self.low}, {self.high}): the lower "
                "one comes first"
            )

    @property
    def is_amplitude(self) -> bool:
        """Whether the parameter scales with the signal."""
        return self.unit == SIGNAL_UNIT


@dataclass(frozen=True)
class ModelFormula:
    """What the kernels of a `SignalModel` are made from; its docstring describes the fields."""

    name: str
    parameters: tuple[Parameter, ...]
    expression: str
    published_bounds: Mapping[str, tuple[float, float]] | None = field(default=None, compare=False)
    cumulant: tuple[str, str] | None = None
    source: str = ""
    default_method: str = field(default="nlls", compare=False)
    keeps_falling: bool = field(default=False, compare=False)
    references: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", tuple(self.parameters))
        if len(set(self.names)) != len(self.names) or not self.names:
            raise ValueError(
                f"model {self.name} needs parameters with different names, not {self.names}"
            )
        if self.source:
            return
        used = names_in(self.expression)
        unknown = used - set(self.names) - set(_PROTOCOL_NAMES)
        unused = set(self.names) - used
        problem = ""
        if unknown:
            problem = f"uses the unknown {sorted(unknown)}"
        elif unused:
            problem = f"does not use {sorted(unused)}"
        if problem:
            raise ValueError(
                f"model {self.name}: the expression {problem}; parameters are {self.names}, "
                "and b (ms/µm²) and te (ms) are given"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters, in order."""
        return tuple(parameter.name for parameter in self.parameters)

    @property
    def units(self) -> tuple[str, ...]:
        """Units of the parameters, in the order of `names`."""
        return tuple(parameter.unit for parameter in self.parameters)

    @property
    def bounds(self) -> tuple[tuple[float, float], ...]:
        """Default (low, high) in the order of `names`; of an amplitude as in `Parameter`."""
        return tuple((parameter.low, parameter.high) for parameter in self.parameters)

    @property
    def needs_te(self) -> bool:
        """Whether the signal depends on the echo time."""
        if self.source:
            return bool(re.match(r"def \w+\(b, te\b", self.source))
        return "te" in names_in(self.expression)
