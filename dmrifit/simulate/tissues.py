"""Tissues of synthetic patients: types of tumor, variation between and within patients."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from dmrifit.engine.models import MODELS
from dmrifit.engine.protocol import Protocol

#: The model whose parameters tissues have.
MODEL = MODELS["t2-ivim-kurtosis"]

_TEXTURE_MM = 5.0  # standard deviation of the smoothing that makes textures

# The cumulant of the kurtosis model turns up at b·Dt = 3/K: no tissue does, so K stays below
# 3/(b·Dt) for the largest b that is measured, and for this one (ms/µm²) when less is measured.
_LARGEST_STUDY_B = 1.6
_TURNING_MARGIN = 0.9


def data_rows(name: str) -> list[dict[str, str]]:
    """Read the rows of a table of this package."""
    text = files("dmrifit.simulate").joinpath("data", name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


@cache
def tissue_table() -> Mapping[str, Mapping[str, NDArray[np.float64]]]:
    """
    Return the tissue parameters of synthetic patients.

    They are read from ``dmrifit/simulate/data/tissues.csv``, which names the source of each row;
    each entry has shape (7,), one value per model parameter.

    References
    ----------
    De Bazelaire et al., Radiology 230:652–659, 2004 (relaxation times of abdomen and pelvis at 3
    T); Rosenkrantz et al., Radiology 264:126–135, 2012 (kurtosis of prostate and prostate cancer).
    Rows that name no source are assumed.
    """
    table: dict[str, dict[str, NDArray[np.float64]]] = {}
    for row in data_rows("tissues.csv"):
        values = np.array([float(row[name]) for name in MODEL.names])
        values.flags.writeable = False
        table.setdefault(row["kind"], {})[row["name"]] = values
    # Read-only, because all callers share the cached table.
    return MappingProxyType({group: MappingProxyType(rows) for group, rows in table.items()})


def draw_means(
    field: float, tumor_types: Sequence[str], patient_variation: float, rng: np.random.Generator
) -> tuple[dict[str, NDArray[np.float64]], str]:
    """Draw a patient's type of tumor and the mean parameters, (7,), of every tissue."""
    table = tissue_table()
    spread = log_sd(patient_variation * table["variation"]["patient"])
    tumor_type = tumor_types[int(rng.integers(len(tumor_types)))]
    means = {}
    for tissue, values in table["tissue"].items():
        factor = table["tumor_type"][tumor_type] if tissue == "tumor" else 1.0
        effect = np.exp(spread * rng.standard_normal(len(spread)))
        means[tissue] = values * table["field"][f"{field:g}"] * factor * effect
    return means, tumor_type


def draw_textures(
    shape: tuple[int, int, int],
    voxel_size: Sequence[float],
    latent_corr: float,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Draw the factors, (n_voxels, 7), by which parameters vary within tissues."""
    table = tissue_table()
    spread = log_sd(table["variation"]["voxel"])
    smoothing = [_TEXTURE_MM / size for size in voxel_size]
    latents = {name: smooth_field(shape, smoothing, rng) for name in table["latent"]}
    factors = np.empty((int(np.prod(shape)), len(spread)))
    for i in range(len(spread)):
        field = smooth_field(shape, smoothing, rng)
        for name, signs in table["latent"].items():
            # The weights keep the variance at 1 for any correlation.
            if signs[i]:
                field = (
                    np.sqrt(latent_corr) * signs[i] * latents[name]
                    + np.sqrt(1 - latent_corr) * field
                )
        factors[:, i] = np.exp(spread[i] * field)
    return factors


def limited(parameters: NDArray[np.float64], protocol: Protocol) -> NDArray[np.float64]:
    """Clip parameters, (n_voxels, 7), to the table's limits, and K below the cumulant's turn."""
    limits = tissue_table()["limit"]
    parameters = np.clip(parameters, limits["low"], limits["high"])
    b = max(float(protocol.b_ms_per_um2.max()), _LARGEST_STUDY_B)
    k, dt = MODEL.names.index("K"), MODEL.names.index("Dt")
    parameters[:, k] = np.minimum(parameters[:, k], _TURNING_MARGIN * 3 / (b * parameters[:, dt]))
    return parameters


def smooth_field(
    shape: tuple[int, int, int], smoothing: Sequence[float], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Draw a smooth random field, (n_voxels,), of mean 0 and variance 1."""
    from scipy.ndimage import gaussian_filter

    field = gaussian_filter(rng.standard_normal(shape), smoothing, mode="wrap").ravel()
    return (field - field.mean()) / field.std()


def log_sd(variation: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """Convert a log-normal coefficient of variation to the SD of the logarithm."""
    return np.sqrt(np.log1p(np.square(variation)))
