"""The page holds tables, controls, figures and scans, refers to nothing outside, and says what is synthetic."""

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from anomaly.scans.detection import lesions_of
from anomaly.study.controls import CONTROLS
from anomaly.study.report import KINDS, write_evaluation

EVIL = "<script>alert(1)</script>"


def test_the_page_of_a_comparison_is_whole(compared, tmp_path):
    def renamed(maps):
        return {f"sharp {EVIL}": maps["sharp"]}

    tables = write_evaluation(
        [replace(case, name=f"{case.name} {EVIL}") for case in compared.cases],
        renamed(compared.maps),
        tmp_path,
        healthy=compared.healthy,
        healthy_maps=renamed(compared.healthy_maps),
        figures=1,
        command=f"evaluate {EVIL}",
    )
    page = (tmp_path / "report.html").read_text(encoding="utf-8").replace("&#39;", "'")
    assert EVIL not in page
    assert "alert(1)" in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    for words in (*CONTROLS, "healthy rate", "near cortex", "Where lesions grow later", "not for clinical use"):
        assert words in page
    assert "all scans were simulated; no person was scanned" in page
    assert "they are no performance" in page
    assert page.count("<img ") == 4 + 2
    assert page.count('class="viewer"') == 1
    stored = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.DOTALL).group(1))
    # The viewer starts in the largest part of the lesion.
    shown = next(case for case in compared.cases if f"Synthetic scan {case.name}" in page.partition("<canvas")[0])
    largest = lesions_of(shown.lesion, shown.lesion * 1.0, shown.affine).iloc[0]
    np.testing.assert_allclose(stored["start"], largest[["x", "y", "z"]].astype(float))
    for kind in KINDS:
        assert len(pd.read_csv(tmp_path / f"{kind}.csv")) == len(tables[kind])
    assert (tmp_path / "densities.png").stat().st_size > 5_000
    assert page.count("By all rules") == 4
    with pytest.raises(FileExistsError, match="overwrite"):
        write_evaluation(compared.cases, compared.maps, tmp_path)


def test_masks_without_healthy_scans_make_a_page_and_real_scans_are_not_called_synthetic(compared, tmp_path):
    cases = [replace(case, synthetic=False, name=f"case {i}", kind="", followup=None)
             for i, case in enumerate(compared.cases[:2])]  # fmt: skip
    write_evaluation(cases, {"mask": [case.lesion for case in cases]}, tmp_path, figures=1)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "ynthetic" not in page
    assert ">Scores<" not in page
    assert not (tmp_path / "densities.png").exists()
