"""Files of a protocol: b-values (.bval), gradient directions (.bvec) and echo times (.json)."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dmrifit._utils.counts import counted
from dmrifit._utils.text_files import check_file, numbers_of, read_numbers, read_small, read_text

#: s/mm²; a smaller largest b-value is in another unit.
SMALLEST_PLAUSIBLE_MAX_B = 20.0
LONGEST_PLAUSIBLE_TE = 2000.0  # ms
#: Files contain "unit vectors" of other lengths; a longer one is a wrong column.
LONGEST_DIRECTION = 1e6

_MS_PER_S = 1e3
_UNIT_LENGTH = 0.05  # relative; beyond it, b times the squared length would be another contrast


def read_gradients(
    bval: str | Path, bvec: str | Path | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """
    Read b-values and gradient directions from FSL-style text files, as they stand there.

    Shapes: returns directions (n, 3).
    """
    check_file(Path(bval))
    text = read_text(Path(bval))
    _check_thousands(text, Path(bval))
    b = numbers_of(text, Path(bval))
    if 3 in b.shape and min(b.shape) > 1 and np.abs(np.nan_to_num(b)).max() <= 1:
        remedy = "give the b-values of the volumes (.bval)"
        if bvec is not None and 1 in read_numbers(Path(bvec)).shape:
            remedy = f"the file looks swapped with {bvec}: exchange the two"
        raise ValueError(
            f"{bval}: {len(b)} rows of {b.shape[1]} numbers are gradient directions (.bvec); "
            f"{remedy}"
        )
    b = b.ravel()
    if bvec is None:
        return b, None
    directions = read_numbers(Path(bvec))
    # FSL's own layout is tried first, and so decides the case of 3 × 3.
    if directions.shape == (3, len(b)):
        directions = directions.T
    if directions.shape != (len(b), 3):
        raise ValueError(
            f"{bvec}: {directions.shape[0]} × {directions.shape[1]} numbers do not make 3 × "
            f"{counted(len(b), 'direction')} for the {counted(len(b), 'b-value')} of {bval}; "
            "check that both belong to one scan"
        )
    _warn_of_lengths(directions, b, bvec)
    return b, directions


def _check_thousands(text: str, path: Path) -> None:
    """Refuse a b-value such as 1.500 among whole numbers: its point separates thousands."""
    words = text.replace(",", " ").split()
    parted = [word for word in words if re.fullmatch(r"[1-9]\d?\.\d{3}", word)]
    is_whole = all(word.isdecimal() for word in words if word not in parted)
    if parted and is_whole and max(map(float, words)) >= SMALLEST_PLAUSIBLE_MAX_B:
        raise ValueError(
            f"{path}: {parted[0]} beside whole numbers looks like a point between thousands; "
            f"write {parted[0].replace('.', '')}, or, if it is so small in s/mm², "
            f"{float(parted[0]):g}"
        )


def _warn_of_lengths(
    directions: NDArray[np.float64], b: NDArray[np.float64], path: str | Path
) -> None:
    """Warn where directions at b > 0 are not unit vectors, and say what they may mean."""
    weighted = np.nan_to_num(directions[b > 0])
    # `Protocol` refuses these.
    if np.abs(weighted).max(initial=0.0) > LONGEST_DIRECTION:
        return
    length = np.linalg.norm(weighted, axis=1)
    length = length[length > 0]
    if not (np.abs(length - 1) > _UNIT_LENGTH).any():
        return
    span = f"length {length.min():.3g}"
    if length.max() > length.min() * (1 + _UNIT_LENGTH):
        span = f"lengths from {length.min():.3g} to {length.max():.3g}"
    warnings.warn(
        f"{path}: directions have {span}, not 1; b-values are kept as they are. Where b grows "
        "with the squared length, as MRtrix takes it, multiply the b-values by that",
        UserWarning,
        stacklevel=4,
    )


def read_echo_times(
    te: str | Path | float | Sequence[str | Path], n: int, volumes: str = ""
) -> NDArray[np.float64]:
    """Read echo times in ms, shape (n,), from a number, a text file or BIDS sidecars."""
    if isinstance(te, Sequence) and not isinstance(te, str):
        times = np.concatenate([_sidecar_echo_times(Path(path)) for path in te])
    else:
        try:
            times = np.array([float(te)])  # type: ignore[arg-type]
        except (TypeError, ValueError):
            path = Path(str(te))
            if not os.path.lexists(path):
                raise FileNotFoundError(
                    f"echo times: {str(te)!r} is neither a number of ms nor a file; check its "
                    "name and folder"
                ) from None
            check_file(path)
            is_sidecar = path.suffix == ".json"
            times = _sidecar_echo_times(path) if is_sidecar else read_numbers(path).ravel()
    if len(times) not in (1, n):
        sources = ", ".join(map(str, te)) if isinstance(te, list | tuple) else te
        raise ValueError(
            f"{sources}: {counted(len(times), 'echo time')} for "
            f"{volumes or counted(n, 'volume')}; give one, or one for each"
            f"{'' if len(times) != 3 * n else ' (directions are given as bvec=…)'}"
        )
    return np.broadcast_to(times, (n,))


def _sidecar_echo_times(path: Path) -> NDArray[np.float64]:
    check_file(path, "sidecar")
    try:
        pairs = json.loads(read_small(path), object_pairs_hook=tuple)
        values = [value for key, value in pairs if key == "EchoTime"]
        # Python takes true for 1, and texts for the numbers in them; an object is a tuple here.
        if isinstance(values[0], tuple) or np.array(values[0]).dtype.kind not in "if":
            raise TypeError(f"EchoTime is {json.dumps(values[0]):.40}, not a number")
        seconds = np.atleast_1d(np.array(values[0], dtype=float)).ravel()
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: not a BIDS sidecar with an EchoTime in seconds ({type(error).__name__}: "
            f"{error}); write one"
        ) from None
    if any(value != values[0] for value in values[1:]):
        raise ValueError(
            f"{path}: EchoTime is given more than once ({', '.join(map(json.dumps, values))}); "
            "keep the right one"
        )
    if not seconds.size:
        raise ValueError(f"{path}: EchoTime is empty; write the echo time in seconds")
    if seconds.max() > LONGEST_PLAUSIBLE_TE / _MS_PER_S:
        raise ValueError(
            f"{path}: EchoTime is {seconds.max():g}: BIDS wants seconds, these look like ms "
            "(divide by 1000)"
        )
    return seconds * _MS_PER_S
