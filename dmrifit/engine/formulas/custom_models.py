"""Signal models written as Python functions: turned into expressions, or copied as source."""

from __future__ import annotations

import ast
import inspect
import logging
import math
import operator
import textwrap
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from dmrifit.engine.formulas.expressions import COMPARISONS

__all__ = ["read_function"]

_MODULES = (math, np)
_LONGEST = 4096  # characters of an expression
_MOST_ROUNDS = 64  # of a loop that is written out

_SAME_NAME = ("exp", "log", "sqrt")
_ABSOLUTE = ("abs", "fabs", "absolute")
_POWERS = ("pow", "power", "float_power")
_SMALLEST = ("min", "minimum", "fmin")
_LARGEST = ("max", "maximum", "fmax")
_BUILTINS = ("abs", "float", "max", "min", "pow")

_ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow)
# Of whole numbers these give whole numbers, such as counters of loops.
_WHOLE = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Mod: operator.mod,
    ast.FloorDiv: operator.floordiv,
}
# What neither an expression nor numba can hold, by what to do instead.
_REFUSED = {
    ast.Import: "import the module above the function",
    ast.ImportFrom: "import the names above the function",
    ast.ClassDef: "use numbers only",
    ast.Global: "use a name of its own",
    ast.Nonlocal: "use a name of its own",
    ast.Yield: "return a number",
    ast.YieldFrom: "return a number",
}

_TOO_LONG = f"a formula of more than {_LONGEST} characters"

_logger = logging.getLogger("dmrifit")


def read_function(function: Callable, names: Sequence[str]) -> tuple[str, str]:
    """Read a function of one measurement: its expression, or else its source."""
    # A function that numba compiled keeps the original in this attribute.
    function = getattr(function, "py_func", function)
    definition = _definition(function)
    _check_arguments(definition, names)
    _check_statements(definition)
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
    """A function does more than an expression can say: what, and in which line."""

    def __init__(self, reason: str, node: ast.AST) -> None:
        super().__init__(f"{reason} in line {getattr(node, 'lineno', 1)}")


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


def _check_arguments(definition: ast.FunctionDef, names: Sequence[str]) -> None:
    arguments = definition.args
    argument_names = [argument.arg for argument in arguments.args]
    plain = not (arguments.vararg or arguments.kwarg or arguments.kwonlyargs or arguments.defaults)
    if not plain or argument_names not in (["b", *names], ["b", "te", *names]):
        expected = ", ".join(names)
        raise ValueError(
            f"the arguments of a signal model must be (b, {expected}) or (b, te, {expected}); got "
            f"({', '.join(argument_names)})"
        )


def _check_statements(definition: ast.FunctionDef) -> None:
    node: Any
    for node in ast.walk(definition):
        remedy = _REFUSED.get(type(node))
        if remedy is not None:
            raise ValueError(
                f"{definition.name}, line {node.lineno}: {_first_line(node)!r} cannot stand in a "
                f"signal model; {remedy}"
            )
    if not any(isinstance(node, ast.Return) and node.value for node in ast.walk(definition)):
        raise ValueError(
            f"{definition.name} returns no number; end it with a return of the signal"
        )


def _first_line(node: ast.AST) -> str:
    return ast.unparse(node).partition("\n")[0]


def _outside_names(function: Callable, definition: ast.FunctionDef) -> dict[str, object]:
    """Look up the names defined outside the function: numbers, and `math` and `numpy`."""
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
        elif _is_of_modules(name, value):
            values[name] = value
        else:
            raise ValueError(
                f"{definition.name} uses {name} (line {_line_of(name, definition)}), which is "
                "neither a number nor math or numpy; define it inside"
            )
    return values


def _line_of(name: str, definition: ast.FunctionDef) -> int:
    """Find the first line of a function that uses a name."""
    lines = [
        node.lineno
        for node in ast.walk(definition)
        if isinstance(node, ast.Name) and node.id == name
    ]
    return min(lines, default=definition.lineno)


def _is_of_modules(name: str, value: object) -> bool:
    """Tell whether a value is `math` or `numpy`, or a function of theirs under its own name."""
    if value is math or value is np:
        return True
    return callable(value) and any(getattr(module, name, None) is value for module in _MODULES)


class _Constants(ast.NodeTransformer):
    """Replaces names of numbers by the numbers, and names of modules by `math` or `np`."""

    def __init__(self, values: dict[str, object]) -> None:
        self.values = values

    def visit_Name(self, node: ast.Name) -> ast.expr:
        value = self.values.get(node.id)
        if value is None or not isinstance(node.ctx, ast.Load):
            return node
        if isinstance(value, float):
            return _at(node, ast.Constant(value))
        if isinstance(value, ModuleType):
            return _at(node, ast.Name("math" if value is math else "np", ast.Load()))
        module = "math" if getattr(math, node.id, None) is value else "np"
        return _at(node, ast.Attribute(ast.Name(module, ast.Load()), node.id, ast.Load()))

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        # Numbers from outside are floats, which `range` does not take.
        if isinstance(node.func, ast.Name) and node.func.id == "range":
            for argument in node.args:
                match argument:
                    case ast.Constant(value=float() as number) if number.is_integer():
                        argument.value = int(number)
        return node


