"""The table to read first of a comparison: skill over a constant, with intervals over patients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dmrifit.stats.metrics import AT_BOUND, NO_TISSUE
from dmrifit.study.training_runs import POOLED

if TYPE_CHECKING:
    import pandas as pd

    from dmrifit.study.comparison import Evaluation

__all__ = [
    "KEYS",
    "MEASURES",
    "REPEATED",
    "headline",
    "headline_notes",
    "largest",
    "matching",
    "size_summary",
    "summary_of",
]

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
    scores = largest(scores)
    scores = scores.assign(abs_bias=scores["bias"].abs())
    apart = {*NO_TISSUE, AT_BOUND}
    names = scores["metric"].drop_duplicates().tolist()
    groups = {"tissue": [name for name in names if name not in apart]}
    alone = [name for name in (*_ALSO_ALONE, AT_BOUND, *NO_TISSUE) if name in names]
    if every_parameter:
        alone = names
    groups |= {name: [name] for name in alone}
    pooled_signals = matching(largest(signals), contrast=POOLED)
    if len(pooled_signals):
        pooled_signals = pooled_signals.assign(metric="signals", n_failed=0)
    rows = []
    for keys, table in scores.groupby(KEYS, sort=False):
        row = dict(zip(KEYS, keys, strict=True))
        tables = {"signals": matching(pooled_signals, **row)}
        for name, metrics in groups.items():
            tables[name] = table[table["metric"].isin(metrics)]
        for name, members in tables.items():
            if len(members):
                rows.append(row | {"parameters": name} | _summarized(members, level))
    columns = None
    if not rows:
        columns = [*KEYS, "parameters", *MEASURES, *_INDEPENDENT, *_SHARED]
    return pd.DataFrame(rows, columns=columns)


def size_summary(scores: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """Summarize scores over patients and parameters for each number of training patients."""
    import pandas as pd

    scores = scores.assign(abs_bias=scores["bias"].abs())
    keys = [*KEYS, "n_train"]
    rows = []
    for values, table in scores.groupby(keys, sort=False):
        rows.append(_summarized(table, level) | dict(zip(keys, values, strict=True)))
    return pd.DataFrame(rows, columns=None if rows else [*keys, *MEASURES, *_INDEPENDENT])


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


def headline_notes(evaluation: Evaluation, table: pd.DataFrame) -> list[str]:
    """List what has to be said under the head of a summary, `table`."""
    notes = []
    correlations = [table[name] for name in ("r", "r, independent") if name in table]
    if any(column.str.endswith("*").any() for column in correlations):
        notes.append(_UNDEFINED)
    if "shared noise" in table:
        notes.append(_SHARED_NOISE)
    cohorts = evaluation.study.get("cohorts", {})
    single = [name for name in evaluation.synthetic if not cohorts[name].get("repeated")]
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


def _summarized(table: pd.DataFrame, level: float) -> dict[str, Any]:
    """Average over repeats, then parameters, then patients."""
    # Sums of other rows first would differ in their last digits.
    table = table.sort_values(["patient", "metric", "repeat"])
    # Scores of an earlier version may lack a column.
    columns = dict.fromkeys(
        [*table.columns, *MEASURES, *_SUMMED, *_INDEPENDENT, "bias_independent"]
    )
    table = table.reindex(columns=list(columns))
    # A constant answer has no correlation: it counts as none, and is marked.
    filled = table.assign(pearson=table["pearson"].fillna(0.0))
    is_repeated = filled["skill_independent"].notna() | filled["bias_independent"].notna()
    undefined = is_repeated & filled["pearson_independent"].isna()
    filled["pearson_independent"] = filled["pearson_independent"].mask(undefined, 0.0)
    for measure, independent, shared in zip(REPEATED, _INDEPENDENT, _SHARED, strict=True):
        filled[shared] = filled[measure] - filled[independent]
    measures = [*MEASURES, *_INDEPENDENT, *_SHARED]
    values = filled.groupby(["patient", "metric"])[measures].mean()
    # Not by pandas, where the last digit of a mean depends on how columns lie in memory.
    by_patient = [_means(rows.to_numpy()) for _, rows in values.groupby("patient")]
    patients = np.array(by_patient)
    means = _means(patients)
    low, high = _intervals(patients, level)
    row: dict[str, Any] = {"n_train": table["n_train"].max(), "n_patients": len(patients)}
    for j, measure in enumerate(measures):
        row[measure] = means[j]
        row[f"{measure}_low"], row[f"{measure}_high"] = low[j], high[j]
    row["pooled_skill"] = _pooled_skill(table)
    row["n_undefined_pearson"] = int(table["pearson"].isna().sum())
    row["n_undefined_pearson_independent"] = int(undefined.sum())
    row["n_dropped"] = int(table["n_undefined"].sum())
    return row


def _means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """
    Average over rows without gaps; NaN for a column of nothing else.

    Shapes: `values` (n_rows, n_columns); returns (n_columns,).
    """
    means = np.full(values.shape[1], np.nan)
    for j, column in enumerate(values.T):
        known = column[~np.isnan(column)]
        if known.size:
            means[j] = known.mean()
    return means


def _pooled_skill(table: pd.DataFrame) -> float:
    """Mean over parameters of the skill of all voxels of all patients together."""
    n = table["n_voxels"] - table["n_undefined"] - table["n_failed"]
    sums = table.assign(
        error=n * (1 - table["skill"]) * table["constant_error"],
        constant_error=n * table["constant_error"],
    )
    sums = sums.groupby("metric")[["error", "constant_error"]].sum(min_count=1)
    return float((1 - sums["error"] / sums["constant_error"]).mean())


def _intervals(values: NDArray[np.float64], level: float) -> tuple[NDArray, NDArray]:
    """
    Percentile bootstrap of means over rows; NaN where a column has fewer than two values.

    Shapes: `values` (n_patients, n_measures); returns (n_measures,) twice.
    """
    bounds = np.full((2, values.shape[1]), np.nan)
    # One seed for all: equal columns get equal intervals, whatever else is summarized.
    rng = np.random.default_rng(0)
    for j, column in enumerate(values.T):
        usable = column[np.isfinite(column)]
        if len(usable) > 1:
            draws = usable[rng.integers(len(usable), size=(_N_DRAWS, len(usable)))].mean(axis=1)
            bounds[:, j] = np.percentile(draws, [50 * (1 - level), 50 * (1 + level)])
    return bounds[0], bounds[1]
