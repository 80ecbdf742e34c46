"""Code generation: the formula of a signal model and its fit, as lines of lane arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmrifit.engine.kernels.branches import (
    amplitude_by_trial,
    extended_to_edges,
    functions,
    only_amplitude,
    read_formula,
    structure,
    without_absolute,
)
from dmrifit.engine.kernels.layout import LANES, UNROLL, Layout, form

if TYPE_CHECKING:
    from dmrifit.engine.formulas.model_formula import ModelFormula

_JIT = "@njit(nogil=True, cache=True, error_model='numpy')"

# What is the same for all lanes, after b and te of the measurements at hand.
_NEAR, _FAR = 1e-3, 0.1
_TURN_UP, _TOLERANCE, _PENALTY = 2 * UNROLL, 2 * UNROLL + 1, 2 * UNROLL + 2
_MOST_CHOICES = 2  # in an exponent whose branches are tabulated one by one

# The functions of conditions as lane arithmetic, which has no operator for the last.
_OF_CONDITIONS = {
    "Choice": "({1} if {0} else {2})",
    "Less": "({} < {})",
    "Equal": "({} == {})",
    "Both": "({} & {})",
    "Negation": "((0.0 if {} else 1.0) > 0.5)",
}


def source(model: ModelFormula) -> str:
    """Write the module that fits a model."""
    formula, at = Formula(model), Layout(len(model.parameters))
    constants = {
        "SIZE": at.size,
        "AMPLITUDE": formula.amplitude,
        "MIXTURE": formula.mixture,
        "FIRST": formula.first,
        "KURTOSIS": formula.kurtosis,
        "DIFFUSIVITY": formula.diffusivity,
        "AT": {name: offset * LANES for name, offset in at.offset.items()},
    }
    code = {
        "BEGIN": _begin(at, formula),
        "TABLE_B": formula.table("b", at),
        "TABLE_TE": formula.table("te", at),
        "ACCUMULATE": _accumulate(at, formula, floored=False),
        "ACCUMULATE_FLOORED": _accumulate(at, formula, floored=True),
        "REGULARIZE": _regularize(at, formula.forms),
        "CHAIN": _chain(at, formula),
        "ACCEPT": _accept(at),
        "STEP": _step(at),
        "VARIANCES": _variances(at),
    }
    return filled_template("template.py", model, formula, constants, code)


def filled_template(
    file: str,
    model: ModelFormula,
    formula: Formula,
    constants: dict[str, Any],
    code: dict[str, list[str]],
) -> str:
    """Write the constants, the lines and the user's function of a model into a template."""
    constants = {
        "N": len(formula.forms),
        "LANES": LANES,
        "UNROLL": UNROLL,
        "FORMS": formula.forms,
        "CALLED": bool(model.source),
        "N_BY_B": len(formula.by_b),
        "N_BY_TE": len(formula.by_te),
    } | constants
    text = Path(__file__).with_name(file).read_text(encoding="utf-8")
    text = replace_section(
        text, "CONSTANTS", [f"{name} = {value!r}" for name, value in constants.items()]
    )
    if model.source:
        text = replace_section(text, "FUNCTION", called_function(model))
    return replace_section(text, "CODE", quoted_code(code))


def called_function(model: ModelFormula) -> list[str]:
    """Write a user's function, and the one by which the kernel calls it with an array."""
    arguments = ["b", *(["te"] if model.needs_te else [])]
    arguments += [f"x[{i}]" for i in range(len(model.names))]
    return [
        model.source,
        "",
        "",
        "compiled = njit(nogil=True, cache=True, error_model='numpy')(user_function)",
        "",
        "",
        _JIT,
        "def function(b, te, x):",
        f"    return compiled({', '.join(arguments)})",
    ]


def replace_section(text: str, section: str, lines: list[str]) -> str:
    """Replace a section of the template, which comments enclose."""
    start = text.index(f"# {section}\n")
    end = text.index(f"# END OF {section}\n")
    return text[:start] + "\n".join(lines) + "\n" + text[end:]


def quoted_code(code: dict[str, list[str]]) -> list[str]:
    """Write lines of lane arithmetic as lists of strings, one for each block."""
    assignments = []
    for name, lines in code.items():
        quoted = "".join(f"{line!r},\n    " for line in lines)
        assignments.append(f"{name} = [\n    {quoted}]")
    return assignments


