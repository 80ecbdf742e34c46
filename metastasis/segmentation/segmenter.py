"""DeepMedic and U-Net segmenter of brain metastases, with an optional prior scan."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from dmrifit._optional import import_optional
from dmrifit._utils.checks import Count, NotNegative, Within, check_number
from dmrifit.model_files.registry import register
from dmrifit.networks.training import Training
from dmrifit.networks.volume_cases import naming
from dmrifit.networks.volume_estimator import VolumeEstimator
from dmrifit.stats.lesion_matching import lesion_scores, lesion_table
from metastasis.scans import network_inputs
from metastasis.scans.scan_checks import MAX_EDGE_RATIO, checked_range, seen_range
from metastasis.segmentation.operating_points import OperatingPointMixin
from metastasis.segmentation.sampling import (
    MISTAKEN,
    case_inputs,
    draw_segments,
    lesion_voxels,
    lesion_weights,
    n_extra_channels,
    network_arguments,
)

if TYPE_CHECKING:
    import skorch
    import torch

__all__ = ["DeepMedicSegmenter"]

_DEFAULT_WIDTHS = {"deepmedic": (8, 8, 8, 16, 16, 16, 16, 16, 16), "unet": (8, 16, 32, 64)}
_DEFAULT_WIDTHS["small_unet"] = _DEFAULT_WIDTHS["unet"]
_UNETS = ("unet", "small_unet")
#: Sizes that a network shares with the one that it begins with, by their parameters.
_SIZES = {"network": "network", "widths": "_widths", "low_resolution": "_factors"}
#: Value of a label in voxels that are not judged, for the loss "lesion": the core of a ring.
_NOT_JUDGED = 2
_UpToOne = Annotated[float, Within(most=1)]
_PUBLISHED_WIDTHS = (30, 40, 50, 60, 70, 80, 90, 100, 110)


@register
@dataclass(repr=False, eq=False)
class DeepMedicSegmenter(OperatingPointMixin, VolumeEstimator):  # type: ignore[misc]
    """
    Segment metastases by a multi-resolution network that may use a prior scan of the patient.

    Each channel is scaled to mean 0 and standard deviation 1 over the brain: the voxels of a mask,
    or those that are not zero, as in a skull-stripped scan. Half of the segments that the network
    learns from have a lesion in their middle; they are turned, mirrored and scaled at random, and
    the choice depends on `random_state`, cases and labels alone, not on the loss. A whole volume
    is predicted at once, by `dense_logits` or, for a U-Net, `whole_logits` of
    `metastasis.segmentation.inference`; beyond its border the outermost voxels are repeated.
    Outside the brain the probability is 0.

    What the network sees of the cases is held in memory: for each voxel four bytes for every
    channel, as many for every factor of `low_resolution` and four for the prior.

    Without parameters it is a network that a processor trains; `published` gives the sizes of the
    publication.

    Parameters
    ----------
    loss : {"jvss", "vss", "sse", "bce", "lesion"}, default="jvss"
        What is minimized: `jvss_loss`, `vss_loss`, `sse_loss`, the binary cross-entropy, or
        cross-entropy and Dice coefficient with voxels of small lesions weighed more. With
        ``"lesion"`` labels may be those of `implant_lesions`, whose cores are not judged, and 4
        where an earlier network was mistaken, which is learned from more often.
    alpha : float, default=0.995
        Weight of sensitivity against specificity in the loss, from 0 to 1.
    prior : {"path", "shared", "channel", None}, default="path"
        Whether the prior scan has a path of its own that joins the others late, passes through the
        path of the scan, with the same weights, and is compared with it, is one more channel of
        the scan, or is not used. A network that is trained without any prior scan
        cannot use one later.
    low_resolution : tuple of int, default=(3, 5)
        Factors of the low-resolution paths. Not for the U-Net.
    segment_size : int, default=37
        Voxels of a segment along each axis. For the U-Net it is rounded up to what its levels
        divide.
    training : Training, optional
        How the network is trained; by default 20 epochs, 10 segments in a step and a constant
        learning rate of 0.001. Validation scores are lesion-wise Dice coefficients.
    device : str, default="auto"
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    random_state : int, RandomState or None, default=None
        Seed of weights, split and segments.
    network : {"deepmedic", "unet", "small_unet"}, default="deepmedic"
        The network: DeepMedic, the residual U-Net of MONAI, or a plain one that needs no MONAI.
    scaling : {"brain", "local"}, default="brain"
        Whether a channel has mean 0 and standard deviation 1 over the brain, or the local level of
        brain without enhancement is 1, for scans in which a coil's field varies.
    widths : tuple of int, optional
        Channels of the layers of each path, by default (8, 8, 8, 16, 16, 16, 16, 16, 16); of the
        levels of the U-Net, by default (8, 16, 32, 64).
    dense : tuple of int, default=(32,)
        Channels of the dense layers. Not for the U-Net.
    missing_prior : {"validity", "zeros"}, default="validity"
        Whether the network knows that a case has no prior scan, and sees some cases without theirs
        in training; or a missing one is a scan of zeros, as published.
    prior_dropout : float, default=0.25
        Share of segments whose prior is taken away in training. Not with zeros.
    sampling : {"lesion", "voxel"}, default="lesion"
        Whether all lesions, or all lesion voxels, are equally likely to be learned from.
    augment : bool, default=True
        Whether segments are turned by 90°, mirrored and scaled.
    appearance : float, default=1.0
        How much gamma, sharpness and noise of augmented segments vary with the scaling
        ``"local"``: 1 as between scanners, 0 not at all.
    low_resolution_input : {"average", "stride"}, default="average"
        Whether a low-resolution voxel is the mean of the voxels in it, or the one in its middle,
        as published, which small lesions can fall between.
    residual : bool, default=False
        Residual connections in the paths.
    normalization : {"batch", None}, default="batch"
        What follows each convolution of DeepMedic.
    dropout : float, default=0.0
        Share of features left out in training.
    reduction : {"paper", "code"}, default="paper"
        Denominators of the loss.
    optimizer : {"rmsprop", "adamw"}, default="rmsprop"
        RMSProp with Nesterov's momentum of 0.6 and penalties on weights, as published, or AdamW
        with `l2` as its decay of weights.
    l1, l2 : float, default=1e-6, 1e-4
        Weights of the penalties Σ|w| and Σw².
    threshold : float, default=0.5
        Probability from which a voxel is lesion, as long as no operating point is set.
    min_voxels : int, default=1
        Components of fewer voxels are left out of what `predict` marks; probabilities keep them. A
        sphere of 2 mm, as small as metastases are outlined, has 4 voxels of 1 mm.
    flips : bool, default=False
        Whether probabilities are averaged over the eight mirror images of a volume.
    spacing : float, optional
        Edge in mm of the voxels that the network sees. Images are resampled to it by cubic
        splines, on the grid of `prepare_scan`; answers come on their own grids. Arrays, which have
        no spacing, are taken as they are; so are images by default.
    warm_start_from : path, optional
        Model file of such a segmenter with a network of the same sizes: training begins with its
        weights.
    segments_per_epoch : int, default=200
        Segments in an epoch.

    Attributes
    ----------
    threshold_ : float
        Probability from which a voxel is lesion in `predict`.
    false_positives_ : float or None
        False positives per scan that `threshold_` was chosen for; None where it was not.
    prior_ : {"path", "shared", "channel", None}
        Where the network looks for a prior scan.
    net_ : skorch.NeuralNet
        The trained net.
    history_ : list of dict
        Losses and scores of each epoch.
    n_channels_ : int
        Channels of a volume.
    edge_ : float or None
        Edge in mm of the voxels in training: `spacing`, or else the median of all images; None of
        arrays without a `spacing`.
    synthetic_ : bool
        Whether it learned from simulated scans, as the command ``train`` knows; scans without a
        table are taken for real.
    seen_ : dict or None
        Ranges of intensities and of lesion volume in training, for `unlike_notes`.

    References
    ----------
    Huang et al., Medical Physics 49:5773–5786, 2022; Kamnitsas et al., Medical Image Analysis
    36:61–78, 2017.
    """

    _predicts_volumes = True
    _fitted_names = ("n_channels_", "edge_", "prior_", "threshold_", "false_positives_")

    default_training: ClassVar[Training] = Training(batch_size=10)

    loss: Literal["jvss", "vss", "sse", "bce", "lesion"] = "jvss"
    alpha: _UpToOne = 0.995
    prior: Literal["path", "shared", "channel"] | None = "path"
    low_resolution: Sequence[int] = (3, 5)
    segment_size: Count = 37
    _: KW_ONLY
    network: Literal["deepmedic", "unet", "small_unet"] = "deepmedic"
    scaling: Literal["brain", "local"] = "brain"
    widths: Sequence[Count] | None = None
    dense: Sequence[Count] = (32,)
    missing_prior: Literal["validity", "zeros"] = "validity"
    prior_dropout: _UpToOne = 0.25
    sampling: Literal["lesion", "voxel"] = "lesion"
    augment: bool = True
    appearance: _UpToOne = 1.0
    low_resolution_input: Literal["average", "stride"] = "average"
    residual: bool = False
    normalization: Literal["batch"] | None = "batch"
    dropout: Annotated[float, Within(below=1)] = 0.0
    reduction: Literal["paper", "code"] = "paper"
    optimizer: Literal["rmsprop", "adamw"] = "rmsprop"
    l1: NotNegative = 1e-6
    l2: NotNegative = 1e-4
    threshold: Annotated[float, Within(above=0, most=1)] = 0.5
    min_voxels: Count = 1
    flips: bool = False
    spacing: Annotated[float, Within(above=0)] | None = None
    warm_start_from: str | Path | None = None
    segments_per_epoch: Count = 200

    @classmethod
    def published(cls, **parameters: Any) -> DeepMedicSegmenter:
        """
        Give an estimator with the sizes and the training of the publication, which needs a GPU.

        Nine layers of 30 to 110 channels and two dense layers of 300: 3.7 million weights, 4.9
        with a path for the prior; 60 epochs of 20 000 segments, ten in a step, and a missing prior
        is a scan of zeros.

        Parameters
        ----------
        **parameters : dict
            Parameters that differ from the publication, and fields of ``training`` that do.

        Returns
        -------
        DeepMedicSegmenter
            Not fitted.
        """
        sizes: dict[str, Any] = {
            "widths": _PUBLISHED_WIDTHS,
            "dense": (300, 300),
            "dropout": 0.5,
            "missing_prior": "zeros",
            "sampling": "voxel",
            "low_resolution_input": "stride",
            "segments_per_epoch": 20000,
        }
        training = Training(epochs=60) | parameters.pop("training", None)
        return cls(**(sizes | parameters), training=training)

    # Public methods -----------------------------------------------------------------------------

    def fit(
        self,
        volumes: Sequence[Any],
        labels: Sequence[Any] | None = None,
        *,
        priors: Sequence[Any] | None = None,
        masks: Sequence[Any] | None = None,
        groups: Sequence[Any] | None = None,
    ) -> DeepMedicSegmenter:
        """
        Train the network.

        Parameters
        ----------
        volumes : sequence of n_cases
            Scans of shape (x, y, z) or (x, y, z, channels), as arrays or Nifti1Image; shapes may
            differ.
        labels : sequence of n_cases
            For each an array or image of shape (x, y, z), 1 in metastases and 0 elsewhere.
        priors : sequence of n_cases, optional
            For each the prior scan on the same grid, of shape (x, y, z), or None. One of zeros is
            missing too.
        masks : sequence of n_cases, optional
            For each the brain, of shape (x, y, z), above 0.5 inside, or None for the voxels that
            are not zero.
        groups : sequence of n_cases, optional
            The patient of each case: those of one patient are all learned from or all kept for
            validation.

        Returns
        -------
        self
            Itself.

        Raises
        ------
        ValueError
            If a parameter, a volume, a prior, a mask or a label is not possible, or the labels
            have no lesion, or nothing else; before the training starts.
        FloatingPointError
            If the loss becomes infinite or no number.
        ImportError
            If torch, skorch or, for the U-Net, monai is not installed.
        """
        self._check()
        cases = network_inputs.joined_cases(volumes, priors, masks)
        targets = None if labels is None else network_inputs.paired_labels(cases, labels)
        # A prior of zeros is a missing one.
        has_priors = any(
            np.any(network_inputs.values_of(prior)) for _, prior, _ in cases if prior is not None
        )
        self.prior_: str | None = self.prior if has_priors else None
        if self.network in _UNETS and self.prior_ in ("path", "shared"):
            raise ValueError(
                "the U-Net has no path for a prior scan; give prior='channel', or None to do "
                "without (--prior channel or none)"
            )
        # An operating point of an earlier training means nothing for the new network.
        self.__dict__.pop("threshold_", None)
        self.edge_: float | None = self.spacing
        edges = [network_inputs.edge_of(volume) for volume, _, _ in cases]
        image_edges = [edge for edge in edges if edge is not None]
        if self.spacing is None and image_edges:
            self.edge_ = float(np.median(image_edges))
        self._train(cases, targets, groups)
        self.threshold_ = float(self.threshold)
        self.false_positives_: float | None = None
        self.seen_: dict[str, list[float]] | None = seen_range(cases, targets or [])
        self.synthetic_ = False
        return self

    # Hooks of VolumeEstimator -------------------------------------------------------------------

    @property
    def _margin(self) -> tuple[int, int, int]:
        return (self._n_layers,) * 3

    @property
    def _n_layers(self) -> int:
        # Convolutions of U-Nets are padded, so that no voxel is lost.
        return 0 if self.network in _UNETS else len(self._widths)

    @property
    def _widths(self) -> tuple[int, ...]:
        return tuple(self.widths or _DEFAULT_WIDTHS[self.network])

    @property
    def _size(self) -> int:
        """Edge of a segment in voxels; for the U-Net a multiple of what its levels divide by."""
        if self.network not in _UNETS:
            return self.segment_size
        divisor = 2 ** (len(self._widths) - 1)
        return math.ceil(self.segment_size / divisor) * divisor

    @property
    def _factors(self) -> tuple[int, ...]:
        return () if self.network in _UNETS else tuple(self.low_resolution)

    def _module(self) -> torch.nn.Module:
        from metastasis.networks import architectures

        extra = n_extra_channels(self)
        if self.network in _UNETS:
            is_small = self.network == "small_unet"
            network: Any = architectures.SmallUNet if is_small else architectures.UNet
            return network(self.n_channels_ + extra, self._widths, dropout=self.dropout)
        return architectures.DeepMedic(
            self.n_channels_,
            self._widths,
            self._factors,
            tuple(self.dense),
            extra_channels=extra,
            prior_path=self.prior_ in ("path", "shared"),
            shared=self.prior_ == "shared",
            validity=self.missing_prior == "validity",
            residual=self.residual,
            normalization=self.normalization,
            dropout=self.dropout,
        )

    def _criterion(self) -> torch.nn.Module:
        from metastasis.networks import losses

        if self.loss in ("bce", "lesion"):
            return losses.VoxelLoss() if self.loss == "bce" else losses.LesionLoss()
        modules = {"jvss": losses.JVSSLoss, "vss": losses.VSSLoss, "sse": losses.SSELoss}
        return modules[self.loss](self.alpha, reduction=self.reduction)

    def _optimizer(self) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
        if self.optimizer == "adamw":
            return import_optional("torch.optim").AdamW, {"weight_decay": self.l2}
        from metastasis.networks import losses

        return losses.NesterovRMSprop, {"l1": self.l1, "l2": self.l2}

    def _predictions(self, X: Any) -> Iterator[Any]:
        # All shapes are checked before the first scan is segmented, which may take minutes.
        for number, case in enumerate(X):
            with naming(number):
                self._check_geometry(case)
                shape = np.shape(case[0])
                if len(shape) in (3, 4):
                    self._check_channels(shape[3] if len(shape) == 4 else 1)
        yield from super()._predictions(X)

    def _check_geometry(self, case: network_inputs.Scan) -> None:
        """Refuse a prior of another shape, and voxels of another edge than in training."""
        volume, prior, _ = case
        shape = np.shape(volume)[:3]
        if prior is not None and np.shape(prior) != shape:
            raise ValueError(
                f"a prior of shape {np.shape(prior)} for a volume of shape {shape}; resample it "
                "onto the grid of the volume, or give None for it"
            )
        edge, image_edge = self.edge_, network_inputs.edge_of(volume)
        # Scans are resampled to a spacing, so that their own voxels do not matter.
        if self.spacing is not None or edge is None or image_edge is None:
            return
        # The network knows lesions by their size in voxels, so a scan of much larger or smaller
        # voxels would be segmented badly without any sign of it.
        if not 1 / MAX_EDGE_RATIO <= image_edge / edge <= MAX_EDGE_RATIO:
            raise ValueError(
                f"scan voxels: {image_edge:.3g} mm, network voxels: {edge:.3g} mm; "
                f"resample the scan (prepare_scan does, spacing={edge:.3g}), or train with a "
                "spacing"
            )

    def _inputs(self, case: network_inputs.Scan) -> dict[str, NDArray[Any]]:
        self._check_geometry(case)
        return case_inputs(self, network_inputs.on_network_grid(case, self.spacing))

    def _check_inputs(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        self._check_channels(len(inputs["image"]))

    def _target(
        self, target: tuple[Any, Any], inputs: Mapping[str, NDArray[Any]]
    ) -> dict[str, NDArray[Any]]:
        binary = network_inputs.label_on_network_grid(
            self._reference(*target), target[1], self.spacing
        )
        voxels, ends = lesion_voxels(binary)
        content: dict[str, NDArray[Any]] = {"label": binary, "voxels": voxels, "ends": ends}
        if self.loss == "lesion":
            values = np.asarray(network_inputs.values_of(target[0]))
            ignored, mistaken = (
                network_inputs.label_on_network_grid(values == kind, target[1], self.spacing)
                for kind in (_NOT_JUDGED, MISTAKEN)
            )
            content["weight"] = lesion_weights(binary, ignored)
            content["mistaken"] = np.flatnonzero(mistaken)
        return content

    def _learn(self, inputs: Sequence[Any], targets: Sequence[Any]) -> None:
        self.n_channels_ = len(inputs[0]["image"])
        out = network_inputs.output_size(self._size, self._n_layers)
        values = set()
        for number in range(len(inputs)):
            shape = inputs[number]["image"].shape[1:]
            if self.network == "deepmedic" and min(shape) < out:
                raise ValueError(
                    f"case {number}: a volume of shape {shape} is smaller than the {out} voxels "
                    f"along each axis that a segment of {self._size} returns; lower segment_size, "
                    "set a finer spacing, take network='unet', or leave the case out"
                )
            with naming(number):
                values |= set(np.unique(self._reference(*targets[number])).tolist())
        if values != {0, 1}:
            content = "nothing but lesion voxels" if 1 in values else "no lesion voxel"
            raise ValueError(
                f"the labels of all {len(inputs)} cases of this training hold {content}; both "
                "classes are needed to learn from, in each fold too"
            )

    def _stream(
        self, inputs: Sequence[Any], targets: Sequence[Any], rng: np.random.Generator, epoch: int
    ) -> Iterator[tuple[Any, Any]]:
        for sample, label in draw_segments(self, inputs, targets, rng):
            yield network_arguments(self, sample), label

    def _answer(self, net: skorch.NeuralNet, inputs: Any, case: Any) -> NDArray[np.float32]:
        """Give the probabilities of a case on its own grid."""
        from metastasis.segmentation import inference

        torch = import_optional("torch")
        module = net.module_

        def probabilities(sample: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
            arguments = network_arguments(self, sample)
            is_unet = self.network in _UNETS
            logits_of = inference.whole_logits if is_unet else inference.dense_logits
            return torch.from_numpy(logits_of(module, arguments)).sigmoid_().numpy()

        with self._evaluating(net):
            if self.flips:
                probability = inference.averaged_over_flips(probabilities, inputs)
            else:
                probability = probabilities(inputs)
        # Air and skull are outside what the network learned from.
        return network_inputs.on_scan_grid(
            probability, case[0], self.spacing
        ) * network_inputs.brain_of(case)

    def _case_score(self, prediction: NDArray[np.float32], target: tuple[Any, Any]) -> float:
        # During training there is no operating point yet.
        threshold = getattr(self, "threshold_", self.threshold)
        label = self._reference(*target)
        table = lesion_table(label, prediction >= threshold, min_voxels=self.min_voxels)
        return lesion_scores(table)["lesion_dice"]

    def _check(self) -> None:
        super()._check()
        factors = self.low_resolution
        # bool is a subclass of int, so isinstance would accept True.
        is_list = isinstance(factors, tuple | list)
        if not is_list or not all(type(factor) is int and factor > 1 for factor in factors):
            raise ValueError(f"low_resolution must be whole numbers above 1, not {factors!r}")
        if len(set(factors)) != len(factors):
            raise ValueError(f"low_resolution has a factor twice: {factors!r}")
        if self.low_resolution_input == "stride" and any(factor % 2 == 0 for factor in factors):
            raise ValueError(
                f"cells of an even width have no voxel in their middle: {factors!r}; "
                "use low_resolution_input='average'"
            )
        network_inputs.output_size(self._size, self._n_layers)

    # Model files --------------------------------------------------------------------------------

    def _first_model(self) -> DeepMedicSegmenter | None:
        if self.warm_start_from is None:
            return None
        from dmrifit.model_files.model_file import load_model

        model: Any = self.warm_start_from
        # `TwoStageSegmenter` gives the segmenter itself, for one training.
        if not isinstance(model, DeepMedicSegmenter):
            model = load_model(model)
        if not isinstance(model, DeepMedicSegmenter):
            raise ValueError(
                f"{self.warm_start_from} holds a {type(model).__name__}; training begins with the "
                "weights of a DeepMedicSegmenter"
            )
        for name, attribute in _SIZES.items():
            stored, own = getattr(model, attribute), getattr(self, attribute)
            if stored != own:
                words = stored if isinstance(stored, str) else ",".join(map(str, stored))
                # The command has no option for factors.
                option = "in Python" if name == "low_resolution" else f"--{name} {words}"
                raise ValueError(
                    f"training cannot begin with {self.warm_start_from}, whose network has the "
                    f"{name} {stored!r}, and this one {own!r}; give the same {name} ({option})"
                )
        return model

    def _fitted_state(self) -> dict[str, Any]:
        names = ("seen_", "synthetic_")
        return super()._fitted_state() | {name: getattr(self, name, None) for name in names}

    def _restore_fitted(self, fitted: Mapping[str, Any]) -> None:
        others = dict(fitted)
        # Files that were made before this was stored stay readable.
        self.seen_ = checked_range(others.pop("seen_", None))
        self.synthetic_ = bool(others.pop("synthetic_", False))
        super()._restore_fitted(others)

    def _check_restored(self) -> None:
        super()._check_restored()
        check_number("threshold_", self.threshold_, most=1)
        for name in ("false_positives_", "edge_"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name))
        if self.prior_ not in (self.prior, None):
            raise ValueError(f"prior_ is {self.prior_!r} where prior is {self.prior!r}")

    def _plain(self) -> dict[str, Any]:
        parameters = super()._plain()
        # A path is valid on one machine only.
        parameters["warm_start_from"] = None
        return parameters
