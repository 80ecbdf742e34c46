"""Checks on the board itself: would it notice a useless predictor, or one that lost what it needs?"""

import numpy as np
import pytest

from dmrifit import (
    ALGORITHMS,
    MapsToMaps,
    SignalToSignal,
    compare,
    leave_one_patient_out,
    simulate_cohort,
)

pytestmark = [pytest.mark.slow, pytest.mark.deep]

SEED = 77310  # this and the next ones are of no development


def test_learners_are_told_from_a_constant_and_shuffled_targets_leave_no_correlation():
    # Three cohorts of 16 synthetic abdomens with mixed primaries, trained on bodies, scored in tumors.
    cohorts = {
        str(seed): simulate_cohort("cohort1", 16, name=str(seed), template="abdomen", random_state=seed)
        for seed in range(SEED, SEED + 3)
    }
    scores = leave_one_patient_out(cohorts, n_jobs=2, random_state=SEED).scores
    tissue = scores[scores["metric"] != "S0"]
    board = tissue.assign(abs_bias=tissue["bias"].abs())
    means = board.groupby(["strategy", "algorithm"])[["abs_bias", "dispersion", "pearson"]].mean()
    constant = means.loc[("m2m", "constant")]
    for algorithm in ALGORITHMS:
        learner = means.loc[("s2s", algorithm)]
        assert learner["abs_bias"] <= 0.6 * constant["abs_bias"], algorithm
        assert learner["dispersion"] <= 0.95 * constant["dispersion"], algorithm
        assert learner["pearson"] > 0.3, algorithm
    r = board.groupby(["strategy", "algorithm"])["pearson"].mean()
    for strategy in ("s2s", "m2m"):
        assert abs(r[strategy, "shuffled"]) < 0.15
        assert r[strategy, "LR"] > 0.3
    perfect = board[board["algorithm"] == "perfect"]
    assert np.abs(perfect[["bias", "dispersion"]].to_numpy()).max() == 0
    assert perfect["pearson"].min() > 1 - 1e-12


def test_a_number_for_every_voxel_destroys_the_prediction_of_tissue_t2():
    """One echo time: T2 is known through the intensity that the normalization of voxels removes."""
    cohorts = {
        str(seed): simulate_cohort("cohort1", 16, name=str(seed), template="abdomen", random_state=seed)
        for seed in range(SEED + 4, SEED + 7)
    }
    estimators = {"patient s2s": SignalToSignal("LR"), "voxel s2s": SignalToSignal("LR", normalize="voxel")}
    scores = compare(estimators, cohorts, max_voxels=250, controls=False, random_state=SEED).scores
    t2t = scores[scores["metric"] == "T2t"].assign(abs_bias=lambda table: table["bias"].abs())
    means = t2t.groupby("algorithm")[["abs_bias", "pearson"]].mean()
    assert means.loc["voxel", "abs_bias"] >= 1.5 * means.loc["patient", "abs_bias"]
    assert means.loc["patient", "pearson"] > 0.5
    assert means.loc["voxel", "pearson"] < 0.2


def test_a_pooled_training_is_not_worse_than_a_useless_one():
    """Scores of other cohorts' models stay below those of shuffled targets, in both directions."""
    cohorts = [simulate_cohort(name, 6, shape=(32, 32, 6), random_state=SEED + 7) for name in ("cohort1", "cohort2")]
    estimators = {"LR s2s": SignalToSignal("LR"), "LR m2m": MapsToMaps("LR")}
    scores = compare(
        estimators, cohorts, train_on=("other", "pooled"), resynthesize=True, max_voxels=250, random_state=SEED
    ).scores
    tissue = scores[scores["metric"] != "S0"].assign(abs_bias=lambda table: table["bias"].abs())
    means = tissue.groupby(["train_on", "cohort", "strategy", "algorithm"])["abs_bias"].mean().unstack()
    assert (means["LR"] < means["shuffled"]).all()
