"""The search for the best box in one scene: what it minimizes, where it starts, and which box it takes."""

import numpy as np
import pytest

from placement import PlacementObjective, Scene, Voxel, tumor_fraction
from placement.box import overlap
from placement.box.voxel import rotation_of
from placement.search.optimizer import CONSOLE, _settled
from placement.search.scene_search import COARSE, FINE, Boxes, Search, Wishes, spaced_points

OBJECTIVE = PlacementObjective(11.0, 4.0, 0.8, 0.15)

# A block of tumor on a grid with thick slices: its faces in mm.
AFFINE = np.array([[1.0, 0, 0, 5], [0, 1, 0, -7], [0, 0, 2.5, 11], [0, 0, 0, 1]])
LOW, HIGH = np.array([14.5, 4.5, 29.75]), np.array([44.5, 36.5, 79.75])


def make_wishes(**changes):
    options = {"objective": OBJECTIVE, "sizes": np.tile([10.0, 60.0], (3, 1)), "min_volume": 6.0, "max_rotations": 3}
    options |= {"max_aspect": None, "thorough": False, "tie_break": 0.05, "rounding": None, "inside_image": True}
    return Wishes(**(options | {"random_state": 0} | changes))


def block_scene(**options):
    tumor = np.zeros((60, 60, 40), bool)
    tumor[10:40, 12:44, 8:28] = True
    return Scene(tumor, AFFINE, **options)


def prepared(scene, **changes):
    search = Search(make_wishes(**changes), scene)
    search.prepare()
    return search


def compiled_costs(search, voxels, weight=3.0, level=FINE):
    """Evaluate what the compiled search minimizes, at boxes along the scanner's axes."""
    centers = np.array([voxel.center for voxel in voxels])
    sizes = np.array([voxel.size for voxel in voxels])
    start = search.spread(centers, sizes, (0,), np.eye(3)[None])
    return overlap.costs_of(start.x, start.kinds, start.bases, start.origins, *search.common(level, weight))


def as_boxes(voxels):
    """Describe boxes as the compiled searches return them."""
    n = len(voxels)
    boxes = np.array([[voxel.center, voxel.size, *voxel.rotation] for voxel in voxels])
    return Boxes(np.zeros((n, 9)), np.zeros(n, int), np.tile(np.eye(3), (n, 1, 1)), boxes[:, 0], np.zeros(n), boxes)


def plain_cost(voxel):
    """What an unturned box costs by the volume that it shares with the block."""
    first = np.maximum(voxel.center - voxel.size / 2, LOW)
    last = np.minimum(voxel.center + voxel.size / 2, HIGH)
    fraction = np.prod(np.maximum(last - first, 0)) / np.prod(voxel.size)
    return OBJECTIVE.cost(fraction, fraction * voxel.volume)


def test_compiled_costs_of_turned_boxes_are_near_the_accurate_objective():
    search = prepared(block_scene(), min_volume=0.0)
    rng = np.random.default_rng(1)
    voxels = []
    while len(voxels) < 50:
        voxel = Voxel(rng.uniform(LOW + 5, HIGH - 5), rng.uniform(12, 28, 3), rng.uniform(-90, 90, 3))
        if search.scene.holds(voxel):
            voxels.append(voxel)
    turned = [search.spread(v.center[None], v.size[None], (7,), v.rotation[None]) for v in voxels]
    start = Boxes(*(np.concatenate(columns) for columns in zip(*turned, strict=True)))
    costs = overlap.costs_of(*start[:4], *search.common(FINE))
    expected = -np.log([OBJECTIVE(voxel, search.scene) for voxel in voxels])
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(costs, expected, atol=0.12)
    assert abs(np.mean(costs - expected)) < 0.02


