"""Synthetic heads: tissue shares, ventricles, vessels and dura of a person on a grid in mm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff
from numpy.typing import NDArray
from scipy.ndimage import (
    binary_closing,
    binary_fill_holes,
    distance_transform_edt,
    gaussian_filter,
    label,
    map_coordinates,
)

from dmrifit._utils.affines import MM3_PER_ML
from dmrifit._utils.checks import check_number
from dmrifit.io.masks import check_same_grid
from dmrifit.io.nifti import Image, image_name, load_image, values_of
from dmrifit.simulate.head_shapes import (
    BRAIN,
    Matter,
    falx_distance,
    form_matter,
    slow_field,
    soft_step,
    tentorium_distance,
    texture_field,
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
    check_same_grid(grid, reference, name=names[1], reference_name=names[0])
    # In RAS order for every file, so that the same random numbers fall on the same voxels.
    orientation = nib.io_orientation(images[0].affine)
    to_ras = inv_ornt_aff(orientation, images[0].shape[:3])
    affine = np.asarray(images[0].affine @ to_ras, dtype=np.float64)
    maps = []
    for image, name in zip(images, names, strict=True):
        values = _probabilities(values_of(image, name), name)
        maps.append(np.ascontiguousarray(apply_orientation(values, orientation)))
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
    depth: NDArray[np.float32]  # distance to the outside of the brain in mm
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


@dataclass(frozen=True)
class StandardHead:
    """Maps of one brain, which are warped to make others; the middle of the brain is at 0."""

    matter: Matter
    affine: NDArray[np.float64]
    half_axes: NDArray[np.float64]  # of the brain in mm

    def indices(self, local: NDArray[np.float32]) -> NDArray[np.float32]:
        """Find places (..., 3), in half axes, in the maps: (3, ...), for `sample_map`."""
        inverse = np.linalg.inv(self.affine)
        matrix = (inverse[:3, :3] * self.half_axes).astype(np.float32)
        return np.moveaxis(local @ matrix.T + inverse[:3, 3].astype(np.float32), -1, 0)


def sample_map(values: NDArray, indices: NDArray[np.float32]) -> NDArray[np.float32]:
    """Interpolate a map at indices (3, ...); 0 outside."""
    return map_coordinates(values, indices, order=1, output=np.float32)


def centered_grid(shape: Sequence[int], spacing: Sequence[float]) -> NDArray[np.float64]:
    """Return the affine of a grid centered at 0."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -0.5 * (np.asarray(shape) - 1) * spacing
    return affine


def draw_head(
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
    Simulate a brain that fills the field of view, up to adult size.

    Without a standard head, the brain has folds of its own, of adult size in mm; with one, it is
    that head's brain, warped. `growth` moves the walls of the ventricles outward, in mm of an
    adult; `scale` multiplies the brain's axes, and `shift` (3,) moves it in mm.
    """
    steps = np.asarray(spacing, dtype=np.float64)
    affine = centered_grid(shape, spacing)
    warp_stream, fold_stream = rng.spawn(2)
    adult = BRAIN if standard is None else standard.half_axes
    available = np.maximum(0.5 * np.asarray(shape) * steps - _RIM, steps)
    # A flat field of view must not give a flat brain: no axis may outgrow the smallest by far.
    stretched = adult * (available / adult).min() * _STRETCH
    half_axes = np.minimum(np.minimum(adult, available), stretched)
    # Relative to an adult's brain.
    size = float(np.mean(half_axes / adult))
    places = voxel_centers(shape, affine)
    local = ((places - np.asarray(shift)) / (half_axes * scale)).astype(np.float32)
    # A slow warp varies the shape of heads, a quicker one the course of folds.
    for smoothing, strength in _WARPS:
        for axis in range(3):
            displacement = slow_field(shape, smoothing * size / steps, warp_stream)
            local[..., axis] += np.float32(strength * size / half_axes[axis]) * displacement
    if standard is None:
        matter = form_matter(local, half_axes, steps, fold_stream)
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
    return Head(
        *(white, gray, deep, fluid, ventricles, brain, depth_of(brain, steps)),
        *(places.astype(np.float32), local, affine, steps, half_axes, size),
    )


def depth_of(brain: NDArray[np.bool_], steps: NDArray[np.float64]) -> NDArray[np.float32]:
    """Compute the distance in mm to the outside of a brain (x, y, z)."""
    # The field of view ends in air, also where the brain reaches its border.
    depth = distance_transform_edt(np.pad(brain, 1), sampling=steps)[1:-1, 1:-1, 1:-1]
    return depth.astype(np.float32)


def voxel_centers(shape: tuple[int, int, int], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the centers of all voxels in mm, (x, y, z, 3)."""
    indices = np.moveaxis(np.indices(shape), 0, -1)
    return indices @ affine[:3, :3].T + affine[:3, 3]


@lru_cache(maxsize=4)
def standard_head(
    spacing: tuple[float, float, float], tissues: TissueMaps | None = None
) -> StandardHead:
    """Make the head from which others are warped, as voxels of a size see it."""
    if tissues is not None:
        maps = coarser_maps(tissues, _STANDARD_SPACING)
        matter, affine, half_axes = _mapped_matter(maps), maps.affine, maps.half_axes
    else:
        steps = np.full(3, _STANDARD_SPACING)
        x, y, z = (int(n) for n in np.ceil(2 * (BRAIN + _RIM) / steps))
        affine, half_axes = centered_grid((x, y, z), steps.tolist()), BRAIN
        local = (voxel_centers((x, y, z), affine) / BRAIN).astype(np.float32)
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


def check_shape(
    shape: Any, *, least: int, most: int, example: tuple[int, int, int]
) -> tuple[int, int, int]:
    """Check the shape of a simulated image."""
    if isinstance(shape, str) or np.ndim(shape) != 1 or len(shape) != 3:
        raise ValueError(
            f"shape must be three numbers of voxels, such as {example}, not {shape!r}"
        )
    for n in shape:
        check_number("each axis of shape", n, least=least, most=most, whole=True)
    return int(shape[0]), int(shape[1]), int(shape[2])


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


def check_field(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], least: float, content: str
) -> None:
    """Refuse a field of view that is too small for what it shall hold."""
    field = np.array(shape) * spacing
    if field.min() < least:
        raise ValueError(
            f"shape {shape} and spacing {spacing} see {field.min():g} mm along an axis; a brain "
            f"with {content} needs {least:g} mm: give more or larger voxels"
        )


