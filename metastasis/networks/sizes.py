"""Sizes of segments and outputs of networks without padding."""

from __future__ import annotations

from dmrifit._utils.counts import counted

#: Voxels to either side in which a shared path looks for what is there now in the prior scan.
PRIOR_REACH = 2


def output_size(size: int, n_layers: int = 9) -> int:
    """Give the edge of the output of a segment after convolutions of 3³ without padding."""
    n_lost = 2 * n_layers
    if size <= n_lost:
        raise ValueError(
            f"convolutions without padding ({n_layers}) leave nothing of "
            f"{counted(size, 'voxel')}; give at least {1 + n_lost}"
        )
    return size - n_lost
