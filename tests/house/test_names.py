"""Public names resolve on first use; a missing extra names the command that installs it."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

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
    r"tumour|centre|colour|neighbour|behaviour|labelled|"
    r"(?:optim|normal|regular|initial|visual|random|general|minim|maxim|standard|summar)is(?:e|a)",
    re.IGNORECASE,
)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_resolves(package):
    module = import_module(package)
    for name in getattr(module, "__all__", ()):
        assert getattr(module, name) is not None
        assert name in dir(module)


def test_without_extras_names_resolve_or_say_what_to_install(run_python):
    result = run_python("-c", WITHOUT_EXTRAS, *PACKAGES)
    assert result.returncode == 0, result.stdout


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
