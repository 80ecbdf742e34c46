"""The part of a kernel that all models share, against numpy and scipy."""

import numpy as np
import pytest
from scipy.optimize import nnls

from dmrifit.engine.kernels import compiler, shared
from dmrifit.engine.kernels.layout import LANES, Atoms, Common, Starts


@pytest.mark.parametrize("low", [0, -1])
def test_two_amplitudes_are_the_non_negative_least_squares(low):
    rng = np.random.default_rng(0)
    signs = set()
    for _ in range(200):
        atoms, y = rng.uniform(low, 1, (2, 6)), rng.uniform(low, 1, 6)
        first, second = atoms
        amplitudes = shared.amplitudes.py_func(first @ y, second @ y, first @ first, first @ second, second @ second)
        expected, _ = nnls(atoms.T, y)
        np.testing.assert_allclose(amplitudes, expected, atol=1e-12)
        signs.add(tuple(expected > 0))
        # Pairs of the dictionary, which has no negative value, are rated by the same.
        first, second = np.abs(atoms)
        v, crossed, t = first @ first, first @ second, second @ second
        constants = np.array([t, crossed, v, 0, 0]) / (v * t - crossed**2) + [0, 0, 0, 1 / t, 1 / v]
        gain = y @ y - nnls(np.abs(atoms).T, y)[1] ** 2
        assert shared.pair_gain(first @ y, second @ y, constants) == pytest.approx(gain, abs=1e-12)
    none = {(False, False)} if low < 0 else set()
    assert signs == {(False, True), (True, False), (True, True)} | none


def prepared(signals, atoms, n_first, n_starts, *, amplitude=0, first=-1):
    """Run the preparation on a dictionary of atoms; returns points, ratings and the slots."""
    n_atoms, m = atoms.shape
    n = len(signals)
    gram = atoms @ atoms.T
    v, t = np.diag(gram)[:n_first, None], np.diag(gram)[None, n_first:]
    crossed = gram[:n_first, n_first:]
    if not n_first:
        v, crossed = np.ones((1, 1)), np.zeros((1, n_atoms))
    scale = 1 / (v * t - crossed**2)
    parts = t * scale if n_first else t, crossed * scale, v * scale, 1 / t, 1 / v
    constants = np.stack(np.broadcast_arrays(*parts, np.arange(t.size)[None]), axis=-1)
    atoms_q = np.full((n_atoms, 4), np.nan)
    atoms_q[:n_first, 2] = np.arange(n_first) + 10
    atoms_q[n_first:, 3] = np.arange(n_atoms - n_first)
    atoms_q[n_first:, :3] = 0
    n_strata = n_first or n_starts
    starts = Starts(
        signals,
        scales=np.empty(n),
        usable=np.empty(n, int),
        n_measured=np.empty(n, int),
        points=np.empty((n, n_starts, 4)),
        residual_squares=np.empty((n, n_strata)),
    )
    numbers = np.array([4, amplitude, 1 if n_first else -1, -1, -1])
    bounds = np.full(4, -1e9), np.full(4, 1e9)
    scaled, middle = np.ones(4, bool), np.full(4, np.nan)
    common = Common(numbers, np.zeros(4, int), *bounds, *bounds, scaled, 3, False, np.inf, first, middle, np.ones(m))
    dictionary = Atoms(atoms, atoms_q, gram, np.ascontiguousarray(constants), n_first)
    work = (
        np.empty((n_strata, 2 * LANES)), np.empty((n_atoms, LANES)), np.empty(m * LANES),
        np.empty((n_atoms, n_atoms)), np.zeros(1, int),
    )  # fmt: skip
    n_slots = compiler.load(None).prepare(common, dictionary, work, starts)
    return starts.points[:n_slots], starts.residual_squares[:n_slots], starts.usable[:n_slots]


