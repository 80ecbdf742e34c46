"""Classes of other packages that name themselves for model files."""

import pytest
from sklearn.base import BaseEstimator

from dmrifit.model_files import registry


@pytest.fixture(autouse=True)
def empty_registry(monkeypatch):
    monkeypatch.setattr(registry, "_CLASSES", {})
    monkeypatch.setattr(registry, "entry_points", lambda **_: [])


def storable(name, module="first", qualname=None):
    """Make an estimator with the two methods of a registered class."""
    methods = {"stored": lambda self: ({}, {}, {}), "restore": lambda self, fitted, files: None}
    cls = type(name, (BaseEstimator,), methods)
    cls.__module__, cls.__qualname__ = module, qualname or name
    return cls


def test_a_registered_class_is_found_by_its_name_and_replaced_when_its_module_is_loaded_again():
    cls = storable("Detector")
    assert registry.register(cls) is cls
    assert registry.registered("Detector") is cls
    assert registry.registered("Other") is None
    registry.register(storable("Detector"))
    again = registry.register(storable("Detector"))
    assert registry.registered("Detector") is again


@pytest.mark.parametrize("missing", ["stored", "restore"])
def test_a_class_without_one_of_the_methods_is_refused(missing):
    cls = storable("Detector")
    delattr(cls, missing)
    with pytest.raises(TypeError, match=f"^Detector cannot have model files without {missing}$"):
        registry.register(cls)
    assert registry.registered("Detector") is None


@pytest.mark.parametrize("identity", [("second", "Detector"), ("first", "inner.Detector")])
def test_two_classes_cannot_register_one_name(identity):
    first = registry.register(storable("Detector"))
    with pytest.raises(ValueError, match="first has registered a Detector already; choose another name"):
        registry.register(storable("Detector", *identity))
    assert registry.registered("Detector") is first


def test_installed_packages_are_asked_for_the_class_of_that_name_and_only_once(monkeypatch):
    asked = []

    class Entry:
        def load(self):
            registry.register(storable("Detector"))

    def entry_points(**choice):
        asked.append(choice)
        return [Entry()] if choice.get("name") == "Detector" else []

    monkeypatch.setattr(registry, "entry_points", entry_points)
    assert registry.registered("Detector").__name__ == "Detector"
    assert registry.registered("Detector").__name__ == "Detector"
    assert registry.registered("Absent") is None
    assert asked == [
        {"group": "dmrifit.models", "name": "Detector"},
        {"group": "dmrifit.models", "name": "Absent"},
        {"group": "dmrifit.model_tables"},
    ]


def test_a_table_of_an_installed_package_names_the_module_of_a_class(monkeypatch):
    class Entry:
        def load(self):
            return {"Detector": "package.of_detectors"}

    imported = []

    def import_module(name):
        imported.append(name)
        registry.register(storable("Detector"))

    monkeypatch.setattr(registry, "import_module", import_module)
    monkeypatch.setattr(registry, "entry_points", lambda group, name=None: [] if name else [Entry()])
    assert registry.registered("Absent") is None
    assert imported == []
    assert registry.registered("Detector").__name__ == "Detector"
    assert imported == ["package.of_detectors"]
