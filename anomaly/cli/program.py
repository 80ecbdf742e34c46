"""The program dmrifit-anomaly; each command imports what it needs when it runs."""

from __future__ import annotations

from anomaly.cli import detection_commands, study_commands
from dmrifit.cli.console import make_program

__all__ = ["app", "main"]

app, main = make_program(
    "dmrifit-anomaly",
    "Find anomalies in diffusion MRI by models of healthy tissue. Not for clinical use.",
    study_commands.EXAMPLES | detection_commands.EXAMPLES,
    first="dmrifit-anomaly detect model.dmrifit dwi.nii.gz --out found",
)
