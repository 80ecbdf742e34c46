"""Segments that hold lesions are counted as by hand and as in a plain loop."""

import numpy as np
import pytest

from metastasis.study.evaluation import (
    SEGMENT_COUNTS,
    segment_scores,
)


def test_segments_by_hand():
    label, found = np.zeros((20, 20, 10)), np.zeros((20, 20, 10))
    label[0, 0, 0] = label[19, 19, 9] = (
        1  # the first and the last of 3 × 3 × 2 segments of 8, those at the ends cut
    )
    found[7, 7, 7] = found[8, 0, 0] = 0.5
    scores = segment_scores([label], [found], segment=8)
    assert (scores["n_positive"], scores["n_negative"]) == (2, 16)
    assert scores["sensitivity"] == scores["precision"] == 0.5
    assert scores["specificity"] == pytest.approx(15 / 16)
    mask = np.zeros((20, 20, 10))
    mask[:8, :8] = 1
    inside = segment_scores([label], [found], segment=8, masks=[mask])
    # Those of the mask, and the lesion outside it.
    assert (inside["n_positive"], inside["n_negative"]) == (2, 1)


def test_segments_are_those_of_a_plain_loop():
    rng = np.random.default_rng(2)
    label, found = rng.random((2, 13, 17, 11)) > 0.98
    counts = np.zeros((2, 2), int)
    for x in range(0, 13, 5):
        for y in range(0, 17, 5):
            for z in range(0, 11, 5):
                tile = slice(x, x + 5), slice(y, y + 5), slice(z, z + 5)
                counts[int(label[tile].any()), int(found[tile].any())] += 1
    scores = segment_scores([label], [found], segment=5)
    assert scores["true_negatives"] == counts[0, 0]
    assert scores["true_positives"] == counts[1, 1]
    assert scores["precision"] == pytest.approx(counts[1, 1] / counts[:, 1].sum())


def test_scans_are_counted_together_each_with_its_mask():
    label, answer, mask = np.zeros((3, 6, 6, 6))
    label[0, 0, 0] = answer[0, 0, 0] = answer[4, 4, 4] = 1
    mask[:3] = 1
    empty = np.zeros((6, 6, 6))
    scores = segment_scores([label, empty], [answer, answer], segment=3, masks=[None, mask])
    # Eight segments of the first scan, four of the second: the other four are outside of its mask.
    assert [scores[key] for key in SEGMENT_COUNTS] == [1, 11, 1, 6 + 3]
    assert scores["specificity"] == pytest.approx(9 / 11)
    assert scores["precision"] == pytest.approx(1 / 3)
    assert scores["sensitivity"] == 1


def test_voxels_that_reach_the_threshold_are_positive():
    label, probability = np.zeros((4, 4, 4)), np.full((4, 4, 4), 0.3)
    for threshold, n in ((0.3, 0), (0.31, 8)):
        scores = segment_scores([label], [probability], segment=2, threshold=threshold)
        assert scores["true_negatives"] == n


@pytest.mark.parametrize("segment", [0, -3, 2.0, True])
def test_edges_that_are_no_numbers_of_voxels_are_refused(segment):
    volume = np.zeros((4, 4, 4))
    with pytest.raises(ValueError, match="segments need an edge of 1 voxel or more, not"):
        segment_scores([volume], [volume], segment=segment)


def test_scans_that_do_not_fit_are_refused():
    volume = np.zeros((4, 4, 4))
    for labels, answers, masks, message in (
        ([], [], None, "0 labels and 0 predictions"),
        ([volume], [], None, "1 label and 0 predictions"),
        ([volume], [volume], [None, None], "give each for each scan"),
        (
            [volume],
            [volume[1:]],
            None,
            r"scan 0: a label of shape \(4, 4, 4\) and a prediction of shape \(3, 4, 4\)",
        ),
        ([volume[0]], [volume[0]], None, "scan 0: a label of shape"),
    ):
        with pytest.raises(ValueError, match=message):
            segment_scores(labels, answers, masks=masks)
