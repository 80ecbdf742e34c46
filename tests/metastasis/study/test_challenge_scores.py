"""Scores of BraTS-METS: those of the official scorer, and small cases by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.metastasis import _scorer_pairs
from metastasis import mets_scores

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def official():
    answers = ROOT / "tests" / "metastasis" / "data" / "mets_scorer.json"
    return _scorer_pairs, json.loads(answers.read_text(encoding="utf-8"))


def test_scores_equal_those_of_the_official_scorer_for_a_hundred_pairs(official):
    script, answers = official
    assert answers["versions"]["brats-evaluation"] == "0.0.10"
    assert len(answers["pairs"]) == 100
    n_undefined = 0
    for row in answers["pairs"]:
        reference, prediction, edges = script.balls_pair(row["seed"])
        assert script.digest(reference, prediction) == row["digest"]
        for key, value in mets_scores(reference, prediction, np.diag([*edges, 1.0])).items():
            expected = np.nan if row[key] is None else row[key]
            n_undefined += np.isnan(expected)
            np.testing.assert_allclose(value, expected, rtol=0, atol=1e-6, err_msg=f"{row['seed']} {key}")
    assert n_undefined > 100


def test_a_finding_has_one_partner_and_small_ones_need_a_tenth_of_overlap():
    reference = np.zeros((20, 12, 12), np.uint8)
    reference[2:5, 2:5, 2:5] = 1  # 27 mm³
    reference[8:10, 2:4, 2:4] = 1  # 8 mm³
    prediction = np.zeros_like(reference)
    prediction[3:10, 3, 3] = 1  # over both: a partner of the small one, Dice 2·2/(7 + 8)
    scores = mets_scores(reference, prediction)
    counts = ("tp", "fp", "fn")
    assert [scores[f"all_instance_{key}"] for key in counts] == [1, 0, 1]
    assert [scores[f"small_instance_{key}"] for key in counts] == [1, 0, 0]
    assert [scores[f"large_instance_{key}"] for key in counts] == [0, 0, 1]
    prediction[3:10, 3, 3] = 0
    prediction[9:19, 3, 3:9] = 1  # 1 voxel of 60 shared: a pair of all, but not found among the small
    scores = mets_scores(reference, prediction)
    assert [scores[f"all_instance_{key}"] for key in counts] == [1, 0, 1]
    assert [scores[f"small_instance_{key}"] for key in counts] == [0, 0, 1]


def test_voxels_decide_what_is_large():
    reference = np.zeros((8, 8, 8), np.uint8)
    reference[2:4, 2:4, 2:4] = 1  # 8 voxels
    assert np.isnan(mets_scores(reference, reference)["large_instance_f1"])
    scores = mets_scores(reference, reference, np.diag([1, 1, 3, 1.0]))
    assert scores["large_instance_f1"] == scores["lesionwise_dsc_mean"] == 1
    assert np.isnan(scores["small_instance_f1"])
