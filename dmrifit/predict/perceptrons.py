"""Perceptrons of scikit-learn with a choice of the precision that they are trained in."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

from numpy.typing import NDArray
from sklearn.neural_network import MLPRegressor
from sklearn.utils._param_validation import StrOptions


class Perceptron(MLPRegressor):
    """
    Multi-layer perceptron of scikit-learn.

    Parameters
    ----------
    dtype : {"float64", "float32"}, default="float64"
        Precision of the training. In single precision predictions change by up to a few percent of
        their standard deviation.
    **options : object
        As in `sklearn.neural_network.MLPRegressor`.
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **MLPRegressor._parameter_constraints,
        "dtype": [StrOptions({"float64", "float32"})],
    }

    def __init__(self, *, dtype: str = "float64", **options: Any) -> None:
        super().__init__(**options)
        self.dtype = dtype

    # scikit-learn looks here for the names of the parameters.
    __init__.__signature__ = inspect.Signature([  # type: ignore[attr-defined]
        inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY),
        *(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
            for name, default in {**MLPRegressor().get_params(), "dtype": "float64"}.items()
        ),
    ])  # fmt: skip

    def _validate_input(
        self, X: Any, y: Any, incremental: bool, reset: bool
    ) -> tuple[NDArray, NDArray]:
        X, y = super()._validate_input(X, y, incremental, reset)
        return X.astype(self.dtype, copy=False), y.astype(self.dtype, copy=False)
