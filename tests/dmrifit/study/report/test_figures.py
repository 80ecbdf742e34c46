"""Figures of a report: what stands where, colors of maps and errors, counts of joint histograms."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from dmrifit.predict.controls import is_control
from dmrifit.report.slice_figures import NO_VALUE_COLOR
from dmrifit.report.style import PALE
from dmrifit.study.predictions import PatientPredictions
from dmrifit.study.report.figures import (
    MapRow,
    plot_decays,
    plot_joint_histograms,
    plot_lesion,
    plot_signal_errors,
    series_looks,
)


def test_signal_errors_are_means_over_patients_in_order_of_te_and_b():
    rows = [
        {"strategy": "s2s", "algorithm": "LR", "patient": p, "te": te, "b": b, "relative_error": error + shift}
        for te, b, error in ((90.0, 800.0, 0.4), (90.0, 0.0, 0.1), (70.0, 0.0, 0.2))
        for p, shift in (("x", -0.05), ("y", 0.05))
    ]
    figure = plot_signal_errors(pd.DataFrame(rows), "title\nnote", learners=["LR"])
    (axes,) = figure.axes
    lines = [line.get_xydata() for line in axes.lines if line.get_marker() == "."]
    drawn = {(x, y) for x, y in np.round(np.concatenate(lines), 9).tolist()}
    assert drawn == {(0, 20), (1, 10), (2, 40)}
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0", "0", "800"]
    assert {"TE 70 ms", "TE 90 ms"} <= {text.get_text() for text in axes.texts}


def decays(te=(70.0, 90.0)):
    return pd.DataFrame([
        {"b": b, "te": t, "signal": scale * np.exp(-b / 1000), "kind": kind, "known": b < 500 and i == 0}
        for kind, scale in (("measured", 1.0), ("s2s", 1.1), ("m2m", 0.9)) for i, t in enumerate(te)
        for b in (800.0, 0.0, 400.0)
    ])  # fmt: skip


def test_decays_show_inputs_filled_and_predictions_as_lines():
    figure = plot_decays(decays(), "p\nnote")
    (axes,) = figure.axes
    assert len(axes.lines) == 4
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [0, 400, 800])
    np.testing.assert_allclose(axes.lines[0].get_ydata(), 1.1 * np.exp([0, -0.4, -0.8]))
    filled = [[to_hex(c) != "#ffffff" for c in dots.get_facecolor()] for dots in axes.collections]
    assert filled == [[False, True, True], [False] * 3]
    assert axes.get_yscale() == "log"
    assert len(plot_decays(decays((np.nan,)), "p").axes[0].lines) == 2


def test_controls_are_gray_and_do_not_move_the_colors_of_learners():
    names = ["constant", "LR", "shuffled", "RFR", "perfect"]
    assert [is_control(name) for name in (*names, "constant median", "inconstant")] == [True, False, True, False, True, True, False]
    table = pd.DataFrame({"algorithm": names, "series": names, "strategy": "s2s"})
    colors = {name: look["color"] for name, look in series_looks(table, ["LR", "RFR"], ["s2s"], "marker").items()}
    assert colors["RFR"] != colors["LR"]
    assert {colors[name] for name in names if is_control(name)} == {PALE}


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
    assert panels[0].get_xlabel() == "reference (µm²/ms)"
    assert len({id(axes.collections[0].norm) for axes in panels}) == 1
    assert panels[0].get_xscale() == ("log" if log else "linear")
    table = joint().query("strategy == 's2s'").reset_index(drop=True)
    table.loc[0, "reference"], table.loc[1, "predicted"] = 0.0, -1.0
    (axes,) = histograms(plot_joint_histograms(table, "S", log=log))
    # Logarithms leave out what is not positive.
    assert np.nansum(counts(axes)) == (38 if log else 40)


def test_voxels_beyond_the_axes_are_counted_at_their_ends():
    reference = np.concatenate([np.linspace(1, 2, 1000), [500.0]])
    columns = {"reference": reference, "predicted": np.append(np.full(1000, 1.5), 500.0)}
    table = pd.DataFrame(columns).assign(cohort="a", strategy="s2s")
    (axes,) = histograms(plot_joint_histograms(table, "K"))
    assert axes.get_xlim()[1] < 3
    assert counts(axes)[-1, -1] == 1
    assert np.nansum(counts(axes)) == 1001


def patient(affine=AFFINE, **changes):
    """Twelve voxels of the slice k = 1, two of the slice below, in an image of 9 x 9 x 3."""
    index = []
    for i, j, k in np.ndindex(3, 4, 2):
        if k == 1 or (i == 0 and j < 2):
            index.append((i + 3, j + 3, k))
    values = {"index": np.array(index), "shape": (9, 9, 3), "affine": affine, "cohort": "c", "patient": "p"}
    values |= dict.fromkeys(("names", "units", "labels", "b", "te", "seen", "reference", "truth", "measured"))
    anatomy = np.full((9, 9, 3), 51, np.uint8)
    return PatientPredictions(**values | {"maps": {}, "signals": {}, "anatomy": anatomy} | changes)


REFERENCE = np.linspace(1, 2, 14)


def row(reference=REFERENCE, **predictions):
    return MapRow("Dt", "µm²/ms", reference, predictions or {"s2s": 1.1 * REFERENCE, "m2m": 0.5 * REFERENCE})


def pictures(figure):
    images = []
    for axes in figure.axes:
        images += axes.images
    return [np.asarray(image.get_array()) for image in images]


def colored(picture):
    """Cut a picture to what is drawn over the anatomy."""
    gray = np.isclose(picture[..., :3], 0.2).all(axis=2)
    rows, columns = np.flatnonzero(~gray.all(axis=1)), np.flatnonzero(~gray.all(axis=0))
    return picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def test_maps_lie_on_the_anatomy_with_the_colors_of_the_reference():
    figure = plot_lesion(patient(), [row()], "title", width=6.0)
    images = pictures(figure)
    assert len(images) == 5
    reference, s2s, m2m, error_s2s, error_m2m = map(colored, images)
    # The slice has all columns and rows of the lesion; the patient's right is at the left.
    assert reference.shape == (4, 3, 4)
    # Room for anatomy on all sides.
    assert min(images[0].shape[:2]) >= 8
    np.testing.assert_allclose(images[0][0, 0], [0.2, 0.2, 0.2, 1])
    low, high = np.percentile(REFERENCE, (2, 98))
    expected = mpl.colormaps["viridis"]((min(REFERENCE[-1], high) - low) / (high - low))
    np.testing.assert_allclose(reference[3, 0], expected, atol=1e-6)
    assert np.ptp(error_s2s[..., 0]) < 1e-6
    # Half of the magnitudes are 0.1 and half 0.5, so colors of errors run from −0.5 to 0.5.
    colors = mpl.colormaps["PuOr_r"]
    np.testing.assert_allclose(error_s2s[0, 0], colors((0.1 + 0.5) / 1.0), atol=0.01)
    np.testing.assert_allclose(error_m2m[0, 0], colors(0.0), atol=0.01)
    # They end at 100 %, and where the reference is zero they are gray.
    limits = [axes.get_ylim() for axes in plot_lesion(patient(), [row(s2s=31 * REFERENCE)], "", width=6.0).axes]
    assert (-100.0, 100.0) in [(round(low, 9), round(high, 9)) for low, high in limits]
    zero = np.where(np.arange(14) == 13, 0.0, 1.0)
    *_, error = pictures(plot_lesion(patient(), [row(zero, s2s=np.full(14, 1.5))], "", width=6.0))
    assert sum(to_hex(color) == NO_VALUE_COLOR for color in error.reshape(-1, 4)) == 1
    assert not np.allclose(s2s[0, 0], m2m[0, 0])


def test_a_flipped_image_is_shown_the_same_way():
    affine = np.diag([-2.0, 2, 5, 1])
    index = patient().index
    mirrored = patient(affine, index=np.column_stack([8 - index[:, 0], index[:, 1:]]))
    for picture, image in zip(
        pictures(plot_lesion(patient(), [row()], "", width=6.0)),
        pictures(plot_lesion(mirrored, [row()], "", width=6.0)),
        strict=True,
    ):
        np.testing.assert_array_equal(colored(picture), colored(image))


def test_without_anatomy_maps_lie_on_white_and_one_voxel_is_enough():
    single = patient(index=np.array([[1, 1, 1]]), anatomy=None)
    images = pictures(plot_lesion(single, [row(np.ones(1), s2s=np.ones(1))], "", width=6.0))
    assert len(images) == 3
    np.testing.assert_allclose(images[0][0, 0], 1)
    # Of several lesions the largest is shown.
    index = np.concatenate([patient().index, [[8, 8, 2], [0, 0, 0]]])
    values = np.concatenate([REFERENCE, [9.0, 9.0]])
    figure = plot_lesion(patient(index=index), [row(values, s2s=values)], "", width=6.0)
    assert colored(pictures(figure)[0]).shape == (4, 3, 4)
