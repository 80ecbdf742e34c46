"""Measurements of a scan, read slab by slab."""

import nibabel as nib
import numpy as np
import pytest

from dmrifit.engine.protocol import Protocol
from dmrifit.io import series as module
from dmrifit.io.series import Series

AFFINE = np.diag([-2.0, 2, 5, 1])


@pytest.fixture(scope="module")
def values():
    return np.random.default_rng(0).integers(1, 1000, (4, 3, 6, 5)).astype(np.int16)


@pytest.fixture
def parts(values, tmp_path):
    """A plain file of two volumes, one volume alone, and a compressed file of two."""
    chosen = {"a.nii": values[..., :2], "b.nii": values[..., 2], "c.nii.gz": values[..., 3:]}
    for name, part in chosen.items():
        nib.save(nib.Nifti1Image(part, AFFINE), tmp_path / name)
    return [tmp_path / name for name in chosen]


def test_parts_follow_each_other(parts, values):
    series = Series.open(parts)
    assert (series.grid, series.n_measurements) == ((4, 3, 6), 5)
    assert series.name == f"{parts[0]} and 2 more"
    series.check_count(Protocol(np.arange(5) * 200))
    with pytest.raises(ValueError, match="5 volumes, but the protocol has 4"):
        series.check_count(Protocol(np.arange(4) * 200))
    with series.unpacked() as readable:
        np.testing.assert_array_equal(readable.read(slice(1, 4)), values[:, :, 1:4])
        assert readable.read(slice(None), np.float32).dtype == np.float32
    nib.save(nib.as_closest_canonical(nib.load(parts[1])), parts[1])
    with pytest.raises(ValueError, match=r"b.nii are stored in the order RAS, those of .*a.nii in LAS: convert all"):
        Series.open(parts)


@pytest.mark.parametrize("size", [1, 4 * 3 * 5 * 2, 2**20])
def test_slabs_hold_each_voxel_in_question_once(parts, values, monkeypatch, size):
    monkeypatch.setattr(module, "SLAB_VALUES", size)
    region = np.random.default_rng(1).random((4, 3, 6)) < 0.4
    region[..., 2] = False
    seen = np.zeros((4, 3, 6, 5))
    with Series.open(parts).unpacked() as readable:
        for slab, inside, voxels in readable.slabs(region, progress=False, task="test"):
            assert voxels.size <= max(size, 4 * 3 * 5)
            seen[:, :, slab][inside] += voxels
    np.testing.assert_array_equal(seen, np.where(region[..., None], values, 0))


@pytest.mark.parametrize("size", [1, 4 * 3 * 5 * 4, 2**20])
def test_a_series_is_sliced_like_an_array(parts, values, monkeypatch, size):
    monkeypatch.setattr(module, "SLAB_VALUES", size)
    series = Series.open(parts)
    block = (slice(1, 3), slice(0, 1), slice(2, None), slice(1, 4))
    np.testing.assert_array_equal(series[block], values[block])
    slabs = [slab for _, slab in module.read_slabs(series)]
    np.testing.assert_array_equal(np.concatenate(slabs, axis=2), values)


def test_values_that_spoil_a_whole_image_are_found_slab_by_slab(values, monkeypatch):
    monkeypatch.setattr(module, "SLAB_VALUES", 1)
    monkeypatch.setattr(module, "_SAMPLE", 100)
    broken = values.astype(np.float32)
    Series.open(nib.Nifti1Image(broken, AFFINE)).check_magnitudes()
    broken[1, 1, 4, 2] = 1e12
    with pytest.warns(UserWarning, match=r"contains 1e\+12 \(nearly all values are"):
        Series.open(nib.Nifti1Image(broken, AFFINE)).check_magnitudes()
    broken[1, 1, 4, 2] = -1e30
    with pytest.raises(ValueError, match=r"contains 1e\+30 \(nearly all values are"):
        Series.open(nib.Nifti1Image(broken, AFFINE)).check_magnitudes()


def test_without_a_region_voxels_of_nan_and_zero_are_left_out(values):
    broken = values.astype(np.float32)
    broken[0, 0, 0], broken[1, 1, 1], broken[2, 2, 2] = 0, np.nan, [0, np.nan, 0, np.nan, 0]
    broken[3, 0, 0] = [0, np.nan, 7, 0, 0]
    (found,) = Series.open(nib.Nifti1Image(broken, AFFINE)).slabs(None, progress=False, task="test")
    assert np.argwhere(~found[1]).tolist() == [[0, 0, 0], [1, 1, 1], [2, 2, 2]]


def test_a_map_of_one_volume_in_four_axes_is_a_map(parts, values, tmp_path):
    path = tmp_path / "map.nii"
    nib.save(nib.Nifti1Image(values[..., :1], AFFINE), path)
    np.testing.assert_array_equal(Series.open(parts).read_map(path), values[..., 0])


@pytest.mark.parametrize(("margin", "thickest"), [(1, 2), (2, 1)])
def test_slabs_with_their_neighbors_are_no_larger_than_others(parts, monkeypatch, margin, thickest):
    monkeypatch.setattr(module, "SLAB_VALUES", 4 * (4 * 3 * 5))
    series = Series.open(parts)
    slabs = list(series.slabs_with_margin(None, margin, progress=False, task="read"))
    assert max(slab.stop - slab.start for slab, *_ in slabs) == thickest
    assert [slab.start for slab, *_ in slabs] == list(range(0, 6, thickest))
    for slab, around, _, signals in slabs:
        assert (around.start, around.stop) == (max(0, slab.start - margin), min(6, slab.stop + margin))
        assert signals.shape[2] == around.stop - around.start


@pytest.mark.parametrize(
    ("shape", "refused"), [((4, 3, 6, 1, 1), False), ((4, 3, 6, 2), True), ((4, 3, 6, 1, 2), True)]
)
def test_a_map_has_one_volume(parts, tmp_path, shape, refused):
    series = Series.open(parts)
    nib.save(nib.Nifti1Image(np.ones(shape, np.float32), AFFINE), tmp_path / "map.nii")
    if not refused:
        assert series.read_map(tmp_path / "map.nii").shape == (4, 3, 6)
        return
    with pytest.raises(ValueError, match=rf"map\.nii has {len(shape)} axes .*a volume \(x, y, z\) is needed"):
        series.read_map(tmp_path / "map.nii")
