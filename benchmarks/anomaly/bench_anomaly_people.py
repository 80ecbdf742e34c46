"""
How do detectors of anomalies do on measurements of real people?

    DMRIFIT_DATA=/data .venv/bin/python -m benchmarks.anomaly.bench_anomaly_people

Tract profiles: fractional anisotropy at 93 places of the corpus callosum of 42 healthy persons and 100
with multiple sclerosis, first visits. Detectors learn from healthy persons alone; a healthy person is
scored by detectors that learned from the 41 others, a patient by the mean over these 42. Age is not
known, so that an AUC may be one of age; sex is. Real blocks: anomalies of the five generators are put
into one half of small blocks of two healthy brains, and voxelwise detectors, which know no place, learn
from the other half.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from sklearn.covariance import LedoitWolf
from sklearn.ensemble import IsolationForest
from sklearn.metrics import average_precision_score, roc_auc_score

from anomaly import GENERATORS, PCADetector, VoxelwiseGaussian
from anomaly.detectors.features import look_of, masked_smoothing
from anomaly.generators.implants import Look, noise_floor
from benchmarks import _measure as measure
from benchmarks import _runs as runs

RESULT = measure.RESULTS / "anomaly_people.json"
N_BOOTSTRAP = 2000
PLAIN_MEAN = "1 − mean FA"
#: Implants of each generator into each half; lesions of fewer voxels say nothing.
N_IMPLANTS, LEAST_VOXELS = 30, 6
#: Series of healthy brains: shells near b = 1000 s/mm², with the signal at b = 0 or nearly.
BLOCKS = ("small_64D", "small_101D")
SHELL, NO_WEIGHTING = (700.0, 1300.0), 50.0
#: Voxels by which maps of blocks are smoothed: 4 mm.
SMOOTHING = 2.0


# Tract profiles -------------------------------------------------------------------------------------


def read_profiles(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read first visits: profiles (n, 93), who has MS, and sexes; missing places are interpolated."""
    table = pd.read_csv(folder / "cca.csv").sort_values(["ID", "visit"])
    first = table.drop_duplicates("ID")
    nodes = [name for name in first.columns if name.startswith("node")]
    profiles = first[nodes].interpolate(axis=1, limit_direction="both").to_numpy()
    return profiles, first["case"].to_numpy() == 1, first["sex"].to_numpy()


def profile_scores(
    healthy: np.ndarray, sexes: np.ndarray, tested: np.ndarray, tested_sexes: np.ndarray
) -> dict[str, np.ndarray]:
    """Score profiles by detectors that learned from healthy ones; higher is less healthy."""
    scores = {PLAIN_MEAN: 1 - tested.mean(axis=1)}
    learned, asked = (
        array[:, :, None, None, None].astype(np.float32) for array in (healthy, tested)
    )
    plain = {"calibration": None, "smoothing": 0, "template_smoothing": 0, "smooth_mm": 4.0}
    for name, detector in {
        "z by place, one-sided": VoxelwiseGaussian(side="low", distance="z", **plain),
        "z by place, two-sided": VoxelwiseGaussian(side="both", distance="z", **plain),
    }.items():
        maps = detector.fit(learned).anomaly_map(asked)
        scores[name] = maps.reshape(len(asked), -1).mean(axis=1)
    by_sex = VoxelwiseGaussian(side="low", **plain).fit(learned, covariates={"sex": list(sexes)})
    maps = by_sex.anomaly_map(asked, covariates={"sex": list(tested_sexes)})
    scores["z by place and sex, one-sided"] = maps.reshape(len(asked), -1).mean(axis=1)
    scores["z by place, largest"] = maps.reshape(len(asked), -1).max(axis=1)
    components = PCADetector(10, smooth_mm=0, calibration=None).fit(learned)
    scores["PCA residual"] = components.anomaly_map(asked).reshape(len(asked), -1).mean(axis=1)
    scores["Mahalanobis, shrunk"] = LedoitWolf().fit(healthy).mahalanobis(tested)
    forest = IsolationForest(n_estimators=100, random_state=0).fit(healthy)
    scores["isolation forest"] = -forest.score_samples(tested)
    return scores


