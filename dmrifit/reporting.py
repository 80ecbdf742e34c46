"""The report of a comparison: one self-contained page beside its tables and figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dmrifit.evaluation import Evaluation
from dmrifit.files import FileSet
from dmrifit.pages import html_figure, html_grid, html_page, html_table, png_bytes
from dmrifit.plotting import is_control, plot_bias_dispersion, plot_legend, plot_signal_errors

if TYPE_CHECKING:
    import pandas as pd
    from markupsafe import Markup

__all__ = ["summarize", "write_report"]

PAGE = "report.html"

_MEANING = {
    "S0": "signal without any weighting, relative to the patient's scale",
    "f": "vascular fraction",
    "Dv": "vascular diffusivity",
    "T2v": "vascular T2",
    "Dt": "tissue diffusivity",
    "K": "tissue kurtosis",
    "T2t": "tissue T2",
}
#: S0 is no property of the tissue, and is left out of summaries over parameters.
_NO_TISSUE = ("S0",)
_KEYS = ["train_on", "cohort", "strategy", "algorithm"]
_TRAIN_ON = {
    "same": "trained on the other patients of the same cohort",
    "other": "trained on all patients of the other cohorts",
    "pooled": "trained on the other patients of all cohorts",
}
_WHOM = {"same": "the same cohort", "other": "other cohorts", "pooled": "all cohorts"}


def summarize(evaluation: Evaluation) -> pd.DataFrame:
    """
    Summarize a comparison over patients and parameters.

    Parameters
    ----------
    evaluation : Evaluation
        The comparison.

    Returns
    -------
    DataFrame
        One row for each way of training, cohort, strategy and algorithm: ``abs_bias`` and ``dispersion``,
        the mean over patients of the mean over tissue parameters of abs(BI) and DI; ``pearson``, the same
        of the correlation, NaN counted as 0 because a constant prediction has none; ``*_sd``, standard
        deviations between patients; ``*_without_T2v``, the same means without T2v, whose reference mostly
        sits at a bound; ``*_truth``, against the truth of synthetic patients; ``signal_error`` and
        ``signal_pearson``, means over patients and unseen contrasts; ``n_patients``.
    """
    import pandas as pd

    scores = _tissue(evaluation.scores).assign(
        abs_bias=lambda t: t["bias"].abs(),
        abs_bias_truth=lambda t: t["bias_truth"].abs(),
        pearson=lambda t: t["pearson"].fillna(0.0),
    )
    values = ["abs_bias", "dispersion", "pearson", "abs_bias_truth", "dispersion_truth"]
    patients = scores.groupby([*_KEYS, "patient"], sort=False)[values].mean()
    groups = patients.groupby(_KEYS, sort=False)
    table = groups.mean()
    table["abs_bias_sd"], table["dispersion_sd"] = groups["abs_bias"].std(), groups["dispersion"].std()
    rest = scores[scores["metric"] != "T2v"].groupby(_KEYS, sort=False)[["abs_bias", "dispersion", "pearson"]].mean()
    table = table.join(rest.add_suffix("_without_T2v"))
    signals = evaluation.signals
    if len(signals):
        signals = signals.assign(pearson=signals["pearson"].fillna(0.0))
        means = signals.groupby(_KEYS, sort=False)[["relative_error", "pearson"]].mean()
        table = table.join(means.rename(columns={"relative_error": "signal_error", "pearson": "signal_pearson"}))
    table["n_patients"] = groups.size()
    return pd.DataFrame(table.reset_index())


def write_report(evaluation: Evaluation, folder: str | Path) -> Path:
    """
    Write the report of a comparison.

    Parameters
    ----------
    evaluation : Evaluation
        The comparison.
    folder : path
        Made if needed; the files of an earlier report are replaced.

    Returns
    -------
    Path
        The page, ``report.html``, which needs no other file and no network. Beside it stand
        ``scores.csv``, ``signals.csv``, ``summary.csv``, ``study.json`` and the figures as PNG.

    Raises
    ------
    ImportError
        If the extra ``report`` is not installed.
    ValueError
        If the comparison has no score.
    """
    if not len(evaluation.scores):
        msg = "the comparison has no score to report; compare at least one estimator"
        raise ValueError(msg)
    folder = Path(folder)
    evaluation.write(folder)
    summary = summarize(evaluation)
    figures = {
        "bias_dispersion.png": png_bytes(plot_bias_dispersion(_panels(evaluation)), dpi=150),
    }
    for name in _unique(evaluation.signals.get("cohort", ())):
        own = evaluation.signals[evaluation.signals["cohort"] == name]
        regime = own["train_on"].iloc[0]
        title = f"{name}\ntrained on {_WHOM.get(regime, regime)}"
        figure = plot_signal_errors(own[own["train_on"] == regime], title)
        figures[f"signal_errors_{_safe_name(name)}.png"] = png_bytes(figure, dpi=200)
    page = html_page(_title(evaluation), _sections(evaluation, summary, figures), lead=_lead(evaluation))
    with FileSet(folder, ["summary.csv", *figures, PAGE], overwrite=True) as files:
        files.path("summary.csv").write_text(summary.to_csv(index=False), encoding="utf-8")
        for name, png in figures.items():
            files.path(name).write_bytes(png)
        files.path(PAGE).write_text(page, encoding="utf-8")
    return folder / PAGE


def _title(evaluation: Evaluation) -> str:
    n = len(evaluation.scores["estimator"].unique())
    return f"Comparison of {n} predictors of the advanced protocol"


def _lead(evaluation: Evaluation) -> str:
    cohorts = evaluation.study.get("cohorts", {})
    synthetic = [name for name, cohort in cohorts.items() if cohort.get("synthetic")]
    if not synthetic:
        return ""
    which = "All cohorts" if len(synthetic) == len(cohorts) else f"Cohorts {', '.join(synthetic)}"
    return f"Synthetic data. {which} were simulated; no person was scanned, and no number here is a clinical result."


def _sections(evaluation: Evaluation, summary: pd.DataFrame, figures: dict[str, bytes]) -> list[tuple[str, Any]]:
    sections = [
        ("", _question(evaluation)),
        ("Summary", _summary_tables(summary)),
        ("Bias and dispersion", _scatter_section(evaluation)),
        ("Parameter by parameter", _parameter_tables(evaluation)),
    ]
    if len(summary["train_on"].unique()) > 1:
        sections.append(("From one cohort to another", _transfer_tables(evaluation)))
    if len(evaluation.signals):
        sections.append(("Predicted signals", _signal_section(evaluation, figures)))
    return [
        *sections,
        ("Cohorts and reference", _cohort_section(evaluation)),
        ("Time", _time_table(evaluation)),
        ("How this was made", _provenance(evaluation)),
    ]


def _question(evaluation: Evaluation) -> Markup:
    settings = evaluation.study.get("settings", {})
    n_patients = evaluation.scores.groupby("cohort", sort=False)["patient"].nunique()
    counts = " and ".join(f"{n} patients of {name}" for name, n in n_patients.items())
    cap = settings.get("max_voxels")
    voxels = f"at most {cap} voxels" if cap else "all voxels"
    texts = [
        (
            "How well do models fitted to a long, advanced protocol follow from the few images of a clinical one? "
            f"Each of {counts} was held out in turn; predictors were trained on {voxels} of the "
            f"{settings.get('train_mask', 'body')} of each other patient and scored on every voxel of the "
            f"{settings.get('score_mask', 'lesion')} of the held-out one."
        ),
        (
            "The reference is the fit to the full protocol. E = (prediction − reference) / reference; the bias index "
            "BI is the median of E over a patient's voxels, the dispersion index DI its interquartile range. Both "
            "are blind to a predictor that ignores its input, so the correlation r stands beside them, and so "
            "does a constant predictor where one was compared."
        ),
    ]
    return _join(_paragraph(text) for text in texts)


def _summary_tables(summary: pd.DataFrame) -> Markup:
    parts: list[Any] = [
        _paragraph(
            "Means over patients (± standard deviation between patients) of the mean over the tissue parameters. "
            "T2v of the reference mostly sits at a bound of the fit, so the same without T2v stands beside it."
        )
    ]
    parts.append(_findings(summary))
    truth = summary["abs_bias_truth"].notna().any()
    header: list[Any] = ["strategy", "algorithm", "|BI| (%)", "DI (%)", "r"]
    header += [_lines("without T2v", name) for name in ("|BI| (%)", "DI (%)", "r")]
    header += [_lines("against truth", name) for name in ("|BI| (%)", "DI (%)")] if truth else []
    for (train_on, cohort), rows in summary.groupby(["train_on", "cohort"], sort=False):
        cells = []
        for row in rows.to_dict("records"):
            line = [
                row["strategy"],
                row["algorithm"],
                f"{_percent(row['abs_bias'])} ± {_percent(row['abs_bias_sd'])}",
                f"{_percent(row['dispersion'])} ± {_percent(row['dispersion_sd'])}",
                _correlation(row["pearson"]),
                _percent(row["abs_bias_without_T2v"]),
                _percent(row["dispersion_without_T2v"]),
                _correlation(row["pearson_without_T2v"]),
            ]
            cells.append(line + ([_percent(row["abs_bias_truth"]), _percent(row["dispersion_truth"])] if truth else []))
        n = int(rows["n_patients"].iloc[0])
        parts.append(_heading(f"{cohort}, {n} patients, {_TRAIN_ON.get(train_on, train_on)}"))
        parts.append(html_table(cells, header, numbers=range(2, len(header))))
    return _join(parts)


def _findings(summary: pd.DataFrame) -> Markup:
    """Say for each cohort which predictor has the smallest dispersion, and which of the constants."""
    control = summary["algorithm"].map(is_control)
    cells = []
    for (train_on, cohort), rows in summary.groupby(["train_on", "cohort"], sort=False):
        learners, constants = (_smallest_dispersion(rows[control[rows.index] == wanted]) for wanted in (False, True))
        cells.append([cohort, _WHOM.get(train_on, train_on), *learners, *constants])
    scores = ["DI (%)", "|BI| (%)", "r"]
    header = ["cohort", "trained on", _lines("smallest dispersion", "of all that learn"), *scores]
    header += [_lines("smallest dispersion", "of the constants"), *scores[:2]]
    return html_table(cells, header, numbers=(3, 4, 5, 7, 8))


def _smallest_dispersion(rows: pd.DataFrame) -> list[str]:
    """Name the predictor and give DI, |BI| and, where it has one, r."""
    learns = not rows["algorithm"].map(is_control).any()
    if not rows["dispersion"].notna().any():
        return ["–"] * (4 if learns else 3)
    best = rows.loc[rows["dispersion"].idxmin()]
    scores = [f"{best['algorithm']} {best['strategy']}", _percent(best["dispersion"]), _percent(best["abs_bias"])]
    return [*scores, _correlation(best["pearson"])] if learns else scores


def _scatter_section(evaluation: Evaluation) -> Markup:
    panels = _panels(evaluation)
    everything = _tissue(evaluation.scores)
    legend = plot_legend(_unique(everything["algorithm"]), _unique(everything["metric"]))
    parts: list[Any] = [
        _paragraph(
            "Each point is the mean over patients for one parameter (shape) and one algorithm (color); the nearer to "
            "the lower left corner, the better. All panels have the same axes; hollow points lie beyond "
            "them. S0, no property of the tissue, is left to the tables."
        ),
        html_figure(png_bytes(legend), "Legend: colors of algorithms, shapes of parameters"),
    ]
    for train_on in _unique(everything["train_on"]):
        own = [(title, rows) for title, rows in panels if rows["train_on"].iloc[0] == train_on]
        parts.append(_heading(_TRAIN_ON.get(train_on, train_on).capitalize()))
        grid = [
            html_figure(png_bytes(figure), f"Dispersion index against bias index, {title}")
            for (title, _), figure in zip(own, _single_panels(own, panels), strict=True)
        ]
        parts.append(html_grid(grid))
    return _join(parts)


def _single_panels(own: Sequence[tuple[str, Any]], everything: Sequence[tuple[str, Any]]) -> Iterable[Any]:
    for panel in own:
        yield plot_bias_dispersion([panel], legend=False, like=everything)


def _panels(evaluation: Evaluation) -> list[tuple[str, Any]]:
    """Average over patients, one panel for each way of training, cohort and strategy."""
    scores = _tissue(evaluation.scores).assign(bias=lambda t: t["bias"].abs())
    means = scores.groupby([*_KEYS, "metric"], sort=False)[["bias", "dispersion"]].mean().reset_index()
    settings = evaluation.study.get("settings", {})
    region = f"{settings.get('train_mask', 'body')} → {settings.get('score_mask', 'lesion')}"
    panels = []
    for (train_on, cohort, strategy), rows in means.groupby(["train_on", "cohort", "strategy"], sort=False):
        panels.append((f"{cohort}, {strategy}\ntrained on {_WHOM.get(train_on, train_on)}; {region}", rows))
    return panels


def _parameter_tables(evaluation: Evaluation) -> Markup:
    scores = evaluation.scores.assign(abs_bias=evaluation.scores["bias"].abs())
    metrics = _unique(scores["metric"])
    parts: list[Any] = [
        _paragraph("Mean over patients of |BI| (%), DI (%) and r; – where a constant prediction has no correlation.")
    ]
    for (train_on, cohort), block in scores.groupby(["train_on", "cohort"], sort=False):
        means = block.groupby(["strategy", "algorithm", "metric"], sort=False)[
            ["abs_bias", "dispersion", "pearson"]
        ].mean()
        cells = []
        for strategy, algorithm in _unique(zip(block["strategy"], block["algorithm"], strict=True)):
            line = [strategy, algorithm]
            for metric in metrics:
                row = means.loc[(strategy, algorithm, metric)]
                line.append(
                    f"{_percent(row['abs_bias'])} / {_percent(row['dispersion'])} / {_correlation(row['pearson'])}"
                )
            cells.append(line)
        title = f"{cohort}, {_TRAIN_ON.get(train_on, train_on)}"
        table = html_table(cells, ["strategy", "algorithm", *metrics], numbers=range(2, 2 + len(metrics)))
        parts.append(_details(title, table, opened=train_on == "same"))
    return _join(parts)


def _transfer_tables(evaluation: Evaluation) -> Markup:
    """Lay training against test, for the mean over parameters and for each of them."""
    scores = evaluation.scores.assign(abs_bias=evaluation.scores["bias"].abs())
    columns = _unique(zip(scores["cohort"], scores["train_on"], strict=True))
    header = ["strategy", "algorithm", *(_lines(f"{cohort} ←", _WHOM[train_on]) for cohort, train_on in columns)]

    def table(rows: pd.DataFrame) -> Markup:
        means = rows.groupby(["strategy", "algorithm", "cohort", "train_on"], sort=False)[
            ["abs_bias", "dispersion"]
        ].mean()
        cells = []
        for strategy, algorithm in _unique(zip(rows["strategy"], rows["algorithm"], strict=True)):
            line = [strategy, algorithm]
            for cohort, train_on in columns:
                row = means.loc[(strategy, algorithm, cohort, train_on)]
                line.append(f"{_percent(row['abs_bias'])} / {_percent(row['dispersion'])}")
            cells.append(line)
        return html_table(cells, header, numbers=range(2, len(header)))

    intro = (
        "|BI| (%) / DI (%), mean over patients. Tested cohort ← cohort trained on. Parameters can move in opposite "
        "directions when the scanner changes, so each has its own table below the mean."
    )
    parts: list[Any] = [_paragraph(intro), _heading("Mean over tissue parameters"), table(_tissue(scores))]
    parts += [_details(metric, table(scores[scores["metric"] == metric])) for metric in _unique(scores["metric"])]
    return _join(parts)


def _signal_section(evaluation: Evaluation, figures: dict[str, bytes]) -> Markup:
    signals = evaluation.signals
    cells = []
    for (train_on, cohort, strategy, algorithm), rows in signals.groupby(_KEYS, sort=False):
        contrasts = rows.groupby("contrast", sort=False)[["relative_error", "pearson"]].mean()
        worst = contrasts["relative_error"].idxmax() if contrasts["relative_error"].notna().any() else "–"
        least = contrasts["pearson"].min()
        cells.append(
            [
                cohort,
                train_on,
                strategy,
                algorithm,
                _percent(rows["relative_error"].mean()),
                _percent(rows["median_relative_error"].mean()),
                _percent(rows["signed_relative_error"].mean()),
                f"{_percent(contrasts['relative_error'].max())} ({worst})",
                _correlation(rows["pearson"].mean()),
                _correlation(least),
            ]
        )
    header = ["cohort", "trained on", "strategy", "algorithm"]
    header += [_lines("mean", "|E| (%)"), _lines("median", "|E| (%)"), _lines("mean", "E (%)")]
    header += [_lines("worst contrast,", "mean |E| (%)"), "r", _lines("worst", "contrast, r")]
    n = signals["contrast"].nunique()
    parts: list[Any] = [
        _paragraph(
            f"Only the {n} contrasts that are not among the inputs count; the reference is the measured signal, noise "
            "included. r is over the voxels of a patient, then averaged over patients and contrasts."
        )
    ]
    grid = [
        html_figure(png, f"Relative error of predicted signals by contrast, {name}")
        for name, png in figures.items()
        if name.startswith("signal_errors_")
    ]
    parts += [html_grid(grid), html_table(cells, header, numbers=range(4, len(header)))]
    return _join(parts)


def _cohort_section(evaluation: Evaluation) -> Markup:
    scores = evaluation.scores
    cells = []
    parts: list[Any] = []
    for name, cohort in evaluation.study.get("cohorts", {}).items():
        protocol = cohort["protocol"]
        lesions = [counts["lesion"] for counts in cohort["patients"].values()]
        cells.append(
            [
                name,
                "synthetic" if cohort["synthetic"] else "measured",
                len(cohort["patients"]),
                f"{int(np.median(lesions))} ({min(lesions)}–{max(lesions)})",
                ", ".join(f"{b:g}" for b in sorted(set(protocol["b"]))),
                ", ".join(f"{te:g}" for te in sorted(set(protocol["te"]))) if protocol["te"] else "–",
                len(protocol["b"]),
            ]
        )
        skipped = "; ".join(f"{patient}: {reason}" for patient, reason in cohort.get("skipped", {}).items())
        if skipped:
            parts.append(_paragraph(f"Not scored in {name}: {skipped}."))
    header = ["cohort", "data", "patients", "lesion voxels, median (range)", "b (s/mm²)", "TE (ms)", "contrasts"]
    parts.insert(0, html_table(cells, header, numbers=(2, 3, 6)))
    first = scores[scores["estimator"] == scores["estimator"].iloc[0]].drop_duplicates(["cohort", "patient", "metric"])
    cells = []
    for metric in _unique(first["metric"]):
        rows = first[first["metric"] == metric]
        all_rows = scores[scores["metric"] == metric]
        cells.append(
            [
                metric,
                _MEANING.get(metric, ""),
                rows["unit"].iloc[0].replace("signal", "relative") or "1",
                _percent(rows["at_bound"].mean()),
                _percent(rows["n_undefined"].sum() / max(rows["n_voxels"].sum(), 1)),
                _percent(all_rows["n_failed"].sum() / max(all_rows["n_voxels"].sum(), 1)),
            ]
        )
    header = ["parameter", "meaning", "unit", "reference at a bound (% of voxels)", "E undefined (%)",
              "not predicted (%)"]  # fmt: skip
    note = "E is undefined where the reference is zero or was not fitted; such voxels are counted here and left out."
    parts += [_heading("The reference"), html_table(cells, header, numbers=(3, 4, 5)), _paragraph(note)]
    return _join(parts)


def _time_table(evaluation: Evaluation) -> Markup:
    once = evaluation.scores.drop_duplicates([*_KEYS, "patient", "repeat", "estimator"])
    total = once.groupby(["strategy", "algorithm"], sort=False)["seconds"].agg(["sum", "mean"])
    cells = [[s, a, f"{row['mean']:.3f}", f"{row['sum']:.1f}"] for (s, a), row in total.iterrows()]
    table = html_table(cells, ["strategy", "algorithm", "seconds per patient", "seconds in all"], numbers=(2, 3))
    text = "Training, prediction and the fit of the prediction, one thread for linear algebra."
    whole = evaluation.study.get("seconds")
    if whole is not None:
        text += f" The last run took {whole:.0f} s in all"
        models = evaluation.study.get("models", {"trained": 0, "reused": 0})
        text += f", without {models['reused']} models kept from earlier ones." if models["reused"] else "."
    return _join([table, _paragraph(text)])


def _provenance(evaluation: Evaluation) -> Markup:
    study = evaluation.study
    settings = study.get("settings", {})
    rows: list[list[Any]] = [["command", study.get("command", "")], ["date", study.get("date", "")]]
    rows += [[key.replace("_", " "), _setting(settings[key])] for key in settings if key != "cohorts"]
    rows += [[f"version of {name}", version] for name, version in study.get("versions", {}).items()]
    names = [[name, _short(description)] for name, description in study.get("estimators", {}).items()]
    return _join([html_table(rows), _details("Estimators", html_table(names, ["name", "class and parameters"]))])


def _setting(value: Any) -> str:
    if value is None:
        return "all"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _short(description: Any) -> str:
    """Write a description of an estimator like a call, without what repeats the protocols."""
    if isinstance(description, dict) and "class" in description:
        inside = description.get("parameters", {})
        shown = [f"{key}={_short(value)}" for key, value in inside.items() if value is not None]
        return f"{description['class'].rpartition('.')[2]}({', '.join(shown)})"
    if isinstance(description, dict) and "protocol" in description:
        return f"<{len(description['protocol']['b'])} contrasts>"
    return str(description)


def _tissue(scores: pd.DataFrame) -> pd.DataFrame:
    tissue = scores[~scores["metric"].isin(_NO_TISSUE)]
    return tissue if len(tissue) else scores


def _percent(value: float) -> str:
    value = 100 * value
    return _decimals(value, 1 if abs(value) < 9.95 else 0)


def _correlation(value: float) -> str:
    return _decimals(value, 2)


def _decimals(value: float, n: int) -> str:
    if not np.isfinite(value):
        return "–"
    text = f"{value:.{n}f}"
    return text.replace("-", "−") if float(text) else f"{0:.{n}f}"


def _unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _safe_name(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text)


def _markup(template: str, *values: Any) -> Markup:
    from markupsafe import Markup

    return Markup(template).format(*values)


def _join(parts: Iterable[Any]) -> Markup:
    return _markup("{}" * len(parts := list(parts)), *parts)


def _lines(first: str, second: str) -> Markup:
    return _markup("{}<br>{}", first, second)


def _paragraph(text: str) -> Markup:
    return _markup("<p>{}</p>", text)


def _heading(text: str) -> Markup:
    return _markup("<h3>{}</h3>", text)


def _details(title: str, body: Any, *, opened: bool = False) -> Markup:
    return _markup("<details{}><summary>{}</summary>{}</details>", _markup(" open" if opened else ""), title, body)
