"""Maps of voxels beside their errors, and joint histograms: colors, counts, places."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from dmrifit.report.slice_figures import NO_VALUE_COLOR
from dmrifit.study.report.figures.voxels import plot_joint_histograms, plot_map_comparison

AFFINE = np.diag([2.0, 2, 5, 1])


def joint():
    reference = np.concatenate([np.full(30, 1.0), np.linspace(1, 3, 10), [2.0]])
    predicted = np.concatenate([np.full(30, 2.0), np.linspace(1, 3, 10), [np.nan]])
    columns = {"reference": reference, "predicted": predicted}
    table = pd.DataFrame(columns).assign(cohort="a", strategy="s2s")
    return pd.concat([table, table.assign(strategy="m2m", predicted=2.0)])


def histograms(figure):
    return [axes for axes in figure.axes if axes.collections and axes.lines]


def counts(axes):
    """Counts by reference along the rows and prediction along the columns."""
    return axes.collections[0].get_array().filled(0).reshape(40, 40).T


@pytest.mark.parametrize("log", [False, True])
def test_joint_histograms_count_every_usable_voxel(log):
    figure = plot_joint_histograms(joint(), "Dt\nnote", unit="µm²/ms", log=log)
    panels = histograms(figure)
    assert [np.nansum(counts(axes)) for axes in panels] == [40, 41]
    assert panels[0].get_xlim() == panels[0].get_ylim() == panels[1].get_xlim()
    line = panels[0].lines[0]
    np.testing.assert_allclose(line.get_xdata(), line.get_ydata())
    assert panels[0].get_xlabel() == "reference (µm²/ms)"
    assert panels[0].get_ylabel() == "predicted (µm²/ms)"
    assert len({id(axes.collections[0].norm) for axes in panels}) == 1
    assert panels[0].get_xscale() == ("log" if log else "linear")


def test_references_run_along_the_horizontal_axis_and_predictions_upwards():
    table = joint().query("strategy == 's2s'")
    (axes,) = histograms(plot_joint_histograms(table, "Dt"))
    # Thirty voxels have reference 1, the least, and prediction 2, the middle.
    row, column = np.unravel_index(np.nanargmax(counts(axes)), (40, 40))
    assert row == 0
    assert column in (19, 20)


def test_logarithmic_histograms_leave_out_what_is_not_positive():
    table = joint().query("strategy == 's2s'").reset_index(drop=True)
    table.loc[0, "reference"], table.loc[1, "predicted"] = 0.0, -1.0
    (axes,) = histograms(plot_joint_histograms(table, "S", log=True))
    assert np.nansum(counts(axes)) == 38
    (axes,) = histograms(plot_joint_histograms(table, "S"))
    assert np.nansum(counts(axes)) == 40


def test_voxels_beyond_the_axes_are_counted_at_their_ends():
    reference = np.concatenate([np.linspace(1, 2, 1000), [500.0]])
    columns = {"reference": reference, "predicted": np.append(np.full(1000, 1.5), 500.0)}
    table = pd.DataFrame(columns).assign(cohort="a", strategy="s2s")
    (axes,) = histograms(plot_joint_histograms(table, "K"))
    assert axes.get_xlim()[1] < 3
    assert counts(axes)[-1, -1] == 1
    assert np.nansum(counts(axes)) == 1001


def test_cohorts_are_rows_and_strategies_columns():
    table = pd.concat([joint(), joint().query("strategy == 's2s'").assign(cohort="b")])
    figure = plot_joint_histograms(table, "Dt")
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.lines]
    assert titles == ["a, s2s", "a, m2m", "b, s2s", "b, m2m"]
    places = [axes.get_position() for axes in figure.axes if axes.lines]
    assert places[0].y0 == places[1].y0 > places[2].y0
    assert places[0].x0 == places[2].x0 < places[1].x0
    # One cohort lacks one strategy: three histograms in four places.
    assert len(histograms(figure)) == 3


def test_a_joint_histogram_of_one_value_is_drawn_too():
    table = joint().assign(reference=1.0, predicted=1.0)
    axes = plot_joint_histograms(table, "T2v").axes[0]
    assert axes.get_xlim()[0] < 1 < axes.get_xlim()[1]


def voxels():
    """Twelve voxels of the slice k = 1, two of the slice below; errors of 10 % and −50 %."""
    index = []
    for i, j, k in np.ndindex(3, 4, 2):
        if k == 1 or (i == 0 and j < 2):
            index.append((i, j, k))
    table = pd.DataFrame(index, columns=["i", "j", "k"]).assign(reference=np.linspace(1, 2, 14))
    return table.assign(s2s=table["reference"] * 1.1, m2m=table["reference"] * 0.5)


def pictures(figure):
    images = []
    for axes in figure.axes:
        images += axes.images
    return [np.asarray(image.get_array()) for image in images]


def test_maps_share_the_colors_of_the_reference_and_show_the_fullest_slice():
    title = "Dt (µm²/ms)\nnote"
    figure = plot_map_comparison(voxels(), AFFINE, title, unit="µm²/ms")
    images = pictures(figure)
    assert len(images) == 5
    reference, s2s, error_s2s, m2m, error_m2m = images
    # The fullest slice has all columns and rows; the patient's right is at the left.
    assert reference.shape == (4, 3, 4)
    middle = voxels().query("k == 1")
    low, high = np.percentile(voxels()["reference"], (2, 98))
    value = middle.query("i == 2 and j == 3")["reference"].iloc[0]
    expected = mpl.colormaps["viridis"]((min(value, high) - low) / (high - low))
    np.testing.assert_allclose(reference[3, 0], expected, atol=1e-6)
    assert np.ptp(error_s2s[..., 0]) < 1e-6
    assert np.ptp(error_m2m[..., 0]) < 1e-6
    assert not np.allclose(error_s2s[0, 0], error_m2m[0, 0])
    assert not np.allclose(s2s[0, 0], m2m[0, 0])
    texts = set()
    for axes in figure.axes:
        texts |= {text.get_text() for text in axes.texts}
    assert {"reference", "s2s", "m2m", "E of s2s", "E of m2m"} <= texts


def test_errors_are_relative_signed_and_share_the_limits_of_the_95th_percentile():
    _, _, error_s2s, _, error_m2m = pictures(plot_map_comparison(voxels(), AFFINE, "Dt"))
    # Half of the magnitudes are 0.1 and half 0.5, so colors run from −0.5 to 0.5.
    colors = mpl.colormaps["PuOr_r"]
    np.testing.assert_allclose(error_s2s[0, 0], colors((0.1 + 0.5) / 1.0), atol=0.01)
    np.testing.assert_allclose(error_m2m[0, 0], colors(0.0), atol=0.01)


def test_colors_of_errors_end_at_one_hundred_percent():
    table = voxels()
    table["s2s"] = table["reference"] * 31
    figure = plot_map_comparison(table, AFFINE, "f", predictions=["s2s"])
    limits = [axes.get_ylim() for axes in figure.axes]
    assert (-100.0, 100.0) in [(round(low, 9), round(high, 9)) for low, high in limits]


def test_where_the_reference_is_zero_the_error_is_gray():
    table = voxels()
    table.loc[table["k"] == 1, "reference"] = [0.0] + [1.0] * 11
    error = pictures(plot_map_comparison(table, AFFINE, "K", predictions=["s2s"]))[2]
    gray = [to_hex(color) == NO_VALUE_COLOR for color in error.reshape(-1, 4)]
    assert sum(gray) == 1


def test_a_flipped_image_is_shown_the_same_way():
    flipped = np.diag([-2.0, 2, 5, 1])
    table = voxels()
    mirrored = table.assign(i=2 - table["i"])
    for picture, image in zip(
        pictures(plot_map_comparison(table, AFFINE, "f")),
        pictures(plot_map_comparison(mirrored, flipped, "f")),
        strict=True,
    ):
        np.testing.assert_array_equal(picture, image)


def test_a_map_of_one_voxel_is_drawn():
    figure = plot_map_comparison(voxels().iloc[:1], np.eye(4), "f", predictions=["s2s"])
    assert len(pictures(figure)) == 4
