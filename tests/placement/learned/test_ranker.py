import json
import pickle
import zipfile

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from dmrifit import load_model, save_model
from placement import PlacementObjective, Scene, Voxel, VoxelOptimizer, VoxelRanker
from placement.learned.features import FEATURES
from placement.search.optimizer import CONSOLE

SMALL = {"n_candidates": 6, "n_places": 4, "n_estimators": 20, "min_samples_leaf": 5}


def sausage(seed, length=70, affine=None, **options):
    """Make a long tumor, thick at one end, whose thick end is at a place of its own."""
    rng = np.random.default_rng(seed)
    shape = (64, 36, 36)
    affine = np.diag([2.0, 2.0, 2.0, 1.0]) if affine is None else affine
    x, y, z = np.moveaxis(np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T, -1, 0)
    along = (x - 28) / length
    along = 1 - along if rng.random() < 0.5 else along
    radius = 12 + 6 * along + rng.uniform(-1, 1)
    inside = (along > 0) & (along < 1) & ((y - 36) ** 2 + (z - 36) ** 2 < radius**2)
    scene = Scene(inside, affine, name=f"synthetic-{seed}", **options)
    thick = affine[:3, 3] + [28 + (0.75 if along[-1, 0, 0] > along[0, 0, 0] else 0.25) * length, 36, 36]
    return scene, thick


def cohort(n, offset=0):
    """Make synthetic cases with two synthetic experts, who go to the thick end, and not into the middle."""
    rng = np.random.default_rng(offset)
    scenes, voxels = [], np.empty((n, 2, 9))
    for i in range(n):
        scene, thick = sausage(offset + i)
        scenes.append(scene)
        for j in range(2):
            voxels[i, j] = [*(thick + rng.normal(0, 1, 3)), *rng.uniform(22, 26, 3), 0, 0, 0]
    return scenes, voxels


def closest(voxel, rows):
    return max(voxel.dice(Voxel.from_array(row)) for row in rows)


@pytest.fixture(scope="module")
def cases():
    return cohort(8)


@pytest.fixture(scope="module")
def ranker(cases):
    return VoxelRanker(**SMALL, random_state=0).fit(*cases)


def test_what_experts_prefer_is_learned_and_the_objective_does_not_know_it(ranker):
    scenes, voxels = cohort(6, offset=100)
    plain = VoxelOptimizer(tie_break=0, random_state=0)
    ours = np.array([closest(ranker.place(s), rows) for s, rows in zip(scenes, voxels, strict=True)])
    theirs = np.array([closest(plain.place(s), rows) for s, rows in zip(scenes, voxels, strict=True)])
    assert ours.mean() > theirs.mean() + 0.1
    assert ours.min() > 0.5


def test_predictions_candidates_and_places_agree_and_are_distinct(ranker, cases):
    scenes = cases[0][:2]
    rows = ranker.predict(scenes)
    assert [rows.shape, ranker.predict([]).shape] == [(2, 9), (0, 9)]
    with pytest.raises(TypeError, match=r"takes a sequence of Scene, such as \[scene\]; place takes one"):
        ranker.predict(scenes[0])
    found = ranker.candidates(scenes[0], 5)
    scores = [score for _, score in found]
    assert 1 < len(found) <= 5
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    np.testing.assert_array_equal(found[0][0].as_array(), rows[0])
    np.testing.assert_array_equal(ranker.place(scenes[0]).as_array(), rows[0])
    voxels = [voxel for voxel, _ in found]
    assert all(a.dice(b) <= 0.8 for i, a in enumerate(voxels) for b in voxels[:i])
    for voxel in voxels:
        np.testing.assert_allclose(voxel.as_array(), voxel.canonical().as_array(), atol=1e-9)


def ranked(voxels, scores, n, **options):
    """Rank boxes in a tumor that fills the image, of which each 30 mm are a place."""
    ranker = VoxelRanker()
    ranker.optimizer_ = VoxelOptimizer(**options)
    tumor = np.pad(np.ones((70, 30, 30)), 1)
    scene = Scene(tumor, np.diag([2.0, 2.0, 2.0, 1.0]))
    boxes = np.array([[voxel.center, voxel.size, *voxel.rotation] for voxel in voxels])
    return ranker._ranked(scene, boxes, np.array(scores), n)


