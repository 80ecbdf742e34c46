"""Sizes of segments, outputs and low-resolution inputs of networks without padding."""

from __future__ import annotations

import math

from dmrifit._utils.counts import counted


def output_size(size: int, n_layers: int = 9) -> int:
    """Give the edge of the output of a segment after convolutions of 3³ without padding."""
    n_lost = 2 * n_layers
    if size <= n_lost:
        raise ValueError(
            f"convolutions without padding ({n_layers}) leave nothing of "
            f"{counted(size, 'voxel')}; give at least {1 + n_lost}"
        )
    return size - n_lost


def low_resolution_cells(size: int, factor: int, phase: int = 0) -> int:
    """Give the low-resolution cells that cover an output."""
    return math.ceil((phase + size) / factor)


def low_resolution_input(size: int, factor: int, n_layers: int = 9, *, phase: int = 0) -> int:
    """Give the low-resolution cells that a path needs for an output of the network."""
    return low_resolution_cells(size, factor, phase) + 2 * n_layers
