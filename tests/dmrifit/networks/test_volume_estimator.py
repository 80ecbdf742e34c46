"""The base of estimators of volumes."""

import json
import math
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from model_archives import parts_of, write
from scipy import ndimage
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from volume_contract import VolumeContract, bits

torch = pytest.importorskip("torch")
pytest.importorskip("skorch")

from torch import nn  # noqa: E402

from dmrifit._utils import torch_state  # noqa: E402
from dmrifit.model_files import registry  # noqa: E402
from dmrifit.model_files.model_file import load_model, save_model  # noqa: E402
from dmrifit.networks import checkpoints, volume_estimator  # noqa: E402
from dmrifit.networks.training import Training, gather_training  # noqa: E402
from dmrifit.networks.volume_estimator import VolumeEstimator  # noqa: E402

pytestmark = pytest.mark.deep


@registry.register
class LesionVolume(VolumeEstimator):
    """Logarithm of the number of bright voxels of a synthetic volume."""

    default_training = Training(learning_rate=0.01)

    def __init__(self, *, width=4, dropout=0.0, training=None, device="cpu", random_state=None):
        super().__init__(training=training, device=device, random_state=random_state)
        self.width = width
        self.dropout = dropout

    def _module(self):
        return Counter(self.n_channels_, self.width, self.dropout)

    def _criterion(self):
        return nn.MSELoss()

    def _case_score(self, prediction, target):
        return -float(np.abs(prediction - target))


class Counter(nn.Module):
    def __init__(self, n_channels, width, dropout):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(n_channels, width, 3, padding=1), nn.BatchNorm3d(width), nn.ReLU(), nn.Dropout(dropout),
        )  # fmt: skip
        self.answer = nn.Linear(width, 1)

    def forward(self, x):
        sums = self.layers(x).sum(dim=(2, 3, 4))
        return self.answer(torch.log1p(sums))[:, 0]


@registry.register
class BlobSegmenter(VolumeEstimator):
    """Bright blobs, from patches half of which have one; convolutions without padding."""

    _predicts_volumes = True

    default_training = Training(epochs=8, batch_size=8, learning_rate=0.02)

    def __init__(self, *, training=None, device="cpu", random_state=None):
        super().__init__(training=training, device=device, random_state=random_state)

    @property
    def _margin(self):
        return 2, 2, 2

    def _module(self):
        return nn.Sequential(nn.Conv3d(self.n_channels_, 4, 3), nn.ReLU(), nn.Conv3d(4, 1, 3))

    def _criterion(self):
        return nn.BCEWithLogitsLoss()

    def _target(self, target, inputs):
        return super()._target(target, inputs)[None]

    def _stream(self, inputs, targets, rng, epoch):
        for i in rng.permutation(len(inputs)):
            inside = np.argwhere(targets[i][0] > 0)
            for n in range(8):
                high = np.array(targets[i].shape[1:]) - 9
                first = rng.integers(0, high + 1)
                if n % 2 and len(inside):
                    first = np.clip(inside[rng.integers(len(inside))] - 4, 0, high)
                window = slice(None), *(slice(k, k + 9) for k in first)
                yield inputs[i][window], targets[i][window]

    def _predict_case(self, infer, inputs, case):
        padded = np.pad(inputs, [(0, 0), (2, 2), (2, 2), (2, 2)], mode="edge")
        return infer([padded])[0, 0] > 0

    def _case_score(self, prediction, target):
        return 2 * np.sum(prediction & target) / max(1, np.sum(prediction) + np.sum(target))


def blobs(n, seed):
    """Make synthetic volumes of different shapes with balls that are bright, and their masks."""
    rng = np.random.default_rng(seed)
    cases, masks = [], []
    for i in range(n):
        shape = 11 + i % 3, 12, 10 + i % 2
        place = rng.uniform(3, np.array(shape) - 4)
        grid = np.stack(np.indices(shape), axis=-1)
        mask = np.linalg.norm(grid - place, axis=-1) < rng.uniform(1.2, 4)
        noise = ndimage.gaussian_filter(rng.normal(size=shape), 0.5)
        cases.append((mask + 0.3 * noise).astype(np.float32))
        masks.append(mask)
    return cases, masks


@pytest.fixture(scope="module")
def cohort():
    cases, masks = blobs(8, 0)
    return cases, masks, [f"patient {i // 2}" for i in range(8)]


def sizes(masks):
    return [math.log(mask.sum()) for mask in masks]


