"""The answer of a fit's page: how many voxels were fitted, and which parameters can be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dmrifit.report.html import counted, html_template
from dmrifit.report.slice_figures import MapPanel

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["html_lights", "html_verdict", "least_doubted", "map_verdict"]

_MOST_DOUBTED = 0.5  # share of voxels in doubt above which a parameter is not determined
_SOME_DOUBTED = 0.1  # … and below which it can be read everywhere

# Letters and words tell the lights apart, too, for those who see no colors.
_LIGHTS = """<ul class="lights">{% for light in lights %}
<li class="{{ light.kind }}"><button type="button" data-show="{{ light.name }}">
<span class="lamp" aria-hidden="true">{{ light.sign }}</span>
<strong>{{ light.name }}</strong> {{ light.value }}
<small>{{ light.words }}</small></button></li>{% endfor %}</ul>"""


def map_verdict(sidecar: Mapping[str, Any]) -> str:
    """Say in one line how many voxels have maps, and which parameters are mostly in doubt."""
    if "Status" not in sidecar:
        counts = sidecar["Voxels"]
        text = (
            f"{counts['WithSignal']} of {counted(counts['InMask'], 'voxel')} predicted from "
            "images of another protocol"
        )
        if counts["NegativeSignal"]:
            text += f"; a predicted signal is negative in {counts['NegativeSignal']}"
        return text
    voxels = sidecar["Status"]["Voxels"]
    n_voxels = sum(voxels.values())
    n_fitted = n_voxels - voxels["not fitted"]
    text = f"{n_fitted} of {counted(n_voxels, 'voxel')} fitted ({100 * n_fitted / n_voxels:.3g} %)"
    for reason, n in sidecar.get("NotFitted", {}).get("Reasons", {}).items():
        text += f", {n} {reason}"
    shares = {
        name: share for name, share in sidecar["Doubt"]["Share"].items() if share > _MOST_DOUBTED
    }
    if shares:
        names = [f"{name} ({100 * share:.0f} %)" for name, share in shares.items()]
        text += f"; in doubt in most of them: {', '.join(names)}"
    else:
        text += "; no parameter is in doubt in most of them"
    if "GainStep" in sidecar:
        text += f"; {sidecar['GainStep']['Description']}"
    return text


def html_verdict(text: str) -> Markup:
    """Write the line that answers."""
    return html_template('<p class="verdict">{{ text }}</p>', text=text)


def html_lights(
    panels: Sequence[MapPanel], region: NDArray[np.bool_], sidecar: Mapping[str, Any]
) -> Markup:
    """
    Show a light for each parameter: determined, in doubt in some voxels, or not determined.

    Shapes: `region` (x, y, z).
    """
    return html_template(_LIGHTS, lights=[_light(panel, region, sidecar) for panel in panels])


def _light(
    panel: MapPanel, region: NDArray[np.bool_], sidecar: Mapping[str, Any]
) -> dict[str, str]:
    values = panel.values[region]
    values = values[np.isfinite(values)]
    text = ""
    if len(values):
        text = f"{plain_number(np.median(values))} {panel.unit}".strip()
    share = sidecar["Doubt"]["Share"][panel.name]
    light = {"name": panel.name, "value": text}
    if "Fixed" in sidecar["Parameters"][panel.name]:
        return light | {"kind": "fixed", "sign": "■", "words": "fixed"}
    if share > _MOST_DOUBTED:
        words = f"not determined in {100 * share:.0f} %"
        return light | {"kind": "undetermined", "sign": "✕", "words": words}
    if share > _SOME_DOUBTED:
        words = f"in doubt in {100 * share:.0f} %"
        return light | {"kind": "doubted", "sign": "▲", "words": words}
    return light | {"kind": "determined", "sign": "●", "words": "determined"}


def plain_number(value: float) -> str:
    """Write a number with three digits and without an exponent."""
    text = np.format_float_positional(value, precision=3, fractional=False, trim="-")
    return text.replace("-", "−")


def least_doubted(names: Sequence[str], sidecar: Mapping[str, Any]) -> str:
    """Choose the parameter that is in doubt in the fewest voxels; the first of equals."""
    shares = sidecar.get("Doubt", {}).get("Share", {})
    return min(names, key=lambda name: shares.get(name, 0.0))
