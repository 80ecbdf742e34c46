"""Corrections of scanner images, by dipy: noise, Gibbs ringing, motion."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import polar
from scipy.ndimage import find_objects
from threadpoolctl import threadpool_limits

from dmrifit._optional import import_optional
from dmrifit._utils.counts import size_text
from dmrifit.io.chunked_arrays import Array, read_block
from dmrifit.io.series import read_slabs

#: Values of a block, with its margin, that is denoised at once: dipy takes about 1 GB for it.
BLOCK_VALUES = 2**25

_SMALLEST_RADIUS = 2
_SAMPLES_PER_VOLUME = 1.5  # voxels of a patch for each volume that the spectrum of its noise needs
_COVERED = 0.5  # share of the weights of measured values: half a voxel from the edge


def denoise(
    original: Array, out: Any, *, mask: NDArray[np.bool_] | None = None
) -> NDArray[np.float32]:
    """
    Remove noise by Marchenko–Pastur principal component analysis of patches (MPPCA, by dipy).

    The noise falls, but the noise floor stays: the mean of Rician noise is not zero, so magnitudes
    never average to less than √(π/2)·σ of the *original* noise, and denoising of magnitudes cannot
    remove that. The noise level returned is that before denoising, as a fit with a noise floor
    needs it.

    The signals are read block by block; each block with the voxels around it whose patches reach
    into it, so that the bits of the result do not depend on the blocks. `out` takes the result.

    Shapes: `original` and `out` (x, y, z, n_measurements), `mask` (x, y, z); returns sigma
    (x, y, z).

    References
    ----------
    Veraart et al., NeuroImage 142:394–406, 2016; Veraart et al., Magn Reson Med 76:1582–1593,
    2016.
    """
    localpca = import_optional("dipy.denoise.localpca")
    radius = _patch_radius(original.shape)
    region = np.empty(original.shape[:3], dtype=bool)
    for slab, values in read_slabs(original):
        out[:, :, slab] = values
        inside = np.any(values != 0, axis=-1) if mask is None else mask[:, :, slab]
        region[:, :, slab] = inside & np.isfinite(values).all(axis=-1)
    sigma = np.full(region.shape, np.nan, np.float32)
    for block, around in _blocks(region, radius, original.shape[3]):
        values = read_block(original, (*around, slice(None)))
        # One NaN would spread over every patch that holds it.
        usable = np.where(np.isfinite(values).all(axis=-1, keepdims=True), values, 0)
        # Threads of BLAS would change the last digits.
        quiet = warnings.catch_warnings(action="ignore", category=RuntimeWarning)
        with threadpool_limits(1), quiet:
            denoised, level = localpca.mppca(
                usable,
                mask=region[around],
                patch_radius=radius,
                return_sigma=True,
                suppress_warning=True,
            )
        inner = tuple(
            slice(part.start - wide.start, part.stop - wide.start)
            for part, wide in zip(block, around, strict=True)
        )
        denoised, level = denoised[inner], level[inner]
        # At the rim, voxels that no patch reaches have neither signal nor noise level.
        reached = region[block] & np.isfinite(level)
        reached &= np.isfinite(denoised).all(axis=-1)
        signals_of_block = np.where(reached[..., None], denoised, values[inner])
        # One at a time: pages of a file on the disk count as memory while they are written.
        for i in range(original.shape[3]):
            out[(*block, i)] = signals_of_block[..., i]
        sigma[block][reached] = level[reached]
    reached = np.isfinite(sigma)
    if not reached.any():
        raise ValueError(
            f"no voxel of the image of {size_text(original.shape)} could be denoised; check image "
            "and mask"
        )
    sigma[~reached] = np.median(sigma[reached])
    return sigma


def remove_gibbs(signals: Any, slice_axis: int, progress: Callable[[], object]) -> None:
    """
    Remove Gibbs ringing from the slices of each volume by local shifts below a voxel (by dipy).

    It is right for images of full Fourier coverage that were not interpolated; partial Fourier
    leaves ringing of another kind, which it only reduces.

    The signals are changed in place, one volume at a time.

    Shapes: `signals` (x, y, z, n_measurements).

    References
    ----------
    Kellner et al., Magn Reson Med 76:1574–1581, 2016.
    """
    gibbs = import_optional("dipy.denoise.gibbs")
    if slice_axis not in (0, 1, 2):
        raise ValueError(f"slice_axis must be 0, 1 or 2, not {slice_axis!r}")
    for i in range(signals.shape[3]):
        volume = _volume(signals, i)
        finite = np.isfinite(volume)
        clean = gibbs.gibbs_removal(
            np.where(finite, volume, 0).astype(np.float64), slice_axis=slice_axis, inplace=False
        )
        signals[..., i] = np.where(finite, np.maximum(clean, 0), volume)
        progress()


def correct_motion(
    signals: Any,
    affine: NDArray[np.float64],
    reference: int,
    mask: NDArray[np.bool_] | None,
    progress: Callable[[], object],
) -> NDArray[np.float64]:
    """
    Align every volume to a reference by a rigid transformation (mutual information, by dipy).

    The signals are changed in place, one volume at a time.

    Shapes: `signals` (x, y, z, n_measurements), `affine` (4, 4), `mask` (x, y, z); returns
    transforms (n_measurements, 4, 4) from mm of the reference to mm of each volume.

    Notes
    -----
    Processors round differently, and the search follows: transforms of a head of 49 ×
    58 × 47 voxels agreed within 1e-8 between two kinds of linear algebra, those of 10 × 10 × 10
    voxels differed by millimeters.

    References
    ----------
    Mattes et al., IEEE Trans Med Imaging 22:120–128, 2003.
    """
    align = import_optional("dipy.align")
    imaffine = import_optional("dipy.align.imaffine")
    static_mask = None if mask is None else mask.astype(np.int32)
    n = signals.shape[3]
    fixed = np.nan_to_num(_volume(signals, reference).astype(np.float64), posinf=0, neginf=0)
    transforms = np.tile(np.eye(4), (n, 1, 1))
    for i in range(n):
        if i != reference:
            volume = _volume(signals, i)
            finite = np.isfinite(volume)
            volume = np.where(finite, volume, 0).astype(np.float64)
            with threadpool_limits(1), quiet_dipy():
                resampled, transforms[i] = align.affine_registration(
                    volume,
                    fixed,
                    moving_affine=affine,
                    static_affine=affine,
                    pipeline=["translation", "rigid"],
                    static_mask=static_mask,
                    level_iters=[1000, 500, 100],
                    optimizer_options={"gtol": 1e-4},
                )
            # Registration fills with 0 what comes from outside, which a fit would take for signal;
            # up to half a voxel from the edge the measured values stand for it.
            inverse = imaffine.AffineMap(
                transforms[i],
                domain_grid_shape=fixed.shape,
                domain_grid2world=affine,
                codomain_grid_shape=volume.shape,
                codomain_grid2world=affine,
            )
            covered = inverse.transform(finite.astype(np.float64))
            covered[covered < _COVERED] = np.nan
            signals[..., i] = resampled / covered
        progress()
    return transforms


def rotate_directions(
    directions: ArrayLike, transforms: ArrayLike, affine: ArrayLike
) -> NDArray[np.float64]:
    """
    Rotate gradient directions with the volumes that motion correction has turned.

    Shapes: `directions` (n_measurements, 3), `transforms` (n_measurements, 4, 4); returns
    (n_measurements, 3).

    References
    ----------
    Leemans and Jones, Magn Reson Med 61:1336–1349, 2009.
    """
    directions, affine = np.asarray(directions, dtype=float), np.asarray(affine, dtype=float)
    axes = polar(affine[:3, :3])[0]
    # b-vectors follow the convention of FSL: x is flipped where the determinant is positive.
    if np.linalg.det(affine[:3, :3]) > 0:
        axes = axes @ np.diag([-1.0, 1.0, 1.0])
    # Only the rotation turns a gradient, so the nearest one is taken out of the transform.
    rotations = np.stack([polar(transform[:3, :3])[0] for transform in np.asarray(transforms)])
    turns = axes.T @ rotations.transpose(0, 2, 1) @ axes
    return (turns @ directions[:, :, None])[..., 0]


def patches_are_large(shape: tuple[int, ...]) -> bool:
    """Tell whether the patches of `denoise` hold enough voxels for an estimate of the noise."""
    if shape[3] < 2 or np.prod(shape[:3]) < 2:
        return False
    return bool(np.prod(2 * _patch_radius(shape) + 1) >= _SAMPLES_PER_VOLUME * shape[3])


@contextmanager
def quiet_dipy() -> Iterator[None]:
    """Keep dipy from logging each step of each volume."""
    logger = logging.getLogger("dipy")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _volume(signals: Array, i: int) -> NDArray[np.float32]:
    """Read the volume of one measurement."""
    every = slice(None)
    return read_block(signals, (every, every, every, slice(i, i + 1)))[..., 0]


def _blocks(
    region: NDArray[np.bool_], radius: NDArray[np.intp], n_measurements: int
) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """Cut the box around a region into blocks; give each also with what its patches reach."""
    waiting = [tuple(slice(0, n) for n in region.shape)]
    while waiting:
        box = waiting.pop()
        extents = find_objects(region[box].astype(np.int8))
        if not extents:
            continue
        block, around = [], []
        for part, extent, size, r in zip(box, extents[0], region.shape, radius, strict=True):
            start, stop = part.start + extent.start, part.start + extent.stop
            block.append(slice(start, stop))
            # A patch around a neighbor reaches into the block from twice the radius, and dipy
            # takes no image that is smaller than a patch.
            first = max(0, min(start - 2 * r, size - 2 * r - 1))
            around.append(slice(first, min(size, max(stop + 2 * r, first + 2 * r + 1))))
        lengths = [part.stop - part.start for part in block]
        n_values = n_measurements * math.prod(part.stop - part.start for part in around)
        longest = int(np.argmax(lengths))
        if n_values <= BLOCK_VALUES or lengths[longest] == 1:
            yield tuple(block), tuple(around)
            continue
        whole = block[longest]
        middle = (whole.start + whole.stop) // 2
        for half in (slice(middle, whole.stop), slice(whole.start, middle)):
            waiting.append((*block[:longest], half, *block[longest + 1 :]))


def _patch_radius(shape: tuple[int, ...]) -> NDArray[np.intp]:
    """Choose a radius for each axis, larger ones where there are many measurements."""
    largest = (np.array(shape[:3]) - 1) // 2
    if shape[3] < 2:
        raise ValueError("denoising compares measurements, and there is only one")
    radius = np.minimum(_SMALLEST_RADIUS, largest)
    # The covariance of fewer voxels than measurements has no full spectrum.
    while np.prod(2 * radius + 1) - 1 < shape[3] and (radius < largest).any():
        radius = np.minimum(radius + 1, largest)
    if np.prod(2 * radius + 1) < 2:
        raise ValueError(
            f"an image of {size_text(shape)} is too small for patches of radius {_SMALLEST_RADIUS}"
        )
    return radius
