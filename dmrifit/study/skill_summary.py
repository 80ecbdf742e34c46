"""The table to read first of a comparison: skill over a constant, with intervals over patients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dmrifit.stats.metrics import AT_BOUND, NO_TISSUE
from dmrifit.stats.patient_summary import in_parts, summarize
from dmrifit.study.training_runs import POOLED

if TYPE_CHECKING:
    import pandas as pd

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

    signals = summary[summary["parameters"] == "signals"].set_index(KEYS)
    is_repeated = bool(summary["skill_independent"].notna().any())
    shown = summary[summary["parameters"] == "tissue"]
    # A model may have no tissue parameter but those that are shown apart.
    if not len(shown):
        shown = summary[summary["parameters"] != "signals"].drop_duplicates(KEYS)
    rows = []
    for row in shown.to_dict("records"):
        key = tuple(row[name] for name in KEYS)
        signal_skill = "–"
        if key in signals.index:
            signal_skill = _with_interval(signals.loc[key], "skill")
        cells = {
            "trained on": row["train_on"],
            "N": row["n_train"],
            "cohort": row["cohort"],
            "strategy": row["strategy"],
            "algorithm": row["algorithm"],
            "signal skill": signal_skill,
            "map skill": _with_interval(row, "skill"),
        }
        if is_repeated:
            cells["map skill, independent"] = _with_interval(row, "skill_independent")
            cells["shared noise"] = _number(row["skill_shared_noise"])
        cells["|BI| (%)"] = _number(100 * row["abs_bias"], 1)
        cells["DI (%)"] = _number(100 * row["dispersion"], 1)
        cells["r"] = _number(row["pearson"]) + _mark(row["n_undefined_pearson"])
        if is_repeated:
            r = _number(row["pearson_independent"])
            if r != "–":
                r += _mark(row["n_undefined_pearson_independent"])
            cells["r, independent"] = r
        rows.append(cells)
    return pd.DataFrame(rows, columns=None if rows else ["algorithm", "r"])


def headline_notes(study: Mapping[str, Any], table: pd.DataFrame) -> list[str]:
    """List what has to be said under the head of the summary of a study, `table`."""
    notes = []
    correlations = [table[name] for name in ("r", "r, independent") if name in table]
    if any(column.str.endswith("*").any() for column in correlations):
        notes.append(_UNDEFINED)
    if "shared noise" in table:
        notes.append(_SHARED_NOISE)
    single = []
    for name, cohort in study.get("cohorts", {}).items():
        if cohort.get("synthetic") and not cohort.get("repeated"):
            single.append(name)
    if single:
        notes.append(
            f"the signals of {', '.join(single)} without noise, or the level of their noise, are "
            "not known (as in averages of several measurements), so there is no second draw of "
            "the noise: no rows truth and repeat, and skill may owe something to noise that "
            "inputs and reference share"
        )
    return notes


def _with_interval(row: Mapping[str, Any], measure: str) -> str:
    text = _number(row[measure])
    low, high = row[f"{measure}_low"], row[f"{measure}_high"]
    if np.isfinite(low):
        text += f" [{_number(low)}, {_number(high)}]"
    return text


def _mark(n_undefined: int) -> str:
    return "*" if n_undefined else ""


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
    summary = summarize(
        filled, by, measures, within=["metric"], n_bootstrap=_N_DRAWS, level=level
    ).set_index(by)
    counts = table.assign(
        n_undefined_pearson=table["pearson"].isna(),
        n_undefined_pearson_independent=undefined,
        n_dropped=table["n_undefined"],
    ).groupby(by)
    if "n_train" not in by:
        summary["n_train"] = counts["n_train"].max()
    summary["pooled_skill"] = _pooled_skill(table, by)
    names = ["n_undefined_pearson", "n_undefined_pearson_independent", "n_dropped"]
    summary[names] = counts[names].sum().astype(int)
    ends = [f"{measure}{end}" for measure in measures for end in ("", "_low", "_high")]
    columns = ["n_train", "n_patients", *ends, "pooled_skill", *names]
    columns = [*by, *(name for name in columns if name not in by)]
    return order.merge(summary.reset_index(), on=by).reindex(columns=columns)


def _pooled_skill(table: pd.DataFrame, by: list[str]) -> pd.Series:
    """Mean over parameters of the skill of all voxels of all patients together."""
    n = table["n_voxels"] - table["n_undefined"] - table["n_failed"]
    sums = table.assign(
        error=n * (1 - table["skill"]) * table["constant_error"],
        constant_error=n * table["constant_error"],
    )
    sums = sums.groupby([*by, "metric"])[["error", "constant_error"]].sum(min_count=1)
    return (1 - sums["error"] / sums["constant_error"]).groupby(by).mean()
