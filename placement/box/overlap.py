"""Compiled code of the package: shared volumes of boxes, the objective, and its searches."""

# All of it is in this file: numba's cache on disk watches only the file of the function that it
# compiled, so a change of a function that is called from another file would pass unnoticed.
# No function is passed as an argument or closed over, so that the cache has each of them.
# Evaluations of one box make no arrays and do not count references to them (`_nrt`): counting took
# half of the time of those on few rows.

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dmrifit._utils.compiled import njit

#: The scan computes in single precision, everything else in double.
Number: TypeAlias = float | np.floating[Any]

#: One of two boxes shrinks by this when they are clipped, so that common faces count once.
SHRINK = 1e-9

#: Distance from the preferred center that adds the weight of a preference to the cost, in mm.
PREFERRED_MM = 10.0

#: What a longest side that is longer by a factor of 2.7 than allowed adds to the cost.
ELONGATION = 200.0

#: Sample points along each side of a face for gradients: the fewest and the most.
FACE_POINTS = (4, 24)

#: Line searches accept this part of the decrease that the slope promises, after so many trials.
ARMIJO, N_TRIALS = 1e-3, 5

#: No fraction deviates by so many standard deviations; `scan` must not compute with infinity.
NO_LIMIT = 1e30


class ObjectiveParameters(NamedTuple):
    """
    Numbers of the objective, with volumes in the unit of the volume that is scored.

    `largest_deviation` caps how many standard deviations above its mean a fraction counts: 0 for a
    one-sided objective, `NO_LIMIT` for another.
    """

    mean_volume: Number
    sd_volume: Number
    mean_fraction: Number
    sd_fraction: Number
    largest_deviation: Number


class Preference(NamedTuple):
    """
    Which of equally good boxes is taken: one near `center`, in mm, with similar sides.

    `weight` is what 10 mm from that center add to the cost, 0 where the objective alone counts.
    From `log_aspect` on, the logarithm of the longest side over the shortest adds to the cost.
    """

    weight: float
    center: NDArray[np.float64]
    log_aspect: float = NO_LIMIT


class Grid(NamedTuple):
    """Running sums of a volume along its rows, and where they lie; see `row_integrals.Rows`."""

    prefix: NDArray[np.float32]
    matrix: NDArray[np.float64]
    inverse: NDArray[np.float64]
    offset: NDArray[np.float64]


class Excluded(NamedTuple):
    """
    Running sums of regions to stay away from, on one grid.

    Shapes: `sums` (m, a, b, c); `margins` (m, 2), a margin in mm and the tolerated fraction.
    """

    sums: NDArray[np.float32]
    margins: NDArray[np.float64]
    matrix: NDArray[np.float64]
    inverse: NDArray[np.float64]
    offset: NDArray[np.float64]


class Problem(NamedTuple):
    """
    What a search minimizes: the objective and constraints of boxes.

    `low` and `high` are the ends of the image in indices of `grid`, `min_volume` is in mm³, sides
    are logarithms of mm. The objective is measured from `n_rows` rows to an image voxel along each
    of two axes.
    """

    grid: Grid
    excluded: Excluded
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    objective: ObjectiveParameters
    min_volume: float
    low_sides: NDArray[np.float64]
    high_sides: NDArray[np.float64]
    penalty: float
    preference: Preference
    n_rows: int


class Work(NamedTuple):
    """Arrays that the searches of one call reuse."""

    nodes: NDArray[np.float64]
    box: NDArray[np.float64]
    step: NDArray[np.float64]
    areas: NDArray[np.float64]
    moments: NDArray[np.float64]
    rows: NDArray[np.float64]


class SlideSettings(NamedTuple):
    """
    Settings of `slide`.

    `scale` (9,) are the largest steps of the nine numbers, `spacing` is the distance of sample
    points on faces in mm, `least_curvature` the curvature to start with in directions that leave
    the objective as it is, for numbers in units of `scale`.
    """

    scale: NDArray[np.float64]
    spacing: float
    n_steps: int
    tolerance: float
    least_curvature: float


# The one formula of the objective. It is inlined, so that each caller compiles it with its own
# flags; `PlacementObjective.cost` runs it as plain Python, for arrays, too.
@njit(inline="always")
def objective_cost(fraction, volume, objective):
    """Give minus the logarithm of the objective of a box: half the squares of its deviations."""
    fraction_deviation = (fraction - objective.mean_fraction) / objective.sd_fraction
    fraction_deviation = np.minimum(fraction_deviation, objective.largest_deviation)
    volume_deviation = (volume - objective.mean_volume) / objective.sd_volume
    return 0.5 * (volume_deviation**2 + fraction_deviation**2)


