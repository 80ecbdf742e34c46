"""A T2 that free water may have raised is in doubt, that of pure tissue is not; synthetic data."""

import numpy as np
import pytest

from dmrifit import MODELS, Protocol, fit_voxels
from dmrifit.engine.doubts import DoubtReason
from dmrifit.engine.free_water import is_raised_by_water

ECHOES = Protocol(np.zeros(6), te=[20, 40, 60, 80, 120, 160])
GRID = Protocol(np.repeat([0, 500, 1000], 4), te=np.tile([50, 80, 110, 140], 3))
CASES = {
    "t2": (ECHOES, [100.0, 70.0]),
    "t2-adc": (GRID, [100.0, 1.0, 70.0]),
    "t2-ivim-kurtosis": (Protocol.preset("cohort1"), [100.0, 0.1, 20.0, 200.0, 1.0, 0.8, 70.0]),
}


def mixed(name, share, snr=60, n=600):
    """Fit magnitudes of tissue with a share of free water (D 3 µm²/ms, T2 2 s)."""
    protocol, tissue = CASES[name]
    water = tissue[0] * np.exp(-3 * protocol.b_ms_per_um2 - protocol.te / 2000)
    signals = (1 - share) * MODELS[name].signal([tissue], protocol) + share * water
    rng = np.random.default_rng([4831, len(name)])
    noise = rng.normal(scale=signals.max() / snr, size=(2, n, len(protocol)))
    return fit_voxels(np.hypot(signals + noise[0], noise[1]), protocol, name)


@pytest.mark.parametrize("name", CASES)
def test_water_is_found_where_it_raises_t2_and_not_in_tissue(name):
    column = next(j for j, parameter in enumerate(MODELS[name].names) if parameter in ("T2", "T2t"))
    pure, wet = mixed(name, 0.0), mixed(name, 0.3)
    assert np.median(pure.parameters[:, column]) == pytest.approx(70, rel=0.05)
    assert np.median(wet.parameters[:, column]) > 1.8 * 70
    assert pure.doubt[:, column].mean() < 0.1
    assert wet.doubt[:, column].mean() > 0.9
    # Up to its bound at 140 ms, T2t has that reason first.
    reasons = (DoubtReason.FREE_WATER, DoubtReason.AT_BOUND)
    assert np.isin(wet.doubt_reasons[:, column], reasons).mean() > 0.9


def test_advice_names_the_water():
    wet = mixed("t2", 0.3)
    assert any("free water" in sentence for sentence in wet.advice())
    assert "upper bound 130 ms in" in fit_voxels(wet.inputs.signals, ECHOES, "t2", bounds={"T2": (10, 130)}).advice()[0]
    assert not any("free water" in sentence for sentence in mixed("t2", 0.0).advice())


def test_order_missing_values_and_threads_do_not_change_what_is_found():
    result = mixed("t2-adc", 0.1)
    protocol, signals = GRID, result.inputs.signals.copy()
    signals[::7, 3] = np.nan
    signals[5] = np.nan
    one = fit_voxels(signals, protocol, "t2-adc", method="nlls", n_threads=1)
    two = fit_voxels(signals[::-1], protocol, "t2-adc", method="nlls", n_threads=2)
    found = is_raised_by_water(one)
    assert 0.1 < found.mean() < 0.9
    np.testing.assert_array_equal(is_raised_by_water(two)[::-1], found)
    assert not found[5]


def test_models_without_a_relaxation_time_of_tissue_and_fixed_ones_are_left_alone():
    protocol = Protocol([0, 500, 1000, 1500])
    assert not is_raised_by_water(fit_voxels(np.full((3, 4), [100.0, 60, 37, 22]), protocol, "adc")).any()
    signals = mixed("t2", 0.3).inputs.signals
    assert not is_raised_by_water(fit_voxels(signals, ECHOES, "t2", fixed={"T2": 70.0})).any()
