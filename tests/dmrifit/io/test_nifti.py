"""Image files, read and written whole."""

import errno
import gzip
import os
import re
import warnings
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from multiprocessing import get_context
from unittest import mock

import nibabel as nib
import numpy as np
import pytest

from dmrifit.io import nifti
from dmrifit.io.nifti import (
    check_position,
    chosen_form,
    describe_sources,
    file_paths,
    load_image,
    read_grid,
    read_volume,
    use_form,
    values_of,
    write_volume,
)

AFFINE = np.diag([-2.0, 2, 5, 1])


@pytest.fixture
def values():
    return np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)


def test_a_volume_returns_from_its_file(values, tmp_path):
    write_volume(values, AFFINE, tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz"), values)
    shape, affine = read_grid(tmp_path / "a.nii.gz")
    assert shape == (3, 4, 5)
    np.testing.assert_array_equal(affine, AFFINE)
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_what_was_there(values, tmp_path, monkeypatch, error):
    write_volume(values, AFFINE, tmp_path / "a.nii.gz")

    def save(_, path):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(nifti.nib, "save", save)
    with pytest.raises(error):
        write_volume(values + 1, AFFINE, tmp_path / "a.nii.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz"), values)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_a_file_is_not_called_damaged_where_too_many_are_open(tmp_path, monkeypatch, number):
    path = tmp_path / "a.nii.gz"
    nifti.write_volume(np.zeros((2, 2, 2)), np.eye(4), path)

    def full(*_, **__):
        raise OSError(number, os.strerror(number), str(path))

    for name in ("unpack", "nib.load"):
        with monkeypatch.context() as patched:
            patched.setattr(f"dmrifit.io.nifti.{name}", full)
            with pytest.raises(OSError, match="Too many open files") as caught:
                nifti.read_volume(path)
        assert (caught.value.errno, caught.value.filename) == (number, str(path))


def test_files_of_inputs_are_found_and_numbered(values, tmp_path):
    for name in ("a.nii", "b.nii"):
        write_volume(values, AFFINE, tmp_path / name)
    a, b = tmp_path / "a.nii", tmp_path / "b.nii"
    in_memory = nib.Nifti1Image(values, AFFINE)
    assert file_paths([str(a), nib.load(b), in_memory, None, 3.0, [a, b], tmp_path / "none"]) == [a, b, a, b]
    described = describe_sources(Image=[a, b], Mask=b, Sigma=2.0)
    assert list(described) == ["Image 1", "Image 2", "Mask"]
    assert described["Image 2"] == described["Mask"]
    assert described["Mask"]["Name"] == "b.nii"


def test_an_image_that_was_saved_elsewhere_is_read_from_where_it_was_loaded(values, tmp_path):
    nib.save(nib.Nifti1Image(np.rint(100 * values).astype(np.int16), AFFINE), tmp_path / "a.nii.gz")
    loaded = nib.load(tmp_path / "a.nii.gz")
    expected = np.asarray(loaded.dataobj).copy()
    loaded.set_data_dtype(np.float32)
    nib.save(loaded, tmp_path / "backup.nii.gz")
    np.testing.assert_array_equal(nifti.values_of(loaded, "a"), expected)


def test_remarks_on_one_image_are_not_those_on_another_and_handlers_stay(values, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    from nibabel.imageglobals import logger

    write_volume(values, AFFINE, tmp_path / "good.nii.gz")
    raw = bytearray(gzip.decompress((tmp_path / "good.nii.gz").read_bytes()))
    raw[254:256] = np.int16(77).tobytes()  # no code of an sform
    (tmp_path / "wrong.nii").write_bytes(raw)

    def verdict(name):
        try:
            nifti.load_image(tmp_path / name)
        except ValueError:
            return "refused"
        return "read"

    alone = {name: verdict(name) for name in ("good.nii.gz", "wrong.nii")}
    assert alone == {"good.nii.gz": "read", "wrong.nii": "refused"}
    before = list(logger.handlers)
    names = ["good.nii.gz", "wrong.nii", "good.nii.gz"] * 40
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(verdict, names)) == [alone[name] for name in names]
    assert logger.handlers == before


@pytest.mark.parametrize("ending", ["mgz", "gii", "HEAD", "PAR", "nii.zst", "img", "trk"])
def test_files_with_the_ending_of_another_kind_are_refused_by_name(tmp_path, ending):
    nib.save(nib.Nifti1Image(np.ones((2, 2, 2), np.float32), np.eye(4)), tmp_path / "a.nii.gz")
    path = (tmp_path / "a.nii.gz").rename(tmp_path / f"scan.{ending}")
    with pytest.raises(ValueError, match=rf"scan\.{ending} cannot be read as an image, .*convert it to NIfTI"):
        load_image(path)


