"""Synthetic gliomas in synthetic heads, and simulated experts who place a box in each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter
from scipy.spatial.transform import Rotation

from dmrifit._utils.affines import MM3_PER_ML
from dmrifit._utils.checks import check_number, check_word
from dmrifit._utils.randomness import RandomState, Seed
from dmrifit.simulate.gliomas import Glioma
from dmrifit.simulate.heads import Head, StandardHead, check_spacing
from placement.search.scene import Scene

__all__ = ["simulate_gliomas"]

ExpertKind: TypeAlias = Literal["objective", "preference"]

#: Smallest and largest lesion in mL.
TUMOR_VOLUMES = (2.0, 120.0)

#: What scenes can list as excluded.
REGIONS = ("necrosis", "ventricles", "outside")

_MEDIAN_VOLUME, _LOG_SPREAD = 42.0, 0.8  # of lesions in mL, before they are cut at the limits
_MARGIN = 10.0  # mm of background at each side of an adult's brain, which a large one fills
_SCALES = (0.93, 1.0)  # of an adult's axes
_VENTRICLES = (-1.5, 3.0)  # mm by which their walls lie further out
_NECROSIS_ODDS, _NECROSIS = 0.45, (0.05, 0.25)  # of lesions above a volume; of their volume
_NECROSIS_FROM = 10.0  # mL
_SATELLITES = 0.25  # of lesions
# Signals after contrast agent, of white matter's.
_GRAY, _DEEP, _FLUID, _AIR = 0.85, 0.92, 0.4, 0.05
_RIM, _CORE, _EDEMA = 1.6, 0.5, 0.15
_EDEMA_REACH = 1.3  # of the distance to the border
_BLUR, _NOISE = 0.5, 0.06  # voxels, of white matter's signal
_LARGEST_VOXEL = 10.0  # mm


#: What each kind of simulated experts does; rules with noise, not people.
EXPERT_RULES = {
    "preference": (
        "starts at the thickest solid part, avoids necrosis, prefers a volume of its own and a "
        "box that is not elongated, and stays near the start"
    ),
    "objective": (
        "climbs to a maximum of the study's objective near its start, prefers a volume of its "
        "own, and treats necrosis as tumor"
    ),
}

_ML_PER_MM3 = 1e-3
_MIN_VOLUME = 6.0  # mL, as the experts were told
_SIDES = (10.0, 60.0)  # mm
_POINTS = 5  # sample points along each side of a box
_ROUNDS, _PROPOSALS = 5, 128

# Of experts with a preference: parts that are no solid tumor, log of the volume over the one in
# mind, mm from the start, log of the longest over the shortest side.
_OUTSIDE_SD, _LOG_VOLUME_SD, _DISTANCE_SD, _ELONGATION_SD = 0.022, 0.12, 9.0, 0.5
# Of experts with the objective: the share of tumor, and its volume in the box over that in mind.
_SHARE, _SHARE_SD, _VOLUME_SD = 0.97, 0.04, 0.2


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

    These are not patients, and the experts are not clinical experts: they are rules with noise,
    written so that summary figures of their boxes come close to those that a study printed for its
    five experts. Agreement with them says nothing about agreement with people.

    A lesion of 2 to 120 mL lies in a brain that is warped from one of gray and white matter and
    fluid: a rough ellipsoid, or in some cases a bent one; some have a rim around a necrotic core,
    some satellites. The tumor of a scene is the whole lesion, its necrosis too, without edema.

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
    Over 125 cases of one seed, boxes of the two kinds ("preference", "objective") had 11.6 ± 6.3
    and 12.5 ± 6.6 mL, tumor fractions of .91 ± .12 and .91 ± .11, 1.2 rotated axes, Dice of .48
    and .48 between experts, ICC of volumes of .22 and .24, and correlations of volume with tumor
    volume of .54 and .45. In 125 cases, an ICC varies by .1.

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
    check_word("experts", experts, EXPERT_RULES)
    for name in exclude:
        check_word("exclude", name, REGIONS)
    edges = check_spacing(spacing, most=_LARGEST_VOXEL)
    check_number("skip", skip, whole=True)
    seed = Seed(random_state)
    scenes, voxels = [], np.empty((n, n_experts, 9))
    for i in range(skip, skip + n):
        head, glioma = _draw_patient(edges, seed.rng("head", i))
        regions = {"necrosis": glioma.core, "ventricles": head.ventricles > 0.5}
        regions["outside"] = ~head.brain
        options: dict[str, Any] = {"name": f"synthetic-{i + 1:03d}", "synthetic": True}
        options["exclude"] = {name: regions[name] for name in exclude} or None
        if image:
            options["image"] = _draw_image(head, glioma, seed.rng("image", i))
        scenes.append(Scene(glioma.tumor, head.affine, **options))
        voxels[i - skip] = place_boxes(
            glioma.tumor,
            glioma.core,
            head.affine,
            kind=experts,
            n_experts=n_experts,
            rngs=[seed.rng("expert", i, j) for j in range(n_experts)],
            shared=seed.rng("case", i),
        )
    return scenes, voxels


def _draw_patient(
    spacing: tuple[float, float, float], rng: np.random.Generator
) -> tuple[Head, Glioma]:
    """Draw a head and a lesion of a random volume."""
    head_stream, glioma_stream = rng.spawn(2)
    standard = StandardHead.of(spacing)
    x, y, z = (int(n) for n in np.ceil(2 * (standard.half_axes + _MARGIN) / spacing))
    head = Head.draw(
        (x, y, z),
        spacing,
        head_stream,
        standard=standard,
        growth=rng.uniform(*_VENTRICLES),
        scale=rng.uniform(*_SCALES, 3),
    )
    volume = _draw_volume(rng)
    necrosis = rng.uniform(*_NECROSIS)
    if rng.random() >= _NECROSIS_ODDS or volume <= _NECROSIS_FROM:
        necrosis = 0.0
    glioma = Glioma.draw(
        head,
        head.brain & (head.ventricles <= 0.5),
        (volume * MM3_PER_ML * 3 / (4 * np.pi)) ** (1 / 3),
        glioma_stream,
        necrosis=necrosis,
        satellites=_SATELLITES,
    )
    return head, glioma


def _draw_volume(rng: np.random.Generator) -> float:
    while True:
        volume = _MEDIAN_VOLUME * np.exp(_LOG_SPREAD * rng.standard_normal())
        if TUMOR_VOLUMES[0] <= volume <= TUMOR_VOLUMES[1]:
            return float(volume)


def _draw_image(head: Head, glioma: Glioma, rng: np.random.Generator) -> NDArray[np.float32]:
    """Paint a picture in arbitrary units with noise."""
    picture = head.white + _GRAY * head.gray + _DEEP * head.deep + _FLUID * head.fluid
    picture -= _EDEMA * glioma.edema(head, _EDEMA_REACH)
    picture[~head.brain] = _AIR
    picture[glioma.tumor] = _RIM
    picture[glioma.core] = _CORE
    noise = rng.standard_normal(picture.shape, dtype=np.float32)
    return gaussian_filter(picture, _BLUR) + np.float32(_NOISE) * noise


# Habits of both kinds of experts; each number was chosen to meet the published moments.
_GROWTH = -0.05  # power of the lesion's volume, beside the limit that small lesions set
_ROTATED = (0.36, 0.27, 0.26, 0.11)  # chance of 0 … 3 rotated axes
_APART = 0.28  # chance that an expert starts anywhere in the lesion
_JITTER, _CARELESS = 0.5, 0.03  # mm, sd of the hand; chance of a slip of about a centimeter

# By kind of experts: mean of log mL at a lesion of 42 mL, its sd between placements, and sd in mm
# of where an expert starts about the common start.
_HABITS = {"preference": (2.66, 0.72, 4.5), "objective": (2.57, 0.68, 3.2)}


def place_boxes(
    tumor: NDArray[np.bool_],
    necrosis: NDArray[np.bool_],
    affine: NDArray[np.float64],
    *,
    kind: str,
    n_experts: int,
    rngs: Sequence[np.random.Generator],
    shared: np.random.Generator,
) -> NDArray[np.float64]:
    """
    Place boxes in a lesion as simulated experts do.

    Shapes: `tumor`, `necrosis` (x, y, z); returns (n_experts, 9).
    """
    mean_log_volume, sd_log_volume, start_sd = _HABITS[kind]
    steps = np.diag(affine)[:3]
    aim = tumor & ~necrosis if kind == "preference" else tumor
    depth = distance_transform_edt(aim, sampling=steps)
    points = np.argwhere(aim)
    deep = depth[aim]
    volume = tumor.sum() * np.prod(steps) * _ML_PER_MM3
    common = mean_log_volume + _GROWTH * np.log(volume / 42.0)
    # Experts of a case share no deviation; the number is drawn so that seeds keep their boxes.
    shared.standard_normal()
    # The thickest part for those who look for it, else one of the thick ones.
    power = 40.0 if kind == "preference" else 4.0
    start = points[_draw(deep**power if deep.max() <= 1 else (deep / deep.max()) ** power, shared)]
    boxes = np.empty((n_experts, 9))
    for j, rng in enumerate(rngs):
        log_volume = common + sd_log_volume * rng.standard_normal()
        # No expert fills a small lesion to its last voxel.
        target = float(np.clip(np.exp(log_volume), _MIN_VOLUME, max(0.55 * volume, _MIN_VOLUME)))
        turned = np.zeros(3, dtype=bool)
        turned[rng.permutation(3)[: rng.choice(4, p=_ROTATED)]] = True
        alternative = points[_draw((deep / deep.max()) ** 2, rng)]
        at = (alternative if rng.random() < _APART else start) * steps + affine[:3, 3]
        at = at + start_sd * rng.standard_normal(3)
        box = _search(at, target, turned, _sampler(aim, affine), kind, rng)
        hand = _JITTER * rng.standard_normal(3)
        # Drawn in any case, so that a slip does not change the later placements.
        slip = 8.0 * rng.standard_normal(3)
        box[:3] += hand + (slip if rng.random() < _CARELESS else 0.0)
        boxes[j] = _rounded(box, turned)
    return boxes


def _draw(weights: NDArray[np.float64], rng: np.random.Generator) -> int:
    return int(rng.choice(len(weights), p=weights / weights.sum()))


def _sampler(
    mask: NDArray[np.bool_], affine: NDArray[np.float64]
) -> Callable[[NDArray[np.float64]], Any]:
    """Give a function that estimates which share of each box lies in the mask."""
    line = (np.arange(_POINTS) + 0.5) / _POINTS - 0.5
    unit = np.stack(np.meshgrid(line, line, line, indexing="ij"), axis=-1).reshape(-1, 3)
    padded = np.pad(mask, 1)
    last = np.array(padded.shape) - 1
    steps, origin = np.diag(affine)[:3], affine[:3, 3]

    def share(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        turns = Rotation.from_euler("XYZ", boxes[:, 6:], degrees=True).as_matrix()
        points = np.einsum("nij,nkj->nki", turns, unit[None] * boxes[:, None, 3:6])
        points += boxes[:, None, :3]
        index = np.clip(np.rint((points - origin) / steps).astype(np.intp) + 1, 0, last)
        return padded[index[..., 0], index[..., 1], index[..., 2]].mean(axis=1)

    return share


def _search(
    at: NDArray[np.float64],
    volume: float,
    turned: NDArray[np.bool_],
    share: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    kind: str,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Improve a box by random changes that become smaller."""
    side = (volume / _ML_PER_MM3) ** (1 / 3)
    best = np.concatenate([at, np.full(3, side), np.where(turned, rng.normal(0, 12, 3), 0.0)])
    best_value = -np.inf
    for k in range(_ROUNDS):
        scale = 0.55**k
        boxes = np.repeat(best[None], _PROPOSALS, axis=0)
        # The first box stays as it is, so that a round cannot lose the best.
        boxes[1:, :3] += scale * 3.5 * rng.standard_normal((_PROPOSALS - 1, 3))
        boxes[1:, 3:6] *= np.exp(scale * 0.22 * rng.standard_normal((_PROPOSALS - 1, 3)))
        turn = scale * 12 * rng.standard_normal((_PROPOSALS - 1, 3))
        boxes[1:, 6:] += np.where(turned, turn, 0.0)
        boxes[:, 3:6] = np.clip(boxes[:, 3:6], *_SIDES)
        boxes[:, 6:] = np.clip(boxes[:, 6:], -40, 40)
        inside, whole = share(boxes), boxes[:, 3:6].prod(axis=1) * _ML_PER_MM3
        if kind == "preference":
            off = np.linalg.norm(boxes[:, :3] - at, axis=1)
            long = np.ptp(np.log(boxes[:, 3:6]), axis=1)
            value = -0.5 * ((1 - inside) / _OUTSIDE_SD) ** 2
            value = value - 0.5 * (np.log(whole / volume) / _LOG_VOLUME_SD) ** 2
            value -= 0.5 * (off / _DISTANCE_SD) ** 2 + 0.5 * (long / _ELONGATION_SD) ** 2
        else:
            value = -0.5 * ((inside - _SHARE) / _SHARE_SD) ** 2
            value -= 0.5 * ((inside * whole - volume) / (_VOLUME_SD * volume)) ** 2
        value -= 50 * np.maximum(_MIN_VOLUME - whole, 0)
        i = int(np.argmax(value))
        if value[i] > best_value:
            best, best_value = boxes[i], value[i]
    return best


def _rounded(box: NDArray[np.float64], turned: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Round to a console's steps; rotated axes stay rotated, and the least volume is met."""
    box = box.copy()
    box[:3] = box[:3].round(1)
    box[3:6] = np.clip(box[3:6].round(), *_SIDES)
    while box[3:6].prod() * _ML_PER_MM3 < _MIN_VOLUME:
        box[3 + int(np.argmin(box[3:6]))] += 1
    angles = np.where(turned, box[6:].round(), 0.0)
    box[6:] = np.where(turned & (angles == 0), 1.0, angles)
    return box
