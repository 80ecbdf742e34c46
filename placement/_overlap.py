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


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
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
    n_columns = len(columns)
    last_cell = np.int64(c - 2)
    one_more = np.uint64(1)
    s0 = -step[0, 1] * inverse[0]
    s1 = -step[1, 1] * inverse[1]
    s2 = -step[2, 1] * inverse[2]
    for n in range(len(rows)):
        inside = -0.5 <= rows[n] < a - 0.5
        i = np.uint64(rows[n] + 0.5) if inside else np.uint64(0)
        b0 = -(start[0] + step[0, 0] * rows[n]) * inverse[0] + 0.5
        b1 = -(start[1] + step[1, 0] * rows[n]) * inverse[1] + 0.5
        b2 = -(start[2] + step[2, 0] * rows[n]) * inverse[2] + 0.5
        # Three intervals on a line have a common part if each two have: that bounds the columns which meet the box.
        first = -1e300
        last = 1e300
        for pair in range(3):
            if pair == 0:
                gap, slope, sum_ = b0 - b1, s0 - s1, reach[0] + reach[1]
            elif pair == 1:
                gap, slope, sum_ = b0 - b2, s0 - s2, reach[0] + reach[2]
            else:
                gap, slope, sum_ = b1 - b2, s1 - s2, reach[1] + reach[2]
            if abs(slope) > 1e-12:
                one = (-sum_ - gap) / slope
                two = (sum_ - gap) / slope
                first = max(first, min(one, two))
                last = min(last, max(one, two))
            elif abs(gap) >= sum_:
                last = -1e300
        m = 0
        far = n_columns
        while m < far:
            middle = (m + far) // 2
            if columns[middle] < first:
                m = middle + 1
            else:
                far = middle
        row_filled = 0.0
        row_total = 0.0
        while m < n_columns and columns[m] <= last:
            v = columns[m]
            width = column_widths[m]
            m += 1
            m0 = b0 + s0 * v
            m1 = b1 + s1 * v
            m2 = b2 + s2 * v
            low = max(m0 - reach[0], max(m1 - reach[1], m2 - reach[2]))
            high = min(m0 + reach[0], min(m1 + reach[1], m2 + reach[2]))
            if high <= low:
                continue
            row_total += width * (high - low)
            if not inside or v < -0.5 or v >= b - 0.5:
                continue
            # Unsigned, so that numba does not look for indices which count from the end.
            j = np.uint64(v + 0.5)
            low = min(max(low, 0.0), top)
            high = min(max(high, 0.0), top)
            whole = min(np.int64(low), last_cell)
            k = np.uint64(whole)
            one = prefix[i, j, k] + (low - whole) * (prefix[i, j, k + one_more] - prefix[i, j, k])
            whole = min(np.int64(high), last_cell)
            k = np.uint64(whole)
            two = prefix[i, j, k] + (high - whole) * (prefix[i, j, k + one_more] - prefix[i, j, k])
            row_filled += width * (two - one)
        filled += row_widths[n] * row_filled
        total += row_widths[n] * row_total
    return filled, total


@njit(cache=True, nogil=True)
def _strips(middle, reach, parts, nodes, widths):
    """Divide an extent at borders of voxels, each piece into `parts`; gives the number of strips."""
    n = 0
    low = middle - reach
    high = middle + reach
    border = np.floor(low + 0.5) + 0.5
    while low < high and n + parts <= len(nodes):
        end = min(border, high)
        if end > low:
            width = (end - low) / parts
            for p in range(parts):
                nodes[n] = low + (p + 0.5) * width
                widths[n] = width
                n += 1
        low = end
        border += 1.0
    return n


