"""The board of claims about metastases runs, and goes on where it stopped."""

import argparse
import json
import shutil

import pandas as pd
import pytest

from benchmarks.metastasis import bench_metastasis as bench


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


def test_a_seed_is_run_once_in_each_world_and_claims_are_decided(monkeypatch, tmp_path):
    columns = {"curves": ["method"], "ensemble": ["method"], "status": ["status"], "areas": ["name", "kind"]}
    tables = {name: pd.DataFrame(columns=names) for name, names in columns.items()}
    summary = {"part": "all", "method": "BCE"} | dict.fromkeys(bench.MEASURES, 0.8)
    tables["summary"] = tables["every component"] = pd.DataFrame([summary])
    for name in ("cases_of", "start_of", "segmented"):
        monkeypatch.setattr(bench, name, lambda *_: None)
    monkeypatch.setattr(bench, "kept", lambda function, work: function)
    times = {"BCE": {"training_s": 60.0, "prediction_s": 30.0}, "BCE, moved": {"training_s": 60.0, "prediction_s": 0.0}}
    seeds = []

    def evaluated(work, kind, world, seed, forms):
        seeds.append((world, seed))
        return {"tables": tables, "seconds": times, "evaluation_s": 30.0, "n_lesions": 9, "n_with_prior": 2}

    monkeypatch.setattr(bench, "evaluated", evaluated)
    options = {"out": tmp_path / "board.json", "work": tmp_path / "work", "n_jobs": 1, "inference": False}
    options |= {"size": "smoke", "forms": [bench.PLAIN, "prior"]}
    worlds = list(bench.WORLDS)
    bench.run(argparse.Namespace(worlds=worlds[:1], seeds=[1], **options))
    result = bench.run(argparse.Namespace(worlds=worlds, seeds=[1, 2], **options))
    assert seeds == [(worlds[0], 1), (worlds[1], 1), (worlds[0], 2), (worlds[1], 2)]
    assert result["processor_minutes"] == {world: [2.0, 2.0] for world in worlds}
    assert [row["verdict"] for row in result["claims"]] == ["cannot be told"] * 16
    assert result["claims"][0]["reason"].split("\n")[-1] == "hard world: 2 seeds, 10 are needed"
    assert result["methods"][0]["sensitivity"] == [0.8, 0.8]
    origin = {"machine": {"processor": "one"}, "date": "today", "commit": "0" * 40}
    assert "Synthetic, hard world:" in bench.markdown(result | origin)
    with pytest.raises(SystemExit, match="another size"):
        bench.run(argparse.Namespace(worlds=worlds, seeds=[1], **options | {"size": "small"}))
