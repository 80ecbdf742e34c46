"""The start of programs: an interrupt while they are still being loaded is one line, too."""

from __future__ import annotations

import importlib
import sys

__all__ = ["run_program"]

_INTERRUPTED = 130


def main() -> None:
    """Run dmrifit."""
    run_program("dmrifit", "dmrifit.cli.program")


def run_program(name: str, module: str) -> None:
    """Load and run a program."""
    try:
        importlib.import_module(module).main()
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        sys.exit(_INTERRUPTED)
