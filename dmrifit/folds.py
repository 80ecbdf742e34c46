"""Who is trained on whom: the trainings of a comparison, and the voxels that each of them needs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmrifit.cohort import Cohort, VoxelTable
from dmrifit.derivatives import versions
from dmrifit.fitting import fit_voxels
from dmrifit.mapping import resolve_model
from dmrifit.models import SignalModel
from dmrifit.prediction import MapsToMaps, SignalToSignal
from dmrifit.protocol import Protocol
from dmrifit.randomness import seed_for
from dmrifit.records import describe, digest
from dmrifit.scans import MaskName, Scan

__all__ = [
    "Bank",
    "Cell",
    "Entrant",
    "HeldOut",
    "View",
    "check_settings",
    "choose_views",
    "derived_seed",
    "named_cohorts",
    "named_estimators",
    "plan",
]

TRAIN_ON = ("same", "other", "pooled")
DEFAULT_MODEL = "t2-ivim-kurtosis"

#: Distributions whose version may change a number.
VERSIONS = ("dmrifit", "numpy", "scipy", "scikit-learn", "numba")

#: Modules of ours that no score depends on.
_PRESENTATION = ("__main__", "cli", "mosaics", "pages", "plotting", "quicklook", "reporting")
_STRATEGIES = {"SignalToSignal": "s2s", "MapsToMaps": "m2m"}
_BOUND_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class Entrant:
    """An estimator that takes part."""

    name: str
    strategy: str
    algorithm: str
    estimator: Any
    model: SignalModel
    description: Any

    @classmethod
    def of(cls, name: str, estimator: Any, *, kept: bool) -> Entrant:
        """Check an estimator; results that are kept need a description by which they are found again."""
        missing = [method for method in ("fit", "predict", "predict_maps") if not hasattr(estimator, method)]
        if missing or isinstance(estimator, type):
            msg = (
                f"estimator {name!r} is {estimator!r}, which has no {', '.join(missing) or 'instance'}; wrap "
                "a regressor in SignalToSignal(regressor) or MapsToMaps(regressor)"
            )
            raise ValueError(msg)
        kind = next((c.__name__ for c in type(estimator).__mro__ if c.__name__ in _STRATEGIES), "")
        strategy = _STRATEGIES.get(kind, type(estimator).__name__)
        try:
            if isinstance(estimator, SignalToSignal | MapsToMaps):
                estimator.check_parameters()
            model = _model_of(estimator)
        except (ValueError, TypeError) as error:
            msg = f"estimator {name!r}: {error}"
            raise ValueError(msg) from None
        try:
            description = describe(estimator)
        except TypeError as error:
            if kept:
                msg = f"estimator {name!r}: {error}"
                raise ValueError(msg) from None
            description = repr(estimator)
        return cls(
            name,
            strategy,
            _algorithm(name, strategy),
            estimator,
            model,
            description,
        )


@dataclass(frozen=True)
class View:
    """What an estimator sees of a scan: contrasts and neighborhood."""

    source: Protocol
    target: Protocol
    patch_shape: tuple[int, int, int] | None

    def unseen(self) -> list[int]:
        """Find the target contrasts that are not among the source contrasts."""
        unseen = []
        for i in range(len(self.target)):
            try:
                self.target.take([i]).indices_in(self.source)
            except ValueError:
                unseen.append(i)
        return unseen


@dataclass(frozen=True, eq=False)
class HeldOut:
    """A held-out patient, as one estimator sees it."""

    cohort: str
    patient: str
    X: NDArray[np.float64]
    Y: NDArray[np.float64]
    reference: NDArray[np.float64]
    at_bound: NDArray[np.float64]
    truth: NDArray[np.float64] | None


@dataclass(frozen=True, eq=False)
class Cell:
    """One training and the patients it is tested on."""

    entrant: Entrant
    view: View
    train_on: str
    cohort: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    repeat: int
    seed: int
    key: str


def named_cohorts(cohorts: Mapping[str, Cohort] | Sequence[Cohort] | Cohort) -> dict[str, Cohort]:
    """Name the cohorts, and make sure that no patient is in two of them."""
    if isinstance(cohorts, Cohort):
        cohorts = [cohorts]
    if not isinstance(cohorts, Mapping):
        names = [cohort.name or f"cohort {i}" for i, cohort in enumerate(cohorts, start=1)]
        if len(set(names)) != len(names):
            msg = f"cohorts need different names, not {names}; give a dict of name to cohort"
            raise ValueError(msg)
        cohorts = dict(zip(names, cohorts, strict=True))
    if not cohorts:
        msg = "no cohort was given"
        raise ValueError(msg)
    home: dict[str, str] = {}
    for name, cohort in cohorts.items():
        for patient in cohort.patients:
            if home.setdefault(patient, name) != name:
                msg = (
                    f"patient {patient} is in cohort {home[patient]!r} and in cohort {name!r}; a patient in "
                    "both training and test would spoil every score: keep one, or name two persons apart"
                )
                raise ValueError(msg)
    return dict(cohorts)


def named_estimators(estimators: Mapping[str, Any]) -> Mapping[str, Any]:
    """Make sure that estimators have names."""
    if not isinstance(estimators, Mapping) or not estimators:
        msg = "estimators must be a dict of name to estimator, with at least one"
        raise ValueError(msg)
    return estimators


def check_settings(
    regimes: tuple[str, ...],
    cohorts: dict[str, Cohort],
    n_train: int | None,
    n_repeats: int,
    max_voxels: int | None,
    masks: tuple[str, ...],
) -> None:
    """Make sure that the settings of a comparison have a meaning."""
    for regime in regimes:
        if regime not in TRAIN_ON:
            msg = f"train_on must be one of {', '.join(TRAIN_ON)}, not {regime!r}"
            raise ValueError(msg)
    if not regimes or len(set(regimes)) != len(regimes):
        msg = f"train_on must name each way once, not {regimes}"
        raise ValueError(msg)
    for mask in masks:
        if mask not in ("body", "lesion"):
            msg = f"a mask is 'body' or 'lesion', not {mask!r}"
            raise ValueError(msg)
    for label, value in (("n_train", n_train), ("n_repeats", n_repeats), ("max_voxels", max_voxels)):
        if value is not None and value < 1:
            msg = f"{label} must be at least 1, not {value}"
            raise ValueError(msg)
    if "other" in regimes and len(cohorts) < 2:
        msg = "train_on='other' needs at least two cohorts"
        raise ValueError(msg)


def _model_of(estimator: Any) -> SignalModel:
    """Find the model whose parameters an estimator predicts; one that has no say predicts the default's."""
    parameters = estimator.get_params(deep=False) if hasattr(estimator, "get_params") else {}
    model = parameters.get("model", DEFAULT_MODEL)
    if model is None:
        msg = "a comparison scores maps, and without a model there are none; give model="
        raise ValueError(msg)
    return resolve_model(model)


