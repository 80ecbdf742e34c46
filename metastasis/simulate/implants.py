"""Synthetic metastases implanted into real post-contrast scans of brains without any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import binary_fill_holes, find_objects, gaussian_filter

from dmrifit._utils.checks import check_finite, check_number
from dmrifit._utils.randomness import RandomState, Seed
from dmrifit.io.grids import three_axes
from dmrifit.io.masks import binarize
from dmrifit.simulate.head_shapes import texture_field
from dmrifit.simulate.heads import check_spacing
from metastasis.scans.local_level import WHITE_MATTER, local_level
from metastasis.simulate import enhancement
from metastasis.simulate.negatives import head_around, paint_negatives, strip_loosely, warp_scan
from metastasis.simulate.patients import simulate_metastases

__all__ = ["implant_lesions"]

#: Values of a label: enhancing lesion, its core, and what else has changed around it.
ENHANCING, CORE, SURROUNDINGS = 1, 2, 3

_CONTRASTS = (0.12, 0.9)  # of white matter's signal
_BRIGHT = (0.9, 1.8)  # the same, as in some real tumors
_BLURS = (0.45, 0.75)  # voxels
_TISSUE = (0.75, 1.4)  # local levels where lesions may grow: no fluid, no vessel
_DEEP = 2.0  # mm below the surface
_EDEMA, _GRAIN = 0.14, 0.04
#: Of masses: standard deviation of their signal, its patches in mm, and standard deviations below
#: the mean from which it is a dark pocket.
_PATCHY, _PATCHES, _POCKETS = 0.25, (1.5, 4.0), (0.8, 2.5)
_ENHANCING = 0.45  # share of a voxel
_UNCHANGED = 1e-3  # shares below it change nothing
_LARGEST_VOXEL = 10.0  # mm


_MARGIN = 12  # voxels around the brain
_ROUGHLY_1_MM = 0.1  # largest difference
_PHANTOM = (144, 176, 136)  # voxels of 1 mm
_PHANTOM_LESIONS, _PHANTOM_MIMICS = (8, 24), (4, 12)
_SMALL = 0.62  # of implants to learn from; fewer are missed than with half
_MASSES, _BRIGHTER = 0.1, 0.15  # the same; real tumors go beyond what is counted as found
_PAINTED = 0.5  # share of copies with painted vessels, dura and cavities
_LOOSE = 0.5  # of copies with sinuses and dura around the brain, as a loose mask leaves them


@dataclass(frozen=True)
class Implants:
    """A scan with implants, its label, the number of each implant's voxels, and the implants."""

    volume: NDArray[np.float32]
    label: NDArray[np.uint8]
    numbers: NDArray[np.int16]  # of the enhancing voxels of each, from 1 on
    nodules: list[enhancement.Nodule]


