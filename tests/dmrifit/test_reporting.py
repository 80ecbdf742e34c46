"""The report of a comparison: complete, self-contained, honest about its data."""

import re

import numpy as np
import pandas as pd
import pytest

from dmrifit import Evaluation, MapsToMaps, Protocol, SignalToSignal, compare, simulate_cohort, write_report
from dmrifit.reporting import summarize


@pytest.fixture(scope="module")
def evaluation():
    protocol = Protocol.preset("cohort1")
    cohorts = [simulate_cohort(protocol, 2, name=name, shape=(16, 16, 3), random_state=0) for name in ("A<1>", "B")]
    estimators = {
        "LR s2s": SignalToSignal("LR"),
        "constant s2s": SignalToSignal("constant"),
        "LR m2m": MapsToMaps("LR"),
    }
    return compare(estimators, cohorts, train_on=("same", "other"), max_voxels=40, random_state=0)


@pytest.fixture(scope="module")
def folder(evaluation, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write_report(evaluation, folder)
    return folder


@pytest.fixture(scope="module")
def page(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_page_needs_no_other_file_and_no_network(page):
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!data:)""", page)
    assert not re.search(r"https?://|@import|url\(", page)
    assert page.count("data:image/png;base64,") == 1 + 2 * 2 * 2 + 2


def test_synthetic_data_are_called_synthetic_at_the_top(page, evaluation, tmp_path):
    assert page.index("Synthetic data") < page.index("<h2>")
    measured = {name: {**cohort, "synthetic": False} for name, cohort in evaluation.study["cohorts"].items()}
    real = Evaluation(evaluation.scores, evaluation.signals, {**evaluation.study, "cohorts": measured})
    assert "ynthetic data." not in write_report(real, tmp_path).read_text(encoding="utf-8")


def test_every_number_of_the_comparison_can_be_read_from_files_beside_the_page(folder, evaluation):
    names = {path.name for path in folder.iterdir()}
    figures = {"bias_dispersion.png", "signal_errors_A-1-.png", "signal_errors_B.png"}
    assert names == {"report.html", "scores.csv", "signals.csv", "summary.csv", "study.json", *figures}
    back = Evaluation.read(folder)
    pd.testing.assert_frame_equal(back.scores, evaluation.scores, check_exact=True)
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in figures)


def test_names_of_users_are_escaped(page):
    assert "A<1>" not in page
    assert "A&lt;1&gt;" in page


def test_the_page_tells_settings_seed_versions_and_controls(page):
    for text in (
        "constant",
        "max voxels",
        "seed",
        "version of numpy",
        "trained on",
        "µm²/ms",
        "s/mm²",
        "T2t",
        "at a bound",
    ):
        assert text in page


def test_the_summary_is_the_mean_over_patients_of_tissue_parameters(evaluation):
    row = summarize(evaluation).iloc[0]
    scores = evaluation.scores
    for key in ("train_on", "cohort", "strategy", "algorithm"):
        scores = scores[scores[key] == row[key]]
    assert row["n_patients"] == 2
    patients = []
    for _, own in scores.groupby("patient"):
        tissue = own[own["metric"] != "S0"]
        assert len(tissue) == 6
        patients.append([np.mean(np.abs(tissue["bias"])), np.mean(tissue["dispersion"]), np.mean(tissue["pearson"])])
    expected = np.mean(patients, axis=0)
    np.testing.assert_allclose(row[["abs_bias", "dispersion", "pearson"]].to_numpy(dtype=float), expected, rtol=1e-12)
    np.testing.assert_allclose(row["abs_bias_sd"], np.std(patients, axis=0, ddof=1)[0], rtol=1e-12)
    rest = scores[~scores["metric"].isin(["S0", "T2v"])]
    assert len(rest) == 2 * 5
    expected = np.mean(np.abs(rest["bias"])), np.mean(rest["dispersion"]), np.mean(rest["pearson"])
    found = [row[f"{name}_without_T2v"] for name in ("abs_bias", "dispersion", "pearson")]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_constant_has_no_correlation_in_the_summary(evaluation):
    summary = summarize(evaluation)
    constant = summary["algorithm"] == "constant"
    assert (summary.loc[constant, "pearson"] == 0).all()
    assert (summary.loc[~constant, "pearson"] != 0).all()


def test_the_smallest_dispersions_stand_at_the_top(evaluation, page):
    table = page[: page.index("</table>")]
    summary = summarize(evaluation)
    rows = re.findall(r"<tr><td>(A&lt;1&gt;|B)</td>(.*?)</tr>", table)
    assert len(rows) == 4
    for cohort, row in rows:
        cells = re.findall(r"<td[^>]*>(.*?)</td>", row)
        regime = {"the same cohort": "same", "other cohorts": "other"}[cells[0]]
        own = summary[(summary["cohort"] == cohort.replace("&lt;", "<").replace("&gt;", ">"))
                      & (summary["train_on"] == regime)]  # fmt: skip
        learners = own[own["algorithm"] != "constant"].sort_values("dispersion").iloc[0]
        assert cells[1] == f"{learners['algorithm']} {learners['strategy']}"
        assert float(cells[2]) == pytest.approx(100 * learners["dispersion"], abs=0.51)
        assert cells[5] == "constant s2s"


def test_a_report_can_be_written_again_over_itself(evaluation, folder, page):
    write_report(evaluation, folder)
    assert (folder / "report.html").read_text(encoding="utf-8") == page


def test_one_cohort_without_lesions_of_others_makes_a_page_too(tmp_path):
    cohort = simulate_cohort("cohort2", 2, shape=(12, 12, 2), random_state=0)
    result = compare({"mine": SignalToSignal("LR")}, cohort, max_voxels=30, random_state=0)
    text = write_report(result, tmp_path).read_text(encoding="utf-8")
    assert "From one cohort to another" not in text
    assert "cohort2" in text


def test_an_empty_comparison_has_no_report(evaluation, tmp_path):
    empty = Evaluation(evaluation.scores.iloc[:0], evaluation.signals.iloc[:0], {})
    with pytest.raises(ValueError, match="no score"):
        write_report(empty, tmp_path)
