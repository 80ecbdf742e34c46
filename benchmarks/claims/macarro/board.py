"""The eleven claims on predicting the advanced protocol, and their board."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.claims.macarro import curves, rules
from benchmarks.claims.macarro.evidence import PRESETS, REGIONS, condition_name, study_runs
from dmrifit.stats.claim_board import Claim, Reading, Run, build_board, check_claims
from dmrifit.stats.verdicts import read_margins

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
    """List the numbers behind `claims_board`, as `dmrifit.stats.claim_board.check_claims` gives them."""
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

_K_AND_T2T = ("K", "T2t")
_TRUTH = "median abs(E) against the truth"
_FOUR = "for training on body and on lesion and for both presets of synthetic cohorts"
_PARAMETERS = "f, Dv, Dt, K and T2t"


def _by_index(rule: Callable[[str], rules.Rule]) -> tuple[Reading, ...]:
    """Read a claim on BI and DI by the one and by the other."""
    return Reading("DI", rule("DI")), Reading("|BI|", rule("|BI|"))


CLAIMS = (
    Claim(
        1,
        "The mean relative error of signals predicted by s2s is below 12 %",
        "< 12 %",
        "mean of abs(E) over voxels, unseen contrasts, patients and algorithms < 0.12 in every "
        "cohort",
        (
            Reading("lesion", rules.signal_error("lesion")),
            Reading("body", rules.signal_error("body")),
        ),
    ),
    Claim(
        2,
        "Correlations of signals exceed 0.8 in both cohorts; those of metrics are lower",
        "> 0.8 for signals; lower for metrics",
        "Pearson's r over a patient's voxels, median over patients, mean over algorithms and "
        "unseen images > 0.8 in both cohorts, and every metric's r below it in both strategies",
        (
            Reading("signals of the scored region", rules.signal_correlation()),
            Reading("signals of the body", rules.signal_correlation("body")),
        ),
    ),
    Claim(
        3,
        "BI and DI of s2s are below those of m2m",
        "lower mean BI and DI (no figure printed)",
        f"mean over patients, algorithms and {_PARAMETERS} lower for s2s in every cohort, {_FOUR}",
        _by_index(rules.better_in_s2s),
    ),
    Claim(
        4,
        "Variation between metrics exceeds variation between algorithms, more so in m2m",
        "larger between metrics (no figure printed)",
        "standard deviation of the mean index over metrics above that over algorithms in both "
        f"strategies, and their ratio larger in m2m, in every cohort, {_FOUR}",
        _by_index(rules.metrics_vary_more),
    ),
    Claim(
        5,
        "Cohort 1 is predicted better than cohort 2",
        "better in cohort 1 (no figure printed)",
        "mean index lower in the first cohort (by name) for both strategies",
        _by_index(rules.first_better),
    ),
    Claim(
        6,
        "Algorithms do not differ significantly within a strategy",
        "no significant difference (test not named)",
        f"mean over patients and {_PARAMETERS} of all pairs of algorithms equivalent, in each "
        "cohort and strategy",
        _by_index(rules.no_difference),
    ),
    Claim(
        7,
        "BI and DI fall with the number of training patients and level off about N = 5",
        "about N = 5",
        "mean index at N = 5 below N = 1, and from N = 5 on equivalent to that at the largest N "
        f"(at least {curves.LONG_CURVE}), in both strategies",
        _by_index(curves.levels_off),
    ),
    Claim(
        8,
        "mlNN is good already at N = 2",
        "N = 2",
        "mean index of mlNN at N = 2 not above its own at the largest N, and not above the median "
        "of the other algorithms at N = 2, in both strategies",
        _by_index(curves.early),
    ),
    Claim(
        9,
        "The fluctuations of DI for N = 5 to 15 come mainly from Dv",
        "mainly Dv (no figure printed)",
        "over training sizes from 5 on, more than half of the sum over metrics of the variance of "
        "DI is that of Dv, in both strategies",
        (Reading("DI", curves.mainly_dv),),
    ),
    Claim(
        10,
        "K and T2t are visibly worse in m2m",
        "visible in the maps (no figure printed)",
        "K and T2t, in every cohort: mean over patients and algorithms of the median of abs(E) "
        f"higher in m2m, {_FOUR}",
        tuple(
            Reading(label, rules.better_in_s2s(label, _K_AND_T2T))
            for label in ("median abs(E)", "r", _TRUTH)
        ),
    ),
    Claim(
        11,
        "Maps fitted to signals of s2s vary less between algorithms than maps of m2m",
        "less in s2s (no figure printed)",
        "standard deviation over algorithms of a patient's index, mean over patients and "
        f"metrics, lower for s2s in every cohort, {_FOUR}",
        (
            Reading("DI", rules.varies_less("DI", "dispersion")),
            Reading("BI (signed)", rules.varies_less("BI (signed)", "bias")),
        ),
    ),
)
