"""Worked lines on the pages of programs and in --help are understood by the commands."""

from front_door import Chapter

import anomaly.cli.program
import metastasis.cli.program
import placement.cli.program
from anomaly.scans.cases import CASES as SERIES
from metastasis.scans.cases import CASES


class TestAnomaly(Chapter):
    package, program, app = "anomaly", "dmrifit-anomaly", anomaly.cli.program.app

    def test_columns_that_the_page_names_are_read(self, page):
        named = self.named_columns(page)
        assert set(SERIES.required) < named
        assert set(SERIES.columns) - named == {"synthetic"}


class TestMetastasis(Chapter):
    package, program, app = "metastasis", "dmrifit-metastasis", metastasis.cli.program.app

    def test_columns_that_the_page_names_are_read(self, page):
        named = self.named_columns(page)
        assert set(CASES.required) < named <= set(CASES.columns)


class TestPlacement(Chapter):
    package, program, app = "placement", "dmrifit-placement", placement.cli.program.app

    def test_the_page_tells_what_decides_where_a_box_lies(self, page):
        for option in ("labels", "flair-target", "brain", "brain-margin", "bandwidth", "max-rotations", "published",
                       "force", "fail-on-flag"):  # fmt: skip
            assert f"``--{option}" in page, option
