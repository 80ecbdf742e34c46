"""What a scan is."""

from contextlib import nullcontext

import nibabel as nib
import numpy as np
import pytest

from dmrifit.engine.models import MODELS
from dmrifit.engine.protocol import Protocol
from dmrifit.imaging.fit_predict import fit_image
from dmrifit.imaging.scan_info import (
    _model_line,
    contrast_lines,
    decay_doubt,
    empty_doubt,
    scan_info,
)

SHELLS = Protocol(np.repeat([0, 500, 1000, 2000], 8))


def synthetic(protocol, sigma, shape=(16, 16, 8), affine=None):
    rng = np.random.default_rng(0)
    signals = MODELS["kurtosis"].signal(np.tile([1000.0, 1.0, 0.8], (np.prod(shape), 1)), protocol)
    values = signals + rng.normal(0, sigma, signals.shape)
    return nib.Nifti1Image(values.reshape(*shape, -1).astype(np.float32), affine)


def test_b_values_of_a_shell_are_one_and_low_ones_are_not():
    end = "s/mm², echo time unknown"
    assert contrast_lines(Protocol([0, 1, 995, 1000, 1005, 2000])) == [f"b = 0 to 1 (2), 995 to 1005 (3), 2000 {end}"]
    assert contrast_lines(Protocol([0, 10, 20, 30, 500])) == [f"b = 0, 10, 20, 30, 500 {end}"]
    lines = [f"b = 0, 500 s/mm² at TE {te} ms" for te in (60, 90)]
    assert contrast_lines(Protocol([0, 500, 0, 500], [60, 60, 90, 90])) == lines
    assert "0 to 1950 (40 shells, 40 volumes)" in contrast_lines(Protocol(np.arange(40) * 50))[0]


def test_noise_and_precision_are_those_of_the_simulation():
    pytest.importorskip("dipy")
    info = scan_info(synthetic(SHELLS, 20, affine=np.diag([2.0, 2, 2, 1])), SHELLS)
    assert info.snr == pytest.approx(50, rel=0.15)
    assert (info.grid, info.voxel, info.doubts) == ((16, 16, 8), (2, 2, 2), [])
    kurtosis = next(line for line in info.models if line.startswith("kurtosis"))
    assert 0.02 < float(kurtosis.rpartition("± ")[2]) < 0.2
    # At a low SNR info and precision name the same parameters.
    image = synthetic(SHELLS, 600, affine=np.eye(4))
    expected = fit_image(image, SHELLS, "kurtosis").sidecar["ExpectedPrecision"]
    names = [name for name, cv in expected["CoefficientOfVariation"].items() if cv is None]
    assert names == ["D", "K"]
    assert f"kurtosis: yes, except {', '.join(names)} of single voxels" in " ".join(scan_info(image, SHELLS).models)
    assert _model_line("kurtosis", Protocol([0, 1000, 2000, 3000]), 0.01).endswith("D 1 ± 370 µm²/ms, K 0.8 ± 450")


def test_several_directions_are_told_by_info_and_fit_until_they_are_averaged():
    protocol = Protocol([0, 500, 500, 1000, 1000], directions=[[0, 0, 0], *[[1, 0, 0], [0, 1, 0]] * 2])
    image = synthetic(protocol, 5, affine=np.eye(4))
    assert "the mean signal over the directions of each b-value" in scan_info(image, protocol).models[-1]
    advice = [fit_image(image, protocol, "adc", average=mean).advice() for mean in (None, "geometric")]
    assert ["over the directions of each b-value" in " ".join(sentences) for sentences in advice] == [True, False]


def in_air(image, sigma, n_air=48):
    """Put an image into air, whose magnitudes are those of noise alone."""
    values = np.asarray(image.dataobj)
    air = np.hypot(*np.random.default_rng(1).normal(0, sigma, (2, n_air, *values.shape[1:])))
    return nib.Nifti1Image(np.concatenate([values, air]).astype(np.float32), np.eye(4))


