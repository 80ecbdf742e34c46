"""A prior: the normal distribution of parameters in a region, learned from its voxels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dmrifit._utils.counts import counted
from dmrifit.engine.methods.refinement import LINE, Coordinates, Refinement, Search
from dmrifit.engine.methods.rician import FlooredGaussian
from dmrifit.engine.models import SignalModel, read_table
from dmrifit.engine.results import FitResult, FitStatus

#: What every page and sidecar says of parameters that were fitted with a prior.
PULLED: str = read_table("sentences")["scan"]["prior"]

#: Factor of the learned covariance in fits of voxels.
WIDENING = 4.0

#: Voxels that a prior is learned from.
PRIOR_VOXELS = 2000  # more do not change a mean and a covariance, and take longer
_FEWEST_VOXELS = 20
_MAX_ITER = 25
_CHANGE = 5e-3  # of a standard deviation of the prior
_SMALLEST_VARIANCE = 1e-3


@dataclass(frozen=True)
class Prior:
    """
    Mean and covariance of transformed parameters in a region.

    Each voxel's parameters p, drawn out from the box to the line by
    u = ln((p − low)/(high − p)), are taken as draws of a normal distribution N(m, C), and its
    signals y as S(u) plus noise of standard deviation σ. The fit then minimizes

        Σ (y − S(u))²/(2σ²) + (u − m)'(4C)⁻¹(u − m)/2,

    minus the logarithm of the posterior density with C widened fourfold (each square times the
    number of signals in it, where averages are fitted). m and C themselves
    maximize the likelihood of all signals together, by expectation and maximization with a normal
    approximation to each posterior (Dempster et al., 1977): with the modes û and their covariances
    V of all voxels under the present m and C, the next m is the mean of û, and the next C the mean
    of (û − m)(û − m)' + V. The noise thus does not widen C, as it widens the spread of
    least-squares estimates. Amplitudes have no prior, because the receiver's sensitivity decides
    on them.

    References
    ----------
    Dempster et al., J R Stat Soc B 39:1–38, 1977; Orton et al., Magn Reson Med 71:411–420, 2014.
    """

    names: tuple[str, ...]
    mean: NDArray[np.float64]  # of the transformed parameters, (n_names,)
    covariance: NDArray[np.float64]  # (n_names, n_names)
    sigma: float  # noise that was used where none was given, in units of the signals
    n_voxels: int  # that the prior was learned from

    def describe(self) -> dict[str, object]:
        """Describe the prior for the sidecar."""
        return {
            "Description": PULLED,
            "Parameters": list(self.names),
            "TransformedMean": self.mean.tolist(),
            "TransformedCovariance": self.covariance.tolist(),
            "NoiseStandardDeviation": self.sigma,
            "Voxels": self.n_voxels,
        }

    def expanded(self, model: SignalModel, widening: float = WIDENING) -> tuple[NDArray, NDArray]:
        """Give mean and precision for all parameters of a model, 0 for those without a prior."""
        columns = [model.names.index(name) for name in self.names]
        mean = np.zeros(len(model.names))
        precision = np.zeros((len(model.names),) * 2)
        mean[columns] = self.mean
        precision[np.ix_(columns, columns)] = np.linalg.inv(widening * self.covariance)
        return mean, precision


def prior_of(start: FitResult, n_averaged: float) -> Prior:
    """
    Learn a prior from the voxels of a nonlinear fit (see `Prior` for the derivation).

    `n_averaged` is the mean number of signals of a known noise in one measurement.
    """
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
            f"{solved.size}; fit more voxels, or use method 'nlls'"
        )
    # Evenly spread, so that the choice is always the same.
    places = np.linspace(0, solved.size - 1, min(solved.size, PRIOR_VOXELS))
    rows = solved[places.round().astype(int)]
    signals = np.asarray(start.inputs.signals[rows], dtype=float)
    pooled = _pooled_noise(start, rows, len(protocol), int(is_free.sum()))
    noise = np.full(rows.size, pooled)
    if sigma is not None:
        noise = np.broadcast_to(sigma, len(start))[rows]
    points = start.parameters[rows]
    top = np.nanmax(signals, axis=1)
    unit = np.where([p.is_amplitude for p in model.parameters], top[:, None], 1.0)
    values = Coordinates(LINE, *np.array(start.bounds).T).into(points / unit)
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
            n_averaged=1.0 if sigma is None else n_averaged,
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
