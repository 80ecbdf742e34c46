"""Compiled code: the overlap of boxes with volumes, the cost of a box, and its simplex search."""

# A box has a center and three sides in mm, and a rotation: its columns are the directions of the
# sides in RAS+. Compiled code takes it as an array (5, 3) of center, sides and rotation. A volume
# has indices u, v and w. A row of it is the line of all w at one u and v.
#
# All compiled functions are in this file: numba's cache on disk watches only the file of the
# function that it compiled, so a change of a function in another file would pass unnoticed. No
# function is passed as an argument or closed over, so that the cache can hold each of them.
#
# `_nrt=False` leaves out the counting of references to arrays, which took half of the time for
# boxes of few rows. Functions with it may not allocate: they write to the arrays of a `Work`.

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dmrifit._utils.compiled import njit

#: A number of the objective: `scan` computes in single precision, everything else in double.
Number: TypeAlias = float | np.floating[Any]

#: Distance from the preferred center that adds the weight of a preference to the cost, in mm.
PREFERRED_MM = 10.0

#: Cost added where the longest side exceeds the allowed length by a factor of e (2.7).
ELONGATION = 200.0

#: A limit that is never reached; `scan` must not compute with infinity.
NO_LIMIT = 1e30

#: Kinds of search by the rotations of the box: it keeps that of `Frame.base`; turns about axis a
#: of the scanner (`ONE_AXIS` + a); about its axis a and then the next one (`NEXT_AXIS` + a), or
#: the previous one (`PREVIOUS_AXIS` + a); or turns freely from `Frame.base`.
UNTURNED, ONE_AXIS, NEXT_AXIS, ANY_TURN, PREVIOUS_AXIS = 0, 1, 4, 7, 8


class ObjectiveParameters(NamedTuple):
    """
    Numbers of the objective; volumes are in the unit of the volumes to be scored.

    `largest_deviation` bounds the deviation of a fraction above its mean, in standard deviations:
    0 for a one-sided objective, `NO_LIMIT` otherwise.
    """

    mean_volume: Number
    sd_volume: Number
    mean_fraction: Number
    sd_fraction: Number
    largest_deviation: Number


class Preference(NamedTuple):
    """
    Preference among equally good boxes for those near `center` (mm) with similar sides.

    `weight` is the cost of a distance of 10 mm from that center; it is 0 where the objective alone
    counts. `log_aspect` is the largest logarithm of the longest over the shortest side that costs
    nothing.
    """

    weight: float
    center: NDArray[np.float64]
    log_aspect: float = NO_LIMIT


class Limits(NamedTuple):
    """
    The objective and constraints of boxes: volume in mm³, sides as logarithms of mm.

    The tumor fraction is integrated along `n_rows` × `n_rows` rows to an image voxel.
    """

    objective: ObjectiveParameters
    min_volume: float
    low_sides: NDArray[np.float64]
    high_sides: NDArray[np.float64]
    penalty: float
    preference: Preference
    n_rows: int


class Grid(NamedTuple):
    """
    Running sums `prefix` of a volume along its rows, as in `row_integrals.Rows`.

    The world position (mm RAS+) of an index is `matrix @ index + offset`; `inverse` is the inverse
    of `matrix`.
    """

    prefix: NDArray[np.float32]
    matrix: NDArray[np.float64]
    inverse: NDArray[np.float64]
    offset: NDArray[np.float64]


class Excluded(NamedTuple):
    """
    Running sums of excluded regions on one grid.

    Shapes: `sums` (m, a, b, c); `allowances` (m, 2): for each region its margin in mm, and the
    tolerated fraction of the box, grown by the margin, that may lie in the region.
    """

    sums: NDArray[np.float32]
    allowances: NDArray[np.float64]
    matrix: NDArray[np.float64]
    inverse: NDArray[np.float64]
    offset: NDArray[np.float64]


class Problem(NamedTuple):
    """All that a cost depends on; `low` and `high` are the image's outer faces as grid indices."""

    grid: Grid
    excluded: Excluded
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    limits: Limits


