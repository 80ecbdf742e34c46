"""Long runs of benchmarks in small: boards go on where they stopped and hold their methods in the order that is known."""

import json
import shutil

import pytest

from benchmarks.anomaly import _anomaly_speed

pytestmark = [pytest.mark.slow, pytest.mark.deep]


@pytest.fixture(autouse=True)
def libraries():
    pytest.importorskip("skorch")


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def tiny_board(run_script, folder, name):
    """Run the board of a benchmark in the smallest of sizes, twice, and give its result."""
    words = ("--size", "smoke", "--seeds", 1, "--n-jobs", 1, "--work", folder / "work", "--out")
    assert "s of training" in run_script(name, *words, folder / "first.json")
    # A finished seed is its figures alone; an unfinished one its networks.
    if name == "bench_metastasis":
        shutil.copytree(folder / "first", folder / "second")
        (folder / "second" / "hard-world-1.json").unlink()
    assert "s of training" not in run_script(name, *words, folder / "second.json")
    first, second = read(folder / "first.json"), read(folder / "second.json")
    assert first["methods"] == second["methods"]
    return first


def small_board(run_script, folder, name, *more):
    """Run a board in a small size; its result, and what its claims miss."""
    words = ("--size", "small", "--seeds", 1, "--n-jobs", 2, "--work", folder / "work", "--out", folder / "small.json")
    run_script(name, *words, *more)
    result = read(folder / "small.json")
    return result, [line for row in result["claims"] for line in row["reason"].splitlines() if "missing" in line]


def test_a_tiny_board_of_anomalies_has_its_methods(run_script, tmp_path):
    board = tiny_board(run_script, tmp_path, "bench_anomaly")
    verdicts = {row["claim"]: row["verdict"] for row in board["claims"]}
    assert {claim for claim, verdict in verdicts.items() if verdict == "not testable here"} == {10, 11}
    assert set(verdicts.values()) == {"not testable here", "cannot be told"}
    dae, recdisc = "DAE sigmoid 8", "RecDiscNet mix half"
    forms = {dae, f"{dae}, mean of abs", f"{dae}, image scale", recdisc, f"{recdisc}, residual", "RecDiscNet mix full"}
    plain = {"z, one-sided", "z, two-sided", "Mahalanobis", "PCA", "implants", "1 − mean signal", "empty"}
    names = {cohort: {row["method"] for row in rows} for cohort, rows in board["methods"].items()}
    for cohort, found in names.items():
        assert forms | plain <= found
        margins = {row["method"]: row["margin"] for row in board["margins"][cohort]}
        assert margins["z, one-sided"] == 0
        assert len(margins) > 10
    # Kinds of noise and latent sizes beside the first are for the cohort that is registered well.
    assert "RecDiscNet normal random full" in names["registered"] - names["shifted"]


def test_a_small_board_of_anomalies_has_the_order_of_the_residuals(run_script, tmp_path):
    board, missing = small_board(run_script, tmp_path, "bench_anomaly")
    rows = {(row["method"], row["rule"]): row for row in board["methods"]["registered"] if row["part"] == "all"}
    own, absolute = (rows[f"DAE sigmoid 512{form}", "Otsu"]["auc"][0] for form in ("", ", mean of abs"))
    assert own > absolute
    # 1 % was asked for, on other healthy persons.
    assert 0.003 < rows["z, one-sided", "healthy rate"]["false_positive_rate"][0] < 0.03
    # Trained so shortly, the network may flag no region beside a lesion.
    assert not [line for line in missing if "mismatches of RecDiscNet" not in line]


def test_scoring_beside_the_bare_network_gives_the_same_bits_twice():
    (row,) = _anomaly_speed.inference(["DAE"], (32, 40, 24))
    assert row["same_bits"]
    assert row["peak_gb"] < 3
    assert row["ratio"] > 0


def test_a_tiny_board_of_metastases_has_its_methods(run_script, tmp_path):
    board = tiny_board(run_script, tmp_path, "bench_metastasis")
    assert {row["verdict"] for row in board["claims"]} == {"cannot be told"}
    assert {row["world"] for row in board["methods"]} == set(board["worlds"]) == {"old phantom", "hard world"}
    rows = {row["method"]: row for row in board["methods"] if row["part"] == "all"}
    assert rows["all positive"]["strict_sensitivity"] == [0.0]
    assert {"BCE", "JVSS 0.995, prior", "ensemble", "VSS 0.95", "SSE 0.5"} <= set(rows)


def test_a_small_board_of_metastases_has_the_order_over_alpha(run_script, tmp_path):
    board, missing = small_board(run_script, tmp_path, "bench_metastasis", "--worlds", "old phantom")
    rows = {row["method"]: row for row in board["methods"] if row["part"] == "all"}
    assert rows["JVSS 1"]["segment_specificity"] < rows["JVSS 0.5"]["segment_specificity"]
    assert rows["JVSS 1"]["sensitivity"] > rows["JVSS 0.5"]["sensitivity"]
    # Networks that have learned so little may reach no sensitivity that methods are compared at.
    assert not [line for line in missing if "at sensitivity" not in line and line != "missing: hard world"]


def test_a_small_comparison_of_placers_runs_and_is_not_repeated(run_script, tmp_path):
    words = ("--quick", "--seeds", 1, "--kinds", "preference", "--work", tmp_path / "work", "--out")
    shown = run_script("bench_placers", *words, tmp_path / "first.json")
    assert "| ranker |" in shown
    assert "preference 1: ranker, " in shown
    assert "preference 1: " not in run_script("bench_placers", *words, tmp_path / "second.json")
    first, second = read(tmp_path / "first.json"), read(tmp_path / "second.json")
    assert first["kinds"] == second["kinds"]
    dice = {one["method"]: one["dice_closest"]["mean"] for one in first["kinds"]["preference"]["methods"]}
    assert dice["best of 40 candidates"] >= max(dice[name] for name in ("ranker", "optimizer", "random box"))


def test_a_small_board_of_placement_runs_and_is_not_repeated(run_script, tmp_path):
    words = ("--quick", "--seeds", 1, "--work", tmp_path / "work", "--out", tmp_path / "board.json")
    assert "fold-3" in run_script("bench_placement_claims", *words)
    shown = run_script("bench_placement_claims", *words)
    assert "fold-3" not in shown
    assert "| medoid of ten other experts |" in shown
    result = read(tmp_path / "board.json")
    assert [row["fold"] for row in result["folds"] if row["method"] == "network"] == [1, 2, 3]
    assert result["claims"][6]["verdict"] == "not testable here"
    assert result["verdicts_by_margin"]["2.0"]["n_testable"] == 6


def test_a_quick_run_of_growth_measures_everything(run_script, tmp_path):
    pytest.importorskip("distributed")
    shown = run_script("bench_scale", "--quick", "--out", tmp_path / "quick.json")
    result = read(tmp_path / "quick.json")
    assert result["quick"]
    assert result["growth"].keys() == {"voxels", "contrasts", "patients"}
    seconds = [found["seconds"].values() for cases in result["growth"].values() for found in cases.values()]
    assert all(min(values) > 0 for values in seconds)
    assert result["study"]["efficiency"] > 0
    assert "efficiency from one to two" in shown
