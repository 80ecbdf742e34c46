"""Cases: brain scans with label, prior and brain mask, in memory and as tables of files."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dmrifit._utils.checks import check_finite
from dmrifit._utils.counts import size_text
from dmrifit._utils.text_files import check_file, read_text
from dmrifit.io import case_tables
from dmrifit.io.bids_derivatives import stem
from dmrifit.io.grids import three_axes
from dmrifit.io.masks import binarize
from dmrifit.io.nifti import load_image, values_of
from dmrifit.io.tables import save_table

__all__ = ["Case", "read_case", "read_cases", "write_cases"]

#: Tables of cases.
CASES = case_tables.CaseTable("metastasis.scans")


@dataclass(frozen=True, eq=False)
class Case(case_tables.CaseGrid):
    """
    A brain scan of a patient with its label, prior scan and brain mask.

    Parameters
    ----------
    patient : str
        Identifier. Cases of one patient are never split between training and test.
    image : ndarray of shape (x, y, z)
        Contrast-enhanced T1 image in any unit, finite; kept in single precision.
    label : ndarray of shape (x, y, z), optional
        Metastases: 1 inside and 0 outside; kept as ``uint8``.
    prior : ndarray of shape (x, y, z), optional
        An earlier image of the patient, aligned to the grid of `image`; None if there is none.
    affine : ndarray of shape (4, 4), optional
        From voxel indices to RAS+ coordinates in mm; by default voxels of 1 mm.
    brain : ndarray of shape (x, y, z), optional
        The brain; kept as ``bool``.
    synthetic : bool, default=False
        Whether the case was simulated.
    name : str, default=""
        Name of the case; that of the patient by default.
    prior_label, mimics : ndarray of shape (x, y, z), optional
        Of a synthetic case: metastases in the prior image, and bright structures that are no
        metastases. 0 and 1.
    lesions : DataFrame, optional
        Of a synthetic case: a row for each metastasis, with `number` (in the order in which
        `scipy.ndimage.label` finds the parts of `label`, voxels that share a corner connected),
        `diameter_mm`, `status` (``"new"``, ``"grown"``, ``"stable"``, ``"shrunk"`` or, without a
        prior, ``"unknown"``) and `volume_mL`.

    Raises
    ------
    ValueError
        If an array has no voxel, another number of axes or another shape than the image, values
        that are not finite or a mask other values than 0 and 1, or the affine places no voxels.
    """

    patient: str
    image: NDArray[np.float32]
    label: NDArray[np.uint8] | None = None
    prior: NDArray[np.float32] | None = None
    affine: NDArray[np.float64] = field(default_factory=lambda: np.eye(4))
    brain: NDArray[np.bool_] | None = None
    synthetic: bool = False
    name: str = ""
    prior_label: NDArray[np.uint8] | None = None
    mimics: NDArray[np.uint8] | None = None
    lesions: pd.DataFrame | None = None

    _on_grid: ClassVar[str] = "image"

    def __post_init__(self) -> None:
        patient = str(self.patient)
        checked: dict[str, Any] = {"patient": patient, "name": str(self.name or patient)}
        title = f"case {checked['name']}"
        image = np.asarray(self.image)
        if image.ndim != 3 or not image.size:
            raise ValueError(
                f"{title}: the image must be a volume (x, y, z), not an array of shape "
                f"{image.shape}"
            )
        for key, values in (("image", image), ("prior", self.prior)):
            if values is None:
                continue
            name = f"{title}: the {key}"
            remedy = "bring both to one grid (prepare_scan does)"
            checked[key] = case_tables.checked_values(values, image.shape, name, remedy=remedy)
        for key in ("label", "brain", "prior_label", "mimics"):
            mask = getattr(self, key)
            if mask is None:
                continue
            name = f"{title}: the {key.replace('_', ' ')}"
            checked[key] = case_tables.checked_mask(mask, name, image.shape)
            if key != "brain":
                checked[key] = checked[key].astype(np.uint8)
        checked["synthetic"] = bool(self.synthetic)
        self._store(checked)

    def __repr__(self) -> str:
        prefix = "synthetic case" if self.synthetic else "case"
        size = size_text(self.shape)
        return f"<{prefix} {self.name!r} of patient {self.patient!r}, {size} voxels>"


def read_cases(
    table: str | Path,
    *,
    failed: list[dict[str, str]] | None = None,
    read: Callable[[dict[str, str], Path], Case] | None = None,
) -> list[Case]:
    """
    Read cases from a table of files, or from a folder of images.

    Parameters
    ----------
    table : path
        Tab-separated (``.csv``: comma-separated). Needed are the columns ``patient`` and
        ``image``; ``label``, ``prior``, ``brain``, ``name`` and ``synthetic`` (true or false) may
        follow, and what `write_cases` adds for synthetic cases (``prior_label``, ``mimics``,
        ``lesions``). Paths are relative to the table, ``n/a`` stands for nothing. All images of a
        case are NIfTI on one grid. Where labels have classes, ``classes`` says which ones are
        metastases, such as ``1,3,4``; by default all above 0 are. A mask is what is above 0.5.
        In a folder without a table ``cases.tsv`` each image is a case of its own patient:
        ``p01.nii.gz`` (or ``p01_image.nii.gz``), with ``p01_label.nii.gz``, ``p01_prior.nii.gz``
        and ``p01_brain.nii.gz`` beside it.
    failed : list, optional
        Takes ``name``, ``patient`` and ``problem`` of each case that cannot be read, which is left
        out; by default the first one raises.
    read : callable, optional
        Reads the case of a row, with the folder of its files, instead of `read_row`.

    Returns
    -------
    list of Case
        In the order of the table, all in memory.

    Raises
    ------
    ValueError
        If the table or a row is wrong, or two cases have one name; the message names the row.
    FileNotFoundError
        If a file is missing, without `failed`.

    Examples
    --------
    A table of scans with several classes of labels::

        patient  image        label        classes  prior             brain
        p01      p01_T1c.nii  p01_seg.nii  1,3,4    p01_T1c_2024.nii  p01_brain.nii
        p02      p02_T1c.nii  p02_seg.nii  1,3,4    n/a               p02_brain.nii
    """
    return CASES.read(table, read or read_row, failed=failed)


def read_case(
    image: str | Path, *, prior: str | Path | None = None, brain: str | Path | None = None
) -> Case:
    """
    Read a case without a table.

    Parameters
    ----------
    image : path
        Contrast-enhanced T1 image.
    prior : path, optional
        Earlier image of the patient on its grid.
    brain : path, optional
        The brain on its grid.

    Returns
    -------
    Case
        Named after the file.

    Raises
    ------
    ValueError
        If an image is damaged or lies on another grid.
    FileNotFoundError
        If a file is missing.
    """
    row = {"patient": stem(image), "image": image, "prior": prior, "brain": brain}
    return read_row({key: str(value) for key, value in row.items() if value is not None}, Path())


def write_cases(cases: Sequence[Case], folder: str | Path, *, overwrite: bool = False) -> Path:
    """
    Write cases as NIfTI files and a table, which `read_cases` reads.

    All files appear together, or none. Images are written as they are in memory, so they come back
    as they were.

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

    def write_lesions(case: Case, path_of: Callable[[str], Path]) -> None:
        if case.lesions is not None:
            save_table(case.lesions, path_of("lesions"))

    return CASES.write(cases, folder, write_lesions, overwrite=overwrite)


