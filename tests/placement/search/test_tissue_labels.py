"""Values of label images have no meaning until they are named."""

import numpy as np
import pytest

from placement.search.tissue_labels import (
    ENHANCING,
    MERGED,
    NECROSIS,
    SCHEMES,
    check_values,
    describe_schemes,
    enclosed_share,
    named_labels,
    target_tissues,
)


def test_schemes_read_the_values_as_published_and_a_table_names_values_of_its_own(tmp_path):
    assert named_labels("brats2013") == {"necrosis": [1], "edema": [2], "non-enhancing": [3], "enhancing": [4]}
    assert named_labels("brats2017") == {MERGED: [1], "edema": [2], "enhancing": [4]}
    assert named_labels("brats2023") == {MERGED: [1], "edema": [2], "enhancing": [3], "resection cavity": [4]}
    assert all(scheme in describe_schemes() for scheme in SCHEMES)
    table = tmp_path / "labels.tsv"
    table.write_text("index\tname\n7\tnecrosis\n8\tEnhancing\n9\tenhancing\n")
    assert named_labels(str(table)) == {NECROSIS: [7], ENHANCING: [8, 9]}
    check_values([1, 4], named_labels("brats2013"), "case")


def test_the_target_is_solid_tumor_and_flair_bright_tissue_only_where_asked_for():
    rules = {"min_volume": 6.0, "title": "case"}
    # No tissue is told as target that is not labeled, or of which a part may be necrosis.
    assert target_tissues({NECROSIS: 2, ENHANCING: 9}, flair_target=False, **rules) == ((ENHANCING,), "")
    targets, reason = target_tissues({MERGED: 2, ENHANCING: 9}, flair_target=False, **rules)
    assert (targets, reason) == ((ENHANCING,), f"what is labeled {MERGED} (2.0 mL) is not in the target")
    targets, reason = target_tissues({"edema": 20, ENHANCING: 9}, flair_target=True, **rules)
    assert targets == (ENHANCING,)
    assert reason.startswith("--flair-target changes nothing: solid tumor")
    targets, reason = target_tissues({"edema": 20, MERGED: 3}, flair_target=True, **rules)
    assert "edema" in targets
    assert ENHANCING not in targets
    with pytest.raises(ValueError, match=r"case: nothing is labeled 'enhancing', only 'edema'; --flair-target"):
        target_tissues({"edema": 2, ENHANCING: 0}, flair_target=False, **rules)
    with pytest.raises(ValueError, match=r"case: nothing is labeled .* its only value is 1, .* leave out --labels"):
        target_tissues({NECROSIS: 2}, flair_target=False, is_mask=True, **rules)
    with pytest.raises(ValueError, match="case: no voxel is labeled; check the file"):
        target_tissues({"edema": 0, ENHANCING: 0}, flair_target=True, **rules)


@pytest.mark.parametrize(
    ("solid", "least", "is_bright"), [(0.005, 6, True), (5.9, 6, True), (6, 6, False), (5.9, 3, False)]
)
def test_flair_bright_tissue_is_the_target_where_solid_tumor_is_below_the_smallest_volume(solid, least, is_bright):
    volumes = {"edema": 20.0, MERGED: 3.5, ENHANCING: solid}
    targets, reason = target_tissues(volumes, flair_target=True, min_volume=least, title="case")
    assert ({"edema", MERGED, ENHANCING} <= set(targets)) == is_bright
    assert f"{solid:g} mL" in reason.replace(".0 mL", " mL")
    assert (f"; {23.5 + solid:.1f} mL)" in reason) == is_bright
    targets, reason = target_tissues(volumes, flair_target=False, min_volume=least, title="case")
    assert targets == (ENHANCING,)
    assert ("--flair-target takes" in reason) == ("; or is --labels wrong?" in reason) == is_bright


def test_a_tissue_is_enclosed_where_another_is_met_on_five_of_six_sides():
    index = np.moveaxis(np.indices((21, 21, 21)), 0, -1)
    radius = np.linalg.norm(index - 10, axis=-1)
    core, shell = radius <= 4, (radius > 5) & (radius <= 8)
    assert enclosed_share(core, shell) == 1
    assert enclosed_share(shell, core) == 0
    # A shell that is open on one side encloses, half a shell does not.
    assert enclosed_share(core, shell & (index[..., 0] < 16)) == 1
    assert enclosed_share(core, shell & (index[..., 0] < 8) & (index[..., 1] < 8)) == 0
    assert enclosed_share(np.zeros_like(core), shell) == 0
