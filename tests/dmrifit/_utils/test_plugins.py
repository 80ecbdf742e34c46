"""Faulty entry points of other packages, installed as pip leaves them: one line that names the package."""

import sys

import pytest

from anomaly.detectors.detector_table import import_detector
from dmrifit.engine.models import resolve_model
from dmrifit.model_files.registry import registered

#: How the names of a group are looked up.
GROUPS = {"dmrifit.signal_models": resolve_model, "anomaly.detectors": import_detector, "dmrifit.models": registered}

#: What the module of a plug-in holds, and what is said of it.
MODULES = {
    "raise OSError('no\\nlibrary')": "OSError: no library",
    "class Odd(BaseException): pass\nraise Odd": "Odd",
    "def broken(:": "SyntaxError: .*",
    "import sys; sys.exit(3)": "SystemExit: 3",
    "import absent_library": "ModuleNotFoundError: No module named 'absent_library'",
    "other = 1": "AttributeError: module '.*' has no attribute 'THING'",
    "THING = 1": "TypeError: it is no SignalModel .*|TypeError: it is no class .*|TypeError: it registers no class .*",
}


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Give a function that installs a package of one module with one entry point, called plug."""

    def installed(group, text):
        info = tmp_path / "a_plugin-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: a-plugin\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{group}]\nplug = a_plugin_module:THING\n")
        (tmp_path / "a_plugin_module.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "a_plugin_module", raising=False)

    return installed


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(("text", "reason"), MODULES.items())
def test_a_faulty_plugin_is_an_error_that_names_its_package(install, group, text, reason):
    install(group, text)
    with pytest.raises(
        ImportError,
        match=rf"^the package a-plugin has a faulty plug-in: its entry point plug = a_plugin_module:THING of the group "
        rf"{group} cannot be used \(({reason})\); update the package, or uninstall it \(pip uninstall a-plugin\)$",
    ) as error:
        GROUPS[group]("plug")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("raise KeyboardInterrupt", KeyboardInterrupt, "^$"),
        ("raise ImportError('torch is not installed', name='torch')", ImportError, "^torch is not installed$"),
    ],
)
def test_an_interrupt_and_a_missing_library_of_an_extra_pass_unchanged(install, text, error, message):
    install("anomaly.detectors", text)
    with pytest.raises(error, match=message):
        import_detector("plug")
