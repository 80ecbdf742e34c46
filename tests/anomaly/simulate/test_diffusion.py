"""Signals of brains are those of tensors and tissues written out, and their noise is Rician."""

import numpy as np
import pytest

from anomaly.generators.gliomas import Component
from anomaly.simulate.anatomy import Brain
from anomaly.simulate.diffusion import (
    add_noise,
    brain_signals,
    spread_directions,
    tensor_signals,
)

ALONG_X, ALONG_Y = np.eye(3)[:2]


def uniform_brain(n=1, *, white=0.0, gray=0.0, deep=0.0, fluid=0.0, crossing=0.0, order=1.0):
    """Make a brain of n equal voxels whose fibers go along x, and along y where they cross."""
    shares = {"white": white, "gray": gray, "fluid": fluid, "deep": deep}
    shares = {name: np.full(n, share, dtype=np.float32) for name, share in shares.items()}
    fibers = np.stack([np.tile(ALONG_X, (n, 1)), np.tile(ALONG_Y, (n, 1))])
    properties = (np.full(n, value, dtype=np.float32) for value in (crossing, order))
    return Brain(None, shares, fibers, *properties)


def signals_of(brain, b=1000.0, factor=1.0, lesion=()):
    signals, b0 = brain_signals(brain, np.eye(3), b, np.full(len(brain.shares["white"]), factor), lesion)
    return signals[0], b0[0]


def test_signals_are_tensors_of_dipy():
    from dipy.core.gradients import gradient_table
    from dipy.sims.voxel import multi_tensor

    directions = spread_directions(20)
    rng = np.random.default_rng(0)
    fibers = rng.standard_normal((2, 5, 3))
    fibers /= np.linalg.norm(fibers, axis=-1, keepdims=True)
    share, b = 0.3, 1000.0
    table = gradient_table(np.full(20, b), bvecs=directions, b0_threshold=0)
    ours = sum(
        part * tensor_signals(one, 1.6, 0.35, np.full(5, 1.0), directions)
        for part, one in zip((1 - share, share), fibers, strict=True)
    )
    for i in range(5):
        expected, _ = multi_tensor(
            table,
            np.array([[1.6e-3, 0.35e-3, 0.35e-3]] * 2),
            S0=1.0,
            angles=[tuple(fiber[i]) for fiber in fibers],
            fractions=[100 * (1 - share), 100 * share],
            snr=None,
        )
        np.testing.assert_allclose(ours[i], expected, rtol=1e-5)


def test_a_tensor_has_its_diffusivities_along_and_across_its_fiber():
    diagonal = np.array([1, 1, 0]) / 2**0.5
    signals = tensor_signals(np.array([ALONG_X, diagonal]), 1.6, 0.35, [1.0, 2.0], np.eye(3))
    # Halfway between two axes the diffusivity is their mean.
    expected = np.exp([[-1.6, -0.35, -0.35], [-1.95, -1.95, -0.7]])
    np.testing.assert_allclose(signals, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("brain", "expected", "b0"),
    [
        ({"white": 1}, np.exp([-1.6, -0.35, -0.35]), 1),
        (
            {"white": 1, "crossing": 0.3},
            np.array([[0.7, 0.3], [0.3, 0.7], [0.5, 0.5]]) @ np.exp([-1.6, -0.35]),
            1,
        ),
        ({"white": 1, "order": 0}, np.exp([-0.77] * 3), 1),
        ({"white": 1, "order": 0.5}, 0.5 * np.exp([-1.6, -0.35, -0.35]) + 0.5 * np.exp(-0.77), 1),
        ({"gray": 1}, 1.15 * np.exp([-0.82] * 3), 1.15),
        ({"deep": 1}, 0.95 * np.exp([-0.74] * 3), 0.95),
        ({"fluid": 1}, 2.8 * np.exp([-3.0] * 3), 2.8),
        ({"gray": 0.5, "fluid": 0.5}, 0.575 * np.exp([-0.82] * 3) + 1.4 * np.exp(-3.0), 1.975),
    ],
    ids=str,
)
def test_voxels_of_known_tissue_have_the_signals_written_out(brain, expected, b0):
    if brain.get("crossing"):
        # In the third direction both fibers are seen across.
        expected = np.array([expected[0], expected[1], np.exp(-0.35)])
    signals, without = signals_of(uniform_brain(**brain))
    np.testing.assert_allclose(signals, expected, rtol=1e-5)
    assert without == pytest.approx(b0, rel=1e-6)


