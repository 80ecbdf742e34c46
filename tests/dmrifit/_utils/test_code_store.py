"""The cache of kernels: damaged files are rebuilt."""

import os
import resource

import pytest

from dmrifit import MODELS, Parameter, Protocol, SignalModel, fit_voxels
from dmrifit.engine.kernels import compiler

ADC = MODELS["adc"]
# A kernel that compiles in a tenth of a second.
SMALL = """
from numba import njit

@njit(nogil=True, cache=True)
def double(x):
    return 2.0 * x

@njit(nogil=True, cache=True)
def advance(x):
    return double(x) + 1.0
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Load the small kernel as a new process would; return its value and what was compiled."""
    monkeypatch.setenv("DMRIFIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(compiler, "_source", lambda _: SMALL)

    def load():
        monkeypatch.setattr(compiler, "_loaded", {})
        monkeypatch.setattr(compiler, "_stores", {})
        kernel = compiler.load(ADC)
        is_compiled = compiler.is_compiled(kernel)
        assert kernel.advance(3.0) == 7.0
        assert compiler.is_compiled(kernel)
        n_compiled = sum(kernel.advance.stats.cache_misses.values())
        return is_compiled, n_compiled

    return load


def files(tmp_path):
    return sorted(path for path in (tmp_path / "cache").rglob("*") if path.suffix in (".py", ".nbc"))


def zero(path):
    path.write_bytes(bytes(len(path.read_bytes())))


def cut(path):
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2])


def empty(path):
    path.write_bytes(b"")


def change(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def replace_by_folder(path):
    path.unlink()
    path.mkdir()


def remove(path):
    path.unlink()


def replace_by_loop(path):
    path.unlink()
    path.symlink_to(path)


@pytest.mark.parametrize(
    "damage", [zero, cut, empty, change, replace_by_folder, replace_by_loop, remove], ids=lambda f: f.__name__
)
def test_each_damaged_file_is_rebuilt_once(damage, start, tmp_path, caplog):
    assert start() == (False, 1)
    assert start() == (True, 0)
    paths = files(tmp_path)
    assert len(paths) == 3  # the module, and the code of two functions
    for path in paths:
        caplog.clear()
        damage(path)
        start()
        lines = [record.getMessage() for record in caplog.records]
        # Nothing reads the code of `double` where `advance` has it inside.
        if damage is remove or ".double-" in path.name:
            assert not lines
        else:
            (line,) = lines
            assert path.name in line
            assert f"in the cache {tmp_path / 'cache'} is damaged: it is made anew for the fit of model adc" in line
        caplog.clear()
        assert start() == (True, 0), path.name
        assert not caplog.records
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_a_folder_with_files_in_the_place_of_one_is_named(start, tmp_path, caplog):
    start()
    for path in files(tmp_path):
        path.unlink()
        path.mkdir()
        (path / "note").touch()
    start()
    assert "cannot be kept in the cache" in caplog.text
    assert str(tmp_path / "cache") in caplog.text


def test_a_full_disk_leaves_the_fit_in_memory(start, tmp_path, caplog, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert start() == (False, 1)
        assert not files(tmp_path)
    (record,) = caplog.records
    expected = f"cannot be kept in the cache {tmp_path / 'cache'} (No space left on device)"
    assert expected in record.getMessage()
    assert "set DMRIFIT_CACHE to a folder that can be written to" in record.getMessage()
    caplog.clear()
    assert start() == (False, 1)
    assert not caplog.records
    # Now the machine code alone does not fit.
    for path in files(tmp_path):
        if path.suffix != ".py":
            path.unlink()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limit[1]))
    try:
        assert start() == (False, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert "cannot be kept in the cache" in caplog.text
    assert not list((tmp_path / "cache").rglob("*.tmp"))


@pytest.mark.parametrize("obstacle", ["file", "folder of all"])
def test_a_cache_that_cannot_be_used_is_named(obstacle, start, tmp_path, caplog):
    compiler._say_no_folder.cache_clear()
    cache = tmp_path / "cache"
    if obstacle == "file":
        cache.touch()
    else:
        cache.mkdir()
        cache.chmod(0o777)
    assert start() == (False, 1)
    assert start() == (False, 1)
    (record,) = caplog.records
    assert f"the cache folder {cache} cannot be used" in record.getMessage()
    compiler._say_no_folder.cache_clear()


PARAMETERS = [Parameter("S0", "signal", 0, 1e9), Parameter("D", "µm²/ms", 0.1, 5)]
UNFIT = {
    "def user_function(b, S0, D):\n    return S0 * open('x')": "the statement \"return S0 * open('x')\" cannot",
    "def user_function(b, S0, D):\n    return [S0, D]": "returns",
    "def user_function(b, S0, D):\n    if b > 9:\n        return S0": "returns",
}


@pytest.mark.parametrize("text", UNFIT)
def test_functions_that_cannot_be_compiled_are_told_by_their_statement(text):
    model = SignalModel("unfit", tuple(PARAMETERS), "", source=text)
    with pytest.raises(ValueError, match=r"^model unfit: ") as caught:
        fit_voxels([[2.0, 1.0, 1.0]], Protocol([0, 500, 900]), model)
    assert UNFIT[text] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "numba" not in str(caught.value).lower()
