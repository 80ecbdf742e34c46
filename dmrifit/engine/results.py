"""Results of fits: parameters, their errors and the status of each voxel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dmrifit._utils.checks import check_number
from dmrifit._utils.counts import counted, percent
from dmrifit._utils.html_repr import html_summary, new_figure
from dmrifit.engine.design.precision import rounded
from dmrifit.engine.intervals import FitInputs, parameter_intervals
from dmrifit.engine.models import SignalModel, python_words
from dmrifit.engine.protocol import Protocol
from dmrifit.engine.screening import Screening, ScreeningTally

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from dmrifit.engine.doubts import DoubtTally
    from dmrifit.engine.methods.prior import Prior

__all__ = ["FitResult", "FitStatus"]


#: Share of the voxels with values, below which those that are not in doubt have no median, and
#: share of these at a bound, above which the doubts have chosen them.
FEWEST_BELIEVED, _MOST_AT_BOUND = 0.1, 0.5


class FitStatus(IntEnum):
    """
    How the fit of a voxel ended.

    `CONVERGED` and `AT_BOUND` are solutions; in the second, a parameter lies on a bound.
    `NOT_CONVERGED` ran out of iterations, or found no step to a lower cost. `NOT_FITTED` voxels
    have no usable signal, or the model has none within the bounds and fixed values that is finite;
    their parameters, errors and cost are NaN.
    """

    CONVERGED = 0
    AT_BOUND = 1
    NOT_CONVERGED = 2
    NOT_FITTED = 3


@dataclass(frozen=True)
class FitResult:
    """
    The fits of many voxels; ``result["Dt"]`` is one parameter's column.

    Rows have no places: for maps in three planes fit the image itself by `fit_image`, whose
    `ImageMaps` have ``view()``.

    Parameters
    ----------
    model : SignalModel
        The model that was fitted.
    parameters : ndarray of shape (n_voxels, n_parameters)
        In the order of `names` and the model's units; NaN where a voxel was not fitted.
    standard_errors : ndarray of shape (n_voxels, n_parameters)
        From the inverse of J'J (with a noise floor: of the curvature) and the residual variance
        (with "ols" of equal noise of the signals, not of their logarithms), with parameters at a
        bound taken as known, and in a segmented fit with the error of Dt in those of the others:
        the spread of repeats of one voxel, not the distance from the truth, for which there is
        `intervals`. NaN for a parameter that is fixed or at a bound and where no degree of freedom
        is left, infinite for one that the signal does not depend on.
    cost : ndarray of shape (n_voxels,)
        Sum of squared residuals over the measurements used, in the signals' units squared; with
        `weights` of the fit, each times its weight over the mean weight.
    status : ndarray of shape (n_voxels,)
        Codes of `FitStatus`.
    n_iter : ndarray of shape (n_voxels,)
        Iterations, all starts together.
    at_low, at_high : ndarray of shape (n_voxels, n_parameters)
        Whether a parameter that was free to move ended on its lower or upper bound.
    starts_disagree : ndarray of shape (n_voxels,)
        Whether another start came within 1 % of the cost in another place, judged by the rise of
        the sum of squares between the two by more than 5 %: the data do not decide between them.
        Never where a voxel had one start, see `n_starts` of `fit_voxels`.
    bounds : tuple of (float, float)
        The box that was searched, in the order of `names`; of an amplitude, in multiples of the
        voxel's largest signal.
    fixed : tuple of str
        Names of the parameters that were not fitted.
    inputs : FitInputs, optional
        Signals, protocol and noise, which `intervals` and `doubt` need.
    method : str
        The method of `fit_voxels` that was used.
    likelihood : str
        The distribution of the noise that was assumed.
    prior : Prior, optional
        The prior of a fit with the method "map", which pulls every voxel toward its mean.
    screening : Screening, optional
        Counts for each voxel of values that were left out (not finite, zeros outside the field of
        view, without a logarithm), of negative ones that were fitted, and why it was refused.
    noise : float, optional
        Standard deviation of the noise by which the method was chosen, in the signals' units.
    threshold : float, optional
        Lowest b-value in s/mm² of the first step of a segmented fit.
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
    bounds: tuple[tuple[float, float], ...]
    fixed: tuple[str, ...] = ()
    inputs: FitInputs | None = field(default=None, repr=False, compare=False)
    method: str = "nlls"
    likelihood: str = "gaussian"
    prior: Prior | None = None
    screening: Screening | None = field(default=None, repr=False, compare=False)
    noise: float | None = None
    threshold: float | None = None

    @property
    def has_floor(self) -> NDArray[np.bool_]:
        """Whether each voxel was fitted with a floor or likelihood of magnitudes, (n_voxels,)."""
        sigma = None if self.inputs is None else self.inputs.sigma
        return np.broadcast_to(False if sigma is None else sigma > 0, len(self))

    @property
    def n_left_out(self) -> NDArray[np.int16]:
        """Number of values of each voxel that were left out of its fit, shape (n_voxels,)."""
        if self.screening is None:
            return np.zeros(len(self), np.int16)
        return self.screening.n_left_out

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

    def __repr__(self) -> str:
        medians = []
        for column, name in enumerate(self.names):
            _, unit, believed, *_, doubt = self._summary_row(column)
            text = f"{name} {'–' if believed is None else f'{believed:.4g}'} {unit}".rstrip()
            is_doubted = doubt not in (None, percent(0))
            medians.append(f"{text} (in doubt in {doubt})" if is_doubted else text)
        listed = ", ".join(medians)
        return f"<FitResult of {self._title}: {self._outcomes}; medians without doubts {listed}>"

    @property
    def protocol(self) -> Protocol | None:
        """The protocol that was fitted, where the fit's inputs are kept."""
        return None if self.inputs is None else self.inputs.protocol

    @property
    def turn_up(self) -> float:
        """Largest K·D that keeps the signal falling; infinite where no bound asked for that."""
        return np.inf if self.inputs is None else self.inputs.turn_up

    def upper_bounds(self, column: int) -> NDArray[np.float64]:
        """
        Compute the upper bound of one parameter, other than an amplitude, in every voxel.

        It is that of the box, and for a kurtosis with a "monotonic" bound also 3/(b_max·D).

        Parameters
        ----------
        column : int
            Which parameter.

        Returns
        -------
        ndarray of shape (n_voxels,)
            In the unit of the parameter.
        """
        high = np.full(len(self), self.bounds[column][1])
        if np.isfinite(self.turn_up) and self.model.cumulant:
            kurtosis, diffusivity = map(self.names.index, self.model.cumulant)
            if column == kurtosis:
                with np.errstate(divide="ignore", invalid="ignore"):
                    high = np.fmin(high, self.turn_up / self.parameters[:, diffusivity])
        return high

    @property
    def degrees_of_freedom(self) -> NDArray[np.intp]:
        """Number of measurements of each voxel beyond the free parameters, shape (n_voxels,)."""
        signals = self._known_inputs.signals
        is_used = np.isfinite(signals)
        if self.method in ("ols", "wls"):
            # A fit of logarithms keeps in its inputs the values that it leaves out.
            is_used &= signals > 0
        return np.einsum("ij->i", is_used, dtype=np.intp) - np.count_nonzero(~self.is_known)

    @property
    def reduced_chi2(self) -> NDArray[np.float64]:
        """
        Sum of squared residuals over the noise variance and the degrees of freedom.

        Shape (n_voxels,); about 1 where the model explains the signal, NaN without ``sigma`` or
        degrees of freedom.
        """
        if self.inputs is None or self.inputs.sigma is None:
            return np.full(len(self), np.nan)
        dof = self.degrees_of_freedom
        # Averages have less noise than the measurements, of which sigma is.
        noise = self.inputs.sigma if self.inputs.noise is None else self.inputs.noise
        with np.errstate(divide="ignore", invalid="ignore"):
            is_known = (dof > 0) & (self.inputs.sigma > 0)
            return np.where(is_known, self.cost / (dof * noise**2), np.nan)

    def intervals(self, level: float = 0.95) -> NDArray[np.float64]:
        """
        Compute intervals that contain the parameters in a given share of the voxels.

        There are intervals also at a bound, where they are one-sided. They contain the estimate.
        They are for the parameters that would be fitted to the signal without noise: what the
        model leaves out of the tissue is not in them.

        Parameters
        ----------
        level : float, default=0.95
            Share of the voxels whose interval holds the parameter.

        Returns
        -------
        ndarray of shape (n_voxels, n_parameters, 2)
            Low and high ends, in the units of the parameters; NaN where a voxel was not fitted
            and for a fixed parameter. An interval over three quarters of the box says that the
            parameter is not determined.

        Raises
        ------
        ValueError
            If the level is not between 0 and 1, or the result does not know its signals.

        Notes
        -----
        All parameters stay in the normal equations, with the variance of an even distribution
        over the box as a weak prior, in coordinates in which the signal is close to linear
        (inverse relaxation times and wide rates, the root of shares). The center is the minimum
        of the quadratic form, not the estimate, which also holds for fits in two steps; all but
        amplitudes get one more evaluation a side for their curvature. Student's t with the
        residual variance; without residuals, the variance of the measured noise or sigma, and with
        up to three degrees of freedom the larger of both, without Student's t.

        On simulated tissue at SNR 20, 30 and 60, intervals at 95 % hold the truth in 93 to 97 %
        (T2v in 99 % and more) with t2-ivim-kurtosis and ``Protocol.preset("cohort1")`` (21
        measurements), in 92 to 96 % with ivim and 16 measurements, and with kurtosis and 7 (b = 0
        three times, 500, 1000, 1500, 2000 s/mm²). With kurtosis and one measurement more than
        parameters (b = 0, 500, 1000, 2000 s/mm²) they hold it in 96 to 97 % where the noise was
        measured, and in 86 to 91 % where it was not. On signals of random walks (cohort1), which
        know nothing of the formula, they hold the fit to the signal without noise in 93 to 97 %,
        and the truth of the walk in 93 to 97 %, its K at SNR 60 in 92 %, because the K of the fit
        without noise is 12 % below the walk's (median of 21 walks). Outside tissue (f above 0.75,
        free water) none of this was shown.
        """
        if not 0 < level < 1:
            raise ValueError(f"level must be between 0 and 1, such as 0.95, not {level!r}")
        return self._intervals((level,))[0]

    @cached_property
    def doubt_reasons(self) -> NDArray[np.uint8]:
        """Why parameters are in doubt: codes of `DoubtReason`, shape (n_voxels, n_parameters)."""
        from dmrifit.engine.doubts import doubt_reasons

        return doubt_reasons(self, self._default_intervals)

    @property
    def outer_intervals(self) -> NDArray[np.float64]:
        """Intervals at 95 %, computed together with the doubts."""
        return self._default_intervals[1]

    @cached_property
    def _default_intervals(self) -> NDArray[np.float64]:
        from dmrifit.engine.doubts import LEVELS

        return self._intervals(LEVELS)

    def _intervals(self, levels: Sequence[float]) -> NDArray[np.float64]:
        return parameter_intervals(
            self._known_inputs, self.model, self.parameters, self.bounds, self.is_known, levels
        )

    @property
    def _known_inputs(self) -> FitInputs:
        if self.inputs is None:
            raise ValueError(
                "this result does not know the signals it was fitted to; fit them again by "
                "fit_voxels"
            )
        return self.inputs

    @property
    def doubt(self) -> NDArray[np.bool_]:
        """
        Whether each parameter is in doubt, shape (n_voxels, n_parameters).

        The signal does not depend on it (those of a compartment whose share has a 95 % interval
        below .05, or that includes 0), its 95 % interval spans three quarters of the box, it is at
        a bound that is not a natural one (zero, or 1 of a share), or half of its 68 % interval
        (with 1 to 3 degrees of freedom and unknown noise, a quarter of its 95 % interval) is above
        .05 for a share, .3 for a kurtosis, half the value for others (if that is more, .02 µm²/ms
        for a diffusivity, a fortieth of a box that 0 lies within). A kurtosis whose 95 % interval
        is
        above 0 is also in doubt where b·D of the highest b-value exceeds 5, which leaves less than
        1 % of the signal of a fluid, and in fluids near the noise whose floor is not known; one
        with a "monotonic" bound where its interval reaches from 0 over three quarters of what the
        bound allows; a T2 of tissue where free water may raise it by more than half. All are in
        doubt where there are no residuals and the noise is not known.
        """
        return self.doubt_reasons > 0

    def advice(self) -> list[str]:
        """
        Say in sentences what the data do not tell: parameter, share of voxels and remedy.

        Also why voxels were not fitted, and where groups of volumes differ in gain, so that no
        parameter can be trusted.

        Returns
        -------
        list of str
            Empty for a sound fit.
        """
        from dmrifit.engine.gain_steps import GAIN_VOXELS, find_gain_step, relative_doubt

        advice = self._tally().advice()
        if self.screening is not None:
            screened = ScreeningTally()
            screened.add(self.screening, self.status != FitStatus.NOT_FITTED)
            for reason, n in screened.reasons.items():
                advice.append(f"Not fitted: {counted(n, 'voxel')} {reason}.")
        if self.inputs is not None:
            stride = max(1, len(self) // GAIN_VOXELS)
            signals, protocol = self.inputs.signals[::stride], self.inputs.protocol
            step = find_gain_step(signals, protocol)
            doubts = [step.description] if step else []
            doubts.append(relative_doubt(signals, protocol, self.model))
            advice += [f"{doubt}." for doubt in doubts if doubt]
        return [python_words(sentence) for sentence in advice]

    def to_dataframe(self) -> pd.DataFrame:
        """
        Tabulate the fits, a row for each voxel.

        Returns
        -------
        DataFrame of n_voxels rows
            For each parameter its value, ``<name>_se``, the ends of the 95 % interval
            ``<name>_low`` and ``<name>_high``, and ``<name>_doubt``, True where it is in doubt for
            any of the reasons in `doubt_reasons`, ``<name>_at_low`` and ``<name>_at_high``, True
            at a bound; then ``cost``, and ``status`` in words.
            ``attrs["units"]`` holds the units of the columns.
        """
        import pandas as pd

        ends = self.outer_intervals
        columns: dict[str, NDArray] = {}
        units: dict[str, str] = {}
        for j, name in enumerate(self.names):
            columns[name] = self.parameters[:, j]
            columns[f"{name}_se"] = self.standard_errors[:, j]
            columns[f"{name}_low"], columns[f"{name}_high"] = ends[:, j, 0], ends[:, j, 1]
            columns[f"{name}_doubt"] = self.doubt[:, j]
            columns |= {f"{name}_at_low": self.at_low[:, j], f"{name}_at_high": self.at_high[:, j]}
            names = (name, f"{name}_se", f"{name}_low", f"{name}_high")
            units |= dict.fromkeys(names, self.model.parameters[j].shown_unit or "1")
        outcomes = [FitStatus(code).name.lower() for code in self.status]
        frame = pd.DataFrame({**columns, "cost": self.cost, "status": outcomes})
        frame.attrs["units"] = units
        return frame

    def plot(self, voxel: int = 0) -> Figure:
        """
        Draw the signals of a voxel and the curve that was fitted to them.

        Parameters
        ----------
        voxel : int, default=0
            Its row.

        Returns
        -------
        Figure
            Of matplotlib; a notebook shows it.

        Raises
        ------
        ImportError
            If the extra ``report`` is not installed.
        ValueError
            If the result does not know its signals.
        """
        inputs = self._known_inputs
        n = len(self.parameters)
        check_number("voxel", voxel, least=-n, most=n - 1, whole=True)
        figure = new_figure(5, 3.6, "tight")
        values, doubt = self.parameters[voxel], self.doubt[voxel]
        axes, signals = figure.subplots(), inputs.signals[voxel]
        draw_curve(axes, inputs.protocol, signals, self.model, values, doubt)
        return figure

    def readings(self) -> dict[str, str]:
        """
        Read the 95 % interval of each free parameter in the typical voxel.

        Returns
        -------
        dict of str to str
            By parameter: medians of the low and the high ends; where the parameter is in most
            voxels not determined, ``"not determined (150 to 250 ms searched)"``; where a zero of
            it is well measured in most, ``"none found, < 0.02"``, or of a diffusivity
            ``"not distinguishable from 0, < 0.02 µm²/ms"``, with the median of the high ends;
            where both medians are one bound, ``"at the bound 3 µm²/ms"``.
        """
        return self._tally().readings()

    def _tally(self) -> DoubtTally:
        from dmrifit.engine.doubts import DoubtTally

        cumulant = self.model.cumulant or ()
        monotonic = cumulant[:1] if np.isfinite(self.turn_up) else ()
        tally = DoubtTally(self.model, self.bounds, monotonic)
        tally.add(self)
        return tally

    @property
    def is_known(self) -> NDArray[np.bool_]:
        """Whether each parameter was not fitted: fixed, or with bounds that are one value."""
        pairs = zip(self.names, self.bounds, strict=True)
        return np.array([name in self.fixed or low == high for name, (low, high) in pairs])

    def _repr_html_(self) -> str:
        """Summarize the parameters over voxels for notebooks."""
        header = ["parameter", "unit", "median without doubts", "median, with doubts", "quartiles"]
        header += ["median standard error", "at a bound", "in doubt"]
        rows = [self._summary_row(column) for column in range(len(self.names))]
        notes = [self._outcomes]
        if self.screening is not None:
            if n_left_out := int(self.screening.n_left_out.sum()):
                notes.append(f"{counted(n_left_out, 'value')} left out")
            if n_without_logarithm := int(self.screening.n_without_logarithm.sum()):
                notes[-1] += f" ({n_without_logarithm} without a logarithm)"
            fitted = self.status != FitStatus.NOT_FITTED
            if n_negative := int(self.screening.n_negative[fitted].sum()):
                notes.append(f"{counted(n_negative, 'negative value')} fitted")
        if self.method == "map":
            notes.append("pulled toward the region's mean")
        advice = [] if self.inputs is None else self.advice()
        note = " ".join([f"{', '.join(notes)}.", *advice])
        return html_summary(f"Fit of {self._title}", header, rows, note=note)

    @property
    def _title(self) -> str:
        """The model and the number of voxels, fitted or not, in words."""
        return f"{self.model.name}: {counted(len(self), 'voxel')}"

    @property
    def _outcomes(self) -> str:
        """How many fits ended in which way, in words."""
        counts = zip(*np.unique(self.status, return_counts=True), strict=True)
        return ", ".join(f"{n} {FitStatus(c).name.lower().replace('_', ' ')}" for c, n in counts)

    def _summary_row(self, column: int) -> tuple[object, ...]:
        """Summarize a parameter over the fitted voxels; None where there is nothing to show."""
        parameter = self.model.parameters[column]
        fitted = self.status != FitStatus.NOT_FITTED
        label = parameter.name
        if label in self.fixed:
            label += " (fixed)"
        values = self.parameters[fitted, column]
        believed = median = quartiles = None
        if np.isfinite(values).any():
            low, median, high = np.nanpercentile(values, (25, 50, 75))
            believed, quartiles = median, f"{low:.4g} to {high:.4g}"
        error = median_without(self.standard_errors[fitted, column])
        share = doubt = None
        if fitted.any():
            at_bound = self.at_low[fitted, column] | self.at_high[fitted, column]
            share = percent(at_bound.mean())
            if self.inputs is not None and not self.is_known[column]:
                is_doubted = self.doubt[fitted, column]
                believed = median_without(values, is_doubted, at_bound)
                doubt = percent(is_doubted.mean())
        return label, parameter.shown_unit, believed, median, quartiles, error, share, doubt


def median_without(
    values: NDArray,
    is_doubted: NDArray[np.bool_] | bool = False,
    at_bound: NDArray[np.bool_] | bool = False,
) -> float | None:
    """Compute the median of finite values without doubt; None where few are left off bounds."""
    is_finite = np.isfinite(values)
    is_believed = is_finite & np.logical_not(is_doubted)
    believed = values[is_believed]
    # Few voxels are no sample of the region, nor are those that the doubts leave at a bound.
    few = FEWEST_BELIEVED * np.count_nonzero(is_finite)
    if len(believed) <= few:
        return None
    is_selected = np.count_nonzero(is_finite) - len(believed) > few
    if is_selected and np.mean((at_bound & is_finite)[is_believed]) > _MOST_AT_BOUND:
        return None
    # In place: copies of large images would set the peak of the memory.
    return float(np.median(believed, overwrite_input=True))


def unfilled_result(model: SignalModel, n_voxels: int, **fields: Any) -> FitResult:
    """Allocate a result whose parameters, errors and cost are written to afterwards."""
    shape = (n_voxels, len(model.names))
    return FitResult(
        model,
        parameters=np.empty(shape),
        standard_errors=np.empty(shape),
        cost=np.empty(n_voxels),
        status=np.full(n_voxels, FitStatus.CONVERGED, np.uint8),
        n_iter=np.zeros(n_voxels, np.int32),
        at_low=np.zeros(shape, bool),
        at_high=np.zeros(shape, bool),
        starts_disagree=np.zeros(n_voxels, bool),
        **fields,
    )


def mark_not_fitted(result: FitResult, voxels: NDArray | slice) -> None:
    """Mark voxels of a result as not fitted, with NaN for parameters, errors and cost."""
    result.status[voxels] = FitStatus.NOT_FITTED
    for values in (result.parameters, result.standard_errors, result.cost):
        values[voxels] = np.nan


def draw_curve(
    axes: Any,
    protocol: Protocol,
    signals: NDArray,
    model: SignalModel,
    values: NDArray,
    doubt: NDArray[np.bool_],
) -> None:
    """
    Draw measurements and the fitted curve over b, or over TE where there is only one b-value.

    Shapes: `signals` (n_measurements,), `values` and `doubt` (n_parameters,).
    """
    te = protocol.te
    over_te = te is not None and np.ptp(protocol.b) == 0
    across = te if over_te and te is not None else protocol.b
    fine = np.linspace(across.min() if over_te else 0, across.max(), 200)
    groups = {"fit": np.full(len(protocol), True)}
    if te is not None and not over_te:
        groups = {f"TE {one:g} ms": te == one for one in np.unique(te)}
    for label, chosen in groups.items():
        if over_te:
            contrasts = Protocol(np.full(len(fine), protocol.b[0]), fine)
        else:
            contrasts = Protocol(fine, None if te is None else float(te[chosen][0]))
        (line,) = axes.plot(fine, model.signal(values, contrasts)[0], label=label)
        axes.plot(across[chosen], signals[chosen], "o", markersize=4, color=line.get_color())
    axes.set(xlabel="TE (ms)" if over_te else "b (s/mm²)", ylabel="signal (a.u.)", ylim=(0, None))
    texts = []
    for parameter, value, is_doubted in zip(model.parameters, values, doubt, strict=True):
        text = f"{parameter.name} {rounded(value, 3)} {parameter.shown_unit}".rstrip()
        texts.append(f"{text} (in doubt)" if is_doubted else text)
    axes.legend(frameon=False, title="\n".join(texts), fontsize=8, title_fontsize=8)
