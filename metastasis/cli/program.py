"""The program dmrifit-metastasis; each command imports what it needs when it runs."""

from __future__ import annotations

from dmrifit.cli.console import make_program
from metastasis.cli import (
    preparation_commands,
    segmentation_commands,
    small_training,
    study_commands,
)

__all__ = ["app", "main"]

app, main = make_program(
    "dmrifit-metastasis",
    "Find small brain metastases. Not for clinical use.",
    study_commands.EXAMPLES
    | small_training.EXAMPLES
    | preparation_commands.EXAMPLES
    | segmentation_commands.EXAMPLES,
    first="dmrifit-metastasis segment model.dmrifit t1c.nii.gz --out segmented",
)
