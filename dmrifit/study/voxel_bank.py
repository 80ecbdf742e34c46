"""The voxels of a comparison: each image read once, each reference fitted once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from dmrifit._utils.checks import errors_about
from dmrifit._utils.randomness import Seed
from dmrifit.cohort.cohort import Cohort
from dmrifit.cohort.patches import check_reach
from dmrifit.cohort.scaling import contrast_order, echo_times
from dmrifit.cohort.scan import Scan
from dmrifit.engine.fitting import fit_voxels
from dmrifit.engine.protocol import Protocol
from dmrifit.engine.results import FitResult, FitStatus
from dmrifit.engine.resynthesis import missing_contrasts, resynthesize
from dmrifit.io.digests import digest
from dmrifit.stats.metrics import best_constants
from dmrifit.study.contestants import Entrant, View
from dmrifit.study.study_folder import Settings

_BRIGHTEST = 99.5  # percentile of the body that is white where maps are drawn on it


@dataclass(frozen=True, eq=False)
class Repeat:
    """A second measurement of a synthetic patient, which shares no noise with the first one."""

    noise_free: NDArray[np.float64]  # (n_voxels, n_target), divided by the patient's scale
    signals: NDArray[np.float64]  # (n_voxels, n_target), with noise drawn again
    reference: NDArray[np.float64]  # (n_voxels, n_parameters), the fit to these signals


@dataclass(frozen=True, eq=False)
class HeldOut:
    """A held-out patient, as one estimator sees it."""

    cohort: str
    patient: str
    X: NDArray[np.float64]  # as in `VoxelTable`, divided by the patient's scale
    Y: NDArray[np.float64]  # (n_voxels, n_target), likewise
    reference: NDArray[np.float64]  # (n_voxels, n_parameters), the fit to Y
    at_bound: NDArray[np.float64]  # (n_parameters,), share of fitted voxels at a bound
    truth: NDArray[np.float64] | None  # (n_voxels, n_parameters), of a synthetic scan
    index: NDArray[np.intp]  # (n_voxels, 4): number of the patient's scan, then the indices
    shape: tuple[int, int, int]  # of the scan that is shown
    affine: NDArray[np.float64]  # (4, 4)
    shown: NDArray[np.bool_]  # (n_voxels,), those of the scan whose images are kept
    # Of a synthetic patient whose noise-free signals and noise level are known.
    repeat: Repeat | None = None


@dataclass(frozen=True, eq=False)
class Constants:
    """The constant predictions with the least errors on the other patients of a cohort."""

    signals: NDArray[np.float64]  # (n_target,), least relative error
    relative: NDArray[np.float64]  # (n_parameters,), least relative error
    absolute: NDArray[np.float64]  # (n_parameters,), least absolute error


@dataclass(frozen=True, eq=False)
class Stack:
    """Training voxels of all patients, in arrays that workers share."""

    arrays: tuple[NDArray, NDArray]  # features and targets of a strategy; of others X and Y
    rows: dict[str, slice]  # which rows of the arrays are of a patient
    # Voxels of a patient that a strategy cannot use; empty where there is no strategy.
    n_dropped: dict[str, int]

    @classmethod
    def of(
        cls, entrant: Entrant, view: View, voxels: Mapping[str, tuple[NDArray, NDArray, NDArray]]
    ) -> Stack:
        """Prepare the voxels of patients for an estimator."""
        stacked: list[tuple[NDArray, NDArray]] = []
        n_dropped: dict[str, int] = {}
        for patient, (X, Y, maps) in voxels.items():
            if not entrant.recipe:
                stacked.append((X, Y))
                continue
            estimator = clone(entrant.estimator).set_params(source=view.source, target=view.target)
            options: dict[str, Any] = {"groups": np.full(len(X), patient)}
            if entrant.strategy == "m2m":
                # The reference was fitted for all estimators that share the view.
                options["reference_maps"] = maps
            with errors_about(f"estimator {entrant.name!r}, patient {patient}"):
                design = estimator.design(X, Y, **options)
            stacked.append((design.features, design.targets))
            n_dropped[patient] = design.n_dropped
        features, targets = map(np.concatenate, zip(*stacked, strict=True))
        ends = np.cumsum([0, *(len(x) for x, _ in stacked)]).tolist()
        rows = dict(zip(voxels, map(slice, ends[:-1], ends[1:]), strict=True))
        return cls((features, targets), rows, n_dropped)


class Bank:
    """All voxels that training needs, in the views `lent`, and scoring, in the views `seen`."""

    def __init__(
        self,
        cohorts: Mapping[str, Cohort],
        seen: Mapping[str, Iterable[View]],
        lent: Mapping[str, Iterable[View]],
        settings: Settings,
    ) -> None:
        self.patients: dict[str, dict[str, dict[str, int]]] = {}
        self.trainable: dict[str, list[str]] = {}
        self.testable: dict[str, list[str]] = {}
        self.repeated: dict[str, bool] = {}  # whether all tested have a second measurement
        # (x, y, z) by patient, gray levels of the image that maps are drawn on
        self.anatomies: dict[str, NDArray[np.uint8]] = {}
        self._tests: dict[tuple[View, str], HeldOut] = {}
        self._digests: dict[Any, str] = {}
        self._voxels: dict[Any, dict[str, tuple[NDArray, NDArray, NDArray]]] = {}
        self._stacks: dict[Any, Stack] = {}
        self._constants: dict[Any, Constants] = {}
        self._settings = settings
        n_draws = 1 if settings.max_voxels is None else settings.n_repeats
        owners: dict[str, str] = {}
        for name, cohort in cohorts.items():
            for view in (*lent[name], *seen[name]):
                if view.patch_shape is not None:
                    check_reach(view.patch_shape, (scan.shape for scan in cohort.scans))
            self.patients[name] = {}
            self.trainable[name], self.testable[name] = [], []
            for patient in cohort.patients:
                # One patient in memory at a time.
                scans = [scan.loaded() for scan in cohort.scans if scan.patient == patient]
                first = scans[0]
                # Several scans of a patient have no names to sort them by.
                scans.sort(key=_content)
                for scan in scans:
                    owner = owners.setdefault(_content(scan), patient)
                    if owner != patient:
                        raise ValueError(
                            f"patients {owner} and {patient} have the same images; one person "
                            "under two names would be in training and test: leave one out"
                        )
                patient_cohort = Cohort(scans, name)
                counts = {mask: patient_cohort.count(mask) for mask in ("body", "lesion")}
                self.patients[name][patient] = counts
                if counts[settings.train_mask]:
                    usable = True
                    for view in lent[name]:
                        suited = _suited(patient_cohort, view, settings.seed)
                        for repeat in range(n_draws):
                            usable &= self._add_training(suited, view, repeat, patient)
                    if usable:
                        self.trainable[name].append(patient)
                if counts[settings.score_mask]:
                    self.testable[name].append(patient)
                    for view in seen[name]:
                        self._add_test(patient_cohort, view, patient, first)
            tested = self.testable[name]
            self.repeated[name] = all(self.is_repeated(view, tested) for view in seen[name])

    def _add_training(self, cohort: Cohort, view: View, repeat: int, patient: str) -> bool:
        """Add the usable voxels of a patient, and say whether there are any."""
        table = cohort.arrays(
            view.source,
            view.target,
            mask=self._settings.train_mask,
            patch_shape=view.patch_shape,
            max_voxels=self._settings.max_voxels,
            random_state=Seed(self._settings.seed).derived("voxels", repeat),
        )
        usable = np.isfinite(table.X).all(axis=1) & np.isfinite(table.Y).all(axis=1)
        if not usable.any():
            return False
        X, Y = table.X[usable], table.Y[usable]
        fit = _reference(Y, view, cohort.name, patient)
        # Parameters of an unfinished fit would be learned as if they were true.
        maps = np.where((fit.status == FitStatus.NOT_CONVERGED)[:, None], np.nan, fit.parameters)
        self._voxels.setdefault((view, repeat), {})[patient] = X, Y, maps
        self._digests["train", view, repeat, patient] = digest([X, Y])
        return True

    def _add_test(self, cohort: Cohort, view: View, patient: str, first: Scan) -> None:
        """Fit the reference of a patient's scored voxels, and look up their truth."""
        mask = self._settings.score_mask
        table = cohort.arrays(view.source, view.target, mask=mask, patch_shape=view.patch_shape)
        fit = _reference(table.Y, view, cohort.name, patient)
        at_bound = np.full(len(fit.names), np.nan)
        fitted = fit.status != FitStatus.NOT_FITTED
        if fitted.any():
            at_bound = (fit.at_low | fit.at_high)[fitted].mean(axis=0)
        truth = cohort.truth_at(table.index)
        names = view.model.names
        relative_truth = None
        # The truth of another model gives its symbols another meaning.
        if truth is not None and set(names) == set(truth):
            is_amplitude = np.array([one.is_amplitude for one in view.model.parameters])
            scale = np.where(is_amplitude, table.scale[:, None], 1.0)
            relative_truth = np.stack([truth[name] for name in names], axis=1) / scale
        content = [table.X, table.Y, fit.parameters, relative_truth]
        repeat = None
        noise_free = cohort.noise_free_at(table.index, view.target)
        if noise_free is not None and table.sigma is not None:
            noise_free /= table.scale[:, None]
            rng = Seed(self._settings.seed).rng("repeat", patient)
            real, imaginary = rng.standard_normal((2, *noise_free.shape)) * table.sigma[:, None]
            signals = np.hypot(noise_free + real, imaginary)
            reference = _reference(signals, view, cohort.name, patient).parameters
            repeat = Repeat(noise_free, signals, reference)
            content += [noise_free, signals, reference]
        # Maps are shown of one scan, the first unless no voxel of it is scored.
        shown_scan = cohort.scans.index(first)
        if shown_scan not in table.index[:, 0]:
            shown_scan = int(table.index[0, 0])
        shown = cohort.scans[shown_scan]
        self.anatomies[patient] = _anatomy(shown)
        self._digests["test", view, patient] = digest(content)
        self._tests[view, patient] = HeldOut(
            cohort.name, patient, table.X, table.Y, fit.parameters, at_bound, relative_truth,
            table.index, shown.shape, shown.affine, table.index[:, 0] == shown_scan, repeat,
        )  # fmt: skip

    def material(self, entrant: Entrant, view: View, repeat: int) -> Stack:
        """Return the training voxels for an estimator, made once for all that share them."""
        draw = self._draw(repeat)
        if (key := (entrant.recipe, view, draw)) not in self._stacks:
            self._stacks[key] = Stack.of(entrant, view, self._voxels[view, draw])
        return self._stacks[key]

    def tests(self, view: View, patients: Sequence[str]) -> list[HeldOut]:
        """Return held-out patients."""
        return [self._tests[view, patient] for patient in patients]

    def constants(self, view: View, repeat: int, patient: str) -> Constants:
        """Find the best constants of the patients other than a held-out one."""
        # The same for every training, so that of two skills the larger has the smaller error.
        if (key := (view, self._draw(repeat), patient)) not in self._constants:
            voxels = [self._voxels[key[:2]][other] for other in self._others(patient)]
            Y, maps = (np.concatenate([values[i] for values in voxels]) for i in (1, 2))
            kinds = ((Y, True), (maps, True), (maps, False))
            self._constants[key] = Constants(*(best_constants(x, relative=r) for x, r in kinds))
        return self._constants[key]

    def is_repeated(self, view: View, patients: Sequence[str]) -> bool:
        """Whether all of these held-out patients have a second measurement."""
        return all(self._tests[view, patient].repeat is not None for patient in patients)

    def digest(
        self, view: View, repeat: int, train: Sequence[str], test: Sequence[str]
    ) -> list[list[str]]:
        """Return the digests of all data of a training, its tests and their constants."""
        others = map(self._others, test)
        draw = self._draw(repeat)
        return [
            [self._digests["train", view, draw, name] for name in chain(train, *others)],
            [self._digests["test", view, patient] for patient in test],
        ]

    def _others(self, patient: str) -> list[str]:
        """List all other patients of the same cohort; where there are none, of all cohorts."""
        cohort = next(name for name, patients in self.patients.items() if patient in patients)
        same = [other for other in self.trainable[cohort] if other != patient]
        return same or [other for other in chain(*self.trainable.values()) if other != patient]

    def _draw(self, repeat: int) -> int:
        """Give the draw of training voxels of a repeat; all repeats share one of all voxels."""
        return 0 if self._settings.max_voxels is None else repeat


