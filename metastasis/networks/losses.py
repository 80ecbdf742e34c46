"""Losses that weigh sensitivity against specificity, and the optimizer of the publication."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from dmrifit._optional import import_optional
from dmrifit._utils.checks import check_number, check_word

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.nn import functional
    from torch.optim import Optimizer
else:
    torch = import_optional("torch")
    nn = torch.nn
    functional = nn.functional
    Optimizer = torch.optim.Optimizer

__all__ = ["JVSSLoss", "SSELoss", "VSSLoss", "jvss_loss", "sse_loss", "vss_loss"]

#: The ε of the paper, so that a batch without positive (or negative) segments is not divided by 0.
EPSILON = 1e-7
#: What is added to denominators, in the paper and in its published program.
_DENOMINATOR_OFFSETS = {"paper": EPSILON, "code": 1.0}
_REDUCTIONS = tuple(_DENOMINATOR_OFFSETS)


def vss_loss(
    logits: torch.Tensor, target: torch.Tensor, alpha: float, *, reduction: str = "paper"
) -> torch.Tensor:
    """
    Compute the volume-level sensitivity-specificity loss of a batch of segments.

    A segment is positive when any voxel of it is, and its probability is the largest of its
    voxels'. With y_i the labels and p_i the probabilities of segment i, maxima over space and sums
    over the batch::

        sens = Σ max(p_i y_i) / (Σ max y_i + ε)
        spec = Σ (1 − max y_i)(1 − max p_i) / (Σ (1 − max y_i) + ε)
        VSS = 1 − (α sens + (1 − α) spec)

    The loss belongs to the batch and is no mean over segments: other batches, other values. False
    positives inside of positive segments cost nothing, so that VSS alone does not delineate. Each
    maximum gives its gradient to one voxel, the first of equals. A batch without positive segments
    has sens = 0: the value then holds α as a constant, and the gradient is that of (1 − α)(1 −
    spec) alone; one without negative segments likewise. So the term that is missing is skipped in
    training, but values of batches of different composition do not compare.

    Parameters
    ----------
    logits : tensor of shape (n_segments, ...)
        Before the sigmoid; those of half precision are computed in single precision.
    target : tensor of the same shape
        0 or 1.
    alpha : float
        Weight of sensitivity, from 0 to 1.
    reduction : {"paper", "code"}, default="paper"
        The denominators: ε = 1e-7 as the paper has them, or 1 in place of ε as in the published
        program, which then cannot reach sens = 1: with five positive segments it ends at 5/6.

    Returns
    -------
    tensor
        One number, from 0 to 1.

    Raises
    ------
    ValueError
        If the shapes differ, `alpha` is not from 0 to 1 or the reduction has another name.

    References
    ----------
    Huang et al., Medical Physics 49:5773–5786, 2022.
    """
    logits, target = _checked(logits, target, alpha, reduction)
    logits, target = logits.flatten(1), target.flatten(1)
    offset = _DENOMINATOR_OFFSETS[reduction]
    # Largest probability inside of the lesions of each segment.
    detected = (torch.sigmoid(logits) * target).max(dim=1).values
    positive = target.max(dim=1).values
    negative = 1 - positive
    sensitivity = detected.sum() / (positive.sum() + offset)
    # 1 − p from the logit itself: the probability is 1 to the last digit from logits of 17 on.
    probability_of_none = torch.sigmoid(-logits.max(dim=1).values)
    specificity = (negative * probability_of_none).sum() / (negative.sum() + offset)
    return 1 - (alpha * sensitivity + (1 - alpha) * specificity)


def jvss_loss(
    logits: torch.Tensor, target: torch.Tensor, alpha: float, *, reduction: str = "paper"
) -> torch.Tensor:
    """
    Compute the joint loss of a batch of segments: VSS plus the binary cross-entropy of voxels.

    Both have the weight 1.

    Parameters
    ----------
    logits : tensor of shape (n_segments, ...)
        Before the sigmoid; those of half precision are computed in single precision.
    target : tensor of the same shape
        0 or 1.
    alpha : float
        Weight of sensitivity, from 0 to 1.
    reduction : {"paper", "code"}, default="paper"
        As of `vss_loss`.

    Returns
    -------
    tensor
        One number.

    Raises
    ------
    ValueError
        If the shapes differ, `alpha` is not from 0 to 1 or the reduction has another name.

    References
    ----------
    Huang et al., Medical Physics 49:5773–5786, 2022.
    """
    logits, target = _checked(logits, target, alpha, reduction)
    # VSS moves one voxel of each segment only; the entropy has a gradient in all of them.
    entropy = functional.binary_cross_entropy_with_logits(logits, target)
    return vss_loss(logits, target, alpha, reduction=reduction) + entropy


def sse_loss(
    logits: torch.Tensor, target: torch.Tensor, alpha: float, *, reduction: str = "paper"
) -> torch.Tensor:
    """
    Compute the voxel-level sensitivity-specificity error, the loss that VSS is compared with.

    With sums over all voxels of the batch::

        SSE = α Σ (y − p)² y / Σ y + (1 − α) Σ (y − p)² (1 − y) / Σ (1 − y)

    In a batch without lesion voxels, or without others, that term is 0 in value and gradient.

    Parameters
    ----------
    logits : tensor of shape (n_segments, ...)
        Before the sigmoid; those of half precision are computed in single precision.
    target : tensor of the same shape
        0 or 1.
    alpha : float
        Weight of lesion voxels, from 0 to 1.
    reduction : {"paper", "code"}, default="paper"
        The denominators as written, or with 1 added.

    Returns
    -------
    tensor
        One number, from 0 to 1.

    Raises
    ------
    ValueError
        If the shapes differ, `alpha` is not from 0 to 1 or the reduction has another name.

    References
    ----------
    Brosch et al., MICCAI 2015, LNCS 9351:3–11; Huang et al., Medical Physics 49:5773–5786, 2022.
    """
    logits, target = _checked(logits, target, alpha, reduction)
    offset = _DENOMINATOR_OFFSETS[reduction]
    background = 1 - target
    # 1 − p as a sigmoid of its own: the difference would lose its digits where p is near 1.
    lesion_error = torch.sigmoid(-logits).square() * target
    background_error = torch.sigmoid(logits).square() * background
    missed = lesion_error.sum() / (target.sum() + offset)
    false_alarms = background_error.sum() / (background.sum() + offset)
    return alpha * missed + (1 - alpha) * false_alarms


def _checked(
    logits: torch.Tensor, target: torch.Tensor, alpha: float, reduction: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Check the arguments of a loss; give logits and targets in single precision at least."""
    if logits.shape != target.shape or logits.ndim < 2:
        raise ValueError(
            f"logits of shape {tuple(logits.shape)} and a target of shape {tuple(target.shape)}; "
            "both must be of one shape (n_segments, ...)"
        )
    check_number("alpha", alpha, most=1)
    check_word("reduction", reduction, _REDUCTIONS)
    # Sums over the voxels of a segment overflow half precision.
    if logits.dtype not in (torch.float32, torch.float64):
        logits = logits.float()
    return logits, target.to(logits.dtype)


