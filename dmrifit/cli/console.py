"""
The frame of a command line: help, one-line errors, exit codes, options of several programs.

Options:
checkpoint: Folder for network checkpoints, from which training resumes; by default a hidden folder
    beside the model file, .NAME.training, removed at the end. If a killed run left it behind, the
    same command resumes, with --overwrite if the model file exists; remove the folder to train
    from the beginning.
cluster tcp://HOST:PORT: Scheduler of a dask cluster, whose workers see the same folders; in place
    of --jobs (pip install "dmrifit[cluster]").
fail_on_flag: End with code 3 where a case is flagged or one of many fails.
figure: Draw figures (needs matplotlib).
figures 0..: Number of scans on the page.
out: Folder for the results; created if missing.
overwrite: Replace files of an earlier run.
patience 1..: Stop early after this many epochs without improvement.
seed 0..: Random seed: same seed, same model.
shape X,Y,Z: Voxels of a scan.
use sform|qform: Header transform to use where sform and qform differ by more than 0.5 mm; without
    this option such files are refused.
validation_fraction 0..0.9: Fraction of patients held out of training to choose the best epoch.
"""

from __future__ import annotations

import ast
import errno
import functools
import inspect
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer

from dmrifit._utils.checks import with_flags
from dmrifit._utils.threads import check_jobs
from dmrifit.cli.options import numbers, pairs, words

#: Options that name what a command writes.
_WRITTEN = ("out", "checkpoint")

#: Exit code of a run that ends as it should, but with a flagged or failed case.
FLAGGED = 3
_INTERRUPTED = 130  # exit code after Ctrl-C
_OPTIONS: list[str] = []  # of the command that runs
_EXIT_CODES = {
    0: "success; failed.tsv lists cases that failed (if all failed, the code is 2)",
    1: "a bug in the program, with a traceback: please report it",
    2: "a problem with an option, a file or the machine; the message says what to do",
    _INTERRUPTED: "interrupted by Ctrl-C; long commands resume when run again",
}

_FULL_DISK = "the disk is full: free some space, or choose another folder"
_NOT_PERMITTED = "change its permissions, or choose another folder"

#: What to do about errors of the operating system, whose messages do not say so.
_REMEDIES = {
    errno.ENOENT: "check that it exists, and is not removed while it is read",
    errno.EISDIR: "name a file",
    errno.ENOTDIR: "check its folder",
    errno.EEXIST: "choose another name",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "links lead in a circle; name the file itself",
    errno.EACCES: _NOT_PERMITTED,
    errno.EPERM: _NOT_PERMITTED,
    errno.EROFS: "choose a folder that can be written to",
    errno.ENOSPC: _FULL_DISK,
    errno.EDQUOT: _FULL_DISK,
    errno.EFBIG: "the file is too large for the disk: choose another folder",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.EIO: "the disk may be damaged; copy the file to another one",
    errno.ESTALE: "the disk was unmounted; mount it again",
}


#: Remedies in Python, and what they are in a command.
_COMMAND_WORDS = {
    "pass overwrite=True": "add --overwrite",
    "give a dict by parameter name": "give --bounds NAME=LOW,HIGH",
    " or give a SignalModel (SignalModel.from_expression)": "",
    "give them to the protocol (te in ms)": "give them in ms (--te)",
    "one echo time (protocol.take)": "one echo time alone",
    "(model.by_echo_time(protocol))": "(--by-te)",
    "use average_directions first": "average them first (fit and predict: --average-directions)",
    "give b_tolerance=": "give fit or predict --b-tolerance ",
}

#: Functions of commands that read no header.
_WITHOUT_IMAGES = ("import_", "simulate", "report", "cite")

#: A line of help: name, another flag, what the value is, its range, and the sentence.
_LINE = re.compile(
    r"(\w+)(?: (--\S+))?(?: (\S.*?))??(?: (-?[\d.]+?)?\.\.(-?[\d.]+)?)?: (.+)", re.MULTILINE
)


