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
    return Limits(parameters, float(least_volume), low.copy(), high.copy(), 1.0, nothing, 1)


def make_problem(grid, limits):
    """Minimize without excluded regions, in a volume of 40 mm."""
    excluded = Excluded(
        np.zeros((0, 2, 2, 2), np.float32), np.zeros((0, 2)), grid.matrix, grid.inverse, grid.offset
    )
    return Problem(grid, excluded, np.full(3, -0.5), np.full(3, 39.5), limits)


def ball_problem(preference, *, sides=(10, 60), one_sided=False):
    """Minimize in a ball with a soft outline, whose cost is smooth."""
    points = np.moveaxis(np.indices((40, 40, 40)), 0, -1) - 19.3
    tumor = np.clip(0.5 + (14 - np.linalg.norm(points, axis=-1)) / 6, 0, 1).astype(np.float32)
    rows = Rows.of(tumor, np.eye(4), (0, 0, 0))
    grid = Grid(rows.prefix, rows.matrix, np.linalg.inv(rows.matrix), rows.offset)
    limits = make_limits((3000, 1500, 0.9, 0.05), least_volume=1000, sides=sides, one_sided=one_sided)
    return make_problem(grid, limits._replace(preference=preference, n_rows=3))


def check_slopes(x, problem, free=(1, 1, 1)):
    """Compare the slopes of a box with finite differences."""
    n_regions = len(problem.excluded.margins)
    work, rows = overlap._new_work(n_regions), np.zeros((4 + n_regions, 9))
    slopes = overlap.Slopes(
        0.5, rows, np.empty((3, 2)), np.empty((3, 2, 3)), np.empty(3), np.zeros((5, 9)), np.empty((9, 9))
    )
    _, fraction = overlap._scored(x, problem, work)
    overlap._gradient(x, fraction, np.array(free, float), problem, work, slopes)
    step = np.repeat([0.3, 0.01, 0.02], 3)
    rises = [np.subtract(*overlap.costs_of(x + np.outer((1, -1), change), *problem)) / 2 for change in np.diag(step)]
    rises = np.array(rises) * [1, 1, 1, 1, 1, 1, *free]
    errors = slopes.rows[0] * step - rises
    assert np.linalg.norm(errors) < 0.05 * np.linalg.norm(rises)


SHAPE = (*np.log([17.0, 20.0, 24.0]), 0.3, -0.4, 0.2)


@pytest.mark.parametrize("free", [(0, 0, 0), (0, 1, 0), (1, 0, 1), (1, 1, 1)])
def test_slopes_are_those_of_finite_differences(free):
    problem = ball_problem(Preference(2.0, np.array([10.0, 12.0, 20.0]), 0.2))
    check_slopes(np.array([20.0, 18.0, 22.5, *SHAPE]), problem, free)


@pytest.mark.parametrize(("margin", "tolerance"), [(0.0, 0.0), (2.0, 0.0), (2.0, 0.03)])
def test_slopes_of_boxes_in_excluded_regions_are_those_of_finite_differences(margin, tolerance):
    problem = ball_problem(Preference(0.0, np.zeros(3)))
    soft = np.clip((np.indices((40, 40, 40))[0] - 18) / 12, 0, 1).astype(np.float32)
    rows = Rows.of(soft, np.eye(4), (0, 0, 0))
    excluded = Excluded(
        np.stack([rows.prefix, rows.prefix[::-1].copy()]),
        np.array([[margin, tolerance], [0.0, 0.0]]),
        *problem.grid[1:],
    )
    check_slopes(np.array([20.0, 18.0, 20.5, *SHAPE]), problem._replace(excluded=excluded))


@pytest.mark.parametrize("center", [(5, 20, 21), (34, 20, 21), (20, 34, 6)])
def test_slopes_of_boxes_beyond_the_image_are_those_of_finite_differences(center):
    x = np.array([*center, *np.log([17.0, 20.0, 18.0]), 0, 0, 0], float)
    check_slopes(x, ball_problem(Preference(0.0, np.zeros(3))), (0, 0, 0))


def slide_settings(n_steps=60):
    return SlideSettings(np.repeat([4.0, 0.2, 0.2], 3), 0.7, n_steps, 1e-9, 0.1)


