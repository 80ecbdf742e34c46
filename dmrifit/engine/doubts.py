"""What the data cannot tell: doubts about the parameters of a fit, and sentences of advice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmrifit._utils.counts import percent
from dmrifit._utils.spread_sample import SpreadSample
from dmrifit.engine.design import precision
from dmrifit.engine.design.identifiability import missing_high_b, separating_remedy, typical_tissue
from dmrifit.engine.design.precision import DECAYED, largest_error, rounded
from dmrifit.engine.free_water import TISSUE_T2, is_raised_by_water
from dmrifit.engine.kernels.layout import FEW_DEGREES, UNDETERMINED_SHARE, is_share
from dmrifit.engine.models import SignalModel, read_table
from dmrifit.engine.noise_choice import lowest_signals, needs_floor, residual_levels

#: Levels of intervals: half of the first is compared with a limit, the second with a box.
LEVELS = (0.68, 0.95)

# Added to the reason of doubt of a parameter: the bounds it is at, and that starts disagree.
_AT_LOW, _AT_HIGH, _AT_CAP, _DISAGREE = np.array([16, 32, 64, 128], np.uint8)

# A compartment smaller than this shows nothing of its own parameters.
_SMALLEST_SHARE = 0.05

#: Share of voxels from which on a sentence of advice is worth reading, and a bound is named.
_MENTIONED = 0.1
_WRITTEN = 0.005
_MOST = 0.5

_SENTENCES = read_table("sentences")["scan"]
_DOUBTS = read_table("sentences")["doubts"]

_SCALES = (1.0, 0.1, 0.01)  # of typical tissue, at which a parameter may be determined
_NEGLIGIBLE = 1e-4  # of the high end of an interval: a low end up to that is written as 0
_FEWEST_KEPT = 10_000  # voxels whose intervals are kept for a median, where there are as many


class DoubtReason(IntEnum):
    """
    Why a parameter of a voxel is in doubt.

    Of several reasons `NO_RESIDUALS` counts, then `INSEPARABLE`, or else the first from the top,
    but `NEAR_NOISE` before `DECAYED`. `FEW_MEASUREMENTS` takes the place of `UNCERTAIN`.
    """

    NONE = 0
    NO_INFLUENCE = 1
    NOT_DETERMINED = 2
    AT_BOUND = 3
    UNCERTAIN = 4
    DECAYED = 5
    NEAR_NOISE = 6
    NO_RESIDUALS = 7
    FREE_WATER = 8
    MAY_BE_ABSENT = 9
    INSEPARABLE = 10
    FEW_MEASUREMENTS = 11


# Of these reasons the data set no limits to a parameter.
_UNDETERMINED = (
    DoubtReason.NO_INFLUENCE,
    DoubtReason.NOT_DETERMINED,
    DoubtReason.MAY_BE_ABSENT,
    DoubtReason.INSEPARABLE,
)


def doubt_reasons(result: Any, intervals: NDArray[np.float64]) -> NDArray[np.uint8]:
    """
    Find why parameters of a `FitResult` are in doubt.

    Shapes: `intervals` (2, n_voxels, n_parameters, 2) at `LEVELS`; returns (n_voxels,
    n_parameters) codes of `DoubtReason`, 0 where a voxel was not fitted or a parameter is fixed.
    """
    model = result.model
    inner, outer = intervals
    reasons = np.zeros(result.parameters.shape, np.uint8)
    with np.errstate(invalid="ignore"):
        errors = (inner[..., 1] - inner[..., 0]) / 2
        # Student's t widens intervals at 95 % by far more than those at 68 %.
        is_noise_known = result.noise is not None or result.inputs.sigma is not None
        few = (result.degrees_of_freedom <= FEW_DEGREES) & (not is_noise_known)
        errors[few] = np.ptp(outer[few], axis=2) / 4
        for j, parameter in enumerate(model.parameters):
            low, high = result.bounds[j]
            column = reasons[:, j]
            if model.cumulant and parameter.name == model.cumulant[0]:
                decay = result[model.cumulant[1]] * result.protocol.b_ms_per_um2.max()
                column[(decay > DECAYED) & (outer[:, j, 0] > 0)] = DoubtReason.DECAYED
                # Fluids whose signal is near the noise of their residuals, fitted without a floor.
                near = not is_noise_known and needs_floor(result, residual_levels(result))
                column[near & (outer[:, j, 0] > 0)] = DoubtReason.NEAR_NOISE
            is_uncertain = errors[:, j] > largest_error(parameter, result.parameters[:, j])
            column[is_uncertain] = DoubtReason.UNCERTAIN
            column[is_uncertain & few] = DoubtReason.FEW_MEASUREMENTS
            at_artificial = result.at_high[:, j] & (high != 1 or not is_share(parameter))
            at_artificial |= result.at_low[:, j] & (low != 0)
            column[at_artificial] = DoubtReason.AT_BOUND
            if not parameter.is_amplitude and np.isfinite(high - low):
                is_wide = outer[:, j, 1] - outer[:, j, 0] >= UNDETERMINED_SHARE * (high - low)
                # Up to a cap that moves with D: tissue has intervals as wide, but not from zero.
                most = low + UNDETERMINED_SHARE * (result.upper_bounds(j) - low)
                is_wide |= (outer[:, j, 0] <= low) & (outer[:, j, 1] >= most)
                column[is_wide] = DoubtReason.NOT_DETERMINED
    # Also far below typical values, because those may leave no signal, and with other ratios,
    # because parameters of equal boxes have equal ones.
    tissue = typical_tissue(model)
    slopes = _slopes(result, np.outer(_SCALES, tissue * np.linspace(1, 1.5, len(tissue))))
    free = np.flatnonzero(~result.is_known)
    # What the protocol does not determine in any tissue, although residuals may be zero.
    if np.isfinite(slopes).all():
        # Curves that rise beyond a turning point have slopes whose squares overflow.
        largest = np.abs(slopes).max(axis=1, keepdims=True)
        scaled_slopes = (slopes / np.where(largest > 0, largest, 1))[..., free]
        sd = precision.standard_deviations(scaled_slopes, np.zeros((len(slopes), len(free))))
        reasons[:, free[np.isinf(sd).all(axis=0)]] = DoubtReason.INSEPARABLE
    # At the ends of a share, the parameters of the compartment that is gone have no influence.
    is_measured = (slopes != 0).any(axis=(0, 1))
    for j, parameter in enumerate(model.parameters):
        if not is_share(parameter):
            continue
        low, high = outer[:, j].T
        for end, (nearest, farthest) in enumerate(((low, high), (1 - high, 1 - low))):
            tissue = typical_tissue(model)
            tissue[j] = end
            is_gone = is_measured & (_slopes(result, tissue)[0] == 0).all(axis=0)
            is_gone[j] = False
            # Nothing is known of a compartment that may be absent: on simulated tissue at SNR 20
            # to 200, the error of Dv is 2 to 15 times larger where the interval of f includes 0.
            may_be_absent = np.outer(nearest <= _NEGLIGIBLE * farthest, is_gone)
            reasons[may_be_absent & (reasons == DoubtReason.NONE)] = DoubtReason.MAY_BE_ABSENT
            reasons[np.ix_(farthest < _SMALLEST_SHARE, is_gone)] = DoubtReason.NO_INFLUENCE
    for j, name in enumerate(model.names):
        if name in TISSUE_T2:
            unseen = (reasons[:, j] == DoubtReason.NONE) & is_raised_by_water(result)
            reasons[unseen, j] = DoubtReason.FREE_WATER
    if not is_noise_known:
        reasons[result.degrees_of_freedom < 1] = DoubtReason.NO_RESIDUALS
        reasons[:, result.is_known] = DoubtReason.NONE
    # numpy is slow along short axes.
    is_known = np.isfinite(outer[..., 0]) & np.isfinite(outer[..., 1])
    reasons[~is_known] = DoubtReason.NONE
    return reasons


def _slopes(result: Any, tissues: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give derivatives of the signals of tissues (n_tissues, n_measurements, n_parameters)."""
    with np.errstate(all="ignore"):
        return precision.signal_jacobian(result.model, tissues, result.protocol)


