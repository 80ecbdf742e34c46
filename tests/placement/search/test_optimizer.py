import csv
import json
import tracemalloc

import numpy as np
import pytest
from scipy.optimize import minimize

from placement import PlacementObjective, Scene, Voxel, VoxelOptimizer, tumor_fraction
from placement.box.voxel import rotation_of
from placement.exchange.vendor_texts import console_angles
from placement.search.objective import tumor_volume_inside, voxel_content
from placement.search.optimizer import CONSOLE
from placement.search.scene_search import Boxes, Search
from placement.simulate.gliomas import simulate_gliomas


def lump(shape=(70, 70, 70), center=(35, 35, 35), radii=(20, 14, 11), angles=(0, 0, 0), affine=None):
    """Make an ellipsoid in mm about the place of an index."""
    affine = np.eye(4) if affine is None else affine
    grid = (np.moveaxis(np.indices(shape), 0, -1) - center) @ affine[:3, :3].T
    return np.linalg.norm(grid @ rotation_of(angles) / radii, axis=-1) <= 1


@pytest.fixture(scope="module")
def tilted():
    return Scene(lump(angles=(25, -30, 40)), np.eye(4), name="tilted")


@pytest.fixture(scope="module")
def cube():
    tumor = np.zeros((60, 60, 60), bool)
    tumor[13:47, 12:46, 14:48] = True
    return Scene(tumor, np.eye(4))


def test_a_tumor_that_allows_it_is_placed_at_the_maximum_without_rotation(cube):
    placement = VoxelOptimizer(random_state=0).placement(cube)
    assert placement.objective > 0.95
    assert placement.voxel.rotated_axes == 0
    assert placement.feasible
    assert placement.component == 0
    assert placement.tumor_fraction == tumor_fraction(placement.voxel, cube)
    assert placement.tumor_volume == tumor_volume_inside(placement.voxel, cube)
    assert placement.objective == PlacementObjective()(placement.voxel, cube)
    best = VoxelOptimizer(tie_break=0, random_state=0).placement(cube)
    assert best.objective > 0.999


def test_a_search_is_no_worse_than_a_simplex_from_the_centroid(tilted):
    objective = PlacementObjective()

    def minus(x):
        return -objective(Voxel(x[:3], np.clip(x[3:6], 10, 60), x[6:]), tilted)

    start = [*tilted.centroid, 23, 23, 23, 0, 0, 0]
    plain = -minimize(minus, start, method="Nelder-Mead", options={"maxfev": 600}).fun
    ours = VoxelOptimizer(min_volume=0, tie_break=0, random_state=0).placement(tilted).objective
    assert ours >= plain - 1e-3


def test_the_same_seed_gives_the_same_bits_and_fitting_is_not_needed(tilted, cube):
    one = VoxelOptimizer(random_state=3).predict([tilted, cube])
    two = VoxelOptimizer(random_state=3).fit().predict([cube, tilted])
    np.testing.assert_array_equal(one, two[::-1])
    assert one.shape == (2, 9)
    assert VoxelOptimizer().predict([]).shape == (0, 9)


@pytest.mark.parametrize("most", [0, 1, 2])
def test_rotations_are_limited_by_the_angles_of_consoles(tilted, most):
    free = VoxelOptimizer(min_volume=0, tie_break=0, random_state=0).placement(tilted)
    placement = VoxelOptimizer(min_volume=0, max_rotations=most, random_state=0).placement(tilted)
    assert placement.voxel.rotated_axes <= placement.voxel.rotated_angles <= most
    assert placement.feasible
    assert 0.95 * placement.best_objective - 1e-3 <= placement.objective <= free.objective + 0.01
    best = VoxelOptimizer(min_volume=0, max_rotations=most, tie_break=0, random_state=0).placement(tilted)
    # Searches end within this of the maximum.
    assert best.objective >= placement.objective - 1e-3


def test_a_tumor_turned_in_the_other_order_of_two_axes_takes_no_third_angle_of_the_console():
    # Turned about y and then about x: three angles in the order of the console.
    turn = rotation_of((0, 25, 0)) @ rotation_of((30, 0, 0))
    grid = np.moveaxis(np.indices((70, 70, 70)), 0, -1) - 35.0
    scene = Scene((np.abs(grid @ turn) <= (16, 10, 12)).all(axis=-1), np.eye(4))
    assert Voxel.from_rotation((35, 35, 35), (32, 20, 24), turn).rotated_angles == 3
    for rounding in (None, CONSOLE):
        placement = VoxelOptimizer(tie_break=0, rounding=rounding, random_state=0).placement(scene)
        assert placement.voxel.rotated_angles == 2
        assert set(console_angles(placement.voxel).values()) == {2}
        assert "too many rotations" not in placement.flags


