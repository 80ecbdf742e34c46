"""
Which of the study's claims about metastases hold on synthetic patients, and how fast are whole
volumes predicted?

    .venv/bin/python -m benchmarks.metastasis.bench_metastasis [--worlds "hard world"] [--seeds 1 2 3]
        [--work FOLDER] [--n-jobs 2]
    .venv/bin/python -m benchmarks.metastasis.bench_metastasis --size smoke --seeds 1 --out FILE
    .venv/bin/python -m benchmarks.metastasis.bench_metastasis --inference

For each world and seed 60 synthetic patients are made; networks learn from 40 and segment 20. For
each way to take the prior scan one network is trained with cross-entropy, and every loss goes on
from its weights for a short while, all on the same segments. The figures of each world and seed are
a JSON of their own in results/metastasis; networks of an unfinished seed stay in the folder FOLDER
(default build/metastasis): an interrupted run goes on there as long as the code is the same.
Margins and seeds are those of claims/huang.toml; nothing here decides the outcome. Each process
computes on one thread. `--size smoke` is a quick trial. `--inference` measures the time of whole
volumes and adds it to the stored result.
"""

import argparse
import hashlib
import itertools
import json
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np

from benchmarks import _boards as boards
from benchmarks import _measure as measure
from benchmarks import _runs as runs
from benchmarks.claims.huang import (
    ALPHAS,
    MARGINS,
    MARGINS_FILE,
    WORLDS,
    claim_figures,
    decide_claims,
    method_name,
)
from dmrifit import load_model, save_model
from dmrifit.networks.training import gather_training
from metastasis import DeepMedicSegmenter, evaluate_segmentations, simulate_metastases
from metastasis.segmentation.ensemble import merge_segmentations

RESULT = measure.RESULTS / "metastasis.json"
SEEDS = tuple(tomllib.loads(MARGINS_FILE.read_text(encoding="utf-8"))["board"]["seeds"])
SSE_ALPHAS = (0.995, 0.95, 0.9, 0.5)
#: How a prior scan is taken -> parameters.
FORMS: dict[str, dict[str, Any]] = {
    "": {"prior": None},
    "prior": {"prior": "path"},
    "prior as zeros": {"prior": "path", "missing_prior": "zeros"},
    "prior as channel": {"prior": "channel"},
    "U-Net": {"prior": None, "network": "unet"},
}
#: What goes on from the first network of a form.
LOSSES: dict[str, list[tuple[str, float | None]]] = {
    "": [
        ("bce", None),
        *(("jvss", alpha) for alpha in ALPHAS),
        *(("sse", alpha) for alpha in SSE_ALPHAS),
        ("vss", 0.95),
    ],
    "prior": [("jvss", 0.995), ("jvss", 0.5)],
    "prior as zeros": [("jvss", 0.995)],
    "prior as channel": [("jvss", 0.995)],
    "U-Net": [("bce", None), ("jvss", 0.995), ("jvss", 0.9), ("jvss", 0.5)],
}
FIRST = "start"  # what the training of a form is called, by cross-entropy, that others go on from
PLAIN = "plain"  # what the form without a prior scan is called on the command line
MOVED = 2.0  # times the misregistration of prior scans in training
#: Things of a patient that look like metastases and are none, by world. In the old phantom fewer
#: than by default: without a prior scan most of them cannot be told from metastases.
MIMICS = {"old phantom": (0, 1), "hard world": (1, 5)}
#: What a result depends on.
CODE = (
    "dmrifit",
    "metastasis",
    "benchmarks/metastasis/bench_metastasis.py",
    "benchmarks/claims/huang.py",
    "benchmarks/claims/huang.toml",
    "benchmarks/claims/huang_claims.toml",
)
#: What segmentations depend on, the settings of this module among it, and what the evaluation
#: depends on.
OF_VOXELS = (
    "benchmarks.metastasis.bench_metastasis",
    *(
        "metastasis.scans",
        "metastasis.networks",
        "metastasis.simulate.enhancement",
        "metastasis.simulate.patients",
        "metastasis.segmentation.inference",
    ),
    *("metastasis.segmentation.sampling", "metastasis.segmentation.segmenter"),
    *("metastasis.segmentation.operating_points", "dmrifit._utils", "dmrifit.networks"),
    "dmrifit.simulate",
)
OF_EVALUATION = (
    *(
        "metastasis.study.controls",
        "metastasis.study.evaluation",
        "metastasis.study.operating_curves",
    ),
    *("metastasis.study.evaluation", "metastasis.segmentation.ensemble"),
    *(
        "metastasis.segmentation.operating_points",
        "dmrifit.io.components",
        "dmrifit.stats.lesion_matching",
        "dmrifit.stats.patient_summary",
    ),
)
# Once, as code may be changed while it runs.
CODE_OF_VOXELS = boards.code_digest(*OF_VOXELS)
CODE_OF_EVALUATION = boards.code_digest(*OF_VOXELS, *OF_EVALUATION)
CODE_OF_CLAIMS = hashlib.sha256(
    b"".join(path.read_bytes() for path in sorted(MARGINS_FILE.parent.glob("huang*")))
).hexdigest()[:16]
#: Components of fewer voxels are no findings: with voxels of 1 mm 4 are a ball of 2 mm, the
#: smallest metastasis.
MIN_VOXELS = 4
#: Below this a probability is kept as zero; the lowest threshold is higher.
SMALLEST = 0.005
ENSEMBLE = "ensemble"
#: Methods that are shown with every component, too.
EVERY_COMPONENT = (
    "BCE",
    "JVSS 0.995",
    "JVSS 0.5",
    "JVSS 0.995, prior",
    "JVSS 0.5, prior",
    ENSEMBLE,
)
THRESHOLDS = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
MEASURES = (
    *(
        "sensitivity",
        "precision",
        "false_positives_per_scan",
        "mDSC",
        "strict_sensitivity",
        "strict_precision",
    ),
    *("lesion_dice", "segment_sensitivity", "segment_specificity", "sensitivity_small"),
)
#: What is kept of each method and seed.
COLUMNS = ("part", "method", *MEASURES)


