"""Signal models: their signals, and the built-in ones by name."""

from __future__ import annotations

import operator
import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit._optional import plugin_errors
from dmrifit._utils.counts import counted
from dmrifit.engine.formulas.custom_models import read_function
from dmrifit.engine.formulas.model_formula import (
    COMPARISONS,
    FUNCTIONS,
    Arithmetic,
    ModelFormula,
    Parameter,
    evaluated,
)
from dmrifit.engine.kernels import compiler
from dmrifit.engine.protocol import TE_MATCH, ZERO_B, Protocol, check_protocol

__all__ = ["MODELS", "Parameter", "SignalModel"]

_SAME_TE = 0.1  # ms, up to which echo times are one
_ARRAYS = Arithmetic(
    number=lambda number: number,
    power=operator.pow,
    functions=FUNCTIONS,
    comparisons=COMPARISONS,
    choice=np.where,
    both=operator.and_,
    either=operator.or_,
    negation=np.logical_not,
)


class SignalModel(ModelFormula):
    """
    A model of the signal as a function of b, echo time and a few parameters.

    Made by `from_expression` or `from_function`, or taken from `MODELS`.

    Parameters
    ----------
    name : str
        A short name.
    parameters : tuple of Parameter
        In the order of the columns of every parameter array.
    expression : str
        The signal, in Python syntax, of the parameters' names, ``b`` in ms/µm² and ``te`` in ms,
        with ``+ - * / **``, ``exp``, ``log``, ``sqrt``, numbers, and ``x if b > 0 else y``, whose
        condition compares such terms and may join comparisons by ``and``, ``or``, ``not``.
    published_bounds : mapping of str to (float, float), optional
        Bounds of a published fitting tool, for ``fit_voxels(..., bounds="published")``.
    cumulant : (str, str), optional
        Names of the kurtosis K and the diffusivity D of a cumulant −bD + K(bD)²/6, which turns up
        beyond b·D = 3/K: what ``fit_voxels(..., bounds={"K": (0, "monotonic")})`` keeps out of the
        protocol.
    source : str, optional
        Instead of an expression, the source of a function that numba can compile.
    default_method : str, default="nlls"
        The method of `fit_voxels` that the model is fitted by where none is asked for.
    keeps_falling : bool, default=False
        Whether the kurtosis has the upper bound ``"monotonic"`` where a fit gives it no bounds.
    references : tuple of str, optional
        Publications to cite.

    Raises
    ------
    ValueError
        If the expression uses anything else, leaves out a parameter, or names repeat.
    """

    @classmethod
    def from_expression(
        cls, expression: str, parameters: Sequence[Parameter], *, name: str
    ) -> SignalModel:
        """
        Make a model from a formula; derivatives come from sympy when it is first fitted.

        Parameters
        ----------
        expression : str
            Such as ``"S0*exp(-b*D)"``: inside, b is in ms/µm² (the file's value / 1000) and te in
            ms, so that b·D is dimensionless with D in µm²/ms.
        parameters : sequence of Parameter
            One for each other name, in the wanted order of columns.
        name : str
            A short name.

        Returns
        -------
        SignalModel
            The model.

        Raises
        ------
        ValueError
            If the expression is not arithmetic of those names.
        """
        return cls(name, tuple(parameters), expression)

    @classmethod
    def from_function(
        cls, function: Callable, parameters: Sequence[Parameter], *, name: str
    ) -> SignalModel:
        """
        Make a model from a function of one measurement.

        Arithmetic, ``if``, conditional expressions, ``min``, ``max``, ``abs`` and loops whose
        length no argument decides become an expression, and fit as fast as one. Any other function
        that numba can compile (special functions of `math`, loops until a condition of arguments)
        is called as it is, with derivatives by finite differences, many times slower, which a
        warning says.

        Parameters
        ----------
        function : callable
            ``function(b, *parameters)`` or ``function(b, te, *parameters)``, arguments named as
            the parameters; returns the signal of one measurement as a number. Inside, b is in
            ms/µm² and te in ms. It may use `math`, `numpy` and numbers from around it, which are
            copied.
        parameters : sequence of Parameter
            In the wanted order of columns.
        name : str
            A short name.

        Returns
        -------
        SignalModel
            The model.

        Raises
        ------
        ValueError
            If the source cannot be read, arguments and parameters differ, or the function uses
            something that cannot be copied.
        """
        expression, source = read_function(function, [parameter.name for parameter in parameters])
        return cls(name, tuple(parameters), expression, source=source)

    def by_echo_time(self, protocol: Protocol) -> SignalModel:
        """
        Give amplitudes and signal fractions a value at each echo time, without a model of T2.

        Diffusivities and kurtosis are common to all echo times.

        Parameters
        ----------
        protocol : Protocol
            The measurements, with two echo times or more, those up to 0.1 ms apart counted as one.

        Returns
        -------
        SignalModel
            The model ``"<name>-by-te"``, whose parameters S0 and f are ``S0te50``, ``S0te90``
            and so on, named by the echo times in ms.

        Raises
        ------
        ValueError
            If the model describes relaxation itself, or the protocol has fewer than two echo
            times.

        Examples
        --------
        >>> from dmrifit import Protocol
        >>> MODELS["adc"].by_echo_time(Protocol([0, 800] * 2, te=[50, 50, 90, 90])).names
        ('S0te50', 'S0te90', 'ADC')
        """
        check_protocol(protocol)
        if self.needs_te or self.source:
            raise ValueError(
                f"model {self.name} cannot be fitted by echo time: take a formula without te, "
                "such as adc, kurtosis or ivim"
            )
        te = np.sort([] if protocol.te is None else protocol.te)
        # Echo times that scatter count as one, whichever side of a round number they are on.
        groups = np.split(te, np.flatnonzero(np.diff(te) > _SAME_TE + 1e-6) + 1)
        times = np.array([round(group.mean(), 1) for group in groups if len(group)])
        if len(times) < 2:
            raise ValueError(
                f"a fit by echo time needs two echo times or more, and the protocol has "
                f"{len(times) or 'none'}; fit model {self.name} itself"
            )
        middles = [(one[-1] + other[0]) / 2 for one, other in pairwise(groups)]
        parameters: list[Parameter] = []
        formula = self.expression
        for parameter in self.parameters:
            is_fraction = (parameter.unit, parameter.low, parameter.high) == ("", 0.0, 1.0)
            if not (parameter.is_amplitude or is_fraction):
                parameters.append(parameter)
                continue
            names = [f"{parameter.name}te{time:g}".replace(".", "p") for time in times]
            parameters += [replace(parameter, name=name) for name in names]
            chosen = names[-1]
            for name, middle in zip(names[-2::-1], middles[::-1], strict=True):
                chosen = f"({name} if te < {middle:g} else {chosen})"
            formula = re.sub(rf"\b{parameter.name}\b", chosen, formula)
        name, free = f"{self.name}-by-te", tuple(parameters)
        return replace(self, name=name, parameters=free, expression=formula, published_bounds=None)

    def signal(self, parameters: ArrayLike, protocol: Protocol) -> NDArray[np.float64]:
        """
        Compute the signal.

        Parameters
        ----------
        parameters : array_like of shape (n_voxels, n_parameters)
            In the order of `names`, in the units of `units`; one row may be given as
            (n_parameters,).
        protocol : Protocol
            The measurements.

        Returns
        -------
        ndarray of shape (n_voxels, n_measurements)
            The signal without noise or noise floor.

        Raises
        ------
        ValueError
            If the number of columns is wrong, or the model needs echo times and the protocol has
            none.
        """
        check_protocol(protocol)
        values = np.atleast_2d(np.asarray(parameters, dtype=float))
        if values.ndim != 2 or values.shape[1] != len(self.parameters):
            raise ValueError(
                f"model {self.name} has {counted(len(self.parameters), 'parameter')} "
                f"{self.names}; got shape {values.shape}"
            )
        check_has_echo_times(protocol, self)
        b = protocol.b_ms_per_um2
        te = np.zeros(len(protocol)) if protocol.te is None else protocol.te
        if self.source:
            contrasts = np.stack([b, te], axis=1)
            return compiler.load(self).signals_of(np.ascontiguousarray(values), contrasts)
        columns = {name: values[:, i, None] for i, name in enumerate(self.names)}
        with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
            signal = evaluated(self.expression, {"b": b, "te": te, **columns}, _ARRAYS)
        return np.array(np.broadcast_to(signal, (len(values), len(protocol))))


