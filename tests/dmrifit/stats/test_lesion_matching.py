"""Lesions are matched as a plain search does it, scored as published, and never won by covering everything."""

import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from benchmarks.metastasis import _scorer_pairs
from dmrifit import lesion_scores, lesion_table
from dmrifit.io.components import drop_small
from dmrifit.stats.lesion_matching import (
    Matching,
    lesion_counts,
    meeting_pairs,
    scores_from_counts,
)
from metastasis.study.evaluation import HEADLINES

SHAPE = (9, 8, 7)
REACH = {6: 1, 18: 2, 26: 3}


def neighbors(voxel, connectivity):
    for step in itertools.product((-1, 0, 1), repeat=3):
        if 0 < sum(map(abs, step)) <= REACH[connectivity]:
            yield tuple(a + b for a, b in zip(voxel, step, strict=True))


def components(voxels, connectivity):
    """Give sets of connected voxels, in the order of their first ones."""
    left, found = set(voxels), []
    for start in sorted(voxels):
        if start not in left:
            continue
        left.discard(start)
        part, border = {start}, [start]
        while border:
            for other in neighbors(border.pop(), connectivity):
                if other in left:
                    left.discard(other)
                    part.add(other)
                    border.append(other)
        found.append(part)
    return found


def dice(a, b):
    return 2 * len(a & b) / (len(a) + len(b))


def grow(voxels, shape):
    more = set(voxels) | {other for voxel in voxels for other in neighbors(voxel, 18)}
    return {voxel for voxel in more if all(0 <= i < n for i, n in zip(voxel, shape, strict=True))}


def oracle(reference, prediction, connectivity, min_overlap):
    """Compute the rows of the table, one comparison after the other."""
    lesions, parts = (
        components([tuple(map(int, v)) for v in np.argwhere(mask)], connectivity) for mask in (reference, prediction)
    )
    hits = {
        j: [i for i, lesion in enumerate(lesions) if len(lesion & part) >= min_overlap] for j, part in enumerate(parts)
    }
    flagged = {j for j, own in hits.items() if len(own) > 1 or any(len(parts[j]) > 10 * len(lesions[i]) for i in own)}
    clusters = components(set().union(*(grow(lesion, reference.shape) for lesion in lesions)), 26)
    rows = []
    for i, lesion in enumerate(lesions):
        own = [j for j in hits if i in hits[j]]
        joined = set().union(*(parts[j] for j in own))
        cluster = next(k for k, grown in enumerate(clusters) if lesion <= grown)
        together = set().union(*(other for other in lesions if other <= clusters[cluster]))
        around = set().union(*(part for part in parts if part & clusters[cluster]))
        row = {"number": i + 1, "kind": "lesion", "found": bool(own), "n_matched": len(own), "split": len(own) > 1}
        row |= {"distinct": any(j not in flagged for j in own), "bridged": any(j in flagged for j in own)}
        row |= {"n_flagged": sum(j in flagged and hits[j][0] == i for j in own), "n_voxels": len(lesion)}
        row |= {"predicted_mL": len(joined) / 1000, "dice": dice(lesion, joined), "near": bool(around)}
        row |= {"cluster": cluster + 1, "cluster_voxels": len(together), "cluster_dice": dice(together, around)}
        rows.append(row | dict(zip("xyz", np.mean(sorted(lesion), axis=0), strict=True)))
    for j, part in enumerate(parts):
        if not hits[j]:
            row = {"number": j + 1, "kind": "false positive", "n_voxels": len(part), "predicted_mL": len(part) / 1000}
            row |= dict.fromkeys(("found", "split", "bridged", "distinct"), False)
            row |= dict.fromkeys(("n_matched", "n_flagged", "dice", "cluster", "cluster_voxels", "cluster_dice"), 0)
            row["near"] = any(part & grown for grown in clusters)
            rows.append(row | dict(zip("xyz", np.mean(sorted(part), axis=0), strict=True)))
    return rows


