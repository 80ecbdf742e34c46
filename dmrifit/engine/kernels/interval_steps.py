"""The steps of the intervals of a fit in lane arithmetic."""

from __future__ import annotations

from typing import Any

from dmrifit.engine.kernels.lanes import choose, sqrt
from dmrifit.engine.kernels.layout import (
    INTERVAL_FIELDS,
    UNDETERMINED_SHARE,
    UNROLL,
    Fields,
)
from dmrifit.engine.kernels.steps import Factored, Signal, Sums, scale_row, total

# Of about forty variants, those with the best coverage on simulated tissue at SNR 30 and 60.
_SHARE_SHIFT = 0.02  # sqrt(f + .02) is close to linear in the signal, down to f = 0
_WIDEST = 2.0  # a side is at most this many times as long as the linear one
_LARGEST_CURVATURE = 50.0
_NEAREST = 0.1  # a bound that is nearer than so many SD still leaves a step to probe
_RIDGE = 1e-14  # keeps what neither signal nor box determines from dividing by zero
_ROUNDING = 1e-9  # of the largest signal; signals without noise have no other residuals
_LARGEST = 1.7976931348623157e308

# Rows of `t` when it is the work array itself: of a parameter, of its covariances, of its side.
PARAMETER = 2 * UNROLL + 1
COLUMN, SIDE = PARAMETER + 1, PARAMETER + 2