@njit(cache=True, nogil=True)
def _clipped_area(polygon, normals, limits):
    """Give the area of a convex polygon within six planes ``normal · x <= limit``."""
    # A plane adds at most one corner to a convex polygon: 4 corners and 6 planes give 10.
    corners = np.empty((16, 3))
    inside = np.empty((16, 3))
    n = len(polygon)
    corners[:n] = polygon
    for p in range(6):
        distances = (corners[:n] * normals[p]).sum(axis=1) - limits[p]
        m = 0
        for v in range(n):
            w = (v + 1) % n
            if distances[v] <= 0.0:
                inside[m] = corners[v]
                m += 1
            # Corners on the plane itself are no crossings, or they would be counted twice.
            if distances[v] * distances[w] < 0.0:
                share = distances[v] / (distances[v] - distances[w])
                inside[m] = corners[v] + share * (corners[w] - corners[v])
                m += 1
        n = m
        corners, inside = inside, corners
        if n < 3:
            return 0.0
    # A fan of triangles; their cross products add up even where the polygon is a sliver.
    total = np.zeros(3)
    for v in range(1, n - 1):
        total += np.cross(corners[v] - corners[0], corners[v + 1] - corners[0])
    return 0.5 * np.sqrt(np.sum(total * total))


@njit(cache=True, nogil=True)
def _surface(center, half, rotation, other_center, other_half, other_rotation):
    """Sum over a box's faces: distance of the plane to the origin times the area in a box."""
    normals = np.concatenate((other_rotation.T, -other_rotation.T))
    limits = (normals * other_center).sum(axis=1) + np.concatenate((other_half, other_half))
    total = 0.0
    corners = np.empty((4, 3))
    for axis in range(3):
        second = rotation[:, (axis + 1) % 3] * half[(axis + 1) % 3]
        third = rotation[:, (axis + 2) % 3] * half[(axis + 2) % 3]
        for sign in (1.0, -1.0):
            normal = sign * rotation[:, axis]
            middle = center + half[axis] * normal
            corners[0] = middle + second + third
            corners[1] = middle + second - third
            corners[2] = middle - second - third
            corners[3] = middle - second + third
            # By the divergence theorem a third of this sum over all faces is the enclosed volume.
            total += (middle * normal).sum() * _clipped_area(corners, normals, limits)
    return total


@njit(cache=True, nogil=True)
def box_intersection(center_a, size_a, rotation_a, center_b, size_b, rotation_b):
    """Compute the volume that two boxes share."""
    origin = np.zeros(3)
    half_a = 0.5 * size_a * (1.0 - SHRINK)
    half_b = 0.5 * size_b
    # Coordinates around the first box keep digits where both lie far from the scanner's center.
    shift = center_b - center_a
    # Boxes whose circumscribed spheres are disjoint need no clipping; most pairs are.
    if np.sqrt(np.sum(shift * shift)) > np.sqrt(np.sum(half_a * half_a)) + np.sqrt(
        np.sum(half_b * half_b)
    ):
        return 0.0
    total = _surface(origin, half_a, rotation_a, shift, half_b, rotation_b)
    total += _surface(shift, half_b, rotation_b, origin, half_a, rotation_a)
    return max(0.0, total / 3.0) / (1.0 - SHRINK) ** 3


@njit(cache=True, nogil=True)
def running_sums(volume):
    """
    Sum a volume along its last axis, with empty rows around it.

    Shapes: `volume` (a, b, c); returns (a + 2, b + 2, c + 1).
    """
    a, b, c = volume.shape
    # Empty rows on all sides spare `integrate` the test of whether a row lies in the volume.
    out = np.zeros((a + 2, b + 2, c + 1), dtype=np.float32)
    for i in range(a):
        for j in range(b):
            total = 0.0
            for k in range(c):
                total += volume[i, j, k]
                out[i + 1, j + 1, k + 1] = total
    return out


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy", _nrt=False)
def integrate(prefix, rows, row_widths, columns, column_widths, step, start, half):
    """
    Integrate a volume over a box along the last index.

    Shapes: `prefix` (a, b, c), `columns`, `column_widths` (m,).
    """
    a, b, c = prefix.shape
    # A slope of 0 gets a direction, so that a face which a row runs along is met far away.
    f0 = -1.0 / (step[0, 2] if abs(step[0, 2]) > 1e-12 else 1e-12)
    f1 = -1.0 / (step[1, 2] if abs(step[1, 2]) > 1e-12 else 1e-12)
    f2 = -1.0 / (step[2, 2] if abs(step[2, 2]) > 1e-12 else 1e-12)
    r0 = abs(half[0] * f0)
    r1 = abs(half[1] * f1)
    r2 = abs(half[2] * f2)
    s0 = step[0, 1] * f0
    s1 = step[1, 1] * f1
    s2 = step[2, 1] * f2
    # Three intervals on a line meet if each two meet: that bounds the columns which meet the box.
    far01 = 1.0 / (s0 - s1) if abs(s0 - s1) > 1e-12 else 1e12
    far02 = 1.0 / (s0 - s2) if abs(s0 - s2) > 1e-12 else 1e12
    far12 = 1.0 / (s1 - s2) if abs(s1 - s2) > 1e-12 else 1e12
    filled = 0.0
    total = 0.0
    top = c - 1.0
    last_cell = c - 2.0
    last_column = b - 0.5
    n_columns = len(columns)
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
        i = np.uint64(np.int64(min(max(rows[n] + 0.5, 0.0), a - 0.5)))
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
            j = np.uint64(np.int64(min(max(v + 0.5, 0.0), last_column)))
            whole = np.int64(min(low, last_cell))
            k = np.uint64(whole)
            below = prefix[i, j, k]
            sum_low = below + (low - whole) * (prefix[i, j, k + one_more] - below)
            whole = np.int64(min(high, last_cell))
            k = np.uint64(whole)
            below = prefix[i, j, k]
            sum_high = below + (high - whole) * (prefix[i, j, k + one_more] - below)
            row_filled += column_widths[q] * (sum_high - sum_low)
        filled += row_widths[n] * row_filled
        total += row_widths[n] * row_total
    return filled, total


