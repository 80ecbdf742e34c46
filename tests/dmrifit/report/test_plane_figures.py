"""Planes show what lies at their place, on grids of any orientation."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from dmrifit.report.plane_figures import Outline, plot_planes, sample_volume

AFFINES = {
    "straight": np.diag([2.0, 2.0, 2.0, 1.0]),
    "turned": np.array([[0, 0, -2.0, 38], [-2.0, 0, 0, 38], [0, 2.0, 0, 0], [0, 0, 0, 1]]),
}


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_each_plane_shows_the_point_at_its_place(affine, monkeypatch):
    point = np.array([8.0, 20.0, 26.0])
    voxel = np.linalg.solve(affine, [*point, 1])[:3].round().astype(int)
    volume = np.zeros((20, 20, 20))
    volume[tuple(voxel)] = 1
    planes = []
    monkeypatch.setattr(Outline, "draw", lambda outline, plane, width=None: planes.append(plane))
    look = {"margin": 0, "window": (0, 1), "inside": np.ones_like(volume), "zoom": True}
    plot_planes(volume, affine, point, {"point": Outline("red")}, "", **look)
    for plane in planes:
        picture = plane.ax.images[0].get_array()
        row, column = np.unravel_index(picture.argmax(), picture.shape)
        assert plane.x[column] == pytest.approx(point[plane.across], abs=0.01)
        assert plane.y[row] == pytest.approx(point[plane.up], abs=0.01)
        assert plane.outline(volume, colors=["red"])
        assert not plane.outline(np.zeros_like(volume), colors=["red"])
    assert [plane.normal for plane in planes] == [0, 1, 2, 2]
    # The inset, 20 mm wide, does not leave the plane.
    assert planes.pop().ax.get_xlim() == (20, 0)
    # The patient's right, where x is low, is at the left.
    assert [plane.ax.xaxis_inverted() for plane in planes] == [False, True, True]
    assert [text.get_text() for text in planes[2].ax.texts] == ["R", "L", "A", "P"]
    letters = [text for plane in planes for text in plane.ax.texts]
    assert min(text.get_fontsize() for text in letters) >= 14
    assert all(text.get_path_effects() for text in letters)


def test_volumes_are_read_between_voxels_and_are_zero_outside():
    volume = np.arange(8.0).reshape(2, 2, 2)
    index = np.array([[0.5, 0.5, 0.5], [1, 1, 1], [9, 9, 9]])
    np.testing.assert_allclose(sample_volume(volume, index), [3.5, 7, 0])
