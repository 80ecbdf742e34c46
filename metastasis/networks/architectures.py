"""DeepMedic with low-resolution paths and a path for the prior scan, and 3-D U-Nets, in torch."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from dmrifit._optional import import_optional
from metastasis.scans.network_inputs import PRIOR_REACH

#: Slope of the rectifier below zero.
SLOPE = 0.01
#: Logit of the last layer before training: a probability of about 0.05.
FIRST_LOGIT = -3.0
#: Of the running means and variances of the small U-Net.
_MOMENTUM = 0.02
#: With residual connections, the layers that the input of the layer before is added to, from 1 on.
_RESIDUAL_LAYERS = (4, 6, 8)


class Path(nn.Module):
    """
    Convolutions of 3³ without padding, one after the other.

    With `residual` the input of the layer before is added to the output of layers 4, 6 and 8,
    cropped to it, with zeros for channels that it lacks.
    """

    def __init__(
        self,
        n_channels: int,
        widths: Sequence[int],
        *,
        residual: bool = False,
        normalization: str | None = "batch",
    ) -> None:
        super().__init__()
        # A bias before a normalization would have no effect.
        has_bias = normalization is None
        self.convolutions = nn.ModuleList(
            nn.Conv3d(n_in, n_out, 3, bias=has_bias)
            for n_in, n_out in pairwise((n_channels, *widths))
        )
        norm_type = nn.Identity if normalization is None else nn.BatchNorm3d
        self.norms = nn.ModuleList(norm_type(n) for n in widths)
        self.joins = frozenset(_RESIDUAL_LAYERS if residual else ())
        _initialize(self.convolutions)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        Give the features of the voxels that remain without padding.

        Shapes: `x` (n, n_channels, x, y, z); returns (n, widths[-1], x − 2 n_layers, ...).
        """
        if x.device.type == "cpu":
            x = x.contiguous(memory_format=torch.channels_last_3d)
        layers = zip(self.convolutions, self.norms, strict=True)
        previous_input = x
        for number, (convolution, norm) in enumerate(layers, start=1):
            y = norm(convolution(x))
            if number in self.joins:
                # Two convolutions without padding take two voxels off each side.
                y = added(y, previous_input[:, :, 2:-2, 2:-2, 2:-2])
            previous_input = x
            x = functional.leaky_relu_(y, SLOPE)
        return x


