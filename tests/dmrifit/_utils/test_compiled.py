"""Functions compiled by numba outside of fits: settings checked, files kept."""

import importlib.util
import logging
import os

import pytest

from dmrifit._utils import compiled
from dmrifit._utils.compiled import check_environment, njit

SOURCE = """
from dmrifit._utils.compiled import njit

@njit(cache=True, nogil=True)
def double(x):
    return 2 * x
"""


def import_doubling(path):
    spec = importlib.util.spec_from_file_location("doubling", path)
    doubling = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(doubling)
    return doubling


@pytest.fixture
def module(tmp_path, caplog):
    """Give a function that loads a module with a compiled function as another process would."""
    path = tmp_path / "doubling.py"
    path.write_text(SOURCE)
    caplog.set_level(logging.WARNING, "dmrifit")

    def load():
        compiled._say_not_kept.cache_clear()
        compiled._store_of.cache_clear()
        caplog.clear()
        doubling = import_doubling(path)
        assert doubling.double(21.0) == 42
        return sum(doubling.double.stats.cache_hits.values()), caplog.messages

    return load


def test_a_function_is_compiled_once_and_again_when_its_source_has_changed(module, tmp_path):
    assert module() == (0, [])
    assert module() == (1, [])
    module()
    path = tmp_path / "doubling.py"
    path.write_text(SOURCE.replace("2 * x", "x + x"))
    os.utime(path, (1e9, 1e9))
    assert module() == (0, [])
    assert module() == (1, [])


def test_files_of_numba_itself_are_left_alone(module, tmp_path):
    path = tmp_path / "doubling.py"
    path.write_text(SOURCE.replace("dmrifit._utils.compiled", "numba").replace("2 * x", "3 * x"))
    assert import_doubling(path).double(21.0) == 63
    numba_files = {file: file.read_bytes() for file in tmp_path.glob("__pycache__/*.nb?")}
    assert len(numba_files) == 2
    path.write_text(SOURCE)
    assert module() == (0, [])
    assert module() == (1, [])
    for file, content in numba_files.items():
        assert file.read_bytes() == content


def test_a_full_disk_costs_time_only(module, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, os.strerror(28))

    folder = tmp_path / "__pycache__"
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            n_hits, lines = module()
        assert n_hits == 0
        (line,) = lines
        assert f"module doubling cannot be kept in the cache {folder} (No space left" in line
        assert "set NUMBA_CACHE_DIR to a folder that can be written to" in line
        assert not list(folder.glob("*.nb?"))
        assert not list(folder.glob("*.tmp"))
    assert module() == (0, [])
    assert module() == (1, [])


def test_a_damaged_file_is_made_anew_once(module, tmp_path):
    module()
    (path,) = tmp_path.glob("__pycache__/*.nbc")
    path.write_bytes(path.read_bytes()[:-50])
    n_hits, lines = module()
    assert n_hits == 0
    (line,) = lines
    assert (f"{path.name} in the cache {path.parent} is damaged: it is made anew for the module doubling" in line)
    assert module() == (1, [])


def test_without_a_folder_a_function_works(module, monkeypatch):
    from numba.core.dispatcher import Dispatcher

    def nowhere(_):
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(Dispatcher, "enable_caching", nowhere)
    n_hits, lines = module()
    assert n_hits == 0
    assert "set NUMBA_CACHE_DIR to a folder that can be written to" in lines[0]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("NUMBA_DISABLE_JIT", "1", "NUMBA_DISABLE_JIT is set; unset it"),
        ("NUMBA_NUM_THREADS", "abc", "NUMBA_NUM_THREADS is 'abc'; set it to a whole number"),
        ("NUMBA_NUM_THREADS", "0", "NUMBA_NUM_THREADS is '0'; set it to a whole number"),
    ],
)
def test_settings_without_compiled_code_are_refused(monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        njit()


def test_usual_settings_are_accepted(monkeypatch):
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "0")
    monkeypatch.setenv("NUMBA_NUM_THREADS", "2")
    check_environment()
