"""What fits found: parameters, their errors and how each fit ended."""

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
        """Show in notebooks what was found, over voxels."""
        fitted = self.status != FitStatus.NOT_FITTED
        rows = []
        for i, parameter in enumerate(self.model.parameters):
            values, errors = self.parameters[fitted, i], self.standard_errors[fitted, i]
            low, middle, high = (
                np.nanpercentile(values, (25, 50, 75))
                if np.isfinite(values).any()
                else (np.nan,) * 3
            )
            known = errors[np.isfinite(errors)]
            share = float((self.at_low | self.at_high)[fitted, i].mean()) if fitted.any() else 0.0
            named = parameter.name + (" (fixed)" if parameter.name in self.fixed else "")
            spread = f"{low:.4g} to {high:.4g}" if np.isfinite(middle) else None
            error = float(np.median(known)) if known.size else None
            bound = f"{share:.1%}" if fitted.any() else None
            rows.append((named, parameter.unit, float(middle), spread, error, bound))
        header = (
            "parameter",
            "unit",
            "median",
            "quartiles",
            "median standard error",
            "at a bound",
        )
        codes, counts = np.unique(self.status, return_counts=True)
        told = (
            f"{n} {FitStatus(code).name.lower().replace('_', ' ')}"
            for code, n in zip(codes, counts, strict=True)
        )
        title = f"Fit of {self.model.name}: {len(self)} voxel{'s' * (len(self) != 1)}"
        return html_summary(title, header, rows, note=", ".join(told))

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

        function.argnames, function.kwargs = ["b", *self.names], []  # type: ignore[attr-defined] # lmfit's own protocol
        model = lmfit.Model(
            function, independent_vars=["b"], param_names=list(self.names), name=self.model.name
        )
        parameters = lmfit.Parameters()
        top = signal[measured].max()
        for value, described, (low, high) in zip(
            self.parameters[voxel], self.model.parameters, self.bounds, strict=True
        ):
            unit = top if described.is_amplitude else 1.0
            vary = described.name not in self.fixed and low < high
            box = {"min": low * unit, "max": high * unit} if vary else {}
            parameters.add(described.name, value=value, vary=vary, **box)
        return model.fit(
            signal[measured], parameters, b=protocol.b[measured], method="least_squares"
        )
