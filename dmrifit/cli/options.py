"""Parsing of command-line values: numbers, files, pairs NAME=VALUE, scans and their protocols."""

from __future__ import annotations

import glob
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from dmrifit._utils.counts import first_few
from dmrifit._utils.text_files import check_file
from dmrifit.cli.start import is_interrupt
from dmrifit.engine.protocol import Protocol
from dmrifit.io.bids_derivatives import stem
from dmrifit.io.tables import number_in

#: A file to write, of any name.
NewFile = Annotated[Path, ""]


@dataclass(frozen=True)
class ProtocolFiles:
    """Files of b-values, gradient directions and echo times of a scan."""

    bval: Path | None = None
    bvec: Path | None = None
    te: list[str] | None = None


def words(text: str) -> list[str]:
    """Split a list of words at its commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def say(message: str) -> None:
    """Print a message on standard error."""
    typer.echo(f"dmrifit: {message}", err=True)


@contextmanager
def resumable(work: str, folder: Path, how: str = "", files: str = "*") -> Iterator[None]:
    """Say, if interrupted, that finished work, any of these files, is kept and how to resume."""
    try:
        yield
    except (KeyboardInterrupt, SystemError) as error:
        if not is_interrupt(error):
            raise
        # Without a file nothing was finished.
        if any(folder.rglob(files)):
            say(f"finished {work} kept in {folder}; the same command{how} resumes there")
        raise KeyboardInterrupt from error


def beside(image: Path, extension: str, inherited: str | None = None) -> Path | None:
    """Find the file of an image's name, or the one it inherits, and print that it is used."""
    path = image.with_name(f"{stem(image)}.{extension}")
    # A pipe or a broken link of that name was meant to be the file.
    if not os.path.lexists(path):
        if inherited is None:
            return None
        path = Path(inherited if image.is_absolute() else os.path.relpath(inherited))
    check_file(path)
    say(f"using {path}")
    return path


def named_images(paths: Sequence[Path], bids: str = "") -> list[Path]:
    """
    List images: named ones, those that a glob matches, or those of a BIDS folder by a glob.

    Without that glob, a folder stands for the images in it that have a .bval file.
    """
    from dmrifit.cohort.bids_folder import is_bids_folder

    images = []
    for path in paths:
        is_bids = is_bids_folder(path)
        if is_pattern(path):
            matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        elif is_bids and bids:
            matches = sorted([*path.glob(f"sub-*/{bids}"), *path.glob(f"sub-*/ses-*/{bids}")])
        elif path.is_dir() and not (is_bids or bids):
            # Masks and maps have no b-values; derivatives beside scans are no further scans.
            series = {bval.stem for bval in path.glob("*.bval")}
            matches = [image for image in sorted(path.glob("*.nii*")) if stem(image) in series]
            others = [file.name for file in path.glob("*.nii*") if stem(file) not in series]
            if matches and others:
                say(f"left out of {path}, no .bval ({len(others)}): {first_few(sorted(others))}")
            raw = [image for image in matches if "_desc-" not in image.name]
            matches = raw or matches or [path]
        else:
            matches = [path]
        if not matches:
            problem = "no file matches; check the pattern"
            if path.is_dir():
                problem = f"no sub-*/[ses-*/]{bids}; give their folder, such as derivatives/NAME"
            raise FileNotFoundError(f"{path}: {problem}")
        remedy = "check its name and folder"
        if path.is_dir():
            remedy = "name an image in it, a glob, or one BIDS folder alone"
            if not bids:
                remedy = f"no image in it (*.nii, *.nii.gz) has a .bval file of its name; {remedy}"
        for image in matches:
            check_file(image, remedy=remedy)
            if image.suffix.lower() in (".tsv", ".csv"):
                raise ValueError(f"{image} is a table; name one table alone, or images")
        images += matches
    return images


def is_pattern(path: Path) -> bool:
    """Tell whether a path is a glob."""
    return glob.has_magic(str(path)) and not path.exists()


def refuse_files(source: str, options: Mapping[str, object]) -> None:
    """Refuse options that name the files of a single image."""
    if flags := [flag for flag, file in options.items() if file]:
        raise ValueError(
            f"{source}: files of several images lie beside them, or are named in the columns of "
            f"their table; leave out {' and '.join(flags)}, for files of a single image only"
        )


def scan_of(image: Path, files: ProtocolFiles, *, needs_te: bool) -> tuple[list[Path], Protocol]:
    """Find a scan's images and protocol: in a table, named by options, or beside the image."""
    from dmrifit.cohort.bids_folder import plain_scan
    from dmrifit.io.scan_manifest import read_manifest
    from dmrifit.io.series import Series

    if image.is_dir():
        raise FileNotFoundError(
            f"{image} is a folder; name an image in it, or a table; fit also takes a folder of "
            f"series, a BIDS folder (sub-*), or a glob in quotes ('{image}/*.nii.gz')"
        )
    check_file(image)
    if image.suffix.lower() in (".tsv", ".csv"):
        refuse_files(str(image), {f"--{name}": file for name, file in vars(files).items()})
        manifest = read_manifest(image)
        return list(manifest.images), manifest.protocol
    # A single volume needs other volumes before it needs b-values.
    Series.open(image)
    (inherited,) = plain_scan(stem(image), image).files()
    bval = files.bval or beside(image, "bval", inherited.get("bval"))
    if bval is None:
        raise ValueError(
            f"{image}: there is no b-value file {stem(image)}.bval beside it; name one by --bval"
        )
    te, bvec = files.te, files.bvec or beside(image, "bvec", inherited.get("bvec"))
    if not te and (te_file := beside(image, "te", inherited.get("te"))):
        try:
            return [image], Protocol.read(bval, str(te_file), bvec)
        except ValueError as error:
            if needs_te:
                raise
            protocol = Protocol.read(bval, None, bvec)
            warnings.warn(f"{error} (the model does not need it)", UserWarning, stacklevel=2)
            return [image], protocol
    # One number or file stands for all volumes, a list of files for the volumes in turn.
    return [image], Protocol.read(bval, te[0] if te and len(te) == 1 else te, bvec)


def number_or_path(text: str | None) -> float | Path | None:
    """Read a number, or else the name of a file."""
    if text is None:
        return None
    number = number_in(text)
    return Path(text) if number is None else number


def pairs(option: str, texts: Sequence[str], form: str = "NAME=VALUE") -> dict[str, str]:
    """Split values of a form such as NAME=VALUE, each name with one value."""
    named_values: dict[str, str] = {}
    for text in texts:
        # Only the first =: paths may hold others.
        name, _, value = text.partition("=")
        if not (name and value):
            raise ValueError(f"{option} {text}: write {form}")
        if named_values.setdefault(name, value) != value:
            raise ValueError(f"{option} names {name} twice; keep one of them")
    return named_values


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
    for name, text in pairs("--bounds", texts).items():
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


def trained_model(
    path: Path, kinds: type | tuple[type, ...], remedy: str, device: str | None = None
) -> Any:
    """Read a model file that must hold one of these classes, and move its network to a device."""
    from dmrifit.model_files.model_file import load_model

    model: Any = load_model(path)
    # Model files of the other applications can be read as well.
    if not isinstance(model, kinds):
        raise ValueError(f"{path} holds a {type(model).__name__}, which {remedy}")
    network: Any = getattr(model, "detector_", getattr(model, "segmenter_", model))
    # The model file put the weights on the device that it names; only networks live on one.
    if device is not None and hasattr(network, "net_"):
        from dmrifit._utils.torch_state import resolve_device

        network.net_.module_.to(resolve_device(device))
        network.set_params(device=device)
    return model
