"""Tables of cases and boxes come as arrays in the order of the cases, or one line says what they lack."""

import re

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from placement.cli.placement_commands import RegionOptions
from placement.exchange.tables import (
    BOX,
    prescribe_command,
    read_boxes,
    read_cases,
    read_experts,
    read_scene,
    source_digests,
)


@pytest.fixture
def table(tmp_path):
    for name in ("one.nii.gz", "two.nii.gz", "core.nii.gz"):
        (tmp_path / name).write_bytes(name.encode())
    path = tmp_path / "cases.tsv"
    path.write_text("name\ttumor\texclude\tpatient\none\tone.nii.gz\t3,4\tp\ntwo\ttwo.nii.gz\tcore.nii.gz\tq\n")
    return path


def test_a_path_of_text_is_read_with_files_relative_to_its_table_and_labels_are_no_files(table, tmp_path):
    pd.testing.assert_frame_equal(read_cases(str(table)), read_cases(table))
    mask = str(table.with_name("one.nii.gz"))
    assert read_cases(mask)["tumor"].tolist() == [mask]
    cases = read_cases(table)
    assert list(cases["tumor"]) == [str(tmp_path / "one.nii.gz"), str(tmp_path / "two.nii.gz")]
    assert list(cases["exclude"]) == ["3,4", str(tmp_path / "core.nii.gz")]
    assert list(cases["image"]) == ["", ""]
    assert list(cases["patient"]) == ["p", "q"]
    assert [set(source_digests(row)) for row in cases.itertuples()] == [{"Tumor"}, {"Tumor", "Exclude"}]
    (tmp_path / "core.nii.gz").unlink()
    assert list(read_cases(table, exclude="1")["exclude"]) == ["1", "1"]


def test_masks_of_one_name_in_two_folders_are_both_excluded(tmp_path):
    masks = {name: np.zeros((12, 12, 12), np.uint8) for name in ("tumor.nii.gz", "a/mask.nii.gz", "b/mask.nii.gz")}
    for i, (name, values) in enumerate(masks.items()):
        values[2 * i + 2 : 2 * i + 4, 4:8, 4:8] = 1
        (tmp_path / name).parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / name)
    path = tmp_path / "cases.tsv"
    path.write_text("name\ttumor\texclude\none\ttumor.nii.gz\ta/mask.nii.gz,b/mask.nii.gz\n")
    scene = read_scene(next(read_cases(path).itertuples()))
    assert [np.flatnonzero(one.any(axis=(1, 2))).tolist() for one in scene.forbidden.values()] == [[4, 5], [6, 7]]
    labels = sum(value * nib.load(tmp_path / name).get_fdata() for value, name in zip((4, 1, 2), masks, strict=True))
    nib.save(nib.Nifti1Image(labels.astype(np.uint8), np.eye(4)), tmp_path / "labels x.nii.gz")
    (row,) = read_cases(tmp_path / "labels x.nii.gz", exclude="1", brain="none").itertuples()
    assert read_scene(row, labels={"enhancing": [4], "necrosis": [1], "edema": [2]}).excluded == ("necrosis",)
    words = f"'{row.tumor}' --include=3,4 --labels=brats2013 --exclude=1 --margin=2 --brain=none --out 'labels x_box'"
    options = RegionOptions(include=(3, 4), margin=2, labels="brats2013")
    assert prescribe_command(row, options).endswith(f" prescribe {words}")


@pytest.mark.parametrize("turn", [[[0, 1], [1, 1], [2, 1]], [[0, -1], [1, 1], [2, 1]], [[2, 1], [0, -1], [1, 1]]])
def test_a_brain_is_found_where_it_is_in_an_image_of_any_storage(tmp_path, turn):
    brain = np.linalg.norm(np.indices((60, 62, 66)).T - (25, 30, 35), axis=-1).T < 19
    for name, values in (("tumor", (np.arange(60) < 12)[:, None, None] & brain), ("image", brain)):
        stored = nib.Nifti1Image(100 * values.astype(np.uint8), np.diag([3.0, 3, 3, 1]))
        nib.save(stored.as_reoriented(np.array(turn)) if name == "image" else stored, tmp_path / f"{name}.nii.gz")
    cases = read_cases(tmp_path / "tumor.nii.gz", image=tmp_path / "image.nii.gz", brain="auto")
    outside = read_scene(next(cases.itertuples())).forbidden["outside the brain"]
    assert (outside == ~brain).mean() > 0.999  # the tips of the ball are opened away


