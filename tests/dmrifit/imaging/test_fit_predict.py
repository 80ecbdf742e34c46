"""Images in, maps out."""

import errno
import gzip
import io
import itertools
import json
import re
import subprocess
import sys
from contextlib import nullcontext
from hashlib import sha256

import nibabel as nib
import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

from dmrifit.cohort.cohort import Cohort
from dmrifit.cohort.scaling import PatientScale
from dmrifit.engine.fitting import FitStatus, fit_voxels, fit_with
from dmrifit.engine.kernels import compiler
from dmrifit.engine.models import MODELS, Parameter, SignalModel
from dmrifit.engine.protocol import Protocol, average_directions
from dmrifit.imaging import fit_predict
from dmrifit.imaging.fit_predict import fit_image, predict_image
from dmrifit.io import series
from dmrifit.model_files.model_file import load_model, save_model
from dmrifit.predict.base import resolve_patch_shape
from dmrifit.predict.strategies import MapsToMaps, SignalToSignal
from dmrifit.report.verdict import fit_sentences
from dmrifit.simulate.body_phantoms import simulate_cohort

PROTOCOL = Protocol([0, 200, 500, 1000])
ADC = MODELS["adc"]
AFFINE = np.array([[-2.0, 0, 0, 90], [0, 1.9, -0.4, -60], [0, 0.3, 3.0, -30], [0, 0, 0, 1]])
GRID = (4, 3, 5)
MAPS = {"S0", "ADC", "S0_se", "ADC_se", "S0_low", "ADC_low", "S0_high", "ADC_high"}
MAPS |= {"cost", "chi2", "status", "at_bound", "doubt"}


@pytest.fixture(scope="module")
def truth():
    rng = np.random.default_rng(1)
    return np.stack([rng.uniform(100, 900, GRID), rng.uniform(0.3, 3, GRID)], axis=-1)


@pytest.fixture(scope="module")
def signals(truth):
    clean = ADC.signal(truth.reshape(-1, 2), PROTOCOL).reshape(*GRID, len(PROTOCOL))
    return np.abs(clean + np.random.default_rng(2).normal(size=clean.shape)).astype(np.float32)


@pytest.fixture
def image(signals):
    return nib.Nifti1Image(signals, AFFINE)


@pytest.fixture
def scan(signals, tmp_path):
    path = tmp_path / "in" / "sub-01_dwi.nii.gz"
    path.parent.mkdir()
    nib.save(nib.Nifti1Image(signals, AFFINE), path)
    return path


def data(image):
    return np.asanyarray(image.dataobj)


def visible(folder):
    return sorted(path.name for path in folder.glob("[!.]*")) if folder.exists() else []


def same(maps, others):
    assert maps.keys() == others.keys()
    for name in maps:
        np.testing.assert_array_equal(data(maps[name]), data(others[name]), err_msg=name)


# What comes out


def test_maps_are_those_of_the_voxels_in_their_places_and_true_maps_come_back(image, signals, truth):
    maps = fit_image(image, PROTOCOL, "adc")
    result = fit_voxels(signals.reshape(-1, 4), PROTOCOL, "adc")
    assert set(maps) == MAPS - {"chi2"}, "without sigma there is no reduced chi-squared"
    for name, column in {
        "S0": result["S0"],
        "ADC": result["ADC"],
        "ADC_se": result.standard_errors[:, 1],
        "cost": result.cost,
        "status": result.status,
    }.items():
        np.testing.assert_array_equal(data(maps[name]), column.reshape(GRID).astype(data(maps[name]).dtype))
    assert data(maps["ADC"]).dtype == np.float32
    assert data(maps["status"]).dtype == np.uint8
    clean = ADC.signal(truth.reshape(-1, 2), PROTOCOL).reshape(*GRID, len(PROTOCOL))
    maps = fit_image(nib.Nifti1Image(clean, AFFINE), PROTOCOL, ADC)
    np.testing.assert_allclose(data(maps["S0"]), truth[..., 0], rtol=1e-4)
    np.testing.assert_allclose(data(maps["ADC"]), truth[..., 1], rtol=1e-4)


def test_a_prediction_searches_no_foreground(image):
    with pytest.raises(ValueError, match="mask auto: the image has no b-values; name a mask file"):
        predict_image(trained(SignalToSignal), image, mask="auto")


def test_outside_the_mask_is_zero_and_what_cannot_be_fitted_is_nan(signals):
    inside = np.zeros(GRID, np.uint8)
    inside[1:3] = 1
    broken = signals.copy()
    broken[1, 1, 1] = 0
    broken[2, 2, 2, 1] = np.nan  # a quarter of the values
    broken[1, 2, 2, 3] = -1  # data
    mask = nib.Nifti1Image(inside, AFFINE)
    maps = fit_image(nib.Nifti1Image(broken, AFFINE), PROTOCOL, "adc", mask=mask)
    adc, status = data(maps["ADC"]), data(maps["status"])
    assert (adc[inside == 0] == 0).all()
    assert (status[inside == 0] == 255).all()
    unfitted = np.isnan(adc)
    assert np.argwhere(unfitted).tolist() == [[1, 1, 1], [2, 2, 2]]
    assert (status[unfitted] == FitStatus.NOT_FITTED).all()
    whole = fit_image(nib.Nifti1Image(signals, AFFINE), PROTOCOL, "adc")
    fitted = (inside == 1) & ~unfitted
    assert adc[1, 2, 2] != data(whole["ADC"])[1, 2, 2]
    fitted[1, 2, 2] = False
    np.testing.assert_array_equal(adc[fitted], data(whole["ADC"])[fitted])


def test_without_a_mask_zero_nan_and_masked_voxels_are_outside(signals):
    background = signals.copy()
    background[0, 0] = 0
    background[0, 1] = np.nan
    background[0, 2, 0] = [np.nan, 0, 0, np.nan]
    maps = fit_image(nib.Nifti1Image(background, AFFINE), PROTOCOL, "adc")
    outside = data(maps["status"]) == 255
    assert outside.sum() == 2 * GRID[2] + 1
    assert (data(maps["ADC"])[outside] == 0).all()
    assert np.isfinite(data(maps["ADC"])).all()
    hidden = np.zeros(signals.shape, bool)
    hidden[0, 0, 0] = True
    masked = np.ma.MaskedArray(np.where(hidden, 7e3, signals).astype(np.float32), hidden)
    maps = fit_image(masked, PROTOCOL, "adc", affine=AFFINE)
    same(maps, fit_image(np.where(hidden, np.nan, signals), PROTOCOL, "adc", affine=AFFINE))
    assert data(maps["status"])[0, 0, 0] == 255


@pytest.mark.parametrize("codes", [(1, 0), (0, 2), (1, 4), (0, 0)])
def test_grid_codes_zooms_and_units_of_the_header_are_kept(signals, codes):
    given = nib.Nifti1Image(signals, AFFINE)
    # A qform cannot hold shears; here it differs from the sform, and both stay.
    given.header.set_qform(np.diag([2.0, 1.5, 3.0, 1.0]), code=codes[0])
    given.header.set_sform(AFFINE, code=codes[1])
    given.header.set_zooms((2.0, 1.5, 3.0, 7.5))
    given.header.set_xyzt_units("mm", "sec")
    given.header["cal_max"] = 900
    given.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"patient: NN"))
    given = nib.Nifti1Image.from_bytes(given.to_bytes())
    warned = pytest.warns(UserWarning, match="sform and qform") if all(codes) else nullcontext()
    with warned:
        made = fit_image(given, PROTOCOL, "adc")["ADC"]
    made = nib.Nifti1Image.from_bytes(made.to_bytes())
    before, after = given.header, made.header
    np.testing.assert_array_equal(made.affine, given.affine)
    for field in ("qform_code", "sform_code", "quatern_b", "qoffset_x", "srow_x", "srow_z", "xyzt_units"):
        np.testing.assert_array_equal(after[field], before[field])
    assert after.get_zooms() == before.get_zooms()[:3]
    assert after.get_data_dtype() == np.float32
    assert after["cal_max"] == 0
    assert after["descrip"].item() == b"dmrifit adc ADC"
    assert not after.extensions


