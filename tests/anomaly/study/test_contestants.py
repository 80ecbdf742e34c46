"""Who is compared on which scans by which rules, and what is refused before any work."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from anomaly.detectors.thresholds import (
    BestDiceThreshold,
    FixedThreshold,
    MeanPoolThreshold,
    OtsuThreshold,
)
from anomaly.scans.cases import Case
from anomaly.study.contestants import (
    AS_GIVEN,
    BRIGHTNESS,
    ELSEWHERE,
    STRATA,
    Bench,
    checked_rules,
    control_maps,
    strata_masks,
)
from anomaly.study.evaluation import evaluate_detectors


@pytest.fixture
def bench(cohort):
    cases, _, healthy, _ = cohort(50)
    return Bench(cases, healthy, 3, 26, 1, True)


def test_what_counts_is_matter_and_lesions_are_those_in_it(cohort):
    cases, _, healthy, _ = cohort(50)
    in_fluid = cases[0].lesion.copy()
    in_fluid[cases[0].tissue == 3] = True
    cases[0] = replace(cases[0], lesion=in_fluid, followup=None)
    cases[1] = replace(cases[1], lesion=None, followup=None)
    bench = Bench(cases, healthy, 3, 18, 2, False)
    assert (bench.connectivity, bench.min_overlap) == (18, 2)
    matter = (cases[0].tissue == 1) | (cases[0].tissue == 2) | (cases[0].tissue == 4)
    np.testing.assert_array_equal(bench.scored[0], matter)
    np.testing.assert_array_equal(bench.lesions[0], in_fluid & matter)
    assert not bench.lesions[1].any()
    assert [len(scans) for scans in (bench.regions, bench.healthy_regions, bench.healthy_scored)] == [5, 4, 4]


def test_the_spacing_is_that_of_all_scans_or_none(bench, cohort):
    assert bench.spacing == (4.0, 4.0, 4.0)
    cases, _, healthy, _ = cohort(50)
    healthy[2] = replace(healthy[2], affine=np.diag([4.0, 4.0, 4.1, 1.0]))
    assert Bench(cases, healthy, 3, 26, 1, True).spacing is None


def test_rules_are_new_ones_that_know_the_size_of_voxels_and_whether_there_are_healthy_scans(cohort):
    rules = {"pool": MeanPoolThreshold(9.6), "own": {"a": FixedThreshold(1.0)}, "otsu": OtsuThreshold()}
    checked = checked_rules(rules, ["a", "b"], (1.0, 2.0, 3.0), has_healthy=False)
    assert checked["a"]["pool"].spacing == (1.0, 2.0, 3.0)
    assert rules["pool"].spacing is None
    assert checked["a"]["otsu"] is not rules["otsu"]
    assert list(checked["a"]) == ["pool", "own", "otsu"]
    assert list(checked["b"]) == ["pool", "otsu"]
    assert checked["a"]["own"].value == 1.0
    with_spacing = checked_rules({"pool": MeanPoolThreshold(9.6, spacing=2.4)}, ["a"], None, has_healthy=False)
    assert with_spacing["a"]["pool"].spacing == 2.4
    cases, maps, _, _ = cohort(35)
    tables = evaluate_detectors(cases, maps, controls=False, lesion_wise=False)
    assert "healthy rate" not in set(tables["summary"]["rule"])
    assert len(tables["summary"])
    assert not len(tables["curves"])
    assert not len(tables["areas"])
    assert not len(tables["lesions"])


def test_rules_may_be_for_some_methods_only_and_masks_are_taken_as_given(cohort, row_of):
    cases, maps, _, _ = cohort(35)
    maps["mask"] = [case.lesion for case in cases]
    fixed = {"strong": FixedThreshold(1.0), "weak": FixedThreshold(0.1)}
    rules = {"fixed": fixed, "best": {"weak": BestDiceThreshold()}}
    tables = evaluate_detectors(cases, maps, rules=rules, controls=False)
    used = tables["thresholds"][["method", "rule"]].apply(tuple, axis=1).tolist()
    assert used == [("weak", "fixed"), ("weak", "best"), ("strong", "fixed"), ("mask", AS_GIVEN)]
    row = row_of(tables["summary"], part="all", method="mask")
    assert row["dice"] == row["auc"] == row["average_precision"] == 1
    assert row["dice_opened"] < 1
    assert not len(tables["healthy"])
    assert np.isnan(row["false_positive_rate"])


def first(maps):
    return {name: volumes[:1] for name, volumes in maps.items()}


def with_first(scans, change):
    return [change(scans[0]), *scans[1:]]


def strong(maps, change):
    return maps | {"strong": with_first(maps["strong"], change)}


TINY = (2, 3, 2)
BORROWED = "another patient's lesion"


def scan(patient, voxel=None, shape=TINY, fluid=()):
    """Give a brain but for its first voxel; a lesion is one voxel, by its number."""
    brain = np.ones(shape, dtype=bool)
    brain.flat[0] = False
    lesion = None
    if voxel is not None:
        lesion = np.zeros(shape, dtype=bool)
        lesion.flat[voxel] = True
    tissue = np.where(brain, 1, 0).astype(np.uint8)
    tissue.flat[list(fluid)] = 3
    signal = np.linspace(0, 1, 2 * brain.size, dtype=np.float32).reshape(*shape, 2)
    return Case(patient, signal, brain, tissue=tissue, lesion=lesion)


def voxel_numbers(masks):
    return [np.flatnonzero(mask).tolist() for mask in masks]


def test_controls_of_a_scan_with_fluid_by_hand():
    maps = control_maps([scan("a", 3, fluid=[4, 5])])
    # Fluid is brain, but is not scored.
    assert voxel_numbers(maps["all positive"]) == [[1, 2, 3, 6, 7, 8, 9, 10, 11]]
    assert voxel_numbers(maps["brain mask"]) == [list(range(1, 12))]
    assert voxel_numbers(maps["empty"]) == [[]]
    # Directions of voxel i have the signals 2 i / 23 and (2 i + 1) / 23.
    expected = (1 - (2 * np.arange(12) + 0.5) / 23) * (np.arange(12) > 0)
    np.testing.assert_allclose(maps[BRIGHTNESS][0].ravel(), expected, atol=1e-6)


LARGE = (3, 3, 2)


@pytest.mark.parametrize(
    ("scans", "cases", "borrowed"),
    [
        # The first skips its own second scan and the healthy one; the last goes on at the front.
        ([("a", 1), ("a", 2), ("b",), ("b", 4), ("c", 5)], None, [[4], [4], [5], [5], [1]]),
        # Lesions on another grid are passed over.
        ([("a", 1), ("b", 7, LARGE), ("c", 3), ("d", None, LARGE)], None, [[3], [], [1], [7]]),
        # The first begins after the first case, the second has the same patient as it.
        ([("h",), ("a",), ("i",)], [("a", 1), ("b", 2)], [[2], [2], [2]]),
        ([("h",), ("a",), ("i",)], [("a", 1), ("b", 2), ("c", 3)], [[2], [3], [1]]),
        ([("a", 1)], None, [[]]),
        ([("a", 1), ("a", 2)], None, [[], []]),
        ([("a",), ("b",)], None, [[], []]),
        ([("a", 1)], [], [[]]),
    ],
)
def test_each_scan_is_given_the_next_lesion_of_another_patient(scans, cases, borrowed):
    options = {} if cases is None else {"lesions_of": [scan(*case) for case in cases]}
    maps = control_maps([scan(*one) for one in scans], **options)
    assert voxel_numbers(maps[BORROWED]) == borrowed


def test_strata_cover_what_is_scored_and_lie_where_they_should(cohort):
    case = cohort(1)[0][0]
    masks = strata_masks(case)
    assert list(masks) == [*STRATA, ELSEWHERE]
    np.testing.assert_array_equal(np.logical_or.reduce(list(masks.values())), case.scored)
    assert not any((masks[name] & masks[ELSEWHERE]).any() for name in STRATA)
    # 5 mm are one voxel of 4 mm, and not the diagonal of two.
    for structure, name in ((2, "near cortex"), (4, "deep nuclei")):
        grown = ndimage.binary_dilation(case.tissue == structure)
        np.testing.assert_array_equal(masks[name], grown & case.scored)
    plain = strata_masks(replace(case, tissue=None))
    assert not plain["deep nuclei"].any()
    assert (plain["near cortex"] & ~ndimage.binary_erosion(case.brain)).sum() > 100


def white_case(shape, affine):
    """Give a case of white matter alone, all of it brain."""
    signal = np.full((*shape, 1), 0.4, dtype=np.float32)
    return Case("p", signal, np.ones(shape, dtype=bool), tissue=np.ones(shape, dtype=np.uint8), affine=affine)


@pytest.mark.parametrize(("number", "name"), [(2, "near cortex"), (4, "deep nuclei")])
def test_nearness_is_a_distance_in_mm(number, name):
    case = white_case((11, 9, 7), np.diag([1.0, 2.0, 4.0, 1.0]))
    tissue = case.tissue.copy()
    tissue[5, 4, 3] = number
    case = replace(case, tissue=tissue)
    x, y, z = (np.arange(n) for n in case.shape)
    apart = ((x - 5) ** 2)[:, None, None] + (4 * (y - 4) ** 2)[:, None] + 16 * (z - 3) ** 2
    np.testing.assert_array_equal(strata_masks(case)[name], apart <= 25)


# The first axis goes down from 50 mm, in steps of 3.
TURNED = np.array([[0, 1, 0, 0], [0, 0, 1, 0], [-3, 0, 0, 50], [0, 0, 0, 1.0]])


@pytest.mark.parametrize(
    ("shape", "affine", "axis", "lowest", "basal"),
    [
        # Of heights from 0 to 8 mm those below 2, of 50 to 26 those below 32, of 4 to 15 those below 6.75.
        ((4, 4, 9), np.eye(4), 2, 0, [0, 1]),
        ((9, 4, 4), TURNED, 0, 0, [7, 8]),
        ((4, 4, 16), np.eye(4), 2, 4, [4, 5, 6]),
    ],
)
def test_the_base_is_the_lowest_quarter_of_the_height_of_the_brain_in_the_world(shape, affine, axis, lowest, basal):
    case = white_case(shape, affine)
    height = np.indices(shape)[axis]
    fluid = np.indices(shape)[1] == 0
    brain = height >= lowest
    masks = strata_masks(replace(case, brain=brain, tissue=np.where(brain, np.where(fluid, 3, 1), 0)))
    np.testing.assert_array_equal(masks["basal"], np.isin(height, basal) & ~fluid)
    np.testing.assert_array_equal(masks[ELSEWHERE], ~np.isin(height, basal) & brain & ~fluid & ~masks["near cortex"])
