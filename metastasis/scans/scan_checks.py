"""Checks of scans before segmentation: headers, skull, contrast agent, likeness to training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dmrifit._utils.affines import MM3_PER_ML, voxel_volume
from dmrifit.io.masks import check_same_grid
from dmrifit.io.nifti import read_grid

if TYPE_CHECKING:
    from metastasis.scans.cases import Case

__all__ = [
    "LARGEST_BRAIN_ML",
    "THICKEST_MM",
    "check_files",
    "check_stripped",
    "contrast_note",
    "intensity_ratios",
    "scan_files",
    "slice_note",
    "training_range",
    "unlike_notes",
]

#: Slices thicker than this in mm are reported: a metastasis of 2.5 mm fills a part of one.
THICKEST_MM = 3.0
#: What is not zero in a larger scan is skull or air, not brain alone.
LARGEST_BRAIN_ML = 2200.0

#: Shares of the voxels of a brain below the intensities that scans are compared by.
_QUANTILES = (0.1, 0.9, 0.99, 0.999)
#: Of the range in training: scanners and strippers differ as much.
_TOLERANCE = 1.3
#: How many times as much of a brain may be marked as was lesion in a training scan, and from which
#: share of the brain on that is told.
_EXCESS, _LEAST_EXCESS = 3.0, 2e-3
# In stripped post-contrast scans .1 % of the inner brain had 2.4 to 2.6 times its median or more,
# without contrast agent at most 1.6.
_VESSELS = 1.8
_DEPTH_MM = 4.0  # below the surface, where scalp and dura may be left


# Files ------------------------------------------------------------------------------------------


def scan_files(
    scans: Path, prior: Path | None, brain: Path | None, *, is_table: bool
) -> list[dict[str, Path]]:
    """List the files of each case of a table or folder, or of a single scan."""
    from dmrifit.io.case_tables import folder_rows, folder_table
    from dmrifit.io.tables import read_rows
    from metastasis.scans.cases import ALIASES, IMAGES, OPTIONAL, REQUIRED

    if not is_table:
        files = {"image": scans, "prior": prior, "brain": brain}
        return [{key: path for key, path in files.items() if path is not None}]
    table = folder_table(scans)
    rows: list[dict[str, str]]
    folder = table.parent
    if table.is_dir():
        folder, rows = table, folder_rows(table, IMAGES)
    else:
        read = read_rows(table, required=REQUIRED, optional=OPTIONAL, aliases=ALIASES)
        rows = [row for _, row in read]
    keys = ("image", "prior", "brain")
    return [{key: folder / row[key] for key in keys if row.get(key)} for row in rows]


def check_files(files: Mapping[str, Path]) -> tuple[float, float, float]:
    """
    Check the headers of a scan, its prior and its brain; give the edges of its voxels in mm.

    No volume is read.
    """
    shape, affine = _grid(files["image"])
    for key, path in files.items():
        if key == "image":
            continue
        other_shape, other_affine = _grid(path)
        try:
            check_same_grid(
                other_shape,
                other_affine,
                shape,
                affine,
                name=str(path),
                reference_name=str(files["image"]),
            )
        except ValueError as error:
            raise ValueError(f"{error}; dmrifit-metastasis prepare does so too") from None
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    return x, y, z


def _grid(path: Path) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Read shape and affine of a volume of three axes."""
    shape, affine = read_grid(path)
    if len(shape) == 4 and shape[3] == 1:
        shape = shape[:3]
    if len(shape) != 3:
        size = " × ".join(map(str, shape))
        raise ValueError(
            f"{path} has {len(shape)} axes ({size}); a volume of three axes is needed: save the "
            "post-contrast volume alone"
        )
    return shape, affine


# Notes ------------------------------------------------------------------------------------------


def slice_note(name: str, edges: Sequence[float]) -> str:
    """Say that slices are thick; empty where they are not."""
    if max(edges) <= THICKEST_MM:
        return ""
    return (
        f"{name} has slices of {max(edges):.2g} mm: metastases of a few mm fill a part of one, "
        "and many will be missed"
    )


