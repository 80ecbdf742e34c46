"""Values of label images have no meaning until they are named."""

import pytest

from placement.search.tissue_labels import (
    ENHANCING,
    MERGED,
    NECROSIS,
    SCHEMES,
    check_values,
    describe_schemes,
    named_labels,
    target_tissues,
)


def test_schemes_read_the_values_as_published():
    assert named_labels("brats2013") == {"necrosis": [1], "edema": [2], "non-enhancing": [3], "enhancing": [4]}
    assert named_labels("brats2017") == {MERGED: [1], "edema": [2], "enhancing": [4]}
    assert named_labels("brats2023") == {MERGED: [1], "edema": [2], "enhancing": [3], "resection cavity": [4]}
    assert all(scheme in describe_schemes() for scheme in SCHEMES)


def test_a_table_names_values_of_its_own(tmp_path):
    table = tmp_path / "labels.tsv"
    table.write_text("index\tname\n7\tnecrosis\n8\tEnhancing\n9\tenhancing\n")
    assert named_labels(str(table)) == {NECROSIS: [7], ENHANCING: [8, 9]}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("1\ttumour", "row 2: 'tumour' is no tissue known here; name it one of necrosis"),
        ("x\tedema", "row 2: index 'x' must be a whole number above 0"),
        ("0\tedema", "index '0' must be"),
        ("1\tedema\n1\tnecrosis", "names a value twice"),
    ],
)
def test_tables_that_name_nothing_are_refused(tmp_path, rows, words):
    table = tmp_path / "labels.tsv"
    table.write_text(f"index\tname\n{rows}\n")
    with pytest.raises(ValueError, match=words):
        named_labels(str(table))


def test_an_unknown_scheme_is_refused_with_those_that_are_known():
    with pytest.raises(ValueError, match=r"--labels brats2099 is neither.*brats2013 .1 necrosis.*index and name"):
        named_labels("brats2099")


def test_values_without_a_name_are_refused_with_the_readings():
    check_values([1, 4], named_labels("brats2013"), "case")
    with pytest.raises(ValueError, match=r"case: the values \[3\] are not among.*\[1, 2, 4\].*brats2023"):
        check_values([1, 2, 3], named_labels("brats2017"), "case")


def test_the_target_is_solid_tumor_and_flair_bright_tissue_only_where_asked_for():
    assert target_tissues([NECROSIS, ENHANCING], flair_target=False, title="") == ("non-enhancing", "enhancing")
    assert ENHANCING in target_tissues(["edema", ENHANCING], flair_target=True, title="")
    assert "edema" in target_tissues(["edema", MERGED], flair_target=True, title="")
    with pytest.raises(ValueError, match=r"case: nothing is labeled .* only edema; --flair-target"):
        target_tissues(["edema"], flair_target=False, title="case")
    with pytest.raises(ValueError, match=r"case: nothing is labeled .* its only value is 1, .* leave out --labels"):
        target_tissues([NECROSIS], flair_target=False, title="case", is_mask=True)