def make_program(
    name: str,
    summary: str,
    commands: Sequence[Callable[..., None]],
    *,
    first: str,
    options: str | None = None,
) -> tuple[typer.Typer, Callable[[], None]]:
    """
    Make a program of commands: the app and its main.

    The help of an option stands in the docstring of its command. That of an option which several
    commands share stands in the text `options`, and of one that several programs share in the
    docstring of this module.
    """
    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )

    def show_version(is_requested: bool) -> None:
        if is_requested:
            import dmrifit

            typer.echo(f"{name} {dmrifit.__version__}")
            raise typer.Exit

    version_option = typer.Option(
        False, "--version", callback=show_version, is_eager=True, help="Show the version and exit."
    )
    shared = read_help(__doc__)[1] | read_help(options)[1]
    runs = {function: with_options(function, shared) for function in commands}
    codes = dict(_EXIT_CODES)
    if any("fail_on_flag" in inspect.signature(run).parameters for run in runs.values()):
        codes[FLAGGED] = "all is written, but a case is flagged or failed (--fail-on-flag)"
    lines = [f"  {code:<3}  {meaning}" for code, meaning in sorted(codes.items())]
    epilog = "\n".join([_example(first), "\n\b\nExit codes:", *lines])

    @app.callback(help=summary, epilog=epilog)
    def begin(version: bool = version_option) -> None:
        pass

    for function, run in runs.items():
        # A command may be called as a word that Python keeps for itself.
        name_of_command = function.__name__.rstrip("_").replace("_", "-")
        app.command(
            name_of_command,
            epilog=_example(read_help(function.__doc__)[2]),
            # Click would cut it at the end of its line.
            short_help=" ".join((run.__doc__ or "").split()).partition(". ")[0].rstrip(".") + ".",
        )(run)

    def main() -> None:
        # A umask that withholds permissions from the owner would keep a run from writing into the
        # folders that it makes. Python tells the umask only where another is set (the inner call).
        os.umask(os.umask(0o077) & 0o077)
        with lenient_streams():
            _run(app, name)

    return app, main


def _run(app: typer.Typer, name: str) -> None:
    """Run a program; an error that the user can correct is one line on standard error."""

    def say(message: str) -> None:
        # In one line, of letters that a terminal can print.
        typer.echo(printable(f"{name}: {message}".replace("\n", " ")), err=True)

    shown: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        # Those of numpy and of compilers name no file, no value and no remedy.
        if issubclass(category, RuntimeWarning) or category.__module__[:5] == "numba":
            return
        # A file that is read twice is warned of once.
        if str(message) not in shown:
            shown.add(str(message))
            say(with_flags(str(message), _OPTIONS, _COMMAND_WORDS.items()))

    try:
        with warnings.catch_warnings():
            # A warning of each scan is shown, and not of the first one only.
            warnings.simplefilter("always", UserWarning)
            # joblib warns so after Ctrl-C, where nobody needs to know.
            warnings.filterwarnings(
                "ignore", message=r"\d+ tasks which were still being processed"
            )
            warnings.showwarning = show
            app()
    # Other exceptions are bugs, whose traceback is needed to mend them.
    except (ValueError, OSError, ImportError, MemoryError) as error:
        say(f"error: {error_message(error)}")
        sys.exit(2)
    except SystemExit as stop:
        if stop.code == _INTERRUPTED:
            say("interrupted")
        raise


def check_output(
    path: Path, overwrite: bool, endings: tuple[str, ...] = ("",), keep: Iterable[Path | None] = ()
) -> None:
    """Check that a file can be written, and is none of those to keep, before long work."""
    if not path.name.lower().endswith(endings):
        raise ValueError(f"--out {path}: give a name that ends in {' or '.join(endings)}")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} already exists; choose another name, or --overwrite")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {path.parent}")
    if path.exists() and any(file and file.exists() and path.samefile(file) for file in keep):
        raise ValueError(f"--out {path} is an input and would be overwritten; name another")


def error_message(error: Exception) -> str:
    """Give the message of an error; remedies name flags, and the system's errors get one."""
    if isinstance(error, MemoryError):
        return f"not enough memory ({error}); crop the image, name a mask, or use a larger machine"
    if not isinstance(error, OSError) or error.errno not in _REMEDIES:
        return with_flags(str(error), _OPTIONS, _COMMAND_WORDS.items())
    message = f"{error.strerror}; {_REMEDIES[error.errno]}"
    if error.filename is not None:
        message = f"{error.filename}: {message}"
    return message


