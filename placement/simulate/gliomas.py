"""Synthetic gliomas in synthetic heads, and simulated experts who place a box in each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter, label

from dmrifit._utils.checks import check_number, check_word
from dmrifit._utils.randomness import RandomState, seed_for, seed_from
from placement.search.scene import Scene
from placement.simulate.experts import place_boxes

__all__ = ["REGIONS", "TUMOR_VOLUMES", "ExpertKind", "simulate_gliomas"]

ExpertKind: TypeAlias = Literal["objective", "preference"]

#: Smallest and largest lesion in mL.
TUMOR_VOLUMES = (2.0, 120.0)

#: What scenes can list as excluded.
REGIONS = ("necrosis", "ventricles", "outside")

_KINDS = ("objective", "preference")
_MEDIAN_VOLUME, _LOG_SPREAD = 42.0, 0.8  # of lesions in mL, before they are cut at the limits
_BRAIN = np.array([68.0, 85.0, 62.0])  # half axes in mm
_VENTRICLE = np.array([7.0, 30.0, 11.0])  # half axes of each of the two, mm
_ML_PER_MM3 = 1e-3
_NECROSIS_SHARE, _SATELLITE_SHARE, _BENT_SHARE = 0.45, 0.25, 0.2  # of lesions


@dataclass(frozen=True)
class _Head:
    """What a synthetic case is made of, on one grid."""

    brain: NDArray[np.bool_]
    ventricles: NDArray[np.bool_]
    tumor: NDArray[np.bool_]
    necrosis: NDArray[np.bool_]
    affine: NDArray[np.float64]


def simulate_gliomas(
    n: int,
    *,
    n_experts: int = 2,
    experts: ExpertKind = "preference",
    spacing: float | Sequence[float] = 2.0,
    exclude: Sequence[str] = (),
    image: bool = False,
    skip: int = 0,
    random_state: RandomState = None,
) -> tuple[list[Scene], NDArray[np.float64]]:
    """
    Make synthetic gliomas with the boxes that simulated experts place in them.

    These are no patients, and the experts are no clinical experts: they are rules with noise,
    written so that summary figures of their boxes come close to those that a study printed for its
    five experts. Agreement with them says nothing about agreement with people.

    A lesion of 2 to 120 mL lies in an ellipsoidal brain with two ventricles: a warped ellipsoid,
    or in some cases a bent one; some have a necrotic core, some satellites. The tumor of a scene
    is the whole lesion, its necrosis too.

    Parameters
    ----------
    n : int
        Cases.
    n_experts : int, default=2
        Boxes for each case.
    experts : {"preference", "objective"}, default="preference"
        ``"preference"``: experts who go to the thickest solid part, keep off necrosis and take no
        large boxes in small lesions. ``"objective"``: experts who climb the objective function,
        with a volume of their own in mind, to one of its many local maxima; necrosis is nothing to
        them.
    spacing : float or sequence of 3 floats, default=2
        Grid in mm.
    exclude : sequence of {"necrosis", "ventricles", "outside"}, default=()
        Regions that scenes list as excluded ("outside" of the brain). Lesions and experts are the
        same with and without: as in the study, a placer is told of nothing but the tumor unless it
        is wished.
    image : bool, default=False
        Whether scenes get an image like a T1 after gadolinium: bright solid tumor, dark necrosis
        and ventricles.
    skip : int, default=0
        Cases to pass over: those that are made are the ones after them, the same as if all were
        made at once.
    random_state : int, RandomState or None, default=None
        Seed. A case depends on it and on its number, not on how many there are.

    Returns
    -------
    scenes : list of Scene
        The cases, named "synthetic-001" and so on.
    voxels : ndarray of shape (n, n_experts, 9)
        Center in mm, sides in mm, angles in degrees, as `Voxel.as_array` gives them.

    Raises
    ------
    ValueError
        If a number is not positive or the kind of experts unknown.

    Notes
    -----
    Over 375 cases of three seeds, boxes of the two kinds ("preference", "objective") had 11.2 ±
    6.1 and 12.2 ± 6.3 mL, tumor fractions of .90 ± .10 and .91 ± .09, 1.1 rotated axes, Dice of
    .48 and .49 between experts, ICC of volumes of .35 and .29, and correlations of volume with
    tumor volume of .50 and .49. In 125 cases, an ICC varies by .1.

    References
    ----------
    Lee et al., MICCAI 2024: 12.4 ± 6.6 mL, tumor fraction .93 ± .12, 1.2 ± 1.0 rotated axes, Dice
    between experts .46, ICC of volumes .30, correlation of volume with tumor volume .50.

    Examples
    --------
    >>> from placement import simulate_gliomas
    >>> scenes, voxels = simulate_gliomas(2, random_state=0)
    >>> voxels.shape
    (2, 2, 9)
    """
    for name, value in (("n", n), ("n_experts", n_experts)):
        check_number(name, value, least=1, whole=True)
    check_word("experts", experts, _KINDS)
    unknown = [name for name in exclude if name not in REGIONS]
    if isinstance(exclude, str) or unknown:
        raise ValueError(
            f"exclude must be a sequence of names among {', '.join(REGIONS)}, not {exclude!r}"
        )
    steps = np.broadcast_to(np.asarray(spacing, dtype=np.float64), (3,))
    if not (np.isfinite(steps).all() and (steps > 0).all() and (steps <= 10).all()):
        raise ValueError(f"spacing must lie between 0 and 10 mm, not {spacing}")
    check_number("skip", skip, whole=True)
    seed = seed_from(random_state)
    scenes, voxels = [], np.empty((n, n_experts, 9))
    for i in range(skip, skip + n):
        head = _draw_head(steps, np.random.default_rng(seed_for(seed, "head", i)))
        regions = {
            "necrosis": head.necrosis,
            "ventricles": head.ventricles,
            "outside": ~head.brain,
        }
        options: dict[str, Any] = {"name": f"synthetic-{i + 1:03d}", "synthetic": True}
        options["exclude"] = {name: regions[name] for name in exclude} or None
        if image:
            options["image"] = _draw_image(head, np.random.default_rng(seed_for(seed, "image", i)))
        scenes.append(Scene(head.tumor, head.affine, **options))
        voxels[i - skip] = place_boxes(
            head.tumor,
            head.necrosis,
            head.affine,
            kind=experts,
            n_experts=n_experts,
            rngs=[np.random.default_rng(seed_for(seed, "expert", i, j)) for j in range(n_experts)],
            shared=np.random.default_rng(seed_for(seed, "case", i)),
        )
    return scenes, voxels


def _draw_head(steps: NDArray[np.float64], rng: np.random.Generator) -> _Head:
    """Draw brain, ventricles, lesion and necrosis."""
    axes = _BRAIN * rng.uniform(0.93, 1.07, 3)
    shape = np.ceil(2 * (axes + 6) / steps).astype(int)
    affine = np.diag([*steps, 1.0])
    affine[:3, 3] = -0.5 * (shape - 1) * steps
    grid = (
        np.stack(np.meshgrid(*(np.arange(k) for k in shape), indexing="ij"), axis=-1) * steps
        + affine[:3, 3]
    )
    brain = ((grid / axes) ** 2).sum(-1) < 1
    side = np.array([9.0, 0.0, 6.0])
    ventricles = np.zeros_like(brain)
    for sign in (-1, 1):
        ventricles |= (
            ((grid - side * (sign, 1, 1)) / (_VENTRICLE * rng.uniform(0.8, 1.2))) ** 2
        ).sum(-1) < 1
    allowed = brain & ~ventricles
    voxel_ml = float(np.prod(steps)) * _ML_PER_MM3
    volume = _draw_volume(rng)
    tumor = _draw_lesion(grid, allowed, axes, volume, voxel_ml, steps, rng)
    return _Head(brain, ventricles, tumor, _draw_necrosis(tumor, grid, volume, steps, rng), affine)


def _draw_volume(rng: np.random.Generator) -> float:
    while True:
        volume = _MEDIAN_VOLUME * np.exp(_LOG_SPREAD * rng.standard_normal())
        if TUMOR_VOLUMES[0] <= volume <= TUMOR_VOLUMES[1]:
            return float(volume)


def _draw_lesion(
    grid: NDArray[np.float64],
    allowed: NDArray[np.bool_],
    axes: NDArray[np.float64],
    volume: float,
    voxel_ml: float,
    steps: NDArray[np.float64],
    rng: np.random.Generator,
) -> NDArray[np.bool_]:
    """Fill the places nearest to a warped ellipsoid's center, or to an arc, up to the volume."""
    radius = (volume / _ML_PER_MM3 * 3 / (4 * np.pi)) ** (1 / 3)  # mm
    direction = rng.standard_normal(3)
    direction /= np.linalg.norm(direction)
    center = direction * axes * rng.uniform(0.3, 0.58)
    turn = _random_rotation(rng)
    local = (grid - center) @ turn
    if rng.random() < _BENT_SHARE:
        arc = np.linspace(-1, 1, 15) * rng.uniform(0.8, 1.5)
        bend = 1.1 * radius
        points = bend * np.stack(
            [np.cos(arc) - np.cos(arc).mean(), np.sin(arc), np.zeros_like(arc)], axis=-1
        )
        distance = np.min([((local - point) ** 2).sum(-1) for point in points], axis=0) ** 0.5
    else:
        stretch = np.exp(rng.normal(0, 0.16, 3))
        distance = ((local * (stretch / stretch.prod() ** (1 / 3))) ** 2).sum(-1) ** 0.5
    smooth = np.maximum(0.28 * radius, 3.0) / steps
    noise = gaussian_filter(rng.standard_normal(allowed.shape), smooth)
    noise /= noise.std()
    size = distance * np.exp(0.10 * noise)
    size[~allowed] = np.inf
    satellites = np.zeros_like(allowed)
    if rng.random() < _SATELLITE_SHARE:
        for _ in range(rng.integers(1, 4)):
            direction = rng.standard_normal(3)
            direction /= np.linalg.norm(direction)
            satellite = center + direction * radius * rng.uniform(1.5, 2.0)
            satellites |= ((grid - satellite) ** 2).sum(-1) < (
                radius * rng.uniform(0.15, 0.35)
            ) ** 2
        satellites &= allowed
    order = np.argsort(size, axis=None)
    filled = np.zeros(allowed.size, dtype=bool)
    filled[order[: max(round(volume / voxel_ml) - int(satellites.sum()), 1)]] = True
    components, n_components = label(filled.reshape(allowed.shape))
    if n_components > 1:
        # Crumbs at the rim are noise of the warp, not satellites.
        filled = (components == 1 + np.argmax(np.bincount(components.ravel())[1:])).ravel()
    return filled.reshape(allowed.shape) | satellites


