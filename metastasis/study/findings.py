"""What may be said of a scan's findings: how much a model finds, and what no finding means."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from dmrifit._utils.checks import check_number, is_number
from metastasis.study.lesion_sizes import CLOSED_GAP_MM

_KEYS = ("sensitivity", "sensitivity_small")
_FALSE = "false_findings"
_WORDS = {1: ("this model finds", "the model marks"), 2: ("these models find", "the models mark")}


def model_figures(path: Path) -> dict[str, Any]:
    """
    Read the figures of a model file from the card beside it, ``NAME.json``; none without a card.

    The card may have ``figures`` with ``sensitivity`` (share of all implants that are found) and
    ``sensitivity_small`` (of those of 2.5–6 mm), and ``false_findings`` (what is marked in each of
    some brains without metastases); and ``seen``, a `seen_range`.
    """
    card = path.with_suffix(".json")
    if not card.is_file():
        return {}
    try:
        content = json.loads(card.read_text(encoding="utf-8"))
        figures = content.get("figures", {})
        shares = {key: figures[key] for key in _KEYS if key in figures}
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{card} is no card of a model ({error}); remove it") from None
    for key, value in shares.items():
        check_number(f"{card}: {key}", value, most=1)
    counts = figures.get(_FALSE, [])
    if not isinstance(counts, list) or not all(is_number(n, whole=True) for n in counts):
        raise ValueError(f"{card}: {_FALSE} must be a list of whole numbers, not {counts!r}")
    seen = {"seen": content["seen"]} if content.get("seen") else {}
    return shares | ({_FALSE: counts} if counts else {}) | seen


def findings_in_words(
    n_findings: int, figures: Mapping[str, Any], *, is_noted: bool = False, n_models: int = 1
) -> str:
    """
    Say what it means that a scan, which may have notes, has so many findings of 1 or 2 models.

    The figures may be ``measured`` at another threshold, as these words say.
    """
    is_known = all(key in figures for key in _KEYS)
    finds, marks = _WORDS[n_models]
    whole, small = (f"{100 * figures.get(key, 0):.0f} %" for key in _KEYS)
    found = f"{figures.get('measured', '')}on implants {whole} of all and {small} of those of "
    found += "2.5–6 mm are found"
    untried = "never tried on a labeled real metastasis"
    if is_noted:
        untried += (
            "; the notes on this scan say how it differs from those scans: the figures may not "
            "hold for it"
        )
    if not n_findings:
        begin = "nothing marked; this is not 'no metastases': "
        if not is_known:
            return f"{begin}how many of all and of small metastases {finds} is unknown"
        return f"{begin}{found}; {untried}"
    begin = f"{marks} candidates, many of which may be false positives: "
    if not is_known or not figures.get(_FALSE):
        return begin + "how much is marked in brains without metastases is unknown"
    counts = " to ".join(map(str, sorted({min(figures[_FALSE]), max(figures[_FALSE])})))
    return f"{begin}{found}; in brains without metastases {counts} findings are marked; {untried}"


def open_ring_notes(name: str, lesions: pd.DataFrame) -> list[str]:
    """Say which findings of a scan are rings that do not close, so that their core is unknown."""
    return [
        f"{name}: finding {lesion['number']} is a ring that does not close, or curved: "
        f"{lesion['volume_mL']:.1f} mL are marked, {lesion['volume_with_core_mL']:.1f} mL with "
        f"its core where gaps up to {CLOSED_GAP_MM:g} mm are closed, but its outline in axial "
        f"slices encloses {lesion['hull_mL']:.1f} mL; measure a ring by hand"
        for lesion in lesions[lesions["open_ring"].astype(bool)].to_dict("records")
    ]
