"""Manifests: tables of the images that make one scan, one for each echo time or b-value."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dmrifit._utils.counts import counted, size_text
from dmrifit._utils.text_files import read_text
from dmrifit.engine.protocol import Protocol, read_echo_times, read_gradients
from dmrifit.io.bids_derivatives import stem
from dmrifit.io.nifti import read_grid
from dmrifit.io.tables import named_file, read_rows

__all__ = ["read_manifest"]

#: Columns of a manifest: the first is required.
COLUMNS = ("image", "bval", "te", "bvec")

_SMALL_B = 20.0  # s/mm²


@dataclass(frozen=True, eq=False)
class _Contrasts:
    """b-values, echo times and directions of one image."""

    b: NDArray[np.float64]
    te: NDArray[np.float64] | None
    directions: NDArray[np.float64] | None


@dataclass(frozen=True)
class Manifest:
    """The images of one scan and their measurements, those of the first image first."""

    images: tuple[Path, ...]
    protocol: Protocol


def read_manifest(table: str | Path) -> Manifest:
    """
    Read a table of images that make one scan, such as one image for each echo time.

    Parameters
    ----------
    table : path
        Tab-separated (``.csv``: comma-separated), one row for each image, paths relative to the
        table, ``n/a`` for missing values. Columns:

        image
            4-D NIfTI image, or a 3-D one with one measurement.
        bval
            b-values in s/mm²: a text file, or one number for all volumes; by default the ``.bval``
            file beside the image.
        te
            Echo times: a number in ms, a text file in ms, or a BIDS sidecar; by default the
            ``.json`` sidecar beside the image. All images have one, or none has.
        bvec
            Gradient directions; by default the ``.bvec`` file beside the image. All images have
            one, or the protocol has no directions.

    Returns
    -------
    Manifest
        Images and protocol, in the order of the rows, and of the volumes within each image.

    Raises
    ------
    ValueError
        If a column or value is missing, counts differ, or a unit looks wrong; the message names
        table, row and remedy.
    FileNotFoundError
        If a file is missing.
    """
    table = Path(table)
    rows = read_rows(table, required=COLUMNS[:1], optional=COLUMNS[1:], strict=True)
    return manifest_of([(f"{table}, row {line}", row) for line, row in rows], table)


def manifest_of(
    rows: Sequence[tuple[str, dict[str, str]]], table: Path, *, source: str | None = None
) -> Manifest:
    """
    Join images whose files are relative to the folder of a table, each with its name.

    Errors in the protocol of all images name `source`, by default the table.
    """
    images: list[Path] = []
    contrasts: list[_Contrasts] = []
    first_of: dict[Path, str] = {}
    for where, row in rows:
        image = named_file(table.parent, row["image"], f"{where}: image")
        first = first_of.setdefault(image.resolve(), where)
        if first != where:
            first_row = first.rpartition(", ")[2]
            raise ValueError(
                f"{where}: image {row['image']!r} stands in {first_row}, too; name each image once"
            )
        images.append(image)
        contrasts.append(_contrasts(table, row, image, where))
    echo_times = [item.te for item in contrasts if item.te is not None]
    if echo_times and len(echo_times) < len(contrasts):
        where, _ = rows[[item.te is None for item in contrasts].index(True)]
        raise ValueError(
            f"{where}: no echo time, while other rows have one; "
            "give the column te to all rows, or none"
        )
    vectors = [item.directions for item in contrasts if item.directions is not None]
    te, directions = None, None
    if echo_times:
        te = np.concatenate(echo_times)
    # Directions of some images only are of no use to a fit.
    if len(vectors) == len(images):
        directions = np.concatenate(vectors)
    b = np.concatenate([item.b for item in contrasts])
    try:
        protocol = Protocol(b, te, directions=directions, name=table.stem)
    except ValueError as error:
        raise ValueError(f"{source or table}: {error}") from None
    return Manifest(tuple(images), protocol)


def _count(image: Path, where: str) -> int:
    """Count the volumes of an image by its header."""
    try:
        shape = read_grid(image)[0]
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if len(shape) not in (3, 4):
        raise ValueError(
            f"{where}: {image} is {len(shape)}-D ({size_text(shape)}); "
            "3-D or 4-D images are needed"
        )
    return shape[3] if len(shape) == 4 else 1


def _contrasts(table: Path, row: dict[str, str], image: Path, where: str) -> _Contrasts:
    """Read b-values, echo times and directions of one image."""
    n = _count(image, where)
    bval = _number_or_file(table, row, "bval", where)
    if bval is None:
        bval = _beside(image, "bval")
    if bval is None:
        raise ValueError(
            f"{where}: no b-values; give the column bval, or put a .bval file beside {image}"
        )
    if row.get("bvec"):
        bvec: Path | None = named_file(table.parent, row["bvec"], f"{where}: bvec")
    else:
        bvec = _beside(image, "bvec")
    te = _number_or_file(table, row, "te", where)
    sidecar = _beside(image, "json")
    # Not every scanner writes it, and a sidecar without it is no error.
    if te is None and sidecar is not None and '"EchoTime"' in read_text(sidecar):
        te = sidecar
    directions = None
    try:
        if isinstance(bval, Path):
            b, directions = read_gradients(bval, bvec)
        else:
            b = np.full(n, bval)
        if len(b) != n:
            raise ValueError(
                f"{image} has {counted(n, 'volume')}, but {bval} {counted(len(b), 'b-value')}; "
                "check that both belong to one scan"
            )
        _doubt_unit(b, f"{where}: {bval}")
        times = None
        if te is not None:
            times = read_echo_times(te, n)
        # One image may have low b-values only; a usual one beside them passes the check of units.
        _check_values(bval, np.append(b, 1000))
        if te is not None:
            _check_values(te, np.full(n, 1000.0), times)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return _Contrasts(b, times, directions)


def _number_or_file(
    table: Path, row: dict[str, str], column: str, where: str
) -> float | Path | None:
    """Read a cell that holds a number or names a file; None where it is empty."""
    text = row.get(column, "")
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        return named_file(table.parent, text, f"{where}: {column}")


def _check_values(
    source: Path | float, b: NDArray[np.float64], te: NDArray[np.float64] | None = None
) -> None:
    """Check b-values or echo times; an error names the file that they come from."""
    try:
        Protocol(b, te)
    except ValueError as error:
        # A number stands in the table itself, which the caller names.
        if not isinstance(source, Path):
            raise
        raise ValueError(f"{source}: {error}") from None


def _doubt_unit(b: NDArray[np.float64], name: str) -> None:
    """Warn that b-values of one image may be in ms/µm², which the whole scan does not show."""
    weighted = np.unique(b[b > 0])
    if len(weighted) > 1 and weighted[-1] < _SMALL_B and np.any(weighted % 1):
        message = (
            f"{name}: the largest b-value is {weighted[-1]:g} s/mm²; "
            "if they are in ms/µm², multiply them by 1000"
        )
        warnings.warn(message, stacklevel=5)


def _beside(image: Path, extension: str) -> Path | None:
    path = image.with_name(f"{stem(image)}.{extension}")
    return path if path.is_file() else None
