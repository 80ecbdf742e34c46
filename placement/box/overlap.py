"""Compiled code of the package: shared volumes of boxes, the objective, and its simplex search."""

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


class Limits(NamedTuple):
    """
    The objective and constraints of boxes: volume in mm³, sides as logarithms of mm.

    The objective is measured from `n_rows` rows to an image voxel along each of two axes.
    """

    objective: ObjectiveParameters
    min_volume: float
    low_sides: NDArray[np.float64]
    high_sides: NDArray[np.float64]
    penalty: float
    preference: Preference
    n_rows: int


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
    """What a search minimizes: `low` and `high` are the ends of the image in indices of `grid`."""

    grid: Grid
    excluded: Excluded
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    limits: Limits


class Frame(NamedTuple):
    """What the nine numbers of a search refer to: its kind, first rotation and first center."""

    kind: int
    base: NDArray[np.float64]
    origin: NDArray[np.float64]


class Work(NamedTuple):
    """Arrays that the searches of one call reuse."""

    nodes: NDArray[np.float64]
    box: NDArray[np.float64]
    turns: NDArray[np.float64]
    points: NDArray[np.float64]


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


class Slopes(NamedTuple):
    """Arrays of `slide` that are reused: see `_gradient` and `_slide`."""

    spacing: float
    rows: NDArray[np.float64]
    areas: NDArray[np.float64]
    moments: NDArray[np.float64]
    torque: NDArray[np.float64]
    vectors: NDArray[np.float64]
    inverse: NDArray[np.float64]


# The one formula of the objective. It is inlined, so that each caller compiles it with its own
# precision and flags; `PlacementObjective.cost` runs it as plain Python.
@njit(inline="always")
def objective_cost(fraction, volume, objective):
    """Give minus the logarithm of the objective of a box: half the squares of its deviations."""
    fraction_deviation = (fraction - objective.mean_fraction) / objective.sd_fraction
    fraction_deviation = min(fraction_deviation, objective.largest_deviation)
    volume_deviation = (volume - objective.mean_volume) / objective.sd_volume
    return 0.5 * (volume_deviation**2 + fraction_deviation**2)


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
def _turn(axis, angle, out):
    c = np.cos(angle)
    s = np.sin(angle)
    second = (axis + 1) % 3
    third = (axis + 2) % 3
    out[:, :] = 0.0
    out[axis, axis] = 1.0
    out[second, second] = c
    out[third, third] = c
    out[second, third] = -s
    out[third, second] = s


@njit(cache=True, nogil=True, _nrt=False)
def _turned_axes(kind):
    """Give the scanner's axis that a kind of search turns a box about, and then the box's axis."""
    axis = (kind - 1) % 3 if kind < 7 else kind - 8
    return axis, (axis + 1) % 3 if kind < 7 else (axis + 2) % 3