def box(mask, *sides):
    mask[tuple(slice(*side) for side in sides)] = True


def random_pair(seed):
    """Draw speckles, boxes joined and cut apart, one side empty, everything."""
    rng = np.random.default_rng(seed)
    reference, prediction = (rng.random(SHAPE) < rng.choice([0, 0.02, 0.06, 0.15]) for _ in range(2))
    kind = seed % 5
    if kind == 1:  # one component over two lesions
        box(reference, (1, 3), (1, 3), (1, 3))
        box(reference, (5, 8), (1, 3), (1, 3))
        box(prediction, (2, 7), (1, 3), (2, 3))
    elif kind == 2:  # two components on one lesion
        box(reference, (1, 8), (2, 5), (2, 5))
        box(prediction, (1, 3), (2, 4), (2, 4))
        box(prediction, (6, 8), (3, 5), (3, 5))
    elif kind == 3:
        (reference, prediction)[rng.integers(2)][:] = False
    elif kind == 4:
        prediction[:] = True if rng.integers(4) == 0 else np.roll(reference, rng.integers(0, 2), rng.integers(3))
    return reference, prediction


@pytest.mark.parametrize(("connectivity", "min_overlap", "start"), [(26, 1, 0), (26, 2, 80), (18, 1, 160), (6, 2, 240)])
def test_tables_are_those_of_a_plain_search(connectivity, min_overlap, start):
    bridged = split = empty = 0
    for seed in range(start, start + 80):
        reference, prediction = random_pair(seed)
        table = lesion_table(reference, prediction, connectivity=connectivity, min_overlap=min_overlap)
        expected = oracle(reference, prediction, connectivity, min_overlap)
        assert len(table) == len(expected), seed
        for found, row in zip(table.to_dict("records"), expected, strict=True):
            assert {key: found[key] for key in row} == pytest.approx(row, abs=1e-12), seed
        bridged, split = bridged + table["bridged"].any(), split + table["split"].any()
        empty += not reference.any() or not prediction.any()
    assert min(bridged, split, empty) >= 5


@pytest.mark.parametrize(("connectivity", "min_voxels"), [(26, 2), (6, 3), (18, 5)])
def test_components_that_are_too_small_are_as_if_they_were_not_there(connectivity, min_voxels):
    less = 0
    for seed in range(400, 440):
        reference, prediction = random_pair(seed)
        kept = np.zeros_like(prediction)
        for part in components([tuple(map(int, v)) for v in np.argwhere(prediction)], connectivity):
            for voxel in part if len(part) >= min_voxels else ():
                kept[voxel] = True
        table = lesion_table(reference, prediction, connectivity=connectivity, min_voxels=min_voxels)
        expected = lesion_table(reference, kept, connectivity=connectivity)
        assert table.equals(expected), seed
        assert table.attrs == expected.attrs | {"min_voxels": min_voxels}
        np.testing.assert_array_equal(drop_small(prediction, min_voxels, connectivity=connectivity), kept)
        less += kept.sum() < prediction.sum()
    assert less >= 20


def test_counts_and_dice_agree_with_panoptica():
    result = json.loads((Path(__file__).parents[1] / "data" / "panoptica.json").read_text(encoding="utf-8"))
    assert result["versions"]["panoptica"]
    assert len(result["pairs"]) >= 50
    alone = joined = 0
    for row in result["pairs"]:
        reference, prediction = _scorer_pairs.boxes_pair(row["seed"])
        assert _scorer_pairs.digest(reference, prediction) == row["digest"]
        table = lesion_table(reference, prediction)
        scores = lesion_scores(table)
        assert table.attrs["n_reference"] == row["n_reference"]
        # Components on the same lesion are one there.
        assert row["tp"] + row["fp"] == row["n_predicted"] <= table.attrs["n_predicted"]
        assert scores["n_false_positives"] == row["fp"]
        # There a component counts for one lesion only; here it finds all that it hits, and is flagged.
        matched = Matching.of(reference, prediction)
        if np.bincount(matched.component, minlength=1).max() < 2:
            alone += 1
            assert scores["n_found"] == row["tp"]
            if row["tp"]:
                assert scores["mDSC"] == pytest.approx(row["mean_dice"], abs=1e-9)
        else:
            joined += 1
            assert row["tp"] < scores["n_found"]
            assert scores["n_distinct"] <= row["tp"]
    assert alone >= 30
    assert joined >= 5


