"""No model file runs code, takes memory beyond its size, or reaches a file beside it, whatever it holds."""

import io
import json
import pickle
import struct
import warnings
import zipfile

import numpy as np
import pytest
from model_archives import Trap, packed, parts_of, sealed, write

from dmrifit.engine.models import Parameter, SignalModel
from dmrifit.model_files.model_file import load_model, save_model
from dmrifit.predict.strategies import SignalToSignal
from dmrifit.study.study_folder import StudyFolder

MEMORY = 2**28  # bytes that a refusal may take at most


@pytest.fixture
def trap(tmp_path):
    """Give what makes a folder when it is unpickled; the test fails where it was made."""
    folder = tmp_path / "sprung"
    yield Trap(folder)
    assert not folder.exists()


def array_of(trap):
    buffer = io.BytesIO()
    np.save(buffer, np.array([trap], dtype=object), allow_pickle=True)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Write a model of plain arrays: its parts by name."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("model") / "model.dmrifit"
    save_model(SignalToSignal("LR", model=None).fit(rng.random((30, 3)), rng.random((30, 2))), path)
    return parts_of(path)


def with_member(whole, path, name, content):
    """Write a model whose regressor holds another member."""
    data = packed(parts_of(whole["regressor.skops"]) | {name: content})
    return write(path, sealed({**whole, "regressor.skops": data}))


def arrays_of(whole):
    return [name for name in parts_of(whole["regressor.skops"]) if name.endswith(".npy")]


def refused(path, match="refused as a model file"):
    with pytest.raises(ValueError, match=match) as error:
        load_model(path)
    assert str(path) in str(error.value)


def test_a_pickle_in_any_member_of_the_regressor_is_not_read(whole, trap, tmp_path):
    assert arrays_of(whole)
    for name in (*arrays_of(whole), "schema.json"):
        refused(with_member(whole, tmp_path / "model", name, pickle.dumps(trap)))
    for name in arrays_of(whole):
        refused(with_member(whole, tmp_path / "model", name, array_of(trap)), "an array of its regressor")


@pytest.mark.parametrize(
    ("shape", "claim"),
    [
        *((shape, "refused as a model file") for shape in ((10**15,), (2**31, 2**31), (-1, 5))),
        *(((n,), rf"an array of its regressor says that it holds {8 * n} bytes \(float64\) in 192") for n in (25, 200)),
    ],
)
def test_an_array_may_not_claim_one_value_more_than_its_file_has_bytes_for(shape, claim, whole, tmp_path):
    text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + bytes(64)
    assert len(array) == 192  # bytes, enough for 24 values
    refused(with_member(whole, tmp_path / "model", arrays_of(whole)[0], array), claim)


def test_members_of_a_regressor_may_claim_no_more_bytes_than_all_of_it_has_and_not_be_packed_again(whole, tmp_path):
    inner = parts_of(whole["regressor.skops"])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in inner.items():
            archive.writestr(name, content)
        # The list at the end is written from these numbers.
        archive.infolist()[0].file_size = 2 * len(whole["regressor.skops"])
    path = write(tmp_path / "model", sealed({**whole, "regressor.skops": buffer.getvalue()}))
    refused(path, "do not lie in it one after the other, as they are")
    # 2,000 bytes that cannot be packed and 20,000 that vanish: ten times smaller, where a real one stays as it is.
    twice = np.random.default_rng(0).bytes(2000) + bytes(20_000)
    path = write(tmp_path / "model", sealed({**whole, "estimator.dmrifit": twice}))
    with zipfile.ZipFile(path) as archive:
        assert 2000 < archive.getinfo("estimator.dmrifit").compress_size < 2200
    refused(path, "more than any model does")


def test_a_regressor_that_is_packed_and_a_member_that_is_there_twice_are_refused(whole, tmp_path):
    inner = parts_of(whole["regressor.skops"])
    compressed = write(tmp_path / "inner", inner).read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        twice = packed([*inner.items(), ("schema.json", inner["schema.json"])])
    for data in (compressed, twice):
        refused(write(tmp_path / "model", sealed({**whole, "regressor.skops": data})), "as they are")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        path = write(tmp_path / "model", [*sealed(whole).items(), *whole.items()])
    refused(path, "instead of the parts of a model")


