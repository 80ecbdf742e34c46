"""Arrays that do not fit are refused, and noise comes back where it is missing."""

import numpy as np
import pytest

from anomaly.generators.scan_checks import put_noise_back

MASK = np.ones((4, 4, 4), dtype=bool)


def test_noise_comes_back_where_it_is_missing():
    volume = np.zeros((20, 20, 20, 4), dtype=np.float32)
    factor = np.ones((20, 20, 20), dtype=np.float32)
    factor[:10] = 0.6
    put_noise_back(volume, factor, 0.1, np.random.default_rng(0))
    assert volume[:10].std() == pytest.approx(0.08, rel=0.02)
    assert not volume[10:].any()