class Formula:
    """The formula and its derivatives as lines of code, and what its form allows."""

    def __init__(self, model: ModelFormula) -> None:
        import sympy

        names = model.names
        self.forms = tuple(form(parameter) for parameter in model.parameters)
        self.kurtosis, self.diffusivity = -1, -1
        if model.cumulant is not None:
            self.kurtosis, self.diffusivity = map(names.index, model.cumulant)
        # Exponentials of b alone and of te alone: they are the same for many measurements.
        self.by_b: list[Any] = []
        self.by_te: list[Any] = []
        self._entries: set[Any] = set()
        self.mixture, self.amplitude = -1, -1
        self.first: tuple[int, ...] = ()
        self._called = bool(model.source)
        if self._called:
            self.amplitude = _amplitude_of_function(model)
            return
        symbols = {name: sympy.Symbol(name, real=True) for name in (*names, "b", "te")}
        expression = without_absolute(read_formula(model.expression, symbols))
        if expression.has(sympy.zoo, sympy.nan, sympy.oo, sympy.I):
            raise ValueError(
                f"model {model.name}: {model.expression!r} divides by zero, or has the root or "
                "logarithm of a negative number; change that term"
            )
        ordered = [symbols[name] for name in names]
        self.mixture, self.amplitude, self.first = structure(expression, ordered, model)
        expression = extended_to_edges(expression, ordered, model)
        inverse = {
            symbols[n]: 1 / symbols[n]
            for n, form in zip(names, self.forms, strict=True)
            if form == "inverse"
        }
        expression = expression.subs(inverse, simultaneous=True)
        formulas = [expression, *(sympy.diff(expression, symbols[name]) for name in names)]
        rename = {symbols[name]: sympy.Symbol(f"x{i}", real=True) for i, name in enumerate(names)}
        formulas = [without_absolute(formula.subs(rename)) for formula in formulas]
        self._b, self._te = symbols["b"], symbols["te"]
        if model.needs_te:
            formulas = [formula.replace(sympy.exp, self._tabulated) for formula in formulas]
        self._steps, self._results = sympy.cse(
            formulas, symbols=sympy.numbered_symbols("h"), optimizations="basic"
        )
        self._print = make_printer()

    def _tabulated(self, exponent: Any) -> Any:
        """Tabulate the factors of an exponential that depend on b alone and on te alone."""
        import sympy

        parts = {"b": sympy.Integer(0), "te": sympy.Integer(0), "rest": sympy.Integer(0)}
        exponent = sympy.expand(exponent)
        for term in sympy.Add.make_args(exponent):
            has_b, has_te = term.has(self._b), term.has(self._te)
            if term.free_symbols & self._entries:
                # Exponentials within exponentials: a row of a table cannot read from another.
                parts["rest"] += term
            elif has_b and not has_te:
                parts["b"] += term
            elif has_te and not has_b:
                parts["te"] += term
            else:
                parts["rest"] += term
        choices = sorted(parts["rest"].atoms(functions().Choice), key=sympy.default_sort_key)
        if 0 < len(choices) <= _MOST_CHOICES:
            # Each branch alone may fall apart into factors of b and of te.
            condition, *branches = choices[0].args
            values = [self._tabulated(exponent.xreplace({choices[0]: x})) for x in branches]
            return functions().Choice(condition, *values)
        product = sympy.exp(parts["rest"])
        for name, table in (("b", self.by_b), ("te", self.by_te)):
            if parts[name] != 0:
                if parts[name] not in table:
                    table.append(parts[name])
                entry = sympy.Symbol(f"e{name}{table.index(parts[name])}", real=True)
                self._entries.add(entry)
                product *= entry
        return product

    def table(self, of: str, at: Layout) -> list[str]:
        """Write the code that fills a row of the table of exponentials of b or te."""
        import sympy

        exponents = self.by_b if of == "b" else self.by_te
        if not exponents:
            return []
        used = sorted(
            {str(symbol) for exponent in exponents for symbol in exponent.free_symbols}
            - {"b", "te"}
        )
        lines = [f"{name} = {at('X', int(name[1:]))}" for name in used]
        lines.append(f"{of} = s[0]")
        steps, results = sympy.cse(
            exponents, symbols=sympy.numbered_symbols("h"), optimizations="basic"
        )
        lines += [f"{symbol} = {self._print(value)}" for symbol, value in steps]
        return lines + [
            f"t[1, {e * LANES} + l] = exp({self._print(value)})" for e, value in enumerate(results)
        ]

    def lines(self, u: int) -> Iterator[str]:
        """Write code of the signal ``s{u}`` and derivatives ``d{u}_{i}`` of measurement `u`."""
        import sympy

        if self._called:
            for e, name in enumerate([f"s{u}", *(f"d{u}_{i}" for i in range(len(self.forms)))]):
                yield f"{name} = t[{1 + 2 * u}, {e * LANES} + l]"
            return
        for name, table, row in (("b", self.by_b, 1 + 2 * u), ("te", self.by_te, 2 + 2 * u)):
            yield from (f"e{name}{e}_{u} = t[{row}, {e * LANES} + l]" for e in range(len(table)))
        # Each measurement of a group has variables of its own, so that all are in one block.
        renamed = {symbol: sympy.Symbol(f"{symbol}_{u}", real=True) for symbol, _ in self._steps}
        names = [
            "b",
            "te",
            *(f"eb{e}" for e in range(len(self.by_b))),
            *(f"ete{e}" for e in range(len(self.by_te))),
        ]
        renamed |= {
            sympy.Symbol(name, real=True): sympy.Symbol(f"{name}_{u}", real=True) for name in names
        }
        for symbol, value in self._steps:
            yield f"{renamed[symbol]} = {self._print(value.xreplace(renamed))}"
        for target, value in zip(
            [f"s{u}", *(f"d{u}_{i}" for i in range(len(self.forms)))], self._results, strict=True
        ):
            yield f"{target} = {self._print(value.xreplace(renamed))}"


