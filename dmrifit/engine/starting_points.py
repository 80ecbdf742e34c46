"""The dictionary of signals from which the starting points of a fit are chosen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from dmrifit.engine.kernels.layout import Atoms
from dmrifit.engine.means import rounded
from dmrifit.engine.models import Parameter, SignalModel
from dmrifit.engine.protocol import Protocol

# Grid points of each parameter of the slow component, by number of such parameters.
_N_ATOMS = {0: (), 1: (24,), 2: (12, 8), 3: (5, 5, 6)}

# Starts of the fast component as shares of its range, by number of starts; these end in the best
# minimum most often.
_FAST = {1: (0.6,), 2: (0.13, 0.91), 3: (0.04, 0.53, 0.91)}


class Dictionary:
    """
    Signals of a grid of parameters in the box `low` to `high`, with an amplitude of one.

    For a signal f·g₁ + (1 − f)·g₀ the atoms of g₁ come first, one for each start, and every one of
    them is paired with every atom of g₀; two non-negative amplitudes then give S0 and f. Otherwise
    the atoms are cut into as many strata as there are starts, and each start takes the best of
    one. `fixed` are the parameters that have one value in all voxels, by name: values that differ
    between voxels are searched like a free parameter, because a start must not depend on which
    voxels are fitted together. `turn_up` is the largest K·D at which the signal still falls, or
    infinity.
    """

    def __init__(
        self,
        kernel: ModuleType,
        model: SignalModel,
        protocol: Protocol,
        low: Sequence[float],
        high: Sequence[float],
        fixed: Iterable[tuple[str, float]],
        turn_up: float,
        n_starts: int,
    ) -> None:
        self._kernel = kernel
        self._model = model
        self._protocol = protocol
        self._low = low
        self._high = high
        self._turn_up = turn_up
        fast = [j for j in range(len(low)) if j in kernel.FIRST]
        linear = (kernel.MIXTURE, kernel.AMPLITUDE)
        slow = [j for j in range(len(low)) if j not in linear and j not in fast]
        grids = self._grids(fast, slow, dict(fixed), n_starts)
        first, first_q = self._atoms(fast, grids, share=1.0)
        if kernel.MIXTURE < 0:
            first, first_q = first[:0], first_q[:0]
        second, second_q = self._atoms(slow, grids, share=0.0)
        signals = np.concatenate([first, second])
        # Not by BLAS, whose threads would keep spinning.
        gram = np.einsum("im,jm->ij", signals, signals)
        self.atoms = Atoms(
            signals,
            np.concatenate([first_q, second_q]),
            gram,
            _constants(gram, len(first)),
            len(first),
        )
        self.n_strata = len(first) or min(n_starts, len(second))

    def _grids(
        self, fast: list[int], slow: list[int], fixed: Mapping[str, float], n_starts: int
    ) -> dict[int, NDArray]:
        """Choose the grid values of each nonlinear parameter, by its position."""
        grids = {}
        for j, count in zip(slow, _N_ATOMS.get(len(slow), (3, 3, 3, 3)), strict=False):
            grids[j] = self.spread(j, _centers(count))
        for j in fast[:1]:
            grids[j] = self.spread(j, np.array(_FAST.get(n_starts, _centers(n_starts))))
        for j in (*fast, *slow):
            parameter = self._model.parameters[j]
            grids.setdefault(j, self.spread(j, np.array([0.5])))
            if parameter.name in fixed:
                grids[j] = np.atleast_1d(fixed[parameter.name])
            elif self._kernel.AMPLITUDE < 0 and parameter.is_amplitude:
                grids[j] = np.array([1.0])
        return grids

    def spread(self, j: int, shares: NDArray) -> NDArray:
        """Convert shares (0 to 1) to values of parameter `j` that the protocol tells apart."""
        parameter = self._model.parameters[j]
        with np.errstate(over="ignore"):
            return _spread(parameter, self._low[j], self._high[j], shares, self._protocol)

    def _atoms(
        self, group: list[int], grids: dict[int, NDArray], *, share: float
    ) -> tuple[NDArray, NDArray]:
        """
        Compute the signals and inner coordinates of a grid.

        Coordinates of parameters that the first component does not have are NaN.
        """
        columns = np.meshgrid(*(grids[j] for j in group), indexing="ij")
        n_points = columns[0].size if columns else 1
        points = np.ones((n_points, len(self._low)))
        for j, column in zip(group, columns, strict=True):
            points[:, j] = column.ravel()
        if self._kernel.MIXTURE >= 0:
            points[:, self._kernel.MIXTURE] = share
        inner = to_inner(points, self._kernel.FORMS)
        k, d = self._kernel.KURTOSIS, self._kernel.DIFFUSIVITY
        if np.isfinite(self._turn_up) and k in group:
            limit = np.minimum(self._high[k], self._turn_up / points[:, d])
            points[:, k] = np.minimum(points[:, k], limit)
            inner[:, k] = points[:, k] * self._high[k] / limit
        if share:
            inner[:, [j for j in range(len(self._low)) if j not in group]] = np.nan
        signals = rounded(self._model.signal(points, self._protocol))
        usable = np.isfinite(signals).all(axis=1) & (np.abs(signals).max(axis=1) < 1e6)
        if not usable.any():
            usable[:] = True
            signals = np.zeros_like(signals)
        return signals[usable], inner[usable]


def _constants(gram: NDArray, n_first: int) -> NDArray:
    """Compute the constants by which pairs of atoms, or single ones, are rated."""
    squares = np.diag(gram)
    v = squares[:n_first, None]
    t = squares[None, n_first:]
    crossed = gram[:n_first, n_first:]
    if not n_first:
        v = np.ones((1, 1))
        crossed = np.zeros((1, t.shape[1]))
    determinant = v * t - crossed**2
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.where(determinant > 1e-9 * v * t, 1.0 / determinant, 0.0)
        inverse_t = np.where(t > 0, 1.0 / t, 0.0)
        inverse_v = np.where(v > 0, 1.0 / v, 0.0)
    first = t * scale if n_first else t
    constants = np.broadcast_arrays(
        first,
        crossed * scale,
        v * scale,
        inverse_t,
        inverse_v,
        np.arange(t.shape[1], dtype=float)[None, :],
    )
    return np.ascontiguousarray(np.stack(constants, axis=-1))


def to_inner(values: NDArray, forms: tuple[str, ...]) -> NDArray:
    """
    Convert parameters to the coordinates of the search.

    Shapes: `values` (..., n_parameters); returns (..., n_parameters).
    """
    inner = np.array(values, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        for j, form in enumerate(forms):
            if form == "log":
                inner[..., j] = _logarithm(inner[..., j])
            elif form == "inverse":
                inner[..., j] = 1.0 / np.maximum(inner[..., j], 0.0)
    return inner


@partial(np.vectorize, otypes=[float])
def _logarithm(x: float) -> float:
    """Compute a logarithm by Python, which has the same bits on every processor."""
    return math.log(x) if x > 0 else -math.inf


def _centers(count: int) -> NDArray:
    """Divide a range of one into equal parts, and return their centers."""
    return (np.arange(count) + 0.5) / count


def _spread(
    parameter: Parameter, low: float, high: float, shares: NDArray, protocol: Protocol
) -> NDArray:
    """Convert shares (0 to 1) to values in the range that the protocol is sensitive to."""
    if low == high:
        return np.array([low])
    if parameter.unit == "ms" and protocol.te is not None:
        low = min(max(low, protocol.te.min() / 5.0), high)
        high = max(min(high, protocol.te.max() * 10.0), low)
    if parameter.unit == "µm²/ms" and protocol.b.max() > 0:
        b = protocol.b_ms_per_um2
        low = min(max(low, 0.1 / b.max()), high)
        high = max(min(high, 3.0 / b[b > 0].min()), low)
        geometric = low > 0
    else:
        if not np.isfinite(low):
            low = min(high, 0.0) - 1.0
        if not np.isfinite(high):
            high = max(low, 0.0) + 1.0
        geometric = low > 0 and high / low > 3
    return rounded(low * (high / low) ** shares) if geometric else low + (high - low) * shares