def _parameter(estimator: Any, name: str) -> Any:
    return estimator.get_params(deep=False).get(name) if hasattr(estimator, "get_params") else None


def _algorithm(name: str, strategy: str) -> str:
    """Take the strategy out of an estimator's name: "LR s2s" is algorithm LR."""
    words = [word for word in re.split(r"[\s/_:,()-]+", name) if word and word.lower() != strategy]
    return " ".join(words) or name


def choose_views(
    entrants: list[Entrant], cohorts: dict[str, Cohort], regimes: tuple[str, ...]
) -> dict[tuple[str, str], View]:
    """Choose the contrasts of every estimator in every cohort; check that all scans have them."""
    crossing = any(regime != "same" for regime in regimes)
    views = {}
    for name, cohort in cohorts.items():
        home = next(iter(cohorts.values())) if crossing else cohort
        full = home.scans[0].protocol
        for entrant in entrants:
            source = _parameter(entrant.estimator, "source")
            target = _parameter(entrant.estimator, "target")
            view = View(
                _clinical(full, home) if source is None else source,
                full if target is None else target,
                _parameter(entrant.estimator, "patch_shape"),
            )
            for scan in cohort.scans:
                _check_contrasts(view, scan, name, home.name if crossing else "")
            views[entrant.name, name] = view
    return views


def _clinical(full: Protocol, cohort: Cohort) -> Protocol:
    try:
        return full.take(full.clinical())
    except ValueError as error:
        msg = f"cohort {cohort.name!r}: {error}; or give the estimators a source and a target"
        raise ValueError(msg) from None


def _check_contrasts(view: View, scan: Scan, cohort: str, trained_with: str) -> None:
    for part in (view.source, view.target):
        try:
            part.indices_in(scan.protocol)
        except ValueError as error:
            msg = f"patient {scan.patient} of cohort {cohort!r}: {error}"
            if trained_with and trained_with != cohort:
                msg += (
                    f". Training in one cohort and testing in another needs the protocol of {trained_with!r} "
                    "in both: use train_on='same', or give the estimators a source and a target that both have"
                )
            raise ValueError(msg) from None


