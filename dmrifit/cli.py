"""The command line. Each command is one function, which imports what it needs when it runs."""

from __future__ import annotations

import sys
import warnings
from typing import Annotated

import typer

import dmrifit
from dmrifit import commands, studies
from dmrifit.options import say

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)

_INTERRUPTED = 130  # exit code after Ctrl-C


def main() -> None:
    """
    Run the command line; an error that the user can mend is one line on the standard error stream.

    Raises
    ------
    SystemExit
        Always: 0 when all went well, 2 for such an error, 130 after Ctrl-C.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            # What joblib remarks after Ctrl-C.
            warnings.filterwarnings("ignore", message=r"\d+ tasks which were still being processed")
            warnings.showwarning = lambda message, *_, **__: say(str(message))
            app()
    except (ValueError, OSError, ImportError) as error:
        typer.echo(f"dmrifit: error: {error}", err=True)
        sys.exit(2)
    except SystemExit as stopped:
        if stopped.code == _INTERRUPTED:
            typer.echo("dmrifit: interrupted", err=True)
        raise


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"dmrifit {dmrifit.__version__}")
        raise typer.Exit


@app.callback()
def dmrifit_(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Diffusion MRI of tumors: fit signal models, predict protocols, score by patient."""


for _command, _example in (commands.EXAMPLES | studies.EXAMPLES).items():
    app.command(epilog=f"\b\nExample:\n  {_example}")(_command)
