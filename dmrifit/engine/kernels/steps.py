"""
Fit and intervals in vector code: sums over measurements, and Levenberg–Marquardt steps.

Each method with the arguments (w, s, y, v, t) is compiled by `lanes.block`: `w` has the fields of
the work array (see `layout`), `s` numbers that all voxels share, `y` signals, `v` their weights
and `t` a table of exponentials. A plus sign before a product rounds it by itself.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from dmrifit.engine.kernels.lanes import choose, exp, sqrt
from dmrifit.engine.kernels.layout import (
    CONVERGED,
    FIT_FIELDS,
    INTERVAL_FIELDS,
    LOST_FAR,
    LOST_NEAR,
    ROUNDING,
    RUNNING,
    STUCK,
    UNDETERMINED_SHARE,
    UNROLL,
    Fields,
    Layout,
)

# Indices in `s` of a fit, after b and te of `UNROLL` measurements.
TURN_UP, TOLERANCE, PENALTY = 2 * UNROLL, 2 * UNROLL + 1, 2 * UNROLL + 2
#: Predicted decreases, as shares of the objective, below which a fit may be given up as lost: near
#: its minimum, and far from it.
_NEAR, _FAR = 1e-3, 0.1


@dataclass(frozen=True)
class Signal:
    """The signal of a model and its derivatives, as `formula` writes them."""

    forms: tuple[str, ...]  # inner coordinate of each parameter: "plain", "log" or "inverse"
    kurtosis: int  # indices of K and D of a cumulant −bD + K(bD)²/6; -1 without one
    diffusivity: int
    # Gives the signal and its derivatives from parameters, b, te, and exponentials of b and of te.
    # None for a user's function, which writes them to the table.
    evaluate: Callable | None
    exponents_of_b: Callable
    exponents_of_te: Callable


def total(terms: Iterable[Any]) -> Any:
    """Add numbers in their order; unlike `sum`, without a 0 before the first."""
    return reduce(operator.add, terms)


class Sums:
    """Sums over measurements of squared residuals r'r, of J'r and of J'J."""

    fields: Mapping[str, str] = FIT_FIELDS
    uses_curvature = True  # whether the second derivative of the noise floor enters J'J

    def __init__(self, signal: Signal) -> None:
        self.signal = signal
        self.n = len(signal.forms)
        self.layout = Layout(self.n, self.fields)

    def clear(self, w: Any) -> None:
        """Clear the sums."""
        w.SQT = 0.0
        for i in range(self.n):
            w.GT[i] = 0.0
        for pair in self.layout.pairs:
            w.MT[pair] = 0.0

    def tabulate_b(self, w: Any, s: Any, y: Any, v: Any, t: Any) -> None:
        """Write the exponentials of one b-value to the table."""
        self._tabulate(self.signal.exponents_of_b, w, s, t)

    def tabulate_te(self, w: Any, s: Any, y: Any, v: Any, t: Any) -> None:
        """Write the exponentials of one echo time to the table."""
        self._tabulate(self.signal.exponents_of_te, w, s, t)

    def _tabulate(self, exponents: Callable, w: Any, s: Any, t: Any) -> None:
        x = [w.X[i] for i in range(self.n)]
        row = t[1]
        for e, exponent in enumerate(exponents(x, s[0])):
            row[e] = exp(exponent)

    def accumulate(self, w: Any, s: Any, y: Any, v: Any, t: Any, *, floored: bool = False) -> None:
        """Add `UNROLL` measurements to the sums."""
        x = [w.X[i] for i in range(self.n)]
        residuals, pulls, slopes, bent = [], [], [], []
        for u in range(UNROLL):
            signal, slope = self._measurement(x, s, t, u)
            weight = v[u]
            if floored:
                # The expected magnitude z = √(s² + nf²) has the derivative s/z, taken as 1 where
                # signal and floor are both 0. Far below the floor the derivative vanishes, and
                # only the second one, nf²/z³, makes the signal matter; it is added where it makes
                # J'J larger.
                z = sqrt(signal * signal + w.NF2)
                residual = +(weight * (y[u] - z))
                is_some = z > 1e-150
                chain = +(weight * choose(is_some, signal / z, 1.0))
                curvature = chain * chain
                if self.uses_curvature:
                    of_floor = choose(is_some, residual * w.NF2 / (z * z * z), 0.0)
                    curvature = curvature - choose(of_floor < 0.0, of_floor, 0.0)
            else:
                residual = +(weight * (y[u] - signal))
                chain, curvature = weight, weight * weight
            if not self.uses_curvature:
                slope = [+(chain * d) for d in slope]
                chain = curvature = 1.0
            curvature = +curvature
            residuals.append(residual)
            pulls.append(+(chain * residual))
            slopes.append(slope)
            bent.append([+(curvature * d) for d in slope])
        units = range(UNROLL)
        w.SQT = total([w.SQT, *(r * r for r in residuals)])
        for i in range(self.n):
            w.GT[i] = total([w.GT[i], *(slopes[u][i] * pulls[u] for u in units)])
        for i, j in self.layout.pairs:
            w.MT[i, j] = total([w.MT[i, j], *(bent[u][i] * slopes[u][j] for u in units)])

    def accumulate_floored(self, w: Any, s: Any, y: Any, v: Any, t: Any) -> None:
        """Add `UNROLL` measurements with a noise floor."""
        self.accumulate(w, s, y, v, t, floored=True)

    def _measurement(self, x: list, s: Any, t: Any, u: int) -> tuple[Any, list]:
        """Compute the signal of measurement `u` and its derivatives."""
        after_b, after_te = t[1 + 2 * u], t[2 + 2 * u]
        if self.signal.evaluate is None:
            return after_b[0], [after_b[1 + i] for i in range(self.n)]
        signal, *slopes = self.signal.evaluate(x, s[2 * u], s[2 * u + 1], after_b, after_te)
        return signal, slopes

    def regularize(self, w: Any, s: Any, y: Any, v: Any, t: Any) -> None:
        """Add nothing: only fits are regularized."""