class Bank:
    """All voxels that training and scoring need, each image read once, each reference fitted once."""

    def __init__(
        self,
        cohorts: dict[str, Cohort],
        entrants: list[Entrant],
        views: dict[tuple[str, str], View],
        train_mask: MaskName,
        score_mask: MaskName,
        max_voxels: int | None,
        n_repeats: int,
        seed: int,
    ) -> None:
        self.patients: dict[str, dict[str, dict[str, Any]]] = {}
        self.trainable: dict[str, list[str]] = {}
        self.testable: dict[str, list[str]] = {}
        self._tests: dict[tuple[str, View, str], HeldOut] = {}
        self._digests: dict[tuple[Any, ...], str] = {}
        self._rows: dict[tuple[View, int], dict[str, slice]] = {}
        self._pieces: dict[tuple[View, int], list[tuple[NDArray, NDArray]]] = {}
        self._stacked: dict[tuple[View, int], tuple[NDArray, NDArray]] = {}
        self._one_draw = max_voxels is None
        repeats = range(1 if self._one_draw else n_repeats)
        for name, cohort in cohorts.items():
            self.patients[name] = {}
            self.trainable[name], self.testable[name] = [], []
            seen: dict[View, dict[str, SignalModel]] = {}
            for entrant in entrants:
                seen.setdefault(views[entrant.name, name], {})[entrant.model.name] = entrant.model
            for patient in cohort.patients:
                own = Cohort([scan.loaded() for scan in cohort.scans if scan.patient == patient], name)
                counts = {mask: own.count(mask) for mask in ("body", "lesion")}
                self.patients[name][patient] = counts
                if counts[train_mask]:
                    self.trainable[name].append(patient)
                    for view in seen:
                        for repeat in repeats:
                            table = own.arrays(
                                view.source,
                                view.target,
                                mask=train_mask,
                                patch_shape=view.patch_shape,
                                max_voxels=max_voxels,
                                random_state=derived_seed(seed, "voxels", repeat),
                            )
                            self._add_training(view, repeat, patient, table)
                if counts[score_mask]:
                    self.testable[name].append(patient)
                    self._add_tests(own, patient, seen, score_mask)

    def _add_training(self, view: View, repeat: int, patient: str, table: VoxelTable) -> None:
        usable = np.isfinite(table.X).all(axis=1) & np.isfinite(table.Y).all(axis=1)
        X, Y = table.X[usable], table.Y[usable]
        pieces = self._pieces.setdefault((view, repeat), [])
        rows = self._rows.setdefault((view, repeat), {})
        start = sum(len(piece[0]) for piece in pieces)
        pieces.append((X, Y))
        rows[patient] = slice(start, start + len(X))
        self._digests["train", view, repeat, patient] = digest([X, Y])

    def _add_tests(
        self,
        own: Cohort,
        patient: str,
        views: Mapping[View, dict[str, SignalModel]],
        score_mask: MaskName,
    ) -> None:
        """Fit the reference to the target contrasts, once for all estimators that share them."""
        for view in views:
            table = own.arrays(view.source, view.target, mask=score_mask, patch_shape=view.patch_shape)
            truth = own.truth_at(table.index)
            for model in views[view].values():
                try:
                    reference = fit_voxels(table.Y, view.target, model).parameters
                except ValueError as error:
                    msg = f"the reference of patient {patient} (cohort {own.name!r}) cannot be fitted: {error}"
                    raise ValueError(msg) from None
                known = None
                if truth is not None and set(model.names) <= set(truth):
                    amplitude = np.array([parameter.is_amplitude for parameter in model.parameters])
                    unit = np.where(amplitude, table.scale[:, None], 1.0)
                    known = np.stack([truth[name] for name in model.names], axis=1) / unit
                at_bound = _share_at_bounds(reference, table.Y, model)
                test = HeldOut(own.name, patient, table.X, table.Y, reference, at_bound, known)
                self._tests[model.name, view, patient] = test
                content = [test.X, test.Y, test.reference, test.truth]
                self._digests["test", model.name, view, patient] = digest(content)

    def stacked(self, view: View, repeat: int) -> tuple[NDArray, NDArray]:
        """Return all training voxels of a view, one array each, so that workers share them."""
        key = view, 0 if self._one_draw else repeat
        if key not in self._stacked:
            pieces = self._pieces.pop(key)
            X, Y = (np.concatenate(part) for part in zip(*pieces, strict=True))
            self._stacked[key] = X, Y
        return self._stacked[key]

    def rows(self, view: View, repeat: int, patients: Sequence[str]) -> list[slice]:
        """Where the training voxels of patients stand in `stacked`."""
        rows = self._rows[view, 0 if self._one_draw else repeat]
        return [rows[patient] for patient in patients]

    def tests(self, cell: Cell) -> list[HeldOut]:
        """Return the held-out patients of a cell."""
        return [self._tests[cell.entrant.model.name, cell.view, patient] for patient in cell.test]

    def digest(
        self, entrant: Entrant, view: View, repeat: int, train: Sequence[str], test: Sequence[str]
    ) -> list[list[str]]:
        """Return the digests of all data of a cell."""
        repeat = 0 if self._one_draw else repeat
        return [
            [self._digests["train", view, repeat, patient] for patient in train],
            [self._digests["test", entrant.model.name, view, patient] for patient in test],
        ]


