"""Two-stage segmenter: candidates of a sensitive network, judged by a classifier."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GroupKFold
from sklearn.utils.validation import check_is_fitted

from dmrifit._utils.checks import Count, Within, check_fields, check_number, check_word
from dmrifit._utils.counts import counted
from dmrifit._utils.randomness import RandomState, Seed
from dmrifit.io.parameter_json import refuse_keys
from dmrifit.model_files.registry import register
from dmrifit.networks.training import Training
from dmrifit.networks.volume_cases import naming
from metastasis.candidates import judgment
from metastasis.candidates.case_candidates import case_candidates
from metastasis.candidates.features import FEATURES, LEVELS, PRIOR_FEATURES, Candidates
from metastasis.scans import network_inputs
from metastasis.segmentation.ensemble import probability_of, scan_options
from metastasis.segmentation.operating_points import OperatingPointMixin
from metastasis.segmentation.sampling import MISTAKEN, marked_evenly
from metastasis.segmentation.segmenter import DeepMedicSegmenter

__all__ = ["TwoStageSegmenter"]

_CLASSIFIER, _WITHOUT_PRIOR = "classifier.skops", "alone.skops"


#: The included small model, of voxels of 1 mm; its card beside it (.md): data, figures, limits.
PATH = Path(__file__).parent / "data" / "small.dmrifit"


@register
@dataclass(repr=False, eq=False)
class TwoStageSegmenter(OperatingPointMixin, BaseEstimator):
    """
    Judge the candidates of a segmenter by features of the scan, the prior and their difference.

    A network at high sensitivity marks vessels, dura and plexus beside metastases. Components of
    its probability at several levels are candidates; a classifier tells them apart by size,
    intensity, contrast, shape, curvature, place and, with a prior scan, by what has changed. It
    learns from candidates of scans that the network has not seen: those that it has seen are too
    easy. A prior is moved onto the scan place by place, and the segmenter marks what it would have
    taken for a metastasis then. Scans without a prior are judged by a classifier that has learned
    from scans alone, so that patients who have none lose nothing.

    Parameters
    ----------
    segmenter : estimator, optional
        With `predict_proba` as `DeepMedicSegmenter` has it. One that is fitted is used as it is,
        and `fit` should then get scans that it has not seen; others are trained, in `n_folds` for
        the candidates and once more on all cases. By default a small U-Net.
    classifier : {"trees", "linear"} or regressor, default="trees"
        What judges: boosted trees, a linear model of standardized features, or a regressor of
        scikit-learn that learns 0 and 1, and of which model files hold the arrays.
    levels : tuple of float, default=(0.005, 0.02, 0.1, 0.4)
        Probabilities of the segmenter from which voxels are joined to candidates.
    comparable : bool, default=False
        Whether probabilities are first scaled to those of most of the brain, so that one threshold
        serves in scans in which a network is sure and in others in which it is not.
    min_voxels : int, default=4
        Components of fewer voxels are neither candidates nor marked; voxels of the segmenter,
        where it resamples scans to a spacing, as do the features.
    use_prior : bool, default=True
        Whether prior scans are looked at by the classifier.
    n_folds : int, default=2
        Folds of groups for the candidates of a segmenter that is not fitted.
    n_trainings : int, default=1
        Trainings of a `DeepMedicSegmenter` with the loss "lesion", not used where it is fitted.
        Each but the first goes on from the one before, and learns more from the background that
        it took for lesions; the classifier learns from candidates after each. With a
        ``validation_fraction`` all of them hold out the same scans, in which nothing is marked;
        with a checkpoint, give a number as `random_state` then, or nothing resumes.
    threshold : float, default=0.15
        Score from which a candidate is marked, as long as no operating point is set.
    random_state : int, RandomState or None, default=None
        Seed.

    Attributes
    ----------
    segmenter_ : estimator
        The fitted segmenter.
    classifier_, classifier_without_prior_ : estimator
        The fitted classifiers of scans with a prior and of those without; one and the same where
        no candidate that was learned from had a prior.
    threshold_ : float
        Score from which a candidate is marked in `predict`.
    uses_priors_ : bool
        Whether any candidate that was learned from had a prior.
    n_candidates_ : dict
        Candidates that were learned from: ``"metastases"`` and ``"others"``.
    false_positives_ : float or None
        False positives per scan that `threshold_` was chosen for; None where it was not.
    feature_weights_ : dict
        For each feature the share of variance no longer explained where it is shuffled in the
        training candidates.
    """

    _fitted_names: ClassVar[tuple[str, ...]] = (
        "threshold_",
        "false_positives_",
        "uses_priors_",
        "n_candidates_",
        "feature_weights_",
    )

    #: Files of a model file that are not the segmenter's.
    own_files: ClassVar[tuple[str, ...]] = (_CLASSIFIER, _WITHOUT_PRIOR)

    segmenter: Any = None
    classifier: Any = "trees"
    _: KW_ONLY
    levels: Sequence[Annotated[float, Within(above=0, below=1)]] = LEVELS
    comparable: bool = False
    min_voxels: Count = 4
    use_prior: bool = True
    n_folds: Annotated[int, Within(2)] = 2
    n_trainings: Count = 1
    threshold: Annotated[float, Within(above=0, most=1)] = 0.15
    random_state: RandomState = None

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
        cases = network_inputs.joined_cases(volumes, priors, masks)
        pairs = network_inputs.paired_labels(cases, labels)
        spacing = getattr(self.segmenter, "spacing", None)
        tables, truths = [], []
        for number, segmenter in self._unseen(cases, labels, groups):
            with naming(number):
                case = network_inputs.case_on_network_grid(cases[number], spacing)
                target = np.asarray(
                    network_inputs.classes_on_network_grid(*pairs[number], spacing)
                )
                # What a network was mistaken in is background, and what has to be judged.
                target = np.where(target == MISTAKEN, 0, target)
                candidates = self._candidates(
                    segmenter, case, use_prior=self.use_prior, lesions=target > 0
                )
                truths.append(judgment.candidate_truth(candidates, target))
            tables.append(candidates.table)
        return self.fit_candidates(self.segmenter_, np.concatenate(tables), np.concatenate(truths))

    def fit_candidates(
        self, segmenter: Any, table: NDArray[np.float64], truth: NDArray[np.int8]
    ) -> TwoStageSegmenter:
        """
        Train the classifier with candidates that were found before, for a fitted segmenter.

        Parameters
        ----------
        segmenter : estimator
            Fitted; candidates of other scans are found by it.
        table : ndarray of shape (n, n_features)
            Of `find_candidates`, joined over scans that their segmenter has not seen.
        truth : ndarray of shape (n,)
            Of `candidate_truth`: 1 metastasis, 0 none, -1 neither.

        Returns
        -------
        self
            Itself.

        Raises
        ------
        ValueError
            If the candidates are all metastases or none.
        """
        self._check()
        table, truth = table[truth >= 0], truth[truth >= 0]
        n_true = int(truth.sum())
        if n_true in (0, len(truth)):
            raise ValueError(
                f"metastases among {counted(len(truth), 'candidate')}: {n_true}; both kinds are "
                "needed: give more cases, or lower levels"
            )
        seed = Seed(self.random_state)
        self.segmenter_ = segmenter
        self.n_candidates_ = {"metastases": n_true, "others": len(truth) - n_true}

        def fitted(columns: NDArray[np.float64]) -> Any:
            classifier = judgment.make_classifier(self.classifier, seed.derived("classifier"))
            return classifier.fit(columns, truth.astype(np.float64))

        columns = judgment.classifier_columns(table)
        self.uses_priors_ = bool(judgment.has_prior(table).any())
        self.classifier_ = self.classifier_without_prior_ = fitted(columns)
        if self.uses_priors_:
            self.classifier_without_prior_ = fitted(
                judgment.classifier_columns(judgment.without_prior(table))
            )
        self.feature_weights_ = judgment.shuffled_losses(
            self.classifier_, columns, truth, seed.derived("shuffle")
        )
        self.threshold_ = float(self.threshold)
        self.false_positives_: float | None = None
        return self

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
            ``min_voxels``; fewer where voxels are larger than those of the segmenter.
        """
        spacing = getattr(self.segmenter_, "spacing", None)
        edge = network_inputs.edge_of(volume)
        if spacing is None or edge is None:
            return self.min_voxels
        # Edges of oblique grids read 1.00000001 mm.
        n_voxels = int(round(self.min_voxels * (spacing / edge) ** 3, 3))
        # In smaller voxels all are large enough: candidates were counted on the segmenter's grid.
        return max(1, min(self.min_voxels, n_voxels))

    def feature_table(self) -> pd.DataFrame:
        """
        List the features with their weights, the heaviest first.

        Returns
        -------
        DataFrame
            Columns ``feature``, ``weight`` (share of variance no longer explained where it is
            shuffled in the training candidates) and ``meaning``.
        """
        check_is_fitted(self)
        meanings = FEATURES | PRIOR_FEATURES
        rows = [(name, weight, meanings[name]) for name, weight in self.feature_weights_.items()]
        table = pd.DataFrame(rows, columns=["feature", "weight", "meaning"])
        return table.sort_values("weight", ascending=False, ignore_index=True)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "classifier_")

    # As a DeepMedicSegmenter has them, for the commands -----------------------------------------

    @property
    def prior_(self) -> str | None:
        """How prior scans are looked at: ``"features"`` or as in the segmenter; None if not."""
        inside = getattr(self.segmenter_, "prior_", None)
        return "features" if inside is None and self.uses_priors_ else inside

    # Candidates ---------------------------------------------------------------------------------

    def _unseen(
        self, cases: list[network_inputs.Scan], labels: Sequence[Any], groups: Sequence[Any] | None
    ) -> Iterator[tuple[int, Any]]:
        """
        Yield numbers of cases, each with a segmenter that was not trained on it; set `segmenter_`.

        A segmenter that is fitted already is used as it is for all cases. Otherwise, segmenters
        are trained by cross-validation, and `segmenter_` is trained on all cases at the end.
        """
        segmenter = small_unet(self.random_state) if self.segmenter is None else self.segmenter
        if _is_fitted(segmenter):
            self.segmenter_ = segmenter
            for number in range(len(cases)):
                yield number, segmenter
            return
        numbers = np.arange(len(cases))
        names = list(numbers if groups is None else groups)
        if len(set(names)) < self.n_folds:
            raise ValueError(
                f"scans of {counted(len(set(names)), 'patient')}: a model of two stages learns "
                f"from {self.n_folds} or more (n_folds); add patients, or train a network alone "
                "(DeepMedicSegmenter, --network deepmedic)"
            )
        for training, held_out in GroupKFold(self.n_folds).split(numbers, groups=names):
            segmenters = self._trained(segmenter, cases, labels, training, groups)
            # Networks of earlier trainings, too: they have more large false positives, from which
            # the classifier learns.
            for number in held_out:
                for trained_segmenter in segmenters:
                    yield int(number), trained_segmenter
        self.segmenter_ = self._trained(segmenter, cases, labels, numbers, groups)[-1]

    def _trained(
        self,
        segmenter: Any,
        cases: list[network_inputs.Scan],
        labels: Sequence[Any],
        numbers: Any,
        groups: Sequence[Any] | None,
    ) -> list[Any]:
        """Train a segmenter on some of the cases; give it as it was after each training."""
        training_cases = [cases[number] for number in numbers]
        training_labels = [labels[number] for number in numbers]
        volumes, priors, masks = zip(*training_cases, strict=True)
        options: dict[str, Any] = scan_options(segmenter, segmenter.fit, priors, masks)
        if groups is not None and "groups" in signature(segmenter.fit).parameters:
            # Scans of a patient stay on one side of the validation, too.
            options["groups"] = [groups[number] for number in numbers]
        seed = Seed(self.random_state)
        learned = np.arange(len(numbers))
        if self.n_trainings > 1 and segmenter._settings.validation_fraction:
            # One seed, so that all trainings hold out the same scans.
            segmenter = clone(segmenter)
            split_seed = Seed(segmenter.random_state)
            segmenter.set_params(random_state=int(split_seed))
            learned, _ = segmenter._split(
                len(numbers), options.get("groups"), split_seed.derived("split")
            )
        segmenters = [clone(segmenter).fit(list(volumes), training_labels, **options)]
        while len(segmenters) < self.n_trainings:
            marked_labels = list(training_labels)
            mark_seed = seed.derived("mistakes", len(segmenters))
            # Held-out scans are scored by their true lesions alone.
            for i in learned:
                scan = training_cases[i], training_labels[i]
                marked_labels[i] = _mark_mistakes_of(segmenters[-1], *scan, mark_seed)
            following = clone(segmenter)
            following.set_params(warm_start_from=segmenters[-1])
            following.fit(list(volumes), marked_labels, **options)
            # Earlier networks need not be kept.
            segmenters.append(following.set_params(warm_start_from=segmenter.warm_start_from))
        return segmenters

    def _candidates(self, segmenter: Any, case: network_inputs.Scan, **options: Any) -> Candidates:
        return case_candidates(
            segmenter,
            case,
            levels=self.levels,
            min_voxels=self.min_voxels,
            is_comparable=self.comparable,
            **options,
        )

    def _predictions(self, cases: list[network_inputs.Scan]) -> Iterator[NDArray[np.float32]]:
        spacing = getattr(self.segmenter_, "spacing", None)
        # A classifier that learned without priors looks at none: they need not be aligned.
        use_prior = self.use_prior and self.uses_priors_
        for scan in cases:
            case = network_inputs.case_on_network_grid(scan, spacing)
            candidates = self._candidates(self.segmenter_, case, use_prior=use_prior)
            shape = np.shape(network_inputs.values_of(case[0]))[:3]
            with_prior = judgment.has_prior(candidates.table).any()
            classifier = self.classifier_ if with_prior else self.classifier_without_prior_
            scores = judgment.scored_volume(classifier, candidates, shape)
            if case is not scan:
                scores = network_inputs.scores_on_scan_grid(
                    scores, scan[0], spacing
                ) * network_inputs.brain_of(scan)
            yield scores

    def _check(self) -> None:
        check_fields(self)
        if isinstance(self.classifier, str):
            check_word("classifier", self.classifier, judgment.CLASSIFIERS)
        learns = self.segmenter is not None and not _is_fitted(self.segmenter)
        # Only with this loss can a segmenter learn from what it took for lesions.
        if self.n_trainings > 1 and learns and getattr(self.segmenter, "loss", "") != "lesion":
            raise ValueError(
                f"n_trainings={self.n_trainings} needs a DeepMedicSegmenter with loss='lesion', "
                f"not {self.segmenter!r}"
            )

    def _check_fitted(self) -> None:
        """Refuse fitted attributes of a model file that `fit` could not have set."""
        counts, weights = self.n_candidates_, self.feature_weights_
        refuse_keys(counts, {"metastases", "others"}, "kind of candidates", complete=True)
        refuse_keys(weights, set(judgment.NAMES), "feature", complete=True)
        self._check()
        check_number("threshold_", self.threshold_, above=0, most=1)
        check_word("uses_priors_", self.uses_priors_, (False, True))
        if self.false_positives_ is not None:
            check_number("false_positives_", self.false_positives_)
        for name, count in counts.items():
            check_number(f"the number of {name}", count, least=1, whole=True)
        for name, weight in weights.items():
            check_number(f"the weight of {name}", weight, least=-np.inf)

    # Model files --------------------------------------------------------------------------------

    def stored(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """
        Return the content of a model file: both stages in one.

        Returns
        -------
        parameters : dict
            Of the constructor, without the segmenter.
        fitted : dict
            Fitted attributes, the segmenter among them.
        files : dict
            The classifiers.
        """
        check_is_fitted(self)
        parameters = self.get_params(deep=False) | {"segmenter": None}
        if isinstance(self.random_state, np.random.RandomState):
            parameters["random_state"] = None
        if not isinstance(self.classifier, str):
            parameters["classifier"] = "trees"
        name = type(self.segmenter_).__name__
        if type(self.segmenter_) is not DeepMedicSegmenter:
            raise TypeError(f"a model file cannot hold a {name} as segmenter")
        fitted = {key: getattr(self, key) for key in self._fitted_names}
        fitted["segmenter"] = self.segmenter_
        files = {_CLASSIFIER: self.classifier_}
        if self.uses_priors_:
            files[_WITHOUT_PRIOR] = self.classifier_without_prior_
        return parameters, fitted, files

    def restore(self, fitted: Mapping[str, Any], files: Mapping[str, Any]) -> None:
        """
        Restore the content that `stored` returned.

        Parameters
        ----------
        fitted : mapping
            Fitted attributes.
        files : mapping
            The classifiers.

        Raises
        ------
        ValueError
            If something is missing or unknown, or does not fit.
        """
        refuse_keys(
            dict(fitted), {*self._fitted_names, "segmenter"}, "fitted attribute", complete=True
        )
        self.segmenter_ = fitted["segmenter"]
        # Other classes of model files do not segment.
        if type(self.segmenter_) is not DeepMedicSegmenter:
            raise ValueError(f"its segmenter is {self.segmenter_!r:.80}")
        for name in self._fitted_names:
            setattr(self, name, fitted[name])
        self._check_fitted()
        if _CLASSIFIER not in files:
            raise ValueError("it has no classifier")
        # Where no candidate had a prior, there is a single classifier.
        classifiers = [files[_CLASSIFIER], files.get(_WITHOUT_PRIOR, files[_CLASSIFIER])]
        n_columns = len(judgment.NAMES) + 1
        for classifier in classifiers:
            n_features = getattr(classifier, "n_features_in_", 0)
            if n_features != n_columns or not hasattr(classifier, "predict"):
                raise ValueError(f"its classifier does not look at {n_columns} columns")
        self.classifier_, self.classifier_without_prior_ = classifiers


def small_unet(random_state: RandomState, **training: Any) -> Any:
    """Make the untrained network of the small model; `training` are fields of `Training`."""
    defaults = Training(epochs=18, batch_size=2, learning_rate=2e-3, schedule="cosine")
    return DeepMedicSegmenter(
        loss="lesion",
        prior=None,
        network="small_unet",
        scaling="local",
        segment_size=48,
        optimizer="adamw",
        min_voxels=4,
        spacing=1.0,
        training=defaults | Training(**training),
        random_state=random_state,
    )


def _mark_mistakes_of(
    segmenter: Any, case: network_inputs.Scan, label: Any, seed: int
) -> NDArray[np.uint8]:
    """Mark in a label what a segmenter takes for lesions, but for what is near to one."""
    steps = network_inputs.steps_of(case[0])
    values = np.asarray(network_inputs.values_of(label))
    return marked_evenly(values, probability_of(segmenter, case), seed, steps)


def _is_fitted(segmenter: Any) -> bool:
    try:
        check_is_fitted(segmenter)
    except NotFittedError:
        return False
    return True


def untrained_small_model(random_state: RandomState, **training: Any) -> TwoStageSegmenter:
    """Make an untrained two-stage model like the small one: a U-Net, its candidates judged."""
    return TwoStageSegmenter(
        small_unet(random_state, **training),
        comparable=True,
        # In the second, its network learns more from what it took for lesions.
        n_trainings=2,
        threshold=small_model_threshold(),
        random_state=random_state,
    )


def small_model_threshold() -> float:
    """Give the score from which the model marks, which its figures were measured at."""
    card = json.loads(PATH.with_suffix(".json").read_text(encoding="utf-8"))
    return float(card["figures"]["threshold"])
