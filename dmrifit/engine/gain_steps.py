"""Groups of volumes of different gain, told by signals that rise where they must fall."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmrifit.engine.exact_math import mean_of_finite
from dmrifit.engine.protocol import Protocol

#: Voxels that the check looks at.
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
_DIRECTIONAL_B = 100.0  # s/mm², from which on the signal depends on the direction
_FEWEST_DIRECTIONS = 3


@dataclass(frozen=True)
class GainStep:
    """Two groups of volumes whose signals cannot belong to one series."""

    low: str  # contrasts of the group of lower gain
    high: str  # contrasts of the group of higher gain
    ratio: float  # gain of the first over that of the second, at most: the signal falls in between

    @property
    def description(self) -> str:
        """What was found and what to do about it, in a sentence without its stop."""
        return (
            f"volumes {self.low} have at most {self.ratio:.2f} times the gain of volumes "
            f"{self.high}: the signal rises where it must fall with b or echo time; check whether "
            "two series were joined, scale them to a common contrast, or fit them apart"
        )

    def describe(self) -> dict[str, Any]:
        """Describe the step for a sidecar."""
        return {
            "Description": self.description,
            "Low": self.low,
            "High": self.high,
            "Ratio": self.ratio,
        }


@dataclass(frozen=True)
class _Contrast:
    b: float
    te: float
    columns: NDArray[np.intp]


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

    Shapes: `signals` (n_voxels, n_measurements), of at least five voxels or regions to tell noise.
    """
    contrasts, values = _bright_means(signals, _contrasts(protocol))
    if len(values) < _FEWEST_VOXELS:
        return None
    echo_times = sorted({contrast.te for contrast in contrasts})
    for te in echo_times:
        members = [i for i, contrast in enumerate(contrasts) if contrast.te == te]
        step = _step_along_b(values[:, members], [contrasts[i] for i in members])
        if step is not None:
            return step
    return _step_along_te(values, contrasts, echo_times)


def _contrasts(protocol: Protocol) -> list[_Contrast]:
    """List the contrasts that can be compared, by echo time and b."""
    te = np.zeros(len(protocol)) if protocol.te is None else protocol.te
    contrasts = []
    for echo_time in np.unique(te):
        columns = np.flatnonzero(te == echo_time)
        for shell in _shells(columns[np.argsort(protocol.b[columns], kind="stable")], protocol):
            b = float(np.mean(protocol.b[shell]))
            contrasts.append(_Contrast(b, float(echo_time), shell))
    # Scanners write the b-value that each direction really had; traces share theirs.
    has_single = protocol.directions is None and any(
        len(contrast.columns) >= _FEWEST_DIRECTIONS
        and contrast.b >= _DIRECTIONAL_B
        and np.ptp(protocol.b[contrast.columns]) > 0
        for contrast in contrasts
    )

    def is_directional(shell: NDArray[np.intp]) -> bool:
        if protocol.b[shell].max() < _DIRECTIONAL_B:
            return False
        if protocol.directions is None:
            return has_single and len(shell) < _FEWEST_DIRECTIONS
        axes = np.unique(np.abs(protocol.directions[shell]).round(3), axis=0)
        return bool(protocol.directions[shell].any()) and len(axes) < _FEWEST_DIRECTIONS

    return [contrast for contrast in contrasts if not is_directional(contrast.columns)]


def _shells(columns: NDArray[np.intp], protocol: Protocol) -> list[NDArray[np.intp]]:
    """Split measurements in the order of b where the next b-value is no longer the first one."""
    shells: list[list[int]] = []
    for column in columns.tolist():
        if shells and protocol.b[column] <= protocol.b[shells[-1][0]] * _SAME_B + _ROUNDING:
            shells[-1].append(column)
        else:
            shells.append([column])
    return [np.array(shell) for shell in shells]


