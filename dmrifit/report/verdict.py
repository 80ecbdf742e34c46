"""The answer of a fit's page: how many voxels were fitted, and which parameters can be read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmrifit._utils.counts import counted, percent
from dmrifit.engine.models import option_words, read_table
from dmrifit.io.bids_derivatives import ALL_VOXELS
from dmrifit.report.numerals import NOTHING, significant, wording
from dmrifit.report.page import Lights, Texts, sentence
from dmrifit.report.slice_figures import MapPanel

_TEXTS = Texts(__file__)
#: Share of voxels in doubt above which a parameter is not determined.
MOST_DOUBTED = 0.5
_SOME_AIR, _MOST_AIR = 0.01, 0.1  # shares of voxels that are mentioned, and that call for a mask
_SIGNS = {"fixed": "■", "undetermined": "✕", "doubted": "▲", "determined": "●", "": ""}
_SOME_DOUBTED = 0.1  # share up to which a parameter counts as determined


def map_verdict(sidecar: Mapping[str, Any], *, doubts: bool = True) -> str:
    """Say in one line how many voxels have maps, and which parameters are mostly in doubt."""
    air = sidecar.get("Air", {}).get("Share", 0.0)
    key = "air" if "Status" in sidecar else "predicted_air"
    air_text = _TEXTS(key, air=percent(air)) if air >= _SOME_AIR else ""
    if "Status" not in sidecar:
        counts = sidecar["Voxels"]
        text = _TEXTS("predicted", **counts)
        if counts["NegativeSignal"]:
            text += _TEXTS("negative", **counts)
        return text + air_text
    voxels = sidecar["Status"]["Voxels"]
    n_voxels = sum(voxels.values())
    n_fitted = n_voxels - voxels["not fitted"]
    share = percent(n_fitted / n_voxels)
    text = _TEXTS("fitted", n_fitted=n_fitted, n_voxels=n_voxels, share=share)
    shares = sidecar["Doubt"]["Share"].items()
    names = [f"{name} ({percent(share)})" for name, share in shares if share > MOST_DOUBTED]
    if doubts and names:
        text += f"; in doubt in most of them: {', '.join(names)}"
    elif doubts:
        text += "; no parameter is in doubt in most of them"
    if "GainStep" in sidecar:
        text += f"; {sidecar['GainStep']['Description']}"
    return text + air_text


def parameter_lights(
    panels: Sequence[MapPanel],
    region: NDArray[np.bool_],
    sidecar: Mapping[str, Any],
    widths: Mapping[str, float] | None = None,
) -> Lights:
    """Tabulate each parameter: median, and the median interval width or why it is in doubt."""
    doubt = sidecar.get("Doubt", {})
    lights = []
    for panel in panels:
        entry = sidecar["Parameters"][panel.name]
        median = panel.summary(region)[1:2]
        text = believed_median(entry, *median, unit=panel.unit)
        kind, words, why, remedy, interval = "determined", "no interval", "", "", ""
        if not doubt:
            # A width is no verdict: what is narrow enough depends on the use of the map.
            kind = "undetermined" if panel.faint else ""
            if widths:
                words = f"{significant(widths[panel.name])} {panel.unit}".strip()
                if any(median):
                    words += f" ({significant(widths[panel.name] / abs(median[0]), 2)}×)"
        elif "Fixed" in entry:
            kind, words = "fixed", "fixed"
        else:
            share = doubt["Share"][panel.name]
            words = percent(share)
            if share > _SOME_DOUBTED:
                kind = "undetermined" if share > MOST_DOUBTED else "doubted"
                why = read_table("sentences")["doubts"][doubt["MainReason"][panel.name]][0]
                remedy = option_words(doubt["Remedy"][panel.name], sidecar["Model"]["Name"])
            interval = str(entry.get("Interval", ""))
            if ", < " in interval:
                text, interval = interval, ""
        light = {"name": panel.name, "layer": panel.layer, "value": text, "why": why}
        light |= {"interval": interval, "words": words, "remedy": remedy}
        lights.append(light | {"kind": kind, "sign": _SIGNS[kind]})
    return Lights(*_TEXTS["headings" if doubt else "plain_headings"], *lights)


def believed_median(entry: Mapping[str, Any], median: float = np.nan, *, unit: str = "") -> str:
    """Write the median of a parameter without doubts, or where doubts are unknown, the median."""
    believed = entry.get("BelievedMedian", median)
    text = str(_TEXTS["too_few"]) if believed is None else significant(believed)
    return text if text[0] == NOTHING else f"{text} {unit}".strip()


def fit_sentences(sidecar: Mapping[str, Any]) -> list[str]:
    """
    Say what limits the values of a fit, and what helps; nothing of a sound fit.

    Terminal, tables and pages, of one scan or of many, all show these sentences; they may begin
    with a small letter and end without a stop, which `prose` mends.
    """
    sentences = list(sidecar.get("Warnings", []))
    sentences += sidecar["Doubt"]["Advice"]
    air = sidecar.get("Air", {}).get("Share", 0.0)
    if air >= _SOME_AIR:
        text = _TEXTS("left_out", air=percent(air))
        if "mask" in remedies(sidecar):
            text += "; --mask auto leaves it out of the fit, too, and perhaps dim tissue"
        sentences.append(text)
    for reason, n in sidecar.get("NotFitted", {}).get("Reasons", {}).items():
        sentences.append(f"not fitted: {counted(n, 'voxel')} {reason}")
    for key, text in _TEXTS["sections"].items():
        if key in sidecar:
            sentences.append(wording(text, sidecar[key]))
    return list(dict.fromkeys(sentences))


def precision_sentence(sidecar: Mapping[str, Any]) -> str:
    """Say how precise a fit of this protocol can be at the SNR of the scan; empty if unknown."""
    expected = sidecar.get("ExpectedPrecision")
    if not expected:
        return ""
    variations = expected["CoefficientOfVariation"].items()
    inseparable = expected.get("Inseparable", [])
    open_names = [name for name, cv in variations if cv is None and name not in inseparable]
    groups = {
        "": [f"{name} ±{percent(cv)}" for name, cv in variations if cv is not None],
        "not determined at this SNR: ": open_names,
        "not determined by this protocol: ": inseparable,
    }
    errors = "; ".join(f"{key}{', '.join(names)}" for key, names in groups.items() if names)
    text = _TEXTS("precision", **{"Exact": "", "errors": errors, **expected})
    return text + (_TEXTS["deviations"] if groups[""] else "")


def noise_lines(noise: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Tell what was chosen by the noise, the noise, SNR and misfit, each by name, where known."""
    entries = [(key, *entry) for key, entry in _TEXTS["noise"].items()]
    return [(name, wording(text, noise)) for key, name, text in entries if noise.get(key)]


