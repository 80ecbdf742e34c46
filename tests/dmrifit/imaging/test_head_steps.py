"""Scans of heads are brought to a network: field, brain, grid and place are found again where they are known."""

import json

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import affine_transform, gaussian_filter

from dmrifit import prepare_brain
from dmrifit.imaging.head_steps import align_brain, correct_bias_field, find_brain
from dmrifit.simulate.tissues import smooth_field

SHAPE = (60, 66, 56)
SPACING = 2.0


def made(shape=SHAPE, spacing=SPACING, *, skull=False, noise=1.0, seed=0):
    """Make a brain of white and gray matter and fluid, with a skull and a scalp around it or nothing; and its mask."""
    rng = np.random.default_rng(seed)
    places = (np.indices(shape) - (np.array(shape)[:, None, None, None] - 1) / 2) * spacing
    x, y, z = places
    field = smooth_field(shape, [4 / spacing] * 3, rng).reshape(shape)
    radius = np.sqrt((x / 44) ** 2 + (y / 52) ** 2 + (z / 42) ** 2)
    brain = radius < 1
    picture = np.where(field > 0.3, 70.0, 100.0)
    picture[np.abs(x - 8) + np.abs(y + 4) / 4 + np.abs(z) / 3 < 6] = 30  # not symmetric
    picture[~brain] = 0
    if skull:
        picture[(radius >= 1) & (radius < 1.09)] = 20
        picture[(radius >= 1.09) & (radius < 1.2)] = 10
        picture[(radius >= 1.2) & (radius < 1.34)] = 120
    picture = np.abs(gaussian_filter(picture, 0.5) + noise * rng.standard_normal(shape))
    affine = np.diag([spacing] * 3 + [1.0])
    affine[:3, 3] = -(np.array(shape) - 1) / 2 * spacing
    return picture if skull else np.where(brain, picture, 0), brain, affine


def rigid(shift, degrees):
    """Give a turn about an oblique axis, and a shift."""
    from scipy.spatial.transform import Rotation

    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(np.radians(degrees) * np.array([1, 2, -2]) / 3).as_matrix()
    matrix[:3, 3] = shift
    return matrix


def apart(one, other, brain, affine):
    """Give the largest distance in mm, inside the brain, of where two transformations take a place."""
    places = np.argwhere(brain)[::50] @ affine[:3, :3].T + affine[:3, 3]
    difference = np.asarray(one) - np.asarray(other)
    return np.linalg.norm(places @ difference[:3, :3].T + difference[:3, 3], axis=1).max()


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def test_a_known_field_is_removed():
    picture, brain, affine = made()
    x = np.linspace(-1, 1, SHAPE[0])[:, None, None]
    z = np.linspace(-1, 1, SHAPE[2])
    true = np.exp(0.5 * x + 0.4 * z**2) * np.ones(SHAPE)
    true /= np.exp(np.log(true[brain]).mean())
    even, field = correct_bias_field(picture * true, affine, mask=brain)
    assert np.log(true[brain]).std() > 0.15
    assert np.log(field[brain] / true[brain]).std() < 0.03
    np.testing.assert_allclose(even, (picture * true) / field, rtol=1e-4, atol=1e-3)


def test_a_field_is_removed_without_a_mask_too_and_the_same_each_time():
    picture, brain, affine = made((24, 27, 23), 5.0)
    true = np.exp(0.5 * np.linspace(-1, 1, 24))[:, None, None]
    even, _ = correct_bias_field(picture * true, affine)
    np.testing.assert_array_equal(correct_bias_field(picture * true, affine)[0], even)
    before, after = (np.corrcoef(values[brain], picture[brain])[0, 1] for values in (picture * true, even))
    assert after > 0.98 > before + 0.02


def test_a_brain_without_a_skull_is_what_is_not_background():
    picture, brain, affine = made()
    for background in (0.0, -5.0):
        image = nib.Nifti1Image(np.where(brain, picture, background).astype(np.float32), affine)
        assert dice(find_brain(image), brain) > 0.99


def test_a_brain_inside_a_skull_is_found_with_a_bright_tumor_at_its_surface():
    picture, brain, affine = made((76, 82, 70), skull=True)
    places = (np.indices(picture.shape) - (np.array(picture.shape)[:, None, None, None] - 1) / 2) * SPACING
    tumor = (np.linalg.norm(places - np.array([36, 5, 0])[:, None, None, None], axis=0) < 12) & brain
    found = find_brain(nib.Nifti1Image(np.where(tumor, 220, picture).astype(np.float32), affine))
    assert dice(found, brain) > 0.95
    assert found[tumor].mean() > 0.95


def test_a_head_without_a_brain_is_refused():
    _, brain, affine = made((76, 82, 70), skull=True)
    noise = np.random.default_rng(0).uniform(0, 100, brain.shape).astype(np.float32)
    with pytest.raises(ValueError, match=r"no brain of 20 to 2200 mL.*brain_mask=False"):
        find_brain(nib.Nifti1Image(noise, affine))