def profiles_result(folder: Path) -> dict[str, Any]:
    """Compare detectors on profiles with the plain mean."""
    profiles, ill, sexes = read_profiles(folder)
    healthy, patients = profiles[~ill], profiles[ill]
    own: dict[str, list[float]] = {}
    others: dict[str, list[np.ndarray]] = {}
    for i in range(len(healthy)):
        rest = np.arange(len(healthy)) != i
        tested = np.concatenate([healthy[i : i + 1], patients])
        tested_sexes = np.concatenate([sexes[~ill][i : i + 1], sexes[ill]])
        for name, score in profile_scores(
            healthy[rest], sexes[~ill][rest], tested, tested_sexes
        ).items():
            own.setdefault(name, []).append(float(score[0]))
            others.setdefault(name, []).append(score[1:])
    scores = {name: (np.array(own[name]), np.mean(others[name], axis=0)) for name in own}
    rng = np.random.default_rng(0)
    draws = [
        (
            rng.integers(len(healthy), size=len(healthy)),
            rng.integers(len(patients), size=len(patients)),
        )
        for _ in range(N_BOOTSTRAP)
    ]
    rows = {}
    reference = np.array(
        [auc_of(*(s[d] for s, d in zip(scores[PLAIN_MEAN], draw, strict=True))) for draw in draws]
    )
    for name, pair in scores.items():
        aucs = np.array(
            [auc_of(*(s[d] for s, d in zip(pair, draw, strict=True))) for draw in draws]
        )
        rows[name] = {
            "auc": _with_bounds(auc_of(*pair), aucs),
            "minus_mean": _with_bounds(
                auc_of(*pair) - auc_of(*scores[PLAIN_MEAN]), aucs - reference
            ),
        }
    return {"n_healthy": len(healthy), "n_patients": len(patients), "rows": rows}


def auc_of(healthy: np.ndarray, patients: np.ndarray) -> float:
    truth = np.repeat([0, 1], [len(healthy), len(patients)])
    return float(roc_auc_score(truth, np.concatenate([healthy, patients])))


def _with_bounds(value: float, draws: np.ndarray) -> list[float]:
    return [round(float(x), 4) for x in (value, *np.quantile(draws, [0.025, 0.975]))]


# Implants into real blocks --------------------------------------------------------------------------


