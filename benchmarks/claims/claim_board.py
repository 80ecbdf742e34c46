"""Boards of claims: what a study states, read from a file and checked over seeds against margins set beforehand."""

from __future__ import annotations

import itertools
import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    import pandas as pd

HOLDS = "holds"
EQUAL = "practically equal"
FAILS = "does not hold"
OPEN = "cannot be told"
NOT_SIMULATED = "not testable here"
#: What the verdict of a claim starts with whose conditions disagree.
DEPENDS = "depends on"

#: Fewer seeds decide nothing: a t interval over three is four times as wide as one over ten.
LEAST_SEEDS = 10
LEVEL = 0.95
_MOST_SEEDS = 1000  # that are counted for a claim left open

# Checks that a reason quotes before it only counts the rest.
_QUOTED = 3

Relation = Literal["<", "<=", ">", ">=", "="]

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


@dataclass(frozen=True)
class Margin:
    """A difference that counts as none, and whose figure it is."""

    name: str
    value: float
    scale: str  # "absolute", in the score's units, or "relative", of the number compared with
    whose: str  # "paper" or "ours"
    sentence: str  # why it is this large

    @property
    def bound(self) -> float:
        """The margin in the units of `differences`."""
        return math.log1p(self.value) if self.scale == "relative" else float(self.value)

    def scaled(self, factor: float) -> Margin:
        """Make a margin this many times as wide."""
        return replace(self, value=factor * self.value)

    def differences(self, values: ArrayLike, limits: ArrayLike) -> NDArray[np.float64]:
        """
        Subtract limits from values, or their logarithms for a relative margin.

        Shapes: (n_seeds,) each; NaN where a relative difference has no logarithm.
        """
        values, limits = np.asarray(values, dtype=float), np.asarray(limits, dtype=float)
        if self.scale == "absolute":
            return values - limits
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log(values) - np.log(limits)

    def text(self, differences: ArrayLike) -> str:
        """Write differences in the units of the margin, signed."""
        numbers = np.atleast_1d(np.asarray(differences, dtype=float))
        if self.scale == "relative":
            return " … ".join(f"{100 * number:+.1f} %" for number in np.expm1(numbers))
        return " … ".join(f"{number:+.3f}" for number in numbers)

    @property
    def words(self) -> str:
        """The margin itself, such as ±5 %."""
        if self.scale == "relative":
            return f"±{100 * self.value:g} %"
        return f"±{self.value:g}"


# Files of claims and margins ----------------------------------------------------------------------


def read_margins(path: Path) -> tuple[dict[str, Margin], dict[int, dict[str, Any]]]:
    """
    Read margins, and what is said of each claim, from a TOML file.

    The tables ``margins.NAME`` hold value, scale, whose and sentence; the tables
    ``claims.NUMBER`` hold ``primary``, the reading that decides, a sentence on why, and
    ``not_simulated`` where the simulation lacks what the claim is about.
    """
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    margins = {name: Margin(name, **fields) for name, fields in tables["margins"].items()}
    claims = {int(number): fields for number, fields in tables.get("claims", {}).items()}
    return margins, claims


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
        readings = []
        for entry in fields["readings"]:
            if "checks" in entry:
                checks = partial(_compared, entry["checks"], rules)
            else:
                checks = rules[entry["rule"]]
                if "values" in entry:
                    checks = checks(*entry["values"])
            readings.append(Reading(entry["name"], checks))
        claims.append(Claim(**fields | {"readings": tuple(readings)}))
    return tuple(claims)


def _compared(rows: Sequence[Sequence[Any]], rules: Mapping[str, Any], evidence: Any) -> list[Check]:
    """Compare figures of the evidence with their limits."""
    functions = {name: partial(rule, evidence) for name, rule in rules.items() if callable(rule)}
    checks = []
    for quantity, figure, relation, limit, against, margin in rows:
        # The formulas are the project's own files.
        value, bound = (float(eval(formula, {"__builtins__": {}}, functions)) for formula in (figure, limit))
        checks.append(Check(quantity, value, relation, bound, "", against, margin))
    return checks


# Verdicts over seeds ------------------------------------------------------------------------------


def t_interval(values: ArrayLike, level: float = LEVEL) -> tuple[float, float]:
    """Compute the two-sided t interval of the mean of values of shape (n_seeds,)."""
    # The quantile of scipy.stats, without the cost of its checks.
    from scipy.special import stdtrit

    numbers = np.asarray(values, dtype=float)
    n = len(numbers)
    if n < 2 or not np.isfinite(numbers).all():
        return math.nan, math.nan
    half = stdtrit(n - 1, (1 + level) / 2) * numbers.std(ddof=1) / math.sqrt(n)
    return float(numbers.mean() - half), float(numbers.mean() + half)


