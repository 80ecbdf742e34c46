"""Numbers as pages write them."""

import math

import pytest

from dmrifit.report.numerals import fixed, p_value, percent, significant


@pytest.mark.parametrize(
    ("value", "n", "text"),
    [
        (3.14159, 2, "3.14"), (-3.14159, 2, "−3.14"), (-0.004, 2, "0.00"), (0.0, 1, "0.0"), (-0.6, 0, "−1"),
        (-0.4, 0, "0"), (math.nan, 2, "–"), (math.inf, 2, "–"), (-math.inf, 2, "–"),
    ],
)
def test_decimals_are_fixed_and_the_minus_sign_is_true(value, n, text):
    assert fixed(value, n) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0312, "3.1"), (0.0994, "9.9"), (0.0996, "10"), (0.104, "10"), (1.5, "150"), (-0.0312, "−3.1"), (-0.5, "−50"),
        (0.0, "0.0"), (math.nan, "–"), (0.9997, "99.97"), (0.0004, "0.04"), (1.0, "100"), (1.0001, "100"),
    ],
)
def test_a_fraction_in_percent_has_a_decimal_below_ten(value, text):
    assert percent(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1174.0, "1170"), (367.4, "367"), (9.996, "10.0"), (0.012345, "0.0123"), (-0.5, "−0.500"), (0.0, "0"),
        (2.5e-6, "2.50e−06"), (-3.21e8, "−3.21e+08"), (math.nan, "–"),
    ],
)
def test_significant_digits_need_no_exponent_where_a_number_is_of_common_size(value, text):
    assert significant(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, "0.50"), (0.1234, "0.12"), (0.1, "0.10"), (0.0456, "0.046"), (0.00123, "0.0012"), (0.0001, "0.0001"),
        (0.00009, "< 0.0001"), (0.0, "< 0.0001"), (math.nan, "–"),
    ],
)
def test_a_p_value_has_two_digits_and_a_smallest_one(value, text):
    assert p_value(value) == text