class FitSteps(Sums):
    """The steps of a fit."""

    def begin(self, w: Any, s: Any, y: Any, v: Any, t: Any) -> None:
        """Convert the trial point to the parameters of the formula, and clear the sums."""
        for i, form in enumerate(self.signal.forms):
            w.X[i] = exp(w.T[i]) if form == "log" else w.T[i]
        k = self.signal.kurtosis
        if k >= 0:
            _, ratio = self._limit(w, s)
            w.X[k] = w.T[k] * ratio
        w.CT = 0.0
        self.clear(w)

    def _limit(self, w: Any, s: Any) -> tuple[Any, Any]:
        """Tell whether 3/(b_max·D) is below the bound of K, and compute their ratio, at most 1."""
        d = self.signal.diffusivity
        outer = w.X[d]
        if self.signal.forms[d] == "inverse":
            outer = 1.0 / outer
        room = s[TURN_UP] / (outer * w.HI[self.signal.kurtosis])
        is_limited = (room > 0.0) & (room < 1.0)
        return is_limited, choose(is_limited, room, 1.0)

    def regularize(self, w: Any, s: Any, y: Any, v: Any, t: Any) -> None:
        """Add penalty·(parameter − origin)² of each parameter, in coordinates of the formula."""
        for i, form in enumerate(self.signal.forms):
            # With the second derivative by the inner coordinate: J'J alone overshoots far from the
            # origin.
            outer, slope, second = w.X[i], 1.0, 0.0
            if form == "inverse":
                outer = 1.0 / w.X[i]
                slope = +(-outer * outer)
                second = +(2.0 * outer * outer * outer)
            elif form == "log":
                second = 1.0 / outer
            penalty = s[PENALTY + i]
            away = outer - s[PENALTY + self.n + i]
            w.CT = w.CT + penalty * away * away
            w.GT[i] = w.GT[i] - penalty * away * slope
            w.MT[i, i] = w.MT[i, i] + penalty * (slope * slope + +(away * second))

    def chain(self, w: Any, s: Any, y: Any, v: Any, t: Any) -> None:
        """Convert J'r and J'J to derivatives by inner coordinates; add r'r to the objective."""
        n, k, d = self.n, self.signal.kurtosis, self.signal.diffusivity
        w.CT = w.CT + w.SQT
        if k >= 0:
            is_limited, ratio = self._limit(w, s)
            bent = w.X[k] if self.signal.forms[d] == "inverse" else -w.X[k]
            slope = choose(is_limited, bent / w.X[d], 0.0)
            w.GT[d] = w.GT[d] + slope * w.GT[k]
            w.MT[d, d] = w.MT[d, d] + slope * (2.0 * w.MT[d, k] + slope * w.MT[k, k])
            for j in range(n):
                if j != d:
                    w.MT[d, j] = w.MT[d, j] + slope * w.MT[k, j]
            scale_row(w, n, k, ratio)
        for i, form in enumerate(self.signal.forms):
            if form == "log":
                scale_row(w, n, i, w.X[i])

    def accept(self, w: Any, s: Any, y: Any, v: Any, t: Any) -> None:
        """Accept the trial point in lanes where it is better, and adapt the damping."""
        is_better = w.CT < w.C
        damping = w.LAM
        gain = (w.C - w.CT) / w.P1
        w.C = choose(is_better, w.CT, w.C)
        less = choose(damping * 0.2 > 1e-9, damping * 0.2, 1e-9)
        less = choose(gain > 0.5, less, choose(gain > 0.2, damping, damping * 2.0))
        w.LAM = choose(is_better, less, damping * 6.0)
        w.IT = w.IT + 1.0
        w.SQ = choose(is_better, w.SQT, w.SQ)
        for i in range(self.n):
            w.Q[i] = choose(is_better, w.T[i], w.Q[i])
            w.G[i] = choose(is_better, w.GT[i], w.G[i])
        for pair in self.layout.pairs:
            w.M[pair] = choose(is_better, w.MT[pair], w.M[pair])

    def step(self, w: Any, s: Any, y: Any, v: Any, t: Any) -> None:
        """
        Choose the next trial point of every lane, and tell which lanes have ended.

        Parameters at a bound that the gradient points beyond are fixed. Those that the step would
        take beyond a bound are set to it, and the step of the others is solved again. A lane has
        converged when the unclipped step predicts too small a decrease: by that of the clipped
        step, 2–3 % of voxels would stop early.
        """
        n = self.n
        each = range(n)
        damping, objective = w.LAM, w.C
        q, g = [w.Q[i] for i in each], [w.G[i] for i in each]
        low, high = [w.LO[i] for i in each], [w.HI[i] for i in each]
        m = {(i, j): w.M[i, j] for i in each for j in each}
        free, right = [], []
        for i in each:
            is_held = ((q[i] <= low[i]) & (g[i] <= 0.0)) | ((q[i] >= high[i]) & (g[i] >= 0.0))
            free.append(choose(is_held, 0.0, 1.0))
            right.append(+(g[i] * free[i]))
        d = solve(m, damping, free, right)
        promise = +total(d[i] * (right[i] + damping * m[i, i] * d[i]) for i in each)

        still_free, put = [], []
        for i in each:
            target = q[i] + d[i]
            clipped = clip(target, low[i], high[i])
            is_out = (free[i] > 0.0) & (clipped != target)
            still_free.append(choose(is_out, 0.0, free[i]))
            put.append(choose(is_out, clipped - q[i], 0.0))
        right = []
        for i in each:
            rest = g[i]
            for j in each:
                if j != i:
                    rest = rest - m[i, j] * put[j]
            right.append(+(rest * still_free[i]))
        again = solve(m, damping, still_free, right)
        n_out = total(free[i] - still_free[i] for i in each)

        for i in each:
            step = choose(n_out > 0.0, put[i] + again[i] * still_free[i], d[i])
            target = clip(q[i] + step, low[i], high[i])
            w.T[i] = target
            d[i] = target - q[i]
        quadratic = total(d[i] * total(m[i, j] * d[j] for j in each) for i in each)
        gain = 2.0 * total(g[i] * d[i] for i in each) - quadratic
        w.P1 = choose(gain > 1e-300, gain, 1e-300)
        w.LAM = choose(gain < 0.02 * promise, damping * 10.0, damping)
        is_small = (promise <= s[TOLERANCE] * objective + 1e-26) & (damping < 0.5)
        stuck = choose(promise <= 1e-6 * objective + 1e-26, CONVERGED, STUCK)
        w.END = choose(is_small, CONVERGED, choose(damping > 1e9, stuck, RUNNING))
        # A fit that cannot end below the best one so far is abandoned.
        for share, most, code in ((_FAR, 3.0, LOST_FAR), (_NEAR, 0.9, LOST_NEAR)):
            is_lost = (damping < 0.5) & (promise < share * objective)
            is_lost = is_lost & (objective - most * promise > w.GB)
            w.END = choose(is_lost, code, w.END)

    def leave_limit(self, w: Any, s: Any, y: Any, v: Any, t: Any) -> None:
        """Convert J'J by the inner K, a share of a limit that depends on D, to J'J by K."""
        w.CT = 1.0
        k, d = self.signal.kurtosis, self.signal.diffusivity
        if k < 0:
            return
        form = self.signal.forms[d]
        w.X[d] = exp(w.Q[d]) if form == "log" else w.Q[d]
        is_limited, ratio = self._limit(w, s)
        w.CT = ratio
        is_limited = is_limited & (w.Q[k] < w.HI[k])
        ratio = choose(is_limited, ratio, 1.0)
        # (dK/dq)/ratio: K = inner K·ratio, and the ratio is proportional to 1/D, so dK/dD = −K/D.
        slope = w.Q[k] if form == "inverse" else -w.Q[k]
        slope = choose(is_limited, slope if form == "log" else slope / w.Q[d], 0.0)
        dk, kk = w.M[d, k], w.M[k, k]
        for j in range(self.n):
            if j not in (d, k):
                w.M[d, j] = w.M[d, j] - slope * w.M[j, k]
                w.M[j, k] = w.M[j, k] / ratio
        w.M[d, d] = w.M[d, d] + slope * (slope * kk - 2.0 * dk)
        w.M[d, k] = (dk - slope * kk) / ratio
        w.M[k, k] = kk / (ratio * ratio)

    def variances(self, w: Any, s: Any, y: Any, v: Any, t: Any) -> None:
        """Compute the diagonal of the inverse of J'J, scaled first, over the free parameters."""
        each = range(self.n)
        unit, is_blind, a = [], [], {}
        for i in each:
            q = w.Q[i]
            free = choose((q <= w.LO[i]) | (q >= w.HI[i]), 0.0, 1.0)
            square = w.M[i, i]
            unit.append(free / sqrt(choose(square > 1e-300, square, 1e-300)))
            # Signals are 1 at most, so that this is rounding: no signal depends on the parameter.
            is_blind.append((square <= 1e-24) & (free > 0.0))
        for i, j in self.layout.pairs:
            a[i, j] = 1.0 if i == j else +(w.M[i, j] * (unit[i] * unit[j]))
        factored = Factored(a, [1e-15] * self.n)
        for i in each:
            variance = factored.inverse(i, i) * unit[i] * unit[i]
            w.D[i] = choose(is_blind[i], 1e300, variance)


