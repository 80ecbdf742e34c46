"""Huang et al., Medical Physics 49:5773, 2022: segmentation of brain metastases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.claims.claim_board import (
    Check,
    MissingEvidence,
    Run,
    build_board,
    check_claims,
    read_claims,
    read_margins,
)
from metastasis.segmentation.ensemble import MARKED_BY_BOTH
from metastasis.study.operating_curves import precision_at_sensitivity
from metastasis.study.reader_scores import STATUSES

if TYPE_CHECKING:
    import pandas as pd

#: What decides the claims, settled before the board was run.
MARGINS_FILE = Path(__file__).with_suffix(".toml")
MARGINS, _ = read_margins(MARGINS_FILE)

#: In which each claim is decided -> the world of `simulate_metastases`.
WORLDS = {"old phantom": "easy", "hard world": "hard"}

#: Weights of sensitivity that the study reports, from sensitive to specific.
ALPHAS = (1.0, 0.995, 0.99, 0.95, 0.9, 0.5)

_SENSITIVE = 0.995
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


def value(tables: _Tables, method: str, measure: str, part: str = "all") -> float:
    summary = tables["summary"]
    rows = summary[(summary["part"] == part) & (summary["method"] == method)]
    if not len(rows):
        where = "" if part == "all" else f" ({part})"
        raise MissingEvidence(f"{measure} of {method}{where}")
    return float(rows[measure].iloc[0])


def more_precise(tables: _Tables) -> list[Check]:
    """Compare precision where BCE has, by its threshold, at least the same sensitivity."""
    curve = tables["curves"][tables["curves"]["method"] == "BCE"]
    if not len(curve):
        raise MissingEvidence("the curve of BCE")
    result = []
    for alpha in (0.99, 0.95, 0.9):
        sensitivity = value(tables, method_name("JVSS", alpha), "sensitivity")
        limit = precision_at_sensitivity(curve, sensitivity)["precision"]
        if np.isnan(limit):
            # A sensitivity that BCE reaches at no threshold is won.
            limit = 0.0
        precision = value(tables, method_name("JVSS", alpha), "precision")
        quantity = f"precision, α = {alpha:g}"
        against = "BCE, as sensitive"
        result.append(Check(quantity, precision, ">", limit, against=against, margin="precision"))
    return result


def matched(
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
                matched(tables, method, "with prior", _MATCHED, status) for method in methods
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


def every_status_is_kept(tables: _Tables) -> list[Check]:
    sensitive = method_name("JVSS", _SENSITIVE, "prior")
    result = []
    for status in _statuses(tables):
        value, limit = (_of_status(tables, name, status) for name in (_ENSEMBLE, sensitive))
        quantity, against = f"found of {status}, union", "sensitive model"
        result.append(Check(quantity, value, ">=", limit, against=against, margin="status"))
    return result


def as_sensitive(tables: _Tables, sensitivity: float) -> Mapping[str, float]:
    """Read BCE's curve where its threshold makes it find as many."""
    curve = tables["curves"][tables["curves"]["method"] == "BCE"]
    if not len(curve):
        raise MissingEvidence("the curve of BCE")
    point = precision_at_sensitivity(curve, sensitivity)
    if np.isnan(point["precision"]):
        raise MissingEvidence(f"BCE at sensitivity {sensitivity:.3f}")
    return point


def most_of_each_status(tables: _Tables) -> list[Check]:
    result = []
    for status in _statuses(tables):
        found, both = (_of_status(tables, name, status) for name in (_ENSEMBLE, _BOTH))
        share = both / found if found else float("nan")
        quantity = f"share marked by both of {status}"
        result.append(Check(quantity, share, ">=", 0.8, margin="status"))
    return result


def area(tables: _Tables, name: str, kind: str, column: str) -> float:
    """Read the area under a curve of a family over α, or of a method over thresholds."""
    areas = tables["areas"]
    rows = areas[(areas["name"] == name) & (areas["kind"] == kind)]
    if not len(rows):
        raise MissingEvidence(f"area of {name} over {'α' if kind == 'family' else kind}")
    return float(rows[column].iloc[0])


def review(tables: _Tables, column: str) -> float:
    """Read a figure of what a reader of the ensemble has to look at."""
    rows = tables["ensemble"][tables["ensemble"]["method"] == _ENSEMBLE]
    if not len(rows):
        raise MissingEvidence("the ensemble")
    return float(rows[column].iloc[0])


#: What the study states.
CLAIMS = read_claims(Path(__file__).with_name("huang_claims.toml"), globals())
