"""Training scans of a small network: real scans with implants, and phantoms of the hard world."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes, find_objects

from dmrifit._utils.checks import check_finite, check_number
from dmrifit._utils.randomness import RandomState, seed_for, seed_from
from dmrifit.io.grids import three_axes
from metastasis.simulate.implants import CORE, Implants, draw_implants
from metastasis.simulate.negatives import paint_negatives, strip_loosely, warp_scan
from metastasis.simulate.patients import simulate_metastases

_MARGIN = 12  # voxels around the brain
_ROUGHLY_1_MM = 0.1  # largest difference
_PHANTOM = (144, 176, 136)  # voxels of 1 mm
_PHANTOM_LESIONS, _PHANTOM_MIMICS = (8, 24), (4, 12)
_SMALL = 0.62  # of implants to learn from; fewer are missed than with half
_MASSES, _BRIGHT = 0.1, 0.15  # the same; real tumors go beyond what is counted as found
_PAINTED = 0.5  # share of copies with painted vessels, dura and cavities
_LOOSE = 0.5  # of copies with sinuses and dura around the brain, as a loose mask leaves them


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
    seed = seed_from(random_state)
    copies = []
    for number in range(n_copies):
        rng = np.random.default_rng(seed_for(seed, "implanted", name, number))
        warped, inside = warp_scan(volume, brain, rng)
        if number < _PAINTED * n_copies:
            warped = paint_negatives(warped, inside, rng)
        if rng.random() < _LOOSE:
            warped, inside = strip_loosely(warped, inside, rng)
        shares = {"small": _SMALL, "masses": _MASSES, "bright": _BRIGHT}
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