def test_all_48_orientations_give_the_same_values_at_the_same_places(image):
    mask = nib.Nifti1Image((np.indices(GRID).sum(axis=0) % 3 > 0).astype(np.uint8), AFFINE)
    expected = nib.as_closest_canonical(fit_image(image, PROTOCOL, "adc", mask=mask)["ADC"])
    turned = 0
    for order in itertools.permutations(range(3)):
        for flips in itertools.product((1, -1), repeat=3):
            stored = image.as_reoriented(np.column_stack([order, flips]).astype(float))
            turned += nib.aff2axcodes(stored.affine) != nib.aff2axcodes(image.affine)
            made = fit_image(stored, PROTOCOL, "adc", mask=mask)["ADC"]
            np.testing.assert_array_equal(made.affine, stored.affine)
            canonical = nib.as_closest_canonical(made)
            np.testing.assert_array_equal(data(canonical), data(expected))
            np.testing.assert_allclose(canonical.affine, expected.affine, atol=1e-12)
    assert turned == 47


def test_scaled_integers_are_the_values_they_stand_for_and_nifti_2_stays_nifti_2(signals, tmp_path):
    stored = np.round(signals).astype(np.int16)
    scaled = nib.Nifti1Image(stored * 0.25 + 10, AFFINE)
    packed = nib.Nifti1Image(stored, AFFINE)
    packed.header.set_slope_inter(0.25, 10)
    path = tmp_path / "scaled.nii.gz"
    nib.save(packed, path)
    # nibabel rescales on saving; write the raw numbers with the factors instead.
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[112:120] = np.array([0.25, 10], "<f4").tobytes()
    raw[352:] = stored.tobytes(order="F")
    path.write_bytes(gzip.compress(bytes(raw)))
    assert nib.load(path).dataobj.slope == 0.25
    same(fit_image(path, PROTOCOL, "adc"), fit_image(scaled, PROTOCOL, "adc"))
    nib.save(nib.Nifti2Image(signals, AFFINE), tmp_path / "a.nii.gz")
    fit_image(tmp_path / "a.nii.gz", PROTOCOL, "adc", out=tmp_path)
    assert type(nib.load(tmp_path / "a_model-adc_param-ADC_dwimap.nii.gz")) is nib.Nifti2Image


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.img", "a.nii.bz2"])
def test_all_kinds_of_files_give_the_same_maps(image, tmp_path, name):
    kind = nib.Nifti1Pair if name.endswith("img") else nib.Nifti1Image
    path = tmp_path / name
    nib.save(kind(data(image), AFFINE), path)
    (tmp_path / "a.te").write_text("80")
    with pytest.warns(UserWarning, match=r"a\.te beside the image is not used"):
        maps = fit_image(path, PROTOCOL, "adc")
    same(maps, fit_image(image, PROTOCOL, "adc"))
    assert type(maps["ADC"]) is nib.Nifti1Image


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_slabs_give_the_bits_of_the_whole(image, tmp_path, name, monkeypatch):
    path = tmp_path / name
    nib.save(image, path)
    mask = nib.Nifti1Image((np.arange(60).reshape(GRID) % 3).astype(np.uint8), AFFINE)
    sigma = nib.Nifti1Image(np.linspace(0, 3, 60).reshape(GRID), AFFINE)
    whole = fit_image(path, PROTOCOL, "adc", mask=mask, sigma=sigma)
    read = []
    original = series.Series.read
    monkeypatch.setattr(series, "SLAB_VALUES", 1)
    monkeypatch.setattr(series.Series, "read", lambda self, slab: read.append(slab) or original(self, slab))
    same(fit_image(path, PROTOCOL, "adc", mask=mask, sigma=sigma), whole)
    assert [slab.stop - slab.start for slab in read] == [1] * GRID[2]


def test_threads_give_the_same_bits_and_the_same_fit_the_same_bytes(image, scan, tmp_path):
    same(fit_image(image, PROTOCOL, "adc", n_threads=1), fit_image(image, PROTOCOL, "adc", n_threads=3))
    for folder in ("one", "two"):
        fit_image(scan, PROTOCOL, "adc", out=tmp_path / folder)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_the_noise_is_measured_in_the_same_voxels_however_the_axes_are_stored():
    rng = np.random.default_rng(4)
    grid, protocol = (16, 14, 12), Protocol([0, 10, 30, 60, 100, 200, 400, 800])
    perfusion, tissue = rng.uniform(0.05, 0.3, grid), rng.uniform(0.5, 2, grid)
    truth = np.stack([rng.uniform(500, 1500, grid), perfusion, np.full(grid, 20.0), tissue], axis=-1)
    values = MODELS["ivim"].signal(truth.reshape(-1, 4), protocol).reshape(*grid, 8) + rng.normal(0, 20, (*grid, 8))
    stored = nib.Nifti1Image(values.astype(np.float32), np.diag([2.0, 2, 3, 1]))
    sigma = fit_image(stored, protocol, "ivim").sidecar["Noise"]["Sigma"]
    for axes in ("LAS", "PIR", "SAL"):
        turn = nib.orientations.ornt_transform([[0, 1], [1, 1], [2, 1]], nib.orientations.axcodes2ornt(axes))
        assert fit_image(stored.as_reoriented(turn), protocol, "ivim").sidecar["Noise"]["Sigma"] == sigma


def test_a_noise_map_is_taken_voxel_by_voxel(image, signals):
    levels = np.linspace(0, 30, 60).reshape(GRID)
    maps = fit_image(image, PROTOCOL, "adc", sigma=nib.Nifti1Image(levels, AFFINE))
    result = fit_voxels(signals.reshape(-1, 4), PROTOCOL, "adc", sigma=levels.ravel())
    np.testing.assert_array_equal(data(maps["ADC"]).ravel(), result["ADC"].astype(np.float32))
    same(
        fit_image(image, PROTOCOL, "adc", sigma=5),
        fit_image(image, PROTOCOL, "adc", sigma=nib.Nifti1Image(np.full(GRID, 5, np.uint8), AFFINE)),
    )


def test_bounds_and_fixed_values_reach_the_fit_and_a_fixed_parameter_needs_no_contrast(image):
    maps = fit_image(image, PROTOCOL, "adc", bounds={"ADC": (0.5, 1.0)})
    assert data(maps["ADC"]).min() == 0.5
    assert data(maps["ADC"]).max() == 1.0
    maps = fit_image(image, PROTOCOL, "adc", fixed={"ADC": 0.75})
    assert (data(maps["ADC"]) == 0.75).all()
    assert np.isnan(data(maps["ADC_se"])).all()
    maps = fit_image(image, Protocol([0, 0, 500, 1000]), "ivim", fixed={"Dv": 20})
    assert (data(maps["Dv"]) == 20).all()


