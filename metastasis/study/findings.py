"""What may be said of a scan's findings: how much a model finds, and what no finding means."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmrifit._utils.checks import is_number

__all__ = ["model_figures", "nothing_marked"]

_KEYS = ("sensitivity", "sensitivity_small")


def model_figures(path: Path) -> dict[str, Any]:
    """
    Read the figures of a model file from the card beside it, ``NAME.json``; none without a card.

    The card may have ``figures`` with ``sensitivity`` (share of all implants that are found) and
    ``sensitivity_small`` (of those of 2.5–6 mm), and ``seen``, a `training_range`.
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
        if not is_number(value) or not 0 <= value <= 1:
            raise ValueError(f"{card}: {key} must be a share from 0 to 1, not {value!r}")
    return shares | ({"seen": content["seen"]} if content.get("seen") else {})


def nothing_marked(figures: Mapping[str, Any]) -> str:
    """Say what it means that nothing was marked in a scan."""
    begin = "nothing marked; this is not 'no metastases': "
    if not all(key in figures for key in _KEYS):
        return begin + "how many of all and of small metastases this model finds is unknown"
    whole, small = (f"{100 * figures[key]:.0f} %" for key in _KEYS)
    return (
        f"{begin}on implants {whole} of all and {small} of those of 2.5–6 mm are found; never "
        "tried on a labelled real metastasis"
    )
