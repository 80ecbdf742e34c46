"""
Formulas with conditions: read for sympy, differentiated branch by branch, and their form.

Conditions are functions of this module and not sympy's own, which simplifies them at every step
and takes minutes where they are nested.
"""

from __future__ import annotations

import ast
import functools
import itertools
import operator
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from dmrifit.engine.formulas.expressions import Arithmetic, evaluated

if TYPE_CHECKING:
    from dmrifit.engine.formulas.model_formula import ModelFormula

_MOST_CONDITIONS = 4  # whose 16 combinations are looked at
# Logarithms and inverses of bounds come back with other last bits.
_ROUNDING = 1e-12
_N_TRIALS = 16
_N_IN_BOX = 256


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
            return _answer(operator.lt, left, right)

    class Equal(sympy.Function):
        @classmethod
        def eval(cls, left: Any, right: Any) -> Any:
            return _answer(operator.eq, left, right)

    class Negation(sympy.Function):
        @classmethod
        def eval(cls, condition: Any) -> Any:
            if condition in (0, 1):
                return 1 - condition
            return condition.args[0] if isinstance(condition, Negation) else None

    class Both(sympy.Function):
        @classmethod
        def eval(cls, first: Any, second: Any) -> Any:
            if first in (0, 1):
                return second if first == 1 else first
            if second in (0, 1):
                return first if second == 1 else second
            return first if first == second else None

    return SimpleNamespace(Choice=Choice, Less=Less, Equal=Equal, Negation=Negation, Both=Both)


def _answer(compare: Callable, left: Any, right: Any) -> Any:
    """Compare two numbers; None leaves terms with symbols as they are."""
    import sympy

    if left.is_Number and right.is_Number:
        return sympy.Integer(bool(compare(left, right)))
    return None


_NUMERIC = {
    "Choice": lambda condition, yes, no: yes if condition else no,
    "Less": operator.lt,
    "Equal": operator.eq,
    "Negation": operator.not_,
    "Both": lambda first, second: first and second,
}
#: The same for arrays.
ARRAY_FUNCTIONS = {
    "Choice": np.where,
    "Less": np.less,
    "Equal": np.equal,
    "Negation": np.logical_not,
    "Both": np.logical_and,
}


def read_formula(expression: str, symbols: dict[str, Any]) -> Any:
    """Turn an expression of a signal model into one of sympy."""
    import sympy

    known = functions()
    both, equal, less, negation = known.Both, known.Equal, known.Less, known.Negation
    terms = Arithmetic(
        number=sympy.sympify,
        power=operator.pow,
        functions={name: getattr(sympy, name) for name in ("exp", "log", "sqrt")},
        comparisons={
            ast.Eq: equal,
            ast.NotEq: lambda left, right: negation(equal(left, right)),
            ast.Lt: less,
            ast.GtE: lambda left, right: negation(less(left, right)),
            ast.Gt: lambda left, right: less(right, left),
            ast.LtE: lambda left, right: negation(less(right, left)),
        },
        choice=known.Choice,
        both=both,
        either=lambda first, second: negation(both(negation(first), negation(second))),
        negation=negation,
    )
    return evaluated(expression, symbols, terms)


def without_absolute(formula: Any) -> Any:
    """Write absolute values, which sympy makes of roots of squares, as conditions."""
    import sympy

    known = functions()
    return formula.replace(sympy.Abs, lambda x: known.Choice(known.Less(x, 0), -x, x))


def extended_to_edges(expression: Any, symbols: list, model: ModelFormula) -> Any:
    """
    Let the branch of the inside of the box hold on its edge too, where both are the same.

    At f = 0 the branch of ``f <= 0`` has no term of f, hence no derivative by f: a fit that comes
    there would stay.
    """
    known = functions()

    def extended(condition: Any, yes: Any, no: Any) -> Any:
        changes = {}
        for comparison in condition.atoms(known.Less, known.Equal):
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
    """Move the edge of the box to the side of its inside."""
    import sympy

    known = functions()
    if isinstance(comparison, known.Equal):
        return sympy.Integer(0)
    low, high = model.parameters[i].low, model.parameters[i].high
    reach = abs(limit) * _ROUNDING
    if limit == low < high:
        outside = known.Less(symbols[i], low - reach)
        return outside if comparison.args[0] == symbols[i] else known.Negation(outside)
    if low < high == limit:
        outside = known.Less(high + reach, symbols[i])
        return outside if comparison.args[1] == symbols[i] else known.Negation(outside)
    return comparison


def _agree(yes: Any, no: Any, symbols: list, i: int, limit: float, model: ModelFormula) -> bool:
    """Tell whether two branches are the same where a parameter has a value, by trying."""
    evaluate = _numeric([yes, no], symbols)
    for measurement, values in _trial_points(model):
        values[i] = limit
        first, second = evaluate(*measurement, *values)
        if not abs(first - second) <= _ROUNDING * max(abs(first), abs(second)):
            return False
    return True