def test_boxes_that_break_fewer_constraints_are_ranked_first_and_there_is_always_an_answer(ranker):
    # The first is too small and too short, the second and third are too small.
    sizes = [(8, 20, 20), (14, 20, 20), (14, 20, 20), (20, 20, 20)]
    voxels = [Voxel((20 + 30 * i, 20, 20), size) for i, size in enumerate(sizes)]
    pairs = ranked(voxels, [0.9, 0.5, 0.7, 0.6], 3)
    assert [score for _, score in pairs] == [0.6, 0.7, 0.5]
    # Scores that agree in nine decimals are tied; the first found goes first.
    voxels = [Voxel((20 + 30 * i, 20, 20), (20, 20, 20)) for i in range(4)]
    pairs = ranked(voxels, [0.5, 0.5 + 1e-11, 0.4, 0.4], 2)
    assert pairs[0][0] == voxels[0]
    small = np.zeros((30, 30, 30), bool)
    small[12:17, 12:17, 12:17] = True
    scene = Scene(small, np.diag([2.0, 2.0, 2.0, 1.0]))
    assert scene.tumor_volume < 6
    voxel = ranker.place(scene)
    assert voxel.volume >= 6 * (1 - 1e-9)
    assert np.linalg.norm(voxel.center - scene.centroid) < 10


def test_the_expected_dice_is_the_mean_of_the_trees(ranker):
    features = np.random.default_rng(0).normal(size=(7, len(FEATURES)))
    np.testing.assert_allclose(ranker._expected(features), ranker.forest_.predict(features), rtol=1e-6)


@pytest.mark.parametrize(("target", "expected"), [("mean", 0.35), ("closest", 0.7)])
def test_the_mean_or_the_closest_expert_is_learned(cases, monkeypatch, target, expected):
    scenes, voxels = cases[0][:3], cases[1][:3].copy()
    box = [[40, 36, 36], [20, 20, 20], *np.eye(3)]
    # One expert's box shares 7 of 10 parts with the candidate, the other's nothing.
    voxels[:, 0] = [46, 36, 36, 20, 20, 20, 0, 0, 0]
    voxels[:, 1] = [90, 36, 36, 20, 20, 20, 0, 0, 0]
    candidates = np.array([box] * 4), np.zeros((4, len(FEATURES)))
    monkeypatch.setattr(VoxelRanker, "_training_boxes", lambda self, scene: candidates)
    ranker = VoxelRanker(**SMALL, target=target, random_state=0).fit(scenes, voxels)
    np.testing.assert_allclose(ranker.forest_.predict(np.zeros((1, len(FEATURES)))), expected)


def test_cubes_have_quantiles_of_the_volumes_of_experts(cases):
    scenes, voxels = cases[0][:2], cases[1][:2].copy()
    voxels[:, :, 3:6] = 20
    voxels[..., 3] = [[20, 25], [30, 35]]
    ranker = VoxelRanker(**SMALL, random_state=0).fit(scenes, voxels)
    # Of 8, 10, 12 and 14 mL.
    np.testing.assert_allclose(ranker.volumes_, [9.5, 11, 12.5, 13.4])


def test_the_same_seed_gives_the_same_bits_at_any_number_of_jobs(ranker, cases):
    again = clone(ranker).set_params(n_jobs=2).fit(*cases)
    scenes = cases[0][:2]
    np.testing.assert_array_equal(again.predict(scenes), ranker.predict(scenes))
    np.testing.assert_array_equal(again.feature_importances_, ranker.feature_importances_)
    state = np.random.RandomState(3)
    other = clone(ranker).set_params(random_state=state, optimizer=VoxelOptimizer(random_state=state)).fit(*cases)
    np.testing.assert_array_equal(other.predict(scenes), other.predict(scenes[::-1])[::-1])


