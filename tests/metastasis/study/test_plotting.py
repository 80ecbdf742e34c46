"""Figures show what was found where it is, and say what is synthetic."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("matplotlib")

from dmrifit.io.components import label_components
from dmrifit.stats.lesion_matching import lesion_table
from metastasis import Case, evaluate_segmentations
from metastasis.study.plotting import (
    place_to_show,
    plot_calibration,
    plot_curves,
    plot_overlay,
    plot_strip,
)


def words(figure):
    return " ".join(text.get_text() for text in figure.texts)


def test_overlays_are_drawn_at_what_went_wrong(synthetic_cases):
    case = synthetic_cases[0]
    affine = case.affine
    place, what = place_to_show(case, np.zeros(case.shape))
    assert what == "largest missed lesion"
    index = np.linalg.solve(affine, [*place, 1])[:3].round().astype(int)
    assert case.label[tuple(slice(i - 2, i + 3) for i in index)].any()
    extra = case.label.copy()
    extra[1:3, 1:3, 1:3] = 1
    place, what = place_to_show(case, extra)
    assert what == "largest false positive"
    np.testing.assert_allclose(place, affine[:3, :3] @ np.full(3, 1.5) + affine[:3, 3])
    assert place_to_show(case, case.label)[1] == "largest lesion"
    unlabeled = replace(case, label=None)
    assert place_to_show(unlabeled, extra)[1] == "largest finding"
    assert place_to_show(unlabeled, np.zeros(case.shape))[1] == "nothing found"


def test_overlays_say_what_is_synthetic_and_tell_candidates_apart(synthetic_cases):
    case = synthetic_cases[0]
    figure = plot_overlay(case, case.label, of_two_models=True)
    assert "Synthetic, no person was scanned" in words(figure)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["reference", "marked by both", "candidate"]
    real = plot_overlay(replace(case, synthetic=False, label=None), case.label)
    assert "ynthetic, no" not in words(real)
    assert "Not for clinical use" in words(real)
    assert [text.get_text() for text in real.legends[0].get_texts()] == ["found"]


def test_curves_and_calibration_are_those_of_the_tables(synthetic_cases):
    probabilities = [0.05 + 0.6 * case.label.astype(np.float32) for case in synthetic_cases]
    tables = evaluate_segmentations(synthetic_cases, {"good": probabilities}, n_bootstrap=0)
    figure = plot_curves(tables)
    line = next(line for line in figure.axes[1].lines if len(line.get_xdata()) > 1)
    curve = tables["curves"].query("method == 'good'")
    np.testing.assert_array_equal(line.get_ydata(), curve["strict_precision"])
    assert next(iter(figure.legends[0].get_texts())).get_text() == "good"
    _, drawn = plot_calibration(tables).axes[0].lines
    np.testing.assert_allclose(drawn.get_ydata(), [0, 1])
    np.testing.assert_allclose(drawn.get_xdata(), [0.05, 0.65], rtol=1e-5)


def marks_of(ax):
    """Give place and look of each mark: (x, y), whether it is filled, its shape, its size."""
    points = [line for line in ax.lines if line.get_marker() not in ("None", None)]
    return sorted(
        (*point.get_xydata().tolist(), point.get_markerfacecolor() != "white", point.get_marker(), point.get_markersize())
        for point in points
    )


def test_each_lesion_is_found_or_missed_at_the_right_and_false_findings_stand_at_the_left(synthetic_cases):
    case = synthetic_cases[0]
    numbers = label_components(case.label)
    table = lesion_table(case.label, case.label, case.affine)
    lesions = table[table["kind"] == "lesion"].sort_values("volume_mL", ascending=False)
    missed = lesions["number"].iloc[1]
    found = case.label.astype(bool) & (numbers != missed)
    found[:2, :2, :2] = True
    tables = evaluate_segmentations([case], {"good": [found], "all": [np.ones(case.shape, bool)]}, n_bootstrap=0)
    figure = plot_strip(tables["lesions"], [case.name], ["good", "all"], small_ml=lesions["volume_mL"].iloc[2])
    good = marks_of(figure.axes[0])
    false, *drawn = good
    assert (false[0][0], false[2]) == (-1, "x")
    assert [x for (x, _), *_ in drawn] == list(range(1, len(lesions) + 1))
    assert [filled for _, filled, *_ in drawn] == [i != 1 for i in range(len(lesions))]
    # The three largest are not below that volume.
    areas = [area for *_, area in drawn]
    assert areas[:3] == [max(areas)] * 3
    assert set(areas[3:]) <= {min(areas)}
    assert {shape for *_, shape, _ in drawn} == {"o"}
    # One finding over everything is of a shape of its own, neither found nor missed.
    assert not {shape for *_, shape, _ in marks_of(figure.axes[1])} & {shape for *_, shape, _ in good}
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:4] == ["found", "found with others in one", "missed", "false"]


def test_long_strips_are_cut_and_many_false_findings_counted(synthetic_cases):
    case = synthetic_cases[0]
    many = np.zeros(case.shape, bool)
    many[::6, ::6, 0] = True
    tables = evaluate_segmentations([case], {"many": [many]}, n_bootstrap=0)
    lesions = tables["lesions"].query("method == 'many'")
    n_false = int((lesions["kind"] == "false positive").sum())
    ax = plot_strip(lesions, [case.name], ["many"], small_ml=0.1).axes[0]
    assert sum(x < 0 for (x, _), *_ in marks_of(ax)) == 8
    assert f"+{n_false - 8}" in [text.get_text() for text in ax.texts]
    names = [f"scan {i}" for i in range(40)]
    ax = plot_strip(pd.concat([lesions.assign(name=name) for name in names]), names, ["many"], small_ml=0.1).axes[0]
    assert len(ax.get_yticks()) == 30


def test_bars_are_the_intervals_of_froc_within_the_curve(synthetic_cases):
    rng = np.random.default_rng(0)
    cases = [replace(case, patient=f"{case.patient} {i}") for case in synthetic_cases for i in range(2)]
    noisy = [0.5 * case.label + rng.normal(0.15, 0.1, case.shape) for case in cases]
    probabilities = [np.clip(values, 0, 1).astype(np.float32) for values in noisy]
    tables = evaluate_segmentations(cases, {"good": probabilities}, n_bootstrap=50)
    limits = tables["froc"][["strict_sensitivity_low", "strict_sensitivity_high"]]
    assert (limits.diff(axis=1).iloc[:, 1] > 0.1).any()
    # A curve that ends at two wrong findings has no bars beyond.
    curves = tables["curves"]
    tables["curves"] = curves.assign(
        false_positives_per_scan=curves["false_positives_per_scan"].clip(upper=2), flagged_per_scan=0.0
    )
    (bars,) = plot_curves(tables).axes[0].collections
    segments = np.array(bars.get_segments())
    np.testing.assert_array_equal(segments[:, 0, 0], [0.125, 0.25, 0.5, 1, 2])
    np.testing.assert_allclose(segments[:, :, 1], limits[:5])


@pytest.mark.parametrize(("n_lesions", "has_lines"), [(9, False), (10, True)])
def test_lines_are_the_best_that_thresholds_reach_and_few_lesions_are_points(synthetic_cases, n_lesions, has_lines):
    rng = np.random.default_rng(0)
    probabilities = [
        np.clip(0.5 * case.label + rng.normal(0.2, 0.25, case.shape), 0, 1).astype(np.float32) for case in synthetic_cases
    ]
    tables = evaluate_segmentations(synthetic_cases, {"good": probabilities}, n_bootstrap=0)
    tables["summary"]["n_lesions"] = n_lesions
    for ax in plot_curves(tables).axes:
        lines = [line for line in ax.lines if line.get_drawstyle() == "steps-post"]
        assert len(lines) == has_lines
        (dots,) = (line for line in ax.lines if line.get_marker() == ".")
        x, y = np.array(dots.get_xdata()), np.array(dots.get_ydata())
        for line in lines:
            for at, best in zip(line.get_xdata(), line.get_ydata(), strict=True):
                # Fewer wrong findings are harder to reach, and so is a higher sensitivity.
                reached = x <= at if "wrong" in ax.get_xlabel() else x >= at
                assert best == np.nanmax(y[reached])


@pytest.mark.parametrize(("radius", "has_inset"), [(2, True), (7, False)])
def test_a_small_lesion_is_shown_once_more_and_larger(radius, has_inset):
    shape, center = (40, 40, 40), np.array([28, 12, 20])
    grid = np.indices(shape) - center[:, None, None, None]
    label = ((grid**2).sum(axis=0) <= radius**2).astype(np.uint8)
    case = Case("p1", 1.0 + label, label=label, affine=np.diag([1.5, 1.5, 1.5, 1]))
    axial = plot_overlay(case, label).axes[2]
    insets = axial.child_axes
    assert len(insets) == has_inset
    for inset in insets:
        place, _ = place_to_show(case, label)
        assert np.mean(inset.get_xlim()) == pytest.approx(place[0])
        assert np.mean(inset.get_ylim()) == pytest.approx(place[1])
        # As in the plane, the patient's right is at the left, and it lies away from the lesion.
        assert inset.xaxis_inverted()
        spot = axial.transData.transform(place[:2])
        assert not inset.get_window_extent().contains(*spot)
