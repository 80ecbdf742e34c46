"""The command line. Each command is one function, which imports what it needs when it runs."""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

import dmrifit

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)

_INTERRUPTED = 130  # exit code after Ctrl-C

FIT_EXAMPLE = "dmrifit fit sub-01_dwi.nii.gz --te sub-01_dwi.te --mask mask.nii.gz --out maps"


def main() -> None:
    """
    Run the command line; an error that the user can mend is one line on the standard error stream.

    Raises
    ------
    SystemExit
        Always: 0 when all went well, 2 for such an error, 130 after Ctrl-C.
    """
    try:
        app()
    except (ValueError, OSError, ImportError) as error:
        typer.echo(f"dmrifit: error: {error}", err=True)
        sys.exit(2)
    except SystemExit as stopped:
        if stopped.code == _INTERRUPTED:
            typer.echo("dmrifit: interrupted", err=True)
        raise


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"dmrifit {dmrifit.__version__}")
        raise typer.Exit


@app.callback()
def dmrifit_(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Diffusion MRI of tumors: fit signal models, predict protocols, score by patient."""


@app.command(epilog=f"\b\nExample:\n  {FIT_EXAMPLE}")
def fit(
    image: Annotated[
        Path, typer.Argument(metavar="IMAGE", help="4-D NIfTI image of magnitudes, or a table of images (.tsv).")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the maps; made if missing.")],
    bval: Annotated[
        Path | None, typer.Option(help="b-values in s/mm²; by default the .bval file beside the image.")
    ] = None,
    bvec: Annotated[
        Path | None, typer.Option(help="Gradient directions; by default the .bvec file beside the image, if any.")
    ] = None,
    te: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MS|FILE",
            help="Echo time in ms: a number, a text file with one per volume, or BIDS sidecars (.json).",
        ),
    ] = None,
    b_tolerance: Annotated[
        float | None,
        typer.Option(metavar="S/MM2", help="Take b-values that lie so close for one (0.5 for 0, 995 for 1000)."),
    ] = None,
    model: Annotated[
        str, typer.Option(help="adc, kurtosis, ivim or t2-ivim-kurtosis (needs --te).")
    ] = "t2-ivim-kurtosis",
    mask: Annotated[
        Path | None, typer.Option(help="Voxels to fit; by default all that are not 0 in every volume.")
    ] = None,
    sigma: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER|FILE",
            help="Standard deviation of the noise, a number or an image: fits with the Rician floor.",
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
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Hold a parameter at a value, repeatable.")
    ] = None,
    average_directions: Annotated[
        str | None,
        typer.Option(metavar="geometric|arithmetic", help="Average volumes that share b and TE before the fit."),
    ] = None,
    starts: Annotated[
        str, typer.Option(metavar="auto|NUMBER", help="Starting points for each voxel: auto or a number.")
    ] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; by default one for each core.")] = None,
    quicklook: Annotated[bool, typer.Option(help="Write a page to look at (HTML and PNG).")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files of an earlier run.")] = False,
) -> None:
    """
    Fit a signal model to every voxel of a diffusion image and write its maps.

    A scan in several files, one for each echo time or b-value, is named by a tab-separated table with the columns
    image, bval, te and bvec; the volumes follow each other in the order of its rows.

    Writes one NIfTI file for each parameter and its standard error, the cost and the status of the fit, a JSON
    file that describes them, and a page to look at.
    """
    from dmrifit.derivatives import common_stem, derivative_name
    from dmrifit.models import MODELS
    from dmrifit.volumes import fit_image

    if model not in MODELS:
        msg = f"no model {model!r}; choose one of {', '.join(MODELS)}"
        raise ValueError(msg)
    images, protocol = _scan(image, bval, bvec, te, needs_te=MODELS[model].needs_te)
    if b_tolerance is not None:
        protocol = protocol.rounded(b_tolerance)
    if quicklook and not (find_spec("matplotlib") and find_spec("jinja2")):
        _say('no quick-look page: it needs more packages, pip install "dmrifit[report]"')
        quicklook = False
    fit_image(
        images,
        protocol,
        model,
        mask=mask,
        sigma=_number_or_path(sigma),
        out=out,
        average=average_directions,
        bounds=_bounds(bounds or []),
        fixed={name: _floats(f"--fix {name}", text, 1)[0] for name, text in _pairs("--fix", fix or [])},
        n_starts=int(starts) if starts.isdigit() else starts,
        quicklook=quicklook,
        overwrite=overwrite,
        progress=True,
        n_threads=threads,
    )
    _summarize_fit(out, derivative_name(common_stem(images), "", model=model))


SIMULATE_EXAMPLE = "dmrifit simulate --out data --patients 8 --seed 1"
BENCHMARK_EXAMPLE = "dmrifit benchmark data/participants.tsv --out study --algorithms LR,RFR,slNN"
REPORT_EXAMPLE = "dmrifit report study"


@app.command(epilog=f"\b\nExample:\n  {SIMULATE_EXAMPLE}")
def simulate(
    out: Annotated[Path, typer.Option(help="Folder for the images and the table participants.tsv.")],
    patients: Annotated[int, typer.Option(min=1, help="Patients in each cohort.")] = 16,
    same_protocol: Annotated[
        bool,
        typer.Option(
            "--same-protocol", help="Measure cohort2 with the protocol of cohort1, so that one can train for the other."
        ),
    ] = False,
    difficulty: Annotated[
        str, typer.Option(metavar="mixed|easy", help="How much patients differ, and noise.")
    ] = "mixed",
    shape: Annotated[str, typer.Option(metavar="X,Y,Z", help="Voxels of each image.")] = "48,48,8",
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same patients.")] = 0,
) -> None:
    """
    Write two synthetic cohorts of abdominal tumors: images, masks, true maps and a table of participants.

    cohort1 is simulated at 1.5 T and cohort2 at 3 T, each with the study's protocol of that name.
    """
    from dmrifit.phantoms import simulate_cohort
    from dmrifit.protocol import Protocol

    x, y, z = (round(number) for number in _floats("--shape", shape, 3))
    protocols = [Protocol.preset("cohort1"), Protocol.preset("cohort1" if same_protocol else "cohort2")]
    table = out
    for name, field, protocol in zip(("cohort1", "cohort2"), (1.5, 3.0), protocols, strict=True):
        cohort = simulate_cohort(
            protocol,
            patients,
            difficulty=difficulty,
            shape=(x, y, z),
            name=name,
            field=field,
            random_state=seed,
        )
        table = cohort.write(out)
    typer.echo(f"{2 * patients} synthetic patients: {table}")


@app.command(epilog=f"\b\nExample:\n  {BENCHMARK_EXAMPLE}")
def benchmark(
    table: Annotated[Path, typer.Argument(metavar="PARTICIPANTS", help="Table of scans, tab- or comma-separated.")],
    out: Annotated[Path, typer.Option(help="Folder for tables and report; an interrupted run goes on there.")],
    algorithms: Annotated[
        str, typer.Option(metavar="NAME,…", help="Of LR, RFR, ETR, GBR, slNN, mlNN. A constant always takes part.")
    ] = "LR,RFR",
    strategies: Annotated[str, typer.Option(metavar="s2s,m2m", help="Signals to signals, maps to maps.")] = "s2s,m2m",
    model: Annotated[str, typer.Option(help="Model of the maps.")] = "t2-ivim-kurtosis",
    train_on: Annotated[
        str | None,
        typer.Option(
            metavar="same,other,pooled",
            help="Cohorts to train on; by default the same, and the other ones too if protocols agree.",
        ),
    ] = None,
    train_mask: Annotated[str, typer.Option(metavar="body|lesion", help="Voxels to train on.")] = "body",
    score_mask: Annotated[str, typer.Option(metavar="lesion|body", help="Voxels to score.")] = "lesion",
    max_voxels: Annotated[
        int, typer.Option(min=0, help="Train on so many voxels of a scan, drawn at random; 0 for all of them.")
    ] = 250,
    n_train: Annotated[int | None, typer.Option(min=1, help="Train on so many patients; all by default.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Repeat with other draws and seeds.")] = 1,
    jobs: Annotated[int, typer.Option(help="Models trained at the same time; −1 for one on each core.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same table.")] = 0,
) -> None:
    """
    Compare predictors of an advanced protocol on a table of patients, leaving one patient out.

    The table has the columns patient, cohort, image, mask, lesion, bval, te; paths are relative to it. Writes
    scores.csv, signals.csv, figures and report.html.
    """
    from dmrifit.cohort import Cohort
    from dmrifit.evaluation import compare
    from dmrifit.reporting import write_report

    if not (find_spec("matplotlib") and find_spec("jinja2")):
        msg = 'the report needs more packages: pip install "dmrifit[report]"'
        raise ImportError(msg)
    estimators = _estimators(_words(algorithms), _words(strategies), model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cohorts = Cohort.read(table)
    for warning in caught:
        _say(str(warning.message))
    evaluation = compare(
        estimators,
        cohorts,
        train_on=_words(train_on) if train_on else _ways_to_train(cohorts),
        train_mask=train_mask,  # type: ignore[arg-type]
        score_mask=score_mask,  # type: ignore[arg-type]
        n_train=n_train,
        n_repeats=repeats,
        max_voxels=max_voxels or None,
        out=out,
        n_jobs=jobs,
        random_state=seed,
    )
    _finish_report(evaluation, write_report(evaluation, out))


@app.command(epilog=f"\b\nExample:\n  {REPORT_EXAMPLE}")
def report(study: Annotated[Path, typer.Argument(metavar="FOLDER", help="What dmrifit benchmark made.")]) -> None:
    """Write the report of a finished comparison again."""
    from dmrifit.evaluation import Evaluation
    from dmrifit.reporting import write_report

    evaluation = Evaluation.read(study)
    _finish_report(evaluation, write_report(evaluation, study))


def _estimators(algorithms: list[str], strategies: list[str], model: str) -> dict[str, Any]:
    """Make every algorithm in every strategy, and the constant that any of them has to beat."""
    from dmrifit.algorithms import CONSTANT, VOXELWISE
    from dmrifit.prediction import MapsToMaps, SignalToSignal

    classes = {"s2s": SignalToSignal, "m2m": MapsToMaps}
    known = (*VOXELWISE, CONSTANT)
    for word, words, option in (
        *((name, known, "--algorithms") for name in algorithms),
        *((name, tuple(classes), "--strategies") for name in strategies),
    ):
        if word not in words:
            msg = f"{option}: no {word!r}; choose of {', '.join(words)}"
            raise ValueError(msg)
    names = dict.fromkeys([*algorithms, CONSTANT])
    return {f"{name} {strategy}": classes[strategy](name, model=model) for strategy in strategies for name in names}


def _ways_to_train(cohorts: Mapping[str, Any]) -> list[str]:
    """Cross cohorts where their protocols agree, and say where they do not."""
    first, *others = (cohort.scans[0].protocol for cohort in cohorts.values())
    if not others:
        return ["same"]
    try:
        for other in others:
            first.indices_in(other)
    except ValueError as error:
        missing = str(error).partition(";")[0]
        _say(f"training in one cohort for another is left out: protocols differ ({missing})")
        return ["same"]
    return ["same", "other"]


def _finish_report(evaluation: Any, page: Path) -> None:
    """Print the summary, and where the page is."""
    from dmrifit.reporting import summarize

    summary = summarize(evaluation)
    columns = {"train_on": "trained on", "cohort": "cohort", "strategy": "strategy", "algorithm": "algorithm"}
    table = summary[[*columns]].rename(columns=columns)
    table["|BI| (%)"] = (100 * summary["abs_bias"]).map("{:.1f}".format)
    table["DI (%)"] = (100 * summary["dispersion"]).map("{:.1f}".format)
    table["r"] = summary["pearson"].map("{:.2f}".format)
    typer.echo(table.to_string(index=False))
    if any(cohort["synthetic"] for cohort in evaluation.study["cohorts"].values()):
        typer.echo("synthetic data: no clinical result")
    typer.echo(f"report: {page}")


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _summarize_fit(out: Path, name: str) -> None:
    """Print how a fit went, from the file that describes it."""
    described = json.loads((out / f"{name}dwimap.json").read_text(encoding="utf-8"))
    counts = {code: n for code, n in described["Status"]["Voxels"].items() if n}
    typer.echo(f"{sum(counts.values())} voxels: " + ", ".join(f"{n} {code}" for code, n in counts.items()))
    for parameter, entry in described["Parameters"].items():
        for end, share in entry.get("ShareAtBounds", {}).items():
            if share > 0:
                bound = entry["Bounds"][end == "Upper"]
                typer.echo(f"{parameter}: {share:.1%} of the fitted voxels at the {end.lower()} bound {bound:g}")
    typer.echo(f"maps: {out / name}param-*_dwimap.nii.gz")
    if (out / f"{name}quicklook.html").exists():
        typer.echo(f"page: {out / name}quicklook.html")


def _say(message: str) -> None:
    typer.echo(f"dmrifit: {message}", err=True)


def _beside(image: Path, extension: str) -> Path | None:
    """Find the file of the same name with another extension, and say so."""
    path = image.with_name(f"{re.sub(r'[.]nii([.]gz)?$', '', image.name)}.{extension}")
    if not path.is_file():
        return None
    _say(f"using {path}")
    return path


def _scan(
    image: Path, bval: Path | None, bvec: Path | None, te: list[str] | None, *, needs_te: bool
) -> tuple[list[Path], Any]:
    """Find the images of a scan and its protocol: in a table, in what options name, or beside the image."""
    from dmrifit.manifest import read_manifest
    from dmrifit.protocol import Protocol

    if image.suffix.lower() in (".tsv", ".csv"):
        if bval or bvec or te:
            msg = f"{image} names the files of each image in its columns; leave out --bval, --bvec and --te"
            raise ValueError(msg)
        manifest = read_manifest(image)
        return list(manifest.images), manifest.protocol
    bval = bval or _beside(image, "bval")
    if bval is None:
        msg = f"{image}: there is no .bval file of the same name beside it; name one by --bval"
        raise ValueError(msg)
    if not te and needs_te and (sidecar := _beside(image, "json")):
        te = [str(sidecar)]
    return [image], Protocol.read(bval, te[0] if te and len(te) == 1 else te, bvec or _beside(image, "bvec"))


def _number_or_path(text: str | None) -> float | Path | None:
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        return Path(text)


def _pairs(option: str, texts: list[str]) -> list[tuple[str, str]]:
    pairs = [text.partition("=") for text in texts]
    for text, (name, equals, value) in zip(texts, pairs, strict=True):
        if not (name and equals and value):
            msg = f"{option} {text}: write NAME=VALUE"
            raise ValueError(msg)
    return [(name, value) for name, _, value in pairs]


def _floats(option: str, text: str, n: int) -> list[float]:
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != n:
        msg = f"{option} {text}: {'a number is' if n == 1 else f'{n} numbers with commas between them are'} needed"
        raise ValueError(msg)
    return numbers


def _bounds(texts: list[str]) -> dict[str, Any] | str | None:
    if texts == ["published"]:
        return "published"
    bounds: dict[str, Any] = {}
    for name, text in _pairs("--bounds", texts):
        low, comma, high = text.partition(",")
        if comma and high == "monotonic":
            bounds[name] = (_floats(f"--bounds {name}", low, 1)[0], high)
        else:
            bounds[name] = tuple(_floats(f"--bounds {name}", text, 2))
    return bounds or None
