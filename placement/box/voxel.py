"""The box that a spectrum is measured in: its center, sides and rotation."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from nibabel.affines import apply_affine
from nibabel.orientations import inv_ornt_aff
from numpy.typing import ArrayLike, NDArray

from dmrifit._utils.affines import MM3_PER_ML
from dmrifit._utils.counts import counted, first_few
from dmrifit._utils.html_repr import html_summary

__all__ = ["Voxel"]

#: How three angles make a rotation, in the terms of other programs.
CONVENTION = "intrinsic XYZ Euler angles in degrees, R = Rx(a) Ry(b) Rz(c), RAS+ axes"

_FARTHEST_MM = 1e5  # no scanner is that large

#: Rows in an image voxel, along each of two axes, that give the fraction of it that a box fills:
#: these at least, and so many in each mm, as a face in a thick slice lies between few rows.
MASK_ROWS = 6

#: Axes that differ by less than this many degrees count as parallel, smaller angles as 0.
PARALLEL_DEGREES = 0.5

#: Poses whose rotation matrices have traces within this are equally near to the scanner's axes.
NEAR_TIE = 1e-9

#: Largest error of RᵀR for a rotation that was rounded in a file, and for one that needs no
#: correction.
ROUNDED_TURN, EXACT_TURN = 3e-4, 1e-9


#: All choices of three of the twelve faces of two boxes.
FACE_TRIPLES = np.array(list(itertools.combinations(range(12), 3)))


#: Storages whose traces of direction cosines agree within this are equally near to the world's
#: axes.
_NEAR_TIE = 1e-6

#: Decimals of mm that edges and positions are rounded to: reversing an axis leaves rounding
#: errors, of positions those of the single precision of headers, which could send two searches
#: different ways. The phase keeps positions of a few decimals away from where rounding jumps.
_DECIMALS, _POSITION_DECIMALS, _PHASE = 9, 3, 1e-4 / 3


def _axis_orders() -> NDArray[np.float64]:
    """List the 48 matrices that exchange and reverse three axes, the identity first."""
    matrices = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            matrix = np.zeros((3, 3))
            matrix[list(order), range(3)] = signs
            matrices.append(matrix)
    return np.array(matrices)


AXIS_ORDERS = _axis_orders()

#: The 24 rotations among them, which map a cube onto itself.
TURNS = AXIS_ORDERS[np.linalg.det(AXIS_ORDERS) > 0]


def rotation_of(angles: ArrayLike) -> NDArray[np.float64]:
    """Convert angles to a rotation matrix; see `CONVENTION`."""
    radians = np.radians(np.asarray(angles, dtype=np.float64))
    sa, sb, sc = np.sin(radians)
    ca, cb, cc = np.cos(radians)
    return np.array(
        [
            [cb * cc, -cb * sc, sb],
            [ca * sc + sa * sb * cc, ca * cc - sa * sb * sc, -sa * cb],
            [sa * sc - ca * sb * cc, sa * cc + ca * sb * sc, ca * cb],
        ]
    )


def angles_of(rotation: ArrayLike) -> NDArray[np.float64]:
    """Convert a rotation matrix to angles; see `CONVENTION`."""
    r = np.asarray(rotation, dtype=np.float64)
    cosine = np.hypot(r[0, 0], r[0, 1])
    b = np.arctan2(r[0, 2], cosine)
    if cosine > 1e-9:
        a = np.arctan2(-r[1, 2], r[2, 2])
        c = np.arctan2(-r[0, 1], r[0, 0])
    else:
        # At ±90 degrees only the sum or the difference of the other angles is defined.
        a = np.arctan2(r[2, 1], r[1, 1])
        c = 0.0
    # Adding 0 turns -0 into 0, which would otherwise be printed on a console.
    return np.degrees([a, b, c]) + 0.0


class Voxel:
    """
    A box in the scanner: center, sides and rotation.

    Parameters
    ----------
    center : array_like of shape (3,)
        Middle of the box in mm, RAS+ world coordinates as in NIfTI (x to the right, y to the
        front, z up).
    size : array_like of shape (3,)
        Lengths of its sides in mm.
    angles : array_like of shape (3,), default=(0, 0, 0)
        Intrinsic XYZ Euler angles in degrees: R = Rx(a) Ry(b) Rz(c), whose columns are the
        directions of the sides. With R = 1 the sides run right–left, front–back and up–down.

    Attributes
    ----------
    center, size, angles : ndarray of shape (3,)
        As given; not to be written to.

    Raises
    ------
    ValueError
        If a number is missing or not finite, or a side is not positive.

    Notes
    -----
    The angles are those of spec2nii for Philips scanners. Every box has 24 equivalent
    descriptions, because sides can change names and directions; `canonical` picks one.

    Examples
    --------
    >>> from placement import Voxel
    >>> Voxel((0, 0, 0), (20, 20, 30)).volume
    12.0
    """

    __slots__ = ("angles", "center", "rotation", "size")

    center: NDArray[np.float64]
    size: NDArray[np.float64]
    angles: NDArray[np.float64]
    rotation: NDArray[np.float64]

    def __init__(
        self, center: ArrayLike, size: ArrayLike, angles: ArrayLike = (0.0, 0.0, 0.0)
    ) -> None:
        for name, value in (("center", center), ("size", size), ("angles", angles)):
            try:
                array = np.array(value, dtype=np.float64)
            except (TypeError, ValueError):
                array = np.empty(0)
            if array.shape != (3,) or not np.isfinite(array).all():
                raise ValueError(f"the {name} of a voxel is three finite numbers, not {value!r}")
            object.__setattr__(self, name, array)
        if not (self.size > 0).all():
            raise ValueError(f"the sides of a voxel must be positive, got {self.size.tolist()} mm")
        farthest = max(np.abs(self.center).max(), self.size.max())
        if farthest > _FARTHEST_MM:
            raise ValueError(
                f"a voxel cannot be {farthest:g} mm from the isocenter, or so large; check the "
                "unit, mm"
            )
        object.__setattr__(self, "rotation", rotation_of(self.angles))
        # A box is hashable, so its numbers must not change.
        for name in self.__slots__:
            getattr(self, name).flags.writeable = False

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a voxel does not change; make a new Voxel with another {name}")

    def __reduce__(self) -> tuple[Any, ...]:
        return Voxel, (self.center, self.size, self.angles)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Voxel) and bool(np.array_equal(self.as_array(), other.as_array()))

    def __hash__(self) -> int:
        return hash(tuple((self.as_array() + 0.0).tolist()))

    def _repr_html_(self) -> str:
        """Show the box in notebooks."""
        rows = []
        for name, values in (
            ("center, mm RAS+", self.center),
            ("sides, mm", self.size),
            ("angles, degrees", self.angles),
        ):
            # Adding 0 turns -0 into 0.
            x, y, z = np.round(values, 2) + 0.0
            rows.append((name, f"{x:.2f}", f"{y:.2f}", f"{z:.2f}"))
        return html_summary(f"Voxel of {self.volume:.2f} mL", ("", "x", "y", "z"), rows)

    def __repr__(self) -> str:
        center = tuple(np.round(self.center, 3).tolist())
        size = tuple(np.round(self.size, 3).tolist())
        angles = tuple(np.round(self.angles, 3).tolist())
        return f"Voxel(center={center}, size={size}, angles={angles})"

    @classmethod
    def from_rotation(cls, center: ArrayLike, size: ArrayLike, rotation: ArrayLike) -> Voxel:
        """
        Make a voxel from a rotation matrix.

        Parameters
        ----------
        center : array_like of shape (3,)
            In mm, RAS+.
        size : array_like of shape (3,)
            In mm.
        rotation : array_like of shape (3, 3)
            Its columns are the directions of the sides. A matrix that was rounded to four digits
            is replaced by the nearest rotation.

        Returns
        -------
        Voxel
            The box.

        Raises
        ------
        ValueError
            If `rotation` is not a rotation, or as for the constructor.
        """
        r = np.asarray(rotation, dtype=np.float64)
        error = np.abs(r.T @ r - np.eye(3)).max() if r.shape == (3, 3) else np.inf
        if not (error <= ROUNDED_TURN and np.linalg.det(r) > 0):
            raise ValueError(
                "the matrix of a voxel must be a rotation (orthogonal, determinant 1), got "
                f"{r.tolist()}"
            )
        # The nearest rotation; an exact one keeps its digits instead.
        if error > EXACT_TURN:
            u, _, v = np.linalg.svd(r)
            r = u @ v
        return cls(center, size, angles_of(r))

    @property
    def volume(self) -> float:
        """Volume in mL."""
        return float(np.prod(self.size)) / MM3_PER_ML

    @property
    def corners(self) -> NDArray[np.float64]:
        """Corners in mm, RAS+: shape (8, 3), the first side changes slowest."""
        signs = np.array(list(itertools.product((-0.5, 0.5), repeat=3)))
        return self.center + (signs * self.size) @ self.rotation.T

    @property
    def affine(self) -> NDArray[np.float64]:
        """
        The box as the affine of an image of one voxel: shape (4, 4).

        Columns are the sides as vectors in mm, the translation is the center.
        """
        matrix = np.eye(4)
        matrix[:3, :3] = self.rotation * self.size
        matrix[:3, 3] = self.center
        return matrix

    @property
    def rotated_axes(self) -> int:
        """
        Least number of turns about scanner axes that the box needs, in any order.

        0 if its sides are parallel to the scanner's axes, 1 if one of them is, 2 if one side is
        perpendicular to a scanner axis, else 3; within half a degree.
        """
        return rotated_axes(self.rotation)

    @property
    def rotated_angles(self) -> int:
        """
        How many Euler angles have to be set: those that differ from 0 by half a degree or more.

        The count of Philips' consoles and, of a `canonical` box, the study's count of rotated
        axes. It depends on which side is named first: half turns about sides do not count, quarter
        turns do. A box that needs two turns in another order has three angles.
        """
        return count_turned(upright_angles(self.rotation))

    def contains(self, points: ArrayLike) -> NDArray[np.bool_]:
        """
        Test which points lie in the box or on its surface.

        Parameters
        ----------
        points : array_like of shape (..., 3)
            In mm, RAS+.

        Returns
        -------
        ndarray of bool, shape (...)
            Whether each is inside.
        """
        local = (np.asarray(points, dtype=np.float64) - self.center) @ self.rotation
        return np.asarray((np.abs(local) <= self.size / 2 + 1e-12).all(axis=-1))

    def mask(
        self, shape: tuple[int, ...], affine: ArrayLike, *, partial: bool = False
    ) -> NDArray[Any]:
        """
        Draw the box on the grid of an image.

        Parameters
        ----------
        shape : tuple of 3 int
            Numbers of voxels of the image.
        affine : array_like of shape (4, 4)
            From its voxel indices to mm, RAS+.
        partial : bool, default=False
            Whether to give the fraction of every image voxel that the box fills: along one axis
            exactly, along the other two from `MASK_ROWS` rows or more.

        Returns
        -------
        ndarray of bool or float32, of shape `shape`
            Whether the center of each image voxel lies in the box; where `partial`, fractions from
            0 to 1. The part of the box outside the image is dropped.
        """
        matrix = np.asarray(affine, dtype=np.float64)
        dims = tuple(int(n) for n in shape[:3])
        out = np.zeros(dims, dtype=np.float32 if partial else bool)
        index = apply_affine(np.linalg.inv(matrix), self.corners)
        low = np.maximum(np.floor(index.min(axis=0) + 0.5), 0).astype(int)
        high = np.minimum(np.ceil(index.max(axis=0) + 0.5), dims).astype(int)
        if (high <= low).any():
            return out
        # A box is small in a head: only image voxels near it are tested.
        window = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        if partial:
            out[window] = self._filled(low, high, matrix)
        else:
            out[window] = self._centers(low, high, matrix)
        return out

    def _centers(self, low: NDArray, high: NDArray, matrix: NDArray) -> NDArray[np.bool_]:
        """Test which centers of a window of image voxels lie in the box."""
        axes = [np.arange(a, b) for a, b in zip(low, high, strict=True)]
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
        return self.contains(grid @ matrix[:3, :3].T + matrix[:3, 3])

    def _filled(self, low: NDArray, high: NDArray, matrix: NDArray) -> NDArray[np.float32]:
        """Compute the fraction of each image voxel of a window that the box fills, from rows."""
        edges = np.linalg.norm(matrix[:3, :3], axis=0)
        n_j, n_k = (max(MASK_ROWS, math.ceil(MASK_ROWS * edge - 1e-6)) for edge in edges[1:])
        j = (np.arange(low[1], high[1])[:, None] + (np.arange(n_j) + 0.5) / n_j - 0.5).ravel()
        k = (np.arange(low[2], high[2])[:, None] + (np.arange(n_k) + 0.5) / n_k - 0.5).ravel()
        # In the box's axes, a row is the line `local + i * slope` of the first index i.
        step = self.rotation.T @ matrix[:3, :3]
        start = self.rotation.T @ (matrix[:3, 3] - self.center)
        local = start + j[:, None, None] * step[:, 1] + k[None, :, None] * step[:, 2]
        half = self.size / 2
        slope = step[:, 0]
        flat = np.abs(slope) < 1e-12
        divisor = np.where(flat, 1.0, slope)
        first = (-half - local) / divisor
        second = (half - local) / divisor
        near = np.where(flat, -np.inf, np.minimum(first, second)).max(axis=-1)
        far = np.where(flat, np.inf, np.maximum(first, second)).min(axis=-1)
        # A row along a face lies between it and the opposite one everywhere or nowhere. In a face
        # it counts half: counted whole in both faces, it would make the box thicker.
        side = np.sign(np.round(half - np.abs(local), 9))
        weight = np.where(flat, (1.0 + side) / 2, 1.0).prod(axis=-1)
        out = np.empty(tuple(high - low), dtype=np.float32)
        shape = (len(j) // n_j, n_j, len(k) // n_k, n_k)
        for i in range(low[0], high[0]):
            length = np.clip(np.minimum(far, i + 0.5) - np.maximum(near, i - 0.5), 0.0, None)
            out[i - low[0]] = (weight * length).reshape(shape).mean(axis=(1, 3))
        return out

    def intersection(self, other: Voxel) -> float:
        """
        Compute the volume that two boxes share.

        Planes of faces meet three by three; the points that lie in both boxes are the corners of
        what they share.

        Parameters
        ----------
        other : Voxel
            The other box.

        Returns
        -------
        float
            In mL.
        """
        from scipy.spatial import ConvexHull, QhullError

        # Coordinates around one box keep digits where both lie far from the scanner's center.
        shift = other.center - self.center
        # Boxes whose circumscribed spheres are disjoint share nothing: a quick test.
        if 2 * np.linalg.norm(shift) > np.linalg.norm(self.size) + np.linalg.norm(other.size):
            return 0.0
        normals = np.concatenate([self.rotation.T, -self.rotation.T])
        others = np.concatenate([other.rotation.T, -other.rotation.T])
        limits = np.tile(self.size / 2, 2)
        limits = np.concatenate([limits, np.tile(other.size / 2, 2) + others @ shift])
        normals = np.concatenate([normals, others])
        crossing = FACE_TRIPLES[np.abs(np.linalg.det(normals[FACE_TRIPLES])) > 1e-9]
        points = np.linalg.solve(normals[crossing], limits[crossing][..., None])[..., 0]
        slack = 1e-9 * max(*self.size, *other.size)
        points = points[(points @ normals.T <= limits + slack).all(axis=1)]
        try:
            shared = ConvexHull(points).volume
        except (QhullError, ValueError):
            return 0.0  # they touch at most
        return min(float(shared) / MM3_PER_ML, self.volume, other.volume)

    def dice(self, other: Voxel) -> float:
        """
        Compute the Dice coefficient of two boxes from their exact common volume.

        Parameters
        ----------
        other : Voxel
            The other box.

        Returns
        -------
        float
            Twice the common volume over the sum of volumes, from 0 to 1; see `intersection`.
        """
        return 2 * self.intersection(other) / (self.volume + other.volume)

    def canonical(self) -> Voxel:
        """
        Describe the same box by that of its 24 poses that is nearest to the scanner's axes.

        Returns
        -------
        Voxel
            Of these poses, that with the largest trace of the rotation matrix, so that the sides
            are named right–left, front–back and up–down as far as possible. Where several are
            equally near, the first in a fixed order of rotation matrices.
        """
        rotations = self.rotation @ TURNS
        traces = np.trace(rotations, axis1=1, axis2=2)
        near = np.flatnonzero(traces > traces.max() - NEAR_TIE)
        # Ties are broken by the matrices, which are the same 24 for every description of the box.
        best = min(near, key=lambda n: tuple((-np.round(rotations[n], 6).ravel()).tolist()))
        return Voxel(self.center, self.size @ np.abs(TURNS[best]), angles_of(rotations[best]))

    def transform(self, matrix: ArrayLike) -> Voxel:
        """
        Move the box with the patient, such as to a follow-up scan.

        Parameters
        ----------
        matrix : array_like of shape (4, 4)
            Rigid, from mm RAS+ of this scan to mm RAS+ of the other; four digits are enough.

        Returns
        -------
        Voxel
            The moved box, of the same sides.

        Raises
        ------
        ValueError
            If `matrix` is not rigid.
        """
        m = np.asarray(matrix, dtype=np.float64)
        if m.shape != (4, 4) or not np.allclose(m[3], (0, 0, 0, 1)):
            raise ValueError(
                "a rigid transform is a matrix of shape (4, 4) with the last row 0 0 0 1, got "
                f"{m.tolist()}"
            )
        center = m[:3, :3] @ self.center + m[:3, 3]
        return Voxel.from_rotation(center, self.size, m[:3, :3] @ self.rotation)

    def as_array(self) -> NDArray[np.float64]:
        """
        Give the nine numbers of the box.

        Returns
        -------
        ndarray of shape (9,)
            Center in mm, sides in mm, angles in degrees.
        """
        return np.concatenate([self.center, self.size, self.angles])

    @classmethod
    def from_array(cls, a: ArrayLike) -> Voxel:
        """
        Make a voxel from nine numbers.

        Parameters
        ----------
        a : array_like of shape (9,)
            As `as_array` gives them.

        Returns
        -------
        Voxel
            The box.

        Raises
        ------
        ValueError
            If there are not nine finite numbers, or a side is not positive.
        """
        array = np.asarray(a, dtype=np.float64)
        if array.shape != (9,):
            raise ValueError(
                "a voxel is made of nine numbers (center, size, angles), got an array of shape "
                f"{array.shape}"
            )
        return cls(array[:3], array[3:6], array[6:])

    def to_json(self) -> str:
        """
        Write the box as JSON.

        Returns
        -------
        str
            Keys ``center_mm``, ``size_mm``, ``angles_deg`` and what they mean; numbers keep all
            their digits.
        """
        return json.dumps(
            {
                "center_mm": self.center.tolist(),
                "size_mm": self.size.tolist(),
                "angles_deg": self.angles.tolist(),
                "frame": "RAS+",
                "convention": CONVENTION,
            }
        )

    @classmethod
    def from_json(cls, text: str | Mapping[str, Any]) -> Voxel:
        """
        Read a box from JSON.

        Parameters
        ----------
        text : str or mapping
            What `to_json` wrote; further keys are ignored.

        Returns
        -------
        Voxel
            The box.

        Raises
        ------
        ValueError
            If it is not JSON, a key is missing, or frame or convention differ from those of this
            class.
        """
        try:
            values = json.loads(text) if isinstance(text, str) else text
        except json.JSONDecodeError as error:
            raise ValueError(f"the text of a voxel is no JSON ({error})") from error
        keys = ("center_mm", "size_mm", "angles_deg")
        present = values if isinstance(values, Mapping) else {}
        missing = [key for key in keys if key not in present]
        if missing:
            raise ValueError(
                f"the JSON of a voxel lacks {', '.join(missing)}; write it with Voxel.to_json"
            )
        for key, expected in (("frame", "RAS+"), ("convention", CONVENTION)):
            if values.get(key, expected) != expected:
                raise ValueError(
                    f"the JSON of a voxel has {key} {values[key]!r}; "
                    f"convert it to {expected!r} first"
                )
        return cls(values["center_mm"], values["size_mm"], values["angles_deg"])


def allowed_sides(
    sizes: ArrayLike, size_range: ArrayLike, min_volume: float
) -> NDArray[np.float64]:
    """Clip the sides (3,) of a box to their range, and scale them up to a least volume in mL."""
    low, high = np.broadcast_to(np.asarray(size_range, dtype=np.float64), (3, 2)).T
    sides = np.clip(np.asarray(sizes, dtype=np.float64), low, high)
    for _ in range(3):
        free = sides < high
        needed = min_volume * MM3_PER_ML / sides.prod()
        if needed <= 1 or not free.any():
            break
        # Sides at their limit cannot grow, so the others make up for them in the next round.
        sides = np.where(free, np.minimum(sides * needed ** (1 / free.sum()), high), sides)
    return sides


def expert_voxels(voxels: ArrayLike, scenes: Sequence[Any]) -> NDArray[np.float64]:
    """Check experts' voxels of n scenes; returns them as (n, n_experts, 9), NaN where missing."""
    if not len(scenes):
        raise ValueError("placers learn from a sequence of Scene; there is none")
    for i, scene in enumerate(scenes):
        # Scenes are recognized by an attribute, because their module lies above this one.
        if not hasattr(type(scene), "tumor_volume"):
            raise ValueError(
                f"placers learn from a sequence of Scene; case {i} is a {type(scene).__name__}"
            )
    try:
        if np.iscomplexobj(voxels):
            raise ValueError("they are complex")
        array = np.array(voxels, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"experts' voxels must be an array of numbers, see Voxel.as_array ({error})"
        ) from error
    n = len(scenes)
    fits = array.ndim in (2, 3) and array.shape[0] == n and array.shape[-1] == 9
    if not fits or not array.size:
        raise ValueError(
            f"experts' voxels for {counted(n, 'scene')} need the shape ({n}, 9) or ({n}, "
            f"n_experts, 9), not {array.shape}"
        )
    array = array.reshape(n, -1, 9)
    missing = np.asarray(np.isnan(array).all(axis=2))
    names = []
    for i, j in np.argwhere(~missing):
        row = array[i, j]
        if not np.isfinite(row).all() or (row[3:6] <= 0).any():
            raise ValueError(
                f"case {i}, expert {j + 1}: a box is nine finite numbers with positive sides, or "
                f"all NaN where there is none, not {row.tolist()}"
            )
        if scenes[i].rows.fraction(Voxel.from_array(row)) == 0:
            names.append(scenes[i].name or f"case {i}")
    warn_of_empty(names)
    empty = np.flatnonzero(np.all(missing, axis=1))
    if len(empty):
        raise ValueError(
            f"case {empty[0]} has no voxel of any expert; leave out the "
            f"{counted(len(empty), 'case')} like it"
        )
    return array


