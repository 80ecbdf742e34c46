"""Parsing of command-line values: numbers, files, pairs NAME=VALUE, scans and their protocols."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from dmrifit.engine.protocol import Protocol

__all__ = [
    "beside",
    "bounds_of",
    "given",
    "is_table",
    "move_to_device",
    "named_files",
    "number_or_path",
    "numbers",
    "pairs",
    "require_libraries",
    "say",
    "say_folder",
    "scan_of",
    "words",
]


def words(text: str) -> list[str]:
    """Split a list of words at its commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def say(message: str) -> None:
    """Print a message on standard error."""
    typer.echo(f"dmrifit: {message}", err=True)


def beside(image: Path, extension: str) -> Path | None:
    """Find the file of the same name with another extension, and print that it is used."""
    from dmrifit._utils.text_files import check_file
    from dmrifit.io.bids_derivatives import stem

    path = image.with_name(f"{stem(image)}.{extension}")
    # A pipe or a broken link of that name was meant to be the file.
    if not os.path.lexists(path):
        return None
    check_file(path)
    say(f"using {path}")
    return path


def is_table(
    path: Path, files: str, options: Mapping[str, object], images: Sequence[str] = ()
) -> bool:
    """
    Tell whether a path is a table of scans; options that name files are for single images.

    With the columns of images that a table may have, a folder of images is as good as a table.
    """
    *first, last = options
    if path.is_dir():
        if not images:
            raise FileNotFoundError(f"{path} is a folder; name an image in it, or a table")
        if any(options.values()):
            raise ValueError(
                f"{path} is a folder, where {files} stand beside the images; leave out "
                f"{', '.join(first)} and {last}"
            )
        say_folder(path, images)
        return True
    # numpy takes longer to load than the help that needs no file.
    from dmrifit._utils.text_files import check_file

    check_file(path, remedy="check its name")
    if path.suffix.lower() not in (".tsv", ".csv"):
        return False
    if any(options.values()):
        raise ValueError(
            f"{path} names {files} in its columns; leave out {', '.join(first)} and {last}"
        )
    return True


def say_folder(path: Path, images: Sequence[str]) -> None:
    """Print on standard error which cases a folder holds, where a path is one."""
    if not path.is_dir():
        return
    from dmrifit.io.case_tables import folder_rows, folder_summary, folder_table

    table = folder_table(path)
    if table == path:
        typer.echo(folder_summary(path, folder_rows(path, images)), err=True)
    else:
        typer.echo(f"using {table}", err=True)


def scan_of(
    image: Path, bval: Path | None, bvec: Path | None, te: list[str] | None, *, needs_te: bool
) -> tuple[list[Path], Protocol]:
    """Find a scan's images and protocol: in a table, named by options, or beside the image."""
    from dmrifit.engine.protocol import Protocol
    from dmrifit.io.bids_derivatives import stem
    from dmrifit.io.scan_manifest import read_manifest

    options = {"--bval": bval, "--bvec": bvec, "--te": te}
    if is_table(image, "the files of each image", options):
        manifest = read_manifest(image)
        return list(manifest.images), manifest.protocol
    bval = bval or beside(image, "bval")
    if bval is None:
        raise ValueError(
            f"{image}: there is no b-value file {stem(image)}.bval beside it; name one by --bval"
        )
    if not te and needs_te:
        te_file = beside(image, "te") or (_sidecar(image) and beside(image, "json"))
        if te_file:
            te = [str(te_file)]
    echo_times: str | list[str] | None = te
    # One number or file stands for all volumes, a list of files for the volumes in turn.
    if te and len(te) == 1:
        echo_times = te[0]
    protocol = Protocol.read(bval, echo_times, bvec or beside(image, "bvec"))
    sidecar = _sidecar(image)
    if not te and sidecar is not None:
        _warn_of_echo_times(sidecar, len(protocol))
    return [image], protocol


