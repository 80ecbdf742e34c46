"""Digests of settings, estimators, arrays and source code, and the command line of a result."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dmrifit._utils.text_files import read_object
from dmrifit.engine.models import SignalModel
from dmrifit.engine.protocol import Protocol


def changed_settings(
    stored: Mapping[str, Any], new: Mapping[str, Any], group: str = ""
) -> Iterator[str]:
    """Say of each setting that differs what it was and what it is now."""
    for name in sorted({*stored, *new}):
        before, now = stored.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            yield from changed_settings(before, now, f"{group}{name}.")
        elif before != now:
            before, now = ("not given" if value is None else value for value in (before, now))
            yield f"{group}{name} was {before}, now {now}"


def check_command(path: Path, settings: Mapping[str, Any], records: Collection[Path]) -> None:
    """
    Refuse a folder that holds results of another command, which would be mixed with new ones.

    `path` is the file of the settings in it, `records` are those of cases that the command that
    runs now can replace, because it or a command with the same files wrote them.
    """
    stored = (read_object(path) if path.is_file() else None) or settings
    if stored.get("command") == settings.get("command") or records:
        return
    # A run that was refused or failed left no results.
    files = (file for file in path.parent.rglob("*") if file.is_file())
    if any(file.name not in (path.name, "failed.tsv") for file in files):
        raise ValueError(
            f"{path.parent} holds the results of {stored.get('command', 'another command')}; "
            "choose another folder"
        )


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
    # Sets have no order of their own.
    if isinstance(value, set | frozenset):
        return [describe(item) for item in sorted(value, key=str)]
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, Protocol):
        # The name of a protocol changes no number.
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


def command_line() -> str:
    """Write the command that started this process, without folders outside of this one."""
    program = Path(sys.argv[0])
    if program.name in ("", "-c", "ipykernel_launcher.py"):
        return "in a Python session"
    words = [program.name]
    if program.name == "__main__.py":
        words = [program.parent.name]
    elif program.suffix == ".py":
        words = ["python", program.name]
    words += sys.argv[1:]
    # Paths below this folder run again from it; folders of others may name the user.
    here = re.escape(str(Path.cwd()).rstrip("/"))
    words = [re.sub(rf"(^|[=,]){here}/(?=[^/])", r"\1", word) for word in words]
    return shlex.join(re.sub(r"(^|[=,])/([^=,]*/)?(?=[^/])", r"\1", word) for word in words)


def rerun_command(study: Mapping[str, Any], options: str, python: str) -> str:
    """Write the command of a study with other options, or the call with these in `python`."""
    command = study.get("command", "")
    if not command.startswith("dmrifit benchmark "):
        return f"compare(…, {python})"
    # Both names of one option, where it is given anew.
    named = options.replace("--sizes", "--n-train --sizes").replace("--resynthesize ", "")
    replaced = "|".join(re.findall("--[a-z-]+", named))
    value = r"(?:'[^']*'|\S)+"
    given = f" (?:'(?:{replaced})=[^']*'|(?:{replaced})[= ]{value})"
    return f"{re.sub(given, '', command)} {options}"
