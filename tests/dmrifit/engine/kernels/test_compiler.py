"""Generated kernels: a cache that is never stale, and the same bits on every processor."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import llvmlite.binding
import pytest

import dmrifit
from dmrifit.engine.kernels import compiler

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


@pytest.mark.slow
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
    (module,) = cache.glob("dmrifit_shared_*.py")
    (code,) = cache.rglob("*.search-*.nbc")
    module.write_bytes(module.read_bytes()[:20000])
    code.write_bytes(code.read_bytes().replace(b"search", b"sparch"))
    healed, said = run(tmp_path, cache)
    assert healed == first
    assert said.count("\n") == 1
    assert f"{module.name} in the cache {cache} is damaged" in said
    assert run(tmp_path, cache) == (first, "")
    kernel = tmp_path / "dmrifit" / "engine" / "kernels" / "shared.py"
    text = kernel.read_text(encoding="utf-8")
    edited = text.replace("parameters[i, j] = value * unit\n", "parameters[i, j] = 2.0 * value * unit\n")
    assert edited != text
    kernel.write_text(edited, encoding="utf-8")
    changed, said = run(tmp_path, cache)
    assert changed == pytest.approx(2.0)
    assert "compiling" in said


def test_settings_of_numba_that_stop_it_are_named_before_a_fit(monkeypatch):
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    with pytest.raises(ValueError, match="NUMBA_DISABLE_JIT is set; unset it"):
        compiler.load(None)


def test_workers_with_a_number_of_threads_find_what_is_compiled(monkeypatch):
    names = [compiler._module_name.__wrapped__(None)]
    for name, value in (("NUMBA_NUM_THREADS", "1"), ("NUMBA_OPT", "1")):
        monkeypatch.setenv(name, value)
        names.append(compiler._module_name.__wrapped__(None))
    assert names[0] == names[1] != names[2]


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="file owners are POSIX")
def test_a_cache_folder_of_someone_else_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("DMRIFIT_CACHE", str(tmp_path))
    assert compiler._cache_folder() == tmp_path
    monkeypatch.setattr(os, "getuid", lambda: 123456)
    with pytest.raises(OSError, match="must be a folder of yours"):
        compiler._cache_folder()


@pytest.mark.slow
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
