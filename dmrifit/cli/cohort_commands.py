"""Commands on cohorts: simulate, train, benchmark, report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from dmrifit._utils.counts import counted, first_few
from dmrifit.cli.case_runs import can_draw
from dmrifit.cli.console import ModelFileOption, ModelSeedOption, OverwriteOption, check_output
from dmrifit.cli.options import floats, say, whole_numbers, words
from dmrifit.cli.workers import ClusterOption, scheduler

if TYPE_CHECKING:
    from dmrifit.cohort.cohort import Cohort
    from dmrifit.engine.protocol import Protocol
    from dmrifit.study.comparison import Evaluation

__all__ = ["EXAMPLES", "benchmark", "report", "simulate", "train"]

ParticipantsArgument: TypeAlias = Annotated[
    Path,
    typer.Argument(
        metavar="PARTICIPANTS",
        help="Table of scans, or of mean signals of regions (columns patient, region, b, te, "
        "signal), tab- or comma-separated.",
    ),
]
ModelOption: TypeAlias = Annotated[str, typer.Option(help="Signal model of the maps.")]
TrainMaskOption: TypeAlias = Annotated[
    str, typer.Option(metavar="body|lesion", help="Voxels to train on.")
]
MaxVoxelsOption: TypeAlias = Annotated[
    int,
    typer.Option(min=0, help="Random sample of voxels per scan to train on; 0 for all."),
]
SourceOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="B,…",
        help="b-values of the inputs (s/mm²), at the shortest TE; by default the five lowest.",
    ),
]

_FIELDS = {"cohort1": 1.5, "cohort2": 3.0}  # T


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
            help="Use the first cohort's protocol for all, so that one can train for another.",
        ),
    ] = False,
    difficulty: Annotated[
        str, typer.Option(metavar="mixed|easy", help="Variation between patients, and noise.")
    ] = "mixed",
    template: Annotated[
        str,
        typer.Option(
            metavar="both|abdomen|pelvis", help="Body region; both draws one per patient."
        ),
    ] = "both",
    snr: Annotated[
        float | None,
        typer.Option(
            help="SNR in the liver at the lowest b and TE; by default set by the difficulty."
        ),
    ] = None,
    artifacts: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[=STRENGTH],…",
            help="shift (voxels), gibbs (fraction of frequencies lost), signal_loss (largest "
            "fraction); none by default.",
        ),
    ] = None,
    truth: Annotated[
        str,
        typer.Option(
            metavar="formula|walk",
            help="Origin of the signals: the model's formula, or random walks of water.",
        ),
    ] = "formula",
    latent_corr: Annotated[
        float,
        typer.Option(metavar="0…1", help="Correlation of parameters within tissue texture."),
    ] = 0.6,
    gain_variation: Annotated[
        float,
        typer.Option(
            metavar="CV", help="Coefficient of variation of receiver gain between patients."
        ),
    ] = 0.25,
    shape: Annotated[str, typer.Option(metavar="X,Y,Z", help="Voxels of each image.")] = "48,48,8",
    seed: Annotated[int, typer.Option(min=0, help="Random seed: same seed, same patients.")] = 0,
    jobs: Annotated[
        int, typer.Option(help="Patients simulated in parallel; −1 for one per core.")
    ] = 1,
) -> None:
    """
    Write synthetic cohorts of abdominal and pelvic tumors: images, masks, true maps and a table.

    cohort1 is simulated at 1.5 T and cohort2 at 3 T, each with the study's protocol of that name.
    """
    from dmrifit._utils.threads import check_jobs
    from dmrifit.engine.protocol import Protocol
    from dmrifit.io.atomic_files import check_room
    from dmrifit.io.nifti import bytes_of_maps
    from dmrifit.simulate.body_phantoms import simulate_cohort

    check_jobs(jobs, "--jobs")
    names = words(preset)
    if not names:
        raise ValueError("--preset names no cohort; choose from cohort1, cohort2")
    x, y, z = whole_numbers("--shape", shape, 3)
    # A cohort named twice would be written over itself.
    names = list(dict.fromkeys(names))
    protocols = {name: Protocol.preset(name) for name in names}
    if same_protocol:
        protocols = dict.fromkeys(names, protocols[names[0]])
    n_images = patients * sum(map(len, protocols.values()))
    check_room(out, bytes_of_maps(n_images, (x, y, z), None))
    cohorts = []
    for name, protocol in protocols.items():
        cohort = simulate_cohort(
            protocol,
            patients,
            difficulty=difficulty,
            shape=(x, y, z),
            template=template,
            name=name,
            field=_FIELDS[name],
            snr=snr,
            latent_corr=latent_corr,
            gain_variation=gain_variation,
            artifacts=_artifacts(artifacts),
            truth=truth,
            n_jobs=jobs,
            random_state=seed,
        )
        cohorts.append(cohort)
    # Only now, so that a wrong option leaves no cohort behind.
    for cohort in cohorts:
        table = cohort.write(out)
    typer.echo(f"{counted(sum(map(len, cohorts)), 'synthetic patient')}: {table}")


def train(
    table: ParticipantsArgument,
    out: ModelFileOption,
    algorithm: Annotated[
        str, typer.Option(help="LR, RFR, ETR, GBR, slNN, mlNN, CNN or ViT.")
    ] = "LR",
    strategy: Annotated[
        str, typer.Option(metavar="s2s|m2m", help="Signals to signals, or maps to maps.")
    ] = "s2s",
    loss: Annotated[
        str | None,
        typer.Option(metavar="mean|median", help="Statistic of a parameter that m2m predicts."),
    ] = None,
    target_scale: Annotated[
        str | None,
        typer.Option(metavar="linear|log", help="Learn parameters or their logarithms (m2m)."),
    ] = None,
    patch_shape: Annotated[
        str | None,
        typer.Option(
            metavar="X,Y,Z",
            help="Neighborhood as input; by default 3,3,1 for CNN, else single voxels.",
        ),
    ] = None,
    model: ModelOption = "t2-ivim-kurtosis",
    cohorts: Annotated[
        str | None, typer.Option(metavar="NAME,…", help="Train on these cohorts only.")
    ] = None,
    n_b: Annotated[
        int,
        typer.Option(
            min=2,
            help="Number of b-values of the clinical protocol: the lowest, at the shortest TE.",
        ),
    ] = 5,
    source_b: SourceOption = None,
    train_mask: TrainMaskOption = "body",
    max_voxels: MaxVoxelsOption = 250,
    coverage: Annotated[
        float,
        typer.Option(
            help="Share of voxels that the intervals of predicted maps shall hold, learned by "
            "training on parts of the patients; 0 for no intervals, in a sixth of the time."
        ),
    ] = 0.9,
    seed: ModelSeedOption = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """
    Train a predictor of an advanced protocol on all patients of a table, and save it.

    Its scores are those of dmrifit benchmark with the same settings; the file is for dmrifit
    predict. Cohorts of other protocols are trained on apart (--cohorts). LR takes seconds, CNN
    longest; images are read once, one patient at a time.
    """
    import numpy as np

    from dmrifit.cohort.cohort import Cohort, in_order
    from dmrifit.cohort.patches import check_reach
    from dmrifit.model_files.model_file import save_model
    from dmrifit.predict.base import resolve_patch_shape
    from dmrifit.predict.conformal import FEWEST_PATIENTS, ConformalIntervals, strategy_of
    from dmrifit.study.contestants import check_unseen

    # All that can be wrong with the options is found before scans are read.
    check_output(out, overwrite)
    if not 0 <= coverage < 1:
        raise ValueError(f"--coverage {coverage:g} must lie between 0 and 1, as 0.9; 0 for none")
    _check_names([algorithm], [strategy])
    _check_extras([algorithm], remedy="choose another --algorithm")
    options: dict[str, Any] = {"model": model}
    if patch_shape is not None:
        options["patch_shape"] = whole_numbers("--patch-shape", patch_shape, 3)
    if loss is not None:
        options["loss"] = loss
    if target_scale is not None:
        options["target_scale"] = target_scale
    if strategy == "s2s" and (loss or target_scale):
        raise ValueError(
            "--loss and --target-scale are options of --strategy m2m, which learns parameters; "
            "s2s learns signals"
        )
    estimator = _strategies()[strategy](algorithm, **options)
    # The order of rows in the table must not change the model.
    selected = sorted(_select(Cohort.read(table), cohorts), key=lambda cohort: cohort.name)
    training = [in_order(cohort) for cohort in selected]
    scans = [scan for cohort in training for scan in cohort.scans]
    protocol = scans[0].protocol
    _check_one_protocol(training)
    _check_echo_times(model, protocol, table)
    if source_b is None:
        source = protocol.take(protocol.clinical(n_b))
    else:
        source = _source(protocol, source_b)
    check_unseen(source, protocol)
    estimator.set_params(source=source, target=protocol, random_state=seed)
    estimator.check_parameters()
    patches = resolve_patch_shape(estimator)
    if patches is not None:
        check_reach(patches, [scan.shape for scan in scans])
    inputs, targets, patients = [], [], []
    for cohort in training:
        sample = cohort.arrays(
            source,
            protocol,
            mask=train_mask,  # type: ignore[arg-type]
            patch_shape=patches,
            max_voxels=max_voxels or None,
            random_state=seed,
        )
        inputs.append(sample.X)
        targets.append(sample.Y)
        patients.append(sample.groups)
    n_patients = sum(len(cohort.patients) for cohort in training)
    X, Y = np.concatenate(inputs), np.concatenate(targets)
    groups = np.concatenate(patients)
    if coverage and n_patients < FEWEST_PATIENTS:
        typer.echo(f"no intervals: they need {FEWEST_PATIENTS} patients, not {n_patients}")
    elif coverage:
        estimator = ConformalIntervals(estimator, coverage=coverage, random_state=seed)
    if isinstance(estimator, ConformalIntervals):
        estimator.fit(X, Y, groups)
    else:
        estimator.fit(X, Y)
    is_synthetic = any(cohort.synthetic for cohort in training)
    strategy_of(estimator).synthetic_ = is_synthetic
    save_model(estimator, out)
    n_voxels = len(X)
    typer.echo(
        f"trained on {counted(n_voxels, 'voxel')} of {counted(n_patients, 'patient')}: {out}"
    )
    typer.echo(f"it predicts {counted(len(protocol), 'image')} from {', '.join(source.labels)}")
    if isinstance(estimator, ConformalIntervals):
        held = estimator.calibration_.groupby("parameter", sort=False)["coverage"].mean()
        shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in held.items())
        typer.echo(f"intervals: {estimator.guarantee()}; held of training patients: {shares}")
    if is_synthetic:
        typer.echo("trained on synthetic data: no clinical use")


def benchmark(
    table: ParticipantsArgument,
    out: Annotated[
        Path, typer.Option(help="Folder for tables and report; an interrupted run resumes there.")
    ],
    algorithms: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…",
            help="From LR, RFR, ETR, GBR, slNN, mlNN, CNN, ViT; by default all but ViT.",
        ),
    ] = None,
    without: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…", help="Algorithms to leave out, such as CNN, which needs torch."
        ),
    ] = None,
    strategies: Annotated[
        str | None,
        typer.Option(
            metavar="s2s,m2m",
            help="Signals to signals, maps to maps; by default both, or s2s alone where the "
            "inputs lack the b-values of clinical maps.",
        ),
    ] = None,
    model: ModelOption = "t2-ivim-kurtosis",
    source_b: SourceOption = None,
    sizes: Annotated[
        str | None,
        typer.Option(
            "--sizes",
            "--n-train",
            metavar="N,…",
            help="Numbers of training patients; several give a learning curve, such as 1,2,3,5,8. "
            "By default all patients but the held-out one.",
        ),
    ] = None,
    train_on: Annotated[
        str | None,
        typer.Option(
            metavar="same,other,pooled",
            help="Cohorts to train on; by default same, and also other if protocols agree or with "
            "--resynthesize.",
        ),
    ] = None,
    resynthesize: Annotated[
        bool,
        typer.Option(
            "--resynthesize",
            help="Where protocols differ, compute missing contrasts of training images from the "
            "model fitted to them.",
        ),
    ] = False,
    train_mask: TrainMaskOption = "body",
    score_mask: Annotated[
        str, typer.Option(metavar="lesion|body", help="Voxels to score.")
    ] = "lesion",
    max_voxels: MaxVoxelsOption = 250,
    repeats: Annotated[int, typer.Option(min=1, help="Repeats with other samples and seeds.")] = 1,
    controls: Annotated[
        bool,
        typer.Option(
            help="Also score controls: a constant, shuffled targets, copies of inputs, perfect "
            "predictions, and of synthetic patients the truth and a second measurement."
        ),
    ] = True,
    jobs: Annotated[
        int, typer.Option(help="Models trained in parallel; −1 for one per core.")
    ] = 1,
    cluster: ClusterOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed: same seed, same table.")] = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """
    Compare predictors of an advanced protocol on a table of patients, leaving one patient out.

    The table has the columns patient, cohort, image, mask, lesion, bval and te, with paths
    relative to it (dmrifit table makes one of a BIDS folder). Writes scores.csv, signals.csv,
    predictions, figures and report.html.

    Six algorithms on 16 synthetic patients at three sizes take two cores less than three minutes;
    memory holds the sampled voxels of all patients. CNN takes longest. A bar, or lines in a pipe,
    tell the time left.
    """
    from dmrifit._utils.threads import check_jobs
    from dmrifit.cohort.cohort import Cohort
    from dmrifit.predict.algorithms import ALGORITHMS
    from dmrifit.study.comparison import compare
    from dmrifit.study.report.reporting import write_report

    check_jobs(jobs, "--jobs")
    _check_report()
    excluded = words(without or "")
    names = list(ALGORITHMS)
    if algorithms is not None:
        names = words(algorithms)
    strategy_names = list(_strategies())
    if strategies is not None:
        strategy_names = words(strategies)
    _check_names([*names, *excluded], strategy_names)
    names = [name for name in names if name not in excluded]
    if not names:
        raise ValueError(
            "no algorithm is left to compare; name one by --algorithms, or fewer by --without"
        )
    _check_extras(names, remedy="or leave it out: --without {name}")
    _check_study(out, names, strategy_names, overwrite=overwrite)
    # Before cohorts are read, which takes longer than all checks of options.
    estimators = {}
    for strategy in strategy_names:
        for name in names:
            estimators[f"{name} {strategy}"] = _strategies()[strategy](name, model=model)
    cohorts = Cohort.read(table)
    source = None
    if source_b is not None:
        source = _source(next(iter(cohorts.values())).scans[0].protocol, source_b)
    for cohort in cohorts.values():
        _check_echo_times(model, cohort.scans[0].protocol, table)
    if strategies is None and not _has_clinical_maps(cohorts, source):
        estimators = {f"{name} s2s": estimators[f"{name} s2s"] for name in names}
    for estimator in estimators.values():
        estimator.set_params(source=source)
    training_cohorts = _training_cohorts(train_on, cohorts, resynthesize=resynthesize)
    try:
        with scheduler(cluster):
            evaluation = compare(
                estimators,
                cohorts,
                train_on=training_cohorts,
                train_mask=train_mask,  # type: ignore[arg-type]
                score_mask=score_mask,  # type: ignore[arg-type]
                n_train=whole_numbers("--sizes", sizes) if sizes else None,
                n_repeats=repeats,
                max_voxels=max_voxels or None,
                controls=controls,
                resynthesize=resynthesize,
                out=out,
                n_jobs=None if cluster else jobs,
                random_state=seed,
            )
    except KeyboardInterrupt:
        if out.is_dir():
            say(f"finished work is kept in {out}; the same command resumes there")
        raise
    except RuntimeError as error:
        raise ValueError(f"{error}; finished work is kept in {out}") from error
    _finish_report([evaluation], write_report(evaluation, out))


def report(
    studies: Annotated[
        list[Path],
        typer.Argument(
            metavar="FOLDER…", help="Folders from dmrifit benchmark; the first is shown in full."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the report; by default that of the first comparison."),
    ] = None,
) -> None:
    """
    Write the report of finished comparisons again.

    Comparisons with other seeds, training masks or difficulties are listed side by side in one
    table.
    """
    from dmrifit.study.comparison import Evaluation
    from dmrifit.study.report.reporting import write_report

    _check_report()
    evaluations = [Evaluation.read(study) for study in studies]
    for study, evaluation in zip(studies, evaluations, strict=True):
        # Of earlier versions, which compared copies of inputs.
        if evaluation.signals.empty:
            raise ValueError(
                f"{study}: the inputs were all contrasts of the target, so that nothing was "
                "predicted; compare again with fewer inputs (--source-b)"
            )
    _finish_report(evaluations, write_report(evaluations, studies[0] if out is None else out))


#: Commands, each with the example that its help shows.
EXAMPLES: dict[Callable[..., None], str] = {
    simulate: "dmrifit simulate --out data --patients 8 --seed 1",
    train: "dmrifit train data/participants.tsv --algorithm LR --strategy s2s --out model.dmrifit",
    benchmark: "dmrifit benchmark data/participants.tsv --out study --without CNN --sizes "
    "1,2,3,5,7",
    report: "dmrifit report study",
}


def _artifacts(text: str | None) -> list[str] | dict[str, float] | None:
    """Read names of artifacts, with or without strengths."""
    if not text:
        return None
    names = words(text)
    strengths = {}
    for word in names:
        name, equals, strength = word.partition("=")
        if equals:
            strengths[name] = floats(f"--artifacts {name}", strength, 1)[0]
    if not strengths:
        return names
    if not all("=" in word for word in names):
        raise ValueError(
            f"--artifacts {text}: give a strength to all of them, NAME=STRENGTH, or to none"
        )
    return strengths


def _check_report() -> None:
    if not can_draw():
        raise ImportError('the report needs more packages: pip install "dmrifit[report]"')


def _strategies() -> dict[str, Any]:
    from dmrifit.predict.strategies import MapsToMaps, SignalToSignal

    return {"s2s": SignalToSignal, "m2m": MapsToMaps}


def _check_names(algorithms: list[str], strategies: list[str]) -> None:
    """Refuse unknown names before anything is read."""
    from dmrifit.predict.algorithms import REGRESSORS

    _check_choices(algorithms, REGRESSORS, "algorithm")
    _check_choices(strategies or [""], _strategies(), "strategy")


def _check_choices(names: list[str], choices: Mapping[str, Any], role: str) -> None:
    for name in names:
        if name not in choices:
            raise ValueError(f"there is no {role} {name!r}; choose from {', '.join(choices)}")


def _check_extras(algorithms: list[str], *, remedy: str) -> None:
    """Check before anything is read that the libraries of algorithms are installed."""
    from dmrifit.predict.algorithms import build_regressor, default_patch_shape

    for name in algorithms:
        try:
            build_regressor(name, n_targets=2, patch_shape=default_patch_shape(name))
        except ImportError as error:
            raise ImportError(f"algorithm {name}: {error}; {remedy.format(name=name)}") from error


def _select(cohorts: dict[str, Cohort], names: str | None) -> list[Cohort]:
    """Select cohorts by name; all without names."""
    if names is None:
        return list(cohorts.values())
    selected = list(dict.fromkeys(words(names)))
    unknown = [name for name in selected if name not in cohorts]
    if unknown or not selected:
        raise ValueError(
            f"there is no cohort {', '.join(unknown) or names!r}; "
            f"the table has {', '.join(cohorts)}"
        )
    return [cohorts[name] for name in selected]


def _check_one_protocol(cohorts: list[Cohort]) -> None:
    """Refuse to train on cohorts of which one lacks a contrast of the first."""
    from dmrifit.engine.resynthesis import missing_contrasts

    first = cohorts[0]
    protocol = first.scans[0].protocol
    for cohort in cohorts[1:]:
        missing = missing_contrasts(protocol, cohort.scans[0].protocol)
        if missing:
            raise ValueError(
                f"cohorts {first.name} and {cohort.name} have other protocols: {cohort.name} "
                f"lacks {len(missing)} of the {len(protocol)} contrasts of {first.name}, such as "
                f"{protocol.labels[missing[0]]}; train on one of them: --cohorts {first.name}"
            )


def _check_echo_times(model: str, protocol: Protocol, table: Path) -> None:
    """Refuse to train a predictor of relaxation times on scans without echo times."""
    from dmrifit.engine.design.identifiability import suggest_model
    from dmrifit.engine.models import resolve_model

    if protocol.te is None and resolve_model(model).needs_te:
        raise ValueError(
            f"{table}: model {model} needs echo times, and the scans have none; give them in the "
            f"column te, or name a model without T2, such as --model {suggest_model(protocol)[0]}"
        )


def _has_clinical_maps(cohorts: Mapping[str, Cohort], source: Protocol | None) -> bool:
    """Tell whether inputs suffice for maps to maps; print which b-values are missing."""
    from dmrifit.engine.map_fitter import CLINICAL_B, clinical_columns
    from dmrifit.study.contestants import clinical_inputs

    for cohort in cohorts.values():
        inputs = clinical_inputs(cohort) if source is None else source
        try:
            clinical_columns(inputs)
        except ValueError as error:
            hint = ""
            source_b = ",".join(f"{b:g}" for b in CLINICAL_B)
            with suppress(ValueError):
                clinical_columns(_source(cohort.scans[0].protocol, source_b))
                hint = f"; the scans have them: --source-b {source_b}"
            say(f"maps to maps (m2m) is left out, for lack of inputs: {error}{hint}")
            return False
    return True


def _check_study(
    out: Path, algorithms: list[str], strategies: list[str], *, overwrite: bool
) -> None:
    """Refuse to drop from the tables of a finished comparison what is not asked for again."""
    import pandas as pd

    from dmrifit.predict.algorithms import REGRESSORS
    from dmrifit.predict.controls import CONSTANT

    table = out / "scores.csv"
    if overwrite or not table.is_file():
        return
    try:
        scores = pd.read_csv(table, usecols=["algorithm", "strategy"])
    except ValueError:  # no table of scores; the comparison itself says what is wrong with it
        return
    learned = scores["algorithm"].isin([name for name in REGRESSORS if name != CONSTANT])
    pairs = scores.loc[learned, ["algorithm", "strategy"]].drop_duplicates()
    dropped = [
        f"{algorithm} {strategy}"
        for algorithm, strategy in pairs.itertuples(index=False)
        if algorithm not in algorithms or strategy not in strategies
    ]
    if dropped:
        raise ValueError(
            f"{out} holds a comparison that also has {first_few(dropped)}, which would "
            "disappear from its tables and report; name them as well, choose another folder, or "
            "--overwrite"
        )


def _source(protocol: Protocol, source_b: str) -> Protocol:
    """Find the contrasts with these b-values at the shortest echo time."""
    import numpy as np

    from dmrifit.engine.protocol import Protocol

    b = floats("--source-b", source_b, source_b.count(",") + 1)
    te = None if protocol.te is None else protocol.te.min()
    source = Protocol([*b, *protocol.b], te).take(np.arange(len(b)))
    try:
        return protocol.take(source.indices_in(protocol))
    except ValueError as error:
        raise ValueError(f"--source-b {source_b}: {error}") from None


def _training_cohorts(
    train_on: str | None, cohorts: Mapping[str, Cohort], *, resynthesize: bool
) -> list[str]:
    """Select cohorts to train on: by default others too, unless their protocols differ."""
    from dmrifit.engine.resynthesis import missing_contrasts

    if train_on:
        return words(train_on)
    protocols = {name: cohort.scans[0].protocol for name, cohort in cohorts.items()}
    if len(protocols) < 2:
        return ["same"]
    if resynthesize:
        return ["same", "other"]
    for training_name, training_protocol in protocols.items():
        for test_name, test_protocol in protocols.items():
            missing = missing_contrasts(test_protocol, training_protocol)
            if missing:
                say(
                    "training on other cohorts is left out, because protocols differ "
                    f"({training_name} lacks {len(missing)} of the contrasts of {test_name}, "
                    f"such as {test_protocol.labels[missing[0]]}); --resynthesize computes them"
                )
                return ["same"]
    return ["same", "other"]


def _finish_report(evaluations: list[Evaluation], page: Path) -> None:
    """Print the summary of the first comparison, and where the page is."""
    from dmrifit.study.skill_summary import headline, headline_notes

    table = headline(evaluations[0].summary())
    typer.echo(table.to_string(index=False))
    for note in headline_notes(evaluations[0], table):
        typer.echo(note)
    if any(evaluation.synthetic for evaluation in evaluations):
        typer.echo("synthetic data: no clinical result")
    typer.echo(f"report: {page}")
