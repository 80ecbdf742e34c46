"""
All compiled code: a bounded Levenberg–Marquardt fit, generated for each signal model.

`load` writes a Python module for a model and imports it. Its functions work on 32 voxels side by side:
every statement stands in a loop over lanes that LLVM turns into SIMD instructions, and each lane is a fit
of its own that takes the next voxel when it is done. What makes this quick is that all work lies in one
flat array at offsets known when the code is written (LLVM then needs no alias checks), that J is never
stored, and that the exponential is a polynomial which vectorizes.

The module's name holds a hash of this file, the model, the versions and the processor, so numba's cache on
disk (which looks at one file only) is never stale.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import platform
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dmrifit.models import Parameter, SignalModel

__all__ = ["LANES", "UNROLL", "form", "is_compiled", "load", "source"]

LANES = 32
UNROLL = 3  # measurements taken together, so that the accumulators are loaded and stored less often

_loaded: dict[str, ModuleType] = {}
_lock = threading.RLock()


def load(model: SignalModel) -> ModuleType:
    """
    Import the compiled kernel of a model, writing and compiling it where it is not yet on disk.

    Parameters
    ----------
    model : SignalModel
        The model.

    Returns
    -------
    module
        With the function ``fit_chunk`` and the constants that describe the model's form.
    """
    with _lock:
        name = _module_name(model)
        if name not in _loaded:
            _loaded[name] = _import(name, model)
        return _loaded[name]


def is_compiled(kernel: ModuleType) -> bool:
    """
    Tell whether a kernel needs no compilation.

    Parameters
    ----------
    kernel : module
        As `load` returns it.

    Returns
    -------
    bool
        Whether this process or the cache on disk has its machine code.
    """
    path = Path(kernel.__file__ or "")
    return bool(kernel.fit_chunk.signatures) or any((path.parent / "__pycache__").glob(f"{path.stem}.fit_chunk-*.nbi"))


@functools.cache
def _module_name(model: SignalModel) -> str:
    import llvmlite.binding
    import numba

    facts = [
        Path(__file__).read_bytes(),
        repr((model.expression, model.parameters, model.cumulant)).encode(),
        repr((sys.version, numba.__version__, llvmlite.__version__, platform.machine())).encode(),
        llvmlite.binding.get_host_cpu_name().encode(),
        llvmlite.binding.get_host_cpu_features().flatten().encode(),
        repr([(key, value) for key, value in sorted(os.environ.items()) if key.startswith("NUMBA_")]).encode(),
    ]
    digest = hashlib.sha256(b"\0".join(facts)).hexdigest()[:20]
    safe = "".join(c if c.isalnum() else "_" for c in model.name)
    return f"dmrifit_kernel_{safe}_{digest}"


def _cache_folder() -> Path:
    """Find the folder of generated modules: $DMRIFIT_CACHE, else the user's cache, else a temporary folder."""
    chosen = os.environ.get("DMRIFIT_CACHE")
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dmrifit"
    for folder in [Path(chosen)] if chosen else [home, Path(tempfile.gettempdir()) / f"dmrifit-{_user()}"]:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError:
            continue
        # A folder that someone else can write to would let them put code into this process.
        mine = not hasattr(os, "getuid") or folder.stat().st_uid == os.getuid()
        if mine and os.access(folder, os.W_OK):
            return folder
    return Path(tempfile.mkdtemp(prefix="dmrifit-"))


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else "user"


def _import(name: str, model: SignalModel) -> ModuleType:
    path = _cache_folder() / f"{name}.py"
    if not path.exists():
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(source(model))
        Path(temporary).replace(path)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # numba looks the module up by name when it reads its cache
    spec.loader.exec_module(module)
    return module


# The generated module -------------------------------------------------------------------------------------------------


