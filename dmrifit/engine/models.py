"""Signal models as data: parameters with units and bounds, and the formula of the signal."""

from __future__ import annotations

import ast
import functools
import itertools
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.metadata import entry_points

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit._utils.counts import counted
from dmrifit._utils.plugins import plugin_errors
from dmrifit.engine import exact_math
from dmrifit.engine.kernels import compiler
from dmrifit.engine.kernels.branches import COMPARISONS, OPERATORS, Arithmetic, evaluated
from dmrifit.engine.protocol import Protocol, check_protocol

__all__ = [
    "MODELS",
    "Parameter",
    "SignalModel",
    "check_echo_times",
    "check_has_echo_times",
    "resolve_model",
    "signal_for_starts",
]

#: The unit of an amplitude. Its bounds are multiples of the voxel's largest signal.
SIGNAL_UNIT = "signal"

_REFUSED_UNITS = {
    "mm²/s": 1e3,
    "mm^2/s": 1e3,
    "mm2/s": 1e3,
    "m²/s": 1e9,
    "m^2/s": 1e9,
    "m2/s": 1e9,
}
_PROTOCOL_NAMES = ("b", "te")
_FUNCTIONS = {"exp": np.exp, "log": np.log, "sqrt": np.sqrt}
_ARRAYS = Arithmetic(
    number=lambda number: number,
    power=operator.pow,
    functions=_FUNCTIONS,
    comparisons=COMPARISONS,
    choice=np.where,
    both=operator.and_,
    either=operator.or_,
    negation=np.logical_not,
)
_SAME_BITS = _ARRAYS._replace(
    power=exact_math.power,
    functions=_FUNCTIONS | {"exp": exact_math.exp, "log": exact_math.log},
)
# Limits that no formula of a signal comes near; beyond them an expression could stall the process.
_LONGEST = 4096  # characters
_HIGHEST_POWER = 64
_LARGEST = 1e300


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
        if not self.name.isidentifier() or self.name in (*_PROTOCOL_NAMES, *_FUNCTIONS):
            raise ValueError(
                f"a parameter cannot be named {self.name!r}: use an identifier other than b, te, "
                "exp, log, sqrt"
            )
        if self.unit in _REFUSED_UNITS:
            raise ValueError(
                f"parameter {self.name} is in {self.unit}, but b is in ms/µm² inside a model: "
                "give it in µm²/ms "
                f"and multiply its bounds by {_REFUSED_UNITS[self.unit]:g}"
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
class SignalModel:
    """
    A model of the signal as a function of b, echo time and a few parameters.

    Made by `from_expression` or `from_function`, or taken from `MODELS`.

    Parameters
    ----------
    name : str
        A short name.
    parameters : tuple of Parameter
        In the order of the columns of every parameter array.
    expression : str
        The signal, in Python syntax, of the parameters' names, ``b`` in ms/µm² and ``te`` in ms,
        with ``+ - * / **``, ``exp``, ``log``, ``sqrt``, numbers, and ``x if b > 0 else y``, whose
        condition compares such terms and may join comparisons by ``and``, ``or``, ``not``.
    published_bounds : mapping of str to (float, float), optional
        Bounds of a published fitting tool, for ``fit_voxels(..., bounds="published")``.
    cumulant : (str, str), optional
        Names of the kurtosis K and the diffusivity D of a cumulant −bD + K(bD)²/6, which turns up
        beyond b·D = 3/K: what ``fit_voxels(..., bounds={"K": (0, "monotonic")})`` keeps out of the
        protocol.
    source : str, optional
        Instead of an expression, the source of a function that numba can compile.
    default_method : str, default="nlls"
        The method of `fit_voxels` that the model is fitted by where none is asked for.
    keeps_falling : bool, default=False
        Whether the kurtosis has the upper bound ``"monotonic"`` where a fit gives it no bounds.
    references : tuple of str, optional
        Publications to cite.

    Raises
    ------
    ValueError
        If the expression uses anything else, leaves out a parameter, or names repeat.
    """

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
        used = _names_in(self.expression)
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

    @classmethod
    def from_expression(
        cls, expression: str, parameters: Sequence[Parameter], *, name: str
    ) -> SignalModel:
        """
        Make a model from a formula; derivatives come from sympy when it is first fitted.

        Parameters
        ----------
        expression : str
            Such as ``"S0*exp(-b*D)"``: inside, b is in ms/µm² (the file's value / 1000) and te in
            ms, so that b·D is dimensionless with D in µm²/ms.
        parameters : sequence of Parameter
            One for each other name, in the wanted order of columns.
        name : str
            A short name.

        Returns
        -------
        SignalModel
            The model.

        Raises
        ------
        ValueError
            If the expression is not arithmetic of those names.
        """
        return cls(name, tuple(parameters), expression)

    @classmethod
    def from_function(
        cls, function: Callable, parameters: Sequence[Parameter], *, name: str
    ) -> SignalModel:
        """
        Make a model from a function of one measurement.

        Arithmetic, ``if``, conditional expressions, ``min``, ``max``, ``abs`` and loops of fixed
        length become an expression, and fit as fast as one. Any other function that numba can
        compile (``while``, special functions of `math`) is called as it is, with derivatives by
        finite differences, many times slower, which a warning says.

        Parameters
        ----------
        function : callable
            ``function(b, *parameters)`` or ``function(b, te, *parameters)``, arguments named as
            the parameters; returns the signal of one measurement as a number. Inside, b is in
            ms/µm² and te in ms. It may use `math`, `numpy` and numbers from around it; what it
            needs is copied, not called.
        parameters : sequence of Parameter
            In the wanted order of columns.
        name : str
            A short name.

        Returns
        -------
        SignalModel
            The model.

        Raises
        ------
        ValueError
            If the source cannot be read, arguments and parameters differ, or the function uses
            something that cannot be copied.
        """
        from dmrifit.engine.custom_models import read_function

        expression, source = read_function(function, [parameter.name for parameter in parameters])
        return cls(name, tuple(parameters), expression, source=source)

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
        return "te" in _names_in(self.expression)

    def signal(self, parameters: ArrayLike, protocol: Protocol) -> NDArray[np.float64]:
        """
        Compute the signal.

        Parameters
        ----------
        parameters : array_like of shape (n_voxels, n_parameters)
            In the order of `names`, in the units of `units`; one row may be given as
            (n_parameters,).
        protocol : Protocol
            The measurements.

        Returns
        -------
        ndarray of shape (n_voxels, n_measurements)
            The signal without noise or noise floor.

        Raises
        ------
        ValueError
            If the number of columns is wrong, or the model needs echo times and the protocol has
            none.
        """
        check_protocol(protocol)
        values = np.atleast_2d(np.asarray(parameters, dtype=float))
        if values.ndim != 2 or values.shape[1] != len(self.parameters):
            raise ValueError(
                f"model {self.name} has {counted(len(self.parameters), 'parameter')} "
                f"{self.names}; got shape {values.shape}"
            )
        check_has_echo_times(protocol, self)
        return self._computed(values, protocol, _ARRAYS)

    def _computed(
        self, values: NDArray, protocol: Protocol, arithmetic: Arithmetic
    ) -> NDArray[np.float64]:
        b = protocol.b_ms_per_um2
        te = np.zeros(len(protocol)) if protocol.te is None else protocol.te
        if self.source:
            contrasts = np.stack([b, te], axis=1)
            return compiler.load(self).signals_of(np.ascontiguousarray(values), contrasts)
        columns = {name: values[:, i, None] for i, name in enumerate(self.names)}
        with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
            signal = evaluated(self.expression, {"b": b, "te": te, **columns}, arithmetic)
        return np.array(np.broadcast_to(signal, (len(values), len(protocol))))


def signal_for_starts(
    model: SignalModel, parameters: NDArray[np.float64], protocol: Protocol
) -> NDArray[np.float64]:
    """
    Compute `SignalModel.signal`, several times slower, with the same bits on every processor.

    Fits then start at the same points everywhere.
    """
    return model._computed(parameters, protocol, _SAME_BITS)


@functools.lru_cache(maxsize=64)
def _names_in(expression: str) -> frozenset[str]:
    """Check that an expression is plain arithmetic; return the names of its variables."""
    if len(expression) > _LONGEST:
        raise ValueError(
            f"the expression {expression[:40]!r}… has {len(expression)} characters, more than "
            f"{_LONGEST}; shorten it"
        )
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except SyntaxError as error:
        raise ValueError(f"expression {expression!r} is not Python syntax: {error.msg}") from None
    function_names = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    conditions = {
        id(condition)
        for node in ast.walk(tree)
        if isinstance(node, ast.IfExp)
        for condition in _conditions_in(node.test)
    }
    variables = set()
    for node in ast.walk(tree):
        if id(node) not in conditions and not _is_allowed(
            node, is_function=id(node) in function_names
        ):
            raise ValueError(
                f"expression {expression!r}: {ast.unparse(node) or type(node).__name__!r} is not "
                "allowed; use numbers, names, + - * / **, exp, log, sqrt and comparisons as in "
                "'x if b > 0 else y'"
            )
        if isinstance(node, ast.Name) and id(node) not in function_names:
            variables.add(node.id)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
            _check_power(expression, node)
    return frozenset(variables)


def _conditions_in(test: ast.expr) -> list[ast.AST]:
    """List the comparisons of a condition and what joins them; nothing if it is none."""
    match test:
        case ast.BoolOp(op=operator, values=members):
            joint: ast.AST = operator
        case ast.UnaryOp(op=ast.Not() as joint, operand=operand):
            members = [operand]
        case ast.Compare(ops=[comparison]) if type(comparison) in COMPARISONS:
            return [test, comparison]
        case _:
            return []
    inner = [_conditions_in(member) for member in members]
    if not all(inner):
        return []
    return [test, joint, *itertools.chain.from_iterable(inner)]


def _is_allowed(node: ast.AST, *, is_function: bool) -> bool:
    """Tell whether a node of a syntax tree is plain arithmetic, or a function it may call."""
    match node:
        case ast.Name(id=name):
            return (name in _FUNCTIONS) == is_function
        case ast.Call(args=[_], keywords=[], func=ast.Name()):
            return True
        case ast.Constant(value=value):
            return type(value) in (int, float)
        case ast.operator() | ast.unaryop():
            return type(node) in OPERATORS
    if isinstance(node, ast.IfExp):
        return bool(_conditions_in(node.test))
    return isinstance(node, ast.Expression | ast.BinOp | ast.UnaryOp | ast.Load)


def _check_power(expression: str, node: ast.BinOp) -> None:
    """Refuse powers of constants such as 9**9**9, which would be computed to the last digit."""
    power = _constant(node.right)
    text = ast.unparse(node)
    if power is not None and not abs(power) <= _HIGHEST_POWER:
        raise ValueError(
            f"expression {expression!r}: {text} is a power beyond -{_HIGHEST_POWER} to "
            f"{_HIGHEST_POWER}; take a smaller one, or write exp(n*log(x)) for x**n"
        )
    value = _constant(node)
    if value is not None and not np.isfinite(value):
        raise ValueError(
            f"expression {expression!r}: {text} is too large a number for a computer; "
            "write a smaller one"
        )


def _constant(node: ast.expr) -> float | None:
    """Bound the size of a formula without names; None with names, infinity beyond any number."""
    match node:
        case ast.Constant(value=int() | float() as value):
            return float(value) if abs(value) < _LARGEST else np.inf
        case ast.UnaryOp(operand=operand):
            return _constant(operand)
        case ast.BinOp(left=left, op=op, right=right):
            left_size, right_size = _constant(left), _constant(right)
            # Sizes are added also where numbers are subtracted: an upper bound is enough.
            operations = {
                ast.Add: np.add,
                ast.Sub: np.add,
                ast.Mult: np.multiply,
                ast.Div: np.divide,
                ast.Pow: np.power,
            }
            if left_size is None or right_size is None or type(op) not in operations:
                return None
            with np.errstate(all="ignore"):
                return float(operations[type(op)](abs(left_size), abs(right_size)))
    return None


_S0 = Parameter("S0", SIGNAL_UNIT, 0.0, np.inf)
_F = Parameter("f", "", 0.0, 1.0)
_DV = Parameter("Dv", "µm²/ms", 4.0, 100.0)
_DT = Parameter("Dt", "µm²/ms", 0.2, 3.0)
_K = Parameter("K", "", 0.0, 5.0)
_T2V = Parameter("T2v", "ms", 150.0, 250.0)
_T2T = Parameter("T2t", "ms", 20.0, 140.0)
_STUDY_PARAMETERS = (_F, _DV, _T2V, _DT, _K, _T2T)  # with the published bounds

_LE_BIHAN = "Le Bihan et al., Radiology 168:497–505, 1988."
_JENSEN = "Jensen et al., Magn Reson Med 53:1432–1440, 2005."
_JEROME = "Jerome et al., Phys Med Biol 61:N667–N680, 2016."

#: The built-in models by name. Bounds are those of the study's fitting tool, except that S0 has no
#: upper bound: the published 12 × the largest signal cuts off T2t below about 37 ms at TE 93 ms.
MODELS: dict[str, SignalModel] = {
    model.name: model
    for model in (
        SignalModel(
            "adc",
            (_S0, Parameter("ADC", "µm²/ms", 0.0, 100.0)),
            "S0*exp(-b*ADC)",
            references=("Le Bihan et al., Radiology 161:401–407, 1986.",),
        ),
        SignalModel(
            "kurtosis",
            (_S0, Parameter("D", "µm²/ms", 0.0, 10.0), _K),
            "S0*exp(-b*D + K*(b*D)**2/6)",
            cumulant=("K", "D"),
            keeps_falling=True,
            references=(_JENSEN,),
        ),
        SignalModel(
            "ivim",
            (_S0, _F, _DV, _DT),
            "S0*(f*exp(-b*Dv) + (1 - f)*exp(-b*Dt))",
            references=(_LE_BIHAN,),
        ),
        SignalModel(
            "t2-ivim-kurtosis",
            (Parameter("S0", SIGNAL_UNIT, 0.8, np.inf), *_STUDY_PARAMETERS),
            "S0*(f*exp(-b*Dv - te/T2v) + (1 - f)*exp(-b*Dt + K*(b*Dt)**2/6 - te/T2t))",
            {"S0": (0.8, 12.0)} | {p.name: (p.low, p.high) for p in _STUDY_PARAMETERS},
            cumulant=("K", "Dt"),
            references=(
                "Macarro et al., J Magn Reson Imaging 61(2):1018–1021, 2025.",
                _JEROME,
                _JENSEN,
            ),
        ),
        # Divided by b = 0 at its own TE, a curve keeps only the difference of relaxation rates.
        SignalModel(
            "t2-ivim-relative",
            (_S0, _F, _DV, _DT, Parameter("dR2", "1/ms", -0.05, 0.05)),
            "S0*(f*exp(-b*Dv - te*dR2) + (1 - f)*exp(-b*Dt))/(f*exp(-te*dR2) + 1 - f)",
            references=(_JEROME, _LE_BIHAN),
        ),
    )
}


#: Entry points of this group name signal models that other packages bring, loaded when asked for.
PLUGINS = "dmrifit.signal_models"

#: What others call the built-in models.
_OTHER_NAMES = {
    "dki": "kurtosis",
    "mono": "adc",
    "monoexponential": "adc",
    "mono-exponential": "adc",
    "biexponential": "ivim",
    "bi-exponential": "ivim",
    "t2-ivim": "t2-ivim-kurtosis",
}


def resolve_model(model: object) -> SignalModel:
    """Return a model given by name or as it is."""
    if isinstance(model, SignalModel):
        return model
    if not isinstance(model, str):
        raise TypeError(f"model must be a name or a SignalModel, not {type(model).__name__}")
    name = model.lower()
    if name in MODELS:
        return MODELS[name]
    plugins = {entry.name: entry for entry in entry_points(group=PLUGINS)}
    if name in plugins:
        entry = plugins[name]
        with plugin_errors(entry):
            plugin = entry.load()
            # It has to bear the name that it is asked for by.
            if not isinstance(plugin, SignalModel) or plugin.name != name:
                raise TypeError("it is no SignalModel of that name")
        return plugin
    names = [*MODELS, *plugins]
    similar = _OTHER_NAMES.get(name) or next(iter(get_close_matches(name, names, 1)), None)
    hint = f"did you mean {similar}? " if similar else ""
    raise ValueError(
        f"no model {model!r}; {hint}choose one of {', '.join(names)} or give a SignalModel "
        "(SignalModel.from_expression)"
    )


def check_has_echo_times(protocol: Protocol, model: SignalModel) -> None:
    """Refuse a protocol without the echo times that a model needs."""
    if model.needs_te and protocol.te is None:
        raise ValueError(
            f"model {model.name} needs echo times; give them to the protocol (te in ms)"
        )


def check_echo_times(protocol: Protocol, model: SignalModel) -> None:
    """Refuse a protocol whose echo times a model cannot explain."""
    check_protocol(protocol)
    check_has_echo_times(protocol, model)
    if not model.needs_te and protocol.te is not None and np.ptp(protocol.te) > 0:
        times = ", ".join(f"{te:g}" for te in np.unique(protocol.te))
        raise ValueError(
            f"model {model.name} knows no relaxation, but the protocol has echo times {times} ms; "
            "take the measurements of one echo time (protocol.take), or use a model with T2"
        )