def check_stripped(case: Case) -> None:
    """Refuse a scan without a brain mask in which more is not zero than a brain."""
    if case.brain is not None:
        return
    volume = np.count_nonzero(case.image) * voxel_volume(case.affine) / MM3_PER_ML
    if volume > LARGEST_BRAIN_ML:
        raise ValueError(
            f"{case.name}: {volume:.0f} mL are not zero, where a brain has at most "
            f"{LARGEST_BRAIN_ML:.0f}: skull or air is left; dmrifit-metastasis prepare strips the "
            "scan, or name the brain (--mask, column brain)"
        )


def contrast_note(case: Case) -> str:
    """Say that no vessel is bright, as in a scan without contrast agent; empty where some are."""
    from scipy.ndimage import distance_transform_edt

    brain = _brain(case)
    inner = brain
    if not brain.all():
        inner = distance_transform_edt(brain, sampling=case.spacing) > _DEPTH_MM
    if not inner.any():
        return ""
    median, brightest = np.quantile(case.image[inner], (0.5, 0.999))
    if median <= 0 or brightest >= _VESSELS * median:
        return ""
    return (
        f"{case.name}: no bright vessels, the brightest .1 % of the inner brain begin at "
        f"{brightest / median:.2f} × its median; is this a post-contrast T1 scan?"
    )


def intensity_ratios(image: NDArray[Any], brain: NDArray[np.bool_]) -> list[float] | None:
    """
    Give quantiles of a brain over its median; None where the median is not positive.

    Shapes: `image` (x, y, z), `brain` (x, y, z).
    """
    median, *quantiles = np.quantile(image[brain], (0.5, *_QUANTILES)).tolist()
    if median <= 0:
        return None
    return [float(quantile / median) for quantile in quantiles]


def training_range(
    images: Sequence[NDArray[Any]],
    brains: Sequence[NDArray[np.bool_]],
    labels: Sequence[NDArray[Any]],
) -> dict[str, list[float]]:
    """
    Give the ranges over training scans (x, y, z) that `unlike_notes` compares with.

    ``low`` and ``high`` of each quantile, and ``marked``, the largest share of a brain that was
    lesion; without quantiles where a scan has a median that is not positive.
    """
    rows = [intensity_ratios(*pair) for pair in zip(images, brains, strict=True)]
    shares = [
        np.count_nonzero(label) / np.count_nonzero(brain)
        for label, brain in zip(labels, brains, strict=True)
    ]
    result: dict[str, list[float]] = {"marked": [max(shares)]}
    ratios = [row for row in rows if row is not None]
    if len(ratios) == len(rows):
        result["low"] = np.asarray(np.min(ratios, axis=0), float).tolist()
        result["high"] = np.asarray(np.max(ratios, axis=0), float).tolist()
    return result


def unlike_notes(
    case: Case, seen: Mapping[str, Sequence[float]] | None, marked: NDArray[Any] | None = None
) -> list[str]:
    """
    Say in what a scan is unlike the training scans; nothing where these are unknown.

    Shapes: `marked` (x, y, z), what was found in it.
    """
    if not seen:
        return []
    brain = _brain(case)
    reasons = []
    ratios = intensity_ratios(case.image, brain)
    if ratios is not None and "low" in seen:
        columns = zip(_QUANTILES, ratios, seen["low"], seen["high"], strict=True)
        for share, ratio, low, high in columns:
            if not low / _TOLERANCE <= ratio <= high * _TOLERANCE:
                reasons.append(
                    f"{100 * share:.3g} % of its brain lie below {ratio:.2f} × the median, in "
                    f"training below {low:.2f} to {high:.2f}"
                )
    if marked is not None:
        share = np.count_nonzero(marked) / np.count_nonzero(brain)
        most = float(seen["marked"][0])
        if share > max(_EXCESS * most, _LEAST_EXCESS):
            reasons.append(
                f"{100 * share:.2g} % of its brain are marked, of a training scan at most "
                f"{100 * most:.2g} % were lesion"
            )
    if not reasons:
        return []
    return [f"{case.name}: this scan is unlike the training scans: {'; '.join(reasons)}"]


def _brain(case: Case) -> NDArray[np.bool_]:
    if case.brain is not None:
        return case.brain
    return np.asarray(case.image != 0)
