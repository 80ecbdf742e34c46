"""The comparison of placers runs, and goes on where it stopped."""

import json

import pytest


@pytest.mark.slow
@pytest.mark.deep
def test_a_small_comparison_runs_and_is_not_repeated(run_script, tmp_path):
    pytest.importorskip("skorch")
    words = ("--quick", "--seeds", 1, "--kinds", "preference", "--work", tmp_path / "work", "--out")
    shown = run_script("bench_placers", *words, tmp_path / "first.json")
    assert "| ranker |" in shown
    assert "preference 1: ranker, " in shown
    assert "preference 1: " not in run_script("bench_placers", *words, tmp_path / "second.json")
    first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("first", "second"))
    assert first["kinds"] == second["kinds"]
    methods = {one["method"]: one for one in first["kinds"]["preference"]["methods"]}
    best = methods["best of 40 candidates"]["dice_closest"]["mean"]
    assert best >= max(methods[name]["dice_closest"]["mean"] for name in ("ranker", "optimizer", "random box"))
