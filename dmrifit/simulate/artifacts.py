"""Artifacts of synthetic images: motion between images, Gibbs ringing, signal loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from dmrifit._utils.checks import check_number, check_word
from dmrifit.engine.protocol import Protocol

#: Default strengths of artifacts by name: the largest movement along x and y in voxels; the lost
#: share of the spatial frequencies along x and y; the largest lost share of the signal.
ARTIFACTS: Mapping[str, float] = MappingProxyType({"shift": 1.0, "gibbs": 0.2, "signal_loss": 0.5})

_LARGEST: Mapping[str, float] = MappingProxyType({"shift": 4.0, "gibbs": 0.75, "signal_loss": 1.0})
_LOSS_B = 400.0  # s/mm²; movement of tissue costs signal only where gradients are strong
_LOSS_RADIUS = 0.35  # of half the field of view

# Where signal is lost, in halves of the field of view: below the beating heart, and beside the gas
# of the rectum.
_LOSS_CENTER: Mapping[str, tuple[float, float, float]] = MappingProxyType(
    {
        "abdomen": (0.08, 0.42, 0.5),
        "male pelvis": (0.0, -0.2, 0.0),
        "female pelvis": (0.0, -0.2, 0.0),
    }
)


def artifact_strengths(artifacts: Sequence[str] | Mapping[str, float] | None) -> dict[str, float]:
    """Check names and strengths of artifacts, and return the strengths that are not 0."""
    if artifacts is None:
        return {}
    if isinstance(artifacts, str):
        artifacts = (artifacts,)
    if not isinstance(artifacts, Mapping):
        artifacts = {name: ARTIFACTS.get(name, 0.0) for name in artifacts}
    for name, strength in artifacts.items():
        check_word("artifacts", name, ARTIFACTS)
        check_number(f"the strength of artifact {name!r}", strength, most=_LARGEST[name])
    return {name: float(artifacts[name]) for name in ARTIFACTS if artifacts.get(name)}


def spoil(
    signals: NDArray[np.float64],
    protocol: Protocol,
    strengths: Mapping[str, float],
    template: str,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """
    Apply artifacts to images without noise.

    Motion leaves the image with most signal in place, which a registration would take as its
    reference: that of the shortest TE, and of these the lowest b.

    Shapes: `signals` (x, y, z, n_measurements); returns (x, y, z, n_measurements).
    """
    from scipy.ndimage import shift

    # A stream of each, so that one artifact looks the same with and without the others.
    streams = dict(zip(ARTIFACTS, rng.spawn(len(ARTIFACTS)), strict=True))
    if "signal_loss" in strengths:
        axes = [(np.arange(n) + 0.5) / n * 2 - 1 for n in signals.shape[:3]]
        x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
        stream = streams["signal_loss"]
        center = np.array(_LOSS_CENTER[template]) + stream.normal(0, 0.05, 3)
        distance = (x - center[0]) ** 2 + (y - center[1]) ** 2 + 0.25 * (z - center[2]) ** 2
        region = np.exp(-distance / (2 * _LOSS_RADIUS**2 / np.log(4)))
        lost = stream.uniform(0, strengths["signal_loss"], len(protocol)) * (protocol.b >= _LOSS_B)
        signals = signals * (1 - region[..., None] * lost)
    if "shift" in strengths:
        te = np.zeros(len(protocol)) if protocol.te is None else protocol.te
        reference = np.lexsort((protocol.b, te))[0]
        largest = strengths["shift"]
        moves = streams["shift"].uniform(-largest, largest, (len(protocol), 2))
        moves[reference] = 0
        signals = np.array(signals)
        for i in np.flatnonzero(moves.any(axis=1)):
            # Linear, because splines overshoot and would add signal.
            signals[..., i] = shift(signals[..., i], (*moves[i], 0), order=1, mode="nearest")
    if "gibbs" in strengths:
        # High spatial frequencies of a slice are removed, as an interpolating scanner does.
        highest = 0.5 * (1 - strengths["gibbs"])
        spectrum = np.fft.rfft2(signals, axes=(0, 1))
        in_band_x = np.abs(np.fft.fftfreq(signals.shape[0])) <= highest
        in_band_y = np.fft.rfftfreq(signals.shape[1]) <= highest
        spectrum = spectrum * in_band_x[:, None, None, None]
        spectrum = spectrum * in_band_y[None, :, None, None]
        signals = np.fft.irfft2(spectrum, s=signals.shape[:2], axes=(0, 1))
    # Cropped spectra ring below zero, and scanners store magnitudes.
    return np.abs(signals)
