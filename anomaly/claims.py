"""The study's claims about anomalies of diffusion, and where other detectors stand, as a board."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from anomaly.methods import (
    CLASSICAL,
    COHORTS,
    FIXED,
    HEALTHY_RATE,
    IMAGE_SCALE,
    LATENTS,
    NOISES,
    OWN,
    REFERENCE,
    Tables,
    aucs_of,
    board_rules,
    chosen_autoencoder,
    method_name,
    value_or_nan,
)
from anomaly.published import published_table
from anomaly.rules import CLAIMS, COHORT_CLAIMS
from dmrifit.boards import MissingEvidence, Run, build_board, check_claims

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "CLAIMS",
    "CLASSICAL",
    "COHORTS",
    "COHORT_CLAIMS",
    "IMAGE_SCALE",
    "LATENTS",
    "NOISES",
    "OWN",
    "REFERENCE",
    "anomaly_board",
    "board_figures",
    "board_rules",
    "difference_interval",
    "margin_table",
    "method_name",
    "published_beside",
]


def anomaly_board(
    runs: Mapping[str, Tables], *, shifted: Mapping[str, Tables] | None = None, least_runs: int = 3
) -> pd.DataFrame:
    """
    Check the claims with evaluations over several seeds.

    Parameters
    ----------
    runs : mapping of str to dict of DataFrame
        By the name of the run, such as its seed, what `evaluate_detectors` gave for methods that `method_name` names
        under the rules of `board_rules`, on a cohort that is registered well.
    shifted : mapping of str to dict of DataFrame, optional
        The same on a cohort with residual shifts.
    least_runs : int, default=3
        With fewer, nothing is decided.

    Returns
    -------
    DataFrame
        A row for each claim, as `dmrifit.boards.build_board` gives it; those of `CLAIMS` for each cohort, those of
        `COHORT_CLAIMS` for runs that both have. Claims whose methods are missing cannot be told; where they are
        missing in all runs of one cohort only, the other decides, as ``reason`` says.

    Raises
    ------
    ValueError
        If there is no run.
    """
    import pandas as pd

    single, pairs = _as_runs(runs, shifted)
    figures, silent = _told(check_claims(CLAIMS, single))
    board = build_board(CLAIMS, single, least_runs=least_runs, depends=_depends, figures=figures)
    board["reason"] = [
        "\n".join([*([row.reason] if row.reason else []), *silent.get(row.claim, ())]) for row in board.itertuples()
    ]
    if not pairs:
        return board
    return pd.concat([board, build_board(COHORT_CLAIMS, pairs, least_runs=least_runs)], ignore_index=True)


def board_figures(runs: Mapping[str, Tables], *, shifted: Mapping[str, Tables] | None = None) -> pd.DataFrame:
    """
    List every number behind the board.

    Parameters
    ----------
    runs, shifted : mapping of str to dict of DataFrame
        As for `anomaly_board`.

    Returns
    -------
    DataFrame
        As `dmrifit.boards.check_claims` gives it.
    """
    import pandas as pd

    single, pairs = _as_runs(runs, shifted)
    figures = check_claims(CLAIMS, single)
    return pd.concat([figures, check_claims(COHORT_CLAIMS, pairs)], ignore_index=True) if pairs else figures


def margin_table(runs: Mapping[str, Tables], *, reference: str = REFERENCE) -> pd.DataFrame:
    """
    Tell how far every method is from the reference.

    Parameters
    ----------
    runs : mapping of str to dict of DataFrame
        As for `anomaly_board`.
    reference : str, default=REFERENCE
        A method.

    Returns
    -------
    DataFrame
        By method, in the order of the tables: ``auc`` and ``margin`` (AUC less that of the reference), means over
        runs, ``margin_sd`` over runs, ``dice_opened`` and ``dice_margin`` under the rule of healthy scans, ``n_runs``.

    Raises
    ------
    ValueError
        If no run has the reference.
    """
    import pandas as pd

    rows = []
    for tables in runs.values():
        known = aucs_of(tables)
        if reference not in known:
            continue
        base = value_or_nan(tables, reference, "dice_opened", HEALTHY_RATE)
        for method, auc in known.items():
            opened = value_or_nan(tables, method, "dice_opened", HEALTHY_RATE)
            rows.append((method, auc, auc - known[reference], opened, opened - base))
    if not rows:
        known = {name: 0 for tables in runs.values() for name in aucs_of(tables)}
        msg = f"no run has a row {reference!r}; the methods are {list(known)}"
        raise ValueError(msg)
    found = pd.DataFrame(rows, columns=["method", "auc", "margin", "dice_opened", "dice_margin"])
    grouped = found.groupby("method", sort=False)
    table = grouped.mean()
    table.insert(2, "margin_sd", grouped["margin"].std())
    return table.assign(n_runs=grouped.size()).reset_index()


def difference_interval(
    runs: Mapping[str, Tables], first: str, second: str, *, measure: str = "auc", rule: str | None = None
) -> dict[str, float]:
    """
    Give a confidence interval over runs for the difference of two methods.

    Parameters
    ----------
    runs : mapping of str to dict of DataFrame
        As for `anomaly_board`.
    first, second : str
        Methods.
    measure : str, default="auc"
        Column of the summary.
    rule : str, optional
        For measures that depend on it.

    Returns
    -------
    dict of str to float
        ``difference`` (first − second, mean over runs), ``low`` and ``high`` (95 %, Student's t), ``n_runs``; bounds
        are NaN with one run.

    Raises
    ------
    ValueError
        If no run has both.
    """
    from scipy import stats

    values = []
    for tables in runs.values():
        one, other = value_or_nan(tables, first, measure, rule), value_or_nan(tables, second, measure, rule)
        if np.isfinite(one - other):
            values.append(one - other)
    if not values:
        msg = f"no run has {measure} of both {first!r} and {second!r}"
        raise ValueError(msg)
    n, mean = len(values), float(np.mean(values))
    half = float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    return {"difference": mean, "low": mean - half, "high": mean + half, "n_runs": n}


def published_beside(runs: Mapping[str, Tables]) -> pd.DataFrame:
    """
    Put our figures beside those that the study prints.

    Parameters
    ----------
    runs : mapping of str to dict of DataFrame
        As for `anomaly_board`.

    Returns
    -------
    DataFrame
        The rows of `anomaly.published.published_table` for methods that we have, with ``ours`` and ``ours_sd`` (mean
        and standard deviation over runs) and ``n_runs``. The study's best configurations stand beside our
        autoencoder with a sigmoid and the largest latent vector, and our RecDiscNet with the mix at half the mean, as
        ``ours_method`` says: none of ours is chosen on the test data.
    """
    import pandas as pd

    rows = []
    for line in published_table().to_dict("records"):
        values, names = [], set()
        for tables in runs.values():
            name = _ours(tables, line["method"], line["rule"])
            value = value_or_nan(tables, name, line["measure"], line["rule"] or None)
            if np.isfinite(value):
                values.append(value)
                names.add(name)
        if values:
            sd = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
            ours = {"ours_method": ", or ".join(sorted(names)), "ours": float(np.mean(values)), "ours_sd": sd}
            rows.append(line | ours | {"n_runs": len(values)})

    columns = ["method", "rule", "measure", "value", "sd", "source", "ours_method", "ours", "ours_sd", "n_runs"]
    return pd.DataFrame(rows, columns=columns)


def _as_runs(runs: Mapping[str, Tables], shifted: Mapping[str, Tables] | None) -> tuple[list[Run], list[Run]]:
    """Give the runs of each cohort, and pairs of runs that both cohorts have."""
    if not shifted:
        return [Run("", str(name), tables) for name, tables in runs.items()], []
    both = dict(zip(COHORTS, (runs, shifted), strict=True))
    single = [Run(cohort, str(name), tables) for cohort, part in both.items() for name, tables in part.items()]
    return single, [Run("", str(name), (runs[name], shifted[name])) for name in runs if name in shifted]


def _told(figures: pd.DataFrame) -> tuple[pd.DataFrame, dict[int, list[str]]]:
    """Leave out cohorts that have nothing of a reading, where another has; say which, of first readings."""
    keys = [figures[key] for key in ("claim", "reading")]
    there = (figures["relation"] != "").groupby([*keys, figures["condition"]]).transform("any")
    left_out = figures[~there & there.groupby(keys).transform("any")]
    first = {claim.number: claim.readings[0].name for claim in CLAIMS}
    silent: dict[int, list[str]] = {}
    for row in left_out.drop_duplicates(["claim", "reading", "condition"]).to_dict("records"):
        if row["reading"] == first[row["claim"]]:
            silent.setdefault(row["claim"], []).append(f"{row['condition']}: left out, without {row['quantity']}")
    return figures.drop(index=left_out.index), silent


def _depends(holding: Sequence[str], failing: Sequence[str]) -> str:
    return "how well scans are registered"


def _ours(tables: Tables, method: str, rule: str) -> str:
    """Name what of ours stands beside a row of the study; nothing has an empty name."""
    if method == "RecDiscNet":
        return method_name("RecDiscNet")
    if method == "DAE":
        try:
            method = chosen_autoencoder(tables)
        except MissingEvidence:
            return ""
    return f"{method}, {IMAGE_SCALE}" if rule == FIXED and method.startswith("DAE ") else method