def ball(center, radius, shape=(40, 40, 40)):
    grid = np.ogrid[tuple(slice(n) for n in shape)]
    return sum((axis - c) ** 2 for axis, c in zip(grid, center, strict=True)) <= radius**2


@pytest.fixture(scope="module")
def study():
    """Give two scans with lesions and one without, and predictions of some worth."""
    references = [
        ball((8, 8, 8), 3) | ball((30, 30, 30), 4) | ball((8, 30, 8), 1),
        ball((20, 20, 20), 3),
        np.zeros((40,) * 3, bool),
    ]
    predictions = [np.roll(mask & ~ball((8, 30, 8), 2), 1, axis=0) for mask in references]
    predictions[1] |= ball((5, 35, 5), 2)
    return references, predictions


def scores_of(references, predictions):
    return lesion_scores(lesion_table(*pair) for pair in zip(references, predictions, strict=True))


def test_everything_wins_plain_scores_but_no_headline_and_nothing_wins_none(study):
    references, predictions = study
    everything = [np.ones_like(mask) for mask in references]
    scores, control = scores_of(references, predictions), scores_of(references, everything)
    with_lesions = scores_of(references[:2], everything[:2])
    assert with_lesions["sensitivity"] == with_lesions["precision"] == with_lesions["f1"] == 1
    assert with_lesions["n_false_positives"] == 0
    for name in HEADLINES:
        assert control[name] < scores[name] / 4, name
        assert with_lesions[name] < 0.02, name
    assert control["n_bridged"] == 4
    assert (control["specificity"], scores["specificity"]) == (0, 1)
    nothing = scores_of(references, [np.zeros_like(mask) for mask in references])
    assert nothing["sensitivity"] == nothing["f1"] == nothing["strict_f1"] == 0
    assert np.isnan(nothing["precision"])
    assert nothing["specificity"] == 1
    assert nothing["lesion_dice"] == pytest.approx(1 / 3)
    # One component over two lesions finds both, but is flagged.
    reference = ball((10, 10, 10), 3) | ball((10, 20, 10), 3)
    bridge = reference.copy()
    bridge[10, 10:20, 10] = True
    bridged = lesion_scores(lesion_table(reference, bridge))
    assert bridged["sensitivity"] == bridged["precision"] == 1
    assert (bridged["n_bridged"], bridged["n_flagged"]) == (2, 1)
    assert bridged["strict_sensitivity"] == bridged["strict_precision"] == 0


def test_lesion_free_scans_count_by_themselves(study):
    nothing = study[0][2]
    clean, wrong = lesion_table(nothing, nothing), lesion_table(nothing, ball((5, 5, 5), 2))
    scores = lesion_scores([clean, wrong])
    assert scores["n_lesion_free"] == scores["n_scans"] == 2
    assert scores["specificity"] == scores["false_positives_per_lesion_free"] == 0.5
    assert scores["lesion_dice"] == scores["lesion_f1"] == 0.5
    assert scores["precision"] == 0
    assert np.isnan([scores["sensitivity"], scores["mDSC"], scores["f1"]]).all()


