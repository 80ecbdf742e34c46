"""Optional libraries: imported where they are used, asked for by name when missing."""

import sys
from configparser import ConfigParser

import pytest

from dmrifit._optional import EXTRAS, import_optional


def test_the_module_itself_is_returned_and_not_its_package():
    import json.decoder

    assert import_optional("json.decoder") is json.decoder
    assert import_optional("json") is json


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("xgboost", r'^xgboost is not installed; to install it: pip install "dmrifit\[boost\]"$'),
        (
            "matplotlib.pyplot",
            r'^matplotlib is not installed; .*: pip install "dmrifit\[report\]"$',
        ),
        ("lmfit", r"^lmfit is not installed; to install it: pip install lmfit$"),
    ],
)
def test_a_missing_library_is_named_with_the_command_that_installs_it(
    module, message, monkeypatch
):
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
