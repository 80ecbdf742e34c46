"""The voxels of a comparison: each image read once, each reference fitted once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from dmrifit._utils.randomness import derived_seed
from dmrifit.cohort.cohort import Cohort, VoxelTable
from dmrifit.cohort.patches import check_reach
from dmrifit.cohort.scan import MaskName, Scan
from dmrifit.engine.fitting import fit_voxels
from dmrifit.engine.protocol import Protocol
from dmrifit.engine.results import FitResult, FitStatus
from dmrifit.engine.resynthesis import missing_contrasts, resynthesize
from dmrifit.io.digests import digest
from dmrifit.predict.base import Design
from dmrifit.predict.strategies import Clinical, MapsToMaps
from dmrifit.study.contestants import Entrant, View

__all__ = ["Bank", "HeldOut", "Stack"]


@dataclass(frozen=True, eq=False)
class HeldOut:
    """
    A held-out patient, as one estimator sees it.

    Attributes
    ----------
    cohort, patient : str
        Names.
    X, Y : ndarray
        Source and target signals, divided by the patient's scale.
    reference : ndarray of shape (n_voxels, n_parameters)
        The fit to Y.
    at_bound : ndarray of shape (n_parameters,)
        Share of voxels whose reference sits at a bound.
    truth : ndarray of shape (n_voxels, n_parameters) or None
        Of a synthetic scan.
    index : ndarray of int, shape (n_voxels, 4)
        Which voxels: the number of the patient's scan, then the indices.
    shape, affine : tuple of 3 ints, ndarray of shape (4, 4)
        The grid of the scan that is shown.
    """

    cohort: str
    patient: str
    X: NDArray[np.float64]
    Y: NDArray[np.float64]
    reference: NDArray[np.float64]
    at_bound: NDArray[np.float64]
    truth: NDArray[np.float64] | None
    index: NDArray[np.intp]
    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    @property
    def shown(self) -> NDArray[np.bool_]:
        """Voxels of the first scan that has any, whose images are kept."""
        return np.asarray(self.index[:, 0] == self.index[0, 0])


@dataclass(frozen=True, eq=False)
class Stack:
    """
    Training voxels of all patients, in arrays that workers share.

    Attributes
    ----------
    arrays : tuple of ndarray
        Features and targets of a strategy; of another estimator X and Y.
    rows : dict of str to slice
        Rows of the arrays that hold a patient's voxels.
    designs : dict of str to Design
        What is known of a patient's voxels beside the arrays: counts and, for regressors that need
        no more, moments. Empty for an estimator that is no strategy.
    """

    arrays: tuple[NDArray, NDArray]
    rows: dict[str, slice]
    designs: dict[str, Design]

    @classmethod
    def of(
        cls, entrant: Entrant, view: View, voxels: Mapping[str, tuple[NDArray, NDArray, NDArray]]
    ) -> Stack:
        """Prepare the voxels of patients for an estimator."""
        features, targets = [], []
        designs: dict[str, Design] = {}
        rows: dict[str, slice] = {}
        n_rows = 0
        for patient, (X, Y, maps) in voxels.items():
            if entrant.recipe:
                design = cls._design(entrant, view, patient, X, Y, maps)
                X, Y = design.arrays()
                designs[patient] = design.reduced()
            features.append(X)
            targets.append(Y)
            rows[patient] = slice(n_rows, n_rows + len(X))
            n_rows += len(X)
        return cls((np.concatenate(features), np.concatenate(targets)), rows, designs)

    @staticmethod
    def _design(
        entrant: Entrant, view: View, patient: str, X: NDArray, Y: NDArray, maps: NDArray
    ) -> Design:
        estimator = clone(entrant.estimator).set_params(source=view.source, target=view.target)
        options: dict[str, Any] = {"groups": np.full(len(X), patient)}
        if entrant.strategy == "m2m":
            # The reference was fitted for all estimators that share the view.
            options["reference_maps"] = maps
        try:
            return estimator.design(X, Y, **options)
        except ValueError as error:
            raise ValueError(f"estimator {entrant.name!r}, patient {patient}: {error}") from None


class Bank:
    """
    All voxels that training and scoring need.

    Parameters
    ----------
    cohorts : mapping of str to Cohort
        By name.
    seen : mapping of str to iterable of View
        How the patients of a cohort are looked at when they are tested on.
    lent : mapping of str to iterable of View
        How the patients of a cohort are looked at when they are trained on.
    train_mask, score_mask : {"body", "lesion"}
        Voxels to train on and to score.
    max_voxels : int or None
        Training voxels of each scan.
    n_repeats : int
        Draws of training voxels.
    seed : int
        Of the draws.
    """

    def __init__(
        self,
        cohorts: Mapping[str, Cohort],
        seen: Mapping[str, Iterable[View]],
        lent: Mapping[str, Iterable[View]],
        *,
        train_mask: MaskName,
        score_mask: MaskName,
        max_voxels: int | None,
        n_repeats: int,
        seed: int,
    ) -> None:
        self.patients: dict[str, dict[str, dict[str, int]]] = {}
        self.trainable: dict[str, list[str]] = {}
        self.testable: dict[str, list[str]] = {}
        self._tests: dict[tuple[View, str], HeldOut] = {}
        self._digests: dict[tuple[Any, ...], str] = {}
        self._voxels: dict[tuple[View, int], dict[str, tuple[NDArray, NDArray, NDArray]]] = {}
        self._stacks: dict[tuple[Any, ...], Stack] = {}
        self._clinical: dict[tuple[str, View, str], Clinical] = {}
        self._one_draw = max_voxels is None
        self._max_voxels = max_voxels
        self._seed = seed
        for name, cohort in cohorts.items():
            for view in (*lent[name], *seen[name]):
                if view.patch_shape is not None:
                    check_reach(view.patch_shape, (scan.shape for scan in cohort.scans))
            self.patients[name] = {}
            self.trainable[name], self.testable[name] = [], []
            for patient in cohort.patients:
                scans = [scan.loaded() for scan in cohort.scans if scan.patient == patient]
                patient_cohort = Cohort(scans, name)
                counts = {mask: patient_cohort.count(mask) for mask in ("body", "lesion")}
                self.patients[name][patient] = counts
                if counts[train_mask]:
                    usable = True
                    for view in lent[name]:
                        suited = _suited(patient_cohort, view, seed)
                        for repeat in range(1 if self._one_draw else n_repeats):
                            usable &= self._add_training(suited, view, repeat, patient, train_mask)
                    if usable:
                        self.trainable[name].append(patient)
                if counts[score_mask]:
                    self.testable[name].append(patient)
                    for view in seen[name]:
                        self._add_test(patient_cohort, view, patient, score_mask)

    def _add_training(
        self, cohort: Cohort, view: View, repeat: int, patient: str, mask: MaskName
    ) -> bool:
        """Add the usable voxels of a patient, and say whether there are any."""
        table = cohort.arrays(
            view.source,
            view.target,
            mask=mask,
            patch_shape=view.patch_shape,
            max_voxels=self._max_voxels,
            random_state=derived_seed(self._seed, "voxels", repeat),
        )
        usable = np.isfinite(table.X).all(axis=1) & np.isfinite(table.Y).all(axis=1)
        if not usable.any():
            return False
        X, Y = table.X[usable], table.Y[usable]
        fit = _reference(Y, view, cohort.name, patient)
        maps = np.where((fit.status == FitStatus.NOT_CONVERGED)[:, None], np.nan, fit.parameters)
        self._voxels.setdefault((view, repeat), {})[patient] = X, Y, maps
        self._digests["train", view, repeat, patient] = digest([X, Y])
        return True

    def _add_test(self, cohort: Cohort, view: View, patient: str, mask: MaskName) -> None:
        """Fit the reference of a patient's scored voxels, and look up their truth."""
        table = cohort.arrays(view.source, view.target, mask=mask, patch_shape=view.patch_shape)
        fit = _reference(table.Y, view, cohort.name, patient)
        truth = _relative_truth(cohort, view, table)
        first_scan = cohort.scans[table.index[0, 0]]
        self._tests[view, patient] = HeldOut(
            cohort=cohort.name,
            patient=patient,
            X=table.X,
            Y=table.Y,
            reference=fit.parameters,
            at_bound=_share_at_bounds(fit),
            truth=truth,
            index=table.index,
            shape=first_scan.shape,
            affine=first_scan.affine,
        )
        self._digests["test", view, patient] = digest([table.X, table.Y, fit.parameters, truth])

    def material(self, entrant: Entrant, view: View, repeat: int) -> Stack:
        """Return the training voxels for an estimator, made once for all that share them."""
        key = entrant.recipe, view, self._draw(repeat)
        if key not in self._stacks:
            voxels = self._voxels[view, self._draw(repeat)]
            self._stacks[key] = Stack.of(entrant, view, voxels)
        return self._stacks[key]

    def tests(self, view: View, patients: Sequence[str]) -> list[HeldOut]:
        """Return held-out patients."""
        return [self._tests[view, patient] for patient in patients]

    def clinical(self, entrant: Entrant, view: View, patient: str) -> Clinical | None:
        """Return a held-out patient's clinical metrics, made once for all that share them."""
        if type(entrant.estimator) is not MapsToMaps:
            return None
        key = entrant.recipe, view, patient
        if key not in self._clinical:
            estimator = clone(entrant.estimator).set_params(source=view.source, target=view.target)
            self._clinical[key] = estimator.clinical(self._tests[view, patient].X)
        return self._clinical[key]

    def digest(
        self, view: View, repeat: int, train: Sequence[str], test: Sequence[str]
    ) -> list[list[str]]:
        """Return the digests of all data of a training and its tests."""
        return [
            [self._digests["train", view, self._draw(repeat), patient] for patient in train],
            [self._digests["test", view, patient] for patient in test],
        ]

    def _draw(self, repeat: int) -> int:
        return 0 if self._one_draw else repeat


