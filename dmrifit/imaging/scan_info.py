"""What a scan is, before anything is done with it: grid, protocol, noise, models, and doubts."""

from __future__ import annotations

from dataclasses import dataclass, field

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from dmrifit._utils.counts import counted, percent
from dmrifit._utils.spread_sample import SpreadSample, by_slice
from dmrifit.engine.design.identifiability import (
    ISOTROPIC,
    expected_precision,
    missing_for,
    snr_of_amplitude,
    suggest_model,
)
from dmrifit.engine.design.precision import is_undetermined
from dmrifit.engine.fit_settings import FitSettings
from dmrifit.engine.fitting import measured_noise
from dmrifit.engine.gain_steps import GAIN_VOXELS, GainStep, find_gain_step, relative_doubt
from dmrifit.engine.models import MODELS, SignalModel, read_table
from dmrifit.engine.noise_choice import (
    NOISE_VOXELS,
    NoiseLevel,
    above_air_or_noise,
    directions_vary,
    lowest_signals,
    noise_of_repeats,
    typical_snr,
)
from dmrifit.engine.protocol import TE_MATCH, ZERO_B, Protocol, shells_text, span_text
from dmrifit.engine.screening import Screen
from dmrifit.imaging.head_steps import read_region
from dmrifit.imaging.noise import (
    SENTENCES,
    denoised_note,
    describe_noise_levels,
    noise_levels,
    noise_slices,
    spread_voxels,
)
from dmrifit.io.bids_derivatives import SNR_VOXELS
from dmrifit.io.nifti import Image, Images
from dmrifit.io.series import Series
from dmrifit.report.numerals import significant

#: Without the model of signals that were divided by their own b = 0.
_LISTED_MODELS = [name for name in MODELS if not name.endswith("-relative")]

_FEW_NEGATIVE = 1e-4  # share of values: rounding of a file, not a reconstruction that subtracts
# Share and number of values equal to the largest, above which they may have been clipped.
_CLIPPED_SHARE, _FEWEST_CLIPPED = 1e-3, 10
# Of the largest value; of the number of values that equal it.
_NEARLY_CLIPPED, _SHARE_BELOW = 0.95, 0.1
_FEWEST_VOXELS = 10  # fewer may be 0 in a volume that is not empty
_MOST_MERGED = 6  # b-values that count as one, listed one by one
_LOW_B = 50.0  # s/mm², from which on perfusion has decayed
_LARGEST_B = 20_000.0  # s/mm²
_LEAST_B_OF_TISSUE = 200.0  # s/mm²
_HIGHEST_B = 0.98  # of the highest b-value: repeats of it
_NEAR_FLOOR = 2.0  # times the noise: there the floor raises magnitudes by a fifth
_LEAST_RISE = 1.05  # of the median signal: less may be noise
_LARGEST_ADC = 4.0  # µm²/ms: free water in the body has 3


@dataclass
class ScanInfo:
    """What a scan is."""

    name: str  # its file
    grid: tuple[int, int, int]  # voxels
    voxel: tuple[float, ...]  # edges in mm
    axes: str  # where the array's axes point, such as LAS for left, anterior, superior
    position: str  # what the header says of the scan's place
    n_volumes: int  # measurements
    protocol: Protocol | None = None  # None if it is unknown
    contrasts: list[str] = field(default_factory=list)  # a line for each echo time
    noise: str = ""  # as a fit measures it
    other_noise: str = ""  # what other estimates say
    snr: float = np.nan  # median signal of tissue at the lowest b over the noise; NaN if unknown
    models: list[str] = field(default_factory=list)  # whether the protocol carries each
    doubts: list[str] = field(default_factory=list)  # what looks wrong, with a remedy
    is_denoised: bool = False  # by its sidecar


