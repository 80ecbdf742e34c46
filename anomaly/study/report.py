"""The page about a comparison of anomaly maps with lesions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from anomaly.detectors.thresholds import MeanPoolThreshold, open_map
from anomaly.scans.cases import Case
from anomaly.scans.detection import lesions_of, mean_over_scans
from anomaly.study import plotting
from anomaly.study.contestants import CONTROLS
from anomaly.study.evaluation import AS_GIVEN, evaluate_detectors
from dmrifit._utils.counts import first_few
from dmrifit.report import page, style
from dmrifit.report.numerals import wording
from dmrifit.report.viewer import Layer, html_viewer

__all__ = ["write_evaluation"]

_TEXTS = page.Texts(__file__)
_SHOWN_RULE = "healthy rate"
#: End of the names of masks at the threshold that is stored with a model.
STORED = ", stored"


def write_evaluation(
    cases: Sequence[Case],
    maps: Mapping[str, Sequence[ArrayLike]],
    folder: str | Path,
    *,
    healthy: Sequence[Case] = (),
    healthy_maps: Mapping[str, Sequence[ArrayLike]] | None = None,
    opening: int | Mapping[str, int] = 3,
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
    opening : int or mapping of str to int, default=3
        As for `evaluate_detectors`.
    figures : int, default=6
        How many scans are shown: those in which the best method's opened Dice is worst; one
        healthy scan is added.
    overwrite : bool, default=False
        Whether files of an earlier comparison may be replaced.
    command : str, default=""
        What made it, for the page; by default the command that started this process.

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
    with page.report_files(folder, _TEXTS["files"], overwrite=overwrite) as write:
        tables = evaluate_detectors(
            cases, maps, healthy=healthy, healthy_maps=healthy_maps, opening=opening
        )
        edges = tables["summary"].set_index("method")["opening"].to_dict()
        comparison = _Comparison(cases, maps, healthy, healthy_maps or {}, tables, edges)
        sections = [
            page.Section("", *_answer(comparison)),
            page.Section("Methods", *_summaries(comparison)),
            page.Section("False positives in healthy persons", *_healthy(comparison)),
            page.Section("Scans", *_panels(comparison, figures)),
            page.Section("Scores", *_densities(comparison)),
            page.Section("By place", *_strata(comparison)),
            page.Section("Lesion by lesion", *comparison.by_rule("lesion_scores")),
            page.Section("Where lesions grow later", *comparison.by_rule("followup")),
            page.Section("How this was made", page.origin(command), _TEXTS["files_beside"]),
        ]
        lead = page.notice_lead(case.synthetic for case in [*cases, *healthy])
        title = "Anomalies found, and marked by mistake"
        write(tables, page.Page(title, sections, lead, contents=True))
    return tables


def rule_in_use(tables: Mapping[str, pd.DataFrame]) -> str:
    """Choose the rule that is shown: `_SHOWN_RULE`, or the first that needs no lesions."""
    table = tables["thresholds"]
    # Rules that choose a threshold for each scan have none that scans share.
    shared = table[~table["needs_truth"].astype(bool) & table["threshold"].notna()]
    rules = list(dict.fromkeys(shared["rule"]))
    if _SHOWN_RULE in rules:
        return _SHOWN_RULE
    return str(rules[0]) if rules else ""


def patients_in_words(scans: pd.DataFrame) -> str:
    """Count the patients that scores are averaged over, and name scans without a lesion."""
    has_lesion = scans["n_lesion"] > 0
    names = scans["name"][~has_lesion].unique().tolist()
    left_out = _TEXTS("left_out", names=first_few(names)) if names else ""
    return _TEXTS("averaged", n=scans["patient"][has_lesion].nunique(), left_out=left_out)


@dataclass(frozen=True, eq=False)
class _Comparison:
    """Scans and maps of a comparison, with their tables."""

    cases: Sequence[Case]
    maps: Mapping[str, Sequence[ArrayLike]]
    healthy: Sequence[Case]
    healthy_maps: Mapping[str, Sequence[ArrayLike]]
    tables: Mapping[str, pd.DataFrame]
    opening: Mapping[str, int]  # edge in voxels of the cube for the masks of each method

    @cached_property
    def rule(self) -> str:
        """The rule that figures show."""
        return rule_in_use(self.tables)

    @cached_property
    def graded(self) -> list[str]:
        """The methods whose maps are scores, not masks."""
        return [name for name, values in self.maps.items() if np.asarray(values[0]).dtype != bool]

    @cached_property
    def thresholds(self) -> dict[str, float]:
        """The threshold of each method by the rule that figures show."""
        table = self.tables["thresholds"]
        limits = table[table["rule"] == self.rule].set_index("method")["threshold"]
        return limits[np.isfinite(limits) & limits.index.isin(self.maps)].to_dict()

    @cached_property
    def shown(self) -> str:
        """The best method at a stored threshold, or else at the one that figures show."""
        masks = [name for name in self.maps if name not in self.graded]
        scores = {name: self.dice(name).mean() for name in masks or self.graded}
        return max(scores, key=lambda name: np.nan_to_num(scores[name], nan=-1.0))

    @property
    def opened(self) -> str:
        """How the masks of the method that is shown were opened, in words."""
        edge = self.opening[self.shown]
        return f"after opening by a cube of {edge}³ voxels" if edge > 1 else "without opening"

    def in_use(self, table: pd.DataFrame) -> pd.DataFrame:
        """Give the rows of a table at the thresholds that figures show, and of masks."""
        return table[table["rule"].isin((self.rule, AS_GIVEN))]

    def scans_of(self, method: str) -> pd.DataFrame:
        """Give the scans of a method at the threshold that figures show, the worst first."""
        table = self.in_use(self.tables["scans"])
        # A scan without a lesion has no Dice.
        scans = table[(table["method"] == method) & table["dice_opened"].notna()]
        return scans.sort_values("dice_opened", kind="stable")

    def dice(self, method: str) -> pd.Series[float]:
        """Give the mean Dice of a method in each patient, after opening."""
        return self.scans_of(method).groupby("patient")["dice_opened"].mean()

    def by_rule(self, name: str, condition: str = "") -> Iterator[Any]:
        """Show rows of a table at the rule of the figures, else all; fold those of all rules."""
        table = self.tables[name]
        # Tables without rows may lack the columns.
        table = table.query(condition) if condition and len(table) else table
        if not len(table):
            return
        columns = _TEXTS[name]["columns"]
        rows = self.in_use(table)
        shown = page.Table(rows, f"method {{method}} | {columns}")
        everything = page.Table(table, f"method {{method}} | rule {{rule}} | {columns}")
        yield _TEXTS[name].get("text", "")
        yield shown or everything
        if shown and len(rows) < len(table):
            yield page.Fold("By all rules", everything)


def _answer(comparison: _Comparison) -> Iterator[Any]:
    """Make the first screen: one number at the threshold in use, three scans, and their cohort."""
    shown = comparison.shown
    dice = comparison.dice(shown)
    name = shown.removesuffix(STORED)
    if len(dice):
        by_rule = f"at its threshold by the rule {comparison.rule}"
        threshold = by_rule if shown in comparison.graded else "at its stored threshold"
        values = {"name": name, "threshold": threshold, "dice": dice.mean()}
        answer = _TEXTS("answer", n_patients=len(dice), opened=comparison.opened, **values)
        if len(comparison.healthy):
            rows = comparison.in_use(comparison.tables["healthy"]).query("method == @shown")
            voxel_ml = [np.prod(comparison.healthy[i].spacing) / 1000 for i in rows["case"]]
            false_ml = rows["n_found_opened"] * voxel_ml
            values = {"median": false_ml.median(), "most": false_ml.max(), "n_scans": len(rows)}
            answer += " " + _TEXTS("false_volume", opened=comparison.opened, **values)
        yield answer
        figure = plotting.plot_examples(_examples(comparison), name)
        yield _TEXTS.picture("examples", figure, method=name, opened=comparison.opened)
    cases = comparison.cases
    n_patients = len({case.patient for case in cases})
    prefix = "synthetic " if all(case.synthetic for case in cases) else ""
    kinds = Counter(case.kind for case in cases if case.kind)
    counts = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
    words = {"prefix": prefix, "kinds": f" ({counts})" if counts else "", "n_patients": n_patients}
    yield _TEXTS("cohort", n_cases=len(cases), n_healthy=len(comparison.healthy), **words)
    yield page.few_note(n_patients)


def _examples(comparison: _Comparison) -> dict[str, tuple[Case, NDArray | None, NDArray]]:
    """Give the best, middle and worst scan, or all of fewer: case, map if any, and mask."""
    shown = comparison.shown
    scans = comparison.scans_of(shown)
    examples: dict[str, tuple[Case, NDArray | None, NDArray]] = {}
    # Of an even number of scans none need be the median, and the next better one is shown.
    is_above = scans["dice_opened"].iloc[len(scans) // 2] > scans["dice_opened"].median()
    middle = "above median: " if is_above else "median: "
    places = [("best: ", -1), (middle, len(scans) // 2), ("worst: ", 0)]
    if len(scans) < len(places):
        # The median of two would be the best or the worst one.
        places = [("", k) for k in range(len(scans))]
    for word, k in places:
        row = scans.iloc[k]
        i = int(row["case"])
        case = comparison.cases[i]
        marked = np.asarray(comparison.maps[shown][i])
        # A mask is that of the scores of this name, where they were given, too.
        scores = shown.removesuffix(STORED)
        values = np.asarray(comparison.maps[scores][i]) if scores in comparison.graded else None
        if marked.dtype != bool:
            marked = marked > row["threshold"]
        opened = open_map(marked & case.scored, comparison.opening[shown]) & case.scored
        # Names are long, and headings of neighbors must not touch.
        heading = f"{word}{case.name}\n" + wording("Dice {dice_opened:.2f}", row)
        examples[heading] = (case, values, opened)
    return examples


def _summaries(comparison: _Comparison) -> Iterator[Any]:
    summary = comparison.tables["summary"]
    yield page.sentence(patients_in_words(comparison.tables["scans"]))
    yield _TEXTS["explained"]
    if comparison.rule:
        yield f"Thresholds of maps are those by the rule {comparison.rule}."
    for part, rows in comparison.in_use(summary).groupby("part", sort=False):
        table = page.Table(rows, _TEXTS["scores"])
        yield table if part == "all" else page.Fold(f"Lesions of the kind {part}", table)
    opening = None
    if (~summary["needs_truth"].astype(bool) & ~summary["control"].astype(bool)).any():
        opening = _TEXTS.picture("opening", plotting.plot_opening(comparison.tables))
    of_all = summary[(summary["part"] == "all") & (summary["rule"] != AS_GIVEN)]
    thresholds = comparison.tables["thresholds"].dropna(subset="threshold")
    limits = page.Table(thresholds[~thresholds["method"].isin(CONTROLS)], _TEXTS["limits"])
    # The window of the grid of these scans, which the threshold is that of.
    case = comparison.cases[0]
    window = {"window": MeanPoolThreshold(spacing=case.spacing).window_in_words(case.shape)}
    rules = {rule: wording(where, window) for rule, where in _TEXTS["rules"].items()}
    yield page.Fold(
        "All rules for thresholds",
        page.Table(rules.items(), ["rule", "where it sets the threshold"]),
        opening,
        page.Table(of_all, _TEXTS["scores_by_rule"]),
        page.Heading("Thresholds that all scans share") if limits else None,
        limits,
    )


def _densities(comparison: _Comparison) -> Iterator[page.Picture]:
    if not comparison.graded:
        return
    options: dict[str, Any] = {"healthy": comparison.healthy}
    options |= {"healthy_maps": comparison.healthy_maps, "thresholds": comparison.thresholds}
    figure = plotting.plot_densities(comparison.cases, comparison.maps, **options)
    text = _TEXTS("dotted", rule=comparison.rule) if comparison.rule else ""
    yield _TEXTS.picture("densities", figure, text=text)


def _healthy(comparison: _Comparison) -> Iterator[Any]:
    tables = comparison.tables
    if not len(comparison.healthy):
        return
    if len(tables["curves"]):
        yield _TEXTS.picture("curves", plotting.plot_curves(tables))
        yield page.Table(tables["areas"], _TEXTS["areas"])
    yield from comparison.by_rule("summary", "part == 'all' and not needs_truth")
    scans = comparison.in_use(tables["healthy"]).query("not control")
    means_of_methods = []
    for (method, _), rows in scans.groupby(["method", "rule"], sort=False):
        means: dict[str, float] = {}
        for name, column in (("share", "false_positive_rate"), ("n", "n_components_opened")):
            ends = (name, f"{name}_low", f"{name}_high")
            means |= zip(ends, mean_over_scans(rows[column]), strict=True)
        means_of_methods.append(f"{method}: {wording(_TEXTS['means'], means)}")
    table = page.Table(scans, _TEXTS["false_of_scan"])
    yield page.Fold("Over scans", _TEXTS["over_scans"], *means_of_methods, table)


def _strata(comparison: _Comparison) -> Iterator[Any]:
    table = comparison.tables["strata"]
    if comparison.rule in set(table["rule"]):
        figure = plotting.plot_strata(comparison.tables, rule=comparison.rule)
        yield _TEXTS.picture("strata", figure)
    yield page.Fold("AUC and Dice by place", *comparison.by_rule("strata", "needs_truth == False"))


def _panels(comparison: _Comparison, figures: int) -> Iterator[Any]:
    """Show maps and masks of the worst scans and of a healthy one; other methods are folded."""
    cases, healthy, thresholds = comparison.cases, comparison.healthy, comparison.thresholds
    methods = [n for n in comparison.maps if n in thresholds or n not in comparison.graded]
    order = list(dict.fromkeys(comparison.scans_of(comparison.shown)["case"]))[:figures]
    if not methods or not order:
        yield "No threshold is shared by all scans, so no masks are shown."
        return
    words = {"shown": comparison.shown, "rule": comparison.rule or "its makers"}
    words["healthy_words"] = ", and a healthy one" if len(healthy) else ""
    yield _TEXTS("panels", n_shown=len(order), n_cases=len(cases), **words)
    all_maps = {
        name: [*comparison.maps[name], *comparison.healthy_maps.get(name, ())] for name in methods
    }
    limits = plotting.map_limits(all_maps, [*cases, *healthy])
    scans = [(cases[i], comparison.maps, i) for i in order]
    scans += [(case, comparison.healthy_maps, 0) for case in healthy[:1]]
    main = comparison.shown.removesuffix(STORED)
    main = main if main in methods else methods[0]
    for k, (case, values, i) in enumerate(scans):
        maps = {name: np.asarray(values[name][i]) for name in methods}
        title = f"{'Synthetic scan' if case.synthetic else 'Scan'} {case.name}"
        # A viewer holds whole volumes, so only the worst scan has one.
        if k == 0:
            yield page.Heading(title)
            points = []
            if case.lesion is not None:
                lesions = lesions_of(case.lesion, case.signal.mean(axis=-1), case.affine)
                points = [("lesion of {volume_mL:.2f} mL", lesions)]
            instead = page.Note("The pictures below show the same scan.")
            yield scan_planes(case, maps, thresholds, points, instead)
        main_map = {main: maps.pop(main)}
        shown, *folded = [
            page.Picture(
                plotting.plot_panels(case, group, thresholds, limits, opening=comparison.opening),
                f"{title}: mean signal, maps and masks",
            )
            for group in (main_map, maps)
            if group
        ]
        yield shown
        yield page.Fold(f"{case.name} by the other methods", *folded)


def scan_planes(
    case: Case,
    maps: Mapping[str, NDArray],
    thresholds: Mapping[str, float],
    points: Sequence[tuple[str, pd.DataFrame]],
    instead: Any,
    *,
    hidden: Sequence[str] = (),
) -> Any:
    """Show a scan with maps and masks, some hidden at first, to move through and to points."""
    layers = [Layer("mean signal", case.signal.mean(axis=-1))]
    # Masks of further methods have colors of their own.
    colors: tuple[str, ...] = (style.FOUND,)
    # Anomalous is what lies above; the viewer marks what reaches its threshold.
    limits = {name: float(np.nextafter(limit, np.inf)) for name, limit in thresholds.items()}
    for name, values in maps.items():
        if values.dtype == bool:
            layers.append(Layer(name, values, "mask", shown=name not in hidden, colors=colors))
            colors = ()
            continue
        layers.append(Layer(name, values, "score", threshold=limits.get(name)))
    # The lesion of the table of scans, which the detector has not seen.
    if case.lesion is not None and case.lesion.any():
        layers.append(Layer("known lesion", case.lesion, "mask", colors=(style.REFERENCE,)))
    options: dict[str, Any] = {"points": points, "region": case.brain, "instead": instead}
    return html_viewer(layers, case.affine, label=f"Maps of {case.name}", **options)
