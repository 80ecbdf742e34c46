"""What to cite: the software in its version, and the publications of a signal model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

__all__ = ["EXAMPLES", "cite"]


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


#: Commands, each with the example that its help shows.
EXAMPLES: dict[Callable[..., None], str] = {cite: "dmrifit cite ivim"}
