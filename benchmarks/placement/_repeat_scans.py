"""Later scans of real heads: known motion, another grid, noise, a bias field, and changed tissue."""

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from placement import Voxel

TURN, SHIFT = 20.0, 30.0  # degrees about each axis, mm along each
NOISE, BIAS = 0.03, 0.3  # of bright tissue; of the signal
CUT = (20.0, 45.0)  # mm of the head that the field leaves out at one side
SPACING = (0.9, 1.3)  # mm
FIELD = np.array([200.0, 240.0, 200.0])  # mm
OBLIQUE = 15.0  # degrees about each axis, of the new grid
SIDE = 20.0  # mm, of the boxes: the smallest that the study's experts placed


@dataclass(frozen=True, eq=False)
class Head:
    """A real scan; shapes: `values` (x, y, z), `affine` (4, 4)."""

    name: str
    values: NDArray[np.float32]
    affine: NDArray[np.float64]

    @property
    def image(self) -> nib.Nifti1Image:
        return nib.Nifti1Image(self.values, self.affine)

    @property
    def bright(self) -> float:
        """Signal of bright tissue."""
        return float(np.percentile(self.values[self.values > 0], 90))

    @property
    def brain(self) -> NDArray[np.bool_]:
        return ndimage.binary_fill_holes(ndimage.binary_opening(self.values > 0.3 * self.bright))

    @property
    def places(self) -> NDArray[np.float32]:
        """Where voxels are in mm: (x, y, z, 3)."""
        index = np.moveaxis(np.indices(self.values.shape, dtype=np.float32), 0, -1)
        return index @ self.affine[:3, :3].T.astype(np.float32) + self.affine[:3, 3].astype(
            np.float32
        )

    def changed(self, values: NDArray) -> "Head":
        return Head(self.name, values.astype(np.float32), self.affine)


@dataclass(frozen=True, eq=False)
class Visit:
    """A later scan of a head, and the motion (4, 4) from mm of the first scan to mm of this one."""

    image: nib.Nifti1Image
    motion: NDArray[np.float64]

    def shows(self, voxel: Voxel) -> bool:
        """Tell whether all corners of a box of the first scan lie in the field."""
        corners = voxel.transform(self.motion).corners
        inverse = np.linalg.inv(self.image.affine)
        index = corners @ inverse[:3, :3].T + inverse[:3, 3]
        return bool(((index >= 0) & (index <= np.array(self.image.shape) - 1)).all())


def visit(
    head: Head,
    rng: np.random.Generator,
    *,
    turn: float = TURN,
    noise: float = NOISE,
    cut: Sequence[float] | None = CUT,
) -> Visit:
    """Move a head, and scan it on another grid with noise and a bias field."""
    center = head.affine[:3, :3] @ ndimage.center_of_mass(head.brain) + head.affine[:3, 3]
    motion = np.eye(4)
    motion[:3, :3] = _turn(rng, turn)
    motion[:3, 3] = center + rng.uniform(-SHIFT, SHIFT, 3) - motion[:3, :3] @ center
    spacing = rng.uniform(*SPACING, 3)
    shape = np.round(FIELD / spacing).astype(int)
    grid = np.eye(4)
    grid[:3, :3] = _turn(rng, OBLIQUE) * spacing
    middle = motion[:3, :3] @ center + motion[:3, 3] + rng.uniform(-5, 5, 3)
    grid[:3, 3] = middle - grid[:3, :3] @ ((shape - 1) / 2)
    index = np.linalg.inv(head.affine) @ np.linalg.inv(motion) @ grid
    ratio = np.maximum(np.linalg.norm(index[:3, :3], axis=1), 1)
    smooth = ndimage.gaussian_filter(head.values, np.sqrt((ratio**2 - 1) / 12))
    scan = ndimage.affine_transform(
        smooth, index[:3, :3], index[:3, 3], output_shape=tuple(shape), order=3
    )
    scan = np.maximum(scan, 0) * np.exp(_bias(shape, rng))
    sd = noise * head.bright
    real, imaginary = (sd * rng.standard_normal(scan.shape, dtype=np.float32) for _ in range(2))
    scan = np.hypot(scan + real, imaginary).astype(np.float32)
    if cut is not None:
        scan, grid = _cropped(scan, grid, rng, cut, spacing, 0.3 * head.bright)
    return Visit(nib.Nifti1Image(scan, grid), motion)


def draw_box(head: Head, rng: np.random.Generator, later: Visit | None = None) -> Voxel:
    """Draw a cube in the brain that the later scan shows."""
    steps = np.linalg.norm(head.affine[:3, :3], axis=0).mean()
    deep = np.argwhere(ndimage.binary_erosion(head.brain, iterations=round(12 / steps)))
    while True:
        center = head.affine[:3, :3] @ deep[rng.integers(len(deep))] + head.affine[:3, 3]
        voxel = Voxel(center, (SIDE, SIDE, SIDE), rng.uniform(-30, 30, 3))
        if later is None or later.shows(voxel):
            return voxel


