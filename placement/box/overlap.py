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
            d0 = (
                a[v, 0] * normals[p, 0]
                + a[v, 1] * normals[p, 1]
                + a[v, 2] * normals[p, 2]
                - limits[p]
            )
            d1 = (
                a[w, 0] * normals[p, 0]
                + a[w, 1] * normals[p, 1]
                + a[w, 2] * normals[p, 2]
                - limits[p]
            )
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
    """Compute the volume that two boxes share."""
    origin = np.zeros(3)
    half_a = 0.5 * size_a * (1.0 - SHRINK)
    half_b = 0.5 * size_b
    shift = center_b - center_a
    if np.sqrt(np.sum(shift * shift)) > np.sqrt(np.sum(half_a * half_a)) + np.sqrt(
        np.sum(half_b * half_b)
    ):
        return 0.0
    normals_a, limits_a = _planes(origin, half_a, rotation_a)
    normals_b, limits_b = _planes(shift, half_b, rotation_b)
    total = _surface(origin, half_a, rotation_a, normals_b, limits_b)
    total += _surface(shift, half_b, rotation_b, normals_a, limits_a)
    return max(0.0, total / 3.0) / (1.0 - SHRINK) ** 3


@njit(cache=True, nogil=True)
def running_sums(volume):
    """
    Sum a volume along its last axis, with empty rows around it.

    Shapes: `volume` (a, b, c); returns (a + 2, b + 2, c + 1).
    """
    a, b, c = volume.shape
    out = np.zeros((a + 2, b + 2, c + 1), dtype=np.float32)
    for i in range(a):
        for j in range(b):
            total = 0.0
            for k in range(c):
                total += volume[i, j, k]
                out[i + 1, j + 1, k + 1] = total
    return out


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def integrate(prefix, rows, row_widths, columns, column_widths, step, start, half):
    """
    Integrate a volume over a box along the last index.

    Shapes: `prefix` (a, b, c), `columns`, `column_widths` (m,).
    """
    a, b, c = prefix.shape
    # A slope of 0 is given a direction, so that a face which a row runs along is met far away.
    f0 = -1.0 / (step[0, 2] if abs(step[0, 2]) > 1e-12 else 1e-12)
    f1 = -1.0 / (step[1, 2] if abs(step[1, 2]) > 1e-12 else 1e-12)
    f2 = -1.0 / (step[2, 2] if abs(step[2, 2]) > 1e-12 else 1e-12)
    r0 = abs(half[0] * f0)
    r1 = abs(half[1] * f1)
    r2 = abs(half[2] * f2)
    s0 = step[0, 1] * f0
    s1 = step[1, 1] * f1
    s2 = step[2, 1] * f2
    # Three intervals on a line have a common part if each two have: that bounds the columns which meet the box.
    far01 = 1.0 / (s0 - s1) if abs(s0 - s1) > 1e-12 else 1e12
    far02 = 1.0 / (s0 - s2) if abs(s0 - s2) > 1e-12 else 1e12
    far12 = 1.0 / (s1 - s2) if abs(s1 - s2) > 1e-12 else 1e12
    filled = 0.0
    total = 0.0
    top = c - 1.0
    last_cell = c - 2.0
    last_column = b - 0.5
    n_columns = len(columns)
    values = prefix.ravel()
    one_more = np.uint64(1)
    for n in range(len(rows)):
        b0 = (start[0] + step[0, 0] * rows[n]) * f0 + 0.5
        b1 = (start[1] + step[1, 0] * rows[n]) * f1 + 0.5
        b2 = (start[2] + step[2, 0] * rows[n]) * f2 + 0.5
        m01 = (b1 - b0) * far01
        m02 = (b2 - b0) * far02
        m12 = (b2 - b1) * far12
        w01 = abs((r0 + r1) * far01)
        w02 = abs((r0 + r2) * far02)
        w12 = abs((r1 + r2) * far12)
        first = max(m01 - w01, max(m02 - w02, m12 - w12))
        last = min(m01 + w01, min(m02 + w02, m12 + w12))
        m = 0
        while m < n_columns and columns[m] < first:
            m += 1
        end = n_columns
        while end > m and columns[end - 1] > last:
            end -= 1
        i = np.int64(min(max(rows[n] + 0.5, 0.0), a - 0.5)) * b
        row_filled = 0.0
        row_total = 0.0
        # No branches and unsigned indices, so that several columns are done at once.
        for q in range(m, end):
            v = columns[q]
            m0 = b0 + s0 * v
            m1 = b1 + s1 * v
            m2 = b2 + s2 * v
            low = max(m0 - r0, max(m1 - r1, m2 - r2))
            high = max(low, min(m0 + r0, min(m1 + r1, m2 + r2)))
            row_total += column_widths[q] * (high - low)
            low = min(max(low, 0.0), top)
            high = min(max(high, 0.0), top)
            at = (i + np.int64(min(max(v + 0.5, 0.0), last_column))) * c
            whole = np.int64(min(low, last_cell))
            k = np.uint64(at + whole)
            one = values[k] + (low - whole) * (values[k + one_more] - values[k])
            whole = np.int64(min(high, last_cell))
            k = np.uint64(at + whole)
            two = values[k] + (high - whole) * (values[k + one_more] - values[k])
            row_filled += column_widths[q] * (two - one)
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
def _fraction(prefix, matrix, inverse, offset, center, rotation, half, parts, nodes, step, start):
    """Part of a box that a volume fills, with `parts` rows to a voxel; the last three arguments are for work."""
    for x in range(3):
        start[x] = 0.0
        for y in range(3):
            start[x] += rotation[y, x] * (offset[y] - center[y])
            step[x, y] = (
                rotation[0, x] * matrix[0, y]
                + rotation[1, x] * matrix[1, y]
                + rotation[2, x] * matrix[2, y]
            )
    n = 0
    m = 0
    for a in range(2):
        middle = 0.0
        reach = 0.0
        for y in range(3):
            middle += inverse[a, y] * (center[y] - offset[y])
            direction = 0.0
            for z in range(3):
                direction += inverse[a, z] * rotation[z, y]
            reach += abs(direction) * half[y]
        n, m = m, _strips(middle, reach, parts, nodes[2 * a], nodes[2 * a + 1])
    filled, total = integrate(
        prefix, nodes[0, :n], nodes[1, :n], nodes[2, :m], nodes[3, :m], step, start, half
    )
    return filled / total if total > 0.0 else 0.0


