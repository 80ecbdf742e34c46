"""Compare estimators by leaving one patient out: within a cohort, and from one cohort to another."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dmrifit._utils.html_repr import html_summary
from dmrifit._utils.randomness import RandomState, seed_from
from dmrifit._utils.threads import check_jobs
from dmrifit.cohort.cohort import Cohort
from dmrifit.cohort.scan import MaskName
from dmrifit.io.digests import command_line, describe
from dmrifit.predict.algorithms import ALGORITHMS, make_regressor
from dmrifit.predict.controls import CONTROLS, SHUFFLED
from dmrifit.predict.strategies import MapsToMaps, SignalToSignal
from dmrifit.study.contestants import (
    Entrant,
    check_distinct,
    choose_views,
    controls_of,
    named_cohorts,
    named_estimators,
    without_controls,
)
from dmrifit.study.predictions import FolderPredictions, PatientPredictions
from dmrifit.study.splits import Cell, check_settings, plan, software, views_by_cohort
from dmrifit.study.study_folder import StudyFolder
from dmrifit.study.training_runs import SIGNAL_COLUMNS, run_trial
from dmrifit.study.voxel_bank import Bank

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["STRATEGIES", "Evaluation", "compare", "learning_curve", "leave_one_patient_out"]

#: The strategies of the study by name.
STRATEGIES = {"s2s": SignalToSignal, "m2m": MapsToMaps}

#: Training voxels of each patient on the study's board.
BOARD_VOXELS = 250

#: Numbers of training patients of the study's learning curve.
SIZES = (1, 2, 3, 5, 8, 10, 12, 15)

_TEXT = (
    "cohort",
    "patient",
    "strategy",
    "algorithm",
    "train_on",
    "metric",
    "contrast",
    "unit",
    "estimator",
)
_SHARED_BYTES = 100_000  # arrays from this size on are written once and mapped by all workers
_SENDINGS = 5  # of the same array to a cluster whose workers die, before the study gives up
_TABLES = ("scores", "signals")
_COUNTS = ("n_train", "repeat", "n_voxels", "n_undefined", "n_failed")


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """
    The scores of a comparison.

    Parameters
    ----------
    scores : DataFrame
        One row for each held-out patient, estimator and model parameter: ``cohort``, ``patient``,
        ``strategy`` (s2s, m2m), ``algorithm`` (with the controls constant, shuffled and perfect),
        ``train_on``, ``n_train`` (patients), ``repeat``, ``estimator`` (its name), ``metric`` (the
        parameter), ``bias`` (BI) and ``dispersion`` (DI) of the relative error, ``pearson``, ``spearman``,
        ``n_voxels`` and ``seconds`` (training, shared between the patients that a model was tested on, plus
        prediction). The reference is the fit to all measured target contrasts, by default the full
        protocol. Further: ``unit``, ``median_abs_error`` (MdAPE), ``n_undefined`` (voxels whose reference is
        zero or was not fitted), ``n_failed`` (voxels without a prediction), ``at_bound`` (share of voxels
        whose reference sits at a bound), and ``bias_truth``, ``dispersion_truth``,
        ``median_abs_error_truth``, ``pearson_truth``, ``spearman_truth``: the same against the truth of a
        synthetic scan, NaN for others.
    signals : DataFrame
        One row for each held-out patient, estimator and unseen contrast: the same keys, then ``contrast``,
        ``b`` (s/mm²), ``te`` (ms), ``relative_error`` (mean of abs(E)), ``median_relative_error`` (median of
        abs(E)), ``signed_relative_error`` (mean of E), ``n_voxels``, ``n_undefined``, ``pearson``. The row
        whose contrast is ``"all unseen"`` pools them. The reference is the measured signal.
    study : dict, optional
        How the scores were made: settings, cohorts, estimators, versions, seed, command.
    predictions : mapping of (str, str) to PatientPredictions, optional
        By cohort and patient, voxel by voxel: those of the largest number of training patients, the first
        repeat and the first way of training, of a patient's first scan. Estimators with another model or
        target than the first one are not in it, nor are controls.
    """

    scores: pd.DataFrame
    signals: pd.DataFrame
    study: dict[str, Any] = field(default_factory=dict)
    predictions: Mapping[tuple[str, str], PatientPredictions] = field(default_factory=dict)

    def __repr__(self) -> str:
        cohorts = []
        for cohort, patients in self.scores.groupby("cohort", sort=False)["patient"]:
            told = "synthetic " if cohort in self.synthetic else ""
            cohorts.append(f"{told}{cohort!r} of {patients.nunique()} patients")
        algorithms = ", ".join(self.scores["algorithm"].drop_duplicates())
        return f"<Evaluation: {', '.join(cohorts)}; {algorithms}; {len(self.scores)} scores>"

    @property
    def synthetic(self) -> list[str]:
        """Names of the cohorts that were simulated."""
        return [
            name
            for name, cohort in self.study.get("cohorts", {}).items()
            if cohort.get("synthetic")
        ]

    def _repr_html_(self) -> str:
        """Show the best rows in notebooks: means over patients and parameters of the tissue."""
        largest = self.scores[self.scores["n_train"] == self.scores["n_train"].max()]
        found = largest[largest["metric"] != "S0"].assign(bias=lambda table: table["bias"].abs())
        keys, values = (
            ["cohort", "train_on", "strategy", "algorithm"],
            ["bias", "dispersion", "pearson"],
        )
        means = (
            found.groupby(keys, sort=False)[values].mean().sort_values("dispersion").reset_index()
        )
        header = (
            "cohort",
            "trained on",
            "strategy",
            "algorithm",
            "bias, magnitude",
            "dispersion",
            "correlation",
        )
        n = self.scores[["cohort", "patient"]].drop_duplicates().shape[0]
        title = f"Evaluation: {n} patient{'s' * (n != 1)}, each left out once"
        note = "means over patients and parameters other than S0, at the largest number of training patients"
        if self.synthetic:
            note += f"; {', '.join(self.synthetic)}: synthetic patients"
        return html_summary(title, header, means.itertuples(index=False), note=note)

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
        ValueError
            If a file is damaged or was changed.
        """
        import pandas as pd

        study, texts = StudyFolder(folder).read_study()
        tables = {}
        for name in _TABLES:
            table = pd.read_csv(StringIO(texts[f"{name}.csv"]), dtype=str, keep_default_na=False)
            for column in table.columns.difference(_TEXT):
                # Python's own conversion gives back the bits that were written; pandas's need not.
                table[column] = table[column].map(int if column in _COUNTS else float)
            tables[name] = table
        return cls(tables["scores"], tables["signals"], study, FolderPredictions(folder))

    def write(self, folder: str | Path) -> None:
        """
        Write the tables as CSV, the settings as JSON and the predictions.

        Until all is written, the folder counts as unfinished.

        Parameters
        ----------
        folder : path
            Made if needed.
        """
        folder = Path(folder)
        if (
            not isinstance(self.predictions, FolderPredictions)
            or self.predictions.folder.parent != folder
        ):
            FolderPredictions(folder).write(self.predictions)
        tables = {
            f"{name}.csv": getattr(self, name).to_csv(index=False, na_rep="nan")
            for name in _TABLES
        }
        StudyFolder(folder).write_study(self.study, tables)

    def statistics(self, **options: Any) -> dict[str, pd.DataFrame]:
        """
        Test for differences between algorithms, with the patient as the unit.

        Parameters
        ----------
        **options : object
            As in `dmrifit.stats.method_tests.study_statistics`, but for the order: algorithms come in that of
            `ALGORITHMS`. Controls are no algorithms and enter no test.

        Returns
        -------
        dict of str to DataFrame
            Tables by name, as described there.

        Raises
        ------
        ImportError
            If the extra ``stats`` is not installed; the message names the command.
        """
        from dmrifit.stats.method_tests import study_statistics

        algorithms = self.scores[~self.scores["algorithm"].isin(CONTROLS)]
        return study_statistics(algorithms, order=ALGORITHMS, **options)