def scan_info(image: Images, protocol: Protocol | None, *, mask: Image | None = None) -> ScanInfo:
    """Describe an image and its protocol; its noise is known only with the extra preprocess."""
    series = Series.open(image)
    codes = {form: int(series.header[f"{form}_code"]) for form in ("sform", "qform")}
    position = ", ".join(f"{form} {code}" for form, code in codes.items() if code > 0)
    info = ScanInfo(
        series.name,
        series.grid,
        tuple(np.linalg.norm(series.affine[:3, :3], axis=0).tolist()),
        "".join(nib.aff2axcodes(series.affine)),
        position or "none",
        series.n_measurements,
        protocol,
    )
    if not position:
        info.doubts.append(SENTENCES["no_position"])
    if note := denoised_note(image, has_sigma=False, may_have_sigma=True):
        info.doubts.append(note)
        info.is_denoised = True
    region, _ = read_region(series, mask, protocol)
    with series.unpacked() as readable:
        _describe_values(info, readable, region)
    if protocol is not None:
        info.contrasts = contrast_lines(protocol)
        info.models = [_model_line(name, protocol, info.snr) for name in _LISTED_MODELS]
        if directions_vary(protocol):
            info.models.append(ISOTROPIC)
    return info


def contrast_lines(protocol: Protocol) -> list[str]:
    """List the b-values of each echo time with their numbers of volumes."""
    groups = [(", echo time unknown", protocol.b)]
    if protocol.te is not None:
        times = np.unique(protocol.te)
        groups = [(f" at TE {te:g} ms", protocol.b[protocol.te == te]) for te in times]
    return [f"b = {shells_text(b)} s/mm²{ending}" for ending, b in groups]


def _describe_values(info: ScanInfo, series: Series, region: NDArray[np.bool_] | None) -> None:
    """Look at the values of an image: signs, ends of its type, gains, noise."""
    sample, lowest = SpreadSample(GAIN_VOXELS), SpreadSample(SNR_VOXELS)
    n_values, n_negative, n_non_finite = 0, 0, 0
    protocol = info.protocol
    if protocol is not None and len(protocol) != info.n_volumes:
        protocol = None
    for _, inside, signals in series.slabs(region, progress=True, task="info"):
        sample.add(signals, by_slice(inside))
        if protocol is not None:
            lowest.add(lowest_signals(signals, protocol), by_slice(inside))
        n_values += signals.size
        n_negative += int((signals < 0).sum())
        n_non_finite += int((~np.isfinite(signals)).sum())
    if not n_values:
        info.doubts.append("every voxel is 0 or NaN in all volumes: check that it is the scan")
        return
    if n_negative > _FEW_NEGATIVE * n_values:
        info.doubts.append(SENTENCES["negative"].format(share=percent(n_negative / n_values)))
    if n_non_finite:
        info.doubts.append(f"not finite: {counted(n_non_finite, 'value')}, which fits leave out")
    rows = sample.rows()
    level = np.nan
    if info.n_volumes > 1:
        level = _describe_noise(info, series, region, _noise_of_fit(series, region, protocol))
    if protocol is None:
        info.doubts += filter(None, [clipping_doubt(rows, None)])
        return
    if level > 0:
        snr = typical_snr(lowest.rows(), level)
        info.snr = snr if np.isfinite(snr) else np.nan
    info.doubts += protocol_doubts(protocol) + signal_doubts(rows, protocol, level)[0]
    info.doubts += filter(None, [empty_doubt(rows, protocol, np.arange(len(protocol)))])


def signal_doubts(
    rows: NDArray,
    protocol: Protocol,
    noise: float,
    model: SignalModel | None = None,
    *,
    has_floor: bool = False,
) -> tuple[list[str], GainStep | None]:
    """
    Say what looks wrong with signals, for one model or for all; give their step of gain, if any.

    `has_floor` tells whether a fit knows of the noise floor.

    Shapes: `rows` (n_voxels, n_measurements), some voxels of the scan.
    """
    gain_step = find_gain_step(rows, protocol)
    # Most voxels may be air, which says nothing of the signal.
    tissue = rows[above_air_or_noise(lowest_signals(rows, protocol), noise)]
    order = decay_doubt(tissue, protocol) if gain_step is None else gain_step.description
    doubts = [order, clipping_doubt(rows, protocol), relative_doubt(tissue, protocol, model)]
    # Models with kurtosis have a floor where it matters.
    if not has_floor and (model is None or model.cumulant is None):
        doubts.append(floor_doubt(tissue, protocol))
    return list(filter(None, doubts)), gain_step


