"""Judgement of a scan as a whole: whether the bulk of its scores is that of healthy scans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit._utils.affines import MM3_PER_ML, voxel_volume
from dmrifit.io.components import label_components
from dmrifit.io.parameter_json import RefusedError, refuse_keys

__all__ = ["DIFFERENT", "HealthyScans", "ScanFigures", "mean_over_scans", "scan_figures"]

#: What is said of a scan whose bulk is shifted in both hemispheres.
DIFFERENT = (
    "this scan differs from the training scans as a whole (protocol, noise, age?): anomalies "
    "cannot be told from that"
)

_QUANTILES = (0.5, 0.75)
#: Two-sided, of one quantile in one hemisphere; both hemispheres have to lie beyond it.
_LEVEL = 0.01
_FEWEST_SCANS = 3
_FEWEST_VOXELS = 20  # in a hemisphere
#: Share of the voxels of a hemisphere that has to remain when the largest component is left out.
#: Gliomas fill 5 to 20 % of a brain; what leaves less is no part of the scan but the scan.
_LEAST_REST = 0.25
_RIM = 2  # voxels around a component that its smoothed scores reach
_LEAST_SD = 1e-6
_N_RESAMPLES = 2000


@dataclass(frozen=True)
class ScanFigures:
    """
    What the scores of one scan are summarized by.

    Attributes
    ----------
    share : float
        Share of the scored voxels above the threshold.
    n_components : int
        Number of components after opening.
    largest_mL : float
        Volume of the largest of them.
    bulk : tuple of 4 float
        Median and 75 % quantile of the scores in the hemisphere of small x, then in the other,
        outside the largest component and its mirror image, unless these fill three quarters of a
        hemisphere; NaN where a hemisphere has hardly a voxel.
    """

    share: float
    n_components: int
    largest_mL: float
    bulk: tuple[float, ...]


@dataclass(frozen=True)
class HealthyScans:
    """
    Figures of healthy scans that were scored by a detector that had not learned from them.

    Attributes
    ----------
    scans : tuple of ScanFigures
        One for each scan.
    spread : tuple of 2 float, or None
        Interval of the threshold over draws of these scans.
    """

    scans: tuple[ScanFigures, ...]
    spread: tuple[float, float] | None = None

    def differs(self, figures: ScanFigures) -> bool | None:
        """
        Tell whether a scan differs as a whole.

        Median or 75 % quantile has to lie outside the 99 % prediction interval of the healthy
        scans (of a t distribution, so that few scans give a wide one) in both hemispheres and
        towards the same side: one lesion is not in both, and what is was left out with its mirror
        image.

        Parameters
        ----------
        figures : ScanFigures
            Of the scan.

        Returns
        -------
        bool or None
            None where there are fewer than three healthy scans, or too few voxels.
        """
        return _is_shifted(figures.bulk, [scan.bulk for scan in self.scans])

    def n_different(self) -> int:
        """Count the healthy scans that differ from the others as a whole (leave one out)."""
        bulks = [scan.bulk for scan in self.scans]
        verdicts = [_is_shifted(bulk, bulks[:i] + bulks[i + 1 :]) for i, bulk in enumerate(bulks)]
        return verdicts.count(True)

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for a model file."""
        rows = [asdict(scan) | {"bulk": list(scan.bulk)} for scan in self.scans]
        return {"scans": rows, "spread": None if self.spread is None else list(self.spread)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> HealthyScans:
        """Read plain values of a model file."""
        refuse_keys(content, {"scans", "spread"}, "part of healthy scans", complete=True)
        scans = []
        for row in content["scans"]:
            names = {field.name for field in fields(ScanFigures)}
            refuse_keys(row, names, "figure of a healthy scan", complete=True)
            bulk = tuple(float(value) for value in row["bulk"])
            if len(bulk) != 2 * len(_QUANTILES):
                raise RefusedError(f"the bulk of a healthy scan has {len(bulk)} values")
            share, largest = float(row["share"]), float(row["largest_mL"])
            scans.append(ScanFigures(share, int(row["n_components"]), largest, bulk))
        spread = content["spread"]
        if spread is not None:
            low, high = spread
            spread = (float(low), float(high))
        return cls(tuple(scans), spread)


def scan_figures(
    scores: NDArray[np.floating],
    scored: NDArray[np.bool_],
    marked: NDArray[np.bool_],
    opened: NDArray[np.bool_],
    affine: NDArray[np.float64],
) -> ScanFigures:
    """
    Summarize the scores of a scan.

    Parameters
    ----------
    scores : ndarray of shape (x, y, z)
        The map, with axes in RAS order.
    scored : ndarray of bool, shape (x, y, z)
        Voxels that count.
    marked, opened : ndarray of bool, shape (x, y, z)
        Voxels above the threshold, and after opening.
    affine : ndarray of shape (4, 4)
        Of the map.

    Returns
    -------
    ScanFigures
        The figures.
    """
    components = label_components(opened)
    counts = np.bincount(components.ravel())[1:]
    n_scored = int(np.count_nonzero(scored))
    largest = int(counts.max(initial=0))
    planes = np.flatnonzero(scored.any(axis=(1, 2)))
    # Twice the plane between the hemispheres; planes may lie between two voxels.
    middle = int(planes[0] + planes[-1])
    x = 2 * np.arange(scored.shape[0])
    sides = (x < middle, x > middle)
    rest = scored
    if largest:
        rest = scored & ~_with_mirror_image(components == 1 + counts.argmax(), middle)
    for side in sides:
        n_rest = np.count_nonzero(rest[side])
        if n_rest < max(_FEWEST_VOXELS, _LEAST_REST * np.count_nonzero(scored[side])):
            rest = scored
    bulk: list[float] = []
    for side in sides:
        values = scores[side][rest[side]]
        if len(values) < _FEWEST_VOXELS:
            bulk += [float("nan")] * len(_QUANTILES)
        else:
            bulk += np.quantile(values, _QUANTILES).tolist()
    return ScanFigures(
        share=float(np.count_nonzero(marked & scored) / n_scored),
        n_components=len(counts),
        largest_mL=float(largest * voxel_volume(affine) / MM3_PER_ML),
        bulk=tuple(bulk),
    )


def mean_over_scans(values: ArrayLike) -> tuple[float, float, float]:
    """Compute the mean over scans with its 95 % bootstrap interval, NaN for a single scan."""
    numbers = np.asarray(values, dtype=float)
    mean = float(numbers.mean())
    if len(numbers) < 2:
        return mean, float("nan"), float("nan")
    rng = np.random.default_rng(0)
    draws = rng.integers(len(numbers), size=(_N_RESAMPLES, len(numbers)))
    low, high = np.quantile(numbers[draws].mean(axis=1), (0.025, 0.975))
    return mean, float(low), float(high)


def _with_mirror_image(component: NDArray[np.bool_], middle: int) -> NDArray[np.bool_]:
    """Give a component (x, y, z) with its rim and what lies opposite in the other hemisphere."""
    from scipy.ndimage import binary_dilation

    wide = binary_dilation(component, iterations=_RIM)
    opposite = np.zeros_like(wide)
    x = np.flatnonzero(wide.any(axis=(1, 2)))
    x = x[(middle - x >= 0) & (middle - x < len(wide))]
    opposite[middle - x] = wide[x]
    return np.asarray(wide | opposite)


def _is_shifted(bulk: Sequence[float], healthy: Sequence[Sequence[float]]) -> bool | None:
    """Compare the bulk of a scan with those of healthy scans."""
    from scipy.special import stdtrit

    values = np.asarray(healthy, dtype=float).reshape(-1, 2 * len(_QUANTILES))
    values = values[np.isfinite(values).all(axis=1)]
    n = len(values)
    if n < _FEWEST_SCANS or not np.isfinite(bulk).all():
        return None
    sd = np.maximum(values.std(axis=0, ddof=1), _LEAST_SD) * np.sqrt(1 + 1 / n)
    limit = stdtrit(n - 1, 1 - _LEVEL / 2)
    shift = ((np.asarray(bulk) - values.mean(axis=0)) / sd).reshape(2, len(_QUANTILES))
    is_above = (shift > limit).all(axis=0)
    is_below = (shift < -limit).all(axis=0)
    return bool(is_above.any() or is_below.any())
