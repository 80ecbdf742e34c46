"""Boards of claims: what a study states, checked with figures over repeated runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dmrifit.stats.verdicts import (
    EQUAL,
    FAILS,
    HOLDS,
    LEAST_SEEDS,
    NOT_SIMULATED,
    OPEN,
    Margin,
    decide_reading,
    format_number,
)

if TYPE_CHECKING:
    import pandas as pd

Relation = Literal["<", "<=", ">", ">=", "="]

#: What the verdict of a claim starts with whose conditions disagree.
DEPENDS = "depends on"

BOARD_COLUMNS = (
    "claim", "statement", "study", "ours", "rule", "verdict", "readings", "reason", "n_runs",
)  # fmt: skip
FIGURE_COLUMNS = (
    "claim", "reading", "condition", "run", "where", "quantity", "value", "relation", "limit",
    "against", "margin",
)  # fmt: skip


class MissingEvidence(Exception):
    """What a reading needs is not there; the message says what."""


@dataclass(frozen=True)
class Check:
    """One comparison of a number with a limit; NaN leaves it open."""

    quantity: str
    value: float
    relation: Relation
    limit: float
    where: str = ""  # what part of the data the number is from
    against: str = ""  # what the limit is, if it was measured
    margin: str = ""  # name of the difference that counts as none


@dataclass(frozen=True)
class Reading:
    """One way to read a claim: all checks of a run's evidence must hold."""

    name: str
    # Raises `MissingEvidence` where something is not there.
    checks: Callable[[Any], Sequence[Check]]


@dataclass(frozen=True)
class Claim:
    """What a study states, and the rule that decides whether it holds here."""

    number: int
    statement: str  # in our words
    study: str  # the figure that the study prints, never one of ours
    rule: str
    readings: tuple[Reading, ...]  # the first decides, the others are listed beside it
    # All of these must be there, and hold, for the claim to hold; any will do if there are none.
    conditions: tuple[str, ...] = ()
    # What the simulation lacks that the claim is about; such a claim is not decided.
    not_simulated: str = ""


@dataclass(frozen=True)
class Run:
    """The evidence of one repetition, which the readings of the claims take."""

    condition: str  # what was varied on purpose
    name: str  # what distinguishes the repetition, such as its seed
    evidence: Any = field(repr=False)


