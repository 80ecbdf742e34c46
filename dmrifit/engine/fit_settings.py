"""The settings of a fit: checked, turned into what the fit needs, described for the sidecar."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit._utils.checks import check_number, check_word, is_number
from dmrifit._utils.counts import counted
from dmrifit.engine.kernels.layout import form, is_share
from dmrifit.engine.models import Parameter, SignalModel, read_table
from dmrifit.engine.protocol import Protocol

if TYPE_CHECKING:
    from dmrifit.engine.methods.prior import Prior

#: Bounds as users give them: by parameter name, or "published".
Bounds: TypeAlias = Mapping[str, tuple[float, float | str]] | str

#: Lower and upper bound of every parameter by name; the upper one may be "monotonic".
Box: TypeAlias = dict[str, tuple[float, float | str]]

#: Methods of fits: nonlinear least squares, lines through logarithms, in two steps, with a prior.
METHODS = ("nlls", "ols", "wls", "segmented", "map")

#: Distributions of the noise; a floor is the Gaussian one with `sigma`.
LIKELIHOODS = ("gaussian", "rician", "rician-mean")

#: s/mm², of a segmented fit; of 150, 200 and 250 the one with the smallest errors on OSIPI's
#: tissues at SNR 30–100.
DEFAULT_THRESHOLD = 150.0

#: Fixed value of an amplitude that stands for the measured signal without diffusion weighting.
MEASURED = "measured"

# Lines through logarithms have no bounds, and a prior is learned in the box of the model.
_UNCAPPED = ("ols", "wls", "map")

_OPTIONS = read_table("fit_options")

# Starting points of a voxel whose first fit looks doubtful, by the name of the option.
ROUTED_STARTS = {"auto": 3, "thorough": 6}

#: µm²/ms: where a box starts at 0, it does not tell how slow water diffuses in tissue.
_SLOWEST = 0.1

#: Values may lie so many times below or above the model's own box: their user knows why.
_FAR_BELOW, _FAR_ABOVE = 10.0, 5.0

#: Bounds of a share may reach beyond 0 to 1, for fits without bias; from here on they are percent.
_PERCENT_BOUND = 2.0


@dataclass(frozen=True)
class FitSettings:
    """
    The options of `fit_voxels`; its fields have their names, defaults and meanings.

    `noise`, `n_averaged`, `counts` and `is_denoised` are no options: a fit measures the noise, and
    fits of the parts of a scan take them over from the fit of the whole.

    An option of the fit is a field here, checked here and, unless results do not depend on it,
    described here. `MapFitter` and `fit_image` make the same settings of their own arguments.
    """

    method: str | None = None
    bounds: Bounds | None = None
    fixed: Mapping[str, ArrayLike | str] | None = None
    sigma: ArrayLike | None = None
    likelihood: str = "gaussian"
    threshold: float | None = None
    weights: ArrayLike | None = None
    prior: Prior | None = None
    regularization: float | None = None
    n_starts: int | str = "auto"
    n_threads: int | None = None
    #: Measured noise of single signals, by which voxels near it are fitted with its floor.
    noise: float | None = None
    #: Mean number of signals that were averaged to one that is fitted.
    n_averaged: float = 1.0
    #: Number of signals in each average, of an unweighted fit: its errors depend on them.
    counts: NDArray | None = None
    #: Whether `sigma` is the noise before denoising.
    is_denoised: bool = False

    def check(self) -> None:
        """Refuse options that are wrong for every model and protocol."""
        if self.n_threads is not None:
            check_number("n_threads", self.n_threads, least=1, whole=True)
        if self.method is not None:
            check_word("method", self.method, METHODS)
        check_word("likelihood", self.likelihood, LIKELIHOODS)
        for name, methods in _OPTIONS["used_by"].items():
            value = getattr(self, name)
            is_default = value is None or (
                isinstance(value, str | Mapping) and value in ("gaussian", {})
            )
            if not is_default and (self.method or "") not in methods:
                raise ValueError(
                    f"{name} cannot be used with method {self.method!r}; leave it out, or use "
                    f"method {methods[-1]!r}"
                )
        for name, option in (("bounds", self.bounds), ("fixed", self.fixed)):
            is_word = name == "bounds" and isinstance(option, str)
            if not (option is None or is_word or isinstance(option, Mapping)):
                raise TypeError(f"{name} must be a dict by parameter name, not {option!r}")
        if self.threshold is not None:
            check_number("threshold", self.threshold, above=0.0)
        if self.regularization is not None:
            check_number("regularization", self.regularization)
        pairs = self.bounds.values() if isinstance(self.bounds, Mapping) else ()
        is_capped = any(isinstance(pair, tuple | list) and "monotonic" in pair for pair in pairs)
        if self.method == "map" and is_capped:
            raise ValueError(
                "method 'map' does not accept a 'monotonic' bound, because its prior already "
                "keeps K below it; give a number"
            )
        if self.n_starts not in ROUTED_STARTS and not (
            is_number(self.n_starts, whole=True) and self.n_starts >= 1
        ):
            raise ValueError(
                "n_starts (--starts) must be 'auto', 'thorough' or a whole number from 1, "
                f"not {self.n_starts!r}"
            )
        if self.likelihood == "gaussian":
            return
        if self.sigma is None or not (np.asarray(self.sigma, dtype=float) > 0).all():
            raise ValueError(
                f"likelihood {self.likelihood!r} needs sigma, the standard deviation of the "
                "noise, above 0 everywhere (--sigma)"
            )
        if self.regularization:
            raise ValueError(
                f"regularization is for least squares, not for likelihood {self.likelihood!r}"
            )

    @property
    def is_automatic(self) -> bool:
        """Whether the noise may choose the method and a floor."""
        return self.method is None and self.threshold is None and self.likelihood == "gaussian"

    def method_for(self, model: SignalModel, protocol: Protocol) -> str:
        """Choose the method that the options ask for, or the model's own where it is possible."""
        if self.method is not None:
            return self.method
        if self.threshold is not None:
            return "segmented"
        is_plain = self.likelihood == "gaussian" and "Dt" not in (self.fixed or {})
        if model.default_method == "segmented" and not (is_plain and can_segment(protocol)):
            return "nlls"
        return model.default_method

    def measurement_weights(self, n: int) -> NDArray[np.float64] | None:
        """
        Check the weights of the measurements, and scale their mean to 1.

        Shapes: returns (n,), with `n` measurements.
        """
        given = self.counts if self.weights is None else self.weights
        if given is None:
            return None
        weights = np.asarray(given, dtype=float)
        if weights.shape != (n,) or not (np.isfinite(weights).all() and (weights > 0).all()):
            raise ValueError(
                f"weights must be {counted(n, 'positive number')}, one for each measurement; got "
                f"{self.weights!r}"
            )
        return weights / weights.mean()

    def capped(self, model: SignalModel) -> list[str]:
        """List the parameters whose upper bound keeps the signal falling, also by default."""
        return [name for name, (_, high) in self.box(model).items() if high == "monotonic"]

    def box(self, model: SignalModel) -> Box:
        """Combine the model's own bounds with those of the settings."""
        box: Box = dict(zip(model.names, model.bounds, strict=True))
        if model.keeps_falling and model.cumulant and self.method not in _UNCAPPED:
            kurtosis = model.cumulant[0]
            if kurtosis not in (self.fixed or {}):
                box[kurtosis] = box[kurtosis][0], "monotonic"
        bounds = self.bounds or {}
        if isinstance(bounds, str):
            if bounds != "published":
                raise ValueError(
                    f"bounds must be a dict by parameter name or 'published', not {bounds!r}"
                )
            if model.published_bounds is None:
                raise ValueError(
                    f"there are no published bounds for model {model.name}; "
                    "give a dict by parameter name"
                )
            bounds = model.published_bounds
        for name, pair in bounds.items():
            parameter = _parameter(model, name, "bounds")
            try:
                low, high = pair
                low, top = float(low), np.inf if high == "monotonic" else float(high)
            except (TypeError, ValueError):
                raise ValueError(f"bounds of {name} must be (low, high), not {pair!r}") from None
            if high == "monotonic":
                if low != 0 or model.cumulant is None or name != model.cumulant[0]:
                    raise ValueError(
                        f"bounds of {name} are {pair!r}: only (0, 'monotonic') of the kurtosis of "
                        "a model with a cumulant keeps the signal falling; give numbers"
                    )
                box[name] = low, high
                continue
            if not low <= top:
                raise ValueError(
                    f"bounds of {name} are empty: ({low:g}, {top:g}); the lower one comes first"
                )
            # Such a parameter is searched by its logarithm or reciprocal.
            if form(parameter) != "plain" and top <= 0:
                raise ValueError(f"{name} is positive, but its upper bound is {top:g}")
            _check_bounds(parameter, low, top)
            box[name] = low, top
        return box

    def fixed_values(self, model: SignalModel, n: int, box: Box) -> dict[str, NDArray]:
        """
        Check the values of parameters that are not fitted.

        Shapes: returns () or (1,) or (n,) for each, with `n` voxels.
        """
        values = {}
        for name, value in (self.fixed or {}).items():
            parameter = _parameter(model, name, "fixed values")
            if isinstance(value, str):
                raise ValueError(
                    f"fixed {name} must be a number, not {value!r}; the word {MEASURED!r} is for "
                    "the amplitude in a fit of signals"
                )
            array = np.asarray(value, dtype=float)
            if array.shape not in ((), (1,), (n,)) or not np.isfinite(array).all():
                raise ValueError(
                    f"fixed {name} must be a finite number or {n} of them, one for each voxel; "
                    f"got {value!r}"
                )
            if form(parameter) != "plain" and not (array > 0).all():
                raise ValueError(f"fixed {name} must be positive; got {array.min():g}")
            check_values(parameter, f"fixed {name}", array)
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
        Check the standard deviation of the noise; None where it is not given or all 0.

        Shapes: returns (1,) or (n,), with `n` voxels.
        """
        if self.sigma is None:
            return None
        try:
            levels = np.asarray(self.sigma, dtype=float)
        except (TypeError, ValueError):
            raise ValueError(
                f"sigma must be a number, or one for each voxel, not {self.sigma!r:.80}"
            ) from None
        if levels.shape not in ((), (1,), (n,)):
            raise ValueError(
                f"sigma must be a number or {n} of them, one for each voxel; "
                f"got shape {levels.shape}"
            )
        wrong = levels[~(np.isfinite(levels) & (levels >= 0))]
        if wrong.size:
            raise ValueError(
                f"sigma must be finite and not negative, not {wrong.flat[0]:g} (it is the "
                "standard deviation of the noise, in the signals' units)"
            )
        # Without noise the floor adds nothing, and the signal model alone ends at the same digits.
        return np.ascontiguousarray(levels.reshape(-1)) if levels.any() else None

    def starts(self, n_free: int) -> int:
        """Choose the number of starting points for a fit of so many free parameters."""
        if not self.routed:
            return int(self.n_starts)
        return 1 if n_free <= 2 else ROUTED_STARTS[str(self.n_starts)]

    @property
    def routed(self) -> bool:
        """Whether only voxels whose first fit looks doubtful get the other starting points."""
        return isinstance(self.n_starts, str)

    def penalty(self, low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.float64]:
        """
        Compute the weight of (p − low)² of each parameter p; 0 where its bounds are not finite.

        Shapes: `low`, `high` (n_parameters,); returns (n_parameters,).
        """
        penalty = np.zeros(len(low))
        if self.regularization is not None:
            with np.errstate(over="ignore"):
                width = high - low
                bounded = np.isfinite(width) & (width > 0)
                penalty[bounded] = self.regularization / width[bounded] ** 2
        return penalty

    def describe(self) -> dict[str, Any]:
        """Describe the options that results depend on, except fixed values, noise and prior."""
        bounds = self.bounds
        if isinstance(bounds, Mapping):
            pairs = bounds.items()
            bounds = ", ".join(f"{name} from {low} to {high}" for name, (low, high) in pairs)
        described: dict[str, Any] = {
            "Method": self.method or "the model's own",
            "Starts": self.n_starts,
            "Bounds": bounds or "those of the model",
            "Regularization": self.regularization,
            "Likelihood": self.likelihood,
        }
        if self.threshold is not None:
            described["Threshold"] = self.threshold
        if self.weights is not None:
            weights = np.asarray(self.weights, dtype=float).ravel()
            described["Weights"] = ", ".join(f"{weight:g}" for weight in weights)
        return described


def can_segment(protocol: Protocol, threshold: float = DEFAULT_THRESHOLD) -> bool:
    """Tell whether a protocol has the two high b-values that a segmented fit needs."""
    return len(np.unique(protocol.b[protocol.b >= threshold])) >= 2


def _parameter(model: SignalModel, name: str, option: str) -> Parameter:
    """Find a parameter that an option names."""
    if name not in model.names:
        raise ValueError(
            f"{option} name the parameter {name!r}, which model {model.name} does not have; "
            f"it has {', '.join(model.names)}"
        )
    return model.parameters[model.names.index(name)]


def check_values(parameter: Parameter, text: str, values: NDArray[np.float64]) -> None:
    """Refuse values, one or one for each voxel, that are impossible or in another unit."""
    if is_share(parameter):
        outside = values[(values < 0) | (values > 1)]
        if outside.size:
            raise ValueError(_share_message(parameter.name, text, float(outside[0])))
    if values.size:
        # Of a map, single voxels may lie near zero.
        typical = float(np.median(values))
        _check_unit(parameter, text, typical, is_upper=True)
        _check_unit(parameter, text, typical, is_upper=False)


def _check_bounds(parameter: Parameter, low: float, high: float) -> None:
    """Refuse bounds between which no value is plausible in the unit of the parameter."""
    name = parameter.name
    if is_share(parameter) and _PERCENT_BOUND <= high < np.inf:
        raise ValueError(_share_message(name, f"the upper bound of {name}", high))
    _check_unit(parameter, f"the upper bound of {name}", high, is_upper=True)
    _check_unit(parameter, f"the lower bound of {name}", low, is_upper=False)


def _share_message(name: str, text: str, value: float) -> str:
    message = f"{text} is {value:g}: {name} is a share of the signal, from 0 to 1"
    if 1 < value <= 100:
        message += f", this looks like percent; did you mean {value / 100:g}?"
    return message


def _check_unit(parameter: Parameter, text: str, value: float, *, is_upper: bool) -> None:
    """Refuse an upper value too small, or a lower one too large, for the unit."""
    low, high = parameter.low, parameter.high
    problem = f"{text} is {value:g}: {parameter.name} must be in {parameter.unit} ({low:g} to "
    problem += f"{high:g} by default), "
    slowest = low
    if parameter.unit == "µm²/ms" and low == 0:
        slowest = min(_SLOWEST, high / _FAR_BELOW)
    for unit, factor in _OPTIONS["other_units"].get(parameter.unit, {}).items():
        if is_upper:
            # Down to half of `slowest`: a wrong factor takes the value farther away than that.
            is_meant = slowest / 2 <= value * factor <= _FAR_BELOW * high
            is_meant &= factor > 1 and 0 < value < slowest / _FAR_BELOW
        else:
            is_meant = low <= value * factor <= high
            is_meant &= factor < 1 and abs(value) > _FAR_ABOVE * high
        if is_meant:
            raise ValueError(
                f"{problem}this looks like {unit}; did you mean "
                f"{value * factor:g} {parameter.unit}?"
            )
    largest = max(_OPTIONS["largest"].get(parameter.unit, np.inf), high)
    if value > largest and not is_upper:
        raise ValueError(f"{problem}and not above {largest:g}; correct the value or its unit")
