"""The autoencoder as an estimator: repeats, files, scores, and what the published code gets wrong."""


import numpy as np
import pytest
from sklearn.base import clone

pytest.importorskip("skorch")

from anomaly import DenoisingAutoencoder
from anomaly.detectors.features import masked_smoothing
from dmrifit import load_model, save_model
from dmrifit.io.parameter_json import RefusedError
from dmrifit.networks.training import gather_training

pytestmark = pytest.mark.deep

SHAPE = (10, 11, 7)
SMALL = {"latent_dim": 3, "widths": (4, 6), "epochs": 2, "batch_size": 2, "learning_rate": 0.001}
SMALL |= {"schedule": "constant", "dense": None, "random_state": 0, "device": "cpu"}
# The form of the publication; the other one has tests of its own.
SMALL |= {"residual": "mean", "latent": "vector", "aligned": False, "smooth_mm": 0.0}


def small(**options):
    return DenoisingAutoencoder(**gather_training(SMALL | options))


def scans(n=6, n_channels=3, shape=SHAPE, seed=0):
    """Healthy scans with a pattern that differs a little from one to the next."""
    rng = np.random.default_rng(seed)
    grid = np.indices(shape) / np.array(shape)[:, None, None, None] - 0.5
    mask = (grid**2).sum(axis=0) < 0.2
    pattern = 0.4 + 0.2 * np.sin(6 * grid[0]) * np.cos(5 * grid[1])
    levels = rng.uniform(0.9, 1.1, (n, 1, 1, 1, n_channels))
    noise = rng.normal(0, 0.02, (n, *shape, n_channels))
    X = np.clip(levels * pattern[..., None] + noise, 0, 1).astype(np.float32) * mask[..., None]
    return X, np.repeat(mask[None], n, axis=0)


@pytest.fixture(scope="module")
def world():
    return scans()


@pytest.fixture(scope="module")
def fitted(world):
    return small().fit(*world)


def test_two_predictions_are_the_same_bits(fitted, world):
    first, second = fitted.anomaly_map(*world), fitted.anomaly_map(*world)
    assert first.tobytes() == second.tobytes()
    alone = np.concatenate([fitted.anomaly_map(X[None], mask[None]) for X, mask in zip(*world, strict=True)])
    assert alone.tobytes() == first.tobytes()


def test_a_seed_gives_the_same_bits_again(fitted, world):
    import torch

    before = torch.get_rng_state()
    again = small().fit(*world)
    assert torch.equal(torch.get_rng_state(), before)
    assert again.anomaly_map(*world).tobytes() == fitted.anomaly_map(*world).tobytes()
    other = small(random_state=1).fit(*world)
    assert other.anomaly_map(*world).tobytes() != fitted.anomaly_map(*world).tobytes()


def test_a_model_file_gives_the_same_bits(fitted, world, tmp_path):
    save_model(fitted, tmp_path / "model.dmrifit")
    loaded = load_model(tmp_path / "model.dmrifit")
    assert loaded.get_params() == fitted.get_params()
    assert loaded.anomaly_map(*world).tobytes() == fitted.anomaly_map(*world).tobytes()
    np.testing.assert_array_equal(loaded.predict(*world), fitted.predict(*world))
    assert loaded.history_ == fitted.history_


def test_a_training_that_was_interrupted_goes_on(world, tmp_path):
    options = {"epochs": 4, "decay": 0.7, "checkpoint": str(tmp_path)}
    whole = small(**options | {"checkpoint": None}).fit(*world)
    small(**options | {"epochs": 2}).fit(*world)
    resumed = small(**options).fit(*world)
    assert resumed.anomaly_map(*world).tobytes() == whole.anomaly_map(*world).tobytes()
    assert [row["learning_rate"] for row in resumed.history_] == pytest.approx([1e-3 * 0.7**k for k in range(4)])


def test_the_mean_comes_before_the_absolute_value(fitted, world):
    X, masks = world
    reconstruction = fitted.reconstruct(X, masks)
    known = np.abs((X - reconstruction).mean(axis=-1)) * masks
    np.testing.assert_allclose(fitted.anomaly_map(X, masks), known, atol=1e-6)
    other = clone(fitted).set_params(residual="mean-of-abs")
    _parameters, stored, files = fitted.stored()
    other.restore(stored, files)
    known = np.abs(X - reconstruction).mean(axis=-1) * masks
    np.testing.assert_allclose(other.anomaly_map(X, masks), known, atol=1e-6)


def test_only_scaled_maps_are_divided_by_their_own_quantile(fitted, world):
    X, masks = world
    scaled = clone(fitted).set_params(scale="image")
    scaled.restore(*fitted.stored()[1:])
    maps = scaled.anomaly_map(X, masks)
    assert maps.max(axis=(1, 2, 3)) == pytest.approx(np.ones(len(X)))
    for one, scan, mask, reconstruction in zip(maps, X, masks, fitted.reconstruct(X, masks), strict=True):
        residual = np.abs((scan - reconstruction / reconstruction[mask].max()).mean(axis=-1))
        top = np.quantile(residual[mask], 0.999)
        np.testing.assert_allclose(one[mask], np.minimum(residual / top, 1)[mask], atol=2e-4)


