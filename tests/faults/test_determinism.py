"""The same input gives the same bits, whatever the threads, chunks, jobs, hash seeds and vector instructions."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import llvmlite.binding
import numpy as np
import pytest

import dmrifit
from dmrifit import MODELS, Protocol, fit_voxels

FIELDS = ("parameters", "standard_errors", "cost", "status", "n_iter", "at_low", "at_high")
DOUBTS = ("starts_disagree", "doubt")
PROTOCOL = Protocol.preset("cohort1")

#: What NumPy calls the instructions that it has versions of its functions for, from the widest on.
WIDE = "X86_V4 AVX512_ICL AVX512_SPR AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL"
NARROW = f"X86_V3 AVX2 FMA3 {WIDE}"
HASWELL = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+bmi,+bmi2,+sse4.2,+popcnt"}
#: x86-64 without any vector instructions but SSE2, and without fused products.
PLAIN = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
ALL = os.environ.get("DMRIFIT_FAULTS") == "all"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def child(code, folder, *words, **environment):
    """Run code in another process, and give the lines that it says."""
    words = [sys.executable, "-W", "ignore", "-c", code, str(folder), *words]
    environment = os.environ | ONE_THREAD | environment
    root = Path(dmrifit.__file__).parents[1]
    done = subprocess.run(words, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def noisy(model, n, seed):
    ranges = {
        "S0": (50, 90), "f": (0.05, 0.3), "Dv": (8, 50), "T2v": (160, 240), "Dt": (0.5, 1.6), "K": (0.3, 1.1),
        "T2t": (40, 110), "T2": (40, 110), "D": (0.5, 1.6), "ADC": (0.5, 2), "dR2": (-0.015, -0.004),
    }  # fmt: skip
    rng = np.random.default_rng(seed)
    truth = np.column_stack([rng.uniform(*ranges[name], n) for name in model.names])
    signals = model.signal(truth, protocol_of(model))
    return np.abs(signals + rng.normal(scale=1.5, size=signals.shape))


def protocol_of(model):
    return PROTOCOL if model.needs_te else PROTOCOL.take(np.flatnonzero(PROTOCOL.te == PROTOCOL.te.min()))


def bits(result):
    return b"".join(getattr(result, name).tobytes() for name in (*FIELDS, *DOUBTS))


def test_a_fit_does_not_depend_on_threads_chunks_and_neighbors(monkeypatch):
    model = MODELS["kurtosis"]
    signals, protocol = noisy(model, 2500, 1), protocol_of(MODELS["kurtosis"])
    expected = bits(fit_voxels(signals, protocol, model, sigma=1.5, n_threads=1))
    for chunk in (64, 1000):
        monkeypatch.setattr("dmrifit.engine.fitting._CHUNK", chunk)
        for threads in (1, 2, 5):
            found = fit_voxels(signals, protocol, model, sigma=1.5, n_threads=threads)
            assert bits(found) == expected, (chunk, threads)
    alone = [fit_voxels(signals[i : i + 1], protocol, model, sigma=1.5).parameters for i in range(40)]
    assert np.concatenate(alone).tobytes() == fit_voxels(signals, protocol, model, sigma=1.5).parameters[:40].tobytes()


HASHED = """
import hashlib, sys, numpy as np
from dmrifit import Protocol, fit_image, compare, simulate_cohort, SignalToSignal, MapsToMaps
from dmrifit.io.masks import binarize
import nibabel as nib
digest = lambda *parts: hashlib.sha256(b"".join(
    p if isinstance(p, bytes) else np.ascontiguousarray(p).tobytes() for p in parts)).hexdigest()
