"""What programs on the command line share: their frame, errors in a line, runs that go on where they stopped."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

__all__ = ["begin_run", "check_output", "new_program", "progress", "run_program"]

OverwriteOption: TypeAlias = Annotated[bool, typer.Option("--overwrite", help="Replace files of an earlier run.")]
OutOption: TypeAlias = Annotated[Path, typer.Option(help="Folder for the results; made if missing.")]
ModelFileOption: TypeAlias = Annotated[
    Path, typer.Option("--out", help="Model file to write, by custom with the ending .dmrifit.")
]
FigureOption: TypeAlias = Annotated[bool, typer.Option(help="Draw figures (matplotlib).")]

_INTERRUPTED = 130  # exit code after Ctrl-C


def new_program(
    name: str, summary: str, examples: Mapping[Callable[..., None], str], *, first: str = ""
) -> typer.Typer:
    """
    Make a program of commands.

    Parameters
    ----------
    name : str
        What it is called by.
    summary : str
        A sentence about it.
    examples : mapping of function to str
        Its commands, each with the line that its help shows.
    first : str, default=""
        The line that the help of the program shows; none by default.

    Returns
    -------
    typer.Typer
        The program.
    """
    app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)

    def show_version(asked: bool) -> None:
        if asked:
            import dmrifit

            typer.echo(f"{name} {dmrifit.__version__}")
            raise typer.Exit

    option = typer.Option(False, "--version", callback=show_version, is_eager=True, help="Show the version and exit.")

    @app.callback(help=summary, epilog=_example(first) if first else None)
    def begin(version: bool = option) -> None:
        pass

    for command, line in examples.items():
        app.command(epilog=_example(line))(command)
    return app


def run_program(app: typer.Typer, name: str) -> None:
    """
    Run a program; an error that the user can mend is one line on the standard error stream.

    Parameters
    ----------
    app : typer.Typer
        The program.
    name : str
        What it is called by.

    Raises
    ------
    SystemExit
        Always: 0 when all went well, 2 for such an error, 130 after Ctrl-C.
    """

    def say(message: str) -> None:
        typer.echo(f"{name}: {message}", err=True)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            # What joblib remarks after Ctrl-C.
            warnings.filterwarnings("ignore", message=r"\d+ tasks which were still being processed")
            warnings.showwarning = lambda message, *_, **__: say(str(message))
            app()
    except (ValueError, OSError, ImportError) as error:
        say(f"error: {error}")
        sys.exit(2)
    except SystemExit as stopped:
        if stopped.code == _INTERRUPTED:
            say("interrupted")
        raise


def begin_run(
    out: Path, settings: Mapping[str, Any], overwrite: bool, *, results: Iterable[str], parts: Iterable[str] = ()
) -> None:
    """
    Remember what a run was started with, so that another one does not go on with it.

    What an earlier run with other settings has finished is no part of this one: where it may be replaced, its results
    and the marks of its parts are removed first, so that a run that is interrupted then does not mix both.

    Parameters
    ----------
    out : Path
        Its folder.
    settings : mapping
        Values by name that JSON can hold.
    overwrite : bool
        Whether an earlier run may be replaced.
    results : iterable of str
        Files that are only there after a run.
    parts : iterable of str
        Patterns of the files that mark what is finished, such as ``"*/detection.json"``.

    Raises
    ------
    FileExistsError
        If there are results and nothing says what they are of.
    ValueError
        If an earlier run in the folder had other settings.
    """
    from dmrifit.files import write_text

    path = out / "settings.json"
    text = json.dumps(settings, indent=2) + "\n"
    results = list(results)
    strangers = [name for name in results if (out / name).exists() and not path.exists()]
    if strangers and not overwrite:
        msg = f"{out / strangers[0]} exists already and is of no run; choose another folder, or --overwrite"
        raise FileExistsError(msg)
    if path.exists() and not overwrite:
        before, now = json.loads(path.read_text(encoding="utf-8")), json.loads(text)
        changed = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
        if changed:
            msg = f"{out} holds a run with other options ({', '.join(changed)}); choose another folder, or --overwrite"
            raise ValueError(msg)
    if overwrite and not (path.exists() and path.read_text(encoding="utf-8") == text):
        for file in [*(out / name for name in results), *(file for part in parts for file in out.glob(part))]:
            file.unlink(missing_ok=True)
    write_text(path, text)


def check_output(path: Path, overwrite: bool) -> None:
    """
    Check that a file can be written, before long work.

    Parameters
    ----------
    path : Path
        The file.
    overwrite : bool
        Whether one of this name may be replaced.

    Raises
    ------
    FileExistsError
        If it exists and may not be replaced.
    FileNotFoundError
        If its folder is missing.
    IsADirectoryError
        If it is a folder, which is never replaced.
    """
    if path.exists() and not overwrite:
        msg = f"{path} exists already; choose another name, or --overwrite"
        raise FileExistsError(msg)
    if path.is_dir():
        msg = f"{path} is a folder; name a file"
        raise IsADirectoryError(msg)
    if not path.parent.is_dir():
        msg = f"{path} cannot be written: there is no folder {path.parent}"
        raise FileNotFoundError(msg)


def progress(rows: Iterable[Any], total: int, what: str | None = None) -> Iterable[Any]:
    """
    Go through cases with a bar that shows how many are left, where somebody looks.

    Parameters
    ----------
    rows : iterable
        The cases.
    total : int
        How many there are.
    what : str, default=None
        What is being done.

    Returns
    -------
    iterable
        The same.
    """
    from tqdm import tqdm

    return tqdm(rows, total=total, unit="case", desc=what, disable=None)


def _example(line: str) -> str:
    return f"\b\nExample:\n  {line}"