def clip(number: Any, low: Any, high: Any) -> Any:
    """Put a number between bounds."""
    return choose(number < low, low, choose(number > high, high, number))


def scale_row(w: Any, n: int, i: int, slope: Any) -> None:
    """Multiply the entries of J'r and J'J for parameter `i` by the slope of a new coordinate."""
    w.GT[i] = w.GT[i] * slope
    w.MT[i, i] = w.MT[i, i] * (slope * slope)
    for j in range(n):
        if j != i:
            w.MT[i, j] = w.MT[i, j] * slope


class Factored:
    """The factorization LDL' of a symmetric matrix a, given by its lower triangle."""

    def __init__(self, a: Mapping[tuple[int, int], Any], least: Sequence[Any]) -> None:
        """Factor the matrix; pivots below `least` are raised to it."""
        self.n = n = len(least)
        self.lower: dict[tuple[int, int], Any] = {}
        self.inverses: list[Any] = []  # of the pivots
        pivots: list[Any] = []
        for j in range(n):
            scaled = [+(self.lower[j, k] * pivots[k]) for k in range(j)]
            pivot = self._reduced(a[j, j], j, scaled)
            pivots.append(choose(pivot > least[j], pivot, least[j]))
            self.inverses.append(1.0 / pivots[j])
            for i in range(j + 1, n):
                self.lower[i, j] = +(self._reduced(a[i, j], i, scaled) * self.inverses[j])
        self._inverse_lower: dict[tuple[int, int], Any] = {}

    def _reduced(self, entry: Any, i: int, scaled: list) -> Any:
        for k, factor in enumerate(scaled):
            entry = entry - self.lower[i, k] * factor
        return entry

    def forward(self, right: Sequence[Any]) -> list[Any]:
        """Solve L z = right."""
        z: list[Any] = []
        for i in range(self.n):
            z.append(+self._reduced(right[i], i, z))
        return z

    def inverse(self, j: int, k: int) -> Any:
        """Compute entry (j, k) of the inverse of a, j >= k."""
        inverse = self._inverse_lower
        if not inverse:
            # L has ones on its diagonal.
            for column in range(self.n):
                for i in range(column + 1, self.n):
                    entry = -self.lower[i, column]
                    for m in range(column + 1, i):
                        entry = entry - self.lower[i, m] * inverse[m, column]
                    inverse[i, column] = entry
        entry = inverse[j, k] * self.inverses[j] if j > k else self.inverses[j]
        for m in range(j + 1, self.n):
            entry = entry + inverse[m, j] * inverse[m, k] * self.inverses[m]
        return entry


