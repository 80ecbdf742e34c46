"""Anomaly detection by scikit-learn's isolation forest on features of each voxel."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import IsolationForest

from anomaly.detectors.base import AnomalyDetector, Scans
from anomaly.detectors.features import FEATURES, voxel_features
from dmrifit._utils.checks import Count
from dmrifit._utils.randomness import RandomState, Seed
from dmrifit._utils.threads import check_jobs, one_thread
from dmrifit.model_files.registry import register

__all__ = ["IsolationForestDetector"]


@register
@dataclass(repr=False, eq=False)
class IsolationForestDetector(AnomalyDetector):
    """
    Score of a voxel: how easily an isolation forest separates it from voxels of healthy scans.

    The forest is `sklearn.ensemble.IsolationForest`. A voxel is described by its features and
    optionally by its position. Without a position, tumor tissue that looks like cerebrospinal
    fluid or a mixture of tissues is not unusual.

    Parameters
    ----------
    features : tuple of str, default=("mean", "spread", "local mean")
        Of `anomaly.detectors.features.FEATURES`.
    threshold, calibration, scale : optional
        As in `VoxelwiseGaussian`; calibration is 0.25 by default.
    smooth_mm : float, default=6.0
        Standard deviation in mm of a Gaussian, by which the score is smoothed inside the mask.
    spacing : float or tuple of float of length 3, default=4.0
        Edge or edges of a voxel in mm; `SeriesDetector` sets those of the scans.
    position : {"world", "depth", None}, default="world"
        ``"world"`` adds the three coordinates of the voxel in the grid, from 0 to 1, which scans
        of one orientation share; ``"depth"`` the distance from the edge of the mask, which does
        not need a common grid.
    n_voxels : int, default=100000
        Number of training voxels, drawn at random from all healthy scans.
    n_estimators : int, default=100
        Number of trees.
    max_samples : int, default=256
        Number of voxels that each tree is trained on. The depth of trees is limited to its
        logarithm to the base 2, so that more voxels resolve smaller differences.
    n_jobs : int, optional
        Of the forest. The result does not depend on it.
    random_state : int, RandomState or None, default=None
        Seed of the voxels and of the forest.

    Attributes
    ----------
    forest_ : sklearn.ensemble.IsolationForest
        Fitted.

    References
    ----------
    Liu, Ting, Zhou, ICDM 413–422, 2008.
    """

    _one_size: ClassVar[bool] = False
    _estimator_names: ClassVar[tuple[str, ...]] = ("forest_",)

    features: tuple[str, ...] = ("mean", "spread", "local mean")
    _: KW_ONLY
    position: Literal["world", "depth"] | None = "world"
    n_voxels: Count = 100_000
    n_estimators: Count = 100
    max_samples: Count = 256
    calibration: str | float | int | None = 0.25
    n_jobs: int | None = None
    random_state: RandomState = None

    def _check_parameters(self) -> None:
        if not self.features or not set(self.features) <= set(FEATURES):
            raise ValueError(
                f"features must be a tuple of some of {', '.join(FEATURES)}, not {self.features!r}"
            )
        check_jobs(self.n_jobs)

    def _fit_scans(self, scans: Scans) -> None:
        seed = Seed(self.random_state)
        rng = np.random.default_rng(seed.derived("voxels"))
        # As many voxels of each scan, so that a large brain does not dominate.
        share = max(1, int(self.n_voxels) // len(scans))
        rows = []
        for i in range(len(scans)):
            scan_rows = self._rows(scans, i)
            sample = rng.choice(len(scan_rows), min(share, len(scan_rows)), replace=False)
            rows.append(scan_rows[np.sort(sample)])
        table = np.concatenate(rows)
        self.forest_ = IsolationForest(
            n_estimators=int(self.n_estimators),
            max_samples=min(int(self.max_samples), len(table)),
            n_jobs=self.n_jobs,
            random_state=seed.derived("forest") % 2**31,
        )
        with one_thread():
            self.forest_.fit(table)

    def _rows(self, scans: Scans, i: int) -> NDArray[np.float32]:
        """Compute the features of each voxel of the mask."""
        mask = scans.mask(i)
        names = list(self.features)
        if self.position == "depth":
            names.append("depth")
        columns = list(voxel_features(scans.signal(i), mask, names)[:, mask])
        if self.position == "world":
            for index, n in zip(np.nonzero(mask), mask.shape, strict=True):
                columns.append(np.asarray(index / max(n - 1, 1), dtype=np.float32))
        return np.stack(columns, axis=1)

    def _score_scan(self, scans: Scans, i: int) -> NDArray[np.floating]:
        mask = scans.mask(i)
        with one_thread():
            scores = -self.forest_.score_samples(self._rows(scans, i))
        return self._smooth_scores(scores, mask)

    def _check_restored(self) -> None:
        n_features = len(self.features) + {"world": 3, "depth": 1, None: 0}[self.position]
        is_forest = isinstance(self.forest_, IsolationForest)
        if not is_forest or getattr(self.forest_, "n_features_in_", None) != n_features:
            raise ValueError(f"its forest does not take {n_features} features")
