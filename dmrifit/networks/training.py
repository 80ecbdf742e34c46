"""Parameters of training that estimators with a network share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from sklearn.base import BaseEstimator

from dmrifit._utils.checks import Count, Within, check_fields
from dmrifit.io.parameter_json import refuse_keys

__all__ = ["Training"]

_NOT_STORED = ("checkpoint", "after_epoch", "verbose")


# repr=False: that of scikit-learn shows only the fields that are set.
@dataclass(repr=False)
class Training(BaseEstimator):
    """
    How a network is trained: epochs, steps, learning rate, validation, checkpoints.

    Every estimator with a network has the parameter ``training``. A field that is None takes the
    value of that estimator's ``default_training``, so ``Training(epochs=5)`` changes the number of
    epochs alone. Fields can be searched as parameters of the estimator, such as
    ``training__epochs``, once it has a `Training`.

    Parameters
    ----------
    epochs : int, optional
        Passes over the cases, or over the samples that are drawn from them.
    batch_size : int, optional
        Samples in a step; only samples of one shape share a step.
    learning_rate : float, optional
        Of the first epoch; above 0.
    schedule : {"constant", "cosine"}, optional
        Whether the learning rate stays constant, or falls to zero over the epochs.
    decay : float, optional
        Factor of the learning rate after each epoch, on top of the schedule.
    validation_fraction : float, optional
        Share of the groups that are held out of training and scored after each epoch: the weights
        of the epoch with the best mean score are kept. With 0 those of the last epoch are.
    patience : int, optional
        Stop early after this many epochs without improvement of the mean validation score. By
        default all epochs run.
    mixed_precision : bool, optional
        Compute in bfloat16 where that is precise enough. On a GPU only: elsewhere nothing changes.
    compile : bool, optional
        Let torch compile the network. On a GPU only: elsewhere nothing changes.
    checkpoint : path, optional
        Folder for the states of trainings, each in a folder of its own, from which an interrupted
        training resumes.
    after_epoch : callable, optional
        Called after each epoch with the history so far, which is what ``history_`` of the
        estimator will be; once by a resumed training that had finished all epochs.
    verbose : bool, optional
        Whether to show a progress bar.

    See Also
    --------
    VolumeEstimator : Base of the estimators that are trained this way.

    Examples
    --------
    >>> from dmrifit import Training
    >>> Training(epochs=5, learning_rate=0.01)
    Training(epochs=5, learning_rate=0.01)
    """

    epochs: Count | None = None
    batch_size: Count | None = None
    learning_rate: Annotated[float, Within(above=0)] | None = None
    _: KW_ONLY
    schedule: Literal["constant", "cosine"] | None = None
    decay: Annotated[float, Within(above=0, most=1)] | None = None
    validation_fraction: Annotated[float, Within(below=1)] | None = None
    patience: Count | None = None
    mixed_precision: bool | None = None
    compile: bool | None = None
    checkpoint: str | Path | None = None
    after_epoch: Callable[[list[dict[str, Any]]], None] | None = None
    verbose: bool | None = None

    def __or__(self, other: Training | None) -> Training:
        """Replace the fields that are set in another training, where there is one."""
        if other is None:
            other = Training()
        if not isinstance(other, Training):
            raise ValueError(
                f"training must be a Training, such as Training(epochs=5), or None, not {other!r}"
            )
        return Training(**(self.get_params() | _set_fields(other)))


def gather_training(options: Mapping[str, Any]) -> dict[str, Any]:
    """Replace the fields of a training among flat options by the option ``training``."""
    names = Training._get_param_names()
    gathered = {name: value for name, value in options.items() if name not in names}
    fields = {name: value for name, value in options.items() if name in names}
    if fields:
        gathered["training"] = Training(**fields)
    return gathered


def check_training(training: Training) -> None:
    """Check the fields of a training with all fields."""
    check_fields(training)
    if training.patience is not None and not training.validation_fraction:
        raise ValueError(
            f"patience={training.patience} needs validation cases; give a "
            "validation_fraction such as 0.2"
        )
    if training.after_epoch is not None and not callable(training.after_epoch):
        raise ValueError(
            f"after_epoch must be a function of the history, or None, not {training.after_epoch!r}"
        )
    folder: Any = training.checkpoint
    if folder is not None and not isinstance(folder, str | Path):
        raise ValueError(f"checkpoint must be a folder or None, not {folder!r}")


def learning_rate_at(epoch: int, training: Any) -> float:
    """Compute the learning rate of epoch 0, 1, … of a training with all fields."""
    rate = float(training.learning_rate)
    if training.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * epoch / training.epochs))
    return rate * float(training.decay) ** epoch


def stored_training(training: Training | None) -> dict[str, Any] | None:
    """Describe a training in a model file: the fields that are set and of use elsewhere."""
    if training is None:
        return None
    fields = _set_fields(training)
    # A folder is valid on one machine only, and who loads a model asked for no bars.
    for name in _NOT_STORED:
        fields.pop(name, None)
    return fields


def read_training(fields: Any) -> Training | None:
    """Rebuild the training of a model file; `check_training` then checks the values."""
    # An estimator that was made without a file has a training already.
    if fields is None or isinstance(fields, Training):
        return fields
    # A file must not choose the folder that a later training writes to.
    names = {*Training._get_param_names()} - {"checkpoint", "after_epoch"}
    refuse_keys(fields, names, "field of Training")
    # Files of earlier versions may hold ``verbose``.
    return Training(**{name: value for name, value in fields.items() if name not in _NOT_STORED})


def _set_fields(training: Training) -> dict[str, Any]:
    return {name: value for name, value in training.get_params().items() if value is not None}


def best_epoch(history: Sequence[Mapping[str, Any]]) -> int:
    """Find the first epoch with the best score; NaN ranks below all scores."""
    scores = [row["valid_score"] for row in history]
    return max(range(len(scores)), key=lambda i: -math.inf if math.isnan(scores[i]) else scores[i])
