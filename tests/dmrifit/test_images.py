"""Image files, read and written whole."""

import nibabel as nib
import numpy as np
import pytest

from dmrifit import images
from dmrifit.images import describe_sources, file_paths, read_grid, read_volume, write_volume

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

    monkeypatch.setattr(images.nib, "save", save)
    with pytest.raises(error):
        write_volume(values + 1, AFFINE, tmp_path / "a.nii.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz"), values)


def test_a_damaged_volume_is_named(tmp_path):
    write_volume(np.random.default_rng(1).normal(size=(20, 20, 20)), AFFINE, tmp_path / "a.nii.gz")
    (tmp_path / "a.nii.gz").write_bytes((tmp_path / "a.nii.gz").read_bytes()[:-2000])
    with pytest.raises(ValueError, match=r"a\.nii\.gz.*copy it again"):
        read_volume(tmp_path / "a.nii.gz")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_volume(tmp_path / "b.nii.gz")


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