def test_the_challenges_scores_are_those_by_hand():
    reference = np.zeros((20, 20, 20), bool)
    box(reference, (2, 4), (2, 4), (2, 4))
    box(reference, (5, 7), (2, 4), (2, 4))  # one voxel apart: a cluster of 16 voxels
    reference[15, 15, 15] = True  # one voxel: left out
    box(reference, (2, 4), (15, 17), (2, 4))  # missed
    prediction = np.zeros_like(reference)
    box(prediction, (2, 4), (2, 4), (4, 5))  # beside the first lesion, not on it: near
    prediction[10, 10, 10] = True
    table = lesion_table(reference, prediction)
    scores = lesion_scores(table)
    assert scores["n_found"] == 0
    assert scores["n_false_positives"] == 2
    # Clusters: one hit with Dice 0, one missed; one component is far from all.
    assert scores["lesion_dice"] == 0
    assert scores["lesion_f1"] == pytest.approx(2 / (2 + 1 + 1))
    prediction |= reference
    scores = lesion_scores(lesion_table(reference, prediction))
    assert scores["lesion_dice"] == pytest.approx((2 * 16 / (16 + 20) + 1 + 0) / 3)
    assert scores["lesion_f1"] == pytest.approx(2 * 2 / (2 * 2 + 1))
    assert lesion_scores(lesion_table(reference, reference), ignore_below=9)["lesion_f1"] == 1


def test_volumes_positions_and_size_classes_follow_the_affine():
    reference = ball((10, 20, 30), 2) | ball((30, 10, 10), 4)
    affine = np.array([[-2.0, 0, 0, 60], [0, 0, 1, -7], [0, 1.5, 0, 5], [0, 0, 0, 1]])
    table = lesion_table(reference, np.roll(reference, 1, axis=2), affine)
    np.testing.assert_allclose(table[["x", "y", "z"]], [[40, 23, 35], [0, 3, 20]])
    np.testing.assert_allclose(table["volume_mL"], [33 * 0.003, 257 * 0.003])
    scores = lesion_scores(table)
    assert (scores["n_small"], scores["n_large"]) == (1, 1)
    assert lesion_scores(table, small=0.09)["n_small"] == 0
    assert scores["sensitivity_small"] == scores["precision_large"] == 1


def test_small_and_large_lesions_are_counted_apart():
    """Voxels of 1 mm³, so that 100 of them are 0.1 mL, where large begins."""
    reference = np.zeros((40, 40, 40), bool)
    box(reference, (0, 3), (0, 3), (0, 11))  # 99 voxels, found
    box(reference, (0, 2), (20, 22), (0, 2))  # small, found
    box(reference, (0, 2), (30, 32), (0, 2))  # small, missed
    box(reference, (20, 25), (0, 5), (0, 4))  # 100 voxels, found
    box(reference, (20, 26), (10, 16), (0, 6))  # large, missed
    prediction = np.zeros_like(reference)
    for where in ((0, 0, 0), (0, 20, 0), (20, 0, 0)):
        prediction[where] = True
    box(prediction, (30, 32), (30, 32), (0, 2))  # small, on no lesion
    for start in (12, 20, 28):  # 100 voxels, on no lesion
        box(prediction, (34, 39), (0, 5), (start, start + 4))
    table = lesion_table(reference, prediction)
    by_size = {name: n for name, n in lesion_counts(table).items() if name.endswith(("_small", "_large"))}
    expected = {"n_small": 3, "n_found_small": 2, "false_positives_small": 1}
    expected |= {"n_large": 2, "n_found_large": 1, "false_positives_large": 3}
    assert by_size == expected
    scores = lesion_scores(table)
    assert scores["sensitivity_small"] == scores["precision_small"] == pytest.approx(2 / 3)
    assert scores["sensitivity_large"] == pytest.approx(1 / 2)
    assert scores["precision_large"] == pytest.approx(1 / 4)


def test_scores_of_all_scans_are_those_of_summed_counts(study):
    tables = [lesion_table(*pair) for pair in zip(*study, strict=True)]
    counts = pd.DataFrame(map(lesion_counts, tables))
    assert list(counts["n_lesions"]) == [3, 1, 0]
    twice = scores_from_counts({name: np.array([column.sum(), 2 * column.sum()]) for name, column in counts.items()})
    whole = lesion_scores(tables)
    for name, value in whole.items():
        scale = 2 if name.startswith("n_") else 1
        assert twice[name] == pytest.approx([value, scale * value]), name


