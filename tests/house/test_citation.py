"""CITATION.cff is what the Citation File Format allows, and agrees with the package.

The schema in data/ is that of version 1.2.0 of the format, unchanged, by its authors (Druskat et al.,
doi:10.5281/zenodo.5171937), under CC-BY-4.0; it was taken from the wheel of cffconvert 2.0.0.
"""

import json
from pathlib import Path

import pytest

import dmrifit

SCHEMA = Path(__file__).parent / "data" / "cff-1.2.0-schema.json"


@pytest.fixture(scope="module")
def validator():
    """A validator of the format's own schema."""
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    return jsonschema.Draft7Validator(schema)


@pytest.fixture
def citation(root):
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))


def test_the_citation_file_obeys_its_schema(citation, validator):
    assert [error.message for error in validator.iter_errors(citation)] == []


def test_version_license_and_authors_have_one_wording(citation, setup_cfg):
    assert citation["version"] == dmrifit.__version__
    assert citation["license"] == setup_cfg["metadata"]["license"]
    assert [author["name"] for author in citation["authors"]] == [setup_cfg["metadata"]["author"]]
    assert citation["title"] == setup_cfg["metadata"]["name"]
