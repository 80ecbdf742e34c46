"""What may be said of a scan's findings: how much a model finds, and what no finding means."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dmrifit._utils.checks import check_number, is_number
from dmrifit.report import page
from metastasis.study.lesion_sizes import CLOSED_GAP_MM

_TEXTS = page.Texts(__file__)
_KEYS = ("sensitivity", "sensitivity_small")
_FALSE, _FALSE_ML, _LARGEST = "false_findings", "false_mL", "largest_mL"
_WORDS = {1: ("this model finds", "the model marks"), 2: ("these models find", "the models mark")}


def model_figures(path: Path) -> dict[str, Any]:
    """
    Read the figures of a model file from the card beside it, ``NAME.json``; none without a card.

    The card may have ``figures`` with ``sensitivity`` (share of all implants that are found) and
    ``sensitivity_small`` (of those of 2.5–6 mm), ``false_findings`` and ``false_mL`` (what is
    marked in each of some brains without metastases), and ``largest_mL`` (of the metastases that
    the model is meant for); and ``seen``, a `seen_range`.
    """
    card = path.with_suffix(".json")
    if not card.is_file():
        return {}
    try:
        content = json.loads(card.read_text(encoding="utf-8"))
        figures = content.get("figures", {})
        numbers = {key: figures[key] for key in (*_KEYS, _LARGEST) if key in figures}
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{card} is no card of a model ({error}); remove it") from None
    for key, value in numbers.items():
        check_number(f"{card}: {key}", value, most=np.inf if key == _LARGEST else 1)
    lists = {key: figures[key] for key in (_FALSE, _FALSE_ML) if figures.get(key)}
    for key, values in lists.items():
        if not isinstance(values, list) or not all(map(is_number, values)):
            raise ValueError(f"{card}: {key} must be a list of numbers, not {values!r}")
    return numbers | lists | ({"seen": content["seen"]} if content.get("seen") else {})


def findings_in_words(
    n_findings: int, figures: Mapping[str, Any], *, is_noted: bool = False, n_models: int = 1
) -> str:
    """
    Say what it means that a scan, which may have notes, has so many findings of 1 or 2 models.

    The figures may be ``measured`` at another threshold, as these words say.
    """
    is_known = all(key in figures for key in _KEYS)
    finds, marks = _WORDS[n_models]
    found = _TEXTS("found", **{"measured": "", **dict.fromkeys(_KEYS, 0), **figures})
    untried = _TEXTS["untried"] + (_TEXTS["noted"] if is_noted else "")
    if not n_findings:
        begin = "nothing marked; this is not 'no metastases': "
        if not is_known:
            return f"{begin}how many of all and of small metastases {finds} is unknown"
        return f"{begin}{found}; {untried}"
    begin = f"{marks} candidates, many of which may be false positives: "
    if not is_known or not figures.get(_FALSE):
        return begin + "how much is marked in brains without metastases is unknown"
    counts = f"{_range(figures[_FALSE], 'g')} findings"
    if _FALSE_ML in figures:
        counts += f" ({_range(figures[_FALSE_ML], '.2g')} mL together)"
    return f"{begin}{found}; in brains without metastases {counts} are marked; {untried}"


def _range(values: Sequence[float], digits: str) -> str:
    return " to ".join(format(value, digits) for value in sorted({min(values), max(values)}))


def large_finding_notes(name: str, lesions: pd.DataFrame, figures: Mapping[str, Any]) -> list[str]:
    """Say which findings of a scan are larger than the metastases that the model is meant for."""
    own = {"name": name, "largest": figures.get(_LARGEST, np.inf)}
    large = lesions[lesions["volume_with_core_mL"] > own["largest"]]
    return [_TEXTS("large", **{**lesion, **own}) for lesion in large.to_dict("records")]


def open_ring_notes(name: str, lesions: pd.DataFrame) -> list[str]:
    """Say which findings of a scan are rings that do not close, so that their core is unknown."""
    own = {"name": name, "gap": CLOSED_GAP_MM}
    rings = lesions[lesions["open_ring"].astype(bool)]
    return [_TEXTS("open_ring", **{**lesion, **own}) for lesion in rings.to_dict("records")]
