"""What fits found: columns by name, a summary for notebooks, one voxel for lmfit."""

import re

import numpy as np
import pytest

from dmrifit import MODELS, Protocol, fit_voxels
from dmrifit.engine.results import FitResult

PROTOCOL = Protocol([0, 30, 60, 100, 200, 400, 600, 900, 1200])
ADC = np.array([0.8, 1.0, 1.2, 3.0, np.nan])


@pytest.fixture
def result():
    """Give a fit of five voxels as it might have ended: one at its bound, one not fitted."""
    s0 = np.array([10.0, 20, 30, 40, np.nan])
    at_high = np.zeros((5, 2), bool)
    at_high[3, 1] = True
    return FitResult(
        model=MODELS["adc"],
        parameters=np.stack([s0, ADC], axis=1),
        standard_errors=np.array([[1.0, 0.1], [1, 0.2], [1, 0.4], [np.inf, np.nan], [np.nan, np.nan]]),
        cost=np.array([1.0, 2, 3, 4, np.nan]),
        status=np.array([0, 0, 2, 1, 3], np.uint8),
        n_iter=np.arange(5, dtype=np.int32),
        at_low=np.zeros((5, 2), bool),
        at_high=at_high,
        starts_disagree=np.zeros(5, bool),
        bounds=((0.0, np.inf), (0.0, 3.0)),
    )


def test_columns_are_found_by_name(result):
    np.testing.assert_array_equal(result["ADC"], ADC)
    np.testing.assert_array_equal(result["S0"][:4], [10, 20, 30, 40])
    assert result.names == ("S0", "ADC")
    assert len(result) == 5
    with pytest.raises(KeyError, match="model adc has no parameter 'Dt'; it has S0, ADC"):
        result["Dt"]


def cells(page):
    rows = re.findall(r"<tr>(.*?)</tr>", page)
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in rows]


def test_a_notebook_shows_quartiles_errors_and_bounds_of_the_voxels_that_were_fitted(result):
    page = result._repr_html_()
    header, s0, adc = cells(page)
    assert header == ["parameter", "unit", "median", "quartiles", "median standard error", "at a bound"]
    assert s0 == ["S0", "signal", "25", "17.5 to 32.5", "1", "0.0%"]
    assert adc == ["ADC", "µm²/ms", "1.1", "0.95 to 1.65", "0.2", "25.0%"]
    assert "Fit of adc: 5 voxels" in page
    assert "2 converged, 1 at bound, 1 not converged, 1 not fitted" in page


def test_a_notebook_shows_a_fit_of_nothing():
    empty = fit_voxels(np.zeros((1, 9)), PROTOCOL, "adc", fixed={"S0": 100.0})
    page = empty._repr_html_()
    assert cells(page)[1] == ["S0 (fixed)", "signal", "–", "–", "–", "–"]
    assert "Fit of adc: 1 voxel<" in page
    assert "1 not fitted" in page
