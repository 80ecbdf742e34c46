"""
How well do detectors find anomalies of generators that they have not seen?

    .venv/bin/python -m benchmarks.anomaly.bench_anomaly_generators [--seeds 1 2 3] [--parts aligned trees networks-1]
    .venv/bin/python -m benchmarks.anomaly.bench_anomaly_generators --quick --out FILE

For each seed detectors learn from 16 synthetic healthy persons, thresholds come from 8 others, false
positives are counted on 10 more, and 10 patients have an anomaly of each of the five generators in
turn: the same persons, the same noise. All detectors have the same scans and scored voxels (white, gray and
deep gray matter), maps smoothed alike, and those that align scans the same alignment. What a detector
has learned is never in its headline, the mean over the generators that it has not seen. Each part of
a seed is a file in results/anomaly_generators, which a later run does not repeat.
"""

import argparse
import json
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.metrics import average_precision_score, roc_auc_score

from anomaly import (
    GENERATORS,
    AlignedMahalanobis,
    ImplantDetector,
    IsolationForestDetector,
    OneMinusMean,
    PCADetector,
    VoxelwiseGaussian,
    simulate_dmri,
)
from anomaly.detectors import implant_detector as trees
from anomaly.detectors.aligned import AlignedScans, template_at
from anomaly.detectors.base import Scans
from anomaly.detectors.features import look_of, masked_smoothing
from anomaly.generators.implants import noise_floor
from anomaly.scans.cases import Case
from benchmarks import _measure as measure
from benchmarks import _runs as runs
from dmrifit._utils.threads import one_thread

RESULT = measure.RESULTS / "anomaly_generators.json"
SEEDS = tuple(range(20261201, 20261211))
PARTS = ("aligned", "trees", "networks-1", "networks-4", "networks-16")
#: Standard deviation in mm by which maps are smoothed where a row says nothing else.
SMOOTH_MM = 4.0
RATE = 0.01
CODE = ("dmrifit", "anomaly", "benchmarks/_measure.py")
REFERENCE = "aligned Mahalanobis, 6 mm"
LEFT_OUT = "trees, all but the tested one"
#: Generators that a detector has learned from, by the beginning of its name: gray in the matrix.
SEEN = {
    "implants": ("gliomas",),
    "implants and patches": ("gliomas", "patches"),
    "RecDiscNet": ("ellipsoids",),
}


@dataclass(frozen=True)
class Size:
    """How many persons there are, and how large their scans."""

    n_train: int = 16
    n_thresholds: int = 8
    n_new: int = 10
    n_patients: int = 10
    n_directions: int = 16
    shape: tuple[int, int, int] = (40, 48, 32)
    spacing: float = 4.0
    n_trees: int = 200
    n_lesions: int = 2
    n_rows: int = 60_000
    n_left_out_trees: int = 120


FULL = Size()
QUICK = Size(
    *(5, 3, 2, 2, 6, (20, 24, 16), 8.0),
    **{"n_trees": 10, "n_left_out_trees": 10, "n_rows": 4000, "n_lesions": 1},
)

#: A map of one scan by the name of its row.
Maps = dict[str, np.ndarray]


@dataclass(frozen=True)
class World:
    """The persons of a seed: to learn from, for thresholds, new healthy ones, and patients."""

    train: list[Case]
    thresholds: list[Case]
    new: list[Case]
    patients: dict[str, list[Case]]

    @classmethod
    def simulate(cls, size: Size, seed: int) -> "World":
        options: dict[str, Any] = {
            "n_directions": size.n_directions,
            "shape": size.shape,
            "spacing": size.spacing,
            "random_state": seed,
        }
        n_healthy = size.n_train + size.n_thresholds + size.n_new
        healthy, _ = simulate_dmri(n_healthy, 0, **options)
        patients = {
            name: simulate_dmri(0, size.n_patients, generator=name, **options)[1]
            for name in GENERATORS
        }
        first, second = size.n_train, size.n_train + size.n_thresholds
        return cls(healthy[:first], healthy[first:second], healthy[second:], patients)


# Parts: what makes the maps of a scan --------------------------------------------------------------

Maker = Callable[[Case], Maps]


def smoothed(score: np.ndarray, case: Case, sd_mm: float, size: Size) -> np.ndarray:
    return masked_smoothing(score, case.brain, sd_mm / size.spacing)


