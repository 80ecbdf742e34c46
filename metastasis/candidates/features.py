"""Candidates of a segmenter at several thresholds, and what tells metastases from mimics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dmrifit.io.components import drop_small
from metastasis.scans.local_level import local_level

__all__ = ["FEATURES", "LEVELS", "PRIOR_FEATURES", "Candidates", "ScanVolumes", "find_candidates"]

#: Probabilities from which voxels are joined. Networks are not calibrated in another person's
#: scan: one found 80 % of implants at 0.56, another one at 0.005 only.
LEVELS = (0.005, 0.02, 0.1, 0.4)

#: Features of a candidate in the scan, with what they are.
FEATURES = {
    "log_volume": "logarithm of the volume in mm³",
    "max_probability": "largest probability of the network",
    "mean_probability": "mean probability of the network",
    "level": "probability from which its voxels were joined",
    "max_intensity": "largest intensity, in local levels of unenhanced brain",
    "high_intensity": "95 % quantile of the intensity",
    "mean_intensity": "mean intensity",
    "spread_intensity": "standard deviation of the intensity",
    "contrast": "mean intensity above the median of the shell around it",
    "bright_shell": "share of the shell that is as bright as half its contrast",
    "dark_shell": "share of the shell that is fluid or outside the brain",
    "compactness": "volume against that of a ball with its extent",
    "elongation": "longest against middle extent",
    "flatness": "middle against shortest extent",
    "tubeness": "curvature along two axes alone at its center line, as in a vessel",
    "sheetness": "curvature along one axis alone, as in dura",
    "blobness": "curvature along all axes",
    "core_share": "enclosed voxels against its own",
    "core_intensity": "mean intensity of enclosed voxels, against its own",
    "depth": "mean distance to the surface of the brain in mm",
    "least_depth": "smallest distance to the surface in mm",
    "midplane": "distance of its center to the middle of the brain, left to right, in mm",
}

#: Features of a candidate in scan and prior; missing without a prior.
PRIOR_FEATURES = {
    "mean_change": "mean of intensity minus local maximum of the prior",
    "max_change": "largest of intensity minus local maximum of the prior",
    "prior_intensity": "mean local maximum of the prior",
    "prior_contrast": "mean of the prior above the median of the shell around it",
    "contrast_change": "contrast minus contrast in the prior",
}

#: Edge in mm of the cube in which the prior's maximum is taken: registration is not perfect.
_PRIOR_REACH = 5.0
_SHELL = (1.0, 3.5)  # mm around a candidate
_HESSIAN_MM = 1.2
_FLUID = 0.6  # local levels
_LARGEST_ML = 2.0  # a larger component is judged by what is left of it at the next level
_UNSURE = 0.1  # level below which candidates may be limited in size
_LEAST_WALL = 6  # voxels, of which each has a face on an enclosed one
_BALL = np.ones((3, 3, 3), dtype=bool)


@dataclass(frozen=True)
class ScanVolumes:
    """Intensities of a scan and its prior in local levels, its brain, and edges in mm."""

    image: NDArray[np.float32]
    brain: NDArray[np.bool_]
    steps: NDArray[np.float64]
    prior: NDArray[np.float32] | None = None
    sides: int = 0  # the axis from left to right

    @classmethod
    def scaled(
        cls,
        image: NDArray[Any],
        brain: NDArray[np.bool_],
        steps: Any,
        prior: Any = None,
        sides: int = 0,
    ) -> ScanVolumes:
        """Divide a scan and its prior by their local levels of unenhanced brain."""
        steps = np.asarray(steps, dtype=np.float64)

        def relative(values: Any) -> NDArray[np.float32]:
            values = np.asarray(values, dtype=np.float32)
            return np.clip(values / local_level(values, brain, steps), 0, 5) * brain

        # A prior of zeros is a missing one.
        has_prior = prior is not None and np.any(prior)
        before = relative(prior) if has_prior else None
        return cls(relative(image), brain, steps, before, sides)


@dataclass(frozen=True)
class Candidates:
    """Candidates of a scan: their features (n, n_features) and flat voxel indices."""

    table: NDArray[np.float64]
    voxels: list[NDArray[np.intp]]

    def __len__(self) -> int:
        return len(self.voxels)


def find_candidates(
    probability: NDArray[np.floating],
    scan: ScanVolumes,
    *,
    levels: Sequence[float] = LEVELS,
    min_voxels: int = 4,
    limited: bool = False,
) -> Candidates:
    """
    Find components at several probabilities, and compute their features.

    At a low threshold a lesion merges with a sinus or a ventricle and would be rejected as a
    whole, so that each is judged at all levels; a component above 2 mL counts only where no
    component is left of it at a higher level. Where `limited`, components at levels below 0.1
    count up to 2 mL times the square root of their level: larger ones are tissue, not lesions.

    Shapes: `probability` (x, y, z).
    """
    measure = _Measure(probability, scan)
    n_in_ml = 1000 / float(scan.steps.prod())
    largest = _LARGEST_ML * n_in_ml
    rows, voxels = [], []
    levels = sorted(set(levels))
    for level, next_level in zip(levels, [*levels[1:], np.inf], strict=True):
        most = np.inf
        if limited and level < _UNSURE:
            most = _LARGEST_ML * np.sqrt(level) * n_in_ml
        components, _ = ndimage.label(probability >= level, structure=_BALL)
        sizes = np.bincount(components.ravel())
        # Components of higher levels lie within those of the next one.
        cores = drop_small(probability >= next_level, min_voxels)
        has_core = np.bincount(components[cores], minlength=len(sizes)) > 0
        for index, window in enumerate(ndimage.find_objects(components), start=1):
            if sizes[index] < min_voxels or (sizes[index] > largest and has_core[index]):
                continue
            if sizes[index] > most:
                continue
            rows.append(measure.features(components, index, window, level))
            inside = np.nonzero(components[window] == index)
            places = [axis + part.start for axis, part in zip(inside, window, strict=True)]
            voxels.append(np.ravel_multi_index(places, probability.shape))
    n_features = len(FEATURES) + len(PRIOR_FEATURES)
    return Candidates(np.array(rows, dtype=np.float64).reshape(-1, n_features), voxels)


class _Measure:
    """Computes features of components of one scan."""

    def __init__(self, probability: NDArray[np.floating], scan: ScanVolumes) -> None:
        self.probability = probability
        self.scan = scan
        steps = scan.steps
        self.depth = ndimage.distance_transform_edt(np.pad(scan.brain, 1), sampling=steps)
        self.depth = self.depth[1:-1, 1:-1, 1:-1].astype(np.float32)
        others = tuple(axis for axis in range(3) if axis != scan.sides)
        planes = np.flatnonzero(scan.brain.any(axis=others))
        self.middle = float(planes.mean()) if len(planes) else 0.0
        self.reach = np.ceil((_SHELL[1] + steps) / steps).astype(int) + 2
        self.prior_maximum = None
        if scan.prior is not None:
            size = tuple(2 * int(n) + 1 for n in np.round(_PRIOR_REACH / 2 / steps))
            self.prior_maximum = ndimage.maximum_filter(scan.prior, size)

    def features(
        self, components: NDArray[Any], index: int, window: tuple[slice, ...], level: float
    ) -> list[float]:
        """Give the features of a component, in the order of their tables."""
        shape = components.shape
        wide = tuple(
            slice(max(0, part.start - n), min(length, part.stop + n))
            for part, n, length in zip(window, self.reach, shape, strict=True)
        )
        own = components[wide] == index
        steps, image, brain = self.scan.steps, self.scan.image[wide], self.scan.brain[wide]
        intensities, probabilities = image[own], self.probability[wide][own]
        distance = ndimage.distance_transform_edt(~own, sampling=steps)
        around = (distance > _SHELL[0]) & (distance <= _SHELL[1])
        shell, shell_brain = image[around], brain[around]
        base = float(np.median(shell[shell_brain])) if shell_brain.any() else 1.0
        contrast = float(intensities.mean()) - base
        # Fewer voxels enclose none, and filling takes longer than all else.
        filled = ndimage.binary_fill_holes(own) if own.sum() >= _LEAST_WALL else own
        core = filled & ~own
        depth = self.depth[wide][own]
        places = np.argwhere(own) * steps
        extents = _extents(places, steps)
        sides = self.scan.sides
        center = places[:, sides].mean() / steps[sides] + wide[sides].start
        volume = own.sum() * steps.prod()
        radius = max(np.sqrt(5 * extents[2] ** 2), 0.5 * steps.max())
        row = [
            float(np.log(volume)),
            float(probabilities.max()),
            float(probabilities.mean()),
            level,
            float(intensities.max()),
            float(np.quantile(intensities, 0.95)),
            float(intensities.mean()),
            float(intensities.std()),
            contrast,
            float(np.mean(shell > base + 0.5 * contrast)) if len(shell) else 0.0,
            float(np.mean((shell < _FLUID) | ~shell_brain)) if len(shell) else 0.0,
            float(filled.sum() * steps.prod() / (4 / 3 * np.pi * radius**3)),
            float(extents[2] / extents[1]),
            float(extents[1] / extents[0]),
            *_curvatures(image, own, steps),
            float(core.sum() / own.sum()),
            float(image[core].mean() - intensities.mean()) if core.any() else 0.0,
            float(depth.mean()),
            float(depth.min()),
            float(abs(center - self.middle) * steps[sides]),
        ]
        return row + self._changes(own, around & brain, intensities, contrast, wide)

    def _changes(
        self,
        own: NDArray[np.bool_],
        shell: NDArray[np.bool_],
        intensities: NDArray[np.float32],
        contrast: float,
        wide: tuple[slice, ...],
    ) -> list[float]:
        """Compare with the prior; missing values without one."""
        if self.scan.prior is None or self.prior_maximum is None:
            return [np.nan] * len(PRIOR_FEATURES)
        prior, maximum = self.scan.prior[wide], self.prior_maximum[wide][own]
        base = float(np.median(prior[shell])) if shell.any() else 1.0
        # The brightest place of the prior nearby counts, as it may lie a voxel beside.
        earlier = float(np.quantile(maximum, 0.5)) - base
        change = intensities - maximum
        return [
            float(change.mean()),
            float(change.max()),
            float(maximum.mean()),
            earlier,
            contrast - earlier,
        ]


def _extents(places: NDArray[np.float64], steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give the standard deviations along the main axes in mm, the shortest first."""
    spread = np.cov(places.T, bias=True) if len(places) > 1 else np.zeros((3, 3))
    # A voxel has an extent of its own, so that no sheet is infinitely flat.
    spread = spread + np.diag(steps**2) / 12
    extents: NDArray[np.float64] = np.sqrt(np.linalg.eigvalsh(spread))
    return extents


def _curvatures(
    image: NDArray[np.float32], own: NDArray[np.bool_], steps: NDArray[np.float64]
) -> tuple[float, float, float]:
    """Give tube-, sheet- and blobness from the eigenvalues of the Hessian inside a component."""
    sigmas = _HESSIAN_MM / steps
    smooth = ndimage.gaussian_filter(image, sigmas)
    hessian = np.empty((own.sum(), 3, 3))
    gradients = np.gradient(smooth, *steps)
    for first in range(3):
        for second, values in enumerate(np.gradient(gradients[first], *steps)):
            hessian[:, first, second] = values[own]
    # Bright structures curve downward, so that the strongest comes first.
    curves = np.sort(-np.linalg.eigvalsh((hessian + hessian.transpose(0, 2, 1)) / 2), axis=1)
    weak, middle, strong = np.clip(np.quantile(curves, 0.7, axis=0), 0, None)
    return float(middle - weak), float(strong - middle), float(weak)
