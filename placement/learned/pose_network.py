"""The network that places a box, and its losses, which respect that a box has 24 poses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from placement.box.voxel import TURNS

#: Weights of position, sides and orientation, as published.
WEIGHTS = (2.0, 3.0, 3.0)

#: Weight of one less the Dice coefficient.
OVERLAP_WEIGHT = 6.0

#: Positions, and in the published loss sides, are compared in units of so many mm.
LENGTH_MM = 10.0

#: Likelihoods of centers are made of features times this, so that few steps of training can point
#: somewhere.
SHARPNESS = 4.0

#: Weight of the channel of distances in the likelihoods of centers before training, so that a
#: network starts with the deepest places.
DEPTH = 2.5

#: Slope of activations below zero, so that no channel dies.
SLOPE = 0.1

#: The part of tumor in a box is sampled at so many points along each side.
POINTS = 6

#: Number of features from which the heads answer.
HIDDEN = 128

#: Angles of canonical poses are below this.
LARGEST_ANGLE = np.pi / 3


class _Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one = nn.Conv3d(width, width, 3, padding=1, bias=False)
        self.norm_one = _norm(width)
        self.two = nn.Conv3d(width, width, 3, padding=1, bias=False)
        self.norm_two = _norm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = functional.leaky_relu(self.norm_one(self.one(x)), SLOPE, inplace=True)
        out: torch.Tensor = functional.leaky_relu(x + self.norm_two(self.two(inner)), SLOPE)
        return out


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(1, width // 4), width)


class PlacementNetwork(nn.Module):
    """
    Four convolutions of stride 2, a residual block after each, and linear heads.

    A view has `n` points along each axis, which are usually `step` mm apart. The head of sides
    (sigmoid) answers between the limits of `size_range` on a logarithmic scale, about `size`
    before training. Orientation is three Euler angles (tanh) with `angles`, as in the study, or
    two vectors made orthonormal.

    References
    ----------
    Lee et al., MICCAI 2024. Rotations of two vectors: Zhou et al., CVPR 2019.
    """

    def __init__(
        self,
        n_channels: int,
        widths: Sequence[int],
        n: int,
        step: float,
        *,
        size_range: tuple[float, float],
        size: Sequence[float],
        angles: bool = False,
        heat: bool = True,
        depth: int | None = None,
    ) -> None:
        super().__init__()
        stages = []
        before, side = n_channels, n
        for width in widths:
            first = nn.Conv3d(before, width, 3, stride=2, padding=1, bias=False)
            stages.append(
                nn.Sequential(
                    first, _norm(width), nn.LeakyReLU(SLOPE, inplace=True), _Residual(width)
                )
            )
            before, side = width, (side + 1) // 2
        self.stages = nn.ModuleList(stages)
        heads = [nn.Linear(width, 1, bias=False) for width in (n_channels, *widths[:3])]
        self.heat = nn.ModuleList(heads if heat else [])
        self.features = nn.Linear(before * side**3 + 1, HIDDEN)
        # Without it the first steps move all features alike, and all boxes come to have the same
        # sides.
        self.norm = nn.BatchNorm1d(HIDDEN)
        self.center = nn.Linear(HIDDEN, 3)
        self.size = nn.Linear(HIDDEN, 3)
        self.turn = nn.Linear(HIDDEN, 3 if angles else 6)
        self.reach = 0.5 * n
        self.step = step
        self.angles = angles
        low, high = np.log(size_range)
        self.low, self.span = float(low), float(high - low)
        start = np.clip((np.log(np.asarray(size)) - low) / (high - low), 0.02, 0.98)
        with torch.no_grad():
            for head in (self.center, self.size, self.turn):
                head.weight.mul_(0.1)
                head.bias.zero_()
            for head in heads:
                head.weight.zero_()
            if depth is not None:
                heads[0].weight[0, depth] = DEPTH
            self.size.bias.copy_(torch.from_numpy(np.log(start / (1 - start))))
            if not angles:
                self.turn.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]))

    def forward(self, volume: torch.Tensor, frame: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        Predict centers in mm from the middle of the view, logarithms of sides, and rotations.

        Shapes: `volume` (n, n_channels, x, y, z), `frame` (n, 4), as of `view_of`.
        """
        step = frame[:, 3:]
        maps = [volume]
        x = volume
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        expected = self._expected(maps) * step if len(self.heat) else torch.zeros_like(step)
        x = x.flatten(1)
        x = functional.silu(
            self._centered(self.features(torch.cat([x, torch.log(step / self.step)], dim=1)))
        )
        turn = self.turn(x).float()
        answer = {
            "center": expected + torch.tanh(self.center(x).float()) * self.reach * step,
            "log_size": self.low + self.span * torch.sigmoid(self.size(x).float()),
        }
        if self.angles:
            answer["angles"] = torch.tanh(turn) * LARGEST_ANGLE
            answer["rotation"] = rotation_from_angles(answer["angles"])
        else:
            answer["rotation"] = rotation_from_six(turn)
        return answer

    def _centered(self, features: torch.Tensor) -> torch.Tensor:
        """Normalize features over the batch; one sample alone as in prediction."""
        if len(features) > 1:
            return self.norm(features)
        norm = self.norm
        return functional.batch_norm(
            features, norm.running_mean, norm.running_var, norm.weight, norm.bias
        )

    def _expected(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Average positions by their probability of being the center, in steps: shape (n, 3)."""
        heat = torch.zeros((), device=maps[0].device)
        for head, features in reversed(list(zip(self.heat, maps, strict=False))):
            weight: torch.Tensor = head.weight  # type: ignore[assignment]
            shape = features.shape[2:]
            fine = (weight @ features.flatten(2)).float().reshape(-1, 1, *shape)
            # The coarsest map has none below it to add.
            if heat.ndim:
                heat = functional.interpolate(heat, size=shape)
            heat = fine + heat
        side = heat.shape[-1]
        likely = torch.softmax(SHARPNESS * heat.flatten(1), dim=1).reshape(-1, side, side, side)
        line = torch.arange(side, device=heat.device) - self.reach + 0.5
        return torch.stack([likely.sum(axes) @ line for axes in ((2, 3), (1, 3), (1, 2))], dim=1)


def rotation_from_six(six: torch.Tensor) -> torch.Tensor:
    """
    Make rotations of two vectors each, by the method of Gram and Schmidt.

    Shapes: `six` (n, 6); returns (n, 3, 3).
    """
    first = functional.normalize(six[:, :3], dim=1, eps=1e-6)
    across = six[:, 3:] - (first * six[:, 3:]).sum(1, keepdim=True) * first
    second = functional.normalize(across, dim=1, eps=1e-6)
    return torch.stack([first, second, torch.linalg.cross(first, second)], dim=2)


def rotation_from_angles(angles: torch.Tensor) -> torch.Tensor:
    """
    Make rotations of intrinsic XYZ Euler angles.

    Shapes: `angles` (n, 3); returns (n, 3, 3).
    """
    (sa, sb, sc), (ca, cb, cc) = torch.sin(angles).unbind(1), torch.cos(angles).unbind(1)
    rows = [
        [cb * cc, -cb * sc, sb],
        [ca * sc + sa * sb * cc, ca * cc - sa * sb * sc, -sa * cb],
        [sa * sc - ca * sb * cc, sa * cc + ca * sb * sc, ca * cb],
    ]
    return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)


def sampled_fraction(
    tumor: torch.Tensor,
    center: torch.Tensor,
    size: torch.Tensor,
    rotation: torch.Tensor,
    step: torch.Tensor,
) -> torch.Tensor:
    """
    Estimate the fraction of boxes that is tumor, with gradients for all nine numbers.

    Shapes: `tumor` (n, 1, x, y, z), `center`, `size` (n, 3), `rotation` (n, 3, 3).
    """
    return _sampled(tumor, _points(center, size, rotation), step).mean(1)


def _points(center: torch.Tensor, size: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """Spread `POINTS`³ places in each box: shape (n, points, 3)."""
    line = (torch.arange(POINTS, dtype=center.dtype, device=center.device) + 0.5) / POINTS - 0.5
    unit = torch.cartesian_prod(line, line, line)
    return (unit * size[:, None]) @ rotation.transpose(1, 2) + center[:, None]


def sampled_dice(
    answers: Mapping[str, torch.Tensor], targets: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """
    Estimate Dice coefficients with experts' boxes, with gradients where boxes overlap.

    Shapes: returns (n, n_experts).
    """
    size = answers["log_size"].exp()
    points = _points(answers["center"], size, answers["rotation"])
    local = (points[:, None] - targets["center"][:, :, None]) @ targets["rotation"]
    sides = targets["size"][:, :, None]
    # Clamped ramps at the faces have gradients, which a test for inside or outside has not.
    within = torch.clamp((0.5 * sides - local.abs()) * (POINTS / sides) + 0.5, 0, 1)
    inside = within.prod(-1).mean(-1)
    volume = size.prod(-1)[:, None]
    expert_volume = targets["size"].prod(-1)
    return 2 * inside * volume / (volume + expert_volume)


def _sampled(tumor: torch.Tensor, points: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Interpolate at points, shape (n, m, 3) in mm from the middle."""
    # Torch counts a grid from -1 to 1 over its outer faces, last axis first.
    grid = (points / (0.5 * tumor.shape[-1] * step[:, None, None])).flip(-1)
    values = functional.grid_sample(
        tumor, grid[:, :, None, None], align_corners=False, padding_mode="zeros"
    )
    return values[:, 0, :, 0, 0]


class PlacementLoss(nn.Module):
    """
    How far boxes are from those of experts, and how much of them is not tumor.

    With weights λ = 2, 3, 3 it is λ₁ (center) + λ₂ (sides) + λ₃ (orientation) + (1 − f) + c, where
    f is the part of the box that is tumor, sampled. Centers are compared in units of 10 mm.

    Parameters
    ----------
    kind : {"symmetric", "euler", "moment"}
        ``"euler"``: the study's sums of squares; sides in units of 10 mm, Euler angles of the
        canonical pose in radians. The study's step for a center outside the tumor has no gradient;
        it is left out, and c = 0. ``"moment"``: |Δcenter|², and |log S − log S*|²
        / 4 for sides and orientation together, with the second moments S = R diag(d² / 12) Rᵀ, the
        same for all names of a box; without gradient for the orientation of a cube.
        ``"symmetric"``: the least over the 24 names of a box of the squared logarithms of the
        ratios of sides and |R − R*|² / 8; for centers √(1 + |Δcenter|²) − 1, which experts who
        chose another place do not pull far; and `OVERLAP_WEIGHT` times one less the Dice
        coefficient, sampled. With the last two, c is 1 less what is tumor at the center,
        interpolated.
    expert_loss : {"min", "mean", "each"}
        Whether the nearest expert counts, or the mean over experts. "each" is a mean; samples then
        hold one expert.

    References
    ----------
    Lee et al., MICCAI 2024.
    """

    def __init__(self, kind: str = "symmetric", expert_loss: str = "min") -> None:
        super().__init__()
        self.kind = kind
        self.expert_loss = expert_loss
        self.turns: torch.Tensor
        self.register_buffer("turns", torch.from_numpy(TURNS.astype(np.float32)), persistent=False)

    def forward(
        self, answers: Mapping[str, torch.Tensor], targets: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Compute the loss."""
        terms = self.terms(answers, targets)
        return (terms["experts"] + terms["outside"] + terms["center"]).mean()

    def terms(
        self, answers: Mapping[str, torch.Tensor], targets: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Compute the parts of the loss for each case."""
        position = ((answers["center"][:, None] - targets["center"]) / LENGTH_MM).square().sum(-1)
        apart = self._shape_distances(answers, targets)
        if self.kind == "symmetric":
            apart = apart + WEIGHTS[0] * (torch.sqrt(1 + position) - 1)
            apart = apart + OVERLAP_WEIGHT * (1 - sampled_dice(answers, targets))
        else:
            apart = apart + WEIGHTS[0] * position
        present = targets["present"]
        if self.expert_loss == "min":
            distance = torch.where(present > 0, apart, torch.inf).amin(1)
        else:
            distance = torch.where(present > 0, apart, 0.0).sum(1) / present.sum(1)
        size = answers["log_size"].exp()
        fraction = sampled_fraction(
            targets["tumor"], answers["center"], size, answers["rotation"], targets["step"]
        )
        center = torch.zeros_like(fraction)
        if self.kind != "euler":
            centers = answers["center"][:, None]
            center = 1 - _sampled(targets["tumor"], centers, targets["step"])[:, 0]
        return {"experts": distance, "outside": 1 - fraction, "center": center}

    def _shape_distances(
        self, answers: Mapping[str, Any], targets: Mapping[str, Any]
    ) -> torch.Tensor:
        """Give weighted squared distances of sides and orientation, shape (n, n_experts)."""
        logs = answers["log_size"][:, None]
        expert_logs = targets["size"].log()
        if self.kind == "euler":
            sides = ((logs.exp() - targets["size"]) / LENGTH_MM).square().sum(-1)
            angles = (answers["angles"][:, None] - targets["angles"]).square().sum(-1)
            return WEIGHTS[1] * sides + WEIGHTS[2] * angles
        if self.kind == "moment":
            moments = _log_moment(logs, answers["rotation"][:, None])
            expert_moments = _log_moment(expert_logs, targets["rotation"])
            return WEIGHTS[1] * (moments - expert_moments).square().sum((-1, -2)) / 4
        # A box has 24 names, one for each turn P: sides change places, |P|ᵀ d, and its rotation
        # becomes R P. The name of the expert's box that is nearest counts.
        sides = (
            (logs[:, :, None] - torch.einsum("kab,nea->nekb", self.turns.abs(), expert_logs))
            .square()
            .sum(-1)
        )
        expert_rotations = torch.einsum("neab,kbc->nekac", targets["rotation"], self.turns)
        rotation_errors = answers["rotation"][:, None, None] - expert_rotations
        rotations = rotation_errors.square().sum((-1, -2)) / 8
        return (WEIGHTS[1] * sides + WEIGHTS[2] * rotations).amin(2)


def _log_moment(log_size: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """Logarithm of the second moments of boxes, which has the same eigenvectors as they."""
    values = 2 * log_size - float(np.log(12.0))
    return (rotation * values[..., None, :]) @ rotation.transpose(-1, -2)
