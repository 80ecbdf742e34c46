"""Signal models written as Python functions: turned into expressions, or copied as source."""

from __future__ import annotations

import ast
import inspect
import logging
import math
import operator
import textwrap
import traceback
from collections.abc import Callable, Sequence
from functools import partial, reduce
from types import ModuleType
from typing import Any

import numpy as np

_MODULES = (math, np)
_LONGEST = 4096  # characters of an expression
_MOST_PATHS = 16  # through the branches of a function

_FILE = "<signal model>"

# What neither an expression nor numba can hold.
_REFUSED = (
    ast.Import, ast.ImportFrom, ast.ClassDef, ast.Global, ast.Nonlocal, ast.Yield, ast.YieldFrom,
)  # fmt: skip

_logger = logging.getLogger("dmrifit")


def read_function(function: Callable, names: Sequence[str]) -> tuple[str, str]:
    """Read a function of one measurement: (expression, ""), or ("", source) if it has none."""
    # A function that numba compiled keeps the original in this attribute.
    function = getattr(function, "py_func", function)
    definition = _definition(function)
    _check_definition(definition, names)
    outside_names = _outside_names(function, definition)
    definition = ast.fix_missing_locations(_Constants(outside_names).visit(definition))
    try:
        return _expression(definition), ""
    except _NotArithmeticError as error:
        _logger.warning(
            "the model function %s is called measurement by measurement, which takes many times "
            "longer than a formula: %s",
            definition.name,
            error,
        )
    definition.name = "user_function"
    return "", ast.unparse(definition)


class _NotArithmeticError(Exception):
    """A function does more than an expression can say."""


def _definition(function: Callable) -> ast.FunctionDef:
    try:
        lines, first = inspect.getsourcelines(function)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, TypeError, SyntaxError) as error:
        raise ValueError(
            f"the source of {function!r} cannot be read ({error}); define it with def in a file "
            "or a notebook"
        ) from None
    definition = tree.body[0]
    if not isinstance(definition, ast.FunctionDef):
        raise ValueError(
            f"a signal model is a function made with def, not {ast.unparse(definition)!r}"
        )
    # Messages name the lines of the user's file.
    ast.increment_lineno(definition, max(first, 1) - 1)
    definition.decorator_list, definition.returns = [], None
    for argument in definition.args.args:
        argument.annotation = None
    if ast.get_docstring(definition) is not None:
        definition.body = definition.body[1:]
    return definition


def _check_definition(definition: ast.FunctionDef, names: Sequence[str]) -> None:
    """Refuse other arguments than those of the model, and statements that cannot be copied."""
    arguments, expected = ast.unparse(definition.args), ", ".join(names)
    if arguments not in (f"b, {expected}", f"b, te, {expected}"):
        raise ValueError(
            f"the arguments of a signal model must be (b, {expected}) or (b, te, {expected}); got "
            f"({arguments})"
        )
    node: Any
    for node in ast.walk(definition):
        if isinstance(node, _REFUSED):
            first_line = ast.unparse(node).partition("\n")[0]
            raise ValueError(
                f"{definition.name}, line {node.lineno}: {first_line!r} cannot stand in a signal "
                "model; import above the function, and compute with numbers inside"
            )
    if not any(isinstance(node, ast.Return) and node.value for node in ast.walk(definition)):
        raise ValueError(
            f"{definition.name} returns no number; end it with a return of the signal"
        )


def _outside_names(function: Callable, definition: ast.FunctionDef) -> dict[str, object]:
    """Look up names from outside the function: numbers, `math`, `numpy` and their functions."""
    try:
        closure = inspect.getclosurevars(function)
    except ValueError:
        raise ValueError(
            f"{definition.name} uses a name of the function around it that has no value yet; "
            "give it one before the model is made"
        ) from None
    values: dict[str, object] = {}
    for name, value in {**closure.globals, **closure.nonlocals}.items():
        if isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
            values[name] = float(value)
        # `math` and `numpy` themselves, or a function of theirs under its own name.
        elif any(value is module for module in _MODULES) or any(
            callable(value) and getattr(module, name, None) is value for module in _MODULES
        ):
            values[name] = value
        else:
            uses = [n for n in ast.walk(definition) if isinstance(n, ast.Name) and n.id == name]
            line = min((node.lineno for node in uses), default=definition.lineno)
            raise ValueError(
                f"{definition.name} uses {name} (line {line}), which is "
                "neither a number nor math or numpy; define it inside"
            )
    return values


class _Constants(ast.NodeTransformer):
    """Replaces outside names by numbers, `math`, `np`, or functions of these two modules."""

    def __init__(self, values: dict[str, object]) -> None:
        self.values = values

    def visit_Name(self, node: ast.Name) -> ast.expr:
        value = self.values.get(node.id)
        if value is None or not isinstance(node.ctx, ast.Load):
            return node
        if isinstance(value, float):
            return ast.copy_location(ast.Constant(value), node)
        if isinstance(value, ModuleType):
            return ast.copy_location(ast.Name("math" if value is math else "np", ast.Load()), node)
        module = "math" if getattr(math, node.id, None) is value else "np"
        name = ast.Attribute(ast.Name(module, ast.Load()), node.id, ast.Load())
        return ast.copy_location(name, node)

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        # Numbers from outside are floats, which `range` does not take.
        if isinstance(node.func, ast.Name) and node.func.id == "range":
            for argument in node.args:
                match argument:
                    case ast.Constant(value=float() as number) if number.is_integer():
                        argument.value = int(number)
        return node


