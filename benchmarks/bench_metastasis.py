"""
Which of the study's claims about metastases hold on synthetic patients, and how fast are whole
volumes predicted?

    .venv/bin/python benchmarks/bench_metastasis.py [--seeds 1 2 3] [--work FOLDER] [--n-jobs 2]
    .venv/bin/python benchmarks/bench_metastasis.py --size smoke --seeds 1 --out FILE
    .venv/bin/python benchmarks/bench_metastasis.py --inference

For each seed 60 synthetic patients are made; networks learn from 40 and segment 20. For each way
to take the prior scan one network is trained with cross-entropy, and every loss goes on from its
weights for a short while, all on the same segments. What is finished is kept in the folder FOLDER
(default build/metastasis) and not repeated as long as the code is the same. Each process computes
on one thread. `--inference` measures the time of whole volumes and adds it to the stored result.
"""

import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import _boards as boards
import _measure as measure
import joblib
import numpy as np
import pandas as pd
from claims.huang import ALPHAS, CLAIMS, metastasis_board, method_name

from dmrifit import load_model, save_model
from dmrifit.io.digests import source_digest
from dmrifit.networks.training import gather_training
from dmrifit.stats.claim_board import check_claims
from metastasis import DeepMedicSegmenter, evaluate_segmentations, simulate_metastases
from metastasis.segmentation.ensemble import merge_segmentations

