"""The command line."""

from dmrifit.cli.start import run_program


def main() -> None:
    """Run dmrifit-metastasis."""
    run_program("dmrifit-metastasis", "metastasis.cli.program")
