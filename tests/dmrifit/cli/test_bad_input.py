"""Real files that are wrong: one line that names the file and the remedy, before the work, and nothing written."""

import gzip
import shutil
import sys

import nibabel as nib
import numpy as np
import pytest

from dmrifit.cli import program
from dmrifit.engine.fit_maps import OUTSIDE
from dmrifit.engine.fitting import FitStatus, fit_voxels
from dmrifit.engine.protocol import Protocol
from dmrifit.imaging import fit_predict
from dmrifit.imaging.fit_predict import fit_image

IMAGE, BVAL, TE = "small_64D.nii", "small_64D.bval", "small_64D.te"


def data(image):
    return np.asanyarray(image.dataobj)


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def folder(data_dir, tmp_path, monkeypatch):
    """A copy of real scans, as the working directory."""
    place = tmp_path / "scans"
    place.mkdir()
    for path in (data_dir / "dipy_small_dwi").iterdir():
        shutil.copy(path, place)
    (place / TE).write_text("90\n" * 65)
    loaded = nib.load(place / IMAGE)
    nib.save(nib.Nifti1Image(np.ones(loaded.shape[:3], np.uint8), loaded.affine), place / "mask.nii.gz")
    monkeypatch.chdir(place)
    return place


@pytest.fixture
def refused(folder, monkeypatch, capfd):
    """Run the command line, and expect one line of error before any voxel with a signal is fitted."""

    def no_work(signals, *arguments, **options):
        assert np.isnan(signals).all(), "fitted before the input was checked"
        return fit_voxels(signals, *arguments, **options)

    def check(*arguments, out="maps", command="fit"):
        monkeypatch.setattr(sys, "argv", ["dmrifit", command, *map(str, arguments), "--out", out])
        before = files(folder)
        with monkeypatch.context() as patched:
            patched.setattr(fit_predict, "fit_voxels", no_work)
            with pytest.raises(SystemExit) as stopped:
                program.main()
        captured = capfd.readouterr()
        lines = [line for line in captured.err.splitlines() if not line.startswith("dmrifit: using")]
        assert stopped.value.code == 2, captured
        assert len(lines) == 1, captured.err
        assert lines[0].startswith("dmrifit: error: ")
        assert captured.out == ""
        assert files(folder) == before
        assert not (folder / out).is_dir()
        return lines[0]

    return check


def edit_header(path, field, value):
    """Change a field of the header in the file and nothing else."""
    raw = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(raw[:348]), check=False)
    header[field] = value
    raw[:348] = header.binaryblock
    path.write_bytes(bytes(raw))


# Counts


def test_another_number_of_volumes(refused):
    line = refused("small_25.nii.gz", "--bval", BVAL, "--bvec", "small_64D.bvec", "--model", "adc")
    assert "small_25.nii.gz has 26 volumes" in line
    assert "small_64D has 65 b-values" in line


def test_another_number_of_b_values(refused, folder):
    (folder / BVAL).write_text(" ".join((folder / BVAL).read_text().split()[:64]))
    line = refused(IMAGE, "--model", "adc", "--bvec", "small_64D.bvec")
    assert "small_64D.bvec: 65 × 3 numbers do not make 3 × 64 directions" in line


def test_another_number_of_echo_times(refused, folder):
    (folder / TE).write_text("90 " * 64)
    line = refused(IMAGE, "--te", TE, "--model", "adc")
    assert f"{TE}: 64 echo times for the 65 b-values of {BVAL}" in line


# Units


def test_b_values_in_si_units(refused, folder):
    np.savetxt(folder / BVAL, 1e6 * np.loadtxt(folder / BVAL))
    line = refused(IMAGE, "--model", "adc")
    assert BVAL in line
    assert "the largest b-value is 1.00" in line
    assert "look like s/m² (divide by 1e6)" in line


def test_b_values_in_ms_per_square_micrometer(refused, folder):
    np.savetxt(folder / BVAL, 1e-3 * np.loadtxt(folder / BVAL))
    assert "look like ms/µm² (multiply by 1000)" in refused(IMAGE, "--model", "adc")


@pytest.mark.parametrize("te", ["0.09", TE, "small_64D.json"])
def test_echo_times_in_the_wrong_unit(refused, folder, te):
    (folder / TE).write_text("0.09 " * 65)
    (folder / "small_64D.json").write_text('{"EchoTime": 90}')
    line = refused(IMAGE, "--te", te, "--model", "adc")
    assert te in line
    assert ("look like ms (divide by 1000)" if te.endswith("json") else "look like seconds (multiply by 1000)") in line


# Masks


