"""
Which of the study's claims hold on synthetic cohorts?

    .venv/bin/python benchmarks/bench_claims.py [--seeds 1 2 3] [--work FOLDER] [--quick --out
    FILE]

Runs the study's board with its learning curve for both presets of synthetic cohorts, both training
regions and several seeds, and writes the board of claims. What is finished is kept in the folder
FOLDER (default build/claims) and not repeated; the numbers behind the board are written there as
claim_figures.csv. Nothing here decides what the outcome should be.
"""

import json
import shlex
import textwrap
import time
import tomllib
from datetime import date
from pathlib import Path
from typing import Any

import _measure as measure
from claims.macarro.board import claim_figures, claims_board

from dmrifit import Evaluation, learning_curve, simulate_cohort, write_report

RESULT = Path(__file__).parent / "results" / "claims.json"
MARGINS = Path(__file__).parent / "claims" / "macarro" / "margins.toml"
FULL = tomllib.loads(MARGINS.read_text(encoding="utf-8"))["board"]
SEEDS = tuple(FULL["seeds"])
QUICK = {"n_patients": 4, "sizes": (1, 2, 3), "shape": (24, 24, 6), "algorithms": ("LR", "ETR")}
CONDITIONS = [(preset, region) for preset in ("mixed", "easy") for region in ("body", "lesion")]


def run_boards(
    seeds: list[int], work: Path, *, board_size: dict[str, Any] = FULL, truth: str = "formula"
) -> list[Evaluation]:
    """Run every board that is not finished."""
    boards = []
    for seed in seeds:
        for preset, region in CONDITIONS:
            cohorts = {
                name: simulate_cohort(
                    name,
                    board_size["n_patients"],
                    difficulty=preset,
                    shape=tuple(board_size["shape"]),
                    truth=truth,
                    random_state=seed,
                )
                for name in ("cohort1", "cohort2")
            }
            start = time.perf_counter()
            board = learning_curve(
                cohorts,
                sizes=tuple(board_size["sizes"]),
                algorithms=tuple(board_size["algorithms"]),
                train_mask=region,
                out=work / f"{preset}-{region}-{seed}",
                keep_predictions=False,
                n_jobs=1,
                random_state=seed,
            )
            print(
                f"{preset}, trained on {region}, seed {seed}: {time.perf_counter() - start:.0f} s",
                flush=True,
            )
            boards.append(board)
    return boards


def run(seeds: list[int], work: Path, *, quick: bool) -> dict[str, object]:
    """Run the boards and check the claims."""
    boards = run_boards(seeds, work, board_size=QUICK if quick else FULL)
    claims = claims_board(boards)
    claim_figures(boards).to_csv(work / "claim_figures.csv", index=False)
    write_report(boards, work / "report")
    words = [
        "python",
        "benchmarks/bench_claims.py",
        "--seeds",
        *map(str, seeds),
        *(["--quick"] if quick else []),
    ]
    return {
        "question": "which claims of the study hold on synthetic cohorts",
        "synthetic": True,
        **measure.commit("dmrifit", "benchmarks/claims/macarro"),
        "command": shlex.join(words),
        "quick": quick,
        "date": date.today().isoformat(),
        "machine": measure.machine(),
        "versions": boards[0].study["versions"],
        "seeds": seeds,
        "sizes": FULL["sizes"],
        "conditions": [f"{preset} cohorts, trained on {region}" for preset, region in CONDITIONS],
        "seconds": {"per_board": [board.study["seconds"] for board in boards]},
        "claims": json.loads(claims.to_json(orient="records")),
    }


def markdown(result: dict[str, object]) -> str:
    """Write the board as a table."""
    rows = [
        [str(row["claim"]), row["statement"], row["study"], row["verdict"], _short(row["reason"])]
        for row in result["claims"]
    ]
    head = (
        f"Synthetic cohorts, 2 × 16 patients, seeds {', '.join(map(str, result['seeds']))}; "
        f"{result['date']}, "
        f"commit {str(result['commit'])[:10]}."
    )
    head += f" Training on {', '.join(map(str, result['sizes']))} patients. All readings and reasons are in the JSON."
    return (
        head
        + "\n\n"
        + measure.table(["", "claim", "the study", "here", "found in the numbers"], rows)
    )


def _short(reason: str) -> str:
    """Give the beginning of the reason; all of it is in the JSON."""
    # Results of earlier versions have an explanation in words behind a bar.
    line = reason.splitlines()[0].partition(" | ")[0]
    return textwrap.shorten(line, 330, placeholder=" …").replace("|", "\\|")


def main(arguments: list[str] | None = None) -> None:
    parser = measure.options("Check the study's claims on synthetic cohorts.", RESULT, seeds=SEEDS)
    chosen = measure.chosen(parser, arguments, RESULT)
    result = run(chosen.seeds, chosen.work, quick=chosen.quick)
    measure.write(result, chosen.out)
    print(markdown(result))


if __name__ == "__main__":
    main()
