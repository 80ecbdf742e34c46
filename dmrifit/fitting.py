"""Voxelwise fits of signal models: bounded nonlinear least squares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit.models import MODELS, SignalModel
from dmrifit.protocol import Protocol

__all__ = ["FitResult", "FitStatus", "fit_voxels"]


class FitStatus(IntEnum):
    """
    How the fit of a voxel ended.

    `NOT_FITTED` means that the voxel has no usable signal; everything about it is NaN.
    """

    CONVERGED = 0
    AT_BOUND = 1
    NOT_CONVERGED = 2
    NOT_FITTED = 3


@dataclass(frozen=True)
class FitResult:
    """Interim."""

    model: SignalModel
    parameters: NDArray[np.float64]
    standard_errors: NDArray[np.float64]
    cost: NDArray[np.float64]
    status: NDArray[np.uint8]
    n_iter: NDArray[np.int32]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters, in the order of columns."""
        return self.model.names

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        return self.parameters[:, self.names.index(name)]


def fit_voxels(
    signals: ArrayLike,
    protocol: Protocol,
    model: str | SignalModel,
    *,
    method: str = "nlls",
    bounds: Mapping | str | None = None,
    fixed: Mapping | None = None,
    sigma: ArrayLike | None = None,
    regularization: float | None = None,
    n_starts: int | str = "auto",
    n_threads: int | None = None,
) -> FitResult:
    """Interim."""
    model = MODELS[model] if isinstance(model, str) else model
    y = np.asarray(signals, dtype=float)
    n, p = len(y), len(model.names)
    fixed = fixed or {}
    top = np.nanmax(np.where(np.isfinite(y), y, np.nan), axis=1, initial=-np.inf)
    with np.errstate(invalid="ignore"):
        bad = ~(top > 0) | (y < 0).any(axis=1) | (np.ptp(y, axis=1) == 0)
    weight = np.isfinite(y)
    z = np.where(weight, y, 0.0) / np.where(bad, 1, top)[:, None]
    low, high = (np.array(x, dtype=float) for x in zip(*model.bounds, strict=True))
    high = np.where(np.isinf(high), 1e3, high)
    floor = np.zeros(n) if sigma is None else np.sqrt(np.pi / 2) * np.broadcast_to(sigma, n) / np.where(bad, 1, top)

    def residual(q: NDArray, w: NDArray, z: NDArray, nf: NDArray) -> NDArray:
        return w * (z - np.sqrt(model.signal(q, protocol) ** 2 + nf[:, None] ** 2))

    best_q = np.full((n, p), np.nan)
    best_c = np.full(n, np.inf)
    rng = np.random.default_rng(0)
    for _ in range(4):
        u = rng.uniform(0.15, 0.5, (n, p))
        q = low + (high - low) * u
        q[:, 0] = 1.5
        lam = np.full(n, 1e-2)
        r = residual(q, weight, z, floor)
        c = (r**2).sum(1)
        for _ in range(60):
            j = np.empty((n, z.shape[1], p))
            for k in range(p):
                h = 1e-6 * np.maximum(1e-3, np.abs(q[:, k]))
                qk = q.copy()
                qk[:, k] += h
                j[:, :, k] = (residual(qk, weight, z, floor) - r) / h[:, None]
                if model.names[k] in fixed:
                    j[:, :, k] = 0
            a = np.einsum("nmi,nmj->nij", j, j)
            g = np.einsum("nmi,nm->ni", j, r)
            out = ((q <= low) & (g > 0)) | ((q >= high) & (g < 0))
            g[out] = 0
            a[out[:, :, None] | out[:, None, :]] = 0
            d = np.einsum("nii->ni", a)
            a[:, np.arange(p), np.arange(p)] = d * (1 + lam[:, None]) + 1e-12
            t = np.clip(q - np.linalg.solve(a, g[..., None])[..., 0], low, high)
            for name, value in fixed.items():
                t[:, model.names.index(name)] = value
            rt = residual(t, weight, z, floor)
            ct = (rt**2).sum(1)
            ok = ct < c
            q[ok], r[ok], c[ok] = t[ok], rt[ok], ct[ok]
            lam = np.where(ok, lam * 0.3, lam * 4)
        better = c < best_c
        best_q[better], best_c[better] = q[better], c[better]
    at_bound = (np.isclose(best_q, low) | np.isclose(best_q, high)).any(axis=1)
    best_q[:, 0] *= top
    best_q[bad] = np.nan
    cost = np.where(bad, np.nan, best_c * top**2)
    status = np.where(bad, FitStatus.NOT_FITTED, np.where(at_bound, FitStatus.AT_BOUND, FitStatus.CONVERGED))
    return FitResult(model, best_q, np.full((n, p), np.nan), cost, status.astype(np.uint8), np.zeros(n, np.int32))
