"""The autoencoder as an estimator: files, scores, and what the published code gets wrong."""

import numpy as np
import pytest
from sklearn.base import clone

pytest.importorskip("skorch")

from anomaly import DenoisingAutoencoder
from anomaly.detectors.features import masked_smoothing
from dmrifit import load_model, save_model

pytestmark = pytest.mark.deep


@pytest.fixture(scope="module")
def fitted(world, small):
    return small("dae").fit(*world)


def test_the_mean_comes_before_the_absolute_value_and_only_scaled_maps_are_divided_by_their_quantile(fitted, world):
    X, masks = world
    reconstruction = fitted.reconstruct(X, masks)
    known = np.abs((X - reconstruction).mean(axis=-1)) * masks
    np.testing.assert_allclose(fitted.anomaly_map(X, masks), known, atol=1e-6)
    other = clone(fitted).set_params(residual="mean-of-abs")
    _parameters, stored, files = fitted.stored()
    other.restore(stored, files)
    known = np.abs(X - reconstruction).mean(axis=-1) * masks
    np.testing.assert_allclose(other.anomaly_map(X, masks), known, atol=1e-6)
    scaled = clone(fitted).set_params(scale="image")
    scaled.restore(*fitted.stored()[1:])
    maps = scaled.anomaly_map(X, masks)
    assert maps.max(axis=(1, 2, 3)) == pytest.approx(np.ones(len(X)))
    for one, scan, mask, reconstruction in zip(maps, X, masks, fitted.reconstruct(X, masks), strict=True):
        residual = np.abs((scan - reconstruction / reconstruction[mask].max()).mean(axis=-1))
        top = np.quantile(residual[mask], 0.999)
        np.testing.assert_allclose(one[mask], np.minimum(residual / top, 1)[mask], atol=2e-4)
    empty = {"scan": np.moveaxis(X[0], -1, 0), "reconstruction": np.zeros((3, *masks[0].shape), dtype=np.float32)}
    np.testing.assert_allclose(scaled._scored(empty, masks[0]), X[0].mean(axis=-1), atol=1e-6)


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


def test_alignment_that_scans_do_not_allow_can_be_left_out(world, small):
    X, masks = world
    for scans in (X[:2], X[..., :1]):
        with pytest.raises(ValueError, match="--set aligned=false"):
            small("dae", aligned=True, calibration=None).fit(scans, masks[: len(scans)])
    with pytest.raises(ValueError, match=r"scans of 4 or more subjects, or use .*--set aligned=false"):
        small("dae", aligned=True, calibration=4).fit(X[:2], masks[:2])


@pytest.mark.parametrize("shape", [(8, 8, 8), (9, 6, 5), (13, 16, 9)])
def test_sizes_that_cannot_be_halved_are_padded(shape, make_scans, small):
    X, masks = make_scans(4, shape=shape)
    model = small("dae", epochs=1, calibration=None).fit(X, masks)
    assert model.anomaly_map(X, masks).shape == X.shape[:4]
    X = np.random.default_rng(0).uniform(0.2, 0.8, (4, 4, 3, 4, 2)).astype(np.float32)
    with pytest.raises(ValueError, match="4 × 3 × 4 voxels are one voxel after 2 halvings"):
        small("dae", batch_size=1, calibration=None).fit(X)
    assert small("dae", calibration=None, validation_fraction=0).fit(X).shape_ == (4, 3, 4)


def test_the_weights_of_the_smallest_loss_of_held_out_subjects_are_kept_also_when_resumed(world, tmp_path, small):
    options = {"calibration": None, "learning_rate": 0.3, "decay": 1.0}
    model = small("dae", **options, epochs=4).fit(*world)
    best = int(np.argmax([row["valid_score"] for row in model.history_]))
    assert best < 3
    expected = small("dae", **options, epochs=best + 1).fit(*world)
    small("dae", **options, epochs=best + 1, checkpoint=tmp_path).fit(*world)
    resumed = small("dae", **options, epochs=4, checkpoint=tmp_path).fit(*world)
    assert len(resumed.history_) == 4
    for other in (expected, resumed):
        np.testing.assert_array_equal(other.anomaly_map(*world), model.anomaly_map(*world))


def test_training_makes_healthy_residuals_smaller(make_scans, small):
    X, masks = make_scans(8)
    options = {"calibration": None, "learning_rate": 0.01}
    short, long = (small("dae", **options | {"epochs": n}).fit(X, masks) for n in (1, 25))
    assert long.score(X, masks) > 0.6 * short.score(X, masks)


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
def aligned(world, small):
    return small("dae", **ALIGNED).fit(*world)


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


def test_maps_are_the_same_bits_however_a_scan_is_stored(make_scans, small):
    X, masks = make_scans(n_channels=40)
    model = small("dae", **ALIGNED | {"epochs": 1}).fit(X, masks)
    channels_first = np.moveaxis(np.ascontiguousarray(np.moveaxis(X[0], -1, 0)), 0, -1)
    for residual in ("mean", "mean-of-abs", "low", "relative"):
        model.set_params(residual=residual)
        expected = model.anomaly_map(X[:1], masks[:1])
        for stored in (np.asfortranarray(X[0]), channels_first):
            np.testing.assert_array_equal(model.anomaly_map([stored], masks[:1]), expected)


def test_relative_residuals_are_divided_by_those_of_healthy_scans(world, small):
    X, masks = world
    model = small("dae", **ALIGNED | {"aligned": False, "smooth_mm": 0.0, "feature_mm": 0.0}).fit(X, masks)
    residual = (X - model.reconstruct(X, masks))[0]
    level = np.median(residual.mean(axis=-1)[masks[0]])
    moments = residual.mean(axis=-1) - level, residual.std(axis=-1)
    expected = np.sqrt(sum((one / healthy) ** 2 for one, healthy in zip(moments, model.healthy_residual_, strict=True)))
    np.testing.assert_allclose(model.anomaly_map(X, masks)[0], expected * masks[0], rtol=1e-3, atol=1e-4)
    # Healthy scans have a residual of about 1 in both units.
    assert 0.8 < np.median(model.anomaly_map(X, masks)[masks]) < 1.8


def test_a_latent_map_begins_at_the_healthy_mean(world, small):
    X, masks = world
    model = small("dae", **ALIGNED | {"aligned": False, "learning_rate": 1e-30, "validation_fraction": 0}).fit(X, masks)
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
        with pytest.raises(ValueError, match=message):
            other.restore(fitted, kept)
