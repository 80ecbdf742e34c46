"""Digests of settings: equal values have equal ones, different values different ones."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from dmrifit import MODELS, Parameter, Protocol, SignalModel, SignalToSignal
from dmrifit.io.digests import command_line, describe, digest

DECAY = SignalModel.from_expression("S0*exp(-b*D)", [Parameter("S0", "signal", 0, 10), Parameter("D", "µm²/ms", 0, 3)],
                                    name="decay")  # fmt: skip


def branched(b, S0, D):
    # Cut to whole s/mm², which no formula can say.
    whole = int(1000.0 * b + 0.5)
    return S0 * math.exp(-whole * D / 1000.0)


BRANCHED = SignalModel.from_function(branched, DECAY.parameters, name="decay")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.arange(4.0), np.array([0.0, 1, 2, 3])),
        (Protocol([0, 100], te=80), Protocol([0, 100], te=80, name="same measurements")),
        (SignalToSignal(Ridge()), SignalToSignal(Ridge())),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({3, 1, 2}, {1, 2, 3}),
        (np.float64(2), 2.0),
        (replace(DECAY), DECAY),
        (BRANCHED, SignalModel.from_function(branched, DECAY.parameters, name="decay")),
    ],
)
def test_equal_values_have_equal_digests(one, other):
    assert digest(one) == digest(other)
    assert json.loads(json.dumps(describe(one))) == describe(one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.arange(4.0), np.array([0, 1, 2, np.nextafter(3, 4)])),
        (np.arange(4), np.arange(4.0)),
        (np.zeros((2, 3)), np.zeros((3, 2))),
        (Protocol([0, 100], te=80), Protocol([0, 100], te=81)),
        (SignalToSignal(Ridge()), SignalToSignal(Ridge(alpha=2.0))),
        (MODELS["adc"], MODELS["kurtosis"]),
        (DECAY, replace(DECAY, parameters=(DECAY.parameters[0], Parameter("D", "µm²/ms", 0, 4)))),
        (DECAY, replace(DECAY, expression="S0*exp(-2*b*D)")),
        (DECAY, replace(DECAY, parameters=(DECAY.parameters[0], Parameter("D", "other", 0, 3)))),
        (DECAY, replace(DECAY, parameters=DECAY.parameters[::-1])),
        (BRANCHED, replace(BRANCHED, source=BRANCHED.source.replace("0.5", "0.4"))),
        (np.mean, np.median),
        (np.random.RandomState(0), np.random.RandomState(1)),
        ([1, 2], [2, 1]),
    ],
)
def test_different_values_have_different_digests(one, other):
    assert digest(one) != digest(other)


def test_a_command_line_keeps_paths_in_this_folder_and_no_other_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    here = ["data/p.tsv", f"{tmp_path}/a b/p.tsv", f"n={tmp_path}/c/p.tsv", "x/y,/study/jane/z.nii", "../up", ""]
    monkeypatch.setattr("sys.argv", ["/usr/bin/dmrifit", "benchmark", *here, f"/x{tmp_path}/w.nii", "--out=/study/jane/s"])
    assert command_line() == "dmrifit benchmark data/p.tsv 'a b/p.tsv' n=c/p.tsv x/y,z.nii ../up '' w.nii --out=s"
