"""What words on the command line stand for: numbers, files, pairs, scans."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from dmrifit.engine.protocol import Protocol

__all__ = [
    "beside",
    "bounds_of",
    "floats",
    "number_or_path",
    "pairs",
    "say",
    "scan_of",
    "whole_numbers",
    "words",
]


def words(text: str) -> list[str]:
    """Part a list of words."""
    return [word.strip() for word in text.split(",") if word.strip()]


def say(message: str) -> None:
    """Tell the user something on the standard error stream."""
    typer.echo(f"dmrifit: {message}", err=True)


def beside(image: Path, extension: str) -> Path | None:
    """Find the file of the same name with another extension, and say so."""
    from dmrifit.io.bids_derivatives import stem

    path = image.with_name(f"{stem(image)}.{extension}")
    if not path.is_file():
        return None
    say(f"using {path}")
    return path


def scan_of(
    image: Path, bval: Path | None, bvec: Path | None, te: list[str] | None, *, needs_te: bool
) -> tuple[list[Path], Protocol]:
    """
    Find the images of a scan and its protocol: in a table, in what options name, or beside the
    image.
    """
    from dmrifit.engine.protocol import Protocol
    from dmrifit.io.bids_derivatives import stem
    from dmrifit.io.scan_manifest import read_manifest

    if not image.is_file():
        raise FileNotFoundError(
            
                f"{image} is a folder; name an image in it"
                if image.is_dir()
                else f"{image}: no such file; check its name"
            
        )
    if image.suffix.lower() in (".tsv", ".csv"):
        if bval or bvec or te:
            raise ValueError(
                f"{image} names the files of each image in its columns; leave out --bval, --bvec and --te"
            )
        manifest = read_manifest(image)
        return list(manifest.images), manifest.protocol
    bval = bval or beside(image, "bval")
    if bval is None:
        raise ValueError(
            f"{image}: there is no file {stem(image)}.bval of b-values beside it; name one by --bval"
        )
    if not te and needs_te and (found := beside(image, "te") or _sidecar(image)):
        te = [str(found)]
    return [image], Protocol.read(
        bval, te[0] if te and len(te) == 1 else te, bvec or beside(image, "bvec")
    )


def _sidecar(image: Path) -> Path | None:
    from dmrifit._utils.text_files import read_small
    from dmrifit.io.bids_derivatives import stem

    path = image.with_name(f"{stem(image)}.json")
    if path.is_file() and '"EchoTime"' in read_small(path).decode("utf-8", errors="replace"):
        return beside(image, "json")
    return None


def number_or_path(text: str | None) -> float | Path | None:
    """Take a word for a number, or else for a file."""
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        return Path(text)


def pairs(option: str, texts: list[str]) -> list[tuple[str, str]]:
    """Part words of the form NAME=VALUE."""
    pairs = [text.partition("=") for text in texts]
    for text, (name, equals, value) in zip(texts, pairs, strict=True):
        if not (name and equals and value):
            raise ValueError(f"{option} {text}: write NAME=VALUE")
    return [(name, value) for name, _, value in pairs]


def floats(option: str, text: str, n: int) -> list[float]:
    """Part a list of numbers."""
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != n:
        raise ValueError(
            f"{option} {text}: {'a number is' if n == 1 else f'{n} numbers with commas between them are'} needed"
        )
    return numbers


def whole_numbers(option: str, text: str, n: int | None = None) -> tuple[int, ...]:
    """Part a list of whole numbers."""
    try:
        numbers = tuple(int(word) for word in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or (n is not None and len(numbers) != n):
        wanted = "whole numbers" if n is None else f"{n} whole numbers"
        raise ValueError(f"{option} {text}: {wanted} with commas between them are needed")
    return numbers


def bounds_of(texts: list[str]) -> dict[str, Any] | str | None:
    """Read the bounds of parameters."""
    if texts == ["published"]:
        return "published"
    bounds: dict[str, Any] = {}
    for name, text in pairs("--bounds", texts):
        low, comma, high = text.partition(",")
        if comma and high == "monotonic":
            bounds[name] = (floats(f"--bounds {name}", low, 1)[0], high)
        else:
            bounds[name] = tuple(floats(f"--bounds {name}", text, 2))
    return bounds or None
