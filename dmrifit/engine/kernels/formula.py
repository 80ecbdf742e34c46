"""
Code generation: the formula of a signal model, written into the template of its kernel.

Conditions are numbers, 1 where they hold and else 0, made of one function of this module, and not
those of sympy, which simplifies them at every step and takes minutes where they are nested.
"""

from __future__ import annotations

import ast
import functools
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dmrifit.engine.formulas.model_formula import Arithmetic, evaluated
from dmrifit.engine.kernels.layout import form, is_share

if TYPE_CHECKING:
    from dmrifit.engine.formulas.model_formula import ModelFormula, Parameter


# Logarithms and inverses of bounds come back with other last bits.
_ROUNDING = 1e-12
_SAME = 1e-9
_N_TRIALS = 64


@functools.cache
def functions() -> SimpleNamespace:
    """Define the functions of conditions, once sympy is wanted; true is 1 and false is 0."""
    import sympy

    class Choice(sympy.Function):
        """One of two numbers by a condition."""

        @classmethod
        def eval(cls, condition: Any, yes: Any, no: Any) -> Any:
            if condition in (0, 1):
                return yes if condition == 1 else no
            return yes if yes == no else None

        def _eval_derivative(self, symbol: Any) -> Any:
            condition, yes, no = self.args
            return Choice(condition, yes.diff(symbol), no.diff(symbol))

    class Less(sympy.Function):
        """Whether the first number is below the second."""

        @classmethod
        def eval(cls, left: Any, right: Any) -> Any:
            # Terms with symbols stay as they are.
            are_numbers = left.is_Number and right.is_Number
            return sympy.Integer(bool(left < right)) if are_numbers else None

    return SimpleNamespace(Choice=Choice, Less=Less)


#: The functions of conditions for arrays.
ARRAY_FUNCTIONS = {
    "Choice": np.where,
    "Less": lambda left, right: np.less(left, right).astype(int),
}


def read_formula(expression: str, symbols: dict[str, Any]) -> Any:
    """Turn an expression of a signal model into one of sympy."""
    import sympy

    less = functions().Less
    terms = Arithmetic(
        number=sympy.sympify,
        power=operator.pow,
        functions={name: getattr(sympy, name) for name in ("exp", "log", "sqrt")},
        comparisons={
            ast.Lt: less,
            ast.GtE: lambda left, right: 1 - less(left, right),
            ast.Gt: lambda left, right: less(right, left),
            ast.LtE: lambda left, right: 1 - less(right, left),
            ast.NotEq: lambda left, right: less(left, right) + less(right, left),
            ast.Eq: lambda left, right: 1 - less(left, right) - less(right, left),
        },
        choice=functions().Choice,
        both=operator.mul,
        either=lambda first, second: first + second - first * second,
        negation=lambda condition: 1 - condition,
    )
    return evaluated(expression, symbols, terms)


def without_absolute(formula: Any) -> Any:
    """Write absolute values, which sympy makes of roots of squares, as conditions."""
    import sympy

    known = functions()
    return formula.replace(sympy.Abs, lambda x: known.Choice(known.Less(x, 0), -x, x))


def extended_to_edges(expression: Any, symbols: list, model: ModelFormula) -> Any:
    """
    Let the branch of the inside of the box hold on its edge too, where both branches agree.

    At f = 0 the branch of ``f <= 0`` has no term of f, hence no derivative by f: a fit that comes
    there would stay.
    """
    known = functions()

    def extended(condition: Any, yes: Any, no: Any) -> Any:
        changes = {}
        for comparison in condition.atoms(known.Less):
            threshold = _threshold(comparison, symbols)
            if threshold is not None and _agree(yes, no, symbols, *threshold, model):
                changes[comparison] = _with_edge(comparison, symbols, *threshold, model)
        return known.Choice(condition.xreplace(changes), yes, no)

    return expression.replace(known.Choice, extended)


def _threshold(comparison: Any, symbols: list) -> tuple[int, float] | None:
    """Read a comparison of one parameter with a number: the parameter's index and the number."""
    left, right = comparison.args
    if right in symbols:
        left, right = right, left
    if left not in symbols or not right.is_Number:
        return None
    return symbols.index(left), float(right)


