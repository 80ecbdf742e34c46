"""Rigid alignment of two scans of a head, and how alike they are in each place."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from dmrifit._optional import import_optional
from dmrifit.io.components import largest_components
from dmrifit.io.grids import Volume, at_voxels
from dmrifit.io.nifti import Image, image_name

#: Median local correlation from which two scans count as of the same head: one person's two visits
#: reached .93, the most alike of 27 pairs of people .53, and heads with noise of 3 % from .85.
SAME_HEAD = 0.75

_GRID = 2.0  # mm
# SD in mm of the smoothing for the mean that scans are divided by; largest multiple of that mean.
_FLAT, _BRIGHTEST = 10.0, 3.0
# SD in mm of the smoothing for local mean and variance; share of the median local variance that is
# added to it; largest number of local standard deviations.
_LOCAL, _FLOOR, _HIGHEST = 6.0, 0.25, 3.0
_SMOOTH = 1.5  # mm, so that interpolation moves no edge
_WINDOW = 5.0  # mm, twice the SD of the Gaussian window of the local correlation
_NEAR = 3  # voxels around the head that registration compares
_TURN, _TRIED = 40.0, 3  # degrees about each axis, of further starts; the best of them
_LEVELS = ((4, 4.0), (2, 2.0))  # shrinking, and smoothing in voxels
_BINS, _SAMPLES, _SEED, _STEPS, _FIRST_STEP, _LAST_STEP = 32, 0.5, 1, 80, 4.0, 0.01
_ROUNDS, _STILL_MM, _STILL_RAD = 20, 3e-3, 5e-5
_OUTLIER = 3.0  # robust standard deviations from which a residual counts nothing
_BLOCK = 5  # voxels, along each side of the blocks that are dealt to two halves
_LEAST_VOXELS = 5000  # 40 mL that both scans show
_LPS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True, eq=False)
class HeadAlignment:
    """
    How a head moved from one scan to another.

    Shapes: `matrix` and each of `others` (4, 4), from mm RAS+ of the first scan to mm RAS+ of the
    second; `head`, `correlation` and `concordance` (x, y, z) on a grid of the first scan, whose
    affine is `affine`. Correlation and concordance are NaN outside the head of the first scan and
    outside the field of the second; where the second shows no head, correlation is NaN, too, and
    concordance 0.
    """

    matrix: NDArray[np.float64]
    others: dict[str, NDArray[np.float64]]
    head: NDArray[np.bool_]
    correlation: NDArray[np.float32]
    concordance: NDArray[np.float32]
    affine: NDArray[np.float64]

    @classmethod
    def of(cls, first: Image, second: Image) -> HeadAlignment:
        """
        Find how a head moved between two scans of the same contrast, as a rigid transformation.

        Mutual information of both scans (SimpleITK, voxels of 8 and 4 mm, divided by their local
        mean) leads to within some millimeters, from several turns where the heads do not come to
        look alike; Gauss-Newton steps on locally standardized signals of 2 mm finish, where
        signals that do not agree (surgery, scalp, neck) count nothing. The whole is repeated from
        the second scan to the first, and the last steps with each half of the voxels.

        Raises
        ------
        ValueError
            If a scan has no position or shows no head, or both show no common part of a head.

        References
        ----------
        Mattes et al., IEEE Trans Med Imaging 22:120–128, 2003; Baker and Matthews, Int J Comput
        Vis 56:221–255, 2004 (inverse compositional steps); Tukey's weights: Beaton and Tukey,
        Technometrics 16:147–185, 1974.
        """
        fixed, moving = _Head.of(first), _Head.of(second)
        matrix, turn = _best_aligned(fixed, moving)
        backward = _refined(moving, fixed, _aligned(moving, fixed, turn.T)[0])
        # Blocks of voxels are dealt to two halves, like the fields of a chess board.
        halves = (np.indices(fixed.head.shape) // _BLOCK).sum(axis=0) % 2 == 0
        others = {"backward": np.asarray(np.linalg.inv(backward), np.float64)}
        for name, half in (("first half", halves), ("second half", ~halves)):
            others[name] = _refined(fixed, moving, matrix, half)
        agreement = _local_agreement(fixed, moving, matrix)
        alignment = cls(matrix, others, fixed.head, *agreement, fixed.affine)
        if np.isnan(alignment.likeness):
            raise ValueError(
                f"{image_name(first)} and {image_name(second)} show no common part of a head; "
                "give scans that both show the whole brain"
            )
        return alignment

    @classmethod
    def in_place(cls, first: Image, second: Image) -> HeadAlignment:
        """Compare two scans of a head that were aligned before, as they lie."""
        fixed, moving = _Head.of(first), _Head.of(second)
        agreement = _local_agreement(fixed, moving, np.eye(4))
        return cls(np.eye(4), {}, fixed.head, *agreement, fixed.affine)

    @property
    def likeness(self) -> float:
        """Median local correlation of what both scans show of the head; NaN below 40 mL."""
        if np.count_nonzero(np.isfinite(self.correlation)) < _LEAST_VOXELS:
            return float("nan")
        return _median(self.correlation)

    @property
    def shows_same_head(self) -> bool:
        """Whether person and place may be the same; of less than 40 mL nobody can tell."""
        return not self.likeness < SAME_HEAD

    @property
    def agreement(self) -> str:
        """The likeness in words, and that of one person."""
        text = f"median local correlation {self.likeness:.2f}"
        return f"{text}, of scans of one person {SAME_HEAD:g} or more"

    def disagreement(self, points: ArrayLike) -> float:
        """Give the largest distance in mm to where another estimate moves points (n, 3)."""
        places = np.asarray(points, dtype=np.float64)
        moved = _moved(places, self.matrix)
        distances = [
            np.linalg.norm(_moved(places, matrix) - moved, axis=1).max()
            for matrix in self.others.values()
        ]
        return float(max(distances))


@dataclass(frozen=True, eq=False)
class _Head:
    """A scan on a coarse grid; shapes: `affine` (4, 4), all others (x, y, z)."""

    affine: NDArray[np.float64]
    head: NDArray[np.bool_]
    flat: NDArray[np.float32]  # signals over their mean around
    standard: NDArray[np.float32]  # signals minus their mean around, in standard deviations

    @classmethod
    def of(cls, image: Image) -> _Head:
        """Read a scan; find the head and even out its signals."""
        scan = Volume.read(image).resampled(_GRID)
        signals = np.maximum(scan.values, 0)
        head = _find_head(signals, image_name(image))
        mean = _local_mean(signals, head, _FLAT)
        flat = np.minimum(signals / np.maximum(mean, 1e-6 * signals.max()), _BRIGHTEST)
        smooth = ndimage.gaussian_filter(signals, _SMOOTH / _GRID)
        above = smooth - _local_mean(smooth, head, _LOCAL)
        variance = _local_mean(above**2, head, _LOCAL)
        # Where all signals are alike, their differences are noise.
        deviation = np.sqrt(variance + _FLOOR * np.median(variance[head]))
        standard = np.clip(above / deviation, -_HIGHEST, _HIGHEST)
        return cls(
            scan.affine,
            head,
            np.where(head, flat, 0).astype(np.float32),
            np.where(head, standard, 0).astype(np.float32),
        )

    @property
    def center(self) -> NDArray[np.float64]:
        """Center of mass in mm."""
        return _moved(np.array(ndimage.center_of_mass(self.head)), self.affine)


def _find_head(signals: NDArray[np.float32], name: str) -> NDArray[np.bool_]:
    """Find the largest piece above half of Otsu's threshold, with its holes filled."""
    sitk = import_optional("SimpleITK")
    positive = signals[signals > 0]
    if not len(positive) or np.ptp(positive) == 0:
        raise ValueError(f"{name} shows no head: its signals are all alike; give a T1 scan")
    clipped = np.minimum(signals, np.percentile(positive, 99.5))
    otsu = sitk.OtsuThresholdImageFilter()
    # Air that was set to 0 would pull the threshold down.
    otsu.Execute(sitk.GetImageFromArray(clipped[clipped > 0][None, None]))
    head = largest_components(ndimage.binary_opening(signals > otsu.GetThreshold() / 2))
    if np.count_nonzero(head) < _LEAST_VOXELS:
        raise ValueError(f"{name} shows no head; give a T1 scan of the whole brain")
    return np.asarray(ndimage.binary_fill_holes(head))


