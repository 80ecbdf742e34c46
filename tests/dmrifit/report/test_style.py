"""The look that pages and figures share: colors, contrast, shapes, headings, legends."""

import re

import numpy as np
import pytest

from dmrifit.report import page, style
from dmrifit.report.style import add_axes, color_of, head, new_figure, plain_ticks, shared_style

SEVEN = ["LR", "RFR", "ETR", "GBR", "slNN", "mlNN", "CNN"]


def spread(color):
    """Distance between the strongest and the weakest of red, green and blue."""
    channels = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return max(channels) - min(channels)


def test_the_seven_algorithms_of_a_study_have_seven_colors():
    colors = [color_of(name, SEVEN) for name in SEVEN]
    assert len(set(colors)) == 7
    assert min(spread(color) for color in colors) > 60


def test_a_name_with_dollar_signs_is_drawn_as_it_is():
    with shared_style({}):
        figure = new_figure(3, 2)
        head(add_axes(figure, 0.5, 0.5, 2, 1), r"a$\frac{$b")
        figure.draw_without_rendering()
    assert figure.axes[0].get_title(loc="left") == r"a$\frac{$b"


def test_a_heading_stands_above_its_notes():
    figure = new_figure(4, 3)
    with shared_style({}):
        axes = add_axes(figure, 0.5, 0.5, 3, 1)
        head(axes, "title\nnote\nmore")
    figure.draw_without_rendering()
    title = axes._left_title.get_window_extent()
    note = axes.texts[0].get_window_extent()
    assert title.y0 >= note.y1 - 1
    assert note.y0 >= axes.get_window_extent().y1


def test_ticks_of_logarithmic_axes_are_plain_numbers():
    axes = add_axes(new_figure(4, 3), 0.5, 0.5, 3, 2)
    axes.set(xscale="log", xlim=(1, 100))
    plain_ticks(axes.xaxis, (1, 2, 5))
    inside = [tick for tick in axes.xaxis.get_majorticklocs() if 1 <= tick <= 100]
    np.testing.assert_allclose(inside, [1, 2, 5, 10, 20, 50, 100])
    assert axes.xaxis.get_major_formatter()(20.0, 0) == "20"
    assert len(axes.xaxis.get_minorticklocs()) == 0


def luminance(color):
    """Relative luminance of WCAG 2.2."""
    shares = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(first, second):
    darker, lighter = sorted((luminance(first), luminance(second)))
    return (lighter + 0.05) / (darker + 0.05)


def tokens(mode):
    """Colors by name as a browser reads them: those of the dark replace those by day."""
    light, dark = re.findall(r":root \{ color-scheme(.*?)\}", page.read_data(page.__file__, "page.css"), re.S)
    colors = dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", light))
    return colors | dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", dark)) if mode == "dark" else colors


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("background", ["paper", "panel"])
@pytest.mark.parametrize("text", ["ink", "faint", "control", "link", "good", "warn", "bad"])
def test_letters_have_the_contrast_of_wcag_aa(text, background, mode):
    colors = tokens(mode)
    assert contrast(colors[text], colors[background]) >= 4.5


def test_pages_and_figures_share_one_palette():
    html = page.Page("title", [page.Section("", page.Table([["a"]]))]).html()
    colors = tokens("light")
    assert set(re.findall(r"var\(--(\w+)\)", html)) <= {*colors, "sans", "mono", "te", "hue"}
    assert not re.search(r"#[0-9a-f]{3,6}", re.search(r"body \{(.*?)\}", html, re.S)[1])
    assert all(getattr(style, name.upper()) == colors[name] for name in ("ink", "faint", "link", "warn", "good", "line"))
    drawn = re.findall(r"color: (\w{6})", page.read_data(page.__file__, "figures.mplstyle"))
    assert {f"#{color}" for color in drawn} == {style.INK, style.FAINT, "#e4e8ed"}