def test_a_single_mask_is_a_table_of_one(table, tmp_path):
    cases = read_cases(tmp_path / "one.nii.gz", image=tmp_path / "two.nii.gz")
    assert list(cases["name"]) == ["one"]
    assert list(cases["image"]) == [str(tmp_path / "two.nii.gz")]
    # Words of `--brain` are files in other columns.
    with pytest.raises(FileNotFoundError, match="none: no such file"):
        read_cases(tmp_path / "one.nii.gz", image="none")


def test_boxes_come_in_the_order_of_cases_and_experts(tmp_path):
    rows = [
        {"name": name, "expert": expert, **dict(zip(BOX, 10 * i + expert + np.arange(9.0), strict=True))}
        for i, (name, expert) in enumerate([("two", 1), ("one", 2), ("one", 1)])
    ]
    boxes = tmp_path / "experts.tsv"
    pd.DataFrame(rows).to_csv(boxes, sep="\t", index=False)
    found = read_experts(boxes, ["one", "two"])
    np.testing.assert_array_equal(found[..., 0], [[21, 12], [1, np.nan]])
    np.testing.assert_array_equal(found[0, 1], 12 + np.arange(9.0))
    pd.read_csv(boxes, sep="\t").query("expert == 1").drop(columns="expert").to_csv(boxes, sep="\t", index=False)
    assert read_boxes(boxes, ["one"], others=["two"])[:, 0] == 21
    with pytest.warns(UserWarning, match="boxes of two are left out; CASES has no such name"):
        assert read_boxes(boxes, ["one"])[:, 0] == 21
    np.testing.assert_array_equal(read_experts(boxes, ["one", "two"])[:, 0], read_boxes(boxes, ["one", "two"]))


def test_rows_that_miss_files_are_listed_on_request(table):
    for name in ("one", "two"):
        with table.open("a") as file:
            file.write(f"no-{name}\tno-{name}.nii.gz\tno-image.nii.gz\tr\n")
    failed = []
    assert read_cases(table, failed=failed)["name"].tolist() == ["one", "two"]
    assert [row["name"] for row in failed] == ["no-one", "no-two"]
    problem = failed[1]["problem"]
    assert problem.startswith(f"{table}, row 5: ")
    assert all(f"{name}.nii.gz: no such file; " in problem for name in ("no-two", "no-image"))
    assert problem.endswith("files are relative to the table")


def test_a_folder_of_masks_is_as_good_as_a_table(tmp_path):
    for name in ("p1.nii.gz", "p2_tumor.nii.gz", "p2_image.nii.gz", "p2_exclude.nii.gz"):
        (tmp_path / name).touch()
    table = read_cases(tmp_path)
    assert table.to_dict("records") == [
        {"name": "p1", "tumor": f"{tmp_path}/p1.nii.gz", "image": "", "exclude": "", "brain": "none", "synthetic": False},
        {key: f"{tmp_path}/p2_{key}.nii.gz" for key in ("tumor", "image", "exclude")}
        | {"name": "p2", "brain": "none", "synthetic": False},
    ]
    masks = [tmp_path / "p1.nii.gz", tmp_path / "p2_tumor.nii.gz"]
    pd.testing.assert_frame_equal(read_cases(masks), table)
    assert read_cases(masks[1])["image"].tolist() == [f"{tmp_path}/p2_image.nii.gz"]
    assert list(read_cases(tmp_path, exclude="1,2")["exclude"]) == ["1,2", "1,2"]
    with pytest.raises(ValueError, match=r"--image FILE is for a single case; name images like the masks"):
        read_cases(tmp_path, image="t1.nii.gz")
    for name in ("P1", "sub-1_desc-brain_mask", "sub-1_label-tumor_mask", "sub-1_ses-2_desc-brain_mask"):
        (tmp_path / f"{name}.nii.gz").touch()
    bids = sorted(tmp_path.glob("sub-1*"))
    assert read_cases(bids, brain="auto")["brain"].tolist() == [str(bids[0])]
    with pytest.raises(ValueError, match="names of cases become names of folders and must differ"):
        read_cases(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [("\none\t", "\n../a\t", "../a"), ("patient\none", "synthetic\none", "row 2: synthetic must be true or false")],
)
def test_cells_that_no_case_can_have_are_refused(table, old, new, said):
    text = table.read_text().replace(old, new)
    table.write_text(text.replace("\tp\n", "\tperhaps\n"))
    with pytest.raises(ValueError, match=re.escape(said)):
        read_cases(table)
