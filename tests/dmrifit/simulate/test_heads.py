"""Where gray and white matter and fluid of synthetic brains lie."""

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from dmrifit.simulate.heads import (
    TissueMaps,
    centered_grid,
    draw_head,
    made_tissues,
    read_tissues,
    slow_field,
    texture_field,
)

SHAPE, SPACING = (36, 44, 34), (4.0, 4.0, 4.0)


@pytest.fixture(scope="module")
def head():
    return draw_head(SHAPE, SPACING, np.random.default_rng(0))


def shells(affine, shape=(40, 48, 36)):
    """Make a ball of white matter in a shell of gray, in the middle of the grid."""
    middle = affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3]
    places = np.stack(np.indices(shape), axis=-1) @ affine[:3, :3].T + affine[:3, 3] - middle
    radius = np.sqrt(((places / [64, 80, 56]) ** 2).sum(axis=-1))
    return ((radius >= 0.7) & (radius < 1)).astype(np.float32), (radius < 0.7).astype(np.float32)


def test_the_middle_of_a_centered_grid_is_at_zero():
    affine = centered_grid((5, 8, 3), (2.0, 1.5, 4.0))
    np.testing.assert_array_equal(affine @ [2, 3.5, 1, 1], [0, 0, 0, 1])
    np.testing.assert_array_equal(affine @ [0, 0, 0, 1], [-4, -5.25, -4, 1])


def test_shares_of_tissues_fill_the_brain_and_nothing_else(head):
    total = head.gray + head.white + head.fluid
    np.testing.assert_allclose(total[head.brain], 1, atol=1e-5)
    np.testing.assert_array_equal(total[~head.brain], 0)
    assert min(head.gray.min(), head.white.min(), head.fluid.min()) > -1e-6
    for share in (head.gray, head.white, head.fluid):
        assert 0.05 < share[head.brain].mean() < 0.75


def test_depth_and_places_of_a_head_are_in_mm(head):
    np.testing.assert_allclose(
        head.depth, distance_transform_edt(head.brain, sampling=4.0), rtol=1e-6
    )
    np.testing.assert_allclose(head.grid[0, 0, 0], [-70, -86, -66])
    np.testing.assert_allclose(head.grid[35, 43, 33], [70, 86, 66])


def test_a_brain_fills_the_field_of_view_up_to_the_size_of_a_person():
    for shape, spacing in ((SHAPE, 4.0), (SHAPE, 2.0), ((60, 60, 60), 4.0)):
        brain = draw_head(shape, (spacing,) * 3, np.random.default_rng(1)).brain
        extent = (np.ptp(np.argwhere(brain), axis=0) + 1) * spacing
        room = np.array(shape) * spacing
        assert (extent < room - 1).all()
        assert (extent < 1.15 * 2 * np.array([68, 85, 64])).all()
        assert (extent > 0.75 * np.minimum(room - 8, 2 * np.array([68, 85, 64]))).all()


def test_gray_matter_lies_outside_and_ventricles_inside(head):
    deep, outer = head.depth > 30, head.brain & (head.depth < 10)
    assert head.white[deep].mean() > head.white[outer].mean() + 0.1
    ventricles = head.fluid[14:22, 18:26, 15:21]
    assert ventricles.max() > 0.9


def test_a_seed_makes_a_head_and_another_one_another_head(head):
    again, different = (draw_head(SHAPE, SPACING, np.random.default_rng(seed)) for seed in (0, 1))
    np.testing.assert_array_equal(again.gray, head.gray)
    assert not np.array_equal(different.brain, head.brain)


def test_maps_made_from_formulas_have_the_size_of_a_person():
    maps = made_tissues(5.0)
    np.testing.assert_array_equal(maps.half_axes, [68, 85, 64])
    np.testing.assert_array_equal(np.diag(maps.affine), [5, 5, 5, 1])
    volume = maps.brain.sum() * 5**3 / 1000
    # Flatter below, and rounder than an ellipsoid: between it and the box around it.
    assert 4 / 3 * np.pi * 6.8 * 8.5 * 6.4 < volume < 8 * 6.8 * 8.5 * 6.4
    inside = maps.brain > 0
    assert (maps.gray + maps.white)[inside].max() <= 1 + 1e-6
    assert (maps.gray + maps.white)[~inside].max() == 0


