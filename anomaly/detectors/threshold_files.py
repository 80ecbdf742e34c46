"""Threshold rules in model files: their class by name, from this package alone, and plain numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from anomaly.detectors import thresholds
from anomaly.detectors.thresholds import ThresholdRule
from dmrifit.io.parameter_json import RefusedError, decoded, encoded, refuse_keys

__all__ = ["decoded_rule", "encoded_rule"]

_KEYS = {"rule", "parameters", "fitted"}


def encoded_rule(rule: ThresholdRule | None) -> dict[str, Any] | None:
    """Give a threshold rule as JSON."""
    if rule is None:
        return None
    name = type(rule).__name__
    if _rules().get(name) is not type(rule):
        raise TypeError(
            f"the threshold {rule!r} cannot be stored in a model file; {', '.join(sorted(_rules()))} can"
        )
    fitted = {
        key: value
        for key, value in vars(rule).items()
        if key.endswith("_") and not key.startswith("_")
    }
    if not all(isinstance(value, int | float | np.number) for value in fitted.values()):
        raise TypeError(
            f"the threshold {rule!r} has a limit for each scan it was fitted to, which belong to no others"
        )
    return {
        "rule": name,
        "parameters": {
            key: encoded(value, key) for key, value in rule.get_params(deep=False).items()
        },
        "fitted": {key: encoded(value, key) for key, value in fitted.items()},
    }


def decoded_rule(content: Any) -> ThresholdRule | None:
    """Make a threshold rule from what `encoded_rule` has given."""
    if content is None:
        return None
    refuse_keys(content, _KEYS, "key of a threshold", complete=True)
    cls = _rules().get(content["rule"]) if isinstance(content["rule"], str) else None
    if cls is None:
        raise RefusedError(f"there is no threshold rule {content['rule']!r}")
    refuse_keys(
        content["parameters"],
        set(cls._get_param_names()),
        "parameter of a threshold",
        complete=True,
    )
    rule: ThresholdRule = cls(
        **{key: decoded(value) for key, value in content["parameters"].items()}
    )
    fitted = content["fitted"]
    if not isinstance(fitted, dict) or any(
        not key.endswith("_") or key.startswith("_") for key in fitted
    ):
        raise RefusedError(f"{fitted!r} is not what a threshold has fitted")
    for key, value in fitted.items():
        number = decoded(value)
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise RefusedError(f"{key} of a threshold is {number!r}, not a number")
        setattr(rule, key, number)
    return rule


def _rules() -> dict[str, type[ThresholdRule]]:
    found = (getattr(thresholds, name) for name in thresholds.__all__)
    return {
        cls.__name__: cls
        for cls in found
        if isinstance(cls, type) and issubclass(cls, ThresholdRule) and cls is not ThresholdRule
    }
