"""Model files."""

import json
import math
import os
import pickle
import re
import sys
import zipfile

import joblib
import numpy as np
import pandas as pd
import pytest
from model_archives import Trap, parts_of, sealed, write
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skops import io as skops_io

from dmrifit.cohort.scaling import PatientScale
from dmrifit.engine.map_fitter import ClinicalMetrics, MapFitter
from dmrifit.engine.models import MODELS, Parameter, SignalModel
from dmrifit.engine.protocol import Protocol
from dmrifit.model_files.model_file import load_model, save_model
from dmrifit.predict.algorithms import PATCHWISE, VOXELWISE, make_regressor
from dmrifit.predict.conformal import ConformalIntervals
from dmrifit.predict.controls import CONSTANT
from dmrifit.predict.strategies import MapsToMaps, SignalToSignal

TARGET = Protocol.preset("cohort1").take([0, 1, 2, 3, 4, 6, 7, 11, 13, 18, 20])
CLINICAL = TARGET.clinical()
PROTOCOLS = {"source": TARGET.take(CLINICAL), "target": TARGET}
STRATEGIES = [SignalToSignal, MapsToMaps]
NAMES = [*VOXELWISE, CONSTANT, *(pytest.param(name, marks=pytest.mark.deep) for name in PATCHWISE)]
PATCH = (3, 3, 1)


def source_of(signals, name):
    """Give the source signals that an algorithm sees: a voxel, or the ones around it, which are just other voxels."""
    clinical = signals[:, CLINICAL]
    if name not in PATCHWISE:
        return clinical
    return np.concatenate([np.roll(clinical, i - 4, axis=0) for i in range(9)], axis=1)


@pytest.fixture(scope="module")
def signals():
    rng = np.random.default_rng(0)
    low, high = [200, 0.05, 10, 160, 0.6, 0.4, 40], [400, 0.3, 40, 240, 1.8, 1.0, 100]
    clean = MODELS["t2-ivim-kurtosis"].signal(rng.uniform(low, high, (160, 7)), TARGET)
    return np.abs(clean + rng.normal(0, 1, clean.shape))


@pytest.fixture(scope="module")
def forest(signals):
    estimator = SignalToSignal("RFR", **PROTOCOLS, random_state=0)
    return estimator.fit(signals[:100, CLINICAL], signals[:100])


@pytest.fixture
def file(forest, tmp_path):
    save_model(forest, tmp_path / "forest.dmrifit")
    return tmp_path / "forest.dmrifit"


def rewrite(path, *, metadata=None, parts=None):
    """Change a model file as someone would who knows its layout."""
    write(path, sealed(parts_of(path) | (parts or {}), metadata))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", NAMES)
