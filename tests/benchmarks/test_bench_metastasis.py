"""Candidates, implants in real brains and readers of real lesions are counted as they were made."""

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.metastasis import bench_metastasis_people as people
from benchmarks.metastasis import bench_metastasis_prior as bench
from benchmarks.metastasis import bench_real_lesions as real
from dmrifit.io.components import label_components
from metastasis.candidates.features import ScanVolumes, find_candidates
from metastasis.candidates.judgment import NAMES, scored_volume
from metastasis.simulate.enhancement import draw_varied_nodule
from metastasis.simulate.implants import Implants

SHAPE = (24, 24, 24)


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
    lesions = [bench.Lesion("new", holding[label.ravel() > 0])]
    truth = is_false.astype(np.int8)
    patient = bench.Patient({"own": candidates.table}, truth, is_false, nothing, nothing, parents, lesions)
    scores = rng.uniform(0.1, 1, len(candidates))
    judged = bench.Judged.of(patient, scores)
    volume = scored_volume(SimpleNamespace(predict=lambda columns: scores), candidates, SHAPE)
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
        tables, is_true = {"own": table, "exchanged": exchanged}, truth == 1
        made.append(bench.Patient(tables, truth, ~is_true, is_true, is_true, np.full(12, -1), lesions))
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


def test_a_sensitivity_that_is_not_reached_is_none():
    nothing = np.zeros(0)
    judged = bench.Judged(np.array([0.5, 0.4, 0, 0]), nothing, nothing, nothing, nothing)
    assert bench.step_of(judged, 0.5) == 0.4
    assert np.isnan(bench.step_of(judged, 0.75))
    assert bench.rounded([np.nan, 0.12345]) == [None, 0.123]


def test_counts_and_recall_by_volume_are_those_that_were_made():
    # Score a synthetic set of eight cubes, of which a quarter is missed.
    mask = np.zeros((48, 40, 40), bool)
    for corner in np.ndindex(2, 2, 2):
        x, y, z = 8 + 16 * np.array(corner)
        mask[x : x + 3, y : y + 3, z : z + 3] = True
    affine = np.diag([0.6, 0.6, 3.0, 1.0])
    result = real.scores({"synthetic cubes": (mask, affine)})
    exact, wider = result["people"]
    for row in (exact, wider):
        assert (row["n_lesions"], row["n_kept"]) == (8, 6)
        assert row["n_found"] == row["n_by_distance"] == 6
        assert row["n_false"] == real.BLOBS
    assert exact["f1_mets"] == pytest.approx(2 * 6 / (8 + 6 + real.BLOBS), abs=1e-4)
    rows = [row for row in result["recall_by_volume"] if row["n"]]
    assert [(row["from_mm3"], row["n"], row["n_found"]) for row in rows] == [(0.0, 8, 6)]


def implants_of(numbers, kind, diameter, n):
    """Give nodules of one kind in the voxels that hold their numbers."""
    rng = np.random.default_rng(0)
    nodules = [draw_varied_nodule(np.zeros(3), kind, diameter, rng, contrasts=(0.2, 0.3)) for _ in range(n)]
    return Implants(np.zeros(numbers.shape, np.float32), (numbers > 0).astype(np.uint8), numbers, nodules)


def test_implants_without_voxels_are_missed_and_large_rings_counted_where_half_is_marked():
    numbers = np.zeros((12, 12, 12), np.int16)
    for number in (1, 2, 3):
        numbers[1:4, 1:4, 4 * number - 4 : 4 * number - 1] = number
    implants = implants_of(numbers, "solid", 8.0, 4)
    scores = np.where(numbers > 0, 0.8, 0)
    row = people.at_threshold(0.5, [0 * scores, scores], [implants])
    assert (row["sensitivity"], row["n"]["solid"], row["findings"]) == (0.75, 4, 0)
    numbers = np.zeros((12, 12, 12), np.int16)
    numbers[1:5, 1:5, 1:5], numbers[7:11, 7:11, 7:11] = 1, 2
    scores = np.where(numbers == 1, 0.8, 0)
    # A quarter is enough to be found.
    scores[7:8, 7:11, 7:11] = 0.8
    row = people.at_threshold(0.5, [0 * scores, scores], [implants_of(numbers, "large ring", 20.0, 2)])
    assert (row["sensitivity"], row["half_covered"]) == (1, 0.5)


def test_weights_and_statistics_of_networks_are_averaged():
    torch = pytest.importorskip("torch")
    networks = []
    for shift in (0.0, 1.0, 5.0):
        layers = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 1), torch.nn.BatchNorm3d(2))
        for value in layers.state_dict().values():
            value.fill_(shift)
        networks.append(SimpleNamespace(net_=SimpleNamespace(module_=layers)))
    mean = people.mean_network(networks)
    for value in mean.net_.module_.state_dict().values():
        # The number of batches is a count, which stays as it was.
        np.testing.assert_allclose(value, 0 if value.dtype == torch.int64 else 2)
