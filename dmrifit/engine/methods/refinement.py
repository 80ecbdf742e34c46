"""Fits that go on from nonlinear least squares: other likelihoods, and a prior."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dmrifit.engine.design.precision import central_differences
from dmrifit.engine.kernels.formula import ARRAY_FUNCTIONS, read_formula
from dmrifit.engine.methods.rician import Likelihood
from dmrifit.engine.models import SignalModel
from dmrifit.engine.protocol import Protocol
from dmrifit.engine.results import FitResult, FitStatus

_MAX_ITER = 200
_TOLERANCE = 1e-10  # of the objective, for the step that is still promised
_SMALLEST_DAMPING, _LARGEST_DAMPING = 1e-12, 1e10
_FARTHEST = 15.0  # on the line: within 3e-7 of the width of a box from its end

#: Coordinates of a search: the parameters themselves in their box, or the box drawn out to a line.
BOX, LINE = "box", "line"


@dataclass(frozen=True)
class Coordinates:
    """
    Coordinates of the parameters of voxels, inside the bounds.

    With the kind `LINE` a parameter with two finite bounds is ln((p − low)/(high − p)), one with a
    finite lower bound ln(p − low); an amplitude, of which the prior says nothing, likewise.

    In the box, a kurtosis with a "monotonic" bound is its share of the largest one that keeps the
    signal falling, times its upper bound: that limit moves with the diffusivity, this bound stays.

    Shapes: `low`, `high` (n_parameters,).
    """

    kind: str
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    cumulant: tuple[int, int] | None = None
    turn_up: float = np.inf

    @property
    def ends(self) -> tuple[NDArray, NDArray]:
        """Lower and upper bounds of the coordinates."""
        if self.kind == BOX:
            return self.low, self.high
        return np.full_like(self.low, -_FARTHEST), np.full_like(self.high, _FARTHEST)

    def into(self, parameters: NDArray) -> NDArray[np.float64]:
        """Turn parameters into coordinates."""
        if self.kind == BOX:
            return self._scaled(parameters, 1 / self._limits(parameters))
        two, half = self._is_bounded()
        with np.errstate(all="ignore"):
            both = np.log((parameters - self.low) / (self.high - parameters))
            line = np.where(two, both, np.where(half, np.log(parameters - self.low), parameters))
        return np.clip(np.nan_to_num(line, nan=0.0), -_FARTHEST, _FARTHEST)

    def chain(self, jacobian: NDArray, values: NDArray) -> NDArray[np.float64]:
        """
        Turn derivatives by parameters into those by coordinates.

        Shapes: `jacobian` (n_voxels, n_rows, n_parameters), `values` (n_voxels, n_parameters).
        """
        if self.kind != BOX:
            two, half = self._is_bounded()
            share = 1 / (1 + np.exp(-values))
            with np.errstate(all="ignore"):
                inside = (self.high - self.low) * share * (1 - share)
                slopes = np.where(two, inside, np.where(half, np.exp(values), 1.0))
            return jacobian * slopes[:, None, :]
        if self.cumulant is None:
            return jacobian
        k, d = self.cumulant
        limits = self._limits(values)
        # K = value·limit, and the limit goes as 1/D.
        with np.errstate(divide="ignore", invalid="ignore"):
            bend = np.where(limits < 1, -values[:, k] * limits / values[:, d], 0.0)
        chained = jacobian.copy()
        chained[:, :, d] += jacobian[:, :, k] * bend[:, None]
        chained[:, :, k] *= limits[:, None]
        return chained

    def _limits(self, values: NDArray) -> NDArray[np.float64]:
        """Compute the share of K's upper bound that keeps the signal falling, (n_voxels,)."""
        if self.cumulant is None:
            return np.ones(len(values))
        k, d = self.cumulant
        with np.errstate(divide="ignore"):
            return np.minimum(1.0, self.turn_up / (values[:, d] * self.high[k]))

    def _scaled(self, values: NDArray, factors: NDArray) -> NDArray[np.float64]:
        """Multiply the kurtosis, in a copy."""
        if self.cumulant is None:
            return values
        scaled = values.copy()
        scaled[:, self.cumulant[0]] *= factors
        return scaled

    def out_of(self, values: NDArray) -> NDArray[np.float64]:
        """Turn coordinates into parameters."""
        if self.kind == BOX:
            return self._scaled(values, self._limits(values))
        two, half = self._is_bounded()
        share = 1 / (1 + np.exp(-values))
        with np.errstate(all="ignore"):
            inside = self.low + (self.high - self.low) * share
            return np.where(two, inside, np.where(half, self.low + np.exp(values), values))

    def _is_bounded(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        has_low, has_high = np.isfinite(self.low), np.isfinite(self.high)
        return has_low & has_high, has_low & ~has_high


@lru_cache(maxsize=32)
def _formula(model: SignalModel) -> Callable:
    """Compile the signal and its derivatives, common parts computed once, for arrays."""
    import sympy

    symbols = {name: sympy.Symbol(name, real=True) for name in (*model.names, "b", "te")}
    expression = read_formula(model.expression, symbols)
    formulas = [expression, *(sympy.diff(expression, symbols[name]) for name in model.names)]
    return sympy.lambdify(list(symbols.values()), formulas, [ARRAY_FUNCTIONS, "numpy"], cse=True)


def signal_and_slopes(
    model: SignalModel, parameters: NDArray, protocol: Protocol
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """
    Compute the signal and its derivatives by the parameters.

    Shapes: `parameters` (n_voxels, n_parameters); returns (n_voxels, n_measurements) and
    (n_voxels, n_measurements, n_parameters).
    """
    if model.source:
        sizes = np.maximum(np.abs(parameters), 1e-3)
        slopes = central_differences(model, parameters, protocol, sizes)
        return model.signal(parameters, protocol), slopes
    shape = (len(parameters), len(protocol))
    slopes = np.empty((*shape, len(model.names)))
    te = np.zeros(len(protocol)) if protocol.te is None else protocol.te
    columns = [column[:, None] for column in parameters.T]
    with np.errstate(all="ignore"):
        values = _formula(model)(*columns, protocol.b_ms_per_um2[None, :], te[None, :])
    for j, value in enumerate(values[1:]):
        slopes[:, :, j] = value
    return np.array(np.broadcast_to(values[0], shape)), slopes


@dataclass(frozen=True)
class Refinement:
    """What the best parameters of all voxels are searched under: likelihood, weights, a prior."""

    model: SignalModel
    protocol: Protocol
    likelihood: Likelihood
    is_free: NDArray[np.bool_]  # which parameters are fitted
    weights: NDArray | None = None  # of the measurements
    # Mean (n_parameters,) and precision (n_parameters, n_parameters) on the line; without a prior
    # the search is that in the box.
    prior: tuple[NDArray, NDArray] | None = None
    knows_noise: bool = True  # whether `sigma` is the noise, or residuals tell it
    n_averaged: float = 1.0  # mean number of signals of noise `sigma` in one measurement


class Search:
    """
    The search for the best parameters of some voxels, and where it ended, in coordinates.

    It goes by damped Newton steps with a positive curvature from one or several points, such as
    the ends of another fit; the best end counts.

    Shapes: `signals` (n_voxels, n_measurements), `sigma` (n_voxels,), each of `points` (n_voxels,
    n_parameters) in the units of the parameters.
    """

    def __init__(
        self,
        problem: Refinement,
        signals: NDArray,
        sigma: NDArray,
        start: FitResult,
        points: list[NDArray],
    ) -> None:
        self.problem = problem
        is_usable = np.isfinite(signals)
        # Signals are taken in multiples of the largest.
        self.top = np.where(is_usable, signals, 0).max(axis=1)
        self.measured = np.where(is_usable, signals, 0.0) / self.top[:, None]
        self.sigma = (sigma / self.top)[:, None]
        self.weight = is_usable.astype(float)
        if problem.weights is not None:
            self.weight = self.weight * problem.weights
        model = problem.model
        self.unit = np.where([p.is_amplitude for p in model.parameters], self.top[:, None], 1.0)
        cumulant = None
        if start.turn_up < np.inf and model.cumulant is not None:
            kurtosis, diffusivity = map(model.names.index, model.cumulant)
            cumulant = kurtosis, diffusivity
        kind = BOX if problem.prior is None else LINE
        low, high = np.array(start.bounds).T
        self.coordinates = Coordinates(kind, low, high, cumulant, start.turn_up)
        self.values, self.objectives, self.converged, self.n_iter = self._descend(points[0])
        for point in points[1:]:
            values, objectives, converged, n_iter = self._descend(point)
            better = objectives < self.objectives
            self.values[better] = values[better]
            self.objectives[better] = objectives[better]
            self.converged[better] = converged[better]
            self.n_iter += n_iter

    def _descend(self, point: NDArray) -> tuple[NDArray, NDArray, NDArray, NDArray]:
        """Minimize from a point: coordinates, objectives, convergence and iterations of voxels."""
        low, high = self.coordinates.ends
        free = self.problem.is_free
        values = self.coordinates.into(point / self.unit)
        if self.coordinates.kind == BOX:
            values = np.where(free, np.clip(values, low, high), values)
        n = len(values)
        objectives = self._objective(values, np.arange(n))
        damping = np.full(n, 1e-2)
        converged = np.zeros(n, bool)
        n_iter = np.zeros(n, np.int32)
        rows = np.flatnonzero(np.isfinite(objectives))
        for _ in range(_MAX_ITER):
            if rows.size == 0:
                break
            n_iter[rows] += 1
            slope, curvature = self._derivatives(values[rows], rows)
            step, promised = _bounded_step(
                values[rows], slope, curvature, damping[rows], low, high, free
            )
            scale = np.abs(objectives[rows])
            if self.problem.knows_noise:
                # Residuals of known noise sum up to about one for each measurement.
                scale = np.maximum(scale, self.weight[rows].sum(axis=1))
            done = (promised < _TOLERANCE * scale) & (damping[rows] < 1)
            trial = values[rows] + step
            trial_objectives = self._objective(trial, rows)
            accepted = trial_objectives <= objectives[rows]
            done |= damping[rows] >= _LARGEST_DAMPING
            moved = rows[accepted]
            values[moved] = trial[accepted]
            objectives[moved] = trial_objectives[accepted]
            factor = np.where(accepted, 0.2, 8.0)
            damping[rows] = np.clip(damping[rows] * factor, _SMALLEST_DAMPING, _LARGEST_DAMPING)
            converged[rows[done]] = True
            rows = rows[~done]
        return values, objectives, converged, n_iter

    def _objective(self, values: NDArray, rows: NDArray) -> NDArray:
        """Compute minus the logarithm of the posterior, but for constants."""
        problem = self.problem
        signal = problem.model.signal(self.coordinates.out_of(values), problem.protocol)
        losses = problem.likelihood.losses(signal, self.measured[rows], self.sigma[rows])
        weight = self.weight[rows] * problem.n_averaged
        total = np.where(weight > 0, weight * losses, 0.0).sum(axis=1)
        if problem.prior is not None:
            mean, precision = problem.prior
            away = values - mean
            pull = np.einsum("ni,ij->nj", away, precision)
            total = total + 0.5 * (pull * away).sum(axis=1)
        return total

    def _derivatives(
        self, values: NDArray, rows: NDArray, *, is_expected: bool = False
    ) -> tuple[NDArray, NDArray]:
        """Compute slope and positive curvature of the objective."""
        problem = self.problem
        parameters = self.coordinates.out_of(values)
        signal, jacobian = signal_and_slopes(problem.model, parameters, problem.protocol)
        jacobian = self.coordinates.chain(jacobian, values)
        pull, bend = problem.likelihood.slopes(signal, self.measured[rows], self.sigma[rows])
        if is_expected:
            bend = problem.likelihood.information(signal, self.sigma[rows])
        weight = self.weight[rows] * problem.n_averaged
        pull, bend = weight * pull, weight * bend
        slope = np.einsum("nm,nmi->ni", pull, jacobian)
        curvature = np.einsum("nm,nmi,nmj->nij", bend, jacobian, jacobian)
        if problem.prior is not None:
            mean, precision = problem.prior
            # Libraries of linear algebra round a row differently among other rows.
            slope += np.einsum("ni,ij->nj", values - mean, precision)
            curvature += precision
        return slope, curvature

    @property
    def parameters(self) -> NDArray:
        """The parameters at the ends, in their units."""
        return self.coordinates.out_of(self.values) * self.unit

    def covariance(self) -> NDArray:
        """Invert the expected curvature; NaN rows for coordinates that are fixed or at a bound."""
        every_row = np.arange(len(self.values))
        _, curvature = self._derivatives(self.values, every_row, is_expected=True)
        at_low, at_high = self._at_ends()
        fixed = at_low | at_high | ~self.problem.is_free
        covariance = inverse_of_free(curvature, fixed)
        covariance[fixed] = np.nan
        if not self.problem.knows_noise:
            # The variance of the residuals, in units of sigma.
            dof = ((self.weight > 0).sum(axis=1) - (~fixed).sum(axis=1)).astype(float)
            squares = self._cost() / (self.top * self.sigma[:, 0]) ** 2
            variance = np.where(dof > 0, squares / np.where(dof > 0, dof, 1), np.nan)
            covariance *= variance[:, None, None]
        return covariance

    def write(self, result: FitResult, rows: NDArray) -> None:
        """Write the ends into the rows of a result."""
        at_low, at_high = self._at_ends()
        result.parameters[rows] = self.parameters
        result.standard_errors[rows] = self._standard_errors() * self.unit
        result.cost[rows] = self._cost()
        result.n_iter[rows] += self.n_iter
        result.at_low[rows] = at_low
        result.at_high[rows] = at_high
        status = np.where((at_low | at_high).any(axis=1), FitStatus.AT_BOUND, FitStatus.CONVERGED)
        result.status[rows] = np.where(self.converged, status, FitStatus.NOT_CONVERGED)

    def _at_ends(self) -> tuple[NDArray, NDArray]:
        """Tell which free coordinates lie at their lower and upper end."""
        low, high = self.coordinates.ends
        free = self.problem.is_free
        return free & (self.values <= low), free & (self.values >= high)

    def _cost(self) -> NDArray:
        """Sum up squared residuals about the expected magnitude, in the signals' units squared."""
        problem = self.problem
        signal = problem.model.signal(self.coordinates.out_of(self.values), problem.protocol)
        expected = problem.likelihood.expected(signal, self.sigma)
        squares = (self.measured - expected) ** 2
        return np.where(self.weight > 0, self.weight * squares, 0.0).sum(axis=1) * self.top**2

    def _standard_errors(self) -> NDArray:
        """Carry the covariance of coordinates over to standard errors of parameters."""
        n, n_parameters = self.values.shape
        covariance = self.covariance()
        chain = self.coordinates.chain(np.tile(np.eye(n_parameters), (n, 1, 1)), self.values)
        at_bound = np.isnan(np.einsum("nii->ni", covariance))
        # A bound that moves carries no error of its own into the others.
        known = np.where(np.isnan(covariance), 0.0, covariance)
        variance = np.einsum("nij,njk,nik->ni", chain, known, chain)
        with np.errstate(invalid="ignore"):
            return np.where(at_bound, np.nan, np.sqrt(variance))


def inverse_of_free(curvature: NDArray, fixed: NDArray) -> NDArray[np.float64]:
    """
    Invert matrices (n_voxels, n_parameters, n_parameters) of the parameters that are not fixed.

    Shapes: `fixed` (n_voxels, n_parameters), whose rows and columns do not enter the others.
    """
    return _inverse(_without(curvature, fixed))


def _without(curvature: NDArray, fixed: NDArray) -> NDArray:
    """Replace rows and columns of coordinates that do not move by those of the unit matrix."""
    moves = ~fixed
    reduced = curvature * moves[:, :, None] * moves[:, None, :]
    diagonal = np.einsum("nii->ni", reduced)
    diagonal += fixed
    return reduced


def _bounded_step(
    values: NDArray,
    slope: NDArray,
    curvature: NDArray,
    damping: NDArray,
    low: NDArray,
    high: NDArray,
    free: NDArray,
) -> tuple[NDArray, NDArray]:
    """Solve for a damped step inside the bounds, and for what the step without them promises."""
    outward = ((values <= low) & (slope > 0)) | ((values >= high) & (slope < 0)) | ~free
    diagonal = np.einsum("nii->ni", curvature)
    ridge = damping[:, None] * np.maximum(diagonal, 1e-12 * diagonal.max(axis=1, keepdims=True))
    damped = _without(curvature + ridge[:, :, None] * np.eye(values.shape[1]), outward)
    slope = np.where(outward, 0.0, slope)
    step = -np.linalg.solve(damped, slope[..., None])[..., 0]
    promised = -0.5 * (slope * step).sum(axis=1)
    return np.where(free, np.clip(values + step, low, high) - values, 0.0), promised


def _inverse(matrix: NDArray) -> NDArray:
    scale = np.sqrt(np.einsum("nii->ni", matrix))
    scale = np.where(scale > 0, scale, 1.0)
    unit = matrix / scale[:, :, None] / scale[:, None, :]
    # What the signal does not depend on gets a huge variance, not an error.
    diagonal = np.einsum("nii->ni", unit)
    diagonal += 1e-14
    unit = np.where(np.isfinite(unit), unit, np.eye(matrix.shape[1]))
    return np.linalg.inv(unit) / scale[:, :, None] / scale[:, None, :]
