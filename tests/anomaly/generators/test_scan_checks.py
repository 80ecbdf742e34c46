"""Arrays that do not fit are refused, and noise comes back where it is missing."""

import numpy as np
import pytest

from anomaly.generators.scan_checks import checked_scan, checked_source, put_noise_back

MASK = np.ones((4, 4, 4), dtype=bool)


@pytest.mark.parametrize(
    ("volume", "mask", "words"),
    [
        (np.zeros((4, 4, 4)), MASK, "on one grid"),
        (np.zeros((4, 4, 4, 2)), np.zeros_like(MASK), "is empty"),
        (np.full((4, 4, 4, 2), np.inf), MASK, "128 non-finite values"),
    ],
)
def test_scans_that_do_not_fit_are_refused(volume, mask, words):
    with pytest.raises(ValueError, match=words):
        checked_scan(volume, mask)


def test_the_callers_scan_is_copied():
    volume = np.zeros((4, 4, 4, 2), dtype=np.float32)
    copy, _ = checked_scan(volume, MASK)
    copy += 1
    assert not volume.any()
    with pytest.raises(ValueError, match="the scan itself"):
        checked_source(volume, volume)


def test_noise_comes_back_where_it_is_missing():
    volume = np.zeros((20, 20, 20, 4), dtype=np.float32)
    factor = np.ones((20, 20, 20), dtype=np.float32)
    factor[:10] = 0.6
    put_noise_back(volume, factor, 0.1, np.random.default_rng(0))
    assert volume[:10].std() == pytest.approx(0.08, rel=0.02)
    assert not volume[10:].any()
