"""Figures show what was found where it is, and say what is synthetic."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from metastasis import evaluate_segmentations
from metastasis.study.plotting import place_to_show, plot_calibration, plot_curves, plot_overlay


def words(figure):
    return " ".join(text.get_text() for text in figure.texts)


def test_overlays_are_drawn_at_what_went_wrong(synthetic_cases):
    case = synthetic_cases[0]
    affine = case.affine
    place, what = place_to_show(case, np.zeros(case.shape))
    assert what == "largest lesion missed"
    index = np.linalg.solve(affine, [*place, 1])[:3].round().astype(int)
    assert case.label[tuple(slice(i - 2, i + 3) for i in index)].any()
    extra = case.label.copy()
    extra[1:3, 1:3, 1:3] = 1
    place, what = place_to_show(case, extra)
    assert what == "largest false positive"
    np.testing.assert_allclose(place, affine[:3, :3] @ np.full(3, 1.5) + affine[:3, 3])
    assert place_to_show(case, case.label)[1] == "largest lesion"
    unlabeled = replace(case, label=None)
    assert place_to_show(unlabeled, extra)[1] == "largest lesion found"
    assert place_to_show(unlabeled, np.zeros(case.shape))[1] == "nothing found"


def test_overlays_say_what_is_synthetic_and_tell_candidates_apart(synthetic_cases):
    case = synthetic_cases[0]
    figure = plot_overlay(case, case.label, confirmable=True)
    assert "Synthetic, no person was scanned" in words(figure)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["reference", "confirmed", "candidate"]
    real = plot_overlay(replace(case, synthetic=False, label=None), case.label)
    assert "ynthetic, no" not in words(real)
    assert "Not for clinical use" in words(real)
    assert [text.get_text() for text in real.legends[0].get_texts()] == ["found"]
    with pytest.raises(ValueError, match="shape"):
        plot_overlay(case, np.zeros((3, 3, 3)))


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
    masks = evaluate_segmentations(synthetic_cases, {"mask": [case.label for case in synthetic_cases]}, n_bootstrap=0)
    with pytest.raises(ValueError, match="no method gives probabilities"):
        plot_calibration(masks)
