"""Summaries of a comparison: scores at the largest training size, means over patients."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from dmrifit.predict.controls import is_control
from dmrifit.stats import patient_summary
from dmrifit.stats.metrics import AT_BOUND, METRICS, NO_TISSUE, RANKING_METRIC, MapMetric
from dmrifit.study.comparison import Evaluation
from dmrifit.study.skill_summary import KEYS, largest, matching, summary_of
from dmrifit.study.training_runs import POOLED

if TYPE_CHECKING:
    import pandas as pd

#: Fewer draws, or patients of a cohort, tell nothing about differences between algorithms.
FEWEST_DRAWS = 2
FEWEST_PATIENTS = 6


def unique(values: Iterable[Any]) -> list[Any]:
    """List values in the order of their first appearance."""
    return list(dict.fromkeys(values))


def tissue(scores: pd.DataFrame) -> pd.DataFrame:
    """Leave out parameters that are no property of the tissue, unless there are no others."""
    is_tissue = ~scores["metric"].isin(NO_TISSUE)
    if not is_tissue.any():
        return scores
    return scores[is_tissue]


def averaged(scores: pd.DataFrame) -> pd.DataFrame:
    """Leave out S0 and T2v, which no mean over parameters includes, unless there are no others."""
    is_averaged = ~scores["metric"].isin((*NO_TISSUE, AT_BOUND))
    if not is_averaged.any():
        return tissue(scores)
    return scores[is_averaged]


def summarize(evaluation: Evaluation) -> pd.DataFrame:
    """Summarize a comparison over patients, and over parameters but S0 and T2v."""
    scores = _with_magnitudes(averaged(largest(evaluation.scores)))
    metrics = summary_metrics(scores)
    columns = [metric.column for metric in metrics]
    columns += [f"{name}_truth" for name in columns]
    # Patients count alike, however many parameters they have.
    table = patient_summary.summarize(scores, KEYS, columns).set_index(KEYS)
    spreads = [f"{metric.column}_sd" for metric in metrics if metric.with_sd]
    n_patients = table["n_patients"]
    table = table[[*columns, *spreads]]
    signals = largest(evaluation.signals)
    if len(signals):
        signals = signals[signals["contrast"] != POOLED]
        signals = signals.assign(pearson=signals["pearson"].fillna(0.0))
        means = signals.groupby(KEYS, sort=False)[["relative_error", "pearson"]].mean()
        names = {"relative_error": "signal_error", "pearson": "signal_pearson"}
        table = table.join(means.rename(columns=names))
    n_train = scores.groupby(KEYS, sort=False)["n_train"].max()
    return table.assign(n_train=n_train, n_patients=n_patients).reset_index()


def summary_metrics(table: pd.DataFrame) -> list[MapMetric]:
    """List the metrics of the summary that a table has; an earlier study may lack some."""
    return [m for m in METRICS.values() if m.in_summary and m.column in table.columns]


def _with_magnitudes(scores: pd.DataFrame) -> pd.DataFrame:
    """Add what is averaged over patients: magnitudes, and a number where a score is undefined."""
    has_truth = scores["bias_truth"].notna()
    averaged = {}
    for metric in METRICS.values():
        # A table of an earlier study may lack a metric.
        if metric.name not in scores.columns:
            continue
        values, truth_values = scores[metric.name], scores[f"{metric.name}_truth"]
        if metric.better == "nearer zero":
            values, truth_values = values.abs(), truth_values.abs()
        averaged[metric.column] = values.fillna(metric.undefined)
        averaged[f"{metric.column}_truth"] = truth_values.where(
            truth_values.notna() | ~has_truth, metric.undefined
        )
    return scores.assign(**averaged)


class Board:
    """A comparison as the sections of a report see it."""

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation = evaluation
        self.study = evaluation.study
        # Rows at the largest number of training patients; ``abs_bias`` is the magnitude of
        # ``bias``, and a constant prediction has a correlation of 0.
        self.scores = scores = _with_magnitudes(largest(evaluation.scores))
        self.signals = largest(evaluation.signals)  # of single contrasts
        # A table without rows may lack its columns.
        if len(self.signals):
            self.signals = self.signals[self.signals["contrast"] != POOLED]
        self.summary = summarize(evaluation)
        self.algorithms = unique(evaluation.scores["algorithm"])
        self.learners = [name for name in self.algorithms if not is_control(name)]
        self.strategies = unique(scores["strategy"])
        self.cohorts = unique(scores["cohort"])
        self.regimes = unique(scores["train_on"])  # ways of training
        self.metrics = unique(tissue(scores)["metric"])  # parameters of the tissue
        self.averaged_metrics = unique(averaged(scores)["metric"])  # of means over parameters
        self.has_truth = bool(scores["bias_truth"].notna().any())

    @property
    def undecided(self) -> str:
        """Why differences between algorithms cannot be judged; empty where they can."""
        n_patients = int(self.scores.groupby("cohort")["patient"].nunique().min())
        n_draws = self.setting("n_repeats", 1)
        reasons = []
        if n_draws < FEWEST_DRAWS:
            reasons.append("one draw of training patients and seeds (dmrifit benchmark --repeats)")
        if n_patients < FEWEST_PATIENTS:
            reasons.append(
                f"{n_patients} patients (below {FEWEST_PATIENTS} no signed-rank test can reach "
                "p < 0.05)"
            )
        return " and ".join(reasons)

    def setting(self, name: str, otherwise: Any = None) -> Any:
        """Look up a setting."""
        return self.study.get("settings", {}).get(name, otherwise)

    def size(self, rows: pd.DataFrame) -> str:
        """Write numbers of training patients."""
        if not len(rows):
            return "N = 0"
        smallest, most = rows["n_train"].min(), rows["n_train"].max()
        return f"N = {most:g}" if smallest == most else f"N = {smallest:g}–{most:g}"

    def conditions(self, rows: pd.DataFrame) -> str:
        """Write the conditions of a figure: training region, scored region, N, seed."""
        regions = f"{self.setting('train_mask', 'body')} → {self.setting('score_mask', 'lesion')}"
        seed = self.setting("seed")
        return f"{regions}, {self.size(rows)}" + ("" if seed is None else f", seed {seed}")

    @cached_property
    def skill(self) -> pd.DataFrame:
        """What `Evaluation.summary` gives, with a row for every parameter."""
        tables = self.evaluation.scores, self.evaluation.signals
        return summary_of(*tables, 0.95, every_parameter=True)

    @property
    def skill_column(self) -> str:
        """Skill against noise of its own where all learners have it, else against the fit."""
        rows = matching(self.skill, parameters=self.mean_rows, train_on=self.regimes[0])
        rows = rows[~rows["algorithm"].map(is_control)]
        if len(rows) and rows["skill_independent"].notna().all():
            return "skill_independent"
        return "skill"

    @property
    def mean_rows(self) -> str:
        """Which rows of `skill` are the mean of the maps; those of S0 where there is no other."""
        if (self.skill["parameters"] == "tissue").any():
            return "tissue"
        return str(self.skill["parameters"].iloc[-1])

    @cached_property
    def best(self) -> tuple[str, str] | None:
        """Strategy and algorithm with the highest skill of maps, mean over cohorts."""
        first = matching(self.skill, parameters=self.mean_rows, train_on=self.regimes[0])
        measure, sign = self.skill_column, 1.0
        # Scores of an earlier version have no skill.
        if not first[measure].notna().any():
            first, measure = matching(self.summary, train_on=self.regimes[0]), RANKING_METRIC
            sign = -1.0
        rows = first[~first["algorithm"].map(is_control) & np.isfinite(first[measure])]
        if not len(rows):
            return None
        by_name = rows.groupby(["strategy", "algorithm"], sort=False)
        # A predictor of one cohort alone would be compared with means over two.
        counts = by_name["cohort"].nunique()
        means = sign * by_name[measure].mean()
        strategy, algorithm = means[counts == counts.max()].idxmax()
        return str(strategy), str(algorithm)
