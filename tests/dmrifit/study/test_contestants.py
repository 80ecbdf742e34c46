"""Who takes part in a comparison: estimators checked and named, their controls, what they see."""

import numpy as np
import pytest
from sklearn.base import BaseEstimator
from sklearn.linear_model import Ridge

from dmrifit.cohort.cohort import Cohort
from dmrifit.cohort.scan import Scan
from dmrifit.engine.models import MODELS
from dmrifit.engine.protocol import Protocol
from dmrifit.predict.strategies import MapsToMaps, SignalToSignal
from dmrifit.study.contestants import Entrant, choose_views, controls_of, named_cohorts

FULL = Protocol([0, 100, 300, 500, 900, 1500])
CLINICAL = Protocol([0, 100, 300, 500, 900])


class Own(BaseEstimator):
    """An estimator of a user's own."""

    def __init__(self, model="adc", option=None):
        self.model = model
        self.option = option

    def fit(self, X, Y):
        return self

    def predict(self, X):
        return X

    def predict_maps(self, X):
        return X


class Nameless(Own):
    def __init__(self, option=None):
        self.option = option


def entrant(name, estimator, *, kept=False):
    return Entrant.of(name, estimator, kept=kept, example=FULL)


def cohort(name, patients=("p1", "p2"), protocol=FULL):
    everywhere = np.ones((2, 2, 1), bool)
    signal = np.ones((2, 2, 1, len(protocol)))
    scans = [Scan(patient, signal, protocol, everywhere, np.eye(4)) for patient in patients]
    return Cohort(scans, name)


@pytest.mark.parametrize(
    ("name", "estimator", "strategy", "algorithm"),
    [
        ("LR s2s", SignalToSignal("LR", model="adc"), "s2s", "LR"),
        ("m2m: LR", MapsToMaps("LR", model="adc"), "m2m", "LR"),
        ("Random forest (S2S)", SignalToSignal("RFR", model="adc"), "s2s", "Random forest"),
        ("s2s", SignalToSignal("LR", model="adc"), "s2s", "s2s"),
        ("m2m of s2s", SignalToSignal("LR", model="adc"), "s2s", "m2m of"), ("mine", Own(), "Own", "mine"),
        # An estimator that names no model predicts that of the study.
        ("own", Nameless(), "Nameless", "own"),
    ],
)
def test_strategy_and_algorithm_follow_from_class_and_name(name, estimator, strategy, algorithm):
    result = entrant(name, estimator)
    assert (result.name, result.strategy, result.algorithm) == (name, strategy, algorithm)
    assert result.model is MODELS["t2-ivim-kurtosis" if name == "own" else "adc"]
    assert result.control == ""


def test_what_is_kept_needs_a_description_in_which_the_code_of_users_classes_counts():
    odd = Own(option=lambda: 0)
    with pytest.raises(ValueError, match=r"'x': .*cannot be described"):
        entrant("x", odd, kept=True)
    assert entrant("x", odd).description == repr(odd)
    described = entrant("x", Own(option=3), kept=True).description
    assert described["parameters"] == {"model": "adc", "option": 3}
    assert entrant("x", SignalToSignal("LR", model="adc")).code == ""
    assert entrant("x", SignalToSignal(Ridge(), model="adc")).code == ""

    class Mine(Ridge):
        pass

    class Mine2(Ridge):
        alias = 2

    codes = [entrant("x", estimator).code for estimator in (Own(), SignalToSignal(Mine()), SignalToSignal(Mine2()))]
    assert len(set(codes)) == 3
    assert "" not in codes


def test_estimators_that_prepare_voxels_alike_share_a_recipe():
    def recipe(estimator):
        return entrant("x", estimator).recipe

    first = recipe(SignalToSignal("LR", model="adc"))
    assert first == recipe(SignalToSignal("RFR", model="adc", random_state=3)) != ""
    different = [
        SignalToSignal("LR", model="kurtosis"),
        SignalToSignal("LR", model="adc", normalize="voxel"),
        SignalToSignal("LR", model="adc", patch_shape=(3, 3, 1)),
        MapsToMaps("LR", model="adc"),
    ]
    assert len({first, *map(recipe, different)}) == 5

    class Mine(SignalToSignal):
        pass

    # Classes with a fit of their own prepare what they like.
    assert recipe(Mine("LR", model="adc")) == recipe(Own()) == ""


def test_cohorts_have_their_own_names_or_those_of_a_mapping():
    first, second = cohort("A", ("a",)), cohort("", ("b",))
    assert named_cohorts(first) == {"A": first}
    assert named_cohorts([first, second]) == {"A": first, "cohort 2": second}
    assert named_cohorts({"x": first, "y": second}) == {"x": first, "y": second}


def test_every_strategy_gets_controls_made_of_its_first_estimator():
    first = SignalToSignal("RFR", model="adc", patch_shape=(3, 3, 1), normalize="voxel")
    second = MapsToMaps("ETR", model="adc", loss="median", target_scale="log")
    entrants = [entrant("own", Own()), entrant("RFR s2s", first), entrant("ETR m2m", second)]
    entrants.append(entrant("LR s2s", SignalToSignal("LR", model="adc")))
    controls = controls_of(entrants, kept=True, example=FULL)
    names = ["constant", "shuffled", "copy", "perfect"]
    assert [control.name for control in controls] == [f"{name} {way}" for way in ("s2s", "m2m") for name in names]
    assert [control.algorithm for control in controls] == [control.control for control in controls] == names * 2
    constant, shuffled = controls[0].estimator, controls[1].estimator
    assert (constant.regressor, shuffled.regressor) == ("constant", "LR")
    # Voxel by voxel, with the other options of the estimator that they stand beside.
    assert (constant.patch_shape, constant.normalize) == (None, "voxel")
    assert (controls[4].estimator.loss, controls[4].estimator.target_scale) == ("mean", "log")
    assert first.patch_shape == (3, 3, 1)
    # Their estimators look alike, so kept results must be told apart by name.
    assert shuffled.get_params() == controls[2].estimator.get_params()
    assert controls[1].description != controls[2].description


