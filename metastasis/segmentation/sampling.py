"""Segments of volumes for training: where they lie, at which resolutions they are seen, how they are varied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from metastasis.networks.sizes import low_resolution_input, output_size

__all__ = [
    "SegmentSampler",
    "lesion_voxels",
    "low_resolution",
    "normalized",
    "take_cells",
    "take_window",
]

#: How often a background voxel is guessed before all of them are listed.
_GUESSES = 64


# Volumes as networks see them --------------------------------------------------------------------


def normalized(volume: NDArray[Any], mask: NDArray[Any] | None = None) -> NDArray[np.float32]:
    """
    Scale each channel to mean 0 and standard deviation 1 inside of a mask.

    Shapes: `volume` (channels, x, y, z), `mask` (x, y, z); returns (channels, x, y, z).
    """
    scaled = np.empty(volume.shape, dtype=np.float32)
    for number, channel in enumerate(volume):
        inside = channel[channel != 0 if mask is None else np.asarray(mask, dtype=bool)].astype(
            np.float64
        )
        spread = inside.std() if inside.size else 0.0
        # A constant has a spread of a few roundings.
        if not spread > 1e-6 * np.abs(inside).max(initial=0):
            found = (
                f"has the value {inside[0]:g} everywhere"
                if inside.size
                else "has no voxel that is not zero"
            )
            raise ValueError(
                f"channel {number} {found} inside of the brain; give a scan with contrast"
            )
        scaled[number] = (channel - inside.mean()) / spread
    return scaled


def low_resolution(
    volume: NDArray[np.float32], factor: int, how: str = "average"
) -> NDArray[np.float32]:
    """
    Give the low-resolution cell that begins at each voxel, so that cells on any grid can be taken
    from it.

    Beyond the border the volume goes on with its outermost voxels.

    Shapes: `volume` (channels, x, y, z); returns (channels, x + factor - 1, y + factor - 1, z +
    factor - 1).
    """
    n = factor - 1
    if how == "stride":
        return np.pad(
            volume, [(0, 0), (n // 2, n - n // 2)] + [(n // 2, n - n // 2)] * 2, mode="edge"
        )
    cells = np.pad(volume, [(0, 0)] + [(n, n)] * 3, mode="edge")
    for axis in (1, 2, 3):
        length = cells.shape[axis] - n
        parts = [np.take(cells, np.arange(k, k + length), axis=axis) for k in range(factor)]
        cells = np.mean(parts, axis=0, dtype=np.float32)
    return cells


def take_window(volume: NDArray[Any], first: Sequence[int], size: Sequence[int]) -> NDArray[Any]:
    """
    Take a window that may reach beyond the border, where the volume goes on with its outermost
    voxels.

    Shapes: `volume` (channels, x, y, z); returns (channels, *size).
    """
    if all(a >= 0 and a + n <= m for a, n, m in zip(first, size, volume.shape[1:], strict=True)):
        x, y, z = (slice(a, a + n) for a, n in zip(first, size, strict=True))
        return volume[:, x, y, z]
    return _taken(volume, [np.arange(a, a + n) for a, n in zip(first, size, strict=True)])


def take_cells(
    cells: NDArray[np.float32], factor: int, first: Sequence[int], count: Sequence[int]
) -> NDArray[np.float32]:
    """
    Take low-resolution cells on the grid that begins at a voxel.

    Shapes: `cells` (channels, x + factor - 1, ...); returns (channels, *count).
    """
    return _taken(
        cells, [a + factor * np.arange(n) + factor - 1 for a, n in zip(first, count, strict=True)]
    )


def _taken(volume: NDArray[Any], places: Sequence[NDArray[np.int64]]) -> NDArray[Any]:
    x, y, z = (np.clip(place, 0, n - 1) for place, n in zip(places, volume.shape[1:], strict=True))
    return volume[:, x[:, None, None], y[:, None], z]


# Where segments lie ------------------------------------------------------------------------------


def lesion_voxels(label: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """
    List the voxels of lesions, one lesion after the other.

    Shapes: `label` (x, y, z).
    """
    numbers, n_lesions = ndimage.label(label, structure=np.ones((3, 3, 3)))
    flat = numbers.reshape(-1)
    inside = np.flatnonzero(flat)
    order = np.argsort(flat[inside], kind="stable")
    return inside[order], np.cumsum(np.bincount(flat[inside], minlength=n_lesions + 1)[1:])


@dataclass(frozen=True)
class SegmentSampler:
    """
    Draws the segments of an epoch: every other one with a lesion voxel in its middle, the others
    with background.

    What is drawn depends on the generator, cases and labels alone, not on the loss or on whether
    priors are used.

    Parameters
    ----------
    size : int
        Voxels of a segment along each axis.
    n_layers : int
        Convolutions without padding of each path.
    factors : tuple of int, default=()
        Of the low-resolution paths.
    sampling : {"lesion", "voxel"}, default="lesion"
        Whether all lesions, or all lesion voxels, are equally likely.
    augment : bool, default=True
        Whether segments are flipped and rotated by 90° at random (all 48 ways) and their
        intensities scaled.
    intensity_scale : float, default=0.1
        Image and prior are each multiplied by a number from 1 − this to 1 + this.
    prior_dropout : float, default=0.0
        Share of segments whose prior is taken away.
    """

    size: int
    n_layers: int
    factors: tuple[int, ...] = ()
    sampling: str = "lesion"
    augment: bool = True
    intensity_scale: float = 0.1
    prior_dropout: float = 0.0

    def draw(
        self,
        inputs: Sequence[Mapping[str, NDArray[Any]]],
        targets: Sequence[Mapping[str, NDArray[Any]]],
        n_segments: int,
        rng: np.random.Generator,
    ) -> Iterator[tuple[dict[str, NDArray[Any]], NDArray[np.uint8]]]:
        """
        Draw segments.

        Shapes: returns label (1, size, size, size).
        """
        n_lesions = np.array([len(target["ends"]) for target in targets])
        n_voxels = np.array([len(target["voxels"]) for target in targets])
        if not n_voxels.any():
            raise ValueError(
                f"none of the {len(targets)} cases to learn from has a lesion; give cases with "
                "lesions"
            )
        for number in range(n_segments):
            if number % 2:
                case = int(rng.integers(len(inputs)))
                middle = _background_voxel(inputs[case]["brain"], targets[case]["label"], rng)
            elif self.sampling == "voxel":
                case, place = _place(n_voxels, rng)
                middle = int(targets[case]["voxels"][place])
            else:
                case, lesion = _place(n_lesions, rng)
                ends = targets[case]["ends"]
                first = ends[lesion - 1] if lesion else 0
                middle = int(targets[case]["voxels"][rng.integers(first, ends[lesion])])
            yield self._segment(inputs[case], targets[case]["label"], middle, rng)

    def _segment(
        self,
        case: Mapping[str, NDArray[Any]],
        label: NDArray[np.uint8],
        middle: int,
        rng: np.random.Generator,
    ) -> tuple[dict[str, NDArray[Any]], NDArray[np.uint8]]:
        """Cut a segment out of a volume that is turned first, so that all resolutions are turned alike."""
        axes, flips = rng.permutation(3), rng.integers(0, 2, 3).astype(bool)
        scale, prior_scale = 1 + self.intensity_scale * rng.uniform(-1, 1, 2)
        dropped = rng.uniform() < self.prior_dropout
        if not self.augment:
            axes, flips, scale, prior_scale = np.arange(3), np.zeros(3, dtype=bool), 1.0, 1.0

        def turned(volume: NDArray[Any]) -> NDArray[Any]:
            steps = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
            return volume.transpose(0, *(1 + axes))[(slice(None), *steps)]

        shape = np.array(label.shape)[axes]
        center = np.array(np.unravel_index(middle, label.shape))[axes]
        center = np.where(flips, shape - 1 - center, center)
        out = output_size(self.size, self.n_layers)
        # The output stays inside of the volume; what it is seen with may reach beyond.
        start = np.clip(center - out // 2, 0, np.maximum(shape - out, 0))
        first, size = (start - self.n_layers).tolist(), [self.size] * 3
        found: dict[str, Any] = {
            "image": take_window(turned(case["image"]), first, size) * np.float32(scale)
        }
        for factor in self.factors:
            count = low_resolution_input(out, factor, self.n_layers)
            begin = (start - factor * self.n_layers).tolist()
            cells = take_cells(turned(case[f"low_{factor}"]), factor, begin, [count] * 3)
            found[f"low_{factor}"] = cells * np.float32(scale)
        if "prior" in case:
            there = np.float32(0 if dropped else case["valid"])
            window = take_window(turned(case["prior"]), first, size)
            found["prior"] = window * (np.float32(prior_scale) * there)
            found["valid"] = there
        return found, take_window(turned(label[None]), first, size)


def _place(counts: NDArray[np.int64], rng: np.random.Generator) -> tuple[int, int]:
    """Draw one of all things that cases have, and give the case and its number there."""
    ends = np.cumsum(counts)
    number = int(rng.integers(ends[-1]))
    case = int(np.searchsorted(ends, number, side="right"))
    return case, number - int(ends[case] - counts[case])


def _background_voxel(
    brain: NDArray[np.bool_], label: NDArray[np.uint8], rng: np.random.Generator
) -> int:
    """Draw a voxel of the brain that is no lesion, or any voxel where there is none."""
    brain, label = brain.reshape(-1), label.reshape(-1)
    for voxel in rng.integers(len(label), size=_GUESSES):
        if brain[voxel] and not label[voxel]:
            return int(voxel)
    listed = np.flatnonzero(brain & (label == 0))
    return int(rng.choice(listed)) if len(listed) else int(rng.integers(len(label)))