def test_a_mask_on_another_grid(refused, data_dir, folder):
    line = refused(IMAGE, "--mask", "aniso_vox.nii.gz", "--model", "adc")
    assert "aniso_vox.nii.gz has 58 × 58 × 24 voxels and small_64D.nii has 10 × 10 × 10" in line
    assert "resample_to_img" in line
    # The same number of voxels, elsewhere.
    loaded = nib.load(folder / IMAGE)
    nib.save(nib.Nifti1Image(np.ones((10, 10, 10), np.uint8), np.diag([2.0, 2, 2, 1])), folder / "mask.nii.gz")
    line = refused(IMAGE, "--mask", "mask.nii.gz", "--model", "adc")
    assert "corners lie up to" in line
    assert str(np.round(loaded.affine[0, 3], 4)) in line


def test_an_empty_mask(refused, folder, data_dir):
    loaded = nib.load(folder / IMAGE)
    # A real segmentation that misses this block: the first voxels of a lesion mask.
    lesions = nib.load(data_dir / "ms_lesions_mni" / "patient29_lesions.nii.gz")
    nib.save(nib.Nifti1Image(data(lesions)[:10, :10, :10], loaded.affine), folder / "mask.nii.gz")
    line = refused(IMAGE, "--mask", "mask.nii.gz", "--model", "adc")
    assert "mask.nii.gz: no voxel is inside the mask (its largest value is 0" in line


def test_a_real_mask_whose_ones_are_0_99999997_is_read_as_a_mask(data_dir):
    patient = data_dir / "brats2013_deepmedic" / "brats_2013_pat0005_1"
    mask = patient / "brainmask.nii.gz"
    assert 0.9999 < data(nib.load(mask)).max() < 1
    images = [patient / f"{name}_subtrMeanDivStd.nii.gz" for name in ("T1c", "Flair")]
    # These images are standardized: many of their values lie below 0.
    with pytest.warns(UserWarning, match="407776 of 1523743 voxels could not be fitted: 407776 without a value above 0"):
        status = data(fit_image(images, Protocol([0, 1000]), "adc", mask=mask)["status"])
    assert np.count_nonzero(status != OUTSIDE) == 1523743


# Images


def test_a_real_image_with_three_axes(refused):
    line = refused("aniso_vox.nii.gz", "--bval", BVAL, "--model", "adc")
    assert "aniso_vox.nii.gz is 3-D (58 × 58 × 24); a 4-D image" in line
    assert "manifest" in line


def test_a_real_image_with_five_axes(refused, folder):
    loaded = nib.load(folder / IMAGE)
    nib.save(nib.Nifti1Image(data(loaded)[:, :, :, None], loaded.affine), folder / "five.nii.gz")
    assert "five.nii.gz is 5-D (10 × 10 × 10 × 1 × 65)" in refused("five.nii.gz", "--bval", BVAL, "--model", "adc")


@pytest.mark.parametrize("keep", [100, 1000, 40000, 67000])
def test_a_real_gzip_that_was_cut_off(refused, folder, keep):
    path = folder / "small_101D.nii.gz"
    path.write_bytes(path.read_bytes()[:keep])
    line = refused(path.name, "--model", "kurtosis")
    assert "small_101D.nii.gz" in line
    assert "damaged" in line


@pytest.mark.parametrize("where", [5000, 30000, -6])
def test_a_real_gzip_with_a_wrong_byte(refused, folder, where):
    path = folder / "small_101D.nii.gz"
    raw = bytearray(path.read_bytes())
    raw[where] ^= 0x55
    path.write_bytes(bytes(raw))
    line = refused(path.name, "--model", "kurtosis")
    assert "small_101D.nii.gz" in line
    assert "damaged" in line


def test_a_real_file_that_was_cut_off(refused, folder):
    path = folder / IMAGE
    path.write_bytes(path.read_bytes()[:-1000])
    line = refused(IMAGE, "--model", "adc")
    assert "small_64D.nii is cut off: it should hold 130352 bytes and holds 129352" in line


def test_a_mask_that_was_cut_off(refused, folder):
    path = folder / "mask.nii.gz"
    path.write_bytes(path.read_bytes()[:-12])
    assert "mask.nii.gz" in refused(IMAGE, "--mask", "mask.nii.gz", "--model", "adc")


def test_a_scan_in_the_place_of_a_mask(refused):
    line = refused(IMAGE, "--mask", IMAGE, "--model", "adc")
    assert "small_64D.nii is 4-D (10 × 10 × 10 × 65); a map of one volume (x, y, z) is needed" in line