def _with_edge(comparison: Any, symbols: list, i: int, limit: float, model: ModelFormula) -> Any:
    """Change a comparison with an edge of the box so that the edge counts as inside."""
    less = functions().Less
    low, high = model.parameters[i].low, model.parameters[i].high
    reach = abs(limit) * _ROUNDING
    if limit == low < high:
        outside = less(symbols[i], low - reach)
        return outside if comparison.args[0] == symbols[i] else 1 - outside
    if low < high == limit:
        outside = less(high + reach, symbols[i])
        return outside if comparison.args[1] == symbols[i] else 1 - outside
    return comparison


def _agree(yes: Any, no: Any, symbols: list, i: int, limit: float, model: ModelFormula) -> bool:
    """Tell whether two branches are the same where a parameter has a value, by trying."""
    b, te, values = _trial_points(model)
    values[i] = limit
    first, second = numeric([yes, no], symbols)(b, te, *values)
    largest = np.maximum(np.abs(first), np.abs(second))
    return bool(np.all(np.abs(first - second) <= _ROUNDING * largest))


def numeric(formulas: list, symbols: list) -> Callable:
    """Compile formulas of arrays of b, te and parameters; NaN or infinite where without value."""
    import sympy

    measurement = [sympy.Symbol(name, real=True) for name in ("b", "te")]
    modules = [ARRAY_FUNCTIONS, "numpy"]
    compiled = sympy.lambdify([*measurement, *symbols], formulas, modules=modules)

    def evaluate(*values: NDArray) -> list[NDArray]:
        with np.errstate(all="ignore"):
            return [np.real(number) for number in compiled(*values)]

    return evaluate


def _trial_points(model: ModelFormula) -> tuple[NDArray, NDArray, NDArray]:
    """Draw measurements and parameters within the box, most near its lower end, always alike."""
    low = np.array([p.low if np.isfinite(p.low) else 0.0 for p in model.parameters])
    high = np.array([p.high for p in model.parameters])
    high = np.maximum(low, np.where(np.isfinite(high), high, low + 1.0))
    rng = np.random.default_rng(0)
    width = (high - low)[:, None]
    is_near = np.arange(_N_TRIALS) % 4 > 0
    width = np.where(is_near, np.minimum(width, 1.0), width)
    values = low[:, None] + rng.uniform(size=width.shape) * width
    return rng.uniform(0, 2, _N_TRIALS), rng.uniform(50, 120, _N_TRIALS), values


def structure(
    evaluate: Callable[..., NDArray], model: ModelFormula
) -> tuple[int, int, tuple[int, ...]]:
    """
    Find the amplitude S0 of a signal, and the fraction f of S0·(f·g₁ + (1 − f)·g₀), by trying.

    Returned are the index of f or -1, that of S0 or -1, and the indices of the parameters of g₁.
    They decide how starting points are found. `evaluate` computes signals from arrays of b, te and
    parameters.
    """
    amplitudes = [i for i, p in enumerate(model.parameters) if p.is_amplitude]
    if len(amplitudes) != 1:
        return -1, -1, ()
    (amplitude,) = amplitudes
    b, te, points = _trial_points(model)

    def signals(changes: dict[int, Any]) -> NDArray:
        values = points.copy()
        for j, value in {amplitude: 1.0, **changes}.items():
            values[j] = value
        return evaluate(b, te, *values)

    none, one, two = (signals({amplitude: factor}) for factor in (0.0, 1.0, 2.0))
    if not np.all((np.abs(none) <= 1e-12) & (np.abs(two - 2 * one) <= _SAME * np.abs(one))):
        return -1, -1, ()

    def components(share: int, changes: dict[int, Any]) -> tuple[NDArray, NDArray, bool]:
        """Extrapolate to shares of 1 and 0, and tell whether the signal is straight between."""
        low, middle, high = (signals({**changes, share: value}) for value in (0.25, 0.5, 0.75))
        is_straight = np.abs(low + high - 2 * middle) <= _SAME * np.abs(one)
        return (3 * high - low) / 2, (3 * low - high) / 2, bool(np.all(is_straight))

    for i, parameter in enumerate(model.parameters):
        if (parameter.low, parameter.high) != (0, 1):
            continue
        *parts, is_straight = components(i, {})
        members: list[set[int]] = [set(), set()]
        for j in set(range(len(points))) - {i, amplitude}:
            moved = components(i, {j: 1.01 * points[j] + 1e-3})
            for part, component, after in zip(parts, members, moved, strict=False):
                if np.any(np.abs(after - part) > _SAME * np.abs(one)):
                    component.add(j)
        if is_straight and members[0] and not members[0] & members[1]:
            return i, amplitude, tuple(sorted(members[0]))
    return -1, amplitude, ()


