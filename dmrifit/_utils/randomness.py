"""Random streams derived from a seed and a purpose, independent of the order of use."""

from __future__ import annotations

import zlib
from typing import TypeAlias

import numpy as np

#: What every ``random_state`` of this package accepts.
RandomState: TypeAlias = int | np.integer | np.random.RandomState | None


def seed_from(random_state: RandomState) -> int:
    """Turn a ``random_state`` into one number from which streams are derived."""
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    if isinstance(random_state, np.random.RandomState):
        # Drawn from, as scikit-learn does: two fits with one generator differ.
        return int(random_state.randint(0, 2**31 - 1))
    if isinstance(random_state, bool) or not isinstance(random_state, int | np.integer):
        raise TypeError(
            f"random_state must be an int, a numpy RandomState or None, not {random_state!r}"
        )
    if random_state < 0:
        raise ValueError(f"random_state must not be negative, got {random_state}")
    return int(random_state)


def seed_for(seed: int, *purpose: str | int) -> np.random.SeedSequence:
    """Derive an independent stream for a purpose."""
    # Python's own hash of a word differs from run to run.
    words = [zlib.crc32(str(word).encode()) for word in purpose]
    return np.random.SeedSequence([seed, *words])


def derived_seed(seed: int, *purpose: str | int) -> int:
    """Derive a seed of 32 bits for a purpose."""
    return int(seed_for(seed, *purpose).generate_state(1)[0])


def evenly(seed: int, number: int, step: float, *purpose: str | int) -> float:
    """Give element `number` of a sequence in [0, 1): a random start plus steps, modulo 1."""
    start = np.random.default_rng(seed_for(seed, *purpose)).random()
    return float((start + number * step) % 1)