def test_files_that_are_not_there(refused, folder):
    assert refused("none.nii.gz", "--model", "adc").endswith("none.nii.gz: no such file; check its name and folder")
    assert refused(folder, "--model", "adc").endswith(f"by a glob in quotes ('{folder}/*.nii.gz'), or a table")
    assert refused(IMAGE, "--model", "adc", "--bval", "none.bval").endswith(
        "none.bval: no such file; check its name and folder"
    )
    assert "'90,100' is neither a number of ms nor a file" in refused(IMAGE, "--model", "adc", "--te", "90,100")


def test_a_file_of_another_kind_under_the_name_of_an_image(refused, folder):
    (folder / "text.nii.gz").write_bytes(gzip.compress((folder / BVAL).read_bytes()))
    line = refused("text.nii.gz", "--bval", BVAL, "--model", "adc")
    assert "text.nii.gz cannot be read as an image" in line


def test_an_affine_that_is_not_finite(refused, folder):
    edit_header(folder / IMAGE, "srow_x", [np.nan] * 4)
    edit_header(folder / IMAGE, "sform_code", 1)
    line = refused(IMAGE, "--model", "adc")
    assert "small_64D.nii has an affine that places no voxels" in line
    assert "repair its qform or sform" in line


def test_voxels_of_nan_and_zero_have_no_value_and_change_no_other(folder):
    loaded = nib.load(folder / IMAGE)
    protocol = Protocol.read(folder / BVAL)
    whole = fit_image(folder / IMAGE, protocol, "adc")
    broken = data(loaded).astype(np.float32)
    broken[0, 0, 0], broken[1, 1, 1], broken[2, 2, 2, 1:] = np.nan, 0, np.inf
    broken[3, 3, 3, 5] = np.nan
    nib.save(nib.Nifti1Image(broken, loaded.affine), folder / "broken.nii.gz")
    outside = fit_image(folder / "broken.nii.gz", protocol, "adc")
    assert np.argwhere(data(outside["status"]) == OUTSIDE).tolist() == [[0, 0, 0], [1, 1, 1]]
    maps = fit_image(folder / "broken.nii.gz", protocol, "adc", mask=folder / "mask.nii.gz")
    adc, status = data(maps["ADC"]), data(maps["status"])
    assert np.argwhere(np.isnan(adc)).tolist() == [[0, 0, 0], [1, 1, 1], [2, 2, 2]]
    assert (status[np.isnan(adc)] == FitStatus.NOT_FITTED).all()
    assert np.isfinite(adc[3, 3, 3])
    same = np.ones((10, 10, 10), bool)
    same[tuple(np.arange(4)[None].repeat(3, 0))] = False
    np.testing.assert_array_equal(adc[same], data(whole["ADC"])[same])


# Models


def test_a_model_that_needs_echo_times(refused):
    line = refused("small_101D.nii.gz", "--model", "t2-ivim-kurtosis")
    assert "model t2-ivim-kurtosis needs echo times" in line
    assert "--te" in line


def test_one_echo_time_for_relaxation_is_told_and_fitted(folder, monkeypatch, capfd):
    arguments = ["fit", "small_101D.nii.gz", "--te", "90", "--model", "t2-ivim-kurtosis", "--no-quicklook"]
    fixed = ["--fix", "T2v=200", "--fix", "T2t=80"]
    for options, out in (([], "maps"), (fixed, "more")):
        monkeypatch.setattr(sys, "argv", ["dmrifit", *arguments, *options, "--out", out])
        with pytest.raises(SystemExit) as stopped:
            program.main()
        assert not stopped.value.code
        told = "small_101D.nii.gz: the scan has one echo time (90 ms), which cannot tell T2v, T2t from the amplitude"
        text = capfd.readouterr().err
        assert (f"dmrifit: {told}" in text) == (not options)
        assert (" ".join(fixed) in text) == (not options)


def test_fewer_contrasts_than_parameters(refused):
    line = refused(IMAGE, "--model", "kurtosis")
    assert "model kurtosis has 3 free parameters (S0, D, K)" in line
    assert "small_64D.nii has only 2 different contrasts" in line


# Where the maps go


@pytest.mark.parametrize("command", ["fit", "preprocess"])
def test_a_folder_that_cannot_be_written(refused, folder, command):
    (folder / "maps").write_text("a file in the place of the folder")
    options = ["--model", "adc"] if command == "fit" else ["--steps", "denoise"]
    line = refused(IMAGE, *options, out="maps", command=command)
    assert "cannot write to the folder maps" in line
    line = refused(IMAGE, *options, out="maps/inside", command=command)
    assert "maps/inside cannot be written" in line
    assert "maps is a file; choose" in line
