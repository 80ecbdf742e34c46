"""The page about a comparison of anomaly maps with lesions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anomaly.detectors.thresholds import open_map
from anomaly.scans.detection import lesions_of
from anomaly.scans.whole_scan import mean_over_scans
from anomaly.study.controls import CONTROLS
from anomaly.study.evaluation import AS_GIVEN, evaluate_detectors
from dmrifit._utils.counts import counted
from dmrifit.report.numerals import fixed, significant, wording
from dmrifit.report.page import (
    Fold,
    Heading,
    Note,
    Page,
    Picture,
    Section,
    Table,
    Texts,
    few_note,
    notice_lead,
    origin,
    write_report,
)
from dmrifit.report.style import FOUND, REFERENCE
from dmrifit.report.viewer import Layer, html_viewer

if TYPE_CHECKING:
    import pandas as pd
    from markupsafe import Markup

    from anomaly.scans.cases import Case

__all__ = ["write_evaluation"]

_TEXTS = Texts(__file__)
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

_FIGURES = ("examples", "densities", "curves", "opening", "strata")
_SHOWN_RULE = "healthy rate"
#: End of the names of masks at the threshold that is stored with a model.
STORED = ", stored"
_OPEN_SCANS = 3  # scans that are shown without a click
_OPENING = 3  # voxels along the edge of the cube
_OPENED = f"after removing what is smaller than {_OPENING}³ voxels"

_OVERLAP = "Dice, opened {dice_opened:.2f} | Dice, raw {dice:.2f}"


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

    def evaluate() -> dict[str, pd.DataFrame]:
        return evaluate_detectors(
            cases, maps, healthy=healthy, healthy_maps=healthy_maps, opening=_OPENING
        )

    def make_page(tables: dict[str, pd.DataFrame]) -> Page:
        comparison = _Comparison(cases, maps, healthy, healthy_maps or {}, tables)
        lead = notice_lead(case.synthetic for case in [*cases, *healthy])
        sections = _sections(comparison, figures, command)
        return Page("Anomalies found, and marked by mistake", sections, lead, contents=True)

    return write_report(
        folder, evaluate, make_page, tables=KINDS, pictures=_FIGURES, overwrite=overwrite
    )


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

    def in_use(self, name: str) -> pd.DataFrame:
        """Give the rows of a table at the thresholds that figures show, and of masks."""
        table = self.tables[name]
        return table[table["rule"].isin((self.rule, AS_GIVEN))]

    def scans_of(self, method: str) -> pd.DataFrame:
        """Give the scans with lesions of a method at the threshold that figures show."""
        table = self.in_use("scans")
        # A scan without a lesion has no Dice.
        return table[(table["method"] == method) & table["dice_opened"].notna()]

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

        if not len(self.healthy):
            return pd.Series(dtype=float)
        rows = self.in_use("healthy").query("method == @method")
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
            i = int(row["case"])
            case = self.cases[i]
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


def _sections(comparison: _Comparison, figures: int, command: str) -> list[Section]:
    tables = comparison.tables
    lesion_scores = tables["lesion_scores"]
    made = origin(command, [["opening", f"cube of {_OPENING}³ voxels"]])
    return [
        Section("", *_answer(comparison), *_introduction(comparison)),
        Section("Methods", *_summaries(comparison)),
        Section("False positives in healthy persons", *_healthy(comparison)),
        Section("Scans", *_panels(comparison, figures)),
        Section("Scores", *_densities(comparison)),
        Section("By place", *_strata(comparison)),
        Section(
            "Lesion by lesion",
            *_by_rule(
                _TEXTS["regions"],
                lesion_scores,
                _TEXTS["lesions"],
                comparison.rule,
            ),
        ),
        Section(
            "Where lesions grow later",
            *_by_rule(
                _TEXTS["growth_explained"],
                tables["followup"],
                _TEXTS["growth"],
                comparison.rule,
            ),
        ),
        Section("How this was made", made, Note("Tables lie beside this page as CSV files.")),
    ]


def _answer(comparison: _Comparison) -> Iterator[Any]:
    """Make the first screen: one number at the threshold in use, and three scans."""
    from anomaly.study.plotting import plot_examples

    shown = comparison.shown()
    scans = comparison.scans_of(shown)
    if not len(scans):
        return
    threshold = "at its stored threshold"
    if shown in comparison.graded():
        threshold = f"at its threshold by the rule {comparison.rule}"
    name = shown.removesuffix(STORED)
    dice = scans.groupby("patient")["dice_opened"].mean()
    answer = _TEXTS(
        "answer",
        name=name,
        threshold=threshold,
        dice=fixed(dice.mean(), 2),
        patients=counted(len(dice), "patient"),
        opened=_OPENED,
    )
    false_ml = comparison.false_volumes(shown)
    if len(false_ml):
        answer += " " + _TEXTS(
            "false_volume",
            scans=counted(len(false_ml), "healthy scan"),
            median=significant(false_ml.median(), 2),
            most=significant(false_ml.max(), 2),
            opened=_OPENED,
        )
    yield answer
    figure = plot_examples(comparison.examples(shown, scans), name)
    yield _TEXTS.picture("examples", figure, method=name, opened=_OPENED)


def _introduction(comparison: _Comparison) -> Iterator[str]:
    cases = comparison.cases
    n_patients = len({case.patient for case in cases})
    prefix = "synthetic " if all(case.synthetic for case in cases) else ""
    kinds = [case.kind for case in cases if case.kind]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    text = f"{counted(len(cases), f'{prefix}scan')} of {counted(n_patients, 'patient')}"
    if counts:
        text += f" ({counts})"
    yield f"{text}, and {counted(len(comparison.healthy), 'healthy scan')}."
    yield few_note(n_patients)


def _summaries(comparison: _Comparison) -> Iterator[Any]:
    from anomaly.study.plotting import plot_opening

    summary = comparison.tables["summary"]
    text = _TEXTS("explained", opening=_OPENING)
    if comparison.rule:
        text += f" Thresholds of maps are those by the rule {comparison.rule}."
    yield text
    for part, rows in comparison.in_use("summary").groupby("part", sort=False):
        table = Table(rows, f"method {{method}} | {_OVERLAP} | AUC {{auc:.2f}}")
        yield table if part == "all" else Fold(f"Lesions of the kind {part}", table)
    opening = None
    if (~summary["needs_truth"].astype(bool) & ~summary["control"].astype(bool)).any():
        opening = _TEXTS.picture("opening", plot_opening(comparison.tables))
    of_all = summary[(summary["part"] == "all") & (summary["rule"] != AS_GIVEN)]
    thresholds = comparison.tables["thresholds"].dropna(subset="threshold")
    thresholds = thresholds[~thresholds["method"].isin(CONTROLS)]
    limits = "method {method} | rule {rule} | threshold {threshold:.4s}"
    yield Fold(
        "All rules for thresholds",
        Table(_TEXTS["rules"].items(), ["rule", "where it sets the threshold"]),
        opening,
        Table(of_all, f"method {{method}} | rule {{rule}} | {_OVERLAP}"),
        Heading("Thresholds that all scans share") if len(thresholds) else None,
        Table(thresholds, limits),
    )


def _by_rule(text: str, table: pd.DataFrame, columns: str, rule: str) -> Iterator[Any]:
    """Show the rows of one rule and of masks, and on request those of all."""
    if not len(table):
        return
    if text:
        yield text
    everything = Table(table, f"method {{method}} | rule {{rule}} | {columns}")
    rows = table[table["rule"].isin((rule, AS_GIVEN))]
    if not len(rows):
        yield everything
        return
    yield Table(rows, f"method {{method}} | {columns}")
    if len(rows) < len(table):
        yield Fold("By all rules", everything)


def _densities(comparison: _Comparison) -> Iterator[Picture]:
    from anomaly.study.plotting import plot_densities

    if not comparison.graded():
        return
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
    yield _TEXTS.picture("densities", figure, text=text)


def _healthy(comparison: _Comparison) -> Iterator[Any]:
    from anomaly.study.plotting import plot_curves

    tables = comparison.tables
    if not len(comparison.healthy):
        return
    if len(tables["curves"]):
        yield _TEXTS.picture("curves", plot_curves(tables))
        yield Table(tables["areas"], _TEXTS["areas"])
    summary = tables["summary"].query("part == 'all' and not needs_truth")
    text = _TEXTS["false_explained"]
    yield from _by_rule(text, summary, _TEXTS["false"], comparison.rule)
    rows = comparison.in_use("healthy").query("not control")
    yield Fold(
        "Over scans",
        _TEXTS["over_scans"],
        *_means_over_scans(rows),
        Table(rows, _TEXTS["false_of_scan"]),
    )


def _means_over_scans(table: pd.DataFrame) -> Iterator[str]:
    """Say how much each method marks in a healthy scan."""
    for (method, _), rows in table.groupby(["method", "rule"], sort=False):
        # Folds are repetitions on the same scans.
        scans = rows.groupby("case")[["false_positive_rate", "n_components_opened"]].mean()
        means: dict[str, float] = {}
        for name, column in (("share", "false_positive_rate"), ("n", "n_components_opened")):
            means[name], low, high = mean_over_scans(scans[column])
            if len(scans) > 1:
                means |= {f"{name}_low": low, f"{name}_high": high}
        text = "{share:.1P} % marked, {n:.1i} regions after opening."
        yield f"{method}: {wording(text, means)}"


def _strata(comparison: _Comparison) -> Iterator[Any]:
    from anomaly.study.plotting import plot_strata

    table = comparison.tables["strata"]
    if comparison.rule in set(table["rule"]):
        yield _TEXTS.picture("strata", plot_strata(comparison.tables, rule=comparison.rule))
    columns = "place {stratum} | AUC {auc:.2f} | Dice, opened {dice_opened:.2f}"
    blind = table[~table["needs_truth"].astype(bool)]
    yield Fold("AUC and Dice by place", *_by_rule("", blind, columns, comparison.rule))


def _panels(comparison: _Comparison, figures: int) -> Iterator[Any]:
    from anomaly.study.plotting import map_limits, plot_panels

    thresholds = comparison.thresholds()
    graded = comparison.graded()
    methods = [name for name in comparison.maps if name in thresholds or name not in graded]
    shown = comparison.shown()
    scans = comparison.scans_of(shown).sort_values("dice_opened", kind="stable")
    order = [int(i) for i in dict.fromkeys(scans["case"])][:figures]
    if not methods or not order:
        yield "No threshold is shared by all scans, so no masks are shown."
        return
    all_maps = {}
    for name in methods:
        all_maps[name] = [*comparison.maps[name], *comparison.healthy_maps.get(name, ())]
    limits = map_limits(all_maps, [*comparison.cases, *comparison.healthy])
    healthy_words = ", and a healthy one" if len(comparison.healthy) else ""
    yield _TEXTS(
        "panels",
        n_shown=len(order),
        scans=counted(len(comparison.cases), "scan"),
        shown=shown,
        healthy_words=healthy_words,
        rule=comparison.rule or "its makers",
    )
    panels = [(comparison.cases[i], comparison.maps, i) for i in order]
    if len(comparison.healthy):
        panels.append((comparison.healthy[0], comparison.healthy_maps, 0))
    main = shown.removesuffix(STORED)
    if main not in methods:
        main = methods[0]
    folded = []
    for k, (case, values, i) in enumerate(panels):
        maps = {name: np.asarray(values[name][i]) for name in methods}
        title = f"{'Synthetic scan' if case.synthetic else 'Scan'} {case.name}"
        # A viewer holds whole volumes, so only the worst scan has one.
        if k == 0:
            yield Heading(title)
            yield _planes(case, maps, thresholds)
        others = {name: volume for name, volume in maps.items() if name != main}
        pictures = []
        for part in filter(None, ({main: maps[main]}, others)):
            figure = plot_panels(case, part, thresholds, limits, opening=_OPENING)
            pictures.append(Picture(figure, f"{title}: mean signal, maps and masks"))
        # Without a fold the page would be as long as there are scans and methods.
        if not _OPEN_SCANS <= k < len(order):
            yield pictures.pop(0)
        folded += pictures
    yield Fold("More scans, and the other methods", *folded)


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
        instead=Note("The pictures below show the same scan."),
    )
