"""Threshold rules in model files: class names of this package alone, and plain numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from anomaly.detectors.thresholds import RULE_CLASSES, SCOPES, ThresholdRule
from dmrifit._utils.checks import is_number
from dmrifit.io.parameter_json import RefusedError, decoded, encoded, refuse_keys

__all__ = ["decoded_rule", "encoded_rule"]

_KEYS = {"rule", "parameters", "fitted"}
_FITTED = "threshold_"


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
    if getattr(rule, "thresholds_", ()):
        raise TypeError(
            f"the threshold {rule!r} has a limit for each scan it was fitted to, "
            "which belong to no others"
        )
    fitted = {}
    if hasattr(rule, _FITTED):
        fitted[_FITTED] = encoded(rule.threshold_, _FITTED)
    parameters = rule.get_params(deep=False)
    return {
        "rule": name,
        "parameters": {key: encoded(value, key) for key, value in parameters.items()},
        "fitted": fitted,
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
    try:
        rule._check_parameters()
    except (TypeError, ValueError) as error:
        raise RefusedError(f"a threshold has an impossible parameter: {error}") from None
    fitted = content["fitted"]
    if fitted == {}:
        return rule
    if not isinstance(fitted, dict) or set(fitted) != {_FITTED}:
        raise RefusedError(f"{fitted!r} is not what a threshold has fitted")
    threshold = decoded(fitted[_FITTED])
    if not is_number(threshold):
        raise RefusedError(f"{_FITTED} of a threshold is {threshold!r}, not a number")
    has_limits_of_maps = getattr(rule, "scope", SCOPES[0]) != SCOPES[0]
    if np.isnan(threshold) and not has_limits_of_maps:
        raise RefusedError(f"{_FITTED} of a threshold of all maps is missing (NaN)")
    if rule.needs_truth and has_limits_of_maps:
        raise RefusedError(f"{rule!r} has a limit for each scan it was fitted to")
    rule.threshold_ = threshold
    return rule
