"""The figures of a report: names of their files, pictures in the page, all of them as vectors."""

import base64
import re

import pytest

from dmrifit.report.figure_gallery import Gallery
from dmrifit.report.style import add_axes, new_figure


def drawing(width=2.0, height=1.0, title="A"):
    figure = new_figure(width, height)
    add_axes(figure, 0.5, 0.3, width - 1, height - 0.6).set_title(title)
    return figure


def size_of(png):
    """Width and height in pixels, from the header of a PNG file."""
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


@pytest.fixture
def gallery():
    return Gallery()


def test_a_figure_is_kept_under_its_name_and_shown_in_the_page(gallery):
    shown = gallery.show("maps_a", drawing(), "Maps of a", "Caption")
    (png,) = gallery.pictures.values()
    assert list(gallery.pictures) == ["maps_a.png"]
    assert size_of(png) == (360, 180)
    assert base64.b64encode(png).decode() in shown
    assert 'alt="Maps of a"' in shown
    assert "Caption" in shown
    # On a screen of 100 pixels for an inch, whatever the resolution of the file.
    assert re.search(r"width(=\"|: ?)200\b", shown)


def test_texts_are_escaped(gallery):
    shown = gallery.show("a", drawing(), 'a"<b>', "<script>")
    assert "<script>" not in shown
    assert 'a"<b>' not in shown


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("ranks_A<1>_s2s", "ranks_A-1-_s2s.png"),
        ("../a/b c", "-a-b-c.png"),
        ("Dt+K-2", "Dt+K-2.png"),
        ("größe", "größe.png"),
    ],
)
def test_letters_that_files_do_not_have_become_dashes(gallery, name, file):
    gallery.show(name, drawing(), "")
    assert list(gallery.pictures) == [file]


def test_names_that_look_alike_as_files_stay_apart(gallery):
    for title, name in (("A", "a b"), ("B", "a/b"), ("C", "a:b")):
        gallery.show(name, drawing(title=title), title)
    assert list(gallery.pictures) == ["a-b.png", "a-b-2.png", "a-b-3.png"]
    assert len(set(gallery.pictures.values())) == 3


def test_all_figures_are_pages_of_one_file_with_the_same_bytes_each_time(gallery):
    for name, width in (("a", 2), ("b", 3)):
        gallery.show(name, drawing(width), "")
    pdf = gallery.vectors()
    assert pdf.startswith(b"%PDF")
    boxes = re.findall(rb"/MediaBox \[ 0 0 (\d+) (\d+) \]", pdf)
    # In points, 72 for an inch, in the order of the report.
    assert boxes == [(b"144", b"72"), (b"216", b"72")]
    assert b"CreationDate" not in pdf
    assert gallery.vectors() == pdf