def test_a_slide_along_the_gradient_ends_below_where_it_starts():
    problem = ball_problem(Preference(0.0, np.zeros(3)))
    x = np.array([[14.0, 23, 25, *np.log([18, 18, 18]), 0, 0, 0]])
    before = overlap.costs_of(x, *problem)
    x_best, costs, boxes = overlap.slide(x, np.ones((1, 3)), problem, slide_settings())
    after = overlap.costs_of(x_best, *problem)
    assert costs[0] == after[0] < 1e-3 < before[0]
    np.testing.assert_allclose(boxes[0, 2:] @ boxes[0, 2:].T, np.eye(3), atol=1e-9)


def test_a_slide_ends_at_the_preferred_center_with_equal_sides():
    problem = ball_problem(Preference(0.02, np.full(3, 19.3)), one_sided=True)
    x = np.array([[14.0, 21, 22, *np.log([14, 18, 24]), 0, 0, 0]])
    _, _, boxes = overlap.slide(x, np.zeros((1, 3)), problem, slide_settings())
    np.testing.assert_allclose(boxes[0, 0], 19.3, atol=0.5)
    np.testing.assert_allclose(boxes[0, 1], boxes[0, 1].mean(), rtol=0.05)


def test_a_slide_keeps_sides_and_image():
    problem = ball_problem(Preference(0.0, np.zeros(3)), sides=(10, 19))
    x = np.array([[7.0, 18, 20, *np.log([12, 18, 25]), 0, 0, 0]])
    _, _, boxes = overlap.slide(x, np.ones((1, 3)), problem, slide_settings())
    assert boxes[0, 1].min() >= 10 - 1e-9
    assert boxes[0, 1].max() <= 19 + 1e-9
    corners = boxes[0, 0] + (np.array([[s, t, u] for s in (-1, 1) for t in (-1, 1) for u in (-1, 1)]) * boxes[0, 1] / 2) @ boxes[0, 2:].T
    assert corners.min() >= -0.5 - 0.1
    assert corners.max() <= 39.5 + 0.1


@pytest.mark.parametrize(("least_volume", "side"), [(1000.0, 18.0), (8000.0, 20.0)])
def test_costs_are_half_the_squares_of_both_terms_and_of_broken_limits(least_volume, side):
    grid = cuboid_grid()
    objective = 9000, 1500, 0.9, 0.2
    limits = make_limits(objective, least_volume=least_volume, sides=(10, 30))
    problem = make_problem(grid, limits)
    x = np.array([[23.5, 18.5, 18.5, *np.log([18, 18, 18]), 0, 0, 0]])
    # The box is centered 6 mm before the face of the tumor at 29.5 mm.
    fraction = (6 + side / 2) / side
    expected = 0.5 * ((fraction - 0.9) / 0.2) ** 2 + 0.5 * ((fraction * side**3 - 9000) / 1500) ** 2
    # Sides that have to grow to the least volume cost the square of the logarithm of their growth.
    expected += np.log(side / 18) ** 2
    costs = overlap.costs_of(x, *problem)
    np.testing.assert_allclose(costs, expected, rtol=1e-5)
    x[0, 3] = np.log(36)
    wide = make_limits(objective, least_volume=least_volume, sides=(10, 36))
    free = overlap.costs_of(x, *make_problem(grid, wide))
    cut = overlap.costs_of(x, *problem)
    x[0, 3] = np.log(30)
    at_limit = overlap.costs_of(x, *problem)
    np.testing.assert_allclose(cut - at_limit, np.log(36 / 30) ** 2, rtol=1e-5)
    assert free[0] != pytest.approx(cut[0], rel=1e-3)


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


def test_dice_coefficients_of_arrays_are_those_of_voxels():
    rng = np.random.default_rng(5)
    voxels = [
        Voxel(rng.uniform(-8, 8, 3), rng.uniform(12, 30, 3), rng.uniform(-40, 40, 3))
        for _ in range(12)
    ]
    boxes = np.array([[voxel.center, voxel.size, *voxel.rotation] for voxel in voxels])
    dice = np.array([[voxel.dice(other) for other in voxels] for voxel in voxels])
    np.testing.assert_allclose(overlap.pair_dices(boxes, boxes[:5]), dice[:, :5], atol=1e-6)
    sampled = overlap.sampled_dices(boxes, 12)
    np.testing.assert_array_equal(sampled, sampled.T)
    np.testing.assert_allclose(sampled, dice, atol=0.03)
    assert np.abs(overlap.sampled_dices(boxes, 4) - dice).max() < 0.1
