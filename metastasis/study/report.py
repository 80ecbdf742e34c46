"""Report pages of segmentations: of a run over scans, and of a comparison with references."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit._utils.counts import counted
from dmrifit._utils.randomness import RandomState
from dmrifit.io.components import drop_small
from dmrifit.report import page
from dmrifit.report.numerals import percent, wording
from dmrifit.report.style import FOUND, REFERENCE, UNSURE
from dmrifit.report.viewer import Layer, html_viewer
from dmrifit.stats.patient_summary import FEWEST_PATIENTS
from metastasis.segmentation.ensemble import MARKED_BY_BOTH
from metastasis.study.controls import CONTROLS
from metastasis.study.evaluation import SMALL_ML, evaluate_segmentations, option_by_method
from metastasis.study.lesion_sizes import CLOSED_GAP_MM
from metastasis.study.reader_scores import SHARES

if TYPE_CHECKING:
    import pandas as pd

    from metastasis.scans.cases import Case

__all__ = ["write_evaluation"]

_TEXTS = page.Texts(__file__)
#: Tables of a comparison.
KINDS = (
    "summary",
    "intervals",
    "scans",
    "lesions",
    "volumes",
    "distance",
    "challenge",
    "lesion_free",
    "froc",
    "matched",
    "status",
    "ensemble",
    "curves",
    "calibration",
    "areas",
)

_FIGURES = ("strip", "curves", "calibration")
# Soft hyphens, so that the table fits on a telephone.
_CALIBRATION = "method {method} | level {level} | expected calibration error {error:.3f}"
_COLORS = (UNSURE, FOUND)  # of candidates and what both models mark
_STRIPS = 3  # methods whose findings are drawn lesion by lesion


def write_evaluation(
    cases: Sequence[Case],
    predictions: Mapping[str, Sequence[ArrayLike]],
    folder: str | Path,
    *,
    threshold: float | Mapping[str, float] = 0.5,
    min_voxels: int | Mapping[str, int] = 1,
    figures: int = 6,
    overwrite: bool = False,
    command: str = "",
    n_bootstrap: int = 1000,
    random_state: RandomState = 0,
) -> dict[str, pd.DataFrame]:
    """
    Compare segmentations with reference lesions, and write tables and a page.

    Parameters
    ----------
    cases : sequence of Case
        Scans with a label.
    predictions : mapping of str to sequence of array_like of shape (x, y, z)
        For each method and each case, as `evaluate_segmentations` takes them.
    folder : path
        Made if missing. All files appear together: tables as CSV files, figures as PNG files and
        ``report.html``, which needs no other file and no network.
    threshold : float or mapping of str to float, default=0.5
        As for `evaluate_segmentations`.
    min_voxels : int or mapping of str to int, default=1
        As for `evaluate_segmentations`.
    figures : int, default=6
        How many scans are shown, those with the most errors of the first method first.
    overwrite : bool, default=False
        Whether files of an earlier comparison may be replaced.
    command : str, default=""
        What made it, for the page.
    n_bootstrap : int, default=1000
        Samples of patients for the intervals; 0 leaves them out.
    random_state : int, RandomState or None, default=0
        Seed of controls and of bootstrap samples.

    Returns
    -------
    dict of str to DataFrame
        What `evaluate_segmentations` gave.

    Raises
    ------
    ValueError
        As `evaluate_segmentations`.
    FileExistsError
        If a file would be replaced.
    ImportError
        If the extra ``report`` is not installed.
    """
    evaluate = partial(
        evaluate_segmentations,
        cases,
        predictions,
        threshold=threshold,
        min_voxels=min_voxels,
        n_bootstrap=n_bootstrap,
        random_state=random_state,
    )

    def make_page(tables: dict[str, pd.DataFrame]) -> page.Page:
        thresholds = option_by_method("thresholds", threshold, predictions, 0.5)
        fewest_voxels = option_by_method("min_voxels", min_voxels, predictions, 1)
        limits = {name: (thresholds[name], fewest_voxels[name]) for name in predictions}
        ensemble = tables["ensemble"]
        by_both: list[Any] = []
        if len(ensemble):
            by_both = [_score_table(ensemble, _TEXTS[name]) for name in ("ensemble", "candidates")]
            by_both.insert(0, _TEXTS["two_models"])
        sections = [
            page.Section("", *_answer(cases, tables)),
            page.Section("Scores", *_summaries(tables)),
            page.Section("Scans", *_overlays(cases, predictions, tables, limits, figures)),
            page.Section("By size and by change", *_sizes_and_changes(tables)),
            page.Section("Marked by both models, and candidates", *by_both),
            page.Section("At other thresholds", *_curves(tables)),
            page.Section("Probabilities", *_calibration(tables)),
            page.Section("How this was made", page.origin(command, _rules(limits, predictions))),
        ]
        lead = page.notice_lead(case.synthetic for case in cases)
        title = "Metastases found, missed and marked by mistake"
        return page.Page(title, sections, lead, contents=True)

    return page.write_report(
        folder, evaluate, make_page, tables=KINDS, pictures=_FIGURES, overwrite=overwrite
    )


def batch_page(
    heading: str,
    contents: Sequence[Mapping[str, Any]],
    lesions: pd.DataFrame,
    shown: Mapping[str, Sequence[page.Block]],
    failed: Sequence[page.Block] = (),
) -> str:
    """Make the page of a run over scans."""
    columns = "scan {name} | patient {patient} | lesions {n_lesions:d} | "
    if any(content["n_marked_by_both"] is not None for content in contents):
        columns += "by both models {n_marked_by_both:} | "
    columns += "enhancing, mL {volume_mL:.2f} | with cores, mL {volume_with_core_mL:.2f} | "
    columns += "synthetic {word}"
    rows = []
    sections = []
    for content in contents:
        name = content["name"]
        is_synthetic = content["synthetic"]
        rows.append({**content, "word": "synthetic" if is_synthetic else "no"})
        remarks = [*content["notes"], content["statement"]]
        scan_lesions = _lesion_lines(lesions[lesions["name"] == name], remarks)
        title = f"{name} (synthetic)" if is_synthetic else name
        sections.append(page.Section(title, *shown[name], *scan_lesions))
    overview = page.Section("All scans", page.Table(rows, columns), *failed)
    sections = [overview, *sections, page.Section("", page.Note(_TEXTS["positions"]))]
    return page.Page(
        heading, sections, page.notice_lead(content["synthetic"] for content in contents)
    ).html()


def scan_page(
    case: Case,
    labels: NDArray[Any],
    probability: NDArray[np.floating],
    lesions: pd.DataFrame,
    *,
    threshold: float | None,
    picture: bytes,
    remarks: Sequence[str] = (),
) -> str:
    """Make the page of one scan: labels and probability (x, y, z) over it, in three planes."""
    # Only an ensemble has no single threshold.
    names = ("candidate", "marked by both models") if threshold is None else ("found",)
    layers = [
        Layer("probability", probability, "score", window=(0.0, 1.0), threshold=threshold),
        Layer("segmentation", labels, "mask", names=names, colors=_COLORS[-len(names) :]),
    ]
    if case.label is not None:
        # Hidden at first, so that a reader judges before the answer is seen.
        layers.append(Layer("reference", case.label, "mask", shown=False, colors=(REFERENCE,)))
    points = [
        (
            f"{lesion['number']}: {lesion['volume_mL']:.3f} mL enhancing",
            [lesion[axis] for axis in "xyz"],
        )
        for lesion in lesions.dropna(subset=["x", "y", "z"]).to_dict("records")
    ]
    planes = _viewer(
        case,
        layers,
        points=points,
        overlay=None if threshold is not None else "",
        label="Lesions over the scan",
        instead=page.Picture(picture, f"Lesions of {case.name} in three planes", width=1000),
    )
    findings = page.Section("What was found", *_lesion_lines(lesions, remarks))
    return page.Page(
        case.name, [page.Section("", planes), findings], page.notice_lead([case.synthetic])
    ).html()


def _viewer(case: Case, layers: Sequence[Layer], **options: Any) -> Any:
    """Make the viewer of a scan, its prior scan and what lies over them."""
    scans = [Layer("scan", case.image)]
    if case.prior is not None:
        scans.append(Layer("prior scan", case.prior))
    options |= {"region": case.brain, "image": "scan"}
    return html_viewer([*scans, *layers], case.affine, **options)


def _lesion_lines(lesions: pd.DataFrame, remarks: Sequence[str] = ()) -> Iterator[Any]:
    """Make the table of the lesions of a scan, after what is to be said of it."""
    sentences = [page.sentence(remark) for remark in remarks if remark]
    if not len(lesions):
        yield from sentences or ["Nothing was found."]
        return
    yield from sentences
    columns = _TEXTS["lesion"]
    # Runs without priors or probabilities lack some of the columns.
    if "finding" in lesions:
        columns += " | finding {finding}"
    if "change" in lesions:
        columns += " | since the prior scan {since}"
    if "probability" in lesions:
        columns += " | proba\u00adbility {probability:.2f}"
    yield page.Table([_lesion_words(row) for row in lesions.to_dict("records")], columns)
    yield page.Note(_TEXTS("cores", closed_gap_mm=CLOSED_GAP_MM))


def _lesion_words(lesion: dict[str, Any]) -> dict[str, Any]:
    """Add the words of a lesion to its row: number, open ring, change since the prior scan."""
    # As in lesions.tsv and DICOM; vanished lesions have numbers of the prior scan.
    number = "–" if lesion.get("finding") == "prior only" else str(lesion["number"])
    change = lesion.get("change")
    changes = [change] if isinstance(change, str) and change else []
    if np.isfinite(lesion.get("prior_volume_with_core_mL", np.nan)):
        changes.append(wording(_TEXTS["prior_lesion"], lesion))
        if lesion["prior_open_ring"]:
            changes.append(wording("open ring, {prior_hull_mL:.3f} mL within its outline", lesion))
    ring = ", open ring" if lesion["open_ring"] else ""
    return {**lesion, "shown_number": number, "ring": ring, "since": ", ".join(changes) or "–"}


def _ranked(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Give the scores of the methods on all scans, the best strict F1 first, without controls."""
    summary = tables["summary"]
    scores = summary[(summary["part"] == "all") & ~summary["control"].astype(bool)]
    return scores.sort_values("strict_f1", ascending=False, kind="stable").set_index("method")


