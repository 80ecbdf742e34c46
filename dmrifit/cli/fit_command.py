"""The command fit: its options, and what they mean to the fit of one scan or of many."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from dmrifit._utils.counts import first_few
from dmrifit.cli.case_runs import RunOptions, can_draw
from dmrifit.cli.options import (
    ProtocolFiles,
    bounds_of,
    is_pattern,
    number_or_path,
    numbers,
    pairs,
    refuse_files,
    scan_of,
)


@dataclass(frozen=True)
class FitOptions:
    """What is fitted to which measurements, and how."""

    b_tolerance: float | None = None
    b_max: float | None = None
    leave_out_b: tuple[float, ...] | None = None
    model: str | None = None
    by_te: bool = False
    mask: str | None = None
    sigma: str | None = None
    bounds: list[str] | None = None
    fix: list[str] | None = None
    average_directions: str | None = None
    method: str | None = None
    likelihood: str = "gaussian"
    threshold: float | None = None
    weights: tuple[float, ...] | None = None
    regularization: float | None = None
    starts: str = "auto"
    threads: int | None = None


def fit(
    context: typer.Context,
    images: list[Path],
    /,
    *,
    out: Path,
    files: ProtocolFiles,
    fitting: FitOptions,
    jobs: int = 1,
    cluster: str | None = None,
    quicklook: bool = True,
    overwrite: bool = False,
) -> None:
    """
    Fit a signal model to every voxel of a diffusion image and write its maps.

    A scan in several files, one for each echo time or b-value, is named by a tab-separated table
    with the columns image, bval, te and bvec; volumes are concatenated in the order of its rows.

    Writes NIfTI files of each parameter, its standard error and the ends of its 95 % interval, of
    the cost, reduced χ² (with --sigma) and status of the fit, and of parameters at a bound and in
    doubt, a JSON file that describes them, and a quick-look page. For many scans, also an overview
    page (index.html) and a table (fits.tsv) for dmrifit roi; after Ctrl-C, run it again to resume.

    A scan of 70,640 voxels and 42 volumes (ivim) takes 10 s of one core and 390 MB of memory. Time
    grows with voxels times volumes, memory with voxels times maps. A compressed image is unpacked
    into a temporary file. The first fit of a model compiles it, which takes about 7 s for the
    first model, 1 s for others.

    Options:
    images IMAGE…|BIDS: 4-D NIfTI image of magnitudes, or a table of images (.tsv); several images,
        a glob, a folder (of images with a .bval file beside) or a BIDS folder for many scans.
    b_max S/MM2: Leave out volumes above this b-value.
    leave_out_b S/MM2,…: Leave out volumes of these b-values, such as 5,10.
    model: adc, kurtosis, ivim; with echo times t2, t2-adc, t2-ivim-kurtosis, and
        t2-ivim-relative (not listed by info) for signals divided by those at b = 0; by default the
        richest that its protocol supports. All are isotropic: no FA, no tensor.
    by_te: Fit S0 and f of --model adc, kurtosis or ivim at each echo time, without a model of T2.
    mask FILE|auto|none|PATTERN: Voxels to fit; by default (none) all that are nonzero in any
        volume (NaN counts as 0). auto finds the body or head by median Otsu. For many scans one
        file on the grid of all, whose name is of none of them, or a pattern in quotes, relative to
        the BIDS folder, such as 'derivatives/masks/sub-*/**/*_mask.nii.gz'.
    sigma NUMBER|FILE|estimate|PATTERN: Standard deviation of the noise, a number or an image; the
        fit then models the noise floor. estimate measures the noise in an image that is not
        denoised (for denoised images, name the noise map from dmrifit preprocess).
    bounds NAME=LOW,HIGH: Bounds of a parameter, repeatable; K=0,monotonic keeps the signal
        decreasing (the default of kurtosis; K=0,5 lifts it). published takes all bounds of the
        tool that published the model.
    fix NAME=VALUE: Fix a parameter at a value, repeatable; S0=measured takes the signal at b = 0
        as exact.
    average_directions geometric|arithmetic: Average volumes of equal b and TE before the fit.
    method nlls|ols|wls|segmented|map: Nonlinear least squares (nlls); ordinary or weighted least
        squares of logarithms (ols, wls; adc, kurtosis); Dt first (segmented; ivim); a prior
        learned from the region, which pulls lesions toward its mean (map). By default nlls, for
        ivim at low SNR segmented; the output says what was chosen and why.
    likelihood gaussian|rician|rician-mean: Noise of single magnitudes (rician) or of averages of
        them (rician-mean); both need --sigma.
    threshold S/MM2: Lowest b-value from which --method segmented fits Dt; by default 150, and
        without --method chosen by the SNR.
    weights NUMBER,…: Weight of each measurement that is fitted. By default averages count by their
        numbers of volumes (with --method ols in errors and cost alone), other measurements alike.
    regularization WEIGHT: Weight of a penalty that pulls bounded parameters to their lower bound.
    starts auto|thorough|NUMBER: Starting points per voxel.
    threads 1..: Number of threads; by default one per core.
    jobs: Scans worked on in parallel; −1 for one per core.
    quicklook: Write a quick-look page (HTML and PNG).

    Example: dmrifit fit sub-01_dwi.nii.gz --te sub-01_dwi.te --mask mask.nii.gz --out maps
    """
    from dmrifit.cli.fit_runs import fit_many, fit_scan, print_fit
    from dmrifit.engine.fit_settings import MEASURED
    from dmrifit.engine.models import resolve_model
    from dmrifit.io.digests import command_line

    options: dict[str, Any] = vars(fitting) | {"te": files.te, "fixed": {}, "overwrite": overwrite}
    for name, value in pairs("--fix", options.pop("fix") or []).items():
        number = value if value == MEASURED else numbers(f"--fix {name}", value, 1)[0]
        options["fixed"][name] = number
    options["leave_out_b"] = list(fitting.leave_out_b or [])
    options["sigma"] = "estimate" if fitting.sigma == "estimate" else number_or_path(fitting.sigma)
    options["average"] = options.pop("average_directions")
    options["bounds"] = bounds_of(options.pop("bounds") or [])
    starts = options.pop("starts")
    options["n_starts"] = int(starts) if starts.isdecimal() else starts
    options["n_threads"] = options.pop("threads")
    options["quicklook"] = quicklook and can_draw("quick-look page")
    if len(images) == 1 and not is_pattern(images[0]) and not images[0].is_dir():
        if cluster:
            raise ValueError(f"--cluster spreads many scans; leave it out for {images[0]} alone")
        # It is to run where the maps are, too; that of many scans would name them all.
        options["command"] = command_line() + ("" if overwrite else " --overwrite")
        start = time.perf_counter()
        # Without a model, echo times decide which is the richest.
        needs_te = fitting.by_te or fitting.model is None or resolve_model(fitting.model).needs_te
        series, protocol = scan_of(images[0], files, needs_te=needs_te)
        _, sidecar = fit_scan(series, protocol, out, options, progress=True)
        print_fit(context, out, sidecar)
        typer.echo(f"time: {time.perf_counter() - start:.1f} s")
        return
    refuse_files(first_few(list(map(str, images))), {"--bval": files.bval, "--bvec": files.bvec})
    fit_many(context, images, RunOptions(out, jobs, cluster, overwrite=overwrite), options)