@njit(cache=True, nogil=True, _nrt=False)
def _strips(middle, reach, n_rows, nodes, widths):
    """Divide an extent at borders of voxels, each piece into `n_rows`; returns their number."""
    n = 0
    low = middle - reach
    high = middle + reach
    border = np.floor(low + 0.5) + 0.5
    while low < high and n + n_rows <= len(nodes):
        # A strip never crosses a border of voxels, so that each row of nodes lies in one of them.
        end = min(border, high)
        if end > low:
            width = (end - low) / n_rows
            for p in range(n_rows):
                nodes[n] = low + (p + 0.5) * width
                widths[n] = width
                n += 1
        low = end
        border += 1.0
    return n


@njit(cache=True, nogil=True, _nrt=False)
def _middle(grid, axis, center):
    """Find where the center of a box lies along an axis of a grid, as an index."""
    middle = 0.0
    for y in range(3):
        middle += grid.inverse[axis, y] * (center[y] - grid.offset[y])
    return middle


@njit(cache=True, nogil=True, _nrt=False)
def _reach(grid, axis, rotation, half):
    """Find how far a box extends from its center along an axis of a grid, in indices."""
    reach = 0.0
    for y in range(3):
        direction = 0.0
        for z in range(3):
            direction += grid.inverse[axis, z] * rotation[z, y]
        reach += abs(direction) * half[y]
    return reach


@njit(cache=True, nogil=True, _nrt=False)
def _fraction(grid, center, rotation, half, n_rows, nodes, step, start):
    """Fraction of a box that a volume fills, by `n_rows` rows to a voxel; fills the last three."""
    matrix = grid.matrix
    for x in range(3):
        # From here on all is in the axes of the box, whose faces are at plus and minus `half`.
        start[x] = 0.0
        for y in range(3):
            start[x] += rotation[y, x] * (grid.offset[y] - center[y])
            step[x, y] = (
                rotation[0, x] * matrix[0, y]
                + rotation[1, x] * matrix[1, y]
                + rotation[2, x] * matrix[2, y]
            )
    middle = _middle(grid, 0, center)
    reach = _reach(grid, 0, rotation, half)
    n = _strips(middle, reach, n_rows, nodes[0], nodes[1])
    middle = _middle(grid, 1, center)
    reach = _reach(grid, 1, rotation, half)
    m = _strips(middle, reach, n_rows, nodes[2], nodes[3])
    filled, total = integrate(
        grid.prefix, nodes[0, :n], nodes[1, :n], nodes[2, :m], nodes[3, :m], step, start, half
    )
    # Divided by the volume of the same strips, not of the box, so that a full volume gives 1.
    return filled / total if total > 0.0 else 0.0


@njit(cache=True, nogil=True, _nrt=False)
def _pose(x, problem, center, size, rotation):
    """
    Turn the numbers of a search into a box of allowed sides; returns the penalty for clipping.

    The numbers are the center in mm, the logarithms of the sides, and the angles of
    `placement.box.voxel.CONVENTION` in radians.
    """
    excess = 0.0
    volume = 1.0
    for a in range(3):
        center[a] = x[a]
        allowed = min(max(x[3 + a], problem.low_sides[a]), problem.high_sides[a])
        excess += (x[3 + a] - allowed) ** 2
        size[a] = np.exp(allowed)
        volume *= size[a]
    for _ in range(3):
        # Sides at their limit cannot grow, so the others have to, which takes up to three rounds.
        if volume >= problem.min_volume:
            break
        factor = np.cbrt(problem.min_volume / volume) * (1.0 + 1e-12)
        excess += np.log(factor) ** 2
        volume = 1.0
        for a in range(3):
            size[a] = min(size[a] * factor, np.exp(problem.high_sides[a]))
            volume *= size[a]
    sa, ca = np.sin(x[6]), np.cos(x[6])
    sb, cb = np.sin(x[7]), np.cos(x[7])
    sc, cc = np.sin(x[8]), np.cos(x[8])
    rotation[0, 0] = cb * cc
    rotation[0, 1] = -cb * sc
    rotation[0, 2] = sb
    rotation[1, 0] = ca * sc + sa * sb * cc
    rotation[1, 1] = ca * cc - sa * sb * sc
    rotation[1, 2] = -sa * cb
    rotation[2, 0] = sa * sc - ca * sb * cc
    rotation[2, 1] = sa * cc + ca * sb * sc
    rotation[2, 2] = ca * cb
    return excess


