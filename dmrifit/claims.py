"""The eleven claims of the study on predicting the advanced protocol, checked one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dmrifit import curves, rules
from dmrifit.boards import BOARD_COLUMNS, Claim, Reading, Run, build_board, check_claims
from dmrifit.evidence import ALPHA, PRESETS, REGIONS, condition_name, study_runs
from dmrifit.rules import BI, BOTH, DI, SIGNED, TRUTH

if TYPE_CHECKING:
    import pandas as pd

    from dmrifit.evaluation import Evaluation

__all__ = ["BOARD_COLUMNS", "CLAIMS", "LEAST_SEEDS", "claim_figures", "claims_board"]

#: Fewer seeds decide nothing.
LEAST_SEEDS = 3


def claims_board(evaluation: Evaluation | Sequence[Evaluation], *, claims: Sequence[int] | None = None) -> pd.DataFrame:
    """
    Check the study's eleven claims.

    Runs are told apart by their seeds, conditions by the region that was trained on and by the preset of
    synthetic cohorts. A claim is decided in a condition by at least three seeds that agree. Claims that
    compare the two strategies (3, 4, 10, 11) need both regions and, for synthetic cohorts, both presets: they
    hold if they hold in all four. Training within a cohort counts, at the largest number of training
    patients; controls and S0, which is no property of the tissue, are left out. The verdicts are findings:
    nothing here prefers one to another.

    Parameters
    ----------
    evaluation : Evaluation or sequence of Evaluation
        Those of several seeds, training regions (``train_mask``) and presets together.
    claims : sequence of int, optional
        Numbers of the claims to check; by default all.

    Returns
    -------
    DataFrame
        A row for each claim: ``claim`` (number), ``statement``, ``study`` (the figure that the letter prints),
        ``ours`` (mean ± standard deviation over seeds, a line for each condition), ``rule`` (that decides),
        ``verdict`` ("holds", "does not hold", "cannot be told", or "depends on the training region, on which
        the letter is silent"), ``readings`` (a line with the verdict of each reading of the letter; the first
        is the one that decides), ``reason`` (found in the numbers) and ``n_runs`` (seeds of the condition
        that has fewest). `claim_figures` gives every number.

    Raises
    ------
    ValueError
        If there is no evaluation, none has scores of an algorithm trained within its cohort, or a number is
        that of no claim.

    References
    ----------
    Macarro et al., J Magn Reson Imaging 61(2):1018–1021, 2025.
    """
    runs, chosen = _runs_and_claims(evaluation, claims)
    return build_board(chosen, runs, least_runs=LEAST_SEEDS, depends=_depends)


def claim_figures(
    evaluation: Evaluation | Sequence[Evaluation], *, claims: Sequence[int] | None = None
) -> pd.DataFrame:
    """
    List the numbers that the board of claims is made of.

    Parameters
    ----------
    evaluation : Evaluation or sequence of Evaluation
        As for `claims_board`.
    claims : sequence of int, optional
        Numbers of the claims to check; by default all.

    Returns
    -------
    DataFrame
        One row for each check of a reading in a run: ``claim``, ``reading``, ``condition``, ``run`` (the
        seed), ``where`` (cohort, strategy), ``quantity``, ``value``, ``relation``, ``limit``, ``against``
        (what the limit is, if measured) and ``verdict``.

    Raises
    ------
    ValueError
        As for `claims_board`.
    """
    runs, chosen = _runs_and_claims(evaluation, claims)
    return check_claims(chosen, runs)


def _runs_and_claims(
    evaluation: Evaluation | Sequence[Evaluation], numbers: Sequence[int] | None
) -> tuple[list[Run], list[Claim]]:
    unknown = sorted(set(numbers or ()) - {claim.number for claim in CLAIMS})
    if unknown:
        msg = f"claims are numbered 1 to {len(CLAIMS)}, not {', '.join(map(str, unknown))}"
        raise ValueError(msg)
    evaluations: list[Any] = [evaluation] if hasattr(evaluation, "scores") else list(evaluation)
    if not evaluations:
        msg = "claims_board needs at least one evaluation"
        raise ValueError(msg)
    runs = study_runs(evaluations)
    kinds = list(dict.fromkeys(run.evidence.kind for run in runs))
    # Where one preset was simulated, both are needed; scans of patients have none.
    if any(kind in PRESETS for kind in kinds):
        kinds = [*PRESETS, *(kind for kind in kinds if kind not in PRESETS)]
    needed = tuple(condition_name(kind, region) for kind in kinds for region in REGIONS)
    chosen = [claim for claim in CLAIMS if numbers is None or claim.number in numbers]
    return runs, [replace(claim, conditions=needed) if claim.number in COMPARING else claim for claim in chosen]


def _depends(holding: Sequence[str], failing: Sequence[str]) -> str:
    """Say whether the training region or the kind of cohort makes the difference."""
    kinds = {name.partition(", trained on ")[0] for name in holding}
    if any(name.partition(", trained on ")[0] in kinds for name in failing):
        return "the training region, on which the letter is silent"
    return "the preset of the cohorts"


#: Claims that compare the strategies.
COMPARING = (3, 4, 10, 11)

_ALL_METRICS = {"median abs(E)": "median_abs_error", "r": "pearson"}
_WORST = "mean abs(E) of the worst"
_FOUR = "for training on body and on lesion and for both presets of synthetic cohorts"

CLAIMS = (
    Claim(
        1,
        "The mean relative error of signals predicted by s2s is below 12 %",
        "< 12 %",
        "mean of abs(E) over voxels, unseen contrasts, patients and algorithms < 0.12 in every cohort",
        (
            Reading("absolute error, lesion", rules.signal_error("relative_error", "mean abs(E)", "lesion")),
            Reading("absolute error, body", rules.signal_error("relative_error", "mean abs(E)", "body")),
            Reading("signed error, lesion", rules.signal_error("signed_relative_error", "abs(mean E)", "lesion")),
            Reading("signed error, body", rules.signal_error("signed_relative_error", "abs(mean E)", "body")),
            Reading("median absolute error", rules.signal_error("median_relative_error", "median abs(E)")),
            Reading("worst contrast", rules.signal_error("relative_error", _WORST, worst="contrast")),
            Reading("worst algorithm", rules.signal_error("relative_error", _WORST, worst="algorithm")),
            Reading("worst patient", rules.signal_error("relative_error", _WORST, worst="patient")),
        ),
        rules.explain_1,
    ),
    Claim(
        2,
        "Correlations of signals exceed 0.8 in both cohorts; those of metrics are lower",
        "> 0.8 for signals; lower for metrics",
        "Pearson's r over a patient's voxels, median over patients, mean over algorithms and unseen images > 0.8 "
        "in both cohorts, and every metric's r below it in both strategies",
        (
            Reading("mean over images", rules.signal_correlation("mean image")),
            Reading("worst image", rules.signal_correlation("worst image")),
            Reading("pooled over images", rules.signal_correlation("pooled")),
            Reading("mean over images, mean over metrics", rules.signal_correlation("mean image", each_metric=False)),
            Reading("mean over images, body", rules.signal_correlation("mean image", region="body")),
        ),
        rules.explain_2,
    ),
    Claim(
        3,
        "BI and DI of s2s are below those of m2m",
        "lower mean BI and DI (no figure printed)",
        f"mean over patients, algorithms and metrics of abs(BI) and of DI lower for s2s in every cohort, {_FOUR}",
        (
            Reading("|BI| and DI", rules.lower_in_s2s(BOTH)),
            Reading("|BI| and DI without T2v", rules.lower_in_s2s(BOTH, without=("T2v",))),
            Reading("|BI|", rules.lower_in_s2s(BI)),
            Reading("DI", rules.lower_in_s2s(DI)),
            Reading("signed BI", rules.lower_in_s2s(SIGNED)),
            Reading("against the truth", rules.lower_in_s2s(TRUTH)),
            Reading("against the truth without T2v", rules.lower_in_s2s(TRUTH, without=("T2v",))),
        ),
        rules.explain_3,
    ),
    Claim(
        4,
        "Variation between metrics exceeds variation between algorithms, more so in m2m",
        "larger between metrics (no figure printed)",
        "standard deviation of the mean abs(BI), and DI, over metrics / over algorithms > 1 in both strategies and "
        f"larger in m2m, in every cohort, {_FOUR}",
        (
            Reading("|BI| and DI", rules.metrics_vary_more(BOTH)),
            Reading("|BI| and DI without T2v", rules.metrics_vary_more(BOTH, without=("T2v",))),
            Reading("signed BI and DI", rules.metrics_vary_more({**SIGNED, **DI})),
            Reading("|BI|", rules.metrics_vary_more(BI)),
            Reading("DI", rules.metrics_vary_more(DI)),
            Reading("whether or not more so in m2m", rules.metrics_vary_more(BOTH, more_in_m2m=False)),
        ),
        rules.explain_4,
    ),
    Claim(
        5,
        "Cohort 1 is predicted better than cohort 2",
        "better in cohort 1 (no figure printed)",
        "mean abs(BI) and mean DI lower in the first cohort (by name) for both strategies",
        (
            Reading("|BI| and DI", rules.first_better(BOTH)),
            Reading("|BI| and DI without T2v", rules.first_better(BOTH, without=("T2v",))),
            Reading("s2s", rules.first_better(BOTH, strategies=("s2s",))),
            Reading("m2m", rules.first_better(BOTH, strategies=("m2m",))),
            Reading("|BI|", rules.first_better(BI)),
            Reading("DI", rules.first_better(DI)),
            Reading("signed BI", rules.first_better(SIGNED)),
        ),
        rules.explain_5,
    ),
    Claim(
        6,
        "Algorithms do not differ significantly within a strategy",
        "no significant difference (test not named)",
        "abs(BI) and DI of each cohort and strategy, patients as unit: neither Friedman's test nor a Wilcoxon pair "
        f"has p < {ALPHA} (Holm over all of a run), and all pairs are equivalent (TOST, margin 10 % of the median "
        "index); a difference decides against the claim, lack of equivalence leaves it open",
        (
            Reading("tests and equivalence", rules.no_difference(BOTH)),
            Reading("tests and equivalence without T2v", rules.no_difference(BOTH, without_t2v=True)),
            Reading("tests alone", rules.no_difference(BOTH, equivalence=False)),
            Reading("|BI|", rules.no_difference(BI)),
            Reading("DI", rules.no_difference(DI)),
        ),
        rules.explain_6,
    ),
    Claim(
        7,
        "BI and DI fall with the number of training patients and level off about N = 5",
        "about N = 5",
        "mean abs(BI) and DI at N = 5 below N = 1, and from N = 5 on within 10 % of the value at the largest N "
        f"(at least {curves.LONG_CURVE}), in both strategies",
        (
            Reading("both strategies", curves.levels_off(BOTH)),
            Reading("both strategies without T2v", curves.levels_off(BOTH, without=("T2v",))),
            Reading("s2s", curves.levels_off(BOTH, ("s2s",))),
            Reading("m2m", curves.levels_off(BOTH, ("m2m",))),
            Reading("a fall of more than 10 %", curves.levels_off(BOTH, fall=curves.LEVEL)),
            Reading("|BI|", curves.levels_off(BI)),
            Reading("DI", curves.levels_off(DI)),
        ),
        curves.explain_7,
    ),
    Claim(
        8,
        "mlNN is good already at N = 2",
        "N = 2",
        "mean abs(BI) and DI of mlNN at N = 2 at most 10 % above its own at the largest N, and not above the median "
        "of the other algorithms at N = 2, in both strategies",
        (
            Reading("both strategies", curves.early(("s2s", "m2m"))),
            Reading("s2s", curves.early(("s2s",))),
            Reading("m2m", curves.early(("m2m",))),
            Reading("against its own final level", curves.early(("s2s", "m2m"), others=False)),
            Reading("against the other algorithms", curves.early(("s2s", "m2m"), own=False)),
        ),
        curves.explain_8,
    ),
    Claim(
        9,
        "The fluctuations of DI for N = 5 to 15 come mainly from Dv",
        "mainly Dv (no figure printed)",
        "over training sizes from 5 on, more than half of the sum over metrics of the variance of DI is that of Dv, "
        "in both strategies",
        (
            Reading("variance", curves.mainly_dv("variance")),
            Reading("variance without T2v", curves.mainly_dv("variance", without=("T2v",))),
            Reading("covariance with the mean over metrics", curves.mainly_dv("variance of the mean")),
            Reading("largest range", curves.mainly_dv("range")),
            Reading("strategies averaged", curves.mainly_dv("variance", (None,))),
            Reading("s2s", curves.mainly_dv("variance", ("s2s",))),
            Reading("m2m", curves.mainly_dv("variance", ("m2m",))),
        ),
        curves.explain_9,
    ),
    Claim(
        10,
        "K and T2t are visibly worse in m2m",
        "visible in the maps (no figure printed)",
        "K and T2t, in every cohort: mean over patients and algorithms of the median of abs(E) higher and of "
        f"Pearson's r lower in m2m, {_FOUR}",
        (
            Reading("median abs(E) and r", rules.lower_in_s2s(_ALL_METRICS, only=("K", "T2t"), higher=("r",))),
            Reading("median abs(E)", rules.lower_in_s2s({"median abs(E)": "median_abs_error"}, only=("K", "T2t"))),
            Reading("r", rules.lower_in_s2s({"r": "pearson"}, only=("K", "T2t"), higher=("r",))),
            Reading("Spearman's r", rules.lower_in_s2s({"r": "spearman"}, only=("K", "T2t"), higher=("r",))),
            Reading("|BI|", rules.lower_in_s2s(BI, only=("K", "T2t"))),
            Reading("DI", rules.lower_in_s2s(DI, only=("K", "T2t"))),
            Reading(
                "against the truth",
                rules.lower_in_s2s(
                    {"median abs(E)": "median_abs_error_truth", "r": "pearson_truth"},
                    only=("K", "T2t"),
                    higher=("r",),
                ),
            ),
            Reading("K", rules.lower_in_s2s(_ALL_METRICS, only=("K",), higher=("r",))),
            Reading("T2t", rules.lower_in_s2s(_ALL_METRICS, only=("T2t",), higher=("r",))),
        ),
        rules.explain_10,
    ),
    Claim(
        11,
        "Maps fitted to signals of s2s vary less between algorithms than maps of m2m",
        "less in s2s (no figure printed)",
        "standard deviation over algorithms of a patient's signed BI, and of its DI, mean over patients and metrics, "
        f"lower for s2s in every cohort, {_FOUR}",
        (
            Reading("BI and DI of a patient", rules.varies_less({**SIGNED, **DI})),
            Reading("BI and DI of a patient without T2v", rules.varies_less({**SIGNED, **DI}, ("T2v",))),
            Reading("BI", rules.varies_less(SIGNED)),
            Reading("DI", rules.varies_less(DI)),
            Reading("mean |BI| and DI", rules.means_vary_less),
            Reading("maps voxel by voxel", rules.maps_vary_less),
        ),
        rules.explain_11,
    ),
)
