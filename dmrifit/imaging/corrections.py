"""Corrections of scanner images, by dipy: noise, Gibbs ringing, motion."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

from dmrifit._optional import import_optional

__all__ = [
    "checked_signals",
    "correct_motion",
    "denoise",
    "patches_are_large",
    "quiet_dipy",
    "remove_gibbs",
    "rotate_directions",
]

_SMALLEST_RADIUS = 2
_SAMPLES_PER_VOLUME = 1.5  # voxels of a patch for each volume that the spectrum of its noise needs
_COVERED = 0.999


def denoise(
    signals: ArrayLike, *, mask: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """
    Remove noise by Marchenko–Pastur principal component analysis of patches (MPPCA, by dipy).

    The noise falls, but the noise floor stays: the mean of Rician noise is not zero, so magnitudes
    never average to less than √(π/2)·σ of the *original* noise, and denoising of magnitudes cannot
    remove that. The noise level returned is that before denoising, as a fit with a noise floor
    needs it.

    Shapes: `signals` (x, y, z, n_measurements), `mask` (x, y, z); returns signals (x, y, z,
    n_measurements), sigma (x, y, z).

    References
    ----------
    Veraart et al., NeuroImage 142:394–406, 2016; Veraart et al., Magn Reson Med 76:1582–1593,
    2016.
    """
    localpca = import_optional("dipy.denoise.localpca")
    original = checked_signals(signals)
    finite = np.asarray(np.isfinite(original).all(axis=-1))
    region = finite & np.any(original != 0, axis=-1)
    if mask is not None:
        region = finite & mask
    radius = _patch_radius(original.shape)
    # One NaN would spread over every patch that holds it.
    usable = np.where(finite[..., None], original, 0)
    # Threads of BLAS would change the last digits.
    with threadpool_limits(1), np.errstate(divide="ignore", invalid="ignore"):
        denoised, sigma = localpca.mppca(
            usable, mask=region, patch_radius=radius, return_sigma=True, suppress_warning=True
        )
    # At the rim, voxels that no patch reaches have neither signal nor noise level.
    reached = region & np.all(np.isfinite(denoised), axis=-1) & np.isfinite(sigma)
    if not reached.any():
        raise ValueError(
            f"no voxel of the image of {_times(original.shape)} could be denoised; check image "
            "and mask"
        )
    sigma = np.where(reached, sigma, np.median(sigma[reached])).astype(np.float32)
    return np.where(reached[..., None], denoised, original).astype(np.float32), sigma


def remove_gibbs(
    signals: ArrayLike, *, slice_axis: int = 2, progress: Callable[[], object] | None = None
) -> NDArray[np.float32]:
    """
    Remove Gibbs ringing from the slices of each volume by local shifts below a voxel (by dipy).

    It is right for images of full Fourier coverage that were not interpolated; partial Fourier
    leaves ringing of another kind, which it only reduces.

    Shapes: `signals` (x, y, z, n_measurements); returns (x, y, z, n_measurements).

    References
    ----------
    Kellner et al., Magn Reson Med 76:1574–1581, 2016.
    """
    gibbs = import_optional("dipy.denoise.gibbs")
    original = checked_signals(signals)
    if slice_axis not in (0, 1, 2):
        raise ValueError(f"slice_axis must be 0, 1 or 2, not {slice_axis!r}")
    result = np.empty_like(original)
    for i in range(original.shape[3]):
        volume = original[..., i]
        finite = np.isfinite(volume)
        clean = gibbs.gibbs_removal(
            np.where(finite, volume, 0).astype(np.float64), slice_axis=slice_axis, inplace=False
        )
        result[..., i] = np.where(finite, np.maximum(clean, 0), volume)
        if progress is not None:
            progress()
    return result


def correct_motion(
    signals: ArrayLike,
    affine: ArrayLike,
    *,
    reference: int = 0,
    mask: NDArray[np.bool_] | None = None,
    progress: Callable[[], object] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """
    Align every volume to a reference by a rigid transformation (mutual information, by dipy).

    Shapes: `signals` (x, y, z, n_measurements), `mask` (x, y, z); returns signals (x, y, z,
    n_measurements), transforms (n_measurements, 4, 4).

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
    original = checked_signals(signals)
    affine = np.asarray(affine, dtype=np.float64)
    static_mask = None
    if mask is not None:
        static_mask = mask.astype(np.int32)
    n = original.shape[3]
    if min(original.shape[:3]) < 4:
        raise ValueError(
            "motion correction needs at least 4 voxels along each axis; the image has "
            f"{_times(original.shape[:3])}"
        )
    if not 0 <= reference < n:
        raise ValueError(
            f"there is no volume {reference} to be the reference among {n}, counted from 0"
        )
    fixed = np.nan_to_num(original[..., reference]).astype(np.float64)
    moved = original.copy()
    transforms = np.tile(np.eye(4), (n, 1, 1))
    for i in range(n):
        if i != reference:
            finite = np.isfinite(original[..., i])
            volume = np.where(finite, original[..., i], 0).astype(np.float64)
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
            # Registration fills with 0 what comes from outside, which a fit would take for signal.
            inverse = imaffine.AffineMap(
                transforms[i],
                domain_grid_shape=fixed.shape,
                domain_grid2world=affine,
                codomain_grid_shape=volume.shape,
                codomain_grid2world=affine,
            )
            covered = inverse.transform(finite.astype(np.float64)) > _COVERED
            moved[..., i] = np.where(covered, resampled, np.nan)
        if progress is not None:
            progress()
    return moved, transforms


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
    axes = _rotation(affine[:3, :3])
    # b-vectors follow the convention of FSL: x is flipped where the determinant is positive.
    if np.linalg.det(affine[:3, :3]) > 0:
        axes = axes @ np.diag([-1.0, 1.0, 1.0])
    rotated = []
    for direction, transform in zip(directions, np.asarray(transforms), strict=True):
        # Only the rotation turns a gradient, so the nearest one is taken out of the transform.
        rotation = _rotation(transform[:3, :3])
        rotated.append(axes.T @ rotation.T @ axes @ direction)
    return np.array(rotated).reshape(-1, 3)


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


def checked_signals(signals: ArrayLike) -> NDArray[np.float32]:
    """Check that signals are those of an image (x, y, z, n_measurements)."""
    values = np.asarray(signals)
    if values.ndim != 4:
        raise ValueError(f"signals must have shape (x, y, z, n_measurements), not {values.shape}")
    return np.ascontiguousarray(values, dtype=np.float32)


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
            f"an image of {_times(shape)} is too small for patches of radius {_SMALLEST_RADIUS}"
        )
    return radius


def _rotation(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Find the orthogonal matrix nearest to a matrix."""
    left, _, right = np.linalg.svd(matrix)
    return left @ right


def _times(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))
