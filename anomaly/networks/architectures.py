"""The networks: a variational autoencoder, and reconstruction with discrimination."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional

#: Slope of the autoencoder's rectifier below zero.
SLOPE = 0.01
#: log σ² of latent numbers before training.
FIRST_LOG_VARIANCE = -6.0
#: Share of its first weights that the last layer keeps where it adds to the healthy mean.
FIRST_DETAIL = 0.1
#: What lies beyond is cut off. A latent number that tells nothing has a variance of 1; more only
#: disturbs learning.
_LOG_VARIANCES = (-30.0, 0.0)


def padded_shape(shape: Sequence[int], step: int) -> tuple[int, int, int]:
    """Give the smallest shape from this one on whose edges are multiples of `step`."""
    x, y, z = (max(1, -(-n // step)) * step for n in shape)
    return x, y, z


def padded(x: torch.Tensor, larger: Sequence[int]) -> torch.Tensor:
    """
    Pad volumes with zeros on both sides, with an odd voxel at the end.

    Shapes: `x` (n, channels, x, y, z); returns (n, channels, *larger).
    """
    sides: list[int] = []
    for before, after in zip(x.shape[2:], larger, strict=True):
        first = (after - before) // 2
        # torch counts axes from the last one.
        sides = [first, after - before - first, *sides]
    return functional.pad(x, sides) if any(sides) else x


def cut(x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """
    Take the middle of volumes, which `padded` has put there.

    Shapes: `x` (n, channels, x, y, z); returns (n, channels, *shape).
    """
    for axis, n in enumerate(shape, start=2):
        x = x.narrow(axis, (x.shape[axis] - n) // 2, n)
    return x


class Mix(nn.Module):
    """A convolution of 1³ as a matrix product, which keeps the memory layout of channels."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        layer = nn.Linear(before, after)
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        """
        Mix channels, voxel by voxel.

        Shapes: `volume` (n, before, x, y, z); returns (n, after, x, y, z).
        """
        n, _, *shape = volume.shape
        weight = self.weight.expand(n, -1, -1)
        mixed = torch.baddbmm(
            self.bias[None, :, None], weight, volume.reshape(n, len(self.weight[0]), -1)
        )
        return mixed.reshape(n, -1, *shape)


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    """Lay features out in memory as convolutions on the processor need them."""
    return x.contiguous(memory_format=torch.channels_last_3d) if x.device.type == "cpu" else x