@njit(cache=True, nogil=True, _nrt=False)
def _outside(problem, center, rotation, half, gradient):
    """
    How far a box reaches beyond an image, in mm, summed over its faces.

    Adds the slope of the penalty for it to `gradient` (9,), but for that by turns.
    """
    grid = problem.grid
    total = 0.0
    radius = np.sqrt(half[0] ** 2 + half[1] ** 2 + half[2] ** 2)
    for a in range(3):
        middle = _middle(grid, a, center)
        # Most boxes are clear of the face even with their corners turned toward it.
        largest = radius * np.sqrt(
            grid.inverse[a, 0] ** 2 + grid.inverse[a, 1] ** 2 + grid.inverse[a, 2] ** 2
        )
        if middle - largest > problem.low[a] and middle + largest < problem.high[a]:
            continue
        reach = _reach(grid, a, rotation, half)
        below = max(0.0, problem.low[a] - middle + reach)
        above = max(0.0, middle + reach - problem.high[a])
        if below + above == 0.0:
            continue
        edge = 0.0
        for y in range(3):
            edge += grid.matrix[y, a] ** 2
        edge = np.sqrt(edge)
        total += (below + above) * edge
        outward = (1.0 if above > 0.0 else 0.0) - (1.0 if below > 0.0 else 0.0)
        n_faces = (1.0 if above > 0.0 else 0.0) + (1.0 if below > 0.0 else 0.0)
        weight = problem.penalty * edge
        for y in range(3):
            direction = 0.0
            for z in range(3):
                direction += grid.inverse[a, z] * rotation[z, y]
            gradient[y] += weight * outward * grid.inverse[a, y]
            gradient[3 + y] += weight * n_faces * abs(direction) * half[y]
    return total


@njit(cache=True, nogil=True, _nrt=False)
def _elongation(size, log_aspect):
    """By how much the logarithm of the longest side over the shortest exceeds a limit."""
    longest = max(size[0], max(size[1], size[2]))
    shortest = min(size[0], min(size[1], size[2]))
    return max(0.0, np.log(longest / shortest) - log_aspect)


@njit(cache=True, nogil=True, _nrt=False)
def _preference_cost(center, size, preference):
    """Cost of a box far from the preferred center, or with unequal sides."""
    elongated = ELONGATION * _elongation(size, preference.log_aspect) ** 2
    if preference.weight == 0.0:
        return elongated
    mean = np.log(size[0] * size[1] * size[2]) / 3.0
    total = 0.0
    for a in range(3):
        total += ((center[a] - preference.center[a]) / PREFERRED_MM) ** 2
        total += (np.log(size[a]) - mean) ** 2
    return preference.weight * total + elongated


@njit(cache=True, nogil=True, _nrt=False)
def _scored(x, problem, work):
    """Cost and fraction of tumor of a box, which is left in `work`, as is the slope outside."""
    center = work.box[0]
    size = work.box[1]
    half = work.box[2]
    rotation = work.box[3:6]
    start = work.box[6]
    gradient = work.rows[0]
    excess = _pose(x, problem, center, size, rotation)
    volume = size[0] * size[1] * size[2]
    for a in range(3):
        half[a] = 0.5 * size[a]
    tumor_fraction = _fraction(
        problem.grid, center, rotation, half, problem.n_rows, work.nodes, work.step, start
    )
    cost = objective_cost(tumor_fraction, tumor_fraction * volume, problem.objective) + excess
    gradient[:] = 0.0
    beyond = _outside(problem, center, rotation, half, gradient)
    if beyond > 0.0:
        # The step of 0.1 makes a box that just touches worse than one that is just clear.
        cost += problem.penalty * (0.1 + beyond)
    excluded = problem.excluded
    margins = excluded.margins
    for m in range(len(margins)):
        for a in range(3):
            half[a] = 0.5 * size[a] + margins[m, 0]
        region = Grid(excluded.sums[m], excluded.matrix, excluded.inverse, excluded.offset)
        touched = _fraction(region, center, rotation, half, 1, work.nodes, work.step, start)
        if touched > margins[m, 1]:
            # A fraction of the box is small against mm, so it weighs a hundred times as much.
            cost += problem.penalty * (0.1 + 100.0 * (touched - margins[m, 1]))
    cost += _preference_cost(center, size, problem.preference)
    return cost, tumor_fraction


