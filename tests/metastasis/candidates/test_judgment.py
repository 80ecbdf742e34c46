"""What candidates are, and scores of volumes."""

import numpy as np
import pytest

from metastasis.candidates.features import FEATURES, PRIOR_FEATURES, Candidates
from metastasis.candidates.judgment import (
    NAMES,
    candidate_truth,
    classifier_columns,
    has_prior,
    make_classifier,
    scored_volume,
    shuffled_losses,
    without_prior,
)

N = len(NAMES)


class First:
    """Answers with the first column."""

    def predict(self, table):
        return table[:, 0]


def test_truth_of_candidates():
    label = np.zeros((12, 12, 12), np.uint8)
    label[1:4, 1:4, 1:4] = 1
    label[7:10, 7:10, 7:10] = 2
    flat = np.arange(label.size).reshape(label.shape)
    lesion, merged = flat[1:4, 1:4, 1:4].ravel(), flat[:, :, :6].ravel()
    core, elsewhere = flat[7:10, 7:10, 7:10].ravel(), flat[5:7, 1:3, 9:12].ravel()
    candidates = Candidates(np.zeros((4, N)), [lesion, merged, core, elsewhere])
    # A lesion in something much larger, and a core, are neither.
    assert candidate_truth(candidates, label).tolist() == [1, -1, -1, 0]


def test_columns_have_a_flag_for_the_prior_whose_features_are_told_and_taken_away():
    table = np.ones((2, N))
    table[1, len(FEATURES) :] = np.nan
    columns = classifier_columns(table)
    assert columns.shape == (2, N + 1)
    assert columns[0].tolist() == [1.0] * (N + 1)
    assert columns[1].tolist() == [1.0] * len(FEATURES) + [0.0] * (len(PRIOR_FEATURES) + 1)
    table = np.arange(2.0 * N).reshape(2, N)
    table[1, len(FEATURES) :] = np.nan
    assert has_prior(table).tolist() == [True, False]
    alone = without_prior(table)
    assert not has_prior(alone).any()
    assert (alone[:, : len(FEATURES)] == table[:, : len(FEATURES)]).all()
    assert np.isfinite(table[0]).all()


def test_the_highest_score_of_a_voxel_counts_and_an_oversized_component_has_the_mean_of_its_core():
    table = np.zeros((3, N))
    table[:, 0] = 0.3, 0.8, 1.4
    voxels = [np.array([0, 1, 2]), np.array([1]), np.array([5])]
    scores = scored_volume(First(), Candidates(table, voxels), (2, 2, 2))
    np.testing.assert_allclose(scores.ravel(), [0.3, 0.8, 0.3, 0, 0, 1, 0, 0], rtol=1e-6)
    nothing = Candidates(np.empty((0, N)), [])
    assert not scored_volume(First(), nothing, (2, 2, 2)).any()
    table = np.zeros((2, N))
    table[:, 0] = 0.8, 0.1
    voxels = [np.array([0, 1]), np.array([4])]
    inner, outer = np.array([0, 1, 2, 3]), np.arange(6)
    oversized = [(inner, np.array([0, 1])), (outer, np.array([0, 1, 2, 3, 4]))]
    scores = scored_volume(First(), Candidates(table, voxels, oversized), (2, 2, 2)).ravel()
    # The larger one counts what the smaller one has become.
    mean = (4 * 0.8 + 0.1) / 5
    np.testing.assert_allclose(scores, [0.8] * 4 + [mean] * 2 + [0, 0], rtol=1e-6)


@pytest.mark.parametrize("name", ["trees", "linear"])
def test_classifiers_learn_and_weights_name_the_feature(name):
    table = np.random.default_rng(0).normal(size=(400, N))
    truth = (table[:, 3] > 0.8).astype(float)
    classifier = make_classifier(name, 0).fit(classifier_columns(table), truth)
    weights = shuffled_losses(classifier, classifier_columns(table), truth, 0)
    assert max(weights, key=weights.get) == NAMES[3]
    assert weights[NAMES[3]] > 0.2
