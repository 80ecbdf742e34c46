"""Fits of many scans: a row for each, and a page of all; options are in `fit_command`."""

from __future__ import annotations

import base64
import glob
import json
import re
import shlex
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import typer

from dmrifit._utils.counts import counted, first_few, percent
from dmrifit._utils.text_files import read_sealed
from dmrifit._utils.threads import default_threads
from dmrifit.cli.case_runs import FAILED, CaseRun, RunOptions, RunPage, can_draw
from dmrifit.cli.options import named_images, say
from dmrifit.cli.workers import scheduler
from dmrifit.cohort.bids_folder import find_scans, is_bids_folder, match_files, plain_scan
from dmrifit.engine.design.identifiability import suggest_model
from dmrifit.engine.fit_settings import FitSettings
from dmrifit.engine.formulas.model_formula import AMPLITUDE_UNIT
from dmrifit.engine.models import resolve_model
from dmrifit.imaging.fit_predict import fit_image, kept_measurements
from dmrifit.imaging.regions import steps_text
from dmrifit.imaging.scan_info import contrast_lines
from dmrifit.io.bids_derivatives import (
    common_stem,
    derivative_name,
    describe_dataset,
    describe_table_of_fits,
    file_lines,
)
from dmrifit.io.case_tables import check_folder_names, folder_rows
from dmrifit.io.series import Series
from dmrifit.report import verdict
from dmrifit.report.numerals import significant
from dmrifit.report.page import Fold, Link, Note, Picture, Table, Texts
from dmrifit.report.quicklook import thumbnails, value_lines
from dmrifit.report.voxel_records import short_unit

if TYPE_CHECKING:
    from dmrifit.cohort.bids_folder import DiffusionScan
    from dmrifit.engine.protocol import Protocol

_TABLE, _COLUMNS = "fits.tsv", "fits.json"
_VERSION = 5  # of what a record holds; scans of another one are fitted again
_PAGE = "index.html"
_NAMES = ("name", "subject", "visit")  # of a scan
_FEWEST_COMPARED = 5  # scans of a model, below which none is told to differ from the others
_TEXTS = Texts(__file__)
_SENTENCES = ("differs from the others", "noise", "refit with")  # columns of the overview
_THUMBNAIL = 110  # pixels
#: What the table of fits tells of the noise, and of the choice by it.
_NOISE = ("Sigma", "Method", "SNR", "Misfit", "Choice")
_UNUSUAL = 3.5  # robust SDs (Iglewicz and Hoaglin, How to Detect and Handle Outliers, 1993)
_LEAST_SPREAD = 0.02  # of shares, and of medians relative to their size
#: What a validator of BIDS shall not read: tables, pages, and maps, whose names (model-, param-,
#: dwimap) are of the proposal for diffusion derivatives, which the standard has not taken.
_IGNORED = f"fits.*\n{FAILED}\n{_PAGE}\nsettings.json\n*_quicklook.*\n*_dwimap.*\n"

#: A scan, its files by option that is a pattern (None: none matches), and its earlier sidecar.
_ScanFiles: TypeAlias = "tuple[DiffusionScan, dict[str, Path | None], str]"


def named_scans(images: Sequence[Path]) -> tuple[list[DiffusionScan], Path]:
    """Find the scans of a folder, a list or a glob; and what patterns are relative to."""
    root = Path()
    if len(images) == 1 and is_bids_folder(images[0]):
        root = images[0]
        scans = find_scans(root)
    else:
        rows = folder_rows(named_images(images), ("dwi",))
        scans = [plain_scan(row["name"], Path(row["dwi"])) for row in rows]
    check_folder_names([scan.name for scan in scans], first_few([str(image) for image in images]))
    return scans, root


