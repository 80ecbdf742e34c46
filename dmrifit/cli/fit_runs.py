"""Fits of many scans: a BIDS folder, a glob or a list; a row for each, and a page of all."""

from __future__ import annotations

import glob
import json
import shlex
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dmrifit._utils.counts import counted, first_few
from dmrifit.cli.case_runs import (
    FAILED,
    CaseRun,
    RunOptions,
    can_draw,
    failed_cases,
    run_page,
)
from dmrifit.cli.options import is_pattern, named_images
from dmrifit.cli.workers import scheduler

if TYPE_CHECKING:
    from dmrifit.cohort.bids_folder import DiffusionScan
    from dmrifit.engine.protocol import Protocol

_TABLE = "fits.tsv"
_PAGE = "index.html"
_MOST_PICTURES = 24  # on one page, of some 100 kB each
#: What a validator of BIDS shall not read: tables, pages, and maps, whose names (model-, param-,
#: dwimap) are of the proposal for diffusion derivatives, which the standard has not taken.
_IGNORED = f"{_TABLE}\n{FAILED}\n{_PAGE}\nsettings.json\n*_quicklook.*\n*_dwimap.*\n"

_README = """Maps of signal models, fitted by dmrifit to diffusion images; a folder for each scan.

index.html shows all scans, fits.tsv lists them. The names of maps (model-, param-, dwimap) follow
the proposal for diffusion derivatives (BEP 16), which the standard has not taken yet; .bidsignore
keeps validators from reading them.
"""


@dataclass(frozen=True)
class FitTask:
    """
    One scan to fit, with all that a worker on another machine needs; paths are absolute.

    `problem` is why it cannot be fitted, `earlier_sidecar` that of maps which are replaced.
    """

    scan: DiffusionScan
    out: Path
    model: str | None
    mask: str | None
    te: str | None
    b_tolerance: float | None
    options: dict[str, Any]
    sources: list[list[Any]]
    problem: str
    earlier_sidecar: str


def is_many(images: Sequence[Path]) -> bool:
    """Tell whether the images of a command are more than one scan."""
    from dmrifit.cohort.bids_folder import is_bids_folder

    if len(images) > 1:
        return True
    return is_pattern(images[0]) or is_bids_folder(images[0])


def named_scans(images: Sequence[Path]) -> tuple[list[DiffusionScan], Path]:
    """Find the scans of a BIDS folder, or of a list or glob; and what patterns are relative to."""
    from dmrifit.cohort.bids_folder import find_scans, is_bids_folder, plain_scan

    if len(images) == 1 and is_bids_folder(images[0]):
        scans = find_scans(images[0])
        _check_folders(scans)
        return scans, images[0]
    scans = [plain_scan(path) for path in named_images(images)]
    scans = _named_by_folder(scans)
    _check_folders(scans)
    return scans, Path()


def _check_folders(scans: Sequence[DiffusionScan]) -> None:
    """Refuse scans whose maps would lie in one folder, on some disk or other."""
    from dmrifit.io.atomic_files import check_name, share_a_name

    names = [scan.name for scan in scans]
    for name in names:
        check_name(name)
    repeated = {
        name for name, is_shared in zip(names, share_a_name(names), strict=True) if is_shared
    }
    if repeated:
        raise ValueError(
            f"more than one scan is called {first_few(sorted(repeated))}, in upper or lower case, "
            "so that their maps would lie in one folder; name them differently, or fit them apart"
        )


def _named_by_folder(scans: list[DiffusionScan]) -> list[DiffusionScan]:
    """Name scans whose images have one name by their folders, where these tell them apart."""
    folders = {scan.images[0].absolute().parent.name for scan in scans}
    if len({scan.name for scan in scans}) == len(scans) or len(folders) < len(scans):
        return scans
    renamed = []
    for scan in scans:
        name = scan.images[0].absolute().parent.name
        renamed.append(replace(scan, name=name, folder=Path(name)))
    return renamed


