"""Compare estimators by leaving one patient out: within a cohort, and from one cohort to another."""

from __future__ import annotations

import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dmrifit.cohort import Cohort, MaskName, Scan, VoxelTable
from dmrifit.derivatives import versions
from dmrifit.fitting import fit_voxels
from dmrifit.models import MODELS, SignalModel
from dmrifit.protocol import Protocol
from dmrifit.randomness import RandomState, seed_for, seed_from
from dmrifit.records import StudyFolder, describe, digest, write_text

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Evaluation", "compare"]

TRAIN_ON = ("same", "other", "pooled")
DEFAULT_MODEL = "t2-ivim-kurtosis"

#: Distributions whose version may change a number.
_VERSIONS = ("dmrifit", "numpy", "scipy", "scikit-learn", "numba")
#: Modules of ours that no score depends on.
_PRESENTATION = ("__main__", "charts", "cli", "plotting", "quicklook", "reporting", "study_page")
_STRATEGIES = {"SignalToSignal": "s2s", "MapsToMaps": "m2m"}
_TEXT = ("cohort", "patient", "strategy", "algorithm", "train_on", "metric", "contrast", "unit", "estimator")
_COUNTS = ("n_train", "repeat", "n_voxels", "n_undefined", "n_failed")
_BOUND_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Evaluation:
    """
    The scores of a comparison.

    Parameters
    ----------
    scores : DataFrame
        One row for each held-out patient, estimator and model parameter: ``cohort``, ``patient``,
        ``strategy`` (s2s, m2m), ``algorithm``, ``train_on``, ``n_train`` (patients), ``repeat``,
        ``metric`` (the parameter), ``bias`` (BI) and ``dispersion`` (DI) of the relative error,
        ``pearson``, ``spearman``, ``n_voxels`` and ``seconds`` (training, shared between the patients
        that a model was tested on, plus prediction). The reference is the fit to all measured target
        contrasts, by default the full protocol.
        Further: ``estimator`` (its name), ``unit``, ``median_abs_error``, ``n_undefined`` (voxels whose
        reference is zero or was not fitted), ``n_failed`` (voxels without a prediction), ``at_bound`` (share
        of voxels whose reference sits at a bound), and ``bias_truth``, ``dispersion_truth``,
        ``pearson_truth``: the same against the truth of a synthetic scan, NaN for others.
    signals : DataFrame
        One row for each held-out patient, estimator and unseen contrast: the same keys, then ``contrast``,
        ``b`` (s/mm²), ``te`` (ms), ``relative_error`` (mean of abs(E)), ``median_relative_error`` (median of
        abs(E)), ``signed_relative_error`` (mean of E), ``pearson``, ``n_voxels``, ``n_undefined``. The
        reference is the measured signal.
    study : dict, optional
        How the scores were made: settings, cohorts, estimators, versions, seed, command.
    """

    scores: pd.DataFrame
    signals: pd.DataFrame
    study: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: str | Path) -> Evaluation:
        """
        Read what `write`, or ``compare(..., out=folder)``, wrote.

        Parameters
        ----------
        folder : path
            The folder.

        Returns
        -------
        Evaluation
            The same numbers, bit for bit.

        Raises
        ------
        FileNotFoundError
            If the folder has no finished comparison.
        """
        import pandas as pd

        folder = Path(folder)
        study = StudyFolder(folder).read_study()
        tables = {}
        for name in ("scores", "signals"):
            path = folder / f"{name}.csv"
            if not path.is_file():
                msg = f"{path} does not exist: the comparison in {folder} was not finished; run it again"
                raise FileNotFoundError(msg)
            table = pd.read_csv(path, dtype=str, keep_default_na=False)
            for column in table.columns.difference(_TEXT):
                # Python's own conversion gives back the bits that were written; pandas's need not.
                table[column] = table[column].map(int if column in _COUNTS else float)
            tables[name] = table
        return cls(tables["scores"], tables["signals"], study)

    def write(self, folder: str | Path) -> None:
        """
        Write the tables as CSV and the settings as JSON.

        Parameters
        ----------
        folder : path
            Made if needed.
        """
        folder = Path(folder)
        for name, table in (("signals.csv", self.signals), ("scores.csv", self.scores)):
            write_text(folder / name, table.to_csv(index=False, na_rep="nan"))
        StudyFolder(folder).write_study(self.study)