cohort = simulate_cohort("cohort1", 4, shape=(16, 16, 3), random_state=6)
print("cohort", digest(*(np.asarray(getattr(s, k)) for s in cohort for k in ("signal", "mask", "lesion"))))
rows = cohort.arrays(mask="body", max_voxels=30, random_state=3)
print("drawn", digest(rows.X, rows.Y, *(str(g).encode() for g in rows.groups)))
scan = next(iter(cohort))
image = nib.Nifti1Image(np.asarray(scan.signal, np.float32), scan.affine)
maps = fit_image(image, scan.protocol, "t2-ivim-kurtosis", n_threads=int(sys.argv[2]))
print("maps", digest(*(np.asarray(m.dataobj) for m in maps.values())))
estimators = {"LR s2s": SignalToSignal("LR"), "LR m2m": MapsToMaps("LR"), "GBR s2s": SignalToSignal("GBR")}
found = compare(estimators, cohort, n_train=(1, 2), n_repeats=2, max_voxels=30, n_jobs=int(sys.argv[3]), random_state=0)
print("table", digest(found.scores.drop(columns="seconds").to_csv().encode(), found.signals.to_csv().encode()))
"""


@pytest.mark.slow
def test_cohorts_draws_maps_and_tables_do_not_depend_on_hash_seeds_threads_and_jobs(tmp_path):
    pytest.importorskip("xgboost")
    alone = child(HASHED, tmp_path, "1", "1", PYTHONHASHSEED="0")
    assert len(alone) == 4
    assert child(HASHED, tmp_path, "3", "2", PYTHONHASHSEED="12345") == alone


ENGINE = """
import hashlib, sys, numpy as np
from dmrifit import MODELS, Protocol, average_directions, fit_voxels
stored = np.load(sys.argv[1] + "/signals.npz")
protocol = Protocol.preset("cohort1")
single = protocol.take(np.flatnonzero(protocol.te == protocol.te.min()))
def show(name, *arrays):
    print(name, hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest())
def fit(name, model, signals, **options):
    measured = protocol if model.needs_te else single
    if model == MODELS["t2"]:
        first = np.flatnonzero(protocol.b == protocol.b.min())
        measured, signals = protocol.take(first), signals[:, first]
    result = fit_voxels(signals, measured, model, n_threads=1, **options)
    fields = ("parameters", "standard_errors", "cost", "status", "at_low", "at_high")
    show(name, *(getattr(result, field) for field in (*fields, "starts_disagree", "doubt")))
    show(name + "-iterations", result.n_iter)
for name in sys.argv[2:]:
    model, signals = MODELS[name], stored[name]
    fit(name, model, signals)
    fit(name + "-noise", model, signals, sigma=1.5)
    if name == "kurtosis":
        fit("monotonic", model, signals, bounds={"K": (0, "monotonic")}, regularization=1e-3)
        fit("fixed", model, signals, fixed={"K": np.linspace(0.2, 1, len(signals))})
        fit("more-starts", model, signals, n_starts=9)
        missing = signals.copy()
        missing[::3, 2] = np.nan
        fit("missing", model, missing)
    if name == "ivim":
        fit("segmented", model, signals, method="segmented")
        fit("fixed-Dv", model, signals, fixed={"Dv": np.linspace(8, 40, len(signals))})
many = Protocol(np.repeat(single.b, 12), np.full(12 * len(single), 80.0))
averaged, contrasts = average_directions(np.repeat(stored["kurtosis"], 12, axis=1) * stored["factors"], many)
show("directions", averaged, contrasts.b)
"""


OWN = """
import hashlib, sys, numpy as np
from dmrifit import Parameter, Protocol, SignalModel, fit_voxels
sys.path.insert(0, sys.argv[1])
from own import counted
parameters = [Parameter("S0", "signal", 0, np.inf), Parameter("D", "µm²/ms", 0, 5), Parameter("a", "", 0.1, 1)]
stored, protocol = np.load(sys.argv[1] + "/signals.npz")["kurtosis"], Protocol.preset("cohort1")
protocol = protocol.take(np.flatnonzero(protocol.te == protocol.te.min()))
for model in (
    SignalModel.from_expression("S0*exp(-(b*D)**a)", parameters, name="stretched"),
    SignalModel.from_function(counted, parameters, name="counted"),
):
    found = fit_voxels(stored, protocol, model, n_threads=1)
    print(model.name, hashlib.sha256(found.parameters.tobytes() + found.cost.tobytes()).hexdigest())
"""

COUNTED = """
import math

def counted(b, S0, D, a):
    total = 0.0
    for i in range(3):
        total += math.exp(-((b * D) ** a) * (1 + 0.1 * i))
    return S0 * total / 3
"""


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Signals in a file: those that a process computes for itself may differ in the last bit."""
    folder = tmp_path_factory.mktemp("engine")
    arrays = {name: noisy(model, 400, 842) for name, model in MODELS.items()}
    factors = np.random.default_rng(2).uniform(0.9, 1.1, (400, 12 * arrays["kurtosis"].shape[1]))
    np.savez(folder / "signals.npz", **arrays, factors=factors)
    (folder / "own.py").write_text(COUNTED)
    return folder


