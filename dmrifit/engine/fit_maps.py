"""The table of output maps of a fit: their names, units, and values from a result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from dmrifit.engine.models import SignalModel, read_table
from dmrifit.engine.results import FitResult, FitStatus

#: Value of a status map outside the mask; inside it holds the codes of `FitStatus`.
OUTSIDE = 255

_LARGEST_FLOAT32 = np.finfo(np.float32).max


def pack_bits(flags: NDArray[np.bool_], n_parameters: int) -> NDArray[np.unsignedinteger]:
    """
    Pack the flags of each voxel into one number, bit by bit.

    Shapes: `flags` (n_voxels, n_flags), up to two for each parameter; returns (n_voxels,).
    """
    dtype = bits_type(n_parameters)
    weights = np.left_shift(dtype.type(1), np.arange(flags.shape[1], dtype=dtype))
    return np.asarray(flags @ weights)


def unpack_bits(bits: NDArray[np.unsignedinteger], n: int) -> NDArray[np.bool_]:
    """
    Unpack the first `n` flags of each voxel.

    Shapes: `bits` (...); returns (..., n).
    """
    shifts = np.arange(n, dtype=np.uint64)
    return ((np.asarray(bits).astype(np.uint64)[..., None] >> shifts) & np.uint64(1)).astype(bool)


def pack_bounds(
    at_low: NDArray[np.bool_], at_high: NDArray[np.bool_]
) -> NDArray[np.unsignedinteger]:
    """
    Pack the parameters of each voxel that ended at a bound into one number.

    Shapes: `at_low`, `at_high` (n_voxels, n_parameters); returns (n_voxels,).
    """
    n_voxels, n_parameters = at_low.shape
    pairs = np.stack([at_low, at_high], axis=2).reshape(n_voxels, 2 * n_parameters)
    return pack_bits(pairs, n_parameters)


def unpack_bounds(
    bits: NDArray[np.unsignedinteger], n: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """
    Unpack which of `n` parameters ended at their lower and upper bound.

    Shapes: `bits` (...); returns at_low, at_high (..., n).
    """
    pairs = unpack_bits(bits, 2 * n)
    return pairs[..., ::2], pairs[..., 1::2]


def bits_type(n: int) -> np.dtype:
    """Choose the smallest unsigned type, of 16 bits or more, with two bits for each parameter."""
    for dtype in map(np.dtype, (np.uint16, np.uint32, np.uint64)):
        if 2 * n <= 8 * dtype.itemsize:
            return dtype
    raise ValueError(f"a map of bounds holds at most 32 parameters, not {n}")


def pack_doubts(result: FitResult) -> NDArray[np.unsignedinteger]:
    """
    Pack the doubts about the fit of each voxel into one number.

    Bit j is parameter j, and the bit after them the disagreement of starts.
    """
    fitted = result.status != FitStatus.NOT_FITTED
    flags = np.column_stack([result.doubt, result.starts_disagree]) & fitted[:, None]
    return pack_bits(flags, len(result.names))


@dataclass(frozen=True)
class FitMap:
    """One output map of a fit, or one for each parameter."""

    name: str  # of the map and of its file; {parameter} stands for the name of each parameter
    # Section of the map in the sidecar; for maps of parameters the key of the file in theirs.
    sidecar_key: str
    # Gives (n_voxels,), or (n_voxels, n_parameters) for maps of parameters.
    values: Callable[[FitResult], NDArray]
    unit: str | None = None  # None for a map of codes
    description: str = ""  # for the sidecar
    dtype: str = "float32"  # or "bits" for two bits for each parameter
    outside: int = 0  # value outside the mask
    is_summarized: bool = True  # whether tables of regions have its statistics

    @property
    def is_per_parameter(self) -> bool:
        """Whether there is one map for each parameter."""
        return "{parameter}" in self.name

    def names(self, model: SignalModel) -> list[str]:
        """List the names of the maps for a model, in the order of the columns of `values`."""
        if self.is_per_parameter:
            return [self.name.format(parameter=name) for name in model.names]
        return [self.name]

    def describe(self, files: Mapping[str, str]) -> dict[str, str]:
        """Describe a map that is not of one parameter for the sidecar."""
        section = {}
        if self.description:
            section["Description"] = self.description
        if self.unit is not None:
            section["Units"] = self.unit
        return section | {"File": files[self.name]}


# What maps show beside attributes of a result.
_COMPUTED: dict[str, Callable[[FitResult], NDArray]] = {
    # Infinite for parameters that the signal does not show.
    "finite_errors": lambda result: np.where(
        np.isinf(result.standard_errors), np.nan, result.standard_errors
    ),
    "low_ends": lambda result: result.outer_intervals[..., 0],
    "high_ends": lambda result: result.outer_intervals[..., 1],
    "bounds": lambda result: pack_bounds(result.at_low, result.at_high),
    "doubts": pack_doubts,
}

#: Every map of a fit, in the order in which maps are written.
FIT_MAPS = tuple(
    FitMap(**row | {"values": _COMPUTED.get(row["values"]) or attrgetter(row["values"])})
    for row in read_table("fit_maps")["maps"]
)


def map_names(model: SignalModel) -> list[str]:
    """List the maps of a fit in the order in which they are written."""
    names = [name for fit_map in FIT_MAPS for name in fit_map.names(model)]
    if len(set(names)) != len(names):
        raise ValueError(
            f"model {model.name}: a parameter has the name of another map, of {', '.join(names)}; "
            "name it otherwise"
        )
    return names


def empty_maps(model: SignalModel, grid: tuple[int, int, int]) -> dict[str, NDArray]:
    """Allocate the maps of a fit, with their values outside the mask."""
    maps: dict[str, NDArray] = {}
    for fit_map in FIT_MAPS:
        is_bits = fit_map.dtype == "bits"
        dtype = bits_type(len(model.names)) if is_bits else np.dtype(fit_map.dtype)
        for name in fit_map.names(model):
            # This takes memory only where a map is written to.
            maps[name] = np.zeros(grid, dtype)
            if fit_map.outside:
                maps[name][:] = fit_map.outside
    return maps


def fill_maps(
    maps: Mapping[str, NDArray], result: FitResult, slab: slice, inside: NDArray[np.bool_]
) -> int:
    """
    Write the result of the voxels of a slab into the maps.

    Values too large for a map become NaN; returns in how many voxels a parameter did.

    Shapes: `inside` (x, y, slices), True where the voxels of the result lie.
    """
    is_too_large = np.logical_or.reduce([_too_large(column) for column in result.parameters.T])
    for fit_map in FIT_MAPS:
        values = fit_map.values(result)
        columns = values.T if fit_map.is_per_parameter else [values]
        for name, column in zip(fit_map.names(result.model), columns, strict=True):
            if name not in maps:
                continue
            if maps[name].dtype == np.float32:
                column = np.where(_too_large(column), np.nan, column)
            maps[name][:, :, slab][inside] = column
    return int(np.count_nonzero(is_too_large))


def _too_large(values: NDArray) -> NDArray[np.bool_]:
    """Tell which values are finite and too large for float32."""
    return np.asarray(np.isfinite(values) & (np.abs(values) > _LARGEST_FLOAT32))
