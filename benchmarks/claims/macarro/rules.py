"""Rules of the claims about signals, strategies, cohorts and algorithms."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from claims.macarro.evidence import (
    ALPHA,
    STRATEGIES,
    Evidence,
    drop_metrics,
    mean_over_patients,
)
from dmrifit.stats.claim_board import Check, MissingEvidence, Relation
from dmrifit.stats.method_tests import holm
from dmrifit.study.training_runs import POOLED

if TYPE_CHECKING:
    import pandas as pd

#: Mean relative error of predicted signals that the study stays below.
SIGNAL_ERROR = 0.12
#: Correlation of signals that the study stays above.
SIGNAL_CORRELATION = 0.8
#: The study's two indices.
INDICES = {"|BI|": "abs_bias", "DI": "dispersion"}

Rule = Callable[[Evidence], list[Check]]


def _signals_of(evidence: Evidence, region: str) -> pd.DataFrame:
    """Give scores of signals that s2s predicted, contrast by contrast."""
    if region != evidence.region:
        if region not in evidence.elsewhere:
            raise MissingEvidence(f"scores of the {region} (score_mask)")
        evidence = evidence.elsewhere[region]
    table = evidence.unseen
    table = table[table["strategy"] == "s2s"] if len(table) else table
    if not len(table):
        raise MissingEvidence("signals predicted by s2s")
    return table[table["contrast"] != POOLED]


def signal_error(region: str) -> Rule:
    """Claim 1: the error of predicted signals is below 12 % in each cohort."""

    def checks(evidence: Evidence) -> list[Check]:
        table = _signals_of(evidence, region)
        errors = mean_over_patients(table, "relative_error", "cohort")
        return [
            Check("mean abs(E)", float(error), "<", SIGNAL_ERROR, str(cohort))
            for cohort, error in errors.items()
        ]

    return checks


def signal_correlation(region: str = "") -> Rule:
    """Claim 2: signals correlate above 0.8 in both cohorts, and all metrics below signals."""

    def checks(evidence: Evidence) -> list[Check]:
        table = _signals_of(evidence, region or evidence.region)
        cohorts = evidence.two_cohorts()
        if "pearson" not in table or not np.isfinite(table["pearson"]).any():
            raise MissingEvidence("pearson of signals")
        by_contrast = _median_correlation(table, "cohort", "contrast")
        signal = by_contrast.groupby("cohort", observed=True).mean()
        by_metric = _median_correlation(evidence.scores, "cohort", "strategy", "metric")
        highest = by_metric.groupby(["cohort", "strategy"], observed=True).max()
        result = []
        for cohort in cohorts:
            r = float(signal[cohort])
            result.append(Check("r of signals (mean image)", r, ">", SIGNAL_CORRELATION, cohort))
        for (cohort, strategy), r in highest.items():
            limit, place = float(signal[cohort]), f"{cohort} {strategy}"
            result.append(Check("highest r of a metric", float(r), "<", limit, place, "signals"))
        return result

    return checks


def _median_correlation(table: pd.DataFrame, *by: str) -> pd.Series:
    """Median over patients, as the letter's boxes show; then the mean over algorithms."""
    medians = table.groupby([*by, "algorithm"], observed=True)["pearson"].median()
    return medians.groupby(list(by), observed=True).mean()


def lower_in_s2s(
    columns: Mapping[str, str],
    *,
    without: Sequence[str] = (),
    metrics: Sequence[str] = ("",),
    higher: Sequence[str] = (),
) -> Rule:
    """Claims 3 and 10: scores are lower, or those in `higher` are higher, in s2s than in m2m."""

    def checks(evidence: Evidence) -> list[Check]:
        result = []
        for metric, (label, column) in itertools.product(metrics, columns.items()):
            means = evidence.means(column, "cohort", "strategy", without=without, metric=metric)
            relation: Relation = ">" if label in higher else "<"
            quantity = f"{metric} {label} of s2s".strip()
            for cohort in evidence.cohorts:
                s2s, m2m = _both_strategies(means, cohort)
                result.append(Check(quantity, s2s, relation, m2m, cohort, "m2m"))
        return result

    return checks


