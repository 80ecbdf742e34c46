"""Losses of the two networks against sums by hand."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from anomaly.networks.losses import (  # noqa: E402
    DiscriminationLoss,
    VariationalLoss,
    divergence,
    squared_error,
    weighted_cross_entropy,
)

pytestmark = pytest.mark.deep


def random(*shape, seed=0):
    return torch.as_tensor(np.random.default_rng(seed).normal(size=shape), dtype=torch.float64)


def test_the_divergence_is_that_of_torch():
    mean, log_variance = random(3, 5), random(3, 5, seed=1)
    one = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    known = torch.distributions.kl_divergence(one, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(divergence(mean, log_variance), known.mean())
    torch.testing.assert_close(divergence(mean, log_variance, reduction="code"), known.sum(dim=1).mean())


def test_the_code_weighs_the_divergence_by_the_number_of_latent_numbers():
    mean, log_variance = random(3, 16), random(3, 16, seed=1)
    ratio = divergence(mean, log_variance, reduction="code") / divergence(mean, log_variance)
    assert float(ratio) == pytest.approx(16)


def test_cross_entropy_weighs_anomalies():
    logits = torch.tensor([2.0, -1.0, 0.5, 3.0], dtype=torch.float64)
    target = torch.tensor([1, 0, 1, 0])
    p = [1 / (1 + math.exp(-v)) for v in logits.tolist()]
    parts = [-20 * math.log(p[0]), -math.log(1 - p[1]), -20 * math.log(p[2]), -math.log(1 - p[3])]
    assert float(weighted_cross_entropy(logits, target, 20.0)) == pytest.approx(sum(parts) / 4)
    brain = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    assert float(weighted_cross_entropy(logits, target, 20.0, brain)) == pytest.approx(sum(parts[:2]) / 2)


def test_large_logits_give_finite_losses():
    logits, target = torch.tensor([500.0, -500.0]), torch.tensor([0, 1])
    assert float(weighted_cross_entropy(logits, target, 20.0)) == pytest.approx((500 + 20 * 500) / 2)


def test_errors_count_in_the_brain_alone_where_one_is_given():
    volume, other = random(2, 3, 4, 4, 4), random(2, 3, 4, 4, 4, seed=1)
    brain = torch.zeros(2, 1, 4, 4, 4, dtype=torch.float64)
    brain[:, :, 1:3, 1:, :2] = 1
    inside = brain.expand_as(volume) > 0
    torch.testing.assert_close(squared_error(other, volume, brain), (other - volume)[inside].square().mean())
    torch.testing.assert_close(squared_error(other, volume), (other - volume).square().mean())


def test_the_losses_are_sums_of_their_parts():
    volume, other = random(2, 3, 4, 4, 4), random(2, 3, 4, 4, 4, seed=1)
    mean, log_variance = random(2, 6), random(2, 6, seed=1)
    error = (other - volume).square().mean()
    loss = VariationalLoss()((other, mean, log_variance), {"volume": volume})
    torch.testing.assert_close(loss, error + 1.22e-5 * divergence(mean, log_variance))
    logits, anomaly = random(2, 1, 4, 4, 4, seed=2), (random(2, 1, 4, 4, 4, seed=3) > 0).double()
    target = {"volume": volume, "anomaly": anomaly}
    entropy = weighted_cross_entropy(logits, anomaly, 20.0)
    torch.testing.assert_close(DiscriminationLoss()((other, logits), target), 5 * error + entropy)
    # Of the paper, with ω of the published code: the same up to a factor.
    paper = DiscriminationLoss(1.0, 0.2, 20.0)((other, logits), target)
    torch.testing.assert_close(5 * paper, DiscriminationLoss()((other, logits), target))
