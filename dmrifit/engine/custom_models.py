"""Signal models written as Python functions: turned into expressions, or copied as source."""

from __future__ import annotations

import ast
import inspect
import math
import textwrap
from collections.abc import Callable, Sequence
from types import ModuleType

import numpy as np

__all__ = ["read_function"]

_MODULES = (math, np)
_EXPRESSIBLE = {"exp", "log", "sqrt"}


def read_function(function: Callable, names: Sequence[str]) -> tuple[str, str]:
    """Read a function of one measurement: its expression, or else its source."""
    # A function that numba compiled keeps the original in this attribute.
    function = getattr(function, "py_func", function)
    definition = _definition(function)
    _check_arguments(definition, names)
    outside_names = _outside_names(function, definition)
    definition = ast.fix_missing_locations(_Constants(outside_names).visit(definition))
    try:
        return ast.unparse(_inlined(definition)), ""
    except _NotArithmeticError:
        definition.name = "user_function"
        return "", ast.unparse(definition)


class _NotArithmeticError(Exception):
    """A function does more than assign and return arithmetic."""


def _definition(function: Callable) -> ast.FunctionDef:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
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


def _outside_names(function: Callable, definition: ast.FunctionDef) -> dict[str, object]:
    """Look up the names defined outside the function: numbers, and `math` and `numpy`."""
    closure = inspect.getclosurevars(function)
    values: dict[str, object] = {}
    for name, value in {**closure.globals, **closure.nonlocals}.items():
        if isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
            values[name] = float(value)
        elif _is_of_modules(name, value):
            values[name] = value
        else:
            raise ValueError(
                f"{definition.name} uses {name}, which is neither a number nor math or numpy; "
                "define it inside"
            )
    return values


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
            return ast.Constant(value)
        if isinstance(value, ModuleType):
            return ast.Name("math" if value is math else "np", ast.Load())
        module = "math" if getattr(math, node.id, None) is value else "np"
        return ast.Attribute(ast.Name(module, ast.Load()), node.id, ast.Load())


def _inlined(definition: ast.FunctionDef) -> ast.expr:
    """Substitute the assignments of a function into what it returns."""
    values: dict[str, ast.expr] = {}
    for statement in definition.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                values[name] = _Substitute(values).visit(value)
            case ast.Return(value=ast.expr() as value) if statement is definition.body[-1]:
                return _Substitute(values).visit(value)
            case _:
                break
    raise _NotArithmeticError


class _Substitute(ast.NodeTransformer):
    """Replaces names by their values, and refuses all but the arithmetic of signal models."""

    def __init__(self, values: dict[str, ast.expr]) -> None:
        self.values = values

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self.values.get(node.id, node)

    def visit_Call(self, node: ast.Call) -> ast.expr:
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="math" | "np"), attr=name),
                args=[argument],
                keywords=[],
            ):
                if name in _EXPRESSIBLE:
                    return ast.Call(ast.Name(name, ast.Load()), [self.visit(argument)], [])
        raise _NotArithmeticError

    def generic_visit(self, node: ast.AST) -> ast.AST:
        arithmetic = ast.BinOp | ast.UnaryOp | ast.Constant | ast.Load | ast.operator | ast.unaryop
        if not isinstance(node, arithmetic) or isinstance(
            node, ast.Mod | ast.FloorDiv | ast.MatMult | ast.Not
        ):
            raise _NotArithmeticError
        return super().generic_visit(node)
