"""Scans, priors, masks and labels as a network takes them, and results on the scan's grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from dmrifit._utils.affines import voxel_volume
from dmrifit.io.grids import Volume, as_stored, turn_to_grid
from dmrifit.io.masks import MASK_THRESHOLD, binarize
from dmrifit.networks.volume_cases import listed, naming, volume_inputs

#: A volume, its prior or None, its mask or None.
Scan: TypeAlias = tuple[Any, Any, Any]

#: Voxels to either side in which a shared path looks for what is there now in the prior scan.
PRIOR_REACH = 2


def output_size(size: int, n_layers: int = 9) -> int:
    """Give the edge of the output of a segment after convolutions of 3³ without padding."""
    n_lost = 2 * n_layers
    if size <= n_lost:
        raise ValueError(
            f"{n_layers} convolutions without padding need segments of at least {1 + n_lost} "
            f"voxels, not {size}"
        )
    return size - n_lost


def joined_cases(volumes: Any, priors: Any, masks: Any) -> list[Scan]:
    """Join volumes, priors and masks to cases; images of a case must share a grid."""
    volumes = listed(volumes, "cases")
    columns = [volumes]
    for name, values in (("priors", priors), ("masks", masks)):
        missing = [None] * len(volumes)
        columns.append(missing if values is None else listed(values, name, len(volumes)))
    cases = []
    for number, (volume, prior, mask) in enumerate(zip(*columns, strict=True)):
        with naming(number):
            prior, mask = _ordered(prior, volume, "prior"), _ordered(mask, volume, "mask")
        cases.append((volume, prior, mask))
    return cases


def paired_labels(cases: Sequence[Scan], labels: Any) -> list[tuple[Any, Any]]:
    """Pair each label with the volume of its case."""
    labels = listed(labels, "targets", len(cases))
    pairs = []
    for number, (label, (volume, *_)) in enumerate(zip(labels, cases, strict=True)):
        with naming(number):
            label = _ordered(label, volume, "label")
            _check_label_shape(label, volume)
        pairs.append((label, volume))
    return pairs


def values_of(volume: Any) -> Any:
    """Give the values of an image; an array is returned as it is."""
    return np.asanyarray(volume.dataobj) if _is_image(volume) else volume


def brain_of(case: Scan) -> NDArray[np.bool_]:
    """Give the brain (x, y, z) of a case on its own grid: its mask, or what is not zero."""
    volume, _, mask = case
    if mask is not None:
        return binarize(values_of(mask), name="its mask")
    values = np.asarray(values_of(volume))
    return np.any(values.reshape(*values.shape[:3], -1) != 0, axis=-1)


def steps_of(volume: Any) -> NDArray[np.float64]:
    """Give the edges (3,) of a voxel in mm; 1 mm for arrays."""
    return nib.affines.voxel_sizes(volume.affine) if _is_image(volume) else np.ones(3)


def edge_of(volume: Any) -> float | None:
    """Give the edge in mm of a cube as large as a voxel of an image; None of an array."""
    return float(np.cbrt(voxel_volume(volume.affine))) if _is_image(volume) else None


def binary_label(label: Any, volume: Any) -> NDArray[np.uint8]:
    """Check a label of 0 and 1 against the shape of its volume; give it as ``uint8``."""
    values = np.asarray(values_of(label))
    _check_label_shape(values, volume)
    if values.dtype.kind not in "fiub":
        raise ValueError(_label_message(values.dtype))
    # Other numbers may be classes, some of which are no lesions, so none is taken for 1.
    is_binary = np.isin(values, (0, 1))
    if not is_binary.all():
        raise ValueError(_label_message(np.unique(values[~is_binary])[:3]))
    return np.ascontiguousarray(values, dtype=np.uint8)


def _check_label_shape(label: Any, volume: Any) -> None:
    shape, expected = np.shape(label), np.shape(volume)[:3]
    if shape != expected:
        raise ValueError(f"a label of shape {shape} for a volume of shape {expected}")


def on_network_grid(case: Scan, spacing: float | None) -> Scan:
    """Give a case as arrays; images in RAS order, and resampled if there is a spacing."""
    volume, prior, mask = case
    if mask is not None:
        mask = binarize(values_of(mask), name="its mask")
    if not _is_image(volume):
        return values_of(volume), values_of(prior), mask
    scans = []
    for scan in (volume, prior):
        # Linear interpolation would blur vessels, which then look like tissue that enhances.
        values = None if scan is None else _resampled(scan, volume, spacing, order=3)
        if values is not None and mask is None:
            # Splines leave waves beside the edge, which would count as brain.
            share = _resampled(np.asarray(values_of(scan)) != 0, volume, spacing)
            values = np.where(share > MASK_THRESHOLD, values, 0)
        scans.append(values)
    if mask is not None:
        # Interpolation gives the share of each new voxel that lies inside.
        mask = _resampled(mask, volume, spacing) > MASK_THRESHOLD
    return scans[0], scans[1], mask


def case_on_network_grid(case: Scan, spacing: float | None) -> Scan:
    """Give a case of images as images on the grid of the network; one of arrays as it is."""
    volume, _, _ = case
    if not _is_image(volume):
        return case
    affine = network_grid(volume, spacing).affine
    image, prior, mask = on_network_grid(case, spacing)
    scans = (image, prior, mask)
    image, prior, mask = (None if scan is None else Volume.of(scan, affine) for scan in scans)
    return image, prior, mask


def network_grid(volume: Any, spacing: float | None) -> Volume:
    """Give zeros on the grid of an image in RAS order, resampled if there is a spacing."""
    return _on_spacing(np.zeros(volume.shape[:3], np.uint8), volume.affine, spacing)


def label_on_network_grid(label: Any, volume: Any, spacing: float | None) -> NDArray[np.uint8]:
    """
    Resample a label of 0 and 1 to the grid of the network.

    Shapes: `label` (x, y, z); returns (x, y, z) of that grid.
    """
    binary = binary_label(label, volume)
    # The grid of arrays without an affine is unknown; they are taken as resampled already.
    if not _is_image(volume):
        return binary
    # Interpolation gives the share of each new voxel that is lesion.
    return (_resampled(binary, volume, spacing) > MASK_THRESHOLD).astype(np.uint8)


def classes_on_network_grid(label: Any, volume: Any, spacing: float | None) -> NDArray[Any]:
    """Give a label of whole numbers (x, y, z) on the grid of the network, from nearest voxels."""
    values = np.asarray(values_of(label))
    if not _is_image(volume):
        return values
    return Volume.of(values, volume.affine).labels_onto(network_grid(volume, spacing)).values


def on_scan_grid(
    probability: NDArray[np.float32], volume: Any, spacing: float | None
) -> NDArray[np.float32]:
    """Bring probabilities (x, y, z) from the grid of the network to that of the scan."""
    if not _is_image(volume):
        return probability
    if spacing is None:
        return as_stored(probability, volume.affine)
    target = Volume.of(np.zeros(volume.shape[:3], np.uint8), volume.affine)
    source = Volume.of(probability, network_grid(volume, spacing).affine)
    # Interpolation may leave the range of probabilities by rounding.
    return np.clip(source.onto(target, np.eye(4)).values, 0, 1)


def scores_on_scan_grid(
    scores: NDArray[np.float32], volume: Any, spacing: float | None
) -> NDArray[np.float32]:
    """Bring scores of candidates (x, y, z) to the grid of the scan, from the nearest voxel."""
    if not _is_image(volume):
        return scores
    source = Volume.of(scores, network_grid(volume, spacing).affine)
    # Interpolated, a high score would widen what is marked at a low threshold.
    return source.nearest_onto(volume, mode="nearest").values


def _label_message(content: Any) -> str:
    return (
        f"a label must be 0 and 1 in each voxel, not {content}; mark what is a lesion, for "
        "example label > 0"
    )


def _is_image(volume: Any) -> bool:
    return isinstance(volume, nib.Nifti1Image)


def _resampled(
    image: Any, volume: Any, spacing: float | None, *, order: int = 1
) -> NDArray[np.float32]:
    """
    Resample a volume, its prior or its mask, channel by channel, to the network's grid.

    A network does not give mirror images the mirror image of its answer: the grid is in RAS order.
    """
    values = values_of(image)
    inputs = volume_inputs(values)
    if values.shape[:3] != volume.shape[:3]:
        raise ValueError(
            f"a prior or mask of shape {values.shape} for a volume of shape {volume.shape[:3]}"
        )
    channels = [
        _on_spacing(channel, volume.affine, spacing, order=order).values for channel in inputs
    ]
    return np.stack(channels, axis=-1).reshape(*channels[0].shape, *values.shape[3:])


def _on_spacing(
    values: NDArray[Any], affine: NDArray[np.float64], spacing: float | None, *, order: int = 1
) -> Volume:
    """Bring values to cubic voxels, their axes in RAS order, on the grid of `prepare_scan`."""
    return Volume.upright(values, affine).resampled(spacing, order=order)


def _ordered(image: Any, volume: Any, name: str) -> Any:
    """Give an image in the order of the volume's axes, whose grid it must be on."""
    # Arrays have no affine to compare; their shapes are checked where they are used.
    if not (_is_image(volume) and _is_image(image)):
        return image
    grid, reference = (image.shape[:3], image.affine), (volume.shape[:3], volume.affine)
    turn = turn_to_grid(grid, reference, name=f"its {name}", reference_name="the volume")
    return image.as_reoriented(turn)