def empty_doubt(rows: NDArray, protocol: Protocol, places: NDArray[np.intp]) -> str:
    """
    Name the volumes that hold no signal; an empty text if none, or of few voxels, which may be 0.

    Shapes: `rows` (n_voxels, n_measurements), some voxels of the scan; `places` (n_measurements,),
    those of the volumes in it, from 0.
    """
    is_empty = ~np.nan_to_num(rows).any(axis=0)
    empty = np.flatnonzero(is_empty & (len(rows) >= _FEWEST_VOXELS))
    volumes = ", ".join(f"{places[i] + 1} (b = {protocol.b[i]:g} s/mm²)" for i in empty)
    return SENTENCES["empty"].format(volumes=volumes) if volumes else ""


def decay_doubt(rows: NDArray, protocol: Protocol) -> str:
    """
    Say that the signal rises with b, or falls faster than that of water; an empty text if not.

    Shapes: `rows` (n_voxels, n_measurements), some voxels of the scan that are no air.
    """
    # Relaxation between echo times is no diffusion.
    if protocol.te is not None:
        first = np.flatnonzero(protocol.te <= protocol.te.min() + TE_MATCH)
        rows, protocol = rows[:, first], protocol.take(first)
    if not len(rows) or np.ptp(protocol.b) == 0:
        return ""
    references = rows[:, protocol.b == protocol.b.min()]
    weighted = rows[:, protocol.b == protocol.b.max()]
    reference, end = np.median(references), np.median(weighted)
    if end > _LEAST_RISE * reference > 0:
        return SENTENCES["rising"].format(reference=reference, weighted=end)
    # Perfusion falls as fast, up to b-values that leave nothing of it.
    if protocol.b.max() >= _LEAST_B_OF_TISSUE:
        with np.errstate(divide="ignore", invalid="ignore"):
            decay = np.log(references.mean(axis=1) / weighted.mean(axis=1))
        decay = decay[np.isfinite(decay)]
        adc = np.median(decay) / np.ptp(protocol.b_ms_per_um2) if len(decay) else np.nan
        if adc > _LARGEST_ADC:
            return SENTENCES["fast"].format(adc=adc)
    return ""


def floor_doubt(rows: NDArray, protocol: Protocol) -> str:
    """
    Say that signals at the highest b-value are noise for the most part; an empty text if not.

    Only repeats tell it: residuals of a model that does not fit are larger than the noise.

    Shapes: `rows` (n_voxels, n_measurements), some voxels of the scan that are no air.
    """
    noise = noise_of_repeats(rows, protocol).sigma
    highest = protocol.b >= _HIGHEST_B * protocol.b.max()
    median = np.nanmedian(rows[:, highest]) if len(rows) else np.nan
    if protocol.b.max() <= ZERO_B or not median < _NEAR_FLOOR * noise:
        return ""
    return SENTENCES["near_floor"].format(b=protocol.b.max(), ratio=median / noise)


def clipping_doubt(rows: NDArray, protocol: Protocol | None) -> str:
    """
    Say that values were clipped, if they look so; an empty text if not.

    Shapes: `rows` (n_voxels, n_measurements), some voxels of the scan.
    """
    largest = np.nanmax(rows, initial=-np.inf)
    counts = np.count_nonzero(rows == largest, axis=0)
    n_largest = counts.sum()
    if n_largest <= max(_CLIPPED_SHARE * rows.size, _FEWEST_CLIPPED):
        return ""
    is_end_of_type = largest > 1 and np.log2(largest + 1) % 1 == 0
    is_clipped = counts > _FEWEST_CLIPPED
    is_at_several_b = protocol is None or len(np.unique(protocol.b[is_clipped])) > 1
    # A simulation without noise has equal signals at b = 0, too, but few a little smaller.
    volumes = rows[:, is_clipped]
    n_below = np.count_nonzero((volumes < largest) & (volumes > _NEARLY_CLIPPED * largest))
    if not (is_end_of_type or is_at_several_b or n_below > _SHARE_BELOW * n_largest):
        return ""
    share = percent(n_largest / rows.size)
    return SENTENCES["clipped"].format(share=share, largest=largest)


