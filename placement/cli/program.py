"""The command line. Each command is one function, which imports what it needs when it runs."""

from __future__ import annotations

from dmrifit.cli.console import new_program, run_program
from placement.cli import placement_commands, study_commands

__all__ = ["app", "main"]

app = new_program(
    "dmrifit-placement",
    "Place spectroscopy voxels in brain tumors. Not for clinical use.",
    placement_commands.EXAMPLES | study_commands.EXAMPLES,
    first="dmrifit-placement place tumor.nii.gz --out placed",
)


def main() -> None:
    """
    Run the command line; an error that the user can mend is one line on the standard error stream.
    """
    run_program(app, "dmrifit-placement")
