"""Log-linear fits: models whose logarithm is linear in some function of their parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmrifit._utils.counts import counted
from dmrifit._utils.threads import run_in_chunks
from dmrifit.engine.intervals import FitInputs
from dmrifit.engine.kernels.formula import ARRAY_FUNCTIONS, read_formula
from dmrifit.engine.models import MODELS, SignalModel
from dmrifit.engine.protocol import Protocol
from dmrifit.engine.results import FitResult, mark_not_fitted, unfilled_result

#: Repeated weightings after the first, as in MRtrix's dwi2tensor.
N_REWEIGHTINGS = 2

_CHUNK = 4096  # voxels whose arrays stay in the second cache
_SMALLEST, _LARGEST = 1e-300, 1e300  # of values that have a logarithm
_SINGULAR = 1e-13  # of a diagonal entry that is 1 before elimination
_DEPENDENT = 1e-12  # largest singular value that counts as 0, of a design of unit columns


@dataclass(frozen=True)
class LogLinearForm:
    """
    ln S = Σ coefficient·basis(b, te), and the parameters as functions of the coefficients.

    `evaluate` gives, for arrays of coefficients, the parameters, then those of their derivatives
    that are not zero, in the order of `slopes`: pairs of a parameter and a coefficient.
    """

    bases: tuple[Callable, ...]
    evaluate: Callable
    slopes: tuple[tuple[int, int], ...]

    def design(self, protocol: Protocol) -> NDArray[np.float64]:
        """Compute the columns of the straight fit, (n_measurements, n_parameters)."""
        te = np.zeros(len(protocol)) if protocol.te is None else protocol.te
        b = protocol.b_ms_per_um2
        columns = [np.broadcast_to(basis(b, te), b.shape) for basis in self.bases]
        return np.ascontiguousarray(np.stack(columns, axis=1), dtype=float)


@lru_cache(maxsize=64)
def log_linear_form(model: SignalModel) -> LogLinearForm | None:
    """Find the form in which the logarithm of a model's signal is linear, if there is one."""
    if model.source:
        return None
    import sympy

    symbols = {name: sympy.Symbol(name, positive=True) for name in (*model.names, "b", "te")}
    b, te = symbols["b"], symbols["te"]
    expression = read_formula(model.expression, symbols)
    logarithm = sympy.expand(sympy.expand_log(sympy.log(expression), force=True))
    by_basis: dict[Any, Any] = {}
    for term in sympy.Add.make_args(logarithm):
        coefficient, basis = term.as_independent(b, te, as_Add=False)
        if basis.free_symbols - {b, te}:
            return None
        by_basis[basis] = by_basis.get(basis, 0) + coefficient
    # Without a constant the fit would depend on the unit of the signals.
    if sympy.Integer(1) not in by_basis or len(by_basis) != len(model.names):
        return None
    bases = sorted(by_basis, key=lambda basis: (basis != 1, str(basis)))
    coefficients = sympy.symbols(f"c:{len(bases)}", real=True)
    # Parameters may turn out negative: noise makes a signal rise with b.
    plain = {symbols[name]: sympy.Symbol(name, real=True) for name in model.names}
    pairs = zip(bases, coefficients, strict=True)
    equations = [by_basis[basis].subs(plain) - symbol for basis, symbol in pairs]
    try:
        solutions = sympy.solve(equations, list(plain.values()), dict=True)
    # sympy raises this for equations that it has no way to solve.
    except NotImplementedError:
        return None
    if len(solutions) != 1 or len(solutions[0]) != len(plain):
        return None
    values = [sympy.simplify(solutions[0][symbol]) for symbol in plain.values()]
    derivatives = {
        (i, j): sympy.diff(value, symbol)
        for i, value in enumerate(values)
        for j, symbol in enumerate(coefficients)
    }
    slopes = tuple(pair for pair, derivative in derivatives.items() if derivative != 0)
    formulas = [*values, *(derivatives[pair] for pair in slopes)]
    evaluate = sympy.lambdify(coefficients, formulas, "numpy", cse=True)
    libraries = [ARRAY_FUNCTIONS, "numpy"]
    functions = tuple(sympy.lambdify((b, te), basis, libraries) for basis in bases)
    return LogLinearForm(functions, evaluate, slopes)


