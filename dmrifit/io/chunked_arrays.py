"""Arrays that are read block by block, such as those of dask and zarr, in the place of images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit._utils.affines import checked_affine
from dmrifit._utils.counts import size_text


@runtime_checkable
class Array(Protocol):
    """An array that is sliced like numpy's: one of numpy, dask, zarr, h5py and others."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of values along each axis."""

    @property
    def dtype(self) -> Any:
        """Type of the values."""

    def __getitem__(self, index: Any, /) -> Any:
        """Take a part."""


def read_block(array: Array, index: tuple[slice, ...]) -> NDArray[np.float32]:
    """Read a part of an array in single precision."""
    return np.ascontiguousarray(array[index], dtype=np.float32)


def is_array(value: object) -> bool:
    """Whether a value is an array of numbers, or of records, with at least one axis."""
    if not isinstance(value, Array) or len(value.shape) == 0:
        return False
    # Arrays of objects, texts and times are no numbers.
    return getattr(value.dtype, "kind", "V") not in "OUST"


def placed(image: Any, affine: ArrayLike | None) -> Any:
    """Make an image of an array without reading it; return anything else as it is."""
    if isinstance(image, list | tuple):
        return [placed(item, affine) for item in image]
    if not is_array(image):
        return image
    library = type(image).__module__.partition(".")[0]
    title = f"an array ({library}, {size_text(image.shape)})"
    if affine is None:
        raise ValueError(
            f"{title} does not say where its voxels lie: give affine= (fit_image and "
            "predict_image, also for a mask), or nibabel.Nifti1Image(array, affine) in its place"
        )
    if np.isnan(np.asarray(image.shape, dtype=float)).any():
        raise ValueError(f"{title} does not know its shape; call its compute_chunk_sizes() first")
    dtype = np.dtype(image.dtype)
    if dtype.kind not in "biuf":
        raise ValueError(
            f"{title} holds values of type {dtype}; magnitudes (integers or real numbers) are "
            "needed"
        )
    matrix = checked_affine(affine, "affine=")
    # Not the type of the array, which NIfTI may lack: the values that are read have their own.
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float32)
    header.set_xyzt_units("mm")
    wrapped = nib.Nifti1Image(image, matrix, header)
    # As nibabel does for an array without a header.
    wrapped.set_sform(matrix, update_affine=False)
    wrapped.set_qform(matrix, code="unknown", update_affine=False)
    return wrapped


def slices_of(n_slices: int, most: int, arrays: Sequence[Any] = ()) -> Iterator[slice]:
    """Cut a volume into slabs of at most `most` slices that end where blocks end, if one can."""
    ends: list[int] = []
    for array in arrays:
        # Of the first array that is stored in blocks: all images of a series are cut alike.
        ends = ends or _block_ends(array, n_slices)
    first = 0
    while first < n_slices:
        last = min(first + most, n_slices)
        # Within a block that is thicker than a slab, no end fits.
        for end in ends:
            if first < end <= first + most:
                last = end
        yield slice(first, last)
        first = last


def _block_ends(array: Any, n_slices: int) -> list[int]:
    """List where blocks end on the third axis; empty if the array is not stored in blocks."""
    chunks = getattr(array, "chunks", None)
    if not isinstance(chunks, tuple) or len(chunks) < 3:
        return []
    third = chunks[2]
    if isinstance(third, tuple):  # dask lists the size of each block
        return np.cumsum(third).tolist()
    return [*range(third, n_slices, third), n_slices]  # zarr and h5py have one size for all
