"""The study's claims about placing voxels, checked with the tables of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dmrifit.boards import Check, Claim, MissingEvidence, Reading, Run, build_board

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CLAIMS", "placement_board"]

NETWORK, OBJECTIVE, EXPERTS = "network", "objective", "experts"

_CLOSE = 0.10  # of Dice or ICC counts as no loss
_THREE_ORDERS = 1000.0


def placement_board(runs: Mapping[str, Mapping[str, pd.DataFrame]], *, least_runs: int = 3) -> pd.DataFrame:
    """
    Check the study's claims with evaluations over several seeds.

    Parameters
    ----------
    runs : mapping of str to dict of DataFrame
        By the name of the run, such as its seed, what `evaluate_placements` gave for placements named ``"network"``
        and ``"objective"``.
    least_runs : int, default=3
        With fewer, nothing is decided.

    Returns
    -------
    DataFrame
        A row for each claim, as `dmrifit.boards.build_board` gives it. Where folds were given, cases of fold 1, on
        which the study chose its settings, are left out of what the summary decides.

    Raises
    ------
    ValueError
        If there is no run.
    """
    return build_board(CLAIMS, [Run("", name, tables) for name, tables in runs.items()], least_runs=least_runs)


def _mean(tables: Mapping[str, pd.DataFrame], method: str, measure: str) -> float:
    summary = tables["summary"]
    part = "other folds" if "other folds" in set(summary["part"]) else "all"
    chosen = summary[(summary["part"] == part) & (summary["method"] == method) & (summary["measure"] == measure)]
    if not len(chosen) or np.isnan(chosen["mean"].iloc[0]):
        msg = f"{measure} of {method}"
        raise MissingEvidence(msg)
    return float(chosen["mean"].iloc[0])


def _icc(tables: Mapping[str, pd.DataFrame], method: str) -> float:
    """Average over the experts that a method is compared with; for experts, over their pairs."""
    table = tables["icc"]
    own = table["method"].str.startswith("expert ") if method == EXPERTS else table["method"] == method
    chosen = table[own & (table["form"] == "ICC(1,1)")]
    if not len(chosen):
        msg = f"ICC of {method}"
        raise MissingEvidence(msg)
    return float(chosen["value"].mean())


def _correlation(tables: Mapping[str, pd.DataFrame], method: str, measure: str) -> float:
    table = tables["correlations"]
    chosen = table[(table["method"] == method) & (table["measure"] == measure)]
    if not len(chosen):
        msg = f"correlations of {method}"
        raise MissingEvidence(msg)
    return float(chosen["pearson"].iloc[0])


def _better(*measures: str) -> Any:
    def checks(tables: Mapping[str, pd.DataFrame]) -> Sequence[Check]:
        return [
            Check(f"{measure}, network", _mean(tables, NETWORK, measure), ">", _mean(tables, OBJECTIVE, measure),
                  against="objective")
            for measure in measures
        ]  # fmt: skip

    return checks


def _near_experts(measure: str, peer: str) -> Any:
    def checks(tables: Mapping[str, pd.DataFrame]) -> Sequence[Check]:
        limit = _mean(tables, EXPERTS, peer) - _CLOSE
        return [
            Check(f"{measure}, network", _mean(tables, NETWORK, measure), ">=", limit, against=f"experts − {_CLOSE:g}")
        ]

    return checks


def _agreeing(tables: Mapping[str, pd.DataFrame]) -> Sequence[Check]:
    network, experts = _icc(tables, NETWORK), _icc(tables, EXPERTS)
    return [
        Check("ICC of volume, network", network, ">=", experts - _CLOSE, against=f"experts − {_CLOSE:g}"),
        Check("ICC of volume, objective", _icc(tables, OBJECTIVE), "<", network, against="network"),
    ]


def _turning(measure: str) -> Any:
    def checks(tables: Mapping[str, pd.DataFrame]) -> Sequence[Check]:
        experts = _mean(tables, EXPERTS, measure)
        return [
            Check(f"{measure}, {name}", _mean(tables, name, measure), ">", experts, against="experts")
            for name in (NETWORK, OBJECTIVE)
        ]

    return checks


def _falling(tables: Mapping[str, pd.DataFrame]) -> Sequence[Check]:
    names = (EXPERTS, NETWORK, OBJECTIVE)
    dice = [Check(f"r(Dice, tumor), {n}", _correlation(tables, n, "dice_mean"), "<", 0.0) for n in names]
    wide = [
        Check(f"r(|difference of volume|, tumor), {n}", _correlation(tables, n, "absolute_difference"), ">", 0.0)
        for n in names[:2]
    ]
    return [*dice, *wide]


def _following(tables: Mapping[str, pd.DataFrame]) -> Sequence[Check]:
    own = _correlation(tables, OBJECTIVE, "volume")
    return [
        Check("r(volume, tumor), objective", own, "<", 0.3),
        Check("r(volume, tumor), network", _correlation(tables, NETWORK, "volume"), ">", own, against="objective"),
    ]


def _faster(tables: Mapping[str, pd.DataFrame]) -> Sequence[Check]:
    ratio = _mean(tables, OBJECTIVE, "seconds") / _mean(tables, NETWORK, "seconds")
    return [Check("seconds, objective over network", ratio, ">=", _THREE_ORDERS)]


#: What the study states about its network and its objective.
CLAIMS = (
    Claim(
        1,
        "The network's boxes overlap more with experts' than the objective's",
        "Dice .47 against .40 (closest expert), .39 against .34 (both)",
        "mean Dice of the network above that of the objective, with the closest expert and over experts",
        (Reading("closest and mean", _better("dice_closest", "dice_mean")), Reading("mean", _better("dice_mean"))),
    ),
    Claim(
        2,
        "The network agrees with experts nearly as well as they do with each other",
        "Dice .47 (closest), .39 (both) against .46",
        f"fair Dice (the closest of all but one expert) of the network within {_CLOSE:g} of the experts'",
        (
            Reading("fair", _near_experts("dice_fair", "dice_fair")),
            Reading("closest of all, as printed", _near_experts("dice_closest", "dice_mean")),
        ),
    ),
    Claim(
        3,
        "The network's volumes agree with an expert as experts' do with each other, the objective's less",
        "ICC .275 and .362 against .298; objective .102",
        f"mean ICC(1,1) of the network within {_CLOSE:g} of the experts' or above; the objective's below the network's",
        (Reading("ICC(1,1)", _agreeing),),
    ),
    Claim(
        4,
        "Network and objective rotate more axes than experts",
        "1.44 and 1.48 against 1.22",
        "mean number of rotated axes of both above the experts'",
        (Reading("angles that are not 0", _turning("rotated_angles")), Reading("turns", _turning("rotated_axes"))),
    ),
    Claim(
        5,
        "Dice falls and disagreement of volumes grows with the tumor",
        "figures",
        "negative correlation of mean Dice with tumor volume, positive one of the absolute difference of volumes",
        (Reading("Pearson", _falling),),
    ),
    Claim(
        6,
        "The objective's volume hardly follows the tumor's, the network's does",
        "r .18, .49 (experts .50)",
        "correlation of the objective's volume with the tumor's below 0.3, that of the network above it",
        (Reading("Pearson", _following),),
    ),
    Claim(
        7,
        "The network is three orders of magnitude faster than the objective",
        "3 ms against more than 20 s, on its own hardware",
        "mean time of the objective at least 1000 times the network's, both measured here",
        (Reading("measured", _faster),),
    ),
)