class IntervalSteps(Sums):
    """
    The steps of the intervals of one model.

    Every parameter has a coordinate in which the signal is close to linear, by its kind: the root
    of a share, the inverse of a wide rate or a relaxation time, else the parameter itself.
    """

    fields = INTERVAL_FIELDS
    bends = False

    def __init__(self, signal: Signal, kinds: tuple[str, ...]) -> None:
        super().__init__(signal)
        self.kinds = kinds
        # What is the same for all lanes, after b and te of the measurements at hand: 1 for a free
        # parameter and 0 for a fixed one, the same without the one that is probed, the bounds.
        self.free = 2 * UNROLL
        self.kept = self.free + self.n
        self.bounds = self.kept + self.n
        self.sign = self.bounds + 2 * self.n
        self.turn_up = self.sign + 1
        self.probed = tuple(kind in ("plain", "share") for kind in kinds)

    def place(self, w: Any, s: Any, y: Any, v: Any, t: Any) -> None:
        """Turn estimates and bounds into coordinates, and the box into a weak prior."""
        for j, kind in enumerate(self.kinds):
            low, high = s[self.bounds + j], s[self.bounds + self.n + j]
            if kind == "amplitude":
                low, high = low * w.TOP, high * w.TOP
            if j == self.signal.kurtosis:
                # Beyond 3/(b·D) the signal would turn up.
                cap = s[self.turn_up] / w.P[self.signal.diffusivity]
                high = choose((cap > 0.0) & (cap < high), cap, high)
            value, low, high = (_into(number, kind) for number in (w.P[j], low, high))
            if kind == "inverse":
                low, high = high, low
            w.U[j], w.T[j], w.LO[j], w.HI[j] = value, value, low, high
            w.WEIGHT[j], w.MID[j] = 0.0, 0.0
            if kind != "amplitude":
                width = high - low
                is_boxed = (width > 0.0) & (width <= _LARGEST)
                # The precision of an even distribution over the box.
                w.WEIGHT[j] = choose(is_boxed, 12.0 / (width * width), 0.0) * s[self.free + j]
                w.MID[j] = choose(is_boxed, 0.5 * (low + high), 0.0)

    def begin(self, w: Any, s: Any, y: Any, v: Any, t: Any) -> None:
        """Go from the coordinates of a point to those of the formula, and clear the sums."""
        for j, kind in enumerate(self.kinds):
            x = w.T[j]
            if kind == "share":
                x = x * x - _SHARE_SHIFT
            elif kind == "inverse" and self.signal.forms[j] == "log":
                x = 1.0 / x
            w.X[j] = x
        self.clear(w)

    def chain(self, w: Any, s: Any, y: Any, v: Any, t: Any) -> None:
        """Turn derivatives by the parameters of the formula into those by the coordinates."""
        for j, kind in enumerate(self.kinds):
            if kind == "share":
                scale_row(w, self.n, j, +(2.0 * w.T[j]))
            elif kind == "inverse" and self.signal.forms[j] == "log":
                scale_row(w, self.n, j, -(w.X[j] * w.X[j]))

    def _variance(self, w: Any) -> Any:
        """Estimate the variance of the noise, at least that of rounding."""
        variance = w.SQT / w.DOF
        rounding = +(_ROUNDING * w.LARGEST)
        rounding = +(rounding * rounding)
        return choose(variance > rounding, variance, rounding)

    def precision(self, w: Any, s: Any, kept: int, variance: Any) -> Factored:
        """
        Factor the precision of the kept coordinates, multiplied by the variance.

        On the diagonal of one that is not kept stands 1.
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
        """Count the parameters that the box alone determines: they cost no degree of freedom."""
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
        """Find the covariance and the middle, which is the minimum of the quadratic form."""
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
        """Go to the point of a side at which the curvature of the objective is probed."""
        own, column, side = (Fields(self.layout, t[row]) for row in (PARAMETER, COLUMN, SIDE))
        sign, sd = s[self.sign], own.SD[0]
        room = +(sign * (choose(sign > 0.0, own.HI[0], own.LO[0]) - own.MIDDLE[0]))
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
        """Find the curvature of a side, with the other coordinates at their best."""
        own, side = (Fields(self.layout, t[row]) for row in (PARAMETER, SIDE))
        variance = w.VARIANCE
        precision = self.precision(w, s, self.kept, variance)
        prior: Any = 0.0
        gain: Any = 0.0
        z: list[Any] = []
        for j in range(self.n):
            away = w.T[j] - w.MID[j]
            prior = w.WEIGHT[j] * away * away + prior
            entry = (w.GT[j] - +(w.WEIGHT[j] * variance) * away) * s[self.kept + j]
            for k in range(j):
                entry = entry - precision.lower[j, k] * z[k]
            z.append(+entry)
            gain = z[j] * z[j] * precision.inverses[j] + gain
        rise = (w.SQT - gain) / variance + (prior - w.LEAST)
        distance = side.DISTANCE[0]
        root = +(sqrt(choose(rise > 0.0, rise, 0.0)) * own.SD[0])
        side.BEND[0] = (root / distance - 1.0) / distance

    def finish(self, w: Any, s: Any, y: Any, v: Any, t: Any) -> None:
        """Find the ends of all parameters at one level, in their units."""
        for j, kind in enumerate(self.kinds):
            estimate, middle, low, high = w.P[j], w.MIDDLE[j], w.LO[j], w.HI[j]
            linear = +(w.QUANTILE * w.SD[j])
            for side in range(2):
                length = linear
                if self.probed[j]:
                    length = self.bent_length(w, linear, side * self.n + j)
                end = middle + length if side else middle - length
                end = choose(end > low, end, low)
                end = choose(end < high, end, high)
                # An inverse swaps its ends.
                place = 1 - side if kind == "inverse" else side
                if kind == "inverse":
                    end = 1.0 / end
                elif kind == "share":
                    end = end * end - _SHARE_SHIFT
                # The estimate of a parameter at a bound may lie outside; it belongs inside.
                is_outside = end < estimate if place else end > estimate
                w.END[2 * j + place] = choose(is_outside, estimate, end)

    def bent_length(self, w: Any, linear: Any, index: int) -> Any:
        """Find the length x of a side on which the root of the objective's rise is x(1 + c x)."""
        distance = w.DISTANCE[index]
        limit = -(1.0 - 1.0 / _WIDEST) / distance
        bend = choose(w.BEND[index] > limit, w.BEND[index], limit)
        limit = _LARGEST_CURVATURE / distance
        bend = choose(bend < limit, bend, limit)
        size = +(choose(bend > 0.0, bend, -bend) * linear)
        root = 4.0 * bend * linear + 1.0
        widest = +(_WIDEST * linear)
        length = (sqrt(choose(root > 0.0, root, 0.0)) - 1.0) / (2.0 * bend)
        length = choose(length < widest, length, widest)
        length = choose(root < 0.0, widest, length)
        return choose((size < 1e-9) | (distance <= 0.0), linear, length)


def _into(number: Any, kind: str) -> Any:
    """Turn a value of a parameter into its coordinate."""
    if kind == "inverse":
        return 1.0 / number
    return sqrt(number + _SHARE_SHIFT) if kind == "share" else number