@njit(cache=True, nogil=True, _nrt=False)
def _pose(x, frame, limits, center, size, rotation, turns):
    """
    Turn the numbers of a search into a box of allowed sides; returns the penalty for clipping.

    Kinds: 0 along the scanner's axes; 1 to 3 turned about one of them; 4 to 6 about one and then
    the box's next; 7 freely, from a first rotation; 8 to 10 about one and then the box's previous.
    """
    search_kind = frame.kind
    base = frame.base
    excess = 0.0
    volume = 1.0
    for a in range(3):
        center[a] = frame.origin[a] + x[a]
        allowed = min(max(x[3 + a], limits.low_sides[a]), limits.high_sides[a])
        excess += (x[3 + a] - allowed) ** 2
        size[a] = np.exp(allowed)
        volume *= size[a]
    for _ in range(3):
        # Sides at their limit cannot grow, so the others have to, which takes up to three rounds.
        if volume >= limits.min_volume:
            break
        factor = np.cbrt(limits.min_volume / volume) * (1.0 + 1e-12)
        excess += np.log(factor) ** 2
        volume = 1.0
        for a in range(3):
            size[a] = min(size[a] * factor, np.exp(limits.high_sides[a]))
            volume *= size[a]
    if search_kind == 0:
        for a in range(3):
            for b in range(3):
                rotation[a, b] = base[a, b]
    elif search_kind <= 3:
        _turn(search_kind - 1, x[6], rotation)
    elif search_kind != 7:
        axis, second = _turned_axes(search_kind)
        _turn(axis, x[6], turns[0])
        _turn(second, x[7], turns[1])
        for a in range(3):
            for b in range(3):
                rotation[a, b] = (
                    turns[0, a, 0] * turns[1, 0, b]
                    + turns[0, a, 1] * turns[1, 1, b]
                    + turns[0, a, 2] * turns[1, 2, b]
                )
    else:
        # Rodrigues' formula with a rotation vector, which has no singular pose near its start.
        angle = np.sqrt(x[6] ** 2 + x[7] ** 2 + x[8] ** 2)
        s = np.sin(angle) / angle if angle > 1e-9 else 1.0
        c = (1.0 - np.cos(angle)) / angle**2 if angle > 1e-9 else 0.5
        for a in range(3):
            b = (a + 1) % 3
            d = (a + 2) % 3
            turns[0, a, a] = 1.0 - c * (x[6 + b] ** 2 + x[6 + d] ** 2)
            turns[0, a, b] = c * x[6 + a] * x[6 + b] - s * x[6 + d]
            turns[0, b, a] = c * x[6 + a] * x[6 + b] + s * x[6 + d]
        for a in range(3):
            for b in range(3):
                rotation[a, b] = (
                    base[a, 0] * turns[0, 0, b]
                    + base[a, 1] * turns[0, 1, b]
                    + base[a, 2] * turns[0, 2, b]
                )
    return excess


@njit(cache=True, nogil=True, _nrt=False)
def _outside(grid, center, rotation, half, low, high):
    """How far a box reaches beyond an image, in mm, summed over its faces."""
    matrix = grid.matrix
    inverse = grid.inverse
    total = 0.0
    radius = half[0] * half[0] + half[1] * half[1] + half[2] * half[2]
    for a in range(3):
        middle = _middle(grid, a, center)
        length = 0.0
        for y in range(3):
            length += inverse[a, y] * inverse[a, y]
        # Most boxes are clear of the face even with their corners turned toward it.
        near = min(middle - low[a], high[a] - middle)
        if near > 0.0 and near * near > length * radius:
            continue
        edge = 0.0
        for y in range(3):
            edge += matrix[y, a] ** 2
        reach = _reach(grid, a, rotation, half)
        below = max(0.0, low[a] - middle + reach)
        above = max(0.0, middle + reach - high[a])
        total += (below + above) * np.sqrt(edge)
    return total


@njit(cache=True, nogil=True, _nrt=False)
def _elongation(size, log_aspect):
    """By how much the logarithm of the longest side over the shortest exceeds a limit."""
    if log_aspect >= NO_LIMIT:
        return 0.0
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
def _cost(x, frame, problem, work):
    """Minus the logarithm of the objective, and penalties for constraints that are broken."""
    return _scored(x, frame, problem, work)[0]