def fit_log_linear(
    signals: NDArray,
    protocol: Protocol,
    model: SignalModel,
    method: str,
    weights: NDArray | None,
    n_threads: int | None,
) -> FitResult:
    """
    Fit a model by least squares of logarithms, equally weighted ("ols") or not ("wls").

    Values ≤ 0 and those that are not finite have no logarithm and are left out of their voxel's
    fit. Nothing is bounded, as in the fits of scanners and MRtrix: a kurtosis beyond 3/(b_max·D)
    stays what the line says.
    """
    form = log_linear_form(model)
    if form is None:
        suitable = [name for name, other in MODELS.items() if log_linear_form(other)]
        raise ValueError(
            f"method {method!r} fits models that are linear in the logarithm of the signal "
            f"({', '.join(suitable)}), and {model.name} is not; use method 'nlls'"
        )
    design = form.design(protocol)
    scaled = design / np.linalg.norm(design, axis=0).clip(1e-300)
    if np.linalg.matrix_rank(scaled, _DEPENDENT) < design.shape[1]:
        raise ValueError(
            f"{counted(len(protocol), 'measurement')} with b = {np.unique(protocol.b).tolist()} "
            f"s/mm² cannot determine the {design.shape[1]} parameters of {model.name}; measure "
            "more b-values"
        )
    bounds = ((-np.inf, np.inf),) * len(model.names)
    result = unfilled_result(model, len(signals), bounds=bounds, method=method)
    result.n_iter[:] = 1 if method == "ols" else 1 + N_REWEIGHTINGS
    factors = np.ones(len(design)) if weights is None else weights
    fit = _LogLinearFit(form, design, method == "wls", factors)

    def fit_chunk(chunk: slice) -> None:
        fit.fill(signals[chunk], result, chunk)

    run_in_chunks(fit_chunk, len(signals), _CHUNK, n_threads)
    inputs = FitInputs(signals, protocol, None, weights=weights, n_threads=n_threads)
    return replace(result, inputs=inputs)