def solve(
    m: Mapping[tuple[int, int], Any], damping: Any, free: list[Any], right: list[Any]
) -> list[Any]:
    """Solve (M + λ·diag M) d = right, λ being the damping, for the free parameters."""
    n = len(free)
    a = {}
    for i in range(n):
        for j in range(i):
            a[i, j] = +(m[i, j] * (free[i] * free[j]))
        a[i, i] = (m[i, i] * (1.0 + damping) + 1e-30) * free[i] + (1.0 - free[i])
    factored = Factored(a, [1e-30] * n)
    d = factored.forward(right)
    for i in reversed(range(n)):
        entry = d[i] * factored.inverses[i]
        for k in range(i + 1, n):
            entry = entry - factored.lower[k, i] * d[k]
        d[i] = +entry
    return d


# Of about forty variants, those with the best coverage on simulated tissue at SNR 30 and 60.
_SHARE_SHIFT = 0.02  # the signal is nearly linear in sqrt(f + 0.02), down to f = 0
# Longest side of an interval, in lengths of the linear one. That of K is longer: where the
# highest signals are in the noise, as in water, its objective is flat towards 0.
_WIDEST, _WIDEST_OF_K = 2.0, 2.5
_SPREAD_BELOW_CAP = 2.0  # of the prior of K, in widths: 3/(b_max·D) is near, and would move it
_LARGEST_CURVATURE = 50.0
_NEAREST = 0.1  # least distance of a probe in SD, even where a bound is nearer
_RIDGE = 1e-14  # against a division by zero where neither signal nor bounds determine a parameter
_LARGEST = 1.7976931348623157e308