@pytest.mark.parametrize("one_sided", [False, True])
def test_compiled_costs_and_the_objective_agree_on_random_boxes(one_sided):
    # Along the image's axes both integrals are exact, so that only single precision differs.
    objective = PlacementObjective(3.0, 2.0, 0.5, 0.2, one_sided=one_sided)
    tumor = np.zeros((60, 60, 40))
    rng = np.random.default_rng(3)
    tumor[10:40, 12:44, 8:28] = rng.random((30, 32, 20))
    tumor[25:40] **= 0.1
    search = prepared(Scene(tumor, AFFINE), objective=objective, min_volume=0.0)
    voxels = [Voxel(rng.uniform(LOW, HIGH), rng.uniform(10, 22, 3)) for _ in range(50)]
    voxels = [search.scene.moved_inside(voxel) for voxel in voxels]
    fractions = np.array([tumor_fraction(voxel, search.scene) for voxel in voxels])
    assert fractions.min() < 0.3
    assert fractions.max() > 0.7
    scores = [objective(voxel, search.scene) for voxel in voxels]
    costs = compiled_costs(search, voxels)
    np.testing.assert_allclose(np.exp(-costs), scores, rtol=2e-4)
    np.testing.assert_allclose(search.values(as_boxes(voxels).boxes), scores, rtol=2e-4)


def test_every_millimeter_beyond_the_image_and_every_excess_of_an_excluded_region_costs_the_weight():
    search = prepared(block_scene())
    # The image ends at 4.5 and 64.5 mm along x and at 109.75 mm along z.
    places = ((11.5, 20, 50, 20), (50, 20, 50, 35), (30, 20, 102, 20))
    voxels = [Voxel((x, y, z), (side, 20, 20)) for x, y, z, side in places]
    free = prepared(block_scene(), inside_image=False)
    np.testing.assert_allclose(compiled_costs(free, voxels), [plain_cost(voxel) for voxel in voxels], rtol=1e-4)
    for level in (COARSE, FINE):
        added = compiled_costs(search, voxels, 2.0, level) - compiled_costs(free, voxels, 2.0, level)
        np.testing.assert_allclose(added, 2 * (0.1 + np.array([3.0, 3.0, 2.25])), rtol=1e-4)
    wall = np.indices((60, 60, 40))[0] < 20
    voxel = Voxel((32.5, 20, 50), (20, 20, 20))
    plain = plain_cost(voxel)
    # The wall ends at 24.5 mm: 2 of 20 mm lie in it, 5 of 26 mm of the box that is grown by 3 mm.
    for margin, tolerance, excess in ((0, 0, 0.1), (3, 0, 5 / 26), (0, 0.04, 0.06)):
        scene = block_scene(exclude={"wall": wall}, exclude_margin=margin, exclude_tolerance=tolerance)
        cost = compiled_costs(prepared(scene), [voxel], weight=2.0)[0]
        assert cost - plain == pytest.approx(2 * (0.1 + 100 * excess), rel=1e-4)
    scene = block_scene(exclude={"wall": wall}, exclude_tolerance=0.11)
    assert compiled_costs(prepared(scene), [voxel])[0] == pytest.approx(plain, rel=1e-4)


def test_each_region_is_tolerated_for_itself_and_strict_ones_together():
    near, far = np.zeros((2, 60, 60, 40), bool)
    near[15:17], far[35:36] = True, True
    voxel = Voxel((29.5, 20, 50), (20, 20, 20))
    regions = {"near": near, "far": far}
    # The box reaches from 19.5 to 39.5 mm: 2 of its 20 mm lie in the one, none in the other.
    tolerated = prepared(block_scene(exclude=regions, exclude_tolerance=0.12))
    assert compiled_costs(tolerated, [voxel])[0] == pytest.approx(plain_cost(voxel), rel=1e-4)
    wide = Voxel((30.0, 20, 50), (21, 20, 20))
    plain = plain_cost(wide)
    # This one reaches to 40.5 mm, and holds 2 and 1 of 21 mm.
    both = prepared(block_scene(exclude=regions, exclude_tolerance=0.1))
    assert compiled_costs(both, [wide])[0] == pytest.approx(plain, rel=1e-4)
    strict = prepared(block_scene(exclude=regions))
    cost = compiled_costs(strict, [wide], weight=2.0)[0]
    assert cost - plain == pytest.approx(2 * (0.1 + 100 * 3 / 21), rel=1e-4)