def test_a_box_of_more_target_is_placed_where_it_breaks_no_constraint(cube, monkeypatch):
    search = VoxelOptimizer._placed

    def missed(self, scene):
        found = search(self, scene)
        # As if the search for the best objective had stopped beside the tumor.
        is_purest = self.objective is not None
        away = Voxel(found.voxel.center + np.array([22, 0, 0]), found.voxel.size)
        return found if is_purest else self.assess(away, scene)

    monkeypatch.setattr(VoxelOptimizer, "_placed", missed)
    optimizer = VoxelOptimizer(inside_image=False, random_state=0)
    assert optimizer._placed(cube).tumor_fraction < 0.5
    placement = optimizer.placement(cube)
    assert placement.tumor_fraction > 0.99
    assert placement.voxel.volume >= 6 * (1 - 1e-9)
    # One that would have to be turned about more axes is not placed.
    slab = Scene(lump(radii=(30, 30, 4), angles=(30, 30, 30)), np.eye(4))
    limited = VoxelOptimizer(max_rotations=0, random_state=0)
    assert limited.assess(limited.purest(slab), slab).tumor_fraction > 0.5
    assert limited.placement(slab).voxel.rotated_angles == 0


@pytest.mark.parametrize(
    ("x", "size", "limits", "flag"),
    [
        (29.5, (20, 20, 20), (10, 60), ""),
        (29.5, (10, 25, 25), (10, 60), "side at its limit"),
        (29.5, (20, 20, 24), (10, 24), "side at its limit"),
        (29.5, (20, 20, 23.99), (10, 24), ""),
        (29.5, (20, 20, 20), (20, 20), ""),
        (29.5, (20, 20, 20), ((20, 20), (10, 60), (10, 20)), "side at its limit"),
        # The tumor begins at 12.5 mm along x: 9.9, 14.9 and 15.1 of 20 mm lie in it.
        (12.4, (20, 20, 20), (10, 60), "less than 50 % target"),
        (17.4, (20, 20, 20), (10, 60), "less than 75 % target"),
        (17.6, (20, 20, 20), (10, 60), ""),
    ],
)
def test_sides_at_a_limit_and_little_target_are_flagged(cube, x, size, limits, flag):
    placement = VoxelOptimizer(size_range=limits).assess(Voxel((x, 29.5, 30.5), size), cube)
    assert placement.flags == ((flag,) if flag else ())
    assert x > 20 or placement.tumor_fraction == pytest.approx((x - 2.5) / 20, abs=1e-6)


def test_the_deeper_of_two_equally_good_places_is_taken():
    tumor = np.zeros((120, 60, 60), bool)
    tumor[4:28, 18:42, 18:42] = True
    tumor[55:115, 4:56, 4:56] = True
    placement = VoxelOptimizer(random_state=0).placement(Scene(tumor, np.eye(4)))
    assert placement.voxel.center[0] > 60
    assert placement.component == 0


def test_the_least_volume_is_kept_and_told_where_a_lesion_is_smaller():
    scene = Scene(lump(radii=(9, 8, 8)), np.eye(4))
    assert scene.tumor_volume < 6
    placement = VoxelOptimizer(random_state=0).placement(scene)
    assert placement.voxel.volume >= 6 * (1 - 1e-9)
    assert placement.flags == ("tumor below the smallest volume", "less than 50 % target")
    assert not placement.feasible
    small = VoxelOptimizer(min_volume=0, random_state=0).placement(scene)
    assert small.feasible
    assert small.objective > placement.objective


def test_sides_have_ranges_of_their_own(cube):
    ranges = ((10, 14), (20, 40), (15, 40))
    voxel = VoxelOptimizer(size_range=ranges, max_rotations=0, random_state=0).place(cube)
    assert ((voxel.size >= np.array(ranges)[:, 0] - 1e-9) & (voxel.size <= np.array(ranges)[:, 1] + 1e-9)).all()


