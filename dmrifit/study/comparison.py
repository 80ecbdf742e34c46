"""Compare estimators by leaving one patient out, within a cohort and between cohorts."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed, parallel_config

from dmrifit._utils.checks import check_own_names, check_words
from dmrifit._utils.counts import counted
from dmrifit._utils.html_repr import html_summary
from dmrifit._utils.progress import step_bar
from dmrifit._utils.randomness import RandomState, Seed
from dmrifit._utils.threads import check_jobs
from dmrifit.cohort.cohort import Cohort
from dmrifit.cohort.scan import MaskName
from dmrifit.io.digests import command_line, describe
from dmrifit.io.tables import csv_text, read_texts
from dmrifit.predict.algorithms import ALGORITHMS, make_regressor
from dmrifit.predict.controls import CONTROLS
from dmrifit.study import contestants
from dmrifit.study.predictions import FolderPredictions, PatientPredictions
from dmrifit.study.splits import Cell, check_settings, plan, software, views_by_cohort
from dmrifit.study.study_folder import Settings, StudyFolder
from dmrifit.study.summaries import TEXTS, headline, headline_notes, summary_of, why_undecided
from dmrifit.study.training_runs import SIGNAL_COLUMNS, run_trial
from dmrifit.study.voxel_bank import Bank

__all__ = ["Evaluation", "compare", "learning_curve", "leave_one_patient_out"]

#: Training voxels of each scan in the study's comparison.
BOARD_VOXELS = 250

#: Numbers of training patients of the study's learning curve.
SIZES = (1, 2, 3, 5, 8, 10, 12, 15)

_TEXT = (
    "cohort", "patient", "strategy", "algorithm", "train_on", "metric", "contrast", "unit",
    "estimator",
)  # fmt: skip
# Arrays from this size on are written once and mapped by all workers.
_SHARED_BYTES = 100_000
# Attempts to send an array to a cluster whose workers die, before the study gives up.
_SENDINGS = 5
_TABLES = ("scores", "signals")
_COUNTS = ("n_train", "repeat", "n_voxels", "n_undefined", "n_failed", "n_absolute")


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """
    The scores of a comparison.

    Parameters
    ----------
    scores : DataFrame
        One row for each held-out patient, estimator and model parameter: ``cohort``, ``patient``,
        ``strategy`` (s2s, m2m), ``algorithm`` (with the controls constant, shuffled, copy and
        perfect and, of synthetic patients, truth and repeat),
        ``train_on``, ``n_train`` (patients), ``repeat``, ``estimator`` (its name), ``metric`` (the
        parameter), ``bias`` (BI) and ``dispersion`` (DI) of the relative error, ``pearson``,
        ``spearman``, ``n_voxels`` and ``seconds`` (training, shared between the patients that a
        model was tested on, plus prediction). The reference is the fit to all measured target
        contrasts, by default the full protocol. Further: ``unit``, ``median_abs_error`` (MdAPE),
        ``n_undefined`` (voxels whose reference is zero or was not fitted), ``n_failed`` (voxels
        without a prediction), ``at_bound`` (share of fitted voxels at a bound), and
        ``bias_truth``, ``dispersion_truth``, ``median_abs_error_truth``, ``pearson_truth``,
        ``spearman_truth``: the same against the truth of a synthetic scan, NaN for others. With
        ``_independent`` instead, and for ``skill`` and ``absolute_skill`` too: against the fit to
        a second noise realization of a synthetic scan, all target contrasts, which shares no
        noise with the inputs. And
        ``skill``, 1 − Σ error / Σ error of the best constant, from ``relative_error`` and
        ``constant_error`` (means of abs(E)). The best constant is that with the least error on
        the training voxels of all other patients of the tested cohort (of all cohorts where it
        has no others), the same for every number and choice of training patients;
        ``absolute_skill`` from ``absolute_error`` and ``constant_absolute_error``, over all
        ``n_absolute`` voxels, including those whose reference is zero. Rows of the control
        constant describe two predictors: the skills, 0 by definition, and ``relative_error`` and
        ``absolute_error`` are of the best constants; all else is of the median
        of the training targets (of s2s, of the fit to the median signals).
    signals : DataFrame
        One row for each held-out patient, estimator and unseen contrast: the same keys, then
        ``contrast``, ``b`` (s/mm²), ``te`` (ms), ``relative_error`` (mean of abs(E)),
        ``median_relative_error`` (median of abs(E)), ``signed_relative_error`` (mean of E),
        ``n_voxels``, ``n_undefined``, ``pearson``, ``constant_error``, ``skill``. The row whose
        contrast is ``"all unseen"`` pools them. The reference is the measured signal. A predictor
        that learned nothing can have a positive skill, as the constant is that of the training
        region, and lesions differ from it: compare with the controls shuffled and copy, of both
        strategies. Of the control constant the skill alone is of the best constant.
    study : dict, optional
        How the scores were made: settings, cohorts, estimators, versions, seed, command.
    predictions : mapping of (str, str) to PatientPredictions, optional
        By cohort and patient, voxel by voxel: those of the largest number of training patients,
        the first repeat and the first way of training, of a patient's first scan. Estimators with
        another model or target than the first one are not in it, nor are controls.
    """

    scores: pd.DataFrame
    signals: pd.DataFrame
    study: dict[str, Any] = field(default_factory=dict)
    predictions: Mapping[tuple[str, str], PatientPredictions] = field(default_factory=dict)

    def __repr__(self) -> str:
        algorithms = ", ".join(self.scores["algorithm"].drop_duplicates())
        scores = counted(len(self.scores), "score")
        return f"<Evaluation: {self._cohorts_in_words()}; {algorithms}; {scores}>"

    def _cohorts_in_words(self) -> str:
        cohorts = []
        for cohort, patients in self.scores.groupby("cohort", sort=False)["patient"]:
            origin = "synthetic " if cohort in self.synthetic else ""
            cohorts.append(f"{origin}{cohort!r} of {counted(patients.nunique(), 'patient')}")
        return ", ".join(cohorts) or "no patient"

    @property
    def synthetic(self) -> list[str]:
        """Names of the cohorts that were simulated."""
        cohorts = self.study.get("cohorts", {})
        return [name for name, cohort in cohorts.items() if cohort.get("synthetic")]

    def _repr_html_(self) -> str:
        """Show the head of the summary in notebooks."""
        table = self.headline()
        title = f"Evaluation: {self._cohorts_in_words()}, each left out once"
        note = "; ".join([TEXTS["means"], *headline_notes(self.study, table)])
        rows = table.itertuples(index=False)
        return html_summary(title, list(table), rows, note=note, most_rows=None)

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
        study, texts = StudyFolder(folder).read_study(f"{name}.csv" for name in _TABLES)
        tables = {}
        for name in _TABLES:
            table = read_texts(StringIO(texts[f"{name}.csv"]), ",")
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
        predictions = self.predictions
        # Predictions that are read from this folder are in it already.
        if not isinstance(predictions, FolderPredictions) or predictions.folder.parent != folder:
            FolderPredictions(folder).write(predictions)
        tables = {f"{name}.csv": csv_text(getattr(self, name), missing="nan") for name in _TABLES}
        StudyFolder(folder).write_study(self.study, tables)

    def summary(self, level: float = 0.95) -> pd.DataFrame:
        """
        Summarize the scores: the table to read first.

        Parameters
        ----------
        level : float, default=0.95
            Level of the intervals: a bootstrap over patients, widened for few people, from five
            patients on, conditional on the trained estimators.

        Returns
        -------
        DataFrame
            One row for each ``train_on``, ``cohort``, ``strategy``, ``algorithm`` and
            ``parameters``: ``signals`` (all unseen contrasts), ``tissue`` (the parameters but S0
            and T2v), ``f``, ``K``, ``T2v`` and ``S0``, at the largest number of training patients
            (``n_train``). Means over ``n_patients`` of ``skill``, ``absolute_skill``,
            ``abs_bias``, ``dispersion``, ``relative_error`` and ``pearson``, each with ``_low``
            and ``_high``, and standard deviations ``_sd`` (over patients) and ``_sd_metrics``
            (over parameters); with ``_truth`` against the truth. Of synthetic patients the maps
            are scored twice: ``skill_independent`` and ``pearson_independent`` are against the
            fit to a second noise realization, and ``skill_shared_noise`` and
            ``pearson_shared_noise`` what the noise that reference and inputs share adds to the
            first ones. ``pooled_skill`` is that of all voxels together.
            An undefined correlation counts as 0 (``n_undefined_pearson``), and that of signals is
            the mean over those of the single contrasts; ``n_dropped`` voxels
            have a reference of zero or none. ``summary.csv`` of a report has the rows ``tissue``
            alone, with the scores of the signals beside them as ``signal_…``.

        Raises
        ------
        ValueError
            If the level is not between 0 and 1.
        """
        return summary_of(self.scores, self.signals, level)

    def headline(self, level: float = 0.95) -> pd.DataFrame:
        """
        Give the main columns of the summary as text, as the command line and the page print them.

        Parameters
        ----------
        level : float, default=0.95
            Level of the intervals, as in `summary`.

        Returns
        -------
        DataFrame
            Texts: one row for each way of training, cohort, strategy and algorithm, with the skill
            of signals and of maps (the tissue parameters), bias, dispersion and r; of synthetic
            patients also skill and r against a reference with independent noise, and the shared
            noise.

        Raises
        ------
        ValueError
            If the level is not between 0 and 1.
        """
        return headline(self.summary(level))

    def statistics(self, **options: Any) -> dict[str, pd.DataFrame]:
        """
        Test for differences between algorithms, with the patient as the unit.

        Each patient enters with one number for each algorithm: the index, averaged over parameters
        and repeats, at the largest number of training patients. Controls enter no test. Cohorts,
        strategies and ways of training are tested apart.

        Parameters
        ----------
        **options : object
            ``index`` : the tested column of `scores`, such as ``"skill"``, by default
            ``"dispersion"``; ``"abs_bias"`` is the magnitude of the column ``bias``.

            ``margin`` : algorithms whose mean difference is shown to be smaller are equivalent; by
            default a tenth of the median magnitude of the index.

            ``alpha`` : significance level of all tests, by default 0.05; intervals are at 1 −
            alpha, and those of equivalence at 1 − 2 alpha.

            ``metrics`` : the parameters to average, by default all but S0 and, if T2v is one of
            them, again without T2v.

            ``by_metric`` : test each parameter by itself, too; by default False.

            ``tables`` : names of the tables to make, by default all.

            ``n_bootstrap`` : resamples of the patients for intervals of effect sizes and ranks, by
            default 2000.

        Returns
        -------
        dict of str to DataFrame
            Tables by name. All have the columns ``cohort``, ``strategy``, ``train_on`` and
            ``metrics`` (the averaged parameters). A ``reason`` says why a test has no result.

            ``"patients"`` : the tested ``value`` of each ``patient`` and ``algorithm``.

            ``"friedman"`` : Friedman's test of ``n_algorithms`` in ``n_patients`` (``n_dropped``
            lack a value): ``statistic``, ``p`` and the effect size ``kendall_w``, 0 to 1.

            ``"pairs"`` : Wilcoxon's signed-rank test of each two algorithms ``a`` and ``b``:
            ``mean_a``, ``mean_b``, ``median_difference`` (the median of a − b), ``statistic``,
            ``p``, ``p_holm`` (corrected for all pairs), and the effect size ``rank_biserial``, −1
            to 1, with its bootstrap interval ``rank_biserial_low`` and ``rank_biserial_high``.

            ``"equivalence"`` : two one-sided t tests of each two: ``mean_difference`` (the mean of
            a − b) with its interval ``mean_difference_low`` and ``mean_difference_high``,
            ``margin``, ``p_lower`` and ``p_upper`` (one-sided tests against −margin and margin),
            ``p`` (the larger of the two), ``p_different`` (t test against 0, corrected for all
            pairs) and ``verdict``: "equivalent" if p is at most alpha, else "different" if
            p_different is, else "undecided"; equal differences are decided without a test. All are
            "undecided" where the study has one draw (``n_repeats=1``), as that of
            `leave_one_patient_out`, or a cohort with fewer than six patients.

            ``"ranks"`` : ``average_rank`` of each ``algorithm`` (1 is best), the
            ``critical_difference`` of Nemenyi's test, ``place`` with its bootstrap interval
            ``place_low`` and ``place_high``, and ``share_first``, the share of resamples in which
            the algorithm is first, alone or tied.

            ``"nemenyi"`` : ``p`` of Nemenyi's test of each two.

            ``"cliques"`` : groups of ``algorithms`` that Nemenyi's test does not tell apart,
            numbered by ``clique``, and their average ranks, from ``low`` to ``high``.

            ``"mixed"`` : a mixed model with patients as random intercepts, on logarithms of a
            positive index (``scale``). Rows of the ``kind`` "test" have Wald's ``statistic``,
            ``df`` and ``p`` of a ``term``; "effect" the ``estimate`` of a level's deviation from
            the mean, its ``standard_error``, interval and ``p``; "variance" the variance between
            patients and of the residuals. ``n`` is the number of values; ``converged`` tells
            whether the fit did.

        Raises
        ------
        ValueError
            If an option is not possible.
        ImportError
            If the extra ``stats`` is not installed; the message names the command.
        """
        from dmrifit.stats.method_tests import study_statistics

        algorithms = self.scores[~self.scores["algorithm"].isin(CONTROLS)]
        tables = study_statistics(algorithms, order=ALGORITHMS, **options)
        why = why_undecided(self)
        if why and "equivalence" in tables:
            tables["equivalence"] = tables["equivalence"].assign(verdict="undecided", reason=why)
        return tables


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
    out: str | Path | StudyFolder | None = None,
    n_jobs: int | None = None,
    random_state: RandomState = None,
) -> Evaluation:
    """
    Compare estimators, leaving one patient out.

    Parameters
    ----------
    estimators : mapping of str to estimator
        `SignalToSignal`, `MapsToMaps` (wrap regressors of scikit-learn in these) or an estimator
        of your own with ``fit(X, Y)``, ``predict(X)`` and ``predict_maps(X)``. Their ``source``
        and ``target`` are set from the cohort where they are None.
    cohorts : mapping of str to Cohort, or sequence of Cohort
        At least one. No patient may be in two. The order of cohorts, patients and contrasts does
        not matter: all are sorted first.
    train_on : {"same", "other", "pooled"} or sequence of these, default="same"
        Train on the other patients of the same cohort, on all patients of the other cohorts, or on
        both. Crossing cohorts needs the protocol of the tested one in all of them, or
        `resynthesize`.
    train_mask : {"body", "lesion"}, default="body"
        Voxels to train on.
    score_mask : {"lesion", "body"}, default="lesion"
        Voxels to score, all of them. Patients without any are trained on, not scored, and named
        in ``study``.
    n_train : int or sequence of int, optional
        Train on so many patients, drawn at random for each held-out one; by default on all there
        are. Of several numbers, the patients of a smaller one are among those of a larger one.
    n_repeats : int, default=1
        Repeat with other draws of patients and voxels and other seeds of the estimators.
    max_voxels : int, optional
        Train on at most so many voxels of each scan, drawn at random.
    controls : bool, default=True
        Add rows for a constant predictor, for linear regression of shuffled targets, for copies of
        what was measured (the nearest contrast; of maps S0, ADC_fast, ADC_slow and F, and the
        constant for other parameters) and for the perfect answer to every strategy; of synthetic
        patients whose noise-free signals are known also for the truth and for a second noise
        realization. They have the largest number of training patients and the model of the
        strategy's first estimator.
    resynthesize : bool, default=False
        Compute contrasts that patients of another cohort lack through the model fitted to theirs,
        with the noise of their images where it is known.
    keep_predictions : bool, default=True
        Keep the predictions of every scored voxel: 4 bytes for each estimator and each parameter
        and contrast.
    out : path, optional
        Folder for the tables and for finished work: what was interrupted goes on when run again,
        and what data, estimators or versions have changed is computed again.
    n_jobs : int, optional
        Parallel jobs of joblib, whose ``parallel_config`` is respected. Every result has the same
        bits for any number.
    random_state : int, RandomState or None, default=None
        Seed. None continues with the seed of the study in `out`, if there is one.

    Returns
    -------
    Evaluation
        The scores.

    Raises
    ------
    ValueError
        If there are too few patients, one of them is in two cohorts, protocols do not match, or
        `out` holds another study. Raised before anything is trained.
    ImportError
        If an estimator needs an extra that is not installed; the message names the command.
    RuntimeError
        If an estimator fails (the message names it and the patient) or cannot be sent to a
        cluster, or if a cluster's workers die again and again; the cause follows.
    """
    check_jobs(n_jobs)
    cohorts = contestants.named_cohorts(cohorts)
    folder = StudyFolder(out) if isinstance(out, str | Path) else out
    # Resuming without a seed goes on with the earlier one: a new one would train all again.
    if random_state is None and folder is not None:
        random_state = folder.settings().get("seed")
    settings = Settings(
        cohorts={name: list(cohort.patients) for name, cohort in cohorts.items()},
        train_on=[train_on] if isinstance(train_on, str) else list(train_on or ()),
        train_mask=train_mask,
        score_mask=score_mask,
        n_train=None if n_train is None else np.atleast_1d(n_train).tolist(),
        n_repeats=n_repeats,
        max_voxels=max_voxels,
        resynthesize=resynthesize,
        seed=int(Seed(random_state)),
    )
    check_settings(settings)
    # Results in a folder are recognized by plain values that describe the estimator.
    options: dict[str, Any] = {"kept": folder is not None}
    options["example"] = next(iter(cohorts.values())).scans[0].protocol
    contestants.check_named(estimators, "estimator")
    entrants = [
        contestants.Entrant.of(name, estimator, **options)
        for name, estimator in estimators.items()
    ]
    # Tables could not separate two estimators with equal strategy and algorithm.
    names = [f"{entrant.algorithm} of strategy {entrant.strategy}" for entrant in entrants]
    check_own_names("estimators (names compared without signs, within a strategy)", names)
    if controls:
        has_noise_free = any(cohort.has_noise_free for cohort in cohorts.values())
        entrants += contestants.controls_of(entrants, noise_free=has_noise_free, **options)
    regimes = settings.train_on
    views = contestants.choose_views(entrants, cohorts, regimes, resynthesize=resynthesize)
    if folder is not None:
        folder.check(vars(settings))
    bank = Bank(cohorts, *views_by_cohort(views, regimes), settings)
    cells = plan(entrants, settings, views, bank, keep=keep_predictions)
    descriptions = {}
    for name, cohort in cohorts.items():
        skipped = {patient: f"not used: {why}" for patient, why in cohort.skipped.items()}
        for patient in bank.patients[name]:
            if patient not in bank.trainable[name]:
                skipped[patient] = f"not trained on: no usable {train_mask} voxel"
            if patient not in bank.testable[name]:
                training = skipped.get(patient, "trained on")
                skipped[patient] = f"{training}; not scored: no {score_mask} voxel"
        descriptions[name] = {
            "synthetic": cohort.synthetic,
            "repeated": bank.repeated[name],
            "regions": cohort.regions,
            "simulation": describe(getattr(cohort, "simulation", None)),
            "patients": bank.patients[name],
            "protocol": cohort.scans[0].protocol.to_dict(),
            "inputs": views[entrants[0].name, name].source.to_dict(),
            "skipped": skipped,
        }
    if folder is not None:
        folder.claim(vars(settings))
    started = time.time()
    results, n_reused = _run(cells, bank, folder, n_jobs)
    study = {
        "settings": describe(vars(settings)),
        "cohorts": descriptions,
        "estimators": {entrant.name: entrant.description for entrant in entrants},
        "model": {entrant.name: entrant.model.name for entrant in entrants},
        "constant": TEXTS["constant"],
        "versions": software(),
        "command": command_line(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "seconds": round(time.time() - started, 3),
        "models": {"trained": len(cells) - n_reused, "reused": n_reused},
    }
    scores = itertools.chain.from_iterable(result["scores"] for result in results)
    signals = itertools.chain.from_iterable(result["signals"] for result in results)
    # Where every contrast is an input, there is none to score, but the table has its columns.
    signal_table = pd.DataFrame(signals, columns=SIGNAL_COLUMNS)
    predictions = _collect(cells, results, bank)
    evaluation = Evaluation(pd.DataFrame(scores), signal_table, study, predictions)
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
        If an algorithm needs an extra that is not installed.

    References
    ----------
    Macarro et al., J Magn Reson Imaging 61(2):1018–1021, 2025.
    """
    strategies = (strategies,) if isinstance(strategies, str) else strategies
    algorithms = (algorithms,) if isinstance(algorithms, str) else algorithms
    check_words("strategies", strategies, contestants.STRATEGIES, least=1)
    if not algorithms:
        raise ValueError("algorithms must name at least one")
    estimators = {}
    for strategy, algorithm in itertools.product(strategies, algorithms):
        estimators[f"{algorithm} {strategy}"] = contestants.STRATEGIES[strategy](algorithm)
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
    """Run all cells that are not finished; return all results, and how many were finished."""
    stored = {i: folder.get(cell.key, arrays=cell.keep) for i, cell in enumerate(cells) if folder}
    results = {i: content for i, content in stored.items() if content is not None}
    n_reused = len(results)
    waiting = [i for i in range(len(cells)) if i not in results]
    algorithms = set()
    for cell in map(cells.__getitem__, waiting):
        # What cannot be prepared fails before anything is trained.
        bank.material(cell.entrant, cell.view, cell.repeat)
        if cell.entrant.recipe and isinstance(cell.entrant.estimator.regressor, str):
            algorithms.add(cell.entrant.estimator.regressor)
    n_failures = 0
    with step_bar(len(waiting), "training", "compare") as count:
        while waiting:
            futures = _send_arrays([cells[i] for i in waiting], bank)
            tasks = [
                delayed(_train)(algorithms, i, cells[i], *_material(cells[i], bank, futures))
                for i in waiting
            ]
            parallel = Parallel(n_jobs, return_as="generator_unordered", max_nbytes=_SHARED_BYTES)
            try:
                # In the order in which they end.
                for i, content in parallel(tasks):
                    if folder is not None:
                        folder.put(cells[i].key, content)
                    results[i] = content
                    count("")
            except CancelledError as error:
                # Shared arrays are lost with the last worker that held them; they are sent again.
                n_failures = 0 if any(i in results for i in waiting) else n_failures + 1
                if n_failures == _SENDINGS:
                    raise RuntimeError(TEXTS("lost", n=_SENDINGS)) from error
            waiting = [i for i in waiting if i not in results]
    return [results[i] for i in range(len(cells))], n_reused