def aligned_part(world: World, size: Size, seed: int) -> Maker:
    """Detectors without a lesion, and those that learn implanted lesions."""
    smoothing: dict[str, Any] = {
        "smooth_mm": SMOOTH_MM,
        "spacing": size.spacing,
        "calibration": None,
    }
    signals, masks = [c.signal for c in world.train], [c.brain for c in world.train]
    plain = {
        "z, one-sided": VoxelwiseGaussian(side="low", distance="z", **smoothing),
        "z, two-sided": VoxelwiseGaussian(side="both", distance="z", **smoothing),
        "Mahalanobis": VoxelwiseGaussian(("mean", "spread"), distance="mahalanobis", **smoothing),
        "PCA": PCADetector(**smoothing),
        "1 − mean signal": OneMinusMean(**smoothing),
        "isolation forest": IsolationForestDetector(random_state=seed, **smoothing),
    }
    for detector in plain.values():
        detector.fit(signals, masks)
    looks = [look_of(s, m) for s, m in zip(signals, masks, strict=True)]
    aligned = AlignedScans.learn(looks, 2.0, np.arange(len(looks)))
    sharing: dict[str, Any] = {
        "aligned Mahalanobis, 4 mm": AlignedMahalanobis(**smoothing),
        REFERENCE: AlignedMahalanobis(smooth_mm=6.0, spacing=size.spacing, calibration=None),
    }
    for name, n_patches in (("implants", 0), ("implants and patches", 2)):
        sharing[name] = ImplantDetector(
            n_patches=n_patches,
            n_trees=size.n_trees,
            random_state=seed,
            **smoothing,
        )
    for detector in sharing.values():
        detector._learn_aligned(aligned)

    def make(case: Case) -> Maps:
        maps = {
            name: detector.anomaly_map([case.signal], [case.brain])[0]
            for name, detector in plain.items()
        }
        look = look_of(case.signal, case.brain)
        positions = sharing[REFERENCE]._aligned(look)
        for name, detector in sharing.items():
            maps[name] = detector._score(look, positions)
        return maps

    return make


def trees_part(world: World, size: Size, seed: int) -> Maker:
    """Trees on the columns of the implant detector, learned from one generator, or from the others."""
    looks = [look_of(case.signal, case.brain) for case in world.train]
    aligned = AlignedScans.learn(looks, 2.0, np.arange(len(looks)))
    template = AlignedMahalanobis(spacing=size.spacing, calibration=None)
    template._learn_aligned(aligned)
    rows: dict[str, list[np.ndarray]] = {name: [] for name in GENERATORS}
    answers: dict[str, list[np.ndarray]] = {name: [] for name in GENERATORS}
    per_scan = size.n_rows // (size.n_train * (size.n_lesions + 1))
    for i, case in enumerate(world.train):
        expected = aligned.left_out(i)
        healthy_table = trees._table(looks[i], expected, aligned.positions[i])
        for name, generator in GENERATORS.items():
            rng = np.random.default_rng([seed, i, zlib.crc32(name.encode())])
            drawn = rng.choice(
                len(healthy_table), min(per_scan, len(healthy_table)), replace=False
            )
            rows[name].append(healthy_table[drawn])
            answers[name].append(np.zeros(len(drawn), dtype=bool))
            for k in range(size.n_lesions):
                other = world.train[(i + 1 + k) % len(world.train)]
                source = other.signal if generator.needs_source else None
                changed, lesion = generator(
                    case.signal,
                    case.brain,
                    source=source,
                    noise=noise_floor(looks[i]),
                    random_state=1000 * seed % 2**31 + 10 * i + k,
                )
                changed_look = look_of(changed, case.brain)
                table = trees._table(changed_look, expected, aligned.positions[i])
                voxels = trees._drawn(lesion, case.brain, rng)
                if len(voxels) > per_scan:
                    voxels = rng.choice(voxels, per_scan, replace=False)
                rows[name].append(table[voxels])
                answers[name].append(lesion[case.brain][voxels])
    taught = {f"trees, {name}": (name,) for name in GENERATORS}
    taught |= {
        f"trees without {name}": tuple(other for other in GENERATORS if other != name)
        for name in GENERATORS
    }
    boosters = {}
    for row, names in taught.items():
        booster = HistGradientBoostingRegressor(
            max_iter=size.n_left_out_trees,
            learning_rate=0.08,
            min_samples_leaf=60,
            l2_regularization=1.0,
            early_stopping=False,
            random_state=0,
        )
        X = np.concatenate([part for name in names for part in rows[name]])
        y = np.concatenate([part for name in names for part in answers[name]]).astype(float)
        if len(X) > size.n_rows:
            kept = np.random.default_rng(seed).choice(len(X), size.n_rows, replace=False)
            X, y = X[kept], y[kept]
        with one_thread():
            boosters[row] = booster.fit(X, y)

    def make(case: Case) -> Maps:
        look = look_of(case.signal, case.brain)
        positions = template._aligned(look)
        table = trees._table(look, template_at(template.template_, positions), positions)
        maps = {}
        for row, booster in boosters.items():
            score = np.zeros(case.shape, dtype=np.float32)
            with one_thread():
                score[case.brain] = np.clip(booster.predict(table), 0, 1)
            maps[row] = smoothed(score, case, SMOOTH_MM, size)
        return maps

    return make


