"""What the tests of the commands share."""

import sys

import pytest

from dmrifit import cli


@pytest.fixture
def run(monkeypatch, capfd):
    """Run the command line in this process; return exit code, standard output and error."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["dmrifit", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capfd.readouterr()
        return stopped.value.code or 0, captured.out, captured.err

    return call
