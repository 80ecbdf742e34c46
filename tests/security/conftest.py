"""What tests of safety share: how much memory a call takes."""

import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest


def resident():
    """Give the memory of this process in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


@pytest.fixture
def peak():
    """Check that a block takes no more than so many bytes of memory at any time."""

    @contextmanager
    def watch(most):
        highest, done = [resident()], threading.Event()

        def look():
            while not done.is_set():
                highest[0] = max(highest[0], resident())
                time.sleep(0.002)

        before = highest[0]
        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
        assert highest[0] - before < most

    return watch
