"""The dictionary of signals that starting points come from."""

import numpy as np

from dmrifit import MODELS, Protocol
from dmrifit.engine.kernels import compiler
from dmrifit.engine.starting_points import Dictionary, to_inner

B = np.array([0, 0.1, 0.3, 0.6, 1.0])  # ms/µm²
PROTOCOL = Protocol(1000 * B)
UNBOUNDED = np.inf


def dictionary(name, *, fixed=(), turn_up=UNBOUNDED, n_starts=3, protocol=PROTOCOL):
    model = MODELS[name]
    low, high = np.array(model.bounds).T
    return Dictionary(compiler.load(model), model, protocol, low, high, fixed, turn_up, n_starts)


def test_the_fast_component_starts_once_for_each_start_and_the_slow_one_on_a_grid():
    starts = dictionary("ivim")
    # Of Dv from 4 to 100, what b from 0.1 ms/µm² can tell apart ends at 3/0.1.
    fast = 4 * (30 / 4) ** np.array([0.04, 0.53, 0.91])
    slow = 0.2 * (3 / 0.2) ** ((np.arange(24) + 0.5) / 24)
    assert starts.atoms.n_first == starts.n_strata == 3
    np.testing.assert_allclose(starts.atoms.signals[:3], np.exp(-fast[:, None] * B), rtol=1e-9)
    np.testing.assert_allclose(starts.atoms.signals[3:], np.exp(-slow[:, None] * B), rtol=1e-9)
    # Coordinates of the search: S0, f, log Dv, Dt; those of the other component are missing.
    assert np.isnan(starts.atoms.points[:3, [0, 1, 3]]).all()
    np.testing.assert_allclose(starts.atoms.points[:3, 2], np.log(fast), rtol=1e-9)
    np.testing.assert_allclose(starts.atoms.points[3:, 3], slow, rtol=1e-9)


def test_products_of_atoms_and_constants_of_pairs_are_those_of_linear_algebra():
    starts = dictionary("ivim")
    np.testing.assert_allclose(starts.atoms.gram, starts.atoms.signals @ starts.atoms.signals.T, rtol=1e-9)
    assert starts.atoms.constants.shape == (3, 24, 6)
    for s, t in ((0, 3), (2, 17)):
        pair = starts.atoms.signals[[s, 3 + t]]
        inverse = np.linalg.inv(pair @ pair.T)
        expected = [inverse[0, 0], -inverse[0, 1], inverse[1, 1]]
        np.testing.assert_allclose(starts.atoms.constants[s, t, :3], expected, rtol=1e-6)
        np.testing.assert_allclose(starts.atoms.constants[s, t, 3:5], 1 / (pair[[1, 0]] ** 2).sum(axis=1), rtol=1e-9)
        assert starts.atoms.constants[s, t, 5] == t


def test_without_two_components_each_start_takes_a_part_of_the_atoms():
    starts = dictionary("kurtosis", n_starts=3)
    assert starts.atoms.n_first == 0
    assert starts.n_strata == 3
    assert starts.atoms.constants.shape == (1, len(starts.atoms.signals), 6)
    np.testing.assert_allclose(starts.atoms.constants[0, :, 0], (starts.atoms.signals**2).sum(axis=1), rtol=1e-9)
    d, k = starts.atoms.points[:, 1:].T
    np.testing.assert_allclose(
        starts.atoms.signals, np.exp(-d[:, None] * B + (d[:, None] * B) ** 2 * k[:, None] / 6), rtol=1e-9
    )
    assert dictionary("kurtosis", n_starts=10**6).n_strata == len(starts.atoms.signals)


def test_a_parameter_that_is_fixed_is_not_searched():
    starts = dictionary("ivim", fixed=[("Dt", 1.25)])
    np.testing.assert_allclose(starts.atoms.signals[3:], np.exp(-1.25 * B)[None], rtol=1e-9)
    starts = dictionary("ivim", fixed=[("Dv", 20.0)])
    np.testing.assert_allclose(starts.atoms.signals[: starts.atoms.n_first], np.exp(-20 * B)[None], rtol=1e-9)
    assert len(starts.atoms.signals) == starts.atoms.n_first + 24


def test_kurtosis_is_limited_where_the_signal_must_not_turn_up():
    free, limited = dictionary("kurtosis"), dictionary("kurtosis", turn_up=3.0)
    d = limited.atoms.points[:, 1]
    limit = np.minimum(5, 3 / d)
    # The inner coordinate is the share of the limit times the bound.
    kurtosis = limited.atoms.points[:, 2] * limit / 5
    expected = np.exp(-d[:, None] * B + (d[:, None] * B) ** 2 * kurtosis[:, None] / 6)
    np.testing.assert_allclose(limited.atoms.signals, expected, rtol=1e-9)
    assert (kurtosis * d <= 3 * (1 + 1e-12)).all()
    assert (free.atoms.points[:, 2] * free.atoms.points[:, 1] > 3).any()
    assert (np.diff(limited.atoms.signals, axis=1) <= 1e-12).all()


def test_relaxation_times_are_spread_over_what_the_echo_times_can_tell_apart():
    protocol = Protocol.preset("cohort1").take([0, 1, 2, 3, 4, 7, 11])
    starts = dictionary("t2-ivim-kurtosis", protocol=protocol)
    times = np.unique(np.round(1 / starts.atoms.points[starts.atoms.n_first :, 6], 9))
    low, high = max(20, protocol.te.min() / 5), min(140, protocol.te.max() * 10)
    np.testing.assert_allclose(times, low * (high / low) ** ((np.arange(6) + 0.5) / 6))


def test_coordinates_of_the_search_are_logarithms_and_inverses():
    values = np.array([[2.0, 3.0, 4.0], [5.0, np.e, 0.0]])
    inner = to_inner(values, ("plain", "log", "inverse"))
    np.testing.assert_allclose(inner, [[2, np.log(3), 0.25], [5, 1, np.inf]])
    np.testing.assert_array_equal(values, [[2.0, 3.0, 4.0], [5.0, np.e, 0.0]])
    assert to_inner(np.array([-1.0]), ("log",))[0] == -np.inf
