"""The state of a training in one file, and back."""

import json

import pytest

torch = pytest.importorskip("torch")
skorch = pytest.importorskip("skorch")

from safetensors import safe_open  # noqa: E402
from safetensors.torch import load as loaded_tensors  # noqa: E402
from torch import nn  # noqa: E402

from dmrifit.networks import checkpoints  # noqa: E402

pytestmark = pytest.mark.deep

X = torch.linspace(-1, 1, 12).reshape(6, 2)
Y = torch.tensor([[1.0], [0.0], [2.0], [1.0], [0.5], [3.0]])


def net(width=3, optimizer=torch.optim.Adam):
    """Make a net of few weights, always the same at first."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Linear(width, 1))
    return skorch.NeuralNet(
        module, criterion=nn.MSELoss, optimizer=optimizer, lr=0.1, train_split=None, verbose=0
    ).initialize()


def step(trained, n=1):
    """Train on all samples; remember each epoch."""
    trained.module_.train()
    for _ in range(n):
        trained.optimizer_.zero_grad()
        loss = nn.functional.mse_loss(trained.module_(X), Y)
        loss.backward()
        trained.optimizer_.step()
        trained.history.new_epoch()
        trained.history[-1].update(epoch=len(trained.history), learning_rate=0.1, train_loss=loss.item(), dur=1.5)
    return trained


def equal(tensors, expected):
    return set(tensors) == set(expected) and all(torch.equal(tensors[key], expected[key]) for key in tensors)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD, torch.optim.Adamax])
def test_a_training_goes_on_from_its_file_bit_for_bit(optimizer, tmp_path):
    path = tmp_path / "state.safetensors"
    trained = step(net(optimizer=optimizer), 3)
    checkpoints.write_state(path, trained, None, {"seed": 5})
    header, tensors = checkpoints.read_state(path)
    assert header["seed"] == 5
    resumed = net(optimizer=optimizer)
    assert checkpoints.restore_state(resumed, header, tensors) is None
    assert equal(resumed.module_.state_dict(), trained.module_.state_dict())
    assert checkpoints.history_rows(resumed) == checkpoints.history_rows(trained)
    for continued in (trained, resumed):
        step(continued, 2)
    assert equal(resumed.module_.state_dict(), trained.module_.state_dict())


def test_the_best_weights_are_kept_beside_the_last_ones(tmp_path):
    trained = step(net())
    best = {key: value.clone() for key, value in trained.module_.state_dict().items()}
    step(trained, 2)
    checkpoints.write_state(tmp_path / "state", trained, best, {})
    resumed = net()
    restored = checkpoints.restore_state(resumed, *checkpoints.read_state(tmp_path / "state"))
    assert equal(restored, best)
    assert not equal(restored, resumed.module_.state_dict())


def test_a_file_is_tensors_and_json_and_is_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "state.safetensors"
    checkpoints.write_state(path, step(net()), None, {"seed": 5})
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["dmrifit"])
        names = set(file.keys())
    assert header["history"] == [
        {"epoch": 1, "learning_rate": 0.1, "train_loss": pytest.approx(header["history"][0]["train_loss"])}
    ]
    assert {"weights.0.weight", "weights.1.running_mean", "optimizer.0.exp_avg", "optimizer.0.step"} <= names
    before = path.read_bytes()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "packed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.write_state(path, step(net(), 2), None, {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"x" * 40, None], ids=["empty", "text", "no header"])
def test_a_file_that_is_no_checkpoint_is_refused(content, tmp_path):
    path = tmp_path / "state.safetensors"
    path.write_bytes(checkpoints.packed({"a": X}) if content is None else content)
    with pytest.raises(
        ValueError,
        match=r"state\.safetensors is not a whole checkpoint .*; remove it to train from the",
    ):
        checkpoints.read_state(path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda weights: weights.pop("0.bias"), "0.bias"),
        (lambda weights: weights.update(extra=torch.zeros(1)), "extra"),
        (lambda weights: weights.update({"2.weight": torch.zeros(1, 4)}), "2.weight"),
        (lambda weights: weights.update({"2.weight": torch.zeros(1, 3, dtype=torch.float64)}), "2.weight"),
        (lambda weights: weights.clear(), "0.bias, 0.weight, 1.bias …"),
    ],
    ids=["missing", "unknown", "shape", "type", "none"],
)
def test_weights_of_another_network_are_refused_and_nothing_is_filled(change, named):
    module = net().module_
    before = {key: value.clone() for key, value in module.state_dict().items()}
    weights = {key: value + 1 for key, value in before.items()}
    change(weights)
    with pytest.raises(ValueError, match=f"the weights do not fit this network: {named} differ"):
        checkpoints.load_weights(module, weights)
    assert equal(module.state_dict(), before)


def test_tensors_that_share_memory_are_packed_each_by_itself():
    values = torch.arange(6.0).reshape(2, 3)
    back = loaded_tensors(checkpoints.packed({"a": values, "b": values.T, "c": nn.Parameter(values)}))
    assert torch.equal(back["a"], values)
    assert torch.equal(back["b"], values.T)
    assert torch.equal(back["c"], values)


def test_weights_are_compared_without_memory_for_the_network():
    with torch.device("meta"):
        module = nn.Linear(10**6, 10**6)
    with pytest.raises(ValueError, match="bias, weight differ"):
        checkpoints.check_weights(module, {"weight": torch.zeros(2, 2), "bias": torch.zeros(2)})
