"""
Which of the study's claims about anomalies of diffusion hold on synthetic persons, and where do
other detectors stand?

    .venv/bin/python -m benchmarks.anomaly.bench_anomaly [--seeds 1 2 3] [--work FOLDER] [--n-jobs 2]
    .venv/bin/python -m benchmarks.anomaly.bench_anomaly --size smoke --seeds 1 --out FILE
    .venv/bin/python -m benchmarks.anomaly.bench_anomaly --inference
    .venv/bin/python -m benchmarks.anomaly.bench_anomaly --decide

For each seed healthy persons and patients with gliomas are made twice, registered well and with
residual shifts. Detectors learn from two thirds of the healthy, thresholds come from the third that
is left, and false positives are counted on healthy persons that nothing was learned or chosen on.
No lesion is looked at before the evaluation, and nothing is chosen by it. What is finished is kept
in the folder FOLDER (default build/anomaly) and not repeated as long as the code is the same. Each
process computes on one thread. `--inference` measures speed and memory at the published size and
adds them to the stored result.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import joblib
import numpy as np
import pandas as pd

from anomaly import (
    DenoisingAutoencoder,
    RecDiscNet,
    VoxelwiseGaussian,
    evaluate_detectors,
    simulate_dmri,
)
from anomaly.scans.cases import Case
from anomaly.study.evaluation import healthy_folds
from benchmarks import _boards as boards
from benchmarks import _measure as measure
from benchmarks import _runs as runs
from benchmarks.anomaly import _anomaly_speed as speed
from benchmarks.claims.claim_board import NOT_SIMULATED
from benchmarks.claims.weninger.board import (
    anomaly_board,
    difference_interval,
    margin_table,
    published_beside,
)
from benchmarks.claims.weninger.methods import (
    COHORTS,
    IMAGE_SCALE,
    NOISES,
    OWN,
    REFERENCE,
    board_rules,
    method_name,
)
from dmrifit.networks.training import gather_training

RESULT = measure.RESULTS / "anomaly.json"
SEEDS = tuple(range(20261121, 20261131))
#: What maps depend on, the settings of this module among it, and what the evaluation depends on.
OF_MAPS = (
    "benchmarks.anomaly.bench_anomaly",
    *("anomaly.networks", "anomaly.generators", "anomaly.detectors", "anomaly.scans"),
    *("anomaly.simulate", "dmrifit._utils", "dmrifit.networks", "dmrifit.simulate"),
)
OF_EVALUATION = (
    "anomaly.study.contestants",
    *("anomaly.study.evaluation", "anomaly.study.scores", "anomaly.study.scores"),
    "anomaly.detectors.thresholds",
    "dmrifit.stats.lesion_matching",
    "dmrifit.stats.patient_summary",
    "benchmarks.claims.weninger.methods",
)
MEASURES = ("auc", "average_precision")
BY_RULE = (
    "dice",
    "dice_opened",
    "gain",
    "false_positive_rate",
    "false_positive_rate_opened",
    "empty_opened",
)
MIX = method_name("RecDiscNet")
MIX_FULL = method_name("RecDiscNet", mean="full")


@dataclass(frozen=True)
class Size:
    """How many persons there are, and how long networks learn."""

    # As many as ten seeds of two cohorts can have in an hour of two processors.
    n_healthy: int = 20
    n_lesions: int = 18
    n_new: int = 12
    n_folds: int = 3
    n_directions: int = 16
    shape: tuple[int, int, int] = (40, 48, 32)
    spacing: float = 4.0
    latents: tuple[int, ...] = (16, 64, 512)
    noises: tuple[str, ...] = NOISES
    dae: dict[str, Any] = field(default_factory=dict)
    recdisc: dict[str, Any] = field(default_factory=dict)
    implants: dict[str, Any] = field(default_factory=dict)


SIZES = {
    "full": Size(recdisc={"epochs": 2}),
    "small": Size(
        *(12, 8, 6, 2, 8, (28, 34, 22), 5.6, (16, 512)),
        dae={"epochs": 15},
        recdisc={
            "epochs": 1,
            "repeats": 1,
            "reconstruction_width": 8,
            "discrimination_width": 8,
        },
        implants={"n_implants": 1, "n_trees": 30},
    ),
    "smoke": Size(
        *(6, 3, 2, 2, 6, (20, 24, 16), 8.0, (4, 8), ("normal random", "mix")),
        dae={"epochs": 1, "widths": (4, 8), "dense": None},
        recdisc={
            "epochs": 1,
            "repeats": 1,
            "reconstruction_width": 4,
            "discrimination_width": 4,
            "stem": 4,
        },
        implants={"n_implants": 1, "n_trees": 10},
    ),
}


@dataclass(frozen=True)
class Recipe:
    """A training, and the maps that are made with it."""

    make: Callable[[int], Any]
    #: Rows by name: what makes maps of scans and masks with the trained detector.
    rows: dict[str, Callable[[Any, Any, Any], Any]]
    #: Whether it is trained on the shifted cohort as well.
    shifted: bool = True


def plain(model: Any, scans: Any, masks: Any) -> Any:
    return model.anomaly_map(scans, masks)


def of_absolutes(model: Any, scans: Any, masks: Any) -> Any:
    return model.set_params(residual="mean-of-abs").anomaly_map(scans, masks)


def at_image_scale(model: Any, scans: Any, masks: Any) -> Any:
    return model.set_params(residual="mean", scale="image").anomaly_map(scans, masks)


def of_residuals(model: Any, scans: Any, masks: Any) -> Any:
    return model.residual_map(scans, masks)


def recipes(size: Size) -> dict[str, Recipe]:
    """Give everything that is compared, by the name of its first row."""
    found: dict[str, Recipe] = {}
    for output in ("sigmoid", "linear"):
        for latent in size.latents:
            first = output == "sigmoid" and latent == max(size.latents)
            name = method_name("DAE", output=output, latent=latent)
            rows = {name: plain}
            if first:
                forms = {"mean of abs": of_absolutes, IMAGE_SCALE: at_image_scale}
                rows |= {
                    method_name("DAE", latent=latent, form=form): make
                    for form, make in forms.items()
                }
            found[name] = Recipe(_autoencoder(size, output, latent), rows, first)
    for noise in size.noises:
        for mean in ("half", "full"):
            name = method_name("RecDiscNet", noise=noise, mean=mean)
            mix = noise == "mix"
            form = (
                {method_name("RecDiscNet", noise=noise, mean=mean, form="residual"): of_residuals}
                if mix
                else {}
            )
            rows = {name: plain} | form
            found[name] = Recipe(_recdisc(size, noise, mean), rows, mix)
    return found | {name: Recipe(make, {name: plain}) for name, make in _classical(size).items()}


def _autoencoder(size: Size, output: str, latent: int) -> Callable[[int], Any]:
    return lambda seed: DenoisingAutoencoder(
        latent,
        output,
        # As published; maps are neither smoothed nor divided by what is usual at a place.
        residual="mean",
        latent="vector",
        aligned=False,
        smooth_mm=0.0,
        calibration=None,
        device="cpu",
        random_state=seed,
        **gather_training(size.dae),
    )


def _recdisc(size: Size, noise: str, mean: str) -> Callable[[int], Any]:
    return lambda seed: RecDiscNet(
        noise.replace(" ", "-"),
        mean,
        smooth_mm=0.0,
        calibration=None,
        device="cpu",
        random_state=seed,
        **gather_training(size.recdisc),
    )


def _classical(size: Size) -> dict[str, Callable[[int], Any]]:
    from anomaly import ImplantDetector, PCADetector

    shared: dict[str, Any] = {"spacing": size.spacing, "calibration": None}
    return {
        REFERENCE: lambda seed: VoxelwiseGaussian(side="low", distance="z", **shared),
        "z, two-sided": lambda seed: VoxelwiseGaussian(side="both", distance="z", **shared),
        "Mahalanobis": lambda seed: VoxelwiseGaussian(
            ("mean", "spread"), distance="mahalanobis", **shared
        ),
        "PCA": lambda seed: PCADetector(**shared),
        OWN: lambda seed: ImplantDetector(random_state=seed, **shared, **size.implants),
    }


# Once, as code may be changed while it runs.
CODE_OF_MAPS = boards.code_digest(*OF_MAPS)
CODE_OF_EVALUATION = boards.code_digest(*OF_MAPS, *OF_EVALUATION)


def cohort_of(kind: str, seed: int, cohort: str) -> SimpleNamespace:
    """Make healthy persons to learn from and to choose with, new ones to count on, and patients."""
    size = SIZES[kind]
    healthy, lesions = simulate_dmri(
        size.n_healthy + size.n_new,
        size.n_lesions,
        n_directions=size.n_directions,
        shape=size.shape,
        spacing=size.spacing,
        registration=dict(zip(COHORTS, ("good", "shifted"), strict=True))[cohort],
        n_jobs=1,
        random_state=seed,
    )
    train, held = healthy_folds(healthy[: size.n_healthy], size.n_folds, random_state=seed)[0]
    return SimpleNamespace(
        train=[healthy[i] for i in train],
        held=[healthy[i] for i in held],
        new=healthy[size.n_healthy :],
        lesions=lesions,
    )


def arrays(cases: Sequence[Case]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return [case.signal for case in cases], [case.brain for case in cases]


def maps_of(
    work: Path, kind: str, seed: int, cohort: str, name: str
) -> tuple[dict[str, list[np.ndarray]], dict[str, float]]:
    """Train one detector, and make its maps of patients, new persons and those left out."""
    recipe, persons = recipes(SIZES[kind])[name], kept(cohort_of, work)(kind, seed, cohort)
    groups = [case.patient for case in persons.train]
    model, training_s = boards.timed(recipe.make(seed).fit, *arrays(persons.train), groups=groups)
    seen = [*persons.lesions, *persons.new, *persons.held]
    maps: dict[str, list[np.ndarray]] = {}
    seconds = {"training_s": training_s}
    for row, make in recipe.rows.items():
        # One after the other: so many scans at once are large.
        maps[row], own = boards.timed(
            lambda make=make: [make(model, [c.signal], [c.brain])[0] for c in seen]
        )
        seconds.setdefault("prediction_s", own)
    print(f"{seed} {cohort}: {name}, {training_s:.0f} s of training", flush=True)
    return maps, seconds


def kept(function: Callable[..., Any], work: Path) -> Callable[..., Any]:
    code = CODE_OF_MAPS if function is not evaluated else CODE_OF_EVALUATION
    return boards.kept(work, code, function)


def methods_of(size: Size, cohort: str) -> list[str]:
    return [name for name, one in recipes(size).items() if one.shifted or cohort == COHORTS[0]]


def evaluated(work: Path, kind: str, seed: int, cohort: str) -> dict[str, Any]:
    """Evaluate all maps of a seed and a cohort."""
    begun = time.process_time()
    persons = kept(cohort_of, work)(kind, seed, cohort)
    seconds = {}
    maps, new_maps, held_maps = ({} for _ in range(3))
    n, m = len(persons.lesions), len(persons.new)
    for name in methods_of(SIZES[kind], cohort):
        found, seconds[name] = kept(maps_of, work)(work, kind, seed, cohort, name)
        for row, values in found.items():
            maps[row], new_maps[row], held_maps[row] = values[:n], values[n : n + m], values[n + m :]
    tables = evaluate_detectors(
        persons.lesions,
        maps,
        healthy=persons.new,
        healthy_maps=new_maps,
        validation=persons.held,
        validation_maps=held_maps,
        rules=board_rules(list(maps)),
        controls=True,
        lesion_wise=True,
    )
    evaluation_s = round(time.process_time() - begun, 1)
    print(f"{cohort}-{seed}: evaluated, {evaluation_s:.0f} s", flush=True)
    return {
        "tables": tables,
        "seconds": seconds,
        "evaluation_s": evaluation_s,
        "n_cellular": sum(c.kind == "cellular" for c in persons.lesions),
    }


def decided(result: dict[str, Any]) -> dict[str, Any]:
    """Decide the claims again from the stored figures of methods, by the rules of today."""
    good, shifted = (_stored_tables(result, cohort) for cohort in COHORTS)
    # What claims that cannot be tested here were measured with is not stored.
    kept = {row["claim"]: row for row in result["claims"] if row["verdict"] == NOT_SIMULATED}
    claims = _records(anomaly_board(good, shifted=shifted))
    return {
        "decided": {
            "date": date.today().isoformat(),
            **measure.commit("benchmarks/claims/weninger"),
        },
        "claims": [kept.get(row["claim"], row) for row in claims],
    }


def _stored_tables(result: dict[str, Any], cohort: str) -> dict[str, dict[str, pd.DataFrame]]:
    """Give the summary of each seed; tables behind claims that cannot be tested here are not stored."""
    empty = {
        "strata": pd.DataFrame(columns=["method", "rule", "stratum", "sensitivity_opened"]),
        "followup": pd.DataFrame(columns=["method", "rule", "grade", "n_mismatch"]),
    }
    tables = {}
    for k, seed in enumerate(result["seeds"]):
        rows = []
        for row in result["methods"][cohort]:
            own = {key: row[key] for key in ("part", "method", "rule", "control")}
            for key in (*MEASURES, *BY_RULE):
                # A method that was not in every seed has no place.
                values = row[key] if len(row[key]) == len(result["seeds"]) else []
                own[key] = np.nan if not values or values[k] is None else values[k]
            rows.append(own)
        tables[str(seed)] = {"summary": pd.DataFrame(rows), **empty}
    return tables


def _weight(name: str) -> int:
    kinds = (OWN, "RecDiscNet", "DAE")
    for weight, kind in enumerate(kinds):
        if name.startswith(kind):
            return weight
    return len(kinds)


def _interval(by_run: dict[str, Any]) -> dict[str, float | None]:
    found = difference_interval(by_run, MIX, MIX_FULL)
    return {key: measure.rounded(value, 5) for key, value in found.items()}


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return json.loads(table.to_json(orient="records", double_precision=5))


def summary(by_run: dict[str, Any]) -> list[dict[str, Any]]:
    """Give the figures of each seed by method and rule, of all lesions and of each kind."""
    whole = pd.concat([tables["summary"] for tables in by_run.values()], ignore_index=True)
    rows = []
    for (part, method, rule), own in whole.groupby(["part", "method", "rule"], sort=False):
        row: dict[str, Any] = {
            "part": part,
            "method": method,
            "rule": rule,
            "control": bool(own["control"].iloc[0]),
        }
        for column in (*MEASURES, *BY_RULE):
            row[column] = [measure.rounded(value, 5) for value in own[column]]
        rows.append(row)
    return rows


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Run everything and check the claims, or add to the stored result what was asked for."""
    stored = measure.stored(chosen.out)
    if chosen.decide:
        return stored | decided(stored)
    if chosen.inference:
        return stored | {
            "inference": speed.inference(),
            "voxelwise": speed.voxelwise(),
            "inference_machine": measure.machine(),
        }
    return boarded(chosen.seeds, chosen.size, chosen.work, chosen.n_jobs)