class Frame(NamedTuple):
    """
    Reference of the variables x (9,) of a search.

    x[0:3] is the center of the box from `origin` in mm, x[3:6] the logarithms of its sides in mm,
    and x[6:9] its angles in radians. `kind` tells how the angles rotate the box, see `UNTURNED`;
    `base` is the rotation of a box whose angles are zero, where the kind has one.
    """

    kind: int
    base: NDArray[np.float64]
    origin: NDArray[np.float64]


class Work(NamedTuple):
    """
    Memory that the searches of one call reuse.

    `nodes` (4, 4096) has the middles and widths of strips along u and v; `box` (7, 3) the center,
    sides, half sides, three rows of the rotation and grid origin of a box; `rotations` (2, 3, 3)
    the factors of a rotation; `points` (3, 9) points of a simplex search.
    """

    nodes: NDArray[np.float64]
    box: NDArray[np.float64]
    rotations: NDArray[np.float64]
    points: NDArray[np.float64]


# The one formula of the objective. It is inlined, so that each caller compiles it with its own
# precision and flags; `PlacementObjective.cost` runs it as plain Python.
@njit(inline="always")
def objective_cost(fraction, volume, objective):
    """Give minus the logarithm of the objective of a box: half its squared deviations."""
    fraction_deviation = (fraction - objective.mean_fraction) / objective.sd_fraction
    fraction_deviation = min(fraction_deviation, objective.largest_deviation)
    volume_deviation = (volume - objective.mean_volume) / objective.sd_volume
    return 0.5 * (volume_deviation**2 + fraction_deviation**2)


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy", _nrt=False)
def integrate(prefix, u_nodes, u_widths, v_nodes, v_widths, to_box, origin, half):
    """
    Integrate a volume over a box; returns the filled and the whole volume, in image voxels.

    The point at the indices (u, v, w) is `origin + to_box @ (u, v, w)` in the axes of the
    box, whose faces are at `-half` and `half` mm. Each pair of opposite faces cuts an interval
    from a row; the intersection of the three intervals is in the box. Along w the integral is
    exact; along u and v it is a sum over the middles of strips.

    Shapes: `prefix` (a, b, c), `u_nodes`, `u_widths` (n,), `v_nodes`, `v_widths` (m,), `to_box`
    (3, 3), `origin`, `half` (3,).
    """
    a, b, c = prefix.shape
    # The middle of the interval of each pair of faces is where the row passes the center of the
    # box along their normal. A row parallel to the faces gets a small slope, which moves the ends
    # of the interval far away.
    per_mm0 = -1.0 / (to_box[0, 2] if abs(to_box[0, 2]) > 1e-12 else 1e-12)
    per_mm1 = -1.0 / (to_box[1, 2] if abs(to_box[1, 2]) > 1e-12 else 1e-12)
    per_mm2 = -1.0 / (to_box[2, 2] if abs(to_box[2, 2]) > 1e-12 else 1e-12)
    reach0 = abs(half[0] * per_mm0)
    reach1 = abs(half[1] * per_mm1)
    reach2 = abs(half[2] * per_mm2)
    # By how much the middles move with v.
    slope0 = to_box[0, 1] * per_mm0
    slope1 = to_box[1, 1] * per_mm1
    slope2 = to_box[2, 1] * per_mm2
    # Three intervals on a line intersect if each two do, which bounds v: the middles of two
    # intervals must be no farther apart than the sum of their reaches.
    per_slope01 = 1.0 / (slope0 - slope1) if abs(slope0 - slope1) > 1e-12 else 1e12
    per_slope02 = 1.0 / (slope0 - slope2) if abs(slope0 - slope2) > 1e-12 else 1e12
    per_slope12 = 1.0 / (slope1 - slope2) if abs(slope1 - slope2) > 1e-12 else 1e12
    filled = 0.0
    total = 0.0
    last_sum = c - 1.0
    last_cell = c - 2.0
    last_v = b - 0.5
    n_v = len(v_nodes)
    one = np.uint64(1)
    for n in range(len(u_nodes)):
        u = u_nodes[n]
        # Middles at v = 0. The 0.5 leads from w to the index of a running sum: that at k sums the
        # voxels before k, up to w = k - 0.5.
        start0 = (origin[0] + to_box[0, 0] * u) * per_mm0 + 0.5
        start1 = (origin[1] + to_box[1, 0] * u) * per_mm1 + 0.5
        start2 = (origin[2] + to_box[2, 0] * u) * per_mm2 + 0.5
        # The v where two middles are equal, and how far from it their intervals still meet.
        equal01 = (start1 - start0) * per_slope01
        equal02 = (start2 - start0) * per_slope02
        equal12 = (start2 - start1) * per_slope12
        range01 = abs((reach0 + reach1) * per_slope01)
        range02 = abs((reach0 + reach2) * per_slope02)
        range12 = abs((reach1 + reach2) * per_slope12)
        low_v = max(equal01 - range01, max(equal02 - range02, equal12 - range12))
        high_v = min(equal01 + range01, min(equal02 + range02, equal12 + range12))
        first = 0
        while first < n_v and v_nodes[first] < low_v:
            first += 1
        end = n_v
        while end > first and v_nodes[end - 1] > high_v:
            end -= 1
        i = np.uint64(np.int64(min(max(u + 0.5, 0.0), a - 0.5)))
        plane_filled = 0.0
        plane_total = 0.0
        # No branches and unsigned indices, so that the compiler handles several rows at once.
        for m in range(first, end):
            v = v_nodes[m]
            middle0 = start0 + slope0 * v
            middle1 = start1 + slope1 * v
            middle2 = start2 + slope2 * v
            low = max(middle0 - reach0, max(middle1 - reach1, middle2 - reach2))
            high = max(low, min(middle0 + reach0, min(middle1 + reach1, middle2 + reach2)))
            plane_total += v_widths[m] * (high - low)
            low = min(max(low, 0.0), last_sum)
            high = min(max(high, 0.0), last_sum)
            j = np.uint64(np.int64(min(max(v + 0.5, 0.0), last_v)))
            # Between two running sums, the sum grows linearly.
            whole = np.int64(min(low, last_cell))
            k = np.uint64(whole)
            below = prefix[i, j, k]
            sum_low = below + (low - whole) * (prefix[i, j, k + one] - below)
            whole = np.int64(min(high, last_cell))
            k = np.uint64(whole)
            below = prefix[i, j, k]
            sum_high = below + (high - whole) * (prefix[i, j, k + one] - below)
            plane_filled += v_widths[m] * (sum_high - sum_low)
        filled += u_widths[n] * plane_filled
        total += u_widths[n] * plane_total
    return filled, total


