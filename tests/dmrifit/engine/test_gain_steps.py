"""Steps of the gain between volumes, on simulated signals and on real people."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from dmrifit import MODELS, Protocol, fit_voxels
from dmrifit.engine.gain_steps import find_gain_step, relative_doubt

PROTOCOL = Protocol([0, 10, 20, 40, 80, 200, 400, 600, 800])


def noisy(protocol=PROTOCOL, n=200, seed=1, snr=20):
    rng = np.random.default_rng(seed)
    names = {"S0": (80, 300), "f": (0.02, 0.3), "Dv": (8, 60), "Dt": (0.6, 1.8)}
    truth = np.column_stack([rng.uniform(low, high, n) for low, high in names.values()])
    clean = MODELS["ivim"].signal(truth, protocol)
    if protocol.te is not None:
        clean = clean * np.exp(-protocol.te / 70)
    return clean + rng.normal(0, 1, clean.shape) * clean[:, :1] / snr


def test_one_series_too_few_voxels_air_and_missing_volumes_have_no_step():
    for seed in range(5):
        assert find_gain_step(noisy(seed=seed), PROTOCOL) is None
    assert find_gain_step(noisy(n=8, snr=5), PROTOCOL) is None
    signals = noisy()
    signals[:, 5:] *= 2
    assert find_gain_step(signals[:4], PROTOCOL) is None
    assert find_gain_step(np.full((50, 9), np.nan), PROTOCOL) is None
    assert find_gain_step(np.zeros((50, 9)), PROTOCOL) is None
    assert find_gain_step(np.empty((0, 9)), PROTOCOL) is None
    air = np.random.default_rng(3).rayleigh(1.0, (3000, 9))
    assert find_gain_step(np.concatenate([air, signals]), PROTOCOL).low == "b = 0, 10, 20, 40, 80 s/mm²"
    signals[:, 0] = np.nan
    assert find_gain_step(signals, PROTOCOL).high.startswith("b = 200")


def test_two_groups_are_named_with_their_ratio_and_advice():
    signals = noisy()
    signals[:, [1, 2, 3, 4]] *= 0.5
    step = find_gain_step(signals, PROTOCOL)
    assert (step.low, step.high) == ("b = 10, 20, 40, 80 s/mm²", "b = 0, 200, 400, 600, 800 s/mm²")
    assert 0.5 < step.ratio == step.describe()["Ratio"] < 0.75
    assert "b-values are reversed" in find_gain_step(noisy()[:, ::-1], PROTOCOL).description
    either = find_gain_step(noisy()[:, [8, 0]], Protocol([0, 800])).description
    assert "either the b-values are in the reverse order of the volumes, or volumes b = 0 s/mm² are scaled" in either
    assert "then scale them to a common contrast or fit them separately" in step.description
    order = np.random.default_rng(2).permutation(9)
    assert find_gain_step(signals[:, order], PROTOCOL.take(order)) == step
    signals = noisy(snr=80)
    assert not any("scaled" in sentence for sentence in fit_voxels(signals, PROTOCOL, "adc").advice())
    signals[:, 5:] *= 1.8
    (sentence,) = [text for text in fit_voxels(signals, PROTOCOL, "adc").advice() if "scaled" in text]
    assert sentence.startswith("volumes b = 0, 10, 20, 40, 80 s/mm² seem to be scaled differently from")


def test_a_signal_that_rises_with_the_echo_time_is_noticed():
    protocol = Protocol([0, 100, 500, 0, 100, 500], te=[50, 50, 50, 80, 80, 80])
    signals = noisy(protocol)
    assert find_gain_step(signals, protocol) is None
    signals[:, 3:] *= 2.0
    step = find_gain_step(signals, protocol)
    assert (step.low, step.high) == ("at TE 50 ms", "at TE 80 ms")
    normalized = signals / signals[:, [0, 0, 0, 3, 3, 3]]
    normalized[:, 4:] *= 1.3
    assert find_gain_step(normalized, protocol) is None
    assert "t2-ivim-relative" in fit_voxels(normalized, protocol, "t2-adc").advice()[-1]
    relaxing = noisy(protocol) * np.repeat([1.0, 0.7], 3)
    advice = fit_voxels(relaxing, protocol, "t2-ivim-relative", bounds={"dR2": (-0.02, 0.02)}).advice()
    assert "divide them" in advice[-1]
    assert "-0" not in " ".join(advice)  # one minus sign
    for others in (relaxing[:0], relaxing / relaxing[:, [0, 0, 0, 3, 3, 3]]):
        assert relative_doubt(others, protocol, MODELS["t2-ivim-relative"]) == ""
    # Without b = 0 at an echo time, ratios at the lowest b-values do not tell.
    protocol = protocol.take([0, 1, 2, 4, 5])
    assert relative_doubt(noisy(protocol), protocol, MODELS["t2-ivim-relative"]) == ""


def test_single_directions_in_coherent_tissue_and_shells_of_unequal_b_are_not_compared(data_dir):
    directions = [[0, 0, 0], [1, 0, 0], [0, 1, 0]]
    protocol = Protocol([0, 800, 900], directions=directions)
    signals = np.full((20, 3), 100.0) * [1, 0.3, 0.6]
    assert find_gain_step(signals, protocol) is None
    assert find_gain_step(signals, Protocol(protocol.b)) is not None
    folder = data_dir / "dipy_small_dwi"
    signals = np.asarray(nib.load(folder / "small_101D.nii.gz").dataobj).reshape(-1, 102)
    assert find_gain_step(signals, Protocol.read(folder / "small_101D.bval")) is None
    b = np.array([0, 15, 795, 800, 805, 900])
    values = np.full((20, 6), 100.0) * [1, 0.98, 0.4, 0.4, 0.4, 0.6]
    assert find_gain_step(values, Protocol(b)) is None
    assert find_gain_step(values, Protocol(b.clip(None, 800))) is None
    assert find_gain_step(values, Protocol([0, 15, 800, 800, 800, 900])) is not None
    assert find_gain_step(np.full((20, 6), 100.0) * [1, 2, 0.8, 0.8, 0.8, 0.6], Protocol(b)) is not None


def test_one_kidney_of_real_people_holds_two_series(data_dir):
    table = pd.read_csv(data_dir / "kidney_multi_te" / "curves.csv")
    steps_by_series = {}
    for key, curves in table.groupby(["volunteer", "te_ms"]):
        wide = curves.pivot_table(index=["kidney", "slice"], columns="b_s_mm2", values="signal_over_own_b0")
        protocol = Protocol(wide.columns.to_numpy(), te=np.full(wide.shape[1], key[1]))
        step = find_gain_step(wide.to_numpy(), protocol)
        if step is not None:
            steps_by_series[key] = step
    ((key, step),) = steps_by_series.items()
    assert (key, step.low) == ((3, 45.0), "b = 0.2, 1.5, 1.8, 2, 6, 10, 25, 35, 45, 60 s/mm² at TE 45 ms")
    assert step.ratio == pytest.approx(0.73, abs=0.06)
    volunteers = {}
    for volunteer, curves in table.groupby("volunteer"):
        wide = curves.pivot_table(index=["kidney", "slice"], columns=["te_ms", "b_s_mm2"], values="signal_over_own_b0")
        te, b = np.array(wide.columns.tolist()).T
        volunteers[volunteer] = find_gain_step(wide.to_numpy(), Protocol(b, te=te))
        assert relative_doubt(wide.to_numpy(), Protocol(b, te=te), MODELS["t2-adc"])
        assert not relative_doubt(wide.to_numpy(), Protocol(b, te=te), MODELS["t2-ivim-relative"])
    assert [volunteer for volunteer, step in volunteers.items() if step is not None] == [3]


def test_the_leg_is_one_series(data_dir):
    folder = data_dir / "leg_ivim"
    protocol = Protocol.read(folder / "dwi.bval", bvec=folder / "dwi.bvec")
    scan = np.asarray(nib.load(folder / "dwi.nii.gz").dataobj[:, :, 11:13])
    labels = np.asarray(nib.load(folder / "labels.nii.gz").dataobj[:, :, 11:13])
    assert find_gain_step(scan.reshape(-1, 42)[::30], protocol) is None
    for label in np.unique(labels[labels > 0]):
        assert find_gain_step(scan[labels == label], protocol) is None