def test_a_control_that_takes_part_already_is_not_added_again():
    entrants = [entrant("constant s2s", SignalToSignal("constant", model="adc"))]
    controls = controls_of(entrants, kept=False, example=FULL)
    assert [control.algorithm for control in controls] == ["shuffled", "copy", "perfect"]
    with_noise_free = controls_of(entrants, kept=False, example=FULL, noise_free=True)
    assert [control.algorithm for control in with_noise_free] == ["shuffled", "copy", "perfect", "truth", "repeat"]


def views_of(estimators, cohorts, regimes=("same",), *, resynthesize=False):
    entrants = [entrant(name, estimator) for name, estimator in estimators.items()]
    by_name = {cohort.name: cohort for cohort in cohorts}
    return choose_views(entrants, by_name, regimes, resynthesize=resynthesize)


def test_contrasts_that_are_not_given_are_those_of_the_cohort():
    target = FULL.take([0, 1, 5])
    estimators = {
        "open": SignalToSignal("LR", model="adc"),
        "near": SignalToSignal("LR", model="kurtosis", patch_shape=(3, 3, 1)),
        "half": SignalToSignal("LR", model="adc", target=target),
        "own": Own(),
    }
    views = views_of(estimators, [cohort("A")])
    assert list(views) == [(name, "A") for name in estimators]
    assert (views["open", "A"].source, views["open", "A"].target) == (CLINICAL, FULL)
    assert views["open", "A"].patch_shape is None
    assert views["near", "A"].patch_shape == (3, 3, 1)
    assert views["near", "A"].model is MODELS["kurtosis"]
    assert (views["half", "A"].source, views["half", "A"].target) == (CLINICAL, target)
    assert views["own", "A"].source == CLINICAL
    source = Protocol([0, 500])
    views = views_of({"x": SignalToSignal(model="adc", source=source)}, [cohort("short", protocol=Protocol([0, 500, 900]))])
    assert views["x", "short"].source == source


FIVE = Protocol([0, 50, 100, 400, 900])
TWO_TE = Protocol([0, 500, 900, 0, 500, 900], te=[60] * 3 + [90] * 3)
LEARNED = r"all 5 contrasts .*nothing is left .*--source-b 0,50,100,400 "


@pytest.mark.parametrize(
    ("protocol", "estimator", "message"),
    [
        # The five lowest b-values are all of them.
        (FIVE, SignalToSignal(model="adc"), LEARNED),
        (FIVE, MapsToMaps(model="adc"), LEARNED),
        (TWO_TE, SignalToSignal(model="adc", source=TWO_TE), r"leave out the longer echo times: --source-b 0,500,900 "),
        (FULL, SignalToSignal(model="adc", source=FULL.take([0]), target=FULL.take([0])), "acquire more b-values"),
        (Protocol([0, 500, 900]), SignalToSignal(model="adc"), r"cohort 'A': a clinical protocol needs 5.*give the estimators"),
        (FULL, MapsToMaps(model="adc", source=FULL.take([0, 1])), r"'x' learns from clinical maps: .*lacks.*--strategies s2s"),
        (CLINICAL, SignalToSignal(model="adc", target=FULL), r"patient p1 of cohort 'A': .*lacks S_b1500.*column cohort"),
    ],
)
def test_protocols_that_leave_nothing_to_learn_or_to_learn_from_are_refused(protocol, estimator, message):
    with pytest.raises(ValueError, match=message) as refusal:
        views_of({"x": estimator}, [cohort("A", protocol=protocol)])
    assert "resynthesize" not in str(refusal.value)


def test_crossing_cohorts_needs_the_tested_protocol_in_both_or_computed_contrasts():
    longer = Protocol([*FULL.b, 2000])
    cohorts = [cohort("A", ("a",)), cohort("B", ("b",), longer)]
    estimators = {"x": SignalToSignal(model="adc")}
    assert len(views_of(estimators, cohorts, ("same",))) == 2
    for regimes in (("other",), ("same", "pooled")):
        message = r"patient a of cohort 'A': .*lacks S_b2000.*protocol of 'B' in both.*resynthesize=True"
        with pytest.raises(ValueError, match=message):
            views_of(estimators, cohorts, regimes)
        views = views_of(estimators, cohorts, regimes, resynthesize=True)
        assert (views["x", "A"].target, views["x", "B"].target) == (FULL, longer)
    # A scan that lacks contrasts of its own cohort is told of first, as no way of training helps.
    partial = Cohort([*cohort("B", ("b",), longer).scans, *cohort("B", ("c",)).scans], "B")
    with pytest.raises(ValueError, match=r"patient c of cohort 'B': .*lacks S_b2000.*All scans of cohort 'B'"):
        views_of(estimators, [cohort("A", ("a",), longer), partial], ("other",))
