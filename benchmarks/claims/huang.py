"""Huang et al., Medical Physics 49:5773, 2022: segmentation of brain metastases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.claims.claim_files import read_claims
from dmrifit.stats.claim_board import (
    Check,
    MissingEvidence,
    Relation,
    Run,
    build_board,
    check_claims,
)
from dmrifit.stats.verdicts import read_margins
from metastasis.segmentation.ensemble import MARKED_BY_BOTH
from metastasis.study.operating_curves import precision_at_sensitivity
from metastasis.study.reader_scores import STATUSES

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "ALPHAS",
    "CLAIMS",
    "MARGINS",
    "MARGINS_FILE",
    "WORLDS",
    "claim_figures",
    "decide_claims",
    "method_name",
]

#: What decides the claims, settled before the board was run.
MARGINS_FILE = Path(__file__).with_suffix(".toml")
MARGINS, _ = read_margins(MARGINS_FILE)

#: In which each claim is decided -> the world of `simulate_metastases`.
WORLDS = {"old phantom": "easy", "hard world": "hard"}

#: Weights of sensitivity that the study reports, from sensitive to specific.
ALPHAS = (1.0, 0.995, 0.99, 0.95, 0.9, 0.5)

_SENSITIVE, _SPECIFIC = 0.995, 0.5
_MATCHED = 0.9  # sensitivity at which false positives are compared
_ENSEMBLE = "ensemble"
_BOTH = f"{_ENSEMBLE}, {MARKED_BY_BOTH}"

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


def claim_figures(runs: Mapping[tuple[str, str], _Tables]) -> pd.DataFrame:
    """
    List the numbers that the claims are decided by.

    `runs` gives, by world (of `WORLDS`) and seed, what `evaluate_segmentations` gave for methods
    that `method_name` names, "ensemble" (the labels of a `SensitivitySpecificityEnsemble`) and the
    families "JVSS" and "SSE". What is missing is named in the place of its numbers.
    """
    return check_claims(CLAIMS, [Run(*name, tables) for name, tables in runs.items()])


def decide_claims(figures: pd.DataFrame, *, factor: float = 1.0) -> pd.DataFrame:
    """Decide claims in both worlds by the figures of seeds, margins this many times as wide."""
    claims = [replace(claim, conditions=tuple(WORLDS)) for claim in CLAIMS]
    names = figures[["condition", "run"]].drop_duplicates()
    runs = [Run(world, seed, None) for world, seed in names.itertuples(index=False)]
    margins = {name: margin.scaled(factor) for name, margin in MARGINS.items()}
    return build_board(claims, runs, figures=figures, margins=margins, depends=_depends)


def _depends(_first: Sequence[str], _rest: Sequence[str]) -> str:
    return "the world"


def _value(tables: _Tables, method: str, measure: str, part: str = "all") -> float:
    summary = tables["summary"]
    rows = summary[(summary["part"] == part) & (summary["method"] == method)]
    if not len(rows):
        where = "" if part == "all" else f" ({part})"
        raise MissingEvidence(f"{measure} of {method}{where}")
    return float(rows[measure].iloc[0])


def _jvss(tables: _Tables, alpha: float, measure: str) -> float:
    return _value(tables, method_name("JVSS", alpha), measure)


def baseline(tables: _Tables) -> list[Check]:
    return [
        Check(
            "sensitivity, BCE",
            _value(tables, "BCE", "sensitivity"),
            ">=",
            0.6,
            margin="sensitivity",
        ),
        Check("precision, BCE", _value(tables, "BCE", "precision"), ">=", 0.5, margin="precision"),
    ]


def rises(measure: str, margin: str) -> _Rule:
    """Ask for a strict order over α from sensitive to specific."""

    def checks(tables: _Tables) -> list[Check]:
        result = []
        for before, alpha in pairwise(ALPHAS):
            value, limit = _jvss(tables, alpha, measure), _jvss(tables, before, measure)
            quantity = f"{measure}, α = {alpha:g}"
            against = f"α = {before:g}"
            result.append(Check(quantity, value, ">", limit, against=against, margin=margin))
        return result

    return checks


def segments_and_ends(tables: _Tables) -> list[Check]:
    first, last = ALPHAS[0], ALPHAS[-1]
    against = f"α = {first:g}"
    sensitivity = [_jvss(tables, alpha, "sensitivity") for alpha in (last, first)]
    precision = [_jvss(tables, alpha, "precision") for alpha in (last, first)]
    return [
        *rises("segment_specificity", "segments")(tables),
        Check(
            f"sensitivity, α = {last:g}",
            sensitivity[0],
            "<",
            sensitivity[1],
            against=against,
            margin="sensitivity",
        ),
        Check(
            f"precision, α = {last:g}",
            precision[0],
            ">",
            precision[1],
            against=against,
            margin="precision",
        ),
    ]


def half_missed(tables: _Tables) -> list[Check]:
    missed = 1 - _jvss(tables, _SENSITIVE, "sensitivity")
    limit = (1 - _value(tables, "BCE", "sensitivity")) / 2
    quantity, against = f"share missed, α = {_SENSITIVE:g}", "half of BCE's"
    return [Check(quantity, missed, "<=", limit, against=against, margin="sensitivity")]


def few_false(tables: _Tables) -> list[Check]:
    rate = _jvss(tables, _SENSITIVE, "false_positives_per_scan")
    quantity = f"false positives per scan, α = {_SENSITIVE:g}"
    return [Check(quantity, rate, "<=", 10.0, margin="false_positives")]


def half_false(tables: _Tables) -> list[Check]:
    false = 1 - _jvss(tables, _SPECIFIC, "precision")
    limit = (1 - _value(tables, "BCE", "precision")) / 2
    quantity, against = f"1 − precision, α = {_SPECIFIC:g}", "half of BCE's"
    return [Check(quantity, false, "<=", limit, against=against, margin="precision")]


def same_overlap(*alphas: float) -> _Rule:
    def checks(tables: _Tables) -> list[Check]:
        limit = _value(tables, "BCE", "mDSC")
        result = []
        for alpha in alphas:
            value = _jvss(tables, alpha, "mDSC")
            quantity = f"mDSC, α = {alpha:g}"
            result.append(Check(quantity, value, ">=", limit, against="BCE", margin="overlap"))
        return result

    return checks


def more_precise(tables: _Tables) -> list[Check]:
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
        against = "BCE, as sensitive"
        result.append(Check(quantity, value, ">", limit, against=against, margin="precision"))
    return result


def larger_area(than: str, kind: str, column: str = "area_plain") -> _Rule:
    def checks(tables: _Tables) -> list[Check]:
        value, limit = _area(tables, "JVSS", "family", column), _area(tables, than, kind, column)
        return [Check("area, JVSS", value, ">", limit, against=than, margin="area")]

    return checks


def _area(tables: _Tables, name: str, kind: str, column: str) -> float:
    areas = tables["areas"]
    rows = areas[(areas["name"] == name) & (areas["kind"] == kind)]
    if not len(rows):
        raise MissingEvidence(f"area of {name} over {'α' if kind == 'family' else kind}")
    return float(rows[column].iloc[0])


def does_not_delineate(tables: _Tables) -> list[Check]:
    value = _value(tables, method_name("VSS", 0.95), "mDSC")
    limit = _value(tables, "BCE", "mDSC") / 2
    against = "half of BCE's"
    return [Check("mDSC, VSS alone", value, "<=", limit, against=against, margin="overlap")]


def fewer_false(form: str, level: float = _MATCHED) -> _Rule:
    """Compare false positives with and without use of a prior scan where both find as many."""
    return lambda tables: [_false_positives(tables, form, "with prior", "<", "saving", level)]


def not_more_false(form: str) -> _Rule:
    return lambda tables: [_false_positives(tables, form, "without prior", "<=", "price")]


def _false_positives(
    tables: _Tables,
    form: str,
    part: str,
    relation: Relation,
    margin: str,
    level: float = _MATCHED,
) -> Check:
    name, plain = method_name("JVSS", _SENSITIVE, form), method_name("JVSS", _SENSITIVE)
    limit = _matched(tables, plain, part, level)
    value = _matched(tables, name, part, level)
    quantity = f"false positives at {level:g}, {form}"
    return Check(quantity, value, relation, limit, against="no prior", margin=margin)


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


def no_status_is_lost(form: str, plain: str = "") -> _Rule:
    """Compare sensitivity by status, where all lesions together are found as often."""

    def checks(tables: _Tables) -> list[Check]:
        methods = [method_name("JVSS", _SENSITIVE, name) for name in (form, plain)]
        result = []
        for status in _statuses(tables):
            value, limit = (
                _matched(tables, method, "with prior", _MATCHED, status) for method in methods
            )
            quantity, against = f"found of {status}, {form}", plain or "no prior"
            result.append(Check(quantity, value, ">=", limit, against=against, margin="status"))
        return result

    return checks


def _statuses(tables: _Tables) -> list[str]:
    """List the statuses that lesions of a world have; none has shrunk in the old phantom."""
    status = tables.get("status")
    if status is None or not len(status):
        raise MissingEvidence("sensitivity by status")
    return [name for name in STATUSES if name in set(status["status"])]


def _of_status(tables: _Tables, method: str, status: str) -> float:
    table = tables["status"]
    rows = table[(table["method"] == method) & (table["status"] == status)]
    if not len(rows):
        raise MissingEvidence(f"sensitivity of {method} by status")
    return float(rows["sensitivity"].iloc[0])


def channel_is_worse(ending: str) -> _Rule:
    def checks(tables: _Tables) -> list[Check]:
        channel, path = (
            method_name("JVSS", _SENSITIVE, form + ending)
            for form in ("prior as channel", "prior")
        )
        value = _matched(tables, channel, "with prior", _MATCHED)
        limit = _matched(tables, path, "with prior", _MATCHED)
        quantity = f"false positives at {_MATCHED:g}, channel"
        return [Check(quantity, value, ">", limit, against="path", margin="false_positives")]

    return checks


def kept_and_marked_by_both(tables: _Tables) -> list[Check]:
    union = _value(tables, "ensemble", "sensitivity")
    sensitive = _value(tables, method_name("JVSS", _SENSITIVE, "prior"), "sensitivity")
    found = _value(tables, _BOTH, "sensitivity")
    limit = (1 - _as_sensitive(tables, found)["precision"]) / 2
    false = 1 - _value(tables, _BOTH, "precision")
    return [
        Check(
            "sensitivity, union",
            union,
            ">=",
            sensitive,
            against="sensitive model",
            margin="sensitivity",
        ),
        Check(
            "1 − precision, marked by both",
            false,
            "<=",
            limit,
            against="half of BCE's, as sensitive",
            margin="precision",
        ),
    ]


def every_status_is_kept(tables: _Tables) -> list[Check]:
    sensitive = method_name("JVSS", _SENSITIVE, "prior")
    result = []
    for status in _statuses(tables):
        value, limit = (_of_status(tables, name, status) for name in (_ENSEMBLE, sensitive))
        quantity, against = f"found of {status}, union", "sensitive model"
        result.append(Check(quantity, value, ">=", limit, against=against, margin="status"))
    return result


def _as_sensitive(tables: _Tables, sensitivity: float) -> Mapping[str, float]:
    """Read BCE's curve where its threshold makes it find as many."""
    curve = tables["curves"][tables["curves"]["method"] == "BCE"]
    if not len(curve):
        raise MissingEvidence("the curve of BCE")
    point = precision_at_sensitivity(curve, sensitivity)
    if np.isnan(point["precision"]):
        raise MissingEvidence(f"BCE at sensitivity {sensitivity:.3f}")
    return point


