"""Rules of the claims about signals, strategies, cohorts and algorithms."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.claims.claim_board import Check, MissingEvidence, Relation
from benchmarks.claims.macarro.evidence import STRATEGIES, Evidence, mean_over_patients
from dmrifit.study.training_runs import POOLED

if TYPE_CHECKING:
    import pandas as pd

#: Mean relative error of predicted signals that the study stays below.
SIGNAL_ERROR = 0.12
#: Correlation of signals that the study stays above.
SIGNAL_CORRELATION = 0.8
#: Columns of the study's two indices, and of what else is compared.
COLUMNS = {
    "DI": "dispersion",
    "|BI|": "abs_bias",
    "median abs(E)": "median_abs_error",
    "r": "pearson",
    "median abs(E) against the truth": "median_abs_error_truth",
}

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
            Check(
                "mean abs(E)",
                float(error),
                "<",
                SIGNAL_ERROR,
                str(cohort),
                margin="signal_error",
            )
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
            quantity = "r of signals (mean image)"
            result.append(
                Check(quantity, r, ">", SIGNAL_CORRELATION, cohort, margin="correlation")
            )
        for (cohort, strategy), r in highest.items():
            limit, place = float(signal[cohort]), f"{cohort} {strategy}"
            quantity = "highest r of a metric"
            result.append(
                Check(quantity, float(r), "<", limit, place, "signals", margin="correlation")
            )
        return result

    return checks


def _median_correlation(table: pd.DataFrame, *by: str) -> pd.Series:
    """Median over patients, as the letter's boxes show; then the mean over algorithms."""
    medians = table.groupby([*by, "algorithm"], observed=True)["pearson"].median()
    return medians.groupby(list(by), observed=True).mean()


def better_in_s2s(label: str, metrics: Sequence[str] = ("",)) -> Rule:
    """Claims 3 and 10: a score is lower, or r is higher, in s2s than in m2m."""
    relation: Relation = ">" if label == "r" else "<"
    margin = "correlation" if label == "r" else "index"

    def checks(evidence: Evidence) -> list[Check]:
        result = []
        for metric in metrics:
            means = evidence.means(COLUMNS[label], "cohort", "strategy", metric=metric)
            quantity = f"{metric} {label} of s2s".strip()
            for cohort in evidence.cohorts:
                s2s, m2m = _both_strategies(means, cohort)
                result.append(Check(quantity, s2s, relation, m2m, cohort, "m2m", margin=margin))
        return result

    return checks


def metrics_vary_more(label: str) -> Rule:
    """Claim 4: an index varies more over metrics than over algorithms, more so in m2m."""

    def checks(evidence: Evidence) -> list[Check]:
        table = evidence.paired
        _require_three_algorithms(table)
        if table["metric"].nunique() < 2:
            raise MissingEvidence("two metrics")
        over_metrics = _sd_over(evidence, label, "metric")
        over_algorithms = _sd_over(evidence, label, "algorithm")
        # Without any difference between algorithms the ratio has no bound.
        ratio = over_metrics / over_algorithms
        result = []
        for cohort in evidence.cohorts:
            for strategy in STRATEGIES:
                key = cohort, strategy
                result.append(
                    Check(
                        f"sd of {label} over metrics",
                        float(over_metrics.get(key, np.nan)),
                        ">",
                        float(over_algorithms.get(key, np.nan)),
                        f"{cohort} {strategy}",
                        "over algorithms",
                        margin="spread",
                    )
                )
            s2s, m2m = _both_strategies(ratio, cohort)
            quantity = f"sd over metrics / over algorithms of {label}, m2m"
            result.append(Check(quantity, m2m, ">", s2s, cohort, "s2s", margin="spread"))
        return result

    return checks


def _sd_over(evidence: Evidence, label: str, what: str) -> pd.Series:
    means = evidence.means(COLUMNS[label], "cohort", "strategy", what)
    return means.groupby(["cohort", "strategy"], observed=True).std()


def first_better(label: str) -> Rule:
    """Claim 5: an index is lower in the first cohort."""

    def checks(evidence: Evidence) -> list[Check]:
        first, second = evidence.two_cohorts()
        means = evidence.means(COLUMNS[label], "strategy", "cohort", paired=False)
        result = []
        for strategy in STRATEGIES:
            if (strategy, first) not in means.index or (strategy, second) not in means.index:
                raise MissingEvidence(f"scores of {strategy} in both cohorts")
            value, limit = float(means[strategy, first]), float(means[strategy, second])
            quantity = f"{label} of {first}"
            result.append(Check(quantity, value, "<", limit, strategy, second, margin="index"))
        return result

    return checks


def no_difference(label: str) -> Rule:
    """Claim 6: all pairs of algorithms of a strategy are equivalent."""

    def checks(evidence: Evidence) -> list[Check]:
        _require_three_algorithms(evidence.scores)
        means = evidence.means(COLUMNS[label], "cohort", "strategy", "algorithm", paired=False)
        result = []
        for (cohort, strategy), values in means.groupby(["cohort", "strategy"], observed=True):
            by_algorithm = values.droplevel(["cohort", "strategy"])
            for one, other in itertools.combinations(by_algorithm.index, 2):
                value, limit = float(by_algorithm[one]), float(by_algorithm[other])
                quantity, place = f"{label} of {one} and {other}", f"{cohort} {strategy}"
                result.append(Check(quantity, value, "=", limit, place, other, margin="index"))
        return result

    return checks


def varies_less(label: str, column: str) -> Rule:
    """Claim 11: a patient's index varies less over algorithms in s2s than in m2m."""
    keys = ["cohort", "patient", "strategy", "metric"]

    def checks(evidence: Evidence) -> list[Check]:
        table = evidence.paired
        _require_three_algorithms(table)
        means = table.groupby([*keys, "algorithm"], observed=True)[column].mean()
        spread = means.groupby(keys, observed=True).std().reset_index()
        spread = mean_over_patients(spread, column, "cohort", "strategy")
        quantity = f"sd of {label} over algorithms, s2s"
        result = []
        for cohort in evidence.cohorts:
            s2s, m2m = _both_strategies(spread, cohort)
            result.append(Check(quantity, s2s, "<", m2m, cohort, "m2m", margin="spread"))
        return result

    return checks


def _require_three_algorithms(table: pd.DataFrame) -> None:
    n = table.groupby("strategy", observed=True)["algorithm"].nunique().min()
    if not n >= 3:
        raise MissingEvidence(f"three algorithms (there {'is one' if n == 1 else f'are {n}'})")


def _both_strategies(means: pd.Series, cohort: str) -> tuple[float, float]:
    """Read the numbers of s2s and of m2m; NaN where there is none."""
    return float(means.get((cohort, "s2s"), np.nan)), float(means.get((cohort, "m2m"), np.nan))
