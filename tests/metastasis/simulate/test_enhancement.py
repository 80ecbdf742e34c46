"""What enhances in synthetic brains has the size, place and brightness that it is drawn with."""

from dataclasses import replace
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from dmrifit.simulate.heads import Head
from metastasis.simulate.enhancement import (
    Contrasts,
    Nodule,
    draw_enhancement,
    draw_mimics,
    draw_nodule,
    draw_places,
    shares,
    swelling,
)

STEPS = np.array([2.5, 2.5, 2.5])
#: A grid with voxels of 1, 1.5 and 2 mm around 0.
GRID = SimpleNamespace(
    brain=np.ones((41, 29, 23), bool),
    affine=nib.affines.from_matvec(np.diag([1.0, 1.5, 2.0]), [-20.0, -21.0, -22.0]),
    spacing=np.array([1.0, 1.5, 2.0]),
)


@pytest.fixture(scope="module")
def head():
    return Head.draw((32, 36, 32), (2.5, 2.5, 2.5), np.random.default_rng(0))


def ball(radius, center=(0.3, -0.4, 0.5), **parts):
    """Make a nodule that is a ball with an even surface."""
    return Nodule(np.array(center), radius, np.eye(3), np.zeros((4, 3)), 0.8, **parts)


def centers(window):
    """Give the centers of the voxels of a window in mm."""
    axes = (
        origin + step * np.arange(side.start, side.stop)
        for side, origin, step in zip(window, GRID.affine[:3, 3], GRID.spacing, strict=True)
    )
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


def test_the_share_of_a_ball_in_a_voxel_is_that_of_27_points_and_is_cut_at_the_border():
    nodule = ball(5.0, core=0.6)
    window, filled, core = shares(nodule, GRID)
    points = centers(window)[..., None, :] + np.stack(
        np.meshgrid(*(step * np.array([-1, 0, 1]) / 3 for step in GRID.spacing), indexing="ij"), axis=-1
    ).reshape(27, 3)
    distance = np.linalg.norm(points - nodule.center, axis=-1)
    np.testing.assert_allclose(filled, (distance < 5).mean(axis=-1), atol=1e-6)
    np.testing.assert_allclose(core, (distance < 3).mean(axis=-1), atol=1e-6)
    assert filled.sum() * 3.0 == pytest.approx(4 / 3 * np.pi * 5**3, rel=0.02)
    window, filled, _ = shares(ball(5.0, center=(-20.0, 0.0, 0.0)), GRID)
    assert window[0].start == 0
    assert filled.sum() * 3.0 == pytest.approx((4 / 3 * np.pi * 5**3 + np.pi * 5**2) / 2, rel=0.05)


def test_an_uneven_surface_is_a_sum_of_waves():
    nodule = draw_nodule(np.zeros(3), 12.0, np.random.default_rng(1))
    window, filled, _ = shares(nodule, GRID)
    unstretched = (centers(window) - nodule.center) @ nodule.axes.T / nodule.radius
    radius = np.linalg.norm(unstretched, axis=-1)
    unit = unstretched / (radius[..., None] + 1e-9)
    waves = sum(np.sin(2 * unit @ lobe + lobe[0]) for lobe in nodule.lobes)
    rough = radius * (1 + 0.06 * waves)
    # Voxels well inside and well outside.
    assert (filled[rough < 0.8] == 1).all()
    assert not filled[rough > 1.25].any()


def test_swelling_falls_around_a_nodule():
    nodule = ball(4.0, edema=2.0)
    window, edema = swelling(nodule, GRID)
    distance = np.linalg.norm(centers(window) - nodule.center, axis=-1) / 4.0
    # All of it up to 1.4 radii, none from 2 on, half of it in the middle.
    assert (edema[distance < 1.39] == 1).all()
    assert not edema[distance > 2.01].any()
    between = np.abs(distance - 1.7) < 0.02
    assert between.any()
    np.testing.assert_allclose(edema[between], 0.5, atol=0.04)


def test_nodules_are_stretched_by_up_to_15_percent_and_keep_their_volume():
    for seed in range(40):
        nodule = draw_nodule((1, 2, 3), 8.0, np.random.default_rng(seed), contrasts=(0.2, 0.3))
        assert nodule.radius == 4.0
        assert nodule.center.tolist() == [1, 2, 3]
        stretches = 1 / np.linalg.norm(nodule.axes, axis=1)
        assert stretches.prod() == pytest.approx(1)
        assert stretches.max() / stretches.min() <= 1.15 / 0.85 + 1e-9
        directions = nodule.axes * stretches[:, None]
        np.testing.assert_allclose(directions @ directions.T, np.eye(3), atol=1e-9)
        assert 0.2 <= nodule.contrast <= 0.3


def test_half_of_the_large_ones_are_rings_and_three_fifths_of_those_above_5_mm_have_edema():
    rng = np.random.default_rng(0)
    rings = [draw_nodule(np.zeros(3), 10.0, rng, ring=0.5).core > 0 for _ in range(200)]
    assert 0.4 < np.mean(rings) < 0.6
    assert not any(draw_nodule(np.zeros(3), 6.0, rng).core for _ in range(20))
    edema = [draw_nodule(np.zeros(3), 6.0, np.random.default_rng(seed)).edema for seed in range(200)]
    assert np.mean(np.array(edema) > 0) == pytest.approx(0.6, abs=3 * np.sqrt(0.24 / 200))
    assert all(1.5 <= reach <= 2.3 for reach in edema if reach)
    assert not any(draw_nodule(np.zeros(3), 5.0, np.random.default_rng(seed)).edema for seed in range(20))


