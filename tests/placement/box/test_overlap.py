import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from placement import Voxel
from placement.box import overlap
from placement.box.overlap import (
    NO_LIMIT,
    Excluded,
    Grid,
    Limits,
    ObjectiveParameters,
    Preference,
    Problem,
)
from placement.box.row_integrals import Rows

RUN = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np, kernel
print(kernel._voxel_strips(0.0, 1.0, 1, np.empty(9), np.empty(9)), len(kernel._voxel_strips.stats.cache_hits))
"""


def run(folder):
    done = subprocess.run([sys.executable, "-c", RUN, str(folder)], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_compiled_code_is_kept_on_disk_and_never_stale(tmp_path):
    source = Path(overlap.__file__).read_text(encoding="utf-8")
    kernel = tmp_path / "kernel.py"
    kernel.write_text(source)
    assert run(tmp_path) == ["3", "0"]
    assert run(tmp_path) == ["3", "1"]
    kernel.write_text(source.replace("border += 1.0", "border += 2.0"))
    assert run(tmp_path) == ["2", "0"]


def test_quick_rows_agree_with_the_accurate_integral():
    rng = np.random.default_rng(0)
    grid = np.moveaxis(np.indices((50, 50, 50)), 0, -1)
    tumor = np.linalg.norm((grid - 24.5) / (20, 16, 14), axis=-1) < 1
    rows = Rows.of(tumor, np.eye(4), (0, 0, 0))
    grid = Grid(rows.prefix, rows.matrix, np.linalg.inv(rows.matrix), rows.offset)
    for _ in range(20):
        voxel = Voxel(24.5 + rng.uniform(-8, 8, 3), rng.uniform(10, 28, 3), rng.uniform(-90, 90, 3))
        exact = rows.fraction(voxel)
        box = np.vstack([voxel.center, voxel.size, voxel.rotation])[None]
        assert abs(overlap.fractions(box, grid, 0.0, 1)[0] - exact) < 6e-3
        assert abs(overlap.fractions(box, grid, 0.0, 4)[0] - exact) < 1e-3


def cuboid_grid():
    """Make rows of a cuboid of tumor from 7.5 to 29.5 mm in a volume of 40 mm."""
    tumor = np.zeros((40, 40, 40), np.float32)
    tumor[8:30, 8:30, 8:30] = 1
    rows = Rows.of(tumor, np.eye(4), (0, 0, 0))
    return Grid(rows.prefix, rows.matrix, np.linalg.inv(rows.matrix), rows.offset)


def make_limits(objective, *, least_volume, sides, one_sided=False):
    low, high = np.log(np.broadcast_to(np.array(sides, float), (3, 2)).T)
    parameters = ObjectiveParameters(*map(float, objective), 0.0 if one_sided else NO_LIMIT)
    nothing = Preference(0.0, np.zeros(3))
    return Limits(parameters, float(least_volume), low.copy(), high.copy(), 3.0, nothing, 1)


def make_problem(grid, limits):
    """Minimize without excluded regions, in a volume of 40 mm."""
    excluded = Excluded(np.zeros((0, 2, 2, 2), np.float32), np.zeros((0, 2)), grid.matrix, grid.inverse, grid.offset)
    return Problem(grid, excluded, np.full(3, -0.5), np.full(3, 39.5), limits)


def ball_problem(preference, *, sides=(10, 60), one_sided=False):
    """Minimize in a ball with a soft outline, whose cost is smooth."""
    points = np.moveaxis(np.indices((40, 40, 40)), 0, -1) - 19.3
    tumor = np.clip(0.5 + (14 - np.linalg.norm(points, axis=-1)) / 6, 0, 1).astype(np.float32)
    rows = Rows.of(tumor, np.eye(4), (0, 0, 0))
    grid = Grid(rows.prefix, rows.matrix, np.linalg.inv(rows.matrix), rows.offset)
    limits = make_limits((3000, 1500, 0.9, 0.05), least_volume=1000, sides=sides, one_sided=one_sided)
    return make_problem(grid, limits._replace(preference=preference, n_rows=3))


def descended(problem, kind, center, sides):
    """Search twice from an unturned box; its center, sides and rotation."""
    x = np.zeros((1, 9))
    x[0, 3:6] = np.log(sides)
    frames = np.array([kind]), np.eye(3)[None], np.array([center], float)
    for _ in range(2):
        x, _, boxes = overlap.descend(x, *frames, problem, np.array([2.0, 0.1, 0.2]), np.array([[1, 400]]), 1e-6)
    return boxes[0]


def test_a_search_ends_at_the_preferred_center_with_equal_sides_and_keeps_sides_and_image():
    problem = ball_problem(Preference(0.02, np.full(3, 19.3)), one_sided=True)
    box = descended(problem, 0, (14, 21, 22), (14, 18, 24))
    np.testing.assert_allclose(box[0], 19.3, atol=0.5)
    np.testing.assert_allclose(box[1], box[1].mean(), rtol=0.05)
    problem = ball_problem(Preference(0.0, np.zeros(3)), sides=(10, 19))
    box = descended(problem, 7, (7, 18, 20), (12, 18, 25))
    assert box[1].min() >= 10 - 1e-9
    assert box[1].max() <= 19 + 1e-9
    corners = Voxel.from_rotation(box[0], box[1], box[2:]).corners
    assert corners.min() >= -0.5 - 1e-6
    assert corners.max() <= 39.5 + 1e-6


@pytest.mark.parametrize(("least_volume", "side"), [(1000.0, 18.0), (8000.0, 20.0)])
def test_costs_are_half_the_squares_of_both_terms_and_of_broken_limits(least_volume, side):
    grid = cuboid_grid()
    frames = np.array([0]), np.eye(3)[None], np.array([[18.5, 18.5, 18.5]])
    objective = 9000, 1500, 0.9, 0.2
    limits = make_limits(objective, least_volume=least_volume, sides=(10, 30))
    problem = make_problem(grid, limits)
    x = np.zeros((1, 9))
    x[0, :3] = 5, 0, 0
    x[0, 3:6] = np.log(18)
    # The box is centered 6 mm before the face of the tumor at 29.5 mm.
    fraction = (6 + side / 2) / side
    expected = 0.5 * ((fraction - 0.9) / 0.2) ** 2 + 0.5 * ((fraction * side**3 - 9000) / 1500) ** 2
    # Sides that have to grow to the least volume cost the square of the logarithm of their growth.
    expected += np.log(side / 18) ** 2
    costs = overlap.costs_of(x, *frames, *problem)
    np.testing.assert_allclose(costs, expected, rtol=1e-5)
    x[0, 3] = np.log(36)
    wide = make_limits(objective, least_volume=least_volume, sides=(10, 36))
    free = overlap.costs_of(x, *frames, *make_problem(grid, wide))
    cut = overlap.costs_of(x, *frames, *problem)
    x[0, 3] = np.log(30)
    at_limit = overlap.costs_of(x, *frames, *problem)
    np.testing.assert_allclose(cut - at_limit, np.log(36 / 30) ** 2, rtol=1e-5)
    assert free[0] != pytest.approx(cut[0], rel=1e-3)


@pytest.mark.parametrize("one_sided", [False, True])
def test_the_scan_scores_boxes_as_counting_voxels_does(one_sided):
    rng = np.random.default_rng(2)
    tumor = np.zeros((20, 22, 24), np.float32)
    tumor[4:15, 5:17, 4:19] = 1
    tumor[rng.random(tumor.shape) < 0.05] = 0
    limits = make_limits((400, 150, 0.8, 0.1), least_volume=100, sides=(3, 12), one_sided=one_sided)
    sums = Rows.of(tumor, np.eye(4), (0, 0, 0)).prefix
    shapes = np.array(list(itertools.product((3, 4, 6, 8, 12), repeat=3)))
    places, sides, costs = overlap.scan(sums, 1, shapes, 1.0, limits, 2)
    assert len(costs) == 10 * 11 * 24

    def count(middle, size, grow=0):
        low = np.maximum(np.rint(middle - size / 2 - grow), 0).astype(int)
        high = np.maximum(np.rint(middle + size / 2 + grow), 0).astype(int)
        return tumor[tuple(slice(a, b) for a, b in zip(low, high, strict=True))].sum()

    def cost_of(middle, size):
        tumor_sum = count(middle, size)
        purity = (tumor_sum / size.prod() - 0.8) / 0.1
        if one_sided:
            purity = min(purity, 0)
        deep = count(middle, size, 2) / (size + 4).prod()
        return purity**2 / 2 + ((tumor_sum - 400) / 150) ** 2 / 2 - 0.05 * deep

    assert len(np.unique(sides, axis=0)) > 10
    for index in rng.choice(len(costs), 60, replace=False):
        cost = cost_of(places[index], sides[index])
        assert costs[index] == pytest.approx(cost, rel=1e-3, abs=1e-3)
        # No other sides are better at the place, but for how deep they lie.
        corner = places[index] - sides[index] / 2
        middle = corner + sides[index] // 2
        for shape in shapes:
            rival = cost_of(middle - shape // 2 + shape / 2, shape)
            assert costs[index] <= rival + 0.06


def test_the_scan_of_thick_blocks_counts_their_layers():
    tumor = np.zeros((12, 12, 24), np.float32)
    tumor[3:9, 3:9, 6:18] = 1
    limits = make_limits((432, 100, 0.95, 0.1), least_volume=100, sides=(4, 12))
    sums = Rows.of(tumor, np.diag([1.0, 1, 1.0001, 1]), (0, 0, 0)).prefix
    shapes = np.array(list(itertools.product((4, 5, 6, 7, 8), repeat=3)))
    # Blocks of 1 × 1 × 2 voxels: the tumor is 6 × 6 × 6 of them, from layer 3 on.
    places, sides, costs = overlap.scan(sums, 2, shapes, 2.0, limits, 1)
    best = np.argmin(costs)
    np.testing.assert_allclose(places[best], [6, 6, 6])
    np.testing.assert_allclose(sides[best], [6, 6, 6])
    assert costs[best] == pytest.approx(0.5 * 0.25 - 0.05 * 216 / 1000, abs=1e-3)


def test_boxes_can_be_grown_before_their_part_of_tumor_is_computed():
    box = np.array([[18.5, 18.5, 18.5], [12, 14, 16], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    boxes = np.stack([box, box])
    boxes[1, 0, 0] += 11
    parts = overlap.fractions(boxes, cuboid_grid(), 4.0, 1)
    # Grown by 4 mm on each side, the first measures 20, 22 and 24 mm in a tumor of 22 mm.
    np.testing.assert_allclose(parts, [22 / 24, 0.5 * 22 / 24], atol=1e-6)
    plain = overlap.fractions(boxes, cuboid_grid(), 0.0, 1)
    np.testing.assert_allclose(plain, [1, 0.5], atol=1e-6)
