"""The page about a comparison of anomaly maps with lesions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anomaly.scans.detection import lesions_of
from anomaly.study.controls import CONTROLS
from anomaly.study.evaluation import AS_GIVEN, evaluate_detectors, format_summary
from dmrifit.io.atomic_files import FileSet
from dmrifit.report.figure_gallery import Gallery, write_comparison
from dmrifit.report.html import (
    counted,
    decimals,
    few_note,
    html_details,
    html_heading,
    html_join,
    html_methods,
    html_note,
    html_origin,
    html_paragraph,
    html_table,
    notice_lead,
    record_cells,
    whole,
)
from dmrifit.report.viewer import Layer, html_viewer, viewer_page

if TYPE_CHECKING:
    import pandas as pd
    from markupsafe import Markup

    from anomaly.scans.cases import Case

__all__ = ["KINDS", "PAGE", "write_evaluation"]

#: Tables of a comparison.
KINDS = (
    "summary",
    "scans",
    "healthy",
    "thresholds",
    "lesions",
    "lesion_scores",
    "strata",
    "curves",
    "areas",
    "followup",
)
PAGE = "report.html"

_FIGURES = ("densities.png", "curves.png", "opening.png", "strata.png")
_SHOWN_RULE = "healthy rate"
_OPENING = 3  # voxels along the edge of the cube
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

    # A missing library is reported before the long work, not after it.
    for library in ("matplotlib", "jinja2"):
        import_optional(library)
    names = [*(f"{kind}.csv" for kind in KINDS), *_FIGURES, PAGE]
    with FileSet(folder, names, overwrite=overwrite) as files:
        tables = evaluate_detectors(
            cases, maps, healthy=healthy, healthy_maps=healthy_maps, opening=_OPENING
        )
        gallery = Gallery()
        comparison = _Comparison(cases, maps, healthy, healthy_maps or {}, tables)
        page = viewer_page(
            "Anomaly maps compared with lesions",
            _sections(comparison, gallery, figures, command),
            lead=notice_lead(case.synthetic for case in [*cases, *healthy]),
            contents=True,
        )
        written_tables = {kind: tables[kind] for kind in KINDS}
        write_comparison(files, written_tables, gallery, {PAGE: page})
    return tables


@dataclass(frozen=True, eq=False)
class _Comparison:
    """Scans and maps of a comparison, with their tables."""

    cases: Sequence[Case]
    maps: Mapping[str, Sequence[ArrayLike]]
    healthy: Sequence[Case]
    healthy_maps: Mapping[str, Sequence[ArrayLike]]
    tables: Mapping[str, pd.DataFrame]

    @cached_property
    def rule(self) -> str:
        """The rule that figures show: a rate in healthy scans, or the first without lesions."""
        table = self.tables["thresholds"]
        blind = table[~table["needs_truth"].astype(bool)]
        by_rule = blind.groupby("rule", sort=False)["threshold"]
        # Rules that choose a threshold for each scan have none that scans share.
        rules = [rule for rule, thresholds in by_rule if thresholds.notna().any()]
        if _SHOWN_RULE in rules:
            return _SHOWN_RULE
        return rules[0] if rules else ""

    def thresholds(self) -> dict[str, float]:
        """Give the threshold of each method by the rule that figures show."""
        table = self.tables["thresholds"]
        limits = table[table["rule"] == self.rule].set_index("method")["threshold"]
        thresholds = {}
        for name in self.maps:
            if name in limits and np.isfinite(limits[name]):
                thresholds[name] = float(limits[name])
        return thresholds

    def graded(self) -> list[str]:
        """List the methods whose maps are scores, not masks."""
        return [name for name, values in self.maps.items() if np.asarray(values[0]).dtype != bool]


def _sections(
    comparison: _Comparison, gallery: Gallery, figures: int, command: str
) -> list[tuple[str, Any]]:
    tables = comparison.tables
    sections: list[tuple[str, Any]] = [
        ("", _introduction(comparison)),
        ("Maps and thresholds", _summaries(comparison, gallery)),
    ]
    if comparison.graded():
        sections.append(("Scores", _densities(comparison, gallery)))
    if len(comparison.healthy):
        sections.append(("False positives in healthy persons", _healthy(comparison, gallery)))
    if len(tables["strata"]):
        sections.append(("By place", _strata(comparison, gallery)))
    if len(tables["lesion_scores"]):
        sections.append(("Lesion by lesion", _lesions(comparison)))
    if len(tables["followup"]):
        sections.append(("Where lesions grow later", _followup(comparison)))
    sections.append(("Scans", _panels(comparison, gallery, figures)))
    origin = html_origin(command, [["opening", f"cube of {_OPENING}³ voxels"]])
    note = html_note("Tables lie beside this page as CSV files.")
    sections.append(("How this was made", html_join([origin, note])))
    return sections


def _introduction(comparison: _Comparison) -> Markup:
    cases = comparison.cases
    n_patients = len({case.patient for case in cases})
    prefix = "synthetic " if all(case.synthetic for case in cases) else ""
    kinds = [case.kind for case in cases if case.kind]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    text = f"{counted(len(cases), f'{prefix}scan')} of {counted(n_patients, 'patient')}"
    if counts:
        text += f" ({counts})"
    text += f", and {counted(len(comparison.healthy), 'healthy scan')}."
    paragraphs = [html_paragraph(text)]
    note = few_note(n_patients)
    if note:
        paragraphs.append(html_paragraph(note))
    return html_join(paragraphs)


def _summaries(comparison: _Comparison, gallery: Gallery) -> Markup:
    from anomaly.study.plotting import plot_opening

    tables = comparison.tables
    summary = tables["summary"]
    needs_truth = summary["needs_truth"].astype(bool)
    aided_rules = set(summary.loc[needs_truth, "rule"])
    blocks: list[Any] = [html_paragraph(_EXPLAINED)]
    for subset in dict.fromkeys(summary["part"]):
        table = format_summary(tables, part=subset)
        aided = [rule for rule in table if rule in aided_rules]
        blind_table = _summary_table(table.drop(columns=aided))
        if subset != "all":
            blocks.append(html_details(f"Lesions of the kind {subset}", blind_table))
            continue
        blocks.append(blind_table)
        if aided_rules:
            best = _summary_table(table[["AUC", *aided]])
            blocks.append(html_details("Rules that know the lesions", best))
    if (~needs_truth & ~summary["control"].astype(bool)).any():
        text = (
            "Means over patients; a ring is the mask above the threshold, a disk the mask after "
            "opening."
        )
        figure = plot_opening(tables)
        blocks.append(gallery.show("opening", figure, "Dice coefficients, raw and opened", text))
    rows = []
    for row in tables["thresholds"].to_dict("records"):
        if np.isfinite(row["threshold"]) and row["method"] not in CONTROLS:
            rows.append([row["method"], row["rule"], f"{row['threshold']:.4g}"])
    if rows:
        body = html_table(rows, ["method", "rule", "threshold"], numbers=(2,))
        blocks.append(html_details("Thresholds that all scans share", body))
    return html_join(blocks)


def _by_rule(
    rows: Sequence[Sequence[Any]], header: Sequence[str], rule: str, n_words: int
) -> Markup:
    """Show the rows of one rule and of masks, and those of all rules on request."""
    rule_rows = [row for row in rows if row[1] in (rule, AS_GIVEN)]
    table = _method_table(rule_rows or rows, header, n_words)
    if not rule_rows or len(rule_rows) == len(rows):
        return table
    return html_join([table, html_details("By all rules", _method_table(rows, header, n_words))])


def _summary_table(table: pd.DataFrame) -> Markup:
    header = ["method", *map(str, table.columns)]
    return _method_table(table.reset_index().to_numpy().tolist(), header)


def _densities(comparison: _Comparison, gallery: Gallery) -> Markup:
    from anomaly.study.plotting import plot_densities

    figure = plot_densities(
        comparison.cases,
        comparison.maps,
        healthy=comparison.healthy,
        healthy_maps=comparison.healthy_maps if len(comparison.healthy) else None,
        thresholds=comparison.thresholds(),
    )
    text = ""
    if comparison.rule:
        text = f"Each curve has the area 1. Dotted: the threshold by {comparison.rule}."
    alt = "Densities of scores in healthy persons and patients"
    return gallery.show("densities", figure, alt, text)


def _healthy(comparison: _Comparison, gallery: Gallery) -> Markup:
    from anomaly.study.plotting import plot_curves

    tables = comparison.tables
    blocks = []
    if len(tables["curves"]):
        text = (
            "Share of each lesion that is above the threshold (mean), over the share of voxels of "
            "healthy persons that are: false positives are counted in healthy persons only."
        )
        figure = plot_curves(tables)
        alt = "Coverage of lesions over false positives"
        blocks.append(gallery.show("curves", figure, alt, text))
        areas = {"method": str, "area": decimals(3), "area_low": decimals(3)}
        rows = record_cells(tables["areas"].to_dict("records"), areas)
        header = ["method", "area up to .3", "area from .001 to .01 (logarithmic)"]
        blocks.append(_method_table(rows, header))
    summary = tables["summary"].query("part == 'all' and not needs_truth")
    columns = {
        "method": str,
        "rule": str,
        "false_positive_rate": decimals(4),
        "false_positive_rate_opened": decimals(4),
        "empty": decimals(2),
        "empty_opened": decimals(2),
    }
    rows = record_cells(summary.to_dict("records"), columns)
    header = ["method", "rule", "false positives", "opened", "empty scans", "opened"]
    blocks.append(_by_rule(rows, header, comparison.rule, 2))
    return html_join(blocks)


def _strata(comparison: _Comparison, gallery: Gallery) -> Markup:
    from anomaly.study.plotting import plot_strata

    table = comparison.tables["strata"]
    blocks: list[Any] = []
    if comparison.rule in set(table["rule"]):
        text = (
            "The study's weak spots: near the cortex, at deep nuclei, low in the brain. "
            "They overlap."
        )
        figure = plot_strata(comparison.tables, rule=comparison.rule)
        alt = "AUC and sensitivity by place in the brain"
        blocks.append(gallery.show("strata", figure, alt, text))
    columns = {
        "method": str,
        "rule": str,
        "stratum": str,
        "n_patients": whole,
        "auc": decimals(3),
        "dice_opened": decimals(3),
        "sensitivity_opened": decimals(3),
        "false_positive_rate_opened": decimals(3),
    }
    blind = table[~table["needs_truth"].astype(bool)]
    rows = record_cells(blind.to_dict("records"), columns)
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
    blocks.append(_by_rule(rows, header, comparison.rule, 3))
    return html_join(blocks)


def _lesions(comparison: _Comparison) -> Markup:
    table = comparison.tables["lesion_scores"]
    columns: dict[str, tuple[str, Callable[[Any], str]]] = {
        "method": ("method", str),
        "rule": ("rule", str),
        "n_lesions": ("lesions", decimals(0)),
        "sensitivity": ("sensitivity", decimals(3)),
        "precision": ("precision", decimals(3)),
        "n_false_positives": ("false positives", decimals(0)),
        "mDSC": ("mDSC", decimals(3)),
        "lesion_dice": ("lesion-wise Dice", decimals(3)),
    }
    present = {key: column for key, column in columns.items() if key in table}
    writers = {key: write for key, (_, write) in present.items()}
    rows = record_cells(table.to_dict("records"), writers)
    header = [title for title, _ in present.values()]
    text = "Components of opened masks; a lesion is found when one shares a voxel with it."
    return html_join([html_paragraph(text), _by_rule(rows, header, comparison.rule, 2)])


def _followup(comparison: _Comparison) -> Markup:
    columns = {
        "method": ("method", str),
        "rule": ("rule", str),
        "grade": ("grade", str),
        "n_patients": ("patients", whole),
        "n_grown": ("grown", whole),
        "n_mismatch": ("with a region", whole),
        "n_colocated": ("co-located", whole),
        "expected": ("expected", decimals(1)),
        "share_flagged": ("share flagged", decimals(3)),
        "share_expected": ("by chance", decimals(3)),
    }
    writers = {key: write for key, (_, write) in columns.items()}
    rows = record_cells(comparison.tables["followup"].to_dict("records"), writers)
    header = [title for title, _ in columns.values()]
    text = (
        "Regions of opened masks outside the lesion, and whether they lie where the lesion is "
        "later; expected is what regions of these sizes at other places would reach by chance."
    )
    return html_join([html_paragraph(text), _by_rule(rows, header, comparison.rule, 3)])


def _panels(comparison: _Comparison, gallery: Gallery, figures: int) -> Markup:
    from anomaly.study.plotting import map_limits, plot_panels

    thresholds = comparison.thresholds()
    graded = comparison.graded()
    methods = [name for name in comparison.maps if name in thresholds or name not in graded]
    order = _worst_scans(comparison)[:figures]
    if not methods or not order:
        return html_paragraph("No threshold is shared by all scans, so no masks are shown.")
    all_maps = {}
    for name in methods:
        all_maps[name] = [*comparison.maps[name], *comparison.healthy_maps.get(name, ())]
    limits = map_limits(all_maps, [*comparison.cases, *comparison.healthy])
    first = next(iter(comparison.maps))
    healthy_words = ", and a healthy one" if len(comparison.healthy) else ""
    text = (
        f"{len(order)} of {counted(len(comparison.cases), 'scan')}, those in which {first} has "
        f"the lowest opened Dice first{healthy_words}. Each "
        "method has one scale for all scans; the threshold is that by "
        f"{comparison.rule or 'its makers'}. The patient's right is at the left."
    )
    blocks = [html_paragraph(text)]
    panels = []
    for i in order:
        maps = {name: np.asarray(comparison.maps[name][i]) for name in methods}
        panels.append((f"panels-{i}", comparison.cases[i], maps))
    if len(comparison.healthy):
        maps = {name: np.asarray(comparison.healthy_maps[name][0]) for name in methods}
        panels.append(("panels-healthy", comparison.healthy[0], maps))
    for k, (name, case, maps) in enumerate(panels):
        figure = plot_panels(case, maps, thresholds, limits, opening=_OPENING)
        title = f"{'Synthetic scan' if case.synthetic else 'Scan'} {case.name}"
        # A viewer holds whole volumes, so only the worst scan has one.
        if k == 0:
            blocks += [html_heading(title), _planes(case, maps, thresholds)]
        blocks.append(gallery.show(name, figure, f"{title}: mean signal, maps and masks"))
    return html_join(blocks)


def _worst_scans(comparison: _Comparison) -> list[int]:
    """Order the scans by the opened Dice of the first method, the lowest first."""
    first = next(iter(comparison.maps))
    table = comparison.tables["scans"]
    is_shown = (table["method"] == first) & table["rule"].isin((comparison.rule, AS_GIVEN))
    # A scan without a lesion has no Dice.
    scores = table[is_shown].groupby("case")["dice_opened"].mean().dropna()
    return [int(i) for i in scores.sort_values(kind="stable").index]


def _planes(case: Case, maps: Mapping[str, NDArray], thresholds: Mapping[str, float]) -> Markup:
    """Show one scan with the maps and the masks of all methods, to move through."""
    mean = case.signal.mean(axis=-1)
    layers = [Layer("mean signal", mean)]
    for name, values in maps.items():
        if values.dtype == bool:
            layers.append(Layer(name, values, "mask"))
            continue
        threshold = thresholds.get(name)
        # Anomalous is what lies above; the viewer marks what reaches its threshold.
        if threshold is not None:
            threshold = float(np.nextafter(threshold, np.inf))
        layers.append(Layer(name, values, "score", threshold=threshold))
    points = []
    if case.lesion is not None:
        layers.append(Layer("lesion", case.lesion, "mask"))
        for lesion in lesions_of(case.lesion, mean, case.affine).to_dict("records"):
            title = f"lesion of {lesion['volume_mL']:.2f} mL"
            points.append((title, [lesion[axis] for axis in "xyz"]))
    return html_viewer(
        layers,
        case.affine,
        points=points,
        region=case.brain,
        label=f"Maps of {case.name}",
        instead=html_note("The pictures below show the same scan."),
    )