def _amplitude_of_function(model: ModelFormula) -> int:
    """Find the amplitude that a user's function is proportional to, by trying it, or -1."""
    import numpy as np

    amplitude = only_amplitude(model)
    if amplitude < 0:
        return -1
    scope: dict[str, Any] = {"math": math, "np": np}
    exec(model.source, scope)

    def evaluate(b: float, te: float, *values: float) -> float:
        measurement = (b, te) if model.needs_te else (b,)
        try:
            return float(scope["user_function"](*measurement, *values))
        except Exception:  # a faulty function is named when it is compiled
            return math.nan

    return amplitude_by_trial(evaluate, amplitude, model)


def make_printer():
    """Make the printer of expressions as Python."""
    from sympy.printing.pycode import PythonCodePrinter

    class Printer(PythonCodePrinter):
        def _print_Pow(self, expr: object, **_: object) -> str:
            base, power = expr.as_base_exp()  # type: ignore[attr-defined]
            text = f"({self._print(base)})"
            if power.is_Integer and 1 <= abs(int(power)) <= 8:
                product = "*".join([text] * abs(int(power)))
                return f"({product})" if power > 0 else f"(1.0/({product}))"
            if abs(power) == 0.5:
                return f"sqrt({text})" if power > 0 else f"(1.0/sqrt({text}))"
            return f"exp({self._print(power)}*log({text}))"

        def _print_ExpBase(self, expr: object) -> str:
            return f"exp({self._print(expr.args[0])})"  # type: ignore[attr-defined]

        _print_exp = _print_ExpBase

        def _print_Function(self, expr: Any) -> str:
            text = _OF_CONDITIONS.get(expr.func.__name__)
            if text is None:
                return str(super()._print_Function(expr))
            return text.format(*map(self._print, expr.args))

        def _print_Rational(self, expr: object) -> str:
            return repr(float(expr))  # type: ignore[arg-type]

        _print_Integer = _print_Rational

    printer = Printer({"fully_qualified_modules": False})
    return printer.doprint


def _limit(at: Layout, formula: Formula) -> list[str]:
    """Write the ratio of K to the inner K: 3 / (b_max·D·bound), for a falling signal."""
    outer = at("X", formula.diffusivity)
    if formula.forms[formula.diffusivity] == "inverse":
        outer = f"1.0 / {outer}"
    return [
        f"room = s[{_TURN_UP}] / ({outer} * {at('HI', formula.kurtosis)})",
        "limits = (room > 0.0) & (room < 1.0)",
        "ratio = room if limits else 1.0",
    ]