def _anatomy(scan: Scan) -> NDArray[np.uint8]:
    """
    Scale the image of least b, then TE, to gray levels; white is percentile 99.5 of the body.

    Shapes: returns (x, y, z).
    """
    plain = int(np.lexsort((echo_times(scan.protocol), scan.protocol.b))[0])
    image = np.nan_to_num(scan.signal[..., plain].astype(float), posinf=0.0)
    brightest = float(np.percentile(image[scan.mask], _BRIGHTEST))
    if not brightest > 0:
        return np.zeros(image.shape, np.uint8)
    return np.asarray(np.clip(255 * image / brightest, 0, 255), dtype=np.uint8)


def _content(scan: Scan) -> str:
    """Digest the signals of a scan, whatever the order of its volumes."""
    return digest(scan.signal[..., contrast_order(scan.protocol)])


def _suited(cohort: Cohort, view: View, seed: int) -> Cohort:
    """Give a patient's scans the contrasts of a view, computing those that were not measured."""
    scans = []
    for scan in cohort.scans:
        if not any(missing_contrasts(part, scan.protocol) for part in (view.target, view.source)):
            scans.append(scan)
            continue
        protocol = view.target
        if extra := list(missing_contrasts(view.source, protocol)):
            # Source contrasts that are no target contrasts follow the target.
            te = None
            if protocol.te is not None and view.source.te is not None:
                te = [*protocol.te, *view.source.te[extra]]
            protocol = Protocol([*protocol.b, *view.source.b[extra]], te)
        region = scan.mask if scan.lesion is None else scan.mask | scan.lesion
        sigma = scan.sigma
        signal = np.zeros((*scan.shape, len(protocol)))
        signal[region] = resynthesize(
            scan.signal[region],
            scan.protocol,
            protocol,
            view.model,
            sigma=sigma[region] if isinstance(sigma, np.ndarray) else sigma,
            random_state=Seed(seed).derived("resynthesis", scan.patient),
        )
        resynthesized = Scan(
            scan.patient, signal, protocol, scan.mask, scan.affine,
            lesion=scan.lesion, cohort=scan.cohort, sigma=sigma, synthetic=scan.synthetic,
        )  # fmt: skip
        scans.append(resynthesized)
    return Cohort(scans, cohort.name)


def _reference(Y: NDArray, view: View, cohort: str, patient: str) -> FitResult:
    with errors_about(f"the reference of patient {patient} (cohort {cohort!r}) cannot be fitted"):
        return fit_voxels(Y, view.target, view.model, method="nlls")