@njit(cache=True, nogil=True, _nrt=False)
def _voxel_strips(middle, reach, n_rows, nodes, widths):
    """
    Divide the extent of a box along an axis into strips that lie in one image voxel each.

    The part in each voxel becomes `n_rows` strips. Their middles and widths are written to `nodes`
    and `widths`; returns their number.
    """
    n = 0
    low = middle - reach
    high = middle + reach
    border = np.floor(low + 0.5) + 0.5
    while low < high and n + n_rows <= len(nodes):
        end = min(border, high)
        if end > low:
            width = (end - low) / n_rows
            for strip in range(n_rows):
                nodes[n] = low + (strip + 0.5) * width
                widths[n] = width
                n += 1
        low = end
        border += 1.0
    return n


@njit(cache=True, nogil=True, _nrt=False)
def _center_index(grid, axis, center):
    """Give the index of the center of a box along an axis of a grid."""
    index = 0.0
    for y in range(3):
        index += grid.inverse[axis, y] * (center[y] - grid.offset[y])
    return index


@njit(cache=True, nogil=True, _nrt=False)
def _reach(grid, axis, rotation, half):
    """Give how far a box extends from its center along an axis of a grid, in indices."""
    reach = 0.0
    for side in range(3):
        per_mm = 0.0
        for y in range(3):
            per_mm += grid.inverse[axis, y] * rotation[y, side]
        reach += abs(per_mm) * half[side]
    return reach


