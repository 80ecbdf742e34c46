"""Logits of whole volumes: by DeepMedic densely, each path once and slab by slab, or tile by tile; by a U-Net."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dmrifit._optional import import_optional
from metastasis.networks.architectures import SLOPE, DeepMedic, Path, UNet, added, folded
from metastasis.networks.sizes import low_resolution_cells, low_resolution_input, output_size
from metastasis.segmentation.sampling import take_cells, take_window

if TYPE_CHECKING:
    import torch
    from torch.nn import functional
else:
    torch = import_optional("torch")
    functional = torch.nn.functional

__all__ = ["averaged_over_flips", "dense_logits", "tiled_logits", "unet_logits"]

#: Numbers that the widest layer of a slab holds, about 128 MiB of single precision.
SLAB_NUMBERS = 2**25

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

            stream = _features(network.paths[name], cells, size, slab_numbers, device, head.width)  # type: ignore[arg-type]
            low[factor] = torch.cat([head.merge(name, features) for features in stream])
        windows = [("normal", "image")]
        if network.prior_path and (not network.validity or case["valid"]):
            windows.append(("prior", "prior"))
        streams = []
        for path, name in windows:

            def window(a: int, k: int, name: str = name) -> NDArray[Any]:
                size = [k, *(n + 2 * n_layers for n in shape[1:])]
                return take_window(case[name], (a - n_layers, -n_layers, -n_layers), size)

            layers: Any = network.paths[path]
            streams.append(_features(layers, window, shape, slab_numbers, device, head.width))
        at = 0
        for slab in zip(*streams, strict=True):
            merged = head.merge("normal", slab[0])
            if len(slab) > 1:
                merged += head.merge("prior", slab[1])
                if head.valid is not None:
                    merged += head.valid
            planes = len(merged)
            for factor, features in low.items():
                first, phase = divmod(at, factor)
                last = -(-(at + planes) // factor)
                merged += _repeated(features[first:last], factor, merged.shape[:3], phase)
            logits[at : at + planes] = head.decide(merged)[..., 0].cpu().numpy()
            at += planes
    return logits


def tiled_logits(network: DeepMedic, case: Case, *, tile: int = 45) -> NDArray[np.float32]:
    """
    Give the logits of all voxels of a volume tile by tile, each as a segment of its own; slow, to
    compare with.

    Shapes: returns (x, y, z).
    """
    shape = case["image"].shape[1:]
    n_layers = network.n_layers
    out = output_size(tile, n_layers)
    device = next(network.parameters()).device
    logits = np.empty(shape, dtype=np.float32)

    def tensor(part: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(part))[None].to(device)

    with torch.inference_mode():
        for start in itertools.product(*(range(0, n, out) for n in shape)):
            first = [a - n_layers for a in start]
            inputs = {"image": tensor(take_window(case["image"], first, [tile] * 3))}
            phases = {}
            for factor in network.low_resolution:
                phases[factor] = phase = [a % factor for a in start]
                begin = [a - p - factor * n_layers for a, p in zip(start, phase, strict=True)]
                count = [low_resolution_input(out, factor, n_layers, phase=p) for p in phase]
                inputs[f"low_{factor}"] = tensor(
                    take_cells(case[f"low_{factor}"], factor, begin, count)
                )
            if network.prior_path:
                inputs["prior"] = tensor(take_window(case["prior"], first, [tile] * 3))
                inputs["valid"] = torch.tensor([float(case["valid"])], device=device)
            found = network(**inputs, phases=phases)[0, 0].cpu().numpy()
            keep = tuple(slice(0, min(out, n - a)) for a, n in zip(start, shape, strict=True))
            place = tuple(slice(a, a + out) for a in start)
            logits[place] = found[keep]
    return logits


def unet_logits(network: UNet, image: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """
    Give the logits of all voxels by windows of the size in training, which overlap by a quarter.

    Shapes: `image` (channels, x, y, z); returns (x, y, z).
    """
    sliding = import_optional("monai.inferers").sliding_window_inference
    device = next(network.parameters()).device
    shape = image.shape[1:]
    whole = take_window(image, (0, 0, 0), [max(n, size) for n in shape])
    with torch.inference_mode():
        batch = torch.from_numpy(np.ascontiguousarray(whole))[None].to(device)
        logits = (
            sliding(batch, (size,) * 3, 1, network, overlap=0.25, mode="gaussian")[0, 0]
            .cpu()
            .numpy()
        )
    found: NDArray[np.float32] = logits[: shape[0], : shape[1], : shape[2]]
    return found


def averaged_over_flips(
    predict: Callable[[Case], NDArray[np.float32]], case: Case
) -> NDArray[np.float32]:
    """
    Average the probabilities of a volume and its seven mirror images.

    Shapes: returns (x, y, z).
    """
    total: Any = 0.0
    for axes in itertools.chain.from_iterable(
        itertools.combinations((0, 1, 2), k) for k in range(4)
    ):
        # Cells of low resolution are kept at every voxel, and are mirrored as voxels are.
        shifted = tuple(a + 1 for a in axes)
        turned = {
            key: np.flip(value, shifted) if np.ndim(value) == 4 else value
            for key, value in case.items()
        }
        total = total + np.flip(predict(turned), axes)
    return np.asarray(total / 8, dtype=np.float32)


# Slab by slab ------------------------------------------------------------------------------------


def _features(
    path: Path,
    window: Callable[[int, int], NDArray[Any]],
    size: Any,
    slab_numbers: int,
    device: torch.device,
    dense: int,
) -> Iterator[torch.Tensor]:
    """Give the features of a path, slabs of equal thickness one after the other but for the last."""
    stream = _Stream(path)
    n_layers = len(stream.layers)
    plane = (size[1] + 2 * n_layers) * (size[2] + 2 * n_layers)
    widest = max(dense, *(len(weight) for weight, _ in stream.layers))
    planes = max(1, slab_numbers // (plane * widest))
    at, total = 0, size[0] + 2 * n_layers
    while at < total:
        # The first slab brings the margin, so that it gives as many planes as the others.
        count = min(planes + (2 * n_layers if at == 0 else 0), total - at)
        part = torch.from_numpy(np.ascontiguousarray(window(at, count)))[None].to(device)
        features = stream.push(part.contiguous(memory_format=torch.channels_last_3d))
        yield features[0].permute(1, 2, 3, 0)
        at += count


class _Stream:
    """A path that takes a volume slab by slab; each layer keeps what the next slab needs of its input."""

    def __init__(self, path: Path) -> None:
        # Channels last: the convolutions need not lay their inputs out anew.
        self.layers = [
            (weight.contiguous(memory_format=torch.channels_last_3d), bias)
            for weight, bias in path.folded()
        ]
        self.joins = path.joins
        self.kept: list[torch.Tensor | None] = [None] * len(self.layers)
        self.waiting: dict[int, torch.Tensor] = {}

    def push(self, x: torch.Tensor) -> torch.Tensor:
        """Give the features that the planes so far allow and that were not given yet."""
        for number, (weight, bias) in enumerate(self.layers, start=1):
            if number + 1 in self.joins:
                # Its first two planes lie outside of what comes of two layers.
                self.waiting[number + 1] = (
                    torch.cat([self.waiting[number + 1], x], dim=2)
                    if number + 1 in self.waiting
                    else x[:, :, 2:]
                )
            kept = self.kept[number - 1]
            if kept is not None:
                x = torch.cat([kept, x], dim=2)
            self.kept[number - 1] = (
                x[:, :, -2:].contiguous(memory_format=torch.channels_last_3d).clone()
            )
            x = functional.conv3d(x, weight, bias)
            if number in self.joins:
                planes = x.shape[2]
                x = added(x, self.waiting[number][:, :, :planes, 2:-2, 2:-2])
                self.waiting[number] = self.waiting[number][:, :, planes:].clone()
            x = functional.leaky_relu_(x, SLOPE)
        return x


class _Head:
    """The dense layers with their normalization inside of them, as products of matrices; channels come last."""

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
            self.valid = folded(network.valid_weight[:, None, None, None, None], None, norm)[
                0
            ].flatten()
        self.layers = []
        for layer, after in zip(network.dense, network.norms[1:], strict=True):
            weight, bias = folded(layer.weight, layer.bias, after)  # type: ignore[arg-type]
            self.layers.append((weight.flatten(1), bias))
        self.answer = network.answer.weight.flatten(1), network.answer.bias

    def merge(self, name: str, features: torch.Tensor) -> torch.Tensor:
        """Give the part of a path in the first dense layer."""
        return functional.linear(features, *self.merges[name])

    def decide(self, merged: torch.Tensor) -> torch.Tensor:
        """Give logits from the sum of all parts, which is used up."""
        x = functional.leaky_relu_(merged, SLOPE)
        for weight, bias in self.layers:
            x = functional.leaky_relu_(functional.linear(x, weight, bias), SLOPE)
        return functional.linear(x, *self.answer)


def _repeated(x: torch.Tensor, factor: int, size: Sequence[int], phase: int) -> torch.Tensor:
    """Give voxels the values of their cells, where channels come last; the first cell begins `phase` voxels before."""
    *cells, channels = x.shape
    wide = x[:, None, :, None, :, None].expand(
        cells[0], factor, cells[1], factor, cells[2], factor, channels
    )
    whole = wide.reshape(*(n * factor for n in cells), channels)
    return whole[phase : phase + size[0], : size[1], : size[2]]