class TestNumbers(VolumeContract):
    grid = "width", [2, 4]

    @pytest.fixture(scope="class")
    @classmethod
    def make(cls):
        return lambda **more: LesionVolume(**gather_training({"epochs": 2, "dropout": 0.2, **more}))

    @pytest.fixture(scope="class")
    @classmethod
    def world(cls, cohort):
        return cohort[0], sizes(cohort[1]), cohort[2]


def test_volumes_of_lesions_are_learned_and_blobs_segmented_in_cases_of_different_shapes():
    cases, masks = blobs(32, 1)
    truth = np.array(sizes(masks))
    train, test = slice(0, 24), slice(24, None)
    found = LesionVolume(training=Training(epochs=40), random_state=0).fit(cases[train], truth[train]).predict(cases[test])
    constant = np.abs(truth[test] - np.median(truth[train])).mean()
    assert found.shape == (8,)
    assert np.abs(found - truth[test]).mean() < 0.5 * constant
    cases, masks = blobs(16, 2)
    model = BlobSegmenter(random_state=0).fit(cases[:10], masks[:10])
    found = model.predict(cases[10:])
    assert [volume.shape for volume in found] == [case.shape for case in cases[10:]]
    assert model.score(cases[10:], masks[10:]) > 0.8


def test_generators_and_threads_of_the_process_stay_as_they_were(cohort):
    before = torch.get_num_threads()
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    found = []
    for n_threads in (1, 2, 3):
        torch.set_num_threads(n_threads)
        torch.rand(n_threads)
        kept = torch.get_rng_state().tolist()
        model = LesionVolume(training=Training(epochs=2, validation_fraction=0.3), dropout=0.5, random_state=0)
        found.append(bits(model.fit(cohort[0], sizes(cohort[1])).predict(cohort[0])))
        assert torch.get_num_threads() == n_threads
        assert torch.get_rng_state().tolist() == kept
    torch.set_num_threads(before)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[:2]  # noqa: NPY002
    assert found[0] == found[1] == found[2]


def test_after_an_error_in_training_threads_are_given_back_and_nothing_is_fitted(cohort):
    class Broken(LesionVolume):
        def _stream(self, inputs, targets, rng, epoch):
            yield inputs[0], targets[0]
            raise KeyboardInterrupt

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    model = Broken(random_state=0)
    # skorch would swallow the interrupt of a user and call the training finished.
    with pytest.raises(KeyboardInterrupt):
        model.fit(cohort[0], sizes(cohort[1]))
    assert torch.get_num_threads() == 3
    torch.set_num_threads(before)
    with pytest.raises(NotFittedError):
        model.predict(cohort[0])


def test_one_array_holds_cases_of_one_shape_and_channels_come_last():
    X = np.random.default_rng(0).normal(size=(4, 6, 5, 4, 3))
    model = LesionVolume(training=Training(epochs=1), random_state=0).fit(X, np.arange(4.0))
    assert model.n_channels_ == 3
    assert bits(model.predict(X)) == bits(model.predict(list(X)))
    with pytest.raises(ValueError, match="case 1: 1 channel where the first case in training has 3"):
        model.predict([X[0], X[0, ..., 0]])


class Watched(LesionVolume):
    """Remembers which cases were learned from."""

    def _stream(self, inputs, targets, rng, epoch):
        self.seen_ = getattr(self, "seen_", set())
        for x, y in super()._stream(inputs, targets, rng, epoch):
            self.seen_.add(float(y))
            yield x, y


@pytest.mark.parametrize("seed", range(4))
def test_cases_of_one_patient_are_on_one_side(cohort, seed):
    cases, _, groups = cohort
    y = np.arange(8.0)
    model = Watched(training=Training(epochs=1, validation_fraction=0.3), random_state=seed).fit(cases, y, groups=groups)
    assert 0 < len(model.seen_) < 8
    sides = {}
    for group, number in zip(groups, y, strict=True):
        sides.setdefault(group, set()).add(number in model.seen_)
    assert all(len(side) == 1 for side in sides.values())
    assert "valid_score" in model.history_[0]


def test_scoring_after_each_epoch_does_not_change_what_is_learned(cohort):
    class Fixed(LesionVolume):
        def _split(self, n_cases, groups, seed):
            return np.arange(6), np.arange(6, 8) if self.training.validation_fraction else np.arange(0)

    cases, masks, _ = cohort
    models = [Fixed(training=Training(epochs=3, validation_fraction=share), dropout=0.3, random_state=0) for share in (0, 0.2)]
    found = [bits(model.fit(cases, sizes(masks)).predict(cases)) for model in models]
    assert found[0] == found[1]