@dataclass(frozen=True)
class Size:
    """How much a board learns from, and for how long."""

    n_train: int = 40
    n_test: int = 20
    shape: tuple[int, int, int] = (66, 66, 66)
    spacing: float = 1.0
    forms: tuple[str, ...] = tuple(FORMS)
    widths: tuple[int, ...] = (8, 8, 8, 16, 16, 16)
    unet_widths: tuple[int, ...] = (8, 16, 32)
    segments_per_epoch: int = 240
    start_epochs: int = 20
    epochs: int = 2
    batch_size: int = 12


SIZES = {
    "full": Size(),
    # Small batches: the losses separate after some 50 steps, however many segments a step has.
    "small": Size(
        *(6, 4, (54, 54, 54)),
        widths=(4, 4, 4, 8, 8, 8),
        unet_widths=(4, 8, 16),
        segments_per_epoch=192,
        start_epochs=2,
        epochs=1,
        batch_size=4,
    ),
    "smoke": Size(3, 2, (40, 40, 40), 1.5, ("", "prior"), (4, 4, 4), (4, 8), 24, 1, 1),
}
COMMON: dict[str, Any] = {
    "segment_size": 27,
    "low_resolution": (3,),
    "dense": (32,),
    "device": "cpu",
}
BEGIN: dict[str, Any] = {
    "loss": "bce",
    "optimizer": "adamw",
    "learning_rate": 0.003,
    "schedule": "cosine",
}
TUNE: dict[str, Any] = {"optimizer": "adamw", "learning_rate": 0.0005, "schedule": "cosine"}


def name_of(form: str, loss: str, alpha: float | None) -> str:
    if loss == FIRST:
        return method_name("BCE", form=f"{form} {FIRST}".strip())
    return method_name(loss.upper(), alpha, form)


def settings(size: Size, form: str, seed: int) -> dict[str, Any]:
    """Give what all networks of a form share."""
    widths = size.unet_widths if form == "U-Net" else size.widths
    own = {
        "widths": widths,
        "segments_per_epoch": size.segments_per_epoch,
        "batch_size": size.batch_size,
        "random_state": seed,
    }
    return COMMON | own | FORMS[form]


def kept(function: Callable[..., Any], work: Path) -> Callable[..., Any]:
    code = CODE_OF_VOXELS if function is not evaluated else CODE_OF_EVALUATION
    return boards.kept(work, code, function)


