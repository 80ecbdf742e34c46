"""
Which of the placement study's claims hold with its own network on synthetic gliomas?

    .venv/bin/python -m benchmarks.placement.bench_placement_claims [--seeds 1 2 3] [--work FOLDER] [--quick
    --out FILE]

The network of the study (its loss, linear heads, 60 epochs) learns from 100 cases and places in 25,
for each of five folds, beside the objective as published. The tumors are large enough that the
objective's volume need not follow theirs. The figures of each seed are a JSON of their own in
results/placement_claims, boxes of a finished fold stay in the folder FOLDER: an interrupted run
goes on there. Margins and size are those of claims/lee.toml; nothing here decides the outcome.
"""

import argparse
import json
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _boards as boards
from benchmarks import _measure as measure
from benchmarks import _runs as runs
from benchmarks.claims.lee import (
    MARGINS,
    MARGINS_FILE,
    NETWORK,
    OBJECTIVE,
    claim_figures,
    decide_claims,
)
from dmrifit import Training
from dmrifit.io.atomic_files import write_text
from placement import (
    Scene,
    Voxel,
    VoxelOptimizer,
    VoxelRegressor,
    evaluate_placements,
    simulate_gliomas,
)

RESULT = measure.RESULTS / "placement_claims.json"
FULL = tomllib.loads(MARGINS_FILE.read_text(encoding="utf-8"))["board"]
SEEDS = tuple(FULL.pop("seeds"))
QUICK = {"n_cases": 15, "n_folds": 3, "least_tumor_ml": 25.0}
#: What a result depends on.
CODE = ("dmrifit", "placement", "benchmarks/claims", "benchmarks/placement/bench_placement_claims.py")
#: The first two experts are the study's; the others only make the rows that placers are held to.
N_EXPERTS = 12
#: Tables of means that are kept of a seed, and over what they are.
KEYS = {"rows": ["method"], "folds": ["method", "fold"]}
MEASURES = ("f_tumor", "volume", "dice_closest", "dice_mean", "dice_fair", "rotated_angles")
THIRD, MEDOID = "third expert", "medoid of ten other experts"


def draw_cases(seed: int, size: dict[str, Any]) -> tuple[list[Scene], np.ndarray]:
    """Draw cases in turn, and pass over tumors that are too small."""
    scenes: list[Scene] = []
    voxels: list[np.ndarray] = []
    number = 0
    while len(scenes) < size["n_cases"]:
        drawn, boxes = simulate_gliomas(1, n_experts=N_EXPERTS, skip=number, random_state=seed)
        number += 1
        if drawn[0].tumor_volume >= size["least_tumor_ml"]:
            scenes += drawn
            voxels.append(boxes[0])
    return scenes, np.array(voxels)


def medoid(rows: np.ndarray) -> np.ndarray:
    """Take the box that agrees most with the others."""
    boxes = [Voxel.from_array(row) for row in rows]
    dice = np.array([[box.dice(other) for other in boxes] for box in boxes])
    return rows[np.argmax(dice.sum(axis=1))]


def placed_fold(
    scenes: list[Scene], experts: np.ndarray, is_test: np.ndarray, seed: int, path: Path, quick: bool
) -> dict[str, Any]:
    """Train the study's network on the other folds and place in one, unless that is done."""
    if path.exists():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    training = Training(epochs=2 if quick else None, checkpoint=str(path.with_suffix("")))
    network = VoxelRegressor(
        loss="euler", head="linear", training=training, device="cpu", random_state=seed
    )
    train, test = np.flatnonzero(~is_test), np.flatnonzero(is_test)
    network.fit([scenes[int(i)] for i in train], experts[train])
    boxes, seconds = [], []
    network.place(scenes[int(test[0])])
    for i in test:
        start = time.process_time()
        boxes.append(network.place(scenes[int(i)]).as_array().tolist())
        seconds.append(time.process_time() - start)
    fold = {"boxes": boxes, "seconds": seconds}
    write_text(path, json.dumps(fold))
    print(f"seed {seed}: {path.stem}", flush=True)
    return fold


def run_seed(seed: int, work: Path, size: dict[str, Any], quick: bool) -> dict[str, Any]:
    """Place in all cases of a seed, each by the network that has not seen it, and compare."""
    origin = measure.provenance(__file__, *CODE)
    scenes, voxels = draw_cases(seed, size)
    experts = voxels[:, :2]
    folds = boards.case_folds(len(scenes), n_folds=size["n_folds"], random_state=seed)
    boxes = {NETWORK: np.empty((len(scenes), 9)), OBJECTIVE: np.empty((len(scenes), 9))}
    seconds = {name: np.empty(len(scenes)) for name in boxes}
    for number in range(1, size["n_folds"] + 1):
        path = work / f"{seed}{'-quick' if quick else ''}" / f"fold-{number}.json"
        fold = placed_fold(scenes, experts, folds == number, seed, path, quick)
        boxes[NETWORK][folds == number] = fold["boxes"]
        seconds[NETWORK][folds == number] = fold["seconds"]
    optimizer = VoxelOptimizer(max_rotations=3, tie_break=0.0, random_state=seed)
    for i, scene in enumerate(scenes):
        start = time.process_time()
        boxes[OBJECTIVE][i] = optimizer.place(scene).as_array()
        seconds[OBJECTIVE][i] = time.process_time() - start
    boxes[THIRD] = voxels[:, 2]
    boxes[MEDOID] = np.array([medoid(rows) for rows in voxels[:, 2:]])
    tables = evaluate_placements(
        scenes, experts, boxes, folds=folds, seconds=seconds, random_state=seed
    )
    cases = tables["cases"].assign(fold=tables["cases"]["case"].map(dict(enumerate(folds))))
    means = {
        name: cases.groupby(keys, sort=False)[[*MEASURES]].mean().reset_index()
        for name, keys in KEYS.items()
    }
    return origin | boards.part(claim_figures({str(seed): tables}), **means)


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Finish the seeds and decide the claims."""
    size = QUICK if chosen.quick else {name: FULL[name] for name in QUICK}
    parts = [
        runs.Part(str(seed), size, run_seed, (seed, chosen.work, size, chosen.quick))
        for seed in chosen.seeds
    ]
    paths = runs.finished(parts, chosen.out.with_suffix(""))
    means = {}
    for name, keys in KEYS.items():
        table = boards.read_tables(paths, name).groupby(keys, sort=False)[[*MEASURES]].mean()
        means[name] = table.round(4).reset_index().sort_values(keys[1:], kind="stable")
    return {
        "synthetic": True,
        "seeds": list(chosen.seeds),
        "board": size,
        **boards.decided(paths, decide_claims, MARGINS),
        **{name: json.loads(table.to_json(orient="records")) for name, table in means.items()},
    }


def markdown(result: dict[str, Any]) -> str:
    """Write what was decided, the rows of placers and the network's folds."""
    return runs.page("placement_claims", result, measures=MEASURES)


if __name__ == "__main__":
    runs.main(run, RESULT, markdown=markdown, code=CODE, seeds=SEEDS)
