"""The command line. Each command is one function, which imports what it needs when it runs."""

from __future__ import annotations

from dmrifit.cli.console import new_program, run_program
from metastasis.cli import segmentation_commands, study_commands

__all__ = ["app", "main"]

app = new_program(
    "dmrifit-metastasis",
    "Find small brain metastases. Not for clinical use.",
    study_commands.EXAMPLES | segmentation_commands.EXAMPLES,
    first="dmrifit-metastasis segment model.dmrifit t1c.nii.gz --out segmented",
)


def main() -> None:
    """
    Run the command line; an error that the user can mend is one line on the standard error stream.
    """
    run_program(app, "dmrifit-metastasis")