@njit(cache=True, nogil=True, _nrt=False)
def _scored(x, frame, problem, work):
    """Cost and fraction of tumor of a box, which is left in `work`."""
    limits = problem.limits
    box = work.box
    center = box[0]
    size = box[1]
    half = box[2]
    rotation = box[3:6]
    start = box[6]
    # The turns are only needed until the pose is known; then their memory serves as the step.
    step = work.turns[0]
    excess = _pose(x, frame, limits, center, size, rotation, work.turns)
    volume = size[0] * size[1] * size[2]
    for a in range(3):
        half[a] = 0.5 * size[a]
    n_rows = limits.n_rows
    tumor_fraction = _fraction(
        problem.grid, center, rotation, half, n_rows, work.nodes, step, start
    )
    cost = objective_cost(tumor_fraction, tumor_fraction * volume, limits.objective) + excess
    beyond = _outside(problem.grid, center, rotation, half, problem.low, problem.high)
    if beyond > 0.0:
        # The step of 0.1 makes a box that just touches worse than one that is just clear.
        cost += limits.penalty * (0.1 + beyond)
    excluded = problem.excluded
    margins = excluded.margins
    for m in range(len(margins)):
        for a in range(3):
            half[a] = 0.5 * size[a] + margins[m, 0]
        region = Grid(excluded.sums[m], excluded.matrix, excluded.inverse, excluded.offset)
        touched = _fraction(region, center, rotation, half, 1, work.nodes, step, start)
        if touched > margins[m, 1]:
            # A fraction of the box is small against mm, so it weighs a hundred times as much.
            cost += limits.penalty * (0.1 + 100.0 * (touched - margins[m, 1]))
    cost += _preference_cost(center, size, limits.preference)
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


@njit(cache=True, nogil=True, _nrt=False)
def _turn_gradient(x, kind, rotation, torque, out):
    """
    Convert a gradient by rotation about the axes of a box to one by the angles of a search.

    `torque` (3,) is the gradient by a small turn about each of them; fills the last of `out` (9,).
    """
    if kind != 0 and kind != 7:
        axis, second = _turned_axes(kind)
        out[6] = 0.0
        for a in range(3):
            out[6] += rotation[axis, a] * torque[a]
        if kind > 3:
            out[7] = torque[second]
    elif kind == 7:
        # The transpose of the right Jacobian of the exponential map.
        square = x[6] ** 2 + x[7] ** 2 + x[8] ** 2
        angle = np.sqrt(square)
        first = (1.0 - np.cos(angle)) / square if angle > 1e-4 else 0.5
        second = (angle - np.sin(angle)) / (square * angle) if angle > 1e-4 else 1.0 / 6.0
        k0 = x[7] * torque[2] - x[8] * torque[1]
        k1 = x[8] * torque[0] - x[6] * torque[2]
        k2 = x[6] * torque[1] - x[7] * torque[0]
        out[6] = torque[0] + first * k0 + second * (x[7] * k2 - x[8] * k1)
        out[7] = torque[1] + first * k1 + second * (x[8] * k0 - x[6] * k2)
        out[8] = torque[2] + first * k2 + second * (x[6] * k1 - x[7] * k0)


@njit(cache=True, nogil=True, _nrt=False)
def _gradient(x, tumor_fraction, frame, problem, work, slopes):
    """
    Differentiate the cost of the box that `_scored` left in `work`; excluded regions are ignored.

    Fills the first row of `slopes.rows` (4, 9) with the gradient, the others with those of the
    terms whose squares are added: the two deviations of the objective, and sides that differ too
    much. Tumor that a moving face takes in is the integral over that face.
    """
    limits = problem.limits
    objective = limits.objective
    center = work.box[0]
    size = work.box[1]
    half = work.box[2]
    rotation = work.box[3:6]
    volume = size[0] * size[1] * size[2]
    for a in range(3):
        half[a] = 0.5 * size[a]
    areas = slopes.areas
    moments = slopes.moments
    _face_sums(
        problem.grid,
        center,
        rotation,
        half,
        slopes.spacing,
        areas,
        moments,
        work.box[6],
        work.turns[0],
    )
    gradient = slopes.rows[0]
    by_volume = slopes.rows[1]
    by_fraction = slopes.rows[2]
    torque = slopes.torque
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
    _turn_gradient(x, frame.kind, rotation, torque, by_volume)
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
    _limit_sides(x, limits, slopes.rows)
    for p in range(9):
        gradient[p] += volume_deviation * by_volume[p] + fraction_deviation * by_fraction[p]
    _add_preference(center, size, limits.preference, slopes.rows)
    _add_outside(problem, center, rotation, half, gradient)


