"""Dense inference against tiles, one segment and its own slabs; borders; mirror images; the U-Net."""

import math
import time

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from benchmarks.metastasis._tiled_logits import tiled_logits  # noqa: E402
from metastasis.networks.architectures import DeepMedic, SmallUNet, UNet  # noqa: E402
from metastasis.segmentation import inference  # noqa: E402
from metastasis.segmentation.inference import (  # noqa: E402
    averaged_over_flips,
    dense_logits,
    whole_logits,
)
from metastasis.segmentation.sampling import cell_means  # noqa: E402

pytestmark = [pytest.mark.deep, pytest.mark.usefixtures("one_thread")]

SHAPES = [(21, 19, 17), (5, 7, 3), (1, 1, 1), (24, 13, 31), (2, 33, 11), (18, 18, 18), (37, 5, 9)]


def network(widths=(4, 5, 6, 7), factors=(3, 5), dense=(9, 6), seed=0, **more):
    """Make a network whose answers differ from voxel to voxel, with normalizations that have seen something."""
    torch.manual_seed(seed)
    found = DeepMedic(1, widths, factors, dense, **more).eval()
    with torch.no_grad():
        found.answer.weight.normal_()
        for layer in found.modules():
            if isinstance(layer, torch.nn.BatchNorm3d):
                layer.running_mean.normal_(0, 0.3)
                layer.running_var.uniform_(0.5, 2)
                layer.bias.normal_(0, 0.3)
                layer.weight.uniform_(0.5, 1.5)
        if found.validity:
            found.valid_weight.normal_()
    return found


def with_cells(image, model):
    return {"image": image} | {f"low_{factor}": cell_means(image, factor) for factor in model.low_resolution}


def case(shape, model, *, prior=None, seed=0):
    rng = np.random.default_rng(seed)
    found = with_cells(rng.normal(size=(1, *shape)).astype(np.float32), model)
    if prior is not None:
        found |= {"prior": rng.normal(size=(1, *shape)).astype(np.float32), "valid": np.float32(prior)}
    return found


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dense_and_tiled_logits_are_equal(shape):
    model = network()
    one = case(shape, model)
    dense = dense_logits(model, one)
    assert dense.shape == shape
    assert np.abs(dense - tiled_logits(model, one, out=15)).max() < 1e-5
    assert np.abs(dense - dense_logits(model, one, slab_numbers=1)).max() < 1e-5
    assert dense.size == 1 or dense.std() > 0.01


@pytest.mark.parametrize(
    "more",
    [
        {"residual": True, "widths": (3, 4, 4, 5, 5, 4, 6, 6)},
        {"normalization": None},
        {"prior_path": True},
        {"prior_path": True, "validity": False},
        {"prior_path": True, "shared": True},
        {"factors": ()},
        {"factors": (2, 7), "dense": (4,)},
    ],
    ids=str,
)
def test_every_kind_of_network_is_computed_alike(more):
    model = network(**more)
    for valid in (1, 0) if "prior_path" in more else (None,):
        one = case((13, 22, 10), model, prior=valid)
        dense = dense_logits(model, one)
        assert np.abs(dense - tiled_logits(model, one, out=math.lcm(*model.low_resolution))).max() < 3e-5
        assert np.abs(dense - dense_logits(model, one, slab_numbers=1)).max() < 1e-5


def test_each_layer_is_computed_once_and_holds_no_more_than_a_slab(monkeypatch):
    model = network(prior_path=True, factors=(3,))
    one = case((50, 12, 9), model, prior=1)
    convolve, made, weights = inference.functional.conv3d, [], []

    def watched(x, weight, *more):
        found = convolve(x, weight, *more)
        if weight.shape[2] == 1:
            return found
        weights.append(weight)  # as long as it lives, no other has its place in memory
        made.append((weight.data_ptr(), x.numel(), found.shape[2], found[0, 0, 0].numel()))
        return found

    monkeypatch.setattr(inference.functional, "conv3d", watched)
    limit = 3 * (12 + 8) * (9 + 8) * 9
    dense_logits(model, one, slab_numbers=limit)
    # Three planes of the widest layer; a layer has the two planes before them beside them, the first slab the margin.
    assert max(numbers for _, numbers, _, _ in made) <= (3 + 8 + 2) * limit // 3
    planes = {}
    for layer, _, n, area in made:
        total, _ = planes.get(layer, (0, area))
        planes[layer] = total + n, area
    full = [(50 + 8 - 2 * i, (12 + 8 - 2 * i) * (9 + 8 - 2 * i)) for i in range(1, 5)]
    low = [(17 + 8 - 2 * i, (4 + 8 - 2 * i) * (3 + 8 - 2 * i)) for i in range(1, 5)]
    assert sorted(planes.values()) == sorted(2 * full + low)