def _relative_truth(cohort: Cohort, view: View, table: VoxelTable) -> NDArray[np.float64] | None:
    """Give the true parameters of voxels, amplitudes relative to the patient's scale."""
    truth = cohort.truth_at(table.index)
    names = view.model.names
    # The truth of another model gives its symbols another meaning.
    if truth is None or set(names) != set(truth):
        return None
    is_amplitude = np.array([parameter.is_amplitude for parameter in view.model.parameters])
    scale = np.where(is_amplitude, table.scale[:, None], 1.0)
    return np.stack([truth[name] for name in names], axis=1) / scale


def _suited(cohort: Cohort, view: View, seed: int) -> Cohort:
    """Give a patient's scans the contrasts of a view, computing those that were not measured."""
    scans = []
    for scan in cohort.scans:
        missing_target = missing_contrasts(view.target, scan.protocol)
        missing_source = missing_contrasts(view.source, scan.protocol)
        if not missing_target and not missing_source:
            scans.append(scan)
            continue
        protocol = view.target
        extra = missing_contrasts(view.source, view.target)
        if extra:
            protocol = _joined(protocol, view.source.take(list(extra)))
        region = scan.mask if scan.lesion is None else scan.mask | scan.lesion
        sigma = scan.sigma
        signal = np.zeros((*scan.shape, len(protocol)))
        signal[region] = resynthesize(
            scan.signal[region],
            scan.protocol,
            protocol,
            view.model,
            sigma=sigma[region] if isinstance(sigma, np.ndarray) else sigma,
            random_state=derived_seed(seed, "resynthesis", scan.patient),
        )
        scans.append(
            Scan(
                scan.patient,
                signal,
                protocol,
                scan.mask,
                scan.affine,
                lesion=scan.lesion,
                cohort=scan.cohort,
                sigma=sigma,
                synthetic=scan.synthetic,
            )
        )
    return Cohort(scans, cohort.name)


def _joined(first: Protocol, second: Protocol) -> Protocol:
    te = None if first.te is None or second.te is None else [*first.te, *second.te]
    return Protocol([*first.b, *second.b], te)


def _reference(Y: NDArray, view: View, cohort: str, patient: str) -> FitResult:
    try:
        return fit_voxels(Y, view.target, view.model)
    except ValueError as error:
        raise ValueError(
            f"the reference of patient {patient} (cohort {cohort!r}) cannot be fitted: {error}"
        ) from None


def _share_at_bounds(fit: FitResult) -> NDArray[np.float64]:
    """Share of fitted voxels in which each parameter sits at one of its bounds."""
    fitted = fit.status != FitStatus.NOT_FITTED
    if not fitted.any():
        return np.full(len(fit.names), np.nan)
    return (fit.at_low | fit.at_high)[fitted].mean(axis=0)
