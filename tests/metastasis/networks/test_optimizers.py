"""The optimizer makes the steps of its equations, finds minima, and goes on from a stored state."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from metastasis.networks.optimizers import NesterovRMSprop  # noqa: E402

pytestmark = pytest.mark.deep


def test_the_optimizer_makes_the_steps_of_its_equations():
    rng = np.random.default_rng(0)
    weights = torch.tensor(rng.normal(size=(2, 3)), requires_grad=True)
    bias = torch.tensor(rng.normal(size=3), requires_grad=True)
    optimizer = NesterovRMSprop([weights, bias], lr=0.01, l1=0.05, l2=0.1)
    by_hand = [[p.detach().numpy().copy(), 0.0, 0.0] for p in (weights, bias)]
    for step in range(4):
        for p, state in zip((weights, bias), by_hand, strict=True):
            gradient = rng.normal(size=p.shape)
            p.grad = torch.tensor(gradient)
            w, square, velocity = state
            if p is weights:
                gradient = gradient + 0.05 * np.sign(w) + 0.2 * w
            square = 0.9 * square + 0.1 * gradient**2
            move = 0.01 * gradient / np.sqrt(square + 1e-4)
            velocity = 0.6 * velocity - move
            state[:] = w + 0.6 * velocity - move, square, velocity
        optimizer.step()
        for p, state in zip((weights, bias), by_hand, strict=True):
            np.testing.assert_allclose(p.detach(), state[0], rtol=1e-9, err_msg=f"step {step}")


def test_the_first_step_by_hand():
    weights = torch.tensor([1.0, -1.0], dtype=torch.float64, requires_grad=True)
    weights.grad = torch.tensor([2.0, 0.5], dtype=torch.float64)
    NesterovRMSprop([weights], lr=0.1, momentum=0.5, rho=0.75, eps=0.0).step()
    # A quarter of the squared gradient stands under the root: each step is twice the learning rate long,
    # and Nesterov's momentum adds the half of it.
    np.testing.assert_allclose(weights.detach(), [1 - 0.3, -1 - 0.3])


def test_groups_have_learning_rates_and_penalties_of_their_own():
    kernels = [torch.full((2, 2), 2.0, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    for kernel in kernels:
        kernel.grad = torch.zeros_like(kernel)
    groups = [
        {"params": kernels[:1]},
        {"params": kernels[1:2], "l2": 0.0},
        {"params": kernels[2:], "lr": 0.2},
    ]
    NesterovRMSprop(groups, lr=0.1, momentum=0.0, rho=0.0, eps=1e-12, l2=0.5).step()
    # The gradient of the penalty is 2 · 0.5 · 2, and is divided by its own size.
    stepped = [kernel.detach().unique().tolist() for kernel in kernels]
    assert stepped == [[pytest.approx(2 - 0.1)], [2], [pytest.approx(2 - 0.2)]]


def test_steps_go_on_from_a_stored_state():
    def steps(optimizer, weights, n):
        for k in range(n):
            weights.grad = torch.full_like(weights, 1.0 + k)
            optimizer.step()

    whole = torch.zeros(2, requires_grad=True)
    first = torch.zeros(2, requires_grad=True)
    one_run, begun = NesterovRMSprop([whole], lr=0.01), NesterovRMSprop([first], lr=0.01)
    steps(one_run, whole, 2)
    steps(begun, first, 2)
    second = first.detach().clone().requires_grad_()
    resumed = NesterovRMSprop([second], lr=0.5)
    resumed.load_state_dict(begun.state_dict())
    steps(one_run, whole, 3)
    steps(resumed, second, 3)
    assert torch.equal(second, whole)


def test_the_optimizer_finds_a_minimum_and_skips_what_has_no_gradient():
    x = torch.tensor([3.0, -2.0], requires_grad=True)
    idle = torch.ones(1, requires_grad=True)
    optimizer = NesterovRMSprop([x, idle], lr=0.02)

    def closure():
        optimizer.zero_grad()
        loss = (x - 1).square().sum()
        loss.backward()
        return loss

    first = optimizer.step(closure).item()
    for _ in range(400):
        optimizer.step(closure)
    assert first == pytest.approx(13)
    assert (x - 1).abs().max() < 0.05
    assert idle.item() == 1