@pytest.mark.parametrize(
    "node",
    [
        {"__class__": "system", "__module__": "os", "__loader__": "FunctionNode", "content": {}},
        {"__class__": "partial", "__module__": "functools", "__loader__": "PartialNode", "content": {}},
        {"__class__": "Popen", "__module__": "subprocess", "__loader__": "ObjectNode", "content": {"args": ["true"]}},
        {"__class__": "Popen", "__module__": "subprocess", "__loader__": "TypeNode"},
        {"__class__": "methodcaller", "__module__": "operator", "__loader__": "OperatorFuncNode", "attrs": []},
        {"__class__": "dict", "__module__": "builtins", "__loader__": "MethodNode", "content": {"func": "clear"}},
        {"__class__": "dict", "__module__": "builtins", "__loader__": "ReduceNode", "content": {}},
        {"__class__": "LinearRegression", "__loader__": "ObjectNode"},
    ],
    ids=["function", "partial", "object", "type", "operator", "method", "reduce", "no module"],
)
def test_functions_and_classes_named_by_a_regressor_are_not_found(node, whole, tmp_path):
    schema = json.loads(parts_of(whole["regressor.skops"])["schema.json"])
    schema["content"]["content"]["guest"] = node | {"__id__": 1}
    refused(with_member(whole, tmp_path / "model", "schema.json", json.dumps(schema).encode()))


@pytest.mark.parametrize(
    "name",
    ["../escaped", "/tmp/escaped", "..\\escaped", "regressor.skops/../x", "own-a/../../b.json", "leaf1.pkl", "a\0b"],
)
def test_members_of_other_names_are_refused_and_nothing_is_written(name, whole, tmp_path):
    path = write(tmp_path / "model", sealed(whole) | {name: b"x"})
    refused(path, "instead of the parts of a model")
    assert [one.name for one in tmp_path.iterdir()] == ["model"]


def test_a_link_and_a_folder_in_the_archive_are_only_names(whole, tmp_path):
    path = tmp_path / "model"
    for kind, name in ((0o120777, "regressor.skops"), (0o040755, "own-a/")):
        with zipfile.ZipFile(path, "w") as archive:
            for other, content in sealed(whole).items():
                if other != name:
                    archive.writestr(other, content)
            entry = zipfile.ZipInfo(name)
            entry.external_attr = kind << 16
            archive.writestr(entry, "/etc/passwd")
        refused(path)