def test_a_wall_in_reach_of_the_largest_turned_box_is_seen():
    tumor = np.zeros((80, 60, 60), bool)
    tumor[20:30, 25:35, 25:35] = True
    wall = np.zeros_like(tumor)
    wall[48:] = True
    scene = Scene(tumor, np.diag([2.0, 2, 2, 1]), exclude={"wall": wall})
    search = prepared(scene, inside_image=False)
    # Half the diagonal is 42.43 mm long, and the wall begins at 95 mm.
    start = search.spread(np.array([[57.0, 60, 60]]), np.full((1, 3), 60.0), (7,), rotation_of((0, 0, 45))[None])
    walled = overlap.costs_of(*start[:4], *search.common(FINE))[0]
    free = prepared(Scene(tumor, np.diag([2.0, 2, 2, 1])), inside_image=False)
    plain = overlap.costs_of(*start[:4], *free.common(FINE))[0]
    tip = (30 * np.sqrt(2) - 38) ** 2 / 60**2
    # The search looks at one row for each image voxel, 2 mm apart.
    assert walled - plain == pytest.approx(3 * (0.1 + 100 * tip), rel=0.2)


@pytest.mark.parametrize(("margin", "size"), [(0.0, 20.0), (3.0, 20.0), (3.0, 14.0)])
def test_a_box_touches_what_is_nearer_than_the_margin(margin, size):
    wall = np.indices((60, 60, 40))[0] < 20
    search = Search(make_wishes(), block_scene(exclude={"wall": wall}, exclude_margin=margin))
    flag = "nearer than the margin of 3 mm to wall" if margin else "touches wall"
    for gap, flags in ((margin - 0.05 if margin else -0.5, [flag]), (margin + 0.05, [])):
        for half, turn in ((size / 2, 0), ((size + 25) / 8**0.5, 45)):
            assert search.touched(Voxel((24.5 + gap + half, 20, 50), (size, 25, 25), (0, 0, turn))) == flags


def test_flags_name_every_constraint_that_a_box_breaks():
    search = Search(make_wishes(max_rotations=1), block_scene())
    assert search.flags(Voxel((30, 20, 50), (20, 20, 20))) == ()
    assert search.flags(Voxel((30, 20, 50), (20, 20, 14.9))) == ("box below the smallest volume",)
    assert search.flags(Voxel((30, 20, 50), (9.9, 30, 30))) == ("side out of range",)
    assert search.flags(Voxel((30, 20, 50), (20, 20, 20), (20, 20, 0))) == ("too many rotations",)
    assert search.flags(Voxel((14, 20, 50), (20, 20, 20))) == ("outside the image",)
    small = np.zeros((30, 30, 30), bool)
    small[10:20, 10:20, 10:20] = True
    tiny = Search(make_wishes(), Scene(small, np.eye(4)))
    box = Voxel((14.5, 14.5, 14.5), (19, 19, 19))
    assert tiny.flags(box) == ("tumor below the smallest volume",)
    assert tiny.flags(box, avoidable=True) == ()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_starts_lie_apart_in_the_tumor_with_sides_along_the_axes_of_the_scanner(order):
    tumor = np.zeros((90, 40, 40), bool)
    tumor[10:80, 12:26, 14:34] = True
    affine = np.eye(4)[:, [*order, 3]]
    search = prepared(Scene(np.transpose(tumor, order), affine), max_rotations=0)
    centers, sizes = search.starts(6)
    assert 3 <= len(centers) <= 6
    gaps = np.linalg.norm(centers[:, None] - centers[None], axis=-1)[np.triu_indices(len(centers), 1)]
    assert gaps.min() > 6
    assert ((centers > (9.5, 11.5, 13.5)) & (centers < (79.5, 25.5, 33.5))).all()
    # The tumor is long along x and thin along y, and so are the boxes.
    assert (sizes[:, 0] > 1.4 * sizes[:, 1]).all()
    assert len(search.starts(2)[0]) == 2


