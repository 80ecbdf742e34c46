"""Tables of regions: one row for each mean signal, read with every check before work starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dmrifit.cohort.participants_table import (
    COLUMN_NAMES,
    check_cohorts,
    read_synthetic,
    read_table,
)
from dmrifit.cohort.scan import RISING_SHARE, rising_share
from dmrifit.engine.protocol import Protocol

#: Columns of a table of regions; te, cohort and synthetic may be absent or "n/a".
REGION_COLUMNS = ("patient", "region", "b", "signal")
_OPTIONAL_COLUMNS = ("te", "cohort", "synthetic")

# Shorter curves may agree by chance, where signals are written with few digits.
_FEWEST_TELLING = 4


@dataclass(frozen=True, eq=False)
class _Region:
    """The rows of one region."""

    where: str  # table, first row, patient, region
    line: int
    lines: dict[tuple[float, float], int]  # by TE and b
    signals: dict[tuple[float, float], float]


def is_regions_table(table: Path) -> bool:
    """Whether a table lists signals of regions instead of images."""
    _, row = read_table(table, required=())[0]
    return {"region", "signal"} <= row.keys()


def read_regions(table: Path) -> dict[str, dict[str, Any]]:
    """Read what `Cohort.from_signals` takes, by cohort, whatever the order of the rows."""
    rows = read_table(
        table, required=REGION_COLUMNS, optional=_OPTIONAL_COLUMNS, aliases=COLUMN_NAMES
    )
    rows = [(line, row | {"cohort": row.get("cohort") or table.stem}) for line, row in rows]
    check_cohorts(rows, table)
    cohorts: dict[str, dict[tuple[str, str], _Region]] = {}
    synthetic: dict[str, bool] = {}
    for line, row in rows:
        where = f"{table}, row {line} (patient {row['patient']}, region {row['region']})"
        contrast, signal = _numbers(row, where)
        name = row["cohort"]
        regions = cohorts.setdefault(name, {})
        region = regions.setdefault((row["patient"], row["region"]), _Region(where, line, {}, {}))
        if contrast in region.lines:
            raise ValueError(
                f"{table}, rows {region.lines[contrast]} and {line}: two signals of patient "
                f"{row['patient']}, region {row['region']} at {_contrast_text(contrast)}; average "
                "them, or name two regions differently"
            )
        region.lines[contrast] = line
        region.signals[contrast] = signal
        try:
            synthetic[name] = read_synthetic(row) or synthetic.get(name, False)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    _refuse_copies(cohorts, table)
    return {
        name: _in_order(regions, table) | {"synthetic": synthetic[name]}
        for name, regions in cohorts.items()
    }


def _numbers(row: Mapping[str, str], where: str) -> tuple[tuple[float, float], float]:
    """Read the contrast, (TE, b), and the signal of a row; TE is −1 where there is none."""
    values = {}
    for column in ("te", "b", "signal"):
        text = row.get(column, "")
        if column == "te" and not text:
            # Not NaN, which would make no two contrasts equal.
            values[column] = -1.0
            continue
        try:
            value = float(text)
        except ValueError:
            value = np.nan
        if not (np.isfinite(value) and value >= 0):
            raise ValueError(
                f"{where}: {column} must be a finite number of 0 or more, not {text!r}; correct "
                "it, or leave the region out"
            )
        values[column] = value
    return (values["te"], values["b"]), values["signal"]


def _in_order(regions: Mapping[tuple[str, str], _Region], table: Path) -> dict[str, Any]:
    """Put the regions of a cohort in order, after checks of contrasts, units and decay."""
    keys = sorted(regions)
    n_regions: Counter[tuple[float, float]] = Counter()
    for region in regions.values():
        n_regions.update(list(region.lines))
    # What most regions have is meant; the others have a mistake in a row or lack one.
    contrasts = sorted(c for c, n in n_regions.items() if 2 * n > len(regions))
    for region in regions.values():
        for contrast, line in region.lines.items():
            if 2 * n_regions[contrast] <= len(regions):
                raise ValueError(
                    f"{table}, row {line}: {_contrast_text(contrast)} is in "
                    f"{n_regions[contrast]} of {len(regions)} regions, and all regions of a "
                    "cohort need the same contrasts; correct the row, or leave it out"
                )
        missing = [contrast for contrast in contrasts if contrast not in region.lines]
        if missing:
            texts = "; ".join(map(_contrast_text, missing))
            raise ValueError(
                f"{region.where}: no row at {texts}, which other regions have; add it, or leave "
                "the region out"
            )
    # An echo time that is not given is −1 here.
    te, b = np.array(contrasts).T
    try:
        if np.ptp(te) > 0 and te.min() < 0:
            raise ValueError("some echo times are missing; give all, or no column te")
        protocol = Protocol(b, None if te.max() < 0 else te, name=table.stem)
    except ValueError as error:
        # Errors of units and order show at the largest b-value.
        largest = max(next(iter(regions.values())).lines.items(), key=lambda item: item[0][1])
        raise ValueError(f"{table}, row {largest[1]}: {error}") from None
    signals = np.array([[regions[key].signals[c] for c in contrasts] for key in keys])
    for key, curve in zip(keys, signals, strict=True):
        rising = rising_share(curve, protocol)
        if rising > RISING_SHARE:
            raise ValueError(
                f"{regions[key].where}: in {rising:.0%} of the pairs of contrasts the signal "
                "rises with b or TE; check that each signal stands beside its b and TE"
            )
    patients, names = zip(*keys, strict=True)
    return {"signals": signals, "protocol": protocol, "patients": patients, "regions": names}


def _refuse_copies(cohorts: Mapping[str, Mapping[tuple[str, str], _Region]], table: Path) -> None:
    """Refuse two patients with the same curve."""
    owners: dict[tuple[tuple[tuple[float, float], float], ...], tuple[str, int]] = {}
    for regions in cohorts.values():
        for (patient, _), region in regions.items():
            curve = tuple(sorted(region.signals.items()))
            owner, line = owners.setdefault(curve, (patient, region.line))
            if owner != patient and len(curve) >= _FEWEST_TELLING:
                raise ValueError(
                    f"{table}, rows {line} and {region.line}: patients {owner} and {patient} have "
                    "the same signals; a patient under two names would be in training and test: "
                    "correct one"
                )


def _contrast_text(contrast: Sequence[float]) -> str:
    te, b = contrast
    text = f"b = {b:g} s/mm²"
    if te >= 0:
        text += f", TE = {te:g} ms"
    return text