def test_fits_in_doubt_are_marked_as_the_engine_marks_them():
    """At two echo times and few b-values, much of this model is undetermined."""
    protocol = Protocol(np.tile([0, 50, 100, 400, 1500], 2), np.repeat([80, 100], 5))
    model = MODELS["t2-ivim-kurtosis"]
    rng = np.random.default_rng(2)
    low, high = [100, 0, 5, 160, 0.5, 0, 50], [900, 0.4, 60, 240, 2.0, 1.5, 120]
    signals = model.signal(rng.uniform(low, high, (60, 7)), protocol) + rng.normal(0, 20, (60, 10))
    signals[7] = -1
    maps = fit_image(nib.Nifti1Image(np.abs(signals).reshape(*GRID, 10), AFFINE), protocol, model)
    result = fit_voxels(np.abs(signals), protocol, model)
    doubt = data(maps["doubt"]).ravel()
    for bit in range(7):
        np.testing.assert_array_equal(doubt & 2**bit > 0, result.doubt[:, bit])
    np.testing.assert_array_equal(doubt & 2**7 > 0, result.starts_disagree & np.isfinite(result["S0"]))
    assert (result.doubt[:, 3] == np.isfinite(result["T2v"])).mean() > 0.9


def test_a_parameter_that_the_signal_does_not_show_has_no_error_in_the_map(truth):
    """Without perfusion the diffusivity of the blood has an infinite error, which a map cannot hold."""
    clean = ADC.signal(truth.reshape(-1, 2), PROTOCOL)
    errors = fit_voxels(clean, PROTOCOL, "ivim", method="nlls").standard_errors
    assert np.isinf(errors[:, 2]).any()
    with pytest.warns(UserWarning, match="does not determine ivim, which needs 5 different contrasts"):
        maps = fit_image(nib.Nifti1Image(clean.reshape(*GRID, 4), AFFINE), PROTOCOL, "ivim", method="nlls")
    expected = np.where(np.isinf(errors), np.nan, errors).astype(np.float32)
    for name, column in zip(MODELS["ivim"].names, expected.T, strict=True):
        np.testing.assert_array_equal(data(maps[f"{name}_se"]).ravel(), column)


def test_a_parameter_cannot_have_the_name_of_another_map(image):
    model = SignalModel.from_expression(
        "S0*exp(-b*cost)", [Parameter("S0", "signal", 0, np.inf), Parameter("cost", "µm²/ms", 0, 5)], name="own"
    )
    with pytest.raises(ValueError, match="model own: a parameter has the name of another map"):
        fit_image(image, PROTOCOL, model)


# What is written


def test_files_hold_the_maps_and_the_sidecar_describes_them(image, scan, tmp_path):
    out = tmp_path / "out"
    mask = tmp_path / "mask.nii"
    nib.save(nib.Nifti1Image(np.ones(GRID, np.uint8), AFFINE), mask)
    bounds = {"ADC": (0.5, 1.0)}
    with pytest.warns(UserWarning, match="and model and bounds"):
        maps = fit_image(scan, PROTOCOL, "adc", mask=mask, sigma=2, bounds=bounds, out=out)
    names = {name: f"sub-01_model-adc_param-{name.replace('_', '')}_dwimap.nii.gz" for name in MAPS}
    assert visible(out) == sorted([*names.values(), "sub-01_model-adc_dwimap.json"])
    assert sorted(path.name for path in out.iterdir()) == visible(out)
    for name, file in names.items():
        np.testing.assert_array_equal(data(nib.load(out / file)), data(maps[name]))
    described = json.loads((out / "sub-01_model-adc_dwimap.json").read_text(encoding="utf-8"))
    adc = data(maps["ADC"])
    entry = described["Parameters"]["ADC"]
    assert entry["Units"] == "µm²/ms"
    assert entry["Bounds"] == [0.5, 1.0]
    assert entry["File"] == names["ADC"]
    assert entry["ShareAtBounds"]["Lower"] == pytest.approx((adc == 0.5).mean())
    assert entry["ShareAtBounds"]["Upper"] == pytest.approx((adc == 1.0).mean())
    assert entry["ShareAtBounds"]["Upper"] > 0.3
    assert described["Parameters"]["S0"]["Bounds"] == [0.0, None]
    assert sum(described["Status"]["Voxels"].values()) == 60
    assert described["Status"]["Voxels"]["at bound"] == (data(maps["status"]) == FitStatus.AT_BOUND).sum()
    assert described["Protocol"] == PROTOCOL.to_dict()
    assert described["Settings"]["Sigma"] == 2.0
    assert described["Sources"]["Image"] == {
        "Name": "sub-01_dwi.nii.gz",
        "SHA256": sha256(scan.read_bytes()).hexdigest(),
    }
    assert described["Sources"]["Mask"]["Name"] == "mask.nii"
    assert "Sigma" not in described["Sources"]
    assert described["ReducedChiSquared"]["File"] == names["chi2"]
    assert fit_image(scan, PROTOCOL, "adc", out=out, overwrite=True).sidecar.get("ReducedChiSquared") is None
    assert visible(out) == sorted([*set(names.values()) - {names["chi2"]}, "sub-01_model-adc_dwimap.json"])
    assert set(described["Versions"]) >= {"dmrifit", "numba", "numpy"}


def test_nothing_is_overwritten_unless_allowed_and_that_is_checked_before_the_fit(scan, tmp_path, monkeypatch):
    fit_image(scan, PROTOCOL, "adc", out=tmp_path / "out")
    (tmp_path / "out" / "sub-01_model-adc_param-ADC_dwimap.nii.gz").write_text("mine")
    with monkeypatch.context() as patched:
        patched.setattr(fit_predict, "fit_with", lambda *_, **__: pytest.fail("fitted"))
        with pytest.raises(FileExistsError, match="overwrite=True"):
            fit_image(scan, PROTOCOL, "adc", out=tmp_path / "out")
    assert (tmp_path / "out" / "sub-01_model-adc_param-ADC_dwimap.nii.gz").read_text() == "mine"
    maps = fit_image(scan, PROTOCOL, "adc", out=tmp_path / "out", overwrite=True)
    written = nib.load(tmp_path / "out" / "sub-01_model-adc_param-ADC_dwimap.nii.gz")
    np.testing.assert_array_equal(data(written), data(maps["ADC"]))


# Bad input: named before the work, nothing written


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """Expect an error before any voxel with a signal is fitted, and an untouched folder."""

    def no_work(signals, *arguments, **options):
        assert np.isnan(signals).all(), "fitted before the input was checked"
        return fit_with(signals, *arguments, **options)

    def check(image, message, *, error=ValueError, protocol=PROTOCOL, model="adc", out=tmp_path / "out", **options):
        with monkeypatch.context() as patched:
            patched.setattr(fit_predict, "fit_with", no_work)
            with pytest.raises(error, match=message):
                fit_image(image, protocol, model, out=out, **options)
        assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []

    return check


def test_noise_levels_that_are_none_are_refused(image, tmp_path, refused):
    refused(image, "sigma must be.*-1", sigma=-1)
    refused(image, "sigma must be", sigma=float("nan"))
    path = tmp_path / "sigma.nii"
    levels = np.ones(GRID)
    levels[0, 0, :2] = -1, np.nan
    nib.save(nib.Nifti1Image(levels, AFFINE), path)
    refused(image, r"sigma\.nii.*2 voxels", sigma=path)
    inside = np.ones(GRID, np.uint8)
    inside[0] = 0
    maps = fit_image(image, PROTOCOL, "adc", sigma=path, mask=nib.Nifti1Image(inside, AFFINE))
    assert np.isfinite(data(maps["ADC"])).all()


