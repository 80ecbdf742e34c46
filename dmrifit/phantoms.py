"""Synthetic patients: a small abdomen with a tumor, its true parameter maps and noisy signals."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmrifit.cohort import Cohort
from dmrifit.models import MODELS
from dmrifit.protocol import Protocol
from dmrifit.randomness import RandomState, seed_for, seed_from
from dmrifit.scans import Scan

__all__ = ["simulate_cohort", "simulate_patient", "tissue_table"]

MODEL = "t2-ivim-kurtosis"
VOXEL_SIZE = (3.0, 3.0, 6.0)  # mm

#: Field strength (T) of the scanners of the protocol presets.
_PRESET_FIELD = {"cohort1": 1.5, "cohort2": 3.0}

_DIFFICULTIES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        # One family of tumors, little variation between patients, denoised images of good quality.
        "easy": {"tumor_types": ("adenocarcinoma-like",), "patient_variation": 1.0, "snr": 60.0},
        # Mixed primaries: every type of the table, twice the variation, half the signal-to-noise ratio.
        "mixed": {"tumor_types": None, "patient_variation": 2.0, "snr": 30.0},
    }
)

_SMALLEST_SHAPE = (12, 12, 2)
_SUBSAMPLING = 2  # sub-voxels per axis, for the share of each tissue in a voxel
_MEAN_GAIN = 300.0  # signal units per unit of proton density
_GAIN_VARIATION = 0.25  # between patients
_COIL_VARIATION = 0.12  # across the field of view
_TEXTURE_MM = 5.0  # standard deviation of the smoothing that makes textures
_NECROSIS_SHARE = 0.6  # of tumors have a necrotic core
_TUMOR_RADIUS = (0.12, 0.26)  # of half the field of view
# The cumulant of the kurtosis model turns up at b·Dt = 3/K: no tissue does, so K stays below 3/(b·Dt)
# for the largest b that is measured, and for this one (ms/µm²) when less is measured.
_LARGEST_STUDY_B = 1.6
_TURNING_MARGIN = 0.9

# Center and radii along x (right), y (anterior) and z (up), in halves of the field of view.
_ORGANS = (
    ("muscle", (0.0, 0.0, 0.0), (0.93, 0.74, 9.0)),
    ("liver", (0.36, 0.12, 0.1), (0.46, 0.50, 2.2)),
    ("spleen", (-0.58, -0.18, 0.2), (0.20, 0.30, 1.6)),
    ("kidney", (0.40, -0.44, -0.4), (0.15, 0.17, 1.4)),
    ("kidney", (-0.38, -0.44, -0.2), (0.15, 0.17, 1.4)),
)


@cache
def tissue_table() -> Mapping[str, Mapping[str, NDArray[np.float64]]]:
    """
    Return the numbers that synthetic patients are made of.

    They stand in one file, ``dmrifit/data/tissues.csv``, with the source of each row.

    Returns
    -------
    mapping of str to mapping of str to ndarray of shape (7,)
        For each kind (``tissue``, ``tumor_type``, ``field``, ``variation``, ``latent``, ``limit``) the
        rows by name, in the order S0, f, Dv, T2v, Dt, K, T2t. Of a tissue: S0 relative to the liver,
        diffusivities in µm²/ms, T2 in ms at 1.5 T. Of types and fields: factors. Of variations:
        coefficients of variation.
    """
    table: dict[str, dict[str, NDArray[np.float64]]] = {}
    text = files("dmrifit").joinpath("data", "tissues.csv").read_text(encoding="utf-8")
    for row in csv.DictReader(text.splitlines()):
        values = np.array([float(row[name]) for name in MODELS[MODEL].names])
        values.flags.writeable = False
        table.setdefault(row["kind"], {})[row["name"]] = values
    return MappingProxyType({kind: MappingProxyType(rows) for kind, rows in table.items()})


def simulate_cohort(
    protocol: str | Protocol = "cohort1",
    n_patients: int = 16,
    *,
    difficulty: str = "mixed",
    shape: tuple[int, int, int] = (48, 48, 8),
    name: str | None = None,
    field: float | None = None,
    snr: float | None = None,
    latent_corr: float = 0.6,
    random_state: RandomState = None,
) -> Cohort:
    """
    Simulate a cohort of patients with abdominal tumors.

    Parameters
    ----------
    protocol : str or Protocol, default="cohort1"
        A preset (which also sets the field strength) or any protocol with echo times.
    n_patients : int, default=16
        Number of patients. Patient k is the same whatever this number is.
    difficulty : {"mixed", "easy"}, default="mixed"
        ``"mixed"``: five types of tumor, large variation between patients, SNR 30. ``"easy"``: one
        type, half that variation, SNR 60.
    shape : tuple of 3 ints, default=(48, 48, 8)
        Voxels of the image; a voxel has 3 × 3 × 6 mm, the anatomy fills the field of view.
    name : str, optional
        Name of the cohort: by default that of the preset or protocol. Cohorts of different names have
        different patients, with the same `random_state` too.
    field : {1.5, 3.0}, optional
        Field strength in T, which scales the relaxation times. By default that of the preset, 1.5 for
        another protocol.
    snr : float, optional
        Signal-to-noise ratio in the liver at the lowest b and shortest TE; by default that of
        `difficulty`.
    latent_corr : float, default=0.6
        Correlation, within a tissue, of the parameters that cellularity (Dt, K, T2t) or vascularity
        (f, Dv) move together, 0 to 1. It is what lets T2t be guessed from diffusion at all.
    random_state : int, RandomState or None, default=None
        Seed.

    Returns
    -------
    Cohort
        Synthetic scans, each with ``.truth``: the maps of the seven parameters.

    Raises
    ------
    ValueError
        If an argument is out of its range, or the protocol has no echo times.

    Notes
    -----
    Tissue values are typical of the literature and assumed, not measured (see `tissue_table`). Signals,
    not parameters, are mixed in voxels at edges; the true parameters there are averages weighted by each
    tissue's share of the proton density. Noise is Rician.
    """
    field = _PRESET_FIELD.get(protocol, 1.5) if field is None and isinstance(protocol, str) else field or 1.5
    if isinstance(protocol, str):
        protocol = Protocol.preset(protocol)
    name = name or protocol.name or "synthetic"
    if difficulty not in _DIFFICULTIES:
        msg = f"difficulty must be one of {', '.join(_DIFFICULTIES)}, not {difficulty!r}"
        raise ValueError(msg)
    if n_patients < 1:
        msg = f"a cohort needs at least one patient, not {n_patients}"
        raise ValueError(msg)
    options = dict(_DIFFICULTIES[difficulty])
    if snr is not None:
        options["snr"] = snr
    streams = seed_for(seed_from(random_state), "cohort", name).spawn(n_patients)
    width = max(2, len(str(n_patients)))
    scans = [
        simulate_patient(
            protocol,
            patient=f"{name}p{k:0{width}d}",
            cohort=name,
            field=field,
            shape=shape,
            latent_corr=latent_corr,
            seed=stream,
            **options,
        )
        for k, stream in enumerate(streams, start=1)
    ]
    return Cohort(scans, name)


def simulate_patient(
    protocol: Protocol,
    *,
    patient: str = "synthetic",
    cohort: str = "",
    field: float = 1.5,
    shape: tuple[int, int, int] = (48, 48, 8),
    tumor_types: tuple[str, ...] | None = None,
    patient_variation: float = 2.0,
    snr: float = 30.0,
    latent_corr: float = 0.6,
    seed: int | np.random.SeedSequence | None = None,
) -> Scan:
    """
    Simulate one patient.

    Parameters
    ----------
    protocol : Protocol
        A protocol with echo times.
    patient, cohort : str
        Names.
    field : {1.5, 3.0}, default=1.5
        Field strength in T.
    shape : tuple of 3 ints, default=(48, 48, 8)
        Voxels of the image, at least 12 × 12 × 2.
    tumor_types : tuple of str, optional
        Types of `tissue_table` that the patient's is drawn from; all by default.
    patient_variation : float, default=2.0
        Multiplies the variation between patients.
    snr : float, default=30.0
        Signal-to-noise ratio in the liver at the lowest b and shortest TE; infinite for no noise.
    latent_corr : float, default=0.6
        Correlation of the parameters that a latent texture moves together.
    seed : int, SeedSequence or None
        Seed.

    Returns
    -------
    Scan
        Signals (float32), masks of the body and of the tumor, true maps and the noise level.

    Raises
    ------
    ValueError
        If an argument is out of its range, or the protocol has no echo times.
    """
    table = tissue_table()
    _check(shape, field, tumor_types, snr, latent_corr, patient_variation)
    model = MODELS[MODEL]
    if protocol.te is None:
        msg = "synthetic patients need a protocol with echo times; give it te (ms)"
        raise ValueError(msg)
    stream = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
    # One stream for each ingredient: a new ingredient leaves the others as they are.
    anatomy, biology, texture, scanner, noise = (np.random.default_rng(s) for s in stream.spawn(5))

    labels, tissues = _paint(shape, anatomy)
    means = _tissue_means(
        tissues, field, tumor_types or tuple(table["tumor_type"]), patient_variation, biology
    )
    fields = _textures(shape, latent_corr, texture)
    gain = _gain(shape, scanner)

    n_voxels = int(np.prod(shape))
    signals = np.zeros((n_voxels, len(protocol)))
    truth = np.zeros((n_voxels, len(model.names)))
    density = np.zeros(n_voxels)
    shares = {tissue: _share(labels, code, shape) for code, tissue in enumerate(tissues, start=1)}
    for tissue, share in shares.items():
        at = np.flatnonzero(share)
        parameters = _limited(means[tissue] * fields[at], protocol)
        weight = share[at] * parameters[:, 0]
        signals[at] += share[at, None] * model.signal(parameters, protocol)
        truth[at, 1:] += weight[:, None] * parameters[:, 1:]
        density[at] += weight
    signals *= gain[:, None]
    truth[:, 1:] /= np.where(density > 0, density, 1.0)[:, None]
    truth[:, 0] = density * gain

    first = np.lexsort((protocol.b, protocol.te))[0]
    sigma = float(np.median(signals[shares["liver"] == 1, first])) / snr
    if sigma > 0:
        signals = np.hypot(
            signals + sigma * noise.standard_normal(signals.shape),
            sigma * noise.standard_normal(signals.shape),
        )
    body = np.sum(list(shares.values()), axis=0) > 0.5
    lesion = shares["tumor"] + shares["necrosis"] > 0.5
    return Scan(
        patient,
        signals.astype(np.float32).reshape(*shape, -1),
        protocol,
        body.reshape(shape),
        np.diag([*VOXEL_SIZE, 1.0]),
        lesion=lesion.reshape(shape),
        cohort=cohort,
        sigma=sigma,
        truth={
            name: np.where(body, truth[:, i], 0.0).astype(np.float32).reshape(shape)
            for i, name in enumerate(model.names)
        },
        synthetic=True,
    )


def _check(
    shape: tuple[int, int, int],
    field: float,
    tumor_types: tuple[str, ...] | None,
    snr: float,
    latent_corr: float,
    patient_variation: float,
) -> None:
    table = tissue_table()
    if len(shape) != 3 or any(n < least for n, least in zip(shape, _SMALLEST_SHAPE, strict=True)):
        msg = f"shape must be three numbers of at least {_SMALLEST_SHAPE}, not {shape}"
        raise ValueError(msg)
    if f"{field:g}" not in table["field"]:
        msg = f"field must be one of {', '.join(table['field'])} T, not {field!r}"
        raise ValueError(msg)
    unknown = sorted(set(tumor_types or ()) - set(table["tumor_type"]))
    if unknown:
        msg = f"unknown tumor types {', '.join(unknown)}; there are {', '.join(table['tumor_type'])}"
        raise ValueError(msg)
    if not snr > 0:
        msg = f"snr must be positive, not {snr}"
        raise ValueError(msg)
    if not 0 <= latent_corr <= 1:
        msg = f"latent_corr must be between 0 and 1, not {latent_corr}"
        raise ValueError(msg)
    if not patient_variation >= 0:
        msg = f"patient_variation must not be negative, got {patient_variation}"
        raise ValueError(msg)


def _paint(
    shape: tuple[int, int, int], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Paint organs, tumors and necroses, later ones over earlier ones, on the grid of sub-voxels."""
    tissues = tuple(tissue_table()["tissue"])
    half = np.array(shape) * VOXEL_SIZE / 2  # mm
    fine = [((np.arange(n * _SUBSAMPLING) + 0.5) / (n * _SUBSAMPLING) * 2 - 1) for n in shape]
    labels = np.zeros([len(axis) for axis in fine], dtype=np.uint8)

    def paint(
        tissue: str, center: NDArray, radii: NDArray, angle: float, *, within: tuple[str, ...] = ()
    ) -> None:
        x, y, z = np.meshgrid(
            *(axis - c for axis, c in zip(fine, center, strict=True)), indexing="ij", sparse=True
        )
        x, y = x * half[0], y * half[1]
        u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
        inside = (u / (radii[0] * half[0])) ** 2 + (v / (radii[1] * half[1])) ** 2 + (z / radii[2]) ** 2 <= 1
        if within:
            inside &= np.isin(labels, [tissues.index(name) + 1 for name in within])
        labels[inside] = tissues.index(tissue) + 1

    for tissue, center, radii in _ORGANS:
        jitter = 0.0 if tissue == "muscle" else 0.03
        size = rng.uniform(0.94, 1.04)
        paint(
            tissue, np.array(center) + rng.normal(0, jitter, 3), np.array(radii) * size, rng.normal(0, 0.05)
        )
    liver_center, liver_radii = np.array(_ORGANS[1][1]), np.array(_ORGANS[1][2])
    for _ in range(rng.integers(1, 4)):
        direction = rng.normal(size=3)
        direction *= rng.uniform(0.1, 0.5) / np.linalg.norm(direction)
        center = liver_center + direction * np.minimum(liver_radii, (1, 1, 0.6))
        radius = rng.uniform(*_TUMOR_RADIUS) * rng.uniform(0.85, 1.15, 3)
        # Never below a voxel and a half, so that small images have a tumor too; z in units of the slab.
        in_mm = np.maximum(radius * half[0], 1.5 * np.array(VOXEL_SIZE))
        angle = rng.uniform(0, np.pi)
        paint("tumor", center, in_mm / half, angle, within=("liver", "muscle", "tumor"))
        core = rng.uniform(0.35, 0.6)
        if rng.random() < _NECROSIS_SHARE:
            paint("necrosis", center, core * in_mm / half, angle, within=("tumor",))
    return labels, tissues