def _send_arrays(cells: Sequence[Cell], bank: Bank) -> dict[int, Any]:
    """Send arrays to dask's workers, where joblib uses them; return futures by `id` of array."""
    # joblib would send them too. But it loses the error when a worker dies while it is sent one,
    # or when an estimator cannot be sent, and then waits forever for the trainings that need it.
    from joblib.parallel import get_active_backend

    futures: dict[int, Any] = {}
    backend = get_active_backend()[0]
    if getattr(backend, "client", None) is None:
        return futures
    # It comes with dask.
    import cloudpickle

    # Each estimator once: thousands of cells share a few.
    for entrant in {id(cell.entrant): cell.entrant for cell in cells}.values():
        try:
            cloudpickle.dumps(entrant)
        except Exception as error:
            text = TEXTS("not_sent", name=repr(entrant.name), error=error)
            raise RuntimeError(text) from error
    # Waits for the first worker, and asks for one where the cluster starts them on demand.
    backend.effective_n_jobs(-1)
    stacks = [bank.material(cell.entrant, cell.view, cell.repeat) for cell in cells]
    arrays = {id(array): array for stack in stacks for array in stack.arrays}
    for key, array in arrays.items():
        for attempt in range(_SENDINGS):
            try:
                futures[key] = backend.client.scatter(array, hash=False)
                break
            except OSError as error:
                # Where no worker came, dask has waited long enough for one.
                if isinstance(error, TimeoutError) or attempt == _SENDINGS - 1:
                    raise
                # The scheduler takes a moment to notice that the worker is gone.
                time.sleep(1)
    return futures