RESULT = Path(__file__).parent / "results" / "metastasis.json"
SEEDS = (20261134, 20261135, 20261136)
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
#: Rooms that segmentations depend on, and what the evaluation depends on.
OF_VOXELS = (
    *(
        "metastasis.scans",
        "metastasis.networks",
        "metastasis.simulate",
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
    *("metastasis.study.segment_metrics", "metastasis.segmentation.ensemble"),
    *(
        "metastasis.segmentation.operating_points",
        "dmrifit.io.components",
        "dmrifit.stats.lesion_matching",
    ),
)
# Once, as code may be changed while it runs.
CODE_OF_VOXELS = source_digest(boards.room_modules(*OF_VOXELS))
CODE_OF_EVALUATION = source_digest(boards.room_modules(*OF_EVALUATION))
#: Components of fewer voxels are no findings: with voxels of 1 mm 4 are a ball of 2 mm, the
#: smallest metastasis.
MIN_VOXELS = 4
#: Below this a probability is kept as zero; the lowest threshold is higher.
SMALLEST = 0.005
#: Methods that are shown with every component, too.
EVERY_COMPONENT = (
    "BCE",
    "JVSS 0.995",
    "JVSS 0.5",
    "JVSS 0.995, prior",
    "JVSS 0.5, prior",
    "ensemble",
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


@dataclass(frozen=True)
class Size:
    """How much a board learns from, and for how long."""

    n_train: int = 40
    n_test: int = 20
    shape: tuple[int, int, int] = (66, 66, 66)
    spacing: float = 1.0
    mimics: tuple[int, int] = (0, 1)
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
    "smoke": Size(3, 2, (40, 40, 40), 1.5, (0, 2), ("", "prior"), (4, 4, 4), (4, 8), 24, 1, 1),
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


class Store(boards.Store):
    """What is finished of a seed."""

    def __init__(self, work: Path, size: Size, seed: int) -> None:
        super().__init__(
            work,
            str(seed),
            [asdict(replace(size, forms=())), COMMON, BEGIN, TUNE, MOVED, CODE_OF_VOXELS],
        )
        self.size, self.seed = size, seed

    def cases(self) -> tuple[list[Any], list[Any], list[Any]]:
        """Give cases to learn from, cases to segment, and these with prior scans that lie worse on the images."""
        return self.made("cases", self._simulated, compress=1)

    def _simulated(self) -> tuple[list[Any], list[Any], list[Any]]:
        n, held = self.size.n_train, self.size.n_test
        common: dict[str, Any] = {
            key: getattr(self.size, key) for key in ("shape", "spacing", "mimics")
        }
        common |= {"random_state": self.seed, "n_jobs": 1}
        every = simulate_metastases(n + held, **common)
        return (
            every[:n],
            every[n:],
            simulate_metastases(held, skip=n, misregistration=MOVED, **common),
        )

    def probabilities(self, name: str) -> list[np.ndarray]:
        with np.load(self.path(name, "npz")) as kept:
            return [kept[key] for key in kept.files]


def scans_of(cases: Sequence[Any], model: Any = None) -> dict[str, Any]:
    priors = [case.prior for case in cases]
    return {} if model is not None and model.prior_ is None else {"priors": priors}


def run_form(work: Path, size: Size, seed: int, form: str) -> None:
    """Train the networks of one form, whatever is not done yet, and segment."""
    store = Store(work, size, seed)
    train, test, moved = store.cases()
    images, labels = [case.image for case in train], [case.label for case in train]

    def segment(name: str, model: Any, training_s: float) -> None:
        for ending, cases in [
            ("", test),
            *([(", moved", moved)] if form in ("prior", "prior as channel") else []),
        ]:
            found, seconds = boards.timed(
                model.predict_proba, [case.image for case in cases], **scans_of(cases, model)
            )
            kept = [np.where(p < SMALLEST, np.float32(0), p) for p in found]
            spent = {"training_s": training_s, "prediction_s": seconds}
            store.keep(
                name + ending, lambda stream, kept=kept: np.savez_compressed(stream, *kept), spent
            )
        print(
            f"{seed}: {name}, {training_s:.0f} s of training, {seconds:.0f} s of prediction",
            flush=True,
        )

    start = store.path(f"{FIRST} {form}", "dmrifit")
    common = settings(size, form, seed)
    name = method_name("BCE", form=f"{form} {FIRST}".strip())
    if not (start.exists() and store.done(name)):
        model, seconds = boards.timed(
            DeepMedicSegmenter(
                **gather_training({**common, **BEGIN, "epochs": size.start_epochs})
            ).fit,
            images,
            labels,
            **scans_of(train),
        )
        save_model(model, start)
        segment(name, load_model(start), seconds)
    for loss, alpha in LOSSES[form]:
        name = name_of(form, loss, alpha)
        if store.done(name):
            continue
        weight = {} if alpha is None else {"alpha": alpha}
        # Segments other than those of the first training, and the same ones for every loss.
        tuned = (
            common
            | TUNE
            | {"loss": loss, "epochs": size.epochs, "warm_start_from": start}
            | weight
        )
        if (
            loss == "vss"
        ):  # from a network that segments already it would not be seen that it does not learn to
            tuned = common | BEGIN | {"loss": loss, "epochs": -(-size.start_epochs // 2)} | weight
        model, seconds = boards.timed(
            DeepMedicSegmenter(**gather_training(tuned | {"random_state": seed + 1000})).fit,
            images,
            labels,
            **scans_of(train),
        )
        segment(name, model, seconds)


def names_of(size: Size, form: str) -> list[str]:
    own = [name_of(form, loss, alpha) for loss, alpha in LOSSES[form]]
    moved = [f"{name}, moved" for name in own if form in ("prior", "prior as channel")]
    return [method_name("BCE", form=f"{form} {FIRST}".strip()), *own, *moved]


def evaluated(work: Path, size: Size, seed: int) -> dict[str, Any]:
    """Evaluate everything of a seed."""
    store = Store(work, size, seed)
    names = [name for form in size.forms for name in names_of(size, form)]
    stamps = {name: store.seconds(name) for name in names}

    def evaluate() -> dict[str, Any]:
        _, test, _ = store.cases()
        predictions: dict[str, Any] = {name: store.probabilities(name) for name in names}
        families = {}
        if "prior" in size.forms:
            pair = [predictions[name_of("prior", "jvss", alpha)] for alpha in (0.995, 0.5)]
            predictions["ensemble"] = [
                merge_segmentations(a >= 0.5, b >= 0.5) for a, b in zip(*pair, strict=True)
            ]
        if "" in size.forms:
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
        wanted = {
            name: tables[name]
            for name in ("summary", "ensemble", "curves", "areas", "families", "status")
        }
        return {
            "tables": wanted | {"every component": every["summary"]},
            "n_lesions": int(tables["summary"]["n_lesions"].iloc[0]),
            "n_with_prior": sum(case.prior is not None for case in test),
            "seconds": stamps,
        }

    return store.evaluated([stamps, MIN_VOXELS, CODE_OF_EVALUATION], evaluate)


def run(
    seeds: list[int], kind: str, forms: Sequence[str], work: Path, n_jobs: int
) -> dict[str, Any]:
    """Run everything, and check the claims."""
    size = replace(SIZES[kind], forms=tuple(forms))
    begun = time.perf_counter()
    parallel = joblib.Parallel(n_jobs=n_jobs, batch_size=1, pre_dispatch=n_jobs)
    parallel(joblib.delayed(_make_cases)(work, size, seed) for seed in seeds)
    parallel(
        joblib.delayed(run_form)(work, size, seed, form) for form in size.forms for seed in seeds
    )
    runs = dict(
        zip(
            seeds,
            parallel(joblib.delayed(evaluated)(work, size, seed) for seed in seeds),
            strict=True,
        )
    )
    wall = round(time.perf_counter() - begun, 1)
    by_run = {str(seed): one["tables"] for seed, one in runs.items()}
    board = metastasis_board(by_run)
    figures = check_claims(CLAIMS, _as_runs(by_run))
    training = {
        f"{seed}": {name: s["training_s"] for name, s in one["seconds"].items()}
        for seed, one in runs.items()
    }
    total = sum(
        one["evaluation_s"]
        + sum(
            s["prediction_s"] + (0 if ", moved" in name else s["training_s"])
            for name, s in one["seconds"].items()
        )
        for one in runs.values()
    )
    words = [
        "python",
        "benchmarks/bench_metastasis.py",
        "--seeds",
        *map(str, seeds),
        "--size",
        kind,
    ]
    words += (
        []
        if size.forms == SIZES[kind].forms
        else ["--forms", *(form or PLAIN for form in size.forms)]
    )
    return {
        "question": __doc__.strip().splitlines()[0],
        "synthetic": True,
        "data": f"{size.n_train + size.n_test} synthetic patients a seed, {size.n_train} to learn from; no patients",
        **measure.commit(
            "dmrifit", "metastasis", "benchmarks/bench_metastasis.py", "benchmarks/claims/huang.py"
        ),
        "command": shlex.join([*words, "--n-jobs", str(n_jobs)]),
        "size": kind,
        "settings": asdict(size)
        | {"common": COMMON, "start": BEGIN, "tune": TUNE, "min_voxels": MIN_VOXELS},
        "date": date.today().isoformat(),
        "machine": measure.machine(),
        "versions": measure.versions("numpy", "scikit-learn", "torch", "skorch"),
        "seeds": seeds,
        "n_lesions": {str(seed): one["n_lesions"] for seed, one in runs.items()},
        "n_with_prior": {str(seed): one["n_with_prior"] for seed, one in runs.items()},
        "wall_s_of_this_run": wall,
        "processor_s": round(total, 1),
        "training_s": training,
        "methods": summary(by_run),
        "every_component": summary(by_run, "every component"),
        "areas": averaged(
            by_run, "areas", ("name", "kind"), ("area", "area_common", "area_plain", "froc")
        ),
        "figures": json.loads(figures.to_json(orient="records")),
        "claims": json.loads(board.to_json(orient="records")),
    }


def _make_cases(work: Path, size: Size, seed: int) -> None:
    Store(work, size, seed).cases()


def _as_runs(by_run: dict[str, Any]) -> list[Any]:
    from dmrifit.stats.claim_board import Run

    return [Run("", name, tables) for name, tables in by_run.items()]


def averaged(
    by_run: dict[str, Any], name: str, keys: tuple[str, ...], columns: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Give mean and standard deviation over seeds, and the figures of each."""
    whole = pd.concat([tables[name] for tables in by_run.values()], ignore_index=True)
    rows = []
    for key, own in whole.groupby(list(keys), sort=False):
        row: dict[str, Any] = dict(zip(keys, key, strict=True))
        for column in columns:
            row[column] = [None if np.isnan(v) else round(float(v), 5) for v in own[column]]
        rows.append(row)
    return rows


def summary(by_run: dict[str, Any], name: str = "summary") -> list[dict[str, Any]]:
    columns = (*MEASURES, "n_false_positives", "n_lesions", "n_scans")
    return averaged(by_run, name, ("part", "method"), columns)


# Whole volumes ---------------------------------------------------------------------------------


def inference() -> list[dict[str, Any]]:
    """Measure dense against tiled prediction, and against the rate of a large matrix product on the same core."""
    import torch

    from metastasis.networks.architectures import DeepMedic
    from metastasis.networks.sizes import dense_products
    from metastasis.segmentation.inference import dense_logits, tiled_logits
    from metastasis.segmentation.sampling import low_resolution

    torch.set_num_threads(1)
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)

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
        case: dict[str, Any] = {"image": image} | {
            f"low_{f}": low_resolution(image, f) for f in factors
        }
        case |= {"prior": image[:, ::-1].copy(), "valid": np.float32(1)} if prior else {}
        quick, slow = dense_logits(network, case), tiled_logits(network, case)
        repeats = 3 if widths == nine or len(widths) == 6 else 1
        times = [best(lambda n=network, c=case: dense_logits(n, c), repeats),
                 best(lambda n=network, c=case: tiled_logits(n, c), repeats)]  # fmt: skip
        peak = 2 * 2048**3 / best(lambda: a @ b, 6)
        products = dense_products(shape, widths, factors, dense, prior_path=prior)
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
                "gmac": round(products / 1e9, 2),
                "share_of_matrix_product": round(2 * products / times[0] / peak, 3),
                "matrix_product_gflops": round(peak / 1e9, 1),
            }
        )
        print(rows[-1], flush=True)
    return rows


# The block of the README -----------------------------------------------------------------------


def markdown(result: dict[str, Any]) -> str:
    """Write the tables."""
    seeds, lesions = result["seeds"], list(result["n_lesions"].values())
    head = (
        f"Synthetic patients, seeds {', '.join(map(str, seeds))}: {result['settings']['n_train']} "
        "to learn from, "
        f"{result['settings']['n_test']} with {min(lesions)} to {max(lesions)} metastases to "
        "segment. "
        f"{result['machine']['processor']}; {result['date']}, commit "
        f"{str(result['commit'])[:10]}; "
        f"{result['processor_s'] / 60:.0f} min of one processor."
    )
    parts = [
        head,
        methods_table([one for one in result["methods"] if not one["method"].endswith(FIRST)]),
    ]
    if result.get("every_component"):
        parts.append("With every component counted, single voxels too:")
        parts.append(methods_table(result["every_component"]))
    parts.append(boards.claims_table(result["claims"]))
    if result.get("inference"):
        header = [
            "weights",
            "paths",
            "volume",
            "dense, s",
            "tiled, s",
            "ratio",
            "of a matrix product's rate",
        ]
        header += ["largest difference"]
        rows = [
            [
                boards.large(one["weights"]),
                str(1 + len(one["low_resolution"]) + one["prior"]),
                "×".join(map(str, one["shape"])),
                f"{one['dense_s']:.2f}",
                f"{one['tiled_s']:.2f}",
                f"{one['ratio']:.1f}",
                f"{100 * one['share_of_matrix_product']:.0f} %",
                f"{one['largest_difference']:.1e}",
            ]
            for one in result["inference"]
        ]
        parts.append(measure.table(header, rows))
    return "\n\n".join(parts)


def methods_table(methods: Sequence[dict[str, Any]]) -> str:
    header = [
        "method",
        "sensitivity",
        "precision",
        "FP per scan",
        "mDSC",
        "strict sens.",
        "strict prec.",
    ]
    header += ["lesion Dice", "segment sens.", "segment spec.", "sens. < 0.1 mL"]
    digits = {"segment_specificity": 4}
    rows = [
        [one["method"], *(measure.over_runs(one[key], digits.get(key, 3)) for key in MEASURES)]
        for one in methods
        if one["part"] == "all"
    ]
    return measure.table(header, rows)


def main(arguments: list[str] | None = None) -> None:
    parser = boards.options(
        "Check the study's claims about metastases on synthetic patients.", RESULT, SEEDS, SIZES
    )
    parser.add_argument(
        "--forms", nargs="+", choices=[form or PLAIN for form in FORMS], help="by default all"
    )
    chosen = measure.chosen(parser, arguments, RESULT)
    if chosen.inference:
        rows = {"inference": inference(), "inference_machine": measure.machine()}
        measure.write(measure.stored(chosen.out) | rows, chosen.out)
        return
    forms = (
        [form.replace(PLAIN, "") for form in chosen.forms]
        if chosen.forms
        else SIZES[chosen.size].forms
    )
    result = run(chosen.seeds, chosen.size, forms, chosen.work, chosen.n_jobs)
    boards.write(result, chosen.out)
    print(markdown(measure.stored(chosen.out)))


if __name__ == "__main__":
    main()