def _expression(definition: ast.FunctionDef) -> str:
    """Write what a function returns as one expression, by calling it with terms for numbers."""
    code = compile(ast.Module([definition], []), _FILE, "exec")
    scope: dict[str, Any] = {"math": _Library(math), "np": _Library(np), **_BUILTINS}
    exec(code, scope)
    function = scope[definition.name]
    arguments = [argument.arg for argument in definition.args.args]
    n_paths = 0

    def follow(answers: dict[str, bool]) -> str:
        """Write the returned expression, with these answers given to conditions of branches."""
        nonlocal n_paths
        n_paths += 1
        if n_paths > _MOST_PATHS:
            raise _NotArithmeticError(f"more than {_MOST_PATHS} ways through its branches")
        try:
            return _text(function(*(_Term(name, answers) for name in arguments)))
        except _UndecidedError as error:
            condition = str(error)
            yes, no = (follow(answers | {condition: answer}) for answer in (True, False))
            return f"({yes} if {condition} else {no})"

    try:
        # Without the parentheses that are not needed.
        text = ast.unparse(ast.parse(follow({}), mode="eval"))
    # What terms do not have, such as bits and digits, ends in errors of many kinds.
    except Exception as error:
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == _FILE
        ]
        line = lines[-1] if lines else definition.lineno
        raise _NotArithmeticError(f"{error} in line {line}") from None
    if len(text) > _LONGEST:
        raise _NotArithmeticError(f"a formula of more than {_LONGEST} characters")
    return text


class _UndecidedError(Exception):
    """A branch depends on a condition that the path has no answer to."""


class _Term:
    """A number that depends on the arguments, or a condition, which is 1 or 0 as a number."""

    __array_ufunc__ = None  # numbers of NumPy leave arithmetic to the term
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, text: str, answers: dict[str, bool], condition: str = "") -> None:
        self.text = text
        self.answers = answers  # to conditions, on one way through the branches of a function
        # A number is true where it is not 0.
        self.condition = condition or f"({text} != 0)"
        if len(text) > 4 * _LONGEST:
            raise _NotArithmeticError(f"a formula of more than {_LONGEST} characters")

    def __bool__(self) -> bool:
        if self.condition not in self.answers:
            raise _UndecidedError(self.condition)
        return self.answers[self.condition]

    def __neg__(self) -> _Term:
        return _Term(f"(-{self.text})", self.answers)

    def __pos__(self) -> _Term:
        return self

    def __abs__(self) -> _Term:
        return _where(_comparison("<")(self, 0), -self, self)


def _operation(symbol: str, *, is_swapped: bool = False) -> Callable:
    def combined(term: _Term, other: Any) -> _Term:
        left, right = (other, term) if is_swapped else (term, other)
        return _Term(f"({_text(left)} {symbol} {_text(right)})", term.answers)

    return combined


def _comparison(symbol: str) -> Callable:
    def compared(term: _Term, other: Any) -> _Term:
        condition = f"({term.text} {symbol} {_text(other)})"
        return _Term(f"(1 if {condition} else 0)", term.answers, condition)

    return compared


for _name, _symbol in {"add": "+", "sub": "-", "mul": "*", "truediv": "/", "pow": "**"}.items():
    setattr(_Term, f"__{_name}__", _operation(_symbol))
    setattr(_Term, f"__r{_name}__", _operation(_symbol, is_swapped=True))
for _name, _symbol in {
    "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!=",
}.items():  # fmt: skip
    setattr(_Term, f"__{_name}__", _comparison(_symbol))


def _text(value: Any) -> str:
    """Write a term or a number."""
    if isinstance(value, _Term):
        return value.text
    if not isinstance(value, bool | int | float | np.number) or not math.isfinite(value):
        raise _NotArithmeticError("a path without return" if value is None else repr(value))
    return f"({value if isinstance(value, int) else float(value)})"


def _where(condition: Any, yes: Any, no: Any) -> Any:
    if not isinstance(condition, _Term):
        return yes if condition else no
    return _Term(f"({_text(yes)} if {condition.condition} else {_text(no)})", condition.answers)


def _extreme(is_better: Callable[[Any, Any], Any], *numbers: Any) -> Any:
    """Find the smallest or largest number as Python does: the first of equal ones."""
    return reduce(lambda best, number: _where(is_better(number, best), number, best), numbers)


_smallest, _largest = partial(_extreme, operator.lt), partial(_extreme, operator.gt)


class _Library:
    """`math` or NumPy, of which some functions can be written into an expression."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        if not callable(value):
            return value

        def called(*arguments: Any) -> Any:
            terms = [argument for argument in arguments if isinstance(argument, _Term)]
            if not terms:
                return value(*arguments)
            if name == "log" and len(arguments) == 2:
                return called(arguments[0]) / called(arguments[1])
            if name in _ONE_BY_ONE and len(arguments) == 1:
                return _Term(f"{name}({terms[0].text})", terms[0].answers)
            if name not in _FUNCTIONS:
                raise _NotArithmeticError(f"{self._module.__name__}.{name}")
            return _FUNCTIONS[name](*arguments)

        return called


_ONE_BY_ONE = ("exp", "log", "sqrt")
_FUNCTIONS: dict[str, Callable] = {
    "where": _where,
    "clip": lambda x, low, high: _smallest(_largest(x, low), high),
    "square": lambda x: x**2,
    **dict.fromkeys(("abs", "fabs", "absolute"), abs),
    **dict.fromkeys(("pow", "power", "float_power"), pow),
    **dict.fromkeys(("minimum", "fmin"), _smallest),
    **dict.fromkeys(("maximum", "fmax"), _largest),
}
# Python's own, of terms and of numbers.
_BUILTINS: dict[str, Callable] = {
    "min": _smallest,
    "max": _largest,
    "float": lambda x: x if isinstance(x, _Term) else float(x),
}
