"""
Which placer agrees best with simulated experts, and at what cost?

    .venv/bin/python -m benchmarks.placement.bench_placers [--seeds 1 2 3] [--kinds preference objective]
    [--work FOLDER] .venv/bin/python -m benchmarks.placement.bench_placers --quick --out FILE

For each seed and kind of simulated experts 125 synthetic gliomas are made; placers learn from 100
and place in 25. The experts are rules with noise, not clinical experts. What is finished is kept in
the folder FOLDER (default build/placers) and not repeated as long as the code is the same; a
training that was interrupted goes on. Everything runs on one thread, and times are of the
processor.

"third expert" is another simulated expert of the same cases, "medoid of ten experts" of ten more the
box that agrees most with the other nine: what one box for each case can reach. "tolerating" placers may
hold 5 % of what is excluded, as experts' boxes hold some necrosis.
"""

import argparse
import functools
import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks import _boards as boards
from benchmarks import _measure as measure
from benchmarks import _runs as runs
from dmrifit import Training
from dmrifit.io.atomic_files import write_text
from placement import (
    Scene,
    Voxel,
    VoxelOptimizer,
    VoxelRanker,
    VoxelRegressor,
    evaluate_placements,
    simulate_gliomas,
)
from placement.study.evaluation import CONTROLS, EXPERTS, control_placements

RESULT = measure.RESULTS / "placers.json"
SEEDS = (20261126, 20261127, 20261128, 20261129, 20261130)
KINDS = ("preference", "objective")
ORACLE = "best of 40 candidates"
N_CASES, N_QUICK_CASES, N_FOLDS = 125, 25, 5
EXCLUDING = ("tumor", "distance", "exclude")
TRAINED = ("network", "network fast", "network, exclude channel")
#: Further simulated experts of the same cases, and how many there are beside the two.
THIRD, MEDOID, N_MORE = "third expert", "medoid of ten experts", 11
TOLERANCE = 0.05  # of a box
MEASURES = (
    "f_tumor",
    "volume",
    "dice_closest",
    "dice_mean",
    "dice_fair",
    "rotated_axes",
    "necrosis",
)
#: Rooms that every box depends on, and those that only one kind of placer does.
OF_BOXES = (
    *("placement.box", "placement.search", "placement.simulate"),
    *("dmrifit._utils", "dmrifit.simulate"),
)
OF_KIND = {
    "ranker": ("placement.learned.features", "placement.learned.ranker"),
    "network": (
        *("placement.learned.pose_network", "placement.learned.regressor"),
        *("placement.learned.views", "dmrifit.networks"),
    ),
}
#: Differences of the mean Dice with the closest expert, and what they are to reach on experts with
#: a preference.
DIFFERENCES = (
    ("network", "objective", 0.05),
    ("network refined", "objective", 0.05),
    ("network fast", "objective", 0.05),
    ("network, exclude channel", "objective", 0.05),
    ("ranker", "objective", 0.10),
    ("ranker, excluding", "objective", 0.10),
    ("optimizer", "objective", None),
    ("network", "centroid box", None),
    ("network refined", "network", None),
    ("network fast", "network", None),
    ("network, exclude channel", "network", None),
    ("optimizer, excluding", "optimizer", None),
    ("ranker, excluding", "ranker", None),
    ("ranker, tolerating", "ranker, excluding", None),
    ("network, exclude channel, refined", "network, exclude channel", None),
    ("network, exclude channel", THIRD, None),
    ("ranker", "network", None),
)


