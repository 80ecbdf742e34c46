"""Fits by likelihood, weights or prior: the search of `refinement` for every voxel of a fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dmrifit._utils.threads import run_in_chunks
from dmrifit.engine.fit_settings import FitSettings
from dmrifit.engine.methods.map_prior import prior_of
from dmrifit.engine.methods.refinement import LINE, Coordinates, Refinement, Search
from dmrifit.engine.methods.rician import make_likelihood
from dmrifit.engine.models import SignalModel
from dmrifit.engine.results import FitResult, FitStatus

__all__ = ["least_squares_of", "refine_fit"]

_CHUNK = 1024  # the derivatives of so many voxels stay in the processor's cache


def least_squares_of(settings: FitSettings, model: SignalModel) -> FitSettings:
    """Give the settings of the fit by least squares that a refinement starts from."""
    # Both fits have the same bounds, and the default ones depend on the method.
    bounds = settings.box(model)
    return replace(
        settings,
        method="nlls",
        bounds=bounds,
        likelihood="gaussian",
        weights=None,
        prior=None,
    )


def refine_fit(start: FitResult, settings: FitSettings) -> FitResult:
    """Go on from a fit by least squares to the best parameters under the settings."""
    assert start.inputs is not None
    model, signals, noise = start.model, start.inputs.signals, start.inputs.sigma
    is_free = np.array([name not in start.fixed for name in model.names])
    likelihood = make_likelihood(settings.likelihood, has_floor=noise is not None)
    # The residuals of least squares tell their own noise; a prior and a density need it.
    knows_noise = settings.method == "map" or settings.likelihood == "rician"
    prior = expanded = None
    if settings.method == "map":
        prior = settings.prior or prior_of(start)
        expanded = prior.expanded(model)
    problem = Refinement(
        model,
        start.inputs.protocol,
        likelihood,
        is_free,
        start.inputs.weights,
        expanded,
        knows_noise,
    )
    result = replace(
        start,
        method=str(settings.method),
        likelihood=settings.likelihood,
        prior=prior,
    )

    def fit_chunk(chunk: slice) -> None:
        fitted = np.flatnonzero(start.status[chunk] != FitStatus.NOT_FITTED) + chunk.start
        if fitted.size == 0:
            return
        values = np.asarray(signals[fitted], dtype=float)
        if noise is not None:
            sigma = np.broadcast_to(noise, len(signals))[fitted]
        elif prior is not None:
            sigma = np.full(fitted.size, prior.sigma)
        else:
            # Any number: it cancels where residuals tell the noise.
            sigma = np.nanmax(values, axis=1)
        points = [start.parameters[fitted]]
        if expanded is not None:
            points.append(_typical_points(points[0], expanded, start))
        Search(problem, values, sigma, start, points).write(result, fitted)

    run_in_chunks(fit_chunk, len(signals), _CHUNK, settings.n_threads)
    return result


def _typical_points(
    points: NDArray, expanded: tuple[NDArray, NDArray], start: FitResult
) -> NDArray:
    """Put every voxel at the mean of the prior, but for its amplitude and fixed parameters."""
    mean, precision = expanded
    low, high = np.array(start.bounds).T[:, None]
    typical = Coordinates(LINE, low, high).out_of(mean[None, :])
    return np.where(np.diag(precision) > 0, typical, points)