def fit_many(
    context: typer.Context,
    images: Sequence[Path],
    out: Path,
    *,
    model: str | None,
    mask: str | None,
    te: list[str] | None,
    b_tolerance: float | None,
    options: Mapping[str, Any],
    jobs: int,
    cluster: str | None,
    overwrite: bool,
) -> None:
    """Fit every scan that was not finished before; write the table, the page and the summary."""
    from dmrifit._utils.text_files import read_sealed
    from dmrifit._utils.threads import check_jobs, default_threads
    from dmrifit.io.atomic_files import write_text
    from dmrifit.io.bids_derivatives import describe_dataset

    check_jobs(jobs, "--jobs")
    scans, root = named_scans(images)
    if te and len(te) > 1:
        raise ValueError("--te takes one value for many scans; echo times of each are sidecars")
    masks = _matched("--mask", mask, scans, root, words=("auto",))
    sigma = options["sigma"]
    levels = _matched("--sigma", sigma, scans, root, words=("estimate",))
    settings = _settings(options) | {"model": model, "mask": mask, "te": te}
    settings |= {"b_tolerance": b_tolerance, "sigma": None if sigma is None else str(sigma)}
    _check_folder(images, out)
    _check_options(model, options, cluster)
    out.mkdir(parents=True, exist_ok=True)
    threads = options["n_threads"]
    if threads is None:
        n_workers = default_threads() if jobs < 0 else jobs
        threads = 1 if cluster else max(1, default_threads() // n_workers)
    tasks = []
    for scan in scans:
        name = scan.name
        problem = _missing("--mask", mask, masks[name])
        problem = problem or _missing("--sigma", sigma, levels[name])
        inputs = [*scan.images, *scan.sidecars(), masks[name], levels[name], *(te or [])]
        # Read before the run begins, which removes records of other options.
        record = read_sealed(out / _RUN.record.format(name=name))
        tasks.append(
            FitTask(
                _absolute(scan),
                out.resolve(),
                model,
                masks[name],
                te[0] if te else None,
                b_tolerance,
                {**options, "sigma": levels[name], "n_threads": threads, "overwrite": True},
                [_source(Path(path)) for path in inputs if _is_file(path)],
                problem,
                "" if record is None else _sidecar(scan, record["model"]),
            )
        )
    _RUN.run(
        tasks,
        out,
        settings,
        RunOptions(jobs, cluster, overwrite=overwrite),
        names=lambda task: {
            "name": task.scan.name,
            "subject": task.scan.subject,
            "visit": task.scan.session or "1",
        },
        work=fit_one,
        is_current=_is_current,
        say=lambda records: _result_lines(context, out, list(records.values()), len(tasks)),
    )
    describe_dataset(out, "Maps of signal models, fitted by dmrifit", "derivative", _README)
    if not (out / ".bidsignore").exists():
        write_text(out / ".bidsignore", _IGNORED)


def _is_current(task: FitTask, record: Mapping[str, Any]) -> bool:
    """Tell whether a scan was fitted as its files are now."""
    is_fitted = not task.problem and record["sources"] == task.sources
    return is_fitted and (task.out / task.earlier_sidecar).is_file()


def fit_one(task: FitTask, _folder: Path) -> dict[str, Any]:
    """Fit one scan, and give what is kept of it."""
    from dmrifit._utils.text_files import sealed
    from dmrifit.io.atomic_files import write_text

    if task.problem:
        raise ValueError(task.problem)
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        record = _fit(task)
    # What a fit warns of is in its sidecar.
    texts = [str(warning.message) for warning in caught]
    record["notes"] = list(dict.fromkeys([*texts, *record["notes"]]))
    record["seconds"] = time.perf_counter() - start
    if record["sidecar"] != task.earlier_sidecar:
        _remove_maps(task.out / task.earlier_sidecar)
    path = task.out / _RUN.record.format(name=task.scan.name)
    write_text(path, json.dumps(sealed(record), indent=2) + "\n")
    return record


def _fit(task: FitTask) -> dict[str, Any]:
    """Fit a scan, and read what its sidecar says of the fit."""
    from dmrifit.imaging.scan_info import contrast_lines
    from dmrifit.report.verdict import fit_sentences, prose, remedies

    manifest = task.scan.read(task.te)
    protocol, images = manifest.protocol, list(manifest.images)
    if task.b_tolerance is not None:
        protocol = protocol.rounded(task.b_tolerance)
    fitted = fitted_protocol(protocol, task.options)
    name, reason = chosen_model(fitted, task.model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = task.out / task.scan.folder
        sidecar = fit_maps(images, protocol, name, task.mask, folder, task.options)
    description = json.loads(sidecar.read_text(encoding="utf-8"))
    voxels = description["Status"]["Voxels"]
    n_voxels = sum(voxels.values())
    return {
        "name": task.scan.name,
        "subject": task.scan.subject,
        "session": task.scan.session,
        "synthetic": False,
        "model": name,
        "reason": reason,
        "protocol": "; ".join(contrast_lines(fitted)),
        "sidecar": _sidecar(task.scan, name),
        "voxels": n_voxels,
        "fitted": n_voxels - voxels["not fitted"],
        "not_fitted": description.get("NotFitted", {}).get("Reasons", {}),
        "in_doubt": {
            name: share
            for name, share in description["Doubt"]["Share"].items()
            if "Fixed" not in description["Parameters"][name]
        },
        "air": description["Air"]["Share"],
        "notes": prose(fit_sentences(description), description),
        "remedies": remedies(description),
        "inputs": {
            "images": [str(path) for path in task.scan.images],
            "mask": task.mask,
            "sigma": task.options["sigma"] and str(task.options["sigma"]),
        },
        "sources": task.sources,
    }


def _sidecar(scan: DiffusionScan, model: str) -> str:
    """Name the sidecar of a fit, in the folder of all; no path is taken from a file there."""
    from dmrifit.io.bids_derivatives import common_stem, derivative_name

    name = derivative_name(common_stem(scan.images), "dwimap.json", model=model)
    return str(scan.folder / name)


def fitted_protocol(protocol: Protocol, options: Mapping[str, Any]) -> Protocol:
    """Leave out the measurements that options of `fit_image` leave out."""
    from dmrifit.imaging.fit_predict import kept_measurements

    return protocol.take(kept_measurements(protocol, options["b_max"], options["leave_out_b"]))


def chosen_model(protocol: Protocol, name: str | None) -> tuple[str, str]:
    """Give the name of a model and why it is fitted: the one that is asked for, or the richest."""
    from dmrifit.engine.design.identifiability import suggest_model
    from dmrifit.engine.models import resolve_model

    if name is None:
        return suggest_model(protocol)
    return resolve_model(name).name, "as asked"


def fit_maps(
    images: Sequence[Path],
    protocol: Protocol,
    model: str,
    mask: str | Path | None,
    out: Path,
    options: Mapping[str, Any],
    *,
    progress: bool = False,
) -> Path:
    """Fit one scan, also one of many, into a folder; return the sidecar of its maps."""
    from dmrifit.imaging.fit_predict import fit_image
    from dmrifit.io.bids_derivatives import common_stem, derivative_name

    images = list(images)
    fit_image(images, protocol, model, mask=mask, out=out, progress=progress, **options)
    return out / derivative_name(common_stem(images), "dwimap.json", model=model)


def refit_line(
    context: typer.Context, remedies: Mapping[str, Any], out: Path, **inputs: Any
) -> str:
    """
    Write the command that fits a scan again as advised, into a folder beside the first one.

    An empty text without advice. `inputs` take the place of those of the command that runs.
    """
    if not remedies:
        return ""
    changes = {"cluster": None, "jobs": 1, "overwrite": False, **inputs, **remedies}
    changes["out"] = out.with_name(f"{out.name}_refit")
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
                text = f"{item:g}" if isinstance(item, float) else str(item)
                line += [parameter.opts[0], text]
    return shlex.join(line)


def _line(record: Mapping[str, Any]) -> str:
    """Tell of one scan in a line."""
    share = record["fitted"] / max(record["voxels"], 1)
    n_voxels = counted(record["voxels"], "voxel")
    text = f"{record['name']}: {record['model']}, {share:.1%} of {n_voxels} fitted"
    reasons = ", ".join(f"{n} {reason}" for reason, n in record["not_fitted"].items())
    if reasons:
        text += f" ({reasons})"
    return f"{text}, {record['seconds']:.0f} s"


def _matched(
    option: str, value: Any, scans: Sequence[DiffusionScan], root: Path, *, words: Sequence[str]
) -> dict[str, Any]:
    """Find the file of each scan where an option is a pattern; words and numbers are for all."""
    from dmrifit.cohort.bids_folder import match_files

    if value is None or isinstance(value, float) or value in words:
        return {scan.name: value for scan in scans}
    files = match_files(option, str(value), scans, root)
    return {name: None if path is None else str(path.resolve()) for name, path in files.items()}


def _missing(option: str, value: Any, match: Any) -> str:
    """Say that a pattern has no file for a scan; an empty text if it has one."""
    if value is None or match is not None:
        return ""
    return f"{option} {value} matches no file of this scan"


def _is_file(value: Any) -> bool:
    return isinstance(value, str | Path) and Path(value).is_file()


def _source(path: Path) -> list[Any]:
    """Describe an input so that a change of it is seen without reading it."""
    status = path.stat()
    return [str(path.absolute()), status.st_size, status.st_mtime_ns]


def _check_folder(images: Sequence[Path], out: Path) -> None:
    """Refuse to write maps among raw data."""
    if out.is_dir() and any(out.samefile(image) for image in images if image.is_dir()):
        raise ValueError(
            f"--out {out} is the BIDS folder itself, which holds raw data; choose another one, "
            f"such as {out / 'derivatives' / 'dmrifit'}"
        )


def _check_options(model: str | None, options: Mapping[str, Any], cluster: str | None) -> None:
    """Refuse a model, bounds, fixed values or a scheduler that are wrong for every scan."""
    from dmrifit.engine.fit_settings import FitSettings
    from dmrifit.engine.models import resolve_model

    if model is not None:
        signal_model = resolve_model(model)
        numbers = {
            name: value for name, value in options["fixed"].items() if not isinstance(value, str)
        }
        settings = FitSettings(method=options["method"], bounds=options["bounds"], fixed=numbers)
        settings.fixed_values(signal_model, 1, settings.box(signal_model))
    with scheduler(cluster):
        pass


def _remove_maps(sidecar: Path) -> None:
    """Remove the maps that an earlier run fitted to a scan with another model."""
    if not sidecar.is_file():
        return
    stem = sidecar.name.removesuffix("dwimap.json")
    endings = ("param-*_dwimap.nii.gz", "quicklook.html", "quicklook.png")
    for ending in endings:
        for path in sidecar.parent.glob(glob.escape(stem) + ending):
            path.unlink(missing_ok=True)
    sidecar.unlink(missing_ok=True)


def _absolute(scan: DiffusionScan) -> DiffusionScan:
    """Give a scan with absolute paths, for workers that run elsewhere."""
    return replace(
        scan, images=tuple(path.absolute() for path in scan.images), root=scan.root.absolute()
    )


def _settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """Give the options that change maps, in types that JSON returns as they were."""
    irrelevant = ("n_threads", "progress", "overwrite", "sigma")
    kept = {name: value for name, value in options.items() if name not in irrelevant}
    return json.loads(json.dumps(kept))


def _row(_folder: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Give the row of a scan in the table of fits, which dmrifit roi reads."""
    return {
        "name": record["name"],
        "subject": record["subject"],
        "visit": record["session"] or "1",
        "maps": record["sidecar"],
        **{key: record[key] for key in ("model", "voxels", "fitted")},
        "seconds": round(record["seconds"], 1),
        "air": record["air"],
        **{f"in_doubt_{name}": share for name, share in record["in_doubt"].items()},
        "notes": " ".join(record["notes"]),
    }


def _page(out: Path, records: Mapping[str, Mapping[str, Any]], _lesions: Any) -> str:
    """Make the page of all scans: a row for each with a link to its own page, and pictures."""
    from dmrifit.report.page import NOTICE, Link, Picture, Table
    from dmrifit.report.verdict import percent

    lines: list[list[Any]] = []
    pictures: list[tuple[str, list[Any]]] = []
    for record in records.values():
        page = record["sidecar"].replace("dwimap.json", "quicklook.html")
        title = record["name"]
        if (out / page).is_file():
            title = Link(page, record["name"])
        picture = out / page.replace(".html", ".png")
        if picture.is_file() and len(pictures) < _MOST_PICTURES:
            alt = f"Maps of {record['name']} in three planes"
            pictures.append((record["name"], [Picture(picture.read_bytes(), alt, width=900)]))
        share = f"{record['fitted'] / max(record['voxels'], 1):.1%}"
        in_doubt = "\n".join(f"{name} {percent(x)}" for name, x in record["in_doubt"].items())
        notes = "\n".join(record["notes"]) or "none"
        cells = [title, record["model"], record["voxels"], share, in_doubt]
        lines.append([*cells, percent(record["air"]), notes])
    header = ("scan", "model", "voxels", "fitted", "in doubt", "air", "notes")
    note = ""
    if len(records) > len(pictures) == _MOST_PICTURES:
        note = f"Pictures of the first {_MOST_PICTURES} scans; the others are on their own pages."
    return run_page(
        "Fits",
        [Table(lines, header, numbers=(2, 3, 5), words=(4, 6)), *failed_cases(out)],
        records.values(),
        pictures,
        unit="scan",
        notice=NOTICE,
        note=note,
    )


def _result_lines(
    context: typer.Context, out: Path, records: Sequence[Mapping[str, Any]], n_scans: int
) -> Iterator[str]:
    """Say how many scans were fitted, what their maps show, and where all of it is."""
    yield f"{counted(n_scans, 'scan')}: {len(records)} fitted"
    for record in records:
        for sentence in record["notes"]:
            yield f"{record['name']}: {sentence}"
        inputs = record["inputs"]
        # Scans in several images are fitted together as a folder or a table alone.
        if len(inputs["images"]) == 1:
            maps = (out / record["sidecar"]).parent
            if line := refit_line(context, record["remedies"], maps, **inputs):
                yield f"{record['name']}: to refit: {line}"
    models = sorted({record["model"] for record in records})
    if len(models) > 1:
        yield f"models differ between scans ({', '.join(models)}): --model names one for all"
    yield f"table: {out / _TABLE}"
    if can_draw():
        yield f"page: {out / _PAGE}"


_RUN = CaseRun(
    record=".fits/{name}.json",
    table=_TABLE,
    row=_row,
    page=_page,
    digits=3,
    errors=(ValueError, OSError, ImportError, MemoryError),
    line=_line,
    noun="scan",
)