@njit(cache=True, nogil=True)
def fraction(grid, center, rotation, half, parts):
    """Compute which part of a box a volume fills."""
    prefix, matrix, inverse, offset = grid
    nodes = np.empty((4, 4096))
    return _fraction(
        prefix,
        matrix,
        inverse,
        offset,
        center,
        rotation,
        half,
        parts,
        nodes,
        np.empty((3, 3)),
        np.empty(3),
    )


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
                    work[0, a, 0] * work[1, 0, b]
                    + work[0, a, 1] * work[1, 1, b]
                    + work[0, a, 2] * work[1, 2, b]
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
                rotation[a, b] = (
                    base[a, 0] * work[0, 0, b]
                    + base[a, 1] * work[0, 1, b]
                    + base[a, 2] * work[0, 2, b]
                )
    return excess


@njit(cache=True, nogil=True)
def _outside(grid, center, rotation, half, low, high):
    """How far a box reaches beyond an image, in mm, summed over its faces."""
    _, matrix, inverse, offset = grid
    total = 0.0
    radius = half[0] * half[0] + half[1] * half[1] + half[2] * half[2]
    for a in range(3):
        middle = 0.0
        length = 0.0
        for y in range(3):
            middle += inverse[a, y] * (center[y] - offset[y])
            length += inverse[a, y] * inverse[a, y]
        near = min(middle - low[a], high[a] - middle)
        if near > 0.0 and near * near > length * radius:
            continue
        reach = 0.0
        edge = 0.0
        for y in range(3):
            edge += matrix[y, a] ** 2
            direction = 0.0
            for z in range(3):
                direction += inverse[a, z] * rotation[z, y]
            reach += abs(direction) * half[y]
        total += (
            max(0.0, low[a] - middle + reach) + max(0.0, middle + reach - high[a])
        ) * np.sqrt(edge)
    return total


@njit(cache=True, nogil=True)
def _cost(x, frame, grid, forbidden, margins, low, high, limits, work):
    """Minus the logarithm of the objective, and penalties for constraints that are broken."""
    kind, base, origin = frame
    nodes, box, turns = work
    center = box[0]
    size = box[1]
    half = box[2]
    rotation = box[3:6]
    excess = _pose(x, kind, base, origin, limits, center, size, rotation, turns)
    volume = size[0] * size[1] * size[2]
    for a in range(3):
        half[a] = 0.5 * size[a]
    prefix, matrix, inverse, offset = grid
    part = _fraction(
        prefix, matrix, inverse, offset, center, rotation, half, 1, nodes, turns[0], box[6]
    )
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
                half[a] = 0.5 * size[a] + margins[m, 0]
            touched = _fraction(
                sums[m], matrix, inverse, place, center, rotation, half, 1, nodes, turns[0], box[6]
            )
            if touched > margins[m, 1]:
                cost += limits[12] * (0.1 + 100.0 * (touched - margins[m, 1]))
    return cost


