"""Expressions of signal models: which ones are allowed, and their values."""

from __future__ import annotations

import ast
import functools
import itertools
import operator
from collections.abc import Callable, Mapping
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


@functools.lru_cache(maxsize=64)
def names_in(expression: str) -> frozenset[str]:
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
            return (name in FUNCTIONS) == is_function
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
        case ast.Call(func=ast.Name(id=name), args=[argument]):
            return arithmetic.functions[name](value(argument))
        case ast.IfExp(test=test, body=yes, orelse=no):
            return arithmetic.choice(value(test), value(yes), value(no))
        case ast.BoolOp(op=op, values=members):
            join = arithmetic.both if isinstance(op, ast.And) else arithmetic.either
            return functools.reduce(join, map(value, members))
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            return arithmetic.comparisons[type(op)](value(left), value(right))
    raise ValueError(f"not a signal formula: {ast.unparse(node)}")
