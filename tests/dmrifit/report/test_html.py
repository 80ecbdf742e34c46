"""The shell of the pages."""

import pytest
from markupsafe import Markup
from matplotlib.figure import Figure

from dmrifit.report.html import (
    decimals,
    html_columns,
    html_details,
    html_figure,
    html_grid,
    html_heading,
    html_join,
    html_lines,
    html_note,
    html_page,
    html_paragraph,
    html_table,
    png_bytes,
    synthetic_note,
    whole,
)


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


def test_rows_of_controls_are_faint_and_sentences_keep_a_width():
    table = html_table([["a", "long text"], ["b", "more"]], ["name", "text"], words=[1], faint=[1])
    assert table.count('<tr class="control">') == 1
    assert '<tr class="control"><td>b</td>' in table
    assert '<td class="words">long text</td>' in table
    assert 'class="prose"' in table
    assert 'class="prose"' not in html_table([["a"]])


def test_contents_link_to_the_sections_that_have_a_heading():
    page = html_page("title", [("", "lead"), ("First", "1"), ("", "between"), ("Second <b>", "2")], contents=True)
    assert '<a href="#s1">First</a>' in page
    assert '<a href="#s2">Second &lt;b&gt;</a>' in page
    assert page.index('id="s1"') < page.index("<h2>First") < page.index('id="s2"') < page.index("<h2>Second")
    assert "<nav>" not in html_page("title", [("First", "1")])


def test_parts_of_a_page_are_escaped():
    assert html_paragraph("a < b") == "<p>a &lt; b</p>"
    assert html_heading("a < b") == "<h3>a &lt; b</h3>"
    assert html_lines("a <", "b") == "a &lt;<br>b"
    assert html_join([html_heading("x"), "<i>"]) == "<h3>x</h3>&lt;i&gt;"
    assert html_details("a <", html_paragraph("b")) == "<details><summary>a &lt;</summary><p>b</p></details>"


def test_figures_stand_in_the_page_at_half_their_pixels():
    png = png_bytes(Figure(figsize=(2, 1)), dpi=100)
    figure = html_figure(png, 'say "x"', "b < 50")
    assert 'width="100"' in figure
    assert "say &#34;x&#34;" in figure
    assert "b &lt; 50" in figure
    assert 'width="7"' in html_figure(png, "", width=7)
    assert html_grid([figure, figure]).count("<img") == 2


def test_code_is_escaped_and_keeps_its_lines():
    from dmrifit.report.html import html_code

    assert html_code("if b < 1:\n    return S0") == "<pre>if b &lt; 1:\n    return S0</pre>"


def test_notes_are_escaped():
    assert html_note("a < b") == '<p class="note">a &lt; b</p>'


def test_halves_of_a_screen_are_escaped():
    assert html_columns(["a <", html_note("b")]) == (
        '<div class="columns"><div>a &lt;</div><div><p class="note">b</p></div></div>'
    )


def test_numbers_in_tables_have_a_true_minus_sign():
    assert [decimals(2)(value) for value in (-0.5, 0.25, float("nan"))] == ["−0.50", "0.25", "–"]
    assert whole(-3.4) == "−3"


def test_a_page_of_nothing_is_a_page():
    assert html_page("empty", []).rstrip().endswith("</html>")
    assert isinstance(html_table([]), Markup)
    with pytest.raises(TypeError):
        html_page()


def test_what_was_simulated_is_said_with_its_number():
    assert synthetic_note(0, 3) == ""
    assert synthetic_note(2, 3).startswith("Synthetic data: 2 of 3 scans were simulated; no person was scanned")
    assert "all cases were simulated" in synthetic_note(3, 3, "case")
    assert "this case was simulated" in synthetic_note(1, 1, "case")


def test_paper_says_which_folds_it_leaves_out(tmp_path, tab):
    path = tmp_path / "page.html"
    folds = html_details("a", "b") + Markup("<details open><summary>c</summary>d</details>")
    path.write_text(html_page("title", [("", folds)]), encoding="utf-8")
    page = tab.open(path)
    read = "[...document.querySelectorAll('summary')].map((one) => getComputedStyle(one, '::after').content)"
    assert page.evaluate(read) == ["none", "none"]
    page.emulate_media(media="print")
    assert page.evaluate(read) == ['" (folded: not printed)"', "none"]
