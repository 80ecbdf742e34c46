"""A signal model and a detector that another package brings to dmrifit."""

import numpy as np

from anomaly import OneMinusMean
from dmrifit import Parameter, SignalModel
from dmrifit.model_files.registry import register

STRETCHED = SignalModel(
    "stretched",
    (
        Parameter("S0", "signal", 0.0, 10.0),
        Parameter("DDC", "µm²/ms", 0.01, 10.0),
        Parameter("alpha", "", 0.3, 1.0),
    ),
    "S0*exp(-exp(alpha*log(b*DDC + 1e-9)))",
    references=("Bennett et al., Magn Reson Med 50:727–734, 2003.",),
)


@register
class AsymmetryDetector(OneMinusMean):
    """Score of a voxel: the difference of 1 minus the mean signal from its mirror image."""

    def _score_scan(self, scans, i):
        score = super()._score_scan(scans, i)
        return np.abs(score - score[::-1]) * scans.mask(i)
