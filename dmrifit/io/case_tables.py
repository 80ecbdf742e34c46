"""What cases of the applications share: arrays that fit together, names of their files, rows of their tables."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit.io.atomic_files import FileSet
from dmrifit.io.masks import check_same_grid
from dmrifit.io.nifti import image_of, load_image, save_image, values_of
from dmrifit.io.tables import NOTHING, read_rows

__all__ = [
    "check_names",
    "check_shape",
    "checked_affine",
    "checked_mask",
    "checked_values",
    "file_stem",
    "file_stems",
    "read_each",
    "read_on_grid",
    "save_values",
    "three_axes",
    "write_table",
]

_Case = TypeVar("_Case")


def checked_values(
    values: ArrayLike, shape: tuple[int, ...], what: str, *, remedy: str = ""
) -> NDArray[np.float32]:
    """Check that an array holds finite numbers and has a shape."""
    found = np.asarray(values)
    check_shape(found, shape, what, remedy)
    if found.dtype.kind not in "fiub" or not np.isfinite(found).all():
        n = np.count_nonzero(~np.isfinite(found)) if found.dtype.kind in "fiub" else found.size
        raise ValueError(
            f"{what} has {n} values that are no finite numbers ({found.dtype}); set voxels without a value to 0"
        )
    return np.ascontiguousarray(found, dtype=np.float32)


def checked_mask(
    values: ArrayLike, shape: tuple[int, ...], what: str, *, remedy: str = ""
) -> NDArray[np.bool_]:
    """Check that an array is a mask and has a shape."""
    found = np.asarray(values)
    check_shape(found, shape, what, remedy)
    if found.dtype != bool:
        others = np.setdiff1d(np.unique(found), (0, 1))
        if others.size:
            raise ValueError(
                f"{what} must hold 0 and 1 only, not {others[:5].tolist()}; choose its classes, for example label == 1"
            )
    return np.ascontiguousarray(found != 0)


def check_shape(values: NDArray, shape: tuple[int, ...], what: str, remedy: str = "") -> None:
    """Check the shape of an array."""
    if values.shape != shape:
        raise ValueError(
            f"{what} has shape {values.shape} and the image {shape}; {remedy or 'bring both to one grid'}"
        )


def checked_affine(affine: ArrayLike, who: str) -> NDArray[np.float64]:
    """Check that a matrix places voxels."""
    found = np.array(affine, dtype=np.float64)
    if found.shape != (4, 4) or not np.isfinite(found).all() or np.linalg.det(found[:3, :3]) == 0:
        raise ValueError(
            f"{who}: the affine places no voxels: {found.tolist()}; give a (4, 4) matrix of three axes in mm"
        )
    return found


def three_axes(values: NDArray, name: str | Path) -> NDArray:
    """
    Give a volume without a last axis of length 1.

    Shapes: returns (x, y, z).
    """
    if values.ndim == 4 and values.shape[3] == 1:
        values = values[..., 0]
    if values.ndim != 3:
        raise ValueError(
            f"{name} has {values.ndim} axes ({values.shape}); a volume (x, y, z) is needed"
        )
    return values


def read_on_grid(
    path: Path, shape: tuple[int, ...], affine: NDArray[np.float64], reference: str
) -> NDArray:
    """
    Read a volume that lies on the grid of another image.

    Shapes: returns (x, y, z).
    """
    loaded = load_image(path)
    found = three_axes(values_of(loaded, str(path)), path)
    check_same_grid(
        found.shape, loaded.affine, shape, affine, name=str(path), reference_name=reference
    )
    return found


def read_each(
    table: str | Path,
    read: Callable[[dict[str, str], Path], _Case],
    *,
    required: Sequence[str],
    optional: Sequence[str],
    aliases: Mapping[str, str],
    what: str = "case",
) -> list[_Case]:
    """Read the cases of a table, each of another name."""
    table = Path(table)
    cases: list[_Case] = []
    lines: dict[str, int] = {}
    for line, row in read_rows(table, required=required, optional=optional, aliases=aliases):
        where = f"{table}, row {line} (patient {row['patient']})"
        name = row.get("name") or row["patient"]
        if (other := lines.setdefault(name, line)) != line:
            raise ValueError(
                f"{where}: row {other} has a {what} of the name {name!r} too; add a column 'name' that tells them apart"
            )
        try:
            cases.append(read(row, table.parent))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{where}: {error}; paths are relative to {table.parent.resolve()}"
            ) from None
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    return cases


def file_stem(patient: str, name: str) -> str:
    """Make a name for the files of a case."""
    check_names({"patient": patient, "case": name})
    return re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip(".-") or "case"


def check_names(names: Mapping[str, str]) -> None:
    """Check that words can stand in a table."""
    for kind, name in names.items():
        if name.strip() in NOTHING or name != name.strip() or not name.isprintable():
            raise ValueError(
                f"{kind} {name!r}: a name in a table has letters, digits or signs, and no tab or line break"
            )


def file_stems(names: Iterable[tuple[str, str]]) -> list[str]:
    """Make names for the files of cases."""
    pairs = list(names)
    if not pairs:
        raise ValueError("there are no cases to write")
    stems = [file_stem(*pair) for pair in pairs]
    folded = [stem.casefold() for stem in stems]
    twice = sorted(
        {pair[1] for pair, stem in zip(pairs, folded, strict=True) if folded.count(stem) > 1}
    )
    if twice:
        raise ValueError(
            f"several cases would have the same files: {', '.join(twice)}; give them names of their own"
        )
    return stems


def save_values(values: NDArray, affine: NDArray[np.float64], path: Path) -> None:
    """
    Write an array as NIfTI to a place that nobody reads yet, such as one of a `FileSet`.

    Shapes: `values` (x, y, z).
    """
    save_image(image_of(values, affine), path)


def write_table(
    file_set: FileSet,
    name: str,
    rows: Sequence[Mapping[str, str]],
    columns: Mapping[str, str],
    described: str,
) -> None:
    """Write a table of cases and what its columns mean."""
    used = [key for key in columns if any(key in row for row in rows)]
    with file_set.path(name).open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
        writer.writerows([used, *([row.get(key, "n/a") for key in used] for row in rows)])
    file_set.write_json(described, {key: {"Description": columns[key]} for key in used})