def _material(cell: Cell, bank: Bank, futures: Mapping[int, Any]) -> tuple[Any, ...]:
    """Collect what `run_trial` takes beside the cell, and no more: workers get copies."""
    stack = bank.material(cell.entrant, cell.view, cell.repeat)
    # A cluster is sent these once.
    arrays = [futures.get(id(array), array) for array in stack.arrays]
    rows = [stack.rows[patient] for patient in cell.train]
    n_dropped = sum(stack.n_dropped.get(patient, 0) for patient in cell.train)
    constants = [bank.constants(cell.view, cell.repeat, patient) for patient in cell.test]
    return *arrays, rows, n_dropped, bank.tests(cell.view, cell.test), constants


def _train(
    algorithms: Iterable[str], i: int, cell: Cell, features: Any, targets: Any, *material: Any
) -> tuple[int, dict[str, Any]]:
    """Run a training; return its number and result."""
    # While a cluster has one worker, joblib trains in this process and leaves futures as they are.
    arrays = [item.result() if hasattr(item, "result") else item for item in (features, targets)]
    # joblib takes a worker for leaking, and replaces it, if it loads a library after its first
    # task.
    for algorithm in algorithms:
        make_regressor(algorithm)
    # On a cluster, a forest would send each of its trees through the scheduler.
    with parallel_config(backend="sequential"):
        return i, run_trial(cell, *arrays, *material)


