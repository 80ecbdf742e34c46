"""The command line."""

from dmrifit.cli.start import run_program


def main() -> None:
    """Run dmrifit-placement."""
    run_program("dmrifit-placement", "placement.cli.program")
