"""Docstrings of all public names have numpydoc's form and say what the signature says."""

import doctest
import inspect
from enum import Enum
from importlib import import_module

import pytest
from numpydoc.docscrape import get_doc_object
from numpydoc.validate import validate

PACKAGES = ("dmrifit", "placement", "anomaly", "metastasis")

# Form (GL03, GL05–GL08, SS04), parameters named, in order and described as in the signature
# (PR01–PR04, PR06, PR07), what is returned or yielded (RT01, RT03, YD01).
CHECKS = frozenset({
    "GL03", "GL05", "GL06", "GL07", "GL08", "SS04",
    "PR01", "PR02", "PR03", "PR04", "PR06", "PR07", "RT01", "RT03", "YD01",
})  # fmt: skip

PUBLIC = [(package, name) for package in PACKAGES for name in getattr(import_module(package), "__all__", ())]


def documented(name, value):
    """Yield a public class or function and the public methods and properties that we wrote for it."""
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        return
    yield name, value
    for owner in inspect.getmro(value) if inspect.isclass(value) else ():
        # What scikit-learn or another library has written is not ours to check.
        if owner.__module__ != __name__ and owner.__module__.partition(".")[0] not in PACKAGES:
            continue
        for member, written in vars(owner).items():
            wrapped = isinstance(written, property | classmethod | staticmethod)
            if not member.startswith("_") and (wrapped or inspect.isfunction(written)):
                yield f"{name}.{member}", getattr(value, member)


def faults(name, value):
    """List what is wrong with the docstring of a value and of its public methods."""
    return [
        f"{path}: {code} {text}"
        for path, item in documented(name, value)
        for code, text in validate(get_doc_object(item))["errors"]
        # The signature of an enumeration is that of Python's own constructor.
        if code in CHECKS and not (code == "PR01" and inspect.isclass(item) and issubclass(item, Enum))
    ]


@pytest.mark.parametrize(("package", "name"), PUBLIC, ids=lambda value: value)
def test_docstrings_agree_with_their_signatures_and_examples_give_what_they_show(package, name):
    module = import_module(package)
    found = faults(f"{package}.{name}", getattr(module, name))
    assert not found, "\n".join(found)
    known = {public: getattr(module, public) for public in module.__all__}
    for example in doctest.DocTestFinder(recurse=False).find(getattr(module, name), name, globs=known):
        assert doctest.DocTestRunner().run(example).failed == 0