@cache
def read_table(name: str) -> dict[str, Any]:
    """Read a table of the folder ``data``."""
    return tomllib.loads(
        files("dmrifit.engine").joinpath("data", f"{name}.toml").read_text("utf-8")
    )


_DATA = read_table("signal_models")


def _built_in(name: str, entry: dict[str, Any]) -> SignalModel:
    """Make a model of its entry in the table, in which lists stand for tuples."""
    fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()
    }
    fields["parameters"] = [Parameter(**row) for row in entry["parameters"]]
    if "published_bounds" in entry:
        bounds = entry["published_bounds"].items()
        fields["published_bounds"] = {parameter: tuple(pair) for parameter, pair in bounds}
    return SignalModel(name, **fields)


#: The built-in models by name, of ``dmrifit/engine/data/signal_models.toml``.
MODELS: dict[str, SignalModel] = {
    name: _built_in(name, entry) for name, entry in _DATA["models"].items()
}

#: Values of typical tissue by the name of a parameter.
TYPICAL_TISSUE: dict[str, float] = _DATA["typical_tissue"]

#: Entry points of this group name signal models that other packages bring, loaded when asked for.
PLUGINS = "dmrifit.signal_models"


def resolve_model(model: object) -> SignalModel:
    """Return a model given by name or as it is."""
    if isinstance(model, SignalModel):
        return model
    if not isinstance(model, str):
        raise TypeError(f"model must be a name or a SignalModel, not {type(model).__name__}")
    name = model.lower()
    if name in MODELS:
        return MODELS[name]
    plugins = _plugins()
    if name in plugins:
        entry = plugins[name]
        with plugin_errors(entry):
            plugin = entry.load()
            # It has to bear the name that it is asked for by.
            if not isinstance(plugin, SignalModel) or plugin.name.lower() != name:
                raise TypeError("it is no SignalModel of that name")
        return plugin
    names = [*MODELS, *plugins]
    similar = _DATA["other_names"].get(name) or next(iter(get_close_matches(name, names, 1)), None)
    hint = f"did you mean {similar}? " if similar else ""
    raise ValueError(f"no model {model!r}; {hint}choose one of {', '.join(names)}")