# The functions of conditions as lane arithmetic.
_OF_CONDITIONS = {"Choice": "choose({} > 0.5, {}, {})", "Less": "choose({} < {}, 1.0, 0.0)"}


def source(model: ModelFormula) -> str:
    """Write the module that fits a model and computes its intervals."""
    formula = Formula(model)
    constants = {
        "N": len(formula.forms),
        "FORMS": formula.forms,
        "KINDS": tuple(_kind(parameter) for parameter in model.parameters),
        "AMPLITUDE": formula.amplitude,
        "MIXTURE": formula.mixture,
        "FIRST": formula.first,
        "CALLED": bool(model.source),
        "N_BY_B": len(formula.by_b),
        "N_BY_TE": len(formula.by_te),
        "KURTOSIS": formula.kurtosis,
        "DIFFUSIVITY": formula.diffusivity,
    }
    text = Path(__file__).with_name("template.py").read_text(encoding="utf-8")
    text = _replace_section(
        text, "CONSTANTS", [f"{name} = {value!r}" for name, value in constants.items()]
    )
    if model.source:
        return _replace_section(text, "FUNCTION", _called_function(model))
    return _replace_section(text, "FORMULA", formula.code())


def _kind(parameter: Parameter) -> str:
    """Choose the coordinate of a parameter in its intervals."""
    if parameter.is_amplitude:
        return "amplitude"
    if form(parameter) != "plain":
        return "inverse"
    return "share" if is_share(parameter) else "plain"


def _called_function(model: ModelFormula) -> list[str]:
    """Write a user's function, and the one by which the kernel calls it with an array."""
    arguments = ["b", *(["te"] if model.needs_te else [])]
    arguments += [f"x[{i}]" for i in range(len(model.names))]
    jit = "njit(nogil=True, cache=True, error_model='numpy')"
    return [
        model.source,
        f"compiled = {jit}(user_function)",
        f"@{jit}",
        "def function(b, te, x):",
        f"    return compiled({', '.join(arguments)})",
    ]


def _replace_section(text: str, section: str, lines: list[str]) -> str:
    """Replace a section of the template, which comments enclose."""
    start = text.index(f"# {section}\n")
    end = text.index(f"# END OF {section}\n")
    return text[:start] + "\n".join(lines) + "\n" + text[end:]


