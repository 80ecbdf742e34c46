"""Worked lines on the program's page and in --help are understood by the commands."""

from front_door import Chapter

from metastasis.cli import program as cli


class TestMetastasis(Chapter):
    package, program, app = "metastasis", "dmrifit-metastasis", cli.app

    def test_columns_that_the_page_names_are_read(self, page):
        from metastasis.scans.cases import CASES

        named = self.named_columns(page)
        assert set(CASES.required) < named <= set(CASES.columns)