class _Layout:
    """Places of the work array, in units of `LANES` numbers."""

    def __init__(self, n_parameters: int) -> None:
        self.n = n_parameters
        self.pairs = [(i, j) for i in range(n_parameters) for j in range(i + 1)]
        sizes = {
            "Q": self.n,  # where the lane stands, in inner coordinates
            "T": self.n,  # where it tries to go
            "X": self.n,  # the trial in the coordinates of the formula
            "G": self.n,  # J'r and J'J where it stands
            "M": len(self.pairs),
            "GT": self.n,  # J'r and J'J at the trial
            "MT": len(self.pairs),
            "LO": self.n,
            "HI": self.n,
            "BQ": self.n,  # the best end of the starts made so far
            "D": self.n,
            "C": 1,  # objective where it stands, at the trial, at the best end
            "CT": 1,
            "BC": 1,
            "RSS": 1,  # the objective at the trial without regularization
            "LAM": 1,
            "P1": 1,
            "IT": 1,
            "END": 1,
            "NF2": 1,
            "YK": UNROLL,
            "WK": UNROLL,
        }
        self.offset: dict[str, int] = {}
        total = 0
        for name, size in sizes.items():
            self.offset[name] = total
            total += size
        self.size = total * LANES

    def __call__(self, name: str, i: int = 0) -> str:
        return f"w[{(self.offset[name] + i) * LANES} + l]"

    def pair(self, name: str, i: int, j: int) -> str:
        i, j = max(i, j), min(i, j)
        return self(name, i * (i + 1) // 2 + j)


def source(model: SignalModel) -> str:
    """
    Write the module that fits a model.

    Parameters
    ----------
    model : SignalModel
        The model.

    Returns
    -------
    str
        Python source; it imports numba and numpy only.
    """
    formula = _Formula(model)
    at = _Layout(len(model.parameters))
    parts = [
        f'"""Generated by dmrifit for the model {model.name}: {model.expression}. Not to be edited."""\n',
        _HEAD.format(
            n=at.n,
            lanes=LANES,
            unroll=UNROLL,
            size=at.size,
            forms=formula.forms,
            mixture=formula.mixture,
            amplitude=formula.amplitude,
            first=formula.first,
            turns=-1 if model.cumulant is None else model.names.index(model.cumulant[0]),
            turning=-1 if model.cumulant is None else model.names.index(model.cumulant[1]),
            pairs=len(at.pairs),
            **{f"at_{name.lower()}": offset * LANES for name, offset in at.offset.items()},
        ),
        _evaluate(at, formula, model),
        _accept(at),
        _step(at),
        _errors(at),
        _DRIVER,
    ]
    return "\n\n".join(parts)


class _Formula:
    """The formula and its derivatives as lines of code, and what its form allows."""

    def __init__(self, model: SignalModel) -> None:
        import sympy

        names = model.names
        self.forms = tuple(form(parameter) for parameter in model.parameters)
        symbols = {name: sympy.Symbol(name, real=True) for name in (*names, "b", "te")}
        expression = sympy.sympify(model.expression.strip(), locals=dict(symbols))
        self.mixture, self.amplitude, self.first = _structure(expression, [symbols[name] for name in names], model)
        inverse = {symbols[n]: 1 / symbols[n] for n, form in zip(names, self.forms, strict=True) if form == "inverse"}
        expression = expression.subs(inverse, simultaneous=True)
        wanted = [expression, *(sympy.diff(expression, symbols[name]) for name in names)]
        rename = {symbols[name]: sympy.Symbol(f"x{i}", real=True) for i, name in enumerate(names)}
        wanted = [w.subs(rename) for w in wanted]
        self._steps, self._results = sympy.cse(wanted, symbols=sympy.numbered_symbols("h"), optimizations="basic")
        self._print = _printer()

    def lines(self, u: int) -> Iterator[str]:
        """Code that computes the signal ``s{u}`` and derivatives ``d{u}_{i}`` of measurement `u`."""
        import sympy

        own = {symbol: sympy.Symbol(f"{symbol}_{u}", real=True) for symbol, _ in self._steps}
        own |= {sympy.Symbol(name, real=True): sympy.Symbol(f"{name}_{u}", real=True) for name in ("b", "te")}
        for symbol, value in self._steps:
            yield f"{own[symbol]} = {self._print(value.xreplace(own))}"
        for target, value in zip([f"s{u}", *(f"d{u}_{i}" for i in range(len(self.forms)))], self._results, strict=True):
            yield f"{target} = {self._print(value.xreplace(own))}"


def form(parameter: Parameter) -> str:
    """
    Choose the inner coordinate of a parameter.

    Relaxation times act through their inverse; a positive parameter known only to an order of magnitude is
    searched by its logarithm.
    """
    low, high, unit = parameter.low, parameter.high, parameter.unit
    if unit == "ms" and low > 0:
        return "inverse"
    if unit != "signal" and low > 0 and high / low >= 20:
        return "log"
    return "plain"


def _structure(expression: object, symbols: list, model: SignalModel) -> tuple[int, int, tuple[int, ...]]:
    """
    Find the amplitude S0 the signal is proportional to, and the fraction f of S0·(f·g₁ + (1 − f)·g₀).

    Returned are the index of f or -1, that of S0 or -1, and the indices of the parameters of g₁. They decide
    how starting points are found.
    """
    import sympy

    amplitudes = [i for i, p in enumerate(model.parameters) if p.is_amplitude]
    if len(amplitudes) != 1:
        return -1, -1, ()
    amplitude = amplitudes[0]
    s0 = symbols[amplitude]
    shape = sympy.expand(sympy.diff(expression, s0))
    if shape.has(s0) or sympy.simplify(sympy.expand(expression) - sympy.expand(s0 * shape)) != 0:
        return -1, -1, ()
    for i, parameter in enumerate(model.parameters):
        f = symbols[i]
        if (parameter.low, parameter.high) != (0, 1) or sympy.simplify(sympy.diff(shape, f, 2)) != 0:
            continue
        one, zero = sympy.simplify(shape.subs(f, 1)), sympy.simplify(shape.subs(f, 0))
        own = set(symbols) - {f, s0}
        if one.free_symbols & own and not (one.free_symbols & zero.free_symbols & own):
            return i, amplitude, tuple(j for j, symbol in enumerate(symbols) if symbol in one.free_symbols & own)
    return -1, amplitude, ()


def _printer():  # noqa: ANN202 - a class of sympy's, imported late
    from sympy.printing.pycode import PythonCodePrinter

    class Printer(PythonCodePrinter):
        def _print_Pow(self, expr: object, **_: object) -> str:
            base, power = expr.as_base_exp()  # type: ignore[attr-defined]
            text = f"({self._print(base)})"
            if power.is_Integer and 1 <= abs(int(power)) <= 8:
                product = "*".join([text] * abs(int(power)))
                return f"({product})" if power > 0 else f"(1.0/({product}))"
            if abs(power) == 0.5:
                return f"math.sqrt({text})" if power > 0 else f"(1.0/math.sqrt({text}))"
            return f"vexp({self._print(power)}*math.log({text}))"

        def _print_ExpBase(self, expr: object) -> str:
            return f"vexp({self._print(expr.args[0])})"  # type: ignore[attr-defined]

        _print_exp = _print_ExpBase

        def _print_Rational(self, expr: object) -> str:
            return repr(float(expr))  # type: ignore[arg-type]

        def _print_Integer(self, expr: object) -> str:
            return repr(float(expr))  # type: ignore[arg-type]

    printer = Printer({"fully_qualified_modules": True})
    return printer.doprint


_HEAD = '''
import math

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

N = {n}
N_PAIRS = {pairs}
LANES = {lanes}
UNROLL = {unroll}
SIZE = {size}
FORMS = {forms}
MIXTURE = {mixture}
AMPLITUDE = {amplitude}
FIRST = {first}
TURNS = {turns}
TURNING = {turning}
AT_Q = {at_q}
AT_T = {at_t}
AT_M = {at_m}
AT_LO = {at_lo}
AT_HI = {at_hi}
AT_BQ = {at_bq}
AT_D = {at_d}
AT_C = {at_c}
AT_BC = {at_bc}
AT_RSS = {at_rss}
AT_LAM = {at_lam}
AT_IT = {at_it}
AT_END = {at_end}
AT_NF2 = {at_nf2}

# No reassociation, so that a lane's bits do not depend on how wide the processor's vectors are.
FAST = {{"contract", "nsz"}}


@intrinsic
def _bits_as_float(typing_context, bits):
    def build(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.DoubleType())
    return types.float64(types.int64), build


@intrinsic
def _float_as_bits(typing_context, value):
    def build(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(64))
    return types.int64(types.float64), build


@njit(inline="always", fastmath=FAST)
def vexp(x):
    x = x if x < 700.0 else 700.0
    x = x if x > -700.0 else -700.0
    n = math.floor(x * 1.4426950408889634 + 0.5)
    r = (x - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10
    p = 2.505210838544172e-08
    p = p * r + 2.755731922398589e-07
    p = p * r + 2.7557319223985893e-06
    p = p * r + 2.48015873015873e-05
    p = p * r + 0.0001984126984126984
    p = p * r + 0.001388888888888889
    p = p * r + 0.008333333333333333
    p = p * r + 0.041666666666666664
    p = p * r + 0.16666666666666666
    p = p * r + 0.5
    p = p * r + 1.0
    p = p * r + 1.0
    # 1.5·2^52 + n holds n in its lowest bits; moved up they are the exponent of 2^n.
    bits = (_float_as_bits(n + 6755399441055744.0) << 52) + 4607182418800017408
    return p * _bits_as_float(bits)
'''


def _function(signature: str, body: list[str]) -> str:
    lines = ["@njit(nogil=True, cache=True, fastmath=FAST)", f"def {signature}:"]
    return "\n".join([*lines, *("    " + line for line in body)])


def _lanes(body: list[str]) -> list[str]:
    return ["for l in range(LANES):", *("    " + line for line in body)]


def _evaluate(at: _Layout, formula: _Formula, model: SignalModel) -> str:
    """Signal, residual, J'r and J'J of all lanes at their trials, in inner coordinates."""
    n, forms = at.n, formula.forms
    cumulant = None if model.cumulant is None else [model.names.index(name) for name in model.cumulant]
    start = [f"{at('X', i)} = vexp({at('T', i)})" if forms[i] == "log" else f"{at('X', i)} = {at('T', i)}" for i in range(n)]
    if cumulant:
        # Where the signal must not turn up, the inner K is its share of the largest K allowed, 3 / (b_max·D).
        k, d = cumulant
        outer_d = at("X", d) if forms[d] != "inverse" else f"1.0 / {at('X', d)}"
        start += [
            "if turn_up > 0.0:",
            f"    ratio = turn_up / ({outer_d} * {at('HI', k)})",
            "    ratio = ratio if ratio < 1.0 else 1.0",
            f"    {at('X', k)} = {at('T', k)} * ratio",
        ]
    start += [f"{at('CT')} = 0.0"]
    start += [f"{at('GT', i)} = 0.0" for i in range(n)]
    start += [f"{at.pair('MT', i, j)} = 0.0" for i, j in at.pairs]
    body = _lanes(start)
    units = range(UNROLL)
    body += [
        "for k in range(0, n_padded, UNROLL):",
        "    for l in range(UNROLL * LANES):",
        f"        w[{at.offset['YK'] * LANES} + l] = y[k * LANES + l]",
        f"        w[{at.offset['WK'] * LANES} + l] = weight[k * LANES + l]",
    ]
    for u in units:
        body += [f"    b_{u} = b[k + {u}]", f"    te_{u} = te[k + {u}]"]
    for condition, floored in (("if floored:", True), ("else:", False)):
        body += [f"    {condition}"] + ["        " + line for line in _lanes(_accumulate(at, formula, floored))]
    body += _lanes([f"{at('RSS')} = {at('CT')}"])
    body += ["if regularized:"] + ["    " + line for line in _lanes(_regularize(at, forms))]
    chain: list[str] = []
    if cumulant:
        k, d = cumulant
        outer_d = at("X", d) if forms[d] != "inverse" else f"1.0 / {at('X', d)}"
        slope = f"-{at('X', k)} / {at('X', d)}" if forms[d] != "inverse" else f"{at('X', k)} / {at('X', d)}"
        chain += [
            "if turn_up > 0.0:",
            f"    ratio = turn_up / ({outer_d} * {at('HI', k)})",
            f"    slope = {slope} if ratio < 1.0 else 0.0",
            "    ratio = ratio if ratio < 1.0 else 1.0",
            f"    {at('GT', d)} += slope * {at('GT', k)}",
            f"    {at.pair('MT', d, d)} += slope * (2.0 * {at.pair('MT', d, k)} + slope * {at.pair('MT', k, k)})",
        ]
        chain += [
            f"    {at.pair('MT', d, j)} += slope * {at.pair('MT', k, j)}" for j in range(n) if j not in (d, k)
        ]
        chain += [f"    {at.pair('MT', d, k)} += slope * {at.pair('MT', k, k)}"]
        chain += [f"    {at('GT', k)} *= ratio", f"    {at.pair('MT', k, k)} *= ratio * ratio"]
        chain += [f"    {at.pair('MT', k, j)} *= ratio" for j in range(n) if j != k]
    for i in range(n):
        if forms[i] == "log":
            chain += [f"{at('GT', i)} *= {at('X', i)}", f"{at.pair('MT', i, i)} *= {at('X', i)} * {at('X', i)}"]
            chain += [f"{at.pair('MT', i, j)} *= {at('X', i)}" for j in range(n) if j != i]
    if chain:
        body += _lanes(chain)
    return _function("evaluate(w, y, weight, b, te, n_padded, floored, turn_up, regularized, penalty, origin)", body)


def _accumulate(at: _Layout, formula: _Formula, floored: bool) -> list[str]:
    """Add the measurements that were taken together to the sums of one lane."""
    n, units = at.n, range(UNROLL)
    lines = [f"x{i} = {at('X', i)}" for i in range(n)]
    for u in units:
        lines += list(formula.lines(u))
        lines.append(f"v{u} = {at('WK', u)}")
        if floored:  # √(s² + nf²); its slope s/√(…) is 1 where there is neither signal nor floor
            lines += [
                f"z{u} = math.sqrt(s{u} * s{u} + {at('NF2')})",
                f"r{u} = v{u} * ({at('YK', u)} - z{u})",
                f"v{u} = v{u} * (s{u} / z{u} if z{u} > 1e-150 else 1.0)",
            ]
        else:
            lines.append(f"r{u} = v{u} * ({at('YK', u)} - s{u})")
        lines += [f"d{u}_{i} = v{u} * d{u}_{i}" for i in range(n)]
    lines += [f"{at('CT')} += " + " + ".join(f"r{u} * r{u}" for u in units)]
    lines += [f"{at('GT', i)} += " + " + ".join(f"d{u}_{i} * r{u}" for u in units) for i in range(n)]
    lines += [f"{at.pair('MT', i, j)} += " + " + ".join(f"d{u}_{i} * d{u}_{j}" for u in units) for i, j in at.pairs]
    return lines


def _regularize(at: _Layout, forms: tuple[str, ...]) -> list[str]:
    """Add penalty·(parameter − origin)² for each parameter, in the coordinates of the formula."""
    lines = []
    for i, form in enumerate(forms):
        outer, slope = (f"1.0 / {at('X', i)}", "-outer * outer") if form == "inverse" else (at("X", i), "1.0")
        lines += [
            f"outer = {outer}",
            f"slope = {slope}",
            f"away = outer - origin[{i}]",
            f"{at('CT')} += penalty[{i}] * away * away",
            f"{at('GT', i)} -= penalty[{i}] * away * slope",
            f"{at.pair('MT', i, i)} += penalty[{i}] * slope * slope",
        ]
    return lines


def _accept(at: _Layout) -> str:
    """Move the lanes whose trial is better, and adapt their damping."""
    body = [
        f"better = {at('CT')} < {at('C')}",
        f"{at('C')} = {at('CT')} if better else {at('C')}",
        f"lam = {at('LAM')}",
        "less = lam * 0.2 if lam * 0.2 > 1e-9 else 1e-9",
        f"{at('LAM')} = less if better else lam * 6.0",
        f"{at('IT')} += 1.0",
    ]
    for name, trial, size in (("Q", "T", at.n), ("G", "GT", at.n), ("M", "MT", len(at.pairs))):
        body += [f"{at(name, i)} = {at(trial, i)} if better else {at(name, i)}" for i in range(size)]
    return _function("accept(w)", _lanes(body))


def _solve(n: int, suffix: str) -> list[str]:
    """Solve (M + λ·diag M) d = rhs for the free parameters by LDL', all unrolled."""
    s = suffix
    lines = []
    for i in range(n):
        for j in range(i):
            lines.append(f"a{i}_{j} = m{i}_{j} * (e{s}{i} * e{s}{j})")
        lines.append(f"a{i}_{i} = (m{i}_{i} * (1.0 + lam) + 1e-30) * e{s}{i} + (1.0 - e{s}{i})")
    for j in range(n):
        for k in range(j):
            lines.append(f"t{j}_{k} = l{j}_{k} * p{k}")
        lines.append(f"p{j} = a{j}_{j}" + "".join(f" - l{j}_{k} * t{j}_{k}" for k in range(j)))
        lines.append(f"p{j} = p{j} if p{j} > 1e-30 else 1e-30")
        lines.append(f"o{j} = 1.0 / p{j}")
        for i in range(j + 1, n):
            lines.append(f"l{i}_{j} = (a{i}_{j}" + "".join(f" - l{i}_{k} * t{j}_{k}" for k in range(j)) + f") * o{j}")
    for i in range(n):
        lines.append(f"z{i} = rhs{s}{i}" + "".join(f" - l{i}_{k} * z{k}" for k in range(i)))
    for i in reversed(range(n)):
        lines.append(f"d{s}{i} = z{i} * o{i}" + "".join(f" - l{k}_{i} * d{s}{k}" for k in range(i + 1, n)))
    return lines


def _step(at: _Layout) -> str:
    """
    Choose the next trial of every lane and say which lanes are done.

    Parameters at a bound that the gradient pushes against stay there; those that the step would carry out
    are put on their bound and the rest is solved again. A lane is done when the unclipped step promises too
    little: judged by the clipped one, 2–3 % of voxels stop early.
    """
    n = at.n
    load = [f"lam = {at('LAM')}", f"c = {at('C')}"]
    for i in range(n):
        load += [f"q{i} = {at('Q', i)}", f"g{i} = {at('G', i)}", f"lo{i} = {at('LO', i)}", f"hi{i} = {at('HI', i)}"]
        load += [f"m{i}_{j} = {at.pair('M', i, j)}" for j in range(i + 1)]
    first = []
    for i in range(n):
        first.append(f"held = ((q{i} <= lo{i}) & (g{i} <= 0.0)) | ((q{i} >= hi{i}) & (g{i} >= 0.0))")
        first.append(f"e{i} = 0.0 if held else 1.0")
        first.append(f"rhs{i} = g{i} * e{i}")
    first += _solve(n, "")
    first.append("promise = " + " + ".join(f"d{i} * (rhs{i} + lam * m{i}_{i} * d{i})" for i in range(n)))
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
        f"d{i} * (" + " + ".join(f"m{max(i, j)}_{min(i, j)} * d{j}" for j in range(n)) + ")" for i in range(n)
    )
    finish += [
        "clipped = 2.0 * (" + " + ".join(f"g{i} * d{i}" for i in range(n)) + f") - ({quadratic})",
        f"{at('P1')} = promise",
        f"{at('LAM')} = lam * 10.0 if clipped < 0.02 * promise else lam",
        "small = (promise <= tolerance * c + 1e-26) & (lam < 0.5)",
        f"{at('END')} = 1.0 if small else ((1.0 if promise <= 1e-6 * c + 1e-26 else 2.0) if lam > 1e9 else 0.0)",
    ]
    return _function("step(w, tolerance)", _lanes(load + first + second + finish))


