"""
Vector code: Python functions that compute on all lanes at once, traced to LLVM instructions.

A lane is one of the voxels that are fitted side by side. Calling a function with `Number` objects
records each arithmetic operation as a vector instruction.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partialmethod
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import config
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic

from dmrifit.engine.kernels.layout import LANES, Fields, Layout

# The types that numba declares leave out some of its options.
njit: Any = numba.njit

_DOUBLE, _LONG, _INT = ir.DoubleType(), ir.IntType(64), ir.IntType(32)

# exp(x) = 2^n·exp(r) with |r| ≤ ln(2)/2: exp(r) is a Taylor polynomial, and n is written to the
# bits of the exponent.
_TAYLOR = [1.0]
for _i in range(1, 13):
    _TAYLOR.append(_TAYLOR[-1] / _i)
_LOG2_E = 1.4426950408889634
# ln(2) in two parts, whose sum is more precise than one double.
_LN2 = (0.693147180369123816490, 1.90821492927058770002e-10)
# 1.5·2^52: added to an integer, it leaves that integer in the lowest bits of the double.
_SHIFT = 6755399441055744.0
_MANTISSA_BITS = 52  # below the exponent in a double
_ONE = 1023 << _MANTISSA_BITS  # bits of 1.0


def block(write: Callable, layout: Layout | None = None) -> Callable:
    """
    Compile ``write(w, s, y, v, t)`` to a function of arrays, ``run(w, s, y, v, t, o)``.

    `write` is called once, and its computations become instructions for every lane. Its arguments
    are views: ``w[6]`` is row 6 of the work array, whose rows a layout also gives by name;
    ``y[2]`` and ``v[2]`` are rows of signals and weights after the offset ``o[0]``; ``t[1][2]`` is
    a row of the table after ``o[1]``; ``s[3]`` is a number that all lanes share. It may use
    ``+ - * /``, comparisons, ``& | ~``, `choose`, `exp`, `sqrt` and `log`. A sum with a product is
    rounded once; a plus sign before the product rounds it by itself.

    numba would take ten times as long to compile the same loops, and LLVM would have to prove that
    they can be vectorized.
    """

    # numba calls `run` with the types of the arguments, and `build` with their LLVM values.
    @intrinsic
    def run(typing_context, w, s, y, v, t, o):
        def build(context, builder, signature, arguments):
            pairs = zip(signature.args, arguments, strict=True)
            _loop(builder, write, layout, *(_address(context, builder, *pair) for pair in pairs))
            return context.get_dummy_value()

        return types.void(w, s, y, v, t, o), build

    return run


def _call(typing_context, address, arguments):
    """Call compiled code at an address with a tuple of arguments: arrays and integers."""

    # Arrays are passed as pointers to their data.
    def build(context, builder, signature, values):
        code_address, argument_tuple = values
        parameters = [
            _address(context, builder, kind, builder.extract_value(argument_tuple, i))
            for i, kind in enumerate(signature.args[1].types)
        ]
        function = ir.FunctionType(ir.VoidType(), [value.type for value in parameters])
        builder.call(builder.inttoptr(code_address, function.as_pointer()), parameters)
        return context.get_dummy_value()

    return types.void(address, arguments), build


call: Any = intrinsic(_call)


def _address(context: Any, builder: ir.IRBuilder, kind: types.Type, value: ir.Value) -> ir.Value:
    """Give the address of the data of an array; leave pointers and numbers as they are."""
    if isinstance(kind, types.Array):
        return context.make_array(kind)(context, builder, value).data
    return value


def _width() -> int:
    """Give the number of doubles in a vector of the processor that numba compiles for."""
    # Environment variables of numba may choose another processor than the machine's.
    settings: Any = config
    features = settings.CPU_FEATURES
    if settings.CPU_NAME is not None or features is not None:
        return 8 if "+avx512f" in (features or "") else 4
    return 8 if llvmlite.binding.get_host_cpu_features().get("avx512f") else 4


def _loop(
    builder: ir.IRBuilder,
    write: Callable,
    layout: Layout | None,
    w: ir.Value,
    s: ir.Value,
    y: ir.Value,
    v: ir.Value,
    t: ir.Value,
    o: ir.Value,
) -> None:
    """
    Emit the loop over groups of lanes as wide as the processor's vectors.

    The arrays are those of `block`.
    """
    entry_block, loop_block = builder.block, builder.append_basic_block("lanes")
    exit_block = builder.append_basic_block("lanes_end")
    builder.branch(loop_block)
    builder.position_at_end(loop_block)
    lane = builder.phi(_LONG)
    lane.add_incoming(_LONG(0), entry_block)
    code = _Code(builder, lane)

    # Offsets are loaded once, before the loop.
    def offset(row: int) -> ir.Value:
        with builder.goto_block(entry_block):
            return builder.load(builder.gep(o, [_LONG(row)]))

    work: Any = _Rows(code, w)
    if layout is not None:
        work = Fields(layout, work)
    signal_offset = offset(0)
    signals, weights = _Rows(code, y, signal_offset), _Rows(code, v, signal_offset)
    tables = _Items(lambda row: _Rows(code, t, offset(row)))
    write(work, _Items(code.common(s)), signals, weights, tables)
    next_lane = builder.add(lane, _LONG(code.width))
    lane.add_incoming(next_lane, builder.block)
    builder.cbranch(builder.icmp_signed("<", next_lane, _LONG(LANES)), loop_block, exit_block)
    builder.position_at_end(exit_block)


class _Code:
    """The instructions for one group of lanes."""

    def __init__(self, builder: ir.IRBuilder, lane: ir.Value) -> None:
        self.builder = builder
        self.lane = lane
        self.width = _width()
        self.vector = ir.VectorType(_DOUBLE, self.width)

    def value(self, number: Any) -> ir.Value:
        """Give the vector of a `Number`, or repeat a Python number in every lane."""
        if isinstance(number, Number):
            return number.value
        return ir.Constant(self.vector, [float(number)] * self.width)

    def intrinsic(self, name: str, *arguments: ir.Value) -> ir.Value:
        signature = ir.FunctionType(self.vector, [self.vector] * len(arguments))
        function = get_or_insert_function(
            self.builder.module, signature, f"llvm.{name}.v{self.width}f64"
        )
        return self.builder.call(function, arguments)

    def common(self, array: ir.Value) -> Callable[[int], Number]:
        """Give access to numbers of an array, repeated in every lane."""

        def broadcast(i: int) -> Number:
            build = self.builder
            number = build.load(build.gep(array, [_LONG(i)]))
            # The number goes to lane 0, and the shuffle takes lane 0 for every lane.
            first = build.insert_element(ir.Constant(self.vector, ir.Undefined), number, _INT(0))
            zeros = ir.Constant(ir.VectorType(_INT, self.width), [0] * self.width)
            return Number(self, build.shuffle_vector(first, first, zeros))

        return broadcast


class _Items:
    """The results of a function by subscript: ``items[i]`` is ``give(i)``."""

    def __init__(self, give: Callable[[int], Any]) -> None:
        self._give = give

    def __getitem__(self, i: int) -> Any:
        return self._give(i)


class _Rows:
    """Rows of an array with a column for each lane, after an offset."""

    def __init__(self, code: _Code, array: ir.Value, offset: ir.Value | None = None) -> None:
        self._code, self._array, self._offset = code, array, offset

    def _pointer(self, row: int) -> ir.Value:
        build = self._code.builder
        index = build.add(self._code.lane, _LONG(row * LANES))
        if self._offset is not None:
            index = build.add(index, self._offset)
        place = build.gep(self._array, [index])
        return build.bitcast(place, self._code.vector.as_pointer())

    def __getitem__(self, row: int) -> Number:
        return Number(self._code, self._code.builder.load(self._pointer(row), align=8))

    def __setitem__(self, row: int, number: Any) -> None:
        self._code.builder.store(self._code.value(number), self._pointer(row), align=8)


class Number:
    """A number of every lane; a product is kept as its factors, for a fused sum."""

    __array_ufunc__ = None  # numbers of NumPy leave arithmetic to this class
    __hash__ = None  # type: ignore[assignment]

    def __init__(
        self,
        code: _Code,
        value: ir.Value | None = None,
        factors: tuple[ir.Value, ir.Value] | None = None,
    ) -> None:
        self.code = code
        self.factors = factors
        self._value = value

    @property
    def value(self) -> ir.Value:
        """The vector of all lanes."""
        if self._value is None and self.factors is not None:
            self._value = self.code.builder.fmul(*self.factors)
        return self._value

    def _made(self, value: ir.Value) -> Number:
        return Number(self.code, value)

    def __pos__(self) -> Number:
        return self._made(self.value)

    def __neg__(self) -> Number:
        return self._made(self.code.builder.fneg(self.value))

    def __mul__(self, other: Any) -> Number:
        return Number(self.code, factors=(self.value, self.code.value(other)))

    def __rmul__(self, other: Any) -> Number:
        return Number(self.code, factors=(self.code.value(other), self.value))

    def __truediv__(self, other: Any) -> Number:
        return self._made(self.code.builder.fdiv(self.value, self.code.value(other)))

    def __rtruediv__(self, other: Any) -> Number:
        return self._made(self.code.builder.fdiv(self.code.value(other), self.value))

    def _sum(self, other: Any, *, is_minus: bool = False) -> Number:
        """
        Add or subtract; a product and a sum become one fused operation, which rounds once.

        LLVM would fuse them on some processors only, and results would differ between machines.
        """
        build = self.code.builder
        if self.factors is not None:
            addend = self.code.value(other)
            addend = build.fneg(addend) if is_minus else addend
            return self._made(self.code.intrinsic("fma", *self.factors, addend))
        if isinstance(other, Number) and other.factors is not None:
            left, right = other.factors
            left = build.fneg(left) if is_minus else left
            return self._made(self.code.intrinsic("fma", left, right, self.value))
        add = build.fsub if is_minus else build.fadd
        return self._made(add(self.value, self.code.value(other)))

    def __radd__(self, other: Any) -> Number:
        return self._made(self.code.value(other))._sum(self)

    def __rsub__(self, other: Any) -> Number:
        return self._made(self.code.value(other))._sum(self, is_minus=True)

    __add__ = _sum
    __sub__ = partialmethod(_sum, is_minus=True)

    def _compared(self, other: Any, *, sign: str) -> Condition:
        other = self.code.value(other)
        return Condition(self.code, self.code.builder.fcmp_ordered(sign, self.value, other))

    __lt__ = partialmethod(_compared, sign="<")
    __le__ = partialmethod(_compared, sign="<=")
    __gt__ = partialmethod(_compared, sign=">")
    __ge__ = partialmethod(_compared, sign=">=")
    __eq__ = partialmethod(_compared, sign="==")
    __ne__ = partialmethod(_compared, sign="!=")


class Condition:
    """Whether a condition is true, in every lane."""

    def __init__(self, code: _Code, value: ir.Value) -> None:
        self.code = code
        self.value = value

    def __and__(self, other: Condition) -> Condition:
        return Condition(self.code, self.code.builder.and_(self.value, other.value))

    def __or__(self, other: Condition) -> Condition:
        return Condition(self.code, self.code.builder.or_(self.value, other.value))

    def __invert__(self) -> Condition:
        return Condition(self.code, self.code.builder.not_(self.value))

    def __bool__(self) -> bool:
        raise TypeError("lanes may differ in a condition; use choose(condition, yes, no)")


def choose(condition: Any, yes: Any, no: Any) -> Any:
    """Give `yes` in lanes where a condition is true, else `no`; takes plain numbers, too."""
    if not isinstance(condition, Condition):
        return np.where(condition, yes, no)[()]
    code = condition.code
    return Number(code, code.builder.select(condition.value, code.value(yes), code.value(no)))


def sqrt(x: Any) -> Any:
    """Compute the square root."""
    if not isinstance(x, Number):
        return np.sqrt(x)
    return Number(x.code, x.code.intrinsic("sqrt", x.value))


def log(x: Any) -> Any:
    """Compute the logarithm, finite at 0 (x**a·log(x) is 0 there) and NaN below."""
    x = choose((x >= 0.0) & (x < 1e-300), 1e-300, x)
    if not isinstance(x, Number):
        return np.log(x)
    return Number(x.code, x.code.intrinsic("log", x.value))


def exp(x: Any) -> Any:
    """Compute the exponential; in lanes, arguments are clipped to −700 to 700."""
    if not isinstance(x, Number):
        return np.exp(x)
    x = choose(x < 700.0, x, 700.0)
    x = choose(x > -700.0, x, -700.0)
    code, build = x.code, x.code.builder
    n = Number(code, code.intrinsic("floor", (x * _LOG2_E + 0.5).value))
    # r = x − n·ln(2).
    r = x
    for ln2_part in _LN2:
        r = n * -ln2_part + r
    polynomial: Any = _TAYLOR[-1]
    for coefficient in reversed(_TAYLOR[:-1]):
        polynomial = r * polynomial + coefficient
    # 2^n: n, the lowest bits of n + _SHIFT, moves up to the exponent and is added to that of 1.0.
    integers = ir.VectorType(_LONG, code.width)
    bits = build.bitcast((n + _SHIFT).value, integers)
    bits = build.shl(bits, ir.Constant(integers, [_MANTISSA_BITS] * code.width))
    bits = build.add(bits, ir.Constant(integers, [_ONE] * code.width))
    power_of_two = Number(code, build.bitcast(bits, code.vector))
    # The plus sign rounds the product, so that the caller's sum is not fused with it.
    return +(polynomial * power_of_two)
