"""Screening of signals: negative, missing, masked and zero values of voxels."""

import numpy as np
import pytest
from scipy.optimize import least_squares

from dmrifit import (
    MODELS,
    FitStatus,
    MapFitter,
    Protocol,
    SignalToSignal,
    average_directions,
    fit_voxels,
)
from dmrifit.engine.screening import REASONS, Refusal, Screening, ScreeningTally, zeros_outside

PROTOCOL = Protocol([0, 50, 100, 200, 400, 600, 800, 900, 1000, 1200])
FIELDS = "parameters", "standard_errors", "cost", "status", "n_iter", "at_low", "at_high", "starts_disagree"


@pytest.fixture
def signals():
    rng = np.random.default_rng(1)
    truth = np.column_stack([rng.uniform(80, 400, 60), rng.uniform(0.6, 1.6, 60)])
    clean = MODELS["adc"].signal(truth, PROTOCOL)
    return clean + rng.normal(0, 3, clean.shape)


def columns_without(*missing):
    return [k for k in range(len(PROTOCOL)) if k not in missing]


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_a_missing_contrast_gives_the_fit_of_the_other_contrasts(signals, value):
    gap = signals.copy()
    gap[:, 3] = value
    result = fit_voxels(gap, PROTOCOL, "adc")
    rest = columns_without(3)
    expected = fit_voxels(signals[:, rest], PROTOCOL.take(rest), "adc")
    np.testing.assert_allclose(result.parameters, expected.parameters, rtol=1e-6)
    np.testing.assert_allclose(result.standard_errors, expected.standard_errors, rtol=1e-4)
    np.testing.assert_allclose(result.intervals(), expected.intervals(), rtol=1e-4)
    assert (result.n_left_out == 1).all()
    counts = result.screening.n_outside if value == 0 else result.screening.n_not_finite
    assert (counts == 1).all()
    assert "60 values left out" in result._repr_html_()


def test_reduced_chi2_counts_the_values_that_were_fitted(signals):
    gap = signals.copy()
    gap[:, [2, 6]] = 0.0
    result = fit_voxels(gap, PROTOCOL, "adc", sigma=3.0)
    np.testing.assert_allclose(result.reduced_chi2, result.cost / (6 * 9.0), rtol=1e-12)
    assert np.isnan(fit_voxels(gap, PROTOCOL, "adc").reduced_chi2).all()


@pytest.mark.parametrize("method", ["nlls", "map", "wls"])
def test_more_than_a_fifth_left_out_is_not_fitted(signals, method):
    gap = signals.copy()
    gap[0, [1, 5]] = np.nan
    gap[1, [1, 5]] = np.nan, 0.0
    gap[2, [1, 5, 7]] = np.nan
    gap[3, [1, 5, 7]] = np.nan, 0.0, np.inf
    result = fit_voxels(gap, PROTOCOL, "adc", method=method)
    assert (result.status[:2] != FitStatus.NOT_FITTED).all()
    assert (result.status[2:4] == FitStatus.NOT_FITTED).all()
    assert np.isnan(result.parameters[2:4]).all()
    assert np.isnan(result.intervals()[2:4]).all()
    assert result.screening.refusal[:4].tolist() == [0, 0, Refusal.LEFT_OUT, Refusal.LEFT_OUT]
    assert result.n_left_out[:4].tolist() == [2, 2, 3, 3]


def test_a_voxel_without_its_only_unweighted_contrast_is_not_fitted():
    protocol = Protocol([0, *[1000] * 20])
    signals = MODELS["adc"].signal([[100.0, 1.0]] * 2, protocol)
    signals[0, 0] = np.nan
    result = fit_voxels(signals, protocol, "adc")
    assert result.status.tolist() == [FitStatus.NOT_FITTED, FitStatus.CONVERGED]


def test_voxels_of_plain_data_and_with_missing_values_keep_every_bit(signals):
    expected = fit_voxels(signals, PROTOCOL, "adc")
    spoiled = signals.copy()
    spoiled[::5, 3] = np.nan
    spoiled[1::5, 4] = 0.0
    spoiled[2::5, 9] = -1.0
    spoiled[3::5] = 0.0
    result = fit_voxels(spoiled, PROTOCOL, "adc")
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(result, name)[4::5], getattr(expected, name)[4::5])
    assert expected.screening.n_left_out.sum() == expected.screening.refusal.sum() == 0
    assert expected.inputs.signals is signals
    rng = np.random.default_rng(2)
    many = np.tile(signals, (160, 1))
    holes = rng.random(many.shape) < 0.1
    many[holes] = rng.choice([0.0, np.nan, -5.0], holes.sum())
    whole = fit_voxels(many, PROTOCOL, "adc", n_threads=1)
    threads = fit_voxels(many, PROTOCOL, "adc", n_threads=3)
    part = fit_voxels(many[701:733], PROTOCOL, "adc")
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(threads, name), getattr(whole, name))
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[701:733])
    for name in Screening.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(threads.screening, name), getattr(whole.screening, name))
        np.testing.assert_array_equal(getattr(part.screening, name), getattr(whole.screening, name)[701:733])