def _begin(at: Layout, formula: Formula) -> list[str]:
    """Go from inner coordinates to those of the formula, and clear the sums."""
    lines = [
        f"{at('X', i)} = exp({at('T', i)})"
        if formula.forms[i] == "log"
        else f"{at('X', i)} = {at('T', i)}"
        for i in range(at.n)
    ]
    k = formula.kurtosis
    if k >= 0:
        lines += [*_limit(at, formula), f"{at('X', k)} = {at('T', k)} * ratio"]
    lines += [f"{at('CT')} = 0.0", f"{at('SQT')} = 0.0"]
    lines += [f"{at('GT', i)} = 0.0" for i in range(at.n)]
    lines += [f"{at.pair('MT', i, j)} = 0.0" for i, j in at.pairs]
    return lines


def _accumulate(at: Layout, formula: Formula, *, floored: bool) -> list[str]:
    """Add the measurements that were taken together to the sums of one lane."""
    n, units = at.n, range(UNROLL)
    lines = [f"x{i} = {at('X', i)}" for i in range(n)]
    lines += [line for u in units for line in (f"b_{u} = s[{2 * u}]", f"te_{u} = s[{2 * u + 1}]")]
    for u in units:
        lines += list(formula.lines(u))
        lines.append(f"v{u} = v[{u * LANES} + l]")
        if floored:
            # z = √(s² + nf²) has the slope s/z, 1 where there is neither signal nor floor. Far
            # below the floor the slope vanishes and only its bend nf²/z³ holds the signal; it
            # counts where it makes the curvature larger.
            lines += [
                f"z{u} = sqrt(s{u} * s{u} + {at('NF2')})",
                f"r{u} = v{u} * (y[{u * LANES} + l] - z{u})",
                f"some{u} = z{u} > 1e-150",
                f"c{u} = v{u} * (s{u} / z{u} if some{u} else 1.0)",
                f"bend{u} = r{u} * {at('NF2')} / (z{u} * z{u} * z{u}) if some{u} else 0.0",
                f"h{u} = c{u} * c{u} - (bend{u} if bend{u} < 0.0 else 0.0)",
                f"g{u} = c{u} * r{u}",
            ]
        else:
            lines += [f"r{u} = v{u} * (y[{u * LANES} + l] - s{u})", f"g{u} = r{u}", f"h{u} = v{u}"]
        lines += [f"k{u}_{i} = h{u} * d{u}_{i}" for i in range(n)]
    lines += [f"{at('SQT')} += " + " + ".join(f"r{u} * r{u}" for u in units)]
    lines += [
        f"{at('GT', i)} += " + " + ".join(f"d{u}_{i} * g{u}" for u in units) for i in range(n)
    ]
    lines += [
        f"{at.pair('MT', i, j)} += " + " + ".join(f"k{u}_{i} * d{u}_{j}" for u in units)
        for i, j in at.pairs
    ]
    return lines


def _regularize(at: Layout, forms: tuple[str, ...]) -> list[str]:
    """Add penalty·(parameter − origin)² for each parameter, in the coordinates of the formula."""
    lines = []
    for i in range(at.n):
        # The curvature by the inner coordinate counts: J'J alone overshoots far from the origin.
        outer, slope, bend = {
            "inverse": (f"1.0 / {at('X', i)}", "-outer * outer", "2.0 * outer * outer * outer"),
            "log": (at("X", i), "1.0", "1.0 / outer"),
            "plain": (at("X", i), "1.0", "0.0"),
        }[forms[i]]
        lines += [
            f"outer = {outer}",
            f"slope = {slope}",
            f"away = outer - s[{_PENALTY + at.n + i}]",
            f"{at('CT')} += s[{_PENALTY + i}] * away * away",
            f"{at('GT', i)} -= s[{_PENALTY + i}] * away * slope",
            f"{at.pair('MT', i, i)} += s[{_PENALTY + i}] * (slope * slope + away * ({bend}))",
        ]
    return lines


def _chain(at: Layout, formula: Formula) -> list[str]:
    """Turn the sums into those of inner coordinates by the chain rule."""
    lines = [f"{at('CT')} = {at('CT')} + {at('SQT')}"]
    k, d = formula.kurtosis, formula.diffusivity
    if k >= 0:
        sign = "" if formula.forms[d] == "inverse" else "-"
        lines += _limit(at, formula)
        lines.append(f"slope = {sign}{at('X', k)} / {at('X', d)} if limits else 0.0")
        lines.append(f"{at('GT', d)} += slope * {at('GT', k)}")
        lines.append(
            f"{at.pair('MT', d, d)} += slope * (2.0 * {at.pair('MT', d, k)} + slope * "
            f"{at.pair('MT', k, k)})"
        )
        lines += [
            f"{at.pair('MT', d, j)} += slope * {at.pair('MT', k, j)}"
            for j in range(at.n)
            if j != d
        ]
        lines += [f"{at('GT', k)} *= ratio", f"{at.pair('MT', k, k)} *= ratio * ratio"]
        lines += [f"{at.pair('MT', k, j)} *= ratio" for j in range(at.n) if j != k]
    for i in range(at.n):
        if formula.forms[i] == "log":
            lines += [
                f"{at('GT', i)} *= {at('X', i)}",
                f"{at.pair('MT', i, i)} *= {at('X', i)} * {at('X', i)}",
            ]
            lines += [f"{at.pair('MT', i, j)} *= {at('X', i)}" for j in range(at.n) if j != i]
    return lines


