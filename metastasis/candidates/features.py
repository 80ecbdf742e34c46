"""Candidates of a segmenter at several thresholds, and what tells metastases from mimics."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dmrifit.io.components import drop_small
from metastasis.scans.local_level import local_level

#: Probabilities from which voxels are joined. Networks are not calibrated in another person's
#: scan: one found 80 % of implants at 0.56, another one at 0.005 only.
LEVELS = (0.005, 0.02, 0.1, 0.4)

_MEANINGS = tomllib.loads(files(__package__).joinpath("data", "features.toml").read_text("utf-8"))
#: Features of a candidate in the scan, with what they are.
FEATURES: dict[str, str] = _MEANINGS["scan"]
#: Features of a candidate in scan and prior; missing without a prior.
PRIOR_FEATURES: dict[str, str] = _MEANINGS["prior"]

#: mm to each side in which maxima are taken: alignment is not perfect.
_PRIOR_REACH = 1.2
_CHANGE_MM = 0.6  # of smoothing, before scan and prior are subtracted
_LEAST_DEVIATION = 0.01  # local levels
_SHELL = (1.0, 3.5)  # mm around a candidate
_HESSIAN_MM = 1.2
_FLUID = 0.6  # local levels
_LARGEST_ML = 2.0  # a larger component is judged by what is left of it at the next level
#: Level, and share at the next one, from which a component that is too large is one finding; at
#: lower ones lesions merge with normal tissue.
_LEAST_JOINED, _LEAST_CORE = 0.02, 0.5
_UNSURE = 0.1  # level below which candidates may be limited in size
_LEAST_WALL = 6  # voxels, of which each has a face on an enclosed one
_BALL = np.ones((3, 3, 3), dtype=bool)


@dataclass(frozen=True)
class ScanVolumes:
    """
    Intensities of a scan and its prior in local levels, its brain, and edges in mm.

    The first axis is that from left to right.
    """

    image: NDArray[np.float32]
    brain: NDArray[np.bool_]
    steps: NDArray[np.float64]
    prior: NDArray[np.float32] | None = None
    prior_probability: NDArray[np.float32] | None = None  # of the network, in the prior

    @classmethod
    def scaled(
        cls, image: NDArray[Any], brain: NDArray[np.bool_], steps: Any, prior: Any = None
    ) -> ScanVolumes:
        """Divide a scan and its prior by their local levels of unenhanced brain."""
        steps = np.asarray(steps, dtype=np.float64)

        def relative(values: Any) -> NDArray[np.float32]:
            values = np.asarray(values, dtype=np.float32)
            return np.clip(values / local_level(values, brain, steps), 0, 5) * brain

        # A prior of zeros is a missing one.
        has_prior = prior is not None and np.any(prior)
        return cls(relative(image), brain, steps, relative(prior) if has_prior else None)


@dataclass(frozen=True)
class Candidates:
    """
    Candidates of a scan: their features (n, n_features) and flat voxel indices.

    Components too large to be judged are pairs of all their voxels and of those that reach the
    next level, from the highest level on.
    """

    table: NDArray[np.float64]
    voxels: list[NDArray[np.intp]]
    oversized: Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]] = ()

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
    From level 0.02 on, `scored_volume` gives a component that is too large, but of which half
    reaches the next level, the mean score of that half: the thin walls of a large ring.

    Shapes: `probability` (x, y, z).
    """
    measure = _Measure(probability, scan)
    n_in_ml = 1000 / float(scan.steps.prod())
    largest = _LARGEST_ML * n_in_ml
    rows, voxels, oversized = [], [], []

    def flat_voxels(inside: NDArray[np.bool_], window: tuple[slice, ...]) -> NDArray[np.intp]:
        places = [axis + side.start for axis, side in zip(np.nonzero(inside), window, strict=True)]
        return np.ravel_multi_index(places, probability.shape)

    levels = sorted(set(levels))
    for level, next_level in zip(levels, [*levels[1:], np.inf], strict=True):
        most = np.inf
        if limited and level < _UNSURE:
            most = _LARGEST_ML * np.sqrt(level) * n_in_ml
        components, _ = ndimage.label(probability >= level, structure=_BALL)
        sizes = np.bincount(components.ravel())
        # Components of the next level lie within those of this one.
        cores = drop_small(probability >= next_level, min_voxels)
        has_core = np.bincount(components[cores], minlength=len(sizes)) > 0
        for index, window in enumerate(ndimage.find_objects(components), start=1):
            if sizes[index] < min_voxels:
                continue
            component = components[window] == index
            is_split = sizes[index] > largest and has_core[index]
            if is_split or sizes[index] > most:
                core = component & cores[window]
                if level >= _LEAST_JOINED and core.sum() >= _LEAST_CORE * sizes[index]:
                    oversized.append((flat_voxels(component, window), flat_voxels(core, window)))
                continue
            rows.append(measure.features(components, index, window, level))
            voxels.append(flat_voxels(component, window))
    n_features = len(FEATURES) + len(PRIOR_FEATURES)
    table = np.array(rows, dtype=np.float64).reshape(-1, n_features)
    return Candidates(table, voxels, oversized[::-1])


