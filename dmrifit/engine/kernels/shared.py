"""
The part of a fit that is the same for all signal models, compiled once for all of them.

This file is not imported. `compiler.load` copies it to the folder of kernels, where a
change of any file beside it is a change of its name. Work arrays are made by Python, and helpers
have no wrappers for Python, because compiling either takes long.
"""

import math

from dmrifit.engine.kernels.lanes import block, call, choose, njit
from dmrifit.engine.kernels.layout import (
    CONVERGED,
    LANES,
    LOST_FAR,
    LOST_NEAR,
    NO_MORE_VOXELS,
    RUNNING,
    SINGLE,
)

C, CT, BC, GB, SQ, SQT, LAM, P1, IT, END, NF2 = range(len(SINGLE))
N_SINGLE = len(SINGLE)
# After them, fields of n numbers each, in the order of `layout.FIT_FIELDS`: current and trial
# point, bounds, diagonal of the inverse of J'J, J'J.
Q, T, LO, D, M = 0, 1, 5, 7, 8
# Places of `numbers`: parameters, S0 or −1, the fraction of a mixture or −1, K or −1, its D.
N, AMPLITUDE, MIXTURE, KURTOSIS, DIFFUSIVITY = range(5)
PLAIN, LOG, INVERSE = range(3)

# Measurements of an atom that are multiplied at once, so that their sum stays in a register.
TOGETHER = 7


def rating(gain):
    """
    Write the code that rates atoms of one stratum and keeps the best in `w`.

    `gain` computes how much an atom lowers the sum of squares, from the product `v` of the first
    component's atom with the data, the product `y` of its own, and its constants.
    """

    def write(w, s, y, v, t):
        rating = +gain(v[0], y[0], [s[i] for i in range(5)])
        is_better = rating > w[0]
        w[0], w[1] = choose(is_better, rating, w[0]), choose(is_better, s[5], w[1])

    return block(write)


def pair_gain(v, y, c):
    """Compute how much two non-negative amplitudes of a pair of atoms lower the sum of squares."""
    one = v * c[0] - y * c[1]
    zero = y * c[2] - v * c[1]
    # A projection below 0, as of negative values, explains nothing.
    gain = choose(one > 0.0, one * v + zero * y, choose(y > 0.0, y, 0.0) * y * c[3])
    return choose(zero > 0.0, gain, choose(v > 0.0, v, 0.0) * v * c[4])


rate_pair = rating(pair_gain)
rate_scaled = rating(lambda v, y, c: choose(y > 0.0, y * y * c[3], 0.0))
rate_plain = rating(lambda v, y, c: 2.0 * y - c[0])


def projection(count):
    """Write the code that adds products of numbers of an atom with the data to `w`."""

    def write(w, s, y, v, t):
        total = w[0]
        for k in range(count):
            total = total + s[k] * y[k]
        w[0] = total

    return block(write)


project_several, project_one = projection(TOGETHER), projection(1)

# Two starts disagree that fit equally well, with a ridge between them; both are relative.
SAME_COST, RIDGE = 1e-2, 5e-2
# Iterations, and those of a trial start: where the signal sinks into the noise floor, one start in
# seven converges slowly, mostly to a poor end.
MAX_ITER, TRIAL_ITER = 200.0, 30.0
# Tasks of a voxel with trials, see `search`.
WITHOUT_FLOOR, FROM_ITS_END = 1, 2

# Called from Python, and from jitted code alone: the latter have no wrappers.
entry = njit(nogil=True, cache=True, error_model="numpy", no_cfunc_wrapper=True)
helper = njit(nogil=True, error_model="numpy", no_cfunc_wrapper=True, no_cpython_wrapper=True)
# For each voxel: the fields of a dozen arrays as arguments would cost more than the work itself,
# and so would counting references to them (`_nrt`); these functions may not allocate.
inlined = njit(
    nogil=True,
    error_model="numpy",
    no_cfunc_wrapper=True,
    no_cpython_wrapper=True,
    forceinline=True,
    _nrt=False,
)


