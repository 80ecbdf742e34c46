"""How many voxels networks without padding lose: the sizes of segments, outputs and low-resolution inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from dmrifit._utils.checks import check_number

__all__ = ["dense_products", "low_resolution_cells", "low_resolution_input", "output_size", "required_input"]


def output_size(size: int, n_layers: int = 9, *, dense_kernel: int = 1) -> int:
    """
    Give the voxels that a segment leaves after convolutions of 3³ without padding.

    Parameters
    ----------
    size : int
        Voxels of the input along an axis.
    n_layers : int, default=9
        Number of convolutions; each loses one voxel on either side.
    dense_kernel : int, default=1
        Odd width of the kernel of the first dense layer, which loses its margin too; 1 in the paper, 3 in the
        published configuration.

    Returns
    -------
    int
        Voxels of the output: 37 → 19, 45 → 27 with nine layers.

    Raises
    ------
    ValueError
        If nothing would be left, or a number is not possible.
    """
    _check(n_layers=n_layers, dense_kernel=dense_kernel, size=size)
    left = size - _lost(n_layers, dense_kernel)
    if left < 1:
        raise ValueError(f"{n_layers} convolutions without padding leave nothing of {size} voxels; give at least "
            f"{1 + _lost(n_layers, dense_kernel)}")
    return left


def required_input(size: int, n_layers: int = 9, *, dense_kernel: int = 1) -> int:
    """
    Give the voxels that a network needs for an output.

    Parameters
    ----------
    size : int
        Voxels of the output along an axis.
    n_layers : int, default=9
        Number of convolutions of 3³.
    dense_kernel : int, default=1
        As of `output_size`.

    Returns
    -------
    int
        Voxels of the input.

    Raises
    ------
    ValueError
        If a number is not possible.
    """
    _check(n_layers=n_layers, dense_kernel=dense_kernel, size=size)
    return size + _lost(n_layers, dense_kernel)


def low_resolution_cells(size: int, factor: int, phase: int = 0) -> int:
    """
    Give the low-resolution cells that cover an output.

    Parameters
    ----------
    size : int
        Voxels of the output along an axis.
    factor : int
        Voxels of a cell along an axis.
    phase : int, default=0
        Voxels of the first cell before the output begins.

    Returns
    -------
    int
        Number of cells: ceil((phase + size) / factor).

    Raises
    ------
    ValueError
        If a number is not possible.
    """
    _check(size=size, factor=factor)
    if not 0 <= phase < factor:
        raise ValueError(f"a cell of {factor} voxels has phases from 0 to {factor - 1}, not {phase}")
    return -(-(phase + size) // factor)


def low_resolution_input(size: int, factor: int, n_layers: int = 9, *, phase: int = 0) -> int:
    """
    Give the low-resolution cells that a path needs for an output of the network.

    Parameters
    ----------
    size : int
        Voxels of the output at full resolution along an axis (before a dense layer with a wider kernel).
    factor : int
        Voxels of a cell along an axis.
    n_layers : int, default=9
        Number of convolutions of 3³ of the path.
    phase : int, default=0
        Voxels of the first cell before the output begins.

    Returns
    -------
    int
        Cells of its input: for 19 voxels of output 25 at factor 3 and 22 at factor 5.

    Raises
    ------
    ValueError
        If a number is not possible.
    """
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
    Count the multiplications of DeepMedic over a whole volume, each layer computed once, margins included.

    Parameters
    ----------
    shape : sequence of 3 ints
        Voxels of the volume.
    widths : sequence of int
        Channels of the layers of each path.
    low_resolution : sequence of int
        Factors of the low-resolution paths.
    dense : sequence of int
        Channels of the dense layers.
    n_channels : int, default=1
        Of the image.
    prior_path : bool, default=False
        Whether there is a path for a prior scan.

    Returns
    -------
    int
        Multiplications, each with an addition.
    """
    n_layers = len(widths)
    paths = [(1, n_channels), *((factor, n_channels) for factor in low_resolution), *([(1, 1)] if prior_path else [])]
    total = 0
    for factor, channels in paths:
        cells = [low_resolution_cells(n, factor) for n in shape]
        for number, (before, after) in enumerate(pairwise((channels, *widths)), start=1):
            total += 27 * before * after * math.prod(n + 2 * (n_layers - number) for n in cells)
        total += widths[-1] * dense[0] * math.prod(cells)
    return total + sum(a * b for a, b in pairwise((*dense, 1))) * math.prod(shape)


def _lost(n_layers: int, dense_kernel: int) -> int:
    return 2 * n_layers + dense_kernel - 1


def _check(**numbers: int) -> None:
    for name, value in numbers.items():
        check_number(name, value, least=0 if name == "n_layers" else 1, whole=True)
    if not numbers.get("dense_kernel", 1) % 2:
        raise ValueError(f"a kernel of {numbers['dense_kernel']} voxels has no middle; give an odd dense_kernel")
