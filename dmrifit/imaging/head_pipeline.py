"""Preparation of head scans for networks: bias field, grid, brain mask, aligned prior."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from dmrifit._optional import import_optional
from dmrifit._utils.checks import check_number
from dmrifit.imaging.head_steps import correct_bias_field, find_brain
from dmrifit.imaging.rigid_alignment import HeadAlignment
from dmrifit.io.atomic_files import FileSet
from dmrifit.io.bids_derivatives import derivative_name, makers, stem
from dmrifit.io.grids import Volume
from dmrifit.io.masks import MASK_THRESHOLD
from dmrifit.io.nifti import Image, describe_sources, image_name, output_files, save_image

__all__ = ["prepare_brain"]

_SPACINGS = (0.2, 10.0)  # mm
_SUFFIXES = {
    "image": "T1w.nii.gz",
    "brain": "mask.nii.gz",
    "prior": "prior.nii.gz",
    "label": "dseg.nii.gz",
    "sidecar": "T1w.json",
}


@dataclass(frozen=True)
class PreparedBrain:
    """
    Scans of a patient that a network can take.

    Parameters
    ----------
    image : Nifti1Image
        The image, shape (x, y, z), float32; 0 outside the brain where that is known.
    brain : Nifti1Image or None
        The brain, 0 and 1, on the grid of the image.
    prior : Nifti1Image or None
        The earlier image in the place and on the grid of the image; 0 outside the brain and where
        it has no value.
    label : Nifti1Image or None
        The label on the grid of the image.
    transform : ndarray of shape (4, 4), or None
        From world coordinates of the image to those of the prior, in mm; None without a prior.
    """

    image: nib.Nifti1Pair
    brain: nib.Nifti1Pair | None
    prior: nib.Nifti1Pair | None
    label: nib.Nifti1Pair | None
    transform: NDArray[np.float64] | None


def prepare_brain(
    image: Image,
    *,
    prior: Image | None = None,
    label: Image | None = None,
    spacing: float | None = 1.0,
    bias_field: bool = True,
    brain_mask: bool | Image = True,
    register: bool = True,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> PreparedBrain:
    """
    Prepare a head scan and a prior one for a network: bias field, grid, brain mask, alignment.

    Steps, each of which can be left out: the brain is found (`find_brain`), the bias field removed
    (`correct_bias_field`, N4), the image resampled to voxels of `spacing` mm in RAS order, and the
    prior, after the same, aligned rigidly to the image (`HeadAlignment.of`) and resampled onto its
    grid. Interpolation is linear, after smoothing where voxels become larger; labels take the
    nearest voxel. What was prepared can be prepared again: the brain stays the same, and little is
    left of a bias field.

    Parameters
    ----------
    image : path or Nifti1Image
        The scan, magnitudes on three axes.
    prior : path or Nifti1Image, optional
        An earlier scan of the same patient, on any grid.
    label : path or Nifti1Image, optional
        Labels on the grid of `image`.
    spacing : float, optional
        Edge of the voxels to resample to, in mm, 0.2 to 10; None to keep the grid of the image.
    bias_field : bool, default=True
        Whether to remove the bias field. Images that were normalized already, with values below 0
        inside the brain, cannot have theirs removed.
    brain_mask : bool, path or Nifti1Image, default=True
        Whether to find the brain and set everything else to 0; a mask on the grid of `image` is
        taken instead. The search is rough where a skull is there: for measurements give a mask of
        a tool made for it.
    register : bool, default=True
        Whether to align the prior; otherwise the world coordinates of both headers are believed.
    out : path, optional
        Folder to write to, made if missing: images and a sidecar, which appear together.
    overwrite : bool, default=False
        Whether files of the same names in `out` may be replaced.

    Returns
    -------
    PreparedBrain
        Images on one grid, and how the prior was moved.

    Raises
    ------
    ValueError
        If an image has not three axes or values that are not finite, a grid does not fit, the
        spacing is out of its range, no brain is found, or the image was normalized and its bias
        field shall be removed.
    FileNotFoundError, FileExistsError, OSError
        If an input is missing, or an output there or not writable.
    ImportError
        If the extra ``preprocess`` is not installed and a step needs it.

    Warns
    -----
    UserWarning
        If the aligned prior does not look like the head of the image.

    References
    ----------
    Tustison et al., IEEE Trans Med Imaging 29:1310–1320, 2010 (N4); Mattes et al., IEEE Trans Med
    Imaging 22:120–128, 2003 (mutual information).
    """
    if spacing is not None:
        check_number("the spacing in mm", spacing, least=_SPACINGS[0], most=_SPACINGS[1])
    # Every input is read and checked, and every library there, before long work.
    name = image_name(image)
    scan = Volume.read(image)
    prior_scan = None if prior is None else Volume.read(prior)
    label_scan = None if label is None else scan.read_like(label, name)
    inputs: dict[str, Any] = {"Image": image, "Prior": prior, "Label": label}
    mask = None
    if not isinstance(brain_mask, bool):
        mask = scan.read_mask(brain_mask, name)
        inputs["Mask"] = brain_mask
    registered = prior is not None and register
    if bias_field or registered:
        import_optional("SimpleITK")
    if brain_mask is True:
        import_optional("dipy.segment.mask")
    prefix = stem(image) if isinstance(image, str | Path) else ""
    # The sidecar, last, completes the set.
    files = {key: derivative_name(prefix, end, desc="prepared") for key, end in _SUFFIXES.items()}
    sources = inputs.values()
    with output_files(out, files.values(), overwrite=overwrite, inputs=sources) as file_set:
        if brain_mask is True:
            mask, _ = find_brain(scan)
        prepared, brain = _ready(scan, mask, spacing, bias_field=bias_field, name=name)
        moved, transform = None, None
        if prior_scan is not None:
            # A given mask is that of the image, so the brain of the prior is searched in any case.
            prior_mask = None if brain_mask is False else find_brain(prior_scan)[0]
            prior_name = image_name(prior)
            # The prior keeps its own spacing here: it is interpolated once, by the alignment.
            source, _ = _ready(
                prior_scan, prior_mask, None, bias_field=bias_field, name=prior_name
            )
            transform = np.eye(4)
            if register:
                alignment = HeadAlignment.of(prepared, source)
                transform = alignment.matrix
                if not alignment.shows_same_head:
                    warnings.warn(
                        f"{prior_name} does not look like the head of the image "
                        f"({alignment.agreement}); look at the result, or align it by other means "
                        "(register=False)",
                        stacklevel=2,
                    )
            moved = source.onto(prepared, transform)
            if brain is not None:
                # The network must see the prior only where it sees the scan.
                moved = Volume.of(moved.values * (brain.values > 0), moved.affine)
        on_grid = None if label_scan is None else label_scan.labels_onto(prepared)
        result = PreparedBrain(prepared, brain, moved, on_grid, transform)
        if file_set is not None:
            steps = {
                "Spacing": spacing,
                "BiasField": bias_field,
                "BrainMask": brain_mask is not False,
                "Registered": registered,
            }
            _write(result, file_set, files, steps, inputs)
    return result


def _ready(
    scan: Volume,
    mask: NDArray[np.bool_] | None,
    spacing: float | None,
    *,
    bias_field: bool,
    name: str,
) -> tuple[Volume, Volume | None]:
    """Remove the field, resample, and cut out the brain."""
    values = scan.values
    # Before resampling, because the field is a property of the coils and not of the grid.
    if bias_field:
        values = correct_bias_field(values, scan.affine, mask, name)
    picture = Volume.of(values, scan.affine).resampled(spacing)
    if mask is None:
        return picture, None
    share = Volume.of(mask.astype(np.float32), scan.affine).resampled(spacing).values
    brain = share > MASK_THRESHOLD
    stripped = Volume.of(np.where(brain, picture.values, 0), picture.affine)
    return stripped, Volume.of(brain.astype(np.uint8), picture.affine)


def _write(
    result: PreparedBrain,
    file_set: FileSet,
    files: Mapping[str, str],
    steps: Mapping[str, Any],
    inputs: Mapping[str, Any],
) -> None:
    """Write the images that there are, the sidecar last."""
    images: dict[str, Any] = {key: getattr(result, key, None) for key in files}
    written = {key: files[key] for key, image in images.items() if image is not None}
    for key, file in written.items():
        save_image(images[key], file_set.path(file))
    libraries = ["dmrifit", "numpy", "scipy", "nibabel"]
    if steps["BiasField"] or steps["Registered"]:
        libraries.append("SimpleITK")
    if steps["BrainMask"]:
        libraries.append("dipy")
    description: dict[str, Any] = {
        "Description": "Images of a head prepared for a network",
        **makers(*libraries),
        "Steps": dict(steps),
        "Files": written,
        "Sources": describe_sources(**inputs),
    }
    if result.transform is not None:
        description["Transform"] = {
            "Description": "from world coordinates of the image to those of the prior, mm",
            "Matrix": result.transform.tolist(),
        }
    file_set.write_json(files["sidecar"], description)
