"""The program dmrifit-placement; each command imports what it needs when it runs."""

from __future__ import annotations

from dmrifit.cli.console import make_program
from placement.cli import placement_commands, repeat_commands, study_commands

__all__ = ["app", "main"]

app, main = make_program(
    "dmrifit-placement",
    "Place spectroscopy voxels in brain tumors. Not for clinical use.",
    placement_commands.EXAMPLES | repeat_commands.EXAMPLES | study_commands.EXAMPLES,
    first="dmrifit-placement place tumor.nii.gz --out placed",
)
