"""Anomaly detection by the residual of principal components of healthy scans."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from anomaly.detectors.base import AnomalyDetector, Scans
from dmrifit._utils.checks import Count
from dmrifit._utils.threads import one_thread
from dmrifit.model_files.registry import register

__all__ = ["PCADetector"]

#: Signals of each scan that are multiplied at a time, in double precision.
_SLAB_VALUES = 2**16


@register
@dataclass(repr=False, eq=False)
class PCADetector(AnomalyDetector):
    """
    Score of a voxel: its residual after projection onto principal components of healthy scans.

    A scan, all its voxels in all directions, is one row of the data matrix. There are far fewer
    rows than columns, so the components are computed from the products of scans with each other,
    (n_scans, n_scans); they equal those of a singular value decomposition. Voxels outside a scan's
    mask count as the healthy mean, so that masks may differ.

    For 28 scans of 90 × 90 × 54 voxels, 180 000 of them brain, and 64 directions, 20 components
    take 0.9 GB in memory and in the model file; while it learns, the signals of the brain of all
    scans are in memory once more, 1.3 GB.

    Parameters
    ----------
    n_components : int, default=20
        Number of components, at most one fewer than the scans to learn from; ``len(components_)``
        is the number that was fitted.
    threshold, calibration, scale : optional
        As in `VoxelwiseGaussian`; calibration is 4 by default.
    smooth_mm : float, default=6.0
        Standard deviation in mm of a Gaussian, by which the score is smoothed inside the mask (for
        ``"mean"`` the mean, before its absolute value).
    spacing : float or tuple of float of length 3, default=4.0
        Edge or edges of a voxel in mm; `SeriesDetector` sets those of the scans.
    residual : {"mean", "mean-of-abs"}, default="mean"
        Absolute value of the mean of the residual over directions, in which noise cancels, or the
        mean of its absolute values, in which it does not.

    Attributes
    ----------
    known_ : ndarray of shape (x, y, z)
        Voxels of any healthy mask. The residual of others counts as 0.
    mean_ : ndarray of shape (n_known, channels)
        The healthy mean.
    components_ : ndarray of shape (n_components, n_known, channels)
        Orthonormal.
    explained_variance_ : ndarray of shape (n_components,)
        Of the healthy scans along each component.
    """

    _array_names = ("known_", "mean_", "components_", "explained_variance_")

    n_components: Count = 20
    _: KW_ONLY
    residual: Literal["mean", "mean-of-abs"] = "mean"

    def reconstruct(self, X: Any, masks: Any = None) -> NDArray[np.float32]:
        """
        Rebuild scans from the healthy components.

        Parameters
        ----------
        X, masks : as in `fit`
            The scans may have lesions.

        Returns
        -------
        ndarray of shape (n_scans, x, y, z, channels)
            The reconstructions; 0 outside the mask.

        Raises
        ------
        ValueError
            If scans have another size or other directions than the training scans.
        """
        check_is_fitted(self)
        scans = self._like_learned(Scans(X, masks))
        rebuilt = np.zeros((len(scans), *scans.shape), dtype=np.float32)
        for i in range(len(scans)):
            inside = scans.mask(i)[self.known_]
            signals = self.mean_ + self._explained(self._centered(scans, i))
            rebuilt[i][self.known_] = np.where(inside[:, None], signals, 0)
        return rebuilt

    def _fit_scans(self, scans: Scans) -> None:
        n = len(scans)
        masks = np.stack([scans.mask(i) for i in range(n)])
        self.known_ = masks.any(axis=0)
        inside = masks[:, self.known_]
        # All scans minus the healthy mean, (n_scans, n_known, channels), 0 outside their masks.
        rows = np.empty((*inside.shape, scans.shape[3]), dtype=np.float32)
        for i in range(n):
            rows[i] = scans.signal(i)[self.known_]
            rows[i][~inside[i]] = 0
        self.mean_ = rows.sum(axis=0) / inside.sum(axis=0, dtype=np.float32)[:, None]
        for row, is_inside in zip(rows, inside, strict=True):
            row -= self.mean_
            row[~is_inside] = 0
        flat = rows.reshape(n, -1)
        with one_thread():
            gram = np.zeros((n, n))
            for first in range(0, flat.shape[1], _SLAB_VALUES):
                # In single precision instructions of processors would differ in the last digits.
                wide = flat[:, first : first + _SLAB_VALUES].astype(np.float64)
                gram += wide @ wide.T
            # Scans are far fewer than voxels: the small matrix of their products has the same
            # components.
            variances, weights = np.linalg.eigh(gram)
            order = np.argsort(variances)[::-1][: int(self.n_components)]
            # Rounding errors are no components; n scans have n - 1 at most.
            order = order[variances[order] > variances.max() * 1e-6][: max(n - 1, 0)]
            if not len(order):
                raise ValueError(
                    f"the {n} scans to learn from do not differ, so there are no components; give "
                    "scans of others"
                )
            loadings = (weights[:, order] / np.sqrt(variances[order])).T.astype(np.float32)
            self.components_ = (loadings @ flat).reshape(len(order), *rows.shape[1:])
        self.explained_variance_ = variances[order] / max(n - 1, 1)

    def _centered(self, scans: Scans, i: int) -> NDArray[np.float32]:
        """Subtract the healthy mean from a scan, (n_known, channels), 0 outside its mask."""
        difference = scans.signal(i)[self.known_]
        difference -= self.mean_
        difference[~scans.mask(i)[self.known_]] = 0
        return difference

    def _explained(self, difference: NDArray[np.float32]) -> NDArray[np.float32]:
        """Project a centered scan onto the components."""
        components = self.components_.reshape(len(self.components_), -1)
        with one_thread():
            projected = (components @ difference.ravel()) @ components
        return np.asarray(projected, dtype=np.float32).reshape(difference.shape)

    def _score_scan(self, scans: Scans, i: int) -> NDArray[np.floating]:
        difference = self._centered(scans, i)
        difference -= self._explained(difference)
        if self.residual == "mean-of-abs":
            np.abs(difference, out=difference)
        score, mask = np.zeros(scans.shape[:3], dtype=np.float32), scans.mask(i)
        score[self.known_] = difference.mean(axis=1)
        return np.abs(self._smooth_scores(score[mask], mask))

    def _check_restored(self) -> None:
        n_known = int(self.known_.sum())
        n_components = len(self.explained_variance_)
        size = n_known, self.n_channels_
        shapes: dict[str, Any] = {"known_": self.shape_, "mean_": size}
        shapes |= {"components_": (n_components, *size), "explained_variance_": (n_components,)}
        self._check_shapes(shapes)
        if self.known_.dtype != bool:
            raise ValueError(f"its array known_ is of type {self.known_.dtype}, not bool")