def _scans_by_errors(scans: pd.DataFrame, method: str) -> pd.DataFrame:
    """Give the rows of a method's scans, those with most errors first."""
    rows = scans[scans["method"] == method].set_index("case")
    errors = rows["n_lesions"] - rows["n_distinct"] + rows["n_false_positives"] + rows["n_flagged"]
    return rows.loc[errors.sort_values(ascending=False, kind="stable").index]


def _answer(cases: Sequence[Case], tables: Mapping[str, pd.DataFrame]) -> Iterator[Any]:
    """Make the first screen: what the best method finds, and what became of each lesion."""
    from metastasis.study.plotting import plot_strip

    ranked = _ranked(tables)
    best = str(ranked.index[0])
    scores = ranked.iloc[0]
    n_wrong = int(scores["n_false_positives"] + scores["n_flagged"])
    interval = ""
    intervals = tables["intervals"]
    if len(intervals):
        row = intervals.set_index(["part", "method", "measure"]).sort_index()
        low, high = row.loc[("all", best, "strict_sensitivity"), ["low", "high"]]
        if np.isfinite(low):
            interval = f", 95 % interval {percent(low)} to {percent(high)} %"
    leading = f"Best of {len(ranked)}: " if len(ranked) > 1 else ""
    n_found_small = 0
    if scores["n_small"]:
        n_found_small = round(scores["sensitivity_small"] * scores["n_small"])
    yield _TEXTS(
        "answer",
        leading=leading,
        best=best,
        n_found=scores["n_distinct"],
        lesions=counted(round(scores["n_lesions"]), "lesion"),
        share=percent(scores["strict_sensitivity"]),
        interval=interval,
        wrong=counted(n_wrong, "wrong finding"),
        scans=counted(len(cases), "scan"),
        small_ml=SMALL_ML,
        n_found_small=n_found_small,
        n_small=scores["n_small"],
    )
    shown = [str(name) for name in ranked.index[:_STRIPS]]
    order = _scans_by_errors(tables["scans"], best)["name"]
    figure = plot_strip(tables["lesions"], list(order), shown, small_ml=SMALL_ML)
    yield _TEXTS.picture("strip", figure, methods=", ".join(shown))
    n_patients = len({case.patient for case in cases})
    prefix = "synthetic " if all(case.synthetic for case in cases) else ""
    yield _TEXTS(
        "introduction",
        scans=counted(len(cases), f"{prefix}scan"),
        patients=counted(n_patients, f"{prefix}patient"),
        lesions=counted(int(scores["n_lesions"]), "reference lesion"),
        n_priors=sum(case.prior is not None for case in cases) or "none",
    )
    yield page.few_note(n_patients)


