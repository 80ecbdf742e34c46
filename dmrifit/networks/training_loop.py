"""Training loop by skorch: net, loss, batches of samples of different shapes, epochs."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import skorch
import torch
from skorch.utils import to_numpy, to_tensor
from torch import nn

from dmrifit._utils.progress import step_bar
from dmrifit._utils.randomness import Seed
from dmrifit._utils.torch_state import forked_generator, repeatable_kernels, seed_generators
from dmrifit.networks.checkpoints import history_rows
from dmrifit.networks.training import best_epoch

# The net ---------------------------------------------------------------------------------------


class Net(skorch.NeuralNet):
    """A skorch net that takes finished batches and computes its loss in single precision."""

    def __init__(self, *args: Any, mixed: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.mixed = mixed

    def get_iterator(self, dataset: Any, training: bool = False) -> Any:
        """Return the dataset itself, which yields finished batches."""
        return dataset

    def infer(self, x: Any, **fit_params: Any) -> Any:
        """Run the network on a batch."""
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.mixed):
            return super().infer(x, **fit_params)

    def get_loss(
        self, y_pred: Any, y_true: Any, X: Any = None, training: bool = False
    ) -> torch.Tensor:
        """Compute the loss of a batch."""
        # In half precision, probabilities near 1 would round to 1.
        targets = to_tensor(y_true, device=self.device)
        with torch.autocast(torch.device(self.device).type, enabled=False):
            loss: torch.Tensor = self.criterion_(_single(y_pred), targets)
        return loss


def _single(output: Any) -> Any:
    """Convert half-precision tensors of a network's output to single precision."""
    if isinstance(output, torch.Tensor):
        return output.float() if output.dtype in (torch.bfloat16, torch.float16) else output
    if isinstance(output, Mapping):
        return {key: _single(value) for key, value in output.items()}
    return type(output)(_single(value) for value in output)


class WithMargin(nn.Module):
    """
    A loss whose target volumes are cropped to the output of a network without padding.

    Torch broadcasts a volume of one voxel over a larger one, or only warns when it compares
    volumes of different shapes; here that is an error.

    The network loses `margin` voxels on either side of each axis.
    """

    def __init__(self, criterion: nn.Module, margin: tuple[int, int, int] = (0, 0, 0)) -> None:
        super().__init__()
        self.criterion = criterion
        self.margin = margin

    def forward(self, outputs: Any, targets: Any) -> torch.Tensor:
        """Compute the loss."""
        are_tensors = isinstance(outputs, torch.Tensor) and isinstance(targets, torch.Tensor)
        if are_tensors and targets.ndim == 5:
            inner = [slice(m, n - m) for m, n in zip(self.margin, targets.shape[2:], strict=True)]
            targets = targets[:, :, inner[0], inner[1], inner[2]]
            if outputs.shape[2:] != targets.shape[2:]:
                raise ValueError(
                    f"the network returns {tuple(outputs.shape[2:])} voxels but the target has "
                    f"{tuple(targets.shape[2:])}; its margin is not {self.margin} voxels on each "
                    "side"
                )
        with warnings.catch_warnings():
            # torch only warns, repeats the smaller of both and learns nonsense.
            warnings.filterwarnings("error", "Using a target size", UserWarning)
            try:
                loss: torch.Tensor = self.criterion(outputs, targets)
            except UserWarning as error:
                raise ValueError(
                    f"outputs and targets differ in shape, which torch would broadcast: {error}"
                ) from error
        return loss


# Batches ---------------------------------------------------------------------------------------


@dataclass(eq=False)
class Batches(torch.utils.data.Dataset[Any]):
    """
    Batches from a stream of samples of different shapes, each batch of a single shape.

    Every epoch has a generator of its own, so that a resumed training sees the same samples as an
    uninterrupted one.
    """

    stream: Callable[[np.random.Generator, int], Iterator[tuple[Any, Any]]]
    batch_size: int
    seed: int
    epoch: int = 0

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        rng = Seed(self.seed).rng("stream", self.epoch)
        samples_by_shape: dict[Any, list[Any]] = defaultdict(list)
        for sample in self.stream(rng, self.epoch):
            samples = samples_by_shape[_shapes(sample)]
            samples.append(sample)
            if len(samples) == self.batch_size:
                yield collated(samples)
                samples.clear()
        # Incomplete batches come last, so that no sample of a rare shape is lost.
        for samples in samples_by_shape.values():
            if samples:
                yield collated(samples)
        if not samples_by_shape:
            raise ValueError(
                f"no samples came in epoch {self.epoch}: the cases hold none to learn from"
            )


def _shapes(sample: Any) -> Any:
    """Return the shapes of all arrays in a sample, which may be nested."""
    if isinstance(sample, Mapping):
        return tuple((key, _shapes(value)) for key, value in sample.items())
    if isinstance(sample, tuple | list):
        return tuple(_shapes(value) for value in sample)
    return np.shape(sample)


