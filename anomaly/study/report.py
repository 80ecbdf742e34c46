"""The page about a comparison of anomaly maps with lesions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anomaly.detectors.thresholds import open_map
from anomaly.scans.detection import lesions_of
from anomaly.scans.whole_scan import mean_over_scans
from anomaly.study.controls import CONTROLS
from anomaly.study.evaluation import AS_GIVEN, evaluate_detectors
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
from dmrifit.report.numerals import fixed, percent, significant
from dmrifit.report.style import FOUND, REFERENCE
from dmrifit.report.viewer import Layer, html_viewer, viewer_page

if TYPE_CHECKING:
    import pandas as pd
    from markupsafe import Markup

    from anomaly.scans.cases import Case

__all__ = ["KINDS", "PAGE", "STORED", "rule_in_use", "write_evaluation"]

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

_FIGURES = ("examples.png", "densities.png", "curves.png", "opening.png", "strata.png")
_SHOWN_RULE = "healthy rate"
#: End of the names of masks at the threshold that is stored with a model.
STORED = ", stored"
_OPEN_SCANS = 3  # scans that are shown without a click
_OPENING = 3  # voxels along the edge of the cube
_OPENED = f"after removing what is smaller than {_OPENING}³ voxels"
_EXPLAINED = (
    "Scored inside white and gray matter; each patient counts once. Dice is the overlap of what "
    "is marked with the lesions: 0 is none, 1 perfect. AUC is the chance that a voxel of a lesion "
    "has a higher score than another one. Opening removes what is smaller than a cube of "
    f"{_OPENING}³ voxels. Gray rows were made without having learned anything."
)
_RULES_EXPLAINED = (
    ("Otsu", "parts the scores of all scans into two classes, each as even as possible"),
    ("mean pool", "the largest mean score of a cube of 38 mm, averaged over scans"),
    ("healthy rate", "the score that 1 % of the voxels of healthy scans exceed"),
    ("…, each scan", "the same, for every scan by itself"),
    ("Youden, best Dice", "know the lesions: how good a map could be, not how good it is"),
    (AS_GIVEN, "a mask, such as that at the threshold that is stored with a model"),
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
            "Anomalies found, and marked by mistake",
            _sections(comparison, gallery, figures, command),
            lead=notice_lead(case.synthetic for case in [*cases, *healthy]),
            contents=True,
        )
        written_tables = {kind: tables[kind] for kind in KINDS}
        write_comparison(files, written_tables, gallery, {PAGE: page})
    return tables


def rule_in_use(tables: Mapping[str, pd.DataFrame]) -> str:
    """Choose the rule that is shown: a rate in healthy scans, or the first without lesions."""
    table = tables["thresholds"]
    blind = table[~table["needs_truth"].astype(bool)]
    by_rule = blind.groupby("rule", sort=False)["threshold"]
    # Rules that choose a threshold for each scan have none that scans share.
    rules = [str(rule) for rule, thresholds in by_rule if thresholds.notna().any()]
    if _SHOWN_RULE in rules:
        return _SHOWN_RULE
    return rules[0] if rules else ""


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
        """The rule that figures show."""
        return rule_in_use(self.tables)

    def thresholds(self) -> dict[str, float]:
        """Give the threshold of each method by the rule that figures show."""
        table = self.tables["thresholds"]
        limits = table[table["rule"] == self.rule].set_index("method")["threshold"]
        thresholds = {}
        for name in self.maps:
            if name in limits and np.isfinite(limits[name]):
                thresholds[name] = float(limits[name])
        return thresholds

    def scans_of(self, method: str) -> pd.DataFrame:
        """Give the scans with lesions of a method at the threshold that figures show."""
        table = self.tables["scans"]
        is_shown = (table["method"] == method) & table["rule"].isin((self.rule, AS_GIVEN))
        # A scan without a lesion has no Dice.
        return table[is_shown & table["dice_opened"].notna()]

    def shown(self) -> str:
        """Choose the best method at a stored threshold, or else at the one that figures show."""
        graded = self.graded()
        masks = [name for name in self.maps if name not in graded]
        scores = {}
        for name in masks or graded:
            scores[name] = self.scans_of(name).groupby("patient")["dice_opened"].mean().mean()
        return max(scores, key=lambda name: np.nan_to_num(scores[name], nan=-1.0))

    def false_volumes(self, method: str) -> pd.Series[float]:
        """Give the volume in mL that a method marks in each healthy scan, after opening."""
        import pandas as pd

        table = self.tables["healthy"]
        if not len(table):
            return pd.Series(dtype=float)
        is_shown = (table["method"] == method) & table["rule"].isin((self.rule, AS_GIVEN))
        rows = table[is_shown]
        voxel_ml = [float(np.prod(self.healthy[int(i)].spacing)) / 1000 for i in rows["case"]]
        return rows["n_found_opened"] * voxel_ml

    def examples(
        self, method: str, scans: pd.DataFrame
    ) -> dict[str, tuple[Case, NDArray | None, NDArray]]:
        """Give the best, median and worst scan of a method: case, map if it has one, and mask."""
        ordered = scans.sort_values("dice_opened", ascending=False, kind="stable")
        examples: dict[str, tuple[Case, NDArray | None, NDArray]] = {}
        for word, k in (("best", 0), ("median", (len(ordered) - 1) // 2), ("worst", -1)):
            row = ordered.iloc[k]
            case = self.cases[int(row["case"])]
            i = int(row["case"])
            marked = np.asarray(self.maps[method][i])
            values: NDArray | None = None
            # A mask is that of the scores of this name, where they were given, too.
            scores = method.removesuffix(STORED)
            if scores in self.graded():
                values = np.asarray(self.maps[scores][i])
            if marked.dtype != bool:
                marked = marked > row["threshold"]
            opened = open_map(marked & case.scored, _OPENING) & case.scored
            # Names are long, and headings of neighbors must not touch.
            heading = f"{word}: {case.name}\nDice {fixed(row['dice_opened'], 2)}, opened"
            examples[heading] = (case, values, opened)
        return examples

    def graded(self) -> list[str]:
        """List the methods whose maps are scores, not masks."""
        return [name for name, values in self.maps.items() if np.asarray(values[0]).dtype != bool]


def _sections(
    comparison: _Comparison, gallery: Gallery, figures: int, command: str
) -> list[tuple[str, Any]]:
    tables = comparison.tables
    sections: list[tuple[str, Any]] = [
        ("", _answer(comparison, gallery)),
        ("Methods", _summaries(comparison, gallery)),
    ]
    if len(comparison.healthy):
        sections.append(("False positives in healthy persons", _healthy(comparison, gallery)))
    sections.append(("Scans", _panels(comparison, gallery, figures)))
    if comparison.graded():
        sections.append(("Scores", _densities(comparison, gallery)))
    if len(tables["strata"]):
        sections.append(("By place", _strata(comparison, gallery)))
    if len(tables["lesion_scores"]):
        sections.append(("Lesion by lesion", _lesions(comparison)))
    if len(tables["followup"]):
        sections.append(("Where lesions grow later", _followup(comparison)))
    origin = html_origin(command, [["opening", f"cube of {_OPENING}³ voxels"]])
    note = html_note("Tables lie beside this page as CSV files.")
    sections.append(("How this was made", html_join([origin, note])))
    return sections


def _answer(comparison: _Comparison, gallery: Gallery) -> Markup:
    """Make the first screen: one number at the threshold in use, and three scans."""
    from anomaly.study.plotting import plot_examples

    parts: list[Any] = []
    shown = comparison.shown()
    scans = comparison.scans_of(shown)
    n_patients = scans["patient"].nunique()
    if len(scans):
        threshold = "at its stored threshold"
        if shown in comparison.graded():
            threshold = f"at its threshold by the rule {comparison.rule}"
        name = shown.removesuffix(STORED)
        verdict = (
            f"{name} {threshold} marks regions whose overlap with the lesions (Dice) is "
            f"{fixed(scans.groupby('patient')['dice_opened'].mean().mean(), 2)}, the mean of "
            f"{counted(n_patients, 'patient')}, {_OPENED}; 0 is none, 1 perfect."
        )
        false_ml = comparison.false_volumes(shown)
        if len(false_ml):
            verdict += (
                f" In {counted(len(false_ml), 'healthy scan')} it marks "
                f"{significant(false_ml.median(), 2)} mL by mistake (median; at most "
                f"{significant(false_ml.max(), 2)} mL), {_OPENED}."
            )
        parts.append(html_paragraph(verdict))
        figure = plot_examples(comparison.examples(shown, scans), name)
        alt = f"Best, median and worst scan by {name}, with reference lesion and what is marked"
        caption = (
            "The slice with most of the lesion, over the mean diffusion signal; marked is what is "
            f"left {_OPENED} (opened). The patient's right is at the left."
        )
        parts.append(gallery.show("examples", figure, alt, caption))
    return html_join([*parts, _introduction(comparison)])


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
    is_in_use = summary["rule"].isin((comparison.rule, AS_GIVEN))
    text = _EXPLAINED
    if comparison.rule:
        text += f" Thresholds of maps are those by the rule {comparison.rule}."
    table = _summary_table(summary[(summary["part"] == "all") & is_in_use], with_rule=False)
    blocks: list[Any] = [html_paragraph(text), table]
    for part in dict.fromkeys(summary["part"]):
        if part != "all":
            body = _summary_table(summary[(summary["part"] == part) & is_in_use], with_rule=False)
            blocks.append(html_details(f"Lesions of the kind {part}", body))
    all_rules: list[Any] = [html_table(_RULES_EXPLAINED, ["rule", "where it sets the threshold"])]
    needs_truth = summary["needs_truth"].astype(bool)
    if (~needs_truth & ~summary["control"].astype(bool)).any():
        figure = plot_opening(tables)
        alt = "Dice coefficients by rule and method, above the threshold and after opening"
        all_rules.append(gallery.show("opening", figure, alt, "Means over patients."))
    of_all = summary[(summary["part"] == "all") & (summary["rule"] != AS_GIVEN)]
    if len(of_all):
        all_rules.append(_summary_table(of_all, with_rule=True))
    rows = []
    for row in tables["thresholds"].to_dict("records"):
        if np.isfinite(row["threshold"]) and row["method"] not in CONTROLS:
            rows.append([row["method"], row["rule"], significant(row["threshold"], 4)])
    if rows:
        all_rules.append(html_heading("Thresholds that all scans share"))
        all_rules.append(html_table(rows, ["method", "rule", "threshold"], numbers=(2,)))
    blocks.append(html_details("All rules for thresholds", html_join(all_rules)))
    return html_join(blocks)


def _summary_table(summary: pd.DataFrame, *, with_rule: bool) -> Markup:
    """Make the table of the overlap with lesions, and of AUC where there is one rule."""
    columns: dict[str, tuple[str, Callable[[Any], str]]] = {"method": ("method", str)}
    if with_rule:
        columns["rule"] = ("rule", str)
    columns["dice_opened"] = ("Dice, opened", decimals(2))
    columns["dice"] = ("Dice, raw", decimals(2))
    if not with_rule:
        columns["auc"] = ("AUC", decimals(2))
    writers = {key: write for key, (_, write) in columns.items()}
    rows = record_cells(summary.to_dict("records"), writers)
    return _method_table(rows, [title for title, _ in columns.values()], 1 + with_rule)


def _by_rule(
    rows: Sequence[Sequence[Any]], header: Sequence[str], rule: str, n_words: int
) -> Markup:
    """Show the rows of one rule (their second cell) and of masks, and on request those of all."""
    rule_rows = [[row[0], *row[2:]] for row in rows if row[1] in (rule, AS_GIVEN)]
    everything = _method_table(rows, header, n_words)
    if not rule_rows:
        return everything
    table = _method_table(rule_rows, [header[0], *header[2:]], n_words - 1)
    if len(rule_rows) == len(rows):
        return table
    return html_join([table, html_details("By all rules", everything)])


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
        header = ["method", "area, right, up to 0.3", "area, left, 0.001 to 0.01"]
        blocks.append(_method_table(rows, header))
    summary = tables["summary"].query("part == 'all' and not needs_truth")
    columns = {
        "method": str,
        "rule": str,
        "false_positive_rate": percent,
        "false_positive_rate_opened": percent,
        "empty_opened": percent,
    }
    rows = record_cells(summary.to_dict("records"), columns)
    header = ["method", "rule", "false, %", "opened, %", "scans without, %"]
    blocks.append(
        html_paragraph(
            "Share of the voxels of healthy scans that are marked, before and after opening, and "
            "of the healthy scans in which nothing is."
        )
    )
    blocks.append(_by_rule(rows, header, comparison.rule, 2))
    blocks.append(html_details("Over scans", _healthy_scans(comparison)))
    return html_join(blocks)


def _healthy_scans(comparison: _Comparison) -> Markup:
    """List what is marked in each healthy scan at the threshold that figures show."""
    table = comparison.tables["healthy"]
    is_shown = table["rule"].isin((comparison.rule, AS_GIVEN)) & ~table["control"].astype(bool)
    columns = {
        "name": str,
        "method": str,
        "false_positive_rate": percent,
        "n_components_opened": whole,
    }
    rows = record_cells(table[is_shown].to_dict("records"), columns)
    lines = []
    for (method, _), method_rows in table[is_shown].groupby(["method", "rule"], sort=False):
        # Folds are repetitions on the same scans.
        scans = method_rows.groupby("case")[["false_positive_rate", "n_components_opened"]].mean()
        share, low, high = mean_over_scans(scans["false_positive_rate"])
        mean, fewest, most = mean_over_scans(scans["n_components_opened"])
        share_range = f"{percent(share)} ({percent(low)} to {percent(high)})"
        components = f"{fixed(mean, 1)} ({fixed(fewest, 1)} to {fixed(most, 1)})"
        if len(scans) < 2:
            share_range, components = percent(share), fixed(mean, 1)
        lines.append(f"{method}: {share_range} % marked, {components} regions after opening.")
    text = "Means over healthy scans, with 95 % intervals over scans, not over voxels (bootstrap)."
    by_scan = html_table(rows, ["scan", "method", "false, %", "regions"], numbers=(2, 3))
    return html_join([*(html_paragraph(line) for line in (text, *lines)), by_scan])


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
        "auc": decimals(2),
        "dice_opened": decimals(2),
    }
    blind = table[~table["needs_truth"].astype(bool)]
    rows = record_cells(blind.to_dict("records"), columns)
    header = [
        "method",
        "rule",
        "place",
        "AUC",
        "Dice, opened",
    ]
    numbers = _by_rule(rows, header, comparison.rule, 3)
    blocks.append(html_details("AUC and Dice by place", numbers))
    return html_join(blocks)


def _lesions(comparison: _Comparison) -> Markup:
    table = comparison.tables["lesion_scores"]
    rows = []
    for row in table.to_dict("records"):
        found = f"{row['n_found']:.0f} of {row['n_lesions']:.0f}"
        right = decimals(2)(row["precision"])
        rows.append([row["method"], row["rule"], found, right, whole(row["n_false_positives"])])
    header = ["method", "rule", "found", "share right", "false"]
    text = (
        "Regions of opened masks; a lesion is found when one shares a voxel with it. Share right: "
        "of the regions, those that touch a lesion; false: those that touch none."
    )
    return html_join([html_paragraph(text), _by_rule(rows, header, comparison.rule, 2)])


def _followup(comparison: _Comparison) -> Markup:
    rows = []
    for row in comparison.tables["followup"].to_dict("records"):
        hit = f"{row['n_colocated']:.0f} of {row['n_mismatch']:.0f}"
        names = [row["method"], row["rule"], row["grade"]]
        rows.append([*names, hit, decimals(1)(row["expected"])])
    header = ["method", "rule", "grade", "where it grew", "by chance"]
    text = (
        "Of the patients with a marked region outside the lesion: in how many it lies where the "
        "lesion is later, and how many regions of these sizes at other places would reach by "
        "chance."
    )
    return html_join([html_paragraph(text), _by_rule(rows, header, comparison.rule, 3)])


def _panels(comparison: _Comparison, gallery: Gallery, figures: int) -> Markup:
    from anomaly.study.plotting import map_limits, plot_panels

    thresholds = comparison.thresholds()
    graded = comparison.graded()
    methods = [name for name in comparison.maps if name in thresholds or name not in graded]
    shown = comparison.shown()
    scans = comparison.scans_of(shown).sort_values("dice_opened", kind="stable")
    order = [int(i) for i in dict.fromkeys(scans["case"])][:figures]
    if not methods or not order:
        return html_paragraph("No threshold is shared by all scans, so no masks are shown.")
    all_maps = {}
    for name in methods:
        all_maps[name] = [*comparison.maps[name], *comparison.healthy_maps.get(name, ())]
    limits = map_limits(all_maps, [*comparison.cases, *comparison.healthy])
    healthy_words = ", and a healthy one" if len(comparison.healthy) else ""
    text = (
        f"{len(order)} of {counted(len(comparison.cases), 'scan')}, those in which {shown} has "
        f"the lowest Dice first{healthy_words}. Each "
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
    folded = []
    for k, (name, case, maps) in enumerate(panels):
        title = f"{'Synthetic scan' if case.synthetic else 'Scan'} {case.name}"
        # A viewer holds whole volumes, so only the worst scan has one.
        if k == 0:
            blocks += [html_heading(title), _planes(case, maps, thresholds)]
        main = shown.removesuffix(STORED)
        if main not in maps:
            main = next(iter(maps))
        others = {key: values for key, values in maps.items() if key != main}
        alt = f"{title}: mean signal, maps and masks"
        for key, part in (("", {main: maps[main]}), ("-others", others)):
            if not part:
                continue
            figure = plot_panels(case, part, thresholds, limits, opening=_OPENING)
            picture = gallery.show(f"{name}{key}", figure, alt)
            # Without a fold the page would be as long as there are scans and methods.
            if key or _OPEN_SCANS <= k < len(order):
                folded.append(picture)
            else:
                blocks.append(picture)
    if folded:
        blocks.append(html_details("More scans, and the other methods", html_join(folded)))
    return html_join(blocks)


def _planes(case: Case, maps: Mapping[str, NDArray], thresholds: Mapping[str, float]) -> Markup:
    """Show one scan with the maps and the masks of all methods, to move through."""
    mean = case.signal.mean(axis=-1)
    layers = [Layer("mean signal", mean)]
    for name, values in maps.items():
        if values.dtype == bool:
            # Further methods have colors of their own.
            own = () if any(layer.colors for layer in layers) else (FOUND,)
            layers.append(Layer(name, values, "mask", colors=own))
            continue
        threshold = thresholds.get(name)
        # Anomalous is what lies above; the viewer marks what reaches its threshold.
        if threshold is not None:
            threshold = float(np.nextafter(threshold, np.inf))
        layers.append(Layer(name, values, "score", threshold=threshold))
    points = []
    if case.lesion is not None:
        layers.append(Layer("lesion", case.lesion, "mask", colors=(REFERENCE,)))
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
