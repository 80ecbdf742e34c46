"""Worked lines on the program's page and in --help are understood by the commands."""

from front_door import Chapter

from placement.cli import program as cli


class TestPlacement(Chapter):
    package, program, app = "placement", "dmrifit-placement", cli.app