def _errors(at: _Layout) -> str:
    """Diagonal of the inverse of J'J over the free parameters, by LDL' of the scaled matrix."""
    n = at.n
    body = []
    for i in range(n):
        body.append(f"q = {at('T', i)}")
        body.append(f"e{i} = 0.0 if ((q <= {at('LO', i)}) | (q >= {at('HI', i)})) else 1.0")
        body.append(f"m = {at.pair('MT', i, i)}")
        body.append(f"u{i} = e{i} / math.sqrt(m if m > 1e-300 else 1e-300)")
    for i in range(n):
        for j in range(i):
            body.append(f"a{i}_{j} = {at.pair('MT', i, j)} * (u{i} * u{j})")
    for j in range(n):
        for k in range(j):
            body.append(f"t{j}_{k} = l{j}_{k} * p{k}")
        body.append(f"p{j} = 1.0" + "".join(f" - l{j}_{k} * t{j}_{k}" for k in range(j)))
        body.append(f"o{j} = 1.0 / (p{j} if p{j} > 1e-15 else 1e-15)")
        for i in range(j + 1, n):
            body.append(f"l{i}_{j} = (a{i}_{j}" + "".join(f" - l{i}_{k} * t{j}_{k}" for k in range(j)) + f") * o{j}")
    for j in range(n):
        for i in range(j + 1, n):
            inner = "".join(f" - l{i}_{k} * v{k}_{j}" for k in range(j + 1, i))
            body.append(f"v{i}_{j} = -l{i}_{j}{inner}")
    for i in range(n):
        total = f"o{i}" + "".join(f" + v{k}_{i} * v{k}_{i} * o{k}" for k in range(i + 1, n))
        body.append(f"{at('D', i)} = ({total}) * u{i} * u{i}")
    return _function("variances(w)", _lanes(body))


