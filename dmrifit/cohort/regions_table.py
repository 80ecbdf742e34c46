"""Tables of regions: one row for each mean signal, read with every check before work starts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dmrifit.cohort.participants_table import (
    COLUMN_NAMES,
    check_cohorts,
    read_synthetic,
    read_table,
)
from dmrifit.cohort.scan import RISING_SHARE, rising_share
from dmrifit.engine.protocol import Protocol
from dmrifit.io.tables import number_in

if TYPE_CHECKING:
    import pandas as pd

#: Columns of a table of regions; te, cohort and synthetic may be absent or "n/a".
REGION_COLUMNS = ("patient", "region", "b", "signal")
_OPTIONAL_COLUMNS = ("te", "cohort", "synthetic")

# Shorter curves may agree by chance, where signals are written with few digits.
_FEWEST_TELLING = 4


def is_regions_table(table: Path) -> bool:
    """Whether a table lists signals of regions instead of images."""
    _, row = read_table(table, required=())[0]
    return {"region", "signal"} <= row.keys()


def read_regions(table: Path) -> dict[str, dict[str, Any]]:
    """Read what `Cohort.from_signals` takes, by cohort, whatever the order of the rows."""
    import pandas as pd

    rows = read_table(
        table, required=REGION_COLUMNS, optional=_OPTIONAL_COLUMNS, aliases=COLUMN_NAMES
    )
    rows = [(line, row | {"cohort": row.get("cohort") or table.stem}) for line, row in rows]
    check_cohorts(rows, table)
    regions = pd.DataFrame([_record(line, row, table) for line, row in rows])
    contrast = ["patient", "region", "te", "b"]
    repeated = regions[regions.duplicated(contrast, keep=False)]
    for _, (first, second, *_) in repeated.groupby(contrast, sort=False)["line"]:
        row = regions[regions["line"] == second].iloc[0]
        raise ValueError(
            f"{table}, rows {first} and {second}: two signals of patient {row['patient']}, region "
            f"{row['region']} at {_contrast_text(row['te'], row['b'])}; average them, or name two "
            "regions differently"
        )
    _refuse_copies(regions, table)
    return {
        str(name): _in_order(cohort, table) | {"synthetic": bool(cohort["synthetic"].any())}
        for name, cohort in regions.groupby("cohort", sort=False)
    }


def _record(line: int, row: Mapping[str, str], table: Path) -> dict[str, Any]:
    """Read the names and numbers of a row; TE is −1 where there is none."""
    where = f"{table}, row {line} (patient {row['patient']}, region {row['region']})"
    record: dict[str, Any] = {"where": where, "line": line}
    record |= {name: row[name] for name in ("cohort", "patient", "region")}
    for column in ("te", "b", "signal"):
        text = row.get(column, "")
        value = number_in(text)
        if column == "te" and not text:
            # Not NaN, which would make no two contrasts equal.
            value = -1.0
        elif value is None or not (np.isfinite(value) and value >= 0):
            raise ValueError(
                f"{where}: {column} must be a finite number of 0 or more, not {text!r}; correct "
                "it, or leave the region out"
            )
        record[column] = value
    try:
        record["synthetic"] = read_synthetic(row)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return record


def _in_order(cohort: pd.DataFrame, table: Path) -> dict[str, Any]:
    """Put the regions of a cohort in order, after checks of contrasts, units and decay."""
    names = ["patient", "region"]
    curves = cohort.pivot_table("signal", index=names, columns=["te", "b"])
    where = cohort.groupby(names)["where"].first()
    # What most regions have is meant; the others have a mistake in a row or lack one.
    n_regions = curves.notna().sum()
    for (te, b), n in n_regions[2 * n_regions <= len(curves)].items():
        line = cohort.loc[(cohort["te"] == te) & (cohort["b"] == b), "line"].iloc[0]
        raise ValueError(
            f"{table}, row {line}: {_contrast_text(te, b)} is in {n} of {len(curves)} regions, "
            "and all regions of a cohort need the same contrasts; correct the row, or leave it out"
        )
    for key, curve in curves[curves.isna().any(axis=1)].iterrows():
        texts = "; ".join(_contrast_text(*contrast) for contrast in curve.index[curve.isna()])
        raise ValueError(
            f"{where[key]}: no row at {texts}, which other regions have; add it, or leave the "
            "region out"
        )
    # An echo time that is not given is −1 here.
    te, b = np.array(curves.columns.tolist()).T
    try:
        if np.ptp(te) > 0 and te.min() < 0:
            raise ValueError("some echo times are missing; give all, or no column te")
        protocol = Protocol(b, None if te.max() < 0 else te, name=table.stem)
    except ValueError as error:
        # Errors of units and order show at the largest b-value.
        line = cohort.loc[cohort["b"].idxmax(), "line"]
        raise ValueError(f"{table}, row {line}: {error}") from None
    signals = curves.to_numpy()
    for key, curve in zip(curves.index, signals, strict=True):
        rising = rising_share(curve, protocol)
        if rising > RISING_SHARE:
            raise ValueError(
                f"{where[key]}: in {rising:.0%} of the pairs of contrasts the signal rises with b "
                "or TE; check that each signal stands beside its b and TE"
            )
    patients, regions = zip(*curves.index, strict=True)
    return {"signals": signals, "protocol": protocol, "patients": patients, "regions": regions}


def _refuse_copies(regions: pd.DataFrame, table: Path) -> None:
    """Refuse two patients with the same curve."""
    owners: dict[tuple[tuple[float, ...], ...], tuple[str, int]] = {}
    numbers = ["te", "b", "signal"]
    for (patient, _), rows in regions.groupby(["patient", "region"], sort=False):
        curve = tuple(rows[numbers].sort_values(numbers).itertuples(index=False, name=None))
        line = int(rows["line"].iloc[0])
        owner, first_line = owners.setdefault(curve, (patient, line))
        if owner != patient and len(curve) >= _FEWEST_TELLING:
            raise ValueError(
                f"{table}, rows {first_line} and {line}: patients {owner} and {patient} have the "
                "same signals; a patient under two names would be in training and test: correct "
                "one"
            )


def _contrast_text(te: float, b: float) -> str:
    text = f"b = {b:g} s/mm²"
    if te >= 0:
        text += f", TE = {te:g} ms"
    return text
