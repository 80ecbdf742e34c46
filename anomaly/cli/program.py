"""The command line. Each command is one function, which imports what it needs when it runs."""

from __future__ import annotations

from anomaly.cli import detection_commands, study_commands
from dmrifit.cli.console import new_program, run_program

__all__ = ["app", "main"]

app = new_program(
    "dmrifit-anomaly",
    "Find anomalies in diffusion MRI by models of healthy tissue. Not for clinical use.",
    study_commands.EXAMPLES | detection_commands.EXAMPLES,
    first="dmrifit-anomaly detect model.dmrifit dwi.nii.gz --out found",
)


def main() -> None:
    """
    Run the command line; an error that the user can mend is one line on the standard error stream.
    """
    run_program(app, "dmrifit-anomaly")
