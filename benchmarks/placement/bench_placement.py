"""
How near does the optimizer of voxels come to the best known objective, and how much processor time
does it take?

Two series of 24 synthetic masks of 6 to 100 mL with fixed seeds, of which the search was tuned on
the first only; these are no patients. Each is placed in with and without the least volume of 6 mL,
by the optimizer (as it is, without its tie-break, and thorough) with free rotations and sides, and
within its default limits of two rotated axes and sides; those of the first series also by
a differential evolution of 90 000 evaluations on the same compiled evaluator, and by scipy's
Nelder–Mead from the centroid on a plain numpy evaluator that counts centers of image voxels. All
objectives are evaluated again by the accurate integral. Times are of the processor. Run from the
project's root:

    .venv/bin/python -m benchmarks.placement.bench_placement --reference   # the best known objectives,
    stored; minutes
    .venv/bin/python -m benchmarks.placement.bench_placement               # the comparison with them
    .venv/bin/python -m benchmarks.placement.bench_placement --quick --out FILE       # every sixth mask
"""

import argparse
import statistics
import time
from functools import partial
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.optimize import differential_evolution, minimize
from scipy.spatial.transform import Rotation

from benchmarks import _measure as measure
from benchmarks import _runs as runs
from placement import PlacementObjective, Scene, Voxel, VoxelOptimizer
from placement.box import overlap
from placement.search.scene_search import FINE, Search

N_MASKS = 24
SERIES = ("tuned on", "fresh")
EVOLUTION, PLAIN = "differential evolution, 90 000", "plain numpy and scipy"
SHAPE = (110, 110, 110)
LEAST = (0.0, 6.0)
LIMITS: dict[str, dict[str, object]] = {
    "free": {"max_rotations": 3, "max_aspect": None},
    "default": {},
}
EVALUATIONS = 90_000
RESULT = measure.RESULTS / "placement.json"
VARIANTS = {
    "optimizer, no tie-break": {"tie_break": 0.0, "thorough": False},
    "optimizer, thorough": {"tie_break": 0.0, "thorough": True},
    "optimizer, default": {},
}


def mask(number: int, series: int = 0) -> np.ndarray:
    """Make a lump with a rough outline; every third has an empty core."""
    rng = np.random.default_rng([series, number])
    volume = np.geomspace(6, 100, N_MASKS)[number] * 1000
    noise = gaussian_filter(rng.normal(size=SHAPE), rng.uniform(5, 11))
    noise /= noise.std()
    points = np.moveaxis(np.indices(SHAPE), 0, -1) - np.array(SHAPE) / 2
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    points = (points @ turn) * rng.uniform(0.75, 1.35, 3)
    height = -np.linalg.norm(points, axis=-1) + np.cbrt(volume * 3 / 4 / np.pi) * 0.35 * noise
    height[:4] = height[-4:] = height[:, :4] = height[:, -4:] = height[..., :4] = height[
        ..., -4:
    ] = -np.inf
    inside = height >= np.partition(height, -int(volume), axis=None)[-int(volume)]
    if number % 3 == 0:
        deep = gaussian_filter(inside.astype(np.float32), 6)
        inside &= deep <= np.quantile(deep[inside], 0.88)
    return inside


def evolution(scene: Scene, least: float, seed: int) -> float:
    """Search by differential evolution on the evaluator of the optimizer; its objective."""
    case = Search(
        VoxelOptimizer(
            min_volume=least, max_rotations=3, max_aspect=None, random_state=0
        )._wishes(),
        scene,
    )
    case.prepare()
    center = scene.centroid
    common = case.common(FINE)

    def costs(x: np.ndarray) -> np.ndarray:
        n = len(x)
        frames = np.full(n, 7), np.tile(np.eye(3), (n, 1, 1)), np.tile(center, (n, 1))
        return overlap.costs_of(np.ascontiguousarray(x), *frames, *common)

    reach = 0.6 * np.array(scene.occupancy.shape) * scene.spacing
    bounds = [*((-r, r) for r in reach), *[(np.log(10), np.log(60))] * 3, *[(-1.1, 1.1)] * 3]
    size = 15 * 9
    found = differential_evolution(
        lambda x: costs(x.T),
        bounds,
        popsize=15,
        maxiter=EVALUATIONS // size - 1,
        tol=0,
        rng=seed,
        polish=False,
        vectorized=True,
        updating="deferred",
    )
    best = Voxel.from_rotation(
        center + found.x[:3],
        np.exp(np.clip(found.x[3:6], *np.log((10, 60)))),
        Rotation.from_rotvec(found.x[6:]).as_matrix(),
    )
    return case.wishes.objective(best, scene)