@njit(cache=True, nogil=True)
def _improve(
    simplex,
    values,
    d,
    used,
    until,
    tolerance,
    frame,
    grid,
    forbidden,
    margins,
    low,
    high,
    limits,
    work,
):
    """Move a simplex until so many evaluations are used; gives that number, or -1 where it has converged."""
    points = work[3]
    middle = points[0]
    trial = points[1]
    second = points[2]
    grow = 1.0 + 2.0 / d
    shrink = 0.75 - 0.5 / d
    all_shrink = 1.0 - 1.0 / d
    cost_work = work[:3]
    trial[:] = simplex[0]
    second[:] = simplex[0]
    while used < until:
        best = 0
        worst = 0
        for v in range(1, d + 1):
            if values[v] < values[best]:
                best = v
            if values[v] >= values[worst]:
                worst = v
        if values[worst] - values[best] < tolerance or values[best] < 1e-6:
            return -1
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
            trial[p] = 2.0 * middle[p] - simplex[worst, p]
        value = _cost(trial, frame, grid, forbidden, margins, low, high, limits, cost_work)
        used += 1
        if values[best] <= value < values[next_worst]:
            simplex[worst] = trial
            values[worst] = value
            continue
        # Farther where this way is the best so far, nearer where it is bad.
        better = value < values[best]
        outside = value < values[worst]
        for p in range(d):
            toward = trial[p] if outside else simplex[worst, p]
            second[p] = middle[p] + (grow if better else shrink) * (toward - middle[p])
        other = _cost(second, frame, grid, forbidden, margins, low, high, limits, cost_work)
        used += 1
        if better and value <= other:
            simplex[worst] = trial
            values[worst] = value
        elif better or other < min(value, values[worst]):
            simplex[worst] = second
            values[worst] = other
        else:
            for v in range(d + 1):
                if v != best:
                    for p in range(d):
                        simplex[v, p] = simplex[best, p] + all_shrink * (
                            simplex[v, p] - simplex[best, p]
                        )
                    values[v] = _cost(
                        simplex[v], frame, grid, forbidden, margins, low, high, limits, cost_work
                    )
                    used += 1
    return used


