"""Results of fits: parameters, their errors and the status of each voxel."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit._optional import import_optional
from dmrifit._utils.html_repr import html_summary
from dmrifit.engine.models import SignalModel
from dmrifit.engine.protocol import Protocol

if TYPE_CHECKING:
    import lmfit

__all__ = ["FitResult", "FitStatus"]


class FitStatus(IntEnum):
    """
    How the fit of a voxel ended.

    `CONVERGED` and `AT_BOUND` are solutions; in the second, a parameter lies on a bound.
    `NOT_CONVERGED` ran out of iterations. `NOT_FITTED` voxels have no usable signal, or the model
    has none within the bounds and fixed values that is finite, and everything about them is NaN.
    """

    CONVERGED = 0
    AT_BOUND = 1
    NOT_CONVERGED = 2
    NOT_FITTED = 3


@dataclass(frozen=True)
class FitResult:
    """
    The fits of many voxels; ``result["Dt"]`` is one parameter's column.

    Parameters
    ----------
    model : SignalModel
        The model that was fitted.
    parameters : ndarray of shape (n_voxels, n_parameters)
        In the order of `names` and the model's units; NaN where a voxel was not fitted.
    standard_errors : ndarray of shape (n_voxels, n_parameters)
        From the inverse of J'J (with a noise floor: of the curvature) and the residual variance;
        NaN for a parameter that is fixed or at a bound and where no degree of freedom is left,
        infinite for one that the signal does not depend on.
    cost : ndarray of shape (n_voxels,)
        Sum of squared residuals over the measurements used, in the signals' units squared.
    status : ndarray of shape (n_voxels,)
        Codes of `FitStatus`.
    n_iter : ndarray of shape (n_voxels,)
        Iterations, all starts together.
    at_low, at_high : ndarray of shape (n_voxels, n_parameters)
        Whether a parameter that was free to move ended on its lower or upper bound.
    starts_disagree : ndarray of shape (n_voxels,)
        Whether another start came within 1 % of the cost in another place, judged by the rise of
        the sum of squares between the two by more than 5 %: the data do not decide between them.
    ill_conditioned : ndarray of shape (n_voxels,)
        Whether the parameters inside their bounds cannot be told apart: the variance of one is
        inflated by the others more than 1e8 times, or the signal does not depend on it.
    bounds : tuple of (float, float)
        The box that was searched, in the order of `names`; of an amplitude, in multiples of the
        voxel's largest signal.
    fixed : tuple of str
        Names of the parameters that were not fitted.
    """

    model: SignalModel
    parameters: NDArray[np.float64]
    standard_errors: NDArray[np.float64]
    cost: NDArray[np.float64]
    status: NDArray[np.uint8]
    n_iter: NDArray[np.int32]
    at_low: NDArray[np.bool_]
    at_high: NDArray[np.bool_]
    starts_disagree: NDArray[np.bool_]
    ill_conditioned: NDArray[np.bool_]
    bounds: tuple[tuple[float, float], ...]
    fixed: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters, in the order of columns."""
        return self.model.names

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        if name not in self.names:
            raise KeyError(
                f"model {self.model.name} has no parameter {name!r}; it has "
                f"{', '.join(self.names)}"
            )
        return self.parameters[:, self.names.index(name)]

    def __len__(self) -> int:
        return len(self.cost)

    def _repr_html_(self) -> str:
        """Summarize the parameters over voxels for notebooks."""
        title = f"Fit of {self.model.name}: {len(self)} "
        title += "voxel" if len(self) == 1 else "voxels"
        header = (
            "parameter",
            "unit",
            "median",
            "quartiles",
            "median standard error",
            "at a bound",
        )
        rows = [self._summary_row(column) for column in range(len(self.names))]
        notes = []
        for code, count in zip(*np.unique(self.status, return_counts=True), strict=True):
            notes.append(f"{count} {FitStatus(code).name.lower().replace('_', ' ')}")
        return html_summary(title, header, rows, note=", ".join(notes))

    def _summary_row(self, column: int) -> tuple[object, ...]:
        """Summarize a parameter over the fitted voxels; None where there is nothing to show."""
        parameter = self.model.parameters[column]
        fitted = self.status != FitStatus.NOT_FITTED
        label = parameter.name
        if label in self.fixed:
            label += " (fixed)"
        values = self.parameters[fitted, column]
        median = quartiles = None
        if np.isfinite(values).any():
            low, median, high = np.nanpercentile(values, (25, 50, 75))
            quartiles = f"{low:.4g} to {high:.4g}"
        errors = self.standard_errors[fitted, column]
        errors = errors[np.isfinite(errors)]
        error = float(np.median(errors)) if errors.size else None
        share = None
        if fitted.any():
            at_bound = self.at_low[fitted, column] | self.at_high[fitted, column]
            share = f"{at_bound.mean():.1%}"
        return label, parameter.unit, median, quartiles, error, share

    def to_lmfit(
        self, voxel: int, signals: ArrayLike, protocol: Protocol, *, sigma: float = 0.0
    ) -> lmfit.model.ModelResult:
        """
        Refit one voxel by lmfit from this solution, for its reports and confidence intervals.

        Parameters
        ----------
        voxel : int
            Which row.
        signals : array_like of shape (n_voxels, n_measurements)
            The signals that were fitted.
        protocol : Protocol
            Their protocol.
        sigma : float, default=0
            Standard deviation of the noise if the fit had a Rician floor.

        Returns
        -------
        lmfit.model.ModelResult
            With ``fit_report()`` and ``conf_interval()``; bounds and fixed parameters as here.

        Raises
        ------
        ImportError
            If lmfit is not installed.
        ValueError
            If the voxel was not fitted.
        """
        lmfit = import_optional("lmfit")
        if self.status[voxel] == FitStatus.NOT_FITTED:
            raise ValueError(f"voxel {voxel} was not fitted: it has no usable signal")
        signal = np.asarray(signals, dtype=float)[voxel]
        measured = np.isfinite(signal)

        def function(b: NDArray, **values: float) -> NDArray:
            row = [values[name] for name in self.names]
            predicted = self.model.signal(row, protocol)[0, measured]
            return np.sqrt(predicted**2 + np.pi / 2 * sigma**2)

        # lmfit reads the names of arguments from these attributes where a function has them.
        function.argnames = ["b", *self.names]  # type: ignore[attr-defined]
        function.kwargs = []  # type: ignore[attr-defined]
        model = lmfit.Model(
            function, independent_vars=["b"], param_names=list(self.names), name=self.model.name
        )
        parameters = lmfit.Parameters()
        largest = signal[measured].max()
        for parameter, value, (low, high) in zip(
            self.model.parameters, self.parameters[voxel], self.bounds, strict=True
        ):
            unit = largest if parameter.is_amplitude else 1.0
            vary = parameter.name not in self.fixed and low < high
            # lmfit moves a value into its bounds, also that of a parameter that does not vary.
            box = {"min": low * unit, "max": high * unit} if vary else {}
            parameters.add(parameter.name, value=value, vary=vary, **box)
        return model.fit(
            signal[measured], parameters, b=protocol.b[measured], method="least_squares"
        )
