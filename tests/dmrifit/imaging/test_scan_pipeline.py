"""From scanner files to files that can be fitted."""

import gzip
import json
import warnings

import nibabel as nib
import numpy as np
import pytest

from dmrifit.engine.protocol import Protocol
from dmrifit.imaging import corrections, noise, scan_pipeline
from dmrifit.imaging.corrections import denoise, remove_gibbs
from dmrifit.imaging.fit_predict import fit_image
from dmrifit.imaging.scan_pipeline import preprocess_image
from dmrifit.io import series as series_module
from dmrifit.simulate.body_phantoms import simulate_cohort

pytest.importorskip("dipy")


def data(image):
    return np.asanyarray(image.dataobj)


@pytest.fixture
def small_64(data_dir, tmp_path):
    """A real block of brain, with files of b-values and directions beside it."""
    folder = data_dir / "dipy_small_dwi"
    return folder / "small_64D.nii", Protocol.read(folder / "small_64D.bval", 90, folder / "small_64D.bvec")


def test_a_real_scan_is_denoised_unrung_and_fitted_with_its_noise_level(small_64, tmp_path):
    image, protocol = small_64
    # Gibbs removal takes its time for each volume.
    nib.save(nib.load(image).slicer[..., :9], tmp_path / "small_64D.nii")
    image, protocol = tmp_path / "small_64D.nii", protocol.take(range(9))
    out = tmp_path / "out"
    made = preprocess_image(image, protocol, steps=["gibbs", "denoise"], out=out)
    signals = data(nib.load(image)).astype(np.float32)
    denoised = np.empty(signals.shape, np.float32)
    sigma = denoise(signals, denoised)
    remove_gibbs(denoised, 2, lambda: None)
    np.testing.assert_array_equal(data(made.image), denoised)
    np.testing.assert_array_equal(data(made.sigma), sigma)
    assert made.protocol == protocol
    assert made.transforms is None
    np.testing.assert_array_equal(made.image.affine, nib.load(image).affine)
    assert sorted(path.name for path in out.iterdir()) == [
        *(f"small_64D_desc-preproc_dwi.{ending}" for ending in ("bval", "bvec", "json", "nii.gz", "te")),
        "small_64D_param-sigma_desc-preproc_dwimap.nii.gz",
    ]
    base = out / "small_64D_desc-preproc_dwi"
    again = Protocol.read(f"{base}.bval", f"{base}.te", f"{base}.bvec")
    np.testing.assert_allclose(again.b, protocol.b)
    np.testing.assert_allclose(again.directions, protocol.directions, atol=1e-9)
    described = json.loads((out / "small_64D_desc-preproc_dwi.json").read_text(encoding="utf-8"))
    assert described["Steps"] == ["denoise", "gibbs"]
    is_tissue = scan_pipeline.above_air(denoised[..., 0].ravel()).reshape(sigma.shape)
    assert described["Sigma"]["Median"] == pytest.approx(np.median(sigma[is_tissue]))
    assert described["Sources"]["Image"]["Name"] == "small_64D.nii"
    assert "dipy" in described["Versions"]
    noise = out / described["Sigma"]["File"]
    with pytest.warns(UserWarning, match="was denoised: standard errors and intervals are those of sigma.* too wide "):
        maps = fit_image(f"{base}.nii.gz", again, "adc", sigma=noise, average="geometric")
    with pytest.warns(UserWarning, match="too narrow; the noise measured in it is too low"):
        plain = fit_image(f"{base}.nii.gz", again, "adc", average="geometric")
    width, too_narrow = (np.median(data(fit["ADC_high"]) - data(fit["ADC_low"])) for fit in (maps, plain))
    assert width > 2 * too_narrow
    with pytest.warns(UserWarning, match=r"small_64D_desc-preproc_dwi.*preprocessed before \(denoise, gibbs\), so"):
        preprocess_image(f"{base}.nii.gz", again, steps="gibbs")
    # The floor that is allowed for makes the true signals fall faster.
    assert np.median(data(maps["ADC"])) > np.median(data(plain["ADC"]))


