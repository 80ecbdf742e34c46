"""Fractions of tumor and of labeled tissues in boxes against theory and sampling, and the objective."""

import numpy as np
import pytest

from placement import PlacementObjective, Scene, Voxel, tumor_fraction, tumor_volume_inside
from placement.box.voxel import rotation_of
from placement.search.objective import voxel_content
from placement.search.tissue_labels import named_labels

AFFINES = {
    "1 mm": np.diag([1.0, 1, 1, 1]),
    "flipped": np.array([[-1.0, 0, 0, 40], [0, -1, 0, 37], [0, 0, 1, -20], [0, 0, 0, 1]]),
    "thick": np.diag([0.9, 0.9, 5.0, 1]),
    "thick first": np.diag([5.0, 0.9, 0.9, 1]),
    "sheared": np.array([[1.0, 0, 0, -20], [0, 1, 0.9, -34], [0, 0, 3.0, -40], [0, 0, 0, 1]]),
    "oblique": np.pad(rotation_of((20, -15, 35)) * [1.0, 1.2, 3.0], (0, 1)) + np.diag([0, 0, 0, 1.0]),
}


def blob(affine, extent=44.0, seed=0):
    """Make a ball with dents, larger than the boxes, in the middle of a grid of 70 mm."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    shape = np.ceil(70 / spacing).astype(int)
    middle = affine[:3, :3] @ ((shape - 1) / 2) + affine[:3, 3]
    points = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3] - middle
    rng = np.random.default_rng(seed)
    radius = extent / 2 + sum(2.5 * np.sin(points @ rng.normal(size=3) / 6) for _ in range(3))
    return np.linalg.norm(points, axis=-1) < radius, middle


def sampled(voxel, tumor, affine, n=60):
    """Ask at n³ points of the box whether their nearest image voxel is tumor."""
    steps = (np.arange(n) + 0.5) / n - 0.5
    points = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    inverse = np.linalg.inv(affine)
    world = (points * voxel.size) @ voxel.rotation.T + voxel.center
    index = np.rint(world @ inverse[:3, :3].T + inverse[:3, 3]).astype(int)
    inside = ((index >= 0) & (index < tumor.shape)).all(axis=1)
    return (tumor[tuple(index[inside].T)]).sum() / len(points)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.filterwarnings("ignore:.*reaches the border")
def test_half_a_box_lies_on_each_side_of_a_plane_through_its_center(axis):
    tumor = np.zeros((60, 60, 60), bool)
    tumor[tuple(slice(0, 30) if a == axis else slice(None) for a in range(3))] = True
    scene = Scene(tumor, np.eye(4))
    rng = np.random.default_rng(axis)
    for _ in range(20):
        center = rng.uniform(28, 31, 3)
        center[axis] = 29.5
        voxel = Voxel(center, rng.uniform(10, 25, 3), rng.uniform(-180, 180, 3))
        assert abs(tumor_fraction(voxel, scene) - 0.5) < 1e-9


@pytest.mark.filterwarnings("ignore:.*reaches the border")
def test_a_box_within_the_tumor_is_full_one_beside_it_empty_and_scored_in_its_scene():
    scene = Scene(np.ones((50, 50, 50), bool), np.eye(4))
    rng = np.random.default_rng(0)
    for _ in range(10):
        voxel = Voxel((25, 25, 25), rng.uniform(5, 22, 3), rng.uniform(-180, 180, 3))
        assert tumor_fraction(voxel, scene) == pytest.approx(1, abs=1e-12)
        assert tumor_volume_inside(voxel, scene) == pytest.approx(voxel.volume, rel=1e-12)
    assert tumor_fraction(Voxel((200, 0, 0), (10, 10, 10)), scene) == 0
    side = 12900 ** (1 / 3)
    assert PlacementObjective()(Voxel((25, 25, 25), (side,) * 3), scene) == pytest.approx(0.60653, abs=1e-5)
    side = (12900 / 0.95) ** (1 / 3)
    beside = Voxel((-0.5 + 0.45 * side, 25, 25), (side,) * 3)
    assert PlacementObjective()(beside, scene) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("name", AFFINES)
def test_fractions_agree_with_sampling_for_every_affine(name):
    affine = AFFINES[name]
    tumor, middle = blob(affine)
    scene = Scene(tumor, affine)
    rng = np.random.default_rng(3)
    errors = []
    for _ in range(5):
        voxel = Voxel(middle + rng.uniform(-12, 12, 3), rng.uniform(10, 30, 3), rng.uniform(-90, 90, 3))
        errors.append(tumor_fraction(voxel, scene) - sampled(voxel, tumor, affine))
    assert np.abs(errors).max() < 5e-3
    assert np.std(np.round(errors, 12)) < 2.5e-3


def test_probabilities_weigh_the_fraction_and_values_of_the_objective_are_those_published():
    tumor, middle = blob(np.eye(4))
    voxel = Voxel(middle + 9, (20, 25, 15), (10, 20, 30))
    full = tumor_fraction(voxel, Scene(tumor, np.eye(4)))
    assert tumor_fraction(voxel, Scene(tumor * 0.25, np.eye(4))) == pytest.approx(full / 4, rel=1e-6)
    objective = PlacementObjective()
    assert objective.value(0.95, 12.9) == 1
    assert objective.value(1.0, 12.9) == pytest.approx(np.exp(-0.5), abs=1e-12)
    assert objective.value(0.95, 12.9 + 8.7) == pytest.approx(np.exp(-0.5), abs=1e-12)
    assert PlacementObjective(one_sided=True).value(1.0, 12.9) == 1
    assert PlacementObjective(one_sided=True).value(0.9, 12.9) == pytest.approx(np.exp(-0.5), abs=1e-12)
    assert PlacementObjective(10, 2, 0.9, 0.1).value(0.8, 12) == pytest.approx(np.exp(-1), abs=1e-12)


def test_the_cost_tells_boxes_apart_whose_scores_are_too_small():
    objective = PlacementObjective()
    assert objective.value(-5.0, 0.0) == objective.value(-6.0, 0.0) == 0
    assert objective.cost(-6.0, 0.0) > objective.cost(-5.0, 0.0)
    assert np.exp(-objective.cost(0.9, 11.0)) == objective.value(0.9, 11.0)
    assert PlacementObjective(one_sided=True).cost(1.0, 12.9) == 0


AFFINE = np.array([[-0.9, 0.1, 0, 40], [0.1, 0.9, 0, -30], [0, 0, 2.0, -35], [0, 0, 0, 1]])


def layered(shape=(40, 30, 30)):
    """Make layers along x: 10 of nothing, then 6 of each value, with nothing after them."""
    values = np.zeros(shape, np.uint8)
    for number in (1, 2, 3, 4):
        values[4 + 6 * number : 10 + 6 * number, 3:-3, 3:-3] = number
    return values


def test_shares_are_those_of_layers_cut_by_hand_and_of_counting_in_oblique_boxes():
    brain = np.zeros((40, 30, 30), bool)
    brain[6:] = True
    scene = Scene(layered(), np.eye(4), labels=named_labels("brats2013"), brain=brain)
    # From 3.5 to 27.5 mm: 2 of 24 outside the brain, 4 of normal tissue, 6 of 1 and 2 and 3 each.
    content = voxel_content(Voxel((15.5, 14.5, 14.5), (24, 10, 10)), scene)
    expected = {"outside_brain": 2, "normal": 4, "necrosis": 6, "edema": 6, "non-enhancing": 6, "enhancing": 0}
    for name, layers in expected.items():
        assert content[name] == pytest.approx(layers / 24, abs=1e-5), name
    assert content["solid"] == content["target"] == pytest.approx(6 / 24, abs=1e-5)
    assert content["outside"] == pytest.approx(6 / 24, abs=1e-5)
    values = layered()
    scene = Scene(values, AFFINE, labels=named_labels("brats2013"))
    rng = np.random.default_rng(3)
    for _ in range(5):
        center = AFFINE[:3, :3] @ (20, 15, 15) + AFFINE[:3, 3] + rng.uniform(-4, 4, 3)
        voxel = Voxel(center, rng.uniform(10, 20, 3), rng.uniform(-40, 40, 3))
        content = voxel_content(voxel, scene)
        for number, name in enumerate(("necrosis", "edema", "non-enhancing", "enhancing"), start=1):
            assert content[name] == pytest.approx(sampled(voxel, values == number, AFFINE), abs=3e-3)
        assert content["outside"] == pytest.approx(1 - sampled(voxel, values > 0, AFFINE), abs=3e-3)


def test_necrosis_is_unknown_where_a_scheme_merges_it_and_all_but_the_target_without_labels():
    values = np.where(layered() == 3, 0, layered())
    scene = Scene(values, np.eye(4), labels=named_labels("brats2017"))
    content = voxel_content(Voxel((24.5, 14.5, 14.5), (30, 10, 10)), scene)
    assert content["necrosis"] is None
    assert content["solid"] is None
    assert content["necrosis or non-enhancing"] == pytest.approx(6 / 30, abs=1e-5)
    assert content["target"] == content["enhancing"] == pytest.approx(6 / 30, abs=1e-5)
    scene = Scene(layered() > 0, np.eye(4))
    content = voxel_content(Voxel((10.5, 14.5, 14.5), (10, 10, 10)), scene)
    assert content == {"target": pytest.approx(0.6), "outside": pytest.approx(0.4), "outside_brain": None}