def _numeric(formulas: list, symbols: list) -> Callable:
    """Compile formulas of b, te and parameters; infinite or no numbers where they have none."""
    import sympy

    measurement = [sympy.Symbol(name, real=True) for name in ("b", "te")]
    compiled = sympy.lambdify([*measurement, *symbols], formulas, modules=[_NUMERIC, "numpy"])

    def evaluate(*values: float) -> list[float]:
        with np.errstate(all="ignore"):
            return [float(np.real(number)) for number in compiled(*map(np.float64, values))]

    return evaluate


def _trial_points(
    model: ModelFormula, *, n_points: int = _N_TRIALS, whole_box: bool = False
) -> Iterator[tuple[tuple[float, float], list[float]]]:
    """Draw measurements and parameters within the box, the same every time."""
    low = np.array([p.low if np.isfinite(p.low) else 0.0 for p in model.parameters])
    high = np.array([p.high for p in model.parameters])
    if not whole_box:
        high = np.minimum(high, low + 1.0)
    high = np.maximum(low, np.where(np.isfinite(high), high, low + 1.0))
    rng = np.random.default_rng(0)
    for _ in range(n_points):
        values = rng.uniform(low, high)
        yield (rng.uniform(0, 2), rng.uniform(50, 120)), values.tolist()


def structure(
    expression: Any, symbols: list, model: ModelFormula
) -> tuple[int, int, tuple[int, ...]]:
    """
    Find the amplitude S0 of a signal, and the fraction f of S0·(f·g₁ + (1 − f)·g₀).

    Returned are the index of f or -1, that of S0 or -1, and the indices of the parameters of g₁.
    They decide how starting points are found. Of a formula with conditions every combination of
    answers must have this form.
    """
    import sympy

    amplitude = only_amplitude(model)
    if amplitude < 0:
        return -1, -1, ()
    s0 = symbols[amplitude]
    expression = _within_box(expression, symbols, model)
    known = functions()
    comparisons = sorted(expression.atoms(known.Less, known.Equal), key=sympy.default_sort_key)
    if len(comparisons) > _MOST_CONDITIONS:
        evaluate = _numeric([expression], symbols)
        return -1, amplitude_by_trial(lambda *point: evaluate(*point)[0], amplitude, model), ()
    decided = {symbol for comparison in comparisons for symbol in comparison.free_symbols}
    if s0 in decided:
        return -1, -1, ()
    shapes = []
    for answers in itertools.product((0, 1), repeat=len(comparisons)):
        decisions = zip(comparisons, map(sympy.Integer, answers), strict=True)
        branch = expression.xreplace(dict(decisions))
        shape = sympy.expand(sympy.diff(branch, s0))
        rest = sympy.expand(branch) - sympy.expand(s0 * shape)
        if shape.has(s0) or sympy.simplify(rest) != 0:
            return -1, -1, ()
        shapes.append(shape)
    for i, parameter in enumerate(model.parameters):
        f = symbols[i]
        if (parameter.low, parameter.high) != (0, 1) or f in decided:
            continue
        if any(sympy.simplify(sympy.diff(shape, f, 2)) != 0 for shape in shapes):
            continue
        nonlinear = set(symbols) - {f, s0}
        first = _symbols_of([shape.subs(f, 1) for shape in shapes]) & nonlinear
        second = _symbols_of([shape.subs(f, 0) for shape in shapes]) & nonlinear
        if first and not first & second:
            members = tuple(j for j, symbol in enumerate(symbols) if symbol in first)
            return i, amplitude, members
    return -1, amplitude, ()


def only_amplitude(model: ModelFormula) -> int:
    """Give the index of the amplitude of a model that has one, or -1."""
    amplitudes = [i for i, p in enumerate(model.parameters) if p.is_amplitude]
    return amplitudes[0] if len(amplitudes) == 1 else -1


def _symbols_of(shapes: list) -> set:
    import sympy

    return set().union(*(sympy.simplify(shape).free_symbols for shape in shapes))


def _within_box(expression: Any, symbols: list, model: ModelFormula) -> Any:
    """Answer the comparisons that have the same answer at all points drawn from the box."""
    import sympy

    known = functions()
    comparisons = sorted(expression.atoms(known.Less, known.Equal), key=sympy.default_sort_key)
    if not comparisons:
        return expression
    evaluate = _numeric(comparisons, symbols)
    points = _trial_points(model, n_points=_N_IN_BOX, whole_box=True)
    answers = [evaluate(*measurement, *values) for measurement, values in points]
    same = {
        comparison: sympy.Integer(int(drawn[0]))
        for comparison, drawn in zip(comparisons, zip(*answers, strict=True), strict=False)
        if len(set(drawn)) == 1
    }
    return expression.xreplace(same)


def amplitude_by_trial(evaluate: Callable[..., float], amplitude: int, model: ModelFormula) -> int:
    """Find out by trying whether a signal is proportional to its amplitude; -1 if it is not."""
    for measurement, values in _trial_points(model):
        signals = []
        for factor in (0.0, 1.0, 2.0):
            values[amplitude] = factor
            signals.append(evaluate(*measurement, *values))
        is_doubled = abs(signals[2] - 2 * signals[1]) <= 1e-9 * abs(signals[1])
        if not (abs(signals[0]) <= 1e-12 and is_doubled):
            return -1
    return amplitude