@helper
def screen(signals, n_free, normalize, scales, usable, n_known):
    """Find the voxels that can be fitted, their numbers of measurements, and their scales."""
    n, m = signals.shape
    n_slots = 0
    for i in range(n):
        top, bottom, count = -math.inf, math.inf, 0
        for k in range(m):
            value = signals[i, k]
            if math.isfinite(value):
                count += 1
                top = max(top, value)
                bottom = min(bottom, value)
        # Beyond these limits, amplitudes or their inverses are no numbers any more.
        if count < n_free or top < 1e-300 or top > 1e290 or top == bottom:
            continue
        # A squared residual of such a value would overflow.
        if bottom < -1e140 * top:
            continue
        scales[n_slots] = 1.0 / top if normalize else 1.0
        usable[n_slots] = i
        n_known[n_slots] = count
        n_slots += 1
    return n_slots


@helper
def rate(y, atoms, n_first, scaled, constants, dots, best, places):
    """
    Rate the atoms of the dictionary for one group of lanes, and keep the best of each stratum.

    With two components every pair is rated by its least squares of two non-negative amplitudes;
    with one, every atom by that of one amplitude; without an amplitude, by the distance itself.
    `best` holds a rating and the index of an atom for each stratum and lane.
    """
    n_second = atoms.shape[0] - n_first
    n_strata = best.shape[0]
    m = atoms.shape[1]
    n_several = m - m % TOGETHER
    for a in range(atoms.shape[0]):
        atom, products = atoms[a], dots[a]
        products[:] = 0.0
        for k in range(0, n_several, TOGETHER):
            places[0] = k * LANES
            project_several(products, atom[k:], y, y, y, places)
        for k in range(n_several, m):
            places[0] = k * LANES
            project_one(products, atom[k:], y, y, y, places)
    places[0] = 0
    for s in range(n_strata):
        for lane in range(LANES):
            best[s, lane] = -math.inf
            best[s, LANES + lane] = 0.0
    for s in range(n_first):
        for t in range(n_second):
            rate_pair(best[s], constants[s, t], dots[n_first + t], dots[s], y, places)
    if n_first == 0:
        for t in range(n_second):
            product = dots[t]
            stratum = best[t * n_strata // n_second]
            if scaled:
                rate_scaled(stratum, constants[0, t], product, product, y, places)
            else:
                rate_plain(stratum, constants[0, t], product, product, y, places)


@helper
def rate_incomplete(signal, lane, atoms, n_first, scaled, best, dots, gram):
    """Rate the atoms for a voxel with missing measurements, and compute its Gram matrix."""
    n_atoms, m = atoms.shape
    n_strata = best.shape[0]
    for i in range(n_atoms):
        for j in range(n_atoms):
            if i < n_first or i == j:
                total = 0.0
                for k in range(m):
                    if math.isfinite(signal[k]):
                        total += atoms[i, k] * atoms[j, k]
                gram[i, j] = total
    for s in range(n_strata):
        best[s, lane] = -math.inf
    for t in range(n_atoms - n_first):
        d, tt = dots[n_first + t, lane], gram[n_first + t, n_first + t]
        if n_first == 0:
            s = t * n_strata // (n_atoms - n_first)
            gain = 2.0 * d - tt
            if scaled:
                gain = d * d / tt if d > 0.0 and tt > 0.0 else 0.0
            if gain > best[s, lane]:
                best[s, lane] = gain
                best[s, LANES + lane] = t
        for s in range(n_first):
            a1, a0 = amplitudes(dots[s, lane], d, gram[s, s], gram[s, n_first + t], tt)
            gain = a1 * dots[s, lane] + a0 * d
            if gain > best[s, lane]:
                best[s, lane] = gain
                best[s, LANES + lane] = t


@inlined
def starting_points(slot, lane, common, atoms, gram, best, dots, points):
    """
    Turn the best atoms of each stratum into starting points in inner coordinates.

    They are ordered by rating, but the stratum `first` comes first unless it is −1.
    """
    n = common.numbers[N]
    amplitude, mixture = common.numbers[AMPLITUDE], common.numbers[MIXTURE]
    n_first = atoms.n_first
    for p in range(points.shape[1]):
        s = 0
        for stratum in range(1, best.shape[0]):
            if best[stratum, lane] > best[s, lane]:
                s = stratum
        if p == 0 and common.first >= 0:
            s = common.first
        t = int(best[s, LANES + lane])
        best[s, lane] = -math.inf
        for i in range(n):
            points[slot, p, i] = atoms.points[n_first + t, i]
            if n_first > 0 and not math.isnan(atoms.points[s, i]):
                points[slot, p, i] = atoms.points[s, i]
        d, tt = dots[n_first + t, lane], gram[n_first + t, n_first + t]
        if n_first > 0:
            a1, a0 = amplitudes(dots[s, lane], d, gram[s, s], gram[s, n_first + t], tt)
            total = a1 + a0
            points[slot, p, amplitude] = total
            share = a1 / total if total > 0.0 else 0.5
            points[slot, p, mixture] = min(max(share, 0.02), 0.98)
        elif amplitude >= 0:
            points[slot, p, amplitude] = d / tt if tt > 0.0 else 1.0
        for i in range(n):
            points[slot, p, i] = min(max(points[slot, p, i], common.low[i]), common.high[i])


@helper
def amplitudes(v, d, vv, vt, tt):
    """Compute the non-negative amplitudes of two atoms that fit best, from their products."""
    det = vv * tt - vt * vt
    if det > 1e-9 * vv * tt:
        a1, a0 = (v * tt - d * vt) / det, (d * vv - v * vt) / det
        if a1 > 0.0 and a0 > 0.0:
            return a1, a0
    # A projection below 0, as of negative values, explains nothing.
    v, d = max(v, 0.0), max(d, 0.0)
    if tt > 0.0 and (vv <= 0.0 or d * d * vv >= v * v * tt):
        return 0.0, d / tt
    return (v / vv if vv > 0.0 else 0.0), 0.0


@entry
def prepare(common, atoms, work, starts):
    """Screen the voxels and find their `Starts`; returns how many can be fitted."""
    best, dots, y, incomplete_gram, places = work
    signals, scales, usable, n_known, points, ratings = starts
    m = signals.shape[1]
    scaled = common.numbers[AMPLITUDE] >= 0
    n_slots = screen(signals, common.n_free, common.scaled.any(), scales, usable, n_known)
    for begin in range(0, n_slots, LANES):
        n_lanes = min(LANES, n_slots - begin)
        for lane in range(n_lanes):
            for k in range(m):
                value = signals[usable[begin + lane], k]
                y[k * LANES + lane] = value * scales[begin + lane] if math.isfinite(value) else 0.0
        rate(y, atoms.signals, atoms.n_first, scaled, atoms.constants, dots, best, places)
        for lane in range(n_lanes):
            slot = begin + lane
            gram = atoms.gram
            if n_known[slot] < m:
                gram = incomplete_gram
                signal = signals[usable[slot]]
                rate_incomplete(
                    signal, lane, atoms.signals, atoms.n_first, scaled, best, dots, gram
                )
            square = 0.0
            for k in range(m):
                square += y[k * LANES + lane] * y[k * LANES + lane]
            for s in range(best.shape[0]):
                ratings[slot, s] = square - best[s, lane]
            starting_points(slot, lane, common, atoms, gram, best, dots, points)
    return n_slots


@inlined
def place_bounds(w, lane, i, scale, common, pinned):
    """Put the bounds of a voxel into a lane; a fixed parameter has both at its value."""
    row = i if pinned.shape[0] > 1 else 0
    n = common.numbers[N]
    low = N_SINGLE + LO * n
    for j in range(n):
        value = pinned[row, j]
        if math.isnan(value):
            w[low + j, lane], w[low + n + j, lane] = common.low[j], common.high[j]
        else:
            value = value * scale if common.scaled[j] else value
            w[low + j, lane], w[low + n + j, lane] = value, value


@inlined
def begin(w, n, lane, point):
    """Begin the fit of a lane at a point, which is clipped to its bounds."""
    low = N_SINGLE + LO * n
    for j in range(n):
        value = min(max(point[j], w[low + j, lane]), w[low + n + j, lane])
        w[N_SINGLE + j, lane], w[N_SINGLE + n + j, lane] = value, value
    w[C, lane] = math.inf
    w[GB, lane] = w[BC, lane]
    w[P1, lane] = 1.0
    # The first trial is the start itself, which is better than infinity.
    w[LAM, lane] = 0.1
    w[IT, lane] = -1.0
    w[END, lane] = RUNNING


@inlined
def ends_elsewhere(w, n, lane, ends, slot):
    """Tell whether a start fits as well as the best so far, with a ridge between the two."""
    best = w[BC, lane]
    here = w[C, lane] - (w[P1, lane] if w[END, lane] == LOST_NEAR else 0.0)
    if best == math.inf or abs(here - best) > SAME_COST * min(here, best):
        return False
    # Within one valley the sum of squares rises as its quadratic form says, hence little.
    rise = 0.0
    at = N_SINGLE + M * n
    for j in range(n):
        step_j = w[N_SINGLE + j, lane] - ends[slot, j]
        for k in range(j + 1):
            step_k = w[N_SINGLE + k, lane] - ends[slot, k]
            rise += (1.0 if j == k else 2.0) * step_j * step_k * w[at, lane]
            at += 1
    return rise > RIDGE * best


@helper
def logarithm(x):
    """Approximate log2 by straight lines between powers of two: the same bits everywhere."""
    mantissa, exponent = math.frexp(x)
    return exponent + 2.0 * mantissa - 2.0


@inlined
def describe(common, end, slot, ratings, cost, features):
    """
    Describe where a start ended: residual squares of atoms over its cost, coordinates, bounds hit.

    Shapes: `features` (n_strata + 3·n,).
    """
    lo, hi = common.low, common.high
    n_strata, n = ratings.shape[1], len(lo)
    for s in range(n_strata):
        ratio = ratings[slot, s] / cost if cost > 0.0 else 1e4
        features[s] = logarithm(min(max(ratio, 0.05), 1e4))
    for j in range(n):
        q = end[slot, j]
        if math.isinf(lo[j]):
            share = q / (1.0 + abs(q))
        elif math.isinf(hi[j]):
            share = (q - lo[j]) / (1.0 + q - lo[j])
        else:
            share = (q - lo[j]) / (hi[j] - lo[j]) if hi[j] > lo[j] else 0.0
        features[n_strata + j] = share
        features[n_strata + n + j] = 1.0 if q <= lo[j] else 0.0
        features[n_strata + 2 * n + j] = 1.0 if q >= hi[j] else 0.0


@helper
def score(weights, n_smooth, features):
    """Add the first weight, weighted features and weighted products of the first `n_smooth`."""
    total = weights[0]
    at = 1
    for i in range(len(features)):
        total += weights[at] * features[i]
        at += 1
    for i in range(n_smooth):
        row = 0.0
        for j in range(i + 1):
            row += weights[at] * features[j]
            at += 1
        total += row * features[i]
    return total


@entry
def describe_all(common, ends, ratings, squares, features):
    """Describe where the first starts of many voxels ended."""
    for slot in range(len(ends)):
        describe(common, ends, slot, ratings, squares[slot], features[slot])


@inlined
def place_floor(w, lane, i, scale, sigma):
    """Put the square of the noise floor of a voxel into a lane."""
    floor = sigma[i if sigma.shape[0] > 1 else 0] * scale
    w[NF2, lane] = 0.5 * math.pi * floor * floor


@inlined
def place_voxel(w, y, v, lane, slot, starts, sigma, common, pinned):
    """Put the signals, bounds and noise floor of a voxel into a lane; no start of it has ended."""
    signals, scales, usable, _, _, _ = starts
    i = usable[slot]
    for k in range(signals.shape[1]):
        value = signals[i, k]
        measured = math.isfinite(value)
        y[k * LANES + lane] = value * scales[slot] if measured else 0.0
        v[k * LANES + lane] = common.roots[k] if measured else 0.0
    place_bounds(w, lane, i, scales[slot], common, pinned)
    place_floor(w, lane, i, scales[slot], sigma)
    w[BC, lane] = math.inf


@inlined
def keep_best_end(w, n, lane, slot, elsewhere, regularized, results):
    """Keep the end of a start if it is the best of its voxel, and note whether two disagree."""
    ends, sums, squares, converged, _, disagree = results
    if elsewhere:
        disagree[slot] = True
    elif w[C, lane] < (1.0 - SAME_COST) * w[BC, lane]:
        disagree[slot] = False
    if w[C, lane] < w[BC, lane]:
        # In a bent valley steps stay short, but promise little near the end.
        near = w[LAM, lane] < 0.5 and w[P1, lane] <= 1e-7 * w[C, lane]
        converged[slot] = w[END, lane] == CONVERGED or near
        # The last step promises so little that it is taken without a look.
        takes_trial = w[END, lane] == CONVERGED and w[P1, lane] > 1e-290 and not regularized
        gain = min(w[P1, lane], w[C, lane]) if takes_trial else 0.0
        w[BC, lane] = w[C, lane] - gain
        squares[slot] = w[SQ, lane] - gain
        row = N_SINGLE + (T if takes_trial else Q) * n
        for j in range(n):
            ends[slot, j] = w[row + j, lane]
        for j in range(n * (n + 1) // 2):
            sums[slot, j] = w[N_SINGLE + M * n + j, lane]


@entry
def search(code, common, starts, sigma, pinned, contrasts, weights, floored, work, results):
    """
    Minimize from the starting points of every voxel, and keep the best end of each.

    A voxel stays in one lane for all of its starts, its tasks, and leaves it to the next voxel. A
    lane never meets another one, so results do not depend on which voxels are fitted together.

    The tasks are the starting points in their order. With `weights`, a voxel gets tasks after the
    first one only if its end has not converged or scores above zero. If there is a noise floor,
    too, all tasks are trials of few steps, and there are more of them: after the first point the
    same one `WITHOUT_FLOOR`, then `FROM_ITS_END` with the floor; after the other points the best
    end with parameters moved to the values `middle` (NaN: not moved); and task `n_tasks`, which
    goes on from the best end unless that has converged.
    """
    w, s, y, v, t, places, slot_of, task_of, point, features = work
    _, scales, usable, _, points, ratings = starts
    ends, _, _, converged, steps, _ = results
    pairs, rows, b, te = contrasts
    n, n_slots, n_points = common.numbers[N], len(usable), points.shape[1]
    has_trials = len(weights) > 0 and floored
    n_tasks = n_points + 3 if has_trials else n_points
    n_placed, n_active = 0, 0
    # The first round only hands out voxels: no lane has one yet.
    while True:
        for lane in range(LANES):
            slot, task = slot_of[lane], task_of[lane]
            if slot == NO_MORE_VOXELS:
                continue
            if slot >= 0:
                longest = TRIAL_ITER if has_trials and task < n_tasks else MAX_ITER
                # A start without a finite signal ends at once: its lane still holds numbers of
                # the start before.
                begun = w[C, lane] < math.inf
                if begun and w[END, lane] == RUNNING and w[IT, lane] < longest:
                    continue
                without_floor = has_trials and task == WITHOUT_FLOOR
                elsewhere = (
                    begun
                    and w[END, lane] != LOST_FAR
                    and not without_floor
                    and ends_elsewhere(w, n, lane, ends, slot)
                )
                if elsewhere and w[END, lane] == LOST_NEAR:
                    w[GB, lane] = math.inf  # it is worth knowing where this start really ends
                    continue
                steps[slot] += int(w[IT, lane])
                if without_floor:
                    for j in range(n):
                        point[j] = w[N_SINGLE + Q * n + j, lane]
                    place_floor(w, lane, usable[slot], scales[slot], sigma)
                else:
                    keep_best_end(w, n, lane, slot, elsewhere, common.regularized, results)
                n_active -= 1
                task += 1
                if task == 1 and len(weights) > 0 and converged[slot]:
                    describe(common, ends, slot, ratings, w[BC, lane], features)
                    if score(weights, n_points + n, features) <= 0.0:
                        task = n_tasks
                if task == n_tasks and (not has_trials or converged[slot]):
                    task = n_tasks + 1

            if slot < 0 or task > n_tasks:
                slot, task = NO_MORE_VOXELS, 0
                if n_placed < n_slots:
                    slot = n_placed
                    place_voxel(w, y, v, lane, slot, starts, sigma, common, pinned)
                    n_placed += 1
            slot_of[lane], task_of[lane] = slot, task
            if slot == NO_MORE_VOXELS:
                continue

            if task == n_tasks:
                # The end counts that it comes to from the best one, not that one itself.
                w[BC, lane] *= 1.0 + 1e-9
                for j in range(n):
                    point[j] = ends[slot, j]
            elif has_trials and task == n_tasks - 1:
                for j in range(n):
                    point[j] = ends[slot, j] if math.isnan(common.middle[j]) else common.middle[j]
            elif not has_trials or task != FROM_ITS_END:
                p = max(task - 2, 0) if has_trials else task
                for j in range(n):
                    point[j] = points[slot, p, j]
            begin(w, n, lane, point)
            if has_trials and task == WITHOUT_FLOOR:
                # The costs without a floor are not those to beat; this one ends early.
                w[NF2, lane] = 0.0
                w[GB, lane] = 0.0
            n_active += 1
        if n_active == 0:
            break
        sizes = (len(pairs) // 2, len(b), len(te), int(floored), int(common.regularized))
        call(code, (w, s, y, v, t, places, pairs, rows, b, te, *sizes))


@entry
def finish(code, common, starts, pinned, w, s, places, results, columns):
    """Write the results of the voxels that were fitted, in the units of the model."""
    _, scales, usable, n_known, _, _ = starts
    ends, sums, squares, converged, steps, disagree = results
    parameters, errors, cost, status, n_iter, at_low, at_high, doubt = columns
    n_slots = len(usable)
    forms, scaled = common.forms, common.scaled
    n, k = common.numbers[N], common.numbers[KURTOSIS]
    q_row, low_row, sum_row = N_SINGLE + Q * n, N_SINGLE + LO * n, N_SINGLE + M * n
    for begin_slot in range(0, n_slots, LANES):
        n_lanes = min(LANES, n_slots - begin_slot)
        for lane in range(n_lanes):
            slot = begin_slot + lane
            place_bounds(w, lane, usable[slot], scales[slot], common, pinned)
            for j in range(n):
                w[q_row + j, lane] = ends[slot, j]
            for j in range(n * (n + 1) // 2):
                w[sum_row + j, lane] = sums[slot, j]
        call(code, (w, s, places))
        for lane in range(n_lanes):
            slot = begin_slot + lane
            i = usable[slot]
            if math.isnan(squares[slot]):
                continue  # no start has a finite signal
            row = i if pinned.shape[0] > 1 else 0
            limited = w[CT, lane]
            touched = False
            n_spare = n_known[slot]
            for j in range(n):
                q = w[q_row + j, lane]
                low, high = q <= w[low_row + j, lane], q >= w[low_row + n + j, lane]
                value, slope = q, 1.0
                if forms[j] == LOG:
                    value = math.exp(q)
                    slope = value
                elif forms[j] == INVERSE:
                    value = 1.0 / q
                    slope = value * value
                    low, high = high, low
                if j == k:
                    value *= limited
                free = math.isnan(pinned[row, j])
                low, high = low and free, high and free
                if low or high:
                    touched = True
                    if j != k or limited == 1.0:
                        value = common.outer_low[j] if low else common.outer_high[j]
                elif free:
                    n_spare -= 1
                at_low[i, j], at_high[i, j] = low, high
                unit = 1.0 / scales[slot] if scaled[j] else 1.0
                parameters[i, j] = value * unit
                errors[i, j] = slope * unit if free and not (low or high) else math.nan
            variance = squares[slot] / n_spare if n_spare > 0 else math.nan
            for j in range(n):
                d = w[N_SINGLE + D * n + j, lane]
                # `variances` gives 1e300 where the signal does not depend on the parameter.
                errors[i, j] *= math.sqrt(d * variance) if d < 1e290 else math.inf
            cost[i] = squares[slot] / scales[slot] / scales[slot]
            status[i] = 2 if not converged[slot] else (1 if touched else 0)
            n_iter[i] = steps[slot]
            doubt[i] = disagree[slot]
