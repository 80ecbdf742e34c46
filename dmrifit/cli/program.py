"""The program dmrifit; each command imports what it needs when it runs."""

from __future__ import annotations

from dmrifit.cli import citation, cohort_commands, image_commands, scan_commands
from dmrifit.cli.console import make_program

__all__ = ["app", "main"]

app, main = make_program(
    "dmrifit",
    "Diffusion MRI of tumors: fit signal models, predict protocols, score by patient.",
    scan_commands.EXAMPLES
    | image_commands.EXAMPLES
    | cohort_commands.EXAMPLES
    | citation.EXAMPLES,
)
