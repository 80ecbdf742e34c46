"""Signals of another protocol, computed by a model that was fitted to measured signals."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit._utils.checks import filled
from dmrifit._utils.randomness import RandomState, Seed
from dmrifit.engine.fit_settings import FitSettings
from dmrifit.engine.fitting import fit_voxels
from dmrifit.engine.models import SignalModel, check_has_echo_times, resolve_model
from dmrifit.engine.protocol import Protocol, check_columns, match_contrasts

__all__ = ["resynthesize"]


def resynthesize(
    signals: ArrayLike,
    protocol: Protocol,
    wanted: Protocol,
    model: str | SignalModel,
    *,
    parameters: ArrayLike | None = None,
    sigma: ArrayLike | None = None,
    random_state: RandomState = None,
) -> NDArray[np.float64]:
    """
    Compute the signals of another protocol: measured ones are kept, others come from a fit.

    Scans of one scanner can then train an estimator for the protocol of another. Computed signals
    are only as good as the model; where contrasts lie outside the measured ones, in b-value or
    echo time, they are an extrapolation.

    Parameters
    ----------
    signals : array_like of shape (n_voxels, n_measurements)
        Magnitudes on any common scale.
    protocol : Protocol
        The measurements of the columns, each contrast once.
    wanted : Protocol
        The contrasts of the result. Those that the protocol has are kept as they were measured.
    model : str or SignalModel
        What is fitted, or was.
    parameters : array_like of shape (n_voxels, n_parameters), optional
        The fit to the signals, when it is known already.
    sigma : float or array_like of shape (n_voxels,), optional
        Standard deviation of the noise, in the unit of the signals. Rician noise of that level is
        added to the computed signals, so that they are as noisy as the measured ones; the fit made
        here then has a noise floor, because the floor would enter twice otherwise.
    random_state : int, RandomState or None, optional
        Seed of that noise.

    Returns
    -------
    ndarray of shape (n_voxels, n_wanted)
        Signals in the unit of the input. Computed ones are NaN in voxels without parameters.

    Raises
    ------
    ValueError
        If shapes do not fit together, only one protocol has echo times, the model needs them and
        there are none, a measured contrast stands in the protocol twice, or sigma is negative.

    References
    ----------
    Gudbjartsson and Patz, Magn Reson Med 34:910–914, 1995 (Rician noise).

    Examples
    --------
    >>> measured, wanted = Protocol([0, 400, 800]), Protocol([0, 1000])
    >>> resynthesize([[100.0, 67.032, 44.933]], measured, wanted, "adc").round(1).tolist()
    [[100.0, 36.8]]
    """
    model = resolve_model(model)
    measured = np.asarray(filled(signals), dtype=np.float64)
    check_columns(measured, protocol, "signals")
    if (wanted.te is None) != (protocol.te is None):
        raise ValueError("only one of the two protocols has echo times; give both or none")
    # Raises an error that names the contrasts that were measured twice.
    protocol.indices_in(protocol)
    check_has_echo_times(wanted, model)
    noise = FitSettings(sigma=sigma).noise_levels(len(measured))
    out = np.empty((len(measured), len(wanted)))
    is_measured = np.ones(len(wanted), bool)
    is_measured[list(missing_contrasts(wanted, protocol))] = False
    if is_measured.any():
        columns = wanted.take(np.flatnonzero(is_measured)).indices_in(protocol)
        out[:, is_measured] = measured[:, columns]
    if is_measured.all():
        return out
    if parameters is None:
        fit = fit_voxels(measured, protocol, model, method="nlls", sigma=noise)
        parameters = fit.parameters
    values = np.asarray(parameters, dtype=np.float64)
    if values.shape != (len(measured), len(model.names)):
        raise ValueError(
            f"parameters must have shape ({len(measured)}, {len(model.names)}): one row per "
            "voxel, "
            f"columns {', '.join(model.names)}; not {values.shape}"
        )
    computed = model.signal(values, wanted.take(np.flatnonzero(~is_measured)))
    if noise is not None:
        rng = Seed(random_state).rng("resynthesis")
        # Magnitudes of complex Gaussian noise: Rician, as that of the measured signals.
        real, imaginary = noise[None, :, None] * rng.standard_normal((2, *computed.shape))
        computed = np.hypot(computed + real, imaginary)
    out[:, ~is_measured] = computed
    return out


@cache
def missing_contrasts(wanted: Protocol, protocol: Protocol) -> tuple[int, ...]:
    """Find the indices of wanted contrasts that a protocol lacks or has more than once."""
    if (wanted.te is None) != (protocol.te is None):
        return tuple(range(len(wanted)))
    missing, repeated, _ = match_contrasts(wanted, protocol)
    return tuple(np.flatnonzero(missing | repeated).tolist())
