"""Samples of patients are as large as the cohort, and undefined samples are no part of an interval."""

import numpy as np

from metastasis.study.patient_samples import patient_draws, percentile_interval


def test_draws_of_patients_are_as_many_as_patients_and_none_of_a_single_patient():
    draws = patient_draws(5, 2000, np.random.SeedSequence(0))
    assert draws.shape == (2000, 5)
    assert (draws.sum(axis=1) == 5).all()
    # Each is left out by a sample with the probability (4/5)⁵ = .328, ± 4 standard errors.
    np.testing.assert_allclose((draws == 0).mean(axis=0), 0.8**5, atol=4 * 0.0105)
    assert patient_draws(1, 2000, np.random.SeedSequence(0)).shape == (0, 1)


def test_undefined_samples_are_left_out_of_a_percentile_interval():
    samples = np.append(np.arange(1001.0), [np.nan] * 50)
    np.testing.assert_allclose(percentile_interval(samples), (25, 975))
    assert np.isnan(percentile_interval(np.full(3, np.nan))).all()
    assert np.isnan(percentile_interval(np.empty(0))).all()
