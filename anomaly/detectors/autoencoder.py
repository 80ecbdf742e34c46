"""Anomaly detection by the reconstruction error of an autoencoder of healthy brains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from anomaly.detectors.base import Scans
from anomaly.detectors.features import sd_in_voxels
from anomaly.detectors.network_base import (
    PUBLISHED_TRAINING,
    REGIONS,
    RESIDUALS,
    VALIDATION_FRACTION,
    Reconstructor,
    check_smoothing,
    residual_map,
)
from dmrifit._utils.checks import check_number, check_word
from dmrifit._utils.randomness import RandomState
from dmrifit.model_files.registry import register
from dmrifit.networks.training import Training, fill_training

if TYPE_CHECKING:
    import torch

__all__ = ["DenoisingAutoencoder"]

_CHOICES = {
    "output": ("sigmoid", "linear"),
    "residual": RESIDUALS,
    "region": REGIONS,
    "reduction": ("paper", "code"),
}


@register
class DenoisingAutoencoder(Reconstructor):
    """
    Find anomalies by a convolutional variational autoencoder trained on healthy scans.

    The network compresses a scan into a few latent numbers, so that its reconstruction looks like
    the healthy training scans. A voxel's score is the absolute value of the mean over channels of
    the reconstruction error, in units of the signal at b = 0: noise cancels, because the mean is
    taken first. No noise is added to the input; the latent numbers are sampled in training, which
    has the effect of denoising. Scores are computed from their mean, so that a scan has one map.

    A scan whose size cannot be halved once for each of `widths` is padded with zeros on both
    sides, with an odd voxel at the end; maps have the size of the scan. All scans have the size of
    the training scans.

    The default network is small enough for a CPU; `published` has the sizes of the publication.

    Parameters
    ----------
    latent_dim : int, default=512
        Latent numbers.
    output : {"sigmoid", "linear"}, default="sigmoid"
        Activation of the last layer.
    residual : {"mean", "mean-of-abs", "low"}, default="mean"
        Whether residuals are averaged over the channels before the absolute value is taken, or
        after it; ``"low"`` is one-sided: how far the mean signal is below its reconstruction.
    scale : {None, "image"}, default=None
        With ``"image"`` the reconstruction is divided by its largest value in the brain, and the
        map by its own 99.9 % quantile and clipped at 1, as in the published code. The published
        threshold of 0.3 only makes sense on this scale, on which every healthy scan has anomalies.
    widths : sequence of int, default=(8, 32, 64)
        Channels of the levels of the encoder, each of half the resolution of the one before.
    dense : int or None, default=64
        Width of a linear layer before and after the latent numbers; None for no such layer.
    kl_weight : float, default=1.22e-5
        Weight ω of the divergence of the latent numbers in the loss, MSE + ω·KL.
    reduction : {"paper", "code"}, default="paper"
        Whether the divergence is averaged over latent numbers, or summed as in the published code.
    threshold : threshold rule, optional
        Rule that makes a map binary, fitted to held-out scans; by default
        `HealthyRateThreshold(0.01)`.
    calibration : float, int or None, default=0.25
        The healthy scans for the threshold: a share of the subjects that is held out of the
        training; a number of folds, each of which is one more training; or None, for no threshold.
    smooth_mm : float, default=0.0
        Standard deviation in mm of a Gaussian, by which the residual is smoothed inside the mask,
        before its absolute value where the residual is the mean.
    spacing : float or tuple of float of length 3, default=4.0
        Edge or edges of a voxel in mm; `SeriesDetector` sets those of the scans.
    region : {"brain", "volume"}, default="brain"
        Voxels that count in the loss: those of the brain, whose mean signal in each channel then
        initializes the network; or all, as published.
    training : Training, optional
        How the network is trained; by default 50 epochs, one scan in a step (4 in the publication)
        and a learning rate of Adam that falls from 0.003 to zero as a cosine (0.001, multiplied by
        0.95 after each epoch). A seventh of the training subjects is held out, and the weights of
        the epoch with their smallest mean squared error are kept, as published; with
        ``validation_fraction=0`` all subjects train, and the last weights are kept.
    device : str, default="auto"
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    random_state : int, RandomState or None, default=None
        Seed of weights, split, order of scans and latent numbers.

    Attributes
    ----------
    threshold_ : threshold rule or None
        Fitted to the held-out scans.
    net_ : skorch.NeuralNet
        The trained net.
    history_ : list of dict
        Losses and learning rate of each epoch.
    shape_ : tuple of int
        Numbers of voxels of the scans.
    n_channels_ : int
        Number of directions of the scans.

    References
    ----------
    Weninger et al., Scientific Reports 13:20366, 2023.
    """

    default_training: ClassVar[Training] = Training(
        epochs=50,
        batch_size=1,
        learning_rate=0.003,
        schedule="cosine",
        validation_fraction=VALIDATION_FRACTION,
    )

    def __init__(
        self,
        latent_dim: int = 512,
        output: str = "sigmoid",
        residual: str = "mean",
        scale: str | None = None,
        *,
        widths: Sequence[int] = (8, 32, 64),
        dense: int | None = 64,
        kl_weight: float = 1.22e-5,
        reduction: str = "paper",
        threshold: Any = None,
        calibration: float | int | None = 0.25,
        smooth_mm: float = 0.0,
        spacing: float | tuple[float, float, float] = 4.0,
        region: str = "brain",
        training: Training | None = None,
        device: str = "auto",
        random_state: RandomState = None,
    ) -> None:
        super().__init__(training=training, device=device, random_state=random_state)
        self.latent_dim = latent_dim
        self.output = output
        self.residual = residual
        self.scale = scale
        self.widths = widths
        self.dense = dense
        self.kl_weight = kl_weight
        self.reduction = reduction
        self.threshold = threshold
        self.calibration = calibration
        self.smooth_mm = smooth_mm
        self.spacing = spacing
        self.region = region

    @classmethod
    def published(cls, **parameters: Any) -> DenoisingAutoencoder:
        """
        Make an estimator with the network and the training of the publication, which needs a GPU.

        Four levels of 64 to 512 channels, linear layers of 512 numbers around the latent ones, 500
        epochs of four scans in a step with a learning rate that is multiplied by 0.95 after each:
        after 270 epochs it is a millionth of the first one.

        Parameters
        ----------
        **parameters : dict
            Parameters that differ from the publication, and fields of ``training`` that do.

        Returns
        -------
        DenoisingAutoencoder
            Not fitted.
        """
        sizes: dict[str, Any] = {"widths": (64, 128, 256, 512), "dense": 512, "region": "volume"}
        training = fill_training(parameters.pop("training", None), PUBLISHED_TRAINING)
        return cls(**(sizes | parameters), training=training)

    # Methods that the bases call
    # ------------------------------------------------------------------

    def _check(self) -> None:
        super()._check()
        for name, choices in _CHOICES.items():
            check_word(name, getattr(self, name), choices)
        check_number("latent_dim", self.latent_dim, least=1, whole=True)
        check_number("kl_weight", self.kl_weight)
        check_smoothing(self.smooth_mm, self.spacing)
        if self.dense is not None:
            check_number("dense", self.dense, least=1, whole=True)
        if not isinstance(self.widths, list | tuple) or not len(self.widths):
            raise ValueError(
                f"widths={self.widths!r} must be the channels of each level, such as (8, 32, 64)"
            )
        for width in self.widths:
            check_number("each of widths", width, least=1, whole=True)

    def _module(self) -> torch.nn.Module:
        from anomaly.networks.architectures import VariationalAutoencoder

        if max(self.shape_) <= 2 ** len(self.widths) and self._settings.batch_size == 1:
            raise ValueError(
                f"scans of {' × '.join(map(str, self.shape_))} voxels are one voxel after "
                f"{len(self.widths)} halvings, "
                "which cannot be normalized; give fewer widths, or a batch_size of 2 or more"
            )
        network = VariationalAutoencoder(
            self.n_channels_,
            self.shape_,
            tuple(self.widths),
            self.latent_dim,
            output=self.output,
            dense=self.dense,
        )
        module: torch.nn.Module = self._leveled(network)
        return module

    def _criterion(self) -> torch.nn.Module:
        from anomaly.networks.losses import VariationalLoss

        return VariationalLoss(self.kl_weight, reduction=self.reduction)

    def _target(self, target: Any, inputs: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        volumes = {"volume": inputs}
        if self.region == "brain":
            volumes["brain"] = np.asarray(target, dtype=np.float32)[None]
        return volumes

    def _predict_case(
        self, infer: Callable[[Any], Any], inputs: NDArray[np.float32], case: Any
    ) -> dict[str, Any]:
        reconstruction = infer([inputs])[0][0]
        prediction: dict[str, Any] = {"reconstruction": reconstruction, "scan": inputs}
        # Only scans of a training are validated.
        if case.number is not None:
            error = np.square(inputs - reconstruction).mean(axis=0)
            prediction["loss"] = float(error[case.mask].mean(dtype=np.float64))
        return prediction

    def _score_scan(self, scans: Scans, i: int) -> NDArray[np.float32]:
        prediction: Mapping[str, Any] = self._predict_scan(scans, i)
        reconstruction = prediction["reconstruction"]
        if self.scale == "image":
            # The largest value has to be one of the brain: outside the network may not be trained.
            reconstruction = reconstruction * scans.mask(i)
        return residual_map(
            prediction["scan"],
            reconstruction,
            residual=self.residual,
            scale=self.scale,
            mask=scans.mask(i),
            smoothing=sd_in_voxels(self.smooth_mm, self.spacing),
        )
