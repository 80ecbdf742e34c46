"""The imitated reader of real lesions: what it was made to miss and to add is what scores count."""

import numpy as np
import pytest

from benchmarks.metastasis import bench_real_lesions as real


@pytest.fixture(scope="module")
def result():
    """Score a synthetic set of eight cubes, of which a quarter is missed."""
    mask = np.zeros((48, 40, 40), bool)
    for corner in np.ndindex(2, 2, 2):
        x, y, z = 8 + 16 * np.array(corner)
        mask[x : x + 3, y : y + 3, z : z + 3] = True
    affine = np.diag([0.6, 0.6, 3.0, 1.0])
    return real.scores({"synthetic cubes": (mask, affine)})


def test_counts_are_those_that_were_made(result):
    exact, wider = result["people"]
    for row in (exact, wider):
        assert (row["n_lesions"], row["n_kept"]) == (8, 6)
        assert row["n_found"] == row["n_by_distance"] == 6
        assert row["n_false"] == real.BLOBS
    assert exact["f1_mets"] == pytest.approx(2 * 6 / (8 + 6 + real.BLOBS), abs=1e-4)


def test_recall_is_given_by_volume(result):
    rows = [row for row in result["recall_by_volume"] if row["n"]]
    assert [(row["from_mm3"], row["n"], row["n_found"]) for row in rows] == [(0.0, 8, 6)]
