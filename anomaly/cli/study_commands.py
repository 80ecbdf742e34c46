"""Commands on many scans with reference lesions: simulate, train, evaluate."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from anomaly.cli.detection_commands import series_of
from anomaly.detectors.detector_table import detector_names, import_detector
from dmrifit._optional import import_optional
from dmrifit._utils.checks import check_word, errors_about
from dmrifit._utils.counts import counted
from dmrifit.cli.case_runs import SimulationRun
from dmrifit.cli.options import given
from dmrifit.cli.training_files import TrainingFiles
from dmrifit.io.tables import TABLE
from dmrifit.report import page

if TYPE_CHECKING:
    from anomaly.detectors.base import AnomalyDetector
    from anomaly.scans.detection import HealthyScans

_TEXTS = page.Texts(__file__)
_TABLES = {"healthy": "healthy.tsv", "glioma": "gliomas.tsv"}
#: What the tables list, for the summary.
_GROUPS = {"healthy": "healthy person", "glioma": "glioma patient"}


@dataclass(frozen=True)
class PersonOptions:
    """What synthetic persons and their scans are like."""

    directions: int = 64
    shape: tuple[int, int, int] = (40, 48, 32)
    spacing: float = 4.0
    registration: str = "good"
    snr: float = 22.0
    cellular: float = 0.3


def simulate(
    n_healthy: int, n_lesions: int, /, persons: PersonOptions, run: SimulationRun
) -> None:
    """
    Write synthetic diffusion series of healthy persons and of patients with gliomas.

    No person was scanned. Writes a folder for each with series, b-values, directions, brain,
    tissues and lesions, and the tables healthy.tsv and gliomas.tsv. An interrupted run resumes
    when started again with the same options.

    Options:
    n_healthy N_HEALTHY 0..: Number of healthy persons.
    n_lesions N_LESIONS 0..: Number of patients with gliomas.
    directions 1..: Number of gradient directions.
    spacing 1..12: Grid in mm.
    registration good|shifted: Alignment of scans; shifted means by up to 2 voxels and 5 %.
    snr 1..: Signal-to-noise ratio of white matter at b = 0.
    cellular 0..0.75: Share of gliomas with reduced diffusivity.

    Example: dmrifit-anomaly simulate 28 20 --directions 16 --out cases
    """
    if not n_healthy + n_lesions:
        raise ValueError("N_HEALTHY and N_LESIONS are 0; ask for at least one person")
    options = vars(persons) | {"random_state": run.seed}
    options["n_directions"] = options.pop("directions")
    groups = {}
    summaries = []
    for group, n in (("healthy", n_healthy), ("glioma", n_lesions)):
        write = partial(_write_person, group == "healthy", options)
        groups[f"synthetic-{group}"] = (n, {_TABLES[group]: TABLE}, write)
        if n:
            summaries.append(f"{counted(n, _GROUPS[group])}: {run.out / _TABLES[group]}")
    run.write(vars(persons), groups)
    typer.echo("synthetic series of " + "; ".join(summaries))


def _write_person(is_healthy: bool, options: dict[str, Any], i: int, folder: Path) -> None:
    """Write the series of a synthetic person."""
    from anomaly.scans.cases import write_cases
    from anomaly.simulate.persons import simulate_dmri

    healthy, lesions = simulate_dmri(int(is_healthy), int(not is_healthy), skip=i, **options)
    write_cases([*healthy, *lesions], folder, overwrite=True)


@dataclass(frozen=True)
class ScanOptions:
    """Grid and shell that scans are brought to, and what is known and expected of them."""

    spacing: float | None = None
    shape: tuple[int, int, int] | None = None
    center: str = "grid"
    b: float | None = None
    covariates: tuple[str, ...] = ()
    smallest_lesion: float | None = None


def train(
    cases: Path,
    /,
    *,
    files: TrainingFiles,
    detector: str = "aligned",
    set_: dict[str, str] | None = None,
    published: bool = False,
    epochs: int | None = None,
    rate: float | None = None,
    calibration: str | None = None,
    guarantee: float | None = None,
    scans: ScanOptions,
    resample_directions: bool = False,
    powder: bool = False,
    all_voxels: bool = False,
    estimate_tissue: bool = False,
    device: str | None = None,
) -> None:
    """
    Train a detector on healthy diffusion series, and write a model file. Not for clinical use.

    The file holds the detector, the threshold at the requested false-positive rate on healthy
    scans, and the measurements and grid of the scans. After the first epoch of a network it says
    how long the others will take, and after each one it draws the loss: model.curve.png beside
    model.dmrifit. An interrupted training of a network resumes after its last epoch when started
    again.

    Options:
    detector aligned|gaussian|pca|forest|implants|mean|dae|recdisc: The detector.
    set_ NAME=VALUE: Parameter of the detector, such as side=low; a list is in brackets, such as
        'widths=[8,16]' or 'features=["mean","spread"]'; repeatable.
    published: Network sizes, noise and training as published (dae, recdisc); needs a GPU.
    epochs 1..: Epochs of training of networks; by default the detector's.
    rate 0..0.5: False-positive rate per healthy voxel at the stored threshold; by default 0.01.
    calibration SHARE|FOLDS: How the threshold is calibrated: a share of healthy subjects held out,
        such as 0.25, or a number of folds, such as 4; by default the detector's (aligned: 4 folds
        of fewer than 40 subjects, a quarter of more).
    guarantee 0.5..0.999: In place of a rate: probability that nothing is found in a new healthy
        scan of this site and protocol; its scans are held out, a quarter of them unless
        --calibration names another share.
    spacing: Grid in mm to resample scans to; by default not resampled.
    shape X,Y,Z: Shape in voxels to crop or pad scans to.
    center grid|brain: Center of the crop; brain for scans that are not aligned.
    b: Shell to use, in s/mm², if there are several.
    resample_directions: Interpolate signals along the directions of the first scan.
    powder: Learn from the mean over the directions of each shell, or of that of --b.
    covariates age,sex,site: Covariates of the expected signal (gaussian).
    smallest_lesion ML: Volume of the smallest compact lesion that the opening must leave; by
        default the opening removes all parts into which no cube of 3 voxels fits.

    Example: dmrifit-anomaly train cases/healthy.tsv --detector gaussian --set side=low --out
        model.dmrifit
    """
    from anomaly.detectors.thresholds import HealthyRateThreshold, HealthyScanThreshold
    from anomaly.scans.series import SeriesDetector

    if powder and resample_directions:
        raise ValueError("--powder has no directions: leave --resample-directions out")
    if rate is not None and guarantee is not None:
        raise ValueError("give either --rate or --guarantee, not both")
    rate = 0.01 if rate is None else rate
    resampled = "resampled" if resample_directions else "acquired"
    directions = "powder" if powder else resampled
    parameters = parameters_of(set_ or {})
    # Before the scans are read, which takes minutes.
    if detector in ("dae", "recdisc"):
        import_optional("torch", "skorch")
    for name in parameters.keys() & _TEXTS["instead"].keys():
        raise ValueError(f"--set {name} is not possible: give {_TEXTS['instead'][name]}")
    options = given(epochs=epochs, device=device, checkpoint=files.checkpoint)
    options["threshold"] = HealthyRateThreshold(rate)
    if guarantee is not None:
        # Of folds the detector has learned in the end, and nothing is guaranteed by them.
        options |= {"threshold": HealthyScanThreshold(guarantee), "calibration": 0.25}
    if calibration is not None:
        # A number without a point is one of folds, one with a point a share of subjects.
        options["calibration"] = calibration
        with suppress(ValueError):
            is_whole = calibration.isdecimal()
            options["calibration"] = int(calibration) if is_whole else float(calibration)
    with files.training() as fields:
        # Detectors without randomness have no seed, those without epochs no checkpoint.
        fields["random_state"] = files.seed
        estimator = make_detector(detector, options | parameters, published=published, **fields)
        if scans.covariates and detector != "gaussian":
            names = ",".join(scans.covariates)
            raise ValueError(_TEXTS("no_covariates", names=names, detector=detector))
        model = SeriesDetector(estimator, directions=directions, **vars(scans))
        series = series_of([cases])
        # Before the scans are read, which takes minutes.
        estimator._check_shared()
        # Lesions are refused by the training, which says what the table should hold.
        if all(scan.lesion is None for scan in series):
            with errors_about(str(cases)):
                estimator._subject_numbers(len(series), [scan.subject for scan in series])
        model.fit(series, tissue=estimate_tissue, mask=not all_voxels)
        files.save(model)
    threshold = getattr(model.detector_.threshold_, "threshold_", float("nan"))
    size = " × ".join(map(str, model.shape_))
    channels = counted(len(model.protocol_), "powder average" if powder else "direction")
    aim_text, share = ("voxels", rate) if guarantee is None else ("guaranteed", guarantee)
    aim = _TEXTS(aim_text, percent=100 * share)
    n_held_out = len(series) - model.n_scans_
    more = _TEXTS("held_out", n=n_held_out) if n_held_out else ""
    if published:
        changed = ", ".join(given(epochs=epochs) | parameters) or "none"
        detector = _TEXTS("published", detector=detector, changed=changed)
    words = {"detector": detector, "size": size, "channels": channels, "aim": aim, "more": more}
    values = {"n_scans": model.n_scans_, "threshold": threshold, "out": files.out}
    typer.echo(_TEXTS("trained", **words, **values))
    if model.healthy_ is not None:
        division = getattr(model.detector_, "largest_division_", 1.0)
        typer.echo(_healthy_sentence(model.healthy_, division))
    for remark in model.training_.remarks if model.training_ else ():
        typer.echo(remark)
    if model.synthetic_:
        typer.echo("trained on synthetic scans: its accuracy in people is unknown")


def evaluate(
    cases: Path,
    /,
    detections: dict[str, Path],
    out: Path,
    healthy: Path | None = None,
    healthy_detections: dict[str, Path] | None = None,
    b: float | None = None,
    all_voxels: bool = False,
    estimate_tissue: bool = False,
    figures: int = 6,
    overwrite: bool = False,
) -> None:
    """
    Compare anomaly maps with lesions inside white and gray matter: CSV tables and a page.

    Each map is thresholded by every rule of the study, and by the threshold that is stored with
    its model (rows whose name ends in "stored"). What is marked is opened by the cube of detect
    (of 3 voxels, where the table of an earlier version does not say it). Every table includes
    controls that ignore the scans.

    Options:
    detections NAME=FILE: Table detections.tsv from detect for these cases, or the folder it is in;
        repeatable.
    healthy CASES: Table of healthy scans that no model was trained on, to count false positives.
    healthy_detections NAME=FILE: Table detections.tsv of the healthy scans, or the folder it is
        in, under the same names.
    b: Shell that was used, in s/mm², if there are several.

    Example: dmrifit-anomaly evaluate cases/gliomas.tsv --detections z=found/detections.tsv --out
        compared
    """
    from anomaly.cli.case_runs import prepared_cases, read_detections
    from anomaly.study import report
    from anomaly.study.evaluation import format_summary

    import_optional("matplotlib", "jinja2")
    healthy_tables = healthy_detections or {}
    # False positives are counted for all methods or for none: a table of some would mislead.
    if set(healthy_tables) != (set() if healthy is None else set(detections)):
        names = ", ".join(detections)
        raise ValueError(f"--healthy needs --healthy-detections of each method, no other: {names}")
    options: dict[str, Any] = {"tissue": estimate_tissue, "mask": not all_voxels, "b": b}
    scans = prepared_cases(series_of([cases]), **options)
    healthy_scans = [] if healthy is None else prepared_cases(series_of([healthy]), **options)
    openings: dict[str, int] = {}
    maps = read_detections(detections, scans, openings)
    healthy_maps = read_detections(healthy_tables, healthy_scans, openings)
    options = {"healthy": [scan.case for scan in healthy_scans], "figures": figures}
    options |= {"healthy_maps": healthy_maps or None, "overwrite": overwrite, "opening": openings}
    tables = report.write_evaluation([scan.case for scan in scans], maps, out, **options)
    rule = report.rule_in_use(tables)
    table = format_summary(tables, rule=rule or None)
    typer.echo(table.loc[:, (table != "–").any()].to_string(line_width=100))
    typer.echo(report.patients_in_words(tables["scans"]))
    if rule:
        typer.echo(f"thresholds by the rule {rule}; by all rules: {out / 'summary.csv'}")
    if any(scan.case.synthetic for scan in scans):
        typer.echo("synthetic scans: no clinical result")


def _healthy_sentence(healthy: HealthyScans, largest_division: float) -> str:
    """Describe the healthy scans that a threshold comes from, with intervals over scans."""
    from anomaly.cli.case_runs import above_in_words
    from anomaly.scans.detection import FEWEST_SCANS

    shares = [scan.share for scan in healthy.scans]
    n_scans = len(shares)
    n_components = [scan.n_components for scan in healthy.scans]
    threshold = _TEXTS["left_out" if healthy.left_out else "same_scans"]
    text = (
        f"{counted(n_scans, 'healthy scan')}, each scored by a detector trained without it: "
        f"{above_in_words(shares, n_components, threshold)}; "
    )
    verdicts = healthy.verdicts(largest_division)
    if n_scans < FEWEST_SCANS:
        text += f"scans are not judged as a whole: {n_scans} healthy, {FEWEST_SCANS} are needed"
    elif verdicts.count(None) == n_scans:
        text += f"not judged as a whole against each other: {FEWEST_SCANS} others are needed"
    else:
        text += f"{counted(verdicts.count(True), 'differs', 'differ')} from the others as a whole"
    if healthy.spread is not None:
        text += _TEXTS["spread"].format(*healthy.spread)
    return text


def make_detector(
    name: str, parameters: Mapping[str, Any], *, published: bool = False, **defaults: Any
) -> AnomalyDetector:
    """
    Make a detector by its name; the fields of its training stand among its parameters.

    Of the `defaults` those are left out that the detector has no parameter for.
    """
    from dmrifit.networks.training import Training, gather_training

    check_word("--detector", name, detector_names())
    detector_class = import_detector(name)
    names = {*detector_class._get_param_names()}
    if "training" in names:
        names = names - {"training"} | {*Training._get_param_names()}
    unknown = [key for key in parameters if key not in names]
    if unknown:
        known = ", ".join(sorted(names - _TEXTS["instead"].keys()))
        text = "of_networks" if unknown[0] in _TEXTS["options"] else "no_parameter"
        raise ValueError(_TEXTS(text, key=unknown[0], detector=name, known=known))
    options = {key: value for key, value in defaults.items() if key in names}
    make = getattr(detector_class, "published", None) if published else detector_class
    if make is None:
        raise ValueError(f"no sizes of the detector {name} are published; leave out --published")
    return make(**gather_training({**options, **parameters}))


def parameters_of(settings: Mapping[str, str]) -> dict[str, Any]:
    """Read the parameters of a detector."""
    parameters: dict[str, Any] = {}
    for name, text in settings.items():
        try:
            value = json.loads(text)
        except ValueError:
            # What is no JSON is a word, such as low.
            value = text.strip()
        parameters[name.strip()] = tuple(value) if isinstance(value, list) else value
    return parameters