def test_diffusivities_differ_by_a_factor_as_weighting_does():
    brain = uniform_brain(white=0.6, gray=0.3, fluid=0.1, crossing=0.2, order=0.8)
    faster, stronger = signals_of(brain, factor=1.2), signals_of(brain, b=1200.0)
    np.testing.assert_allclose(faster[0], stronger[0], rtol=1e-5)
    assert faster[1] == stronger[1]


def test_a_component_takes_the_place_of_its_share_of_everything_else():
    brain = uniform_brain(white=0.5, gray=0.5)
    (before, b0), share = signals_of(brain), np.full(1, 0.25, dtype=np.float32)
    after, after_b0 = signals_of(
        brain, lesion=[Component(share, 0.5, 1.1), Component(share, 2.0, 2.2)]
    )
    expected = 0.5 * before + 0.25 * 1.1 * np.exp(-0.5) + 0.25 * 2.2 * np.exp(-2.0)
    np.testing.assert_allclose(after, expected, rtol=1e-5)
    assert after_b0 == pytest.approx(0.5 * b0 + 0.25 * 1.1 + 0.25 * 2.2, rel=1e-6)


def test_tissues_count_by_their_brightness(brain):
    directions = spread_directions(16)
    signals, b0 = brain_signals(brain, directions, 1000.0, np.ones(len(brain.shares["white"])))
    fluid = brain.shares["fluid"] > 0.99
    np.testing.assert_allclose(signals[fluid] / b0[fluid, None], np.exp(-3.0), rtol=0.2)
    np.testing.assert_allclose(
        b0, brain.shares["white"] + 1.15 * brain.shares["gray"] + 0.95 * brain.shares["deep"] + 2.8 * brain.shares["fluid"], rtol=1e-5
    )
    expected = (
        1.15 * brain.shares["gray"] * np.exp(-0.82)
        + 2.8 * brain.shares["fluid"] * np.exp(-3.0)
        + 0.95 * brain.shares["deep"] * np.exp(-0.74)
    )
    gray = brain.shares["white"] < 0.01
    assert gray.sum() > 100
    np.testing.assert_allclose(signals[gray].mean(axis=1), expected[gray], atol=0.01)
    half, half_b0 = brain_signals(brain, directions, 0.0, np.ones(len(brain.shares["white"])))
    np.testing.assert_allclose(half, np.repeat(half_b0[:, None], 16, axis=1), rtol=1e-5)


def test_noise_is_rician():
    rng = np.random.default_rng(0)
    np.testing.assert_allclose(
        add_noise(np.zeros(100_000, np.float32), 0.5, rng).mean(),
        0.5 * (np.pi / 2) ** 0.5,
        rtol=0.01,
    )
    bright = add_noise(np.full(100_000, 50.0, np.float32), 0.5, rng)
    np.testing.assert_allclose((bright.mean(), bright.std()), (50.0025, 0.5), rtol=0.01)
    values = np.ones(4, np.float32)
    np.testing.assert_array_equal(add_noise(values, 0.0, rng), values)


def test_directions_cover_half_a_sphere():
    directions = spread_directions(64)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1)
    np.testing.assert_allclose(directions.T @ directions / 64, np.eye(3) / 3, atol=0.02)
    apart = np.abs(directions @ directions.T) - np.eye(64)
    assert np.degrees(np.arccos(apart.max())) > 6
