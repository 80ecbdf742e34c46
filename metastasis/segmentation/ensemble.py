"""Two models, one sensitive and one specific: what both find is confirmed, the rest is for review."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator

from dmrifit._utils.checks import check_word
from dmrifit.io.components import drop_small
from dmrifit.stats.lesion_matching import CONNECTIVITIES, label_components

__all__ = [
    "CANDIDATE",
    "CONFIRMED_LABEL",
    "SensitivitySpecificityEnsemble",
    "merge_segmentations",
    "segment_by",
]

#: Label of a lesion that only the sensitive model sees.
CANDIDATE = 1
#: Label of a lesion that the specific model sees.
CONFIRMED_LABEL = 2


class SensitivitySpecificityEnsemble(BaseEstimator):
    """
    Join a sensitive and a specific model: nothing is lost, and what is sure is told from what is
    to be reviewed.

    A voxel is lesion when either model says so. Of these lesions, connected components, those are
    confirmed that the specific model sees any voxel of, and candidates those that it does not. A
    component of the sensitive model that joins several structures is confirmed as a whole.

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
    connectivity : {26, 18, 6}, default=26
        Of components, as for `lesion_table`.

    References
    ----------
    Huang et al., Medical Physics 49:5773–5786, 2022.
    """

    def __init__(
        self,
        sensitive: Any,
        specific: Any,
        *,
        thresholds: tuple[float, float] | None = None,
        connectivity: int = 26,
    ) -> None:
        self.sensitive = sensitive
        self.specific = specific
        self.thresholds = thresholds
        self.connectivity = connectivity

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
            For each case 0 background, 1 candidate, 2 confirmed.

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
        volumes : sequence of n_cases
            As for `predict`.
        priors : sequence of n_cases, optional
            As for `predict`.
        masks : sequence of n_cases, optional
            As for `predict`.

        Returns
        -------
        list of ndarray of shape (x, y, z)
            For each case.
        """
        return [
            probability for _, probability in self.segment(volumes, priors=priors, masks=masks)
        ]

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
        volumes : sequence of n_cases
            As for `predict`.
        priors : sequence of n_cases, optional
            As for `predict`.
        masks : sequence of n_cases, optional
            As for `predict`.

        Returns
        -------
        iterator of (ndarray, ndarray)
            What `predict` and `predict_proba` give, for a case at a time.
        """
        return self._segmented(
            volumes, _given(volumes, priors=priors, masks=masks), self._limits()
        )

    def _segmented(
        self, volumes: Sequence[Any], given: dict[str, Sequence[Any]], limits: tuple[float, float]
    ) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.float32]]]:
        for i in range(len(volumes)):
            answers = [
                _answer(model, volumes, given, i) for model in (self.sensitive, self.specific)
            ]
            masks = [
                drop_small(
                    answer >= limit,
                    getattr(model, "min_voxels", 1),
                    connectivity=self.connectivity,
                )
                for model, answer, limit in zip(
                    (self.sensitive, self.specific), answers, limits, strict=True
                )
            ]
            yield merge_segmentations(*masks, connectivity=self.connectivity), np.maximum(*answers)

    def _limits(self) -> tuple[float, float]:
        check_word("connectivity", self.connectivity, CONNECTIVITIES)
        own = (_threshold(self.sensitive), _threshold(self.specific))
        found = own if self.thresholds is None else tuple(self.thresholds)
        if len(found) != 2 or not all(0 < limit <= 1 for limit in found):
            raise ValueError(
                f"thresholds must be two numbers above 0 and at most 1, not {found!r}"
            )
        return float(found[0]), float(found[1])


def merge_segmentations(
    sensitive: ArrayLike, specific: ArrayLike, *, connectivity: int = 26
) -> NDArray[np.uint8]:
    """
    Join two masks to labels.

    Shapes: `sensitive` (x, y, z), `specific` (x, y, z); returns (x, y, z).
    """
    many, few = np.asarray(sensitive) > 0, np.asarray(specific) > 0
    if many.shape != few.shape:
        raise ValueError(
            f"the sensitive mask has the shape {many.shape} and the specific one {few.shape}"
        )
    parts = label_components(many | few, connectivity=connectivity)
    label = np.full(parts.max(initial=0) + 1, CANDIDATE, dtype=np.uint8)
    label[parts[few]] = CONFIRMED_LABEL
    label[0] = 0
    return label[parts]


def segment_by(
    segmenter: Any,
    volumes: Sequence[Any],
    *,
    priors: Sequence[Any] | None = None,
    masks: Sequence[Any] | None = None,
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.float32]]]:
    """Give labels and probabilities by an ensemble or a single model, one case after the other."""
    if isinstance(segmenter, SensitivitySpecificityEnsemble):
        return segmenter.segment(volumes, priors=priors, masks=masks)
    given = _given(volumes, priors=priors, masks=masks)

    def segmented() -> Iterator[tuple[NDArray[np.uint8], NDArray[np.float32]]]:
        for i in range(len(volumes)):
            answer = _answer(segmenter, volumes, given, i)
            kept = drop_small(answer >= _threshold(segmenter), getattr(segmenter, "min_voxels", 1))
            yield kept.astype(np.uint8), answer

    return segmented()


def _given(volumes: Sequence[Any], **options: Sequence[Any] | None) -> dict[str, Sequence[Any]]:
    given = {key: value for key, value in options.items() if value is not None}
    for key, value in given.items():
        if len(value) != len(volumes):
            raise ValueError(
                f"{len(value)} {key} for {len(volumes)} volumes; give one for each, None for a "
                "missing one"
            )
    return given


def _threshold(model: Any) -> float:
    return float(getattr(model, "threshold_", 0.5))


def _answer(
    model: Any, volumes: Sequence[Any], given: dict[str, Sequence[Any]], i: int
) -> NDArray[np.float32]:
    """Let a model see a scan, with what it takes beside it."""
    takes = set(inspect.signature(model.predict_proba).parameters)
    if getattr(model, "prior_", "unknown") is None:  # it was trained without any
        takes.discard("priors")
    answers = model.predict_proba(
        [volumes[i]], **{key: [value[i]] for key, value in given.items() if key in takes}
    )
    answer = np.asarray(answers[0], dtype=np.float32)
    if len(answers) != 1 or answer.ndim != 3:
        raise ValueError(
            f"case {i}: a model gave {len(answers)} volumes, the first of shape {answer.shape}, "
            "for one scan"
        )
    return answer
