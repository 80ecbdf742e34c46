"""Ranking of lesions by a predicted parameter and by ADC, beside the true ranking."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dmrifit.engine.fitting import fit_voxels
from dmrifit.engine.protocol import Protocol
from dmrifit.stats.metrics import spearman
from dmrifit.stats.patient_summary import patient_draws, percentile_interval
from dmrifit.study.comparison import Evaluation
from dmrifit.study.predictions import PatientPredictions

if TYPE_CHECKING:
    import pandas as pd

#: Fewer lesions have no order worth a table.
FEWEST_LESIONS = 6

#: Parameters whose order of lesions could help beside ADC.
PARAMETERS = ("K", "T2t")

_COLUMNS = (
    "cohort", "parameter", "estimator", "n_lesions", "rho_predicted", "rho_adc", "gain",
    "gain_low", "gain_high", "rho_predicted_adc", "reordered", "reordered_rightly",
)  # fmt: skip
_N_DRAWS = 2000


def lesion_ranking(evaluation: Evaluation) -> pd.DataFrame:
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
    # In one order, whether predictions are in memory or in files; one patient at a time.
    for cohort, name in sorted(evaluation.predictions):
        patient = evaluation.predictions[cohort, name]
        if patient.truth is None:
            continue
        adc = _median_adc(patient)
        for parameter in PARAMETERS:
            if parameter in patient.names:
                j = patient.names.index(parameter)
                truth = _median(patient.truth, j)
                for estimator, maps in patient.maps.items():
                    row = (cohort, parameter, estimator, _median(maps, j), adc, truth)
                    rows.append(row)
    keys, columns = list(_COLUMNS[:3]), ["predicted", "adc", "truth"]
    medians = pd.DataFrame(rows, columns=[*keys, *columns])
    ranked = []
    for key, lesions in medians.groupby(keys, sort=False):
        if len(lesions) >= FEWEST_LESIONS:
            predicted, adc, truth = lesions[columns].to_numpy(np.float64).T
            compared = _compared(predicted, adc, truth)
            ranked.append(dict(zip(keys, key, strict=True)) | compared)
    return pd.DataFrame(ranked, columns=list(_COLUMNS))


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


def _compared(predicted: NDArray, adc: NDArray, truth: NDArray) -> dict[str, Any]:
    """Compare two orders of the same lesions with the true one."""
    usable = np.isfinite(predicted) & np.isfinite(adc) & np.isfinite(truth)
    predicted, adc, truth = predicted[usable], adc[usable], truth[usable]
    if len(truth) < FEWEST_LESIONS:
        return {"n_lesions": len(truth)}
    if _rho(adc, truth) < 0:
        adc = -adc
    draws = patient_draws(len(truth), _N_DRAWS, 0)
    every = np.tile(np.arange(len(truth)), _N_DRAWS)
    lesions = np.repeat(every, draws.ravel()).reshape(draws.shape)
    drawn = predicted[lesions].T, adc[lesions].T, truth[lesions].T
    gains = _rho(drawn[0], drawn[2]) - _rho(drawn[1], drawn[2])
    low, high = percentile_interval(gains)
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
        "gain_low": low,
        "gain_high": high,
        "rho_predicted_adc": _rho(predicted, adc),
        "reordered": float(is_reordered.mean()),
        "reordered_rightly": share_right,
    }


def _rho(values: NDArray[np.float64], others: NDArray[np.float64]) -> Any:
    """Correlate ranks along the first axis; a constant orders nothing and counts as 0."""
    return np.nan_to_num(spearman(values, others))
