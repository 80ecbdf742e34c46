"""Digests of settings, estimators, arrays and source code, and the command line of a result."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dmrifit.engine.models import SignalModel
from dmrifit.engine.protocol import Protocol


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
        # The name of a protocol changes no number.
        return {"protocol": value.to_dict() | {"name": ""}}
    if isinstance(value, SignalModel):
        formula = {"expression": value.expression}
        if value.source:
            formula = {"source": value.source}
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
    sources = {module: _read_source(module, packages) for module in modules}
    # An imported module is identified by its statements: its name may change, its work may not.
    identities = {module: digest(ast.dump(source.tree)) for module, source in sources.items()}
    return digest(sorted(source.text(identities) for source in sources.values()))


def _top_package(path: Path) -> Path:
    """Find the folder of the package that a module belongs to."""
    package = path.parent
    while (package.parent / "__init__.py").is_file():
        package = package.parent
    return package


@dataclass(frozen=True)
class _Source:
    """Statements of a module, apart from what it imports from modules of the same packages."""

    tree: ast.Module
    imports: list[tuple[Path, str]]
    module_uses: list[tuple[ast.Name, Path]]

    def text(self, identities: Mapping[Path, str]) -> str:
        """Write the statements, with the identity of each module in place of its name."""
        for node, module in self.module_uses:
            node.id = identities.get(module, "")
        imported = sorted(f"{identities.get(module, '')} {name}" for module, name in self.imports)
        return "\n".join([ast.dump(self.tree), *imported])


def _read_source(path: Path, packages: Mapping[str, Path]) -> _Source:
    """Parse a module without docstrings and without imports from the packages."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imports: list[tuple[Path, str]] = []
    bound_modules: dict[str, Path] = {}
    for node in ast.walk(tree):
        _drop_docstring(node)
        if isinstance(node, ast.Import):
            node.names = [
                alias for alias in node.names if alias.name.partition(".")[0] not in packages
            ]
        if not isinstance(node, ast.ImportFrom) or not node.module:
            continue
        package, *folders = node.module.split(".")
        if package not in packages:
            continue
        location = packages[package].joinpath(*folders)
        for alias in node.names:
            bound = alias.asname or alias.name
            submodule = location / f"{alias.name}.py"
            if submodule.is_file():
                bound_modules[bound] = submodule
            else:
                imports.append((location.with_suffix(".py"), f"{alias.name} as {bound}"))
        # Sorted imports change their order when a module is renamed.
        node.module, node.names = "", []
    module_uses = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in bound_modules:
            module_uses.append((node, bound_modules[node.id]))
            node.id = "module"
    return _Source(tree, imports, module_uses)


def _drop_docstring(node: ast.AST) -> None:
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return
    if ast.get_docstring(node, clean=False) is not None:
        del node.body[0]


def command_line(words: Iterable[str]) -> str:
    """Write a command as one would type it in the folder of its files."""
    # Without folders, which are of no use elsewhere and may name the user.
    return shlex.join(re.sub(r"[^=,]*/(?=[^/])|/+$", "", word) for word in words)
