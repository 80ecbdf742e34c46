"""The level of noise, from scans whose noise is known."""

import nibabel as nib
import numpy as np
import pytest

from dmrifit.engine.protocol import Protocol
from dmrifit.imaging.fit_predict import fit_image
from dmrifit.imaging.noise import NoiseLevel, describe_noise_levels, estimate_sigma
from dmrifit.imaging.scan_pipeline import preprocess_image
from dmrifit.io import series as series_module
from dmrifit.simulate.body_phantoms import simulate_cohort

pytest.importorskip("dipy")
from dipy.denoise.noise_estimate import piesno


@pytest.fixture(scope="module")
def scan():
    return simulate_cohort(Protocol.preset("cohort1"), 1, shape=(40, 40, 6), random_state=3).scans[0]


def test_a_background_of_noise_or_neighbors_give_the_level(scan):
    found = estimate_sigma(scan.signal)
    assert found.method == "piesno"
    assert found.sigma == pytest.approx(scan.sigma, rel=0.05)
    found = estimate_sigma(scan.signal, mask=scan.mask, method="local")
    assert found.method == "local"
    assert found.sigma == pytest.approx(scan.sigma, rel=0.3)


@pytest.mark.parametrize("sigma", [10, 30, 60, 100])
def test_neighbors_give_the_level_at_the_noise_floor_too(sigma):
    rng = np.random.default_rng(7)
    diffusivity = 0.7 + 0.6 * np.indices((20, 20, 12))[0] / 20
    clean = 1000 * np.exp(-np.array([0, 0.5, 1, 2, 3]) * diffusivity[..., None])
    signals = np.hypot(clean + rng.normal(0, sigma, clean.shape), rng.normal(0, sigma, clean.shape))
    # Without a correction it is .66 of a sigma of 100.
    assert 0.8 * sigma < estimate_sigma(signals, method="local").sigma < 1.05 * sigma


@pytest.mark.parametrize(("half", "sigma"), [(10, 20), (7, 20), (7, 100)])
def test_air_and_real_valued_signals_do_not_raise_the_level_of_neighbors(half, sigma):
    rng = np.random.default_rng(8)
    clean = np.zeros((24, 24, 24, 5))
    body = slice(12 - half, 12 + half)
    clean[body, body, body] = 1000 * np.exp(-np.array([0, 0.5, 1, 2, 3]))
    real = clean + rng.normal(0, sigma, clean.shape)
    magnitudes = np.hypot(real, rng.normal(0, sigma, clean.shape))
    for signals in (magnitudes, real):
        assert 0.8 * sigma < estimate_sigma(signals, method="local").sigma < 1.1 * sigma


def test_the_level_of_an_image_in_slabs_is_that_of_dipy_for_the_whole(scan, monkeypatch):
    by_slice = piesno(scan.signal.astype(np.float64), 1)
    monkeypatch.setattr(series_module, "SLAB_VALUES", 300)
    assert estimate_sigma(scan.signal, method="piesno").sigma == pytest.approx(np.median(by_slice), rel=1e-6)


def test_a_background_that_was_masked_is_not_taken_for_noise(scan):
    masked = scan.signal * scan.mask[..., None]
    found = estimate_sigma(masked, mask=scan.mask)
    assert found.method == "mppca"
    assert np.median(found.sigma[scan.mask]) == pytest.approx(scan.sigma, rel=0.2)
    with pytest.raises(ValueError, match="background is masked"):
        estimate_sigma(masked, method="piesno")


def test_piesno_gives_the_known_level_of_its_reference_image(data_dir):
    values = np.asarray(nib.load(data_dir / "dipy_small_dwi" / "test_piesno.nii.gz").dataobj)
    found = estimate_sigma(values[:, :, None], method="piesno", n_coils=8)
    assert found.sigma == pytest.approx(0.010749458, rel=0.02)


@pytest.mark.parametrize(
    ("name", "method", "low", "high"), [("small_64D.nii", "mppca", 15, 25), ("small_101D.nii.gz", "local", 3, 8)]
)
def test_real_blocks_of_tissue_have_no_background(data_dir, name, method, low, high):
    values = nib.load(data_dir / "dipy_small_dwi" / name).get_fdata(dtype=np.float32)
    found = estimate_sigma(values)
    assert found.method == method
    values[5, 5, 5] = np.inf
    assert np.median(estimate_sigma(values).sigma) == pytest.approx(np.median(found.sigma), rel=0.1)
    assert low < np.median(found.sigma) < high


def test_an_image_without_differences_has_no_noise_to_estimate(data_dir):
    values = np.asarray(nib.load(data_dir / "dipy_small_dwi" / "small_64D.nii").dataobj)
    for alike in (values[:1, :1, :1], np.full((6, 6, 6, 200), 7.0)):
        with pytest.raises(ValueError, match="cannot be estimated: neighbors do not differ; give sigma"):
            estimate_sigma(alike, method="local")


def test_estimates_that_disagree_are_reported_where_they_are_used():
    agreeing = [NoiseLevel(10.0, "mppca"), NoiseLevel(12.0, "local")]
    assert describe_noise_levels(agreeing) == ("10 (mppca), 12 (local)", "")
    _, doubt = describe_noise_levels([NoiseLevel(1.9, "mppca"), NoiseLevel(24.9, "local")])
    assert "differ 13.1 times" in doubt
    assert describe_noise_levels([])[1] == ""
    protocol = Protocol(np.repeat([0, 500, 1000], 8))
    rng = np.random.default_rng(0)
    structure = 500 * (1 + 0.4 * rng.normal(size=(12, 12, 8, 1)))
    signals = structure * np.exp(-1e-3 * protocol.b) + rng.normal(0, 5, (12, 12, 8, 24))
    image = nib.Nifti1Image(signals.astype(np.float32), np.eye(4))
    with pytest.warns(UserWarning, match=r"estimates of the noise differ .*; the fit uses [\d.]+ \(\w+\)"):
        fit_image(image, protocol, "adc", sigma="estimate")
    with pytest.warns(UserWarning, match="estimates of the noise differ"):
        preprocess_image(image, protocol, steps=["denoise"])