@pytest.mark.parametrize("margin", [0, 3])
def test_what_is_excluded_is_not_touched(cube, margin):
    wall = np.zeros((60, 60, 60), bool)
    wall[:28] = True
    scene = Scene(cube.tumor > 0, np.eye(4), exclude={"wall": wall}, exclude_margin=margin)
    placement = VoxelOptimizer(random_state=0).placement(scene)
    assert placement.flags == ()
    assert placement.voxel.corners[:, 0].min() >= 27.5 + margin - 1e-6
    assert placement.objective > 0.7


def necrotic(n, seed, skip=0):
    return simulate_gliomas(n, exclude=("necrosis",), skip=skip, random_state=seed)[0]


@pytest.mark.slow
def test_a_bent_lesion_with_excluded_cores_gets_a_box_between_them():
    (scene,) = necrotic(1, 8, skip=2)
    rng = np.random.default_rng(0)
    for options in ({}, {"tie_break": 0}, {"rounding": CONSOLE}):
        optimizer = VoxelOptimizer(random_state=0, **options)
        placement = optimizer.placement(scene)
        assert not [flag for flag in placement.flags if flag.startswith("touches")]
        assert 6 * (1 - 1e-9) <= placement.voxel.volume < 10
        assert placement.tumor_fraction > 0.65
    found = placement.voxel
    for _ in range(200):
        sides = np.clip(found.size * np.exp(rng.normal(0, 0.1, 3)), 10, 60)
        sides *= max(1, np.cbrt(6000 / sides.prod()))
        other = optimizer.assess(
            Voxel(found.center + rng.normal(0, 2, 3), sides, found.angles + rng.normal(0, 5, 3)), scene
        )
        assert other.tumor_fraction < placement.tumor_fraction + 0.05 or "touches necrosis" in other.flags


@pytest.mark.parametrize(("n", "seed"), [(6, 8), pytest.param(24, 1, marks=pytest.mark.slow)])
def test_excluded_cores_are_avoided_in_tumors_of_all_shapes(n, seed):
    placements = [VoxelOptimizer(random_state=0).placement(scene) for scene in necrotic(n, seed)]
    for placement in placements:
        allowed = {"tumor below the smallest volume", "longest side over 2.5 times the shortest"}
        assert set(placement.flags) <= {*allowed, "less than 50 % target", "less than 75 % target"}
        assert placement.tumor_fraction > 0.05
    large = [one.objective for one in placements if one.scene.tumor_volume > 40]
    assert np.mean(large) > 0.5


def test_a_few_percent_of_what_is_excluded_may_be_tolerated_and_what_cannot_be_avoided_is_told(cube):
    # Lines that no large box can avoid, 1.6 % of everything.
    grid = np.indices((60, 60, 60))
    wires = (grid[0] % 8 == 0) & (grid[1] % 8 == 0)
    regions = {"wires": wires, "wall": grid[0] < 28}
    placement = VoxelOptimizer(random_state=0).placement(Scene(cube.tumor, np.eye(4), exclude={"wires": wires}))
    assert "touches wires" in placement.flags
    assert placement.voxel.volume >= 6 * (1 - 1e-9)
    scene = Scene(cube.tumor, np.eye(4), exclude=regions, exclude_tolerance={"wires": 0.02})
    placement = VoxelOptimizer(random_state=0).placement(scene)
    assert placement.flags == ()
    assert placement.objective > 0.7
    assert placement.voxel.corners[:, 0].min() >= 27.5 - 1e-6
    parts = placement.voxel.mask(scene.shape, scene.affine, partial=True)
    assert 0 < parts[wires].sum() / parts.sum() <= 0.02 + 1e-3
    strict = Scene(cube.tumor, np.eye(4), exclude=regions, exclude_tolerance=0.001)
    assert VoxelOptimizer(random_state=0).assess(placement.voxel, strict).flags == ("touches wires",)


@pytest.mark.filterwarnings("ignore:.*reaches the border")
def test_a_voxel_stays_within_the_image():
    tumor = np.zeros((40, 40, 40), bool)
    tumor[:14, :30, :30] = True
    scene = Scene(tumor, np.eye(4))
    placement = VoxelOptimizer(random_state=0).placement(scene)
    assert placement.feasible
    assert scene.holds(placement.voxel)
    leaving = Voxel((3, 15, 15), (10.2, 26, 26))
    assert VoxelOptimizer().assess(leaving, scene).flags == ("outside the image", "longest side over 2.5 times the shortest")
    assert VoxelOptimizer(inside_image=False, max_aspect=None).assess(leaving, scene).feasible


