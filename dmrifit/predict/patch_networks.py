"""Small torch networks over the neighborhood of a voxel, as scikit-learn regressors."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors.torch import load, save
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn

from dmrifit._utils.checks import Count, Within, check_fields
from dmrifit._utils.torch_state import forked_generator, one_torch_thread
from dmrifit.cohort.patches import check_patch_shape

#: Rows that are predicted at once, which bounds the memory of the layers.
_ROWS_AT_ONCE = 16384


@dataclass(eq=False, repr=False)
class _PatchNetwork(MultiOutputMixin, RegressorMixin, BaseEstimator, ABC):
    """Base of the patch networks: checks, seeding, training and prediction."""

    #: Says to `dmrifit.predict.algorithms`, which does not load torch, that a row is a
    #: neighborhood.
    patchwise: ClassVar[bool] = True

    # The defaults are those of `PatchCNN`.
    patch_shape: tuple[int, int, int] | None = None
    _: KW_ONLY
    loss: Literal["mean", "median"] = "mean"
    width: Count = 64
    depth: Annotated[int, Within()] = 1
    epochs: Count = 5
    batch_size: Count = 256
    learning_rate: Annotated[float, Within(above=0)] = 0.01
    dtype: Literal["float64", "float32"] = "float64"

    if TYPE_CHECKING:
        # Fields of each network, as these parameters stand last.
        device: str = "cpu"
        random_state: int | np.random.RandomState | None = None

    def fit(self, X: ArrayLike, y: ArrayLike) -> _PatchNetwork:
        """
        Train the network for its number of epochs.

        Shapes: `X` (n_voxels, n_neighbors * n_channels).
        """
        x, targets = validate_data(self, X, y, multi_output=True, y_numeric=True, dtype=np.float64)
        self._check()
        columns = targets.reshape(len(x), -1)
        self.n_targets_ = columns.shape[1]
        self.flat_ = targets.ndim == 1
        # Weights and batches have seeds of their own: the order does not shift with the width.
        seeds = check_random_state(self.random_state).randint(2**31 - 1, size=2)
        with one_torch_thread():
            rows, answers = self._tensor(x), self._tensor(columns)
            with forked_generator(int(seeds[0])):
                net = self._new_net().to(self.device)
            net.start(rows, answers)
            self.loss_curve_ = self._train(net, rows, answers, int(seeds[1]))
        self.net_ = net
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """
        Predict the targets of the voxels in the middle.

        Shapes: `X` (n_voxels, n_neighbors * n_channels).
        """
        check_is_fitted(self)
        x = validate_data(self, X, dtype=np.float64, reset=False)
        net = self.net_.eval()
        out = np.empty((len(x), self.n_targets_))
        with one_torch_thread(), torch.inference_mode():
            for first in range(0, len(x), _ROWS_AT_ONCE):
                rows = slice(first, first + _ROWS_AT_ONCE)
                out[rows] = net(self._tensor(x[rows])).cpu().numpy()
        return out[:, 0] if self.flat_ else out

    def weights(self) -> bytes:
        """Serialize the weights of the network."""
        check_is_fitted(self)
        state = self.net_.state_dict()
        return save({name: tensor.cpu().contiguous() for name, tensor in state.items()})

    def set_weights(self, weights: bytes) -> None:
        """
        Make the net of an estimator with known numbers of features and targets from weights.

        A device that this machine does not have becomes the CPU.
        """
        try:
            # The device that the file names may not be on this machine.
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError):
            self.device = "cpu"
        self._check()
        state = load(weights)
        if self.depth > len(state):
            raise ValueError(f"{len(state)} weights do not fit a depth of {self.depth}")
        # Before memory is allocated: a damaged file could ask for a network of any size.
        with torch.device("meta"):
            expected = self._new_net().state_dict()
        if _layout(state) != _layout(expected):
            raise ValueError(
                f"weights {sorted(state)} do not fit a {type(self).__name__} with these parameters"
            )
        with forked_generator(0):
            self.net_ = self._new_net().to(self.device)
        self.net_.load_state_dict(state)

    @abstractmethod
    def _module(self, n_channels: int, shape: tuple[int, int, int]) -> _Residual:
        """Make the network."""

    def _new_net(self) -> _Residual:
        """Make the network of a fitted estimator."""
        shape = (1, 1, 1) if self.patch_shape is None else check_patch_shape(self.patch_shape)
        n_channels = self.n_features_in_ // math.prod(shape)
        return self._module(n_channels, shape).to(self._dtype())

    def _train(
        self, net: _Residual, rows: torch.Tensor, targets: torch.Tensor, seed: int
    ) -> list[float]:
        """Train by shuffled batches; give the mean loss of every epoch."""
        generator = torch.Generator().manual_seed(seed)
        criterion = nn.L1Loss() if self.loss == "median" else nn.MSELoss()
        optimizer = torch.optim.Adam(net.parameters(), self.learning_rate, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs)
        curve = []
        for _ in range(self.epochs):
            total_loss = 0.0
            order = torch.randperm(len(rows), generator=generator).to(rows.device)
            for batch in order.split(self.batch_size):
                optimizer.zero_grad()
                loss = criterion(net(rows[batch]), targets[batch])
                loss.backward()
                optimizer.step()
                total_loss += loss.item() * len(batch)
            schedule.step()
            curve.append(total_loss / len(rows))
        return curve

    def _dtype(self) -> torch.dtype:
        # Apple's GPUs have no doubles.
        if torch.device(self.device).type == "mps" or self.dtype == "float32":
            return torch.float32
        return torch.float64

    def _tensor(self, values: NDArray[np.float64]) -> torch.Tensor:
        return torch.tensor(values, dtype=self._dtype(), device=self.device)

    def _check(self) -> None:
        """Check the parameters and that the columns are those of a neighborhood."""
        check_fields(self)
        if self.patch_shape is None:
            return
        n_neighbors = math.prod(check_patch_shape(self.patch_shape))
        if self.n_features_in_ % n_neighbors:
            raise ValueError(
                f"{self.n_features_in_} columns are no whole number of measurements in each of "
                f"{n_neighbors} neighbors; patch_shape={self.patch_shape} must be that of X"
            )


@dataclass(eq=False, repr=False)
class PatchCNN(_PatchNetwork):
    """
    Convolutional network over the neighborhood of a voxel.

    Convolutions without padding, three voxels wide, shrink the neighborhood to the voxel in the
    middle; layers on that voxel follow. They are added to a linear path from the measurements of
    the middle voxel, which starts as the solution of least squares, so that few epochs are enough.

    Parameters
    ----------
    patch_shape : tuple of 3 odd ints, optional
        The neighborhood that a row is; by default one voxel.
    loss : {"mean", "median"}, default="mean"
        Squared or absolute errors.
    width : int, default=64
        Channels of each layer.
    depth : int, default=1
        Layers after the convolutions.
    epochs : int, default=5
        Passes over the training data.
    batch_size : int, default=256
        Voxels per step.
    learning_rate : float, default=0.01
        Of the first epoch; it falls to zero as a cosine.
    dtype : {"float64", "float32"}, default="float64"
        Precision of weights and of training; single precision is quicker.
    device : str, default="cpu"
        Where torch computes.
    random_state : int, RandomState or None, default=None
        Seed of the first weights and of the order of the voxels.

    Attributes
    ----------
    net_ : torch.nn.Module
        The trained network.
    loss_curve_ : list of float
        Mean loss of each epoch of training.
    n_features_in_ : int
        Number of columns.
    n_targets_ : int
        Number of targets.
    """

    _: KW_ONLY
    device: str = "cpu"
    random_state: int | np.random.RandomState | None = None

    def _module(self, n_channels: int, shape: tuple[int, int, int]) -> _Residual:
        return _Convolutions(self, n_channels, shape)


@dataclass(eq=False, repr=False)
class PatchTransformer(_PatchNetwork):
    """
    Transformer over the neighborhood of a voxel: each neighbor is a token.

    The tokens get a learned position, attend to each other, and the one in the middle answers.
    This is added to a linear path from the measurements of the middle voxel, which starts as the
    solution of least squares, so that few epochs are enough. Parameters and attributes that are
    not listed are those of `PatchCNN`.

    Parameters
    ----------
    width : int, default=16
        Numbers per token.
    depth : int, default=1
        Layers.
    heads : int, default=2
        Attention heads per layer; the width is a multiple of it.
    epochs : int, default=4
        Passes over the training data.
    learning_rate : float, default=0.005
        Of the first epoch; it falls to zero as a cosine.
    """

    _: KW_ONLY
    width: Count = 16
    heads: int = 2
    epochs: Count = 4
    learning_rate: Annotated[float, Within(above=0)] = 0.005
    device: str = "cpu"
    random_state: int | np.random.RandomState | None = None

    def _check(self) -> None:
        super()._check()
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(f"width={self.width} must be a multiple of heads={self.heads}")

    def _module(self, n_channels: int, shape: tuple[int, int, int]) -> _Residual:
        return _Tokens(self, n_channels, shape)


def _layout(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()}


class _Residual(nn.Module, ABC):
    """A linear path from the middle voxel to the targets, plus layers that learn its residual."""

    def __init__(self, network: Any, n_channels: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.n_channels = n_channels
        self.center = math.prod(shape) // 2
        self.linear = nn.Linear(n_channels, network.n_targets_)

    @abstractmethod
    def correction(self, voxels: torch.Tensor) -> torch.Tensor:
        """Compute the term added to the linear path, for (n, neighbors, channels)."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        voxels = rows.unflatten(1, (-1, self.n_channels))
        return self.linear(voxels[:, self.center]) + self.correction(voxels)

    def start(self, rows: torch.Tensor, targets: torch.Tensor) -> None:
        """Initialize the linear path by ordinary least squares: few epochs are then enough."""
        middle = rows.unflatten(1, (-1, self.n_channels))[:, self.center].cpu().double()
        design = torch.cat([middle, torch.ones_like(middle[:, :1])], dim=1)
        # The driver copes with columns that repeat each other; it exists on the CPU only.
        solution = torch.linalg.lstsq(design, targets.cpu().double(), driver="gelsd").solution
        with torch.no_grad():
            self.linear.weight.copy_(solution[:-1].T)
            self.linear.bias.copy_(solution[-1])


