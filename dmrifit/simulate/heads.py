"""Synthetic heads: tissue shares and ventricles of a person on a grid in mm."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from nibabel.orientations import apply_orientation
from numpy.typing import NDArray
from scipy.ndimage import (
    binary_closing,
    binary_fill_holes,
    distance_transform_edt,
    gaussian_filter,
    label,
    map_coordinates,
)

from dmrifit._utils.checks import check_number
from dmrifit.io.grids import turn_to_grid, upright, upright_affine
from dmrifit.io.nifti import Image, image_name, load_image, values_of
from dmrifit.simulate.head_shapes import (
    BRAIN,
    Matter,
    falx_distance,
    form_matter,
    slow_field,
    soft_step,
    tentorium_distance,
)

_TISSUE = 0.2  # least probability of gray plus white matter in a brain voxel


@dataclass(frozen=True, eq=False)
class TissueMaps:
    """Gray and white matter of one brain, whose middle is at 0."""

    gray: NDArray[np.float32]  # probabilities (x, y, z)
    white: NDArray[np.float32]
    brain: NDArray[np.float32]  # the mask of the brain with its fluid
    affine: NDArray[np.float64]
    half_axes: NDArray[np.float64]  # of the brain in mm


def read_tissues(gray: Image, white: Image) -> TissueMaps:
    """Read maps of gray and white matter of one brain, such as those of the MNI."""
    images = [load_image(source) for source in (gray, white)]
    names = [image_name(source) for source in (gray, white)]
    reference, grid = ((image.shape, image.affine) for image in images)
    turn = turn_to_grid(grid, reference, name=names[1], reference_name=names[0])
    # In RAS order for every file, so that the same random numbers fall on the same voxels.
    affine = upright_affine(images[0].affine, images[0].shape[:3])
    maps = [
        _probabilities(values_of(image, name), name)
        for image, name in zip(images, names, strict=True)
    ]
    maps[1] = apply_orientation(maps[1], turn)
    maps = [np.ascontiguousarray(upright(values, images[0].affine)) for values in maps]
    matter = maps[0] + maps[1] > _TISSUE
    if not matter.any():
        raise ValueError(
            f"{names[0]} and {names[1]} hold no brain: their sum is nowhere above {_TISSUE}"
        )
    # Padded, because the closing would otherwise erode the mask at the border of the image.
    closed = binary_closing(np.pad(matter, 8), iterations=6)
    brain = binary_fill_holes(closed)[8:-8, 8:-8, 8:-8]
    positions = (np.argwhere(brain) @ affine[:3, :3].T) + affine[:3, 3]
    low, high = positions.min(axis=0), positions.max(axis=0)
    affine[:3, 3] -= (low + high) / 2
    return TissueMaps(maps[0], maps[1], brain.astype(np.float32), affine, (high - low) / 2)


def _probabilities(values: NDArray, name: str) -> NDArray[np.float32]:
    """Check probabilities of a volume; those of 8-bit images are stored as 0 to 255."""
    if values.dtype == np.uint8:
        values = values / np.float32(255)
    values = np.asarray(values, dtype=np.float32)
    is_finite_volume = values.ndim == 3 and np.isfinite(values).all()
    # Interpolated maps exceed the range a little.
    if not is_finite_volume or values.min() < -0.01 or values.max() > 1.01:
        raise ValueError(
            f"{name} holds no probabilities from 0 to 1 on three axes: shape {values.shape}, "
            f"up to {values.max()}"
        )
    return values


def coarser_maps(tissues: TissueMaps, spacing: float) -> TissueMaps:
    """Average maps of fine voxels over blocks of about a spacing in mm."""
    steps = np.linalg.norm(tissues.affine[:3, :3], axis=0)
    # Rounding of the affine must not halve the blocks.
    blocks = np.maximum(spacing / steps + 1e-3, 1).astype(int)
    affine = tissues.affine @ np.diag([*blocks, 1])
    affine[:3, 3] += tissues.affine[:3, :3] @ ((blocks - 1) / 2)
    gray, white, brain = (
        _block_means(values, blocks) for values in (tissues.gray, tissues.white, tissues.brain)
    )
    return TissueMaps(gray, white, brain, affine, tissues.half_axes)


def _block_means(values: NDArray, blocks: NDArray[np.intp]) -> NDArray[np.float32]:
    x, y, z = np.array(values.shape) // blocks
    whole = values[: x * blocks[0], : y * blocks[1], : z * blocks[2]]
    split = whole.reshape(x, blocks[0], y, blocks[1], z, blocks[2])
    return np.asarray(split.mean(axis=(1, 3, 5)), dtype=np.float32)


_MOST = 512  # voxels along an axis
_RIM = 4.0  # mm of background at each side of the field of view
_STRETCH = 1.25  # largest scale of an axis relative to the smallest, to fill the field of view
_WARPS = ((25.0, 3.0), (10.0, 1.6))  # smoothing and standard deviation between persons in mm
_SOFT = 0.5  # of a voxel, half the width of the ventricles' border
_STANDARD_SPACING = 2.0  # mm
_PARTIAL = 0.3  # of a voxel, smoothing by which voxels see their surroundings

# How to tell ventricles and nuclei in maps of tissue, in mm below the surface.
_INNER, _CORE = 20.0, 32.0
_FILLED = 4.0  # mm around ventricles where white matter replaces fluid
_DEEP = (29.0, 33.0)
_NARROW, _SURFACE = 0.5, 2.0  # share of the fluid in folds that is gray matter, from this depth on
_CENTRAL = 0.45  # of the half axes: beyond it, deep gray matter is cortex of the fissure


@dataclass(frozen=True)
class Head:
    """A synthetic brain on one grid: volumes (x, y, z) and places (x, y, z, 3)."""

    white: NDArray[np.float32]  # shares, 0 outside the brain
    gray: NDArray[np.float32]  # of the cortex
    deep: NDArray[np.float32]  # gray matter of nuclei
    fluid: NDArray[np.float32]
    ventricles: NDArray[np.float32]  # the lateral ones, which are part of the fluid
    brain: NDArray[np.bool_]  # with its outer fluid
    places: NDArray[np.float32]  # RAS+ in mm, with the center of the field of view at 0
    local: NDArray[np.float32]  # the same places in the standard head, in half axes of its brain
    affine: NDArray[np.float64]
    spacing: NDArray[np.float64]  # edges of a voxel in mm
    half_axes: NDArray[np.float64]  # of the brain in mm
    size: float  # of an adult's brain

    @property
    def matter(self) -> NDArray[np.float32]:
        """Share of gray and white matter in each voxel."""
        return self.white + self.gray + self.deep

    @cached_property
    def depth(self) -> NDArray[np.float32]:
        """Distance to the outside of the brain in mm."""
        return depth_of(self.brain, self.spacing)

    @property
    def to_falx(self) -> NDArray:
        """Distance in mm to the fissure between the hemispheres, where the falx hangs."""
        return falx_distance(self.local, self.half_axes)

    @property
    def to_tentorium(self) -> NDArray:
        """Distance in mm to the tentorium between the cerebrum and the cerebellum."""
        return tentorium_distance(self.local, self.half_axes)

    @staticmethod
    def grid(
        shape: tuple[int, int, int], spacing: Sequence[float]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Give the affine of a grid centered at 0, and its voxels' centers (x, y, z, 3) in mm."""
        affine = np.diag([*spacing, 1.0])
        affine[:3, 3] = -0.5 * (np.asarray(shape) - 1) * spacing
        return affine, voxel_centers(shape, affine)

    @staticmethod
    def adult_edge(mask: NDArray[np.bool_]) -> float:
        """Give the edge in mm of cubic voxels of which a brain (x, y, z) has adult size."""
        return float(BRAIN.prod() ** (1 / 3) / (0.75 / np.pi * mask.sum()) ** (1 / 3))

    @classmethod
    def draw(
        cls,
        shape: tuple[int, int, int],
        spacing: tuple[float, float, float],
        rng: np.random.Generator,
        *,
        standard: StandardHead | None = None,
        growth: float = 0.0,
        scale: NDArray[np.float64] | float = 1.0,
        shift: NDArray[np.float64] | float = 0.0,
    ) -> Head:
        """
        Draw a brain that fills the field of view, up to adult size.

        Without a standard head, the brain has folds of its own, of adult size in mm; with one, it
        is that head's brain, warped. `growth` moves the walls of the ventricles outward, in mm of
        an adult; `scale` multiplies the brain's axes, and `shift` (3,) moves it in mm.
        """
        steps = np.asarray(spacing, dtype=np.float64)
        affine, places = Head.grid(shape, spacing)
        warp_stream, fold_stream = rng.spawn(2)
        adult = BRAIN if standard is None else standard.half_axes
        available = np.maximum(0.5 * np.asarray(shape) * steps - _RIM, steps)
        # A flat field of view must not give a flat brain: no axis may outgrow the smallest by far.
        stretched = adult * (available / adult).min() * _STRETCH
        half = np.minimum(np.minimum(adult, available), stretched)
        size = float(np.mean(half / adult))
        local = ((places - np.asarray(shift)) / (half * scale)).astype(np.float32)
        # A slow warp varies the shape of heads, a quicker one the course of folds.
        for smoothing, strength in _WARPS:
            for axis in range(3):
                displacement = slow_field(shape, smoothing * size / steps, warp_stream)
                local[..., axis] += np.float32(strength * size / half[axis]) * displacement
        if standard is None:
            matter = form_matter(local, half, steps, fold_stream)
            to_ventricles = matter.to_ventricles
        else:
            indices = standard.indices(local)
            # Most of a volume is no brain.
            brain = sample_map(standard.matter.brain, indices) > 0.5
            maps = np.zeros((4, *brain.shape), dtype=np.float32)
            names = ("white", "gray", "deep", "to_ventricles")
            for sampled, name in zip(maps, names, strict=True):
                sampled[brain] = sample_map(getattr(standard.matter, name), indices[:, brain])
            matter = Matter(maps[0], maps[1], maps[2], brain, maps[3])
            to_ventricles = matter.to_ventricles * np.float32(size)
        soft = _SOFT * float(steps.min())
        brain = matter.brain
        ventricles = (soft_step((growth * size - to_ventricles) / soft) * brain).astype(np.float32)
        # Interpolated or smoothed shares may add up to more than 1.
        total = np.maximum(matter.white + matter.gray + matter.deep, 1)
        white, gray, deep = (
            (share * (1 - ventricles) / total * brain).astype(np.float32) for share in matter[:3]
        )
        fluid = np.clip(brain - white - gray - deep, 0, 1).astype(np.float32)
        return cls(
            *(white, gray, deep, fluid, ventricles, brain),
            *(places.astype(np.float32), local, affine, steps, half, size),
        )