def without_vectors(names):
    return {"NPY_DISABLE_CPU_FEATURES": " ".join(known_to_numpy(names))}


def known_to_numpy(names):
    """Those that this NumPy was built with and this processor has: it warns of others."""
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    return [name for name in names.split() if name in __cpu_dispatch__ and __cpu_features__.get(name)]


def test_starts_have_the_same_bits_whatever_instructions_numpy_uses(stored):
    if not known_to_numpy(NARROW):
        pytest.skip("this NumPy has no versions of its functions for wider vectors, or the processor has none")
    expected = child(ENGINE, stored, "kurtosis")
    assert len(expected) == 13
    assert child(ENGINE, stored, "kurtosis", **without_vectors(NARROW)) == expected


@pytest.mark.slow
def test_all_models_have_the_same_bits_with_avx2_and_avx512(stored):
    features = llvmlite.binding.get_host_cpu_features()
    if not (features.get("avx2") and features.get("fma")):
        pytest.skip("needs a processor with AVX2 and FMA")
    expected = child(ENGINE, stored, *MODELS)
    for disabled in (WIDE, NARROW):
        assert child(ENGINE, stored, *MODELS, **without_vectors(disabled)) == expected
    # numba and NumPy at once, as on a processor that has AVX2 only.
    narrow = child(ENGINE, stored, "kurtosis", **without_vectors(WIDE), **HASWELL)
    assert set(narrow) <= set(expected)


def results_of(lines):
    return [line for line in lines if "-iterations " not in line]


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS if ALL else ["kurtosis"])
def test_fits_have_the_same_bits_on_a_processor_without_vectors(stored, model):
    if llvmlite.binding.get_default_triple().split("-")[0] != "x86_64":
        pytest.skip("the plain target of this processor is another one")
    expected = child(ENGINE, stored, model)
    plain = child(ENGINE, stored, model, **without_vectors(NARROW), **PLAIN)
    # One voxel of 400 of t2-ivim-relative with noise takes another number of steps to the same bits.
    assert results_of(plain) == results_of(expected)


@pytest.mark.slow
def test_own_formulas_have_the_same_bits_with_avx2_and_avx512(stored):
    expected = child(OWN, stored)
    assert len(expected) == 2
    assert child(OWN, stored, **without_vectors(NARROW)) == expected


LINEAR = """
import sys, numpy as np
from threadpoolctl import threadpool_info
from dmrifit import MapsToMaps, Protocol, SignalToSignal
from anomaly import PCADetector, VoxelwiseGaussian
stored = np.load(sys.argv[1] + "/signals.npz")
target = Protocol.preset("cohort1")
source = target.take(target.clinical(5))
signals = stored["t2-ivim-kurtosis"]
seen = signals[:, target.clinical(5)]
found = {}
for strategy in (SignalToSignal, MapsToMaps):
    estimator = strategy("LR", source=source, target=target).fit(seen[:300], signals[:300])
    found[strategy.__name__] = estimator.predict(seen[300:])
scans = np.random.default_rng(1).normal(1, 0.2, (9, 6, 7, 5, 8))
masks = np.ones(scans.shape[:4], bool)
for detector in (VoxelwiseGaussian(), PCADetector(n_components=3)):
    found[type(detector).__name__] = detector.fit(scans, masks).anomaly_map(scans, masks)
np.savez(sys.argv[1] + "/" + sys.argv[2], **found)
print(*sorted({one.get("architecture", "") for one in threadpool_info() if one["internal_api"] == "openblas"}))
"""

NETWORKS = """
import sys, numpy as np, torch
from dmrifit import Protocol, SignalToSignal, Training
from metastasis import DeepMedicSegmenter
stored = np.load(sys.argv[1] + "/signals.npz")
target = Protocol.preset("cohort1")
source = target.take(target.clinical(5))
signals = stored["t2-ivim-kurtosis"]
seen = signals[:, target.clinical(5)]
estimator = SignalToSignal("mlNN", source=source, target=target, random_state=0).fit(seen[:300], signals[:300])
found = {"mlNN": estimator.predict(seen[300:])}
rng = np.random.default_rng(3)
heads = [rng.normal(size=(36, 36, 36)).astype(np.float32) for _ in range(2)]
labels = [np.zeros((36, 36, 36), np.uint8) for _ in heads]
for head, label in zip(heads, labels):
    head[15:20, 15:20, 15:20] += 3
    label[15:20, 15:20, 15:20] = 1
segmenter = DeepMedicSegmenter(widths=(2, 2), segments_per_epoch=4, prior=None, device="cpu", random_state=0,
    training=Training(epochs=2, batch_size=2))
segmenter.fit(heads, labels=labels, groups=["a", "b"])
found["segmenter"] = segmenter.predict_proba(heads[:1])[0]
np.savez(sys.argv[1] + "/" + sys.argv[2], **found)
print(torch.backends.cpu.get_cpu_capability())
"""


