"""What spoils synthetic images besides noise."""

import numpy as np
import pytest

from dmrifit import Protocol, simulate_cohort
from dmrifit.simulate.artifacts import ARTIFACTS, artifact_strengths, spoil


@pytest.mark.parametrize("artifact", ARTIFACTS)
def test_artifacts_change_the_signals_of_a_patient_and_nothing_else(artifact):
    clean, changed = (
        simulate_cohort(n_patients=1, artifacts=names, shape=(16, 16, 2), random_state=3).scans[0]
        for names in (None, artifact)
    )
    np.testing.assert_array_equal(clean.truth["Dt"], changed.truth["Dt"])
    np.testing.assert_array_equal(clean.lesion, changed.lesion)
    assert clean.sigma == changed.sigma
    assert not np.array_equal(clean.noise_free, changed.noise_free)


FOUR = Protocol([500, 0, 0, 800], te=[60, 90, 60, 90])


def apply(signals, protocol=FOUR, *, seed=0, **strengths):
    return spoil(signals, protocol, strengths, "abdomen", np.random.default_rng(seed))


@pytest.mark.parametrize(
    ("artifacts", "expected"),
    [
        (None, {}), ((), {}), ("gibbs", {"gibbs": 0.2}),
        (("signal_loss", "shift"), {"shift": 1.0, "signal_loss": 0.5}),
        ({"signal_loss": 1, "gibbs": 0.75, "shift": np.float32(4)}, {"shift": 4.0, "gibbs": 0.75, "signal_loss": 1.0}),
        ({"gibbs": 0.0, "shift": 2}, {"shift": 2.0}),
    ],
)
def test_strengths_are_in_the_order_of_application_without_those_of_zero(artifacts, expected):
    strengths = artifact_strengths(artifacts)
    assert strengths == expected
    assert list(strengths) == [name for name in ARTIFACTS if name in expected]
    assert all(type(strength) is float for strength in strengths.values())


def test_a_ramp_shows_how_far_each_image_was_moved():
    """The image at the lowest b of the shortest echo time stays in its place."""
    x, y = np.meshgrid(np.arange(20.0), np.arange(24.0), indexing="ij")
    ramp = 1000 + 10 * x[:, :, None, None] + 3 * y[:, :, None, None] * np.ones((1, 1, 2, 4))
    moved = apply(ramp, shift=3.0)
    offsets = moved[4:-4, 4:-4] - ramp[4:-4, 4:-4]
    np.testing.assert_allclose(offsets, np.broadcast_to(offsets[0, 0, 0], offsets.shape), atol=1e-9)
    distance = offsets[0, 0, 0]
    assert distance[2] == 0
    assert (np.abs(distance[[0, 1, 3]]) > 0.01).all()
    assert np.abs(distance).max() <= 3 * (10 + 3)
    np.testing.assert_array_equal(moved[..., 2], ramp[..., 2])


def test_ringing_removes_the_waves_above_the_cutoff_and_no_others():
    """With half of the frequencies lost, those up to 0.25 per voxel stay."""
    x = np.arange(16)[:, None, None, None] * np.ones((1, 12, 2, 4))
    y = np.arange(12)[None, :, None, None] * np.ones((16, 1, 2, 4))
    slow = 10 + np.cos(2 * np.pi * 4 / 16 * x) + np.sin(2 * np.pi * 3 / 12 * y)
    fast = np.cos(2 * np.pi * 5 / 16 * x) + np.sin(2 * np.pi * 4 / 12 * y)
    np.testing.assert_allclose(apply(slow + fast, gibbs=0.5), slow, atol=1e-12)
    np.testing.assert_allclose(apply(slow + fast, gibbs=0.3), slow + fast, atol=1e-12)


def test_signal_is_lost_in_one_region_by_another_share_in_each_image():
    signals = np.random.default_rng(1).uniform(50, 100, (32, 32, 4, 4))
    lost = 1 - apply(signals, signal_loss=0.8) / signals
    np.testing.assert_allclose(lost[..., [1, 2]], 0, atol=1e-12)
    region, shares = lost.reshape(-1, 4)[:, [0, 3]].T
    np.testing.assert_allclose(region / region.max(), shares / shares.max(), atol=1e-9)
    assert 0 < region.max() <= 0.8
    # Right of the middle and in front; half of the loss is left at 0.35 of the field.
    profile = lost[..., 0] / lost[..., 0].max()
    axes = np.meshgrid(*((np.arange(n) + 0.5) / n * 2 - 1 for n in (32, 32, 4)), indexing="ij")
    center = [(axis * profile**8).sum() / (profile**8).sum() for axis in axes]
    np.testing.assert_allclose(center[:2], [0.08, 0.42], atol=0.2)
    half = (axes[0] - center[0]) ** 2 + (axes[1] - center[1]) ** 2 + 0.25 * (axes[2] - center[2]) ** 2
    inside = profile > 0.5
    assert np.sqrt(half[inside].max()) == pytest.approx(0.35, abs=0.05)


def test_what_an_artifact_draws_does_not_depend_on_the_others():
    signals = np.random.default_rng(2).uniform(50, 100, (20, 20, 2, 4))
    alone, together = apply(signals, shift=2.0), apply(signals, shift=2.0, signal_loss=1e-12)
    np.testing.assert_allclose(together, alone, rtol=1e-9)
    assert not np.array_equal(apply(signals, shift=2.0, seed=1), alone)


def test_spoiled_images_are_magnitudes():
    signals = np.zeros((16, 16, 2, 4))
    signals[8, 8] = 1
    ringing = apply(signals, gibbs=0.75)
    assert ringing.min() >= 0
    assert ringing[8, 8].max() < 0.2
