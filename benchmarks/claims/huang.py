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
_MATCHED = 0.9  # sensitivity at which false positives are compared
_LOST_OF_STATUS = 0.1  # of the sensitivity of lesions of one status, at equal sensitivity of all
_STATUSES = ("new", "grown", "stable")
_BOTH = "ensemble, marked by both"
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


def metastasis_board(
    runs: Mapping[str | tuple[str, str], _Tables], *, least_runs: int = 3
) -> pd.DataFrame:
    """
    Check the study's claims with evaluations over several seeds.

    `runs` gives, by the name of the run, such as its seed, what `evaluate_segmentations` gave for
    methods that `method_name` names, "ensemble" (the labels of a `SensitivitySpecificityEnsemble`)
    and the families "JVSS" and "SSE". A name that is a pair is a world, such as "hard world", and
    the run in it: claims are decided in each world. Claims whose methods are missing cannot be
    told.
    """
    named = []
    for name, tables in runs.items():
        world, run = ("", name) if isinstance(name, str) else name
        named.append(Run(world, run, tables))
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


def _fewer_false(form: str, level: float = _MATCHED) -> _Rule:
    """Compare false positives with and without use of a prior scan where both find as many."""
    return lambda tables: [_false_positives(tables, form, "with prior", 0.7, level)]


def _not_more_false(form: str) -> _Rule:
    return lambda tables: [_false_positives(tables, form, "without prior", 1.02, _MATCHED)]


def _false_positives(tables: _Tables, form: str, part: str, factor: float, level: float) -> Check:
    name, plain = method_name("JVSS", _SENSITIVE, form), method_name("JVSS", _SENSITIVE)
    limit = factor * _matched(tables, plain, part, level)
    value = _matched(tables, name, part, level)
    against = f"{factor:g} × no prior"
    return Check(f"false positives at {level:g}, {form}", value, "<=", limit, against=against)


def _matched(
    tables: _Tables,
    method: str,
    part: str,
    level: float,
    measure: str = "false_positives_per_scan",
) -> float:
    """Read a figure of a method at the threshold that gives a sensitivity."""
    table = tables.get("matched")
    where = f"{measure} of {method} at sensitivity {level:g}"
    if table is None:
        raise MissingEvidence(where)
    is_row = (table["method"] == method) & (table["part"] == part)
    values = table.loc[is_row & np.isclose(table["sensitivity"], level), measure].dropna()
    if not len(values):
        raise MissingEvidence(f"{where} ({part})")
    return float(values.iloc[0])


def _no_status_is_lost(form: str) -> _Rule:
    """Compare sensitivity by status, where all lesions together are found as often."""

    def checks(tables: _Tables) -> list[Check]:
        name, plain = method_name("JVSS", _SENSITIVE, form), method_name("JVSS", _SENSITIVE)
        result = []
        for status in _STATUSES:
            limit = _matched(tables, plain, "with prior", _MATCHED, status) - _LOST_OF_STATUS
            value = _matched(tables, name, "with prior", _MATCHED, status)
            against = f"no prior − {_LOST_OF_STATUS:g}"
            result.append(Check(f"found of {status}, {form}", value, ">=", limit, against=against))
        return result

    return checks


def _channel_is_worse(ending: str) -> _Rule:
    def checks(tables: _Tables) -> list[Check]:
        channel, path = (
            method_name("JVSS", _SENSITIVE, form + ending)
            for form in ("prior as channel", "prior")
        )
        value = _matched(tables, channel, "with prior", _MATCHED)
        limit = _matched(tables, path, "with prior", _MATCHED)
        quantity = f"false positives at {_MATCHED:g}, channel"
        return [Check(quantity, value, ">", limit, against="path")]

    return checks


def _kept_and_marked_by_both(tables: _Tables) -> list[Check]:
    union = _value(tables, "ensemble", "sensitivity")
    sensitive = _value(tables, method_name("JVSS", _SENSITIVE, "prior"), "sensitivity")
    found = _value(tables, _BOTH, "sensitivity")
    limit = (1 - _as_sensitive(tables, found)["precision"]) / 2
    false = 1 - _value(tables, _BOTH, "precision")
    return [
        Check("sensitivity, union", union, ">=", sensitive, against="sensitive model"),
        Check(
            "1 − precision, marked by both",
            false,
            "<=",
            limit,
            against="half of BCE's, as sensitive",
        ),
    ]


def _as_sensitive(tables: _Tables, sensitivity: float) -> Mapping[str, float]:
    """Read BCE's curve where its threshold makes it find as many."""
    curve = tables["curves"][tables["curves"]["method"] == "BCE"]
    if not len(curve):
        raise MissingEvidence("the curve of BCE")
    point = precision_at_sensitivity(curve, sensitivity)
    if np.isnan(point["precision"]):
        raise MissingEvidence(f"BCE at sensitivity {sensitivity:.3f}")
    return point


def _most_by_both(tables: _Tables) -> list[Check]:
    row = _review(tables)
    share = row["both_sensitivity"] / row["sensitivity"]
    limit = _as_sensitive(tables, row["sensitivity"])["false_positives_per_scan"]
    false = _value(tables, "ensemble", "false_positives_per_scan")
    return [
        Check("share marked by both of what is found", share, ">=", 0.8),
        Check("false positives per scan, union", false, "<=", limit, against="BCE, as sensitive"),
    ]


def _few_candidates(tables: _Tables) -> list[Check]:
    rate = _review(tables)["false_candidates_per_scan"]
    return [Check("false candidates per scan", rate, "<=", 1.5)]


def _review(tables: _Tables) -> pd.Series:
    review = tables["ensemble"][tables["ensemble"]["method"] == "ensemble"]
    if not len(review):
        raise MissingEvidence("the ensemble")
    return review.iloc[0]


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
        "36 % fewer (247 to 158), 45 % where there is a prior scan, at less sensitivity (.946 to "
        ".932)",
        "in patients with a prior scan at most .7 × the false positives, both at the thresholds "
        f"that find {_MATCHED:g} of their lesions (α = .995)",
        (
            Reading("at .9", _fewer_false("prior")),
            Reading("at .85", _fewer_false("prior", 0.85)),
            Reading("at .95", _fewer_false("prior", 0.95)),
            Reading("by status", _no_status_is_lost("prior")),
            Reading("zeros, as published", _fewer_false("prior as zeros")),
        ),
    ),
    Claim(
        11,
        "Patients without a prior scan do not pay for it",
        "no figure of theirs alone",
        "in patients without a prior scan at most 1.02 × the false positives where "
        f"{_MATCHED:g} of their lesions are found (α = .995)",
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
        f"the misregistration), where {_MATCHED:g} of their lesions are found",
        (
            Reading("badly placed", _channel_is_worse(", moved")),
            Reading("as in training", _channel_is_worse("")),
        ),
    ),
    Claim(
        13,
        "The ensemble keeps the sensitive model's findings; what both models mark is as precise "
        "as the specific one",
        "sensitivity .932; precision .996 of what both mark, BCE .691",
        "sensitivity of the union at least the sensitive model's; 1 − precision of what both mark "
        "at most half of BCE's where its threshold finds as many",
        (Reading("kept and marked by both", _kept_and_marked_by_both),),
    ),
    Claim(
        14,
        "Both models mark most lesions, and few candidates are left",
        ".24 true and 1.5 false candidates a scan",
        "at least .8 of the found lesions marked by both; the union's false positives at most "
        "BCE's where its threshold finds as many",
        (
            Reading("as sensitive", _most_by_both),
            Reading("1.5 candidates a scan", _few_candidates),
        ),
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