@pytest.mark.parametrize(
    "name",
    ["regressor.skops", *(pytest.param(one, marks=pytest.mark.slow) for one in ("model.json", "own-net.safetensors"))],
)
def test_an_archive_of_zeros_is_not_unpacked(name, whole, tmp_path, peak):
    path = write(tmp_path / "model", {**sealed(whole), name: bytes(2**27)})
    assert path.stat().st_size < 2**20
    with peak(MEMORY // 8):
        refused(path, "more than any model does")


def test_an_entry_that_hides_its_size_is_not_unpacked(whole, tmp_path, peak):
    path = write(tmp_path / "model", {**sealed(whole), "regressor.skops": bytes(2**27)})
    content = path.read_bytes()
    told, hidden = struct.pack("<I", 2**27), struct.pack("<I", 2**10)
    path.write_bytes(content.replace(told, hidden))
    assert content.count(told) >= 2  # beside the part, and in the list at the end
    with peak(MEMORY // 8):
        refused(path)


def test_metadata_of_strange_json_is_refused(whole, tmp_path):
    assert load_model(write(tmp_path / "model", sealed(whole))).n_features_in_ == 3
    deep, long = (b'{"a":' * 100_000, b"[" * 100_000 + b"]" * 100_000), b'{"format": 1' + b"0" * 5000 + b"}"
    for content in (*deep, long, b"\xff\xfe{}", b'{"format": NaN}', b"null", b'"model"', b""):
        refused(write(tmp_path / "model", {**whole, "model.json": content}))


CLASSES = [
    *("os.system", "dmrifit.model_files.regressor_file.Leaf", "sklearn.pipeline.Pipeline", "__import__", ""),
    *(7, None, [], {}),
]


@pytest.mark.parametrize("name", CLASSES, ids=repr)
def test_classes_that_are_not_registered_are_not_looked_for(name, whole, tmp_path):
    refused(write(tmp_path / "model", sealed(whole, lambda m: m.update({"class": name}))))


@pytest.mark.parametrize(
    "value",
    [
        {"$class": "os.system"},
        {"$model": {"name": "x", "expression": "__import__('os').system('true')", "parameters": [["x", "", 0, 1]]}},
        {"$model": {"name": "x", "expression": "x*9**9**9**9", "parameters": [["x", "", 0, 1]]}},
        {"$model": {"name": "x", "expression": "x" + "+x" * 10**5, "parameters": [["x", "", 0, 1]]}},
        {"$model": {"name": "x", "expression": "x.__class__", "parameters": [["x", "", 0, 1]]}},
        {"$model": {"name": "x", "expression": "x", "parameters": [["x\nimport os", "", 0, 1]]}},
        {"$model": {"name": "x", "expression": "x", "parameters": [["x", "", 0, 1]], "source": "def f(): pass"}},
        {"$tuple": 1, "$float": 2},
        {"$float": "1e"},
        {"$estimator": "../../x"},
        {"$protocol": {"name": "", "b": [[0]] * 3, "te": None, "directions": None}},
    ],
)
def test_parameters_that_are_code_or_nothing_known_are_refused(value, whole, tmp_path):
    refused(write(tmp_path / "model", sealed(whole, lambda m: m["parameters"].update(model=value))))


@pytest.mark.parametrize("formula", ["S0*9**9**9", "S0*((9**64)**64)**64", "S0*10**-400", "S0**(64*64)", "S0*2**1e999"])
def test_powers_that_nobody_could_compute_are_refused_at_once(formula):
    with pytest.raises(ValueError, match=r"beyond -64 to 64; take a smaller|too large a number for a computer; write a smaller"):
        SignalModel.from_expression(formula, [Parameter("S0", "signal", 0, 1)], name="own")


def header(fields, data=b"", *, told=None):
    text = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return struct.pack("<Q", len(text) if told is None else told) + text + data


def tensor(start, end, shape=(1,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


CRAFTED = {
    "a header of 2^63 bytes": header({}, told=2**63),
    "a header of 1 GB": header({}, told=2**30),
    "a header beyond the end": header({}, told=100),
    "nothing": b"",
    "half a length": b"\0\0\0",
    "offsets that overlap": header({"a": tensor(0, 8, (2,)), "b": tensor(4, 12, (2,))}, bytes(12)),
    "an offset below 0": header({"a": tensor(-4, 4)}, bytes(8)),
    "an end before the start": header({"a": tensor(8, 4)}, bytes(8)),
    "an end beyond the file": header({"a": tensor(0, 2**40, (2**38,))}, bytes(8)),
    "a shape that overflows": header({"a": tensor(0, 0, (2**40, 2**40))}, b""),
    "a negative shape": header({"a": tensor(0, 4, (-1,))}, bytes(4)),
    "a shape of other size": header({"a": tensor(0, 4, (2,))}, bytes(4)),
    "an unknown type": header({"a": tensor(0, 4, dtype="O")}, bytes(4)),
    "no text": header(b'{"\xff\xfe":{}}'),
    "a name twice": header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
                           b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(4)),
    "a hole": header({"a": tensor(0, 4), "b": tensor(8, 12)}, bytes(12)),
    "bytes that nobody names": header({"a": tensor(0, 4)}, bytes(100)),
    "deep nesting": header(b'{"a":' * 50_000),
    "a list": header(b"[]"),
}  # fmt: skip


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """Write a model whose arrays are safetensors and need no torch."""
    from anomaly.detectors.subspace import PCADetector

    rng = np.random.default_rng(0)
    scans = rng.random((4, 2, 6, 6, 4), dtype=np.float32)
    path = tmp_path_factory.mktemp("detector") / "model.dmrifit"
    save_model(PCADetector(2).fit(scans), path)
    return parts_of(path)


@pytest.mark.parametrize("content", CRAFTED.values(), ids=CRAFTED)
def test_crafted_safetensors_are_refused_without_taking_memory(content, detector, tmp_path, peak):
    assert "own-arrays.safetensors" in detector
    path = write(tmp_path / "model", sealed({**detector, "own-arrays.safetensors": content}))
    with peak(MEMORY // 8):
        refused(path)


@pytest.mark.slow
@pytest.mark.deep
@pytest.mark.parametrize(("name", "value"), [("width", 10**5), ("width", 10**9), ("depth", 10**9)])
def test_a_network_of_any_size_takes_no_memory_before_its_weights_are_compared(name, value, tmp_path, peak):
    pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    estimator = SignalToSignal("CNN", model=None, patch_shape=(3, 3, 1), random_state=0)
    estimator.set_params(regressor="CNN")
    estimator.fit(rng.random((40, 27)), rng.random((40, 2)))
    path = tmp_path / "model"
    save_model(estimator, path)
    parts = parts_of(path)
    assert load_model(path).n_features_in_ == 27

    def grown(metadata):
        for leaf in metadata["leaves"]:
            leaf["parameters"][name] = value

    with peak(MEMORY):
        refused(write(path, sealed(parts, grown)), "do not fit")


@pytest.mark.deep
def test_arrays_and_checkpoints_that_are_pickles_are_not_read(detector, trap, tmp_path):
    torch = pytest.importorskip("torch")
    from dmrifit.networks.checkpoints import read_state

    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(1), "b": trap}, buffer)
    for content in (pickle.dumps(trap), buffer.getvalue()):
        refused(write(tmp_path / "model", sealed({**detector, "own-arrays.safetensors": content})))
    for content in (pickle.dumps(trap), CRAFTED["a header of 2^63 bytes"], header({"__metadata__": {"dmrifit": "[" * 10**5}})):
        path = tmp_path / "state.safetensors"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"is not a whole checkpoint .* remove it to train from the beginning"):
            read_state(path)


def test_pickles_in_the_folder_of_a_comparison_are_not_read(trap, tmp_path):
    from dmrifit.study.predictions import FolderPredictions

    folder, cell, path = StudyFolder(tmp_path), tmp_path / "cells" / "one.npz", tmp_path / "predictions" / "c@p.npz"
    folder.put("one", {"scores": [], "signals": [], "predictions": {"k/p": np.zeros(3)}})
    assert folder.get("one", arrays=True) is not None
    path.parent.mkdir()
    archives = (packed({"k/p.npy": array_of(trap)}), packed({"index.npy": array_of(trap)}))
    for in_cell, in_predictions in (archives, [pickle.dumps(trap)] * 2):
        cell.write_bytes(in_cell)
        assert folder.get("one", arrays=True) is None
        path.write_bytes(in_predictions)
        with pytest.raises(ValueError, match="is damaged"):
            FolderPredictions(tmp_path)["c", "p"]


@pytest.mark.parametrize("name", ["../secret.csv", "/etc/passwd"])
def test_a_study_reads_tables_of_its_own_folder_only(name, tmp_path):
    (tmp_path / "secret.csv").write_text("secret")
    folder = StudyFolder(tmp_path / "study")
    folder.write_study({"settings": {}}, {"scores.csv": "a\n1\n"})
    path = tmp_path / "study" / "study.json"
    path.write_text(path.read_text().replace("scores.csv", name))
    with pytest.raises(ValueError, match="was changed or damaged"):
        folder.read_study(["scores.csv"])


def test_compiled_code_is_not_taken_from_a_folder_that_everyone_writes_to(tmp_path, monkeypatch):
    from dmrifit.engine.kernels import compiler

    chosen = tmp_path / "cache"
    monkeypatch.setenv("DMRIFIT_CACHE", str(chosen))
    assert compiler._cache_folder() == chosen
    chosen.chmod(0o777)
    with pytest.raises(OSError, match="cannot be used"):
        compiler._cache_folder()
