"""The report of a comparison: complete, self-contained, honest about its data, equal to its tables."""

import os
import re

import browser
import numpy as np
import pandas as pd
import pytest

from dmrifit import (
    MODELS,
    Cohort,
    Evaluation,
    Protocol,
    Scan,
    SignalToSignal,
    compare,
    learning_curve,
    simulate_cohort,
    write_report,
)
from dmrifit.study.report.reporting import Report
from dmrifit.study.summaries import matching

TISSUE = ["f", "Dv", "T2v", "Dt", "K", "T2t"]


@pytest.fixture(scope="module")
def evaluation():
    cohorts = [simulate_cohort("cohort1", 4, name=name, shape=(16, 16, 3), random_state=0) for name in ("A<1>", "B")]
    options = {"algorithms": ("LR", "RFR"), "train_on": ("same", "other"), "max_voxels": 40, "random_state": 0}
    return learning_curve(cohorts, sizes=(1, 3), **options)


@pytest.fixture(scope="module")
def folder(evaluation, tmp_path_factory):
    return write_report(evaluation, tmp_path_factory.mktemp("report")).parent


@pytest.fixture(scope="module")
def page(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tables(html_tables, page):
    return html_tables(page)


@pytest.fixture(scope="module")
def small():
    """One cohort, one algorithm, one size, nothing kept, no controls."""
    cohort = simulate_cohort("cohort2", 2, shape=(12, 12, 2), random_state=0)
    options = {"max_voxels": 30, "controls": False, "keep_predictions": False, "random_state": 0}
    return compare({"mine": SignalToSignal("LR")}, cohort, **options)


def test_the_page_needs_no_other_file_calls_data_synthetic_and_escapes_names(page, folder):
    assert not re.search(r"""src\s*=\s*["'](?!data:)""", page)
    links = re.findall(r"""href\s*=\s*["'](?!#)([^"']*)""", page)
    assert links
    assert all((folder / link).is_file() for link in links)
    assert not re.search(r"https?://|@import|url\(", page)
    assert page.count("data:image/png;base64,") == len(list((folder / "figures").glob("*.png")))
    assert len(page) < 8e6
    assert page.index("Research software; not for clinical use. Synthetic data") < page.index("<h2>")
    assert "4 synthetic patients of A&lt;1&gt; and 4 synthetic patients of B" in page
    assert "A<1>" not in page


def test_every_kind_of_figure_is_there(folder, evaluation):
    names = sorted(path.stem for path in (folder / "figures").glob("*.png"))
    assert {name for name in names if name.startswith("answer")} == {
        "answer_maps", "answer_sites", "answer_sizes", "answer_skill"
    }  # fmt: skip
    assert {"predictors_A-1-", "predictors_B", "parameters_A-1-", "parameters_B", "other_sites", "learning",
            "truth", "maps_A-1-", "maps_B"} <= set(names)  # fmt: skip
    assert len([name for name in names if name.startswith("decays")]) == 2 * 2
    assert len([name for name in names if name.startswith("joint")]) == len(TISSUE) + 1
    assert len([name for name in names if name.startswith("signal_errors")]) == 2


def test_every_number_of_the_comparison_can_be_read_from_files_beside_the_page(folder, evaluation):
    names = {path.name for path in folder.iterdir()}
    assert {"report.html", "summary.csv", "figures", "tables", "predictions"} <= names
    pd.testing.assert_frame_equal(Evaluation.read(folder).scores, evaluation.scores, check_exact=True)
    assert (folder / "figures" / "figures.pdf").read_bytes().startswith(b"%PDF")
    tests = {path.name for path in (folder / "tables").iterdir()}
    assert {"statistics_dispersion_pairs.csv", "statistics_abs_bias_equivalence.csv"} <= tests
    assert {"skill.csv", "parameters.csv", "learning.csv", "signals_by_contrast.csv"} <= tests


def test_a_report_can_be_written_again_over_itself_and_leaves_nothing_old(small, tmp_path):
    first = write_report(small, tmp_path).read_bytes()
    vectors = (tmp_path / "figures" / "figures.pdf").read_bytes()
    (tmp_path / "figures" / "of_an_earlier_report.png").write_bytes(b"")
    (tmp_path / "tables" / "of_an_earlier_report.csv").write_text("")
    assert write_report(small, tmp_path).read_bytes() == first
    assert (tmp_path / "figures" / "figures.pdf").read_bytes() == vectors
    assert not list(tmp_path.rglob("of_an_earlier_report*"))


@pytest.mark.parametrize("train_on", ["same", "other"])
@pytest.mark.parametrize("cohort", ["A<1>", "B"])
def test_the_table_of_skill_is_that_of_the_scores(folder, evaluation, random_study, train_on, cohort):
    table = pd.read_csv(folder / "tables" / "skill.csv")
    rows = matching(table, train_on=train_on, cohort=cohort, parameters="tissue")
    assert rows["algorithm"].tolist().count("perfect") == 2
    assert len(rows) == 2 * (2 + 6)
    averaged = [name for name in TISSUE if name != "T2v"]
    for row in rows.to_dict("records"):
        keys = {"train_on": train_on, "cohort": cohort, "n_train": 3}
        own = matching(evaluation.scores, **keys, strategy=row["strategy"], algorithm=row["algorithm"])
        assert len(own) == 4 * 7
        written = [row["abs_bias"], row["dispersion"], row["pearson"]]
        np.testing.assert_allclose(written, random_study.means(own, averaged), rtol=1e-6)  # seven digits


def test_four_patients_and_one_seed_give_skill_without_intervals_and_verdicts(tables, page):
    _, rows = tables.table("All tables", "Skill with intervals")
    assert all(re.fullmatch(r"[-−]?\d+\.\d\d", row[6]) for row in rows)
    assert not [title for title, _ in tables.tables if "Evidence" in title]
    assert "One random choice of training patients and seeds (more with n_repeats, --repeats)" in page
    assert "Best predictor" not in page


def test_measured_patients_without_truth_are_not_called_synthetic(small, tmp_path):
    unknown = {name: np.nan for name in small.scores.columns if name.endswith(("_truth", "_independent"))}
    study = {**small.study, "cohorts": {
        name: {**cohort, "synthetic": False, "simulation": None} for name, cohort in small.study["cohorts"].items()
    }}  # fmt: skip
    measured = Evaluation(small.scores.assign(**unknown), small.signals, study)
    text = write_report(measured, tmp_path).read_text(encoding="utf-8")
    assert "ynthetic" not in re.sub(r"<details>.*?</details>", "", text, flags=re.DOTALL)
    assert "Truth beside reference" not in text
    assert not re.search(r">\s*nan\b", text)


def test_a_protocol_without_echo_times_and_a_model_of_its_own_make_a_page(tmp_path):
    rng = np.random.default_rng(0)
    protocol = Protocol([0, 100, 400, 800, 1500, 2500])
    scans = []
    for k in range(3):
        parameters = np.column_stack([np.full(60, 500.0), rng.uniform(0.6, 2, 60), rng.uniform(0.3, 1.2, 60)])
        signals = MODELS["kurtosis"].signal(parameters, protocol) + rng.normal(0, 3, (60, 6))
        inside = np.ones((5, 4, 3), bool)
        scans.append(Scan(f"p{k}", signals.reshape(5, 4, 3, 6), protocol, inside, np.diag([2, 2, 5, 1]), lesion=inside))
    estimators = {"LR s2s": SignalToSignal("LR", source=protocol.take([0, 2, 3]), target=protocol, model="kurtosis")}
    result = compare(estimators, Cohort(scans, "mine"), random_state=0)
    text = write_report(result, tmp_path).read_text(encoding="utf-8")
    assert not re.search("Synthetic data|synthetic patients|[(]synthetic[)]", text)
    assert (tmp_path / "figures" / "maps_mine.png").is_file()
    assert len(list((tmp_path / "figures").glob("decays_mine_*.png"))) == 2
    assert not re.search(r">\s*nan\b", text)


def test_scores_alone_and_a_patient_that_nothing_can_be_said_of_make_a_page(small, tmp_path):
    bare = Evaluation(small.scores, small.signals.iloc[:0], {})
    text = write_report(bare, tmp_path).read_text(encoding="utf-8")
    assert "Unseen signals" not in text
    assert "Other cohort" not in text
    assert "does not say which cohorts" in text
    undefined = "bias", "dispersion", "pearson", "spearman", "skill", "skill_independent", "absolute_skill"
    nothing = small.scores.assign(**dict.fromkeys(undefined, np.nan))
    text = write_report(Evaluation(nothing, small.signals, small.study), tmp_path).read_text(encoding="utf-8")
    assert "No algorithm was scored" in text
    assert not re.search(r">\s*nan\b", text)


def test_several_comparisons_are_laid_beside_each_other(small, html_tables, tmp_path):
    settings = small.study["settings"]
    study = {**small.study, "settings": {**settings, "seed": 7, "train_mask": "lesion"}}
    second = Evaluation(small.scores.assign(skill_independent=np.nan), small.signals, study)
    text = write_report([small, second], tmp_path).read_text(encoding="utf-8")
    _, rows = html_tables(text).table("Comparisons side by side")
    assert [row[1] for row in rows] == ["body → lesion, N = 1, seed 0", "lesion → lesion, N = 1, seed 7"]
    assert [row[6].endswith(", independent") for row in rows] == [True, False]


@pytest.mark.parametrize("what", ["no row", "no evaluation"])
def test_an_empty_comparison_has_no_report(small, tmp_path, what):
    empty = Evaluation(small.scores.iloc[:0], small.signals.iloc[:0], {})
    with pytest.raises(ValueError, match="no score"):
        write_report(empty if what == "no row" else [], tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_report_is_an_object_too(small, tmp_path):
    report = write_report(small, tmp_path)
    assert report == tmp_path / "report.html"
    pd.testing.assert_frame_equal(report.frame("headline"), small.headline())
    assert set(report.frame("parameters")["parameters"]) >= {"S0", *TISSUE}
    assert report.markdown().startswith("# Prediction of the advanced protocol")
    assert "The only predictor: mine, signals to signals." in report._repr_html_()


@pytest.fixture
def opened(folder, tab):
    return tab.open(folder / "report.html", height=1000)


def test_the_first_screen_answers(opened, tab):
    verdict = opened.locator(".verdict")
    assert verdict.inner_text().startswith("Highest map skill, independent: ")
    assert tab.is_on_first_screen(verdict)
    for alt in ("Skill of", "reference, prediction and error", "cohorts trained on", "number of training patients"):
        assert tab.is_on_first_screen(opened.locator(f'img[alt*="{alt}"]').first), alt
    notes = opened.locator(".columns .note")
    assert notes.count() == 3
    assert all(tab.is_on_first_screen(notes.nth(i)) for i in range(3))


@pytest.mark.parametrize("width", browser.WIDTHS)
def test_nothing_is_wider_than_the_screen(folder, tab, width):
    page = tab.open(folder / "report.html", width)
    assert tab.size()[0] <= width
    # Tables in folds are measured, too.
    page.evaluate("document.querySelectorAll('details').forEach((fold) => { fold.open = true; })")
    assert tab.size()[0] <= width
    wider = page.evaluate(
        "[...document.querySelectorAll('table')].map((table) => table.getBoundingClientRect())"
        ".filter((box) => box.right > document.documentElement.clientWidth + 1).length"
    )
    if width > 1000:
        assert wider == 0
    fades = "(box.scrollWidth > box.clientWidth) === (getComputedStyle(box).maskImage !== 'none')"
    assert page.evaluate(f"[...document.querySelectorAll('.scroll, .wide')].every((box) => {fades})")


def test_the_page_is_ten_screens_and_fourteen_sheets_at_most(opened, tab):
    assert tab.size()[1] <= 10_000
    sheets = opened.pdf(prefer_css_page_size=True, print_background=True)
    assert sheets.startswith(b"%PDF")
    n_sheets = len(re.findall(rb"/Type\s*/Page\b(?!s)", sheets))
    assert 2 <= n_sheets <= 14
    opened.emulate_media(media="print")
    opened.set_viewport_size({"width": 703, "height": 1000})  # A4 without its margins, at 96 pixels an inch
    assert tab.size()[0] <= 703


@pytest.fixture
def report(tmp_path):
    page = tmp_path / "report.html"
    page.write_text("page", encoding="utf-8")
    frames = {"headline": pd.DataFrame({"algorithm": ["LR", "a|b"], "r": ["0.50*", "–"]})}
    return Report.of(page, "Title <1>", ["Notice.", "Best predictor: LR."], frames)


def test_a_report_is_the_path_of_its_page_with_markdown_and_copies_of_its_tables(report, tmp_path):
    assert report == report.path == tmp_path / "report.html"
    assert os.fspath(report) == str(tmp_path / "report.html")
    assert report.read_text(encoding="utf-8") == "page"
    assert (report.parent / "x").name == "x"
    table = report.frame("headline")
    table.loc[0, "r"] = "1"
    with pytest.raises(ValueError, match=r"no table 'skil' in .*; choose from headline"):
        report.frame("skil")
    report.notes = ("* some", "maps")
    lines = report.markdown().splitlines()
    assert lines[0] == "# Title <1>"
    assert "Best predictor: LR." in lines
    assert lines[-9:-5] == ["| --- | --- |", "| LR | 0.50* |", "| a\\|b | – |", ""]
    assert lines[-5:-2] == [r"\* some", "", "maps"]
    assert lines[-2:] == ["", "[report.html](report.html)"]