def test_constraints_of_the_optimizer_are_kept(cases):
    optimizer = VoxelOptimizer(max_rotations=0, size_range=(12, 21), min_volume=7.0, rounding=CONSOLE, random_state=0)
    ranker = VoxelRanker(optimizer, **SMALL, random_state=0).fit(*cases)
    wall = np.zeros((64, 36, 36), bool)
    wall[:, :, :16] = True
    scene, _ = sausage(50, exclude={"wall": wall})
    for one in (cases[0][0], scene):
        for voxel, _ in ranker.candidates(one, 3)[:1]:
            assert set(ranker.optimizer_.assess(voxel, one).flags) <= {"side at its limit"}
            np.testing.assert_allclose(voxel.size, np.rint(voxel.size), atol=1e-6)
            assert voxel.rotated_axes == 0


def test_missing_experts_are_left_out(cases):
    scenes, voxels = cases
    single = VoxelRanker(**SMALL, random_state=0).fit(scenes, voxels[:, 0])
    holes = voxels.copy()
    holes[:, 1] = np.nan
    masked = VoxelRanker(**SMALL, random_state=0).fit(scenes, holes)
    np.testing.assert_array_equal(masked.predict(scenes[:2]), single.predict(scenes[:2]))


def test_model_files_give_the_same_answers_without_a_pickle(tmp_path, cases):
    optimizer = VoxelOptimizer(PlacementObjective(11.0, one_sided=True), size_range=((10, 40), (10, 50), (12, 60)))
    ranker = VoxelRanker(optimizer, **SMALL, target="closest", random_state=4).fit(*cases)
    path = tmp_path / "ranker.dmrifit"
    save_model(ranker, path)
    again = load_model(path)
    assert isinstance(again, VoxelRanker)
    assert again.target == "closest"
    assert again.optimizer.objective == optimizer.objective
    np.testing.assert_array_equal(again.predict(cases[0][:2]), ranker.predict(cases[0][:2]))
    save_model(again, tmp_path / "twice.dmrifit")
    with zipfile.ZipFile(path) as archive:
        assert not [name for name in archive.namelist() if name.endswith((".pkl", ".joblib"))]
        content = json.loads(archive.read("model.json"))
    assert content["class"] == "VoxelRanker"
    copied = pickle.loads(pickle.dumps(ranker))
    np.testing.assert_array_equal(copied.predict(cases[0][:1]), ranker.predict(cases[0][:1]))


@pytest.mark.parametrize(
    "change",
    [
        {"features": ["objective"]}, {"volumes": [1.0]}, {"volumes": [1.0, 2.0, 3.0, -5.0]},
        {"optimizer": {"verbose": True}}, {"objective": {"mean_volume": 3.0}}, {"more": 1},
    ],
)
def test_altered_model_files_are_refused(ranker, change):
    parameters, fitted, files = ranker.stored()
    other = VoxelRanker(**parameters)
    other.restore(fitted, files)
    assert len(other.forest_.estimators_) == SMALL["n_estimators"]
    with pytest.raises(ValueError, match=r"\w"):
        VoxelRanker(**parameters).restore({**fitted, **change}, files)
    with pytest.raises(ValueError, match=r"\w"):
        VoxelRanker(**parameters).restore(fitted, {})


def test_it_is_an_estimator_of_scikit_learn(ranker, cases):
    own = clone(ranker)
    assert own.get_params(deep=False)["n_places"] == SMALL["n_places"]
    assert VoxelRanker(VoxelOptimizer(min_volume=7)).get_params()["optimizer__min_volume"] == 7
    for ask in (lambda: own.predict(cases[0]), lambda: own.place(cases[0][0]), lambda: own.candidates(cases[0][0], 3)):
        with pytest.raises(NotFittedError):
            ask()
    with pytest.raises(NotFittedError):
        own.feature_importances_  # noqa: B018
    with pytest.raises(NotFittedError):
        save_model(own, "nowhere.dmrifit")
    assert ranker.feature_importances_.shape == (len(FEATURES),)
    with pytest.raises(ValueError, match="n must be a whole number of at least 1, not 0"):
        ranker.candidates(cases[0][0], 0)
