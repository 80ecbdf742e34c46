"""Scans, priors, masks and labels of the segmenter: arrays or images, checked, on the grid that a network sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from dmrifit.io.grids import array_of, onto, resampled, scan_of
from dmrifit.io.masks import MASK_THRESHOLD, binarize, check_same_grid
from dmrifit.networks.volume_cases import check_length, listed, naming

__all__ = [
    "Scan",
    "as_seen",
    "binary_label",
    "edge_of",
    "label_as_seen",
    "labelled",
    "on_own_grid",
    "together",
    "values_of",
]

#: A volume, its prior or None, its mask or None.
Scan: TypeAlias = tuple[Any, Any, Any]


def together(volumes: Any, priors: Any, masks: Any) -> list[Scan]:
    """Lay volumes, priors and masks together."""
    volumes = listed(volumes, "cases")
    parts = []
    for name, given in (("priors", priors), ("masks", masks)):
        one = [None] * len(volumes) if given is None else listed(given, name)
        check_length(volumes, one, name)
        parts.append(one)
    cases = [(volumes[i], parts[0][i], parts[1][i]) for i in range(len(volumes))]
    for number, (volume, *others) in enumerate(cases):
        for name, other in zip(("prior", "mask"), others, strict=True):
            with naming(number):
                _check_same_grid(volume, other, name)
    return cases


def labelled(cases: Sequence[Scan], labels: Any) -> list[tuple[Any, Any]]:
    """Lay labels and volumes together."""
    labels = listed(labels, "targets")
    check_length(cases, labels, "targets")
    pairs = [(label, case[0]) for label, case in zip(labels, cases, strict=True)]
    for number, (label, volume) in enumerate(pairs):
        with naming(number):
            _check_same_grid(volume, label, "label")
    return pairs


def values_of(part: Any) -> Any:
    """Give the values of an image, or what is no image as it is."""
    return np.asanyarray(part.dataobj) if isinstance(part, nib.Nifti1Image) else part


def edge_of(volume: Any) -> float | None:
    """Give the edge of a cube as large as a voxel."""
    if not isinstance(volume, nib.Nifti1Image):
        return None
    return float(np.cbrt(abs(np.linalg.det(volume.affine[:3, :3]))))


def binary_label(label: Any, volume: Any) -> NDArray[np.uint8]:
    """
    Give a label as 0 and 1 on the grid of its volume, if it is one.

    Shapes: `label` (x, y, z), `volume` (x, y, z); returns (x, y, z).
    """
    found = np.asarray(values_of(label))
    shape = np.shape(volume)[:3]
    if found.shape != shape:
        raise ValueError(f"a label of shape {found.shape} for a volume of shape {shape}")
    if found.dtype.kind not in "fiub" or not np.isin(found, (0, 1)).all():
        other = (
            np.unique(found[~np.isin(found, (0, 1))])[:3]
            if found.dtype.kind in "fiu"
            else found.dtype
        )
        raise ValueError(
            f"a label must be 0 and 1 in each voxel, not {other}; mark what is a lesion, for "
            "example label > 0"
        )
    return np.ascontiguousarray(found, dtype=np.uint8)


def as_seen(case: Scan, spacing: float | None) -> Scan:
    """Give a case as arrays, images resampled where that is asked for."""
    volume = case[0]
    mask = None if case[2] is None else binarize(values_of(case[2]), name="its mask")
    if not _resampled(volume, spacing):
        return values_of(volume), None if case[1] is None else values_of(case[1]), mask
    found: list[Any] = []
    for part in (*case[:2], mask):
        if part is None:
            found.append(None)
            continue
        values = np.asarray(values_of(part), dtype=np.float32)
        if not np.isfinite(values).all():
            raise ValueError(
                f"{np.count_nonzero(~np.isfinite(values))} values that are not finite"
            )
        if values.shape[:3] != volume.shape[:3]:
            raise ValueError(
                f"a prior or mask of shape {values.shape} for a volume of shape {volume.shape[:3]}"
            )
        channels = [values] if values.ndim == 3 else list(np.moveaxis(values, -1, 0))
        arrays = [array_of(_on_spacing(one, volume.affine, spacing)) for one in channels]
        found.append(arrays[0] if values.ndim == 3 else np.stack(arrays, axis=-1))
    return found[0], found[1], None if mask is None else found[2] > MASK_THRESHOLD


def label_as_seen(label: Any, volume: Any, spacing: float | None) -> NDArray[np.uint8]:
    """
    Give a label on the grid that the network sees.

    Shapes: `label` (x, y, z); returns (x, y, z).
    """
    found = binary_label(label, volume)
    if not _resampled(volume, spacing):
        return found
    share = array_of(_on_spacing(found.astype(np.float32), volume.affine, spacing))
    return (share > MASK_THRESHOLD).astype(np.uint8)


def on_own_grid(
    found: NDArray[np.float32], volume: Any, spacing: float | None
) -> NDArray[np.float32]:
    """
    Give probabilities on the grid of a volume.

    Shapes: `found` (x, y, z); returns (x, y, z).
    """
    if not _resampled(volume, spacing):
        return found
    own = np.zeros(volume.shape[:3], np.uint8)
    grid = _on_spacing(own, volume.affine, spacing)
    back = onto(scan_of(found, grid.affine), scan_of(own, volume.affine), np.eye(4))
    return np.clip(array_of(back), 0, 1)


def _resampled(volume: Any, spacing: float | None) -> bool:
    return spacing is not None and isinstance(volume, nib.Nifti1Image)


def _on_spacing(
    values: NDArray[Any], affine: NDArray[np.float64], spacing: float | None
) -> nib.Nifti1Pair:
    """Bring values to cubic voxels, their axes in RAS order, as `prepare_brain` does."""
    ordered = nib.as_closest_canonical(nib.Nifti1Image(values, affine))
    return resampled(scan_of(np.asarray(ordered.dataobj), ordered.affine), spacing)


def _check_same_grid(volume: Any, other: Any, name: str) -> None:
    """Refuse an image on another grid than the volume's."""
    if not (isinstance(volume, nib.Nifti1Image) and isinstance(other, nib.Nifti1Image)):
        return
    parts = (other.shape[:3], other.affine, volume.shape[:3], volume.affine)
    check_same_grid(*parts, name=f"its {name}", reference_name="the volume")