class _WeightedLoss(nn.Module):
    """Base of the losses with a weight `alpha`, as modules."""

    #: The loss as a function.
    _loss: ClassVar[Callable[..., torch.Tensor]]

    def __init__(self, alpha: float, *, reduction: str = "paper") -> None:
        super().__init__()
        check_number("alpha", alpha, most=1)
        check_word("reduction", reduction, _REDUCTIONS)
        self.alpha = alpha
        self.reduction = reduction

    def extra_repr(self) -> str:
        """
        Describe the parameters.

        Returns
        -------
        str
            As in the constructor.
        """
        return f"alpha={self.alpha}, reduction={self.reduction!r}"

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """
        Compute the loss of a batch.

        Parameters
        ----------
        logits : tensor of shape (n_segments, ...)
            Before the sigmoid.
        target : tensor of the same shape
            0 or 1.

        Returns
        -------
        tensor
            One number.
        """
        return self._loss(logits, target, self.alpha, reduction=self.reduction)


class VSSLoss(_WeightedLoss):
    """
    `vss_loss` as a module.

    Parameters
    ----------
    alpha : float
        Weight of sensitivity, from 0 to 1.
    reduction : {"paper", "code"}, default="paper"
        The denominators.
    """

    # A plain function would become a method, and get the module as its logits.
    _loss = staticmethod(vss_loss)


