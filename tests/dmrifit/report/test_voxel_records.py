"""Records of voxels for pages: their codes, and formulas that a page computes without running text."""

import base64
import gzip
import math
import operator

import numpy as np
import pytest

from dmrifit.engine.fit_maps import OUTSIDE
from dmrifit.engine.models import MODELS, Parameter, SignalModel
from dmrifit.engine.protocol import Protocol
from dmrifit.engine.results import FitStatus
from dmrifit.report.voxel_records import VoxelRecords, VoxelSignals, formula_tokens, pack_numbers

BINARY = {
    **{"Add": operator.add, "Sub": operator.sub, "Mult": operator.mul, "Div": operator.truediv, "Pow": operator.pow},
    **{"Lt": operator.lt, "LtE": operator.le, "Gt": operator.gt, "GtE": operator.ge, "Eq": operator.eq},
    **{"NotEq": operator.ne, "And": lambda a, b: a and b, "Or": lambda a, b: a or b},
}
UNARY = {"UAdd": operator.pos, "USub": operator.neg, "Not": operator.not_}
BINARY = {f"={name}": function for name, function in BINARY.items()}
UNARY = {f"={name}": function for name, function in UNARY.items()}
UNARY |= {"exp": math.exp, "log": math.log, "sqrt": math.sqrt}


def computed(tokens, values):
    """The value of a formula whose operands stand before their sign."""
    stack = []
    for token in tokens:
        if token in BINARY:
            right = stack.pop()
            stack.append(BINARY[token](stack.pop(), right))
        elif token in UNARY:
            stack.append(UNARY[token](stack.pop()))
        elif token == "=IfExp":
            otherwise, body, test = stack.pop(), stack.pop(), stack.pop()
            stack.append(body if test else otherwise)
        else:
            stack.append(values[token] if isinstance(token, str) else token)
    (value,) = stack
    return value


@pytest.mark.parametrize(
    ("expression", "b", "value"),
    [
        ("1 - 2 - 3", 0, -4),
        ("-b**2 + +3", 2, -1),
        ("2**-b", 1, 0.5),
        ("1 if b > 1 else 2", 1, 2),
        ("1 if 0 < b <= 1 and not b == 3 else 2", 1, 1),
        ("1 if b < 0 or b >= 5 or b != 4 else 2 if b > 3 else 3", 4, 2),
        ("sqrt(exp(log(b)))", 4, 2),
        ("Lt + (b < Lt)", 4, 6),
    ],
)
def test_formulas_have_the_value_that_python_gives_them(expression, b, value):
    assert computed(formula_tokens(expression), {"b": b, "Lt": 5}) == pytest.approx(value)


@pytest.mark.parametrize("name", MODELS)
def test_formulas_of_models_have_the_value_of_the_model(name):
    model, protocol = MODELS[name], Protocol([800], te=[70])
    truth = {"S0": 300, "f": 0.2, "T2v": 150, "T2t": 80, "K": 0.7}
    values = {one: truth.get(one, 1.1) for one in model.names}
    signal = computed(formula_tokens(model.expression), values | {"b": 0.8, "te": 70})
    assert signal == pytest.approx(model.signal(list(values.values()), protocol)[0, 0], rel=1e-12)


def test_a_function_has_no_formula_and_foreign_syntax_is_refused():
    parameters = [Parameter("S0", "signal", 0, 10), Parameter("D", "µm²/ms", 0, 3)]
    assert formula_tokens(SignalModel.from_expression("S0*exp(-b*D)", parameters, name="x").expression)
    assert formula_tokens(None) is None
    with pytest.raises(ValueError, match="cannot hold"):
        formula_tokens("[b]")


def test_the_first_voxel_is_a_sound_one_in_the_middle_of_the_largest_part():
    status = np.full((30, 9, 1), OUTSIDE, np.uint8)
    status[:9] = FitStatus.CONVERGED
    status[25:, :3] = FitStatus.CONVERGED
    rows = np.cumsum(status != OUTSIDE, dtype=np.int32).reshape(status.shape) * (status != OUTSIDE)
    nothing = np.zeros(rows.max(), np.float32)
    signals = VoxelSignals(rows, nothing[:, None], Protocol([0]), nothing, scatter=nothing, counts=np.ones(1, int))
    doubt = np.zeros(status.shape, np.uint8)
    sidecar = {"Parameters": {"S0": {}, "ADC": {}}}
    records = VoxelRecords({"status": status, "doubt": doubt}, sidecar, signals)
    assert records.start == (4, 4, 0)
    doubt[4, 3:6] = 1
    status[3:6, 4] = FitStatus.AT_BOUND
    assert records.start == (3, 3, 0)
    # Far away, a sound voxel is not preferred.
    doubt[1:8, 1:8] = 3
    status[4, 4] = FitStatus.CONVERGED
    assert records.start == (4, 4, 0)


def test_numbers_keep_four_digits_whatever_their_size():
    rng = np.random.default_rng(0)
    numbers = np.concatenate([
        [0, -1, 65504, 1e-30, 3e38, np.nan, np.inf, -np.inf],
        rng.normal(size=500) * 10 ** rng.uniform(-9, 9, 500),
    ]).astype(np.float32)  # fmt: skip
    raw = np.frombuffer(gzip.decompress(base64.b64decode(pack_numbers(numbers))), np.uint8).reshape(3, -1)
    bits = np.zeros((len(numbers), 4), np.uint8)
    bits[:, :3] = raw.T
    read = bits.view(">f4").ravel()
    np.testing.assert_allclose(read, numbers, rtol=2.0**-14)
    assert np.isnan(read[5])
    assert read[0] == 0
