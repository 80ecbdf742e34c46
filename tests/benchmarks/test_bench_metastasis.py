"""The board of claims about metastases runs, and goes on where it stopped."""

import json
import shutil

import pytest


@pytest.mark.slow
@pytest.mark.deep
def test_a_tiny_board_runs_and_is_not_repeated(run_script, tmp_path):
    pytest.importorskip("skorch")
    words = ("--size", "smoke", "--seeds", 1, "--n-jobs", 1, "--work", tmp_path / "work", "--out")
    shown = run_script("bench_metastasis", *words, tmp_path / "first.json")
    assert "s of training" in shown
    # A finished seed is its figures alone; an unfinished one its networks.
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    (tmp_path / "second" / "hard-world-1.json").unlink()
    assert "s of training" not in run_script("bench_metastasis", *words, tmp_path / "second.json")
    first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("first", "second"))
    assert first["methods"] == second["methods"]
    assert {row["verdict"] for row in first["claims"]} == {"cannot be told"}
    assert first["worlds"] == ["old phantom", "hard world"]
    assert {row["world"] for row in first["methods"]} == set(first["worlds"])
    rows = {row["method"]: row for row in first["methods"] if row["part"] == "all"}
    assert rows["all positive"]["strict_sensitivity"] == [0.0]
    assert {"BCE", "JVSS 0.995, prior", "ensemble", "VSS 0.95", "SSE 0.5"} <= set(rows)


@pytest.mark.slow
@pytest.mark.deep
def test_a_small_board_has_every_method_and_the_order_over_alpha(run_script, tmp_path):
    pytest.importorskip("skorch")
    out = tmp_path / "small.json"
    run_script(
        "bench_metastasis", "--size", "small", "--seeds", 1, "--n-jobs", 2, "--work", tmp_path / "work", "--out", out,
        "--worlds", "old phantom",
    )  # fmt: skip
    stored = json.loads(out.read_text())
    rows = {row["method"]: row for row in stored["methods"] if row["part"] == "all"}
    assert rows["JVSS 1"]["segment_specificity"] < rows["JVSS 0.5"]["segment_specificity"]
    assert rows["JVSS 1"]["sensitivity"] > rows["JVSS 0.5"]["sensitivity"]
    # Networks that have learned so little may reach no sensitivity that methods are compared at.
    reasons = [line for row in stored["claims"] for line in row["reason"].split("\n")[1:]]
    missing = [reason for reason in reasons if "missing" in reason]
    assert not [reason for reason in missing if "at sensitivity" not in reason]
