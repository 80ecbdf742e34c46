"""What the two networks minimize: errors, divergence of latent numbers, weighted cross-entropy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional


def divergence(
    mean: torch.Tensor, log_variance: torch.Tensor, *, reduction: str = "paper"
) -> torch.Tensor:
    """
    Compute the Kullback–Leibler divergence of a normal distribution from the standard one.

    Of one latent number it is (μ² + σ² − 1 − log σ²) / 2.

    Shapes: `mean`, `log_variance` (n, latent).

    References
    ----------
    Kingma and Welling, arXiv 1312.6114, appendix B.
    """
    each = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
    return each.sum(dim=1).mean() if reduction == "code" else each.mean()


def squared_error(
    reconstruction: torch.Tensor, volume: torch.Tensor, brain: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Compute the mean squared error, of all voxels or of those of the brain.

    Shapes: `reconstruction`, `volume` (n, channels, x, y, z), `brain` (n, 1, x, y, z).
    """
    if brain is None:
        return functional.mse_loss(reconstruction, volume)
    squares = (reconstruction - volume).square().mean(dim=1, keepdim=True)
    return (squares * brain).sum() / brain.sum()


def weighted_cross_entropy(
    logits: torch.Tensor,
    target: torch.Tensor,
    positive_weight: float = 1.0,
    brain: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Compute the mean binary cross-entropy, with another weight for anomalies than for the rest.

    Of a voxel with the probability p it is −w log p in an anomaly, and −log(1 − p) elsewhere.
    """
    weight = logits.new_tensor(positive_weight)
    each = functional.binary_cross_entropy_with_logits(
        logits, target.to(logits.dtype), pos_weight=weight, reduction="none"
    )
    return each.mean() if brain is None else (each * brain).sum() / brain.sum()


class VariationalLoss(nn.Module):
    """
    Mean squared error of a reconstruction, and ω times the divergence of its latent numbers.

    The default of ω, `kl_weight`, is the published one; `reduction` is that of `divergence`.
    """

    def __init__(self, kl_weight: float = 1.22e-5, *, reduction: str = "paper") -> None:
        super().__init__()
        self.kl_weight = kl_weight
        self.reduction = reduction

    def forward(
        self, answers: tuple[torch.Tensor, ...], target: Mapping[str, Any]
    ) -> torch.Tensor:
        """Compute the loss of a batch."""
        reconstruction, mean, log_variance = answers
        error = squared_error(reconstruction, target["volume"], target.get("brain"))
        return error + self.kl_weight * divergence(mean, log_variance, reduction=self.reduction)


class DiscriminationLoss(nn.Module):
    """
    Mean squared error of a reconstruction, and the weighted cross-entropy of where anomalies were.

    It is ``mse_weight`` · MSE + ``bce_weight`` · BCE.

    The paper has an ``mse_weight`` of 1 and calls the other ω, which is 0.2 in the published code
    up to a common factor. Voxels of an anomaly weigh ``positive_weight`` in the cross-entropy.
    """

    def __init__(
        self, mse_weight: float = 5.0, bce_weight: float = 1.0, positive_weight: float = 20.0
    ) -> None:
        super().__init__()
        self.mse_weight = mse_weight
        self.bce_weight = bce_weight
        self.positive_weight = positive_weight

    def forward(
        self, answers: tuple[torch.Tensor, ...], target: Mapping[str, Any]
    ) -> torch.Tensor:
        """Compute the loss of a batch."""
        reconstruction, logits = answers
        brain = target.get("brain")
        error = squared_error(reconstruction, target["volume"], brain)
        entropy = weighted_cross_entropy(logits, target["anomaly"], self.positive_weight, brain)
        return self.mse_weight * error + self.bce_weight * entropy
