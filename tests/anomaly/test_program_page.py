"""Worked lines on the program's page and in --help are understood by the commands."""

from front_door import Chapter

from anomaly.cli import program as cli


class TestAnomaly(Chapter):
    package, program, app = "anomaly", "dmrifit-anomaly", cli.app

    def test_columns_that_the_page_names_are_read(self, page):
        from anomaly.scans.cases import CASES

        named = self.named_columns(page)
        assert set(CASES.required) < named
        assert set(CASES.columns) - named == {"synthetic"}
