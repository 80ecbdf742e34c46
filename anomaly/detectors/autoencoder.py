"""Anomaly detection by the reconstruction error of an autoencoder of healthy brains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from anomaly.detectors.aligned import INSIDE_SHARE, LEAST_SUBJECTS, AlignedScans
from anomaly.detectors.alignment import align, guide_images, inverted, resampled, sampled
from anomaly.detectors.base import Scans
from anomaly.detectors.features import look_of, nearest_inside, sd_in_voxels, smoothed_voxels
from anomaly.detectors.network_base import Brain, Reconstructor, residual_map
from dmrifit._utils.checks import Count, NotNegative
from dmrifit.model_files.registry import register

if TYPE_CHECKING:
    import torch

__all__ = ["DenoisingAutoencoder"]

_UNALIGNED = ", or use aligned=False (--set aligned=false)"
_SMOOTHNESS = 2.0  # voxels
#: Share of the median over the brain in the healthy variance of a place, which few scans estimate
#: poorly, and the standard deviation in voxels of its smoothing.
_PRIOR, _BLUR = 0.2, 1.0
#: Share of scans that must have a place for a healthy residual of its own.
_LEAST_COVERAGE = 0.1
#: No score is infinite where all healthy scans are rebuilt without an error.
_LEAST_RESIDUAL = 1e-5


@register
@dataclass(repr=False, eq=False)
class DenoisingAutoencoder(Reconstructor):
    """
    Find anomalies by a convolutional variational autoencoder trained on healthy scans.

    The network compresses a scan into a few latent numbers, so that its reconstruction looks like
    the healthy training scans. With ``residual="mean"``, as published, a voxel's score is the
    absolute value of the mean over channels of the reconstruction error, in units of the signal at
    b = 0: noise cancels, because the mean is taken first. No noise is added to the input; the
    latent numbers are sampled in training, which has the effect of denoising. Scores are computed
    from their mean, so that a scan has one map.

    By default scans are first aligned to the mean of the healthy ones, as of `AlignedMahalanobis`,
    and reconstructions are brought back; the decoder has the healthy mean of every voxel, and the
    residual of a place is divided by the one of healthy scans there. None of this is published.

    A scan whose size cannot be halved once for each of `widths` is padded with zeros on both
    sides, with an odd voxel at the end; maps have the size of the scan. All scans have the size of
    the training scans.

    The default network is small enough for a CPU; `published` has the sizes of the publication:
    four levels of 64 to 512 channels, and linear layers of 512 numbers around the latent ones.

    Parameters
    ----------
    latent_dim : int, default=512
        Latent numbers; of a map about as many in all, the same number at each of its places.
    output : {"sigmoid", "linear"}, default="sigmoid"
        Activation of the last layer.
    residual : {"relative", "mean", "mean-of-abs", "low"}, default="relative"
        Whether residuals are averaged over the channels before the absolute value is taken, or
        after it; ``"low"`` is one-sided: how far the mean signal is below its reconstruction;
        ``"relative"`` smooths the residual of each channel, divides its mean and its spread over
        channels by the root mean square of healthy scans at that place, and is the root of the sum
        of their squares.
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
    threshold : threshold rule, optional
        Rule that makes a map binary, fitted to held-out scans; by default
        `HealthyRateThreshold(0.01)`.
    calibration : float, int or None, default=0.25
        The healthy scans for the threshold: a share of the subjects that is held out of the
        training; a number of folds, each of which is one more training; or None, for no threshold.
    scale : {None, "image"}, default=None
        With ``"image"`` the reconstruction is divided by its largest value in the brain, and the
        map by its own 99.9 % quantile and clipped at 1, as in the published code. The published
        threshold of 0.3 only makes sense on this scale, on which every healthy scan has anomalies.
    smooth_mm : float, default=6.0
        Standard deviation in mm of a Gaussian, by which the residual is smoothed inside the mask,
        before its absolute value where it is signed.
    spacing : float or tuple of float of length 3, default=4.0
        Edge or edges of a voxel in mm; `SeriesDetector` sets those of the scans.
    region : {"brain", "volume"}, default="brain"
        Voxels that count in the loss: those of the brain, whose mean signal in each channel then
        initializes the network; or all, as published.
    latent : {"map", "vector"}, default="map"
        Whether latent numbers stay at their places on the smallest level and the decoder adds to
        the healthy mean of every voxel, or linear layers join them to a vector, as published.
    aligned : bool, default=True
        Whether scans are aligned to the mean of the healthy ones before the network sees them.
    widths : sequence of int, default=(8, 32, 64)
        Channels of the levels of the encoder, each of half the resolution of the one before.
    dense : int or None, default=64
        Width of a linear layer before and after a latent vector; None for no such layer.
    kl_weight : float, default=1.22e-5
        Weight ω of the divergence of the latent numbers in the loss, MSE + ω·KL.
    reduction : {"paper", "code"}, default="paper"
        Whether the divergence is averaged over latent numbers, or summed as in the published code.
    feature_mm : float, default=4.0
        Standard deviation in mm of the Gaussian that smooths the residuals of each channel, where
        they are relative.

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
    healthy_residual_ : ndarray of shape (2, x, y, z)
        Root mean square over healthy scans of mean and spread of the residual at each place.
    guide_ : ndarray of shape (3, x, y, z)
        Images by which scans are aligned, and the standard deviations ``scales_`` that they are
        divided by; only where scans are aligned.

    References
    ----------
    Weninger et al., Scientific Reports 13:20366, 2023.
    """

    published_parameters: ClassVar[Mapping[str, Any]] = {
        "residual": "mean",
        "latent": "vector",
        "aligned": False,
        "widths": (64, 128, 256, 512),
        "dense": 512,
        "smooth_mm": 0.0,
        "region": "volume",
    }

    _other_remedy: ClassVar[str] = _UNALIGNED

    latent_dim: Count = 512
    output: Literal["sigmoid", "linear"] = "sigmoid"
    residual: Literal["mean", "mean-of-abs", "low", "relative"] = "relative"
    _: KW_ONLY
    latent: Literal["vector", "map"] = "map"
    aligned: bool = True
    widths: Sequence[Count] = (8, 32, 64)
    dense: Count | None = 64
    kl_weight: NotNegative = 1.22e-5
    reduction: Literal["paper", "code"] = "paper"
    feature_mm: NotNegative = 4.0

    # Methods that the bases call
    # ------------------------------------------------------------------

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if self.scale == "image" and self.residual == "relative":
            raise ValueError(
                "scale='image' excludes residual='relative'; use 'mean' (--set residual=mean)"
            )

    def _module(self) -> torch.nn.Module:
        from anomaly.networks.architectures import LatentMapAutoencoder, VariationalAutoencoder

        if max(self.shape_) <= 2 ** len(self.widths) and self._settings.batch_size == 1:
            raise ValueError(
                f"scans of {' × '.join(map(str, self.shape_))} voxels are one voxel after "
                f"{len(self.widths)} halvings, "
                "which cannot be normalized; give fewer widths, or a batch_size of 2 or more"
            )
        architecture = LatentMapAutoencoder if self.latent == "map" else VariationalAutoencoder
        sizes = self.n_channels_, self.shape_, tuple(self.widths), self.latent_dim
        network = architecture(*sizes, output=self.output, dense=self.dense)
        module: torch.nn.Module = self._leveled(network)
        return module

    @property
    def _needs_directions(self) -> bool:  # type: ignore[override]
        return self.aligned

    @property
    def _least_subjects(self) -> int:  # type: ignore[override]
        return LEAST_SUBJECTS if self.aligned else 1

    @property
    def _array_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("healthy_residual_", *(("guide_", "scales_") if self.aligned else ()))

    def _fit_scans(self, scans: Scans) -> None:
        if self.aligned:
            looks = [look_of(scans.signal(i), scans.mask(i)) for i in range(len(scans))]
            try:
                aligned = AlignedScans.learn(looks, _SMOOTHNESS, scans.subjects)
            except ValueError as error:
                raise ValueError(f"{error}{_UNALIGNED}") from None
            self.guide_, self.scales_ = aligned.guide, aligned.scales
        super()._fit_scans(scans)
        self.healthy_residual_ = self._healthy_residual(scans)

    def _learn(self, inputs: Any, targets: Any) -> None:
        super()._learn(inputs, targets)
        if self.latent == "map":
            total = np.zeros(inputs[0].shape, dtype=np.float64)
            for scan, mask in zip(inputs, self._masks, strict=True):
                total += scan * mask
            counts = np.sum(self._masks, axis=0)
            self._level = (total / np.maximum(counts, 1))[:, *nearest_inside(counts > 0)]

    def _brains(self, scans: Scans) -> Sequence[Brain]:
        if not self.aligned:
            return super()._brains(scans)
        return [self._resampled(scans, i, i)[0] for i in range(len(scans))]

    def _resampled(
        self, scans: Scans, i: int, number: int | None = None
    ) -> tuple[Brain, NDArray[np.float32]]:
        """Resample a scan to the healthy mean; give it, and its voxels' positions (3, x, y, z)."""
        signal, mask = scans.signal(i), scans.mask(i)
        look = look_of(signal, mask)
        images = guide_images(look.mean, look.spread, mask, self.scales_)
        positions = align(images, mask, self.guide_, smoothness=_SMOOTHNESS)
        inverse = inverted(positions)
        share = sampled(mask.astype(np.float32), inverse)
        inside = share > INSIDE_SHARE
        volume = np.zeros(signal.shape, dtype=np.float32)
        # Signals outside the brain count as 0; the share undoes that where both were mixed.
        rows, out = np.flatnonzero(inside), volume.reshape(mask.size, -1)
        resampled(signal, mask, inverse[:, inside], rows, out)
        out[rows] /= share[inside, None]
        return Brain(volume, inside, number), positions

    def _predict_scan(self, scans: Scans, i: int) -> Mapping[str, Any]:
        if not self.aligned:
            return super()._predict_scan(scans, i)
        signal, mask = scans.signal(i), scans.mask(i)
        in_planes = (plane[inside] for plane, inside in zip(signal, mask, strict=True))
        self._check_signals(in_planes, np.count_nonzero(mask) * signal.shape[-1])
        brain, positions = self._resampled(scans, i)
        rebuilt = self._rebuilt(brain)
        # In the memory of the network's input, as new memory takes longer than resampling.
        reconstruction = brain.volume
        reconstruction[~mask] = 0
        rows, out = np.flatnonzero(mask), reconstruction.reshape(mask.size, -1)
        resampled(rebuilt, np.ones_like(mask), positions[:, mask], rows, out)
        return {
            "reconstruction": np.moveaxis(reconstruction, -1, 0),
            "scan": np.moveaxis(signal, -1, 0),
            "positions": positions,
        }

    def _rebuilt(self, brain: Brain) -> NDArray[np.float32]:
        """Reconstruct a scan by the network; returns (x, y, z, channels)."""
        import torch

        with self._evaluating(self.net_) as infer:
            # As the scan lies in memory, because to move channels first takes long.
            answer = infer(torch.from_numpy(brain.volume)[None].movedim(-1, 1))
        return np.moveaxis(answer[0][0], 0, -1)

    def _healthy_residual(self, scans: Scans) -> NDArray[np.float32]:
        """
        Compute the root mean square over healthy scans of mean and spread of the residual.

        The mean square at a place is that of the scans whose brain contains it. It is smoothed,
        and shrunk toward the median of all places. Returns (2, x, y, z).
        """
        from scipy import ndimage

        squares = np.zeros((2, *self.shape_))
        n_brains = np.zeros(self.shape_)
        for i in range(len(scans)):
            mask = scans.mask(i)
            prediction = self._predict_scan(scans, i)
            mean, spread = self._moments(prediction, mask)
            maps = [np.square(mean), np.square(spread), mask.astype(np.float32)]
            if self.aligned:
                inverse = inverted(prediction["positions"])
                maps = [sampled(values, inverse) for values in maps]
            squares += maps[:2]
            n_brains += maps[2]
        smooth_n_brains = np.maximum(ndimage.gaussian_filter(n_brains, _BLUR), 1e-3)
        covered = n_brains > _LEAST_COVERAGE * len(scans)
        healthy = np.empty((2, *self.shape_), dtype=np.float32)
        for k in range(2):
            variance = ndimage.gaussian_filter(squares[k], _BLUR) / smooth_n_brains
            typical = np.median(variance[covered])
            shrunk = (1 - _PRIOR) * variance[nearest_inside(covered)] + _PRIOR * typical
            healthy[k] = np.maximum(np.sqrt(shrunk), _LEAST_RESIDUAL)
        return healthy

    def _moments(
        self, prediction: Mapping[str, Any], mask: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        """Compute mean and spread over channels of the smoothed residual, (2, x, y, z)."""
        difference = np.moveaxis(prediction["scan"] - prediction["reconstruction"], 0, -1)
        residual = smoothed_voxels(difference, mask, sd_in_voxels(self.feature_mm, self.spacing))
        mean = residual.mean(axis=-1, dtype=np.float64)
        squares = np.square(residual, dtype=np.float64).mean(axis=-1)
        moments = np.zeros((2, *mask.shape), dtype=np.float32)
        # Scanners differ in the level of the whole brain, which is no anomaly.
        moments[0, mask] = mean - np.median(mean)
        moments[1, mask] = np.sqrt(np.maximum(squares - np.square(mean), 0))
        return moments

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
        return self._scored(self._predict_scan(scans, i), scans.mask(i))

    def _scored(
        self, prediction: Mapping[str, Any], mask: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        """Score the voxels of a scan whose reconstruction is known."""
        if self.residual == "relative":
            healthy = self.healthy_residual_[:, mask]
            if self.aligned:
                positions = prediction["positions"][:, mask]
                healthy = np.stack([sampled(v, positions) for v in self.healthy_residual_])
            squares = np.square(self._moments(prediction, mask)[:, mask] / healthy)
            return self._smooth_scores(np.sqrt(squares.sum(axis=0)), mask)
        # In one layout, as sums over channels depend on it in their last bits.
        scan = np.ascontiguousarray(prediction["scan"])
        reconstruction = np.ascontiguousarray(prediction["reconstruction"])
        if self.scale == "image":
            # The largest value has to be one of the brain: outside the network may not be trained.
            top = float((reconstruction * mask).max())
            reconstruction = reconstruction / np.float32(top if top > 0 else 1)
        differences = residual_map(scan, reconstruction, self.residual)
        smooth = self._smooth_scores(differences[mask], mask)
        # The absolute value comes last, so that smoothing lets noise cancel.
        return np.abs(smooth) if self.residual == "mean" else smooth

    def _check_restored(self) -> None:
        super()._check_restored()
        shapes: dict[str, Any] = {"healthy_residual_": (2, *self.shape_), "scales_": (2,)}
        shapes["guide_"] = (3, *self.shape_)
        self._check_shapes({name: shapes[name] for name in self._array_names})