@pytest.fixture
def matching():
    """Match lesions with components: one on two, a too large one, two on one, one on none."""
    reference, prediction = np.zeros((30, 5, 3), bool), np.zeros((30, 5, 3), bool)
    reference[0:3, 0, 0] = reference[4:6, 0, 0] = True
    prediction[2:5, 0, 0] = True  # shares one voxel with each of the two
    reference[10, 0, 0] = True
    prediction[10:21, 0, 0] = True  # 11 voxels on a lesion of one
    reference[24:29, 0, 0] = True
    prediction[24:26, 0, 0] = prediction[27:29, 0, 0] = True
    prediction[0, 4, 2] = True
    return reference, prediction


def test_components_match_lesions_that_they_share_voxels_with(matching):
    matched = Matching.of(*matching)
    assert matched.lesion_voxels.tolist() == [3, 2, 1, 5]
    assert matched.component_voxels.tolist() == [1, 3, 11, 2, 2]
    pairs = np.transpose([matched.lesion, matched.component, matched.overlap])
    assert pairs.tolist() == [[0, 1, 1], [1, 1, 1], [2, 2, 1], [3, 3, 2], [3, 4, 2]]
    assert matched.found.tolist() == [True] * 4
    assert matched.false_positive.tolist() == [True, False, False, False, False]
    assert matched.flagged.tolist() == [False, True, True, False, False]
    assert matched.distinct.tolist() == [False, False, False, True]


def test_more_shared_voxels_may_be_asked_for_and_small_components_do_not_take_part(matching):
    matched = Matching.of(*matching, min_overlap=2)
    assert matched.lesion.tolist() == [3, 3]
    assert matched.found.tolist() == [False, False, False, True]
    assert matched.false_positive.tolist() == [True, True, True, False, False]
    matched = Matching.of(*matching, min_voxels=3)
    assert matched.component_voxels.tolist() == [3, 11]
    assert matched.found.tolist() == [True, True, True, False]


def test_a_component_of_ten_times_the_lesion_is_not_flagged_yet(matching):
    reference, prediction = matching
    prediction[20, 0, 0] = False
    assert Matching.of(reference, prediction).flagged.tolist() == [False, True, False, False, False]


def test_lesions_that_are_numbered_already_keep_their_numbers(matching):
    reference, prediction = matching
    lesions = ndimage.label(reference)[0].astype(np.int32)
    backward = np.where(lesions > 0, 5 - lesions, 0).astype(np.int32)
    matched = Matching.to_lesions(backward, prediction)
    assert matched.lesion_voxels.tolist() == [5, 1, 2, 3]
    with pytest.raises(ValueError, match=r"shape \(30, 5, 3\) and a prediction of shape \(30, 5, 2\)"):
        Matching.to_lesions(lesions, prediction[..., :2])


def test_pairs_that_meet_are_those_of_a_search():
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, n, (7, 8, 9)).astype(np.int32) for n in (5, 7))
    expected = [
        (i - 1, j - 1, int(((first == i) & (second == j)).sum()))
        for i, j in np.ndindex(5, 7)
        if i and j and ((first == i) & (second == j)).any()
    ]
    pairs = meeting_pairs(first, second)
    assert list(zip(*(column.tolist() for column in pairs), strict=True)) == expected
    nothing = meeting_pairs(first, np.zeros_like(second))
    assert [len(column) for column in nothing] == [0, 0, 0]


def test_masks_may_be_of_any_type_of_number():
    mask = np.zeros((6, 6, 6), bool)
    mask[1, 1, 1] = mask[4, 4, 4] = True
    for kind in (bool, np.uint8, np.int64, np.float32):
        assert Matching.of(mask.astype(kind), mask).overlap.tolist() == [1, 1]