def plan(
    entrants: list[Entrant],
    cohorts: dict[str, Cohort],
    regimes: tuple[str, ...],
    views: dict[tuple[str, str], View],
    bank: Bank,
    n_train: int | None,
    n_repeats: int,
    seed: int,
) -> list[Cell]:
    """List all trainings; a model that is the same for several patients is trained once."""
    software = [versions(*VERSIONS), _sources()]
    cells = []
    for regime in regimes:
        for name in cohorts:
            if not bank.testable[name]:
                msg = f"cohort {name!r} has no voxel to score; give lesion masks, or another score_mask"
                raise ValueError(msg)
            held_out = [bank.testable[name]] if regime == "other" else [[p] for p in bank.testable[name]]
            for test in held_out:
                available = _available(regime, name, test, list(cohorts), bank, n_train or 1)
                whom = test[0] if len(test) == 1 else "all"
                for repeat in range(n_repeats):
                    purpose = regime, name, whom, repeat
                    train = available if n_train is None else _draw(available, n_train, seed, *purpose)
                    own_seed = derived_seed(seed, "estimator", *purpose)
                    for entrant in entrants:
                        view = views[entrant.name, name]
                        key = digest([
                            entrant.description,
                            describe([view.source, view.target, list(view.patch_shape or ())]),
                            describe(entrant.model),
                            bank.digest(entrant, view, repeat, train, test),
                            [regime, name, train, test, repeat, own_seed],
                            software,
                        ])  # fmt: skip
                        cells.append(
                            Cell(entrant, view, regime, name, tuple(train), tuple(test), repeat, own_seed, key)
                        )
    return cells


def _available(
    regime: str, cohort: str, test: Sequence[str], cohorts: Sequence[str], bank: Bank, n_needed: int
) -> list[str]:
    """List the patients that may be trained on for others; the tested ones are never among them."""
    near = [patient for patient in bank.trainable[cohort] if patient not in test]
    others = [patient for other in cohorts if other != cohort for patient in bank.trainable[other]]
    available = {"same": near, "other": others, "pooled": near + others}[regime]
    if len(available) < n_needed:
        msg = (
            f"training for {', '.join(test)} of cohort {cohort!r} with train_on={regime!r} needs at least "
            f"{n_needed} other patient(s); there are {len(available)}"
        )
        raise ValueError(msg)
    return available


def _draw(available: Sequence[str], n_train: int, seed: int, *purpose: str | int) -> list[str]:
    """Draw patients to train on, in their order."""
    rng = np.random.default_rng(seed_for(seed, "patients", *purpose))
    return [available[i] for i in sorted(rng.permutation(len(available))[:n_train])]


def _share_at_bounds(parameters: NDArray, signals: NDArray, model: SignalModel) -> NDArray[np.float64]:
    """Share of fitted voxels in which each parameter sits at one of its bounds."""
    fitted = np.isfinite(parameters).all(axis=1)
    if not fitted.any():
        return np.full(len(model.names), np.nan)
    top = np.where(np.isfinite(signals), signals, -np.inf).max(axis=1)[fitted]
    shares = []
    for j, parameter in enumerate(model.parameters):
        values = parameters[fitted, j] / (top if parameter.is_amplitude else 1.0)
        bounds = [bound for bound in (parameter.low, parameter.high) if np.isfinite(bound)]
        near = [np.isclose(values, bound, rtol=_BOUND_TOLERANCE, atol=_BOUND_TOLERANCE) for bound in bounds]
        shares.append(np.any(near, axis=0).mean() if near else 0.0)
    return np.array(shares)


def derived_seed(seed: int, *purpose: str | int) -> int:
    """Derive a seed of 32 bits for a purpose."""
    return int(seed_for(seed, *purpose).generate_state(1)[0])


@cache
def _sources() -> str:
    """Digest of our own source: a version number does not change with every edit."""
    here = Path(__file__).parent
    found = sorted(path for path in here.rglob("*.py") if path.stem not in _PRESENTATION)
    return digest([[path.relative_to(here).as_posix(), path.read_text(encoding="utf-8")] for path in found])
