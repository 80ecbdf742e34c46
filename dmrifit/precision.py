"""What a protocol can tell: bounds on the precision of parameters, and which contrasts matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit.mapping import resolve_model
from dmrifit.models import SignalModel
from dmrifit.protocol import Protocol
from dmrifit.randomness import RandomState

if TYPE_CHECKING:
    import pandas as pd

    from dmrifit.cohort import Cohort, VoxelTable
    from dmrifit.scans import MaskName

__all__ = ["protocol_precision", "rank_contrasts", "rank_contrasts_by_prediction", "signal_jacobian"]

#: The rule of `FitResult.ill_conditioned` too: parameters whose variance the others inflate more cannot be told apart.
_LARGEST_INFLATION = 1e8

_STEP = np.finfo(float).eps ** (1 / 3)  # the best for a central difference
_SMALLEST = np.finfo(float).tiny

CRITERIA = ("A", "D")


def signal_jacobian(model: str | SignalModel, parameters: ArrayLike, protocol: Protocol) -> NDArray[np.float64]:
    """
    Differentiate the signal of a model by its parameters.

    Parameters
    ----------
    model : str or SignalModel
        A name in `MODELS`, or a model.
    parameters : array_like of shape (n_sets, n_parameters)
        In the order and units of the model.
    protocol : Protocol
        The measurements.

    Returns
    -------
    ndarray of shape (n_sets, n_measurements, n_parameters)
        Central differences, right to about ten digits for any model, formula or function.

    Raises
    ------
    ValueError
        If the number of columns is wrong, or the model needs echo times and the protocol has none.
    """
    model = resolve_model(model)
    values = np.atleast_2d(np.asarray(parameters, dtype=float))
    jacobian = np.empty((len(values), len(protocol), len(model.names)))
    for i, parameter in enumerate(model.parameters):
        scale = np.abs(values[:, i])
        width = parameter.high - parameter.low
        step = _STEP * np.where(scale > 0, scale, width if np.isfinite(width) and width > 0 else 1.0)
        above, below = values.copy(), values.copy()
        above[:, i] += step
        below[:, i] -= step
        span = (above[:, i] - below[:, i])[:, None]
        jacobian[:, :, i] = (model.signal(above, protocol) - model.signal(below, protocol)) / span
    return jacobian


def protocol_precision(
    protocol: Protocol,
    model: str | SignalModel,
    parameters: ArrayLike | Mapping[str, ArrayLike],
    sigma: ArrayLike,
    *,
    fixed: Sequence[str] = (),
    prior: Mapping[str, float] | ArrayLike | None = None,
) -> pd.DataFrame:
    """
    Compute how precisely a protocol can measure the parameters of a model: the Cramér–Rao bound.

    No unbiased fit has a smaller standard deviation than these. Bounds, a prior or a noise floor bias a fit, and can
    make its spread smaller.

    Parameters
    ----------
    protocol : Protocol
        The measurements.
    model : str or SignalModel
        A name in `MODELS`, or a model.
    parameters : array_like of shape (n_parameters,) or (n_sets, n_parameters), or mapping of str to array_like
        The tissue, or several, in the order and units of the model; or values by parameter name.
    sigma : float or array_like of shape (n_sets,)
        Standard deviation of the noise of one measurement, in the unit of the model's amplitude: with an amplitude of
        1, one over the signal-to-noise ratio of a measurement without any weighting.
    fixed : sequence of str, default=()
        Parameters that are known and not estimated.
    prior : mapping of str to float or array_like of shape (n_parameters,), optional
        Standard deviation of what is known of parameters before the measurement, in their units; infinite, or left out
        of the mapping, where nothing is known.

    Returns
    -------
    DataFrame
        One row for each set and parameter: ``set`` (position, from 0), ``parameter``, ``unit``, ``value``, ``sd``
        (in that unit) and ``cv`` (sd over the absolute value; infinite for a value of 0). A parameter that the
        measurements do not determine has an infinite sd: the signal does not depend on it, or the others inflate its
        variance more than 1e8 times. A fixed one has 0.

    Raises
    ------
    ValueError
        If shapes, names or units do not fit together, or sigma is not positive.

    Notes
    -----
    With J the derivatives of the signal, the Fisher information is J'J/σ² (plus one over the prior's variance), and
    the bound is the diagonal of its inverse. Noise is taken as Gaussian, as magnitudes are at three times σ and
    above; Rician noise holds less information below.

    References
    ----------
    Kay, Fundamentals of Statistical Signal Processing: Estimation Theory, chapter 3, 1993.

    Examples
    --------
    >>> table = protocol_precision(Protocol([0, 1000]), "adc", [1.0, 1.0], sigma=0.02)
    >>> table[["parameter", "cv"]].round(3).values.tolist()
    [['S0', 0.02], ['ADC', 0.058]]
    """
    import pandas as pd

    model = resolve_model(model)
    values = _parameter_sets(model, parameters)
    noise = _noise(sigma, len(values))
    free = _free(model, fixed)
    rows = signal_jacobian(model, values, protocol)[:, :, free] / noise[:, None, None]
    weights = _prior_rows(model, values, prior, weak=None)[:, free]
    sd = np.zeros_like(values)
    sd[:, free] = _standard_deviations(rows, weights)
    n, p = values.shape
    with np.errstate(divide="ignore", invalid="ignore"):
        cv = np.where(sd == 0, 0.0, sd / np.abs(values))
    return pd.DataFrame(
        {
            "set": np.repeat(np.arange(n), p),
            "parameter": np.tile(model.names, n),
            "unit": np.tile(model.units, n),
            "value": values.ravel(),
            "sd": sd.ravel(),
            "cv": cv.ravel(),
        }
    )


def rank_contrasts(
    protocol: Protocol,
    model: str | SignalModel,
    parameters: ArrayLike | Mapping[str, ArrayLike],
    sigma: ArrayLike,
    *,
    start: Protocol | ArrayLike | None = None,
    criterion: str = "A",
    n: int | None = None,
    prior: float | Mapping[str, float] | ArrayLike | None = None,
    fixed: Sequence[str] = (),
) -> pd.DataFrame:
    """
    Order the contrasts of a protocol by what they add to the precision of a model's parameters.

    One contrast after another is taken, each time the one that makes the criterion smallest together with those
    taken before: to plan a shorter scan, or to find the one image worth adding to a scan (`start`).

    Parameters
    ----------
    protocol : Protocol
        The contrasts that can be measured, each once.
    model : str or SignalModel
        A name in `MODELS`, or a model.
    parameters : array_like of shape (n_parameters,) or (n_sets, n_parameters), or mapping of str to array_like
        The tissues that matter, as for `protocol_precision`; the criterion is averaged over them.
    sigma : float or array_like of shape (n_sets,)
        Standard deviation of the noise of one measurement, in the unit of the model's amplitude.
    start : Protocol or indices, optional
        Contrasts that are measured anyway, such as ``protocol.clinical()``; none by default.
    criterion : {"A", "D"}, default="A"
        ``"A"``: the mean, over parameters, of the squared coefficient of variation. ``"D"``: the logarithm of the
        determinant of the covariance of the relative errors, over the number of parameters.
    n : int, optional
        How many contrasts to take; all by default.
    prior : float, mapping of str to float or array_like of shape (n_parameters,), optional
        What is known before: one number, as a share of each parameter's value, or standard deviations in their units.
        By default 1: weak, and enough to tell contrasts apart while there are fewer than parameters.
    fixed : sequence of str, default=()
        Parameters that are known and not estimated.

    Returns
    -------
    DataFrame
        One row for each contrast in the order taken: ``step`` (from 1), ``index`` (in the protocol), ``contrast``
        (its label), ``b`` (s/mm²), ``te`` (ms, NaN without), ``score`` (the criterion with all contrasts so far),
        ``gain`` (by how much it fell) and ``cv_…``, the coefficient of variation of each parameter with the prior's
        help (root mean square over the sets). Before them stands step 0: what is known from `start` and the prior.

    Raises
    ------
    ValueError
        If shapes, names or units do not fit together, the criterion is unknown, or nothing is left to take.

    References
    ----------
    Atkinson, Donev, Tobias, Optimum Experimental Designs, with SAS, chapters 10–12, 2007.
    """
    model = resolve_model(model)
    if criterion not in CRITERIA:
        msg = f"criterion must be 'A' or 'D', not {criterion!r}; for predicted signals see rank_contrasts_by_prediction"
        raise ValueError(msg)
    values = _parameter_sets(model, parameters)
    if (values == 0).any():
        msg = f"relative errors have no meaning for a parameter that is 0: {_zeros(model, values)}; give a small value"
        raise ValueError(msg)
    noise = _noise(sigma, len(values))
    free = _free(model, fixed)
    names = [name for name, is_free in zip(model.names, free, strict=True) if is_free]
    # Derivatives by the logarithm of the parameters: variances are then squared coefficients of variation.
    rows = (signal_jacobian(model, values, protocol) * values[:, None, :] / noise[:, None, None])[:, :, free]
    weights = (_prior_rows(model, values, prior, weak=1.0) * np.abs(values))[:, free]
    taken, left = _start(protocol, start, n)
    information = np.einsum("smi,smj->sij", rows[:, taken], rows[:, taken])
    information[:, np.arange(len(names)), np.arange(len(names))] += weights**2
    score, cv = _judge(information[None], criterion)
    steps = [_Step(-1, score[0], np.nan, cv[0])]
    for _ in range(n or len(left)):
        each = information + np.einsum("smi,smj->msij", rows[:, left], rows[:, left])
        score, cv = _judge(each, criterion)
        best = int(np.argmin(score))
        steps.append(_Step(left.pop(best), score[best], steps[-1].score - score[best], cv[best]))
        information = each[best]
    return _table(protocol, steps, len(taken), "score", [f"cv_{name}" for name in names])


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

    One contrast after another is taken, each time the one by which linear regression from all contrasts taken predicts
    the remaining ones of left-out patients best. What a contrast is worth to itself (when measured, it need not be
    predicted) does not count, so that noisy ones are not taken for their noise.

    Parameters
    ----------
    cohort : Cohort
        Patients, at least two, who have all contrasts.
    start : Protocol or indices, optional
        Contrasts of the target that are measured anyway; by default its clinical ones. An empty list: none.
    target : Protocol or indices, optional
        The contrasts that can be measured or predicted; by default all of the first scan's protocol.
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
        One row for each contrast in the order taken: ``step`` (from 1), ``index`` (in the target), ``contrast`` (its
        label), ``b`` (s/mm²), ``te`` (ms, NaN without), ``error`` (mean relative error |prediction − measured| /
        measured of the contrasts not yet taken, averaged over patients; NaN when none is left), ``gain`` (by how much
        it fell for those contrasts) and ``helped`` (share of the patients for whom it fell). Before them stands step
        0: the error with `start` alone.

    Raises
    ------
    ValueError
        If there are fewer than two patients, a scan lacks a contrast, or nothing is left to take.
    """
    table = cohort.arrays(target, target, mask=train_mask, max_voxels=max_voxels, random_state=random_state)
    held_out = cohort.arrays(table.target, table.target, mask=score_mask)
    protocol = table.target
    patients = [patient for patient in dict.fromkeys(held_out.groups) if (table.groups != patient).any()]
    if len(patients) < 2:
        msg = (
            f"leaving one patient out needs two with voxels in the {score_mask} mask; cohort {cohort.name!r} has "
            f"{len(patients)}"
        )
        raise ValueError(msg)
    folds = [_Fold(table, held_out, patient) for patient in patients]
    taken, left = _start(protocol, protocol.clinical() if start is None else start, n)
    errors = np.array([fold.errors([taken])[0] for fold in folds])  # patients × contrasts
    steps = [_Step(-1, float(errors[:, left].mean()), np.nan, np.array([np.nan]))]
    for _ in range(n or len(left)):
        each = np.array([fold.errors([[*taken, one] for one in left]) for fold in folds])  # … × candidates × contrasts
        # Judged on what remains to be predicted whichever candidate is taken.
        fall = np.array([np.delete(errors - each[:, i], [*taken, one], axis=1) for i, one in enumerate(left)])
        gain = fall.mean(axis=(1, 2)) if len(left) > 1 else np.array([np.nan])
        best = int(np.argmax(gain))
        errors = each[:, best]
        taken.append(left.pop(best))
        score = float(errors[:, left].mean()) if left else np.nan
        helped = np.mean(fall[best].mean(axis=1) > 0) if left else np.nan
        steps.append(_Step(taken[-1], score, float(gain[best]), np.array([helped])))
    return _table(protocol, steps, len(taken) - len(steps) + 1, "error", ["helped"])


