"""Scans on grids: read into memory in RAS order, and resampled to other grids."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, from_matvec
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import ArrayLike, NDArray

from dmrifit._utils.checks import check_finite
from dmrifit._utils.counts import counted, size_text
from dmrifit.io.masks import Grid, OtherGridError, binarize, check_same_grid
from dmrifit.io.nifti import Image, image_name, load_image, values_of

_SMALLEST = 8  # voxels along an axis


def three_axes(values: NDArray, name: str | Path) -> NDArray:
    """Drop last axes of length 1 from a volume, and check that three axes remain."""
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim != 3:
        axes = counted(values.ndim, "axis", "axes")
        remedy = ": save one volume alone" if values.ndim > 3 else ""
        raise ValueError(
            f"{name} has {axes} ({size_text(values.shape)}); a volume (x, y, z) is needed{remedy}"
        )
    return values


def cropped(values: NDArray, offset: ArrayLike, size: Sequence[int]) -> NDArray:
    """Take a box of a volume (x, y, z, ...) that begins at an index; 0 outside the volume."""
    first, end = np.array(offset), np.add(offset, size)
    low = np.maximum(first, 0)
    high = np.maximum(np.minimum(end, values.shape[:3]), low)
    box = np.zeros((*size, *values.shape[3:]), values.dtype)
    inside = tuple(slice(a, b) for a, b in zip(low - first, high - first, strict=True))
    box[inside] = values[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    return box


def upright(values: NDArray, affine: NDArray) -> NDArray:
    """Turn a volume (x, y, z, ...) from the order of an image's axes to RAS order."""
    return apply_orientation(values, io_orientation(affine))


def as_stored(values: NDArray, affine: NDArray) -> NDArray:
    """Turn a volume (x, y, z, ...) from RAS order to the order of an image's axes."""
    turn = ornt_transform(io_orientation(np.eye(4)), io_orientation(affine))
    return apply_orientation(values, turn)


def upright_edges(affine: NDArray) -> NDArray[np.float64]:
    """Give the edges of voxels (3,) in mm along axes in RAS order."""
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    return edges[np.argsort(io_orientation(affine)[:, 0])]


def upright_affine(affine: NDArray, shape: Sequence[int]) -> NDArray[np.float64]:
    """Give the affine (4, 4) of an image of a shape (x, y, z) in RAS order."""
    return affine @ inv_ornt_aff(io_orientation(affine), shape)


def turn_to_grid(
    grid: Grid, reference: Grid, *, name: str, reference_name: str
) -> NDArray[np.float64]:
    """
    Give the orientation (3, 2) that leads an image to the order of axes of another one's grid.

    Its voxels must be at the places of that grid; in which order they are stored does not matter.
    `apply_orientation` turns values by it, `as_reoriented` images.
    """
    shape, affine = grid
    # Between the voxels of both, so that no oblique axis is as near to two of the world's axes.
    turn = io_orientation(np.linalg.pinv(reference[1]) @ affine)
    if len(shape) == 3 and np.isfinite(turn).all():
        x, y, z = (int(shape[axis]) for axis in np.argsort(turn[:, 0]))
        turned = (x, y, z), affine @ inv_ornt_aff(turn, shape)
        with suppress(OtherGridError):
            check_same_grid(turned, reference, name=name, reference_name=reference_name)
            return turn
    # With the numbers of the image as it is stored.
    check_same_grid(grid, reference, name=name, reference_name=reference_name)
    return io_orientation(np.eye(4))