@njit(cache=True, nogil=True, _nrt=False)
def _limit_sides(x, limits, rows):
    """Drop slopes along sides that are clipped or scaled; start the gradient with the penalty."""
    rows[0, :] = 0.0
    total = 0.0
    for a in range(3, 6):
        allowed = min(max(x[a], limits.low_sides[a - 3]), limits.high_sides[a - 3])
        total += allowed
        rows[0, a] = 2.0 * (x[a] - allowed)
        if allowed != x[a]:
            rows[1, a] = 0.0
            rows[2, a] = 0.0
    missing = np.log(limits.min_volume) - total if limits.min_volume > 0.0 else 0.0
    if missing > 0.0:
        # The sides are scaled to the least volume, so that only their ratios count.
        for q in range(1, 3):
            mean = (rows[q, 3] + rows[q, 4] + rows[q, 5]) / 3.0
            for a in range(3, 6):
                rows[q, a] -= mean
        for a in range(3, 6):
            rows[0, a] -= 2.0 * missing / 9.0


@njit(cache=True, nogil=True, _nrt=False)
def _add_preference(center, size, preference, rows):
    """Add the slope of `_preference_cost`; the last of `rows` is for too different sides."""
    gradient = rows[0]
    rows[3, :] = 0.0
    excess = _elongation(size, preference.log_aspect)
    if excess > 0.0:
        longest = 0
        shortest = 0
        for a in range(1, 3):
            if size[a] > size[longest]:
                longest = a
            if size[a] < size[shortest]:
                shortest = a
        gradient[3 + longest] += 2.0 * ELONGATION * excess
        gradient[3 + shortest] -= 2.0 * ELONGATION * excess
        # Without this the steep penalty would be learned only after many short steps.
        rows[3, 3 + longest] = np.sqrt(2.0 * ELONGATION)
        rows[3, 3 + shortest] = -np.sqrt(2.0 * ELONGATION)
    if preference.weight == 0.0:
        return
    mean = np.log(size[0] * size[1] * size[2]) / 3.0
    for a in range(3):
        offset = (center[a] - preference.center[a]) / PREFERRED_MM**2
        gradient[a] += 2.0 * preference.weight * offset
        gradient[3 + a] += 2.0 * preference.weight * (np.log(size[a]) - mean)


@njit(cache=True, nogil=True, _nrt=False)
def _add_outside(problem, center, rotation, half, gradient):
    """Add the slope of the penalty for reaching beyond the image, but for that by turns."""
    grid = problem.grid
    for a in range(3):
        middle = _middle(grid, a, center)
        reach = _reach(grid, a, rotation, half)
        below = problem.low[a] - middle + reach > 0.0
        above = middle + reach - problem.high[a] > 0.0
        if not (below or above):
            continue
        edge = 0.0
        for y in range(3):
            edge += grid.matrix[y, a] ** 2
        weight = problem.limits.penalty * np.sqrt(edge)
        outward = (1.0 if above else 0.0) - (1.0 if below else 0.0)
        n_faces = (1.0 if above else 0.0) + (1.0 if below else 0.0)
        for y in range(3):
            direction = 0.0
            for z in range(3):
                direction += grid.inverse[a, z] * rotation[z, y]
            gradient[y] += weight * outward * grid.inverse[a, y]
            gradient[3 + y] += weight * n_faces * abs(direction) * half[y]


@njit(cache=True, nogil=True)
def _start_curvature(rows, d, least, inverse, product):
    """Invert the Gauss–Newton curvature of the squared terms, with a least curvature elsewhere."""
    inverse[:d, :d] = 0.0
    for q in range(d):
        inverse[q, q] = 1.0 / least
    # One term after the other, by the formula of Sherman and Morrison.
    for term in range(1, len(rows)):
        total = 1.0
        for q in range(d):
            product[q] = 0.0
            for r in range(d):
                product[q] += inverse[q, r] * rows[term, r]
            total += product[q] * rows[term, q]
        for q in range(d):
            for r in range(d):
                inverse[q, r] -= product[q] * product[r] / total


