"""Jitted least squares of logarithms against numpy."""

import numpy as np

from dmrifit.engine.kernels.loglinear import fit_complete, fit_each


def test_both_functions_agree_with_numpy_for_three_columns():
    rng = np.random.default_rng(0)
    b = np.array([0, 0.5, 1.0, 1.5, 2.0, 2.5])
    design = np.stack([np.ones(6), -b, b**2], axis=1)
    signals = np.exp(design @ [[3.0], [1.0], [0.1]]).T * rng.lognormal(0, 0.02, (70, 6))
    signals[5, 2] = -1.0
    projection = np.ascontiguousarray(np.linalg.pinv(design))
    coefficients, covariances = np.empty((3, 70)), np.empty((3, 3, 70))
    cost, n_used = np.empty(70), np.empty(70, np.int64)
    ends = (coefficients, covariances, cost, n_used)
    incomplete = np.empty(70, np.int64)
    assert fit_complete(signals, design, projection, coefficients, np.empty(70), cost, incomplete) == 1
    assert incomplete[0] == 5
    np.testing.assert_allclose(coefficients[:, 0], projection @ np.log(signals[0]), rtol=1e-10)
    complete = coefficients.copy()
    fit_each(signals, design, np.ones(6), 0, False, ends)
    np.testing.assert_allclose(coefficients[:, [0, 69]], complete[:, [0, 69]], rtol=1e-9)
    use = np.flatnonzero(signals[5] > 0)
    theirs = np.linalg.lstsq(design[use], np.log(signals[5, use]), rcond=None)[0]
    np.testing.assert_allclose(coefficients[:, 5], theirs, rtol=1e-8)
    assert n_used.tolist() == [5 if i == 5 else 6 for i in range(70)]
    fit_each(signals, design, np.ones(6), 0, True, ends)
    for i in (0, 5, 69):
        use = np.flatnonzero(signals[i] > 0)
        root = signals[i, use]
        theirs = np.linalg.lstsq(design[use] * root[:, None], np.log(root) * root, rcond=None)[0]
        np.testing.assert_allclose(coefficients[:, i], theirs, rtol=1e-8)


def test_costs_keep_their_bits_beside_a_voxel_of_large_residuals():
    """The short series of exp, for small residuals, has the bits of the long one."""
    rng = np.random.default_rng(1)
    design = np.stack([np.ones(6), -np.arange(6) / 4], axis=1)
    signals = 100 * np.exp(design @ [[0.0], [1.0]]).T * rng.lognormal(0, 0.05, (64, 6))
    projection = np.ascontiguousarray(np.linalg.pinv(design))
    costs = []
    for factor in (1, 5):
        signals[7, 3] *= factor
        cost = np.empty(64)
        fit_complete(signals, design, projection, np.empty((2, 64)), np.empty(64), cost, np.empty(64, np.int64))
        costs.append(cost)
    assert costs[0][7] != costs[1][7]
    others = np.arange(64) != 7
    assert (costs[0][others] == costs[1][others]).all()
    log_residuals = np.log(signals) - np.log(signals) @ projection.T @ design.T
    expected = ((signals * (1 - np.exp(-log_residuals))) ** 2).sum(axis=1)
    np.testing.assert_allclose(costs[1], expected, rtol=1e-8)