def implant_lesions(
    volume: ArrayLike,
    brain: ArrayLike,
    n: int,
    *,
    spacing: Any = 1.0,
    small: float = 0.5,
    random_state: RandomState = None,
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """
    Put synthetic metastases into a real post-contrast scan of a brain without any.

    They are solid, irregular or rings of 2.5 to 40 mm with uneven walls, dark or bleeding cores
    and darkened tissue around some; they enhance by 12 to 90 % of local white matter and are
    blurred by the resolution. Their centers lie in solid tissue, more than 2 mm below the surface,
    with a gap of 3 mm between lesions.

    Parameters
    ----------
    volume : array_like of shape (x, y, z)
        Post-contrast T1 image in any unit.
    brain : array_like of shape (x, y, z)
        Above 0.5 in the brain.
    n : int
        How many; one that finds no place is left out.
    spacing : float or sequence of 3 floats, default=1.0
        Edges of a voxel in mm.
    small : float, default=0.5
        Share of implants of 2.5 to 6 mm.
    random_state : int, RandomState or None, default=None
        Seed.

    Returns
    -------
    volume : ndarray of shape (x, y, z)
        The scan with implants, in the same unit.
    label : ndarray of shape (x, y, z)
        1 where a lesion enhances, 2 in its core, 3 where else the scan was changed (blurred edges
        and darkened tissue), 0 where it is as it was.

    Raises
    ------
    ValueError
        If shapes differ, the scan has values that are not finite, there is no brain, or the
        spacing is not one number or three above 0 and up to 10 mm.

    Examples
    --------
    >>> import numpy as np
    >>> from metastasis import implant_lesions
    >>> volume = np.random.default_rng(0).normal(100, 3, (48, 48, 48))
    >>> implanted, label = implant_lesions(volume, volume > 0, 3, random_state=0)
    >>> bool((implanted == volume.astype("f4"))[label == 0].all())
    True
    """
    implants = draw_implants(
        volume, brain, n, spacing=spacing, small=small, random_state=random_state
    )
    return implants.volume, implants.label


def draw_implants(
    volume: ArrayLike,
    brain: ArrayLike,
    n: int,
    *,
    spacing: Any = 1.0,
    small: float = 0.5,
    masses: float = 0.0,
    bright: float = 0.0,
    random_state: RandomState = None,
) -> Implants:
    """
    Put metastases into a scan as `implant_lesions` does, and tell which is where.

    Shares of `masses` and `bright` ones widen what a network learns from: solid tissue of up to
    38 mm with dark pockets, and enhancement by 90 to 180 %.
    """
    check_number("n", n, least=0, whole=True)
    check_number("small", small, most=1)
    check_number("masses", masses, most=1 - small)
    check_number("bright", bright, most=1)
    values = np.array(volume, dtype=np.float32)
    inside = binarize(np.asarray(brain), name="brain")
    if values.ndim != 3 or inside.shape != values.shape:
        raise ValueError(f"a volume of shape {values.shape} and a brain of shape {inside.shape}")
    check_finite(values, "the volume")
    steps = np.array(check_spacing(spacing, most=_LARGEST_VOXEL))
    rng = np.random.default_rng(Seed(random_state))
    head = head_around(inside, steps)
    level = local_level(values, inside, steps)
    relative = gaussian_filter(values / level, 0.7)
    places = (head.depth > _DEEP) & (relative > _TISSUE[0]) & (relative < _TISSUE[1])
    drawn = [enhancement.draw_kind(rng, small, masses) for _ in range(n)]
    drawn.sort(key=lambda item: -item[1])
    centers: list[Any] = [None] * n
    if places.any():
        radii = [enhancement.REACH * size / 2 for _, size in drawn]
        centers = enhancement.draw_places(places.astype(np.float32), radii, [], head, rng)
    label, numbers = np.zeros(values.shape, np.uint8), np.zeros(values.shape, np.int16)
    implants = Implants(values, label, numbers, [])
    for (kind, size), center in zip(drawn, centers, strict=True):
        if center is None:
            continue
        contrasts = _BRIGHT if bright and rng.random() < bright else _CONTRASTS
        nodule = enhancement.draw_varied_nodule(center, kind, size, rng, contrasts=contrasts)
        implants.nodules.append(nodule)
        _implant(implants, nodule, level, head, rng)
    return implants


def _implant(
    implants: Implants,
    nodule: enhancement.Nodule,
    level: NDArray[np.float32],
    head: Any,
    rng: np.random.Generator,
) -> None:
    """Change a scan and its label by one lesion, in place."""
    values, label, brain = implants.volume, implants.label, head.brain
    if nodule.edema:
        window, edema = enhancement.swelling(nodule, head)
        edema = edema * brain[window]
        values[window] *= 1 - _EDEMA * edema
        around = label[window]
        around[(edema > 0) & (around == 0)] = SURROUNDINGS
    window, filled, core = enhancement.shares(nodule, head)
    blur = rng.uniform(*_BLURS)
    filled = gaussian_filter(filled, blur) * brain[window]
    filled[filled < _UNCHANGED] = 0
    core = np.minimum(gaussian_filter(core, blur), filled)
    wall = filled - core
    white = WHITE_MATTER * level[window]
    grain = 1 + _GRAIN * gaussian_filter(rng.standard_normal(wall.shape), 0.8).astype(np.float32)
    if nodule.kind == enhancement.MASS:
        patches = texture_field(wall.shape, rng.uniform(*_PATCHES), head.spacing, rng)
        core = filled * (patches < -rng.uniform(*_POCKETS))
        wall, grain = filled - core, grain * np.exp(rng.uniform(0, _PATCHY) * patches)
    bright = white * (1 + nodule.contrast) * grain
    patch = values[window]
    patch += wall * (bright - patch) + core * (nodule.core_level * white * grain - patch)
    part = label[window]
    part[(filled > 0) & ((part == 0) | (part == SURROUNDINGS))] = SURROUNDINGS
    part[core > 0.5] = CORE
    is_enhancing = enhancement.filled_voxels(wall, _ENHANCING)
    part[is_enhancing] = ENHANCING
    implants.numbers[window][is_enhancing] = len(implants.nodules)


@dataclass(frozen=True)
class TrainingScan:
    """A scan with lesions, its brain, and its label with the values of `implant_lesions`."""

    name: str
    volume: NDArray[np.float32]
    brain: NDArray[np.bool_]
    label: NDArray[np.uint8]
    implants: Implants | None = None


def read_negative(path: Any) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """
    Read a stripped scan without metastases in RAS+, cut to its brain: (x, y, z) each.

    Training scans have no spacing of their own, so that voxels of about 1 mm alone are accepted.
    """
    image = nib.as_closest_canonical(nib.load(path))
    values = three_axes(image.get_fdata(dtype=np.float32), path)
    edges = np.linalg.norm(image.affine[:3, :3], axis=0)
    if (np.abs(edges - 1) > _ROUGHLY_1_MM).any():
        words = " × ".join(f"{edge:.3g}" for edge in edges)
        raise ValueError(
            f"{path} has voxels of {words} mm, where about 1 mm is needed; make it anew by "
            "dmrifit-metastasis prepare"
        )
    check_finite(values, str(path))
    brain = values != 0
    if not brain.any():
        raise ValueError(f"{path} holds zeros alone; give a scan of a brain")
    (extents,) = find_objects(brain.astype(np.int8))
    box = tuple(slice(max(0, side.start - _MARGIN), side.stop + _MARGIN) for side in extents)
    return values[box], brain[box]


def implanted_copies(
    name: str,
    volume: NDArray[np.floating],
    brain: NDArray[np.bool_],
    n_copies: int,
    *,
    n_lesions: int = 25,
    random_state: RandomState = None,
) -> list[TrainingScan]:
    """
    Make training scans of one real scan: warped, half of them with painted negatives, implanted.

    Half of the brains are surrounded by sinuses and dura, as a looser mask leaves them; some of
    the implants are masses or brighter than those that are counted as found elsewhere.

    Shapes: `volume` and `brain` (x, y, z), in the order of RAS+, with voxels of about 1 mm.
    """
    check_number("n_copies", n_copies, least=1, whole=True)
    seed = Seed(random_state)
    copies = []
    for number in range(n_copies):
        rng = seed.rng("implanted", name, number)
        warped, inside = warp_scan(volume, brain, rng)
        if number < _PAINTED * n_copies:
            warped = paint_negatives(warped, inside, rng)
        if rng.random() < _LOOSE:
            warped, inside = strip_loosely(warped, inside, rng)
        shares = {"small": _SMALL, "masses": _MASSES, "bright": _BRIGHTER}
        implants = draw_implants(
            warped, inside, n_lesions, random_state=int(rng.integers(2**31)), **shares
        )
        copies.append(TrainingScan(name, implants.volume, inside, implants.label, implants))
    return copies


def phantom_scans(
    n: int, *, random_state: RandomState = None, shape: Sequence[int] = _PHANTOM
) -> list[TrainingScan]:
    """Simulate training scans of the hard world, with 1 mm voxels, and mark cores of rings."""
    cases = simulate_metastases(
        n,
        prior=0.0,
        shape=shape,
        spacing=1.0,
        metastases=_PHANTOM_LESIONS,
        mimics=_PHANTOM_MIMICS,
        world="hard",
        random_state=random_state,
    )
    scans = []
    for case in cases:
        wall = np.asarray(case.label) > 0
        label = wall.astype(np.uint8)
        label[binary_fill_holes(wall) & ~wall] = CORE
        scans.append(TrainingScan(case.name, case.image, np.asarray(case.brain), label))
    return scans