def test_negative_values_are_fitted_as_by_scipy():
    rng = np.random.default_rng(3)
    clean = MODELS["adc"].signal([[100.0, 2.5]] * 40, PROTOCOL)
    signals = clean + rng.normal(0, 12, clean.shape)
    assert (signals < 0).any(axis=1).sum() > 20
    result = fit_voxels(signals, PROTOCOL, "adc")
    for signal, parameters in zip(signals, result.parameters, strict=True):
        best = least_squares(
            lambda p, signal=signal: p[0] * np.exp(-p[1] * PROTOCOL.b_ms_per_um2) - signal, [90.0, 2.0],
            xtol=1e-12, ftol=1e-12, gtol=1e-12,
        )  # fmt: skip
        np.testing.assert_allclose(parameters, best.x, rtol=1e-4)
    np.testing.assert_array_equal(result.screening.n_negative, (signals < 0).sum(axis=1))
    assert (result.n_left_out == 0).all()
    assert f"{(signals < 0).sum()} negative values fitted" in result._repr_html_()


def test_negative_values_do_not_bias_as_a_noise_floor_does():
    rng = np.random.default_rng(4)
    clean = MODELS["adc"].signal([[100.0, 2.5]] * 2000, PROTOCOL)
    signals = clean + rng.normal(0, 15, clean.shape)
    fitted = np.median(fit_voxels(signals, PROTOCOL, "adc")["ADC"])
    floored = np.median(fit_voxels(np.abs(signals), PROTOCOL, "adc")["ADC"])
    assert abs(fitted - 2.5) < 0.08 < abs(floored - 2.5)


def test_logarithms_leave_out_negative_values_without_a_limit(signals):
    low = signals.copy()
    low[0, [1, 4, 9]] = -2.0
    low[1, 8:] = 0.0  # after a low signal, not after a clear one
    low[1, :8] = 90.0 * np.exp(-7 * PROTOCOL.b_ms_per_um2[:8])
    result = fit_voxels(low, PROTOCOL, "adc", method="ols")
    assert result.screening.n_without_logarithm[:3].tolist() == [3, 2, 0]
    assert (result.status[:3] == FitStatus.CONVERGED).all()
    assert result.screening.n_negative.sum() == 0
    assert result["ADC"][1] == pytest.approx(7, rel=1e-6)


def test_negative_magnitudes_are_refused_by_the_rician_likelihood_and_missing_amplitudes_by_all(signals):
    signals[5, 9] = -1.0
    result = fit_voxels(signals, PROTOCOL, "adc", sigma=3.0, likelihood="rician")
    assert np.flatnonzero(result.status == FitStatus.NOT_FITTED).tolist() == [5]
    assert result.screening.refusal[5] == Refusal.NEGATIVE_MAGNITUDE
    for likelihood in ("gaussian", "rician-mean"):
        result = fit_voxels(signals, PROTOCOL, "adc", sigma=3.0, likelihood=likelihood)
        assert (result.status != FitStatus.NOT_FITTED).all()
    signals[2, 0] = np.nan
    signals[3, 0] = -4.0
    result = fit_voxels(signals, PROTOCOL, "adc", fixed={"S0": "measured"})
    assert np.flatnonzero(result.status == FitStatus.NOT_FITTED).tolist() == [2, 3]
    assert (result.screening.refusal[2:4] == Refusal.NO_AMPLITUDE).all()


def test_a_segmented_fit_screens_the_voxel_once():
    """Of its four high b-values one may lack, because it is a tenth of all."""
    protocol = Protocol([0, 10, 20, 40, 60, 80, 200, 400, 600, 800])
    clean = MODELS["ivim"].signal([[100.0, 0.1, 20.0, 1.0]] * 3, protocol)
    clean[0, 7] = np.nan
    clean[1, 7] = 0.0
    result = fit_voxels(clean, protocol, "ivim", method="segmented")
    assert result.status[:2].tolist() == result.status[1:].tolist()
    np.testing.assert_allclose(result["Dt"], result["Dt"][2], rtol=0.02)
    assert result.n_left_out.tolist() == [1, 1, 0]


def outside(row, protocol=PROTOCOL):
    return np.flatnonzero(zeros_outside(np.array([row], float), protocol)[0]).tolist()