def test_scans_that_are_too_small_for_the_levels_are_refused():
    X = np.random.default_rng(0).uniform(0.2, 0.8, (4, 4, 3, 4, 2)).astype(np.float32)
    with pytest.raises(ValueError, match="4 × 3 × 4 voxels are one voxel after 2 halvings"):
        small(batch_size=1, calibration=None).fit(X)
    assert small(calibration=None, validation_fraction=0).fit(X).shape_ == (4, 3, 4)


def test_a_scale_is_not_that_of_what_a_network_makes_of_places_without_a_brain(fitted, world):
    class Wild(DenoisingAutoencoder):
        def _predict_scan(self, scans, i):
            answer = dict(super()._predict_scan(scans, i))
            answer["reconstruction"] = np.where(scans.mask(i), answer["reconstruction"], 50)
            return answer

    X, masks = world
    assert not masks.all()
    plain, wild = (cls(**fitted.get_params(deep=False)).set_params(scale="image") for cls in (DenoisingAutoencoder, Wild))
    for one in (plain, wild):
        one.restore(*fitted.stored()[1:])
    np.testing.assert_array_equal(wild.anomaly_map(X, masks), plain.anomaly_map(X, masks))
    # Without it a scan that is twice as far off scores twice as much.
    assert fitted.anomaly_map(X, masks).max() < 0.9


def test_alignment_that_scans_do_not_allow_can_be_left_out(world):
    X, masks = world
    for scans in (X[:2], X[..., :1]):
        with pytest.raises(ValueError, match="--set aligned=false"):
            small(aligned=True, calibration=None).fit(scans, masks[: len(scans)])
    with pytest.raises(ValueError, match=r"scans of more subjects, .* or set .*--set aligned=false"):
        small(aligned=True, calibration=4).fit(X[:2], masks[:2])


@pytest.mark.parametrize("shape", [(8, 8, 8), (9, 6, 5), (13, 16, 9)])
def test_sizes_that_cannot_be_halved_are_padded(shape):
    X, masks = scans(4, shape=shape)
    model = small(epochs=1, calibration=None).fit(X, masks)
    assert model.anomaly_map(X, masks).shape == X.shape[:4]


def test_the_weights_of_the_smallest_loss_of_held_out_subjects_are_kept_also_when_resumed(world, tmp_path):
    options = {"calibration": None, "learning_rate": 0.3, "decay": 1.0}
    model = small(**options, epochs=4).fit(*world)
    best = int(np.argmax([row["valid_score"] for row in model.history_]))
    assert best < 3
    expected = small(**options, epochs=best + 1).fit(*world)
    small(**options, epochs=best + 1, checkpoint=tmp_path).fit(*world)
    resumed = small(**options, epochs=4, checkpoint=tmp_path).fit(*world)
    assert len(resumed.history_) == 4
    for other in (expected, resumed):
        np.testing.assert_array_equal(other.anomaly_map(*world), model.anomaly_map(*world))


def test_subjects_are_kept_together_and_validation_is_not_learned_from(world):
    X, masks = world
    options = {"validation_fraction": 0.34, "patience": 1, "calibration": None, "epochs": 3}
    model = small(**options).fit(X, masks, groups=list("aabbcc"))
    assert all(row["valid_score"] < 0 for row in model.history_)
    again = small(**options).fit(X, masks, groups=list("aabbcc"))
    assert again.history_ == model.history_
    with pytest.raises(ValueError, match="one subject"):
        small().fit(X, masks, groups=["a"] * 6)


def test_training_makes_healthy_residuals_smaller():
    X, masks = scans(8)
    options = {"calibration": None, "learning_rate": 0.01}
    short, long = (small(**options | {"epochs": n}).fit(X, masks) for n in (1, 25))
    assert long.score(X, masks) > 0.6 * short.score(X, masks)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"latent_dim": 0}, "latent_dim must be a whole number"),
        ({"output": "relu"}, "output must be one of sigmoid, linear"),
        ({"residual": "sum"}, "residual must be"),
        ({"scale": "dataset"}, "scale must be one of"),
        ({"widths": ()}, "widths"),
        ({"widths": (4, 0)}, "each of widths"),
        ({"dense": 0}, "dense"),
        ({"kl_weight": -1}, "kl_weight"),
        ({"reduction": "mean"}, "reduction"),
        ({"region": "lesion"}, "region"),
        ({"decay": 0}, "decay"),
        ({"decay": 1.5}, "decay"),
        ({"calibration": 2.5}, "calibration"),
        ({"epochs": 0}, "epochs"),
        ({"smooth_mm": -1.0}, "smooth_mm"),
        ({"spacing": 0}, "spacing"),
        ({"residual": "relative", "scale": "image"}, "use residual='mean'"),
    ],
)
def test_what_is_not_possible_is_refused(world, given, message):
    with pytest.raises(ValueError, match=message):
        small(**given).fit(*world)