_DRIVER = '''
@njit(nogil=True, cache=True)
def screen(signals, n_free, normalize, values, weights, tops, usable):
    """Copy usable voxels, one block of lanes after another, on the scale of their largest signal."""
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
        if count < n_free or top <= 0.0 or bottom < 0.0 or top == bottom:
            continue
        scale = top if normalize else 1.0
        block, lane = n_slots // LANES, n_slots % LANES
        for k in range(m):
            value = signals[i, k]
            known = math.isfinite(value)
            values[block, k, lane] = value / scale if known else 0.0
            weights[block, k, lane] = 1.0 if known else 0.0
        tops[n_slots] = scale
        usable[n_slots] = i
        n_slots += 1
    return n_slots


@njit(nogil=True, cache=True, fastmath=FAST)
def score_block(y, first, second, gram, scores, choices, dots):
    """
    Rate the atoms of the dictionary for one block of lanes, and keep the best of each stratum.

    With two components every pair is rated by its least squares of two non-negative amplitudes; with one,
    every atom by that of one amplitude; without an amplitude, by the distance itself.
    """
    n_first, n_second, m = first.shape[0], second.shape[0], second.shape[1]
    for a in range(n_first + n_second):
        for l in range(LANES):
            dots[a, l] = 0.0
        for k in range(m):
            value = first[a, k] if a < n_first else second[a - n_first, k]
            for l in range(LANES):
                dots[a, l] += value * y[k, l]
    n_strata = scores.shape[0]
    for s in range(n_strata):
        for l in range(LANES):
            scores[s, l] = -math.inf
            choices[s, l] = 0.0
    for t in range(n_second):
        tt = gram[n_first + t, n_first + t]
        if n_first == 0:
            s = t * n_strata // n_second
            for l in range(LANES):
                d = dots[t, l]
                gain = (d * d / tt if d > 0.0 else 0.0) if AMPLITUDE >= 0 else 2.0 * d - tt
                better = gain > scores[s, l]
                scores[s, l] = gain if better else scores[s, l]
                choices[s, l] = t if better else choices[s, l]
        for s in range(n_first):
            vv, vt = gram[s, s], gram[s, n_first + t]
            det = vv * tt - vt * vt
            scale = 1.0 / det if det > 1e-9 * vv * tt else 0.0
            c1, c2, c3, c4, c5 = tt * scale, vt * scale, vv * scale, 1.0 / tt, 1.0 / vv
            for l in range(LANES):
                v, d = dots[s, l], dots[n_first + t, l]
                a1 = v * c1 - d * c2
                a0 = d * c3 - v * c2
                gain = a1 * v + a0 * d
                gain = gain if a1 > 0.0 else d * d * c4
                gain = gain if a0 > 0.0 else v * v * c5
                better = gain > scores[s, l]
                scores[s, l] = gain if better else scores[s, l]
                choices[s, l] = t if better else choices[s, l]


@njit(nogil=True, cache=True)
def starting_points(y, weight, lane, first, second, first_q, second_q, gram, scores, choices, dots, lo, hi, points):
    """Turn the best strata of one lane into starting points in inner coordinates."""
    n_first, n_second, m = first.shape[0], second.shape[0], second.shape[1]
    n_strata = scores.shape[0]
    complete = True
    for k in range(m):
        complete = complete and weight[k, lane] != 0.0
    own = gram
    if not complete:
        # A voxel with missing measurements has a Gram matrix of its own; its choice of pairs is kept.
        own = np.zeros_like(gram)
        for i in range(n_first + n_second):
            one = first[i] if i < n_first else second[i - n_first]
            for j in range(n_first + n_second):
                if i < n_first or i == j:
                    two = first[j] if j < n_first else second[j - n_first]
                    total = 0.0
                    for k in range(m):
                        total += weight[k, lane] * one[k] * two[k]
                    own[i, j] = total
        for s in range(n_strata):
            scores[s, lane] = -math.inf
        for t in range(n_second):
            d, tt = dots[n_first + t, lane], own[n_first + t, n_first + t]
            if n_first == 0:
                s = t * n_strata // n_second
                if AMPLITUDE >= 0:
                    gain = d * d / tt if d > 0.0 and tt > 0.0 else 0.0
                else:
                    gain = 2.0 * d - tt
                if gain > scores[s, lane]:
                    scores[s, lane] = gain
                    choices[s, lane] = t
            for s in range(n_first):
                a1, a0 = amplitudes(dots[s, lane], d, own[s, s], own[s, n_first + t], tt)
                gain = a1 * dots[s, lane] + a0 * d
                if gain > scores[s, lane]:
                    scores[s, lane] = gain
                    choices[s, lane] = t
    for p in range(points.shape[0]):
        s = 0
        for other in range(1, n_strata):
            if scores[other, lane] > scores[s, lane]:
                s = other
        t = int(choices[s, lane])
        scores[s, lane] = -math.inf
        for i in range(N):
            points[p, i] = second_q[t, i]
            if n_first > 0 and not math.isnan(first_q[s, i]):
                points[p, i] = first_q[s, i]
        d, tt = dots[n_first + t, lane], own[n_first + t, n_first + t]
        if n_first > 0:
            a1, a0 = amplitudes(dots[s, lane], d, own[s, s], own[s, n_first + t], tt)
            total = a1 + a0
            points[p, AMPLITUDE] = total
            share = a1 / total if total > 0.0 else 0.5
            points[p, MIXTURE] = min(max(share, 0.02), 0.98)
        elif AMPLITUDE >= 0:
            points[p, AMPLITUDE] = d / tt if tt > 0.0 else 1.0
        for i in range(N):
            points[p, i] = min(max(points[p, i], lo[i]), hi[i])


@njit(nogil=True, cache=True)
def amplitudes(v, d, vv, vt, tt):
    """Least squares of two non-negative amplitudes."""
    det = vv * tt - vt * vt
    if det > 1e-9 * vv * tt:
        a1, a0 = (v * tt - d * vt) / det, (d * vv - v * vt) / det
        if a1 > 0.0 and a0 > 0.0:
            return a1, a0
    if tt > 0.0 and (vv <= 0.0 or d * d * vv >= v * v * tt):
        return 0.0, max(d, 0.0) / tt
    return (max(v, 0.0) / vv if vv > 0.0 else 0.0), 0.0


@njit(nogil=True, cache=True)
def place(w, y, weight, l, values, weights, slot, lo, hi, pinned, usable, tops, scaled, sigma):
    """Put the data, bounds and noise floor of a voxel into a lane."""
    block, lane = slot // LANES, slot % LANES
    for k in range(values.shape[1]):
        y[k * LANES + l] = values[block, k, lane]
        weight[k * LANES + l] = weights[block, k, lane]
    i = usable[slot]
    row = i if pinned.shape[0] > 1 else 0
    for j in range(N):
        value = pinned[row, j]
        if math.isnan(value):
            w[AT_LO + j * LANES + l], w[AT_HI + j * LANES + l] = lo[j], hi[j]
        else:
            value = value / tops[slot] if scaled[j] else value
            w[AT_LO + j * LANES + l] = value
            w[AT_HI + j * LANES + l] = value
    floor = sigma[i if sigma.shape[0] > 1 else 0] / tops[slot]
    w[AT_NF2 + l] = 0.5 * math.pi * floor * floor


@njit(nogil=True, cache=True)
def begin(w, l, point):
    """Start a lane at a point."""
    for j in range(N):
        value = min(max(point[j], w[AT_LO + j * LANES + l]), w[AT_HI + j * LANES + l])
        w[AT_T + j * LANES + l] = value
        w[AT_Q + j * LANES + l] = value
    w[AT_C + l] = math.inf
    w[AT_LAM + l] = 5e-2  # the first trial is the start itself, which always is better than infinity
    w[AT_IT + l] = -1.0
    w[AT_END + l] = 0.0


@njit(nogil=True, cache=True)
def fit_chunk(
    signals, sigma, floored, lo, hi, outer_lo, outer_hi, pinned, scaled, n_free, turn_up, regularized, penalty, origin,
    b, te, first, second, first_q, second_q, gram, n_strata, n_starts, tolerance, max_iter,
    parameters, errors, cost, status, n_iter, bounds_hit,
):
    """
    Fit the model to every row of `signals`; the last six arguments receive the results.

    A lane never meets another one, so results do not depend on which voxels are fitted together.
    """
    n, m = signals.shape
    n_padded = b.shape[0]
    n_blocks = (n + LANES - 1) // LANES
    values = np.zeros((n_blocks, n_padded, LANES))
    weights = np.zeros((n_blocks, n_padded, LANES))
    tops = np.ones(n)
    usable = np.zeros(n, np.int64)
    normalize = False
    for j in range(N):
        normalize = normalize or scaled[j]
    n_slots = screen(signals, n_free, normalize, values, weights, tops, usable)
    n_blocks = (n_slots + LANES - 1) // LANES

    points = np.empty((max(n_slots, 1), n_starts, N))
    scores = np.empty((n_strata, LANES))
    choices = np.empty((n_strata, LANES))
    dots = np.empty((first.shape[0] + second.shape[0], LANES))
    for block in range(n_blocks):
        score_block(values[block, :m], first, second, gram, scores, choices, dots)
        for lane in range(min(LANES, n_slots - block * LANES)):
            starting_points(
                values[block, :m], weights[block, :m], lane, first, second, first_q, second_q, gram,
                scores, choices, dots, lo, hi, points[block * LANES + lane],
            )

    w = np.zeros(SIZE)
    y = np.zeros(n_padded * LANES)
    weight = np.zeros(n_padded * LANES)
    slot_of = np.full(LANES, -1, np.int64)
    start_of = np.zeros(LANES, np.int64)
    ends = np.zeros((max(n_slots, 1), N))
    converged = np.zeros(max(n_slots, 1), np.bool_)
    steps = np.zeros(max(n_slots, 1), np.int64)
    taken = 0
    active = 0
    for l in range(LANES):
        for j in range(N):  # an idle lane works on zeros; its numbers go nowhere
            w[AT_LO + j * LANES + l], w[AT_HI + j * LANES + l] = 1.0, 1.0
            w[AT_T + j * LANES + l], w[AT_Q + j * LANES + l] = 1.0, 1.0
        if taken < n_slots:
            slot_of[l] = taken
            place(w, y, weight, l, values, weights, taken, lo, hi, pinned, usable, tops, scaled, sigma)
            begin(w, l, points[taken, 0])
            w[AT_BC + l] = math.inf
            taken += 1
            active += 1
    while active > 0:
        evaluate(w, y, weight, b, te, n_padded, floored, turn_up, regularized, penalty, origin)
        accept(w)
        step(w, tolerance)
        for l in range(LANES):
            slot = slot_of[l]
            if slot < 0 or (w[AT_END + l] == 0.0 and w[AT_IT + l] < max_iter):
                continue
            steps[slot] += int(w[AT_IT + l])
            if w[AT_C + l] < w[AT_BC + l]:
                w[AT_BC + l] = w[AT_C + l]
                converged[slot] = w[AT_END + l] == 1.0
                for j in range(N):
                    ends[slot, j] = w[AT_Q + j * LANES + l]
            start_of[l] += 1
            if start_of[l] == n_starts:
                start_of[l] = 0
                slot_of[l] = -1
                active -= 1
                if taken < n_slots:
                    slot = taken
                    slot_of[l] = slot
                    place(w, y, weight, l, values, weights, slot, lo, hi, pinned, usable, tops, scaled, sigma)
                    w[AT_BC + l] = math.inf
                    taken += 1
                    active += 1
            if slot_of[l] >= 0:
                begin(w, l, points[slot, start_of[l]])

    for i in range(n):
        for j in range(N):
            parameters[i, j] = math.nan
            errors[i, j] = math.nan
        cost[i] = math.nan
        status[i] = 3
        n_iter[i] = 0
        bounds_hit[i] = 0
    for block in range(n_blocks):
        n_lanes = min(LANES, n_slots - block * LANES)
        for l in range(n_lanes):
            slot = block * LANES + l
            place(w, y, weight, l, values, weights, slot, lo, hi, pinned, usable, tops, scaled, sigma)
            begin(w, l, ends[slot])
            if turn_up > 0.0:
                free_of_limit(w, l, turn_up)
        evaluate(w, y, weight, b, te, n_padded, floored, 0.0, False, penalty, origin)
        variances(w)
        for l in range(n_lanes):
            slot = block * LANES + l
            i = usable[slot]
            row = i if pinned.shape[0] > 1 else 0
            n_usable = 0
            for k in range(m):
                n_usable += int(weights[block, k, l])
            n_inside = 0
            for j in range(N):
                q = w[AT_T + j * LANES + l]
                low, high = w[AT_LO + j * LANES + l], w[AT_HI + j * LANES + l]
                value = q
                slope = 1.0
                if FORMS[j] == "log":
                    value = math.exp(q)
                    slope = value
                elif FORMS[j] == "inverse":
                    value = 1.0 / q
                    slope = value * value
                if math.isnan(pinned[row, j]):
                    at_low, at_high = q <= low, q >= high
                    if at_low or at_high:
                        if FORMS[j] == "inverse":
                            at_low, at_high = at_high, at_low
                        if not (turn_up > 0.0 and j == TURNS and high < hi[j]):
                            value = outer_lo[j] if at_low else outer_hi[j]
                        bounds_hit[i] |= (1 if at_low else 0) << j | (1 if at_high else 0) << (16 + j)
                    else:
                        n_inside += 1
                errors[i, j] = slope * math.sqrt(w[AT_D + j * LANES + l])
                if scaled[j]:
                    value *= tops[slot]
                    errors[i, j] *= tops[slot]
                if not math.isnan(pinned[row, j]):
                    value = pinned_outer(pinned[row, j], j)
                parameters[i, j] = value
            spare = n_usable - n_inside
            for j in range(N):
                q = w[AT_T + j * LANES + l]
                held = q <= w[AT_LO + j * LANES + l] or q >= w[AT_HI + j * LANES + l]
                errors[i, j] = math.nan if held or spare <= 0 else errors[i, j] * math.sqrt(w[AT_RSS + l] / spare)
            cost[i] = w[AT_RSS + l] * tops[slot] * tops[slot]
            status[i] = 2 if not converged[slot] else (1 if bounds_hit[i] != 0 else 0)
            n_iter[i] = steps[slot]


@njit(nogil=True, cache=True)
def pinned_outer(value, j):
    """Give a fixed value as the user gave it."""
    if FORMS[j] == "log":
        return math.exp(value)
    if FORMS[j] == "inverse":
        return 1.0 / value
    return value


@njit(nogil=True, cache=True)
def free_of_limit(w, l, turn_up):
    """Replace the inner K by K itself, and its upper bound by the limit that held."""
    if TURNS >= 0:
        d = w[AT_T + TURNING * LANES + l]
        d = math.exp(d) if FORMS[TURNING] == "log" else (1.0 / d if FORMS[TURNING] == "inverse" else d)
        at = TURNS * LANES + l
        ratio = min(turn_up / (d * w[AT_HI + at]), 1.0)
        w[AT_T + at] *= ratio
        w[AT_HI + at] *= ratio
'''