@njit(cache=True, nogil=True)
def _fraction(prefix, matrix, inverse, offset, center, rotation, half, parts, nodes):
    """Part of a box that a volume fills, with `parts` rows to a voxel; NaN where the box is thinner than a number."""
    step = np.empty((3, 3))
    start = np.empty(3)
    for x in range(3):
        start[x] = 0.0
        for y in range(3):
            start[x] += rotation[y, x] * (offset[y] - center[y])
            total = 0.0
            for z in range(3):
                total += rotation[z, x] * matrix[z, y]
            step[x, y] = total
    counts = np.empty(2, dtype=np.int64)
    for a in range(2):
        middle = 0.0
        reach = 0.0
        for y in range(3):
            middle += inverse[a, y] * (center[y] - offset[y])
            direction = 0.0
            for z in range(3):
                direction += inverse[a, z] * rotation[z, y]
            reach += abs(direction) * half[y]
        counts[a] = _strips(middle, reach, parts, nodes[2 * a], nodes[2 * a + 1])
    n, m = counts
    filled, total = integrate(prefix, nodes[0, :n], nodes[1, :n], nodes[2, :m], nodes[3, :m], step, start, half)
    return filled / total if total > 0.0 else 0.0


@njit(cache=True, nogil=True)
def fraction(grid, center, rotation, half, parts):
    """
    Compute which part of a box a volume fills.

    Parameters
    ----------
    grid : tuple of ndarray
        Running sums, matrix from indices to mm, its inverse, place of index 0.
    center, half : ndarray of shape (3,)
        Middle and half the sides of the box in mm.
    rotation : ndarray of shape (3, 3)
        Its columns are the directions of the sides.
    parts : int
        Rows to a voxel along each of two axes.

    Returns
    -------
    float
        From 0 to 1.
    """
    prefix, matrix, inverse, offset = grid
    nodes = np.empty((4, 4096))
    return _fraction(prefix, matrix, inverse, offset, center, rotation, half, parts, nodes)


@njit(cache=True, nogil=True)
def _turn(axis, angle, out):
    c = np.cos(angle)
    s = np.sin(angle)
    one = (axis + 1) % 3
    two = (axis + 2) % 3
    out[:, :] = 0.0
    out[axis, axis] = 1.0
    out[one, one] = c
    out[two, two] = c
    out[one, two] = -s
    out[two, one] = s


@njit(cache=True, nogil=True)
def _pose(x, kind, base, origin, limits, center, size, rotation, work):
    """
    Turn the numbers of a search into a box that keeps the limits of its sides; gives by how much they were broken.

    Kinds: 0 along the scanner's axes; 1 to 3 turned about one of them; 4 to 6 about one and then the box's next;
    7 freely, from a rotation to start with.
    """
    excess = 0.0
    volume = 1.0
    for a in range(3):
        center[a] = origin[a] + x[a]
        low = limits[6 + a]
        high = limits[9 + a]
        wanted = min(max(x[3 + a], low), high)
        excess += (x[3 + a] - wanted) ** 2
        size[a] = np.exp(wanted)
        volume *= size[a]
    for _ in range(3):
        # Sides at their limit cannot grow, so the others have to, which takes up to three rounds.
        if volume >= limits[5]:
            break
        factor = np.cbrt(limits[5] / volume) * (1.0 + 1e-12)
        excess += np.log(factor) ** 2
        volume = 1.0
        for a in range(3):
            size[a] = min(size[a] * factor, np.exp(limits[9 + a]))
            volume *= size[a]
    if kind == 0:
        rotation[:, :] = base
    elif kind <= 3:
        _turn(kind - 1, x[6], rotation)
    elif kind <= 6:
        _turn(kind - 4, x[6], work[0])
        _turn((kind - 3) % 3, x[7], work[1])
        for a in range(3):
            for b in range(3):
                rotation[a, b] = (
                    work[0, a, 0] * work[1, 0, b] + work[0, a, 1] * work[1, 1, b] + work[0, a, 2] * work[1, 2, b]
                )
    else:
        angle = np.sqrt(x[6] ** 2 + x[7] ** 2 + x[8] ** 2)
        s = np.sin(angle) / angle if angle > 1e-9 else 1.0
        c = (1.0 - np.cos(angle)) / angle**2 if angle > 1e-9 else 0.5
        for a in range(3):
            b = (a + 1) % 3
            d = (a + 2) % 3
            work[0, a, a] = 1.0 - c * (x[6 + b] ** 2 + x[6 + d] ** 2)
            work[0, a, b] = c * x[6 + a] * x[6 + b] - s * x[6 + d]
            work[0, b, a] = c * x[6 + a] * x[6 + b] + s * x[6 + d]
        for a in range(3):
            for b in range(3):
                rotation[a, b] = base[a, 0] * work[0, 0, b] + base[a, 1] * work[0, 1, b] + base[a, 2] * work[0, 2, b]
    return excess