def _accept(at: Layout) -> list[str]:
    """Move the lanes whose trial is better, and adapt their damping."""
    body = [
        f"better = {at('CT')} < {at('C')}",
        f"lam = {at('LAM')}",
        f"gain = ({at('C')} - {at('CT')}) / {at('P1')}",
        f"{at('C')} = {at('CT')} if better else {at('C')}",
        "less = lam * 0.2 if lam * 0.2 > 1e-9 else 1e-9",
        "less = less if gain > 0.5 else (lam if gain > 0.2 else lam * 2.0)",
        f"{at('LAM')} = less if better else lam * 6.0",
        f"{at('IT')} += 1.0",
        f"{at('SQ')} = {at('SQT')} if better else {at('SQ')}",
    ]
    for name, trial, size in (("Q", "T", at.n), ("G", "GT", at.n), ("M", "MT", len(at.pairs))):
        body += [
            f"{at(name, i)} = {at(trial, i)} if better else {at(name, i)}" for i in range(size)
        ]
    return body


def factor(n: int, least: str) -> list[str]:
    """
    Factor a symmetric matrix a into LDL', unrolled: l, pivots p, inverses o.

    A pivot is at least `least`, where ``{j}`` stands for its row.
    """
    lines = []
    for j in range(n):
        lines += [f"t{j}_{k} = l{j}_{k} * p{k}" for k in range(j)]
        lines.append(f"p{j} = a{j}_{j}" + "".join(f" - l{j}_{k} * t{j}_{k}" for k in range(j)))
        limit = least.format(j=j)
        lines.append(f"p{j} = p{j} if p{j} > {limit} else {limit}")
        lines.append(f"o{j} = 1.0 / p{j}")
        for i in range(j + 1, n):
            lines.append(
                f"l{i}_{j} = (a{i}_{j}"
                + "".join(f" - l{i}_{k} * t{j}_{k}" for k in range(j))
                + f") * o{j}"
            )
    return lines


def _solve(n: int, suffix: str) -> list[str]:
    """Solve (M + λ·diag M) d = rhs for the free parameters by LDL', all unrolled."""
    s = suffix
    lines = []
    for i in range(n):
        for j in range(i):
            lines.append(f"a{i}_{j} = m{i}_{j} * (e{s}{i} * e{s}{j})")
        lines.append(f"a{i}_{i} = (m{i}_{i} * (1.0 + lam) + 1e-30) * e{s}{i} + (1.0 - e{s}{i})")
    lines += factor(n, "1e-30")
    for i in range(n):
        lines.append(f"z{i} = rhs{s}{i}" + "".join(f" - l{i}_{k} * z{k}" for k in range(i)))
    for i in reversed(range(n)):
        lines.append(
            f"d{s}{i} = z{i} * o{i}" + "".join(f" - l{k}_{i} * d{s}{k}" for k in range(i + 1, n))
        )
    return lines


