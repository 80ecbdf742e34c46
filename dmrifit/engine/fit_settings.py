"""The settings of a fit: checked, turned into what the fit needs, described for the sidecar."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit.engine.kernels.layout import form
from dmrifit.engine.models import Parameter, SignalModel

__all__ = ["Bounds", "Box", "FitSettings"]

#: Bounds as users give them: by parameter name, or the name of published ones.
Bounds: TypeAlias = Mapping[str, tuple[float, float | str]] | str

#: Lower and upper bound of every parameter, in the order of the model.
Box: TypeAlias = dict[str, tuple[float, float | str]]

METHODS = ("nlls", "segmented")


@dataclass(frozen=True)
class FitSettings:
    """
    The options of `fit_voxels`; its fields have their names, defaults and meanings.

    An option of the fit is a field here, checked here and, unless results do not depend on it,
    described here. `MapFitter` and `fit_image` make the same settings of their own arguments.
    """

    method: str = "nlls"
    bounds: Bounds | None = None
    fixed: Mapping[str, ArrayLike] | None = None
    sigma: ArrayLike | None = None
    regularization: float | None = None
    n_starts: int | str = "auto"
    n_threads: int | None = None

    def check(self) -> None:
        """Refuse options that are wrong for every model and protocol."""
        if self.n_threads is not None and not _is_count(self.n_threads):
            raise ValueError(
                "n_threads must be a whole number of at least 1, or None for one on each core, "
                f"not {self.n_threads!r}"
            )
        if self.method not in METHODS:
            raise ValueError(f"method must be 'nlls' or 'segmented', not {self.method!r}")
        weight = self.regularization
        if weight is not None and not (np.isfinite(weight) and weight >= 0):
            raise ValueError(f"regularization must be a finite number, 0 or more; got {weight!r}")
        if self.n_starts != "auto" and not _is_count(self.n_starts):
            raise ValueError(
                f"n_starts must be 'auto' or a whole number from 1, not {self.n_starts!r}"
            )

    @property
    def monotonic(self) -> list[str]:
        """Names of the parameters whose upper bound keeps the signal falling."""
        if self.bounds is None or isinstance(self.bounds, str):
            return []
        return [name for name, (_, high) in self.bounds.items() if high == "monotonic"]

    def box(self, model: SignalModel) -> Box:
        """Combine the model's own bounds with those of the settings."""
        box: Box = dict(zip(model.names, model.bounds, strict=True))
        if self.bounds is None:
            return box
        for name, pair in self._bounds_by_name(model).items():
            _check_name(model, name, "bounds")
            try:
                low, high = pair
            except (TypeError, ValueError):
                raise ValueError(f"bounds of {name} must be (low, high), not {pair!r}") from None
            if high == "monotonic":
                _check_monotonic(model, name, low)
                box[name] = float(low), high
            else:
                box[name] = _checked_interval(_parameter(model, name), float(low), float(high))
        return box

    def fixed_values(self, model: SignalModel, n: int, box: Box) -> dict[str, NDArray]:
        """
        Check the values of parameters that are not fitted.

        Shapes: returns () or (1,) or (n,) for each, with `n` voxels.
        """
        values = {}
        for name, value in (self.fixed or {}).items():
            _check_name(model, name, "fixed values")
            array = np.asarray(value, dtype=float)
            if array.shape not in ((), (1,), (n,)) or not np.isfinite(array).all():
                raise ValueError(
                    f"fixed {name} must be a finite number or {n} of them, one for each voxel; "
                    f"got {value!r}"
                )
            if form(_parameter(model, name)) != "plain" and not (array > 0).all():
                raise ValueError(f"fixed {name} must be positive; got {array.min():g}")
            values[name] = array
        for name in values:
            if box[name][1] == "monotonic":
                raise ValueError(
                    f"{name} is fixed, so it cannot have a 'monotonic' bound; give one or the "
                    "other"
                )
        if len(values) == len(model.names):
            raise ValueError(f"all parameters of {model.name} are fixed: there is nothing to fit")
        return values

    def noise_levels(self, n: int) -> NDArray[np.float64] | None:
        """
        Check the standard deviation of the noise.

        Shapes: returns (1,) or (n,), with `n` voxels.
        """
        if self.sigma is None:
            return None
        levels = np.asarray(self.sigma, dtype=float)
        if levels.shape not in ((), (1,), (n,)):
            raise ValueError(
                f"sigma must be a number or {n} of them, one for each voxel; "
                f"got shape {levels.shape}"
            )
        if not (np.isfinite(levels).all() and (levels >= 0).all()):
            raise ValueError(
                "sigma must be finite and not negative (it is the standard deviation of the "
                "noise, "
                "in the signals' units)"
            )
        return np.ascontiguousarray(levels.reshape(-1))

    def starts(self, n_free: int) -> int:
        """Choose the number of starting points for a fit of so many free parameters."""
        if self.n_starts != "auto":
            return int(self.n_starts)
        return 1 if n_free <= 2 else 3

    def penalty(self, low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.float64]:
        """
        Compute the weight of each squared parameter in the Tikhonov term.

        Shapes: `low`, `high` (n_parameters,); returns (n_parameters,).
        """
        penalty = np.zeros(len(low))
        if self.regularization is not None:
            width = high - low
            bounded = np.isfinite(width) & (width > 0)
            penalty[bounded] = self.regularization / width[bounded] ** 2
        return penalty

    def describe(self) -> dict[str, Any]:
        """Describe the options that results depend on, except fixed values and the noise."""
        return {
            "Method": self.method,
            "Starts": self.n_starts,
            "Bounds": self._describe_bounds(),
            "Regularization": self.regularization,
        }

    def _bounds_by_name(self, model: SignalModel) -> Mapping[str, tuple[float, float | str]]:
        if not isinstance(self.bounds, str):
            return self.bounds or {}
        if self.bounds != "published":
            raise ValueError(
                f"bounds must be a dict by parameter name or 'published', not {self.bounds!r}"
            )
        if model.published_bounds is None:
            raise ValueError(
                f"there are no published bounds for model {model.name}; "
                "give a dict by parameter name"
            )
        return model.published_bounds

    def _describe_bounds(self) -> str:
        if self.bounds is None or isinstance(self.bounds, str):
            return self.bounds or "those of the model"
        return ", ".join(
            f"{name} from {low} to {high}" for name, (low, high) in self.bounds.items()
        )


