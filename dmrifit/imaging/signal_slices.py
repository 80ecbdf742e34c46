"""The scan and signals of whole slices, kept while an image is fitted, for its page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dmrifit.engine.protocol import Protocol, average_directions

if TYPE_CHECKING:
    from dmrifit.report.voxel_records import VoxelSignals

__all__ = ["SignalSlices"]

#: Numbers, signals and maps together, that a page holds of single voxels: about 3 MB of text.
MOST_VALUES = 1_000_000
#: From more measurements than this, those of one b and echo time are averaged for the page.
MOST_MEASUREMENTS = 40


class SignalSlices:
    """
    Signals of every n-th slice of an image, counted from the middle one.

    How many voxels there will be need not be known: n starts at 1, and doubles when more numbers
    than `most_values` would be held. If one slice has too many, none is kept.
    """

    def __init__(
        self,
        grid: tuple[int, int, int],
        protocol: Protocol,
        n_maps: int,
        *,
        most_values: int = MOST_VALUES,
    ) -> None:
        self._grid = grid
        self._protocol = self._measured = protocol
        if len(protocol) > MOST_MEASUREMENTS:
            nothing = np.empty((0, len(protocol)))
            _, self._protocol = average_directions(nothing, protocol, mean="arithmetic")
        self._most_voxels = most_values // (len(self._protocol) + n_maps)
        self._step = 1
        shortest = np.ones(len(protocol), bool)
        if protocol.te is not None:
            shortest = protocol.te == protocol.te.min()
        self._is_lowest = shortest & (protocol.b == protocol.b[shortest].min())
        #: The measurements of lowest b at the shortest echo time, on which a page shows the maps.
        self.scan = np.zeros(grid, np.float32)
        self._parts: list[tuple[NDArray[np.intp], NDArray, NDArray]] = []

    @property
    def is_averaged(self) -> bool:
        """Whether signals of one b and echo time were averaged."""
        return len(self._protocol) < len(self._measured)

    def add(
        self,
        signals: NDArray,
        sigma: float | NDArray | None,
        slab: slice,
        inside: NDArray[np.bool_],
    ) -> None:
        """
        Take the voxels of the next slab.

        Shapes: `signals` (n_voxels, n_measurements), `sigma` (n_voxels,) or a number, `inside` (x,
        y, slices), True where the voxels lie.
        """
        # What is beyond the range of float32 becomes infinite, and is not shown.
        with np.errstate(invalid="ignore", over="ignore"):
            self.scan[:, :, slab][inside] = signals[:, self._is_lowest].mean(axis=1)
        x, y, z = np.nonzero(inside)
        z = z + slab.start
        is_kept = self._is_kept(z)
        voxels = np.ravel_multi_index((x[is_kept], y[is_kept], z[is_kept]), self._grid)
        values = signals[is_kept]
        if self.is_averaged:
            values, _ = average_directions(values, self._measured, mean="arithmetic")
        level = np.broadcast_to(np.nan if sigma is None else sigma, len(signals))[is_kept]
        with np.errstate(over="ignore"):
            self._parts.append((voxels, values.astype(np.float32), level.astype(np.float32)))
        while self._n_voxels > self._most_voxels and self._step < 2 * self._grid[2]:
            self._step *= 2
            self._parts = [self._thinned(part) for part in self._parts]

    def voxels(self) -> VoxelSignals | None:
        """Give what is kept; None where one slice has too many voxels."""
        from dmrifit.report.voxel_records import VoxelSignals

        if not 0 < self._n_voxels <= self._most_voxels:
            return None
        voxels, values, level = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        rows = np.zeros(self._grid, np.int32)
        rows.flat[voxels] = np.arange(1, len(voxels) + 1)
        return VoxelSignals(
            rows, values, self._protocol, level, is_averaged=self.is_averaged, step=self._step
        )

    @property
    def _n_voxels(self) -> int:
        return sum(len(voxels) for voxels, _, _ in self._parts)

    def _is_kept(self, z: NDArray[np.intp]) -> NDArray[np.bool_]:
        return (z - self._grid[2] // 2) % self._step == 0

    def _thinned(
        self, part: tuple[NDArray[np.intp], NDArray, NDArray]
    ) -> tuple[NDArray[np.intp], NDArray, NDArray]:
        """Leave out the slices that are no longer kept."""
        # The slice changes fastest in the order of C.
        is_kept = self._is_kept(part[0] % self._grid[2])
        voxels, values, level = (array[is_kept] for array in part)
        return voxels, values, level
