"""Synthetic anomalies: ellipsoids of noise in a healthy brain, and the mask of where they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from dmrifit._utils.checks import check_word
from dmrifit._utils.randomness import RandomState, seed_for, seed_from

__all__ = ["MEANS", "NOISES", "NOISE_NAMES", "TissueMoments", "corrupt", "corrupt_in_place"]

#: What noise is drawn from, and for what a value is drawn: a voxel and channel, a channel, a voxel.
NOISES = tuple(
    "-".join(pair)
    for pair in product(("normal", "uniform"), ("random", "directional", "isotropic"))
)
#: What `corrupt` accepts: in a mix every ellipsoid has a noise of its own.
NOISE_NAMES = (*NOISES, "mix")
#: The mean of the noise, times that of brain tissue.
MEANS = {"full": 1.0, "half": 0.5}
#: How often there are no, one and two ellipsoids.
COUNTS = (0.2, 0.6, 0.2)
#: Least and largest radius of an ellipsoid, times that of a ball as large as the brain: 5 to 11 voxels of 2.4 mm
#: in a brain of 1.4 liters, as published.
RADII = (0.174, 0.382)
#: An axis is as long as the radius, or down to this share of it.
SHORTEST = 0.5


@dataclass(frozen=True)
class TissueMoments:
    """
    Mean and standard deviation of the signals of brain tissue, over voxels and channels.

    Parameters
    ----------
    mean, sd : float
        In the units of the volumes: of the signal without diffusion weighting, where they are divided by it.
    """

    mean: float
    sd: float

    @classmethod
    def measured(cls, volumes: Iterable[Any], masks: Iterable[Any] | None = None) -> TissueMoments:
        """
        Measure them in volumes, which may come one at a time.

        Shapes: `volumes` (x, y, z, channels), `masks` (x, y, z).
        """
        count, total, squares = 0, 0.0, 0.0
        given = iter(masks) if masks is not None else None
        for volume in volumes:
            values = np.asarray(volume)
            inside = (
                np.any(values != 0, axis=-1)
                if given is None
                else np.asarray(next(given), dtype=bool)
            )
            chosen = values[inside]
            count += chosen.size
            total += float(chosen.sum(dtype=np.float64))
            squares += float(
                np.square(chosen, dtype=np.result_type(chosen, np.float32)).sum(dtype=np.float64)
            )
        if not count:
            raise ValueError(
                "there is no voxel of brain to measure; give masks that are not empty, or volumes that are not zero"
            )
        mean = total / count
        return cls(mean, float(np.sqrt(max(0.0, squares / count - mean**2))))


def corrupt(
    volume: Any,
    mask: Any,
    *,
    noise: str = "mix",
    mean: str = "half",
    moments: TissueMoments | None = None,
    counts: Sequence[float] = COUNTS,
    radii: Sequence[float] = RADII,
    random_state: RandomState = None,
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """
    Put ellipsoids of noise into a brain.

    The number of ellipsoids, their centers (any voxel of the brain), radii, axes (each from half the radius to all of
    it) and orientations are random. The part inside the brain is filled with noise, clipped to [0, 1], and all of it
    is the anomaly, whatever values it has got; where two overlap the later one lies on top.

    Parameters
    ----------
    volume : array_like of shape (x, y, z, channels)
        Signals divided by the one without diffusion weighting, from 0 to 1. It stays as it is.
    mask : array_like of shape (x, y, z)
        The brain.
    noise : str, default="mix"
        ``"normal"`` or ``"uniform"``, and after a hyphen for what a value is drawn: ``"random"``, for each voxel and
        channel; ``"directional"``, for each channel; ``"isotropic"``, for each voxel. ``"mix"`` chooses among the six
        for each ellipsoid.
    mean : {"half", "full"}, default="half"
        The mean of the noise: half of that of brain tissue, or all of it. Its standard deviation is that of tissue.
    moments : TissueMoments, optional
        Mean and standard deviation of tissue, as measured in the scans that are learned from; by default those of this
        volume in its mask.
    counts : sequence of 3 floats, default=(0.2, 0.6, 0.2)
        How often there are none, one and two.
    radii : sequence of 2 floats, default=(0.174, 0.382)
        Least and largest radius, times that of a ball as large as the brain. The default is 5 to 11 voxels in a brain
        with voxels of 2.4 mm, as published.
    random_state : int, RandomState or None, default=None
        Seed.

    Returns
    -------
    volume : ndarray of shape (x, y, z, channels)
        A copy with anomalies.
    anomaly : ndarray of bool, of shape (x, y, z)
        Where they are.

    Raises
    ------
    ValueError
        If noise, mean, counts or radii are not possible, or the mask is empty or of another shape.

    References
    ----------
    Weninger et al., Scientific Reports 13:20366, 2023.
    """
    check_corruption(noise, mean, counts, radii)
    changed = np.array(volume, dtype=np.result_type(np.asarray(volume).dtype, np.float32))
    inside = np.asarray(mask) > 0
    if changed.ndim != 4 or changed.shape[:3] != inside.shape:
        raise ValueError(
            f"a volume of shape {changed.shape} and a mask of shape {inside.shape}; give a volume (x, y, z, channels) "
            "and a mask (x, y, z) on one grid"
        )
    if not inside.any():
        raise ValueError("the mask is empty, so that there is no brain to put an anomaly into")
    n_bad = changed.size - np.count_nonzero(np.isfinite(changed))
    if n_bad:
        raise ValueError(
            f"{n_bad} values of the volume are not finite; set what is outside the brain to 0"
        )
    known = TissueMoments.measured([changed], [inside]) if moments is None else moments
    rng = np.random.default_rng(seed_for(seed_from(random_state), "corrupt"))
    anomaly = corrupt_in_place(
        changed, inside, rng, known, noise=noise, mean=mean, counts=counts, radii=radii
    )
    return changed, anomaly


def corrupt_in_place(
    volume: NDArray[Any],
    inside: NDArray[np.bool_],
    rng: np.random.Generator,
    moments: TissueMoments,
    *,
    noise: str,
    mean: str,
    counts: Sequence[float] = COUNTS,
    radii: Sequence[float] = RADII,
) -> NDArray[np.bool_]:
    """
    Put ellipsoids into a volume itself; what `corrupt` does once everything is checked.

    Shapes: `volume` (x, y, z, channels), `inside` (x, y, z); returns (x, y, z).
    """
    anomaly = np.zeros(inside.shape, dtype=bool)
    brain = np.flatnonzero(inside)
    size = (3 * len(brain) / (4 * np.pi)) ** (1 / 3)
    for _ in range(rng.choice(len(counts), p=np.asarray(counts) / np.sum(counts))):
        center = np.array(np.unravel_index(brain[rng.integers(len(brain))], inside.shape))
        axes = size * rng.uniform(radii[0], radii[1]) * rng.uniform(SHORTEST, 1, size=3)
        # Four normal numbers are a rotation that no direction is preferred by.
        orientation = Rotation.from_quat(rng.normal(size=4)).as_matrix()
        kind = NOISES[rng.integers(len(NOISES))] if noise == "mix" else noise
        box, filled = _ellipsoid(inside, center, axes, orientation)
        values = _noise(
            rng, kind, int(filled.sum()), volume.shape[-1], MEANS[mean] * moments.mean, moments.sd
        )
        # Inside this ellipsoid alone: the rest of its box may belong to another.
        volume[box][filled] = values
        anomaly[box] |= filled
    return anomaly


def check_corruption(noise: Any, mean: Any, counts: Any = COUNTS, radii: Any = RADII) -> None:
    """Refuse what `corrupt` cannot do."""
    for name, value, known in (("noise", noise, NOISE_NAMES), ("mean", mean, tuple(MEANS))):
        check_word(name, value, known)
    shares = _numbers("counts", counts)
    if (
        shares.ndim != 1
        or not shares.size
        or not (shares >= 0).all()
        or not 0 < shares.sum() < np.inf
    ):
        raise ValueError(
            f"counts={counts!r} must say how often there are no, one, two, … ellipsoids, such as {COUNTS}"
        )
    sizes = _numbers("radii", radii)
    if sizes.shape != (2,) or not 0 < sizes[0] <= sizes[1] <= 2:
        raise ValueError(
            f"radii={radii!r} must be two numbers above 0, the smaller one first, such as {RADII}"
        )


def _numbers(name: str, values: Any) -> NDArray[np.float64]:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be numbers, not {values!r}") from None


def _ellipsoid(
    inside: NDArray[np.bool_], center: NDArray[Any], axes: NDArray[Any], orientation: NDArray[Any]
) -> tuple[tuple[slice, ...], NDArray[np.bool_]]:
    """Give the box around an ellipsoid and which of its voxels are in the ellipsoid and in the brain."""
    reach = np.sqrt(((orientation * axes) ** 2).sum(axis=1))
    low = np.maximum(np.ceil(center - reach).astype(int), 0)
    high = np.minimum(np.floor(center + reach).astype(int) + 1, inside.shape)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    offsets = [np.arange(a, b) - c for a, b, c in zip(low, high, center, strict=True)]
    # |diag(1 / axes) Rᵀ d|² for all offsets d, one axis after the other.
    turned = orientation.T / axes[:, None]
    square = np.zeros([len(part) for part in offsets])
    for row in turned:
        along = (
            (row[0] * offsets[0])[:, None, None]
            + (row[1] * offsets[1])[:, None]
            + row[2] * offsets[2]
        )
        square += along**2
    return box, (square <= 1) & inside[box]


def _noise(
    rng: np.random.Generator, kind: str, n_voxels: int, n_channels: int, mean: float, sd: float
) -> NDArray[np.float32]:
    """Draw the values of the voxels of an ellipsoid."""
    distribution, _, what = kind.partition("-")
    shape = {
        "random": (n_voxels, n_channels),
        "directional": (1, n_channels),
        "isotropic": (n_voxels, 1),
    }[what]
    if distribution == "normal":
        values = rng.standard_normal(shape, dtype=np.float32) * np.float32(sd) + np.float32(mean)
    else:
        # The standard deviation of a uniform distribution is its width divided by √12.
        values = (rng.random(shape, dtype=np.float32) - np.float32(0.5)) * np.float32(
            np.sqrt(12) * sd
        )
        values += np.float32(mean)
    np.clip(values, 0, 1, out=values)
    return np.broadcast_to(values, (n_voxels, n_channels))
