"""Inputs of an estimator from an image: its measurements, their scale, rows slice by slice."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dmrifit._utils.checks import check_number
from dmrifit._utils.counts import counted
from dmrifit.cohort.participants_table import nominal_protocol
from dmrifit.cohort.patches import neighborhoods, with_signal
from dmrifit.cohort.scaling import PatientScale, reference_columns
from dmrifit.engine.means import mean_of_finite
from dmrifit.engine.protocol import Protocol, average_directions
from dmrifit.imaging.scan_info import merged_sentence
from dmrifit.io.nifti import check_magnitudes
from dmrifit.io.series import Series, WholeSlab

if TYPE_CHECKING:
    from dmrifit.report.voxel_records import VoxelSignals


#: Numbers, signals and maps together, that a page holds of single voxels: about 4 MB of text.
MOST_VALUES = 2_000_000
#: From more measurements than this, those of one b and echo time are averaged for the page.
MOST_MEASUREMENTS = 40


def source_volumes(
    series: Series,
    source: Protocol,
    protocol: Protocol | None,
    *,
    average: str | None,
    b_tolerance: float | None,
) -> Callable[[NDArray], NDArray]:
    """Give the function that selects, or averages, an estimator's measurements of an image."""
    if protocol is None:
        if average is not None or b_tolerance is not None:
            raise ValueError("average and b_tolerance need the protocol of the image")
        if series.n_measurements != len(source):
            raise ValueError(
                f"{series.name} has {counted(series.n_measurements, 'volume')}, but the trained "
                f"model needs {len(source)} ({', '.join(source.labels)}); if they are among the "
                "volumes, give the protocol of the image"
            )
        return lambda voxels: voxels
    series.check_count(protocol)
    if source.te is not None and protocol.te is None:
        raise ValueError(
            f"the trained model needs echo times ({', '.join(source.labels)}); give those of the "
            "image (--te)"
        )
    if source.te is None and protocol.te is not None:
        # An estimator without echo times matches measurements by their b-values alone.
        protocol = Protocol(protocol.b, directions=protocol.directions, name=protocol.name)
    check_number("the tolerance of b-values", b_tolerance or 0)
    tolerance = {} if b_tolerance is None else {"b_tolerance": b_tolerance}
    contrasts = protocol
    if average is not None:
        # As those of the training scans were, unless the model tells such b-values apart.
        if b_tolerance is None and np.array_equal(source.rounded(nominal=True).b, source.b):
            protocol = nominal_protocol(protocol, series.name, "give b_tolerance={:g}")
        contrasts = average_directions(np.ones(len(protocol)), protocol, mean=average)[1]
    try:
        columns = source.indices_in(contrasts, **tolerance)
    except ValueError as error:
        raise ValueError(
            f"{series.name} does not hold the measurements that the model was trained on: {error}"
        ) from None
    if sentence := merged_sentence("the model", contrasts.b[columns], source.b):
        warnings.warn(f"{series.name}: {sentence}", stacklevel=3)
    if average is None:
        return lambda voxels: voxels[:, columns]
    return lambda voxels: average_directions(voxels, protocol, mean=average)[0][:, columns]


def patient_scale(
    series: Series,
    region: NDArray[np.bool_] | None,
    select: Callable[[NDArray], NDArray],
    source: Protocol,
    scale: str | float | PatientScale | None,
    *,
    progress: bool,
) -> float:
    """Find the number that the signals are divided by, from a region (x, y, z)."""
    if scale is None:
        return 1.0
    if isinstance(scale, int | float):
        if not (np.isfinite(scale) and scale > 0):
            raise ValueError(f"scale must be a positive number, not {scale!r}")
        return float(scale)
    if isinstance(scale, str):
        raise ValueError(
            f"scale must be 'patient', a PatientScale, a number or None, not {scale!r}"
        )
    # The scale needs these columns only, so that the rest is never held in memory at once.
    columns = reference_columns(source)
    slabs = series.slabs(region, progress=progress, task="scale")
    selected = [select(voxels)[:, columns] for _, _, voxels in slabs]
    signals = np.concatenate([np.empty((0, len(columns))), *selected])
    check_magnitudes(signals, series.name)
    try:
        return scale.of(signals, source.take(columns))
    except ValueError as error:
        raise ValueError(f"{series.name}: {error}") from None


def _usable(voxels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Set voxels without signal to NaN: a regression predicts tissue from any number."""
    return np.where(with_signal(voxels)[..., None], voxels, np.nan)


def sliced_rows(
    series: Series,
    region: NDArray[np.bool_] | None,
    select: Callable[[NDArray], NDArray],
    patch_shape: tuple[int, int, int] | None,
    *,
    progress: bool,
    whole: WholeSlab | None = None,
) -> Iterator[tuple[slice, NDArray[np.bool_], NDArray[np.float64]]]:
    """
    Give the rows that an estimator predicts from, one slice of the image at a time.

    Libraries of linear algebra may round a row differently among other rows. Slices are the same
    however the image is cut into slabs, and so are the bits of their predictions. `whole` is shown
    each slab with what lies outside the region, too.

    Shapes: `region` (x, y, z); yields a slice, inside (x, y, 1), rows (n_voxels, n_source or,
    with patches, k * n_source).
    """
    reach = 0 if patch_shape is None else patch_shape[2] // 2
    slabs = series.slabs_with_margin(region, reach, progress=progress, task="predict")
    for slab, around, inside, values in slabs:
        if whole is not None:
            whole(around, values)
        if patch_shape is not None:
            x, y, n_slices, m = values.shape
            volume = _usable(select(values.reshape(-1, m)).reshape(x, y, n_slices, -1))
        for k in range(slab.start - around.start, slab.stop - around.start):
            centers = inside[:, :, k : k + 1]
            if not centers.any():
                continue
            if patch_shape is None:
                rows = _usable(select(values[:, :, k][centers[..., 0]]))
            else:
                lowest = max(0, k - reach)
                neighbors = slice(lowest, k + reach + 1)
                i, j, slices = np.nonzero(centers)
                rows = neighborhoods(
                    volume[:, :, neighbors],
                    (i, j, slices + k - lowest),
                    patch_shape,
                    region=inside[:, :, neighbors],
                )
            z = around.start + k
            yield slice(z, z + 1), centers, rows


class LowestVolume:
    """
    The mean of the measurements of lowest b and shortest echo time, on which a page shows maps.

    Shapes: `values` (x, y, z), filled outside a mask, too, so that the page shows where it lies.
    """

    def __init__(
        self, grid: tuple[int, int, int], protocol: Protocol, select: Callable[[NDArray], NDArray]
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
        #: Whether signals of one b and echo time were averaged.
        self.is_averaged = len(self._protocol) < len(protocol)
        self._counts = np.bincount(self._contrast)
        self._most_voxels = MOST_VALUES // (len(self._protocol) + n_maps)
        self._step = 1
        self._parts: list[tuple[NDArray, ...]] = []

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
            scatter = np.sqrt(mean_of_finite((values - means[:, self._contrast]) ** 2))
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
        """Give what is kept; None where nothing is, or one slice has too many voxels."""
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
