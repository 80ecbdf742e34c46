"""The command line. Each command is one function, which imports what it needs when it runs."""

from __future__ import annotations

import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

import dmrifit

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)

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
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="4-D NIfTI image of magnitudes (.nii or .nii.gz).")],
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
            metavar="NAME=LOW,HIGH", help="Bounds of a parameter, repeatable; or the word published, for all of them."
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

    Writes one NIfTI file for each parameter and its standard error, the cost and the status of the fit, a JSON
    file that describes them, and a page to look at.
    """
    from dmrifit.derivatives import derivative_name, stem
    from dmrifit.models import MODELS
    from dmrifit.protocol import Protocol
    from dmrifit.volumes import fit_image

    bval = bval or _beside(image, "bval")
    if bval is None:
        msg = f"{image}: there is no .bval file of the same name beside it; name one by --bval"
        raise ValueError(msg)
    if model not in MODELS:
        msg = f"no model {model!r}; choose one of {', '.join(MODELS)}"
        raise ValueError(msg)
    if not te and MODELS[model].needs_te and (sidecar := _beside(image, "json")):
        te = [str(sidecar)]
    protocol = Protocol.read(bval, te[0] if te and len(te) == 1 else te, bvec or _beside(image, "bvec"))
    if quicklook and not (find_spec("matplotlib") and find_spec("jinja2")):
        _say('no quick-look page: it needs more packages, pip install "dmrifit[report]"')
        quicklook = False
    fit_image(
        image,
        protocol,
        model,
        mask=mask,
        sigma=_number_or_path(sigma),
        out=out,
        average=average_directions,
        bounds=_bounds(bounds or []),
        fixed={name: _floats("--fix", text, 1)[0] for name, text in _pairs("--fix", fix or [])},
        n_starts=int(starts) if starts.isdigit() else starts,
        quicklook=quicklook,
        overwrite=overwrite,
        progress=True,
        n_threads=threads,
    )
    _summarize_fit(out, derivative_name(stem(image), "", model=model))


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
        msg = f"{option} {text}: {'two numbers with a comma between them are' if n == 2 else 'a number is'} needed"
        raise ValueError(msg)
    return numbers


def _bounds(texts: list[str]) -> dict[str, Any] | str | None:
    if texts == ["published"]:
        return "published"
    return {name: tuple(_floats("--bounds", text, 2)) for name, text in _pairs("--bounds", texts)} or None
