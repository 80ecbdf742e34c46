"""The measurement of growth and of clusters: slopes, and a small run of the whole."""

import json

import pytest

from benchmarks.costs import bench_scale as bench


def test_slopes_are_the_exponents_of_powers():
    found = bench.slopes({n: 3e-6 * n**2 for n in (2, 4, 8, 128)})
    assert (found["slope"], found["slope_at_the_end"]) == (2, 2)
    found = bench.slopes({n: 1 + 1e-3 * n for n in (1, 10, 10**6, 10**7)})
    assert found["slope"] < found["slope_at_the_end"] == 1
    assert found["seconds"]["1"] == 1.001


@pytest.mark.slow
def test_a_quick_run_measures_everything(run_script, tmp_path):
    pytest.importorskip("distributed")
    out = tmp_path / "quick.json"
    shown = run_script("bench_scale", "--quick", "--out", out)
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["quick"]
    assert result["growth"].keys() == {"voxels", "contrasts", "patients"}
    for cases in result["growth"].values():
        for found in cases.values():
            assert all(value > 0 for value in found["seconds"].values())
    assert result["study"]["efficiency"] > 0
    assert "efficiency from one to two" in shown
