"""Preparation of head scans for networks: bias field, grid, brain mask, aligned prior."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dmrifit._optional import import_optional
from dmrifit.imaging.head_steps import (
    aligned,
    correct_bias_field,
    find_brain,
    import_sitk,
    inside_of,
)
from dmrifit.io.atomic_files import FileSet
from dmrifit.io.bids_derivatives import derivative_name, stem, versions
from dmrifit.io.grids import (
    array_of,
    labels_onto,
    onto,
    read_scan,
    read_scan_like,
    resampled,
    scan_of,
)
from dmrifit.io.masks import MASK_THRESHOLD
from dmrifit.io.nifti import Image, describe_sources, file_paths, image_name, save_image

if TYPE_CHECKING:
    import nibabel as nib

__all__ = ["PreparedBrain", "prepare_brain"]

_SPACINGS = (0.2, 10.0)  # mm


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
    prior, after the same, aligned to the image by an affine transformation (`align_brain`) and
    resampled onto its grid. Interpolation is linear, after smoothing where voxels become larger;
    labels take the nearest voxel. What was prepared can be prepared again: nothing is left to do
    then but interpolation.

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
        If the prior was moved by more than 30 mm or 20 degrees, or lies no better than before.

    References ---------- Tustison et al., IEEE Trans Med Imaging 29:1310–1320, 2010 (N4); Mattes
    et al., IEEE Trans Med Imaging 22:120–128, 2003 (mutual information).
    """
    if spacing is not None and not (
        isinstance(spacing, int | float | np.number)
        and not isinstance(spacing, bool)
        and _SPACINGS[0] <= spacing <= _SPACINGS[1]
    ):
        raise ValueError(
            f"spacing must be an edge of {_SPACINGS[0]:g} to {_SPACINGS[1]:g} mm, or None, not "
            f"{spacing!r}"
        )
    # Every input is read and checked, and every library there, before long work.
    name = image_name(image)
    scan = read_scan(image)
    earlier = None if prior is None else read_scan(prior)
    labels = None if label is None else read_scan_like(label, scan, name)
    given = None if isinstance(brain_mask, bool) else read_scan_like(brain_mask, scan, name)
    if bias_field:
        import_sitk()
    if (earlier is not None and register) or brain_mask is True:
        import_optional("dipy.align")
    prefix = stem(image) if isinstance(image, str | Path) else ""
    files = {
        key: derivative_name(prefix, f"{suffix}.nii.gz", desc="prepared")
        for key, suffix in (
            ("image", "T1w"),
            ("brain", "mask"),
            ("prior", "prior"),
            ("label", "dseg"),
        )
    }
    sidecar = derivative_name(prefix, "T1w.json", desc="prepared")
    inputs = {
        "Image": image,
        "Prior": prior,
        "Label": label,
        "Mask": None if given is None else brain_mask,
    }
    file_set = (
        None
        if out is None
        else FileSet(
            out, [*files.values(), sidecar], overwrite=overwrite, keep=file_paths(inputs.values())
        )
    )
    with file_set or nullcontext():
        mask = (
            inside_of(given)
            if given is not None
            else find_brain(scan)
            if brain_mask is True
            else None
        )
        picture, brain = _ready(scan, mask, spacing, bias_field=bias_field, name=name)
        moved, transform = None, None
        if earlier is not None:
            past_mask = find_brain(earlier) if brain_mask is not False else None
            past, past_brain = _ready(
                earlier, past_mask, None, bias_field=bias_field, name=image_name(prior)
            )
            transform = (
                aligned(past, picture, past_brain, brain, image_name(prior))
                if register
                else np.eye(4)
            )
            moved = onto(past, picture, transform)
            if brain is not None:
                moved = scan_of(array_of(moved) * (array_of(brain) > 0), moved.affine)
        on_grid = None if labels is None else labels_onto(labels, picture)
        result = PreparedBrain(picture, brain, moved, on_grid, transform)
        if file_set is not None:
            made = {key: getattr(result, key) for key in files if getattr(result, key) is not None}
            for key, one in made.items():
                save_image(one, file_set.path(files[key]))
            steps = {
                "Spacing": spacing,
                "BiasField": bias_field,
                "BrainMask": brain_mask is not False,
            }
            steps["Registered"] = earlier is not None and register
            file_set.write_json(
                sidecar, _described({key: files[key] for key in made}, steps, transform, inputs)
            )
    return result


def _ready(
    scan: nib.Nifti1Pair,
    mask: NDArray[np.bool_] | None,
    spacing: float | None,
    *,
    bias_field: bool,
    name: str,
) -> tuple[nib.Nifti1Pair, nib.Nifti1Pair | None]:
    """Remove the field, resample, and cut out the brain."""
    values = array_of(scan)
    if bias_field:
        values, _ = correct_bias_field(values, scan.affine, mask=mask, name=name)
    picture = resampled(scan_of(values, scan.affine), spacing)
    if mask is None:
        return picture, None
    share = array_of(resampled(scan_of(mask.astype(np.float32), scan.affine), spacing))
    brain = share > MASK_THRESHOLD
    return (
        scan_of(np.where(brain, array_of(picture), 0), picture.affine),
        scan_of(brain.astype(np.uint8), picture.affine),
    )


def _described(
    files: Mapping[str, str],
    steps: Mapping[str, Any],
    transform: NDArray[np.float64] | None,
    inputs: Mapping[str, Any],
) -> dict[str, Any]:
    libraries = ["dmrifit", "numpy", "scipy", "nibabel"]
    libraries += ["SimpleITK"] if steps["BiasField"] else []
    libraries += ["dipy"] if steps["Registered"] or steps["BrainMask"] else []
    described = {
        "Description": "Images of a head prepared for a network",
        "GeneratedBy": [{"Name": "dmrifit", "Version": version("dmrifit")}],
        "Versions": versions(*libraries),
        "Steps": dict(steps),
        "Files": dict(files),
        "Sources": describe_sources(**inputs),
    }
    if transform is not None:
        described["Transform"] = {
            "Description": "from world coordinates of the image to those of the prior, mm",
            "Matrix": transform.tolist(),
        }
    return described
