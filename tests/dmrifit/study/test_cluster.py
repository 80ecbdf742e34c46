"""A study on a cluster: joblib's dask backend, workers that die, the same table."""

import os
import signal
import threading
from concurrent.futures import CancelledError, Future
from types import SimpleNamespace

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression

from dmrifit import SignalToSignal, compare, leave_one_patient_out, simulate_cohort
from dmrifit.study import comparison

N_PATIENTS = 64


@pytest.fixture
def cluster():
    """Two worker processes of one thread each; a dead one is replaced by another."""
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as local,
        distributed.Client(local) as client,
    ):
        yield client


def check_equal(one, other):
    scores = (study.scores.drop(columns="seconds") for study in (one, other))
    pd.testing.assert_frame_equal(*scores, check_exact=True)
    pd.testing.assert_frame_equal(one.signals, other.signals, check_exact=True)


class Killer(threading.Thread):
    """Kills one worker when a study has finished a quarter of its trainings, and all there are at half of them."""

    def __init__(self, client, cells, n_trainings):
        super().__init__(daemon=True)
        self.client, self.cells = client, cells
        self.due = [(n_trainings // 4, 1), (n_trainings // 2, None)]
        self.killed = []
        self.stopped = threading.Event()

    def run(self):
        while self.due and not self.stopped.wait(0.02):
            n_finished = len(list(self.cells.glob("*.json")))
            after, n_workers = self.due[0]
            if n_finished < after:
                continue
            # A worker that is just being replaced does not answer.
            pids = list(self.client.run(os.getpid, on_error="ignore").values())[:n_workers]
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            if pids:
                self.killed.append((n_finished, pids))
                self.due.pop(0)


@pytest.mark.slow
def test_a_study_whose_workers_are_killed_has_the_tables_of_one_process_bit_for_bit(cluster, tmp_path):
    cohort = simulate_cohort("cohort1", N_PATIENTS, shape=(12, 12, 3), random_state=1)
    study = {"algorithms": ("LR", "ETR"), "strategies": ("s2s",), "max_voxels": 30, "controls": False}
    n_trainings = 2 * N_PATIENTS
    alone = leave_one_patient_out(cohort, random_state=3, **study)
    killer = Killer(cluster, tmp_path / "cells", n_trainings)
    killer.start()
    try:
        with joblib.parallel_config(backend="dask"):
            spread = leave_one_patient_out(cohort, out=tmp_path, random_state=3, **study)
    finally:
        killer.stopped.set()
        killer.join()

    assert spread.study["models"] == {"trained": n_trainings, "reused": 0}
    (first, one), (second, rest) = killer.killed
    assert n_trainings // 4 <= first < second < n_trainings
    assert len(one) == 1
    assert rest
    assert not set(one) & set(rest)
    check_equal(spread, alone)
    assert spread.scores["patient"].nunique() == N_PATIENTS


@pytest.mark.slow
def test_a_study_goes_on_when_a_worker_dies_while_it_is_being_sent_the_shared_arrays(cluster, three):
    study = {**STUDY, "algorithms": ("ETR",)}
    alone = leave_one_patient_out(three, **study)
    # Two arrays go to two workers, one each, and this one does not take its own before it dies.
    pid = next(iter(cluster.run(os.getpid).values()))
    os.kill(pid, signal.SIGSTOP)
    timer = threading.Timer(3, os.kill, (pid, signal.SIGKILL))
    found = []

    def run():
        with joblib.parallel_config(backend="dask"):
            found.append(leave_one_patient_out(three, **study))

    thread = threading.Thread(target=run, daemon=True)
    timer.start()
    thread.start()
    thread.join(120)
    timer.join()
    assert found, "the study waits for a worker that is dead"
    check_equal(found[0], alone)


class LosesData:
    """Like joblib's Parallel, but the workers that hold the shared arrays die after so many results."""

    def __init__(self, *_, **__):
        pass

    def __call__(self, tasks):
        LosesData.sent.append(list(tasks))
        if LosesData.until is not None and len(LosesData.sent) > LosesData.until:
            LosesData.n_results = len(LosesData.sent[-1])
        for function, arguments, options in LosesData.sent[-1][: LosesData.n_results]:
            yield function(*arguments, **options)
        if len(LosesData.sent[-1]) > LosesData.n_results:
            raise CancelledError


@pytest.fixture
def losing(monkeypatch):
    LosesData.sent = []
    LosesData.until = None  # the number of rounds after which nothing is lost
    monkeypatch.setattr(comparison, "Parallel", LosesData)
    return LosesData


STUDY = {"algorithms": ("LR", "ETR"), "strategies": ("s2s",), "max_voxels": 20, "controls": False, "random_state": 3}


@pytest.fixture(scope="module")
def three():
    return simulate_cohort("cohort1", 3, shape=(12, 12, 3), random_state=1)


def test_what_a_cluster_has_lost_is_sent_again_and_nothing_else(three, losing):
    losing.n_results = 4
    found = leave_one_patient_out(three, **STUDY)
    assert [len(tasks) for tasks in losing.sent] == [6, 2]
    assert found.scores["patient"].nunique() == 3


def test_a_cluster_that_finishes_nothing_is_given_up(three, losing):
    losing.n_results = 0
    with pytest.raises(RuntimeError, match=r"lost the voxels of this study 5 times.*lower max_voxels"):
        leave_one_patient_out(three, **STUDY)
    assert len(losing.sent) == comparison._SENDINGS


class Breaking:
    """A cluster's client whose workers die while they are sent an array, so many times."""

    def __init__(self, n_deaths):
        self.n_deaths, self.sent, self.waits = n_deaths, [], []

    def scatter(self, array, **_):
        self.sent.append(array)
        if len(self.sent) <= self.n_deaths:
            msg = "Stream is closed"
            raise OSError(msg)
        future = Future()
        future.set_result(array)
        return future


@pytest.fixture
def breaking(monkeypatch):
    pytest.importorskip("distributed")

    def make(n_deaths):
        client = Breaking(n_deaths)
        backend = SimpleNamespace(client=client, effective_n_jobs=lambda _: client.waits.append(len(client.sent)))
        monkeypatch.setattr("joblib.parallel.get_active_backend", lambda: (backend, 1))
        monkeypatch.setattr(comparison.time, "sleep", lambda _: None)
        return client

    return make


@pytest.fixture
def study():
    """Trainings that share two arrays, and where these are."""
    entrant = SimpleNamespace(name="x")
    cells = [SimpleNamespace(entrant=entrant, view=None, repeat=repeat) for repeat in (0, 0, 1)]
    stack = SimpleNamespace(arrays=(np.zeros(3), np.ones(3)))
    return cells, SimpleNamespace(arrays=stack.arrays, material=lambda *_: stack)


def test_an_array_is_sent_again_when_the_worker_that_takes_it_dies_and_each_array_once(breaking, study):
    client = breaking(2)
    lent = comparison._send_arrays(*study)
    one, other = study[1].arrays
    assert {key: future.result() is array for (key, future), array in zip(lent.items(), (one, other), strict=True)} == {
        id(one): True,
        id(other): True,
    }
    assert [sent is one for sent in client.sent] == [True, True, True, False]


def test_an_array_that_no_worker_takes_is_an_error_and_no_endless_wait(breaking, study):
    client = breaking(10**6)
    with pytest.raises(OSError, match="Stream is closed"):
        comparison._send_arrays(*study)
    assert len(client.sent) == comparison._SENDINGS


def test_trainings_that_run_in_the_client_take_the_shared_arrays_out_of_their_futures(three, breaking):
    client = breaking(0)
    found = leave_one_patient_out(three, **STUDY)
    assert len(client.sent) == 2
    assert client.waits == [0], "joblib waits for the first worker before arrays are sent"
    assert found.scores["patient"].nunique() == 3


@pytest.mark.slow
def test_a_study_waits_for_the_first_worker_of_a_cluster_that_starts_them_when_there_is_work(three):
    distributed = pytest.importorskip("distributed")
    study = {**STUDY, "algorithms": ("ETR",)}
    alone = leave_one_patient_out(three, **study)
    with distributed.LocalCluster(n_workers=0, threads_per_worker=1, dashboard_address=":0") as local:
        local.adapt(minimum=0, maximum=2)
        with distributed.Client(local), joblib.parallel_config(backend="dask", wait_for_workers_timeout=60):
            spread = leave_one_patient_out(three, **study)
    check_equal(spread, alone)


class Locked(LinearRegression):
    """An estimator that a copy can be made of in this process, but none in another."""

    def __init__(self, lock=None):
        super().__init__()
        self.lock = lock


class Unsendable:
    """Something like an open file."""

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        msg = "cannot pickle an open file"
        raise TypeError(msg)


def test_an_estimator_that_cannot_be_sent_is_named_before_anything_is(three, breaking):
    client = breaking(0)
    estimators = {"locked": SignalToSignal(Locked(Unsendable()))}
    with pytest.raises(RuntimeError, match=r"'locked' cannot be sent .*cannot pickle an open file.*make them in fit"):
        compare(estimators, three, max_voxels=20, controls=False, random_state=3)
    assert client.sent == []


def test_a_training_uses_no_other_worker_for_work_inside_it(monkeypatch):
    workers = []

    def trial(*_):
        workers.append(joblib.Parallel(prefer="threads")(joblib.delayed(threading.get_ident)() for _ in range(4)))
        return {}

    monkeypatch.setattr(comparison, "run_trial", trial)
    with joblib.parallel_config(backend="threading", n_jobs=4):
        comparison._train((), 0, None, None, None)
    assert workers == [[threading.get_ident()] * 4]
