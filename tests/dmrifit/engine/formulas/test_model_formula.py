"""Parameters and formulas of signal models: values, and what is refused."""

import pickle

import numpy as np
import pytest

from dmrifit import MODELS, Parameter


def test_models_are_hashable_picklable_values_with_names_units_and_bounds_in_the_order_of_columns():
    model = MODELS["t2-ivim-kurtosis"]
    assert model.names == ("S0", "f", "Dv", "T2v", "Dt", "K", "T2t")
    assert model.units == ("signal", "", "µm²/ms", "ms", "µm²/ms", "", "ms")
    published = dict(model.published_bounds)
    assert published.pop("S0") == (0.8, 12)
    assert dict(zip(model.names[1:], model.bounds[1:], strict=True)) == published
    assert model.needs_te
    for model in MODELS.values():
        assert pickle.loads(pickle.dumps(model)) == model
        assert hash(model) == hash(pickle.loads(pickle.dumps(model)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Parameter("D", "mm²/s", 0, 3e-3), r"in µm²/ms and multiply its bounds by 1000"),
        (lambda: Parameter("b", "", 0, 1), "cannot be named 'b'"),
        (lambda: Parameter("a b", "", 0, 1), "identifier"),
        (lambda: Parameter("D", "", 2, 1), "empty bounds"),
        (lambda: Parameter("D", "", np.nan, 1), "empty bounds"),
    ],
)
def test_parameters_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
