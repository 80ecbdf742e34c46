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

import json
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks import _boards as boards
from benchmarks import _measure as measure
from benchmarks.claims.macarro.board import MARGINS, MARGINS_FILE, claim_figures, decide_claims
from dmrifit import Evaluation, learning_curve, simulate_cohort
from dmrifit.predict.controls import CONTROLS
from dmrifit.stats.verdicts import NOT_SIMULATED, OPEN

RESULT = measure.RESULTS / "claims.json"
FULL = tomllib.loads(MARGINS_FILE.read_text(encoding="utf-8"))["board"]
SEEDS = tuple(FULL.pop("seeds"))
QUICK = {"n_patients": 4, "sizes": [1, 2, 3], "shape": [24, 24, 6], "algorithms": ["LR", "ETR"]}
CONDITIONS = [(preset, region) for preset in ("mixed", "easy") for region in ("body", "lesion")]
#: What a result depends on.
CODE = ("dmrifit", "benchmarks/claims/macarro", "benchmarks/prediction/bench_claims.py")
#: Scores that algorithms are ranked by, against the fitted reference and against the truth.
RANKED = ("abs_bias", "dispersion", "pearson", "pearson_truth")
#: How much wider the margins are that the verdicts are also given for.
FACTORS = (0.5, 1.0, 2.0)
_TEXTS = ("reading", "where", "quantity", "relation", "against", "margin")
# The same in all rows of a board.
_SHARED = ["condition", "run"]


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


def dimensions(size: dict[str, Any]) -> dict[str, Any]:
    """Leave out the sentence on why a board is that large, which may be written anew."""
    return {key: value for key, value in size.items() if key != "why"}


def finish(
    seeds: Sequence[int], folder: Path, work: Path, size: dict[str, Any], truth: str = "formula"
) -> Iterator[Path]:
    """Run the boards whose figures are not in the folder; yield the files of all."""
    for seed in seeds:
        for preset, region in CONDITIONS:
            path = folder / f"{preset}-{region}-{seed}.json"
            if path.exists() and dimensions(measure.stored(path)["board"]) != dimensions(size):
                raise SystemExit(
                    f"{path} is of a board of another size: remove it to run it again"
                )
            if not path.exists():
                origin = measure.provenance(__file__, *CODE)
                board = run_board(preset, region, seed, work, size, truth)
                figures = claim_figures(board)
                result = {
                    "synthetic": True,
                    **origin,
                    "versions": board.study["versions"],
                    "board": size,
                    "seconds": board.study["seconds"],
                    **figures.loc[0, _SHARED],
                    "figures": lines(figures.drop(columns=_SHARED)),
                    "ranks": lines(ranked_scores(board)),
                }
                folder.mkdir(parents=True, exist_ok=True)
                measure.write(result, path)
            yield path


def ranked_scores(board: Evaluation) -> pd.DataFrame:
    """Average the scores of algorithms over tissue parameters, at the largest number of patients."""
    table = board.scores
    largest = table["n_train"] == table["n_train"].max()
    counted = largest & ~table["algorithm"].isin(CONTROLS) & (table["metric"] != "S0")
    table = table[counted].assign(abs_bias=table["bias"].abs())
    return table.groupby(["strategy", "cohort", "algorithm"])[[*RANKED]].mean().reset_index()


def lines(table: pd.DataFrame) -> list[str]:
    return table.to_csv(index=False, float_format="%.6g").splitlines()


def read_tables(paths: Sequence[Path], name: str) -> pd.DataFrame:
    """Put the tables of boards together: their figures or the scores that rank algorithms."""
    tables = []
    for path in paths:
        board = measure.stored(path)
        table = pd.read_csv(StringIO("\n".join(board[name])), dtype=dict.fromkeys(_TEXTS, str))
        texts = {column: "" for column in _TEXTS if column in table}
        tables.append(table.fillna(texts).assign(**{key: board[key] for key in _SHARED}))
    return pd.concat(tables, ignore_index=True)


def run(seeds: Sequence[int], out: Path, work: Path, *, quick: bool) -> dict[str, object]:
    """Finish the boards and decide the claims."""
    size = QUICK if quick else FULL
    paths = list(finish(seeds, out.with_suffix(""), work, size))
    figures = read_tables(paths, "figures")
    boards = [measure.stored(path) for path in paths]
    words = ["--seeds", *map(str, seeds)]
    return {
        "question": "which claims of the study hold on synthetic cohorts",
        "synthetic": True,
        **measure.provenance(__file__, *CODE, words=words, quick=quick),
        "commits_of_boards": sorted({board["commit"] for board in boards}),
        "seeds": list(seeds),
        "board": size,
        "conditions": [f"{preset} cohorts, trained on {region}" for preset, region in CONDITIONS],
        "seconds": {"per_board": [board["seconds"] for board in boards]},
        "margins": {name: vars(margin) for name, margin in MARGINS.items()},
        **decided(figures, decide_claims),
    }


def decided(figures: pd.DataFrame, decide: Callable[..., pd.DataFrame]) -> dict[str, Any]:
    """Decide claims by the figures of boards, and with margins of other widths."""
    return {
        "verdicts_by_margin": {
            str(factor): verdicts_of(decide(figures, factor=factor)) for factor in FACTORS
        },
        "claims": json.loads(decide(figures).to_json(orient="records")),
    }


def verdicts_of(board: pd.DataFrame) -> dict[str, object]:
    """List the verdicts of a board, and count those left open."""
    claims = board.set_index("claim")["verdict"]
    testable = claims[claims != NOT_SIMULATED]
    return {
        "claims": {str(number): verdict for number, verdict in claims.items()},
        "n_testable": len(testable),
        "n_open": int((testable == OPEN).sum()),
    }


def markdown(result: dict[str, Any]) -> str:
    """Write what was decided, in words and as tables."""
    seeds = f"{len(result['seeds'])} seeds; {result['date']}, commit {result['commit'][:10]}"
    board = result["board"]
    head = (
        f"Synthetic cohorts, 2 × {board['n_patients']} patients, trained on "
        f"{', '.join(map(str, board['sizes']))} patients; {seeds}. All readings and reasons are "
        "in the JSON."
    )
    margins = [
        [name.replace("_", " "), _width(margin), margin["whose"], margin["sentence"]]
        for name, margin in result["margins"].items()
    ]
    parts = [
        head,
        open_sentence(result),
        boards.claims_table(result["claims"], reasons=True),
        measure.table(["margin", "", "whose", "why"], margins),
    ]
    return "\n\n".join(parts)


def open_sentence(result: dict[str, Any]) -> str:
    """Say by margin how many claims are left open."""
    shares = {
        factor: f"{entry['n_open']} of {entry['n_testable']}"
        for factor, entry in result["verdicts_by_margin"].items()
    }
    return (
        f"Claims left open: {shares['1.0']} that can be tested here; {shares['0.5']} at half, "
        f"{shares['2.0']} at double margins."
    )


def _width(margin: dict[str, Any]) -> str:
    if margin["scale"] == "relative":
        return f"±{100 * margin['value']:g} %"
    return f"±{margin['value']:g}"


def main(arguments: list[str] | None = None) -> None:
    parser = measure.options("Check the study's claims on synthetic cohorts.", RESULT, seeds=SEEDS)
    chosen = measure.chosen(parser, arguments, RESULT)
    result = run(chosen.seeds, chosen.out, chosen.work, quick=chosen.quick)
    measure.write(result, chosen.out)
    print(markdown(result))


if __name__ == "__main__":
    main()
