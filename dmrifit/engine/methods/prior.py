"""A normal distribution of parameters in a region, toward which fits of voxels are pulled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dmrifit.engine.models import SignalModel

#: What every page and sidecar says of parameters that were fitted with a prior.
PULLED = (
    "pulled toward the region's mean by a prior learned from its voxels: a lesion that differs "
    "from the region keeps only part of its contrast, so such maps are not for tables of lesions"
)

#: Of the learned covariance in fits of voxels.
WIDENING = 4.0


@dataclass(frozen=True)
class Prior:
    """
    Mean and covariance of transformed parameters in a region.

    Each voxel's parameters p, drawn out from the box to the line by
    u = ln((p − low)/(high − p)), are taken as draws of a normal distribution N(m, C), and its
    signals y as S(u) plus noise of standard deviation σ. The fit then minimizes

        Σ (y − S(u))²/(2σ²) + (u − m)'C⁻¹(u − m)/2,

    minus the logarithm of the posterior density. m and C themselves maximize the likelihood of
    all signals together, by expectation and maximization with a normal approximation to each
    posterior (Dempster et al., 1977): with the modes û and their covariances V of all voxels
    under the present m and C, the next m is the mean of û, and the next C the mean of
    (û − m)(û − m)' + V. The noise thus does not widen C, as it widens the spread of least-squares
    estimates. Amplitudes have no prior, because the receiver's sensitivity decides on them.

    References
    ----------
    Dempster et al., J R Stat Soc B 39:1–38, 1977; Orton et al., Magn Reson Med 71:411–420, 2014.
    """

    names: tuple[str, ...]
    mean: NDArray[np.float64]  # of the transformed parameters, (n_names,)
    covariance: NDArray[np.float64]  # (n_names, n_names)
    sigma: float  # noise that was used where none was given, in units of the signals
    n_voxels: int  # that the prior was learned from

    def describe(self) -> dict[str, object]:
        """Describe the prior for the sidecar."""
        return {
            "Description": PULLED,
            "Parameters": list(self.names),
            "TransformedMean": self.mean.tolist(),
            "TransformedCovariance": self.covariance.tolist(),
            "NoiseStandardDeviation": self.sigma,
            "Voxels": self.n_voxels,
        }

    def expanded(self, model: SignalModel, widening: float = WIDENING) -> tuple[NDArray, NDArray]:
        """Mean and precision for all parameters of a model, zero for those without a prior."""
        columns = [model.names.index(name) for name in self.names]
        mean = np.zeros(len(model.names))
        precision = np.zeros((len(model.names),) * 2)
        mean[columns] = self.mean
        precision[np.ix_(columns, columns)] = np.linalg.inv(widening * self.covariance)
        return mean, precision