@njit(cache=True, nogil=True, _nrt=False)
def _fraction(grid, center, rotation, half, n_rows, nodes, to_box, origin):
    """Compute the fraction of a box that a volume fills; overwrites the last three arguments."""
    matrix = grid.matrix
    for side in range(3):
        origin[side] = 0.0
        for axis in range(3):
            origin[side] += rotation[axis, side] * (grid.offset[axis] - center[axis])
            to_box[side, axis] = (
                rotation[0, side] * matrix[0, axis]
                + rotation[1, side] * matrix[1, axis]
                + rotation[2, side] * matrix[2, axis]
            )
    middle = _center_index(grid, 0, center)
    reach = _reach(grid, 0, rotation, half)
    n = _voxel_strips(middle, reach, n_rows, nodes[0], nodes[1])
    middle = _center_index(grid, 1, center)
    reach = _reach(grid, 1, rotation, half)
    m = _voxel_strips(middle, reach, n_rows, nodes[2], nodes[3])
    filled, total = integrate(
        grid.prefix, nodes[0, :n], nodes[1, :n], nodes[2, :m], nodes[3, :m], to_box, origin, half
    )
    # Divided by the volume of the same strips, not of the box, so that a full volume gives 1.
    return filled / total if total > 0.0 else 0.0


@njit(cache=True, nogil=True, _nrt=False)
def _axis_rotation(axis, angle, rotation):
    """Write the rotation about one axis by an angle in radians to `rotation`."""
    c = np.cos(angle)
    s = np.sin(angle)
    second = (axis + 1) % 3
    third = (axis + 2) % 3
    for a in range(3):
        for b in range(3):
            rotation[a, b] = 0.0
    rotation[axis, axis] = 1.0
    rotation[second, second] = c
    rotation[third, third] = c
    rotation[second, third] = -s
    rotation[third, second] = s


@njit(cache=True, nogil=True, _nrt=False)
def _multiply(first, second, product):
    """Write the product of two matrices (3, 3) to `product`."""
    for a in range(3):
        for b in range(3):
            product[a, b] = (
                first[a, 0] * second[0, b]
                + first[a, 1] * second[1, b]
                + first[a, 2] * second[2, b]
            )


@njit(cache=True, nogil=True, _nrt=False)
def _pose(x, frame, limits, center, size, rotation, factors):
    """
    Write the box of the variables of a search to `center`, `size` and `rotation`.

    Sides outside their limits are clipped, and a box below the least volume is enlarged; returns
    the penalty for both. Kinds of search differ in the rotations of the box: see `UNTURNED`.
    """
    kind = frame.kind
    base = frame.base
    penalty = 0.0
    volume = 1.0
    for a in range(3):
        center[a] = frame.origin[a] + x[a]
        log_side = min(max(x[3 + a], limits.low_sides[a]), limits.high_sides[a])
        penalty += (x[3 + a] - log_side) ** 2
        size[a] = np.exp(log_side)
        volume *= size[a]
    for _ in range(3):
        # Sides at their upper limit cannot grow and leave it to the others: up to three rounds.
        if volume >= limits.min_volume:
            break
        factor = np.cbrt(limits.min_volume / volume) * (1.0 + 1e-12)
        penalty += np.log(factor) ** 2
        volume = 1.0
        for a in range(3):
            size[a] = min(size[a] * factor, np.exp(limits.high_sides[a]))
            volume *= size[a]
    if kind == UNTURNED:
        for a in range(3):
            for b in range(3):
                rotation[a, b] = base[a, b]
    elif kind < NEXT_AXIS:
        _axis_rotation(kind - ONE_AXIS, x[6], rotation)
    elif kind != ANY_TURN:
        axis = kind - (NEXT_AXIS if kind < ANY_TURN else PREVIOUS_AXIS)
        second = (axis + (1 if kind < ANY_TURN else 2)) % 3
        _axis_rotation(axis, x[6], factors[0])
        _axis_rotation(second, x[7], factors[1])
        _multiply(factors[0], factors[1], rotation)
    else:
        # Rodrigues' formula for a rotation vector, which has no singular pose near zero.
        angle = np.sqrt(x[6] ** 2 + x[7] ** 2 + x[8] ** 2)
        s = np.sin(angle) / angle if angle > 1e-9 else 1.0
        c = (1.0 - np.cos(angle)) / angle**2 if angle > 1e-9 else 0.5
        for a in range(3):
            b = (a + 1) % 3
            d = (a + 2) % 3
            factors[0, a, a] = 1.0 - c * (x[6 + b] ** 2 + x[6 + d] ** 2)
            factors[0, a, b] = c * x[6 + a] * x[6 + b] - s * x[6 + d]
            factors[0, b, a] = c * x[6 + a] * x[6 + b] + s * x[6 + d]
        _multiply(base, factors[0], rotation)
    return penalty