def _at(place: ast.AST, node: ast.expr) -> ast.expr:
    """Give a new node the lines of the one in whose place it stands."""
    return ast.copy_location(node, place)


def _expression(definition: ast.FunctionDef) -> str:
    """Write what a function returns as one expression of its arguments."""
    reader = _Reader({argument.arg for argument in definition.args.args})
    result = reader.returned(definition.body, {})
    if result is None:
        raise _NotArithmeticError("a path without return", definition)
    _check_size(result, definition)
    text = ast.unparse(result)
    if len(text) > _LONGEST:
        raise _NotArithmeticError(_TOO_LONG, definition)
    return text


#: Local variables by name; None stands for one that only some branches set.
_Values = dict[str, ast.expr | None]


class _Reader:
    """Follows the statements of a function, with its variables as expressions of the arguments."""

    def __init__(self, arguments: set[str]) -> None:
        self.arguments = arguments

    def returned(self, statements: Iterable[ast.stmt], values: _Values) -> ast.expr | None:
        """Follow statements, which change `values`, up to what they return, None for nothing."""
        waiting = list(statements)[::-1]
        while waiting:
            statement = waiting.pop()
            match statement:
                case ast.Return(value=ast.expr() as value):
                    return self.number(value, values)
                case ast.If():
                    test = self.condition(statement.test, values)
                    if isinstance(test, bool):
                        waiting += (statement.body if test else statement.orelse)[::-1]
                    elif any(isinstance(node, ast.Return) for node in ast.walk(statement)):
                        return self._split(test, statement, waiting[::-1], values)
                    else:
                        self._merge(test, statement, values)
                case ast.For(orelse=[]):
                    waiting += self._rounds(statement, values)[::-1]
                case ast.Pass() | ast.Expr(value=ast.Constant()):
                    continue
                case _:
                    self._assign(statement, values)
        return None

    def _split(
        self, test: ast.expr, statement: ast.If, following: list[ast.stmt], values: _Values
    ) -> ast.expr:
        """Follow both branches of a statement to their ends, because one of them returns."""
        results = [
            self.returned([*branch, *following], dict(values))
            for branch in (statement.body, statement.orelse)
        ]
        if results[0] is None or results[1] is None:
            raise _NotArithmeticError("a path without return", statement)
        return ast.IfExp(test, results[0], results[1])

    def _merge(self, test: ast.expr, statement: ast.If, values: _Values) -> None:
        """Give the variables that a branch sets a value by its condition."""
        yes, no = dict(values), dict(values)
        self.returned(statement.body, yes)
        self.returned(statement.orelse, no)
        for name in {**yes, **no}:
            first, second = yes.get(name), no.get(name)
            if first is None or second is None:
                values[name] = None
            elif first is second:
                values[name] = first
            else:
                values[name] = ast.IfExp(test, _as_number(first), _as_number(second))

    def _rounds(self, statement: ast.For, values: _Values) -> list[ast.stmt]:
        """Write out a loop over a range or over numbers."""
        if any(isinstance(node, ast.Break | ast.Continue) for node in ast.walk(statement)):
            raise _NotArithmeticError("break or continue", statement)
        items: Sequence[ast.expr]
        match statement.iter:
            case ast.Call(func=ast.Name(id="range"), args=[_, *_] as arguments, keywords=[]):
                limits: list[Any] = [
                    _whole(self.number(argument, values)) for argument in arguments
                ]
                if len(limits) > 3 or None in limits or limits[2:] == [0]:
                    raise _NotArithmeticError("a loop whose length is not fixed", statement)
                items = [ast.Constant(i) for i in range(*limits)[: _MOST_ROUNDS + 1]]
            case ast.Tuple(elts=items) | ast.List(elts=items):
                pass
            case _:
                raise _NotArithmeticError("a loop over something other than range", statement)
        if len(items) > _MOST_ROUNDS:
            raise _NotArithmeticError(f"a loop of more than {_MOST_ROUNDS} rounds", statement)
        rounds: list[ast.stmt] = []
        for item in items:
            assignment = ast.copy_location(ast.Assign([statement.target], item), statement)
            rounds.append(ast.fix_missing_locations(assignment))
            rounds += statement.body
        return rounds

    def _assign(self, statement: ast.stmt, values: _Values) -> None:
        match statement:
            case ast.Assign(targets=targets, value=value):
                self._bind(targets, value, values)
            case ast.AnnAssign(target=ast.Name() as target, value=ast.expr() as value):
                self._bind([target], value, values)
            case ast.AugAssign(target=ast.Name(id=name) as target, op=op, value=value):
                left = ast.copy_location(ast.Name(name, ast.Load()), statement)
                self._bind([target], _at(statement, ast.BinOp(left, op, value)), values)
            case _:
                raise _NotArithmeticError(_first_line(statement), statement)

    def _bind(self, targets: Sequence[ast.expr], value: ast.expr, values: _Values) -> None:
        for target in targets:
            match target, value:
                case ast.Name(id=name), _:
                    values[name] = self.value(value, values)
                    _check_size(values[name], value)
                case (
                    ast.Tuple(elts=members) | ast.List(elts=members),
                    ast.Tuple(elts=items) | ast.List(elts=items),
                ) if len(members) == len(items):
                    # All values are read before the first name changes: a, b = b, a.
                    before = dict(values)
                    for member, item in zip(members, items, strict=True):
                        inner = dict(before)
                        self._bind([member], item, inner)
                        values.update({k: v for k, v in inner.items() if before.get(k) is not v})
                case _:
                    raise _NotArithmeticError(_first_line(value), value)

    def value(self, node: ast.expr, values: _Values) -> ast.expr:
        """Read a number, or a condition that a variable keeps."""
        if _is_condition(node):
            test = self.condition(node, values)
            return ast.Constant(test) if isinstance(test, bool) else test
        return self.number(node, values)

    def number(self, node: ast.expr, values: _Values) -> ast.expr:
        """Read a number as an expression of the arguments."""
        match node:
            case ast.Constant(value=bool() | int() | float()):
                return _as_number(node)
            case ast.Name():
                return _as_number(self._variable(node, values))
            case ast.BinOp(left=left, op=op, right=right):
                return _combined(op, self.number(left, values), self.number(right, values), node)
            case ast.UnaryOp(op=ast.USub() | ast.UAdd() as op, operand=operand):
                return _signed(op, self.number(operand, values))
            case ast.IfExp(test=test, body=yes, orelse=no):
                return self._choice(test, yes, no, values)
            case ast.Call(keywords=[]) if not any(
                isinstance(argument, ast.Starred) for argument in node.args
            ):
                return self._call(node, values)
            case ast.Attribute(value=ast.Name(id="math" | "np"), attr="pi" | "e" as name):
                return ast.Constant(getattr(math, name))
        if _is_condition(node):
            return _as_number(self.value(node, values))
        raise _NotArithmeticError(_first_line(node), node)

    def _variable(self, node: ast.Name, values: _Values) -> ast.expr:
        if node.id in values:
            value = values[node.id]
            if value is None:
                raise _NotArithmeticError(f"{node.id}, which some branches do not set,", node)
            return value
        if node.id not in self.arguments:
            raise _NotArithmeticError(f"the unknown name {node.id}", node)
        return ast.Name(node.id, ast.Load())

    def _choice(self, test: ast.expr, yes: ast.expr, no: ast.expr, values: _Values) -> ast.expr:
        condition = self.condition(test, values)
        if isinstance(condition, bool):
            return self.number(yes if condition else no, values)
        return ast.IfExp(condition, self.number(yes, values), self.number(no, values))

    def _call(self, node: ast.Call, values: _Values) -> ast.expr:
        """Write the functions of `math`, NumPy and Python that arithmetic and conditions say."""
        match node.func:
            case ast.Attribute(value=ast.Name(id="math" | "np"), attr=name):
                pass
            case ast.Name(id=name) if name in _BUILTINS and name not in self.arguments | {*values}:
                pass
            case _:
                raise _NotArithmeticError(_first_line(node), node)
        if name == "where" and len(node.args) == 3:
            test, yes, no = node.args
            return self._choice(test, yes, no, values)
        numbers = [self.number(argument, values) for argument in node.args]
        match name, numbers:
            case _, [x] if name in _SAME_NAME:
                return ast.Call(ast.Name(name, ast.Load()), [x], [])
            case "float", [x]:
                return x
            case "square", [x]:
                return ast.BinOp(x, ast.Pow(), ast.Constant(2))
            case _, [x] if name in _ABSOLUTE:
                negative = ast.Compare(x, [ast.Lt()], [_ZERO])
                return ast.IfExp(negative, _signed(ast.USub(), x), x)
            case _, [x, y] if name in _POWERS:
                return ast.BinOp(x, ast.Pow(), y)
            case _, [_, _, *_] if name in _SMALLEST:
                return _extreme(numbers, ast.Lt())
            case _, [_, _, *_] if name in _LARGEST:
                return _extreme(numbers, ast.Gt())
            case "clip", [x, low, high]:
                return _extreme([_extreme([x, low], ast.Gt()), high], ast.Lt())
        raise _NotArithmeticError(_first_line(node), node)

    def condition(self, node: ast.expr, values: _Values) -> ast.expr | bool:
        """Read a condition, or its answer where that is the same for all arguments."""
        match node:
            case ast.Constant(value=bool() as answer):
                return answer
            case ast.Name() if (variable := self._variable(node, values)) and _is_condition(
                variable
            ):
                return bool(variable.value) if isinstance(variable, ast.Constant) else variable
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                test = self.condition(operand, values)
                return not test if isinstance(test, bool) else ast.UnaryOp(ast.Not(), test)
            case ast.BoolOp(op=op, values=members):
                return _joined(op, [self.condition(member, values) for member in members])
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                terms = [self.number(term, values) for term in (left, *comparators)]
                comparisons = [
                    _compared(terms[i], op, terms[i + 1], node) for i, op in enumerate(ops)
                ]
                return _joined(ast.And(), comparisons)
        return _compared(self.number(node, values), ast.NotEq(), _ZERO, node)