class Formula:
    """The formula, its derivatives as lines of code, and what starting points need to know."""

    def __init__(self, model: ModelFormula) -> None:
        import sympy

        names = model.names
        self.forms = tuple(form(parameter) for parameter in model.parameters)
        self.kurtosis, self.diffusivity = -1, -1
        if model.cumulant is not None:
            self.kurtosis, self.diffusivity = map(names.index, model.cumulant)
        # Exponentials of b alone and of te alone: they are the same for many measurements.
        self.by_b: list[Any] = []
        self.by_te: list[Any] = []
        self._entries: set[Any] = set()
        self.mixture, self.amplitude = -1, -1
        self.first: tuple[int, ...] = ()
        if model.source:
            amplitudes = [
                i for i, parameter in enumerate(model.parameters) if parameter.is_amplitude
            ]
            self.amplitude = amplitudes[0] if len(amplitudes) == 1 else -1
            return
        symbols = {name: sympy.Symbol(name, real=True) for name in (*names, "b", "te")}
        expression = without_absolute(read_formula(model.expression, symbols))
        if expression.has(sympy.zoo, sympy.nan, sympy.oo, sympy.I):
            raise ValueError(
                f"model {model.name}: {model.expression!r} divides by zero, or has the root or "
                "logarithm of a negative number; change that term"
            )
        ordered = [symbols[name] for name in names]
        evaluate = numeric([expression], ordered)
        self.mixture, self.amplitude, self.first = structure(
            lambda *values: evaluate(*values)[0], model
        )
        expression = extended_to_edges(expression, ordered, model)
        inverse = {
            symbols[n]: 1 / symbols[n]
            for n, form in zip(names, self.forms, strict=True)
            if form == "inverse"
        }
        expression = expression.subs(inverse, simultaneous=True)
        formulas = [expression, *(sympy.diff(expression, symbols[name]) for name in names)]
        rename = {symbols[name]: sympy.Symbol(f"x{i}", real=True) for i, name in enumerate(names)}
        formulas = [without_absolute(formula.subs(rename)) for formula in formulas]
        self._b, self._te = symbols["b"], symbols["te"]
        if model.needs_te:
            formulas = [formula.replace(sympy.exp, self._tabulated) for formula in formulas]
        self._formulas = formulas

    def _tabulated(self, exponent: Any) -> Any:
        """Tabulate the factors of an exponential that depend on b alone and on te alone."""
        import sympy

        parts = {"b": sympy.Integer(0), "te": sympy.Integer(0), "rest": sympy.Integer(0)}
        exponent = sympy.expand(exponent)
        for term in sympy.Add.make_args(exponent):
            has_b, has_te = term.has(self._b), term.has(self._te)
            if term.free_symbols & self._entries:
                # Exponentials within exponentials: a row of a table cannot read from another.
                parts["rest"] += term
            elif has_b and not has_te:
                parts["b"] += term
            elif has_te and not has_b:
                parts["te"] += term
            else:
                parts["rest"] += term
        product = sympy.exp(parts["rest"])
        for name, table in (("b", self.by_b), ("te", self.by_te)):
            if parts[name] != 0:
                if parts[name] not in table:
                    table.append(parts[name])
                entry = sympy.Symbol(f"e{name}{table.index(parts[name])}", real=True)
                self._entries.add(entry)
                product *= entry
        return product

    def code(self) -> list[str]:
        """Write functions of the signal with its derivatives, and of the tabulated exponents."""
        x = [f"x[{i}]" for i in range(len(self.forms))]
        entries = [f"eb[{e}]" for e in range(len(self.by_b))]
        entries += [f"ete[{e}]" for e in range(len(self.by_te))]
        return [
            *_function("evaluate_signal(x, b, te, eb, ete)", [*x, *entries], self._formulas),
            *_function("exponents_of_b(x, b)", x, self.by_b),
            *_function("exponents_of_te(x, te)", x, self.by_te),
        ]


def _function(signature: str, inputs: Sequence[str], formulas: list[Any]) -> list[str]:
    """Write a function that returns the values of formulas, common parts computed once."""
    import sympy

    numbers = sympy.numbered_symbols("h", real=True)
    steps, results = sympy.cse(
        formulas or [sympy.Integer(0)], symbols=numbers, optimizations="basic"
    )
    printed = make_printer()

    def write(value: Any) -> str:
        # A plus sign keeps a product from being rounded together with a sum.
        return f"+({printed(value)})"

    lines = [f"def {signature}:"]
    for entry in inputs:
        # Such as x0 = x[0].
        lines.append(f"    {entry.replace('[', '').replace(']', '')} = {entry}")
    lines += [f"    {symbol} = {write(value)}" for symbol, value in steps]
    values = map(write, results[: len(formulas)])
    return [*lines, f"    return [{', '.join(values)}]"]


def make_printer():
    """Make the printer of expressions as Python."""
    from sympy.printing.pycode import PythonCodePrinter

    class Printer(PythonCodePrinter):
        def _print_Pow(self, expr: object, **_: object) -> str:
            base, power = expr.as_base_exp()  # type: ignore[attr-defined]
            text = f"({self._print(base)})"
            if power.is_Integer and 1 <= abs(int(power)) <= 8:
                product = "*".join([text] * abs(int(power)))
                return f"({product})" if power > 0 else f"(1.0/({product}))"
            if abs(power) == 0.5:
                return f"sqrt({text})" if power > 0 else f"(1.0/sqrt({text}))"
            return f"exp({self._print(power)}*log({text}))"

        def _print_ExpBase(self, expr: object) -> str:
            return f"exp({self._print(expr.args[0])})"  # type: ignore[attr-defined]

        _print_exp = _print_ExpBase

        def _print_Function(self, expr: Any) -> str:
            text = _OF_CONDITIONS.get(expr.func.__name__)
            if text is None:
                return str(super()._print_Function(expr))
            return text.format(*map(self._print, expr.args))

        def _print_Rational(self, expr: object) -> str:
            return repr(float(expr))  # type: ignore[arg-type]

        _print_Integer = _print_Rational

    printer = Printer({"fully_qualified_modules": False})
    return printer.doprint
