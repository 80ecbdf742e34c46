"""Figures of maps: which slices, which side is which, which limits."""

import io

import numpy as np
import pytest
from matplotlib.image import imread

from dmrifit.report.page import png_bytes
from dmrifit.report.slice_figures import NO_VALUE_COLOR, MapPanel, Slices, plot_maps, robust_limits

AFFINE = np.array([[3.0, 0, 0, -30], [0, 3, 0, -20], [0, 0, 6, 12], [0, 0, 0, 1]])
SHAPE = (10, 8, 7)


@pytest.fixture
def slices():
    return Slices(np.ones(SHAPE, bool), AFFINE)


def picture(figure):
    return imread(io.BytesIO(png_bytes(figure, dpi=60)))


def test_the_right_of_the_patient_is_at_the_left_and_the_front_on_top(slices):
    volume = np.zeros(SHAPE)
    volume[-1, -1, :] = 1  # right, front
    for cut in slices.pictures(volume):
        assert cut.shape == (8, 10)
        assert np.argwhere(cut).tolist() == [[7, 0]]  # rows run upwards
    assert slices.sides == ("R", "L")


def test_thick_slices_are_shown_face_on():
    coronal = Slices(np.ones((6, 4, 5), bool), np.diag([2.0, 5, 2, 1]))
    volume = np.zeros((6, 4, 5))
    volume[-1, :, -1] = 1  # right, top
    assert all(np.argwhere(cut).tolist() == [[4, 0]] for cut in coronal.pictures(volume))
    assert coronal.labels[0] == "y = 0 mm"
    sagittal = Slices(np.ones((3, 4, 5), bool), np.diag([5.0, 2, 2, 1]))
    volume = np.zeros((3, 4, 5))
    volume[:, -1, -1] = 1  # front, top
    assert all(np.argwhere(cut).tolist() == [[4, 0]] for cut in sagittal.pictures(volume))
    assert sagittal.sides == ("A", "P")


def test_slices_are_spread_over_the_mask_and_cut_to_it_and_one_voxel_is_enough():
    mask = np.zeros((10, 8, 40), bool)
    mask[2:5, 3:7, 10:34] = True
    slices = Slices(mask, AFFINE, n_slices=4)
    index = np.broadcast_to(np.arange(40), mask.shape)
    cuts = slices.pictures(index)
    assert [cut[0, 0] for cut in cuts] == [13, 19, 25, 31]
    assert all(cut.shape == (4, 3) for cut in cuts)
    assert slices.labels[0] == f"z = {12 + 6 * 13} mm"
    mask = np.zeros(SHAPE, bool)
    mask[3, 3, 3] = True
    slices = Slices(mask, AFFINE)
    assert [cut.shape for cut in slices.pictures(mask)] == [(1, 1)]
    assert picture(plot_maps(slices, [MapPanel("D", "µm²/ms", np.full(SHAPE, 1.5))])).size


def test_limits_leave_out_the_odd_voxels():
    values = np.concatenate([np.linspace(1, 2, 1000), [1e6, -1e6, np.nan, np.inf]])
    low, high = robust_limits(values)
    assert 1 <= low < 1.1
    assert 1.9 < high <= 2
    assert robust_limits(np.array([np.nan])) == (0, 1)
    low, high = robust_limits(np.full(9, 3.0))
    assert low < 3 < high
    assert robust_limits(np.zeros(9)) == (0, 1)


def test_outside_the_mask_the_page_shows_and_missing_values_are_gray(slices):
    mask = np.zeros(SHAPE, bool)
    mask[2:8, 2:6] = True
    values = np.ones(SHAPE)
    values[5, 4] = np.nan
    shown = picture(plot_maps(Slices(mask, AFFINE), [MapPanel("D", "", values)]))[..., :3]
    gray = np.array([0xB9, 0xBE, 0xC6]) / 255
    assert (np.abs(shown - gray).max(axis=-1) < 0.02).sum() > 50
    assert (shown[0, 0] == 1).all()