def merged_sentence(what: str, measured: NDArray, counted_b: NDArray) -> str:
    """Say which b-values (n,) count as which others, such as 1, 5 → 0; empty if none does."""
    is_merged = ~np.isclose(measured, counted_b, atol=0)
    texts = []
    for value in np.unique(counted_b[is_merged]):
        b = np.unique(measured[is_merged & (counted_b == value)])
        listed = ", ".join(f"{one:g}" for one in b) if len(b) <= _MOST_MERGED else span_text(b)
        texts.append(f"{listed} → {round(value, 3):g}")
    return SENTENCES["merged_b"].format(what=what, values="; ".join(texts)) if texts else ""


def protocol_doubts(protocol: Protocol, model: SignalModel | None = None) -> list[str]:
    """Say what looks wrong with b-values, for one model or for all."""
    doubts = []
    lowest, highest = protocol.b.min(), protocol.b.max()
    if highest > _LARGEST_B:
        doubts.append(SENTENCES["highest_b"].format(highest=highest))
    if lowest >= _LOW_B:
        text = f"the lowest b-value is {lowest:g} s/mm²: without one near 0, S0 is extrapolated"
        if model is None or {"f", "Dv"} <= set(model.names):
            text += ", and f is not the signal fraction of perfusion, most of which has decayed"
        doubts.append(f"{text}; measure b = 0 as well")
    return doubts


def _noise_of_fit(
    series: Series, region: NDArray[np.bool_] | None, protocol: Protocol | None
) -> list[NoiseLevel]:
    """Measure the noise as a fit of this region does, before it compares neighbors."""
    if protocol is None:
        return []
    slices = noise_slices(series.grid, region, series.affine)
    signals, _ = spread_voxels(series, slices, np.asarray, None, NOISE_VOXELS)
    try:
        model = MODELS[suggest_model(protocol)[0]]
    except ValueError:  # of one contrast there is no fit
        return []
    rows = Screen(protocol).apply(signals)[0]
    level = measured_noise(rows, protocol, model, FitSettings())
    return [] if level is None else [level]


def _describe_noise(
    info: ScanInfo, series: Series, region: NDArray[np.bool_] | None, of_fit: list[NoiseLevel]
) -> float:
    """Estimate the noise in more ways than one; give that of a fit, NaN where it is unknown."""
    try:
        series.check_magnitudes()
        levels = of_fit + noise_levels(series, mask=region)[::-1]
    except (ImportError, ValueError) as error:
        info.noise = f"not estimated ({error})"
        return np.nan
    text, doubt = describe_noise_levels(levels)
    info.noise, _, info.other_noise = text.partition(", ")
    if info.other_noise:
        methods = dict.fromkeys(level.method.split()[0] for level in levels)
        sources = [read_table("sentences")["noise_sources"][method] for method in methods]
        used = "; without --sigma, fit uses that above" if of_fit else ""
        info.other_noise += f"{used} ({'; '.join(sources)})"
    if doubt and not info.is_denoised:
        info.doubts.append(doubt)
    return float(np.median(levels[0].sigma)) if levels else np.nan


def _model_line(name: str, protocol: Protocol, snr: float) -> str:
    """Say whether a protocol carries a model, with the Cramér–Rao SD at the SNR of the scan."""
    model = MODELS[name]
    missing = missing_for(protocol, model)
    if missing:
        return f"{name}: no, it needs {missing}"
    of_amplitude = snr_of_amplitude(snr, protocol, model)
    if np.isnan(of_amplitude):
        return f"{name}: yes"
    table = expected_precision(protocol, model, snr=of_amplitude)
    texts, undetermined = [], []
    for row, parameter in zip(table.to_dict("records"), model.parameters, strict=True):
        sd = significant(row["sd"], 2)
        if is_undetermined(parameter, row["value"], row["sd"]):
            undetermined.append(parameter.name)
        if not parameter.is_amplitude:
            texts.append(f"{row['parameter']} {row['value']:.3g} ± {sd} {row['unit']}".rstrip())
    names = ", ".join(undetermined)
    but = f", except {names} of single voxels at this SNR" if names else ""
    line = f"{name}: yes{but}; SD of an unbiased fit at least {', '.join(texts)}"
    too_high_b = [f"in typical tissue {text}" for text in table["advice"] if "b·D" in text]
    return "; ".join([line, *too_high_b])
