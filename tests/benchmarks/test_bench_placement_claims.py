"""The board of the placement study runs by seed and fold, and goes on where it stopped."""

import json

import numpy as np
import pytest

from benchmarks.placement import bench_placement_claims as bench
from placement import Voxel


def test_cases_are_large_enough_and_the_same_each_time():
    size = {"n_cases": 2, "least_tumor_ml": 25.0}
    scenes, voxels = bench.draw_cases(3, size)
    assert all(scene.tumor_volume >= 25 for scene in scenes)
    assert voxels.shape == (2, bench.N_EXPERTS, 9)
    np.testing.assert_array_equal(bench.draw_cases(3, size)[1], voxels)


def test_the_medoid_is_the_box_in_the_middle():
    rows = np.array([Voxel((x, 0, 0), (20, 20, 20)).as_array() for x in (0, 12, 4, 6)])
    np.testing.assert_array_equal(bench.medoid(rows), rows[2])


@pytest.mark.slow
@pytest.mark.deep
def test_a_small_board_runs_and_is_not_repeated(run_script, tmp_path):
    pytest.importorskip("skorch")
    words = ("--quick", "--seeds", 1, "--work", tmp_path / "work", "--out", tmp_path / "board.json")
    assert "fold-3" in run_script("bench_placement_claims", *words)
    shown = run_script("bench_placement_claims", *words)
    assert "fold-3" not in shown
    assert "| medoid of ten other experts |" in shown
    result = json.loads((tmp_path / "board.json").read_text())
    assert [row["fold"] for row in result["folds"] if row["method"] == "network"] == [1, 2, 3]
    assert result["claims"][6]["verdict"] == "not testable here"
    assert result["verdicts_by_margin"]["2.0"]["n_testable"] == 6