def plain(scene: Scene, tumor: np.ndarray) -> float:
    """
    Search as one would write it first; its objective.

    scipy's Nelder–Mead with its own settings from the centroid, which maximizes the objective
    itself; numpy tells for all voxels around the tumor whether their centers lie in the box.
    """
    objective = PlacementObjective()
    window = tuple(
        slice(o, o + n) for o, n in zip(scene.origin, scene.occupancy.shape, strict=True)
    )
    inside = tumor[window].ravel()
    index = np.stack(
        np.meshgrid(*(np.arange(w.start, w.stop) for w in window), indexing="ij"), axis=-1
    )
    points = index.reshape(-1, 3) @ scene.affine[:3, :3].T + scene.affine[:3, 3]

    def minus(x: np.ndarray) -> float:
        voxel = Voxel(x[:3], np.clip(x[3:6], 10, 60), x[6:])
        held = inside[
            (np.abs((points - voxel.center) @ voxel.rotation) <= voxel.size / 2).all(axis=1)
        ]
        volume = held.sum() * scene.voxel_volume
        return -objective.value(min(volume / voxel.volume, 1.0), volume)

    start = np.array([*scene.centroid, 23.5, 23.5, 23.5, 0, 0, 0])
    simplex = np.vstack([start, start + np.diag([4.0, 4, 4, 4, 4, 4, 20, 20, 20])])
    found = minimize(minus, start, method="Nelder-Mead", options={"initial_simplex": simplex})
    return objective(Voxel(found.x[:3], np.clip(found.x[3:6], 10, 60), found.x[6:]), scene)


