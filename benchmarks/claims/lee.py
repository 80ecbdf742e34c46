"""Lee et al., MICCAI 2024: placement of voxels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.claims.claim_board import (
    Check,
    MissingEvidence,
    Run,
    build_board,
    check_claims,
    read_claims,
    read_margins,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CLAIMS", "MARGINS", "MARGINS_FILE", "claim_figures", "decide_claims"]

#: What decides the claims, settled before the board was run.
MARGINS_FILE = Path(__file__).with_suffix(".toml")
MARGINS, _SETTLED = read_margins(MARGINS_FILE)

NETWORK, OBJECTIVE, EXPERTS = "network", "objective", "experts"

_Tables = Mapping[str, "pd.DataFrame"]
_Rule = Callable[[_Tables], list[Check]]


def claim_figures(runs: Mapping[str, _Tables]) -> pd.DataFrame:
    """
    List the numbers that the claims are decided by.

    `runs` gives, by the name of the run, such as its seed, what `evaluate_placements` gave for
    placements named "network" and "objective" over the cases of all folds together. Means leave
    out the cases of fold 1, on which the study chose its settings.
    """
    return check_claims(CLAIMS, [Run("", name, tables) for name, tables in runs.items()])


def decide_claims(figures: pd.DataFrame, *, factor: float = 1.0) -> pd.DataFrame:
    """Decide claims by the figures of their runs, with margins this many times as wide."""
    claims = [
        replace(claim, not_simulated=_SETTLED[claim.number].get("not_simulated", ""))
        for claim in CLAIMS
    ]
    runs = [Run("", name, None) for name in figures["run"].unique()]
    margins = {name: margin.scaled(factor) for name, margin in MARGINS.items()}
    return build_board(claims, runs, figures=figures, margins=margins)


def mean(tables: _Tables, method: str, measure: str) -> float:
    summary = tables["summary"]
    part = "other folds" if "other folds" in set(summary["part"]) else "all"
    rows = summary[(summary["part"] == part) & (summary["method"] == method)]
    means = rows.loc[rows["measure"] == measure, "mean"]
    if not len(means) or np.isnan(means.iloc[0]):
        raise MissingEvidence(f"{measure} of {method}")
    return float(means.iloc[0])


def icc(tables: _Tables, method: str) -> float:
    """Average over the experts that a method is compared with; for experts, over their pairs."""
    table = tables["icc"][tables["icc"]["form"] == "ICC(1,1)"]
    is_method = table["method"] == method
    if method == EXPERTS:
        is_method = table["method"].str.startswith("expert ")
    if not is_method.any():
        raise MissingEvidence(f"ICC of {method}")
    return float(table.loc[is_method, "value"].mean())


def correlation(tables: _Tables, method: str, measure: str) -> float:
    table = tables["correlations"]
    rows = table[(table["method"] == method) & (table["measure"] == measure)]
    if not len(rows):
        raise MissingEvidence(f"correlations of {method}")
    return float(rows["pearson"].iloc[0])


#: What the study states.
CLAIMS = read_claims(Path(__file__).with_name("lee_claims.toml"), globals())
