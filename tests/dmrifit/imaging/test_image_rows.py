"""What an estimator takes from an image: its measurements, their scale, rows slice by slice."""

import nibabel as nib
import numpy as np
import pytest

from dmrifit.cohort.scaling import PatientScale
from dmrifit.engine.protocol import Protocol
from dmrifit.imaging.image_rows import patient_scale, sliced_rows, source_volumes
from dmrifit.io import series as series_module
from dmrifit.io.series import Series

SOURCE = Protocol([0, 200, 500])
GRID = (4, 3, 5)


def series_of(values):
    return Series.open(nib.Nifti1Image(np.asarray(values, float), np.diag([2.0, 2, 4, 1])))


@pytest.fixture
def values():
    return np.random.default_rng(0).uniform(1, 9, (*GRID, 3))


def selection(values, source, protocol=None, *, average=None, b_tolerance=None):
    options = {"average": average, "b_tolerance": b_tolerance}
    return source_volumes(series_of(values), source, protocol, **options)


# Measurements ------------------------------------------------------------------------------------


def test_measurements_are_the_volumes_or_found_among_others_in_any_order(values):
    voxels = values.reshape(-1, 3)
    np.testing.assert_array_equal(selection(values, SOURCE)(voxels), voxels)
    mixed = np.concatenate([values[..., [2, 0]], values + 100, values[..., [1]]], axis=-1)
    protocol = Protocol([500, 0, 1000, 1500, 2000, 200])
    selected = selection(mixed, SOURCE, protocol)(mixed.reshape(-1, 6))
    np.testing.assert_array_equal(selected, values.reshape(-1, 3))


def test_b_values_that_nearly_agree_are_found_on_request(values):
    protocol = Protocol([2, 195, 506])
    with pytest.raises(ValueError, match=r"lacks S_b500, S_b800; it has S_b2, S_b195, S_b506$"):
        selection(values, Protocol([0, 500, 800]), protocol, b_tolerance=4)
    with pytest.warns(UserWarning, match=r"b-values: 2 → 0; 195 → 200; 506 → 500 s/mm²"):
        select = selection(values, SOURCE, protocol, b_tolerance=6)
    np.testing.assert_array_equal(select(values.reshape(-1, 3)), values.reshape(-1, 3))


@pytest.mark.parametrize("average", ["arithmetic", "geometric"])
def test_repeated_measurements_are_averaged_on_request(average):
    voxels = np.array([[8.0, 2, 4, 1], [6.0, 1, 9, 3]])
    volume = voxels.reshape(2, 1, 1, 4)
    protocol = Protocol([0, 500, 500, 200])
    middle = {"arithmetic": [3, 5], "geometric": [8**0.5, 3]}[average]
    expected = np.column_stack([[8, 6], [1, 3], middle])
    averaged = selection(volume, SOURCE, protocol, average=average)(voxels)
    np.testing.assert_allclose(averaged, expected)


def test_echo_times_matter_if_the_estimator_knows_them(values):
    timed = Protocol([0, 200, 500], te=70)
    voxels = values.reshape(-1, 3)
    np.testing.assert_array_equal(selection(values, SOURCE, timed)(voxels), voxels)
    np.testing.assert_array_equal(selection(values, timed, timed)(voxels), voxels)


# Scale -------------------------------------------------------------------------------------------


def scale_of(values, scale, region=None, source=SOURCE):
    return patient_scale(series_of(values), region, lambda voxels: voxels, source, scale, progress=False)


def test_the_scale_is_a_number_or_a_percentile_of_the_lowest_weighting_in_the_region(values):
    region = values[..., 1] > 5
    expected = np.percentile(values[region][:, 0], 80)
    assert scale_of(values, PatientScale(80), region) == pytest.approx(expected)
    expected = np.percentile(values[..., 2], 95)
    assert scale_of(values, PatientScale(), source=Protocol([500, 200, 0])) == pytest.approx(expected)
    values[:2] = 0
    expected = np.percentile(values[2:, ..., 0], 50)
    assert scale_of(values, PatientScale(50)) == pytest.approx(expected)
    everywhere = np.percentile(values[..., 0], 50)
    assert scale_of(values, PatientScale(50), np.ones(GRID, bool)) == pytest.approx(everywhere)
    assert scale_of(values, 50) == 50.0
    assert scale_of(values, None) == 1.0


