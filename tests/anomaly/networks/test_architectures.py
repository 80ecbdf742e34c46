"""The two networks: sizes, padding, what they repeat, what they see."""

import pytest

torch = pytest.importorskip("torch")

from anomaly.networks.architectures import (  # noqa: E402
    LatentMapAutoencoder,
    Mix,
    ReconstructionDiscrimination,
    VariationalAutoencoder,
    cut,
    padded,
    padded_shape,
)

pytestmark = [pytest.mark.deep, pytest.mark.usefixtures("one_thread")]


def test_what_is_padded_is_cut_to_the_same():
    x = torch.rand(2, 3, 5, 8, 9)
    larger = padded(x, (8, 8, 16))
    assert larger.shape == (2, 3, 8, 8, 16)
    torch.testing.assert_close(larger.sum(), x.sum())
    torch.testing.assert_close(larger[:, :, 1:6, :, 3:12], x)
    torch.testing.assert_close(cut(larger, (5, 8, 9)), x)
    assert padded(x, (5, 8, 9)) is x
    assert padded_shape((90, 90, 54), 16) == (96, 96, 64)
    assert padded_shape((64, 80, 64), 16) == (64, 80, 64)


@pytest.mark.parametrize("shape", [(16, 16, 16), (13, 16, 9), (5, 6, 7), (17, 1, 8)])
@pytest.mark.parametrize("output", ["sigmoid", "linear"])
@pytest.mark.parametrize("dense", [None, 6])
def test_an_autoencoder_answers_with_the_shape_of_its_input(shape, output, dense):
    widths = [2, 4, 6]
    network = VariationalAutoencoder(3, shape, widths, 5, output=output, dense=dense).eval()
    assert widths == [2, 4, 6]
    volume = torch.rand(2, 3, *shape)
    reconstruction, mean, log_variance = network(volume)
    assert reconstruction.shape == volume.shape
    assert mean.shape == log_variance.shape == (2, 5)
    if output == "sigmoid":
        assert reconstruction.min() > 0
        assert reconstruction.max() < 1


def test_an_autoencoder_draws_in_training_and_nowhere_else():
    torch.manual_seed(0)
    network = VariationalAutoencoder(2, (8, 8, 8), (2, 4), 3)
    volume = torch.rand(2, 2, 8, 8, 8)
    network.train()
    assert not torch.equal(network(volume)[0], network(volume)[0])
    network.eval()
    state = torch.get_rng_state()
    assert torch.equal(network(volume)[0], network(volume)[0])
    torch.testing.assert_close(network(volume)[0], network.decode(network.encode(volume)[0]))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_latent_map_has_its_numbers_at_their_places_and_adds_to_an_image():
    torch.manual_seed(0)
    network = LatentMapAutoencoder(2, (12, 16, 9), (4, 6), 80)
    image = torch.rand(2, 12, 16, 9) - 0.5
    network.level(image)
    network.answer.weight.data.zero_()
    network.eval()
    volume = torch.rand(1, 2, 12, 16, 9)
    rebuilt, mean, log_variance = network(volume)
    torch.testing.assert_close(rebuilt[0], image.sigmoid())
    # 3 × 4 × 3 places, two numbers at each.
    assert mean.shape == log_variance.shape == (1, 72)
    changed = volume.clone()
    changed[..., :2, :2, :2] = 0
    moved = (network.encode(changed)[0] - mean).reshape(2, 3, 4, 3).abs().sum(dim=0)
    assert moved[0, 0, 0] > 0
    assert moved[-1, -1, -1] == 0


def test_published_sizes_are_those_of_the_study():
    shape = [64, 80, 64]
    network = VariationalAutoencoder(64, shape)
    assert shape == [64, 80, 64]
    assert network.smallest == (4, 5, 4)
    assert network.to_dense.in_features == 40960
    assert (network.to_mean.in_features, network.to_mean.out_features) == (512, 512)
    assert [level[0].out_channels for level in network.encoder] == [64, 128, 256, 512]
    assert [level[0].out_channels for level in network.decoder] == [256, 128, 64, 64]


@pytest.mark.parametrize("shape", [(8, 8, 8), (9, 7, 6), (4, 4, 5)])
@pytest.mark.parametrize("stem", [None, 3])
def test_both_answers_have_the_shape_of_the_input(shape, stem):
    network = ReconstructionDiscrimination(5, 4, 2, 3, stem=stem).eval()
    volume = torch.rand(2, 5, *shape)
    reconstruction, logits = network(volume)
    assert reconstruction.shape == volume.shape
    assert logits.shape == (2, 1, *shape)
    assert torch.equal(network(volume)[1], logits)


def test_the_reconstruction_has_no_skips_and_the_discriminator_has():
    torch.manual_seed(0)
    network = ReconstructionDiscrimination(2, 4, 4, 2).eval()
    calls = {}
    for name in ("reconstruct", "discriminate"):
        part = getattr(network, name)
        part.after[0][0].register_forward_pre_hook(lambda _, x, name=name: calls.update({name: x[0].shape[1]}))
    network(torch.rand(1, 2, 8, 8, 8))
    assert calls == {"reconstruct": 4, "discriminate": 8}
    # The discriminator sees scan and reconstruction.
    volume, reconstruction = (torch.rand(1, 2, 8, 8, 8, requires_grad=True) for _ in range(2))
    network.discriminate(reconstruction, volume).sum().backward()
    assert volume.grad.abs().sum() > 0
    assert reconstruction.grad.abs().sum() > 0
    network.level([0.1, 0.2])
    assert network.reconstruct.answer.bias.tolist() == pytest.approx([0.1, 0.2])


def test_mixing_is_a_convolution_of_one_voxel():
    torch.manual_seed(0)
    mix, volume = Mix(4, 3), torch.rand(2, 4, 3, 5, 2)
    known = torch.nn.functional.conv3d(volume, mix.weight[..., None, None, None], mix.bias)
    torch.testing.assert_close(mix(volume), known)
    torch.testing.assert_close(mix(volume.contiguous(memory_format=torch.channels_last_3d)), known)
