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
from metastasis.networks.architectures import (
    PRIOR_REACH,
    SLOPE,
    DeepMedic,
    Path,
    SmallUNet,
    UNet,
    added,
    change_features,
    folded,
)
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
    network: DeepMedic, case: Case, *, slab_numbers: int = SLAB_NUMBERS
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
    device = next(network.parameters()).device
    logits = np.empty(shape, dtype=np.float32)
    with torch.inference_mode():
        head = _Head(network)
        low = {}
        for factor in network.low_resolution:
            name = f"low_{factor}"
            size = [low_resolution_cells(n, factor) for n in shape]
            begin = -factor * n_layers

            def cells(
                a: int, k: int, name: str = name, factor: int = factor, begin: int = begin
            ) -> NDArray[Any]:
                count = [k, *(low_resolution_cells(n, factor) + 2 * n_layers for n in shape[1:])]
                return take_cells(case[name], factor, (begin + factor * a, begin, begin), count)

            path: Any = network.paths[name]
            stream = _features(path, cells, size, slab_numbers, device, head.width)
            # Low-resolution paths have few cells, so their features are held whole.
            low[factor] = torch.cat([head.merge(name, features) for features in stream])
        has_prior = network.prior_path and (not network.validity or bool(case["valid"]))
        reach = PRIOR_REACH if network.shared else 0

        def stream_of(path_name: str, name: str, reach: int = 0) -> Iterator[torch.Tensor]:
            """Give features of a scan, with planes and voxels beyond its border."""
            margin = n_layers + reach

            def window(a: int, k: int) -> NDArray[Any]:
                size = [k, *(n + 2 * margin for n in shape[1:])]
                return take_window(case[name], (a - margin, -margin, -margin), size)

            path: Any = network.paths[path_name]
            size = [n + 2 * reach for n in shape]
            return _features(path, window, size, slab_numbers, device, head.width)

        prior_planes = None
        if has_prior:
            path_name = "normal" if network.shared else "prior"
            prior_planes = _Planes(stream_of(path_name, "prior", reach))
        first_plane = 0
        for features in stream_of("normal", "image"):
            merged = head.merge("normal", features)
            end_plane = first_plane + len(merged)
            if prior_planes is not None:
                # Planes of a wider prior begin `reach` planes before the scan.
                prior_slab = prior_planes.taken(first_plane, end_plane + 2 * reach)
                if network.shared:
                    # Voxels come last in torch's maxima, channels in all else here.
                    parts = change_features(_channels_first(features), _channels_first(prior_slab))
                    prior_slab, change = (part[0].permute(1, 2, 3, 0) for part in parts)
                    merged += head.merge("change", change)
                merged += head.merge("prior", prior_slab)
                if head.valid is not None:
                    merged += head.valid
            for factor, cell_features in low.items():
                # A slab may begin inside of a low-resolution cell.
                first_cell, phase = divmod(first_plane, factor)
                end_cell = math.ceil(end_plane / factor)
                slab_features = cell_features[first_cell:end_cell]
                merged += _repeated(slab_features, factor, merged.shape[:3], phase)
            logits[first_plane:end_plane] = head.decide(merged)[..., 0].cpu().numpy()
            first_plane = end_plane
    return logits


def unet_logits(network: UNet, image: NDArray[np.float32], size: int) -> NDArray[np.float32]:
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


def whole_logits(network: SmallUNet, image: NDArray[np.float32]) -> NDArray[np.float32]:
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
    mirrored_axes = itertools.chain.from_iterable(
        itertools.combinations((0, 1, 2), k) for k in range(4)
    )
    for axes in mirrored_axes:
        # The channels come first.
        shifted_axes = tuple(axis + 1 for axis in axes)
        mirrored = dict(case)
        for key, value in case.items():
            # Low-resolution cells are stored for every voxel, so they are mirrored as voxels are.
            if np.ndim(value) == 4:
                mirrored[key] = np.flip(value, shifted_axes)
        total = total + np.flip(predict(mirrored), axes)
    return np.asarray(total / 8, dtype=np.float32)


# Slab by slab ----------------------------------------------------------------------------------


