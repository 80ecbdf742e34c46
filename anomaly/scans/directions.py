"""Gradient directions: conversion between frames, matching, and resampling to other directions."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit._optional import import_optional
from dmrifit._utils.checks import check_number
from dmrifit._utils.counts import counted

__all__ = ["resample_directions"]

_LARGEST_ORDER = 8
_PER_COEFFICIENT = 1.5  # directions for each spherical harmonic
#: Directions from which others, or their mean, can be estimated.
FEWEST_DIRECTIONS = 6
_MAX_ANGLE = 5.0  # degrees
_SMOOTHING = 0.006
_FULL_SMOOTHING = 30  # directions
#: Of the matrix of harmonics; directions spread over the sphere have 2 to 10.
_WORST_CONDITION = 100.0


def turned_as_stored(directions: ArrayLike, affine: ArrayLike) -> NDArray[np.float64]:
    """Convert directions (n, 3) between a stored image's axes and FSL's, either way."""
    vectors = np.array(directions, dtype=np.float64).reshape(-1, 3)
    # FSL flips x where an image is stored in neurological order.
    if np.linalg.det(np.asarray(affine, dtype=np.float64)[:3, :3]) > 0:
        vectors[:, 0] *= -1
    # Adding 0 turns -0 into 0.
    return vectors + 0.0


def directions_on_grid(directions: ArrayLike, affine: ArrayLike) -> NDArray[np.float64]:
    """Convert directions (n, 3) of FSL's files to the axes of a grid in RAS order."""
    import nibabel as nib

    affine = np.asarray(affine, dtype=np.float64)
    stored = turned_as_stored(directions, affine)
    axes, signs = nib.io_orientation(affine).T
    on_grid = np.empty_like(stored)
    on_grid[:, axes.astype(int)] = signs * stored
    return on_grid + 0.0


def matching_directions(directions: ArrayLike, wanted: ArrayLike) -> NDArray[np.intp] | None:
    """Assign each wanted direction (m, 3) its own measurement within 5°; None if one has none."""
    from scipy.optimize import linear_sum_assignment

    measured = np.asarray(directions, dtype=np.float64).reshape(-1, 3)
    target = np.asarray(wanted, dtype=np.float64).reshape(-1, 3)
    if len(measured) < len(target):
        return None
    # Opposite directions weight alike.
    angles = np.degrees(np.arccos(np.clip(np.abs(target @ measured.T), 0, 1)))
    # One to one: the nearest of each could take a measurement twice.
    rows, columns = linear_sum_assignment(angles)
    if angles[rows, columns].max(initial=0) > _MAX_ANGLE:
        return None
    return np.asarray(columns, dtype=np.intp)


def harmonic_order(n: int) -> int:
    """Choose the order of spherical harmonics for a number of directions."""
    if n < FEWEST_DIRECTIONS:
        raise ValueError(
            f"too few directions ({n}) to estimate others from; at least {FEWEST_DIRECTIONS} are "
            "needed"
        )
    orders = np.arange(4, _LARGEST_ORDER + 1, 2)
    n_coefficients = (orders + 1) * (orders + 2) / 2
    return int(orders[n >= _PER_COEFFICIENT * n_coefficients].max(initial=2))


