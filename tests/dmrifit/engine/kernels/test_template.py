"""The part of a kernel that all models share, against numpy, scipy and finite differences."""

import numpy as np
import pytest
from scipy.optimize import nnls

from dmrifit import MODELS, Protocol
from dmrifit.engine.kernels import compiler
from dmrifit.engine.kernels.layout import LANES, UNROLL, Layout

MODEL = MODELS["t2-ivim-kurtosis"]
PROTOCOL = Protocol.preset("cohort1")


@pytest.fixture(scope="module")
def ivim():
    return compiler.load(MODELS["ivim"])


@pytest.fixture(scope="module")
def kurtosis():
    return compiler.load(MODELS["kurtosis"])


@pytest.mark.parametrize("floor", [0.0, 0.05])
def test_sums_of_derivatives_are_those_of_finite_differences(floor):
    kernel, layout = compiler.load(MODEL), Layout(7)
    rng = np.random.default_rng(840)
    low, high = (
        np.array([0.9, 0.05, 6, 160, 0.4, 0.2, 40]),
        np.array([3, 0.6, 60, 240, 2.0, 1.5, 120]),
    )
    outer = low + (high - low) * rng.uniform(size=(LANES, 7))
    y = rng.uniform(0.1, 1, (LANES, 21))
    weight = (rng.uniform(size=y.shape) > 0.2).astype(float)
    inner = outer.copy()
    for j, form in enumerate(kernel.FORMS):
        inner[:, j] = {"log": np.log, "inverse": np.reciprocal, "plain": np.positive}[form](
            outer[:, j]
        )

    def outer_of(q):
        columns = [
            {"log": np.exp, "inverse": np.reciprocal, "plain": np.positive}[f](q[:, j])
            for j, f in enumerate(kernel.FORMS)
        ]
        return np.stack(columns, axis=1)

    def predicted(q):
        return np.sqrt(MODEL.signal(outer_of(q), PROTOCOL) ** 2 + np.pi / 2 * floor**2)

    work = np.zeros(kernel.SIZE)
    lanes = work.reshape(-1, LANES)

    def field(name, size):
        return lanes[layout.offset[name] : layout.offset[name] + size]

    field("T", 7)[:] = inner.T
    field("NF2", 1)[:] = np.pi / 2 * floor**2
    field("HI", 7)[:] = 1e3
    size = -(-21 // UNROLL) * UNROLL
    padded = np.minimum(np.arange(size), 20)
    y, weight = y[:, padded], np.where(np.arange(size) < 21, weight[:, padded], 0.0)
    b, te = PROTOCOL.b_ms_per_um2[padded], PROTOCOL.te[padded]
    distinct_b, row_of_b = np.unique(b, return_inverse=True)
    distinct_te, row_of_te = np.unique(te, return_inverse=True)
    shared = np.zeros(2 * UNROLL + 2 + 14)
    shared[2 * UNROLL] = np.inf
    kernel.evaluate(
        work,
        shared,
        np.ascontiguousarray(y.T).ravel(),
        np.ascontiguousarray(weight.T).ravel(),
        np.zeros((7 * kernel.N_BY_B + 3 * kernel.N_BY_TE) * LANES),
        np.zeros(1 + 2 * UNROLL, np.int64),
        np.stack([b, te], axis=1),
        np.stack([row_of_b, row_of_te], axis=1),
        distinct_b,
        distinct_te,
        floor > 0,
        False,
    )
    y, weight = y[:, :21], weight[:, :21]
    jacobian = np.empty((LANES, 21, 7))
    for j in range(7):
        step = np.zeros((LANES, 7))
        step[:, j] = 1e-5 * np.abs(inner[:, j])
        jacobian[:, :, j] = (predicted(inner + step) - predicted(inner - step)) / (
            2 * step[:, j, None]
        )
    jacobian *= weight[:, :, None]
    residual = weight * (y - predicted(inner))
    np.testing.assert_allclose(field("CT", 1)[0], (residual**2).sum(axis=1), rtol=1e-12)
    np.testing.assert_allclose(
        field("GT", 7).T, np.einsum("nmj,nm->nj", jacobian, residual), rtol=1e-5, atol=1e-8
    )
    # With a floor the curvature of √(s² + nf²) counts where it holds the signal up:
    # s²/z² + max(0, −r)·nf²/z³.
    squared, z = np.pi / 2 * floor**2, predicted(inner)
    held = np.maximum(-residual, 0) * squared / z**3 / (1 - squared / z**2)
    products = np.einsum("nmi,nmj,nm->nij", jacobian, jacobian, 1 + held)
    for (i, j), row in zip(layout.pairs, field("MT", 28), strict=True):
        np.testing.assert_allclose(row, products[:, i, j], rtol=1e-5, atol=1e-8)


def test_two_amplitudes_of_magnitudes_are_the_non_negative_least_squares(ivim):
    rng = np.random.default_rng(0)
    signs = set()
    for _ in range(200):
        atoms, y = rng.uniform(0, 1, (2, 6)), rng.uniform(0, 1, 6)
        first, second = atoms
        shares = ivim.amplitudes.py_func(
            first @ y, second @ y, first @ first, first @ second, second @ second
        )
        expected, _ = nnls(atoms.T, y)
        np.testing.assert_allclose(shares, expected, atol=1e-12)
        signs.add(tuple(expected > 0))
    assert signs == {(False, True), (True, False), (True, True)}


def test_the_amplitudes_of_two_atoms_alike_are_those_of_one(ivim):
    assert ivim.amplitudes.py_func(6.0, 6.0, 3.0, 3.0, 3.0) == (0.0, 2.0)
    assert ivim.amplitudes.py_func(6.0, 0.0, 3.0, 0.0, 0.0) == (2.0, 0.0)
    assert ivim.amplitudes.py_func(0.0, 0.0, 0.0, 0.0, 0.0) == (0.0, 0.0)


def test_a_voxel_with_missing_measurements_gets_the_best_pair_of_atoms(ivim):
    rng = np.random.default_rng(1)
    n_first, n_second, lane = 2, 5, 3
    atoms = rng.uniform(0, 1, (n_first + n_second, 8))
    signal = rng.uniform(0, 1, 8)
    signal[[2, 6]] = np.nan
    measured = np.isfinite(signal)
    best = np.zeros((n_first, 2 * LANES))
    dots = np.zeros((len(atoms), LANES))
    dots[:, lane] = atoms[:, measured] @ signal[measured]
    gram = ivim.rate_incomplete.py_func(signal, lane, atoms, n_first, best, dots)
    np.testing.assert_allclose(gram[:n_first], atoms[:n_first][:, measured] @ atoms[:, measured].T)
    np.testing.assert_allclose(np.diag(gram), (atoms[:, measured] ** 2).sum(axis=1))
    for s in range(n_first):
        pairs = [atoms[[s, n_first + t]][:, measured].T for t in range(n_second)]
        gains = [
            signal[measured] @ signal[measured] - nnls(pair, signal[measured])[1] ** 2
            for pair in pairs
        ]
        assert best[s, lane] == pytest.approx(max(gains))
        assert best[s, LANES + lane] == np.argmax(gains)


def test_voxels_that_cannot_be_fitted_are_screened_out(ivim):
    signals = np.array(
        [
            [4.0, 2.0, 1.0, np.nan],  # 3 measurements for 3 free parameters
            [4.0, 2.0, np.nan, np.inf],  # too few
            [4.0, 2.0, -1.0, 1.0],  # negative
            [3.0, 3.0, 3.0, 3.0],  # constant
            [8.0, 0.0, 0.0, 0.0],
            [1e-301, 0.0, 0.0, 0.0],  # too small
            [1e291, 1.0, 1.0, 1.0],  # too large
        ]
    )
    scales, usable, n_measured = np.zeros(7), np.zeros(7, int), np.zeros(7, int)
    assert ivim.screen.py_func(signals, 3, True, scales, usable, n_measured) == 2
    assert usable[:2].tolist() == [0, 4]
    assert n_measured[:2].tolist() == [3, 4]
    assert scales[:2].tolist() == [0.25, 0.125]
    ivim.screen.py_func(signals, 3, False, scales, usable, n_measured)
    assert scales[:2].tolist() == [1, 1]


def test_the_limit_of_the_kurtosis_is_its_share_of_the_bound(kurtosis, ivim):
    layout = Layout(3)
    work = np.zeros(layout.size)
    lanes = work.reshape(-1, LANES)
    assert kurtosis.FORMS[1:] == ("plain", "plain")
    lanes[layout.offset["Q"] + 1, 5] = 2.0  # D
    lanes[layout.offset["HI"] + 2, 5] = 3.0  # of K
    # With b up to 1 ms/µm² the signal turns up at K·D = 3, which is K = 1.5 or half of its bound.
    assert kurtosis.limit.py_func(work, 5, 3.0) == pytest.approx(0.5)
    assert kurtosis.limit.py_func(work, 5, np.inf) == 1.0
    lanes[layout.offset["Q"] + 1, 5] = 0.5
    assert kurtosis.limit.py_func(work, 5, 3.0) == 1.0
    assert ivim.limit.py_func(work, 5, 3.0) == 1.0


def test_sums_at_the_limit_become_those_of_the_kurtosis_itself(kurtosis):
    """K is κ·c/D with κ the inner coordinate, so that ∂K/∂D = −K/D and ∂K/∂κ = c/D."""
    layout = Layout(3)
    work = np.zeros(layout.size)
    lanes = work.reshape(-1, LANES)
    rng = np.random.default_rng(2)
    d, inner, share = 1.3, 2.1, 0.4
    plain = rng.normal(size=(9, 3))  # derivatives by S0, D and K
    moved = np.stack(
        [plain[:, 0], plain[:, 1] - plain[:, 2] * inner * share / d, plain[:, 2] * share], axis=1
    )
    lanes[layout.offset["Q"] : layout.offset["Q"] + 3, 7] = (1.0, d, inner)
    for number, (i, j) in enumerate(layout.pairs):
        lanes[layout.offset["M"] + number, 7] = moved[:, i] @ moved[:, j]
    kurtosis.leave_limit.py_func(work, 7, share)
    sums = lanes[layout.offset["M"] : layout.offset["M"] + 6, 7]
    np.testing.assert_allclose(
        sums, [plain[:, i] @ plain[:, j] for i, j in layout.pairs], rtol=1e-10
    )