def _features(
    path: Path,
    window: Callable[[int, int], NDArray[Any]],
    size: Any,
    slab_numbers: int,
    device: torch.device,
    head_width: int,
) -> Iterator[torch.Tensor]:
    """Give the features of a path slab by slab, all of one thickness except for the last."""
    stream = _Stream(path)
    n_layers = len(stream.layers)
    plane = (size[1] + 2 * n_layers) * (size[2] + 2 * n_layers)
    widest = max(head_width, *(len(weight) for weight, _ in stream.layers))
    planes = max(1, slab_numbers // (plane * widest))
    n_planes = size[0] + 2 * n_layers
    first = 0
    # The first slab includes the margin, so that it gives as many planes as the others.
    count = min(planes + 2 * n_layers, n_planes)
    while first < n_planes:
        slab = torch.from_numpy(np.ascontiguousarray(window(first, count)))[None].to(device)
        features = stream.push(slab.contiguous(memory_format=torch.channels_last_3d))
        yield features[0].permute(1, 2, 3, 0)
        first += count
        count = min(planes, n_planes - first)


class _Planes:
    """Planes of features that come slab by slab, taken at other planes than they come."""

    def __init__(self, stream: Iterator[torch.Tensor]) -> None:
        self.stream = stream
        self.planes = next(stream)
        self.first = 0

    def taken(self, begin: int, end: int) -> torch.Tensor:
        """Give the planes from `begin` to `end`, and forget those before; `begin` only grows."""
        self.planes, self.first = self.planes[begin - self.first :], begin
        while len(self.planes) < end - begin:
            self.planes = torch.cat([self.planes, next(self.stream)])
        return self.planes[: end - begin]


def _channels_first(features: torch.Tensor) -> torch.Tensor:
    """Arrange features as torch's pooling takes them: (x, y, z, c) to (1, c, x, y, z)."""
    return features.permute(3, 0, 1, 2)[None]


class _Stream:
    """A path fed slab by slab; each layer keeps the input planes that the next needs."""

    def __init__(self, path: Path) -> None:
        # Channels last: the convolutions need not lay their inputs out anew.
        self.layers = [
            (weight.contiguous(memory_format=torch.channels_last_3d), bias)
            for weight, bias in path.folded()
        ]
        self.joins = path.joins
        self.last_planes: list[torch.Tensor | None] = [None] * len(self.layers)
        self.residuals: dict[int, torch.Tensor] = {}

    def push(self, x: torch.Tensor) -> torch.Tensor:
        """Give the features that the new planes allow."""
        for number, (weight, bias) in enumerate(self.layers, start=1):
            if number + 1 in self.joins:
                self._store_residual(number + 1, x)
            last_planes = self.last_planes[number - 1]
            if last_planes is not None:
                x = torch.cat([last_planes, x], dim=2)
            # A kernel of three planes needs the last two again.
            self.last_planes[number - 1] = (
                x[:, :, -2:].contiguous(memory_format=torch.channels_last_3d).clone()
            )
            x = functional.conv3d(x, weight, bias)
            if number in self.joins:
                planes = x.shape[2]
                x = added(x, self.residuals[number][:, :, :planes, 2:-2, 2:-2])
                self.residuals[number] = self.residuals[number][:, :, planes:].clone()
            x = functional.leaky_relu_(x, SLOPE)
        return x

    def _store_residual(self, number: int, x: torch.Tensor) -> None:
        """Keep the input of the layer before for the residual connection of a layer."""
        if number in self.residuals:
            self.residuals[number] = torch.cat([self.residuals[number], x], dim=2)
        else:
            # Two layers lose the first two planes.
            self.residuals[number] = x[:, :, 2:]


class _Head:
    """Dense layers with folded normalization as matrix products; channels come last."""

    def __init__(self, network: DeepMedic) -> None:
        self.merges = {}
        self.valid = None
        norm = network.norms[0]
        for name, layer in network.merges.items():
            weight, bias = folded(layer.weight, layer.bias, norm)  # type: ignore[arg-type]
            # The offset of the normalization belongs to the sum.
            self.merges[name] = (weight.flatten(1), bias if name == "normal" else None)
            self.width = len(weight)
        if network.validity:
            valid_weight = network.valid_weight[:, None, None, None, None]
            self.valid = folded(valid_weight, None, norm)[0].flatten()
        self.layers = []
        for layer, layer_norm in zip(network.dense, network.norms[1:], strict=True):
            weight, bias = folded(layer.weight, layer.bias, layer_norm)  # type: ignore[arg-type]
            self.layers.append((weight.flatten(1), bias))
        self.answer = network.answer.weight.flatten(1), network.answer.bias

    def merge(self, name: str, features: torch.Tensor) -> torch.Tensor:
        """Give the contribution of a path to the first dense layer."""
        return functional.linear(features, *self.merges[name])

    def decide(self, merged: torch.Tensor) -> torch.Tensor:
        """Give logits from the sum over all paths, which is overwritten."""
        x = functional.leaky_relu_(merged, SLOPE)
        for weight, bias in self.layers:
            x = functional.leaky_relu_(functional.linear(x, weight, bias), SLOPE)
        return functional.linear(x, *self.answer)


def _repeated(x: torch.Tensor, factor: int, size: Sequence[int], phase: int) -> torch.Tensor:
    """
    Give voxels the values of their cells; the first cell begins `phase` voxels before.

    Shapes: `x` (cells x, cells y, cells z, channels); returns (x, y, z, channels).
    """
    *cells, channels = x.shape
    wide = x[:, None, :, None, :, None].expand(
        cells[0], factor, cells[1], factor, cells[2], factor, channels
    )
    whole = wide.reshape(*(n * factor for n in cells), channels)
    return whole[phase : phase + size[0], : size[1], : size[2]]