@pytest.mark.parametrize("step", ["denoise", "gibbs"])
def test_files_are_the_same_bytes_however_the_image_is_cut(tmp_path, monkeypatch, step):
    scan = simulate_cohort(Protocol.preset("cohort1"), 1, shape=(16, 14, 6), random_state=2).scans[0]
    # The shortest axis first, so that blocks are cut across slices.
    signals = np.moveaxis(scan.signal[2:12, 2:12, :, :6], 2, 0).astype(np.float32)
    signals[2, 5, 6, 1], signals[3, 8, 8] = np.nan, 0
    image, protocol = nib.Nifti1Image(signals, np.diag([2, 2, 2, 1])), scan.protocol.take(range(6))
    # It takes a volume at a time anyway, and time: without it, the noise is all that is estimated.
    monkeypatch.setattr(scan_pipeline, "remove_gibbs", lambda *_, **__: None)
    whole = preprocess_image(image, protocol, steps=[step], out=tmp_path / "whole")
    in_memory = preprocess_image(image, protocol, steps=[step])
    np.testing.assert_array_equal(data(whole.image), data(in_memory.image))
    assert not data(whole.image)[3, 8, 8].any()
    # The header, too, is the one that nibabel writes.
    nib.save(in_memory.image, tmp_path / "nibabel.nii")
    with gzip.open(tmp_path / "whole" / "desc-preproc_dwi.nii.gz") as written:
        assert written.read() == (tmp_path / "nibabel.nii").read_bytes()
    for n_slices in (1, 3):
        n_values = n_slices * signals[:, :, 0].size
        monkeypatch.setattr(series_module, "SLAB_VALUES", n_values)
        monkeypatch.setattr(corrections, "BLOCK_VALUES", 3000)
        monkeypatch.setattr(noise, "_VALUES", n_values)
        preprocess_image(image, protocol, steps=[step], out=tmp_path / f"{n_slices}")
        for path in (tmp_path / "whole").iterdir():
            assert path.read_bytes() == (tmp_path / f"{n_slices}" / path.name).read_bytes()