def metrics_vary_more(*without: str) -> Rule:
    """Claim 4: indices vary more over metrics than over algorithms, more so in m2m."""

    def checks(evidence: Evidence) -> list[Check]:
        table = drop_metrics(evidence.paired, without)
        _require_three_algorithms(table)
        if table["metric"].nunique() < 2:
            raise MissingEvidence("two metrics")
        result = []
        for (label, column), cohort in itertools.product(INDICES.items(), evidence.cohorts):
            # Without any difference between algorithms the ratio has no bound.
            ratio = _sd_over(evidence, column, "metric", without)
            ratio /= _sd_over(evidence, column, "algorithm", without)
            s2s, m2m = _both_strategies(ratio, cohort)
            quantity = f"sd over metrics / over algorithms of {label}"
            result += [
                Check(quantity, s2s, ">", 1.0, f"{cohort} s2s"),
                Check(quantity, m2m, ">", 1.0, f"{cohort} m2m"),
                Check(f"{quantity}, m2m", m2m, ">", s2s, cohort, "s2s"),
            ]
        return result

    return checks


def _sd_over(evidence: Evidence, column: str, what: str, without: Sequence[str]) -> pd.Series:
    means = evidence.means(column, "cohort", "strategy", what, without=without)
    return means.groupby(["cohort", "strategy"], observed=True).std()


def first_better(*without: str) -> Rule:
    """Claim 5: indices are lower in the first cohort."""

    def checks(evidence: Evidence) -> list[Check]:
        first, second = evidence.two_cohorts()
        result = []
        for (label, column), strategy in itertools.product(INDICES.items(), STRATEGIES):
            means = evidence.means(column, "strategy", "cohort", paired=False, without=without)
            if (strategy, first) not in means.index or (strategy, second) not in means.index:
                raise MissingEvidence(f"scores of {strategy} in both cohorts")
            value, limit = float(means[strategy, first]), float(means[strategy, second])
            result.append(Check(f"{label} of {first}", value, "<", limit, strategy, second))
        return result

    return checks


def no_difference(*without: str) -> Rule:
    """Claim 6: no test separates algorithms, and all pairs are equivalent."""

    def checks(evidence: Evidence) -> list[Check]:
        import pandas as pd

        _require_three_algorithms(evidence.scores)
        tests = [evidence.tests(column, without) for column in INDICES.values()]
        friedman, pairs, equivalence = (
            pd.concat([tables[name] for tables in tests])
            for name in ("friedman", "pairs", "equivalence")
        )
        if (friedman["reason"] != "").all():
            raise MissingEvidence(friedman["reason"].iloc[0])
        share = float((equivalence["verdict"] == "equivalent").mean())
        return [
            Check("lowest p of Friedman's tests", _lowest_p(friedman["p"]), ">=", ALPHA),
            Check("lowest p of Wilcoxon's pairs", _lowest_p(pairs["p"]), ">=", ALPHA),
            Check("share of pairs equivalent", share, ">=", 1.0, fails=False),
        ]

    return checks


def _lowest_p(p: pd.Series) -> float:
    """Give the lowest p after Holm's correction over all tests of a run, of both indices."""
    corrected = [value for value in holm(p) if np.isfinite(value)]
    return min(corrected, default=float("nan"))


def varies_less(*without: str) -> Rule:
    """Claim 11: a patient's indices vary less over algorithms in s2s than in m2m."""
    columns = {"BI (signed)": "bias", "DI": "dispersion"}
    keys = ["cohort", "patient", "strategy", "metric"]

    def checks(evidence: Evidence) -> list[Check]:
        table = drop_metrics(evidence.paired, without)
        _require_three_algorithms(table)
        result = []
        for label, column in columns.items():
            means = table.groupby([*keys, "algorithm"], observed=True)[column].mean()
            spread = means.groupby(keys, observed=True).std().reset_index()
            spread = mean_over_patients(spread, column, "cohort", "strategy")
            quantity = f"sd of {label} over algorithms, s2s"
            for cohort in evidence.cohorts:
                s2s, m2m = _both_strategies(spread, cohort)
                result.append(Check(quantity, s2s, "<", m2m, cohort, "m2m"))
        return result

    return checks


def _require_three_algorithms(table: pd.DataFrame) -> None:
    n = table.groupby("strategy", observed=True)["algorithm"].nunique().min()
    if not n >= 3:
        raise MissingEvidence(f"three algorithms (there {'is one' if n == 1 else f'are {n}'})")


def _both_strategies(means: pd.Series, cohort: str) -> tuple[float, float]:
    """Read the numbers of s2s and of m2m; NaN where there is none."""
    return float(means.get((cohort, "s2s"), np.nan)), float(means.get((cohort, "m2m"), np.nan))
