"""Head scans become images on one grid, of the brain alone, beside an earlier scan."""

import json

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import affine_transform, gaussian_filter
from scipy.spatial.transform import Rotation

from dmrifit import prepare_brain
from dmrifit.imaging import head_pipeline

SHAPE = (60, 66, 56)


def rigid(shift, degrees):
    """Give a turn about an oblique axis, and a shift."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(np.radians(degrees) * np.array([1, 2, -2]) / 3).as_matrix()
    matrix[:3, 3] = shift
    return matrix


def dice(first, second):
    return 2 * (first & second).sum() / (first.sum() + second.sum())


def array_of(image):
    return np.asarray(image.dataobj)


def largest_distance(first, second, brain, affine):
    """Give the largest distance in mm between where two transformations take the brain."""
    places = np.argwhere(brain)[::50] @ affine[:3, :3].T + affine[:3, 3]
    difference = np.asarray(first) - np.asarray(second)
    return np.linalg.norm(places @ difference[:3, :3].T + difference[:3, 3], axis=1).max()


def test_a_known_shift_and_turn_are_found(make_brain):
    picture, brain, affine = make_brain(noise=0.0)
    image = nib.Nifti1Image(picture.astype(np.float32), affine)
    true = rigid([6.0, -9.0, 4.0], 9.0)
    # The prior shows at world place T·p what the image shows at p, on a grid of its own.
    shape, grid = (80, 84, 80), np.diag([-1.7, 1.7, 1.7, 1.0])
    grid[:3, 3] = [70, -72, -66]
    matrix = np.linalg.inv(affine) @ np.linalg.inv(true) @ grid
    moved = affine_transform(picture, matrix[:3, :3], matrix[:3, 3], output_shape=shape, order=1)
    noisy = np.where(moved > 5, 0.6 * moved + 3 * np.random.default_rng(0).standard_normal(shape), 0)
    prior = nib.Nifti1Image(noisy.astype(np.float32), grid)
    assert largest_distance(np.eye(4), true, brain, affine) > 10
    prepared = prepare_brain(image, prior=prior, spacing=None, bias_field=False)
    assert largest_distance(prepared.transform, true, brain, affine) < 1.0
    values = np.asarray(prepared.prior.dataobj)
    assert values.shape == SHAPE
    inner = gaussian_filter(brain.astype(float), 2) > 0.99
    assert np.corrcoef(values[inner], picture[inner])[0, 1] > 0.95
    believed = prepare_brain(image, prior=prior, spacing=None, bias_field=False, register=False)
    np.testing.assert_array_equal(believed.transform, np.eye(4))
    assert np.corrcoef(np.asarray(believed.prior.dataobj)[inner], picture[inner])[0, 1] < 0.8


def test_a_prior_of_another_head_is_told(make_brain):
    (picture, _, affine), (earlier, _, _) = make_brain(seed=0), make_brain(seed=7)
    image, prior = (nib.Nifti1Image(values.astype(np.float32), affine) for values in (picture, earlier))
    with pytest.warns(UserWarning, match=r"does not look like the head of the image \(median local"):
        prepare_brain(image, prior=prior, spacing=None, bias_field=False)


def test_places_stay_where_they_are_on_another_grid():
    places = np.indices((30, 24, 20))
    affine = np.array([[0, -3.0, 0, 12], [2.0, 0, 0, -30], [0, 0, 4.0, 7], [0, 0, 0, 1]])
    world = np.tensordot(affine[:3, :3], places, 1) + affine[:3, 3, None, None, None]
    ramp = world[0] + 2 * world[1] - world[2] + 500
    label = (ramp > 440).astype(np.uint8)
    prepared = prepare_brain(
        nib.Nifti1Image(ramp.astype(np.float32), affine),
        label=nib.Nifti1Image(label, affine),
        spacing=2.5,
        bias_field=False,
        brain_mask=False,
    )
    assert prepared.brain is None
    assert prepared.prior is None
    assert prepared.transform is None
    np.testing.assert_allclose(np.diag(prepared.image.affine), [2.5, 2.5, 2.5, 1])
    assert nib.aff2axcodes(prepared.image.affine) == ("R", "A", "S")
    values, inner = np.asarray(prepared.image.dataobj), (slice(2, -2),) * 3
    index = np.indices(values.shape)
    world = np.tensordot(prepared.image.affine[:3, :3], index, 1) + prepared.image.affine[:3, 3, None, None, None]
    expected = world[0] + 2 * world[1] - world[2] + 500
    np.testing.assert_allclose(values[inner], expected[inner], atol=0.01)
    sure = np.abs(expected - 440) > 8
    np.testing.assert_array_equal(
        np.asarray(prepared.label.dataobj)[inner][sure[inner]], (expected > 440)[inner][sure[inner]]
    )


def test_all_steps_together_are_written_with_a_sidecar(make_brain, tmp_path):
    picture, brain, affine = make_brain()
    true = np.exp(0.25 * np.linspace(-1, 1, SHAPE[1]))[None, :, None]
    shifted = np.array(affine)
    shifted[:3, 3] += [4.0, 0, -3.0]
    for name, values, where in (("sub-01_T1w", picture * true, affine), ("earlier", picture, shifted)):
        nib.save(nib.Nifti1Image(values.astype(np.float32), where), tmp_path / f"{name}.nii.gz")
    nib.save(nib.Nifti1Image(brain.astype(np.uint8), affine), tmp_path / "seg.nii.gz")
    out = tmp_path / "out"
    prepared = prepare_brain(
        tmp_path / "sub-01_T1w.nii.gz",
        prior=tmp_path / "earlier.nii.gz",
        label=tmp_path / "seg.nii.gz",
        spacing=2.5,
        out=out,
    )
    np.testing.assert_allclose(prepared.transform[:3, 3], [4, 0, -3], atol=0.5)
    mask = np.asarray(prepared.brain.dataobj) > 0
    values, earlier = (np.asarray(image.dataobj)[mask] for image in (prepared.image, prepared.prior))
    assert np.corrcoef(values, earlier)[0, 1] > 0.9
    assert (np.asarray(prepared.image.dataobj)[~mask] == 0).all()
    assert dice(mask, np.asarray(prepared.label.dataobj) > 0) > 0.97
    names = {"image": "T1w", "brain": "mask", "prior": "prior", "label": "dseg"}
    files = {key: f"sub-01_desc-prepared_{suffix}.nii.gz" for key, suffix in names.items()}
    assert sorted(path.name for path in out.iterdir()) == sorted([*files.values(), "sub-01_desc-prepared_T1w.json"])
    for key, file in files.items():
        back = nib.load(out / file)
        np.testing.assert_array_equal(np.asarray(back.dataobj), np.asarray(getattr(prepared, key).dataobj))
    described = json.loads((out / "sub-01_desc-prepared_T1w.json").read_text(encoding="utf-8"))
    assert described["Files"] == files
    assert described["Steps"] == {"Spacing": 2.5, "BiasField": True, "BrainMask": True, "Registered": True}
    assert described["Sources"]["Prior"]["Name"] == "earlier.nii.gz"
    assert {"SimpleITK", "dipy"} <= set(described["Versions"])
    np.testing.assert_allclose(described["Transform"]["Matrix"], prepared.transform)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        prepare_brain(tmp_path / "sub-01_T1w.nii.gz", spacing=None, bias_field=False, out=out)


def test_a_given_mask_is_taken(make_brain):
    picture, brain, affine = make_brain()
    smaller = brain & (np.arange(SHAPE[0]) < 30)[:, None, None]
    prepared = prepare_brain(
        nib.Nifti1Image(picture.astype(np.float32), affine),
        brain_mask=nib.Nifti1Image(smaller * np.float32(0.99999997), affine),
        spacing=None,
        bias_field=False,
    )
    np.testing.assert_array_equal(np.asarray(prepared.brain.dataobj) > 0, smaller)
    np.testing.assert_array_equal(np.asarray(prepared.image.dataobj) != 0, smaller & (picture != 0))


def test_a_missing_library_is_named(make_brain, monkeypatch):
    picture, _, affine = make_brain((20, 22, 20), 5.0)
    monkeypatch.setitem(__import__("sys").modules, "SimpleITK", None)
    with pytest.raises(ImportError, match=r"pip install \"dmrifit\[preprocess\]\""):
        prepare_brain(nib.Nifti1Image(picture.astype(np.float32), affine))


@pytest.fixture
def small_brain(make_brain):
    """Give a brain on a coarse grid as an image, and its mask as one."""
    picture, brain, affine = make_brain((24, 27, 23), 5.0)
    image = nib.Nifti1Image(picture.astype(np.float32), affine)
    return image, nib.Nifti1Image(brain.astype(np.uint8), affine)


PLAIN = {"spacing": None, "bias_field": False, "register": False}


def test_the_prior_is_zero_outside_both_brains_and_where_it_was_not_measured(small_brain):
    image, mask = small_brain
    # The mask leaves out the left; the prior ends in the middle of the brain.
    right = nib.Nifti1Image(array_of(mask) * (np.arange(24) > 8)[:, None, None], mask.affine)
    lower = nib.Nifti1Image(array_of(image)[:, :, :12], image.affine)
    prepared = prepare_brain(image, prior=lower, brain_mask=right, **PLAIN)
    shown = array_of(right).astype(bool) & (array_of(image) > 0)
    shown[:, :, 12:] = False
    prior = array_of(prepared.prior)
    assert prior.shape == image.shape
    assert not prior[~shown].any()
    # The search for the brain of the prior is rough at the cut.
    assert (prior[shown] != 0).mean() > 0.95
    measured = prior != 0
    np.testing.assert_allclose(prior[measured], array_of(image)[measured], rtol=1e-4)
    np.testing.assert_array_equal(prepared.transform, np.eye(4))


def test_the_brain_of_the_prior_is_searched_with_that_of_the_image_and_otherwise_only_resampled(small_brain):
    image, mask = small_brain
    brain = array_of(mask).astype(bool)
    everywhere = nib.Nifti1Image(np.ones(image.shape, np.uint8), image.affine)
    # Somebody has set the background to -5, which is no value of a brain.
    prior = nib.Nifti1Image(np.where(brain, array_of(image), np.float32(-5)), image.affine)
    prepared = array_of(prepare_brain(image, prior=prior, brain_mask=everywhere, **PLAIN).prior)
    assert (prepared[~brain] == 0).mean() > 0.95
    assert np.corrcoef(prepared[brain], array_of(image)[brain])[0, 1] > 0.9
    image, _ = small_brain
    skull = nib.Nifti1Image(array_of(image) + np.float32(50), image.affine)
    prepared = prepare_brain(image, prior=skull, brain_mask=False, **PLAIN)
    assert prepared.brain is None
    np.testing.assert_allclose(array_of(prepared.prior), array_of(skull), rtol=1e-5)
    np.testing.assert_array_equal(array_of(prepared.image), array_of(image))


def test_what_was_prepared_stays_as_it_is(small_brain):
    image, mask = small_brain
    options = {"spacing": 4.0, "bias_field": False}
    first = prepare_brain(image, brain_mask=mask, label=mask, **options)
    again = prepare_brain(first.image, brain_mask=first.brain, label=first.label, **options)
    for name in ("image", "brain", "label"):
        before, after = getattr(first, name), getattr(again, name)
        np.testing.assert_allclose(array_of(after), array_of(before), rtol=1e-5)
        np.testing.assert_allclose(after.affine, before.affine)


def test_voxels_have_the_spacing_asked_for_and_the_image_the_same_extent(small_brain):
    image, mask = small_brain
    prepared = prepare_brain(image, brain_mask=mask, spacing=3.0, bias_field=False)
    assert prepared.image.header.get_zooms() == pytest.approx((3, 3, 3))
    assert prepared.image.shape == prepared.brain.shape == (40, 45, 38)
    assert prepared.image.get_data_dtype() == np.float32
    # The volume of the brain stays.
    volumes = [array_of(part).sum() * edge**3 for part, edge in ((mask, 5), (prepared.brain, 3))]
    assert volumes[1] == pytest.approx(volumes[0], rel=0.03)


def test_the_field_is_removed_before_the_image_is_resampled(small_brain, monkeypatch):
    image, mask = small_brain
    shapes = []

    def halved(values, affine, mask, name):
        shapes.append((values.shape, int(mask.sum())))
        return values / 2

    monkeypatch.setattr(head_pipeline, "correct_bias_field", halved)
    prepared = prepare_brain(image, brain_mask=mask, spacing=4.0)
    plain = prepare_brain(image, brain_mask=mask, spacing=4.0, bias_field=False)
    assert shapes == [(image.shape, int(array_of(mask).sum()))]
    np.testing.assert_allclose(array_of(prepared.image), array_of(plain.image) / 2, rtol=1e-5)


def test_a_sidecar_tells_only_of_what_was_done(small_brain, tmp_path):
    image, _ = small_brain
    prepare_brain(image, brain_mask=False, spacing=None, bias_field=False, out=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["desc-prepared_T1w.json", "desc-prepared_T1w.nii.gz"]
    sidecar = json.loads((tmp_path / "desc-prepared_T1w.json").read_text(encoding="utf-8"))
    assert sidecar["Files"] == {"image": "desc-prepared_T1w.nii.gz"}
    steps = {"Spacing": None, "BiasField": False, "BrainMask": False, "Registered": False}
    assert sidecar["Steps"] == steps
    assert "Transform" not in sidecar
    assert not {"SimpleITK", "dipy"} & set(sidecar["Versions"])
    assert {"dmrifit", "numpy", "scipy", "nibabel"} <= set(sidecar["Versions"])


def test_a_believed_header_is_no_registration(small_brain, tmp_path):
    image, mask = small_brain
    prepare_brain(image, prior=image, brain_mask=mask, out=tmp_path, **PLAIN)
    sidecar = json.loads((tmp_path / "desc-prepared_T1w.json").read_text(encoding="utf-8"))
    assert sidecar["Steps"]["BrainMask"] is True
    assert sidecar["Steps"]["Registered"] is False
    assert sidecar["Transform"]["Matrix"] == np.eye(4).tolist()
    assert set(sidecar["Files"]) == {"image", "brain", "prior"}


def test_inputs_are_never_replaced(small_brain, tmp_path):
    image, _ = small_brain
    path = tmp_path / "desc-prepared_T1w.nii.gz"
    nib.save(image, path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="is an input and would be overwritten"):
        prepare_brain(image, prior=path, brain_mask=False, out=tmp_path, overwrite=True, **PLAIN)
    assert path.read_bytes() == before
