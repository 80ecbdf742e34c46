"""The command that trains the small model on implants in one's own scans: train-small."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dmrifit._utils.counts import counted
from dmrifit.cli.console import check_output
from dmrifit.cli.options import require_libraries

if TYPE_CHECKING:
    from metastasis.simulate.training_scans import TrainingScan


def train_small(
    scans: Path,
    /,
    out: Path,
    copies: int = 16,
    phantoms: int = 6,
    epochs: int = 18,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """
    Train the small model of segment on implants in one's own scans without metastases.

    No labelled metastasis is needed: synthetic ones are put into warped copies of the scans. Takes
    some 40 minutes of one core. The threshold is that of the model that comes along: choose
    another one by what is marked in scans without metastases.

    Options:
    out: Model file to write, usually named *.dmrifit.
    scans SCANS: Post-contrast scans without metastases, as prepare writes them: one image, a
        folder, or a table (.tsv) with the columns patient and image.
    copies 1..: Warped copies of each scan, all with implants.
    phantoms 1..: Synthetic patients to learn from as well.
    epochs 1..: Epochs of each of the six trainings (two halves and all, each twice).

    Example: dmrifit-metastasis train-small prepared --out mine.dmrifit
    """
    from metastasis.scans.scan_checks import scan_files
    from metastasis.simulate.training_scans import implanted_copies, phantom_scans, read_negative

    check_output(out, overwrite)
    require_libraries("torch", "skorch")
    is_table = scans.is_dir() or scans.suffix == ".tsv"
    paths = [files["image"] for files in scan_files(scans, None, None, is_table=is_table)]
    # All files are checked before the first copy is made.
    negatives = {str(path): read_negative(path) for path in paths}
    training: list[TrainingScan] = []
    for name, (volume, brain) in negatives.items():
        training += implanted_copies(name, volume, brain, copies, random_state=seed)
    training += phantom_scans(phantoms, random_state=seed)
    _fit(training, out, epochs, seed)
    typer.echo(
        f"trained on implants in {counted(len(negatives), 'scan')} and on "
        f"{counted(phantoms, 'synthetic patient')}: {out}\n"
        "never tried on a labelled metastasis: its accuracy in people is unknown"
    )


def _fit(training: list[TrainingScan], out: Path, epochs: int, seed: int) -> None:
    """Train both stages, and write them."""
    from dmrifit.cli.training_files import curve_writer
    from dmrifit.model_files.model_file import save_model
    from metastasis.candidates.small_model import untrained_small_model

    model = untrained_small_model(seed, epochs=epochs, after_epoch=curve_writer(out), verbose=True)
    model.fit(
        [scan.volume for scan in training],
        [scan.label for scan in training],
        masks=[scan.brain for scan in training],
        groups=[scan.name for scan in training],
    )
    save_model(model, out)