def test_a_known_shift_and_turn_are_found():
    picture, brain, affine = made(noise=0.0)
    image = nib.Nifti1Image(picture.astype(np.float32), affine)
    true = rigid([6.0, -9.0, 4.0], 9.0)
    # The prior shows at world place T·p what the image shows at p, on a grid of its own.
    shape, grid = (80, 84, 80), np.diag([-1.7, 1.7, 1.7, 1.0])
    grid[:3, 3] = [70, -72, -66]
    matrix = np.linalg.inv(affine) @ np.linalg.inv(true) @ grid
    moved = affine_transform(picture, matrix[:3, :3], matrix[:3, 3], output_shape=shape, order=1)
    noisy = np.where(moved > 5, 0.6 * moved + 3 * np.random.default_rng(0).standard_normal(shape), 0)
    prior = nib.Nifti1Image(noisy.astype(np.float32), grid)
    assert apart(np.eye(4), true, brain, affine) > 10
    prepared = prepare_brain(image, prior=prior, spacing=None, bias_field=False)
    assert apart(prepared.transform, true, brain, affine) < 1.0
    values = np.asarray(prepared.prior.dataobj)
    assert values.shape == SHAPE
    inner = gaussian_filter(brain.astype(float), 2) > 0.99
    assert np.corrcoef(values[inner], picture[inner])[0, 1] > 0.95
    believed = prepare_brain(image, prior=prior, spacing=None, bias_field=False, register=False)
    np.testing.assert_array_equal(believed.transform, np.eye(4))
    assert np.corrcoef(np.asarray(believed.prior.dataobj)[inner], picture[inner])[0, 1] < 0.8


def test_places_stay_where_they_are_on_another_grid():
    places = np.indices((30, 24, 20))
    affine = np.array([[0, -3.0, 0, 12], [2.0, 0, 0, -30], [0, 0, 4.0, 7], [0, 0, 0, 1]])
    world = np.tensordot(affine[:3, :3], places, 1) + affine[:3, 3, None, None, None]
    ramp = world[0] + 2 * world[1] - world[2] + 500
    label = (ramp > 440).astype(np.uint8)
    made = prepare_brain(
        nib.Nifti1Image(ramp.astype(np.float32), affine),
        label=nib.Nifti1Image(label, affine),
        spacing=2.5,
        bias_field=False,
        brain_mask=False,
    )
    assert made.brain is None
    assert made.prior is None
    assert made.transform is None
    np.testing.assert_allclose(np.diag(made.image.affine), [2.5, 2.5, 2.5, 1])
    assert nib.aff2axcodes(made.image.affine) == ("R", "A", "S")
    values, inner = np.asarray(made.image.dataobj), (slice(2, -2),) * 3
    index = np.indices(values.shape)
    there = np.tensordot(made.image.affine[:3, :3], index, 1) + made.image.affine[:3, 3, None, None, None]
    expected = there[0] + 2 * there[1] - there[2] + 500
    np.testing.assert_allclose(values[inner], expected[inner], atol=0.01)
    sure = np.abs(expected - 440) > 8
    np.testing.assert_array_equal(
        np.asarray(made.label.dataobj)[inner][sure[inner]], (expected > 440)[inner][sure[inner]]
    )


def test_all_steps_together_are_written_with_a_sidecar(tmp_path):
    picture, brain, affine = made()
    true = np.exp(0.25 * np.linspace(-1, 1, SHAPE[1]))[None, :, None]
    shifted = np.array(affine)
    shifted[:3, 3] += [4.0, 0, -3.0]
    for name, values, where in (("sub-01_T1w", picture * true, affine), ("earlier", picture, shifted)):
        nib.save(nib.Nifti1Image(values.astype(np.float32), where), tmp_path / f"{name}.nii.gz")
    nib.save(nib.Nifti1Image(brain.astype(np.uint8), affine), tmp_path / "seg.nii.gz")
    out = tmp_path / "out"
    found = prepare_brain(
        tmp_path / "sub-01_T1w.nii.gz",
        prior=tmp_path / "earlier.nii.gz",
        label=tmp_path / "seg.nii.gz",
        spacing=2.5,
        out=out,
    )
    np.testing.assert_allclose(found.transform[:3, 3], [4, 0, -3], atol=0.5)
    mask = np.asarray(found.brain.dataobj) > 0
    one, other = (np.asarray(image.dataobj)[mask] for image in (found.image, found.prior))
    assert np.corrcoef(one, other)[0, 1] > 0.9
    assert (np.asarray(found.image.dataobj)[~mask] == 0).all()
    assert dice(mask, np.asarray(found.label.dataobj) > 0) > 0.97
    names = {"image": "T1w", "brain": "mask", "prior": "prior", "label": "dseg"}
    files = {key: f"sub-01_desc-prepared_{suffix}.nii.gz" for key, suffix in names.items()}
    assert sorted(path.name for path in out.iterdir()) == sorted([*files.values(), "sub-01_desc-prepared_T1w.json"])
    for key, file in files.items():
        back = nib.load(out / file)
        np.testing.assert_array_equal(np.asarray(back.dataobj), np.asarray(getattr(found, key).dataobj))
    described = json.loads((out / "sub-01_desc-prepared_T1w.json").read_text(encoding="utf-8"))
    assert described["Files"] == files
    assert described["Steps"] == {"Spacing": 2.5, "BiasField": True, "BrainMask": True, "Registered": True}
    assert described["Sources"]["Prior"]["Name"] == "earlier.nii.gz"
    assert {"SimpleITK", "dipy"} <= set(described["Versions"])
    np.testing.assert_allclose(described["Transform"]["Matrix"], found.transform)
    with pytest.raises(FileExistsError, match="--overwrite"):
        prepare_brain(tmp_path / "sub-01_T1w.nii.gz", spacing=None, bias_field=False, out=out)