def _initialize(layers: Any) -> None:
    """Draw the first weights of convolutions that a rectifier follows."""
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, a=SLOPE)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def added(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """
    Add a tensor that may have fewer channels.

    Shapes: `y` (n, c, x, y, z), `x` (n, d, x, y, z); returns (n, c, x, y, z).
    """
    # Layers grow wider, so that the input lacks the last channels of the output.
    common = min(y.shape[1], x.shape[1])
    return torch.cat([y[:, :common] + x[:, :common], y[:, common:]], dim=1)


def repeated(x: torch.Tensor, factor: int, size: Sequence[int]) -> torch.Tensor:
    """
    Give each voxel of an output the value of the low-resolution cell that it lies in.

    Shapes: `x` (n, c, cells x, cells y, cells z); returns (n, c, x, y, z).
    """
    n, c, *cells = x.shape
    # Expanded axes share their memory; only the reshaping below copies.
    wide = x[:, :, :, None, :, None, :, None].expand(
        n, c, cells[0], factor, cells[1], factor, cells[2], factor
    )
    wide = wide.reshape(n, c, *(k * factor for k in cells))
    return wide[:, :, : size[0], : size[1], : size[2]]


def change_features(
    features: torch.Tensor, wide_prior: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Give the prior's features h′ and h − maxpool(h′): what is there now and was nowhere near.

    Shapes: `features` (n, c, x, y, z), `wide_prior` (n, c, x + 2 PRIOR_REACH, ...); returns two of
    (n, c, x, y, z).
    """
    inside = slice(PRIOR_REACH, -PRIOR_REACH)
    largest = wide_prior
    # On a GPU the gradients of `max_pool3d` with overlapping windows differ from run to run.
    for axis in (4, 3, 2):
        largest = largest.unfold(axis, 2 * PRIOR_REACH + 1, 1).max(dim=-1).values
    return wide_prior[:, :, inside, inside, inside], features - largest


class DeepMedic(nn.Module):
    """
    DeepMedic: paths at several resolutions and for a prior scan, joined by dense layers.

    The path at full resolution loses one voxel on either side with each layer. A low-resolution
    path sees cells of f³ voxels, the first of which begins `n_layers` cells before the output
    does; each voxel of the output takes the features of the cell that it lies in. Features of the
    prior scan's path are multiplied by whether there is a prior, so that a missing one adds
    nothing, and that flag is a feature of its own (``validity``). The first dense layer acts on
    each path alone before they are added, which equals one layer on all of them and lets
    low-resolution features be repeated after it.

    With `shared` the prior scan passes through the path of the image, with the same weights, and
    h, h′ and h − maxpool(h′) are joined, the maximum over 5³ voxels as no registration is perfect;
    the prior's segment is `PRIOR_REACH` voxels larger to each side.

    The default sizes are those of the paper. `extra_channels` of the path at full resolution are a
    prior scan and its validity; without `validity` a missing prior is a scan of zeros, as
    published.

    References
    ----------
    Kamnitsas et al., Medical Image Analysis 36:61–78, 2017; Huang et al., Medical Physics
    49:5773–5786, 2022.
    """

    def __init__(
        self,
        n_channels: int = 1,
        widths: Sequence[int] = (30, 40, 50, 60, 70, 80, 90, 100, 110),
        low_resolution: Sequence[int] = (3, 5),
        dense: Sequence[int] = (300, 300),
        *,
        extra_channels: int = 0,
        prior_path: bool = False,
        shared: bool = False,
        validity: bool = True,
        residual: bool = False,
        normalization: str | None = "batch",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if shared and n_channels + extra_channels != 1:
            raise ValueError(
                f"{n_channels + extra_channels} channels cannot share a path with a prior scan, "
                "which has one; give prior='path'"
            )
        self.n_layers = len(widths)
        self.low_resolution = tuple(low_resolution)
        self.prior_path = prior_path
        self.shared = shared and prior_path
        self.validity = validity and prior_path
        channels_of_path = {"normal": n_channels + extra_channels}
        for factor in low_resolution:
            channels_of_path[f"low_{factor}"] = n_channels
        if prior_path and not self.shared:
            channels_of_path["prior"] = 1
        # All random draws are in a fixed order: a seed gives the same weights in each version.
        self.paths = nn.ModuleDict()
        for name, n in channels_of_path.items():
            self.paths[name] = Path(n, widths, residual=residual, normalization=normalization)
        has_bias = normalization is None
        merged_names = list(channels_of_path)
        if self.shared:
            merged_names += ["prior", "change"]
        # The first dense layer, split by path; a single bias suffices for their sum.
        self.merges = nn.ModuleDict()
        for name in merged_names:
            bias = has_bias and name == "normal"
            self.merges[name] = nn.Conv3d(widths[-1], dense[0], 1, bias=bias)
        n_features = len(merged_names) * widths[-1]
        for layer in self.merges.values():
            nn.init.normal_(layer.weight, std=math.sqrt(2 / n_features))  # type: ignore[arg-type]
        if has_bias:
            nn.init.zeros_(self.merges["normal"].bias)  # type: ignore[arg-type]
        if self.validity:
            # Zero at first, so that a network begins as one without the flag.
            self.valid_weight = nn.Parameter(torch.zeros(dense[0]))
        self.dense = nn.ModuleList(nn.Conv3d(a, b, 1, bias=has_bias) for a, b in pairwise(dense))
        _initialize(self.dense)
        norm_type = nn.Identity if has_bias else nn.BatchNorm3d
        self.norms = nn.ModuleList(norm_type(n) for n in dense)
        self.dropout = nn.Dropout(dropout)
        self.answer = nn.Conv3d(dense[-1], 1, 1)
        # Small weights, so that training begins at FIRST_LOGIT everywhere.
        nn.init.normal_(self.answer.weight, std=math.sqrt(1 / dense[-1]) / 10)
        nn.init.constant_(self.answer.bias, FIRST_LOGIT)  # type: ignore[arg-type]

    def forward(
        self,
        image: torch.Tensor,
        prior: torch.Tensor | None = None,
        valid: torch.Tensor | None = None,
        **low: torch.Tensor,
    ) -> torch.Tensor:
        """
        Give the logits of the voxels inside of segments.

        Shapes: `image` (n, n_channels + extra_channels, x, y, z), `prior` (n, 1, x, y, z), with a
        shared path (n, 1, x + 2 PRIOR_REACH, ...), `**low` (n, n_channels, cells x, cells y, cells
        z); returns (n, 1, x − 2 n_layers, ...).
        """
        image_features = self.paths["normal"](image)
        merged = self.merges["normal"](image_features)
        size = merged.shape[2:]
        for factor in self.low_resolution:
            name = f"low_{factor}"
            features = self.merges[name](self.paths[name](low[name]))
            merged = merged + repeated(features, factor, size)
        if self.prior_path:
            flags = merged.new_ones(len(merged)) if valid is None else valid
            if self.shared:
                features = self._compared(image, image_features, prior, flags)
            else:
                features = self.merges["prior"](self.paths["prior"](prior))
            if self.validity:
                features = features + self.valid_weight[:, None, None, None]
                # The path of the prior adds nothing to a case without one.
                features = features * flags[:, None, None, None, None]
            merged = merged + features
        return self.decide(merged)

    def _compared(
        self,
        image: torch.Tensor,
        image_features: torch.Tensor,
        prior: torch.Tensor | None,
        flags: torch.Tensor,
    ) -> torch.Tensor:
        """Give what the prior and the change since then add to the first dense layer."""
        assert prior is not None
        if self.validity:
            # Features of a missing prior are multiplied by 0; its zeros would only shift the
            # moments of the normalization that both scans share.
            stand_in = functional.pad(image, (PRIOR_REACH,) * 6, mode="replicate")
            prior = torch.where(flags[:, None, None, None, None] > 0, prior, stand_in)
        earlier, change = change_features(image_features, self.paths["normal"](prior))
        compared: torch.Tensor = self.merges["prior"](earlier) + self.merges["change"](change)
        return compared

    def decide(self, merged: torch.Tensor) -> torch.Tensor:
        """
        Give logits from the sums of the first dense layer.

        Shapes: `merged` (n, dense[0], x, y, z); returns (n, 1, x, y, z).
        """
        x = self.dropout(functional.leaky_relu_(self.norms[0](merged), SLOPE))
        for layer, norm in zip(self.dense, self.norms[1:], strict=True):
            x = self.dropout(functional.leaky_relu_(norm(layer(x)), SLOPE))
        logits: torch.Tensor = self.answer(x)
        return logits


def folded(network: DeepMedic) -> Any:
    """Copy a network with its normalizations in prediction folded into the layers before them."""
    copied: Any = copy.deepcopy(network).eval()
    if isinstance(copied.norms[0], nn.Identity):
        return copied

    def fused(layers: Any, norms: Any) -> nn.ModuleList:
        pairs = zip(layers, norms, strict=True)
        return nn.ModuleList(nn.utils.fuse_conv_bn_eval(layer, norm) for layer, norm in pairs)

    for path in copied.paths.values():
        path.convolutions = fused(path.convolutions, path.norms)
        path.norms = nn.ModuleList(nn.Identity() for _ in path.norms)
    copied.dense = fused(copied.dense, copied.norms[1:])
    # The offset of the normalization belongs to the sum over all paths.
    norm: Any = copied.norms[0]
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    for layer in copied.merges.values():
        layer.weight *= scale[:, None, None, None, None]
    copied.merges["normal"].bias = nn.Parameter(norm.bias - norm.running_mean * scale)
    if copied.validity:
        copied.valid_weight *= scale
    copied.norms = nn.ModuleList(nn.Identity() for _ in copied.norms)
    return copied


class UNet(nn.Module):
    """The residual 3-D U-Net of MONAI, whose output is as large as its input."""

    def __init__(
        self, n_channels: int, widths: Sequence[int] = (16, 32, 64, 128), *, dropout: float = 0.0
    ) -> None:
        super().__init__()
        networks = import_optional("monai.networks.nets")
        self.divisor = 2 ** (len(widths) - 1)
        self.net = networks.UNet(
            spatial_dims=3,
            in_channels=n_channels,
            out_channels=1,
            channels=tuple(widths),
            strides=(2,) * (len(widths) - 1),
            num_res_units=1,
            norm="batch",
            dropout=dropout,
        )
        # Untrained, MONAI's last layer gives logits around 0. The offset makes them FIRST_LOGIT.
        self.offset = nn.Parameter(torch.tensor(FIRST_LOGIT))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """
        Give the logits of all voxels.

        Shapes: `image` (n, n_channels, x, y, z); returns (n, 1, x, y, z).
        """
        logits: torch.Tensor = self.net(image) + self.offset
        return logits


class SmallUNet(nn.Module):
    """
    A 3-D U-Net with two convolutions a level in the encoder and one in the decoder.

    `widths` are the channels of the levels, between which maximum pooling halves the resolution:
    the sides of a volume must be multiples of `divisor`. Convolutions have a width of 3 and are
    padded. With widths of 8, 16, 32 and 64 the network has 0.33 million weights.
    """

    def __init__(
        self, n_channels: int = 1, widths: Sequence[int] = (8, 16, 32, 64), *, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.divisor = 2 ** (len(widths) - 1)
        self.down = nn.ModuleList(
            nn.Sequential(*_block(n_in, n_out), *_block(n_out, n_out))
            for n_in, n_out in pairwise((n_channels, *widths))
        )
        # A decoder level takes the features from below, upsampled, and those of the encoder.
        self.up = nn.ModuleList(
            nn.Sequential(*_block(n_below + n_level, n_level))
            for n_below, n_level in pairwise(reversed(widths))
        )
        self.dropout = nn.Dropout(dropout)
        self.answer = nn.Conv3d(widths[0], 1, 1)
        nn.init.constant_(self.answer.bias, FIRST_LOGIT)  # type: ignore[arg-type]
        # Twice as fast on a CPU, whose convolutions otherwise reorder weights and inputs.
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """
        Give the logits of all voxels.

        Shapes: `image` (n, n_channels, x, y, z); returns (n, 1, x, y, z).
        """
        x = image
        if x.device.type == "cpu":
            x = x.contiguous(memory_format=torch.channels_last_3d)
        skips = []
        for level, block in enumerate(self.down):
            if level:
                x = functional.max_pool3d(x, 2)
            x = block(x)
            skips.append(x)
        x = self.dropout(skips.pop())
        for block in self.up:
            x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
            x = block(torch.cat([skips.pop(), x], dim=1))
        logits: torch.Tensor = self.answer(x)
        return logits


def _block(n_in: int, n_out: int) -> list[nn.Module]:
    """Make a convolution with its normalization and rectifier."""
    convolution = nn.Conv3d(n_in, n_out, 3, padding=1, bias=False)
    _initialize([convolution])
    # A training step sees two segments. Averages over ten steps, as by default, would vary by
    # chance and shift all logits.
    normalization = nn.BatchNorm3d(n_out, momentum=_MOMENTUM)
    return [convolution, normalization, nn.LeakyReLU(SLOPE, inplace=True)]
