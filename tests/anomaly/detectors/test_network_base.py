"""What detectors with a network share: repeats, model files, signals from 0 to 1, the first level, refusals."""

import numpy as np
import pytest
from sklearn.base import clone

pytest.importorskip("skorch")

from anomaly import DenoisingAutoencoder, OtsuThreshold
from dmrifit import load_model, save_model

pytestmark = pytest.mark.deep
NETWORKS = ["dae", "recdisc"]


@pytest.fixture(scope="module", params=NETWORKS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def network(name, small, world):
    return small(name).fit(*world)


@pytest.fixture(scope="module")
def fitted(small, world):
    return small("dae").fit(*world)


def test_a_seed_and_a_model_file_give_the_same_bits_and_rule(name, network, small, world, tmp_path):
    import torch

    first = network.anomaly_map(*world)
    alone = np.concatenate([network.anomaly_map(X[None], mask[None]) for X, mask in zip(*world, strict=True)])
    assert alone.tobytes() == first.tobytes()
    before = torch.get_rng_state()
    assert small(name).fit(*world).anomaly_map(*world).tobytes() == first.tobytes()
    assert torch.equal(torch.get_rng_state(), before)
    assert small(name, random_state=1).fit(*world).anomaly_map(*world).tobytes() != first.tobytes()
    model = small(name, threshold=OtsuThreshold(), scale="image").fit(*world)
    save_model(model, tmp_path / "model.dmrifit")
    loaded = load_model(tmp_path / "model.dmrifit")
    assert repr(loaded.get_params()) == repr(model.get_params())
    assert loaded.anomaly_map(*world).tobytes() == model.anomaly_map(*world).tobytes()
    assert (loaded.history_, loaded.threshold_.threshold_) == (model.history_, model.threshold_.threshold_)
    np.testing.assert_array_equal(loaded.predict(*world), model.predict(*world))


@pytest.mark.parametrize(
    ("network", "options"), [("dae", {"decay": 0.7}), ("recdisc", {"fresh": True}), ("recdisc", {"fresh": False})]
)
def test_a_training_that_was_interrupted_goes_on(network, options, small, world, tmp_path):
    options |= {"epochs": 3, "checkpoint": str(tmp_path)}
    whole = small(network, **options | {"checkpoint": None}).fit(*world)
    small(network, **options | {"epochs": 1}).fit(*world)
    resumed = small(network, **options).fit(*world)
    assert resumed.anomaly_map(*world).tobytes() == whole.anomaly_map(*world).tobytes()
    if network == "dae":
        assert [row["learning_rate"] for row in resumed.history_] == pytest.approx([1e-3 * 0.7**k for k in range(3)])


class Watched(DenoisingAutoencoder):
    """Keep the level that the network begins with, and the subjects that it learns from."""

    def _fit_scans(self, scans):
        self.subjects_ = scans.groups
        super()._fit_scans(scans)

    def _leveled(self, module):
        self.seen_level_ = self.__dict__.get("_level")
        return super()._leveled(module)


@pytest.mark.parametrize("output", ["sigmoid", "linear"])
def test_the_first_level_is_the_mean_of_each_channel_in_the_brains(world, small, output):
    X, masks = world[0] * np.float32([0.6, 0.9, 1.2]), world[1]
    options = {"output": output, "learning_rate": 1e-30, "calibration": None}
    model = small(Watched, **options).fit(X, masks)
    means = X[masks].mean(axis=0, dtype=np.float64)
    np.testing.assert_allclose(model.seen_level_, means, rtol=1e-6)
    np.testing.assert_allclose(model.reconstruct(X, masks)[masks].mean(axis=0), means, atol=0.15)
    assert small(Watched, **options, region="volume").fit(X, masks).seen_level_ is None
    # Subjects in groups are held back together.
    grouped = small(Watched, output=output, calibration=0.34).fit(X, masks, groups=[7, 7, 8, 8, 9, 9])
    assert np.unique(grouped.subjects_, return_counts=True)[1].tolist() == [2, 2]


def test_a_twentieth_of_the_values_may_lie_beyond_the_signal_without_weighting(fitted, world, small):
    X, masks = world
    scan, mask = X[:1].copy(), masks[:1]
    values = scan[mask].ravel()
    for share in (0.045, 0.07):
        # Values above 1 and below 0, in the brain alone.
        n = round(share * values.size)
        changed = values.copy()
        changed[: n // 2], changed[n // 2 : n] = 1.2, -0.1
        scan[mask] = changed.reshape(-1, 3)
        scan[~mask] = 7.0
        if share < 0.05:
            assert np.isfinite(fitted.anomaly_map(scan, mask)).all()
    with pytest.raises(ValueError, match="7 % of its values in the brain are not from 0 to 1"):
        fitted.anomaly_map(scan, mask)
    with pytest.raises(ValueError, match="divide signals by the one at b = 0"):
        small("dae").fit(500 * X, masks)


def test_reconstructions_are_zero_outside_the_mask_and_the_score_is_their_error_in_the_brain(fitted, world):
    X, masks = world
    reconstruction = fitted.reconstruct(X, masks)
    assert reconstruction.dtype == np.float32
    assert not reconstruction[~masks].any()
    assert reconstruction[masks].all()
    errors = np.square(X - reconstruction).mean(axis=-1)
    expected = -np.mean([error[mask].mean() for error, mask in zip(errors, masks, strict=True)])
    assert fitted.score(X, masks) == pytest.approx(expected, rel=1e-4)


def test_scans_that_were_not_learned_from_are_refused(name, network, small, world):
    X, masks = world
    with pytest.raises(ValueError, match="have 2 directions, but the training scans have 3"):
        network.reconstruct(X[..., :2], masks)
    with pytest.raises(ValueError, match="one subject"):
        small(name).fit(X, masks, groups=["a"] * 6)


def test_files_that_were_altered_are_refused(fitted):
    _, stored, files = fitted.stored()
    without_rule = {key: value for key, value in stored.items() if key != "rule"}
    for content, message in (
        (stored | {"shape_": {"$tuple": [1, 2]}}, "its scans have|fitted attribute"),
        (stored | {"threshold": {"rule": "os", "parameters": {}, "fitted": {}}}, "no threshold rule"),
        (without_rule, "fitted attribute"),
    ):
        with pytest.raises(Exception, match=message):
            clone(fitted).restore(content, files)
