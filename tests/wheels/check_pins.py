"""
Ask the package index whether every pin of constraints.txt has a wheel for a Python that is not installed here.

    python tests/wheels/check_pins.py 3.14.2 [--platform manylinux_2_28_x86_64]… [--pip-args "…"]

Nothing is installed or kept. Pins without a wheel are printed, one a line, and make the exit status 1; pins with a
marker that leaves this Python out do not count.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
LINUX = ("manylinux_2_34_x86_64", "manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
MISSING = re.compile(r"No matching distribution found for (\S+)")


def pins(text: str, python: str) -> list[str]:
    """List the requirements of a file of constraints that this Python asks for on Linux."""
    # pip would evaluate markers for the Python that it runs in.
    place = {"python_version": ".".join(python.split(".")[:2]), "python_full_version": python}
    place |= {"sys_platform": "linux", "platform_machine": "x86_64"}
    found = []
    for line in text.splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate(place):
                found.append(f"{requirement.name}{requirement.specifier}")
    return found


def without_wheel(requirements: list[str], python: str, platforms: list[str], pip_args: list[str]) -> list[str]:
    """Find the pins that have no wheel; pip stops at the first, so it is asked again without it."""
    missing: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet"]
        words += ["--disable-pip-version-check", "--target", folder, "--only-binary=:all:", "--implementation", "cp"]
        words += ["--python-version", python, *pip_args]
        for platform in platforms:
            words += ["--platform", platform]
        wanted = list(requirements)
        while wanted:
            done = subprocess.run([*words, *wanted], check=False, text=True, capture_output=True)
            if done.returncode == 0:
                break
            name = MISSING.search(done.stderr)
            if name is None:
                sys.exit(done.stderr[-3000:])
            missing.append(name[1])
            wanted.remove(name[1])
    return missing


def main() -> int:
    """Check the pins for one Python."""
    parser = argparse.ArgumentParser(description="Find pins without a wheel for a Python.")
    parser.add_argument("python", help="a full version, such as 3.14.2: some pins exclude the first releases")
    parser.add_argument("--platform", action="append", default=[], help="a platform tag of wheels; Linux by default")
    parser.add_argument("--pip-args", default="", help="more arguments for pip, such as an index")
    chosen = parser.parse_args()
    requirements = pins((ROOT / "constraints.txt").read_text(encoding="utf-8"), chosen.python)
    missing = without_wheel(requirements, chosen.python, chosen.platform or list(LINUX), shlex.split(chosen.pip_args))
    print(f"Python {chosen.python}: {len(requirements) - len(missing)} of {len(requirements)} pins have a wheel")
    print(*(f"no wheel: {pin}" for pin in missing), sep="\n")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