@njit(cache=True, nogil=True)
def _update_curvature(inverse, d, step, change, product):
    """Update an inverse curvature by a step and the change of the gradient along it (BFGS)."""
    along = 0.0
    step_square = 0.0
    change_square = 0.0
    for q in range(d):
        along += step[q] * change[q]
        step_square += step[q] ** 2
        change_square += change[q] ** 2
    if along <= 1e-3 * np.sqrt(step_square * change_square):
        return
    total = 0.0
    for q in range(d):
        product[q] = 0.0
        for r in range(d):
            product[q] += inverse[q, r] * change[r]
        total += product[q] * change[q]
    factor = (along + total) / along**2
    for q in range(d):
        for r in range(d):
            mixed = product[q] * step[r] + step[q] * product[r]
            inverse[q, r] += factor * step[q] * step[r] - mixed / along


@njit(cache=True, nogil=True)
def _slide(x, frame, problem, settings, work, slopes):
    """Follow the gradient from `x` to a minimum of the cost, which is returned; changes `x`."""
    d = _n_variables(frame.kind)
    scale = settings.scale
    gradient = slopes.vectors[0]
    direction = slopes.vectors[1]
    trial = slopes.vectors[2]
    change = slopes.vectors[3]
    product = slopes.vectors[4]
    inverse = slopes.inverse
    cost, tumor_fraction = _scored(x, frame, problem, work)
    _gradient(x, tumor_fraction, frame, problem, work, slopes)
    slopes.rows[:] *= scale
    gradient[:] = slopes.rows[0]
    _start_curvature(slopes.rows, d, settings.least_curvature, inverse, product)
    is_fresh = True
    for _ in range(settings.n_steps):
        slope = 0.0
        longest = 1.0
        for q in range(d):
            direction[q] = 0.0
            for r in range(d):
                direction[q] -= inverse[q, r] * gradient[r]
            slope += direction[q] * gradient[q]
            longest = max(longest, abs(direction[q]))
        if slope > -settings.tolerance:
            break
        length = 1.0 / longest
        lower = cost
        found = False
        for _ in range(N_TRIALS):
            trial[:] = x
            for q in range(d):
                trial[q] += length * direction[q] * scale[q]
            lower, tumor_fraction = _scored(trial, frame, problem, work)
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
            _start_curvature(slopes.rows, d, settings.least_curvature, inverse, product)
            is_fresh = True
            continue
        is_fresh = False
        _gradient(trial, tumor_fraction, frame, problem, work, slopes)
        slopes.rows[:] *= scale
        for q in range(d):
            direction[q] *= length
            change[q] = slopes.rows[0, q] - gradient[q]
            gradient[q] = slopes.rows[0, q]
        _update_curvature(inverse, d, direction, change, product)
        gain = cost - lower
        cost = lower
        x[:] = trial
        if gain < settings.tolerance:
            break
    return cost


@njit(cache=True, nogil=True)
def _improve(simplex, values, d, used, until, tolerance, frame, problem, work):
    """Move a simplex up to so many evaluations; returns their number, or -1 if it converged."""
    points = work.points
    middle = points[0]
    trial = points[1]
    second = points[2]
    # Gao and Han's coefficients, which depend on the number of variables d.
    grow = 1.0 + 2.0 / d
    shrink = 0.75 - 0.5 / d
    all_shrink = 1.0 - 1.0 / d
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
        # At a cost of 1e-6 the objective is 1 but for rounding.
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
        value = _cost(trial, frame, problem, work)
        used += 1
        if values[best] <= value < values[next_worst]:
            simplex[worst] = trial
            values[worst] = value
            continue
        # Farther where this way is the best so far, nearer where it is bad.
        better = value < values[best]
        outside = value < values[worst]
        factor = grow if better else shrink
        for p in range(d):
            toward = trial[p] if outside else simplex[worst, p]
            second[p] = middle[p] + factor * (toward - middle[p])
        second_value = _cost(second, frame, problem, work)
        used += 1
        if better and value <= second_value:
            simplex[worst] = trial
            values[worst] = value
        elif better or second_value < min(value, values[worst]):
            simplex[worst] = second
            values[worst] = second_value
        else:
            for v in range(d + 1):
                if v != best:
                    for p in range(d):
                        simplex[v, p] = simplex[best, p] + all_shrink * (
                            simplex[v, p] - simplex[best, p]
                        )
                    values[v] = _cost(simplex[v], frame, problem, work)
                    used += 1
    return used


