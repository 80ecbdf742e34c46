"""Arrays in the place of images: dask, zarr, numpy; each block read once, few at a time."""

import gc
import threading
import weakref

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmrifit.engine.models import MODELS
from dmrifit.engine.protocol import Protocol
from dmrifit.imaging.fit_predict import fit_image, predict_image
from dmrifit.io import series
from dmrifit.io.chunked_arrays import is_array, placed, slices_of
from dmrifit.predict.strategies import SignalToSignal
from dmrifit.simulate.body_phantoms import simulate_cohort

PROTOCOL = Protocol([0, 200, 500, 1000])
ADC = MODELS["adc"]
AFFINE = np.array([[-2.0, 0, 0, 90], [0, 1.9, -0.4, -60], [0, 0.3, 3.0, -30], [0, 0, 0, 1]])
GRID = (5, 4, 12)
SLICE = GRID[0] * GRID[1] * len(PROTOCOL)


@pytest.fixture(scope="module")
def signals():
    rng = np.random.default_rng(1)
    truth = np.stack([rng.uniform(100, 900, GRID), rng.uniform(0.3, 3, GRID)], axis=-1)
    return (ADC.signal(truth.reshape(-1, 2), PROTOCOL).reshape(*GRID, len(PROTOCOL)).astype(np.float32))


def data(image):
    return np.asanyarray(image.dataobj)


def same(maps, others):
    assert maps.keys() == others.keys()
    for name in maps:
        np.testing.assert_array_equal(data(maps[name]), data(others[name]), err_msg=name)
        np.testing.assert_array_equal(maps[name].affine, others[name].affine)
        assert maps[name].header["sform_code"] == others[name].header["sform_code"]


class Blocks:
    """A dask array that counts what is loaded, and what of it is still held."""

    def __init__(self, values, chunks):
        da = pytest.importorskip("dask.array")
        self.values, self.loads, self.held, self.most = values, {}, 0, 0
        self.lock = threading.Lock()
        self.array = da.map_blocks(
            self.load,
            chunks=da.core.normalize_chunks(chunks, values.shape),
            dtype=values.dtype,
            meta=values[:0],
        )

    def load(self, block_info=None):
        where = tuple(slice(*ends) for ends in block_info[None]["array-location"])
        block = self.values[where].copy()
        with self.lock:
            self.loads[str(where)] = self.loads.get(str(where), 0) + 1
            self.held += 1
            self.most = max(self.most, self.held)
        weakref.finalize(block, self.release)
        return block

    def release(self):
        with self.lock:
            self.held -= 1


def test_a_dask_array_has_the_maps_of_the_array_in_memory_bit_for_bit(signals):
    da = pytest.importorskip("dask.array")
    expected = fit_image(nib.Nifti1Image(signals, AFFINE), PROTOCOL, "adc")
    for chunks in ((5, 4, 1, 4), (2, 3, 5, 1), signals.shape):
        array = da.from_array(signals, chunks=chunks)
        same(fit_image(array, PROTOCOL, "adc", affine=AFFINE), expected)
        same(fit_image(nib.Nifti1Image(array, AFFINE), PROTOCOL, "adc"), expected)


def test_blocks_are_loaded_for_the_noise_and_the_fit_and_few_at_a_time(signals, monkeypatch):
    monkeypatch.setattr(series, "SLAB_VALUES", 4 * SLICE)
    blocks = Blocks(signals, (*GRID[:2], 3, len(PROTOCOL)))
    image = placed(blocks.array, AFFINE)
    assert not blocks.loads, "nothing is read before it is needed"
    fit_image(image, PROTOCOL, "adc")
    assert list(blocks.loads.values()) == [2] * 4
    assert blocks.most == 1
    gc.collect()
    assert blocks.held == 0


def test_slabs_outside_a_mask_are_not_loaded(signals, monkeypatch):
    monkeypatch.setattr(series, "SLAB_VALUES", 2 * SLICE)
    blocks = Blocks(signals, (*GRID[:2], 1, len(PROTOCOL)))
    mask = np.zeros(GRID, bool)
    mask[1, 2, 7] = True
    maps = fit_image(blocks.array, PROTOCOL, "adc", affine=AFFINE, mask=mask, sigma=np.full(GRID, 2.0))
    assert list(blocks.loads.values()) == [1, 1]
    region, noise = (nib.Nifti1Image(one, AFFINE) for one in (mask.astype(np.uint8), np.full(GRID, 2.0)))
    same(maps, fit_image(nib.Nifti1Image(signals, AFFINE), PROTOCOL, "adc", mask=region, sigma=noise))


