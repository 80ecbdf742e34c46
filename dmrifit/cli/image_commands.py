"""Commands on images: import, info, table, preprocess, roi, predict, view, dicom-seg."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from dmrifit._optional import import_optional
from dmrifit._utils.counts import counted, size_text
from dmrifit._utils.text_files import read_object
from dmrifit.cli.case_runs import can_draw
from dmrifit.cli.console import check_output
from dmrifit.cli.options import ProtocolFiles, number_or_path, say, scan_of
from dmrifit.io.bids_derivatives import common_stem, derivative_name, file_lines


def info(image: Path, /, files: ProtocolFiles, mask: str | None = None) -> None:
    """
    Describe a scan (grid, protocol, noise, models that it supports, errors) or a model file.

    For each model the standard deviation is the Cramér–Rao bound in typical tissue at the SNR of
    the scan, the least of an unbiased fit of a voxel; bounds of parameters and fits in two steps
    (segmented) make the spread smaller, often by half where it is large, and bias the values. The
    image is read slab by slab, several times. Of a model file (*.dmrifit) the lines say what it
    predicts, what it was trained on, and what its intervals are worth.

    Options:
    image IMAGE: 4-D NIfTI image, a table of the images of one scan, or a model file.
    mask FILE|auto|none: Voxels to look at; by default (none) all with signal; auto finds the body
        or head.

    Example: dmrifit info sub-01_dwi.nii.gz
    """
    from dmrifit.imaging.scan_info import scan_info
    from dmrifit.report.verdict import noise_lines

    if image.suffix == ".dmrifit":
        from dmrifit.model_files.model_file import load_model
        from dmrifit.predict.conformal import predictor_lines

        if mask or any(vars(files).values()):
            raise ValueError(f"{image} is a model file; leave out the options of a scan")
        typer.echo("\n".join(predictor_lines(load_model(image), image)))
        return
    problem = ""
    images, protocol = [image], None
    try:
        images, protocol = scan_of(image, files, needs_te=True)
    except ValueError as error:
        problem = str(error)
    described = scan_info(images, protocol, mask=mask)
    edges = " × ".join(f"{edge:.4g}" for edge in described.voxel)
    volumes = counted(described.n_volumes, "volume")
    snr = described.snr if described.snr > 0 else None
    rows = [
        ("grid", f"{size_text(described.grid)} voxels of {edges} mm, {volumes}"),
        ("axes", f"{described.axes} (position: {described.position})"),
        *[("protocol", line) for line in described.contrasts],
        *noise_lines({"Description": described.noise, "SNR": snr}),
        ("other estimates", described.other_noise),
        *[("model", line) for line in described.models],
    ]
    if protocol is not None and len(protocol) != described.n_volumes:
        problem = (
            f"{volumes}, but {counted(len(protocol), 'b-value')}: they are not of one scan, or "
            "volumes were lost in conversion"
        )
    doubts = [problem, *described.doubts] if problem else described.doubts
    rows += [("looks wrong", doubt) for doubt in doubts or ["nothing that this command looks for"]]
    for title, text in rows:
        if text:
            typer.echo(f"{title}: {text}")


def import_(
    folder: Path, /, out: Path, subject: str | None = None, overwrite: bool = False
) -> None:
    """
    Convert the diffusion series of a DICOM folder to BIDS, by dcm2niix.

    Prints the table of all series with b-values and echo times, and why a series is no diffusion
    series. Names and identifiers of persons are not written. Series that differ in echo time alone
    are one scan for dmrifit fit. All headers are read first; then every series with images is
    converted into a temporary folder, which takes the room of the images.

    Options:
    folder DICOM_FOLDER: Folder of DICOM files, at any depth.
    out: BIDS folder to write; created if missing.
    subject LABEL: Label of the one patient; by default patients are numbered.

    Example: dmrifit import dicom --out bids
    """
    from dmrifit.io.dicom_import import import_dicom

    series = import_dicom(folder, out, subject=subject, overwrite=overwrite)
    typer.echo(series.to_string(index=False))
    typer.echo(f"to fit: {shlex.join(['dmrifit', 'fit', str(out), '--out', f'{out}_maps'])}")


def table(
    folder: Path,
    /,
    mask: str,
    lesion: str | None = None,
    sigma: str | None = None,
    cohort: str | None = None,
) -> None:
    """
    Print a table of participants of a BIDS folder, for dmrifit benchmark and train.

    Paths are relative to the folder in which the command runs: write the table there
    (> participants.tsv). Scans without a mask or b-values are left out and named.

    Options:
    folder BIDS: BIDS folder with sub-*/[ses-*/]dwi.
    mask PATTERN: Masks of the body, a pattern in quotes relative to the folder, such as
        'derivatives/masks/sub-*/**/*_desc-body_mask.nii.gz'.
    lesion PATTERN: Masks of the lesions.
    sigma PATTERN: Maps of the noise.
    cohort: Name of the cohort; by default that of the folder.

    Example: dmrifit table bids --mask 'derivatives/masks/sub-*/*_mask.nii.gz' > participants.tsv
    """
    import pandas as pd

    from dmrifit.cohort.bids_folder import find_scans, is_bids_folder, match_files
    from dmrifit.io.tables import table_text

    if not is_bids_folder(folder):
        raise ValueError(f"{folder} is no BIDS folder: it has no folders sub-*; check its name")
    scans = find_scans(folder)
    files = {
        column: match_files(f"--{column}", pattern, scans, folder)
        for column, pattern in {"mask": mask, "lesion": lesion, "sigma": sigma}.items()
        if pattern is not None
    }
    rows = []
    for scan in scans:
        matched = {column: paths[scan.name] for column, paths in files.items()}
        missing = ".bval file" if matched["mask"] else f"mask of the pattern {mask}"
        if matched["mask"] is None or not all("bval" in file for file in scan.files()):
            say(f"{scan.name} is left out: no {missing} is of it")
            continue
        row: dict[str, str] = {"patient": scan.subject, "cohort": cohort or folder.resolve().name}
        for column in ("image", "bval", "te", "bvec"):
            paths = [file[column] for file in scan.files() if column in file]
            row[column] = ",".join(os.path.relpath(path) for path in paths)
        rows.append(row | {name: os.path.relpath(path) for name, path in matched.items() if path})
    if not rows:
        raise ValueError(f"--mask {mask}: no scan of {folder} has a mask and b-values")
    used = pd.DataFrame(rows).replace("", None).dropna(axis="columns", how="all")
    typer.echo(table_text(used), nl=False)


def preprocess(
    image: Path,
    /,
    *,
    out: Path,
    steps: tuple[str, ...] = ("denoise", "gibbs", "motion"),
    files: ProtocolFiles,
    mask: str | None = None,
    slice_axis: int | None = None,
    overwrite: bool = False,
) -> None:
    """
    Denoise a scan (MPPCA), remove Gibbs ringing, correct motion, and write its noise map.

    Writes the image, its b-values, directions (rotated with the volumes) and echo times, the noise
    map for dmrifit fit --sigma, and a JSON file. The map shows the noise before denoising, because
    denoised magnitudes keep their noise floor.

    A volume of 640,000 voxels takes one core about 1 s in denoise, 2 s in gibbs and 8 s in motion;
    the image is read block by block and volume by volume, and a temporary file in the folder takes
    4 bytes for each value.

    Options:
    out: Folder for the image and the noise map; created if missing.
    steps NAME,…: Steps of denoise, gibbs, motion; always in this order.
    mask FILE|auto|none: Mask of the body, with a margin; by default (none) all nonzero voxels;
        auto finds the body or head, without a margin.
    slice_axis 0..2: Axis across slices, 0 to 2; by default from the header.

    Example: dmrifit preprocess sub-01_dwi.nii.gz --steps denoise,gibbs --out clean
    """
    from dmrifit.imaging.scan_pipeline import preprocess_image
    from dmrifit.report.numerals import significant

    images, protocol = scan_of(image, files, needs_te=True)
    options: dict[str, Any] = {"steps": list(steps), "mask": mask, "slice_axis": slice_axis}
    preprocess_image(images, protocol, out=out, overwrite=overwrite, progress=True, **options)
    sidecar = out / derivative_name(common_stem(images), "dwi.json", desc="preproc")
    described = json.loads(sidecar.read_text(encoding="utf-8"))
    sigma = described["Sigma"]
    cleaned = str(out / described["File"])
    typer.echo(f"noise: median sigma {significant(sigma['Median'])} ({sigma['Method']})")
    if motion := described.get("Motion"):
        shift, angle = max(motion["Shifts"]), max(motion["Rotations"])
        lost = counted(motion["VoxelsOutside"], "voxel")
        typer.echo(
            f"motion: up to {shift:.2g} mm and {angle:.2g} degrees; {lost} lost at the edges"
        )
    typer.echo(f"image: {cleaned}")
    # Where estimates disagree, as was warned of, none is recommended.
    noise = "NUMBER" if "Doubt" in sigma else str(out / sigma["File"])
    inputs = [cleaned, "--sigma", noise, *(["--mask", mask] if mask else [])]
    typer.echo(f"to fit: {shlex.join(['dmrifit', 'fit', *inputs, '--out', f'{out}_maps'])}")


def roi(
    scans: list[Path] | None = None,
    /,
    *,
    out: Path,
    map_: dict[str, Path] | None = None,
    unit: dict[str, str] | None = None,
    labels: list[Path] | None = None,
    names: Path | None = None,
    overwrite: bool = False,
) -> None:
    """
    Summarize the maps of fits in the regions of label images: one table for many scans.

    One row per scan, label and map: n (without voxels that did not converge), median with its 95 %
    interval (none where most voxels are in doubt, too narrow where the noise of neighbors is
    alike, as in resampled maps), interquartile range and quartiles, mean, and the shares of voxels
    at each bound and in doubt (doubtful). All of these include the voxels in doubt, which the
    medians of pages and of fits.tsv leave out. Of ivim in two steps (method segmented), the
    intervals leave out the bias: perfusion that is left at the b-values of the first step raises
    Dt and lowers f, less with a higher threshold (fit --threshold, for regions at least 150).
    Scans of different thresholds (column threshold), which are named, must not be compared.
    Where a table names two visits of a subject, a second table gives the repeatability of the
    medians: within-subject standard deviation and coefficient of variation, and the repeatability
    coefficient with its 95 % interval. Takes a second for a scan.

    Options:
    out: Table to write (.csv).
    scans FOLDER|TABLE…: Folders from dmrifit fit; or one table (.tsv) with the column maps, such
        as fits.tsv, and optionally labels, subject and visit, with paths relative to it; or, for
        maps of other programs, with the columns map (its name), file and unit.
    labels: Label image for all scans, or repeat --labels for each scan, in order; by default
        those named in the table's column labels.

    Example: dmrifit roi maps --labels labels.nii.gz --out roi.csv
    """
    from dmrifit.imaging.regions import (
        doubt_lines,
        read_label_names,
        repeatability,
        repeatability_text,
        summarize_fits,
    )
    from dmrifit.io.atomic_files import FileSet
    from dmrifit.io.tables import save_table

    label_names = read_label_names(names) if names else None
    repeatability_name = f"{out.stem}_repeatability{out.suffix}"
    if not scans and not map_:
        raise ValueError("no maps are named: give folders of dmrifit fit, a table, or --map")
    scans, labels, maps = scans or [], labels or [], map_ or {}
    outputs = [repeatability_name, out.name]
    files_read = [*labels, *scans, *maps.values(), *([names] if names else [])]
    inputs = [path for path in files_read if path.is_file()]
    # The region table is moved to its place last: where it is, both tables are finished.
    with FileSet(out.parent, outputs, overwrite=overwrite, keep=inputs) as files:
        regions = summarize_fits(scans, labels, names=label_names, maps=maps, units=unit or {})
        save_table(regions, files.path(out.name), 7)
        lines = doubt_lines(regions)
        if (regions["doubtful"] > 0).any():
            lines.append("medians include voxels in doubt; pages and fits.tsv leave them out")
        if "visit" in regions and len(set(regions["visit"])) > 1:
            try:
                repeats = repeatability(regions)
            except ValueError as error:
                lines.append(f"repeatability is not computed: {error}")
            else:
                lines.append(repeatability_text(repeats))
                if (repeats["n_subjects"] > 0).any():
                    save_table(repeats, files.path(repeatability_name), 7)
                    lines.append(f"repeatability: {out.parent / repeatability_name}")
    n_scans = counted(len(regions.drop_duplicates(["folder", "scan"])), "scan")
    for line in [f"{n_scans}, {counted(regions['label'].nunique(), 'label')}: {out}", *lines]:
        typer.echo(line)


@dataclass(frozen=True)
class PredictOptions:
    """What is predicted from which measurements."""

    b_tolerance: float | None = None
    average_directions: str | None = None
    mask: str | None = None
    sigma: str | None = None
    signals: bool = False


def predict(
    model: Path,
    image: Path | None = None,
    /,
    *,
    out: Path,
    map_: dict[str, Path] | None = None,
    unit: dict[str, str] | None = None,
    files: ProtocolFiles,
    prediction: PredictOptions,
    quicklook: bool = True,
    overwrite: bool = False,
) -> None:
    """
    Predict the maps of an advanced protocol from an image of a clinical one.

    The measurements that the model needs are selected by their b-values and echo times. A model
    that was trained with intervals writes their ends, which are those of a one-step fit (dmrifit
    fit --method nlls), and how typical each voxel is of training. A model of strategy m2m also
    takes maps that another program has fitted (--map, with --unit where they are not in µm²/ms):
    ADC_fast, from b = 0, 50 and 100 s/mm²; ADC_slow, from b = 100, 400 and 900; F = 1 - S0_slow /
    S0, with S0_slow from the fit of ADC_slow and S0 from one ADC fit to all inputs (F is not f
    of IVIM); and optionally this S0. All are nonlinear least-squares fits: log-linear fits give
    other values, above all of F. Takes seconds for a volume of 100,000 voxels; the image is read
    slab by slab.

    Options:
    b_tolerance S/MM2: How far b-values of the image may be from those of the model; by default 1.
    model MODEL: Model file from dmrifit train.
    image IMAGE: 4-D NIfTI image of magnitudes, or a table of the images of one scan (.tsv with
        the columns image and optionally bval, te, bvec); none with --map.
    average_directions geometric|arithmetic: Average volumes of equal b and TE first.
    mask FILE|auto|none: Mask of the body: voxels to predict, which also set the signal scale; by
        default (none) all nonzero voxels; auto finds the body or head.
    sigma NUMBER|FILE: Standard deviation of the noise, a number or an image; for models of s2s
        trained without intervals (--coverage 0).
    signals: Also write the predicted images.
    quicklook: Write a quick-look page (HTML).

    Example: dmrifit predict model.dmrifit sub-02_dwi.nii.gz --mask mask.nii.gz --out predicted
    """
    from dmrifit.imaging.fit_predict import predict_image
    from dmrifit.imaging.scan_info import contrast_lines
    from dmrifit.io.digests import command_line
    from dmrifit.model_files.model_file import load_model
    from dmrifit.predict.conformal import strategy_of
    from dmrifit.report.quicklook import value_lines
    from dmrifit.report.verdict import map_verdict

    estimator = load_model(model)
    source = getattr(strategy_of(estimator), "source", None)
    if source is None:
        raise ValueError(
            f"{model} holds a {type(estimator).__name__}, which predicts no protocol; train one "
            "by dmrifit train"
        )
    options: dict[str, Any] = {"out": out, "overwrite": overwrite, "model_file": model}
    options["command"] = command_line() + ("" if overwrite else " --overwrite")
    if map_:
        from dmrifit.imaging.foreign_maps import predict_from_maps

        if image is not None or prediction.sigma is not None or prediction.signals:
            raise ValueError("--map replaces IMAGE, --sigma and --signals; leave them out")
        if prediction.mask == "auto":
            raise ValueError("--mask auto finds the body in signals; with --map name a mask file")
        mask = None if prediction.mask in (None, "none") else Path(prediction.mask)
        predicted = predict_from_maps(estimator, map_, units=unit or {}, mask=mask, **options)
        settings = predicted.sidecar["Settings"]
        used = ", ".join(f"{name} × {factor:g}" for name, factor in settings["Factors"].items())
        say(f"using maps: {used} (in µm²/ms; F from 0 to 1), as of {settings['TakenAs']}")
        if quicklook:
            say("no page is written, because it needs an image")
    elif image is None:
        raise ValueError("no image is named; give one, or maps of a clinical fit (--map)")
    else:
        images, protocol = scan_of(image, files, needs_te=source.te is not None)
        options |= vars(prediction) | {"sigma": number_or_path(prediction.sigma)}
        options["average"] = options.pop("average_directions")
        options["quicklook"] = quicklook and can_draw("quick-look page")
        predicted = predict_image(estimator, images, protocol=protocol, progress=True, **options)
        used = "; ".join(contrast_lines(source))
        say(f"using protocol: {used} (of {counted(len(protocol), 'volume')})")
    sidecar = predicted.sidecar
    lines = [map_verdict(sidecar), *value_lines(sidecar), *file_lines(sidecar, out)]
    typer.echo("\n".join(lines + predicted.advice()))


def view(
    image: Path | None = None,
    /,
    *,
    out: Path,
    map_: dict[str, Path] | None = None,
    unit: dict[str, str] | None = None,
    labels: Path | None = None,
    overwrite: bool = False,
) -> None:
    """
    Write an offline page that shows maps of any program in three planes.

    Maps, image and labels lie on one grid; an image with labels needs no map. Takes seconds; the
    page has up to 6 MB.

    Options:
    out: Page to write (.html).
    image IMAGE: 3-D image below the maps, such as b = 0; optional.
    labels: Label image, drawn as outlines.

    Example: dmrifit view b0.nii.gz --map ADC=adc.nii.gz --unit ADC=µm²/ms --out adc.html
    """
    from dmrifit.imaging.foreign_maps import view_maps

    if not map_ and (image is None or labels is None or image.is_dir()):
        maps = [] if image is None else sorted(image.glob("*.nii*"))
        name = maps[0].name.partition("param-")[2].partition("_")[0] if maps else ""
        example = shlex.quote(f"{name or 'ADC'}={maps[0] if maps else 'adc.nii.gz'}")
        folder = f" in place of the folder {image}" if maps else ""
        raise ValueError(
            f"no map is named; name each{folder} by --map NAME=FILE, such as --map {example}"
        )
    check_output(out, overwrite, (".html", ".htm"), [*(map_ or {}).values(), image, labels])
    import_optional("matplotlib", "jinja2")
    view_maps(map_ or {}, out, units=unit or {}, image=image, labels=labels)
    typer.echo(f"page: {out}")


@dataclass(frozen=True)
class SegmentOptions:
    """What the regions of a segmentation are."""

    kind: str = "lesion"
    names: Path | None = None
    separate: bool = False
    manual: bool = False
    note: str | None = None
    series: str | None = None


def dicom_seg(
    labels: Path, /, source: Path, out: Path, regions: SegmentOptions, overwrite: bool = False
) -> None:
    """
    Write a label image as a DICOM segmentation (SEG) of its series. Not for clinical use.

    The labels must lie on the voxels of the series; axes may be reordered or flipped, as by
    converters, and nothing is resampled. The file identifies the patient and the study, as the
    files of the series do.

    Options:
    labels LABELS: NIfTI mask or label image, such as label.nii.gz, opened.nii.gz or
        voxel_mask.nii.gz from the other programs.
    source FOLDER: DICOM series from which the labeled scan was converted.
    out: File to write (.dcm).
    kind lesion|metastasis|tumor|voxel: Type of the regions, for their DICOM codes.
    separate: One segment per connected region, numbered as in lesions.tsv.
    manual: Mark the regions as drawn or placed by hand.
    note TEXT: Explanation if no region is marked; by default that of the program that made the
        labels.
    series UID: Series to use, if the folder holds several.

    Example: dmrifit dicom-seg segmented/sub-01/label.nii.gz --source dicom/t1c --kind metastasis
        --out lesions.dcm
    """
    from dmrifit.imaging.regions import read_label_names
    from dmrifit.io.dicom_seg import write_dicom_seg
    from dmrifit.io.masks import whole_labels
    from dmrifit.io.nifti import load_image, read_volume

    check_output(out, overwrite, (".dcm",), [labels])
    label_image = load_image(labels)
    labeled = whole_labels(read_volume(labels), str(labels))
    names, note = regions.names, regions.note
    if note is None:
        # What a run that wrote the labels says of a scan without findings; often nothing.
        note = str((read_object(labels.parent / "segmentation.json") or {}).get("statement") or "")
    options = vars(regions) | {"names": read_label_names(names) if names else None, "note": note}
    segments = write_dicom_seg(
        labeled, label_image.affine, out, source=source, overwrite=overwrite, **options
    )
    typer.echo(f"{counted(len(segments), 'segment')}: {out}")
    if not labeled.any():
        typer.echo(note)
