"""The command line: ``dmrifit fit`` and its companions, each one function."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


def main() -> None:
    """
    Run the command line; an error the user can mend ends it with one line and exit code 2.

    Raises
    ------
    SystemExit
        Always, with the exit code.
    """
    try:
        app()
    except (ValueError, OSError, ImportError) as error:
        typer.echo(f"dmrifit: error: {error}", err=True)
        sys.exit(2)


@app.callback()
def _dmrifit() -> None:
    """Diffusion MRI of tumors: fit signal models, predict protocols."""


@app.command()
def fit(
    image: Annotated[Path, typer.Argument()],
    bval: Annotated[Path | None, typer.Option()] = None,
    bvec: Annotated[Path | None, typer.Option()] = None,
    te: Annotated[str | None, typer.Option()] = None,
    model: Annotated[str, typer.Option()] = "t2-ivim-kurtosis",
    mask: Annotated[Path | None, typer.Option()] = None,
    overwrite: Annotated[bool, typer.Option()] = False,
    out: Annotated[Path, typer.Option()] = Path("."),
) -> None:
    """Fit a signal model to every voxel of a 4-D image."""
    from dmrifit.protocol import Protocol
    from dmrifit.volumes import fit_image

    protocol = Protocol.read(bval, te, bvec)
    fit_image(image, protocol, model, mask=mask, out=out, overwrite=overwrite, progress=True)
