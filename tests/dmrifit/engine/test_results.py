"""What fits found: columns by name, a summary for notebooks, one voxel for lmfit."""

import re

import numpy as np
import pytest

from dmrifit import MODELS, FitStatus, Protocol, fit_voxels
from dmrifit.engine.results import FitResult

PROTOCOL = Protocol([0, 30, 60, 100, 200, 400, 600, 900, 1200])
ADC = np.array([0.8, 1.0, 1.2, 3.0, np.nan])


@pytest.fixture
def result():
    """Give a fit of five voxels as it might have ended: one at its bound, one not fitted."""
    s0 = np.array([10.0, 20, 30, 40, np.nan])
    at_high = np.zeros((5, 2), bool)
    at_high[3, 1] = True
    return FitResult(
        model=MODELS["adc"],
        parameters=np.stack([s0, ADC], axis=1),
        standard_errors=np.array(
            [[1.0, 0.1], [1, 0.2], [1, 0.4], [np.inf, np.nan], [np.nan, np.nan]]
        ),
        cost=np.array([1.0, 2, 3, 4, np.nan]),
        status=np.array([0, 0, 2, 1, 3], np.uint8),
        n_iter=np.arange(5, dtype=np.int32),
        at_low=np.zeros((5, 2), bool),
        at_high=at_high,
        starts_disagree=np.zeros(5, bool),
        bounds=((0.0, np.inf), (0.0, 3.0)),
    )


def test_columns_are_found_by_name(result):
    np.testing.assert_array_equal(result["ADC"], ADC)
    np.testing.assert_array_equal(result["S0"][:4], [10, 20, 30, 40])
    assert result.names == ("S0", "ADC")
    assert len(result) == 5
    with pytest.raises(KeyError, match="model adc has no parameter 'Dt'; it has S0, ADC"):
        result["Dt"]


def cells(page):
    rows = re.findall(r"<tr>(.*?)</tr>", page)
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in rows]


def test_a_notebook_shows_quartiles_errors_and_bounds_of_the_voxels_that_were_fitted(result):
    page = result._repr_html_()
    header, s0, adc = cells(page)
    assert header == [
        "parameter",
        "unit",
        "median",
        "quartiles",
        "median standard error",
        "at a bound",
    ]
    assert s0 == ["S0", "signal", "25", "17.5 to 32.5", "1", "0.0%"]
    assert adc == ["ADC", "µm²/ms", "1.1", "0.95 to 1.65", "0.2", "25.0%"]
    assert "Fit of adc: 5 voxels" in page
    assert "2 converged, 1 at bound, 1 not converged, 1 not fitted" in page


def test_a_notebook_shows_a_fit_of_nothing():
    empty = fit_voxels(np.zeros((1, 9)), PROTOCOL, "adc", fixed={"S0": 100.0})
    page = empty._repr_html_()
    assert cells(page)[1] == ["S0 (fixed)", "signal", "–", "–", "–", "–"]
    assert "Fit of adc: 1 voxel<" in page
    assert "1 not fitted" in page


@pytest.fixture(scope="module")
def noisy():
    rng = np.random.default_rng(816)
    low, high = [20, 0.08, 8, 0.4], [900, 0.4, 60, 2.0]
    clean = MODELS["ivim"].signal(rng.uniform(low, high, (20, 4)), PROTOCOL)
    return np.abs(clean + clean[:, :1] / 200 * rng.normal(size=clean.shape))


def test_lmfit_agrees_on_one_voxel_and_gives_its_reports(noisy):
    signals = noisy
    result = fit_voxels(signals, PROTOCOL, "ivim", fixed={"Dt": 1.0})
    voxel = int(np.flatnonzero(result.status == FitStatus.CONVERGED)[0])
    refit = result.to_lmfit(voxel, signals, PROTOCOL)
    assert refit.chisqr == pytest.approx(result.cost[voxel], rel=1e-6)
    assert not refit.params["Dt"].vary
    for name, error in zip(result.names, result.standard_errors[voxel], strict=True):
        assert refit.params[name].value == pytest.approx(result[name][voxel], rel=1e-3)
        if name != "Dt":
            assert refit.params[name].stderr == pytest.approx(error, rel=1e-2)
    assert "Dv" in refit.fit_report()
    low, best, high = (value for _, value in refit.conf_interval(sigmas=[1])["f"])
    assert low < best < high


def test_lmfit_keeps_to_the_bounds_in_units_of_the_signal(noisy):
    result = fit_voxels(noisy, PROTOCOL, "ivim", bounds={"S0": (0.5, 2.0), "f": (0.0, 0.6)})
    refit = result.to_lmfit(3, noisy, PROTOCOL)
    top = noisy[3].max()
    box = {name: (refit.params[name].min, refit.params[name].max) for name in result.names}
    assert box["S0"] == (0.5 * top, 2 * top)
    assert box["f"] == (0.0, 0.6)
    assert box["Dv"] == (4, 100)


def test_lmfit_leaves_out_missing_measurements_and_has_the_noise_floor(noisy):
    signals = noisy.copy()
    signals[3, 4] = np.nan
    result = fit_voxels(signals, PROTOCOL, "ivim", method="nlls", sigma=20.0)
    refit = result.to_lmfit(3, signals, PROTOCOL, sigma=20.0)
    assert refit.ndata == 8
    # √(s² + π/2·σ²) is what the mean of the magnitudes comes to without signal.
    clean = MODELS["ivim"].signal([[refit.params[name].value for name in result.names]], PROTOCOL)[
        0
    ]
    np.testing.assert_allclose(
        refit.best_fit, np.delete(np.hypot(clean, 20 * np.sqrt(np.pi / 2)), 4), rtol=1e-9
    )
    assert refit.chisqr == pytest.approx(result.cost[3], rel=1e-4)


def test_lmfit_keeps_the_kurtosis_at_its_cap():
    protocol = Protocol([0, 500, 1000, 2000, 3000])
    rng = np.random.default_rng(7)
    signals = MODELS["kurtosis"].signal([[100.0, 1.5, 1.2]], protocol) + rng.normal(0, 0.5, (9, 5))
    result = fit_voxels(signals, protocol, "kurtosis")
    voxel = int(np.flatnonzero(result.at_high[:, 2])[0])
    refit = result.to_lmfit(voxel, signals, protocol)
    assert refit.chisqr == pytest.approx(result.cost[voxel], rel=1e-5)
    assert refit.params["K"].value == pytest.approx(1 / refit.params["D"].value, rel=1e-5)


def test_a_voxel_that_was_not_fitted_cannot_be_refitted(result):
    assert result.status[4] == FitStatus.NOT_FITTED
    with pytest.raises(ValueError, match="voxel 4 was not fitted: it has no usable signal"):
        result.to_lmfit(4, np.ones((5, 9)), PROTOCOL)
