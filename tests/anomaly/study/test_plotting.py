"""Figures show what maps are, where thresholds cut them, and what is synthetic."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.collections import PathCollection

from anomaly import Case
from anomaly.study.contestants import ELSEWHERE, STRATA
from anomaly.study.plotting import (
    map_limits,
    plot_curves,
    plot_densities,
    plot_examples,
    plot_opening,
    plot_panels,
    plot_strata,
    slice_to_show,
)


def words(figure):
    return " ".join(text.get_text() for text in figure.texts)


def pictures(figure):
    return [ax.images[0] for ax in figure.axes if ax.images and ax.get_title(loc="left")]


def test_scales_are_those_of_all_cases(compared):
    limits = map_limits(compared.maps, compared.cases)
    scans = zip(compared.maps["sharp"], compared.cases, strict=True)
    inside = np.concatenate([values[case.scored] for values, case in scans])
    np.testing.assert_allclose(limits["sharp"], np.percentile(inside, (1, 99.9)))
    assert map_limits({"mask": [case.lesion for case in compared.cases]}, compared.cases) == {"mask": (0.0, 1.0)}
    low, high = map_limits({"flat": [np.zeros(case.shape) for case in compared.cases]}, compared.cases)["flat"]
    assert (low, high) == (0, 1)


def test_panels_show_the_map_at_the_given_scale_and_what_is_above_the_threshold(compared):
    case, values = compared.cases[0], compared.maps["sharp"][0]
    figure = plot_panels(case, {"sharp": values}, {"sharp": 0.2}, {"sharp": (0.0, 0.8)})
    mean, drawn, mask, opened = pictures(figure)
    number = slice_to_show(case)
    assert number == case.lesion.sum(axis=(0, 1)).argmax()
    assert drawn.get_clim() == (0.0, 0.8)
    inside = case.brain[:, :, number].T
    np.testing.assert_allclose(drawn.get_array()[inside], values[:, :, number].T[inside])
    np.testing.assert_allclose(mean.get_array()[inside], case.signal.mean(axis=-1)[:, :, number].T[inside], rtol=1e-6)
    np.testing.assert_array_equal(mask.get_array()[inside], ((values > 0.2) & case.scored)[:, :, number].T[inside])
    assert opened.get_array().sum() <= mask.get_array().sum()
    assert "Synthetic, no person was scanned" in words(figure)
    assert f"grade {case.grade}" in words(figure)
    assert "ynthetic, no" not in words(plot_panels(replace(case, synthetic=False), {"mask": case.lesion}, {}, {}))
    assert "healthy" in words(plot_panels(compared.healthy[0], {"mask": compared.healthy[0].brain}, {}, {}))


def test_right_is_at_the_left_whatever_the_order_of_the_voxels():
    signal = np.zeros((4, 5, 3, 2))
    signal[..., 0] = 0.5
    values = np.arange(60.0).reshape(4, 5, 3)
    straight = Case("a", signal, affine=np.diag([2.0, 2, 2, 1]))
    turned = Case("b", signal[::-1].transpose(1, 0, 2, 3), affine=np.array(
        [[0.0, -2, 0, 6], [2, 0, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]]
    ))  # fmt: skip
    limits = {"a": (0.0, 60.0)}
    drawn = [
        pictures(plot_panels(case, {"a": some}, {"a": 30.0}, limits, number=1))[1]
        for case, some in ((straight, values), (turned, values[::-1].transpose(1, 0, 2)))
    ]
    np.testing.assert_array_equal(drawn[0].get_array(), drawn[1].get_array())
    assert drawn[0].axes.xaxis_inverted()
    assert drawn[0].axes.get_xticks().tolist() == [3, 0]  # named R and L


def test_densities_have_an_area_of_one_and_tell_lesions_apart(compared):
    maps = compared.maps | {"mask": [case.lesion for case in compared.cases]}
    options = {"healthy": compared.healthy, "healthy_maps": compared.healthy_maps, "thresholds": {"sharp": 0.2}}
    figure = plot_densities(compared.cases, maps, **options)
    assert [ax.get_title(loc="left") for ax in figure.axes] == list(compared.maps)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    kinds = [f"lesions, {kind}" for kind in dict.fromkeys(case.kind for case in compared.cases)]
    assert labels == ["healthy persons", "patients, elsewhere", *kinds, "threshold"]
    for outline in figure.axes[0].patches:
        x, y = outline.get_xy().T
        if len(x):
            area = abs(np.sum((x[1:] - x[:-1]) * (y[1:] + y[:-1]) / 2))
            np.testing.assert_allclose(area, 1, atol=0.02)


def test_examples_show_the_map_over_the_anatomy_with_reference_and_mask(compared):
    case, values = compared.cases[0], compared.maps["sharp"][0]
    bare = replace(compared.cases[1], synthetic=False)
    masks = [values > 0.2, np.zeros(case.shape, bool)]
    examples = {"best: a": (case, values, masks[0]), "worst: b": (bare, None, masks[1])}
    figure = plot_examples(examples, "sharp")
    first, second = (ax for ax in figure.axes if ax.get_title(loc="left") in examples)
    # Radiological convention: the patient's right is at the left, under overlays, too.
    assert [ax.xaxis_inverted() for ax in (first, second)] == [True, True]
    anatomy, over = first.images
    number = slice_to_show(case)
    np.testing.assert_allclose(np.ma.filled(anatomy.get_array(), 0).T, case.signal.mean(axis=-1)[:, :, number], atol=1e-6)
    # Where scores are low, the anatomy is seen.
    assert (over.get_alpha()[over.get_array() < np.median(values[case.brain])] == 0).all()
    assert len(second.images) == 1
    assert [len(ax.collections) for ax in (first, second)] == [1 + masks[0][:, :, number].any(), 1]
    assert "Synthetic, no person was scanned" in words(figure)
    assert "ynthetic, no" not in words(plot_examples({"best": (bare, None, masks[1])}, "mask"))


def dots(ax):
    """Give the places of the dots of a panel, series by series."""
    return [cloud.get_offsets() for cloud in ax.collections if isinstance(cloud, PathCollection)]


def test_curves_opening_and_places_are_those_of_the_tables(compared):
    curves = plot_curves(compared.tables)
    coverage = compared.tables["curves"].query("method == 'sharp'")["coverage"]
    np.testing.assert_allclose(curves.axes[1].lines[0].get_ydata(), coverage)
    figure = plot_opening(compared.tables)
    summary = compared.tables["summary"].query("part == 'all'").set_index(["rule", "method"])
    methods = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    rules = [ax.get_title(loc="left") + ax.texts[0].get_text() for ax in figure.axes]
    assert "healthy rate" in rules
    # Rules that know the lesions are no choices.
    assert not {"Youden", "as given"} & set(rules)
    ax = figure.axes[rules.index("Otsu")]
    for points, measure in zip(dots(ax), ("dice", "dice_opened"), strict=True):
        for x, y in points:
            assert x == pytest.approx(summary.loc[("Otsu", methods[round(y)]), measure])
    places = plot_strata(compared.tables, rule="healthy rate")
    table = compared.tables["strata"].query("rule == 'healthy rate' and method == 'sharp'").set_index("stratum")
    ticks = [text.get_text() for text in places.axes[0].get_yticklabels()]
    assert ticks == [stratum for stratum in (*STRATA, ELSEWHERE) if stratum in table.index]
    drawn = {ticks[round(y)]: x for x, y in dots(places.axes[0])[0]}
    for stratum, auc in drawn.items():
        assert auc == pytest.approx(table.loc[stratum, "auc"])
    assert set(drawn) == set(table.index[table["auc"].notna()])
