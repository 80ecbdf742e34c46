"""The pages hold tables, controls, curves and overlays, refer to nothing outside, and say what is synthetic."""

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from dmrifit import lesion_table
from dmrifit.report.style import FOUND, OUTLINES, REFERENCE, UNSURE
from metastasis import SensitivitySpecificityEnsemble, write_evaluation
from metastasis.cli.case_runs import RUN, scans_of, segment_case
from metastasis.study.controls import CONTROLS
from metastasis.study.plotting import place_to_show

EVIL = "<script>alert(1)</script>"


@pytest.fixture
def found(brightness, synthetic_cases):
    scans = scans_of(synthetic_cases)
    both = SensitivitySpecificityEnsemble(brightness(2.5), brightness(4))
    masks = {"masks": scans["masks"]}
    return {
        f"bright {EVIL}": brightness(3).predict_proba(scans["volumes"], **masks),
        "ensemble": both.predict(scans["volumes"], **masks),
    }


def test_the_page_of_a_comparison_is_whole(found, synthetic_cases, tmp_path):
    options = {"figures": 2, "n_bootstrap": 20, "command": f"evaluate {EVIL}", "random_state": 0}
    tables = write_evaluation(synthetic_cases, found, tmp_path, **options)
    page = (tmp_path / "report.html").read_text(encoding="utf-8").replace("&#39;", "'")
    assert EVIL not in page
    assert "alert(1)" in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    told = ("ensemble, marked by both", "expected calibration error", "not for clinical use", "outside the working")
    for words in (*told, *CONTROLS, "all scans were simulated; no person was scanned", "they are no performance"):
        assert words in page
    # Without lesions there is no F1, and the fewest wrong findings are best.
    free = replace(synthetic_cases[0], label=np.zeros_like(synthetic_cases[0].label), lesions=None)
    write_evaluation([free], {"much": [free.brain], "nothing": [free.label], "none": [free.label]}, tmp_path / "free", n_bootstrap=0)
    assert "Best of 3 methods by wrong findings, the same as none: nothing" in (tmp_path / "free" / "report.html").read_text("utf-8")
    # The strip, curves, calibration, and two scans by each method.
    assert page.count("<img ") == 3 + 2 * len(found)
    # Each figure, and the heading and the name of the planes.
    assert page.count("Synthetic scan ") == 2 * len(found) + 2
    stored = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.DOTALL).group(1))
    # The viewer starts where the first picture is, and every lesion of the reference can be gone to.
    chosen = next(case for case in synthetic_cases if f"Synthetic scan {case.name}" in page.partition("<canvas")[0])
    values = next(iter(found.values()))[synthetic_cases.index(chosen)]
    np.testing.assert_allclose(stored["start"], place_to_show(chosen, values >= 0.5)[0])
    assert len(stored["points"]) == 1 + (lesion_table(chosen.label, chosen.label)["kind"] == "lesion").sum()
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    # Families are curves over trainings, which a comparison of given predictions has none of.
    for kind in tables.keys() - {"families"}:
        assert len(pd.read_csv(tmp_path / f"{kind}.csv")) == len(tables[kind])
    summary = pd.read_csv(tmp_path / "summary.csv").query("part == 'all'").set_index("method")
    scores = tables["summary"].query("part == 'all'").set_index("method")
    assert summary.loc["ensemble", "n_found"] == scores.loc["ensemble", "n_found"]
    with pytest.raises(FileExistsError, match="overwrite"):
        write_evaluation(synthetic_cases, found, tmp_path)


def test_a_browser_shows_the_answer_first_and_nothing_wider_than_the_window(found, synthetic_cases, tmp_path, tab):
    named = dict(zip(("sensitive model", "ensemble"), found.values(), strict=True))
    write_evaluation(synthetic_cases, named, tmp_path, n_bootstrap=20, random_state=0)
    page = tab.open_at_every_width(tmp_path / "report.html")
    assert tab.size()[1] <= 10_000
    assert tab.is_on_first_screen(page.get_by_text("Best of"))
    assert tab.is_on_first_screen(page.locator("img").first)
    assert page.locator("img").first.get_attribute("alt").startswith("What became of each lesion")
    assert page.locator("img:not([alt]), img[alt='']").count() == 0
    # Figures that marking everything wins are behind a fold.
    assert page.get_by_text("precision (strict)").first.is_visible()
    assert not page.get_by_text("mDSC", exact=True).first.is_visible()