def _step(at: Layout) -> list[str]:
    """
    Choose the next trial of every lane and say which lanes are done.

    Parameters at a bound that the gradient pushes against stay there; those that the step would
    carry out are put on their bound and the rest is solved again. A lane is done when the
    unclipped step promises too little: judged by the clipped one, 2–3 % of voxels stop early.
    """
    n = at.n
    load = [f"lam = {at('LAM')}", f"c = {at('C')}"]
    for i in range(n):
        load += [
            f"q{i} = {at('Q', i)}",
            f"g{i} = {at('G', i)}",
            f"lo{i} = {at('LO', i)}",
            f"hi{i} = {at('HI', i)}",
        ]
        load += [f"m{i}_{j} = {at.pair('M', i, j)}" for j in range(i + 1)]
    first = []
    for i in range(n):
        first.append(
            f"held = ((q{i} <= lo{i}) & (g{i} <= 0.0)) | ((q{i} >= hi{i}) & (g{i} >= 0.0))"
        )
        first.append(f"e{i} = 0.0 if held else 1.0")
        first.append(f"rhs{i} = g{i} * e{i}")
    first += _solve(n, "")
    first.append(
        "promise = " + " + ".join(f"d{i} * (rhs{i} + lam * m{i}_{i} * d{i})" for i in range(n))
    )
    second = []
    for i in range(n):
        second += [
            f"t = q{i} + d{i}",
            f"put = lo{i} if t < lo{i} else (hi{i} if t > hi{i} else t)",
            f"o = (e{i} > 0.0) & (put != t)",
            f"e_{i} = 0.0 if o else e{i}",
            f"f{i} = put - q{i} if o else 0.0",
        ]
    for i in range(n):
        crossed = "".join(f" - m{max(i, j)}_{min(i, j)} * f{j}" for j in range(n) if j != i)
        second.append(f"rhs_{i} = (g{i}{crossed}) * e_{i}")
    second += _solve(n, "_")
    second.append("out = " + " + ".join(f"(e{i} - e_{i})" for i in range(n)))
    finish = []
    for i in range(n):
        finish += [
            f"d{i} = (f{i} + d_{i} * e_{i}) if out > 0.0 else d{i}",
            f"t = q{i} + d{i}",
            f"t = lo{i} if t < lo{i} else (hi{i} if t > hi{i} else t)",
            f"{at('T', i)} = t",
            f"d{i} = t - q{i}",
        ]
    quadratic = " + ".join(
        f"d{i} * (" + " + ".join(f"m{max(i, j)}_{min(i, j)} * d{j}" for j in range(n)) + ")"
        for i in range(n)
    )
    finish += [
        "clipped = 2.0 * (" + " + ".join(f"g{i} * d{i}" for i in range(n)) + f") - ({quadratic})",
        f"{at('P1')} = clipped if clipped > 1e-300 else 1e-300",
        f"{at('LAM')} = lam * 10.0 if clipped < 0.02 * promise else lam",
        f"small = (promise <= s[{_TOLERANCE}] * c + 1e-26) & (lam < 0.5)",
        f"{at('END')} = 1.0 if small else ((1.0 if promise <= 1e-6 * c + 1e-26 else 2.0) if lam > "
        "1e9 else 0.0)",
        # A start that cannot end below the best is given up: 3 close to its end, 4 far from it.
        f"lost = (lam < 0.5) & (promise < {_FAR} * c) & (c - 3.0 * promise > {at('GB')})",
        f"{at('END')} = 4.0 if lost else {at('END')}",
        f"lost = (lam < 0.5) & (promise < {_NEAR} * c) & (c - 0.9 * promise > {at('GB')})",
        f"{at('END')} = 3.0 if lost else {at('END')}",
    ]
    return load + first + second + finish


def _variances(at: Layout) -> list[str]:
    """Diagonal of the inverse of J'J over the free parameters, by LDL' of the scaled matrix."""
    n = at.n
    body = []
    for i in range(n):
        body.append(f"q = {at('Q', i)}")
        body.append(f"e{i} = 0.0 if ((q <= {at('LO', i)}) | (q >= {at('HI', i)})) else 1.0")
        body.append(f"square = {at.pair('M', i, i)}")
        body.append(f"u{i} = e{i} / sqrt(square if square > 1e-300 else 1e-300)")
        # Signals are one at most, so this is below rounding: they do not depend on the parameter.
        body.append(f"blind{i} = (square <= 1e-24) & (e{i} > 0.0)")
    for i in range(n):
        for j in range(i):
            body.append(f"a{i}_{j} = {at.pair('M', i, j)} * (u{i} * u{j})")
        body.append(f"a{i}_{i} = 1.0")
    body += factor(n, "1e-15")
    for j in range(n):
        for i in range(j + 1, n):
            inner = "".join(f" - l{i}_{k} * v{k}_{j}" for k in range(j + 1, i))
            body.append(f"v{i}_{j} = -l{i}_{j}{inner}")
    for i in range(n):
        total = f"o{i}" + "".join(f" + v{k}_{i} * v{k}_{i} * o{k}" for k in range(i + 1, n))
        body.append(f"{at('D', i)} = 1e300 if blind{i} else ({total}) * u{i} * u{i}")
    return body