class JVSSLoss(_WeightedLoss):
    """
    `jvss_loss` as a module.

    Parameters
    ----------
    alpha : float
        Weight of sensitivity, from 0 to 1.
    reduction : {"paper", "code"}, default="paper"
        The denominators.
    """

    _loss = staticmethod(jvss_loss)


class SSELoss(_WeightedLoss):
    """
    `sse_loss` as a module.

    Parameters
    ----------
    alpha : float
        Weight of lesion voxels, from 0 to 1.
    reduction : {"paper", "code"}, default="paper"
        The denominators.
    """

    _loss = staticmethod(sse_loss)


class VoxelLoss(nn.Module):
    """Mean binary cross-entropy of voxels, in single precision from logits."""

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """
        Compute the loss of a batch.

        Shapes: `logits` (n_segments, ...).
        """
        logits, target = _checked(logits, target, 0.0, "paper")
        return functional.binary_cross_entropy_with_logits(logits, target)


class LesionLoss(nn.Module):
    """
    Cross-entropy and soft Dice coefficient with a weight for each voxel.

    Weights that fall with the size of a lesion make small lesions count: a plain mean over voxels
    learns large rings alone. Voxels of weight 0 are not judged.
    """

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """
        Compute the loss of a batch.

        Shapes: `logits` (n, 1, x, y, z), `target` (n, 2, x, y, z): labels and weights.
        """
        logits = logits.float()
        labels, weights = target[:, :1].float(), target[:, 1:].float()
        entropy = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        n_judged = (weights > 0).sum().clamp(min=1)
        probabilities = torch.sigmoid(logits) * weights
        both = 2 * (probabilities * labels).sum() + 1
        dice = both / (probabilities.sum() + (weights * labels).sum() + 1)
        return (weights * entropy).sum() / n_judged + 1 - dice


class NesterovRMSprop(Optimizer):
    """
    RMSProp with Nesterov's momentum, and with the gradients of penalties on weights.

    With the gradient g of loss and penalties, step by step::

        a ← ρ a + (1 − ρ) g²        s = lr g / √(a + ε)
        v ← µ v − s                 w ← w + µ v − s

    That of torch has a plain momentum only. The penalties l1 Σ|w| + l2 Σ w² are those of kernels,
    not of biases and normalizations.

    References
    ----------
    Tieleman and Hinton, Coursera: Neural networks for machine learning, lecture 6.5, 2012;
    Sutskever et al., ICML 2013, 1139–1147.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.001,
        *,
        momentum: float = 0.6,
        rho: float = 0.9,
        eps: float = 1e-4,
        l1: float = 0.0,
        l2: float = 0.0,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "rho": rho, "eps": eps, "l1": l1, "l2": l2}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weights in group["params"]:
                if weights.grad is None:
                    continue
                gradient = weights.grad
                # Biases and normalizations, of one dimension, are not penalized: they do not
                # overfit.
                if weights.ndim > 1 and (group["l1"] or group["l2"]):
                    gradient = gradient + group["l1"] * weights.sign() + 2 * group["l2"] * weights
                state = self.state[weights]
                if not state:
                    state["mean_square"] = torch.zeros_like(weights)
                    state["velocity"] = torch.zeros_like(weights)
                mean_square = state["mean_square"]
                mean_square.mul_(group["rho"])
                mean_square.addcmul_(gradient, gradient, value=1 - group["rho"])
                step = gradient * torch.rsqrt(mean_square + group["eps"]) * group["lr"]
                velocity = state["velocity"]
                velocity.mul_(group["momentum"]).sub_(step)
                # Nesterov: the weights move by the velocity that the next step would have.
                weights.add_(velocity, alpha=group["momentum"]).sub_(step)
        return loss