def _is_count(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        return False
    return bool(value >= 1)


def _parameter(model: SignalModel, name: str) -> Parameter:
    return model.parameters[model.names.index(name)]


def _check_name(model: SignalModel, name: str, option: str) -> None:
    if name not in model.names:
        raise ValueError(
            f"{option} name the parameter {name!r}, which model {model.name} does not have; "
            f"it has {', '.join(model.names)}"
        )


def _check_monotonic(model: SignalModel, name: str, low: float) -> None:
    if low != 0:
        raise ValueError(
            f"the lower bound of {name} must be 0 where the upper one is 'monotonic', not {low!r}"
        )
    if model.cumulant is None or name != model.cumulant[0]:
        raise ValueError(
            "only the kurtosis of a model with a cumulant has a 'monotonic' bound, "
            f"not {name} of {model.name}"
        )


def _checked_interval(parameter: Parameter, low: float, high: float) -> tuple[float, float]:
    if not low <= high:
        raise ValueError(
            f"bounds of {parameter.name} are empty: ({low:g}, {high:g}); the lower one comes first"
        )
    # Such a parameter is searched by its logarithm or reciprocal.
    if form(parameter) != "plain" and high <= 0:
        raise ValueError(f"{parameter.name} is positive, but its upper bound is {high:g}")
    return low, high
