"""Logits of whole volumes: DeepMedic slab by slab, and U-Net in windows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from dmrifit._optional import import_optional
from metastasis.networks import architectures
from metastasis.networks.sizes import low_resolution_cells
from metastasis.segmentation.sampling import take_cells, take_window

if TYPE_CHECKING:
    import torch
    from torch.nn import functional
else:
    torch = import_optional("torch")
    functional = torch.nn.functional

#: Numbers that the widest layer of a slab holds, about 128 MiB of single precision.
SLAB_NUMBERS = 2**25

_MARGIN = 8  # voxels around the brain that the small U-Net sees
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

    Shapes: returns (x, y, z).
    """
    shape = case["image"].shape[1:]
    n_layers = network.n_layers
    reach = architectures.PRIOR_REACH if network.shared else 0
    has_prior = network.prior_path and (not network.validity or bool(case["valid"]))
    logits = np.empty(shape, dtype=np.float32)
    with torch.inference_mode():
        head = _Head(network)

        def scan_features(path: str, name: str, reach: int = 0) -> Iterator[torch.Tensor]:
            """Give features of a scan, with planes and voxels beyond its border."""
            margin = n_layers + reach

            def window(plane: int, n_planes: int) -> NDArray[Any]:
                size = [n_planes, *(n + 2 * margin for n in shape[1:])]
                return take_window(case[name], (plane - margin, -margin, -margin), size)

            size = [n + 2 * reach for n in shape]
            return _features(network.paths[path], window, size, head, slab_numbers)

        low = {}
        for factor in network.low_resolution:
            name = f"low_{factor}"
            size = [low_resolution_cells(n, factor) for n in shape]

            def cells(
                plane: int, n_planes: int, name: str = name, factor: int = factor, size: Any = size
            ) -> NDArray[Any]:
                begin = -factor * n_layers
                count = [n_planes, *(n + 2 * n_layers for n in size[1:])]
                return take_cells(
                    case[name], factor, (begin + factor * plane, begin, begin), count
                )

            stream = _features(network.paths[name], cells, size, head, slab_numbers)
            # Low-resolution paths have few cells, so their features are held whole.
            low[name] = torch.cat([head.merge(name, features) for features in stream])
        prior_stream: Iterator[torch.Tensor] = iter(())
        if has_prior:
            prior_stream = scan_features("normal" if network.shared else "prior", "prior", reach)
            prior_planes = next(prior_stream)
        first_plane = 0
        for features in scan_features("normal", "image"):
            merged = head.merge("normal", features)
            end_plane = first_plane + len(merged)
            if has_prior:
                # Planes of a wider prior begin `reach` planes before the scan.
                while len(prior_planes) < len(merged) + 2 * reach:
                    prior_planes = torch.cat([prior_planes, next(prior_stream)])
                prior_slab = prior_planes[: len(merged) + 2 * reach]
                prior_planes = prior_planes[len(merged) :]
                if network.shared:
                    # Voxels come last in torch's maxima, channels in all else here.
                    scans = (slab.permute(3, 0, 1, 2)[None] for slab in (features, prior_slab))
                    parts = architectures.change_features(*scans)
                    prior_slab, change = (part[0].permute(1, 2, 3, 0) for part in parts)
                    merged += head.merge("change", change)
                merged += head.merge("prior", prior_slab)
                if head.valid is not None:
                    merged += head.valid
            for factor in network.low_resolution:
                # A slab may begin inside of a low-resolution cell.
                first_cell, phase = divmod(first_plane, factor)
                slab_cells = low[f"low_{factor}"][first_cell : math.ceil(end_plane / factor)]
                merged += _repeated(slab_cells, factor, merged.shape[:3], phase)
            logits[first_plane:end_plane] = head.decide(merged)[..., 0].cpu().numpy()
            first_plane = end_plane
    return logits


def unet_logits(
    network: architectures.UNet, image: NDArray[np.float32], size: int
) -> NDArray[np.float32]:
    """
    Give the logits of all voxels by windows of the size in training, which overlap by a quarter.

    Shapes: `image` (channels, x, y, z); returns (x, y, z).
    """
    sliding = import_optional("monai.inferers").sliding_window_inference
    device = next(network.parameters()).device
    shape = image.shape[1:]
    # A volume smaller than a window is padded with its outermost voxels.
    padded = take_window(image, (0, 0, 0), [max(n, size) for n in shape])
    with torch.inference_mode():
        batch = torch.from_numpy(np.ascontiguousarray(padded))[None].to(device)
        output = sliding(batch, (size,) * 3, 1, network, overlap=0.25, mode="gaussian")
        padded_logits: NDArray[np.float32] = output[0, 0].cpu().numpy()
    return padded_logits[: shape[0], : shape[1], : shape[2]]


