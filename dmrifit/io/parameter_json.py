"""Parameters as JSON and back, with nothing built that is not on a list."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from dmrifit.engine.models import Parameter, SignalModel
from dmrifit.engine.protocol import Protocol


class RefusedError(ValueError):
    """A model file that is not read, with the reason."""


def refuse_keys(entries: Any, allowed: set[str], noun: str, *, complete: bool = False) -> None:
    """Refuse a value that is no dictionary, has another key or, if complete, lacks one."""
    if not isinstance(entries, dict):
        raise RefusedError(f"{entries} instead of {sorted(allowed)}: unknown or missing {noun}")
    unknown = sorted(set(entries) - allowed)
    missing = sorted(allowed - set(entries)) if complete else []
    if unknown or missing:
        remedy = "; train it again" if noun.startswith("parameter") else ""
        raise RefusedError(
            f"unknown or missing {noun} (unknown: {', '.join(unknown) or 'none'}; missing: "
            f"{', '.join(missing) or 'none'}); it may be of another version{remedy}"
        )


def encoded(value: Any, key: str) -> Any:
    """Write a parameter as JSON; types that JSON lacks get a key that begins with a dollar."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        # JSON has no infinity, which bounds of a model may be.
        return float(value) if math.isfinite(value) else {"$float": repr(float(value))}
    if isinstance(value, Protocol):
        return {"$protocol": value.to_dict()}
    if isinstance(value, SignalModel):
        return {"$model": encoded_model(value)}
    if isinstance(value, tuple):
        return {"$tuple": [encoded(item, key) for item in value]}
    if isinstance(value, list):
        return [encoded(item, key) for item in value]
    if isinstance(value, Mapping) and not any(str(name).startswith("$") for name in value):
        return {str(name): encoded(item, key) for name, item in value.items()}
    raise TypeError(
        f"parameter {key} cannot be stored in a model file: {value!r}; "
        "give numbers, names and protocols"
    )


def encoded_model(model: SignalModel) -> dict[str, Any]:
    """Write a signal model as JSON: its formula and its parameters."""
    if model.source:
        raise TypeError(
            f"model {model.name} is a function with branches or loops, and a model file carries "
            "no code; write it as one formula (SignalModel.from_expression), or train without "
            "maps (model=None)"
        )
    parameters = [
        [p.name, p.unit, encoded(p.low, "low"), encoded(p.high, "high")] for p in model.parameters
    ]
    return {"name": model.name, "expression": model.expression, "parameters": parameters}


def decoded(value: Any) -> Any:
    """Read a parameter that `encoded` has written."""
    if isinstance(value, list):
        return [decoded(item) for item in value]
    if not isinstance(value, dict):
        return value
    tagged = [key for key in value if key.startswith("$")]
    if not tagged:
        return {key: decoded(item) for key, item in value.items()}
    # Exactly one, so that no file can say two things of one value.
    if len(value) == 1:
        ((tag, content),) = value.items()
        if tag == "$float":
            return float(content)
        if tag == "$tuple":
            return tuple(decoded(item) for item in content)
        if tag == "$protocol":
            keys = {"name", "b", "te", "directions"}
            refuse_keys(content, keys, "key of a protocol", complete=True)
            return Protocol.from_dict(content)
        if tag == "$model":
            return _decoded_model(content)
    raise RefusedError(f"a parameter has the unknown key {tagged[0]!r}")


def _decoded_model(content: Any) -> SignalModel:
    """Read a signal model from its formula."""
    if isinstance(content, dict) and content.get("source"):
        raise RefusedError(
            f"its model {content.get('name')!r} is the source of a function, "
            "and code from files is never run"
        )
    refuse_keys(content, {"name", "expression", "parameters"}, "key of a model", complete=True)
    parameters = []
    for name, unit, low, high in content["parameters"]:
        parameters.append(Parameter(name, unit, decoded(low), decoded(high)))
    return SignalModel.from_expression(content["expression"], parameters, name=content["name"])
