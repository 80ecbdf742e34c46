"""The page about a comparison of anomaly maps with lesions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anomaly.scans.detection import lesions_of
from anomaly.study.controls import CONTROLS
from anomaly.study.evaluation import AS_GIVEN, evaluate_detectors, format_summary
from dmrifit.io.atomic_files import FileSet
from dmrifit.io.bids_derivatives import versions
from dmrifit.report.figure_gallery import Gallery
from dmrifit.report.html import (
    NOTICE,
    counted,
    decimals,
    few_note,
    html_details,
    html_heading,
    html_join,
    html_methods,
    html_note,
    html_paragraph,
    html_table,
    synthetic_note,
)
from dmrifit.report.viewer import Layer, html_viewer, viewer_page

if TYPE_CHECKING:
    import pandas as pd
    from markupsafe import Markup

    from anomaly.detectors.thresholds import ThresholdRule
    from anomaly.scans.cases import Case

__all__ = ["KINDS", "PAGE", "write_evaluation"]

#: Tables of a comparison.
KINDS = (
    *("summary", "scans", "healthy", "thresholds", "lesions"),
    *("lesion_scores", "strata", "curves", "areas", "followup"),
)
PAGE = "report.html"

_FIGURES = ("densities.png", "curves.png", "opening.png", "strata.png")
_SHOWN_RULE = "healthy rate"
_EXPLAINED = (
    "Scored inside white and gray matter; each patient counts once (mean ± standard deviation "
    "over patients). AUC is that of the map. Dice coefficients are those of the voxels above the "
    "threshold, raw / after an opening with a cube, which removes what is small. Rules that know "
    "the lesions say how good a map could be, not how good it is. Gray rows were made without "
    "having learned anything."
)

_method_table = partial(html_methods, controls=CONTROLS)


def write_evaluation(
    cases: Sequence[Case],
    maps: Mapping[str, Sequence[ArrayLike]],
    folder: str | Path,
    *,
    healthy: Sequence[Case] = (),
    healthy_maps: Mapping[str, Sequence[ArrayLike]] | None = None,
    rules: Mapping[str, ThresholdRule] | None = None,
    opening: int = 3,
    figures: int = 6,
    overwrite: bool = False,
    command: str = "",
) -> dict[str, pd.DataFrame]:
    """
    Compare anomaly maps with lesions, and write tables and a page.

    Parameters
    ----------
    cases : sequence of Case
        Scans with lesions that were not learned from.
    maps : mapping of str to sequence of array_like of shape (x, y, z)
        For each method and each case, as `evaluate_detectors` takes them.
    folder : path
        Made if missing. All files appear together: tables as CSV files, figures as PNG files and
        ``report.html``, which needs no other file and no network.
    healthy : sequence of Case, optional
        Healthy scans that were not learned from.
    healthy_maps : mapping of str to sequence, optional
        Their maps.
    rules : mapping of str to rule, optional
        As for `evaluate_detectors`.
    opening : int, default=3
        Edge of the cube of `open_map`, in voxels.
    figures : int, default=6
        How many scans are shown: those in which the first method's opened Dice is worst, and one
        healthy scan.
    overwrite : bool, default=False
        Whether files of an earlier comparison may be replaced.
    command : str, default=""
        What made it, for the page.

    Returns
    -------
    dict of str to DataFrame
        What `evaluate_detectors` gave.

    Raises
    ------
    ValueError
        As `evaluate_detectors`.
    FileExistsError
        If a file would be replaced.
    ImportError
        If the extra ``report`` is not installed.
    """
    from dmrifit._optional import import_optional

    for needed in ("matplotlib", "jinja2"):
        import_optional(needed)  # said before long work
    names = [*(f"{kind}.csv" for kind in KINDS), *_FIGURES, PAGE]
    with FileSet(folder, names, overwrite=overwrite) as files:
        tables = evaluate_detectors(
            cases, maps, healthy=healthy, healthy_maps=healthy_maps, rules=rules, opening=opening
        )
        gallery = Gallery()
        scans = _Scans(cases, maps, healthy, healthy_maps or {}, tables, opening)
        sections = _sections(scans, gallery, figures, command)
        page = viewer_page(
            "Anomaly maps compared with lesions",
            sections,
            lead=_lead([*cases, *healthy]),
            contents=True,
        )
        for kind in KINDS:
            tables[kind].to_csv(files.path(f"{kind}.csv"), index=False)
        for name in _FIGURES:
            if name in gallery.pictures:
                files.path(name).write_bytes(gallery.pictures[name])
        files.path(PAGE).write_text(page, encoding="utf-8")
    return tables


class _Scans:
    """What a page is about."""

    def __init__(
        self,
        cases: Sequence[Case],
        maps: Mapping[str, Sequence[ArrayLike]],
        healthy: Sequence[Case],
        healthy_maps: Mapping[str, Sequence[ArrayLike]],
        tables: Mapping[str, pd.DataFrame],
        opening: int,
    ) -> None:
        self.cases, self.maps, self.healthy, self.healthy_maps = cases, maps, healthy, healthy_maps
        self.tables, self.opening = tables, opening
        blind = tables["thresholds"][~tables["thresholds"]["needs_truth"].astype(bool)]
        shared_rules = [
            rule
            for rule in dict.fromkeys(blind["rule"])
            if blind.query("rule == @rule")["threshold"].notna().any()
        ]
        #: The rule that figures show: the rate on healthy scans, or else the first that knows no
        #: lesions.
        self.rule = (
            _SHOWN_RULE if _SHOWN_RULE in shared_rules else shared_rules[0] if shared_rules else ""
        )

    def thresholds(self) -> dict[str, float]:
        table = self.tables["thresholds"]
        limits = table[table["rule"] == self.rule].set_index("method")["threshold"]
        return {
            name: float(limits[name])
            for name in self.maps
            if name in limits and np.isfinite(limits[name])
        }

    def graded(self) -> list[str]:
        return [name for name, values in self.maps.items() if np.asarray(values[0]).dtype != bool]


def _lead(scans: Sequence[Case]) -> str:
    return f"{NOTICE} {synthetic_note(sum(case.synthetic for case in scans), len(scans))}".rstrip()


def _sections(
    scans: _Scans, gallery: Gallery, figures: int, command: str
) -> list[tuple[str, Any]]:
    tables = scans.tables
    sections: list[tuple[str, Callable[[], Any]]] = [
        ("", partial(_introduction, scans)),
        ("Maps and thresholds", partial(_summaries, scans, gallery)),
        *([("Scores", partial(_densities, scans, gallery))] if scans.graded() else []),
        *(
            [("False positives in healthy persons", partial(_healthy, scans, gallery))]
            if len(scans.healthy)
            else []
        ),
        *([("By place", partial(_strata, scans, gallery))] if len(tables["strata"]) else []),
        *(
            [("Lesion by lesion", partial(_lesions, scans))]
            if len(tables["lesion_scores"])
            else []
        ),
        *(
            [("Where lesions grow later", partial(_followup, scans))]
            if len(tables["followup"])
            else []
        ),
        ("Scans", partial(_panels, scans, gallery, figures)),
        ("How this was made", partial(_origin, scans, command)),
    ]
    return [(heading, make()) for heading, make in sections]


def _introduction(scans: _Scans) -> Markup:
    patients = len({case.patient for case in scans.cases})
    kind = "synthetic " if all(case.synthetic for case in scans.cases) else ""
    kinds = [case.kind for case in scans.cases if case.kind]
    counts = ", ".join(f"{kinds.count(one)} {one}" for one in dict.fromkeys(kinds))
    parts = [
        html_paragraph(
            f"{counted(len(scans.cases), kind + 'scan')} of "
            f"{counted(patients, 'patient')}{f' ({counts})' if counts else ''}, and "
            f"{counted(len(scans.healthy), 'healthy scan')}."
        )
    ]
    if note := few_note(patients):
        parts.append(html_paragraph(note))
    return html_join(parts)


def _summaries(scans: _Scans, gallery: Gallery) -> Markup:
    from anomaly.study.plotting import plot_opening

    tables = scans.tables
    parts: list[Any] = [html_paragraph(_EXPLAINED)]
    summary = tables["summary"]
    aided = set(summary.loc[summary["needs_truth"].astype(bool), "rule"])
    for part in dict.fromkeys(summary["part"]):
        table = format_summary(tables, part=part)
        blind = _summary_table(table.drop(columns=[rule for rule in aided if rule in table]))
        parts.append(
            blind if part == "all" else html_details(f"Lesions of the kind {part}", blind)
        )
        if part == "all" and aided:
            best = table[["AUC", *(rule for rule in table if rule in aided)]]
            parts.append(html_details("Rules that know the lesions", _summary_table(best)))
    text = (
        "Means over patients; a ring is the mask above the threshold, a disk the mask after "
        "opening."
    )
    if (~summary["needs_truth"].astype(bool) & ~summary["control"].astype(bool)).any():
        parts.append(
            gallery.show(
                "opening", plot_opening(tables), "Dice coefficients, raw and opened", text
            )
        )
    limits = tables["thresholds"]
    rows = [
        [row["method"], row["rule"], _digits(row["threshold"])]
        for row in limits.to_dict("records")
        if np.isfinite(row["threshold"]) and row["method"] not in CONTROLS
    ]
    if rows:
        body = html_table(rows, ["method", "rule", "threshold"], numbers=(2,))
        parts.append(html_details("Thresholds that all scans share", body))
    return html_join(parts)


def _by_rule(
    rows: Sequence[Sequence[Any]], header: Sequence[str], rule: str, n_words: int
) -> Markup:
    """Show the rows of one rule and of masks, and those of all rules on request."""
    first = [row for row in rows if row[1] in (rule, AS_GIVEN)]
    shown = _method_table(first or rows, header, n_words)
    if not first or len(first) == len(rows):
        return shown
    return html_join([shown, html_details("By all rules", _method_table(rows, header, n_words))])


def _summary_table(table: pd.DataFrame) -> Markup:
    return _method_table(
        table.reset_index().to_numpy().tolist(), ["method", *map(str, table.columns)]
    )


def _densities(scans: _Scans, gallery: Gallery) -> Markup:
    from anomaly.study.plotting import plot_densities

    figure = plot_densities(
        scans.cases,
        scans.maps,
        healthy=scans.healthy,
        healthy_maps=scans.healthy_maps if len(scans.healthy) else None,
        thresholds=scans.thresholds(),
    )
    text = (
        f"Each curve has the area 1. Dotted: the threshold by {scans.rule}." if scans.rule else ""
    )
    return gallery.show(
        "densities", figure, "Densities of scores in healthy persons and patients", text
    )


def _healthy(scans: _Scans, gallery: Gallery) -> Markup:
    from anomaly.study.plotting import plot_curves

    tables, parts = scans.tables, []
    if len(tables["curves"]):
        text = (
            "Share of each lesion that is above the threshold (mean), over the share of voxels of "
            "healthy persons that are: false positives are counted in healthy persons only."
        )
        parts.append(
            gallery.show(
                "curves", plot_curves(tables), "Coverage of lesions over false positives", text
            )
        )
        rows = [
            [row["method"], decimals(3)(row["area"]), decimals(3)(row["area_low"])]
            for row in tables["areas"].to_dict("records")
        ]
        parts.append(
            _method_table(rows, ["method", "area up to .3", "area from .001 to .01 (logarithmic)"])
        )
    rates = tables["summary"].query("part == 'all'")
    keys = {
        "false_positive_rate": "false positives",
        "false_positive_rate_opened": "opened",
        "empty": "empty scans",
        "empty_opened": "opened",
    }
    rows = [
        [
            row["method"],
            row["rule"],
            *(decimals(4 if "rate" in key else 2)(row[key]) for key in keys),
        ]
        for row in rates.to_dict("records")
        if not row["needs_truth"]
    ]
    parts.append(_by_rule(rows, ["method", "rule", *keys.values()], scans.rule, 2))
    return html_join(parts)


def _strata(scans: _Scans, gallery: Gallery) -> Markup:
    from anomaly.study.plotting import plot_strata

    table = scans.tables["strata"]
    parts: list[Any] = []
    if scans.rule in set(table["rule"]):
        text = (
            "The study's weak spots: near the cortex, at deep nuclei, low in the brain. "
            "They overlap."
        )
        figure = plot_strata(scans.tables, rule=scans.rule)
        parts.append(
            gallery.show("strata", figure, "AUC and sensitivity by place in the brain", text)
        )
    blind = table[~table["needs_truth"].astype(bool)]
    keys = ("auc", "dice_opened", "sensitivity_opened", "false_positive_rate_opened")
    rows = [
        [
            row["method"],
            row["rule"],
            row["stratum"],
            f"{row['n_patients']:.0f}",
            *(decimals(3)(row[key]) for key in keys),
        ]
        for row in blind.to_dict("records")
    ]
    header = [
        "method",
        "rule",
        "place",
        "patients",
        "AUC",
        "Dice, opened",
        "sensitivity",
        "false positives",
    ]
    parts.append(_by_rule(rows, header, scans.rule, 3))
    return html_join(parts)


def _lesions(scans: _Scans) -> Markup:
    table = scans.tables["lesion_scores"]
    keys = {
        key: name
        for key, name in (
            ("n_lesions", "lesions"),
            ("sensitivity", "sensitivity"),
            ("precision", "precision"),
            ("n_false_positives", "false positives"),
            ("mDSC", "mDSC"),
            ("lesion_dice", "lesion-wise Dice"),
        )
        if key in table
    }
    rows = [
        [
            row["method"],
            row["rule"],
            *(decimals(0 if key.startswith("n_") else 3)(row[key]) for key in keys),
        ]
        for row in table.to_dict("records")
    ]
    text = "Components of opened masks; a lesion is found when one shares a voxel with it."
    return html_join(
        [html_paragraph(text), _by_rule(rows, ["method", "rule", *keys.values()], scans.rule, 2)]
    )


def _followup(scans: _Scans) -> Markup:
    table = scans.tables["followup"]
    counts = ("n_patients", "n_grown", "n_mismatch", "n_colocated")
    rows = [
        [
            row["method"],
            row["rule"],
            row["grade"],
            *(f"{row[key]:.0f}" for key in counts),
            decimals(1)(row["expected"]),
            decimals(3)(row["share_flagged"]),
            decimals(3)(row["share_expected"]),
        ]
        for row in table.to_dict("records")
    ]
    text = (
        "Regions of opened masks outside the lesion, and whether they lie where the lesion is "
        "later; expected is what regions of these sizes at other places would reach by chance."
    )
    header = [
        "method",
        "rule",
        "grade",
        "patients",
        "grown",
        "with a region",
        "co-located",
        "expected",
    ]
    header += ["share flagged", "by chance"]
    return html_join([html_paragraph(text), _by_rule(rows, header, scans.rule, 3)])


def _panels(scans: _Scans, gallery: Gallery, figures: int) -> Markup:
    from anomaly.study.plotting import map_limits, plot_panels

    first = next(iter(scans.maps))
    table = scans.tables["scans"]
    rules = (scans.rule, AS_GIVEN)
    own = (
        table[(table["method"] == first) & table["rule"].isin(rules)]
        .groupby("case")["dice_opened"]
        .mean()
    )
    order = [int(i) for i in own.dropna().sort_values(kind="stable").index[:figures]]
    thresholds = scans.thresholds()
    shown = [name for name in scans.maps if name in thresholds or name not in scans.graded()]
    if not shown or not order:
        return html_paragraph("No threshold is shared by all scans, so no masks are shown.")
    every = [*scans.cases, *scans.healthy]
    limits = map_limits(
        {name: [*scans.maps[name], *scans.healthy_maps.get(name, ())] for name in shown}, every
    )
    text = (
        f"{len(order)} of {counted(len(scans.cases), 'scan')}, those in which {first} has the "
        f"lowest opened Dice first{', and a healthy one' if len(scans.healthy) else ''}. Each "
        "method has one scale for all scans; the threshold is that by "
        f"{scans.rule or 'its makers'}. The patient's right is at the left."
    )
    parts = [html_paragraph(text)]
    wanted: list[tuple[str, Case, dict[str, NDArray]]] = [
        (f"panels-{i}", scans.cases[i], {name: np.asarray(scans.maps[name][i]) for name in shown})
        for i in order
    ]
    if len(scans.healthy):
        own_maps = {name: np.asarray(scans.healthy_maps[name][0]) for name in shown}
        wanted.append(("panels-healthy", scans.healthy[0], own_maps))
    for name, case, maps in wanted:
        figure = plot_panels(case, maps, thresholds, limits, opening=scans.opening)
        kind = "Synthetic scan" if case.synthetic else "Scan"
        if name == wanted[0][0]:
            parts += [html_heading(f"{kind} {case.name}"), _planes(case, maps, thresholds)]
        parts.append(
            gallery.show(name, figure, f"{kind} {case.name}: mean signal, maps and masks")
        )
    return html_join(parts)


def _planes(case: Case, maps: Mapping[str, NDArray], thresholds: Mapping[str, float]) -> Markup:
    """Show one scan with the maps and the masks of all methods, to move through."""
    layers = [Layer("mean signal", case.signal.mean(axis=-1))]
    for name, values in maps.items():
        if values.dtype == bool:
            layers.append(Layer(name, values, "mask"))
        else:
            limit = thresholds.get(name)
            # Found is what lies above; the viewer shows what reaches a threshold.
            reached = (
                None
                if limit is None or not np.isfinite(limit)
                else float(np.nextafter(limit, np.inf))
            )
            layers.append(Layer(name, values, "score", threshold=reached))
    points = []
    if case.lesion is not None:
        layers.append(Layer("lesion", case.lesion, "mask"))
        lesions = lesions_of(case.lesion, case.signal.mean(axis=-1), case.affine).to_dict(
            "records"
        )
        points = [
            (f"lesion of {row['volume_mL']:.2f} mL", [row[axis] for axis in "xyz"])
            for row in lesions
        ]
    note = html_note("The pictures below show the same scan.")
    label = f"Maps of {case.name}"
    return html_viewer(
        layers, case.affine, points=points, region=case.brain, label=label, instead=note
    )


def _origin(scans: _Scans, command: str) -> Markup:
    rows: list[list[str]] = [["date", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")]]
    rows += [["command", command]] if command else []
    rows += [["opening", f"cube of {scans.opening}³ voxels"]]
    rows += [
        [f"version of {name}", text]
        for name, text in versions("dmrifit", "numpy", "scipy").items()
    ]
    return html_join([html_table(rows), html_note("Tables lie beside this page as CSV files.")])


def _digits(value: float) -> str:
    return f"{value:.4g}"