# Rows of `t` where it is the work array: of a parameter, its covariances, and its side.
PARAMETER = 2 * UNROLL + 1
COLUMN, SIDE = PARAMETER + 1, PARAMETER + 2


class IntervalSteps(Sums):
    """
    The steps of the intervals of one model.

    Every parameter has a coordinate in which the signal is nearly linear, by its kind: the square
    root of a share, the inverse of a wide rate or a relaxation time, else the parameter itself.
    """

    fields = INTERVAL_FIELDS
    uses_curvature = False

    def __init__(self, signal: Signal, kinds: tuple[str, ...]) -> None:
        super().__init__(signal)
        self.kinds = kinds
        # Indices in `s`, after b and te of `UNROLL` measurements: 1 for a free parameter and 0 for
        # a fixed one; the same, with 0 for the probed one; the bounds; the sign of a side.
        self.free = 2 * UNROLL
        self.kept = self.free + self.n
        self.bounds = self.kept + self.n
        self.sign = self.bounds + 2 * self.n
        self.turn_up = self.sign + 1
        self.probed = tuple(kind != "amplitude" for kind in kinds)

    def place(self, w: Any, s: Any, y: Any, v: Any, t: Any) -> None:
        """Convert estimates and bounds to coordinates, and make a weak prior of the bounds."""
        for j, kind in enumerate(self.kinds):
            low, high = s[self.bounds + j], s[self.bounds + self.n + j]
            spread: Any = 1.0
            if kind == "amplitude":
                low, high = low * w.TOP, high * w.TOP
            if j == self.signal.kurtosis:
                # Beyond 3/(b_max·D) the signal would turn up.
                cap = s[self.turn_up] / w.P[self.signal.diffusivity]
                is_capped = (cap > 0.0) & (cap < high)
                high = choose(is_capped, cap, high)
                spread = choose(is_capped, _SPREAD_BELOW_CAP, 1.0)
            value, low, high = (_into(number, kind) for number in (w.P[j], low, high))
            if kind == "inverse":
                low, high = high, low
            w.U[j], w.T[j], w.LO[j], w.HI[j] = value, value, low, high
            w.WEIGHT[j], w.MID[j] = 0.0, 0.0
            if kind != "amplitude":
                width = high - low
                is_boxed = (width > 0.0) & (width <= _LARGEST)
                # The precision of a uniform distribution between the bounds, or of a wider one.
                sd = +(spread * width)
                w.WEIGHT[j] = choose(is_boxed, 12.0 / (sd * sd), 0.0) * s[self.free + j]
                w.MID[j] = choose(is_boxed, 0.5 * (low + high), 0.0)

    def begin(self, w: Any, s: Any, y: Any, v: Any, t: Any) -> None:
        """Convert the point to the parameters of the formula, and clear the sums."""
        for j, kind in enumerate(self.kinds):
            x = w.T[j]
            if kind == "share":
                x = x * x - _SHARE_SHIFT
            elif kind == "inverse" and self.signal.forms[j] == "log":
                x = 1.0 / x
            w.X[j] = x
        self.clear(w)

    def chain(self, w: Any, s: Any, y: Any, v: Any, t: Any) -> None:
        """Convert J'r and J'J to derivatives by the coordinates."""
        for j, kind in enumerate(self.kinds):
            if kind == "share":
                scale_row(w, self.n, j, +(2.0 * w.T[j]))
            elif kind == "inverse" and self.signal.forms[j] == "log":
                scale_row(w, self.n, j, -(w.X[j] * w.X[j]))

    def _variance(self, w: Any) -> Any:
        """Estimate the variance of the noise, at least that of rounding."""
        variance = w.SQT / w.DOF
        rounding = +(ROUNDING * w.LARGEST)
        rounding = +(rounding * rounding)
        return choose(variance > rounding, variance, rounding)

    def precision(self, w: Any, s: Any, kept: int, variance: Any) -> Factored:
        """
        Factor the precision matrix of the kept coordinates, multiplied by the noise variance.

        Rows and columns of the others are those of the identity.
        """
        a, least = {}, []
        for j in range(self.n):
            is_kept = s[kept + j]
            for k in range(j):
                a[j, k] = +(w.MT[j, k] * (is_kept * s[kept + k]))
            entry = w.MT[j, j] + +(w.WEIGHT[j] * variance)
            least.append(+(_RIDGE * choose(entry > 0.0, entry, 1.0)))
            entry = choose(entry > 0.0, entry, 0.0) + least[j]
            a[j, j] = entry * is_kept + (1.0 - is_kept)
        return Factored(a, least)

    def count_undetermined(self, w: Any, s: Any, y: Any, v: Any, t: Any) -> None:
        """Count parameters that the bounds alone determine: they take no degree of freedom."""
        variance = self._variance(w)
        precision = self.precision(w, s, self.free, variance)
        reach = +(4.0 / UNDETERMINED_SHARE**2 * w.SPAN * w.SPAN)
        count: Any = 0.0
        for j in range(self.n):
            width = w.HI[j] - w.LO[j]
            is_wide = precision.inverse(j, j) * variance * reach >= width * width
            count = choose(is_wide, s[self.free + j], 0.0) + count
        w.COUNT = count

    def center(self, w: Any, s: Any, y: Any, v: Any, t: Any) -> None:
        """Compute the covariances and the minimum of the quadratic form."""
        each = range(self.n)
        variance = self._variance(w)
        w.VARIANCE = variance
        one = 1.0 / variance
        precision = self.precision(w, s, self.free, variance)
        covariance, g = {}, []
        for j, k in self.layout.pairs:
            entry = +(precision.inverse(j, k) * variance)
            covariance[j, k] = covariance[k, j] = entry
            w.COV[j * self.n + k] = entry
            w.COV[k * self.n + j] = entry
        least = +(w.SQT * one)
        for j in each:
            away = w.U[j] - w.MID[j]
            g.append(+((one * w.GT[j] - w.WEIGHT[j] * away) * s[self.free + j]))
            least = least + w.WEIGHT[j] * away * away
            w.SD[j] = sqrt(choose(covariance[j, j] > 0.0, covariance[j, j], 0.0))
        for j in each:
            shift = +total(covariance[j, k] * g[k] for k in each)
            w.MIDDLE[j] = w.U[j] + shift
            least = least - g[j] * shift
        w.LEAST = least

    def probe(self, w: Any, s: Any, y: Any, v: Any, t: Any) -> None:
        """Choose the point on a side at which the curvature of the objective is measured."""
        rows = (PARAMETER, COLUMN, SIDE)
        parameter, column, side = (Fields(self.layout, t[row]) for row in rows)
        sign, sd = s[self.sign], parameter.SD[0]
        bound = choose(sign > 0.0, parameter.HI[0], parameter.LO[0])
        room = +(sign * (bound - parameter.MIDDLE[0]))
        near = +(_NEAREST * sd)
        room = choose(room > near, room, near)
        distance = +(w.SPAN * sd)
        distance = choose(distance < room, distance, room)
        side.DISTANCE[0] = distance
        pace = sign * distance / (sd * sd)
        for k in range(self.n):
            low, high = w.LO[k], w.HI[k]
            to = w.MIDDLE[k] + pace * column.COV[k]
            inside = choose(to > low, to, low)
            inside = choose(inside < high, inside, high)
            w.T[k] = choose(s[self.kept + k] > 0.5, inside, to)

    def bend(self, w: Any, s: Any, y: Any, v: Any, t: Any) -> None:
        """Compute the curvature on a side, with the objective minimized over other coordinates."""
        parameter, side = (Fields(self.layout, t[row]) for row in (PARAMETER, SIDE))
        variance = w.VARIANCE
        # At the probe: the cost of the prior, and g, minus half the gradient of the objective
        # (residuals and prior, multiplied by the noise variance) by the coordinates that may move.
        prior_cost: Any = 0.0
        descent = []
        for j in range(self.n):
            offset = w.T[j] - w.MID[j]
            prior_cost = w.WEIGHT[j] * offset * offset + prior_cost
            component = w.GT[j] - +(w.WEIGHT[j] * variance) * offset
            descent.append(component * s[self.kept + j])
        # One Newton step of these coordinates lowers the objective by g'P⁻¹g, which is z'D⁻¹z with
        # the factors P = LDL' and Lz = g.
        precision = self.precision(w, s, self.kept, variance)
        decrease: Any = 0.0
        for z, inverse in zip(precision.forward(descent), precision.inverses, strict=True):
            decrease = z * z * inverse + decrease
        # By how much the objective is above its minimum, in units of the noise variance.
        rise = (w.SQT - decrease) / variance + (prior_cost - w.LEAST)
        # √rise·SD is the distance at which a linear signal would have this rise; `bent_length`
        # solves for the length of a side by the curvature c in linear = distance·(1 + c·distance).
        linear = +(sqrt(choose(rise > 0.0, rise, 0.0)) * parameter.SD[0])
        distance = side.DISTANCE[0]
        side.BEND[0] = (linear / distance - 1.0) / distance

    def finish(self, w: Any, s: Any, y: Any, v: Any, t: Any) -> None:
        """Compute the ends of the intervals of all parameters at one level, in their units."""
        for j, kind in enumerate(self.kinds):
            estimate, middle, low, high = w.P[j], w.MIDDLE[j], w.LO[j], w.HI[j]
            linear = +(w.QUANTILE * w.SD[j])
            for side in range(2):
                length = linear
                if self.probed[j]:
                    most = _WIDEST_OF_K if j == self.signal.kurtosis else _WIDEST
                    length = self.bent_length(w, linear, side * self.n + j, most)
                end = middle + length if side else middle - length
                end = choose(end > low, end, low)
                end = choose(end < high, end, high)
                # An inverse swaps its ends.
                place = 1 - side if kind == "inverse" else side
                if kind == "inverse":
                    end = 1.0 / end
                elif kind == "share":
                    end = end * end - _SHARE_SHIFT
                # The estimate of a parameter at a bound may be outside; the interval includes it.
                is_outside = end < estimate if place else end > estimate
                w.END[2 * j + place] = choose(is_outside, estimate, end)

    def bent_length(self, w: Any, linear: Any, index: int, most: float) -> Any:
        """
        Solve for the length x of a side by the curvature c: x(1 + c·x) is the linear length.

        It is at most `most` times the linear one. x(1 + c·x) is the SD times the square root of
        the rise of the objective at the distance x.
        """
        distance = w.DISTANCE[index]
        limit = -(1.0 - 1.0 / most) / distance
        bend = choose(w.BEND[index] > limit, w.BEND[index], limit)
        limit = _LARGEST_CURVATURE / distance
        bend = choose(bend < limit, bend, limit)
        size = +(choose(bend > 0.0, bend, -bend) * linear)
        discriminant = 4.0 * bend * linear + 1.0
        widest = +(most * linear)
        length = (sqrt(choose(discriminant > 0.0, discriminant, 0.0)) - 1.0) / (2.0 * bend)
        length = choose(length < widest, length, widest)
        length = choose(discriminant < 0.0, widest, length)
        return choose((size < 1e-9) | (distance <= 0.0), linear, length)


def _into(number: Any, kind: str) -> Any:
    """Convert a parameter to its coordinate."""
    if kind == "inverse":
        return 1.0 / number
    return sqrt(number + _SHARE_SHIFT) if kind == "share" else number
