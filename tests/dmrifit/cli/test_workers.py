"""Work spread over workers."""

import warnings

import pytest

from dmrifit.cli.workers import run_tasks, scheduler


def square(number):
    warnings.warn(f"{number} is squared", stacklevel=2)
    return {"name": str(number), "square": number**2}


@pytest.mark.parametrize("jobs", [1, 2])
def test_each_task_gives_a_result_and_a_line(capfd, jobs):
    results = run_tasks(square, [1, 2, 3], jobs=jobs, cluster=None, line=lambda result: result["name"])
    with pytest.warns(UserWarning, match=r"\d is squared"):
        assert sorted(result["square"] for result in results) == [1, 4, 9]
    first, *others = capfd.readouterr().err.splitlines()
    assert (first[:4], "left" in first, len(others)) == ("1/3 ", True, 2)


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr("dmrifit.cli.workers._CONNECT_SECONDS", 1)
    with pytest.raises(ConnectionError, match="no scheduler answers"), scheduler("not-an-address"):
        pass
