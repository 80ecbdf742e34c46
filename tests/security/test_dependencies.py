"""What the project depends on: exact versions, none with a listed advisory, licenses that let it be used."""

import configparser
import importlib.util
import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.version import Version

HERE = Path(__file__).parent
SPEC = importlib.util.spec_from_file_location("audit", HERE / "audit.py")
audit = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(audit)

#: Versions without these advisories about files, as known to who wrote the list: neither complete nor compared with a
#: database, which takes a network (`make audit`).
SAFE = {
    "skops": "0.13",  # CVE-2024-37065, CVE-2025-54412, CVE-2025-54413, CVE-2025-54886: code in model files
    "Jinja2": "3.1.6",  # CVE-2025-27516: templates that leave their sandbox
    "monai": "1.6.0",  # GHSA-89gg-p5r5-q6r4 and others: pickles and archives
    "torch": "2.10",  # CVE-2025-32434, GHSA-63cw-57p8-fm3p: pickles in spite of weights_only
}
#: Used by tests and documentation alone, never installed with the project.
NOT_SHIPPED = {"pingouin", "docutils"}


def installed():
    for name in audit.pins():
        try:
            yield name, distribution(name)
        except PackageNotFoundError:
            continue


def test_pinned_versions_are_those_that_the_tests_run_with():
    pins = audit.pins()
    assert len(pins) > 100
    wrong = {
        name: found.version for name, found in installed() if found.version.split("+")[0] != pins[name].split("+")[0]
    }
    assert not wrong


@pytest.mark.parametrize("name", SAFE)
def test_pinned_versions_are_without_the_listed_advisories(name):
    assert Version(audit.pins()[name]) >= Version(SAFE[name])


def test_licenses_of_what_is_installed_with_the_project_let_it_be_used():
    licenses = {name: audit.license_of(found) for name, found in installed()}
    strict = {name for name, text in licenses.items() if re.search(r"(?<!L)(?<!Lesser )GPL|Proprietary|^\?$", text)}
    assert strict <= NOT_SHIPPED
    config = configparser.ConfigParser()
    config.read(HERE.parents[1] / "setup.cfg", encoding="utf-8")
    lists = [config["options"]["install_requires"]]
    lists += [text for extra, text in config["options.extras_require"].items() if extra not in ("test", "docs")]
    names = {re.split(r"[^A-Za-z0-9._-]", line)[0] for text in lists for line in text.split("\n") if line.strip()}
    assert names
    assert not names & NOT_SHIPPED