def compare(
    estimators: Mapping[str, Any],
    cohorts: Mapping[str, Cohort] | Sequence[Cohort] | Cohort,
    *,
    train_on: str | Sequence[str] = "same",
    train_mask: MaskName = "body",
    score_mask: MaskName = "lesion",
    n_train: int | None = None,
    n_repeats: int = 1,
    max_voxels: int | None = None,
    out: str | Path | None = None,
    n_jobs: int | None = None,
    random_state: RandomState = None,
) -> Evaluation:
    """
    Compare estimators, leaving one patient out.

    Parameters
    ----------
    estimators : mapping of str to estimator
        `SignalToSignal`, `MapsToMaps` or anything with ``fit(X, Y)``, ``predict(X)`` and
        ``predict_maps(X)``. Their ``source`` and ``target`` are set from the cohort where they are None.
    cohorts : mapping of str to Cohort, or sequence of Cohort
        At least one. No patient may be in two.
    train_on : {"same", "other", "pooled"} or sequence of these, default="same"
        Train on the other patients of the same cohort, on all patients of the other cohorts, or on both.
        Crossing cohorts needs one protocol in all of them.
    train_mask : {"body", "lesion"}, default="body"
        Voxels to train on.
    score_mask : {"lesion", "body"}, default="lesion"
        Voxels to score, all of them. Patients without any are left out and named in ``study``.
    n_train : int, optional
        Train on so many patients, drawn at random for each held-out one; by default on all there are.
    n_repeats : int, default=1
        Repeat with other draws of patients and voxels and other seeds of the estimators.
    max_voxels : int, optional
        Train on at most so many voxels of each scan, drawn at random.
    out : path, optional
        Folder for the tables and for finished work: what was interrupted goes on when run again, and what
        data, estimators or versions have changed is computed again.
    n_jobs : int, optional
        Parallel jobs of joblib, whose ``parallel_config`` is respected. Every result has the same bits
        for any number.
    random_state : int, RandomState or None, default=None
        Seed. None continues with the seed of the study in `out`, if there is one.

    Returns
    -------
    Evaluation
        The scores.

    Raises
    ------
    ValueError
        If there are too few patients, one of them is in two cohorts, protocols do not match, or `out`
        holds another study. Raised before anything is trained.
    RuntimeError
        If an estimator fails; the message names it and the patient, the cause follows.
    """
    cohorts = _named_cohorts(cohorts)
    regimes = (train_on,) if isinstance(train_on, str) else tuple(train_on)
    _check_settings(regimes, cohorts, n_train, n_repeats, max_voxels, (train_mask, score_mask))
    folder = None if out is None else StudyFolder(out)
    named = _named_estimators(estimators)
    entrants = [_Entrant.of(name, estimator, kept=folder is not None) for name, estimator in named.items()]
    recorded = {} if folder is None else folder.settings()
    seed = int(recorded["seed"]) if random_state is None and "seed" in recorded else seed_from(random_state)
    settings = {
        "cohorts": {name: list(cohort.patients) for name, cohort in cohorts.items()},
        "train_on": list(regimes),
        "train_mask": train_mask,
        "score_mask": score_mask,
        "n_train": n_train,
        "n_repeats": n_repeats,
        "max_voxels": max_voxels,
        "seed": seed,
    }
    if folder is not None:
        folder.claim(settings)
    views = _views(entrants, cohorts, regimes)
    bank = _Bank(cohorts, entrants, views, train_mask, score_mask, max_voxels, n_repeats, seed)
    cells = _plan(entrants, cohorts, regimes, views, bank, n_train, n_repeats, seed)
    started = time.time()
    results, n_reused = _run(cells, bank, folder, n_jobs)
    study = {
        "settings": describe(settings),
        "cohorts": {name: _describe_cohort(cohort, bank.patients[name]) for name, cohort in cohorts.items()},
        "estimators": {entrant.name: entrant.description for entrant in entrants},
        "model": {entrant.name: entrant.model.name for entrant in entrants},
        "versions": versions(*_VERSIONS),
        "command": _command(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "seconds": round(time.time() - started, 3),
        "models": {"trained": len(cells) - n_reused, "reused": n_reused},
    }
    evaluation = _tabulate(results, study)
    if folder is not None:
        evaluation.write(folder.path)
    return evaluation


@dataclass(frozen=True)
class _Entrant:
    """An estimator that takes part."""

    name: str
    strategy: str
    algorithm: str
    estimator: Any
    model: SignalModel
    description: Any

    @classmethod
    def of(cls, name: str, estimator: Any, *, kept: bool) -> _Entrant:
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
        model = _parameter(estimator, "model") or DEFAULT_MODEL
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
            MODELS[model] if isinstance(model, str) else model,
            description,
        )


