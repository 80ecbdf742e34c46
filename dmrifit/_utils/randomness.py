"""Random streams derived from a seed and a purpose, independent of the order of use."""

from __future__ import annotations

import zlib
from typing import TypeAlias

import numpy as np

#: What every ``random_state`` of this package accepts.
RandomState: TypeAlias = int | np.integer | np.random.RandomState | None


class Seed(int):
    """
    A seed from which streams are derived, each for a purpose and independent of the others.

    It is made of a number, of a RandomState, which is drawn from, or at random of None.
    """

    def __new__(cls, random_state: RandomState = None) -> Seed:
        if random_state is None:
            return super().__new__(cls, np.random.SeedSequence().generate_state(1)[0])
        if isinstance(random_state, np.random.RandomState):
            # Drawn from, as scikit-learn does: two fits with one generator differ.
            return super().__new__(cls, random_state.randint(0, 2**31 - 1))
        if isinstance(random_state, bool) or not isinstance(random_state, int | np.integer):
            raise TypeError(
                f"random_state must be an int, a numpy RandomState or None, not {random_state!r}"
            )
        if random_state < 0:
            raise ValueError(f"random_state must not be negative, got {random_state}")
        return super().__new__(cls, random_state)

    def sequence(self, *purpose: str | int) -> np.random.SeedSequence:
        """Derive an independent stream for a purpose."""
        # Python's own hash of a word differs from run to run.
        words = [zlib.crc32(str(word).encode()) for word in purpose]
        return np.random.SeedSequence([self, *words])

    def rng(self, *purpose: str | int) -> np.random.Generator:
        """Make the generator of an independent stream for a purpose."""
        return np.random.default_rng(self.sequence(*purpose))

    def derived(self, *purpose: str | int) -> int:
        """Derive a seed of 32 bits for a purpose."""
        return int(self.sequence(*purpose).generate_state(1)[0])

    def evenly(self, number: int, step: float, *purpose: str | int) -> float:
        """Give element `number` of a sequence in [0, 1): a random start plus steps, modulo 1."""
        return float((self.rng(*purpose).random() + number * step) % 1)