def collated(samples: Sequence[Any]) -> Any:
    """Stack samples of one shape as tensors."""
    first = samples[0]
    if isinstance(first, Mapping):
        return {key: collated([sample[key] for sample in samples]) for key in first}
    if isinstance(first, tuple | list):
        return tuple(collated(values) for values in zip(*samples, strict=True))
    stacked = np.stack([np.asarray(sample) for sample in samples])
    if stacked.dtype.kind == "f":
        stacked = stacked.astype(np.float32, copy=False)
    return torch.from_numpy(stacked)


def as_arrays(output: Any) -> Any:
    """Convert the tensors of a network's output to arrays."""
    return to_numpy(_single(output))


# Epochs ----------------------------------------------------------------------------------------


@dataclass
class Epochs:
    """
    The epochs of a training: seed, learning rate, validation score, state file.

    skorch's callbacks for learning rates and early stopping forget what they have seen when a
    training is interrupted; here everything follows from the history of the net and `best`.
    """

    batches: Batches
    #: Learning rate of an epoch by its number, from 0.
    rates: Callable[[int], float]
    #: A training with all fields.
    settings: Any
    seed: int
    _: KW_ONLY
    #: Scores the validation cases with the current net; the weights of the highest are kept.
    score: Callable[[skorch.NeuralNet], float] | None = None
    #: Writes the state of the net, and the best weights so far.
    save: Callable[[skorch.NeuralNet, dict[str, torch.Tensor] | None], None] | None = None
    #: Best weights so far, for a resumed training.
    best: dict[str, torch.Tensor] | None = None

    def run(self, net: skorch.NeuralNet) -> None:
        """Train a net for the remaining epochs."""
        device = torch.device(net.device)
        n_before = len(net.history)
        # A run that was killed after its last state was saved may not have reported it.
        after_epoch = self.settings.after_epoch or (lambda history: None)
        if n_before and self._is_finished(net):
            after_epoch(history_rows(net))
        # Without `verbose` no progress is shown.
        bar: Any = nullcontext(lambda *_, **__: None)
        if self.settings.verbose:
            bar = step_bar(self.settings.epochs, "epoch", "epoch", n_before=n_before)
        with forked_generator(self.seed, device), repeatable_kernels(), bar as count:
            while not self._is_finished(net):
                self._train_epoch(net)
                if self.save is not None:
                    self.save(net, self.best)
                after_epoch(history_rows(net))
                # Whether to wait for a training is decided after its first epoch.
                row = net.history[-1]
                state = f"loss {row['train_loss']:.4g}"
                if "valid_score" in row:
                    state += f", held-out score {row['valid_score']:.4g} (higher is better)"
                is_told = len(net.history) == n_before + 1 or self._is_finished(net)
                count(state if is_told else "", state=state)
        if self.best is not None:
            net.module_.load_state_dict(self.best)

    def _train_epoch(self, net: skorch.NeuralNet) -> None:
        """Learn from the batches of an epoch, check that all is finite, and score the net."""
        epoch = len(net.history)
        self.batches.epoch = epoch
        rate = self.rates(epoch)
        for group in net.optimizer_.param_groups:
            group["lr"] = rate
        # Seeded by its number, so that a resumed training draws the same numbers.
        seed_generators(Seed(self.seed).derived("epoch", epoch), torch.device(net.device))
        # The loop alone: skorch's `partial_fit` would swallow a user's interrupt.
        net.fit_loop(self.batches, epochs=1)
        row = net.history[-1]
        row["learning_rate"] = rate
        # skorch keeps the losses of all batches, and memory would grow with the epochs.
        row["batches"] = []
        if not np.isfinite(row["train_loss"]):
            raise FloatingPointError(
                f"the loss became {row['train_loss']} in epoch {row['epoch']} with a learning "
                f"rate of {rate:g}; lower learning_rate"
            )
        # A finite loss can have an infinite gradient: bad weights of the last step would be saved.
        broken = [
            name
            for name, value in net.module_.named_parameters()
            if not torch.isfinite(value).all()
        ]
        if broken:
            raise FloatingPointError(
                f"weights became infinite or NaN in epoch {row['epoch']} "
                f"({', '.join(broken[:3])}), though the loss did not; lower "
                f"learning_rate={rate:g}, or look for a root or logarithm of 0"
            )
        if self.score is None:
            return
        row["valid_score"] = float(self.score(net))
        if best_epoch(net.history) == len(net.history) - 1:
            weights = net.module_.state_dict()
            self.best = {name: value.detach().clone() for name, value in weights.items()}

    def _is_finished(self, net: skorch.NeuralNet) -> bool:
        """Return whether all epochs are done, or patience has run out."""
        n_done = len(net.history)
        if n_done >= self.settings.epochs:
            return True
        if self.settings.patience is None or not n_done:
            return False
        return n_done - 1 - best_epoch(net.history) >= self.settings.patience
