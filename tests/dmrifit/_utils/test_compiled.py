"""Functions compiled by numba outside of fits: settings checked, damaged files made anew."""

import importlib.util
import logging
import os

import pytest
from numba.core.caching import IndexDataCacheFile

from dmrifit._utils import compiled
from dmrifit._utils.compiled import check_environment, njit

SOURCE = """
from dmrifit._utils.compiled import njit

@njit(cache=True, nogil=True)
def double(x):
    return 2 * x
"""


@pytest.fixture
def module(tmp_path, caplog):
    """Give a function that loads a module with a compiled function as another process would."""
    path = tmp_path / "doubling.py"
    path.write_text(SOURCE)
    caplog.set_level(logging.WARNING, "dmrifit")

    def load():
        compiled._said.clear()
        caplog.clear()
        spec = importlib.util.spec_from_file_location("doubling", path)
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        assert loaded.double(21.0) == 42
        return sum(loaded.double.stats.cache_hits.values()), caplog.messages

    return load


def test_a_function_is_compiled_once(module):
    assert module() == (0, [])
    assert module() == (1, [])


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def changed(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def zeroed(path):
    path.write_bytes(bytes(path.stat().st_size))


def emptied(path):
    path.write_bytes(b"")


def other_text(path):
    path.write_text("garbage")


@pytest.mark.parametrize("spoil", [cut, changed, zeroed, emptied, other_text])
@pytest.mark.parametrize("ending", ["nbi", "nbc"])
def test_a_damaged_file_is_made_anew_once(module, tmp_path, ending, spoil):
    module()
    (path,) = tmp_path.glob(f"__pycache__/*.{ending}")
    spoil(path)
    n_hits, lines = module()
    assert n_hits == 0
    # Of an index whose middle has changed, numba may only find that it names another function.
    assert [line for line in lines if "are damaged: they are made anew" in line] == lines
    assert lines or (ending, spoil) == ("nbi", changed)
    assert module() == (1, [])


@pytest.mark.parametrize("ending", ["nbi", "nbc"])
def test_a_folder_in_place_of_a_file_costs_time_only(module, tmp_path, ending):
    module()
    (path,) = tmp_path.glob(f"__pycache__/*.{ending}")
    path.unlink()
    path.mkdir()
    n_hits, lines = module()
    assert n_hits == 0
    assert any("compiled code cannot be kept" in line for line in lines)


def test_a_full_disk_costs_time_only(module, monkeypatch):
    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(IndexDataCacheFile, "_open_for_write", full)
    for _ in range(2):
        n_hits, lines = module()
        assert n_hits == 0
        assert "cannot be kept (No space left on device)" in lines[0]


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
