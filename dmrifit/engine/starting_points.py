"""The dictionary of signals from which the starting points of a fit are chosen."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from dmrifit.engine import exact_math
from dmrifit.engine.models import Parameter, SignalModel
from dmrifit.engine.protocol import Protocol

__all__ = ["Dictionary", "to_inner"]

_N_ATOMS = {0: (), 1: (24,), 2: (12, 8), 3: (5, 5, 6)}

# Where in its range the fast component starts, so that the starts together end in the best minimum most often.
_FAST = {1: (0.6,), 2: (0.13, 0.91), 3: (0.04, 0.53, 0.91)}


class Dictionary:
    """
    Signals of a grid of parameters, with an amplitude of one.

    For a signal f·g₁ + (1 − f)·g₀ the atoms of g₁ come first, one for each start, and every one of
    them is paired with every atom of g₀; two non-negative amplitudes then give S0 and f. Otherwise
    the atoms are cut into as many strata as there are starts, and each start takes the best of
    one.

    Parameters
    ----------
    kernel : module
        The model's kernel, for its form.
    model : SignalModel
        The model.
    protocol : Protocol
        The measurements.
    low, high : ndarray of shape (n_parameters,)
        The box to spread the grid over.
    fixed : mapping of str to ndarray
        Parameters that are not searched: of no dimension, or one value for each voxel.
    turn_up : float
        Largest K·D at which the signal still falls, or infinity.
    n_starts : int
        How many starts are wanted.
    """

    def __init__(
        self,
        kernel: ModuleType,
        model: SignalModel,
        protocol: Protocol,
        low: NDArray,
        high: NDArray,
        fixed: Mapping[str, NDArray],
        turn_up: float,
        n_starts: int,
    ) -> None:
        self._kernel, self._model, self._protocol = kernel, model, protocol
        self._low, self._high, self._turn_up = low, high, turn_up
        apart = (kernel.MIXTURE, kernel.AMPLITUDE)
        fast = [j for j in range(len(low)) if j in kernel.FIRST]
        slow = [j for j in range(len(low)) if j not in apart and j not in fast]
        grids = {}
        for j, count in zip(slow, _N_ATOMS.get(len(slow), (3, 3, 3, 3)), strict=False):
            grids[j] = self._grid(j, (np.arange(count) + 0.5) / count)
        for j in fast[:1]:
            grids[j] = self._grid(
                j, np.array(_FAST.get(n_starts, (np.arange(n_starts) + 0.5) / n_starts))
            )
        for j in (*fast, *slow):
            grids.setdefault(j, self._grid(j, np.array([0.5])))
            # Values that differ between voxels are searched like a free parameter: a start must not depend on
            # which voxels are fitted together.
            if np.ndim(fixed.get(model.names[j], [])) == 0:
                grids[j] = np.atleast_1d(fixed[model.names[j]])
            elif kernel.AMPLITUDE < 0 and model.parameters[j].is_amplitude:
                grids[j] = np.array([1.0])
        first, first_q = self._atoms(fast, grids, share=1.0)
        if kernel.MIXTURE < 0:
            first, first_q = first[:0], first_q[:0]
        second, second_q = self._atoms(slow, grids, share=0.0)
        self.n_first = len(first)
        self.atoms = np.concatenate([first, second])
        self.atoms_q = np.concatenate([first_q, second_q])
        # Not by BLAS, whose threads would keep spinning.
        self.gram = np.einsum("im,jm->ij", self.atoms, self.atoms)
        self.constants = self._constants()
        self.n_strata = self.n_first or min(n_starts, len(second))

    def _grid(self, j: int, at: NDArray) -> NDArray:
        return _spread(self._model.parameters[j], self._low[j], self._high[j], at, self._protocol)

    def _atoms(
        self, group: list[int], grids: dict[int, NDArray], *, share: float
    ) -> tuple[NDArray, NDArray]:
        """Signals and inner coordinates of a grid; what the component does not have is NaN in the first one."""
        columns = np.meshgrid(*(grids[j] for j in group), indexing="ij")
        points = np.ones((columns[0].size if columns else 1, len(self._low)))
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
        signals = self._model.signal_for_starts(points, self._protocol)
        usable = np.isfinite(signals).all(axis=1) & (np.abs(signals).max(axis=1) < 1e6)
        if not usable.any():
            usable[:] = True
            signals = np.zeros_like(signals)
        return signals[usable], inner[usable]

    def _constants(self) -> NDArray:
        """Compute what rating a pair of atoms, or one, needs beside their products with the data."""
        own = np.diag(self.gram)
        v, t = own[: self.n_first, None], own[None, self.n_first :]
        crossed = self.gram[: self.n_first, self.n_first :]
        if not self.n_first:
            v, crossed = np.ones((1, 1)), np.zeros((1, t.shape[1]))
        determinant = v * t - crossed**2
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = np.where(determinant > 1e-9 * v * t, 1.0 / determinant, 0.0)
            inverse_t, inverse_v = (np.where(x > 0, 1.0 / x, 0.0) for x in (t, v))
        first = t * scale if self.n_first else t
        parts = np.broadcast_arrays(
            first,
            crossed * scale,
            v * scale,
            inverse_t,
            inverse_v,
            np.arange(t.shape[1], dtype=float)[None, :],
        )
        return np.ascontiguousarray(np.stack(parts, axis=-1))


def to_inner(values: NDArray, forms: tuple[str, ...]) -> NDArray:
    """
    Convert parameters to the coordinates of the search.

    Shapes: `values` (..., n_parameters); returns (..., n_parameters).
    """
    inner = np.array(values, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        for j, form in enumerate(forms):
            if form == "log":
                inner[..., j] = exact_math.log(np.maximum(inner[..., j], 0.0))
            elif form == "inverse":
                inner[..., j] = 1.0 / np.maximum(inner[..., j], 0.0)
    return inner


def _spread(
    parameter: Parameter, low: float, high: float, at: NDArray, protocol: Protocol
) -> NDArray:
    """Place values, given as shares of the way, in the part of the bounds that the protocol can tell apart."""
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
        low = low if np.isfinite(low) else min(high, 0.0) - 1.0
        high = high if np.isfinite(high) else max(low, 0.0) + 1.0
        geometric = low > 0 and high / low > 3
    return low * exact_math.power(high / low, at) if geometric else low + (high - low) * at
