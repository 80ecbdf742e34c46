"""The commands run after each other, go on where they stopped, and name what is wrong in one line."""

import json
import re

import numpy as np
import pandas as pd
import pytest


def test_cases_are_simulated_placed_and_evaluated(output_of, tmp_path):
    cases, placed, tables = (tmp_path / name for name in ("cases", "placed", "tables"))
    assert f"3 synthetic cases: {cases / 'cases.tsv'}" in output_of("simulate", 3, "--out", cases, "--spacing", 4)
    out = output_of("place", cases / "cases.tsv", "--out", placed)
    assert all(words in out for words in (f"3 cases placed: {placed}", "synthetic cases: no clinical result"))
    found = pd.read_csv(placed / "placements.tsv", sep="\t")
    assert list(found["name"]) == ["synthetic-001", "synthetic-002", "synthetic-003"]
    page = (placed / "index.html").read_text(encoding="utf-8")
    assert "Not for clinical use. Synthetic data: all cases were simulated; no person was scanned" in page
    for _, row in found.iterrows():
        assert f'href="./{row["name"]}/voxel_view.html"' in page
        view = (placed / row["name"] / "voxel_view.html").read_text(encoding="utf-8")
        stored = json.loads(re.search(r'<script type="application/json">(.*?)</script>', view, re.DOTALL).group(1))
        np.testing.assert_allclose(stored["points"][0], row[["x", "y", "z"]].astype(float), atol=1e-6)
        (box,) = stored["boxes"]
        volume = abs(np.linalg.det(np.array(box["affine"])[:, :3])) / 1000
        assert volume == pytest.approx(row["volume_mL"])
        assert "Not for clinical use. Synthetic data: this case was simulated; no person was scanned" in view
    out = output_of(
        *("evaluate", cases / "cases.tsv", cases / "experts.tsv"),
        *("--placements", f"objective={placed / 'placements.tsv'}", "--out", tables),
    )
    assert all(words in out for words in ("objective", "synthetic cases: no clinical result"))
    measured = pd.read_csv(tables / "cases.csv").query("method == 'objective'")
    np.testing.assert_allclose(measured["volume"], found["volume_mL"])
    np.testing.assert_allclose(measured["f_tumor"], found["tumor_fraction"])