def test_predictions_are_the_same_bits_after_loading(strategy, name, signals, tmp_path):
    X = source_of(signals, name)
    estimator = strategy(name, **PROTOCOLS, random_state=1).fit(X[:100], signals[:100])
    save_model(estimator, tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert type(again) is strategy
    assert again.get_params() == estimator.get_params()
    assert again.predict(X[100:]).tobytes() == estimator.predict(X[100:]).tobytes()
    assert again.predict_maps(X[100:]).tobytes() == estimator.predict_maps(X[100:]).tobytes()
    assert (again.n_features_in_, again.n_dropped_) == (X.shape[1], 0)


@pytest.mark.parametrize("scale", ["linear", "log"])
@pytest.mark.parametrize("name", ["LR", "ETR", "GBR", pytest.param("CNN", marks=pytest.mark.deep)])
def test_medians_are_the_same_bits_after_loading(name, scale, signals, tmp_path):
    X = source_of(signals, name)
    estimator = MapsToMaps(name, **PROTOCOLS, loss="median", target_scale=scale, random_state=1)
    estimator.fit(X[:100], signals[:100])
    save_model(estimator, tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert again.get_params() == estimator.get_params()
    assert again.predict_maps(X).tobytes() == estimator.predict_maps(X).tobytes()


@pytest.mark.deep
def test_a_given_network_is_stored_with_its_parameters(signals, tmp_path):
    from dmrifit.predict.patch_networks import PatchCNN

    given = make_pipeline(StandardScaler(), PatchCNN(width=8, epochs=2))
    X = source_of(signals, "CNN")
    estimator = SignalToSignal(given, **PROTOCOLS, random_state=0).fit(X, signals)
    save_model(estimator, tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert again.regressor[-1].get_params() == given[-1].get_params()
    assert again.regressor_.regressor_[-1].patch_shape == PATCH
    assert again.predict(X).tobytes() == estimator.predict(X).tobytes()


@pytest.mark.deep
def test_a_network_of_a_device_that_is_not_here_answers_on_the_processor(signals, tmp_path):
    if torch_has_a_device("mtia"):
        pytest.skip("this machine has the device that the test takes for missing")
    X = source_of(signals, "CNN")
    estimator = SignalToSignal("CNN", **PROTOCOLS, random_state=0).fit(X, signals)
    save_model(estimator, tmp_path / "model")

    def elsewhere(fields):
        fields["leaves"][1]["parameters"]["device"] = "mtia"

    rewrite(tmp_path / "model", metadata=elsewhere)
    assert load_model(tmp_path / "model").predict(X).tobytes() == estimator.predict(X).tobytes()


def torch_has_a_device(name):
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError):
        return False
    return True


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_intervals_are_the_same_bits_after_loading(strategy, signals, tmp_path):
    X, patients = signals[:, CLINICAL], np.arange(len(signals)) // 20
    estimator = ConformalIntervals(strategy("GBR", **PROTOCOLS, random_state=3), coverage=0.8, random_state=0)
    estimator.fit(X, signals, patients)
    save_model(estimator, tmp_path / "model", scale=PatientScale(percentile=90))
    again = load_model(tmp_path / "model")
    assert repr(again) == repr(estimator)
    assert again.predict_interval(X).tobytes() == estimator.predict_interval(X).tobytes()
    assert again.predict_maps(X).tobytes() == estimator.predict_maps(X).tobytes()
    assert again.names_ == estimator.names_
    assert again.patient_scale_ == PatientScale(percentile=90)
    for table in ("calibration_", "widths_", "ranking_"):
        pd.testing.assert_frame_equal(getattr(again, table), getattr(estimator, table))
    assert again.typicality(X).tobytes() == estimator.typicality(X).tobytes()
    assert again.guarantee() == estimator.guarantee()
    save_model(again, tmp_path / "second")
    assert load_model(tmp_path / "second").predict_interval(X).tobytes() == estimator.predict_interval(X).tobytes()


def test_intervals_of_plain_arrays_are_stored(tmp_path):
    X = pd.DataFrame(np.random.default_rng(1).normal(size=(80, 3)), columns=["a", "b", "c"])
    estimator = ConformalIntervals(SignalToSignal("LR"), random_state=0).fit(X, X["a"])
    save_model(estimator, tmp_path / "model")
    assert load_model(tmp_path / "model").predict_interval(X).tobytes() == estimator.predict_interval(X).tobytes()
    assert load_model(tmp_path / "model").guarantee() == estimator.guarantee()
    rewrite(tmp_path / "model", metadata=lambda m: m["fitted"]["intervals"].pop("has_random_groups"))
    assert not load_model(tmp_path / "model").has_random_groups_


def test_intervals_of_contrasts_that_older_files_number_are_read(signals, tmp_path):
    estimator = ConformalIntervals(SignalToSignal("LR", **PROTOCOLS | {"model": None}), random_state=0)
    estimator.fit(signals[:, CLINICAL], signals, np.arange(len(signals)) // 20)
    save_model(estimator, tmp_path / "model")
    numbers = [str(estimator.names_.index(name)) for name in estimator.widths_["parameter"]]
    rewrite(tmp_path / "model", metadata=lambda m: m["fitted"]["intervals"]["widths"].update(parameter=numbers))
    pd.testing.assert_frame_equal(load_model(tmp_path / "model").widths_, estimator.widths_)


@pytest.mark.parametrize("y", [np.arange(40.0), np.arange(80.0).reshape(40, 2)], ids=["one", "two"])
def test_plain_arrays_keep_their_column_names_and_shape(y, tmp_path):
    X = pd.DataFrame(np.random.default_rng(1).normal(size=(40, 3)), columns=["a", "b", "c"])
    estimator = MapsToMaps("GBR", random_state=0).fit(X, y)
    save_model(estimator, tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert again.feature_names_in_.tolist() == ["a", "b", "c"]
    assert again.predict(X).tobytes() == estimator.predict(X).tobytes()


STRETCHED = SignalModel.from_expression(
    "S0*exp(-(b*D)**a)",
    [Parameter("S0", "signal", 0, np.inf), Parameter("D", "µm²/ms", 0.1, 3), Parameter("a", "", 0.3, 1)],
    name="stretched",
)


@pytest.mark.parametrize(
    "estimator",
    [
        MapFitter("ivim", PROTOCOLS["source"], bounds={"Dt": (0.2, np.inf)}, fixed={"Dv": 20.0}, sigma=2.0),
        MapFitter("adc", PROTOCOLS["source"], bounds="published", method="nlls", n_threads=1),
        ClinicalMetrics(PROTOCOLS["source"], method="wls", s0="measured"),
    ],
    ids=["MapFitter", "published", "ClinicalMetrics"],
)
def test_transformers_are_stored_too(estimator, signals, tmp_path):
    estimator.fit(signals[:, CLINICAL])
    save_model(estimator, tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert repr(again) == repr(estimator)
    assert again.bounds == estimator.bounds if isinstance(estimator, MapFitter) else True
    if getattr(estimator, "bounds", None) != "published":
        X = signals[:9, CLINICAL]
        assert again.transform(X).tobytes() == estimator.transform(X).tobytes()


def test_a_model_of_the_users_own_is_stored_with_its_formula(signals, tmp_path):
    estimator = SignalToSignal("LR", **PROTOCOLS, model=STRETCHED).fit(signals[:, CLINICAL], signals)
    save_model(estimator, tmp_path / "model")
    assert load_model(tmp_path / "model").model == STRETCHED


def branched(b, S0, D):
    # Cut to whole s/mm², which no formula can say.
    whole = int(1000.0 * b + 0.5)
    return S0 * math.exp(-whole * D / 1000.0)


def test_a_model_that_is_a_function_is_refused_when_it_is_written(signals, tmp_path):
    parameters = [Parameter("S0", "signal", 0, np.inf), Parameter("D", "µm²/ms", 0, 5)]
    model = SignalModel.from_function(branched, parameters, name="branched")
    estimator = SignalToSignal("LR", **PROTOCOLS, model=model).fit(signals[:, CLINICAL], signals)
    with pytest.raises(TypeError, match=r"model branched is a function.* carries no code; write it as one formula"):
        save_model(estimator, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_the_rule_of_the_patients_scale_travels_with_the_model(forest, tmp_path):
    save_model(forest, tmp_path / "default")
    assert load_model(tmp_path / "default").patient_scale_ == PatientScale()
    save_model(forest, tmp_path / "none", scale=None)
    assert load_model(tmp_path / "none").patient_scale_ is None
    save_model(forest, tmp_path / "other", scale=PatientScale(percentile=90))
    other = load_model(tmp_path / "other")
    save_model(other, tmp_path / "again")
    assert load_model(tmp_path / "again").patient_scale_ == PatientScale(percentile=90)
    with pytest.raises(TypeError, match="PatientScale or None"):
        save_model(forest, tmp_path / "bad", scale=95)


@pytest.mark.parametrize(
    ("name", "short"),
    [("GBR", b'"xgboost.XGBRegressor"'), pytest.param("CNN", b'"dmrifit.PatchCNN"', marks=pytest.mark.deep)],
)
def test_classes_have_short_names_in_files(name, short, signals, tmp_path):
    estimator = SignalToSignal(make_regressor(name, random_state=0), **PROTOCOLS)
    save_model(estimator.fit(source_of(signals, name), signals), tmp_path / "model")
    contents = b"".join(parts_of(tmp_path / "model").values())
    assert short in contents
    assert not re.search(rb"dmrifit\.[a-z_]+|xgboost\.sklearn", contents)


class TestSaving:

    @pytest.mark.parametrize(
        ("estimator", "error", "words"),
        [
            (Ridge(), TypeError, "Ridge has no model file; .*; of an ensemble, save each model"),
            (ConformalIntervals(Ridge()), TypeError, "Ridge has no model file"),
            (SignalToSignal("LR", random_state=np.random.RandomState(0)), TypeError, "parameter random_state cannot be stored"),
        ],
    )
    def test_what_no_model_file_holds_is_refused(self, estimator, error, words, signals, tmp_path):
        with pytest.raises(NotFittedError):
            save_model(SignalToSignal(), tmp_path / "model")
        with pytest.raises(error, match=words):
            save_model(estimator.fit(signals[:, CLINICAL], signals[:, 5:7]), tmp_path / "model")

    def test_a_file_is_replaced_only_when_the_new_one_is_complete(self, forest, file, monkeypatch):
        before = file.read_bytes()

        def full(*_):
            raise OSError(28, "No space left on device")

        for where, call in ((zipfile.ZipFile, "writestr"), (os, "fsync"), (os, "replace")):
            with monkeypatch.context() as patch:
                patch.setattr(where, call, full)
                with pytest.raises(OSError, match="No space"):
                    save_model(forest, file)
            assert file.read_bytes() == before
            assert list(file.parent.iterdir()) == [file]


CODE = {
    "name": "own",
    "expression": "",
    "source": "def user_function(b, S0):\n    import os\n    os.mkdir('/tmp/trapped')\n    return S0",
    "parameters": [["S0", "signal", 0.0, 1.0]],
}


def leaf(cls, weights):
    return {"class": cls, "parameters": {}, "fitted": {}, "weights": weights}


class TestRefusals:
    def refused(self, path, match):
        with pytest.raises(ValueError, match=match) as error:
            load_model(path)
        assert str(path) in str(error.value)

    @pytest.mark.parametrize("dump", [pickle.dumps, joblib.dump], ids=["pickle", "joblib"])
    def test_a_pickle_is_not_read(self, dump, tmp_path):
        path = tmp_path / "model"
        if dump is joblib.dump:
            joblib.dump(Trap(tmp_path / "sprung"), path)
        else:
            path.write_bytes(dump(Trap(tmp_path / "sprung")))
        self.refused(path, "pickles are never read")
        assert not (tmp_path / "sprung").exists()

    def test_a_regressor_that_was_altered_is_refused(self, forest, signals, file):
        other = SignalToSignal("RFR", **PROTOCOLS, random_state=5).fit(signals[:, CLINICAL], signals)
        write(file, parts_of(file) | {"regressor.skops": skops_io.dumps(other.regressor_)})
        self.refused(file, "regressor.skops was altered")

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            (lambda m: m.update({"class": "Pipeline"}), "class is 'Pipeline'"),
            (lambda m: m.update({"class": "MapFitter"}), "parameter of MapFitter"),
            (lambda m: m.update(extra=1), "unknown or missing key"),
            (lambda m: m.pop("scale"), "unknown or missing key"),
            (lambda m: m.update(format=1), "format is 1, not 3: it was written by another version; train it again$"),
            (lambda m: m["parameters"].update(verbose=True), "parameter of SignalToSignal"),
            (lambda m: m["parameters"].update(regressor={"$call": "os.system"}), r"unknown key '\$call'"),
            (lambda m: m.update(leaves=[leaf("os.system", None)]), "asks for os.system"),
            (lambda m: m["versions"].pop("numpy"), "does not say with which"),
            (lambda m: m["versions"].update(pickle="1"), "missing package"),
            (lambda m: m["parameters"].update(model="adc"), "not the one of that name"),
            (lambda m: m["model"]["parameters"][0].__setitem__(2, 0.1), "not the one of that name"),
            (lambda m: m["parameters"]["source"]["$protocol"].update(b=[-1] * 5), "altered"),
            (lambda m: m["parameters"]["source"]["$protocol"].update(file="x"), "key of a protocol"),
            (lambda m: m["parameters"].update(patch_shape=[3]), r"three odd numbers.* not \[3\]"),
            (lambda m: m["parameters"].update(source=None), "source is missing"),
            (lambda m: m["parameters"].update(target=m["parameters"]["source"]), "answers with 11 numbers"),
            (lambda m: m["fitted"].update(n_features_in_=4), "5 measurements of 1 voxel, not 4 columns"),
            (lambda m: m["fitted"].update(n_features_in_="5"), "not counts and names"),
            (lambda m: m["fitted"].update(training_={"cohorts": "A"}), "not counts and names"),
            (lambda m: m["fitted"].update(regressor_="LR"), "fitted attribute"),
            (lambda m: m["versions"].update({"scikit-learn": "0.24.2"}), "scikit-learn 0.24.2.*installed"),
            (lambda m: m["versions"].update(dmrifit="7.0"), r"dmrifit 7.0.*installed; install dmrifit 7.0 to read it, or train it again$"),
            (lambda m: m["parameters"].update(model={"$model": CODE}), "source of a function.* is never run"),
            (lambda m: m["parameters"].update(model={"$model": {**CODE, "source": ""}}), "key of a model"),
            (lambda m: m.update(scale={"rule": "voxel", "percentile": 95}), "not 'voxel'"),
        ],
    )
    def test_metadata_that_was_altered_is_refused(self, change, match, file):
        rewrite(file, metadata=change)
        self.refused(file, match)

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            (lambda m: m["fitted"]["intervals"].update(unit=[1.0]), "those of 7 outputs"),
            (lambda m: m["fitted"]["intervals"]["unit"].__setitem__(0, 0.0), "error of 0 or less"),
            (lambda m: m["fitted"]["intervals"]["unit"].__setitem__(0, "1"), "unit of its intervals"),
            (lambda m: m["fitted"]["intervals"]["smallest"].__setitem__(0, {"$float": "inf"}), "something other than finite"),
            (lambda m: m["fitted"]["intervals"]["smallest"].__setitem__(0, -1), "0 or less"),
            (lambda m: m["fitted"]["intervals"]["ends"]["factors"][0].__setitem__(0, -1), "a factor is negative"),
            (lambda m: m["fitted"]["intervals"]["widths"].pop("width"), "column of widths"),
            (lambda m: m["fitted"]["intervals"]["widths"]["coverage"].__setitem__(0, "0.9"), "not a table of numbers"),
            (lambda m: m["fitted"]["intervals"].update(has_random_groups=1), "random groups are 1"),
            (lambda m: m["fitted"]["intervals"].pop("unit"), "missing part of intervals"),
            (lambda m: m["fitted"]["intervals"].update(forest=1), "part of intervals"),
            (lambda m: m["fitted"].update(n_features_in_=3), "instead of 3 and"),
            (lambda m: m["fitted"]["intervals"]["ends"].pop("factors"), "damaged or was altered"),
            (lambda m: m["fitted"]["intervals"]["novelty"].update(center=[1.0]), "5 measurements"),
            (lambda m: m["parameters"].update(estimator="LR"), "damaged or was altered"),
        ],
    )
    def test_intervals_that_were_altered_are_refused(self, change, match, signals, tmp_path):
        estimator = ConformalIntervals(SignalToSignal("LR", **PROTOCOLS), random_state=0)
        save_model(estimator.fit(signals[:, CLINICAL], signals, np.arange(len(signals)) // 20), tmp_path / "model")
        rewrite(tmp_path / "model", metadata=change)
        self.refused(tmp_path / "model", match)

    @pytest.fixture
    def boosted(self, signals, tmp_path):
        estimator = SignalToSignal("GBR", random_state=0).fit(signals[:, CLINICAL], signals[:, 5:7])
        save_model(estimator, tmp_path / "model")
        return tmp_path / "model"

    def test_trees_of_xgboost_are_followed_before_it_follows_them(self, boosted):
        """xgboost itself follows what stands in the file, out of its memory if need be."""
        parts = parts_of(boosted)
        name = next(name for name in parts if re.fullmatch(r"leaf\d+\.json", name))
        document = json.loads(parts[name])
        document["learner"]["gradient_booster"]["model"]["trees"][0]["left_children"][0] = 10**6
        rewrite(boosted, parts={name: json.dumps(document).encode()})
        self.refused(boosted, "branches that lead nowhere")

    @pytest.mark.deep
    @pytest.mark.parametrize(
        ("change", "match"),
        [
            (lambda p: p["parameters"].update(width=9), "weights .* do not fit a PatchCNN"),
            (lambda p: p["parameters"].update(module="os.system"), "parameter of PatchCNN"),
            (lambda p: p["fitted"].update(n_targets_=4), "do not fit|instead of"),
            (lambda p: p["fitted"].update(n_targets_=True), "n_targets_ of a network is True"),
            (lambda p: p["fitted"].update(net_="x"), "fitted attribute of a network"),
            (lambda p: p.update({"class": "dmrifit.PatchTransformer"}), "do not fit"),
        ],
    )
    def test_a_network_that_was_altered_is_refused(self, change, match, signals, tmp_path):
        estimator = SignalToSignal("CNN", **PROTOCOLS, random_state=0)
        save_model(estimator.fit(source_of(signals, "CNN"), signals), tmp_path / "model")
        rewrite(tmp_path / "model", metadata=lambda m: change(m["leaves"][1]))
        self.refused(tmp_path / "model", match)

    def test_a_missing_library_is_named_with_the_command(self, boosted, monkeypatch):
        monkeypatch.setitem(sys.modules, "xgboost", None)
        with pytest.raises(ImportError, match=r'pip install "dmrifit\[boost\]"'):
            load_model(boosted)