def test_starting_points_are_the_best_pair_of_atoms_of_each_stratum():
    rng = np.random.default_rng(1)
    n_first, n_second = 2, 13  # more than are rated together, and a rest
    atoms = rng.uniform(0, 1, (n_first + n_second, 8))
    signals = rng.uniform(0, 1, (20, 8))
    signals[4, [2, 6]] = np.nan
    signals[11] = np.nan
    points, ratings, usable = prepared(signals, atoms, n_first, 2)
    assert usable.tolist() == [i for i in range(20) if i != 11]
    forced, *_ = prepared(signals, atoms, n_first, 2, first=0)
    for slot, i in enumerate(usable):
        measured = np.isfinite(signals[i])
        y = signals[i, measured] / np.nanmax(signals[i])
        residuals, amplitudes = np.empty((2, n_second)), np.empty((2, n_second, 2))
        for s in range(2):
            for t in range(n_second):
                pair = atoms[[s, n_first + t]][:, measured].T
                amplitudes[s, t], norm = nnls(pair, y)
                residuals[s, t] = norm**2
        np.testing.assert_allclose(ratings[slot], residuals.min(axis=1), atol=1e-9)
        order = np.argsort(residuals.min(axis=1))
        assert (points[slot, :, 2] == order + 10).all()
        assert forced[slot, :, 2].tolist() == [10, 11]
        for p, s in enumerate(order):
            t = residuals[s].argmin()
            assert points[slot, p, 3] == t
            assert points[slot, p, 0] == pytest.approx(amplitudes[s, t].sum())
            share = np.clip(amplitudes[s, t, 0] / amplitudes[s, t].sum(), 0.02, 0.98)
            assert points[slot, p, 1] == pytest.approx(share)


@pytest.mark.parametrize("amplitude", [0, -1])
def test_without_two_components_the_best_atom_of_each_stratum_is_a_start(amplitude):
    rng = np.random.default_rng(3)
    atoms, signals = rng.uniform(0.2, 1, (6, 5)), rng.uniform(0.2, 1, (9, 5))
    points, ratings, *_ = prepared(signals, atoms, 0, 2, amplitude=amplitude)
    y = signals / signals.max(axis=1, keepdims=True)
    dots, squares = y @ atoms.T, (atoms**2).sum(axis=1)
    gains = dots**2 / squares if amplitude == 0 else 2 * dots - squares
    rests = (y**2).sum(axis=1)[:, None] - gains
    np.testing.assert_allclose(ratings, np.stack([rests[:, :3].min(1), rests[:, 3:].min(1)], 1))
    np.testing.assert_array_equal(points[:, 0, 3], rests.argmin(axis=1))


def test_voxels_that_cannot_be_fitted_are_screened_out():
    signals = np.array(
        [
            [4.0, 2.0, 1.0, np.nan],  # 3 measurements for 3 free parameters
            [4.0, 2.0, np.nan, np.inf],  # too few
            [4.0, 2.0, -1.0, 1.0],  # negative values are data
            [1e-200, -1.0, 0.0, 0.0],  # whose square overflows beside the largest
            [-4.0, -2.0, -1.0, -3.0],  # no positive value
            [3.0, 3.0, 3.0, 3.0],  # constant
            [8.0, 0.0, 0.0, 0.0],
            [1e-301, 0.0, 0.0, 0.0],  # too small
            [1e291, 1.0, 1.0, 1.0],  # too large
        ]
    )
    n = len(signals)
    scales, usable, n_measured = np.zeros(n), np.zeros(n, int), np.zeros(n, int)
    assert shared.screen.py_func(signals, 3, True, scales, usable, n_measured) == 3
    assert usable[:3].tolist() == [0, 2, 6]
    assert n_measured[:3].tolist() == [3, 4, 4]
    assert scales[:3].tolist() == [0.25, 0.25, 0.125]
    shared.screen.py_func(signals, 3, False, scales, usable, n_measured)
    assert scales[:3].tolist() == [1, 1, 1]


def test_the_logarithm_of_ratings_is_monotonic_and_near_that_to_base_two():
    values = np.geomspace(0.05, 1e4, 5000)
    logarithms = np.array([shared.logarithm.py_func(value) for value in values])
    assert (np.diff(logarithms) > 0).all()
    assert np.abs(logarithms - np.log2(values)).max() < 0.09
