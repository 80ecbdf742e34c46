"""Small torch networks over the neighborhood of a voxel."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LinearRegression
from sklearn.utils.estimator_checks import parametrize_with_checks

torch = pytest.importorskip("torch")

from dmrifit.predict import patch_networks  # noqa: E402
from dmrifit.predict.patch_networks import PatchCNN, PatchTransformer  # noqa: E402

pytestmark = pytest.mark.deep

PATCH = 3, 3, 1
BOTH = [PatchCNN, PatchTransformer]


@parametrize_with_checks([PatchCNN(), PatchCNN((1, 1, 1), loss="median"), PatchTransformer()])
def test_the_networks_keep_the_rules_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def world():
    """Targets that depend on the middle voxel and, not linearly, on its neighbors; 2 channels."""
    X = np.random.default_rng(0).normal(size=(1500, 9, 2))
    first = X[:, 4, 0] + np.tanh(2 * X[:, :, 1].mean(axis=1)) * X[:, 4, 1]
    return X.reshape(1500, 18), np.stack([first, X[:, 4, 0] - X[:, 4, 1]], axis=1)


@pytest.fixture(params=BOTH)
def network(request):
    return request.param(PATCH, random_state=0)


def bits(network, X, Y):
    return network.fit(X, Y).predict(X).tobytes()


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 3, 1), (3, 3, 3), (5, 3, 1)])
def test_convolutions_are_those_of_torch(shape):
    torch.manual_seed(0)
    net = patch_networks._Convolutions(SimpleNamespace(width=6, depth=0, n_targets_=4), 2, shape).double()
    torch.nn.init.normal_(net.layers[-1].weight)
    rows = torch.randn(5, int(np.prod(shape)) * 2, dtype=torch.float64)
    images = rows.reshape(5, *shape, 2).movedim(-1, 1)
    convolutions = [layer for layer in net.layers if isinstance(layer, torch.nn.Linear)][:-1]
    expected = images
    for layer in convolutions:
        kernel = [min(3, n) for n in expected.shape[2:]]
        weight = layer.weight.reshape(6, *kernel, -1).movedim(-1, 1)
        expected = torch.relu(torch.nn.functional.conv3d(expected, weight, layer.bias))
    middle = images[:, :, shape[0] // 2, shape[1] // 2, shape[2] // 2]
    expected = net.layers[-1](expected.flatten(1)) + net.linear(middle)
    np.testing.assert_allclose(net(rows).detach(), expected.detach(), rtol=1e-12, atol=1e-12)


def test_training_begins_with_least_squares_on_the_middle_voxel(network, world):
    X, Y = world
    linear = LinearRegression().fit(X[:, 8:10], Y)
    untrained = clone(network).set_params(learning_rate=1e-30).fit(X, Y)
    np.testing.assert_allclose(untrained.predict(X), linear.predict(X[:, 8:10]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("cls", "epochs"), [(PatchCNN, 60), (PatchTransformer, 30)])
def test_neighbors_are_learned_that_no_line_finds(cls, epochs, world):
    X, Y = world
    train, test = slice(0, 1000), slice(1000, None)
    linear = LinearRegression().fit(X[train], Y[train]).predict(X[test])
    found = cls(PATCH, epochs=epochs, random_state=0).fit(X[train], Y[train]).predict(X[test])
    left = [((answer - Y[test])[:, 0] ** 2).mean() for answer in (found, linear)]
    assert left[0] < 0.6 * left[1]


def test_the_state_of_torch_is_kept_and_neither_it_nor_threads_change_a_bit(network, world):
    X, Y = world
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first = bits(network, X, Y)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    torch.manual_seed(5)
    torch.set_num_threads(threads + 1)
    try:
        assert bits(clone(network), X, Y) == first
    finally:
        torch.set_num_threads(threads)
    alone = [bits(clone(network).set_params(random_state=seed), X, Y) for seed in range(4)]
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda seed: bits(clone(network).set_params(random_state=seed), X, Y), range(4)))
    assert together == alone
    assert torch.get_num_threads() == threads


def test_rows_are_predicted_each_for_itself(network, world, monkeypatch):
    X, Y = world
    whole = network.fit(X, Y).predict(X)
    monkeypatch.setattr(patch_networks, "_ROWS_AT_ONCE", 7)
    np.testing.assert_allclose(network.predict(X), whole, rtol=1e-9, atol=1e-12)


def test_the_recorded_loss_is_the_mean_over_voxels(world):
    X, Y = world
    curve = PatchCNN(PATCH, epochs=3, random_state=0).fit(X, Y).loss_curve_
    assert len(curve) == 3
    assert curve[-1] < curve[0]
    # One pass without effect: the loss is that of the start, least squares of the middle voxel.
    curve = PatchCNN(PATCH, epochs=1, learning_rate=1e-12, random_state=0).fit(X, Y).loss_curve_
    middle = X[:, 8:10]
    error = Y - LinearRegression().fit(middle, Y).predict(middle)
    assert curve[-1] == pytest.approx(np.mean(error**2), rel=1e-6)


@pytest.mark.parametrize("cls", BOTH)
def test_single_precision_predicts_alike(cls, world):
    double, single = (cls(PATCH, dtype=dtype, random_state=0).fit(*world) for dtype in ("float64", "float32"))
    assert {weight.dtype for weight in single.net_.state_dict().values()} == {torch.float32}
    answers = [network.predict(world[0]) for network in (double, single)]
    assert not np.array_equal(*answers)
    assert np.corrcoef(answers[0].ravel(), answers[1].ravel())[0, 1] > 0.999
    copy = clone(single)
    for name in ("n_features_in_", "n_targets_", "flat_"):
        setattr(copy, name, getattr(single, name))
    copy.set_weights(single.weights())
    np.testing.assert_array_equal(copy.predict(world[0]), answers[1])
    with pytest.raises(ValueError, match="do not fit"):
        clone(single).set_params(width=8).fit(*world).set_weights(single.weights())
