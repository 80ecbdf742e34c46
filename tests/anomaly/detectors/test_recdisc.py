"""The network that learns from synthetic anomalies, as an estimator."""


import numpy as np
import pytest

pytest.importorskip("skorch")

from anomaly import RecDiscNet, corrupt
from anomaly.generators.corruptions import TissueMoments
from dmrifit import load_model, save_model
from dmrifit.networks.training import gather_training

pytestmark = pytest.mark.deep

SMALL = {
    "reconstruction_width": 4,
    "discrimination_width": 4,
    "levels": 2,
    "stem": None,
    "repeats": 2,
    "epochs": 2,
    "batch_size": 2,
    "learning_rate": 0.001,
    "schedule": "constant",
    "random_state": 0,
    "device": "cpu",
}


def small(**options):
    return RecDiscNet(**gather_training(SMALL | options))


def scans(n=6, n_channels=3, shape=(10, 11, 7), seed=0):
    rng = np.random.default_rng(seed)
    grid = np.indices(shape) / np.array(shape)[:, None, None, None] - 0.5
    mask = (grid**2).sum(axis=0) < 0.2
    pattern = 0.5 + 0.1 * np.sin(6 * grid[0])
    X = pattern[..., None] + rng.normal(0, 0.02, (n, *shape, n_channels))
    X = np.clip(X, 0, 1).astype(np.float32) * mask[..., None]
    return X, np.repeat(mask[None], n, axis=0)


@pytest.fixture(scope="module")
def world():
    return scans()


@pytest.fixture(scope="module")
def fitted(world):
    return small().fit(*world)


def streamed(model, X, masks, epoch=0, seed=0):
    """Give the samples of an epoch, as the training sees them."""
    model.moments_, model.box_ = {"mean": 0.5, "sd": 0.1}, (0, 0, 0, *masks[0].shape)
    inputs = [np.moveaxis(one, -1, 0).copy() for one in X]
    return inputs, list(model._stream(inputs, list(masks), np.random.default_rng(seed), epoch))


def test_scores_are_probabilities_and_zero_outside(fitted, world):
    X, masks = world
    maps = fitted.anomaly_map(X, masks)
    assert maps.shape == X.shape[:4]
    assert (maps[~masks] == 0).all()
    assert (maps[masks] > 0).all()
    assert (maps[masks] < 1).all()
    residuals = fitted.residual_map(X, masks)
    known = np.abs((X - fitted.reconstruct(X, masks)).mean(axis=-1)) * masks
    np.testing.assert_allclose(residuals, known, atol=1e-6)


def test_two_predictions_are_the_same_bits_and_a_seed_gives_them_again(fitted, world):
    first = fitted.anomaly_map(*world)
    assert first.tobytes() == fitted.anomaly_map(*world).tobytes()
    again = small().fit(*world)
    assert again.anomaly_map(*world).tobytes() == first.tobytes()
    other = small(random_state=1).fit(*world)
    assert other.anomaly_map(*world).tobytes() != first.tobytes()


def test_a_model_file_gives_the_same_bits(fitted, world, tmp_path):
    save_model(fitted, tmp_path / "model.dmrifit")
    loaded = load_model(tmp_path / "model.dmrifit")
    assert loaded.anomaly_map(*world).tobytes() == fitted.anomaly_map(*world).tobytes()
    assert loaded.moments_ == fitted.moments_
    np.testing.assert_array_equal(loaded.predict(*world), fitted.predict(*world))


def test_a_training_that_was_interrupted_goes_on(world, tmp_path):
    for fresh in (True, False):
        options = {"epochs": 3, "fresh": fresh, "checkpoint": str(tmp_path)}
        whole = small(**options | {"checkpoint": None}).fit(*world)
        small(**options | {"epochs": 1}).fit(*world)
        resumed = small(**options).fit(*world)
        assert resumed.anomaly_map(*world).tobytes() == whole.anomaly_map(*world).tobytes()


def test_moments_are_measured_in_the_scans_that_are_learned_from(world):
    X, masks = world
    model = small(epochs=1, calibration=None).fit(X, masks)
    known = TissueMoments.measured(X, masks)
    assert model.moments_["mean"] == pytest.approx(known.mean, rel=1e-5)
    assert model.moments_["sd"] == pytest.approx(known.sd, rel=1e-4)
    brighter = small(epochs=1, calibration=None).fit(X * 1.5, masks)
    assert brighter.moments_["mean"] == pytest.approx(1.5 * known.mean, rel=1e-4)


def test_targets_are_the_healthy_scan_and_where_it_was_changed(world):
    X, masks = world
    inputs, samples = streamed(small(), X, masks)
    assert len(samples) == 2 * len(X)
    copies = [np.moveaxis(one, -1, 0) for one in X]
    for one, known in zip(inputs, copies, strict=True):
        np.testing.assert_array_equal(one, known)
    shares = []
    for changed, target in samples:
        different = (changed != target["volume"]).any(axis=0)
        np.testing.assert_array_equal(different, target["anomaly"][0] > 0)
        np.testing.assert_array_equal(target["brain"][0] > 0, masks[0])
        shares.append(different.sum())
    assert min(shares) == 0 or len(samples) < 20
    assert max(shares) > 0