@dataclass(frozen=True, eq=False)
class _Step:
    """A contrast that was taken, or what there was before the first."""

    index: int
    score: float
    gain: float
    more: NDArray[np.float64]


class _Fold:
    """Linear regression between contrasts for one left-out patient, from sums over the other patients."""

    def __init__(self, table: VoxelTable, held_out: VoxelTable, patient: str) -> None:
        train = table.Y[(table.groups != patient) & np.isfinite(table.Y).all(axis=1)]
        self.mean = train.mean(axis=0)
        self.covariance = np.cov(train, rowvar=False, bias=True)
        test = held_out.Y[held_out.groups == patient]
        self.test = test[np.isfinite(test).all(axis=1) & (test > 0).all(axis=1)]

    def errors(self, choices: list[list[int]]) -> NDArray[np.float64]:
        """Mean relative error of every contrast (columns) from several choices of measured ones (rows)."""
        chosen = np.array(choices, dtype=np.intp)
        among = self.covariance[chosen[:, :, None], chosen[:, None, :]]
        weights = np.linalg.pinv(among, rcond=1e-13, hermitian=True) @ self.covariance[chosen]
        centered = (self.test - self.mean)[:, chosen].transpose(1, 0, 2)
        predicted = self.mean + centered @ weights
        return np.abs(predicted / self.test - 1).mean(axis=1)