_ZERO = ast.Constant(0)


def _check_size(node: ast.expr | None, place: ast.AST) -> None:
    """Refuse an expression that is too long before it is written."""
    if node is not None and _size(node) > _LONGEST:
        raise _NotArithmeticError(_TOO_LONG, place)


def _size(node: Any) -> int:
    # Variables are parts of many expressions: each is counted once and keeps its count.
    if not hasattr(node, "n_terms"):
        members = [part for part in ast.iter_child_nodes(node) if isinstance(part, ast.expr)]
        node.n_terms = 1 + sum(_size(member) for member in members)
    return node.n_terms


def _is_condition(node: ast.expr) -> bool:
    match node:
        case ast.Compare() | ast.BoolOp() | ast.UnaryOp(op=ast.Not()):
            return True
        case ast.Constant(value=bool()):
            return True
    return False


def _as_number(node: ast.expr) -> ast.expr:
    """Read a condition as the number 1 or 0; a number stays as it is."""
    if not _is_condition(node):
        return node
    if isinstance(node, ast.Constant):
        return ast.Constant(int(_constant(node)))
    return ast.IfExp(node, ast.Constant(1), _ZERO)


def _constant(node: Any) -> Any:
    """Return the value of a constant, None for other terms."""
    return node.value if isinstance(node, ast.Constant) else None


