"""Synthetic voxels that both strategies are tried on."""

import numpy as np
import pytest

from dmrifit.engine.models import MODELS
from dmrifit.engine.protocol import Protocol
from dmrifit.predict.strategies import MapsToMaps, SignalToSignal

MODEL = MODELS["t2-ivim-kurtosis"]
TARGET = Protocol.preset("cohort1")


@pytest.fixture(params=[SignalToSignal, MapsToMaps], ids=lambda strategy: strategy.__name__)
def strategy(request):
    return request.param


@pytest.fixture(scope="module")
def truth():
    """Synthetic tissue whose T2t, K and S0 follow Dt, so that they can be guessed from ADC and F."""
    rng = np.random.default_rng(0)
    n = 400
    dt = rng.uniform(0.6, 1.8, n)
    return np.column_stack([
        rng.uniform(200, 400, n), rng.uniform(0.05, 0.3, n), rng.uniform(10, 40, n), rng.uniform(160, 240, n),
        dt, 1.2 - 0.4 * dt, 30 + 30 * dt,
    ])  # fmt: skip


@pytest.fixture(scope="module")
def clean(truth):
    return MODEL.signal(truth, TARGET)


@pytest.fixture(scope="module")
def noisy(clean):
    rng = np.random.default_rng(1)
    return np.abs(clean + rng.normal(0, 1, clean.shape) + 1j * rng.normal(0, 1, clean.shape))
