"""Commands that work on cohorts: simulate, train, benchmark, report."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dmrifit.cli.console import ModelFileOption
from dmrifit.cli.options import floats, say, whole_numbers, words

if TYPE_CHECKING:
    from dmrifit.cohort.cohort import Cohort
    from dmrifit.study.comparison import Evaluation

__all__ = ["EXAMPLES", "benchmark", "report", "simulate", "train"]


def simulate(
    out: Annotated[
        Path, typer.Option(help="Folder for the images and the table participants.tsv.")
    ],
    patients: Annotated[int, typer.Option(min=1, help="Patients in each cohort.")] = 16,
    preset: Annotated[
        str,
        typer.Option(
            metavar="NAME,…", help="Cohorts to simulate: cohort1 (1.5 T), cohort2 (3 T)."
        ),
    ] = "cohort1,cohort2",
    same_protocol: Annotated[
        bool,
        typer.Option(
            "--same-protocol",
            help="Measure all cohorts with the protocol of the first, so that one can train for the other.",
        ),
    ] = False,
    difficulty: Annotated[
        str, typer.Option(metavar="mixed|easy", help="How much patients differ, and noise.")
    ] = "mixed",
    template: Annotated[
        str,
        typer.Option(
            metavar="both|abdomen|pelvis", help="Part of the body; both draws it for each patient."
        ),
    ] = "both",
    snr: Annotated[
        float | None,
        typer.Option(
            help="Signal-to-noise ratio in the liver at the lowest b and TE; by default of the difficulty."
        ),
    ] = None,
    artifacts: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[=STRENGTH],…",
            help="Of shift (voxels), gibbs (share of frequencies lost), signal_loss (largest share); none by default.",
        ),
    ] = None,
    latent_corr: Annotated[
        float,
        typer.Option(
            metavar="0…1", help="Correlation of parameters that share a texture in the tissue."
        ),
    ] = 0.6,
    gain_variation: Annotated[
        float,
        typer.Option(
            metavar="CV", help="Coefficient of variation of the receiver's gain between patients."
        ),
    ] = 0.25,
    shape: Annotated[str, typer.Option(metavar="X,Y,Z", help="Voxels of each image.")] = "48,48,8",
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same patients.")] = 0,
    jobs: Annotated[
        int, typer.Option(help="Patients made at the same time; −1 for one on each core.")
    ] = 1,
) -> None:
    """
    Write synthetic cohorts of abdominal and pelvic tumors: images, masks, true maps and a table of participants.

    cohort1 is simulated at 1.5 T and cohort2 at 3 T, each with the study's protocol of that name.
    """
    from dmrifit._utils.threads import check_jobs
    from dmrifit.engine.protocol import Protocol
    from dmrifit.simulate.body_phantoms import simulate_cohort

    check_jobs(jobs, "--jobs")
    names = words(preset)
    if not names:
        raise ValueError("--preset names no cohort; choose of cohort1, cohort2")
    x, y, z = whole_numbers("--shape", shape, 3)
    first = Protocol.preset(names[0])
    made = [
        simulate_cohort(
            first if same_protocol else Protocol.preset(name),
            patients,
            difficulty=difficulty,
            shape=(x, y, z),
            template=template,
            name=name,
            field={"cohort1": 1.5, "cohort2": 3.0}[name],
            snr=snr,
            latent_corr=latent_corr,
            gain_variation=gain_variation,
            artifacts=_artifacts(artifacts),
            n_jobs=jobs,
            random_state=seed,
        )
        for name in dict.fromkeys(names)
    ]
    table = [cohort.write(out) for cohort in made][-1]
    typer.echo(f"{sum(map(len, made))} synthetic patients: {table}")


def train(
    table: Annotated[
        Path,
        typer.Argument(metavar="PARTICIPANTS", help="Table of scans, tab- or comma-separated."),
    ],
    out: ModelFileOption,
    algorithm: Annotated[
        str, typer.Option(help="LR, RFR, ETR, GBR, slNN, mlNN, CNN or ViT.")
    ] = "LR",
    strategy: Annotated[
        str, typer.Option(metavar="s2s|m2m", help="Signals to signals, or maps to maps.")
    ] = "s2s",
    loss: Annotated[
        str | None,
        typer.Option(
            metavar="mean|median", help="What m2m predicts of a parameter's distribution."
        ),
    ] = None,
    target_scale: Annotated[
        str | None,
        typer.Option(
            metavar="linear|log", help="Whether m2m learns parameters or their logarithms."
        ),
    ] = None,
    patch_shape: Annotated[
        str | None,
        typer.Option(
            metavar="X,Y,Z", help="Neighborhood that is looked at; 3,3,1 for CNN by default."
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="Model of the maps.")] = "t2-ivim-kurtosis",
    cohorts: Annotated[
        str | None, typer.Option(metavar="NAME,…", help="Train on these cohorts only.")
    ] = None,
    n_b: Annotated[
        int,
        typer.Option(
            min=2, help="b-values of the clinical images: the lowest at the shortest echo time."
        ),
    ] = 5,
    train_mask: Annotated[
        str, typer.Option(metavar="body|lesion", help="Voxels to train on.")
    ] = "body",
    max_voxels: Annotated[
        int,
        typer.Option(
            min=0, help="Train on so many voxels of a scan, drawn at random; 0 for all of them."
        ),
    ] = 250,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same model.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file of this name.")
    ] = False,
) -> None:
    """
    Train a predictor of an advanced protocol on all patients of a table, and save it.

    Its scores are those that dmrifit benchmark finds for the same settings; the file is for dmrifit predict.
    """
    import numpy as np

    from dmrifit.cohort.patches import check_reach
    from dmrifit.model_files.model_file import save_model
    from dmrifit.predict.base import resolve_patch_shape

    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists already; choose another name, or --overwrite")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out} cannot be written: there is no folder {out.parent}")
    _check_names([algorithm], [strategy])
    _check_extras([algorithm], remedy="choose another --algorithm")
    options: dict[str, Any] = {"model": model}
    if patch_shape is not None:
        options["patch_shape"] = whole_numbers("--patch-shape", patch_shape, 3)
    given = {"loss": loss, "target_scale": target_scale}
    options |= {name: value for name, value in given.items() if value is not None}
    if strategy == "s2s" and (loss or target_scale):
        raise ValueError(
            "--loss and --target-scale are options of --strategy m2m, which learns parameters; s2s learns signals"
        )
    estimator = _strategies()[strategy](algorithm, **options)
    chosen = _chosen(_cohorts(table), cohorts)
    protocol = next(iter(chosen.values())).scans[0].protocol
    source = protocol.take(protocol.clinical(n_b))
    estimator.set_params(source=source, target=protocol, random_state=seed)
    estimator.check_parameters()
    if (patches := resolve_patch_shape(estimator)) is not None:
        check_reach(patches, (scan.shape for cohort in chosen.values() for scan in cohort.scans))
    tables = [
        cohort.arrays(
            source,
            protocol,
            mask=train_mask,  # type: ignore[arg-type]
            patch_shape=patches,
            max_voxels=max_voxels or None,
            random_state=seed,
        )
        for cohort in chosen.values()
    ]
    estimator.fit(
        np.concatenate([one.X for one in tables]), np.concatenate([one.Y for one in tables])
    )
    save_model(estimator, out)
    patients = sum(len(cohort.patients) for cohort in chosen.values())
    typer.echo(
        f"trained on {sum(len(one) for one in tables)} voxels of {patients} patients: {out}"
    )
    typer.echo(f"it predicts {len(protocol)} images from {', '.join(source.labels)}")
    if any(cohort.synthetic for cohort in chosen.values()):
        typer.echo("trained on synthetic data: no clinical use")


def benchmark(
    table: Annotated[
        Path,
        typer.Argument(metavar="PARTICIPANTS", help="Table of scans, tab- or comma-separated."),
    ],
    out: Annotated[
        Path, typer.Option(help="Folder for tables and report; an interrupted run goes on there.")
    ],
    algorithms: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…",
            help="Of LR, RFR, ETR, GBR, slNN, mlNN, CNN, ViT; all but ViT by default.",
        ),
    ] = None,
    without: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…", help="Algorithms to leave out, such as CNN, which needs torch."
        ),
    ] = None,
    strategies: Annotated[
        str, typer.Option(metavar="s2s,m2m", help="Signals to signals, maps to maps.")
    ] = "s2s,m2m",
    model: Annotated[str, typer.Option(help="Model of the maps.")] = "t2-ivim-kurtosis",
    sizes: Annotated[
        str | None,
        typer.Option(
            "--sizes",
            "--n-train",
            metavar="N,…",
            help="Numbers of training patients: several make a learning curve (1,2,3,5,8,10,12,15). By default all "
            "patients but the held-out one.",
        ),
    ] = None,
    train_on: Annotated[
        str | None,
        typer.Option(
            metavar="same,other,pooled",
            help="Cohorts to train on; by default the same, and the other ones too if protocols agree or with "
            "--resynthesize.",
        ),
    ] = None,
    resynthesize: Annotated[
        bool,
        typer.Option(
            "--resynthesize",
            help="Where protocols differ, compute the contrasts that training images of other cohorts lack through "
            "the model fitted to theirs.",
        ),
    ] = False,
    train_mask: Annotated[
        str, typer.Option(metavar="body|lesion", help="Voxels to train on.")
    ] = "body",
    score_mask: Annotated[
        str, typer.Option(metavar="lesion|body", help="Voxels to score.")
    ] = "lesion",
    max_voxels: Annotated[
        int,
        typer.Option(
            min=0, help="Train on so many voxels of a scan, drawn at random; 0 for all of them."
        ),
    ] = 250,
    repeats: Annotated[int, typer.Option(min=1, help="Repeat with other draws and seeds.")] = 1,
    controls: Annotated[
        bool,
        typer.Option(
            help="Score a constant, learning from shuffled targets and the perfect answer too."
        ),
    ] = True,
    jobs: Annotated[
        int, typer.Option(help="Models trained at the same time; −1 for one on each core.")
    ] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same table.")] = 0,
) -> None:
    """
    Compare predictors of an advanced protocol on a table of patients, leaving one patient out.

    The table has the columns patient, cohort, image, mask, lesion, bval, te; paths are relative to it. Writes
    scores.csv, signals.csv, predictions, figures and report.html.
    """
    from dmrifit._utils.threads import check_jobs
    from dmrifit.predict.algorithms import ALGORITHMS
    from dmrifit.study.comparison import compare
    from dmrifit.study.report.reporting import write_report

    check_jobs(jobs, "--jobs")
    _check_report()
    left_out = words(without or "")
    names = words(algorithms) if algorithms is not None else list(ALGORITHMS)
    _check_names([*names, *left_out], words(strategies))
    names = [name for name in names if name not in left_out]
    if not names:
        raise ValueError(
            "no algorithm is left to compare; name one by --algorithms, or fewer by --without"
        )
    _check_extras(names, remedy="or leave it out: --without {name}")
    estimators = {
        f"{name} {strategy}": _strategies()[strategy](name, model=model)
        for strategy in words(strategies)
        for name in names
    }
    cohorts = _cohorts(table)
    ways = words(train_on) if train_on else _ways_to_train(cohorts, resynthesize=resynthesize)
    try:
        evaluation = compare(
            estimators,
            cohorts,
            train_on=ways,
            train_mask=train_mask,  # type: ignore[arg-type]
            score_mask=score_mask,  # type: ignore[arg-type]
            n_train=whole_numbers("--sizes", sizes) if sizes else None,
            n_repeats=repeats,
            max_voxels=max_voxels or None,
            controls=controls,
            resynthesize=resynthesize,
            out=out,
            n_jobs=jobs,
            random_state=seed,
        )
    except KeyboardInterrupt:
        if out.is_dir():
            say(f"finished work is kept in {out}; the same command goes on from there")
        raise
    except RuntimeError as error:
        raise ValueError(f"{error}; finished work is kept in {out}") from error
    _finish_report([evaluation], write_report(evaluation, out))


def report(
    studies: Annotated[
        list[Path],
        typer.Argument(
            metavar="FOLDER…", help="What dmrifit benchmark made; the first is shown in full."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the report; by default that of the first comparison."),
    ] = None,
) -> None:
    """
    Write the report of finished comparisons again.

    Several comparisons of the same question, with other seeds, training regions or difficulties, stand side by side
    in one table.
    """
    from dmrifit.study.comparison import Evaluation
    from dmrifit.study.report.reporting import write_report

    _check_report()
    evaluations = [Evaluation.read(study) for study in studies]
    _finish_report(evaluations, write_report(evaluations, studies[0] if out is None else out))


EXAMPLES: dict[Callable[..., None], str] = {
    simulate: "dmrifit simulate --out data --patients 8 --seed 1",
    train: "dmrifit train data/participants.tsv --algorithm LR --strategy s2s --out model.dmrifit",
    benchmark: "dmrifit benchmark data/participants.tsv --out study --without CNN --sizes 1,2,3,5,7",
    report: "dmrifit report study",
}


def _artifacts(text: str | None) -> list[str] | dict[str, float] | None:
    """Read names of artifacts, with or without strengths."""
    if not text:
        return None
    found = [word.partition("=") for word in words(text)]
    if not any(equals for _, equals, _ in found):
        return [name for name, _, _ in found]
    if not all(equals for _, equals, _ in found):
        raise ValueError(
            f"--artifacts {text}: give a strength to all of them, NAME=STRENGTH, or to none"
        )
    return {name: floats(f"--artifacts {name}", value, 1)[0] for name, _, value in found}


def _check_report() -> None:
    if not (find_spec("matplotlib") and find_spec("jinja2")):
        raise ImportError('the report needs more packages: pip install "dmrifit[report]"')


def _strategies() -> dict[str, Any]:
    from dmrifit.predict.strategies import MapsToMaps, SignalToSignal

    return {"s2s": SignalToSignal, "m2m": MapsToMaps}


def _check_names(algorithms: list[str], strategies: list[str]) -> None:
    """Refuse names that do not exist, before anything is read."""
    from dmrifit.predict.algorithms import ALGORITHMS, PATCHWISE
    from dmrifit.predict.controls import CONSTANT

    known = tuple(dict.fromkeys([*ALGORITHMS, *PATCHWISE, CONSTANT]))
    for word, allowed, what in (
        *((name, known, "algorithm") for name in algorithms),
        *((name, tuple(_strategies()), "strategy") for name in strategies or [""]),
    ):
        if word not in allowed:
            raise ValueError(f"there is no {what} {word!r}; choose of {', '.join(allowed)}")


def _check_extras(algorithms: list[str], *, remedy: str) -> None:
    """Find out before anything is read which libraries are missing."""
    from dmrifit.predict.algorithms import build_regressor, default_patch_shape

    for name in algorithms:
        try:
            build_regressor(name, n_targets=2, patch_shape=default_patch_shape(name))
        except ImportError as error:
            raise ImportError(f"algorithm {name}: {error}; {remedy.format(name=name)}") from error


def _cohorts(table: Path) -> dict[str, Cohort]:
    """Read a table of participants, and say whom it leaves out."""
    from dmrifit.cohort.cohort import Cohort

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cohorts = Cohort.read(table)
    for warning in caught:
        say(str(warning.message))
    return cohorts


def _chosen(cohorts: dict[str, Cohort], names: str | None) -> dict[str, Cohort]:
    if names is None:
        return cohorts
    unknown = [name for name in words(names) if name not in cohorts]
    if unknown or not words(names):
        raise ValueError(
            f"there is no cohort {', '.join(unknown) or names!r}; the table has {', '.join(cohorts)}"
        )
    return {name: cohorts[name] for name in words(names)}


def _ways_to_train(cohorts: Mapping[str, Cohort], *, resynthesize: bool) -> list[str]:
    """Cross cohorts where their protocols agree, and say where they do not."""
    from dmrifit.engine.resynthesis import missing_contrasts

    protocols = {name: cohort.scans[0].protocol for name, cohort in cohorts.items()}
    if len(protocols) < 2:
        return ["same"]
    for one, protocol in protocols.items():
        for other, wanted in protocols.items():
            missing = missing_contrasts(wanted, protocol)
            if missing and not resynthesize:
                say(
                    f"training in one cohort for another is left out: protocols differ ({one} lacks {len(missing)} of "
                    f"the contrasts of {other}, such as {wanted.labels[missing[0]]}); --resynthesize computes them"
                )
                return ["same"]
    return ["same", "other"]


def _finish_report(evaluations: list[Evaluation], page: Path) -> None:
    """Print the summary of the first comparison, and where the page is."""
    from dmrifit.study.report.reporting import summarize

    summary = summarize(evaluations[0])
    columns = {
        "train_on": "trained on",
        "n_train": "N",
        "cohort": "cohort",
        "strategy": "strategy",
    }
    table = summary[[*columns, "algorithm"]].rename(columns=columns)
    table["|BI| (%)"] = (100 * summary["abs_bias"]).map("{:.1f}".format)
    table["DI (%)"] = (100 * summary["dispersion"]).map("{:.1f}".format)
    table["r"] = summary["pearson"].map("{:.2f}".format)
    typer.echo(table.to_string(index=False))
    if any(one.synthetic for one in evaluations):
        typer.echo("synthetic data: no clinical result")
    typer.echo(f"report: {page}")
