"""Preparation of a person's own scan for a segmenter: grid, brain, prior scan, intensity."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from dmrifit._optional import import_optional
from dmrifit._utils.checks import check_number
from dmrifit.imaging.head_steps import find_brain
from dmrifit.imaging.rigid_alignment import HeadAlignment
from dmrifit.io import nifti
from dmrifit.io.bids_derivatives import stem
from dmrifit.io.grids import Volume
from dmrifit.io.masks import MASK_THRESHOLD
from metastasis.scans.cases import Case
from metastasis.scans.scan_checks import PRIOR, RECORD, contrast_note, cover_note, slice_note

__all__ = ["prepare_scan"]

_SPACINGS = (0.4, 2.0)  # mm
_MOST_NEGATIVE = 0.05  # of the brain
_BRIGHTEST = 10.0  # medians


@dataclass(frozen=True)
class PreparedScan:
    """
    A scan that a segmenter can take, its brain, and the prior scan in its place.

    Parameters
    ----------
    image : Nifti1Image
        Cubic voxels in RAS order; the median of the brain is 1, everything else 0.
    brain : Nifti1Image
        0 and 1, on the grid of the image.
    prior : Nifti1Image or None
        The prior scan, scaled like the image, on its grid.
    matrix : ndarray of shape (4, 4), or None
        From mm RAS+ of the image to mm RAS+ of the prior scan as it was given.
    likeness : float or None
        Median local correlation of both scans, up to 1.
    notes : list of str
        What a reader should know of the scan: thick slices, no bright vessels, a skull.
    """

    image: nib.Nifti1Pair
    brain: nib.Nifti1Pair
    prior: nib.Nifti1Pair | None = None
    matrix: NDArray[np.float64] | None = None
    likeness: float | None = None
    notes: list[str] = field(default_factory=list)


def prepare_scan(
    image: nifti.Image,
    *,
    prior: nifti.Image | None = None,
    brain: nifti.Image | None = None,
    spacing: float = 1.0,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> PreparedScan:
    """
    Prepare a post-contrast T1 scan, and a prior one, for a segmenter of metastases.

    The scan is brought to cubic voxels in RAS order (cubic splines, after smoothing where voxels
    become larger) and everything outside the brain set to 0. The prior scan is aligned rigidly
    (mutual information, then locally standardized signals), interpolated once onto that grid and
    cut by the same brain. Both are divided by their median in the brain. Without a mask the brain
    is found by `find_brain`: exactly in a scan that is stripped already, roughly where a skull is
    there.

    Parameters
    ----------
    image : path or Nifti1Image
        The scan, magnitudes on three axes.
    prior : path or Nifti1Image, optional
        An earlier scan of the same person and contrast, on any grid.
    brain : path or Nifti1Image, optional
        The brain on the grid of `image`, of a tool made for it (HD-BET, SynthStrip).
    spacing : float, default=1.0
        Edge of the voxels in mm, .4 to 2.
    out : path, optional
        Folder to write to, made if missing: ``NAME.nii.gz``, ``NAME_brain.nii.gz``,
        ``NAME_prior.nii.gz`` and ``NAME_prepared.json``, which appear together.
    overwrite : bool, default=False
        Whether files of these names may be replaced.

    Returns
    -------
    PreparedScan
        Images on one grid.

    Raises
    ------
    ValueError
        If an image has not three axes or values that are not finite, the mask lies on another
        grid, no brain is found, intensities are normalized to a mean of 0, or the prior scan does
        not show the same head.
    FileNotFoundError, FileExistsError, OSError
        If an input is missing, or an output there or not writable.
    ImportError
        If the extra ``preprocess`` is not installed and a step needs it.
    """
    check_number("the spacing in mm", spacing, least=_SPACINGS[0], most=_SPACINGS[1])
    name = nifti.image_name(image)
    # Everything is read and checked, and every library there, before long work.
    scan = _read(image)
    prior_scan = None if prior is None else _read(prior)
    mask = None
    if brain is not None:
        mask = scan.read_mask(
            brain, f"the scan {name}", name=f"the brain mask {nifti.image_name(brain)}"
        )
    if prior_scan is not None:
        import_optional("SimpleITK")
    if brain is None:
        import_optional("dipy.segment.mask")
    label = stem(image) if isinstance(image, str | Path) else "scan"
    files = {key: f"{label}_{key}.nii.gz" for key in ("brain", "prior")}
    files |= {"image": f"{label}.nii.gz", "record": f"{label}{RECORD}"}
    sources = {"Image": image, "Prior": prior, "Brain": brain}
    inputs = sources.values()
    with nifti.output_files(out, files.values(), overwrite=overwrite, inputs=inputs) as file_set:
        result = _prepared(scan, prior_scan, mask, spacing, (name, nifti.image_name(prior)))
        if file_set is not None:
            written = [key for key in ("image", "brain", "prior") if getattr(result, key)]
            for key in written:
                getattr(result, key).to_filename(file_set.path(files[key]))
            record: dict[str, Any] = {
                "Spacing": spacing,
                "Brain": "found" if brain is None else "given",
                "Intensity": "divided by the median of the brain",
                "Notes": result.notes,
                "Sources": nifti.describe_sources(**sources),
            }
            if result.matrix is not None:
                record |= {"PriorLikeness": result.likeness, "PriorMatrix": result.matrix.tolist()}
                record["PriorMatrixDirection"] = "from image to prior scan, in mm RAS+"
            file_set.write_json(files["record"], record)
    return result


def _read(image: nifti.Image) -> Volume:
    """Read a scan; refuse an image of several volumes."""
    loaded = nifti.load_image(image)
    if len(loaded.shape) == 4 and loaded.shape[3] > 1:
        raise ValueError(
            f"{nifti.image_name(image)} has {loaded.shape[3]} volumes; save the post-contrast one "
            "alone"
        )
    return Volume.read(image)


def _prepared(
    scan: Volume,
    prior_scan: Volume | None,
    mask: NDArray[np.bool_] | None,
    spacing: float,
    names: tuple[str, str],
) -> PreparedScan:
    brain_note = None
    if mask is None:
        mask, is_stripped = find_brain(scan)
        if not is_stripped:
            brain_note = (
                f"{names[0]} still has its skull, so its brain mask is only approximate; look at "
                "it, or give the mask of a brain-extraction tool (prepare --brain)"
            )
    _check_magnitudes(scan.values[mask], names[0])
    picture = scan.resampled(spacing, order=3)
    share = Volume.of(mask.astype(np.float32), scan.affine).resampled(spacing).values
    inside = share > MASK_THRESHOLD
    image = Volume.of(_scaled(picture.values, inside), picture.affine)
    case = Case(names[0], image.values, brain=inside, affine=image.affine)
    notes = [brain_note, slice_note(names[0], voxel_sizes(scan.affine)), contrast_note(case)]
    prior, matrix, likeness = None, None, None
    if prior_scan is not None:
        alignment = HeadAlignment.of(scan, prior_scan)
        matrix, likeness = alignment.matrix, alignment.likeness
        if not alignment.shows_same_head:
            raise ValueError(
                f"{names[1]} does not look like the head of {names[0]} ({alignment.agreement}); "
                "check that person and contrast are the same, or leave the prior scan out"
            )
        moved = prior_scan.onto(image, matrix, order=3).values
        prior = Volume.of(_scaled(moved, inside), image.affine)
        notes.append(slice_note(PRIOR + names[1], voxel_sizes(prior_scan.affine)))
        notes.append(cover_note(names[1], prior.values, inside))
    brain = Volume.of(inside.astype(np.uint8), image.affine)
    return PreparedScan(image, brain, prior, matrix, likeness, [note for note in notes if note])


def _check_magnitudes(intensities: NDArray[Any], name: str) -> None:
    """Refuse a brain whose intensities were normalized to a mean of 0."""
    negative = np.count_nonzero(intensities <= 0) / intensities.size
    if negative > _MOST_NEGATIVE:
        raise ValueError(
            f"{name}: {100 * negative:.0f} % of the values in the brain are 0 or less; give the "
            "scan as the scanner made it, not normalized, or a mask of the brain alone"
        )


def _scaled(values: NDArray[Any], inside: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Divide by the median in the brain, and set everything else to 0."""
    positive = values[inside & (values > 0)]
    median = float(np.median(positive)) if positive.size else 1.0
    # A few voxels of other scale, such as burnt-in marks, must not reach a network.
    scaled: NDArray[np.float32] = np.clip(values / median, 0, _BRIGHTEST).astype(np.float32)
    return np.where(inside, scaled, np.float32(0))