@dataclass(frozen=True)
class _View:
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


@dataclass(frozen=True)
class _Test:
    """A held-out patient, as one estimator sees it."""

    cohort: str
    patient: str
    X: NDArray[np.float64]
    Y: NDArray[np.float64]
    reference: NDArray[np.float64]
    at_bound: NDArray[np.float64]
    truth: NDArray[np.float64] | None


@dataclass(frozen=True)
class _Cell:
    """One training and the patients it is tested on."""

    entrant: _Entrant
    view: _View
    train_on: str
    cohort: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    repeat: int
    seed: int
    key: str


def _named_cohorts(cohorts: Mapping[str, Cohort] | Sequence[Cohort] | Cohort) -> dict[str, Cohort]:
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


def _named_estimators(estimators: Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(estimators, Mapping) or not estimators:
        msg = "estimators must be a dict of name to estimator, with at least one"
        raise ValueError(msg)
    return estimators


def _check_settings(
    regimes: tuple[str, ...],
    cohorts: dict[str, Cohort],
    n_train: int | None,
    n_repeats: int,
    max_voxels: int | None,
    masks: tuple[str, ...],
) -> None:
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


def _parameter(estimator: Any, name: str) -> Any:
    return estimator.get_params(deep=False).get(name) if hasattr(estimator, "get_params") else None


def _algorithm(name: str, strategy: str) -> str:
    """Take the strategy out of an estimator's name: "LR s2s" is algorithm LR."""
    words = [word for word in re.split(r"[\s/_:,()-]+", name) if word and word.lower() != strategy]
    return " ".join(words) or name


def _views(
    entrants: list[_Entrant], cohorts: dict[str, Cohort], regimes: tuple[str, ...]
) -> dict[tuple[str, str], _View]:
    """Choose the contrasts of every estimator in every cohort; check that all scans have them."""
    crossing = any(regime != "same" for regime in regimes)
    views = {}
    for name, cohort in cohorts.items():
        home = next(iter(cohorts.values())) if crossing else cohort
        full = home.scans[0].protocol
        for entrant in entrants:
            source = _parameter(entrant.estimator, "source")
            target = _parameter(entrant.estimator, "target")
            view = _View(
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


def _check_contrasts(view: _View, scan: Scan, cohort: str, trained_with: str) -> None:
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


class _Bank:
    """All voxels that training and scoring need, each image read once, each reference fitted once."""

    def __init__(
        self,
        cohorts: dict[str, Cohort],
        entrants: list[_Entrant],
        views: dict[tuple[str, str], _View],
        train_mask: MaskName,
        score_mask: MaskName,
        max_voxels: int | None,
        n_repeats: int,
        seed: int,
    ) -> None:
        self.patients: dict[str, dict[str, dict[str, Any]]] = {}
        self.trainable: dict[str, list[str]] = {}
        self.testable: dict[str, list[str]] = {}
        self._tests: dict[tuple[str, _View, str], _Test] = {}
        self._digests: dict[tuple[Any, ...], str] = {}
        self._rows: dict[tuple[_View, int], dict[str, slice]] = {}
        self._pieces: dict[tuple[_View, int], list[tuple[NDArray, NDArray]]] = {}
        self._stacked: dict[tuple[_View, int], tuple[NDArray, NDArray]] = {}
        self._one_draw = max_voxels is None
        repeats = range(1 if self._one_draw else n_repeats)
        for name, cohort in cohorts.items():
            self.patients[name] = {}
            self.trainable[name], self.testable[name] = [], []
            seen: dict[_View, dict[str, SignalModel]] = {}
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
                                random_state=_number(seed, "voxels", repeat),
                            )
                            self._add_training(view, repeat, patient, table)
                if counts[score_mask]:
                    self.testable[name].append(patient)
                    self._add_tests(own, patient, seen, score_mask)

    def _add_training(self, view: _View, repeat: int, patient: str, table: VoxelTable) -> None:
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
        views: Mapping[_View, dict[str, SignalModel]],
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
                test = _Test(own.name, patient, table.X, table.Y, reference, at_bound, known)
                self._tests[model.name, view, patient] = test
                content = [test.X, test.Y, test.reference, test.truth]
                self._digests["test", model.name, view, patient] = digest(content)

    def stacked(self, view: _View, repeat: int) -> tuple[NDArray, NDArray]:
        """Return all training voxels of a view, one array each, so that workers share them."""
        key = view, 0 if self._one_draw else repeat
        if key not in self._stacked:
            pieces = self._pieces.pop(key)
            X, Y = (np.concatenate(part) for part in zip(*pieces, strict=True))
            self._stacked[key] = X, Y
        return self._stacked[key]

    def rows(self, view: _View, repeat: int, patients: Sequence[str]) -> list[slice]:
        """Where the training voxels of patients stand in `stacked`."""
        rows = self._rows[view, 0 if self._one_draw else repeat]
        return [rows[patient] for patient in patients]

    def tests(self, cell: _Cell) -> list[_Test]:
        """Return the held-out patients of a cell."""
        return [self._tests[cell.entrant.model.name, cell.view, patient] for patient in cell.test]

    def digest(
        self, entrant: _Entrant, view: _View, repeat: int, train: Sequence[str], test: Sequence[str]
    ) -> list[list[str]]:
        """Return the digests of all data of a cell."""
        repeat = 0 if self._one_draw else repeat
        return [
            [self._digests["train", view, repeat, patient] for patient in train],
            [self._digests["test", entrant.model.name, view, patient] for patient in test],
        ]


def _plan(
    entrants: list[_Entrant],
    cohorts: dict[str, Cohort],
    regimes: tuple[str, ...],
    views: dict[tuple[str, str], _View],
    bank: _Bank,
    n_train: int | None,
    n_repeats: int,
    seed: int,
) -> list[_Cell]:
    """List all trainings; a model that is the same for several patients is trained once."""
    software = [versions(*_VERSIONS), _sources()]
    cells = []
    for regime in regimes:
        for name in cohorts:
            own = bank.trainable[name]
            others = [patient for other in cohorts if other != name for patient in bank.trainable[other]]
            if not bank.testable[name]:
                msg = f"cohort {name!r} has no voxel to score; give lesion masks, or another score_mask"
                raise ValueError(msg)
            held_out = [bank.testable[name]] if regime == "other" else [[p] for p in bank.testable[name]]
            for test in held_out:
                near = [patient for patient in own if patient not in test]
                available = {"same": near, "other": others, "pooled": near + others}[regime]
                if not available or len(available) < (n_train or 0):
                    msg = (
                        f"training for {', '.join(test)} of cohort {name!r} with train_on={regime!r} needs "
                        f"{n_train or 'at least one'} other patient(s); there are {len(available)}"
                    )
                    raise ValueError(msg)
                whom = test[0] if len(test) == 1 else "all"
                for repeat in range(n_repeats):
                    train = available
                    if n_train is not None:
                        rng = np.random.default_rng(seed_for(seed, "patients", regime, name, whom, repeat))
                        chosen = rng.permutation(len(available))[:n_train]
                        train = [available[i] for i in sorted(chosen)]
                    own_seed = _number(seed, "estimator", regime, name, whom, repeat)
                    for entrant in entrants:
                        view = views[entrant.name, name]
                        content = [
                            entrant.description,
                            describe([view.source, view.target, list(view.patch_shape or ())]),
                            describe(entrant.model),
                            bank.digest(entrant, view, repeat, train, test),
                            [regime, name, list(train), list(test), repeat, own_seed],
                            software,
                        ]
                        cells.append(
                            _Cell(
                                entrant,
                                view,
                                regime,
                                name,
                                tuple(train),
                                tuple(test),
                                repeat,
                                own_seed,
                                digest(content),
                            )
                        )
    return cells


def _run(
    cells: list[_Cell], bank: _Bank, folder: StudyFolder | None, n_jobs: int | None
) -> tuple[list[dict[str, Any]], int]:
    """Run the cells that are not finished; return the results of all, in order, and how many were finished."""
    from joblib import Parallel, delayed
    from tqdm import tqdm

    results: dict[int, dict[str, Any]] = {}
    if folder is not None:
        found = ((i, folder.get(cell.key)) for i, cell in enumerate(cells))
        results = {i: content for i, content in found if content is not None}
    waiting = [i for i in range(len(cells)) if i not in results]
    tasks = (
        delayed(_run_cell)(
            i,
            cells[i],
            *bank.stacked(cells[i].view, cells[i].repeat),
            bank.rows(cells[i].view, cells[i].repeat, cells[i].train),
            bank.tests(cells[i]),
        )
        for i in waiting
    )
    finished = Parallel(n_jobs=n_jobs, return_as="generator_unordered")(tasks)
    for i, content in tqdm(finished, total=len(waiting), unit="model", desc="compare", disable=None):
        if folder is not None:
            folder.put(cells[i].key, content)
        results[i] = content
    return [results[i] for i in range(len(cells))], len(cells) - len(waiting)


def _run_cell(
    i: int, cell: _Cell, X: NDArray, Y: NDArray, rows: list[slice], tests: list[_Test]
) -> tuple[int, dict[str, Any]]:
    """Train once, test on every held-out patient."""
    from sklearn.base import clone
    from threadpoolctl import threadpool_limits

    # The last bits of a matrix product depend on the number of BLAS threads.
    with threadpool_limits(1):
        try:
            start = time.perf_counter()
            estimator = clone(cell.entrant.estimator)
            estimator.set_params(**_completed(estimator, cell))
            estimator.fit(np.concatenate([X[r] for r in rows]), np.concatenate([Y[r] for r in rows]))
            training = (time.perf_counter() - start) / len(tests)
            scores, signals = [], []
            for test in tests:
                start = time.perf_counter()
                predicted, maps = _predict(estimator, cell, test)
                seconds = training + time.perf_counter() - start
                keys = {
                    "cohort": test.cohort,
                    "patient": test.patient,
                    "strategy": cell.entrant.strategy,
                    "algorithm": cell.entrant.algorithm,
                    "train_on": cell.train_on,
                    "n_train": len(cell.train),
                    "repeat": cell.repeat,
                }
                scores += [keys | row for row in _score_maps(maps, test, cell.entrant.model, seconds)]
                signals += [keys | row for row in _score_signals(predicted, test, cell.view)]
        except Exception as error:
            who = cell.test[0] if len(cell.test) == 1 else f"the {len(cell.test)} patients"
            msg = (
                f"estimator {cell.entrant.name!r} failed for {who} of cohort {cell.cohort!r}, "
                f"trained on {len(cell.train)} patients ({cell.train_on}): {error}"
            )
            raise RuntimeError(msg) from error
    for row in (*scores, *signals):
        row["estimator"] = cell.entrant.name
    return i, {"scores": scores, "signals": signals}


def _completed(estimator: Any, cell: _Cell) -> dict[str, Any]:
    """Fill in what the user left open: contrasts, and every seed."""
    given = estimator.get_params(deep=True)
    own = {"source": cell.view.source, "target": cell.view.target}
    missing: dict[str, Any] = {key: value for key, value in own.items() if key in given and given[key] is None}
    seeded = [key for key in sorted(given) if key.split("__")[-1] == "random_state" and given[key] is None]
    return missing | {key: _number(cell.seed, key) for key in seeded}


def _predict(estimator: Any, cell: _Cell, test: _Test) -> tuple[NDArray, NDArray]:
    """Predict signals and maps; voxels without a usable source signal stay NaN."""
    usable = np.isfinite(test.X).all(axis=1)
    signals = np.full((len(test.X), len(cell.view.target)), np.nan)
    maps = np.full((len(test.X), len(cell.entrant.model.names)), np.nan)
    if usable.any():
        signals[usable] = estimator.predict(test.X[usable])
        maps[usable] = estimator.predict_maps(test.X[usable])
    return signals, maps


def _score_maps(maps: NDArray, test: _Test, model: SignalModel, seconds: float) -> list[dict[str, Any]]:
    from dmrifit.metrics import pearson, relative_error_indices, spearman

    rows = []
    for j, parameter in enumerate(model.parameters):
        prediction, reference = maps[:, j], test.reference[:, j]
        indices = relative_error_indices(prediction, reference)
        row = {
            "metric": parameter.name,
            "bias": indices.bias,
            "dispersion": indices.dispersion,
            "pearson": float(pearson(prediction, reference)),
            "spearman": float(spearman(prediction, reference)),
            "n_voxels": len(reference),
            "seconds": seconds,
            "unit": parameter.unit,
            "median_abs_error": indices.median_abs_error,
            "n_undefined": indices.n_dropped,
            "n_failed": indices.n_failed,
            "at_bound": float(test.at_bound[j]),
            "bias_truth": float("nan"),
            "dispersion_truth": float("nan"),
            "pearson_truth": float("nan"),
        }
        if test.truth is not None:
            known = relative_error_indices(prediction, test.truth[:, j])
            row["bias_truth"], row["dispersion_truth"] = known.bias, known.dispersion
            row["pearson_truth"] = float(pearson(prediction, test.truth[:, j]))
        rows.append(row)
    return rows


def _score_signals(predicted: NDArray, test: _Test, view: _View) -> list[dict[str, Any]]:
    from dmrifit.metrics import pearson

    rows = []
    te = view.target.te
    for j in view.unseen():
        with np.errstate(divide="ignore", invalid="ignore"):
            error = (predicted[:, j] - test.Y[:, j]) / test.Y[:, j]
        usable = np.isfinite(error)
        error = error[usable] if usable.any() else np.array([np.nan])
        rows.append(
            {
                "contrast": view.target.labels[j],
                "b": float(view.target.b[j]),
                "te": float("nan") if te is None else float(te[j]),
                "relative_error": float(np.mean(np.abs(error))),
                "median_relative_error": float(np.median(np.abs(error))),
                "signed_relative_error": float(np.mean(error)),
                "pearson": float(pearson(predicted[:, j], test.Y[:, j])),
                "n_voxels": len(usable),
                "n_undefined": int((~usable).sum()),
            }
        )
    return rows


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


def _tabulate(results: list[dict[str, Any]], study: dict[str, Any]) -> Evaluation:
    import pandas as pd

    scores, signals = (
        pd.DataFrame([row for result in results for row in result[name]]) for name in ("scores", "signals")
    )
    return Evaluation(scores, signals, study)


def _describe_cohort(cohort: Cohort, patients: dict[str, dict[str, int]]) -> dict[str, Any]:
    without = {p: "no lesion voxel" for p, counts in patients.items() if not counts["lesion"]}
    return {
        "synthetic": cohort.synthetic,
        "patients": patients,
        "protocol": cohort.scans[0].protocol.to_dict(),
        "skipped": {**cohort.skipped, **without},
    }


def _number(seed: int, *purpose: str | int) -> int:
    return int(seed_for(seed, *purpose).generate_state(1)[0])


@cache
def _sources() -> str:
    """Digest of our own source: a version number does not change with every edit."""
    found = sorted(path for path in Path(__file__).parent.glob("*.py") if path.stem not in _PRESENTATION)
    return digest([[path.name, path.read_text(encoding="utf-8")] for path in found])


def _command() -> str:
    program = Path(sys.argv[0])
    name = f"python -m {program.parent.name}" if program.name == "__main__.py" else program.name
    return shlex.join([*name.split(), *sys.argv[1:]])
