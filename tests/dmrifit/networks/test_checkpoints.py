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


def net(width=3):
    module = nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Linear(width, 1))
    return skorch.NeuralNet(module, criterion=nn.MSELoss, optimizer=torch.optim.Adam, train_split=None, verbose=0).initialize()


def equal(tensors, expected):
    return set(tensors) == set(expected) and all(torch.equal(tensors[key], expected[key]) for key in tensors)


def test_a_file_is_tensors_and_json_and_is_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "state.safetensors"
    checkpoints.write_state(path, net(), None, {"seed": 5})
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["dmrifit"])["seed"] == 5
        assert {"weights.0.weight", "weights.1.running_mean"} <= set(file.keys())
    before = path.read_bytes()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "packed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.write_state(path, net(4), None, {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"x" * 40, None], ids=["empty", "text", "no header"])
def test_a_file_that_is_no_checkpoint_is_refused(content, tmp_path):
    path = tmp_path / "state.safetensors"
    path.write_bytes(checkpoints.packed({"a": X}) if content is None else content)
    with pytest.raises(ValueError, match=r"state\.safetensors is not a whole checkpoint .*; remove it to train from the"):
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
