"""What is known of subjects as columns, whatever type a table has given it."""

import numpy as np
import pandas as pd
import pytest

from anomaly.detectors.covariates import Design


def test_levels_are_the_same_as_words_and_as_numbers():
    design = Design.learn({"site": ["1", "2", "2", "3"]}, 4)
    expected = design.matrix({"site": ["2", "1", "3"]}, 3)
    np.testing.assert_array_equal(expected, [[1, 1, 0], [1, 0, 0], [1, 0, 1]])
    np.testing.assert_array_equal(design.matrix({"site": [2, 1, 3]}, 3), expected)
    with pytest.raises(ValueError, match="covariate site is 4, and the healthy subjects have 1, 2, 3"):
        design.matrix({"site": [4]}, 1)


def test_numbers_are_numbers_in_columns_of_any_type():
    ages = [31.5, 40, 62]
    expected = Design.learn({"age": ages}, 3)
    assert expected.n_columns == 2
    for column in (np.array(ages, dtype=object), pd.array(ages, dtype="Float64")):
        design = Design.learn(pd.DataFrame({"age": column}), 3)
        assert design.columns == expected.columns
        np.testing.assert_allclose(design.matrix({"age": column}, 3), expected.matrix({"age": ages}, 3))


@pytest.mark.parametrize(
    "column",
    [
        pd.array(["a", None, "b"], dtype="string"),
        np.array(["a", None, "b"], dtype=object),
        np.array(["a", float("nan"), "b"], dtype=object),
        ["a", "", "b"],
        ["a", float("nan"), "b"],
        pd.array([1, None, 3], dtype="Int64"),
        [1.0, float("nan"), 3.0],
    ],
)
def test_what_is_missing_is_told(column):
    with pytest.raises(ValueError, match="covariate x is missing for 1 of 3 scans"):
        Design.learn({"x": column}, 3)
