"""Screening of signals: values that are left out of fits, and voxels that are not fitted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmrifit._utils.threads import run_in_chunks
from dmrifit.engine.models import read_table
from dmrifit.engine.protocol import ZERO_B, Protocol

_SENTENCES = read_table("sentences")

#: Largest share of a voxel's measurements that a fit goes without.
MOST_LEFT_OUT = 0.2

#: Share of the largest value, and number of steps of the stored numbers, below which a signal may
#: be rounded to zero.
CLEAR_SHARE, CLEAR_STEPS = 0.1, 10.0

# How far scaled whole numbers, which may have been of single precision, are from whole steps.
_STEP_ERROR, _SINGLE_ERROR = 1e-3, 2e-7

# Beyond free water (3 µm²/ms) and beyond iron-rich tissue: no voxel decays faster.
_FASTEST_DIFFUSION = 5.0  # µm²/ms
_SHORTEST_T2 = 20.0  # ms

_CHUNK = 8192  # voxels whose values stay in the processor's cache


class Refusal(IntEnum):
    """Why a voxel is not fitted, as far as its values tell."""

    NONE = 0
    NO_POSITIVE_VALUE = 1
    LEFT_OUT = 2
    NEGATIVE_MAGNITUDE = 3
    NO_AMPLITUDE = 4


#: The reasons, as they follow the number of voxels.
REASONS = {Refusal[name]: text for name, text in _SENTENCES["refusals"].items()}


@dataclass(frozen=True)
class Screening:
    """Counts of the values of each voxel that are not plain data, all of shape (n_voxels,)."""

    n_not_finite: NDArray[np.int16]  # left out
    n_outside: NDArray[np.int16]  # zeros outside the field of view, left out (`zeros_outside`)
    # Values ≤ 0 in a fit of logarithms or a geometric mean, left out.
    n_without_logarithm: NDArray[np.int16]
    n_negative: NDArray[np.int16]  # negative values that are data
    refusal: NDArray[np.uint8]  # codes of `Refusal`

    @classmethod
    def empty(cls, n_voxels: int) -> Screening:
        """Make the counts of voxels that are all plain data."""
        rows = np.zeros((4, n_voxels), np.int16)
        return cls(rows[0], rows[1], rows[2], rows[3], np.zeros(n_voxels, np.uint8))

    @property
    def n_left_out(self) -> NDArray[np.int16]:
        """Number of values of each voxel that are left out of its fit."""
        return self.n_not_finite + self.n_outside + self.n_without_logarithm

    def then(self, other: Screening) -> Screening:
        """Join with the screening of the same voxels after this one was applied."""
        return replace(
            other,
            n_not_finite=self.n_not_finite,
            n_outside=self.n_outside,
            n_without_logarithm=self.n_without_logarithm + other.n_without_logarithm,
            refusal=np.where(self.refusal, self.refusal, other.refusal),
        )


@dataclass(frozen=True)
class Screen:
    """
    The rule by which values are left out and voxels refused.

    Values that are not finite and zeros outside the field of view are left out, up to
    `MOST_LEFT_OUT` of the measurements and as long as the others have as many different contrasts
    as there are free parameters; above that the voxel is refused. Negative values are data.
    """

    protocol: Protocol
    n_free: int = 0  # number of free parameters
    is_rician: bool = False  # refuses voxels with a negative magnitude
    # Refuses voxels whose mean signal at b < 10 s/mm² is not above 0.
    needs_amplitude: bool = False
    needs_logarithms: bool = False  # counts zeros and negative values, which have none

    def apply(
        self, signals: NDArray, n_threads: int | None = 1, *, in_place: bool = False
    ) -> tuple[NDArray, Screening]:
        """
        Screen all voxels.

        Shapes: `signals` (n_voxels, n_measurements); returns the same array where nothing has to
        be written or `in_place`, or else a copy, NaN in zeros outside the field of view and in
        refused voxels. Infinite values, and voxels without a value above 0, stay as they are.
        """
        screening = Screening.empty(len(signals))
        changes: list[tuple[NDArray[np.intp], NDArray[np.float64]]] = []

        def screen_chunk(chunk: slice) -> None:
            values = signals[chunk]
            with np.errstate(invalid="ignore"):
                # Two quick passes: in most chunks every value is positive.
                if values.min() > 0 and values.max() < np.inf:
                    return
                is_plain = ((values > 0) & (values < np.inf)).all(axis=1)
            rows = np.flatnonzero(~is_plain) + chunk.start
            cleaned, is_changed = self._screen_rows(signals, rows, screening)
            if is_changed.any():
                changes.append((rows[is_changed], cleaned[is_changed]))

        run_in_chunks(screen_chunk, len(signals), _CHUNK, n_threads)
        if changes and not in_place:
            signals = np.array(signals, dtype=np.float64)
        for rows, values in changes:
            signals[rows] = values
        return signals, screening

    def _screen_rows(
        self, signals: NDArray, rows: NDArray[np.intp], screening: Screening
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """
        Screen some voxels, and write their counts.

        Shapes: returns values (n_rows, n_measurements), NaN in zeros outside the field of view and
        in refused rows, and whether a row has to be written.
        """
        values = np.array(signals[rows], dtype=np.float64)
        is_finite = np.isfinite(values)
        is_outside = zeros_outside(values, self.protocol)
        is_negative = is_finite & (values < 0)
        is_kept = is_finite & ~is_outside
        screening.n_not_finite[rows] = (~is_finite).sum(axis=1)
        screening.n_outside[rows] = is_outside.sum(axis=1)
        if self.needs_logarithms:
            screening.n_without_logarithm[rows] = (is_kept & (values <= 0)).sum(axis=1)
        else:
            screening.n_negative[rows] = is_negative.sum(axis=1)
        refusal = np.zeros(len(rows), np.uint8)
        if self.needs_amplitude:
            unweighted = self.protocol.b < ZERO_B
            total = np.where(is_kept, values, 0.0)[:, unweighted].sum(axis=1)
            refusal[~(total > 0)] = Refusal.NO_AMPLITUDE
        if self.is_rician:
            refusal[is_negative.any(axis=1)] = Refusal.NEGATIVE_MAGNITUDE
        has_signal = ((values > 0) & is_finite).any(axis=1)
        refusal[~has_signal] = Refusal.NO_POSITIVE_VALUE
        is_poor = (~is_kept).sum(axis=1) > MOST_LEFT_OUT * values.shape[1]
        te = np.zeros(len(self.protocol)) if self.protocol.te is None else self.protocol.te
        contrasts, number = np.unique([self.protocol.b, te], axis=1, return_inverse=True)
        number = number.reshape(-1)  # NumPy 2.0.0 gives it two axes
        n_all = contrasts.shape[1]
        n_contrasts = sum(is_kept[:, number == i].any(axis=1).astype(int) for i in range(n_all))
        is_poor |= n_contrasts < min(self.n_free, n_all)
        refusal[is_poor] = Refusal.LEFT_OUT
        screening.refusal[rows] = refusal
        values[is_outside] = np.nan
        values[refusal > 0] = np.nan
        # The kernels refuse voxels without a positive value themselves.
        is_changed = is_outside.any(axis=1) | ((refusal > 0) & has_signal)
        return values, is_changed


class ScreeningTally:
    """Counts, over parts of an image, of values left out or negative, and of refused voxels."""

    def __init__(self) -> None:
        self._n: Counter[str] = Counter()
        self.n_negative = 0
        self._refused = np.zeros(len(Refusal), np.int64)

    def add(self, screening: Screening, is_fitted: NDArray[np.bool_]) -> None:
        """Count the voxels of one part; negative values count in fitted voxels alone."""
        for name in _SENTENCES["left_out"]:
            self._n[name] += int(getattr(screening, name).sum())
        self._n["incomplete voxels"] += int(np.count_nonzero(screening.n_left_out))
        negative = screening.n_negative[is_fitted]
        self.n_negative += int(negative.sum())
        self._n["voxels with them"] += int(np.count_nonzero(negative))
        self._n["voxels"] += len(is_fitted)
        self._refused += np.bincount(screening.refusal[~is_fitted], minlength=len(Refusal))

    @property
    def n_lost(self) -> int:
        """Number of voxels that were not fitted."""
        return int(self._refused.sum())

    @property
    def reasons(self) -> dict[str, int]:
        """Why voxels were not fitted, with their numbers."""
        return {
            REASONS[refusal]: int(self._refused[refusal])
            for refusal in (*list(Refusal)[1:], Refusal.NONE)
            if self._refused[refusal]
        }

    def describe(self) -> dict[str, Any]:
        """Describe for the sidecar what was not plain data; of plain data, nothing."""
        sections: dict[str, Any] = {}
        left_out = {
            text: self._n[name] for name, text in _SENTENCES["left_out"].items() if self._n[name]
        }
        if left_out:
            sections["LeftOut"] = {
                "Reason": ", ".join(f"{n} {text}" for text, n in left_out.items()),
                "Values": sum(left_out.values()),
                "Voxels": self._n["incomplete voxels"],
            }
        if self.n_negative:
            sections["Negative"] = {
                "Description": _SENTENCES["scan"]["negative"],
                "Values": self.n_negative,
                "Voxels": self._n["voxels with them"],
            }
        if self.n_lost:
            sections["NotFitted"] = {
                "Voxels": self.n_lost,
                "Share": self.n_lost / self._n["voxels"],
                "Reasons": self.reasons,
            }
        return sections


def zeros_outside(values: NDArray[np.float64], protocol: Protocol) -> NDArray[np.bool_]:
    """
    Find the zeros that lie outside the field of view of their volume.

    Motion correction and registration fill with zeros what a volume did not see. A zero may also
    be a low signal that was rounded or clipped, which is data: leaving it out would rebuild a
    noise floor. So a zero counts as outside only where the voxel's signal must be clear: where the
    mean of its positive values at contrasts that are weighted at least as much (neither b nor TE
    is smaller) is at least a tenth of its largest value and, if all its values are multiples of
    one step (whole numbers times the scale factor of a file), at least ten steps. Where there are
    no such contrasts, the largest signal that the others would leave after the fastest decay
    (5 µm²/ms, T2 of 20 ms) takes the place of the mean. The unit of the values has no influence.

    Shapes: `values` (n_voxels, n_measurements); returns the same.
    """
    is_outside = np.zeros(values.shape, bool)
    is_positive = (values > 0) & np.isfinite(values)
    rows = np.flatnonzero((values == 0).any(axis=1) & is_positive.any(axis=1))
    if not rows.size:
        return is_outside
    values, is_positive = values[rows], is_positive[rows]
    positive = np.where(is_positive, values, 0.0)
    top = positive.max(axis=1)
    shares = positive / top[:, None]
    b = protocol.b_ms_per_um2
    te = np.zeros(len(b)) if protocol.te is None else protocol.te
    more_b = np.maximum(b[None, :] - b[:, None], 0.0)  # of the second axis over the first
    more_te = np.maximum(te[None, :] - te[:, None], 0.0)
    is_weighted = ((more_b == 0) & (more_te == 0)).T.astype(float)
    # Not by a library of linear algebra, which may round a row differently among other rows.
    n_weighted = np.einsum("nj,ij->ni", is_positive.astype(float), is_weighted)
    level = np.einsum("nj,ij->ni", shares, is_weighted) / np.maximum(n_weighted, 1)
    kept = np.exp(-_FASTEST_DIFFUSION * more_b - more_te / _SHORTEST_T2)
    for i in np.flatnonzero(((values == 0) & (n_weighted == 0)).any(axis=0)):
        alone = n_weighted[:, i] == 0
        level[alone, i] = (shares[alone] * kept[:, i]).max(axis=1)
    is_clear = (values == 0) & (level >= CLEAR_SHARE * (1 - _SINGLE_ERROR))
    steps = _steps(shares, np.where(is_clear, level, np.inf).min(axis=1) / CLEAR_STEPS)
    is_outside[rows] = is_clear & (level >= CLEAR_STEPS * (1 - _SINGLE_ERROR) * steps[:, None])
    return is_outside


def _steps(shares: NDArray[np.float64], limits: NDArray[np.float64]) -> NDArray[np.float64]:
    """
    Find the step whose multiples are all positive values of a voxel; 0 where it is below a limit.

    Shapes: `shares` (n_voxels, n_measurements), of the largest value; the others (n_voxels,).
    """
    steps = np.zeros(len(shares))
    lowest = np.where(shares > 0, shares, np.inf).min(axis=1)
    n = 1  # steps that the lowest value has
    left = np.flatnonzero(lowest > limits)
    while left.size:
        multiples = shares[left] * (n / lowest[left, None])
        error = np.abs(multiples - np.rint(multiples)) - _SINGLE_ERROR * multiples
        # Values that are all equal are one step, as in air where the image holds 0 and 1.
        is_found = (error <= _STEP_ERROR).all(axis=1)
        steps[left[is_found]] = lowest[left[is_found]] / n
        n += 1
        left = left[~is_found & (lowest[left] > n * limits[left])]
    return steps