@pytest.mark.parametrize("kind", [np.float32, np.uint8])
def test_maps_in_files_are_shares_or_bytes_that_stand_for_them(kind, tmp_path):
    affine = centered_grid((40, 48, 36), SPACING)
    affine[:3, 3] += [7.0, -11.0, 30.0]
    gray, white = shells(affine)
    scale = 255 if kind is np.uint8 else 1
    for name, values in (("gray", gray), ("white", white)):
        nib.save(nib.Nifti1Image((scale * values).astype(kind), affine), tmp_path / f"{name}.nii")
    maps = read_tissues(tmp_path / "gray.nii", tmp_path / "white.nii")
    np.testing.assert_allclose(maps.gray, gray, atol=1e-6)
    np.testing.assert_allclose(maps.white, white, atol=1e-6)
    np.testing.assert_array_equal(maps.brain > 0, gray + white > 0.2)
    # The middle of the brain is at 0, wherever it lay; half axes end at centers of voxels.
    corners = np.argwhere(maps.brain > 0) @ maps.affine[:3, :3].T + maps.affine[:3, 3]
    np.testing.assert_allclose(corners.min(axis=0), -corners.max(axis=0), atol=1e-9)
    np.testing.assert_allclose(maps.half_axes, corners.max(axis=0))
    np.testing.assert_allclose(maps.half_axes, [64, 80, 56], atol=4)


def test_maps_are_the_same_however_their_axes_are_stored():
    affine = centered_grid((40, 48, 36), SPACING)
    images = [nib.Nifti1Image(values, affine) for values in shells(affine)]
    images[0].dataobj[10, 20, 30] = 0.5
    turn = nib.orientations.ornt_transform(
        *(nib.orientations.axcodes2ornt(codes) for codes in ("RAS", "PIL"))
    )
    plain, turned = (
        read_tissues(*pair) for pair in (images, [image.as_reoriented(turn) for image in images])
    )
    for name in ("gray", "white", "brain", "affine", "half_axes"):
        np.testing.assert_allclose(getattr(turned, name), getattr(plain, name), atol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda gray: gray * 1.02, "holds no probabilities from 0 to 1 on three axes"),
        (lambda gray: gray - 0.02, "holds no probabilities"),
        (lambda gray: np.where(gray > 0, np.nan, 0), "holds no probabilities"),
        (lambda gray: np.stack([gray, gray], axis=-1), "holds no probabilities|different grids"),
        (lambda gray: gray[:-1], "different grids"),
    ],
)
def test_maps_that_are_no_shares_are_refused(change, message):
    affine = centered_grid((40, 48, 36), SPACING)
    gray, white = shells(affine)
    with pytest.raises(ValueError, match=message):
        read_tissues(
            nib.Nifti1Image(change(gray).astype(np.float32), affine),
            nib.Nifti1Image(white, affine),
        )


def test_maps_without_matter_hold_no_brain():
    empty = nib.Nifti1Image(np.full((20, 20, 20), 0.09, np.float32), np.eye(4))
    with pytest.raises(ValueError, match=r"hold no brain: their sum is nowhere above 0\.2"):
        read_tissues(empty, empty)


def test_a_head_of_maps_has_their_tissues_where_they_lie():
    affine = centered_grid((40, 48, 36), SPACING)
    gray, white = shells(affine)
    brain = ((gray + white) > 0).astype(np.float32)
    maps = TissueMaps(0.8 * gray, white, brain, affine, np.array([64.0, 80, 56]))
    head = draw_head(SHAPE, SPACING, np.random.default_rng(2), tissues=maps)
    assert head.white[16:20, 20:24, 15:19].min() > 0.99
    shell = head.brain & (head.depth > 4) & (head.depth < 8)
    np.testing.assert_allclose(np.median(head.gray[shell]), 0.8, atol=0.05)
    np.testing.assert_allclose(np.median(head.fluid[shell]), 0.2, atol=0.05)
    np.testing.assert_allclose((head.gray + head.white + head.fluid)[head.brain], 1, atol=1e-5)


def test_textures_have_their_grain_in_mm_along_each_axis():
    field = texture_field((40, 40, 30), 6.0, np.array([2.0, 3.0, 6.0]), np.random.default_rng(0))
    assert field.shape == (40, 40, 30)
    assert field.mean() == pytest.approx(0, abs=1e-9)
    assert field.std() == pytest.approx(1)
    for axis, step in enumerate((2.0, 3.0, 6.0)):
        correlation = (field * np.roll(field, 1, axis)).mean()
        assert correlation == pytest.approx(np.exp(-(step**2) / (4 * 6.0**2)), abs=0.06)


@pytest.mark.parametrize("width", [2.0, 9.0])
def test_slow_fields_are_as_smooth_as_asked_whatever_grid_they_are_made_on(width):
    fields = [
        slow_field((45, 47, 43), np.full(3, width), np.random.default_rng(seed))
        for seed in range(8)
    ]
    assert {field.shape for field in fields} == {(45, 47, 43)}
    step = int(width)
    products = [(field[step:] * field[:-step]).mean() / (field**2).mean() for field in fields]
    assert np.mean(products) == pytest.approx(np.exp(-(step**2) / (4 * width**2)), abs=0.1)
    assert np.mean([field.std() for field in fields]) == pytest.approx(1, abs=0.12)
