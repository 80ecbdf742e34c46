"""Training by skorch: the net, its loss, batches of samples of different shapes, epochs."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import skorch
import torch
from skorch.utils import to_tensor
from torch import nn
from tqdm import tqdm

from dmrifit._utils.randomness import derived_seed, seed_for
from dmrifit._utils.torch_state import forked_generator, repeatable_kernels, seed_generators

__all__ = ["Batches", "Epochs", "Net", "StoppedError", "WithMargin", "as_arrays", "collated"]


# The net ---------------------------------------------------------------------------------------


class Net(skorch.NeuralNet):
    """
    A skorch net that takes finished batches and computes its loss in single precision.

    Parameters
    ----------
    *args, **kwargs
        As of `skorch.NeuralNet`.
    mixed : bool, default=False
        Whether the network computes in bfloat16 where that is precise enough.
    """

    def __init__(self, *args: Any, mixed: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.mixed = mixed

    def get_iterator(self, dataset: Any, training: bool = False) -> Any:
        """Give the batches: they are their own iterator."""
        return dataset

    def infer(self, x: Any, **fit_params: Any) -> Any:
        """Run the network on a batch."""
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.mixed):
            return super().infer(x, **fit_params)

    def get_loss(
        self, y_pred: Any, y_true: Any, X: Any = None, training: bool = False
    ) -> torch.Tensor:
        """Compute the loss of a batch."""
        # In less than single precision, probabilities near one would be one.
        targets = to_tensor(y_true, device=self.device)
        with torch.autocast(torch.device(self.device).type, enabled=False):
            loss: torch.Tensor = self.criterion_(_single(y_pred), targets)
        return loss


def _single(part: Any) -> Any:
    """Give tensors of less precision in single precision."""
    if isinstance(part, torch.Tensor):
        return part.float() if part.dtype in (torch.bfloat16, torch.float16) else part
    if isinstance(part, Mapping):
        return {key: _single(value) for key, value in part.items()}
    return type(part)(_single(value) for value in part)


class WithMargin(nn.Module):
    """
    A loss whose target volumes are cropped to what a network without padding answers.

    Torch repeats a volume of one voxel over a larger one, or compares volumes of different shapes
    with no more than a warning; here that is an error.

    Parameters
    ----------
    criterion : Module
        Called with answers and targets.
    margin : tuple of 3 ints, default=(0, 0, 0)
        Voxels that the network loses on either side of each axis.
    """

    def __init__(self, criterion: nn.Module, margin: tuple[int, int, int] = (0, 0, 0)) -> None:
        super().__init__()
        self.criterion = criterion
        self.margin = margin

    def forward(self, answers: Any, targets: Any) -> torch.Tensor:
        """Compute the loss."""
        if (
            isinstance(answers, torch.Tensor)
            and isinstance(targets, torch.Tensor)
            and targets.ndim == 5
        ):
            inner = [slice(m, n - m) for m, n in zip(self.margin, targets.shape[2:], strict=True)]
            targets = targets[:, :, inner[0], inner[1], inner[2]]
            if answers.shape[2:] != targets.shape[2:]:
                raise ValueError(
                    f"the network answers {tuple(answers.shape[2:])} voxels where the target has "
                    f"{tuple(targets.shape[2:])}; it loses another margin than {self.margin} "
                    "voxels on either side"
                )
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Using a target size", UserWarning)
            try:
                loss: torch.Tensor = self.criterion(answers, targets)
            except UserWarning as error:
                raise ValueError(
                    f"answers and targets have different shapes, which torch would repeat: {error}"
                ) from error
        return loss


# Batches ---------------------------------------------------------------------------------------


class Batches(torch.utils.data.Dataset[Any]):
    """
    Batches out of a stream of samples of different shapes; those of one shape come together.

    Every epoch has a generator of its own, so that a training that resumes sees what it would have
    seen.

    Parameters
    ----------
    stream : callable
        Gives the samples of an epoch, pairs of inputs and targets, from a `numpy.random.Generator`
        and the number of the epoch.
    batch_size : int
        Samples in a batch; fewer where no more of a shape come.
    seed : int
        Of all epochs.
    """

    def __init__(
        self,
        stream: Callable[[np.random.Generator, int], Iterator[tuple[Any, Any]]],
        batch_size: int,
        seed: int,
    ) -> None:
        self.stream = stream
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        rng = np.random.default_rng(seed_for(self.seed, "stream", self.epoch))
        waiting: dict[Any, list[Any]] = defaultdict(list)
        empty = True
        for sample in self.stream(rng, self.epoch):
            empty = False
            alike = waiting[_shapes(sample)]
            alike.append(sample)
            if len(alike) == self.batch_size:
                yield collated(alike)
                alike.clear()
        for alike in waiting.values():
            if alike:
                yield collated(alike)
        if empty:
            raise ValueError(
                f"no samples came in epoch {self.epoch}: the cases hold none to learn from"
            )


def _shapes(part: Any) -> Any:
    if isinstance(part, Mapping):
        return tuple((key, _shapes(value)) for key, value in part.items())
    if isinstance(part, tuple | list):
        return tuple(_shapes(value) for value in part)
    return np.shape(part)


def collated(samples: Sequence[Any]) -> Any:
    """Lay samples of one shape together as tensors."""
    first = samples[0]
    if isinstance(first, Mapping):
        return {key: collated([sample[key] for sample in samples]) for key in first}
    if isinstance(first, tuple | list):
        return tuple(collated(part) for part in zip(*samples, strict=True))
    stacked = np.stack([np.asarray(sample) for sample in samples])
    return torch.from_numpy(
        stacked.astype(np.float32, copy=False) if stacked.dtype.kind == "f" else stacked
    )


def as_arrays(part: Any) -> Any:
    """Give tensors as arrays."""
    if isinstance(part, torch.Tensor):
        return _single(part).cpu().numpy()
    if isinstance(part, Mapping):
        return {key: as_arrays(value) for key, value in part.items()}
    return tuple(as_arrays(value) for value in part)


# Epochs ----------------------------------------------------------------------------------------


class StoppedError(Exception):
    """No epoch is needed any more. Not an interrupt: skorch swallows those of the user too."""


class Epochs(skorch.callbacks.Callback):
    """
    Epochs of a training: seed and learning rate, validation score, state in a file.

    Parameters
    ----------
    batches : Batches
        They are told which epoch it is.
    rates : callable
        Gives the learning rate of an epoch by its number.
    epochs : int
        How many there are.
    seed : int
        Of all epochs.
    score : callable, optional
        Scores the validation cases with the net as it is; more is better.
    patience : int, optional
        After so many epochs without a better score it ends, and the best weights come back.
    save : callable, optional
        Writes the state of the net; takes the best weights.
    best : dict of tensors, optional
        Weights of the best epoch so far, of a training that resumes.
    verbose : bool, default=False
        Whether a bar with the time left is shown.
    """

    def __init__(
        self,
        batches: Batches,
        rates: Callable[[int], float],
        epochs: int,
        seed: int,
        *,
        score: Callable[[skorch.NeuralNet], float] | None = None,
        patience: int | None = None,
        save: Callable[[skorch.NeuralNet, dict[str, torch.Tensor] | None], None] | None = None,
        best: dict[str, torch.Tensor] | None = None,
        verbose: bool = False,
    ) -> None:
        self.batches = batches
        self.rates = rates
        self.epochs = epochs
        self.seed = seed
        self.score = score
        self.patience = patience
        self.save = save
        self.best = best
        self.verbose = verbose

    def run(self, net: skorch.NeuralNet) -> None:
        """Train a net for the epochs that are left."""
        done = len(net.history)
        device = torch.device(net.device)
        net.callbacks_ += [("epochs", self)]
        bar = tqdm(
            total=self.epochs, initial=done, unit="epoch", desc="train", disable=not self.verbose
        )
        try:
            with forked_generator(self.seed, device), repeatable_kernels(), bar:
                self._bar = bar
                if not self._enough(net):
                    net.fit_loop(self.batches, epochs=self.epochs - done)
        except StoppedError:
            pass
        finally:
            net.callbacks_.pop()
        if self.best is not None:
            net.module_.load_state_dict(self.best)

    def on_epoch_begin(self, net: skorch.NeuralNet, **kwargs: Any) -> None:
        """Set seed, learning rate and samples of an epoch."""
        epoch = len(net.history) - 1
        self.batches.epoch = epoch
        rate = self.rates(epoch)
        for group in net.optimizer_.param_groups:
            group["lr"] = rate
        net.history.record("learning_rate", rate)
        # From its number, not from what came before: an epoch does not ask who drew in between.
        seed_generators(derived_seed(self.seed, "epoch", epoch), torch.device(net.device))

    def on_epoch_end(self, net: skorch.NeuralNet, **kwargs: Any) -> None:
        """Score, save, show, and end when no epoch is needed any more."""
        row = net.history[-1]
        if not np.isfinite(row["train_loss"]):
            raise FloatingPointError(
                f"the loss became {row['train_loss']} in epoch {row['epoch']} with a learning "
                "rate of "
                f"{row['learning_rate']:g}; lower learning_rate"
            )
        # A loss can be finite whose gradient is not: the last step of an epoch would go unnoticed,
        # and be saved.
        broken = [
            name
            for name, value in net.module_.named_parameters()
            if not torch.isfinite(value).all()
        ]
        if broken:
            raise FloatingPointError(
                f"weights became infinite or no number in epoch {row['epoch']} "
                f"({', '.join(broken[:3])}), though the "
                f"loss did not; lower learning_rate={row['learning_rate']:g}, or look for a root "
                "or logarithm of 0"
            )
        row["batches"] = []
        shown = {"loss": f"{row['train_loss']:.4g}"}
        if self.score is not None:
            score = float(self.score(net))
            net.history.record("valid_score", score)
            shown["score"] = f"{score:.4g}"
            if self.patience is not None and _best_epoch(net.history) == len(net.history) - 1:
                self.best = {
                    key: value.detach().clone() for key, value in net.module_.state_dict().items()
                }
        if self.save is not None:
            self.save(net, self.best)
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update()
        if self._enough(net):
            raise StoppedError

    def _enough(self, net: skorch.NeuralNet) -> bool:
        done = len(net.history)
        waited = done - 1 - _best_epoch(net.history) if self.patience is not None and done else 0
        return done >= self.epochs or (self.patience is not None and waited >= self.patience)


def _best_epoch(history: Sequence[Mapping[str, Any]]) -> int:
    """Find the first of the best epochs; a score that is no number is the worst."""
    scores = [row["valid_score"] for row in history]
    return int(np.argmax([-np.inf if np.isnan(score) else score for score in scores]))
