"""What synthetic patients are made of: tissues, types of tumor, variation between patients and within tissues."""

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

__all__ = ["MODEL", "draw_means", "draw_textures", "limited", "log_sd", "smooth_field", "tissue_table"]

#: The model whose parameters tissues have.
MODEL = MODELS["t2-ivim-kurtosis"]

_TEXTURE_MM = 5.0  # standard deviation of the smoothing that makes textures

# The cumulant of the kurtosis model turns up at b·Dt = 3/K: no tissue does, so K stays below 3/(b·Dt)
# for the largest b that is measured, and for this one (ms/µm²) when less is measured.
_LARGEST_STUDY_B = 1.6
_TURNING_MARGIN = 0.9


@cache
def tissue_table() -> Mapping[str, Mapping[str, NDArray[np.float64]]]:
    """
    Return the numbers that synthetic patients are made of.

    They stand in one file, ``dmrifit/simulate/data/tissues.csv``, with the source of each row.

    Returns
    -------
    mapping of str to mapping of str to ndarray of shape (7,)
        For each kind (``tissue``, ``tumor_type``, ``field``, ``variation``, ``latent``, ``limit``) the
        rows by name, in the order S0, f, Dv, T2v, Dt, K, T2t. Of a tissue: S0 relative to the liver,
        diffusivities in µm²/ms, T2 in ms at 1.5 T. Of types and fields: factors. Of variations:
        coefficients of variation.

    References
    ----------
    De Bazelaire et al., Radiology 230:652–659, 2004 (relaxation times of abdomen and pelvis at 3 T); Rosenkrantz et
    al., Radiology 264:126–135, 2012 (kurtosis of prostate and prostate cancer). Rows that name no source are assumed.
    """
    table: dict[str, dict[str, NDArray[np.float64]]] = {}
    text = files("dmrifit.simulate").joinpath("data", "tissues.csv").read_text(encoding="utf-8")
    for row in csv.DictReader(text.splitlines()):
        values = np.array([float(row[name]) for name in MODEL.names])
        values.flags.writeable = False
        table.setdefault(row["kind"], {})[row["name"]] = values
    return MappingProxyType({kind: MappingProxyType(rows) for kind, rows in table.items()})


def draw_means(
    field: float, tumor_types: Sequence[str], patient_variation: float, rng: np.random.Generator
) -> tuple[dict[str, NDArray[np.float64]], str]:
    """
    Draw a patient's type of tumor and mean parameters of every tissue.

    Parameters
    ----------
    field : {1.5, 3.0}
        Field strength in T.
    tumor_types : sequence of str
        Types that the patient's is drawn from.
    patient_variation : float
        Multiplies the variation between patients.
    rng : numpy.random.Generator
        Stream.

    Returns
    -------
    means : dict of str to ndarray of shape (7,)
        By tissue.
    tumor_type : str
        The type.
    """
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
    shape: tuple[int, int, int], voxel_size: Sequence[float], latent_corr: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """
    Draw the factors by which parameters vary within tissues.

    Parameters
    ----------
    shape : tuple of 3 ints
        Voxels of the image.
    voxel_size : sequence of 3 floats
        In mm.
    latent_corr : float
        Correlation of parameters that cellularity or vascularity move together, 0 to 1.
    rng : numpy.random.Generator
        Stream.

    Returns
    -------
    ndarray of shape (n_voxels, 7)
        Log-normal factors, of median one.
    """
    table = tissue_table()
    spread = log_sd(table["variation"]["voxel"])
    smoothing = [_TEXTURE_MM / size for size in voxel_size]
    latents = {name: smooth_field(shape, smoothing, rng) for name in table["latent"]}
    factors = np.empty((int(np.prod(shape)), len(spread)))
    for i in range(len(spread)):
        field = smooth_field(shape, smoothing, rng)
        for name, signs in table["latent"].items():
            if signs[i]:
                field = np.sqrt(latent_corr) * signs[i] * latents[name] + np.sqrt(1 - latent_corr) * field
        factors[:, i] = np.exp(spread[i] * field)
    return factors


def limited(parameters: NDArray[np.float64], protocol: Protocol) -> NDArray[np.float64]:
    """
    Keep parameters inside the bounds of the fit and before the turn of the cumulant.

    Parameters
    ----------
    parameters : ndarray of shape (n_voxels, 7)
        Of any tissue.
    protocol : Protocol
        What will be measured.

    Returns
    -------
    ndarray of shape (n_voxels, 7)
        A copy, cut off.
    """
    limits = tissue_table()["limit"]
    parameters = np.clip(parameters, limits["low"], limits["high"])
    b = max(float(protocol.b_ms_per_um2.max()), _LARGEST_STUDY_B)
    k, dt = MODEL.names.index("K"), MODEL.names.index("Dt")
    parameters[:, k] = np.minimum(parameters[:, k], _TURNING_MARGIN * 3 / (b * parameters[:, dt]))
    return parameters


def smooth_field(
    shape: tuple[int, int, int], smoothing: Sequence[float], rng: np.random.Generator
) -> NDArray[np.float64]:
    """
    Draw a smooth random field.

    Parameters
    ----------
    shape : tuple of 3 ints
        Voxels of the image.
    smoothing : sequence of 3 floats
        Standard deviation of the smoothing along each axis, in voxels.
    rng : numpy.random.Generator
        Stream.

    Returns
    -------
    ndarray of shape (n_voxels,)
        Of mean 0 and standard deviation 1 over the image.
    """
    from scipy.ndimage import gaussian_filter

    field = gaussian_filter(rng.standard_normal(shape), smoothing, mode="wrap").ravel()
    return (field - field.mean()) / field.std()


def log_sd(variation: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """
    Turn the coefficient of variation of a log-normal variable into the spread of its logarithm.

    Parameters
    ----------
    variation : ndarray or float
        Coefficient of variation.

    Returns
    -------
    ndarray
        Standard deviation of the logarithm.
    """
    return np.sqrt(np.log1p(np.square(variation)))