def test_a_field_of_a_missing_training_says_how_to_search_it():
    model = LesionVolume()
    with pytest.raises(ValueError, match=r"training__epochs=3.* pass training=Training\(\) to LesionVolume first"):
        model.set_params(training__epochs=3)
    model.set_params(training=Training(), training__epochs=3)
    assert model.training == Training(epochs=3)
    with pytest.raises(ValueError, match="Invalid parameter 'steps' for estimator Training"):
        model.set_params(training__steps=3)


def states(folder):
    return sorted(Path(folder).glob("*/state.safetensors"))


class Momentum(LesionVolume):
    """Has an optimizer and learning rates of its own, scores as written, and stops like a user would in an epoch."""

    stop_in = None

    def _optimizer(self):
        return torch.optim.RMSprop, {"alpha": 0.9, "momentum": 0.6, "weight_decay": 1e-4, "centered": True}

    def _learning_rate(self, epoch):
        return 0.01 * 0.95**epoch

    def _case_score(self, prediction, target):
        return (-3.0, math.nan, -1.0, -2.0, -1.0, -5.0)[min(self.epoch_, 5)]

    def _answer(self, net, inputs, case):
        self.epoch_ = len(net.history) - 1
        return super()._answer(net, inputs, case)

    def _stream(self, inputs, targets, rng, epoch):
        for n, sample in enumerate(super()._stream(inputs, targets, rng, epoch)):
            if epoch == type(self).stop_in and n == 3:
                raise KeyboardInterrupt
            yield sample


@pytest.mark.parametrize("cls", [LesionVolume, Momentum])
@pytest.mark.parametrize("more", [{}, {"validation_fraction": 0.3, "patience": 2}])
def test_two_and_two_epochs_are_four_and_training_ends_where_it_would_have(cohort, tmp_path, cls, more):
    cases, masks, groups = cohort
    model = cls(training=Training(epochs=7, **more), dropout=0.5, random_state=0)
    whole = clone(model).fit(cases, sizes(masks), groups=groups)
    for epochs in (2, 4, 7):
        model.set_params(training__checkpoint=tmp_path, training__epochs=epochs)
        found = clone(model).fit(cases, sizes(masks), groups=groups)
    assert bits(found.predict(cases)) == bits(whole.predict(cases))
    np.testing.assert_equal(found.history_, whole.history_)
    ends = [net.optimizer_.state_dict() for net in (found.net_, whole.net_)]
    assert ends[0]["param_groups"] == ends[1]["param_groups"]
    assert len(ends[0]["state"][0]) >= 3
    assert all(torch.equal(ends[0]["state"][0][key], value) for key, value in ends[1]["state"][0].items())
    assert len(states(tmp_path)) == 1
    if more and cls is Momentum:
        assert len(found.history_) == 5


@pytest.mark.parametrize("random_state", [0, None])
def test_an_interrupted_training_goes_on_with_its_schedule_and_seed(cohort, tmp_path, monkeypatch, random_state):
    cases, masks, _ = cohort
    model = Momentum(training=Training(epochs=4, checkpoint=tmp_path), dropout=0.5, random_state=random_state)
    monkeypatch.setattr(Momentum, "stop_in", 2)
    with pytest.raises(KeyboardInterrupt):
        model.fit(cases, sizes(masks))
    monkeypatch.undo()
    seed = json.loads(next(tmp_path.glob("*/run.json")).read_text())["seed"]
    whole = clone(model.fit(cases, sizes(masks))).set_params(training__checkpoint=None, random_state=seed)
    assert bits(model.predict(cases)) == bits(whole.fit(cases, sizes(masks)).predict(cases))


def test_other_cases_parameters_and_seeds_are_other_trainings(cohort, tmp_path):
    cases, masks, groups = cohort
    model = LesionVolume(training=Training(epochs=1, checkpoint=tmp_path), random_state=0)
    changed = [cases[0] + np.float32(1e-6), *cases[1:]]
    clone(model).fit(cases, sizes(masks))
    clone(model).fit(changed, sizes(masks))
    clone(model).fit(cases, np.add(sizes(masks), 1))
    clone(model).fit(cases, sizes(masks), groups=groups)
    clone(model).set_params(width=3).fit(cases, sizes(masks))
    clone(model).set_params(random_state=1).fit(cases, sizes(masks))
    assert len(states(tmp_path)) == 6
    clone(model).set_params(training__verbose=False, device="auto").fit(cases, sizes(masks))
    assert len(states(tmp_path)) == 6


