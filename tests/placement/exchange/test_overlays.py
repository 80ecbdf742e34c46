"""Figures show boxes and regions where they lie, name them, and say what is synthetic."""

import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from dmrifit.report.style import NOT_CLINICAL, OUTLINES, SYNTHETIC
from placement.box.voxel import Voxel
from placement.exchange.overlays import box_outline, plot_overlay
from placement.simulate.gliomas import simulate_gliomas

VOXEL = Voxel((12.5, -8, 20), (22, 17, 30), (12, -20, 35))


@pytest.fixture(scope="module")
def scene(sphere_scene):
    make, points = sphere_scene
    return make(exclude={"wall": points[..., 0] > 50}, image=points[..., 0])


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def contours(ax):
    """Points of the outlines of regions, by color."""
    return {to_hex(collection.get_edgecolor()[0]): collection.get_paths()[0].vertices for collection in ax.collections}


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_outlines_have_the_area_of_the_cut(axis):
    height = VOXEL.center[axis] + 3
    outline = box_outline(VOXEL, axis, height)
    assert 3 <= len(outline) <= 6
    assert (outline[:, axis] == height).all()
    x, y = np.delete(outline, axis, axis=1).T
    area = abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2
    points = VOXEL.center + np.random.default_rng(0).uniform(-25, 25, (200_000, 3))
    points[:, axis] = height
    assert area == pytest.approx(VOXEL.contains(points).mean() * 50**2, rel=0.02)


def test_overlays_show_the_exact_outlines_of_box_tumor_and_excluded_regions(scene):
    figure = plot_overlay({"one": VOXEL, "two": Voxel((0, 0, 0), (10, 10, 10))}, scene)
    axes = [ax for ax in figure.axes if ax.images]
    assert len(axes) == 3
    drawn = np.column_stack(axes[2].lines[0].get_data())
    outline = box_outline(VOXEL, 2, 20)[:, :2]
    np.testing.assert_allclose(drawn[:-1], outline)
    assert axes[2].xaxis_inverted()  # the patient's right is at the left
    axial = plot_overlay(VOXEL, scene).axes[2]
    lines = contours(axial)
    assert len(lines) == 2
    radius = np.linalg.norm(lines[OUTLINES[0]] - [12, -8], axis=1)
    np.testing.assert_allclose(radius, 22, atol=2)
    # The first image voxel of the wall lies at 52 mm: its border is half a voxel before it.
    border = lines[OUTLINES[5]]
    assert border[:, 0].min() == pytest.approx(51, abs=0.6)


def test_what_is_written_on_overlays_of_many_boxes_does_not_overlap():
    (scene,), boxes = simulate_gliomas(1, n_experts=2, spacing=4, exclude=("necrosis",), random_state=0)
    names = ("ranker", "objective", "simulated expert 1", "simulated expert 2")
    figure = plot_overlay({name: Voxel.from_array(boxes[0, 0]) for name in names}, scene)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    labels = [*figure.legends, *figure.texts]
    assert "Synthetic, no person was scanned" in [text.get_text() for text in figure.texts]
    frames = [label.get_window_extent(renderer) for label in labels]
    for first, second in itertools.combinations(frames, 2):
        assert not first.overlaps(second)


def test_a_plane_through_a_corner_or_an_edge_alone_cuts_nothing():
    box = Voxel((0, 0, 0), (10, 10, 10), (0, 0, 45))
    assert len(box_outline(box, 0, 5 * 2**0.5)) == 0
    assert len(box_outline(box, 0, 5 * 2**0.5 - 0.1)) == 4
    diagonal = box_outline(box, 0, 0)
    assert np.ptp(diagonal[:, 1]) == pytest.approx(10 * 2**0.5)
    assert len(box_outline(box, 2, 5)) == 4  # through a face
    assert len(box_outline(box, 2, 5.1)) == 0


def test_planes_pass_the_center_of_the_first_box_with_two_centimeters_around_all_boxes(scene):
    boxes = {"small": Voxel((0, -5, 10), (10, 10, 10)), "large": VOXEL, "far": Voxel((12, -8, 80), (10, 10, 10))}
    axes = plot_overlay(boxes, scene).axes
    titles = [ax.get_title("left") for ax in axes]
    assert titles == ["sagittal, x = 0.0 mm", "coronal, y = −5.0 mm", "axial, z = 10.0 mm"]
    # 2 cm beyond the lowest slice of the tumor, 1 mm above -2 mm, and the highest box, which ends at 85 mm.
    np.testing.assert_allclose(sorted(axes[0].get_ylim()), [-21, 105], atol=0.5)
    extents = [np.ptp(limits) for ax in axes for limits in (ax.get_xlim(), ax.get_ylim())]
    np.testing.assert_allclose(extents, extents[0], atol=1)


def test_the_legend_names_what_is_drawn_and_the_figure_what_is_synthetic_and_not_for_clinical_use(scene, sphere_scene):
    figure = plot_overlay({"expert": VOXEL, "network": Voxel((0, 0, 0), (9, 9, 9))}, scene)
    assert legend(figure) == ["wall", "tumor", "expert", "network"]  # the tumor above what shares its border
    colors = [line.get_color() for line in figure.legends[0].get_lines()]
    assert colors[2:] == [OUTLINES[4], OUTLINES[1]]
    assert set(colors[:2]) == set(contours(figure.axes[2]))
    assert legend(plot_overlay(VOXEL, sphere_scene[0]())) == ["tumor", "voxel"]
    for shown in (scene, sphere_scene[0](synthetic=True)):
        texts = {text.get_text() for text in plot_overlay(VOXEL, shown).texts}
        assert {NOT_CLINICAL, "synthetic sphere"} <= texts
        assert (SYNTHETIC in texts) == shown.synthetic


def test_the_background_is_the_first_channel_of_the_image_or_the_tumor(sphere_scene):
    make, points = sphere_scene
    channels = np.stack([points[..., 1], np.full(points.shape[:3], 1e4)], axis=-1)
    sagittal = plot_overlay(VOXEL, make(image=channels)).axes[0].images[0]
    # The image is the coordinate y itself, which runs across the sagittal plane.
    left, right, _, _ = sagittal.get_extent()
    values = sagittal.get_array()
    across = np.linspace(left, right, 2 * values.shape[1] + 1)[1::2]
    np.testing.assert_allclose(values, np.broadcast_to(across, values.shape), atol=1e-6)
    mask = plot_overlay(VOXEL, make()).axes[0].images[0]
    assert (mask.get_array().min(), mask.get_array().max()) == (0, 1)
    assert mask.get_clim() == (-0.2, 2.0)


def test_more_than_five_boxes_are_refused(scene):
    boxes = {f"box {k}": Voxel((k, 0, 0), (10, 10, 10)) for k in range(6)}
    for wrong in ({}, boxes):
        with pytest.raises(ValueError, match=f"one figure can show 1 to 5 voxels, not {len(wrong)}"):
            plot_overlay(wrong, scene)
    del boxes["box 5"]
    assert legend(plot_overlay(boxes, scene))[2:] == list(boxes)