# Without fastmath: sums in another order, as code fresh from the compiler and code from its cache
# have them, would end the search at other digits.
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _face_sums(grid, center, rotation, half, spacing, areas, moments, middle, steps):
    """
    Integrate a volume over the faces of a box, from sample points about `spacing` mm apart.

    Fills `areas` (3, 2), by the axis of the box and its two ends, in mm², and `moments` (3, 2, 3),
    the integrals of the position in the box over each face, in mm³; changes the last two.
    """
    prefix = grid.prefix
    a_end, b_end, c_end = prefix.shape
    inverse = grid.inverse
    for a in range(3):
        # Half an index more, so that truncation rounds to the nearest row and layer.
        middle[a] = 0.5
        for y in range(3):
            middle[a] += inverse[a, y] * (center[y] - grid.offset[y])
        for b in range(3):
            steps[a, b] = 0.0
            for y in range(3):
                steps[a, b] += inverse[a, y] * rotation[y, b]
    for a in range(3):
        b = (a + 1) % 3
        c = (a + 2) % 3
        n_b = min(max(int(2.0 * half[b] / spacing + 0.5), FACE_POINTS[0]), FACE_POINTS[1])
        n_c = min(max(int(2.0 * half[c] / spacing + 0.5), FACE_POINTS[0]), FACE_POINTS[1])
        step_b = 2.0 * half[b] / n_b
        step_c = 2.0 * half[c] / n_c
        for end in range(2):
            out = half[a] if end == 0 else -half[a]
            total = 0.0
            total_b = 0.0
            total_c = 0.0
            for m in range(n_b):
                u = -half[b] + (m + 0.5) * step_b
                i0 = middle[0] + out * steps[0, a] + u * steps[0, b]
                j0 = middle[1] + out * steps[1, a] + u * steps[1, b]
                k0 = middle[2] + out * steps[2, a] + u * steps[2, b]
                line = 0.0
                line_c = 0.0
                for n in range(n_c):
                    v = -half[c] + (n + 0.5) * step_c
                    k = k0 + v * steps[2, c]
                    if not 0.0 <= k < c_end - 1.0:
                        continue
                    # Rows around the volume are empty.
                    i = np.int64(min(max(i0 + v * steps[0, c], 0.0), a_end - 0.5))
                    j = np.int64(min(max(j0 + v * steps[1, c], 0.0), b_end - 0.5))
                    cell = np.int64(k)
                    value = prefix[i, j, cell + 1] - prefix[i, j, cell]
                    line += value
                    line_c += value * v
                total += line
                total_b += line * u
                total_c += line_c
            element = step_b * step_c
            areas[a, end] = total * element
            moments[a, end, a] = out * total * element
            moments[a, end, b] = total_b * element
            moments[a, end, c] = total_c * element


@njit(cache=True, nogil=True)
def _gradient(x, tumor_fraction, free, problem, spacing, work):
    """
    Differentiate the cost of the box that `_scored` left in `work`; excluded regions are ignored.

    Fills the first of `work.rows` (4, 9) with the gradient, the others with those of the terms
    whose squares are added: the two deviations of the objective, and sides that differ too much.
    Tumor that a moving face takes in is the integral over that face. `free` (3,) is 1 for angles
    that are varied and else 0.
    """
    objective = problem.objective
    size = work.box[1]
    half = work.box[2]
    rotation = work.box[3:6]
    torque = work.box[6]
    volume = size[0] * size[1] * size[2]
    for a in range(3):
        half[a] = 0.5 * size[a]
    areas = work.areas
    moments = work.moments
    _face_sums(
        problem.grid, work.box[0], rotation, half, spacing, areas, moments, torque, work.step
    )
    gradient = work.rows[0]
    by_volume = work.rows[1]
    by_fraction = work.rows[2]
    by_volume[:] = 0.0
    torque[:] = 0.0
    for a in range(3):
        b = (a + 1) % 3
        c = (a + 2) % 3
        for y in range(3):
            by_volume[y] += rotation[y, a] * (areas[a, 0] - areas[a, 1])
        by_volume[3 + a] = half[a] * (areas[a, 0] + areas[a, 1])
        torque[b] += moments[a, 0, c] - moments[a, 1, c]
        torque[c] -= moments[a, 0, b] - moments[a, 1, b]
    # The first two angles turn the box about axes that the later ones have tilted in it.
    sb, cb = np.sin(x[7]), np.cos(x[7])
    sc, cc = np.sin(x[8]), np.cos(x[8])
    by_volume[6] = free[0] * (cb * (cc * torque[0] - sc * torque[1]) + sb * torque[2])
    by_volume[7] = free[1] * (sc * torque[0] + cc * torque[1])
    by_volume[8] = free[2] * torque[2]
    fraction_deviation = (tumor_fraction - objective.mean_fraction) / objective.sd_fraction
    fraction_scale = 1.0 / (objective.sd_fraction * volume)
    if fraction_deviation > objective.largest_deviation:
        fraction_deviation = objective.largest_deviation
        fraction_scale = 0.0
    volume_deviation = (tumor_fraction * volume - objective.mean_volume) / objective.sd_volume
    for p in range(9):
        of_box = volume if 3 <= p < 6 else 0.0
        by_fraction[p] = fraction_scale * (by_volume[p] - tumor_fraction * of_box)
        by_volume[p] /= objective.sd_volume
    _limit_sides(x, problem, work.rows)
    for p in range(9):
        gradient[p] += volume_deviation * by_volume[p] + fraction_deviation * by_fraction[p]
    _add_preference(work.box[0], size, problem.preference, work.rows)


