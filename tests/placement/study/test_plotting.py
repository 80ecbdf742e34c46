"""Figures of a comparison with experts draw the numbers of its tables."""

import numpy as np
import pandas as pd
import pytest

from placement.study.plotting import plot_evaluation


@pytest.fixture
def small_tables():
    """Two cases of experts and one method, with numbers that are easily told apart."""
    cases = pd.DataFrame(
        {
            "case": [0, 1, 0, 1],
            "method": ["experts", "experts", "network", "network"],
            "tumor_volume": [30.0, 50.0, 30.0, 50.0],
            "f_tumor": [0.9, 0.8, 0.7, np.nan],
            "dice_fair": [0.6, 0.4, 0.5, 0.3],
            "dice_mean": [0.61, 0.41, 0.51, 0.31],
            "volume": [8.0, 10.0, 9.0, 16.0],
            "difference": [1.0, -2.0, 1.0, 6.0],
        }
    )
    limits = pd.DataFrame(
        {
            "method": ["network", "network"],
            "against": ["expert 1", "mean of experts"],
            "bias": [99.0, 3.5],
            "lower": [98.0, -3.43],
            "upper": [100.0, 10.43],
        }
    )
    return {"cases": cases, "bland_altman": limits}


def points(ax):
    """Coordinates of the groups of points, in the order in which they were drawn."""
    return [np.column_stack(line.get_data()) for line in ax.lines if line.get_marker() == "o"]


def bars(ax):
    return [line.get_ydata() for line in ax.lines if line.get_marker() != "o"]


def test_the_figure_says_what_it_is_not_for_and_what_is_synthetic(small_tables):
    assert plot_evaluation(small_tables).get_supxlabel() == "Not for clinical use"
    synthetic = plot_evaluation(small_tables, synthetic=True)
    assert "no person was scanned" in synthetic.get_supxlabel()


def test_every_method_is_a_column_of_points_around_their_mean(small_tables):
    dice, share = plot_evaluation(small_tables).axes[:2]
    experts, network = points(dice)
    np.testing.assert_array_equal(experts[:, 1], [0.6, 0.4])
    np.testing.assert_array_equal(network[:, 1], [0.5, 0.3])
    for column, group in enumerate((experts, network)):
        assert (np.abs(group[:, 0] - column) <= 0.25).all()
        assert len(set(group[:, 0])) == 2
    np.testing.assert_allclose(bars(dice), [[0.5, 0.5], [0.4, 0.4]])
    # A case that the method did not place has no point, and counts for no mean.
    assert [len(group) for group in points(share)] == [2, 1]
    np.testing.assert_allclose(bars(share), [[0.85, 0.85], [0.7, 0.7]])
    for ax in (dice, share):
        assert [label.get_text() for label in ax.get_xticklabels()] == ["experts", "network"]


def test_dice_and_volume_are_drawn_over_the_volume_of_the_tumor(small_tables):
    dice, volume = plot_evaluation(small_tables).axes[2:4]
    assert [ax.get_title("left") for ax in (dice, volume)] == ["mean Dice", "volume, mL"]
    np.testing.assert_array_equal(points(dice), [[[30, 0.61], [50, 0.41]], [[30, 0.51], [50, 0.31]]])
    np.testing.assert_array_equal(points(volume), [[[30, 8], [50, 10]], [[30, 9], [50, 16]]])


def test_differences_are_drawn_over_the_mean_of_method_and_experts(small_tables):
    agreement = plot_evaluation(small_tables).axes[4]
    # A box of 9 mL that is 1 mL larger than the experts' of 8 mL, and one of 16 and 10 mL.
    np.testing.assert_allclose(points(agreement), [[[8.5, 1], [13, 6]]])
    assert [height[0] for height in bars(agreement)] == [3.5, -3.43, 10.43]
    assert agreement.get_title("left") == "network: 3.5 mL (-3.4 … 10.4)"
    # Limits that are not known are not drawn, and a bias that rounds to zero has no sign.
    small_tables["bland_altman"].loc[1, ["bias", "lower", "upper"]] = [-0.04, np.nan, np.nan]
    agreement = plot_evaluation(small_tables).axes[4]
    assert [height[0] for height in bars(agreement)] == [-0.04]
    assert agreement.get_title("left").startswith("network: 0.0 mL")