class Volume(nib.Nifti1Image):
    """A volume in memory, in mm: bytes are labels or masks, other values of single precision."""

    @classmethod
    def of(cls, values: NDArray, affine: NDArray) -> Volume:
        """Make a volume of values (x, y, z)."""
        if values.dtype == bool:
            values = values.astype(np.uint8)
        elif values.dtype != np.uint8:
            values = values.astype(np.float32)
        volume = cls(values, affine)
        volume.header.set_xyzt_units("mm")
        return volume

    @classmethod
    def upright(cls, values: NDArray, affine: NDArray) -> Volume:
        """Make a volume in RAS order of values (x, y, z) in the order of an image's axes."""
        ordered = nib.as_closest_canonical(nib.Nifti1Image(values, affine))
        return cls.of(np.asarray(ordered.dataobj), np.asarray(ordered.affine))

    @classmethod
    def read(cls, image: Image) -> Volume:
        """Read a scan into memory, in RAS order."""
        loaded, name = load_image(image), image_name(image)
        values = three_axes(values_of(loaded, name), name)
        if min(values.shape) < _SMALLEST:
            raise ValueError(
                f"{name} has {size_text(values.shape)} voxels; at least {_SMALLEST} along each "
                "axis are needed: give the whole scan"
            )
        check_finite(values, name)
        # nibabel makes no image of truth values or of 64-bit integers.
        if values.dtype.kind in "fb" or values.dtype.itemsize > 2:
            values = values.astype(np.float32)
        scan = cls.upright(values, loaded.affine)
        filename = loaded.get_filename()
        if filename and isinstance(image, str | Path):
            scan.file_map["image"].filename = str(filename)
        return scan

    def read_like(self, image: Image, reference_name: str, name: str | None = None) -> Volume:
        """Read a scan that must be on the grid of this one."""
        loaded = self.read(image)
        grid, reference = (loaded.shape, loaded.affine), (self.shape, self.affine)
        name = name or image_name(image)
        turn = turn_to_grid(grid, reference, name=name, reference_name=reference_name)
        return loaded.as_reoriented(turn)

    def read_mask(
        self, image: Image, reference_name: str, name: str | None = None
    ) -> NDArray[np.bool_]:
        """Read a mask (x, y, z) that must be on this grid."""
        loaded = self.read_like(image, reference_name, name)
        return binarize(loaded.values, name=image_name(loaded))

    @property
    def values(self) -> NDArray:
        """Values (x, y, z)."""
        return np.asarray(self.dataobj)

    def resampled(self, spacing: float | None, *, order: int = 1) -> Volume:
        """Resample to cubic voxels over the same field of view."""
        if spacing is None:
            return self
        edges = np.linalg.norm(self.affine[:3, :3], axis=0)
        shape = np.maximum(np.rint(np.array(self.shape) * edges / spacing), 1).astype(int)
        axes = self.affine[:3, :3] * (spacing / edges)
        # The middle of the field of view stays where it is.
        middle = apply_affine(self.affine, (np.array(self.shape) - 1) / 2)
        affine = from_matvec(axes, middle - axes @ ((shape - 1) / 2))
        target = Volume.of(np.zeros(shape, np.uint8), affine)
        return self.onto(target, np.eye(4), order=order)

    def onto(
        self, target: nib.Nifti1Pair, transform: NDArray[np.float64], *, order: int = 1
    ) -> Volume:
        """
        Interpolate on a target's grid, after smoothing where voxels of the target are larger.

        `transform` (4, 4) leads from mm of the target to mm of this volume, outside of which is 0.
        Splines of order 3 blur less than linear interpolation (1); what they leave below the
        lowest value of the volume has this value.
        """
        from scipy.ndimage import gaussian_filter

        matrix = np.linalg.inv(self.affine) @ transform @ target.affine
        values = self.values.astype(np.float32)
        if target.shape == self.shape and np.allclose(matrix, np.eye(4), atol=1e-6):
            return Volume.of(values, target.affine)
        # A larger voxel is a mean of smaller ones. A box of width w has the variance w²/12, so
        # this smoothing turns the width of a voxel of the volume into that of a target's voxel.
        ratio = np.maximum(np.linalg.norm(matrix[:3, :3], axis=1), 1)
        values = gaussian_filter(values, np.sqrt((ratio**2 - 1) / 12), mode="nearest")
        # Half of an outermost voxel lies beyond its center, and has the value of the center.
        moved = at_voxels(values, matrix, target.shape, order=order, mode="nearest")
        if order > 1:
            np.clip(moved, values.min(), None, out=moved)
        inside = np.ones(self.shape, np.uint8)
        covered = at_voxels(inside, matrix, target.shape, order=0, mode="grid-constant")
        return Volume.of(np.where(covered, moved, 0), target.affine)

    def labels_onto(self, target: nib.Nifti1Pair) -> Volume:
        """Resample labels to another grid by the nearest neighbor."""
        values = np.rint(self.values)
        if values.min() < 0 or values.max() > np.iinfo(np.uint8).max:
            raise ValueError(
                "labels must be whole numbers from 0 to 255, "
                f"not from {values.min():g} to {values.max():g}"
            )
        return Volume.of(values.astype(np.uint8), self.affine).nearest_onto(target)

    def nearest_onto(self, target: nib.Nifti1Pair, *, mode: str = "grid-constant") -> Volume:
        """Take the nearest voxel's value on another grid; beyond all voxels 0, or the edge's."""
        matrix = np.linalg.inv(self.affine) @ target.affine
        moved = at_voxels(self.values, matrix, target.shape[:3], order=0, mode=mode)
        return Volume.of(moved, target.affine)


def at_voxels(
    values: NDArray,
    matrix: NDArray[np.float64],
    shape: tuple[int, ...],
    *,
    order: int,
    mode: str = "constant",
) -> NDArray:
    """
    Interpolate values (x, y, z) on another grid of a shape.

    `matrix` (4, 4) leads from voxels of that grid to voxels of `values`.
    """
    from scipy.ndimage import affine_transform

    matrix, offset = matrix[:3, :3], matrix[:3, 3]
    return affine_transform(values, matrix, offset, output_shape=shape, order=order, mode=mode)
