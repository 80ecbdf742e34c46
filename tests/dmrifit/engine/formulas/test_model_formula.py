"""Parameters and formulas of signal models: values, and what is refused."""

import pickle

from dmrifit import MODELS


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