def placed(folder, affine, *, units=None):
    """Write an image whose header says what nibabel would not write."""
    image = nib.Nifti1Image(np.ones((2, 2, 2), np.float32), np.eye(4))
    image.set_sform(affine, code=1)
    if units is not None:
        image.header.set_xyzt_units(*units)
    nib.save(image, folder / "a.nii")
    return folder / "a.nii"


def leaning(height):
    """Give an affine whose third axis is as long as the others and rises by so many mm over their plane."""
    affine = np.eye(4)
    affine[[0, 2], 2] = np.sqrt(1 - height**2), height
    return affine


@pytest.mark.parametrize(
    ("affine", "refused"),
    [
        *((np.diag([edge, edge, edge, 1]), edge in (1.1e4, 0.9e-4)) for edge in (9e3, 1.1e4, 1.1e-4, 0.9e-4)),
        *((leaning(height), height < 1e-3) for height in (2e-3, 5e-4)),
    ],
)
def test_voxels_have_edges_from_a_tenth_of_a_micrometer_to_ten_meters_and_three_axes(tmp_path, affine, refused):
    path = placed(tmp_path, affine)
    with pytest.raises(ValueError, match=r"a\.nii .*places no voxels") if refused else nullcontext():
        assert load_image(path).shape == (2, 2, 2)


def test_headers_and_files_without_position_are_refused_by_name(values, tmp_path):
    image = nib.Nifti1Image(values, None)
    assert not image.header["sform_code"]
    with pytest.raises(ValueError, match=r"scan has neither an sform nor a qform.*which side"):
        check_position(image, "scan")
    image.set_qform(np.eye(4), 1)
    check_position(image, "scan")
    path = two_positions(tmp_path / "nowhere.nii.gz", 0, codes=(0, 0))
    for read in (load_image, read_grid, read_volume):
        with pytest.raises(ValueError, match=r"nowhere.nii.gz has neither an sform nor a qform"):
            read(path)
    with use_form("sform"), pytest.raises(ValueError, match="neither"):
        load_image(path)


def two_positions(path, shift, *, codes=(1, 1)):
    """Write a file whose qform lies `shift` mm to the right of its sform, or without some of them."""
    image = nib.Nifti1Image(np.arange(24.0).reshape(2, 3, 4), np.eye(4))
    moved = np.eye(4)
    moved[0, 3] = shift
    image.set_sform(np.eye(4), codes[0])
    image.set_qform(moved, codes[1])
    nib.save(image, path)
    return path


def test_files_of_two_positions_need_a_choice_beyond_half_a_millimeter(tmp_path):
    path = two_positions(tmp_path / "two.nii", 7.0)
    with pytest.raises(ValueError, match=r"two.nii: its sform and qform place voxels up to 7 mm apart.*--use qform"):
        load_image(path)
    for form, x in (("sform", 0.0), ("qform", 7.0)):
        with use_form(form), pytest.warns(UserWarning, match=f"the {form} is used"):
            loaded = load_image(path)
        assert loaded.affine[0, 3] == x
        np.testing.assert_array_equal(values_of(loaded, "two"), np.arange(24.0).reshape(2, 3, 4))
        # What is written from this header is read by all programs alike.
        nib.save(loaded, tmp_path / "one.nii")
        assert load_image(tmp_path / "one.nii").affine[0, 3] == x
    assert chosen_form() is None
    with pytest.warns(UserWarning, match="scan: .* up to 7 mm apart; the sform is used"):
        check_position(nib.load(path), "scan")
    for shift in (0.05, 0.4):
        near = two_positions(tmp_path / "near.nii", shift)
        with pytest.warns(UserWarning, match=rf"near.nii: .* up to {shift} mm apart; the sform is used"):
            assert load_image(near).affine[0, 3] == 0
    with use_form("qform"), pytest.warns(UserWarning, match="0.4 mm apart; the qform is used"):
        assert load_image(near).affine[0, 3] == np.float32(0.4)
    assert load_image(two_positions(tmp_path / "rounded.nii", 0.004)).affine[0, 3] == 0
    assert load_image(two_positions(tmp_path / "s.nii", 9, codes=(1, 0))).affine[0, 3] == 0
    assert load_image(two_positions(tmp_path / "q.nii", 9, codes=(0, 1))).affine[0, 3] == 9


