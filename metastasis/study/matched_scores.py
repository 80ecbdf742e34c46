"""False positives at matched sensitivity, by prior scan and by status of lesions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dmrifit.io.components import label_components
from metastasis.segmentation.operating_points import threshold_curve
from metastasis.study.operating_curves import precision_at_sensitivity, summed_curve

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LEVELS", "STATUSES", "matched_table"]

#: Sensitivities at which methods are compared.
LEVELS = (0.85, 0.9, 0.95)
#: What a lesion can be in comparison with the prior scan.
STATUSES = ("new", "grown", "stable", "shrunk")

_THRESHOLDS = 1 / (1 + np.exp(-np.linspace(-7, 7, 29)))


def matched_table(
    truths: Sequence[NDArray[np.bool_]],
    probabilities: Sequence[NDArray[Any]],
    parts: Mapping[str, Sequence[int]],
    statuses: Sequence[Mapping[int, str]],
    **options: int,
) -> pd.DataFrame:
    """
    Read false positives where the threshold gives a sensitivity, over some of the scans.

    `parts` are the numbers of scans by name, `statuses` those of lesions by number. A row for each
    part and sensitivity of `LEVELS`: ``threshold``, ``false_positives_per_scan``, ``precision``,
    and by status the share of lesions whose highest probability reaches the threshold. NaN where
    no threshold gives the sensitivity; straight lines between thresholds.

    Shapes: `truths` and `probabilities` (x, y, z).
    """
    import pandas as pd

    pairs = zip(truths, probabilities, strict=True)
    curves = [
        threshold_curve([truth], [values], thresholds=_THRESHOLDS, **options)
        for truth, values in pairs
    ]
    peaks = [
        _peaks(*scan, options.get("connectivity", 26))
        for scan in zip(truths, probabilities, statuses, strict=True)
    ]
    rows = []
    for part, numbers in parts.items():
        curve = summed_curve([curves[i] for i in numbers])
        lesions = pd.concat([peaks[i] for i in numbers], ignore_index=True)
        for level in LEVELS:
            point = precision_at_sensitivity(curve, level)
            row: dict[str, Any] = {"part": part, "sensitivity": level}
            for key in ("threshold", "false_positives_per_scan", "precision"):
                row[key] = point[key]
            for status in STATUSES:
                peak = lesions.loc[lesions["status"] == status, "peak"].to_numpy(np.float64)
                is_known = len(peak) > 0 and np.isfinite(point["threshold"])
                row[status] = (
                    float((peak >= point["threshold"]).mean()) if is_known else float("nan")
                )
            rows.append(row)
    return pd.DataFrame(rows)


def _peaks(
    truth: NDArray[np.bool_], values: NDArray[Any], status: Mapping[int, str], connectivity: int
) -> pd.DataFrame:
    """Give the highest probability in each lesion, and its status."""
    import pandas as pd
    from scipy import ndimage

    labels = label_components(truth, connectivity=connectivity)
    numbers = np.arange(1, labels.max(initial=0) + 1)
    peaks = ndimage.maximum(values, labels, numbers) if len(numbers) else []
    words = [status.get(number, "") for number in numbers.tolist()]
    return pd.DataFrame({"peak": np.asarray(peaks, np.float64), "status": words})
