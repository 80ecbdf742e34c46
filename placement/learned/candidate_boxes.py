"""Candidate boxes of a tumor for the ranker: of the objective, cubes, and boxes of a volume."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from placement.box import overlap
from placement.box.overlap import Preference
from placement.box.row_integrals import Rows
from placement.box.voxel import MM3_PER_ML, allowed_sides
from placement.learned.features import EYE, Surroundings
from placement.search.objective import PlacementObjective
from placement.search.scene import Scene
from placement.search.scene_search import COARSE, COARSE_STEPS, Search, Wishes, join_boxes

#: Starts of the search for boxes of large objectives, and how many are made exact.
N_STARTS, N_FINE = 12, 8

#: Boxes whose centers or sides differ by less than this are one, in mm.
SAME_MM = 1.5

#: Least distance of the thickest points of a tumor at which cubes are tried, in mm.
PLACES_APART_MM = 6.0

#: What boxes of a volume shall be: part of tumor with its spread, spread of the volume relative to
#: it, and what 10 mm away from their place adds to the cost.
PURE, PURE_SPREAD, VOLUME_SPREAD, NEARNESS = 0.98, 0.03, 0.15, 0.6

#: Spread of the volume of boxes that are moved off excluded regions, relative to experts' median.
MOVED_SPREAD = 0.5

#: Evaluations of the search for a box of a volume.
N_STRETCHING = 100

#: Boxes of a volume take no more than this part of a tumor.
LARGEST_PART = 0.6


class FreeTumorSearch(Search):
    """A search of the tumor less what is excluded from it, which knows no other exclusions."""

    def __init__(self, wishes: Wishes, scene: Scene) -> None:
        super().__init__(wishes, scene)
        if self.avoided:
            usable = self.scene.occupancy * ~self.excluded_voxels(strict=False)
            # Where all of it is excluded, any box is as bad as another.
            if usable.any():
                self.see(Rows.of(usable, self.scene.affine, self.scene.origin))
        self.avoided = {}


def candidate_boxes(
    search: FreeTumorSearch,
    surroundings: Surroundings,
    volumes: NDArray[np.float64],
    n_candidates: int,
    n_places: int,
) -> NDArray[np.float64]:
    """Find boxes (n, 5, 3), first those of large objectives."""
    fine = search.run(min(N_STARTS, n_candidates), min(N_FINE, n_candidates), every=True)
    best = fine.distinct(n_candidates, SAME_MM).boxes
    places = surroundings.thick_places(n_places, PLACES_APART_MM)
    centers = np.concatenate([surroundings.middles(), places.reshape(-1, 3)])
    sides = np.array([_sides(volume, search.wishes) for volume in volumes])
    cubes = np.zeros((len(centers), len(sides), 5, 3))
    # Experts often choose plain cubes where the tumor is thick, which the objective ranks low.
    cubes[:, :, 0] = centers[:, None]
    cubes[:, :, 1] = sides
    cubes[:, :, 2:] = EYE
    # The largest volume is rare among experts, and such a box ends where the cube does.
    adapted = _boxes_of_volumes(search, centers, volumes[:-1])
    return np.concatenate([best, cubes.reshape(-1, 5, 3), adapted])


def moved_off(
    boxes: NDArray[np.float64], search: FreeTumorSearch, volumes: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Move those of the boxes (n, 5, 3) off excluded regions that touch any: (m, 5, 3)."""
    touching = [bool(search.touched(search.voxel(box))) for box in boxes]
    boxes = boxes[np.array(touching, dtype=bool)]
    if not len(boxes):
        return boxes
    volume = max(float(np.median(volumes)), search.wishes.min_volume)
    objective = PlacementObjective(volume, MOVED_SPREAD * volume, PURE, PURE_SPREAD)
    mover = Search(replace(search.wishes, objective=objective), search.scene)
    mover.prepare()
    # Searches of fewer rotated axes begin with unturned boxes.
    is_free = search.wishes.max_rotations == 3
    starts = [
        mover.spread(
            box[:1], box[1:2], (7 if is_free else 0,), box[None, 2:] if is_free else EYE[None]
        )
        for box in boxes
    ]
    return mover.cleared(join_boxes(*starts)).boxes


def _boxes_of_volumes(
    search: FreeTumorSearch, centers: NDArray[np.float64], volumes: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Stretch cubes along the scanner's axes to the tumor around their centers: (n, 5, 3)."""
    wishes = search.wishes
    steps = np.array(COARSE_STEPS)
    rounds = np.array([[1, N_STRETCHING]])
    boxes = []
    for volume in volumes:
        part = max(wishes.min_volume, min(volume, LARGEST_PART * search.scene.tumor_volume))
        objective = PlacementObjective(
            part, VOLUME_SPREAD * part, PURE, PURE_SPREAD, one_sided=True
        )
        search.wishes = replace(wishes, objective=objective)
        problem = search.common(COARSE)
        for center in centers:
            start = search.spread(center[None], _sides(part, wishes)[None], (0,), EYE[None])
            limits = problem.limits._replace(preference=Preference(NEARNESS, center))
            near = problem._replace(limits=limits)
            boxes.append(overlap.descend(*start[:4], near, steps, rounds, 1e-3)[2])
    search.wishes = wishes
    return np.concatenate(boxes)


def _sides(volume: float, wishes: Wishes) -> NDArray[np.float64]:
    """Give the sides of a cube in mm, or of the nearest box that is allowed."""
    volume = max(volume, wishes.min_volume)
    sides = np.full(3, np.cbrt(volume * MM3_PER_ML))
    return allowed_sides(sides, wishes.sizes, volume)
