"""What the project depends on: exact versions, none with a listed advisory, licenses that let it be used."""

import configparser
import contextlib
import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).parents[2]
#: Exact versions that tests run with.
PINS = dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;#]+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))

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
    for name in PINS:
        with contextlib.suppress(PackageNotFoundError):
            yield name, distribution(name)


def license_of(found):
    """Tell the license of a distribution: an expression, classifiers, the first line of a text, or "?"."""
    meta = found.metadata
    named = [one.split(" :: ")[-1] for one in meta.get_all("Classifier") or [] if one.startswith("License ::")]
    text = (meta.get("License") or "").strip().splitlines()
    return meta.get("License-Expression") or "; ".join(named) or (text[0][:60] if text else "?")


def test_pinned_versions_are_those_that_the_tests_run_with():
    assert len(PINS) > 100
    wrong = {
        name: found.version for name, found in installed() if found.version.split("+")[0] != PINS[name].split("+")[0]
    }
    assert not wrong


@pytest.mark.parametrize("name", SAFE)
def test_pinned_versions_are_without_the_listed_advisories(name):
    assert Version(PINS[name]) >= Version(SAFE[name])


def test_licenses_of_what_is_installed_with_the_project_let_it_be_used():
    licenses = {name: license_of(found) for name, found in installed()}
    strict = {name for name, text in licenses.items() if re.search(r"(?<!L)(?<!Lesser )GPL|Proprietary|^\?$", text)}
    assert strict <= NOT_SHIPPED
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    lists = [config["options"]["install_requires"]]
    lists += [text for extra, text in config["options.extras_require"].items() if extra not in ("test", "docs")]
    names = {re.split(r"[^A-Za-z0-9._-]", line)[0] for text in lists for line in text.split("\n") if line.strip()}
    assert names
    assert not names & NOT_SHIPPED