@njit(cache=True, nogil=True, _nrt=False)
def _outside(grid, center, rotation, half, low, high):
    """Sum how far a box extends beyond the outer faces `low` and `high` of an image, in mm."""
    matrix = grid.matrix
    inverse = grid.inverse
    total = 0.0
    squared_half_diagonal = half[0] * half[0] + half[1] * half[1] + half[2] * half[2]
    for a in range(3):
        middle = _center_index(grid, a, center)
        squared_indices_per_mm = 0.0
        for y in range(3):
            squared_indices_per_mm += inverse[a, y] * inverse[a, y]
        # Most boxes are clear of both faces whatever their rotation: no corner is farther away
        # than half the diagonal.
        nearest = min(middle - low[a], high[a] - middle)
        squared_farthest = squared_indices_per_mm * squared_half_diagonal
        if nearest > 0.0 and nearest * nearest > squared_farthest:
            continue
        squared_edge = 0.0
        for y in range(3):
            squared_edge += matrix[y, a] ** 2
        reach = _reach(grid, a, rotation, half)
        below = max(0.0, low[a] - middle + reach)
        above = max(0.0, middle + reach - high[a])
        total += (below + above) * np.sqrt(squared_edge)
    return total


@njit(cache=True, nogil=True, _nrt=False)
def _preference_cost(center, size, preference):
    """Compute the cost of the distance from the preferred center, and of unequal sides."""
    cost = 0.0
    if preference.log_aspect < NO_LIMIT:
        longest = max(size[0], max(size[1], size[2]))
        shortest = min(size[0], min(size[1], size[2]))
        excess = max(0.0, np.log(longest / shortest) - preference.log_aspect)
        cost += ELONGATION * excess**2
    if preference.weight > 0.0:
        mean_log_side = np.log(size[0] * size[1] * size[2]) / 3.0
        for a in range(3):
            distance = (center[a] - preference.center[a]) / PREFERRED_MM
            inequality = np.log(size[a]) - mean_log_side
            cost += preference.weight * (distance**2 + inequality**2)
    return cost


@njit(cache=True, nogil=True, _nrt=False)
def _cost(x, frame, problem, work):
    """Compute minus the log of the objective plus the costs of constraints and preferences."""
    limits = problem.limits
    box = work.box
    center = box[0]
    size = box[1]
    half = box[2]
    rotation = box[3:6]
    origin = box[6]
    # The factors of the rotation are no longer needed once it is known: their memory is reused.
    to_box = work.rotations[0]
    penalty = _pose(x, frame, limits, center, size, rotation, work.rotations)
    volume = size[0] * size[1] * size[2]
    for a in range(3):
        half[a] = 0.5 * size[a]
    fraction = _fraction(
        problem.grid, center, rotation, half, limits.n_rows, work.nodes, to_box, origin
    )
    cost = objective_cost(fraction, fraction * volume, limits.objective) + penalty
    outside = _outside(problem.grid, center, rotation, half, problem.low, problem.high)
    if outside > 0.0:
        # The step of 0.1 makes a box that just touches worse than one that is just clear.
        cost += limits.penalty * (0.1 + outside)
    excluded = problem.excluded
    allowances = excluded.allowances
    for m in range(len(allowances)):
        for a in range(3):
            half[a] = 0.5 * size[a] + allowances[m, 0]
        region = Grid(excluded.sums[m], excluded.matrix, excluded.inverse, excluded.offset)
        fraction = _fraction(
            region, center, rotation, half, np.int64(1), work.nodes, to_box, origin
        )
        excess = fraction - allowances[m, 1]
        if excess > 0.0:
            # An excess of 1 % of the box costs as much as 1 mm outside the image.
            cost += limits.penalty * (0.1 + 100.0 * excess)
    return cost + _preference_cost(center, size, limits.preference)


