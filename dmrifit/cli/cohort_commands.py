"""Commands on cohorts: simulate, train, benchmark, report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import permutations, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import typer

from dmrifit._optional import import_optional
from dmrifit._utils.checks import check_word, check_words, errors_about
from dmrifit._utils.counts import counted, first_few
from dmrifit.cli.options import NewFile, given, numbers, pairs, resumable, say
from dmrifit.cli.workers import scheduler
from dmrifit.engine.protocol import TE_MATCH, Protocol

if TYPE_CHECKING:
    from dmrifit.cohort.cohort import Cohort
    from dmrifit.study.comparison import Evaluation

_FIELDS = {"cohort1": 1.5, "cohort2": 3.0}  # T


@dataclass(frozen=True)
class PatientOptions:
    """What synthetic patients and their images are like."""

    difficulty: str = "mixed"
    template: str = "both"
    snr: float | None = None
    artifacts: tuple[str, ...] = ()
    truth: str = "formula"
    latent_corr: float = 0.6
    gain_variation: float = 0.25
    shape: tuple[int, int, int] = (48, 48, 8)


def simulate(
    *,
    out: Path,
    patients: int = 16,
    preset: tuple[str, ...] = ("cohort1", "cohort2"),
    same_protocol: bool = False,
    images: PatientOptions,
    seed: int = 0,
    jobs: int = 1,
) -> None:
    """
    Write synthetic cohorts of abdominal and pelvic tumors: images, masks, true maps and a table.

    cohort1 is simulated at 1.5 T and cohort2 at 3 T, each with the study's protocol of that name.

    Options:
    out: Folder for the images and the table participants.tsv.
    patients 1..: Patients in each cohort.
    preset NAME,…: Cohorts to simulate: cohort1 (1.5 T), cohort2 (3 T).
    same_protocol: Use the first cohort's protocol for all, so that one can train for another.
    difficulty mixed|easy: Variation between patients, and noise.
    template both|abdomen|pelvis: Body region; both draws one per patient.
    snr: SNR in the liver at the lowest b and TE; by default set by the difficulty.
    artifacts NAME[=STRENGTH],…: shift (voxels), gibbs (fraction of frequencies lost), signal_loss
        (largest fraction); none by default.
    truth formula|walk: Origin of the signals: the model's formula, or random walks of water.
    latent_corr 0…1: Correlation of parameters within tissue texture.
    gain_variation CV: Coefficient of variation of receiver gain between patients.
    shape X,Y,Z: Voxels of each image.
    seed 0..: Random seed: same seed, same patients.
    jobs: Patients simulated in parallel; −1 for one per core.

    Example: dmrifit simulate --out data --patients 8 --seed 1
    """
    from dmrifit.io.atomic_files import check_room
    from dmrifit.io.nifti import bytes_of_maps
    from dmrifit.simulate.body_phantoms import simulate_cohort

    # A cohort named twice would be written over itself, and is a key here.
    protocols = {name: Protocol.preset(name) for name in preset or ("",)}
    if same_protocol:
        protocols = dict.fromkeys(protocols, protocols[preset[0]])
    n_images = patients * sum(map(len, protocols.values()))
    check_room(out, bytes_of_maps(n_images, images.shape, None))
    options = vars(images) | {"n_jobs": jobs, "random_state": seed}
    options["artifacts"] = list(images.artifacts) or None
    if any("=" in word for word in images.artifacts):
        texts = pairs("--artifacts", images.artifacts).items()
        options["artifacts"] = {k: numbers(f"--artifacts {k}", text, 1)[0] for k, text in texts}
    cohorts = [
        simulate_cohort(protocol, patients, name=name, field=_FIELDS[name], **options)
        for name, protocol in protocols.items()
    ]
    # Only now, so that a wrong option leaves no cohort behind.
    for cohort in cohorts:
        table = cohort.write(out)
    typer.echo(f"{counted(sum(map(len, cohorts)), 'synthetic patient')}: {table}")


def train(
    table: Path,
    /,
    out: NewFile,
    algorithm: str = "LR",
    strategy: str = "s2s",
    loss: str | None = None,
    target_scale: str | None = None,
    patch_shape: tuple[int, int, int] | None = None,
    model: str = "t2-ivim-kurtosis",
    cohorts: tuple[str, ...] | None = None,
    n_b: int | None = None,
    source_b: tuple[float, ...] | None = None,
    train_mask: str = "body",
    max_voxels: int = 250,
    coverage: float = 0.9,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """
    Train a predictor of an advanced protocol on all patients of a table, and save it.

    Its scores are those of dmrifit benchmark with the same settings; the file is for dmrifit
    predict. Cohorts with different protocols need separate models (--cohorts). LR takes seconds,
    CNN longest; images are read once, one patient at a time.

    Options:
    out: Model file to write, usually named *.dmrifit.
    algorithm: LR, RFR, ETR, GBR, slNN, mlNN, CNN, ViT or constant.
    strategy s2s|m2m: Signals to signals, or maps to maps.
    loss mean|median: Statistic of a parameter that m2m predicts.
    target_scale linear|log: Learn parameters or their logarithms (m2m).
    patch_shape X,Y,Z: Neighborhood as input; by default 3,3,1 for CNN, else single voxels.
    cohorts NAME,…: Train on these cohorts only.
    n_b 2..: Number of b-values of the clinical protocol: the lowest, at the shortest TE; 5
        without --source-b, which replaces it.
    coverage 0..0.999: Share of voxels whose one-step fit (dmrifit fit --method nlls) the intervals
        should contain, calibrated by training on subsets of the patients; 0 for no intervals, in a
        sixth of the time.

    Example: dmrifit train data/participants.tsv --algorithm LR --strategy s2s --out model.dmrifit
    """
    from dmrifit.cohort.cohort import Cohort, in_order
    from dmrifit.cohort.patches import check_reach
    from dmrifit.model_files.model_file import save_model
    from dmrifit.predict import conformal
    from dmrifit.predict.base import resolve_patch_shape
    from dmrifit.study.contestants import check_unseen

    # All that can be wrong with the options is found before scans are read.
    if strategy == "s2s" and (loss or target_scale):
        raise ValueError("--loss and --target-scale are for --strategy m2m, which learns maps")
    if n_b is not None and source_b is not None:
        raise ValueError("--n-b and --source-b both choose the inputs; give one of them")
    options = given(patch_shape=patch_shape, loss=loss, target_scale=target_scale)
    remedy = "choose another --algorithm"
    (estimator,) = _predictors([algorithm], [strategy], remedy, model=model, **options).values()
    cohorts_of_table = Cohort.read(table)
    names = tuple(cohorts_of_table) if cohorts is None else cohorts
    check_words("--cohorts", names, cohorts_of_table, least=1)
    # The order of rows in the table must not change the model.
    training = [in_order(cohorts_of_table[name]) for name in sorted(set(names))]
    scans = [scan for cohort in training for scan in cohort.scans]
    protocol = scans[0].protocol
    for cohort in training[1:]:
        if missing := _missing_contrasts(cohort, training[0]):
            raise ValueError(f"{missing}; train on one of them: --cohorts {training[0].name}")
    _check_echo_times(model, protocol, table)
    if source_b is None:
        source = protocol.take(protocol.clinical(**given(n_b=n_b)))
    else:
        source = _source(protocol, source_b)
    check_unseen(source, protocol)
    estimator.set_params(source=source, target=protocol, random_state=seed)
    estimator.check_parameters()
    patches = resolve_patch_shape(estimator)
    if patches is not None:
        check_reach(patches, [scan.shape for scan in scans])
    sampling: dict[str, Any] = {"mask": train_mask, "max_voxels": max_voxels or None}
    sampling |= {"patch_shape": patches, "random_state": seed}
    samples = [cohort.arrays(source, protocol, **sampling) for cohort in training]
    parts = zip(*((sample.X, sample.Y, sample.groups) for sample in samples), strict=True)
    X, Y, groups = map(np.concatenate, parts)
    n_patients = len(np.unique(groups))
    fewest = conformal.FEWEST_PATIENTS
    if coverage and n_patients < fewest:
        typer.echo(f"no intervals: train on {fewest} patients or more, not {n_patients}")
        coverage = 0.0
    if coverage:
        estimator = conformal.ConformalIntervals(estimator, coverage=coverage, random_state=seed)
        estimator.fit(X, Y, groups)
    else:
        estimator.fit(X, Y)
    fitted = conformal.strategy_of(estimator)
    fitted.synthetic_ = any(cohort.synthetic for cohort in training)
    fitted.training_ = {"cohorts": [cohort.name for cohort in training], "patients": n_patients}
    unit = f"{train_mask} voxel" if training[0].regions is None else "region"
    fitted.training_ |= {"count": len(X), "unit": unit}
    save_model(estimator, out)
    typer.echo("\n".join(conformal.predictor_lines(estimator, out)))


@dataclass(frozen=True)
class SamplingOptions:
    """What predictors are trained on and scored by."""

    resynthesize: bool = False
    train_mask: str = "body"
    score_mask: str = "lesion"
    max_voxels: int = 250
    repeats: int = 1
    controls: bool = True


def benchmark(
    table: Path,
    /,
    *,
    out: Path,
    algorithms: tuple[str, ...] | None = None,
    without: tuple[str, ...] = (),
    strategies: tuple[str, ...] | None = None,
    model: str = "t2-ivim-kurtosis",
    source_b: tuple[float, ...] | None = None,
    sizes: tuple[int, ...] | None = None,
    train_on: tuple[str, ...] | None = None,
    sampling: SamplingOptions,
    jobs: int = 1,
    cluster: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """
    Compare predictors of an advanced protocol on a table of patients, leaving one patient out.

    The table has the columns patient, cohort, image, mask, lesion, bval and te, with paths
    relative to it (dmrifit table makes one of a BIDS folder). Writes scores.csv, signals.csv,
    summary.csv, study.json, predictions, figures, report.html and a folder tables.

    Six algorithms on 16 synthetic patients at three sizes take two cores less than three minutes;
    memory holds the sampled voxels of all patients. CNN takes longest. A bar (in a pipe: lines)
    shows the time left.

    Options:
    out: Folder for tables and report; an interrupted run resumes there.
    algorithms NAME,…: From LR, RFR, ETR, GBR, slNN, mlNN, CNN, ViT, constant; by default all but
        the last two.
    without NAME,…: Algorithms to leave out, such as CNN, which needs torch.
    strategies s2s,m2m: Signals to signals, maps to maps; by default both, or s2s alone where the
        inputs lack the b-values of clinical maps.
    sizes --n-train N,…: Numbers of training patients; several give a learning curve, such as
        1,2,3,5,8. By default all patients but the held-out one.
    train_on same,other,pooled: Cohorts to train on; by default same, and also other if protocols
        agree or with --resynthesize.
    resynthesize: Where protocols differ, compute missing contrasts of training images from the
        model fitted to them.
    score_mask lesion|body: Voxels to score.
    repeats 1..: Repeats with other samples and seeds.
    controls: Also score controls: a constant, shuffled targets, copies of inputs, perfect
        predictions, and of synthetic patients the truth and a second measurement.
    jobs: Models trained in parallel; −1 for one per core.
    seed 0..: Random seed: same seed, same table.

    Example: dmrifit benchmark data/participants.tsv --out study --without CNN --sizes 1,2,3,5,7
    """
    from dmrifit.cohort.cohort import Cohort
    from dmrifit.predict.algorithms import ALGORITHMS, REGRESSORS
    from dmrifit.study.comparison import compare
    from dmrifit.study.study_folder import StudyFolder

    import_optional("matplotlib", "jinja2")
    strategy_names = ("s2s", "m2m") if strategies is None else strategies
    check_words("--without", without, REGRESSORS)
    named = ALGORITHMS if algorithms is None else algorithms
    names = [name for name in named if name not in without]
    if not names:
        raise ValueError("no algorithm is left; name one by --algorithms, or fewer by --without")
    remedy = "or leave it out: --without {name}"
    # Before cohorts are read, which takes longer than all checks of options.
    estimators = _predictors(names, strategy_names, remedy, model=model)
    cohorts = Cohort.read(table)
    protocol = next(iter(cohorts.values())).scans[0].protocol
    source = None if source_b is None else _source(protocol, source_b)
    for cohort in cohorts.values():
        _check_echo_times(model, cohort.scans[0].protocol, table)
    if strategies is None and not _has_clinical_maps(cohorts, source):
        estimators = {f"{name} s2s": estimators[f"{name} s2s"] for name in names}
    for estimator in estimators.values():
        estimator.set_params(source=source)
    if not overwrite:
        _check_study(out, estimators, controls=sampling.controls)
    options: dict[str, Any] = vars(sampling) | {"n_train": sizes, "random_state": seed}
    options |= {"n_repeats": options.pop("repeats"), "max_voxels": sampling.max_voxels or None}
    options |= {"n_jobs": None if cluster else jobs, "out": StudyFolder(out, overwrite=overwrite)}
    options["train_on"] = list(train_on or _training_cohorts(cohorts, sampling.resynthesize))
    try:
        with scheduler(cluster), resumable("work is", out, files="cells/*"):
            evaluation = compare(estimators, cohorts, **options)
    except RuntimeError as error:
        raise ValueError(f"{error}; finished work is kept in {out}") from error
    for name, cohort in evaluation.study["cohorts"].items():
        for patient, reason in cohort["skipped"].items():
            # What the table lacks was said when it was read.
            if patient not in cohorts[name].skipped:
                say(f"{name}: {patient}: {reason}")
    _finish_report([evaluation], out)


def report(studies: list[Path], /, out: Path | None = None) -> None:
    """
    Rewrite the report of finished comparisons.

    Comparisons with other seeds, training masks or difficulties are listed side by side in one
    table.

    Options:
    studies FOLDER…: Folders from dmrifit benchmark; the first is shown in full.
    out: Folder for the report; by default that of the first comparison.

    Example: dmrifit report study
    """
    from dmrifit.study.comparison import Evaluation

    import_optional("matplotlib", "jinja2")
    evaluations = [Evaluation.read(study) for study in dict.fromkeys(studies)]
    _finish_report(evaluations, out or studies[0])


def _predictors(
    algorithms: Sequence[str], strategies: Sequence[str], remedy: str, **options: Any
) -> dict[str, Any]:
    """Make predictors by name; refuse unknown names and missing libraries before long work."""
    from dmrifit.predict.algorithms import REGRESSORS, build_regressor, default_patch_shape
    from dmrifit.study.contestants import STRATEGIES

    for strategy in strategies or ("",):
        check_word("strategy", strategy, STRATEGIES)
    for name in algorithms:
        check_word("algorithm", name, REGRESSORS)
        try:
            build_regressor(name, n_targets=2, patch_shape=default_patch_shape(name))
        except ImportError as error:
            raise ImportError(f"algorithm {name}: {error}; {remedy.format(name=name)}") from error
    return {
        f"{name} {strategy}": STRATEGIES[strategy](name, **options)
        for strategy, name in product(strategies, algorithms)
    }


def _missing_contrasts(cohort: Cohort, first: Cohort) -> str:
    """Describe the contrasts of the first cohort that a cohort lacks; empty where it has all."""
    from dmrifit.engine.resynthesis import missing_contrasts

    protocol = first.scans[0].protocol
    missing = missing_contrasts(protocol, cohort.scans[0].protocol)
    if not missing:
        return ""
    return (
        f"{cohort.name} lacks {len(missing)} of the {len(protocol)} contrasts of {first.name}, "
        f"such as {protocol.labels[missing[0]]}"
    )


def _check_echo_times(model: str, protocol: Protocol, table: Path) -> None:
    """Refuse to train a predictor of a model that the echo times of the scans do not support."""
    from dmrifit.engine.design.identifiability import suggest_model
    from dmrifit.engine.models import check_echo_times, resolve_model

    signal_model = resolve_model(model)
    try:
        check_echo_times(protocol, signal_model)
    except ValueError as error:
        # Its remedies are those of a fit.
        problem = str(error).partition(";")[0]
        remedy = "" if protocol.te is not None else "give the echo times (column te), or "
        raise ValueError(
            f"{table}: {problem}; {remedy}name a model that the scans support, such as "
            f"--model {suggest_model(protocol)[0]}"
        ) from None


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
                clinical_columns(_source(cohort.scans[0].protocol, CLINICAL_B))
                hint = f"; the scans have them: --source-b {source_b}"
            say(f"maps to maps (m2m) is left out, for lack of inputs: {error}{hint}")
            return False
    return True


def _check_study(out: Path, estimators: Mapping[str, Any], *, controls: bool) -> None:
    """Refuse to drop from the tables of a finished comparison what is not asked for again."""
    from dmrifit.io.digests import describe
    from dmrifit.predict.controls import is_control
    from dmrifit.study.study_folder import StudyFolder

    dropped, study = [], StudyFolder(out).description()
    for name, earlier in study.get("estimators", {}).items():
        if name not in estimators and not (controls and is_control(name.split()[0])):
            dropped.append(name)
        elif name in estimators and _task(earlier) != _task(describe(estimators[name])):
            dropped.append(f"{name} with {_task(earlier)}")
    if dropped:
        raise ValueError(
            f"{out} holds a comparison that also has {first_few(dropped)}, which would "
            "disappear from its tables and report; repeat the options that made it "
            f"({study.get('command', 'of the folder')}), choose another folder, or --overwrite"
        )


def _task(described: Any) -> str:
    """Name the model and the inputs in the description of an estimator."""
    described = described[-1] if isinstance(described, list) else described
    source = described["parameters"].get("source")
    b = ",".join(f"{b:g}" for b in source["protocol"]["b"]) if source else "by default"
    return f"--model {described['parameters'].get('model')}, inputs {b}"


def _source(protocol: Protocol, source_b: Sequence[float]) -> Protocol:
    """Find the contrasts with these b-values at the shortest echo time."""
    te = None if protocol.te is None else protocol.te.min()
    source = Protocol([*source_b, *protocol.b], te).take(np.arange(len(source_b)))
    text = ",".join(f"{b:g}" for b in source_b)
    with errors_about(f"--source-b {text}"):
        b = np.unique(protocol.b if te is None else protocol.b[protocol.te < te + TE_MATCH])
        measured = [f"{value:g}" for value in b]
        # Protocols of cohorts match within a tolerance; what a user asks for is taken at its word.
        if not {*text.split(",")} <= {*measured}:
            raise ValueError(f"choose from {', '.join(measured)}")
        return protocol.take(source.indices_in(protocol))


def _training_cohorts(cohorts: Mapping[str, Cohort], resynthesize: bool) -> list[str]:
    """Choose ways of training: "other" too, if protocols agree or `resynthesize`."""
    if len(cohorts) < 2:
        return ["same"]
    for cohort, other in () if resynthesize else permutations(cohorts.values(), 2):
        if missing := _missing_contrasts(cohort, other):
            say(
                "training on other cohorts is left out, because protocols differ "
                f"({missing}); --resynthesize computes them"
            )
            return ["same"]
    return ["same", "other"]


def _finish_report(evaluations: list[Evaluation], out: Path) -> None:
    """Write the page; print the summary and the conclusion of the first comparison."""
    from dmrifit.study.report.reporting import write_report
    from dmrifit.study.summaries import TEXTS, headline

    say("writing the report")
    page = write_report(evaluations, out)
    table = headline(evaluations[0].summary())
    lines = [table.to_string(index=False), *page.sentences[1:], *page.notes]
    if any(evaluation.synthetic for evaluation in evaluations):
        lines.append("synthetic data: no clinical result")
    if len(evaluations) > 1:
        lines.append(TEXTS("side_by_side", n=len(evaluations)))
    typer.echo("\n".join([*lines, f"report: {page}"]))
