"""Base of detectors with a network: training, reconstruction, residual maps, model files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from anomaly.detectors.base import ARRAYS, AnomalyDetector, Scans
from dmrifit.io.parameter_json import refuse_keys
from dmrifit.networks.training import Training
from dmrifit.networks.volume_estimator import VolumeEstimator

#: Share of the training subjects whose loss chooses the epoch, as in the seven folds of the
#: publication (four of 28 controls).
VALIDATION_FRACTION = 1 / 7
#: Training of both networks in the publication: after 270 epochs the learning rate is a millionth
#: of the first one.
PUBLISHED_TRAINING = Training(
    epochs=500,
    batch_size=4,
    learning_rate=0.001,
    schedule="constant",
    decay=0.95,
    validation_fraction=VALIDATION_FRACTION,
)
#: Share of the signals of a brain that may lie outside 0 to 1, because of noise and pulsation.
_MAX_SHARE_OUTSIDE = 0.05


@dataclass(frozen=True)
class Brain:
    """A scan with its mask, the input of a network; training scans also have a number."""

    volume: Any
    mask: NDArray[np.bool_]
    number: int | None = None


@dataclass(repr=False, eq=False)
class Reconstructor(AnomalyDetector, VolumeEstimator):
    """
    Base of detectors with a network that reconstructs a scan as if it were healthy.

    A derived class has the methods of `VolumeEstimator`; the input of its network is a scan of
    shape (channels, x, y, z), 0 outside the mask, and the first of its outputs is the
    reconstruction. Its ``_predict_case`` returns a mapping with ``"reconstruction"``, of shape
    (channels, x, y, z), and for a training scan ``"loss"``.

    Scans and their masks are held in memory during training, in single precision.

    Parameters
    ----------
    threshold, calibration, scale
        As of `AnomalyDetector`.
    region : {"brain", "volume"}
        Voxels that count in the loss: those of the brain, whose mean signal then initializes the
        network; or all.
    **parameters : dict
        As of `VolumeEstimator`.
    """

    default_training: ClassVar[Training] = Training(
        epochs=50,
        batch_size=1,
        learning_rate=0.003,
        schedule="cosine",
        validation_fraction=VALIDATION_FRACTION,
    )
    #: Parameters of the publication that differ from the defaults.
    published_parameters: ClassVar[Mapping[str, Any]] = {}
    _needs_targets = False
    _fitted_names: ClassVar[tuple[str, ...]] = ("n_channels_", "shape_")

    _: KW_ONLY
    calibration: str | float | int | None = 0.25
    region: Literal["brain", "volume"] = "brain"

    @classmethod
    def published(cls, **parameters: Any) -> Self:
        """
        Make an estimator with the network and the training of the publication, which needs a GPU.

        The training has 500 epochs of four scans in a step, with a learning rate that is
        multiplied by 0.95 after each: after 270 epochs it is a millionth of the first one.

        Parameters
        ----------
        **parameters : dict
            Parameters that differ from the publication, and fields of ``training`` that do.

        Returns
        -------
        Reconstructor
            Not fitted.
        """
        training = PUBLISHED_TRAINING | parameters.pop("training", None)
        return cls(**(dict(cls.published_parameters) | parameters), training=training)

    def reconstruct(self, X: Any, masks: Any = None) -> NDArray[np.float32]:
        """
        Reconstruct scans as if they were healthy.

        Parameters
        ----------
        X : ndarray of shape (n_scans, x, y, z, channels), or sequence of such scans
            Scans, which may have lesions.
        masks : ndarray of shape (n_scans, x, y, z), or sequence of such masks, optional
            The brain; by default where any channel is above 0.

        Returns
        -------
        ndarray of shape (n_scans, x, y, z, channels)
            Signals divided by that at b = 0; 0 outside the mask.

        Raises
        ------
        ValueError
            If a scan has another number of directions or another size than those that were learned
            from, or a scan or a mask is not possible.
        """
        check_is_fitted(self)
        scans = self._like_learned(Scans(X, masks))
        reconstructions = np.zeros((len(scans), *scans.shape), dtype=np.float32)
        for i in range(len(scans)):
            volume = np.moveaxis(self._predict_scan(scans, i)["reconstruction"], 0, -1)
            reconstructions[i] = np.where(scans.mask(i)[..., None], volume, 0)
        return reconstructions

    def score(self, X: Any, masks: Any = None) -> float:
        """
        Compute the negative mean validation loss of healthy scans; higher is better.

        Parameters
        ----------
        X : ndarray of shape (n_scans, x, y, z, channels), or sequence of such scans
            Scans of healthy subjects.
        masks : ndarray of shape (n_scans, x, y, z), or sequence of such masks, optional
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
        brains = self._brains(self._like_learned(Scans(X, masks)))
        losses = [self._answer(self.net_, self._inputs(brain), brain)["loss"] for brain in brains]
        return -float(np.mean(losses))

    # Methods that the bases call
    # ------------------------------------------------------------------

    def _check(self) -> None:
        self._check_shared()

    def _check_parameters(self) -> None:
        VolumeEstimator._check(self)

    def _brains(self, scans: Scans) -> Sequence[Brain]:
        """Give scans as the network sees them."""
        return [Brain(scans.signal(i), scans.mask(i), i) for i in range(len(scans))]

    def _fit_scans(self, scans: Scans) -> None:
        brains = self._brains(scans)
        self._masks = [brain.mask for brain in brains]
        try:
            self._train(brains, self._masks, scans.groups)
        finally:
            self.__dict__.pop("_masks", None)
            self.__dict__.pop("_level", None)

    def _learn(self, inputs: Any, targets: Any) -> None:
        self.n_channels_ = len(inputs[0])
        self.shape_ = inputs[0].shape[1:]
        if self.region == "brain":
            pairs = zip(inputs, self._masks, strict=True)
            total = sum(scan[:, mask].sum(axis=1, dtype=np.float64) for scan, mask in pairs)
            self._level = total / sum(mask.sum() for mask in self._masks)

    def _leveled(self, module: Any) -> Any:
        """Initialize the last layer of a network with the mean signal of each channel."""
        level = self.__dict__.get("_level")
        if level is None:
            return module
        if self.output == "sigmoid":
            # The bias acts before the sigmoid, so it is the logit of the mean.
            clipped = np.clip(level, 1e-3, 1 - 1e-3)
            level = np.log(clipped / (1 - clipped))
        module.level(level)
        return module

    def _inputs(self, case: Brain) -> NDArray[np.float32]:
        channels = np.array(np.moveaxis(case.volume, -1, 0), dtype=np.float32, order="C")
        channels *= case.mask
        # Channel by channel, so that no boolean array of the whole scan is made.
        self._check_signals(channels, int(np.count_nonzero(case.mask)) * len(channels))
        return channels

    @staticmethod
    def _check_signals(images: Iterable[NDArray], n_values: int) -> None:
        """Reject a scan whose signals, given in several arrays, were not divided by b = 0."""
        n_outside = sum(int(np.count_nonzero((image < 0) | (image > 1))) for image in images)
        if n_outside > _MAX_SHARE_OUTSIDE * n_values:
            raise ValueError(
                f"{100 * n_outside / n_values:.0f} % of its values in the brain are not from 0 to "
                "1, which a network cannot learn from or score; divide signals by the one at b = "
                "0 first"
            )

    def _predict_scan(self, scans: Scans, i: int) -> Mapping[str, Any]:
        """Run the network on a scan outside a training."""
        brain = Brain(scans.signal(i), scans.mask(i))
        prediction: Mapping[str, Any] = self._answer(self.net_, self._inputs(brain), brain)
        return prediction

    def _case_score(self, prediction: Mapping[str, Any], target: Any) -> float:
        return -float(prediction["loss"])

    # Model files
    # ----------------------------------------------------------------------------------

    def _plain(self) -> dict[str, Any]:
        # The rule is stored with the fitted attributes, and changes nothing in a training.
        return {name: value for name, value in super()._plain().items() if name != "threshold"}

    def stored(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """
        Return the content of a model file.

        Returns
        -------
        parameters : dict
            As of `VolumeEstimator`.
        fitted : dict
            Fitted attributes, and the unfitted and the fitted threshold rule.
        files : dict of bytes
            The weights, and fitted arrays.
        """
        parameters, fitted, files = VolumeEstimator.stored(self)
        rules, arrays = self._stored_parts()
        return parameters, fitted | rules, files | arrays

    def restore(self, fitted: Mapping[str, Any], files: Mapping[str, Any]) -> None:
        """
        Restore the content that `stored` returned.

        Parameters
        ----------
        fitted : mapping
            Fitted attributes.
        files : mapping of bytes
            Weights and arrays.

        Raises
        ------
        ValueError
            If something is missing or unknown, or does not fit.
        """
        attributes = dict(fitted)
        rules = {key: attributes.pop(key) for key in {"rule", "threshold"} & set(attributes)}
        refuse_keys(rules, {"rule", "threshold"}, "fitted attribute", complete=True)
        self._restore_parts(rules, files)
        weights = {name: content for name, content in files.items() if name != ARRAYS}
        VolumeEstimator.restore(self, attributes, weights)

    def _check_restored(self) -> None:
        super()._check_restored()
        self._check_size()


def residual_map(
    scan: NDArray[np.float32], reconstruction: NDArray[np.float32], residual: str
) -> NDArray[np.float32]:
    """
    Average the reconstruction minus the scan over channels, or the absolute difference.

    Shapes: `scan`, `reconstruction` (channels, x, y, z); returns (x, y, z).
    """
    if residual == "mean-of-abs":
        differences = np.zeros(scan.shape[1:], dtype=np.float32)
        # Channel by channel, so that no copy of the whole scan is made.
        for channel, rebuilt_channel in zip(scan, reconstruction, strict=True):
            differences += np.abs(channel - rebuilt_channel)
        return np.asarray(differences / np.float32(len(scan)))
    means = [volume.mean(axis=0, dtype=np.float32) for volume in (reconstruction, scan)]
    return np.asarray(means[0] - means[1])