def cases_of(kind: str, world: str, seed: int) -> tuple[list[Any], list[Any], list[Any]]:
    """Give cases to learn from, cases to segment, and these with prior scans that lie worse on the images."""
    size = SIZES[kind]
    common: dict[str, Any] = {"shape": size.shape, "spacing": size.spacing, "n_jobs": 1}
    common |= {"mimics": MIMICS[world], "world": WORLDS[world], "random_state": seed}
    every = simulate_metastases(size.n_train + size.n_test, **common)
    moved = simulate_metastases(
        size.n_test, skip=size.n_train, misregistration=MOVED, **common
    )
    return every[: size.n_train], every[size.n_train :], moved


def scans_of(cases: Sequence[Any], model: Any = None) -> dict[str, Any]:
    priors = [case.prior for case in cases]
    return {} if model is not None and model.prior_ is None else {"priors": priors}


def start_of(work: Path, kind: str, world: str, seed: int, form: str) -> tuple[str, float]:
    """Train the network of a form that the others go on from; its file's name and the seconds."""
    size = SIZES[kind]
    options = settings(size, form, seed) | BEGIN | {"epochs": size.start_epochs}
    model, seconds = fitted(work, kind, world, seed, options)
    name = f"{kind}-{world}-{seed}-{form or PLAIN}-{CODE_OF_VOXELS[:10]}.dmrifit"
    save_model(model, work / name)
    return name, seconds


def fitted(
    work: Path, kind: str, world: str, seed: int, options: dict[str, Any]
) -> tuple[Any, float]:
    train, _, _ = kept(cases_of, work)(kind, world, seed)
    images, labels = [case.image for case in train], [case.label for case in train]
    model = DeepMedicSegmenter(**gather_training(options))
    return boards.timed(model.fit, images, labels, **scans_of(train))