def _start(protocol: Protocol, start: Protocol | ArrayLike | None, n: int | None) -> tuple[list[int], list[int]]:
    """Part the contrasts in those that are measured anyway and those that can be taken."""
    if start is None:
        taken = []
    elif isinstance(start, Protocol):
        taken = start.indices_in(protocol).tolist()
    else:
        taken = np.atleast_1d(np.asarray(start, dtype=np.intp)).tolist() if np.size(start) else []
    outside = [index for index in taken if not 0 <= index < len(protocol)]
    if outside or len(set(taken)) != len(taken):
        msg = f"start must name contrasts of the protocol, 0 to {len(protocol) - 1}, each once, not {taken}"
        raise ValueError(msg)
    left = [index for index in range(len(protocol)) if index not in taken]
    if not left or (n is not None and not 1 <= n <= len(left)):
        msg = f"n must be between 1 and {len(left)}, the contrasts that are not in start, not {n}"
        raise ValueError(msg)
    return taken, left


def _table(protocol: Protocol, steps: list[_Step], n_start: int, score: str, more: list[str]) -> pd.DataFrame:
    import pandas as pd

    indices = [step.index for step in steps]
    te = np.full(len(protocol), np.nan) if protocol.te is None else protocol.te
    table = pd.DataFrame(
        {
            "step": np.arange(len(steps)),
            "index": indices,
            "contrast": [f"start ({n_start})", *(protocol.labels[index] for index in indices[1:])],
            "b": [np.nan, *protocol.b[indices[1:]]],
            "te": [np.nan, *te[indices[1:]]],
            score: [step.score for step in steps],
            "gain": [step.gain for step in steps],
        }
    )
    return table.join(pd.DataFrame(np.array([step.more for step in steps]), columns=more))


