"""The wheel holds all that the packages need and nothing else, and works with no other copy of them in sight."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from check_wheel import PARTS, build, complaints, copy_sources, extras_of

import dmrifit

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Build the wheel, without a network, and unpack it where nothing else is."""
    folder = tmp_path_factory.mktemp("wheel")
    source = copy_sources(ROOT, folder / "source")
    _, wheel = build(source, folder / "dist")
    target = folder / "installed"
    words = ["install", "--quiet", "--no-deps", "--no-index", "--no-compile", "--target", str(target), str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True, cwd=folder)
    return source, wheel, target


@pytest.mark.slow
def test_the_wheel_holds_the_packages_and_nothing_else(made):
    source, wheel, _ = made
    assert complaints(wheel, source) == []


@pytest.mark.slow
def test_building_twice_gives_the_same_bytes(made, tmp_path):
    source, wheel, _ = made
    # Elsewhere, later, and with files of another age.
    again = copy_sources(source, tmp_path / "elsewhere")
    for path in again.rglob("*.py"):
        os.utime(path, (10**9, 10**9))
    _, second = build(again, tmp_path / "dist")
    assert second.read_bytes() == wheel.read_bytes()


@pytest.mark.slow
def test_what_is_missing_or_too_much_is_told(made, tmp_path):
    source, wheel, _ = made
    changed = tmp_path / wheel.name
    with zipfile.ZipFile(wheel) as before, zipfile.ZipFile(changed, "w") as after:
        for name in before.namelist():
            if name != "placement/py.typed":
                after.writestr(name, before.read(name))
        after.writestr("tests/test_more.py", "")
    found = complaints(changed, source)
    assert "placement/py.typed is not in the wheel" in found
    assert "tests/test_more.py does not belong into the wheel" in found


@pytest.mark.slow
def test_the_installed_wheel_fits_and_shows_its_help(made, tmp_path):
    *_, target = made
    # Only the libraries are those of the tests' environment; the packages come from the wheel alone.
    program = (
        f"import sys; sys.path.insert(0, {str(target)!r}); sys.argv = ['parts.py', 'base']; "
        f"import runpy; runpy.run_path({str(PARTS)!r}, run_name='__main__')"
    )
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], cwd=tmp_path, env=clean, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"dmrifit {dmrifit.__version__} of {target}" in done.stdout
    assert "commands show their help" in done.stdout


def test_every_extra_has_a_part_that_is_tried():
    text = PARTS.read_text(encoding="utf-8")
    assert [name for name in extras_of(ROOT) if f"\ndef {name}(folder: Path)" not in text] == []
