"""Simulated experts place boxes as their rules say, with the moments of the study's."""

import numpy as np
import pytest

from dmrifit.agreement import icc
from placement import Voxel, simulate_gliomas, tumor_fraction


def test_boxes_are_what_a_console_takes():
    _, voxels = simulate_gliomas(6, spacing=3, random_state=3)
    assert (voxels[..., 3:6] == voxels[..., 3:6].round()).all()
    assert (voxels[..., 6:] == voxels[..., 6:].round()).all()
    assert ((voxels[..., 3:6] >= 10) & (voxels[..., 3:6] <= 60)).all()
    assert (voxels[..., 3:6].prod(-1) >= 6000).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["preference", "objective"])
def test_simulated_experts_have_about_the_published_moments(kind):
    # 80 cases differ between seeds by about this much.
    scenes, voxels = simulate_gliomas(80, experts=kind, random_state=0)
    boxes = [[Voxel.from_array(box) for box in pair] for pair in voxels]
    volumes = voxels[..., 3:6].prod(-1) / 1000
    fractions = np.array([[tumor_fraction(b, s) for b in pair] for pair, s in zip(boxes, scenes, strict=True)])
    turned = np.array([[b.rotated_angles for b in pair] for pair in boxes])
    tumors = np.array([scene.tumor_volume for scene in scenes])
    assert volumes.mean() == pytest.approx(12.4, abs=1.6)
    assert volumes.std() == pytest.approx(6.6, abs=1.6)
    assert fractions.mean() == pytest.approx(0.93, abs=0.04)
    assert fractions.std() == pytest.approx(0.12, abs=0.07)
    assert turned.mean() == pytest.approx(1.2, abs=0.25)
    assert turned.std() == pytest.approx(1.0, abs=0.2)
    assert np.mean([a.dice(b) for a, b in boxes]) == pytest.approx(0.46, abs=0.07)
    assert icc(volumes, "ICC(1,1)").value == pytest.approx(0.30, abs=0.2)
    assert np.corrcoef(volumes.mean(1), tumors)[0, 1] == pytest.approx(0.5, abs=0.15)
