"""Diffusion signals of synthetic brains: crossing tensors, mixed tissues, T2, noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anomaly.generators.gliomas import Component
from anomaly.simulate.anatomy import Brain

_MS_PER_UM2 = 1e-3  # s/mm² in ms/µm²
_AXIAL, _RADIAL = 1.6, 0.35  # µm²/ms, along and across fibers
_UNORDERED = 0.77  # µm²/ms, of white matter whose fibers have no direction
#: Diffusivity in µm²/ms, and signal at b = 0 of white matter's: gray matter and fluid last longer.
_ISOTROPIC = {"gray": (0.82, 1.15), "deep": (0.74, 0.95), "fluid": (3.0, 2.8)}


def spread_directions(n: int) -> NDArray[np.float64]:
    """
    Give directions that cover half a sphere evenly, on a spiral by the golden ratio.

    Shapes: returns (n, 3).
    """
    number = np.arange(n)
    z = 1 - (number + 0.5) / n
    turn = number * np.pi * (3 - 5**0.5)
    return np.stack(
        [np.sqrt(1 - z**2) * np.cos(turn), np.sqrt(1 - z**2) * np.sin(turn), z], axis=1
    )


def tensor_signals(
    fibers: NDArray, axial: float, radial: float, weights: ArrayLike, directions: NDArray
) -> NDArray[np.float32]:
    """
    Compute the signal of tensors that are alike across their fibers.

    Shapes: `fibers` (n, 3), `directions` (m, 3); returns (n, m).

    References
    ----------
    Basser et al., Biophys J 66:259–267, 1994.
    """
    # Not a matrix product, whose last bits depend on the number of threads.
    aligned = np.zeros((len(fibers), len(directions)), dtype=np.float32)
    for axis in range(3):
        aligned += np.asarray(fibers[:, axis, None], dtype=np.float32) * directions[
            :, axis
        ].astype(np.float32)
    np.square(aligned, out=aligned)
    aligned *= np.float32(radial - axial)
    aligned -= np.float32(radial)
    aligned *= np.asarray(weights, dtype=np.float32)[:, None]
    return np.exp(aligned, out=aligned)


def brain_signals(
    brain: Brain, directions: NDArray, b: float, factors: NDArray, lesion: Sequence[Component] = ()
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """
    Compute the signals of a brain without noise.

    Shapes: `directions` (m, 3); returns signals (n, m).
    """
    weights = (b * _MS_PER_UM2 * factors).astype(np.float32)
    white = brain.shares["white"]
    ordered = white * brain.order
    signals = tensor_signals(brain.fibers[0], _AXIAL, _RADIAL, weights, directions)
    signals *= (ordered * (1 - brain.crossing))[:, None]
    # Signals of crossing fibers add up, not their tensors.
    second = tensor_signals(brain.fibers[1], _AXIAL, _RADIAL, weights, directions)
    second *= (ordered * brain.crossing)[:, None]
    signals += second
    alike = (white - ordered) * np.exp(-_UNORDERED * weights)
    b0 = white.copy()
    for name, (diffusivity, brightness) in _ISOTROPIC.items():
        bright = np.float32(brightness) * brain.shares[name]
        b0 += bright
        alike += bright * np.exp(np.float32(-diffusivity) * weights)
    signals += alike[:, None]
    healthy = np.ones_like(b0)
    for component in lesion:
        healthy -= component.share
    signals *= healthy[:, None]
    b0 *= healthy
    for component in lesion:
        bright = np.float32(component.brightness) * component.share
        b0 += bright
        decay = np.exp(np.float32(-component.diffusivity) * weights)
        signals += (bright * decay)[:, None]
    return signals, b0


def add_noise(
    values: NDArray[np.float32], sigma: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """
    Give magnitudes the noise of a scanner (Rician).

    References
    ----------
    Gudbjartsson and Patz, Magn Reson Med 34:910–914, 1995.
    """
    if sigma == 0:
        return values
    real = rng.standard_normal(values.shape, dtype=np.float32)
    real *= np.float32(sigma)
    real += values
    imaginary = rng.standard_normal(values.shape, dtype=np.float32)
    imaginary *= np.float32(sigma)
    return np.hypot(real, imaginary, out=real)