# A library that is told to use instructions that the processor lacks ends the process.
HAS_AVX512 = bool(llvmlite.binding.get_host_cpu_features().get("avx512f"))


def spread(folder, names):
    """Largest differences between what processes computed, as a share of the largest value, by what it is."""
    first, *others = (dict(np.load(folder / f"{name}.npz")) for name in names)
    return {
        key: max(float(np.abs(other[key] - value).max() / np.abs(value).max()) for other in others)
        for key, value in first.items()
    }


def agreement(code, folder, environments):
    """Compute under several environments, and give the largest differences; skip where they are one and the same."""
    used = {name: child(code, folder, name, **environment) for name, environment in environments.items()}
    if len({tuple(lines) for lines in used.values()}) < 2:
        pytest.skip("there is one set of instructions only")
    return spread(folder, used)


@pytest.mark.slow
def test_linear_algebra_agrees_to_a_millionth_with_all_vector_instructions(stored):
    cores = ["Haswell", *(["SkylakeX"] if HAS_AVX512 else []), "Nehalem"]
    found = agreement(LINEAR, stored, {name: {"OPENBLAS_CORETYPE": name} for name in cores})
    assert len(found) == 4
    assert max(found.values()) < 1e-6, found


@pytest.mark.slow
@pytest.mark.deep
def test_networks_agree_to_a_millionth_with_all_vector_instructions(stored):
    pytest.importorskip("torch")
    pytest.importorskip("skorch")
    asked = {"avx2": "AVX2", "default": "SSE41"} | ({"avx512": "AVX512_CORE"} if HAS_AVX512 else {})
    sets = {name: {"ATEN_CPU_CAPABILITY": name, "ONEDNN_MAX_CPU_ISA": isa} for name, isa in asked.items()}
    found = agreement(NETWORKS, stored, sets)
    assert len(found) == 2
    assert max(found.values()) < 1e-6, found


def test_a_bit_of_any_field_and_a_difference_of_a_hundred_thousandth_are_seen(tmp_path):
    model = MODELS["adc"]
    result = fit_voxels(noisy(model, 3, 3), protocol_of(model), model)
    for name in (*FIELDS, *DOUBTS):
        other = SimpleNamespace(**{field: getattr(result, field).copy() for field in (*FIELDS, *DOUBTS)})
        getattr(other, name).reshape(-1).view(np.uint8)[0] ^= 1
        assert bits(other) != bits(result), name
    values = np.linspace(1, 2, 9)
    for name, factor in (("first", 1), ("second", 1 + 1e-5)):
        np.savez(tmp_path / f"{name}.npz", values=values * factor)
    assert spread(tmp_path, ["first", "second"])["values"] > 1e-6


PLANTED = """
import hashlib, sys, numba, numpy as np
@numba.njit(fastmath=True)
def total(values):
    found = 0.0
    for i in range(len(values)):
        found += values[i] * values[i]
    return found
values = np.load(sys.argv[1] + "/signals.npz")["kurtosis"].ravel()
print("set", hash("patient"))
print("numpy", hashlib.sha256(np.exp(-values.astype(np.float32) / 100).tobytes() + np.log(values).tobytes()).hexdigest())
# One sum may have the same bits by chance.
sums = np.array([total(values[i:]) for i in range(100)])
print("numba", hashlib.sha256(sums.tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_a_step_that_depends_on_hash_seeds_or_instructions_is_seen(stored):
    if not known_to_numpy(NARROW):
        pytest.skip("this NumPy has no versions of its functions for wider vectors, or the processor has none")
    first = child(PLANTED, stored, PYTHONHASHSEED="0")
    assert child(PLANTED, stored, PYTHONHASHSEED="0") == first
    other = child(PLANTED, stored, PYTHONHASHSEED="1", **without_vectors(NARROW), **PLAIN)
    assert len(first) == len(other) == 3
    assert not set(first) & set(other)
