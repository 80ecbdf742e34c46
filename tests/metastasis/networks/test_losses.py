"""Losses against sums by hand, finite differences and batches that lack a class; steps of the optimizer."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from metastasis.networks.losses import (  # noqa: E402
    JVSSLoss,
    LesionLoss,
    NesterovRMSprop,
    SSELoss,
    VoxelLoss,
    VSSLoss,
    jvss_loss,
    sse_loss,
    vss_loss,
)

pytestmark = [pytest.mark.deep, pytest.mark.usefixtures("one_thread")]


LOSSES = (vss_loss, jvss_loss, sse_loss)
MODULES = {vss_loss: VSSLoss, jvss_loss: JVSSLoss, sse_loss: SSELoss}
MIXED = [[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
BATCHES = {
    "mixed": MIXED,
    "all positive": [[1, 0, 0, 1], [0, 1, 0, 0], [1, 1, 1, 1]],
    "all negative": [[0, 0, 0, 0], [0, 0, 0, 0]],
}


def batch(name, dtype=torch.float32, seed=0):
    target = torch.tensor(BATCHES[name]).reshape(-1, 1, 1, 2, 2)
    logits = torch.as_tensor(np.random.default_rng(seed).normal(0, 2, target.shape), dtype=dtype)
    return logits, target


def by_hand(loss, logits, target, alpha, reduction):
    """Write the equations out, one segment after the other, in numbers of Python."""
    p = [[1 / (1 + math.exp(-z)) for z in segment] for segment in logits.flatten(1).tolist()]
    y = target.flatten(1).tolist()
    added = {"paper": 1e-7, "code": 1}[reduction]
    positive = [max(one) for one in y]
    sens = sum(max(a * b for a, b in zip(*pair, strict=True)) for pair in zip(p, y, strict=True))
    sens /= sum(positive) + added
    spec = sum((1 - n) * (1 - max(one)) for n, one in zip(positive, p, strict=True))
    spec /= sum(1 - n for n in positive) + added
    vss = 1 - (alpha * sens + (1 - alpha) * spec)
    pairs = [pair for one in zip(p, y, strict=True) for pair in zip(*one, strict=True)]
    entropy = -sum(math.log(a if b else 1 - a) for a, b in pairs) / len(pairs)
    n_lesion = sum(b for _, b in pairs)
    missed = sum((b - a) ** 2 * b for a, b in pairs) / (n_lesion + added)
    alarmed = sum((b - a) ** 2 * (1 - b) for a, b in pairs) / (len(pairs) - n_lesion + added)
    sse = alpha * missed + (1 - alpha) * alarmed
    return {vss_loss: vss, jvss_loss: vss + entropy, sse_loss: sse}[loss]


@pytest.mark.parametrize("reduction", ["paper", "code"])
@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("loss", LOSSES)
def test_losses_equal_their_equations_written_out_and_gradients_finite_differences(loss, name, reduction):
    for seed, alpha in enumerate((0.0, 0.5, 0.995, 1.0)):
        logits, target = batch(name, seed=seed)
        expected = by_hand(loss, logits, target, alpha, reduction)
        assert abs(float(loss(logits, target, alpha, reduction=reduction)) - expected) < 1e-6
        module = MODULES[loss](alpha, reduction=reduction)
        assert float(module(logits, target)) == float(loss(logits, target, alpha, reduction=reduction))
    logits, target = batch(name, torch.float64)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, target, 0.7, reduction=reduction), (logits,))


def test_the_voxel_loss_is_the_mean_over_voxels_computed_on_paper():
    p = torch.tensor([[0.9, 0.3], [0.2, 0.8]], dtype=torch.float64)
    y = torch.tensor([[1, 0], [1, 0]])
    expected = -(math.log(0.9) + math.log(0.7) + math.log(0.2) + math.log(0.2)) / 4
    assert float(VoxelLoss()(torch.logit(p), y)) == pytest.approx(expected, rel=1e-9)


def test_each_segment_gives_its_gradient_to_one_voxel_the_first_of_equal_ones():
    logits, target = batch("mixed")
    logits.requires_grad_()
    vss_loss(logits, target, 0.6).backward()
    gradient = logits.grad.flatten(1)
    assert (gradient != 0).sum(dim=1).tolist() == [1, 1, 1, 1, 1]
    for moved, z, y in zip(gradient, logits.detach().flatten(1), target.flatten(1), strict=True):
        where = int(torch.argmax(moved.abs()))
        searched = torch.where(y > 0, z, -torch.inf) if y.any() else z
        assert where == int(torch.argmax(searched))
        assert (moved[where] < 0) == bool(y.any())
    logits = torch.zeros(2, 5, requires_grad=True)
    target = torch.tensor([[0, 1, 1, 0, 1], [0, 0, 0, 0, 0]])
    vss_loss(logits, target, 0.5).backward()
    np.testing.assert_allclose(logits.grad, [[0, -0.125, 0, 0, 0], [0.125, 0, 0, 0, 0]], atol=1e-7)


@pytest.mark.parametrize(("name", "weight"), [("all positive", 0.8), ("all negative", 0.2)])
def test_a_missing_class_leaves_the_gradient_of_the_other_as_it_is(name, weight):
    logits, target = batch(name)
    ours = logits.clone().requires_grad_()
    vss_loss(ours, target, 0.8).backward()
    alone = logits.clone().requires_grad_()
    p = torch.sigmoid(alone).flatten(1)
    y = target.flatten(1)
    term = 1 - (p * y).max(dim=1).values.mean() if name == "all positive" else p.max(dim=1).values.mean()
    (weight * term).backward()
    np.testing.assert_allclose(ours.grad, alone.grad, atol=1e-7)
    joint = logits.clone().requires_grad_()
    jvss_loss(joint, target, 0.8).backward()
    assert torch.isfinite(joint.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_is_computed_in_single_precision(loss, dtype):
    logits = torch.tensor([[20.0, -20.0], [-20.0, 12.0], [9.0, -3.0]], dtype=dtype, requires_grad=True)
    target = torch.tensor([[0, 1], [0, 1], [0, 0]])
    value = loss(logits, target, 0.9)
    value.backward()
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()
    assert value.item() == pytest.approx(by_hand(loss, logits.float(), target, 0.9, "paper"), abs=1e-6)


def test_a_confident_false_alarm_keeps_its_gradient():
    logits = torch.tensor([[30.0, -5.0]], requires_grad=True)
    vss_loss(logits, torch.zeros(1, 2), 0.5).backward()
    assert float(logits.grad[0, 0]) == pytest.approx(0.5 * math.exp(-30), rel=1e-4)


def test_lesion_loss_by_hand_and_blind_where_weights_are_0():
    logits = torch.tensor([0.0, 2.0, -1.0, 5.0]).reshape(1, 1, 4, 1, 1)
    labels = torch.tensor([1.0, 1.0, 0.0, 0.0]).reshape(1, 1, 4, 1, 1)
    weights = torch.tensor([20.0, 2.0, 1.0, 0.0]).reshape(1, 1, 4, 1, 1)
    target = torch.cat([labels, weights], dim=1)
    p = [1 / (1 + math.exp(-x)) for x in (0.0, 2.0, -1.0)]
    entropy = -20 * math.log(p[0]) - 2 * math.log(p[1]) - math.log(1 - p[2])
    dice = (2 * (20 * p[0] + 2 * p[1]) + 1) / (20 * p[0] + 2 * p[1] + p[2] + 22 + 1)
    assert LesionLoss()(logits, target).item() == pytest.approx(entropy / 3 + 1 - dice, rel=1e-5)
    logits.requires_grad_()
    LesionLoss()(logits, target).backward()
    assert logits.grad[0, 0, 3].item() == 0
    assert logits.grad[0, 0, 0].item() < 0 < logits.grad[0, 0, 2].item()


@pytest.mark.parametrize(
    ("options", "momentum", "rho", "eps"),
    [({}, 0.6, 0.9, 1e-4), ({"momentum": 0.5, "rho": 0.75, "eps": 0.0}, 0.5, 0.75, 0.0)],
)
def test_the_optimizer_makes_the_steps_of_its_equations(options, momentum, rho, eps):
    rng = np.random.default_rng(0)
    weights = torch.tensor(rng.normal(size=(2, 3)), requires_grad=True)
    bias = torch.tensor(rng.normal(size=3), requires_grad=True)
    optimizer = NesterovRMSprop([weights, bias], lr=0.01, l1=0.05, l2=0.1, **options)
    by_hand = [[p.detach().numpy().copy(), 0.0, 0.0] for p in (weights, bias)]
    for step in range(4):
        for p, state in zip((weights, bias), by_hand, strict=True):
            gradient = rng.normal(size=p.shape)
            p.grad = torch.tensor(gradient)
            w, square, velocity = state
            if p is weights:
                gradient = gradient + 0.05 * np.sign(w) + 0.2 * w
            square = rho * square + (1 - rho) * gradient**2
            move = 0.01 * gradient / np.sqrt(square + eps)
            velocity = momentum * velocity - move
            state[:] = w + momentum * velocity - move, square, velocity
        optimizer.step()
        for p, state in zip((weights, bias), by_hand, strict=True):
            np.testing.assert_allclose(p.detach(), state[0], rtol=1e-9, err_msg=f"step {step}")


def test_groups_have_learning_rates_and_penalties_of_their_own():
    kernels = [torch.full((2, 2), 2.0, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    for kernel in kernels:
        kernel.grad = torch.zeros_like(kernel)
    groups = [{"params": kernels[:1]}, {"params": kernels[1:2], "l2": 0.0}, {"params": kernels[2:], "lr": 0.2}]
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
