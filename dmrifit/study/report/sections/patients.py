"""One patient of each cohort, voxel by voxel, and all of them in joint histograms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dmrifit.engine.fitting import fit_voxels
from dmrifit.engine.protocol import Protocol
from dmrifit.report.page import Grid, Heading, Note, Picture, Table, Texts, capital
from dmrifit.report.slice_figures import robust_limits
from dmrifit.report.viewer import Layer, html_viewer
from dmrifit.report.voxel_records import short_unit
from dmrifit.stats.metrics import spearman
from dmrifit.stats.patient_summary import patient_draws, percentile_interval
from dmrifit.study.comparison import Evaluation
from dmrifit.study.predictions import PatientPredictions
from dmrifit.study.report.figures import MapRow, plot_decays, plot_joint_histograms, plot_lesion
from dmrifit.study.summaries import Board, averaged, matching

#: Fewer lesions have no order worth a table.
FEWEST_LESIONS = 6

#: Parameters whose order of lesions could help beside ADC.
PARAMETERS = ("K", "T2t")

_KEYS, _MEDIANS = ["cohort", "parameter", "estimator"], ["predicted", "adc", "truth"]
_COLUMNS = [
    *_KEYS, "n_lesions", "rho_predicted", "rho_adc", "gain", "gain_low", "gain_high",
    "rho_predicted_adc", "reordered", "reordered_rightly",
]  # fmt: skip
_N_DRAWS = 2000

_TEXTS = Texts(__file__)
_ANATOMY = "image, least b and TE"


def example_patients(board: Board) -> Iterator[Any]:
    """Show maps on the anatomy and decays of one patient of each cohort."""
    patients = [typical_patient(board, cohort) for cohort in board.cohorts]
    shown = [patient for patient in patients if patient is not None and len(patient.index)]
    if board.best is None or not shown:
        yield _TEXTS["not_kept"]
        return
    algorithm = board.best[1]
    yield _TEXTS("examples", algorithm=algorithm)
    if any(map(has_picture, shown)):
        yield _TEXTS["colors"]
    for patient in shown:
        names = _estimators(board, patient, algorithm)
        if not names:
            continue
        origin = "synthetic" if patient.cohort in board.evaluation.synthetic else "measured"
        note = f"{algorithm}; {board.conditions(matching(board.scores, cohort=patient.cohort))}"
        yield Heading(f"{patient.cohort}: {patient.patient} ({origin})")
        rows = _map_rows(board, patient, names)
        if rows and has_picture(patient):
            figure = plot_lesion(patient, rows, note, width=12.4, n_columns=2)
            yield _TEXTS.picture("maps", figure, patient=patient.patient, cohort=patient.cohort)
            if patient is shown[0]:
                yield _planes(patient, rows)
        yield Grid(*_decays(board, patient, names, note))


def of_best(board: Board, table: pd.DataFrame) -> pd.DataFrame:
    """Select the rows of the best predictor; none where there are controls alone."""
    strategy, algorithm = board.best or ("", "")
    return matching(table, strategy=strategy, algorithm=algorithm)


def typical_patient(board: Board, cohort: str) -> PatientPredictions | None:
    """Choose the patient with the median score of the best predictor, of those that were kept."""
    patients = {patient for name, patient in board.evaluation.predictions if name == cohort}
    rows = of_best(board, matching(board.scores, train_on=board.regimes[0], cohort=cohort))
    rows = averaged(rows[rows["patient"].isin(patients)])
    means = rows.groupby("patient")[board.skill_column].mean().dropna().sort_values(kind="stable")
    if not len(means):
        return None
    # Of an even number the lower one of the middle: a patient, not a mean of two.
    return board.evaluation.predictions[cohort, str(means.index[(len(means) - 1) // 2])]


def best_maps(board: Board, patient: PatientPredictions, names: Sequence[str]) -> list[MapRow]:
    """Collect maps of some parameters, predicted by the best predictor."""
    assert board.best is not None
    strategy, algorithm = board.best
    estimators = _estimators(board, patient, algorithm)
    rows = _map_rows(board, patient, {"predicted": estimators[strategy]}, with_truth=False)
    return [row for name in names for row in rows if row.name == name]


def has_picture(patient: PatientPredictions) -> bool:
    """Tell whether voxels lie in an image; regions without one lie in a row."""
    return sum(n > 1 for n in patient.shape) > 1


def lesion_order(board: Board) -> Iterator[Any]:
    """Tabulate whether predictions order lesions otherwise than ADC alone, and rightly."""
    if board.setting("score_mask", "lesion") != "lesion":
        yield ("Voxels of the whole body were scored; the order of lesions needs lesions alone.")
        return
    table = lesion_ranking(board.evaluation)
    if not len(table):
        yield _TEXTS("no_order", fewest_lesions=FEWEST_LESIONS)
        return
    yield _TEXTS["order_explained"]
    yield Table(table, _TEXTS["order"])


def joint_histograms(board: Board) -> Iterator[Any]:
    """Count voxels by reference and prediction, for each parameter and for the unseen signals."""
    algorithm = board.best[1] if board.best else None
    pairs: dict[str, list[pd.DataFrame]] = {}
    units: dict[str, str] = {"": ""}
    predictions = board.evaluation.predictions if algorithm else {}
    for (cohort, _), patient in predictions.items():
        if cohort not in board.cohorts:
            continue
        units |= dict(zip(patient.names, map(short_unit, patient.units), strict=True))
        unseen = ~patient.seen
        for strategy, estimator in _estimators(board, patient, str(algorithm)).items():
            columns = {}
            for i, name in enumerate(patient.names):
                columns[name] = patient.reference[:, i], patient.maps[estimator][:, i]
            if unseen.any():
                signals = patient.signals[estimator][:, unseen]
                columns[""] = patient.measured[:, unseen].ravel(), signals.ravel()
            for name, (reference, predicted) in columns.items():
                values = {"reference": reference, "predicted": predicted, "cohort": cohort}
                pairs.setdefault(name, []).append(pd.DataFrame(values | {"strategy": strategy}))
    if not pairs:
        yield _TEXTS["not_kept"]
        return
    yield _TEXTS("joint", algorithm=algorithm)
    note = f"{algorithm}; {board.conditions(matching(board.scores, train_on=board.regimes[0]))}"
    grid = []
    # The signals stand last, under no name.
    for name in [name for name in (*board.metrics, "") if name in pairs]:
        rows = pd.concat(pairs[name], ignore_index=True)
        if not np.isfinite(rows[["reference", "predicted"]].to_numpy(float)).all(axis=1).any():
            continue
        title = name or "Unseen signals"
        figure = plot_joint_histograms(rows, f"{title}\n{note}", unit=units[name], log=not name)
        grid.append(_TEXTS.picture("histogram", figure, title=title, name=name or "signals"))
    yield Grid(*grid)


def _estimators(board: Board, patient: PatientPredictions, algorithm: str) -> dict[str, str]:
    """Find the estimators of an algorithm, by strategy."""
    rows = matching(board.scores, algorithm=algorithm).drop_duplicates("strategy")
    estimators = dict(zip(rows["strategy"], rows["estimator"], strict=True))
    return {strategy: name for strategy, name in estimators.items() if name in patient.maps}


def _decays(
    board: Board, patient: PatientPredictions, names: dict[str, str], note: str
) -> Iterator[Picture]:
    """Draw the median over the scored voxels, and one voxel."""
    signals = {"measured": patient.measured}
    signals |= {strategy: patient.signals[name] for strategy, name in names.items()}
    usable = np.isfinite(np.hstack(list(signals.values()))).all(axis=1)
    if not usable.any():
        return
    measured, predicted = (values[usable].astype(float) for values in [*signals.values()][:2])
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.abs((predicted - measured) / np.where(measured == 0, np.nan, measured))
        errors = np.nanmean(relative, axis=1)
    # A voxel without any error defined is no typical one.
    order = np.argsort(np.nan_to_num(errors, nan=np.inf), kind="stable")
    voxel = np.flatnonzero(usable)[order[(len(errors) - 1) // 2]]
    place = f"voxel ({', '.join(map(str, patient.index[voxel]))})"
    # Earlier studies have True in place of names.
    if isinstance(regions := board.regions.get(patient.cohort), dict):
        place = f"region {regions[patient.patient][patient.index[voxel, 0]]}"
    median = f"median of the scored {board.unit}s"
    subjects = {"median": median, "voxel": f"{place}, of typical error"}
    for file, subject in subjects.items():
        rows = []
        for label, values in signals.items():
            signal = np.median(values[usable], axis=0) if file == "median" else values[voxel]
            # The axis is logarithmic.
            columns = {"signal": np.where(signal > 0, signal.astype(float), np.nan)}
            columns |= {"b": patient.b, "te": patient.te, "known": patient.seen}
            rows.append(pd.DataFrame(columns).assign(kind=label))
        table = pd.concat(rows, ignore_index=True)
        figure = plot_decays(table, f"{patient.patient}, {subject}\n{note}")
        alt, name = f"Decays of {patient.patient}, {subject}", f"decays_{patient.cohort}_{file}"
        yield Picture(figure, alt, capital(subject), name=name)


def _map_rows(
    board: Board, patient: PatientPredictions, names: dict[str, str], *, with_truth: bool = True
) -> list[MapRow]:
    """Collect the maps of every parameter of the tissue, by name of the prediction."""
    rows = []
    for name in [name for name in board.metrics if name in patient.names]:
        i = patient.names.index(name)
        truth = patient.truth[:, i] if with_truth and patient.truth is not None else None
        predictions = {label: patient.maps[key][:, i] for label, key in names.items()}
        unit = short_unit(patient.units[i])
        rows.append(MapRow(name, unit, patient.reference[:, i], predictions, truth))
    return [row for row in rows if np.isfinite(row.reference).any()]


def _planes(patient: PatientPredictions, rows: Sequence[MapRow]) -> Any:
    """Show the maps of a patient, reference beside predictions, to move through."""
    layers = []
    if patient.anatomy is not None:
        layers.append(Layer(_ANATOMY, patient.anatomy.astype(float), "image"))
    for row in rows:
        # The reference sets the colors of the predictions, too, so that they can be compared.
        window = robust_limits(row.reference.astype(float))
        for label, values in row.maps.items():
            volume = patient.volume(values)
            layers.append(Layer(f"{row.name}, {label}", volume, "map", row.unit, window))
    start = (patient.affine @ [*np.median(patient.index, axis=0), 1])[:3]
    options: dict[str, Any] = {"overlay": f"{rows[0].name}, reference", "start": start}
    options["image"] = _ANATOMY if patient.anatomy is not None else None
    options["instead"] = Note("The picture above shows a slice of the same maps.")
    return html_viewer(layers, patient.affine, label=f"Maps of {patient.patient}", **options)


def lesion_ranking(evaluation: Evaluation) -> pd.DataFrame:
    """
    Compare the order of lesions by a predicted parameter with that by ADC alone.

    The lesion of a patient has the median over its voxels: of the prediction, of the ADC fitted to
    the inputs, and of the truth. Nobody has a true order but of synthetic patients, so cohorts
    without a truth are left out, and those of fewer than `FEWEST_LESIONS`. ADC is given the sign,
    rising or falling, with which it follows the truth better. Intervals are bootstraps
    over patients, conditional on the trained estimators.

    Gives one row for each cohort, parameter and estimator: Spearman's correlation with the truth
    of the prediction (``rho_predicted``) and of ADC (``rho_adc``), their difference ``gain`` with
    ``gain_low`` and ``gain_high``, the correlation of prediction and ADC
    (``rho_predicted_adc``), the share of pairs of lesions that the prediction orders otherwise
    than ADC (``reordered``), and the share of those that it orders rightly. All are NaN where
    fewer than `FEWEST_LESIONS` have an ADC, as with one b-value at the shortest echo time.
    """
    rows = []
    # In one order, whether predictions are in memory or in files; one patient at a time.
    for cohort, name in sorted(evaluation.predictions):
        patient = evaluation.predictions[cohort, name]
        if patient.truth is None:
            continue
        adc = _median_adc(patient)
        for parameter in PARAMETERS:
            if parameter in patient.names:
                j = patient.names.index(parameter)
                truth = _lesion_median(patient.truth, j)
                for estimator, maps in patient.maps.items():
                    row = (cohort, parameter, estimator, _lesion_median(maps, j), adc, truth)
                    rows.append(row)
    ranked = []
    table = pd.DataFrame(rows, columns=[*_KEYS, *_MEDIANS])
    for key, lesions in table.groupby(_KEYS, sort=False):
        if len(lesions) >= FEWEST_LESIONS:
            # A lesion without one of the medians has no place in an order.
            compared = _compared(*lesions[_MEDIANS].dropna().to_numpy(np.float64).T)
            ranked.append(dict(zip(_KEYS, key, strict=True)) | compared)
    return pd.DataFrame(ranked, columns=_COLUMNS)


def _median_adc(patient: PatientPredictions) -> float:
    """Fit ADC to the inputs at their shortest echo time; take the median over the lesion."""
    seen = np.flatnonzero(patient.seen)
    te = patient.te[seen]
    if np.isfinite(te).all():
        seen = seen[te == te.min()]
    if len(np.unique(patient.b[seen])) < 2:
        return float("nan")
    signals = patient.measured[:, seen].astype(float)
    maps = fit_voxels(signals, Protocol(patient.b[seen]), "adc").parameters
    return _lesion_median(maps, 1)


def _lesion_median(maps: NDArray, j: int) -> float:
    usable = maps[np.isfinite(maps[:, j]), j]
    return float(np.median(usable)) if usable.size else float("nan")


def _compared(predicted: NDArray, adc: NDArray, truth: NDArray) -> dict[str, Any]:
    """Compare two orders of the same lesions with the true one."""
    if len(truth) < FEWEST_LESIONS:
        return {"n_lesions": len(truth)}
    if _rho(adc, truth) < 0:
        adc = -adc
    # The first draw holds all lesions once.
    draws = patient_draws(len(truth), _N_DRAWS, 0)
    lesions = np.array([np.repeat(np.arange(len(truth)), draw) for draw in draws]).T
    rho_predicted = _rho(predicted[lesions], truth[lesions])
    rho_adc = _rho(adc[lesions], truth[lesions])
    gains = rho_predicted - rho_adc
    low, high = percentile_interval(gains[1:], len(truth))
    first, second = np.triu_indices(len(truth), k=1)
    is_risen = predicted[first] < predicted[second]
    is_reordered = is_risen != (adc[first] < adc[second])
    is_right = is_risen == (truth[first] < truth[second])
    share_right = float(is_right[is_reordered].mean()) if is_reordered.any() else np.nan
    return {
        "n_lesions": len(truth),
        "rho_predicted": rho_predicted[0],
        "rho_adc": rho_adc[0],
        "gain": gains[0],
        "gain_low": low,
        "gain_high": high,
        "rho_predicted_adc": _rho(predicted, adc),
        "reordered": float(is_reordered.mean()),
        "reordered_rightly": share_right,
    }


def _rho(values: NDArray[np.float64], others: NDArray[np.float64]) -> Any:
    """Correlate ranks along the first axis; a constant orders nothing and counts as 0."""
    return np.nan_to_num(spearman(values, others))