def check_tissues(tissues: Sequence[Image] | None) -> TissueMaps | None:
    """Check and read the images of gray and white matter that a user gives, if any."""
    if tissues is None:
        return None
    if isinstance(tissues, str) or not isinstance(tissues, Sequence) or len(tissues) != 2:
        raise ValueError(f"tissues must be two images, gray and white matter, not {tissues!r}")
    return read_tissues(*tissues)


_STEP = 0.7  # mm between points of a vessel
_N_STEPS = 90
_LENGTHS, _DEEP_LENGTHS = (35, _N_STEPS), (20, 40)  # points
# Fewest and one more than most, in a brain of so many mL.
_NUMBERS, _NUMBERS_BRAIN = (10, 18), 300.0
_FEWEST = 4
_DEEP_SHARE, _DEEP_SIZE = 0.3, 0.7  # of vessels that run through white matter, of the others'
_DURA = 0.5  # mm, half the thickness of falx and tentorium
_DURA_REACH = 1.5  # mm below the surface
_REMAINS, _REMAINS_DEPTH = 9.0, 2.5  # mm, of patches and of how deep they reach
_PATCH, _GRAIN = 5.0, 1.2  # mm, of enhancing dura and of the plexus


class Vessels(NamedTuple):
    """Vessels: their share of voxels, that times their contrast, and points (n, 3) in mm."""

    share: NDArray[np.float32]
    contrast: NDArray[np.float32]
    points: NDArray[np.float64]


def draw_vessels(
    head: Head,
    rng: np.random.Generator,
    *,
    radii: tuple[float, float],
    contrasts: tuple[float, float],
) -> Vessels:
    """Draw vessels along the surface, in folds and through white matter; radii are SDs in mm."""
    volume = float(head.brain.sum() * head.spacing.prod()) / MM3_PER_ML
    n_drawn = int(rng.integers(*_NUMBERS) * (volume / _NUMBERS_BRAIN) ** (2 / 3))
    n = max(n_drawn, _FEWEST)
    is_deep = rng.random(n) < _DEEP_SHARE
    size = np.where(is_deep, _DEEP_SIZE, 1.0)
    points = _walk(head, is_deep, rng)
    lengths = np.where(is_deep, rng.integers(*_DEEP_LENGTHS, n), rng.integers(*_LENGTHS, n))
    position = np.arange(_N_STEPS)[:, None]
    is_vessel = position < lengths
    tapered = rng.uniform(*radii, n) * size * (1 - 0.4 * position / lengths)
    strengths = np.broadcast_to(rng.uniform(*contrasts, n) * size, is_vessel.shape)
    share, contrast = _tubes(head, points[is_vessel], tapered[is_vessel], strengths[is_vessel])
    return Vessels(share, contrast, points[is_vessel])