#: Forms of an autoencoder's map: residual, and smoothing in mm.
FORMS = {
    ", not smoothed": ("mean", 0.0),
    "": ("mean", SMOOTH_MM),
    ", mean of abs": ("mean-of-abs", SMOOTH_MM),
    ", one-sided": ("low", SMOOTH_MM),
    " / healthy residual": ("relative", SMOOTH_MM),
    " / healthy residual, 6 mm": ("relative", 6.0),
}


def networks_part(world: World, size: Size, seed: int, budget: int) -> Maker:
    """Both networks of the study, at a multiple of their updates, and forms of the autoencoder's map."""
    from anomaly import DenoisingAutoencoder, RecDiscNet
    from dmrifit.networks.training import Training

    signals, masks = [c.signal for c in world.train], [c.brain for c in world.train]
    shared: dict[str, Any] = {"calibration": None, "device": "cpu", "random_state": seed}
    shared |= {"smooth_mm": SMOOTH_MM, "spacing": size.spacing}
    training = Training(epochs=50 * budget)
    networks = {
        f"DAE, {budget}×": DenoisingAutoencoder(
            latent="vector", aligned=False, training=training, **shared
        ),
        f"DAE latent map, {budget}×": DenoisingAutoencoder(
            latent="map", aligned=False, training=training, **shared
        ),
        f"DAE latent map, aligned, {budget}×": DenoisingAutoencoder(
            latent="map", aligned=True, training=training, **shared
        ),
    }
    recdisc = RecDiscNet("mix", "half", training=Training(epochs=2 * budget), **shared).fit(
        signals, masks
    )
    for network in networks.values():
        network.fit(signals, masks)

    def make(case: Case) -> Maps:
        scans = Scans([case.signal], [case.brain])
        score = recdisc._predict_scan(scans, 0)["score"]
        name = f"RecDiscNet mix half, {budget}×"
        maps = {f"{name}, not smoothed": score, name: smoothed(score, case, SMOOTH_MM, size)}
        for name, network in networks.items():
            prediction = network._predict_scan(scans, 0)
            for form, (residual, smooth_mm) in FORMS.items():
                network.set_params(residual=residual, smooth_mm=smooth_mm)
                maps[f"{name}{form}"] = network._scored(prediction, case.brain)
        return maps

    return make


def part_maker(part: str, world: World, size: Size, seed: int) -> Maker:
    """Learn what a part names: networks end with the multiple of their updates."""
    name, _, budget = part.partition("-")
    if name == "networks":
        return networks_part(world, size, seed, int(budget))
    return {"aligned": aligned_part, "trees": trees_part}[name](world, size, seed)


# Scores ---------------------------------------------------------------------------------------------


def scored_part(part: str, size: Size, seed: int) -> dict[str, Any]:
    """Learn one part of a seed, and score all its scans."""
    origin = measure.commit(*CODE)
    begun = time.process_time()
    world = World.simulate(size, seed)
    simulated = time.process_time()
    make = part_maker(part, world, size, seed)
    learned = time.process_time()
    held: dict[str, list[np.ndarray]] = {}
    for case in world.thresholds:
        for row, score in make(case).items():
            held.setdefault(row, []).append(score[case.scored])
    thresholds = {
        row: float(np.quantile(np.concatenate(values), 1 - RATE)) for row, values in held.items()
    }
    rates: dict[str, list[float]] = {row: [] for row in thresholds}
    for case in world.new:
        for row, score in make(case).items():
            rates[row].append(round(float((score[case.scored] > thresholds[row]).mean()), 5))
    table: dict[str, Any] = {
        row: {"false_positive_rate": rates[row], "auc": {}, "ap": {}} for row in thresholds
    }
    prevalence = {}
    for name, patients in world.patients.items():
        prevalence[name] = []
        for case in patients:
            lesion = case.lesion[case.scored]
            # A person without a scored lesion keeps a place, so that lists stay those of persons.
            prevalence[name].append(round(float(lesion.mean()), 5) if lesion.any() else None)
            maps = make(case) if lesion.any() else {}
            for row in table:
                auc = ap = None
                if row in maps:
                    values = maps[row][case.scored]
                    auc = round(float(roc_auc_score(lesion, values)), 5)
                    ap = round(float(average_precision_score(lesion, values)), 5)
                table[row]["auc"].setdefault(name, []).append(auc)
                table[row]["ap"].setdefault(name, []).append(ap)
    return {
        "part": part,
        "seed": seed,
        **origin,
        "rows": table,
        "prevalence": prevalence,
        "seconds": {
            "simulation": round(simulated - begun, 1),
            "learning": round(learned - simulated, 1),
            "scoring": round(time.process_time() - learned, 1),
        },
    }