def test_anomalies_are_fresh_in_each_epoch_or_stay(world):
    X, masks = world

    def changed(fresh, seed):
        _, samples = streamed(small(fresh=fresh, repeats=4), X, masks, seed=seed)
        return sorted(target["anomaly"].tobytes() for _, target in samples)

    assert changed(True, 0) != changed(True, 1)
    assert changed(False, 0) == changed(False, 1)
    # Four of each scan, which differ.
    assert len(set(changed(False, 0))) > 4 * len(X) // 2


def test_validation_anomalies_stay_the_same(world):
    options = {"learning_rate": 1e-30, "validation_fraction": 0.34, "calibration": None, "epochs": 3}
    model = small(**options).fit(*world)
    assert len({row["valid_score"] for row in model.history_}) == 1
    assert model.score(*world) == model.score(*world)
    assert model.score(*world) < 0


def test_scans_of_another_size_are_scored(fitted):
    X, masks = scans(2, shape=(13, 9, 8), seed=4)
    assert fitted.anomaly_map(X, masks).shape == masks.shape
    assert fitted.predict(X, masks).shape == masks.shape


def test_the_network_sees_a_box_around_the_brains(world):
    X, masks = scans(4, shape=(16, 18, 20), seed=2)
    masks[:, 9:] = False
    masks[:, :, :4] = False
    X *= masks[..., None]
    model = small(calibration=None, epochs=1).fit(X, masks)
    inside = np.argwhere(masks.any(axis=0))
    np.testing.assert_array_equal(model.box_[:3], np.maximum(inside.min(axis=0) - 2, 0))
    np.testing.assert_array_equal(model.box_[3:], np.minimum(inside.max(axis=0) + 3, masks.shape[1:]))
    # What lies around does not matter, and a brain that is larger is scored all the same.
    wider = np.pad(masks[:1], ((0, 0), (3, 0), (0, 5), (0, 0)))
    padded = np.pad(X[:1], ((0, 0), (3, 0), (0, 5), (0, 0), (0, 0)))
    larger = np.ones_like(masks[:1])
    assert (model.anomaly_map(X[:1] + np.float32(0.1), larger) > 0).all()
    assert model.anomaly_map(padded, wider).shape == wider.shape
    assert (model.residual_map(X, masks)[~masks] == 0).all()
    _parameters, stored, files = model.stored()
    with pytest.raises(Exception, match="box_ is"):
        small().restore(stored | {"box_": {"$tuple": [0, 0, 0, 1, 1, 99]}}, files)


def test_weights_are_those_of_the_code_and_of_the_paper_by_option():
    model = RecDiscNet()
    assert (model.mse_weight, model.bce_weight, model.positive_weight) == (5, 1, 20)
    big = RecDiscNet.published(mse_weight=1, bce_weight=0.2)
    assert (big.reconstruction_width, big.discrimination_width, big.levels, big.stem) == (128, 16, 3, None)
    assert big.convolutions == 2
    assert (big.fresh, big.repeats, big.region) == (False, 4, "volume")
    assert (big.uniform, big.background, big.clip) == ("range", True, False)
    assert (model.uniform, model.background, model.clip) == ("sd", False, True)
    criterion = big._criterion()
    assert (criterion.mse_weight, criterion.bce_weight, criterion.positive_weight) == (1, 0.2, 20)


@pytest.mark.slow
def test_it_finds_what_it_has_learned_to_find():
    X, masks = scans(10, 4, (16, 16, 12))
    options = {"epochs": 25, "repeats": 4, "learning_rate": 0.003, "calibration": None, "stem": 4}
    # Smoothing as for heads would wipe out anomalies in scans as small as these.
    options["smooth_mm"] = 0.0
    model = small(**options).fit(X[:8], masks[:8])
    ranks = []
    for seed in range(6):
        changed, anomaly = corrupt(X[8], masks[8], counts=(0, 1), random_state=seed)
        if anomaly.sum() < 5:
            continue
        found = model.anomaly_map(changed[None], masks[8][None])[0]
        ranks.append(found[anomaly].mean() - found[masks[8] & ~anomaly].mean())
    assert np.mean(ranks) > 0.3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"noise": "pink"}, "noise must be one of"),
        ({"mean": "third"}, "mean must be one of"),
        ({"mse_weight": -1}, "mse_weight"),
        ({"mse_weight": 0, "bce_weight": 0}, "nothing would be learned"),
        ({"positive_weight": float("nan")}, "positive_weight"),
        ({"reconstruction_width": 0}, "reconstruction_width"),
        ({"levels": 0}, "levels"),
        ({"stem": 0}, "stem"),
        ({"repeats": 0}, "repeats"),
        ({"counts": ()}, "counts"),
        ({"radii": (0.5, 0.1)}, "radii"),
        ({"output": "relu"}, "output"),
        ({"region": "lesion"}, "region"),
    ],
)
def test_what_is_not_possible_is_refused(world, given, message):
    with pytest.raises(ValueError, match=message):
        small(**given).fit(*world)


def test_bad_scans_are_refused(fitted, world):
    X, masks = world
    with pytest.raises(ValueError, match="have 2 directions, and those that were learned from 3"):
        fitted.residual_map(X[..., :2], masks)
    with pytest.raises(ValueError, match="one subject"):
        small().fit(X[:1], masks[:1])
