"""The report as an object: a path with tables and first lines."""

import os
from pathlib import Path

import pandas as pd
import pytest

from dmrifit.study.report.report_files import Report


@pytest.fixture
def report(tmp_path):
    page = tmp_path / "report.html"
    page.write_text("page", encoding="utf-8")
    frames = {"headline": pd.DataFrame({"algorithm": ["LR", "a|b"], "r": ["0.50", "–"]})}
    return Report.of(page, "Title <1>", ["Notice.", "Best predictor: LR."], frames)


def test_a_report_is_the_path_of_its_page(report, tmp_path):
    assert report == tmp_path / "report.html"
    assert isinstance(report, Path)
    assert os.fspath(report) == str(tmp_path / "report.html")
    assert report.read_text(encoding="utf-8") == "page"
    assert report.path == report
    assert type(report.path) is type(tmp_path)
    assert report.parent == tmp_path
    assert (report.parent / "x").name == "x"


def test_its_tables_are_copies_and_a_wrong_name_lists_them(report):
    table = report.frame("headline")
    table.loc[0, "r"] = "1"
    assert report.frame("headline")["r"].tolist() == ["0.50", "–"]
    with pytest.raises(ValueError, match=r"no table 'skil' in .*; choose from headline"):
        report.frame("skil")


def test_markdown_has_title_sentences_table_and_page(report):
    lines = report.markdown().splitlines()
    assert lines[0] == "# Title <1>"
    assert "Best predictor: LR." in lines
    assert lines[-4:] == ["| LR | 0.50 |", "| a\\|b | – |", "", "[report.html](report.html)"]
    assert "| --- | --- |" in lines


def test_notebooks_show_sentences_and_table(report):
    html = report._repr_html_()
    assert "Title &lt;1&gt;" in html
    assert "Best predictor: LR." in html
    assert html.count("<tr>") == 3
