"""Ensemble of a sensitive and a specific model, and segmentation of an image file."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator

from dmrifit._utils.counts import counted
from dmrifit.io import nifti
from dmrifit.io.components import drop_small, label_components
from dmrifit.io.grids import Volume
from dmrifit.networks.volume_cases import naming
from metastasis.scans.network_inputs import Scan, joined_cases

__all__ = ["SensitivitySpecificityEnsemble"]

#: Label of a lesion that only the sensitive model sees.
CANDIDATE = 1
#: Label of a lesion that the specific model sees.
BOTH_LABEL = 2
#: What lesions with that label are called.
MARKED_BY_BOTH = "marked by both"


_NAMES = {"probability": "probability.nii.gz", "label": "label.nii.gz"}


@dataclass(repr=False, eq=False)
class SensitivitySpecificityEnsemble(BaseEstimator):
    """
    Join a sensitive and a specific model, and separate what both mark from candidates.

    A voxel is lesion when either model marks it. Of the connected components of these voxels,
    those in which the specific model marks any voxel are marked by both; the others are
    candidates for review. A component of the sensitive model that joins several structures counts
    as a whole.

    Parameters
    ----------
    sensitive : estimator
        Fitted, such as a `DeepMedicSegmenter` trained with α = .995; anything with
        ``predict_proba(volumes)``. Priors and masks go to models whose ``predict_proba`` takes
        them, priors to those that were trained with some.
    specific : estimator
        Fitted, such as one trained with α = .5.
    thresholds : tuple of 2 float, optional
        Probability from which a voxel is lesion, of the sensitive and of the specific model; by
        default their own operating points (``threshold_``), or .5 where they have none. Components
        smaller than a model's own ``min_voxels`` are left out.

    References
    ----------
    Huang et al., Medical Physics 49:5773–5786, 2022.
    """

    sensitive: Any
    specific: Any
    _: KW_ONLY
    thresholds: tuple[float, float] | None = None

    def predict(
        self,
        volumes: Sequence[Any],
        *,
        priors: Sequence[Any] | None = None,
        masks: Sequence[Any] | None = None,
    ) -> list[NDArray[np.uint8]]:
        """
        Label the voxels of lesions.

        Parameters
        ----------
        volumes : sequence of n_cases
            As the models take them.
        priors : sequence of n_cases, optional
            Prior scans, None for a missing one.
        masks : sequence of n_cases, optional
            Brains, None for a missing one.

        Returns
        -------
        list of ndarray of shape (x, y, z)
            For each case 0 background, 1 candidate, 2 marked by both.

        Raises
        ------
        ValueError
            If a parameter is not possible, or the models' answers differ in number or shape.
        """
        return [labels for labels, _ in self.segment(volumes, priors=priors, masks=masks)]

    def predict_proba(
        self,
        volumes: Sequence[Any],
        *,
        priors: Sequence[Any] | None = None,
        masks: Sequence[Any] | None = None,
    ) -> list[NDArray[np.float32]]:
        """
        Give the larger of both models' probabilities.

        Parameters
        ----------
        volumes, priors, masks : sequence of n_cases
            As for `predict`; priors and masks are optional.

        Returns
        -------
        list of ndarray of shape (x, y, z)
            For each case.
        """
        return [scores for _, scores in self.segment(volumes, priors=priors, masks=masks)]

    def segment(
        self,
        volumes: Sequence[Any],
        *,
        priors: Sequence[Any] | None = None,
        masks: Sequence[Any] | None = None,
    ) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.float32]]]:
        """
        Give labels and probabilities, one case after the other.

        Parameters
        ----------
        volumes, priors, masks : sequence of n_cases
            As for `predict`; priors and masks are optional.

        Returns
        -------
        iterator of (ndarray, ndarray)
            What `predict` and `predict_proba` give, for a case at a time.
        """
        return segment_by(self, volumes, priors=priors, masks=masks)


def merge_segmentations(sensitive: ArrayLike, specific: ArrayLike) -> NDArray[np.uint8]:
    """
    Join two masks to labels: 0 background, 1 candidate, 2 marked by both.

    Shapes: `sensitive` (x, y, z), `specific` (x, y, z); returns (x, y, z).
    """
    sensitive_mask = np.asarray(sensitive) > 0
    specific_mask = np.asarray(specific) > 0
    if sensitive_mask.shape != specific_mask.shape:
        raise ValueError(
            f"the sensitive mask has the shape {sensitive_mask.shape} and the specific one "
            f"{specific_mask.shape}"
        )
    # Components of both together, so that models that mark different parts of a lesion both mark
    # it, and one that only the specific model sees is kept.
    components = label_components(sensitive_mask | specific_mask)
    label_of_component = np.full(components.max(initial=0) + 1, CANDIDATE, dtype=np.uint8)
    label_of_component[components[specific_mask]] = BOTH_LABEL
    label_of_component[0] = 0
    return label_of_component[components]


def segment_by(
    segmenter: Any,
    volumes: Sequence[Any],
    *,
    priors: Sequence[Any] | None = None,
    masks: Sequence[Any] | None = None,
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.float32]]]:
    """Give labels and probabilities by an ensemble or a single model, one case after the other."""
    # Checked here and not where the first case is asked.
    cases = joined_cases(volumes, priors, masks)
    models, thresholds = models_of(segmenter), thresholds_of(segmenter)
    is_ensemble = isinstance(segmenter, SensitivitySpecificityEnsemble)

    def labels_of(i: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        marked, probabilities = [], []
        for model, threshold in zip(models, thresholds, strict=True):
            with naming(i):
                probability = probability_of(model, cases[i])
            probabilities.append(probability)
            smallest = smallest_finding(model, cases[i][0])
            marked.append(drop_small(probability >= threshold, smallest))
        if is_ensemble:
            return merge_segmentations(*marked), np.maximum(*probabilities)
        return marked[0].astype(np.uint8), probabilities[0]

    return map(labels_of, range(len(cases)))


def models_in_words(paths: Iterable[Path], thresholds: Sequence[float]) -> str:
    """Name the files of models, and the lowest probability of what each of them marks."""
    words = [
        f"the model {path.name} at a probability threshold of {low:.3g}"
        for path, low in zip(paths, thresholds, strict=True)
    ]
    keys = "model" if len(words) == 1 else "sensitive and specific"
    return f"marked by {' and '.join(words)} (SHA-256: {keys} in settings.json)"


def smallest_finding(model: Any, volume: Any) -> int:
    """Give the number of voxels of the smallest finding that a model marks in a scan."""
    if hasattr(model, "min_voxels_on"):
        return int(model.min_voxels_on(volume))
    return int(getattr(model, "min_voxels", 1))


def models_of(segmenter: Any) -> list[Any]:
    """Give both models of an ensemble, or a single model."""
    if isinstance(segmenter, SensitivitySpecificityEnsemble):
        return [segmenter.sensitive, segmenter.specific]
    return [segmenter]


def thresholds_of(segmenter: Any) -> list[float]:
    """Give the lowest probability of what each model marks."""
    given = getattr(segmenter, "thresholds", None)
    if given is None:
        return [float(getattr(model, "threshold_", 0.5)) for model in models_of(segmenter)]
    if len(given) != 2 or not all(0 < threshold <= 1 for threshold in given):
        raise ValueError(f"thresholds must be two numbers above 0 and at most 1, not {given!r}")
    return [float(threshold) for threshold in given]


def probability_of(model: Any, case: Scan) -> NDArray[np.float32]:
    """Give the probabilities (x, y, z) of a case by a model."""
    volume, prior, mask = case
    options = scan_options(model, model.predict_proba, [prior], [mask])
    predictions = model.predict_proba([volume], **options)
    probability = np.asarray(predictions[0], dtype=np.float32)
    if len(predictions) != 1 or probability.ndim != 3:
        raise ValueError(
            f"a model gave {counted(len(predictions), 'volume')}, the first of shape "
            f"{probability.shape}, for one scan"
        )
    return probability


def scan_options(
    model: Any, method: Any, priors: Sequence[Any], masks: Sequence[Any]
) -> dict[str, Sequence[Any]]:
    """Give the priors and masks that a method of a model takes, where there are any."""
    scans = {"masks": masks}
    # A model that was trained without priors refuses them.
    if getattr(model, "prior_", getattr(model, "prior", "unknown")) is not None:
        scans["priors"] = priors
    accepted = inspect.signature(method).parameters
    return {
        key: values
        for key, values in scans.items()
        if key in accepted and any(value is not None for value in values)
    }


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
        Fitted: a `DeepMedicSegmenter`, a `TwoStageSegmenter` or a
        `SensitivitySpecificityEnsemble`.
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
            "the prior scan would be ignored, because the model was trained without prior scans; "
            "leave it out, or train with prior scans"
        )
    scans = {"image": image, "prior": prior, "mask": mask}
    sources = {key: source for key, source in scans.items() if source is not None}
    inputs = sources.values()
    # Existing files are refused before the scan is segmented, not after.
    with nifti.output_files(out, _NAMES.values(), overwrite=overwrite, inputs=inputs) as files:
        loaded = {key: _read(source) for key, source in sources.items()}
        options = {f"{key}s": [loaded[key]] for key in ("prior", "mask") if key in loaded}
        label, probability = next(iter(segment_by(segmenter, [loaded["image"]], **options)))
        affine = loaded["image"].affine
        images: dict[str, nib.Nifti1Image] = {"probability": Volume.of(probability, affine)}
        images["label"] = Volume.of(label, affine)
        if files is not None:
            for name, file in _NAMES.items():
                images[name].to_filename(files.path(file))
    return images


def _read(image: nifti.Image) -> nib.Nifti1Image:
    """Give an image with its values in memory."""
    loaded = nifti.load_image(image)
    values = nifti.values_of(loaded, nifti.image_name(image))
    # Some programs write a volume with a fourth axis of length 1.
    if values.ndim == 4 and values.shape[3] == 1:
        values = values[..., 0]
    return Volume.of(values.astype(np.float32), loaded.affine)
