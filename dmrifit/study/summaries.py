"""Summaries of a comparison: skill over a constant with intervals, and means over patients."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dmrifit._utils.checks import check_number
from dmrifit.predict.controls import SHUFFLED, TO_BEAT, is_control
from dmrifit.report.numerals import NOTHING, fixed
from dmrifit.report.page import Texts, capital
from dmrifit.stats import patient_summary
from dmrifit.stats.metrics import AT_BOUND, METRICS, NO_TISSUE, MapMetric
from dmrifit.stats.patient_summary import in_parts
from dmrifit.study.training_runs import POOLED

if TYPE_CHECKING:
    from dmrifit.study.comparison import Evaluation

#: Columns that identify a row of a summary.
KEYS = ["train_on", "cohort", "strategy", "algorithm"]

#: Columns of the summary that are means over patients.
MEASURES = ("skill", "absolute_skill", "abs_bias", "dispersion", "relative_error", "pearson")

#: Those that are also given against a reference with independent noise.
REPEATED = ("skill", "pearson")

#: Sentences under the head of a summary, by name.
TEXTS = Texts(__file__)
# Their reference is often 0, where there is no relative error.
_ALONE = ("f", "K", AT_BOUND, *NO_TISSUE)
_N_DRAWS = 2000
_CORRELATIONS = ("pearson", "pearson_independent")
_OF_REPEATS = ("map skill, independent", "shared noise", "r, independent")

#: Columns of skill as the table of skill names them.
SKILL_NAMES = {"skill": "map skill", "skill_independent": "map skill, independent"}
_STRATEGIES = {"s2s": "signals to signals", "m2m": "maps to maps"}

#: Level of the tests between algorithms.
ALPHA = 0.05
#: Fewer draws, or patients of a cohort, tell nothing about differences between algorithms.
FEWEST_DRAWS = 2
FEWEST_PATIENTS = 6


def matching(table: pd.DataFrame, **values: Any) -> pd.DataFrame:
    """Keep the rows with these values in the columns of these names."""
    # A table without rows may lack its columns.
    if table.empty:
        return table
    return table[(table[list(values)] == list(values.values())).all(axis=1)]


def largest(table: pd.DataFrame) -> pd.DataFrame:
    """Keep the scores at the largest number of training patients."""
    if table.empty:
        return table
    # Cohorts of different sizes reach different numbers of training patients.
    most = table.groupby(["train_on", "cohort", "patient"])["n_train"].transform("max")
    return table[table["n_train"] == most]


def summary_of(
    scores: pd.DataFrame, signals: pd.DataFrame, level: float, *, every_parameter: bool = False
) -> pd.DataFrame:
    """Summarize the tables of a comparison, as `Evaluation.summary` describes it."""
    check_number("level", level, above=0, below=1)
    scores, signals = largest(scores), _pooled(largest(signals))
    names = unique(scores["metric"])
    alone = names if every_parameter else [name for name in _ALONE if name in names]
    groups = {"tissue": unique(averaged(scores)["metric"])} | {name: [name] for name in alone}
    parts = {name: scores["metric"].isin(metrics) for name, metrics in groups.items()}
    table = in_parts(scores, parts, "parameters")
    if len(signals):
        signals = signals.assign(metric="signals", parameters="signals", n_failed=0)
        table = pd.concat([signals, table])
    summary = _summarized(table, [*KEYS, "parameters"], level)
    return scores[KEYS].drop_duplicates().merge(summary, on=KEYS)


def _pooled(signals: pd.DataFrame) -> pd.DataFrame:
    """Keep the rows over all unseen contrasts, with the mean of the correlations within these."""
    if signals.empty:
        return signals
    cells = [*KEYS, "n_train", "patient", "repeat"]
    pooled = matching(signals, contrast=POOLED)
    # Over all contrasts together, even a constant for each would correlate.
    # In a fixed order: sums in another one would differ in their last digits.
    contrasts = signals[signals["contrast"] != POOLED].sort_values("contrast")
    correlations = contrasts.groupby(cells)["pearson"]
    # An undefined one counts as 0, unless all are undefined.
    within = correlations.sum(min_count=1) / correlations.size()
    return pooled.drop(columns="pearson").join(within, on=cells)


def size_summary(scores: pd.DataFrame) -> pd.DataFrame:
    """Summarize scores over patients and parameters for each number of training patients."""
    return _summarized(scores, [*KEYS, "n_train"], 0.95)


def headline(summary: pd.DataFrame) -> pd.DataFrame:
    """Write the rows of a summary to show first: skill with intervals, bias, dispersion, r."""
    shown = summary[summary["parameters"] == "tissue"]
    signals = summary[summary["parameters"] == "signals"].set_index(KEYS)
    # NaN, a dash, where no signals were predicted.
    signals = signals.reindex(pd.MultiIndex.from_frame(shown[KEYS]))
    columns = {
        "trained on": shown["train_on"],
        "N": shown["n_train"],
        **{name: shown[name] for name in KEYS[1:]},
        "signal skill": _texts(signals, "skill"),
        "map skill": _texts(shown, "skill"),
        "map skill, independent": _texts(shown, "skill_independent"),
        "shared noise": [fixed(value, 2) for value in shown["skill_shared_noise"]],
        "|BI| (%)": [fixed(100 * value, 1) for value in shown["abs_bias"]],
        "DI (%)": [fixed(100 * value, 1) for value in shown["dispersion"]],
        "r": _texts(shown, "pearson"),
        "r, independent": _texts(shown, "pearson_independent"),
    }
    table = pd.DataFrame({name: list(values) for name, values in columns.items()})
    is_repeated = summary["skill_independent"].notna().any()
    return table if is_repeated else table.drop(columns=list(_OF_REPEATS))


def headline_notes(study: Mapping[str, Any], table: pd.DataFrame) -> list[str]:
    """List what has to be said under the head of the summary of a study, `table`."""
    notes = [TEXTS["columns"]]
    correlations = [table[name] for name in ("r", "r, independent") if name in table]
    if any(column.astype(str).str.endswith("*").any() for column in correlations):
        notes.append(TEXTS["undefined"])
    if (table["algorithm"] == SHUFFLED).any():
        notes.append(TEXTS["no_zero"])
    if table["algorithm"].map(is_control).any():
        notes.append(TEXTS["controls"])
    notes.append(TEXTS["shared_noise" if "shared noise" in table else "inputs"])
    cohorts = study.get("cohorts", {}).items()
    single = [name for name, item in cohorts if item.get("synthetic") and not item.get("repeated")]
    if single:
        notes.append(TEXTS("single", cohorts=", ".join(single)))
    return notes


def _texts(rows: pd.DataFrame, measure: str) -> list[str]:
    """Write skill with its interval, a correlation with a mark where some are undefined."""
    columns = [measure, f"{measure}_low", f"{measure}_high", f"n_undefined_{measure}"]
    texts = []
    # A summary without rows has no intervals.
    for value, low, high, n_undefined in rows.reindex(columns=columns).to_numpy(float):
        text = fixed(value, 2)
        if np.isfinite(low) and measure not in _CORRELATIONS:
            text += f" [{fixed(low, 2)}, {fixed(high, 2)}]"
        # NaN of skill, which is not counted.
        texts.append(f"{text}*" if n_undefined > 0 and text != NOTHING else text)
    return texts


def _summarized(table: pd.DataFrame, by: list[str], level: float) -> pd.DataFrame:
    """Average over repeats, then parameters, then patients."""
    order = table[by].drop_duplicates()
    # In a fixed order: sums in another one would differ in their last digits.
    table = _with_magnitudes(table.sort_values(["patient", "metric", "repeat"]))
    measures = [*MEASURES, *(f"{measure}_independent" for measure in REPEATED)]
    for measure in REPEATED:
        measures.append(f"{measure}_shared_noise")
        table[measures[-1]] = table[measure] - table[f"{measure}_independent"]
    for suffix in ("", "_truth"):
        measures += [f"{metric.column}{suffix}" for metric in summary_metrics()]
    # One seed for all: equal columns get equal intervals, whatever else is summarized.
    summary = patient_summary.summarize(
        table, by, unique(measures), within=["metric"], n_bootstrap=_N_DRAWS, level=level
    ).set_index(by)
    # The skill of all voxels of all patients together, mean over parameters.
    n = table["n_voxels"] - table["n_undefined"] - table["n_failed"]
    constant_error = n * table["constant_error"]
    sums = table.assign(error=constant_error * (1 - table["skill"]), constant_error=constant_error)
    sums = sums.groupby([*by, "metric"])[["error", "constant_error"]].sum(min_count=1)
    summary["pooled_skill"] = (1 - sums["error"] / sums["constant_error"]).groupby(by).mean()
    counts = {"n_undefined": "n_dropped"}
    counts |= {f"n_undefined_{name}": f"n_undefined_{name}" for name in _CORRELATIONS}
    summary[list(counts.values())] = table.groupby(by)[list(counts)].sum().astype(int)
    if "n_train" not in by:
        summary["n_train"] = table.groupby(by)["n_train"].max()
    return order.merge(summary.reset_index(), on=by)


def predictor_words(strategy: str, algorithm: str) -> str:
    """Name a predictor in full."""
    return f"{algorithm}, {_STRATEGIES.get(strategy, strategy)}"


def unique(values: Iterable[Any]) -> list[Any]:
    """List values in the order of their first appearance."""
    return list(dict.fromkeys(values))


def tissue(scores: pd.DataFrame, excluded: Sequence[str] = NO_TISSUE) -> pd.DataFrame:
    """Leave out parameters that are no property of the tissue, unless there are no others."""
    is_tissue = ~scores["metric"].isin(excluded)
    return scores[is_tissue] if is_tissue.any() else scores


def averaged(scores: pd.DataFrame) -> pd.DataFrame:
    """Leave out S0 and T2v, which no mean over parameters includes, unless there are no others."""
    return tissue(tissue(scores), [AT_BOUND])


def summary_metrics() -> list[MapMetric]:
    """List the metrics that tables of means show."""
    return [metric for metric in METRICS.values() if metric.in_summary]


def _with_magnitudes(scores: pd.DataFrame) -> pd.DataFrame:
    """Add the columns that are averaged: magnitudes, `MapMetric.undefined` for missing scores."""
    columns = {}
    suffixes = ("", "_truth", "_independent")
    needed = [f"{name}{suffix}" for suffix in suffixes for name in (*METRICS, *MEASURES)]
    needed += ["constant_error", "n_voxels", "n_undefined", "n_failed"]
    # Scores of an earlier version may lack a column.
    scores = scores.reindex(columns=unique([*scores.columns, *needed]))
    for suffix in suffixes:
        is_scored = scores[f"bias{suffix}"].notna() | (suffix == "")
        for metric in METRICS.values():
            values = scores[f"{metric.name}{suffix}"]
            if metric.better == "nearer zero":
                values = values.abs()
            is_undefined = is_scored & values.isna()
            columns[f"n_undefined_{metric.name}{suffix}"] = is_undefined
            columns[f"{metric.column}{suffix}"] = values.mask(is_undefined, metric.undefined)
    return scores.assign(**columns)


def why_undecided(evaluation: Evaluation) -> str:
    """Say why differences between algorithms cannot be judged; empty where they can."""
    n_patients = largest(evaluation.scores).groupby("cohort")["patient"].nunique().min()
    reasons = []
    if evaluation.study.get("settings", {}).get("n_repeats", 1) < FEWEST_DRAWS:
        reasons.append(TEXTS["one_draw"])
    if n_patients < FEWEST_PATIENTS:
        reasons.append(TEXTS("few", n_patients=n_patients, fewest=FEWEST_PATIENTS))
    return " and ".join(reasons)


class Board:
    """A comparison as the sections of a report see it."""

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation = evaluation
        self.study = evaluation.study
        self.constant = self.study.get("constant", TEXTS["earlier_constant"])
        # Rows at the largest number of training patients; ``abs_bias`` is the magnitude of
        # ``bias``, and a constant prediction has a correlation of 0.
        self.scores = scores = _with_magnitudes(largest(evaluation.scores))
        signals = largest(evaluation.signals)
        self.signals = signals[signals["contrast"] != POOLED]  # of single contrasts
        self.skill = summary_of(evaluation.scores, evaluation.signals, 0.95, every_parameter=True)
        # What `Evaluation.summary` gives, without a row for every parameter.
        is_shown = self.skill["parameters"].isin(("signals", "tissue", *_ALONE))
        self.overview = self.skill[is_shown].reset_index(drop=True)
        # The means over parameters, beside scores of the signals.
        of_signals = matching(self.skill, parameters="signals").set_index(KEYS)
        of_signals = of_signals.rename(columns={"relative_error": "error"})
        columns = ["skill", "skill_low", "skill_high", "error", "pearson"]
        of_signals = of_signals[columns].add_prefix("signal_")
        self.summary = matching(self.skill, parameters="tissue").join(of_signals, on=KEYS)
        self.algorithms = unique(evaluation.scores["algorithm"])
        self.learners = [name for name in self.algorithms if not is_control(name)]
        self.strategies = unique(scores["strategy"])
        self.cohorts = unique(scores["cohort"])
        self.regimes = unique(scores["train_on"])  # ways of training
        self.parameters = unique(scores["metric"])
        self.metrics = unique(tissue(scores)["metric"])  # parameters of the tissue
        self.averaged_metrics = unique(averaged(scores)["metric"])  # of means over parameters
        self.has_truth = bool(scores["bias_truth"].notna().any())
        self.undecided = why_undecided(evaluation)
        cohorts = self.study.get("cohorts", {}).items()
        # By cohort, names of regions by patient; nothing of images.
        self.regions = {name: cohort.get("regions") for name, cohort in cohorts}
        self.unit = "region" if cohorts and all(self.regions.values()) else "voxel"

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
        masks = self.setting("train_mask", "body"), self.setting("score_mask", "lesion")
        regions = " → ".join(masks) if self.unit == "voxel" else "all regions scored"
        seed = self.setting("seed")
        return f"{regions}, {self.size(rows)}" + ("" if seed is None else f", seed {seed}")

    @property
    def skill_column(self) -> str:
        """Column of skill to show: with independent noise if all learners have it, else plain."""
        rows = matching(self.summary, train_on=self.regimes[0])
        skill = rows.loc[rows["algorithm"].isin(self.learners), "skill_independent"]
        return "skill_independent" if len(skill) and skill.notna().all() else "skill"

    @property
    def best(self) -> tuple[str, str] | None:
        """Strategy and algorithm with the highest skill of maps, mean over cohorts."""
        skills = self.skills(self.learners)
        return skills.idxmax() if len(skills) else None

    @property
    def standing(self) -> tuple[str, str]:
        """Name the predictor with the highest skill, and say whether tests tell it apart."""
        best, rivals = self.best or ("", ""), self.rivals
        name, skill = predictor_words(*best), SKILL_NAMES[self.skill_column]
        if not len(rivals):
            return TEXTS("alone", name=name), ""
        # By a control, or by the best constant, whose skill is 0.
        is_beaten = max(0.0, self.skills(TO_BEAT).max()) > self.skills(self.learners).max()
        if self.undecided:
            why = TEXTS("no_verdict", why=capital(self.undecided))
            return TEXTS("first" if is_beaten else "here", name=name, skill=skill), why
        nearest = rivals.iloc[-1]
        how = TEXTS("tested", **nearest)
        if len(rivals) * 2.0 ** (1 - nearest["n_patients"]) >= ALPHA:
            how += TEXTS("cannot", n_others=len(rivals), alpha=ALPHA)
        alike = ", ".join(rivals.loc[rivals["p_holm"] >= ALPHA, "predictor"])
        kind = "alike" if alike else "first" if is_beaten or len(self.unshown) else "best"
        return TEXTS(kind, name=name, others=alike, skill=skill), how

    @cached_property
    def rivals(self) -> pd.DataFrame:
        """Test the skill of the best predictor against that of every other, the nearest last."""
        from dmrifit.stats.method_tests import holm, signed_rank

        skills, names = self.skills(self.learners), ["strategy", "algorithm"]
        rows = averaged(matching(self.scores, train_on=self.regimes[0]))
        wide = rows.pivot_table(self.skill_column, ["patient", "metric"], names)
        # Of the parameters that all have; patients of all cohorts together.
        wide = wide[skills.index].dropna().groupby("patient").mean()
        best, others = wide.pop(self.best), skills.index.drop(self.best)
        # Two-sided, as the best one was chosen by the same skills.
        p = holm([2 * signed_rank(best, wide[other], "greater")[1] for other in others])
        first, *predictors = (f"{a} {s}" for s, a in [best.name, *others])
        table = pd.DataFrame({"best": first, "predictor": predictors, "p_holm": p})
        # Equal skills have no p value.
        table = table.fillna({"p_holm": 1.0}).assign(n_patients=len(wide))
        return table.sort_values("p_holm", kind="stable", ignore_index=True)

    @cached_property
    def unshown(self) -> pd.DataFrame:
        """
        Rows of the best predictor by cohorts in which it is not shown to predict unseen images.

        There the interval of its signal skill is not above 0 and above every control to beat; the
        columns ``floor_…`` describe the best of these. A reference that contains the inputs gives
        maps some skill all the same.
        """
        strategy, algorithm = self.best or ("", "")
        rows = matching(self.summary, train_on=self.regimes[0])
        # Of all strategies: in maps to maps controls keep amplitudes, which give signals skill.
        floors = rows[rows["algorithm"].isin(TO_BEAT) & (rows["signal_skill"] > 0)]
        floors = floors.sort_values("signal_skill").groupby("cohort").last().add_prefix("floor_")
        rows = matching(rows, strategy=strategy, algorithm=algorithm).join(floors, on="cohort")
        is_shown = rows["signal_skill_low"] > rows["floor_signal_skill"].fillna(0)
        return rows[rows["signal_skill"].notna() & (self.skill_column == "skill") & ~is_shown]

    def skills(self, algorithms: Collection[str], **where: Any) -> pd.Series:
        """Average the skill of maps over cohorts, by strategy and algorithm; first training."""
        rows = matching(self.summary, train_on=self.regimes[0], **where)
        is_scored = rows["algorithm"].isin(algorithms) & np.isfinite(rows[self.skill_column])
        by_name = rows[is_scored].groupby(["strategy", "algorithm"], sort=False)
        # A predictor of one cohort alone would be compared with means over two.
        counts = by_name["cohort"].nunique()
        return by_name[self.skill_column].mean()[counts == counts.max()]