@njit(cache=True, nogil=True, _nrt=False)
def _copy(source, target):
    """Copy numbers (n,): unlike an assignment, this compiles no message of unlike shapes."""
    for p in range(len(target)):
        target[p] = source[p]


@njit(cache=True, nogil=True)
def _improve(simplex, costs, n_costs, max_costs, tolerance, frame, problem, work):
    """
    Improve a simplex by the method of Nelder and Mead until `max_costs` costs were computed.

    `n_costs` costs were computed before. Returns their new number, or -1 after convergence.
    """
    points = work.points
    centroid = points[0]
    reflected = points[1]
    trial = points[2]
    n_variables = _n_variables(frame.kind)
    # The coefficients of Gao and Han, who adapt them to the number of variables.
    expansion = 1.0 + 2.0 / n_variables
    contraction = 0.75 - 0.5 / n_variables
    shrinkage = 1.0 - 1.0 / n_variables
    # Variables that this kind of search does not vary.
    _copy(simplex[0], reflected)
    _copy(simplex[0], trial)
    while n_costs < max_costs:
        best = 0
        worst = 0
        for vertex in range(1, n_variables + 1):
            if costs[vertex] < costs[best]:
                best = vertex
            if costs[vertex] >= costs[worst]:
                worst = vertex
        # A cost below 1e-6 is an objective of 1 but for rounding.
        if costs[worst] - costs[best] < tolerance or costs[best] < 1e-6:
            return -1
        second_worst = best
        for vertex in range(n_variables + 1):
            if vertex != worst and costs[vertex] > costs[second_worst]:
                second_worst = vertex
        for p in range(n_variables):
            total = 0.0
            for vertex in range(n_variables + 1):
                if vertex != worst:
                    total += simplex[vertex, p]
            centroid[p] = total / n_variables
            reflected[p] = 2.0 * centroid[p] - simplex[worst, p]
        cost = _cost(reflected, frame, problem, work)
        n_costs += 1
        if costs[best] <= cost < costs[second_worst]:
            _copy(reflected, simplex[worst])
            costs[worst] = cost
            continue
        # Expand beyond a new best point; else contract toward the better of the two ends.
        is_best = cost < costs[best]
        factor = expansion if is_best else contraction
        is_beyond_centroid = cost < costs[worst]
        for p in range(n_variables):
            end = reflected[p] if is_beyond_centroid else simplex[worst, p]
            trial[p] = centroid[p] + factor * (end - centroid[p])
        trial_cost = _cost(trial, frame, problem, work)
        n_costs += 1
        if is_best and cost <= trial_cost:
            _copy(reflected, simplex[worst])
            costs[worst] = cost
        elif is_best or trial_cost < min(cost, costs[worst]):
            _copy(trial, simplex[worst])
            costs[worst] = trial_cost
        else:
            # The contracted point is no better than that end: shrink toward the best vertex.
            for vertex in range(n_variables + 1):
                if vertex != best:
                    for p in range(n_variables):
                        simplex[vertex, p] = simplex[best, p] + shrinkage * (
                            simplex[vertex, p] - simplex[best, p]
                        )
                    costs[vertex] = _cost(simplex[vertex], frame, problem, work)
                    n_costs += 1
    return n_costs


@njit(cache=True, nogil=True, _nrt=False)
def _n_variables(kind):
    """Count the variables of a kind of search: center, sides, and none to three angles."""
    if kind == UNTURNED:
        return 6
    if kind < NEXT_AXIS:
        return 7
    return 9 if kind == ANY_TURN else 8