def _judge(information: NDArray[np.float64], criterion: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Score candidates (first axis) by the information on each set (second): score, and root mean square CVs."""
    covariance = np.linalg.inv(information)
    variances = np.diagonal(covariance, axis1=-2, axis2=-1)
    cv = np.sqrt(variances.mean(axis=1))
    if criterion == "A":
        return variances.mean(axis=(1, 2)), cv
    return -np.linalg.slogdet(information)[1].mean(axis=1) / information.shape[-1], cv


def _standard_deviations(rows: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Invert the information of each set: rows (n, m, p) of derivatives, weights (n, p) of the prior."""
    n, _, p = rows.shape
    prior = np.zeros((n, p, p))
    prior[:, np.arange(p), np.arange(p)] = weights
    rows = np.concatenate([rows, prior], axis=1)
    length = np.linalg.norm(rows, axis=1)
    seen = length > _SMALLEST
    length = np.where(seen, length, 1.0)
    # By singular values of the derivatives, not of the information, which would square their ratio.
    _, values, axes = np.linalg.svd(rows / length[:, None, :], full_matrices=False)
    values = np.maximum(values, np.finfo(float).eps)
    inflation = ((axes / values[:, :, None]) ** 2).sum(axis=1)
    return np.where(seen & (inflation <= _LARGEST_INFLATION), np.sqrt(inflation) / length, np.inf)


def _parameter_sets(model: SignalModel, parameters: ArrayLike | Mapping[str, ArrayLike]) -> NDArray[np.float64]:
    if isinstance(parameters, Mapping):
        missing, unknown = set(model.names) - set(parameters), set(parameters) - set(model.names)
        if missing or unknown:
            what = f"no {', '.join(sorted(missing))}" if missing else f"unknown {', '.join(sorted(unknown))}"
            msg = f"parameters of model {model.name}: {what}; it has {', '.join(model.names)}"
            raise ValueError(msg)
        columns = np.broadcast_arrays(*(np.asarray(parameters[name], dtype=float) for name in model.names))
        values = np.stack([np.ravel(column) for column in columns], axis=1)
    else:
        values = np.atleast_2d(np.asarray(parameters, dtype=float))
    if values.ndim != 2 or values.shape[1] != len(model.names) or not len(values):
        msg = (
            f"parameters must have shape (n_sets, {len(model.names)}), columns {', '.join(model.names)}; "
            f"not {values.shape}"
        )
        raise ValueError(msg)
    if not np.isfinite(values).all():
        row, column = np.argwhere(~np.isfinite(values))[0]
        msg = f"parameters must be finite; {model.names[column]} of set {row} is {values[row, column]}"
        raise ValueError(msg)
    return values


def _noise(sigma: ArrayLike, n: int) -> NDArray[np.float64]:
    noise = np.asarray(sigma, dtype=float)
    if noise.shape not in ((), (1,), (n,)):
        msg = f"sigma must be a number or {n} of them, one for each set of parameters; got shape {noise.shape}"
        raise ValueError(msg)
    if not (np.isfinite(noise).all() and (noise > 0).all()):
        msg = f"sigma must be positive and finite (the standard deviation of the noise); got {np.ravel(noise).min():g}"
        raise ValueError(msg)
    return np.broadcast_to(noise, (n,))


def _free(model: SignalModel, fixed: Sequence[str]) -> NDArray[np.bool_]:
    fixed = (fixed,) if isinstance(fixed, str) else tuple(fixed)
    unknown = sorted(set(fixed) - set(model.names))
    if unknown or set(fixed) == set(model.names):
        problem = f"unknown {', '.join(unknown)}" if unknown else "all are"
        msg = f"fixed parameters of model {model.name}: {problem}; it has {', '.join(model.names)}"
        raise ValueError(msg)
    return np.array([name not in fixed for name in model.names])


def _prior_rows(
    model: SignalModel, values: NDArray, prior: float | Mapping[str, float] | ArrayLike | None, *, weak: float | None
) -> NDArray[np.float64]:
    """Give one over the prior's standard deviation, for each set and parameter; 0 where nothing is known."""
    if prior is not None and not isinstance(prior, Mapping) and np.ndim(prior) == 0:
        weak, prior = float(prior), None  # type: ignore[arg-type] # a number
    sd = np.full(values.shape, np.inf) if weak is None else weak * np.abs(values)
    if isinstance(prior, Mapping):
        unknown = sorted(set(prior) - set(model.names))
        if unknown:
            msg = f"the prior knows {', '.join(unknown)}, which model {model.name} does not have; it has {model.names}"
            raise ValueError(msg)
        for name, value in prior.items():
            sd[:, model.names.index(name)] = value
    elif prior is not None:
        given = np.asarray(prior, dtype=float)
        if given.shape != (len(model.names),):
            msg = f"the prior must be a mapping by name or {len(model.names)} standard deviations, not {prior!r}"
            raise ValueError(msg)
        sd[:] = given
    if not (sd > 0).all():
        msg = "standard deviations of the prior must be positive; name parameters that are known in fixed="
        raise ValueError(msg)
    return 1 / sd


def _zeros(model: SignalModel, values: NDArray) -> str:
    return ", ".join(name for name, column in zip(model.names, values.T, strict=True) if (column == 0).any())
