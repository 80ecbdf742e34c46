"""Training: fields that are open, checks, learning rates, and what model files keep."""

import math

import pytest
from sklearn.base import clone

from dmrifit import Training
from dmrifit.io.parameter_json import RefusedError
from dmrifit.networks.training import (
    check_training,
    gather_training,
    learning_rate_at,
    read_training,
    stored_training,
)

OFF = dict.fromkeys(("mixed_precision", "compile", "verbose"), False)
FILLED = Training(4, 2, 0.01, schedule="constant", decay=1.0, validation_fraction=0.0, **OFF)


def test_a_training_is_a_value_that_scikit_learn_copies_and_shows_in_short():
    training = Training(epochs=5, schedule="cosine")
    assert repr(training) == "Training(epochs=5, schedule='cosine')"
    assert clone(training) == training != Training(epochs=5)
    assert set(training.get_params()) == set(Training._get_param_names())
    assert training.set_params(epochs=3).epochs == 3


def test_open_fields_are_filled_flat_options_gathered_and_neither_training_is_changed():
    training = Training(epochs=5, validation_fraction=0.0)
    defaults = Training(epochs=60, batch_size=10, validation_fraction=0.2)
    filled = defaults | training
    assert filled == Training(epochs=5, batch_size=10, validation_fraction=0.0)
    assert training == Training(epochs=5, validation_fraction=0.0)
    assert (defaults | None) == defaults
    assert (defaults | None) is not defaults
    with pytest.raises(ValueError, match=r"such as Training\(epochs=5\), or None, not {}"):
        defaults | {}
    options = {"width": 3, "epochs": 5, "checkpoint": None}
    assert gather_training(options) == {"width": 3, "training": Training(epochs=5)}
    assert gather_training({"width": 3}) == {"width": 3}


@pytest.mark.parametrize(
    ("schedule", "decay", "expected"),
    [
        ("constant", 1.0, [0.01] * 4),
        ("constant", 0.5, [0.01, 0.005, 0.0025, 0.00125]),
        ("cosine", 1.0, [0.005 * (1 + math.cos(math.pi * k / 4)) for k in range(4)]),
    ],
)
def test_the_learning_rate_follows_schedule_and_decay(schedule, decay, expected):
    training = FILLED | Training(schedule=schedule, decay=decay)
    assert [learning_rate_at(k, training) for k in range(4)] == pytest.approx(expected, rel=1e-15)


def test_model_files_keep_the_fields_that_are_set_without_a_folder():
    check_training(FILLED)
    training = Training(epochs=5, checkpoint="states", after_epoch=print, verbose=True)
    check_training(FILLED | training)
    assert stored_training(training) == {"epochs": 5}
    assert stored_training(None) is None
    assert read_training({"epochs": 5}) == Training(epochs=5)
    assert read_training({"epochs": 5, "verbose": True}) == Training(epochs=5)
    assert read_training(None) is None
    for fields in ({"steps": 5}, {"checkpoint": "states"}, {"after_epoch": 1}, [5], "epochs"):
        with pytest.raises(RefusedError, match="field of Training"):
            read_training(fields)
