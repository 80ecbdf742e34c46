"""What measurements share: the origin of a result, parts that are kept, exponents, summaries, blocks of a page."""

import json
import sys

import numpy as np
import pytest

from benchmarks import _measure as measure
from benchmarks import _runs as runs
from benchmarks.costs.bench_scale import slopes


def test_the_origin_names_command_code_and_packages_as_they_were_given(tmp_path, monkeypatch):
    script = measure.ROOT / "benchmarks" / "costs" / "bench_x.py"
    origin = measure.provenance(script, words=["--seeds", "1"], packages=["numpy"], quick=True)
    keys = ("commit", "changed", "command", "quick", "date", "machine", "versions")
    assert tuple(origin) == keys
    assert origin["command"] == "python -m benchmarks.costs.bench_x --seeds 1 --quick"
    assert origin["versions"]["numpy"] == np.__version__
    assert "quick" not in measure.provenance(script)
    out = tmp_path / "sizes.json"
    monkeypatch.setattr(sys, "argv", ["sizes", "--quick", "--out", str(out)])
    runs.main(lambda chosen: {"is_small": chosen.quick}, out, markdown=lambda _: "")
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["is_small"]
    assert sorted(result["command"].split()[3:]) == sorted(["--quick", "--out", str(out)])


def test_tiny_sizes_need_a_file_of_their_own(tmp_path):
    parser = measure.options("X", tmp_path / "x.json")
    with pytest.raises(SystemExit):
        measure.chosen(parser, ["--quick"], tmp_path / "x.json")
    assert measure.chosen(parser, [], tmp_path / "x.json").out == tmp_path / "x.json"


def test_slopes_are_the_exponents_of_powers():
    found = slopes({n: 3e-6 * n**2 for n in (2, 4, 8, 128)})
    assert (found["slope"], found["slope_at_the_end"]) == (2, 2)
    found = slopes({n: 1 + 1e-3 * n for n in (1, 10, 10**6, 10**7)})
    assert found["slope"] < found["slope_at_the_end"] == 1
    assert found["seconds"]["1"] == 1.001


def test_parts_are_made_once_and_one_of_another_size_ends_the_run(tmp_path):
    made = []

    def make(number):
        made.append(number)
        return {"number": number}

    parts = [runs.Part(f"hard world-{n}", {"size": 3}, make, (n,)) for n in (1, 2)]
    paths = runs.finished(parts[:1], tmp_path / "parts")
    assert runs.finished(parts, tmp_path / "parts")[:1] == paths
    assert made == [1, 2]
    assert paths[0].name == "hard-world-1.json"
    with pytest.raises(SystemExit, match=r"hard-world-1.json is of a board of another size: remove it"):
        runs.finished([runs.Part("hard world-1", {"size": 4}, make, (1,))], tmp_path / "parts")
    assert made == [1, 2]


def test_a_block_is_put_between_its_markers_and_nowhere_else():
    text = "before\n<!-- x: begin -->\nold\n<!-- x: end -->\nafter <!-- y: begin -->"
    new = measure.replace_block(text, "x", r"new \1")
    assert new == "before\n<!-- x: begin -->\nnew \\1\n<!-- x: end -->\nafter <!-- y: begin -->"
    assert measure.replace_block(new, "x", r"new \1") == new
    with pytest.raises(ValueError, match="<!-- z: begin -->"):
        measure.replace_block(text, "z", "")


def test_summaries_are_per_voxel_with_quartiles():
    found = measure.summary([4.0, 1.0, 2.0, 3.0, 5.0], 1_000_000)
    assert (found["best_us"], found["q25_us"], found["median_us"], found["q75_us"]) == (1, 2, 3, 4)
    assert (found["repeats"], found["n_voxels"]) == (5, 1_000_000)
