"""Compiled code that resamples a tumor on a small grid, with signed distances."""

# It calls no compiled function of another file: numba's cache on disk would not see its changes.

from __future__ import annotations

import numpy as np

from dmrifit._utils.compiled import njit

#: Squared distance, in grid steps, where there is nothing to be distant from.
_NOWHERE = np.float32(1e6)


@njit(cache=True, nogil=True)
def resample(volume, matrix, offset, n):
    """Lay a volume on a cubic grid (n, n, n) by trilinear interpolation; 0 outside."""
    a, b, c = volume.shape
    out = np.zeros((n, n, n), dtype=np.float32)
    for i in range(n):
        for j in range(n):
            x0 = matrix[0, 0] * i + matrix[0, 1] * j + offset[0]
            y0 = matrix[1, 0] * i + matrix[1, 1] * j + offset[1]
            z0 = matrix[2, 0] * i + matrix[2, 1] * j + offset[2]
            for k in range(n):
                x = x0 + matrix[0, 2] * k
                y = y0 + matrix[1, 2] * k
                z = z0 + matrix[2, 2] * k
                if x <= -1.0 or y <= -1.0 or z <= -1.0 or x >= a or y >= b or z >= c:
                    continue
                # The corner below the point, and its weights in the eight voxels around it.
                u, v, w = int(np.floor(x)), int(np.floor(y)), int(np.floor(z))
                f, g, h = x - u, y - v, z - w
                total = 0.0
                for p in range(2):
                    if u + p < 0 or u + p >= a:
                        continue
                    weight_p = f if p else 1.0 - f
                    for q in range(2):
                        if v + q < 0 or v + q >= b:
                            continue
                        weight = weight_p * (g if q else 1.0 - g)
                        if w >= 0:
                            total += weight * (1.0 - h) * volume[u + p, v + q, w]
                        if w + 1 < c:
                            total += weight * h * volume[u + p, v + q, w + 1]
                out[i, j, k] = total
    return out


@njit(cache=True, nogil=True)
def _squared_distance(of):
    """Squared distance in grid steps to the nearest point of a set; exact, axis after axis."""
    n = of.shape[0]
    along = np.empty((n, n, n), dtype=np.float32)
    across = np.empty((n, n, n), dtype=np.float32)
    rows = np.zeros((n, n), dtype=np.bool_)
    planes = np.zeros(n, dtype=np.bool_)
    for i in range(n):
        for j in range(n):
            gap = n + n
            is_met = False
            for k in range(n):
                gap = 0 if of[i, j, k] else gap + 1
                is_met = is_met or gap == 0
                along[i, j, k] = gap
            # An empty row is skipped below, which makes distances in a sparse volume much faster.
            if not is_met:
                along[i, j, :] = _NOWHERE
                continue
            rows[i, j] = True
            planes[i] = True
            gap = n + n
            for k in range(n - 1, -1, -1):
                gap = 0 if of[i, j, k] else gap + 1
                nearest = min(along[i, j, k], np.float32(gap))
                along[i, j, k] = nearest * nearest
    for i in range(n):
        for j in range(n):
            row = across[i, j]
            row[:] = _NOWHERE
            for m in range(n):
                if rows[i, m]:
                    apart = np.float32((j - m) * (j - m))
                    line = along[i, m]
                    for k in range(n):
                        row[k] = min(row[k], line[k] + apart)
    flat = across.reshape(n, n * n)
    out = along.reshape(n, n * n)
    for i in range(n):
        row = out[i]
        row[:] = _NOWHERE
        for m in range(n):
            if planes[m]:
                apart = np.float32((i - m) * (i - m))
                line = flat[m]
                for k in range(n * n):
                    row[k] = min(row[k], line[k] + apart)
    return along


@njit(cache=True, nogil=True)
def signed_distance(inside):
    """Compute signed distances to the border of a region (n, n, n), half a step off its points."""
    n = inside.shape[0]
    outer = _squared_distance(inside)
    inner = _squared_distance(~inside)
    for i in range(n):
        for j in range(n):
            for k in range(n):
                if inside[i, j, k]:
                    # The border runs half a step from the outermost points inside.
                    outer[i, j, k] = np.sqrt(inner[i, j, k]) - np.float32(0.5)
                else:
                    outer[i, j, k] = np.float32(0.5) - np.sqrt(outer[i, j, k])
    return outer
