"""Compare estimators by leaving one patient out: within a cohort, and from one cohort to another."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dmrifit.cohort import Cohort
from dmrifit.derivatives import versions
from dmrifit.files import write_text
from dmrifit.folds import (
    VERSIONS,
    Bank,
    Cell,
    Entrant,
    HeldOut,
    View,
    check_settings,
    choose_views,
    derived_seed,
    named_cohorts,
    named_estimators,
    plan,
)
from dmrifit.models import SignalModel
from dmrifit.randomness import RandomState, seed_from
from dmrifit.records import StudyFolder, describe
from dmrifit.scans import MaskName

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Evaluation", "compare"]

_TEXT = ("cohort", "patient", "strategy", "algorithm", "train_on", "metric", "contrast", "unit", "estimator")
_COUNTS = ("n_train", "repeat", "n_voxels", "n_undefined", "n_failed")


@dataclass(frozen=True, eq=False)
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
    cohorts = named_cohorts(cohorts)
    regimes = (train_on,) if isinstance(train_on, str) else tuple(train_on)
    check_settings(regimes, cohorts, n_train, n_repeats, max_voxels, (train_mask, score_mask))
    folder = None if out is None else StudyFolder(out)
    named = named_estimators(estimators)
    entrants = [Entrant.of(name, estimator, kept=folder is not None) for name, estimator in named.items()]
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
    views = choose_views(entrants, cohorts, regimes)
    bank = Bank(cohorts, entrants, views, train_mask, score_mask, max_voxels, n_repeats, seed)
    cells = plan(entrants, cohorts, regimes, views, bank, n_train, n_repeats, seed)
    started = time.time()
    results, n_reused = _run(cells, bank, folder, n_jobs)
    study = {
        "settings": describe(settings),
        "cohorts": {name: _describe_cohort(cohort, bank.patients[name]) for name, cohort in cohorts.items()},
        "estimators": {entrant.name: entrant.description for entrant in entrants},
        "model": {entrant.name: entrant.model.name for entrant in entrants},
        "versions": versions(*VERSIONS),
        "command": _command(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "seconds": round(time.time() - started, 3),
        "models": {"trained": len(cells) - n_reused, "reused": n_reused},
    }
    evaluation = _tabulate(results, study)
    if folder is not None:
        evaluation.write(folder.path)
    return evaluation


def _run(
    cells: list[Cell], bank: Bank, folder: StudyFolder | None, n_jobs: int | None
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
    i: int, cell: Cell, X: NDArray, Y: NDArray, rows: list[slice], tests: list[HeldOut]
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


def _completed(estimator: Any, cell: Cell) -> dict[str, Any]:
    """Fill in what the user left open: contrasts, and every seed."""
    given = estimator.get_params(deep=True)
    own = {"source": cell.view.source, "target": cell.view.target}
    missing: dict[str, Any] = {key: value for key, value in own.items() if key in given and given[key] is None}
    seeded = [key for key in sorted(given) if key.split("__")[-1] == "random_state" and given[key] is None]
    return missing | {key: derived_seed(cell.seed, key) for key in seeded}


def _predict(estimator: Any, cell: Cell, test: HeldOut) -> tuple[NDArray, NDArray]:
    """Predict signals and maps; voxels without a usable source signal stay NaN."""
    usable = np.isfinite(test.X).all(axis=1)
    signals = np.full((len(test.X), len(cell.view.target)), np.nan)
    maps = np.full((len(test.X), len(cell.entrant.model.names)), np.nan)
    if usable.any():
        signals[usable] = estimator.predict(test.X[usable])
        maps[usable] = estimator.predict_maps(test.X[usable])
    return signals, maps


def _score_maps(maps: NDArray, test: HeldOut, model: SignalModel, seconds: float) -> list[dict[str, Any]]:
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


def _score_signals(predicted: NDArray, test: HeldOut, view: View) -> list[dict[str, Any]]:
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


def _command() -> str:
    """Write the command that started this process, as one would type it."""
    program = Path(sys.argv[0])
    if program.name in ("", "-c", "ipykernel_launcher.py"):
        return "in a Python session"
    words = ["python", "-m", program.parent.name] if program.name == "__main__.py" else [program.name]
    return shlex.join([*(["python"] if program.suffix == ".py" and len(words) == 1 else []), *words, *sys.argv[1:]])