def reference(
    scenes: list[Scene], limits: str, known: dict[str, list[float]]
) -> dict[str, list[float]]:
    """Find the best known objectives: thorough searches, evolutions where rotations are free, and what was known."""
    best = {}
    for least in LEAST:
        rows = []
        for scene, before in zip(
            scenes, known.get(f"{least:g}", [0.0] * len(scenes)), strict=True
        ):
            values = [before]
            if limits == "free":
                values += [evolution(scene, least, seed) for seed in (0, 1)]
            # Seeds only turn the starts of free searches.
            for seed in range(100, 116) if limits == "free" else (100,):
                options = {"tie_break": 0.0, "thorough": True, "random_state": seed}
                values.append(placed(least, LIMITS[limits] | options, scene))
            optimizer = VoxelOptimizer(
                min_volume=least, tie_break=0, thorough=True, random_state=0, **LIMITS[limits]
            )
            search = Search(optimizer._wishes(), scene)
            for n_starts in (40, 80):
                values.append(search.simplest(search.run(n_starts, n_starts // 2))[1])
            rows.append(round(max(values), 6))
        best[f"{least:g}"] = rows
    return best


def placed(
    least: float, options: dict[str, object], scene: Scene, tumor: np.ndarray | None = None
) -> float:
    """Place by the optimizer; the objective."""
    options = {"random_state": 0} | options
    return VoxelOptimizer(min_volume=least, **options).placement(scene).objective


def evolved(least: float, scene: Scene, tumor: np.ndarray) -> float:
    """Place by differential evolution; the objective."""
    return evolution(scene, least, 7)


def compared(
    masks: str,
    limits: str,
    scenes: list[Scene],
    tumors: list[np.ndarray],
    best: dict[str, list[float]],
) -> list[dict[str, object]]:
    """Run all methods on all masks, one after the other on each."""
    rows = []
    for least in LEAST:
        methods = {
            name: partial(placed, least, LIMITS[limits] | options)
            for name, options in VARIANTS.items()
        }
        compares = masks == SERIES[0] and limits == "free"
        if compares:
            methods[EVOLUTION] = partial(evolved, least)
        if least == 0 and compares:
            methods[PLAIN] = plain
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
        for scene, tumor in zip(scenes, tumors, strict=True):
            for name, method in methods.items():
                fresh = Scene(tumor, scene.affine)
                start = time.process_time()
                value = method(fresh, tumor)
                found[name].append((value, time.process_time() - start))
        for name, pairs in found.items():
            gaps = [
                known - value for known, (value, _) in zip(best[f"{least:g}"], pairs, strict=True)
            ]
            milliseconds = [1000 * seconds for _, seconds in pairs]
            rows.append(
                {
                    "masks": masks,
                    "limits": limits,
                    "least_volume_mL": least,
                    "method": name,
                    "mean_gap": round(float(np.mean(gaps)), 5),
                    "median_gap": round(float(np.median(gaps)), 5),
                    "largest_gap": round(max(gaps), 4),
                    "n_gap_above_0.01": int(np.sum(np.array(gaps) > 0.01)),
                    "mean_ms": round(statistics.mean(milliseconds), 2),
                    "median_ms": round(statistics.median(milliseconds), 2),
                    "largest_ms": round(max(milliseconds), 2),
                    "objectives": [round(value, 5) for value, _ in pairs],
                }
            )
    return rows


def ratios(rows: list[dict]) -> dict[str, float]:
    """Compare the optimizer without its tie-break with the other searches on the first series."""
    found = {
        row["method"]: row
        for row in rows
        if (row["masks"], row["limits"], row["least_volume_mL"]) == (SERIES[0], "free", 0)
    }
    ours, evolved, plainly = (
        found[name] for name in ("optimizer, no tie-break", EVOLUTION, PLAIN)
    )
    ahead = np.subtract(ours["objectives"], plainly["objectives"])
    return {
        "times_faster_than_evolution": round(evolved["mean_ms"] / ours["mean_ms"], 1),
        "times_faster_than_plain": round(plainly["mean_ms"] / ours["mean_ms"], 1),
        "default_times_faster_than_evolution": round(
            evolved["mean_ms"] / found["optimizer, default"]["mean_ms"], 1
        ),
        "default_times_faster_than_plain": round(
            plainly["mean_ms"] / found["optimizer, default"]["mean_ms"], 1
        ),
        "least_lead_over_plain": round(float(ahead.min()), 5),
    }


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Compare with the best known objectives, or search for these again."""
    stored = measure.stored(RESULT)
    rows = []
    numbers = list(range(0, N_MASKS, 6 if chosen.quick else 1))
    for series, name in enumerate(SERIES):
        tumors = [mask(n, series) for n in numbers]
        scenes = [
            Scene(tumor, np.eye(4), name=f"synthetic {n}")
            for n, tumor in zip(numbers, tumors, strict=True)
        ]
        if series == 0:
            # Compiles.
            VoxelOptimizer(max_rotations=3, max_aspect=None, random_state=0).candidates(scenes[0], 2)
            evolution(scenes[0], 0, 0)
        for limits in LIMITS:
            key = f"best_known_{name}" + (f"_{limits}" if limits != "free" else "")
            if chosen.reference:
                stored[key] = reference(scenes, limits, stored.get(key, {}))
                continue
            best = {least: [values[n] for n in numbers] for least, values in stored[key].items()}
            rows += compared(name, limits, scenes, tumors, best)
    if chosen.reference:
        return stored
    known = {key: values for key, values in stored.items() if key.startswith("best_known")}
    data = f"two series of {N_MASKS} synthetic masks of 6 to 100 mL, fixed seeds; no patients"
    return known | {"data": data, "rows": rows, "ratios": ratios(rows)}


if __name__ == "__main__":
    runs.main(
        run,
        RESULT,
        code=("placement",),
        packages=("numpy", "scipy", "numba"),
        options={"--reference": {"action": "store_true", "help": "search for the best known objectives"}},
    )
