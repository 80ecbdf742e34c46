"""Detections in a scan: maps on the grid of its file, and a table of lesions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from anomaly.scans.preparation import PreparedScan
from anomaly.scans.whole_scan import HealthyScans, ScanFigures
from dmrifit._utils.affines import MM3_PER_ML, voxel_volume
from dmrifit.io.components import label_components

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Detection:
    """
    Detections in a scan.

    Parameters
    ----------
    scan : PreparedScan
        The scan, and the way back to the grid of its file.
    map : ndarray of shape (x, y, z)
        Scores on the grid of the detector, higher where less like healthy scans; 0 outside the
        brain.
    found : ndarray of bool, shape (x, y, z)
        Where the map is above the threshold, inside the brain; without fluid where tissues are
        known.
    opened : ndarray of bool, shape (x, y, z)
        The same after opening.
    lesions : DataFrame
        A row for each connected part of `opened`, the largest first: ``number``, ``n_voxels``,
        ``volume_mL``, ``diameter_mm`` (of the ball of that volume), ``x``, ``y``, ``z`` (center in
        mm RAS+), ``score`` (the largest in it) and ``mean_score``.
    threshold : float
        Score above which a voxel is anomalous; NaN where each scan has its own.
    figures : ScanFigures
        Share above the threshold, components, and the bulk of the scores.
    differs : bool, optional
        Whether the scan differs from healthy ones as a whole (`HealthyScans.differs`), so that
        anomalies cannot be told from that; None if this cannot be judged.
    opening : int, default=3
        Edge in voxels of the cube of the opening.
    healthy : HealthyScans, optional
        The healthy scans that the scan was compared with as a whole; None if the model has none.
    healthy_per_scan : float, optional
        Mean number of lesions that this threshold and opening mark in a healthy scan; None if the
        model does not say it, as for another threshold or opening than its own.
    no_guarantee : str, default=""
        Why the guarantee of the model's threshold does not hold here; "" where it holds, or the
        model has none.
    """

    scan: PreparedScan
    map: NDArray[np.float32]
    found: NDArray[np.bool_]
    opened: NDArray[np.bool_]
    lesions: pd.DataFrame
    threshold: float
    figures: ScanFigures
    differs: bool | None = None
    opening: int = 3
    healthy: HealthyScans | None = None
    healthy_per_scan: float | None = None
    no_guarantee: str = ""

    def images(self) -> dict[str, nib.Nifti1Image]:
        """Give the maps on the grid of the file."""
        parts = {"map": self.map, "binary": self.found, "opened": self.opened}
        return {name: self.scan.image(values) for name, values in parts.items()}


def lesions_of(
    found: NDArray[np.bool_], scores: NDArray[np.floating], affine: NDArray[np.float64]
) -> pd.DataFrame:
    """List the connected components of a mask (x, y, z), the largest first."""
    import pandas as pd
    from scipy import ndimage

    parts = label_components(found)
    numbers = np.arange(1, int(parts.max(initial=0)) + 1)
    counts = np.bincount(parts.ravel())[1:]
    volumes = counts * voxel_volume(affine) / MM3_PER_ML
    voxels = np.reshape(ndimage.center_of_mass(parts > 0, parts, numbers), (-1, 3))
    x, y, z = (voxels @ affine[:3, :3].T + affine[:3, 3]).T
    table = pd.DataFrame(
        {
            "number": numbers,
            "n_voxels": counts,
            "volume_mL": volumes,
            # Of a ball of the same volume, because components have any shape.
            "diameter_mm": np.cbrt(6 * volumes * MM3_PER_ML / np.pi),
            "x": x,
            "y": y,
            "z": z,
            "score": np.asarray(ndimage.maximum(scores, parts, numbers), dtype=np.float64),
            "mean_score": np.asarray(ndimage.mean(scores, parts, numbers), dtype=np.float64),
        }
    )
    return table.sort_values("volume_mL", ascending=False, kind="stable", ignore_index=True)
