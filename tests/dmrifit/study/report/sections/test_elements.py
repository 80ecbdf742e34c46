"""What sections share: scores, capitals."""

import numpy as np
import pytest

from dmrifit.stats.metrics import METRICS
from dmrifit.study.report.sections.elements import capital, metric_text


@pytest.mark.parametrize(
    ("name", "value", "text"), [("dispersion", 0.314, "31"), ("pearson", -0.25, "−0.25"), ("bias", np.nan, "–")]
)
def test_a_score_has_the_unit_and_digits_of_its_metric(name, value, text):
    assert metric_text(METRICS[name], value) == text


def test_only_the_first_letter_becomes_a_capital():
    assert capital("median of T2v") == "Median of T2v"
    assert capital("") == ""
