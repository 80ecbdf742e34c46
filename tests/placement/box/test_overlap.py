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
    SlideSettings,
)
from placement.box.row_integrals import Rows
from placement.box.voxel import rotation_of

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
    source = Path(overlap.__file__).read_text(encoding="utf-8")
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
    grid = Grid(rows.prefix, rows.matrix, np.linalg.inv(rows.matrix), rows.offset)
    for _ in range(20):
        voxel = Voxel(24.5 + rng.uniform(-8, 8, 3), rng.uniform(10, 28, 3), rng.uniform(-90, 90, 3))
        exact = rows.fraction(voxel)
        box = np.vstack([voxel.center, voxel.size, voxel.rotation])[None]
        assert abs(overlap.fractions(box, grid, 0.0, 1)[0] - exact) < 6e-3
        assert abs(overlap.fractions(box, grid, 0.0, 4)[0] - exact) < 1e-3


def test_averaged_rows_keep_the_sum():
    rng = np.random.default_rng(1)
    sums = overlap.running_sums(rng.random((7, 8, 5)).astype(np.float32))
    averaged = overlap.average_rows(sums, 3, 2)
    assert averaged.shape == (5, 6, 6)
    np.testing.assert_allclose(averaged.sum(axis=(0, 1)) * 6, sums.sum(axis=(0, 1)), rtol=1e-5)


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
    excluded = Excluded(
        np.zeros((0, 2, 2, 2), np.float32), np.zeros((0, 2)), grid.matrix, grid.inverse, grid.offset
    )
    return Problem(grid, excluded, np.full(3, -0.5), np.full(3, 39.5), limits)


def test_the_simplex_ends_below_where_it_starts():
    limits = make_limits((8000, 2000, 0.95, 0.05), least_volume=6000, sides=(10, 60))
    problem = make_problem(cuboid_grid(), limits)
    x = np.zeros((1, 9))
    x[0, 3:6] = np.log(18)
    frames = np.array([7]), np.eye(3)[None], np.array([[16.0, 20, 21]])
    before = overlap.costs_of(x, *frames, *problem)
    steps, rounds = np.array([3.0, 0.1, 0.2]), np.array([[1, 500]])
    x_best, costs, boxes = overlap.descend(x, *frames, problem, steps, rounds, 1e-6)
    after = overlap.costs_of(x_best, *frames, *problem)
    assert costs[0] == after[0] < 1e-3 < before[0]
    np.testing.assert_allclose(boxes[0, 2:] @ boxes[0, 2:].T, np.eye(3), atol=1e-9)


def ball_problem(preference, *, sides=(10, 60), one_sided=False):
    """Minimize in a ball with a soft outline, whose cost is smooth."""
    points = np.moveaxis(np.indices((40, 40, 40)), 0, -1) - 19.3
    tumor = np.clip(0.5 + (14 - np.linalg.norm(points, axis=-1)) / 6, 0, 1).astype(np.float32)
    rows = Rows.of(tumor, np.eye(4), (0, 0, 0))
    grid = Grid(rows.prefix, rows.matrix, np.linalg.inv(rows.matrix), rows.offset)
    limits = make_limits((3000, 1500, 0.9, 0.05), least_volume=1000, sides=sides, one_sided=one_sided)
    return make_problem(grid, limits._replace(preference=preference, n_rows=3))


def check_slopes(x, frame, problem):
    """Compare the slopes of a box with finite differences."""
    work, slopes = overlap._new_work(), overlap._new_slopes(0.5)
    _, fraction = overlap._scored(x, frame, problem, work)
    overlap._gradient(x, fraction, frame, problem, work, slopes)
    d = overlap._n_variables(frame.kind)
    step = np.repeat([0.3, 0.01, 0.02], 3)
    rises = []
    for p in range(d):
        ends = [overlap._cost(x + sign * step * np.eye(9)[p], frame, problem, work) for sign in (1, -1)]
        rises.append((ends[0] - ends[1]) / 2)
    errors = slopes.rows[0, :d] * step[:d] - rises
    assert np.linalg.norm(errors) < 0.05 * np.linalg.norm(rises)


@pytest.mark.parametrize("kind", [0, 2, 5, 7, 8, 10])
def test_slopes_are_those_of_finite_differences(kind):
    x = np.array([1.0, -2.0, 1.5, *np.log([17.0, 20.0, 24.0]), 0.3, -0.4, 0.2])
    frame = overlap.Frame(kind, rotation_of((10, -20, 30)), np.array([19.0, 20.0, 21.0]))
    check_slopes(x, frame, ball_problem(Preference(2.0, np.array([10.0, 12.0, 20.0]))))


@pytest.mark.parametrize("center", [(5, 20, 21), (34, 20, 21), (20, 34, 6)])
def test_slopes_of_boxes_beyond_the_image_are_those_of_finite_differences(center):
    x = np.array([0, 0, 0, *np.log([17.0, 20.0, 18.0]), 0, 0, 0])
    frame = overlap.Frame(0, np.eye(3), np.array(center, float))
    check_slopes(x, frame, ball_problem(Preference(0.0, np.zeros(3))))