def whole_logits(
    network: architectures.SmallUNet, image: NDArray[np.float32]
) -> NDArray[np.float32]:
    """
    Give the logits of all voxels at once; outside of the box around the brain they are low.

    Shapes: `image` (channels, x, y, z), 0 outside the brain; returns (x, y, z).
    """
    device = next(network.parameters()).device
    is_brain = (image != 0).any(axis=0)
    logits = np.full(image.shape[1:], _OUTSIDE, dtype=np.float32)
    if not is_brain.any():
        return logits
    (extents,) = find_objects(is_brain.astype(np.int8))
    box = tuple(slice(max(0, side.start - _MARGIN), side.stop + _MARGIN) for side in extents)
    with torch.inference_mode():
        batch = torch.from_numpy(np.ascontiguousarray(image[(slice(None), *box)]))[None]
        logits[box] = network(batch.to(device))[0, 0].cpu().numpy()
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
        # The channels come first. Low-resolution cells are stored for every voxel, so they are
        # mirrored as voxels are.
        shifted_axes = tuple(axis + 1 for axis in axes)
        mirrored = {
            key: np.flip(value, shifted_axes) if np.ndim(value) == 4 else value
            for key, value in case.items()
        }
        total = total + np.flip(predict(mirrored), axes)
    return np.asarray(total / 8, dtype=np.float32)


# Slab by slab ----------------------------------------------------------------------------------


def _features(
    path: Any,
    window: Callable[[int, int], NDArray[Any]],
    size: Sequence[int],
    head: _Head,
    slab_numbers: int,
) -> Iterator[torch.Tensor]:
    """
    Give the features of a path slab by slab, all of one thickness except for the last.

    Each layer keeps the input planes that its next slab needs.
    """
    # Channels last: the convolutions need not lay their inputs out anew.
    order = torch.channels_last_3d
    layers = [(weight.contiguous(memory_format=order), bias) for weight, bias in path.folded()]
    last_planes: dict[int, torch.Tensor] = {}
    residuals: dict[int, torch.Tensor] = {}
    plane = math.prod(n + 2 * len(layers) for n in size[1:])
    widest = max(head.width, *(len(weight) for weight, _ in layers))
    planes = max(1, slab_numbers // (plane * widest))
    n_planes = size[0] + 2 * len(layers)
    # The first slab includes the margin, so that it gives as many planes as the others.
    ends = [0, *range(planes + 2 * len(layers), n_planes, planes), n_planes]
    for first, end in itertools.pairwise(ends):
        slab = torch.from_numpy(np.ascontiguousarray(window(first, end - first)))[None]
        x = slab.to(layers[0][0].device).contiguous(memory_format=order)
        for number, (weight, bias) in enumerate(layers, start=1):
            if number + 1 in path.joins:
                # For the residual connection of the next layer; two layers lose two planes.
                kept = residuals.get(number + 1)
                residuals[number + 1] = (
                    x[:, :, 2:] if kept is None else torch.cat([kept, x], dim=2)
                )
            if number in last_planes:
                x = torch.cat([last_planes[number], x], dim=2)
            # A kernel of three planes needs the last two again.
            last_planes[number] = x[:, :, -2:].contiguous(memory_format=order).clone()
            x = functional.conv3d(x, weight, bias)
            if number in path.joins:
                n = x.shape[2]
                x = architectures.added(x, residuals[number][:, :, :n, 2:-2, 2:-2])
                residuals[number] = residuals[number][:, :, n:].clone()
            x = functional.leaky_relu_(x, architectures.SLOPE)
        yield x[0].permute(1, 2, 3, 0)


class _Head:
    """Dense layers with folded normalization as matrix products; channels come last."""

    def __init__(self, network: architectures.DeepMedic) -> None:
        self.merges = {}
        self.valid = None
        norm = network.norms[0]
        for name, layer in network.merges.items():
            weight, bias = architectures.folded(layer.weight, layer.bias, norm)  # type: ignore[arg-type]
            # The offset of the normalization belongs to the sum.
            self.merges[name] = (weight.flatten(1), bias if name == "normal" else None)
            self.width = len(weight)
        if network.validity:
            valid_weight = network.valid_weight[:, None, None, None, None]
            self.valid = architectures.folded(valid_weight, None, norm)[0].flatten()
        self.layers = []
        for layer, layer_norm in zip(network.dense, network.norms[1:], strict=True):
            weight, bias = architectures.folded(layer.weight, layer.bias, layer_norm)  # type: ignore[arg-type]
            self.layers.append((weight.flatten(1), bias))
        self.answer = network.answer.weight.flatten(1), network.answer.bias

    def merge(self, name: str, features: torch.Tensor) -> torch.Tensor:
        """Give the contribution of a path to the first dense layer."""
        return functional.linear(features, *self.merges[name])

    def decide(self, merged: torch.Tensor) -> torch.Tensor:
        """Give logits from the sum over all paths, which is overwritten."""
        x = functional.leaky_relu_(merged, architectures.SLOPE)
        for weight, bias in self.layers:
            x = functional.leaky_relu_(functional.linear(x, weight, bias), architectures.SLOPE)
        return functional.linear(x, *self.answer)


def _repeated(x: torch.Tensor, factor: int, size: Sequence[int], phase: int) -> torch.Tensor:
    """
    Give voxels the values of their cells; the first cell begins `phase` voxels before.

    Shapes: `x` (cells x, cells y, cells z, channels); returns (x, y, z, channels).
    """
    for axis, first in enumerate((phase, 0, 0)):
        x = x.repeat_interleave(factor, dim=axis).narrow(axis, first, size[axis])
    return x
