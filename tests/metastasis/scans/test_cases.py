"""Cases hold what fits together, and come back from files as they were."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from metastasis import Case, read_cases, write_cases

AFFINE = np.array([[-1.5, 0, 0, 20], [0, 1.5, 0, -10], [0, 0, 2.0, 5], [0, 0, 0, 1]])


def made(name="p01", **changes):
    rng = np.random.default_rng(len(name))
    image = rng.standard_normal((6, 7, 8)).astype(np.float32)
    label = (image > 1).astype(np.uint8)
    return Case(**{"patient": "p01", "image": image, "label": label, "affine": AFFINE, "name": name} | changes)


def saved(values, path, affine=AFFINE):
    nib.save(nib.Nifti1Image(values, affine), path)


def table(folder, text):
    (folder / "t.tsv").write_text(text)
    return folder / "t.tsv"


def test_cases_come_back_from_files_bit_by_bit(tmp_path):
    lesions = pd.DataFrame({"number": [1], "diameter_mm": [3.25], "status": ["new"], "volume_mL": [0.25]})
    full = made(
        "p01 'a'\"",
        prior=np.ones((6, 7, 8)) / 3,
        brain=np.ones((6, 7, 8), bool),
        prior_label=np.zeros((6, 7, 8)),
        mimics=np.ones((6, 7, 8)),
        lesions=lesions,
        synthetic=True,
    )
    bare = Case("p02", np.arange(24.0).reshape(2, 3, 4))
    back = read_cases(write_cases([full, bare], tmp_path / "out"))
    assert [case.name for case in back] == [full.name, "p02"]
    for case, other in zip(back, (full, bare), strict=True):
        assert (case.patient, case.synthetic) == (other.patient, other.synthetic)
        np.testing.assert_array_equal(case.affine, other.affine)
        for key in ("image", "label", "prior", "brain", "prior_label", "mimics"):
            mine, theirs = getattr(case, key), getattr(other, key)
            assert (mine is None) == (theirs is None)
            if mine is not None:
                assert mine.dtype == theirs.dtype
                np.testing.assert_array_equal(mine, theirs)
    pd.testing.assert_frame_equal(back[0].lesions, lesions, check_dtype=False)
    assert back[1].lesions is None
    assert back[0].spacing == (1.5, 1.5, 2.0)


def test_files_are_replaced_only_when_told_and_stay_when_writing_fails(tmp_path):
    write_cases([made()], tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_cases([made()], tmp_path)
    broken = made(lesions="no table")
    with pytest.raises(AttributeError):
        write_cases([made(), made("p09"), made("p10", lesions=broken.lesions)], tmp_path, overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert write_cases([made(synthetic=True)], tmp_path, overwrite=True).name == "cases.tsv"
    assert read_cases(tmp_path / "cases.tsv")[0].synthetic


def test_masks_are_what_lies_above_a_half_and_classes_are_chosen(tmp_path):
    labels = np.zeros((4, 4, 4), np.float32)
    labels[0], labels[1], labels[2] = 1, 2, 4
    saved(np.zeros((4, 4, 4, 1), np.float32), tmp_path / "i.nii")
    saved(labels * np.float32(0.99999997), tmp_path / "l.nii")
    saved(np.full((4, 4, 4), 0.99999997, np.float32), tmp_path / "b.nii")
    head = "patient\timage\tlabel\tbrain\tclasses\tremark\n"
    chosen, every = read_cases(table(tmp_path, head + "a\ti.nii\tl.nii\tb.nii\t1,4\tx\nb\ti.nii\tl.nii\tn/a\tn/a\ty\n"))
    np.testing.assert_array_equal(chosen.label, np.isin(labels, (1, 4)))
    np.testing.assert_array_equal(every.label, labels > 0)
    assert chosen.brain.all()
    assert every.brain is None
    assert not every.synthetic


def test_masks_are_read_by_the_rule_that_all_masks_have(tmp_path):
    mask = np.ones((4, 4, 4), np.float32)
    mask[0, 0, 0] = np.nan
    saved(np.zeros((4, 4, 4), np.float32), tmp_path / "i.nii")
    saved(mask, tmp_path / "m.nii")
    mask[0, 0, 0] = np.inf
    saved(mask, tmp_path / "infinite.nii")
    saved(np.full((4, 4, 4), np.nan, np.float32), tmp_path / "nothing.nii")
    head = "patient\timage\tlabel\tbrain\tclasses\n"
    rows = "a\ti.nii\tm.nii\tm.nii\tn/a\nb\ti.nii\tm.nii\tm.nii\t1\n"
    for case in read_cases(table(tmp_path, head + rows)):
        assert case.label.sum() == case.brain.sum() == 63
        assert not case.brain[0, 0, 0]
    for row in ("infinite.nii\tn/a\tn/a", "infinite.nii\tn/a\t1", "n/a\tinfinite.nii\tn/a"):
        with pytest.raises(ValueError, match=r"row 2 \(patient a\): .*infinite\.nii holds inf .*set"):
            read_cases(table(tmp_path, f"{head}a\ti.nii\t{row}\n"))
    with pytest.raises(ValueError, match=r"nothing\.nii: no voxel is inside the mask .it holds no finite value"):
        read_cases(table(tmp_path, f"{head}a\ti.nii\tnothing.nii\tn/a\tn/a\n"))


def test_classes_are_numbers(tmp_path):
    saved(np.zeros((4, 4, 4), np.float32), tmp_path / "i.nii")
    with pytest.raises(ValueError, match=r"row 2 \(patient a\): classes must be whole numbers .*'one'"):
        read_cases(table(tmp_path, "patient\timage\tlabel\tclasses\na\ti.nii\ti.nii\tone\n"))


def test_names_that_cannot_be_kept_are_refused(tmp_path):
    for cases, message in (
        ([], "no cases"),
        ([made("a/b"), made("a-b")], "same files: a-b, a/b"),
        ([made("n/a")], "name in a table"),
        ([made("a\tb")], "name in a table"),
    ):
        with pytest.raises(ValueError, match=message):
            write_cases(cases, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_real_tumor_cores_and_small_lesions_are_read_as_lesions(data_dir, tmp_path):
    folder = data_dir / "brats2013_deepmedic"
    rows = [
        f"{path.name}\t{path / 'T1c_subtrMeanDivStd.nii.gz'}\t{path / 'OTMultiClass.nii.gz'}\t1,3,4\t"
        f"{path / 'brainmask.nii.gz'}"
        for path in sorted(folder.glob("brats_*"))
    ]
    text = "patient\timage\tlabel\tclasses\tbrain\n" + "\n".join(rows) + "\n"
    cases = read_cases(table(tmp_path, text))
    assert [int(case.label.sum()) for case in cases] == [25664, 45266, 107445]
    assert [int(case.brain.sum()) for case in cases] == [1690470, 1523743, 1084095]
    assert all(case.spacing == (1.0, 1.0, 1.0) and case.shape == (240, 240, 155) for case in cases)
    folder = data_dir / "ms_lesions_mni"
    rows = [f"{n}\t{folder / f'patient{n}_T1POST.nii.gz'}\t{folder / f'patient{n}_lesions.nii.gz'}" for n in (19, 26)]
    cases = read_cases(table(tmp_path, "patient\timage\tlabel\n" + "\n".join(rows) + "\n"))
    assert [int(case.label.sum()) for case in cases] == [49769, 8227]
    assert not any(case.synthetic for case in cases)