def test_the_scale_does_not_depend_on_how_the_image_is_cut(values, monkeypatch):
    whole = scale_of(values, PatientScale())
    monkeypatch.setattr(series_module, "SLAB_VALUES", 1)
    assert scale_of(values, PatientScale()) == whole


# Rows --------------------------------------------------------------------------------------------


def rows_of(values, region, patch_shape=None):
    """Gather all slices: the region, the rows of its voxels and the slices in their order."""
    inside, rows, slices = np.zeros(GRID, bool), [], []
    generator = sliced_rows(series_of(values), region, lambda voxels: voxels, patch_shape, progress=False)
    for slab, region_slice, slice_rows in generator:
        assert slab.stop == slab.start + 1
        inside[:, :, slab] = region_slice
        rows.append(slice_rows)
        slices.append(slab.start)
    return inside, np.concatenate(rows), slices


@pytest.mark.parametrize("slab_values", [1, 4 * 3 * 3 * 2, 2**22])
@pytest.mark.parametrize("patch_shape", [None, (1, 1, 1)])
def test_rows_are_the_voxels_of_one_slice_after_the_other(values, patch_shape, slab_values, monkeypatch):
    monkeypatch.setattr(series_module, "SLAB_VALUES", slab_values)
    region = np.random.default_rng(1).random(GRID) < 0.5
    region[:, :, 2] = False
    inside, rows, slices = rows_of(values, region, patch_shape)
    np.testing.assert_array_equal(inside, region)
    assert slices == [0, 1, 3, 4]
    expected = [values[:, :, k][region[:, :, k]] for k in range(5)]
    np.testing.assert_array_equal(rows, np.concatenate(expected))


@pytest.mark.parametrize("patch_shape", [None, (1, 1, 1)])
def test_voxels_without_signal_are_rows_of_nan(values, patch_shape):
    values[0, 0, 0], values[1, 1, 1, 2], values[2, 2, 2, 0] = 0, np.nan, -5
    inside, rows, _ = rows_of(values, np.ones(GRID, bool), patch_shape)
    assert inside.all()
    volume = rows.reshape(5, 4, 3, 3).transpose(1, 2, 0, 3)
    empty = np.argwhere(np.isnan(volume).all(axis=-1)).tolist()
    assert empty == [[0, 0, 0], [1, 1, 1], [2, 2, 2]]
    assert np.isfinite(np.delete(rows, np.flatnonzero(np.isnan(rows).any(axis=1)), axis=0)).all()


@pytest.mark.parametrize("slab_values", [1, 4 * 3 * 3 * 3, 2**22])
def test_rows_of_neighborhoods_reach_into_the_slices_beside(values, slab_values, monkeypatch):
    monkeypatch.setattr(series_module, "SLAB_VALUES", slab_values)
    region = np.ones(GRID, bool)
    region[3] = False
    _, rows, slices = rows_of(values, region, (3, 1, 3))
    assert slices == [0, 1, 2, 3, 4]
    row_number = 0
    for k, i, j in np.ndindex(5, 3, 3):
        patch = rows[row_number].reshape(3, 3, 3)
        row_number += 1
        for (di, dk), neighbor in zip(np.ndindex(3, 3), patch.reshape(9, 3), strict=True):
            x, z = i + di - 1, k + dk - 1
            # Outside image or region the voxel itself stands in.
            outside = not (0 <= x < 3 and 0 <= z < 5)
            expected = values[i, j, k] if outside else values[x, j, z]
            np.testing.assert_array_equal(neighbor, expected)
    assert row_number == len(rows)
