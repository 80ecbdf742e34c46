"""The study's claims about finding metastases, checked with the tables of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from dmrifit.boards import Check, Claim, MissingEvidence, Reading, Run, build_board
from metastasis.curves import precision_at_sensitivity

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ALPHAS", "CLAIMS", "START", "metastasis_board", "method_name"]

#: Weights of sensitivity that the study reports, from sensitive to specific.
ALPHAS = (1.0, 0.995, 0.99, 0.95, 0.9, 0.5)
#: What the first training is called, by cross-entropy, that others go on from.
START = "start"

_SENSITIVE, _SPECIFIC = 0.995, 0.5
_LOST = 0.03  # of sensitivity that counts as no loss
_SAME = 0.02  # of mDSC
_ENSEMBLE, _SURE = "ensemble", "ensemble, confirmed"

_Tables = Mapping[str, "pd.DataFrame"]
_Checks = Callable[[_Tables], Sequence[Check]]


def method_name(loss: str, alpha: float | None = None, form: str = "") -> str:
    """
    Name a method as the claims know it.

    Parameters
    ----------
    loss : str
        "BCE", "JVSS", "SSE" or "VSS".
    alpha : float, optional
        Weight of sensitivity in the loss.
    form : str, default=""
        What else it is: "prior", "prior as zeros", "prior as channel", each perhaps with "moved" for prior scans that
        lie worse on the images, or "U-Net"; `START` behind it for the training that others go on from.

    Returns
    -------
    str
        For example "JVSS 0.995, prior".
    """
    weighed = loss if alpha is None else f"{loss} {alpha:g}"
    return f"{weighed}, {form}" if form else weighed


def metastasis_board(runs: Mapping[str, _Tables], *, least_runs: int = 3) -> pd.DataFrame:
    """
    Check the study's claims with evaluations over several seeds.

    Parameters
    ----------
    runs : mapping of str to dict of DataFrame
        By the name of the run, such as its seed, what `evaluate_segmentations` gave for methods that `method_name`
        names, "ensemble" (the labels of a `SensitivitySpecificityEnsemble`) and the families "JVSS" and "SSE".
    least_runs : int, default=3
        With fewer, nothing is decided.

    Returns
    -------
    DataFrame
        A row for each claim, as `dmrifit.boards.build_board` gives it. Claims whose methods are missing cannot be told.

    Raises
    ------
    ValueError
        If there is no run.
    """
    return build_board(CLAIMS, [Run("", name, tables) for name, tables in runs.items()], least_runs=least_runs)


def _value(tables: _Tables, method: str, measure: str, part: str = "all") -> float:
    summary = tables["summary"]
    chosen = summary[(summary["part"] == part) & (summary["method"] == method)]
    if not len(chosen):
        msg = f"{measure} of {method}" + f" ({part})" * (part != "all")
        raise MissingEvidence(msg)
    return float(chosen[measure].iloc[0])


def _jvss(alpha: float, form: str = "") -> str:
    return method_name("JVSS", alpha, form)


def _baseline(tables: _Tables) -> Sequence[Check]:
    return [
        Check("sensitivity, BCE", _value(tables, "BCE", "sensitivity"), ">=", 0.6),
        Check("precision, BCE", _value(tables, "BCE", "precision"), ">=", 0.5),
    ]


def _ordered(measure: str, *, rising: bool) -> _Checks:
    """Ask for a strict order over α from sensitive to specific."""

    def checks(tables: _Tables) -> Sequence[Check]:
        values = {alpha: _value(tables, _jvss(alpha), measure) for alpha in ALPHAS}
        return [
            Check(f"{measure}, α = {b:g}", values[b], ">" if rising else "<", values[a], against=f"α = {a:g}")
            for a, b in pairwise(ALPHAS)
        ]

    return checks


def _ends(tables: _Tables) -> Sequence[Check]:
    first, last = ALPHAS[0], ALPHAS[-1]
    values = {
        (measure, alpha): _value(tables, _jvss(alpha), measure)
        for measure in ("sensitivity", "precision")
        for alpha in (first, last)
    }
    against = f"α = {first:g}"
    return [
        Check(f"sensitivity, α = {last:g}", values["sensitivity", last], "<", values["sensitivity", first],
              against=against),
        Check(f"precision, α = {last:g}", values["precision", last], ">", values["precision", first], against=against),
    ]  # fmt: skip


def _both(*parts: _Checks) -> _Checks:
    return lambda tables: [check for part in parts for check in part(tables)]


def _half_missed(tables: _Tables) -> Sequence[Check]:
    missed = 1 - _value(tables, _jvss(_SENSITIVE), "sensitivity")
    limit = (1 - _value(tables, "BCE", "sensitivity")) / 2
    return [Check(f"share missed, α = {_SENSITIVE:g}", missed, "<=", limit, against="half of BCE's")]


def _few_false(tables: _Tables) -> Sequence[Check]:
    found = _value(tables, _jvss(_SENSITIVE), "false_positives_per_scan")
    return [Check(f"false positives per scan, α = {_SENSITIVE:g}", found, "<=", 10.0)]


def _half_false(tables: _Tables) -> Sequence[Check]:
    false = 1 - _value(tables, _jvss(_SPECIFIC), "precision")
    limit = (1 - _value(tables, "BCE", "precision")) / 2
    return [Check(f"1 − precision, α = {_SPECIFIC:g}", false, "<=", limit, against="half of BCE's")]


def _same_overlap(*alphas: float) -> _Checks:
    def checks(tables: _Tables) -> Sequence[Check]:
        limit = _value(tables, "BCE", "mDSC") - _SAME
        return [
            Check(f"mDSC, α = {a:g}", _value(tables, _jvss(a), "mDSC"), ">=", limit, against=f"BCE − {_SAME:g}")
            for a in alphas
        ]

    return checks


def _matched(tables: _Tables) -> Sequence[Check]:
    """Compare precision where BCE has, by its threshold, at least the same sensitivity."""
    curves = tables["curves"]
    curve = curves[curves["method"] == "BCE"]
    if not len(curve):
        msg = "the curve of BCE"
        raise MissingEvidence(msg)
    found = []
    for alpha in (0.99, 0.95, 0.9):
        name = _jvss(alpha)
        other = precision_at_sensitivity(curve, _value(tables, name, "sensitivity"))["precision"]
        # A sensitivity that BCE reaches at no threshold is won.
        limit = 0.0 if np.isnan(other) else other
        own = _value(tables, name, "precision")
        found.append(Check(f"precision, α = {alpha:g}", own, ">", limit, against="BCE, as sensitive"))
    return found


def _area(tables: _Tables, name: str, kind: str, column: str) -> float:
    areas = tables["areas"]
    chosen = areas[(areas["name"] == name) & (areas["kind"] == kind)]
    if not len(chosen):
        msg = f"area of {name} over {'α' if kind == 'family' else kind}"
        raise MissingEvidence(msg)
    return float(chosen[column].iloc[0])


def _larger_area(other: str, kind: str, column: str) -> _Checks:
    def checks(tables: _Tables) -> Sequence[Check]:
        own = _area(tables, "JVSS", "family", column)
        return [Check("area, JVSS", own, ">", _area(tables, other, kind, column), against=other)]

    return checks


def _does_not_delineate(tables: _Tables) -> Sequence[Check]:
    own = _value(tables, method_name("VSS", 0.95), "mDSC")
    return [Check("mDSC, VSS alone", own, "<=", _value(tables, "BCE", "mDSC") / 2, against="half of BCE's")]


def _fewer_false(form: str, part: str, factor: float, *, kept: bool, alpha: float | None = _SENSITIVE) -> _Checks:
    """Compare with and without the prior scan, among some of the patients; without α by cross-entropy alone."""

    def checks(tables: _Tables) -> Sequence[Check]:
        if alpha is None:
            name, plain = method_name("BCE", form=f"{form} {START}"), method_name("BCE", form=START)
        else:
            name, plain = _jvss(alpha, form), _jvss(alpha)
        limit = factor * _value(tables, plain, "n_false_positives", part)
        found = [
            Check(f"false positives, {form}", _value(tables, name, "n_false_positives", part), "<=", limit,
                  against=f"{factor:g} × no prior")
        ]  # fmt: skip
        if kept:
            least = _value(tables, plain, "sensitivity", part) - _LOST
            own = _value(tables, name, "sensitivity", part)
            found.append(Check(f"sensitivity, {form}", own, ">=", least, against=f"no prior − {_LOST:g}"))
        return found

    return checks


def _channel(how: str) -> _Checks:
    def checks(tables: _Tables) -> Sequence[Check]:
        ending = f", {how}" * bool(how)
        own = _value(tables, _jvss(_SENSITIVE, f"prior as channel{ending}"), "n_false_positives", "with prior")
        limit = _value(tables, _jvss(_SENSITIVE, f"prior{ending}"), "n_false_positives", "with prior")
        return [Check("false positives, channel", own, ">", limit, against="path")]

    return checks


def _kept_and_confirmed(tables: _Tables) -> Sequence[Check]:
    union = _value(tables, _ENSEMBLE, "sensitivity")
    false = 1 - _value(tables, _SURE, "precision")
    return [
        Check("sensitivity, union", union, ">=", _value(tables, _jvss(_SENSITIVE, "prior"), "sensitivity"),
              against="sensitive model"),
        Check("1 − precision, confirmed", false, "<=", (1 - _value(tables, "BCE", "precision")) / 2,
              against="half of BCE's"),
    ]  # fmt: skip


def _most_confirmed(tables: _Tables) -> Sequence[Check]:
    review = tables["ensemble"]
    review = review[review["method"] == _ENSEMBLE]
    if not len(review):
        msg = "the ensemble"
        raise MissingEvidence(msg)
    row = review.iloc[0]
    return [
        Check("share confirmed of what is found", row["confirmed_sensitivity"] / row["sensitivity"], ">=", 0.8),
        Check("false candidates per scan", row["false_candidates_per_scan"], "<=", 1.5),
    ]


def _behind(measure: str) -> _Checks:
    def checks(tables: _Tables) -> Sequence[Check]:
        own = _value(tables, method_name("BCE", form="U-Net"), measure)
        return [Check(f"{measure}, U-Net", own, "<", _value(tables, "BCE", measure), against="DeepMedic")]

    return checks


def _in_unet(tables: _Tables) -> Sequence[Check]:
    plain = method_name("BCE", form="U-Net")
    sensitive, specific = _jvss(0.9, "U-Net"), _jvss(_SPECIFIC, "U-Net")
    return [
        Check("sensitivity, U-Net, α = 0.9", _value(tables, sensitive, "sensitivity"), ">",
              _value(tables, plain, "sensitivity"), against="BCE"),
        Check("precision, U-Net, α = 0.5", _value(tables, specific, "precision"), ">",
              _value(tables, plain, "precision"), against="BCE"),
    ]  # fmt: skip


#: What the study states about its losses, the prior scan and its ensemble.
CLAIMS = (
    Claim(
        1,
        "Cross-entropy alone is a sound baseline",
        "sensitivity .853, precision .691",
        "sensitivity of BCE at least .6 and precision at least .5; without it the others say little",
        (Reading("BCE", _baseline),),
    ),
    Claim(
        2,
        "Sensitivity falls and precision rises as α goes from 1 to .5",
        "sensitivity .974 to .802, precision .274 to .987; segment specificity .9417 to .9991",
        "segment specificity strictly ordered over all α; of lesions, sensitivity lower and precision higher at α = .5 "
        "than at α = 1",
        (
            Reading("segments, and ends", _both(_ordered("segment_specificity", rising=True), _ends)),
            Reading("precision of lesions at each step", _ordered("precision", rising=True)),
            Reading("sensitivity of lesions at each step", _ordered("sensitivity", rising=False)),
        ),
    ),
    Claim(
        3,
        "With α = .995 fewer metastases are missed than with BCE",
        ".054 missed against .147",
        "share of lesions missed at most half of BCE's",
        (Reading("half", _half_missed),),
    ),
    Claim(
        4,
        "The sensitive network does not flood the reader",
        "2.4 false positives a scan without, 1.5 with the prior scan (α = .995)",
        "at most 10 false positives a scan at α = .995, without prior",
        (Reading("10 a scan", _few_false),),
    ),
    Claim(
        5,
        "With α = .5 fewer findings are false than with BCE",
        "1 − precision .013 against .309",
        "1 − precision at most half of BCE's",
        (Reading("half", _half_false),),
    ),
    Claim(
        6,
        "Sensitivity does not cost overlap",
        "mDSC .798 (α = .995) against .789; .808 to .755 over α",
        f"mDSC of found lesions at α = .995 at least BCE's − {_SAME:g}",
        (Reading("α = .995", _same_overlap(_SENSITIVE)), Reading("all α", _same_overlap(*ALPHAS))),
    ),
    Claim(
        7,
        "JVSS is more precise than BCE at the same sensitivity",
        "precision .736, .918, .930 (α = .99, .95, .9) against .691 at less sensitivity",
        "precision at α = .99, .95 and .9 above that of BCE where its threshold makes it find as many",
        (
            Reading("matched", _matched),
            Reading("area over α against BCE's over thresholds", _larger_area("BCE", "thresholds", "area_plain")),
        ),
    ),
    Claim(
        8,
        "JVSS has a larger precision–recall area over α than SSE",
        ".9471 against .8985",
        "area under precision over sensitivity, traced over α, above that of SSE",
        (
            Reading("as published", _larger_area("SSE", "family", "area_plain")),
            Reading("strict figures", _larger_area("SSE", "family", "area")),
            Reading("strict, over sensitivities that both have", _larger_area("SSE", "family", "area_common")),
        ),
    ),
    Claim(
        9,
        "VSS without cross-entropy does not segment",
        "stated, no figure",
        "mDSC of found lesions at most half of BCE's (α = .95, trained without cross-entropy)",
        (Reading("half", _does_not_delineate),),
    ),
    Claim(
        10,
        "The prior scan cuts false positives",
        "36 % fewer (247 to 158), 45 % where there is a prior scan; sensitivity .946 to .932",
        "in patients with a prior scan at most .7 × the false positives, sensitivity at least that without "
        f"− {_LOST:g} (α = .995)",
        (
            Reading("prior", _fewer_false("prior", "with prior", 0.7, kept=True)),
            Reading("as published", _fewer_false("prior as zeros", "with prior", 0.7, kept=True)),
            Reading("as a channel", _fewer_false("prior as channel", "with prior", 0.7, kept=True)),
            Reading("cross-entropy alone", _fewer_false("prior", "with prior", 0.7, kept=True, alpha=None)),
            Reading(
                "cross-entropy, as a channel",
                _fewer_false("prior as channel", "with prior", 0.7, kept=True, alpha=None),
            ),
            Reading("α = .5", _fewer_false("prior", "with prior", 0.7, kept=True, alpha=_SPECIFIC)),
        ),
    ),
    Claim(
        11,
        "Patients without a prior scan do not pay for it",
        "no figure of theirs alone",
        "in patients without a prior scan at most 1.1 × the false positives (α = .995)",
        (
            Reading("missing ones known", _fewer_false("prior", "without prior", 1.1, kept=False)),
            Reading("zeros, as published", _fewer_false("prior as zeros", "without prior", 1.1, kept=False)),
            Reading("as a channel", _fewer_false("prior as channel", "without prior", 1.1, kept=False)),
            Reading("cross-entropy alone", _fewer_false("prior", "without prior", 1.1, kept=False, alpha=None)),
        ),
    ),
    Claim(
        12,
        "The prior scan as one more channel makes more false positives than as a path",
        "stated, at misregistered tissue; no figure",
        "more false positives in patients with a prior scan that lies badly on the image (twice the misregistration)",
        (Reading("badly placed", _channel("moved")), Reading("as in training", _channel(""))),
    ),
    Claim(
        13,
        "The ensemble keeps the sensitive model's findings and confirms with the precision of the specific one",
        "sensitivity .932; precision .996 of what is confirmed, BCE .691",
        "sensitivity of the union at least the sensitive model's; 1 − precision of the confirmed at most half of BCE's",
        (Reading("kept and confirmed", _kept_and_confirmed),),
    ),
    Claim(
        14,
        "The ensemble confirms most lesions and leaves few candidates",
        ".24 true and 1.5 false candidates a scan",
        "at least .8 of the found lesions confirmed, at most 1.5 false candidates a scan",
        (Reading("ensemble", _most_confirmed),),
    ),
    Claim(
        15,
        "A 3-D U-Net is behind DeepMedic",
        "BCE: sensitivity .720 against .853, precision .667 against .691",
        "F1 of lesions below DeepMedic's, both trained with BCE",
        (Reading("F1", _behind("f1")), Reading("sensitivity", _behind("sensitivity"))),
    ),
    Claim(
        16,
        "The loss works in a U-Net, too",
        "sensitivity .720 to .827 (α = .9), precision .667 to .836 (α = .5)",
        "sensitivity at α = .9 above BCE's and precision at α = .5 above BCE's",
        (Reading("both", _in_unet),),
    ),
)
