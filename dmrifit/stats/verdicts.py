"""Verdicts on claims: t intervals over the means of seeds, held against margins set beforehand."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    import pandas as pd

HOLDS = "holds"
EQUAL = "practically equal"
FAILS = "does not hold"
OPEN = "cannot be told"
NOT_SIMULATED = "not testable here"

#: Fewer seeds decide nothing: a t interval over three is four times as wide as one over ten.
LEAST_SEEDS = 10
LEVEL = 0.95

# Checks that a reason quotes before it only counts the rest.
_QUOTED = 3


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
    if relation == "=":
        inner_low, inner_high = t_interval(numbers, 1 - 2 * alpha)
        if -bound < inner_low and inner_high < bound:
            return HOLDS
        return FAILS if outer_low > bound or outer_high < -bound else OPEN
    if outer_low > bound:
        return FAILS
    if relation == "<=":
        return HOLDS if high < bound else OPEN
    if high < -bound:
        return HOLDS
    inner_low, inner_high = t_interval(numbers, 1 - 2 * alpha / n_checks)
    return EQUAL if -bound < inner_low and inner_high < bound else OPEN


def combine_checks(verdicts: list[str]) -> str:
    """Decide a claim by its checks: all must hold; one that does not is enough against it."""
    if FAILS in verdicts:
        return FAILS
    if not verdicts or OPEN in verdicts:
        return OPEN
    return EQUAL if EQUAL in verdicts else HOLDS


def decide_reading(
    figures: pd.DataFrame, n_runs: int, margins: Mapping[str, Margin]
) -> tuple[str, str]:
    """
    Decide a reading of a claim in one condition, and say why.

    `figures` has a row for each check and run, as `dmrifit.stats.claim_board.check_claims` gives;
    a check without one of the margins raises ValueError.
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
    verdicts = []
    for (where, quantity), check in groups:
        name = f"{where} {quantity}".strip()
        margin_name = check["margin"].iloc[0]
        if margin_name not in margins:
            raise ValueError(
                f"claim {check['claim'].iloc[0]}: check {name!r} has the margin {margin_name!r}; "
                f"give it one of {', '.join(margins)}"
            )
        margin = margins[margin_name]
        relation = check["relation"].iloc[0]
        differences = margin.differences(check["value"], check["limit"])
        verdict = OPEN
        if len(check) == n_runs:
            verdict = decide(differences, margin.bound, relation, n_checks=len(groups))
        verdicts.append(verdict)
        texts.setdefault(verdict, []).append(_described(name, check, differences, margin))
    overall = combine_checks(verdicts)
    return overall, _reason(overall, texts, len(groups), lacking)


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


def _described(
    name: str, check: pd.DataFrame, differences: NDArray[np.float64], margin: Margin
) -> str:
    """Write one check: both numbers, their difference with its interval, and the margin."""
    value, limit = (format_number(float(check[column].mean())) for column in ("value", "limit"))
    against = check["against"].iloc[0]
    interval = t_interval(differences)
    text = f"{name} {value} against {limit}"
    if against:
        text += f" ({against})"
    if not np.isfinite(interval).all():
        return f"{text}: no interval"
    return f"{text}: {margin.text(interval)}, margin {margin.words}"


def _reason(overall: str, texts: Mapping[str, list[str]], n_checks: int, lacking: str) -> str:
    """Quote the checks that made the verdict, and count them."""
    deciding = texts.get(overall, [])
    quoted = "; ".join(deciding[:_QUOTED])
    if len(deciding) > _QUOTED:
        quoted += "; …"
    count = f"{overall} in {len(deciding)} of {n_checks} checks"
    if lacking:
        quoted += f"; missing in some seeds: {lacking}"
    return f"{count}: {quoted}"
