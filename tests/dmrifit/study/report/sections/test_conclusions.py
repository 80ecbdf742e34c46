"""Tests between algorithms as a report tabulates and draws them, beside those of scipy."""

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from dmrifit.stats.method_tests import holm
from dmrifit.study.comparison import Evaluation
from dmrifit.study.report.sections.answer import statistics_tables
from dmrifit.study.summaries import Board

ALGORITHMS = "LR", "RFR", "ETR"
TWO_DRAWS = {"settings": {"n_repeats": 2}}


@pytest.fixture(scope="module")
def dispersions():
    """DI of six patients by three algorithms: the third is worse in every patient."""
    rng = np.random.default_rng(3)
    return rng.uniform(0.1, 0.3, (6, 1)) + rng.uniform(0, 0.05, (6, 3)) + np.array([0, 0, 0.2])


@pytest.fixture(scope="module")
def board(make_evaluation, dispersions):
    rows = []
    for (i, j), dispersion in np.ndenumerate(dispersions):
        keys = {"patient": f"p{i}", "algorithm": ALGORITHMS[j], "bias": -dispersion / 2}
        rows.append(keys | {"dispersion": dispersion})
        # Trained on other cohorts, all three are alike on average.
        mixed = 0.4 + 0.01 * ((i + j) % 3)
        rows.append(keys | {"dispersion": mixed, "bias": mixed, "train_on": "other"})
    for i in range(6):
        rows.append({"patient": f"p{i}", "algorithm": "constant"})
    return Board(make_evaluation(rows, study=TWO_DRAWS))


@pytest.fixture(scope="module")
def section(board, make_reader):
    """Text, tables and figures of the section."""
    read = make_reader()
    blocks, tables = statistics_tables(board)
    html = read(blocks)
    return html, tables, read.figures


def p_text(p):
    """Write a p-value with two digits."""
    return f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def test_friedmans_test_of_each_index_is_that_of_scipy(section, html_tables, dispersions):
    html, tables, _ = section
    header, rows = html_tables(html).table("Trained on the same cohort; body → lesion, N = 3")
    assert header[:7] == ["index", "cohort", "strategy", "parameters", "patients", "Friedman p", "Kendall's W"]
    result = stats.friedmanchisquare(*dispersions.T)
    coefficient = result.statistic / (6 * (3 - 1))
    assert [row[0] for row in rows] == ["DI", "|BI|"]
    for row in rows:
        assert row[1:7] == ["A", "s2s", "all", "6", p_text(result.pvalue), f"{coefficient:.2f}"]
    verdicts = tables["statistics_dispersion_equivalence"].query("train_on == 'same'")["verdict"]
    # Of 6 patients no signed-rank p is below 2/64, and Holm's correction of 3 pairs triples the least one.
    assert rows[0][7] == "too few patients"
    assert rows[0][8] == f"{int((verdicts == 'equivalent').sum())} of 3"
    assert [row[11] for row in html_tables(html).table("All pairs, DI")[1]] == verdicts.tolist()
    # Other ways of training are left to the files.
    assert set(tables["statistics_dispersion_pairs"]["train_on"]) == {"same", "other"}
    assert "other ways of training are in the folder tables" in html


def test_pairs_are_tested_by_wilcoxon_with_holms_correction(section, html_tables, dispersions):
    _, rows = html_tables(section[0]).table("All pairs, DI")
    p = {}
    for row in rows:
        a, b = (dispersions[:, ALGORITHMS.index(name)] for name in row[3:5])
        p[tuple(row[3:5])] = stats.wilcoxon(a, b).pvalue
        assert row[5:8] == [f"{100 * a.mean():.0f}", f"{100 * b.mean():.0f}", row[7]]
        median = 100 * np.median(a - b)
        number = float(row[7].replace("−", "-"))
        assert number == pytest.approx(median, abs=0.51 if abs(median) > 9.94 else 0.051)
    assert {frozenset(pair) for pair in p} == {frozenset(pair) for pair in combinations(ALGORITHMS, 2)}
    assert [row[8] for row in rows] == [p_text(value) for value in holm([p[tuple(row[3:5])] for row in rows])]


