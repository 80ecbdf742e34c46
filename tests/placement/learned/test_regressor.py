"""The placer that learns from experts by a network."""


import numpy as np
import pytest
from volume_contract import VolumeContract, bits

torch = pytest.importorskip("torch")
pytest.importorskip("skorch")

from dmrifit import load_model, save_model  # noqa: E402
from dmrifit.networks.training import Training, gather_training  # noqa: E402
from placement import (  # noqa: E402
    Scene,
    Voxel,
    VoxelOptimizer,
    VoxelRegressor,
    simulate_gliomas,
    tumor_fraction,
)
from placement.learned.regressor import _polished  # noqa: E402
from placement.learned.views import FLIPS  # noqa: E402

pytestmark = pytest.mark.deep


def lesion(rng, name, radii=None):
    """An ellipsoid on a grid of its own, and two boxes in it, of two experts."""
    shape = rng.integers(30, 36, 3)
    spacing = rng.uniform(1.8, 2.4, 3)
    middle = rng.uniform(-20, 20, 3)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1) - (shape - 1) / 2
    radii = rng.uniform(14, 22, 3) if radii is None else radii
    affine = np.diag([*spacing, 1])
    affine[:3, 3] = middle - (shape - 1) / 2 * spacing
    tumor = (((grid * spacing) / radii) ** 2).sum(-1) < 1
    boxes = np.zeros((2, 9))
    boxes[:, :3] = middle + rng.normal(0, 1, (2, 3))
    boxes[:, 3:6] = radii * rng.uniform(1.1, 1.3, (2, 3))
    boxes[:, 6:] = rng.integers(-10, 10, (2, 3))
    return Scene(tumor, affine, name=name), boxes


@pytest.fixture(scope="module")
def lesions():
    rng = np.random.default_rng(0)
    found = [lesion(rng, f"synthetic {i}") for i in range(8)]
    return [scene for scene, _ in found], np.array([boxes for _, boxes in found])


def small(**options):
    defaults = {"fast": True, "width": 8, "epochs": 2, "batch_size": 4, "device": "cpu"}
    return VoxelRegressor(**gather_training(defaults | options))


class TestContract(VolumeContract):
    @pytest.fixture(scope="class")
    @classmethod
    def make(cls):
        return small

    @pytest.fixture(scope="class")
    @classmethod
    def world(cls, lesions):
        scenes, voxels = lesions
        return scenes, voxels, np.arange(len(scenes)) // 2

    def test_cases_of_another_shape_are_predicted(self, fitted, world):
        assert len({scene.shape for scene in world[0]}) > 1
        assert fitted.predict(world[0]).shape == (len(world[0]), 9)

    def test_bad_cases_are_refused(self, fitted):
        with pytest.raises(ValueError, match="case 0: a Scene is needed, not ndarray"):
            fitted.predict([np.zeros((3, 3, 3))])


@pytest.mark.parametrize("loss", ["symmetric", "euler", "moment"])
@pytest.mark.parametrize("expert_loss", ["min", "mean", "each"])
def test_every_loss_goes_down(lesions, loss, expert_loss):
    options = {"epochs": 8, "augment": False, "learning_rate": 0.002, "schedule": "constant", "random_state": 0}
    model = small(loss=loss, expert_loss=expert_loss, **options).fit(*lesions)
    losses = [row["train_loss"] for row in model.history_]
    assert losses[-1] < losses[0]


def test_sides_follow_what_experts_made_of_each_lesion_and_are_geometric_means_otherwise():
    rng = np.random.default_rng(5)
    found = [lesion(rng, f"synthetic {i}", np.full(3, rng.uniform(9, 26))) for i in range(40)]
    scenes, voxels = [scene for scene, _ in found], np.array([boxes for _, boxes in found])
    model = VoxelRegressor(fast=True, training=Training(epochs=40), device="cpu", random_state=0).fit(scenes[:30], voxels[:30])
    wanted = np.log(voxels[30:, :, 3:6]).mean(axis=(1, 2))
    answered = np.log(model.predict(scenes[30:])[:, 3:6]).mean(axis=1)
    assert np.corrcoef(wanted, answered)[0, 1] > 0.9
    assert answered.std() > 0.5 * wanted.std()
    model = small()
    rows = np.zeros((3, 2, 9))
    rows[..., 3:6] = 20
    rows[0, 0, 3:6], rows[1, 1, 3:6] = (10, 20, 30), (40, 20, 30)
    rows[2, 1] = np.nan
    model._learn([], rows)
    np.testing.assert_allclose(model._usual_size, [20, 20, (20**3 * 30**2) ** (1 / 5)])


def test_a_missing_expert_teaches_nothing(lesions):
    scenes, voxels = lesions
    alone = voxels.copy()
    alone[:, 1] = np.nan
    for expert_loss in ("min", "mean", "each"):
        with_gaps, one = (
            small(expert_loss=expert_loss, random_state=0).fit(scenes, boxes).predict(scenes)
            for boxes in (alone, voxels[:, 0])
        )
        np.testing.assert_allclose(with_gaps, one, atol=1e-3)


