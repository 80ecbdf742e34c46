"""Public names that load their module on first use."""

import sys
import types

import pytest

from dmrifit._lazy import lazy_names


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Write a package of two modules that are not imported yet."""
    folder = tmp_path / "drawers"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "spoons.py").write_text("SPOON = object()\nLADLE = object()\n")
    (folder / "forks.py").write_text("FORK = 4\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = types.ModuleType("drawers")
    module.__path__ = [str(folder)]
    module.TABLE = 1
    monkeypatch.setitem(sys.modules, "drawers", module)
    yield module
    for name in ("drawers.spoons", "drawers.forks"):
        sys.modules.pop(name, None)


def test_a_name_is_listed_before_it_is_loaded_from_its_own_module_and_stays(package):
    getter, _ = lazy_names("drawers", {"SPOON": "spoons", "FORK": "forks"})
    assert "drawers.spoons" not in sys.modules
    spoon = getter("SPOON")
    assert spoon is sys.modules["drawers.spoons"].SPOON
    assert "drawers.forks" not in sys.modules
    assert vars(package)["SPOON"] is spoon
    assert "LADLE" not in vars(package)
    getter, lister = lazy_names("drawers", {"SPOON": "spoons", "FORK": "forks"})
    assert {"SPOON", "FORK", "TABLE"} <= set(lister())
    assert lister() == sorted(lister())
    assert "drawers.forks" not in sys.modules
    getter("FORK")
    assert lister().count("FORK") == 1


def test_a_name_that_is_not_public_is_an_attribute_error(package):
    getter, _ = lazy_names("drawers", {"SPOON": "spoons"})
    with pytest.raises(AttributeError, match="module 'drawers' has no attribute 'LADLE'"):
        getter("LADLE")
    assert "drawers.spoons" not in sys.modules