def test_air_around_the_body_changes_neither_snr_nor_doubts_and_tissue_beside_fluid_is_none():
    pytest.importorskip("dipy")
    assert scan_info(in_air(synthetic(SHELLS, 20), 20), SHELLS).snr == pytest.approx(50, rel=0.15)
    # The volumes in the reverse order of the b-values.
    doubts = scan_info(in_air(synthetic(SHELLS, 20), 20), Protocol(SHELLS.b[::-1])).doubts
    assert ["probably in the reverse order" in doubt for doubt in doubts if "order" in doubt] == [True]
    values = np.asarray(synthetic(SHELLS, 20).dataobj, dtype=float)
    bright = np.concatenate([values, values[:4] + 9 * np.asarray(synthetic(SHELLS, 0).dataobj)[:4]])
    info = scan_info(nib.Nifti1Image(bright.astype(np.float32), np.eye(4)), SHELLS)
    assert info.snr == pytest.approx(50, rel=0.15)
    # The fit knows the same noise and SNR.
    fitted = fit_image(nib.Nifti1Image(bright.astype(np.float32), np.eye(4)), SHELLS, "kurtosis").sidecar["Noise"]
    assert info.noise == fitted["Description"]
    assert (fitted["Sigma"], fitted["SNR"]) == (pytest.approx(20, rel=0.03), pytest.approx(info.snr))


def test_an_image_without_a_position_and_estimates_of_the_noise_that_disagree_are_doubted(tmp_path):
    image = synthetic(Protocol([0, 500, 1000]), 5, affine=np.eye(4))
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    info = scan_info(image, None)
    assert (info.position, info.models) == ("none", [])
    assert "left and right" in info.doubts[0]
    pytest.importorskip("dipy")
    values = np.asarray(synthetic(SHELLS, 20, affine=np.eye(4)).dataobj)
    # Structure that all volumes share is no noise to MPPCA, and is to what compares neighbors.
    structure = 1 + 0.4 * np.random.default_rng(1).normal(size=values.shape[:3])
    info = scan_info(nib.Nifti1Image((values * structure[..., None]).astype(np.float32), np.eye(4)), SHELLS)
    assert any("estimates of the noise differ" in doubt for doubt in info.doubts), info.noise
    assert "fit uses that above (repeats compare volumes of one contrast, motion included; local" in info.other_noise
    # Of a denoised image info says what a fit says, and not that it may be one.
    nib.save(nib.Nifti1Image((values * structure[..., None]).astype(np.float32), np.eye(4)), tmp_path / "dwi.nii")
    (tmp_path / "dwi.json").write_text('{"Steps": ["denoise"]}')
    doubts = " ".join(scan_info(tmp_path / "dwi.nii", SHELLS).doubts)
    assert [text in doubts for text in ("the image was denoised: ", "estimates of the noise differ")] == [True, False]


@pytest.mark.parametrize(
    ("b", "largest", "words"),
    [
        ([0, 5000, 10000, 20000, 30000], np.inf, "ten times too large"),
        ([0, 50, 100, 200, 300], np.inf, "faster than that of free water"),
        ([0, 500, 1000, 2000, 3000], 400.0, "are the largest one, 400"),
        ([100, 500, 1000, 2000, 3000], np.inf, "the lowest b-value is 100 s/mm²"),
        ([0, 500, 1000, 2000, 3000], [np.inf, np.inf, 0, np.inf, np.inf], "counted from 1: 3"),
    ],
)
def test_a_fit_and_info_doubt_alike(b, largest, words):
    image = synthetic(Protocol([0, 500, 1000, 2000, 3000]), 5, affine=np.eye(4))
    image = nib.Nifti1Image(np.minimum(np.asarray(image.dataobj), largest), np.eye(4))
    (doubt,) = [text for text in scan_info(image, Protocol(b)).doubts if words in text]
    with pytest.warns(UserWarning, match=words):
        maps = fit_image(image, Protocol(b), "adc")
    (sentence,) = [text for text in maps.sidecar["Warnings"] if words in text]
    # Without perfusion in the model, nothing is said of it.
    assert sentence == doubt.replace(", and f is not the signal fraction of perfusion, most of which has decayed", "")


