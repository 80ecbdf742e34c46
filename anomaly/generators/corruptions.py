"""Synthetic anomalies: ellipsoids of noise in a healthy brain, with their mask."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from anomaly.generators.implants import add_patch
from dmrifit._utils.checks import NotNegative, Within, check_fields, check_finite, check_word
from dmrifit._utils.randomness import RandomState, Seed

__all__ = ["corrupt"]

#: Distribution of the noise, and whether a value is drawn for a voxel and channel, a channel, or a
#: voxel.
NOISES = tuple(
    "-".join(pair)
    for pair in product(("normal", "uniform"), ("random", "directional", "isotropic"))
)
#: What `corrupt` accepts: in a mix every ellipsoid has a noise of its own.
NOISE_NAMES = (*NOISES, "mix")
#: What is put into a brain: noise, or another person's tissue.
SHAPES = ("ellipsoid", "patch")
#: The mean of the noise, times that of brain tissue.
MEANS = {"full": 1.0, "half": 0.5}
#: What of uniform noise is the SD of tissue: its SD, or its range, which is √12 = 3.46 times as
#: narrow.
UNIFORM_WIDTHS = ("sd", "range")
#: Options of `corrupt` by the words of the publication, where ours differ. It names no clipping.
PUBLISHED: dict[str, Any] = {"uniform": "range", "background": True, "clip": False}
#: Probabilities of no, one and two ellipsoids.
COUNTS = (0.2, 0.6, 0.2)
#: Least and largest radius of an ellipsoid, times that of a ball as large as the brain: 5 to 11
#: voxels of 2.4 mm
#: in a brain of 1.4 liters, as published.
RADII = (0.174, 0.382)
#: An axis is as long as the radius, or down to this share of it.
SHORTEST = 0.5
_Radius = Annotated[float, Within(above=0, most=2)]


@dataclass(frozen=True)
class TissueMoments:
    """Mean and SD of the signals of brain tissue, in the units of the volumes."""

    mean: float
    sd: float

    @classmethod
    def measured(cls, volumes: Iterable[Any], masks: Iterable[Any]) -> TissueMoments:
        """Compute the moments of `volumes` (x, y, z, channels), read one at a time, in `masks`."""
        count, total, squares = 0, 0.0, 0.0
        for volume, mask in zip(volumes, masks, strict=True):
            signals = np.asarray(volume)[np.asarray(mask, dtype=bool)]
            count += signals.size
            total += float(signals.sum(dtype=np.float64))
            # Squares of half precision would overflow.
            squared = np.square(signals, dtype=np.result_type(signals, np.float32))
            squares += float(squared.sum(dtype=np.float64))
        if not count:
            raise ValueError(
                "there is no voxel of brain to measure; give masks that are not empty, or volumes "
                "that are not zero"
            )
        mean = total / count
        return cls(mean, float(np.sqrt(max(0.0, squares / count - mean**2))))


@dataclass(frozen=True)
class Ellipsoids:
    """Options of the ellipsoids of noise that `corrupt` puts into a brain."""

    noise: str = "mix"
    mean: str = "half"
    counts: Sequence[NotNegative] = COUNTS
    radii: Sequence[_Radius] = RADII
    uniform: str = "sd"
    background: bool = False
    clip: bool = True

    def __post_init__(self) -> None:
        check_word("noise", self.noise, NOISE_NAMES)
        check_word("mean", self.mean, tuple(MEANS))
        check_word("uniform", self.uniform, UNIFORM_WIDTHS)
        check_fields(self)
        if not sum(self.counts) > 0:
            raise ValueError(
                f"counts={self.counts!r} must be the probabilities of no, one, two, … ellipsoids, "
                f"such as {COUNTS}"
            )
        if len(self.radii) != 2 or self.radii[0] > self.radii[1]:
            raise ValueError(
                f"radii={self.radii!r} must be two numbers above 0, the smaller one first, such "
                f"as {RADII}"
            )

    def put_into(
        self,
        volume: NDArray[Any],
        inside: NDArray[np.bool_],
        rng: np.random.Generator,
        moments: TissueMoments,
    ) -> NDArray[np.bool_]:
        """Put ellipsoids of noise into a volume (x, y, z, channels) in place; give their mask."""
        anomaly = np.zeros(inside.shape, dtype=bool)
        brain = np.flatnonzero(inside)
        allowed = np.ones_like(inside) if self.background else inside
        size = (3 * len(brain) / (4 * np.pi)) ** (1 / 3)
        low, high = self.radii
        shares = np.asarray(self.counts) / np.sum(self.counts)
        for _ in range(rng.choice(len(shares), p=shares)):
            center = np.array(np.unravel_index(brain[rng.integers(len(brain))], inside.shape))
            axes = size * rng.uniform(low, high) * rng.uniform(SHORTEST, 1, size=3)
            # A quaternion of four normal numbers is a uniformly distributed rotation.
            orientation = Rotation.from_quat(rng.normal(size=4)).as_matrix()
            noise = NOISES[rng.integers(len(NOISES))] if self.noise == "mix" else self.noise
            filled = _ellipsoid(allowed, center, axes, orientation)
            values = self._values(rng, noise, int(filled.sum()), volume.shape[-1], moments)
            volume[filled] = np.clip(values, 0, 1) if self.clip else values
            anomaly |= filled
        return anomaly

    def _values(
        self,
        rng: np.random.Generator,
        noise: str,
        n_voxels: int,
        n_channels: int,
        moments: TissueMoments,
    ) -> NDArray[np.float32]:
        """Draw noise for the voxels of an ellipsoid, (n_voxels or 1, n_channels or 1)."""
        distribution, _, pattern = noise.partition("-")
        drawn = {"directional": (1, n_channels), "isotropic": (n_voxels, 1)}
        shape = drawn.get(pattern, (n_voxels, n_channels))
        if distribution == "normal":
            values = rng.standard_normal(shape, dtype=np.float32) * np.float32(moments.sd)
        else:
            # The standard deviation of a uniform distribution is its width divided by √12.
            width = np.sqrt(12) * moments.sd if self.uniform == "sd" else moments.sd
            values = (rng.random(shape, dtype=np.float32) - np.float32(0.5)) * np.float32(width)
        return values + np.float32(MEANS[self.mean] * moments.mean)


def corrupt(
    volume: Any,
    mask: Any,
    *,
    noise: str = "mix",
    mean: str = "half",
    shape: str = "ellipsoid",
    source: Any = None,
    moments: TissueMoments | None = None,
    counts: Sequence[float] = COUNTS,
    radii: Sequence[float] = RADII,
    uniform: str = "sd",
    background: bool = False,
    clip: bool = True,
    random_state: RandomState = None,
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """
    Put ellipsoids of noise, or a patch of another person's scan, into a brain.

    The number of ellipsoids, their centers (any voxel of the brain), radii, axes (each from half
    the radius to all of it) and orientations are random. The part inside the brain is filled with
    noise, clipped to [0, 1], and is the anomaly, whatever its values; where two overlap the later
    one replaces the earlier one.

    The defaults differ from the publication in three options: uniform noise has the standard
    deviation of tissue, not its range; ellipsoids end at the brain; and noise is clipped, which
    raises the mean of half noise. ``**corruptions.PUBLISHED`` has the options by its words.

    Parameters
    ----------
    volume : array_like of shape (x, y, z, channels)
        Signals divided by the one without diffusion weighting, from 0 to 1. It is not changed.
    mask : array_like of shape (x, y, z)
        The brain.
    noise : str, default="mix"
        ``"normal"`` or ``"uniform"``, a hyphen, and how often a value is drawn: ``"random"``, for
        each voxel and channel; ``"directional"``, for each channel; ``"isotropic"``, for each
        voxel. ``"mix"`` selects one of the six for each ellipsoid.
    mean : {"half", "full"}, default="half"
        The mean of the noise: half of that of brain tissue, or all of it. Its standard deviation
        is that of tissue.
    shape : {"ellipsoid", "patch"}, default="ellipsoid"
        ``"patch"`` blends in a rough ellipsoid of another person's tissue from another place,
        with a soft edge and a weight of 0.6 to 1; its mask is where it has half of that or more.
        Options of noise and of ellipsoids do not apply.
    source : array_like of shape (x, y, z, channels), optional
        The other person's scan on the same grid, 0 outside the brain; for a patch alone.
    moments : TissueMoments, optional
        Mean and standard deviation of tissue, as measured in the training scans; by default those
        of this volume in its mask.
    counts : sequence of 3 floats, default=(0.2, 0.6, 0.2)
        Probabilities of none, one and two ellipsoids.
    radii : sequence of 2 floats, default=(0.174, 0.382)
        Least and largest radius, times that of a ball as large as the brain. The default is 5 to
        11 voxels in a brain with voxels of 2.4 mm, as published.
    uniform : {"sd", "range"}, default="sd"
        Whether the standard deviation of uniform noise is that of tissue, as for normal noise, or
        its range, as published, which is 3.46 times as narrow.
    background : bool, default=False
        Whether ellipsoids reach beyond the brain, as published; their centers are in it.
    clip : bool, default=True
        Whether noise is clipped to [0, 1], the range of the signals.
    random_state : int, RandomState or None, default=None
        Seed.

    Returns
    -------
    volume : ndarray of shape (x, y, z, channels)
        A copy with anomalies.
    anomaly : ndarray of bool, of shape (x, y, z)
        Their mask.

    Raises
    ------
    ValueError
        If an option is invalid, the mask is empty or of another shape, or a patch has no source or
        one of another shape.

    References
    ----------
    Weninger et al., Scientific Reports 13:20366, 2023.
    """
    ellipsoids = Ellipsoids(noise, mean, counts, radii, uniform, background, clip)
    check_word("shape", shape, SHAPES)
    if (source is None) == (shape == "patch"):
        raise ValueError(
            f"shape={shape!r} and source={'None' if source is None else 'a scan'}: a patch comes "
            "from another person's scan, and an ellipsoid from none"
        )
    changed, inside = checked_scan(volume, mask)
    rng = Seed(random_state).rng("corrupt")
    if shape == "patch":
        changed, _, anomaly = add_patch(changed, inside, rng, checked_source(source, changed))
        return changed, anomaly
    if moments is None:
        moments = TissueMoments.measured([changed], [inside])
    return changed, ellipsoids.put_into(changed, inside, rng, moments)


def checked_scan(volume: Any, mask: Any) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Check a scan and its mask, and copy the scan."""
    signals = np.array(volume, dtype=np.result_type(np.asarray(volume).dtype, np.float32))
    inside = np.asarray(mask) > 0
    if signals.ndim != 4 or signals.shape[:3] != inside.shape:
        raise ValueError(
            f"a volume of shape {signals.shape} and a mask of shape {inside.shape}; give a volume "
            "(x, y, z, channels) and a mask (x, y, z) on one grid"
        )
    if not inside.any():
        raise ValueError("the mask is empty, so that there is no brain to put an anomaly into")
    check_finite(signals, "the volume")
    return signals, inside


def checked_source(source: Any, volume: NDArray[Any]) -> NDArray[Any]:
    """Check the scan of another person against the one that gets a patch of it."""
    foreign = np.asarray(source, dtype=volume.dtype)
    if foreign.shape != volume.shape:
        raise ValueError(
            f"a source of shape {foreign.shape} for a volume of shape {volume.shape}; bring both "
            "scans to one grid and the same directions"
        )
    check_finite(foreign, "the source")
    if np.array_equal(foreign, volume):
        raise ValueError("the source is the scan itself; give that of another person")
    return foreign


def _ellipsoid(
    inside: NDArray[np.bool_], center: NDArray[Any], axes: NDArray[Any], orientation: NDArray[Any]
) -> NDArray[np.bool_]:
    """Compute the voxels of an ellipsoid inside a mask (x, y, z)."""
    x, y, z = np.ogrid[*map(slice, inside.shape)]
    x, y, z = x - center[0], y - center[1], z - center[2]
    # |diag(1 / axes) Rᵀ d|² for all offsets d, one axis after the other.
    along = [row[0] * x + row[1] * y + row[2] * z for row in orientation.T / axes[:, None]]
    return (np.square(along).sum(axis=0) <= 1) & inside
