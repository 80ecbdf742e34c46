"""Public names resolve on first use; a missing extra names the command that installs it."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import dmrifit
from dmrifit import _optional

PACKAGES = ("dmrifit", "placement", "anomaly", "metastasis")

# Raises for every optional library, as if none were installed, then asks for all public names.
WITHOUT_EXTRAS = """
import sys
from dmrifit._optional import EXTRAS

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in EXTRAS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
for package in sys.argv[1:]:
    module = __import__(package)
    for name in getattr(module, "__all__", ()):
        try:
            getattr(module, name)
        except ImportError as error:
            assert 'pip install "dmrifit[' in str(error), (name, error)
"""

BRITISH = re.compile(
    r"tumour|centre|colour|neighbour|behaviour|"
    r"(?:optim|normal|regular|initial|visual|random|general|minim|maxim|standard|summar)is(?:e|a)",
    re.IGNORECASE,
)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_resolves(package):
    module = import_module(package)
    for name in getattr(module, "__all__", ()):
        assert getattr(module, name) is not None
        assert name in dir(module)


@pytest.mark.parametrize("package", PACKAGES)
def test_an_unknown_name_is_an_attribute_error(package):
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = import_module(package).no_such_name


def test_public_names_are_the_objects_of_their_modules():
    assert sorted(dmrifit.__all__) == list(dmrifit.__all__)
    assert dmrifit.Protocol is import_module("dmrifit.engine.protocol").Protocol


def test_without_extras_names_resolve_or_say_what_to_install(run_python):
    result = run_python("-c", WITHOUT_EXTRAS, *PACKAGES)
    assert result.returncode == 0, result.stdout


def test_a_missing_library_names_the_extra_that_brings_it(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(name=name.partition(".")[0])

    monkeypatch.setattr(_optional, "import_module", absent)
    with pytest.raises(ImportError, match=re.escape('pip install "dmrifit[report]"')):
        _optional.import_optional("matplotlib.pyplot")
    with pytest.raises(ImportError, match="pip install lmfit"):
        _optional.import_optional("lmfit")


def test_a_library_that_lacks_something_of_its_own_speaks_for_itself(monkeypatch):
    def broken(name):
        raise ModuleNotFoundError(name="contourpy")

    monkeypatch.setattr(_optional, "import_module", broken)
    with pytest.raises(ModuleNotFoundError) as caught:
        _optional.import_optional("matplotlib.pyplot")
    assert caught.value.name == "contourpy"


def test_an_installed_library_is_imported():
    assert _optional.import_optional("json.decoder") is import_module("json.decoder")


def test_the_extras_named_in_errors_bring_their_libraries(setup_cfg):
    for library, extra in _optional.EXTRAS.items():
        lines = setup_cfg["options.extras_require"][extra].split("\n")
        brought = {Requirement(line).name.lower().replace("-", "_") for line in lines if line}
        assert library.lower() in brought, f"{extra} does not bring {library}"


@pytest.mark.parametrize("package", PACKAGES)
def test_identifiers_are_spelled_the_american_way(root, package):
    found = [
        f"{path.relative_to(root)}: {word}"
        for path in sorted(Path(root / package).rglob("*.py"))
        for word in identifiers(path)
        if BRITISH.search(word)
    ]
    assert not found, "\n".join(found)


def identifiers(path):
    """Yield the names that a file gives: functions, classes, arguments, variables, attributes."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