def _warn_of_echo_times(sidecar: Path, n_volumes: int) -> None:
    """Say what is wrong with echo times that the model does not need."""
    from dmrifit.engine.protocol import read_echo_times

    try:
        read_echo_times(sidecar, n_volumes)
    except ValueError as error:
        warnings.warn(f"{error} (the model does not need it)", UserWarning, stacklevel=2)


def _sidecar(image: Path) -> Path | None:
    """Find the BIDS sidecar of an image, if it holds an echo time."""
    from dmrifit._utils.text_files import read_small
    from dmrifit.io.bids_derivatives import stem

    path = image.with_name(f"{stem(image)}.json")
    # A damaged sidecar is reported where it is read as JSON; here it is only looked into.
    if path.is_file() and '"EchoTime"' in read_small(path).decode("utf-8", errors="replace"):
        return path
    return None


def number_or_path(text: str | None) -> float | Path | None:
    """Read a number, or else the name of a file."""
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        return Path(text)


def pairs(option: str, texts: list[str]) -> list[tuple[str, str]]:
    """Split values of the form NAME=VALUE."""
    named_values = []
    for text in texts:
        # Only the first =: paths may hold others.
        name, _, value = text.partition("=")
        if not (name and value):
            raise ValueError(f"{option} {text}: write NAME=VALUE")
        named_values.append((name, value))
    return named_values


def named_files(option: str, texts: list[str]) -> dict[str, Path]:
    """Read files named NAME=FILE, each name for one file."""
    files: dict[str, Path] = {}
    for name, text in pairs(option, texts):
        path = Path(text)
        if files.setdefault(name, path) != path:
            raise ValueError(f"{option} names {name} twice; give each file a name of its own")
    return files


def numbers(
    option: str, text: str, n: int | None = None, *, kind: type[float] | type[int] = float
) -> tuple[Any, ...]:
    """Read n numbers, or any number of them, separated by commas; whole ones of the kind int."""
    # Words that are no numbers are refused like a wrong count.
    try:
        values = tuple(kind(word) for word in text.split(","))
    except ValueError:
        values = ()
    if not values or n not in (None, len(values)):
        noun = "numbers" if kind is float else "whole numbers"
        need = f"{noun if n is None else f'{n} {noun}'} with commas between them are"
        if n == 1:
            need = "a number is"
        raise ValueError(f"{option} {text}: {need} needed")
    return values


def bounds_of(texts: list[str]) -> dict[str, Any] | str | None:
    """Read the bounds of parameters."""
    if texts == ["published"]:
        return "published"
    bounds: dict[str, Any] = {}
    for name, text in pairs("--bounds", texts):
        low, comma, high = text.partition(",")
        if comma and high == "monotonic":
            bounds[name] = (*numbers(f"--bounds {name}", low, 1), high)
        else:
            bounds[name] = numbers(f"--bounds {name}", text, 2)
            if bounds[name][0] == bounds[name][1]:
                raise ValueError(
                    f"--bounds {name}={text}: both bounds are {bounds[name][0]:g}; to fix {name} "
                    f"at this value, write --fix {name}={bounds[name][0]:g}"
                )
    return bounds or None


def given(**options: Any) -> dict[str, Any]:
    """Leave out the options that were not given, so that a class takes its own defaults."""
    return {name: value for name, value in options.items() if value is not None}


def require_libraries(*names: str) -> None:
    """Check before long work that optional libraries are installed."""
    from dmrifit._optional import import_optional

    for name in names:
        import_optional(name)


def move_to_device(estimator: Any, device: str | None) -> None:
    """Move a fitted network to a device; its model file put the weights on the one it names."""
    # Only networks live on a device.
    if device is None or not hasattr(estimator, "net_"):
        return
    from dmrifit._utils.torch_state import resolve_device

    estimator.net_.module_.to(resolve_device(device))
    estimator.set_params(device=device)
