"""The command line. Each command is one function, which imports what it needs when it runs."""

from __future__ import annotations

from dmrifit.cli import cohort_commands, image_commands
from dmrifit.cli.console import new_program, run_program

__all__ = ["app", "main"]

app = new_program(
    "dmrifit",
    "Diffusion MRI of tumors: fit signal models, predict protocols, score by patient.",
    image_commands.EXAMPLES | cohort_commands.EXAMPLES,
)


def main() -> None:
    """
    Run the command line; an error that the user can mend is one line on the standard error stream.
    """
    run_program(app, "dmrifit")
