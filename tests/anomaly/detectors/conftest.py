"""Healthy scans, and networks so small that they learn from them in a second."""

import numpy as np
import pytest

TRAINING = {"epochs": 2, "batch_size": 2, "learning_rate": 0.001, "schedule": "constant", "random_state": 0}
SIZES = {
    # The form of the publication; the other one has tests of its own.
    "dae": {"latent_dim": 3, "widths": (4, 6), "dense": None, "residual": "mean", "latent": "vector", "aligned": False,
            "smooth_mm": 0.0},
    "recdisc": {"reconstruction_width": 4, "discrimination_width": 4, "levels": 2, "stem": None, "repeats": 2},
}  # fmt: skip


@pytest.fixture(scope="session")
def small():
    """Give the function that makes a small network by its name, or of a class derived from the autoencoder."""
    from anomaly.detectors.detector_table import import_detector
    from dmrifit.networks.training import gather_training

    def make(detector, **options):
        made = import_detector(detector) if isinstance(detector, str) else detector
        sizes = SIZES[detector if isinstance(detector, str) else "dae"]
        return made(**gather_training(TRAINING | {"device": "cpu"} | sizes | options))

    return make


@pytest.fixture(scope="session")
def make_scans():
    """Give the function that makes healthy scans of one pattern that differ a little, and their masks."""

    def make(n=6, n_channels=3, shape=(10, 11, 7), seed=0):
        rng = np.random.default_rng(seed)
        grid = np.indices(shape) / np.array(shape)[:, None, None, None] - 0.5
        mask = (grid**2).sum(axis=0) < 0.2
        pattern = 0.4 + 0.2 * np.sin(6 * grid[0]) * np.cos(5 * grid[1])
        levels = rng.uniform(0.9, 1.1, (n, 1, 1, 1, n_channels))
        noise = rng.normal(0, 0.02, (n, *shape, n_channels))
        X = np.clip(levels * pattern[..., None] + noise, 0, 1).astype(np.float32) * mask[..., None]
        return X, np.repeat(mask[None], n, axis=0)

    return make


@pytest.fixture(scope="session")
def world(make_scans):
    return make_scans()
