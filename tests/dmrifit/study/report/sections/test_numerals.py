"""Numbers as a report writes them."""

import math

import pytest

from dmrifit.study.report.sections.numerals import correlation, decimals, p_value, percent, plural


@pytest.mark.parametrize(
    ("value", "n", "text"),
    [
        (3.14159, 2, "3.14"),
        (-3.14159, 2, "−3.14"),
        (-0.004, 2, "0.00"),
        (0.0, 1, "0.0"),
        (-0.6, 0, "−1"),
        (-0.4, 0, "0"),
        (math.nan, 2, "–"),
        (math.inf, 2, "–"),
        (-math.inf, 2, "–"),
    ],
)
def test_decimals_are_fixed_and_the_minus_sign_is_true(value, n, text):
    assert decimals(value, n) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0312, "3.1"),
        (0.0994, "9.9"),
        (0.0996, "10"),
        (0.104, "10"),
        (1.5, "150"),
        (-0.0312, "−3.1"),
        (-0.5, "−50"),
        (0.0, "0.0"),
        (math.nan, "–"),
    ],
)
def test_a_fraction_in_percent_has_a_decimal_below_ten(value, text):
    assert percent(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.987, "0.99"), (-0.25, "−0.25"), (math.nan, "–")])
def test_a_correlation_has_two_decimals(value, text):
    assert correlation(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, "0.50"),
        (0.1234, "0.12"),
        (0.1, "0.10"),
        (0.0456, "0.046"),
        (0.00123, "0.0012"),
        (0.0001, "0.0001"),
        (0.00009, "< 0.0001"),
        (0.0, "< 0.0001"),
        (math.nan, "–"),
    ],
)
def test_a_p_value_has_two_digits_and_a_smallest_one(value, text):
    assert p_value(value) == text


@pytest.mark.parametrize(("n", "text"), [(0, "0 draws"), (1, "1 draw"), (2, "2 draws")])
def test_what_is_counted_has_its_plural(n, text):
    assert plural(n, "draw") == text
