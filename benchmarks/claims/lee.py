"""Lee et al., MICCAI 2024: placement of voxels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.claims.claim_files import read_claims
from dmrifit.stats.claim_board import (
    Check,
    MissingEvidence,
    Run,
    build_board,
    check_claims,
)
from dmrifit.stats.verdicts import read_margins

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CLAIMS", "MARGINS", "MARGINS_FILE", "claim_figures", "decide_claims"]

#: What decides the claims, settled before the board was run.
MARGINS_FILE = Path(__file__).with_suffix(".toml")
MARGINS, _SETTLED = read_margins(MARGINS_FILE)

NETWORK, OBJECTIVE, EXPERTS = "network", "objective", "experts"

_THREE_ORDERS = 1000.0

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


def _mean(tables: _Tables, method: str, measure: str) -> float:
    summary = tables["summary"]
    part = "other folds" if "other folds" in set(summary["part"]) else "all"
    rows = summary[(summary["part"] == part) & (summary["method"] == method)]
    means = rows.loc[rows["measure"] == measure, "mean"]
    if not len(means) or np.isnan(means.iloc[0]):
        raise MissingEvidence(f"{measure} of {method}")
    return float(means.iloc[0])


def _icc(tables: _Tables, method: str) -> float:
    """Average over the experts that a method is compared with; for experts, over their pairs."""
    table = tables["icc"][tables["icc"]["form"] == "ICC(1,1)"]
    is_method = table["method"] == method
    if method == EXPERTS:
        is_method = table["method"].str.startswith("expert ")
    if not is_method.any():
        raise MissingEvidence(f"ICC of {method}")
    return float(table.loc[is_method, "value"].mean())


def _correlation(tables: _Tables, method: str, measure: str) -> float:
    table = tables["correlations"]
    rows = table[(table["method"] == method) & (table["measure"] == measure)]
    if not len(rows):
        raise MissingEvidence(f"correlations of {method}")
    return float(rows["pearson"].iloc[0])


def better(*measures: str) -> _Rule:
    def checks(tables: _Tables) -> list[Check]:
        result = []
        for measure in measures:
            value, limit = _mean(tables, NETWORK, measure), _mean(tables, OBJECTIVE, measure)
            result.append(
                Check(
                    f"{measure}, network", value, ">", limit, against="objective", margin="dice"
                )
            )
        return result

    return checks


def near_experts(measure: str, of_experts: str) -> _Rule:
    def checks(tables: _Tables) -> list[Check]:
        limit = _mean(tables, EXPERTS, of_experts)
        value = _mean(tables, NETWORK, measure)
        quantity = f"{measure}, network"
        return [Check(quantity, value, ">=", limit, against="experts", margin="near_dice")]

    return checks


def volumes_agree(tables: _Tables) -> list[Check]:
    network, objective, experts = (_icc(tables, name) for name in (NETWORK, OBJECTIVE, EXPERTS))
    of_network, of_objective = "ICC of volume, network", "ICC of volume, objective"
    return [
        Check(of_network, network, ">=", experts, against="experts", margin="icc"),
        Check(of_objective, objective, "<", network, against="network", margin="icc"),
    ]


def rotate_more(measure: str) -> _Rule:
    def checks(tables: _Tables) -> list[Check]:
        limit = _mean(tables, EXPERTS, measure)
        result = []
        for name in (NETWORK, OBJECTIVE):
            value = _mean(tables, name, measure)
            quantity = f"{measure}, {name}"
            result.append(Check(quantity, value, ">", limit, against="experts", margin="axes"))
        return result

    return checks


def agree_less_on_large_tumors(tables: _Tables) -> list[Check]:
    result = []
    for name in (EXPERTS, NETWORK, OBJECTIVE):
        r = _correlation(tables, name, "dice_mean")
        quantity = f"r(Dice, tumor), {name}"
        result.append(Check(quantity, r, "<", 0.0, margin="correlation"))
    for name in (EXPERTS, NETWORK):
        r = _correlation(tables, name, "absolute_difference")
        quantity = f"r(|difference of volume|, tumor), {name}"
        result.append(Check(quantity, r, ">", 0.0, margin="correlation"))
    return result


def volume_follows_tumor(tables: _Tables) -> list[Check]:
    objective = _correlation(tables, OBJECTIVE, "volume")
    network = _correlation(tables, NETWORK, "volume")
    of_objective, of_network = "r(volume, tumor), objective", "r(volume, tumor), network"
    return [
        Check(of_objective, objective, "<", 0.3, margin="correlation"),
        Check(of_network, network, ">", objective, against="objective", margin="correlation"),
    ]


def faster(tables: _Tables) -> list[Check]:
    ratio = _mean(tables, OBJECTIVE, "seconds") / _mean(tables, NETWORK, "seconds")
    return [Check("seconds, objective over network", ratio, ">=", _THREE_ORDERS, margin="dice")]


#: What the study states.
CLAIMS = read_claims(Path(__file__).with_name("lee_claims.toml"), globals())
