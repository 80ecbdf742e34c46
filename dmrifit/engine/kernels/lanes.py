"""Vector code: straight lines of arithmetic, lowered to LLVM instructions on all lanes at once."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from typing import Any

import llvmlite.binding
import numba
from llvmlite import ir
from numba import types
from numba.core import config
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic

# The types that numba declares leave out some of its options.
njit: Any = numba.njit

_DOUBLE, _LONG, _INT = ir.DoubleType(), ir.IntType(64), ir.IntType(32)

# exp(x) = 2^n·exp(r) with |r| ≤ ln(2)/2: a Taylor polynomial in r, and n in the exponent's bits.
_TAYLOR = [1.0]
for _i in range(1, 13):
    _TAYLOR.append(_TAYLOR[-1] / _i)
_LOG2_E = 1.4426950408889634
_LN2 = (0.693147180369123816490, 1.90821492927058770002e-10)
# 1.5·2^52: added to a whole number, it leaves that number in the lowest bits.
_SHIFT = 6755399441055744.0
_ONE = 1023 << 52

_COMPARISONS = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
}
# Instructions by operator.
_INSTRUCTIONS = {
    ast.Add: "fadd",
    ast.Sub: "fsub",
    ast.Mult: "fmul",
    ast.Div: "fdiv",
    ast.BitAnd: "and_",
    ast.BitOr: "or_",
}


def block(lines: Iterable[str], n_lanes: int) -> Callable:
    """
    Compile assignments to a function of six arrays or pointers, ``run(w, s, y, v, t, o)``.

    The lines are Python, but mean every lane at once: ``w[96 + l]`` is 96 numbers after lane `l`
    of `w`, ``y[32 + l]`` and ``v[32 + l]`` the same in `y` and `v` beyond ``o[0]``, ``t[2, 32 +
    l]`` in `t` beyond ``o[2]``; ``s[3]`` is one number for all lanes. There are ``+ - * /``,
    comparisons, ``& |``, conditional expressions, ``exp``, ``sqrt``, ``log``, and nothing else.

    numba would take ten times as long to compile the same loops, nearly all of it before LLVM
    begins, and LLVM would have to prove that they can be vectorized.
    """
    text = "\n".join(lines)

    @intrinsic
    def run(typing_context, w, s, y, v, t, o):
        def build(context, builder, signature, arguments):
            data = {
                name: _address(context, builder, kind, value)
                for name, kind, value in zip("wsyvto", signature.args, arguments, strict=True)
            }
            _loop(builder, ast.parse(text).body, data, n_lanes)
            return context.get_dummy_value()

        return types.void(w, s, y, v, t, o), build

    return run


def _call(typing_context, address, arguments):
    """Call the code of a model at an address with the arrays and whole numbers of a tuple."""

    def build(context, builder, signature, values):
        pointer, packed = values
        kinds = signature.args[1].types
        data = [
            _address(context, builder, kind, builder.extract_value(packed, i))
            for i, kind in enumerate(kinds)
        ]
        function = ir.FunctionType(ir.VoidType(), [value.type for value in data])
        builder.call(builder.inttoptr(pointer, function.as_pointer()), data)
        return context.get_dummy_value()

    return types.void(address, arguments), build


call: Any = intrinsic(_call)


def _address(context: Any, builder: ir.IRBuilder, kind: types.Type, value: ir.Value) -> ir.Value:
    """Find where the numbers of an array lie; pointers and numbers are what they are."""
    if isinstance(kind, types.Array):
        return context.make_array(kind)(context, builder, value).data
    return value


def _repeated(builder: ir.IRBuilder, number: ir.Value, width: int) -> ir.Value:
    """Put a number into every place of a vector."""
    vector = ir.VectorType(_DOUBLE, width)
    single = builder.insert_element(ir.Constant(vector, ir.Undefined), number, _INT(0))
    zeros = ir.Constant(ir.VectorType(_INT, width), [0] * width)
    return builder.shuffle_vector(single, single, zeros)


def _width() -> int:
    """Count the numbers in a vector of the processor that numba compiles for."""
    # Environment variables of numba may name a processor other than that of the machine.
    settings: Any = config
    features = settings.CPU_FEATURES
    if settings.CPU_NAME is not None or features is not None:
        return 8 if "+avx512f" in (features or "") else 4
    return 8 if llvmlite.binding.get_host_cpu_features().get("avx512f") else 4


def _loop(builder: ir.IRBuilder, body: list[ast.stmt], data: dict, n_lanes: int) -> None:
    """Emit the loop over groups of lanes as wide as the processor's vectors."""
    width = _width()
    before, loop = builder.block, builder.append_basic_block("lanes")
    after = builder.append_basic_block("lanes_end")
    used = {0} | {row for node in ast.walk(ast.Module(body, [])) for row in _rows(node)}
    offsets = {i: builder.load(builder.gep(data["o"], [_LONG(i)])) for i in sorted(used)}
    builder.branch(loop)
    builder.position_at_end(loop)
    lane = builder.phi(_LONG)
    lane.add_incoming(_LONG(0), before)
    writer = _Writer(builder, width, data, lane, offsets)
    for statement in body:
        writer.assign(statement)
    following = builder.add(lane, _LONG(width))
    lane.add_incoming(following, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, _LONG(n_lanes)), loop, after)
    builder.position_at_end(after)


