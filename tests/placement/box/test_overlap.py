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
    ObjectiveParameters,
    Preference,
    Problem,
    SlideSettings,
)
from placement.box.row_integrals import Rows
from placement.learned.features import sampled_dices

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


def make_problem(grid, objective, *, least_volume, sides, one_sided=False, **changes):
    """Minimize without excluded regions, in a volume of 40 mm."""
    low, high = np.log(np.broadcast_to(np.array(sides, float), (3, 2)).T)
    excluded = Excluded(
        np.zeros((0, 2, 2, 2), np.float32), np.zeros((0, 2)), grid.matrix, grid.inverse, grid.offset
    )
    problem = Problem(
        grid,
        excluded,
        np.full(3, -0.5),
        np.full(3, 39.5),
        ObjectiveParameters(*map(float, objective), 0.0 if one_sided else NO_LIMIT),
        float(least_volume),
        low.copy(),
        high.copy(),
        3.0,
        Preference(0.0, np.zeros(3)),
        1,
    )
    return problem._replace(**changes)


def numbers(center, sides, angles=(0.0, 0, 0)):
    return np.array([[*center, *np.log(np.broadcast_to(np.array(sides, float), 3)), *angles]])


def slide_settings(n_steps=60):
    return SlideSettings(np.repeat([4.0, 0.2, 0.2], 3), 0.7, n_steps, 1e-9, 0.1)


def ball_problem(preference, *, sides=(10, 60), one_sided=False):
    """Minimize in a ball with a soft outline, whose cost is smooth."""
    points = np.moveaxis(np.indices((40, 40, 40)), 0, -1) - 19.3
    tumor = np.clip(0.5 + (14 - np.linalg.norm(points, axis=-1)) / 6, 0, 1).astype(np.float32)
    rows = Rows.of(tumor, np.eye(4), (0, 0, 0))
    grid = Grid(rows.prefix, rows.matrix, np.linalg.inv(rows.matrix), rows.offset)
    return make_problem(
        grid,
        (3000, 1500, 0.9, 0.05),
        least_volume=1000,
        sides=sides,
        one_sided=one_sided,
        preference=preference,
        n_rows=3,
    )


@pytest.mark.parametrize("method", ["descend", "slide"])
def test_searches_end_below_where_they_start(method):
    problem = ball_problem(Preference(0.0, np.zeros(3)))
    x, free = numbers((14, 23, 25), 18), np.ones((1, 3))
    before = overlap.costs_of(x, problem)
    if method == "slide":
        x_best, costs, boxes = overlap.slide(x, free, problem, slide_settings())
    else:
        steps, rounds = np.array([3.0, 0.1, 0.2]), np.array([[1, 500]])
        x_best, costs, boxes = overlap.descend(x, free, problem, steps, rounds, 1e-6)
    assert costs[0] == overlap.costs_of(x_best, problem)[0] < 1e-3 < before[0]
    np.testing.assert_allclose(boxes[0, 2:] @ boxes[0, 2:].T, np.eye(3), atol=1e-9)


@pytest.mark.parametrize("free", [(0, 0, 0), (1, 0, 0), (0, 1, 1), (1, 0, 1)])
def test_searches_leave_angles_that_are_not_free(free):
    problem = ball_problem(Preference(0.0, np.zeros(3)), sides=(10, 19))
    x = numbers((7, 18, 20), (12, 18, 25), 0.2 * np.array(free))
    varied = np.array([free], float)
    steps, rounds = np.array([3.0, 0.1, 0.2]), np.array([[1, 200]])
    for x_best, _, boxes in (
        overlap.slide(x, varied, problem, slide_settings()),
        overlap.descend(x, varied, problem, steps, rounds, 1e-6),
    ):
        assert ((x_best[0, 6:] != 0) == np.array(free, bool)).all()
        # Sides and the image are kept, too.
        assert boxes[0, 1].min() >= 10 - 1e-9
        assert boxes[0, 1].max() <= 19 + 1e-9
        corners = Voxel.from_rotation(*boxes[0, :2], boxes[0, 2:]).corners
        assert corners.min() >= -0.5 - 1e-6
        assert corners.max() <= 39.5 + 1e-6