def _example(lines: str) -> str:
    # The line with \b keeps click from rewrapping the lines that follow.
    return "\b\nExample:\n  " + lines.replace("\n", "\n  ")


# What bars write: a return before their text, and lines up to that of another bar.
_OF_BARS = re.compile(r"\r|(?:\x1b\[A)+\Z")


@contextmanager
def lenient_streams() -> Iterator[None]:
    """
    Let messages be lost on standard error, and output whose reader has gone.

    A full disk under standard output is still an error: what it holds may be the result.
    """
    _occupy_closed()
    before = sys.stdout, sys.stderr
    sys.stdout = _LenientStream(sys.stdout, {errno.EPIPE})
    sys.stderr = _LenientStream(sys.stderr, None)
    lenient = sys.stdout, sys.stderr
    try:
        yield
    finally:
        # What a full disk does not take is told by Python at its end.
        for stream in lenient:
            with suppress(OSError):
                stream.flush()
        sys.stdout, sys.stderr = before


def printable(text: str, kept: str = "") -> str:
    """Escape what a terminal would obey or not show: messages quote names and damaged files."""
    return "".join(c if c.isprintable() or c in kept else ascii(c)[1:-1] for c in text)


def _occupy_closed() -> None:
    """Open streams that the caller has closed: the next file would take their place otherwise."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    # Python has none where they were closed when it started.
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


class _LenientStream:
    """A text stream that drops what cannot be written for one of these errors; None is any."""

    def __init__(self, stream: Any, dropped: set[int] | None) -> None:
        self._stream = stream
        self._dropped = dropped

    def write(self, text: str) -> int:
        bar = _OF_BARS.match(text)
        start = bar.end() if bar else 0
        with self._dropping():
            self._stream.write(text[:start] + printable(text[start:], "\n\t"))
        return len(text)

    def flush(self) -> None:
        with self._dropping():
            self._stream.flush()

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self._dropped is not None and error.errno not in self._dropped:
                # Without its number, by which a full disk under result files is known.
                raise OSError(
                    f"standard output cannot be written ({error.strerror}); free some space, or "
                    "redirect it to another disk"
                ) from error
            # What is buffered still would be written at the end, and fail again.
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


_Help = dict[str, tuple[str, ...]]


def read_help(docstring: str | None) -> tuple[str, _Help, str]:
    """Split a docstring into what a command does, its options, and the example of its use."""
    text, *blocks = re.split(r"\n\n(?=Options:\n|Example: )", inspect.cleandoc(docstring or ""))
    lines: _Help = {}
    example = ""
    for block in blocks:
        # Indented lines continue the one before.
        title, _, body = re.sub(r"\n +", " ", block).partition("Example: ")
        example = body or example
        lines |= {match[1]: match.groups("")[1:] for match in _LINE.finditer(title)}
    return text, lines, example


def with_options(command: Callable[..., None], shared: _Help) -> Callable[..., None]:
    """
    Give typer the parameters of a command, with help, ranges and flags from its docstring.

    Parameters by position are arguments. One of a dataclass stands for the fields of the class,
    a tuple for values with commas between them, a dictionary for a repeatable NAME=VALUE. Where
    `out` is a file, its annotation holds the endings that its name may have.
    """
    text, own, _ = read_help(command.__doc__)
    parameters = list(inspect.signature(command, eval_str=True).parameters.values())
    groups: dict[str, Any] = {}
    members: list[inspect.Parameter] = []
    for parameter in parameters:
        if not is_dataclass(parameter.annotation):
            members.append(parameter)
            continue
        group: Any = parameter.annotation
        fields = inspect.signature(group, eval_str=True).parameters
        groups[parameter.name] = (group, list(fields))
        own = read_help(group.__doc__)[1] | own
        members += fields.values()
    if command.__name__ not in _WITHOUT_IMAGES:
        form = inspect.Parameter("use", inspect.Parameter.KEYWORD_ONLY, default=None)
        members.append(form.replace(annotation=str | None))
    lines = shared | own
    names = {member.name for member in members if member.annotation is not typer.Context}
    if unmatched := sorted((own.keys() - names) | (names - lines.keys())):
        raise TypeError(
            f"{command.__qualname__}: {', '.join(unmatched)}: each parameter needs a line under "
            '"Options:", and each line there a parameter'
        )
    readers = {member.name: _reader(member, lines) for member in members if member.name in names}
    positional = [one.name for one in parameters if one.kind is one.POSITIONAL_ONLY]
    out = next((member.annotation for member in members if member.name == "out"), None)

    @functools.wraps(command)
    def run(**values: Any) -> None:
        _OPTIONS[:] = names.difference(positional)
        _check_values(values, getattr(out, "__metadata__", ()))
        from dmrifit.io.nifti import use_form

        with use_form(values.pop("use", None)):
            for name, read in readers.items():
                if read is not None and values[name] is not None:
                    values[name] = read(values[name])
            for name, (group, fields) in groups.items():
                values[name] = group(**{field: values.pop(field) for field in fields})
            command(*[values.pop(name) for name in positional], **values)

    declared = []
    for member in members:
        if member.name in names:
            member = _declare(member, lines[member.name])
        declared.append(member.replace(kind=inspect.Parameter.KEYWORD_ONLY))
    run.__doc__ = text
    # Typer also looks for annotations, of which these are not the ones that it shall read.
    run.__annotations__ = {}
    del run.__wrapped__
    run.__signature__ = inspect.Signature(declared)  # type: ignore[attr-defined]
    return run


def _check_values(values: Mapping[str, Any], endings: tuple[str, ...]) -> None:
    """Check the names of files, where a command writes, and its jobs, before it begins."""
    from dmrifit.io.atomic_files import check_name, check_place

    for option, value in values.items():
        for word in value if isinstance(value, list | tuple) else [value]:
            # Other texts may become a name of a file as well.
            may_be_text = isinstance(word, str)
            for part in Path(word).parts if isinstance(word, str | Path) else ():
                check_name(part, may_be_text=may_be_text)
        if option in _WRITTEN and value is not None:
            check_place(value)
    check_jobs(values.get("jobs"), "--jobs")
    if endings and values["out"] is not None:
        check_output(values["out"], values["overwrite"], endings)


def _flag(name: str) -> str:
    # A parameter may be named as a word of Python, such as map, with an underscore at its end.
    return f"--{name.rstrip('_').replace('_', '-')}"


def _declare(parameter: inspect.Parameter, line: tuple[str, ...]) -> inspect.Parameter:
    """Give a parameter the type, flags, range and help that typer shows."""
    other_flag, metavar, low, high, sentence = line
    settings: dict[str, Any] = {"help": sentence, "metavar": metavar or None}
    settings |= {key: ast.literal_eval(end) for key, end in (("min", low), ("max", high)) if end}
    annotation, default = parameter.annotation, parameter.default
    kind = _kind(annotation)
    # On the command line a tuple is one text with commas, and a mapping is a repeated KEY=VALUE.
    if get_origin(kind) is tuple:
        annotation = str | None if default is None else str
        if isinstance(default, tuple):
            default = ",".join(
                f"{value:g}" if isinstance(value, float) else str(value) for value in default
            )
    elif get_origin(kind) is dict:
        annotation = list[str] | None if default is None else list[str]
    if parameter.kind is parameter.POSITIONAL_ONLY:
        option = typer.Argument(**settings)
    else:
        flags = [_flag(parameter.name), other_flag] if other_flag else []
        if default is False or parameter.name.endswith("_"):
            flags = [_flag(parameter.name)]
        option = typer.Option(*flags, **settings)
    return parameter.replace(annotation=Annotated[annotation, option], default=default)


def _kind(annotation: Any) -> Any:
    """Give a type without the None that it may be."""
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    return kinds[0] if type(None) in get_args(annotation) else annotation


def _reader(parameter: inspect.Parameter, lines: _Help) -> Callable[[Any], Any] | None:
    """Give the function that reads the text of a value; None where typer reads it."""
    kind, flag = _kind(parameter.annotation), _flag(parameter.name)
    if get_origin(kind) is dict:
        read, form = get_args(kind)[1], lines[parameter.name][1]
        return lambda texts: {name: read(text) for name, text in pairs(flag, texts, form).items()}
    if get_origin(kind) is not tuple:
        return None
    number, *others = get_args(kind)
    if number is str:
        return lambda text: tuple(words(text))
    n = None if Ellipsis in others else 1 + len(others)
    return lambda text: numbers(flag, text, n, kind=number)
