"""Synthetic abdomens and pelves with tumors: true parameter maps and noisy signals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmrifit._utils.checks import check_number, check_word
from dmrifit._utils.randomness import RandomState, Seed
from dmrifit._utils.threads import check_jobs
from dmrifit.cohort.cohort import Cohort
from dmrifit.cohort.scan import Scan
from dmrifit.engine.protocol import Protocol
from dmrifit.simulate import tissues, walk_table
from dmrifit.simulate.artifacts import artifact_strengths, spoil
from dmrifit.simulate.organs import VOXEL_SIZE, draw_template, paint

__all__ = ["simulate_cohort"]

#: Field strength (T) of the scanners of the protocol presets.
_PRESET_FIELD = {"cohort1": 1.5, "cohort2": 3.0}
_DEFAULT_FIELD = 1.5  # T

_DIFFICULTIES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        # One family of tumors, little variation between patients, denoised images of good quality.
        "easy": {"tumor_types": ("adenocarcinoma-like",), "patient_variation": 1.0, "snr": 60.0},
        # Mixed primaries: every type of the table, twice the variation, half the signal-to-noise
        # ratio.
        "mixed": {"tumor_types": None, "patient_variation": 2.0, "snr": 30.0},
    }
)

#: Random streams of a patient. New ones come last, so that old seeds give the same patients.
_STREAMS = (
    *("anatomy", "tissues", "texture", "gain", "noise"),
    *("template", "artifacts", "microstructures"),
)

_TRUTHS = ("formula", "walk")

_SMALLEST_SHAPE = (12, 12, 2)
_MEAN_GAIN = 300.0  # signal units per unit of proton density
_COIL_VARIATION = 0.12  # across the field of view


def simulate_cohort(
    protocol: str | Protocol = "cohort1",
    n_patients: int = 16,
    *,
    difficulty: str = "mixed",
    shape: tuple[int, int, int] = (48, 48, 8),
    template: str = "both",
    name: str | None = None,
    field: float | None = None,
    snr: float | None = None,
    latent_corr: float = 0.6,
    gain_variation: float = 0.25,
    artifacts: Sequence[str] | Mapping[str, float] | None = None,
    truth: str = "formula",
    n_jobs: int | None = None,
    random_state: RandomState = None,
) -> Cohort:
    """
    Simulate a cohort of patients with tumors of abdomen and pelvis.

    Parameters
    ----------
    protocol : str or Protocol, default="cohort1"
        A preset (which also sets the field strength), by name or as a protocol, or any protocol
        with echo times.
    n_patients : int, default=16
        Number of patients. Patient k and its name (``…p01``, ``…p100``) do not depend on it.
    difficulty : {"mixed", "easy"}, default="mixed"
        ``"mixed"``: five types of tumor, large variation between patients, SNR 30. ``"easy"``: one
        type, half that variation, SNR 60.
    shape : tuple of 3 ints, default=(48, 48, 8)
        Voxels of the image; a voxel has 3 × 3 × 6 mm, the anatomy fills the field of view.
    template : {"both", "abdomen", "pelvis"}, default="both"
        Part of the body in the image; ``"both"`` draws it for each patient. A pelvis is male or
        female, with equal chances.
    name : str, optional
        Name of the cohort: by default that of the preset or protocol. Cohorts of different names
        have different patients, even with the same `random_state`.
    field : {1.5, 3.0}, optional
        Field strength in T, which scales the relaxation times. By default that of the preset, 1.5
        for another protocol.
    snr : float, optional
        Signal-to-noise ratio in the liver at the lowest b and shortest TE; by default that of
        `difficulty`, infinite for no noise.
    latent_corr : float, default=0.6
        Correlation, within a tissue, of the parameters that cellularity (Dt, K, T2t) or
        vascularity (f, Dv) move together, 0 to 1. It makes T2t predictable from diffusion.
    gain_variation : float, default=0.25
        Coefficient of variation, between patients, of the receiver's gain.
    artifacts : sequence of str or mapping of str to float, optional
        Image artifacts, by default none: ``"shift"``, movement between images by up to 1 voxel
        along x and y; ``"gibbs"``, ringing at edges, from the loss of a fifth of the spatial
        frequencies; ``"signal_loss"``, up to half of the signal at b ≥ 400 s/mm², below the heart
        or beside the rectum. A mapping sets other strengths than these (1, 0.2, 0.5).
    truth : {"formula", "walk"}, default="formula"
        Where the signals come from: the formula of T2-IVIM-Kurtosis, or random walks that know
        nothing of it, for b ≤ 5000 s/mm² and TE from 60 to 160 ms. Both make the same patients
        with the same true maps but for K, which walks limit to 2.0 to 2.5 (see Notes).
    n_jobs : int, optional
        Processes, as in joblib. The patients do not depend on it.
    random_state : int, RandomState or None, default=None
        Seed.

    Returns
    -------
    Cohort
        Synthetic scans, each with ``.truth``, the maps of the seven parameters, and
        ``.noise_free``, the signals before noise was added. ``.simulation`` holds these arguments
        as plain values, and the template and the type of tumor that each patient drew.

    Raises
    ------
    ValueError
        If an argument is out of its range, or the protocol has no echo times, or contrasts that
        were not walked.

    Notes
    -----
    Tissue values are typical of the literature and for the most part assumed, not measured (see
    `tissue_table`). Signals, not parameters, are mixed in voxels at edges; the true parameters
    there are averages weighted by each tissue's share of the proton density. Noise is Rician, of
    the same level everywhere: the median signal of the liver, at the lowest b and shortest TE,
    over `snr`; in images without liver it is computed for the patient's liver at the median gain
    inside the body. Artifacts change signals, not true maps.

    With ``truth="walk"`` water walks inside and outside of packed spheres, whose membranes are
    impermeable, permeable, or permeable with a T2 on each side, and blood flows through straight
    segments of capillaries with a spread of speeds; each patient's tissue draws one of these three
    and one of 20 bloods. Pulses last 20 ms, 35 ms apart, from 5 ms after excitation. A walk at
    another scale of length has another D, and two microstructures side by side have any K between
    theirs, so that true maps are what they say: S0, the magnetization after excitation; f, the
    share of blood in it; Dv, the first cumulant of the blood's signal at b → 0; T2v, the T2 of
    blood; Dt and K, the first two cumulants of the tissue's signal at b → 0 and TE 100 ms; T2t,
    from the tissue's signal at b = 0 and TE 60 and 120 ms. K is limited to the largest that was
    walked, 2.0 to 2.5. Fits of the formula to b ≤ 1600 s/mm² differ from these: median K of
    tissues is 9 % lower without noise and 17 % at SNR 30, Dv 14 and 13 %, Dt 2 and 7 %; f is 0 to
    7 % higher, T2t within 1 %, T2v is not determined.
    """
    from joblib import Parallel, delayed

    if isinstance(protocol, str):
        protocol = Protocol.preset(protocol)
    if not isinstance(protocol, Protocol):
        raise TypeError(
            f"protocol must be a Protocol or one of {', '.join(_PRESET_FIELD)}, not {protocol!r}"
        )
    if protocol.te is None:
        raise ValueError("synthetic patients need a protocol with echo times; give it te (ms)")
    if field is None:
        field = _DEFAULT_FIELD
        for preset, preset_field in _PRESET_FIELD.items():
            if protocol == Protocol.preset(preset):
                field = preset_field
    name = name or protocol.name or "synthetic"
    check_word("difficulty", difficulty, _DIFFICULTIES)
    check_number("n_patients", n_patients, least=1, whole=True)
    settings: dict[str, Any] = {
        "snr": _DIFFICULTIES[difficulty]["snr"] if snr is None else snr,
        "field": field,
        "shape": shape,
        "template": template,
        "latent_corr": latent_corr,
        "gain_variation": gain_variation,
        "artifacts": artifact_strengths(artifacts),
        "truth": truth,
    }
    options = {**_DIFFICULTIES[difficulty], **settings}
    _check(protocol, settings)
    check_jobs(n_jobs)
    seed = Seed(random_state)
    streams = seed.sequence("cohort", name).spawn(n_patients)
    patients = [f"{name}p{k:02d}" for k in range(1, n_patients + 1)]
    scans = (
        delayed(_scan)(protocol, name, patient, stream, options)
        for patient, stream in zip(patients, streams, strict=True)
    )
    simulated = list(Parallel(n_jobs=n_jobs)(scans))
    simulation = {
        "difficulty": difficulty,
        **options,
        "shape": [int(n) for n in shape],
        "tumor_types": list(options["tumor_types"] or tissues.tissue_table()["tumor_type"]),
        # JSON has no infinity.
        "snr": float(options["snr"]) if np.isfinite(options["snr"]) else None,
        "seed": seed,
        "patients": {scan.patient: drawn for scan, drawn in simulated},
    }
    return Cohort([scan for scan, _ in simulated], name, simulation=simulation)


def _scan(
    protocol: Protocol,
    cohort: str,
    patient: str,
    stream: np.random.SeedSequence,
    options: Mapping[str, Any],
) -> tuple[Scan, dict[str, str]]:
    """Simulate one patient; return the scan, its template and its type of tumor."""
    shape = options["shape"]
    # One stream for each step, in the order of _STREAMS: a new step does not change the others.
    rng = {
        step: np.random.default_rng(child)
        for step, child in zip(_STREAMS, stream.spawn(len(_STREAMS)), strict=True)
    }
    template = draw_template(options["template"], rng["template"])
    shares = paint(template, shape, rng["anatomy"])
    types = options["tumor_types"] or tuple(tissues.tissue_table()["tumor_type"])
    variation = options["patient_variation"]
    means, tumor_type = tissues.draw_means(options["field"], types, variation, rng["tissues"])
    factors = tissues.draw_textures(shape, VOXEL_SIZE, options["latent_corr"], rng["texture"])
    # The receiver's gain, one number, times the coils' sensitivity, a smooth field.
    gain_spread = tissues.log_sd(options["gain_variation"])
    level = _MEAN_GAIN * np.exp(gain_spread * rng["gain"].standard_normal())
    coils = tissues.smooth_field(shape, [n / 3 for n in shape], rng["gain"])
    gain = level * np.exp(tissues.log_sd(_COIL_VARIATION) * coils)
    microstructures: dict[str, walk_table.Microstructure] = {}
    if options["truth"] == "walk":
        microstructures = walk_table.draw_microstructures(means, rng["microstructures"])

    # Signals of tissues are mixed in each voxel, and parameters averaged by proton density.
    signals = np.zeros((len(factors), len(protocol)))
    parameters = np.zeros((len(factors), len(tissues.MODEL.names)))
    for tissue, share in shares.items():
        voxels = np.flatnonzero(share)
        values = means[tissue] * factors[voxels]
        values, tissue_signals = _tissue(values, protocol, microstructures.get(tissue))
        weight = share[voxels] * values[:, 0]
        signals[voxels] += share[voxels, None] * tissue_signals
        parameters[voxels, 1:] += weight[:, None] * values[:, 1:]
        parameters[voxels, 0] += weight
    density = parameters[:, :1]
    parameters[:, 1:] /= np.where(density > 0, density, 1.0)
    signals *= gain[:, None]
    parameters[:, 0] *= gain
    body = np.sum(list(shares.values()), axis=0) > 0.5
    lesion = shares["tumor"] + shares.get("necrosis", 0.0) > 0.5

    # The noise follows from the liver at the lowest b and shortest TE, before the artifacts, which
    # do not change it.
    first = np.lexsort((protocol.b, protocol.te))[0]  # type: ignore[arg-type] # it has echo times
    # Only voxels of liver alone: those at its rim hold other tissue.
    is_liver = shares.get("liver", np.zeros(1)) == 1
    if is_liver.any():
        liver_signal = np.median(signals[is_liver, first])
    else:
        liver = _tissue(means["liver"][None], protocol, microstructures.get("liver"))[1]
        liver_signal = np.median(gain[body]) * liver[0, first]
    sigma = float(liver_signal) / options["snr"]
    if options["artifacts"]:
        images = signals.reshape(*shape, -1)
        images = spoil(images, protocol, options["artifacts"], template, rng["artifacts"])
        signals = images.reshape(signals.shape)
    noise_free = signals
    if sigma > 0:
        # The magnitude of a complex signal with Gaussian noise is Rician.
        real = signals + sigma * rng["noise"].standard_normal(signals.shape)
        imaginary = sigma * rng["noise"].standard_normal(signals.shape)
        signals = np.hypot(real, imaginary)
    true_maps = {}
    for i, name in enumerate(tissues.MODEL.names):
        true_maps[name] = np.where(body, parameters[:, i], 0.0).astype(np.float32).reshape(shape)
    scan = Scan(
        patient,
        signals.astype(np.float32).reshape(*shape, -1),
        protocol,
        body.reshape(shape),
        np.diag([*VOXEL_SIZE, 1.0]),
        lesion=lesion.reshape(shape),
        cohort=cohort,
        sigma=sigma,
        truth=true_maps,
        synthetic=True,
        noise_free=noise_free.astype(np.float32).reshape(*shape, -1),
    )
    return scan, {"template": template, "tumor_type": tumor_type}


def _tissue(
    parameters: NDArray[np.float64],
    protocol: Protocol,
    microstructure: walk_table.Microstructure | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Limit parameters, (n_voxels, 7), of a tissue to what can be simulated; add its signals."""
    parameters = tissues.limited(parameters, protocol)
    if microstructure is None:
        return parameters, tissues.MODEL.signal(parameters, protocol)
    parameters = walk_table.walk_parameters(parameters, microstructure)
    return parameters, walk_table.walk_signals(parameters, microstructure, protocol)


def _check(protocol: Protocol, settings: Mapping[str, Any]) -> None:
    check_word("truth", settings["truth"], _TRUTHS)
    if settings["truth"] == "walk":
        walk_table.check_walk_protocol(protocol)
    shape, field = settings["shape"], settings["field"]
    if np.ndim(shape) != 1 or len(shape) != 3:
        raise ValueError(
            f"shape must be three numbers of voxels, such as (48, 48, 8), not {shape!r}"
        )
    for axis, n, least in zip("xyz", shape, _SMALLEST_SHAPE, strict=True):
        check_number(f"shape along {axis}", n, least=least, whole=True)
    check_number("field", field)
    fields = tissues.tissue_table()["field"]
    if f"{field:g}" not in fields:
        raise ValueError(f"field must be one of {', '.join(fields)} T, not {field!r}")
    if settings["snr"] != np.inf:
        check_number("snr", settings["snr"], above=0)
    check_number("latent_corr", settings["latent_corr"], most=1)
    check_number("gain_variation", settings["gain_variation"])
    # Called for its check of the name alone.
    draw_template(settings["template"], np.random.default_rng(0))
