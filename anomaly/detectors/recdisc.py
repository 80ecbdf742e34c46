"""Anomaly detection by a network trained to find synthetic anomalies in healthy scans."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects
from sklearn.utils.validation import check_is_fitted

from anomaly.detectors.base import Scans
from anomaly.detectors.network_base import Reconstructor, residual_map
from anomaly.generators.corruptions import COUNTS, PUBLISHED, RADII, Ellipsoids, TissueMoments
from dmrifit._utils.checks import Count, NotNegative
from dmrifit._utils.randomness import Seed
from dmrifit.model_files.registry import register
from dmrifit.networks.training import Training

if TYPE_CHECKING:
    import torch

__all__ = ["RecDiscNet"]

_BOX_MARGIN = 2  # voxels


@register
@dataclass(repr=False, eq=False)
class RecDiscNet(Reconstructor):
    """
    Find anomalies by a network trained to find synthetic anomalies in healthy scans.

    Scans are corrupted as by `corrupt`. One network, without skip connections, reconstructs the
    healthy scan; another one, with skip connections, sees scan and reconstruction side by side and
    segments the anomaly. A voxel's score is the probability of that segmentation. The
    reconstruction error is another score, computed by `residual_map`.

    A scan whose size cannot be halved at every level is padded with zeros on both sides, with an
    odd voxel at the end; maps have the size of the scan. Scans need not have the size of the
    training scans.

    The input of the network is a box around all training brains, two voxels wider on each side,
    and extended to the brain of the scan where that is larger; everything outside is 0.

    The default network is small enough for a CPU; `published` has the sizes of the publication: a
    reconstruction of 128 channels at its first level and a discriminator of 16, each scan with the
    same four anomalies in all epochs. Loss weights are those of the published code; for those of
    the paper set ``mse_weight=1`` and choose a ``bce_weight`` (0.2 in the code, relative to the
    squared error).

    Parameters
    ----------
    noise : str, default="mix"
        Noise in the ellipsoids, as for `corrupt`.
    mean : {"half", "full"}, default="half"
        Mean of the noise: half of that of brain tissue, or all of it.
    mse_weight : float, default=5
        Weight of the mean squared error of the reconstruction in the loss. The paper has 1.
    bce_weight : float, default=1
        Weight of the cross-entropy of the discriminator. The paper calls it ω without a value; the
        published code has 0.2, with a weight of 1 for the squared error.
    positive_weight : float, default=20
        Weight of voxels of anomalies in the cross-entropy.
    training : Training, optional
        How the networks are trained; by default 4 epochs, one scan in a step (4 in `published`)
        and a learning rate of Adam that falls from 0.003 to zero as a cosine. The weights of the
        epoch with the smallest loss of held-out subjects are kept, as of `DenoisingAutoencoder`;
        these have the same anomalies after each epoch.
    device : str, default="auto"
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    random_state : int, RandomState or None, default=None
        Seed of weights, split, order of scans and anomalies.
    threshold : threshold rule, optional
        Rule that makes a map binary, fitted to held-out scans; by default
        `HealthyRateThreshold(0.01)`.
    calibration : float, int or None, default=0.25
        The healthy scans for the threshold: a share of the subjects that is held out of the
        training; a number of folds, each of which is one more training; or None, for no threshold.
    scale : {None, "image"}, default=None
        With ``"image"`` a map is divided by its own 99.9 % quantile and clipped at 1.
        Probabilities need no scale.
    smooth_mm : float, default=6.0
        Standard deviation in mm of a Gaussian, by which maps of the discriminator are smoothed
        inside the mask.
    spacing : float or tuple of float of length 3, default=4.0
        Edge or edges of a voxel in mm; `SeriesDetector` sets those of the scans.
    region : {"brain", "volume"}, default="brain"
        Voxels that count in the loss: those of the brain, whose mean signal in each channel then
        initializes the network; or all, as published.
    reconstruction_width, discrimination_width : int, default=8, 8
        Channels of the first levels of the two networks.
    levels : int, default=3
        Resolutions of both.
    stem : int or None, default=16
        Channels after a first convolution of 1³ in both networks, which costs little; None, as
        published, for no such convolution.
    convolutions : int, default=1
        Number per level, in encoder and decoder; 2 as published.
    output : {"linear", "sigmoid"}, default="linear"
        Activation of the last layer of the reconstruction.
    residual : {"mean", "mean-of-abs", "low"}, default="mean"
        How residuals are averaged over the channels by `residual_map`, as of
        `DenoisingAutoencoder`.
    repeats : int, default=4
        How often each scan is used in an epoch, each time with another anomaly.
    fresh : bool, default=True
        Whether anomalies are new in every epoch, or four (`repeats`) of each scan are drawn once,
        as published.
    counts : sequence of 3 floats, default=(0.2, 0.6, 0.2)
        How often there are no, one and two ellipsoids.
    radii : sequence of 2 floats, default=(0.174, 0.382)
        Least and largest radius, times that of a ball as large as the brain.
    uniform, background, clip : default="sd", False, True
        Width of uniform noise, whether ellipsoids reach beyond the brain, and whether noise is
        clipped, as for `corrupt`; ``"range"``, True and False in `published`.

    Attributes
    ----------
    box_ : tuple of 6 int
        First voxel of the network's box, and the one after its last.
    moments_ : dict
        ``mean`` and ``sd`` of the signals of brain tissue in the training scans.
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

    _fitted_names: ClassVar[tuple[str, ...]] = ("n_channels_", "shape_", "box_", "moments_")
    _one_size: ClassVar[bool] = False
    default_training: ClassVar[Training] = Reconstructor.default_training | Training(epochs=4)
    published_parameters: ClassVar[Mapping[str, Any]] = {
        "reconstruction_width": 128,
        "discrimination_width": 16,
        "stem": None,
        "convolutions": 2,
        "fresh": False,
        "region": "volume",
        "smooth_mm": 0.0,
        **PUBLISHED,
    }

    noise: str = "mix"
    mean: str = "half"
    mse_weight: NotNegative = 5.0
    bce_weight: NotNegative = 1.0
    positive_weight: NotNegative = 20.0
    _: KW_ONLY
    reconstruction_width: Count = 8
    discrimination_width: Count = 8
    levels: Count = 3
    stem: Count | None = 16
    convolutions: Count = 1
    output: Literal["linear", "sigmoid"] = "linear"
    residual: Literal["mean", "mean-of-abs", "low"] = "mean"
    repeats: Count = 4
    fresh: bool = True
    counts: Sequence[float] = COUNTS
    radii: Sequence[float] = RADII
    uniform: str = "sd"
    background: bool = False
    clip: bool = True

    def residual_map(self, X: Any, masks: Any = None) -> NDArray[np.float32]:
        """
        Score every voxel of scans by its reconstruction error instead of by the discriminator.

        Parameters
        ----------
        X : ndarray of shape (n_scans, x, y, z, channels), or sequence of such scans
            Scans, which may have lesions.
        masks : ndarray of shape (n_scans, x, y, z), or sequence of such masks, optional
            The brain; by default where any channel is above 0.

        Returns
        -------
        ndarray of shape (n_scans, x, y, z)
            In units of the signal at b = 0; 0 outside the mask.

        Raises
        ------
        ValueError
            As `anomaly_map`.
        """
        check_is_fitted(self)
        scans = self._like_learned(Scans(X, masks))
        maps = np.zeros((len(scans), *scans.shape[:3]), dtype=np.float32)
        for i in range(len(scans)):
            prediction = self._predict_scan(scans, i)
            residuals = residual_map(
                prediction["scan"], prediction["reconstruction"], self.residual
            )
            if self.residual == "mean":
                residuals = np.abs(residuals)
            maps[i] = np.where(scans.mask(i), residuals, 0)
        return maps

    # Methods that the bases call
    # ------------------------------------------------------------------

    def _check_parameters(self) -> None:
        super()._check_parameters()
        self._ellipsoids()
        if not self.mse_weight and not self.bce_weight:
            raise ValueError(
                "mse_weight and bce_weight are both 0, so that nothing would be learned; give one "
                "of them"
            )

    def _learn(self, inputs: Any, targets: Any) -> None:
        super()._learn(inputs, targets)
        moments = TissueMoments.measured((np.moveaxis(scan, 0, -1) for scan in inputs), targets)
        self.moments_ = {"mean": moments.mean, "sd": moments.sd}
        # Most of a volume is air; the box of all brains halves the time.
        self.box_ = _bounding_box(np.any(self._masks, axis=0))
        size = [high - low for low, high in zip(self.box_[:3], self.box_[3:], strict=True)]
        if self.levels > 1 and max(size) <= 2 ** (self.levels - 1):
            most = max((max(size) - 1).bit_length(), 1)
            voxels = " × ".join(map(str, size))
            raise ValueError(
                f"levels={self.levels} is too large for a brain of {voxels} voxels; give at most "
                f"{most}"
            )

    def _box(self, mask: NDArray[np.bool_]) -> tuple[slice, ...]:
        """Compute the box of a scan that the network sees."""
        low, high = np.split(np.array(_bounding_box(mask)), 2)
        # A scan of another size has no place in the box of the training scans.
        if mask.shape == self.shape_:
            low = np.minimum(low, self.box_[:3])
            high = np.maximum(high, self.box_[3:])
        return _slices((*low.tolist(), *high.tolist()))

    def _module(self) -> torch.nn.Module:
        from anomaly.networks.architectures import ReconstructionDiscrimination

        widths = self.reconstruction_width, self.discrimination_width
        options: dict[str, Any] = {"output": self.output, "stem": self.stem}
        options["convolutions"] = self.convolutions
        network = ReconstructionDiscrimination(self.n_channels_, *widths, self.levels, **options)
        module: torch.nn.Module = self._leveled(network)
        return module

    def _criterion(self) -> torch.nn.Module:
        from anomaly.networks.losses import DiscriminationLoss

        return DiscriminationLoss(self.mse_weight, self.bce_weight, self.positive_weight)

    def _target(self, target: Any, inputs: NDArray[np.float32]) -> NDArray[np.bool_]:
        return np.asarray(target, dtype=bool)

    def _ellipsoids(self) -> Ellipsoids:
        options = {field.name: getattr(self, field.name) for field in fields(Ellipsoids)}
        return Ellipsoids(**options)

    def _sample(
        self, scan: NDArray[np.float32], mask: NDArray[np.bool_], rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
        """Corrupt a copy of a scan, and return it with what the network learns to make of it."""
        changed = scan.copy()
        anomaly = self._ellipsoids().put_into(
            np.moveaxis(changed, 0, -1), mask, rng, TissueMoments(**self.moments_)
        )
        target = {"volume": scan, "anomaly": anomaly[None].astype(np.float32)}
        if self.region == "brain":
            target["brain"] = mask[None].astype(np.float32)
        return changed, target

    def _stream(
        self, inputs: Sequence[Any], targets: Sequence[Any], rng: np.random.Generator, epoch: int
    ) -> Iterator[tuple[Any, Any]]:
        box = _slices(self.box_)
        seed = Seed(0)
        if isinstance(self.random_state, int | np.integer):
            seed = Seed(self.random_state)
        # Each scan comes several times in an epoch, with another anomaly each time.
        for draw in rng.permutation(self.repeats * len(inputs)):
            i = int(draw) // self.repeats
            # A seed for each draw brings the same anomalies in every epoch.
            anomaly_rng = rng if self.fresh else seed.rng("anomaly", int(draw))
            yield self._sample(inputs[i][:, *box], targets[i][box], anomaly_rng)

    def _predict_case(
        self, infer: Callable[[Any], Any], inputs: NDArray[np.float32], case: Any
    ) -> dict[str, Any]:
        import torch

        box = self._box(case.mask)
        scan = inputs[:, *box]
        if case.number is None:
            inner, logits = (output[0] for output in infer([scan]))
            # Outside the box scores stay 0.
            reconstruction = np.zeros_like(inputs)
            reconstruction[:, *box] = inner
            score = np.zeros(case.mask.shape, dtype=np.float32)
            # 1 / (1 + exp(−logit)) without an overflow.
            score[box] = np.exp(-np.logaddexp(np.float32(0), -logits[0]))
            return {"reconstruction": reconstruction, "scan": inputs, "score": score}
        # The same anomalies after each epoch, so that losses can be compared.
        rng = Seed(0).rng("validation", case.number)
        changed, target = self._sample(scan, case.mask[box], rng)
        answers = tuple(map(torch.from_numpy, infer([changed])))
        targets = {key: torch.from_numpy(np.stack([part])) for key, part in target.items()}
        return {"loss": float(self._criterion()(answers, targets))}

    def _score_scan(self, scans: Scans, i: int) -> NDArray[np.float32]:
        mask = scans.mask(i)
        return self._smooth_scores(self._predict_scan(scans, i)["score"][mask], mask)

    def _check_restored(self) -> None:
        super()._check_restored()
        box, sizes = self.box_, self.shape_
        has_six = isinstance(box, tuple) and len(box) == 6 and all(type(n) is int for n in box)
        if not has_six or not all(0 <= box[k] < box[k + 3] <= sizes[k] for k in range(3)):
            raise ValueError(f"box_ is {box!r} in scans of {sizes} voxels")


def _bounding_box(mask: NDArray[np.bool_]) -> tuple[int, ...]:
    """Compute the first and the end voxel of the box around a mask, with a margin."""
    (extents,) = find_objects(mask.astype(np.int8))
    lows = [max(0, side.start - _BOX_MARGIN) for side in extents]
    highs = [min(n, side.stop + _BOX_MARGIN) for side, n in zip(extents, mask.shape, strict=True)]
    return (*lows, *highs)


def _slices(box: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(low, high) for low, high in zip(box[:3], box[3:], strict=True))
