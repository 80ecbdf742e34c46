"""What the networks minimize, against torch's own functions and sums by hand."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from anomaly.networks import losses  # noqa: E402

pytestmark = [pytest.mark.deep, pytest.mark.usefixtures("one_thread")]


def random(*shape, seed=0):
    return torch.as_tensor(np.random.default_rng(seed).normal(size=shape), dtype=torch.float64)


def test_the_divergence_is_that_of_torch_and_cross_entropy_weighs_anomalies():
    mean, log_variance = random(3, 5), random(3, 5, seed=1)
    one = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    known = torch.distributions.kl_divergence(one, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(losses.divergence(mean, log_variance), known.mean())
    torch.testing.assert_close(losses.divergence(mean, log_variance, reduction="code"), known.sum(dim=1).mean())
    logits = torch.tensor([2.0, -1.0, 0.5, 3.0], dtype=torch.float64)
    target = torch.tensor([1, 0, 1, 0])
    p = [1 / (1 + math.exp(-v)) for v in logits.tolist()]
    parts = [-20 * math.log(p[0]), -math.log(1 - p[1]), -20 * math.log(p[2]), -math.log(1 - p[3])]
    assert float(losses.weighted_cross_entropy(logits, target, 20.0)) == pytest.approx(sum(parts) / 4)
    # Large logits give finite losses.
    large = losses.weighted_cross_entropy(torch.tensor([500.0, -500.0]), torch.tensor([0, 1]), 20.0)
    assert float(large) == pytest.approx((500 + 20 * 500) / 2)
    brain = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    assert float(losses.weighted_cross_entropy(logits, target, 20.0, brain)) == pytest.approx(sum(parts[:2]) / 2)


def test_errors_count_in_the_brain_alone_and_losses_are_sums_of_their_parts():
    volume, other = random(2, 3, 4, 4, 4), random(2, 3, 4, 4, 4, seed=1)
    mean, log_variance = random(2, 6), random(2, 6, seed=1)
    brain = torch.zeros(2, 1, 4, 4, 4, dtype=torch.float64)
    brain[:, :, 1:3, 1:, :2] = 1
    inside = brain.expand_as(volume) > 0
    torch.testing.assert_close(losses.squared_error(other, volume, brain), (other - volume)[inside].square().mean())
    error = (other - volume).square().mean()
    torch.testing.assert_close(losses.squared_error(other, volume), error)
    loss = losses.VariationalLoss()((other, mean, log_variance), {"volume": volume})
    torch.testing.assert_close(loss, error + 1.22e-5 * losses.divergence(mean, log_variance))
    logits, anomaly = random(2, 1, 4, 4, 4, seed=2), (random(2, 1, 4, 4, 4, seed=3) > 0).double()
    target = {"volume": volume, "anomaly": anomaly}
    entropy = losses.weighted_cross_entropy(logits, anomaly, 20.0)
    torch.testing.assert_close(losses.DiscriminationLoss()((other, logits), target), 5 * error + entropy)
    # Of the paper, with ω of the published code: the same up to a factor.
    paper = losses.DiscriminationLoss(1.0, 0.2, 20.0)((other, logits), target)
    torch.testing.assert_close(5 * paper, losses.DiscriminationLoss()((other, logits), target))