def test_residuals_above_the_noise_are_told_with_what_they_mean_and_a_lower_b_that_helps():
    repeats, noise = Protocol(np.repeat([0, 250, 500, 1000, 2000], 4)), 2 * np.random.default_rng(3).normal(size=(6, 6, 6, 20))
    twice = pytest.approx(2, rel=0.1)
    for kurtosis, sigma, ratio, b_max in ((0, 1, twice, None), (0, 2, None, None), (0, None, None, None), (1, None, twice, 1000)):
        signals = MODELS["kurtosis"].signal([[100.0, 1.0, kurtosis]], repeats)[0] + noise
        sidecar = fit_image(nib.Nifti1Image(signals, AFFINE), repeats, "adc", sigma=sigma).sidecar
        assert (sidecar.get("Misfit", {}).get("Ratio"), sidecar["Doubt"].get("BMax")) == (ratio, b_max)
        told = " ".join(fit_sentences(sidecar))
        assert ["are then too good" in told, "rerun with --b-max 1000" in told] == [ratio is not None, b_max is not None]


def test_noise_that_a_fit_cannot_use_is_refused_or_doubted(image, tmp_path, refused):
    path = tmp_path / "sigma.nii"
    nib.save(nib.Nifti1Image(np.ones(GRID)[:3], AFFINE), path)
    for sigma, problem in (
        (path, r"sigma\.nii has 3 × 3 × 5 voxels .* different grids; .*resample_from_to"),
        (0, "sigma must be above 0; .* leave it out"),
        (nib.Nifti1Image(np.zeros(GRID), AFFINE), "sigma must be above 0"),
    ):
        refused(image, problem, sigma=sigma)
    refused(image, r"sigma\.nii has 3 × 3 × 5", sigma=path, likelihood="rician")
    with pytest.warns(UserWarning, match=r"residuals are [0-9.]+ times sigma: check that sigma is in the units"):
        fit_image(image, PROTOCOL, "adc", sigma=0.01)
    # Residuals of many voxels are not so far below the noise by chance.
    with pytest.warns(UserWarning, match=r"residuals are 0.1[0-9]* times sigma: if the image was denoised"):
        fit_image(nib.Nifti1Image(np.tile(data(image), (2, 1, 1, 1)), AFFINE), PROTOCOL, "adc", sigma=20.0)
    # A noise that the fit measured itself, here from b = 0, is not doubted so.
    repeats = nib.Nifti1Image(np.concatenate([data(image)[..., [0, 0, 0]] + [0, 0.1, -0.1], data(image)], -1), AFFINE)
    fit_image(repeats, Protocol([0, 0, 0, 0, 200, 500, 1600]), "kurtosis", bounds={"D": (0.01, 0.3)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": Protocol([0, 500, 1000])}, r"sub-01_dwi\.nii\.gz has 4 volumes.*has 3 b-values"),
        ({"model": "t2-ivim-kurtosis"}, "needs echo times"), ({"model": "dti"}, "no model 'dti'"),
        ({"model": "ivim", "protocol": Protocol([0, 0, 500, 1000])}, "4 free parameters.*3 different contrasts"),
        # Scanners write the b-values of one shell with scatter.
        ({"model": "kurtosis", "protocol": Protocol([0, 995, 1000, 1005])}, "3 free parameters.*2 different"),
        ({"fixed": {"T2": 50}}, "T2"), ({"average": "median"}, "mean must be"),
    ],
)
def test_models_and_options_that_do_not_fit_the_scan_are_refused(scan, refused, options, message):
    refused(scan, message, **options)


def test_a_noise_that_cannot_be_estimated_is_said_and_the_fit_goes_on(tmp_path):
    signals = np.tile(ADC.signal([[300.0, 0.8]], PROTOCOL)[0], (2, 2, 1, 1))
    image = nib.Nifti1Image(signals, AFFINE)
    with pytest.warns(UserWarning, match="too small for patches.*; without it the noise floor"):
        maps = fit_image(image, PROTOCOL, "adc", sigma="estimate", out=tmp_path / "out")
    np.testing.assert_allclose(data(maps["ADC"]), 0.8, rtol=1e-4)
    described = json.loads((tmp_path / "out" / "model-adc_dwimap.json").read_text())
    assert described["Settings"]["Sigma"] is None
    assert "the noise could not be measured" in described["Settings"]["Choice"]
    with pytest.raises(ValueError, match="too small for patches"):
        fit_image(image, PROTOCOL, "adc", sigma="estimate", likelihood="rician")


def test_what_the_noise_chose_is_in_the_sidecar_and_the_same_in_slabs(tmp_path, monkeypatch):
    protocol = Protocol([0, 10, 20, 40, 60, 100, 150, 200, 400, 600, 800, 1000])
    clean = MODELS["ivim"].signal([[300.0, 0.1, 20.0, 1.0]], protocol)
    signals = clean[0] + np.random.default_rng(4832).normal(scale=10.0, size=(12, 12, 6, 12))
    image = nib.Nifti1Image(signals, AFFINE)
    whole = fit_image(image, protocol, "ivim", out=tmp_path / "out")
    sidecar = json.loads((tmp_path / "out" / "model-ivim_dwimap.json").read_text())
    settings, noise = sidecar["Settings"], sidecar["Noise"]
    assert (settings["Method"], settings["Threshold"], noise["Method"]) == ("segmented", 100, "residuals of the fit")
    assert (noise["SNR"], noise["Sigma"], noise.get("Misfit", 0)) == pytest.approx((30, 10, 0), rel=0.06)
    monkeypatch.setattr(series, "SLAB_VALUES", 1)
    same(fit_image(image, protocol, "ivim"), whole)
    given = fit_image(image, protocol, "ivim", method="segmented").sidecar["Settings"]["Choice"]
    assert given == "two steps, Dt from b ≥ 150 s/mm²"


