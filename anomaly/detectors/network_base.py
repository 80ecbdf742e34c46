"""What detectors with a network share: healthy scans learned, scans reconstructed, residuals, model files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from anomaly.detectors.base import AnomalyDetector, Scans
from anomaly.detectors.threshold_files import decoded_rule, encoded_rule
from dmrifit.io.parameter_json import RefusedError, decoded, refuse_keys
from dmrifit.networks.volume_cases import listed
from dmrifit.networks.volume_estimator import VolumeEstimator

__all__ = ["REGIONS", "RESIDUALS", "Reconstructor", "residual_map"]

RESIDUALS = ("mean", "mean-of-abs")
REGIONS = ("brain", "volume")
#: Share of the signals of a brain that may lie beyond 0 and 1, as noise and pulsation bring it about.
_BEYOND = 0.05
#: In model files: the threshold rule as it was given, and as it was fitted.
_RULES = ("rule", "threshold")


@dataclass(frozen=True)
class _Brain:
    """A scan with its mask, as a network is given it; with a number where it is learned from."""

    volume: Any
    mask: NDArray[np.bool_]
    number: int | None = None


class _Brains(Sequence[_Brain]):
    """Scans, made into what a network is given one at a time."""

    def __init__(self, scans: Scans) -> None:
        self.scans = scans

    def __len__(self) -> int:
        return len(self.scans)

    def __getitem__(self, i: Any) -> Any:
        if not 0 <= i < len(self):
            raise IndexError(i)
        return _Brain(self.scans.signal(i), self.scans.mask(i), i)


class Reconstructor(AnomalyDetector, VolumeEstimator):
    """
    Base of detectors that have a network, which reconstructs a scan as if it were healthy.

    A derived class has the methods of `VolumeEstimator`; the inputs of its network are a scan of shape (channels, x,
    y, z), 0 outside the mask, and the first of its answers is the reconstruction. What its ``_predict_case`` gives is
    a mapping with ``"reconstruction"``, of shape (channels, x, y, z), and for a scan of a training ``"loss"``.

    Scans and what is known of them are held in memory during training, in single precision.

    Parameters
    ----------
    threshold, calibration, scale
        As of `AnomalyDetector`.
    decay : float
        What the learning rate is multiplied by after each epoch.
    region : {"brain", "volume"}
        The voxels that count in the loss: those of the brain, and the network begins with their mean signal; or all.
    **parameters : dict
        As of `VolumeEstimator`.
    """

    _needs_targets = False
    _fitted_names: ClassVar[tuple[str, ...]] = ("n_channels_", "shape_")

    decay: float
    output: str
    region: str

    def fit(self, X: Any, masks: Any = None, *, groups: Any = None) -> Any:
        """
        Learn what healthy scans look like, and fit the threshold to scans that were held back.

        Parameters
        ----------
        X : ndarray of shape (n_scans, x, y, z, channels), or sequence of n_scans arrays of shape (x, y, z, channels)
            Scans of healthy subjects, divided by the signal at b = 0, from 0 to 1 and all of one size.
        masks : ndarray of shape (n_scans, x, y, z), or sequence of n_scans arrays of shape (x, y, z), optional
            The brain; by default where any channel is above 0.
        groups : sequence of n_scans, optional
            The subject of each scan: those of one subject are all learned from, or all held back. By default each
            scan is of another subject.

        Returns
        -------
        self
            Itself.

        Raises
        ------
        ValueError
            If a parameter, a scan or a mask is not possible, or all scans are of one subject; before the training
            starts.
        FloatingPointError
            If the loss or a weight becomes infinite or no number.
        ImportError
            If torch or skorch is not installed.
        """
        self._check_parameters()
        self.__dict__.pop("threshold_", None)
        names = None if groups is None else [str(group) for group in listed(groups, "groups")]
        subjects = None if names is None else {"subject": np.asarray(names)}
        return self._fit(Scans(X, masks, subjects), groups)

    def reconstruct(self, X: Any, masks: Any = None) -> NDArray[np.float32]:
        """
        Give scans as the network would have them: healthy.

        Parameters
        ----------
        X : ndarray of shape (n_scans, x, y, z, channels), or sequence of n_scans arrays of shape (x, y, z, channels)
            Scans, which may have lesions.
        masks : ndarray of shape (n_scans, x, y, z), or sequence of n_scans arrays of shape (x, y, z), optional
            The brain; by default where any channel is above 0.

        Returns
        -------
        ndarray of shape (n_scans, x, y, z, channels)
            Signals divided by that at b = 0; 0 outside the mask.

        Raises
        ------
        ValueError
            If a scan has another number of directions or another size than those that were learned from, or a scan or
            a mask is not possible.
        """
        check_is_fitted(self)
        scans = self._like_learned(Scans(X, masks))
        found = np.zeros((len(scans), *scans.shape), dtype=np.float32)
        for i in range(len(scans)):
            mask = scans.mask(i)
            answer = self._ask(scans, i)["reconstruction"]
            np.multiply(np.moveaxis(answer, 0, -1), mask[..., None], out=found[i])
        return found

    def score(self, X: Any, masks: Any = None) -> float:
        """
        Give minus the mean validation loss of healthy scans; more is better.

        Parameters
        ----------
        X : ndarray of shape (n_scans, x, y, z, channels), or sequence of n_scans arrays of shape (x, y, z, channels)
            Scans of healthy subjects.
        masks : ndarray of shape (n_scans, x, y, z), or sequence of n_scans arrays of shape (x, y, z), optional
            The brain; by default where any channel is above 0.

        Returns
        -------
        float
            The mean over scans.

        Raises
        ------
        ValueError
            As `reconstruct`.
        """
        check_is_fitted(self)
        brains = _Brains(self._like_learned(Scans(X, masks)))
        losses = [self._answer(self.net_, self._inputs(brain), brain)["loss"] for brain in brains]
        return -float(np.mean(losses))

    # What the bases ask for -----------------------------------------------------------------------

    def _check_parameters(self) -> None:
        self._check()

    def _check(self) -> None:
        super()._check()
        if (
            isinstance(self.decay, bool)
            or not isinstance(self.decay, int | float)
            or not 0 < self.decay <= 1
        ):
            raise ValueError(
                f"decay={self.decay!r} is what the learning rate is multiplied by in each epoch: above 0, at most 1"
            )

    def _learning_rate(self, epoch: int) -> float:
        return super()._learning_rate(epoch) * float(self.decay) ** epoch

    def _fit_scans(self, scans: Scans) -> None:
        subjects = None if scans.covariates is None else list(scans.covariates["subject"])
        brains = _Brains(scans)
        self._masks = [brain.mask for brain in brains]
        try:
            self._train(brains, self._masks, subjects)
        finally:
            self.__dict__.pop("_masks", None)
            self.__dict__.pop("_level", None)

    def _learn(self, inputs: Any, targets: Any) -> None:
        self.n_channels_ = len(inputs[0])
        x, y, z = inputs[0].shape[1:]
        self.shape_ = x, y, z
        if self.region == "brain":
            pairs = zip(inputs, self._masks, strict=True)
            total = sum(one[:, mask].sum(axis=1, dtype=np.float64) for one, mask in pairs)
            self._level = total / sum(mask.sum() for mask in self._masks)

    def _leveled(self, module: Any) -> Any:
        """Let a network that is new give the mean signal of each channel."""
        level = self.__dict__.get("_level")
        if level is not None:
            low = np.clip(level, 1e-3, 1 - 1e-3)
            module.level(np.log(low / (1 - low)) if self.output == "sigmoid" else level)
        return module

    def _inputs(self, case: _Brain) -> NDArray[np.float32]:
        channels = np.array(np.moveaxis(case.volume, -1, 0), dtype=np.float32, order="C")
        channels *= case.mask
        n_values = np.count_nonzero(case.mask) * len(channels)
        n_beyond = sum(int(np.count_nonzero((one < 0) | (one > 1))) for one in channels)
        if n_beyond > _BEYOND * n_values:
            raise ValueError(
                f"{100 * n_beyond / n_values:.0f} % of its values in the brain are not from 0 to 1, which a network "
                "cannot learn from or score; divide signals by the one at b = 0 first"
            )
        return channels

    def _ask(self, scans: Scans, i: int) -> Mapping[str, Any]:
        """Let the network answer for a scan that is not learned from."""
        brain = _Brain(scans.signal(i), scans.mask(i))
        answer: Mapping[str, Any] = self._answer(self.net_, self._inputs(brain), brain)
        return answer

    def _case_score(self, prediction: Mapping[str, Any], target: Any) -> float:
        return -float(prediction["loss"])

    # Model files ----------------------------------------------------------------------------------

    def _plain(self) -> dict[str, Any]:
        # The rule is stored beside what is fitted, and changes nothing in a training.
        return {name: value for name, value in super()._plain().items() if name != "threshold"}

    def stored(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, bytes]]:
        """
        Give what a model file holds: parameters, what is fitted, the threshold too, and the weights.

        Returns
        -------
        parameters : dict
            Of the constructor, but for the folder of checkpoints, which belongs to one machine, and the threshold.
        fitted : dict
            Fitted attributes.
        files : dict of bytes
            The weights in the format of safetensors.
        """
        parameters, fitted, files = super().stored()
        rules = {"rule": encoded_rule(self.threshold), "threshold": encoded_rule(self.threshold_)}
        return parameters, fitted | rules, files

    def restore(self, fitted: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
        """
        Take what `stored` has given; a device that this machine does not have becomes the processor.

        Parameters
        ----------
        fitted : mapping
            Fitted attributes.
        files : mapping of bytes
            The weights.

        Raises
        ------
        RefusedError
            If something is missing or unknown, or does not fit.
        """
        refuse_keys(
            fitted, {*self._fitted_names, "history_", *_RULES}, "fitted attribute", complete=True
        )
        self.threshold = decoded_rule(fitted["rule"])
        shape = decoded(fitted["shape_"])
        if not (
            isinstance(shape, tuple)
            and len(shape) == 3
            and all(type(n) is int and n > 0 for n in shape)
        ):
            raise RefusedError(f"shape_ is {shape!r}")
        super().restore({key: value for key, value in fitted.items() if key not in _RULES}, files)
        self.threshold_ = decoded_rule(fitted["threshold"])


def residual_map(
    scan: NDArray[np.float32],
    reconstruction: NDArray[np.float32],
    *,
    residual: str = "mean",
    scale: str | None = None,
) -> NDArray[np.float32]:
    """
    Give how far a scan is from its reconstruction, voxel by voxel.

    Shapes: `scan`, `reconstruction` (channels, x, y, z); returns (x, y, z).
    """
    if scale == "image":
        top = float(reconstruction.max())
        reconstruction = reconstruction / np.float32(top) if top > 0 else reconstruction
    if residual == "mean":
        # Means first: two small volumes instead of a difference as large as the scan.
        found = np.abs(
            scan.mean(axis=0, dtype=np.float32) - reconstruction.mean(axis=0, dtype=np.float32)
        )
    else:
        found = np.zeros(scan.shape[1:], dtype=np.float32)
        for one, other in zip(scan, reconstruction, strict=True):
            found += np.abs(one - other)
        found /= len(scan)
    return np.asarray(found, dtype=np.float32)