def check_claims(claims: Sequence[Claim], runs: Sequence[Run]) -> pd.DataFrame:
    """Make every check of every reading of every claim in every run."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for claim in claims:
        for reading, run in itertools.product(claim.readings, runs):
            keys = {"claim": claim.number, "reading": reading.name}
            keys |= {"condition": run.condition, "run": run.name}
            try:
                rows += [keys | vars(check) for check in reading.checks(run.evidence)]
            except MissingEvidence as missing:
                nothing = vars(Check(str(missing), math.nan, "=", math.nan))
                rows.append(keys | nothing | {"relation": ""})
    return pd.DataFrame(rows, columns=list(FIGURE_COLUMNS))


def build_board(
    claims: Sequence[Claim],
    runs: Sequence[Run],
    *,
    margins: Mapping[str, Margin],
    depends: Callable[[Sequence[str], Sequence[str]], str] | None = None,
    figures: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """
    Decide claims by their first reading, over all runs and conditions.

    A reading is decided in a condition by `dmrifit.stats.verdicts`; over conditions a verdict
    stands if it is that of every one.
    """
    import pandas as pd

    if not runs:
        raise ValueError("a board needs at least one run")
    figures = check_claims(claims, runs) if figures is None else figures
    counts: dict[str, int] = {}
    for condition, _ in dict.fromkeys((run.condition, run.name) for run in runs):
        counts[condition] = counts.get(condition, 0) + 1
    rows = []
    for claim in claims:
        by_reading = {}
        for reading in claim.readings:
            keys = (figures["claim"] == claim.number) & (figures["reading"] == reading.name)
            outcome = _Outcome.of(figures[keys], claim, counts, margins, depends)
            by_reading[reading.name] = outcome
        first = by_reading[claim.readings[0].name]
        row = {name: getattr(claim, name) for name in ("statement", "study", "rule")}
        row |= {"claim": claim.number, "ours": first.ours, "n_runs": min(counts.values())}
        row["verdict"] = NOT_SIMULATED if claim.not_simulated else first.verdict
        row["readings"] = "\n".join(
            f"{name}: {outcome.verdict}{outcome.short}" for name, outcome in by_reading.items()
        )
        row["reason"] = claim.not_simulated or "\n".join(first.reasons)
        rows.append(row)
    return pd.DataFrame(rows, columns=list(BOARD_COLUMNS))


def board_sentence(claims: Sequence[Mapping[str, Any]]) -> str:
    """List the numbers of claims by their verdicts, from rows of a board; what prose may say."""
    numbers: dict[str, list[str]] = {HOLDS: [], EQUAL: [], FAILS: []}
    for row in sorted(claims, key=lambda row: row["verdict"] in (OPEN, NOT_SIMULATED)):
        numbers.setdefault(row["verdict"], []).append(str(row["claim"]))
    texts = [f"{name} ({', '.join(listed)})" for name, listed in numbers.items() if listed]
    sentence = f"Verdicts, with the numbers of their claims: {', '.join(texts)}."
    n_runs = min(row["n_runs"] for row in claims)
    if n_runs < LEAST_SEEDS:
        sentence += f" Seeds: {n_runs} of the {LEAST_SEEDS} that a verdict needs."
    return sentence


@dataclass(frozen=True)
class _Outcome:
    """What became of a reading."""

    verdict: str
    short: str
    ours: str
    reasons: list[str]

    @classmethod
    def of(
        cls,
        figures: pd.DataFrame,
        claim: Claim,
        counts: Mapping[str, int],
        margins: Mapping[str, Margin],
        depends: Callable[[Sequence[str], Sequence[str]], str] | None,
    ) -> _Outcome:
        verdicts: dict[str, str] = {}
        reasons, ours = [], []
        # Only the first reading shows its figures on the board.
        decides = set(figures["reading"]) == {claim.readings[0].name}
        for condition, rows in figures.groupby("condition", sort=False):
            prefix = f"{condition}: " if condition else ""
            verdicts[condition], reason = decide_reading(rows, counts[condition], margins)
            reasons.append(prefix + reason)
            text = _figures_in_words(rows)
            if decides and text:
                ours.append(prefix + text)
        absent = [name for name in claim.conditions if name not in verdicts]
        by_verdict: dict[str, list[str]] = {HOLDS: [], EQUAL: [], FAILS: [], OPEN: []}
        for condition, verdict in verdicts.items():
            by_verdict[verdict].append(condition)
        decided = [name for name, where in by_verdict.items() if where and name != OPEN]
        if absent:
            reasons.insert(0, f"missing: {'; '.join(absent)}")
        elif len(set(verdicts.values())) > 1:
            texts = [f"{name}: {', '.join(where)}" for name, where in by_verdict.items() if where]
            reasons.insert(0, "; ".join(texts))
        short = ""
        # Conditions that contradict each other are a verdict, even if others are open.
        if not absent and len(decided) > 1:
            one = by_verdict[decided[0]]
            rest = [where for name in decided[1:] for where in by_verdict[name]]
            what_differs = depends(one, rest) if depends else "the condition"
            overall = f"{DEPENDS} {what_differs}"
            short = f" ({decided[0]}: {'; '.join(one)})"
        elif absent or by_verdict[OPEN] or not decided:
            overall = OPEN
        else:
            overall = decided[0]
        return cls(overall, short, "\n".join(ours), reasons)


def _figures_in_words(figures: pd.DataFrame) -> str:
    """Write each number as mean ± standard deviation over runs; places together."""
    by_quantity: dict[str, list[str]] = {}
    usable = figures[figures["relation"] != ""]
    for (where, quantity), check in usable.groupby(["where", "quantity"], sort=False):
        against = check["against"].iloc[0]
        text = _spread(check["value"])
        if where:
            text = f"{where} {text}"
        if against:
            text += f" ({against} {_spread(check['limit'])})"
        by_quantity.setdefault(quantity, []).append(text)
    return "; ".join(f"{quantity}: {', '.join(texts)}" for quantity, texts in by_quantity.items())


def _spread(values: pd.Series) -> str:
    finite = values[np.isfinite(values)]
    if not len(values):
        return "–"
    if not len(finite):
        return format_number(float(values.iloc[0]))
    # Of a single value the standard deviation is NaN.
    return format_number(float(finite.mean()), float(finite.std()))
