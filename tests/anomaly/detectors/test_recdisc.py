"""The network that learns from synthetic anomalies, as an estimator."""

import numpy as np
import pytest

pytest.importorskip("skorch")

from anomaly import RecDiscNet, corrupt
from anomaly.generators.corruptions import TissueMoments

pytestmark = pytest.mark.deep


def streamed(model, X, masks, epoch=0, seed=0):
    """Give the samples of an epoch, as the training sees them."""
    model.moments_, model.box_ = {"mean": 0.5, "sd": 0.1}, (0, 0, 0, *masks[0].shape)
    inputs = [np.moveaxis(one, -1, 0).copy() for one in X]
    return inputs, list(model._stream(inputs, list(masks), np.random.default_rng(seed), epoch))


def test_scores_are_probabilities_and_zero_outside(small, world):
    fitted = small("recdisc").fit(*world)
    X, masks = world
    maps = fitted.anomaly_map(X, masks)
    assert (maps[~masks] == 0).all()
    assert (maps[masks] > 0).all()
    assert (maps[masks] < 1).all()
    expected = np.abs((X - fitted.reconstruct(X, masks)).mean(axis=-1)) * masks
    np.testing.assert_allclose(fitted.residual_map(X, masks), expected, atol=1e-6)


def test_moments_are_measured_in_the_scans_learned_from_and_targets_are_the_healthy_scan_and_its_changes(world, small):
    X, masks = world
    for factor in (1, 1.15):
        model = small("recdisc", epochs=1, calibration=None).fit(X * np.float32(factor), masks)
        expected = TissueMoments.measured(X, masks)
        assert model.moments_["mean"] == pytest.approx(factor * expected.mean, rel=1e-4)
        assert model.moments_["sd"] == pytest.approx(factor * expected.sd, rel=1e-4)
    inputs, samples = streamed(small("recdisc"), X, masks)
    assert len(samples) == 2 * len(X)
    np.testing.assert_array_equal(inputs, np.moveaxis(X, -1, 1))
    shares = []
    for changed, target in samples:
        different = (changed != target["volume"]).any(axis=0)
        np.testing.assert_array_equal(different, target["anomaly"][0] > 0)
        np.testing.assert_array_equal(target["brain"][0] > 0, masks[0])
        shares.append(different.sum())
    assert max(shares) > 0


def test_anomalies_are_fresh_in_each_epoch_or_stay(world, small):
    X, masks = world

    def changed(fresh, seed):
        _, samples = streamed(small("recdisc", fresh=fresh, repeats=4), X, masks, seed=seed)
        return sorted(target["anomaly"].tobytes() for _, target in samples)

    assert changed(True, 0) != changed(True, 1)
    assert changed(False, 0) == changed(False, 1)
    # Four of each scan, which differ.
    assert len(set(changed(False, 0))) > 4 * len(X) // 2
    # Those of the validation stay the same.
    options = {"learning_rate": 1e-30, "validation_fraction": 0.34, "calibration": None, "epochs": 3}
    model = small("recdisc", **options).fit(X, masks)
    assert len({row["valid_score"] for row in model.history_}) == 1
    assert model.score(X, masks) == model.score(X, masks) < 0


def test_the_network_sees_a_box_around_the_brains(make_scans, small):
    X, masks = make_scans(4, shape=(16, 18, 20), seed=2)
    masks[:, 9:] = False
    masks[:, :, :4] = False
    X *= masks[..., None]
    model = small("recdisc", calibration=None, epochs=1).fit(X, masks)
    inside = np.argwhere(masks.any(axis=0))
    np.testing.assert_array_equal(model.box_[:3], np.maximum(inside.min(axis=0) - 2, 0))
    np.testing.assert_array_equal(model.box_[3:], np.minimum(inside.max(axis=0) + 3, masks.shape[1:]))
    # What lies around does not matter; brains and scans of another size are scored all the same.
    padding = ((0, 0), (3, 0), (0, 5), (0, 0))
    larger = np.ones_like(masks[:1])
    assert (model.anomaly_map(X[:1] + np.float32(0.1), larger) > 0).all()
    padded = model.anomaly_map(np.pad(X[:1], (*padding, (0, 0))), np.pad(masks[:1], padding))
    assert padded.shape == (1, 19, 23, 20)
    assert (model.residual_map(X, masks)[~masks] == 0).all()
    _, stored, files = model.stored()
    with pytest.raises(Exception, match="box_ is"):
        small("recdisc").restore(stored | {"box_": (0, 0, 0, 1, 1, 99)}, files)


def test_weights_are_those_of_the_code_and_of_the_paper_by_option():
    model = RecDiscNet()
    assert (model.mse_weight, model.bce_weight, model.positive_weight) == (5, 1, 20)
    assert (model.uniform, model.background, model.clip) == ("sd", False, True)
    published = RecDiscNet.published(mse_weight=1, bce_weight=0.2)
    assert (published.reconstruction_width, published.discrimination_width, published.levels) == (128, 16, 3)
    assert (published.stem, published.convolutions) == (None, 2)
    assert (published.fresh, published.repeats, published.region) == (False, 4, "volume")
    assert (published.uniform, published.background, published.clip) == ("range", True, False)
    criterion = published._criterion()
    assert (criterion.mse_weight, criterion.bce_weight, criterion.positive_weight) == (1, 0.2, 20)


@pytest.mark.slow
def test_it_finds_what_it_has_learned_to_find(make_scans, small):
    X, masks = make_scans(10, 4, (16, 16, 12))
    options = {"epochs": 25, "repeats": 4, "learning_rate": 0.003, "calibration": None, "stem": 4}
    # Smoothing as for heads would wipe out anomalies in scans as small as these.
    model = small("recdisc", **options, smooth_mm=0.0).fit(X[:8], masks[:8])
    ranks = []
    for seed in range(6):
        changed, anomaly = corrupt(X[8], masks[8], counts=(0, 1), random_state=seed)
        if anomaly.sum() < 5:
            continue
        scores = model.anomaly_map(changed[None], masks[8][None])[0]
        ranks.append(scores[anomaly].mean() - scores[masks[8] & ~anomaly].mean())
    assert np.mean(ranks) > 0.3