@njit(cache=True, nogil=True)
def _outside(grid, center, rotation, half, low, high):
    """How far a box reaches beyond an image, in mm, summed over its faces."""
    _, matrix, inverse, offset = grid
    total = 0.0
    for a in range(3):
        middle = 0.0
        reach = 0.0
        edge = 0.0
        for y in range(3):
            middle += inverse[a, y] * (center[y] - offset[y])
            edge += matrix[y, a] ** 2
            direction = 0.0
            for z in range(3):
                direction += inverse[a, z] * rotation[z, y]
            reach += abs(direction) * half[y]
        total += (max(0.0, low[a] - middle + reach) + max(0.0, middle + reach - high[a])) * np.sqrt(edge)
    return total


@njit(cache=True, nogil=True)
def _cost(x, kind, base, origin, grid, forbidden, margins, low, high, limits, parts, nodes, box, work):
    """Minus the logarithm of the objective, and penalties for constraints that are broken."""
    center = box[0]
    size = box[1]
    half = box[2]
    rotation = box[3:6]
    excess = _pose(x, kind, base, origin, limits, center, size, rotation, work)
    volume = size[0] * size[1] * size[2]
    for a in range(3):
        half[a] = 0.5 * size[a]
    prefix, matrix, inverse, offset = grid
    part = _fraction(prefix, matrix, inverse, offset, center, rotation, half, parts, nodes)
    above = (part - limits[2]) / limits[3]
    if limits[4] > 0.0 and above > 0.0:
        above = 0.0
    missing = (part * volume - limits[0]) / limits[1]
    cost = 0.5 * (above * above + missing * missing) + excess
    beyond = _outside(grid, center, rotation, half, low, high)
    if beyond > 0.0:
        cost += limits[12] * (0.1 + beyond)
    if len(margins) > 0:
        sums, place, matrix, inverse = forbidden
        for m in range(len(margins)):
            for a in range(3):
                half[a] = 0.5 * size[a] + margins[m]
            touched = _fraction(sums[m], matrix, inverse, place, center, rotation, half, parts, nodes)
            if touched > 0.0:
                cost += limits[12] * (0.1 + 100.0 * touched)
    return cost


