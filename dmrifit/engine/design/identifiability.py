"""Identifiability: which signal model a protocol can carry, and why not a richer one."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dmrifit._utils.counts import counted
from dmrifit.engine.design.precision import protocol_precision
from dmrifit.engine.kernels.layout import is_share
from dmrifit.engine.models import MODELS, TYPICAL_TISSUE, SignalModel, option_words, read_table
from dmrifit.engine.protocol import (
    TE_MATCH,
    ZERO_B,
    Protocol,
    check_protocol,
    least_weighted,
    span_text,
    split_shells,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["suggest_model"]

#: What an isotropic model describes where many directions were measured, and what to do.
ISOTROPIC: str = read_table("sentences")["protocol"]["isotropic"]

# From the richest to the simplest; what no other can be fitted to is left to the last.
_RICHEST_FIRST = ("t2-ivim-kurtosis", "t2-adc", "ivim", "kurtosis", "adc", "t2")
# The next richer model for as many echo times, where it is not the one before in this list.
_RICHER = {"ivim": "t2-ivim-kurtosis", "t2": "t2-adc"}

_PERFUSION_B = (10.0, 200.0)  # s/mm², where blood decays and tissue hardly does
# Number of b-values in that range for perfusion, and s/mm² that the highest has to exceed for a
# kurtosis: at one echo time, and at several, as in the studies (50, 100, and up to 1500 s/mm²).
_AT_ONE_TE, _AT_SEVERAL = (3, 1500.0), (2, 1400.0)


def suggest_model(protocol: Protocol) -> tuple[str, str]:
    """
    Suggest the richest built-in model that a protocol supports.

    Parameters
    ----------
    protocol : Protocol
        The measurements.

    Returns
    -------
    name : str
        A name in `MODELS`; ``"adc"``, or ``"t2"`` of several echo times at one b-value, where no
        other model can be fitted.
    reason : str
        A sentence: what the protocol has, or what the next richer model lacks.

    Raises
    ------
    ValueError
        If the protocol supports no model: all b-values and echo times are equal.
    TypeError
        If `protocol` is not a Protocol.

    Notes
    -----
    A model is identifiable if its signal has full rank at typical tissue, and there are as many
    distinct contrasts as parameters, or one more for four parameters or more, b below 10 s/mm²
    counting as 0; with perfusion it needs three b-values from 10 to 200 s/mm² and two above; with
    kurtosis one above 1500 s/mm²; with T2 two echo times. At several echo times two b-values from
    10 to 200 s/mm² and one above 1400 s/mm² are enough, as the studies have them.

    Examples
    --------
    >>> suggest_model(Protocol([0, 1000]))[0]
    'adc'
    >>> suggest_model(Protocol([0, 20, 60, 150, 400, 800]))[0]
    'ivim'
    >>> suggest_model(Protocol([0, 0, 0], te=[50, 90, 130]))[0]
    't2'
    """
    check_protocol(protocol)
    lacks: dict[str, str] = {}
    lacking = ""
    for name in _RICHEST_FIRST:
        missing = missing_for(protocol, MODELS[name])
        if not missing:
            # As they are listed, those below 10 s/mm² as well.
            n_b = len(split_shells(np.unique(protocol.b)))
            text = counted(n_b, "b-value")
            if n_b < len(np.unique(protocol.b)):
                text += " (nearly equal ones count as one)"
            if protocol.te is not None:
                n_te = len({te for _, te in nominal_contrasts(protocol)})
                text += " at one echo time" if n_te == 1 else f" at {n_te} echo times"
            verb = "supports" if n_b == 1 else "support"
            lacking = lacks.get(_RICHER.get(name, ""), lacking)
            return name, f"{text} {verb} {name}" + (f"; {lacking}" if lacking else "")
        if "f" in MODELS[name].names and not missing_for(protocol, MODELS[name], {"K"}):
            missing += ", unless kurtosis is left out (--fix K=0)"
        lacks[name] = lacking = f"{name} needs {missing}"
    remedy = "two b-values at one echo time, or two echo times at one b-value, are needed"
    measurements = f"{counted(len(protocol), 'measurement')} at b = {span_text(protocol.b)} s/mm²"
    raise ValueError(f"no model can be fitted to {measurements}: {lacks['adc']}; {remedy}")


def missing_for(protocol: Protocol, model: SignalModel, fixed: Collection[str] = ()) -> str:
    """Say what a protocol lacks to determine the free parameters; an empty text if nothing."""
    contrasts = nominal_contrasts(protocol)
    b = {b for b, _ in contrasts}
    n_te = len({te for _, te in contrasts})
    free = set(model.names) - set(fixed)
    relaxation_is_free = any(p.unit == "ms" and p.name in free for p in model.parameters)
    if relaxation_is_free and (protocol.te is None or n_te < 2):
        n_given = 0 if protocol.te is None else n_te
        return f"two echo times or more, and the protocol has {n_given or 'none'}"
    if not model.needs_te and n_te > 1:
        return (
            "one echo time (one image alone, or S0 by echo time: --by-te), and the protocol has "
            f"{n_te}"
        )
    if model == MODELS["t2"] and len(b) > 1:
        return "one b-value (the lowest alone: --b-max), and the protocol has several"
    # Two points make a line and three a parabola: usual protocols of ADC and kurtosis.
    n_needed = len(free) if len(free) <= 3 else len(free) + 1
    if len(contrasts) < n_needed:
        return f"{n_needed} different contrasts, and the protocol has {len(contrasts)}"
    # With echo times fewer b-values are enough: blood and tissue differ in T2 as well.
    fewest, _ = _AT_ONE_TE if n_te == 1 else _AT_SEVERAL
    if {"f", "Dv"} <= free:
        n_perfusion = sum(_PERFUSION_B[0] <= value <= _PERFUSION_B[1] for value in b)
        n_tissue = sum(value > _PERFUSION_B[1] for value in b)
        if n_perfusion < fewest:
            number = ("two", "three")[fewest - 2]
            return f"{number} b-values from 10 to 200 s/mm², and the protocol has {n_perfusion}"
        if n_tissue < 2:
            return f"two b-values above 200 s/mm², and the protocol has {n_tissue}"
    if "K" in free and (lack := missing_high_b(protocol)):
        return lack
    try:
        expected = expected_precision(protocol, model, fixed)
    except ValueError:  # no finite derivative: typical tissue is unknown for a user's model
        return ""
    undetermined = expected.loc[np.isinf(expected["cv"]), "parameter"]
    if len(undetermined):
        return f"measurements that distinguish {' from '.join(undetermined)}"
    return ""


def missing_high_b(protocol: Protocol) -> str:
    """Say which b-value a protocol lacks to determine a kurtosis; an empty text if none."""
    b, te = map(set, zip(*nominal_contrasts(protocol), strict=True))
    _, limit = _AT_ONE_TE if len(te) == 1 else _AT_SEVERAL
    if max(b) > limit:
        return ""
    return f"a b-value above {limit:g} s/mm², and the highest is {max(b):g}"


def separating_remedy(protocol: Protocol, model: SignalModel, fixed: Collection[str] = ()) -> str:
    """Say what helps where a protocol does not determine the free parameters of a model."""
    free = [parameter for parameter in model.parameters if parameter.name not in fixed]
    names = [parameter.name for parameter in free if parameter.unit == "ms"]
    simpler = "a model without relaxation"
    if not names or protocol.te is None or np.ptp(protocol.te) > 0:
        simpler = "a simpler model"
        # Amplitude and fractions are what is measured; diffusivities come after them.
        others = [p.name for p in reversed(free) if not (p.is_amplitude or is_share(p))]
        names = [n for n in others if not missing_for(protocol, model, {*fixed, n})][:1]
    tissue = dict(zip(model.names, typical_tissue(model), strict=True))
    options = " ".join(f"--fix {name}={tissue[name]:g}" for name in names)
    values = f"fix what is not known ({options}), or " if names else ""
    return option_words(f"{values}choose {simpler}", model.name)


def expected_precision(
    protocol: Protocol, model: SignalModel, fixed: Collection[str] = (), snr: float = 1.0
) -> pd.DataFrame:
    """
    Compute the precision of a protocol in typical tissue, as `protocol_precision` does.

    `snr` is that of the signal without weighting by diffusion or relaxation.
    """
    tissue = typical_tissue(model)
    return protocol_precision(protocol, model, tissue, 1 / snr, fixed=tuple(fixed))


def snr_of_amplitude(snr: float, protocol: Protocol, model: SignalModel) -> float:
    """
    Convert the SNR of the least weighted signal to that of a signal of 1.

    In typical tissue; NaN for a model without amplitude, or where nothing remains.
    """
    tissue = typical_tissue(model)
    with np.errstate(all="ignore"):
        remaining = model.signal(tissue, protocol)[0, least_weighted(protocol)[0]]
        converted = float(snr / remaining)
    if not any(parameter.is_amplitude for parameter in model.parameters):
        return np.nan
    return converted if np.isfinite(converted) and converted > 0 else np.nan


def nominal_contrasts(protocol: Protocol) -> set[tuple[float, float]]:
    """Find the distinct (b, TE) in s/mm² and ms; b-values that scatter around one are one."""
    weighted_b = np.where(protocol.b < ZERO_B, 0.0, protocol.b)
    nominal_b: dict[float, float] = {}
    for shell in split_shells(np.unique(weighted_b)):
        nominal_b |= dict.fromkeys(shell.tolist(), float(shell[0]))
    te = protocol.te
    if te is None or np.ptp(te) <= TE_MATCH:
        te = np.zeros(len(protocol))
    nominal_te = np.round(te / TE_MATCH) * TE_MATCH
    return {(nominal_b[b], float(te)) for b, te in zip(weighted_b, nominal_te, strict=True)}


def typical_tissue(model: SignalModel) -> NDArray[np.float64]:
    """
    Choose values of typical tissue for the parameters of a model.

    Shapes: returns (n_parameters,).
    """
    values = []
    for parameter in model.parameters:
        low, high = parameter.low, parameter.high
        middle = (low + high) / 2 if np.isfinite(high - low) else max(low, 1.0)
        # A parameter by echo time, such as fte50, is that of the tissue.
        name, *te = re.split(r"te(?=\d+(?:p\d+)?$)", parameter.name)
        value = TYPICAL_TISSUE.get(name, middle)
        if te and parameter.is_amplitude:
            value *= np.exp(-float(te[0].replace("p", ".")) / TYPICAL_TISSUE["T2t"])
        values.append(np.clip(value, low, high))
    return np.array(values)
