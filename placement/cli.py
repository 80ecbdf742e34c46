"""The command line. Each command is one function, which imports what it needs when it runs."""

from __future__ import annotations

import sys
import warnings
from typing import Annotated

import typer

import dmrifit
from placement import commands, studies

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)

_EXAMPLE = "\b\nExample:\n  "
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
            warnings.showwarning = lambda message, *_, **__: _say(str(message))
            app()
    except (ValueError, OSError, ImportError) as error:
        _say(f"error: {error}")
        sys.exit(2)
    except SystemExit as stopped:
        if stopped.code == _INTERRUPTED:
            _say("interrupted")
        raise


def _say(message: str) -> None:
    typer.echo(f"dmrifit-placement: {message}", err=True)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"dmrifit-placement {dmrifit.__version__}")
        raise typer.Exit


@app.callback(epilog=_EXAMPLE + "dmrifit-placement place tumor.nii.gz --out placed")
def placement_(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Place spectroscopy voxels in brain tumors. Not for clinical use."""


for _command, _line in (commands.EXAMPLES | studies.EXAMPLES).items():
    app.command(epilog=_EXAMPLE + _line)(_command)
