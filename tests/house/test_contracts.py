"""The packages keep the import contracts of setup.cfg, and the contracts notice when they do not."""

import re
import shutil

import pytest

LINT = "from importlinter.cli import import_linter\nimport_linter(['lint', '--no-logo', '--no-cache'])"
#: For each contract an import that breaks it, and the module that holds it.
FORBIDDEN = {
    "dmrifit imports no application": ("dmrifit/engine/protocol.py", "import placement"),
    "the applications leave fits, cohorts and studies alone": ("placement/box/voxel.py", "import dmrifit.predict"),
    "the applications do not import each other": ("placement/__init__.py", "import anomaly"),
    "no package imports the claims of published studies": ("anomaly/cli/newcomer.py", "import benchmarks.claims"),
    "the claims of the studies do not import each other": (
        "benchmarks/claims/lee.py",
        "from benchmarks.claims import huang",
    ),
    "the rooms of dmrifit lie on floors": ("dmrifit/engine/fitting.py", "def late():\n    import dmrifit.io.masks"),
    "the rooms of placement lie on floors": ("placement/box/voxel.py", "from placement.search import scene"),
    "the rooms of anomaly lie on floors": ("anomaly/detectors/base.py", "from anomaly.scans import cases"),
    "the rooms of metastasis lie on floors": (
        "metastasis/networks/losses.py",
        "from metastasis.segmentation import sampling",
    ),
    "no module imports itself through others": (
        "dmrifit/cohort/scan.py",
        "def late():\n    from dmrifit.cohort import cohort",
    ),
}


def test_the_packages_keep_the_contracts(run_python):
    result = run_python("-c", LINT)
    assert result.returncode == 0, result.stdout
    assert f"{len(FORBIDDEN)} kept, 0 broken" in result.stdout


@pytest.fixture
def lint_changed(root, tmp_path, run_python):
    """Check copies of the packages, with a line added to some modules."""

    def lint(lines):
        shutil.copy(root / "setup.cfg", tmp_path)
        for package in ("dmrifit", "placement", "anomaly", "metastasis", "benchmarks"):
            ignored = shutil.ignore_patterns("__pycache__", "results")
            shutil.copytree(root / package, tmp_path / package, ignore=ignored)
        for module, line in lines:
            with (tmp_path / module).open("a") as file:
                file.write(f"\n{line}\n")
        result = run_python("-c", LINT, cwd=tmp_path)
        assert result.returncode == 1, result.stdout
        return result.stdout

    return lint


def test_a_forbidden_import_breaks_its_contract(lint_changed):
    said = lint_changed(FORBIDDEN.values())
    assert set(re.findall(r"^(.+) BROKEN", said, re.MULTILINE)) == set(FORBIDDEN)


def test_a_module_without_a_floor_is_named(lint_changed):
    assert "newcomer" in lint_changed([("dmrifit/newcomer.py", "")])