@dataclass(frozen=True, eq=False)
class StandardHead:
    """Maps of one brain, which are warped to make others; the middle of the brain is at 0."""

    matter: Matter
    affine: NDArray[np.float64]
    half_axes: NDArray[np.float64]  # of the brain in mm

    @classmethod
    def of(
        cls,
        spacing: tuple[float, float, float],
        tissues: TissueMaps | Sequence[Image] | None = None,
    ) -> StandardHead:
        """Make the head from which others are warped, as voxels of a size see it."""
        if tissues is not None and not isinstance(tissues, TissueMaps):
            if isinstance(tissues, str) or not isinstance(tissues, Sequence) or len(tissues) != 2:
                raise ValueError(
                    f"tissues must be two images, gray and white matter, not {tissues!r}"
                )
            tissues = read_tissues(*tissues)
        return _standard_head(spacing, tissues)

    @property
    def local(self) -> NDArray[np.float64]:
        """Places of the voxels of the maps (x, y, z, 3), in half axes of the brain."""
        return voxel_centers(self.matter.brain.shape, self.affine) / self.half_axes

    def sampled(
        self, maps: Iterable[NDArray], local: NDArray[np.float32]
    ) -> list[NDArray[np.float32]]:
        """Interpolate maps at places (..., 3), in half axes; 0 outside."""
        indices = self.indices(local)
        return [sample_map(values, indices) for values in maps]

    def indices(self, local: NDArray[np.float32]) -> NDArray[np.float32]:
        """Find places (..., 3), in half axes, in the maps: (3, ...), for `sample_map`."""
        inverse = np.linalg.inv(self.affine)
        matrix = (inverse[:3, :3] * self.half_axes).astype(np.float32)
        return np.moveaxis(local @ matrix.T + inverse[:3, 3].astype(np.float32), -1, 0)