class Case:
    """The synthetic cases of one seed and kind, divided."""

    def __init__(self, kind: str, seed: int, n: int) -> None:
        scenes, self.voxels = simulate_gliomas(
            n, experts=kind, exclude=("necrosis",), random_state=seed
        )
        self.excluding = scenes
        self.plain = [Scene(one.tumor, one.affine, name=one.name) for one in scenes]
        self.tolerating = [
            Scene(
                one.tumor,
                one.affine,
                exclude=dict(one.forbidden) or None,
                exclude_tolerance=TOLERANCE,
                name=one.name,
            )
            for one in scenes
        ]
        held_out = boards.case_folds(n, n_folds=N_FOLDS, random_state=seed) == 1
        self.train, self.test = np.flatnonzero(~held_out), np.flatnonzero(held_out)

    def learned(self, seen: str = "plain") -> tuple[list[Scene], np.ndarray]:
        scenes = getattr(self, seen)
        return [scenes[int(i)] for i in self.train], self.voxels[self.train]

    def placed(self, seen: str = "plain") -> list[Scene]:
        scenes = getattr(self, seen)
        return [scenes[int(i)] for i in self.test]


def entrants(
    case: Case, kind: str, seed: int, training: Path, quick: bool
) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """Name placers, say which scenes they see, and how to train them."""
    learning: dict[str, Any] = {
        "training": Training(epochs=2 if quick else None, checkpoint=str(training)),
        "device": "cpu",
        "random_state": seed,
    }
    ranking: dict[str, Any] = {"random_state": seed}
    if quick:
        ranking["n_candidates"] = 10

    def ranker(seen: str) -> Any:
        return VoxelRanker(**ranking).fit(*case.learned(seen))

    @functools.cache
    def network(seen: str, **options: Any) -> Any:
        return VoxelRegressor(**options, **learning).fit(*case.learned(seen))

    slow = {"fast": False, "refine": False}
    excluding_network = functools.partial(network, "excluding", channels=EXCLUDING, **slow)
    objective = functools.partial(free_optimizer, seed, tie_break=0.0)
    optimizer = functools.partial(free_optimizer, seed)
    yield "objective", "plain", objective
    yield "objective of experts' moments", "plain", lambda: objective().fit(*case.learned())
    yield "optimizer", "plain", optimizer
    yield "ranker", "plain", lambda: ranker("plain")
    yield "network", "plain", lambda: network("plain", **slow)
    yield "network refined", "plain", lambda: network("plain", **slow).set_params(refine=True)
    yield "network fast", "plain", lambda: network("plain", fast=True, refine=False)
    if kind == "preference":  # the others do not know of necrosis
        yield "optimizer, excluding", "excluding", optimizer
        yield "ranker, excluding", "excluding", lambda: ranker("excluding")
        yield "optimizer, tolerating", "tolerating", optimizer
        yield "ranker, tolerating", "tolerating", lambda: ranker("tolerating")
        yield "network, exclude channel", "excluding", excluding_network
        refined = "network, exclude channel, refined"
        yield refined, "excluding", lambda: excluding_network().set_params(refine=True)


def free_optimizer(seed: int, **options: Any) -> VoxelOptimizer:
    """Make an optimizer of boxes that may be turned about all axes, and be as long as they like."""
    return VoxelOptimizer(max_rotations=3, max_aspect=None, random_state=seed, **options)


def code_digest(name: str) -> str:
    """Digest of the code that the boxes of a placer depend on, so that work on another one does not count."""
    own = [rooms for kind, rooms in OF_KIND.items() if name.startswith(kind)]
    return boards.code_digest(*OF_BOXES, *itertools.chain.from_iterable(own))


