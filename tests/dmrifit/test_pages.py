"""The shell of the pages."""

import pytest
from markupsafe import Markup
from matplotlib.figure import Figure

from dmrifit.pages import html_figure, html_grid, html_note, html_page, html_table, png_bytes


def test_text_is_escaped_and_markup_is_not():
    page = html_page("a & b", [("x < y", "<i>text</i>"), ("", Markup("<i>markup</i>"))], lead="<lead>")
    for expected in ("a &amp; b", "x &lt; y", "&lt;i&gt;text", "<i>markup</i>", "&lt;lead&gt;"):
        assert expected in page
    assert page.count("<h2>") == 1
    assert page.startswith("<!DOCTYPE html>")
    assert 'name="viewport"' in page


def test_tables_escape_their_cells_and_align_numbers():
    table = html_table([["<a>", 1.5], ["b", 2]], ["name", "value"], numbers=[1])
    assert "<td>&lt;a&gt;</td>" in table
    assert '<td class="number">1.5</td>' in table
    assert '<th class="number">value</th>' in table
    assert "<thead>" not in html_table([["a"]])


def test_figures_stand_in_the_page_at_half_their_pixels():
    png = png_bytes(Figure(figsize=(2, 1)), dpi=100)
    figure = html_figure(png, 'say "x"', "b < 50")
    assert 'width="100"' in figure
    assert "say &#34;x&#34;" in figure
    assert "b &lt; 50" in figure
    assert 'width="7"' in html_figure(png, "", width=7)
    assert html_grid([figure, figure]).count("<img") == 2


def test_code_is_escaped_and_keeps_its_lines():
    from dmrifit.pages import html_code

    assert html_code("if b < 1:\n    return S0") == "<pre>if b &lt; 1:\n    return S0</pre>"


def test_notes_are_escaped():
    assert html_note("a < b") == '<p class="note">a &lt; b</p>'


def test_a_page_of_nothing_is_a_page():
    assert html_page("empty", []).rstrip().endswith("</html>")
    assert isinstance(html_table([]), Markup)
    with pytest.raises(TypeError):
        html_page()