@njit(cache=True, nogil=True)
def _limit_sides(x, problem, rows):
    """Drop slopes along sides that are clipped or scaled; add those of the penalty for it."""
    total = 0.0
    for a in range(3):
        allowed = min(max(x[3 + a], problem.low_sides[a]), problem.high_sides[a])
        total += allowed
        rows[0, 3 + a] += 2.0 * (x[3 + a] - allowed)
        if allowed != x[3 + a]:
            rows[1:3, 3 + a] = 0.0
    missing = np.log(problem.min_volume) - total if problem.min_volume > 0.0 else 0.0
    if missing > 0.0:
        # The sides are scaled to the least volume, so that only their ratios count.
        for q in range(1, 3):
            rows[q, 3:6] -= (rows[q, 3] + rows[q, 4] + rows[q, 5]) / 3.0
        rows[0, 3:6] -= 2.0 * missing / 9.0


@njit(cache=True, nogil=True, _nrt=False)
def _add_preference(center, size, preference, rows):
    """Add the slope of `_preference_cost`; the last of `rows` is for too different sides."""
    gradient = rows[0]
    rows[3, :] = 0.0
    excess = _elongation(size, preference.log_aspect)
    if excess > 0.0:
        longest = 3 + np.argmax(size)
        shortest = 3 + np.argmin(size)
        gradient[longest] += 2.0 * ELONGATION * excess
        gradient[shortest] -= 2.0 * ELONGATION * excess
        # Without this the steep penalty would be learned only after many short steps.
        rows[3, longest] = np.sqrt(2.0 * ELONGATION)
        rows[3, shortest] = -np.sqrt(2.0 * ELONGATION)
    mean = np.log(size[0] * size[1] * size[2]) / 3.0
    for a in range(3):
        offset = (center[a] - preference.center[a]) / PREFERRED_MM**2
        gradient[a] += 2.0 * preference.weight * offset
        gradient[3 + a] += 2.0 * preference.weight * (np.log(size[a]) - mean)


@njit(cache=True, nogil=True)
def _start_curvature(rows, least):
    """Invert the Gauss–Newton curvature of the squared terms, with a least curvature elsewhere."""
    inverse = np.eye(9) / least
    # One term after the other, by the formula of Sherman and Morrison.
    for row in rows[1:]:
        product = (inverse * row).sum(axis=1)
        inverse -= np.outer(product, product) / (1.0 + (product * row).sum())
    return inverse


@njit(cache=True, nogil=True)
def _update_curvature(inverse, step, change):
    """Update an inverse curvature by a step and the change of the gradient along it (BFGS)."""
    along = (step * change).sum()
    if along <= 1e-3 * np.sqrt((step**2).sum() * (change**2).sum()):
        return
    product = (inverse * change).sum(axis=1)
    factor = (along + (product * change).sum()) / along**2
    mixed = np.outer(product, step) + np.outer(step, product)
    inverse += factor * np.outer(step, step) - mixed / along


@njit(cache=True, nogil=True)
def _slide(x, free, problem, settings, work):
    """Follow the gradient from `x` to a minimum of the cost, which is returned; changes `x`."""
    scale = settings.scale
    cost, tumor_fraction = _scored(x, problem, work)
    _gradient(x, tumor_fraction, free, problem, settings.spacing, work)
    rows = work.rows * scale
    inverse = _start_curvature(rows, settings.least_curvature)
    is_fresh = True
    for _ in range(settings.n_steps):
        gradient = rows[0]
        direction = -(inverse * gradient).sum(axis=1)
        slope = (direction * gradient).sum()
        if slope > -settings.tolerance:
            break
        length = 1.0 / max(1.0, np.abs(direction).max())
        lower = cost
        trial = x
        found = False
        for _ in range(N_TRIALS):
            trial = x + length * direction * scale
            lower, tumor_fraction = _scored(trial, problem, work)
            found = lower < cost + ARMIJO * length * slope
            if found:
                break
            # The lowest point of the parabola through both costs and the slope.
            bend = 2.0 * (lower - cost - length * slope)
            shorter = -slope * length**2 / bend
            length = min(max(shorter, 0.15 * length), 0.6 * length)
        if not found:
            if is_fresh:
                break
            # The curvature that was learned may come from the other side of a bend.
            inverse = _start_curvature(rows, settings.least_curvature)
            is_fresh = True
            continue
        is_fresh = False
        _gradient(trial, tumor_fraction, free, problem, settings.spacing, work)
        rows = work.rows * scale
        _update_curvature(inverse, length * direction, rows[0] - gradient)
        gain = cost - lower
        cost = lower
        x[:] = trial
        if gain < settings.tolerance:
            break
    return cost


