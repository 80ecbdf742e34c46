"""Ranking of lesions by a predicted parameter and by ADC, beside the true ranking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dmrifit.engine.fitting import fit_voxels
from dmrifit.engine.protocol import Protocol
from dmrifit.stats.metrics import spearman
from dmrifit.study.comparison import Evaluation
from dmrifit.study.predictions import PatientPredictions

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FEWEST_LESIONS", "lesion_ranking"]

#: Fewer lesions have no order worth a table.
FEWEST_LESIONS = 6

#: Parameters whose order of lesions could help beside ADC.
PARAMETERS = ("K", "T2t")

_COLUMNS = (
    "cohort", "parameter", "estimator", "n_lesions", "rho_predicted", "rho_adc", "gain",
    "gain_low", "gain_high", "rho_predicted_adc", "reordered", "reordered_rightly",
)  # fmt: skip
_N_DRAWS = 2000


def lesion_ranking(
    evaluation: Evaluation, parameters: Sequence[str] = PARAMETERS, *, level: float = 0.95
) -> pd.DataFrame:
    """
    Compare the order of lesions by a predicted parameter with that by ADC alone.

    The lesion of a patient has the median over its voxels: of the prediction, of the ADC fitted to
    the inputs, and of the truth. Nobody has a true order but of synthetic patients, so cohorts
    without a truth are left out, and those of fewer than `FEWEST_LESIONS`. ADC is given the sign,
    rising or falling, with which it follows the truth better. Intervals are percentile bootstraps
    over patients, conditional on the trained estimators.

    Gives one row for each cohort, parameter and estimator: Spearman's correlation with the truth
    of the prediction (``rho_predicted``) and of ADC (``rho_adc``), their difference ``gain`` with
    ``gain_low`` and ``gain_high``, the correlation of prediction and ADC
    (``rho_predicted_adc``), the share of pairs of lesions that the prediction orders otherwise
    than ADC (``reordered``), and the share of those that it orders rightly. All are NaN where
    fewer than `FEWEST_LESIONS` have an ADC, as with one b-value at the shortest echo time.
    """
    import pandas as pd

    rows = []
    for cohort in dict.fromkeys(cohort for cohort, _ in evaluation.predictions):
        lesions = _lesions(evaluation, cohort, parameters)
        if len(lesions) < FEWEST_LESIONS:
            continue
        adc = np.array([lesion.adc for lesion in lesions])
        for name, estimator in lesions[0].predicted:
            truth = np.array([lesion.truth[name] for lesion in lesions])
            predicted = np.array([lesion.predicted[name, estimator] for lesion in lesions])
            row = {"cohort": cohort, "parameter": name, "estimator": estimator}
            rows.append(row | _compared(predicted, adc, truth, level))
    return pd.DataFrame(rows, columns=list(_COLUMNS))


class _Lesion(NamedTuple):
    """Medians of a patient: of ADC, and by parameter of the truth and of each prediction."""

    adc: float
    truth: dict[str, float]
    predicted: dict[tuple[str, str], float]


def _lesions(evaluation: Evaluation, cohort: str, parameters: Sequence[str]) -> list[_Lesion]:
    """Take the medians of one patient after the other, so that one at a time is in memory."""
    lesions = []
    # In one order, whether predictions are in memory or in files.
    for key in sorted(evaluation.predictions):
        if key[0] != cohort:
            continue
        patient = evaluation.predictions[key]
        if patient.truth is None:
            continue
        columns = {name: patient.names.index(name) for name in parameters if name in patient.names}
        truth = {name: _median(patient.truth, j) for name, j in columns.items()}
        predicted = {}
        for name, j in columns.items():
            for estimator, maps in patient.maps.items():
                predicted[name, estimator] = _median(maps, j)
        lesions.append(_Lesion(_median_adc(patient), truth, predicted))
    return lesions


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
    return _median(maps, 1)


def _median(maps: NDArray, j: int) -> float:
    values = maps[:, j]
    usable = values[np.isfinite(values)]
    return float(np.median(usable)) if usable.size else float("nan")


def _compared(
    predicted: NDArray[np.float64],
    adc: NDArray[np.float64],
    truth: NDArray[np.float64],
    level: float,
) -> dict[str, Any]:
    """Compare two orders of the same lesions with the true one."""
    usable = np.isfinite(predicted) & np.isfinite(adc) & np.isfinite(truth)
    predicted, adc, truth = predicted[usable], adc[usable], truth[usable]
    if len(truth) < FEWEST_LESIONS:
        return {"n_lesions": len(truth)}
    if _rho(adc, truth) < 0:
        adc = -adc
    lesions = np.random.default_rng(0).integers(len(truth), size=(_N_DRAWS, len(truth)))
    drawn = predicted[lesions].T, adc[lesions].T, truth[lesions].T
    draws = _rho(drawn[0], drawn[2]) - _rho(drawn[1], drawn[2])
    low, high = np.percentile(draws, [50 * (1 - level), 50 * (1 + level)])
    first, second = np.triu_indices(len(truth), k=1)
    is_risen = predicted[first] < predicted[second]
    is_reordered = is_risen != (adc[first] < adc[second])
    is_right = is_risen == (truth[first] < truth[second])
    rho_predicted, rho_adc = _rho(predicted, truth), _rho(adc, truth)
    share_right = float(is_right[is_reordered].mean()) if is_reordered.any() else np.nan
    return {
        "n_lesions": len(truth),
        "rho_predicted": rho_predicted,
        "rho_adc": rho_adc,
        "gain": rho_predicted - rho_adc,
        "gain_low": float(low),
        "gain_high": float(high),
        "rho_predicted_adc": _rho(predicted, adc),
        "reordered": float(is_reordered.mean()),
        "reordered_rightly": share_right,
    }


def _rho(values: NDArray[np.float64], others: NDArray[np.float64]) -> Any:
    """Correlate ranks along the first axis; a constant orders nothing and counts as 0."""
    return np.nan_to_num(spearman(values, others))