def segmented(
    work: Path, kind: str, world: str, seed: int, form: str, loss: str, alpha: float | None
) -> dict[str, tuple[list[np.ndarray], dict[str, float]]]:
    """Train a network of a form, or read its first one, and segment the cases with it."""
    size = SIZES[kind]
    start, seconds = kept(start_of, work)(work, kind, world, seed, form)
    start = work / start
    options = settings(size, form, seed) | {"loss": loss, "random_state": seed + 1000}
    options |= {} if alpha is None else {"alpha": alpha}
    if loss == FIRST:
        model = load_model(start)
    elif loss == "vss":
        # From a network that segments already it would not be seen that it does not learn to.
        options = BEGIN | options | {"epochs": -(-size.start_epochs // 2)}
        model, seconds = fitted(work, kind, world, seed, options)
    else:
        # Segments other than those of the first training, and the same ones for every loss.
        options |= TUNE | {"epochs": size.epochs, "warm_start_from": start}
        model, seconds = fitted(work, kind, world, seed, options)
    name = name_of(form, loss, alpha)
    _, test, moved = kept(cases_of, work)(kind, world, seed)
    found = {}
    for ending, cases in (("", test), (", moved", moved)):
        if ending and (loss == FIRST or form not in ("prior", "prior as channel")):
            continue
        images = [case.image for case in cases]
        answers, spent = boards.timed(model.predict_proba, images, **scans_of(cases, model))
        answers = [np.where(p < SMALLEST, np.float32(0), p) for p in answers]
        found[name + ending] = answers, {"training_s": seconds, "prediction_s": spent}
    print(f"{world}-{seed}: {name}, {seconds:.0f} s of training", flush=True)
    return found


def trainings(forms: Sequence[str]) -> list[tuple[str, str, float | None]]:
    return [(form, *one) for form in forms for one in [(FIRST, None), *LOSSES[form]]]


def evaluated(
    work: Path, kind: str, world: str, seed: int, forms: tuple[str, ...]
) -> dict[str, Any]:
    """Evaluate everything of a seed in a world."""
    begun = time.process_time()
    _, test, _ = kept(cases_of, work)(kind, world, seed)
    predictions: dict[str, Any] = {}
    seconds = {}
    for training in trainings(forms):
        for name, one in kept(segmented, work)(work, kind, world, seed, *training).items():
            predictions[name], seconds[name] = one
    families = {}
    if "prior" in forms:
        pair = [predictions[name_of("prior", "jvss", alpha)] for alpha in (0.995, 0.5)]
        predictions[ENSEMBLE] = [
            merge_segmentations(a >= 0.5, b >= 0.5) for a, b in zip(*pair, strict=True)
        ]
    if "" in forms:
        families["JVSS"] = [name_of("", "jvss", alpha) for alpha in ALPHAS]
        families["SSE"] = [name_of("", "sse", alpha) for alpha in SSE_ALPHAS]
    tables = evaluate_segmentations(
        test,
        predictions,
        thresholds=THRESHOLDS,
        families=families,
        min_voxels=MIN_VOXELS,
        n_bootstrap=0,
        random_state=seed,
    )
    every = evaluate_segmentations(
        test,
        {name: predictions[name] for name in EVERY_COMPONENT if name in predictions},
        thresholds=[0.5],
        controls=False,
        n_bootstrap=0,
    )
    wanted = ("summary", "ensemble", "curves", "areas", "families", "status", "matched")
    return {
        "tables": {name: tables[name] for name in wanted} | {"every component": every["summary"]},
        "n_lesions": int(tables["summary"]["n_lesions"].iloc[0]),
        "n_with_prior": sum(case.prior is not None for case in test),
        "seconds": seconds,
        "evaluation_s": round(time.process_time() - begun, 1),
    }


def run_seed(
    work: Path, kind: str, world: str, seed: int, forms: tuple[str, ...], n_jobs: int
) -> dict[str, Any]:
    """Train, segment and evaluate everything of a seed in a world."""
    origin = measure.provenance(__file__, *CODE)
    of_seed = work, kind, world, seed
    kept(cases_of, work)(*of_seed[1:])
    # Longest first, so that no process is left with it at the end.
    ordered = sorted(forms, key=lambda form: "path" not in FORMS[form].values())
    parallel = joblib.Parallel(n_jobs=n_jobs, batch_size=1, pre_dispatch=n_jobs)
    parallel(joblib.delayed(kept(start_of, work))(*of_seed, form) for form in ordered)
    parallel(
        joblib.delayed(kept(segmented, work))(*of_seed, *training) for training in trainings(ordered)
    )
    result = kept(evaluated, work)(*of_seed, forms)
    tables, seconds = result["tables"], result["seconds"]
    figures = claim_figures({(world, str(seed)): tables})
    # Networks on moved prior scans are not trained again.
    trained = sum(s["training_s"] for name, s in seconds.items() if ", moved" not in name)
    spent = trained + result["evaluation_s"] + sum(s["prediction_s"] for s in seconds.values())
    return {
        **origin,
        "digests": digests(),
        "processor_minutes": round(spent / 60, 2),
        "n_lesions": result["n_lesions"],
        "n_with_prior": result["n_with_prior"],
        **boards.part(
            figures,
            methods=tables["summary"][list(COLUMNS)],
            every_component=tables["every component"][list(COLUMNS)],
        ),
    }


def board_of(size: Size, world: str) -> dict[str, Any]:
    """Describe what a board was run with, as JSON keeps it."""
    content = asdict(size) | {"mimics": MIMICS[world], "start": BEGIN, "tune": TUNE}
    return dict(json.loads(json.dumps(content | {"common": COMMON, "min_voxels": MIN_VOXELS})))


def digests() -> dict[str, str]:
    """Tell what code a finished seed is of."""
    return {
        "segmentations": CODE_OF_VOXELS,
        "evaluation": CODE_OF_EVALUATION,
        "claims": CODE_OF_CLAIMS,
    }


# Whole volumes ---------------------------------------------------------------------------------


def inference() -> list[dict[str, Any]]:
    """Measure dense against tiled prediction, on one core."""
    import torch

    from benchmarks.metastasis._tiled_logits import tiled_logits
    from metastasis.networks.architectures import DeepMedic
    from metastasis.segmentation.inference import dense_logits
    from metastasis.segmentation.sampling import cell_means

    torch.set_num_threads(1)

    def best(function: Any, repeats: int) -> float:
        seconds = []
        for _ in range(repeats):
            begun = time.thread_time()
            function()
            seconds.append(time.thread_time() - begun)
        return min(seconds)

    nine = (8, 8, 8, 16, 16, 16, 16, 16, 16)
    rows = []
    for widths, factors, dense, shape, prior in (
        ((8, 8, 8, 16, 16, 16), (3,), (32,), (66, 66, 66), False),
        (nine, (3, 5), (32,), (66, 66, 66), False),
        (nine, (3, 5), (32,), (66, 66, 66), True),
        (nine, (3, 5), (32,), (120, 120, 90), False),
        ((30, 40, 50, 60, 70, 80, 90, 100, 110), (3, 5), (300, 300), (48, 48, 48), False),
    ):
        torch.manual_seed(0)
        network = DeepMedic(1, widths, factors, dense, prior_path=prior).eval()
        image = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
        case: dict[str, Any] = {"image": image}
        case |= {f"low_{factor}": cell_means(image, factor) for factor in factors}
        case |= {"prior": image[:, ::-1].copy(), "valid": np.float32(1)} if prior else {}
        quick, slow = dense_logits(network, case), tiled_logits(network, case)
        repeats = 3 if widths == nine or len(widths) == 6 else 1
        times = [best(lambda n=network, c=case: dense_logits(n, c), repeats),
                 best(lambda n=network, c=case: tiled_logits(n, c), repeats)]  # fmt: skip
        rows.append(
            {
                "widths": widths,
                "low_resolution": factors,
                "shape": shape,
                "prior": prior,
                "weights": sum(p.numel() for p in network.parameters()),
                "largest_difference": float(np.abs(quick - slow).max()),
                "dense_s": round(times[0], 3),
                "tiled_s": round(times[1], 3),
                "ratio": round(times[1] / times[0], 2),
            }
        )
        print(rows[-1], flush=True)
    return rows


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Finish the seeds, and decide the claims; or measure the speed, for the stored result."""
    if chosen.inference:
        speed = {"inference": inference(), "inference_machine": measure.machine()}
        return measure.stored(chosen.out) | speed
    size, worlds, forms = SIZES[chosen.size], chosen.worlds, SIZES[chosen.size].forms
    if chosen.forms:
        forms = tuple(form.replace(PLAIN, "") for form in chosen.forms)
        size = replace(size, forms=forms)
    # Seed by seed, so that an unfinished board has both worlds.
    parts = [
        runs.Part(
            f"{world}-{seed}",
            board_of(size, world),
            run_seed,
            (chosen.work, chosen.size, world, seed, forms, chosen.n_jobs),
        )
        for seed, world in itertools.product(chosen.seeds, worlds)
    ]
    paths = runs.finished(parts, chosen.out.with_suffix(""))
    stored = [measure.stored(path) for path in paths]
    pairs = zip(paths, stored, strict=True)
    other_code = [path.stem for path, one in pairs if one.get("digests") != digests()]
    for name in other_code:
        print(f"{name} was finished by other code: remove its file to run it again", flush=True)
    n_patients = size.n_train + size.n_test
    return {
        "synthetic": True,
        "data": f"{n_patients} synthetic patients a seed and world, {size.n_train} to learn from; no patients",
        "size": chosen.size,
        "settings": {world: board_of(size, world) for world in worlds},
        "worlds": list(worlds),
        "seeds": list(chosen.seeds),
        "of_other_code": other_code,
        **{key: [one[key] for one in stored] for key in ("n_lesions", "n_with_prior")},
        "processor_minutes": {
            world: [one["processor_minutes"] for one in stored if one["condition"] == world]
            for world in worlds
        },
        **boards.decided(paths, decide_claims, MARGINS),
        "methods": by_method(paths, "methods"),
        "every_component": by_method(paths, "every component"),
    }


def by_method(paths: Sequence[Path], name: str) -> list[dict[str, Any]]:
    """Give the figures of each seed, by world, part and method."""
    table = boards.read_tables(paths, name).rename(columns={"condition": "world"})
    table[[*MEASURES]] = table[[*MEASURES]].round(5).astype(object).where(table[[*MEASURES]].notna(), None)
    grouped = table.groupby(["world", "part", "method"], sort=False)[[*MEASURES]].agg(list)
    return list(grouped.reset_index().to_dict("records"))


def markdown(result: dict[str, Any]) -> str:
    """Write the tables."""
    return runs.page("metastasis", result, measures=MEASURES)


if __name__ == "__main__":
    worlds = {"nargs": "+", "choices": list(WORLDS), "default": list(WORLDS), "help": "by default both"}
    forms = {"nargs": "+", "choices": [form or PLAIN for form in FORMS], "help": "by default all"}
    runs.main(
        run,
        RESULT,
        markdown=markdown,
        code=CODE,
        packages=("numpy", "scikit-learn", "torch", "skorch"),
        seeds=SEEDS,
        quick=False,
        shared=True,
        options={
            "--size": {"choices": SIZES, "default": "full", "help": "smaller ones learn for a shorter time"},
            "--inference": {"action": "store_true", "help": "only measure speed, for the stored result"},
            "--worlds": worlds,
            "--forms": forms,
            **boards.N_JOBS,
        },
    )
