"""The program dmrifit, with the command cite; each command imports what it needs when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from dmrifit.cli import cohort_commands, image_commands, scan_commands
from dmrifit.cli.console import make_program

__all__ = ["app", "cite", "main"]


def cite(
    model: Annotated[
        str | None, typer.Argument(help="A signal model; by default all built-in ones.")
    ] = None,
) -> None:
    """
    Say what to cite: this version of the software, and the publications of a signal model.

    Studies that an application repeats are named in the References of its classes.
    """
    import dmrifit
    from dmrifit.engine.models import MODELS, resolve_model

    models = MODELS.values() if model is None else [resolve_model(model)]
    typer.echo(f"The dmrifit developers. dmrifit (version {dmrifit.__version__}), software, 2026.")
    for entry in models:
        typer.echo(f"{entry.name}:")
        for reference in entry.references:
            typer.echo(f"  {reference}")


app, main = make_program(
    "dmrifit",
    "Diffusion MRI of tumors: fit signal models, predict protocols, score by patient.",
    scan_commands.EXAMPLES
    | image_commands.EXAMPLES
    | cohort_commands.EXAMPLES
    | {cite: "dmrifit cite ivim"},
)
