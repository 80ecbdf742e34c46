import subprocess
import sys
from pathlib import Path

import numpy as np

from placement import Voxel, _overlap
from placement.rows import Rows

RUN = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np, kernel
print(kernel.running_sums(np.ones((1, 1, 3), np.float32))[1, 1].tolist(), len(kernel.running_sums.stats.cache_hits))
"""


def run(folder):
    done = subprocess.run([sys.executable, "-c", RUN, str(folder)], capture_output=True, text=True, check=True)
    return done.stdout.split("]")


def test_compiled_code_is_kept_on_disk_and_never_stale(tmp_path):
    source = Path(_overlap.__file__).read_text(encoding="utf-8")
    kernel = tmp_path / "kernel.py"
    kernel.write_text(source)
    assert run(tmp_path) == ["[0.0, 1.0, 2.0, 3.0", " 0\n"]
    assert run(tmp_path) == ["[0.0, 1.0, 2.0, 3.0", " 1\n"]
    kernel.write_text(source.replace("total += volume[i, j, k]", "total += 2.0 * volume[i, j, k]"))
    assert run(tmp_path) == ["[0.0, 2.0, 4.0, 6.0", " 0\n"]


def test_quick_rows_agree_with_the_accurate_integral():
    rng = np.random.default_rng(0)
    grid = np.moveaxis(np.indices((50, 50, 50)), 0, -1)
    tumor = np.linalg.norm((grid - 24.5) / (20, 16, 14), axis=-1) < 1
    rows = Rows.of(tumor, np.eye(4), (0, 0, 0))
    grid = rows.prefix, rows.matrix, np.linalg.inv(rows.matrix), rows.offset
    for _ in range(20):
        voxel = Voxel(24.5 + rng.uniform(-8, 8, 3), rng.uniform(10, 28, 3), rng.uniform(-90, 90, 3))
        exact = rows.fraction(voxel)
        rotation = np.ascontiguousarray(voxel.rotation)
        assert abs(_overlap.fraction(grid, voxel.center, rotation, voxel.size / 2, 1) - exact) < 6e-3
        assert abs(_overlap.fraction(grid, voxel.center, rotation, voxel.size / 2, 4) - exact) < 1e-3


def test_averaged_rows_keep_the_sum():
    rng = np.random.default_rng(1)
    sums = _overlap.running_sums(rng.random((7, 8, 5)).astype(np.float32))
    averaged = _overlap.average_rows(sums, 3, 2)
    assert averaged.shape == (5, 6, 6)
    np.testing.assert_allclose(averaged.sum(axis=(0, 1)) * 6, sums.sum(axis=(0, 1)), rtol=1e-5)


def test_the_simplex_ends_below_where_it_starts():
    tumor = np.zeros((40, 40, 40), np.float32)
    tumor[8:30, 8:30, 8:30] = 1
    rows = Rows.of(tumor, np.eye(4), (0, 0, 0))
    inverse = np.linalg.inv(rows.matrix)
    grid = rows.prefix, rows.matrix, inverse, rows.offset
    forbidden = np.zeros((0, 2, 2, 2), np.float32), rows.offset, rows.matrix, inverse
    ends = np.full(3, -0.5), np.full(3, 39.5)
    limits = np.array([8000, 2000, 0.95, 0.05, 0, 6000, *np.log([10] * 3), *np.log([60] * 3), 3.0])
    x = np.zeros((1, 9))
    x[0, 3:6] = np.log(18)
    origin = np.array([[16.0, 20, 21]])
    frame = np.array([7]), np.eye(3)[None], origin
    common = *frame, grid, forbidden, np.zeros((0, 2)), *ends, limits
    before = _overlap.costs_of(x, *common)
    steps, rounds = np.array([3.0, 0.1, 0.2]), np.array([[1, 500]])
    found, costs, boxes = _overlap.descend(x, *common, steps, rounds, 1e-6)
    after = _overlap.costs_of(found, *common)
    assert costs[0] == after[0] < 1e-3 < before[0]
    np.testing.assert_allclose(boxes[0, 2:] @ boxes[0, 2:].T, np.eye(3), atol=1e-9)
