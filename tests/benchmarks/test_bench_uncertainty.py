"""The benchmark of intervals: tissues, draws and scores."""

import numpy as np
import pandas as pd

from benchmarks.prediction import bench_uncertainty as bench
from dmrifit import simulate_cohort
from dmrifit.simulate.tissues import tissue_table


def test_voxels_of_typical_parameters_have_their_tissue():
    table = tissue_table()["tissue"]
    organs = [name for name in table if name not in ("tumor", "necrosis")]
    truth = np.array([table[name] for name in organs])
    assert bench.tissues_of(truth).tolist() == organs


def test_a_second_draw_shares_the_signal_and_not_the_noise():
    cohort = simulate_cohort("cohort1", 2, shape=(16, 16, 3), random_state=0)
    sample = bench.drawn(cohort, "body", 1)
    column = bench.NAMES.index("T2t")
    errors = [maps[:, column] - sample.truth[:, column] for maps in (sample.maps, sample.repeated)]
    assert np.corrcoef(sample.maps[:, column], sample.repeated[:, column])[0, 1] > 0.5
    assert abs(np.corrcoef(errors)[0, 1]) < 0.3


def test_scores_are_means_over_patients_and_by_quintile():
    width = np.linspace(1, 2, 100)
    voxels = pd.DataFrame({"parameter": "K", "patient": ["a"] * 20 + ["b"] * 80, "low": 0.0})
    voxels = voxels.assign(high=width, predicted=0.5, reference=0.4, repeated=-1.0, truth=0.4)
    voxels.loc[:9, "reference"] = -1
    [row] = bench.scored(voxels, {"region": "body"})
    assert row["coverage"] == 0.75
    assert row["worst_patient"] == 0.5
    assert row["quintiles"] == [0.5, 1, 1, 1, 1]
    assert (row["coverage_repeated"], row["coverage_truth"]) == (0, 1)