def test_answers_are_canonical_and_within_the_limits(lesions):
    scenes, voxels = lesions
    voxels = voxels.copy()
    voxels[:, :, 3:6] *= 0.6
    model = small(size_range=(12, 30), min_volume=9.0, random_state=0).fit(scenes, voxels)
    for row in model.predict(scenes):
        voxel = Voxel.from_array(row)
        np.testing.assert_allclose(voxel.canonical().as_array(), row, atol=1e-9)
        assert (row[3:6] >= 12 - 1e-3).all()
        assert (row[3:6] <= 30 + 1e-3).all()
        assert voxel.volume >= 9.0 - 1e-6
    assert model.place(scenes[0]) == Voxel.from_array(model.predict(scenes)[0])
    assert model.predict([]).shape == (0, 9)
    tumor = np.zeros((16, 60, 60), bool)
    tumor[1:4, 20:40, 20:40] = True
    edge = Scene(tumor, np.diag([2.0, 1, 1, 1]))
    assert edge.holds(model.place(edge))


def test_where_the_image_lies_in_the_scanner_moves_the_answer_with_it(lesions):
    scenes, voxels = lesions
    model = small(random_state=0).fit(scenes, voxels)
    moved = scenes[0].affine.copy()
    moved[:3, 3] += (7.0, -30.0, 55.0)
    here, there = model.predict([scenes[0], Scene(scenes[0].tumor, moved)])
    np.testing.assert_allclose(there[:3] - here[:3], (7, -30, 55), atol=1e-3)
    np.testing.assert_allclose(there[3:], here[3:], atol=1e-3)


def test_the_score_is_the_dice_with_the_closest_expert(lesions):
    scenes, voxels = lesions
    voxels = voxels.copy()
    voxels[0, 0] = np.nan
    model = small(random_state=0).fit(scenes, voxels)
    found = [Voxel.from_array(row) for row in model.predict(scenes)]
    wanted = [
        max(box.dice(Voxel.from_array(row)) for row in rows if not np.isnan(row).any())
        for box, rows in zip(found, voxels, strict=True)
    ]
    assert model.score(scenes, voxels) == pytest.approx(np.mean(wanted))


def test_candidates_are_distinct_and_best_first(lesions):
    scenes, voxels = lesions
    model = small(random_state=0).fit(scenes, voxels)
    with torch.no_grad():
        # Answers that depend on the view, as those of a network that has learned do.
        model.net_.module_.center.weight.mul_(30)
    found = model.candidates(scenes[0], 5)
    assert 1 < len(found) <= 5
    scores = [score for _, score in found]
    assert scores == sorted(scores, reverse=True)
    assert all(one.dice(two) <= 0.8 for i, (one, _) in enumerate(found) for two, _ in found[:i])
    assert model.candidates(scenes[0], 1)[0] == found[0]
    with pytest.raises(ValueError, match="of at least 1, not 0"):
        model.candidates(scenes[0], 0)


def test_targets_are_boxes_about_the_middle_of_the_view_and_tumor_that_is_allowed():
    tumor, core = np.zeros((2, 40, 40, 40), bool)
    tumor[10:30, 10:30, 10:30] = True
    core[10:20, 10:30, 10:30] = True
    scene = Scene(tumor, np.diag([2.0, 2, 2, 1]), exclude={"core": core})
    rows = np.array([[43, 39, 35, 20, 22, 30, 0, 0, 90], np.full(9, np.nan)])
    for channels, share in ((("tumor", "exclude"), 0.5), (("tumor", "distance"), 1.0)):
        model = small(channels=channels)
        inputs = model._inputs(scene)
        target = model._target(rows, inputs)
        np.testing.assert_array_equal(target["present"], [1, 0])
        np.testing.assert_allclose(target["center"], [[4, 0, -4]] * 2, atol=1e-6)
        # Turned by 90 degrees, the sides along x and y change places.
        np.testing.assert_allclose(target["size"], [[22, 20, 30]] * 2)
        np.testing.assert_allclose(target["rotation"], [np.eye(3)] * 2, atol=1e-12)
        volume = target["tumor"].sum() * target["step"] ** 3
        assert volume == pytest.approx(share * 40**3, rel=0.03)


