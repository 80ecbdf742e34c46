"""Code generation: the formula of a signal model, written into the template of its kernel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmrifit.engine.kernels.branches import (
    extended_to_edges,
    numeric,
    read_formula,
    structure,
    without_absolute,
)
from dmrifit.engine.kernels.layout import form, is_share

if TYPE_CHECKING:
    from dmrifit.engine.formulas.model_formula import ModelFormula, Parameter

# The functions of conditions as lane arithmetic.
_OF_CONDITIONS = {"Choice": "choose({} > 0.5, {}, {})", "Less": "choose({} < {}, 1.0, 0.0)"}


def source(model: ModelFormula) -> str:
    """Write the module that fits a model and computes its intervals."""
    formula = Formula(model)
    constants = {
        "N": len(formula.forms),
        "FORMS": formula.forms,
        "KINDS": tuple(_kind(parameter) for parameter in model.parameters),
        "AMPLITUDE": formula.amplitude,
        "MIXTURE": formula.mixture,
        "FIRST": formula.first,
        "CALLED": bool(model.source),
        "N_BY_B": len(formula.by_b),
        "N_BY_TE": len(formula.by_te),
        "KURTOSIS": formula.kurtosis,
        "DIFFUSIVITY": formula.diffusivity,
    }
    text = Path(__file__).with_name("template.py").read_text(encoding="utf-8")
    text = _replace_section(
        text, "CONSTANTS", [f"{name} = {value!r}" for name, value in constants.items()]
    )
    if model.source:
        return _replace_section(text, "FUNCTION", _called_function(model))
    return _replace_section(text, "FORMULA", formula.code())


def _kind(parameter: Parameter) -> str:
    """Choose the coordinate of a parameter in its intervals."""
    if parameter.is_amplitude:
        return "amplitude"
    if form(parameter) != "plain":
        return "inverse"
    return "share" if is_share(parameter) else "plain"


def _called_function(model: ModelFormula) -> list[str]:
    """Write a user's function, and the one by which the kernel calls it with an array."""
    arguments = ["b", *(["te"] if model.needs_te else [])]
    arguments += [f"x[{i}]" for i in range(len(model.names))]
    jit = "njit(nogil=True, cache=True, error_model='numpy')"
    return [
        model.source,
        f"compiled = {jit}(user_function)",
        f"@{jit}",
        "def function(b, te, x):",
        f"    return compiled({', '.join(arguments)})",
    ]


def _replace_section(text: str, section: str, lines: list[str]) -> str:
    """Replace a section of the template, which comments enclose."""
    start = text.index(f"# {section}\n")
    end = text.index(f"# END OF {section}\n")
    return text[:start] + "\n".join(lines) + "\n" + text[end:]


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
        if model.source:
            amplitudes = [
                i for i, parameter in enumerate(model.parameters) if parameter.is_amplitude
            ]
            self.amplitude = amplitudes[0] if len(amplitudes) == 1 else -1
            return
        symbols = {name: sympy.Symbol(name, real=True) for name in (*names, "b", "te")}
        expression = without_absolute(read_formula(model.expression, symbols))
        if expression.has(sympy.zoo, sympy.nan, sympy.oo, sympy.I):
            raise ValueError(
                f"model {model.name}: {model.expression!r} divides by zero, or has the root or "
                "logarithm of a negative number; change that term"
            )
        ordered = [symbols[name] for name in names]
        evaluate = numeric([expression], ordered)
        self.mixture, self.amplitude, self.first = structure(
            lambda *values: evaluate(*values)[0], model
        )
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
        self._formulas = formulas

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
        product = sympy.exp(parts["rest"])
        for name, table in (("b", self.by_b), ("te", self.by_te)):
            if parts[name] != 0:
                if parts[name] not in table:
                    table.append(parts[name])
                entry = sympy.Symbol(f"e{name}{table.index(parts[name])}", real=True)
                self._entries.add(entry)
                product *= entry
        return product

    def code(self) -> list[str]:
        """Write functions of the signal with its derivatives, and of the tabulated exponents."""
        x = [f"x[{i}]" for i in range(len(self.forms))]
        entries = [f"eb[{e}]" for e in range(len(self.by_b))]
        entries += [f"ete[{e}]" for e in range(len(self.by_te))]
        return [
            *_function("evaluate_signal(x, b, te, eb, ete)", [*x, *entries], self._formulas),
            *_function("exponents_of_b(x, b)", x, self.by_b),
            *_function("exponents_of_te(x, te)", x, self.by_te),
        ]


def _function(signature: str, items: Sequence[str], formulas: list[Any]) -> list[str]:
    """Write a function that returns the values of formulas, common parts computed once."""
    import sympy

    numbers = sympy.numbered_symbols("h", real=True)
    steps, results = sympy.cse(
        formulas or [sympy.Integer(0)], symbols=numbers, optimizations="basic"
    )
    printed = make_printer()

    def write(value: Any) -> str:
        # A plus sign keeps a product from being rounded together with a sum.
        return f"+({printed(value)})"

    lines = [f"def {signature}:"]
    for item in items:
        lines.append(f"    {item.replace('[', '').replace(']', '')} = {item}")
    lines += [f"    {symbol} = {write(value)}" for symbol, value in steps]
    values = map(write, results[: len(formulas)])
    return [*lines, f"    return [{', '.join(values)}]"]


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
