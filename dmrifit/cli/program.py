"""
The program dmrifit, with the command cite; each command imports what it needs when it runs.

Options:
b_tolerance S/MM2: Take b-values for one (995 and 1005 for 1000) where neighbors differ by this at
    most, and all of them by twice this at most; all up to it are 0 if b = 0 was measured. Keep it
    below half the smallest step between b-values that are meant, and below the lowest above 0.
bval: b-values in s/mm²; by default the .bval file beside the image.
bvec: Gradient directions; by default the .bvec file beside the image, if any.
image IMAGE: 4-D NIfTI image of magnitudes, or a table of the images of one scan (.tsv with the
    columns image and optionally bval, te, bvec).
map_ NAME=FILE: Map of another program, under this name; repeatable.
max_voxels 0..: Random sample of voxels per scan to train on; 0 for all.
model: Signal model of the maps.
names: Names of labels: a table (.tsv) with the columns index and name.
out: Folder for the maps; created if missing.
source_b B,…: Measured b-values of the inputs (s/mm²), at the shortest TE of the first cohort; by
    default the five lowest of each cohort.
table PARTICIPANTS: Table of scans, or of mean signals of regions (columns patient, region, b, te,
    signal), tab- or comma-separated.
te MS|FILE: Echo time in ms: a number, a text file with one per volume, or BIDS sidecars (.json);
    by default the .te or .json file beside the image, if needed.
train_mask body|lesion: Voxels to train on.
unit NAME=UNIT: Unit of a map, repeatable.
"""

from __future__ import annotations

from collections.abc import Callable

import typer

from dmrifit.cli import cohort_commands as on_cohorts
from dmrifit.cli import image_commands as on_images
from dmrifit.cli.console import make_program
from dmrifit.cli.fit_command import fit


def cite(model: str | None = None, /) -> None:
    """
    Say what to cite: this version of the software, and the publications of a signal model.

    Studies that an application repeats are named in the References of its classes.

    Options:
    model: A signal model; by default all built-in ones.

    Example: dmrifit cite ivim
    """
    import dmrifit
    from dmrifit.engine.models import MODELS, resolve_model

    models = MODELS.values() if model is None else [resolve_model(model)]
    typer.echo(f"The dmrifit developers. dmrifit (version {dmrifit.__version__}), software, 2026.")
    for entry in models:
        typer.echo(f"{entry.name}:")
        for reference in entry.references:
            typer.echo(f"  {reference}")


_commands: list[Callable[..., None]] = [on_images.import_, on_images.info, on_images.table]
_commands += [on_images.preprocess, fit, on_images.roi, on_images.predict, on_images.view]
_commands += [on_images.dicom_seg, on_cohorts.simulate, on_cohorts.train, on_cohorts.benchmark]
_commands += [on_cohorts.report, cite]
app, main = make_program(
    "dmrifit",
    "Diffusion MRI: fit signal models, predict protocols, score each patient.",
    _commands,
    first="dmrifit fit sub-01_dwi.nii.gz --te sub-01_dwi.te --mask auto --out maps",
    options=__doc__,
)