def read_row(row: dict[str, str], folder: Path) -> Case:
    """Read the files of one row of a table."""
    image_path = folder / row["image"]
    image = load_image(image_path)

    def values_on_grid(column: str) -> NDArray | None:
        if not row.get(column):
            return None
        try:
            return case_tables.read_on_grid(
                folder / row[column], image.shape[:3], image.affine, row["image"]
            )
        except ValueError as error:
            remedy = ""
            if column == "prior":
                remedy = "; dmrifit-metastasis prepare (prepare_scan) aligns and resamples it"
            raise ValueError(f"{error}{remedy}") from None

    columns: dict[str, Any] = {"synthetic": row.get("synthetic") == "true"}
    for column in ("label", "brain", "prior_label", "mimics"):
        values = values_on_grid(column)
        if values is None:
            continue
        may_be_empty = column != "brain"
        columns[column] = binarize(
            values, name=str(folder / row[column]), may_be_empty=may_be_empty
        )
        if column == "label" and row.get("classes"):
            try:
                classes = [int(word) for word in row["classes"].split(",")]
            except ValueError:
                raise ValueError(
                    "classes must be whole numbers separated by commas, such as 1,3,4, not "
                    f"{row['classes']!r}"
                ) from None
            # A label that went through a file's scale factor is 0.99999997, so no comparison is
            # exact.
            columns[column] = np.isin(np.rint(values), classes)
    volume = three_axes(values_of(image, str(image_path)), image_path)
    check_finite(volume, str(image_path))
    prior = values_on_grid("prior")
    if prior is not None:
        prior_path = folder / row["prior"]
        check_finite(prior, str(prior_path))
        # A prior of zeros would count as a missing one without a word.
        if prior.size and not prior.any():
            raise ValueError(
                f"{prior_path} holds nothing but 0; give a scan, or n/a where there is none"
            )
        columns["prior"] = prior
    if row.get("lesions"):
        columns["lesions"] = _read_lesions(folder / row["lesions"])
    name = row.get("name", "")
    return Case(row["patient"], volume, affine=image.affine, name=name, **columns)


def _read_lesions(path: Path) -> pd.DataFrame:
    check_file(path, "table")
    try:
        return pd.read_csv(io.StringIO(read_text(path), newline=""), sep="\t")
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(
            f"{path}: not a table of lesions ({' '.join(str(error).split())}); write_cases makes "
            "one"
        ) from None