def fit_many(
    context: typer.Context, images: Sequence[Path], run: RunOptions, options: dict[str, Any]
) -> None:
    """Fit every scan that was not finished before; write the table, the page and the summary."""
    out = run.out
    scans, root = named_scans(images)
    te = options["te"]
    if te and len(te) > 1:
        raise ValueError("for many scans --te takes one value; else give .te or .json files")
    # The file of each scan where an option is a pattern; words and numbers are for all.
    patterns: dict[str, dict[str, Path | None]] = {}
    for role in ("mask", "sigma"):
        value = options[role]
        if value not in (None, "auto", "none", "estimate") and not isinstance(value, float):
            # A pattern is relative to the BIDS folder, a file to where the command runs.
            top = Path() if Path(value).is_file() else root
            patterns[role] = match_files(f"--{role}", str(value), scans, top)
            shared = (top / value).absolute()
            # Of no person by its name; the fit of each scan checks that it is on the scan's grid.
            if shared.is_file() and "sub-" not in shared.name and not any(patterns[role].values()):
                patterns[role] = dict.fromkeys(patterns[role], shared)
                say(f"using {role} {value} for {counted(len(scans), 'scan')}")
    if out.is_dir() and any(out.samefile(image) for image in images if image.is_dir()):
        raise ValueError(_TEXTS("raw_data", out=out, better=out / "derivatives" / "dmrifit"))
    # By echo time, the names of parameters are known only with the echo times of a scan.
    if options["model"] is not None and not options["by_te"]:
        # What is wrong for every scan is refused before an earlier run is replaced.
        signal_model = resolve_model(options["model"])
        numbers = {name: x for name, x in options["fixed"].items() if not isinstance(x, str)}
        fit_settings = FitSettings(options["method"], bounds=options["bounds"], fixed=numbers)
        fit_settings.fixed_values(signal_model, 1, fit_settings.box(signal_model))
    with scheduler(run.cluster):
        pass
    fit_options = {**options, "overwrite": True}
    if options["n_threads"] is None:
        # One also where --jobs -1 takes every core for a scan.
        fit_options["n_threads"] = 1 if run.cluster else max(1, default_threads() // run.jobs)
    cases = []
    for scan in scans:
        # Read before the run begins, which removes records of other options.
        record = read_sealed(out / _RUN.record.format(name=scan.name))
        earlier_sidecar = "" if record is None else _sidecar(scan, record["model"])
        files = {role: paths[scan.name] for role, paths in patterns.items()}
        # Workers may be on other machines.
        images_of_scan = tuple(path.absolute() for path in scan.images)
        scan = replace(scan, images=images_of_scan, root=scan.root.absolute())
        cases.append((scan, files, earlier_sidecar))
    settings = {name: x for name, x in options.items() if name not in ("n_threads", "overwrite")}
    _RUN.run(
        cases,
        settings,
        run,
        names=lambda case: {key: getattr(case[0], key) for key in _NAMES},
        work=partial(fit_one, out=out.resolve(), options=fit_options),
        inputs=lambda case: {"version": _VERSION, "sources": _sources(case[0], case[1], te)},
        is_whole=lambda case, record: (out / _sidecar(case[0], record["model"])).is_file(),
        say=lambda records: _result_lines(context, out, list(records.values()), len(scans)),
    )
    describe_dataset(out, _TEXTS["title"], "derivative", _TEXTS["readme"], ignored=_IGNORED)
    describe_table_of_fits(out / _TABLE, _TEXTS["table"])


def fit_one(
    case: _ScanFiles, _folder: Path, *, out: Path, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Fit one of many scans, and give what is kept of it: what its sidecar says of the fit."""
    scan, files, earlier_sidecar = case
    for role, file in files.items():
        if file is None:
            pattern = f"--{role} {options[role]}"
            raise ValueError(_TEXTS("no_match", pattern=pattern, name=f"{scan.name}_{role}"))
        options = {**options, role: str(file)}
    # Before the fit, during which the files could change.
    te = options["te"]
    sources = _sources(scan, files, te)
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        manifest = scan.read(te[0] if te else None)
        # What a fit warns of is in its sidecar.
        warnings.simplefilter("ignore")
        model, path = fit_scan(manifest.images, manifest.protocol, out / scan.folder, options)
    if earlier_sidecar and out / earlier_sidecar != path:
        # Maps of another model, of an earlier run.
        stem = glob.escape(str(out / earlier_sidecar).removesuffix("dwimap.json"))
        for ending in ("param-*_dwimap.nii.gz", "quicklook.html", "quicklook.png", "dwimap.json"):
            for maps in glob.glob(stem + ending):
                Path(maps).unlink(missing_ok=True)
    description = json.loads(path.read_text(encoding="utf-8"))
    voxels = description["Status"]["Voxels"]
    n_voxels = sum(voxels.values())
    notes = [str(warning.message) for warning in caught]
    notes += verdict.prose(verdict.fit_sentences(description), description)
    free = {name: x for name, x in description["Parameters"].items() if "Fixed" not in x}
    medians = {name: entry.get("BelievedMedian") for name, entry in free.items()}
    record = {
        "version": _VERSION,
        **{key: getattr(scan, key) for key in _NAMES},
        "synthetic": False,
        "model": model,
        "threshold": description["Settings"].get("Threshold"),
        "sidecar": _sidecar(scan, model),
        "voxels": n_voxels,
        "fitted": n_voxels - voxels["not fitted"],
        "in_doubt": {name: x for name, x in description["Doubt"]["Share"].items() if name in free},
        "units": {name: short_unit(entry["Units"]) for name, entry in free.items()},
        "medians": {name: median for name, median in medians.items() if median is not None},
        "air": description["Air"]["Share"],
        "noise": {"Choice": description["Settings"].get("Choice"), **description.get("Noise", {})},
        "thumbnails": thumbnails(path) if options["quicklook"] else {},
        "notes": list(dict.fromkeys(notes)),
        "remedies": verdict.remedies(description),
        "inputs": {
            "images": [str(path) for path in scan.images],
            "mask": options["mask"],
            "sigma": None if options["sigma"] is None else str(options["sigma"]),
        },
        "sources": sources,
        "seconds": time.perf_counter() - start,
    }
    return _RUN.keep(out, scan.name, record)


def _sidecar(scan: DiffusionScan, model: str) -> str:
    """Make the path of a fit's sidecar in the output folder, trusting no path in its files."""
    name = derivative_name(common_stem(scan.images), "dwimap.json", model=model)
    return str(scan.folder / name)


def fit_scan(
    images: Sequence[Path],
    protocol: Protocol,
    out: Path,
    options: Mapping[str, Any],
    *,
    progress: bool = False,
) -> tuple[str, Path]:
    """Fit a scan, by default the richest model; give the model's name and the maps' sidecar."""
    options = dict(options)
    model, by_te, _ = (options.pop(name) for name in ("model", "by_te", "te"))
    # Before anything is announced.
    Series.open(list(images)).check_count(protocol)
    # Protocols are the same after rounding by 0.
    rounded = protocol.rounded(options["b_tolerance"] or 0)
    fitted = rounded.take(kept_measurements(rounded, options["b_max"], options["leave_out_b"]))
    name, reason = (model, "") if model else suggest_model(fitted)
    signal_model = resolve_model(name).by_echo_time(fitted) if by_te else resolve_model(name)
    name = signal_model.name
    if progress:
        for line in contrast_lines(fitted):
            say(f"using protocol: {line}")
        if reason:
            say(f"using model {name}: {reason} (choose another by --model)")
    fit_image(list(images), protocol, signal_model, out=out, progress=progress, **options)
    return name, out / derivative_name(common_stem(images), "dwimap.json", model=name)


def print_fit(context: typer.Context, out: Path, sidecar: Path) -> None:
    """Print the outcome of a fit, from the sidecar of its maps."""
    description = json.loads(sidecar.read_text(encoding="utf-8"))
    counts = {code: n for code, n in description["Status"]["Voxels"].items() if n}
    n_voxels, n_unfitted = sum(counts.values()), counts.pop("not fitted", 0)
    codes = ", ".join(f"{n} {code}" for code, n in counts.items())
    share = percent((n_voxels - n_unfitted) / max(n_voxels, 1))
    unfitted = f"; {n_unfitted} not fitted" if n_unfitted else ""
    typer.echo(f"{counted(n_voxels, 'voxel')}, {share} fitted: {codes}{unfitted}")
    typer.echo(f"region: {description['Settings']['Region']}")
    noise = verdict.noise_lines(description["Settings"] | description.get("Noise", {}))
    lines = [f"{name}: {text}" for name, text in noise]
    medians = [
        f"{name} {verdict.believed_median(entry, unit=short_unit(entry['Units']))}, "
        f"{percent(description['Doubt']['Share'][name])} in doubt"
        for name, entry in description["Parameters"].items()
        if "Fixed" not in entry
    ]
    lines.append(_TEXTS("medians", medians="; ".join(medians)))
    lines += [*value_lines(description), verdict.precision_sentence(description)]
    # Warnings were printed when they arose.
    warned = description.get("Warnings", [])
    lines += [text for text in verdict.fit_sentences(description) if text not in warned]
    if line := refit_line(context, verdict.remedies(description), sidecar):
        lines.append(f"to refit: {line}")
    typer.echo("\n".join(filter(None, [*lines, *file_lines(description, out)])))


def refit_line(
    context: typer.Context, remedies: Mapping[str, Any], sidecar: Path, **inputs: Any
) -> str:
    """
    Write the command that fits a scan again as advised, into a folder beside that of its maps.

    An empty text without advice, or where the scan was refitted. `inputs` take the place of those
    of the command that runs.
    """
    changes = {"cluster": None, "jobs": 1, "overwrite": False, **inputs, **remedies}
    changes["out"] = sidecar.parent.with_name(f"{sidecar.parent.name}_refit")
    if not remedies or _refits(sidecar, "dwimap.json"):
        return ""
    line = ["dmrifit", str(context.info_name)]
    for parameter in context.command.params:
        value = changes.get(str(parameter.name), context.params[str(parameter.name)])
        if value is None or value == parameter.default or value == []:
            continue
        values = value if isinstance(value, list | tuple) else [value]
        if parameter.param_type_name == "argument":
            line += map(str, values)
        elif isinstance(value, bool):
            line.append((parameter.opts if value else parameter.secondary_opts)[0])
        else:
            for item in values:
                text = f"{item:.15g}" if isinstance(item, float) else str(item)
                line += [parameter.opts[0], text]
    return shlex.join(line)


def _refits(sidecar: Path, ending: str) -> list[Path]:
    """List the files of a scan in the folder of refits, which other scans may share."""
    name = re.sub("_model-[^_]+", "", sidecar.name).replace("dwimap.json", ending)
    folder = sidecar.parent.with_name(f"{sidecar.parent.name}_refit")
    paths = sorted(folder.glob(f"*_{ending}"))
    return [path for path in paths if re.sub("_model-[^_]+", "", path.name) == name]


def _line(record: Mapping[str, Any]) -> str:
    """Tell of one scan in a line."""
    share = record["fitted"] / max(record["voxels"], 1)
    text = f"{record['name']}: {record['model']}, {percent(share)} of "
    return f"{text}{counted(record['voxels'], 'voxel')} fitted, {record['seconds']:.0f} s"


def _sources(
    scan: DiffusionScan, files: Mapping[str, Path | None], te: Sequence[str] | None
) -> list[list[Any]]:
    """Describe the inputs of a fit so that a change of them is seen without reading them."""
    paths = [*scan.images, *scan.sidecars(), *map(Path, te or []), *filter(None, files.values())]
    stats = [(path, path.stat()) for path in paths if path.is_file()]
    return [[str(path.absolute()), stat.st_size, stat.st_mtime_ns] for path, stat in stats]


def _row(_folder: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Give the row of a scan in the table of fits, which dmrifit roi reads."""
    return {
        **{key: record[key] for key in _NAMES},
        "maps": record["sidecar"],
        **{key: record[key] for key in ("model", "voxels", "fitted")},
        "seconds": round(record["seconds"], 1),
        "air": record["air"],
        **{f"noise_{key}".lower(): record["noise"].get(key) for key in _NOISE},
        **{f"believed_median_{name}": record["medians"].get(name) for name in record["in_doubt"]},
        **{f"in_doubt_{name}": share for name, share in record["in_doubt"].items()},
        "notes": " ".join(record["notes"]),
    }


def _page(out: Path, records: Mapping[str, Mapping[str, Any]], _lesions: Any) -> RunPage:
    """Make the page of all scans: medians of believed voxels and shares in doubt by scan."""
    units = {name: unit for record in records.values() for name, unit in record["units"].items()}
    lines = []
    doubts = [record["in_doubt"] for record in records.values()]
    names = sorted(units, key=lambda name: sum(doubt.get(name, 1.0) for doubt in doubts))
    outliers = _outliers([*records.values()])
    for record, (distance, words) in zip(records.values(), outliers, strict=True):
        page = record["sidecar"].replace("dwimap.json", "quicklook.html")
        cells: dict[str, Any] = {"": "", "scan": record["name"]}
        if record["thumbnails"] and (out / page).is_file():
            # The same parameter of all scans where their models have it.
            name, png = next(filter(None, map(record["thumbnails"].get, names)))
            picture = Picture(base64.b64decode(png), f"A slice of {name}", name, width=_THUMBNAIL)
            cells = {"": picture, "scan": Link(page, record["name"])}
        cells |= {"differs from the others": words, **{k: record[k] for k in ("model", "voxels")}}
        cells["fitted"] = percent(record["fitted"] / max(record["voxels"], 1))
        cells["air"] = percent(record["air"])
        cells["noise"] = record["noise"].get("Description", "unknown")
        cells["SNR"] = significant(record["noise"].get("SNR", np.nan))
        for name, unit in units.items():
            heading = f"{name}, {unit}" if unit else name
            cells[heading] = cells[f"{name} in doubt"] = ""
            # Not a parameter of each model.
            if name in record["in_doubt"]:
                doubt = record["in_doubt"][name]
                cells[heading] = significant(record["medians"].get(name, np.nan))
                if doubt > verdict.MOST_DOUBTED and name in record["medians"]:
                    cells[heading] = Note(f"{cells[heading]} in {percent(1 - doubt)} of voxels")
                cells[f"{name} in doubt"] = percent(doubt)
        texts = [f"{name}: {text}" for name, text in verdict.noise_lines(record["noise"])]
        notes = Fold(counted(len(record["notes"]), "note"), *texts, *record["notes"])
        options = record["remedies"].items()
        refit: Any = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in options)
        if refitted := _refits(out / record["sidecar"], "quicklook.html"):
            refit = Link(refitted[0].relative_to(out).as_posix(), refit or "refitted")
        order = -distance, -max(record["in_doubt"].values(), default=0.0)
        cells |= {"refit with": refit, "notes": notes if notes else "none"}
        lines.append((order, cells))
    # Sentences that no scan needs would push the notes out of sight.
    unused = {key for key in _SENTENCES if not any(cells[key] for _, cells in lines)}
    header = [key for key in lines[0][1] if key not in unused]
    rows = [[cells[key] for key in header] for _, cells in sorted(lines, key=lambda x: x[0])]
    numbers = range(header.index("voxels"), header.index("notes"))
    sentences = [header.index(key) for key in _SENTENCES if key in header]
    table = Table(rows, header, numbers=numbers, words=sentences)
    return RunPage("Fits", [Note(_TEXTS["columns"]), *_differences(records.values()), table], [])


def _differences(records: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Say which models, and first steps of IVIM, make values of scans hard to compare."""
    thresholds_of: dict[str, list[float | None]] = {}
    for record in records:
        thresholds_of.setdefault(record["model"], []).append(record["threshold"])
    if len(thresholds_of) > 1:
        yield _TEXTS("models_differ", models=", ".join(sorted(thresholds_of)))
    yield from filter(None, map(steps_text, thresholds_of.values()))


def _figures(record: Mapping[str, Any]) -> dict[str, float]:
    """Give the figures by which a scan may differ from the others."""
    figures = {"fitted": record["fitted"] / max(record["voxels"], 1), "air": record["air"]}
    figures |= {f"{name} in doubt": share for name, share in record["in_doubt"].items()}
    for name, median in record["medians"].items():
        # Amplitudes are in the units of each scan.
        if record["units"][name] != AMPLITUDE_UNIT:
            figures[f"median of {name}"] = median
    return figures


def _outliers(records: Sequence[Mapping[str, Any]]) -> list[tuple[float, str]]:
    """Say of each scan what differs from the others, and by how much; 0 and nothing of most."""
    models = [record["model"] for record in records]
    outliers = []
    unusual = _unusual([*map(_figures, records)], models)
    for model, (distance, measure) in zip(models, unusual, strict=True):
        side = f"{'above' if distance > 0 else 'below'} the median of {model} scans"
        words = f"{measure}: {side}, {abs(distance):.1f} times the usual distance from it"
        outliers.append((abs(distance), words) if abs(distance) > _UNUSUAL else (0.0, ""))
    return outliers


def _unusual(figures: Sequence[Mapping[str, float]], models: list[str]) -> list[tuple[float, str]]:
    """Find how far each scan is from the median of its model, in robust SDs, by which figure."""
    import pandas as pd

    table = pd.DataFrame(figures)
    groups = table.groupby(models)
    apart = table - groups.transform("median")
    # The scale that makes the median distance of normal values their SD.
    usual = 1.4826 * apart.abs().groupby(models).transform("median")
    least = table.abs().max().where([name.startswith("median") for name in table], 1.0)
    distances = (apart / usual.clip(lower=_LEAST_SPREAD * least, axis=1)).fillna(0.0)
    distances[groups["fitted"].transform("size") < _FEWEST_COMPARED] = 0.0
    return [(distances.loc[i, name], name) for i, name in distances.abs().idxmax(axis=1).items()]


def _result_lines(
    context: typer.Context, out: Path, records: Sequence[Mapping[str, Any]], n_scans: int
) -> Iterator[str]:
    """Say how many scans were fitted, what their maps show, and where all of it is."""
    failures = f", {n_scans - len(records)} failed ({FAILED})" if len(records) < n_scans else ""
    yield f"{counted(n_scans, 'scan')}: {len(records)} fitted{failures}"
    for sentence in dict.fromkeys(text for record in records for text in record["notes"]):
        names = [record["name"] for record in records if sentence in record["notes"]]
        yield f"{first_few(names)}: {sentence}"
    for record in records:
        inputs = record["inputs"]
        # Scans in several images are fitted together as a folder or a table alone.
        if len(inputs["images"]) == 1:
            sidecar = out / record["sidecar"]
            if line := refit_line(context, record["remedies"], sidecar, **inputs):
                yield f"{record['name']}: to refit: {line}"
    for record, (_, words) in zip(records, _outliers(records), strict=True):
        if words:
            yield f"{record['name']} differs from the others: {words}"
    yield from _differences(records)
    yield f"table: {out / _TABLE}"
    if can_draw():
        yield f"page: {out / _PAGE}"


_RUN = CaseRun(
    record=".fits/{name}.json",
    table=_TABLE,
    columns=_COLUMNS,
    row=_row,
    page=_page,
    digits=3,
    errors=(ValueError, OSError, ImportError, MemoryError),
    line=_line,
    noun="scan",
)
