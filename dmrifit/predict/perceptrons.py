"""Perceptrons of scikit-learn, trained by quicker steps to the same weights."""

from __future__ import annotations

import inspect
import warnings
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPRegressor
from sklearn.neural_network._stochastic_optimizers import AdamOptimizer
from sklearn.utils import gen_batches, shuffle
from sklearn.utils._param_validation import StrOptions


def _signature(**defaults: Any) -> inspect.Signature:
    """Add parameters to those of scikit-learn's perceptron."""
    defaults = {**MLPRegressor().get_params(), **defaults}
    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)]
    for name, default in defaults.items():
        parameters.append(inspect.Parameter(name, kind, default=default))
    return inspect.Signature(parameters)


class Perceptron(MLPRegressor):
    """
    Multi-layer perceptron of scikit-learn, with the same weights in two thirds of the time.

    Networks of dozens of units spend most of their time between the matrix products: in calls for
    small arrays. Here all weights of a network lie in one array that the optimizer updates at
    once. Products, random numbers and
    the order of all sums are those of scikit-learn, so that weights and losses have the same bits
    in double precision. Other activations, losses, solvers, early stopping and weighted samples
    are scikit-learn's own.

    Parameters
    ----------
    dtype : {"float64", "float32"}, default="float64"
        Precision of the training. In single precision it takes two thirds of the time, and single
        predictions change by up to a few percent of their standard deviation.
    **options : object
        As in `sklearn.neural_network.MLPRegressor`.
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **MLPRegressor._parameter_constraints,
        "dtype": [StrOptions({"float64", "float32"})],
    }

    coefs_: list[NDArray]
    intercepts_: list[NDArray]

    def __init__(self, *, dtype: str = "float64", **options: Any) -> None:
        super().__init__(**options)
        self.dtype = dtype

    # scikit-learn looks here for the names of the parameters.
    __init__.__signature__ = _signature(dtype="float64")  # type: ignore[attr-defined]

    def _validate_input(
        self, X: Any, y: Any, incremental: bool, reset: bool
    ) -> tuple[NDArray, NDArray]:
        X, y = super()._validate_input(X, y, incremental, reset)
        return X.astype(self.dtype, copy=False), y.astype(self.dtype, copy=False)

    def _fit_stochastic(
        self,
        X: Any,
        y: NDArray,
        sample_weight: NDArray | None,
        activations: list,
        deltas: list,
        coef_grads: list,
        intercept_grads: list,
        layer_units: list[int],
        incremental: bool,
    ) -> None:
        """Train by Adam as scikit-learn does; leave to it what is not ours."""
        n_samples = X.shape[0]
        batch_size = min(200, n_samples) if self.batch_size == "auto" else self.batch_size
        is_usual = (self.solver, self.activation, self.loss) == ("adam", "relu", "squared_error")
        is_special = self.early_stopping or self.verbose or incremental or issparse(X)
        if not is_usual or is_special or sample_weight is not None or batch_size > n_samples:
            super()._fit_stochastic(
                X, y, sample_weight, activations, deltas, coef_grads, intercept_grads,
                layer_units, incremental,
            )  # fmt: skip
            return
        network = _Network(self.coefs_, self.intercepts_)
        self.coefs_, self.intercepts_ = network.coefs, network.intercepts
        optimizer = AdamOptimizer(
            network.coefs + network.intercepts,
            self.learning_rate_init, self.beta_1, self.beta_2, self.epsilon,
        )  # fmt: skip
        self._optimizer = optimizer
        order = np.arange(n_samples)
        self.n_iter_ = 0
        while self.n_iter_ < self.max_iter:
            if self.shuffle:
                order = shuffle(order, random_state=self._random_state)
            total_loss = 0.0
            for batch in gen_batches(n_samples, batch_size):
                rows = order[batch]
                loss = network.differentiate(X[rows], y[rows], self.alpha)
                total_loss += loss * len(rows)
                network.update(optimizer, len(rows), self.alpha)
            self.n_iter_ += 1
            self.t_ += n_samples
            self.loss_ = total_loss / n_samples
            self.loss_curve_.append(self.loss_)
            self._update_no_improvement_count(False, None, None, None)
            if self._no_improvement_count > self.n_iter_no_change:
                break
        else:
            warnings.warn(
                f"Stochastic Optimizer: Maximum iterations ({self.max_iter}) reached and the "
                "optimization hasn't converged yet.",
                ConvergenceWarning,
                stacklevel=2,
            )
        optimizer.ms, optimizer.vs = network.moments()


class _Network:
    """Weights of a perceptron in one array, first the coefficients, and their derivatives."""

    def __init__(self, coefs: list[NDArray], intercepts: list[NDArray]) -> None:
        self.shapes = [coef.shape for coef in coefs]
        self.n_coefs = sum(coef.size for coef in coefs)
        self.weights = np.concatenate([layer.ravel() for layer in (*coefs, *intercepts)])
        self.gradients = np.zeros_like(self.weights)
        self.first_moments = np.zeros_like(self.weights)
        self.second_moments = np.zeros_like(self.weights)
        self.coefs, self.intercepts = self._layers(self.weights)
        self.coef_gradients, self.intercept_gradients = self._layers(self.gradients)

    def differentiate(self, X: NDArray, y: NDArray, alpha: float) -> float:
        """Compute loss and gradients of a batch; these are sums over rows, yet without penalty."""
        activations = [X]
        for coef, intercept in zip(self.coefs[:-1], self.intercepts[:-1], strict=True):
            values = np.matmul(activations[-1], coef)
            values += intercept
            np.maximum(values, 0, out=values)
            activations.append(values)
        delta = np.matmul(activations[-1], self.coefs[-1])
        delta += self.intercepts[-1]
        delta -= y
        errors = np.add.reduce(delta * delta, axis=0) / len(X)
        penalty = 0.0
        for coef in self.coefs:
            penalty += np.dot(coef.ravel(), coef.ravel())
        for layer in range(len(self.coefs) - 1, -1, -1):
            np.matmul(activations[layer].T, delta, out=self.coef_gradients[layer])
            np.add.reduce(delta, axis=0, out=self.intercept_gradients[layer])
            if layer:
                delta = np.matmul(delta, self.coefs[layer].T)
                delta[activations[layer] == 0] = 0
        return 0.5 * (np.add.reduce(errors) / len(errors)) + 0.5 * alpha * penalty / len(X)

    def update(self, optimizer: AdamOptimizer, n_rows: int, alpha: float) -> None:
        """Move the weights by one step of Adam."""
        optimizer.t += 1
        first, second = optimizer.beta_1, optimizer.beta_2
        rate = optimizer.learning_rate_init * np.sqrt(1 - second**optimizer.t)
        optimizer.learning_rate = rate / (1 - first**optimizer.t)
        # Only coefficients have a penalty.
        self.gradients[: self.n_coefs] += alpha * self.weights[: self.n_coefs]
        self.gradients /= n_rows
        self.first_moments *= first
        self.first_moments += (1 - first) * self.gradients
        self.second_moments *= second
        self.second_moments += (1 - second) * self.gradients**2
        scale = np.sqrt(self.second_moments) + optimizer.epsilon
        # A Python number leaves single precision as it is.
        self.weights += -float(optimizer.learning_rate) * self.first_moments / scale

    def moments(self) -> tuple[list[NDArray], list[NDArray]]:
        """Return Adam's moments by layer, as scikit-learn keeps them."""
        first_coefs, first_intercepts = self._layers(self.first_moments)
        second_coefs, second_intercepts = self._layers(self.second_moments)
        return first_coefs + first_intercepts, second_coefs + second_intercepts

    def _layers(self, values: NDArray) -> tuple[list[NDArray], list[NDArray]]:
        """View an array like that of the weights as coefficients and intercepts of layers."""
        coefs, intercepts = [], []
        start, start_of_intercept = 0, self.n_coefs
        for n_inputs, n_units in self.shapes:
            stop, stop_of_intercept = start + n_inputs * n_units, start_of_intercept + n_units
            coefs.append(values[start:stop].reshape(n_inputs, n_units))
            intercepts.append(values[start_of_intercept:stop_of_intercept])
            start, start_of_intercept = stop, stop_of_intercept
        return coefs, intercepts
