"""Digests of settings, estimators and arrays, and the command line of a result."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from dmrifit.engine.models import SignalModel
from dmrifit.engine.protocol import Protocol

__all__ = ["command_line", "describe", "digest"]


def describe(value: Any) -> Any:
    """
    Describe a value in plain JSON types, so that equal values have equal descriptions.

    Parameters
    ----------
    value : object
        An estimator, protocol, model, array, function, class or plain value, or containers of them.

    Returns
    -------
    object
        Numbers, strings, lists and dicts; of an array its shape, type and digest.

    Raises
    ------
    TypeError
        If the value has no such description.
    """
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
        items = sorted(value, key=str) if isinstance(value, set | frozenset) else value
        return [describe(item) for item in items]
    if isinstance(value, Protocol):
        return {"protocol": value.to_dict() | {"name": ""}}
    if isinstance(value, SignalModel):
        formula = {"source": value.source} if value.source else {"expression": value.expression}
        parameters = [[one.name, one.unit, one.low, one.high] for one in value.parameters]
        return {"model": value.name, **formula, "parameters": parameters}
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if hasattr(value, "get_params"):
        parameters = value.get_params(deep=False)
        return {"class": describe(type(value)), "parameters": describe(parameters)}
    if is_dataclass(value):
        content = {field.name: describe(getattr(value, field.name)) for field in fields(value)}
        return {"class": describe(type(value)), "fields": content}
    if type(value).__module__.startswith("sklearn.model_selection."):  # a way of splitting
        return {"class": describe(type(value)), "fields": describe(vars(value))}
    if callable(value) and "<" not in getattr(value, "__qualname__", "<"):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, np.random.RandomState):
        return {"RandomState": describe(list(value.get_state(legacy=True)))}
    msg = (
        f"{value!r} cannot be described in a file, so its results could not be found again; use values, "
        "estimators and named functions, or leave out the folder"
    )
    raise TypeError(msg)


def digest(value: Any) -> str:
    """
    Compute the SHA-256 of a value's description.

    Parameters
    ----------
    value : object
        Anything that `describe` takes.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    text = json.dumps(describe(value), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def command_line(words: Iterable[str]) -> str:
    """
    Write a command as one would type it in the folder of its files.

    Parameters
    ----------
    words : iterable of str
        The program and what it was given.

    Returns
    -------
    str
        The words without the folders of paths: those name users, machines and sometimes patients, and reports are
        passed on.
    """
    return shlex.join(re.sub(r"[^=,]*/(?=[^/])|/+$", "", word) for word in words)