def _plugins() -> dict[str, EntryPoint]:
    """List the models of installed packages by name."""
    return {entry.name.lower(): entry for entry in entry_points(group=PLUGINS)}


def python_words(text: str) -> str:
    """Write options in a text as Python names them."""
    for pattern, words in read_table("sentences")["python"].items():
        text = re.sub(pattern, words, text)
    return text


def option_words(text: str, model: str) -> str:
    """Write options in a text as Python names them, where the command does not know the model."""
    is_known = model.lower().removesuffix("-by-te") in [*MODELS, *_plugins()]
    return text if is_known else python_words(text)


def check_has_echo_times(protocol: Protocol, model: SignalModel) -> None:
    """Refuse a protocol without the echo times that a model needs."""
    if model.needs_te and protocol.te is None:
        raise ValueError(
            f"model {model.name} needs echo times; give them to the protocol (te in ms)"
        )


def check_echo_times(protocol: Protocol, model: SignalModel) -> None:
    """Refuse a protocol whose echo times a model cannot explain."""
    check_protocol(protocol)
    check_has_echo_times(protocol, model)
    if not model.needs_te and protocol.te is not None and np.ptp(protocol.te) > TE_MATCH:
        times = ", ".join(f"{te:g}" for te in np.unique(protocol.te))
        raise ValueError(
            f"model {model.name} does not include relaxation, but the protocol has echo times "
            f"{times} ms; take the measurements of one echo time (protocol.take), a model with "
            "T2, or S0 by echo time (model.by_echo_time(protocol))"
        )
    if model == MODELS["t2"] and np.ptp(protocol.b) > max(ZERO_B, 0.05 * protocol.b.max()):
        raise ValueError(
            "model t2 does not include diffusion, but the protocol has b-values up to "
            f"{protocol.b.max():g} s/mm²; leave out all but the lowest one (--b-max), or take a "
            "model with ADC"
        )