def _score_table(rows: Any, columns: str) -> page.Table:
    return page.Table(rows, columns, controls=CONTROLS)


def _summaries(tables: Mapping[str, pd.DataFrame]) -> Iterator[Any]:
    summary = tables["summary"]
    wrong = summary["n_false_positives"] + summary["n_flagged"]
    summary = summary.assign(wrong_per_scan=wrong / summary["n_scans"])
    yield _TEXTS["explained"]
    for part, scores in summary.groupby("part", sort=False):
        strict = _score_table(scores, _TEXTS["strict"])
        published = [_TEXTS["published_explained"], _score_table(scores, _TEXTS["published"])]
        if part == "all":
            yield strict
            yield page.Fold("Published figures, which are less strict", *published)
        else:
            n_scans = int(scores["n_scans"].iloc[0])
            yield page.Fold(f"{counted(n_scans, 'scan')} {part}", strict, *published)
    # Controls are no results, and their intervals would hide those of the methods.
    intervals = tables["intervals"].query("part == 'all' and method not in @CONTROLS")
    measures = intervals["measure"].astype(str).str.replace("_", " ")
    yield page.Fold(
        "Intervals: bootstrap samples of patients; of 0 and 1 Wilson's",
        page.Table(
            _with_interval(intervals.assign(measure=measures), "value"),
            "method {method} | measure {measure} | value, 95 % interval {value:.2i}",
        ),
    )