def test_rounded_voxels_are_what_a_console_takes_within_the_constraints_where_that_can_be(tilted):
    placement = VoxelOptimizer(rounding=CONSOLE, random_state=0).placement(tilted)
    voxel = placement.voxel
    np.testing.assert_allclose(voxel.size, np.round(voxel.size), atol=1e-9)
    np.testing.assert_allclose(voxel.center * 10, np.round(voxel.center * 10), atol=1e-9)
    np.testing.assert_allclose(voxel.angles * 10, np.round(voxel.angles * 10), atol=1e-5)
    assert voxel.volume >= 6
    assert placement.objective == PlacementObjective()(voxel, tilted)
    assert placement.objective > 0.8 * placement.best_objective
    optimizer = VoxelOptimizer(rounding=(1.0, 5.0, 5.0), size_range=(12, 60))
    voxel = optimizer.rounded(Voxel((35.2, 35, 35), (17.6, 18.4, 18.6), (12, -14, 33)), tilted)
    assert voxel.volume >= 6
    assert (voxel.size >= 12).all()
    np.testing.assert_allclose(voxel.size / 5, np.round(voxel.size / 5), atol=1e-9)
    same = Voxel((35, 35, 35), (20.3, 20, 21))
    assert VoxelOptimizer().rounded(same, tilted).to_json() == same.canonical().to_json()
    optimizer = VoxelOptimizer(rounding=CONSOLE, size_range=(10, 18.2))
    voxel = Voxel((35.04, 35, 35), (18.18, 18.18, 18.18))
    assert optimizer.rounded(voxel, tilted) == voxel.canonical()
    assert "sides not rounded" in optimizer.assess(voxel, tilted).flags
    assert "sides not rounded" not in VoxelOptimizer().assess(voxel, tilted).flags
    assert "too many rotations" not in optimizer.assess(Voxel((35, 35, 35), (15, 25, 20), (0, 60, 20)), tilted).flags
    # One that can be rounded was placed so by hand; angles that count as none become none.
    optimizer = VoxelOptimizer(rounding=CONSOLE)
    by_hand = optimizer.assess(Voxel((35, 35, 35), (18.5, 18.5, 18.5)), tilted)
    assert "sides not rounded" not in by_hand.flags
    turned = Voxel((35, 35, 35), (20, 20, 20), (12.34, 0.4, -0.44))
    assert optimizer.rounded(turned, tilted).angles.tolist() == [12.3, 0, 0]


def test_rounding_loses_no_more_than_legal_neighbors_show_and_less_after_a_thorough_search(data_dir):
    scene = Scene.read(data_dir / "brain_tumour_thick_slice_1" / "label.nii.gz")
    quick, thorough = (VoxelOptimizer(rounding=CONSOLE, random_state=0, thorough=t).placement(scene) for t in (False, True))
    # The nearest sides, 24 x 13 x 20 mm, have 0.54.
    assert thorough.objective >= quick.objective > PlacementObjective()(Voxel((-41.9, -21.3, 26), (23, 14, 19), (0, 0, 13.2)), scene)


def test_candidates_are_distinct_and_sorted_with_those_that_break_constraints_last(cube, monkeypatch):
    scene = Scene(lump(shape=(90, 70, 60), center=(45, 35, 30), radii=(34, 26, 22)), np.eye(4))
    candidates = VoxelOptimizer(random_state=0).candidates(scene, 6)
    scores = [score for _, score in candidates]
    assert 3 <= len(candidates) <= 6
    assert scores == sorted(scores, reverse=True)
    for n, (voxel, score) in enumerate(candidates):
        assert score == PlacementObjective()(voxel, scene)
        assert all(voxel.dice(other) <= 0.8 for other, _ in candidates[:n])
    assert len(VoxelOptimizer(random_state=0).candidates(scene, 1)) == 1
    with pytest.raises(ValueError, match="n must be a whole number of at least 1, not 0"):
        VoxelOptimizer().candidates(scene, 0)
    sound, thin = Voxel((22, 22, 24), (16, 16, 24)), Voxel((34, 34, 36), (24, 24, 24))
    optimizer = VoxelOptimizer(size_range=((10, 20), (10, 40), (10, 40)))
    monkeypatch.setattr(Search, "run", lambda self, *counts, every: boxes_as_found([thin, sound]))
    (first, better), (second, worse) = optimizer.candidates(cube, 2)
    np.testing.assert_allclose(first.size, sound.size)
    np.testing.assert_allclose(second.size, thin.size)
    assert worse > better