def sample_map(values: NDArray, indices: NDArray[np.float32]) -> NDArray[np.float32]:
    """Interpolate a map at indices (3, ...); 0 outside."""
    return map_coordinates(values, indices, order=1, output=np.float32)


def depth_of(brain: NDArray[np.bool_], steps: NDArray[np.float64]) -> NDArray[np.float32]:
    """Compute the distance in mm to the outside of a brain (x, y, z)."""
    # The field of view ends in air, also where the brain reaches its border.
    depth = distance_transform_edt(np.pad(brain, 1), sampling=steps)[1:-1, 1:-1, 1:-1]
    return depth.astype(np.float32)


def voxel_centers(shape: tuple[int, int, int], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the centers of all voxels in mm, (x, y, z, 3)."""
    return np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]


@lru_cache(maxsize=4)
def _standard_head(
    spacing: tuple[float, float, float], tissues: TissueMaps | None
) -> StandardHead:
    """Make the head from which others are warped, as voxels of a size see it."""
    if tissues is not None:
        maps = coarser_maps(tissues, _STANDARD_SPACING)
        matter, affine, half_axes = _mapped_matter(maps), maps.affine, maps.half_axes
    else:
        steps = np.full(3, _STANDARD_SPACING)
        x, y, z = (int(n) for n in np.ceil(2 * (BRAIN + _RIM) / steps))
        affine, places = Head.grid((x, y, z), steps.tolist())
        half_axes, local = BRAIN, (places / BRAIN).astype(np.float32)
        # One seed: persons differ by warps of the same standard head.
        matter = form_matter(local, BRAIN, steps, np.random.default_rng(0))
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    fluid = np.clip(matter.brain - matter.white - matter.gray - matter.deep, 0, 1)
    is_fold = (matter.to_ventricles > _FILLED) & (depth_of(matter.brain > 0.5, steps) > _SURFACE)
    # Coarse voxels make folds wider than they are.
    matter = matter._replace(gray=matter.gray + _NARROW * fluid * is_fold)
    blur = _PARTIAL * np.asarray(spacing) / steps
    smooth = (gaussian_filter(values.astype(np.float32), blur) for values in matter)
    return StandardHead(Matter(*smooth), affine, half_axes)


def _mapped_matter(tissues: TissueMaps) -> Matter:
    """Tell ventricles and nuclei in maps of gray and white matter by their depth."""
    steps = np.linalg.norm(tissues.affine[:3, :3], axis=0)
    depth = depth_of(tissues.brain > 0.5, steps)
    fluid = np.clip(tissues.brain - tissues.gray - tissues.white, 0, 1)
    components, _ = label((fluid > 0.5) & (depth > _INNER))
    # Fluid between folds does not reach so deep.
    ventricles = np.isin(components, np.setdiff1d(components[depth > _CORE], 0))
    outward = distance_transform_edt(~ventricles, sampling=steps)
    inward = distance_transform_edt(ventricles, sampling=steps)
    # Transforms run from center to center; the border lies half a voxel before.
    half_voxel = 0.5 * float(steps.mean())
    to_ventricles = np.where(ventricles, half_voxel - inward, outward - half_voxel)
    white = tissues.white + fluid * np.clip((_FILLED + 1 - to_ventricles) / 2, 0, 1)
    local = voxel_centers(depth.shape, tissues.affine) / tissues.half_axes
    central = (np.abs(local[..., 1:]) < _CENTRAL).all(axis=-1)
    nuclei = central * np.clip((depth - _DEEP[0]) / (_DEEP[1] - _DEEP[0]), 0, 1)
    return Matter(
        white=white,
        gray=tissues.gray * (1 - nuclei),
        deep=tissues.gray * nuclei,
        brain=tissues.brain,
        to_ventricles=to_ventricles.astype(np.float32),
    )


def check_grid(
    shape: Any,
    spacing: Any,
    example: tuple[int, int, int],
    content: str,
    *,
    fewest: int,
    field: float,
    coarsest: float,
) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """
    Check the shape and the voxels of a simulated image, which must see a field of so many mm.

    `fewest` are voxels along an axis, `coarsest` is the longest edge of one in mm.
    """
    if isinstance(shape, str) or np.ndim(shape) != 1 or len(shape) != 3:
        raise ValueError(
            f"shape must be three numbers of voxels, such as {example}, not {shape!r}"
        )
    for n in shape:
        check_number("each axis of shape", n, least=fewest, most=_MOST, whole=True)
    voxels = int(shape[0]), int(shape[1]), int(shape[2])
    edges = check_spacing(spacing, most=coarsest)
    smallest = (np.array(voxels) * edges).min()
    if smallest < field:
        raise ValueError(
            f"shape {voxels} and spacing {edges} see {smallest:g} mm along an axis; a brain "
            f"with {content} needs {field:g} mm: give more or larger voxels"
        )
    return voxels, edges


def check_spacing(spacing: Any, *, most: float) -> tuple[float, float, float]:
    """Check the edges of a voxel: one number or three, in mm."""
    try:
        x, y, z = np.broadcast_to(np.asarray(spacing, dtype=np.float64), (3,)).tolist()
    except (TypeError, ValueError):
        x = y = z = np.nan
    if not all(0 < edge <= most for edge in (x, y, z)):
        raise ValueError(
            f"spacing must be one number or three, above 0 and up to {most:g} mm, not {spacing!r}"
        )
    return x, y, z