def with_cavity(head: Head, center: NDArray, volume: float, rng: np.random.Generator) -> Head:
    """Replace a rough ball of so many mL by fluid."""
    share = _ball(head, center, volume, rng) * head.brain
    return head.changed(head.values * (1 - share) + 0.3 * head.bright * share)


def with_enhancement(
    head: Head, center: NDArray, volume: float, rng: np.random.Generator, *, rim: bool
) -> Head:
    """Brighten a rough ball of so many mL, or its rim, by half of bright tissue."""
    share = _ball(head, center, volume, rng)
    if rim:
        share = share * (1 - 0.8 * _ball(head, center, 0.2 * volume, rng))
    return head.changed(head.values + 0.5 * head.bright * share * head.brain)


def with_shift(head: Head, center: NDArray, distance: float) -> tuple[Head, NDArray]:
    """Push tissue around a place toward the middle; also gives the displacement in mm."""
    middle = head.affine[0, :3] @ (np.array(head.values.shape) / 2) + head.affine[0, 3]
    side = 1.0 if center[0] < middle else -1.0
    far = np.linalg.norm(head.places - center, axis=-1) / 25.0
    pushed = distance * side * np.exp(-0.5 * far**2)
    step = np.linalg.inv(head.affine[:3, :3]) @ [1.0, 0.0, 0.0]
    index = np.indices(head.values.shape, dtype=np.float32)
    index = index - pushed[None] * step[:, None, None, None]
    return head.changed(ndimage.map_coordinates(head.values, index, order=1)), np.abs(pushed)


def with_scalp(head: Head, fat: float, bend: float) -> Head:
    """Put a skull, a scalp of a brightness and a neck that is bent by so many mm around a brain."""
    brain = np.pad(head.brain, 20)
    affine = head.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ [20, 20, 20]
    padded = Head(head.name, np.pad(head.values, 20), affine)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    outside = ndimage.distance_transform_edt(~brain, spacing)
    places = padded.places
    inside = places[brain]
    low, middle = inside[:, 2].min(), inside.mean(axis=0)
    below = np.clip((low + 25 - places[..., 2]) / 40, 0, 2)
    across = np.hypot(places[..., 0] - middle[0], places[..., 1] - middle[1] + 20 - bend * below)
    neck = (across < 45) & (places[..., 2] < low + 20) & (outside > 6)
    texture = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal(brain.shape), 3)
    tissue = np.where(texture > 0, 0.5, 0.8) * head.bright
    values = np.where(brain, padded.values, 0)
    values = np.where((outside > 6) & (outside < 13), fat * head.bright, values)
    return padded.changed(np.where(neck, tissue, values))


def _ball(head: Head, center: NDArray, volume: float, rng: np.random.Generator) -> NDArray:
    """Draw a soft, stretched ball: shares (x, y, z)."""
    radius = (volume * 1e3 * 3 / (4 * np.pi)) ** (1 / 3)
    stretch = np.exp(rng.normal(0, 0.12, 3))
    offsets = (head.places - center) @ (_turn(rng, 180) * stretch / stretch.prod() ** (1 / 3))
    return 1 / (1 + np.exp(12 * (np.linalg.norm(offsets, axis=-1) / radius - 1)))


def _turn(rng: np.random.Generator, degrees: float) -> NDArray:
    return Rotation.from_euler("xyz", rng.uniform(-degrees, degrees, 3), degrees=True).as_matrix()


def _bias(shape: NDArray, rng: np.random.Generator) -> NDArray:
    """Draw the logarithm of a slow field."""
    coarse = ndimage.gaussian_filter(rng.standard_normal((8, 8, 8)), 1.5, mode="wrap")
    field = ndimage.zoom(coarse, shape / 8, order=3)[tuple(map(slice, shape))]
    return BIAS * field / np.abs(field).max()


def _cropped(
    scan: NDArray,
    grid: NDArray,
    rng: np.random.Generator,
    cut: Sequence[float],
    spacing: NDArray,
    threshold: float,
) -> tuple[NDArray, NDArray]:
    """Cut one side of the field, some millimeters into the head."""
    axis, from_below = int(rng.integers(3)), bool(rng.integers(2))
    rows = np.argwhere(ndimage.binary_opening(scan > threshold, iterations=2))[:, axis]
    depth = int(rng.uniform(*cut) / spacing[axis])
    first, last = (rows.min() + depth, scan.shape[axis]) if from_below else (0, rows.max() - depth)
    grid = grid.copy()
    grid[:3, 3] += grid[:3, axis] * first
    return np.take(scan, np.arange(first, last), axis=axis), grid
