"""Curves of lesion coverage over false-positive rates and their areas, by hand and in numpy."""

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from anomaly.study.coverage_curves import (
    CURVE_RATES,
    FULL_RATE,
    LOW_RATES,
    coverage_curve,
    curve_areas,
)

# Curves ------------------------------------------------------------------------------------------


def row_volume(*values):
    """Give voxels in a row."""
    return np.array(values).reshape(-1, 1, 1)


def test_a_curve_of_ten_voxels_by_hand():
    # A healthy scan with the scores 0 to 9: at a rate of .1, one of ten may be above.
    healthy = [np.arange(10.0)]
    scores = row_volume(8.5, 7.5, 0, 9.5, 20.0, 6.5, 5.5, 0, 0, 0)
    lesion = row_volume(1, 1, 0, 1, 0, 1, 1, 0, 0, 0) > 0
    # The last voxel of the third lesion does not count.
    mask = row_volume(1, 1, 1, 1, 1, 1, 0, 1, 1, 1) > 0
    curve = coverage_curve(healthy, [scores], [lesion], [mask], rates=[0.3, 0.1, 0.2, 0.25, 0])
    assert curve["rate"].tolist() == [0, 0.1, 0.2, 0.25, 0.3]
    assert curve["realized"].tolist() == pytest.approx([0, 0.1, 0.2, 0.2, 0.3])
    assert curve["threshold"].tolist() == [9, 8, 7, 7, 6]
    # Of lesions of 2, 1 and 1 voxels; the mean is over lesions, and not over voxels.
    assert curve["coverage"].tolist() == pytest.approx([1 / 3, 0.5, 2 / 3, 2 / 3, 1])
    assert curve["sensitivity"].tolist() == pytest.approx([1 / 4, 2 / 4, 3 / 4, 3 / 4, 1])
    assert curve["lesion_sensitivity"].tolist() == pytest.approx([1 / 3, 2 / 3, 2 / 3, 2 / 3, 1])


def test_scans_count_alike_for_coverage_and_lesions_for_their_sensitivity():
    healthy, mask = [np.arange(10.0)], row_volume(*[1] * 7) > 0
    three = row_volume(1, 0, 1, 0, 1, 0, 0) > 0
    one = row_volume(1, 1, 0, 0, 0, 0, 0) > 0
    hit, half = row_volume(0, 0, 0, 0, 9.5, 0, 0), row_volume(9.5, 0, 0, 0, 0, 0, 0)
    (row,) = coverage_curve(
        healthy, [hit, half], [three, one], [mask, mask], rates=[0.1]
    ).itertuples()
    assert row.coverage == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert row.sensitivity == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert row.lesion_sensitivity == pytest.approx(2 / 4)


def test_a_score_at_the_threshold_is_not_above_it():
    lesion = row_volume(1, 1) > 0
    curve = coverage_curve(
        [np.arange(10.0)], [row_volume(8.0, 9.0)], [lesion], [lesion], rates=[0, 0.1, 0.2]
    )
    assert curve["threshold"].tolist() == [9, 8, 7]
    assert curve["coverage"].tolist() == [0, 0.5, 1]


def test_components_join_at_corners_where_asked():
    lesion = np.zeros((2, 2, 3), dtype=bool)
    lesion[0, 0, :2] = lesion[1, 1, 2] = True
    scores = np.where(lesion, 1.0, 0)
    scores[1, 1, 2] = 3.0
    shares = []
    for connectivity in (26, 6):
        (row,) = coverage_curve(
            [np.array([1.0, 2.0])],
            [scores],
            [lesion],
            [np.ones_like(lesion)],
            rates=[0],
            connectivity=connectivity,
        ).itertuples()
        shares.append((row.coverage, row.lesion_sensitivity))
    # One lesion of three voxels, or two of which one is covered.
    assert shares == [(pytest.approx(1 / 3), 1), (0.5, 0.5)]


