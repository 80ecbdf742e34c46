"""Numbers with what they count, and lists of names."""

import pytest

from dmrifit._utils.counts import counted, first_few, size_text


@pytest.mark.parametrize(("n", "text"), [(0, "0 draws"), (1, "1 draw"), (2, "2 draws")])
def test_what_is_counted_has_its_plural(n, text):
    assert counted(n, "draw") == text


@pytest.mark.parametrize(("n", "text"), [(0, "0 axes"), (1, "1 axis"), (2, "2 axes")])
def test_a_plural_without_an_s_is_taken_as_it_is(n, text):
    assert counted(n, "axis", "axes") == text


@pytest.mark.parametrize(("names", "text"), [("", ""), ("abc", "a, b, c"), ("abcdef", "a, b, c, d, e and 1 more")])
def test_names_beyond_the_first_five_are_counted(names, text):
    assert first_few(list(names)) == text


def test_the_axes_of_an_array_have_their_lengths():
    assert size_text((48, 40, 8)) == "48 × 40 × 8"
