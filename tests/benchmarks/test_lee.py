"""The claims of Lee et al. are decided by their rules; cases, and heads that move, are simulated as stated."""

import nibabel as nib
import numpy as np
import pytest
from moved_heads import AFFINE, head_signals

from benchmarks.claims.lee import CLAIMS, claim_figures, decide_claims
from benchmarks.placement import bench_placement_claims as bench
from benchmarks.placement._repeat_scans import Head, draw_box, visit, with_cavity, with_shift
from placement import Voxel
from placement.simulate.gliomas import simulate_gliomas
from placement.study.evaluation import evaluate_placements

N = 10


@pytest.fixture(scope="module")
def study():
    return simulate_gliomas(N, spacing=4, random_state=1)


@pytest.fixture(scope="module")
def tables(study):
    scenes, experts = study
    network = experts.mean(axis=1)
    objective = experts[:, 0].copy()
    objective[:, :3] += 12
    objective[:, 3:6] = 23 + np.arange(N)[:, None] % 2
    placements = {"network": network, "objective": objective}
    return evaluate_placements(scenes, experts, placements, folds=np.arange(N) % 5 + 1)


def decided(tables, n_seeds=10, **options):
    figures = claim_figures({str(seed): tables for seed in range(n_seeds)})
    return decide_claims(figures, **options).set_index("claim")


def test_the_board_tells_what_holds_from_what_does_not(tables):
    board = decided(tables)
    assert len(board) == len(CLAIMS) == 7
    # The network is the mean of the experts, the objective is moved away and has volumes of its own.
    assert board.loc[[1, 2, 3], "verdict"].tolist() == ["holds"] * 3
    assert board.loc[7, "verdict"] == "not testable here"
    assert board.loc[7, "reason"].startswith("not comparable")
    swapped = {name: table.replace({"network": "objective", "objective": "network"}) for name, table in tables.items()}
    board = decided(swapped)
    assert board.loc[1, "verdict"] == board.loc[3, "verdict"] == "does not hold"
    assert (decided(tables, 9).loc[:6, "verdict"] == "cannot be told").all()


def test_cases_are_large_enough_and_the_same_each_time():
    size = {"n_cases": 2, "least_tumor_ml": 25.0}
    scenes, voxels = bench.draw_cases(3, size)
    assert all(scene.tumor_volume >= 25 for scene in scenes)
    assert voxels.shape == (2, bench.N_EXPERTS, 9)
    np.testing.assert_array_equal(bench.draw_cases(3, size)[1], voxels)


def test_the_medoid_is_the_box_in_the_middle():
    rows = np.array([Voxel((x, 0, 0), (20, 20, 20)).as_array() for x in (0, 12, 4, 6)])
    np.testing.assert_array_equal(bench.medoid(rows), rows[2])


def a_head():
    return Head("synthetic", head_signals(0), AFFINE)


def test_scans_of_a_moved_head_show_the_moved_box():
    rng = np.random.default_rng(0)
    head = a_head()
    later = visit(head, rng, noise=0.0, cut=None)
    voxel = draw_box(head, rng, later)
    assert later.shows(voxel)
    center = np.linalg.inv(later.image.affine) @ np.append(voxel.transform(later.motion).center, 1)
    before = np.linalg.inv(AFFINE) @ np.append(voxel.center, 1)
    window = tuple(slice(int(n) - 1, int(n) + 2) for n in np.rint(center[:3]))
    old_window = tuple(slice(int(n), int(n) + 1) for n in np.rint(before[:3]))
    moved = later.image.get_fdata()[window].mean()
    assert abs(moved / head.values[old_window].mean() - 1) < 0.5
    assert isinstance(later.image, nib.Nifti1Image)


def test_cavities_have_their_volume_and_shifts_their_length():
    head, rng = a_head(), np.random.default_rng(1)
    hollow = with_cavity(head, np.zeros(3), 30.0, rng)
    darker = head.values - hollow.values > 0.2 * head.bright
    assert 25 < darker.sum() * 8e-3 < 38
    _, pushed = with_shift(head, np.array([20.0, 0, 0]), 5.0)
    assert 4.5 < pushed.max() <= 5.0
