"""The optimizer that the networks were published with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from dmrifit._optional import import_optional

if TYPE_CHECKING:
    import torch
    from torch.optim import Optimizer
else:
    torch = import_optional("torch")
    Optimizer = torch.optim.Optimizer


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