def test_images_without_any_signal_or_of_which_nothing_can_be_fitted_are_refused(signals, refused, tmp_path):
    refused(nib.Nifti1Image(np.zeros_like(signals), AFFINE), "nothing to fit")
    image = nib.Nifti1Image(np.ones_like(signals), AFFINE)
    with pytest.raises(ValueError, match="none of 60 voxels could be fitted"):
        fit_image(image, PROTOCOL, "adc", out=tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


def test_a_shifted_image_is_fitted_and_its_negative_values_are_counted(signals, tmp_path):
    shifted = signals - 0.5 * signals.max()
    negative = shifted < 0
    assert negative.any(axis=-1).mean() > 0.9
    with pytest.warns(UserWarning, match="voxels could not be fitted|of the values are negative") as said:
        maps = fit_image(nib.Nifti1Image(shifted, AFFINE), PROTOCOL, "adc", out=tmp_path / "out")
    lost, many = (str(warning.message) for warning in said)
    assert re.search(r"\d+ of 60 voxels could not be fitted; check the image, or name a mask", lost)
    assert re.search(r"5\d % of the values are negative and fitted as they are; check the number type", many)
    n_positive = int((shifted > 0).any(axis=-1).sum())
    assert 0 < n_positive < 60
    assert np.isfinite(data(maps["ADC"])).sum() == n_positive
    described = json.loads((tmp_path / "out" / "model-adc_dwimap.json").read_text())
    has_signal = (shifted > 0).any(axis=-1)
    assert described["Negative"]["Values"] == negative[has_signal].sum()
    assert described["NotFitted"]["Voxels"] == 60 - n_positive


def test_means_of_directions_leave_out_zeros_outside_a_volume_and_values_without_a_logarithm(signals, tmp_path):
    twice, protocol = np.repeat(signals, 3, axis=-1), Protocol(np.repeat(PROTOCOL.b, 3))
    twice[:, :, 0, 4] = 0.0
    for mean in ("arithmetic", "geometric"):
        maps = fit_image(nib.Nifti1Image(twice, AFFINE), protocol, "adc", average=mean)
        expected = fit_image(nib.Nifti1Image(np.repeat(signals, 3, axis=-1), AFFINE), protocol, "adc", average=mean)
        np.testing.assert_allclose(data(maps["ADC"]), data(expected["ADC"]), rtol=1e-6)
    protocol = Protocol(np.repeat([0.0, 1000.0], [4, 16]))
    values = np.full((4, 2, 1, 20), 1000.0) * np.exp(-protocol.b * 1e-3)
    # Low whole numbers: a zero was rounded, and lies within the field of view.
    values[2:] = np.repeat([60.0, 4.0], [4, 16])
    clean = fit_image(nib.Nifti1Image(values, AFFINE), protocol, "adc", average="geometric")
    values[0, 0, 0, 9] = -1
    values[2, 1, 0, 9:11] = 0
    maps = fit_image(nib.Nifti1Image(values, AFFINE), protocol, "adc", average="geometric", out=tmp_path / "out")
    np.testing.assert_allclose(data(maps["ADC"]), data(clean["ADC"]), rtol=1e-6)
    described = json.loads((tmp_path / "out" / "model-adc_dwimap.json").read_text())
    assert described["LeftOut"]["Reason"] == "3 zero or negative, without a logarithm"
    assert (described["LeftOut"]["Values"], described["LeftOut"]["Voxels"]) == (3, 2)
    assert "Negative" not in described


@pytest.mark.parametrize("average", [None, "arithmetic"])
def test_misfit_and_intervals_are_right_for_averages_of_unequal_numbers_too(average, tmp_path):
    protocol = Protocol(np.repeat([0.0, 200, 400, 600, 800, 1000], [1, 3, 5, 5, 5, 17]))
    signals = np.random.default_rng(5).normal(0, 4, (10, 10, 5, 36)) + 500 * np.exp(-protocol.b * 1.2e-3)
    signals[0] += 4000 * np.exp(-protocol.b * 5e-3)  # a few bright voxels, of which the model is wrong
    maps = fit_image(nib.Nifti1Image(signals, AFFINE), protocol, "adc", sigma=4, average=average, out=tmp_path)
    assert [maps.sidecar["Noise"]["Misfit"], data(maps["chi2"])[1:].mean()] == pytest.approx([1, 1], abs=0.1)
    least = maps.sidecar["ExpectedPrecision"]["CoefficientOfVariation"]["S0"]
    assert least == pytest.approx(data(maps["S0"])[1:].std() / 500, rel=0.2)
    lines = fit_image(nib.Nifti1Image(signals, AFFINE), protocol, "adc", method="ols", average=average)
    for fit, (name, truth) in itertools.product((maps, lines), (("S0", 500), ("ADC", 1.2))):
        low, high = (data(fit[f"{name}_{end}"])[1:] for end in ("low", "high"))
        assert ((low <= truth) & (high >= truth)).mean() == pytest.approx(0.95, abs=0.03)


def test_errors_with_a_prior_and_a_known_noise_are_those_of_averages():
    rng = np.random.default_rng(6)
    protocol, truth = Protocol(np.repeat([0.0, 500, 1000], [2, 10, 20])), rng.lognormal(0, 0.25, (20, 20, 5))
    signals = rng.normal(1000 * np.exp(-protocol.b / 1000 * truth[..., None]), 80)
    maps = fit_image(nib.Nifti1Image(signals, AFFINE), protocol, "adc", method="map", sigma=80, average="arithmetic")
    share = (data(maps["ADC"]) - truth) / data(maps["ADC_se"])
    assert np.sqrt(np.mean(share**2)) == pytest.approx(1, abs=0.1)


def test_a_prior_is_learned_from_geometric_means_of_positive_values():
    protocol = Protocol(np.repeat([0.0, 300.0, 600.0, 1000.0], [1, 4, 4, 4]))
    rng = np.random.default_rng(5)
    truth = np.column_stack([np.full(60, 500.0), rng.uniform(0.6, 1.6, 60)])
    values = ADC.signal(truth, protocol) + rng.normal(0, 5, (60, 13))
    values[::2, 12] = -1.0
    options = {"method": "map", "average": "geometric"}
    maps = fit_image(nib.Nifti1Image(values.reshape(*GRID, 13), AFFINE), protocol, "adc", **options)
    left_out = nib.Nifti1Image(np.where(values <= 0, np.nan, values).reshape(*GRID, 13), AFFINE)
    np.testing.assert_allclose(data(maps["ADC"]), data(fit_image(left_out, protocol, "adc", **options)["ADC"]), rtol=1e-6)


@pytest.fixture
def small_object(monkeypatch):
    """An object in a large empty image, with samples of few voxels."""
    monkeypatch.setattr(fit_predict, "PRIOR_VOXELS", 30)
    monkeypatch.setattr(fit_predict, "GAIN_VOXELS", 30)
    rng = np.random.default_rng(6)
    truth = np.column_stack([np.full(80, 500.0), rng.uniform(0.6, 1.6, 80)])
    values = np.zeros((40, 20, 6, 4), np.float32)
    values[10:14, 5:15, 2:4] = (ADC.signal(truth, PROTOCOL) + rng.normal(0, 5, (80, 4))).reshape(4, 10, 2, 4)
    return values


def test_samples_are_of_voxels_with_a_signal(small_object, monkeypatch):
    region = nib.Nifti1Image((small_object != 0).any(axis=-1).astype(np.uint8), AFFINE)
    image = nib.Nifti1Image(small_object, AFFINE)
    whole = fit_image(image, PROTOCOL, "adc", method="map")
    same(whole, fit_image(image, PROTOCOL, "adc", method="map", mask=region))
    monkeypatch.setattr(series, "SLAB_VALUES", 1)
    same(whole, fit_image(image, PROTOCOL, "adc", method="map"))
    with pytest.warns(UserWarning, match="scaled differently .* at most"):
        fit_image(nib.Nifti1Image(small_object * [1, 1, 4, 4], AFFINE), PROTOCOL, "adc")
    with pytest.raises(ValueError, match="there is nothing to fit"):
        fit_image(nib.Nifti1Image(0 * small_object, AFFINE), PROTOCOL, "adc", method="map")


def test_rician_voxels_without_noise_are_refused_before_the_fit(small_object, monkeypatch):
    image = nib.Nifti1Image(small_object, AFFINE)
    region = (small_object != 0).any(axis=-1)
    mask = nib.Nifti1Image(region.astype(np.uint8), AFFINE)
    noise = np.where(region, 5.0, 0.0)
    options = {"likelihood": "rician", "n_starts": 1}
    fit_image(image, PROTOCOL, "adc", sigma=nib.Nifti1Image(noise, AFFINE), **options)
    noise[13, 14, 3] = 0.0
    has_signal = []

    def fit_and_count(signals, *arguments, **settings):
        has_signal.append(np.isfinite(signals).any())
        return fit_with(signals, *arguments, **settings)

    monkeypatch.setattr(fit_predict, "fit_with", fit_and_count)
    monkeypatch.setattr(series, "SLAB_VALUES", 1)
    for sigma in (0, nib.Nifti1Image(noise, AFFINE)):
        for more in ({}, {"mask": mask}):
            with pytest.raises(ValueError, match=r"sigma.* above 0"):
                fit_image(image, PROTOCOL, "adc", sigma=sigma, **options, **more)
    assert not any(has_signal)


def test_volumes_of_another_gain_are_named_once_and_in_the_sidecar(signals, tmp_path):
    values = signals * [1, 1, 4, 4]
    with pytest.warns(UserWarning, match="volumes b = 0, 200 s/mm² seem to be scaled differently") as said:
        fit_image(nib.Nifti1Image(values, AFFINE), PROTOCOL, "adc", out=tmp_path / "out")
    assert len(said) == 1
    described = json.loads((tmp_path / "out" / "model-adc_dwimap.json").read_text())
    assert described["GainStep"]["High"] == "b = 500, 1000 s/mm²"


def test_parameters_too_large_for_maps_are_told_in_plain_words(signals):
    values = signals.astype(float) * 1e36
    with pytest.warns(UserWarning, match="in 60 voxels a parameter is beyond 3e38, .* scale the image") as said:
        maps = fit_image(nib.Nifti1Image(100 * values, AFFINE), PROTOCOL, "adc")
    assert len(said) == 1
    assert np.isnan(data(maps["S0"])).all()
    assert np.isfinite(data(maps["ADC"])).all()


def test_a_full_disk_is_not_taken_for_a_damaged_file(scan, refused, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    compiler.load(MODELS["adc"])  # numba makes temporary files, too
    disk = type("Full", (io.BytesIO,), {"write": full})
    monkeypatch.setattr("dmrifit.io.series.tempfile.TemporaryFile", disk)
    refused(scan, r"no room to unpack .*sub-01_dwi\.nii\.gz.*TMPDIR", error=OSError)


LARGE = """
import sys
from pathlib import Path
from dmrifit import Protocol, fit_image

maps = fit_image(sys.argv[1], Protocol.preset("cohort1"), "t2-ivim-kurtosis", n_starts=1, out=sys.argv[2])
output = sum(image.dataobj.nbytes for image in maps.values())
status = Path("/proc/self/status").read_text()
peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024
print(output, peak)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of memory is read from /proc")
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_a_large_scan_goes_through_in_slabs(tmp_path, name):
    """A series of 256 × 256 × 64 × 21 values takes less memory than input, output and 300 MB."""
    protocol = Protocol.preset("cohort1")
    shape = (256, 256, 64, len(protocol))
    clean = MODELS["t2-ivim-kurtosis"].signal([[500.0, 0.2, 20.0, 200.0, 1.0, 0.8, 70.0]], protocol)[0]
    rng = np.random.default_rng(5)
    signals = np.empty(shape, np.float32)
    for i, volume in enumerate(np.moveaxis(signals, -1, 0)):
        # Rounded, so that packing takes seconds.
        volume[:] = np.round(np.abs(clean[i] + 5 * rng.standard_normal(shape[:3], np.float32)))
    nib.save(nib.Nifti1Image(signals, np.eye(4)), tmp_path / name)
    command = [sys.executable, "-c", LARGE, tmp_path / name, tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    output, peak = map(int, done.stdout.split())
    assert peak < signals.nbytes + output + 300e6
    # Were the input held, this would be exceeded: the slabs and the program itself take the rest.
    assert peak < output + 450e6
    assert len(visible(tmp_path / "out")) == 4 * 7 + 4 + 1


# Real scans


def read_protocol(folder, name):
    return Protocol.read(folder / f"{name}.bval", bvec=folder / f"{name}.bvec")


@pytest.fixture
def dipy_scans(data_dir):
    return data_dir / "dipy_small_dwi"


def test_real_scans_are_fitted_and_agree_with_a_straight_line_through_logarithms(dipy_scans, tmp_path):
    path = dipy_scans / "small_101D.nii.gz"
    maps = fit_image(path, read_protocol(dipy_scans, "small_101D"), "kurtosis", out=tmp_path)
    loaded = nib.load(path)
    written = nib.load(tmp_path / "small_101D_model-kurtosis_param-D_dwimap.nii.gz")
    np.testing.assert_array_equal(written.affine, loaded.affine)
    assert written.shape == loaded.shape[:3]
    assert nib.aff2axcodes(written.affine) == ("L", "A", "S")
    assert (written.header["qform_code"], written.header["sform_code"]) == (1, 1)
    assert 0.6 < np.median(data(maps["D"])) < 1.0
    assert 0.5 < np.median(data(maps["K"])) < 1.2
    assert np.isin(data(maps["status"]), (FitStatus.CONVERGED, FitStatus.AT_BOUND)).mean() > 0.99
    path, protocol = dipy_scans / "small_64D.nii", read_protocol(dipy_scans, "small_64D")
    # One b = 0, the others near 1000: the line falls from the first logarithm to the mean of the others.
    adc = data(fit_image(path, protocol, "adc", average="geometric")["ADC"])
    signals = data(nib.load(path)).astype(float)
    positive = (signals > 0).all(axis=-1)
    logs = np.log(signals[positive])
    line = 1000 * (logs[:, 0] - logs[:, 1:].mean(axis=1)) / protocol.b[1:].mean()
    np.testing.assert_allclose(adc[positive], np.maximum(line, 0), rtol=1e-4, atol=1e-4)
    assert np.median(adc[positive]) == pytest.approx(0.849, rel=0.02)


def test_directions_of_a_real_scan_are_averaged_on_request(dipy_scans, tmp_path):
    path, protocol = dipy_scans / "small_64D.nii", read_protocol(dipy_scans, "small_64D")
    maps = fit_image(path, protocol, "adc", average="geometric", out=tmp_path)
    measured = np.asarray(nib.load(path).dataobj).reshape(-1, 65)
    # Zeros, rounded from low signals, have no logarithm.
    measured = np.where(measured > 0, measured, np.nan)
    signals, contrasts = average_directions(measured, protocol)
    assert len(contrasts) == 2
    expected = fit_voxels(signals, contrasts, "adc")["ADC"]
    inside = data(maps["status"]).ravel() != 255
    np.testing.assert_array_equal(data(maps["ADC"]).ravel()[inside], expected.astype(np.float32)[inside])
    described = json.loads((tmp_path / "small_64D_model-adc_dwimap.json").read_text(encoding="utf-8"))
    assert described["Settings"]["AverageDirections"] == "geometric"
    assert "986.9 to 1003 → 994.193 s/mm²" in described["MergedB"]["Description"]
    maps = fit_image(path, Protocol(protocol.b + 5), "adc", fixed={"S0": "measured"})
    assert maps.sidecar["MergedB"]["Description"] == "S0=measured merges b-values: 5 → 0 s/mm²"
    assert len(described["FittedProtocol"]["b"]) == 2
    assert len(described["Protocol"]["b"]) == 65


def test_a_real_volume_of_one_weighting_is_refused(dipy_scans):
    with pytest.raises(ValueError, match=r"2 free parameters.*1 different contrast to fit \(b = .*, echo time unknown"):
        fit_image(dipy_scans / "S0_10slices.nii.gz", Protocol([0]), "adc")
    with pytest.raises(ValueError, match=r"aniso_vox\.nii\.gz is 3-D"):
        fit_image(dipy_scans / "aniso_vox.nii.gz", Protocol([0]), "adc")


# Prediction

TARGET = Protocol([0, 200, 500, 1000, 1500, 2000])
SOURCE = TARGET.take(TARGET.clinical(4))


def trained(strategy, scale=1.0):
    rng = np.random.default_rng(3)
    parameters = np.column_stack([rng.uniform(0.5, 1.5, 300), rng.uniform(0.3, 3, 300)])
    signals = ADC.signal(parameters, TARGET) * (1 + 0.02 * rng.normal(size=(300, 6))) * scale
    return strategy("LR", source=SOURCE, target=TARGET, model="adc").fit(signals[:, :4], signals)


def test_predicted_maps_are_those_of_the_estimator_on_the_scaled_voxels(image, signals):
    estimator = trained(SignalToSignal)
    mask = nib.Nifti1Image((np.arange(60).reshape(GRID) > 20).astype(np.uint8), AFFINE)
    made = predict_image(estimator, image, mask=mask, signals=True)
    voxels = signals.reshape(-1, 4)[21:].astype(float)
    unit = PatientScale().of(voxels, SOURCE)
    expected = estimator.predict_maps(voxels / unit)
    assert set(made) == {"S0", "ADC", "signals"}
    inside = data(mask) > 0
    np.testing.assert_array_equal(data(made["ADC"])[inside], expected[:, 1].astype(np.float32))
    np.testing.assert_array_equal(data(made["S0"])[inside], (expected[:, 0] * unit).astype(np.float32))
    np.testing.assert_array_equal(
        data(made["signals"])[inside], (estimator.predict(voxels / unit) * unit).astype(np.float32)
    )
    for result in made.values():
        assert (data(result)[~inside] == 0).all()
        np.testing.assert_array_equal(result.affine, AFFINE)


@pytest.mark.parametrize("gain", [0.01, 30])
def test_the_gain_of_the_scanner_changes_amplitudes_only(image, signals, gain):
    estimator = trained(SignalToSignal)
    louder = nib.Nifti1Image(signals.astype(float) * gain, AFFINE)
    made, reference = predict_image(estimator, louder), predict_image(estimator, image)
    np.testing.assert_allclose(data(made["ADC"]), data(reference["ADC"]), rtol=1e-4)
    np.testing.assert_allclose(data(made["S0"]), data(reference["S0"]) * gain, rtol=1e-4)


@pytest.fixture(scope="module", params=[(3, 3, 1), (3, 1, 5)], ids=str)
def synthetic(request):
    """A synthetic patient, a strategy that looks at neighborhoods of another one, and the rows it was shown."""
    shape = request.param
    one, other = simulate_cohort("cohort1", 2, shape=(16, 16, 6), random_state=0)
    table = Cohort([one]).arrays(mask="body", patch_shape=shape)
    estimator = SignalToSignal("LR", source=table.source, target=table.target, patch_shape=shape)
    return other, estimator.fit(table.X, table.Y), Cohort([other]).arrays(mask="body", patch_shape=shape)


def test_neighborhoods_of_an_image_are_those_of_a_cohort(synthetic):
    scan, estimator, table = synthetic
    image = nib.Nifti1Image(scan.signal[..., :5], scan.affine)
    made = predict_image(estimator, image, mask=nib.Nifti1Image(scan.mask.astype(np.uint8), scan.affine))
    maps = estimator.predict_maps(table.X) * np.where(np.arange(7) == 0, table.scale[:, None], 1)
    for i, name in enumerate(MODELS["t2-ivim-kurtosis"].names):
        np.testing.assert_allclose(data(made[name])[tuple(table.index[:, 1:].T)], maps[:, i], rtol=1e-4)
        assert (data(made[name])[~scan.mask] == 0).all()


@pytest.mark.parametrize("name", ["ETR", "slNN", pytest.param("CNN", marks=pytest.mark.deep)])
def test_any_algorithm_in_slabs_has_the_bits_of_the_whole(name, monkeypatch):
    one, other = simulate_cohort("cohort1", 2, shape=(16, 16, 6), random_state=1)
    estimator = SignalToSignal(name, random_state=0)
    table = Cohort([one]).arrays(mask="body", max_voxels=200, patch_shape=resolve_patch_shape(SignalToSignal(name)))
    estimator.set_params(source=table.source, target=table.target).fit(table.X, table.Y)
    image = nib.Nifti1Image(other.signal[..., :5], other.affine)
    whole = predict_image(estimator, image, signals=True)
    monkeypatch.setattr(series, "SLAB_VALUES", 16 * 16 * 5 * 3)
    same(predict_image(estimator, image, signals=True), whole)


def test_no_signal_is_not_predicted_to_be_tissue(signals):
    broken = signals.copy()
    broken[0, 0, 0] = 0
    broken[1, 1, 1, 2] = np.nan
    broken[2, 2, 2, 0] = -5
    mask = nib.Nifti1Image(np.ones(GRID, np.uint8), AFFINE)
    made = predict_image(trained(SignalToSignal), nib.Nifti1Image(broken, AFFINE), mask=mask)
    assert np.argwhere(np.isnan(data(made["ADC"]))).tolist() == [[0, 0, 0], [1, 1, 1], [2, 2, 2]]


def test_source_images_are_found_among_others(image, signals):
    estimator = trained(SignalToSignal)
    order = [2, 0, 3, 1]
    noise = np.full((*GRID, 1), 7.0)
    mixed = nib.Nifti1Image(np.concatenate([noise, signals[..., order]], axis=-1), AFFINE)
    protocol = Protocol([3000, *SOURCE.b[order]])
    same(predict_image(estimator, mixed, protocol=protocol), predict_image(estimator, image))
    near = Protocol(SOURCE.b + np.array([0.5, 4, -5, 6]))
    with pytest.raises(ValueError, match="lacks S_b200"):
        predict_image(estimator, image, protocol=near)
    with pytest.warns(UserWarning, match=r"204 → 200; "):
        predicted = predict_image(estimator, image, protocol=near, b_tolerance=10)
    same(predicted, predict_image(estimator, image))
    assert predicted.sidecar["Settings"]["BTolerance"] == 10
    with pytest.raises(ValueError, match=r"5 volumes.*needs 4.*S_b200"):
        predict_image(estimator, mixed)


def test_directions_are_averaged_before_a_prediction(image, signals):
    estimator = trained(SignalToSignal)
    twice = nib.Nifti1Image(np.concatenate([signals, 1.1 * signals[..., 1:]], axis=-1), AFFINE)
    protocol = Protocol([*SOURCE.b, *SOURCE.b[1:]])
    with pytest.raises(ValueError, match="more than one measurement"):
        predict_image(estimator, twice, protocol=protocol)
    averaged, contrasts = average_directions(data(twice), protocol)
    assert contrasts == SOURCE
    made = predict_image(estimator, twice, protocol=protocol, average="geometric")
    same(made, predict_image(estimator, nib.Nifti1Image(averaged, AFFINE)))
    # b = 10 counts as 0, as in a table of training scans.
    low = np.concatenate([signals, 0.25 * signals[..., [0, 0]]], axis=-1)
    options = {"protocol": Protocol([*SOURCE.b, 10, 10]), "average": "arithmetic"}
    with pytest.warns(UserWarning, match="b = 0, 10 s/mm² are averaged as one; if they differ on purpose, give b_tol"):
        made = predict_image(estimator, nib.Nifti1Image(low, AFFINE), **options)
    joined = np.concatenate([0.5 * signals[..., :1], signals[..., 1:]], axis=-1)
    same(made, predict_image(estimator, nib.Nifti1Image(joined, AFFINE)))
    same(predict_image(estimator, nib.Nifti1Image(low, AFFINE), b_tolerance=1, **options), predict_image(estimator, image))
    with pytest.raises(ValueError, match="need the protocol"):
        predict_image(estimator, image, average="geometric")


def test_the_scale_is_that_of_the_training_and_the_noise_level_is_scaled_with_the_signals(image, signals, tmp_path):
    estimator = trained(SignalToSignal)
    default = predict_image(estimator, image)
    for rule in (PatientScale(percentile=50), None):
        save_model(estimator, tmp_path / "model", scale=rule)
        made = predict_image(load_model(tmp_path / "model"), image)
        same(made, predict_image(estimator, image, scale=rule))
        assert (data(made["S0"]) != data(default["S0"])).any()
    voxels = signals.reshape(-1, 4).astype(float)
    expected = estimator.predict_maps(voxels / 50.0, sigma=0.2)
    made = predict_image(estimator, image, scale=50, sigma=10.0)
    np.testing.assert_array_equal(data(made["ADC"]).ravel(), expected[:, 1].astype(np.float32))
    levels = nib.Nifti1Image(np.full(GRID, 10.0), AFFINE)
    same(made, predict_image(estimator, image, scale=50, sigma=levels))


def test_predictions_are_written_under_their_own_names(scan, tmp_path):
    out = tmp_path / "out"
    fit_image(scan, PROTOCOL, "adc", out=out)
    made = predict_image(trained(SignalToSignal), scan, signals=True, out=out)
    written = nib.load(out / "sub-01_desc-predicted_dwi.nii.gz")
    np.testing.assert_array_equal(data(written), data(made["signals"]))
    assert written.shape == (*GRID, 6)
    assert Protocol.read(out / "sub-01_desc-predicted_dwi.bval") == TARGET
    described = json.loads((out / "sub-01_model-adc_desc-predicted_dwimap.json").read_text(encoding="utf-8"))
    assert described["Estimator"]["Class"] == "SignalToSignal"
    assert described["Scale"] == pytest.approx(PatientScale().of(data(nib.load(scan)).reshape(-1, 4), SOURCE))
    n_negative = int((data(made["signals"]) < 0).any(axis=-1).sum())
    assert described["Voxels"] == {"InMask": 60, "WithSignal": 60, "NegativeSignal": n_negative}
    with pytest.raises(FileExistsError):
        predict_image(trained(SignalToSignal), scan, out=out)


def test_negative_predictions_are_counted_and_kept(scan, tmp_path):
    rng = np.random.default_rng(0)
    parameters = np.column_stack([rng.uniform(0.5, 1.5, 300), rng.uniform(0.3, 3, 300)])
    taught = ADC.signal(parameters, TARGET)
    taught[:, 5] -= 0.2
    estimator = SignalToSignal("LR", source=SOURCE, target=TARGET, model="adc").fit(taught[:, :4], taught)
    made = predict_image(estimator, scan, signals=True, out=tmp_path)
    described = json.loads((tmp_path / "sub-01_model-adc_desc-predicted_dwimap.json").read_text(encoding="utf-8"))
    negative = (data(made["signals"]) < 0).any(axis=-1)
    assert 0 < negative.sum() == described["Voxels"]["NegativeSignal"]
    assert np.isfinite(data(made["ADC"])).all()


def test_without_a_model_signals_alone_are_predicted(scan, tmp_path):
    estimator = trained(SignalToSignal)
    expected = predict_image(estimator, scan, signals=True)["signals"]
    estimator.model = None
    made = predict_image(estimator, scan, signals=True, out=tmp_path / "out")
    assert set(made) == {"signals"}
    np.testing.assert_array_equal(data(made["signals"]), data(expected))
    assert visible(tmp_path / "out") == [
        f"sub-01_desc-predicted_dwi.{extension}" for extension in ("bval", "json", "nii.gz")
    ]
    with pytest.raises(ValueError, match="signals=True"):
        predict_image(estimator, scan)


def test_what_cannot_be_predicted_is_refused_by_name(image):
    with pytest.raises(NotFittedError):
        predict_image(SignalToSignal(source=SOURCE, target=TARGET), image)
    plain = SignalToSignal().fit(np.eye(4), np.eye(4))
    with pytest.raises(ValueError, match="without protocols"):
        predict_image(plain, image)
    for scale in ("voxel", 0, -1, float("nan")):
        with pytest.raises(ValueError, match="scale must be"):
            predict_image(trained(SignalToSignal), image, scale=scale)


def test_sigma_is_refused_where_maps_are_not_fitted(image):
    clinical = Protocol([0, 50, 100, 400, 900])
    target = Protocol([0, 50, 100, 400, 900, 1200])
    rng = np.random.default_rng(0)
    signals = ADC.signal(np.column_stack([rng.uniform(50, 90, 50), rng.uniform(0.5, 2, 50)]), target)
    estimator = MapsToMaps(source=clinical, target=target, model="adc").fit(signals[:, :5], signals)
    volume = nib.Nifti1Image(signals[:24, :5].reshape(2, 3, 4, 5), AFFINE)
    made = predict_image(estimator, volume, scale=None)
    np.testing.assert_array_equal(
        data(made["ADC"]).ravel(), estimator.predict_maps(signals[:24, :5])[:, 1].astype(np.float32)
    )
    with pytest.raises(ValueError, match=r"MapsToMaps .* no use for sigma"):
        predict_image(estimator, volume, sigma=3)


def test_methods_and_likelihoods_reach_the_voxels_and_the_sidecar(image, signals, tmp_path):
    voxels = signals.reshape(-1, 4)
    maps = fit_image(image, PROTOCOL, "adc", method="ols")
    expected = fit_voxels(voxels, PROTOCOL, "adc", method="ols").parameters[:, 1]
    np.testing.assert_array_equal(data(maps["ADC"]).ravel(), expected.astype(np.float32))
    options = {"sigma": 2.0, "likelihood": "rician"}
    maps = fit_image(image, PROTOCOL, "adc", out=tmp_path / "out", **options)
    expected = fit_voxels(voxels, PROTOCOL, "adc", **options).parameters[:, 1]
    np.testing.assert_array_equal(data(maps["ADC"]).ravel(), expected.astype(np.float32))
    described = json.loads((tmp_path / "out" / "model-adc_dwimap.json").read_text())
    assert described["Settings"]["Method"] == "nlls"
    assert described["Settings"]["Likelihood"] == "rician"
    assert "maximum of the rician likelihood" in described["Description"]


def test_values_without_a_logarithm_are_counted_in_the_sidecar(signals, tmp_path):
    values = signals.copy()
    values[0, 0, 0, 1] = 0
    values[1, 0, :2, 2] = -5
    fit_image(nib.Nifti1Image(values, AFFINE), PROTOCOL, "adc", method="wls", out=tmp_path / "out")
    described = json.loads((tmp_path / "out" / "model-adc_dwimap.json").read_text())
    assert (described["LeftOut"]["Values"], described["LeftOut"]["Voxels"]) == (3, 3)
    assert described["Parameters"]["ADC"]["Bounds"] == [None, None]


def test_a_learned_prior_is_the_same_in_slabs_and_said_in_the_sidecar(image, tmp_path, monkeypatch):
    whole = fit_image(image, PROTOCOL, "adc", method="map", out=tmp_path / "out")
    described = json.loads((tmp_path / "out" / "model-adc_dwimap.json").read_text())
    assert described["Prior"]["Description"].startswith("pulled toward the region's mean")
    assert described["Prior"]["Voxels"] == 60
    monkeypatch.setattr(series, "SLAB_VALUES", 1)
    same(whole, fit_image(image, PROTOCOL, "adc", method="map"))


@pytest.mark.parametrize(
    ("sidecar", "options", "message"),
    [
        ({}, {"average": "arithmetic", "likelihood": "rician"}, "averages do not have the Rician distribution"),
        ({}, {"average": "geometric", "likelihood": "rician-mean"}, "arithmetic averages of directions"),
        ({"Steps": ["denoise"]}, {"likelihood": "rician"}, "it was denoised"),
        ({"CoilCombinationMethod": "Sum of Squares"}, {"likelihood": "rician-mean"}, "coils were combined"),
        ({}, {"likelihood": "rician", "sigma": None}, r"needs sigma.*\(--sigma\)"),
    ],
)
def test_likelihoods_that_magnitudes_do_not_have_are_refused(scan, sidecar, options, message):
    scan.with_name("sub-01_dwi.json").write_text(json.dumps(sidecar))
    with pytest.raises(ValueError, match=message):
        fit_image(scan, PROTOCOL, "adc", **{"sigma": 2.0} | options)