class _Convolutions(_Residual):
    """Convolutions as products of gathered windows: faster than torch's on small images."""

    def __init__(self, network: PatchCNN, n_channels: int, shape: tuple[int, int, int]) -> None:
        super().__init__(network, n_channels, shape)
        width = network.width
        layers: list[nn.Module] = []
        channels = n_channels
        while True:
            windows, shape = _windows(shape)
            layers += [_Gather(windows), nn.Linear(channels * windows.shape[1], width), nn.ReLU()]
            channels = width
            if shape == (1, 1, 1):
                break
        layers.append(nn.Flatten())
        for _ in range(network.depth):
            layers += [nn.Linear(width, width), nn.ReLU()]
        self.layers = nn.Sequential(*layers, _zero_layer(width, network.n_targets_))

    def correction(self, voxels: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.layers(voxels)
        return answer


class _Gather(nn.Module):
    """Gather the voxels of windows: (n, voxels, channels) to (n, windows, columns)."""

    windows: torch.Tensor

    def __init__(self, windows: NDArray[np.int64]) -> None:
        super().__init__()
        self.register_buffer("windows", torch.from_numpy(windows), persistent=False)

    def forward(self, voxels: torch.Tensor) -> torch.Tensor:
        # One window is the whole neighborhood, which needs no copy.
        if len(self.windows) == 1:
            return voxels.flatten(1)[:, None]
        return voxels[:, self.windows].flatten(2)


class _Tokens(_Residual):
    """Layers of attention between the neighbors; the voxel in the middle answers."""

    def __init__(
        self, network: PatchTransformer, n_channels: int, shape: tuple[int, int, int]
    ) -> None:
        super().__init__(network, n_channels, shape)
        width = network.width
        self.embed = nn.Linear(n_channels, width)
        self.position = nn.Parameter(0.1 * torch.randn(math.prod(shape), width))
        self.layers = nn.Sequential()
        options: dict[str, Any] = {"dropout": 0.0, "batch_first": True, "norm_first": True}
        for _ in range(network.depth):
            layer = nn.TransformerEncoderLayer(width, network.heads, 2 * width, **options)
            self.layers.append(layer)
        self.answer = _zero_layer(width, network.n_targets_)

    def correction(self, voxels: torch.Tensor) -> torch.Tensor:
        tokens = self.layers(self.embed(voxels) + self.position)
        answer: torch.Tensor = self.answer(tokens[:, self.center])
        return answer


def _zero_layer(width: int, n_targets: int) -> nn.Linear:
    """Make a last layer whose output is zero until it is trained."""
    layer = nn.Linear(width, n_targets)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _windows(shape: tuple[int, int, int]) -> tuple[NDArray[np.int64], tuple[int, int, int]]:
    """Return the voxels of each window of a convolution, and the output's shape."""
    kernel = [min(3, n) for n in shape]
    x, y, z = (n - k + 1 for n, k in zip(shape, kernel, strict=True))
    numbers = np.arange(math.prod(shape)).reshape(shape)
    views = np.lib.stride_tricks.sliding_window_view(numbers, kernel)
    return views.reshape(x * y * z, math.prod(kernel)).copy(), (x, y, z)
