"""Counting of false positives where enough of the metastases are found, and what a table left out."""

import numpy as np

from benchmarks.metastasis import bench_metastasis_budget as budget
from metastasis.candidates.features import FEATURES, PRIOR_FEATURES, Candidates


def test_false_positives_are_counted_where_nine_of_ten_lesions_are_found():
    # Ten lesions with scores of 0.05 to 0.95, and false positives between them.
    scores = np.concatenate([np.arange(10) / 10 + 0.05, [0.02, 0.12, 0.3, 0.9]])
    truth = np.array([1] * 10 + [0] * 4)
    hits = [np.array([row]) for row in range(10)]
    assert budget.false_positives(scores, truth, hits, n_scans=2) == 1.0
    # A lesion that no candidate lies on is missed; two of them are too many.
    hits[9] = np.array([], int)
    assert budget.false_positives(scores, truth, hits, n_scans=2) == 1.5
    hits[8] = np.array([], int)
    assert budget.false_positives(scores, truth, hits, n_scans=2) is None


def test_lesions_know_the_candidates_that_lie_on_them():
    label = np.zeros((8, 8, 8), np.uint8)
    label[1:3, 1:3, 1:3] = label[5:7, 5:7, 5:7] = 1
    voxels = [np.flatnonzero(label), np.array([0, 1]), np.flatnonzero(np.arange(512).reshape(8, 8, 8) * label)[-4:]]
    table = np.zeros((3, len(FEATURES) + len(PRIOR_FEATURES)))
    found = budget.hit_by(Candidates(table, voxels), label)
    assert [rows.tolist() for rows in found] == [[0], [0, 2]]


def test_the_table_says_what_was_left_out():
    one = {"world": "old phantom", "way": "own mistakes", "times": 16, "segments": 76800, "n_lesions": 80}
    one |= {"precision": 0.9, "false_positives_per_scan": 0.4, "commit": "0123456789ab"}
    one |= {"candidates, false positives of the network": 0.5, "candidates, false positives judged again": 0.4}
    text = budget.markdown({"runs": [one]})
    assert "| old phantom | own mistakes | 16× | 76 800 | 1 | 80 | 0.900 | 0.40 | 0.50 | 0.40 | 20 % |" in text
    assert "old phantom, own mistakes, 16×" not in text
    assert "hard world, own mistakes, 4× (3 of 3)" in text
