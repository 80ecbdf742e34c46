"""Directions of diffusion weighting: along the axes of a grid, in a wanted order, and estimated from others."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit._optional import import_optional

__all__ = [
    "directions_in_file",
    "directions_on_grid",
    "harmonic_order",
    "matching_directions",
    "resample_directions",
    "turned_as_stored",
]

_LARGEST_ORDER = 8
_PER_COEFFICIENT = 1.5  # directions for each spherical harmonic
_FEWEST = 6
_MAX_ANGLE = 5.0  # degrees
_SMOOTHING = 0.006
_FULL_SMOOTHING = 30  # directions
_WORST_CONDITION = (
    100.0  # of the matrix of harmonics; directions spread over the sphere have 2 to 10
)


def turned_as_stored(directions: ArrayLike, affine: ArrayLike) -> NDArray[np.float64]:
    """
    Go between directions along the axes of a stored image and those of FSL's files, either way.

    Shapes: `directions` (n, 3); returns (n, 3).

    References
    ----------
    Jenkinson et al., NeuroImage 62:782–790, 2012 (FSL, whose convention of b-vectors it is).
    """
    found = np.array(directions, dtype=np.float64).reshape(-1, 3)
    if np.linalg.det(np.asarray(affine, dtype=np.float64)[:3, :3]) > 0:
        found[:, 0] *= -1
    return found + 0.0


def directions_on_grid(directions: ArrayLike, affine: ArrayLike) -> NDArray[np.float64]:
    """
    Give directions of FSL's files along the axes of the grid that a network sees.

    Shapes: `directions` (n, 3); returns (n, 3).

    References
    ----------
    Jenkinson et al., NeuroImage 62:782–790, 2012 (FSL, whose convention of b-vectors it is).
    """
    import nibabel as nib

    affine = np.asarray(affine, dtype=np.float64)
    stored = turned_as_stored(directions, affine)
    on_grid = np.empty_like(stored)
    for i, (axis, sign) in enumerate(nib.io_orientation(affine)):
        on_grid[:, int(axis)] = sign * stored[:, i]
    return on_grid + 0.0


def directions_in_file(directions: ArrayLike, affine: ArrayLike) -> NDArray[np.float64]:
    """
    Give directions as FSL's files have them; undoes `directions_on_grid`.

    Shapes: `directions` (n, 3); returns (n, 3).
    """
    import nibabel as nib

    affine = np.asarray(affine, dtype=np.float64)
    on_grid = np.asarray(directions, dtype=np.float64).reshape(-1, 3)
    stored = np.empty_like(on_grid)
    for i, (axis, sign) in enumerate(nib.io_orientation(affine)):
        stored[:, i] = sign * on_grid[:, int(axis)]
    return turned_as_stored(stored, affine)


def matching_directions(directions: ArrayLike, wanted: ArrayLike) -> NDArray[np.intp] | None:
    """
    Find the measurement along each wanted direction: within 5°, as correction of motion turns
    directions.

    Shapes: `directions` (n, 3), `wanted` (m, 3); returns (m,).
    """
    from scipy.optimize import linear_sum_assignment

    found, target = (np.asarray(a, dtype=np.float64).reshape(-1, 3) for a in (directions, wanted))
    if len(found) < len(target):
        return None
    angles = np.degrees(np.arccos(np.clip(np.abs(target @ found.T), 0, 1)))
    rows, columns = linear_sum_assignment(angles)
    if angles[rows, columns].max(initial=0) > _MAX_ANGLE:
        return None
    return np.asarray(columns, dtype=np.intp)


def harmonic_order(n: int) -> int:
    """Choose the order of spherical harmonics for a number of directions."""
    if n < _FEWEST:
        raise ValueError(
            f"{n} directions are too few to estimate others from; at least {_FEWEST} are needed"
        )
    fitting = [
        order
        for order in range(2, _LARGEST_ORDER + 1, 2)
        if n >= _PER_COEFFICIENT * (order + 1) * (order + 2) / 2 or order == 2
    ]
    return fitting[-1]


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

    Even real harmonics, which are the same along opposite directions, are fitted by least squares with a penalty on the
    Laplace–Beltrami operator. What was estimated is smoother over directions than what was measured: it has less noise,
    and the more so the fewer directions there were. A detector that learned from measured directions sees that.

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
        If the shapes do not fit each other, the order is no even number from 2 to 8, `smoothing` is negative, there are
        fewer than 6 directions, or they do not cover the sphere (all in one plane, for example).
    ImportError
        If the extra ``preprocess`` is not installed.

    References
    ----------
    Descoteaux et al., Magn Reson Med 58:497–510, 2007.
    """
    values = np.asarray(signals, dtype=np.float32)
    there, target = (
        _unit(a, name) for a, name in ((directions, "directions"), (wanted, "wanted"))
    )
    if values.ndim == 0 or values.shape[-1] != len(there):
        raise ValueError(
            f"signals of shape {values.shape} do not have {len(there)} directions on the last axis"
        )
    chosen = harmonic_order(len(there)) if order is None else order
    if chosen not in range(2, _LARGEST_ORDER + 1, 2):
        raise ValueError(f"order must be an even number from 2 to {_LARGEST_ORDER}, not {order!r}")
    weight = (
        _SMOOTHING * min(1.0, len(there) / _FULL_SMOOTHING) if smoothing is None else smoothing
    )
    if not (np.isfinite(weight) and weight >= 0):
        raise ValueError(f"smoothing must be 0 or more, not {smoothing!r}")
    harmonic_order(len(there))
    harmonics = import_optional("dipy.reconst.shm")
    sphere = import_optional("dipy.core.sphere").Sphere
    basis = {"sh_order_max": chosen, "basis_type": "descoteaux07", "legacy": False}
    matrix, inverse = harmonics.sh_to_sf_matrix(
        sphere(xyz=there), smooth=weight, return_inv=True, **basis
    )
    # What is fitted without a penalty, and what takes most of it, has to be seen by the directions themselves.
    enough = matrix if len(matrix) <= len(there) else matrix[:_FEWEST]
    if not np.linalg.cond(enough) <= _WORST_CONDITION:
        raise ValueError(
            f"the {len(there)} directions do not cover the sphere well enough for harmonics of order {chosen}; a lower "
            "order may do, or a scan whose directions are spread evenly"
        )
    other = harmonics.sh_to_sf_matrix(sphere(xyz=target), return_inv=False, **basis)
    return np.asarray(values @ (inverse @ other).astype(np.float32))


def _unit(directions: ArrayLike, name: str) -> NDArray[np.float64]:
    found = np.asarray(directions, dtype=np.float64)
    if found.ndim != 2 or found.shape[1] != 3 or not len(found):
        raise ValueError(f"{name} must have shape (n, 3), not {found.shape}")
    length = np.linalg.norm(found, axis=1, keepdims=True)
    if not (np.isfinite(length) & (length > 0)).all():
        number = int(np.flatnonzero(~(np.isfinite(length) & (length > 0)))[0])
        raise ValueError(
            f"{name}: number {number + 1} is {found[number].tolist()}, which points nowhere"
        )
    return np.asarray(found / length)