@njit(cache=True, nogil=True)
def descend(x0, kinds, bases, origins, problem, steps, rounds, tolerance):
    """
    Improve boxes by the simplex method of Nelder and Mead with adaptive coefficients.

    In each round the `rounds[r, 0]` best boxes are improved until `rounds[r, 1]` costs of each
    were computed; the first round must improve all. `steps` are the edges of the first simplex:
    of centers in mm, of logarithms of sides, and of angles in radians.

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
    vertex_costs = np.full((n, 10), 1e300)
    # Costs computed of each box; -1 once its simplex converged.
    n_costs = np.zeros(n, dtype=np.int64)
    for r in range(len(rounds)):
        order = np.arange(n)
        # A stable sort, so that ties are broken alike on every machine.
        for place in range(1, n):
            s = order[place]
            while place > 0 and costs[order[place - 1]] > costs[s]:
                order[place] = order[place - 1]
                place -= 1
            order[place] = s
        for s in order[: rounds[r, 0]]:
            if n_costs[s] < 0:
                continue
            n_variables = _n_variables(kinds[s])
            frame = Frame(kinds[s], bases[s], origins[s])
            if r == 0:
                for v in range(n_variables + 1):
                    _copy(x0[s], simplices[s, v])
                    if v > 0:
                        simplices[s, v, v - 1] += steps[(v - 1) // 3]
                    vertex_costs[s, v] = _cost(simplices[s, v], frame, problem, work)
                n_costs[s] = n_variables + 1
            n_costs[s] = _improve(
                simplices[s],
                vertex_costs[s],
                n_costs[s],
                rounds[r, 1],
                tolerance,
                frame,
                problem,
                work,
            )
            costs[s] = vertex_costs[s].min()
    for s in range(n):
        _copy(simplices[s, vertex_costs[s].argmin()], x_best[s])
        frame = Frame(kinds[s], bases[s], origins[s])
        _pose(x_best[s], frame, problem.limits, box[0], box[1], box[3:6], work.rotations)
        for row in range(5):
            _copy(box[row if row < 2 else row + 1], boxes[s, row])
    return x_best, costs, boxes


@njit(cache=True, nogil=True)
def _new_work():
    """Allocate the memory that the searches of one call reuse."""
    return Work(np.empty((4, 4096)), np.empty((7, 3)), np.empty((2, 3, 3)), np.empty((3, 9)))


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _block_sums(prefix, depth, pad):
    """
    Sum a volume over all blocks before (i, j, `pad` + k).

    Along w, where sums stay constant before and after the volume, there are `pad` more of them on
    either side, so that boxes need no clipping.
    """
    a = prefix.shape[0] - 2
    b = prefix.shape[1] - 2
    c = prefix.shape[2]
    layers = (c - 1 + depth - 1) // depth
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
    return sums


# Both are called for every place, and are inlined like the objective.
@njit(inline="always")
def _edges(sums, i, j, k, shape, margin):
    """
    Give the flat indices in `sums` of the four edges along w of a box, and its length along w.

    The box has its center at block (i, j, k) and is grown by a margin; all in blocks.
    """
    low_i = i - shape[0] // 2 - margin
    low_j = j - shape[1] // 2 - margin
    low_k = k - shape[2] // 2 - margin
    i0 = max(low_i, 0)
    j0 = max(low_j, 0)
    i1 = min(low_i + shape[0] + 2 * margin, sums.shape[0] - 1)
    j1 = min(low_j + shape[1] + 2 * margin, sums.shape[1] - 1)
    return (
        np.uint64((i0 * sums.shape[1] + j0) * sums.shape[2] + low_k),
        np.uint64((i0 * sums.shape[1] + j1) * sums.shape[2] + low_k),
        np.uint64((i1 * sums.shape[1] + j0) * sums.shape[2] + low_k),
        np.uint64((i1 * sums.shape[1] + j1) * sums.shape[2] + low_k),
        np.uint64(shape[2] + 2 * margin),
    )


@njit(inline="always")
def _sum_in_box(flat_sums, edges, shift):
    """Sum over a box, shifted along w: the sums at its eight corners, with alternating signs."""
    edge00, edge01, edge10, edge11, far = edges
    return (
        (flat_sums[edge11 + far + shift] - flat_sums[edge01 + far + shift])
        - (flat_sums[edge10 + far + shift] - flat_sums[edge00 + far + shift])
        - (flat_sums[edge11 + shift] - flat_sums[edge01 + shift])
        + (flat_sums[edge10 + shift] - flat_sums[edge00 + shift])
    )


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def scan(prefix, depth, shapes, volume_element, limits, stride):
    """
    Score boxes along the image's axes, centered at blocks: the best sides for each block.

    A block is one row wide and `depth` voxels deep along the row. Centers are at every block of
    every `stride`-th row. Of boxes with nearly equal costs, those deep in the tumor are preferred:
    0.05 times the tumor fraction of the box grown by two blocks on each side is subtracted from
    the cost.

    Shapes: `prefix` (a + 2, b + 2, c + 1), `shapes` (m, 3), sides in blocks; returns centers
    (n, 3), sides (n, 3), costs (n,). `volume_element` is the volume of a block.
    """
    pad = np.int64(3)
    for s in range(len(shapes)):
        pad = max(pad, shapes[s, 2] + 3)
    sums = _block_sums(prefix, depth, pad)
    flat_sums = sums.ravel()
    a = sums.shape[0] - 1
    b = sums.shape[1] - 1
    layers = sums.shape[2] - 1 - 2 * pad

    n_rows = len(range(stride // 2, a, stride)) * len(range(stride // 2, b, stride))
    n_places = n_rows * layers
    centers = np.empty((n_places, 3))
    sides = np.empty((n_places, 3))
    costs = np.empty(n_places)
    # Of one row of centers, with one value a layer.
    shape_costs = np.empty(layers, dtype=np.float32)
    best_costs = np.empty(layers, dtype=np.float32)
    best_shapes = np.empty(layers, dtype=np.int32)

    # Fractions and volumes in units of their standard deviations need no divisions.
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
            # The best shape of each layer. All layers of a shape are scored at once.
            best_costs[:] = np.float32(1e30)
            for s in range(len(shapes)):
                edges = _edges(sums, i, j, pad, shapes[s], 0)
                n_blocks = shapes[s, 0] * shapes[s, 1] * shapes[s, 2]
                to_fraction = np.float32(1.0 / (exact.sd_fraction * n_blocks))
                for layer in range(layers):
                    tumor_sum = _sum_in_box(flat_sums, edges, np.uint64(layer))
                    shape_costs[layer] = objective_cost(
                        tumor_sum * to_fraction, tumor_sum * to_volume, scaled
                    )
                for layer in range(layers):
                    if shape_costs[layer] < best_costs[layer]:
                        best_costs[layer] = shape_costs[layer]
                        best_shapes[layer] = s

            for layer in range(layers):
                # No shape has a finite cost here.
                if best_costs[layer] > 1e29:
                    continue
                shape = shapes[best_shapes[layer]]
                # A box deep in the tumor stays full when it is rotated.
                edges = _edges(sums, i, j, pad + layer, shape, 2)
                tumor_sum = _sum_in_box(flat_sums, edges, np.uint64(0))
                grown = (shape[0] + 4) * (shape[1] + 4) * (shape[2] + 4)
                costs[n] = best_costs[layer] - 0.05 * tumor_sum / grown
                place = (i, j, layer)
                for x in range(3):
                    centers[n, x] = place[x] - shape[x] // 2 + 0.5 * shape[x]
                    sides[n, x] = shape[x]
                n += 1
    return centers[:n], sides[:n], costs[:n]


@njit(cache=True, nogil=True)
def fractions(boxes, grid, margin, n_rows):
    """Compute the fractions that a volume fills of boxes (n, 5, 3) grown by a margin in mm."""
    nodes = np.empty((4, 4096))
    to_box = np.empty((3, 3))
    origin = np.empty(3)
    half = np.empty(3)
    out = np.empty(len(boxes))
    for n in range(len(boxes)):
        for x in range(3):
            half[x] = 0.5 * boxes[n, 1, x] + margin
        center = boxes[n, 0]
        rotation = boxes[n, 2:5]
        out[n] = _fraction(grid, center, rotation, half, n_rows, nodes, to_box, origin)
    return out


@njit(cache=True, nogil=True)
def costs_of(x, kinds, bases, origins, grid, excluded, low, high, limits):
    """Compute the costs that `descend` minimizes; the last five are the fields of a `Problem`."""
    problem = Problem(grid, excluded, low, high, limits)
    work = _new_work()
    out = np.empty(len(x))
    for n in range(len(x)):
        frame = Frame(kinds[n], bases[n], origins[n])
        out[n] = _cost(x[n], frame, problem, work)
    return out
