"""Manifests: tables of the images that make one scan, one for each echo time or b-value."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dmrifit._utils.checks import told_of
from dmrifit._utils.counts import counted, size_text
from dmrifit._utils.text_files import read_text
from dmrifit.engine.gradient_files import read_echo_times, read_gradients
from dmrifit.engine.protocol import Protocol
from dmrifit.io.bids_derivatives import stem
from dmrifit.io.nifti import read_grid
from dmrifit.io.tables import named_file, number_in, read_rows

__all__ = ["read_manifest"]

#: Columns of a manifest: the first is required.
COLUMNS = ("image", "bval", "te", "bvec")

_SMALL_B = 20.0  # s/mm²


#: b-values, echo times and directions of one image.
_Contrasts: TypeAlias = tuple[NDArray[np.float64], NDArray[np.float64] | None, Any]


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
    columns: list[_Contrasts] = []
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
        columns.append(_contrasts(table.parent, row, image, where))
    b, te, directions = zip(*columns, strict=True)
    without_te = [where for (where, _), times in zip(rows, te, strict=True) if times is None]
    if 0 < len(without_te) < len(rows):
        raise ValueError(
            f"{without_te[0]}: no echo time, while other rows have one; "
            "give the column te to all rows, or none"
        )
    # Directions of some images only are of no use to a fit.
    has_directions = all(vectors is not None for vectors in directions)
    try:
        protocol = Protocol(
            np.concatenate(b),
            None if without_te else np.concatenate(te),
            directions=np.concatenate(directions) if has_directions else None,
            name=table.stem,
        )
    except ValueError as error:
        raise ValueError(f"{source or table}: {error}") from None
    return Manifest(tuple(images), protocol)


def _contrasts(folder: Path, row: dict[str, str], image: Path, where: str) -> _Contrasts:
    """Read b-values, echo times and directions of one image."""

    def source_of(column: str, ending: str) -> Any:
        """Read a number or find the file that a cell names, or the one beside the image."""
        text = row.get(column, "")
        if not text:
            path = image.with_name(f"{stem(image)}.{ending}")
            return path if os.path.lexists(path) else None
        number = None if column == "bvec" else number_in(text)
        problem = "does not exist" if column == "bvec" else "is neither a number nor a file"
        place = f"{where}: {column}"
        return named_file(folder, text, place, problem) if number is None else number

    try:
        shape = read_grid(image)[0]
        if len(shape) not in (3, 4):
            raise ValueError(
                f"{image} is {len(shape)}-D ({size_text(shape)}); 3-D or 4-D images are needed"
            )
        n = shape[3] if len(shape) == 4 else 1
        endings = {"bval": "bval", "bvec": "bvec", "te": "json"}
        bval, bvec, te = (source_of(column, ending) for column, ending in endings.items())
        if bval is None:
            raise ValueError(
                f"no b-values; put {stem(image)}.bval beside the image, or give a table the "
                "column bval"
            )
        # Not every scanner writes the echo time, and a sidecar without one is no error.
        if not row.get("te") and isinstance(te, Path) and '"EchoTime"' not in read_text(te):
            te = None
        b, directions = np.full(n, bval), None
        if isinstance(bval, Path):
            b, directions = read_gradients(bval, bvec)
        if len(b) != n:
            raise ValueError(
                f"{image} has {counted(n, 'volume')}, but {bval} {counted(len(b), 'b-value')}; "
                "check that both belong to one scan"
            )
        # An image in ms/µm² would not be noticed among others in s/mm².
        weighted = np.unique(b[b > 0])
        if len(weighted) > 1 and weighted[-1] < _SMALL_B and np.any(weighted % 1):
            warnings.warn(
                f"{where}: {bval}: the largest b-value is {weighted[-1]:g} s/mm²; "
                "if they are in ms/µm², multiply them by 1000",
                stacklevel=4,
            )
        times = None if te is None else read_echo_times(te, n)
        # `Protocol` takes b-values that are all low for ms/µm², but those of one image may all be
        # low. A b-value of 1000 is added, so that it checks all else.
        for source, *values in ((bval, np.append(b, 1000.0)), (te, np.full(n, 1000.0), times)):
            try:
                Protocol(*values)
            except ValueError as error:
                # A number stands in the table itself, which is named anyway.
                where_in = f"{source}: " if isinstance(source, Path) else ""
                raise ValueError(f"{where_in}{error}") from None
    except ValueError as error:
        raise ValueError(told_of(where, error)) from None
    return b, times, directions
