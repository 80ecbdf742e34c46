"""Reading of small text files: whole, decoded, as rows of numbers."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LONGEST_WORD = 24  # in a message
_LARGEST_TEXT = 2**24  # bytes of a table or sidecar


def check_file(
    path: Path, noun: str = "file", *, remedy: str = "check its name and folder"
) -> None:
    """Refuse a path that is no file, and say what it is instead."""
    if path.is_file():
        return
    if path.is_dir():
        raise FileNotFoundError(f"{path}: no such {noun}, but a folder; {remedy}")
    if not path.is_symlink() and not path.exists():
        raise FileNotFoundError(f"{path}: no such {noun}; {remedy}")
    try:
        path.stat()
    except OSError as error:
        target = f"to {path.readlink()}, where there is no {noun}; fetch it (datalad get), or"
        if error.errno == errno.ELOOP:
            target = "that leads back to itself;"
        raise FileNotFoundError(f"{path} is a link {target} name the {noun} itself") from None
    raise FileNotFoundError(f"{path} is a pipe or a device; name a {noun}")


def read_small(path: Path) -> bytes:
    """Read a text file whole, unless it is too large to be a table or a sidecar."""
    with path.open("rb") as file:
        content = file.read(_LARGEST_TEXT + 1)
    if len(content) > _LARGEST_TEXT:
        size = path.stat().st_size
        raise ValueError(
            f"{path} holds {size} bytes, more than any table of numbers or names "
            f"({_LARGEST_TEXT}); name another file"
        )
    return content


def read_object(path: Path) -> dict[str, Any] | None:
    """Read a small JSON file; None where it is missing, damaged or holds no object."""
    try:
        content = json.loads(read_small(path))
    except (FileNotFoundError, RecursionError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Add the digest of a record to it, by which it is known as whole and of this version."""
    from dmrifit import __version__

    text = json.dumps([__version__, content])
    return {**content, "digest": hashlib.sha256(text.encode()).hexdigest()}


def read_sealed(path: Path) -> dict[str, Any] | None:
    """Read a sealed record; None where it is missing, damaged, edited or of another version."""
    record = read_object(path)
    if record is None:
        return None
    content = {name: value for name, value in record.items() if name != "digest"}
    return content if sealed(content) == record else None


def read_text(path: Path) -> str:
    """Read and decode a file of text."""
    if path.is_file() and path.name.lower().endswith((".nii", ".nii.gz", ".img", ".hdr")):
        raise ValueError(
            f"{path} is an image, where a table or other text is needed; name a file of text, of "
            "tables one that ends in .tsv or .csv"
        )
    content = read_small(path)
    # Excel and PowerShell write UTF-16, for which the message of the decoder would be a riddle.
    if b"\x00" in content or content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError(
            f"{path} is not text in UTF-8 (it may be UTF-16, or no text at all); save it as UTF-8"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not text in UTF-8 (byte {error.start + 1} is "
            f"{content[error.start]:#04x}); save it as UTF-8"
        ) from None


def read_numbers(path: Path) -> NDArray[np.float64]:
    """
    Read a text file of rows of numbers.

    Shapes: returns (n_rows, n_numbers).
    """
    check_file(path)
    return numbers_of(read_text(path), path)


def numbers_of(text: str, path: Path) -> NDArray[np.float64]:
    """
    Read rows of numbers from the text of a file.

    Shapes: returns (n_rows, n_numbers).
    """
    rows = [line.replace(",", " ").split() for line in text.splitlines() if line.strip()]
    if not rows:
        raise ValueError(f"{path} is empty; numbers with blanks or commas between them are needed")
    try:
        numbers = [[_number(word) for word in row] for row in rows]
    except ValueError as error:
        raise ValueError(
            f"{path}: not a file of numbers ({error}); write numbers alone, with blanks or commas "
            "between them"
        ) from None
    if len({len(row) for row in numbers}) != 1:
        counts = ", ".join(str(len(row)) for row in numbers[:8])
        raise ValueError(f"{path}: rows hold {counts} numbers; give each row as many")
    return np.array(numbers)


def _number(word: str) -> float:
    # Python also reads 1_000 and digits of other scripts, which are mistakes in such a file.
    try:
        if not word.isascii() or "_" in word:
            raise ValueError
        return float(word)
    except ValueError:
        shown = word if len(word) <= _LONGEST_WORD else f"{word[:_LONGEST_WORD]}…"
        raise ValueError(f"{shown!r} is no number") from None