@njit(cache=True, nogil=True)
def descend(
    x0,
    kinds,
    bases,
    origins,
    grid,
    forbidden,
    margins,
    low,
    high,
    limits,
    steps,
    rounds,
    tolerance,
):
    """
    Improve boxes by the simplex method of Nelder and Mead, with coefficients that depend on the
    dimension.

    Shapes: `x0` (n, 9), `bases` (n, 3, 3), `origins` (n, 3), `margins` (m, 2), `limits` (13,),
    `rounds` (r, 2); returns x (n, 9), boxes (n, 5, 3).

    References
    ----------
    Gao and Han, Computational Optimization and Applications 51:259–277, 2012.
    """
    n = len(x0)
    found = np.empty((n, 9))
    costs = np.zeros(n)
    boxes = np.empty((n, 5, 3))
    box = np.empty((7, 3))
    work = np.empty((4, 4096)), box, np.empty((2, 3, 3)), np.empty((3, 9))
    simplices = np.empty((n, 10, 9))
    values = np.full((n, 10), 1e300)
    used = np.zeros(n, dtype=np.int64)
    for r in range(len(rounds)):
        order = np.argsort(costs, kind="mergesort")
        for s in order[: rounds[r, 0]]:
            if used[s] < 0:
                continue
            kind = kinds[s]
            d = 6 if kind == 0 else (7 if kind <= 3 else (8 if kind <= 6 else 9))
            frame = kind, bases[s], origins[s]
            if r == 0:
                for v in range(d + 1):
                    simplices[s, v] = x0[s]
                    if v > 0:
                        simplices[s, v, v - 1] += steps[(v - 1) // 3]
                    values[s, v] = _cost(
                        simplices[s, v],
                        frame,
                        grid,
                        forbidden,
                        margins,
                        low,
                        high,
                        limits,
                        work[:3],
                    )
                used[s] = d + 1
            used[s] = _improve(
                simplices[s],
                values[s],
                d,
                used[s],
                rounds[r, 1],
                tolerance,
                frame,
                grid,
                forbidden,
                margins,
                low,
                high,
                limits,
                work,
            )
            costs[s] = values[s].min()
    for s in range(n):
        found[s] = simplices[s, values[s].argmin()]
        _pose(found[s], kinds[s], bases[s], origins[s], limits, box[0], box[1], box[3:6], work[2])
        boxes[s, 0] = box[0]
        boxes[s, 1] = box[1]
        boxes[s, 2:5] = box[3:6]
    return found, costs, boxes


@njit(cache=True, nogil=True)
def average_rows(prefix, rows, columns):
    """
    Average running sums over blocks of rows, for a quick first search.

    Shapes: `prefix` (a + 2, b + 2, c + 1); returns (ceil(a / rows).
    """
    a, b, c = prefix.shape
    out = np.zeros(((a - 3) // rows + 3, (b - 3) // columns + 3, c), dtype=np.float32)
    weight = np.float32(1.0 / (rows * columns))
    for i in range(1, a - 1):
        for j in range(1, b - 1):
            target = out[(i - 1) // rows + 1, (j - 1) // columns + 1]
            source = prefix[i, j]
            for k in range(c):
                target[k] += weight * source[k]
    return out


@njit(cache=True, nogil=True)
def _shapes(edges, volume_element, limits, largest):
    """List the sides in blocks, of boxes whose volumes may do; the list is at most 4096 long."""
    shapes = np.empty((4096, 3), dtype=np.int64)
    n = 0
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
                if least <= volume <= most and n < 4096:
                    shapes[n, 0] = i
                    shapes[n, 1] = j
                    shapes[n, 2] = k
                    n += 1
                k += max(1, k // 4)
            j += max(1, j // 4)
        i += max(1, i // 4)
    return shapes[:n]


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def scan(prefix, depth, edges, volume_element, limits, stride, largest):
    """
    Score boxes along the image's axes at every block: the best sides for each place.

    Shapes: `prefix` (a + 2, b + 2, c + 1), `limits` (13,); returns places (n, 3), sides (n, 3).
    """
    a = prefix.shape[0] - 2
    b = prefix.shape[1] - 2
    c = prefix.shape[2]
    layers = (c - 1 + depth - 1) // depth
    shapes = _shapes(edges, volume_element, limits, largest)
    # Beyond the ends the sums stay as they are, so that boxes need no clipping along the last axis.
    pad = 3
    for s in range(len(shapes)):
        pad = max(pad, shapes[s, 2] + 3)
    sums = np.zeros((a + 1, b + 1, layers + 1 + 2 * pad), dtype=np.float32)
    for i in range(a):
        for j in range(b):
            for k in range(1, layers + 1):
                here = prefix[i + 1, j + 1, min(k * depth, c - 1)] / np.float32(depth)
                sums[i + 1, j + 1, pad + k] = (
                    here + sums[i, j + 1, pad + k] + sums[i + 1, j, pad + k] - sums[i, j, pad + k]
                )
            sums[i + 1, j + 1, pad + layers + 1 :] = sums[i + 1, j + 1, pad + layers]
    n_rows = len(range(stride // 2, a, stride)) * len(range(stride // 2, b, stride))
    places = np.empty((n_rows * layers, 3))
    sides = np.empty((n_rows * layers, 3))
    costs = np.empty(n_rows * layers)
    row = np.empty(layers, dtype=np.float32)
    best = np.empty(layers, dtype=np.float32)
    chosen = np.empty(layers, dtype=np.int32)
    line = sums.shape[2]
    values = sums.ravel()
    wanted_part = np.float32(limits[2] / limits[3])
    wanted_volume = np.float32(limits[0] / limits[1])
    to_volume = np.float32(volume_element / limits[1])
    highest = np.float32(0.0 if limits[4] > 0.0 else 1e30)
    n = 0
    for i in range(stride // 2, a, stride):
        for j in range(stride // 2, b, stride):
            best[:] = np.float32(1e30)
            for s in range(len(shapes)):
                i0 = max(i - shapes[s, 0] // 2, 0)
                j0 = max(j - shapes[s, 1] // 2, 0)
                i1 = min(i - shapes[s, 0] // 2 + shapes[s, 0], a)
                j1 = min(j - shapes[s, 1] // 2 + shapes[s, 1], b)
                k0 = pad - shapes[s, 2] // 2
                across = shapes[s, 2]
                v00 = np.uint64((i0 * (b + 1) + j0) * line + k0)
                v01 = np.uint64((i0 * (b + 1) + j1) * line + k0)
                v10 = np.uint64((i1 * (b + 1) + j0) * line + k0)
                v11 = np.uint64((i1 * (b + 1) + j1) * line + k0)
                far = np.uint64(across)
                to_part = np.float32(1.0 / (limits[3] * shapes[s, 0] * shapes[s, 1] * across))
                for k in range(layers):
                    q = np.uint64(k)
                    held = (
                        (values[v11 + far + q] - values[v01 + far + q])
                        - (values[v10 + far + q] - values[v00 + far + q])
                        - (values[v11 + q] - values[v01 + q])
                        + (values[v10 + q] - values[v00 + q])
                    )
                    above = min(held * to_part - wanted_part, highest)
                    missing = held * to_volume - wanted_volume
                    cost = above * above + missing * missing
                    row[k] = cost
                for k in range(layers):
                    if row[k] < best[k]:
                        best[k] = row[k]
                        chosen[k] = s
            for k in range(layers):
                if best[k] > 1e29:
                    continue
                s = chosen[k]
                low_i = i - shapes[s, 0] // 2
                low_j = j - shapes[s, 1] // 2
                low_k = k - shapes[s, 2] // 2
                i0 = max(low_i - 2, 0)
                j0 = max(low_j - 2, 0)
                i1 = min(low_i + shapes[s, 0] + 2, a)
                j1 = min(low_j + shapes[s, 1] + 2, b)
                k0 = pad + low_k - 2
                k1 = pad + low_k + shapes[s, 2] + 2
                held = (
                    (sums[i1, j1, k1] - sums[i0, j1, k1])
                    - (sums[i1, j0, k1] - sums[i0, j0, k1])
                    - (sums[i1, j1, k0] - sums[i0, j1, k0])
                    + (sums[i1, j0, k0] - sums[i0, j0, k0])
                )
                total = (shapes[s, 0] + 4) * (shapes[s, 1] + 4) * (shapes[s, 2] + 4)
                costs[n] = 0.5 * best[k] - 0.05 * held / total
                places[n, 0] = low_i + 0.5 * shapes[s, 0]
                places[n, 1] = low_j + 0.5 * shapes[s, 1]
                places[n, 2] = low_k + 0.5 * shapes[s, 2]
                for x in range(3):
                    sides[n, x] = shapes[s, x]
                n += 1
    return places[:n], sides[:n], costs[:n]


@njit(cache=True, nogil=True)
def apart(points, order, n, distance):
    """
    Choose points that lie apart.

    Shapes: `points` (m, d), `order` (m,).
    """
    kept = np.empty(n, dtype=np.int64)
    m = 0
    for index in order:
        free = True
        for k in range(m):
            total = 0.0
            for x in range(points.shape[1]):
                total += (points[index, x] - points[kept[k], x]) ** 2
            if total <= distance * distance:
                free = False
                break
        if free:
            kept[m] = index
            m += 1
            if m == n:
                break
    return kept[:m]


@njit(cache=True, nogil=True)
def distinct(boxes, order, n, difference):
    """
    Choose boxes that differ in center or sides.

    Shapes: `boxes` (m, 5, 3), `order` (m,).
    """
    kept = np.empty(n, dtype=np.int64)
    m = 0
    for index in order:
        free = True
        for k in range(m):
            if np.abs(boxes[index, :2] - boxes[kept[k], :2]).max() <= difference:
                free = False
                break
        if free:
            kept[m] = index
            m += 1
            if m == n:
                break
    return kept[:m]


@njit(cache=True, nogil=True)
def fractions(boxes, grid, grow, parts):
    """
    Compute which parts of boxes a volume fills.

    Shapes: `boxes` (n, 5, 3).
    """
    prefix, matrix, inverse, offset = grid
    nodes = np.empty((4, 4096))
    work = np.empty((5, 3))
    out = np.empty(len(boxes))
    for n in range(len(boxes)):
        center = boxes[n, 0]
        for x in range(3):
            work[4, x] = 0.5 * boxes[n, 1, x] + grow
        out[n] = _fraction(
            prefix,
            matrix,
            inverse,
            offset,
            center,
            boxes[n, 2:5],
            work[4],
            parts,
            nodes,
            work[:3],
            work[3],
        )
    return out


@njit(cache=True, nogil=True)
def costs_of(x, kinds, bases, origins, grid, forbidden, margins, low, high, limits):
    """Evaluate what `descend` minimizes."""
    work = np.empty((4, 4096)), np.empty((7, 3)), np.empty((2, 3, 3))
    out = np.empty(len(x))
    for n in range(len(x)):
        frame = kinds[n], bases[n], origins[n]
        out[n] = _cost(x[n], frame, grid, forbidden, margins, low, high, limits, work)
    return out
