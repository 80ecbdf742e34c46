"""Order of contrasts by how much measuring each helps to predict the others."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit._utils.randomness import RandomState
from dmrifit.engine.design.precision import order_table, start_of
from dmrifit.engine.protocol import Protocol

if TYPE_CHECKING:
    import pandas as pd

    from dmrifit.cohort.cohort import Cohort, VoxelTable
    from dmrifit.cohort.scan import MaskName

__all__ = ["rank_contrasts_by_prediction"]


def rank_contrasts_by_prediction(
    cohort: Cohort,
    *,
    start: Protocol | ArrayLike | None = None,
    target: Protocol | ArrayLike | None = None,
    n: int | None = None,
    train_mask: MaskName = "body",
    score_mask: MaskName = "lesion",
    max_voxels: int | None = 250,
    random_state: RandomState = None,
) -> pd.DataFrame:
    """
    Order the contrasts of a cohort by how much measuring them helps to predict the others.

    One contrast after another is taken, each time the one by which linear regression from all
    contrasts taken predicts the remaining ones of left-out patients best. What a contrast is worth
    to itself (when measured, it need not be predicted) does not count, so that noisy ones are not
    taken for their noise.

    Parameters
    ----------
    cohort : Cohort
        Patients, at least two, who have all contrasts.
    start : Protocol or indices, optional
        Contrasts of the target that are measured anyway; by default its clinical ones. An empty
        list: none.
    target : Protocol or indices, optional
        The contrasts that can be measured or predicted; by default all of the first scan's
        protocol.
    n : int, optional
        How many contrasts to take; all by default.
    train_mask, score_mask : {"body", "lesion"}
        Voxels that are learned from, and voxels of the left-out patient that are predicted.
    max_voxels : int, default=250
        At most so many training voxels of each patient; None for all.
    random_state : int, RandomState or None, default=None
        Seed of their draw.

    Returns
    -------
    DataFrame
        One row for each contrast in the order taken: ``step`` (from 1), ``index`` (in the target),
        ``contrast`` (its label), ``b`` (s/mm²), ``te`` (ms, NaN without), ``error`` (mean relative
        error ``|prediction − measured|`` / measured of the contrasts not yet taken, averaged over
        patients; NaN when none is left), ``gain`` (by how much it fell for those contrasts) and
        ``helped`` (share of the patients for whom it fell). Before them stands step 0: the error
        with `start` alone.

    Raises
    ------
    ValueError
        If there are fewer than two patients with a voxel whose signals can be divided by (finite
        and positive in every contrast), a scan lacks a contrast, or nothing is left to take.
        Patients without such a voxel are left out with a warning.
    """
    protocol = cohort.scans[0].protocol
    if isinstance(target, Protocol):
        protocol = target
    elif target is not None:
        protocol = protocol.take(target)
    table = cohort.arrays(
        protocol, protocol, mask=train_mask, max_voxels=max_voxels, random_state=random_state
    )
    held_out = cohort.arrays(protocol, protocol, mask=score_mask)
    usable = np.isfinite(held_out.Y).all(axis=1) & (held_out.Y > 0).all(axis=1)
    train_patients = table.groups[np.isfinite(table.Y).all(axis=1)]
    # A patient can be left out only where voxels of another one remain to learn from.
    patients = [
        patient
        for patient in dict.fromkeys(held_out.groups[usable])
        if (train_patients != patient).any()
    ]
    if len(patients) < 2:
        raise ValueError(
            f"leaving one patient out needs two with voxels in the {score_mask} mask whose "
            f"signals are finite and positive; cohort {cohort.name!r} has {len(patients)}"
        )
    excluded = [
        str(patient) for patient in dict.fromkeys(held_out.groups) if patient not in patients
    ]
    if excluded:
        warnings.warn(
            f"cohort {cohort.name!r}: {', '.join(excluded)} left out of the errors: no voxel of "
            f"the {score_mask} mask has finite and positive signals in every contrast",
            stacklevel=2,
        )
    folds = [_Fold(table, held_out, patient) for patient in patients]
    if start is None:
        start = protocol.clinical()
    measured, candidates = start_of(protocol, start, n)
    n_start = len(measured)
    errors = np.array([fold.errors([measured])[0] for fold in folds])  # patients × contrasts
    error = float(errors[:, candidates].mean())
    steps = [{"index": -1, "error": error, "gain": np.nan, "helped": np.nan}]
    for _ in range(n or len(candidates)):
        choices = [[*measured, candidate] for candidate in candidates]
        # patients × candidates × contrasts
        choice_errors = np.array([fold.errors(choices) for fold in folds])
        # A candidate's own error does not count, or noisy contrasts would win by being measured.
        fall = np.array(
            [
                np.delete(errors - choice_errors[:, i], choice, axis=1)
                for i, choice in enumerate(choices)
            ]
        )
        # The last candidate has no contrasts left to predict, and a mean of none would warn.
        is_last = len(candidates) == 1
        gain = np.array([np.nan]) if is_last else fall.mean(axis=(1, 2))
        best = int(np.argmax(gain))
        errors = choice_errors[:, best]
        measured.append(candidates.pop(best))
        error = helped = np.nan
        if not is_last:
            error = float(errors[:, candidates].mean())
            helped = np.mean(fall[best].mean(axis=1) > 0)
        gain_taken = float(gain[best])
        steps.append({"index": measured[-1], "error": error, "gain": gain_taken, "helped": helped})
    return order_table(protocol, steps, n_start)


class _Fold:
    """Linear regression between contrasts for one left-out patient."""

    def __init__(self, table: VoxelTable, held_out: VoxelTable, patient: str) -> None:
        train = table.Y[(table.groups != patient) & np.isfinite(table.Y).all(axis=1)]
        self.mean = train.mean(axis=0)
        # All regressions of a fold follow from one covariance, however many sets are tried.
        self.covariance = np.cov(train, rowvar=False, bias=True)
        test = held_out.Y[held_out.groups == patient]
        self.test = test[np.isfinite(test).all(axis=1) & (test > 0).all(axis=1)]

    def errors(self, choices: list[list[int]]) -> NDArray[np.float64]:
        """Mean relative error of each contrast (columns) for sets of measured ones (rows)."""
        measured = np.array(choices, dtype=np.intp)
        covariance = self.covariance[measured[:, :, None], measured[:, None, :]]
        # Contrasts that nearly repeat each other leave the covariance without an inverse.
        inverse = np.linalg.pinv(covariance, rcond=1e-13, hermitian=True)
        weights = inverse @ self.covariance[measured]
        centered = (self.test - self.mean)[:, measured].transpose(1, 0, 2)
        predicted = self.mean + centered @ weights
        return np.abs(predicted / self.test - 1).mean(axis=1)
