"""Cases: diffusion scans with masks and patient data, read from and written to tables of files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anomaly.scans.directions import turned_as_stored
from dmrifit._utils.counts import counted
from dmrifit.engine.gradient_files import read_gradients
from dmrifit.engine.protocol import Protocol
from dmrifit.io import case_tables
from dmrifit.io.masks import binarize
from dmrifit.io.nifti import load_image, values_of

__all__ = ["Case", "read_cases", "write_cases"]

#: What the numbers of a tissue map stand for.
TISSUES = {1: "white matter", 2: "gray matter", 3: "fluid", 4: "deep gray matter"}

#: b-value in s/mm² up to which a volume counts as one without diffusion weighting.
UNWEIGHTED = 50.0

_FLUID = 3
_ROUNDING = 1e-4  # by which lengths may differ from 1 before vectors are normalized
_MASKS = ("brain", "lesion", "followup")
_WORDS = ("sex", "site", "grade", "kind")
#: What a table may say of a patient.
PATIENT_COLUMNS = ("age", *_WORDS, "synthetic")

#: Tables of scans, whose b-values and directions are in the files next to them by default.
SCANS = case_tables.CaseTable("anomaly.scans", what="scan")
#: Tables of cases, which are read as they are.
CASES = replace(SCANS, required=("patient", "image", "bval"), what="case")


@dataclass(frozen=True, eq=False)
class Case(case_tables.CaseGrid):
    """
    A diffusion scan of a person with masks and patient data.

    Parameters
    ----------
    patient : str
        Identifier. Cases of one patient are never split between training and test.
    signal : ndarray of shape (x, y, z, n_directions)
        Diffusion-weighted signals of one b-value, divided by the signal without diffusion
        weighting; clipped to 0 to 1, and set to 0 outside the brain; kept in single precision.
    brain : ndarray of shape (x, y, z), optional
        The brain; by default the voxels with any signal.
    tissue : ndarray of shape (x, y, z), optional
        0 outside the brain, 1 white matter, 2 gray matter, 3 ventricles and other fluid, 4 deep
        gray matter.
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
        How the lesion changes diffusion, such as ``"infiltrating"`` (raises it) or ``"cellular"``
        (lowers it).
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
        If arrays do not fit together, hold values that are not finite, masks other values than 0
        and 1 or tissues others than 0 to 4, the brain is empty, or the affine places no voxels.
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
        label = f"case {checked['name']}"
        signal = np.asarray(self.signal)
        if signal.ndim != 4 or not signal.size:
            raise ValueError(
                f"{label}: the signal must have axes (x, y, z, directions), not the shape "
                f"{signal.shape}"
            )
        shape = signal.shape[:3]
        signal = case_tables.checked_values(signal, signal.shape, f"{label}: the signal")
        for key in _MASKS:
            if (mask := getattr(self, key)) is not None:
                checked[key] = case_tables.checked_mask(mask, f"{label}: the mask {key!r}", shape)
        brain = checked.setdefault("brain", (signal > 0).any(axis=-1))
        if not brain.any():
            raise ValueError(f"{label}: the brain is empty; give a mask of what is brain")
        # Signals are 0 to 1 inside the brain and 0 outside. A large scan that already is so is
        # kept as it is, without a copy.
        is_in_range = signal.min() >= 0 and signal.max() <= 1
        if not is_in_range or np.count_nonzero(signal) > np.count_nonzero(signal[brain]):
            signal = np.clip(signal, 0, 1) * brain[..., None]
        checked["signal"] = signal
        if self.tissue is not None:
            checked["tissue"] = _checked_tissue(self.tissue, shape, label)
        if self.b0 is not None:
            checked["b0"] = case_tables.checked_values(
                self.b0, shape, f"{label}: the signal at b = 0"
            )
            if checked["b0"][brain].min() <= 0:
                n = np.count_nonzero(checked["b0"][brain] <= 0)
                raise ValueError(
                    f"{label}: the signal at b = 0 is not above 0 in {counted(n, 'voxel')} of the "
                    "brain; leave them out of the mask"
                )
        if self.directions is not None:
            checked["directions"] = _unit_vectors(self.directions, signal.shape[3], label)
        if not (np.isfinite(self.b) and self.b > UNWEIGHTED):
            raise ValueError(f"{label}: b must be above {UNWEIGHTED:g} s/mm², not {self.b!r}")
        checked["age"], checked["b"] = float(self.age), float(self.b)
        checked |= {key: str(getattr(self, key)) for key in _WORDS}
        checked["synthetic"] = bool(self.synthetic)
        self._store(checked)

    def __repr__(self) -> str:
        title = "synthetic case" if self.synthetic else "case"
        size = " × ".join(map(str, self.shape))
        status = "no known lesion"
        if self.lesion is not None and not self.healthy:
            status = f"lesion of {counted(self.lesion.sum(), 'voxel')}"
        directions = counted(self.signal.shape[3], "direction")
        return f"<{title} {self.name!r}, {size} voxels, {directions}, {status}>"

    @property
    def healthy(self) -> bool:
        """Whether there is no lesion."""
        return self.lesion is None or not self.lesion.any()

    @property
    def scored(self) -> NDArray[np.bool_]:
        """Voxels that are scored: white and gray matter, or the brain without a tissue map."""
        if self.tissue is None:
            return self.brain
        return self.brain & (self.tissue > 0) & (self.tissue != _FLUID)