def test_the_stability_of_ranks_is_tabulated_and_said_in_words(section, html_tables, dispersions):
    html, tables, _ = section
    _, rows = html_tables(html).table("Stability of ranks by DI")
    averages = stats.rankdata(dispersions, axis=1).mean(axis=0)
    assert [row[2] for row in rows] == [ALGORITHMS[i] for i in np.argsort(averages)]
    assert rows[-1][2:5] == ["ETR", "3.00", "3 (3 … 3)"]
    first = tables["statistics_dispersion_ranks"].query("train_on == 'same' and place == 1").iloc[0]
    assert rows[0][5] == f"{100 * first['share_first']:.0f}"
    name = first["algorithm"]
    other = {"LR": "RFR", "RFR": "LR"}[name]
    assert (
        f"A, s2s: {name} ranks first, and in {rows[0][5]} % of the resamples of 6 patients too; "
        f"not told apart from {other}" in html
    )


def rows_of(n_patients, algorithms=("LR", "RFR")):
    patients = [f"p{i}" for i in range(n_patients)]
    return [{"patient": patient, "algorithm": name, "skill": 0.5} for patient in patients for name in algorithms]


@pytest.mark.parametrize(("n_patients", "study", "reason"), [
    (2, TWO_DRAWS, "2 patients (with fewer than 6, no signed-rank test can reach p &lt; 0.05)"),
    (6, {}, "One random choice of training patients and seeds"),
    (5, {}, "--repeats) and 5 patients"),
])  # fmt: skip
def test_one_seed_or_few_patients_give_no_verdicts_and_the_reason_is_named(
    make_evaluation, read, html_tables, n_patients, study, reason
):
    evaluation = make_evaluation(rows_of(n_patients), study=study)
    blocks, tables = statistics_tables(Board(evaluation))
    html = read(blocks)
    assert reason in html
    assert "no verdicts" in html
    assert html_tables(html).tables == []
    assert not read.figures
    # Who knows better finds the tests in files.
    assert tables["statistics_best"].iloc[0, :2].tolist() == ["LR s2s", "RFR s2s"]
    (test,) = tables["statistics_dispersion_equivalence"].to_dict("records")
    assert [test["verdict"], test["reason"]] == ["undecided", Board(evaluation).undecided]


def test_algorithms_without_differences_or_a_missing_library_are_named(make_evaluation, read, html_tables, monkeypatch):
    board = Board(make_evaluation(rows_of(6), study=TWO_DRAWS))
    html = read(statistics_tables(board)[0])
    _, table = html_tables(html).table("Trained on the same cohort")
    assert table[0][5] == "–"
    assert "(DI of A s2s, |BI| of A s2s)" in html
    assert not read.figures
    assert "other ways of training" not in html

    def missing(self, **options):
        msg = 'statsmodels is not installed; to install it: pip install "dmrifit[stats]"'
        raise ImportError(msg)

    monkeypatch.setattr(Evaluation, "statistics", missing)
    blocks, tables = statistics_tables(board)
    assert "pip install &#34;dmrifit[stats]&#34;" in read(blocks)
    assert tables == {}


def test_no_test_that_is_shown_averages_t2v(make_evaluation, make_reader, dispersions, html_tables):
    rows = []
    for (i, j), dispersion in np.ndenumerate(dispersions):
        for metric, factor in (("Dt", 1.0), ("K", 2.0), ("T2v", -9.0)):
            keys = {"patient": f"p{i}", "algorithm": ALGORITHMS[j], "metric": metric, "bias": 0.1}
            rows.append(keys | {"dispersion": factor * dispersion})
    read = make_reader()
    blocks, _ = statistics_tables(Board(make_evaluation(rows, study=TWO_DRAWS)))
    page = read(blocks)
    assert "the mean over Dt, K" in page
    _, shown = html_tables(page).table("All pairs, DI")
    assert {row[2] for row in shown} == {"without T2v"}
    pair = next(row for row in shown if row[2:5] == ["without T2v", "LR", "ETR"])
    assert float(pair[6]) == pytest.approx(150 * dispersions[:, 2].mean(), abs=0.51)
    assert "ranks_dispersion_A_s2s" in read.figures
