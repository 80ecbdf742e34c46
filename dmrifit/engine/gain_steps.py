"""Groups of volumes of different gain, told by signals that rise where they must fall."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmrifit.engine.means import mean_of_finite
from dmrifit.engine.models import MODELS, SignalModel, read_table
from dmrifit.engine.noise_choice import lowest_signals
from dmrifit.engine.protocol import TE_MATCH, Protocol

#: Number of voxels, about, that the check looks at.
GAIN_VOXELS = 2000

#: A signal may rise by so much with b or TE; in vivo medians of one series rise by up to 12 %.
MOST_RISE = 1.15

_FEWEST_VOXELS = 5  # fewer do not tell their noise
_CERTAIN, _LIKELY = 3.0, 2.0  # standard errors of a median, for rises and for falls beside them
# Half of the signal may be flow, the other half free water: nothing decays faster.
_FLOW, _WATER = 100.0, 3.5  # µm²/ms
_BRIGHT = 0.2  # of the 99th percentile; darker voxels are air
_SAME_B = 1.03  # shells are written as 995, 1000 and 1005
_ROUNDING = 0.05  # s/mm²
_UNDIVIDED = 0.05  # of the signal at b = 0, by which it changes with the echo time
_DIRECTIONAL_B = 100.0  # s/mm², from which on the signal depends on the direction
_FEWEST_DIRECTIONS = 3


@dataclass(frozen=True)
class GainStep:
    """Two groups of volumes whose signals cannot belong to one series."""

    low: str  # contrasts of the group of lower gain
    high: str  # contrasts of the group of higher gain
    ratio: float  # gain of the first over that of the second, at most: the signal falls in between
    kind: str = "gain_step"  # or reversed_b, where no step remains in this order; or either one

    @property
    def description(self) -> str:
        """What was found and what to do about it, in a sentence without its stop."""
        return read_table("sentences")["scan"][self.kind].format(**vars(self))

    def describe(self) -> dict[str, Any]:
        """Describe the step for a sidecar."""
        fields = {"Low": self.low, "High": self.high, "Ratio": self.ratio}
        return {"Description": self.description, **fields}


def relative_doubt(signals: NDArray, protocol: Protocol, model: SignalModel | None = None) -> str:
    """
    Say that signals were divided by their own b = 0 for a model with T2, or not for one of ratios.

    An empty text if signals and model belong together, or the model has no relaxation. Shapes:
    `signals` (n_voxels, n_measurements).
    """
    sentences = read_table("sentences")["scan"]
    if model == MODELS["t2-ivim-relative"]:
        ratios = _te_ratios(signals, protocol)
        te, b = protocol.te, protocol.b
        is_comparable = te is not None and len({b[te == one].min() for one in te}) == 1
        differ = ratios.size > 0 and np.ptp([1, *np.median(ratios, axis=0)]) > _UNDIVIDED
        return sentences["undivided"] if is_comparable and differ else ""
    has_relaxation = model is None or any(p.unit == "ms" for p in model.parameters)
    is_doubted = has_relaxation and _are_relative(signals, protocol)
    return sentences["relative"] if is_doubted else ""


def _are_relative(signals: NDArray, protocol: Protocol) -> bool:
    """Tell whether all echo times have the same signal at the lowest b-value."""
    ratios = _te_ratios(signals, protocol)
    return ratios.size > 0 and np.allclose(ratios, 1)


def _te_ratios(signals: NDArray, protocol: Protocol) -> NDArray[np.float64]:
    """Divide signals at the lowest b-value by those at the first echo time (n_voxels, n_te-1)."""
    if protocol.te is None or np.ptp(protocol.te) <= TE_MATCH:
        return np.empty((0, 0))
    groups = [np.flatnonzero(protocol.te == te) for te in np.unique(protocol.te)]
    means = [lowest_signals(signals[:, group], protocol.take(group)) for group in groups]
    values = np.stack(means, axis=1)
    values = values[(np.isfinite(values) & (values > 0)).all(axis=1)]
    return values[:, 1:] / values[:, :1]


def find_gain_step(signals: NDArray, protocol: Protocol) -> GainStep | None:
    """
    Look for volumes of different gain, such as of two series with other receiver settings.

    At one echo time the signal falls with b, and at one b with the echo time. Where the median
    over voxels rises by more than 15 % from one contrast to the next, and by more than three
    standard errors, the gain has changed. It has changed back where the signal falls with b as
    much faster than a half of fast flow (100 µm²/ms) and a half of free water. The groups are the
    contrasts between these steps.

    Signals of every echo time that are divided by their own at b = 0 are compared along b alone.
    Shells of one or two directions depend on the tissue's orientation, and are not compared. Where
    no directions are known, b-values that differ within a shell show that volumes are of single
    directions, because scanners write the b-value that each direction really had.

    Where the signal falls with the b-values in the reverse order, this order is the likely fault
    of three b-values or more; of two b-values a step of the gain is as likely.

    Shapes: `signals` (n_voxels, n_measurements), of at least five voxels or regions to tell noise.
    """
    step = _step_of(signals, protocol)
    if step is None:
        return None
    # Volumes keep their echo times: these are known from elsewhere.
    te = None if protocol.te is None else protocol.te[::-1]
    turned = Protocol(protocol.b, te, directions=protocol.directions)
    # Volumes that are alike except for a few neither rise in that order, nor do they fall.
    mirrored = Protocol(protocol.b.max() - protocol.b, te, directions=protocol.directions)
    rises, falls = (_step_of(signals[:, ::-1], order) for order in (turned, mirrored))
    if rises is not None or falls is None:
        return step
    n_b = len(_comparable_shells(protocol, np.zeros(len(protocol))))
    return replace(step, kind="reversed_b" if n_b > 2 else "either")


def _step_of(signals: NDArray, protocol: Protocol) -> GainStep | None:
    """Find the first step of gain, along b or along the echo time."""
    te = np.zeros(len(protocol)) if protocol.te is None else protocol.te
    shells = _comparable_shells(protocol, te)
    means = [mean_of_finite(np.asarray(signals[:, shell], np.float64)) for shell in shells]
    measured = [i for i, mean in enumerate(means) if not np.isnan(mean).all()]
    if not measured:
        return None
    values = np.stack([means[i] for i in measured], axis=1)
    values = values[((values > 0) & np.isfinite(values)).all(axis=1)]
    if len(values):
        brightness = values.max(axis=1)
        values = values[brightness >= _BRIGHT * np.percentile(brightness, 99)]
    if len(values) < _FEWEST_VOXELS:
        return None
    b = np.array([protocol.b[shells[i]].mean() for i in measured])
    te = np.array([te[shells[i][0]] for i in measured])
    for echo_time in np.unique(te):
        step = _step_along_b(values[:, te == echo_time], b[te == echo_time], echo_time)
        if step is not None:
            return step
    return None if _are_relative(signals, protocol) else _step_along_te(values, b, te)


def _comparable_shells(protocol: Protocol, te: NDArray[np.float64]) -> list[list[int]]:
    """List the measurements of each contrast that can be compared, by echo time and b."""
    b = protocol.b
    shells: list[list[int]] = []
    for i in np.lexsort([b, te]).tolist():
        first = shells[-1][0] if shells else i
        if not shells or te[i] != te[first] or b[i] > b[first] * _SAME_B + _ROUNDING:
            shells.append([])
        shells[-1].append(i)
    # Scanners write the b-value that each direction really had; traces share theirs.
    has_single = protocol.directions is None and any(
        len(shell) >= _FEWEST_DIRECTIONS
        and b[shell].mean() >= _DIRECTIONAL_B
        and np.ptp(b[shell]) > 0
        for shell in shells
    )
    comparable = []
    for shell in shells:
        n_directions = len(shell) if has_single else _FEWEST_DIRECTIONS
        if protocol.directions is not None and protocol.directions[shell].any():
            axes = np.abs(protocol.directions[shell]).round(3)
            n_directions = len(np.unique(axes, axis=0))
        if b[shell].max() < _DIRECTIONAL_B or n_directions >= _FEWEST_DIRECTIONS:
            comparable.append(shell)
    return comparable


def _median_and_error(logarithms: NDArray) -> tuple[float, float]:
    """Give the median of logarithms of ratios, and its standard error."""
    median = float(np.median(logarithms))
    spread = 1.4826 * np.median(np.abs(logarithms - median))
    # Of a median of normal values; where voxels are few, it is itself uncertain.
    return median, float(1.2533 * spread / np.sqrt(len(logarithms)))


def _step_along_b(values: NDArray, b: NDArray, te: float) -> GainStep | None:
    """Find steps of gain between neighbors along b at one echo time; None without a rise."""
    jumps = np.zeros(len(b))
    for i in range(1, len(b)):
        rise, error = _median_and_error(np.log(values[:, i] / values[:, i - 1]))
        gap = 1e-3 * (b[i] - b[i - 1])
        beyond_flow = rise - np.log((np.exp(-_FLOW * gap) + np.exp(-_WATER * gap)) / 2)
        if rise > np.log(MOST_RISE) and rise > _CERTAIN * error:
            jumps[i] = rise
        elif beyond_flow < -np.log(MOST_RISE) and beyond_flow < -_LIKELY * error:
            jumps[i] = beyond_flow
    if not (jumps > 0).any():
        return None
    steps = np.flatnonzero(jumps)
    ratio = float(np.exp(-np.median(np.abs(jumps[steps]))))
    # Up to the first step all contrasts are in the other group.
    is_high = np.repeat([jumps[steps[0]] < 0, *(jumps[steps] > 0)], np.diff([0, *steps, len(b)]))
    place = f" s/mm² at TE {te:g} ms" if te else " s/mm²"
    low, high = (
        f"b = {', '.join(f'{value:.4g}' for value in group)}{place}"
        for group in (b[~is_high], b[is_high])
    )
    return GainStep(low, high, ratio)


def _step_along_te(values: NDArray, b: NDArray, te: NDArray) -> GainStep | None:
    """Find a step of gain between neighboring echo times at their common b-values, or None."""
    is_same_b = np.abs(b - b[:, None]) <= (_SAME_B - 1) * b[:, None] + _ROUNDING
    for early, late in pairwise(np.unique(te)):
        i, j = np.nonzero(is_same_b & (te[:, None] == early) & (te == late))
        if not i.size:
            continue
        rise, error = _median_and_error(np.median(np.log(values[:, j] / values[:, i]), axis=1))
        if rise > np.log(MOST_RISE) and rise > _CERTAIN * error:
            return GainStep(f"at TE {early:g} ms", f"at TE {late:g} ms", float(np.exp(-rise)))
    return None