def seen_by(row: str) -> tuple[str, ...]:
    """Name the generators whose anomalies a row has learned; they are never in its headline."""
    if row.startswith("trees without "):
        left_out = row.removeprefix("trees without ")
        return tuple(name for name in GENERATORS if name != left_out)
    if row.startswith("trees, "):
        return (row.removeprefix("trees, "),)
    first = row.partition(",")[0].partition(" mix")[0]
    return SEEN.get(first, ())


def joined(parts: Sequence[dict[str, Any]]) -> dict[str, dict[int, dict[str, Any]]]:
    """Join the parts of all seeds: by row and seed the scores of persons."""
    rows: dict[str, dict[int, dict[str, Any]]] = {}
    for part in parts:
        for row, scores in part["rows"].items():
            rows.setdefault(row, {})[part["seed"]] = scores
    singles = {name: rows.pop(f"trees without {name}", {}) for name in GENERATORS}
    if all(singles.values()):
        rows[LEFT_OUT] = {
            seed: {
                key: {name: one[seed][key][name] for name, one in singles.items()}
                for key in ("auc", "ap")
            }
            # The worst of the five trainings.
            | {
                "false_positive_rate": np.max(
                    [one[seed]["false_positive_rate"] for one in singles.values()], axis=0
                ).tolist()
            }
            for seed in singles[next(iter(GENERATORS))]
        }
    return rows


def matrix(scores: dict[str, Any], key: str, names: Iterable[str]) -> np.ndarray:
    """Give a score by generator and person."""
    return np.array([scores[key][name] for name in names], dtype=float)


def interval(by_seed: Sequence[np.ndarray]) -> list[float]:
    """
    Bootstrap a mean over seeds, generators and persons: seeds, and persons within them.

    Persons are the same under all generators, so that one draw of persons serves all of them.
    """
    if not by_seed:
        return []
    rng = np.random.default_rng(0)
    center = float(np.mean([np.nanmean(values, axis=1) for values in by_seed]))
    draws = []
    for _ in range(1000):
        means = []
        for k in rng.integers(len(by_seed), size=len(by_seed)):
            n_persons = by_seed[k].shape[1]
            drawn = by_seed[k][:, rng.integers(n_persons, size=n_persons)]
            # A generator with no value among the persons drawn says nothing in this draw.
            drawn = drawn[~np.isnan(drawn).all(axis=1)]
            means.append(np.nanmean(drawn, axis=1).mean())
        draws.append(np.mean(means))
    return [round(float(x), 4) for x in (center, *np.quantile(draws, [0.025, 0.975]))]


