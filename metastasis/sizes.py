"""How many voxels networks without padding lose: the sizes of segments, outputs and low-resolution inputs."""

from __future__ import annotations

__all__ = ["low_resolution_cells", "low_resolution_input", "output_size", "required_input"]


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
        msg = (
            f"{n_layers} convolutions without padding leave nothing of {size} voxels; give at least "
            f"{1 + _lost(n_layers, dense_kernel)}"
        )
        raise ValueError(msg)
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
        msg = f"a cell of {factor} voxels has phases from 0 to {factor - 1}, not {phase}"
        raise ValueError(msg)
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


def _lost(n_layers: int, dense_kernel: int) -> int:
    return 2 * n_layers + dense_kernel - 1


def _check(**numbers: int) -> None:
    for name, value in numbers.items():
        least = 0 if name == "n_layers" else 1
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            msg = f"{name} must be a whole number of at least {least}, not {value!r}"
            raise ValueError(msg)
    if not numbers.get("dense_kernel", 1) % 2:
        msg = f"a kernel of {numbers['dense_kernel']} voxels has no middle; give an odd dense_kernel"
        raise ValueError(msg)
