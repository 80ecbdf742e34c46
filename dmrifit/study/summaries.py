"""Summaries of a comparison: skill over a constant with intervals, and means over patients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from dmrifit.predict.controls import is_control
from dmrifit.stats import patient_summary
from dmrifit.stats.metrics import AT_BOUND, METRICS, NO_TISSUE, RANKING_METRIC, MapMetric
from dmrifit.stats.patient_summary import in_parts
from dmrifit.study.training_runs import POOLED

if TYPE_CHECKING:
    import pandas as pd

    from dmrifit.study.comparison import Evaluation

#: Columns that identify a row of a summary.
KEYS = ["train_on", "cohort", "strategy", "algorithm"]

#: Columns of the summary that are means over patients.
MEASURES = ("skill", "absolute_skill", "abs_bias", "dispersion", "relative_error", "pearson")

#: Those that are also given against a reference with noise of its own.
REPEATED = ("skill", "pearson")

_SHARED_NOISE = (
    "maps of synthetic patients are scored twice: against the fit to the images that include the "
    "inputs, and (independent) against the fit to a second draw of the noise; the difference is "
    "called shared noise. Unseen images share no noise with the inputs"
)
_UNDEFINED = "* some correlations are undefined (constant answers) and count as 0"
# Their reference is often 0, where there is no relative error.
_ALSO_ALONE = ("f", "K")
_N_DRAWS = 2000
_SUMMED = ("constant_error", "n_voxels", "n_undefined", "n_failed")
_INDEPENDENT = tuple(f"{measure}_independent" for measure in REPEATED)
_SHARED = tuple(f"{measure}_shared_noise" for measure in REPEATED)

#: Fewer draws, or patients of a cohort, tell nothing about differences between algorithms.
FEWEST_DRAWS = 2
FEWEST_PATIENTS = 6


def matching(table: pd.DataFrame, **values: Any) -> pd.DataFrame:
    """Keep the rows with these values in the columns of these names."""
    # A table without rows may lack its columns.
    if not len(table):
        return table
    return table[(table[list(values)] == list(values.values())).all(axis=1)]


def largest(table: pd.DataFrame) -> pd.DataFrame:
    """Keep the scores at the largest number of training patients."""
    if not len(table):
        return table
    # Cohorts of different sizes reach different numbers of training patients.
    most = table.groupby(["train_on", "cohort", "patient"])["n_train"].transform("max")
    return table[table["n_train"] == most]


def summary_of(
    scores: pd.DataFrame,
    signals: pd.DataFrame,
    level: float,
    *,
    every_parameter: bool = False,
) -> pd.DataFrame:
    """Summarize the tables of a comparison, as `Evaluation.summary` describes it."""
    import pandas as pd

    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, such as 0.95, not {level!r}")
    scores, signals = largest(scores), matching(largest(signals), contrast=POOLED)
    names = list(scores["metric"].unique())
    groups = {"tissue": [name for name in names if name not in (*NO_TISSUE, AT_BOUND)]}
    alone = [name for name in (*_ALSO_ALONE, AT_BOUND, *NO_TISSUE) if name in names]
    groups |= {name: [name] for name in (names if every_parameter else alone)}
    parts = {name: scores["metric"].isin(metrics) for name, metrics in groups.items()}
    table = in_parts(scores, parts, "parameters")
    if len(signals):
        signals = signals.assign(metric="signals", parameters="signals", n_failed=0)
        table = pd.concat([signals, table])
    summary = _summarized(table, [*KEYS, "parameters"], level)
    return scores[KEYS].drop_duplicates().merge(summary, on=KEYS)


def size_summary(scores: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """Summarize scores over patients and parameters for each number of training patients."""
    return _summarized(scores, [*KEYS, "n_train"], level)


def headline(summary: pd.DataFrame) -> pd.DataFrame:
    """Write the rows of a summary to show first: skill with intervals, bias, dispersion, r."""
    import pandas as pd

    shown = summary[summary["parameters"] == "tissue"]
    # A model may have no tissue parameter but those that are shown apart.
    if not len(shown):
        shown = summary[summary["parameters"] != "signals"].drop_duplicates(KEYS)
    signals = summary[summary["parameters"] == "signals"].set_index(KEYS)
    # NaN, a dash, where no signals were predicted.
    signals = signals.reindex(pd.MultiIndex.from_frame(shown[KEYS]))
    columns = {
        "trained on": shown["train_on"],
        "N": shown["n_train"],
        **{name: shown[name] for name in KEYS[1:]},
        "signal skill": _with_interval(signals, "skill"),
        "map skill": _with_interval(shown, "skill"),
    }
    is_repeated = bool(summary["skill_independent"].notna().any())
    if is_repeated:
        columns["map skill, independent"] = _with_interval(shown, "skill_independent")
        columns["shared noise"] = shown["skill_shared_noise"].map(_number)
    columns["|BI| (%)"] = [_number(100 * value, 1) for value in shown["abs_bias"]]
    columns["DI (%)"] = [_number(100 * value, 1) for value in shown["dispersion"]]
    columns["r"] = _marked(shown, "pearson")
    if is_repeated:
        columns["r, independent"] = _marked(shown, "pearson_independent")
    return pd.DataFrame({name: list(values) for name, values in columns.items()})


def headline_notes(study: Mapping[str, Any], table: pd.DataFrame) -> list[str]:
    """List what has to be said under the head of the summary of a study, `table`."""
    notes = []
    correlations = [table[name] for name in ("r", "r, independent") if name in table]
    if any(column.astype(str).str.endswith("*").any() for column in correlations):
        notes.append(_UNDEFINED)
    if "shared noise" in table:
        notes.append(_SHARED_NOISE)
    single = [
        name
        for name, cohort in study.get("cohorts", {}).items()
        if cohort.get("synthetic") and not cohort.get("repeated")
    ]
    if single:
        notes.append(
            f"the signals of {', '.join(single)} without noise, or the level of their noise, are "
            "not known (as in averages of several measurements), so there is no second draw of "
            "the noise: no rows truth and repeat, and skill may owe something to noise that "
            "inputs and reference share"
        )
    return notes


def _with_interval(rows: pd.DataFrame, measure: str) -> list[str]:
    """Write a measure of every row, with its interval where there is one."""
    texts = []
    for value, low, high in rows[[measure, f"{measure}_low", f"{measure}_high"]].to_numpy(float):
        interval = f" [{_number(low)}, {_number(high)}]" if np.isfinite(low) else ""
        texts.append(_number(value) + interval)
    return texts


def _marked(rows: pd.DataFrame, measure: str) -> list[str]:
    """Write a correlation of every row, with a mark where it is undefined of some parameter."""
    texts = []
    for value, n_undefined in rows[[measure, f"n_undefined_{measure}"]].to_numpy(float):
        text = _number(value)
        texts.append(f"{text}*" if n_undefined and text != "–" else text)
    return texts


def _number(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else "–"


def _summarized(table: pd.DataFrame, by: list[str], level: float) -> pd.DataFrame:
    """Average over repeats, then parameters, then patients."""
    order = table[by].drop_duplicates()
    # Sums of other rows first would differ in their last digits.
    table = table.sort_values(["patient", "metric", "repeat"])
    # Scores of an earlier version may lack a column.
    needed = ("bias", "bias_independent", "skill_independent", "pearson_independent")
    columns = [*table.columns, *MEASURES, *_SUMMED, *needed]
    table = table.reindex(columns=list(dict.fromkeys(columns)))
    # A constant answer has no correlation: it counts as none, and is marked.
    filled = table.assign(abs_bias=table["bias"].abs(), pearson=table["pearson"].fillna(0.0))
    is_repeated = table["skill_independent"].notna() | table["bias_independent"].notna()
    undefined = is_repeated & table["pearson_independent"].isna()
    filled["pearson_independent"] = filled["pearson_independent"].mask(undefined, 0.0)
    for measure, independent, shared in zip(REPEATED, _INDEPENDENT, _SHARED, strict=True):
        filled[shared] = filled[measure] - filled[independent]
    measures = [*MEASURES, *_INDEPENDENT, *_SHARED]
    # One seed for all: equal columns get equal intervals, whatever else is summarized.
    summary = patient_summary.summarize(
        filled, by, measures, within=["metric"], n_bootstrap=_N_DRAWS, level=level
    ).set_index(by)
    names = ["n_undefined_pearson", "n_undefined_pearson_independent", "n_dropped"]
    flags = [table["pearson"].isna(), undefined, table["n_undefined"]]
    counts = table.assign(**dict(zip(names, flags, strict=True))).groupby(by)
    if "n_train" not in by:
        summary["n_train"] = counts["n_train"].max()
    # The skill of all voxels of all patients together, mean over parameters.
    n = table["n_voxels"] - table["n_undefined"] - table["n_failed"]
    sums = table.assign(
        error=n * (1 - table["skill"]) * table["constant_error"],
        constant_error=n * table["constant_error"],
    )
    sums = sums.groupby([*by, "metric"])[["error", "constant_error"]].sum(min_count=1)
    summary["pooled_skill"] = (1 - sums["error"] / sums["constant_error"]).groupby(by).mean()
    summary[names] = counts[names].sum().astype(int)
    ends = [f"{measure}{end}" for measure in measures for end in ("", "_low", "_high")]
    columns = list(dict.fromkeys([*by, "n_train", "n_patients", *ends, "pooled_skill", *names]))
    return order.merge(summary.reset_index(), on=by).reindex(columns=columns)


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
