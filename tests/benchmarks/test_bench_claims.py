"""The long run of claims: one file a board, taken up again, and what is said of the verdicts."""

import math
from types import SimpleNamespace

import pandas as pd
import pytest

from benchmarks import _boards as claim_boards
from benchmarks.claims.claim_board import FIGURE_COLUMNS, HOLDS
from benchmarks.claims.macarro.board import decide_claims
from benchmarks.prediction import bench_claims

ALGORITHMS = ("LR", "RFR", "ETR", "constant")
SCORES = pd.DataFrame(
    [
        {"n_train": n, "cohort": "A", "strategy": "s2s", "algorithm": name, "metric": metric, "bias": bias}
        for n, metric in ((2, "K"), (5, "K"), (5, "f"), (5, "S0"))
        for name, bias in zip(ALGORITHMS, (0.1, -0.2, 0.3, 9), strict=True)
    ]
).assign(dispersion=lambda table: table["n_train"], pearson=0.5, pearson_truth=0.4)


def figures_of(board):
    """Make up the figures of claim 1: the error of signals, and no scores of the body."""
    place = f"synthetic {board.preset}, trained on {board.region}"
    error = 0.08 + 1e-3 * board.seed
    rows = [
        (1, "lesion", place, str(board.seed), "c1", "mean abs(E)", error, "<", 0.12, "", "signal_error"),
        (1, "body", place, str(board.seed), "", "scores", math.nan, "", math.nan, "", ""),
    ]
    return pd.DataFrame(rows, columns=list(FIGURE_COLUMNS))


def test_figures_read_from_files_are_those_of_the_boards(monkeypatch, tmp_path):
    def made_up(preset, region, seed, *_, **__):
        study = {"versions": {}, "seconds": 1.0}
        return SimpleNamespace(study=study, scores=SCORES, preset=preset, region=region, seed=seed)

    monkeypatch.setattr(bench_claims, "run_board", made_up)
    monkeypatch.setattr(bench_claims, "claim_figures", figures_of)
    paths = bench_claims.finished(range(10), tmp_path, tmp_path, {})
    figures = claim_boards.read_tables(paths, "figures")
    places = [(preset, region, seed) for seed in range(10) for preset, region in bench_claims.CONDITIONS]
    direct = [figures_of(made_up(*place)) for place in places]
    expected = pd.concat(direct, ignore_index=True)
    pd.testing.assert_frame_equal(figures[list(expected)], expected, check_dtype=False)
    row = decide_claims(figures).iloc[0]
    assert (row["verdict"], row["n_runs"]) == (HOLDS, 10)
    assert row["readings"] == "lesion: holds\nbody: cannot be told"


def test_algorithms_are_ranked_without_controls_by_what_most_patients_gave():
    ranks = bench_claims.ranked_scores(SimpleNamespace(scores=SCORES)).set_index("algorithm")
    assert ranks["abs_bias"].to_dict() == pytest.approx({"LR": 0.1, "RFR": 0.2, "ETR": 0.3})
    assert set(ranks["dispersion"]) == {5}
