"""Pages as data: what the reader sees of texts, tables, pictures and folds, and the files beside a page."""

import base64
import re

import numpy as np
import pandas as pd
import pytest
from markupsafe import Markup
from matplotlib.figure import Figure

from dmrifit.report.page import (
    Fold,
    Numbers,
    Page,
    Picture,
    Section,
    Table,
    Texts,
    png_bytes,
    report_files,
    sentence,
    write_files,
)  # fmt: skip
from dmrifit.report.style import add_axes, new_figure


def drawing(width=2.0, height=1.0, title="A"):
    figure = new_figure(width, height)
    add_axes(figure, 0.5, 0.3, width - 1, height - 0.6).set_title(title)
    return figure


def shown(tab, tmp_path, *blocks, width=1000):
    """Open a page of blocks in a browser."""
    path = tmp_path / "page.html"
    path.write_text(Page("title", [Section("", *blocks)]).html(), encoding="utf-8")
    return tab.open(path, width)


def test_text_is_escaped_and_markup_is_not():
    sections = [Section("x < y", "<i>text</i>"), Section("", Markup("<i>markup</i>"))]
    page = Page("a & b", sections, "<lead>").html()
    for expected in ("a &amp; b", "x &lt; y", "&lt;i&gt;text", "<i>markup</i>", "&lt;lead&gt;"):
        assert expected in page
    assert page.count("<h2>") == 1
    assert page.startswith("<!DOCTYPE html>")
    assert 'name="viewport"' in page


def test_sentences_have_the_minus_signs_of_tables_but_for_values_of_options():
    assert sentence("x from -1.5 to -.2 in scan-1 (--at -2 -3)") == "X from −1.5 to −.2 in scan-1 (--at -2 -3)."


def test_cells_are_the_values_of_records_by_the_formats_of_their_columns(tab, tmp_path):
    rows = pd.DataFrame(
        {"name": ["<a>", "b"], "x": [-1.256, np.nan], "x_low": [-2.0, np.nan], "x_high": [0.5, np.nan], "n": [3, 4]}
    )
    table = Table(rows, "name {name} | value {x:.2f} | with interval {x:.1i} | of {n:.0f} in {x:.1s}")
    page = shown(tab, tmp_path, table)
    assert page.locator("th").all_inner_texts() == ["name", "value", "with interval", "of"]
    assert page.locator("td").all_inner_texts() == [
        *("<a>", "−1.26", "−1.3 (−2.0 to 0.5)", "3 in −1"),
        *("b", "–", "–", "4 in –"),
    ]
    aligned = page.evaluate(
        "[...document.querySelectorAll('td')].slice(0, 4).map((x) => getComputedStyle(x).textAlign)"
    )
    assert aligned == ["left", "right", "right", "right"]


def test_figures_are_a_hundred_pixels_for_an_inch_whatever_the_resolution_of_the_file(tab, tmp_path):
    file = png_bytes(Figure(figsize=(3, 1)), dpi=100)
    page = shown(
        tab, tmp_path, Picture(drawing(), 'say "x"', "b < 50"), Picture(file, "f"), Picture(file, "g", width=7)
    )
    images = page.locator("img")
    assert [images.nth(i).bounding_box()["width"] for i in range(3)] == [200, 150, 7]
    assert images.first.get_attribute("alt") == 'say "x"'
    assert page.get_by_text("b < 50").is_visible()


# Files beside a page --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("ranks_A<1>_s2s", "ranks_A-1-_s2s.png"), ("../a/b c", "-a-b-c.png"), ("Dt+K-2", "Dt+K-2.png"),
        ("größe", "größe.png"),
    ],
)
def test_letters_that_files_do_not_have_become_dashes(name, file):
    page = Page("title", [Section("", Fold("in a fold", Picture(drawing(), "a", name=name)))])
    assert list(page.pictures) == [file]
    assert base64.b64encode(page.pictures[file].png).decode() in page.html()


def test_names_that_look_alike_as_files_stay_apart():
    pictures = [
        Picture(drawing(title=title), title, name=name)
        for title, name in zip("ABC", ("a b", "a/b", "a:b"), strict=True)
    ]
    page = Page("title", [Section("", *pictures), Section("", Picture(drawing(), "no file"))])
    assert list(page.pictures) == ["a-b.png", "a-b-2.png", "a-b-3.png"]
    assert len({picture.png for picture in page.pictures.values()}) == 3


def test_all_figures_are_pages_of_one_file_with_the_same_bytes_each_time():
    page = Page(
        "title", [Section("", *(Picture(drawing(width), name, name=name) for name, width in (("a", 2), ("b", 3))))]
    )
    pdf = page.vectors()
    assert pdf.startswith(b"%PDF")
    boxes = re.findall(rb"/MediaBox \[ 0 0 (\d+) (\d+) \]", pdf)
    # In points, 72 for an inch, in the order of the report.
    assert boxes == [(b"144", b"72"), (b"216", b"72")]
    assert b"CreationDate" not in pdf
    assert page.vectors() == pdf


def test_tables_and_named_pictures_are_written_with_the_page(tmp_path):
    table = pd.DataFrame({"x": [1.5, float(np.float32(0.3))]})
    names = ["x.csv", "a.png", "not made.png"]
    with report_files(tmp_path, names) as write:
        page = Page("title", [Section("a", Numbers("x", table), Picture(drawing(), "a", name="a"))])
        write({"x": table, "y": table}, page)
    assert {path.name for path in tmp_path.iterdir()} == {"x.csv", "a.png", "report.html"}
    assert (tmp_path / "x.csv").read_text() == "x\n1.5\n0.3\n", "no digits that float32 never had"
    # Before the evaluation, which may take hours.
    with pytest.raises(FileExistsError, match="overwrite"), report_files(tmp_path, names):
        pytest.fail("evaluated")


def test_files_of_an_earlier_report_are_removed(tmp_path):
    write_files(tmp_path / "a", {})
    assert not (tmp_path / "a").exists()
    write_files(tmp_path, {"old.csv": "1", "notes.txt": "2"})
    write_files(tmp_path, {"new.csv": b"3"}, replaced=("csv",))
    assert {path.name for path in tmp_path.iterdir()} == {"new.csv", "notes.txt"}


def test_texts_of_a_page_are_those_of_the_file_beside_its_module(tmp_path):
    (tmp_path / "data").mkdir()
    text = 'found = "{n} of {total:.1f}"\ncurve.alt = "by {method}"\n'
    (tmp_path / "data" / "report.toml").write_text(text, encoding="utf-8")
    texts = Texts(str(tmp_path / "report.py"))
    assert texts["found"] == "{n} of {total:.1f}"
    assert texts("found", n=1, total=2) == "1 of 2.0"
    picture = texts.picture("curve", b"", method="{LR}")
    assert (picture.name, picture.alt, picture.caption) == ("curve", "by {LR}", "")
