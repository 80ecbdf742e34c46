"""Names of derived files, and sets of files that appear together."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest

from dmrifit.engine.design.identifiability import expected_precision
from dmrifit.engine.doubts import DoubtTally
from dmrifit.engine.fitting import fit_voxels
from dmrifit.engine.models import MODELS, Parameter, SignalModel
from dmrifit.engine.protocol import Protocol
from dmrifit.io import bids_derivatives
from dmrifit.io.bids_derivatives import (
    FitTally,
    common_stem,
    derivative_name,
    file_record,
    is_tissue,
    stem,
    summarize_tissue,
    versions,
)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("sub-01_dwi.nii.gz", "sub-01_model-t2ivimkurtosis_param-Dt_dwimap.nii.gz"),
        ("a/sub-01_ses-2_acq-dr_dwi.nii", "sub-01_ses-2_acq-dr_model-t2ivimkurtosis_param-Dt_dwimap.nii.gz"),
        ("sub-01_desc-preproc_dwi.nii.gz", "sub-01_model-t2ivimkurtosis_param-Dt_desc-preproc_dwimap.nii.gz"),
        ("small_101D.nii.gz", "small_101D_model-t2ivimkurtosis_param-Dt_dwimap.nii.gz"),
        ("pre-op_scan.nii", "pre-op_scan_model-t2ivimkurtosis_param-Dt_dwimap.nii.gz"),
        ("patient 7.v2.img", "patient 7.v2_model-t2ivimkurtosis_param-Dt_dwimap.nii.gz"),
    ],
)
def test_names_follow_bids_and_keep_what_the_image_was_called(image, expected):
    assert (derivative_name(stem(image), "dwimap.nii.gz", model="t2-ivim-kurtosis", param="Dt") == expected)


def test_descriptions_are_joined_and_stand_last_and_an_image_without_a_name_adds_nothing():
    assert derivative_name("", "dwimap.json", model="adc") == "model-adc_dwimap.json"
    assert (derivative_name("sub-1_dwi", "dwi.bval", desc="predicted") == "sub-1_desc-predicted_dwi.bval")
    name = derivative_name("sub-1_desc-preproc_dwi", "dwimap.json", model="adc", desc="predicted")
    assert name == "sub-1_model-adc_desc-preprocPredicted_dwimap.json"


def test_a_file_is_recorded_by_name_and_digest_and_several_by_what_they_have_in_common(tmp_path):
    path = tmp_path / "x.nii"
    path.write_bytes(b"content")
    assert file_record(path) == {"Name": "x.nii", "SHA256": hashlib.sha256(b"content").hexdigest()}
    assert common_stem(["a/sub-01_echo-1_dwi.nii.gz", "b/sub-01_echo-2_dwi.nii"]) == "sub-01_dwi"
    assert common_stem(["te93.nii", "te105.nii"]) == ""
    assert common_stem(["sub-01_dwi.nii"]) == "sub-01_dwi"
    assert common_stem([]) == ""


def test_columns_of_a_table_are_those_of_the_longest_name(tmp_path):
    (tmp_path / "maps.json").write_text('{"Parameters": {"D": {"Units": "a"}, "fast_D": {"Units": "b"}}}')
    (tmp_path / "fits.tsv").write_text("maps\tmedian_D\tmedian_fast_D\nmaps.json\t1\t2\n")
    bids_derivatives.describe_table_of_fits(tmp_path / "fits.tsv", {"maps": {}, "median_": {"Units": "{name} {unit}"}})
    described = json.loads((tmp_path / "fits.json").read_text())
    assert list(described.values()) == [{}, {"Units": "D a"}, {"Units": "fast_D b"}]


def test_versions_name_what_computes():
    assert {"python", "dmrifit", "numba", "numpy", "nibabel"} == set(versions())
    assert set(versions("scipy")) == {"python", "scipy"}


@pytest.fixture(scope="module")
def noisy_signals():
    """Signals of an ADC of 1 at an SNR of 50, with three volumes of each of four b-values."""
    protocol = Protocol(np.repeat([0.0, 300.0, 600.0, 1000.0], 3))
    clean = MODELS["adc"].signal(np.tile([1000.0, 1.0], (500, 1)), protocol)
    return protocol, clean + np.random.default_rng(4).normal(0, 20, clean.shape)


def tally_of(result, protocol):
    tally = FitTally(result.model, protocol, DoubtTally(result.model, result.bounds))
    tally.add(result, np.ones((len(result.cost), 1, 1), bool))
    return tally


def test_the_snr_of_a_scan_counts_the_values_that_were_fitted(noisy_signals):
    protocol, signals = noisy_signals
    expected = tally_of(fit_voxels(signals, protocol, "adc"), protocol).snr()
    assert expected == pytest.approx(50, rel=0.15)
    signals = signals.copy()
    signals[:, 4:6] = np.nan
    result = fit_voxels(signals, protocol, "adc")
    assert tally_of(result, protocol).snr() == pytest.approx(50, rel=0.15)
    # What was left out before an average does not lessen the contrasts that are fitted.
    averaged = replace(result.screening, n_not_finite=result.screening.n_not_finite + 40)
    same = tally_of(replace(result, screening=averaged), protocol)
    assert same.snr() == tally_of(result, protocol).snr()
    signals[:, 4:6] = -1.0
    logarithms = fit_voxels(signals, protocol, "adc", method="ols")
    missing = fit_voxels(np.where(signals > 0, signals, np.nan), protocol, "adc", method="ols")
    assert tally_of(logarithms, protocol).snr() == pytest.approx(tally_of(missing, protocol).snr())


def test_the_snr_is_of_signals_that_were_measured_in_voxels_with_spare_values(noisy_signals):
    protocol, signals = noisy_signals
    result = fit_voxels(signals, protocol, "adc")
    sound = tally_of(fit_voxels(signals[:200], protocol, "adc"), protocol).snr()
    # Two values for two parameters in most voxels, whose residuals tell nothing.
    measured = signals.copy()
    measured[200:, 1:11] = np.nan
    inputs = replace(result.inputs, signals=measured)
    assert tally_of(replace(result, inputs=inputs), protocol).snr() == sound
    measured[:200, 1:11] = np.nan
    assert np.isnan(tally_of(replace(result, inputs=inputs), protocol).snr())
    protocol = Protocol(np.repeat([500.0, 800.0, 1200.0], 4), te=80)
    clean = MODELS["adc"].signal(np.tile([1000.0, 1.0], (500, 1)), protocol)
    signals = clean + np.random.default_rng(5).normal(0, 20, clean.shape)
    tally = tally_of(fit_voxels(signals, protocol, "adc"), protocol)
    assert tally.snr() == pytest.approx(50 * np.exp(-0.5), rel=0.1)
    section = bids_derivatives._describe_expected_precision(tally, protocol)["ExpectedPrecision"]
    assert section["SNRContrast"] == "b = 500 s/mm² and TE 80 ms"
    # In typical tissue of 1 µm²/ms, the lower bound is that of S0 at an SNR of 50.
    table = expected_precision(protocol, MODELS["adc"], (), 50)
    np.testing.assert_allclose(list(section["CoefficientOfVariation"].values()), table["cv"], rtol=0.1)


def test_a_parameter_that_is_typically_0_has_no_relative_error(noisy_signals):
    protocol, signals = noisy_signals
    parameters = [Parameter("S0", "signal", 0, np.inf), Parameter("D", "µm²/ms", 0, 5), Parameter("c", "", -1, 1)]
    model = SignalModel.from_expression("S0*(exp(-b*D)+c)", parameters, name="own")
    tally = tally_of(fit_voxels(signals, protocol, model, fixed={"D": 1.0}), protocol)
    section = bids_derivatives._describe_expected_precision(tally, protocol)["ExpectedPrecision"]
    assert "c" not in section["CoefficientOfVariation"]
    json.dumps(section, allow_nan=False)


def test_dark_voxels_far_above_the_noise_are_tissue():
    protocol = Protocol(np.repeat([0.0, 300.0, 600.0, 1000.0], 3))
    tissue = MODELS["adc"].signal(np.tile([200.0, 1.0], (400, 1)), protocol)
    fluid = MODELS["adc"].signal(np.tile([2000.0, 3.0], (100, 1)), protocol)
    clean = np.concatenate([tissue, fluid, np.zeros((300, 12))])
    rng = np.random.default_rng(6)
    signals = np.hypot(clean + rng.normal(0, 10, clean.shape), rng.normal(0, 10, clean.shape))
    within = tally_of(fit_voxels(signals[:500], protocol, "adc", sigma=10.0), protocol)
    # Four in five voxels are tissue.
    assert within.snr() == pytest.approx(20, rel=0.2)
    # Without sigma the noise is that of the residuals.
    for n_voxels, sigma in ((800, 10.0), (500, None), (800, None)):
        tally = tally_of(fit_voxels(signals[:n_voxels], protocol, "adc", sigma=sigma), protocol)
        assert tally.snr() == pytest.approx(20, rel=0.2)
        selected = is_tissue(signals[:n_voxels, :3].mean(axis=1), tally.noise_level(), is_masked=False)
        np.testing.assert_array_equal(selected, np.arange(n_voxels) < 500)


def test_medians_that_depend_on_the_voxels_in_doubt_are_told():
    # Low fractions are in doubt, and every second ADC.
    maps = {"f": np.arange(20.0).reshape(4, 5, 1), "ADC": np.full((4, 5, 1), 0.8)}
    maps["doubt"] = (maps["f"] < 10).astype(int) + 2 * (maps["f"].astype(int) % 2)
    maps["at_bound"] = np.zeros((4, 5, 1), int)
    sidecar = {"Parameters": {"f": {}, "ADC": {}}}
    summarize_tissue(sidecar, maps, np.ones((4, 5, 1), bool), 20)
    assert sidecar["MedianShift"]["Description"].endswith("changes medians: f 14.5 without them, 9.5 with them")
    maps["at_bound"][maps["f"] > 13] = 2
    summarize_tissue(sidecar, maps, np.ones((4, 5, 1), bool), 20)
    assert [entry["BelievedMedian"] for entry in sidecar["Parameters"].values()] == [None, 0.8]
