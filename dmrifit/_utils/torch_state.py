"""State that torch keeps for the whole process: threads, generators, kernels, devices."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Only one thread at a time may change the generator and the number of threads of the process.
_TORCH = threading.RLock()


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """
    Let torch compute with one thread, because results differ in their last bits with the number.

    Networks that train in several threads of Python take turns, because torch has one number of
    threads and one random generator for the whole process.
    """
    with _TORCH:
        n_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(n_threads)


@contextmanager
def forked_generator(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed the generators that a computation draws from, and restore them afterwards."""
    device = torch.device(device)
    gpus = [device] if device.type == "cuda" else []
    with _TORCH, torch.random.fork_rng(devices=gpus):
        seed_generators(seed, device)
        yield


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the generator of the processor and that of the device."""
    # torch.manual_seed would seed every GPU of the machine.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def resolve_device(device: str, *, fallback: bool = False) -> torch.device:
    """Resolve the name of a device; optionally fall back to the processor without a GPU."""
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        device = "cuda" if n_gpus else "cpu"
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError):
        resolved = None
    if resolved is None or resolved.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:0', not {device!r}")
    if resolved.type == "cpu":
        return torch.device("cpu")
    number = resolved.index or 0
    if number >= n_gpus:
        # A model trained on a GPU can be used without one.
        if fallback:
            return torch.device("cpu")
        raise ValueError(
            f"device={device!r}, and this machine has {n_gpus} GPUs that torch can use; take "
            "device='auto' or 'cpu'"
        )
    return torch.device("cuda", number)


@contextmanager
def repeatable_kernels() -> Iterator[None]:
    """Let cuDNN use only kernels that repeat their bits, which by default it does not on a GPU."""
    cudnn = torch.backends.cudnn
    with _TORCH:
        before = cudnn.benchmark, cudnn.deterministic
        cudnn.benchmark, cudnn.deterministic = False, True
        try:
            yield
        finally:
            cudnn.benchmark, cudnn.deterministic = before