@njit(cache=True, nogil=True)
def descend(x0, kinds, bases, origins, grid, forbidden, margins, low, high, limits, steps, n_evals, tolerance, parts):
    """
    Improve boxes by the simplex method of Nelder and Mead, with coefficients that depend on the dimension.

    Parameters
    ----------
    x0 : ndarray of shape (n, 9)
        Shifts in mm, logarithms of sides in mm, angles in radians, as `_pose` reads them.
    kinds : ndarray of int, shape (n,)
        How the angles turn the boxes.
    bases : ndarray of shape (n, 3, 3)
        Rotations to start from.
    origins : ndarray of shape (n, 3)
        Centers to start from, in mm.
    grid : tuple of ndarray
        As in `fraction`.
    forbidden : tuple of ndarray
        Running sums of shape (m, a, b, c + 1) of what is excluded, the place of their index 0, the matrix from
        their indices to mm, its inverse.
    margins : ndarray of shape (m,)
        How far to stay away, in mm.
    low, high : ndarray of shape (3,)
        Ends of the image in indices of the grid.
    limits : ndarray of shape (13,)
        Wanted volume and its sd in mm³, wanted part and its sd, whether one-sided, least volume in mm³,
        logarithms of the least and the largest sides, weight of broken constraints.
    steps : ndarray of shape (3,)
        Size of the first simplex: mm, logarithm, radians.
    n_evals : int
        Largest number of evaluations for each.
    tolerance : float
        Ends when costs of the simplex differ by less.
    parts : int
        Rows to a voxel along each of two axes.

    Returns
    -------
    x : ndarray of shape (n, 9)
        The best found.
    costs : ndarray of shape (n,)
        Minus the logarithms of their objectives, and penalties.
    boxes : ndarray of shape (n, 5, 3)
        Center, sides, and the three rows of the rotation.

    References
    ----------
    Gao and Han, Computational Optimization and Applications 51:259–277, 2012.
    """
    n = len(x0)
    found = x0.copy()
    costs = np.empty(n)
    boxes = np.empty((n, 5, 3))
    nodes = np.empty((4, 4096))
    box = np.empty((6, 3))
    work = np.empty((2, 3, 3))
    simplex = np.empty((10, 9))
    values = np.empty(10)
    middle = np.empty(9)
    trial = np.empty(9)
    second = np.empty(9)
    for s in range(n):
        kind = kinds[s]
        d = 6 if kind == 0 else (7 if kind <= 3 else (8 if kind <= 6 else 9))
        base = bases[s]
        origin = origins[s]
        grow = 1.0 + 2.0 / d
        shrink = 0.75 - 0.5 / d
        all_shrink = 1.0 - 1.0 / d
        for v in range(d + 1):
            simplex[v] = x0[s]
            if v > 0:
                simplex[v, v - 1] += steps[(v - 1) // 3]
            values[v] = _cost(
                simplex[v], kind, base, origin, grid, forbidden, margins, low, high, limits, parts, nodes, box, work
            )
        used = d + 1
        while True:
            best = 0
            worst = 0
            for v in range(1, d + 1):
                if values[v] < values[best]:
                    best = v
                if values[v] >= values[worst]:
                    worst = v
            if used >= n_evals or values[worst] - values[best] < tolerance or values[best] < 1e-6:
                break
            next_worst = best
            for v in range(d + 1):
                if v != worst and values[v] > values[next_worst]:
                    next_worst = v
            for p in range(d):
                total = 0.0
                for v in range(d + 1):
                    if v != worst:
                        total += simplex[v, p]
                middle[p] = total / d
            for p in range(9):
                trial[p] = 2.0 * middle[p] - simplex[worst, p] if p < d else x0[s, p]
                second[p] = x0[s, p]
            value = _cost(
                trial, kind, base, origin, grid, forbidden, margins, low, high, limits, parts, nodes, box, work
            )
            used += 1
            if value < values[best]:
                for p in range(d):
                    second[p] = middle[p] + grow * (trial[p] - middle[p])
                farther = _cost(
                    second, kind, base, origin, grid, forbidden, margins, low, high, limits, parts, nodes, box, work
                )
                used += 1
                if farther < value:
                    simplex[worst] = second
                    values[worst] = farther
                else:
                    simplex[worst] = trial
                    values[worst] = value
                continue
            if value < values[next_worst]:
                simplex[worst] = trial
                values[worst] = value
                continue
            outside = value < values[worst]
            for p in range(d):
                toward = trial[p] if outside else simplex[worst, p]
                second[p] = middle[p] + shrink * (toward - middle[p])
            nearer = _cost(
                second, kind, base, origin, grid, forbidden, margins, low, high, limits, parts, nodes, box, work
            )
            used += 1
            if nearer < (value if outside else values[worst]):
                simplex[worst] = second
                values[worst] = nearer
                continue
            for v in range(d + 1):
                if v != best:
                    for p in range(d):
                        simplex[v, p] = simplex[best, p] + all_shrink * (simplex[v, p] - simplex[best, p])
                    values[v] = _cost(
                        simplex[v],
                        kind,
                        base,
                        origin,
                        grid,
                        forbidden,
                        margins,
                        low,
                        high,
                        limits,
                        parts,
                        nodes,
                        box,
                        work,
                    )
                    used += 1
        found[s] = simplex[best]
        costs[s] = values[best]
        _pose(found[s], kind, base, origin, limits, box[0], box[1], box[3:6], work)
        boxes[s, 0] = box[0]
        boxes[s, 1] = box[1]
        boxes[s, 2:5] = box[3:6]
    return found, costs, boxes


@njit(cache=True, nogil=True)
def average_rows(prefix, rows, columns):
    """
    Average running sums over blocks of rows, for a quick first search.

    Parameters
    ----------
    prefix : ndarray of float32, shape (a, b, c + 1)
        As `running_sums` gives it.
    rows, columns : int
        How many to average along the first and the second axis; what is missing at the end counts as empty.

    Returns
    -------
    ndarray of float32, shape (ceil(a / rows), ceil(b / columns), c + 1)
        The averages.
    """
    a, b, c = prefix.shape
    out = np.zeros(((a + rows - 1) // rows, (b + columns - 1) // columns, c), dtype=np.float32)
    weight = np.float32(1.0 / (rows * columns))
    for i in range(a):
        for j in range(b):
            target = out[i // rows, j // columns]
            source = prefix[i, j]
            for k in range(c):
                target[k] += source[k]
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            for k in range(c):
                out[i, j, k] *= weight
    return out


@njit(cache=True, nogil=True)
def scan(prefix, depth, edges, volume_element, limits, stride, largest):
    """
    Score boxes along the image's axes at every block: the best sides for each place.

    Parameters
    ----------
    prefix : ndarray of float32, shape (a, b, c + 1)
        Running sums of blocks of rows.
    depth : int
        How many voxels along the last axis make a block.
    edges : ndarray of shape (3,)
        Edges of a block in mm.
    volume_element : float
        Volume of a block in mm³.
    limits : ndarray of shape (13,)
        As in `descend`.
    stride : int
        Only every so many blocks.
    largest : float
        Longest side that is tried, in mm.

    Returns
    -------
    places : ndarray of shape (n, 3)
        Middles of boxes in units of blocks, the first block from 0 to 1.
    sides : ndarray of shape (n, 3)
        In blocks.
    costs : ndarray of shape (n,)
        Minus the logarithm of the objective; boxes deep in the tumor a little less.
    """
    a, b, c = prefix.shape
    layers = (c - 1 + depth - 1) // depth
    sums = np.zeros((a + 1, b + 1, layers + 1))
    for i in range(a):
        for j in range(b):
            for k in range(1, layers + 1):
                here = prefix[i, j, min(k * depth, c - 1)] / depth
                sums[i + 1, j + 1, k] = here + sums[i, j + 1, k] + sums[i + 1, j, k] - sums[i, j, k]
    shapes = np.empty((4096, 3), dtype=np.int64)
    n_shapes = 0
    least = max(limits[5], 0.08 * limits[0]) * 0.8
    most = max(2.0 * limits[0], 1.4 * limits[5])
    first = np.empty(3, dtype=np.int64)
    last = np.empty(3, dtype=np.int64)
    for x in range(3):
        first[x] = max(1, int(np.ceil(np.exp(limits[6]) / edges[x] - 0.5)))
        last[x] = max(first[x], int(min(np.exp(limits[9]), largest) / edges[x] + 0.5))
    i = first[0]
    while i <= last[0]:
        j = first[1]
        while j <= last[1]:
            k = first[2]
            while k <= last[2]:
                volume = i * j * k * volume_element
                if least <= volume <= most and n_shapes < 4096:
                    shapes[n_shapes, 0] = i
                    shapes[n_shapes, 1] = j
                    shapes[n_shapes, 2] = k
                    n_shapes += 1
                k += max(1, k // 4)
            j += max(1, j // 4)
        i += max(1, i // 4)
    size = ((a + stride - 1) // stride) * ((b + stride - 1) // stride) * ((layers + stride - 1) // stride)
    places = np.empty((size, 3))
    sides = np.empty((size, 3))
    costs = np.empty(size)
    n = 0
    for i in range(stride // 2, a, stride):
        for j in range(stride // 2, b, stride):
            for k in range(stride // 2, layers, stride):
                best = 1e300
                chosen = -1
                for s in range(n_shapes):
                    i0 = i - shapes[s, 0] // 2
                    j0 = j - shapes[s, 1] // 2
                    k0 = k - shapes[s, 2] // 2
                    i1 = min(i0 + shapes[s, 0], a)
                    j1 = min(j0 + shapes[s, 1], b)
                    k1 = min(k0 + shapes[s, 2], layers)
                    i0 = max(i0, 0)
                    j0 = max(j0, 0)
                    k0 = max(k0, 0)
                    held = (
                        sums[i1, j1, k1]
                        - sums[i0, j1, k1]
                        - sums[i1, j0, k1]
                        - sums[i1, j1, k0]
                        + sums[i0, j0, k1]
                        + sums[i0, j1, k0]
                        + sums[i1, j0, k0]
                        - sums[i0, j0, k0]
                    )
                    total = shapes[s, 0] * shapes[s, 1] * shapes[s, 2]
                    above = (held / total - limits[2]) / limits[3]
                    if limits[4] > 0.0 and above > 0.0:
                        above = 0.0
                    missing = (held * volume_element - limits[0]) / limits[1]
                    cost = 0.5 * (above * above + missing * missing)
                    if cost < best:
                        best = cost
                        chosen = s
                if chosen < 0:
                    continue
                i0 = max(i - shapes[chosen, 0] // 2 - 2, 0)
                j0 = max(j - shapes[chosen, 1] // 2 - 2, 0)
                k0 = max(k - shapes[chosen, 2] // 2 - 2, 0)
                i1 = min(i - shapes[chosen, 0] // 2 + shapes[chosen, 0] + 2, a)
                j1 = min(j - shapes[chosen, 1] // 2 + shapes[chosen, 1] + 2, b)
                k1 = min(k - shapes[chosen, 2] // 2 + shapes[chosen, 2] + 2, layers)
                held = (
                    sums[i1, j1, k1]
                    - sums[i0, j1, k1]
                    - sums[i1, j0, k1]
                    - sums[i1, j1, k0]
                    + sums[i0, j0, k1]
                    + sums[i0, j1, k0]
                    + sums[i1, j0, k0]
                    - sums[i0, j0, k0]
                )
                total = (shapes[chosen, 0] + 4) * (shapes[chosen, 1] + 4) * (shapes[chosen, 2] + 4)
                costs[n] = best - 0.05 * held / total
                for x in range(3):
                    sides[n, x] = shapes[chosen, x]
                places[n, 0] = i - shapes[chosen, 0] // 2 + 0.5 * shapes[chosen, 0]
                places[n, 1] = j - shapes[chosen, 1] // 2 + 0.5 * shapes[chosen, 1]
                places[n, 2] = k - shapes[chosen, 2] // 2 + 0.5 * shapes[chosen, 2]
                n += 1
    return places[:n], sides[:n], costs[:n]


@njit(cache=True, nogil=True)
def costs_of(x, origin, grid, forbidden, margins, low, high, limits, parts):
    """
    Evaluate what `descend` minimizes, for freely turned boxes.

    Parameters
    ----------
    x : ndarray of shape (n, 9)
        Shifts in mm, logarithms of sides in mm, rotation vectors in radians.
    origin : ndarray of shape (3,)
        Center to start from, in mm.
    grid, forbidden, margins, low, high, limits, parts
        As in `descend`.

    Returns
    -------
    ndarray of shape (n,)
        Minus the logarithms of the objective, and penalties.
    """
    nodes = np.empty((4, 4096))
    box = np.empty((6, 3))
    work = np.empty((2, 3, 3))
    base = np.eye(3)
    out = np.empty(len(x))
    for n in range(len(x)):
        out[n] = _cost(x[n], 7, base, origin, grid, forbidden, margins, low, high, limits, parts, nodes, box, work)
    return out