def _bright_means(
    signals: NDArray, contrasts: list[_Contrast]
) -> tuple[list[_Contrast], NDArray[np.float64]]:
    """Average the contrasts that were measured, of voxels that are positive and not air."""
    values = np.asarray(signals, dtype=np.float64)
    measured, means = [], []
    for contrast in contrasts:
        mean = mean_of_finite(values[:, contrast.columns])
        if not np.isnan(mean).all():
            measured.append(contrast)
            means.append(mean)
    if not measured:
        return [], np.empty((0, 0))
    table = np.stack(means, axis=1)
    table = table[((table > 0) & np.isfinite(table)).all(axis=1)]
    if len(table):
        brightness = table.max(axis=1)
        table = table[brightness >= _BRIGHT * np.percentile(brightness, 99)]
    return measured, table


def _median_rise(ratios: NDArray) -> tuple[float, float]:
    """Give the median of logarithms of ratios, and its standard error."""
    logarithms = np.log(ratios)
    median = float(np.median(logarithms))
    spread = 1.4826 * np.median(np.abs(logarithms - median))
    # Of a median of normal values; where voxels are few, it is itself uncertain.
    return median, float(1.2533 * spread / np.sqrt(len(logarithms)))


def _step_along_b(values: NDArray, contrasts: list[_Contrast]) -> GainStep | None:
    """Compare neighbors along b at one echo time."""
    levels = [0]
    sizes = []
    n_rises = 0
    for i in range(1, len(contrasts)):
        rise, error = _median_rise(values[:, i] / values[:, i - 1])
        gap = 1e-3 * (contrasts[i].b - contrasts[i - 1].b)
        beyond_flow = rise - np.log((np.exp(-_FLOW * gap) + np.exp(-_WATER * gap)) / 2)
        level = levels[-1]
        if rise > np.log(MOST_RISE) and rise > _CERTAIN * error:
            level, n_rises = 1, n_rises + 1
            sizes.append(rise)
        elif beyond_flow < -np.log(MOST_RISE) and beyond_flow < -_LIKELY * error:
            level = -1
            sizes.append(-beyond_flow)
        if level != levels[-1] and levels[-1] == 0:
            # Up to the first step all contrasts are in the other group.
            levels = [-level] * len(levels)
        levels.append(level)
    if not n_rises:
        return None
    low = [contrast for contrast, level in zip(contrasts, levels, strict=True) if level < 0]
    high = [contrast for contrast, level in zip(contrasts, levels, strict=True) if level > 0]
    ratio = float(np.exp(-np.median(sizes)))
    return GainStep(_listed(low), _listed(high), ratio)


def _step_along_te(
    values: NDArray, contrasts: list[_Contrast], echo_times: list[float]
) -> GainStep | None:
    """Compare neighbors along the echo time at the b-values that both have."""
    lowest: dict[float, NDArray] = {}
    for i, contrast in enumerate(contrasts):
        lowest.setdefault(contrast.te, values[:, i])
    low, *others = lowest.values()
    # Signals were divided by those of the lowest b-value.
    if others and all(np.allclose(low, other) for other in others):
        return None
    for early, late in pairwise(echo_times):
        rises = []
        for i, first in enumerate(contrasts):
            for j, second in enumerate(contrasts):
                is_same_b = abs(second.b - first.b) <= (_SAME_B - 1) * first.b + _ROUNDING
                if first.te == early and second.te == late and is_same_b:
                    rises.append(np.log(values[:, j] / values[:, i]))
        if not rises:
            continue
        rise, error = _median_rise(np.exp(np.median(rises, axis=0)))
        if rise > np.log(MOST_RISE) and rise > _CERTAIN * error:
            return GainStep(f"at TE {early:g} ms", f"at TE {late:g} ms", float(np.exp(-rise)))
    return None


def _listed(contrasts: list[_Contrast]) -> str:
    """Write contrasts of one echo time, neighbors as a range."""
    b = ", ".join(f"{contrast.b:.4g}" for contrast in contrasts)
    te = f" at TE {contrasts[0].te:g} ms" if contrasts[0].te else ""
    return f"b = {b} s/mm²{te}"