def warn_of_empty(names: Sequence[str]) -> None:
    """Warn of cases in which an expert's box holds no tumor, as one in other coordinates does."""
    if names:
        cases = first_few(list(dict.fromkeys(names)))
        message = f"no tumor in an expert's box of {cases}: check that centers are in mm RAS+"
        warnings.warn(message, UserWarning, stacklevel=3)


def upright_angles(rotation: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give the angles of a box after half turns about its sides to near the scanner's axes."""
    # Half a turn about a side gives the same box: the least turned has the angles of consoles.
    half_turns = TURNS[np.all(np.abs(TURNS) == np.eye(3), axis=(1, 2))]
    rotations = rotation @ half_turns
    return angles_of(rotations[np.argmax(np.trace(rotations, axis1=1, axis2=2))])


def count_turned(angles: ArrayLike) -> int:
    """Count the angles in degrees, as consoles' texts round them, that do not count as 0."""
    return int(np.sum(np.abs(np.asarray(angles).round(3)) >= PARALLEL_DEGREES))


def rotated_axes(rotation: NDArray[np.float64]) -> int:
    """Count the turns about scanner axes that a rotation needs, in the order that needs fewest."""
    size = np.abs(rotation)
    # A side and a scanner axis are parallel where the sine of their angle is near 0.
    sines = np.sqrt(np.maximum(0.0, 1.0 - np.minimum(size, 1.0) ** 2))
    limit = np.sin(np.radians(PARALLEL_DEGREES))
    parallel = sines < limit
    if parallel.any(axis=0).all():
        return 0
    if parallel.any():
        return 1
    return 2 if (size < limit).any() else 3


def nearest_storage(affine: ArrayLike) -> NDArray[np.intp]:
    """
    Find the storage of an image whose axes are nearest to right, front and up.

    Gives the orientation (3, 2) that leads there, by `apply_orientation` and `reoriented`: that of
    all 48 storages of one image to the same storage.
    """
    matrix = np.asarray(affine, dtype=np.float64)[:3, :3]
    directions = matrix / np.linalg.norm(matrix, axis=0)
    stored = directions @ AXIS_ORDERS
    fits = np.trace(stored, axis1=1, axis2=2)
    near = np.flatnonzero(fits > fits.max() - _NEAR_TIE)
    # The matrices are the same 48 for every storage, whatever their order.
    best = min(near, key=lambda n: tuple((-np.round(stored[n], 6)).ravel().tolist()))
    order = AXIS_ORDERS[best]
    return np.column_stack([np.abs(order).argmax(axis=1), order.sum(axis=1)]).astype(np.intp)


def reoriented(
    turn: NDArray[np.intp], affine: NDArray[np.float64], shape: Sequence[int]
) -> NDArray[np.float64]:
    """Compute the affine (rounded) of an image of a shape that is turned by an orientation."""
    matrix = np.asarray(affine @ inv_ornt_aff(turn, shape), dtype=np.float64)
    matrix[:3, 3] = np.round(matrix[:3, 3] + _PHASE, _POSITION_DECIMALS)
    return np.round(matrix, _DECIMALS)
