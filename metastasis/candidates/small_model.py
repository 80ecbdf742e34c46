"""The small model that comes along, trained on simulations and on implants in two real scans."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["CARD", "PATH", "load_small_model", "small_model_threshold"]

#: The model file, and its card: data, figures, limits, license, command.
PATH = Path(__file__).parent / "data" / "small.dmrifit"
CARD = PATH.with_suffix(".md")


def load_small_model() -> Any:
    """Read the model by the rules of all model files: a two-stage segmenter of 1 mm voxels."""
    from dmrifit.model_files.model_file import load_model

    return load_model(PATH)


def small_model_threshold() -> float:
    """Give the score from which the model marks, which its figures were measured at."""
    card = json.loads(PATH.with_suffix(".json").read_text(encoding="utf-8"))
    return float(card["figures"]["threshold"])