class _Measure:
    """Computes features of components of one scan."""

    def __init__(self, probability: NDArray[np.floating], scan: ScanVolumes) -> None:
        self.probability = probability
        self.scan = scan
        steps = scan.steps
        # Padded, because the brain also ends at the edge of the volume.
        self.depth = ndimage.distance_transform_edt(np.pad(scan.brain, 1), sampling=steps)
        self.depth = self.depth[1:-1, 1:-1, 1:-1].astype(np.float32)
        # The middle of the brain from left to right.
        planes = np.flatnonzero(scan.brain.any(axis=(1, 2)))
        self.middle = float(planes.mean()) if len(planes) else 0.0
        # Voxels around a component that contain its shell.
        self.reach = np.ceil((_SHELL[1] + steps) / steps).astype(int) + 2
        # Maxima over a neighborhood, because the prior is not aligned perfectly.
        self.prior_volumes: dict[str, NDArray[np.float32]] = {}
        if scan.prior is not None:
            nearby = tuple(2 * int(n) + 1 for n in np.round(_PRIOR_REACH / steps))
            self.prior_volumes = {
                "prior": scan.prior,
                "maximum": ndimage.maximum_filter(scan.prior, nearby),
                "change": ndimage.gaussian_filter(scan.image - scan.prior, _CHANGE_MM / steps),
                "faded": scan.prior - ndimage.maximum_filter(scan.image, nearby),
            }
            if scan.prior_probability is not None:
                probability = ndimage.maximum_filter(scan.prior_probability, nearby)
                self.prior_volumes["probability"] = probability

    def features(
        self, components: NDArray[Any], index: int, window: tuple[slice, ...], level: float
    ) -> list[float]:
        """Give the features of a component, in the order of their tables."""
        wide = tuple(
            slice(max(0, part.start - n), part.stop + n)
            for part, n in zip(window, self.reach, strict=True)
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
        # A voxel has an extent of its own, so that no sheet is infinitely flat.
        spread = np.cov(places.T, bias=True) if len(places) > 1 else np.zeros((3, 3))
        extents = np.sqrt(np.linalg.eigvalsh(spread + np.diag(steps**2) / 12))
        center = places[:, 0].mean() / steps[0] + wide[0].start
        radius = max(np.sqrt(5 * extents[2] ** 2), 0.5 * steps.max())
        row = [
            np.log(own.sum() * steps.prod()),
            probabilities.max(),
            probabilities.mean(),
            level,
            intensities.max(),
            np.quantile(intensities, 0.95),
            intensities.mean(),
            intensities.std(),
            contrast,
            np.mean(shell > base + 0.5 * contrast) if len(shell) else 0.0,
            np.mean((shell < _FLUID) | ~shell_brain) if len(shell) else 0.0,
            filled.sum() * steps.prod() / (4 / 3 * np.pi * radius**3),
            extents[2] / extents[1],
            extents[1] / extents[0],
            *_curvatures(image, own, steps),
            core.sum() / own.sum(),
            image[core].mean() - intensities.mean() if core.any() else 0.0,
            depth.mean(),
            depth.min(),
            abs(center - self.middle) * steps[0],
        ]
        changes = [np.nan] * len(PRIOR_FEATURES)
        if self.prior_volumes:
            changes = _changes(
                {name: volume[wide] for name, volume in self.prior_volumes.items()},
                image,
                own,
                around & brain,
                contrast,
                float(probabilities.max()),
            )
        return [float(value) for value in (*row, *changes)]


def _changes(
    prior_volumes: dict[str, NDArray[np.float32]],
    image: NDArray[np.float32],
    component: NDArray[np.bool_],
    shell: NDArray[np.bool_],
    contrast: float,
    max_probability: float,
) -> list[float]:
    """Give the `PRIOR_FEATURES` of a component, in their order."""
    prior = prior_volumes["prior"]
    # The brightest voxel of the prior nearby: alignment is not perfect.
    local_maximum = prior_volumes["maximum"][component]
    smooth_change = prior_volumes["change"]
    shell_level, shell_change, deviation = 1.0, 0.0, _LEAST_DEVIATION
    if shell.any():
        shell_level = float(np.median(prior[shell]))
        # A change that the shell shares comes from the coil's field, not from the component.
        shell_change = float(np.median(smooth_change[shell]))
        deviation = max(deviation, float(smooth_change[shell].std()))
    prior_contrast = float(np.quantile(local_maximum, 0.5)) - shell_level
    change = image[component] - local_maximum - shell_change
    aligned_change = float(smooth_change[component].mean()) - shell_change
    nearby = component | shell
    scan_part = image[nearby] - image[nearby].mean()
    prior_part = prior[nearby] - prior[nearby].mean()
    norms = max(float(np.sqrt((scan_part**2).sum() * (prior_part**2).sum())), 1e-9)
    # The prior may not have been segmented.
    prior_probability = np.nan
    if "probability" in prior_volumes:
        prior_probability = float(prior_volumes["probability"][component].max())
    return [
        change.mean(),
        change.max(),
        local_maximum.mean(),
        prior_contrast,
        contrast - prior_contrast,
        aligned_change,
        aligned_change / deviation,
        np.mean(change > 0.5 * max(contrast, 0)),
        prior_volumes["faded"][nearby].max() + shell_change,
        (scan_part * prior_part).sum() / norms,
        np.clip(prior_contrast / max(contrast, _LEAST_DEVIATION), -1, 3),
        prior_probability,
        max_probability - prior_probability,
    ]


def _curvatures(
    image: NDArray[np.float32], own: NDArray[np.bool_], steps: NDArray[np.float64]
) -> tuple[float, float, float]:
    """
    Tell how much a component is a tube, a sheet and a blob, from the eigenvalues of the Hessian.

    A tube has two strong curvatures, a sheet one, and a blob three.
    """
    smooth = ndimage.gaussian_filter(image, _HESSIAN_MM / steps)
    second = [_slopes(slope, steps) for slope in _slopes(smooth, steps)]
    hessian = np.moveaxis(np.array(second)[..., own], -1, 0)
    # Bright structures curve downward, hence the minus; from the weakest to the strongest.
    curves = np.sort(-np.linalg.eigvalsh((hessian + hessian.transpose(0, 2, 1)) / 2), axis=1)
    weak, middle, strong = np.clip(np.quantile(curves, 0.7, axis=0), 0, None)
    return middle - weak, strong - middle, weak


def _slopes(values: NDArray[np.float32], steps: NDArray[np.float64]) -> list[NDArray[np.float32]]:
    """Give the slope along each axis, which is 0 across a single slice."""
    return [
        np.gradient(values, step, axis=axis) if n > 1 else np.zeros_like(values)
        for axis, (n, step) in enumerate(zip(values.shape, steps, strict=True))
    ]