def boxes_as_found(voxels):
    """Describe boxes as a search returns them."""
    n = len(voxels)
    boxes = np.array([[voxel.center, voxel.size, *voxel.rotation] for voxel in voxels])
    turns = np.tile(np.eye(3), (n, 1, 1))
    return Boxes(np.zeros((n, 9)), np.zeros(n, int), turns, boxes[:, 0], np.zeros(n), boxes)


@pytest.mark.parametrize(
    "affine",
    [
        np.array([[-1.0, 0, 0, 40], [0, -1, 0, 37], [0, 0, 1, -20], [0, 0, 0, 1]]),
        np.array([[0, 0, 5.0, 3], [0.9, 0, 0, -34], [0, 0.9, 0, -40], [0, 0, 0, 1]]),
        np.array([[1.0, 0, 0, -20], [0, 1, 0.9, -34], [0, 0, 3.0, -40], [0, 0, 0, 1]]),
    ],
)
def test_any_affine_is_placed_in(affine):
    shape = np.ceil(75 / np.linalg.norm(affine[:3, :3], axis=0)).astype(int)
    center = (shape - 1) / 2
    scene = Scene(lump(tuple(shape), center, (24, 20, 18), affine=affine), affine)
    placement = VoxelOptimizer(random_state=0).placement(scene)
    assert placement.objective > 0.95
    assert placement.feasible
    assert np.linalg.norm(placement.voxel.center - affine[:3, :3] @ center - affine[:3, 3]) < 12


@pytest.mark.parametrize("affine", [np.eye(4), np.diag([1.5, 1.0, 1.0, 1.0])])
def test_a_large_grid_is_placed_in_with_little_memory(affine):
    tumor = np.zeros((512, 512, 512), np.uint8)
    tumor[200:260, 210:280, 220:300] = lump((60, 70, 80), (30, 35, 40), (30, 34, 39))
    optimizer = VoxelOptimizer(random_state=0)
    optimizer.place(Scene(tumor[190:310, 190:310, 190:310], affine))
    tracemalloc.start()
    scene = Scene(tumor, affine)
    placement = optimizer.placement(scene)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert placement.objective > 0.95
    # Of them one holds the sums along rows.
    assert peak < 3.2 * scene.occupancy.nbytes


def test_experts_moments_become_the_objective(tilted, cube):
    rng = np.random.default_rng(0)
    voxels = np.array([[[35, 35, 35, *rng.uniform(12, 25, 3), 0, 0, 0] for _ in range(2)] for _ in range(2)])
    voxels[0, 1] = np.nan
    scenes = [tilted, cube]
    optimizer = VoxelOptimizer(PlacementObjective(one_sided=True)).fit(scenes, voxels)
    pairs = [(0, 0), (1, 0), (1, 1)]
    volumes = [tumor_volume_inside(Voxel.from_array(voxels[i, e]), scenes[i]) for i, e in pairs]
    fractions = [tumor_fraction(Voxel.from_array(voxels[i, e]), scenes[i]) for i, e in pairs]
    learned = optimizer.objective_
    assert learned.mean_volume == pytest.approx(np.mean(volumes))
    assert learned.sd_volume == pytest.approx(np.std(volumes, ddof=1))
    assert learned.mean_fraction == pytest.approx(np.mean(fractions))
    assert learned.sd_fraction == pytest.approx(np.std(fractions, ddof=1))
    assert learned.one_sided
    assert optimizer.objective == PlacementObjective(one_sided=True)
    assert optimizer.placement(cube).objective == learned(optimizer.place(cube), cube)
    assert VoxelOptimizer().fit(scenes, voxels[:, 0]).objective_.mean_volume > 0
    for n, message in ((1, "two voxels or more, got 1"), (2, "all have the same volume or part of tumor")):
        with pytest.raises(ValueError, match=message):
            VoxelOptimizer().fit([cube], np.repeat(voxels[1:, :1], n, axis=1))


