"""Confidence intervals of fitted parameters, also of those that ended at a bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dmrifit._utils.threads import run_in_chunks
from dmrifit.engine.kernels import compiler
from dmrifit.engine.kernels.layout import LANES, ROUNDING, UNROLL, Contrasts, zeros_of_lanes
from dmrifit.engine.models import SignalModel
from dmrifit.engine.protocol import Protocol

_CHUNK = 4096


@dataclass(frozen=True)
class FitInputs:
    """
    What a fit was made from, kept for intervals and doubts.

    Shapes: `signals` (n_voxels, n_measurements), the user's array, or a copy where values had to
    be left out; `sigma` (1 or n_voxels,), the noise in a floor or a likelihood of magnitudes, 0
    where there is no floor; `weights` (n_measurements,).
    """

    signals: NDArray
    protocol: Protocol
    sigma: NDArray[np.float64] | None
    turn_up: float = np.inf
    weights: NDArray[np.float64] | None = None
    n_threads: int | None = None
    noise: float | NDArray | None = None  # standard deviation in `signals`, where it was measured
    is_denoised: bool = False  # of less noise than this, which residuals hold too little of


def parameter_intervals(
    inputs: FitInputs,
    model: SignalModel,
    parameters: NDArray[np.float64],
    bounds: Sequence[tuple[float, float]],
    is_fixed: NDArray[np.bool_],
    levels: Sequence[float],
) -> NDArray[np.float64]:
    """
    Compute the low and high end of every fitted parameter of every voxel, for each level.

    All parameters stay in the normal equations, at a bound or not, with the box as a weak prior;
    shares, rates and relaxation times are taken in coordinates in which the signal is close to
    linear, and one point a side is probed for the curvature that remains.

    Shapes: returns (n_levels, n_voxels, n_parameters, 2), NaN where a voxel was not fitted or a
    parameter is fixed.
    """
    from scipy.special import stdtrit  # quantiles of Student's t

    ends_of_box = np.array(bounds).T
    # Slabs of images stay as they are; only chunks of them are copied.
    signals = np.asarray(inputs.signals)
    if not np.issubdtype(signals.dtype, np.floating):
        signals = signals.astype(float)
    protocol, sigma, weights = inputs.protocol, inputs.sigma, inputs.weights
    if not len(parameters) or is_fixed.all():
        return np.full((len(levels), *parameters.shape, 2), np.nan)
    kernel = compiler.load(model)
    n = kernel.N
    ends = np.empty((len(levels), *parameters.shape, 2))
    parameters = np.require(parameters, np.float64, ["C", "W"])
    contrasts = Contrasts.of(protocol.b_ms_per_um2, protocol.te)
    floor = np.zeros(1) if sigma is None else np.pi / 2 * np.ravel(sigma) ** 2
    known = sigma if inputs.noise is None else np.atleast_1d(inputs.noise)
    least = np.full(1, np.nan) if known is None else np.where(known > 0, known, np.nan) / ROUNDING
    # The last one is of a noise that is known, where there are no residuals.
    degrees = np.append(np.maximum(np.arange(len(protocol) + 1), 1), 1e9)
    quantiles = np.stack([stdtrit(degrees, (1 + level) / 2) for level in levels])
    probes = stdtrit(degrees, 0.975)
    steps = kernel.INTERVALS
    common = np.zeros(steps.turn_up + 1)
    common[steps.free : steps.free + n] = ~is_fixed
    common[steps.bounds : steps.bounds + 2 * n] = ends_of_box.ravel()
    common[steps.turn_up] = inputs.turn_up
    n_tabulated = kernel.N_BY_B * len(contrasts.b) + kernel.N_BY_TE * len(contrasts.te)
    # Carried back from their coordinates, ends at a bound may lie a rounding error outside.
    is_amplitude = [parameter.is_amplitude for parameter in model.parameters]
    low, high = np.where(is_amplitude, [[-np.inf], [np.inf]], ends_of_box)[:, :, None]
    n_padded = len(contrasts.pairs) // 2 * LANES
    roots = np.ones(len(protocol)) if weights is None else np.sqrt(weights)

    def fill_chunk(rows: slice) -> None:
        # A copy that jitted code may take for writable, or it would be compiled once more.
        chunk = np.require(signals[rows], np.float64, ["C", "W"])
        work = (
            zeros_of_lanes(steps.layout.n_rows, LANES),
            common.copy(),
            zeros_of_lanes(n_padded),
            zeros_of_lanes(n_padded),
            zeros_of_lanes(max(n_tabulated, (n + 1) * UNROLL) * LANES),
            np.zeros(kernel.SIDE + 1, np.int64),
        )
        kernel.fill_intervals(
            chunk,
            rows.start,
            roots,
            contrasts,
            parameters,
            floor,
            bool(floor.any()),
            least,
            inputs.is_denoised,
            int((~is_fixed).sum()),
            quantiles,
            probes,
            work,
            np.empty(len(chunk), np.int64),
            ends,
        )
        np.clip(ends[:, rows], low, high, out=ends[:, rows])

    run_in_chunks(fill_chunk, len(parameters), _CHUNK, inputs.n_threads)
    return ends
