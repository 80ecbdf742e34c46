"""The fits of real scans: halves of readings, what a test and retest says, and the stored result."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.fitting import bench_people_fits as fits
from dmrifit import Protocol


def test_halves_share_only_what_was_measured_once():
    protocol = Protocol([0, 500, 500, 500, 0, 500], [50, 50, 50, 50, 80, 80])
    first, second = fits.halves(protocol)
    assert first.tolist() == [0, 1, 3, 4, 5]
    assert second.tolist() == [0, 2, 4, 5]


def test_a_spread_as_large_as_the_standard_error_has_the_ratio_one():
    rng = np.random.default_rng(4)
    errors = rng.uniform(0.5, 2, (20000, 1))
    visits = []
    for _ in range(2):
        values = 10 + errors * rng.normal(size=errors.shape)
        visit = SimpleNamespace(names=("D",), parameters=values, standard_errors=errors)
        visits.append(visit)
    labels = np.repeat([1, 2], 10000)
    row = fits.retest(visits, labels)[0]
    assert row["ratio_to_standard_error"] == pytest.approx(1, abs=0.03)
    medians = np.array([[np.median(v.parameters[labels == one]) for v in visits] for one in (1, 2)])
    wcv = medians.std(axis=1, ddof=1) / medians.mean(axis=1)
    assert row["wcv_regions"] == pytest.approx(np.sqrt((wcv**2).mean()), abs=1e-4)


def test_the_stored_result_is_as_physics_demands_and_its_picture_is_there():
    result = json.loads(fits.RESULT.read_text(encoding="utf-8"))
    assert result["leg"]["shape"] == [160, 160, 25, 42]
    assert len(result["leg"]["muscles"]) == 14
    assert all(goal["met"] for goal in result["goals"])
    assert all(row["largest_slice_median"] <= 0.01 for row in result["oil"])
    picture = fits.RESULT.with_name(result["picture"]).read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert 50_000 < len(picture) < 300_000
