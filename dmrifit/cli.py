"""The command line. Each command is one function, which imports what it needs when it runs."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

import dmrifit
from dmrifit import commands
from dmrifit.options import floats, say, words

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)

_INTERRUPTED = 130  # exit code after Ctrl-C


def main() -> None:
    """
    Run the command line; an error that the user can mend is one line on the standard error stream.

    Raises
    ------
    SystemExit
        Always: 0 when all went well, 2 for such an error, 130 after Ctrl-C.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = lambda message, *_, **__: say(str(message))
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


for _command, _example in commands.EXAMPLES.items():
    app.command(epilog=f"\b\nExample:\n  {_example}")(_command)


SIMULATE_EXAMPLE = "dmrifit simulate --out data --patients 8 --seed 1"
TRAIN_EXAMPLE = "dmrifit train data/participants.tsv --algorithm LR --strategy s2s --out model.dmrifit"
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

    x, y, z = (round(number) for number in floats("--shape", shape, 3))
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


@app.command(epilog=f"\b\nExample:\n  {TRAIN_EXAMPLE}")
def train(
    table: Annotated[Path, typer.Argument(metavar="PARTICIPANTS", help="Table of scans, tab- or comma-separated.")],
    out: Annotated[Path, typer.Option(help="Model file to write, by custom with the ending .dmrifit.")],
    algorithm: Annotated[str, typer.Option(help="LR, RFR, ETR, GBR, slNN or mlNN.")] = "LR",
    strategy: Annotated[str, typer.Option(metavar="s2s|m2m", help="Signals to signals, or maps to maps.")] = "s2s",
    model: Annotated[str, typer.Option(help="Model of the maps.")] = "t2-ivim-kurtosis",
    n_b: Annotated[
        int, typer.Option(min=2, help="b-values of the clinical images: the lowest at the shortest echo time.")
    ] = 5,
    train_mask: Annotated[str, typer.Option(metavar="body|lesion", help="Voxels to train on.")] = "body",
    max_voxels: Annotated[
        int, typer.Option(min=0, help="Train on so many voxels of a scan, drawn at random; 0 for all of them.")
    ] = 250,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same model.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file of this name.")] = False,
) -> None:
    """
    Train a predictor of an advanced protocol on all patients of a table, and save it.

    Its scores are those that dmrifit benchmark finds for the same settings; the file is for dmrifit predict.
    """
    import numpy as np

    from dmrifit.persistence import save_model

    if out.exists() and not overwrite:
        msg = f"{out} exists already; choose another name, or --overwrite"
        raise FileExistsError(msg)
    if not out.parent.is_dir():
        msg = f"{out} cannot be written: there is no folder {out.parent}"
        raise FileNotFoundError(msg)
    estimator = _estimators([algorithm], [strategy], model)[f"{algorithm} {strategy}"]
    cohorts = _cohorts(table)
    protocol = next(iter(cohorts.values())).scans[0].protocol
    source = protocol.take(protocol.clinical(n_b))
    tables = [
        cohort.arrays(source, protocol, mask=train_mask, max_voxels=max_voxels or None, random_state=seed)
        for cohort in cohorts.values()
    ]
    estimator.set_params(source=source, target=protocol, random_state=seed)
    estimator.fit(np.concatenate([one.X for one in tables]), np.concatenate([one.Y for one in tables]))
    save_model(estimator, out)
    patients = sum(len(cohort.patients) for cohort in cohorts.values())
    typer.echo(f"trained on {sum(len(one) for one in tables)} voxels of {patients} patients: {out}")
    typer.echo(f"it predicts {len(protocol)} images from {', '.join(source.labels)}")


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
    from dmrifit.evaluation import compare
    from dmrifit.reporting import write_report

    if not (find_spec("matplotlib") and find_spec("jinja2")):
        msg = 'the report needs more packages: pip install "dmrifit[report]"'
        raise ImportError(msg)
    estimators = _estimators(words(algorithms), words(strategies), model)
    cohorts = _cohorts(table)
    evaluation = compare(
        estimators,
        cohorts,
        train_on=words(train_on) if train_on else _ways_to_train(cohorts),
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
    for word, allowed, what in (
        *((name, known, "algorithm") for name in algorithms),
        *((name, tuple(classes), "strategy") for name in strategies),
    ):
        if word not in allowed:
            msg = f"there is no {what} {word!r}; choose of {', '.join(allowed)}"
            raise ValueError(msg)
    names = dict.fromkeys([*algorithms, CONSTANT])
    return {f"{name} {strategy}": classes[strategy](name, model=model) for strategy in strategies for name in names}


def _cohorts(table: Path) -> dict[str, Any]:
    """Read a table of participants, and say whom it leaves out."""
    from dmrifit.cohort import Cohort

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cohorts = Cohort.read(table)
    for warning in caught:
        say(str(warning.message))
    return cohorts


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
        say(f"training in one cohort for another is left out: protocols differ ({missing})")
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
