"""Worked lines on the program's page and in --help are understood by the commands."""

from front_door import Chapter

from placement.cli import program as cli


class TestPlacement(Chapter):
    package, program, app = "placement", "dmrifit-placement", cli.app

    def test_the_page_tells_what_decides_where_a_box_lies(self, page):
        for option in ("labels", "flair-target", "brain", "brain-margin", "bandwidth", "max-rotations", "published",
                       "force", "fail-on-flag"):  # fmt: skip
            assert f"``--{option}" in page, option
