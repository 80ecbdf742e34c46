"""Cases hold what fits together, and come back from files as they were."""

import nibabel as nib
import numpy as np
import pytest

from anomaly import Case, read_cases, write_cases
from anomaly.scans.cases import normalized

AFFINE = np.array([[-2.0, 0, 0, 20], [0, 2.0, 0, -10], [0, 0, 3.0, 5], [0, 0, 0, 1]])
SHAPE = (6, 7, 8)


def made(name="p01", n=12, **changes):
    rng = np.random.default_rng(len(name))
    brain = rng.random(SHAPE) > 0.3
    b0 = (50 + 900 * rng.random(SHAPE)).astype(np.float32)
    magnitudes = (b0[..., None] * rng.random((*SHAPE, n))).astype(np.float32)
    directions = rng.standard_normal((n, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    signal = (magnitudes / b0[..., None]) * brain[..., None]
    return Case(**{"patient": "p01", "signal": signal, "brain": brain, "affine": AFFINE, "name": name, "b0": b0,
                   "directions": directions} | changes)  # fmt: skip


def test_cases_come_back_from_files(tmp_path):
    rng = np.random.default_rng(5)
    masks = {"tissue": rng.integers(0, 5, SHAPE), "lesion": rng.random(SHAPE) > 0.9, "followup": rng.random(SHAPE) > 0.8}
    words = {"age": 63.5, "sex": "female", "site": "Trio", "grade": "IV", "kind": "cellular", "synthetic": True, "b": 700}
    full = made("p01 'a'\"", **masks, **words)
    bare = Case("p02", rng.random((2, 3, 4, 5)))
    back = read_cases(write_cases([full, bare], tmp_path / "out"))
    assert [case.name for case in back] == [full.name, "p02"]
    for case, other in zip(back, (full, bare), strict=True):
        for key in ("patient", *words):
            np.testing.assert_equal(getattr(case, key), getattr(other, key))
        for key in ("signal", "brain", "tissue", "lesion", "followup", "affine", "directions"):
            mine, theirs = getattr(case, key), getattr(other, key)
            assert (mine is None) == (theirs is None)
            if mine is not None:
                assert mine.dtype == theirs.dtype
                # Products and quotients of single precision are rounded.
                np.testing.assert_allclose(mine, theirs, rtol=2e-7)
    np.testing.assert_array_equal(back[0].b0, full.b0 * full.brain)
    np.testing.assert_array_equal(back[1].b0, 1)
    assert back[0].spacing == (2.0, 2.0, 3.0)


def test_signals_are_divided_by_the_mean_at_b_0_in_their_range_and_inside_the_brain():
    brain = np.zeros((2, 2, 2), bool)
    brain[0] = True
    signal = np.full((2, 2, 2, 3), 1.5)
    signal[0, 0] = -0.5
    case = Case("a", signal, brain)
    assert case.signal.dtype == np.float32
    for index, value in (((0, 1), 1), ((0, 0), 0), (1, 0)):
        np.testing.assert_array_equal(case.signal[index], value)
    assert signal.max() == 1.5
    values = np.array([[[[80.0, 30.0, 120.0, 300.0, -5.0]]], [[[80.0, 30.0, 120.0, 3.0, 5.0]]]])
    signal, b0 = normalized(values, [0, 1000, 5, 990, 1010], [[[True]], [[False]]])
    np.testing.assert_array_equal(b0.ravel(), [100, 0])
    np.testing.assert_allclose(signal[0, 0, 0], [0.3, 1, 0])
    np.testing.assert_array_equal(signal[1], 0)
    for b, value, message in (
        ([1000, 1000], 1.0, "no volume without .* 1000 to 1000"),
        ([0, 5], 1.0, "no volume with diffusion weighting"),
        ([0, 1000], np.nan, "non-finite values in 1 voxel of the brain"),
    ):
        with pytest.raises(ValueError, match=message):
            normalized(np.full((1, 1, 1, 2), value), b, np.ones((1, 1, 1), bool))


def test_white_and_gray_matter_are_scored_and_fluid_is_not():
    tissue = np.arange(5, dtype=np.uint8).reshape(1, 1, 5)
    brain = np.array([[[False, True, True, True, True]]])
    case = Case("a", np.ones((1, 1, 5, 2)) * brain[..., None], brain, tissue)
    np.testing.assert_array_equal(case.scored, [[[False, True, True, False, True]]])
    np.testing.assert_array_equal(Case("a", case.signal, brain).scored, brain)
    lesions = (None, np.zeros((1, 1, 5)), brain)
    assert [Case("a", case.signal, brain, lesion=lesion).healthy for lesion in lesions] == [True, True, False]


def test_rows_that_are_wrong_are_named(tmp_path):
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4, 3), np.float32), np.eye(4)), tmp_path / "i.nii")
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.float32), 2 * np.eye(4)), tmp_path / "m.nii")
    for name, text in (("b", "0 1000 1000"), ("short", "0 1000"), ("shells", "0 1000 2000"), ("none", "900 900 900")):
        (tmp_path / f"{name}.bval").write_text(text)
    head = "patient\timage\tbval\tbrain\tage\tsynthetic\n"
    for row, message in (
        ("a\ti.nii\tb.bval\tm.nii\tn/a\tn/a", r"row 2 \(patient a\).*m\.nii"),
        ("a\ti.nii\tshort.bval\tn/a\tn/a\tn/a", "3.*2 b-values"),
        ("a\ti.nii\tshells.bval\tn/a\tn/a\tn/a", "several b-values.*2000"),
        ("a\ti.nii\tnone.bval\tn/a\tn/a\tn/a", "no volume without"),
    ):
        (tmp_path / "t.tsv").write_text(f"{head}{row}\n")
        with pytest.raises(ValueError, match=message):
            read_cases(tmp_path / "t.tsv")


def test_real_series_are_read(data_dir, tmp_path):
    folder = data_dir / "dipy_small_dwi"
    row = "\t".join(str(folder / f"small_64D.{end}") for end in ("nii", "bval", "bvec"))
    (tmp_path / "t.tsv").write_text(f"patient\timage\tbval\tbvec\nreal\t{row}\n")
    (case,) = read_cases(tmp_path / "t.tsv")
    assert (case.signal.shape[3], case.b, case.synthetic) == (64, 994, False)
    assert 0.2 < case.signal[case.brain].mean() < 0.7
