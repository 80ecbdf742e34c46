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


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.name)
def test_no_benchmark_writes_its_command_by_hand(path):
    assert '"command":' not in path.read_text(encoding="utf-8")