def test_masks_alone_have_no_calibration_and_real_scans_are_not_called_synthetic(synthetic_cases, tmp_path):
    cases = [replace(case, synthetic=False, name=f"case {case.name[-1]}") for case in synthetic_cases[:2]]
    masks = {name: [np.asarray(case.label) for case in cases] for name in ("mask", "pair")}
    write_evaluation(cases, masks, tmp_path, figures=1, n_bootstrap=0, threshold={"pair": None})
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "ynthetic" not in page
    assert ">Probabilities<" not in page
    assert not (tmp_path / "calibration.png").exists()
    # Nothing is marked by both models of the pair.
    assert "<td>pair, marked by both" in page
    assert '"marked by both"]' in page


def test_the_page_gives_froc_intervals_over_patients_or_says_why_there_are_none(synthetic_cases, brightness, tmp_path):
    cases = [replace(case, patient=f"{case.patient} {i}") for case in synthetic_cases for i in range(2)]
    scans = scans_of(cases)
    found = brightness(3).predict_proba(scans["volumes"], masks=scans["masks"])
    pages = {}
    for name, n in (("six", 6), ("four", 4)):
        write_evaluation(cases[:n], {"bright": found[:n]}, tmp_path / name, figures=1, n_bootstrap=50)
        pages[name] = (tmp_path / name / "report.html").read_text(encoding="utf-8")
    score = pd.read_csv(tmp_path / "six" / "areas.csv").set_index("name").loc["bright"]
    assert f"{score['froc']:.3f} ({score['froc_low']:.3f} to {score['froc_high']:.3f})" in pages["six"]
    row = pd.read_csv(tmp_path / "six" / "froc.csv").iloc[-1]
    interval = f"({row['strict_sensitivity_low']:.2f} to {row['strict_sensitivity_high']:.2f})"
    assert f"{row['strict_sensitivity']:.2f} {interval}" in pages["six"]
    assert "Bars: 95 % intervals" in pages["six"]
    assert "No intervals" not in pages["six"]
    assert "No intervals: they need five patients or more, not 4." in pages["four"]
    assert not re.search("Bars: 95 % intervals|95 % interval ", pages["four"])


def test_the_page_of_a_run_lists_the_lesions_of_each_scan(brightness, synthetic_cases, tmp_path, tab):
    named = [replace(synthetic_cases[0], patient=EVIL), replace(synthetic_cases[1], prior=None)]
    both = SensitivitySpecificityEnsemble(brightness(2.5), brightness(4))
    scans = [(named[0], ("no bright vessels", "is this a contrast scan?")), (named[1], ())]
    options = {"segmenter": both, "figure": True, "figures": {}}
    contents = [segment_case(scan, tmp_path / scan[0].name, **options) for scan in scans]
    RUN.write(tmp_path, {content["folder"]: content for content in contents}, figure=True)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert EVIL not in page
    words = re.findall(r'<td class="words">(.*?)</td>', page)
    assert words[1:5:3] == ["No bright vessels. Is this a contrast scan?", "none"]  # between names and patients
    assert tab.open(tmp_path / "index.html", 390).get_by_text("No bright").first.bounding_box()["width"] > 150  # px
    assert page.count("<img ") == 2
    lesions = pd.read_csv(tmp_path / "lesions.tsv", sep="\t")
    assert all(heading in page for heading in (">by both models<", "marked, mL", "with cores, mL"))
    assert page.count("<td>marked by both</td>") == (lesions["finding"] == "marked by both").sum()
    assert "all scans were simulated" in page
    # Vanished lesions have no number, and no open ring.
    assert "since the prior scan" in page
    assert "–, open ring" not in page
    links = re.findall(r'href="([^"#]+)"', page)
    assert links == [f"./{content['folder']}/view.html" for content in contents]
    for link, case in zip(links, named, strict=True):
        view = (tmp_path / link).read_text(encoding="utf-8")
        assert EVIL not in view
        assert case.name in view
        assert "this scan was simulated" in view
        stored = json.loads(re.search(r'<script type="application/json">(.*?)</script>', view, re.DOTALL).group(1))
        assert {"scan", "probability", "segmentation"} <= {layer["name"] for layer in stored["layers"]}
        assert stored["layers"][-2]["names"] == ["candidate", "marked by both models"]
        # As in the picture.
        colors = [OUTLINES[k] for layer in stored["layers"][-2:] for k in layer["colors"]]
        assert colors == [UNSURE, FOUND, REFERENCE]
        own = lesions[(lesions["name"] == case.name) & (lesions["finding"] != "prior only")]
        np.testing.assert_allclose(stored["points"], own[["x", "y", "z"]], atol=1e-5)
        # Numbered as in the table and in DICOM, not by their order on the page.
        for number, volume in zip(own["number"], own["volume_mL"], strict=True):
            assert f"{number}: {volume:.3f} mL marked" in view
            assert re.search(rf"<td[^>]*>{number}</td>\s*<td[^>]*>{volume:.3f}", view)
            assert re.search(rf"<td[^>]*>{number}</td>\s*<td[^>]*>{volume:.3f}", page)