def test_the_size_changes_no_other_number_that_is_drawn():
    small, large = (draw_nodule(np.zeros(3), size, np.random.default_rng(3), ring=1.0) for size in (4.0, 20.0))
    np.testing.assert_array_equal(small.lobes, large.lobes)
    assert (small.contrast, small.core) == (large.contrast, large.core)


def test_shares_of_a_nodule_add_up_to_its_volume_and_move_with_it():
    nodule = draw_nodule(np.zeros(3), 9.0, np.random.default_rng(3))
    window, filled, core = shares(nodule, GRID)
    assert filled.sum() * 3.0 == pytest.approx(np.pi / 6 * 9**3, rel=0.2)
    assert not core.any()
    there = shares(replace(nodule, center=np.array([1.0, 3.0, -2.0])), GRID)
    assert [b.start - a.start for a, b in zip(window, there[0], strict=True)] == [1, 2, -1]
    np.testing.assert_allclose(there[1], filled, atol=1e-6)
    half = shares(replace(nodule, radius=nodule.radius / 2), GRID)
    assert half[1].sum() == pytest.approx(filled.sum() / 8, rel=0.1)
    outside = shares(replace(nodule, center=np.full(3, 99.0)), GRID)
    assert outside[1].size == 0


def test_places_keep_off_each_other_and_off_what_is_there_and_need_room(head):
    taken = [(np.zeros(3), 10.0)]
    radii = [3.0, 6.0, 2.0, 8.0, 4.0]
    places = draw_places(head.white, radii, taken, head, np.random.default_rng(0), gap=5.0)
    balls = taken + [(point, radius) for point, radius in zip(places, radii, strict=True) if point is not None]
    assert len(balls) >= 4
    for i, (first, radius) in enumerate(balls):
        for second, other_radius in balls[:i]:
            assert np.linalg.norm(first - second) > radius + other_radius + 5.0
    assert len(taken) == 1
    weights = np.zeros(head.brain.shape)
    weights[16, 18, 16] = 1
    first, second = draw_places(weights, [2.0, 2.0], [], head, np.random.default_rng(0))
    np.testing.assert_allclose(first, head.places[16, 18, 16])
    assert second is None


def test_places_are_voxels_drawn_by_their_weight(head):
    weights = np.zeros(head.brain.shape)
    weights[16, 18, 16], weights[10, 20, 14] = 3, 1
    rng = np.random.default_rng(0)
    drawn = [draw_places(weights, [2.0], [], head, rng)[0] for _ in range(200)]
    heavy, light = head.places[16, 18, 16], head.places[10, 20, 14]
    n_heavy = sum(np.allclose(point, heavy) for point in drawn)
    assert n_heavy + sum(np.allclose(point, light) for point in drawn) == 200
    assert n_heavy / 200 == pytest.approx(0.75, abs=3 * np.sqrt(0.75 * 0.25 / 200))


def test_enhancement_is_of_vessels_sinuses_dura_and_plexus():
    head = Head.draw((52, 56, 50), (1.5, 1.5, 1.5), np.random.default_rng(0))
    vessels = draw_enhancement(head, np.random.default_rng(0))
    assert not vessels.share[~head.brain].any()
    assert 0 <= vessels.contrast.min() <= vessels.contrast.max() <= 0.5 + 1e-5
    without = Contrasts(vessels=(0, 0), sinuses=0, dura=0, plexus=0)
    assert draw_enhancement(head, np.random.default_rng(0), without).contrast.max() == 0
    regions = {
        "sinuses": head.brain & (head.depth < 4),
        "dura": head.brain & (head.local[..., 2] > 0),
        "plexus": head.ventricles > 0.5,
    }
    for name, region in regions.items():
        bright = Contrasts(**{**vars(without), name: 2.0})
        contrast = draw_enhancement(head, np.random.default_rng(0), bright).contrast
        assert contrast[region].max() > 0.5
    # Only the last one was the plexus.
    assert not contrast[head.ventricles == 0].any()


def test_mimics_keep_off_metastases_and_are_as_small_as_small_ones(head):
    points = draw_enhancement(head, np.random.default_rng(0)).points
    metastases = [(np.array([0.0, 10.0, 10.0]), 8.0)]
    sizes = []
    for seed in range(6):
        mimics = draw_mimics(8, points, head.white, metastases, head, np.random.default_rng(seed))
        balls = metastases + [(mimic.center, mimic.radius) for mimic in mimics]
        for i, (first, radius) in enumerate(balls):
            for second, other_radius in balls[:i]:
                assert np.linalg.norm(first - second) > radius + other_radius + 4.0
        sizes += [2 * mimic.radius for mimic in mimics]
    assert len(sizes) > 30
    assert 2.5 <= min(sizes) < 3
    assert 5 < max(sizes) <= 5.5


def test_without_vessels_and_surface_mimics_stand_where_metastases_may(head):
    weights = (head.depth > 20).astype(np.float32)
    mimics = draw_mimics(12, np.zeros((0, 3)), weights, [], head, np.random.default_rng(0))
    index = [tuple(np.rint((mimic.center - head.affine[:3, 3]) / STEPS).astype(int)) for mimic in mimics]
    deep = np.array([weights[voxel] > 0 for voxel in index])
    shallow = np.array([1.5 < head.depth[voxel] < 4 for voxel in index])
    assert (deep | shallow).all()
    # What stands alone is as bright as a metastasis, what lies under the dura as dark as a vessel.
    brightness = np.array([mimic.contrast for mimic in mimics])
    assert (brightness[deep] >= 0.5).all()
    assert (brightness[shallow] <= 0.5).all()
    assert deep.any()
    assert shallow.any()
