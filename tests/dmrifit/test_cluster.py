"""A study on a cluster: joblib's dask backend, workers that die, the same table."""

import os
import signal
import threading

import joblib
import pandas as pd
import pytest

from dmrifit import leave_one_patient_out, simulate_cohort

distributed = pytest.importorskip("distributed")

N_PATIENTS = 64


@pytest.fixture
def cluster():
    """Two worker processes of one thread each; a dead one is replaced by another."""
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as local,
        distributed.Client(local) as client,
    ):
        yield client


class Killer(threading.Thread):
    """Kills one worker as soon as a study has finished some of its trainings."""

    def __init__(self, client, cells, after):
        super().__init__(daemon=True)
        self.cells, self.after = cells, after
        self.pids = client.run(os.getpid)
        self.killed_at = None
        self.stopped = threading.Event()

    def run(self):
        while not self.stopped.wait(0.02):
            n_finished = len(list(self.cells.glob("*.json")))
            if n_finished >= self.after:
                os.kill(next(iter(self.pids.values())), signal.SIGKILL)
                self.killed_at = n_finished
                return


@pytest.mark.slow
def test_a_study_whose_worker_is_killed_has_the_table_of_one_process_bit_for_bit(cluster, tmp_path):
    cohort = simulate_cohort("cohort1", N_PATIENTS, shape=(12, 12, 3), random_state=1)
    study = {
        "algorithms": ("LR", "ETR"),
        "strategies": ("s2s",),
        "max_voxels": 30,
        "controls": False,
        "random_state": 3,
    }
    alone = leave_one_patient_out(cohort, **study)
    killer = Killer(cluster, tmp_path / "cells", after=N_PATIENTS // 2)
    killer.start()
    try:
        with joblib.parallel_config(backend="dask"):
            spread = leave_one_patient_out(cohort, out=tmp_path, **study)
    finally:
        killer.stopped.set()
        killer.join()

    assert spread.study["models"] == {"trained": 2 * N_PATIENTS, "reused": 0}
    assert N_PATIENTS // 2 <= killer.killed_at < 2 * N_PATIENTS
    assert set(cluster.run(os.getpid).values()) != set(killer.pids.values())
    timed = "seconds"
    pd.testing.assert_frame_equal(spread.scores.drop(columns=timed), alone.scores.drop(columns=timed), check_exact=True)
    pd.testing.assert_frame_equal(spread.signals, alone.signals, check_exact=True)
    assert spread.scores["patient"].nunique() == N_PATIENTS