def normalized(
    values: ArrayLike, b: ArrayLike, brain: ArrayLike
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """
    Divide weighted signals by the mean at b = 0, and clip the quotients to 0 to 1.

    Shapes: `values` (x, y, z, m), `b` (m,), `brain` (x, y, z); returns quotients (x, y, z,
    n_weighted) and that mean (x, y, z), both 0 outside the brain.
    """
    series = np.asarray(values)
    weights = np.asarray(b, dtype=np.float64)
    inside = np.asarray(brain, dtype=bool)
    plain = weights <= UNWEIGHTED
    if plain.all() or not plain.any():
        missing = "without" if not plain.any() else "with"
        raise ValueError(
            f"no volume {missing} diffusion weighting: b is from {weights.min():g} to "
            f"{weights.max():g} s/mm²; signals with it are divided by those without, so both are "
            "needed"
        )
    is_bad = ~np.isfinite(series[inside])
    if is_bad.any():
        n = np.count_nonzero(is_bad.any(axis=1))
        raise ValueError(
            f"non-finite values in {counted(n, 'voxel')} of the brain; leave them out of the mask"
        )
    b0 = np.zeros(inside.shape, dtype=np.float32)
    b0[inside] = series[inside][:, plain].mean(axis=1, dtype=np.float64)
    signal = np.zeros((*inside.shape, np.count_nonzero(~plain)), dtype=np.float32)
    usable = b0 > 0
    weighted = series[usable][:, ~plain].astype(np.float32)
    # Noise lifts a few quotients above 1, which no signal after weighting reaches.
    signal[usable] = np.clip(weighted / b0[usable][:, None], 0, 1)
    return signal, b0


def read_cases(table: str | Path) -> list[Case]:
    """
    Read cases from a table of files.

    Parameters
    ----------
    table : path
        Tab-separated (``.csv``: comma-separated). Required columns are ``patient``, ``image`` (the
        series, with volumes at b = 0 and at one b-value) and ``bval``; optional are ``bvec``,
        ``brain``, ``tissue``, ``lesion``, ``followup``, ``name``, ``age``, ``sex``, ``site``,
        ``grade``, ``kind`` and ``synthetic`` (true or false). Paths are relative to the table,
        ``n/a`` is a missing value. All images of a case are NIfTI on one grid. Masks are
        thresholded at 0.5; without a mask the brain is where the signal at b = 0 is above 0.

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
    return CASES.read(table, _read_case)


def write_cases(cases: Sequence[Case], folder: str | Path, *, overwrite: bool = False) -> Path:
    """
    Write cases as NIfTI series with their b-values and directions, and a table for `read_cases`.

    All files appear together, or none. A series contains a volume at b = 0 and the signals
    multiplied by it; for a case without a volume at b = 0 it is 1 in the brain.

    Parameters
    ----------
    cases : sequence of Case
        Cases with different names.
    folder : path
        Output folder, made if missing.
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

    def write_series(case: Case, path_of: Callable[[str], Path]) -> None:
        # A case holds quotients, so that the series gets a volume at b = 0 to divide by again.
        base = (case.brain if case.b0 is None else case.b0 * case.brain)[..., None]
        series = np.concatenate([base, case.signal * base], axis=-1, dtype=np.float32)
        case_tables.save_values(series, case.affine, path_of("image"))
        b = [0.0, *([case.b] * case.signal.shape[3])]
        text = " ".join(f"{value:g}" for value in b) + "\n"
        path_of("bval").write_text(text, encoding="utf-8")
        if case.directions is not None:
            axes = np.vstack([np.zeros(3), turned_as_stored(case.directions, case.affine)]).T
            # All digits, so that a case comes back as it was.
            lines = (" ".join(repr(float(value)) for value in axis) for axis in axes)
            path_of("bvec").write_text("\n".join(lines) + "\n", encoding="utf-8")

    return CASES.write(cases, folder, write_series, row_of=_row, overwrite=overwrite)


def _read_case(row: dict[str, str], folder: Path) -> Case:
    path = folder / row["image"]
    image = load_image(path)
    bvec = folder / row["bvec"] if row.get("bvec") else None
    b, vectors = read_gradients(folder / row["bval"], bvec)
    try:
        Protocol(b)
    except ValueError as error:
        raise ValueError(f"{row['bval']}: {error}") from None
    if image.ndim != 4 or image.shape[3] != len(b):
        raise ValueError(
            f"{path} has the shape {image.shape}, and {row['bval']} {counted(len(b), 'b-value')}; "
            "one for each volume is needed"
        )
    weighted = b > UNWEIGHTED
    if weighted.any() and np.ptp(b[weighted]) > 0.1 * b[weighted].mean():
        raise ValueError(
            f"{row['bval']} has several b-values, {np.unique(b[weighted])[:6].tolist()} s/mm²; "
            "keep one of them"
        )
    shape = image.shape[:3]
    volumes: dict[str, Any] = {}
    for key in CASES.images[1:]:
        if row.get(key):
            name = str(folder / row[key])
            values = case_tables.read_on_grid(folder / row[key], shape, image.affine, row["image"])
            if key == "tissue":
                volumes[key] = np.rint(values)
            else:
                volumes[key] = binarize(values, name=name, may_be_empty=key != "brain")
    series = values_of(image, str(path))
    if "brain" not in volumes:
        with np.errstate(invalid="ignore"):
            volumes["brain"] = (series[..., ~weighted] > 0).all(axis=-1)
    signal, b0 = normalized(series, b, volumes["brain"])
    directions = None if vectors is None else turned_as_stored(vectors[weighted], image.affine)
    return Case(
        row["patient"],
        signal,
        affine=image.affine,
        name=row.get("name", ""),
        b0=b0 if (b0[volumes["brain"]] > 0).all() else None,
        b=float(np.round(b[weighted].mean())),
        directions=directions,
        **volumes,
        **patient_data(row),
    )


def patient_data(row: Mapping[str, str]) -> dict[str, Any]:
    """Read what a row of a table says of the patient."""
    entries: dict[str, Any] = {key: row[key] for key in PATIENT_COLUMNS if row.get(key)}
    if "age" in entries:
        try:
            entries["age"] = float(row["age"])
        except ValueError:
            raise ValueError(f"age must be a number of years, not {row['age']!r}") from None
    if "synthetic" in entries:
        entries["synthetic"] = row["synthetic"] == "true"
    return entries


def _row(case: Case, stem: str) -> dict[str, str]:
    row = CASES.row_of(case, stem)
    files = ["image", "bval", *(["bvec"] if case.directions is not None else [])]
    row |= {key: stem + CASES.endings[key] for key in files}
    words = {key: getattr(case, key) for key in _WORDS if getattr(case, key)}
    case_tables.check_names(words)
    row |= words
    if np.isfinite(case.age):
        row["age"] = f"{case.age:g}"
    return row


def _checked_tissue(values: ArrayLike, shape: tuple[int, ...], label: str) -> NDArray[np.uint8]:
    tissue = np.asarray(values)
    case_tables.check_shape(tissue, shape, f"{label}: the tissue map")
    if not np.isin(tissue, (0, *TISSUES)).all():
        unknown = np.setdiff1d(np.unique(tissue), (0, *TISSUES))
        raise ValueError(
            f"{label}: the tissue map holds {unknown[:5].tolist()}; its numbers are 0 to "
            f"{max(TISSUES)}"
        )
    return np.ascontiguousarray(tissue, dtype=np.uint8)


def _unit_vectors(directions: ArrayLike, n: int, label: str) -> NDArray[np.float64]:
    """Check gradient directions, and correct the rounding of files with few digits."""
    vectors = np.array(directions, dtype=np.float64)
    if vectors.shape != (n, 3):
        raise ValueError(
            f"{label}: directions must have the shape ({n}, 3), one for each signal, not "
            f"{vectors.shape}"
        )
    lengths = np.linalg.norm(vectors, axis=1)
    if not np.isfinite(lengths).all() or not (abs(lengths - 1) < 0.1).all():
        raise ValueError(
            f"{label}: directions must be unit vectors; their lengths are from {lengths.min():g} "
            f"to {lengths.max():g}"
        )
    if (abs(lengths - 1) > _ROUNDING).any():
        vectors /= lengths[:, None]
    return vectors
