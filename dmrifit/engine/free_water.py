"""Test whether free water, which a model leaves out, may have raised the T2 of a voxel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmrifit._utils.threads import run_in_chunks
from dmrifit.engine.design.precision import signal_jacobian

#: Names of the relaxation times of tissue in the built-in models.
TISSUE_T2 = ("T2", "T2t")

_WATER_D = 3.0  # µm²/ms, at body temperature
_WATER_T2 = 2000.0  # ms
#: Factor by which unnoticed water may raise a relaxation time before that is in doubt.
_LARGEST_RISE = 1.5
_CHUNK = 1024  # the derivatives of so many voxels stay in the processor's cache


def is_raised_by_water(result: Any) -> NDArray[np.bool_]:
    """
    Find voxels where free water that the signals do not exclude may raise T2 by more than half.

    A score test: how much better the signals are explained with a small share of water, and what
    that share does to the other parameters, both from the slopes at the fit, in units of the
    residuals. Shapes: returns (n_voxels,), all False where no T2 of tissue was fitted.
    """
    raised = np.zeros(len(result), bool)
    model, inputs = result.model, result.inputs
    columns = [j for j, name in enumerate(model.names) if name in TISSUE_T2]
    if inputs is None or not columns or result.is_known[columns[0]]:
        return raised
    from scipy.special import stdtrit

    protocol, j = inputs.protocol, columns[0]
    amplitude = model.names.index(next(p.name for p in model.parameters if p.is_amplitude))
    is_free = ~result.is_known
    water = np.exp(-protocol.b_ms_per_um2 * _WATER_D - protocol.te / _WATER_T2)
    fitted = np.flatnonzero(np.isfinite(result.parameters).all(axis=1))
    sigma = np.broadcast_to(0.0 if inputs.sigma is None else inputs.sigma, len(result))

    def test(chunk: slice) -> None:
        rows = fitted[chunk]
        parameters, values = result.parameters[rows], inputs.signals[rows].astype(np.float64)
        is_used = np.isfinite(values)
        spare = is_used.sum(axis=1) - np.count_nonzero(is_free)
        signal = model.signal(parameters, protocol)
        magnitude = np.sqrt(signal**2 + np.pi / 2 * sigma[rows, None] ** 2)
        with np.errstate(all="ignore"):
            factor = np.where(is_used, signal / magnitude, 0.0)
            slopes = signal_jacobian(model, parameters, protocol)[..., is_free] * factor[..., None]
            gain = (parameters[:, [amplitude]] * water - signal) * factor
            size = np.sqrt((slopes**2).sum(axis=1, keepdims=True))
            slopes = np.nan_to_num(slopes / size)
            normal = np.einsum("nij,nik->njk", slopes, slopes) + 1e-9 * np.eye(slopes.shape[-1])
            change = np.linalg.solve(normal, np.einsum("nij,ni->nj", slopes, gain)[..., None])
            rest = gain - (slopes @ change)[..., 0]
            information = (rest**2).sum(axis=1)
            residuals = np.where(is_used, values - magnitude, 0.0)
            spread = np.sqrt(result.cost[rows] / np.maximum(spare, 1) / information)
            reach = stdtrit(np.maximum(spare, 1), 0.95) * spread
            share = np.clip((rest * residuals).sum(axis=1) / information + reach, 0.0, 1.0)
            column = int(np.count_nonzero(is_free[:j]))
            shift = (change[:, column, 0] / size[:, 0, column]) * share
            # In the rate, which is closer to linear in the share than the time.
            rise = 1 + shift / parameters[:, j]
        raised[rows] = (rise > _LARGEST_RISE) & (spare > 0)

    run_in_chunks(test, len(fitted), _CHUNK, inputs.n_threads)
    return raised