def test_answers_to_turned_views_are_turned_back():
    rng = np.random.default_rng(4)
    tumor = np.zeros((24, 24, 24))
    tumor[3:9, 5:15, 4:20] = rng.random((6, 10, 16))
    grid = (np.moveaxis(np.indices(tumor.shape), 0, -1) - 11.5) * 4.0

    def moments(views):
        """Answer with the center of mass of each view, and how far it spreads."""
        centers, logs = [], []
        for view in views:
            weights = view["volume"][0] / view["volume"][0].sum()
            centers.append((weights[..., None] * grid).sum(axis=(0, 1, 2)))
            spread = (weights[..., None] * (grid - centers[-1]) ** 2).sum(axis=(0, 1, 2))
            logs.append(0.5 * np.log(spread))
        turns = np.tile(np.eye(3), (len(views), 1, 1))
        return {"center": np.array(centers), "log_size": np.array(logs), "rotation": turns}

    boxes = small()._boxes(moments, {"volume": tumor[None], "frame": np.zeros(4)}, FLIPS)
    center, size, _ = boxes[0]
    assert len(np.unique(size.round(3))) == 3
    for turned_center, turned_size, rotation in boxes[1:]:
        np.testing.assert_allclose(turned_center, center, atol=1e-9)
        np.testing.assert_allclose(turned_size, size)
        np.testing.assert_allclose(rotation, np.eye(3), atol=1e-12)


def test_a_model_file_predicts_the_same(lesions, tmp_path):
    scenes, voxels = lesions
    for name, options in (("one", {}), ("two", {"loss": "euler", "head": "linear", "channels": ("tumor",)})):
        model = small(random_state=0, **options).fit(scenes, voxels)
        save_model(model, tmp_path / name)
        again = load_model(tmp_path / name)
        assert bits(again.predict(scenes)) == bits(model.predict(scenes))
        assert again.get_params() == model.get_params()


def test_a_training_goes_on_where_it_was(lesions, tmp_path):
    scenes, voxels = lesions
    options = {"random_state": 3, "schedule": "constant", "checkpoint": str(tmp_path)}
    whole = small(random_state=3, schedule="constant", epochs=4).fit(scenes, voxels)
    small(epochs=2, **options).fit(scenes, voxels)
    resumed = small(epochs=4, **options).fit(scenes, voxels)
    assert bits(resumed.predict(scenes)) == bits(whole.predict(scenes))
    assert len(list(tmp_path.iterdir())) == 1
    # Other scenes are another training.
    small(epochs=2, **options).fit(scenes[::-1], voxels)
    assert len(list(tmp_path.iterdir())) == 2


def test_the_patient_is_not_split(lesions):
    scenes, voxels = lesions
    groups = [i // 4 for i in range(8)]
    model = small(random_state=0, validation_fraction=0.5, patience=3).fit(scenes, voxels, groups=groups)
    assert 0 < model.history_[0]["valid_score"] < 1


@pytest.mark.slow
def test_refining_never_lowers_the_part_of_tumor(lesions):
    scenes, voxels = lesions
    model = small(random_state=0).fit(scenes, voxels)
    plain = model.predict(scenes)
    refined = model.set_params(refine=True).predict(scenes)
    before, after = (
        np.array([tumor_fraction(Voxel.from_array(row), scene) for row, scene in zip(rows, scenes, strict=True)])
        for rows in (plain, refined)
    )
    assert (after >= before).all()
    assert after.mean() > before.mean()
    np.testing.assert_allclose(refined[:, 3:6].prod(1), plain[:, 3:6].prod(1), rtol=0.35)


def test_refining_moves_a_box_into_the_tumor_nearby():
    tumor = np.zeros((60, 60, 60), bool)
    tumor[20:40, 20:40, 20:40] = True
    scene = Scene(tumor, np.eye(4))
    off = Voxel((33, 27, 31), (17, 22, 18), (5, -4, 8))
    assert small()._finished(off, scene) == off
    better = small(refine=True)._finished(off, scene)
    assert tumor_fraction(off, scene) < 0.85
    assert tumor_fraction(better, scene) > 0.93
    assert better.volume == pytest.approx(off.volume, rel=0.2)


@pytest.mark.parametrize("fresh", [False, True])
def test_refining_moves_a_box_off_what_is_excluded(fresh):
    tumor, core = np.zeros((2, 60, 60, 60), bool)
    tumor[10:50, 15:45, 15:45], core[24:36] = True, True
    scene = Scene(tumor, np.eye(4), exclude={"necrosis": core})
    if not fresh:
        VoxelOptimizer().place(scene)
    near = Voxel((39, 30, 30), (14, 23, 22), (3, -2, 4))
    optimizer = VoxelOptimizer(max_rotations=3)
    assert optimizer.assess(near, scene).flags == ("touches necrosis",)
    moved = _polished(near, scene, (10.0, 60.0), 6.0)
    assert optimizer.assess(moved, scene).flags == ()
    assert tumor_fraction(moved, scene) > 0.8


@pytest.mark.slow
def test_the_network_finds_what_experts_prefer_better_than_the_objective():
    scenes, voxels = simulate_gliomas(125, random_state=1)
    model = VoxelRegressor(fast=True, device="cpu", random_state=0).fit(scenes[:100], voxels[:100])
    optimizer = VoxelOptimizer(tie_break=0, random_state=0)
    objective = [
        max(Voxel.from_array(row).dice(Voxel.from_array(other)) for other in rows)
        for row, rows in zip(optimizer.predict(scenes[100:]), voxels[100:], strict=True)
    ]
    assert model.score(scenes[100:], voxels[100:]) > np.mean(objective) + 0.03