@njit(cache=True, nogil=True, _nrt=False)
def _n_variables(kind):
    """Count the numbers that a search of a kind varies: center, sides, and its angles."""
    if kind == 0:
        return 6
    if kind <= 3:
        return 7
    return 9 if kind == 7 else 8


@njit(cache=True, nogil=True)
def descend(x0, kinds, bases, origins, problem, steps, rounds, tolerance):
    """
    Improve boxes by the simplex method of Nelder and Mead with adaptive coefficients.

    Shapes: `x0` (n, 9), `bases` (n, 3, 3), `origins` (n, 3), `rounds` (r, 2); returns x (n, 9),
    costs (n,), boxes (n, 5, 3).

    References
    ----------
    Gao and Han, Computational Optimization and Applications 51:259–277, 2012.
    """
    n = len(x0)
    x_best = np.empty((n, 9))
    costs = np.zeros(n)
    boxes = np.empty((n, 5, 3))
    work = _new_work()
    box = work.box
    simplices = np.empty((n, 10, 9))
    values = np.full((n, 10), 1e300)
    used = np.zeros(n, dtype=np.int64)
    for r in range(len(rounds)):
        # A stable sort, so that ties are broken alike on every machine.
        order = np.argsort(costs, kind="mergesort")
        for s in order[: rounds[r, 0]]:
            # Converged in an earlier round.
            if used[s] < 0:
                continue
            d = _n_variables(kinds[s])
            frame = Frame(kinds[s], bases[s], origins[s])
            if r == 0:
                for v in range(d + 1):
                    simplices[s, v] = x0[s]
                    if v > 0:
                        simplices[s, v, v - 1] += steps[(v - 1) // 3]
                    values[s, v] = _cost(simplices[s, v], frame, problem, work)
                used[s] = d + 1
            used[s] = _improve(
                simplices[s], values[s], d, used[s], rounds[r, 1], tolerance, frame, problem, work
            )
            costs[s] = values[s].min()
    for s in range(n):
        x_best[s] = simplices[s, values[s].argmin()]
        frame = Frame(kinds[s], bases[s], origins[s])
        _pose(x_best[s], frame, problem.limits, box[0], box[1], box[3:6], work.turns)
        boxes[s, 0] = box[0]
        boxes[s, 1] = box[1]
        boxes[s, 2:5] = box[3:6]
    return x_best, costs, boxes


@njit(cache=True, nogil=True)
def slide(x0, kinds, bases, origins, problem, settings):
    """
    Improve boxes along the gradient, by a quasi-Newton method that starts as Gauss–Newton.

    Shapes as for `descend`. Faster than simplex searches, but blind to excluded regions.

    References
    ----------
    Nocedal and Wright, Numerical Optimization, 2nd edition, chapters 6 and 10.
    """
    n = len(x0)
    x = x0.copy()
    costs = np.empty(n)
    boxes = np.empty((n, 5, 3))
    work = _new_work()
    slopes = _new_slopes(settings.spacing)
    box = work.box
    for s in range(n):
        frame = Frame(kinds[s], bases[s], origins[s])
        costs[s] = _slide(x[s], frame, problem, settings, work, slopes)
        _pose(x[s], frame, problem.limits, box[0], box[1], box[3:6], work.turns)
        boxes[s, 0] = box[0]
        boxes[s, 1] = box[1]
        boxes[s, 2:5] = box[3:6]
    return x, costs, boxes


@njit(cache=True, nogil=True)
def _new_work():
    """Allocate the arrays that the searches of one call reuse."""
    return Work(np.empty((4, 4096)), np.empty((7, 3)), np.empty((2, 3, 3)), np.empty((3, 9)))


@njit(cache=True, nogil=True)
def _new_slopes(spacing):
    """Allocate the arrays of slopes that are measured at points `spacing` mm apart."""
    return Slopes(
        spacing,
        np.empty((4, 9)),
        np.empty((3, 2)),
        np.empty((3, 2, 3)),
        np.empty(3),
        np.zeros((5, 9)),
        np.empty((9, 9)),
    )


@njit(cache=True, nogil=True)
def average_rows(prefix, rows, columns):
    """Average running sums (a + 2, b + 2, c + 1) over blocks of rows, for a quick first search."""
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
    """List the sides, in blocks, of boxes with plausible volumes; at most 4096."""
    shapes = np.empty((4096, 3), dtype=np.int64)
    n = 0
    mean_volume = limits.objective.mean_volume
    least = max(limits.min_volume, 0.08 * mean_volume) * 0.8
    most = max(2.0 * mean_volume, 1.4 * limits.min_volume)
    first = np.empty(3, dtype=np.int64)
    last = np.empty(3, dtype=np.int64)
    for x in range(3):
        first[x] = max(1, int(np.ceil(np.exp(limits.low_sides[x]) / edges[x] - 0.5)))
        last[x] = max(first[x], int(min(np.exp(limits.high_sides[x]), largest) / edges[x] + 0.5))
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
                # Sides grow by a quarter at a time, so that few shapes cover the range.
                k += max(1, k // 4)
            j += max(1, j // 4)
        i += max(1, i // 4)
    return shapes[:n]


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def scan(prefix, depth, edges, volume_element, limits, stride, largest):
    """
    Score boxes along the image's axes at every block: the best sides for each place.

    Boxes deep in the tumor are preferred: some of the fraction of tumor in the box grown by two
    blocks on each side is subtracted from the cost.

    Shapes: `prefix` (a + 2, b + 2, c + 1); returns centers (n, 3), sides (n, 3), costs (n,).
    """
    a = prefix.shape[0] - 2
    b = prefix.shape[1] - 2
    c = prefix.shape[2]
    layers = (c - 1 + depth - 1) // depth
    shapes = _shapes(edges, volume_element, limits, largest)
    # Beyond the ends the sums stay constant, so that boxes need no clipping along the last axis.
    pad = 3
    for s in range(len(shapes)):
        pad = max(pad, shapes[s, 2] + 3)
    sums = np.zeros((a + 1, b + 1, layers + 1 + 2 * pad), dtype=np.float32)
    for i in range(a):
        for j in range(b):
            for k in range(1, layers + 1):
                row_sum = prefix[i + 1, j + 1, min(k * depth, c - 1)] / np.float32(depth)
                sums[i + 1, j + 1, pad + k] = (
                    row_sum
                    + sums[i, j + 1, pad + k]
                    + sums[i + 1, j, pad + k]
                    - sums[i, j, pad + k]
                )
            sums[i + 1, j + 1, pad + layers + 1 :] = sums[i + 1, j + 1, pad + layers]
    n_lines = len(range(stride // 2, a, stride)) * len(range(stride // 2, b, stride))
    n_places = n_lines * layers
    centers = np.empty((n_places, 3))
    sides = np.empty((n_places, 3))
    costs = np.empty(n_places)
    row = np.empty(layers, dtype=np.float32)
    best = np.empty(layers, dtype=np.float32)
    best_shape = np.empty(layers, dtype=np.int32)
    line = sums.shape[2]
    values = sums.ravel()
    # The scan measures fractions and volumes in standard deviations, which saves it divisions.
    exact = limits.objective
    scaled = ObjectiveParameters(
        np.float32(exact.mean_volume / exact.sd_volume),
        np.float32(1.0),
        np.float32(exact.mean_fraction / exact.sd_fraction),
        np.float32(1.0),
        np.float32(exact.largest_deviation),
    )
    to_volume = np.float32(volume_element / exact.sd_volume)
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
                to_fraction = np.float32(
                    1.0 / (exact.sd_fraction * shapes[s, 0] * shapes[s, 1] * across)
                )
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
                    if row[k] < best[k]:
                        best[k] = row[k]
                        best_shape[k] = s
            for k in range(layers):
                # No shape was scored here.
                if best[k] > 1e29:
                    continue
                s = best_shape[k]
                # Of nearly equal costs the deeper box wins: it stays full when it is turned.
                low_i = i - shapes[s, 0] // 2
                low_j = j - shapes[s, 1] // 2
                low_k = k - shapes[s, 2] // 2
                i0 = max(low_i - 2, 0)
                j0 = max(low_j - 2, 0)
                i1 = min(low_i + shapes[s, 0] + 2, a)
                j1 = min(low_j + shapes[s, 1] + 2, b)
                k0 = pad + low_k - 2
                k1 = pad + low_k + shapes[s, 2] + 2
                tumor_sum = (
                    (sums[i1, j1, k1] - sums[i0, j1, k1])
                    - (sums[i1, j0, k1] - sums[i0, j0, k1])
                    - (sums[i1, j1, k0] - sums[i0, j1, k0])
                    + (sums[i1, j0, k0] - sums[i0, j0, k0])
                )
                total = (shapes[s, 0] + 4) * (shapes[s, 1] + 4) * (shapes[s, 2] + 4)
                costs[n] = best[k] - 0.05 * tumor_sum / total
                centers[n, 0] = low_i + 0.5 * shapes[s, 0]
                centers[n, 1] = low_j + 0.5 * shapes[s, 1]
                centers[n, 2] = low_k + 0.5 * shapes[s, 2]
                for x in range(3):
                    sides[n, x] = shapes[s, x]
                n += 1
    return centers[:n], sides[:n], costs[:n]


@njit(cache=True, nogil=True)
def apart(points, order, n, distance, by_axis=False):
    """
    Select points that lie farther apart, in their order; `by_axis`, along one axis at least.

    Shapes: `points` (m, d), `order` (m,).
    """
    selected = np.empty(n, dtype=np.int64)
    m = 0
    limit = distance if by_axis else distance * distance
    for index in order:
        free = True
        for k in range(m):
            total = 0.0
            for x in range(points.shape[1]):
                difference = abs(points[index, x] - points[selected[k], x])
                total = max(total, difference) if by_axis else total + difference**2
            if total <= limit:
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
    nodes = np.empty((4, 4096))
    step = np.empty((3, 3))
    start = np.empty(3)
    half = np.empty(3)
    out = np.empty(len(boxes))
    for n in range(len(boxes)):
        for x in range(3):
            half[x] = 0.5 * boxes[n, 1, x] + grow
        center = boxes[n, 0]
        out[n] = _fraction(grid, center, boxes[n, 2:5], half, n_rows, nodes, step, start)
    return out


@njit(cache=True, nogil=True)
def costs_of(x, kinds, bases, origins, grid, excluded, low, high, limits):
    """Evaluate what `descend` minimizes; the last five are the fields of a `Problem`."""
    problem = Problem(grid, excluded, low, high, limits)
    work = _new_work()
    out = np.empty(len(x))
    for n in range(len(x)):
        frame = Frame(kinds[n], bases[n], origins[n])
        out[n] = _cost(x[n], frame, problem, work)
    return out