def test_zeros_beside_clear_signals_lie_outside_the_field_of_view_and_all_others_are_data():
    clear = MODELS["adc"].signal([[800.0, 1.0]], PROTOCOL)[0]
    for k in (0, 3, 7):
        row = clear.copy()
        row[k] = 0.0
        assert outside(row) == [k]
        assert outside(np.rint(row)) == [k]
        row[2] = np.nan
        assert outside(row) == [k]
    assert outside([40, 30, 21, 12, 5, 0, 1, 0, 2, 1]) == []  # whole numbers near the noise
    assert outside([9, 0, 8, 7, 6, 5, 5, 4, 4, 3]) == []
    # Nothing tells of the signal at the last b-value but a decay that may be that of water.
    assert outside([100, 90, 80, 65, 45, 30, 20, 17, 14, 0.0]) == []
    assert outside([900, 870, 820, 700, 300, 0.5, 0, 0.7, 0.2, 0]) == []
    assert outside([0] * 10) == []
    assert outside([0] * 9 + [-3]) == []
    rng = np.random.default_rng(5)
    protocol = Protocol([*[0] * 4, *[1000] * 6, *[3000] * 20])
    clean = MODELS["adc"].signal(np.column_stack([np.full(3000, 30.0), rng.uniform(0.8, 3, 3000)]), protocol)
    real, imaginary = rng.normal(0, 1.5, (2, *clean.shape))
    magnitudes = np.floor(np.hypot(clean + real, imaginary))
    assert ((magnitudes == 0).any(axis=1)).mean() > 0.5
    assert not zeros_outside(magnitudes, protocol).any()
    magnitudes[::7] = np.where(rng.random(magnitudes[::7].shape) < 0.1, 0, 40 * magnitudes[::7] + 13)
    expected = zeros_outside(magnitudes, protocol)
    assert 100 < expected.sum() < (magnitudes == 0).sum() / 2
    for factor in (0.0137, 1 / 3, 7, 3563.92, 1e9):  # as those of a file
        for scaled in (factor * magnitudes, np.float64(np.float32(factor) * np.float32(magnitudes))):
            np.testing.assert_array_equal(zeros_outside(scaled, protocol), expected)
            # Air of zeros and single steps.
            assert not zeros_outside(factor * np.sign(magnitudes), protocol).any()


def test_echo_times_weigh_as_b_values_do():
    protocol = Protocol([0, 500, 1000, 0, 500, 1000], te=[50, 50, 50, 90, 90, 90])
    assert outside([100.5, 60, 40, 60, 0, 25], protocol) == [4]
    assert outside([100.5, 60, 40, 60, 36, 0], protocol) == []
    assert outside([100.5, 60, 40, 0, 36, 25], protocol) == [3]


def test_masked_arrays_are_filled_with_nan(signals):
    values = np.rint(signals).astype(np.int16)
    mask = np.zeros(values.shape, bool)
    mask[:, 4] = True
    spoiled = values.copy()
    spoiled[mask] = 9999
    masked = np.ma.MaskedArray(spoiled, mask)
    filled = np.where(mask, np.nan, values)
    expected = fit_voxels(filled, PROTOCOL, "adc")
    np.testing.assert_array_equal(fit_voxels(masked, PROTOCOL, "adc").parameters, expected.parameters)
    fitter = MapFitter("adc", PROTOCOL).fit(masked)
    np.testing.assert_array_equal(fitter.transform(masked), expected.parameters)
    for ours, theirs in zip(average_directions(masked, PROTOCOL), average_directions(filled, PROTOCOL), strict=True):
        if isinstance(ours, np.ndarray):
            np.testing.assert_array_equal(ours, theirs)
    source = PROTOCOL.take([0, 2, 4, 6])
    estimator = SignalToSignal("LR", source=source, target=PROTOCOL)
    target = np.abs(signals)
    masked_target = np.ma.MaskedArray(np.where(mask, 1e6, target), np.arange(60)[:, None] < [9] * 10)
    estimator.fit(target[:, [0, 2, 4, 6]], masked_target)
    assert estimator.n_dropped_ == 9
    with pytest.raises(ValueError, match="NaN"):
        SignalToSignal("LR").fit(masked, target)


def test_a_tally_counts_values_and_reasons():
    screening = Screening.empty(4)
    screening.n_not_finite[:] = 1, 0, 5, 0
    screening.n_outside[:] = 1, 0, 0, 0
    screening.n_negative[:] = 0, 3, 0, 2
    screening.refusal[2] = Refusal.LEFT_OUT
    tally = ScreeningTally()
    assert tally.describe() == {}
    tally.add(screening, np.array([True, True, False, False]))
    tally.add(Screening.empty(6), np.ones(6, bool))
    described = tally.describe()
    assert described["LeftOut"] == {
        "Reason": "6 not finite, 1 zero (a dropout, or outside the field of view)", "Values": 7, "Voxels": 2
    }  # fmt: skip
    assert (described["Negative"]["Values"], described["Negative"]["Voxels"]) == (3, 1)
    assert described["NotFitted"]["Voxels"] == 2
    assert described["NotFitted"]["Share"] == 0.2
    assert list(described["NotFitted"]["Reasons"].values()) == [1, 1]
    assert next(iter(described["NotFitted"]["Reasons"])) == REASONS[Refusal.LEFT_OUT]
