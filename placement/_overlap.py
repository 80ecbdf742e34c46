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


@njit(cache=True, nogil=True)
def running_sums(volume):
    """
    Sum a volume along its last axis.

    Parameters
    ----------
    volume : ndarray of float32, shape (a, b, c)
        The values.

    Returns
    -------
    ndarray of float32, shape (a, b, c + 1)
        Sums of the first 0 to c values of each row.
    """
    a, b, c = volume.shape
    out = np.empty((a, b, c + 1), dtype=np.float32)
    for i in range(a):
        for j in range(b):
            total = 0.0
            out[i, j, 0] = 0.0
            for k in range(c):
                total += volume[i, j, k]
                out[i, j, k + 1] = total
    return out


@njit(cache=True, nogil=True)
def integrate(prefix, rows, row_widths, columns, column_widths, step, start, half):
    """
    Integrate a volume over a box along the last index.

    Parameters
    ----------
    prefix : ndarray of float32, shape (a, b, c + 1)
        As `running_sums` gives it.
    rows, row_widths : ndarray of shape (n,)
        Middles and widths of strips along the first index, which cover the box and do not cross borders of voxels.
    columns, column_widths : ndarray of shape (m,)
        The same along the second.
    step : ndarray of shape (3, 3)
        From indices to the box's own coordinates in mm, without the shift.
    start : ndarray of shape (3,)
        Where index 0, 0, 0 lies in the box's coordinates.
    half : ndarray of shape (3,)
        Half the sides in mm.

    Returns
    -------
    filled, total : float
        Volume within the box and volume of the box by the same sum, in units of voxels.
    """
    a, b, c = prefix.shape
    inverse = np.empty(3)
    reach = np.empty(3)
    for x in range(3):
        slope = step[x, 2]
        if abs(slope) < 1e-12:
            slope = 1e-12
        inverse[x] = 1.0 / slope
        reach[x] = abs(half[x] * inverse[x])
    filled = 0.0
    total = 0.0
    top = float(c - 1)
    for n in range(len(rows)):
        i = int(np.floor(rows[n] + 0.5))
        inside = 0 <= i < a
        b0 = -(start[0] + step[0, 0] * rows[n]) * inverse[0] + 0.5
        b1 = -(start[1] + step[1, 0] * rows[n]) * inverse[1] + 0.5
        b2 = -(start[2] + step[2, 0] * rows[n]) * inverse[2] + 0.5
        s0 = -step[0, 1] * inverse[0]
        s1 = -step[1, 1] * inverse[1]
        s2 = -step[2, 1] * inverse[2]
        row_filled = 0.0
        row_total = 0.0
        for m in range(len(columns)):
            v = columns[m]
            m0 = b0 + s0 * v
            m1 = b1 + s1 * v
            m2 = b2 + s2 * v
            low = max(m0 - reach[0], max(m1 - reach[1], m2 - reach[2]))
            high = min(m0 + reach[0], min(m1 + reach[1], m2 + reach[2]))
            if high <= low:
                continue
            row_total += column_widths[m] * (high - low)
            j = int(np.floor(v + 0.5))
            if not inside or j < 0 or j >= b:
                continue
            low = min(max(low, 0.0), top)
            high = min(max(high, 0.0), top)
            k = min(int(low), c - 2)
            one = prefix[i, j, k] + (low - k) * (prefix[i, j, k + 1] - prefix[i, j, k])
            k = min(int(high), c - 2)
            two = prefix[i, j, k] + (high - k) * (prefix[i, j, k + 1] - prefix[i, j, k])
            row_filled += column_widths[m] * (two - one)
        filled += row_widths[n] * row_filled
        total += row_widths[n] * row_total
    return filled, total
