"""Learning of a prior from the voxels of a region."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dmrifit._utils.counts import counted
from dmrifit.engine.methods.prior import Prior
from dmrifit.engine.methods.refinement import LINE, Coordinates, Refinement, Search
from dmrifit.engine.methods.rician import FlooredGaussian
from dmrifit.engine.results import FitResult, FitStatus

#: Voxels that a prior is learned from.
PRIOR_VOXELS = 2000  # more do not change a mean and a covariance, and take longer
_FEWEST_VOXELS = 20
_MAX_ITER = 25
_CHANGE = 5e-3  # of a standard deviation of the prior
_SMALLEST_VARIANCE = 1e-3


def spread_rows(n: int, most: int) -> NDArray[np.intp]:
    """Choose at most `most` rows, evenly spread, so that the choice is always the same."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))


def prior_of(start: FitResult) -> Prior:
    """Learn a prior from the voxels of a nonlinear fit (see `Prior` for the derivation)."""
    assert start.inputs is not None
    model, protocol, sigma = start.model, start.inputs.protocol, start.inputs.sigma
    is_solved = np.isin(start.status, (FitStatus.CONVERGED, FitStatus.AT_BOUND))
    solved = np.flatnonzero(is_solved)
    has_prior = np.array(
        [p.name not in start.fixed and not p.is_amplitude for p in model.parameters]
    )
    is_free = np.array([name not in start.fixed for name in model.names])
    if solved.size < _FEWEST_VOXELS or not has_prior.any():
        raise ValueError(
            f"a prior is learned from {_FEWEST_VOXELS} fitted voxels or more, and there are "
            f"{solved.size}; give a prior=, or use method='nlls'"
        )
    rows = solved[spread_rows(solved.size, PRIOR_VOXELS)]
    signals = np.asarray(start.inputs.signals[rows], dtype=float)
    pooled = _pooled_noise(start, rows, len(protocol), int(is_free.sum()))
    noise = np.full(rows.size, pooled)
    if sigma is not None:
        noise = np.broadcast_to(sigma, len(start))[rows]
    points = start.parameters[rows]
    top = np.nanmax(signals, axis=1)
    unit = np.where([p.is_amplitude for p in model.parameters], top[:, None], 1.0)
    low, high = (np.broadcast_to(ends, points.shape) for ends in np.array(start.bounds).T)
    values = Coordinates(LINE, low, high).into(points / unit)
    columns = np.flatnonzero(has_prior)
    mean = np.median(values[:, columns], axis=0)
    spread = 1.4826 * np.median(np.abs(values[:, columns] - mean), axis=0)
    covariance = np.diag(np.clip(spread, 0.2, 1.5) ** 2)
    names = tuple(model.names[j] for j in columns)
    for _ in range(_MAX_ITER):
        prior = Prior(names, mean, covariance, float(pooled), int(rows.size))
        problem = Refinement(
            model,
            protocol,
            FlooredGaussian(has_floor=sigma is not None),
            is_free,
            start.inputs.weights,
            prior.expanded(model, widening=1.0),
        )
        search = Search(problem, signals, noise, start, [points])
        modes = search.values[:, columns]
        variances = search.covariance()[:, columns][:, :, columns]
        # A mode that did not come to rest, or lies at the end of the line, has no covariance.
        usable = search.converged & np.isfinite(variances).all(axis=(1, 2))
        new_mean = modes[usable].mean(axis=0)
        away = modes[usable] - new_mean
        new_covariance = away.T @ away / usable.sum() + variances[usable].mean(axis=0)
        new_covariance += _SMALLEST_VARIANCE * np.eye(len(columns))
        scale = np.sqrt(np.diag(new_covariance))
        change = max(
            np.abs((new_mean - mean) / scale).max(),
            np.abs(np.sqrt(np.diag(covariance)) / scale - 1).max(),
        )
        mean, covariance = new_mean, new_covariance
        points = search.parameters
        if change < _CHANGE:
            break
    return Prior(names, mean, covariance, float(pooled), int(rows.size))


def _pooled_noise(start: FitResult, rows: NDArray, n_measurements: int, n_free: int) -> float:
    """Estimate one standard deviation of the noise from the residuals of all voxels."""
    from scipy.stats import chi2

    dof = n_measurements - n_free
    if dof <= 0:
        raise ValueError(
            f"no residuals are left of {counted(n_measurements, 'measurement')} beside "
            f"{counted(n_free, 'free parameter')}, so the noise of a fit with a prior is unknown; "
            "give sigma"
        )
    # The median stands against voxels that the model does not describe.
    return float(np.sqrt(np.median(start.cost[rows]) / chi2.ppf(0.5, dof)))
