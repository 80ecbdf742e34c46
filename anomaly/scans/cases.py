"""Cases: a diffusion scan with what is known about it, in memory, and read from and written to a table of files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anomaly.scans.directions import turned_as_stored
from dmrifit.cohort.participants_table import WORDS
from dmrifit.engine.protocol import Protocol, read_gradients
from dmrifit.io.atomic_files import FileSet
from dmrifit.io.case_tables import (
    check_names,
    check_shape,
    checked_affine,
    checked_mask,
    checked_values,
    file_stems,
    read_each,
    read_on_grid,
    save_values,
    write_table,
)
from dmrifit.io.masks import binarize
from dmrifit.io.nifti import load_image, values_of

__all__ = ["TABLE", "TISSUES", "Case", "normalized", "read_cases", "write_cases"]

#: Name of the table that `write_cases` makes.
TABLE = "cases.tsv"

#: What the numbers of a tissue map stand for.
TISSUES = {1: "white matter", 2: "gray matter", 3: "fluid", 4: "deep gray matter"}

_FLUID = 3
_UNWEIGHTED = 50.0  # s/mm², up to which a volume counts as one without diffusion weighting
_ROUNDING = 1e-4  # of a unit vector's length, which files with few digits have
_MASKS = ("brain", "lesion", "followup")
_WORDS = ("sex", "site", "grade", "kind")
_REQUIRED = ("patient", "image", "bval")
_OPTIONAL = ("name", "bvec", *_MASKS, "tissue", "age", *_WORDS, "synthetic")
_ALIASES = {"participant_id": "patient"}

_COLUMNS = {
    "patient": "Patient; cases of one patient are never split between training and test",
    "image": "Diffusion series: volumes without and with diffusion weighting",
    "bval": "b-values of its volumes in s/mm²",
    "bvec": "Gradient directions of its volumes, in the frame of FSL's files",
    "name": "Name of the case",
    "brain": "The brain",
    "tissue": "Tissues: 1 white matter, 2 gray matter, 3 fluid, 4 deep gray matter, 0 outside",
    "lesion": "Lesion: 1 inside, 0 outside; a case without one is healthy",
    "followup": "Lesion at a later scan, on this grid",
    "age": "Years",
    "sex": "Sex",
    "site": "Scanner",
    "grade": "Grade of the tumor",
    "kind": "How the lesion changes diffusion",
    "synthetic": "Whether the case was simulated; no person was scanned then",
}


@dataclass(frozen=True, eq=False)
class Case:
    """
    A diffusion scan of a person with what is known about it.

    Parameters
    ----------
    patient : str
        Identifier. Cases of one patient are never split between training and test.
    signal : ndarray of shape (x, y, z, n_directions)
        Diffusion-weighted signals of one b-value, divided by the signal without diffusion weighting; 0 to 1, and 0
        outside the brain. What lies outside this range is cut off; kept in single precision.
    brain : ndarray of shape (x, y, z), optional
        The brain; by default the voxels with any signal.
    tissue : ndarray of shape (x, y, z), optional
        0 outside the brain, 1 white matter, 2 gray matter, 3 ventricles and other fluid, 4 deep gray matter.
    lesion : ndarray of shape (x, y, z), optional
        Mask of the lesion; None or empty for healthy persons.
    followup : ndarray of shape (x, y, z), optional
        Mask of the lesion at a later scan.
    affine : ndarray of shape (4, 4), optional
        From voxel indices to RAS+ coordinates in mm; by default voxels of 1 mm.
    age : float, optional
        Years; NaN if unknown.
    sex, site, grade : str, default=""
        Sex, scanner, and grade of the tumor; empty if unknown.
    kind : str, default=""
        How the lesion changes diffusion, such as ``"infiltrating"`` (raises it) or ``"cellular"`` (lowers it).
    synthetic : bool, default=False
        Whether the case was simulated.
    name : str, default=""
        Name of the case; that of the patient by default.
    b0 : ndarray of shape (x, y, z), optional
        The signal without diffusion weighting in any unit, above 0 in the brain.
    b : float, default=1000.0
        Diffusion weighting of the signals in s/mm².
    directions : ndarray of shape (n_directions, 3), optional
        Gradient directions along the axes of the image, unit vectors.

    Raises
    ------
    ValueError
        If arrays do not fit together, hold values that are not finite, masks other values than 0 and 1 or tissues
        others than 0 to 4, the brain is empty, or the affine places no voxels.
    """

    patient: str
    signal: NDArray[np.float32]
    brain: NDArray[np.bool_] = None  # type: ignore[assignment]  # an array in every case that was made
    tissue: NDArray[np.uint8] | None = None
    lesion: NDArray[np.bool_] | None = None
    followup: NDArray[np.bool_] | None = None
    affine: NDArray[np.float64] = field(default_factory=lambda: np.eye(4))
    age: float = float("nan")
    sex: str = ""
    site: str = ""
    grade: str = ""
    kind: str = ""
    synthetic: bool = False
    name: str = ""
    b0: NDArray[np.float32] | None = None
    b: float = 1000.0
    directions: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        patient = str(self.patient)
        checked: dict[str, Any] = {"patient": patient, "name": str(self.name or patient)}
        who = f"case {checked['name']}"
        signal = np.asarray(self.signal)
        if signal.ndim != 4 or not signal.size:
            raise ValueError(
                f"{who}: the signal must have axes (x, y, z, directions), not the shape {signal.shape}"
            )
        shape = signal.shape[:3]
        signal = checked_values(signal, signal.shape, f"{who}: the signal")
        for key in _MASKS:
            if (mask := getattr(self, key)) is not None:
                checked[key] = checked_mask(mask, shape, f"{who}: the mask {key!r}")
        brain = checked.setdefault("brain", (signal > 0).any(axis=-1))
        if not brain.any():
            raise ValueError(f"{who}: the brain is empty; give a mask of what is brain")
        inside = signal[brain]
        if (
            signal.min() < 0
            or signal.max() > 1
            or np.count_nonzero(signal) > np.count_nonzero(inside)
        ):
            signal = np.clip(signal, 0, 1) * brain[..., None]
        checked["signal"] = signal
        if self.tissue is not None:
            tissue = np.asarray(self.tissue)
            check_shape(tissue, shape, f"{who}: the tissue map")
            if not np.isin(tissue, (0, *TISSUES)).all():
                others = np.setdiff1d(np.unique(tissue), (0, *TISSUES))
                raise ValueError(
                    f"{who}: the tissue map holds {others[:5].tolist()}; its numbers are 0 to {max(TISSUES)}"
                )
            checked["tissue"] = np.ascontiguousarray(tissue, dtype=np.uint8)
        if self.b0 is not None:
            checked["b0"] = checked_values(self.b0, shape, f"{who}: the signal at b = 0")
            if checked["b0"][brain].min() <= 0:
                n = np.count_nonzero(checked["b0"][brain] <= 0)
                raise ValueError(
                    f"{who}: the signal at b = 0 is not above 0 in {n} voxels of the brain; leave them out of the mask"
                )
        if self.directions is not None:
            checked["directions"] = _unit_vectors(self.directions, signal.shape[3], who)
        if not (np.isfinite(self.b) and self.b > _UNWEIGHTED):
            raise ValueError(f"{who}: b must be above {_UNWEIGHTED:g} s/mm², not {self.b!r}")
        checked["affine"] = checked_affine(self.affine, who)
        checked["age"], checked["b"] = float(self.age), float(self.b)
        checked |= {key: str(getattr(self, key)) for key in _WORDS}
        checked["synthetic"] = bool(self.synthetic)
        for key, value in checked.items():
            object.__setattr__(self, key, value)

    def __repr__(self) -> str:
        kind = "synthetic case" if self.synthetic else "case"
        size = " × ".join(map(str, self.shape))
        what = (
            "healthy"
            if self.healthy
            else f"lesion of {0 if self.lesion is None else self.lesion.sum()} voxels"
        )
        return f"<{kind} {self.name!r}, {size} voxels, {self.signal.shape[3]} directions, {what}>"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Numbers of voxels."""
        x, y, z = self.brain.shape
        return x, y, z

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Lengths of the edges of a voxel in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def healthy(self) -> bool:
        """Whether there is no lesion."""
        return self.lesion is None or not self.lesion.any()

    @property
    def scored(self) -> NDArray[np.bool_]:
        """Where maps are scored: white and gray matter, or the brain where no tissues are known."""
        return (
            self.brain
            if self.tissue is None
            else self.brain & (self.tissue > 0) & (self.tissue != _FLUID)
        )


