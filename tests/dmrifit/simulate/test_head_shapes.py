"""Shapes of a head lie where anatomy has them, at the distances in mm that they state."""

import numpy as np
import pytest

from dmrifit.simulate.head_shapes import (
    BRAIN,
    falx_distance,
    form_matter,
    slow_field,
    soft_step,
    tentorium_distance,
    texture_field,
)


def local(*points):
    """Give places in half axes as an array of shape (1, 1, n, 3)."""
    return np.array(points, dtype=float)[None, None]


@pytest.fixture(scope="module")
def matter():
    """Form an adult brain of voxels of 2 mm, x from -69 mm."""
    x, y, z = (np.arange(-n, n + 1, 2.0) for n in (69, 86, 65))
    places = np.stack(np.meshgrid(x, y, z, indexing="ij"), axis=-1)
    formed = form_matter(places / BRAIN, BRAIN, np.full(3, 2.0), np.random.default_rng(0))
    return formed, places


def test_the_falx_hangs_above_the_corpus_callosum_and_the_tentorium_behind_the_midbrain():
    above, beside, callosum, cerebellum = falx_distance(
        local((0, 0, 0.8), (0.1, 0, 0.8), (0, 0, 0.2), (0, -0.6, -0.6)), BRAIN
    )[0, 0]
    assert above == 0
    assert beside == pytest.approx(6.8)
    assert min(callosum, cerebellum) > 8
    middle, side, above, midbrain = tentorium_distance(
        local((0, -0.7, -0.16), (0.5, -0.7, -0.34), (0.5, -0.7, 0.0), (0, -0.2, -0.16)), BRAIN
    )[0, 0]
    assert max(middle, side) == pytest.approx(0, abs=1e-9)
    assert above == pytest.approx(0.34 * 64, rel=0.1)
    assert midbrain > 10


def test_distances_to_ventricles_are_in_mm_and_smooth(matter):
    (_, _, _, brain, to_ventricles), places = matter
    assert to_ventricles.min() == pytest.approx(-0.085 * 68, abs=1)
    wall = np.abs(to_ventricles) < 3
    for axis in range(3):
        steps = np.abs(np.diff(to_ventricles, axis=axis))[np.diff(wall, axis=axis) == 0]
        near = np.take(wall, range(wall.shape[axis] - 1), axis=axis)[np.diff(wall, axis=axis) == 0]
        # Two voxels that are 2 mm apart cannot differ by much more.
        assert steps[near].max() < 3.2
    # There are two of them, alike, on either side of the middle.
    inside = to_ventricles < 0
    assert 10 < 8e-3 * inside.sum() < 30
    assert inside[places[..., 0] > 0].sum() == inside[places[..., 0] < 0].sum()
    assert brain[inside].all()


def test_tissues_are_as_large_as_a_persons_with_cerebellum_and_brainstem_below_the_back(matter):
    (white, gray, deep, brain, _), _ = matter
    volumes = [8e-3 * share.sum() for share in (white, gray, deep, brain)]
    for volume, low, high in zip(volumes, (450, 550, 8, 1300), (750, 900, 40, 1700), strict=True):
        assert low < volume < high
    total = white + gray + deep
    assert 0 <= total.min() <= total.max() <= 1 + 1e-6
    assert not total[~brain].any()
    (white, gray, _, brain, _), places = matter
    x, y, z = np.moveaxis(places / BRAIN, -1, 0)
    stem = (np.hypot(x / 0.19, (y + 0.25) / 0.15) < 0.7) & (z > -0.8) & (z < -0.35)
    assert white[stem].mean() > 0.95
    cerebellum = (y < -0.5) & (z < -0.5) & brain
    assert gray[cerebellum].mean() > 0.3
    # Between the temporal lobes there is the base of the skull.
    assert not brain[(np.abs(x) < 0.1) & (y > 0.2) & (z < -0.65)].any()


def test_a_soft_step_rises_between_its_borders():
    np.testing.assert_allclose(soft_step(np.array([-2, -1, 0, 0.5, 1, 3])), [0, 0, 0.5, 0.75, 1, 1])


def test_textures_have_their_grain_in_mm_along_each_axis():
    field = texture_field((40, 40, 30), 6.0, np.array([2.0, 3.0, 6.0]), np.random.default_rng(0))
    assert field.shape == (40, 40, 30)
    assert field.mean() == pytest.approx(0, abs=1e-4)
    assert field.std() == pytest.approx(1, abs=1e-4)
    for axis, step in enumerate((2.0, 3.0, 6.0)):
        correlation = (field * np.roll(field, 1, axis)).mean()
        assert correlation == pytest.approx(np.exp(-(step**2) / (4 * 6.0**2)), abs=0.06)


@pytest.mark.parametrize("width", [2.0, 9.0])
def test_slow_fields_are_as_smooth_as_asked_whatever_grid_they_are_made_on(width):
    fields = [slow_field((45, 47, 43), np.full(3, width), np.random.default_rng(seed)) for seed in range(8)]
    assert {field.shape for field in fields} == {(45, 47, 43)}
    step = int(width)
    products = [(field[step:] * field[:-step]).mean() / (field**2).mean() for field in fields]
    assert np.mean(products) == pytest.approx(np.exp(-(step**2) / (4 * width**2)), abs=0.1)
    assert np.mean([field.std() for field in fields]) == pytest.approx(1, abs=0.12)
