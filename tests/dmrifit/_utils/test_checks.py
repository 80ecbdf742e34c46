"""Checks of parameters."""

from dataclasses import KW_ONLY, dataclass
from typing import Annotated, Literal

import numpy as np
import pytest
from sklearn.base import BaseEstimator

from dmrifit._utils.checks import (
    Count,
    Within,
    check_fields,
    check_magnitude,
    check_number,
    check_word,
    finite_numbers,
    with_flags,
)


@pytest.mark.parametrize("value", [0, 0.5, np.float32(0.5), np.int64(1)])
def test_numbers_inside_their_limits_are_accepted(value):
    check_number("share", value, most=1)
    check_number("rate", 1e-30, above=0)


@pytest.mark.parametrize("value", ["low", np.str_("low"), None, 26, np.int64(26)])
def test_known_words_are_accepted(value):
    check_word("side", value, ("low", None, 26, 1))


@pytest.mark.parametrize("value", [True, np.True_, False, np.False_])
def test_true_and_false_may_come_from_an_array(value):
    check_word("leave_out", value, (True, False))


def test_lists_of_finite_numbers_become_arrays():
    assert finite_numbers([[1, 2.5]], "unit").tolist() == [[1, 2.5]]


@pytest.mark.parametrize("held", [1e60, 1e-60, 0.0])
def test_training_data_with_a_variance_are_accepted(held):
    check_magnitude(np.array([[held, np.nan], [2 * held, np.inf]]), "X")


@dataclass(repr=False, eq=False)
class Hinted(BaseEstimator):
    word: Literal["a", "b"] | None = None
    _: KW_ONLY
    count: Count = 1
    share: Annotated[float, Within(above=0, below=1)] | None = None
    flag: bool = True
    free: int | tuple[int, ...] = 3


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("word", "c", "word must be one of a, b, None, not 'c'"),
        ("count", 0, "count must be a whole number of at least 1, not 0"),
        ("count", 1.0, "count must be a whole number"),
        ("share", 1, "share must be a number above 0 and below 1, not 1"),
        ("flag", 1, "flag must be one of False, True, not 1"),
    ],
)
def test_fields_of_a_dataclass_are_checked_by_their_hints(field, value, message):
    check_fields(Hinted("a", share=0.5, free="anything"))
    with pytest.raises(ValueError, match=message):
        check_fields(Hinted(**{field: value}))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("give sigma=… or labels=, or truth='walk'", "give --sigma or --labels, or --truth walk"),
        ("x.nii exists; pass overwrite=True (--overwrite)", "x.nii exists; pass --overwrite"),
        ("set aligned=False (--set aligned=false)", "set --set aligned=false"),
        ("found by b_tolerance (--b-tolerance)", "found by --b-tolerance"),
        ("a.nii: mean must be one of x; the score_mask", "a.nii: --average-directions must be one of x; the --score-mask"),
        ("did you mean ivim? a mask (--mask FILE); b_max.nii is empty",) * 2,
        ("give a mask (mask=…, --mask, or all)", "give a mask (--mask, or all)"),
        ("the truth must be known; shape=(3, 4); no S0=1, fixed=2, /a/sigma=2, --fix K=0; labels",) * 2,
    ],
)
def test_arguments_of_functions_become_flags(text, shown):
    options = ["sigma", "labels", "truth", "overwrite", "score_mask", "average_directions", "shape", "mask", "b_max"]
    assert with_flags(text, options) == with_flags(shown, options) == shown
    assert with_flags("give it by by_te()", options, [("by by_te()", "by --by-te")]) == "give it by --by-te"
