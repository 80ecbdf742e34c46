"""The page holds tables, controls, figures and scans, refers to nothing outside, and says what is synthetic."""

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from anomaly.scans.detection import lesions_of, mean_over_scans
from anomaly.study.contestants import CONTROLS
from anomaly.study.report import STORED, write_evaluation
from dmrifit.report.numerals import significant


def test_the_page_of_a_comparison_is_whole(compared, tmp_path):
    options = {"healthy": compared.healthy, "healthy_maps": compared.healthy_maps}
    tables = write_evaluation(compared.cases, compared.maps, tmp_path, figures=1, **options)
    page = (tmp_path / "report.html").read_text(encoding="utf-8").replace("&#39;", "'")
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    for words in (*CONTROLS, "healthy rate", "near cortex", "Where lesions grow later", "not for clinical use"):
        assert words in page
    assert "all scans were simulated; no person was scanned" in page
    # False positives of so few scans have no intervals.
    rates = tables["healthy"].query("method == 'sharp' and rule == 'healthy rate'")["false_positive_rate"]
    assert np.isnan(mean_over_scans(rates)[1:]).all()
    assert f"{100 * rates.mean():.1f} % marked, " in page
    assert "nan to nan" not in page
    # Examples, rules, coverage, densities, places; a scan and a healthy one by two methods.
    assert page.count("<img ") == 5 + 2 * 2
    stored = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.DOTALL).group(1))
    # The viewer starts in the largest part of the lesion.
    shown = next(case for case in compared.cases if f"Synthetic scan {case.name}" in page.partition("<canvas")[0])
    largest = lesions_of(shown.lesion, shown.lesion * 1.0, shown.affine).iloc[0]
    np.testing.assert_allclose(stored["start"], largest[["x", "y", "z"]].astype(float))
    for kind in tables:
        assert len(pd.read_csv(tmp_path / f"{kind}.csv")) == len(tables[kind])
    with pytest.raises(FileExistsError, match="overwrite"):
        write_evaluation(compared.cases, compared.maps, tmp_path)


def test_the_answer_is_that_of_the_stored_threshold(compared, tmp_path):
    def with_stored(maps):
        return maps | {f"dull $x_1${STORED}": [np.asarray(values) > 0.12 for values in maps["dull $x_1$"]]}

    options = {"healthy": compared.healthy, "healthy_maps": with_stored(compared.healthy_maps), "figures": 1}
    tables = write_evaluation(compared.cases, with_stored(compared.maps), tmp_path, **options)
    answer = (tmp_path / "report.html").read_text(encoding="utf-8").partition("<img ")[0]
    # Not the best map, but the best of those whose threshold was set before.
    dice = tables["scans"].query(f"method == 'dull $x_1${STORED}'").groupby("patient")["dice_opened"].mean().mean()
    assert f"dull $x_1$ at its stored threshold marks regions whose overlap with the lesions (Dice) is {dice:.2f}" in answer
    volumes = tables["healthy"].query(f"method == 'dull $x_1${STORED}'")["n_found_opened"] * 4.0**3 / 1000
    assert f"marks {significant(volumes.median(), 2)} mL by mistake (median; at most {significant(volumes.max(), 2)} mL)" in answer


def test_a_browser_shows_the_answer_first_and_nothing_wider_than_the_window(compared, tmp_path, tab):
    write_evaluation(
        compared.cases, compared.maps, tmp_path, healthy=compared.healthy, healthy_maps=compared.healthy_maps
    )
    page = tab.open_at_every_width(tmp_path / "report.html")
    assert tab.size()[1] <= 10_000
    assert tab.is_on_first_screen(page.get_by_text("marks regions whose overlap with the lesions"))
    assert tab.is_on_first_screen(page.locator("img").first)
    assert page.locator("img:not([alt]), img[alt='']").count() == 0
    # Rules for thresholds are behind a fold.
    assert not page.get_by_text("Youden", exact=False).first.is_visible()


def test_masks_without_healthy_scans_make_a_page_and_real_scans_are_not_called_synthetic(compared, tmp_path):
    change = {"synthetic": False, "kind": "", "followup": None}
    cases = [replace(case, name=f"case {i}", **change) for i, case in enumerate(compared.cases[:2])]
    cases.append(replace(cases[1], name="case 2", patient="another", lesion=None))
    write_evaluation(cases, {"mask": [case.brain for case in cases]}, tmp_path, figures=1)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "are over 2 patients with a lesion in white or gray matter (left out: case 2, without a lesion there);" in page
    assert "ynthetic" not in page
    assert page.count(">Scores<") == page.count("the best") == 0
    assert not (tmp_path / "densities.png").exists()