def test_a_turn_that_leaves_two_corners_in_place_is_found(tmp_path):
    image = nib.Nifti1Image(np.zeros((3, 3, 3)), np.eye(4))
    swapped = np.eye(4)[[1, 0, 2, 3]] * [[-1], [1], [1], [1]]
    swapped[0, 3] = 2.0
    image.set_sform(np.eye(4), 1)
    image.set_qform(swapped, 1)
    nib.save(image, tmp_path / "turned.nii")
    with pytest.raises(ValueError, match="apart"):
        load_image(tmp_path / "turned.nii")


def test_the_form_to_use_reaches_worker_processes(tmp_path):
    path = two_positions(tmp_path / "two.nii", 7.0)
    with use_form("qform"), ProcessPoolExecutor(1, get_context("spawn")) as workers:
        x = workers.submit(_first_offset, path).result()
    assert x == 7.0
    with pytest.raises(ValueError, match="--use must be sform or qform, not 'best'"), use_form("best"):
        pass


def _first_offset(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_image(path).affine[0, 3]


def spoiled_at(place, value):
    values = np.random.default_rng(0).normal(100, 10, size=(60, 60, 60))
    values[::2] = 0
    values[place] = value
    return values


def few(*sizes):
    """Give an image that is 0 but for a few values, all of them between those that a sample takes."""
    values = np.zeros(60**3)
    values[1 : 2 * len(sizes) : 2] = sizes
    return values.reshape((60, 60, 60), order="F")


PLACES = [(1, 0, 0), (31, 17, 5), (59, 59, 59)]
RAMP = np.linspace(0.5, 1, 60)[:, None, None]


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        *((scale * RAMP, "refused") for scale in (1e-300, 0.9e-18, -1.1e18, 1e300)),
        *((scale * RAMP, "read") for scale in (-1.1e-18, 0.9e18)),
        *((1e-9 * few(1, largest)[1:4:2, :1, :1], "warned") for largest in (1.1e6, -1e17)),
        (few(1, 1e30)[1:4:2, :1, :1], "refused"),
        *((spoiled_at(place, value), "refused") for place in PLACES for value in (-1e30, 1e30)),
        *((spoiled_at(place, value), "warned") for place in PLACES for value in (-1e10, 1e10)),
        *((few(*[1] * 150, largest), verdict) for largest, verdict in ((0.9e6, "read"), (1.1e6, "warned"))),
        (few(1), "read"), (few(1, 0, np.inf, np.nan), "read"), (0 * RAMP, "read"), (RAMP[:0], "read"),
        (np.full((60, 60, 60), np.nan), "read"), (np.geomspace(1e-3, 1e9, 60**3).reshape(60, 60, 60), "read"),
    ],
)
def test_values_without_squares_are_refused_and_those_far_above_all_others_warned_of(values, verdict, tmp_path):
    nib.save(nib.Nifti1Image(values, AFFINE), tmp_path / "a.nii")
    sight = rf"a\.nii contains {re.escape(f'{np.abs(values).max(initial=0):.3g}')} \(nearly all values "
    told = {
        "refused": pytest.raises(ValueError, match=sight + ".*squares of such .* scale the image"),
        "warned": pytest.warns(UserWarning, match=sight + ".*distorts means and filters"),
        "read": nullcontext(),
    }
    with told[verdict]:
        read_volume(tmp_path / "a.nii")


def test_packed_maps_take_no_less_room_than_is_estimated(tmp_path):
    region = np.zeros((30, 30, 30), bool)
    region[5:25, 5:25, 5:25] = True
    rng = np.random.default_rng(0)
    n_bytes = 0
    for name in ("a.nii.gz", "b.nii.gz"):
        write_volume(np.where(region, rng.normal(size=region.shape), 0).astype("f4"), AFFINE, tmp_path / name)
        n_bytes += (tmp_path / name).stat().st_size
    assert nifti.bytes_of_maps(2, region.shape, None) <= nifti.bytes_of_maps(2, region.shape, region)
    assert 0.8 * n_bytes < nifti.bytes_of_maps(2, region.shape, region) < n_bytes


def test_memory_left_is_what_the_system_tells_or_all_of_it(monkeypatch):
    everything = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < nifti.memory_left() <= everything
    monkeypatch.setattr(nifti.Path, "read_text", mock.Mock(side_effect=OSError))
    assert nifti.memory_left() == everything
