"""Intervals of fitted parameters that hold the truth as often as they say, also at bounds."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from dmrifit._utils.threads import default_threads
from dmrifit.engine.kernels import compiler
from dmrifit.engine.models import SignalModel
from dmrifit.engine.protocol import Protocol

__all__ = ["UNDETERMINED_SHARE", "parameter_intervals"]

#: Share of the box from which on an interval says nothing that the box did not.
UNDETERMINED_SHARE = 0.75

_CHUNK = 4096


def parameter_intervals(
    signals: NDArray,
    protocol: Protocol,
    model: SignalModel,
    parameters: NDArray,
    box: NDArray,
    *,
    is_fixed: NDArray[np.bool_],
    levels: Sequence[float],
    sigma: NDArray | None = None,
) -> NDArray[np.float64]:
    """
    Compute the low and high end of every parameter of every voxel, for each level.

    All parameters stay in the normal equations, at a bound or not, with the box as a weak prior;
    shares, rates and relaxation times are taken in coordinates in which the signal is close to
    linear, and one point a side is probed for the curvature that remains.

    Shapes: `signals` (n_voxels, n_measurements), `parameters` (n_voxels, n_parameters), `box`
    (2, n_voxels, n_parameters) in the units of the parameters; returns (n_levels, n_voxels,
    n_parameters, 2), NaN where a voxel was not fitted or a parameter is fixed.
    """
    from scipy.special import stdtrit  # quantiles of Student's t

    ends = np.full((len(levels), *parameters.shape, 2), np.nan)
    fitted = np.flatnonzero(np.isfinite(parameters).all(axis=1))
    if not fitted.size or is_fixed.all():
        return ends
    kernel = compiler.load(model, "intervals")
    te = np.zeros(len(protocol)) if protocol.te is None else protocol.te
    contrasts = np.stack([protocol.b_ms_per_um2, te], axis=1)
    floor = np.zeros(1) if sigma is None else np.pi / 2 * np.ravel(sigma) ** 2
    degrees = np.maximum(np.arange(len(protocol) + 1), 1)
    quantiles = np.stack([stdtrit(degrees, (1 + level) / 2) for level in levels])
    probes = stdtrit(degrees, 0.975)

    def fill_chunk(first: int) -> None:
        voxels = fitted[first : first + _CHUNK]
        chunk = np.full((len(levels), len(voxels), *ends.shape[2:]), np.nan)
        kernel.fill_intervals(
            np.ascontiguousarray(signals[voxels], dtype=np.float64),
            contrasts,
            parameters[voxels],
            box[0, voxels],
            box[1, voxels],
            floor if len(floor) == 1 else floor[voxels],
            ~is_fixed,
            quantiles,
            probes,
            int((~is_fixed).sum()),
            chunk,
        )
        ends[:, voxels] = chunk

    starts = range(0, len(fitted), _CHUNK)
    if len(starts) == 1:
        fill_chunk(0)
        return ends
    with ThreadPoolExecutor(default_threads()) as pool:
        for _ in pool.map(fill_chunk, starts):
            pass
    return ends
