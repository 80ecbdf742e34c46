"""The command line."""

from dmrifit.cli.start import run_program


def main() -> None:
    """Run dmrifit-anomaly."""
    run_program("dmrifit-anomaly", "anomaly.cli.program")
