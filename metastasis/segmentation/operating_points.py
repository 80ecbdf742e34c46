"""Operating points: scores over thresholds, and the one for a number of false positives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import find_objects
from sklearn.utils.validation import check_is_fitted

from dmrifit._utils.checks import check_number
from dmrifit._utils.counts import counted
from dmrifit.io import case_tables
from dmrifit.io.components import drop_small, label_components
from dmrifit.networks.volume_cases import VolumeList, naming
from dmrifit.stats.lesion_matching import Matching, lesion_scores, lesion_table
from metastasis.scans.network_inputs import binary_label, joined_cases, paired_labels, values_of
from metastasis.segmentation.sampling import MISTAKEN

__all__ = ["operating_point"]

#: Thresholds of a curve.
THRESHOLDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
#: Counts of a curve, which add up over scans.
COUNTS = ("n_lesions", "n_found", "n_distinct", "n_false_positives", "n_flagged")
_STEPS = 1 / (1 + np.exp(-np.linspace(-7, 7, 57)))


def threshold_curve(
    labels: Sequence[ArrayLike],
    probabilities: Sequence[ArrayLike],
    *,
    thresholds: ArrayLike = THRESHOLDS,
    min_voxels: int | Sequence[int] = 1,
) -> pd.DataFrame:
    """
    Trace sensitivity, precision and false positives over thresholds.

    Shapes: `labels` (x, y, z), `probabilities` (x, y, z).
    """
    pairs = paired_volumes(labels, probabilities)
    steps = np.unique(np.asarray(thresholds, dtype=np.float64))
    if steps.ndim != 1 or not len(steps) or not ((steps >= 0) & (steps <= 1)).all():
        raise ValueError(
            f"thresholds must lie between 0 and 1, not {np.asarray(thresholds).tolist()}"
        )
    if np.shape(min_voxels) not in ((), (1,), (len(pairs),)):
        raise ValueError(f"min_voxels {min_voxels}: give one, or one for each of the scans")
    scans = []
    limits = np.broadcast_to(min_voxels, len(pairs)).tolist()
    for (label, probability), fewest in zip(pairs, limits, strict=True):
        # Outside of the brain there is nothing to mark, and searching it takes most of the time.
        (box,) = find_objects((label | (probability >= steps[0])).astype(np.int8)) or [...]
        # Labels do not change with the threshold, so their components are found once.
        lesions, values = label_components(label[box]), probability[box]
        rows = []
        for step in steps.tolist():
            found = Matching.to_lesions(lesions, values >= step, min_voxels=fewest)
            marks = (found.found, found.distinct, found.false_positive, found.flagged)
            rows.append([step, len(found.lesion_voxels), *(mark.sum() for mark in marks)])
        scans.append(pd.DataFrame(rows, columns=["threshold", *COUNTS]))
    return summed_curve(scans)


def summed_curve(scans: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Add up the counts of the curves of single scans, and compute the rates of all of them."""
    n, hits, distinct, wrong, flagged = (sum(scan[key] for scan in scans) for key in COUNTS)
    # 0 / 0 is NaN where nothing is marked, or there is no lesion.
    return scans[0][["threshold"]].assign(
        **dict(zip(COUNTS, (n, hits, distinct, wrong, flagged), strict=True)),
        sensitivity=hits / n,
        precision=hits / (hits + wrong),
        false_positives_per_scan=wrong / len(scans),
        flagged_per_scan=flagged / len(scans),
        strict_sensitivity=distinct / n,
        strict_precision=distinct / (distinct + wrong + flagged),
    )


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold, and what it gave on the cases that it was chosen on."""

    threshold: float  # voxels that reach it are lesions
    false_positives: float  # per scan, without components that are flagged
    sensitivity: float  # of lesions; NaN without lesions
    precision: float  # NaN without any prediction
    wanted: float  # false positives per scan, with flagged components, that were allowed
    n_scans: int
    n_lesions: int


def operating_point(
    labels: Sequence[ArrayLike],
    probabilities: Sequence[ArrayLike],
    *,
    false_positives: float,
    thresholds: ArrayLike = _STEPS,
    min_voxels: int | Sequence[int] = 1,
) -> OperatingPoint:
    """
    Choose the threshold that gives a number of false positives per scan.

    Parameters
    ----------
    labels : sequence of array_like of shape (x, y, z)
        1 in lesions and 0 elsewhere, of validation cases: of patients who are neither in the
        training data nor to be predicted.
    probabilities : sequence of array_like of shape (x, y, z)
        Predicted, 0 to 1.
    false_positives : float
        Allowed number per scan.
    thresholds : array_like of shape (n,), optional
        Those to choose from; by default 57, evenly spaced in logits from −7 to 7 (.0009 to .9991).
    min_voxels : int or sequence of n_scans, default=1
        As for `lesion_table`; of all scans, or of each.

    Returns
    -------
    OperatingPoint
        The lowest threshold that, like all higher ones, has no more false positives than allowed.
        Flagged components count as false positives, because at low thresholds all candidates
        merge to a few of them.

    Raises
    ------
    ValueError
        If the number is negative, no threshold gives as few, or as for `threshold_curve`.
    """
    check_number("false positives per scan", false_positives)
    curve = threshold_curve(labels, probabilities, thresholds=thresholds, min_voxels=min_voxels)
    wrong = (curve["false_positives_per_scan"] + curve["flagged_per_scan"]).to_numpy()
    # False positives may fall and rise again as components merge; a threshold counts only if no
    # higher one gives more.
    highest_above = np.maximum.accumulate(wrong[::-1])[::-1]
    if not highest_above[-1] <= false_positives:
        raise ValueError(
            f"{wrong[-1]:g} false positives per scan at the threshold "
            f"{curve['threshold'].iloc[-1]:g}, not {false_positives:g} or fewer"
        )
    row = curve.iloc[int(np.argmax(highest_above <= false_positives))]
    return OperatingPoint(
        **{key: float(row[key]) for key in ("threshold", "sensitivity", "precision")},
        false_positives=float(row["false_positives_per_scan"]),
        wanted=float(false_positives),
        n_scans=len(labels),
        n_lesions=int(row["n_lesions"]),
    )


class OperatingPointMixin:
    """Base of segmenters that mark voxels from ``threshold_`` on, and choose it by labels."""

    min_voxels: int
    threshold_: float
    false_positives_: float | None
    _predictions: Any

    def predict_proba(
        self,
        volumes: Sequence[Any],
        *,
        priors: Sequence[Any] | None = None,
        masks: Sequence[Any] | None = None,
    ) -> list[NDArray[np.float32]]:
        """
        Give the probability of a metastasis in each voxel, or the score of its candidate.

        A two-stage segmenter gives each voxel the highest score of the components that it belongs
        to; those too large to be judged have the mean score of what they hold at the next level,
        where that is half of them.

        Parameters
        ----------
        volumes, priors, masks : sequence of n_cases
            As in `fit`, of any size; priors and masks are optional.

        Returns
        -------
        list of ndarray of shape (x, y, z)
            For each case, on its own grid; 0 outside the brain and where there is no candidate.

        Raises
        ------
        ValueError
            If a case has another number of channels than those in training, edges of voxels are
            more than 1.25 times larger or smaller, or prior scans are given to a network that was
            trained without any.
        """
        check_is_fitted(self)
        return VolumeList(self._predictions(joined_cases(volumes, priors, masks)))

    def predict(
        self,
        volumes: Sequence[Any],
        *,
        priors: Sequence[Any] | None = None,
        masks: Sequence[Any] | None = None,
    ) -> list[NDArray[np.uint8]]:
        """
        Mark the voxels of metastases: those that reach ``threshold_``.

        Parameters
        ----------
        volumes, priors, masks : sequence of n_cases
            As in `fit`, of any size; priors and masks are optional.

        Returns
        -------
        list of ndarray of shape (x, y, z)
            For each case 0 and 1, on its own grid.

        Raises
        ------
        ValueError
            As `predict_proba`.
        """
        probabilities = self.predict_proba(volumes, priors=priors, masks=masks)
        return VolumeList(
            drop_small(probability >= self.threshold_, self.min_voxels_on(volume)).astype(np.uint8)
            for volume, probability in zip(volumes, probabilities, strict=True)
        )

    def min_voxels_on(self, volume: Any) -> int:
        """
        Give the number of voxels of the smallest finding in a scan.

        Parameters
        ----------
        volume : Nifti1Image or ndarray
            The scan.

        Returns
        -------
        int
            ``min_voxels``.
        """
        return self.min_voxels

    def set_operating_point(
        self,
        volumes: Sequence[Any],
        labels: Sequence[Any],
        *,
        priors: Sequence[Any] | None = None,
        masks: Sequence[Any] | None = None,
        false_positives: float = 1.0,
    ) -> Any:
        """
        Choose ``threshold_`` for a number of false positives per scan, on held-out cases.

        It is that of `operating_point`, and it is saved with the model.

        Parameters
        ----------
        volumes, labels, priors, masks : sequence of n_cases
            As in `fit`.
        false_positives : float, default=1.0
            False positives per scan that are accepted.

        Returns
        -------
        self
            Itself.

        Raises
        ------
        ValueError
            If `false_positives` is negative, no threshold gives as few, or a case is not possible.
        """
        check_is_fitted(self)
        check_number("false_positives", false_positives)
        point = operating_point(
            self._references(volumes, labels, priors, masks),
            self.predict_proba(volumes, priors=priors, masks=masks),
            false_positives=false_positives,
            # Voxels may have another size in each scan.
            min_voxels=[self.min_voxels_on(volume) for volume in volumes],
        )
        self.threshold_ = point.threshold
        self.false_positives_ = float(false_positives)
        return self

    def score(
        self,
        volumes: Sequence[Any],
        labels: Sequence[Any],
        *,
        priors: Sequence[Any] | None = None,
        masks: Sequence[Any] | None = None,
    ) -> float:
        """
        Give the mean over cases of the lesion-wise Dice coefficient of what `predict` marks.

        It is ``lesion_dice`` of `lesion_scores`: 0 for a lesion that is missed and for each false
        positive.

        Parameters
        ----------
        volumes, labels, priors, masks : sequence of n_cases
            As in `fit`.

        Returns
        -------
        float
            The mean.
        """
        check_is_fitted(self)
        references = self._references(volumes, labels, priors, masks)
        found = self.predict(volumes, priors=priors, masks=masks)
        tables = map(lesion_table, references, found)
        return float(np.mean([lesion_scores(table)["lesion_dice"] for table in tables]))

    def _references(self, volumes: Any, labels: Any, priors: Any, masks: Any) -> list[Any]:
        """Check all labels, before the first scan is segmented; give 1 in lesions."""
        references = []
        pairs = paired_labels(joined_cases(volumes, priors, masks), labels)
        for number, (label, volume) in enumerate(pairs):
            with naming(number):
                references.append(self._reference(label, volume))
        return references

    def _reference(self, label: Any, volume: Any) -> NDArray[np.uint8]:
        """Check a label, and give 1 in lesions; those of implants hold more than that."""
        values = np.asarray(values_of(label))
        is_of_classes = getattr(self, "loss", "lesion") == "lesion"
        if is_of_classes and set(np.unique(values)) <= set(range(MISTAKEN + 1)):
            label = values == 1
        return binary_label(label, volume)


def paired_volumes(
    labels: Sequence[ArrayLike], probabilities: Sequence[ArrayLike]
) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Pair labels with probabilities of the same shape, both in their own precision."""
    if len(labels) != len(probabilities) or not len(labels):
        raise ValueError(
            f"{counted(len(labels), 'label')} and {counted(len(probabilities), 'prediction')}; "
            "give both for each scan, one at least"
        )
    pairs = []
    for i, (label, probability) in enumerate(zip(labels, probabilities, strict=True)):
        # Compared in their own precision, as the segmenter compares them with its threshold.
        values = np.asarray(probability)
        truth = case_tables.checked_mask(label, f"scan {i}: the label", values.shape)
        if values.dtype.kind not in "fb" or not ((values >= 0) & (values <= 1)).all():
            raise ValueError(
                f"scan {i}: values from {values.min():g} to {values.max():g} ({values.dtype}) are "
                "no probabilities"
            )
        pairs.append((truth, values))
    return pairs
