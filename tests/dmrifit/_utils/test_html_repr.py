"""What notebooks show in place of a line: small tables whose text cannot be anything but text."""

from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from dmrifit import MODELS, Cohort, Evaluation, Protocol, fit_voxels
from dmrifit._utils.html_repr import MOST_ROWS, InlinePage, html_summary
from placement import Voxel

PLANTED = "<script>alert('x')</script>\"&<b>"


class Shown(HTMLParser):
    """Read HTML as a browser does: which elements there are, and the text of cells."""

    def __init__(self, html):
        super().__init__()
        self.opened, self.closed, self.rows, self.words = [], [], [], ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.opened.append(tag)
        assert all(name == "style" for name, _ in attrs)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self.closed.append(tag)

    def handle_data(self, data):
        self.words += data
        inside = len([tag for tag in self.opened if tag in ("td", "th")]) > len(
            [tag for tag in self.closed if tag in ("td", "th")]
        )
        if inside:
            self.rows[-1][-1] += data


def shown(value):
    """Read what a notebook shows, and check that it is plain and whole."""
    page = Shown(value if isinstance(value, str) else value._repr_html_())
    assert set(page.opened) <= {"div", "p", "strong", "small", "table", "thead", "tbody", "tr", "th", "td"}
    assert sorted(page.opened) == sorted(page.closed)
    assert len({len(row) for row in page.rows}) == 1
    return page


def scores(name="LR"):
    """A table of scores of two patients."""
    rows = [
        ("cohort1", patient, "s2s", algorithm, "same", 3, 0, metric, bias, dispersion, r)
        for patient in ("p1", "p2")
        for algorithm, dispersion in ((name, 0.1), ("RFR", 0.3))
        for metric, bias, r in (("S0", 9.0, 0.0), ("Dt", -0.2, 0.5), ("K", 0.4, 0.9))
    ]
    columns = ["cohort", "patient", "strategy", "algorithm", "train_on", "n_train", "repeat"]
    columns += ["metric", "bias", "dispersion", "pearson"]
    return pd.DataFrame(rows, columns=columns)


def test_a_protocol_is_shown_by_echo_time():
    page = shown(Protocol([0, 0, 500, 1000, 0, 500], [60, 60, 60, 60, 90, 90], name="mine"))
    assert "Protocol mine: 6 measurements" in page.words
    assert page.rows[1:] == [["60", "0 (2×), 500, 1000", "4"], ["90", "0, 500", "2"]]
    assert shown(Protocol([0, 1000])).rows[1:] == [["–", "0, 1000", "2"]]


def test_a_fit_of_a_region_prints_in_one_line():
    protocol = Protocol([0, 300, 600, 1000])
    signals = MODELS["adc"].signal([[100.0, 1.0], [200.0, 2.0], [300.0, 3.0]], protocol)
    result = fit_voxels(np.vstack([signals, np.zeros((1, 4))]), protocol, "adc")
    assert repr(result) == (
        "<FitResult of adc: 4 voxels: 3 converged, 1 not fitted; medians without doubts S0 200 a.u., ADC 2 µm²/ms>"
    )
    assert repr(fit_voxels(np.zeros((1, 4)), protocol, "adc")) == (
        "<FitResult of adc: 1 voxel: 1 not fitted; medians without doubts S0 – a.u., ADC – µm²/ms>"
    )