def _draw_necrosis(
    tumor: NDArray[np.bool_],
    grid: NDArray[np.float64],
    volume: float,
    steps: NDArray[np.float64],
    rng: np.random.Generator,
) -> NDArray[np.bool_]:
    """Fill the deep part of a lesion, off its middle, with necrosis."""
    share = rng.uniform(0.05, 0.25)
    present = rng.random() < _NECROSIS_SHARE and volume > 10
    away = rng.standard_normal(3)
    noise = gaussian_filter(rng.standard_normal(tumor.shape), 5.0 / steps)
    if not present:
        return np.zeros_like(tumor)
    depth = distance_transform_edt(tumor, sampling=steps)
    score = (
        depth
        + 0.15 * (grid @ (away / np.linalg.norm(away)))
        + 0.15 * depth.max() * noise / noise.std()
    )
    score[depth < min(4.0, 0.4 * depth.max())] = -np.inf  # a rim of solid tumor stays
    k = int(min(share * tumor.sum(), np.isfinite(score).sum()))
    necrosis = np.zeros(tumor.size, dtype=bool)
    necrosis[np.argsort(-score, axis=None)[:k]] = True
    return necrosis.reshape(tumor.shape)


def _draw_image(head: _Head, rng: np.random.Generator) -> NDArray[np.float32]:
    """Paint a picture in arbitrary units with noise."""
    picture = np.where(head.brain, 1.0, 0.05)
    picture[head.ventricles] = 0.4
    picture[head.tumor] = 1.6
    picture[head.necrosis] = 0.5
    picture = gaussian_filter(picture, 0.5) + 0.06 * rng.standard_normal(picture.shape)
    return picture.astype(np.float32)


def _random_rotation(rng: np.random.Generator) -> NDArray[np.float64]:
    q, r = np.linalg.qr(rng.standard_normal((3, 3)))
    q = q * np.sign(np.diag(r))
    return q if np.linalg.det(q) > 0 else -q