def test_a_zarr_array_is_read_from_disk_and_predicted_as_from_memory(tmp_path):
    zarr = pytest.importorskip("zarr")
    cohort = simulate_cohort("cohort1", 3, shape=(12, 12, 3), random_state=4)
    table = cohort.arrays(mask="body", random_state=0)
    estimator = SignalToSignal("LR", source=table.source, target=table.target).fit(table.X, table.Y)
    scan = cohort.scans[0]
    chosen = scan.signal[..., list(table.source.indices_in(scan.protocol))].astype(np.float32)
    stored = zarr.create_array(tmp_path / "scan.zarr", shape=chosen.shape, chunks=(5, 12, 2, 3), dtype=chosen.dtype)
    stored[:] = chosen
    array = zarr.open_array(tmp_path / "scan.zarr", mode="r")
    expected = predict_image(estimator, nib.Nifti1Image(chosen, scan.affine), signals=True)
    same(predict_image(estimator, array, affine=scan.affine, signals=True), expected)
    da = pytest.importorskip("dask.array")
    same(predict_image(estimator, da.from_zarr(array), affine=scan.affine, signals=True), expected)


@pytest.mark.parametrize("dtype", ["int64", "uint16", "float16", "bool"])
def test_types_that_images_do_not_have_are_read_as_they_are(signals, dtype):
    da = pytest.importorskip("dask.array")
    values = (signals > signals.mean() if dtype == "bool" else signals).astype(dtype)
    found = series.Series.open(placed(da.from_array(values), AFFINE)).read(slice(None))
    np.testing.assert_array_equal(found, values.astype(np.float64))


def _missing(block):
    msg = "no network"
    raise OSError(msg)


@pytest.mark.parametrize(
    ("change", "affine", "message"),
    [
        (None, None, r"5 × 4 × 12 × 4\) does not say where its voxels lie: give affine= .fit_image .* also for a mask"),
        (lambda array: nib.Nifti1Image(np.asarray(array), AFFINE), AFFINE, "the image brings its own affine; leave out"),
        (lambda array: array.astype("complex64"), AFFINE, "complex64; magnitudes"),
        (None, np.eye(3), r"affine= must be a matrix \(4, 4\) that places voxels in mm, not \[\[1.0, 0.0, 0.0\], "),
        (None, np.zeros((4, 4)), "that places voxels in mm"),
        (lambda array: array[..., 0], AFFINE, "3-D"),
        (
            lambda array: array.map_blocks(_missing, dtype=array.dtype),
            AFFINE,
            r"a block of the image cannot be computed .OSError: no network.; mend",
        ),
        (lambda array: array.ravel()[array.ravel() > 0], AFFINE, "compute_chunk_sizes"),
    ],
)
def test_arrays_that_cannot_be_read_are_refused_with_the_remedy(signals, change, affine, message):
    array = pytest.importorskip("dask.array").from_array(signals)
    with pytest.raises(ValueError, match=message):
        fit_image(array if change is None else change(array), PROTOCOL, "adc", affine=affine)


def test_images_numbers_and_paths_are_no_arrays(signals, tmp_path):
    for value in (
        nib.Nifti1Image(signals, AFFINE),
        np.float64(2),
        2.0,
        "scan.nii",
        tmp_path,
        None,
        "estimate",
        np.array(["a.nii", "b.nii"]),
        np.array([None, "b.nii"], dtype=object),
    ):
        assert not is_array(value)
        assert placed(value, AFFINE) is value


class Stored:
    def __init__(self, chunks):
        self.chunks = chunks


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.integers(1, 12))
def test_slabs_cover_all_slices_once_and_cut_no_block_that_fits(sizes, most):
    array = Stored(((4,), (4,), tuple(sizes), (1,)))
    slabs = list(slices_of(sum(sizes), most, [np.zeros(3), array]))
    assert [i for slab in slabs for i in range(slab.start, slab.stop)] == list(range(sum(sizes)))
    assert max(slab.stop - slab.start for slab in slabs) <= most
    ends = np.cumsum(sizes)
    cuts = {slab.stop for slab in slabs} - set(ends.tolist())
    for cut in cuts:
        assert sizes[int(np.searchsorted(ends, cut))] > most


def test_arrays_without_blocks_are_cut_into_equal_slabs():
    assert list(slices_of(7, 3)) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert list(slices_of(7, 3, [Stored((2, 2, 2, 1))])) == [slice(0, 2), slice(2, 4), slice(4, 7)]
    assert list(slices_of(2, 1, [Stored(None)])) == [slice(0, 1), slice(1, 2)]
