"""What measurements share: the origin of a result."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import _measure as measure

BENCHMARKS = sorted(Path(measure.__file__).parent.rglob("bench_*.py"))


def test_the_origin_names_command_code_and_packages():
    script = measure.ROOT / "benchmarks" / "costs" / "bench_x.py"
    origin = measure.provenance(script, words=["--seeds", "1"], packages=["numpy"], quick=True)
    keys = ("commit", "changed", "command", "quick", "date", "machine", "versions")
    assert tuple(origin) == keys
    assert origin["command"] == "python -m benchmarks.costs.bench_x --seeds 1 --quick"
    assert origin["versions"]["numpy"] == np.__version__
    assert "quick" not in measure.provenance(script)


def test_tiny_sizes_need_a_file_of_their_own():
    result = measure.RESULTS / "x.json"
    with pytest.raises(SystemExit) as stopped:
        measure.chosen(measure.options("X", result), ["--quick"], result)
    assert stopped.value.code == 2


def test_the_load_at_the_end_is_that_when_the_result_is_written(tmp_path, monkeypatch):
    earlier = measure.machine() | {"load_at_end": 0.5}
    result = {"machine": measure.machine(), "against": {"machine": measure.machine()}, "earlier": earlier}
    monkeypatch.setattr(measure.os, "getloadavg", lambda: (7.123, 0.0, 0.0))
    measure.write(result, tmp_path / "result.json")
    stored = measure.stored(tmp_path / "result.json")
    assert stored["machine"]["load_at_end"] == stored["against"]["machine"]["load_at_end"] == 7.12
    assert stored["earlier"]["load_at_end"] == 0.5


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.name)
def test_no_benchmark_writes_its_command_by_hand(path):
    assert '"command":' not in path.read_text(encoding="utf-8")