def least_weighted_signals(result: Any) -> NDArray[np.float64]:
    """
    Average what a `FitResult` was fitted to at the lowest b-value and shortest echo time.

    Shapes: returns (n_voxels,), NaN where nothing was measured there, or no inputs are kept.
    """
    if result.inputs is None:
        return np.full(len(result.cost), np.nan)
    return lowest_signals(result.inputs.signals, result.protocol)


@dataclass
class DoubtTally:
    """Counts of doubts over the parts of an image, and what to say of them."""

    model: SignalModel
    bounds: tuple[tuple[float, float], ...]  # the box that was searched
    monotonic: tuple[str, ...] = ()  # parameters whose upper bound keeps the signal falling
    # What helps where b-values are too high for the model, and where the noise is not known.
    lower_b: str = "leave out the highest b-values"
    noise_remedy: str = "give the noise (sigma)"
    mentioned_high_b: float = _MENTIONED  # share of the voxels from which it is told

    def __post_init__(self) -> None:
        n_parameters = len(self.model.names)
        self.n_fitted = self.n_counted = 0
        self.at_low = np.zeros(n_parameters, np.int64)
        self.at_high = np.zeros(n_parameters, np.int64)
        # Of these, at a bound of the voxel's own, which its b-values and diffusivity make.
        self.at_cap = np.zeros(n_parameters, np.int64)
        self.reasons = np.zeros((n_parameters, max(DoubtReason) + 1), np.int64)
        self.starts_disagree = 0
        self.below_noise = 0
        # Of the same voxels.
        self._signals = SpreadSample(_FEWEST_KEPT)
        self._ends = SpreadSample(_FEWEST_KEPT)
        self._flags = SpreadSample(_FEWEST_KEPT)
        self.free = np.ones(n_parameters, bool)
        self._lacks_high_b = False
        self._separation = ""  # what helps where the protocol does not tell parameters apart

    def add(self, result: Any) -> NDArray[np.uint8]:
        """
        Count the voxels of one part, a `FitResult`.

        Shapes: returns codes (n_voxels, n_parameters), which `recount` understands.
        """
        fitted = np.logical_and.reduce([np.isfinite(column) for column in result.parameters.T])
        self.n_fitted += int(np.count_nonzero(fitted))
        codes = result.doubt_reasons + _AT_LOW * result.at_low + _AT_HIGH * result.at_high
        # Leaving out the highest b-values does not help where they are too low for a kurtosis.
        self._lacks_high_b = bool(self.monotonic and missing_high_b(result.protocol))
        for name in self.monotonic:
            j = self.model.names.index(name)
            is_capped = result.at_high[:, j] & (result.upper_bounds(j) < self.bounds[j][1])
            codes[is_capped, j] += _AT_CAP
        codes[result.starts_disagree] += _DISAGREE
        self._count(codes, fitted)
        self.free = ~result.is_known
        if result.method in ("ols", "wls"):
            self.noise_remedy = _SENTENCES["log_linear"]
        if result.inputs is not None and result.inputs.sigma is not None:
            self.noise_remedy = ""
            is_below = least_weighted_signals(result) < result.inputs.sigma
            self.below_noise += int(np.count_nonzero(is_below & fitted))
        reasons = result.doubt_reasons[fitted]
        if not self._separation and (reasons == DoubtReason.INSEPARABLE).any():
            known = np.array(self.model.names)[result.is_known].tolist()
            self._separation = separating_remedy(result.protocol, self.model, known)
        # Which parameters are a well-measured zero.
        is_none = reasons == DoubtReason.NONE
        for j, parameter in enumerate(self.model.parameters):
            if self.bounds[j][0] != 0 or parameter.is_amplitude:
                is_none[:, j] = False
                continue
            # Column by column: a copy of all ends of a slab would be large.
            low, high = (result.outer_intervals[:, j, side][fitted] for side in (0, 1))
            is_none[:, j] &= (low <= 0) & (high <= 2 * largest_error(parameter, 0.0))
        is_undetermined = np.isin(reasons, _UNDETERMINED)
        at_bound = (result.at_low | result.at_high)[fitted]
        rows = np.flatnonzero(fitted)
        self._signals.add(least_weighted_signals(result), rows)
        self._ends.add(result.outer_intervals, rows)
        self._flags.add(np.stack([is_none, is_undetermined, at_bound], 1), np.arange(len(rows)))
        return codes

    def recount(self, codes: NDArray[np.uint8], voxels: NDArray[np.bool_]) -> None:
        """
        Let all shares be of some voxels alone, such as those without air, by the codes from `add`.

        Shapes: `codes` (..., n_parameters), `voxels` (...).
        """
        for counts in (self.at_low, self.at_high, self.at_cap, self.reasons):
            counts[:] = 0
        self.n_counted = self.starts_disagree = 0
        self._count(codes, voxels)

    def _count(self, codes: NDArray[np.uint8], voxels: NDArray[np.bool_]) -> None:
        self.n_counted += int(np.count_nonzero(voxels))
        # Of each parameter alone: a copy of all codes of an image would be large.
        for j in range(len(self.reasons)):
            column = codes[..., j][voxels]
            self.at_low[j] += np.count_nonzero(column & _AT_LOW)
            self.at_high[j] += np.count_nonzero(column & _AT_HIGH)
            self.at_cap[j] += np.count_nonzero(column & _AT_CAP)
            self.reasons[j] += np.bincount(column % _AT_LOW, minlength=max(DoubtReason) + 1)
        self.starts_disagree += int(np.count_nonzero(column & _DISAGREE))

    @property
    def too_high_b(self) -> bool:
        """Whether b-values are too high for the model in as many voxels as advice mentions."""
        return any(self._too_high(int(j)) for j in np.flatnonzero(self.free))

    def _too_high(self, j: int) -> str:
        """Name the reason why the b-values are too high for a parameter; empty if they are not."""
        n_counted = max(self.n_counted, 1)
        if self._lacks_high_b:
            return ""
        is_capped = self.at_cap[j] / n_counted >= self.mentioned_high_b
        if is_capped and self.model.names[j] in self.monotonic:
            return "AT_CAP"
        is_decayed = self.reasons[j, DoubtReason.DECAYED] / n_counted >= self.mentioned_high_b
        return DoubtReason.DECAYED.name if is_decayed else ""

    @property
    def share(self) -> NDArray[np.float64]:
        """Share of the counted voxels in which each parameter is in doubt."""
        return 1 - self.reasons[:, DoubtReason.NONE] / max(self.n_counted, 1)

    @property
    def main_reasons(self) -> dict[str, str]:
        """Name of the reason that is told of each doubtful parameter, a key of ``doubts``."""
        reasons = {name: self._reason(j) for j, name in enumerate(self.model.names)}
        return {name: reason for name, reason in reasons.items() if reason}

    @property
    def remedies(self) -> dict[str, str]:
        """What helps each doubtful parameter, as the sentence of advice about it says."""
        return {name: self._remedy(name, reason) for name, reason in self.main_reasons.items()}

    def _reason(self, j: int) -> str:
        """Name the reason that is told of a parameter; an empty text without doubt."""
        counts = self.reasons[j].copy()
        counts[DoubtReason.NONE] = 0
        if not counts.any():
            return ""
        if too_high := self._too_high(j):
            return too_high
        if counts[DoubtReason.NEAR_NOISE] >= _MENTIONED * self.n_counted:
            return DoubtReason.NEAR_NOISE.name
        reason = DoubtReason(int(counts.argmax()))
        undetermined = counts[list(_UNDETERMINED)]
        if undetermined.sum() >= counts.sum() / 2:
            reason = _UNDETERMINED[undetermined.argmax()]
        if reason in (DoubtReason.NOT_DETERMINED, DoubtReason.AT_BOUND) and self._is_beyond(j):
            return "ONE_BOUND"
        if reason != DoubtReason.AT_BOUND:
            return reason.name
        if 2 * self.at_cap[j] > counts.max() and not self._lacks_high_b:
            return "AT_CAP"
        return reason.name if self._at_bounds(j) else DoubtReason.UNCERTAIN.name

    def _is_beyond(self, j: int) -> bool:
        """Tell whether most doubts are due to one bound, which may be wrong and is not natural."""
        low, high = self.bounds[j]
        # Values that are not determined end at both bounds, and any inseparable ones at either.
        excess = self.at_low[j] + self.at_cap[j] - self.at_high[j]
        is_most = 2 * abs(excess) > self.reasons[j, DoubtReason.NONE + 1 :].sum()
        is_natural = low == 0 if excess > 0 else high == 1 and is_share(self.model.parameters[j])
        return bool(is_most) and not (is_natural or self._separation)

    def _remedy(self, name: str, reason: str) -> str:
        """Say what helps against a reason of doubt; the name of the parameter is filled in."""
        # One remedy for one cause.
        if self._separation and reason in ("NOT_DETERMINED", "INSEPARABLE"):
            return self._separation
        remedies = [self.lower_b] if reason in ("AT_CAP", "DECAYED") else []
        if reason == "AT_CAP":
            remedies.append(self.noise_remedy)
        remedy = ", or ".join(filter(None, remedies))
        return remedy or _DOUBTS[reason][1].format(name=name, noise_remedy=self.noise_remedy)

    def readings(
        self, is_tissue: Callable[[NDArray], NDArray[np.bool_]] | None = None
    ) -> dict[str, str]:
        """
        Write the 95 % interval of each free parameter in the typical voxel: medians of the ends.

        If most voxels do not determine the parameter, the searched range is written instead; if it
        is a well-measured zero in most of them, the median of the high ends as a limit. Voxels
        whose signals at the lowest b-value are not tissue are left out.
        """
        readings: dict[str, str] = {}
        if not self.n_fitted:
            return readings
        ends, flags = self._ends.rows(), self._flags.rows()
        if is_tissue is not None:
            in_tissue = is_tissue(self._signals.rows())
            if in_tissue.any():
                ends, flags = ends[in_tissue], flags[in_tissue]
        is_none, is_undetermined, at_bound = flags.swapaxes(0, 1)
        for j in np.flatnonzero(self.free):
            parameter = self.model.parameters[j]
            unit = f" {parameter.unit}" if parameter.unit and not parameter.is_amplitude else ""
            low_end, high_end = np.median(ends[:, j], axis=0)
            # The low end of a fraction may miss 0 by rounding errors.
            low_end = low_end if abs(low_end) > _NEGLIGIBLE * high_end else 0.0
            low, high = f"{rounded(low_end, 3)}", f"{rounded(high_end, 3)}"
            if self.reasons[j, DoubtReason.NO_RESIDUALS] >= _MOST * self.n_counted:
                text = "not known"
            elif is_undetermined[:, j].mean() >= _MOST:
                text = f"not determined ({self._searched(int(j))} searched)"
            elif is_none[:, j].mean() >= _MOST:
                # A diffusivity is not found: it is a value that is 0 or nearly so.
                text = "not distinguishable from 0" if parameter.unit else "none found"
                # Signals that rise with b have both ends at 0.
                if limit := np.median(ends[is_none[:, j], j, 1]):
                    text += f", < {rounded(limit, 3)}{unit}"
            elif low == high and at_bound[:, j].mean() >= _MOST:
                text = f"at the bound {low}{unit}"
            else:
                text = f"{low} to {high}{unit}"
            readings[parameter.name] = text
        return readings

    def advice(self) -> list[str]:
        """Say what the data do not tell: parameter, share of voxels, remedy; empty if sound."""
        if not self.n_fitted:
            return []
        sentences = []
        below_noise = self.below_noise / self.n_fitted
        if below_noise >= _MOST:
            sentences.append(_SENTENCES["below_noise"].format(share=percent(below_noise)))
        without = self.reasons[:, DoubtReason.NO_RESIDUALS].max() / self.n_counted
        if without >= _MENTIONED:
            remedy = _DOUBTS["NO_RESIDUALS"][1]
            text = _SENTENCES["no_residuals"].format(share=percent(without), remedy=remedy)
            return [*sentences, text]
        reasons = self.main_reasons.items()
        if names := [name for name, reason in reasons if reason == DoubtReason.INSEPARABLE.name]:
            text = _SENTENCES["inseparable" if len(names) > 1 else "without_effect"]
            sentences.append(text.format(names=", ".join(names), remedy=self._separation))
        sentences += filter(None, (self._sentence(int(j)) for j in np.flatnonzero(self.free)))
        disagree = self.starts_disagree / self.n_counted
        if disagree >= _MENTIONED:
            sentences.append(_SENTENCES["starts_disagree"].format(share=percent(disagree)))
        return sentences

    def _searched(self, j: int) -> str:
        """Write the range that was searched for a parameter."""
        parameter = self.model.parameters[j]
        low, high = self.bounds[j]
        if parameter.name in self.monotonic:
            smaller_of = f"the smaller of {high:g} and " if np.isfinite(high) else ""
            return f"{low:g} to {smaller_of}3/(b_max·D)"
        if np.isfinite(high):
            return f"{low:g} to {self._bound(j, high)}".replace("-", "−")
        return f"from {self._bound(j, low)}"

    def _bound(self, j: int, bound: float) -> str:
        """Write a bound of a parameter."""
        parameter = self.model.parameters[j]
        if parameter.is_amplitude:
            return f"{bound:g} times the largest signal of the voxel" if bound else "0"
        return f"{bound:g} {parameter.unit}".rstrip().replace("-", "−")

    def _at_bounds(self, j: int) -> str:
        """Say at which bounds of a parameter how many voxels are."""
        low, high = self.bounds[j]
        ends = {
            f"lower bound {self._bound(j, low)}": self.at_low[j],
            "upper bound 3/(b_max·D)": self.at_cap[j],
            f"upper bound {self._bound(j, high)}": self.at_high[j] - self.at_cap[j],
        }
        # Fewer would be written as 0 %.
        least = _WRITTEN * self.n_counted
        named = {end: percent(n / self.n_counted) for end, n in ends.items() if n >= least}
        return ", ".join(f"at its {end} in {share}" for end, share in named.items())

    def _sentence(self, j: int) -> str:
        """Say in how many voxels a parameter is in doubt, why, and what helps; empty if in few."""
        name, reason = self.model.names[j], self._reason(j)
        is_mentioned = self.share[j] >= _MENTIONED or self._too_high(j)
        if reason == DoubtReason.INSEPARABLE.name or not is_mentioned:
            return ""
        counts = self.reasons[j] / self.n_counted
        undetermined = counts[list(_UNDETERMINED)].sum()
        at_bounds, share, note = self._at_bounds(j), self.share[j], ""
        if reason == "AT_CAP":
            share = self.at_cap[j] / self.n_counted
            if undetermined >= _MENTIONED:
                note = _SENTENCES["at_cap_undetermined"].format(undetermined=percent(undetermined))
        elif reason in [cause.name for cause in _UNDETERMINED]:
            reason, share = "NOT_DETERMINED", undetermined
            for cause in (DoubtReason.NO_INFLUENCE, DoubtReason.MAY_BE_ABSENT):
                if counts[cause] >= _MENTIONED:
                    note += f", in {percent(counts[cause])} because {_DOUBTS[cause.name][0]}"
        elif reason != "ONE_BOUND":
            share = counts[DoubtReason[reason]]
        total = percent(self.share[j])
        part = "" if percent(share) == total else f" in {percent(share)}"
        cause_text = _SENTENCES[reason].format(
            name=name,
            part=part,
            limit=DECAYED,
            searched="; ".join(filter(None, [f"{self._searched(j)} searched", at_bounds])),
            at_bounds=at_bounds,
            note=note,
        )
        return _SENTENCES["doubt"].format(
            name=name, total=total, cause=cause_text, remedy=self.remedies[name]
        )