def test_states_that_cannot_be_gone_on_from_are_refused(cohort, tmp_path, monkeypatch):
    cases, masks, _ = cohort
    model = LesionVolume(training=Training(epochs=2, schedule="cosine", checkpoint=tmp_path), random_state=0).fit(cases, sizes(masks))
    constant = clone(model).set_params(training__schedule="constant").fit(cases, sizes(masks))
    (tmp_path / "file").write_text("")

    def refused(trained, words, error=ValueError, **changes):
        with pytest.raises(error, match=words):
            clone(trained).set_params(**{f"training__{name}": value for name, value in changes.items()}).fit(cases, sizes(masks))

    refused(model, r"go on with epochs=2, or train from the beginning: remove that folder, or choose ano", epochs=4)
    refused(constant, "more than epochs=1", epochs=1)
    refused(model, "file", OSError, checkpoint=tmp_path / "file")
    with monkeypatch.context() as another:
        another.setattr(volume_estimator, "_FORMAT", 1)
        refused(constant, "written by another version; remove it to train", epochs=3)
    for state in states(tmp_path):
        state.write_bytes(state.read_bytes()[:-100])
    refused(model, "remove it to train from the beginning")


KILLED = """
import sys
from importlib.util import module_from_spec, spec_from_file_location
sys.path.insert(0, sys.argv[3])
spec = spec_from_file_location("killed", sys.argv[1])
module = module_from_spec(spec)
sys.modules["killed"] = module
spec.loader.exec_module(module)
cases, masks = module.blobs(8, 0)
module.LesionVolume(training=module.Training(epochs=100000, checkpoint=sys.argv[2]), dropout=0.5, random_state=0).fit(cases, module.sizes(masks))
"""


def test_a_killed_training_goes_on_bit_for_bit(cohort, tmp_path, monkeypatch):
    cases, masks, _ = cohort
    contracts = Path(sys.modules["volume_contract"].__file__).parent
    process = subprocess.Popen([sys.executable, "-c", KILLED, __file__, str(tmp_path), str(contracts)])
    try:
        limit = time.monotonic() + 120
        while not states(tmp_path):
            assert process.poll() is None
            assert time.monotonic() < limit
            time.sleep(0.02)
        time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    header, _ = checkpoints.read_state(states(tmp_path)[0])
    done = len(header["history"])
    model = LesionVolume(training=Training(epochs=done + 2), dropout=0.5, random_state=0)
    made = []
    stream = LesionVolume._stream
    monkeypatch.setattr(LesionVolume, "_stream", lambda *given: (made.append(given[-1]), stream(*given))[1])
    found = clone(model).set_params(training__checkpoint=tmp_path).fit(cases, sizes(masks))
    assert made == [done, done + 1]
    assert len(states(tmp_path)) == 1
    whole = model.fit(cases, sizes(masks))
    assert found.history_ == whole.history_
    assert bits(found.predict(cases)) == bits(whole.predict(cases))


