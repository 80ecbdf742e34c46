"""Cases of different shapes as a network sees them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmrifit._utils.checks import check_finite
from dmrifit._utils.counts import counted
from dmrifit.io.masks import OtherGridError

# Other subclasses, such as UnicodeDecodeError, take other arguments than a message.
_BY_MESSAGE = (ValueError, OtherGridError)


def volume_inputs(case: Any) -> NDArray[np.float32]:
    """Convert a volume, (x, y, z) or (x, y, z, channels), to (channels, x, y, z) for a network."""
    volume = np.asarray(case)
    if volume.ndim not in (3, 4) or volume.size == 0 or volume.dtype.kind not in "fiub":
        raise ValueError(
            f"an array of shape {volume.shape} ({volume.dtype}) instead of a volume (x, y, z) or "
            "(x, y, z, channels)"
        )
    check_finite(volume, "the volume")
    largest = max(float(volume.max()), -float(volume.min()))
    if largest > float(np.finfo(np.float32).max):
        raise ValueError(
            f"values up to {largest:.3g}, which single precision does not hold; scale the scan"
        )
    channels = np.moveaxis(volume, -1, 0) if volume.ndim == 4 else volume[None]
    return np.array(channels, dtype=np.float32, order="C")


class VolumeList(list[Any]):
    """List of volumes of different shapes, which numpy turns into an array of objects."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> NDArray[Any]:
        volumes = np.empty(len(self), dtype=object)
        # One by one: numpy would stack volumes that happen to have one shape.
        for i, volume in enumerate(self):
            volumes[i] = volume
        return volumes


@contextmanager
def naming(number: int) -> Iterator[None]:
    """Name the case in errors about it."""
    try:
        yield
    except ValueError as error:
        # An inner block has named the case already.
        if type(error) not in _BY_MESSAGE or str(error).startswith("case "):
            raise
        raise ValueError(f"case {number}: {error}") from error


@contextmanager
def called(names: Sequence[str], source: str | Path | None = None) -> Iterator[None]:
    """Replace numbers of cases in errors by their names, after the table `source`."""
    try:
        yield
    except ValueError as error:
        match = re.match(r"case (\d+)\b", str(error))
        if type(error) not in _BY_MESSAGE or match is None or int(match[1]) >= len(names):
            raise
        prefix = "" if source is None else f"{source}: "
        message = str(error)[match.end() :]
        raise ValueError(f"{prefix}case {names[int(match[1])]}{message}") from error


def listed(values: Any, what: str, n_cases: int | None = None) -> Sequence[Any]:
    """Check a sequence of cases or targets, one per case; an array's first axis is cases."""
    if hasattr(values, "iloc"):  # a table's index need not count from 0
        values = values.to_numpy()
    sequence = (
        hasattr(values, "__len__")
        and hasattr(values, "__getitem__")
        and not isinstance(values, str | Mapping)
    )
    if not sequence or (isinstance(values, np.ndarray) and not values.ndim):
        description = type(values).__name__
        if isinstance(values, np.ndarray):
            description = f"the single value {values}"
        raise ValueError(
            f"{what} must be a list or an array with one of them per case, not {description}"
        )
    cases: Sequence[Any] = values
    if not len(cases):
        raise ValueError(f"there are no {what}; give at least one")
    if n_cases not in (None, len(cases)):
        raise ValueError(
            f"{counted(len(cases), what.removesuffix('s'))} for {counted(n_cases, 'case')}; "
            "give one for each"
        )
    return cases


def add_to_digest(digest: Any, arrays: Any) -> None:
    """Add arrays, which may be nested, to a digest."""
    if isinstance(arrays, Mapping):
        for key, value in arrays.items():
            digest.update(str(key).encode())
            add_to_digest(digest, value)
    elif isinstance(arrays, tuple | list):
        for value in arrays:
            add_to_digest(digest, value)
    else:
        array = np.asarray(arrays, order="C")
        # Dtype and shape too, because equal bytes can be different volumes.
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
