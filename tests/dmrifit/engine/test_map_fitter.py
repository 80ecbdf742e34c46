"""Fits as scikit-learn transformers."""

import logging

import numpy as np
import pytest
from scipy.optimize import curve_fit
from sklearn import config_context
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from dmrifit.engine.fitting import fit_voxels
from dmrifit.engine.map_fitter import ClinicalMetrics, MapFitter
from dmrifit.engine.models import MODELS
from dmrifit.engine.protocol import Protocol

CLINICAL = Protocol([0, 50, 100, 400, 900], te=93)


@parametrize_with_checks([MapFitter(), MapFitter("adc"), ClinicalMetrics(), ClinicalMetrics(method="wls")])
def test_transformers_keep_the_rules_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.fixture
def decays():
    """Ten percent of perfusion over tissue: S0, ADC_fast > ADC > ADC_slow, F > 0."""
    rng = np.random.default_rng(0)
    parameters = np.column_stack([
        rng.uniform(50, 500, 40), rng.uniform(0.05, 0.2, 40), rng.uniform(10, 40, 40), rng.uniform(0.6, 2, 40)
    ])  # fmt: skip
    return MODELS["ivim"].signal(parameters, CLINICAL)


@pytest.fixture(params=["nlls", "ols", "wls"])
def method(request):
    return request.param


