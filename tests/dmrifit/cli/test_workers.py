"""Work spread over workers."""

import pytest

from dmrifit.cli.workers import run_tasks, scheduler


def square(number):
    return {"name": str(number), "square": number**2}


@pytest.mark.parametrize("jobs", [1, 2])
def test_each_task_gives_a_result_and_a_line(capfd, jobs):
    results = run_tasks(square, [1, 2, 3], jobs=jobs, cluster=None, line=lambda result: result["name"])
    assert sorted(result["square"] for result in results) == [1, 4, 9]
    err = capfd.readouterr().err
    assert err.startswith("1/3 ")
    assert err.count("\n") == 3
    assert "left" in err.splitlines()[0]


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr("dmrifit.cli.workers._CONNECT_SECONDS", 1)
    with pytest.raises(ConnectionError, match="no scheduler answers"), scheduler("not-an-address"):
        pass