@pytest.mark.parametrize("kind", ["no position", "two positions"])
def test_image_in_memory_is_returned_whatever_its_header_says(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(scan_pipeline, "remove_gibbs", lambda *_, **__: None)
    rng = np.random.default_rng(0)
    image = nib.Nifti1Image(rng.uniform(90, 110, (6, 6, 4, 3)).astype(np.float32), np.eye(4))
    image.set_sform(np.eye(4), 0 if kind == "no position" else 1)
    image.set_qform(nib.affines.from_matvec(np.eye(3), [3, 0, 0]), 0 if kind == "no position" else 1)
    nib.save(image, tmp_path / "scan.nii")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = preprocess_image(
            nib.load(tmp_path / "scan.nii"), Protocol([0, 500, 900]), steps=["gibbs"], out=tmp_path / "out"
        )
    np.testing.assert_array_equal(data(made.image), data(image))


def test_motion_turns_directions_and_is_told(small_64, tmp_path, monkeypatch):
    image, protocol = small_64
    quarter = np.tile(np.eye(4), (65, 1, 1))
    quarter[1, :3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    references = []

    def no_motion(signals, affine, reference, *_):
        references.append(reference)
        return quarter

    monkeypatch.setattr(scan_pipeline, "correct_motion", no_motion)
    with pytest.warns(UserWarning, match=r"small_64D\.nii: volumes 1 \(counted from 0\).*90 degrees"):
        made = preprocess_image(image, protocol, steps=["motion"], out=tmp_path / "out")
    assert references == [0]
    np.testing.assert_array_equal(made.transforms, quarter)
    np.testing.assert_allclose(made.protocol.directions[2:], protocol.directions[2:], atol=1e-9)
    assert abs(made.protocol.directions[1] @ protocol.directions[1]) < 0.999
    base = tmp_path / "out" / "small_64D_desc-preproc_dwi"
    written = Protocol.read(f"{base}.bval", None, f"{base}.bvec")
    np.testing.assert_allclose(written.directions, made.protocol.directions, atol=1e-9)
    described = json.loads(base.with_suffix(".json").read_text(encoding="utf-8"))
    assert described["Motion"]["Rotations"][:3] == [0, 90, 0]
    assert described["Sigma"]["Method"] == "mppca"


# 10³ voxels are so few that where the search ends, and so the warning, depends on the processor's linear algebra.
@pytest.mark.filterwarnings("ignore:the image. volumes:UserWarning")
def test_a_few_real_volumes_are_brought_together(small_64):
    image, protocol = small_64
    loaded = nib.load(image)
    few = nib.Nifti1Image(data(loaded)[..., :3], loaded.affine)
    made = preprocess_image(few, protocol.take([0, 1, 2]), steps=["motion"])
    shift = np.linalg.norm(made.transforms[:, :3, 3], axis=1)
    assert shift[0] == 0
    assert np.all(shift[1:] > 0)
    turns = made.transforms[:, :3, :3]
    np.testing.assert_allclose(turns @ turns.transpose(0, 2, 1), np.tile(np.eye(3), (3, 1, 1)), atol=1e-9)
    np.testing.assert_array_equal(data(made.image)[..., 0], data(loaded)[..., 0].astype(np.float32))


def test_the_floor_is_estimated_in_the_fit_where_no_map_is(tmp_path):
    scan = simulate_cohort(Protocol.preset("cohort1"), 1, shape=(32, 32, 4), random_state=1).scans[0]
    image = nib.Nifti1Image(scan.signal, scan.affine)
    mask = nib.Nifti1Image(scan.mask.astype(np.uint8), scan.affine)
    fit_image(image, scan.protocol, "t2-ivim-kurtosis", mask=mask, sigma="estimate", out=tmp_path)
    described = json.loads((tmp_path / "model-t2ivimkurtosis_dwimap.json").read_text(encoding="utf-8"))
    assert (described["Settings"]["Sigma"], described["Noise"]["Method"]) == ("estimate", "piesno")
    assert described["Noise"]["Sigma"] == pytest.approx(scan.sigma, rel=0.05)


def test_the_axis_across_slices_is_written_or_that_of_the_longest_edge(small_64):
    values = np.ones((4, 5, 6, 2), np.float32)
    series = scan_pipeline.Series
    assert scan_pipeline._slice_axis(series.open(nib.Nifti1Image(values, np.diag([2, 2, 2, 1])))) == 2
    assert scan_pipeline._slice_axis(series.open(nib.Nifti1Image(values, np.diag([2, 6, 2, 1])))) == 1
    written = nib.Nifti1Image(values, np.diag([2, 6, 2, 1]))
    written.header.set_dim_info(1, 2, 0)
    assert scan_pipeline._slice_axis(series.open(written)) == 0


def test_wrong_input_is_named_before_the_work(small_64, tmp_path, monkeypatch):
    image, protocol = small_64
    monkeypatch.setattr(scan_pipeline, "denoise", lambda *_, **__: pytest.fail("worked before the check"))
    for steps, message in ((["unring"], "not unring"), ([], "not nothing")):
        with pytest.raises(ValueError, match=message):
            preprocess_image(image, protocol, steps=steps)
    with pytest.raises(ValueError, match=r"at least 4 voxels .* 10 × 10 × 3: leave this step out"):
        preprocess_image(nib.load(image).slicer[:, :, :3], protocol)
    with pytest.raises(ValueError, match=r"65 volumes.*64 b-values"):
        preprocess_image(image, protocol.take(range(64)))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write to the folder"):
        preprocess_image(image, protocol, out=tmp_path / "file")
    (tmp_path / "small_64D_desc-preproc_dwi.json").write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        preprocess_image(image, protocol, out=tmp_path)
    other = nib.Nifti1Image(np.ones((10, 10, 9), np.uint8), nib.load(image).affine)
    with pytest.raises(ValueError, match="10 × 10 × 9"):
        preprocess_image(image, protocol, mask=other)
