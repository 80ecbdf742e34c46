"""Jitted least squares of logarithms against numpy."""

import numpy as np

from dmrifit.engine.kernels.loglinear import fit_equal_weights, fit_iterated_weights


def test_both_functions_agree_with_numpy_for_three_columns():
    rng = np.random.default_rng(0)
    b = np.array([0, 0.5, 1.0, 1.5, 2.0, 2.5])
    design = np.stack([np.ones(6), -b, b**2], axis=1)
    signals = np.exp(design @ [[3.0], [1.0], [0.1]]).T * rng.lognormal(0, 0.02, (70, 6))
    signals[5, 2] = -1.0
    projection = np.ascontiguousarray(np.linalg.pinv(design))
    coefficients, covariances = np.empty((3, 70)), np.empty((3, 3, 70))
    cost, n_used = np.empty(70), np.empty(70, np.int64)
    inverse = projection @ projection.T
    ends = (coefficients, covariances, cost, n_used)
    fit_equal_weights(signals, design, projection, inverse, *ends)
    use = np.flatnonzero(signals[5] > 0)
    np.testing.assert_allclose(coefficients[:, 0], projection @ np.log(signals[0]), rtol=1e-10)
    theirs = np.linalg.lstsq(design[use], np.log(signals[5, use]), rcond=None)[0]
    np.testing.assert_allclose(coefficients[:, 5], theirs, rtol=1e-8)
    assert n_used.tolist() == [5 if i == 5 else 6 for i in range(70)]
    fit_iterated_weights(signals, design, np.ones(6), 0, *ends)
    for i in (0, 5, 69):
        use = np.flatnonzero(signals[i] > 0)
        root = signals[i, use]
        theirs = np.linalg.lstsq(design[use] * root[:, None], np.log(root) * root, rcond=None)[0]
        np.testing.assert_allclose(coefficients[:, i], theirs, rtol=1e-8)
