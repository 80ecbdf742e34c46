"""The comparison of both truths: biases of fits to walks, agreement of verdicts, ranks."""

import pandas as pd
import pytest

from benchmarks.prediction import bench_truths


def test_fits_to_walks_have_small_residuals_and_too_little_kurtosis():
    result = bench_truths.fit_biases(n_tissues=40, n_repeats=3)
    assert 0.01 < result["residual_percent"]["median"] < 0.3
    median = {(row["snr"], row["parameter"]): row["median_percent"] for row in result["biases"]}
    for snr in (None, 60.0, 30.0):
        assert abs(median[snr, "f"]) < 15
        assert -12 < median[snr, "Dt"] < 3
        assert abs(median[snr, "T2t"]) < 3
    assert -20 < median[None, "K"] < 0
    assert -30 < median[30.0, "K"] < median[None, "K"] - 3
    coverage = {(row["snr"], row["level"], row["parameter"]): row for row in result["coverage"]}
    assert coverage[60.0, 0.95, "K"]["fit without noise"] > 0.9 > coverage[60.0, 0.95, "K"]["truth"]


def test_ranks_of_algorithms_are_compared_between_the_truths():
    def scores(biases):
        rows = [
            {"cohort": "A", "strategy": "s2s", "algorithm": name, "abs_bias": bias}
            for name, bias in zip(("LR", "RFR", "ETR"), biases, strict=True)
        ]
        return pd.DataFrame(rows).assign(dispersion=0.3, pearson=0.5, pearson_truth=0.4)

    tables = {"formula": scores([0.1, 0.2, 0.3]), "walk": scores([0.2, 0.1, 0.3])}
    ranks = {row["score"]: row for row in bench_truths.rank_correlations(tables)}
    assert ranks["abs_bias"]["n_algorithms"] == 3
    assert ranks["abs_bias"]["rank_correlation"] == 0.5
    assert ranks["abs_bias"]["walk"] == pytest.approx({"LR": 0.2, "RFR": 0.1, "ETR": 0.3})
    assert ranks["pearson"]["rank_correlation"] is None