def test_a_cohort_is_shown_by_protocol_and_its_table_by_array():
    protocol = Protocol([0, 300, 600, 1000])
    signals = MODELS["adc"].signal(np.column_stack([np.full(600, 100.0), np.linspace(0.5, 2, 600)]), protocol)
    patients = [f"p{i % 60:02d}" for i in range(600)]
    cohort = Cohort.from_signals(signals, protocol, patients, name=PLANTED)
    page = shown(cohort)
    assert f"Cohort {PLANTED!r}: 60 patients" in page.words
    assert page.rows[1:] == [["60", "60", repr(protocol)]]
    cohort.skipped = {"p99": "no image"}
    assert "skipped: 1 patient of the table" in shown(cohort).words
    table = cohort.arrays(protocol.take([0, 3]), scale=None)
    page = shown(table)
    assert "VoxelTable: 600 voxels of 60 patients" in page.words
    assert [row[:2] for row in page.rows[1:]] == [
        ["X", "(600, 2)"],
        ["Y", "(600, 4)"],
        ["groups", "(600,)"],
        ["sigma", "–"],
        ["scale", "(600,)"],
    ]
    assert page.rows[3][2] == "patients p00 … p59"
    assert repr(table) == "<VoxelTable: 600 voxels of 60 patients, X (600, 2), Y (600, 4)>"
    with_noise = Cohort.from_signals(signals, protocol, patients, sigma=0.5)
    with_noise = with_noise.arrays(protocol, scale=None)
    assert shown(with_noise).rows[4] == ["sigma", "(600,)", "median 0.5"]


def test_a_page_in_a_frame_is_one_line_of_plain_letters_that_means_the_page():
    page = "<!DOCTYPE html>\n<p title='µ'>5 > 3 &amp; \"x\"</p>\n"
    frame = InlinePage(page)
    text = frame._repr_html_()
    assert text.isascii()
    assert "\n" not in text
    assert 'sandbox="allow-scripts"' in text

    class Frame(HTMLParser):
        def handle_starttag(self, tag, attrs):
            assert dict(attrs)["srcdoc"] == page

    parser = Frame()
    parser.feed(text)
    assert parser.get_starttag_text().startswith("<iframe")
    assert repr(frame) == "<page of 0 kB; a notebook shows it; .html is its text>"


def test_an_evaluation_is_shown_like_its_headline_or_in_one_line_of_text():
    page = shown(Evaluation(scores(), pd.DataFrame()))
    assert "'cohort1' of 2 patients" in page.words
    assert page.rows[1:] == [
        ["same", "3", "cohort1", "s2s", "LR", "–", "–", "30.0", "10.0", "0.70"],
        ["same", "3", "cohort1", "s2s", "RFR", "–", "–", "30.0", "30.0", "0.70"],
    ]
    assert len(shown(Evaluation(scores().iloc[:0], pd.DataFrame())).rows) == 1
    # In the order of the scores, whatever the dispersion, and to the last row.
    names = [f"A{i}" for i in range(MOST_ROWS)]
    page = shown(Evaluation(pd.concat([scores("ETR").assign(dispersion=1.0), *map(scores, names)]), pd.DataFrame()))
    assert [row[4] for row in page.rows[1:]] == ["ETR", "RFR", *names]
    study = {"cohorts": {"cohort1": {"synthetic": True}}}
    evaluation = Evaluation(scores(), pd.DataFrame(), study)
    assert repr(evaluation) == "<Evaluation: synthetic 'cohort1' of 2 patients; LR, RFR; 12 scores>"
    assert "Evaluation: synthetic 'cohort1' of 2 patients" in shown(evaluation).words
    measured = Evaluation(scores(), pd.DataFrame())
    assert "synthetic" not in repr(measured) + measured._repr_html_()


def test_a_voxel_is_shown_in_millimeters_and_milliliters():
    page = shown(Voxel((1, -2.5, 30), (20, 20, 30), (0, 10, -0.001)))
    assert "Voxel of 12.00 mL" in page.words
    assert page.rows[1:] == [
        ["center, mm RAS+", "1.00", "-2.50", "30.00"],
        ["sides, mm", "20.00", "20.00", "30.00"],
        ["angles, degrees", "0.00", "10.00", "0.00"],
    ]


@pytest.mark.parametrize("place", ["title", "header", "cell", "note"])
def test_no_text_becomes_an_element(place):
    texts = {"title": "t", "header": "h", "cell": "c", "note": "n"} | {place: PLANTED}
    page = shown(html_summary(texts["title"], [texts["header"]], [[texts["cell"]]], note=texts["note"]))
    assert PLANTED in page.words


def test_long_tables_are_cut_and_say_so():
    page = shown(html_summary("many", ["n"], [[i] for i in range(MOST_ROWS + 5)]))
    assert len(page.rows) == MOST_ROWS + 1
    assert "5 more rows" in page.words
