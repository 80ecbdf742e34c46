"""Code generation: the intervals of a signal model, as lines of lane arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmrifit.engine.kernels.formula import Formula, factor, filled_template
from dmrifit.engine.kernels.layout import (
    LANES,
    UNDETERMINED_SHARE,
    UNROLL,
    IntervalLayout,
    form,
    is_share,
)

if TYPE_CHECKING:
    from dmrifit.engine.formulas.model_formula import ModelFormula

# Of about forty variants, those with the best coverage on simulated tissue at SNR 30 and 60.
_SHARE_SHIFT = 0.02  # sqrt(f + .02) is close to linear in the signal, down to f = 0
_WIDEST = 2.0  # a side is at most this many times as long as the linear one
_LARGEST_CURVATURE = 50.0
_NEAREST = 0.1  # a bound that is nearer than so many SD still leaves a step to probe
_RIDGE = 1e-14  # keeps what neither signal nor box determines from dividing by zero
_ROUNDING = 1e-9  # of the largest signal; signals without noise have no other residuals
_LARGEST = 1.7976931348623157e308
_SMALL_SHARE = 0.01  # of the box, the least size that the step of a difference belongs to

# Rows of `t` when it is the work array itself: of a parameter, of its covariances, of its side.
_PARAMETER = 2 * UNROLL + 1
_COLUMN, _SIDE = _PARAMETER + 1, _PARAMETER + 2


def source(model: ModelFormula) -> str:
    """Write the module that computes the intervals of a model."""
    writer = _Writer(model)
    kinds = writer.kinds
    steps = []
    for parameter in model.parameters:
        width = parameter.high - parameter.low
        steps.append(_SMALL_SHARE * width if 0 < width < float("inf") else 1e-8)
    at = writer.at
    constants = {
        "N_ROWS": at.n_rows,
        "PROBED": tuple(kind in ("plain", "share") for kind in kinds),
        "STEPS": tuple(steps),
        "AT": dict(at.offset),
        "FREE": writer.free,
        "KEPT": writer.kept,
        "BOUNDS": writer.bounds,
        "SIGN": writer.sign,
        "TURN_UP": writer.turn_up,
        "N_COMMON": writer.turn_up + 1,
        "PROBED_ROWS": _PARAMETER,
        "N_PLACES": _SIDE + 1,
    }
    code = {
        "PLACE": writer.place(),
        "BEGIN": writer.begin(),
        "TABLE_B": writer.formula.table("b", at),
        "TABLE_TE": writer.formula.table("te", at),
        "ACCUMULATE": writer.accumulate(floored=False),
        "ACCUMULATE_FLOORED": writer.accumulate(floored=True),
        "CHAIN": writer.chain(),
        "COUNT_UNDETERMINED": writer.count_undetermined(),
        "CENTER": writer.center(),
        "PROBE": writer.probe(),
        "BEND": writer.bend(),
        "FINISH": writer.finish(),
    }
    return filled_template("intervals_template.py", model, writer.formula, constants, code)


class _Writer:
    """
    The steps of the intervals of one model.

    Every parameter has a coordinate in which the signal is close to linear: the root of a share,
    the inverse of a wide rate or a relaxation time, else the parameter itself.
    """

    def __init__(self, model: ModelFormula) -> None:
        self.formula = Formula(model)
        self.at = IntervalLayout(len(model.parameters))
        self.n = self.at.n
        self.kinds = []
        for parameter in model.parameters:
            if parameter.is_amplitude:
                self.kinds.append("amplitude")
            elif form(parameter) != "plain":
                self.kinds.append("inverse")
            elif is_share(parameter):
                self.kinds.append("share")
            else:
                self.kinds.append("plain")
        # What is the same for all lanes, after b and te of the measurements at hand: 1 for a free
        # parameter and 0 for a fixed one, the same without the one that is probed, the bounds.
        self.free = 2 * UNROLL
        self.kept = self.free + self.n
        self.bounds = self.kept + self.n
        self.sign = self.bounds + 2 * self.n
        self.turn_up = self.sign + 1

    def place(self) -> list[str]:
        """Turn estimates and bounds into coordinates, and the box into a weak prior."""
        at, lines = self.at, []
        for j, kind in enumerate(self.kinds):
            lines += [
                f"value = {at('P', j)}",
                f"low = s[{self.bounds + j}]",
                f"high = s[{self.bounds + self.n + j}]",
            ]
            if kind == "amplitude":
                lines += [f"low = low * {at('TOP')}", f"high = high * {at('TOP')}"]
            if j == self.formula.kurtosis:
                # Beyond 3/(b·D) the signal would turn up.
                cap = f"s[{self.turn_up}] / {at('P', self.formula.diffusivity)}"
                lines += [f"cap = {cap}", "high = cap if (cap > 0.0) & (cap < high) else high"]
            lines += [f"{name} = {_into(name, kind)}" for name in ("value", "low", "high")]
            if kind == "inverse":
                lines += ["swapped = low", "low = high", "high = swapped"]
            lines += [
                f"{at('U', j)} = value",
                f"{at('T', j)} = value",
                f"{at('LO', j)} = low",
                f"{at('HI', j)} = high",
            ]
            if kind == "amplitude":
                lines += [f"{at('WEIGHT', j)} = 0.0", f"{at('MID', j)} = 0.0"]
                continue
            lines += [
                "width = high - low",
                f"boxed = (width > 0.0) & (width <= {_LARGEST!r})",
                # The precision of an even distribution over the box.
                f"{at('WEIGHT', j)} = (12.0 / (width * width) if boxed else 0.0)"
                f" * s[{self.free + j}]",
                f"{at('MID', j)} = 0.5 * (low + high) if boxed else 0.0",
            ]
        return lines

    def begin(self) -> list[str]:
        """Go from the coordinates of a point to those of the formula, and clear the sums."""
        at, lines = self.at, []
        for j, kind in enumerate(self.kinds):
            x = at("T", j)
            if kind == "share":
                x = f"{x} * {x} - {_SHARE_SHIFT}"
            elif kind == "inverse" and self.formula.forms[j] == "log":
                x = f"1.0 / {x}"
            lines.append(f"{at('X', j)} = {x}")
        lines.append(f"{at('SQ')} = 0.0")
        lines += [f"{at('G', j)} = 0.0" for j in range(self.n)]
        return lines + [f"{at.pair('M', i, j)} = 0.0" for i, j in at.pairs]

    def accumulate(self, *, floored: bool) -> list[str]:
        """Add the measurements that were taken together to r'r, J'r and J'J of one lane."""
        at, n, units = self.at, self.n, range(UNROLL)
        lines = [f"x{j} = {at('X', j)}" for j in range(n)]
        lines += [
            line for u in units for line in (f"b_{u} = s[{2 * u}]", f"te_{u} = s[{2 * u + 1}]")
        ]
        for u in units:
            lines += list(self.formula.lines(u))
            lines.append(f"v{u} = v[{u * LANES} + l]")
            if floored:
                lines += [
                    f"floored = {at('NF2')} > 0.0",
                    f"z{u} = sqrt(s{u} * s{u} + {at('NF2')}) if floored else s{u}",
                    f"c{u} = v{u} * (s{u} / z{u} if floored else 1.0)",
                    f"r{u} = v{u} * (y[{u * LANES} + l] - z{u})",
                ]
            else:
                lines += [f"c{u} = v{u}", f"r{u} = v{u} * (y[{u * LANES} + l] - s{u})"]
            # A measurement that is missing has a residual of 0 already.
            lines += [f"k{u}_{j} = c{u} * d{u}_{j}" for j in range(n)]
        lines.append(f"{at('SQ')} += " + " + ".join(f"r{u} * r{u}" for u in units))
        lines += [
            f"{at('G', j)} += " + " + ".join(f"k{u}_{j} * r{u}" for u in units) for j in range(n)
        ]
        return lines + [
            f"{at.pair('M', i, j)} += " + " + ".join(f"k{u}_{i} * k{u}_{j}" for u in units)
            for i, j in at.pairs
        ]

    def chain(self) -> list[str]:
        """Turn derivatives by the parameters of the formula into those by the coordinates."""
        at, lines = self.at, []
        for j, kind in enumerate(self.kinds):
            if kind == "share":
                slope = f"2.0 * {at('T', j)}"
            elif kind == "inverse" and self.formula.forms[j] == "log":
                slope = f"-({at('X', j)} * {at('X', j)})"
            else:
                continue
            lines += [
                f"slope = {slope}",
                f"{at('G', j)} *= slope",
                f"{at.pair('M', j, j)} *= slope * slope",
            ]
            lines += [f"{at.pair('M', j, k)} *= slope" for k in range(self.n) if k != j]
        return lines

    def _variance(self) -> list[str]:
        """Estimate the variance of the noise, at least that of rounding."""
        at = self.at
        return [
            f"variance = {at('SQ')} / {at('DOF')}",
            f"rounding = {_ROUNDING!r} * {at('LARGEST')}",
            "rounding = rounding * rounding",
            "variance = variance if variance > rounding else rounding",
        ]

    def _precision(self, kept: int) -> list[str]:
        """
        Factor the precision of the kept coordinates, multiplied by the variance, into LDL'.

        The prior of coordinate `j` is `w{j}` then, and 1 stands on the diagonal of one that is not
        kept.
        """
        at, lines = self.at, []
        for j in range(self.n):
            lines += [f"e{j} = s[{kept + j}]", f"w{j} = {at('WEIGHT', j)} * variance"]
            lines += [f"a{j}_{k} = {at.pair('M', j, k)} * (e{j} * e{k})" for k in range(j)]
            lines += [
                f"a = {at.pair('M', j, j)} + w{j}",
                "size = a if a > 0.0 else 1.0",
                f"least{j} = {_RIDGE!r} * size",
                f"a{j}_{j} = ((a if a > 0.0 else 0.0) + least{j}) * e{j} + (1.0 - e{j})",
            ]
        return lines + factor(self.n, "least{j}")

    def _inverse_factor(self) -> list[str]:
        """Invert L, whose diagonal is 1, to `i{j}_{k}`."""
        lines = []
        for k in range(self.n):
            for j in range(k + 1, self.n):
                inner = "".join(f" - l{j}_{m} * i{m}_{k}" for m in range(k + 1, j))
                lines.append(f"i{j}_{k} = -l{j}_{k}{inner}")
        return lines

    def _covariance(self, j: int, k: int) -> str:
        """Write entry (j, k) of the inverse, j >= k, in units of the variance."""
        first = f"i{j}_{k} * o{j}" if j > k else f"o{j}"
        rest = "".join(f" + i{m}_{j} * i{m}_{k} * o{m}" for m in range(j + 1, self.n))
        return first + rest

    def count_undetermined(self) -> list[str]:
        """Count the parameters that the box alone determines: they cost no degree of freedom."""
        at = self.at
        lines = [*self._variance(), *self._precision(self.free), *self._inverse_factor()]
        lines.append(f"reach = {4.0 / UNDETERMINED_SHARE**2!r} * {at('SPAN')} * {at('SPAN')}")
        lines.append("count = 0.0")
        for j in range(self.n):
            lines += [
                f"width = {at('HI', j)} - {at('LO', j)}",
                f"wide = ({self._covariance(j, j)}) * variance * reach >= width * width",
                f"count = count + (e{j} if wide else 0.0)",
            ]
        return [*lines, f"{at('COUNT')} = count"]

    def center(self) -> list[str]:
        """Find the covariance and the middle, which is the minimum of the quadratic form."""
        at, n = self.at, self.n
        lines = [*self._variance(), f"{at('VARIANCE')} = variance", "one = 1.0 / variance"]
        lines += [*self._precision(self.free), *self._inverse_factor()]
        for j in range(n):
            for k in range(j + 1):
                lines.append(f"c{j}_{k} = ({self._covariance(j, k)}) * variance")
                lines.append(f"{at('COV', j * n + k)} = c{j}_{k}")
                if j != k:
                    lines.append(f"{at('COV', k * n + j)} = c{j}_{k}")
        lines.append(f"least = {at('SQ')} * one")
        for j in range(n):
            lines += [
                f"away = {at('U', j)} - {at('MID', j)}",
                f"g{j} = (one * {at('G', j)} - {at('WEIGHT', j)} * away) * e{j}",
                f"least = least + {at('WEIGHT', j)} * away * away",
                f"{at('SD', j)} = sqrt(c{j}_{j} if c{j}_{j} > 0.0 else 0.0)",
            ]
        for j in range(n):
            products = [f"c{max(j, k)}_{min(j, k)} * g{k}" for k in range(n)]
            lines += [
                f"shift = {' + '.join(products)}",
                f"{at('MIDDLE', j)} = {at('U', j)} + shift",
                f"least = least - g{j} * shift",
            ]
        return [*lines, f"{at('LEAST')} = least"]

    def probe(self) -> list[str]:
        """Go to the point of a side at which the curvature of the objective is probed."""
        at, n = self.at, self.n

        def own(name: str) -> str:
            return f"t[{_PARAMETER}, {at.offset[name] * LANES} + l]"

        def column(k: int) -> str:
            return f"t[{_COLUMN}, {(at.offset['COV'] + k) * LANES} + l]"

        lines = [
            f"sign = s[{self.sign}]",
            f"sd = {own('SD')}",
            f"room = sign * (({own('HI')} if sign > 0.0 else {own('LO')}) - {own('MIDDLE')})",
            f"near = {_NEAREST} * sd",
            "room = room if room > near else near",
            f"distance = {at('SPAN')} * sd",
            "distance = distance if distance < room else room",
            f"t[{_SIDE}, {at.offset['DISTANCE'] * LANES} + l] = distance",
            "pace = sign * distance / (sd * sd)",
        ]
        for k in range(n):
            lines += [
                f"low = {at('LO', k)}",
                f"high = {at('HI', k)}",
                f"to = {at('MIDDLE', k)} + pace * {column(k)}",
                "inside = to if to > low else low",
                "inside = inside if inside < high else high",
                f"{at('T', k)} = inside if s[{self.kept + k}] > 0.5 else to",
            ]
        return lines

    def bend(self) -> list[str]:
        """Find the curvature of a side, with the other coordinates at their best."""
        at, n = self.at, self.n
        lines = [f"variance = {at('VARIANCE')}", *self._precision(self.kept)]
        lines += ["prior = 0.0", "gain = 0.0"]
        for j in range(n):
            lines += [
                f"away = {at('T', j)} - {at('MID', j)}",
                f"prior = prior + {at('WEIGHT', j)} * away * away",
                f"z{j} = ({at('G', j)} - w{j} * away) * e{j}"
                + "".join(f" - l{j}_{k} * z{k}" for k in range(j)),
                f"gain = gain + z{j} * z{j} * o{j}",
            ]
        sd = f"t[{_PARAMETER}, {at.offset['SD'] * LANES} + l]"
        return [
            *lines,
            f"rise = ({at('SQ')} - gain) / variance + (prior - {at('LEAST')})",
            f"distance = t[{_SIDE}, {at.offset['DISTANCE'] * LANES} + l]",
            f"root = sqrt(rise if rise > 0.0 else 0.0) * {sd}",
            f"t[{_SIDE}, {at.offset['BEND'] * LANES} + l] = (root / distance - 1.0) / distance",
        ]

    def finish(self) -> list[str]:
        """Find the ends of all parameters at one level, in their units."""
        at = self.at
        lines = [f"quantile = {at('QUANTILE')}"]
        for j, kind in enumerate(self.kinds):
            lines += [
                f"estimate = {at('P', j)}",
                f"middle = {at('MIDDLE', j)}",
                f"low = {at('LO', j)}",
                f"high = {at('HI', j)}",
                f"linear = quantile * {at('SD', j)}",
            ]
            for side in range(2):
                lines.append("length = linear")
                if kind in ("plain", "share"):
                    lines += self._bent_length(j, side)
                lines += [
                    f"end = middle {'+' if side else '-'} length",
                    "end = end if end > low else low",
                    "end = end if end < high else high",
                ]
                # An inverse swaps its ends.
                place = 1 - side if kind == "inverse" else side
                if kind == "inverse":
                    lines.append("end = 1.0 / end")
                elif kind == "share":
                    lines.append(f"end = end * end - {_SHARE_SHIFT}")
                # The estimate of a parameter at a bound may lie outside; it belongs inside.
                outside = "<" if place else ">"
                lines.append(
                    f"{at('END', 2 * j + place)} = estimate if end {outside} estimate else end"
                )
        return lines

    def _bent_length(self, j: int, side: int) -> list[str]:
        """Find the length x of a side on which the root of the objective's rise is x(1 + c x)."""
        at, index = self.at, side * self.n + j
        return [
            f"distance = {at('DISTANCE', index)}",
            f"bend = {at('BEND', index)}",
            f"limit = {-(1.0 - 1.0 / _WIDEST)!r} / distance",
            "bend = bend if bend > limit else limit",
            f"limit = {_LARGEST_CURVATURE!r} / distance",
            "bend = bend if bend < limit else limit",
            "size = (bend if bend > 0.0 else -bend) * linear",
            "root = 1.0 + 4.0 * bend * linear",
            f"widest = {_WIDEST!r} * linear",
            "length = (sqrt(root if root > 0.0 else 0.0) - 1.0) / (2.0 * bend)",
            "length = length if length < widest else widest",
            "length = widest if root < 0.0 else length",
            "straight = (size < 1e-9) | (distance <= 0.0)",
            "length = linear if straight else length",
        ]


def _into(name: str, kind: str) -> str:
    """Write a value of a parameter as its coordinate."""
    if kind == "inverse":
        return f"1.0 / {name}"
    if kind == "share":
        return f"sqrt({name} + {_SHARE_SHIFT})"
    return name