@njit(cache=True, nogil=True)
def _improve(simplex, values, used, until, tolerance, problem, work):
    """Move a simplex up to so many evaluations; returns their number, or -1 if it converged."""
    # Gao and Han's coefficients, which depend on the number of variables d.
    d = len(values) - 1
    grow = 1.0 + 2.0 / d
    shrink = 0.75 - 0.5 / d
    all_shrink = 1.0 - 1.0 / d
    while used < until:
        order = np.argsort(values, kind="mergesort")
        best = order[0]
        worst = order[-1]
        # At a cost of 1e-6 the objective is 1 but for rounding.
        if values[worst] - values[best] < tolerance or values[best] < 1e-6:
            return -1
        middle = (simplex.sum(axis=0) - simplex[worst]) / d
        trial = 2.0 * middle - simplex[worst]
        value = _scored(trial, problem, work)[0]
        used += 1
        if values[best] <= value < values[order[-2]]:
            simplex[worst] = trial
            values[worst] = value
            continue
        # Farther where this way is the best so far, nearer where it is bad.
        better = value < values[best]
        toward = trial if value < values[worst] else simplex[worst]
        second = middle + (grow if better else shrink) * (toward - middle)
        second_value = _scored(second, problem, work)[0]
        used += 1
        if better and value <= second_value:
            simplex[worst] = trial
            values[worst] = value
        elif better or second_value < min(value, values[worst]):
            simplex[worst] = second
            values[worst] = second_value
        else:
            for v in order[1:]:
                simplex[v] = simplex[best] + all_shrink * (simplex[v] - simplex[best])
                values[v] = _scored(simplex[v], problem, work)[0]
            used += d
    return used


