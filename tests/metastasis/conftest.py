"""What tests of runs, pages and figures share: small synthetic scans and a model that needs no training."""

import numpy as np
import pytest
from scipy import ndimage

from metastasis import simulate_metastases, write_cases


class Brightness:
    """Take what is brighter than the rest of the brain for a metastasis."""

    prior_ = None

    def __init__(self, limit):
        self.limit = limit
        self.threshold_ = 0.5

    def predict_proba(self, volumes, *, masks):
        found = []
        for volume, mask in zip(volumes, masks, strict=True):
            values, inside = np.asarray(volume.dataobj), np.asarray(mask.dataobj) > 0
            score = (values - values[inside].mean()) / values[inside].std()
            found.append((inside / (1 + np.exp(-3 * (score - self.limit)))).astype(np.float32))
        return found


@pytest.fixture(scope="session")
def synthetic_cases():
    return simulate_metastases(3, shape=(36, 36, 36), spacing=2.5, metastases=(2, 5), random_state=3)


@pytest.fixture(scope="session")
def ball_scans():
    """Give labels of a few balls, and probabilities that know something of them."""
    shape = (24, 24, 24)
    rng = np.random.default_rng(5)
    grid = np.indices(shape)
    labels, probabilities = [], []
    for n in (3, 2, 0, 4):
        label = np.zeros(shape, bool)
        for _ in range(n):
            center, radius = rng.integers(4, 20, 3), rng.uniform(1, 3)
            label |= ((grid - center[:, None, None, None]) ** 2).sum(0) <= radius**2
        noise = ndimage.gaussian_filter(rng.normal(size=shape), 1.2) * 2
        values = 1 / (1 + np.exp(-(4 * ndimage.gaussian_filter(label.astype(float), 0.7) + 2 * noise - 3)))
        labels.append(label)
        probabilities.append(values.astype(np.float32))
    return labels, probabilities


@pytest.fixture
def brightness():
    return Brightness


@pytest.fixture
def table(synthetic_cases, tmp_path):
    return write_cases(synthetic_cases, tmp_path / "cases")
