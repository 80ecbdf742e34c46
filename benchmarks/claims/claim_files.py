"""Claims as data: what a study states, what decides it, and which rules with which values check it."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dmrifit.stats.claim_board import Check, Claim, Reading

__all__ = ["read_claims"]


def read_claims(path: Path, rules: Mapping[str, Any]) -> tuple[Claim, ...]:
    """
    Read claims from a TOML file.

    Each table ``claim`` holds number, statement, study, rule (in words) and readings. A reading has
    its name and either checks, rows of quantity, figure, relation, limit, what the limit is, and
    margin, whose figures and limits are formulas of `rules` as functions of the evidence; or the
    name of one of `rules`, a function of the evidence, or with ``values`` one that makes such a
    function from them.
    """
    claims = []
    for fields in tomllib.loads(path.read_text(encoding="utf-8"))["claim"]:
        readings = tuple(Reading(entry["name"], _rule(entry, rules)) for entry in fields["readings"])
        claims.append(Claim(**fields | {"readings": readings}))
    return tuple(claims)


def _rule(entry: Mapping[str, Any], rules: Mapping[str, Any]) -> Callable[..., Any]:
    if "checks" in entry:
        return partial(_compared, entry["checks"], rules)
    function: Callable[..., Any] = rules[entry["rule"]]
    return function(*entry["values"]) if "values" in entry else function


def _compared(rows: Sequence[Sequence[Any]], rules: Mapping[str, Any], evidence: Any) -> list[Check]:
    """Compare figures of the evidence with their limits."""
    functions = {name: partial(rule, evidence) for name, rule in rules.items() if callable(rule)}

    def number(formula: str) -> float:
        # The formulas are the project's own files.
        return float(eval(formula, {"__builtins__": {}}, functions))

    checks = []
    for quantity, figure, relation, limit, against, margin in rows:
        value = number(figure)
        checks.append(Check(quantity, value, relation, number(limit), "", against, margin))
    return checks