def _whole(node: ast.expr) -> int | None:
    """Return the value of a constant that is a whole number."""
    value = _constant(node)
    is_whole = isinstance(value, int | float) and float(value).is_integer()
    return int(value) if is_whole else None


def _signed(op: ast.unaryop, node: ast.expr) -> ast.expr:
    value = _constant(node)
    if value is None:
        return ast.UnaryOp(op, node)
    return ast.Constant(-value if isinstance(op, ast.USub) else value)


def _combined(op: ast.operator, left: ast.expr, right: ast.expr, node: ast.AST) -> ast.expr:
    match left, right:
        case ast.Constant(value=int() as first), ast.Constant(value=int() as second):
            divides = not isinstance(op, ast.Mod | ast.FloorDiv) or second != 0
            if type(op) in _WHOLE and divides:
                return ast.Constant(_WHOLE[type(op)](first, second))
    if not isinstance(op, _ARITHMETIC):
        raise _NotArithmeticError(_first_line(node), node)
    return ast.BinOp(left, op, right)


def _compared(left: ast.expr, op: ast.cmpop, right: ast.expr, node: ast.AST) -> ast.expr | bool:
    if type(op) not in COMPARISONS:
        raise _NotArithmeticError(_first_line(node), node)
    values = _constant(left), _constant(right)
    if None not in values:
        return bool(COMPARISONS[type(op)](*values))
    return ast.Compare(left, [op], [right])


def _joined(op: ast.boolop, members: list[ast.expr | bool]) -> ast.expr | bool:
    """Join conditions by `and` or `or`, where some may have their answers already."""
    decisive = isinstance(op, ast.Or)
    if decisive in [member for member in members if isinstance(member, bool)]:
        return decisive
    open_members = [member for member in members if not isinstance(member, bool)]
    if not open_members:
        return not decisive
    return open_members[0] if len(open_members) == 1 else ast.BoolOp(op, open_members)


def _extreme(numbers: list[ast.expr], op: ast.cmpop) -> ast.expr:
    """Write the smallest or largest of numbers as Python finds it: the first of equal ones."""
    result = numbers[0]
    for number in numbers[1:]:
        result = ast.IfExp(ast.Compare(number, [op], [result]), number, result)
    return result
