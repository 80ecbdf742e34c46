"""README, version, pins and the text of all files agree with each other."""

import re
import shutil
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import dmrifit

PIN = re.compile(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)(?: *;.*)?")

# A path of one machine, a reminder, a text that readers of the project do not have. Each pattern is
# written so that it does not find itself.
FORBIDDEN = {
    "path of a machine": re.compile(r"(?:^|[^\w.])/(?:work|farm|root|home)/"),
    "reminder": re.compile(r"\b(?:TO[D]O|FIX[M]E|XX[X])\b"),
    "text from elsewhere": re.compile(
        r"\b(?:architecture|papers|STYLE|house|engine|prediction)[.]md\b|\bissue #?\d|\bthis issue\b"
    ),
}


@pytest.fixture(scope="module")
def tracked_texts(root):
    """Give name and text of every tracked file that is text."""
    if shutil.which("git") is None or not (root / ".git").exists():
        pytest.skip("only a git checkout knows which files are tracked")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True, text=True)
    texts = {}
    for name in listed.stdout.split("\0"):
        try:
            texts[name] = (root / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, IsADirectoryError, FileNotFoundError):
            continue
    return texts


@pytest.mark.parametrize("kind", FORBIDDEN)
def test_files_speak_of_the_project_alone(tracked_texts, kind):
    found = [
        f"{name}:{number}: {line.strip()[:100]}"
        for name, text in tracked_texts.items()
        for number, line in enumerate(text.splitlines(), 1)
        if FORBIDDEN[kind].search(line)
    ]
    assert not found, f"{kind}:\n" + "\n".join(found)


def test_files_that_the_readme_points_to_exist(root):
    text = (root / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^):#]+)\)", text)
    assert targets
    missing = [target for target in targets if not (root / target).exists()]
    assert not missing


def test_the_version_has_one_source(root, setup_cfg):
    assert setup_cfg["metadata"]["version"] == "attr: dmrifit.__version__"
    newest = re.search(r"^## (\S+)", (root / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    assert newest[1] == dmrifit.__version__


def test_data_files_of_the_packages_are_installed_with_them(tracked_texts, setup_cfg):
    patterns = setup_cfg["options.package_data"]["*"].split()
    packages = ("dmrifit", "placement", "anomaly", "metastasis")
    files = []
    for name in tracked_texts:
        room = next((folder for folder in Path(name).parents if f"{folder}/__init__.py" in tracked_texts), None)
        if name.partition("/")[0] in packages and not name.endswith(".py"):
            files.append(Path(name).relative_to(room).as_posix())
    assert "py.typed" in files
    left_out = [file for file in files if not any(fnmatch(file, pattern) for pattern in patterns)]
    assert not left_out


def test_every_requirement_is_pinned_within_its_range(root, setup_cfg):
    pins = {}
    for line in (root / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pin = PIN.fullmatch(line)
            assert pin, f"not an exact version: {line}"
            pins[normalized(pin[1])] = pin[2]
    lines = [
        setup_cfg["options"]["install_requires"],
        *(value for _, value in setup_cfg.items("options.extras_require")),
    ]
    requirements = [Requirement(line) for line in "\n".join(lines).splitlines() if line]
    assert len(requirements) > 30
    for requirement in requirements:
        pinned = pins[normalized(requirement.name)]
        assert requirement.specifier, f"{requirement.name} states no range"
        assert requirement.specifier.contains(pinned), f"{requirement} leaves out {pinned}"


def normalized(name):
    """Spell a distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()
