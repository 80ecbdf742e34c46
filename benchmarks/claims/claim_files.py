"""Claims as data: what a study states, what decides it, and which rules with which values check it."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dmrifit.stats.claim_board import Claim, Reading

__all__ = ["read_claims"]


def read_claims(path: Path, rules: Mapping[str, Any]) -> tuple[Claim, ...]:
    """
    Read claims from a TOML file.

    Each table ``claim`` holds number, statement, study, rule (in words) and readings; a reading
    has its name and the name of one of `rules`, a function of the evidence, or with ``values``
    one that makes such a function from them.
    """
    claims = []
    for fields in tomllib.loads(path.read_text(encoding="utf-8"))["claim"]:
        readings = tuple(Reading(entry["name"], _rule(entry, rules)) for entry in fields["readings"])
        claims.append(Claim(**fields | {"readings": readings}))
    return tuple(claims)


def _rule(entry: Mapping[str, Any], rules: Mapping[str, Any]) -> Callable[..., Any]:
    function: Callable[..., Any] = rules[entry["rule"]]
    return function(*entry["values"]) if "values" in entry else function