def _local_mean(
    values: NDArray[np.float32], inside: NDArray[np.bool_], smoothing: float
) -> NDArray[np.float32]:
    """Average (x, y, z) over what is inside, weighted by a Gaussian of so many mm."""
    weights = inside.astype(np.float32)
    sums = ndimage.gaussian_filter(values * weights, smoothing / _GRID, truncate=3)
    return sums / np.maximum(ndimage.gaussian_filter(weights, smoothing / _GRID, truncate=3), 1e-3)


def _best_aligned(fixed: _Head, moving: _Head) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Align from no turn, or from others until heads look alike: matrix (4, 4), turn (3, 3)."""
    matrix, turn, likeness = np.eye(4), np.eye(3), -np.inf
    for start in _starts(fixed, moving):
        attempt = _refined(fixed, moving, _aligned(fixed, moving, start)[0])
        attempt_likeness = _median(_local_agreement(fixed, moving, attempt)[0])
        if attempt_likeness > likeness:
            matrix, turn, likeness = attempt, start, attempt_likeness
        if likeness >= SAME_HEAD:
            break
    return matrix, turn


def _starts(fixed: _Head, moving: _Head) -> Iterator[NDArray[np.float64]]:
    """List turns (3, 3) to start from: none, and those that are best on the coarsest level."""
    yield np.eye(3)
    angles = itertools.product((-_TURN, 0.0, _TURN), repeat=3)
    turns = Rotation.from_euler("XYZ", list(angles), degrees=True).as_matrix()
    information = [_aligned(fixed, moving, turn, _LEVELS[:1])[1] for turn in turns]
    yield from turns[np.argsort(-np.array(information), kind="stable")[:_TRIED]]


def _aligned(
    fixed: _Head,
    moving: _Head,
    turn: NDArray[np.float64],
    levels: Sequence[tuple[int, float]] = _LEVELS,
) -> tuple[NDArray[np.float64], float]:
    """Maximize mutual information from a turn (3, 3): return the matrix (4, 4) and the maximum."""
    sitk = import_optional("SimpleITK")
    transform = sitk.Euler3DTransform()
    center = _LPS @ fixed.center
    transform.SetCenter(center.tolist())
    transform.SetTranslation((_LPS @ moving.center - center).tolist())
    transform.SetMatrix((_LPS @ turn @ _LPS).ravel().tolist(), 1e-6)
    method = sitk.ImageRegistrationMethod()
    # Sums over several threads differ in their last bits from run to run.
    method.SetNumberOfThreads(1)
    method.SetMetricAsMattesMutualInformation(_BINS)
    near = ndimage.binary_dilation(fixed.head, iterations=_NEAR).astype(np.uint8)
    method.SetMetricFixedMask(_sitk_image(near, fixed.affine))
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(_SAMPLES, _SEED)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(_FIRST_STEP, _LAST_STEP, _STEPS)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([factor for factor, _ in levels])
    method.SetSmoothingSigmasPerLevel([sigma for _, sigma in levels])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    method.SetInitialTransform(transform, inPlace=True)
    information = -np.inf
    # It raises where too few samples lie in both scans, as from a start that is far off.
    with contextlib.suppress(RuntimeError):
        method.Execute(
            _sitk_image(fixed.flat, fixed.affine), _sitk_image(moving.flat, moving.affine)
        )
        information = -method.GetMetricValue()
    rotation = np.array(transform.GetMatrix()).reshape(3, 3)
    middle = np.array(transform.GetCenter())
    shift = np.array(transform.GetTranslation())
    matrix = np.eye(4)
    matrix[:3, :3] = _LPS @ rotation @ _LPS
    matrix[:3, 3] = _LPS @ (middle + shift - rotation @ middle)
    return matrix, information


def _sitk_image(values: NDArray[Any], affine: NDArray[np.float64]) -> Any:
    """Make an image of SimpleITK, which counts in LPS."""
    image = import_optional("SimpleITK").GetImageFromArray(np.ascontiguousarray(values.T))
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(edges.tolist())
    image.SetOrigin((_LPS @ affine[:3, 3]).tolist())
    image.SetDirection((_LPS @ affine[:3, :3] / edges).ravel().tolist())
    return image


def _refined(
    fixed: _Head, moving: _Head, matrix: NDArray[np.float64], half: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """
    Improve a rigid matrix (4, 4) by robust Gauss-Newton steps.

    The steps move the fixed scan, whose derivatives are the same in each of them, and their
    inverse goes into the matrix. Shapes: `half` (x, y, z) of the fixed scan.
    """
    voxels = np.argwhere(fixed.head if half is None else fixed.head & half)
    places = _moved(voxels, fixed.affine)
    middle = places.mean(axis=0)
    at = tuple(voxels.T)
    gradient = np.stack(list(np.gradient(fixed.standard)), axis=-1)
    slopes = gradient[at] @ np.linalg.inv(fixed.affine[:3, :3])
    jacobian = np.hstack([slopes, np.cross(places - middle, slopes)])
    signals = fixed.standard[at]
    coefficients = ndimage.spline_filter(moving.standard)
    shown = ndimage.binary_erosion(moving.head)
    to_voxels = np.linalg.inv(moving.affine)
    for _ in range(_ROUNDS):
        index = _moved(places, to_voxels @ matrix).T
        residual = ndimage.map_coordinates(coefficients, index, prefilter=False) - signals
        weights = ndimage.map_coordinates(shown, index, order=0).astype(np.float64)
        if weights.sum() < _LEAST_VOXELS / 4:
            break
        scale = 1.4826 * np.median(np.abs(residual[weights > 0]))
        far = residual / max(_OUTLIER * scale, 1e-9)
        weights *= np.maximum(1 - far**2, 0) ** 2
        normal = jacobian.T @ (jacobian * weights[:, None])
        step = np.linalg.lstsq(normal, jacobian.T @ (weights * residual), rcond=None)[0]
        move = np.eye(4)
        move[:3, :3] = Rotation.from_rotvec(step[3:]).as_matrix()
        move[:3, 3] = middle + step[:3] - move[:3, :3] @ middle
        matrix = matrix @ np.linalg.inv(move)
        if np.linalg.norm(step[:3]) < _STILL_MM and np.linalg.norm(step[3:]) < _STILL_RAD:
            break
    return matrix


def _local_agreement(
    fixed: _Head, moving: _Head, matrix: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """
    Compute Pearson's and Lin's correlation in windows around each voxel, on the fixed grid.

    Both are of evened signals; Lin's falls where one scan is brighter, too. Shapes: (x, y, z), see
    `HeadAlignment`.
    """
    index = np.linalg.inv(moving.affine) @ matrix @ fixed.affine

    def onto_fixed(values: NDArray[Any], order: int) -> NDArray[Any]:
        return at_voxels(values, index, fixed.head.shape, order=order)

    shown = fixed.head & (onto_fixed(np.ones(moving.head.shape, np.uint8), 0) > 0)
    inside = shown & (onto_fixed(moving.head.astype(np.uint8), 0) > 0)

    def mean(values: NDArray[np.float32]) -> NDArray[np.float32]:
        return _local_mean(values, inside, _WINDOW / 2)

    a, b = fixed.flat, onto_fixed(moving.flat, 1)
    mean_a, mean_b = mean(a), mean(b)
    variance_a = np.maximum(mean(a * a) - mean_a**2, 1e-6)
    variance_b = np.maximum(mean(b * b) - mean_b**2, 1e-6)
    covariance = mean(a * b) - mean_a * mean_b
    correlation = covariance / np.sqrt(variance_a * variance_b)
    concordance = 2 * covariance / (variance_a + variance_b + (mean_a - mean_b) ** 2)
    correlation[~inside] = np.nan
    concordance[~inside] = 0
    concordance[~shown] = np.nan
    return correlation, concordance


def _moved(points: NDArray[Any], matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Apply a matrix (4, 4) to points (..., 3)."""
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def _median(values: NDArray[np.float32]) -> float:
    """Give the median of the finite values; 0 where there are none."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else 0.0
