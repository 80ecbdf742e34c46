"""Scripts that measure are run as a user runs them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def run_script():
    """Give a function that runs a module of benchmarks by its name, and returns what it prints."""

    def run(name, *words):
        (path,) = (ROOT / "benchmarks").rglob(f"{name}.py")
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        command = [sys.executable, "-m", module, *map(str, words)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run
