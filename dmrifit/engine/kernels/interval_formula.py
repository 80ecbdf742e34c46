"""The module that computes the intervals of a model: its formula written into a template."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dmrifit.engine.kernels.branches import extended_to_edges, read_formula, without_absolute
from dmrifit.engine.kernels.formula import make_printer, replace_section
from dmrifit.engine.kernels.layout import form, is_share

if TYPE_CHECKING:
    from dmrifit.engine.models import SignalModel

__all__ = ["source"]

_KINDS = {"plain": 0, "share": 1, "inverse": 2, "amplitude": 3}
_SMALL_SHARE = 0.01  # of the box, the least size that the step of a difference belongs to


def source(model: SignalModel) -> str:
    """Write the module that computes the intervals of a model."""
    kinds, steps = [], []
    for parameter in model.parameters:
        width = parameter.high - parameter.low
        steps.append(_SMALL_SHARE * width if 0 < width < float("inf") else 1e-8)
        if parameter.is_amplitude:
            kinds.append(_KINDS["amplitude"])
        elif form(parameter) != "plain":
            kinds.append(_KINDS["inverse"])
        elif is_share(parameter):
            kinds.append(_KINDS["share"])
        else:
            kinds.append(_KINDS["plain"])
    text = Path(__file__).with_name("intervals_template.py").read_text(encoding="utf-8")
    constants = [
        f"N = {len(kinds)}",
        f"COORDINATES = {tuple(kinds)}",
        f"STEPS = {tuple(steps)}",
    ]
    text = replace_section(text, "CONSTANTS", constants)
    lines = _called(model) if model.source else _derived(model)
    return replace_section(text, "FUNCTION", lines)


def _derived(model: SignalModel) -> list[str]:
    """Write the signal and its derivatives with their common parts computed once."""
    import sympy

    symbols = {name: sympy.Symbol(name, real=True) for name in (*model.names, "b", "te")}
    ordered = [symbols[name] for name in model.names]
    expression = without_absolute(read_formula(model.expression, symbols))
    expression = extended_to_edges(expression, ordered, model)
    formulas = [expression, *(sympy.diff(expression, symbols[name]) for name in model.names)]
    rename = {
        symbols[name]: sympy.Symbol(f"x{j}", real=True) for j, name in enumerate(model.names)
    }
    formulas = [without_absolute(formula.subs(rename)) for formula in formulas]
    steps, results = sympy.cse(
        formulas, symbols=sympy.numbered_symbols("h"), optimizations="basic"
    )
    write = make_printer()
    lines = ['@njit(nogil=True, error_model="numpy")', "def differentiate(p, b, te, slopes):"]
    lines += [f"    x{j} = p[{j}]" for j in range(len(model.names))]
    lines += [f"    {symbol} = {write(step)}" for symbol, step in steps]
    lines += [f"    slopes[{j}] = {write(result)}" for j, result in enumerate(results[1:])]
    return [*lines, f"    return {write(results[0])}", ""]


def _called(model: SignalModel) -> list[str]:
    """Write central differences of a user's function."""
    arguments = ["b", *(["te"] if model.needs_te else [])]
    arguments += [f"p[{j}]" for j in range(len(model.names))]
    return [
        model.source,
        "",
        "",
        "compiled = njit(nogil=True, error_model='numpy')(user_function)",
        "",
        "",
        '@njit(nogil=True, error_model="numpy")',
        "def differentiate(p, b, te, slopes):",
        "    for j in range(N):",
        "        value = p[j]",
        "        step = STEP * max(abs(value), SMALLEST_STEPS[j])",
        "        p[j] = value + step",
        f"        above = compiled({', '.join(arguments)})",
        "        p[j] = value - step",
        f"        below = compiled({', '.join(arguments)})",
        "        p[j] = value",
        "        slopes[j] = (above - below) / (2.0 * step)",
        f"    return compiled({', '.join(arguments)})",
        "",
    ]