@dataclass(frozen=True)
class _LogLinearFit:
    """The straight fits of many voxels, with what they share."""

    form: LogLinearForm
    design: NDArray
    by_signal: bool
    weights: NDArray

    def fill(self, signals: NDArray, result: FitResult, chunk: slice) -> None:
        """Fit some voxels, into their rows of the result."""
        n_parameters = self.design.shape[1]
        # One row for each measurement: sums over measurements have one order for all voxels.
        values = np.array(signals.T, dtype=np.float64, order="C")
        usable = (values > _SMALLEST) & (values < _LARGEST)
        values = np.where(usable, values, 0.0)
        top = values.max(axis=0)
        n_used = usable.sum(axis=0)
        # A voxel of equal values is background.
        varies = np.where(usable, values, np.inf).min(axis=0) < top
        with np.errstate(all="ignore"):
            coefficients, covariances, cost = self._lines(values / top, usable, n_used)
            cost *= top**2
            coefficients[0] += np.log(top)
            numbers = self.form.evaluate(*coefficients)
            slopes = np.zeros_like(covariances)
            for pair, slope in zip(self.form.slopes, numbers[n_parameters:], strict=True):
                slopes[pair] = slope
            # Errors of coefficients carried over to parameters, to first order.
            spread = np.einsum("ijv,jkv->ikv", slopes, covariances)
            result.standard_errors[chunk] = np.sqrt((spread * slopes).sum(axis=1)).T
        result.parameters[chunk] = np.transpose(numbers[:n_parameters])
        result.cost[chunk] = cost
        fitted = varies & (n_used >= n_parameters) & np.isfinite(cost)
        fitted &= np.isfinite(result.parameters[chunk]).all(axis=1)
        mark_not_fitted(result, chunk.start + np.flatnonzero(~fitted))

    def _lines(
        self, values: NDArray, usable: NDArray[np.bool_], n_used: NDArray
    ) -> tuple[NDArray, NDArray, NDArray]:
        """
        Fit lines to the logarithms of usable values, which are 1 at most.

        Shapes: `values`, `usable` (n_measurements, n_voxels); returns coefficients (p, n_voxels),
        covariances (p, p, n_voxels) and cost (n_voxels,).
        """
        logs = np.where(usable, np.log(np.where(usable, values, 1.0)), 0.0)
        constant = np.where(usable, self.weights[:, None], 0.0)
        weight = constant * values**2 if self.by_signal else usable.astype(float)
        coefficients, covariances = _weighted_lines(self.design, weight, logs)
        for _ in range(N_REWEIGHTINGS if self.by_signal else 0):
            # Far from zero, so that a poor first fit cannot switch all measurements off.
            power = np.clip(2.0 * _product(self.design, coefficients), -60.0, 60.0)
            weight = constant * np.exp(power)
            coefficients, covariances = _weighted_lines(self.design, weight, logs)
        residuals = logs - _product(self.design, coefficients)
        ratio, p = np.exp(-residuals), self.design.shape[1]
        cost = (constant * (values * (1.0 - ratio)) ** 2).sum(axis=0)
        squares = (weight * residuals**2).sum(axis=0) if self.by_signal else cost
        n_spare = np.where(n_used > p, n_used - p, np.nan)
        if not self.by_signal:
            # The noise of ln S is that of S over S, not even as the weights are; that of small
            # signals moves the line, and so adds to the residuals of large ones.
            precision = constant * (values * ratio) ** 2
            noise = _moments(self.design, np.where(usable, 1.0 / precision, 0.0))
            spread = np.einsum("ijv,jkv->ikv", covariances, noise)
            covariances = np.einsum("ijv,jkv->ikv", spread, covariances)
            n_spare += (_moments(self.design, precision) * covariances).sum(axis=(0, 1)) - p
        return coefficients, covariances * (squares / n_spare), cost


def _product(design: NDArray, coefficients: NDArray) -> NDArray[np.float64]:
    """
    Multiply by the columns of a design one after the other, which rounds all voxels alike.

    Shapes: (n_measurements, p), (p, n_voxels); returns (n_measurements, n_voxels).
    """
    total = design[:, :1] * coefficients[0]
    for j in range(1, len(coefficients)):
        total += design[:, j : j + 1] * coefficients[j]
    return total


def _moments(design: NDArray, weight: NDArray) -> NDArray[np.float64]:
    """Sum up weighted products of columns: (n_measurements, n_voxels) to (p, p, n_voxels)."""
    products = design[:, :, None] * design[:, None, :]
    return _product(products.reshape(len(design), -1).T, weight).reshape(*products.shape[1:], -1)


def _weighted_lines(design: NDArray, weight: NDArray, logs: NDArray) -> tuple[NDArray, NDArray]:
    """
    Solve the normal equations of all voxels; NaN where they are singular.

    Shapes: `design` (n_measurements, p), `weight`, `logs` (n_measurements, n_voxels); returns
    coefficients (p, n_voxels) and the inverse matrices (p, p, n_voxels).
    """
    matrix = _moments(design, weight)
    scale = np.sqrt(np.einsum("jjv->jv", matrix))
    matrix /= scale[:, None] * scale
    solution = _product(design.T, weight * logs) / scale
    # Gauss-Jordan in place; the matrix is symmetric and positive, so no pivots are searched for.
    for j in range(len(matrix)):
        pivot = np.where(matrix[j, j] > _SINGULAR, matrix[j, j], np.nan)
        matrix[j, j] = 1.0
        matrix[j] /= pivot
        solution[j] /= pivot
        for row in range(len(matrix)):
            if row != j:
                factor = matrix[row, j].copy()
                matrix[row, j] = 0.0
                matrix[row] -= factor * matrix[j]
                solution[row] -= factor * solution[j]
    return solution / scale, matrix / (scale[:, None] * scale)