@pytest.mark.slow
def test_the_search_stays_near_the_best_known_objectives(pytestconfig):
    root = pytestconfig.rootpath
    from benchmarks.placement import bench_placement as bench

    known = json.loads((root / "benchmarks" / "results" / "placement.json").read_text())["best_known_tuned on"]
    numbers = range(1, 24, 5)
    scenes = [Scene(bench.mask(n), np.eye(4)) for n in numbers]
    for least, values in known.items():
        for options, most in (({}, 0.01), ({"thorough": True}, 0.007)):
            # The best known boxes may be as long as they like.
            optimizer = VoxelOptimizer(min_volume=float(least), max_aspect=None, tie_break=0, random_state=0, **options)
            gaps = [values[n] - optimizer.placement(s).objective for n, s in zip(numbers, scenes, strict=True)]
            assert np.mean(gaps) <= most
            assert max(gaps) < 0.05


REGIONS = {"whole": (1, 2, 3, 4), "core_1_3_4": (1, 3, 4), "solid_3_4_no_necrosis": (3, 4), "enhancing_4": (4,)}


def test_real_tumors_are_covered_as_well_as_by_the_best_cube(data_dir):
    table = data_dir / "placement_reference" / "placement_reference.csv"
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 13
    for row in rows:
        file = data_dir / row["file"].removeprefix("shared/data/")
        multiple = "brats2013" in row["file"]
        scene = Scene.read(file, include=REGIONS[row["region"]] if multiple else None)
        assert scene.tumor_volume == pytest.approx(float(row["volume_ml"]), rel=1e-3)
        for side in (10, 15, 20, 25, 30):
            # Only coverage counts, at the volume of the cube or more.
            purest = PlacementObjective(side**3 / 1000, 1e4, 1.0, 0.05, one_sided=True)
            optimizer = VoxelOptimizer(purest, min_volume=side**3 / 1000, tie_break=0, random_state=0)
            found = optimizer.placement(scene)
            assert found.voxel.volume >= side**3 / 1000 * (1 - 1e-9)
            assert found.tumor_fraction >= float(row[f"cube{side}_best_tumour_fraction"]) - 0.01


def test_sides_differ_no_more_than_allowed_where_that_costs_little():
    scene = Scene(lump(shape=(120, 60, 60), center=(60, 30, 30), radii=(50, 9, 9)), np.eye(4))
    free = VoxelOptimizer(max_aspect=None, random_state=0).placement(scene)
    assert free.voxel.size.max() > 3 * free.voxel.size.min()
    placement = VoxelOptimizer(random_state=0).placement(scene)
    aspect = placement.voxel.size.max() / placement.voxel.size.min()
    assert aspect < free.voxel.size.max() / free.voxel.size.min()
    assert ("longest side over 2.5 times the shortest" in placement.flags) == (aspect > 2.5)


def test_limits_of_labeled_tissues_are_kept_where_a_box_can():
    index = np.moveaxis(np.indices((70, 70, 70)), 0, -1)
    radius = np.linalg.norm(index - 35, axis=-1)
    values = np.select([radius < 14, radius < 24, radius < 27], [1, 4, 2], 0)
    labels = {"necrosis": 1, "edema": 2, "enhancing": 4}
    placement = VoxelOptimizer(random_state=0).placement(Scene(values, np.eye(4), labels=labels))
    content = voxel_content(placement.voxel, placement.scene)
    assert content["necrosis"] <= 0.1
    assert content["normal"] <= 0.02
    assert placement.flags in ((), ("less than 75 % target",))
    study = VoxelOptimizer(PlacementObjective(), random_state=0).placement(Scene(values > 0, np.eye(4)))
    assert voxel_content(study.voxel, placement.scene)["necrosis"] > 0.2
    # Where no box of half target keeps them, none beside the target is placed for them.
    values = np.select([radius < 6, (index[..., 0] < 28) & (radius < 34), radius < 30], [4, 2, 1], 0)
    scenes = [Scene(values, np.eye(4), **options) for options in ({"labels": labels}, {"include": 4})]
    for least, share in ((6, 0.15), (1, 0.8)):
        optimizer = VoxelOptimizer(min_volume=least, size_range=(5, 60), random_state=0)
        fractions = [optimizer.placement(scene).tumor_fraction for scene in scenes]
        assert fractions == pytest.approx([share, share], abs=0.01)
