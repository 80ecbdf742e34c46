"""The eleven claims on predicting the advanced protocol, and their board."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.claims.claim_board import Run, build_board, check_claims, read_claims, read_margins
from benchmarks.claims.macarro import curves, rules
from benchmarks.claims.macarro.evidence import PRESETS, REGIONS, condition_name, study_runs

if TYPE_CHECKING:
    import pandas as pd

    from dmrifit.study.comparison import Evaluation

__all__ = ["CLAIMS", "MARGINS", "MARGINS_FILE", "claim_figures", "claims_board", "decide_claims"]

#: What decides the claims, settled before the boards were run.
MARGINS_FILE = Path(__file__).parent / "margins.toml"
MARGINS, _SETTLED = read_margins(MARGINS_FILE)


def claims_board(
    evaluation: Evaluation | Sequence[Evaluation], *, claims: Sequence[int] | None = None
) -> pd.DataFrame:
    """
    Check the study's eleven claims, or those with these numbers.

    Runs are told apart by their seeds, conditions by the region that was trained on and by the
    preset of synthetic cohorts. A claim is decided in a condition by a t interval over at least
    ten seeds, held against the margins of `MARGINS_FILE`. Claims that compare the two strategies
    (3, 4, 10, 11) need both regions and, for synthetic cohorts, both presets. Training within a
    cohort counts, at the largest number of training patients; controls, S0, which is no property
    of the tissue, and T2v, which mostly sits at a bound, are left out. Raises ValueError if there
    is no evaluation, none has scores of an algorithm trained within its cohort, or a number is
    that of no claim.
    """
    return decide_claims(claim_figures(evaluation, claims=claims))


def claim_figures(
    evaluation: Evaluation | Sequence[Evaluation], *, claims: Sequence[int] | None = None
) -> pd.DataFrame:
    """List the numbers behind `claims_board`, as `benchmarks.claims.claim_board.check_claims` gives them."""
    unknown = sorted(set(claims or ()) - {claim.number for claim in CLAIMS})
    if unknown:
        raise ValueError(
            f"claims are numbered 1 to {len(CLAIMS)}, not {', '.join(map(str, unknown))}"
        )
    evaluations: list[Any] = [evaluation] if hasattr(evaluation, "scores") else list(evaluation)
    if not evaluations:
        raise ValueError("claims_board needs at least one evaluation")
    runs = study_runs(evaluations)
    checked = [claim for claim in CLAIMS if claims is None or claim.number in claims]
    return check_claims(checked, runs)


def decide_claims(figures: pd.DataFrame, *, factor: float = 1.0) -> pd.DataFrame:
    """Decide claims by the figures of their runs, with margins this many times as wide."""
    kinds = [name.partition(", trained on ")[0] for name in figures["condition"].unique()]
    # Where one preset was simulated, both are needed; scans of patients have none.
    if any(kind in PRESETS for kind in kinds):
        kinds = [*PRESETS, *(kind for kind in kinds if kind not in PRESETS)]
    conditions = tuple(
        dict.fromkeys(condition_name(kind, region) for kind in kinds for region in REGIONS)
    )
    is_synthetic = all(kind.startswith("synthetic") for kind in kinds)
    claims = []
    for claim in CLAIMS:
        if claim.number not in set(figures["claim"]):
            continue
        if claim.number in COMPARING:
            claim = replace(claim, conditions=conditions)
        if is_synthetic:
            claim = replace(claim, not_simulated=_SETTLED[claim.number].get("not_simulated", ""))
        claims.append(claim)
    names = figures[["condition", "run"]].drop_duplicates()
    return build_board(
        claims,
        [Run(condition, run, None) for condition, run in names.itertuples(index=False)],
        depends=_depends,
        figures=figures,
        margins={name: margin.scaled(factor) for name, margin in MARGINS.items()},
    )


def _depends(holding: Sequence[str], failing: Sequence[str]) -> str:
    """Say whether the training region or the kind of cohort makes the difference."""
    kinds = {condition.partition(", trained on ")[0] for condition in holding}
    if kinds.isdisjoint(condition.partition(", trained on ")[0] for condition in failing):
        return "the preset of the cohorts"
    return "the training region, on which the letter is silent"


#: Claims that compare the strategies.
COMPARING = (3, 4, 10, 11)


CLAIMS = read_claims(Path(__file__).with_name("claims.toml"), vars(rules) | vars(curves))