def test_scans_without_a_lesion_that_counts_change_nothing():
    healthy, mask = [np.arange(10.0)], row_volume(1, 1, 1, 0) > 0
    lesion, scores = row_volume(1, 1, 0, 0) > 0, row_volume(9.5, 0, 0, 0)
    beyond = row_volume(0, 0, 0, 1) > 0
    alone = coverage_curve(healthy, [scores], [lesion], [mask])
    extended = coverage_curve(
        healthy, [scores] * 3, [lesion, beyond, 0 * lesion > 0], [mask, mask, mask]
    )
    pd.testing.assert_frame_equal(extended, alone)
    without = coverage_curve(healthy, [scores], [beyond], [mask], rates=[0.1, 0.2])
    assert without["threshold"].tolist() == [8, 7]
    shares = without[["coverage", "sensitivity", "lesion_sensitivity"]]
    assert shares.isna().all(axis=None)


@pytest.mark.parametrize("seed", [40, 41])
def test_the_curve_counts_false_positives_on_healthy_scans_only(seed, cohort):
    cases, maps, healthy, free = cohort(seed)
    masks = [case.scored for case in cases]
    quiet = [values[case.scored] for values, case in zip(free["strong"], healthy, strict=True)]
    lesions = [case.lesion.copy() for case in cases]
    lesions[0][8:10, 9, 14] = True  # a second lesion
    curve = coverage_curve(quiet, maps["strong"], lesions, masks)
    assert curve["rate"].tolist() == sorted(CURVE_RATES)
    for row in curve.iloc[::5].itertuples():
        assert row.realized <= row.rate + 1e-12
        assert row.realized == pytest.approx(
            np.mean([(one > row.threshold).mean() for one in quiet])
        )
        shares, voxels = [], []
        for values, lesion, mask in zip(maps["strong"], lesions, masks, strict=True):
            labels, n = ndimage.label(lesion & mask, np.ones((3, 3, 3)))
            above = values > row.threshold
            shares.append(np.mean([above[labels == k].mean() for k in range(1, n + 1)]))
            voxels.append(above[labels > 0].mean())
        assert row.coverage == pytest.approx(np.mean(shares))
        assert row.sensitivity == pytest.approx(np.mean(voxels))
    assert curve["coverage"].is_monotonic_increasing
    # What is flagged beside lesions does not count as false.
    raised = [
        np.where(lesion, values, 50)
        for values, lesion in zip(maps["strong"], lesions, strict=True)
    ]
    assert coverage_curve(quiet, raised, lesions, masks)["coverage"].equals(curve["coverage"])


# Areas -------------------------------------------------------------------------------------------


def areas_of(rates, coverage):
    return curve_areas(pd.DataFrame({"rate": rates, "coverage": coverage}))


def test_the_area_of_straight_lines_is_that_of_triangles_and_trapezes():
    assert (FULL_RATE, LOW_RATES) == (0.3, (1e-3, 1e-2))
    # From 0 at the rate 0 to .6 at .1, then to .8 at .3.
    areas = areas_of([0.1, 0.3], [0.6, 0.8])
    assert areas["area"] == pytest.approx((0.1 * 0.6 / 2 + 0.2 * (0.6 + 0.8) / 2) / 0.3)
    # Below two rates between .001 and .01 there is no low area.
    assert np.isnan(areas["area_low"])
    # What lies beyond .3 does not count.
    assert areas_of([0.1, 0.3, 1.0], [0.6, 0.8, 1.0])["area"] == areas["area"]


def test_the_low_area_weighs_each_decade_of_rates_alike():
    rates = [5e-4, 1e-3, 10**-2.5, 1e-2, 0.3]
    # Halves of the decade on the logarithm, with the means .3 and .5.
    areas = areas_of(rates, [0.1, 0.2, 0.4, 0.6, 1.0])
    assert areas["area_low"] == pytest.approx(0.4)
    flat = areas_of([1e-3, 2e-3, 1e-2], [0.7, 0.7, 0.7])
    assert flat["area_low"] == pytest.approx(0.7)