class VariationalAutoencoder(nn.Module):
    """
    A convolutional variational autoencoder with a linear latent vector.

    Each width is a convolution of 3³ with stride 2, batch normalization and a leaky rectifier. A
    linear layer (of `dense` numbers, without a rectifier) leads to mean and logarithm of the
    variance of the latent numbers; the decoder mirrors the encoder, and ends with as many channels
    as the first width at full resolution and a convolution of 1³. In training the latent numbers
    are drawn from their distribution, elsewhere they are its mean, so that a volume has one
    answer.

    A shape that cannot be halved as often as there are widths is padded with zeros, as many on
    either side and an odd one at the end, and the answer is cut again.

    References
    ----------
    Weninger et al., Scientific Reports 13:20366, 2023.
    """

    def __init__(
        self,
        n_channels: int,
        shape: Sequence[int],
        widths: Sequence[int] = (64, 128, 256, 512),
        latent_dim: int = 512,
        *,
        output: str = "sigmoid",
        dense: int | None = 512,
    ) -> None:
        super().__init__()
        # A copy: the order of what was given stays.
        widths = tuple(widths)
        self.output = output
        self.n_channels = n_channels
        self.shape = tuple(shape)
        self.larger = padded_shape(shape, 2 ** len(widths))
        self.smallest = tuple(n // 2 ** len(widths) for n in self.larger)
        self.encoder = nn.Sequential(*(_level(a, b) for a, b in pairwise((n_channels, *widths))))
        self._add_bottleneck(widths[-1], latent_dim, dense)
        # From zero on: a variance that begins large hides what is to be learned, or never comes
        # back.
        nn.init.zeros_(self.to_log_variance.weight)
        nn.init.constant_(self.to_log_variance.bias, FIRST_LOG_VARIANCE)
        reverse = (*widths[::-1], widths[0])
        self.decoder = nn.Sequential(*(_raise(a, b) for a, b in pairwise(reverse)))
        self.answer = Mix(widths[0], n_channels)

    def _add_bottleneck(self, width: int, latent_dim: int, dense: int | None) -> None:
        """Make the layers between the features of the smallest level and the latent numbers."""
        n_features = width * math.prod(self.smallest)
        self.latent_shape: tuple[int, ...] = (latent_dim,)
        self.flatten: nn.Module = nn.Flatten()
        self.to_dense: nn.Module = nn.Linear(n_features, dense) if dense else nn.Identity()
        self.to_mean: nn.Linear | Mix = nn.Linear(dense or n_features, latent_dim)
        self.to_log_variance: nn.Linear | Mix = nn.Linear(dense or n_features, latent_dim)
        widths = [latent_dim, dense, n_features] if dense else [latent_dim, n_features]
        self.from_latent: nn.Module = nn.Sequential(
            *(nn.Linear(a, b) for a, b in pairwise(widths))
        )

    def level(self, values: Any) -> None:
        """Set the bias of the last layer, so that a network that is new answers with it."""
        with torch.no_grad():
            self.answer.bias.copy_(torch.as_tensor(values, dtype=torch.float32))

    def encode(self, volume: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Give mean and logarithm of the variance of the latent numbers.

        Shapes: `volume` (n, n_channels, x, y, z); returns mean, log_variance (n, latent_dim).
        """
        smallest = self.encoder(_channels_last(padded(volume, self.larger)))
        features = self.to_dense(self.flatten(smallest))
        mean, log_variance = self.to_mean(features), self.to_log_variance(features)
        return mean.flatten(1), log_variance.flatten(1).clamp(*_LOG_VARIANCES)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """
        Give the volumes that belong to latent numbers.

        Shapes: `latent` (n, latent_dim); returns (n, n_channels, x, y, z).
        """
        features = self.from_latent(latent.reshape(-1, *self.latent_shape))
        # The features of the smallest level.
        features = features.reshape(len(latent), -1, *self.smallest)
        volume = cut(self.answer(self.decoder(_channels_last(features))), self.shape)
        volume = self._with_detail(volume)
        if self.output == "sigmoid":
            volume = volume.sigmoid()
        return volume

    def _with_detail(self, volume: torch.Tensor) -> torch.Tensor:
        """Add the healthy mean, in a derived class that has it; here nothing."""
        return volume

    def forward(self, volume: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Reconstruct volumes.

        Shapes: `volume` (n, n_channels, x, y, z); returns the same, and mean and log_variance
        (n, latent_dim).
        """
        mean, log_variance = self.encode(volume)
        latent = mean
        if self.training:
            latent = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        return self.decode(latent), mean, log_variance


class LatentMapAutoencoder(VariationalAutoencoder):
    """
    A variational autoencoder with a map of latent numbers, and spatial detail in its decoder.

    Convolutions of 1³ lead from the smallest level to latent numbers at each of its places, about
    `latent_dim` in all, and back: no linear layer joins distant places. What is decoded is added
    to the healthy mean of every voxel, which `level` sets, so that cortex and borders of fluid
    have not to pass the latent numbers.
    """

    image: torch.Tensor

    def _add_bottleneck(self, width: int, latent_dim: int, dense: int | None) -> None:
        """Make the layers between the features of the smallest level and the latent numbers."""
        n_maps = max(1, round(latent_dim / math.prod(self.smallest)))
        self.latent_shape = (n_maps, *self.smallest)
        self.flatten = self.to_dense = nn.Identity()
        self.to_mean, self.to_log_variance = Mix(width, n_maps), Mix(width, n_maps)
        self.from_latent = Mix(n_maps, width)
        self.register_buffer("image", torch.zeros(self.n_channels, *self.shape))

    def level(self, values: Any) -> None:
        """Set the image that decoded volumes are added to, (n_channels, x, y, z)."""
        with torch.no_grad():
            self.image.copy_(torch.as_tensor(values, dtype=torch.float32))
            # From the image on: what a new network adds is small.
            self.answer.weight.mul_(FIRST_DETAIL)
            self.answer.bias.zero_()

    def _with_detail(self, volume: torch.Tensor) -> torch.Tensor:
        return volume + self.image


def _level(before: int, after: int) -> nn.Module:
    convolution = nn.Conv3d(before, after, 3, stride=2, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm3d(after), nn.LeakyReLU(SLOPE, inplace=True))


def _raise(before: int, after: int) -> nn.Module:
    convolution = nn.ConvTranspose3d(
        before, after, 3, stride=2, padding=1, output_padding=1, bias=False
    )
    return nn.Sequential(convolution, nn.BatchNorm3d(after), nn.LeakyReLU(SLOPE, inplace=True))


class UShaped(nn.Module):
    """
    A U-shaped network, with or without skip connections.

    Each level has convolutions of 3³, each with instance normalization and a rectifier; between
    levels volumes are halved by the stride of the first convolution, and doubled by a transposed
    convolution of 2³.

    It sees volumes of `n_channels` channels side by side. The first level has `width` channels,
    each further one twice as many. A `stem` makes fewer channels of them first by a convolution of
    1³, so that the others have less to compute.
    """

    def __init__(
        self,
        n_channels: Sequence[int],
        n_answers: int,
        width: int,
        levels: int = 3,
        *,
        skips: bool = True,
        stem: int | None = None,
        convolutions: int = 2,
    ) -> None:
        super().__init__()
        self.skips = skips
        widths = [width * 2**level for level in range(levels)]
        # A convolution of all channels is the sum of those of each volume, without one that holds
        # them all.
        self.stems = nn.ModuleList(Mix(n, stem) for n in n_channels) if stem else None
        before = [stem or sum(n_channels), *widths[:-1]]
        self.down = nn.ModuleList(
            _block(a, b, convolutions, stride=2 if level else 1)
            for level, (a, b) in enumerate(zip(before, widths, strict=True))
        )
        self.up = nn.ModuleList(nn.ConvTranspose3d(b, a, 2, stride=2) for a, b in pairwise(widths))
        n_joined = 2 if skips else 1
        self.after = nn.ModuleList(_block(n_joined * a, a, convolutions) for a in widths[:-1])
        self.answer = Mix(width, n_answers)

    def forward(self, *volumes: torch.Tensor) -> torch.Tensor:
        """
        Compute the answer.

        Shapes: `*volumes` (n, n_channels, x, y, z); returns (n, n_answers, x, y, z).
        """
        encoder_levels = []
        if self.stems is None:
            volume = torch.cat(volumes, dim=1) if len(volumes) > 1 else volumes[0]
        else:
            stems = zip(self.stems, volumes, strict=True)
            volume = sum(stem(channels) for stem, channels in stems)
        volume = _channels_last(volume)
        for level in self.down:
            volume = level(volume)
            if self.skips:
                encoder_levels.append(volume)
        for number in reversed(range(len(self.up))):
            volume = self.up[number](volume)
            if self.skips:
                volume = torch.cat([volume, encoder_levels[number]], dim=1)
            volume = self.after[number](volume)
        answer: torch.Tensor = self.answer(volume)
        return answer


def _block(before: int, after: int, convolutions: int, *, stride: int = 1) -> nn.Module:
    layers: list[nn.Module] = []
    for a, b, step in [(before, after, stride), *[(after, after, 1)] * (convolutions - 1)]:
        # Affine: otherwise the normalization takes away every contrast between scans.
        norm = nn.InstanceNorm3d(b, affine=True)
        layers += [
            nn.Conv3d(a, b, 3, stride=step, padding=1, bias=False),
            norm,
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


class ReconstructionDiscrimination(nn.Module):
    """
    A network that reconstructs a volume as if it were healthy, and one that compares the two.

    The first is U-shaped without skip connections, so that anomalies have to pass its narrowest
    level; the second has them, and sees reconstruction and input side by side.

    A shape that cannot be halved as often as there are levels less one is padded with zeros, as
    many on either side and an odd one at the end, and the answers are cut again.

    References
    ----------
    Weninger et al., Scientific Reports 13:20366, 2023.
    """

    def __init__(
        self,
        n_channels: int,
        reconstruction_width: int = 128,
        discrimination_width: int = 16,
        levels: int = 3,
        *,
        output: str = "linear",
        stem: int | None = None,
        convolutions: int = 2,
    ) -> None:
        super().__init__()
        self.output = output
        self.step = 2 ** (levels - 1)
        options: dict[str, Any] = {"stem": stem, "convolutions": convolutions}
        self.reconstruct = UShaped(
            (n_channels,), n_channels, reconstruction_width, levels, skips=False, **options
        )
        self.discriminate = UShaped(
            (n_channels, n_channels), 1, discrimination_width, levels, skips=True, **options
        )

    def level(self, values: Any) -> None:
        """Set the bias of the last layer, so that a network that is new answers with it."""
        with torch.no_grad():
            self.reconstruct.answer.bias.copy_(torch.as_tensor(values, dtype=torch.float32))

    def forward(self, volume: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Reconstruct volumes, and say where they are not healthy.

        Shapes: `volume` (n, n_channels, x, y, z); returns the same, and logits (n, 1, x, y, z).
        """
        shape = volume.shape[2:]
        volume = padded(volume, padded_shape(shape, self.step))
        reconstruction = self.reconstruct(volume)
        if self.output == "sigmoid":
            reconstruction = reconstruction.sigmoid()
        logits = self.discriminate(reconstruction, volume)
        return cut(reconstruction, shape), cut(logits, shape)