def decide(
    differences: ArrayLike, bound: float, relation: str, *, n_checks: int = 1, level: float = LEVEL
) -> str:
    """
    Decide one comparison from its differences, one a seed.

    ``<`` and ``>`` hold where the whole interval lies beyond the margin, ``<=`` and ``>=`` where
    it does not reach the margin on the wrong side, ``=`` where it lies inside (two one-sided
    tests). They do not hold where it lies beyond the margin on the wrong side. A difference that
    is claimed and lies inside the margins is practically equal. What one of several checks of a
    claim would show by chance is corrected for their number (Bonferroni); that all hold needs no
    correction.

    References
    ----------
    Schuirmann, J Pharmacokinet Biopharm 15:657–680, 1987; Berger, Technometrics 24:295–300, 1982.
    """
    numbers = np.asarray(differences, dtype=float)
    if relation in (">", ">="):
        return decide(-numbers, bound, relation.replace(">", "<"), n_checks=n_checks, level=level)
    if len(numbers) < LEAST_SEEDS or not np.isfinite(numbers).all():
        return OPEN
    alpha = 1 - level
    _, high = t_interval(numbers, level)
    outer_low, outer_high = t_interval(numbers, 1 - alpha / n_checks)
    # That all are equal needs no correction, unlike that one is, though another was claimed.
    inner_low, inner_high = t_interval(numbers, 1 - 2 * alpha / (1 if relation == "=" else n_checks))
    is_inside = -bound < inner_low and inner_high < bound
    if relation == "=" and is_inside:
        return HOLDS
    if outer_low > bound or (relation == "=" and outer_high < -bound):
        return FAILS
    if (relation == "<=" and high < bound) or (relation == "<" and high < -bound):
        return HOLDS
    return EQUAL if relation == "<" and is_inside else OPEN


def combine_checks(verdicts: list[str]) -> str:
    """Decide a claim by its checks: all must hold; one that does not is enough against it."""
    if not verdicts:
        return OPEN
    return next(verdict for verdict in (FAILS, OPEN, EQUAL, HOLDS) if verdict in verdicts)


def seeds_to_decide(checks: Sequence[tuple[NDArray, float, str]], n_checks: int) -> str:
    """
    Say how many seeds would decide a claim whose checks keep their means and spreads.

    `checks` are those left open: differences, bound and relation as of `decide`.
    """
    for n_seeds in np.unique(np.geomspace(LEAST_SEEDS, _MOST_SEEDS, 60).round().astype(int)).tolist():
        pattern = np.resize([1.0, -1.0], n_seeds) - (n_seeds % 2) / n_seeds
        pattern /= pattern.std(ddof=1)
        verdicts = [
            decide(np.mean(values) + np.std(values, ddof=1) * pattern, bound, relation, n_checks=n_checks)
            for values, bound, relation in checks
        ]
        if combine_checks(verdicts) != OPEN:
            return f"about {n_seeds} seeds would tell"
    return f"more than {_MOST_SEEDS} seeds would tell"


def decide_reading(figures: pd.DataFrame, n_runs: int, margins: Mapping[str, Margin]) -> tuple[str, str]:
    """
    Decide a reading of a claim in one condition, and say why.

    `figures` has a row for each check and run, as `check_claims` gives; a check without one of the
    margins raises ValueError.
    """
    lacking = ", ".join(dict.fromkeys(figures.loc[figures["relation"] == "", "quantity"]))
    usable = figures[figures["relation"] != ""]
    if not len(usable):
        return OPEN, f"missing: {lacking}"
    if n_runs < LEAST_SEEDS:
        seeds = "one seed" if n_runs == 1 else f"{n_runs} seeds"
        return OPEN, f"{seeds}, {LEAST_SEEDS} are needed"
    groups = list(usable.groupby(["where", "quantity"], sort=False))
    texts: dict[str, list[str]] = {}
    left_open = []
    for (where, quantity), check in groups:
        first = check.iloc[0]
        text = f"{where} {quantity}".strip()
        if first["margin"] not in margins:
            raise ValueError(
                f"claim {first['claim']}: check {text!r} has the margin {first['margin']!r}; "
                f"give it one of {', '.join(margins)}"
            )
        margin = margins[first["margin"]]
        differences = margin.differences(check["value"], check["limit"])
        verdict = OPEN
        if len(check) == n_runs:
            verdict = decide(differences, margin.bound, first["relation"], n_checks=len(groups))
            if verdict == OPEN:
                left_open.append((differences, margin.bound, first["relation"]))
        value, limit = (format_number(float(check[column].mean())) for column in ("value", "limit"))
        text += f" {value} against {limit}"
        if first["against"]:
            text += f" ({first['against']})"
        interval = t_interval(differences)
        if np.isfinite(interval).all():
            text += f": {margin.text(interval)}, margin {margin.words}"
        else:
            text += ": no interval"
        texts.setdefault(verdict, []).append(text)
    overall = combine_checks(list(texts))
    deciding = texts[overall]
    quoted = "; ".join([*deciding[:_QUOTED], *["…"] * (len(deciding) > _QUOTED)])
    if lacking:
        quoted += f"; missing in some seeds: {lacking}"
    counts = f"{len(deciding)} of {len(groups)} checks"
    if overall == OPEN and left_open and not lacking:
        counts += f" ({seeds_to_decide(left_open, len(groups))})"
    return overall, f"{overall} in {counts}: {quoted}"


