"""The scan and signals of whole slices, kept while an image is fitted, for its page."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dmrifit.cohort.scaling import reference_columns
from dmrifit.engine.protocol import Protocol, average_directions

if TYPE_CHECKING:
    from dmrifit.report.voxel_records import VoxelSignals

#: Numbers, signals and maps together, that a page holds of single voxels: about 4 MB of text.
MOST_VALUES = 2_000_000
#: From more measurements than this, those of one b and echo time are averaged for the page.
MOST_MEASUREMENTS = 40


class LowestVolume:
    """
    The measurements of lowest b at the shortest echo time, on which a page shows the maps.

    Shapes: `values` (x, y, z), of whole slices: what lies around a mask tells where it lies.
    """

    def __init__(
        self,
        grid: tuple[int, int, int],
        protocol: Protocol,
        select: Callable[[NDArray], NDArray],
    ) -> None:
        self.values = np.zeros(grid, np.float32)
        self._columns = reference_columns(protocol)
        self._select = select

    def add(self, slab: slice, signals: NDArray) -> None:
        """Take a slab of signals (x, y, slices, m), of which `select` gives the measurements."""
        voxels = self._select(signals.reshape(-1, signals.shape[-1]))
        # What is beyond the range of float32 becomes infinite, and is not shown.
        with np.errstate(invalid="ignore", over="ignore"):
            mean = voxels[:, self._columns].mean(axis=1)
            self.values[:, :, slab] = mean.reshape(signals.shape[:3])


class SignalSlices:
    """
    Signals of every n-th slice of an image, counted from the middle one.

    How many voxels there will be need not be known: n starts at 1, and doubles when more numbers
    than `MOST_VALUES` would be held. If one slice has too many, none is kept.
    """

    def __init__(self, grid: tuple[int, int, int], protocol: Protocol, n_maps: int) -> None:
        self._grid = grid
        self._protocol = self._measured = protocol
        self._contrast = np.arange(len(protocol))
        if len(protocol) > MOST_MEASUREMENTS:
            # Each row holds one measurement, which counts in the mean of its contrast alone.
            weights, self._protocol = average_directions(
                np.eye(len(protocol)), protocol, mean="arithmetic"
            )
            self._contrast = weights.argmax(axis=1)
        self._counts = np.bincount(self._contrast)
        self._most_voxels = MOST_VALUES // (len(self._protocol) + n_maps)
        self._step = 1
        self._parts: list[tuple[NDArray, ...]] = []

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
        """Take the voxels of the next slab, which lie where `inside` (x, y, slices) is True."""
        x, y, z = np.nonzero(inside)
        z = z + slab.start
        is_kept = self._is_kept(z)
        voxels = np.ravel_multi_index((x[is_kept], y[is_kept], z[is_kept]), self._grid)
        values = signals[is_kept]
        scatter = np.zeros(len(values))
        if self.is_averaged:
            means, _ = average_directions(values, self._measured, mean="arithmetic")
            scatter = _rms(values - means[:, self._contrast])
            values = means
        level = np.broadcast_to(np.nan if sigma is None else sigma, len(signals))[is_kept]
        # What is beyond the range of float32 becomes infinite, and is not shown.
        with np.errstate(over="ignore"):
            numbers = (values, level, scatter)
            self._parts.append((voxels, *(array.astype(np.float32) for array in numbers)))
        while self._n_voxels > self._most_voxels and self._step < 2 * self._grid[2]:
            self._step *= 2
            # The slice changes fastest in the order of C.
            kept = [self._is_kept(part[0] % self._grid[2]) for part in self._parts]
            self._parts = [
                tuple(array[rows] for array in part)
                for part, rows in zip(self._parts, kept, strict=True)
            ]

    def voxels(self) -> VoxelSignals | None:
        """Give what is kept; None where one slice has too many voxels."""
        from dmrifit.report.voxel_records import VoxelSignals

        if not 0 < self._n_voxels <= self._most_voxels:
            return None
        parts = zip(*self._parts, strict=True)
        voxels, values, level, scatter = (np.concatenate(part) for part in parts)
        rows = np.zeros(self._grid, np.int32)
        rows.flat[voxels] = np.arange(1, len(voxels) + 1)
        return VoxelSignals(
            rows,
            values,
            self._protocol,
            level,
            scatter=scatter,
            counts=self._counts,
            is_averaged=self.is_averaged,
            step=self._step,
        )

    @property
    def _n_voxels(self) -> int:
        return sum(len(part[0]) for part in self._parts)

    def _is_kept(self, z: NDArray[np.intp]) -> NDArray[np.bool_]:
        return (z - self._grid[2] // 2) % self._step == 0


def _rms(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give the root mean square of what is finite in each row, NaN where nothing is."""
    is_finite = np.isfinite(differences)
    squares = np.square(differences, where=is_finite, out=np.zeros_like(differences))
    with np.errstate(invalid="ignore"):
        return np.sqrt(squares.sum(axis=1) / is_finite.sum(axis=1))
