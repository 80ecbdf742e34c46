"""The packages keep the import contracts of setup.cfg, and the contracts notice when they do not."""

import re
import shutil

import pytest

LINT = """
import sys
sys.path.insert(0, "benchmarks")
from importlinter.cli import import_linter
import_linter(["lint", "--no-logo", "--no-cache"])
"""
PACKAGES = ("dmrifit", "placement", "anomaly", "metastasis", "benchmarks/claims")

LIBRARY = "dmrifit imports no application"
APPLICATIONS = "the applications do not import each other"
ENGINE = "protocol, models and fitting import nothing above them"
CLAIMS = "no package imports the claims of published studies"
STUDIES = "the claims of the studies do not import each other"
CIRCLES = "no module of dmrifit imports itself through others"

FORBIDDEN = [
    ("dmrifit/engine/protocol.py", "import placement", LIBRARY),
    ("dmrifit/newcomer.py", "from anomaly import __doc__", LIBRARY),
    ("dmrifit/newcomer.py", "def late():\n    import metastasis", LIBRARY),
    ("placement/__init__.py", "import anomaly", APPLICATIONS),
    ("anomaly/newcomer.py", "import metastasis", APPLICATIONS),
    ("dmrifit/engine/protocol.py", "from dmrifit import models", ENGINE),
    ("dmrifit/engine/protocol.py", "from dmrifit.engine.fitting import fit_voxels", ENGINE),
    ("dmrifit/engine/models.py", "import dmrifit.engine.fitting", ENGINE),
    ("dmrifit/engine/fitting.py", "import dmrifit.bystander", ENGINE),
    ("dmrifit/engine/fitting.py", "def late():\n    from dmrifit import bystander", ENGINE),
    ("dmrifit/_optional.py", "import dmrifit.bystander", ENGINE),
    ("dmrifit/newcomer.py", "import claims", CLAIMS),
    ("anomaly/newcomer.py", "from claims.weninger import methods", CLAIMS),
    ("benchmarks/claims/lee.py", "from claims import huang", STUDIES),
    ("benchmarks/claims/macarro/rules.py", "from claims.weninger import methods", STUDIES),
    ("dmrifit/cohort/scan.py", "def late():\n    from dmrifit import cohort", CIRCLES),
]


@pytest.fixture
def copies(root, tmp_path):
    """Give a folder with setup.cfg and copies of the packages, to be changed at will."""
    shutil.copy(root / "setup.cfg", tmp_path)
    for package in PACKAGES:
        shutil.copytree(root / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    # A module that nothing lists by name, as the next one that somebody adds.
    (tmp_path / "dmrifit" / "bystander.py").write_text("")
    return tmp_path


def test_the_packages_keep_the_contracts(run_python):
    result = run_python("-c", LINT)
    assert result.returncode == 0, result.stdout
    assert "6 kept, 0 broken" in result.stdout


def test_a_new_module_keeps_the_contracts(copies, run_python):
    (copies / "dmrifit" / "newcomer.py").write_text("from dmrifit import bystander, fitting, protocol\n")
    (copies / "anomaly" / "newcomer.py").write_text("from dmrifit import bystander\n")
    result = run_python("-c", LINT, cwd=copies)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(("module", "line", "contract"), FORBIDDEN)
def test_a_forbidden_import_breaks_its_contract(copies, run_python, module, line, contract):
    with (copies / module).open("a") as file:
        file.write(f"\n{line}\n")
    result = run_python("-c", LINT, cwd=copies)
    assert result.returncode == 1, result.stdout
    broken = set(re.findall(r"^(.+) BROKEN", result.stdout, re.MULTILINE))
    # What is imported from above may well import from below, and applications import what dmrifit imports.
    assert contract in broken <= {contract, CIRCLES, *([APPLICATIONS] if contract == LIBRARY else [])}
