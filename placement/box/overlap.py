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


# The one formula of the objective. It is inlined, so that each caller compiles it with its own
# precision and flags; `PlacementObjective.cost` runs it as plain Python.
@njit(inline="always")
def objective_cost(fraction, volume, objective):
    """Give minus the logarithm of the objective of a box: half the squares of its deviations."""
    fraction_deviation = (fraction - objective.mean_fraction) / objective.sd_fraction
    fraction_deviation = min(fraction_deviation, objective.largest_deviation)
    volume_deviation = (volume - objective.mean_volume) / objective.sd_volume
    return 0.5 * (volume_deviation**2 + fraction_deviation**2)


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
        axis = (search_kind - 1) % 3 if search_kind < 7 else search_kind - 8
        second = (axis + 1) % 3 if search_kind < 7 else (axis + 2) % 3
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
def _preference_cost(center, size, preference):
    """Cost of a box far from the preferred center, or with unequal sides."""
    total = 0.0
    if preference.log_aspect < NO_LIMIT:
        longest = max(size[0], max(size[1], size[2]))
        shortest = min(size[0], min(size[1], size[2]))
        excess = max(0.0, np.log(longest / shortest) - preference.log_aspect)
        total += ELONGATION * excess**2
    if preference.weight > 0.0:
        mean = np.log(size[0] * size[1] * size[2]) / 3.0
        for a in range(3):
            offset = (center[a] - preference.center[a]) / PREFERRED_MM
            total += preference.weight * (offset**2 + (np.log(size[a]) - mean) ** 2)
    return total


@njit(cache=True, nogil=True, _nrt=False)
def _cost(x, frame, problem, work):
    """Minus the logarithm of the objective, and penalties for constraints that are broken."""
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
    return cost + _preference_cost(center, size, limits.preference)


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
def _new_work():
    """Allocate the arrays that the searches of one call reuse."""
    return Work(np.empty((4, 4096)), np.empty((7, 3)), np.empty((2, 3, 3)), np.empty((3, 9)))


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def scan(prefix, depth, shapes, volume_element, limits, stride):
    """
    Score boxes along the image's axes at every block: the best sides for each place.

    Boxes deep in the tumor are preferred: some of the fraction of tumor in the box grown by two
    blocks on each side is subtracted from the cost.

    Shapes: `prefix` (a + 2, b + 2, c + 1), `shapes` (m, 3), sides in blocks; returns centers
    (n, 3), sides (n, 3), costs (n,).
    """
    a = prefix.shape[0] - 2
    b = prefix.shape[1] - 2
    c = prefix.shape[2]
    layers = (c - 1 + depth - 1) // depth
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
