"""The measurement of growth and of clusters: slopes, the model on paper, and a small run of the whole."""

import json

import nibabel as nib
import numpy as np
import pytest

from benchmarks.costs import bench_scale as bench


def test_slopes_are_the_exponents_of_powers():
    found = bench.slopes({n: 3e-6 * n**2 for n in (2, 4, 8, 128)})
    assert (found["slope"], found["slope_at_the_end"]) == (2, 2)
    found = bench.slopes({n: 1 + 1e-3 * n for n in (1, 10, 10**6, 10**7)})
    assert found["slope"] < found["slope_at_the_end"] == 1
    assert found["seconds"]["1"] == 1.001


def test_a_slice_is_written_again_and_again_as_an_image(tmp_path):
    one = np.arange(4 * 3 * 2, dtype=np.float32).reshape(4, 3, 1, 2)
    bench.write_slices(one, 5, tmp_path / "scan.nii")
    image = nib.load(tmp_path / "scan.nii")
    np.testing.assert_array_equal(np.asarray(image.dataobj), np.repeat(one, 5, axis=2))
    assert (tmp_path / "scan.nii").stat().st_size == 352 + 4 * 4 * 3 * 5 * 2


def test_on_paper_long_trainings_scale_until_the_client_cannot_feed_the_workers():
    task = {"cpu_s": 1.0, "sent_bytes": 100_000, "returned_bytes": 25_000, "shared_bytes": 0}
    found = bench.on_paper(task, client_s=0.01, preparing_s=0, n_tasks=100_000)
    assert found["bound_by"] == "client and scheduler"
    assert found["stops_at_workers"] == 100
    efficiency = {int(n): row["efficiency"] for n, row in found["workers"].items()}
    assert efficiency[1] == efficiency[100] == 1
    assert efficiency[1000] == pytest.approx(0.1)
    assert found["workers"]["1000"]["wall_s"] == found["workers"]["100"]["wall_s"]


def test_on_paper_large_arguments_are_bound_by_the_network():
    task = {"cpu_s": 1.0, "sent_bytes": int(bench.NETWORK / 50), "returned_bytes": 0, "shared_bytes": 0}
    found = bench.on_paper(task, client_s=0.001, preparing_s=0, n_tasks=1000)
    assert found["bound_by"] == "network of the client"
    assert found["stops_at_workers"] == 50


def test_on_paper_preparing_alone_and_copying_cost_every_worker():
    task = {"cpu_s": 1.0, "sent_bytes": 0, "returned_bytes": 0, "shared_bytes": int(bench.NETWORK)}
    found = bench.on_paper(task, client_s=1e-6, preparing_s=10, n_tasks=1000)
    assert found["workers"]["1000"]["wall_s"] == 10 + 11 + 1  # prepared, copied from worker to worker, trained
    assert found["workers"]["1"]["efficiency"] == pytest.approx(1010 / 1011, abs=1e-3)


def test_trainings_are_caught_with_what_goes_to_a_worker():
    trainings, seconds = bench.caught(bench.cohort_of(2), ("LR", "ETR"))
    assert len(trainings) == 4
    assert seconds > 0
    for training in trainings:
        shared = training[1][bench.SHARED]
        assert bench.algorithm_of(training) in ("LR", "ETR")
        assert len(shared) == 2
        assert all(isinstance(one, np.ndarray) for one in shared)


@pytest.mark.slow
def test_a_quick_run_measures_everything(run_script, tmp_path):
    pytest.importorskip("distributed")
    out = tmp_path / "quick.json"
    shown = run_script("bench_scale", "--quick", "--out", out)
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["quick"]
    assert result["growth"].keys() == {"voxels", "contrasts", "patients"}
    for cases in result["growth"].values():
        for found in cases.values():
            assert all(value > 0 for value in found["seconds"].values())
    by_algorithm = result["task"]["by_algorithm"]
    assert by_algorithm["LR"]["shared_bytes"] == by_algorithm["ETR"]["shared_bytes"] > 0
    assert result["cluster"]["study"]["efficiency"] > 0
    assert result["cluster"]["tasks"].keys() == {"1", "10", "100", "1000"}
    assert result["paper"]["by_algorithm"].keys() == {"LR", "ETR"}
    assert "workers it can feed" in shown
