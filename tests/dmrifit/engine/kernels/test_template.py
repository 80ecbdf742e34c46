"""The part of a kernel that depends on the model, against finite differences."""

import ctypes

import numpy as np
import pytest

from dmrifit import MODELS, Protocol
from dmrifit.engine.kernels import compiler
from dmrifit.engine.kernels.layout import LANES, UNROLL, Layout

MODEL = MODELS["t2-ivim-kurtosis"]
PROTOCOL = Protocol.preset("cohort1")


@pytest.mark.parametrize("floor", [0.0, 0.05])
def test_sums_of_derivatives_are_those_of_finite_differences(floor):
    kernel, layout = compiler.load(MODEL), Layout(7)
    rng = np.random.default_rng(840)
    low, high = np.array([0.9, 0.05, 6, 160, 0.4, 0.2, 40]), np.array([3, 0.6, 60, 240, 2.0, 1.5, 120])
    outer = low + (high - low) * rng.uniform(size=(LANES, 7))
    y = rng.uniform(0.1, 1, (LANES, 21))
    weight = (rng.uniform(size=y.shape) > 0.2).astype(float)
    inner = outer.copy()
    for j, form in enumerate(kernel.FORMS):
        inner[:, j] = {"log": np.log, "inverse": np.reciprocal, "plain": np.positive}[form](outer[:, j])

    def outer_of(q):
        columns = [
            {"log": np.exp, "inverse": np.reciprocal, "plain": np.positive}[f](q[:, j])
            for j, f in enumerate(kernel.FORMS)
        ]
        return np.stack(columns, axis=1)

    def predicted(q):
        return np.sqrt(MODEL.signal(outer_of(q), PROTOCOL) ** 2 + np.pi / 2 * floor**2)

    work = np.zeros(layout.n_rows * LANES)
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
    arrays = (
        work,
        shared,
        np.ascontiguousarray(y.T).ravel(),
        np.ascontiguousarray(weight.T).ravel(),
        np.zeros((7 * kernel.N_BY_B + 3 * kernel.N_BY_TE) * LANES),
        np.zeros(1 + 2 * UNROLL, np.int64),
        np.stack([b, te], axis=1).ravel(),
        np.stack([row_of_b, row_of_te], axis=1).ravel(),
        distinct_b,
        distinct_te,
    )
    numbers = size, len(distinct_b), len(distinct_te), int(floor > 0), 0
    code = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * len(arrays), *[ctypes.c_int64] * 5)
    code(kernel.address_of(kernel.evaluate, kernel.ADVANCE))(*(array.ctypes.data for array in arrays), *numbers)
    y, weight = y[:, :21], weight[:, :21]
    jacobian = np.empty((LANES, 21, 7))
    for j in range(7):
        step = np.zeros((LANES, 7))
        step[:, j] = 1e-5 * np.abs(inner[:, j])
        jacobian[:, :, j] = (predicted(inner + step) - predicted(inner - step)) / (2 * step[:, j, None])
    jacobian *= weight[:, :, None]
    residual = weight * (y - predicted(inner))
    np.testing.assert_allclose(field("CT", 1)[0], (residual**2).sum(axis=1), rtol=1e-12)
    np.testing.assert_allclose(field("GT", 7).T, np.einsum("nmj,nm->nj", jacobian, residual), rtol=1e-5, atol=1e-8)
    # With a floor the curvature of √(s² + nf²) counts where it holds the signal up:
    # s²/z² + max(0, −r)·nf²/z³.
    squared, z = np.pi / 2 * floor**2, predicted(inner)
    held = np.maximum(-residual, 0) * squared / z**3 / (1 - squared / z**2)
    products = np.einsum("nmi,nmj,nm->nij", jacobian, jacobian, 1 + held)
    for (i, j), row in zip(layout.pairs, field("MT", 28), strict=True):
        np.testing.assert_allclose(row, products[:, i, j], rtol=1e-5, atol=1e-8)