def summarized(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Make the matrix, headlines with their intervals, differences from the reference, healthy scans."""
    rows = joined(parts)
    reference = rows.get(REFERENCE, {})
    summary = {}
    for row, by_seed in rows.items():
        seen = () if row == LEFT_OUT else seen_by(row)
        unseen = [name for name in GENERATORS if name not in seen]
        compared = [seed for seed in by_seed if seed in reference and row != REFERENCE]
        entry: dict[str, Any] = {"seen": list(seen), "headline": {}, "minus_reference": {}}
        for key in ("auc", "ap"):
            means = [person_means(scores, key) for scores in by_seed.values()]
            entry[key] = by_generator(np.mean(means, axis=0))
            entry["headline"][key] = interval(
                [matrix(scores, key, unseen) for scores in by_seed.values()]
            )
        if reference and row != REFERENCE:
            entry["minus_reference"]["ap"] = interval([
                matrix(by_seed[seed], "ap", unseen) - matrix(reference[seed], "ap", unseen)
                for seed in compared
            ])  # fmt: skip
            gaps = [
                person_means(by_seed[seed], "ap") - person_means(reference[seed], "ap")
                for seed in compared
            ]
            entry["minus_reference"]["by_generator"] = (
                by_generator(np.mean(gaps, axis=0)) if gaps else {}
            )
        entry["false_positive_rate"] = [one["false_positive_rate"] for one in by_seed.values()]
        summary[row] = entry | {"seeds": list(by_seed)}
    return summary


def person_means(scores: dict[str, Any], key: str) -> np.ndarray:
    """Average a score over persons, by generator; those without a scored lesion have no value."""
    return np.nanmean(matrix(scores, key, GENERATORS), axis=1)


def by_generator(values: np.ndarray) -> dict[str, float]:
    return {name: round(float(value), 4) for name, value in zip(GENERATORS, values, strict=True)}


def verdict(result: dict[str, Any]) -> str:
    """Say whether a detector that learns lesions beats the reference on what it has not seen."""
    winners, sentences = [], []
    for row, one in result["rows"].items():
        margin = one["minus_reference"].get("ap")
        is_single = row.startswith("trees, ") and row != LEFT_OUT
        if is_single or not margin or not (one["seen"] or row == LEFT_OUT):
            continue
        losses = [
            f"{name} {gap:+.2f}"
            for name, gap in one["minus_reference"]["by_generator"].items()
            if name not in one["seen"] and gap < -0.05
        ]
        if margin[0] >= 0.05 and margin[1] > 0 and not losses:
            winners.append(row)
        elif margin[0] >= 0.05 and margin[1] > 0:
            sentences.append(f"{row} gains {margin[0]:+.3f} AP but loses {', '.join(losses)}.")
    who = f"Of the detectors that learn lesions {', '.join(winners)} beat"
    if not winners:
        who = "No detector that learns lesions beats"
    first = (
        f"{who} {REFERENCE} on unseen generators by at least .05 AP, with the interval above 0 and "
        "no loss above .05."
    )
    reference = result["rows"].get(REFERENCE, {"seeds": [], "false_positive_rate": []})
    rates = reference["false_positive_rate"]
    every = [
        f"{seed}: " + ", ".join(f"{100 * value:.1f}" for value in values)
        for seed, values in zip(reference["seeds"], rates, strict=True)
    ]
    scans = f"Every new healthy scan above the 1 % threshold of {REFERENCE}, in %, by seed: {'; '.join(every)}"
    scans += f"; {healthy_aim(rates)}." if rates else "."
    return "\n\n".join([" ".join([first, *sentences]), scans])


def healthy_aim(rates: list[list[float]]) -> str:
    """Say whether healthy scans stay below the aim at the 1 % threshold."""
    values = 100 * np.concatenate([np.asarray(by_seed, dtype=float) for by_seed in rates])
    mean, worst = values.mean(), values.max()
    is_met = 0.5 <= round(mean, 2) <= 1.5 and worst <= 3
    aim = "The aim of a mean of 0.5 to 1.5 % and at most 3 % in each is"
    return f"mean {mean:.2f} %, worst {worst:.1f} %. {aim} {'met' if is_met else 'not met'}"


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Score what is not stored yet, and summarize what is."""
    size = QUICK if chosen.quick else FULL
    settings = json.loads(json.dumps(asdict(size)))
    folder = chosen.out.with_suffix("")
    parts = [
        runs.Part(f"{part}-{seed}", settings, scored_part, (part, size, seed))
        for part in chosen.parts
        for seed in chosen.seeds
    ]
    runs.finished(parts, folder, key="settings")
    stored = [measure.stored(path) for path in sorted(folder.glob("*.json"))]
    prevalence = {
        name: round(float(np.nanmean([p for one in stored for p in matrix(one, "prevalence", [name])])), 5)
        for name in GENERATORS
    }
    return {
        "synthetic": True,
        "settings": settings,
        "processor_s": round(sum(sum(one["seconds"].values()) for one in stored), 1),
        "seconds": {f"{one['part']} {one['seed']}": one["seconds"] for one in stored},
        # Parts are measured once; what is summarized may come from several commits.
        "part_commits": sorted({str(one["commit"]) for one in stored}),
        "prevalence": prevalence,
        "rows": summarized(stored),
    }


def markdown(result: dict[str, Any]) -> str:
    """Write the matrix; in brackets what a detector has learned, which no headline holds."""
    ordered = sorted(result["rows"].items(), key=lambda item: -item[1]["headline"]["ap"][0])
    shown = {"ordered": ordered, "reference": REFERENCE, "verdict": verdict(result)}
    return runs.page("anomaly_generators", result, **shown)


if __name__ == "__main__":
    parts = {"nargs": "+", "choices": PARTS, "default": list(PARTS), "help": "what to run"}
    runs.main(
        run,
        RESULT,
        markdown=markdown,
        code=CODE,
        packages=("numpy", "scikit-learn", "torch"),
        seeds=SEEDS,
        options={"--parts": parts},
    )
