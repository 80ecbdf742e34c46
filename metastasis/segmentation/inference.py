"""Logits of whole volumes: DeepMedic slab by slab, and U-Nets in a box around the brain."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import find_objects
from torch.nn import functional

from metastasis.networks import architectures
from metastasis.scans.network_inputs import PRIOR_REACH
from metastasis.segmentation.sampling import take_cells, take_window

#: Numbers that the widest layer of a slab holds, about 128 MiB of single precision.
SLAB_NUMBERS = 2**25

_MARGIN = 8  # voxels around the brain that a U-Net sees
_OUTSIDE = -20.0  # logit where there is no brain

Case = Mapping[str, NDArray[Any]]


def dense_logits(
    network: architectures.DeepMedic, case: Case, *, slab_numbers: int = SLAB_NUMBERS
) -> NDArray[np.float32]:
    """
    Give the logits of all voxels of a volume, with every layer of every path computed once.

    The volume passes through each path in slabs along its first axis; a layer keeps the two planes
    that the next slab needs, so that memory grows with a slab and not with the volume. What lies
    beyond the border has the value of the outermost voxel next to it, at every resolution.

    Shapes: `case` has the scan and its prior (channels, x, y, z), and the
    `cell_means` of it; returns (x, y, z).
    """
    shape = case["image"].shape[1:]
    reach = PRIOR_REACH if network.shared else 0
    has_prior = network.prior_path and (not network.validity or bool(case["valid"]))
    logits = np.empty(shape, dtype=np.float32)
    with torch.inference_mode():
        # Channels last: the convolutions need not lay their inputs out anew.
        network = architectures.folded(network).to(memory_format=torch.channels_last_3d)
        features_of = partial(_features, network, slab_numbers)
        # Low-resolution paths have few cells, so their features are held whole.
        low = {}
        for factor in network.low_resolution:
            name = f"low_{factor}"
            seen = take_cells(case[name], factor, (0, 0, 0), shape, network.n_layers)
            slabs = [_pointwise(network.merges[name], x) for x in features_of(name, seen)]
            low[factor] = torch.cat(slabs, dim=2)
        if has_prior:
            path = "normal" if network.shared else "prior"
            prior_slabs = features_of(path, _widened(case["prior"], network.n_layers + reach))
            prior_planes = next(prior_slabs)
        first_plane = 0
        for features in features_of("normal", _widened(case["image"], network.n_layers)):
            merged = _pointwise(network.merges["normal"], features)
            n_planes = merged.shape[2]
            end_plane = first_plane + n_planes
            if has_prior:
                # Planes of a wider prior begin `reach` planes before the scan.
                while prior_planes.shape[2] < n_planes + 2 * reach:
                    prior_planes = torch.cat([prior_planes, next(prior_slabs)], dim=2)
                prior_slab = prior_planes[:, :, : n_planes + 2 * reach]
                prior_planes = prior_planes[:, :, n_planes:]
                if network.shared:
                    prior_slab, change = architectures.change_features(features, prior_slab)
                    merged += _pointwise(network.merges["change"], change)
                merged += _pointwise(network.merges["prior"], prior_slab)
                if network.validity:
                    merged += network.valid_weight[:, None, None, None]
            for factor, cells in low.items():
                # A slab may begin inside of a low-resolution cell.
                first_cell, phase = divmod(first_plane, factor)
                slab_cells = cells[:, :, first_cell : math.ceil(end_plane / factor)]
                voxels = functional.interpolate(
                    slab_cells, scale_factor=float(factor), mode="nearest-exact"
                )
                merged += voxels[:, :, phase:, : shape[1], : shape[2]][:, :, :n_planes]
            x = functional.leaky_relu_(merged, architectures.SLOPE)
            for layer in network.dense:
                x = functional.leaky_relu_(_pointwise(layer, x), architectures.SLOPE)
            logits[first_plane:end_plane] = _pointwise(network.answer, x)[0, 0].cpu().numpy()
            first_plane = end_plane
    return logits


def whole_logits(
    network: architectures.SmallUNet | architectures.UNet, case: Case
) -> NDArray[np.float32]:
    """
    Give the logits of all voxels at once; outside of the box around the brain they are low.

    Shapes: returns (x, y, z).
    """
    image = case["image"]
    # 0 outside the brain, but for a channel of ones that says that there is a prior.
    is_scan = (image != 1).any(axis=(1, 2, 3))
    is_brain = (image[is_scan] != 0).any(axis=0)
    logits = np.full(image.shape[1:], _OUTSIDE, dtype=np.float32)
    if not is_brain.any():
        return logits
    device = next(network.parameters()).device
    (extents,) = find_objects(is_brain.astype(np.int8))
    box = tuple(slice(max(0, side.start - _MARGIN), side.stop + _MARGIN) for side in extents)
    shape = logits[box].shape
    # What the levels of the network divide.
    size = [math.ceil(n / network.divisor) * network.divisor for n in shape]
    window = take_window(image, [side.start for side in box], size)
    with torch.inference_mode():
        output = network(torch.from_numpy(window)[None].to(device))[0, 0].cpu().numpy()
    logits[box] = output[: shape[0], : shape[1], : shape[2]]
    return logits


def averaged_over_flips(
    predict: Callable[[Case], NDArray[np.float32]], case: Case
) -> NDArray[np.float32]:
    """
    Average the probabilities of a volume and its seven mirror images.

    Shapes: returns (x, y, z).
    """
    total: Any = 0.0
    for flags in itertools.product((False, True), repeat=3):
        axes = tuple(np.flatnonzero(flags).tolist())
        # The channels come first.
        shifted_axes = tuple(axis + 1 for axis in axes)
        mirrored = {
            key: np.flip(value, shifted_axes) if np.ndim(value) == 4 else value
            for key, value in case.items()
        }
        total = total + np.flip(predict(mirrored), axes)
    return np.asarray(total / 8, dtype=np.float32)


# Slab by slab ----------------------------------------------------------------------------------


def _pointwise(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """Apply a convolution of single voxels as a matrix product, which is several times faster."""
    return functional.linear(x.movedim(1, -1), layer.weight.flatten(1), layer.bias).movedim(-1, 1)


def _widened(volume: NDArray[Any], margin: int) -> NDArray[Any]:
    """Repeat the outermost voxels of a volume (channels, x, y, z) beyond its border."""
    return np.pad(volume, [(0, 0), *[(margin, margin)] * 3], mode="edge")


def _features(
    network: architectures.DeepMedic, slab_numbers: int, name: str, volume: NDArray[Any]
) -> Iterator[torch.Tensor]:
    """
    Give the features of a path slab by slab, all of one thickness except for the last.

    Each layer keeps the input planes that its next slab needs.

    Shapes: `volume` (channels, x + 2 n_layers, ...); yields (1, channels, planes, y, z).
    """
    path: Any = network.paths[name]
    last_planes: dict[int, torch.Tensor] = {}
    residuals: dict[int, torch.Tensor] = {}
    _, n_planes, *sides = volume.shape
    widest = max(layer.out_channels for layer in (*path.convolutions, network.merges[name]))
    planes = max(1, slab_numbers // (math.prod(sides) * widest))
    # The first slab includes the margin, so that it gives as many planes as the others.
    ends = [0, *range(planes + 2 * network.n_layers, n_planes, planes), n_planes]
    for first, end in itertools.pairwise(ends):
        slab = torch.from_numpy(np.ascontiguousarray(volume[:, first:end]))[None]
        x = slab.to(network.answer.weight.device)
        for number, layer in enumerate(path.convolutions, start=1):
            if number + 1 in path.joins:
                # For the residual connection of the next layer; two layers lose two planes.
                kept = residuals.get(number + 1)
                residuals[number + 1] = (
                    x[:, :, 2:] if kept is None else torch.cat([kept, x], dim=2)
                )
            if number in last_planes:
                x = torch.cat([last_planes[number], x], dim=2)
            # A kernel of three planes needs the last two again.
            last_planes[number] = x[:, :, -2:].clone()
            x = layer(x)
            if number in path.joins:
                n = x.shape[2]
                x = architectures.added(x, residuals[number][:, :, :n, 2:-2, 2:-2])
                residuals[number] = residuals[number][:, :, n:].clone()
            x = functional.leaky_relu_(x, architectures.SLOPE)
        yield x