def test_the_scan_asks_for_a_third_of_the_purity_and_one_range_of_sides(monkeypatch):
    ranges = np.array([[10.0, 40], [12, 50], [14, 60]])
    search = prepared(block_scene(), sizes=ranges)
    scan = overlap.scan
    arguments = []

    def recorded(sums, depth, shapes, volume, limits, stride):
        arguments.append((limits, shapes, volume))
        return scan(sums, depth, shapes, volume, limits, stride)

    monkeypatch.setattr(overlap, "scan", recorded)
    search.starts(4)
    limits, shapes, volume = arguments[0]
    np.testing.assert_allclose(limits.objective[:4], [11000, 4000, 0.8, 3 * 0.15])
    assert limits.min_volume == 6000
    np.testing.assert_allclose(np.exp(limits.low_sides), [10, 10, 10])
    np.testing.assert_allclose(np.exp(limits.high_sides), [60, 60, 60])
    edges = search.block * [1, 1, 2.5]
    assert volume == pytest.approx(edges.prod())
    assert (shapes * edges).min() >= 8.5
    assert (shapes * edges).max() <= 49.5
    volumes = (shapes * edges).prod(axis=1)
    assert 4800 <= volumes.min() < volumes.max() <= 22000


def test_three_more_boxes_are_refined_where_regions_are_excluded(monkeypatch):
    core = np.zeros((60, 60, 40), bool)
    core[20:25, 20:25, 15:20] = True
    numbers = []
    monkeypatch.setattr(Search, "refined", lambda self, quick, n: numbers.append(n) or quick.take(slice(0, 3)))
    monkeypatch.setattr(Search, "satisfied", lambda self, boxes: True)
    Search(make_wishes(tie_break=0.0), block_scene(exclude={"core": core})).run(4, 5)
    # Slices are thick, which doubles the number first.
    assert numbers == [2 * 5 + 3]


def test_blocks_of_the_scan_lose_what_is_excluded_and_its_margin():
    core = np.zeros((60, 60, 40), bool)
    core[18:24, 20:30, 12:16] = True
    search = prepared(block_scene(exclude={"core": core}, exclude_margin=2.0))
    tumor = search.scene.tumor
    # Within 2 mm lie two more voxels along x and y; along z the next one is 2.5 mm away.
    lost = np.zeros_like(core)
    lost[16:26, 20:30, 12:16] = lost[18:24, 18:32, 12:16] = True
    lost[17:25, 19:31, 12:16] = True
    assert search.usable_sums()[..., -1].sum() * np.prod(search.block[:2]) == pytest.approx(
        (tumor - 4 * lost).sum(), rel=1e-4
    )
    tolerated = prepared(block_scene(exclude={"core": core}, exclude_tolerance=0.1))
    np.testing.assert_array_equal(tolerated.usable_sums(), tolerated.grids[0][0])


def test_averaged_grids_lie_where_the_tumor_lies():
    tumor = np.zeros((60, 60, 40), bool)
    tumor[10:40, 12:48, 8:28] = True
    search = prepared(Scene(tumor, AFFINE))
    assert search.block.tolist() == [3, 3, 1]
    for sums, matrix, inverse, offset in search.grids:
        np.testing.assert_allclose(inverse @ matrix, np.eye(3), atol=1e-12)
        full = np.diff(sums, axis=-1)
        index = np.moveaxis(np.indices(full.shape), 0, -1).reshape(-1, 3)
        # Value k of a row lies between the sums k and k + 1, half a slice beyond its index.
        centers = index @ matrix.T + offset
        weights = full.ravel() / full.sum()
        np.testing.assert_allclose(weights @ centers, [29.5, 22.5, 54.75], atol=1e-3)


