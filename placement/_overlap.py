"""
All compiled code of the package, in one file, because numba's cache on disk watches the file of a function only.

No function is passed as an argument or closed over, so that each is compiled once and found again.
"""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["box_intersection"]

#: One of two boxes is smaller by this when they are clipped, so that faces which coincide are counted once.
SHRINK = 1e-9


@njit(cache=True, nogil=True)
def _clipped_area(polygon, n, normals, limits):
    """Clip a convex polygon at six planes ``normal · x <= limit``; the area that is left."""
    a = np.empty((16, 3))
    b = np.empty((16, 3))
    for v in range(n):
        a[v] = polygon[v]
    for p in range(6):
        m = 0
        for v in range(n):
            w = v + 1 if v + 1 < n else 0
            d0 = a[v, 0] * normals[p, 0] + a[v, 1] * normals[p, 1] + a[v, 2] * normals[p, 2] - limits[p]
            d1 = a[w, 0] * normals[p, 0] + a[w, 1] * normals[p, 1] + a[w, 2] * normals[p, 2] - limits[p]
            if d0 <= 0.0:
                b[m] = a[v]
                m += 1
            if (d0 < 0.0 < d1) or (d1 < 0.0 < d0):
                t = d0 / (d0 - d1)
                for x in range(3):
                    b[m, x] = a[v, x] + t * (a[w, x] - a[v, x])
                m += 1
        n = m
        a, b = b, a
        if n < 3:
            return 0.0
    total = np.zeros(3)
    for v in range(1, n - 1):
        total += np.cross(a[v] - a[0], a[v + 1] - a[0])
    return 0.5 * np.sqrt(np.sum(total * total))


@njit(cache=True, nogil=True)
def _planes(center, half, rotation):
    normals = np.empty((6, 3))
    limits = np.empty(6)
    for p in range(6):
        axis = p // 2
        sign = 1.0 if p % 2 == 0 else -1.0
        for x in range(3):
            normals[p, x] = sign * rotation[x, axis]
        limits[p] = np.sum(normals[p] * center) + half[axis]
    return normals, limits


@njit(cache=True, nogil=True)
def _surface(center, half, rotation, normals, limits):
    """Sum over the faces of a box: distance of the plane from the origin times the area inside six planes."""
    total = 0.0
    corners = np.empty((4, 3))
    for p in range(6):
        axis = p // 2
        sign = 1.0 if p % 2 == 0 else -1.0
        one = (axis + 1) % 3
        two = (axis + 2) % 3
        for v in range(4):
            s = 1.0 if v == 0 or v == 1 else -1.0
            t = 1.0 if v == 0 or v == 3 else -1.0
            for x in range(3):
                corners[v, x] = (
                    center[x]
                    + sign * half[axis] * rotation[x, axis]
                    + s * half[one] * rotation[x, one]
                    + t * half[two] * rotation[x, two]
                )
        distance = half[axis]
        for x in range(3):
            distance += sign * rotation[x, axis] * center[x]
        total += distance * _clipped_area(corners, 4, normals, limits)
    return total


@njit(cache=True, nogil=True)
def box_intersection(center_a, size_a, rotation_a, center_b, size_b, rotation_b):
    """
    Compute the volume that two boxes share.

    Parameters
    ----------
    center_a, size_a : ndarray of shape (3,)
        Middle and sides of the one, in mm.
    rotation_a : ndarray of shape (3, 3)
        Its columns are the directions of the sides.
    center_b, size_b : ndarray of shape (3,)
        Those of the other.
    rotation_b : ndarray of shape (3, 3)
        That of the other.

    Returns
    -------
    float
        In mm³.
    """
    origin = np.zeros(3)
    half_a = 0.5 * size_a * (1.0 - SHRINK)
    half_b = 0.5 * size_b
    shift = center_b - center_a
    if np.sqrt(np.sum(shift * shift)) > np.sqrt(np.sum(half_a * half_a)) + np.sqrt(np.sum(half_b * half_b)):
        return 0.0
    normals_a, limits_a = _planes(origin, half_a, rotation_a)
    normals_b, limits_b = _planes(shift, half_b, rotation_b)
    total = _surface(origin, half_a, rotation_a, normals_b, limits_b)
    total += _surface(shift, half_b, rotation_b, normals_a, limits_a)
    return max(0.0, total / 3.0) / (1.0 - SHRINK) ** 3