def resample_directions(
    signals: ArrayLike,
    directions: ArrayLike,
    wanted: ArrayLike,
    *,
    order: int | None = None,
    smoothing: float | None = None,
) -> NDArray[np.float32]:
    """
    Estimate signals along other directions of the same shell, by spherical harmonics (dipy).

    Even real harmonics, which are the same along opposite directions, are fitted by least squares
    with a penalty on the Laplace–Beltrami operator. Estimates are smoother over directions than
    measurements: they have less noise, the more so the fewer directions there were, which a
    detector trained on measurements can notice.

    Parameters
    ----------
    signals : array_like of shape (..., n)
        Signals of one shell, on any scale.
    directions : array_like of shape (n, 3)
        Unit vectors along which they were measured.
    wanted : array_like of shape (m, 3)
        Unit vectors, in the same frame.
    order : int, optional
        Even, 2 to 8; by default that of `harmonic_order`.
    smoothing : float, optional
        Weight of the penalty; by default .006, and in proportion less below 30 directions.

    Returns
    -------
    ndarray of float32, shape (..., m)
        Estimates; they can lie a little outside the range of the signals.

    Raises
    ------
    ValueError
        If the shapes do not fit each other, the order is no even number from 2 to 8, `smoothing`
        is negative, there are fewer than 6 directions, or they do not cover the sphere (all in one
        plane, for example).
    ImportError
        If the extra ``preprocess`` is not installed.

    References
    ----------
    Descoteaux et al., Magn Reson Med 58:497–510, 2007.
    """
    values = np.asarray(signals, dtype=np.float32)
    n_measured = len(np.asarray(directions))
    if values.ndim == 0 or values.shape[-1] != n_measured:
        raise ValueError(
            f"signals of shape {values.shape} do not have {counted(n_measured, 'direction')} on "
            "the last axis"
        )
    matrix = resampling_matrix(directions, wanted, order=order, smoothing=smoothing)
    return np.asarray(values @ matrix.astype(np.float32))


def resampling_matrix(
    directions: ArrayLike,
    wanted: ArrayLike,
    *,
    order: int | None = None,
    smoothing: float | None = None,
) -> NDArray[np.float64]:
    """Compute the matrix (n, m) that `resample_directions` multiplies signals with."""
    measured = _unit(directions, "directions")
    target = _unit(wanted, "wanted")
    default_order = harmonic_order(len(measured))
    if order is None:
        order = default_order
    if order not in range(2, _LARGEST_ORDER + 1, 2):
        raise ValueError(f"order must be an even number from 2 to {_LARGEST_ORDER}, not {order!r}")
    if smoothing is None:
        # Few directions leave little to smooth, and a full penalty would flatten the signal.
        smoothing = _SMOOTHING * min(1.0, len(measured) / _FULL_SMOOTHING)
    check_number("smoothing", smoothing, below=np.inf)
    harmonics = import_optional("dipy.reconst.shm")
    sphere = import_optional("dipy.core.sphere").Sphere
    basis = {"sh_order_max": order, "basis_type": "descoteaux07", "legacy": False}
    matrix, inverse = harmonics.sh_to_sf_matrix(
        sphere(xyz=measured), smooth=smoothing, return_inv=True, **basis
    )
    # The penalty hides gaps of high orders; at least orders 0 and 2 must be determined by the
    # data.
    determined = matrix if len(matrix) <= len(measured) else matrix[:FEWEST_DIRECTIONS]
    if not np.linalg.cond(determined) <= _WORST_CONDITION:
        raise ValueError(
            f"the {len(measured)} directions do not cover the sphere well enough for harmonics of "
            f"order {order}; a lower order may do, or a scan whose directions are spread evenly"
        )
    target_matrix = harmonics.sh_to_sf_matrix(sphere(xyz=target), return_inv=False, **basis)
    return np.asarray(inverse @ target_matrix)


def loss_by_resampling(matrix: NDArray[np.float64]) -> str:
    """Describe in a sentence what resampling with a matrix (n, m) of the default order loses."""
    n_measured, n_wanted = matrix.shape
    # Factor on the SD of noise that is independent and equal in all measurements.
    noise_factor = float(np.sqrt((matrix**2).sum(axis=0).mean()))
    return (
        f"signals along {n_wanted} directions are estimated from {n_measured} other ones: what "
        f"varies over directions faster than harmonics of order {harmonic_order(n_measured)} is "
        f"lost, and their noise is {noise_factor:.2f} times that of the measured signals, so that "
        "scores can differ"
    )


def _unit(directions: ArrayLike, name: str) -> NDArray[np.float64]:
    vectors = np.asarray(directions, dtype=np.float64)
    if vectors.ndim != 2 or vectors.shape[1] != 3 or not len(vectors):
        raise ValueError(f"{name} must have shape (n, 3), not {vectors.shape}")
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(length) & (length > 0)).all():
        number = int(np.flatnonzero(~(np.isfinite(length) & (length > 0)))[0])
        raise ValueError(
            f"{name}: number {number + 1} is {vectors[number].tolist()}, which is no direction"
        )
    return np.asarray(vectors / length)