def _walk(head: Head, is_deep: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.float64]:
    """Walk along a depth of each vessel, or from the surface inward; (steps, n, 3) in mm."""
    n = len(is_deep)
    depths = rng.uniform(0.8, 6.0, n)
    # Depth is at least a voxel's edge.
    is_shallow = (head.depth < 4) | (head.depth <= head.spacing.min())
    surface = np.argwhere((head.depth > 0.5) & is_shallow)
    starts = surface[rng.integers(len(surface), size=n)]
    position = head.places[tuple(starts.T)].astype(np.float64)
    direction = rng.standard_normal((n, 3))
    direction[is_deep] = -position[is_deep]
    turning = np.where(is_deep, 0.06, 0.22)[:, None]
    pulling = np.where(is_deep, 0.0, 0.06)
    path = np.empty((_N_STEPS, n, 3))
    last = np.array(head.brain.shape) - 1
    for step in range(_N_STEPS):
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        path[step] = position
        position = position + _STEP * direction
        index = np.clip(_nearest(head, position), 0, last)
        outward = position / np.maximum(np.linalg.norm(position, axis=1, keepdims=True), 1e-6)
        # Without a pull, random turns would lead vessels away from the surface that they run
        # along.
        pull = pulling * np.clip(head.depth[tuple(index.T)] - depths, -4, 4)
        direction = direction + turning * rng.standard_normal((n, 3)) + pull[:, None] * outward
    return path


def _nearest(head: Head, points: NDArray[np.float64]) -> NDArray[np.intp]:
    """Find the voxels of places in mm."""
    return np.rint((points - head.affine[:3, 3]) / head.spacing).astype(np.intp)


def _tubes(
    head: Head, points: NDArray, radii: NDArray, strengths: NDArray
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Paint a bell around each point; the brightest one counts."""
    shape = head.brain.shape
    reach = np.ceil(2.5 * radii.max() / head.spacing).astype(int)
    offsets = np.indices(tuple(2 * reach + 1)).reshape(3, -1).T - reach
    index = _nearest(head, points)[:, None] + offsets
    centers = index * head.spacing + head.affine[:3, 3]
    squares = ((centers - points[:, None]) ** 2).sum(axis=-1)
    value = np.exp(-squares / (2 * radii[:, None] ** 2)).astype(np.float32)
    # Tails of the bells are left out: they are most of the voxels and none of the picture.
    is_used = (value > 0.03) & ((index >= 0) & (index < shape)).all(axis=-1)
    voxels = tuple(index[is_used].T)
    share, contrast = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    np.maximum.at(share, voxels, value[is_used])
    weighted = value * strengths[:, None].astype(np.float32)
    np.maximum.at(contrast, voxels, weighted[is_used])
    return share, contrast


def dural_sinuses(head: Head, *, radius: float) -> NDArray[np.float32]:
    """
    Give the share of voxels in the sinuses, where falx, tentorium and skull meet.

    `radius` is the standard deviation of their profile in mm.
    """
    falx = falx_distance(head.local, head.half_axes)
    tentorium = tentorium_distance(head.local, head.half_axes)
    wall = np.abs(head.depth - 0.5 * head.spacing.min() - 1)
    # Below the center of the brain, the falx ends at the tentorium or the base of the skull.
    below = np.maximum(-head.local[..., 2], 0) * head.half_axes[2]
    middle = np.abs(head.local[..., 0]) * head.half_axes[0]
    squares = np.minimum.reduce(
        [
            falx**2 + wall**2 + below**2,
            tentorium**2 + wall**2,
            tentorium**2 + middle**2,
        ]
    )
    return (np.exp(-squares / (2 * radius**2)) * head.brain).astype(np.float32)


def dura_patches(head: Head, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw patches of dura, below the skull, in the falx and in the tentorium, as shares."""
    patches = texture_field(head.brain.shape, _PATCH, head.spacing, rng)
    inner = dural_sheets(head)
    # The surface lies half a voxel outside the outermost centers.
    outer = np.clip(_DURA_REACH - head.depth + 0.5 * head.spacing.min(), 0, 1)
    share = np.maximum(inner, outer) * np.clip(patches - 0.2, 0, 1) * head.brain
    return share.astype(np.float32)


def dural_sheets(head: Head) -> NDArray[np.float32]:
    """Give the share of voxels in falx and tentorium."""
    distance = np.minimum(
        falx_distance(head.local, head.half_axes),
        tentorium_distance(head.local, head.half_axes),
    )
    sheet: NDArray[np.float32] = soft_step((_DURA - distance) / (0.5 * head.spacing.min()))
    return sheet


def skull_remains(head: Head, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw what is left of fat and skull at the surface after stripping, as shares."""
    patches = texture_field(head.brain.shape, _REMAINS, head.spacing, rng)
    shell = np.clip(_REMAINS_DEPTH - head.depth + 0.5 * head.spacing.min(), 0, 1)
    share = shell * np.clip(2 * (patches - 0.8), 0, 1) * head.brain
    return share.astype(np.float32)


def choroid_plexus(head: Head, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw the plexus as shares: grains in the back of the lateral ventricles."""
    grains = texture_field(head.brain.shape, _GRAIN, head.spacing, rng)
    back = head.ventricles * (head.local[..., 1] < 0)
    return (back * np.clip(grains - 0.6, 0, 1)).astype(np.float32)