def boarded(seeds: list[int], kind: str, work: Path, n_jobs: int) -> dict[str, Any]:
    """Run everything, and check the claims."""
    size = SIZES[kind]
    begun = time.perf_counter()
    parallel = joblib.Parallel(n_jobs=n_jobs, batch_size=1, pre_dispatch=n_jobs)
    groups = [(cohort, seed) for cohort in COHORTS for seed in seeds]
    parallel(
        joblib.delayed(kept(cohort_of, work))(kind, seed, cohort) for cohort, seed in groups
    )
    jobs = [(seed, cohort, name) for cohort, seed in groups for name in methods_of(size, cohort)]
    # Long ones first: at the end no processor waits for another.
    jobs.sort(key=lambda job: _weight(job[2]))
    parallel(joblib.delayed(kept(maps_of, work))(work, kind, *job) for job in jobs)
    every = parallel(
        joblib.delayed(kept(evaluated, work))(work, kind, seed, cohort) for cohort, seed in groups
    )
    by_group = dict(zip(groups, every, strict=True))
    by_run = {
        cohort: {str(seed): by_group[cohort, seed]["tables"] for seed in seeds} for cohort in COHORTS
    }
    good, shifted = (by_run[cohort] for cohort in COHORTS)
    total = sum(
        one["evaluation_s"] + sum(sum(seconds.values()) for seconds in one["seconds"].values())
        for one in every
    )
    return {
        "synthetic": True,
        "data": (
            f"{size.n_healthy} synthetic healthy persons a seed, one in {size.n_folds} of them for "
            f"thresholds, {size.n_new} new ones and {size.n_lesions} patients with gliomas; no real persons"
        ),
        "size": kind,
        "settings": asdict(size),
        "seeds": seeds,
        "n_cellular": {str(seed): by_group[COHORTS[0], seed]["n_cellular"] for seed in seeds},
        "wall_s_of_this_run": round(time.perf_counter() - begun, 1),
        "processor_s": round(total, 1),
        "training_s": {f"{seed} {cohort}": one["seconds"] for (cohort, seed), one in by_group.items()},
        "methods": {cohort: summary(by_run[cohort]) for cohort in COHORTS},
        "margins": {cohort: _records(margin_table(by_run[cohort])) for cohort in COHORTS},
        "half_over_full": {cohort: _interval(by_run[cohort]) for cohort in COHORTS},
        "published": _records(published_beside(good)),
        "claims": _records(anomaly_board(good, shifted=shifted)),
    }


def markdown(result: dict[str, Any]) -> str:
    """Write the tables; isolation forests, no better than a guess on gliomas, are left out."""
    methods: dict[str, dict[str, dict[str, Any]]] = {cohort: {} for cohort in COHORTS}
    for cohort, by_method in methods.items():
        for row in result["methods"][cohort]:
            if row["part"] == "all" and row["method"] != "isolation forest":
                by_method.setdefault(row["method"], {})[row["rule"]] = row
    return runs.page("anomaly", result, methods_of=methods)


if __name__ == "__main__":
    runs.main(
        run,
        RESULT,
        markdown=markdown,
        code=("dmrifit", "anomaly", "benchmarks/claims/weninger"),
        packages=("numpy", "scikit-learn", "torch", "skorch"),
        seeds=SEEDS,
        quick=False,
        shared=True,
        options={
            "--size": {"choices": SIZES, "default": "full", "help": "smaller ones learn for a shorter time"},
            "--inference": {"action": "store_true", "help": "only measure speed, for the stored result"},
            "--decide": {"action": "store_true", "help": "only decide the claims of the stored result again"},
            **boards.N_JOBS,
        },
    )