@pytest.mark.parametrize(("snr", "is_near"), [(4, True), (12, False)])
def test_signals_that_end_in_the_noise_are_told_unless_a_fit_knows_its_floor(snr, is_near):
    protocol = Protocol([0] * 4 + [20, 50, 100, 300, 500, 800, 800])
    shape = (12, 12, 8, len(protocol))
    signals = MODELS["ivim"].signal(np.tile([100.0, 0.1, 20.0, 1.3], (12 * 12 * 8, 1)), protocol).reshape(shape)
    noise = np.random.default_rng(6).normal(0, 100 / snr, (2, *shape))
    image = nib.Nifti1Image(np.hypot(signals + noise[0], noise[1]).astype(np.float32), np.eye(4))
    expected = np.median(image.dataobj[..., -2:]) / (100 / snr)
    told = " ".join(scan_info(image, protocol).doubts)
    assert (f"is {expected:.2g} times the noise" in told) == is_near == (expected < 2)
    floored = fit_image(image, protocol, "ivim", sigma=100 / snr)
    with pytest.warns(UserWarning, match="noise floor makes") if is_near else nullcontext():
        plain = fit_image(image, protocol, "ivim")
    if is_near:
        known, biased = (np.median(maps["Dt"].get_fdata()) for maps in (floored, plain))
        assert abs(known - 1.3) < 0.2 < 1.3 - biased


def test_signals_divided_by_their_own_b0_point_to_the_model_of_such_signals():
    protocol = Protocol([0, 500, 1000] * 2, te=np.repeat([50, 90], 3))
    values = np.asarray(synthetic(protocol, 5).dataobj)
    image = nib.Nifti1Image(values / values[..., [0, 0, 0, 3, 3, 3]], np.eye(4))
    (doubt,) = [text for text in scan_info(image, protocol).doubts if "t2-ivim-relative" in text]
    with pytest.warns(UserWarning, match="t2-ivim-relative"):
        assert doubt in fit_image(image, protocol, "t2-adc").sidecar["Warnings"]
    assert "Warnings" not in fit_image(image, protocol, MODELS["adc"].by_echo_time(protocol)).sidecar


def test_values_clipped_in_one_volume_are_told_and_equal_signals_of_a_simulation_are_not():
    """Half of the signals at b = 0 are cut off, and none at other b-values."""
    protocol = Protocol([0, 500, 1000])
    values = np.array(synthetic(protocol, 5, affine=np.eye(4)).dataobj)
    values[..., 0] *= np.random.default_rng(2).uniform(0.9, 1.1, values.shape[:3])
    image = nib.Nifti1Image(np.minimum(values, np.median(values[..., 0])), np.eye(4))
    with pytest.warns(UserWarning, match="17 % of the values are the largest one"):
        fit_image(image, protocol, "adc")
    assert [text[:18] for text in scan_info(image, protocol).doubts if "clipped" in text] == ["17 % of the values"]
    signals = MODELS["adc"].signal(np.column_stack([np.full(64, 300.0), np.linspace(0.5, 2, 64)]), protocol)
    image = nib.Nifti1Image(signals.reshape(4, 4, 4, 3), np.eye(4))
    assert "Warnings" not in fit_image(image, protocol, "adc").sidecar
    with pytest.warns(UserWarning, match="the largest one, 255"):
        fit_image(nib.Nifti1Image(np.minimum(signals, 255).reshape(4, 4, 4, 3), np.eye(4)), protocol, "adc")


def test_an_empty_volume_is_named_unless_voxels_are_few():
    rows = np.tile([5.0, 0.0], (12, 1))
    assert "counted from 1: 2 (b = 500" in empty_doubt(rows, Protocol([0, 500]), np.arange(2))
    assert empty_doubt(rows[:1], Protocol([0, 500]), np.arange(2)) == ""


def test_relaxation_perfusion_and_air_are_no_wrong_b_values():
    echoes = Protocol([0, 50, 400], te=[50, 50, 120])
    assert decay_doubt(100 * np.exp([-echoes.b_ms_per_um2 - echoes.te / 80]), echoes) == ""
    low = Protocol([0, 10, 20, 30, 50])
    assert decay_doubt(MODELS["ivim"].signal([[100.0, 0.3, 50.0, 1.0]], low), low) == ""
    assert decay_doubt(np.tile([1.3, 1.3, 1.3, 1.3, 1.33], (9, 1)), low) == decay_doubt(np.empty((0, 5)), low) == ""
