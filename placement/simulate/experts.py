"""Simulated experts: rules with noise that place boxes as a study's experts did on average."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.spatial.transform import Rotation

#: What each kind of simulated experts does; rules with noise, not people.
EXPERT_RULES = {
    "preference": (
        "goes to the thickest solid part, keeps off necrosis, wants a volume of its own and a box "
        "that is not long, and stays near its start"
    ),
    "objective": (
        "climbs to a maximum of the study's objective near its start, with a volume of its own in "
        "mind; necrosis is tumor to it"
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


@dataclass(frozen=True)
class _Habits:
    """What a kind of expert does; each number was chosen to meet the published moments."""

    log_volume: float  # mean of log mL at a lesion of 42 mL
    growth: float  # power of the lesion's volume, beside the limit that small lesions set
    between_cases: float  # sd of log volume that both experts of a case share
    between_experts: float  # sd of log volume of each placement
    rotated: tuple[float, float, float, float]  # chance of 0 … 3 rotated axes
    start: float  # mm, sd of where an expert starts about the common start
    apart: float  # chance that an expert starts anywhere in the lesion
    jitter: float  # mm, sd of the hand
    careless: float  # chance of a slip of about a centimeter


_HABITS = {
    "preference": _Habits(2.66, -0.05, 0.0, 0.72, (0.36, 0.27, 0.26, 0.11), 4.5, 0.28, 0.5, 0.03),
    "objective": _Habits(2.57, -0.05, 0.0, 0.68, (0.36, 0.27, 0.26, 0.11), 3.2, 0.28, 0.5, 0.03),
}


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
    habits = _HABITS[kind]
    steps = np.diag(affine)[:3]
    solid = tumor & ~necrosis
    aim = solid if kind == "preference" else tumor
    depth = distance_transform_edt(aim, sampling=steps)
    points = np.argwhere(aim)
    deep = depth[aim]
    volume = tumor.sum() * np.prod(steps) * _ML_PER_MM3
    common = habits.log_volume + habits.growth * np.log(volume / 42.0)
    common += habits.between_cases * shared.standard_normal()
    # The thickest part for those who look for it, else one of the thick ones.
    power = 40.0 if kind == "preference" else 4.0
    start = points[_draw(deep**power if deep.max() <= 1 else (deep / deep.max()) ** power, shared)]
    boxes = np.empty((n_experts, 9))
    for j, rng in enumerate(rngs):
        log_volume = common + habits.between_experts * rng.standard_normal()
        # No expert fills a small lesion to its last voxel.
        target = float(np.clip(np.exp(log_volume), _MIN_VOLUME, max(0.55 * volume, _MIN_VOLUME)))
        turned = np.zeros(3, dtype=bool)
        turned[rng.permutation(3)[: rng.choice(4, p=habits.rotated)]] = True
        alternative = points[_draw((deep / deep.max()) ** 2, rng)]
        at = (alternative if rng.random() < habits.apart else start) * steps + affine[:3, 3]
        at = at + habits.start * rng.standard_normal(3)
        share = _sampler(aim, affine)
        box = _search(at, target, turned, share, kind, rng)
        hand = habits.jitter * rng.standard_normal(3)
        # Drawn in any case, so that a slip does not change the later placements.
        slip = 8.0 * rng.standard_normal(3)
        box[:3] += hand + (slip if rng.random() < habits.careless else 0.0)
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
        points = (
            np.einsum("nij,nkj->nki", turns, unit[None] * boxes[:, None, 3:6]) + boxes[:, None, :3]
        )
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
        change = scale * 0.22 * rng.standard_normal((_PROPOSALS - 1, 3))
        boxes[1:, 3:6] *= np.exp(change)
        boxes[1:, 6:] += np.where(
            turned, scale * 12 * rng.standard_normal((_PROPOSALS - 1, 3)), 0.0
        )
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
            value = (
                -0.5 * ((inside - _SHARE) / _SHARE_SD) ** 2
                - 0.5 * ((inside * whole - volume) / (_VOLUME_SD * volume)) ** 2
            )
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
