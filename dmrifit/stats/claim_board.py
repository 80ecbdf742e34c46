"""Boards of claims: what a study states, checked with figures over repeated runs."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dmrifit.stats.verdicts import (
    EQUAL,
    FAILS,
    HOLDS,
    NOT_SIMULATED,
    OPEN,
    Margin,
    decide_reading,
    format_number,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "BOARD_COLUMNS",
    "DEPENDS",
    "FAILS",
    "FIGURE_COLUMNS",
    "HOLDS",
    "OPEN",
    "Check",
    "Claim",
    "MissingEvidence",
    "Reading",
    "Relation",
    "Run",
    "build_board",
    "check_claims",
    "format_number",
]

Relation = Literal["<", "<=", ">", ">=", "="]
_RELATIONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}

#: What the verdict of a claim starts with whose conditions disagree.
DEPENDS = "depends on"

BOARD_COLUMNS = (
    "claim", "statement", "study", "ours", "rule", "verdict", "readings", "reason", "n_runs",
)  # fmt: skip
FIGURE_COLUMNS = (
    "claim", "reading", "condition", "run", "where", "quantity", "value", "relation", "limit",
    "against", "margin", "verdict",
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
    # What counts as no difference; boards of agreeing runs need none.
    margin: str = ""

    @property
    def verdict(self) -> str:
        """HOLDS, FAILS or OPEN, of this run alone, which cannot show that numbers are equal."""
        if math.isnan(self.value) or math.isnan(self.limit) or self.relation == "=":
            return OPEN
        return HOLDS if _RELATIONS[self.relation](self.value, self.limit) else FAILS


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

    rows = []
    for claim in claims:
        for reading in claim.readings:
            for run in runs:
                keys = claim.number, reading.name, run.condition, run.name
                try:
                    for check in list(reading.checks(run.evidence)):
                        rows.append(
                            (*keys, *(getattr(check, name) for name in FIGURE_COLUMNS[4:]))
                        )
                except MissingEvidence as missing:
                    rows.append((*keys, "", str(missing), math.nan, "", math.nan, "", "", OPEN))
    return pd.DataFrame(rows, columns=list(FIGURE_COLUMNS))


def build_board(
    claims: Sequence[Claim],
    runs: Sequence[Run],
    *,
    least_runs: int = 3,
    depends: Callable[[Sequence[str], Sequence[str]], str] | None = None,
    figures: pd.DataFrame | None = None,
    margins: Mapping[str, Margin] | None = None,
) -> pd.DataFrame:
    """
    Decide claims by their first reading, over all runs and conditions.

    With margins, a reading is decided in a condition by `dmrifit.stats.verdicts`. Without, a check
    holds, or fails, if it does in every run; a reading holds if all its checks do, and fails if
    one does; otherwise, where runs disagree or are fewer than `least_runs`, it cannot be told.
    Over conditions a verdict stands if it is that of every one.
    """
    import pandas as pd

    if not runs:
        raise ValueError("a board needs at least one run")
    numbers = [claim.number for claim in claims]
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"claims need numbers of their own, not {numbers}")
    figures = check_claims(claims, runs) if figures is None else figures
    conditions = list(dict.fromkeys(run.condition for run in runs))
    counts = {
        name: len({run.name for run in runs if run.condition == name}) for name in conditions
    }
    rows = []
    for claim in claims:
        figures_of_claim = figures[figures["claim"] == claim.number]
        by_reading = {
            reading.name: _Outcome.of(
                figures_of_claim[figures_of_claim["reading"] == reading.name],
                claim,
                counts,
                least_runs,
                depends,
                margins,
            )
            for reading in claim.readings
        }
        first = by_reading[claim.readings[0].name]
        rows.append(
            {
                "claim": claim.number,
                "statement": claim.statement,
                "study": claim.study,
                "ours": first.ours,
                "rule": claim.rule,
                "verdict": NOT_SIMULATED if claim.not_simulated else first.verdict,
                "readings": "\n".join(
                    f"{name}: {outcome.verdict}{outcome.short}"
                    for name, outcome in by_reading.items()
                ),
                "reason": claim.not_simulated or "\n".join(first.reasons),
                "n_runs": min(counts.values()),
            }
        )
    return pd.DataFrame(rows, columns=list(BOARD_COLUMNS))


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
        least_runs: int,
        depends: Callable[[Sequence[str], Sequence[str]], str] | None,
        margins: Mapping[str, Margin] | None,
    ) -> _Outcome:
        verdicts: dict[str, str] = {}
        reasons, ours = [], []
        # Only the first reading shows its figures on the board.
        decides = set(figures["reading"]) == {claim.readings[0].name}
        for condition, rows in figures.groupby("condition", sort=False):
            prefix = f"{condition}: " if condition else ""
            n_runs = counts[condition]
            if margins is None:
                verdicts[condition], reason = _decide(rows, n_runs, least_runs)
            else:
                verdicts[condition], reason = decide_reading(rows, n_runs, margins)
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


def _decide(figures: pd.DataFrame, n_runs: int, least_runs: int) -> tuple[str, str]:
    """Decide a reading in one condition, and say why."""
    lacking = ", ".join(dict.fromkeys(figures.loc[figures["relation"] == "", "quantity"]))
    if (figures["relation"] == "").all():
        return OPEN, f"missing: {lacking}"
    verdicts = {key: _agreed(check["verdict"], n_runs) for key, check in _checks(figures)}
    wrong = _wrong_in_words(figures)
    # A few runs may agree by chance, so they decide nothing, not even against the claim.
    if n_runs < least_runs:
        few = "one seed" if n_runs == 1 else f"{n_runs} seeds"
        return OPEN, "; ".join(filter(None, (f"{few}, {least_runs} are needed", wrong)))
    if FAILS in verdicts.values():
        return FAILS, wrong
    if set(verdicts.values()) == {HOLDS}:
        return HOLDS, f"holds in all {n_runs} seeds"
    if lacking:
        lacking = f"missing in some seeds: {lacking}"
    return OPEN, "; ".join(filter(None, (wrong, lacking)))


def _agreed(verdicts: Sequence[str], n_runs: int) -> str:
    """Give the verdict of a check that all runs agree on."""
    distinct = set(verdicts)
    if len(distinct) == 1 and len(verdicts) == n_runs:
        return distinct.pop()
    return OPEN


def _checks(figures: pd.DataFrame) -> Iterable[tuple[tuple[str, str], pd.DataFrame]]:
    usable = figures[figures["relation"] != ""]
    return usable.groupby(["where", "quantity"], sort=False)


def _figures_in_words(figures: pd.DataFrame) -> str:
    """Write each number as mean ± standard deviation over runs; places together."""
    by_quantity: dict[str, list[str]] = {}
    for (where, quantity), check in _checks(figures):
        against = check["against"].iloc[0]
        text = _spread(check["value"])
        if where:
            text = f"{where} {text}"
        if against:
            text += f" ({against} {_spread(check['limit'])})"
        by_quantity.setdefault(quantity, []).append(text)
    return "; ".join(f"{quantity}: {', '.join(texts)}" for quantity, texts in by_quantity.items())


def _wrong_in_words(figures: pd.DataFrame) -> str:
    """Name the checks that do not hold, and in how many runs."""
    texts = []
    for (where, quantity), check in _checks(figures):
        wrong = check[check["verdict"] != HOLDS]
        if not len(wrong):
            continue
        name = f"{where} {quantity}" if where else quantity
        relation, against = wrong["relation"].iloc[0], wrong["against"].iloc[0]
        limit = format_number(wrong["limit"].iloc[0])
        if against:
            limit = f"{_spread(wrong['limit'])} ({against})"
        share = ""
        if len(wrong) == len(check) > 1:
            share = " in all seeds"
        elif len(check) > 1:
            share = f" in {len(wrong)} of {len(check)} seeds"
        texts.append(f"{name} {_spread(wrong['value'])}, not {relation} {limit}{share}")
    return "; ".join(texts)


def _spread(values: pd.Series) -> str:
    finite = values[np.isfinite(values)]
    if not len(values):
        return "–"
    if not len(finite):
        return format_number(float(values.iloc[0]))
    # Of a single value the standard deviation is NaN.
    return format_number(float(finite.mean()), float(finite.std()))
