"""The Makefile makes .venv once, heals it when it is half-made and names remedies."""

import os
import shutil
import signal
import subprocess
import sys

import pytest

# Stands for the user's Python: everything is real except that `-m venv` makes an environment whose
# Python writes down its calls of pip instead of installing anything, and then does what FAKE_PIP says.
PYTHON = """#!/bin/sh
if [ "$1 $2" = "-m venv" ]; then
    mkdir -p "$3/bin"
    cp "$0" "$3/bin/python"
elif [ "$1 $2" = "-m pip" ]; then
    echo "$@" >> pip.log
    eval "$FAKE_PIP"
elif [ "$1" = "-c" ]; then
    code=$2
    shift 2
    exec '{real}' -c "{before}
$code" "$@"
fi
"""


@pytest.fixture
def interrupts():
    """Take interrupts, which are ignored by all that runs in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def project(root, tmp_path, interrupts):
    """Give a function that runs make in a folder with a space in its name, without any network."""
    folder = tmp_path / "with space"
    folder.mkdir()
    for name in ("Makefile", "setup.cfg", "constraints.txt"):
        shutil.copy(root / name, folder)
    # Arguments and variables of an outer make would be taken for the inner one's.
    outer = {"MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MFLAGS", "PIP_ARGS", "PYTHON"}
    clean = {name: value for name, value in os.environ.items() if name not in outer}

    def make(target, *arguments, python="python3", before="", pip="exit 0"):
        fake = folder.parent / python
        fake.write_text(PYTHON.format(real=sys.executable, before=before))
        fake.chmod(0o755)
        path = f"{folder.parent}{os.pathsep}{clean['PATH']}"
        return subprocess.run(
            ["make", target, *arguments],
            cwd=folder,
            env={**clean, "PATH": path, "FAKE_PIP": pip},
            check=False,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    make.folder = folder
    make.log = folder / "pip.log"
    return make


def calls(make):
    """Return the calls of pip so far."""
    return make.log.read_text().splitlines() if make.log.exists() else []


def test_the_environment_is_made_once(project):
    for _ in range(2):
        result = project("environment-test")
        assert result.returncode == 0, result.stdout
    assert len(calls(project)) == 1
    assert calls(project)[0].endswith("-c constraints.txt -e .[all,test]")


def test_the_demo_needs_no_more_than_the_tests_have(project):
    project("environment-demo")
    project("environment-test")
    project("environment-demo")
    assert [call.rpartition(" ")[2] for call in calls(project)] == [".[report,preprocess,boost,stats]", ".[all,test]"]


@pytest.mark.parametrize("name", ["constraints.txt", "setup.cfg"])
def test_changed_pins_are_installed_into_the_same_environment(project, name):
    project("environment-test")
    (project.folder / ".venv" / "kept").touch()
    with (project.folder / name).open("a") as file:
        file.write("# changed\n")
    project("environment-test")
    assert len(calls(project)) == 2
    assert (project.folder / ".venv" / "kept").exists()


@pytest.mark.parametrize("pip", ["exit 1", "kill -KILL $PPID", "kill -INT $PPID; exit 1"])
def test_an_unfinished_environment_is_made_again(project, pip):
    assert project("environment-test", pip=pip).returncode != 0
    (project.folder / ".venv" / "half").touch()
    result = project("environment-test")
    assert result.returncode == 0, result.stdout
    assert "not finished" in result.stdout
    assert not (project.folder / ".venv" / "half").exists()
    assert len(calls(project)) == 2


def test_an_environment_without_its_python_is_made_again(project):
    project("environment-test")
    (project.folder / ".venv" / "bin" / "python").unlink()
    result = project("environment-test")
    assert result.returncode == 0, result.stdout
    assert "lost its Python" in result.stdout


def test_another_python_is_taken_only_when_asked_for(project):
    other = "import sys; sys.version_info = (3, 12, 1)"
    project("environment-test", "PYTHON=python3.12", python="python3.12", before=other)
    (project.folder / ".venv" / "kept").touch()
    # The default Python differs from that of .venv, and .venv stays.
    assert project("environment-test").returncode == 0
    assert (project.folder / ".venv" / "kept").exists()
    result = project("environment-test", "PYTHON=python3")
    assert result.returncode == 0, result.stdout
    assert "has Python 3.12.1, not that of python3" in result.stdout
    assert not (project.folder / ".venv" / "kept").exists()


@pytest.mark.parametrize("version", ["(2, 7, 18)", "(3, 10, 4)", "(3, 15, 0)"])
def test_a_python_of_another_version_is_refused_with_a_remedy(project, version):
    result = project("environment-demo", before=f"import sys; sys.version_info = {version}")
    assert result.returncode != 0
    assert "Python 3.11 to 3.14 is needed" in result.stdout
    assert "make demo PYTHON=python3.12" in result.stdout
    assert not (project.folder / ".venv").exists()


@pytest.mark.parametrize("module", ["venv", "ensurepip"])
def test_a_python_that_cannot_make_environments_is_refused_with_a_remedy(project, module):
    before = f"""import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name == '{module}' else find(name)"""
    result = project("environment-test", before=before)
    assert result.returncode != 0
    assert f"lacks {module}. On Debian and Ubuntu: sudo apt install python3." in result.stdout
    assert not (project.folder / ".venv").exists()


def test_a_python_that_is_not_there_is_refused_and_keeps_the_environment(project):
    project("environment-test")
    result = project("environment-test", "PYTHON=python3.99")
    assert result.returncode != 0
    assert "There is no python3.99 here" in result.stdout
    assert (project.folder / ".venv" / "bin" / "python").exists()
