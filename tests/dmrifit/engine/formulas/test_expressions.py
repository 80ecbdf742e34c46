"""Expressions of signal models: arithmetic and nothing else."""

import numpy as np
import pytest

from dmrifit import Parameter, SignalModel


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("S0*exp(-b*", "not Python syntax"),
        ("S0*exp(-b*D)*q", "unknown \\['q'\\]"),
        ("S0*exp(-b)", "does not use \\['D'\\]"),
        ("S0*exp(-b*D) if D else 0", "not allowed"),
        ("S0*__import__('os').getpid()*D", "not allowed"),
        ("S0.real*D", "not allowed"),
        ("S0*sin(D)", "not allowed"),
        ("S0*exp(-b*D, D)", "not allowed"),
        ("S0*'a'*D", "not allowed"),
        ("S0*True*D", "not allowed"),
        ("S0 % D", "not allowed"),
        ("(lambda: S0*D)()", "not allowed"),
    ],
)
def test_expressions_are_arithmetic_and_nothing_else(expression, message):
    parameters = [Parameter("S0", "signal", 0, np.inf), Parameter("D", "µm²/ms", 0, 5)]
    with pytest.raises(ValueError, match=message):
        SignalModel.from_expression(expression, parameters, name="mine")