def run_seed(kind: str, seed: int, work: Path, *, quick: bool) -> dict[str, Any]:
    """Train and place for one seed, whatever is not done yet."""
    folder = work / f"{kind}-{seed}{'-quick' if quick else ''}"
    path = folder / "placed.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    placers = [name for name, *_ in entrants(None, kind, seed, folder, quick)]  # type: ignore[arg-type]
    names = [*placers, ORACLE, THIRD, MEDOID]
    code = {name: code_digest(name) for name in names}
    kept = {name: before[name] for name in names if before.get(name, {}).get("code") == code[name]}
    changed = sorted({*before} - {*kept})
    if changed:
        print(
            f"{kind} {seed}: done again, because the code has changed: {', '.join(changed)}",
            flush=True,
        )
    case = Case(kind, seed, N_QUICK_CASES if quick else N_CASES)
    warm_up(case)
    # A training is gone on with by the code that began it.
    training = folder / f"training-{code['network'][:12]}"
    for name, seen, train in entrants(case, kind, seed, training, quick):
        if name in kept:
            continue
        begun = {*training.glob("*/state.safetensors")}
        start = time.process_time()
        placer = train()
        seconds = time.process_time() - start
        boxes, times = [], []
        scenes = case.placed(seen)
        placer.place(scenes[0])
        for scene in map(fresh, scenes):
            start = time.process_time()
            boxes.append(placer.place(scene).as_array().tolist())
            times.append(time.process_time() - start)
        # Of a training that was begun in an earlier run the time is not known.
        known = name in ("ranker", *TRAINED) and len(
            {*training.glob("*/state.safetensors")} - begun
        ) == (name in TRAINED)
        measured = seconds if known else None
        kept[name] = {"code": code[name], "boxes": boxes, "seconds": times, "training_s": measured}
        write_text(path, json.dumps(kept))
        print(f"{kind} {seed}: {name}, {seconds:.0f} s of training", flush=True)
    if ORACLE not in kept:
        kept[ORACLE] = {
            "code": code[ORACLE],
            "boxes": oracle(case, seed),
            "seconds": None,
            "training_s": None,
        }
        write_text(path, json.dumps(kept))
    if THIRD not in kept or MEDOID not in kept:
        for name, boxes in further_experts(case, kind, seed).items():
            kept[name] = {"code": code[name], "boxes": boxes, "seconds": None, "training_s": None}
        write_text(path, json.dumps(kept))
    return evaluated(case, {name: kept[name] for name in names}, seed)


def fresh(scene: Scene) -> Scene:
    """Make a scene anew, so that nothing that it keeps from an earlier placement makes the next one faster."""
    return Scene(
        np.asarray(scene.tumor),
        scene.affine,
        exclude=dict(scene.forbidden) or None,
        exclude_tolerance=scene.tolerances,
        name=scene.name,
    )


def warm_up(case: Case) -> None:
    """Let everything be compiled before it is timed."""
    for scenes in (case.plain, case.excluding):
        free_optimizer(0).place(scenes[0])
        free_optimizer(0).candidates(scenes[0], 3)


def oracle(case: Case, seed: int) -> list[list[float]]:
    """Of 40 candidates, take the one nearest to an expert's box: no method can know it, none that chooses is better."""
    found = []
    for scene, pair in zip(case.placed(), case.voxels[case.test], strict=True):
        experts = [Voxel.from_array(box) for box in pair]
        candidates = [voxel for voxel, _ in free_optimizer(seed).candidates(scene, 40)]
        nearest = max(candidates, key=lambda voxel: max(voxel.dice(e) for e in experts))
        found.append(nearest.as_array().tolist())
    return found


def further_experts(case: Case, kind: str, seed: int) -> dict[str, list[list[float]]]:
    """Give the boxes of a third expert, and of ten more the one that agrees most with the others."""
    found: dict[str, list[list[float]]] = {THIRD: [], MEDOID: []}
    for i in case.test:
        _, voxels = simulate_gliomas(
            1, n_experts=2 + N_MORE, experts=kind, skip=int(i), random_state=seed
        )
        assert np.array_equal(voxels[0, :2], case.voxels[i])
        third, *ten = [Voxel.from_array(row) for row in voxels[0, 2:]]
        agreement = [sum(a.dice(b) for b in ten) for a in ten]
        found[THIRD].append(third.as_array().tolist())
        found[MEDOID].append(ten[int(np.argmax(agreement))].as_array().tolist())
    return found