def test_the_middle_of_a_volume_is_what_a_segment_answers_and_its_outermost_voxels_go_on_beyond():
    """Without padding and tiles: the segment is cut by hand, and its cells are averaged by hand."""
    model, shape = network(factors=(3,)), (45, 45, 45)
    one = case(shape, model)
    image = one["image"][0]
    first, out, layers = 18, 9, 4
    window = image[(slice(first - layers, first + out + layers),) * 3]
    cells = image.reshape(15, 3, 15, 3, 15, 3).mean(axis=(1, 3, 5))
    low = cells[(slice(first // 3 - layers, (first + out) // 3 + layers),) * 3]
    with torch.no_grad():
        found = model(torch.from_numpy(window)[None, None], low_3=torch.from_numpy(low)[None, None])[0, 0]
    inner = dense_logits(model, one)[(slice(first, first + out),) * 3]
    np.testing.assert_allclose(inner, found, atol=1e-5)
    model = network()
    one = case((9, 8, 7), model)
    padded = np.pad(one["image"], [(0, 0)] + [(60, 60)] * 3, mode="edge")
    inside = dense_logits(model, with_cells(padded, model))[60:69, 60:68, 60:67]
    np.testing.assert_allclose(dense_logits(model, one), inside, atol=1e-5)


def test_a_mirrored_volume_has_mirrored_logits_where_the_weights_are_symmetric():
    model = network()
    with torch.no_grad():
        for path in model.paths.values():
            for layer in path.convolutions:
                layer.weight += layer.weight.flip(2, 3, 4)
                layer.weight += layer.weight.flip(2)
                layer.weight += layer.weight.flip(3)
    # Cells begin at the first voxel: a shape that they fill is mirrored onto itself.
    one = case((15, 30, 15), model)
    turned = {key: np.flip(value, 2) for key, value in one.items()}
    np.testing.assert_allclose(np.flip(dense_logits(model, turned), 1), dense_logits(model, one), rtol=1e-4)


def test_flips_average_eight_predictions_on_the_grid_of_the_volume():
    image = np.random.default_rng(0).normal(size=(1, 4, 5, 6)).astype(np.float32)
    one = {"image": image, "prior": 2 * image, "valid": np.float32(1)}
    seen = []

    def predict(turned):
        seen.append(turned)
        assert turned["valid"] == 1
        return turned["image"][0] * np.arange(4, dtype=np.float32)[:, None, None]

    found = averaged_over_flips(predict, one)
    np.testing.assert_allclose(found, 1.5 * one["image"][0], rtol=1e-5)
    assert len({turned["image"].tobytes() for turned in seen}) == len(seen) == 8
    for turned in seen:
        assert np.array_equal(turned["prior"], 2 * turned["image"])


def test_the_u_net_answers_volumes_of_any_size():
    torch.manual_seed(0)
    model = UNet(2, (4, 8, 8)).eval()
    image = np.random.default_rng(0).normal(size=(2, 21, 9, 30)).astype(np.float32)
    found = whole_logits(model, {"image": image})
    assert found.shape == (21, 9, 30)
    assert found.dtype == np.float32
    padded = np.pad(image, [(0, 0), (0, 3), (0, 3), (0, 2)], mode="edge")
    with torch.no_grad():
        whole = model(torch.from_numpy(padded)[None])[0, 0, :21, :9, :30]
    np.testing.assert_allclose(found, whole, atol=1e-5)


@pytest.mark.slow
def test_dense_inference_is_three_times_as_fast_as_tiles():
    model = network((8, 8, 8, 16, 16, 16, 16, 16, 16), dense=(32,))
    one = case((66, 66, 66), model)
    seconds = []
    # Not the wall clock: others may be at work on the same core.
    for run in (dense_logits, tiled_logits):
        start = time.thread_time()
        run(model, one)
        seconds.append(time.thread_time() - start)
    assert seconds[1] > 3 * seconds[0]


def test_whole_logits_are_those_of_the_brain_box():
    torch.manual_seed(0)
    model = SmallUNet(1, (2, 4)).eval()
    image = np.zeros((1, 40, 36, 44), np.float32)
    image[0, 12:30, 12:28, 12:30] = 1 + np.random.default_rng(0).random((18, 16, 18))
    logits = whole_logits(model, {"image": image})
    with torch.inference_mode():
        box = model(torch.from_numpy(image[:, 4:38, 4:36, 4:38].copy())[None])[0, 0].numpy()
    np.testing.assert_allclose(logits[4:38, 4:36, 4:38], box, atol=1e-5)
    assert (logits[:4] == -20).all()
    assert (whole_logits(model, {"image": 0 * image}) == -20).all()