def normalized(
    values: ArrayLike, b: ArrayLike, brain: ArrayLike
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """
    Divide diffusion-weighted signals by the mean signal without diffusion weighting.

    Shapes: `values` (x, y, z, m), `b` (m,), `brain` (x, y, z); returns signal (x, y, z, n), b0 (x,
    y, z).
    """
    series, weights, inside = (
        np.asarray(values),
        np.asarray(b, dtype=np.float64),
        np.asarray(brain, dtype=bool),
    )
    plain = weights <= _UNWEIGHTED
    if plain.all() or not plain.any():
        missing = "without" if not plain.any() else "with"
        raise ValueError(
            f"no volume {missing} diffusion weighting: b is from {weights.min():g} to {weights.max():g} s/mm²; signals "
            "with it are divided by those without, so both are needed"
        )
    wrong = ~np.isfinite(series[inside])
    if wrong.any():
        n = np.count_nonzero(wrong.any(axis=1))
        raise ValueError(
            f"{n} voxels of the brain have values that are no finite numbers; leave them out of the mask"
        )
    b0 = np.zeros(inside.shape, dtype=np.float32)
    b0[inside] = series[inside][:, plain].mean(axis=1, dtype=np.float64)
    signal = np.zeros((*inside.shape, np.count_nonzero(~plain)), dtype=np.float32)
    usable = b0 > 0
    signal[usable] = np.clip(
        series[usable][:, ~plain].astype(np.float32) / b0[usable][:, None], 0, 1
    )
    return signal, b0


def read_cases(table: str | Path) -> list[Case]:
    """
    Read cases from a table of files.

    Parameters
    ----------
    table : path
        Tab-separated (``.csv``: comma-separated). Needed are the columns ``patient``, ``image`` (the series, with
        volumes at b = 0 and at one b-value) and ``bval``; ``bvec``, ``brain``, ``tissue``, ``lesion``, ``followup``,
        ``name``, ``age``, ``sex``, ``site``, ``grade``, ``kind`` and ``synthetic`` (true or false) may follow. Paths
        are relative to the table, ``n/a`` stands for nothing. All images of a case are NIfTI on one grid. A mask is
        what is above 0.5; without one the brain is where the signal at b = 0 is above 0.

    Returns
    -------
    list of Case
        In the order of the table, all in memory.

    Raises
    ------
    ValueError
        If the table or a row is wrong, or two cases have one name; the message names the row.
    FileNotFoundError
        If a file is missing.
    """
    return read_each(table, _read_case, required=_REQUIRED, optional=_OPTIONAL, aliases=_ALIASES)


def write_cases(cases: Sequence[Case], folder: str | Path, *, overwrite: bool = False) -> Path:
    """
    Write cases as NIfTI series with their b-values and directions, and a table, which `read_cases` reads.

    All files appear together, or none. Series hold a volume at b = 0 and, multiplied with it, the signals; without a
    known volume at b = 0 it is 1 in the brain.

    Parameters
    ----------
    cases : sequence of Case
        What to write; their names differ.
    folder : path
        Where to; made if missing.
    overwrite : bool, default=False
        Whether files of the same names may be replaced.

    Returns
    -------
    Path
        The table, ``cases.tsv``.

    Raises
    ------
    ValueError
        If there is no case, or names cannot be kept in a table or as files.
    FileExistsError
        If a file exists and `overwrite` is false.
    OSError
        If the folder cannot be written to.
    """
    stems = file_stems((case.patient, case.name) for case in cases)
    rows = [_row(case, one) for case, one in zip(cases, stems, strict=True)]
    kept = ("image", "bval", "bvec", *_MASKS, "tissue")
    files = [row[key] for row in rows for key in kept if key in row]
    with FileSet(folder, [*files, "cases.json", TABLE], overwrite=overwrite) as file_set:
        for case, row in zip(cases, rows, strict=True):
            save_values(_series(case), case.affine, file_set.path(row["image"]))
            for key in (*_MASKS, "tissue"):
                if key in row:
                    save_values(getattr(case, key), case.affine, file_set.path(row[key]))
            b = [0.0, *([case.b] * case.signal.shape[3])]
            file_set.path(row["bval"]).write_text(
                " ".join(f"{value:g}" for value in b) + "\n", encoding="utf-8"
            )
            if case.directions is not None:
                axes = np.vstack([np.zeros(3), turned_as_stored(case.directions, case.affine)]).T
                lines = (" ".join(repr(float(value)) for value in axis) for axis in axes)
                file_set.path(row["bvec"]).write_text("\n".join(lines) + "\n", encoding="utf-8")
        write_table(file_set, TABLE, rows, _COLUMNS, "cases.json")
    return Path(folder) / TABLE


def _read_case(row: dict[str, str], folder: Path) -> Case:
    """Make the case of one row."""
    path = folder / row["image"]
    image = load_image(path)
    b, vectors = read_gradients(
        folder / row["bval"], folder / row["bvec"] if row.get("bvec") else None
    )
    try:
        Protocol(b)
    except ValueError as error:
        raise ValueError(f"{row['bval']}: {error}") from None
    if image.ndim != 4 or image.shape[3] != len(b):
        raise ValueError(
            f"{path} has the shape {image.shape}, and {row['bval']} {len(b)} b-values; one for each volume is needed"
        )
    weighted = b > _UNWEIGHTED
    if weighted.any() and np.ptp(b[weighted]) > 0.1 * b[weighted].mean():
        raise ValueError(
            f"{row['bval']} has several b-values, {np.unique(b[weighted])[:6].tolist()} s/mm²; keep one of them"
        )
    shape = image.shape[:3]
    found: dict[str, Any] = {}
    for key in (*_MASKS, "tissue"):
        if row.get(key):
            values = read_on_grid(folder / row[key], shape, image.affine, row["image"])
            if key == "tissue":
                found[key] = np.rint(values)
            else:
                found[key] = binarize(
                    values, name=str(folder / row[key]), may_be_empty=key != "brain"
                )
    series = values_of(image, str(path))
    if "brain" not in found:
        with np.errstate(invalid="ignore"):
            found["brain"] = (series[..., ~weighted] > 0).all(axis=-1)
    signal, b0 = normalized(series, b, found["brain"])
    found |= {key: row.get(key, "") for key in _WORDS}
    for key, words in (("age", None), ("synthetic", WORDS)):
        word = row.get(key, "").lower()
        try:
            found[key] = words[word] if words else float(word or "nan")
        except (KeyError, ValueError):
            raise ValueError(
                f"{key} must be {'true or false' if words else 'a number of years'}, not {row[key]!r}"
            ) from None
    return Case(
        row["patient"],
        signal,
        affine=image.affine,
        name=row.get("name", ""),
        b0=b0 if (b0[found["brain"]] > 0).all() else None,
        b=float(np.round(b[weighted].mean())),
        directions=None if vectors is None else turned_as_stored(vectors[weighted], image.affine),
        **found,
    )


def _series(case: Case) -> NDArray[np.float32]:
    """Make magnitudes that give the signals back bit by bit when they are divided by those at b = 0."""
    b0 = case.brain.astype(np.float32) if case.b0 is None else case.b0 * case.brain
    base = b0[..., None]
    weighted = case.signal * base
    if case.b0 is not None:
        inside = case.brain
        below = np.broadcast_to(base[inside], weighted[inside].shape)
        wanted, best = case.signal[inside], weighted[inside]
        for towards in (np.float32(-np.inf), np.float32(np.inf)):
            # A product is rounded, and so is the quotient; a neighbor may lead back where the product does not.
            other = np.nextafter(weighted[inside], towards)
            best = np.where((best / below != wanted) & (other / below == wanted), other, best)
        weighted[inside] = best
    return np.concatenate([base, weighted], axis=-1)


def _row(case: Case, stem: str) -> dict[str, str]:
    """Make the row of a case."""
    row = {
        "patient": case.patient,
        "name": case.name,
        "synthetic": "true" if case.synthetic else "false",
    }
    row |= {"image": f"{stem}_dwi.nii.gz", "bval": f"{stem}_dwi.bval"}
    row |= {
        key: f"{stem}_{key}.nii.gz"
        for key in (*_MASKS, "tissue")
        if getattr(case, key) is not None
    }
    words = {key: getattr(case, key) for key in _WORDS if getattr(case, key)}
    check_names(words)
    row |= words
    if np.isfinite(case.age):
        row["age"] = f"{case.age:g}"
    return row if case.directions is None else row | {"bvec": f"{stem}_dwi.bvec"}


def _unit_vectors(directions: ArrayLike, n: int, who: str) -> NDArray[np.float64]:
    """Check directions."""
    found = np.array(directions, dtype=np.float64)
    if found.shape != (n, 3):
        raise ValueError(
            f"{who}: directions must have the shape ({n}, 3), one for each signal, not {found.shape}"
        )
    lengths = np.linalg.norm(found, axis=1)
    if not np.isfinite(lengths).all() or not (abs(lengths - 1) < 0.1).all():
        raise ValueError(
            f"{who}: directions must be unit vectors; their lengths are from {lengths.min():g} to {lengths.max():g}"
        )
    if (abs(lengths - 1) > _ROUNDING).any():
        found /= lengths[:, None]
    return found
