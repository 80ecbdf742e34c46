"""Threshold rules in model files: class names of this package alone, and plain numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from anomaly.detectors.thresholds import RULE_CLASSES, ThresholdRule
from dmrifit.io.parameter_json import RefusedError, decoded, encoded, refuse_keys

__all__ = ["decoded_rule", "encoded_rule"]

_KEYS = {"rule", "parameters", "fitted"}


def encoded_rule(rule: ThresholdRule | None) -> dict[str, Any] | None:
    """Give a threshold rule as JSON."""
    if rule is None:
        return None
    name = type(rule).__name__
    # A user's rule of the same name has other code, and must not come back as ours.
    if RULE_CLASSES.get(name) is not type(rule):
        raise TypeError(
            f"the threshold {rule!r} cannot be stored in a model file; "
            f"{', '.join(sorted(RULE_CLASSES))} can"
        )
    fitted = {key: value for key, value in vars(rule).items() if _is_fitted_name(key)}
    if not all(isinstance(value, int | float | np.number) for value in fitted.values()):
        raise TypeError(
            f"the threshold {rule!r} has a limit for each scan it was fitted to, "
            "which belong to no others"
        )
    parameters = rule.get_params(deep=False)
    return {
        "rule": name,
        "parameters": {key: encoded(value, key) for key, value in parameters.items()},
        "fitted": {key: encoded(value, key) for key, value in fitted.items()},
    }


def decoded_rule(content: Any) -> ThresholdRule | None:
    """Build a threshold rule from its JSON."""
    if content is None:
        return None
    refuse_keys(content, _KEYS, "key of a threshold", complete=True)
    name = content["rule"]
    if not isinstance(name, str) or name not in RULE_CLASSES:
        raise RefusedError(f"there is no threshold rule {name!r}")
    cls = RULE_CLASSES[name]
    expected = set(cls._get_param_names())
    refuse_keys(content["parameters"], expected, "parameter of a threshold", complete=True)
    parameters = {key: decoded(value) for key, value in content["parameters"].items()}
    rule: ThresholdRule = cls(**parameters)
    fitted = content["fitted"]
    if not isinstance(fitted, dict) or not all(_is_fitted_name(key) for key in fitted):
        raise RefusedError(f"{fitted!r} is not what a threshold has fitted")
    for key, value in fitted.items():
        number = decoded(value)
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise RefusedError(f"{key} of a threshold is {number!r}, not a number")
        setattr(rule, key, number)
    return rule


def _is_fitted_name(name: str) -> bool:
    """Whether an attribute is fitted, by the naming rule of scikit-learn."""
    return name.endswith("_") and not name.startswith("_")
