"""Work spread over cores or machines by joblib, with a bar or a line for each step."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import TypeVar

from dmrifit._utils.progress import step_bar

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")
_CONNECT_SECONDS = 20


@contextmanager
def scheduler(address: str | None) -> Iterator[None]:
    """Let joblib work on a dask cluster while the block lasts; without an address, do nothing."""
    if address is None:
        yield
        return
    from dmrifit._optional import import_optional

    distributed = import_optional("distributed")
    import joblib

    try:
        client = distributed.Client(address, timeout=_CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"--cluster {address}: no scheduler answers ({error}); start one by dask scheduler, "
            "and workers by dask worker"
        ) from None
    # What it logs of a scheduler that is gone are tracebacks; one line follows below.
    logging.disable(logging.ERROR)
    try:
        with client, joblib.parallel_config("dask", n_jobs=-1, client=client):
            try:
                yield
            except (CancelledError, OSError, RuntimeError) as error:
                if client.status == "running":
                    raise
                raise ConnectionError(
                    f"--cluster {address}: the scheduler is gone; start it again and give the "
                    "same command, which goes on with what is left"
                ) from error
    finally:
        logging.disable(logging.NOTSET)


def run_tasks(
    function: Callable[[_Task], _Result],
    tasks: Sequence[_Task],
    *,
    jobs: int,
    cluster: str | None,
    line: Callable[[_Result], str] = lambda _: "",
    unit: str = "case",
) -> Iterator[_Result]:
    """
    Run a function over tasks, giving results as they come, under one bar with the time left.

    What a task warns of is warned of here, when it is done (with threads, when one of them is).
    """
    from joblib import Parallel, delayed
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    def attempt(task: _Task) -> tuple[_Result, list[str]]:
        # Those of numpy and of compilers name no file and no remedy.
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            result = function(task)
        caught = [one for one in caught if issubclass(one.category, UserWarning)]
        return result, [str(one.message) for one in caught]

    n_jobs = None if cluster else jobs
    with scheduler(cluster):
        # Workers get copies of arrays: those in shared files could not be changed in place.
        parallel = Parallel(
            n_jobs=n_jobs, batch_size=1, return_as="generator_unordered", max_nbytes=None
        )
        try:
            with step_bar(len(tasks), unit) as count:
                for result, caught in parallel(delayed(attempt)(task) for task in tasks):
                    for message in caught:
                        warnings.warn(message, stacklevel=2)
                    yield result
                    count(line(result))
        except TerminatedWorkerError:
            raise MemoryError(
                "a worker process was killed, by the system if memory ran out: give the same "
                "command with fewer --jobs, and it goes on with the cases that are left"
            ) from None
