"""Voxels unlike those of the training patients."""

import numpy as np
import pytest

from dmrifit.predict.intervals import patient_weights
from dmrifit.predict.novelty import NOVEL, Novelty


@pytest.fixture(scope="module")
def clouds():
    """Twenty patients with two kinds of tissue; features of very different sizes."""
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(20), 150)
    X = rng.normal(size=(3000, 3)) + 8 * rng.integers(0, 2, (3000, 1))
    return X * [1, 100, 1e-3], patients


def learned(X, patients):
    return Novelty.learn(X, patients, patient_weights(patients), 5, seed=0)


def test_one_voxel_in_twenty_of_new_patients_is_unlike_and_a_tissue_between_two_others_is_found(clouds):
    X, patients = clouds
    novelty = learned(X[patients < 10], patients[patients < 10])
    typicality = novelty.typicality(X[patients >= 10])
    assert abs(np.mean(typicality < NOVEL) - NOVEL) < 0.02
    assert abs(typicality.mean() - 0.5) < 0.05
    assert novelty.shares.shape == (10,)
    assert abs(novelty.shares.mean() - NOVEL) < 0.01
    between = np.random.default_rng(1).normal(size=(200, 3), scale=0.3) + 4
    novelty = learned(X, patients)
    assert np.mean(novelty.typicality(between * [1, 100, 1e-3]) < NOVEL) > 0.9
    assert np.isnan(novelty.typicality(np.array([[0, 0, np.nan], [0, 0, 0]]))).tolist() == [True, False]
    again = Novelty.from_dict(novelty.to_dict(), 3)
    np.testing.assert_array_equal(again.typicality(X), novelty.typicality(X))


def test_a_patient_with_more_of_them_than_any_is_named(clouds):
    novelty = learned(*clouds)
    assert "training patients): no more than in the training patients" in novelty.describe(float(novelty.shares.max()))
    assert novelty.describe(0.5).endswith(
        "more than in any training patient, which happens by chance in 1 of 21 new patients; "
        "intervals were not measured there"
    )


@pytest.mark.parametrize("n_values", [2, 5])
def test_voxels_with_equal_distances_are_as_typical_as_the_first_of_them(n_values):
    """Rounded measurements: most voxels have equals in other patients, at a distance of 0."""
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(20), 100)
    X = rng.integers(0, n_values, (2000, 2)).astype(float)
    novelty = learned(X[patients < 10], patients[patients < 10])
    typicality = novelty.typicality(X[patients >= 10])
    _, ties = np.unique(novelty.distances, return_counts=True)
    # The mean is 1/2 and half the share of equal distances, which is 1 where all are equal.
    expected = 0.5 + 0.5 * np.sum((ties / ties.sum()) ** 2)
    assert abs(typicality.mean() - expected) < 0.05
    assert np.mean(typicality < NOVEL) < 0.08


def test_rounding_does_not_part_equal_distances():
    novelty = Novelty(np.zeros(1), np.eye(1), np.zeros((1, 1)), np.repeat([1.0, 2.0], [101, 100]), np.zeros(1))
    typicality = novelty.typicality(np.array([[1 - 1e-12], [1 + 1e-12], [1.5], [2.0], [2.1]]))
    np.testing.assert_allclose(typicality, [1, 1, 0.4975, 0.495, 0], atol=1e-9)


def test_constant_features_do_not_count():
    X = np.column_stack([np.random.default_rng(0).normal(size=500), np.ones(500)])
    novelty = learned(X, np.arange(500) % 10)
    assert np.isfinite(novelty.typicality(X)).all()
