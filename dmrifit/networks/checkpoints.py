"""Checkpoints of a training in one safetensors file: weights, optimizer, history."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import skorch
import torch
from torch import nn

from dmrifit.io.atomic_files import whole_file

_HEADER = "dmrifit"


def write_state(
    path: Path,
    net: skorch.NeuralNet,
    best: Mapping[str, torch.Tensor] | None,
    header: Mapping[str, Any],
) -> None:
    """Write weights, optimizer and history of a net to one file, complete or not at all."""
    tensors = {f"weights.{key}": value for key, value in net.module_.state_dict().items()}
    tensors |= {f"best.{key}": value for key, value in (best or {}).items()}
    # Safetensors holds tensors only, so moments that are plain numbers go into the header.
    state = net.optimizer_.state_dict()
    numbers: dict[str, dict[str, Any]] = {}
    for index, moments in state["state"].items():
        for key, value in moments.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer.{index}.{key}"] = value
            else:
                numbers.setdefault(str(index), {})[key] = value
    content = {**header, "history": history_rows(net), "optimizer": numbers}
    with whole_file(path) as file:
        file.write_bytes(packed(tensors, {_HEADER: json.dumps(content)}))


def read_state(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Read header and tensors of a file from `write_state`."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()[_HEADER])
            # Cloned, because the tensors of an open file are views of its memory.
            return header, {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not a whole checkpoint ({error}); remove it to train from the beginning"
        ) from error


def restore_state(
    net: skorch.NeuralNet, header: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor] | None:
    """Restore a state in an initialized net, and return the best weights if there are any."""
    sections: dict[str, dict[str, torch.Tensor]] = {"weights": {}, "best": {}, "optimizer": {}}
    for key, value in tensors.items():
        section, _, name = key.partition(".")
        sections[section][name] = value
    load_weights(net.module_, sections["weights"])
    state: dict[int, dict[str, Any]] = {
        int(index): dict(numbers) for index, numbers in header["optimizer"].items()
    }
    for key, value in sections["optimizer"].items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    # Only moments and steps come from the file: the options are those of the estimator.
    net.optimizer_.load_state_dict({**net.optimizer_.state_dict(), "state": state})
    set_history(net, header["history"])
    return {key: value.to(net.device) for key, value in sections["best"].items()} or None


def load_weights(module: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Load weights into a network after checking names, shapes and dtypes."""
    check_weights(module, weights)
    module.load_state_dict(dict(weights))


def check_weights(module: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Check that names, shapes and dtypes of weights are those of a network."""
    differing = _layout(weights) ^ _layout(module.state_dict())
    if differing:
        names = sorted({name for name, _, _ in differing})
        more = " …" if len(names) > 3 else ""
        raise ValueError(
            f"the weights do not fit this network: {', '.join(names[:3])}{more} differ"
        )


def _layout(weights: Mapping[str, torch.Tensor]) -> set[tuple[str, tuple[int, ...], torch.dtype]]:
    return {(name, tuple(value.shape), value.dtype) for name, value in weights.items()}


def history_rows(net: skorch.NeuralNet) -> list[dict[str, Any]]:
    """Return number, learning rate, loss and score of each epoch."""
    keys = ("epoch", "learning_rate", "train_loss", "valid_score")
    return [{key: row[key] for key in keys if key in row} for row in net.history]


def set_history(net: skorch.NeuralNet, rows: Sequence[Mapping[str, Any]]) -> None:
    """Set the history of completed epochs in a net."""
    net.history.clear()
    for row in rows:
        net.history.new_epoch()
        net.history[-1].update(row)


def packed(tensors: Mapping[str, torch.Tensor], header: Mapping[str, str] | None = None) -> bytes:
    """Serialize tensors in the safetensors format."""
    # Copies, because safetensors refuses tensors that share memory.
    copies = {
        key: value.detach().to("cpu", copy=True).contiguous() for key, value in tensors.items()
    }
    content: bytes = safetensors.torch.save(copies, None if header is None else dict(header))
    return content
