"""The small model that comes along, trained on simulations and on implants in real scans."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmrifit._utils.randomness import RandomState
    from metastasis.candidates.two_stage import TwoStageSegmenter

#: Trainings of its network: from the second on it learns more from what it took for lesions.
_N_TRAININGS = 2

#: The model file, and its card: data, figures, limits, license, command.
PATH = Path(__file__).parent / "data" / "small.dmrifit"
CARD = PATH.with_suffix(".md")


def load_small_model() -> Any:
    """Read the model by the rules of all model files: a two-stage segmenter of 1 mm voxels."""
    from dmrifit.model_files.model_file import load_model

    return load_model(PATH)


def untrained_small_model(random_state: RandomState, **training: Any) -> TwoStageSegmenter:
    """Make an untrained two-stage model like the small one: a U-Net, its candidates judged."""
    from metastasis.candidates.two_stage import TwoStageSegmenter, small_unet

    return TwoStageSegmenter(
        small_unet(random_state, **training),
        comparable=True,
        n_trainings=_N_TRAININGS,
        threshold=small_model_threshold(),
        random_state=random_state,
    )


def small_model_threshold() -> float:
    """Give the score from which the model marks, which its figures were measured at."""
    card = json.loads(PATH.with_suffix(".json").read_text(encoding="utf-8"))
    return float(card["figures"]["threshold"])