def evaluated(case: Case, kept: dict[str, Any], seed: int) -> dict[str, Any]:
    """Give the tables of the evaluation, and what lies in necrosis."""
    scenes, experts = case.placed(), case.voxels[case.test]
    placements = {name: np.array(one["boxes"]) for name, one in kept.items()}
    seconds = {name: one["seconds"] for name, one in kept.items() if one["seconds"] is not None}
    tables = evaluate_placements(scenes, experts, placements, seconds=seconds, random_state=seed)
    cases = tables["cases"]
    controls = control_placements(scenes, experts, random_state=seed)
    boxes: dict[str, Any] = {
        name: value[:, None] for name, value in (placements | controls).items()
    }
    boxes[EXPERTS] = experts
    lying = {
        (name, i): np.mean([in_necrosis(Voxel.from_array(box), scene) for box in own[i]])
        for name, own in boxes.items()
        for i, scene in enumerate(case.placed("excluding"))
    }
    cases["necrosis"] = [lying.get((one.method, one.case), np.nan) for one in cases.itertuples()]
    return {
        "tables": {
            name: json.loads(table.to_json(orient="records")) for name, table in tables.items()
        },
        "training_s": {name: one["training_s"] for name, one in kept.items()},
    }


def in_necrosis(box: Voxel, scene: Scene) -> float:
    """Give the part of a box that is necrosis."""
    rows = scene.forbidden_rows["necrosis"]
    return 0.0 if rows is None else float(rows.fraction(box, row_mm=1.0))


def spread(values: Any) -> dict[str, float]:
    """Mean and standard error over seeds."""
    found = np.array(values, dtype=float)
    error = found.std(ddof=1) / np.sqrt(len(found)) if len(found) > 1 else float("nan")
    return {"mean": round(float(found.mean()), 5), "se": measure.rounded(error, 5)}


def summary(runs: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Average over cases, then over seeds; differences are taken within each seed."""
    by_seed = {}
    for seed, run in runs.items():
        cases = pd.DataFrame(run["tables"]["cases"])
        by_seed[seed] = cases.groupby("method", sort=False)[[*MEASURES, "seconds"]].mean()
    methods = list(next(iter(by_seed.values())).index)
    rows = []
    for name in methods:
        row: dict[str, Any] = {"method": name}
        for key in MEASURES:
            row[key] = spread([one.loc[name, key] for one in by_seed.values()])
        times = [one.loc[name, "seconds"] for one in by_seed.values()]
        row["cpu_ms"] = None if np.isnan(times).any() else spread([1e3 * t for t in times])
        training = [run["training_s"].get(name) for run in runs.values()]
        known = [t for t in training if t is not None]
        row["training_s"] = spread(known) if known else None
        rows.append(row)
    differences = []
    for one, other, goal in DIFFERENCES:
        if one not in methods:
            continue
        each = [
            float(table.loc[one, "dice_closest"] - table.loc[other, "dice_closest"])
            for table in by_seed.values()
        ]
        differences.append(
            {
                "what": f"{one} − {other}",
                "goal": goal,
                "by_seed": np.round(each, 4).tolist(),
                **spread(each),
            }
        )
    return {"methods": rows, "differences": differences}


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Run everything."""
    by_kind: dict[str, Any] = {}
    for kind in chosen.kinds:
        by_seed = {
            seed: run_seed(kind, seed, chosen.work, quick=chosen.quick) for seed in chosen.seeds
        }
        by_kind[kind] = summary(by_seed)
    n_learned = N_CASES * (N_FOLDS - 1) // N_FOLDS
    data = f"{N_CASES} synthetic gliomas a seed, {n_learned} to learn from; no patients, no clinical experts"
    return {"synthetic": True, "data": data, "seeds": chosen.seeds, "kinds": by_kind}


def markdown(result: dict[str, Any]) -> str:
    """Write the tables; boxes of experts and controls take no time."""
    untimed = (EXPERTS, *CONTROLS, ORACLE, THIRD, MEDOID)
    return runs.page("placers", result, experts=EXPERTS, untimed=untimed)


if __name__ == "__main__":
    kinds = {"nargs": "+", "choices": KINDS, "default": list(KINDS), "help": "what experts aim at"}
    runs.main(
        run,
        RESULT,
        markdown=markdown,
        code=("dmrifit", "placement"),
        packages=("numpy", "scikit-learn", "torch", "numba"),
        seeds=SEEDS,
        options={"--kinds": kinds},
    )