def test_turns_places_and_sizes_to_start_from_follow_the_seed_and_are_combined():
    scene = block_scene()
    turns = Search(make_wishes(random_state=5), scene).turns(24)
    np.testing.assert_allclose(turns @ turns.transpose(0, 2, 1), np.tile(np.eye(3), (24, 1, 1)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(turns), 1)
    angles = np.arccos((np.trace(turns, axis1=1, axis2=2) - 1) / 2)
    np.testing.assert_allclose(angles, 0.8)
    np.testing.assert_array_equal(turns, Search(make_wishes(random_state=5), scene).turns(24))
    assert not np.array_equal(turns, Search(make_wishes(random_state=6), scene).turns(24))
    search = Search(make_wishes(), block_scene())
    centers = np.array([[30.0, 20, 50], [25, 15, 45]])
    sizes = np.array([[20.0, 21, 22], [10, 11, 12]])
    start = search.spread(centers, sizes, (0, 4), np.eye(3)[None], (0.3, -0.3))
    assert len(start.x) == 8
    np.testing.assert_array_equal(start.kinds, [0, 0, 0, 0, 4, 4, 4, 4])
    np.testing.assert_array_equal(start.origins, np.tile(centers, (4, 1)))
    np.testing.assert_allclose(np.exp(start.x[:, 3:6]), np.tile(sizes, (4, 1)))
    np.testing.assert_array_equal(start.x[:, 6], [0, 0, 0, 0, 0.3, 0.3, -0.3, -0.3])


def test_points_and_boxes_that_are_alike_are_chosen_once():
    points = np.array([[0.0, 0, 0], [3, 0, 0], [3.1, 0, 0], [0, 0, 9]])
    order = np.array([2, 0, 1, 3])
    np.testing.assert_array_equal(spaced_points(points, order, 4, 3.0), [2, 0, 3])
    np.testing.assert_array_equal(spaced_points(points, order, 2, 3.0), [2, 0])
    voxels = [
        Voxel((30, 20, 50), (20, 20, 20)), Voxel((31.9, 20, 50), (20, 20, 20)), Voxel((32.1, 20, 50), (20, 20, 20)),
        Voxel((30, 20, 50), (20, 20, 22.1)), Voxel((30, 20, 50), (20, 21.9, 20)),
    ]
    boxes = as_boxes(voxels)._replace(costs=np.array([0.1, 0.2, 0.3, 0.4, 0.5]))
    np.testing.assert_array_equal(boxes.distinct(5).costs, [0.1, 0.3, 0.4])
    np.testing.assert_array_equal(boxes.distinct(2).costs, [0.1, 0.3])
    first = boxes._replace(costs=boxes.costs[::-1].copy())
    np.testing.assert_allclose(first.distinct(5).boxes[0, 1], [20, 21.9, 20])


def test_equally_good_boxes_are_ordered_by_their_distance_from_the_centroid_and_how_cubic_they_are():
    search = Search(make_wishes(), block_scene())
    voxels = [Voxel((x, 20.5, 54.75), (12, 20, 20)) for x in (36.0, 29.5, 22.0, 33.0)]
    ordered = search.preferred_first(as_boxes(voxels).boxes)
    np.testing.assert_array_equal(ordered[:, 0, 0], [29.5, 33.0, 36.0, 22.0])
    voxels = [Voxel((29.5, 20.5, 54.75), size) for size in ((10, 20, 40), (20, 20, 20), (25, 20, 16))]
    ordered = search.preferred_first(as_boxes(voxels).boxes)
    np.testing.assert_array_equal(ordered[:, 1, 0], [20, 25, 10])


def test_a_box_along_the_axes_is_taken_where_it_costs_little():
    search = Search(make_wishes(), block_scene())
    # Wholly within the tumor, the objective depends on the volume alone.
    turned = Voxel((29.5, 20.5, 54.75), (20, 22, 25), (0, 0, 20))
    for side, taken in ((20.5, "straight"), (17.0, "turned")):
        straight = Voxel((29.5, 20.5, 54.75), (side, 20, 25))
        pair = as_boxes([straight, turned])
        values = search.values(pair.boxes)
        assert values[0] < values[1]
        assert (values[0] >= 0.95 * values[1]) == (taken == "straight")
        voxel, best = search.simplest(pair)
        assert voxel.rotated_axes == (0 if taken == "straight" else 1)
        assert best == values[1]
        assert (Search(make_wishes(tie_break=0.0), block_scene()).simplest(pair)[0].rotated_axes == 1)


def test_a_sound_box_is_taken_or_else_what_breaks_fewest_constraints():
    search = Search(make_wishes(), block_scene())
    short, short_and_thin = Voxel((30, 20, 50), (15, 15, 15)), Voxel((30, 20, 50), (9, 24, 24))
    voxel, _ = search.simplest(as_boxes([short_and_thin, short]))
    np.testing.assert_allclose(voxel.size, 15)
    center = (29.5, 20.5, 54.75)
    small, sound = Voxel(center, (15, 15, 15)), Voxel(center, (20, 20, 20))
    voxel, best = search.simplest(as_boxes([small, small, small, sound]))
    np.testing.assert_allclose(voxel.size, 20)
    assert best == pytest.approx(search.values(as_boxes([sound]).boxes)[0])


@pytest.mark.parametrize("target", [9.0, 12.0])
def test_rounded_sides_are_the_best_of_the_nearest_steps(target):
    objective = PlacementObjective(target, 4.0, 0.95, 0.05)
    scene = block_scene()
    search = Search(make_wishes(objective=objective, rounding=(0.5, 2.0, 5.0)), scene)
    voxel = Voxel((29.6, 20.4, 54.9), (21.3, 20.7, 23.9), (0, 12, 0))
    rounded = search.rounded(voxel)
    np.testing.assert_allclose(rounded.center, [29.5, 20.5, 55.0])
    np.testing.assert_allclose(rounded.angles, [0, 10, 0])
    trials = [
        Voxel((29.5, 20.5, 55.0), (x, y, z), (0, 10, 0))
        for x, y, z in np.stack(np.meshgrid([20.0, 22], [20.0, 22], [22.0, 24]), -1).reshape(-1, 3)
    ]
    best = max(trials, key=lambda trial: objective(trial, scene))
    np.testing.assert_allclose(rounded.size, best.size)
    search = Search(make_wishes(objective=PlacementObjective(20.0, 4.0, 0.75, 0.3), rounding=CONSOLE), scene)
    # With 19 mm along x, less than 75 % would be tumor.
    np.testing.assert_allclose(search.rounded(Voxel((19.1, 20.5, 54.7), (18.3, 18.4, 18.4))).size, [18, 19, 19])


def test_boxes_are_rounded_before_others_and_without_breaking_a_further_constraint():
    objective = PlacementObjective(2.0, 1.0, 0.95, 0.05)
    wishes = make_wishes(objective=objective, rounding=CONSOLE, max_rotations=0)
    search = Search(wishes, block_scene())
    voxel = Voxel((29.5, 20.5, 54.75), (18.18, 18.19, 18.18), (0, 0, 20))
    assert search.flags(voxel) == ("too many rotations",)
    rounded = search.rounded(voxel)
    assert search.flags(rounded) == ("too many rotations",)
    # The objective would have it even smaller.
    assert sorted(rounded.size) == [18, 18, 19]
    sizes = np.array([[10.0, 30.0], [10, 18.2], [10, 18.2]])
    search = Search(make_wishes(rounding=CONSOLE, sizes=sizes), block_scene())
    size = (18.18, 18.19, 18.18)
    # The image begins at 4.5 mm, which leaves no room for 19 mm.
    at_border, amid = Voxel((13.6, 20.5, 54.75), size), Voxel((29.5, 20.5, 54.75), size)
    assert search.rounded(at_border) is at_border
    expected = search.rounded(amid)
    np.testing.assert_array_equal(expected.size, [19, 18, 18])
    for pair in ((at_border, expected), (expected, at_border)):
        assert _settled(pair, 0.0, search.scene, search).voxel.size.tolist() == [19, 18, 18]


def test_a_search_improves_on_its_starts_and_keeps_the_constraints():
    search = Search(make_wishes(), block_scene())
    refined = search.run(4, 2)
    centers, sizes = search.starts(4)
    starts = as_boxes([Voxel(center, size) for center, size in zip(centers, sizes, strict=True)])
    assert refined.costs.min() < search.costs(starts.boxes).min()
    assert refined.costs.min() < 0.01
    voxel, best = search.simplest(refined)
    assert search.flags(voxel) == ()
    assert best == pytest.approx(np.exp(-refined.costs.min()), abs=0.01)