def test_a_given_mask_is_taken():
    picture, brain, affine = made()
    smaller = brain & (np.arange(SHAPE[0]) < 30)[:, None, None]
    found = prepare_brain(
        nib.Nifti1Image(picture.astype(np.float32), affine),
        brain_mask=nib.Nifti1Image(smaller * np.float32(0.99999997), affine),
        spacing=None,
        bias_field=False,
    )
    np.testing.assert_array_equal(np.asarray(found.brain.dataobj) > 0, smaller)
    np.testing.assert_array_equal(np.asarray(found.image.dataobj) != 0, smaller & (picture != 0))


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (rigid([60.0, 0, 0], 0.0), "moved by 60 mm and turned by 0 degrees and agrees worse than before"),
        (rigid([0.0, 0, 0], 25.0), "turned by 25 degrees"),
    ],
)
def test_a_prior_that_was_moved_far_is_told(monkeypatch, transform, message):
    picture, _, affine = made(noise=0.0)
    image = nib.Nifti1Image(picture.astype(np.float32), affine)
    from dipy import align

    monkeypatch.setattr(align, "affine_registration", lambda *_, **__: (None, transform))
    with pytest.warns(UserWarning, match=message):
        align_brain(image, image)


def test_wrong_input_is_named_before_the_work(tmp_path):
    picture, brain, affine = made()
    image = nib.Nifti1Image(picture.astype(np.float32), affine)
    other = nib.Nifti1Image(np.ones((9, 9, 9), np.uint8), affine)
    holes = np.where(brain, np.nan, 0).astype(np.float32)
    normalized = np.where(brain, picture - picture[brain].mean(), 0).astype(np.float32)
    for keywords, message in (
        ({"spacing": 0}, "0.2 to 10 mm, or None, not 0"),
        ({"spacing": True}, "not True"),
        ({"label": other}, "different grids"),
        ({"brain_mask": other}, "different grids"),
        ({"brain_mask": nib.Nifti1Image(np.zeros(SHAPE, np.uint8), affine)}, "no voxel is inside"),
        ({"prior": nib.Nifti1Image(holes, affine)}, "no finite numbers"),
        ({"image": nib.Nifti1Image(normalized, affine)}, r"values in the brain are not positive.*bias_field=False"),
        ({"image": nib.Nifti1Image(np.ones((9, 9, 9, 2), np.float32), affine)}, "4 axes"),
        ({"image": nib.Nifti1Image(np.ones((9, 9, 4), np.float32), affine)}, "at least 8"),
        ({"image": tmp_path / "none.nii"}, "no such file"),
        ({"image": nib.Nifti1Image(np.zeros(SHAPE, np.float32), affine)}, "no brain"),
        ({"label": nib.Nifti1Image(np.full(SHAPE, 300, np.int16), affine), "bias_field": False}, "0 to 255"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            prepare_brain(**{"image": image, "spacing": None} | keywords)


def test_a_missing_library_is_named(monkeypatch):
    picture, _, affine = made((20, 22, 20), 5.0)
    monkeypatch.setitem(__import__("sys").modules, "SimpleITK", None)
    with pytest.raises(ImportError, match=r"pip install \"dmrifit\[preprocess\]\""):
        prepare_brain(nib.Nifti1Image(picture.astype(np.float32), affine))


def test_real_brains_without_skulls_are_found(data_dir):
    for path in sorted((data_dir / "brats2013_deepmedic").glob("brats_*"))[:1]:
        found = find_brain(path / "T1c_subtrMeanDivStd.nii.gz")
        mask = nib.as_closest_canonical(nib.load(path / "brainmask.nii.gz"))
        assert dice(found, np.asarray(mask.dataobj) > 0.5) > 0.97


def test_a_real_brain_with_a_skull_is_found_with_its_tumor(data_dir):
    folder = data_dir / "brain_tumour_thick_slice_1"
    found = find_brain(folder / "image.nii.gz")
    tumor = np.asarray(nib.as_closest_canonical(nib.load(folder / "label.nii.gz")).dataobj) > 0
    assert 1300 < found.sum() * 0.78125**2 * 6.5 / 1000 < 1900
    assert found[tumor].mean() > 0.98