@njit(cache=True, nogil=True)
def descend(x0, free, problem, steps, rounds, tolerance):
    """
    Improve boxes by the simplex method of Nelder and Mead with adaptive coefficients.

    Shapes: `x0` (n, 9), `free` (n, 3), 1 for angles that are varied and else 0, alike in all
    boxes but for which, `rounds` (r, 2); returns x (n, 9), costs (n,), boxes (n, 5, 3).

    References
    ----------
    Gao and Han, Computational Optimization and Applications 51:259–277, 2012.
    """
    n = len(x0)
    d = 6 + int(free[:1].sum())
    x = np.empty((n, 9))
    costs = np.zeros(n)
    work = _new_work()
    simplices = np.empty((n, d + 1, 9))
    values = np.empty((n, d + 1))
    used = np.zeros(n, dtype=np.int64)
    for r in range(len(rounds)):
        # A stable sort, so that ties are broken alike on every machine.
        order = np.argsort(costs, kind="mergesort")
        for s in order[: rounds[r, 0]]:
            # Converged in an earlier round.
            if used[s] < 0:
                continue
            if r == 0:
                simplices[s] = x0[s]
                vertex = 0
                for p in range(9):
                    if p < 6 or free[s, p - 6] > 0.0:
                        vertex += 1
                        simplices[s, vertex, p] += steps[p // 3]
                for v in range(d + 1):
                    values[s, v] = _scored(simplices[s, v], problem, work)[0]
                used[s] = d + 1
            used[s] = _improve(
                simplices[s], values[s], used[s], rounds[r, 1], tolerance, problem, work
            )
            costs[s] = values[s].min()
    for s in range(n):
        x[s] = simplices[s, values[s].argmin()]
    return x, costs, boxes_of(x, problem)


@njit(cache=True, nogil=True)
def slide(x0, free, problem, settings):
    """
    Improve boxes along the gradient, by a quasi-Newton method that starts as Gauss–Newton.

    Shapes as for `descend`. Faster than simplex searches, but blind to excluded regions.

    References
    ----------
    Nocedal and Wright, Numerical Optimization, 2nd edition, chapters 6 and 10.
    """
    x = x0.copy()
    costs = np.empty(len(x))
    work = _new_work()
    for s in range(len(x)):
        costs[s] = _slide(x[s], free[s], problem, settings, work)
    return x, costs, boxes_of(x, problem)


@njit(cache=True, nogil=True)
def boxes_of(x, problem):
    """Give the boxes (n, 5, 3) of the numbers of searches (n, 9)."""
    boxes = np.empty((len(x), 5, 3))
    for s in range(len(x)):
        _pose(x[s], problem, boxes[s, 0], boxes[s, 1], boxes[s, 2:])
    return boxes


@njit(cache=True, nogil=True)
def costs_of(x, problem):
    """Evaluate what `descend` minimizes."""
    work = _new_work()
    costs = np.empty(len(x))
    for n in range(len(x)):
        costs[n] = _scored(x[n], problem, work)[0]
    return costs


@njit(cache=True, nogil=True)
def _new_work():
    """Allocate the arrays that the searches of one call reuse."""
    return Work(
        np.empty((4, 4096)),
        np.empty((7, 3)),
        np.empty((3, 3)),
        np.empty((3, 2)),
        np.empty((3, 2, 3)),
        np.empty((4, 9)),
    )


@njit(cache=True, nogil=True)
def average_rows(prefix, rows, columns):
    """Average running sums (a + 2, b + 2, c + 1) over blocks of rows, for a quick first search."""
    a, b, c = prefix.shape
    out = np.zeros(((a - 3) // rows + 3, (b - 3) // columns + 3, c), dtype=np.float32)
    weight = np.float32(1.0 / (rows * columns))
    for i in range(1, a - 1):
        for j in range(1, b - 1):
            out[(i - 1) // rows + 1, (j - 1) // columns + 1] += weight * prefix[i, j]
    return out


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def scan(sums, pad, shapes, element, objective, stride):
    """
    Score boxes along the image's axes at every block: the best of some shapes for each place.

    Shapes: `sums` (a + 1, b + 1, c + 1 + 2 pad), running sums of blocks along all axes that stay
    constant beyond the ends of the last; `shapes` (m, 3), numbers of blocks. Returns costs and
    numbers of shapes (n_a, n_b, c), of every `stride`-th place along the first two axes.
    """
    a = sums.shape[0] - 1
    b = sums.shape[1] - 1
    layers = sums.shape[2] - 1 - 2 * pad
    places_a = np.arange(stride // 2, a, stride)
    places_b = np.arange(stride // 2, b, stride)
    best = np.full((len(places_a), len(places_b), layers), np.float32(NO_LIMIT))
    best_shape = np.zeros(best.shape, dtype=np.int64)
    row = np.empty(layers, dtype=np.float32)
    line = sums.shape[2]
    values = sums.ravel()
    # Fractions and volumes are measured in standard deviations, which saves divisions.
    scaled = ObjectiveParameters(
        np.float32(objective.mean_volume / objective.sd_volume),
        np.float32(1.0),
        np.float32(objective.mean_fraction / objective.sd_fraction),
        np.float32(1.0),
        np.float32(objective.largest_deviation),
    )
    to_volume = np.float32(element / objective.sd_volume)
    for m in range(len(places_a)):
        for n in range(len(places_b)):
            costs = best[m, n]
            numbers = best_shape[m, n]
            for s in range(len(shapes)):
                i = places_a[m] - shapes[s, 0] // 2
                j = places_b[n] - shapes[s, 1] // 2
                i0 = max(i, 0)
                j0 = max(j, 0)
                i1 = min(i + shapes[s, 0], a)
                j1 = min(j + shapes[s, 1], b)
                k0 = pad - shapes[s, 2] // 2
                v00 = np.uint64((i0 * (b + 1) + j0) * line + k0)
                v01 = np.uint64((i0 * (b + 1) + j1) * line + k0)
                v10 = np.uint64((i1 * (b + 1) + j0) * line + k0)
                v11 = np.uint64((i1 * (b + 1) + j1) * line + k0)
                far = np.uint64(shapes[s, 2])
                n_blocks = shapes[s, 0] * shapes[s, 1] * shapes[s, 2]
                to_fraction = np.float32(1.0 / (objective.sd_fraction * n_blocks))
                for k in range(layers):
                    q = np.uint64(k)
                    tumor_sum = (
                        (values[v11 + far + q] - values[v01 + far + q])
                        - (values[v10 + far + q] - values[v00 + far + q])
                        - (values[v11 + q] - values[v01 + q])
                        + (values[v10 + q] - values[v00 + q])
                    )
                    row[k] = objective_cost(tumor_sum * to_fraction, tumor_sum * to_volume, scaled)
                for k in range(layers):
                    if row[k] < costs[k]:
                        costs[k] = row[k]
                        numbers[k] = s
    return best, best_shape


@njit(cache=True, nogil=True)
def apart(points, order, n, distance, by_axis=False):
    """
    Select points that lie farther apart, in their order; `by_axis`, along one axis at least.

    Shapes: `points` (m, d), `order` (m,).
    """
    selected = np.empty(n, dtype=np.int64)
    m = 0
    for index in order:
        free = True
        for k in range(m):
            difference = np.abs(points[index] - points[selected[k]])
            gap = difference.max() if by_axis else np.sqrt((difference**2).sum())
            if gap <= distance:
                free = False
                break
        if free:
            selected[m] = index
            m += 1
            if m == n:
                break
    return selected[:m]


@njit(cache=True, nogil=True)
def fractions(boxes, grid, grow, n_rows):
    """Compute the fractions of boxes (n, 5, 3), grown on each side, that a volume fills."""
    work = _new_work()
    out = np.empty(len(boxes))
    for n in range(len(boxes)):
        half = 0.5 * boxes[n, 1] + grow
        out[n] = _fraction(
            grid, boxes[n, 0], boxes[n, 2:], half, n_rows, work.nodes, work.step, work.box[6]
        )
    return out


@njit(cache=True, nogil=True)
def pair_dices(boxes, others):
    """Compute the Dice coefficients of boxes (n, 5, 3) with other boxes (m, 5, 3): (n, m)."""
    out = np.empty((len(boxes), len(others)))
    for n in range(len(boxes)):
        box = boxes[n]
        for m in range(len(others)):
            other = others[m]
            shared = box_intersection(box[0], box[1], box[2:], other[0], other[1], other[2:])
            out[n, m] = 2.0 * shared / (np.prod(box[1]) + np.prod(other[1]))
    return out
