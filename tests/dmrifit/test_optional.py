"""Public names that load on first use; optional libraries asked for by name when missing."""

import sys
import types
from configparser import ConfigParser

import pytest

from dmrifit._optional import EXTRAS, import_optional, lazy_names


def test_the_module_itself_is_returned_and_not_its_package():
    import json.decoder

    assert import_optional("json.decoder") is json.decoder
    assert import_optional("json") is json


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("xgboost", r'^xgboost is not installed; to install it: pip install "dmrifit\[boost\]"$'),
        ("matplotlib.pyplot", r'^matplotlib is not installed; .*: pip install "dmrifit\[report\]"$'),
        ("lmfit", r"^lmfit is not installed; to install it: pip install lmfit$"),
    ],
)
def test_a_missing_library_is_named_with_the_command_that_installs_it(module, message, monkeypatch):
    library = module.partition(".")[0]
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=message) as error:
        import_optional(module)
    assert error.value.name == library
    assert isinstance(error.value.__cause__, ModuleNotFoundError)


def test_a_library_that_lacks_one_of_its_own_speaks_for_itself(tmp_path, monkeypatch):
    (tmp_path / "incomplete.py").write_text("import absent_part_of_it")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'absent_part_of_it'"):
        import_optional("incomplete")


def test_every_library_is_installed_by_the_extra_that_is_told(pytestconfig):
    config = ConfigParser()
    config.read(pytestconfig.rootpath / "setup.cfg", encoding="utf-8")
    for library, extra in EXTRAS.items():
        required = config["options.extras_require"][extra].lower().replace("-", "_")
        assert f"\n{library.lower()}" in required, library


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
