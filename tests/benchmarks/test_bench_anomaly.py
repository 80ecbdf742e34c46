"""The comparison of detectors runs, and goes on where it stopped."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.deep
def test_a_tiny_board_runs_and_is_not_repeated(run_script, tmp_path):
    pytest.importorskip("skorch")
    words = ("--size", "smoke", "--seeds", 1, "--n-jobs", 1, "--work", tmp_path / "work", "--out")
    shown = run_script("bench_anomaly", *words, tmp_path / "first.json")
    assert "s of training" in shown
    assert "s of training" not in run_script("bench_anomaly", *words, tmp_path / "second.json")
    first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("first", "second"))
    assert first["methods"] == second["methods"]
    untested = {row["claim"] for row in first["claims"] if row["verdict"] == "not testable here"}
    assert untested == {10, 11}
    others = {row["verdict"] for row in first["claims"] if row["claim"] not in untested}
    assert others == {"cannot be told"}
    for cohort, rows in first["methods"].items():
        names = {row["method"] for row in rows}
        assert {"DAE sigmoid 8", "DAE sigmoid 8, mean of abs", "DAE sigmoid 8, image scale"} <= names
        assert {"RecDiscNet mix half", "RecDiscNet mix half, residual", "RecDiscNet mix full"} <= names
        assert {"z, one-sided", "z, two-sided", "Mahalanobis", "PCA", "implants"} <= names
        assert {"1 − mean signal", "empty"} <= names
        margins = {row["method"]: row["margin"] for row in first["margins"][cohort]}
        assert margins["z, one-sided"] == 0
        assert len(margins) > 10
    # Kinds of noise and latent sizes beside the first are for the cohort that is registered well.
    assert "RecDiscNet normal random full" in {row["method"] for row in first["methods"]["registered"]}
    assert "RecDiscNet normal random full" not in {row["method"] for row in first["methods"]["shifted"]}


@pytest.mark.slow
@pytest.mark.deep
def test_a_small_board_has_every_row_and_the_order_of_the_residuals(run_script, tmp_path):
    pytest.importorskip("skorch")
    out = tmp_path / "small.json"
    run_script(
        "bench_anomaly", "--size", "small", "--seeds", 1, "--n-jobs", 2, "--work", tmp_path / "work", "--out", out
    )
    stored = json.loads(out.read_text())
    rows = {(row["method"], row["rule"]): row for row in stored["methods"]["registered"] if row["part"] == "all"}
    own, absolute = (rows[f"DAE sigmoid 512{form}", "Otsu"]["auc"][0] for form in ("", ", mean of abs"))
    assert own > absolute
    # 1 % was asked for, on other healthy persons.
    assert 0.003 < rows["z, one-sided", "healthy rate"]["false_positive_rate"][0] < 0.03
    missing = [line for row in stored["claims"] for line in row["reason"].splitlines() if "missing" in line]
    # Trained so shortly, the network may flag no region beside a lesion.
    assert not [line for line in missing if "mismatches of RecDiscNet" not in line]


@pytest.mark.slow
@pytest.mark.deep
def test_scoring_beside_the_bare_network_gives_the_same_bits_twice():
    pytest.importorskip("skorch")
    code = """
from benchmarks.anomaly import _anomaly_speed as speed
row, = speed.inference(["DAE"], (32, 40, 24))
assert row["same_bits"], row
assert row["peak_gb"] < 3, row
assert row["ratio"] > 0
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
