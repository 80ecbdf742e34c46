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
    if any(column.str.endswith("*").any() for column in correlations):
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
    summary = summarize(
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