@pytest.fixture(scope="module")
def saved(cohort, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    cases, masks, groups = cohort
    model = LesionVolume(training=Training(epochs=2, validation_fraction=0.3, checkpoint=folder), random_state=0)
    model.fit(cases, sizes(masks), groups=groups)
    save_model(model, folder / "volume.dmrifit")
    return model, folder / "volume.dmrifit"


def test_a_model_file_predicts_the_same_bits(saved, cohort, tmp_path):
    model, path = saved
    found = load_model(path)
    assert bits(found.predict(cohort[0])) == bits(model.predict(cohort[0]))
    assert found.history_ == model.history_
    assert found.training == Training(epochs=2, validation_fraction=0.3)
    assert found.get_params() == model.set_params(training__checkpoint=None).get_params()
    segmenter = BlobSegmenter(training=Training(epochs=1), random_state=np.random.RandomState(0)).fit(*cohort[:2])
    save_model(segmenter, tmp_path / "blobs.dmrifit")
    again = load_model(tmp_path / "blobs.dmrifit").predict(cohort[0])
    assert bits(again) == bits(segmenter.predict(cohort[0]))


def test_a_model_of_a_gpu_is_read_without_one(saved, cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    parts = parts_of(saved[1])
    fields = json.loads(parts["model.json"])
    fields["parameters"]["device"] = "cuda:3"
    parts["model.json"] = json.dumps(fields).encode()
    write(tmp_path / "gpu.dmrifit", parts)
    model = load_model(tmp_path / "gpu.dmrifit")
    assert model.device == "cpu"
    assert bits(model.predict(cohort[0])) == bits(saved[0].predict(cohort[0]))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"class": "Unheard"}, "import the package"),
        ({"parameters": {"depth": 3}}, "parameter of LesionVolume"),
        ({"parameters": {"width": 5}}, "do not fit this network"),
        ({"parameters": {"epochs": 5}}, "parameter of LesionVolume"),
        ({"parameters": {"training": {"steps": 3}}}, "field of Training"),
        ({"parameters": {"training": {"checkpoint": "/tmp"}}}, "field of Training"),
        ({"parameters": {"training": [3]}}, "field of Training"),
        ({"parameters": {"training": {"epochs": "3"}}}, "epochs must be a whole number"),
        ({"parameters": {"training": {"decay": 2}}}, "decay must be a number above 0"),
        ({"format": 2}, "written by another version; train it again"),
        ({"fitted": {"n_channels_": 1}}, "fitted attribute"),
        ({"fitted": {"n_channels_": -1, "history_": []}}, "n_channels_ is -1"),
        ({"more": 1}, "unknown or missing key"),
    ],
)
def test_unknown_classes_keys_and_shapes_are_refused(saved, tmp_path, change, match):
    parts = parts_of(saved[1])
    assert not any("pickle" in name or name.endswith((".pkl", ".pt")) for name in parts)
    fields = json.loads(parts["model.json"])
    fields.update(change)
    parts["model.json"] = json.dumps(fields).encode()
    write(tmp_path / "bad.dmrifit", parts)
    with pytest.raises(ValueError, match=match):
        load_model(tmp_path / "bad.dmrifit")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"X": np.where(np.arange(8) == 3, np.nan, 1.0).reshape(8, 1, 1, 1)}, "case 3: the volume has 1 non-finite value"),
        ({"y": [np.inf, *range(7)]}, "case 0: a target"),
    ],
)
def test_cases_without_finite_numbers_are_named_before_training(cohort, changes, match):
    with pytest.raises(ValueError, match=match):
        LesionVolume().fit(**{"X": cohort[0], "y": sizes(cohort[1])} | changes)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_bar_or_lines_show_the_time_left(cohort, capfd, monkeypatch, is_terminal):
    model = LesionVolume(training=Training(epochs=2), random_state=0).fit(cohort[0], sizes(cohort[1]))
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    model.set_params(training__verbose=True).fit(cohort[0], sizes(cohort[1])).predict(cohort[0])
    model.predict(cohort[0][:1])
    shown = capfd.readouterr().err
    assert ("epoch: 100%" in shown, "epoch 1/2 (about 00:00 left) loss" in shown) == (is_terminal, not is_terminal)
    assert "loss " in shown
    # Who predicts one case after the other has a bar of all of them.
    assert (shown.count("predict: 100%"), "\r" in shown) == (is_terminal, is_terminal)


def test_mixed_precision_and_compilation_are_for_gpus(cohort):
    plain = LesionVolume(training=Training(epochs=1), random_state=0)
    model = clone(plain).set_params(training__mixed_precision=True, training__compile=True)
    found = [bits(one.fit(cohort[0], sizes(cohort[1])).predict(cohort[0])) for one in (model, plain)]
    assert found[0] == found[1]
    assert not model.net_.mixed


def test_a_compiled_network_keeps_the_names_of_its_weights(cohort, monkeypatch, tmp_path):
    """Everything but the GPU: the processor stands in for it."""
    compiled = []
    original = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: (compiled.append(self), original(self, backend="eager")))

    class Gpu:
        type = "cuda"

        def __str__(self):
            return "cpu"

    monkeypatch.setattr(torch_state, "resolve_device", lambda device, fallback=False: Gpu())
    monkeypatch.setattr(torch_state, "forked_generator", lambda seed, device: torch.random.fork_rng(devices=[]))
    model = LesionVolume(training=Training(epochs=1, compile=True, checkpoint=tmp_path), random_state=0).fit(cohort[0], sizes(cohort[1]))
    assert compiled == [model.net_.module_]
    assert set(model.net_.module_.state_dict()) == set(Counter(1, 4, 0).state_dict())
    assert bits(pickle.loads(pickle.dumps(model)).predict(cohort[0])) == bits(model.predict(cohort[0]))