def _with_interval(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Name the interval of a table that has one alone as formats name it."""
    return table.rename(columns={"low": f"{name}_low", "high": f"{name}_high"})


def _interval_sentence(tables: Mapping[str, pd.DataFrame]) -> str:
    """Say what stands in brackets, or why nothing does."""
    n_patients = tables["scans"]["patient"].nunique()
    if n_patients < FEWEST_PATIENTS:
        return f"No intervals: they need {FEWEST_PATIENTS} patients, not {n_patients}."
    if tables["intervals"].empty:
        return ""
    return "In brackets the 95 % interval over patients."


def _sizes_and_changes(tables: Mapping[str, pd.DataFrame]) -> Iterator[Any]:
    """Make tables by size and by range of volume, by two further rules, and by change."""
    yield _TEXTS["touched"]
    all_scans = tables["summary"].query("part == 'all'")
    n_small, n_large = all_scans[["n_small", "n_large"]].iloc[0]
    columns = _TEXTS("by_size", small_ml=SMALL_ML, n_small=n_small, n_large=n_large)
    yield _score_table(all_scans, columns)
    volumes = tables["volumes"].query("n > 0")
    words = [
        f"{low:.0f} to {high:.0f} mm³" if np.isfinite(high) else f"{low:.0f} mm³ or more"
        for low, high in zip(volumes["from_mm3"], volumes["below_mm3"], strict=True)
    ]
    table = _with_interval(volumes.assign(volume=words), "recall")
    yield page.Fold("By range of volume", page.Table(table, _TEXTS["by_volume"]))
    shares = [
        [row["method"], measure, wording(f"{{{key}:.2i}}", row)]
        for row in tables["distance"].to_dict("records")
        for key, measure in zip(SHARES, ("found", "right", "F1"), strict=True)
    ]
    yield page.Fold(
        "By distance",
        _TEXTS("distance", intervals=_interval_sentence(tables)),
        page.Table(shares, ["method", "measure", "share, interval over patients"], numbers=(2,)),
    )
    challenge = _score_table(tables["challenge"], _TEXTS["challenge"])
    yield page.Fold("By the rule of BraTS-METS", _TEXTS["brats"], challenge)
    yield page.Fold(
        "Scans without lesions", page.Table(tables["lesion_free"], _TEXTS["lesion_free"])
    )
    status = tables["status"]
    if not len(status):
        return
    columns = "share touched of {method}"
    for name, n in status.drop_duplicates("status").set_index("status")["n"].items():
        columns += f" | {name} ({n}) {{{name}:.2f}}"
    sensitivity = status.pivot_table("sensitivity", "method", "status", sort=False, dropna=False)
    yield _score_table(sensitivity.reset_index(), columns)


def _curves(tables: Mapping[str, pd.DataFrame]) -> Iterator[Any]:
    from metastasis.study.plotting import plot_curves

    froc = tables["froc"]
    bars = ""
    if froc["strict_sensitivity_low"].notna().any():
        bars = " Bars: 95 % intervals over patients."
    yield _TEXTS.picture("curves", plot_curves(tables), bars=bars)
    yield page.Fold(
        "Areas and the FROC score",
        _TEXTS("areas_explained", intervals=_interval_sentence(tables)),
        _score_table(tables["areas"], _TEXTS["areas"]),
        page.Table(froc, _TEXTS["froc"]),
    )


def _calibration(tables: Mapping[str, pd.DataFrame]) -> Iterator[Any]:
    from metastasis.study.plotting import plot_calibration

    table = tables["calibration"]
    if len(table):
        yield _TEXTS.picture("calibration", plot_calibration(tables))
        yield page.Table(table.drop_duplicates(["method", "level"]), _CALIBRATION)


def _overlays(
    cases: Sequence[Case],
    predictions: Mapping[str, Sequence[ArrayLike]],
    tables: Mapping[str, pd.DataFrame],
    limits: Mapping[str, tuple[float, int]],
    figures: int,
) -> Iterator[Any]:
    from metastasis.study.plotting import plot_overlay

    best = next(name for name in _ranked(tables).index if name in predictions)
    # A page of all scans would be too long, and what went wrong tells most.
    order = _scans_by_errors(tables["scans"], best).index[:figures]
    yield _TEXTS("overlays", n_shown=len(order), scans=counted(len(cases), "scan"), best=best)
    for i in order:
        case = cases[i]
        kind = "Synthetic scan" if case.synthetic else "Scan"
        scan_values = {best: np.asarray(predictions[best][i])}
        scan_values |= {name: np.asarray(values[i]) for name, values in predictions.items()}
        # A viewer holds whole volumes, so only the scan with most errors has one.
        if i == order[0]:
            yield page.Heading(f"{kind} {case.name}")
            yield _planes(case, scan_values, limits, f"{kind} {case.name}")
        pictures = []
        for name, values in scan_values.items():
            labels = _labels(values, *limits[name])
            ensemble = values.dtype.kind != "f" and any(
                np.max(prediction) == 2 for prediction in predictions[name]
            )
            title = f"{case.name} by {name}"
            figure = plot_overlay(case, labels, of_two_models=ensemble, title=title)
            pictures.append(page.Picture(figure, f"{kind} {title} in three planes"))
        yield pictures[0]
        yield page.Fold(f"{case.name} by the other methods", *pictures[1:])


def _labels(values: NDArray[Any], threshold: float, min_voxels: int) -> NDArray[np.uint8]:
    """Mark the voxels from a method's threshold on, in components that are large enough."""
    if values.dtype.kind == "f":
        values = values >= threshold
    labels = values.astype(np.uint8)
    return labels * drop_small(labels, min_voxels)


def _planes(
    case: Case,
    predictions: Mapping[str, NDArray[Any]],
    limits: Mapping[str, tuple[float, int]],
    title: str,
) -> Any:
    """Make the viewer of one scan with the results of each method, and the lesions to look at."""
    from dmrifit.stats.lesion_matching import lesion_table
    from metastasis.study.plotting import place_to_show

    layers = [
        Layer(name, values, "score", window=(0.0, 1.0), threshold=limits[name][0])
        for name, values in predictions.items()
        if values.dtype.kind == "f"
    ]
    assert case.label is not None
    layers.append(Layer("reference", case.label, "mask", colors=(REFERENCE,)))
    points: list[tuple[str, list[float]]] = []
    for name, values in predictions.items():
        labels = _labels(values, *limits[name])
        names = ("candidate", MARKED_BY_BOTH) if labels.max(initial=0) == 2 else ()
        # Further methods have colors of their own.
        own = () if points else _COLORS[-max(len(names), 1) :]
        layers.append(Layer(name, labels, "mask", names=names, shown=not points, colors=own))
        if points:
            continue
        center, words = place_to_show(case, labels)
        points.append((f"{words} ({name})", [float(x) for x in center]))
        table = lesion_table(case.label, labels > 0, case.affine)
        for lesion in table[table["kind"] == "lesion"].to_dict("records"):
            state = "found" if lesion["found"] else "missed"
            words = f"lesion {lesion['number']}: {lesion['volume_mL']:.3f} mL, {state}"
            points.append((words, [lesion[axis] for axis in "xyz"]))
    instead = page.Note("The pictures below show the same scan.")
    return _viewer(case, layers, points=points, label=title, instead=instead)


def _rules(
    limits: Mapping[str, tuple[float, int]], predictions: Mapping[str, Sequence[ArrayLike]]
) -> Iterator[list[str]]:
    """Say of each method what it marks."""
    for name, values in predictions.items():
        threshold, min_voxels = limits[name]
        rule = "labels as given"
        if np.asarray(values[0]).dtype.kind == "f":
            rule = f"probability of {threshold:.4g} and above"
        if min_voxels > 1:
            rule += f", findings from {min_voxels} voxels"
        yield [name, rule]
