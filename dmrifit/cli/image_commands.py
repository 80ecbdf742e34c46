"""Commands that work on images: preprocess, fit, summarize regions, predict, write regions as DICOM."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from dmrifit.cli.console import OverwriteOption
from dmrifit.cli.options import bounds_of, floats, number_or_path, pairs, say, scan_of, words

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["EXAMPLES", "dicom_seg", "fit", "predict", "preprocess", "roi"]

ScanArgument: TypeAlias = Annotated[
    Path,
    typer.Argument(
        metavar="IMAGE", help="4-D NIfTI image of magnitudes, or a table of images (.tsv)."
    ),
]
BvalOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(help="b-values in s/mm²; by default the .bval file beside the image."),
]
BvecOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(help="Gradient directions; by default the .bvec file beside the image, if any."),
]
TeOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        metavar="MS|FILE",
        help="Echo time in ms: a number, a text file with one per volume, or BIDS sidecars (.json); by default the "
        ".te or .json file beside the image, where it is needed.",
    ),
]
ToleranceOption: TypeAlias = Annotated[
    float | None,
    typer.Option(
        metavar="S/MM2", help="Take b-values that lie so close for one (0.5 for 0, 995 for 1000)."
    ),
]


def fit(
    image: ScanArgument,
    out: Annotated[Path, typer.Option(help="Folder for the maps; made if missing.")],
    bval: BvalOption = None,
    bvec: BvecOption = None,
    te: TeOption = None,
    b_tolerance: ToleranceOption = None,
    model: Annotated[
        str, typer.Option(help="adc, kurtosis, ivim or t2-ivim-kurtosis (needs --te).")
    ] = "t2-ivim-kurtosis",
    mask: Annotated[
        Path | None,
        typer.Option(help="Voxels to fit; by default all that are not 0 in every volume."),
    ] = None,
    sigma: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER|FILE|estimate",
            help="Standard deviation of the noise, a number or an image: fits with the Rician floor. The word estimate "
            "finds it in the image, which has to be as the scanner gave it (of a denoised one, name the map that "
            "dmrifit preprocess wrote).",
        ),
    ] = None,
    bounds: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=LOW,HIGH",
            help="Bounds of a parameter, repeatable; K=0,monotonic keeps the signal falling. The word published "
            "stands for all bounds of the model's published tool.",
        ),
    ] = None,
    fix: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Hold a parameter at a value, repeatable."),
    ] = None,
    average_directions: Annotated[
        str | None,
        typer.Option(
            metavar="geometric|arithmetic",
            help="Average volumes that share b and TE before the fit.",
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            metavar="nlls|segmented", help="All parameters at once, or, for ivim, Dt first."
        ),
    ] = "nlls",
    regularization: Annotated[
        float | None,
        typer.Option(
            metavar="WEIGHT",
            help="Weight of a pull of all bounded parameters towards their lower bound.",
        ),
    ] = None,
    starts: Annotated[
        str,
        typer.Option(
            metavar="auto|NUMBER", help="Starting points for each voxel: auto or a number."
        ),
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads; by default one for each core.")
    ] = None,
    quicklook: Annotated[
        bool, typer.Option(help="Write a page to look at (HTML and PNG).")
    ] = True,
    overwrite: OverwriteOption = False,
) -> None:
    """
    Fit a signal model to every voxel of a diffusion image and write its maps.

    A scan in several files, one for each echo time or b-value, is named by a tab-separated table with the columns
    image, bval, te and bvec; the volumes follow each other in the order of its rows.

    Writes one NIfTI file for each parameter and its standard error, the cost and the status of the fit, which
    parameters ended at a bound, a JSON file that describes them, and a page to look at.
    """
    from dmrifit.engine.models import MODELS
    from dmrifit.imaging.fit_predict import fit_image
    from dmrifit.io.bids_derivatives import common_stem, derivative_name

    if model not in MODELS:
        raise ValueError(f"no model {model!r}; choose one of {', '.join(MODELS)}")
    images, protocol = scan_of(image, bval, bvec, te, needs_te=MODELS[model].needs_te)
    if b_tolerance is not None:
        protocol = protocol.rounded(b_tolerance)
    fit_image(
        images,
        protocol,
        model,
        mask=mask,
        sigma="estimate" if sigma == "estimate" else number_or_path(sigma),
        out=out,
        average=average_directions,
        bounds=bounds_of(bounds or []),
        fixed={
            name: floats(f"--fix {name}", text, 1)[0] for name, text in pairs("--fix", fix or [])
        },
        method=method,
        regularization=regularization,
        n_starts=int(starts) if starts.isdigit() else starts,
        quicklook=_can_draw(wanted=quicklook),
        overwrite=overwrite,
        progress=True,
        n_threads=threads,
    )
    _summarize_fit(out, out / derivative_name(common_stem(images), "dwimap.json", model=model))


def preprocess(
    image: ScanArgument,
    out: Annotated[
        Path, typer.Option(help="Folder for the image and the noise map; made if missing.")
    ],
    steps: Annotated[
        str,
        typer.Option(
            metavar="NAME,…", help="Of denoise, gibbs, motion; always done in this order."
        ),
    ] = "denoise,gibbs,motion",
    bval: BvalOption = None,
    bvec: BvecOption = None,
    te: TeOption = None,
    mask: Annotated[
        Path | None,
        typer.Option(help="The body, with a margin; by default all voxels that are not 0."),
    ] = None,
    slice_axis: Annotated[
        int | None,
        typer.Option(
            min=0, max=2, help="Axis across slices, 0 to 2; by default as the header says."
        ),
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """
    Denoise a scan (MPPCA), remove Gibbs ringing and correct motion, and write its level of noise.

    Writes the image, its b-values, directions (turned with the volumes) and echo times, the map of the noise that
    dmrifit fit --sigma takes, and a JSON file. The map is of the noise before denoising: denoising lowers the noise,
    but magnitudes keep their floor.
    """
    from dmrifit.imaging.scan_pipeline import preprocess_image
    from dmrifit.io.bids_derivatives import common_stem, derivative_name

    images, protocol = scan_of(image, bval, bvec, te, needs_te=True)
    preprocess_image(
        images,
        protocol,
        steps=words(steps),
        mask=mask,
        slice_axis=slice_axis,
        out=out,
        overwrite=overwrite,
        progress=True,
    )
    sidecar = out / derivative_name(common_stem(images), "dwi.json", desc="preproc")
    described = json.loads(sidecar.read_text(encoding="utf-8"))
    typer.echo(
        f"noise: median sigma {described['Sigma']['Median']:.4g} ({described['Sigma']['Method']})"
    )
    if motion := described.get("Motion"):
        typer.echo(
            f"motion: up to {max(motion['Shifts']):.2g} mm and {max(motion['Rotations']):.2g} degrees"
        )
    typer.echo(f"image: {out / described['File']}")
    typer.echo(
        f"to fit: dmrifit fit {out / described['File']} --sigma {out / described['Sigma']['File']} --out …"
    )


def roi(
    scans: Annotated[
        list[Path],
        typer.Argument(
            metavar="FOLDER|TABLE…",
            help="Folders that dmrifit fit wrote; or one table (.tsv) with the column maps, and optionally labels, "
            "subject and visit, whose paths are relative to it.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Table to write (.csv).")],
    labels: Annotated[
        list[Path] | None,
        typer.Option(help="Label image: one for all folders, or one for each, in order."),
    ] = None,
    names: Annotated[
        Path | None,
        typer.Option(help="Names of labels: a table (.tsv) with the columns index and name."),
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """
    Summarize the maps of fits in the regions of label images: one table for many scans.

    One row for each scan, label and map: n, median, interquartile range and quartiles, mean, and the share of voxels
    at each bound. Where a table names two visits of a subject, a second table says how well the medians repeat
    (within-subject coefficient of variation).
    """
    from dmrifit.imaging.regions import read_label_names, repeatability, summarize_fits
    from dmrifit.io.atomic_files import FileSet

    named = read_label_names(names) if names else None
    files = [out.name, f"{out.stem}_repeatability{out.suffix}"]
    with FileSet(
        out.parent, files[::-1], overwrite=overwrite, keep=_files([*(labels or []), *scans, names])
    ) as written:
        table = summarize_fits(scans, labels or [], names=named)
        table.to_csv(written.path(files[0]), index=False, float_format="%.7g")
        visits = set(table["visit"]) if "visit" in table else set()
        repeated = repeatability(table) if len(visits) > 1 else None
        if repeated is not None:
            repeated.to_csv(written.path(files[1]), index=False, float_format="%.7g")
    n_scans = len(table.drop_duplicates(["folder", "scan", "model"]))
    typer.echo(f"{n_scans} fits, {table['label'].nunique()} labels: {out}")
    if repeated is not None:
        _summarize_repeats(repeated)
        typer.echo(f"repeatability: {out.parent / files[1]}")


def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="What dmrifit train wrote.")],
    image: ScanArgument,
    out: Annotated[Path, typer.Option(help="Folder for the maps; made if missing.")],
    bval: BvalOption = None,
    bvec: BvecOption = None,
    te: TeOption = None,
    b_tolerance: ToleranceOption = None,
    average_directions: Annotated[
        str | None,
        typer.Option(
            metavar="geometric|arithmetic", help="Average volumes that share b and TE before."
        ),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(help="The body: its voxels are predicted, and give the patient's scale."),
    ] = None,
    sigma: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER|FILE", help="Standard deviation of the noise, a number or an image."
        ),
    ] = None,
    signals: Annotated[
        bool, typer.Option("--signals", help="Write the predicted images too.")
    ] = False,
    quicklook: Annotated[bool, typer.Option(help="Write a page to look at (HTML).")] = True,
    overwrite: OverwriteOption = False,
) -> None:
    """
    Predict the maps of an advanced protocol from an image of a clinical one.

    The measurements that the model needs are found in the image by their b-values and echo times.
    """
    from dmrifit.imaging.fit_predict import predict_image
    from dmrifit.model_files.model_file import load_model

    estimator = load_model(model)
    source = getattr(estimator, "source", None)
    if source is None:
        raise ValueError(
            f"{model} holds a {type(estimator).__name__}, which predicts no protocol; train one by dmrifit train"
        )
    images, protocol = scan_of(image, bval, bvec, te, needs_te=source.te is not None)
    predict_image(
        estimator,
        images,
        protocol=protocol,
        b_tolerance=b_tolerance,
        average=average_directions,
        mask=mask,
        sigma=number_or_path(sigma),
        out=out,
        signals=signals,
        quicklook=_can_draw(wanted=quicklook),
        overwrite=overwrite,
        progress=True,
    )
    typer.echo(f"predicted maps: {out}")


def dicom_seg(
    labels: Annotated[
        Path,
        typer.Argument(
            metavar="LABELS",
            help="NIfTI mask or label image, such as label.nii.gz, opened.nii.gz or voxel_mask.nii.gz of the other "
            "programs.",
        ),
    ],
    source: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER", help="DICOM series that the scan of the labels was converted from."
        ),
    ],
    out: Annotated[Path, typer.Option(help="File to write (.dcm).")],
    kind: Annotated[
        str,
        typer.Option(
            metavar="lesion|metastasis|tumor|voxel", help="What the regions are, for their codes."
        ),
    ] = "lesion",
    names: Annotated[
        Path | None,
        typer.Option(help="Names of labels: a table (.tsv) with the columns index and name."),
    ] = None,
    separate: Annotated[
        bool,
        typer.Option(
            "--separate", help="A segment for each connected region, numbered as in lesions.tsv."
        ),
    ] = False,
    manual: Annotated[
        bool, typer.Option("--manual", help="The regions were drawn or placed by hand.")
    ] = False,
    series: Annotated[
        str | None,
        typer.Option(metavar="UID", help="Which series, where the folder holds several."),
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """
    Write a label image as a DICOM segmentation (SEG) on the series of its scan. Not for clinical use.

    The labels have to lie on the voxels of the series; axes may be turned, as converters do, and nothing is
    resampled. The file bears the identity of the patient and the study, as the files of the series do.
    """
    from dmrifit.cli.console import check_output
    from dmrifit.imaging.regions import read_label_names
    from dmrifit.io.dicom_seg import write_dicom_seg
    from dmrifit.io.nifti import load_image, read_volume

    check_output(out, overwrite)
    if out.exists() and out.samefile(labels):
        raise ValueError(
            f"--out {out} is the image of the labels and would be overwritten; choose another name"
        )
    segments = write_dicom_seg(
        read_volume(labels),
        load_image(labels).affine,
        out,
        source=source,
        kind=kind,
        names=read_label_names(names) if names else None,
        separate=separate,
        manual=manual,
        series=series,
        overwrite=overwrite,
    )
    typer.echo(f"{len(segments)} segment{'s' * (len(segments) != 1)}: {out}")


EXAMPLES: dict[Callable[..., None], str] = {
    preprocess: "dmrifit preprocess sub-01_dwi.nii.gz --steps denoise,gibbs --out clean",
    fit: "dmrifit fit sub-01_dwi.nii.gz --te sub-01_dwi.te --mask mask.nii.gz --out maps",
    roi: "dmrifit roi maps --labels labels.nii.gz --out roi.csv",
    predict: "dmrifit predict model.dmrifit sub-02_dwi.nii.gz --mask mask.nii.gz --out predicted",
    dicom_seg: "dmrifit dicom-seg segmented/sub-01/label.nii.gz --source dicom/t1c --kind metastasis --out lesions.dcm",
}


def _can_draw(*, wanted: bool) -> bool:
    """Tell whether a page can be made, and say so if one is wanted and cannot."""
    if wanted and not (find_spec("matplotlib") and find_spec("jinja2")):
        say('no quick-look page: it needs more packages, pip install "dmrifit[report]"')
        return False
    return wanted


def _files(paths: Iterable[Path | None]) -> list[Path]:
    return [path for path in paths if path is not None and path.is_file()]


def _summarize_repeats(repeated: pd.DataFrame) -> None:
    """Print how well the parameters repeat."""
    shown = repeated[
        ~repeated["map"].str.endswith("_se")
        & (repeated["map"] != "cost")
        & (repeated["n_subjects"] > 0)
    ]
    if shown.empty:
        typer.echo("no subject has two visits")
        return
    columns = shown[["model", "name", "map", "n_subjects"]].rename(
        columns={"name": "region", "n_subjects": "subjects"}
    )
    columns["within-subject CV (%)"] = (100 * shown["wcv"]).map("{:.1f}".format)
    typer.echo(columns.to_string(index=False))


def _summarize_fit(out: Path, sidecar: Path) -> None:
    """Print how a fit went, from the file that describes it."""
    from dmrifit.io.bids_derivatives import MONOTONIC

    described = json.loads(sidecar.read_text(encoding="utf-8"))
    counts = {code: n for code, n in described["Status"]["Voxels"].items() if n}
    typer.echo(
        f"{sum(counts.values())} voxels: " + ", ".join(f"{n} {code}" for code, n in counts.items())
    )
    for parameter, entry in described["Parameters"].items():
        for end, share in entry.get("ShareAtBounds", {}).items():
            if share > 0:
                bound = entry["Bounds"][end == "Upper"]
                rule = f" or {MONOTONIC}" if end == "Upper" and "UpperBoundRule" in entry else ""
                typer.echo(
                    f"{parameter}: {share:.1%} of the fitted voxels at the {end.lower()} bound {bound:g}{rule}"
                )
    doubts = [
        f"{share:.1%} {reason}"
        for reason, share in described["Doubt"]["Share"].items()
        if share > 0
    ]
    if doubts:
        typer.echo(f"in doubt: of the fitted voxels {', '.join(doubts)}")
    if "estimated" in str(described["Settings"]["Sigma"]):
        typer.echo(f"noise: sigma {described['Settings']['Sigma']}")
    first = next(iter(described["Parameters"]))
    file = described["Parameters"][first]["File"].replace(f"param-{first}_", "param-*_")
    typer.echo(f"maps: {out / file}")
    page = sidecar.with_name(sidecar.name.replace("dwimap.json", "quicklook.html"))
    if page.exists():
        typer.echo(f"page: {page}")
