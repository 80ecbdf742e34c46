"""Counting of false positives among nested candidates, and figures at matched sensitivity."""

import numpy as np
import pytest

from benchmarks.metastasis import bench_metastasis_prior as bench
from dmrifit.io.components import label_components
from metastasis.candidates.features import ScanVolumes, find_candidates
from metastasis.candidates.judgment import NAMES, scored_volume

SHAPE = (24, 24, 24)


class Stored:
    """Answers what it holds for each row."""

    def __init__(self, scores):
        self.scores = scores

    def predict(self, columns):
        return self.scores


def test_nested_candidates_count_as_components_of_the_scored_volume():
    rng = np.random.default_rng(0)
    places = np.stack(np.indices(SHAPE), axis=-1)
    probability = np.zeros(SHAPE, np.float32)
    for center in rng.uniform(3, 21, (9, 3)):
        distance = np.linalg.norm(places - center, axis=-1)
        probability = np.maximum(probability, np.exp(-((distance / 2.2) ** 2)).astype(np.float32))
    scan = ScanVolumes(np.ones(SHAPE, np.float32), np.ones(SHAPE, bool), np.ones(3))
    candidates = find_candidates(probability, scan, levels=bench.LEVELS, min_voxels=4)
    label = (np.linalg.norm(places - (8, 8, 8), axis=-1) < 3).astype(np.uint8)
    holding, parents = bench.holding_candidates(candidates, label.size)
    assert (parents >= 0).any()
    is_false = np.array([not label.flat[voxels].any() for voxels in candidates.voxels])
    nothing = np.zeros(len(candidates), bool)
    patient = bench.Patient(
        {"own": candidates.table},
        is_false.astype(np.int8),
        is_false,
        nothing,
        nothing,
        parents,
        [bench.Lesion("new", holding[label.ravel() > 0])],
    )
    scores = rng.uniform(0.1, 1, len(candidates))
    judged = bench.Judged.of(patient, scores)
    volume = scored_volume(Stored(scores), candidates, SHAPE)
    assert judged.peaks[0] == pytest.approx(np.quantile(volume[label > 0], 0.9), rel=1e-6)
    for threshold in (0.15, 0.3, 0.5, 0.7, 0.9, 0.99):
        components = label_components(volume >= threshold)
        touching = set(components[label > 0].tolist()) - {0}
        assert judged.counts_at(threshold).sum() == components.max() - len(touching)


def patients(n, seed):
    """Make patients in whom only the change tells two lesions from a false candidate."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(n):
        table = rng.normal(size=(12, len(NAMES)))
        truth = np.array([1] * 4 + [0] * 8, np.int8)
        table[:, NAMES.index("contrast_change")] = 4 * truth + 0.1 * rng.normal(size=12)
        exchanged = table.copy()
        exchanged[:, -13:] = rng.permutation(exchanged[:, -13:])
        lesions = [bench.Lesion("new", np.full((5, 5), k)) for k in range(4)]
        made.append(
            bench.Patient(
                {"own": table, "exchanged": exchanged},
                truth,
                truth == 0,
                truth == 1,
                truth == 1,
                np.full(12, -1),
                lesions,
            )
        )
    return made


def test_a_prior_that_tells_saves_what_the_ceiling_saves(monkeypatch):
    monkeypatch.setattr(bench, "N_BOOTSTRAP", 40)
    cohorts = [patients(3, seed) for seed in range(len(bench.SEEDS))]
    rows, weights = bench.judged_rows("linear", cohorts)
    statuses = np.array([lesion.status for c in cohorts for p in c for lesion in p.lesions])
    figures = bench.figures_of(rows, statuses)
    at = bench.SENSITIVITIES.index(bench.AIM_AT)
    assert figures["prior"]["fewer"][at][0] > 0.9
    assert figures[bench.CEILING]["fewer"][at][0] == 1
    assert figures["prior of another patient"]["fewer"][at][0] < 0.5
    assert figures["no prior"]["fewer"][at] == [0, 0, 0]
    assert figures["no prior"]["sensitivity_by_status"]["new"] == pytest.approx(0.9, abs=0.01)
    assert max(weights, key=weights.get) == "contrast_change"
    assert len(figures["prior"]["of_seeds"]) == len(bench.SEEDS)
