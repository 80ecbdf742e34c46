"""The state of a training in one file, and back: weights, optimizer, history; no pickle."""

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

__all__ = [
    "check_weights",
    "history_rows",
    "load_weights",
    "packed",
    "read_state",
    "restore_state",
    "set_history",
    "write_state",
]

_HEADER = "dmrifit"


def write_state(
    path: Path,
    net: skorch.NeuralNet,
    best: Mapping[str, torch.Tensor] | None,
    header: Mapping[str, Any],
) -> None:
    """Write weights, optimizer and history of a net to one file, which is whole or not there."""
    tensors = {f"weights.{key}": value for key, value in net.module_.state_dict().items()}
    tensors |= {f"best.{key}": value for key, value in (best or {}).items()}
    state = net.optimizer_.state_dict()
    numbers: dict[str, dict[str, Any]] = {}
    for index, parts in state["state"].items():
        for key, value in parts.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer.{index}.{key}"] = value
            else:
                numbers.setdefault(str(index), {})[key] = value
    content = {
        **header,
        "history": history_rows(net),
        "optimizer": numbers,
    }
    with whole_file(path) as part:
        part.write_bytes(packed(tensors, {_HEADER: json.dumps(content)}))


def read_state(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Read what `write_state` has written."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()[_HEADER])
            return header, {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not a whole checkpoint ({error}); remove it to train from the beginning"
        ) from error


def restore_state(
    net: skorch.NeuralNet, header: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor] | None:
    """Put a state into an initialized net."""
    parts: dict[str, dict[str, torch.Tensor]] = {"weights": {}, "best": {}, "optimizer": {}}
    for key, value in tensors.items():
        kind, _, rest = key.partition(".")
        parts[kind][rest] = value
    load_weights(net.module_, parts["weights"])
    state: dict[int, dict[str, Any]] = {
        int(index): dict(numbers) for index, numbers in header["optimizer"].items()
    }
    for key, value in parts["optimizer"].items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    # Its options are those of the estimator; only what it has gathered comes from the file.
    net.optimizer_.load_state_dict({**net.optimizer_.state_dict(), "state": state})
    set_history(net, header["history"])
    return {key: value.to(net.device) for key, value in parts["best"].items()} or None


def load_weights(module: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Fill a network with weights that must be its own."""
    check_weights(module, weights)
    module.load_state_dict(dict(weights))


def check_weights(module: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Make sure that weights are those of a network."""
    found, expected = (
        {k: (tuple(v.shape), v.dtype) for k, v in one.items()}
        for one in (weights, module.state_dict())
    )
    if found != expected:
        wrong = sorted({key for key, _ in found.items() ^ expected.items()})
        raise ValueError(
            "the weights do not fit this network: "
            f"{', '.join(wrong[:3])}{' …' if len(wrong) > 3 else ''} differ"
        )


def history_rows(net: skorch.NeuralNet) -> list[dict[str, Any]]:
    """Give what is known of each epoch."""
    keys = ("epoch", "learning_rate", "train_loss", "valid_score")
    return [{key: row[key] for key in keys if key in row} for row in net.history]


def set_history(net: skorch.NeuralNet, rows: Sequence[Mapping[str, Any]]) -> None:
    """Give a net the history of epochs that are done."""
    net.history.clear()
    for row in rows:
        net.history.new_epoch()
        net.history[-1].update(row)


def packed(tensors: Mapping[str, torch.Tensor], header: Mapping[str, str] | None = None) -> bytes:
    """Give tensors in the format of safetensors."""
    # Copies, because those that share memory are refused.
    copies = {
        key: value.detach().to("cpu", copy=True).contiguous() for key, value in tensors.items()
    }
    content: bytes = safetensors.torch.save(copies, None if header is None else dict(header))
    return content