def compare(
    estimators: Mapping[str, Any],
    cohorts: Mapping[str, Cohort] | Sequence[Cohort] | Cohort,
    *,
    train_on: str | Sequence[str] = "same",
    train_mask: MaskName = "body",
    score_mask: MaskName = "lesion",
    n_train: int | Sequence[int] | None = None,
    n_repeats: int = 1,
    max_voxels: int | None = None,
    controls: bool = True,
    resynthesize: bool = False,
    keep_predictions: bool = True,
    out: str | Path | None = None,
    n_jobs: int | None = None,
    random_state: RandomState = None,
) -> Evaluation:
    """
    Compare estimators, leaving one patient out.

    Parameters
    ----------
    estimators : mapping of str to estimator
        `SignalToSignal`, `MapsToMaps` or any scikit-learn estimator with ``fit(X, Y)``, ``predict(X)`` and
        ``predict_maps(X)``. Their ``source`` and ``target`` are set from the cohort where they are None.
    cohorts : mapping of str to Cohort, or sequence of Cohort
        At least one. No patient may be in two.
    train_on : {"same", "other", "pooled"} or sequence of these, default="same"
        Train on the other patients of the same cohort, on all patients of the other cohorts, or on both.
        Crossing cohorts needs the protocol of the tested one in all of them, or `resynthesize`.
    train_mask : {"body", "lesion"}, default="body"
        Voxels to train on.
    score_mask : {"lesion", "body"}, default="lesion"
        Voxels to score, all of them. Patients without any are left out and named in ``study``.
    n_train : int or sequence of int, optional
        Train on so many patients, drawn at random for each held-out one; by default on all there are. Of
        several numbers, the patients of a smaller one are among those of a larger one.
    n_repeats : int, default=1
        Repeat with other draws of patients and voxels and other seeds of the estimators.
    max_voxels : int, optional
        Train on at most so many voxels of each scan, drawn at random.
    controls : bool, default=True
        Add rows for a constant predictor, for linear regression of shuffled targets and for the perfect
        answer to every strategy, with the largest number of training patients and the model of the
        strategy's first estimator.
    resynthesize : bool, default=False
        Compute contrasts that patients of another cohort lack through the model fitted to theirs, with
        the noise of their images where it is known.
    keep_predictions : bool, default=True
        Keep the predictions of every scored voxel: 4 bytes for each estimator and each parameter and
        contrast.
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
    ImportError
        If an estimator needs an extra that is not installed; the message names the command.
    RuntimeError
        If an estimator fails (the message names it and the patient) or cannot be sent to a cluster, or if a cluster's
        workers die again and again; the cause follows.
    """
    check_jobs(n_jobs)
    cohorts = named_cohorts(cohorts)
    regimes = (train_on,) if isinstance(train_on, str) else tuple(train_on or ())
    sizes = (
        None
        if n_train is None
        else (int(n_train),)
        if isinstance(n_train, int | np.integer)
        else tuple(n_train)
    )
    patients = {name: cohort.patients for name, cohort in cohorts.items()}
    check_settings(regimes, patients, sizes, n_repeats, max_voxels, (train_mask, score_mask))
    folder = None if out is None else StudyFolder(out)
    kept = folder is not None
    named = named_estimators(estimators)
    example = next(iter(cohorts.values())).scans[0].protocol
    entrants = [
        Entrant.of(name, estimator, kept=kept, example=example)
        for name, estimator in named.items()
    ]
    check_distinct(entrants)
    if controls:
        entrants += controls_of(entrants, kept=kept, example=example)
    recorded = {} if folder is None else folder.settings()
    seed = (
        int(recorded["seed"])
        if random_state is None and "seed" in recorded
        else seed_from(random_state)
    )
    settings = {
        "cohorts": {name: list(names) for name, names in patients.items()},
        "train_on": list(regimes),
        "train_mask": train_mask,
        "score_mask": score_mask,
        "n_train": None if sizes is None else list(sizes),
        "n_repeats": n_repeats,
        "max_voxels": max_voxels,
        "resynthesize": resynthesize,
        "seed": seed,
    }
    if folder is not None:
        folder.check(settings)
    views = choose_views(entrants, cohorts, regimes, resynthesize=resynthesize)
    seen, lent = views_by_cohort(views, regimes)
    bank = Bank(
        cohorts,
        seen,
        lent,
        train_mask=train_mask,
        score_mask=score_mask,
        max_voxels=max_voxels,
        n_repeats=n_repeats,
        seed=seed,
    )
    cells = plan(
        entrants,
        list(cohorts),
        regimes,
        views,
        bank,
        sizes,
        n_repeats,
        seed,
        keep=keep_predictions,
    )
    described = {
        name: _describe_cohort(cohort, bank, name, {"train": train_mask, "score": score_mask})
        for name, cohort in cohorts.items()
    }
    if folder is not None:
        folder.claim(settings)
    started = time.time()
    results, n_reused = _run(cells, bank, folder, n_jobs)
    study = {
        "settings": describe(settings),
        "cohorts": described,
        "estimators": {entrant.name: entrant.description for entrant in entrants},
        "model": {entrant.name: entrant.model.name for entrant in entrants},
        "without_controls": without_controls(entrants)
        if controls
        else [entrant.name for entrant in entrants],
        "versions": software(),
        "command": _command(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "seconds": round(time.time() - started, 3),
        "models": {"trained": len(cells) - n_reused, "reused": n_reused},
    }
    evaluation = _tabulate(results, study, _collect(cells, results, bank))
    if folder is not None:
        evaluation.write(folder.path)
    return evaluation


def leave_one_patient_out(
    cohorts: Mapping[str, Cohort] | Sequence[Cohort] | Cohort,
    *,
    strategies: Sequence[str] = ("s2s", "m2m"),
    algorithms: Sequence[str] = ALGORITHMS,
    max_voxels: int | None = BOARD_VOXELS,
    **options: Any,
) -> Evaluation:
    """
    Compare the study's algorithms in the study's strategies, leaving one patient out.

    Parameters
    ----------
    cohorts : mapping of str to Cohort, or sequence of Cohort
        As in `compare`.
    strategies : sequence of {"s2s", "m2m"}, default=("s2s", "m2m")
        Signals to signals, maps to maps.
    algorithms : sequence of str, default=ALGORITHMS
        Names that `make_regressor` knows.
    max_voxels : int or None, default=250
        Training voxels of each scan, drawn at random; None for all.
    **options : object
        As in `compare`.

    Returns
    -------
    Evaluation
        The scores; estimators are named "LR s2s" and so on.

    Raises
    ------
    ValueError
        If a name is unknown, and as in `compare`.
    ImportError
        If an algorithm needs an extra that is not installed: it is never left out in silence.

    References
    ----------
    Macarro et al., J Magn Reson Imaging 61(2):1018–1021, 2025.
    """
    strategies = (strategies,) if isinstance(strategies, str) else strategies
    algorithms = (algorithms,) if isinstance(algorithms, str) else algorithms
    unknown = [name for name in strategies if name not in STRATEGIES]
    if unknown or not strategies or not algorithms:
        raise ValueError(
            f"name at least one of the strategies {', '.join(STRATEGIES)} and one algorithm, not {strategies!r} "
            f"and {algorithms!r}"
        )
    estimators = {
        f"{algorithm} {strategy}": STRATEGIES[strategy](algorithm)
        for strategy in strategies
        for algorithm in algorithms
    }
    return compare(estimators, cohorts, max_voxels=max_voxels, **options)


def learning_curve(
    cohorts: Mapping[str, Cohort] | Sequence[Cohort] | Cohort,
    *,
    sizes: Sequence[int] = SIZES,
    **options: Any,
) -> Evaluation:
    """
    Compare the study's algorithms, trained on more and more patients.

    Parameters
    ----------
    cohorts : mapping of str to Cohort, or sequence of Cohort
        As in `compare`.
    sizes : sequence of int, default=(1, 2, 3, 5, 8, 10, 12, 15)
        Numbers of training patients.
    **options : object
        As in `leave_one_patient_out`; ``n_repeats`` for more than one draw of patients.

    Returns
    -------
    Evaluation
        The scores of all sizes, in the column ``n_train``; the largest one is the board.

    Raises
    ------
    ValueError
        If there are fewer patients than the largest size and one more, and as in `compare`.
    """
    return leave_one_patient_out(cohorts, n_train=tuple(sizes), **options)


def _run(
    cells: list[Cell], bank: Bank, folder: StudyFolder | None, n_jobs: int | None
) -> tuple[list[dict[str, Any]], int]:
    """Run the cells that are not finished; return the results of all, in order, and how many were finished."""
    from joblib import Parallel, delayed
    from tqdm import tqdm

    results: dict[int, dict[str, Any]] = {}
    if folder is not None:
        found = ((i, folder.get(cell.key, arrays=cell.keep)) for i, cell in enumerate(cells))
        results = {i: content for i, content in found if content is not None}
    waiting = [i for i in range(len(cells)) if i not in results]
    n_reused = len(results)
    # What cannot be prepared is known before anything is trained.
    for i in waiting:
        bank.material(cells[i].entrant, cells[i].view, cells[i].repeat)
    strategies = [cells[i].entrant.estimator for i in waiting if cells[i].entrant.recipe]
    algorithms = sorted({one.regressor for one in strategies if isinstance(one.regressor, str)})
    n_in_vain = 0
    with tqdm(total=len(waiting), unit="model", desc="compare", disable=None) as bar:
        while waiting:
            lent = _lend(
                (array for i in waiting for array in _arrays(cells[i], bank)),
                [cells[i] for i in waiting],
            )
            tasks = (
                delayed(_numbered)(i, algorithms, cells[i], *_material(cells[i], bank, lent))
                for i in waiting
            )
            try:
                for i, content in Parallel(
                    n_jobs, return_as="generator_unordered", max_nbytes=_SHARED_BYTES
                )(tasks):
                    if folder is not None:
                        folder.put(cells[i].key, content)
                    results[i] = content
                    bar.update()
            except CancelledError as error:
                # On a cluster the shared arrays are lost with the last worker that held them; they are sent again.
                n_in_vain = 0 if any(i in results for i in waiting) else n_in_vain + 1
                if n_in_vain == _SENDINGS:
                    raise RuntimeError(
                        f"the cluster lost the voxels of this study {_SENDINGS} times, and no training was finished in "
                        "between: its workers die. Look at their logs; give them more memory, or lower max_voxels. "
                        "What is in the folder out= is kept"
                    ) from error
            waiting = [i for i in waiting if i not in results]
    return [results[i] for i in range(len(cells))], n_reused


def _lend(arrays: Iterable[Any], cells: Iterable[Cell] = ()) -> dict[int, Any]:
    """
    Send arrays to a cluster of dask, if joblib hands out to one; return what stands for each there, by its `id`.

    joblib would send them too. But it loses the error when a worker dies that is just being sent one, or when an
    estimator cannot be sent, and then waits forever for the trainings that need it.
    """
    from joblib.parallel import get_active_backend

    backend = get_active_backend()[0]
    client = getattr(backend, "client", None)
    lent: dict[int, Any] = {}
    if client is None:
        return lent
    for entrant in {id(cell.entrant): cell.entrant for cell in cells}.values():
        _check_sendable(entrant)
    backend.effective_n_jobs(
        -1
    )  # waits for the first worker, and asks for one where they come when there is work
    for array in arrays:
        for attempt in range(_SENDINGS):
            if array is None or id(array) in lent:
                break
            try:
                lent[id(array)] = client.scatter(array, hash=False)
            except OSError as error:
                # No worker at all is another matter: dask has waited long enough for one.
                if isinstance(error, TimeoutError) or attempt == _SENDINGS - 1:
                    raise
                time.sleep(1)  # until the scheduler knows that the worker is gone
    return lent


def _check_sendable(entrant: Entrant) -> None:
    """Refuse an estimator that no other process can be given."""
    import cloudpickle  # comes with dask

    try:
        cloudpickle.dumps(entrant)
    except Exception as error:
        raise RuntimeError(
            f"estimator {entrant.name!r} cannot be sent to the workers of a cluster ({error}); it must not hold open "
            "files, locks or the like: make them in fit"
        ) from error


def _arrays(cell: Cell, bank: Bank) -> tuple[Any, Any]:
    """Give the arrays that all trainings look at; none to a training that learns from moments alone."""
    stack = bank.material(cell.entrant, cell.view, cell.repeat)
    known = any(patient in stack.designs for patient in cell.train)
    if known and cell.entrant.control != SHUFFLED and cell.entrant.estimator.learns_from_moments:
        return None, None
    return stack.arrays


def _material(cell: Cell, bank: Bank, lent: Mapping[int, Any]) -> tuple[Any, ...]:
    """
    Give a training what it needs, and no more: workers get copies.

    The arrays that all trainings look at stand by themselves, so that a cluster sends them to a worker once.
    """
    stack = bank.material(cell.entrant, cell.view, cell.repeat)
    designs = [stack.designs[patient] for patient in cell.train if patient in stack.designs]
    rows = [stack.rows[patient] for patient in cell.train]
    arrays = [lent.get(id(array), array) for array in _arrays(cell, bank)]
    if arrays[0] is not None:
        designs = [replace(design, moments=None) for design in designs]
    tests = bank.tests(cell.view, cell.test)
    clinical = [bank.clinical(cell.entrant, cell.view, patient) for patient in cell.test]
    return *arrays, rows, designs, tests, clinical


def _numbered(i: int, algorithms: Sequence[str], *arguments: Any) -> tuple[int, dict[str, Any]]:
    # While a cluster has one worker, joblib trains in this process, where nothing turns futures into arrays.
    arguments = tuple(one.result() if hasattr(one, "result") else one for one in arguments)
    # A worker that grows by a library after its first task looks as if it leaked, and joblib replaces it.
    for algorithm in algorithms:
        make_regressor(algorithm)
    return i, run_trial(*arguments)


def _collect(
    cells: list[Cell], results: list[dict[str, Any]], bank: Bank
) -> dict[tuple[str, str], PatientPredictions]:
    """Put the predictions of all estimators that see the same patient in the same way together."""
    found: dict[tuple[str, str], PatientPredictions] = {}
    for cell, content in zip(cells, results, strict=True):
        for patient, predicted in content.get("predictions", {}).items():
            key = cell.cohort, patient
            if key not in found:
                found[key] = _without_predictions(cell, bank.tests(cell.view, [patient])[0])
            one = found[key]
            target = cell.view.target
            if one.names == cell.entrant.model.names and one.labels == tuple(target.labels):
                one.maps[cell.entrant.name] = predicted["maps"]
                one.signals[cell.entrant.name] = predicted["signals"]
    return found


def _without_predictions(cell: Cell, test: Any) -> PatientPredictions:
    target, model = cell.view.target, cell.entrant.model
    seen = np.ones(len(target), bool)
    seen[list(cell.view.unseen())] = False
    shown = test.shown
    return PatientPredictions(
        cohort=test.cohort,
        patient=test.patient,
        index=test.index[shown, 1:],
        shape=test.shape,
        affine=test.affine,
        names=model.names,
        units=model.units,
        labels=tuple(target.labels),
        b=target.b,
        te=np.full(len(target), np.nan) if target.te is None else target.te,
        seen=seen,
        reference=test.reference[shown].astype(np.float32),
        truth=None if test.truth is None else test.truth[shown].astype(np.float32),
        measured=test.Y[shown].astype(np.float32),
        maps={},
        signals={},
    )


def _tabulate(
    results: list[dict[str, Any]],
    study: dict[str, Any],
    predictions: Mapping[tuple[str, str], PatientPredictions],
) -> Evaluation:
    import pandas as pd

    rows = {name: [row for result in results for row in result[name]] for name in _TABLES}
    # Where every contrast is seen, there is none to score.
    signals = pd.DataFrame(rows["signals"], columns=None if rows["signals"] else SIGNAL_COLUMNS)
    return Evaluation(pd.DataFrame(rows["scores"]), signals, study, predictions)


def _describe_cohort(
    cohort: Cohort, bank: Bank, name: str, masks: Mapping[str, str]
) -> dict[str, Any]:
    tested = {
        p: f"no {masks['score']} voxel"
        for p in bank.patients[name]
        if p not in bank.testable[name]
    }
    trained = {
        p: f"no usable {masks['train']} voxel to train on"
        for p in bank.patients[name]
        if p not in bank.trainable[name]
    }
    return {
        "synthetic": cohort.synthetic,
        "simulation": describe(getattr(cohort, "simulation", None)),
        "patients": bank.patients[name],
        "protocol": cohort.scans[0].protocol.to_dict(),
        "skipped": {**cohort.skipped, **trained, **tested},
    }


def _command() -> str:
    """Write the command that started this process, as one would type it."""
    program = Path(sys.argv[0])
    if program.name in ("", "-c", "ipykernel_launcher.py"):
        return "in a Python session"
    words = (
        ["python", "-m", program.parent.name] if program.name == "__main__.py" else [program.name]
    )
    return command_line(
        [
            *(["python"] if program.suffix == ".py" and len(words) == 1 else []),
            *words,
            *sys.argv[1:],
        ]
    )
