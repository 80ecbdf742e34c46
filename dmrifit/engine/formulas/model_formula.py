"""Formulas of signal models: parameters with units and bounds, expressions and their values."""

from __future__ import annotations

import ast
import functools
import keyword
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

#: Functions that an expression may call, for arrays.
FUNCTIONS: dict[str, Callable[..., Any]] = {"exp": np.exp, "log": np.log, "sqrt": np.sqrt}
#: What operators of an expression compute, of numbers, arrays and terms alike.
OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
COMPARISONS: dict[type[ast.cmpop], Callable[..., Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
# Limits that no formula of a signal comes near; beyond them an expression could stall the process.
_LONGEST = 4096  # characters
_HIGHEST_POWER = 64
_LARGEST = 1e300


class Arithmetic(NamedTuple):
    """What an expression is computed with: functions of arrays, or of terms of sympy."""

    number: Callable  # makes a number of a constant
    power: Callable
    functions: Mapping[str, Callable]
    comparisons: Mapping[type[ast.cmpop], Callable]
    choice: Callable  # of two numbers, by a condition
    both: Callable
    either: Callable
    negation: Callable


def evaluated(expression: str, names: Mapping[str, Any], arithmetic: Arithmetic) -> Any:
    """Compute an expression of a signal model from the values of its names."""
    return _evaluated(_parsed(expression), names, arithmetic)


@functools.lru_cache(maxsize=64)
def _parsed(expression: str) -> ast.expr:
    return ast.parse(expression.strip(), mode="eval").body


def _evaluated(node: ast.expr, names: Mapping[str, Any], arithmetic: Arithmetic) -> Any:
    def value(member: ast.expr) -> Any:
        return _evaluated(member, names, arithmetic)

    match node:
        case ast.Constant(value=number):
            return arithmetic.number(number)
        case ast.Name(id=name):
            return names[name]
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return arithmetic.negation(value(operand))
        case ast.UnaryOp(op=op, operand=operand):
            return OPERATORS[type(op)](value(operand))
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return arithmetic.power(value(left), value(right))
        case ast.BinOp(left=left, op=op, right=right):
            return OPERATORS[type(op)](value(left), value(right))
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]):
            return arithmetic.functions[name](value(argument))
        case ast.IfExp(test=test, body=yes, orelse=no):
            return arithmetic.choice(value(test), value(yes), value(no))
        case ast.BoolOp(op=op, values=members):
            join = arithmetic.both if isinstance(op, ast.And) else arithmetic.either
            return functools.reduce(join, map(value, members))
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            return arithmetic.comparisons[type(op)](value(left), value(right))
    raise KeyError(ast.unparse(node))


@functools.lru_cache(maxsize=64)
def names_in(expression: str) -> frozenset[str]:
    """Check that an expression is plain arithmetic; return the names of its variables."""
    if len(expression) > _LONGEST:
        raise ValueError(
            f"the expression {expression[:40]!r}… has {len(expression)} characters, more than "
            f"{_LONGEST}; shorten it"
        )
    names = _Names()
    try:
        with np.errstate(all="ignore"):
            _number(evaluated(expression, names, _SIZES))
    except SyntaxError as error:
        raise ValueError(f"expression {expression!r} is not Python syntax: {error.msg}") from None
    except (KeyError, RecursionError, TypeError) as error:
        raise ValueError(
            f"expression {expression!r} has something that is not allowed ({error}); use numbers, "
            "names, + - * / ** (not ^), exp, log, sqrt and comparisons as in 'x if b > 0 else y'"
        ) from None
    except ValueError as error:
        raise ValueError(f"expression {expression!r}: {error}") from None
    return frozenset(names)


# An expression is checked by computing it: with NaN for the value of a name, and with one object
# for all conditions, which cannot be computed with.
_CONDITION = object()


class _Names(dict[str, float]):
    """The names that an expression has asked for."""

    def __missing__(self, name: str) -> float:
        if name in FUNCTIONS:
            raise KeyError(name)
        self[name] = np.float64(np.nan)
        return self[name]


def _constant(value: Any) -> float:
    if type(value) not in (int, float):
        raise TypeError(repr(value))
    return np.float64(value if abs(value) < _LARGEST else np.inf)


def _number(*values: Any) -> float:
    """Refuse conditions in the place of numbers."""
    return sum(values, start=np.float64(np.nan))


def _condition(*values: Any) -> object:
    """Refuse numbers in the place of conditions."""
    if any(value is not _CONDITION for value in values):
        raise TypeError("a number as a condition")
    return _CONDITION


def _compared(left: float, right: float) -> object:
    _number(left, right)
    return _CONDITION


def _chosen(condition: object, yes: float, no: float) -> float:
    _condition(condition)
    return _number(yes, no)


def _power(base: float, power: float) -> float:
    """Refuse powers of constants such as 9**9**9, which would be computed to the last digit."""
    if abs(power) > _HIGHEST_POWER:
        raise ValueError(
            f"there is a power beyond -{_HIGHEST_POWER} to {_HIGHEST_POWER}; take a smaller one, "
            "or write exp(n*log(x)) for x**n"
        )
    value = abs(base) ** power
    if np.isinf(value):
        raise ValueError("there is too large a number for a computer; write a smaller one")
    return value


_SIZES = Arithmetic(
    number=_constant,
    power=_power,
    functions=dict.fromkeys(FUNCTIONS, _number),
    comparisons=dict.fromkeys(COMPARISONS, _compared),
    choice=_chosen,
    both=_condition,
    either=_condition,
    negation=_condition,
)


#: The unit of an amplitude. Its bounds are multiples of the voxel's largest signal.
SIGNAL_UNIT = "signal"
#: The unit of signals and amplitudes in files, tables and pages: that of the image.
AMPLITUDE_UNIT = "a.u."

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
        If the name is no identifier or a keyword of Python, the box is empty, or the unit is one
        in which b·D is not dimensionless (mm²/s).
    """

    name: str
    unit: str
    low: float
    high: float

    def __post_init__(self) -> None:
        names_in_use = (*_PROTOCOL_NAMES, *FUNCTIONS, *keyword.kwlist)
        if not self.name.isidentifier() or self.name in names_in_use:
            raise ValueError(
                f"a parameter cannot be named {self.name!r}: use an identifier other than b, te, "
                "exp, log, sqrt and the keywords of Python, such as lambda"
            )
        unit = re.sub(r"m\^?2", "m²", self.unit)
        if unit in _REFUSED_UNITS:
            raise ValueError(
                f"parameter {self.name} is in {self.unit}, but b is in ms/µm² inside a model: "
                f"give it in µm²/ms and multiply its bounds by {_REFUSED_UNITS[unit]:g}"
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

    @property
    def shown_unit(self) -> str:
        """The unit as tables, figures and files name it."""
        return AMPLITUDE_UNIT if self.is_amplitude else self.unit


@dataclass(frozen=True)
class ModelFormula:
    """Formula, parameters and bounds of a `SignalModel`, whose docstring describes the fields."""

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
