"""Huang et al., Medical Physics 49:5773, 2022: segmentation of brain metastases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from dmrifit.stats.claim_board import Check, Claim, MissingEvidence, Reading, Run, build_board
from metastasis.study.operating_curves import precision_at_sensitivity

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ALPHAS", "CLAIMS", "metastasis_board", "method_name"]

#: Weights of sensitivity that the study reports, from sensitive to specific.
ALPHAS = (1.0, 0.995, 0.99, 0.95, 0.9, 0.5)

_SENSITIVE, _SPECIFIC = 0.995, 0.5
_LOST = 0.03  # of sensitivity that counts as no loss
_SAME = 0.02  # of mDSC

_Tables = Mapping[str, "pd.DataFrame"]
_Rule = Callable[[_Tables], list[Check]]


def method_name(loss: str, alpha: float | None = None, form: str = "") -> str:
    """
    Name a method as the claims know it, for example "JVSS 0.995, prior".

    The form is "prior", "prior as zeros", "prior as channel", each perhaps with "moved" for prior
    scans that are worse aligned with the images, or "U-Net".
    """
    name = loss if alpha is None else f"{loss} {alpha:g}"
    return f"{name}, {form}" if form else name


def metastasis_board(runs: Mapping[str, _Tables], *, least_runs: int = 3) -> pd.DataFrame:
    """
    Check the study's claims with evaluations over several seeds.

    `runs` gives, by the name of the run, such as its seed, what `evaluate_segmentations` gave for
    methods that `method_name` names, "ensemble" (the labels of a `SensitivitySpecificityEnsemble`)
    and the families "JVSS" and "SSE". Claims whose methods are missing cannot be told.
    """
    named = [Run("", name, tables) for name, tables in runs.items()]
    return build_board(CLAIMS, named, least_runs=least_runs)


def _value(tables: _Tables, method: str, measure: str, part: str = "all") -> float:
    summary = tables["summary"]
    rows = summary[(summary["part"] == part) & (summary["method"] == method)]
    if not len(rows):
        where = "" if part == "all" else f" ({part})"
        raise MissingEvidence(f"{measure} of {method}{where}")
    return float(rows[measure].iloc[0])


def _jvss(tables: _Tables, alpha: float, measure: str) -> float:
    return _value(tables, method_name("JVSS", alpha), measure)


def _baseline(tables: _Tables) -> list[Check]:
    return [
        Check("sensitivity, BCE", _value(tables, "BCE", "sensitivity"), ">=", 0.6),
        Check("precision, BCE", _value(tables, "BCE", "precision"), ">=", 0.5),
    ]


def _rises(measure: str) -> _Rule:
    """Ask for a strict order over α from sensitive to specific."""

    def checks(tables: _Tables) -> list[Check]:
        result = []
        for before, alpha in pairwise(ALPHAS):
            value, limit = _jvss(tables, alpha, measure), _jvss(tables, before, measure)
            quantity = f"{measure}, α = {alpha:g}"
            result.append(Check(quantity, value, ">", limit, against=f"α = {before:g}"))
        return result

    return checks


def _segments_and_ends(tables: _Tables) -> list[Check]:
    first, last = ALPHAS[0], ALPHAS[-1]
    against = f"α = {first:g}"
    sensitivity = [_jvss(tables, alpha, "sensitivity") for alpha in (last, first)]
    precision = [_jvss(tables, alpha, "precision") for alpha in (last, first)]
    return [
        *_rises("segment_specificity")(tables),
        Check(f"sensitivity, α = {last:g}", sensitivity[0], "<", sensitivity[1], against=against),
        Check(f"precision, α = {last:g}", precision[0], ">", precision[1], against=against),
    ]


def _half_missed(tables: _Tables) -> list[Check]:
    missed = 1 - _jvss(tables, _SENSITIVE, "sensitivity")
    limit = (1 - _value(tables, "BCE", "sensitivity")) / 2
    return [
        Check(f"share missed, α = {_SENSITIVE:g}", missed, "<=", limit, against="half of BCE's")
    ]


def _few_false(tables: _Tables) -> list[Check]:
    rate = _jvss(tables, _SENSITIVE, "false_positives_per_scan")
    return [Check(f"false positives per scan, α = {_SENSITIVE:g}", rate, "<=", 10.0)]


def _half_false(tables: _Tables) -> list[Check]:
    false = 1 - _jvss(tables, _SPECIFIC, "precision")
    limit = (1 - _value(tables, "BCE", "precision")) / 2
    return [
        Check(f"1 − precision, α = {_SPECIFIC:g}", false, "<=", limit, against="half of BCE's")
    ]


def _same_overlap(*alphas: float) -> _Rule:
    def checks(tables: _Tables) -> list[Check]:
        limit, against = _value(tables, "BCE", "mDSC") - _SAME, f"BCE − {_SAME:g}"
        return [
            Check(f"mDSC, α = {a:g}", _jvss(tables, a, "mDSC"), ">=", limit, against=against)
            for a in alphas
        ]

    return checks


def _more_precise(tables: _Tables) -> list[Check]:
    """Compare precision where BCE has, by its threshold, at least the same sensitivity."""
    curve = tables["curves"][tables["curves"]["method"] == "BCE"]
    if not len(curve):
        raise MissingEvidence("the curve of BCE")
    result = []
    for alpha in (0.99, 0.95, 0.9):
        sensitivity = _jvss(tables, alpha, "sensitivity")
        limit = precision_at_sensitivity(curve, sensitivity)["precision"]
        if np.isnan(limit):
            # A sensitivity that BCE reaches at no threshold is won.
            limit = 0.0
        value = _jvss(tables, alpha, "precision")
        quantity = f"precision, α = {alpha:g}"
        result.append(Check(quantity, value, ">", limit, against="BCE, as sensitive"))
    return result


def _larger_area(than: str, kind: str, column: str = "area_plain") -> _Rule:
    def checks(tables: _Tables) -> list[Check]:
        value, limit = _area(tables, "JVSS", "family", column), _area(tables, than, kind, column)
        return [Check("area, JVSS", value, ">", limit, against=than)]

    return checks


def _area(tables: _Tables, name: str, kind: str, column: str) -> float:
    areas = tables["areas"]
    rows = areas[(areas["name"] == name) & (areas["kind"] == kind)]
    if not len(rows):
        raise MissingEvidence(f"area of {name} over {'α' if kind == 'family' else kind}")
    return float(rows[column].iloc[0])


def _does_not_delineate(tables: _Tables) -> list[Check]:
    value = _value(tables, method_name("VSS", 0.95), "mDSC")
    limit = _value(tables, "BCE", "mDSC") / 2
    return [Check("mDSC, VSS alone", value, "<=", limit, against="half of BCE's")]


def _fewer_false(form: str) -> _Rule:
    """Compare patients with a prior scan with and without use of that scan."""

    def checks(tables: _Tables) -> list[Check]:
        name, plain = method_name("JVSS", _SENSITIVE, form), method_name("JVSS", _SENSITIVE)
        least = _value(tables, plain, "sensitivity", "with prior") - _LOST
        sensitivity = _value(tables, name, "sensitivity", "with prior")
        against = f"no prior − {_LOST:g}"
        return [
            _false_positives(tables, form, "with prior", 0.7),
            Check(f"sensitivity, {form}", sensitivity, ">=", least, against=against),
        ]

    return checks


def _not_more_false(form: str) -> _Rule:
    return lambda tables: [_false_positives(tables, form, "without prior", 1.1)]


def _false_positives(tables: _Tables, form: str, part: str, factor: float) -> Check:
    name, plain = method_name("JVSS", _SENSITIVE, form), method_name("JVSS", _SENSITIVE)
    limit = factor * _value(tables, plain, "n_false_positives", part)
    value = _value(tables, name, "n_false_positives", part)
    against = f"{factor:g} × no prior"
    return Check(f"false positives, {form}", value, "<=", limit, against=against)


def _channel_is_worse(ending: str) -> _Rule:
    def checks(tables: _Tables) -> list[Check]:
        channel, path = (
            method_name("JVSS", _SENSITIVE, form + ending)
            for form in ("prior as channel", "prior")
        )
        value = _value(tables, channel, "n_false_positives", "with prior")
        limit = _value(tables, path, "n_false_positives", "with prior")
        return [Check("false positives, channel", value, ">", limit, against="path")]

    return checks


def _kept_and_confirmed(tables: _Tables) -> list[Check]:
    union = _value(tables, "ensemble", "sensitivity")
    sensitive = _value(tables, method_name("JVSS", _SENSITIVE, "prior"), "sensitivity")
    false = 1 - _value(tables, "ensemble, confirmed", "precision")
    limit = (1 - _value(tables, "BCE", "precision")) / 2
    return [
        Check("sensitivity, union", union, ">=", sensitive, against="sensitive model"),
        Check("1 − precision, confirmed", false, "<=", limit, against="half of BCE's"),
    ]


def _most_confirmed(tables: _Tables) -> list[Check]:
    review = tables["ensemble"][tables["ensemble"]["method"] == "ensemble"]
    if not len(review):
        raise MissingEvidence("the ensemble")
    row = review.iloc[0]
    share = row["confirmed_sensitivity"] / row["sensitivity"]
    return [
        Check("share confirmed of what is found", share, ">=", 0.8),
        Check("false candidates per scan", row["false_candidates_per_scan"], "<=", 1.5),
    ]


def _unet_is_behind(measure: str) -> _Rule:
    def checks(tables: _Tables) -> list[Check]:
        value = _value(tables, method_name("BCE", form="U-Net"), measure)
        limit = _value(tables, "BCE", measure)
        return [Check(f"{measure}, U-Net", value, "<", limit, against="DeepMedic")]

    return checks


def _works_in_unet(tables: _Tables) -> list[Check]:
    result = []
    for measure, alpha in (("sensitivity", 0.9), ("precision", _SPECIFIC)):
        value = _value(tables, method_name("JVSS", alpha, "U-Net"), measure)
        limit = _value(tables, method_name("BCE", form="U-Net"), measure)
        quantity = f"{measure}, U-Net, α = {alpha:g}"
        result.append(Check(quantity, value, ">", limit, against="BCE"))
    return result


#: What the study states about its losses, the prior scan and its ensemble.
CLAIMS = (
    Claim(
        1,
        "Cross-entropy alone is a sound baseline",
        "sensitivity .853, precision .691",
        "sensitivity of BCE at least .6 and precision at least .5; without it the others say "
        "little",
        (Reading("BCE", _baseline),),
    ),
    Claim(
        2,
        "Sensitivity falls and precision rises as α goes from 1 to .5",
        "sensitivity .974 to .802, precision .274 to .987; segment specificity .9417 to .9991",
        "segment specificity strictly ordered over all α; of lesions, sensitivity lower and "
        "precision higher at α = .5 "
        "than at α = 1",
        (
            Reading("segments, and ends", _segments_and_ends),
            Reading("precision of lesions at each step", _rises("precision")),
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
        "precision at α = .99, .95 and .9 above that of BCE where its threshold makes it find as "
        "many",
        (
            Reading("matched", _more_precise),
            Reading(
                "area over α against BCE's over thresholds", _larger_area("BCE", "thresholds")
            ),
        ),
    ),
    Claim(
        8,
        "JVSS has a larger precision–recall area over α than SSE",
        ".9471 against .8985",
        "area under precision over sensitivity, traced over α, above that of SSE",
        (
            Reading("as published", _larger_area("SSE", "family")),
            Reading("strict figures", _larger_area("SSE", "family", "area")),
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
        "in patients with a prior scan at most .7 × the false positives, sensitivity at least "
        "that without "
        f"− {_LOST:g} (α = .995)",
        (
            Reading("prior", _fewer_false("prior")),
            Reading("zeros, as published", _fewer_false("prior as zeros")),
        ),
    ),
    Claim(
        11,
        "Patients without a prior scan do not pay for it",
        "no figure of theirs alone",
        "in patients without a prior scan at most 1.1 × the false positives (α = .995)",
        (
            Reading("missing ones known", _not_more_false("prior")),
            Reading("zeros, as published", _not_more_false("prior as zeros")),
        ),
    ),
    Claim(
        12,
        "The prior scan as one more channel makes more false positives than as a path",
        "stated, at misregistered tissue; no figure",
        "more false positives in patients with a prior scan that lies badly on the image (twice "
        "the misregistration)",
        (
            Reading("badly placed", _channel_is_worse(", moved")),
            Reading("as in training", _channel_is_worse("")),
        ),
    ),
    Claim(
        13,
        "The ensemble keeps the sensitive model's findings and confirms with the precision of "
        "the specific one",
        "sensitivity .932; precision .996 of what is confirmed, BCE .691",
        "sensitivity of the union at least the sensitive model's; 1 − precision of the confirmed "
        "at most half of BCE's",
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
        (
            Reading("F1", _unet_is_behind("f1")),
            Reading("sensitivity", _unet_is_behind("sensitivity")),
        ),
    ),
    Claim(
        16,
        "The loss works in a U-Net, too",
        "sensitivity .720 to .827 (α = .9), precision .667 to .836 (α = .5)",
        "sensitivity at α = .9 above BCE's and precision at α = .5 above BCE's",
        (Reading("both", _works_in_unet),),
    ),
)