def _share(labels: NDArray[np.uint8], code: int, shape: tuple[int, int, int]) -> NDArray[np.float64]:
    s = _SUBSAMPLING
    inside = (labels == code).reshape(shape[0], s, shape[1], s, shape[2], s)
    return inside.mean(axis=(1, 3, 5)).ravel()


def _tissue_means(
    tissues: tuple[str, ...],
    field: float,
    tumor_types: tuple[str, ...],
    patient_variation: float,
    rng: np.random.Generator,
) -> dict[str, NDArray[np.float64]]:
    """Draw the patient's mean parameters of every tissue."""
    table = tissue_table()
    spread = _log_sd(patient_variation * table["variation"]["patient"])
    kind = table["tumor_type"][tumor_types[rng.integers(len(tumor_types))]]
    means = {}
    for tissue in tissues:
        factor = kind if tissue == "tumor" else 1.0
        effect = np.exp(spread * rng.standard_normal(len(spread)))
        means[tissue] = table["tissue"][tissue] * table["field"][f"{field:g}"] * factor * effect
    return means


def _textures(
    shape: tuple[int, int, int], latent_corr: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Draw the factors, shape (n_voxels, 7), by which parameters vary within tissues."""
    table = tissue_table()
    spread = _log_sd(table["variation"]["voxel"])
    smoothing = [_TEXTURE_MM / size for size in VOXEL_SIZE]
    latents = {name: _smooth_field(shape, smoothing, rng) for name in table["latent"]}
    factors = np.empty((int(np.prod(shape)), len(spread)))
    for i in range(len(spread)):
        field = _smooth_field(shape, smoothing, rng)
        for name, signs in table["latent"].items():
            if signs[i]:
                field = np.sqrt(latent_corr) * signs[i] * latents[name] + np.sqrt(1 - latent_corr) * field
        factors[:, i] = np.exp(spread[i] * field)
    return factors


def _gain(shape: tuple[int, int, int], rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw the receiver's gain, one number, times the coils' sensitivity, a smooth field."""
    level = _MEAN_GAIN * np.exp(_log_sd(_GAIN_VARIATION) * rng.standard_normal())
    return level * np.exp(_log_sd(_COIL_VARIATION) * _smooth_field(shape, [n / 3 for n in shape], rng))


def _smooth_field(
    shape: tuple[int, int, int], smoothing: list[float], rng: np.random.Generator
) -> NDArray[np.float64]:
    from scipy.ndimage import gaussian_filter

    field = gaussian_filter(rng.standard_normal(shape), smoothing, mode="wrap").ravel()
    return (field - field.mean()) / field.std()


def _limited(parameters: NDArray[np.float64], protocol: Protocol) -> NDArray[np.float64]:
    limits = tissue_table()["limit"]
    parameters = np.clip(parameters, limits["low"], limits["high"])
    names = MODELS[MODEL].names
    b = max(float(protocol.b_ms_per_um2.max()), _LARGEST_STUDY_B)
    k, dt = names.index("K"), names.index("Dt")
    parameters[:, k] = np.minimum(parameters[:, k], _TURNING_MARGIN * 3 / (b * parameters[:, dt]))
    return parameters


def _log_sd(variation: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """Turn the coefficient of variation of a log-normal variable into the spread of its logarithm."""
    return np.sqrt(np.log1p(np.square(variation)))