def slide_settings(n_steps=60):
    return SlideSettings(np.repeat([4.0, 0.2, 0.2], 3), 0.7, n_steps, 1e-9, 0.1)


def test_a_slide_along_the_gradient_ends_below_where_it_starts():
    problem = ball_problem(Preference(0.0, np.zeros(3)))
    x = np.zeros((1, 9))
    x[0, 3:6] = np.log(18)
    frames = np.array([7]), np.eye(3)[None], np.array([[14.0, 23, 25]])
    before = overlap.costs_of(x, *frames, *problem)
    x_best, costs, boxes = overlap.slide(x, *frames, problem, slide_settings())
    after = overlap.costs_of(x_best, *frames, *problem)
    assert costs[0] == after[0] < 1e-3 < before[0]
    np.testing.assert_allclose(boxes[0, 2:] @ boxes[0, 2:].T, np.eye(3), atol=1e-9)


def test_a_slide_ends_at_the_preferred_center_with_equal_sides():
    problem = ball_problem(Preference(0.02, np.full(3, 19.3)), one_sided=True)
    x = np.zeros((1, 9))
    x[0, 3:6] = np.log([14, 18, 24])
    frames = np.array([0]), np.eye(3)[None], np.array([[14.0, 21, 22]])
    # Simplex searches take it across the bends of the objective where voxels end.
    steps, rounds = np.array([2.0, 0.1, 0.2]), np.array([[1, 200]])
    for _ in range(2):
        x, _, _ = overlap.descend(x, *frames, problem, steps, rounds, 1e-6)
        x, _, boxes = overlap.slide(x, *frames, problem, slide_settings())
    np.testing.assert_allclose(boxes[0, 0], 19.3, atol=0.5)
    np.testing.assert_allclose(boxes[0, 1], boxes[0, 1].mean(), rtol=0.05)


def test_a_slide_keeps_sides_and_image():
    problem = ball_problem(Preference(0.0, np.zeros(3)), sides=(10, 19))
    x = np.zeros((1, 9))
    x[0, 3:6] = np.log([12, 18, 25])
    frames = np.array([7]), np.eye(3)[None], np.array([[7.0, 18, 20]])
    _, _, boxes = overlap.slide(x, *frames, problem, slide_settings())
    assert boxes[0, 1].min() >= 10 - 1e-9
    assert boxes[0, 1].max() <= 19 + 1e-9
    corners = boxes[0, 0] + (np.array([[s, t, u] for s in (-1, 1) for t in (-1, 1) for u in (-1, 1)]) * boxes[0, 1] / 2) @ boxes[0, 2:].T
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
    sums = overlap.running_sums(tumor)
    places, sides, costs = overlap.scan(sums, 1, np.ones(3), 1.0, limits, 2, 12.0)
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

    assert ((sides >= 3) & (sides <= 12)).all()
    shapes = np.unique(sides, axis=0)
    assert len(shapes) > 10
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
    sums = overlap.running_sums(tumor)
    # Blocks of 1 × 1 × 2 voxels: the tumor is 6 × 6 × 6 of them, from layer 3 on.
    places, sides, costs = overlap.scan(sums, 2, np.array([1.0, 1, 2]), 2.0, limits, 1, 12.0)
    best = np.argmin(costs)
    np.testing.assert_allclose(places[best], [6, 6, 6])
    np.testing.assert_allclose(sides[best], [6, 6, 6])
    assert costs[best] == pytest.approx(0.5 * 0.25 - 0.05 * 216 / 1000, abs=1e-3)


def test_points_and_boxes_that_are_alike_are_chosen_once():
    points = np.array([[0.0, 0, 0], [3, 0, 0], [3.1, 0, 0], [0, 0, 9]])
    order = np.array([2, 0, 1, 3])
    np.testing.assert_array_equal(overlap.apart(points, order, 4, 3.0), [2, 0, 3])
    np.testing.assert_array_equal(overlap.apart(points, order, 2, 3.0), [2, 0])
    boxes = np.zeros((4, 5, 3))
    boxes[:, 1] = 20
    boxes[1, 0, 2], boxes[2, 1, 0] = 2.0, 22.5
    boxes[3, 2:] = 1
    numbers = boxes[:, :2].reshape(4, 6)
    np.testing.assert_array_equal(overlap.apart(numbers, np.arange(4), 4, 2.0, True), [0, 2])


def test_boxes_can_be_grown_before_their_part_of_tumor_is_computed():
    box = np.array([[18.5, 18.5, 18.5], [12, 14, 16], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    boxes = np.stack([box, box])
    boxes[1, 0, 0] += 11
    parts = overlap.fractions(boxes, cuboid_grid(), 4.0, 1)
    # Grown by 4 mm on each side, the first measures 20, 22 and 24 mm in a tumor of 22 mm.
    np.testing.assert_allclose(parts, [22 / 24, 0.5 * 22 / 24], atol=1e-6)
    plain = overlap.fractions(boxes, cuboid_grid(), 0.0, 1)
    np.testing.assert_allclose(plain, [1, 0.5], atol=1e-6)