def test_histograms_hold_all_voxels_up_to_the_bounds_they_sit_at_whose_shares_do_not_overlap(slices):
    values = np.random.default_rng(0).uniform(1, 2, SHAPE)
    values[0] = 0
    histogram = plot_maps(slices, [MapPanel("K", "", values, (0.0, 5.0), (0.0051, 0.0))]).axes[-1]
    assert histogram.get_xlim()[0] == 0
    assert histogram.get_xlim()[1] < 3
    assert [text.get_text() for text in histogram.texts] == ["0.5 % at the bound"]
    values = np.linspace(0, 5, 560).reshape(SHAPE)
    figure = plot_maps(slices, [MapPanel("K", "", values, (0.0, 5.0), (0.32, 0.67))])
    low, high = (text.get_window_extent() for axes in figure.axes for text in axes.texts if "bound" in text.get_text())
    assert not low.overlaps(high)
    values = np.random.default_rng(0).normal(size=SHAPE)
    values[0, 0, 0] = 1e5
    histogram = plot_maps(slices, [MapPanel("K", "", values)]).axes[-1]
    assert histogram.patches[0].get_data().values.sum() == pytest.approx(100)
    panel = MapPanel("S0", "a.u.", np.random.default_rng(0).normal(size=SHAPE), shares=(0.01, 0.02))
    histogram = plot_maps(slices, [panel]).axes[-1]
    assert np.isfinite(histogram.get_xlim()).all()
    assert not histogram.texts


def test_the_same_figure_gives_the_same_bytes(slices):
    panel = MapPanel("D", "µm²/ms", np.random.default_rng(0).normal(size=SHAPE))
    assert png_bytes(plot_maps(slices, [panel])) == png_bytes(plot_maps(slices, [panel]))


def test_a_margin_around_a_mask_ends_with_the_volume():
    mask = np.zeros((20, 30, 4), bool)
    mask[1:5, 10:18, 2] = True
    slices = Slices(mask, np.diag([2.0, 1, 5, 1]), n_slices=1, margin=0.5)
    # Sides of 8 mm each, so 2 voxels across, of which the volume has one at the right, and 4 up.
    (picture,) = slices.pictures(mask)
    assert picture.shape == (16, 7)
    assert picture.sum() == 4 * 8
    assert slices.aspect == 16 / 14
    whole = Slices(mask, np.diag([2.0, 1, 5, 1]), n_slices=1, margin=9.0)
    assert whole.pictures(mask)[0].shape == (30, 20)


def test_a_map_can_have_the_colors_of_another_and_says_in_a_list_that_it_says_little():
    values = np.linspace(0, 1, 8).reshape(2, 2, 2)
    panel = MapPanel("Dt", "µm²/ms", values, window=(0.25, 4.0))
    figure = plot_maps(Slices(np.ones((2, 2, 2), bool), np.eye(4)), [panel])
    assert (0.25, 4.0) in [axes.get_ylim() for axes in figure.axes]
    assert panel.layer == "Dt"
    assert MapPanel("T2v", "ms", values, faint=True).layer == "T2v (not determined)"


def test_voxels_in_doubt_are_gray_in_figures(slices):
    """Half of the voxels are in doubt; the histogram below the slices has no such gray."""
    doubted = np.zeros(SHAPE, bool)
    doubted[: SHAPE[0] // 2] = True
    values = np.random.default_rng(0).uniform(0, 1, SHAPE)
    gray = np.array([int(NO_VALUE_COLOR[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    shares = []
    for panel in (MapPanel("K", "", values), MapPanel("K", "", values, doubted=doubted)):
        drawn = picture(plot_maps(slices, [panel]))[..., :3]
        shares.append((np.abs(drawn - gray).max(axis=-1) < 0.01).mean())
    assert shares[0] < 0.002
    assert shares[1] > 0.05


@pytest.mark.parametrize(
    "values", [np.full(SHAPE, np.nan), np.zeros(SHAPE), np.random.default_rng(0).normal(size=SHAPE)]
)
def test_any_map_can_be_drawn(slices, values):
    panels = [MapPanel("K", "", values, (0.0, 5.0), (0.2, 0.0)), MapPanel("D", "µm²/ms", values)]
    for figure in (plot_maps(slices, panels[:1]), plot_maps(slices, panels, title="title")):
        shown = picture(figure)
        assert shown[..., :3].std() > 0.02