def format_number(value: float, spread: float = math.nan) -> str:
    """Write a number, with its spread, in three digits."""
    value += 0.0  # no negative zero
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    form = ".3f"
    if 0 < abs(value) < 5e-4:
        form = ".1e"
    elif value:
        form = f".{min(max(2 - math.floor(math.log10(abs(value))), 0), 3)}f"
    if math.isnan(spread):
        return f"{value:{form}}"
    return f"{value:{form}} ± {spread:{form}}"


# Boards -------------------------------------------------------------------------------------------


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

    A reading is decided in a condition by `decide_reading`; over conditions a verdict stands if it
    is that of every one.
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
        of_claim = figures[figures["claim"] == claim.number]
        decided = []
        for reading in claim.readings:
            by_condition = of_claim[of_claim["reading"] == reading.name].groupby("condition", sort=False)
            decided.append(_over_conditions(by_condition, claim, counts, margins, depends))
        # Only the first reading shows its figures on the board.
        ours = []
        for condition, checks in of_claim[of_claim["reading"] == claim.readings[0].name].groupby(
            "condition", sort=False
        ):
            text = _figures_in_words(checks)
            if text:
                ours.append(_of_condition(condition, text))
        verdict, _, reasons = decided[0]
        readings = [
            f"{reading.name}: {verdict}{short}"
            for reading, (verdict, short, _) in zip(claim.readings, decided, strict=True)
        ]
        row = {name: getattr(claim, name) for name in ("statement", "study", "rule")}
        row |= {"claim": claim.number, "ours": "\n".join(ours), "n_runs": min(counts.values())}
        row["verdict"] = NOT_SIMULATED if claim.not_simulated else verdict
        row["readings"] = "\n".join(readings)
        row["reason"] = claim.not_simulated or "\n".join(reasons)
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


def _of_condition(condition: str, text: str) -> str:
    return f"{condition}: {text}" if condition else text


def _over_conditions(
    figures: Any,
    claim: Claim,
    counts: Mapping[str, int],
    margins: Mapping[str, Margin],
    depends: Callable[[Sequence[str], Sequence[str]], str] | None,
) -> tuple[str, str, list[str]]:
    """Give the verdict of a reading, what it holds in where conditions disagree, and the reasons."""
    by_verdict: dict[str, list[str]] = {HOLDS: [], EQUAL: [], FAILS: [], OPEN: []}
    reasons = []
    for condition, rows in figures:
        verdict, reason = decide_reading(rows, counts[condition], margins)
        by_verdict[verdict].append(condition)
        reasons.append(_of_condition(condition, reason))
    by_verdict = {verdict: where for verdict, where in by_verdict.items() if where}
    absent = [name for name in claim.conditions if name not in itertools.chain(*by_verdict.values())]
    if absent:
        return OPEN, "", [f"missing: {'; '.join(absent)}", *reasons]
    if len(by_verdict) > 1:
        texts = [f"{verdict}: {', '.join(where)}" for verdict, where in by_verdict.items()]
        reasons.insert(0, "; ".join(texts))
    decided = [verdict for verdict in by_verdict if verdict != OPEN]
    # Conditions that contradict each other are a verdict, even if others are open.
    if len(decided) > 1:
        first = by_verdict[decided[0]]
        others = list(itertools.chain.from_iterable(by_verdict[verdict] for verdict in decided[1:]))
        what_differs = depends(first, others) if depends else "the condition"
        return f"{DEPENDS} {what_differs}", f" ({decided[0]}: {'; '.join(first)})", reasons
    return (OPEN if OPEN in by_verdict or not decided else decided[0]), "", reasons


def _figures_in_words(figures: pd.DataFrame) -> str:
    """Write each number as mean ± standard deviation over runs; places together."""
    by_quantity: dict[str, list[str]] = {}
    usable = figures[figures["relation"] != ""]
    for (where, quantity), check in usable.groupby(["where", "quantity"], sort=False):
        text = f"{where} {_spread(check['value'])}".strip()
        against = check["against"].iloc[0]
        if against:
            text += f" ({against} {_spread(check['limit'])})"
        by_quantity.setdefault(quantity, []).append(text)
    return "; ".join(f"{quantity}: {', '.join(texts)}" for quantity, texts in by_quantity.items())


def _spread(values: pd.Series) -> str:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return format_number(float(values.iloc[0]))
    # Of a single value the standard deviation is NaN.
    return format_number(float(finite.mean()), float(finite.std()))