@pytest.mark.parametrize("free", [(0, 0, 0), (0, 1, 0), (1, 1, 0), (1, 0, 1), (1, 1, 1)])
@pytest.mark.parametrize("center", [(20, 18, 22.5), (5, 20, 21), (34, 20, 21)])
def test_slopes_are_those_of_finite_differences(free, center):
    free = np.array(free, float)
    preference = Preference(2.0, np.array([10.0, 12.0, 20.0]))
    angles = np.array([0.3, -0.4, 0.2])
    if center[0] in (5, 34):
        # Beyond the image, slopes are not those of turns.
        free, angles = np.zeros(3), np.zeros(3)
    problem = ball_problem(preference)
    x = numbers(center, (17, 20, 24), angles)[0]
    work = overlap._new_work()
    _, fraction = overlap._scored(x, problem, work)
    overlap._gradient(x, fraction, free, problem, 0.5, work)
    slopes = work.rows[0].copy()
    step = np.repeat([0.3, 0.01, 0.02], 3)
    rises = []
    for p in range(9):
        ends = [overlap._scored(x + sign * step * np.eye(9)[p], problem, work)[0] for sign in (1, -1)]
        rises.append((ends[0] - ends[1]) / 2)
    is_free = np.append(np.ones(6), free)
    errors = slopes * step - rises * is_free
    assert np.linalg.norm(errors) < 0.05 * np.linalg.norm(rises)


def test_a_slide_ends_at_the_preferred_center_with_equal_sides():
    problem = ball_problem(Preference(0.02, np.full(3, 19.3)), one_sided=True)
    x, free = numbers((14, 21, 22), (14, 18, 24)), np.zeros((1, 3))
    # Simplex searches take it across the bends of the objective where voxels end.
    steps, rounds = np.array([2.0, 0.1, 0.2]), np.array([[1, 200]])
    for _ in range(2):
        x, _, _ = overlap.descend(x, free, problem, steps, rounds, 1e-6)
        x, _, boxes = overlap.slide(x, free, problem, slide_settings())
    np.testing.assert_allclose(boxes[0, 0], 19.3, atol=0.5)
    np.testing.assert_allclose(boxes[0, 1], boxes[0, 1].mean(), rtol=0.05)


@pytest.mark.parametrize(("least_volume", "side"), [(1000.0, 18.0), (8000.0, 20.0)])
def test_costs_are_half_the_squares_of_both_terms_and_of_broken_limits(least_volume, side):
    objective = 9000, 1500, 0.9, 0.2
    problem = make_problem(cuboid_grid(), objective, least_volume=least_volume, sides=(10, 30))
    # The box is centered 6 mm before the face of the tumor at 29.5 mm.
    fraction = (6 + side / 2) / side
    expected = 0.5 * ((fraction - 0.9) / 0.2) ** 2 + 0.5 * ((fraction * side**3 - 9000) / 1500) ** 2
    # Sides that have to grow to the least volume cost the square of the logarithm of their growth.
    expected += np.log(side / 18) ** 2
    center = (23.5, 18.5, 18.5)
    np.testing.assert_allclose(overlap.costs_of(numbers(center, 18), problem), expected, rtol=1e-5)
    wide = problem._replace(high_sides=np.full(3, np.log(36.0)))
    free = overlap.costs_of(numbers(center, (36, 18, 18)), wide)
    cut = overlap.costs_of(numbers(center, (36, 18, 18)), problem)
    at_limit = overlap.costs_of(numbers(center, (30, 18, 18)), problem)
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
    sampled = sampled_dices(boxes, 12)
    np.testing.assert_array_equal(sampled, sampled.T)
    np.testing.assert_allclose(sampled, dice, atol=0.03)
    assert np.abs(sampled_dices(boxes, 4) - dice).max() < 0.1
