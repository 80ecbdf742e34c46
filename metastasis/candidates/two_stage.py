"""Two-stage segmenter: candidates of a sensitive network, judged by a classifier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.base import BaseEstimator, clone
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted

from dmrifit._utils.checks import check_number, check_word, is_number
from dmrifit._utils.randomness import RandomState, derived_seed, seed_from
from dmrifit.io.components import drop_small
from dmrifit.io.parameter_json import RefusedError, decoded, encoded, refuse_keys
from dmrifit.model_files.registry import register, registered
from dmrifit.model_files.regressor_file import dumped, loaded
from dmrifit.networks.training import Training
from dmrifit.networks.volume_cases import VolumeList, naming
from metastasis.candidates.features import (
    FEATURES,
    PRIOR_FEATURES,
    Candidates,
    ScanVolumes,
    find_candidates,
)
from metastasis.scans.network_inputs import Scan, brain_of, joined_cases, paired_labels, values_of
from metastasis.segmentation.operating_points import operating_point

if TYPE_CHECKING:
    import nibabel as nib
    import pandas as pd
else:
    import nibabel as nib

__all__ = ["TwoStageSegmenter"]

_CLASSIFIER = "classifier.skops"
_CLASSIFIERS = ("trees", "linear")
_NAMES = (*FEATURES, *PRIOR_FEATURES)
#: A candidate is a metastasis if it covers this share of one, and has this share in it.
_COVERS, _INSIDE = 0.1, 0.1


@register
class TwoStageSegmenter(BaseEstimator):
    """
    Judge the candidates of a segmenter by features of the scan, the prior and their difference.

    A network at high sensitivity marks vessels, dura and plexus beside metastases. Components of
    its probability at several levels are candidates; a classifier tells them apart by size,
    intensity, contrast, shape, curvature, place and, with a prior scan, by what has changed. It
    learns from candidates of scans that the network has not seen: those that it has seen are too
    easy.

    Parameters
    ----------
    segmenter : estimator, optional
        With `predict_proba` as `DeepMedicSegmenter` has it. One that is fitted is used as it is,
        and `fit` should then get scans that it has not seen; others are trained, in `n_folds` for
        the candidates and once more on all cases. By default a small U-Net.
    classifier : {"trees", "linear"} or regressor, default="trees"
        What judges: boosted trees, a linear model of standardized features, or a regressor of
        scikit-learn that learns 0 and 1, and of which model files hold the arrays.
    levels : tuple of float, default=(0.05, 0.2, 0.5)
        Probabilities of the segmenter from which voxels are joined to candidates.
    min_voxels : int, default=4
        Components of fewer voxels are neither candidates nor marked.
    use_prior : bool, default=True
        Whether prior scans are looked at by the classifier.
    n_folds : int, default=2
        Folds of groups for the candidates of a segmenter that is not fitted.
    threshold : float, default=0.15
        Score from which a candidate is marked, as long as no operating point is set.
    random_state : int, RandomState or None, default=None
        Seed.

    Attributes
    ----------
    segmenter_ : estimator
        The fitted segmenter.
    classifier_ : estimator
        The fitted classifier.
    threshold_ : float
        Score from which a candidate is marked in `predict`.
    n_candidates_ : dict
        Candidates that were learned from: ``"metastases"`` and ``"others"``.
    feature_weights_ : dict
        For each feature how much the area under the curve falls where it is shuffled.
    """

    threshold_: float
    n_candidates_: dict[str, int]
    feature_weights_: dict[str, float]
    _fitted_names: ClassVar[tuple[str, ...]] = (
        "threshold_",
        "n_candidates_",
        "feature_weights_",
    )

    def __init__(
        self,
        segmenter: Any = None,
        classifier: Any = "trees",
        *,
        levels: Sequence[float] = (0.05, 0.2, 0.5),
        min_voxels: int = 4,
        use_prior: bool = True,
        n_folds: int = 2,
        threshold: float = 0.15,
        random_state: RandomState = None,
    ) -> None:
        self.segmenter = segmenter
        self.classifier = classifier
        self.levels = levels
        self.min_voxels = min_voxels
        self.use_prior = use_prior
        self.n_folds = n_folds
        self.threshold = threshold
        self.random_state = random_state

    # Public methods -----------------------------------------------------------------------------

    def fit(
        self,
        volumes: Sequence[Any],
        labels: Sequence[Any],
        *,
        priors: Sequence[Any] | None = None,
        masks: Sequence[Any] | None = None,
        groups: Sequence[Any] | None = None,
    ) -> TwoStageSegmenter:
        """
        Train the segmenter unless it is fitted, and the classifier of its candidates.

        Parameters
        ----------
        volumes, labels, priors, masks, groups : sequence of n_cases
            As for `DeepMedicSegmenter.fit`; labels may be those of `implant_lesions`.

        Returns
        -------
        self
            Itself.

        Raises
        ------
        ValueError
            If a parameter or case is not possible, or the candidates are all metastases or none.
        """
        self._check()
        cases = joined_cases(volumes, priors, masks)
        targets = [np.asarray(values_of(label)) for label, _ in paired_labels(cases, labels)]
        seed = seed_from(self.random_state)
        rows, answers = [], []
        for number, probability in self._unseen(cases, labels, groups):
            with naming(number):
                candidates = self._candidates(probability, cases[number])
                truth = _truth(candidates, targets[number])
            rows.append(candidates.table[truth >= 0])
            answers.append(truth[truth >= 0])
        table, truth = self._columns(np.concatenate(rows)), np.concatenate(answers)
        n_true = int(truth.sum())
        if n_true in (0, len(truth)):
            raise ValueError(
                f"{n_true} of {len(truth)} candidates are metastases; both kinds are needed: give "
                "more cases, or lower levels"
            )
        self.n_candidates_ = {"metastases": n_true, "others": len(truth) - n_true}
        self.classifier_ = self._new_classifier(derived_seed(seed, "classifier"))
        self.classifier_.fit(table, truth.astype(np.float64))
        self.feature_weights_ = _shuffled_losses(
            self.classifier_, table, truth, np.random.default_rng(derived_seed(seed, "shuffle"))
        )
        self.threshold_ = float(self.threshold)
        return self

    def predict_proba(
        self,
        volumes: Sequence[Any],
        *,
        priors: Sequence[Any] | None = None,
        masks: Sequence[Any] | None = None,
    ) -> list[NDArray[np.float32]]:
        """
        Give each voxel the highest score of the candidates that it belongs to.

        Parameters
        ----------
        volumes, priors, masks : sequence of n_cases
            As in `fit`.

        Returns
        -------
        list of ndarray of shape (x, y, z)
            Scores from 0 to 1 for each case, 0 where there is no candidate.
        """
        check_is_fitted(self)
        return VolumeList(self._scored(joined_cases(volumes, priors, masks)))

    def predict(
        self,
        volumes: Sequence[Any],
        *,
        priors: Sequence[Any] | None = None,
        masks: Sequence[Any] | None = None,
    ) -> list[NDArray[np.uint8]]:
        """
        Mark the voxels of candidates with a score of at least ``threshold_``.

        Parameters
        ----------
        volumes, priors, masks : sequence of n_cases
            As in `fit`.

        Returns
        -------
        list of ndarray of shape (x, y, z)
            For each case 0 and 1.
        """
        scores = self.predict_proba(volumes, priors=priors, masks=masks)
        return VolumeList(
            drop_small(score >= self.threshold_, self.min_voxels).astype(np.uint8)
            for score in scores
        )

    def set_operating_point(
        self,
        volumes: Sequence[Any],
        labels: Sequence[Any],
        *,
        priors: Sequence[Any] | None = None,
        masks: Sequence[Any] | None = None,
        false_positives: float = 1.0,
    ) -> TwoStageSegmenter:
        """
        Choose ``threshold_`` for a number of false positives per scan, on held-out cases.

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
        """
        check_is_fitted(self)
        scores = self.predict_proba(volumes, priors=priors, masks=masks)
        targets = [(np.asarray(values_of(label)) == 1).astype(np.uint8) for label in labels]
        point = operating_point(
            targets, scores, false_positives=false_positives, min_voxels=self.min_voxels
        )
        self.threshold_ = point.threshold
        return self

    def feature_table(self) -> pd.DataFrame:
        """
        List the features with their weights, the heaviest first.

        Returns
        -------
        DataFrame
            Columns ``feature``, ``weight`` (loss of area under the curve where it is shuffled) and
            ``meaning``.
        """
        import pandas as pd

        check_is_fitted(self)
        meanings = FEATURES | PRIOR_FEATURES
        rows = [
            {"feature": name, "weight": weight, "meaning": meanings[name]}
            for name, weight in self.feature_weights_.items()
        ]
        return pd.DataFrame(rows).sort_values("weight", ascending=False, ignore_index=True)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "classifier_")

    # As a DeepMedicSegmenter has them, for the commands -----------------------------------------

    @property
    def prior_(self) -> str | None:
        """Whether prior scans are looked at."""
        inside = getattr(self.segmenter_, "prior_", None)
        return "features" if inside is None and self._knows_priors else inside

    @property
    def false_positives_(self) -> float | None:
        """False positives per scan that the threshold was chosen for; not kept."""
        return None

    @property
    def _knows_priors(self) -> bool:
        return self.use_prior and any(
            self.feature_weights_.get(name, 0.0) != 0.0 for name in PRIOR_FEATURES
        )

    # Candidates ---------------------------------------------------------------------------------

    def _unseen(
        self, cases: list[Scan], labels: Sequence[Any], groups: Sequence[Any] | None
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield probabilities of each case from a segmenter that has not seen it, and set it."""
        segmenter = self.segmenter
        if segmenter is None:
            segmenter = _small_unet(self.random_state)
        if _is_fitted(segmenter):
            self.segmenter_ = segmenter
            for number, case in enumerate(cases):
                yield number, _probability(segmenter, case)
            return
        names = range(len(cases)) if groups is None else groups
        numbers = np.arange(len(cases))
        for seen, unseen in GroupKFold(self.n_folds).split(numbers, groups=list(names)):
            fold = _fit(clone(segmenter), cases, labels, seen)
            for number in unseen:
                yield int(number), _probability(fold, cases[number])
        self.segmenter_ = _fit(clone(segmenter), cases, labels, numbers)

    def _candidates(self, probability: NDArray[np.floating], case: Scan) -> Candidates:
        volume, prior, _ = case
        values = np.asarray(values_of(volume))
        # The first channel is the post-contrast image.
        image = values if values.ndim == 3 else values[..., 0]
        steps = np.ones(3)
        if isinstance(volume, nib.Nifti1Image):
            steps = np.asarray(nib.affines.voxel_sizes(volume.affine))
        before = None
        if prior is not None and self.use_prior:
            before = np.asarray(values_of(prior))
        scan = ScanVolumes.scaled(image, brain_of(case), steps, before)
        return find_candidates(
            probability, scan, levels=tuple(self.levels), min_voxels=self.min_voxels
        )

    def _columns(self, table: NDArray[np.float64]) -> NDArray[np.float64]:
        """Give the columns that the classifier looks at, with a flag for a missing prior."""
        own, changes = table[:, : len(FEATURES)], table[:, len(FEATURES) :]
        # A linear model knows no missing values: no change, and a flag that says so.
        has_prior = np.isfinite(changes).all(axis=1, keepdims=True)
        filled = np.where(np.isfinite(changes), changes, 0)
        return np.hstack([own, filled, has_prior])

    def _scored(self, cases: list[Scan]) -> Iterator[NDArray[np.float32]]:
        for case in cases:
            probability = _probability(self.segmenter_, case)
            candidates = self._candidates(probability, case)
            scores = np.zeros(probability.shape, dtype=np.float32)
            if len(candidates):
                answers = self.classifier_.predict(self._columns(candidates.table))
                flat = scores.reshape(-1)
                for voxels, answer in zip(candidates.voxels, answers, strict=True):
                    flat[voxels] = np.maximum(flat[voxels], np.clip(answer, 0, 1))
            yield scores

    def _new_classifier(self, seed: int) -> Any:
        if self.classifier == "trees":
            return HistGradientBoostingRegressor(
                max_iter=150,
                learning_rate=0.06,
                max_leaf_nodes=10,
                min_samples_leaf=20,
                l2_regularization=1.0,
                early_stopping=False,
                random_state=seed,
            )
        if self.classifier == "linear":
            return make_pipeline(StandardScaler(), Ridge(alpha=1.0))
        return clone(self.classifier)

    def _check(self) -> None:
        if isinstance(self.classifier, str):
            check_word("classifier", self.classifier, _CLASSIFIERS)
        levels = np.asarray(self.levels, dtype=np.float64)
        if levels.ndim != 1 or not len(levels) or not ((levels > 0) & (levels < 1)).all():
            raise ValueError(f"levels must be probabilities between 0 and 1, not {self.levels!r}")
        check_number("min_voxels", self.min_voxels, least=1, whole=True)
        check_number("n_folds", self.n_folds, least=2, whole=True)
        check_number("threshold", self.threshold, most=1)

    # Model files --------------------------------------------------------------------------------

    def stored(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, bytes]]:
        """
        Return the content of a model file: both stages in one.

        Returns
        -------
        parameters : dict
            Of the constructor, without the segmenter.
        fitted : dict
            Fitted attributes, those of the segmenter among them.
        files : dict of bytes
            Weights of the segmenter, and the classifier.
        """
        check_is_fitted(self)
        parameters = self.get_params(deep=False)
        parameters["segmenter"] = None
        if isinstance(self.random_state, np.random.RandomState):
            parameters["random_state"] = None
        if not isinstance(self.classifier, str):
            parameters["classifier"] = "trees"
        name = type(self.segmenter_).__name__
        if registered(name) is not type(self.segmenter_):
            raise TypeError(f"a model file cannot hold a {name} as segmenter")
        inside, inside_fitted, files = self.segmenter_.stored()
        fitted = {key: encoded(getattr(self, key), key) for key in self._fitted_names}
        fitted["segmenter"] = {"class": name, "parameters": inside, "fitted": inside_fitted}
        files = dict(files) | {_CLASSIFIER: dumped(self.classifier_, None, {}, [])}
        return {key: encoded(value, key) for key, value in parameters.items()}, fitted, files

    def restore(self, fitted: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
        """
        Restore the content that `stored` returned.

        Parameters
        ----------
        fitted : mapping
            Fitted attributes.
        files : mapping of bytes
            Weights and classifier.

        Raises
        ------
        RefusedError
            If something is missing or unknown, or does not fit.
        """
        refuse_keys(
            dict(fitted), {*self._fitted_names, "segmenter"}, "fitted attribute", complete=True
        )
        try:
            self._check()
        except (TypeError, ValueError) as error:
            raise RefusedError(str(error)) from None
        inside = fitted["segmenter"]
        refuse_keys(inside, {"class", "parameters", "fitted"}, "key of a segmenter", complete=True)
        cls: Any = registered(inside["class"])
        if cls is None or cls is type(self):
            raise RefusedError(f"its segmenter is a {inside['class']!r}")
        parameters = {key: decoded(value) for key, value in inside["parameters"].items()}
        segmenter = cls(**parameters)
        weights = {name: content for name, content in files.items() if name != _CLASSIFIER}
        segmenter.restore(inside["fitted"], weights)
        self.segmenter_ = segmenter
        for name in self._fitted_names:
            setattr(self, name, decoded(fitted[name]))
        if not is_number(self.threshold_) or not 0 <= self.threshold_ <= 1:
            raise RefusedError(f"threshold_ is {self.threshold_!r}")
        if set(self.feature_weights_) - set(_NAMES):
            raise RefusedError("its features are not those of this version")
        if _CLASSIFIER not in files:
            raise RefusedError("it has no classifier")
        classifier = loaded(files[_CLASSIFIER], None, [], {})
        n_columns = len(_NAMES) + 1
        if getattr(classifier, "n_features_in_", 0) != n_columns:
            raise RefusedError(f"its classifier does not look at {n_columns} columns")
        self.classifier_ = classifier


def _small_unet(random_state: RandomState) -> Any:
    """Make the segmenter of own scans: a U-Net of 0.33 million weights."""
    from metastasis.segmentation.segmenter import DeepMedicSegmenter

    return DeepMedicSegmenter(
        loss="lesion",
        prior=None,
        network="small_unet",
        scaling="local",
        segment_size=48,
        optimizer="adamw",
        min_voxels=4,
        training=Training(epochs=15, batch_size=2, learning_rate=2e-3, schedule="cosine"),
        random_state=random_state,
    )


def _is_fitted(segmenter: Any) -> bool:
    try:
        check_is_fitted(segmenter)
    except NotFittedError:
        return False
    return True


def _fit(segmenter: Any, cases: list[Scan], labels: Sequence[Any], numbers: Any) -> Any:
    """Train a segmenter on some of the cases."""
    volumes, priors, masks = zip(*(cases[number] for number in numbers), strict=True)
    used = [labels[number] for number in numbers]
    return segmenter.fit(list(volumes), used, **_options(segmenter, priors, masks))


def _probability(segmenter: Any, case: Scan) -> NDArray[np.float32]:
    volume, prior, mask = case
    (probability,) = segmenter.predict_proba([volume], **_options(segmenter, [prior], [mask]))
    return probability


def _options(segmenter: Any, priors: Sequence[Any], masks: Sequence[Any]) -> dict[str, Any]:
    """Give priors and masks to a segmenter, but none to a network that was told to have none."""
    options: dict[str, Any] = {}
    if any(mask is not None for mask in masks):
        options["masks"] = list(masks)
    uses_priors = getattr(segmenter, "prior", None) is not None
    if hasattr(segmenter, "prior_"):
        uses_priors = segmenter.prior_ is not None
    if uses_priors and any(prior is not None for prior in priors):
        options["priors"] = list(priors)
    return options


def _truth(candidates: Candidates, label: NDArray[Any]) -> NDArray[np.int8]:
    """Tell which candidates are metastases (1), which are none (0), and which are neither (-1)."""
    flat = label.reshape(-1)
    numbers, _ = ndimage.label(label == 1, structure=np.ones((3, 3, 3)))
    numbers = numbers.reshape(-1)
    sizes = np.bincount(numbers)
    truth = np.zeros(len(candidates), dtype=np.int8)
    for row, voxels in enumerate(candidates.voxels):
        lesions = np.bincount(numbers[voxels], minlength=len(sizes))
        lesions[0] = 0
        covers = (lesions[1:] >= _COVERS * sizes[1:]).any()
        share = lesions.sum() / len(voxels)
        if covers and share >= _INSIDE:
            truth[row] = 1
        elif lesions.sum() or (flat[voxels] > 1).mean() > 0.5:
            # Neither: a bit of a lesion in something large, or its core or swelling.
            truth[row] = -1
    return truth


def _shuffled_losses(
    classifier: Any, table: NDArray[np.float64], truth: NDArray[Any], rng: np.random.Generator
) -> dict[str, float]:
    """Give the loss of area under the curve where each feature is shuffled."""
    area = roc_auc_score(truth, classifier.predict(table))
    losses = {}
    for column, name in enumerate(_NAMES):
        shuffled = table.copy()
        shuffled[:, column] = rng.permutation(shuffled[:, column])
        losses[name] = float(area - roc_auc_score(truth, classifier.predict(shuffled)))
    return losses
