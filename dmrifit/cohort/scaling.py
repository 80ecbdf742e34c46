"""The scale of a patient's images: one number, computed from the source images alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit._utils.checks import check_number, check_word, filled
from dmrifit._utils.counts import counted
from dmrifit.engine.means import mean_of_finite
from dmrifit.engine.protocol import TE_MATCH, Protocol

__all__ = ["PatientScale"]

_RULES = ("percentile",)
# Scanners write nominal values with errors of rounding. Of b-values only relative to the value:
# 0.2 and 1 s/mm² may both be measured on purpose.
_B_MATCH_RELATIVE = 0.02


@dataclass(frozen=True)
class PatientScale:
    """
    The rule for the one number that a patient's images are divided by.

    Magnitudes have no absolute unit: coil loading and receiver gain differ between patients. One
    number per patient removes that and keeps what a number per voxel would not, the contrast
    between tissues, which carries T2 when all source images have one echo time. The number comes
    from the source images only, so that it is the same for a new patient who has no others;
    targets and noise levels are divided by it too.

    Parameters
    ----------
    percentile : float, default=95
        Which percentile of the signal at the lowest b-value and the shortest echo time.
    rule : {"percentile"}, default="percentile"
        Name of the rule, for model files.

    Raises
    ------
    ValueError
        If the rule is unknown or the percentile is not in (0, 100].

    Examples
    --------
    >>> import numpy as np
    >>> protocol = Protocol([0, 800], te=80)
    >>> PatientScale(percentile=50).of(np.array([[1.0, 0.4], [3.0, 0.9], [2.0, 0.8]]), protocol)
    2.0
    """

    percentile: float = 95.0
    rule: str = "percentile"

    def __post_init__(self) -> None:
        check_word("the rule for the scale of a patient", self.rule, _RULES)
        name = "the percentile of the patient's scale"
        check_number(name, self.percentile, above=0, most=100)
        object.__setattr__(self, "percentile", float(self.percentile))

    def of(self, source_signals: ArrayLike, source_protocol: Protocol) -> float:
        """
        Compute a patient's number.

        Parameters
        ----------
        source_signals : array_like of shape (n_voxels, n_source)
            The source magnitudes of one patient, all voxels of the body mask. NaN and infinite
            ones are left out.
        source_protocol : Protocol
            The n_source measurements.

        Returns
        -------
        float
            The number to divide by, in the unit of the signals; positive and finite. Repeated
            measurements at the lowest b-value and shortest echo time are averaged first.

        Raises
        ------
        ValueError
            If the shape is wrong, no voxel has a usable value, or the number is not positive.
        """
        signals = np.asarray(filled(source_signals))
        if signals.ndim != 2 or signals.shape[1] != len(source_protocol):
            raise ValueError(
                f"the patient's scale needs signals of shape (n_voxels, {len(source_protocol)}), "
                f"one column for each source measurement, not {signals.shape}"
            )
        columns = reference_columns(source_protocol)
        # A mean over the usable repeats: one that is missing must not cost the voxel.
        means = mean_of_finite(signals[:, columns].astype(np.float64))
        means = means[~np.isnan(means)]
        if not means.size:
            raise ValueError(
                "the patient's scale cannot be computed: none of "
                f"{counted(len(signals), 'voxel')} has a finite signal at "
                f"{source_protocol.labels[columns[0]]}; check the image and the body mask"
            )
        scale = float(np.percentile(means, self.percentile))
        if not (np.isfinite(scale) and scale > 0):
            raise ValueError(
                f"the patient's scale is {scale:g}: percentile {self.percentile:g} of the signal "
                f"at {source_protocol.labels[columns[0]]} over {counted(len(signals), 'voxel')} "
                "must be positive; check that the body mask covers the body"
            )
        return scale

    def to_dict(self) -> dict[str, Any]:
        """
        Give the rule as plain values for JSON.

        Returns
        -------
        dict
            Keys ``rule`` and ``percentile``.
        """
        return {"rule": self.rule, "percentile": self.percentile}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> PatientScale:
        """
        Make the rule from what `to_dict` gave.

        Parameters
        ----------
        fields : mapping
            As returned by `to_dict`.

        Returns
        -------
        PatientScale
            The same rule.

        Raises
        ------
        ValueError
            If keys are missing or unknown, or values are out of range.
        """
        if set(fields) != {"rule", "percentile"}:
            raise ValueError(
                f"the scale of a patient has the keys rule and percentile, not {sorted(fields)}"
            )
        return cls(percentile=fields["percentile"], rule=fields["rule"])


def echo_times(protocol: Protocol) -> NDArray[np.float64]:
    """Return the echo times in ms, equal ones where the protocol has none."""
    return np.zeros(len(protocol)) if protocol.te is None else protocol.te


def contrast_order(protocol: Protocol) -> NDArray[np.intp]:
    """Sort measurements by echo time, then b, whatever the order in which they were made."""
    return np.lexsort((protocol.b, echo_times(protocol)))


def reference_columns(protocol: Protocol) -> NDArray[np.intp]:
    """Find the measurements at the lowest b-value of the shortest echo time."""
    te = echo_times(protocol)
    shortest = te <= te.min() + TE_MATCH
    lowest = protocol.b[shortest].min()
    return np.flatnonzero(shortest & (protocol.b <= (1 + _B_MATCH_RELATIVE) * lowest))