def most_by_both(tables: _Tables) -> list[Check]:
    row = _review(tables)
    share = row["both_sensitivity"] / row["sensitivity"]
    limit = _as_sensitive(tables, row["sensitivity"])["false_positives_per_scan"]
    false = _value(tables, "ensemble", "false_positives_per_scan")
    return [
        Check("share marked by both of what is found", share, ">=", 0.8, margin="sensitivity"),
        Check(
            "false positives per scan, union",
            false,
            "<=",
            limit,
            against="BCE, as sensitive",
            margin="false_positives",
        ),
    ]


def most_of_each_status(tables: _Tables) -> list[Check]:
    result = []
    for status in _statuses(tables):
        found, both = (_of_status(tables, name, status) for name in (_ENSEMBLE, _BOTH))
        share = both / found if found else float("nan")
        quantity = f"share marked by both of {status}"
        result.append(Check(quantity, share, ">=", 0.8, margin="status"))
    return result


def few_candidates(tables: _Tables) -> list[Check]:
    rate = _review(tables)["false_candidates_per_scan"]
    return [Check("false candidates per scan", rate, "<=", 1.5, margin="false_positives")]


def _review(tables: _Tables) -> pd.Series:
    review = tables["ensemble"][tables["ensemble"]["method"] == "ensemble"]
    if not len(review):
        raise MissingEvidence("the ensemble")
    return review.iloc[0]


def unet_is_behind(measure: str, margin: str) -> _Rule:
    def checks(tables: _Tables) -> list[Check]:
        value = _value(tables, method_name("BCE", form="U-Net"), measure)
        limit = _value(tables, "BCE", measure)
        quantity = f"{measure}, U-Net"
        return [Check(quantity, value, "<", limit, against="DeepMedic", margin=margin)]

    return checks


def works_in_unet(tables: _Tables) -> list[Check]:
    result = []
    for measure, alpha in (("sensitivity", 0.9), ("precision", _SPECIFIC)):
        value = _value(tables, method_name("JVSS", alpha, "U-Net"), measure)
        limit = _value(tables, method_name("BCE", form="U-Net"), measure)
        quantity = f"{measure}, U-Net, α = {alpha:g}"
        result.append(Check(quantity, value, ">", limit, against="BCE", margin=measure))
    return result


#: What the study states.
CLAIMS = read_claims(Path(__file__).with_name("huang_claims.toml"), globals())
