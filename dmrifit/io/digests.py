"""Digests of settings, estimators, arrays and source code, and the command line of a result."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dmrifit.engine.models import SignalModel
from dmrifit.engine.protocol import Protocol

__all__ = ["command_line", "describe", "digest", "source_digest"]


def describe(value: Any) -> Any:
    """Describe a value in plain JSON types, so that equal values have equal descriptions."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        sha256 = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return {"array": list(value.shape), "type": str(value.dtype), "sha256": sha256}
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = list(value)
        # Sets have no order of their own.
        if isinstance(value, set | frozenset):
            items.sort(key=str)
        return [describe(item) for item in items]
    if isinstance(value, Protocol):
        return {"protocol": value.to_dict() | {"name": ""}}
    if isinstance(value, SignalModel):
        formula = {"source": value.source} if value.source else {"expression": value.expression}
        parameters = [[p.name, p.unit, p.low, p.high] for p in value.parameters]
        return {"model": value.name, **formula, "parameters": parameters}
    # Classes by name alone: the module that holds one may move without changing a result.
    if isinstance(value, type):
        return value.__qualname__
    if hasattr(value, "get_params"):
        parameters = value.get_params(deep=False)
        return {"class": describe(type(value)), "parameters": describe(parameters)}
    if is_dataclass(value):
        content = {field.name: describe(getattr(value, field.name)) for field in fields(value)}
        return {"class": describe(type(value)), "fields": content}
    # Splitters have no parameters as estimators have them.
    if type(value).__module__.startswith("sklearn.model_selection."):
        return {"class": describe(type(value)), "fields": describe(vars(value))}
    if callable(value) and "<" not in getattr(value, "__qualname__", "<"):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, np.random.RandomState):
        return {"RandomState": describe(list(value.get_state(legacy=True)))}
    raise TypeError(
        f"{value!r} cannot be described in a file, so its results could not be found again; "
        "use values, estimators and named functions, or leave out the folder"
    )


def digest(value: Any) -> str:
    """Compute the SHA-256 of a value's description."""
    text = json.dumps(describe(value), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def source_digest(paths: Iterable[Path]) -> str:
    """Compute the SHA-256 of what modules do, whatever they are called."""
    modules = list(paths)
    packages = {package.name: package for package in map(_top_package, modules)}
    return digest(sorted(_statements(module, packages) for module in modules))


def _top_package(path: Path) -> Path:
    """Find the folder of the package that a module belongs to."""
    package = path.parent
    while (package.parent / "__init__.py").is_file():
        package = package.parent
    return package


def _statements(path: Path, packages: Mapping[str, Path]) -> str:
    """Write the syntax tree of a module without docstrings and names of own modules."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported: list[str] = []
    placeholders: dict[str, str] = {}
    for node in ast.walk(tree):
        _drop_docstring(node)
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.partition(".")[0] in packages
        ):
            package, *folders = node.module.split(".")
            folder = packages[package].joinpath(*folders)
            for alias in node.names:
                bound = alias.asname or alias.name
                if (folder / f"{alias.name}.py").is_file():
                    placeholders[bound] = f"module {len(placeholders)}"
                else:
                    imported.append(f"{alias.name} as {bound}")
            # Sorted imports change their order when a module is renamed.
            node.module, node.names = "", []
        elif isinstance(node, ast.Import):
            node.names = [
                alias for alias in node.names if alias.name.partition(".")[0] not in packages
            ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            node.id = placeholders.get(node.id, node.id)
    return "\n".join([ast.dump(tree), *sorted(imported)])


def _drop_docstring(node: ast.AST) -> None:
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return
    if ast.get_docstring(node, clean=False) is not None:
        node.body[0] = ast.Pass()


def command_line(words: Iterable[str]) -> str:
    """Write a command as one would type it in the folder of its files."""
    return shlex.join(re.sub(r"[^=,]*/(?=[^/])|/+$", "", word) for word in words)
