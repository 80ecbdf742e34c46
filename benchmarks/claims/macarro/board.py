"""The eleven claims on predicting the advanced protocol, and their board."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from claims.macarro import curves, rules
from claims.macarro.evidence import ALPHA, PRESETS, REGIONS, condition_name, study_runs
from dmrifit.stats.claim_board import Claim, Reading, Run, build_board, check_claims

if TYPE_CHECKING:
    import pandas as pd

    from dmrifit.study.comparison import Evaluation

__all__ = ["CLAIMS", "LEAST_SEEDS", "claim_figures", "claims_board"]

#: Fewer seeds decide nothing.
LEAST_SEEDS = 3


def claims_board(
    evaluation: Evaluation | Sequence[Evaluation], *, claims: Sequence[int] | None = None
) -> pd.DataFrame:
    """
    Check the study's eleven claims, or those with these numbers.

    Runs are told apart by their seeds, conditions by the region that was trained on and by the
    preset of synthetic cohorts. A claim is decided in a condition by at least three seeds that
    agree. Claims that compare the two strategies (3, 4, 10, 11) need both regions and, for
    synthetic cohorts, both presets: they hold if they hold in all four. Training within a cohort
    counts, at the largest number of training patients; controls and S0, which is no property of
    the tissue, are left out. Raises ValueError if there is no evaluation, none has scores of an
    algorithm trained within its cohort, or a number is that of no claim.
    """
    runs, checked = _runs_and_claims(evaluation, claims)
    return build_board(checked, runs, least_runs=LEAST_SEEDS, depends=_depends)


def claim_figures(
    evaluation: Evaluation | Sequence[Evaluation], *, claims: Sequence[int] | None = None
) -> pd.DataFrame:
    """List the numbers behind `claims_board`, as `dmrifit.stats.claim_board.check_claims` gives them."""
    runs, checked = _runs_and_claims(evaluation, claims)
    return check_claims(checked, runs)


def _runs_and_claims(
    evaluation: Evaluation | Sequence[Evaluation], numbers: Sequence[int] | None
) -> tuple[list[Run], list[Claim]]:
    unknown = sorted(set(numbers or ()) - {claim.number for claim in CLAIMS})
    if unknown:
        raise ValueError(
            f"claims are numbered 1 to {len(CLAIMS)}, not {', '.join(map(str, unknown))}"
        )
    evaluations: list[Any] = [evaluation] if hasattr(evaluation, "scores") else list(evaluation)
    if not evaluations:
        raise ValueError("claims_board needs at least one evaluation")
    runs = study_runs(evaluations)
    kinds = list(dict.fromkeys(run.evidence.kind for run in runs))
    # Where one preset was simulated, both are needed; scans of patients have none.
    if any(kind in PRESETS for kind in kinds):
        kinds = [*PRESETS, *(kind for kind in kinds if kind not in PRESETS)]
    conditions = tuple(condition_name(kind, region) for kind in kinds for region in REGIONS)
    checked = [claim for claim in CLAIMS if numbers is None or claim.number in numbers]
    for i, claim in enumerate(checked):
        if claim.number in COMPARING:
            checked[i] = replace(claim, conditions=conditions)
    return runs, checked


def _depends(holding: Sequence[str], failing: Sequence[str]) -> str:
    """Say whether the training region or the kind of cohort makes the difference."""
    kinds = {condition.partition(", trained on ")[0] for condition in holding}
    if kinds.isdisjoint(condition.partition(", trained on ")[0] for condition in failing):
        return "the preset of the cohorts"
    return "the training region, on which the letter is silent"


#: Claims that compare the strategies.
COMPARING = (3, 4, 10, 11)

_MAPS = {"median abs(E)": "median_abs_error", "r": "pearson"}
_MAPS_AGAINST_TRUTH = {"median abs(E)": "median_abs_error_truth", "r": "pearson_truth"}
_K_AND_T2T = ("K", "T2t")
_FOUR = "for training on body and on lesion and for both presets of synthetic cohorts"

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
        "mean over patients, algorithms and metrics of abs(BI) and of DI lower for s2s in every "
        f"cohort, {_FOUR}",
        (
            Reading("all metrics", rules.lower_in_s2s(rules.INDICES)),
            Reading("without T2v", rules.lower_in_s2s(rules.INDICES, without=("T2v",))),
        ),
    ),
    Claim(
        4,
        "Variation between metrics exceeds variation between algorithms, more so in m2m",
        "larger between metrics (no figure printed)",
        "standard deviation of the mean abs(BI), and DI, over metrics / over algorithms > 1 in "
        f"both strategies and larger in m2m, in every cohort, {_FOUR}",
        (
            Reading("all metrics", rules.metrics_vary_more()),
            Reading("without T2v", rules.metrics_vary_more("T2v")),
        ),
    ),
    Claim(
        5,
        "Cohort 1 is predicted better than cohort 2",
        "better in cohort 1 (no figure printed)",
        "mean abs(BI) and mean DI lower in the first cohort (by name) for both strategies",
        (
            Reading("all metrics", rules.first_better()),
            Reading("without T2v", rules.first_better("T2v")),
        ),
    ),
    Claim(
        6,
        "Algorithms do not differ significantly within a strategy",
        "no significant difference (test not named)",
        "abs(BI) and DI of each cohort and strategy, patients as unit: neither Friedman's test "
        "nor "
        f"a Wilcoxon pair has p < {ALPHA} (Holm over all of a run), and all pairs are equivalent "
        "(TOST, margin 10 % of the median index); a difference decides against the claim, lack of "
        "equivalence leaves it open",
        (
            Reading("all metrics", rules.no_difference()),
            Reading("without T2v", rules.no_difference("T2v")),
        ),
    ),
    Claim(
        7,
        "BI and DI fall with the number of training patients and level off about N = 5",
        "about N = 5",
        "mean abs(BI) and DI at N = 5 below N = 1, and from N = 5 on within 10 % of the value at "
        f"the largest N (at least {curves.LONG_CURVE}), in both strategies",
        (
            Reading("all metrics", curves.levels_off()),
            Reading("without T2v", curves.levels_off("T2v")),
        ),
    ),
    Claim(
        8,
        "mlNN is good already at N = 2",
        "N = 2",
        "mean abs(BI) and DI of mlNN at N = 2 at most 10 % above its own at the largest N, and "
        "not "
        "above the median of the other algorithms at N = 2, in both strategies",
        (Reading("own level and others", curves.early),),
    ),
    Claim(
        9,
        "The fluctuations of DI for N = 5 to 15 come mainly from Dv",
        "mainly Dv (no figure printed)",
        "over training sizes from 5 on, more than half of the sum over metrics of the variance of "
        "DI is that of Dv, in both strategies",
        (
            Reading("all metrics", curves.mainly_dv()),
            Reading("without T2v", curves.mainly_dv("T2v")),
        ),
    ),
    Claim(
        10,
        "K and T2t are visibly worse in m2m",
        "visible in the maps (no figure printed)",
        "K and T2t, in every cohort: mean over patients and algorithms of the median of abs(E) "
        f"higher and of Pearson's r lower in m2m, {_FOUR}",
        (
            Reading(
                "against the reference",
                rules.lower_in_s2s(_MAPS, metrics=_K_AND_T2T, higher=("r",)),
            ),
            Reading(
                "against the truth",
                rules.lower_in_s2s(_MAPS_AGAINST_TRUTH, metrics=_K_AND_T2T, higher=("r",)),
            ),
        ),
    ),
    Claim(
        11,
        "Maps fitted to signals of s2s vary less between algorithms than maps of m2m",
        "less in s2s (no figure printed)",
        "standard deviation over algorithms of a patient's signed BI, and of its DI, mean over "
        f"patients and metrics, lower for s2s in every cohort, {_FOUR}",
        (
            Reading("all metrics", rules.varies_less()),
            Reading("without T2v", rules.varies_less("T2v")),
        ),
    ),
)
