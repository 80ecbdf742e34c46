"""Segmentation of image files: probabilities and labels on the grid of the scan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from dmrifit.io import nifti
from metastasis.segmentation.ensemble import models_of, segment_by

__all__ = ["segment_image"]

_NAMES = {"probability": "probability.nii.gz", "label": "label.nii.gz"}


def segment_image(
    segmenter: Any,
    image: nifti.Image,
    *,
    prior: nifti.Image | None = None,
    mask: nifti.Image | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> dict[str, nib.Nifti1Image]:
    """
    Segment the metastases of a scan.

    Parameters
    ----------
    segmenter : estimator
        Fitted: a `DeepMedicSegmenter` or a `SensitivitySpecificityEnsemble`.
    image : path or Nifti1Image
        The scan, prepared as those in training.
    prior : path or Nifti1Image, optional
        The prior scan on its grid.
    mask : path or Nifti1Image, optional
        The brain on its grid; by default the voxels that are not zero.
    out : path, optional
        Folder for ``probability.nii.gz`` and ``label.nii.gz``, which appear together.
    overwrite : bool, default=False
        Whether files of these names may be replaced.

    Returns
    -------
    dict of Nifti1Image
        ``"probability"`` (single precision) and ``"label"`` (0 and 1; of an ensemble 1 for
        candidates and 2 for what both models mark), on the grid of the scan.

    Raises
    ------
    ValueError
        If an image is damaged, holds values that are not finite or lies on another grid than the
        scan, or a prior scan is given to models that were trained without any.
    FileNotFoundError
        If there is no such file.
    FileExistsError
        If a file would be replaced.
    """
    uses_priors = any(getattr(m, "prior_", "unknown") is not None for m in models_of(segmenter))
    if prior is not None and not uses_priors:
        raise ValueError(
            "the prior scan would not be looked at: training was without any; leave it out, or "
            "train with priors"
        )
    scans = {"image": image, "prior": prior, "mask": mask}
    sources = {key: source for key, source in scans.items() if source is not None}
    inputs = sources.values()
    # Existing files are refused before the scan is segmented, not after.
    with nifti.output_files(out, _NAMES.values(), overwrite=overwrite, inputs=inputs) as files:
        loaded = {key: _read(source) for key, source in sources.items()}
        options = {f"{key}s": [loaded[key]] for key in ("prior", "mask") if key in loaded}
        label, probability = next(iter(segment_by(segmenter, [loaded["image"]], **options)))
        results: dict[str, Any] = {"probability": probability, "label": label}
        images = {k: nifti.image_of(v, loaded["image"].affine) for k, v in results.items()}
        if files is not None:
            for name, file in _NAMES.items():
                nifti.save_image(images[name], files.path(file))
    return images


def _read(image: nifti.Image) -> nib.Nifti1Image:
    """Give an image with its values in memory."""
    loaded = nifti.load_image(image)
    name = str(image) if isinstance(image, str | Path) else "the image"
    values = nifti.values_of(loaded, name)
    # Some programs write a volume with a fourth axis of length 1.
    if values.ndim == 4 and values.shape[3] == 1:
        values = values[..., 0]
    return nib.Nifti1Image(np.asarray(values, dtype=np.float32), loaded.affine)
