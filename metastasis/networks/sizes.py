"""Sizes of segments, outputs and low-resolution inputs of networks without padding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from dmrifit._utils.checks import check_number

__all__ = [
    "dense_products",
    "low_resolution_cells",
    "low_resolution_input",
    "output_size",
    "required_input",
]


def output_size(size: int, n_layers: int = 9, *, dense_kernel: int = 1) -> int:
    """Give the edge of the output of a segment after convolutions of 3³ without padding."""
    _check(n_layers=n_layers, dense_kernel=dense_kernel, size=size)
    n_lost = _lost(n_layers, dense_kernel)
    if size <= n_lost:
        raise ValueError(
            f"{n_layers} convolutions without padding leave nothing of {size} voxels; give at "
            f"least {1 + n_lost}"
        )
    return size - n_lost


def required_input(size: int, n_layers: int = 9, *, dense_kernel: int = 1) -> int:
    """Give the voxels that a network needs for an output."""
    _check(n_layers=n_layers, dense_kernel=dense_kernel, size=size)
    return size + _lost(n_layers, dense_kernel)


def low_resolution_cells(size: int, factor: int, phase: int = 0) -> int:
    """Give the low-resolution cells that cover an output."""
    _check(size=size, factor=factor)
    if not 0 <= phase < factor:
        raise ValueError(
            f"a cell of {factor} voxels has phases from 0 to {factor - 1}, not {phase}"
        )
    return math.ceil((phase + size) / factor)


def low_resolution_input(size: int, factor: int, n_layers: int = 9, *, phase: int = 0) -> int:
    """Give the low-resolution cells that a path needs for an output of the network."""
    _check(n_layers=n_layers)
    return low_resolution_cells(size, factor, phase) + 2 * n_layers


def dense_products(
    shape: Sequence[int],
    widths: Sequence[int],
    low_resolution: Sequence[int],
    dense: Sequence[int],
    *,
    n_channels: int = 1,
    prior_path: bool = False,
) -> int:
    """
    Count the multiplications of DeepMedic over a whole volume, margins included.

    Each layer is computed once.
    """
    n_layers = len(widths)
    # Factor and channels of each path.
    paths = [(1, n_channels)]
    paths += [(factor, n_channels) for factor in low_resolution]
    if prior_path:
        paths.append((1, 1))
    total = 0
    for factor, channels in paths:
        cells = [low_resolution_cells(n, factor) for n in shape]
        for number, (before, after) in enumerate(pairwise((channels, *widths)), start=1):
            # Each layer computes the margin that the later ones lose.
            total += 27 * before * after * math.prod(n + 2 * (n_layers - number) for n in cells)
        total += widths[-1] * dense[0] * math.prod(cells)
    products_per_voxel = sum(a * b for a, b in pairwise((*dense, 1)))
    return total + products_per_voxel * math.prod(shape)


def _lost(n_layers: int, dense_kernel: int) -> int:
    return 2 * n_layers + dense_kernel - 1


def _check(**numbers: int) -> None:
    for name, value in numbers.items():
        least = 0 if name == "n_layers" else 1
        check_number(name, value, least=least, whole=True)
    if not numbers.get("dense_kernel", 1) % 2:
        raise ValueError(
            f"a kernel of {numbers['dense_kernel']} voxels has no middle; give an odd dense_kernel"
        )
