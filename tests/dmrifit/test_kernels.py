"""Generated kernels: arithmetic against plain numpy, and a cache that is never stale."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import llvmlite.binding
import numba
import numpy as np
import pytest

import dmrifit
from dmrifit import MODELS, Parameter, Protocol, SignalModel
from dmrifit._kernels import compiler
from dmrifit._kernels.lanes import block, dot
from dmrifit._kernels.layout import LANES, UNROLL, Layout

MODEL = MODELS["t2-ivim-kurtosis"]
PROTOCOL = Protocol.preset("cohort1")


def test_the_functions_of_lanes_are_exact_to_rounding():
    run = block(["w[0 + l] = exp(y[0 + l])", "w[16 + l] = log(sqrt(v[0 + l]) * s[0]) if y[0 + l] > 0.0 else -1.0"], 16)

    @numba.njit
    def apply(w, s, y, v):
        offsets = np.zeros(1, np.int64)
        for base in range(0, len(y), 16):
            offsets[0] = base
            run(w[2 * base :], s, y, v, y, offsets)

    x = np.concatenate([np.linspace(-690, 690, 1600), np.linspace(-1, 1, 1600), np.zeros(16)])
    positive = np.linspace(0.1, 50, len(x))
    work = np.zeros(2 * len(x))
    apply(work, np.array([3.0]), x, positive)
    work = work.reshape(-1, 2, 16)
    np.testing.assert_allclose(work[:, 0].ravel(), np.exp(x), rtol=2e-15)
    assert (work[:, 0].ravel()[x == 0] == 1.0).all()
    np.testing.assert_allclose(
        work[:, 1].ravel(), np.where(x > 0, np.log(3 * np.sqrt(positive)), -1), rtol=1e-13, atol=1e-13
    )
    apply(work.ravel(), np.array([3.0]), np.array([1e9, -1e9] * 8), positive)
    assert np.isfinite(work[0, 0]).all()
    assert (work[0, 0, 1::2] < 1e-300).all()


@pytest.mark.parametrize("line", ["w[0 + l] = abs(y[0 + l])", "print(1)", "w[l] = 1.0", "q = y[0 + l] ** 2.0"])
def test_what_is_not_lane_arithmetic_is_refused(line):
    run = block([line], 16)

    @numba.njit
    def apply(w):
        run(w, w, w, w, w, np.zeros(1, np.int64))

    with pytest.raises(ValueError, match=r"not lane arithmetic|not an assignment|no such"):
        apply(np.zeros(16))


def test_a_dot_product_is_taken_for_all_lanes():
    run = dot(16)

    @numba.njit
    def apply(out, atom, y):
        run(out, atom, y)

    rng = np.random.default_rng(841)
    atom, y, out = rng.normal(size=9), rng.normal(size=(9, 16)), np.empty(16)
    apply(out, atom, y.ravel())
    np.testing.assert_allclose(out, atom @ y, rtol=1e-13)


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
        jacobian[:, :, j] = (predicted(inner + step) - predicted(inner - step)) / (2 * step[:, j, None])
    jacobian *= weight[:, :, None]
    residual = weight * (y - predicted(inner))
    np.testing.assert_allclose(field("CT", 1)[0], (residual**2).sum(axis=1), rtol=1e-12)
    np.testing.assert_allclose(field("GT", 7).T, np.einsum("nmj,nm->nj", jacobian, residual), rtol=1e-5, atol=1e-8)
    # With a floor the curvature of √(s² + nf²) counts where it holds the signal up: s²/z² + max(0, −r)·nf²/z³.
    squared, z = np.pi / 2 * floor**2, predicted(inner)
    held = np.maximum(-residual, 0) * squared / z**3 / (1 - squared / z**2)
    products = np.einsum("nmi,nmj,nm->nij", jacobian, jacobian, 1 + held)
    for (i, j), row in zip(layout.pairs, field("MT", 28), strict=True):
        np.testing.assert_allclose(row, products[:, i, j], rtol=1e-5, atol=1e-8)


def test_the_form_of_a_formula_is_recognized():
    two_parts, one_part = compiler.load(MODELS["ivim"]), compiler.load(MODELS["adc"])
    assert (two_parts.MIXTURE, two_parts.AMPLITUDE, two_parts.FIRST) == (1, 0, (2,))
    assert (one_part.MIXTURE, one_part.AMPLITUDE) == (-1, 0)
    assert compiler.load(MODEL).FIRST == (2, 3)
    assert compiler.load(MODEL).FORMS == ("plain", "plain", "log", "inverse", "plain", "plain", "inverse")


def test_powers_roots_and_logarithms_fit_without_an_amplitude():
    model = SignalModel.from_expression(
        "(1 + b*D)**(-n)*sqrt(te)/sqrt(te) + (log(1 + te) - log(te + 1))*D**3 + (b*D)**n*0",
        [Parameter("D", "µm²/ms", 0.1, 5), Parameter("n", "", 0.5, 4)],
        name="power law",
    )
    kernel = compiler.load(model)
    assert (kernel.AMPLITUDE, kernel.MIXTURE) == (-1, -1)
    protocol = Protocol([0, 200, 500, 800, 1200], te=80)
    truth = np.array([[1.2, 1.5], [0.8, 2.5]])
    result = dmrifit.fit_voxels(model.signal(truth, protocol), protocol, model)
    np.testing.assert_allclose(result.parameters, truth, rtol=1e-6)


SCRIPT = """
import numpy as np
from dmrifit import MODELS, Protocol, fit_voxels
protocol = Protocol([0, 300, 900])
result = fit_voxels(MODELS["adc"].signal([[100.0, 1.0]], protocol), protocol, "adc")
print(repr(float(result["ADC"][0])))
"""


def run(folder, cache):
    environment = os.environ | {"PYTHONPATH": str(folder), "DMRIFIT_CACHE": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, cwd=folder, capture_output=True, text=True, check=True
    )
    return float(done.stdout), done.stderr


def test_an_edited_kernel_is_compiled_anew_and_an_unchanged_one_is_not(tmp_path):
    source = Path(dmrifit.__file__).parent
    shutil.copytree(source, tmp_path / "dmrifit", ignore=shutil.ignore_patterns("__pycache__"))
    cache = tmp_path / "cache"
    first, said = run(tmp_path, cache)
    assert first == pytest.approx(1.0)
    assert "compiling" in said
    again, said = run(tmp_path, cache)
    assert again == first
    assert "compiling" not in said
    kernel = tmp_path / "dmrifit" / "_kernels" / "template.py"
    text = kernel.read_text(encoding="utf-8")
    edited = text.replace("parameters[i, j] = value * unit\n", "parameters[i, j] = 2.0 * value * unit\n")
    assert edited != text
    kernel.write_text(edited, encoding="utf-8")
    changed, said = run(tmp_path, cache)
    assert changed == pytest.approx(2.0)
    assert "compiling" in said


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="file owners are POSIX")
def test_a_cache_folder_of_someone_else_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("DMRIFIT_CACHE", str(tmp_path))
    assert compiler._cache_folder() == tmp_path
    monkeypatch.setattr(os, "getuid", lambda: 123456)
    assert compiler._cache_folder() != tmp_path


def test_the_bits_do_not_depend_on_the_width_of_vectors(tmp_path):
    features = llvmlite.binding.get_host_cpu_features()
    if not (features.get("avx2") and features.get("fma")):
        pytest.skip("needs a processor with AVX2 and FMA")
    script = """
import hashlib
import numpy as np
from dmrifit import MODELS, Protocol, fit_voxels
protocol, model = Protocol.preset("cohort1"), MODELS["t2-ivim-kurtosis"]
rng = np.random.default_rng(842)
truth = np.column_stack([rng.uniform(a, b, 500) for a, b in
    ((50, 90), (0.05, 0.3), (8, 50), (160, 240), (0.5, 1.6), (0.3, 1.1), (40, 110))])
signals = np.abs(model.signal(truth, protocol) + rng.normal(scale=0.5, size=(500, 21)))
result = fit_voxels(signals, protocol, model, sigma=0.5)
fields = (result.parameters, result.standard_errors, result.cost)
print(hashlib.sha256(b"".join(field.tobytes() for field in fields)).hexdigest())
"""
    digests = set()
    narrow = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+bmi,+bmi2,+sse4.2,+popcnt"}
    for target in ({}, narrow):
        environment = os.environ | {"DMRIFIT_CACHE": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path)} | target
        folder = Path(dmrifit.__file__).parents[1]
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, cwd=folder, capture_output=True, text=True, check=True
        )
        digests.add(done.stdout.strip())
    assert len(digests) == 1