def prose(sentences: Iterable[str], sidecar: Mapping[str, Any]) -> list[str]:
    """Begin sentences with a capital, unless with the name of a parameter, and end each."""
    name = sidecar["Model"]["Name"]
    return [sentence(option_words(text, name), sidecar["Parameters"]) for text in sentences]


def remedies(sidecar: Mapping[str, Any]) -> dict[str, Any]:
    """Give the options of `fit_image` by which the sentences of a fit advise to repeat it."""
    options: dict[str, Any] = {}
    is_everywhere = sidecar["Settings"]["Region"] == ALL_VOXELS
    if is_everywhere and sidecar.get("Air", {}).get("Share", 0.0) > _MOST_AIR:
        options["mask"] = "auto"
    if "BMax" in sidecar["Doubt"]:
        options["b_max"] = int(sidecar["Doubt"]["BMax"])
    elif any("--sigma estimate" in text for text in sidecar["Doubt"]["Advice"]):
        options["sigma"] = "estimate"
    return options


def least_doubted(names: Sequence[str], sidecar: Mapping[str, Any]) -> str:
    """Choose the parameter that is in doubt in the fewest voxels; the first of equals."""
    shares = sidecar.get("Doubt", {}).get("Share", {})
    return min(names, key=lambda name: shares.get(name, 0.0))
