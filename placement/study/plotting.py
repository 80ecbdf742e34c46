"""Figures of a comparison with experts, and the page on which readers place boxes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dmrifit._utils.randomness import RandomState, Seed
from dmrifit.report import page, style
from dmrifit.report.viewer import pack_volumes
from placement.box.voxel import Voxel
from placement.exchange.pages import scene_layers
from placement.exchange.tables import BOX
from placement.exchange.vendor_texts import NOTICE
from placement.search.scene import Scene
from placement.study.evaluation import CONTROLS, MEASURES

if TYPE_CHECKING:
    import pandas as pd

_POINTS: dict[str, Any] = {"marker": "o", "linestyle": "none", "markeredgewidth": 0}
_MEASURES = {name: MEASURES[name] for name in ("dice_fair", "f_tumor", "dice_mean", "volume")}
_BY_METHOD = ("dice_fair", "f_tumor")  # measures in columns of methods, not over the tumor

_MAX_BYTES = 24_000_000
_NUMBERS = {"center, mm": "xyz", "sides, mm": "123", "angles, degrees": "xyz"}


def plot_evaluation(
    tables: Mapping[str, pd.DataFrame], *, synthetic: bool = False
) -> style.Figure:
    """Draw how placements compare with experts', as the study's figures do."""
    cases = tables["cases"]
    experts, *raters = dict.fromkeys(cases["method"])
    placers = [name for name in raters if name not in CONTROLS]
    colors = {experts: style.FAINT} | {name: style.method_color(name, placers) for name in raters}
    n_columns = max(len(_MEASURES), len(raters))
    with style.drawing((3.3 * n_columns, 7.0), (2, n_columns), {}) as (figure, [above, below]):
        for ax in [*above[len(_MEASURES) :], *below[len(raters) :]]:
            ax.set_axis_off()
        for ax, (measure, title) in zip(above, _MEASURES.items(), strict=False):
            ax.set_title(title)
            if measure in _BY_METHOD:
                _draw_scores(ax, cases, measure, colors)
                continue
            for name in (experts, *placers):
                rows = cases[cases["method"] == name]
                x, y = rows["tumor_volume"], rows[measure]
                ax.plot(x, y, markersize=3, alpha=0.6, color=colors[name], label=name, **_POINTS)
            ax.set(xlabel="tumor, mL")
            ax.legend(frameon=False, fontsize=8)
        # One range in all panels, so that methods can be compared.
        limits = tables["bland_altman"].query("against == 'mean of experts'")[["lower", "upper"]]
        reach = 1.05 * max(cases["difference"].abs().max(), limits.abs().max().max())
        for ax, name in zip(below, raters, strict=False):
            _draw_agreement(ax, tables, name, colors[name])
            if np.isfinite(reach):
                ax.set_ylim(-reach, reach)
        below[0].set_ylabel("difference from experts, mL\n(lines: mean and limits of agreement)")
        style.note_below(figure, style.figure_notice(synthetic))
    return figure


def _draw_scores(
    ax: style.Axes, cases: pd.DataFrame, measure: str, colors: Mapping[str, str]
) -> None:
    """Draw the scores of all cases in a column for each method, with their means."""
    for k, (name, color) in enumerate(colors.items()):
        scores = cases.loc[cases["method"] == name, measure].dropna().to_numpy()
        # Spread by the case's number: repeatable, and equal values do not hide each other.
        x = k + 0.5 * ((np.arange(len(scores)) * 0.618) % 1 - 0.5)
        ax.plot(x, scores, markersize=3, alpha=0.5, color=color, **_POINTS)
        if len(scores):
            ax.plot([k - 0.3, k + 0.3], [scores.mean()] * 2, color=color, linewidth=2)
    ax.set_xticks(range(len(colors)), list(colors), rotation=30, ha="right")
    ax.set_ylim(-0.02, 1.02)


def _draw_agreement(
    ax: style.Axes, tables: Mapping[str, pd.DataFrame], method: str, color: str
) -> None:
    """Draw differences of volume from the experts over means, with the limits of agreement."""
    rows = tables["cases"][tables["cases"]["method"] == method]
    mean = rows["volume"] - rows["difference"] / 2
    ax.plot(mean, rows["difference"], markersize=3.5, alpha=0.6, color=color, **_POINTS)
    table = tables["bland_altman"]
    limits = table[(table["method"] == method) & (table["against"] == "mean of experts")].iloc[0]
    for key, dash in (("bias", "-"), ("lower", "--"), ("upper", "--")):
        if np.isfinite(limits[key]):
            ax.axhline(limits[key], color=color, linestyle=dash, linewidth=1)
    # Adding 0 makes −0.0 a 0.0.
    bias, lower, upper = (round(float(limits[key]), 1) + 0.0 for key in ("bias", "lower", "upper"))
    ax.set(xlabel="mean with experts, mL")
    ax.set_title(f"{method}: {bias:.1f} mL ({lower:.1f} … {upper:.1f})", fontsize=9.5)


def reader_page(
    scenes: Sequence[Scene],
    *,
    proposals: Mapping[str, Voxel] | None = None,
    random_state: RandomState = 0,
) -> str:
    """
    Make one HTML page, which needs no network, to place or correct a box in each case.

    Cases come in an order drawn by the seed, by numbers instead of their names; what the reader
    saves once all have a box is a table with the columns that `read_experts` reads.
    """
    names = [scene.name for scene in scenes]
    if not scenes or len(set(names)) < len(names):
        raise ValueError(f"readers need cases of different names, not {names}")
    order = np.random.default_rng(Seed(random_state)).permutation(len(scenes))
    each = _MAX_BYTES // len(scenes)
    cases = [_case(scenes[int(i)], (proposals or {}).get(names[int(i)]), each) for i in order]
    # Another choice of cases or proposals begins anew in the browser.
    key = hashlib.sha256(repr([(case["name"], case["box"]) for case in cases]).encode())
    data = {"cases": cases, "columns": ["name", "expert", *BOX], "key": key.hexdigest()[:16]}
    template = page.read_data(__file__, "reader.html")
    body = page.fill(template, numbers=list(_NUMBERS.items()), data=data)
    lead = page.notice_lead([scene.synthetic for scene in scenes], "case", f"{NOTICE}.")
    script = f"{page.viewer_script()}\n{page.read_data(__file__, 'reader.js')}"
    style = page.read_data(__file__, "reader.css")
    sections = [page.Section("", body)]
    return page.Page("Place the boxes", sections, lead, script=script, style=style).html()


def _case(scene: Scene, proposal: Voxel | None, max_bytes: int) -> dict[str, Any]:
    """Pack the image and the outline of the tumor, and the box that is proposed."""
    box = None
    if proposal is not None:
        box = {name: getattr(proposal, name).tolist() for name in ("center", "size", "angles")}
    start = [float(x) for x in scene.centroid]
    packed = pack_volumes(scene_layers(scene, "tumor"), scene.affine, max_bytes=max_bytes)
    return {"name": scene.name, "start": start, "box": box, **packed}