def read_block(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Read a shell near b = 1000 s/mm² over the signal without weighting, and its directions."""
    (path,) = folder.glob(f"{name}.nii*")
    signals = np.asarray(nib.load(path).dataobj, dtype=np.float64)
    b = np.loadtxt(folder / f"{name}.bval").ravel()
    directions = np.loadtxt(folder / f"{name}.bvec")
    directions = directions if directions.shape[1] == 3 else directions.T
    weighted = (b >= SHELL[0]) & (b <= SHELL[1])
    b0 = np.maximum(signals[..., b <= NO_WEIGHTING].mean(axis=-1), 1)
    ratios = np.clip(signals[..., weighted] / b0[..., None], 1e-3, 1)
    # At b = 1000 s/mm² by a straight line through the logarithm.
    ratios = ratios ** (1000 / b[weighted])
    return ratios.astype(np.float32), directions[weighted]


def as_source(
    volume: np.ndarray, directions: np.ndarray, target: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """Bring another person's block to the directions and the grid of a block."""
    nearest = np.abs(target @ directions.T).argmax(axis=1)
    pad = [(0, max(0, n - m)) for n, m in zip(shape, volume.shape, strict=False)]
    larger = np.pad(volume, [*pad, (0, 0)], mode="symmetric")
    return larger[tuple(slice(n) for n in shape)][..., nearest]


def voxel_features(volume: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Compute mean, spread and local mean of voxels, (3, x, y, z)."""
    look = look_of(volume, np.ones(mask.shape, dtype=bool))
    return np.stack([look.mean, look.spread, masked_smoothing(look.mean, mask, 1.0)])


def voxel_detectors(features: np.ndarray) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Learn from the features (3, n) of healthy voxels what scores those of others."""
    center, sd = features.mean(axis=1), features.std(axis=1)
    two = np.linalg.inv(np.cov(features[:2]))
    forest = IsolationForest(n_estimators=100, random_state=0).fit(features.T)

    def mahalanobis(x: np.ndarray) -> np.ndarray:
        off = x[:2] - center[:2, None]
        return np.sqrt(np.einsum("in,ij,jn->n", off, two, off))

    return {
        "1 − mean signal": lambda x: 1 - x[0],
        "z, two-sided": lambda x: np.abs(x[0] - center[0]) / sd[0],
        "Mahalanobis": mahalanobis,
        "isolation forest": lambda x: -forest.score_samples(x.T),
    }


def implants_result(folder: Path) -> dict[str, Any]:
    """Put anomalies into halves of real blocks, and find them by what the other half taught."""
    blocks = {name: read_block(folder, name) for name in BLOCKS}
    rows: dict[str, dict[str, dict[str, list[float]]]] = {}
    prevalence: dict[str, list[float]] = {}
    for k, name in enumerate(BLOCKS):
        volume, directions = blocks[name]
        other, other_directions = blocks[BLOCKS[1 - k]]
        source = as_source(other, other_directions, directions, volume.shape[:3])
        first = np.indices(volume.shape[:3])[2] < volume.shape[2] // 2
        for half in (first, ~first):
            features = voxel_features(volume, ~half)
            detectors = voxel_detectors(features[:, ~half])
            look = Look(features[0], features[1], half)
            floor = noise_floor(look)
            for title, generator in GENERATORS.items():
                for seed in range(N_IMPLANTS):
                    changed, label = generator(
                        volume,
                        half,
                        source=source if generator.needs_source else None,
                        noise=floor,
                        random_state=seed,
                    )
                    if label.sum() < LEAST_VOXELS or label[half].all():
                        continue
                    truth, x = label[half], voxel_features(changed, half)
                    prevalence.setdefault(title, []).append(float(truth.mean()))
                    for detector, score in detectors.items():
                        values = np.zeros(half.shape, dtype=np.float32)
                        values[half] = score(x[:, half])
                        values = masked_smoothing(values, half, SMOOTHING)[half]
                        entry = rows.setdefault(detector, {}).setdefault(
                            title, {"auc": [], "ap": []}
                        )
                        entry["auc"].append(float(roc_auc_score(truth, values)))
                        entry["ap"].append(float(average_precision_score(truth, values)))
    return {
        "blocks": {name: list(blocks[name][0].shape) for name in BLOCKS},
        "n_implants": {title: len(shares) for title, shares in prevalence.items()},
        "prevalence": {
            title: round(float(np.mean(shares)), 4) for title, shares in prevalence.items()
        },
        "rows": {
            detector: {
                title: {
                    "auc": [
                        round(float(x), 4) for x in np.quantile(one["auc"], [0.5, 0.25, 0.75])
                    ],
                    "ap": [round(float(x), 4) for x in np.quantile(one["ap"], [0.5, 0.25, 0.75])],
                }
                for title, one in by_generator.items()
            }
            for detector, by_generator in rows.items()
        },
    }


def run(_: argparse.Namespace) -> dict[str, Any]:
    """Score persons by profiles, and anomalies in blocks."""
    return {
        "synthetic": False,
        "profiles": profiles_result(measure.data_folder("tract_profiles")),
        "implants": implants_result(measure.data_folder("dipy_small_dwi")),
    }


def markdown(result: dict[str, Any]) -> str:
    """Write both tables."""
    rows = result["profiles"]["rows"]
    ordered = sorted(rows.items(), key=lambda item: -item[1]["auc"][0])
    better = [name for name, one in rows.items() if name != PLAIN_MEAN and one["minus_mean"][1] > 0]
    names = list(GENERATORS)
    shown = {"ordered": ordered, "better": better, "names": names, "plain": PLAIN_MEAN}
    return runs.page("anomaly_people", result, **shown)


if __name__ == "__main__":
    runs.main(
        run,
        RESULT,
        markdown=markdown,
        code=("dmrifit", "anomaly"),
        packages=("numpy", "scikit-learn"),
        quick=False,
    )
