"""
Which of the study's claims hold on synthetic cohorts?

    .venv/bin/python -m benchmarks.prediction.bench_claims [--seeds 1 2 3] [--work FOLDER] [--quick --out
    FILE]

Runs the study's board with its learning curve for both presets of synthetic cohorts, both training
regions and ten seeds, of the size that claims/macarro/margins.toml settles, and decides the claims
by the margins there. The figures of each preset, region and seed are a JSON of their own in
results/claims: a run that was interrupted goes on after the last one, within a board after its last
training, which the folder FOLDER (default build/claims) keeps. Nothing here decides what the
outcome should be.
"""

import argparse
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks import _boards as boards
from benchmarks import _measure as measure
from benchmarks import _runs as runs
from benchmarks.claims.macarro.board import MARGINS, MARGINS_FILE, claim_figures, decide_claims
from dmrifit import Evaluation, learning_curve, simulate_cohort
from dmrifit.predict.controls import CONTROLS

RESULT = measure.RESULTS / "claims.json"
FULL = tomllib.loads(MARGINS_FILE.read_text(encoding="utf-8"))["board"]
SEEDS = tuple(FULL.pop("seeds"))
QUICK = {"n_patients": 4, "sizes": [1, 2, 3], "shape": [24, 24, 6], "algorithms": ["LR", "ETR"]}
CONDITIONS = [(preset, region) for preset in ("mixed", "easy") for region in ("body", "lesion")]
#: What a result depends on.
CODE = ("dmrifit", "benchmarks/claims/macarro", "benchmarks/prediction/bench_claims.py")
#: Scores that algorithms are ranked by, against the fitted reference and against the truth.
RANKED = ("abs_bias", "dispersion", "pearson", "pearson_truth")
def run_board(
    preset: str, region: str, seed: int, folder: Path, size: dict[str, Any], truth: str = "formula"
) -> Evaluation:
    """Run one board, or what of it is not finished."""
    cohorts = {
        name: simulate_cohort(
            name,
            size["n_patients"],
            difficulty=preset,
            shape=tuple(size["shape"]),
            truth=truth,
            random_state=seed,
        )
        for name in ("cohort1", "cohort2")
    }
    start = time.perf_counter()
    board = learning_curve(
        cohorts,
        sizes=tuple(size["sizes"]),
        algorithms=tuple(size["algorithms"]),
        train_mask=region,
        out=folder / f"{preset}-{region}-{seed}",
        keep_predictions=False,
        n_jobs=1,
        random_state=seed,
    )
    seconds = time.perf_counter() - start
    print(f"{preset}, trained on {region}, seed {seed}: {seconds:.0f} s", flush=True)
    return board


def ranked_scores(board: Evaluation) -> pd.DataFrame:
    """Average the scores of algorithms over tissue parameters, at the largest number of patients."""
    table = board.scores
    largest = table["n_train"] == table["n_train"].max()
    counted = largest & ~table["algorithm"].isin(CONTROLS) & (table["metric"] != "S0")
    table = table[counted].assign(abs_bias=table["bias"].abs())
    return table.groupby(["strategy", "cohort", "algorithm"])[[*RANKED]].mean().reset_index()


def run_part(
    preset: str, region: str, seed: int, work: Path, size: dict[str, Any], truth: str
) -> dict[str, Any]:
    """Run one board, and keep its figures and the scores that rank algorithms."""
    origin = measure.provenance(__file__, *CODE)
    board = run_board(preset, region, seed, work, size, truth)
    kept = {"versions": board.study["versions"], "seconds": board.study["seconds"]}
    return origin | kept | boards.part(claim_figures(board), ranks=ranked_scores(board))


def finished(
    seeds: Sequence[int], folder: Path, work: Path, size: dict[str, Any], truth: str = "formula"
) -> list[Path]:
    """Run the boards whose figures are not in the folder; give the files of all."""
    parts = []
    for seed in seeds:
        for preset, region in CONDITIONS:
            name = f"{preset}-{region}-{seed}"
            parts.append(runs.Part(name, size, run_part, (preset, region, seed, work, size, truth)))
    return runs.finished(parts, folder)


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Finish the boards and decide the claims."""
    size = QUICK if chosen.quick else FULL
    paths = finished(chosen.seeds, chosen.out.with_suffix(""), chosen.work, size)
    kept = [measure.stored(path) for path in paths]
    return {
        "synthetic": True,
        "commits_of_boards": sorted({board["commit"] for board in kept}),
        "seeds": list(chosen.seeds),
        "board": size,
        "conditions": [f"{preset} cohorts, trained on {region}" for preset, region in CONDITIONS],
        "seconds": {"per_board": [board["seconds"] for board in kept]},
        **boards.decided(paths, decide_claims, MARGINS),
    }


if __name__ == "__main__":
    runs.main(run, RESULT, code=CODE, seeds=SEEDS)
