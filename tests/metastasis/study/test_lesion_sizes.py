"""Figures of lesions: volumes of solid lesions, rings and open rings, and axial diameters."""

import numpy as np
import pytest

from metastasis.study.lesion_sizes import (
    CLOSED_GAP_MM,
    FIGURES,
    joint_figures,
    lesion_figures,
    with_core,
)

CUBES = np.eye(4)
THICK = np.diag([0.8, 0.8, 3.0, 1.0])


def world(shape, affine):
    """Give the world coordinates (x, y, z, 3) of the voxels of a grid around the middle of it."""
    places = np.indices(shape).transpose(1, 2, 3, 0) @ affine[:3, :3].T
    return places - places[tuple(n // 2 for n in shape)]


def figures(lesion, affine=CUBES):
    return lesion_figures(lesion, with_core(lesion, affine), affine)


def ellipsoid(places, semi_axes, angle=0.0):
    """Mark an ellipsoid that is turned about z."""
    c, s = np.cos(angle), np.sin(angle)
    turned = places @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    return ((turned / semi_axes) ** 2).sum(axis=-1) <= 1


def ball_ml(radius):
    return 4 / 3 * np.pi * radius**3 / 1000


def brute_force_diameters(lesion, affine, axial_axis):
    """Measure all pairs of middles of pixels' sides, slice after slice, and lines across by a fine comb."""
    steps = [axis for axis in range(3) if axis != axial_axis]
    best = (0.0, 0.0)
    for k in range(lesion.shape[axial_axis]):
        voxels = np.argwhere(np.take(lesion, [k], axial_axis)).astype(float)
        sides = [voxels + sign * 0.5 * np.eye(3)[axis] for axis in steps for sign in (1, -1)]
        points = np.unique(np.concatenate(sides), axis=0) @ affine[:3, :3].T
        distance = np.linalg.norm(points[:, None] - points, axis=-1)
        if not len(points) or distance.max() < best[0] - 1e-9:
            continue
        i, j = np.unravel_index(distance.argmax(), distance.shape)
        along = (points[i] - points[j]) / distance[i, j]
        normal = np.cross(np.cross(affine[:3, steps[0]], affine[:3, steps[1]]), along)
        s, t = points @ along, points @ (normal / np.linalg.norm(normal))
        # Of all lines through two points, those that cross a line of the comb bound its length.
        widths = []
        for place in np.linspace(s.min() + 1e-6, s.max() - 1e-6, 41):
            left, right = s <= place, s > place
            share = (place - s[left])[:, None] / (s[right] - s[left][:, None])
            crossing = t[left][:, None] + share * (t[right] - t[left][:, None])
            widths.append(np.ptp(crossing))
        best = max(best, (distance[i, j], max(widths)))
    return best


@pytest.mark.parametrize("affine", [CUBES, THICK])
def test_the_sizes_of_a_sphere_are_its_own(affine):
    shape = (60, 60, 60) if affine is CUBES else (60, 60, 17)
    sizes = figures(np.linalg.norm(world(shape, affine), axis=-1) <= 20.3, affine)
    assert tuple(sizes) == FIGURES
    assert sizes["volume_mL"] == pytest.approx(ball_ml(20.3), rel=0.01)
    assert sizes["volume_with_core_mL"] == sizes["volume_mL"]
    assert sizes["hull_mL"] == pytest.approx(ball_ml(20.3), rel=0.03)
    for name in ("longest", "perpendicular", "sphere"):
        assert sizes[f"{name}_diameter_mm"] == pytest.approx(40.6, abs=1.0)
    assert not sizes["open_ring"]


@pytest.mark.parametrize("angle", [0.0, 0.3, np.pi / 4, 2.0])
@pytest.mark.parametrize("affine", [CUBES, THICK])
def test_the_diameters_of_an_ellipsoid_are_its_axes_and_those_of_all_pairs_of_points(angle, affine):
    # The third axis is the longest: readers measure in axial slices, and do not see its length.
    lesion = ellipsoid(world((36, 36, 40), affine), (12.2, 7.1, 16), angle)
    sizes = figures(lesion, affine)
    longest, across = brute_force_diameters(lesion, affine, 2)
    assert sizes["longest_diameter_mm"] == pytest.approx(longest, abs=1e-5)
    # Of pairs that are equally long any may be first, and the comb has gaps.
    assert sizes["perpendicular_diameter_mm"] == pytest.approx(across, abs=0.5)
    assert sizes["longest_diameter_mm"] == pytest.approx(24.4, abs=1.0)
    assert sizes["perpendicular_diameter_mm"] == pytest.approx(14.2, abs=1.0)


def test_the_line_across_is_not_the_projection_of_the_outline():
    # A parallelogram: its projection across the diagonal is wider than any line within it.
    x, y = np.indices((60, 40))
    lesion = ((y >= 5) & (y < 25) & (x >= 5 + y) & (x < 25 + y))[..., None]
    sizes = figures(lesion)
    longest, across = brute_force_diameters(lesion, CUBES, 2)
    assert sizes["longest_diameter_mm"] == pytest.approx(longest, abs=1e-5)
    assert sizes["perpendicular_diameter_mm"] == pytest.approx(across, abs=0.3)


@pytest.mark.parametrize(("wall", "radius"), [(1.5, 3.2), (2, 6), (3, 18)])
def test_a_closed_ring_has_the_volume_of_the_sphere(wall, radius):
    distance = np.linalg.norm(world((44, 44, 44), CUBES), axis=-1)
    sphere = distance <= radius
    sizes = figures(sphere & (distance > radius - wall))
    assert sizes["volume_with_core_mL"] == pytest.approx(sphere.sum() / 1000)
    assert sizes["volume_mL"] < sizes["volume_with_core_mL"]
    assert not sizes["open_ring"]


@pytest.mark.parametrize("gap", [1, 3, 6, 10, 12, 15])
@pytest.mark.parametrize(("wall", "direction"), [(3, 0), (3, 2), (1.2, 1)])
def test_gaps_of_a_ring_are_closed_up_to_their_stated_width(gap, wall, direction):
    places = world((54, 54, 54), CUBES)
    distance = np.linalg.norm(places, axis=-1)
    off_axis = np.delete(places, direction, axis=-1)
    channel = (np.hypot(*np.moveaxis(off_axis, -1, 0)) <= gap / 2) & (places[..., direction] > 0)
    ring = (distance <= 20) & (distance > 20 - wall) & ~channel
    sizes = figures(ring)
    if gap <= CLOSED_GAP_MM:
        assert sizes["volume_with_core_mL"] == pytest.approx(ball_ml(20), rel=0.02)
        assert not sizes["open_ring"]
    else:
        assert sizes["volume_with_core_mL"] == pytest.approx(ring.sum() / 1000, rel=0.02)
        assert sizes["open_ring"]
    assert sizes["hull_mL"] == pytest.approx(ball_ml(20), rel=0.05)
    assert sizes["longest_diameter_mm"] == pytest.approx(41, abs=1)


def test_a_large_ring_with_wide_gaps_has_its_outer_diameters_and_is_open():
    places = world((80, 60, 60), CUBES)
    outer = ellipsoid(places, (32, 21.5, 19.1))
    ring = outer & ~ellipsoid(places, (29, 18.5, 16.1))
    # A side is missing, and three windows of 12 mm.
    ring &= ~((places[..., 1] > 12) & (places[..., 0] > -8))
    for x, y in ((-20, -6), (0, 0), (15, -8)):
        ring &= ~((np.abs(places[..., 0] - x) < 6) & (np.abs(places[..., 1] - y) < 6))
    assert outer.sum() / 1000 == pytest.approx(55, abs=0.5)
    sizes = figures(ring)
    assert sizes["volume_mL"] < 18
    assert sizes["volume_with_core_mL"] < 20
    assert sizes["longest_diameter_mm"] == pytest.approx(64, abs=1.1)
    assert sizes["hull_mL"] > 45
    assert sizes["open_ring"]
    # The sphere has the volume that it is named after, and no diameter of the lesion.
    assert ball_ml(sizes["sphere_diameter_mm"] / 2) == pytest.approx(sizes["volume_with_core_mL"])


def test_a_notched_solid_lesion_has_no_core():
    places = world((40, 40, 40), CUBES)
    lesion = np.linalg.norm(places, axis=-1) <= 15
    lesion &= ~((np.abs(places[..., 0]) < 2) & (places[..., 1] > 5))
    sizes = figures(lesion)
    assert sizes["volume_with_core_mL"] == sizes["volume_mL"]


@pytest.mark.parametrize("edges", [(1, 1, 1), (0.7, 0.9, 2.5)])
def test_no_figure_depends_on_how_a_scan_is_stored(edges):
    import nibabel as nib

    rng = np.random.default_rng(1)
    angle = 0.2
    tilt = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = np.eye(4)
    affine[:3, :3] = tilt @ np.diag(edges)
    places = world((44, 36, 20), affine)
    lesion = ellipsoid(places, (14, 10, 12), 0.4) & ~ellipsoid(places, (10, 7, 8), 0.4)
    lesion &= rng.random(lesion.shape) > 0.05
    expected = figures(lesion, affine)
    assert expected["volume_with_core_mL"] > 1.2 * expected["volume_mL"]
    image = nib.Nifti1Image(lesion.astype(np.uint8), affine)
    for order in ([[0, -1], [1, -1], [2, 1]], [[2, 1], [0, -1], [1, 1]], [[1, 1], [2, -1], [0, -1]]):
        stored = image.as_reoriented(np.array(order))
        sizes = figures(np.asarray(stored.dataobj) > 0, stored.affine)
        assert sizes == pytest.approx(expected, rel=1e-6)


def test_the_sizes_of_single_voxels_are_their_edges():
    lesion = np.ones((1, 1, 1), bool)
    sizes = figures(lesion, np.diag([0.5, 2.0, 3.0, 1.0]))
    assert sizes["volume_mL"] == sizes["volume_with_core_mL"] == sizes["hull_mL"] == pytest.approx(0.003)
    assert sizes["longest_diameter_mm"] == 2
    assert sizes["perpendicular_diameter_mm"] == 0.5


def test_lesions_together_have_their_volumes_and_the_diameters_of_the_longest():
    small, large = figures(np.ones((2, 2, 2), bool)), figures(np.ones((9, 4, 4), bool))
    joint = joint_figures([small, large])
    assert joint["volume_with_core_mL"] == pytest.approx(0.152)
    assert joint["longest_diameter_mm"] == large["longest_diameter_mm"]
    assert ball_ml(joint["sphere_diameter_mm"] / 2) == pytest.approx(0.152)
    assert set(joint_figures([]).values()) == {0}
