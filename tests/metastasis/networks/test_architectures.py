"""DeepMedic: its size, where its resolutions lie, what its prior path does; the U-Net."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from metastasis.networks.architectures import (  # noqa: E402
    DeepMedic,
    Path,
    SmallUNet,
    UNet,
    change_features,
    repeated,
)
from metastasis.scans.network_inputs import PRIOR_REACH, output_size  # noqa: E402

pytestmark = [pytest.mark.deep, pytest.mark.usefixtures("one_thread")]


WIDTHS = (30, 40, 50, 60, 70, 80, 90, 100, 110)


def count(network):
    return sum(weights.numel() for weights in network.parameters())


def inputs(network, size, n=2, *, prior=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    out = output_size(size, network.n_layers)
    shapes = {f"low_{f}": math.ceil(out / f) + 2 * network.n_layers for f in network.low_resolution}
    shapes |= {"image": size} | ({"prior": size + 2 * PRIOR_REACH * network.shared} if prior else {})
    return {key: torch.randn(n, 1, m, m, m, generator=generator) for key, m in shapes.items()}


def test_the_networks_have_the_published_number_of_weights_or_a_third_of_a_million():
    products = sum(a * b for a, b in zip((1, *WIDTHS), WIDTHS, strict=False))
    path = 27 * products + sum(WIDTHS)
    dense = (3 * 110 + 1) * 300 + 301 * 300 + 301
    assert (path, 3 * path + dense) == (1_167_840, 3_693_421)
    assert count(DeepMedic(normalization=None)) == 3_693_421
    # A normalization has an offset and a scale in place of the offset alone.
    assert count(DeepMedic()) == 3_693_421 + 3 * sum(WIDTHS) + 600
    with_prior = DeepMedic(normalization=None, prior_path=True, validity=False)
    assert count(with_prior) == 3_693_421 + path + 110 * 300 == 4_894_261
    assert count(DeepMedic(normalization=None, prior_path=True)) == 4_894_261 + 300
    unet = SmallUNet().eval()
    assert sum(weight.numel() for weight in unet.parameters()) == 329_137
    image = torch.randn(1, 1, 24, 16, 8)
    with torch.inference_mode():
        assert unet(image).shape == image.shape
        assert torch.sigmoid(unet(0 * image)).median().item() < 0.2


@pytest.mark.parametrize("size", [19, 22, 37])
def test_a_segment_gives_the_voxels_inside(size):
    network = DeepMedic(1, (2,) * 9, (3, 5), (4,), prior_path=True)
    found = network(**inputs(network, size, prior=True), valid=torch.tensor([1.0, 0.0]))
    assert found.shape == (2, 1, *[size - 18] * 3)


def test_answers_begin_near_a_probability_of_a_twentieth():
    network = DeepMedic(1, (8,) * 6, (3,), (16,)).eval()
    found = torch.sigmoid(network(**inputs(network, 21))).detach().numpy()
    assert 0.02 < np.median(found) < 0.1
    unet = UNet(1, (4, 8)).eval()
    assert 0.005 < torch.sigmoid(unet(torch.zeros(1, 1, 8, 8, 8))).median().item() < 0.2


def test_a_voxel_of_the_answer_sees_what_its_position_says():
    """An answer depends on the voxels around it and on cells around its own, no further."""
    network = DeepMedic(1, (2, 2), (3,), (3,)).double().eval()
    given = {key: value[:1].double().requires_grad_() for key, value in inputs(network, 14).items()}
    found = network(**given)
    out = found.shape[2]
    assert out == 10
    for place in (0, 4, 9):
        image, low = torch.autograd.grad(found[0, 0, place, 5, 5], list(given.values())[::-1], retain_graph=True)
        assert image.shape[2] == 14
        seen = np.flatnonzero(image[0, 0].abs().sum(dim=(1, 2)).numpy())
        assert (seen.min(), seen.max()) == (place, place + 4)
        cells = np.flatnonzero(low[0, 0].abs().sum(dim=(1, 2)).numpy())
        # Two cells of margin: the voxel's own has the number 2 + place // 3.
        assert (cells.min(), cells.max()) == (place // 3, place // 3 + 4)


def test_cells_are_repeated_over_their_voxels():
    cells = torch.arange(3.0).reshape(1, 1, 3, 1, 1)
    found = repeated(cells, 3, (7, 2, 1))
    assert found[0, 0, :, 1, 0].tolist() == [0, 0, 0, 1, 1, 1, 2]


def test_residual_connections_add_the_input_of_the_layer_before():
    torch.manual_seed(0)
    path = Path(1, (3, 3, 3, 5), residual=True, normalization=None)
    x = torch.randn(1, 1, 11, 11, 11)
    plain = Path(1, (3, 3, 3, 5), normalization=None)
    plain.load_state_dict(path.state_dict())
    two = Path(1, (3, 3), normalization=None)
    two.load_state_dict({k: v for k, v in path.state_dict().items() if k in two.state_dict()})
    # The rectifier undone: below zero it is a line of slope 0.01.
    undone = [torch.where(y < 0, y / 0.01, y) for y in (path(x), plain(x))]
    difference = undone[0] - undone[1]
    np.testing.assert_allclose(difference[:, :3].detach(), two(x)[:, :, 2:-2, 2:-2, 2:-2].detach(), atol=1e-4)
    assert not difference[:, 3:].abs().max() > 1e-4
    narrower = Path(1, (4, 4, 4, 2), residual=True)
    assert narrower(x).shape == (1, 2, 3, 3, 3)


def test_a_missing_prior_adds_nothing_whatever_stands_in_its_place():
    network = DeepMedic(1, (2, 3), (3,), (4,), prior_path=True).eval()
    torch.nn.init.normal_(network.valid_weight)
    given = inputs(network, 9, prior=True)
    none = network(**given, valid=torch.zeros(2))
    other = network(**(given | {"prior": given["prior"] + 1}), valid=torch.zeros(2))
    assert torch.equal(none, other)
    there = network(**given, valid=torch.ones(2))
    assert not torch.allclose(none, there)
    assert torch.equal(there, network(**given))
    as_published = DeepMedic(1, (2, 3), (3,), (4,), prior_path=True, validity=False)
    assert "valid_weight" not in as_published.state_dict()


@pytest.fixture
def shared():
    torch.manual_seed(0)
    network = DeepMedic(1, (2, 3), (3,), (4,), prior_path=True, shared=True)
    torch.nn.init.normal_(network.valid_weight)
    return network


def test_change_is_zero_where_the_prior_has_as_much_within_two_voxels():
    features = torch.zeros(1, 1, 9, 9, 9)
    features[..., 2, 4, 4], features[..., 6, 4, 4] = 1, 1
    wide = torch.zeros(1, 1, 13, 13, 13)
    # In voxels of the image: the first one lies 2 voxels beside it, the other one 3.
    wide[..., 2 + 4, 2 + 4, 2 + 4] = 1
    earlier, change = change_features(features, wide)
    assert torch.equal(earlier, wide[..., 2:-2, 2:-2, 2:-2])
    assert change[0, 0, 2, 4, 4] == 0
    assert change[0, 0, 6, 4, 4] == 0
    wide = torch.roll(wide, -1, dims=2)
    _, change = change_features(features, wide)
    assert change[0, 0, 2, 4, 4] == 0
    assert change[0, 0, 6, 4, 4] == 1


def test_change_and_its_gradient_are_those_of_max_pooling():
    generator = torch.Generator().manual_seed(11)
    wide = torch.relu(torch.randn(2, 3, 10, 11, 12, generator=generator, dtype=torch.float64)).requires_grad_()
    features = torch.zeros(2, 3, 6, 7, 8, dtype=torch.float64)
    pooled = torch.nn.functional.max_pool3d(wide, 5, stride=1)
    change = change_features(features, wide)[1]
    assert torch.equal(change, -pooled)
    weights = torch.rand(pooled.shape, generator=generator, dtype=torch.float64)
    expected, found = (torch.autograd.grad((weights * one).sum(), wide)[0] for one in (-pooled, change))
    torch.testing.assert_close(found, expected)


def test_a_shared_path_has_the_weights_of_one_path_and_both_scans_teach_it(shared):
    assert set(shared.paths) == {"normal", "low_3"}
    assert set(shared.merges) == {"normal", "low_3", "prior", "change"}
    own = DeepMedic(1, (2, 3), (3,), (4,), prior_path=True)
    one_path, one_merge = count(own.paths["prior"]), 3 * 4
    assert count(shared) == count(own) - one_path + one_merge
    given = inputs(shared, 9, prior=True)
    assert given["prior"].shape[2] == 13
    assert shared(**given).shape == (2, 1, 5, 5, 5)
    with pytest.raises(ValueError, match=r"2 channels .* prior='path'"):
        DeepMedic(2, (2, 3), prior_path=True, shared=True)
    alone = {key: value for key, value in given.items()}
    gradients = []
    for flag in (1.0, 0.0):
        shared.zero_grad()
        alone["prior"] = given["prior"].clone().requires_grad_()
        shared(**alone, valid=torch.full((2,), flag)).sum().backward()
        gradients.append(shared.paths["normal"].convolutions[0].weight.grad.clone())
        has_taught = [weights.grad.abs().sum() > 0 for weights in shared.merges["change"].parameters()]
        assert has_taught == [flag > 0]
        assert (alone["prior"].grad.abs().sum() > 0) == (flag > 0)
    assert not torch.allclose(*gradients)


@pytest.mark.parametrize("training", [False, True])
def test_a_missing_prior_is_nothing_to_a_shared_path(shared, training):
    given = inputs(shared, 9, prior=True)
    zeros = given | {"prior": torch.zeros_like(given["prior"])}
    shared.train(training)
    none = shared(**given, valid=torch.zeros(2))
    # In training also the moments of the normalization stay those of scans.
    torch.testing.assert_close(shared(**zeros, valid=torch.zeros(2)), none)
    assert not torch.allclose(shared(**given), none)


def test_dropout_leaves_features_out_in_training_alone():
    network = DeepMedic(1, (2, 3), (), (4, 4), dropout=1.0)
    segments = inputs(network, 9)
    # Of all features left out, the offset of the last layer stays.
    assert torch.equal(network.train()(**segments), torch.full((2, 1, 5, 5, 5), -3.0))
    assert network.eval()(**segments).std() > 0
    image = torch.randn(1, 1, 8, 8, 8)
    for unet, leaves_out in ((UNet(1, (4, 8)), False), (UNet(1, (4, 8), dropout=0.5), True)):
        first, second = unet.train()(image), unet(image)
        assert torch.equal(first, second) != leaves_out
        first.square().sum().backward()
        assert all(weights.grad.any() for weights in unet.parameters() if weights.ndim > 1)
        assert torch.equal(unet.eval()(image), unet(image))
