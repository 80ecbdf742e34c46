"""The recipe for conda and the Containerfile agree with setup.cfg and with the files of the project."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import dmrifit

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "packaging"


@pytest.fixture(scope="module")
def recipe():
    yaml = pytest.importorskip("yaml")
    # Plain text of all values: a version such as 0.20 is no number.
    return yaml.load((FOLDER / "meta.yaml").read_text(encoding="utf-8"), yaml.BaseLoader)


@pytest.fixture(scope="module")
def lines():
    """The instructions of the Containerfile with their words."""
    text = (FOLDER / "Containerfile").read_text(encoding="utf-8")
    return [shlex.split(line) for line in text.splitlines() if line and not line.startswith("#")]


def requirements(text):
    return {(item.name, str(item.specifier)) for item in map(Requirement, text)}


def test_the_recipe_asks_for_what_setup_cfg_asks_for(recipe, setup_cfg):
    options = setup_cfg["options"]
    wanted = requirements(filter(None, options["install_requires"].splitlines()))
    assert requirements(recipe["requirements"]["run"]) == wanted | {("python", options["python_requires"])}
    assert ("python", options["python_requires"]) in requirements(recipe["requirements"]["host"])
    built = re.search(r"setuptools>=\d+", (ROOT / "pyproject.toml").read_text(encoding="utf-8"))[0]
    assert built in [item.replace(" ", "") for item in recipe["requirements"]["host"]]


def test_the_recipe_has_version_license_summary_and_programs_of_the_package(recipe, setup_cfg):
    metadata = setup_cfg["metadata"]
    assert recipe["package"] == {"name": metadata["name"], "version": dmrifit.__version__}
    assert recipe["about"]["license"] == metadata["license"]
    assert recipe["about"]["summary"] == metadata["description"]
    assert (ROOT / recipe["about"]["license_file"]).is_file()
    assert (FOLDER / recipe["source"]["path"]).resolve() == ROOT
    programs = setup_cfg["options.entry_points"]["console_scripts"].split("\n")
    assert recipe["build"]["entry_points"] == [line for line in programs if line]


def test_an_image_is_no_root_and_copies_what_exists(lines):
    copied = [name for line in lines if line[0] == "COPY" and "--from=build" not in line for name in line[1:-1]]
    assert {"setup.cfg", "pyproject.toml", "constraints.txt", "dmrifit", "anomaly"} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)
    users = [line[1] for line in lines if line[0] == "USER"]
    assert users == ["dmrifit"]
    assert lines[-2] == ["ENTRYPOINT", "[dmrifit]"]


@pytest.mark.slow
def test_the_commands_of_the_image_install_a_program_that_fits(lines, tmp_path):
    """The lines of RUN in a clean environment, but for libraries, which need an index: those of the tests serve."""
    source, target = tmp_path / "source", tmp_path / "opt"
    for line in lines:
        if line[0] == "COPY" and "--from=build" not in line:
            for name in line[1:-1]:
                place = source / line[-1] / (name if line[-1] == "./" else "")
                copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
                place.parent.mkdir(parents=True, exist_ok=True)
                copy(ROOT / name, place)
    commands = [line[1:] for line in lines if line[0] == "RUN" and line[1] != "useradd"]
    assert len(commands) == 2
    libraries = ["--no-deps", "--no-build-isolation", "--no-index"]
    for command in commands:
        words = [word.replace("/opt/dmrifit", str(target)) for word in command]
        if "venv" in words:
            words[0] = sys.executable
        else:
            words += libraries
        done = subprocess.run(words, cwd=source, check=False, text=True, capture_output=True)
        assert done.returncode == 0, done.stdout + done.stderr
        for place in target.glob("lib/python*/site-packages"):
            # In front: a new environment may have a setuptools of its own that is too old.
            found = [path for path in sys.path if path.endswith("site-packages")]
            (place / "libraries.pth").write_text(f"import sys; sys.path[:0] = {found!r}\n")
    done = subprocess.run(
        [str(target / "bin" / "dmrifit"), "--version"], cwd=tmp_path, env={"PATH": "/usr/bin"}, text=True,
        capture_output=True, check=True,
    )  # fmt: skip
    assert done.stdout == f"dmrifit {dmrifit.__version__}\n"
