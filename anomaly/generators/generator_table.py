"""The five generators of anomalies by name: what changes a scan, and where."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from anomaly.generators.corruptions import Ellipsoids, TissueMoments, checked_scan, checked_source
from anomaly.generators.gliomas import add_glioma
from anomaly.generators.implants import (
    add_patch,
    ball_radius,
    lesion_center,
    rough_ellipsoid,
    tissue_share,
)
from dmrifit._utils.checks import check_number
from dmrifit._utils.randomness import RandomState, Seed
from dmrifit.simulate.gliomas import fall

__all__ = ["GENERATORS"]

#: One ellipsoid or two, so that no scan stays without an anomaly.
_AT_LEAST_ONE = (0.0, 0.75, 0.25)


_Changed: TypeAlias = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]


@dataclass(frozen=True)
class Generator:
    """A way to put an anomaly into the scan of a healthy person."""

    title: str
    # Takes a checked scan, its mask, a random generator, and the other person's scan where one is
    # needed; returns the changed scan, the factor (x, y, z) of the SD of its noise, and the label.
    add: Callable[..., _Changed]
    needs_source: bool = False  # tissue of another person's scan
    before_noise: bool = True  # whether simulated scans get the anomaly before their noise

    def __call__(
        self,
        volume: Any,
        mask: Any,
        *,
        source: Any = None,
        noise: float = 0.0,
        random_state: RandomState = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """
        Put one anomaly into a scan.

        Parameters
        ----------
        volume : array_like of shape (x, y, z, channels)
            Signals at b = 1000 s/mm², divided by the one without diffusion weighting. It is not
            changed.
        mask : array_like of shape (x, y, z)
            The brain. Sizes of anomalies follow from that of the brain.
        source : array_like of shape (x, y, z, channels), optional
            Scan of another person on the same grid, 0 outside the brain; for foreign patches.
        noise : float, default=0.0
            Standard deviation of the noise of the signals. Where mixing has averaged noise out, as
            much is put back, so that it does not reveal the anomaly; signals there are clipped to
            [0, 1], as those of prepared scans are. Where a change of diffusivity amplifies noise,
            none is taken away.
        random_state : int, RandomState or None, default=None
            Seed.

        Returns
        -------
        volume : ndarray of shape (x, y, z, channels)
            The scan with the anomaly.
        label : ndarray of bool, of shape (x, y, z)
            The voxels that are changed, by at least half of the largest effect where an anomaly
            has no sharp edge.

        Raises
        ------
        ValueError
            If an array does not fit, or the source is missing.
        """
        signals, inside = checked_scan(volume, mask)
        check_number("noise", noise)
        sources = []
        if self.needs_source:
            if source is None:
                raise ValueError(
                    f"{self.title} come from another person's scan; give it as source"
                )
            sources.append(checked_source(source, signals))
        rng = Seed(random_state).rng("generator", self.title)
        changed, factor, label = self.add(signals, inside, rng, *sources)
        if noise:
            put_noise_back(changed, factor, noise, rng)
            # As series are prepared; noise of the scan itself stays as it came.
            noisy = factor < 1
            changed[noisy] = np.clip(changed[noisy], 0, 1)
        return changed, label


def put_noise_back(
    volume: NDArray[np.float32],
    factor: NDArray[np.float32],
    noise: float,
    rng: np.random.Generator,
) -> None:
    """Add noise, in place, where its SD was multiplied by a factor below 1, up to `noise`."""
    missing_sd = np.sqrt(np.clip(1 - factor**2, 0, 1)) * np.float32(noise)
    inside = missing_sd > 0
    normal = rng.standard_normal((np.count_nonzero(inside), volume.shape[-1]), dtype=np.float32)
    volume[inside] += normal * missing_sd[inside][:, None]


def _ellipsoids(
    volume: NDArray[np.float32], mask: NDArray[np.bool_], rng: np.random.Generator
) -> _Changed:
    moments = TissueMoments.measured([volume], [mask])
    label = Ellipsoids(counts=_AT_LEAST_ONE).put_into(volume, mask, rng, moments)
    return volume, np.ones(mask.shape, dtype=np.float32), label


def add_diffusivity(
    volume: NDArray[np.float32],
    mask: NDArray[np.bool_],
    rng: np.random.Generator,
    *,
    radii: tuple[float, float],
    changes: tuple[float, float],
    edges: tuple[float, float] | None = None,
) -> _Changed:
    """
    Change the diffusivity of tissue in a rough ellipsoid at a random place.

    The diffusivity D becomes (1 + change · effect) · D. `changes` is the range of the change,
    `radii` that of the radius in units of the radius of a ball as large as the brain. The effect
    falls with the distance from the center: as a Gaussian, to half at the border of the ellipsoid,
    or from 1 to 0 around that border, with a width from the range `edges`. Fluid and the signal at
    b = 0 do not change.

    Shapes: `volume` (x, y, z, channels); returns the changed volume, the factor (x, y, z) by which
    the SD of its noise changed, and the label, where the effect is at least half.
    """
    tissue = tissue_share(volume, mask)
    center = lesion_center(tissue, rng)
    radius = ball_radius(mask) * rng.uniform(*radii)
    distance = rough_ellipsoid(mask.shape, center, radius, rng)
    if edges is None:
        effect = tissue * np.exp2(-(distance**2))
    else:
        effect = tissue * fall(distance, rng.uniform(*edges))
    inside = effect > 0
    diffusivity_factor = 1 + np.float32(rng.uniform(*changes)) * effect[inside]
    # The signal S = exp(-b·D) becomes S to the power of the factor of D. A signal above that at
    # b = 0 is noise and stays: a larger D would raise it.
    signal = np.clip(volume[inside], 1e-6, None)
    changed_signal = signal ** diffusivity_factor[:, None]
    changed = volume.copy()
    changed[inside] = np.where(signal < 1, changed_signal, volume[inside])
    # To first order, noise is multiplied by the derivative of the changed signal.
    noise_factor = np.ones(effect.shape, dtype=np.float32)
    noise_factor[inside] = diffusivity_factor * signal.mean(axis=1) ** (diffusivity_factor - 1)
    return changed, noise_factor, effect >= 0.5


#: Generators of anomalies by name. Diffusivity is raised by 10 to 40 % within 10 to 26 mm of an
#: adult, as in infiltrated tissue, or lowered to 60 to 85 % within 8 to 20 mm, as among crowded
#: cells.
GENERATORS: Mapping[str, Generator] = {
    "ellipsoids": Generator("ellipsoids of noise", _ellipsoids, before_noise=False),
    "gliomas": Generator("gliomas", add_glioma),
    "patches": Generator("foreign patches", add_patch, needs_source=True),
    "infiltration": Generator(
        "diffuse infiltration", partial(add_diffusivity, radii=(0.14, 0.36), changes=(0.1, 0.4))
    ),
    "hypercellular": Generator(
        "hypercellular lesions",
        partial(add_diffusivity, radii=(0.11, 0.28), changes=(-0.4, -0.15), edges=(0.1, 0.3)),
    ),
}
