"""What the data cannot tell: doubts of parameters and sentences of advice."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from dmrifit import MODELS, Parameter, Protocol, SignalModel, fit_voxels
from dmrifit.engine import doubts
from dmrifit.engine.doubts import DoubtReason, DoubtTally
from dmrifit.engine.protocol import average_directions, least_weighted

IVIM = MODELS["ivim"]
LOW_B = Protocol([0, 10, 20, 40, 80, 150, 300, 500, 800])


def noisy(model, truth, protocol, snr, seed, n=300):
    clean = model.signal(np.tile(truth, (n, 1)), protocol)
    return clean + np.random.default_rng(seed).normal(0, clean[0, 0] / snr, clean.shape)


def test_a_sound_fit_has_no_doubts_and_no_advice():
    signals = noisy(MODELS["adc"], [100.0, 1.0], Protocol([0, 400, 800, 1000]), 60, 1)
    result = fit_voxels(signals, Protocol([0, 400, 800, 1000]), "adc")
    assert not result.doubt.any()
    assert result.advice() == []
    signals[:2], signals[2] = np.nan, 0
    advice = fit_voxels(signals, Protocol([0, 400, 800, 1000]), "adc").advice()
    assert [sentence.partition(" with")[0] for sentence in advice] == ["Not fitted: 1 voxel", "Not fitted: 2 voxels"]


def test_without_perfusion_its_diffusivity_and_in_blood_the_tissue_are_in_doubt():
    result = fit_voxels(noisy(IVIM, [100.0, 0.0, 20.0, 1.0], LOW_B, 2000, 2), LOW_B, IVIM)
    dv, f = IVIM.names.index("Dv"), IVIM.names.index("f")
    assert (result.doubt_reasons[:, dv] == DoubtReason.NO_INFLUENCE).mean() > 0.95
    # None was found, and that is well measured.
    assert result.doubt[:, f].mean() < 0.05
    assert any(sentence.startswith("Dv is in doubt in ") and "not determined" in sentence for sentence in result.advice())
    assert any("compartment is too small" in sentence for sentence in result.advice())
    # At a low SNR an f that may be 0 makes Dv a doubt, too.
    result = fit_voxels(noisy(IVIM, [100.0, 0.0, 20.0, 1.0], LOW_B, 20, 2), LOW_B, IVIM)
    assert result.doubt[result.outer_intervals[:, f, 0] < 1e-6, dv].all()
    assert DoubtReason.MAY_BE_ABSENT in result.doubt_reasons[:, dv]
    result = fit_voxels(IVIM.signal([[100.0, 1.0, 20.0, 1.0]], LOW_B), LOW_B, IVIM)
    assert (result.doubt_reasons[:, IVIM.names.index("Dt")] == DoubtReason.NO_INFLUENCE).all()


@pytest.mark.parametrize("sd", [0, 20])
def test_parameters_that_change_the_signal_alike_are_in_doubt_at_any_noise(sd):
    parameters = [Parameter("S0", "signal", 0, np.inf), Parameter("D1", "µm²/ms", 0, 3), Parameter("D2", "µm²/ms", 0, 3)]
    model = SignalModel.from_expression("S0*exp(-b*(D1+D2))", parameters, name="sum")
    signals = model.signal([[1000.0, 0.5, 0.5]] * 20, LOW_B) + sd * np.random.default_rng(6).normal(size=(20, len(LOW_B)))
    result = fit_voxels(signals, LOW_B, model)
    np.testing.assert_array_equal(result.doubt.mean(axis=0), [0, 1, 1])
    assert result.advice()[0].startswith("No voxel determines D1, D2, because they change the signals")
    assert result.advice()[0].endswith('; fix what is not known (fixed={"D2": 1.5}), or choose a simpler model.')


def test_parameters_of_equal_boxes_and_of_weak_typical_signals_are_determined():
    parameters = [Parameter("S0", "signal", 0, np.inf), Parameter("f", "", 0, 1)]
    parameters += [Parameter("D1", "µm²/ms", 0, 5), Parameter("D2", "µm²/ms", 0, 5)]
    two = SignalModel.from_expression("S0*(f*exp(-b*D1) + (1-f)*exp(-b*D2))", parameters, name="two")
    for model, truth, highest in ((two, [1000.0, 0.6, 2.5, 0.3], 3000), (MODELS["kurtosis"], [1000.0, 0.1, 0.8], 15000)):
        protocol = Protocol(np.linspace(0, highest, 16))
        assert fit_voxels(noisy(model, truth, protocol, 200, 8, n=40), protocol, model).doubt.mean() < 0.05


def test_an_artificial_bound_is_a_doubt_and_zero_is_none():
    signals = noisy(MODELS["adc"], [100.0, 2.5], Protocol([0, 400, 800]), 100, 4)
    result = fit_voxels(signals, Protocol([0, 400, 800]), "adc", bounds={"ADC": (0.5, 2.0)})
    assert (result.doubt_reasons[:, 1] == DoubtReason.AT_BOUND).mean() > 0.9
    assert result.doubt[:, 1].all()
    assert 'may lie beyond, and the bound then shifts other parameters, too; widen the bounds (bounds={"ADC": (LOW, HIGH)})' in result.advice()[0]
    share = fit_voxels(noisy(IVIM, [100.0, 0.3, 20.0, 1.0], LOW_B, 900, 3), LOW_B, IVIM, bounds={"f": (0, 0.2)})
    assert any(sentence.startswith("f is in doubt in ") and "at its upper bound 0.2 in " in sentence for sentence in share.advice())
    still = noisy(MODELS["adc"], [100.0, 0.0], Protocol([0, 400, 800] * 2), 300, 5)
    still = fit_voxels(still, Protocol([0, 400, 800] * 2), "adc")
    assert still.at_low[:, 1].mean() > 0.2
    assert not still.doubt[:, 1].any()


def test_noise_above_the_signal_is_a_doubt_of_its_units():
    protocol = Protocol([0, 0, 400, 800])
    signals = noisy(MODELS["adc"], [100.0, 1.0], protocol, 20, 7)
    # The noise of some voxels, not all, is known in another unit.
    sigma = np.where(np.arange(300) < 180, 5000.0, 5.0)
    sentence = "In 60 % of the fitted voxels the noise is larger than the signal at the lowest b-value: is sigma in the units"
    assert sentence in fit_voxels(signals, protocol, "adc", sigma=sigma).advice()[0]
    assert "In 100 % of the fitted voxels the noise" in fit_voxels(signals, protocol, "adc", sigma=101.0 * 5).advice()[0]
    for level in (5.0, np.where(np.arange(300) < 120, 5000.0, 5.0)):
        advice = fit_voxels(signals, protocol, "adc", sigma=level).advice()
        assert not any("sigma" in text for text in advice)


def test_the_least_weighted_signals_are_those_of_the_shortest_echo_time():
    protocol = Protocol([0, 500, 0, 0, 500], te=[90, 60, 60, 60, 90])
    assert least_weighted(protocol).tolist() == [2, 3]
    assert least_weighted(Protocol([20, 500, 20])).tolist() == [0, 2]
    signals = [[50, 40, 90, 110, 20], [50, 40, 90, np.nan, 20]]
    result = fit_voxels(signals, Protocol(protocol.b), "adc")
    result = replace(result, inputs=replace(result.inputs, protocol=protocol))
    np.testing.assert_allclose(doubts.least_weighted_signals(result), [100, 90])
    assert np.isnan(doubts.least_weighted_signals(replace(result, inputs=None))).all()


def test_a_capped_kurtosis_names_the_turning_point_and_a_fluid_that_has_died_out_shows_none():
    protocol = Protocol([0, 500, 1000, 2000, 3000])
    signals = noisy(MODELS["kurtosis"], [100.0, 1.5, 1.2], protocol, 200, 6)
    result = fit_voxels(signals, protocol, "kurtosis")
    assert result.at_high[:, 2].mean() > 0.5
    assert result.doubt[result.at_high[:, 2], 2].all()
    assert any("upper bound 3/(b_max·D)" in sentence for sentence in result.advice())
    free = fit_voxels(signals, protocol, "kurtosis", bounds={"K": (0, 5)})
    assert not any("upper bound 3/(b_max·D)" in sentence for sentence in free.advice())
    # Of perfusion, at b-values that are too low for a kurtosis.
    result = fit_voxels(noisy(IVIM, [100.0, 0.3, 20.0, 1.0], LOW_B, 200, 6), LOW_B, "kurtosis")
    assert result.at_high[:, 2].mean() > 0.5
    assert "b-values" not in " ".join(result.advice())
    # A floor of 2 % bends the curve of a fluid, as pulsation and partial volume do.
    protocol = Protocol(np.arange(0, 2001, 100))
    decay = np.exp(-protocol.b_ms_per_um2 * 3.0)
    noise = np.random.default_rng(3).normal(0, 0.3, (300, len(protocol)))
    result = fit_voxels(100 * (0.98 * decay + 0.02) + noise, protocol, "kurtosis")
    assert np.median(result["K"]) > 0.2
    assert result.doubt[:, 2].mean() > 0.9
    assert DoubtReason.DECAYED in result.doubt_reasons[:, 2]
    assert any("b·D exceeds 5" in sentence for sentence in result.advice())
    lines = fit_voxels(result.inputs.signals, protocol, "kurtosis", method="ols")
    assert lines.doubt[:, 2].mean() > 0.9


DENSE = Protocol(np.arange(0, 2801, 100))
SPARSE = Protocol(np.arange(0, 2801, 400))


def kurtosis_fit(truth, protocol, snr, n=2000):
    """Fit Rician magnitudes of one tissue, with the noise known."""
    noise = np.random.default_rng([4103, snr]).normal(0, truth[0] / snr, (2, n, len(protocol)))
    clean = MODELS["kurtosis"].signal([truth], protocol)
    signals = np.hypot(clean + noise[0], noise[1])
    return fit_voxels(signals, protocol, "kurtosis", sigma=truth[0] / snr)


@pytest.mark.parametrize("snr", [30, 50])
def test_the_kurtosis_of_free_water_is_not_believed_and_of_few_contrasts_not_determined(snr):
    """Free water at b to 2800: D 2.6 % (SNR 30) and 1.5 % (50) too high, K believed ≤ .1 in 99 %."""
    result = kurtosis_fit([1000.0, 3.0, 0.0], DENSE, snr)
    believed = np.where(result.doubt[:, 2], 0.0, result["K"])
    assert np.percentile(believed, 90) <= 0.1
    assert (believed > 0.1).mean() < 0.01
    assert np.median(result["D"]) == pytest.approx(3.0, rel=0.03)
    assert not result.doubt[:, 1].any()
    assert any(sentence.startswith("K is ") for sentence in result.advice())
    # Eight contrasts leave K at zero in half of the voxels, and D 4.4 and 3.0 % too high: .997 and .892 are in doubt.
    result = kurtosis_fit([1000.0, 3.0, 0.0], SPARSE, snr)
    assert result.doubt[:, 2].mean() > 0.87
    assert (~result.doubt[:, 2] & (result["K"] > 0.1)).mean() < 0.01
    assert np.median(result["D"]) == pytest.approx(3.0, rel=0.05)


def test_a_kurtosis_that_doubts_leave_at_zero_has_no_median():
    for highest, expected in ((800, None), (2400, pytest.approx(0.4, rel=0.05))):
        protocol = Protocol(np.repeat(np.linspace(0, highest, 7), 3))
        assert kurtosis_fit([1000.0, 1.0, 0.4], protocol, 60)._summary_row(2)[2] == expected


@pytest.mark.parametrize("snr", [30, 50])
@pytest.mark.parametrize("truth", [[1000.0, 0.7, 1.1], [1000.0, 0.9, 0.75]], ids=["white", "gray"])
def test_the_kurtosis_of_brain_tissue_is_believed(truth, snr):
    result = kurtosis_fit(truth, DENSE, snr)
    np.testing.assert_allclose(np.median(result.parameters, axis=0), truth, rtol=0.05)
    assert result.doubt.mean(axis=0).max() < 0.01
    assert result.advice() == []


def test_fluid_of_a_real_brain_and_oil_and_blood_of_a_leg_are_doubted_and_tissue_is_not(data_dir):
    values, protocol = real_signals(data_dir / "dipy_small_dwi", "small_101D")
    low_b = np.flatnonzero(protocol.b <= 3100)
    signals = values.reshape(-1, len(protocol))[:, low_b].astype(float)
    result = fit_voxels(signals, protocol.take(low_b), "kurtosis")
    fluid, tissue = result["D"] > 2, (result["D"] > 0.7) & (result["D"] < 1.1)
    assert fluid.sum() >= 8
    assert result.doubt[fluid, 2].all()
    assert result.doubt[tissue, 2].mean() < 0.15
    values, protocol = real_signals(data_dir / "oil_phantom", "pt4")
    middle = values[30:60, 30:60, 12].reshape(-1, values.shape[3]).astype(float)
    signals, contrasts = average_directions(middle, protocol, mean="arithmetic")
    result = fit_voxels(signals, contrasts, "kurtosis")
    d, k = result.names.index("D"), result.names.index("K")
    slow = (result["D"] <= 0.01) | result.at_low[:, d]
    assert np.median(result["D"]) <= 0.01
    assert slow.mean() > 0.5
    assert (result.doubt_reasons[:, k] == DoubtReason.NOT_DETERMINED).mean() >= 0.95
    values, protocol = real_signals(data_dir / "leg_ivim", "dwi")
    labels = np.asanyarray(nib.load(data_dir / "leg_ivim" / "labels.nii.gz").dataobj)
    muscle = values[:, :, 12][labels[:, :, 12] > 0].astype(float)
    signals, contrasts = average_directions(muscle, protocol, mean="arithmetic")
    result = fit_voxels(signals, contrasts, "ivim")
    assert 1.3 < np.median(result["Dt"]) < 1.7
    assert result.doubt[:, result.names.index("Dv")].mean() > 0.9
    assert result.doubt[:, result.names.index("Dt")].mean() < 0.05
    assert result._tally().main_reasons["Dv"] == "NOT_DETERMINED"


def test_few_degrees_of_freedom_are_a_reason_of_doubt_by_the_95_percent_interval():
    few = Protocol([50, 400, 800])
    signals = MODELS["adc"].signal(np.tile([100.0, 1.0], (1000, 1)), few)
    signals += np.random.default_rng(0).normal(0, 5, signals.shape)
    for protocol, least, most in ((few, 0.4, 0.8), (Protocol(few.b.tolist() * 4), 0, 0)):
        reasons = fit_voxels(np.tile(signals, len(protocol) // 3), protocol, "adc").doubt_reasons[:, 1]
        assert least <= (reasons == DoubtReason.FEW_MEASUREMENTS).mean() <= most


def test_advice_names_the_reason_of_most_voxels():
    tally = DoubtTally(MODELS["kurtosis"], ((0, 10), (0, 10), (0, 5)))
    tally.n_fitted = tally.n_counted = 1000
    tally.reasons[:, DoubtReason.NONE] = 1000
    tally.at_high[2] = 40
    tally.reasons[2, [DoubtReason.NONE, DoubtReason.AT_BOUND, DoubtReason.UNCERTAIN]] = 255, 40, 705
    doubted = "K is in doubt in 74 % of the voxels with signal: "
    assert tally.advice()[0].startswith(f"{doubted}its 68 % interval is too wide")
    tally.reasons[2, [DoubtReason.AT_BOUND, DoubtReason.UNCERTAIN]] = 705, 40
    assert tally.advice()[0].startswith(f"{doubted}it is at its upper bound 5 in 4 %, where this scan")
    # A page shows the same remedy.
    assert tally.advice()[0].endswith(f"; {tally.remedies['K']}.")
    # Not "in 0 %".
    tally.at_high[2] = 4
    assert "bound" not in tally.advice()[0]


def test_parts_of_an_image_count_as_the_whole():
    signals = noisy(IVIM, [100.0, 0.1, 20.0, 1.0], LOW_B, 40, 8)
    whole = fit_voxels(signals, LOW_B, IVIM)
    tally = DoubtTally(IVIM, whole.bounds)
    for part in (signals[:100], signals[100:]):
        tally.add(fit_voxels(part, LOW_B, IVIM))
    np.testing.assert_allclose(tally.share, whole.doubt.mean(axis=0))
    assert (tally.advice(), tally.readings()) == (whole._tally().advice(), whole.readings())


def test_intervals_read_as_what_they_say():
    signals = noisy(IVIM, [100.0, 0.0, 20.0, 1.0], LOW_B, 300, 9)
    result = fit_voxels(signals, LOW_B, IVIM)
    readings = result.readings()
    high = np.median(result.intervals()[:, 1, 1])
    assert readings["f"].startswith("none found, < 0.0")
    assert float(readings["f"].split("< ")[1]) == pytest.approx(high, rel=0.3)
    assert readings["Dv"] == "not determined (4 to 100 µm²/ms searched)"
    low, _, high, unit = readings["Dt"].split()
    assert (float(low) < 1 < float(high), unit) == (True, "µm²/ms")
    fixed = fit_voxels(signals, LOW_B, IVIM, fixed={"Dv": 20.0})
    assert "Dv" not in fixed.readings()


def test_readings_keep_few_voxels_and_the_same_ones_however_an_image_is_cut(monkeypatch):
    monkeypatch.setattr(doubts, "_FEWEST_KEPT", 20)
    signals = noisy(IVIM, [100.0, 0.15, 20.0, 1.0], LOW_B, 300, 12)
    readings = []
    for cuts in ([300], [7, 130, 200, 300], [100, 100, 300]):
        tally = DoubtTally(IVIM, fit_voxels(signals[:1], LOW_B, IVIM).bounds)
        for part in np.split(signals, cuts)[: len(cuts)]:
            if len(part):
                tally.add(fit_voxels(part, LOW_B, IVIM))
        assert len(tally._ends.rows()) <= 40
        readings.append(tally.readings())
    assert readings[0] == readings[1] == readings[2]


def test_the_relaxation_time_of_blood_and_the_kurtosis_of_oil_or_water_read_none_found():
    model, protocol = MODELS["t2-ivim-kurtosis"], Protocol.preset("cohort1")
    signals = noisy(model, [1000.0, 0.12, 20, 200, 1.0, 0.8, 70], protocol, 100, 10)
    readings = fit_voxels(signals, protocol, model).readings()
    assert readings["T2v"] == "not determined (150 to 250 ms searched)"
    assert "determined" not in readings["Dt"]
    for truth, reason in ((110, "ONE_BOUND"), (200, "NOT_DETERMINED"), (400, "ONE_BOUND")):
        signals = noisy(model, [1000.0, 0.2, 20, truth, 1.0, 0.8, 70], protocol, 100, 1)
        assert fit_voxels(signals, protocol, model)._tally().main_reasons["T2v"] == reason
        wider = fit_voxels(signals, protocol, model, bounds={"T2v": (20, 900)})
        assert np.median(wider["T2v"]) == pytest.approx(truth, rel=0.2)
    protocol = Protocol(np.repeat([0, 500, 1000, 1500], 6))
    signals = noisy(MODELS["kurtosis"], [100.0, 1.8, 0.0], protocol, 100, 11)
    result = fit_voxels(signals, protocol, "kurtosis")
    assert result.readings()["K"].startswith("none found, < 0.")
    assert result.doubt[:, 2].mean() < 0.1
    still = fit_voxels(noisy(MODELS["adc"], [100.0, 0.0], protocol, 100, 11), protocol, "adc")
    assert still.readings()["ADC"].startswith("not distinguishable from 0, < 0.0")


def real_signals(folder, name):
    protocol = Protocol.read(folder / f"{name}.bval", None, folder / f"{name}.bvec")
    return np.asanyarray(nib.load(folder / f"{name}.nii.gz").dataobj), protocol


def test_an_interval_without_width_reads_at_the_bound():
    """The signal of a fluid over a floor: K is at its cap 3/(b_max·D) in every voxel."""
    protocol = Protocol(np.arange(0, 4001, 100.0))
    decay = 0.94 * np.exp(-2.5e-3 * protocol.b) + 0.06
    signals = 1000 * decay + np.random.default_rng(0).normal(0, 1, (200, len(protocol)))
    result = fit_voxels(signals, protocol, "kurtosis", method="nlls")
    assert result.at_high[:, 2].all()
    assert result.readings()["K"] == f"at the bound {np.median(result['K']):.3g}"
    # As narrow an interval within the bounds is an interval.
    clean = np.tile(MODELS["adc"].signal([[100.0, 1.5]], protocol), (20, 1))
    assert fit_voxels(clean, protocol, "adc").readings()["ADC"] == "1.5 to 1.5 µm²/ms"
