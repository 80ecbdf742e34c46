"""Anomalies as what a network finds that has learned to tell synthetic ones from healthy tissue."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from anomaly.detectors.base import Scans
from anomaly.detectors.network_base import REGIONS, RESIDUALS, Reconstructor, residual_map
from anomaly.generators.corruptions import (
    COUNTS,
    RADII,
    TissueMoments,
    check_corruption,
    corrupt_in_place,
)
from dmrifit._utils.checks import check_number, check_word
from dmrifit._utils.randomness import RandomState, seed_for
from dmrifit.io.parameter_json import RefusedError
from dmrifit.model_files.registry import register

if TYPE_CHECKING:
    import torch

__all__ = ["RecDiscNet"]

_CHOICES = {"output": ("linear", "sigmoid"), "residual": RESIDUALS, "region": REGIONS}


@register
class RecDiscNet(Reconstructor):
    """
    Find anomalies by a network that has learned to find synthetic ones in healthy scans.

    Scans are corrupted as by `corrupt`. One network reconstructs what they were before, without skip connections, and
    another one, with them, sees scan and reconstruction side by side and says where the anomaly is. A voxel's score is
    the probability that it gives. How far the reconstruction differs is another score, given by `residual_map`.

    A scan whose size cannot be halved as often as the levels ask for is padded with zeros, as many on either side and
    an odd one at the end; maps have the size of the scan. Scans need not have the size of those that were learned from.

    The network sees a box around all brains that were learned from, two voxels wider on each side, and larger where the
    brain of a scan is; all else is 0 anyway.

    Without parameters it is a network that a processor trains; `published` gives the sizes of the publication.

    Parameters
    ----------
    noise : str, default="mix"
        What ellipsoids are filled with, as of `corrupt`.
    mean : {"half", "full"}, default="half"
        Mean of the noise: half of that of brain tissue, or all of it.
    mse_weight : float, default=5
        Weight of the mean squared error of the reconstruction in the loss. The paper has 1.
    bce_weight : float, default=1
        Weight of the cross-entropy of the discriminator. The paper has ω and does not say its value; that of the
        published code is 0.2 with a weight of 1 for the squared error.
    positive_weight : float, default=20
        Weight of voxels of anomalies in the cross-entropy.
    reconstruction_width, discrimination_width : int, default=8, 8
        Channels of the first levels of the two networks.
    levels : int, default=3
        Resolutions of both.
    stem : int or None, default=16
        Channels that each of the two makes of its input first, by a convolution of 1³ that costs little; None, as
        published, to do without.
    convolutions : int, default=1
        Of each level, on the way down and on the way up; 2 as published.
    output : {"linear", "sigmoid"}, default="linear"
        What the reconstruction ends with.
    residual : {"mean", "mean-of-abs"}, default="mean"
        How residuals are averaged over the channels by `residual_map`.
    repeats : int, default=4
        How often each scan is learned from in an epoch, with an anomaly of its own each time.
    fresh : bool, default=True
        Whether anomalies are new in every epoch, or four (`repeats`) of each scan are drawn once, as published.
    counts : sequence of 3 floats, default=(0.2, 0.6, 0.2)
        How often there are no, one and two ellipsoids.
    radii : sequence of 2 floats, default=(0.174, 0.382)
        Least and largest radius, times that of a ball as large as the brain.
    scale : {None, "image"}, default=None
        With ``"image"`` a map is divided by its own 99.9 % quantile and cut off at 1. Probabilities need no scale.
    threshold : threshold rule, optional
        What makes a map binary, fitted to scans that were not learned from; by default `HealthyRateThreshold(0.01)`.
    calibration : float, int or None, default=0.25
        The healthy scans for the threshold: a share of the subjects that is not learned from; a number of folds, each
        of which is one more training; or None, to do without.
    region : {"brain", "volume"}, default="brain"
        The voxels that count in the loss: those of the brain, and the network begins with the mean signal of each
        channel in them; or all, as published.
    decay : float, default=1.0
        What the learning rate is multiplied by after each epoch.
    epochs : int, default=4
        Passes over the scans, `repeats` times each.
    batch_size : int, default=1
        Scans in a step; 4 in `published`.
    learning_rate : float, default=0.003
        Of the first epoch, of Adam; 0.001 in the publication.
    schedule : {"constant", "cosine"}, default="cosine"
        Whether the learning rate stays, but for `decay`, or falls to zero over the epochs too.
    validation_fraction : float, default=0.0
        Share of the subjects whose loss is computed after each epoch, with anomalies that stay the same, and that are
        not learned from.
    patience : int, optional
        End the training after so many epochs without a smaller loss, and take the best weights.
    mixed_precision, compile : bool, default=False
        On a GPU only.
    checkpoint : path, optional
        Folder for the states of trainings.
    verbose : bool, default=False
        Whether to show the time left.
    device : str, default="auto"
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    random_state : int, RandomState or None, default=None
        Seed of weights, split, order of scans and anomalies.

    Attributes
    ----------
    box_ : tuple of 6 int
        First voxel of the box that the network sees, and the one after its last.
    moments_ : dict
        ``mean`` and ``sd`` of the signals of brain tissue in the scans that were learned from.
    threshold_ : threshold rule or None
        Fitted to the scans that were held back.
    net_ : skorch.NeuralNet
        The trained net.
    history_ : list of dict
        What is known of each epoch.
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

    moments_: dict[str, float]
    box_: tuple[int, ...]

    def __init__(
        self,
        noise: str = "mix",
        mean: str = "half",
        mse_weight: float = 5.0,
        bce_weight: float = 1.0,
        positive_weight: float = 20.0,
        *,
        reconstruction_width: int = 8,
        discrimination_width: int = 8,
        levels: int = 3,
        stem: int | None = 16,
        convolutions: int = 1,
        output: str = "linear",
        residual: str = "mean",
        repeats: int = 4,
        fresh: bool = True,
        counts: Sequence[float] = COUNTS,
        radii: Sequence[float] = RADII,
        scale: str | None = None,
        threshold: Any = None,
        calibration: float | int | None = 0.25,
        region: str = "brain",
        decay: float = 1.0,
        epochs: int = 4,
        batch_size: int = 1,
        learning_rate: float = 0.003,
        schedule: str = "cosine",
        validation_fraction: float = 0.0,
        patience: int | None = None,
        mixed_precision: bool = False,
        compile: bool = False,
        checkpoint: str | Path | None = None,
        verbose: bool = False,
        device: str = "auto",
        random_state: RandomState = None,
    ) -> None:
        super().__init__(
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            schedule=schedule,
            validation_fraction=validation_fraction,
            patience=patience,
            mixed_precision=mixed_precision,
            compile=compile,
            checkpoint=checkpoint,
            verbose=verbose,
            device=device,
            random_state=random_state,
        )
        self.noise = noise
        self.mean = mean
        self.mse_weight = mse_weight
        self.bce_weight = bce_weight
        self.positive_weight = positive_weight
        self.reconstruction_width = reconstruction_width
        self.discrimination_width = discrimination_width
        self.levels = levels
        self.stem = stem
        self.convolutions = convolutions
        self.output = output
        self.residual = residual
        self.repeats = repeats
        self.fresh = fresh
        self.counts = counts
        self.radii = radii
        self.scale = scale
        self.threshold = threshold
        self.calibration = calibration
        self.region = region
        self.decay = decay

    @classmethod
    def published(cls, **parameters: Any) -> RecDiscNet:
        """
        Give an estimator with the sizes and the training of the publication; a GPU is needed to train it.

        A reconstruction of 128 channels at its first level and a discriminator of 16, each scan with the same four
        anomalies in all 500 epochs. Weights as in the published code; for those of the paper give ``mse_weight=1`` and
        a ``bce_weight`` of your own (in the code 0.2, relative to the squared error).

        Parameters
        ----------
        **parameters : dict
            Parameters that are to differ.

        Returns
        -------
        RecDiscNet
            Not fitted.
        """
        sizes: dict[str, Any] = {
            "reconstruction_width": 128,
            "discrimination_width": 16,
            "stem": None,
            "convolutions": 2,
            "fresh": False,
            "region": "volume",
            "decay": 0.95,
            "epochs": 500,
            "batch_size": 4,
            "learning_rate": 0.001,
            "schedule": "constant",
        }
        return cls(**(sizes | parameters))

    def residual_map(self, X: Any, masks: Any = None) -> NDArray[np.float32]:
        """
        Score every voxel of scans by how far its reconstruction differs, instead of by the discriminator.

        Parameters
        ----------
        X : ndarray of shape (n_scans, x, y, z, channels), or sequence of n_scans arrays of shape (x, y, z, channels)
            Scans, which may have lesions.
        masks : ndarray of shape (n_scans, x, y, z), or sequence of n_scans arrays of shape (x, y, z), optional
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
            answer = self._ask(scans, i)
            found = residual_map(answer["scan"], answer["reconstruction"], residual=self.residual)
            maps[i] = np.where(scans.mask(i), found, 0)
        return maps

    # What the bases ask for -----------------------------------------------------------------------

    def _check(self) -> None:
        super()._check()
        for name, known in _CHOICES.items():
            check_word(name, getattr(self, name), known)
        check_corruption(self.noise, self.mean, self.counts, self.radii)
        for name in ("mse_weight", "bce_weight", "positive_weight"):
            check_number(name, getattr(self, name))
        for name in (
            "reconstruction_width",
            "discrimination_width",
            "levels",
            "convolutions",
            "repeats",
        ):
            check_number(name, getattr(self, name), least=1, whole=True)
        if self.stem is not None:
            check_number("stem", self.stem, least=1, whole=True)
        if not self.mse_weight and not self.bce_weight:
            raise ValueError(
                "mse_weight and bce_weight are both 0, so that nothing would be learned; give one of them"
            )

    def _learn(self, inputs: Any, targets: Any) -> None:
        super()._learn(inputs, targets)
        found = TissueMoments.measured((np.moveaxis(one, 0, -1) for one in inputs), targets)
        self.moments_ = {"mean": found.mean, "sd": found.sd}
        self.box_ = _around(np.any(self._masks, axis=0))
        size = [high - low for low, high in zip(self.box_[:3], self.box_[3:], strict=True)]
        if self.levels > 1 and max(size) <= 2 ** (self.levels - 1):
            most = max((max(size) - 1).bit_length(), 1)
            voxels = " × ".join(map(str, size))
            raise ValueError(
                f"levels={self.levels} halve a brain of {voxels} voxels until one is left; take {most} at most"
            )

    def _box(self, mask: NDArray[np.bool_]) -> tuple[slice, ...]:
        """Give the box that the network sees of a scan."""
        low, high = np.split(np.array(_around(mask)), 2)
        if mask.shape == self.shape_:
            low, high = np.minimum(low, self.box_[:3]), np.maximum(high, self.box_[3:])
        return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))

    def _module(self) -> torch.nn.Module:
        from anomaly.networks.architectures import ReconstructionDiscrimination

        module: torch.nn.Module = self._leveled(
            ReconstructionDiscrimination(
                self.n_channels_,
                self.reconstruction_width,
                self.discrimination_width,
                self.levels,
                output=self.output,
                stem=self.stem,
                convolutions=self.convolutions,
            )
        )
        return module

    def _criterion(self) -> torch.nn.Module:
        from anomaly.networks.losses import DiscriminationLoss

        return DiscriminationLoss(self.mse_weight, self.bce_weight, self.positive_weight)

    def _target(self, target: Any, inputs: NDArray[np.float32]) -> NDArray[np.bool_]:
        return np.asarray(target, dtype=bool)

    def _corrupted(
        self, scan: NDArray[np.float32], mask: NDArray[np.bool_], rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Give a scan with anomalies, channels first, and where they are as one more volume of a channel."""
        changed = scan.copy()
        anomaly = corrupt_in_place(
            np.moveaxis(changed, 0, -1),
            mask,
            rng,
            TissueMoments(**self.moments_),
            noise=self.noise,
            mean=self.mean,
            counts=self.counts,
            radii=self.radii,
        )
        return changed, anomaly[None].astype(np.float32)

    def _stream(
        self, inputs: Sequence[Any], targets: Sequence[Any], rng: np.random.Generator, epoch: int
    ) -> Iterator[tuple[Any, Any]]:
        box = _slices(self.box_)
        fixed = int(self.random_state) if isinstance(self.random_state, int | np.integer) else 0
        for draw in rng.permutation(self.repeats * len(inputs)):
            i = int(draw) // self.repeats
            own = (
                rng if self.fresh else np.random.default_rng(seed_for(fixed, "anomaly", int(draw)))
            )
            volume, mask = inputs[i][:, *box], targets[i][box]
            changed, anomaly = self._corrupted(volume, mask, own)
            brain = {"brain": mask[None].astype(np.float32)} if self.region == "brain" else {}
            yield changed, {"volume": volume, "anomaly": anomaly} | brain

    def _predict_case(
        self, infer: Callable[[Any], Any], inputs: NDArray[np.float32], case: Any
    ) -> dict[str, Any]:
        box = self._box(case.mask)
        if case.number is None:
            inner, logits = (part[0] for part in infer([inputs[:, *box]]))
            # Outside the brain nothing is scored.
            reconstruction = np.zeros_like(inputs)
            reconstruction[:, *box] = inner
            score = np.zeros(case.mask.shape, dtype=np.float32)
            # 1 / (1 + exp(−logit)) without an overflow.
            score[box] = np.exp(-np.logaddexp(np.float32(0), -logits[0]))
            return {"reconstruction": reconstruction, "scan": inputs, "score": score}
        inputs, mask = inputs[:, *box], case.mask[box]
        # The same anomalies after each epoch, so that losses can be compared.
        rng = np.random.default_rng(seed_for(0, "validation", case.number))
        changed, anomaly = self._corrupted(inputs, mask, rng)
        reconstruction, logits = (part[0].astype(np.float64) for part in infer([changed]))
        counted = mask if self.region == "brain" else np.ones_like(mask)
        error = np.square(reconstruction - inputs).mean(axis=0)[counted].mean()
        weight = np.where(anomaly > 0, self.positive_weight, 1.0)
        entropy = (weight * np.logaddexp(0, np.where(anomaly > 0, -logits, logits)))[0][
            counted
        ].mean()
        return {"loss": float(self.mse_weight * error + self.bce_weight * entropy)}

    def _score_scan(self, scans: Scans, i: int) -> NDArray[np.float32]:
        score: NDArray[np.float32] = self._ask(scans, i)["score"]
        return score

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
        super().restore(fitted, files)
        box, sizes = self.box_, self.shape_
        whole = isinstance(box, tuple) and len(box) == 6 and all(type(n) is int for n in box)
        if not whole or not all(0 <= box[k] < box[k + 3] <= sizes[k] for k in range(3)):
            raise RefusedError(f"box_ is {box!r} in scans of {sizes} voxels")


def _around(mask: NDArray[np.bool_], margin: int = 2) -> tuple[int, ...]:
    """Give the box around a mask, wider by a margin but inside the volume: first voxel, and the one after the last."""
    lows, highs = [], []
    for axis in range(3):
        there = np.flatnonzero(mask.any(axis=tuple(k for k in range(3) if k != axis)))
        lows.append(max(0, int(there[0]) - margin))
        highs.append(min(mask.shape[axis], int(there[-1]) + 1 + margin))
    return (*lows, *highs)


def _slices(box: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(a, b) for a, b in zip(box[:3], box[3:], strict=True))
