"""The content of a box is its exact overlap with labeled tissues."""

import numpy as np
import pytest

from placement.box.voxel import Voxel
from placement.search.objective import describe_content, voxel_content
from placement.search.scene import Scene
from placement.search.tissue_labels import named_labels

AFFINE = np.array([[-0.9, 0.1, 0, 40], [0.1, 0.9, 0, -30], [0, 0, 2.0, -35], [0, 0, 0, 1]])


def layered(shape=(40, 30, 30)):
    """Make layers along x: 10 of nothing, then 6 of each value, with nothing after them."""
    values = np.zeros(shape, np.uint8)
    for number in (1, 2, 3, 4):
        values[4 + 6 * number : 10 + 6 * number, 3:-3, 3:-3] = number
    return values


@pytest.fixture(scope="module")
def scene():
    brain = np.zeros((40, 30, 30), bool)
    brain[6:] = True
    return Scene(layered(), np.eye(4), labels=named_labels("brats2013"), brain=brain)


def test_shares_are_those_of_layers_cut_by_hand(scene):
    # From 3.5 to 27.5 mm: 2 of 24 outside the brain, 4 of normal tissue, 6 of 1 and 2 and 3 each.
    content = voxel_content(Voxel((15.5, 14.5, 14.5), (24, 10, 10)), scene)
    expected = {"outside_brain": 2, "normal": 4, "necrosis": 6, "edema": 6, "non-enhancing": 6, "enhancing": 0}
    for name, layers in expected.items():
        assert content[name] == pytest.approx(layers / 24, abs=1e-5), name
    assert content["solid"] == content["target"] == pytest.approx(6 / 24, abs=1e-5)
    assert content["outside"] == pytest.approx(6 / 24, abs=1e-5)


def test_shares_agree_with_counting_in_oblique_boxes():
    values = layered()
    scene = Scene(values, AFFINE, labels=named_labels("brats2013"))
    rng = np.random.default_rng(3)
    for _ in range(5):
        center = AFFINE[:3, :3] @ (20, 15, 15) + AFFINE[:3, 3] + rng.uniform(-4, 4, 3)
        voxel = Voxel(center, rng.uniform(10, 20, 3), rng.uniform(-40, 40, 3))
        points = rng.uniform(-0.5, 0.5, (400_000, 3)) * voxel.size @ voxel.rotation.T + voxel.center
        index = np.rint((points - AFFINE[:3, 3]) @ np.linalg.inv(AFFINE[:3, :3]).T).astype(int)
        inside = ((index >= 0) & (index < values.shape)).all(axis=1)
        counted = np.bincount(values[tuple(index[inside].T)], minlength=5) / len(points)
        content = voxel_content(voxel, scene)
        for number, name in enumerate(("necrosis", "edema", "non-enhancing", "enhancing"), start=1):
            assert content[name] == pytest.approx(counted[number], abs=3e-3)
        assert content["outside"] == pytest.approx(1 - counted[1:].sum(), abs=3e-3)


def test_shares_do_not_depend_on_the_storage(scene):
    voxel = Voxel((18, 14, 15), (20, 11, 13), (10, -20, 30))
    flipped = np.diag([-1.0, 1, 1, 1])
    flipped[0, 3] = 39
    brain = np.zeros((40, 30, 30), bool)
    brain[6:] = True
    other = Scene(layered()[::-1], flipped, labels=named_labels("brats2013"), brain=brain[::-1])
    first, second = voxel_content(voxel, scene), voxel_content(voxel, other)
    assert first == pytest.approx(second, abs=1e-5)


def test_necrosis_is_unknown_where_a_scheme_merges_it():
    values = np.where(layered() == 3, 0, layered())
    scene = Scene(values, np.eye(4), labels=named_labels("brats2017"))
    content = voxel_content(Voxel((24.5, 14.5, 14.5), (30, 10, 10)), scene)
    assert content["necrosis"] is None
    assert content["solid"] is None
    assert content["necrosis or non-enhancing"] == pytest.approx(6 / 30, abs=1e-5)
    assert content["target"] == content["enhancing"] == pytest.approx(6 / 30, abs=1e-5)
    words = describe_content(content)
    assert "necrosis unknown" in words
    assert "20 % enhancing" in words
    assert "outside the brain unknown" in words


def test_without_labels_only_the_target_is_known():
    scene = Scene(layered() > 0, np.eye(4))
    content = voxel_content(Voxel((10.5, 14.5, 14.5), (10, 10, 10)), scene)
    assert content == {"target": pytest.approx(0.6), "outside": pytest.approx(0.4), "outside_brain": None}
