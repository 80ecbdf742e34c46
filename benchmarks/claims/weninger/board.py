"""The board of claims about anomalies, and where other detectors stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.claims.claim_board import (
    MissingEvidence,
    Run,
    build_board,
    check_claims,
    read_margins,
)
from benchmarks.claims.weninger.methods import (
    COHORTS,
    FIXED,
    HEALTHY_RATE,
    IMAGE_SCALE,
    REFERENCE,
    Tables,
    aucs_of,
    chosen_autoencoder,
    method_name,
    value_or_nan,
)
from benchmarks.claims.weninger.published import published_table
from benchmarks.claims.weninger.rules import CLAIMS, COHORT_CLAIMS

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "MARGINS",
    "MARGINS_FILE",
    "anomaly_board",
    "difference_interval",
    "margin_table",
    "published_beside",
]


#: What decides the claims.
MARGINS_FILE = Path(__file__).with_name("margins.toml")
MARGINS, _SETTLED = read_margins(MARGINS_FILE)


def anomaly_board(
    runs: Mapping[str, Tables],
    *,
    shifted: Mapping[str, Tables] | None = None,
) -> pd.DataFrame:
    """
    Check the claims with evaluations over several seeds.

    `runs` gives, by the name of the run, such as its seed, what `evaluate_detectors` gave for
    methods that `method_name` names under the rules of `board_rules`, on a cohort that is
    registered well; `shifted` the same on a cohort with residual shifts. The board has a row for
    each claim, as `benchmarks.claims.claim_board.build_board` gives it: those of `CLAIMS` for each
    cohort, those of `COHORT_CLAIMS` for runs that both have. Claims whose methods are missing
    cannot be told; where they are missing in all runs of one cohort only, the other decides, as
    ``reason`` says. A claim is decided by a t interval over at least ten runs, held against the
    margins of `MARGINS_FILE`.
    """
    import pandas as pd

    single, pairs = _as_runs(runs, shifted)
    figures, left_out = _leave_out(_with_margins(check_claims(CLAIMS, single)))
    claims = [
        replace(claim, not_simulated=_SETTLED.get(claim.number, {}).get("not_simulated", ""))
        for claim in CLAIMS
    ]
    board = build_board(claims, single, depends=_depends, figures=figures, margins=MARGINS)
    for i, row in board.iterrows():
        reasons = [row["reason"], *left_out.get(row["claim"], ())]
        board.loc[i, "reason"] = "\n".join(filter(None, reasons))
    if not pairs:
        return board
    compared = _with_margins(check_claims(COHORT_CLAIMS, pairs))
    comparison = build_board(COHORT_CLAIMS, pairs, figures=compared, margins=MARGINS)
    return pd.concat([board, comparison], ignore_index=True)


def _with_margins(figures: pd.DataFrame) -> pd.DataFrame:
    """Name the margin of each check, which follows from its quantity."""
    margins = []
    for quantity in figures["quantity"]:
        name = "auc"
        if "opened Dice / Dice" in quantity:
            name = "ratio"
        elif "Dice" in quantity:
            name = "dice"
        elif quantity.startswith("share"):
            name = "share"
        elif quantity.startswith("false positives"):
            name = "rate"
        margins.append(name)
    return figures.assign(margin=margins)


def margin_table(runs: Mapping[str, Tables]) -> pd.DataFrame:
    """
    Tell how far every method is from the reference.

    The table has, by method in the order of the tables, ``auc`` and ``margin`` (AUC less that of
    the reference), means over runs, ``margin_sd`` over runs, ``dice_opened`` and ``dice_margin``
    under the rule of healthy scans, and ``n_runs``. Raises ValueError if no run has the reference.
    """
    import pandas as pd

    rows = []
    methods: dict[str, None] = {}
    for tables in runs.values():
        aucs = aucs_of(tables)
        methods |= dict.fromkeys(aucs)
        if REFERENCE not in aucs:
            continue
        dice_of_reference = value_or_nan(tables, REFERENCE, "dice_opened", HEALTHY_RATE)
        for method, auc in aucs.items():
            dice = value_or_nan(tables, method, "dice_opened", HEALTHY_RATE)
            rows.append((method, auc, auc - aucs[REFERENCE], dice, dice - dice_of_reference))
    if not rows:
        raise ValueError(f"no run has a row {REFERENCE!r}; the methods are {list(methods)}")
    columns = ["method", "auc", "margin", "dice_opened", "dice_margin"]
    grouped = pd.DataFrame(rows, columns=columns).groupby("method", sort=False)
    table = grouped.mean()
    table.insert(2, "margin_sd", grouped["margin"].std())
    return table.assign(n_runs=grouped.size()).reset_index()


def difference_interval(runs: Mapping[str, Tables], first: str, second: str) -> dict[str, float]:
    """
    Give a confidence interval over runs for the difference of the AUCs of two methods.

    ``difference`` is first − second, mean over runs; ``low`` and ``high`` are its bounds (95 %,
    Student's t), NaN with one run. Raises ValueError if no run has both.
    """
    from scipy import stats

    differences = []
    for tables in runs.values():
        difference = value_or_nan(tables, first, "auc") - value_or_nan(tables, second, "auc")
        if np.isfinite(difference):
            differences.append(difference)
    if not differences:
        raise ValueError(f"no run has the AUC of both {first!r} and {second!r}")
    n, mean, half = len(differences), float(np.mean(differences)), float("nan")
    if n > 1:
        half = float(stats.t.ppf(0.975, n - 1) * np.std(differences, ddof=1) / np.sqrt(n))
    return {"difference": mean, "low": mean - half, "high": mean + half, "n_runs": n}


def published_beside(runs: Mapping[str, Tables]) -> pd.DataFrame:
    """
    Put our figures beside those that the study prints.

    To the rows of `published_table` for methods that we have come ``ours`` and ``ours_sd`` (mean
    and standard deviation over runs) and ``n_runs``. The study's best configurations stand beside
    our autoencoder with a sigmoid and the largest latent vector, and our RecDiscNet with the mix
    at half the mean, as ``ours_method`` says: none of ours is chosen on the test data.
    """
    import pandas as pd

    rows = []
    for line in published_table().to_dict("records"):
        values, names = [], set()
        for tables in runs.values():
            name = _counterpart(tables, line["method"], line["rule"])
            value = value_or_nan(tables, name, line["measure"], line["rule"] or None)
            if np.isfinite(value):
                values.append(value)
                names.add(name)
        if values:
            line["ours_method"] = ", or ".join(sorted(names))
            line["ours"] = float(np.mean(values))
            line["ours_sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
            line["n_runs"] = len(values)
            rows.append(line)
    columns = ["method", "rule", "measure", "value", "sd", "source"]
    return pd.DataFrame(rows, columns=[*columns, "ours_method", "ours", "ours_sd", "n_runs"])


def _as_runs(
    runs: Mapping[str, Tables], shifted: Mapping[str, Tables] | None
) -> tuple[list[Run], list[Run]]:
    """Give the runs of each cohort, and pairs of runs that both cohorts have."""
    if not shifted:
        return [Run("", str(name), tables) for name, tables in runs.items()], []
    single = []
    for cohort, tables_by_run in zip(COHORTS, (runs, shifted), strict=True):
        single += [Run(cohort, str(name), tables) for name, tables in tables_by_run.items()]
    in_both = [name for name in runs if name in shifted]
    return single, [Run("", str(name), (runs[name], shifted[name])) for name in in_both]


def _leave_out(figures: pd.DataFrame) -> tuple[pd.DataFrame, dict[int, list[str]]]:
    """Drop cohorts that have nothing of a reading, where another has; say which, by claim."""
    keys = [figures["claim"], figures["reading"]]
    in_cohort = (figures["relation"] != "").groupby([*keys, figures["condition"]]).transform("any")
    dropped = figures[~in_cohort & in_cohort.groupby(keys).transform("any")]
    first = {(claim.number, claim.readings[0].name) for claim in CLAIMS}
    reasons: dict[int, list[str]] = {}
    for row in dropped.drop_duplicates(["claim", "reading", "condition"]).to_dict("records"):
        if (row["claim"], row["reading"]) in first:
            reason = f"{row['condition']}: left out, without {row['quantity']}"
            reasons.setdefault(row["claim"], []).append(reason)
    return figures.drop(index=dropped.index), reasons


def _depends(holding: Sequence[str], failing: Sequence[str]) -> str:
    return "how well scans are registered"


def _counterpart(tables: Tables, method: str, rule: str) -> str:
    """Name the method that stands beside a row of the study; "" if there is none."""
    if method == "RecDiscNet":
        return method_name("RecDiscNet")
    if method == "DAE":
        try:
            method = chosen_autoencoder(tables)
        except MissingEvidence:
            return ""
    if rule == FIXED and method.startswith("DAE "):
        return f"{method}, {IMAGE_SCALE}"
    return method
