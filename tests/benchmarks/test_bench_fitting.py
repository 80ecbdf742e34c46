"""The measurement of fits runs and knows the best fits; labels of methods name the method that is run."""

import json
import re

import numpy as np
import pytest

from benchmarks.fitting import _fitting_data as data
from benchmarks.fitting import bench_ivim_methods as ivim
from dmrifit import Protocol, fit_voxels


def test_a_quick_run_measures_speed_and_accuracy_side_by_side(run_script, tmp_path):
    pytest.importorskip("dipy")
    pytest.importorskip("lmfit")
    said = run_script("bench_fitting", "--quick", "--out", tmp_path / "quick.json")
    result = json.loads((tmp_path / "quick.json").read_text(encoding="utf-8"))
    rows = {row["name"]: row for row in result["rows"]}
    for name in ("tissue", "hard", "tissue, noise floor", "hard, noise floor", "tissue, one start"):
        assert rows[name]["ours"]["best_us"] > 0
        assert 0.8 <= rows[name]["accuracy"]["within_1e-3"] <= 1
        assert rows[name]["accuracy"]["within_1e-6"] <= rows[name]["accuracy"]["within_1e-3"]
    for name in ("scipy", "lmfit leastsq", "lmfit least_squares", "dipy ivim", "adc", "kurtosis"):
        row = rows[name]
        assert row["ratio"]["default"] == pytest.approx(
            row["theirs"]["best_us"] / row["ours"]["default"]["best_us"], rel=1e-3
        )
        assert 0 <= row["their_accuracy"]["within_1e-3"] <= 1
    assert rows["published script"]["not_measured"] == "not measured here"
    assert "not measured here" in said
    assert rows["memory"]["ours"]["peak_mb"] > rows["memory"]["ours"]["input_mb"]
    assert {"extras", "threads", "start", "own model: an expression"} <= rows.keys()
    assert {"intervals", "adc, log-linear"} <= rows.keys()
    for row in rows.values():
        for goal in row["reach"] + row["aim"]:
            sign = 1 if goal["at_least"] else -1
            assert goal["met"] == (sign * goal["value"] >= sign * goal["limit"])
    assert set(result["reference"]) == {"tissue", "tissue, noise floor", "hard", "hard, noise floor"}
    for found in result["reference"].values():
        assert found["largest_excess_of_ours"] < 1e-6


def test_a_search_knows_better_fits_than_one_start():
    hard = data.Data(data.T2IK, data.RELAXATION, data.draw("hard", 300, 20261190), (15, 60), 20261190)
    one = hard.fit(n_starts=1)
    hard.know(one.cost)
    before = hard.best[False].copy()
    hard.search(parts=data.PARTS)
    assert (hard.best[False] <= before).all()
    assert (hard.best[False] < before * (1 - 1e-3)).any()
    np.testing.assert_allclose(hard.cost(one.parameters), one.cost, rtol=1e-8)
    found = hard.share(one.cost)
    assert found["within_1e-3"] == pytest.approx((one.cost <= hard.best[False] * (1 + 1e-3)).mean(), abs=1e-6)
    assert found["within_1e-3"] < 1


def test_drawn_tissue_keeps_to_its_ranges_and_repeats():
    drawn = data.draw("tissue", 5000, 1)
    for column, (low, high) in zip(drawn.T[1:], data.TISSUE.values(), strict=True):
        assert column.min() >= low
        assert column.max() <= high
    assert np.median(drawn[:, 2]) == pytest.approx(np.sqrt(8 * 60), rel=0.1)  # even in the logarithm
    np.testing.assert_array_equal(drawn, data.draw("tissue", 5000, 1))


B = [0, 10, 20, 40, 80, 110, 160, 260, 400, 600, 800]


@pytest.mark.parametrize("label", [*ivim.METHODS][1:])
def test_methods_for_ivim_are_those_of_their_labels(label):
    rng = np.random.default_rng(0)
    protocol = Protocol(B)
    truth = np.array([[1.0, 0.3, 20.0, 1.0]])
    signals = ivim.noisy(truth.repeat(20, axis=0), protocol, 30, rng)
    options = ivim.METHODS[label]
    result = fit_voxels(signals, protocol, "ivim", **options)
    assert result.method == {"one step": "nlls", "two steps": "segmented"}[label.partition(",")[0]]
    # Dt of a segmented fit is determined by the signals from its threshold on.
    threshold = re.search(r"b ≥ (\d+)", label)
    assert (result.method == "segmented") == bool(threshold)
    if threshold:
        below = np.array(B) < float(threshold[1])
        changed = signals.copy()
        changed[:, below & (np.array(B) > 0)] *= 0.98
        again = fit_voxels(changed, protocol, "ivim", **options)
        np.testing.assert_array_equal(again["Dt"], result["Dt"])
        changed[:, np.flatnonzero(~below)[0]] *= 0.9
        assert (fit_voxels(changed, protocol, "ivim", **options)["Dt"] != result["Dt"]).all()
    if "S0 measured" in label:
        np.testing.assert_allclose(result["S0"], signals[:, 0])