def test_metrics_are_those_of_exponentials_of_signals_that_rise_and_of_perfusion(method, decays):
    rng = np.random.default_rng(1)
    s0, adc = rng.uniform(50, 500, 60), rng.uniform(0.1, 3.0, 60)
    signals = MODELS["adc"].signal(np.column_stack([s0, adc]), CLINICAL)
    result = ClinicalMetrics(CLINICAL, method=method).fit_transform(signals)
    np.testing.assert_allclose(result[:, 0], s0, rtol=1e-7)
    np.testing.assert_allclose(result[:, 1:4], np.repeat(adc[:, None], 3, axis=1), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(result[:, 4], 0, atol=1e-7)
    signals = MODELS["adc"].signal([[100.0, -0.4]], CLINICAL)
    result = ClinicalMetrics(CLINICAL, method=method).fit_transform(signals)
    np.testing.assert_allclose(result[0, :4], [100, -0.4, -0.4, -0.4], rtol=1e-6)
    hump = ClinicalMetrics(CLINICAL, method=method).fit_transform([[80.0, 90.0, 100.0, 60.0, 30.0]])
    assert hump[0, 2] < 0 < hump[0, 3]
    assert hump[0, 4] < 0
    s0, adc, fast, slow, fraction = ClinicalMetrics(CLINICAL, method=method).fit_transform(decays).T
    assert np.all(fast > adc)
    assert np.all(adc > slow)
    assert np.all(fraction > 0)
    assert np.all(s0 < decays[:, 0])


def test_the_least_squares_metrics_agree_with_scipy_and_the_weighted_line_with_polyfit(decays):
    noisy = decays + np.random.default_rng(2).normal(0, 2, decays.shape)
    result = ClinicalMetrics(CLINICAL).fit_transform(noisy)

    def decay(b, s0, adc):
        return s0 * np.exp(-b * adc)

    b = CLINICAL.b_ms_per_um2
    for signal, row in zip(noisy[:10], result[:10], strict=True):
        start = signal[0], 1.0
        s0, adc = curve_fit(decay, b, signal, p0=start, xtol=1e-14, ftol=1e-14)[0]
        _, fast = curve_fit(decay, b[:3], signal[:3], p0=start, xtol=1e-14, ftol=1e-14)[0]
        s0_slow, slow = curve_fit(decay, b[2:], signal[2:], p0=start, xtol=1e-14, ftol=1e-14)[0]
        np.testing.assert_allclose(row, [s0, adc, fast, slow, 1 - s0_slow / s0], rtol=2e-4, atol=1e-5)
    gap = decays.copy()
    gap[1:, 3] = np.nan
    gap[0, 1] = 0.0  # no logarithm: no weight; of five values one may lack
    result = ClinicalMetrics(CLINICAL, method="wls").fit_transform(gap)
    for signal, row in zip(gap, result, strict=True):
        use = np.isfinite(signal) & (signal > 0)
        weight = signal[use]
        for _ in range(3):
            slope, level = np.polyfit(b[use], np.log(signal[use]), 1, w=weight)
            weight = np.exp(level + slope * b[use])
        np.testing.assert_allclose(row[:2], [np.exp(level), -slope], rtol=1e-9)


def test_the_fraction_with_the_measured_signal_is_the_larger(decays, method):
    fitted = ClinicalMetrics(CLINICAL, method=method).fit_transform(decays)
    measured = ClinicalMetrics(CLINICAL, method=method, s0="measured").fit_transform(decays)
    np.testing.assert_array_equal(measured[:, :4], fitted[:, :4])
    assert np.all(measured[:, 4] > fitted[:, 4])
    s0_slow = (1 - fitted[:, 4]) * fitted[:, 0]
    np.testing.assert_allclose(measured[:, 4], 1 - s0_slow / decays[:, 0], rtol=1e-9)


def test_columns_may_stand_in_any_order_with_b_values_as_scanners_write_them(decays, method):
    order = np.array([3, 0, 4, 2, 1])
    written = Protocol(np.array([5.0, 50, 100, 395, 905])[order], te=93)
    plain = Protocol([5.0, 50, 100, 395, 905], te=93)
    result = ClinicalMetrics(written, method=method).fit_transform(decays[:, order])
    np.testing.assert_allclose(
        result, ClinicalMetrics(plain, method=method).fit_transform(decays), rtol=1e-6, atol=1e-8
    )


UNUSABLE = {
    "NaN": [np.nan] * 5,
    "infinite": [np.inf] * 5,
    "zero": [0.0] * 5,
    "negative": [100.0, 90.0, -1.0, 40.0, 20.0],
    "constant": [7.0] * 5,
    "one value": [100.0, np.nan, np.nan, np.nan, np.nan],
}


@pytest.mark.parametrize("row", UNUSABLE.values(), ids=UNUSABLE)
def test_a_voxel_without_a_fit_is_nan_and_its_neighbor_is_not(row, decays, method):
    metrics = ClinicalMetrics(CLINICAL, method=method).fit(decays)
    alone = metrics.transform(decays[:1])
    both = metrics.transform(np.vstack([decays[:1], row]))
    np.testing.assert_array_equal(both[:1], alone)
    if row[0] == 100.0 and row[1] == 90.0:
        # A negative value is data; without a logarithm, it is left out of a fit of logarithms.
        missing = -1.0 if method == "nlls" else np.nan
        gap = [[100.0, 90.0, missing, 40.0, 20.0]]
        np.testing.assert_array_equal(both[1:, :2], metrics.transform(gap)[:, :2])
        assert np.isfinite(both[1, :2]).all()
        return
    assert np.isnan(both[1, :2]).all()
    assert np.isnan(both[1, 4])


def test_a_map_fitter_returns_what_the_engine_returns_with_its_options_and_clean_signals_back(decays):
    fitter = MapFitter("ivim", CLINICAL).fit(decays)
    np.testing.assert_array_equal(fitter.transform(decays), fit_voxels(decays, CLINICAL, "ivim").parameters)
    with_floor = fit_voxels(decays, CLINICAL, "ivim", sigma=5.0).parameters
    np.testing.assert_array_equal(fitter.transform(decays, sigma=5.0), with_floor)
    np.testing.assert_array_equal(MapFitter("ivim", CLINICAL, sigma=5.0).fit_transform(decays), with_floor)
    assert not np.array_equal(with_floor, fitter.transform(decays), equal_nan=True)
    np.testing.assert_allclose(fitter.inverse_transform(fitter.transform(decays)), decays, rtol=1e-4)
    fixed = MapFitter("ivim", CLINICAL, fixed={"Dv": 20.0}).fit_transform(decays)
    np.testing.assert_allclose(fixed[:, 2], 20.0)
    bounded = MapFitter("ivim", CLINICAL, bounds={"Dt": (0.2, 0.5)}).fit_transform(decays)
    assert bounded[:, 3].max() <= 0.5


def test_a_noise_level_per_voxel_reaches_the_fit_through_a_pipeline(decays):
    sigma = np.linspace(1.0, 9.0, len(decays))
    fitter = MapFitter("adc", CLINICAL)
    with config_context(enable_metadata_routing=True):
        pipeline = make_pipeline(fitter.set_transform_request(sigma=True)).fit(decays)
        result = pipeline.transform(decays, sigma=sigma)
    np.testing.assert_array_equal(result, fit_voxels(decays, CLINICAL, "adc", sigma=sigma).parameters)


@pytest.mark.parametrize(
    "estimator", [MapFitter("adc", CLINICAL), ClinicalMetrics(CLINICAL)], ids=["MapFitter", "ClinicalMetrics"]
)
class TestBoth:
    def test_pandas_comes_out_on_request(self, estimator, decays):
        frame = clone(estimator).set_output(transform="pandas").fit_transform(decays)
        assert frame.columns.tolist()[:2] == ["S0", "ADC"]
        np.testing.assert_array_equal(frame.to_numpy(), estimator.fit_transform(decays))

    def test_the_unit_of_the_signals_scales_only_s0(self, estimator, decays):
        one, other = estimator.fit_transform(decays), estimator.fit_transform(1024 * decays)
        np.testing.assert_allclose(other[:, 0], 1024 * one[:, 0], rtol=1e-9)
        np.testing.assert_allclose(other[:, 1:], one[:, 1:], rtol=1e-9)

    def test_without_a_protocol_nothing_is_fitted_and_the_log_says_so(self, estimator, decays, caplog):
        with caplog.at_level(logging.WARNING, logger="dmrifit"):
            result = clone(estimator).set_params(protocol=None).fit_transform(decays)
        assert np.isnan(result).all()
        assert "no protocol" in caplog.text
