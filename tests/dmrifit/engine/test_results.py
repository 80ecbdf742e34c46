"""What fits found: columns by name, a summary for notebooks, one voxel for lmfit."""

import html
import re

import numpy as np
import pytest

from dmrifit import MODELS, Protocol, fit_voxels
from dmrifit.engine.results import FitResult, FitStatus

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


def test_a_notebook_shows_quartiles_errors_and_bounds_of_the_voxels_that_were_fitted_or_nothing(result):
    page = result._repr_html_()
    header, s0, adc = cells(page)
    assert header[2:5] == ["median without doubts", "median, with doubts", "quartiles"]
    assert s0 == ["S0", "a.u.", "25", "25", "17.5 to 32.5", "1", "0 %", "–"]
    assert adc == ["ADC", "µm²/ms", "1.1", "1.1", "0.95 to 1.65", "0.2", "25 %", "–"]
    assert "Fit of adc: 5 voxels" in page
    assert "2 converged, 1 at bound, 1 not converged, 1 not fitted" in page
    empty = fit_voxels(np.zeros((1, 9)), PROTOCOL, "adc", fixed={"S0": 100.0})
    page = empty._repr_html_()
    assert cells(page)[1] == ["S0 (fixed)", "a.u.", "–", "–", "–", "–", "–", "–"]
    assert "Fit of adc: 1 voxel<" in page
    assert "1 not fitted" in page


def test_table_summary_and_figure_have_the_numbers_and_doubts_of_the_fit():
    signals = np.outer([100.0, 1, np.nan], np.exp(-0.001 * PROTOCOL.b)) + np.sin(PROTOCOL.b)
    result = fit_voxels(signals, PROTOCOL, "adc")
    table = result.to_dataframe()
    assert list(table)[:5] == ["S0", "S0_se", "S0_low", "S0_high", "S0_doubt"]
    for j, name in enumerate(result.names):
        np.testing.assert_array_equal(table[name], result[name])
        np.testing.assert_array_equal(table[f"{name}_se"], result.standard_errors[:, j])
        np.testing.assert_array_equal(table[[f"{name}_low", f"{name}_high"]], result.intervals()[:, j])
        np.testing.assert_array_equal(table[f"{name}_doubt"], result.doubt[:, j])
        bounds = table[[f"{name}_at_low", f"{name}_at_high"]].to_numpy().T
        np.testing.assert_array_equal(bounds, [result.at_low[:, j], result.at_high[:, j]])
    np.testing.assert_array_equal(table["cost"], result.cost)
    assert [table.attrs["units"][name] for name in ("S0", "ADC_low")] == ["a.u.", "µm²/ms"]
    page, legend = result._repr_html_(), result.plot(1).axes[0].get_legend().get_title().get_text()
    assert [row[-1] for row in cells(page)] == ["in doubt", "50 %", "50 %"]
    assert html.escape(" ".join(result.advice())) in page
    assert "(in doubt)" not in result.plot(0).axes[0].get_legend().get_title().get_text()
    assert result.plot(0)._repr_png_().startswith(b"\x89PNG")
    assert [line.endswith(" (in doubt)") for line in legend.splitlines()] == [True, True]
    assert "µm²/ms (in doubt in 50 %)>" in repr(result)
    assert table["status"].tolist() == [FitStatus(code).name.lower() for code in result.status]


@pytest.mark.parametrize("te", [None, [50, 50, 90, 90]])
def test_the_curve_of_a_voxel_goes_through_signals_without_noise(te):
    protocol = Protocol([0, 800, 0, 800], te)
    model = MODELS["t2-adc" if te else "adc"]
    truth = [[100, 1.0, 80.0][: len(model.names)], [200, 2.0, 60.0][: len(model.names)]]
    signals = model.signal(truth, protocol)
    (axes,) = fit_voxels(signals, protocol, model).plot(1).axes
    curves, points = axes.lines[::2], axes.lines[1::2]
    assert len(curves) == (2 if te else 1)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("b (s/mm²)", "signal (a.u.)")
    assert axes.get_legend().get_title().get_text().startswith("S0 200 a.u.\nADC 2 µm²/ms")
    seen = []
    for curve, point in zip(curves, points, strict=True):
        np.testing.assert_allclose(np.interp(point.get_xdata(), *curve.get_data()), point.get_ydata(), rtol=1e-3)
        seen += point.get_ydata().tolist()
    np.testing.assert_allclose(sorted(seen), np.sort(signals[1]))


def test_echo_times_of_one_b_value_are_drawn_over_the_echo_time():
    protocol = Protocol([0, 0, 0], [50, 90, 130])
    signals = MODELS["t2"].signal([100, 80], protocol)
    (axes,) = fit_voxels(signals, protocol, "t2").plot().axes
    assert axes.get_xlabel() == "TE (ms)"
    np.testing.assert_array_equal(axes.lines[1].get_xdata(), protocol.te)
    np.testing.assert_allclose(axes.lines[0].get_ydata()[-1], signals[0, -1], rtol=1e-6)
