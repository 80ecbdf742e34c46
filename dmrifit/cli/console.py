"""What programs on the command line share: their frame, errors in a line, runs that go on where they stopped."""

from __future__ import annotations

import errno
import json
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

__all__ = ["begin_run", "check_output", "finished_part", "new_program", "progress", "run_program"]

OverwriteOption: TypeAlias = Annotated[
    bool, typer.Option("--overwrite", help="Replace files of an earlier run.")
]
OutOption: TypeAlias = Annotated[
    Path, typer.Option(help="Folder for the results; made if missing.")
]
ModelFileOption: TypeAlias = Annotated[
    Path, typer.Option("--out", help="Model file to write, by custom with the ending .dmrifit.")
]
FigureOption: TypeAlias = Annotated[bool, typer.Option(help="Draw figures (matplotlib).")]

_INTERRUPTED = 130  # exit code after Ctrl-C
_EXIT_CODES = (
    "\b\nExit codes:\n  0    all went well\n  1    an error of the program, with a traceback: please report it\n"
    "  2    an option, a file or the machine is at fault; the message says what to do\n"
    "  130  interrupted by Ctrl-C; the same command goes on where long ones stopped"
)

#: What to do about errors that the system tells of, which it does not say.
_REMEDIES = {
    errno.ENOENT: "check that it is there, and stays there while it is read",
    errno.EISDIR: "name a file",
    errno.ENOTDIR: "check its folder",
    errno.EEXIST: "choose another name",
    errno.EACCES: "change its permissions, or choose another place",
    errno.EPERM: "change its permissions, or choose another place",
    errno.EROFS: "choose a place that can be written to",
    errno.ENOSPC: "the disk is full: free some room, or choose another place",
    errno.EDQUOT: "the disk is full: free some room, or choose another place",
    errno.EFBIG: "the disk takes no more: free some room, or choose another place",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.EIO: "the disk seems damaged; copy the file to another one",
    errno.ESTALE: "the disk was unmounted; mount it again",
}


def new_program(
    name: str, summary: str, examples: Mapping[Callable[..., None], str], *, first: str = ""
) -> typer.Typer:
    """Make a program of commands."""
    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )

    def show_version(asked: bool) -> None:
        if asked:
            import dmrifit

            typer.echo(f"{name} {dmrifit.__version__}")
            raise typer.Exit

    option = typer.Option(
        False, "--version", callback=show_version, is_eager=True, help="Show the version and exit."
    )

    @app.callback(
        help=summary, epilog=f"{_example(first)}\n\n{_EXIT_CODES}" if first else _EXIT_CODES
    )
    def begin(version: bool = option) -> None:
        pass

    for command, line in examples.items():
        app.command(epilog=_example(line))(command)
    return app


def run_program(app: typer.Typer, name: str) -> None:
    """Run a program; an error that the user can mend is one line on the standard error stream."""

    def say(message: str) -> None:
        typer.echo(f"{name}: {message}", err=True)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            # What joblib remarks after Ctrl-C.
            warnings.filterwarnings(
                "ignore", message=r"\d+ tasks which were still being processed"
            )
            warnings.showwarning = lambda message, *_, **__: say(str(message))
            app()
    except (ValueError, OSError, ImportError, MemoryError) as error:
        say(f"error: {_one_line(_told(error))}")
        sys.exit(2)
    except SystemExit as stopped:
        if stopped.code == _INTERRUPTED:
            say("interrupted")
        raise


def begin_run(
    out: Path,
    settings: Mapping[str, Any],
    overwrite: bool,
    *,
    results: Iterable[str],
    parts: Iterable[str] = (),
) -> None:
    """
    Remember what a run was started with, so that another one does not go on with it.

    What an earlier run with other settings has finished is no part of this one: where it may be
    replaced, its results and the marks of its parts are removed first, so that a run that is
    interrupted then does not mix both.
    """
    from dmrifit.io.atomic_files import write_text

    path = out / "settings.json"
    text = json.dumps(settings, indent=2) + "\n"
    results = list(results)
    strangers = [name for name in results if (out / name).exists() and not path.exists()]
    if strangers and not overwrite:
        raise FileExistsError(
            f"{out / strangers[0]} exists already and is of no run; choose another folder, or --overwrite"
        )
    if path.exists() and not overwrite:
        before, now = _object(path), json.loads(text)
        if before is None:
            raise ValueError(
                f"{path} is damaged, so nothing says what {out} holds; choose another folder, or --overwrite"
            )
        changed = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
        if changed:
            raise ValueError(
                f"{out} holds a run with other options ({', '.join(changed)}); choose another folder, or --overwrite"
            )
    if overwrite and not (path.is_file() and path.read_bytes() == text.encode()):
        for file in [
            *(out / name for name in results),
            *(file for part in parts for file in out.glob(part)),
        ]:
            file.unlink(missing_ok=True)
    write_text(path, text)


def finished_part(
    path: Path, fields: Mapping[str, type | tuple[type, ...]]
) -> dict[str, Any] | None:
    """Read what an earlier run says of a part that it has finished."""
    content = _object(path) if path.exists() else None
    for name, kind in fields.items():
        kinds = kind if isinstance(kind, tuple) else (kind,)
        value: Any = content
        for key in name.split("."):
            value = value[key] if isinstance(value, dict) and key in value else NotImplemented
        if isinstance(value, bool) and bool not in kinds:
            return None
        if not isinstance(value, kinds) and not (float in kinds and isinstance(value, int)):
            return None
    return content


def check_output(path: Path, overwrite: bool) -> None:
    """Check that a file can be written, before long work."""
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already; choose another name, or --overwrite")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {path.parent}")


def progress(rows: Iterable[Any], total: int, what: str | None = None) -> Iterable[Any]:
    """Go through cases with a bar that shows how many are left, where somebody looks."""
    from tqdm import tqdm

    return tqdm(rows, total=total, unit="case", desc=what, disable=None)


def _object(path: Path) -> dict[str, Any] | None:
    """Read a JSON file of an object; None if it is damaged."""
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _told(error: Exception) -> str:
    """Give the message of an error; one of the system's gets a remedy."""
    if isinstance(error, MemoryError):
        return f"not enough memory ({error}); crop the image, name a mask, or take a machine with more"
    if not isinstance(error, OSError) or error.errno is None or error.errno not in _REMEDIES:
        return str(error)
    named = "" if error.filename is None else f"{error.filename}: "
    return f"{named}{error.strerror}; {_REMEDIES[error.errno]}"


def _one_line(text: str) -> str:
    """Show bytes of damaged files, which may stand in a message, as a terminal can print them."""
    return "".join(
        letter if letter.isprintable() else repr(letter)[1:-1]
        for letter in " ".join(text.split("\n"))
    )


def _example(line: str) -> str:
    return f"\b\nExample:\n  {line}"
