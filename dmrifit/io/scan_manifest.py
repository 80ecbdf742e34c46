"""Manifests: tables of the images that make one scan, one for each echo time or b-value."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dmrifit._utils.text_files import read_text
from dmrifit.engine.protocol import Protocol, read_echo_times, read_gradients
from dmrifit.io.bids_derivatives import stem
from dmrifit.io.nifti import read_grid
from dmrifit.io.tables import named_file, read_rows

__all__ = ["Manifest", "read_manifest"]

#: Columns of a manifest: the first is required.
COLUMNS = ("image", "bval", "te", "bvec")

_SMALL_B = 20.0  # s/mm²

_Contrasts: TypeAlias = tuple[NDArray, NDArray | None, NDArray | None]


@dataclass(frozen=True)
class Manifest:
    """
    The images of one scan.

    Parameters
    ----------
    images : tuple of Path
        In the order of the table.
    protocol : Protocol
        All their measurements: those of the first image in the order of its volumes, then those of the second, …
    """

    images: tuple[Path, ...]
    protocol: Protocol


def read_manifest(table: str | Path) -> Manifest:
    """
    Read a table of images that make one scan, such as one image for each echo time.

    Parameters
    ----------
    table : path
        Tab-separated (``.csv``: comma-separated), one row for each image, paths relative to the table, ``n/a`` for
        nothing. Columns:

        image
            4-D NIfTI image, or a 3-D one with one measurement.
        bval
            b-values in s/mm²: a text file, or one number for all volumes; by default the ``.bval`` file beside the
            image.
        te
            Echo times: a number in ms, a text file in ms, or a BIDS sidecar; by default the ``.json`` sidecar beside
            the image. All images have one, or none has.
        bvec
            Gradient directions; by default the ``.bvec`` file beside the image. All images have one, or the protocol
            has no directions.

    Returns
    -------
    Manifest
        Images and protocol, in the order of the rows, and of the volumes within each image.

    Raises
    ------
    ValueError
        If a column or value is missing, counts differ, or a unit looks wrong; the message names table, row and
        remedy.
    FileNotFoundError
        If a file is missing.
    """
    table = Path(table)
    images: list[Any] = []
    b: list[Any] = []
    te: list[Any] = []
    directions: list[Any] = []
    first: dict[Path, int] = {}
    for line, row in read_rows(table, required=COLUMNS[:1], optional=COLUMNS[1:], strict=True):
        where = f"{table}, row {line}"
        image = named_file(table.parent, row["image"], f"{where}: image")
        if first.setdefault(image.resolve(), line) != line:
            raise ValueError(
                f"{where}: image {row['image']!r} stands in row {first[image.resolve()]}, too; name each image once"
            )
        n = _count(image, where)
        contrasts = _contrasts(table, row, image, n, where)
        for column, values in zip((images, b, te, directions), (image, *contrasts), strict=True):
            column.append(values)
    times = [one for one in te if one is not None]
    if times and len(times) < len(te):
        line = next(i for i, one in enumerate(te, start=2) if one is None)
        raise ValueError(
            f"{table}, row {line}: no echo time, while other rows have one; give the column te to all rows, or none"
        )
    vectors = [one for one in directions if one is not None]
    try:
        protocol = Protocol(
            np.concatenate(b),
            np.concatenate(times) if times else None,
            directions=np.concatenate(vectors) if len(vectors) == len(images) else None,
            name=table.stem,
        )
    except ValueError as error:
        raise ValueError(f"{table}: {error}") from None
    return Manifest(tuple(images), protocol)


def _count(image: Path, where: str) -> int:
    """Count the volumes of an image by its header."""
    try:
        shape = read_grid(image)[0]
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if len(shape) not in (3, 4):
        raise ValueError(
            f"{where}: {image} is {len(shape)}-D ({' × '.join(map(str, shape))}); 3-D or 4-D images are needed"
        )
    return shape[3] if len(shape) == 4 else 1


def _contrasts(table: Path, row: dict[str, str], image: Path, n: int, where: str) -> _Contrasts:
    """Read b-values, echo times and directions of one image."""
    bval = _number(row.get("bval", "")) if row.get("bval") else _beside(image, "bval")
    if bval is None and row.get("bval"):
        bval = named_file(table.parent, row["bval"], f"{where}: bval")
    if bval is None:
        raise ValueError(
            f"{where}: no b-values; give the column bval, or put a .bval file beside {image}"
        )
    bvec = (
        named_file(table.parent, row["bvec"], f"{where}: bvec")
        if row.get("bvec")
        else _beside(image, "bvec")
    )
    te: Any = None
    if row.get("te"):
        te = _number(row["te"])
        te = named_file(table.parent, row["te"], f"{where}: te") if te is None else te
    elif (sidecar := _beside(image, "json")) is not None and '"EchoTime"' in read_text(sidecar):
        te = sidecar
    try:
        b, directions = (
            read_gradients(bval, bvec) if isinstance(bval, Path) else (np.full(n, bval), None)
        )
        if len(b) != n:
            raise ValueError(
                f"{image} has {n} volumes, but {bval} {len(b)} b-values; check that both belong to one scan"
            )
        _doubt_unit(b, f"{where}: {bval}")
        times = None if te is None else read_echo_times(te, n)
        # An image of low b-values alone is right: a usual one beside them, for the check of units.
        _checked(bval, np.append(b, 1000))
        if times is not None:
            _checked(te, np.full(n, 1000.0), times)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return b, times, directions


def _checked(
    source: Path | float, b: NDArray[np.float64], te: NDArray[np.float64] | None = None
) -> None:
    """Check b-values or echo times; an error names the file that they come from."""
    try:
        Protocol(b, te)
    except ValueError as error:
        raise ValueError(
            f"{source}: {error}" if isinstance(source, Path) else str(error)
        ) from None


def _doubt_unit(b: NDArray[np.float64], name: str) -> None:
    """Say that b-values of one image may be in ms/µm², which those of the whole scan do not tell."""
    weighted = np.unique(b[b > 0])
    if len(weighted) > 1 and weighted[-1] < _SMALL_B and np.any(weighted % 1):
        msg = f"{name}: the largest b-value is {weighted[-1]:g} s/mm²; if they are in ms/µm², multiply them by 1000"
        warnings.warn(msg, stacklevel=5)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _beside(image: Path, extension: str) -> Path | None:
    path = image.with_name(f"{stem(image)}.{extension}")
    return path if path.is_file() else None