def _joined(target: ast.expr, operator: ast.operator, value: ast.expr) -> ast.expr:
    """Write x += a·b + c·d as x = (x + a·b) + c·d, so that every product is fused with a sum."""
    if (
        isinstance(operator, ast.Add)
        and isinstance(value, ast.BinOp)
        and isinstance(value.op, ast.Add | ast.Sub)
    ):
        return ast.BinOp(_joined(target, operator, value.left), value.op, value.right)
    return ast.BinOp(target, operator, value)


def _rows(node: ast.AST) -> list[int]:
    """Give the row of the table that a node refers to."""
    match node:
        case ast.Subscript(slice=ast.Tuple(elts=[ast.Constant(value=int(row)), _])):
            return [row]
    return []


class _Writer:
    """Emits the statements for one group of lanes."""

    def __init__(
        self, builder: ir.IRBuilder, width: int, data: dict, lane: ir.Value, offsets: dict
    ) -> None:
        self.builder = builder
        self.width = width
        self.data = data
        self.lane = lane
        self.offsets = offsets
        self.vector = ir.VectorType(_DOUBLE, width)
        self.bits = ir.VectorType(_LONG, width)
        self.names: dict[str, ir.Value] = {}

    def assign(self, statement: ast.stmt) -> None:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                self.names[name] = self.value(value)
            case ast.Assign(targets=[ast.Subscript() as place], value=value):
                self._store(place, self.value(value))
            case ast.AugAssign(target=target, op=operator, value=value):
                self.assign(ast.Assign([target], _joined(target, operator, value)))
            case _:
                raise ValueError(f"not an assignment: {ast.unparse(statement)}")

    def value(self, node: ast.expr) -> ir.Value:
        build = self.builder
        match node:
            case ast.Name(id=name):
                return self.names[name]
            case ast.Constant(value=float(number)):
                return self._constant(number)
            case ast.BinOp(
                left=ast.BinOp(op=ast.Mult()) as product,
                op=ast.Add() | ast.Sub() as operator,
                right=right,
            ):
                return self._fused(
                    product, self.value(right), minus_addend=isinstance(operator, ast.Sub)
                )
            case ast.BinOp(
                left=left,
                op=ast.Add() | ast.Sub() as operator,
                right=ast.BinOp(op=ast.Mult()) as product,
            ):
                return self._fused(
                    product, self.value(left), minus_product=isinstance(operator, ast.Sub)
                )
            case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _INSTRUCTIONS:
                instruction = getattr(build, _INSTRUCTIONS[type(operator)])
                return instruction(self.value(left), self.value(right))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return build.fneg(self.value(operand))
            case ast.Compare(left=left, ops=[comparison], comparators=[right]):
                sign = _COMPARISONS[type(comparison)]
                return build.fcmp_ordered(sign, self.value(left), self.value(right))
            case ast.IfExp(test=test, body=yes, orelse=no):
                return build.select(self.value(test), self.value(yes), self.value(no))
            case ast.Call(func=ast.Name(id="exp"), args=[argument]):
                return self._exp(self.value(argument))
            case ast.Call(func=ast.Name(id="sqrt"), args=[argument]):
                return self._intrinsic("sqrt", self.value(argument))
            case ast.Call(func=ast.Name(id="log"), args=[argument]):
                # Finite, because x**a·log(x), the derivative of a power, must be 0 at x = 0.
                x, least = self.value(argument), self._constant(1e-300)
                return self._intrinsic(
                    "log", build.select(build.fcmp_ordered(">", x, least), x, least)
                )
            case ast.Subscript(value=ast.Name(id="s"), slice=ast.Constant(value=i)):
                number = build.load(build.gep(self.data["s"], [_LONG(i)]))
                return _repeated(build, number, self.width)
            case ast.Subscript():
                return build.load(self._pointer(node), align=8)
            case _:
                raise ValueError(f"not lane arithmetic: {ast.unparse(node)}")

    def _constant(self, number: float) -> ir.Value:
        return ir.Constant(self.vector, [float(number)] * self.width)

    def _fused(
        self,
        product: ast.BinOp,
        addend: ir.Value,
        *,
        minus_product: bool = False,
        minus_addend: bool = False,
    ) -> ir.Value:
        """
        Round a product and a sum once.

        Fused here and not by LLVM, which decides by the processor, so that the bits are the same
        on all of them.
        """
        left = self.value(product.left)
        right = self.value(product.right)
        if minus_product:
            left = self.builder.fneg(left)
        if minus_addend:
            addend = self.builder.fneg(addend)
        return self._intrinsic("fma", left, right, addend)

    def _pointer(self, node: ast.Subscript) -> ir.Value:
        row: int | None
        match node:
            case ast.Subscript(
                value=ast.Name(id=("w" | "y" | "v") as array),
                slice=ast.BinOp(left=ast.Constant(value=int(offset)), op=ast.Add()),
            ):
                row = None if array == "w" else 0
            case ast.Subscript(
                value=ast.Name(id="t" as array),
                slice=ast.Tuple(
                    elts=[
                        ast.Constant(value=int(row)),
                        ast.BinOp(left=ast.Constant(value=int(offset)), op=ast.Add()),
                    ]
                ),
            ):
                pass
            case _:
                raise ValueError(f"no such place: {ast.unparse(node)}")
        index = self.builder.add(self.lane, _LONG(offset))
        if row is not None:
            index = self.builder.add(index, self.offsets[row])
        return self.builder.bitcast(
            self.builder.gep(self.data[array], [index]), self.vector.as_pointer()
        )

    def _store(self, place: ast.Subscript, value: ir.Value) -> None:
        self.builder.store(value, self._pointer(place), align=8)

    def _intrinsic(self, name: str, *arguments: ir.Value) -> ir.Value:
        signature = ir.FunctionType(self.vector, [self.vector] * len(arguments))
        function = get_or_insert_function(
            self.builder.module, signature, f"llvm.{name}.v{self.width}f64"
        )
        return self.builder.call(function, arguments)

    def _exp(self, x: ir.Value) -> ir.Value:
        build, constant = self.builder, self._constant
        for sign, limit in (("<", 700.0), (">", -700.0)):
            x = build.select(build.fcmp_ordered(sign, x, constant(limit)), x, constant(limit))
        n = self._intrinsic("floor", self._intrinsic("fma", x, constant(_LOG2_E), constant(0.5)))
        r = x
        for term in _LN2:
            r = self._intrinsic("fma", n, constant(-term), r)
        p = constant(_TAYLOR[-1])
        for coefficient in reversed(_TAYLOR[:-1]):
            p = self._intrinsic("fma", p, r, constant(coefficient))
        bits = build.bitcast(build.fadd(n, constant(_SHIFT)), self.bits)
        bits = build.shl(bits, ir.Constant(self.bits, [52] * self.width))
        bits = build.add(bits, ir.Constant(self.bits, [_ONE] * self.width))
        return build.fmul(p, build.bitcast(bits, self.vector))
