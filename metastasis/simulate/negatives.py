"""Real scans without metastases as training scans: warps, and painted structures that are none."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter, map_coordinates

from dmrifit.simulate.head_shapes import slow_field
from dmrifit.simulate.heads import Head
from metastasis.scans.local_level import WHITE_MATTER, local_level
from metastasis.simulate import enhancement

_ADULT_MM = 150.0  # mean axis of an adult's brain
_TURN, _SHEAR, _SCALE = 0.15, 0.06, 0.12  # of the matrix of a warp
_WARP_MM, _WARP_SIZE = 14.0, 3.0  # smoothing and displacement
_GAMMA, _BIAS, _NOISE = (0.85, 1.2), 0.12, 0.02
_CAVITIES, _CAVITY_DEPTH = (2, 6), 4.0  # one more than most; mm
_CAVITY_DIAMETERS, _CAVITY_LEVELS = (5.0, 36.0), (0.15, 0.6)
#: Of what a loose mask leaves around a brain: depths, patches and gap of fluid in mm, signals of
#: white matter's, and their variation.
_DURA_MM, _PATCH_MM, _GAP_MM = (1.0, 4.0), 10.0, 1.5
_REMAINS, _FLUID, _UNEVEN = (0.7, 3.5), 0.4, 0.3
#: Of sinuses: radius and height of the axis over the brain in mm, and slope in front.
_SINUS_RADIUS, _SINUS_HEIGHT, _TURN_DOWN = (2.0, 6.5), (-2.5, 2.5), (0.0, 1.5)
#: Of veins at the base: number (one more than most), radius, greatest height, and where it begins.
_BASE_VEINS, _BASE_RADIUS, _BASE_HEIGHT, _BASE = (0, 5), (2.0, 5.0), 6.0, -0.4


def head_around(brain: NDArray[np.bool_], steps: NDArray[np.float64]) -> Head:
    """
    Describe a real brain as synthetic ones are, so that vessels and dura can be drawn in it.

    Tissues are not known: all of it counts as white matter, without ventricles.

    Shapes: `brain` (x, y, z), its axes in the order of RAS+, `steps` (3,) in mm.
    """
    affine, centers = Head.grid(brain.shape, steps.tolist())
    places = centers.astype(np.float32)
    low, high = (end(np.argwhere(brain), axis=0) for end in (np.min, np.max))
    half = (high - low) * steps / 2
    middle = affine[:3, 3] + steps * (low + high) / 2
    local = ((places - middle) / half).astype(np.float32)
    inside, nothing = brain.astype(np.float32), np.zeros(brain.shape, np.float32)
    return Head(
        *(inside, nothing, nothing, nothing, nothing, brain),
        *(places, local, affine, steps, half, float(2 * half.mean() / _ADULT_MM)),
    )


def warp_scan(
    volume: NDArray[np.floating], brain: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """
    Make another brain of a scan: warped, perhaps mirrored, with another field, gamma and noise.

    Shapes: `volume` and `brain` (x, y, z), voxels of about 1 mm; returns the same, the volume in
    local levels.
    """
    shape = volume.shape
    matrix = np.eye(3) * (1 + _SCALE * rng.uniform(-1, 1))
    matrix += np.diag(_SHEAR * rng.uniform(-1, 1, 3)) + _TURN * np.cross(
        np.eye(3), rng.uniform(-1, 1, 3)
    )
    if rng.random() < 0.5:
        matrix[:, 0] *= -1
    middle = (np.array(shape) - 1) / 2
    grid = np.indices(shape, dtype=np.float32) - middle[:, None, None, None].astype(np.float32)
    index = np.tensordot(matrix.astype(np.float32), grid, axes=1)
    for axis in range(3):
        index[axis] += middle[axis] + _WARP_SIZE * slow_field(shape, np.full(3, _WARP_MM), rng)
    # Linear interpolation would blur vessels, and implants alone would be sharp.
    warped = map_coordinates(volume, index, order=3, output=np.float32)
    inside = map_coordinates(brain.astype(np.float32), index, order=1, output=np.float32) > 0.5
    level = local_level(warped, inside)
    relative = np.clip(warped / level, 0, None) ** np.float32(rng.uniform(*_GAMMA))
    field = np.exp(_BIAS * slow_field(shape, 0.25 * np.array(shape), rng))
    noise = _NOISE * rng.random() * rng.standard_normal(shape, dtype=np.float32)
    return ((relative * field + noise) * inside).astype(np.float32), inside


def paint_negatives(
    volume: NDArray[np.floating], brain: NDArray[np.bool_], rng: np.random.Generator
) -> NDArray[np.float32]:
    """
    Paint what is no metastasis into a scan: vessels, sinuses, dura, and fluid without a wall.

    A dark cavity with a bright border is also a ventricle, so cavities without enhancement are
    painted as well.

    Shapes: `volume` and `brain` (x, y, z), axes in the order of RAS+, with voxels of 1 mm.
    """
    head = head_around(brain, np.ones(3))
    white = WHITE_MATTER * local_level(volume, brain)
    contrasts = enhancement.Contrasts(
        vessels=(0.3, 1.3),
        vessel_radii=(0.55, 1.4),
        sinuses=rng.uniform(0.4, 1.9) * rng.integers(0, 2),
        sinus_radius=rng.uniform(1.5, 3.5),
        dura=rng.uniform(0.1, 0.8),
        plexus=0.0,
        sheets=rng.uniform(0.05, 0.6) * rng.integers(0, 2),
        remains=rng.uniform(0.2, 1.2) * rng.integers(0, 2),
    )
    painted = volume.astype(np.float32)
    deep = (head.depth > _CAVITY_DEPTH).astype(np.float32)
    for _ in range(int(rng.integers(*_CAVITIES))):
        low, high = np.log(_CAVITY_DIAMETERS)
        diameter = float(np.exp(rng.uniform(low, high)))
        (place,) = enhancement.draw_places(deep, [diameter / 2], [], head, rng)
        if place is None:
            continue
        window, share, _ = enhancement.shares(enhancement.draw_nodule(place, diameter, rng), head)
        share = gaussian_filter(share, rng.uniform(0.5, 1.2)) * brain[window]
        painted[window] += share * (rng.uniform(*_CAVITY_LEVELS) * white[window] - painted[window])
    vascular = enhancement.draw_enhancement(head, rng, contrasts)
    bright = white * (1 + vascular.contrast / np.maximum(vascular.share, 1e-3))
    return painted + vascular.share * np.maximum(bright - painted, 0) * brain


def strip_loosely(
    volume: NDArray[np.floating], brain: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """
    Surround a tightly stripped brain by sinuses and patches of dura, as a looser mask leaves them.

    Large sinuses run along the midline and the tentorium in grooves of the brain, whose voxels
    change there.

    Shapes: `volume` and `brain` (x, y, z), axes in the order of RAS+, with voxels of 1 mm.
    """
    head = head_around(brain, np.ones(3))
    outside = distance_transform_edt(~brain).astype(np.float32)
    size = np.full(3, _PATCH_MM)
    patchy, bright = (slow_field(brain.shape, size, rng) for _ in range(2))
    sinus = _distance_to_sinuses(head, outside - head.depth, 1 + _UNEVEN * patchy, rng)
    gap = rng.uniform(0, _GAP_MM)
    dura = ~brain & (outside <= rng.uniform(*_DURA_MM) * np.clip(patchy - 0.5, 0, 1))
    added = dura | (sinus <= gap)
    white = WHITE_MATTER * local_level(volume, brain)
    signal = rng.uniform(*_REMAINS) * np.exp(_UNEVEN * bright)
    # The wall of a sinus, and fluid between dura and brain elsewhere.
    signal[np.where(sinus <= gap, sinus > 0, outside <= gap)] = _FLUID
    tissue = gaussian_filter(np.where(added, signal * white, volume), rng.uniform(0.4, 0.7))
    noise = 1 + _NOISE * rng.standard_normal(brain.shape, dtype=np.float32)
    return np.where(added, tissue * noise, volume).astype(np.float32), brain | added


def _distance_to_sinuses(
    head: Head,
    height: NDArray[np.float32],
    swelling: NDArray[np.floating],
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """
    Give the mm to the wall of sinuses and of veins at the base of the skull, below 0 inside.

    Sinuses are round and run along the surface, over which voxels have a `height` in mm; the two
    transverse ones differ in width and turn downwards in front.
    """
    x, y, z = np.moveaxis(head.local, -1, 0)
    fall = rng.uniform(*_TURN_DOWN) * np.clip(y + rng.uniform(0.3, 0.6), 0, None)
    level, front = rng.uniform(-0.5, -0.2), rng.uniform(-0.6, -0.15)
    middle = (x - rng.uniform(-0.04, 0.04)) * head.half_axes[0]
    courses = [(middle, ((y < 0) & (z > level)) | (z > 0.2))]
    for side in (-1, 1):
        courses.append(((z - level + fall) * head.half_axes[2], (side * x > -0.05) & (y < front)))
    distance = np.full(x.shape, np.inf, np.float32)
    for across, present in courses:
        center = rng.uniform(*_SINUS_HEIGHT)
        wall = np.hypot(across, height - center) - rng.uniform(*_SINUS_RADIUS) * swelling
        distance = np.where(present, np.minimum(distance, wall), distance)
    base = head.places[(height > 1) & (height < _BASE_HEIGHT) & (z < _BASE)]
    for center in rng.choice(base, min(len(base), int(rng.integers(*_BASE_VEINS)))):
        wall = np.linalg.norm(head.places - center, axis=-1) - rng.uniform(*_BASE_RADIUS)
        distance = np.minimum(distance, wall)
    return distance
