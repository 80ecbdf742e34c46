"""The packages keep the import contracts of setup.cfg, and the contracts notice when they do not."""

import re
import shutil

import pytest

LINT = """
from importlinter.cli import import_linter
import_linter(["lint", "--no-logo", "--no-cache"])
"""
PACKAGES = ("dmrifit", "placement", "anomaly", "metastasis", "benchmarks")

LIBRARY = "dmrifit imports no application"
APPLICATIONS = "the applications do not import each other"
CLAIMS = "no package imports the claims of published studies"
STUDIES = "the claims of the studies do not import each other"
CIRCLES = "no module imports itself through others"
FLOORS = "the rooms of {} lie on floors"

FORBIDDEN = [
    ("dmrifit/engine/protocol.py", "import placement", LIBRARY),
    ("dmrifit/cli/newcomer.py", "from anomaly import __doc__", LIBRARY),
    ("dmrifit/cli/newcomer.py", "def late():\n    import metastasis", LIBRARY),
    ("placement/__init__.py", "import anomaly", APPLICATIONS),
    ("anomaly/cli/newcomer.py", "import metastasis", APPLICATIONS),
    ("dmrifit/cli/newcomer.py", "import benchmarks.claims", CLAIMS),
    ("anomaly/cli/newcomer.py", "from benchmarks.claims.weninger import methods", CLAIMS),
    ("benchmarks/claims/lee.py", "from benchmarks.claims import huang", STUDIES),
    ("benchmarks/claims/macarro/rules.py", "from benchmarks.claims.weninger import methods", STUDIES),
    # A room above, a room beside, and a module or a room without a floor.
    ("dmrifit/engine/fitting.py", "from dmrifit.cohort.scan import Scan", FLOORS.format("dmrifit")),
    ("dmrifit/engine/protocol.py", "def late():\n    import dmrifit.io.masks", FLOORS.format("dmrifit")),
    ("dmrifit/report/page.py", "from dmrifit.stats import metrics", FLOORS.format("dmrifit")),
    ("dmrifit/newcomer.py", "", FLOORS.format("dmrifit")),
    ("dmrifit/newcomers/__init__.py", "", FLOORS.format("dmrifit")),
    ("placement/box/voxel.py", "from placement.search import scene", FLOORS.format("placement")),
    ("anomaly/detectors/base.py", "from anomaly.scans import cases", FLOORS.format("anomaly")),
    ("metastasis/networks/losses.py", "from metastasis.segmentation import sampling", FLOORS.format("metastasis")),
    ("dmrifit/cohort/scan.py", "def late():\n    from dmrifit.cohort import cohort", CIRCLES),
    ("placement/box/overlap.py", "def late():\n    from placement.box import row_integrals", CIRCLES),
]


@pytest.fixture
def copies(root, tmp_path):
    """Give a folder with setup.cfg and copies of the packages, to be changed at will."""
    shutil.copy(root / "setup.cfg", tmp_path)
    for package in PACKAGES:
        shutil.copytree(root / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "results"))
    return tmp_path


def test_the_packages_keep_the_contracts(run_python):
    result = run_python("-c", LINT)
    assert result.returncode == 0, result.stdout
    assert "9 kept, 0 broken" in result.stdout


def test_a_new_module_in_a_room_keeps_the_contracts(copies, run_python):
    (copies / "dmrifit" / "io" / "newcomer.py").write_text("from dmrifit.engine import fitting, protocol\n")
    (copies / "anomaly" / "study" / "newcomer.py").write_text("from dmrifit.io import newcomer\n")
    result = run_python("-c", LINT, cwd=copies)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(("module", "line", "contract"), FORBIDDEN)
def test_a_forbidden_import_breaks_its_contract(copies, run_python, module, line, contract):
    (copies / module).parent.mkdir(exist_ok=True)
    with (copies / module).open("a") as file:
        file.write(f"\n{line}\n")
    result = run_python("-c", LINT, cwd=copies)
    assert result.returncode == 1, result.stdout
    broken = set(re.findall(r"^(.+) BROKEN", result.stdout, re.MULTILINE))
    # Without an order of floors no verdict is printed: the module that has none is named instead.
    if not line:
        assert module.partition("/")[2].partition("/")[0].removesuffix(".py") in result.stdout
        return
    # What is imported from above may well import from below, and applications import what dmrifit imports.
    beside = {CIRCLES, *([APPLICATIONS] if contract == LIBRARY else [])}
    assert contract in broken
    assert broken <= {contract, *beside, *map(FLOORS.format, ("dmrifit",))}