def test_residuals_are_smoothed_before_their_absolute_value_and_may_have_one_side(fitted, world):
    X, masks = world
    signed = (fitted.reconstruct(X, masks) - X).mean(axis=-1)[0]
    smooth = masked_smoothing(signed, masks[0], 1.5)
    mapped = clone(fitted).set_params(smooth_mm=3.0, spacing=2.0)
    mapped.__dict__ |= {key: value for key, value in vars(fitted).items() if key.endswith("_")}
    np.testing.assert_allclose(mapped.anomaly_map(X, masks)[0], np.abs(smooth), atol=1e-6)
    # One standard deviation for each axis where the edges of voxels differ.
    mapped.spacing = (2.0, 1.0, 4.0)
    smooth = masked_smoothing(signed, masks[0], (1.5, 3.0, 0.75))
    np.testing.assert_allclose(mapped.anomaly_map(X, masks)[0], np.abs(smooth), atol=1e-6)
    mapped.residual = "low"
    np.testing.assert_allclose(mapped.anomaly_map(X, masks)[0], smooth, atol=1e-6)
    assert smooth.min() < 0 < smooth.max()


ALIGNED = {"residual": "relative", "latent": "map", "aligned": True, "smooth_mm": 2.0, "feature_mm": 2.0}
ALIGNED |= {"calibration": None}


@pytest.fixture(scope="module")
def aligned(world):
    return small(**ALIGNED).fit(*world)


@pytest.mark.parametrize("shift", [0, 1])
def test_a_lesion_stands_out_where_scans_are_aligned_also_if_the_head_is_moved(aligned, world, shift):
    scan, mask = world[0][0].copy(), world[1][0]
    scan[4:7, 4:7, 2:5] *= 0.6
    scan, mask = (np.roll(volume, shift, axis=1) for volume in (scan, mask))
    score = aligned.anomaly_map([scan], [mask])[0]
    lesion = np.zeros(mask.shape, dtype=bool)
    lesion[4:7, 4 + shift : 7 + shift, 2:5] = True
    assert score[lesion & mask].mean() > np.quantile(score[mask & ~lesion], 0.9)
    assert (score[~mask] == 0).all()


def test_maps_are_the_same_bits_however_a_scan_is_stored():
    X, masks = scans(n_channels=40)
    model = small(**ALIGNED | {"epochs": 1}).fit(X, masks)
    channels_first = np.moveaxis(np.ascontiguousarray(np.moveaxis(X[0], -1, 0)), 0, -1)
    for residual in ("mean", "mean-of-abs", "low", "relative"):
        model.set_params(residual=residual)
        expected = model.anomaly_map(X[:1], masks[:1])
        for stored in (np.asfortranarray(X[0]), channels_first):
            np.testing.assert_array_equal(model.anomaly_map([stored], masks[:1]), expected)


def test_relative_residuals_are_divided_by_those_of_healthy_scans(world):
    X, masks = world
    model = small(**ALIGNED | {"aligned": False, "smooth_mm": 0.0, "feature_mm": 0.0}).fit(X, masks)
    residual = (X - model.reconstruct(X, masks))[0]
    level = np.median(residual.mean(axis=-1)[masks[0]])
    moments = residual.mean(axis=-1) - level, residual.std(axis=-1)
    expected = np.sqrt(sum((one / healthy) ** 2 for one, healthy in zip(moments, model.healthy_residual_, strict=True)))
    np.testing.assert_allclose(model.anomaly_map(X, masks)[0], expected * masks[0], rtol=1e-3, atol=1e-4)
    # Healthy scans have a residual of about 1 in both units.
    assert 0.8 < np.median(model.anomaly_map(X, masks)[masks]) < 1.8


def test_a_latent_map_begins_at_the_healthy_mean(world):
    X, masks = world
    model = small(**ALIGNED | {"aligned": False, "learning_rate": 1e-30, "validation_fraction": 0}).fit(X, masks)
    rebuilt = model.reconstruct(X[:1], masks[:1])[0]
    np.testing.assert_allclose(rebuilt[masks[0]], X.mean(axis=0)[masks[0]], atol=0.06)
    assert np.abs(rebuilt - X.mean(axis=0))[masks[0]].mean() < 0.02


def test_an_aligned_model_file_makes_the_same_maps_and_refuses_other_arrays(aligned, world, tmp_path):
    save_model(aligned, tmp_path / "model.dmrifit")
    again = load_model(tmp_path / "model.dmrifit")
    np.testing.assert_array_equal(again.anomaly_map(*world), aligned.anomaly_map(*world))
    _, fitted, files = aligned.stored()
    for aligning, message in ((False, "missing array"), (True, "another version")):
        other = clone(aligned).set_params(aligned=aligning)
        kept = {name: data for name, data in files.items() if not aligning or name == "net.safetensors"}
        with pytest.raises(RefusedError, match=message):
            other.restore(fitted, kept)
