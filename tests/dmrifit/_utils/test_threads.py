"""Numbers of jobs; one thread for linear algebra: inside a block, in whatever thread of Python, and no longer."""

import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from dmrifit._utils.threads import check_jobs, one_thread


def counts():
    np.ones((2, 2)) @ np.ones((2, 2))
    return {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()}


@pytest.fixture(autouse=True)
def two_threads():
    with threadpool_limits(2):
        yield


def test_a_block_has_one_thread_and_gives_back_what_was_set():
    before = counts()
    with one_thread():
        assert set(counts().values()) == {1}
        with one_thread():
            assert set(counts().values()) == {1}
        assert set(counts().values()) == {1}
    assert counts() == before
    with pytest.raises(ZeroDivisionError), one_thread():
        _ = 1 / 0
    assert counts() == before


def test_blocks_in_several_threads_do_not_lift_each_others_limit():
    before = counts()
    entered, leave, seen = threading.Event(), threading.Event(), {}

    def long():
        with one_thread():
            entered.set()
            leave.wait(10)
            seen["long"] = set(counts().values())

    thread = threading.Thread(target=long)
    thread.start()
    entered.wait(10)
    with one_thread():
        seen["short"] = set(counts().values())
    leave.set()
    thread.join()
    assert seen == {"short": {1}, "long": {1}}
    assert counts() == before


def test_numbers_of_jobs_that_joblib_takes_are_taken():
    for n_jobs in (None, 1, -1, -2, np.int64(3)):
        check_jobs(n_jobs)