def _collect(
    cells: list[Cell], results: list[dict[str, Any]], bank: Bank
) -> dict[tuple[str, str], PatientPredictions]:
    """Collect predictions by patient, of estimators with the model and target of the first."""
    collected: dict[tuple[str, str], PatientPredictions] = {}
    for cell, content in zip(cells, results, strict=True):
        target, model = cell.view.target, cell.entrant.model
        for name, values in content.get("predictions", {}).items():
            kind, _, patient = name.partition("/")
            key = cell.cohort, patient
            if key not in collected:
                (test,) = bank.tests(cell.view, [patient])
                shown = test.shown
                truth = None if test.truth is None else test.truth[shown].astype(np.float32)
                collected[key] = PatientPredictions(
                    cohort=test.cohort,
                    patient=patient,
                    index=test.index[shown, 1:],
                    shape=test.shape,
                    affine=test.affine,
                    names=model.names,
                    units=model.units,
                    labels=tuple(target.labels),
                    b=target.b,
                    te=np.full(len(target), np.nan) if target.te is None else target.te,
                    seen=~np.isin(np.arange(len(target)), cell.view.unseen()),
                    reference=test.reference[shown].astype(np.float32),
                    truth=truth,
                    measured=test.Y[shown].astype(np.float32),
                    maps={},
                    signals={},
                    anatomy=bank.anatomies[patient],
                )
            predictions = collected[key]
            # Figures lay predictions of one patient over each other, which needs one set of maps.
            if (predictions.names, predictions.labels) == (model.names, tuple(target.labels)):
                getattr(predictions, kind)[cell.entrant.name] = values
    return collected
